//! Several replicas on one database. Plain statements, each in a transaction of its own beside the
//! write transactions. No LISTEN and no session lock, which compatible engines lack.

use async_trait::async_trait;
use sqlx::{query, query_scalar};

use super::{PostgresStore, sql};
use crate::{
    broker::ports::{CLAIMED_FOR, DEAD_AFTER, Members, News, Peers, StoreError},
    domain::audit::Event,
};

/// Most records read at once.
const AT_ONCE: u64 = 500;

/// Events that change what other replicas may hold in memory.
const TOLD: [Event; 8] = [
    Event::ServiceSuspended,
    Event::ServiceRevoked,
    Event::ServiceDeleted,
    Event::GrantRevoked,
    Event::LeaseRevoking,
    Event::DenialWidened,
    Event::AdminKeyImported,
    Event::AdminKeySwitched,
];

#[async_trait]
impl Peers for PostgresStore {
    async fn appear(&self, broker: &str, file: &str) -> Result<Members, StoreError> {
        let seen = query(
            "INSERT INTO brokers (id, emergency_file, seen) VALUES ($1, $2, clock_timestamp())
             ON CONFLICT (id) DO UPDATE SET seen = clock_timestamp()",
        );
        seen.bind(broker)
            .bind(file)
            .execute(&self.writing)
            .await
            .map_err(sql::store_error)?;
        let buried = query(
            "DELETE FROM brokers WHERE seen < clock_timestamp() - $1 * INTERVAL '1 second'
                                OR emergency_file = $2 AND id <> $3",
        )
        .bind(DEAD_AFTER.length().as_secs_f64())
        .bind(file)
        .bind(broker)
        .execute(&self.writing)
        .await
        .map_err(sql::store_error)?
        .rows_affected();
        let brokers: i64 = query_scalar("SELECT count(*) FROM brokers")
            .fetch_one(&self.writing)
            .await
            .map_err(sql::store_error)?;
        Ok(Members {
            brokers: brokers.cast_unsigned(),
            buried,
        })
    }

    async fn leave(&self, broker: &str) -> Result<(), StoreError> {
        // The next heartbeat of another replica deletes the row and reports this replica as dead,
        // so that the other replica takes over the work left behind.
        let leave = query("UPDATE brokers SET seen = seen - INTERVAL '1 hour' WHERE id = $1");
        let leave = leave.bind(broker);
        leave
            .execute(&self.writing)
            .await
            .map(drop)
            .map_err(sql::store_error)
    }

    async fn lives(&self, broker: &str) -> Result<bool, StoreError> {
        query_scalar(
            "SELECT EXISTS (SELECT 1 FROM brokers
                            WHERE id = $1 AND seen >= clock_timestamp() - $2 * INTERVAL '1 second')",
        )
        .bind(broker)
        .bind(DEAD_AFTER.length().as_secs_f64())
        .fetch_one(&self.writing)
        .await
        .map_err(sql::store_error)
    }

    async fn claim(&self, what: &str, broker: &str) -> Result<Option<u64>, StoreError> {
        let epoch: Option<i64> = query_scalar(
            "INSERT INTO claims (what, owner, epoch, until)
             VALUES ($1, $2, 1, clock_timestamp() + $3 * INTERVAL '1 second')
             ON CONFLICT (what) DO UPDATE
             SET owner = excluded.owner, epoch = claims.epoch + 1, until = excluded.until
             WHERE claims.owner = excluded.owner OR claims.until < clock_timestamp()
                OR NOT EXISTS (SELECT 1 FROM brokers
                               WHERE id = claims.owner AND seen >= clock_timestamp() - $4 * INTERVAL '1 second')
             RETURNING epoch",
        )
        .bind(what)
        .bind(broker)
        .bind(CLAIMED_FOR.length().as_secs_f64())
        .bind(DEAD_AFTER.length().as_secs_f64())
        .fetch_optional(&self.writing)
        .await
        .map_err(sql::store_error)?;
        Ok(epoch.map(i64::cast_unsigned))
    }

    async fn is_claimed(&self, what: &str, epoch: u64) -> Result<bool, StoreError> {
        query_scalar("SELECT EXISTS (SELECT 1 FROM claims WHERE what = $1 AND epoch = $2)")
            .bind(what)
            .bind(epoch.cast_signed())
            .fetch_one(&self.writing)
            .await
            .map_err(sql::store_error)
    }

    async fn release(&self, what: &str, epoch: u64) -> Result<(), StoreError> {
        let free = query("UPDATE claims SET owner = '' WHERE what = $1 AND epoch = $2");
        let free = free.bind(what).bind(epoch.cast_signed());
        free.execute(&self.writing)
            .await
            .map(drop)
            .map_err(sql::store_error)
    }

    async fn news(&self, after: u64, size: u64) -> Result<News, StoreError> {
        let read = size.min(after.saturating_add(AT_ONCE));
        let rows = query(
            "SELECT leaf FROM audit WHERE seq > $1 AND seq <= $2 AND event = ANY($3) ORDER BY seq",
        )
        .bind(after.cast_signed())
        .bind(read.cast_signed())
        .bind(TOLD.map(Event::as_str).as_slice())
        .fetch_all(&self.readers)
        .await
        .map_err(sql::store_error)?;
        // A record of a later version must not hide the records after it.
        let told = |row| {
            let record = sql::row::record(row);
            record
                .inspect_err(|error| tracing::error!(%error, "a record is passed over"))
                .ok()
        };
        let records = rows.iter().filter_map(told).collect();
        Ok(News { read, records })
    }
}
