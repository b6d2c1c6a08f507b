use std::collections::BTreeSet;

use jiff::Timestamp;

use super::{
    bindings,
    dialect::{Connection, Pool, Row},
    grants, leases,
    row::{
        count, exactly_one, get as column, micros, parse, parse_optional, store_error, time,
        time_optional,
    },
    services, tokens,
};
use crate::{
    broker::ports::{Denials, KeyReach, RevokeTarget, Revoked, StoreError},
    domain::{
        arn::RoleArn,
        denial::{
            AffectedSessions, Denial, DenialSession, DenialState, DenialSubject, FailedAttempts,
            Scope,
        },
        grant::{Grant, KindSpec},
        lease::Lease,
        name::{GrantName, Name},
        service::Suspension,
    },
};

const TABLE: &str = "denials";

/// Begins to revoke all that a service holds, and suspends it; or all of one grant.
pub(super) async fn revoke(
    tx: &mut Connection,
    target: &RevokeTarget,
    suspension: Suspension,
) -> Result<Revoked, StoreError> {
    let (standing, grant, scope) = match target {
        RevokeTarget::Service(service) => {
            let standing = services::ensure_suspended(tx, service, &suspension).await?;
            tokens::end_enrollments(tx, service).await?;
            bindings::end_enrolled(tx, service).await?;
            (standing, None, Scope::Service)
        }
        RevokeTarget::Grant(name) => {
            grants::known(tx, name).await?;
            let grant = &name.grant;
            (suspension.clone(), Some(grant), Scope::Grant(grant.clone()))
        }
    };
    let leases = leases::begin_revoking_all(tx, target.service(), grant, &suspension).await?;
    let last = leases::last_sessions(tx, target.service(), grant).await?;
    let denials = ask(tx, &scope, &last.sessions, suspension.at).await?;
    let all = leases::count_live(tx, target.service(), grant).await?;
    Ok(Revoked {
        suspension: standing,
        unreadable: all.saturating_sub(leases.len() as u64) + last.unreadable_ended,
        leases,
        denials,
    })
}

/// Requests the denial of the session of a lease that is being revoked, if the lease has one.
pub(super) async fn ask_for_lease(
    tx: &mut Connection,
    lease: Lease,
) -> Result<Vec<Denial>, StoreError> {
    let Some(asked_at) = lease.removal().map(|removal| removal.asked_at) else {
        return Ok(Vec::new());
    };
    let scope = Scope::Lease(lease.binding.lease_id.clone());
    let session = DenialSession::of(&lease);
    ask(tx, &scope, session.as_slice(), asked_at).await
}

/// Requests the denial of these sessions, which are being revoked.
async fn ask(
    tx: &mut Connection,
    scope: &Scope,
    sessions: &[DenialSession],
    now: Timestamp,
) -> Result<Vec<Denial>, StoreError> {
    let mut asked = Vec::new();
    for concerned in concerned(tx, scope, sessions, now).await? {
        let standing = find(tx, &concerned.against).await?;
        let denial = Denial::request(concerned, standing.as_ref(), now);
        put(tx, &denial).await?;
        asked.push(denial);
    }
    Ok(asked)
}

/// Collects what to deny of these sessions, at each role and user.
pub(super) async fn concerned(
    connection: &mut Connection,
    scope: &Scope,
    sessions: &[DenialSession],
    now: Timestamp,
) -> Result<Vec<AffectedSessions>, StoreError> {
    let mut found = Vec::new();
    for (holder, mut concerned) in AffectedSessions::of(scope, sessions, now) {
        let useful = sessions.iter().filter(|s| s.may_be_of_use(now));
        let grants = useful
            .filter(|session| session.holder == holder)
            .map(|session| (&session.grant, session.grant_version))
            .collect();
        concerned.source_identity = bear_source_identity(connection, grants).await?;
        found.push(concerned);
    }
    Ok(found)
}

