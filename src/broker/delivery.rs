//! Sinks: external receivers of the audit log. Each has its own position and pace, so that a sink
//! that accepts nothing does not delay the others.

use std::{
    error::Error,
    sync::{
        Arc, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::{Label, counter, gauge};
use tokio::time::{interval, sleep, timeout};

use crate::{
    broker::{
        Broker,
        ports::{Sink, SinkError},
        wait::Wait,
    },
    domain::{name::Name, random::back_off},
};

/// Largest number of records in one delivery.
const BATCH: u64 = 256;
/// Largest number of bytes in one delivery, unless a single record is larger. Servers commonly
/// accept a megabyte.
const BATCH_BYTES: usize = 512 * 1024;
/// Longest time that a sink may take for one delivery.
const LIMIT: Wait = Wait::seconds(10);
/// Interval at which new records are looked for.
const PAUSE: Duration = Duration::from_millis(250);
/// Longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// Interval at which the lag of a sink is reported.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// A sink and the last record that it has accepted.
struct Delivery {
    broker: Arc<Broker>,
    sink: Arc<dyn Sink>,
    taken: AtomicU64,
}

impl Broker {
    /// Streams the audit log to `sink`, from the record after `taken`, until the broker stops.
    pub async fn feed(self: Arc<Self>, sink: Arc<dyn Sink>, taken: u64) {
        let stop = self.parts.stop.clone();
        self.delivering().push(sink.name().clone());
        let feed = Delivery {
            broker: self,
            sink,
            taken: AtomicU64::new(taken),
        };
        let both = async { tokio::join!(feed.deliver_all(), feed.report_lag()) };
        stop.run_until_cancelled(both).await;
    }

    /// Returns the names of the sinks that receive the log.
    pub(super) fn delivering(&self) -> MutexGuard<'_, Vec<Name>> {
        self.fed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Delivery {
    async fn deliver_all(&self) {
        let delivered = counter!("credbroker_audit_sink_delivered_total", self.label());
        let failed = counter!("credbroker_audit_sink_failures_total", self.label());
        // Both metrics are exported from the start.
        delivered.increment(0);
        failed.increment(0);
        let mut failures = 0;
        loop {
            match self.deliver_next().await {
                Ok(count) => {
                    delivered.increment(count);
                    failures = 0;
                    if count < BATCH {
                        sleep(PAUSE).await;
                    }
                }
                Err(error) => {
                    failed.increment(1);
                    let name = self.sink.name();
                    tracing::warn!(sink = %name, %error, "the audit sink is behind and is tried again");
                    let random = self.broker.parts.random.as_ref();
                    sleep(back_off(failures, LONGEST_PAUSE, random)).await;
                    failures += 1;
                }
            }
        }
    }

    /// Delivers the next records. Returns their number.
    async fn deliver_next(&self) -> Result<u64, Box<dyn Error + Send + Sync>> {
        let (store, name) = (self.broker.store(), self.sink.name());
        if !self.broker.hold_lock(&format!("sink {name}")).await {
            let taken = store.sink_cursor(name).await?;
            self.taken.fetch_max(taken, Ordering::Relaxed);
            return Ok(0);
        }
        // Records that were pruned before the sink was set up are skipped.
        let taken = self
            .taken
            .load(Ordering::Relaxed)
            .max(store.log_start().await?);
        let leaves = store.log_leaves(taken, BATCH).await?;
        if leaves.is_empty() {
            return Ok(0);
        }
        let leaves = &leaves[..at_once(&leaves)];
        let limit = LIMIT.length();
        let delivered = timeout(limit, self.sink.deliver(leaves)).await;
        delivered.unwrap_or_else(|_| Err(SinkError::late(limit)))?;
        let count = leaves.len() as u64;
        let taken = taken + count;
        self.taken.store(taken, Ordering::Relaxed);
        store.save_sink_cursor(self.sink.name(), taken).await?;
        Ok(count)
    }

    /// Reports the lag, also while a delivery is in progress.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    async fn report_lag(&self) {
        let lag = gauge!("credbroker_audit_sink_lag_records", self.label());
        let mut ticks = interval(TOLD_EVERY);
        loop {
            ticks.tick().await;
            if let Ok(size) = self.broker.store().audit_size().await {
                let taken = self.taken.load(Ordering::Relaxed);
                lag.set(size.saturating_sub(taken) as f64);
            }
        }
    }

    fn label(&self) -> Vec<Label> {
        vec![Label::new("sink", self.sink.name().to_string())]
    }
}

/// Returns the number of records in the next delivery: at least one.
fn at_once(leaves: &[Vec<u8>]) -> usize {
    let mut bytes = 0;
    let fits = |leaf: &&Vec<u8>| {
        bytes += leaf.len();
        bytes <= BATCH_BYTES
    };
    leaves.iter().take_while(fits).count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_bounded_and_never_empty() {
        let leaves = |count, bytes| vec![vec![0; bytes]; count];
        assert_eq!(at_once(&leaves(256, 2048)), 256);
        assert_eq!(at_once(&leaves(256, 2049)), 255);
        assert_eq!(at_once(&leaves(2, BATCH_BYTES)), 1);
        assert_eq!(at_once(&leaves(2, BATCH_BYTES + 1)), 1);
    }
}
