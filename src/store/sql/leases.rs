use std::collections::BTreeSet;

use jiff::Timestamp;
use sqlx::{QueryBuilder, query_builder::Separated};

use super::{
    dialect::{Connection, Db, Pool, Row},
    row::{
        count, get as column, inconsistent, micros, parse, parse_optional, portions, store_error,
        time, time_optional,
    },
    session_counter::SessionUpperBound,
};
use crate::{
    broker::ports::{BeginOutcome, LeaseFilter, PageRequest, StoreError},
    domain::{
        credential::KeyId,
        denial::{DenialSession, PolicyOwner},
        grant::Kind,
        lease::{
            CredentialState, EndReason, Issuance, IssuedCredentials, Lease, LeaseState, Removal,
        },
        name::{GrantName, LeaseId, Name},
        request::{IdempotencyKey, RequestId},
        service::Suspension,
    },
};

const TABLE: &str = "leases";

/// Inserts each lease whose service is not suspended, whose grant is still of the lease's version,
/// and whose request has no lease yet. Returns the ids of those inserted.
pub(super) async fn insert_all(
    tx: &mut Connection,
    leases: &[&Lease],
) -> Result<BTreeSet<String>, StoreError> {
    let mut begun = BTreeSet::new();
    for leases in portions(leases) {
        let mut query: QueryBuilder<Db> = QueryBuilder::new(
            "INSERT INTO leases (state, revision, due_at, cause, attempts, ended_at, request_id, replacing_until,
                                 made_by, left_to_issuer, failing_since, key_lost, asked_at, access_key_id, issued_at,
                                 expires_at, lease_id, service, grant_name, grant_version, kind, aws_name, renews,
                                 requested_at, request_digest, holder)
             SELECT * FROM (",
        );
        query.push_values(leases, |mut row, lease| {
            let binding = &lease.binding;
            push_state(&mut row, lease);
            push_issued(&mut row, lease);
            row.push_bind(binding.lease_id.as_str())
                .push_bind(binding.grant.service.as_str())
                .push_bind(binding.grant.grant.as_str())
                .push_bind(binding.grant_version.cast_signed())
                .push_bind(binding.kind.as_str())
                .push_bind(binding.aws_name.as_str())
                .push_bind(binding.renews.as_ref().map(LeaseId::as_str))
                .push_bind(micros(lease.requested_at))
                .push_bind(lease.request.as_ref().map(|request| &request.digest[..]))
                .push_bind(binding.holder.as_ref().map(PolicyOwner::as_str));
        });
        query.push(
            ") AS new
             WHERE EXISTS (SELECT 1 FROM services WHERE name = column18 AND suspended_at IS NULL)
               AND EXISTS (SELECT 1 FROM grants WHERE service = column18 AND grant_name = column19 AND version = column20)
             ON CONFLICT DO NOTHING RETURNING lease_id",
        );
        begun.extend(ids(query, tx).await?);
    }
    Ok(begun)
}

/// Returns the lease ids that a statement returns.
async fn ids(mut query: QueryBuilder<Db>, tx: &mut Connection) -> Result<Vec<String>, StoreError> {
    let rows = query.build().fetch_all(tx).await.map_err(store_error)?;
    rows.iter().map(|row| column(row, "lease_id")).collect()
}

/// Updates a lease of revision `from`; otherwise `Conflict`. Other credentials or another expiry
/// need a service that is not suspended.
pub(super) async fn update(
    tx: &mut Connection,
    from: u64,
    lease: &Lease,
) -> Result<(), StoreError> {
    match update_all(tx, &[(from, lease)]).await?.len() {
        1 => Ok(()),
        _ => Err(StoreError::Conflict),
    }
}