/// Returns whether sessions of any of these grant versions carry the service's name as source
/// identity.
async fn bear_source_identity(
    tx: &mut Connection,
    grants: BTreeSet<(&GrantName, u64)>,
) -> Result<bool, StoreError> {
    for (name, version) in grants {
        let grant = grants::version(tx, name, version).await?;
        let sets = |grant: &Grant| {
            matches!(
                grant.spec.kind,
                KindSpec::AssumeRole {
                    source_identity: true,
                    ..
                }
            )
        };
        if grant.as_ref().is_some_and(sets) {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn find(tx: &mut Connection, against: &DenialSubject) -> Result<Option<Denial>, StoreError> {
    let row =
        sqlx::query("SELECT * FROM denials WHERE service = $1 AND holder = $2 AND scope = $3")
            .bind(against.service.as_str())
            .bind(against.holder.as_str())
            .bind(against.scope.to_string())
            .fetch_optional(tx)
            .await
            .map_err(store_error)?;
    row.as_ref().map(denial).transpose()
}

/// Inserts a new denial, or replaces its previous revision; otherwise `Conflict`.
async fn put(tx: &mut Connection, denial: &Denial) -> Result<(), StoreError> {
    let against = &denial.against;
    let (refused_at, attempts) = match &denial.state {
        DenialState::Refused { at } => (Some(*at), FailedAttempts::default()),
        DenialState::Open(attempts) => (None, attempts.clone()),
    };
    let done = sqlx::query(
        "INSERT INTO denials (service, holder, scope, grant_name, grant_version, source_identity, asked_at,
                              issued_before, spares_newer, lasts_until, due_at, refused_at, attempts, failure,
                              revision, denied_before, newer_hit_until)
         SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17
         WHERE $15 = 0 OR EXISTS (SELECT 1 FROM denials WHERE service = $1 AND holder = $2 AND scope = $3)
         ON CONFLICT (service, holder, scope) DO UPDATE
         SET grant_name = $4, grant_version = $5, source_identity = $6, asked_at = $7, issued_before = $8,
             spares_newer = $9, lasts_until = $10, due_at = $11, refused_at = $12, attempts = $13, failure = $14,
             revision = $15, denied_before = $16, newer_hit_until = $17
         WHERE denials.revision = $15 - 1",
    )
    .bind(against.service.as_str())
    .bind(against.holder.as_str())
    .bind(against.scope.to_string())
    .bind(denial.grant.grant.as_str())
    .bind(denial.grant_version.cast_signed())
    .bind(denial.source_identity)
    .bind(micros(denial.asked_at))
    .bind(micros(denial.issued_before))
    .bind(denial.spares_newer)
    .bind(micros(denial.lasts_until))
    .bind(micros(denial.due_at))
    .bind(refused_at.map(micros))
    .bind(i64::from(attempts.count))
    .bind(attempts.failure)
    .bind(denial.revision.cast_signed())
    .bind(denial.denied_before.map(micros))
    .bind(denial.newer_hit_until.map(micros))
    .execute(&mut *tx)
    .await
    .map_err(store_error)?;
    exactly_one(&done)
}

/// Removes and puts denials, all or none.
pub(super) async fn change(
    tx: &mut Connection,
    put: &[Denial],
    remove: &[Denial],
) -> Result<(), StoreError> {
    for denial in remove {
        self::remove(tx, denial).await?;
    }
    for denial in put {
        self::put(tx, denial).await?;
    }
    Ok(())
}

/// Deletes a denial of exactly this revision; otherwise `Conflict`.
async fn remove(tx: &mut Connection, denial: &Denial) -> Result<(), StoreError> {
    let against = &denial.against;
    let done = sqlx::query(
        "DELETE FROM denials WHERE service = $1 AND holder = $2 AND scope = $3 AND revision = $4",
    )
    .bind(against.service.as_str())
    .bind(against.holder.as_str())
    .bind(against.scope.to_string())
    .bind(denial.revision.cast_signed())
    .execute(&mut *tx)
    .await
    .map_err(store_error)?;
    exactly_one(&done)
}

/// Exempts the sessions that the service gets from `now` on from the denials of the whole service.
pub(super) async fn spare_new_sessions(
    tx: &mut Connection,
    service: &Name,
    now: Timestamp,
) -> Result<(), StoreError> {
    for denial in of_service(&mut *tx, service).await? {
        if denial.against.scope == Scope::Service && !denial.spares_newer {
            put(tx, &denial.spare_newer_sessions(now)).await?;
        }
    }
    Ok(())
}

pub(super) async fn of_service(
    connection: &mut Connection,
    service: &Name,
) -> Result<Vec<Denial>, StoreError> {
    let of_service = "SELECT * FROM denials WHERE service = $1
                      UNION ALL SELECT * FROM denials WHERE scope = 'everyone' AND service <> $1";
    let rows = sqlx::query(of_service)
        .bind(service.as_str())
        .fetch_all(connection)
        .await
        .map_err(store_error)?;
    Ok(readable(&rows))
}

/// Returns the sessions and roles that a stolen admin key reaches.
pub(super) async fn reach_of_key(pool: &Pool) -> Result<KeyReach, StoreError> {
    let rows = sqlx::query(
        "SELECT service, grant_name, grant_version, holder, MAX(expires_at) AS expires_at FROM issued_sessions
         GROUP BY service, grant_name, grant_version, holder",
    );
    let sessions = rows.fetch_all(pool).await.map_err(store_error)?;
    let versions = grants::all_versions(pool).await?;
    let mut reach = KeyReach::default();
    for row in &sessions {
        match leases::session(row) {
            Ok(session) => reach.sessions.push(session),
            Err(error) => pass_over(&mut reach, &error),
        }
    }
    for version in versions {
        match version {
            Ok(grant) => reach.roles.extend(role_of(grant)),
            Err(error) => pass_over(&mut reach, &error),
        }
    }
    Ok(reach)
}

fn pass_over(reach: &mut KeyReach, error: &StoreError) {
    tracing::error!(%error, "what a stolen key reaches is passed over");
    reach.unreadable += 1;
}

fn role_of(grant: Grant) -> Option<(RoleArn, GrantName, u64)> {
    let KindSpec::AssumeRole { role_arn, .. } = grant.spec.kind else {
        return None;
    };
    Some((role_arn, grant.name, grant.version))
}

pub(super) async fn due(
    pool: &Pool,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<Denial>, StoreError> {
    let rows = sqlx::query("SELECT * FROM denials WHERE due_at <= $1 ORDER BY due_at")
        .bind(micros(now))
        .fetch_all(pool)
        .await
        .map_err(store_error)?;
    // Unreadable denials must not take the room of readable ones.
    let mut due = readable(&rows);
    due.truncate(limit);
    Ok(due)
}

pub(super) async fn all(pool: &Pool) -> Result<Denials, StoreError> {
    let rows = sqlx::query("SELECT * FROM denials ORDER BY service, holder, scope")
        .fetch_all(pool)
        .await
        .map_err(store_error)?;
    let known = readable(&rows);
    let unreadable = (rows.len() - known.len()) as u64;
    if unreadable > 0 {
        tracing::error!(
            unreadable,
            "denials in the store that cannot be read are passed over; what AWS denies for them stays"
        );
    }
    Ok(Denials { known, unreadable })
}

/// Returns the denials of these rows and logs unreadable ones, which must not block the others.
fn readable(rows: &[Row]) -> Vec<Denial> {
    let read = |row| {
        let read = denial(row);
        read.inspect_err(|error| tracing::debug!(%error, "a denial is passed over"))
            .ok()
    };
    rows.iter().filter_map(read).collect()
}

fn denial(row: &Row) -> Result<Denial, StoreError> {
    let service: Name = parse(row, TABLE, "service")?;
    Ok(Denial {
        grant: GrantName {
            service: service.clone(),
            grant: parse(row, TABLE, "grant_name")?,
        },
        against: DenialSubject {
            holder: parse(row, TABLE, "holder")?,
            service,
            scope: parse(row, TABLE, "scope")?,
        },
        grant_version: count(row, "grant_version")?,
        source_identity: column(row, "source_identity")?,
        asked_at: time(row, TABLE, "asked_at")?,
        issued_before: time(row, TABLE, "issued_before")?,
        denied_before: time_optional(row, TABLE, "denied_before")?,
        spares_newer: column(row, "spares_newer")?,
        newer_hit_until: time_optional(row, TABLE, "newer_hit_until")?,
        lasts_until: time(row, TABLE, "lasts_until")?,
        state: match time_optional(row, TABLE, "refused_at")? {
            Some(at) => DenialState::Refused { at },
            None => DenialState::Open(FailedAttempts {
                count: u32::try_from(count(row, "attempts")?).unwrap_or(u32::MAX),
                failure: parse_optional(row, TABLE, "failure")?,
            }),
        },
        due_at: time(row, TABLE, "due_at")?,
        revision: count(row, "revision")?,
    })
}
