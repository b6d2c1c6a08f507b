//! Aggregation of the audit records that a caller can cause as often as it likes. The first records
//! of a kind are written at once, the others are counted, and one record a minute states their
//! number.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use metrics::counter;
use tokio::time::timeout;

use crate::{
    broker::{Broker, Error, wait::Wait},
    domain::{
        audit::{AuditEvent, Event},
        connection_limits::site,
        name::Name,
        principal::Principal,
    },
};

/// Interval between the records that state how many records were counted.
const EVERY: Wait = Wait::seconds(60);
/// Number of records of one kind that are written at once, until a minute brings none.
const AT_ONCE: u32 = 10;
/// Most kinds that are counted per source for unauthenticated callers; beyond it the source is
/// ignored.
const STRANGERS_MAX: usize = 128;
/// Most kinds that are counted per source for services.
const SERVICES_MAX: usize = 1024;

/// Caller that causes a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// An authenticated service.
    Service(Name),
    /// An unauthenticated caller, at this address or in this /64.
    Stranger(IpAddr),
}

/// Kind of records. `source` is `None` for the records that are counted without their source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct AggregatedKind {
    source: Option<Source>,
    event: Event,
    reason: Option<String>,
}

/// Records of a kind since the last minute without any.
#[derive(Debug)]
struct SeenKind {
    written: u32,
    /// True after a record; reset once a minute.
    is_active: bool,
    counted: u64,
    since: Timestamp,
    last: AuditEvent,
}

#[derive(Debug, Default)]
struct Kinds(Mutex<HashMap<AggregatedKind, SeenKind>>);

impl Kinds {
    fn seen(&self) -> MutexGuard<'_, HashMap<AggregatedKind, SeenKind>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether a record is to be written now, and counts the record otherwise.
    fn is_written(&self, source: Source, most: usize, audit: &AuditEvent) -> bool {
        let mut seen = self.seen();
        let mut kind = AggregatedKind {
            source: Some(source),
            event: audit.event,
            reason: audit.reason.clone(),
        };
        if seen.len() >= most && !seen.contains_key(&kind) {
            kind.source = None;
        }
        let seen = seen.entry(kind).or_insert_with(|| SeenKind {
            written: 0,
            is_active: true,
            counted: 0,
            since: audit.time,
            last: audit.clone(),
        });
        seen.is_active = true;
        if seen.written < AT_ONCE {
            seen.written += 1;
            return true;
        }
        if seen.counted == 0 {
            seen.since = audit.time;
        }
        seen.counted += 1;
        seen.last = audit.clone();
        false
    }

    /// Returns a record and the count for each kind that has counted records. Forgets the kinds
    /// that had no record since the last call.
    fn due(&self, now: Timestamp) -> Vec<(AggregatedKind, u64, AuditEvent)> {
        let mut due = Vec::new();
        self.seen().retain(|kind, seen| {
            if seen.counted > 0 {
                let record = seen.last.clone().repeated(seen.counted, seen.since, now);
                due.push((kind.clone(), seen.counted, record));
            }
            std::mem::take(&mut seen.is_active) || seen.counted > 0
        });
        due
    }

    /// Subtracts the number of records that a written record accounts for.
    fn told(&self, kind: &AggregatedKind, count: u64) {
        if let Some(seen) = self.seen().get_mut(kind) {
            seen.counted = seen.counted.saturating_sub(count);
        }
    }
}

/// Counts of records that are not written one by one.
#[derive(Debug, Default)]
pub(super) struct Aggregation {
    strangers: Kinds,
    services: Kinds,
}

impl Broker {
    /// Records an event of a caller. Of a service, the first ten of a kind are written one by one
    /// and the others are counted.
    pub(super) async fn record_by(
        &self,
        principal: &Principal,
        audit: AuditEvent,
    ) -> Result<(), Error> {
        if let Some(service) = principal.service() {
            return self
                .record_of(Source::Service(service.clone()), audit)
                .await;
        }
        self.store().record(audit).await?;
        Ok(())
    }

