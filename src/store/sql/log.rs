//! The audit log: leaves, the edge of their Merkle tree, and the roots of full tiles.

use std::collections::BTreeSet;

use sqlx::{Executor, QueryBuilder};

use super::{
    dialect::{self, Connection, Db, Pool, Row},
    row::{count, exactly_one, get, inconsistent, micros, portions, store_error, time},
    search::keep_span,
};
use crate::{
    audit::{
        leaf,
        tile::{Tile, Tiles, WIDTH},
        tree::{Frontier, HASH_LENGTH, Hash, Node, leaf_hash},
    },
    broker::ports::{KeptCheckpoint, LogKey, StoreError},
    domain::{
        audit::{AuditEvent, AuditRecord},
        sealing::Sealed,
    },
};

const TABLE: &str = "audit";

/// The log in a write transaction. With a single writer, the edge is read once, when the store is
/// opened: a later change of the table by another program is overwritten.
pub(super) struct Log {
    /// Size of the log before the transaction.
    from: u64,
    pub(super) edge: Frontier,
    /// Records to write, with their leaves.
    rows: Vec<(AuditRecord, Vec<u8>)>,
    /// Roots of the tiles that these records fill.
    roots: Vec<(Tile, Node, Hash)>,
}

const EDGE: &str = "SELECT size, subtrees FROM audit_edge";

/// Reads the stored edge.
pub(super) async fn stored_edge(connection: &mut Connection) -> Result<Frontier, StoreError> {
    edge_by(connection, EDGE).await
}

/// Returns the current edge, for a reader. `seen` was committed or read by this broker.
pub(super) async fn head(
    connection: &mut Connection,
    seen: &Frontier,
) -> Result<Frontier, StoreError> {
    match dialect::LOCK_EDGE {
        None => Ok(seen.clone()),
        Some(_) => following(stored_edge(connection).await?, seen),
    }
}

/// Returns the current edge, for a writer, and locks it against other writers until the transaction
/// ends.
pub(super) async fn lock(tx: &mut Connection, seen: &Frontier) -> Result<Frontier, StoreError> {
    match dialect::LOCK_EDGE {
        None => Ok(seen.clone()),
        Some(locking) => following(edge_by(tx, locking).await?, seen),
    }
}

/// Checks that no committed record was lost or changed: `edge` must follow `seen`.
fn following(edge: Frontier, seen: &Frontier) -> Result<Frontier, StoreError> {
    if edge.size() < seen.size() || edge.size() == seen.size() && edge != *seen {
        let (now, then) = (edge.size(), seen.size());
        let lost = format!("it ends at record {now}, and had {then} that were durable");
        return Err(inconsistent("audit_edge", lost));
    }
    Ok(edge)
}

async fn edge_by(connection: &mut Connection, query: &'static str) -> Result<Frontier, StoreError> {
    let row = sqlx::query(query)
        .fetch_one(connection)
        .await
        .map_err(store_error)?;
    let (size, bytes): (i64, Vec<u8>) = (get(&row, "size")?, get(&row, "subtrees")?);
    let (subtrees, rest) = bytes.as_chunks::<HASH_LENGTH>();
    let size = u64::try_from(size).ok().filter(|_| rest.is_empty());
    let edge = size.and_then(|size| Frontier::new(size, subtrees.to_vec()));
    edge.ok_or_else(|| inconsistent("audit_edge", "its size and hashes differ"))
}

impl Log {
    pub(super) const fn new(edge: Frontier) -> Self {
        Self {
            from: edge.size(),
            edge,
            rows: Vec::new(),
            roots: Vec::new(),
        }
    }

    /// Adds records in order; [`Self::close`] writes them.
    pub(super) fn append(
        &mut self,
        events: impl IntoIterator<Item = AuditEvent>,
    ) -> Result<(), StoreError> {
        for event in events {
            let record = AuditRecord {
                seq: self.edge.size() + 1,
                event,
            };
            let leaf = leaf::encode(&record).map_err(|error| inconsistent(TABLE, error))?;
            for (node, hash) in self.edge.push(leaf_hash(&leaf)) {
                if let Some(tile) = Tile::holding(node).filter(|tile| tile.level > 0) {
                    self.roots.push((tile, node, hash));
                }
            }
            self.rows.push((record, leaf));
        }
        Ok(())
    }

    /// Returns the events that were added.
    pub(super) fn events(&self) -> impl Iterator<Item = &AuditEvent> {
        self.rows.iter().map(|(record, _)| &record.event)
    }