/// Updates many leases in the same way; each lease may occur once. Returns the ids of those
/// updated.
pub(super) async fn update_all(
    tx: &mut Connection,
    leases: &[(u64, &Lease)],
) -> Result<BTreeSet<String>, StoreError> {
    let is_active = |(_, lease): &(u64, &Lease)| matches!(lease.state, LeaseState::Active { .. });
    let (active, others): (Vec<_>, Vec<_>) = leases.iter().copied().partition(is_active);
    let mut replaced = BTreeSet::new();
    // The columns of issued credentials stay unchanged for the others, and so do their index
    // entries.
    for (leases, is_active) in [(active, true), (others, false)] {
        let (set_issued, and) = if is_active {
            (SET_ISSUED, AND_LET_IN)
        } else {
            ("", "")
        };
        for leases in portions(&leases) {
            let mut query = QueryBuilder::new(UPDATE);
            query.push(set_issued).push(" FROM (");
            query.push_values(leases, |mut row, (from, lease)| {
                push_next(&mut row, *from, lease);
                if is_active {
                    push_issued(&mut row, lease);
                }
            });
            query
                .push(WHERE_UNCHANGED)
                .push(and)
                .push(" RETURNING lease_id");
            replaced.extend(ids(query, tx).await?);
        }
    }
    Ok(replaced)
}

const UPDATE: &str =
    "UPDATE leases SET state = column1, revision = column2, due_at = column3, cause = column4, attempts = column5,
                       ended_at = column6, request_id = column7, replacing_until = column8, made_by = column9,
                       left_to_issuer = column10, failing_since = column11, key_lost = column12, asked_at = column13";
const SET_ISSUED: &str = ", access_key_id = column16, issued_at = column17, expires_at = column18";
const WHERE_UNCHANGED: &str = ") AS next WHERE lease_id = column14 AND revision = column15";
/// Condition for new credentials or another expiry: the service is not suspended.
const AND_LET_IN: &str =
    " AND (access_key_id IS NOT DISTINCT FROM column16 AND expires_at IS NOT DISTINCT FROM column18
           OR EXISTS (SELECT 1 FROM services WHERE name = leases.service AND suspended_at IS NULL))";

/// Binds the columns of the statements above: the new state of a lease, and the revision that it
/// replaces.
fn push_next(row: &mut Separated<'_, Db, &'static str>, from: u64, lease: &Lease) {
    push_state(row, lease);
    row.push_bind(lease.binding.lease_id.as_str())
        .push_bind(from.cast_signed());
}

/// Binds the columns that change, in the order of the statements above.
fn push_state(row: &mut Separated<'_, Db, &'static str>, lease: &Lease) {
    let removal = lease.removal();
    let (replacing_until, key_lost) = match &lease.state {
        LeaseState::Active { standing, .. } => match standing {
            CredentialState::Whole => (None, false),
            CredentialState::Replacing { until } => (Some(*until), false),
            CredentialState::KeyLost => (None, true),
        },
        _ => (None, false),
    };
    row.push_bind(lease.state.as_str())
        .push_bind(lease.revision.cast_signed())
        .push_bind(lease.due_at().map(micros))
        .push_bind(lease.cause().map(ToString::to_string))
        .push_bind(removal.map_or(0, |removal| i64::from(removal.attempts)))
        .push_bind(lease.ended_at().map(micros))
        .push_bind(lease.request.as_ref().map(|request| request.id.as_str()))
        .push_bind(replacing_until.map(micros))
        .push_bind(removal.map(|removal| micros(removal.made_by)))
        .push_bind(removal.is_some_and(|removal| removal.left_to_issuer))
        .push_bind(
            removal
                .and_then(|removal| removal.failing_since)
                .map(micros),
        )
        .push_bind(key_lost)
        .push_bind(removal.map(|removal| micros(removal.asked_at)));
}

/// Binds the columns of issued credentials, which change only while a lease is, or becomes, active.
fn push_issued(row: &mut Separated<'_, Db, &'static str>, lease: &Lease) {
    let issued = lease.issued();
    row.push_bind(issued.map(|issued| issued.access_key_id.as_str()))
        .push_bind(issued.map(|issued| micros(issued.at)))
        .push_bind(issued.map(|issued| micros(issued.expires_at)));
}

