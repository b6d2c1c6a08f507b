//! The audit log: leaves, the edge of their Merkle tree, and the roots of full tiles.

use sqlx::{QueryBuilder, Sqlite, SqliteConnection, SqlitePool, sqlite::SqliteRow};

use super::row::{exactly_one, get, inconsistent, micros, store_error};
use crate::{
    audit::{
        leaf::{self, LeafError},
        tile::Tile,
        tree::{Edge, HASH_LENGTH, Hash, Node, leaf_hash},
    },
    broker::ports::{AuditFilter, Page, StoreError},
    domain::audit::{AuditEvent, AuditRecord},
};

const TABLE: &str = "audit";

/// The log in a write transaction.
pub(super) struct Log {
    /// Its size before.
    from: u64,
    edge: Edge,
}

impl Log {
    pub(super) async fn open(tx: &mut SqliteConnection) -> Result<Self, StoreError> {
        let row = sqlx::query("SELECT size, subtrees FROM audit_edge")
            .fetch_one(tx)
            .await
            .map_err(store_error)?;
        let (size, bytes): (i64, Vec<u8>) = (get(&row, "size")?, get(&row, "subtrees")?);
        let (subtrees, rest) = bytes.as_chunks::<HASH_LENGTH>();
        let size = u64::try_from(size).ok().filter(|_| rest.is_empty());
        let edge = size.and_then(|size| Edge::new(size, subtrees.to_vec()));
        let edge = edge.ok_or_else(|| inconsistent("audit_edge", "its size and hashes differ"))?;
        Ok(Self {
            from: edge.size(),
            edge,
        })
    }

    /// Adds records in their order.
    pub(super) async fn append(
        &mut self,
        tx: &mut SqliteConnection,
        events: &[AuditEvent],
    ) -> Result<(), StoreError> {
        for event in events {
            let record = AuditRecord {
                seq: self.edge.size() + 1,
                event: event.clone(),
            };
            let leaf = leaf::encode(&record).map_err(unreadable)?;
            for (node, hash) in self.edge.push(leaf_hash(&leaf)) {
                if let Some(tile) = Tile::holding(node).filter(|tile| tile.level > 0) {
                    keep(tx, tile, node, hash).await.map_err(occupied)?;
                }
            }
            insert(tx, &record, &leaf).await.map_err(occupied)?;
        }
        Ok(())
    }

    pub(super) async fn close(self, tx: &mut SqliteConnection) -> Result<(), StoreError> {
        if self.edge.size() == self.from {
            return Ok(());
        }
        let done = sqlx::query("UPDATE audit_edge SET size = ?1, subtrees = ?2 WHERE size = ?3")
            .bind(self.edge.size().cast_signed())
            .bind(self.edge.subtrees().as_flattened())
            .bind(self.from.cast_signed())
            .execute(tx)
            .await
            .map_err(store_error)?;
        exactly_one(&done).map_err(occupied)
    }
}

async fn insert(
    tx: &mut SqliteConnection,
    record: &AuditRecord,
    leaf: &[u8],
) -> Result<(), StoreError> {
    let event = &record.event;
    sqlx::query(
        "INSERT INTO audit (seq, leaf, time, event, outcome, actor, service, grant_name, lease_id, access_key_id)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(record.seq.cast_signed())
    .bind(leaf)
    .bind(micros(event.time))
    .bind(event.event.as_str())
    .bind(event.outcome.as_str())
    .bind(event.actor.to_string())
    .bind(event.service.as_ref().map(ToString::to_string))
    .bind(event.grant.as_ref().map(ToString::to_string))
    .bind(event.lease_id.as_ref().map(ToString::to_string))
    .bind(event.access_key_id.as_deref())
    .execute(tx)
    .await
    .map_err(store_error)?;
    Ok(())
}

async fn keep(
    tx: &mut SqliteConnection,
    tile: Tile,
    node: Node,
    hash: Hash,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO audit_tiles (level, idx, hash) VALUES (?, ?, ?)")
        .bind(tile.level)
        .bind(node.index.cast_signed())
        .bind(&hash[..])
        .execute(tx)
        .await
        .map_err(store_error)?;
    Ok(())
}

pub(super) async fn size(pool: &SqlitePool) -> Result<u64, StoreError> {
    let size: i64 = sqlx::query_scalar("SELECT size FROM audit_edge")
        .fetch_one(pool)
        .await
        .map_err(store_error)?;
    Ok(u64::try_from(size).unwrap_or(0))
}

pub(super) async fn list(
    pool: &SqlitePool,
    filter: &AuditFilter,
    page: &Page,
) -> Result<Vec<AuditRecord>, StoreError> {
    let after: i64 = page
        .after
        .as_deref()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let mut query: QueryBuilder<Sqlite> = QueryBuilder::new("SELECT leaf FROM audit WHERE seq > ");
    query.push_bind(after);
    let equals = [
        (" AND service = ", &filter.service),
        (" AND grant_name = ", &filter.grant),
        (" AND lease_id = ", &filter.lease_id),
        (" AND access_key_id = ", &filter.access_key_id),
        (" AND actor = ", &filter.actor),
        (" AND event = ", &filter.event),
        (" AND outcome = ", &filter.outcome),
    ];
    for (condition, value) in equals {
        if let Some(value) = value {
            query.push(condition).push_bind(value.as_str());
        }
    }
    for (condition, bound) in [
        (" AND time >= ", filter.since),
        (" AND time < ", filter.until),
    ] {
        if let Some(bound) = bound {
            query.push(condition).push_bind(micros(bound));
        }
    }
    query
        .push(" ORDER BY seq LIMIT ")
        .push_bind(i64::from(page.limit));
    let rows = query.build().fetch_all(pool).await.map_err(store_error)?;
    rows.iter().map(record).collect()
}

fn record(row: &SqliteRow) -> Result<AuditRecord, StoreError> {
    let leaf: Vec<u8> = get(row, "leaf")?;
    leaf::decode(&leaf).map_err(unreadable)
}

/// Somebody else has written there: no change of the caller's is in conflict.
fn occupied(error: StoreError) -> StoreError {
    match error {
        StoreError::Conflict => {
            inconsistent(TABLE, "something stands where the next record belongs")
        }
        other => other,
    }
}

fn unreadable(error: LeafError) -> StoreError {
    inconsistent(TABLE, error)
}