    pub(super) async fn close(&self, tx: &mut Connection) -> Result<(), StoreError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        self.write(tx).await.map_err(occupied)?;
        let done = sqlx::query("UPDATE audit_edge SET size = $1, subtrees = $2")
            .bind(self.edge.size().cast_signed())
            .bind(self.edge.subtrees().as_flattened())
            .execute(tx)
            .await
            .map_err(store_error)?;
        exactly_one(&done).map_err(occupied)
    }

    /// Returns whether the last record is stored. First locks the edge against other writers. Shows
    /// the outcome of a commit whose answer was lost.
    pub(super) async fn stands(&self, tx: &mut Connection) -> Result<bool, StoreError> {
        let Some((record, leaf)) = self.rows.last() else {
            return Ok(false);
        };
        lock(tx, &Frontier::default()).await?;
        let stored: Option<Vec<u8>> = sqlx::query_scalar("SELECT leaf FROM audit WHERE seq = $1")
            .bind(record.seq.cast_signed())
            .fetch_optional(tx)
            .await
            .map_err(store_error)?;
        Ok(stored.as_ref() == Some(leaf))
    }

    async fn write(&self, tx: &mut Connection) -> Result<(), StoreError> {
        for rows in portions(&self.rows) {
            insert(tx, rows).await?;
        }
        for (tile, node, hash) in &self.roots {
            keep(tx, *tile, *node, *hash).await?;
        }
        for bundle in self.from / WIDTH..self.edge.size() / WIDTH {
            keep_span(tx, bundle).await?;
        }
        Ok(())
    }
}

async fn insert(tx: &mut Connection, rows: &[(AuditRecord, Vec<u8>)]) -> Result<(), StoreError> {
    let mut query: QueryBuilder<Db> = QueryBuilder::new(
        "INSERT INTO audit (seq, leaf, time, event, outcome, actor, service, grant_name, lease_id, access_key_id) ",
    );
    query.push_values(rows, |mut row, (record, leaf)| {
        let event = &record.event;
        row.push_bind(record.seq.cast_signed())
            .push_bind(leaf.as_slice())
            .push_bind(micros(event.time))
            .push_bind(event.event.as_str())
            .push_bind(event.outcome.as_str())
            .push_bind(event.actor.to_string())
            .push_bind(event.service.as_ref().map(ToString::to_string))
            .push_bind(event.grant.as_ref().map(ToString::to_string))
            .push_bind(event.lease_id.as_ref().map(ToString::to_string))
            .push_bind(event.access_key_id.as_deref());
    });
    let done = query.build().execute(tx).await;
    done.map(drop).map_err(store_error)
}

async fn keep(tx: &mut Connection, tile: Tile, node: Node, hash: Hash) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO audit_tiles (level, idx, hash) VALUES ($1, $2, $3)")
        .bind(i64::from(tile.level))
        .bind(node.index.cast_signed())
        .bind(&hash[..])
        .execute(tx)
        .await
        .map_err(store_error)?;
    Ok(())
}

/// Returns how many of the first records have been pruned: whole bundles.
pub(super) async fn pruned(db: impl Executor<'_, Database = Db>) -> Result<u64, StoreError> {
    let pruned: i64 = sqlx::query_scalar("SELECT pruned FROM audit_edge")
        .fetch_one(db)
        .await
        .map_err(store_error)?;
    Ok(pruned.cast_unsigned())
}

/// Marks the first `count` records as pruned.
pub(super) async fn prune(tx: &mut Connection, count: u64) -> Result<(), StoreError> {
    let done = sqlx::query("UPDATE audit_edge SET pruned = $1 WHERE pruned < $1 AND size >= $1")
        .bind(count.cast_signed())
        .execute(tx)
        .await
        .map_err(store_error)?;
    exactly_one(&done)
}

/// Deletes up to `limit` pruned records; returns how many.
pub(super) async fn delete_pruned(tx: &mut Connection, limit: u64) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "DELETE FROM audit WHERE seq IN
         (SELECT seq FROM audit WHERE seq <= (SELECT pruned FROM audit_edge) ORDER BY seq LIMIT $1)",
    )
    .bind(limit.cast_signed())
    .execute(tx)
    .await
    .map_err(store_error)?;
    Ok(done.rows_affected())
}

pub(super) async fn leaves(
    pool: &Pool,
    start: u64,
    limit: u64,
) -> Result<Vec<Vec<u8>>, StoreError> {
    sqlx::query_scalar("SELECT leaf FROM audit WHERE seq > $1 AND seq <= $2 ORDER BY seq")
        .bind(start.cast_signed())
        .bind(start.saturating_add(limit).cast_signed())
        .fetch_all(pool)
        .await
        .map_err(store_error)
}