/// Returns what prevents `lease` from beginning, if anything: its request has a lease already, or
/// its service has `most` live leases of the kinds that count together.
pub(super) async fn hindrance(
    tx: &mut Connection,
    lease: &Lease,
    most: u64,
    sessions: &SessionUpperBound,
) -> Result<Option<BeginOutcome>, StoreError> {
    let binding = &lease.binding;
    let service = &binding.grant.service;
    if let Some(known) = known(tx, lease).await? {
        return Ok(Some(known));
    }
    let is_user = binding.kind == Kind::IamUser;
    let row = sqlx::query(
        "SELECT count(*) AS live, min(expires_at) AS next_end FROM live_leases
         WHERE service = $1 AND (kind = 'iam_user') = $2
           AND (kind = 'iam_user' OR expires_at IS NULL OR expires_at > $3)",
    )
    .bind(service.as_str())
    .bind(is_user)
    .bind(micros(lease.requested_at))
    .fetch_one(&mut *tx)
    .await
    .map_err(store_error)?;
    let (live, next_end) = (
        count(&row, "live")?,
        time_optional(&row, TABLE, "next_end")?,
    );
    if live >= most {
        return Ok(Some(BeginOutcome::TooMany { next_end }));
    }
    if !is_user {
        sessions.counted(service, live);
    }
    Ok(None)
}

/// Returns the lease that the request of `lease` has already.
pub(super) async fn known(
    tx: &mut Connection,
    lease: &Lease,
) -> Result<Option<BeginOutcome>, StoreError> {
    let Some(request) = &lease.request else {
        return Ok(None);
    };
    let known = of_request(tx, &lease.binding.grant.service, &request.id).await?;
    Ok(known.map(|known| BeginOutcome::Known(Box::new(known))))
}

/// Returns the live leases of a service, or of one of its grants. An unreadable lease must not keep
/// the others alive: it is logged and skipped.
pub(super) async fn live(
    connection: &mut Connection,
    service: &Name,
    grant: Option<&Name>,
) -> Result<Vec<Lease>, StoreError> {
    let rows = sqlx::query(
        "SELECT * FROM live_leases WHERE service = $1 AND ($2 IS NULL OR grant_name = $2)
         ORDER BY lease_id",
    )
    .bind(service.as_str())
    .bind(grant.map(Name::as_str))
    .fetch_all(connection)
    .await
    .map_err(store_error)?;
    Ok(rows.iter().filter_map(readable).collect())
}

/// Counts the live leases, readable or not.
pub(super) async fn count_live(
    tx: &mut Connection,
    service: &Name,
    grant: Option<&Name>,
) -> Result<u64, StoreError> {
    let row = sqlx::query(
        "SELECT count(*) AS live FROM live_leases
         WHERE service = $1 AND ($2 IS NULL OR grant_name = $2)",
    )
    .bind(service.as_str())
    .bind(grant.map(Name::as_str))
    .fetch_one(tx)
    .await
    .map_err(store_error)?;
    count(&row, "live")
}

/// Sessions of a service that expire last, or have expired last.
pub(super) struct LastSessions {
    /// Session that expires last, for each grant version at each role and user.
    pub(super) sessions: Vec<DenialSession>,
    /// Number of unreadable sessions whose leases have ended.
    pub(super) unreadable_ended: u64,
}