    /// Records an event of `source`, or counts it after many of the same kind.
    pub(super) async fn record_of(&self, source: Source, audit: AuditEvent) -> Result<(), Error> {
        let is_written = match &source {
            Source::Stranger(address) => {
                let source = Source::Stranger(site(*address));
                let kinds = &self.aggregation.strangers;
                kinds.is_written(source, STRANGERS_MAX, &audit)
            }
            Source::Service(_) => {
                let kinds = &self.aggregation.services;
                kinds.is_written(source, SERVICES_MAX, &audit)
            }
        };
        if is_written {
            self.store().record(audit).await?;
        } else {
            counter!("credbroker_records_aggregated_total").increment(1);
        }
        Ok(())
    }

    /// Records once a minute how many records were counted since, until the broker stops.
    pub async fn run_aggregation(self: Arc<Self>) {
        while timeout(EVERY.length(), self.until_stopped()).await.is_err() {
            self.record_counted().await;
        }
    }

    /// Records how many records were counted. A count that cannot be recorded is kept.
    pub async fn record_counted(&self) {
        for kinds in [&self.aggregation.strangers, &self.aggregation.services] {
            for (kind, count, record) in kinds.due(self.now()) {
                match self.store().record(record).await {
                    Ok(_) => kinds.told(&kind, count),
                    Err(error) => {
                        tracing::warn!(%error, "counted refusals are not recorded yet");
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::principal::Origin;

    fn failed(reason: &str) -> AuditEvent {
        let origin = Origin {
            peer: None,
            method: "credbroker.v1.IdentityService/WhoAmI".to_owned(),
        };
        AuditEvent::failed_login(&origin, reason, None, Timestamp::UNIX_EPOCH)
    }

    fn stranger(number: u8) -> Source {
        Source::Stranger([10, 0, 0, number].into())
    }

    #[test]
    fn the_first_ten_are_written_and_one_record_a_minute_counts_the_others() {
        let kinds = Kinds::default();
        let written = |reason, count| {
            let audit = failed(reason);
            (0..count)
                .filter(|_| kinds.is_written(stranger(1), 128, &audit))
                .count()
        };
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(written("TOKEN_UNKNOWN", 1000), 10);
        assert_eq!(written("TOKEN_MALFORMED", 10), 10);
        let due = kinds.due(now);
        let [(kind, 990, record)] = &due[..] else {
            panic!("{due:?}");
        };
        let detail = record.detail.as_deref().unwrap();
        assert!(detail.starts_with("990 more like this"), "{detail}");
        // The count is due until it is recorded, and nothing is forgotten.
        assert_eq!(kinds.due(now).len(), 1);
        kinds.told(kind, 990);
        assert_eq!(kinds.due(now), []);
        // The last minute brought no record.
        assert_eq!(written("TOKEN_UNKNOWN", 1000), 10);
    }

    #[test]
    fn what_goes_on_has_one_record_a_minute() {
        let kinds = Kinds::default();
        let audit = failed("TOKEN_UNKNOWN");
        for minute in 0..5 {
            let written = (0..100).filter(|_| kinds.is_written(stranger(1), 128, &audit));
            assert_eq!(written.count(), if minute == 0 { 10 } else { 0 });
            let due = kinds.due(Timestamp::UNIX_EPOCH);
            assert_eq!(due.len(), 1);
            kinds.told(&due[0].0, due[0].1);
        }
    }

    #[test]
    fn many_addresses_share_what_is_left() {
        let kinds = Kinds::default();
        let audit = failed("TOKEN_UNKNOWN");
        let written = (0..200)
            .flat_map(|number| std::iter::repeat_n(number, 20))
            .filter(|number| kinds.is_written(stranger(*number), 128, &audit));
        assert_eq!(written.count(), 128 * 10 + 10);
        assert_eq!(kinds.seen().len(), 129);
    }
}