pub(super) async fn tiles(
    pool: &Pool,
    tiles: &BTreeSet<Tile>,
    size: u64,
) -> Result<Tiles, StoreError> {
    let mut found = Tiles::new();
    for tile in tiles {
        let (first, width) = (tile.index * WIDTH, tile.width(size));
        let hashes = if tile.level == 0 {
            let leaves = leaves(pool, first, width).await?;
            leaves.iter().map(|leaf| leaf_hash(leaf)).collect()
        } else {
            roots(pool, tile.level, first, width).await?
        };
        found.insert(*tile, hashes);
    }
    Ok(found)
}

/// Returns roots of full tiles, as the tiles of `level` hold them.
pub(super) async fn roots(
    db: impl Executor<'_, Database = Db>,
    level: u8,
    first: u64,
    limit: u64,
) -> Result<Vec<Hash>, StoreError> {
    let hashes: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT hash FROM audit_tiles WHERE level = $1 AND idx >= $2 ORDER BY idx LIMIT $3",
    )
    .bind(i64::from(level))
    .bind(first.cast_signed())
    .bind(limit.cast_signed())
    .fetch_all(db)
    .await
    .map_err(store_error)?;
    let hash = |hash: Vec<u8>| {
        hash.try_into()
            .map_err(|_| inconsistent("audit_tiles", "hash"))
    };
    hashes.into_iter().map(hash).collect()
}

pub(super) async fn keys(pool: &Pool) -> Result<Vec<LogKey>, StoreError> {
    let rows =
        sqlx::query("SELECT verifier, seed, since, handover FROM audit_keys ORDER BY number")
            .fetch_all(pool)
            .await
            .map_err(store_error)?;
    let key = |row: &Row| {
        Ok(LogKey {
            verifier: get(row, "verifier")?,
            seed: Sealed::from_bytes(get(row, "seed")?),
            since: time(row, "audit_keys", "since")?,
            handover: get(row, "handover")?,
        })
    };
    rows.iter().map(key).collect()
}

pub(super) async fn add_key(
    tx: &mut Connection,
    number: u64,
    key: &LogKey,
) -> Result<(), StoreError> {
    let done = sqlx::query(
        "INSERT INTO audit_keys (number, verifier, seed, since)
         SELECT $1, $2, $3, $4 WHERE $1 = (SELECT coalesce(max(number), 0) + 1 FROM audit_keys)",
    )
    .bind(number.cast_signed())
    .bind(key.verifier.as_str())
    .bind(key.seed.as_bytes())
    .bind(micros(key.since))
    .execute(tx)
    .await
    .map_err(store_error)?;
    exactly_one(&done)
}

pub(super) async fn hand_over_key(
    tx: &mut Connection,
    verifier: &str,
    note: &str,
) -> Result<(), StoreError> {
    let done = sqlx::query("UPDATE audit_keys SET handover = $1 WHERE verifier = $2")
        .bind(note)
        .bind(verifier)
        .execute(tx)
        .await
        .map_err(store_error)?;
    exactly_one(&done)
}

pub(super) async fn checkpoint(pool: &Pool) -> Result<Option<KeptCheckpoint>, StoreError> {
    let row = sqlx::query("SELECT size, note, anchored FROM audit_checkpoint")
        .fetch_optional(pool)
        .await
        .map_err(store_error)?;
    let kept = |row: &Row| {
        Ok(KeptCheckpoint {
            size: count(row, "size")?,
            note: get(row, "note")?,
            anchored: get(row, "anchored")?,
        })
    };
    row.as_ref().map(kept).transpose()
}

pub(super) async fn keep_checkpoint(
    tx: &mut Connection,
    kept: &KeptCheckpoint,
    signer: &str,
) -> Result<(), StoreError> {
    let followed: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM audit_keys
                        WHERE number > (SELECT number FROM audit_keys WHERE verifier = $1))",
    )
    .bind(signer)
    .fetch_one(&mut *tx)
    .await
    .map_err(store_error)?;
    if followed {
        return Err(StoreError::Conflict);
    }
    sqlx::query(
        "INSERT INTO audit_checkpoint (single, size, note, anchored) VALUES (1, $1, $2, $3)
         ON CONFLICT (single) DO UPDATE SET size = $1, note = $2, anchored = $3 WHERE audit_checkpoint.size <= $1",
    )
    .bind(kept.size.cast_signed())
    .bind(kept.note.as_str())
    .bind(kept.anchored)
    .execute(tx)
    .await
    .map_err(store_error)?;
    Ok(())
}

/// Converts a conflict in the log's own tables: another program has written there, and no change of
/// the caller is in conflict.
fn occupied(error: StoreError) -> StoreError {
    match error {
        StoreError::Conflict => {
            inconsistent(TABLE, "something stands where the next record belongs")
        }
        other => other,
    }
}