/// Returns the sessions of a service, or of one of its grants, that expire last or have expired
/// last. Each takes one index look-up, however many sessions there are.
pub(super) async fn last_sessions(
    connection: &mut Connection,
    service: &Name,
    grant: Option<&Name>,
) -> Result<LastSessions, StoreError> {
    let mut last = LastSessions {
        sessions: Vec::new(),
        unreadable_ended: 0,
    };
    let mut after = (
        grant.map_or_else(String::new, ToString::to_string),
        -1_i64,
        String::new(),
    );
    loop {
        let row = sqlx::query(
            "SELECT * FROM issued_sessions
             WHERE service = $1 AND (grant_name, grant_version, holder) > ($2, $3, $4)
             ORDER BY grant_name, grant_version, holder, expires_at DESC LIMIT 1",
        )
        .bind(service.as_str())
        .bind(&after.0)
        .bind(after.1)
        .bind(&after.2)
        .fetch_optional(&mut *connection)
        .await
        .map_err(store_error)?;
        let Some(row) = row else {
            return Ok(last);
        };
        after = (
            column(&row, "grant_name")?,
            column(&row, "grant_version")?,
            column(&row, "holder")?,
        );
        if grant.is_some_and(|grant| grant.as_str() != after.0) {
            return Ok(last);
        }
        match session(&row) {
            Ok(session) => last.sessions.push(session),
            Err(error) => {
                tracing::error!(%error, "the session of a lease is passed over");
                let due_at: Option<i64> = column(&row, "due_at")?;
                last.unreadable_ended += u64::from(due_at.is_none());
            }
        }
    }
}

pub(super) fn session(row: &Row) -> Result<DenialSession, StoreError> {
    Ok(DenialSession {
        grant: GrantName {
            service: parse(row, TABLE, "service")?,
            grant: parse(row, TABLE, "grant_name")?,
        },
        grant_version: count(row, "grant_version")?,
        holder: parse(row, TABLE, "holder")?,
        expires_at: time(row, TABLE, "expires_at")?,
    })
}

/// Begins to revoke all live leases of a service, or of one of its grants.
pub(super) async fn begin_revoking_all(
    tx: &mut Connection,
    service: &Name,
    grant: Option<&Name>,
    suspension: &Suspension,
) -> Result<Vec<Lease>, StoreError> {
    let live = live(tx, service, grant).await?;
    let mut revoking = Vec::with_capacity(live.len());
    for before in live {
        let from = before.revision;
        let cause = EndReason::Revoked(suspension.reason.clone().unwrap_or_default());
        let after = before
            .begin_revocation(cause, suspension.at)
            .map_err(|refused| inconsistent(TABLE, refused))?;
        revoking.push((from, after));
    }
    let changes: Vec<_> = revoking
        .iter()
        .map(|(from, after)| (*from, after))
        .collect();
    if update_all(tx, &changes).await?.len() < changes.len() {
        return Err(StoreError::Conflict);
    }
    Ok(revoking.into_iter().map(|(_, after)| after).collect())
}

pub(super) async fn get(pool: &Pool, id: &LeaseId) -> Result<Option<Lease>, StoreError> {
    let row = sqlx::query("SELECT * FROM leases WHERE lease_id = $1")
        .bind(id.as_str())
        .fetch_optional(pool)
        .await
        .map_err(store_error)?;
    row.as_ref().map(lease).transpose()
}

/// Returns `Some` if the lease is active.
pub(super) async fn active(pool: &Pool, id: &LeaseId) -> Result<Option<()>, StoreError> {
    let lease = get(pool, id).await?;
    let is_active = |lease: &Lease| matches!(lease.state, LeaseState::Active { .. });
    Ok(lease.as_ref().is_some_and(is_active).then_some(()))
}

pub(super) async fn of_request(
    connection: &mut Connection,
    service: &Name,
    request: &RequestId,
) -> Result<Option<Lease>, StoreError> {
    let row = sqlx::query("SELECT * FROM leases WHERE service = $1 AND request_id = $2")
        .bind(service.as_str())
        .bind(request.as_str())
        .fetch_optional(connection)
        .await
        .map_err(store_error)?;
    row.as_ref().map(lease).transpose()
}

