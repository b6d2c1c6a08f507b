use sqlx::query::Query;

use super::{
    dialect::{Arguments, Connection, Db, Pool, Row},
    row::{count, exactly_one, get, inconsistent, micros, parse, store_error, time, time_optional},
};
use crate::{
    broker::ports::StoreError,
    domain::{
        admin_key::{AccessKeyId, AdminKey, KeptKey, Phase},
        sealing::Sealed,
    },
};

const TABLE: &str = "admin_key";

pub(super) async fn find(pool: &Pool) -> Result<Option<AdminKey>, StoreError> {
    let row = sqlx::query("SELECT * FROM admin_key")
        .fetch_optional(pool)
        .await
        .map_err(store_error)?;
    row.as_ref().map(admin_key).transpose()
}

pub(super) async fn replace(
    tx: &mut Connection,
    from: Option<u64>,
    key: &AdminKey,
) -> Result<(), StoreError> {
    let query = match from {
        None => sqlx::query(
            "INSERT INTO admin_key (single, iam_user, key_id, secret, since, phase, other_key_id, other_secret,
                                    other_since, phase_since, due_at, attempts, failure, revision)
             VALUES (1, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        ),
        Some(_) => sqlx::query(
            "UPDATE admin_key SET iam_user = $1, key_id = $2, secret = $3, since = $4, phase = $5,
                                  other_key_id = $6, other_secret = $7, other_since = $8, phase_since = $9,
                                  due_at = $10, attempts = $11, failure = $12, revision = $13
             WHERE revision = $14",
        ),
    };
    let query = bind(query, key);
    let query = match from {
        None => query,
        Some(from) => query.bind(from.cast_signed()),
    };
    let done = query.execute(&mut *tx).await.map_err(store_error)?;
    exactly_one(&done)
}

type KeyQuery<'q> = Query<'q, Db, Arguments>;

fn bind<'q>(query: KeyQuery<'q>, key: &'q AdminKey) -> KeyQuery<'q> {
    let proving = match &key.phase {
        Phase::Proving { new } => Some(new),
        _ => None,
    };
    query
        .bind(key.user.as_str())
        .bind(key.current.id.as_str())
        .bind(key.current.secret.as_bytes())
        .bind(micros(key.current.since))
        .bind(key.phase.as_str())
        .bind(others(key))
        .bind(proving.map(|new| new.secret.as_bytes()))
        .bind(proving.map(|new| micros(new.since)))
        .bind(micros(key.phase_since))
        .bind(key.due_at.map(micros))
        .bind(i64::from(key.attempts))
        .bind(key.failure.as_deref())
        .bind(key.revision.cast_signed())
}

/// Returns the ids of the other keys, separated by commas: an id contains none.
fn others(key: &AdminKey) -> Option<String> {
    let ids: Vec<&str> = key.phase.others().iter().map(AccessKeyId::as_str).collect();
    (!ids.is_empty()).then(|| ids.join(","))
}

fn admin_key(row: &Row) -> Result<AdminKey, StoreError> {
    Ok(AdminKey {
        user: get(row, "iam_user")?,
        current: kept(row, ["key_id", "secret", "since"])?,
        phase: phase(row)?,
        phase_since: time(row, TABLE, "phase_since")?,
        due_at: time_optional(row, TABLE, "due_at")?,
        attempts: u32::try_from(count(row, "attempts")?).unwrap_or(u32::MAX),
        failure: get(row, "failure")?,
        revision: count(row, "revision")?,
    })
}

fn kept(row: &Row, [id, secret, since]: [&'static str; 3]) -> Result<KeptKey, StoreError> {
    Ok(KeptKey {
        id: parse(row, TABLE, id)?,
        secret: Sealed::from_bytes(get(row, secret)?),
        since: time(row, TABLE, since)?,
    })
}

fn phase(row: &Row) -> Result<Phase, StoreError> {
    let name: String = get(row, "phase")?;
    let old = || {
        let ids: String = get(row, "other_key_id")?;
        let ids = ids.split(',').map(str::parse).collect::<Result<_, _>>();
        ids.map_err(|_| inconsistent(TABLE, "other_key_id"))
    };
    match name.as_str() {
        "steady" => Ok(Phase::Steady),
        "creating" => Ok(Phase::Creating),
        "proving" => Ok(Phase::Proving {
            new: kept(row, ["other_key_id", "other_secret", "other_since"])?,
        }),
        "grace" => Ok(Phase::Grace { old: old()? }),
        "retiring" => Ok(Phase::Retiring { old: old()? }),
        _ => Err(inconsistent(TABLE, "phase")),
    }
}
