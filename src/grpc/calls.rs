//! How many calls are worked on at a time, and for how long.

use std::{future::Future, sync::Arc, time::Duration};

use axum::response::Response;
use metrics::counter;
use tokio::{sync::Semaphore, time::timeout};

use super::gate::Refusal;
use crate::{
    broker::{Error, PROOF_LIMIT},
    domain::edge::Bounds,
};

/// When one more may find room.
const PAUSE: Duration = Duration::from_secs(1);

/// The calls over one connection, and with them all others.
#[derive(Clone, Debug)]
pub struct Calls {
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
    limit: Duration,
}

impl Calls {
    /// None yet.
    #[must_use]
    pub fn new(bounds: &Bounds) -> Self {
        Self {
            all: Arc::new(Semaphore::new(bounds.calls)),
            own: Arc::new(Semaphore::new(bounds.calls_per_connection)),
            limit: bounds.call_timeout,
        }
    }

    /// Those over one more connection.
    #[must_use]
    pub fn of_another(&self, bounds: &Bounds) -> Self {
        let own = Arc::new(Semaphore::new(bounds.calls_per_connection));
        Self {
            own,
            ..self.clone()
        }
    }

    /// Works on a call until it has an answer, be it the beginning of a stream: that goes on
    /// beyond.
    pub(super) async fn work(
        &self,
        method: &str,
        call: impl Future<Output = Response>,
        refusal: Refusal,
    ) -> Response {
        let (Ok(_own), Ok(_all)) = (self.own.try_acquire(), self.all.try_acquire()) else {
            counter!("credbroker_calls_shed_total").increment(1);
            return refusal(&too_many());
        };
        let answer = timeout(limit_of(method, self.limit), call).await;
        answer.unwrap_or_else(|_| {
            tracing::warn!(
                method,
                "a call takes longer than it may; what it began goes on"
            );
            refusal(&Error::Late)
        })
    }
}

/// What has an answer only once AWS has proven it.
const PROVEN: [&str; 5] = [
    "credbroker.v1.AdminService/ImportAdminKey",
    "credbroker.v1.AdminService/RotateAdminKey",
    "credbroker.v1.LeaseService/RevokeLease",
    "credbroker.v1.RevocationService/RevokeGrant",
    "credbroker.v1.RevocationService/RevokeService",
];

fn limit_of(method: &str, limit: Duration) -> Duration {
    if PROVEN.contains(&method) {
        limit + PROOF_LIMIT
    } else {
        limit
    }
}

fn too_many() -> Error {
    Error::Limited {
        reason: "TOO_MANY_CALLS",
        message: "the broker is working on as many calls as it may".to_owned(),
        next: "try again, with fewer at a time over one connection; whoever runs the broker \
               raises bounds.calls or bounds.calls_per_connection"
            .to_owned(),
        retry_after: Some(PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::access::TABLE;

    #[test]
    fn what_waits_for_aws_is_a_method_and_has_longer() {
        let limit = Duration::from_secs(20);
        for method in PROVEN {
            assert!(TABLE.iter().any(|(name, _)| *name == method), "{method}");
            assert_eq!(limit_of(method, limit), limit + PROOF_LIMIT);
        }
        assert_eq!(
            limit_of("credbroker.v1.IdentityService/WhoAmI", limit),
            limit
        );
    }
}