pub(super) async fn of_key(pool: &Pool, key: &KeyId) -> Result<Option<Lease>, StoreError> {
    let row = sqlx::query("SELECT * FROM leases WHERE access_key_id = $1 LIMIT 1")
        .bind(key.as_str())
        .fetch_optional(pool)
        .await
        .map_err(store_error)?;
    row.as_ref().map(lease).transpose()
}

pub(super) async fn live_users(pool: &Pool) -> Result<Vec<Lease>, StoreError> {
    let rows = sqlx::query(
        "SELECT * FROM leases WHERE due_at IS NOT NULL AND kind = 'iam_user' ORDER BY aws_name",
    )
    .fetch_all(pool)
    .await
    .map_err(store_error)?;
    rows.iter().map(lease).collect()
}

pub(super) async fn revoking_sessions(
    pool: &Pool,
    service: &Name,
    page: &PageRequest,
) -> Result<Vec<Lease>, StoreError> {
    let rows = sqlx::query(
        "SELECT * FROM revoking_sessions WHERE service = $1 AND lease_id > $2 ORDER BY lease_id LIMIT $3",
    )
    .bind(service.as_str())
    .bind(page.after.as_deref().unwrap_or_default())
    .bind(i64::from(page.limit))
    .fetch_all(pool)
    .await
    .map_err(store_error)?;
    Ok(rows.iter().filter_map(readable).collect())
}

pub(super) async fn list(
    pool: &Pool,
    filter: &LeaseFilter,
    page: &PageRequest,
) -> Result<Vec<Lease>, StoreError> {
    // Few leases are in these states: an index finds them without a scan of all ended leases.
    let from = match filter.state {
        Some("pending" | "revoking" | "quarantined") => "unsettled_leases",
        _ => "leases",
    };
    // Ids consist of [0-9a-v]; all of them sort before "w".
    let mut query: QueryBuilder<Db> = QueryBuilder::new("SELECT * FROM ");
    query.push(from).push(" WHERE lease_id < ");
    query.push_bind(page.after.as_deref().unwrap_or("w"));
    if let Some(service) = &filter.service {
        query.push(" AND service = ").push_bind(service.as_str());
    }
    if let Some(state) = filter.state {
        query.push(" AND state = ").push_bind(state);
    }
    query
        .push(" ORDER BY lease_id DESC LIMIT ")
        .push_bind(i64::from(page.limit));
    let rows = query.build().fetch_all(pool).await.map_err(store_error)?;
    rows.iter().map(lease).collect()
}

/// Query that puts revoked users first, since a caller may wait for their removal.
const USERS_DUE: &str = "SELECT * FROM leases WHERE kind = 'iam_user' AND due_at <= $1
                         ORDER BY cause IS NULL OR cause NOT LIKE 'revoked%', due_at LIMIT $2";
const SESSIONS_DUE: &str = "SELECT * FROM leases WHERE kind <> 'iam_user' AND due_at <= $1
                            ORDER BY due_at LIMIT $2";

