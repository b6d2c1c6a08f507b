//! Check of the log against itself: records, columns, tiles, spans and edge.

use std::collections::BTreeMap;

use super::{
    dialect::{self, Connection, Pool, Row},
    log,
    row::{get, micros, record, store_error},
    search::{self, Span},
};
use crate::{
    audit::{
        tile::{HEIGHT, Tile, WIDTH},
        tree::{EMPTY, Frontier, Hash, Node, leaf_hash},
    },
    broker::ports::{LogCheck, StoreError},
    domain::audit::AuditRecord,
};

/// Records read at once.
const AT_ONCE: i64 = 4096;

/// Reads the whole log, checks it against itself, and returns its roots at each of `sizes`. Pruned
/// records are represented by the stored roots of their bundles.
pub(super) async fn check(
    pool: &Pool,
    sizes: &[u64],
    seen: &Frontier,
) -> Result<LogCheck, StoreError> {
    // A snapshot: records may be written meanwhile.
    let snapshot = pool.begin_with(dialect::BEGIN_SNAPSHOT);
    let mut tx = snapshot.await.map_err(store_error)?;
    let head = log::head(&mut tx, seen).await?;
    let pruned = log::pruned(&mut *tx).await?;
    let roots = log::roots(&mut *tx, 1, 0, pruned / WIDTH).await?;
    if roots.len() as u64 != pruned / WIDTH {
        return Ok(damaged(
            pruned,
            "was pruned, and the root of its bundle is missing",
        ));
    }
    let mut reading = Reading::over(&roots, sizes);
    loop {
        let rows = sqlx::query("SELECT * FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2")
            .bind(reading.tree.size().cast_signed())
            .bind(AT_ONCE)
            .fetch_all(&mut *tx)
            .await
            .map_err(store_error)?;
        if rows.is_empty() {
            break;
        }
        for row in &rows {
            let number = reading.tree.size() + 1;
            if number > head.size() {
                return Ok(damaged(number, "is not the broker's"));
            }
            let Some(record) = read(row, number) else {
                return Ok(damaged(number, "is missing or was changed"));
            };
            reading.pruned = reading.pruned.max(record.event.pruned_until().unwrap_or(0));
            reading.take(&get::<Vec<u8>>(row, "leaf")?, get(row, "time")?);
        }
    }
    let Reading {
        tree,
        mut tiles,
        spans,
        roots,
        pruned: told,
        ..
    } = reading;
    if tree.size() < head.size() {
        return Ok(damaged(tree.size() + 1, "is missing"));
    }
    if told < pruned {
        return Ok(damaged(1, "is missing, and was not pruned"));
    }
    tiles.sort_unstable();
    let spans: Vec<Span> = (pruned / WIDTH..).zip(spans).collect();
    let same = tree == head
        && stored_tiles(&mut tx).await? == tiles
        && search::spans(&mut tx, pruned / WIDTH).await? == spans;
    let fault = "the audit log and its Merkle tree differ";
    Ok(LogCheck {
        roots,
        fault: (!same).then(|| fault.to_owned()),
    })
}

fn damaged(number: u64, what: &str) -> LogCheck {
    LogCheck {
        roots: BTreeMap::new(),
        fault: Some(format!("record {number} of the audit log {what}")),
    }
}

/// Records read so far, as the values computed from them.
struct Reading<'s> {
    sizes: &'s [u64],
    tree: Frontier,
    tiles: Vec<(u8, u64, Vec<u8>)>,
    roots: BTreeMap<u64, Hash>,
    spans: Vec<(i64, i64)>,
    /// Number of pruned records, as a record in the log states it.
    pruned: u64,
    /// Times of the records in the bundle that is not full yet.
    times: Vec<i64>,
}

impl<'s> Reading<'s> {
    fn over(bundles: &[Hash], sizes: &'s [u64]) -> Self {
        let mut reading = Self {
            sizes,
            tree: Frontier::default(),
            tiles: Vec::new(),
            roots: BTreeMap::from([(0, EMPTY)]),
            spans: Vec::new(),
            pruned: 0,
            times: Vec::new(),
        };
        for bundle in bundles {
            let made = reading.tree.push_subtree(HEIGHT, *bundle);
            reading.keep(made);
        }
        reading
    }

    fn take(&mut self, leaf: &[u8], time: i64) {
        let made = self.tree.push(leaf_hash(leaf));
        self.keep(made);
        self.times.push(time);
        if self.times.len() as u64 == WIDTH {
            let (earliest, latest) = (self.times.iter().min(), self.times.iter().max());
            self.spans.extend(earliest.copied().zip(latest.copied()));
            self.times.clear();
        }
    }

    fn keep(&mut self, made: Vec<(Node, Hash)>) {
        for (node, hash) in made {
            if let Some(tile) = Tile::holding(node).filter(|tile| tile.level > 0) {
                self.tiles.push((tile.level, node.index, hash.to_vec()));
            }
        }
        let size = self.tree.size();
        if self.sizes.contains(&size) {
            self.roots.insert(size, self.tree.root());
        }
    }
}

async fn stored_tiles(connection: &mut Connection) -> Result<Vec<(u8, u64, Vec<u8>)>, StoreError> {
    let rows = sqlx::query("SELECT level, idx, hash FROM audit_tiles ORDER BY level, idx")
        .fetch_all(connection)
        .await
        .map_err(store_error)?;
    let tile = |row: &Row| {
        let (level, index): (i64, i64) = (get(row, "level")?, get(row, "idx")?);
        let level = u8::try_from(level).unwrap_or(u8::MAX);
        Ok((level, index.cast_unsigned(), get(row, "hash")?))
    };
    rows.iter().map(tile).collect()
}

/// Returns the record of this number, if the row holds it and all other columns agree with it.
fn read(row: &Row, number: u64) -> Option<AuditRecord> {
    let text = |column| get::<Option<String>>(row, column).ok().flatten();
    let (seq, time) = (get::<i64>(row, "seq").ok()?, get::<i64>(row, "time").ok()?);
    let record = record(row).ok()?;
    let event = &record.event;
    let same = seq.cast_unsigned() == number
        && record.seq == number
        && time == micros(event.time)
        && text("event").as_deref() == Some(event.event.as_str())
        && text("outcome").as_deref() == Some(event.outcome.as_str())
        && text("actor") == Some(event.actor.to_string())
        && text("service") == event.service.as_ref().map(ToString::to_string)
        && text("grant_name") == event.grant.as_ref().map(ToString::to_string)
        && text("lease_id") == event.lease_id.as_ref().map(ToString::to_string)
        && text("access_key_id") == event.access_key_id;
    same.then_some(record)
}