pub(super) async fn due(
    pool: &Pool,
    users: bool,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<Lease>, StoreError> {
    let mut most = limit;
    loop {
        let rows = sqlx::query(if users { USERS_DUE } else { SESSIONS_DUE })
            .bind(micros(now))
            .bind(i64::try_from(most).unwrap_or(i64::MAX))
            .fetch_all(pool)
            .await
            .map_err(store_error)?;
        let leases: Vec<Lease> = rows.iter().filter_map(readable).collect();
        if leases.len() >= limit || rows.len() < most {
            return Ok(leases);
        }
        // Unreadable rows must not hide the rows after them.
        most += limit;
    }
}

fn readable(row: &Row) -> Option<Lease> {
    lease(row)
        .inspect_err(|error| tracing::error!(%error, "a lease is passed over"))
        .ok()
}

fn lease(row: &Row) -> Result<Lease, StoreError> {
    Ok(Lease {
        binding: Issuance {
            lease_id: parse(row, TABLE, "lease_id")?,
            grant: GrantName {
                service: parse(row, TABLE, "service")?,
                grant: parse(row, TABLE, "grant_name")?,
            },
            grant_version: count(row, "grant_version")?,
            kind: kind(row)?,
            aws_name: column(row, "aws_name")?,
            renews: parse_optional(row, TABLE, "renews")?,
            holder: parse_optional(row, TABLE, "holder")?,
        },
        request: request(row)?,
        requested_at: time(row, TABLE, "requested_at")?,
        state: state(row)?,
        revision: count(row, "revision")?,
    })
}

fn kind(row: &Row) -> Result<Kind, StoreError> {
    let text: String = column(row, "kind")?;
    text.parse().map_err(|()| inconsistent(TABLE, "kind"))
}

fn request(row: &Row) -> Result<Option<IdempotencyKey>, StoreError> {
    let Some(id) = parse_optional(row, TABLE, "request_id")? else {
        return Ok(None);
    };
    let digest: Vec<u8> = column(row, "request_digest")?;
    let digest = digest
        .try_into()
        .map_err(|_| inconsistent(TABLE, "request_digest"))?;
    Ok(Some(IdempotencyKey { id, digest }))
}

fn state(row: &Row) -> Result<LeaseState, StoreError> {
    let name: String = column(row, "state")?;
    let issued = issued(row)?;
    let must =
        |issued: Option<IssuedCredentials>| issued.ok_or_else(|| inconsistent(TABLE, "issued_at"));
    match name.as_str() {
        "pending" => Ok(LeaseState::Pending {
            deadline: time(row, TABLE, "due_at")?,
        }),
        "active" => Ok(LeaseState::Active {
            issued: must(issued)?,
            standing: standing(row)?,
        }),
        "revoking" => Ok(LeaseState::Revoking(removal(row, issued)?)),
        "quarantined" => Ok(LeaseState::Quarantined(removal(row, issued)?)),
        "revoked" => Ok(LeaseState::Revoked {
            issued,
            cause: cause(row)?,
            at: time(row, TABLE, "ended_at")?,
        }),
        "expired" => Ok(LeaseState::Expired {
            issued: must(issued)?,
            at: time(row, TABLE, "ended_at")?,
        }),
        _ => Err(inconsistent(TABLE, "state")),
    }
}

fn standing(row: &Row) -> Result<CredentialState, StoreError> {
    let key_lost: bool = column(row, "key_lost")?;
    Ok(match time_optional(row, TABLE, "replacing_until")? {
        Some(until) => CredentialState::Replacing { until },
        None if key_lost => CredentialState::KeyLost,
        None => CredentialState::Whole,
    })
}

fn removal(row: &Row, issued: Option<IssuedCredentials>) -> Result<Removal, StoreError> {
    Ok(Removal {
        issued,
        cause: cause(row)?,
        asked_at: time(row, TABLE, "asked_at")?,
        made_by: time(row, TABLE, "made_by")?,
        left_to_issuer: column(row, "left_to_issuer")?,
        attempts: u32::try_from(count(row, "attempts")?).unwrap_or(u32::MAX),
        failing_since: time_optional(row, TABLE, "failing_since")?,
        next_attempt_at: time(row, TABLE, "due_at")?,
    })
}

fn cause(row: &Row) -> Result<EndReason, StoreError> {
    parse_optional(row, TABLE, "cause")?.ok_or_else(|| inconsistent(TABLE, "cause"))
}

fn issued(row: &Row) -> Result<Option<IssuedCredentials>, StoreError> {
    let access_key_id: Option<String> = column(row, "access_key_id")?;
    access_key_id
        .map(|access_key_id| {
            Ok(IssuedCredentials {
                access_key_id,
                at: time(row, TABLE, "issued_at")?,
                expires_at: time(row, TABLE, "expires_at")?,
            })
        })
        .transpose()
}
