//! Limits on calls: how many run at a time, in total and per caller, and for how long.

use std::{future::Future, sync::Arc, time::Duration};

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use metrics::counter;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::counts::{Counted, Counts};
use crate::{
    broker::{Error, PROOF_LIMIT},
    domain::{
        access::{Caller, is_response},
        connection_limits::ConnectionLimits,
        name::Name,
    },
};

/// Time after which a refused caller may try again.
const PAUSE: Duration = Duration::from_secs(1);
/// Slots for operators only.
const OPERATORS: usize = 64;
/// Further slots for revocation, suspension and reinstatement, used when operators have taken all
/// of theirs.
const RESPONSE: usize = 16;

/// Slots of a listener, shared by all its connections.
#[derive(Debug)]
struct Slots {
    services: Semaphore,
    by_service: Arc<Counts<Name>>,
    operators: Semaphore,
    response: Semaphore,
}

/// A slot, taken until dropped.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    _permit: SemaphorePermit<'a>,
    _of_service: Option<Counted<Name>>,
}

/// Message of a call, with its share of the bytes that one connection may send, until dropped.
#[derive(Debug)]
pub(super) struct Message<'a> {
    pub(super) bytes: Bytes,
    _room: Option<SemaphorePermit<'a>>,
}

/// Calls over one connection, with the slots that all connections share.
#[derive(Clone, Debug)]
pub struct CallLimits {
    slots: Arc<Slots>,
    own: Arc<Semaphore>,
    /// Bytes of messages that this connection may have in memory.
    room: Arc<Semaphore>,
    message_bytes: usize,
    limit: Duration,
}

impl CallLimits {
    /// Creates the slots of a listener, all free.
    #[must_use]
    pub fn new(bounds: &ConnectionLimits) -> Self {
        let slots = Slots {
            services: Semaphore::new(bounds.calls),
            by_service: Counts::new(bounds.calls_per_service),
            operators: Semaphore::new(OPERATORS),
            response: Semaphore::new(RESPONSE),
        };
        Self::by(Arc::new(slots), bounds)
    }

    /// Returns the calls of another connection, with the same shared slots.
    #[must_use]
    pub fn of_another(&self, bounds: &ConnectionLimits) -> Self {
        Self::by(Arc::clone(&self.slots), bounds)
    }

    fn by(slots: Arc<Slots>, bounds: &ConnectionLimits) -> Self {
        let window = usize::try_from(bounds.connection_window_bytes).unwrap_or(usize::MAX);
        let room = window.max(bounds.message_bytes).min(Semaphore::MAX_PERMITS);
        Self {
            slots,
            own: Arc::new(Semaphore::new(bounds.calls_per_connection)),
            room: Arc::new(Semaphore::new(room)),
            message_bytes: bounds.message_bytes,
            limit: bounds.call_timeout,
        }
    }

    /// Takes one of this connection's own slots.
    pub(super) fn begin(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.own
            .try_acquire()
            .map_err(|_| too_many("over this connection", "bounds.calls_per_connection"))
    }

    /// Waits for the message of a call. Stops reading once the message is longer than allowed, and
    /// returns the part read so far.
    pub(super) async fn message(&self, mut body: Body) -> Result<Message<'_>, Error> {
        let mut message = Vec::new();
        let mut room: Option<SemaphorePermit<'_>> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| not_whole())?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let more = self.room.try_acquire_many(length);
            let more = more
                .map_err(|_| too_many("over this connection", "bounds.connection_window_bytes"))?;
            match &mut room {
                Some(room) => room.merge(more),
                None => room = Some(more),
            }
            message.extend_from_slice(&data);
            if message.len() > self.message_bytes + PREFIX {
                break;
            }
        }
        Ok(Message {
            bytes: message.into(),
            _room: room,
        })
    }

    /// Takes a slot for a proven caller.
    pub(super) fn slot(&self, caller: &Caller) -> Result<Slot<'_>, Error> {
        let slots = &self.slots;
        let principal = caller.principal();
        let Some(service) = principal.service() else {
            let mut permit = slots.operators.try_acquire();
            if permit.is_err() && is_response(&principal.origin().method) {
                permit = slots.response.try_acquire();
            }
            return Ok(Slot {
                _permit: permit.map_err(|_| too_many("of operators", ""))?,
                _of_service: None,
            });
        };
        let of_service = slots.by_service.add(service).ok_or_else(|| {
            let whose = format!("of service {service}");
            too_many(&whose, "bounds.calls_per_service")
        })?;
        let permit = slots.services.try_acquire();
        Ok(Slot {
            _permit: permit.map_err(|_| too_many("of services", "bounds.calls"))?,
            _of_service: Some(of_service),
        })
    }

    /// Runs a call until its answer or the start of its stream, within the time limit of its
    /// method. The rest of a stream has no such limit.
    pub(super) async fn in_time<T>(
        &self,
        method: &str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let answer = timeout(deadline(method, self.limit), call).await;
        answer.unwrap_or_else(|_| {
            tracing::warn!(
                method,
                "a call takes longer than it may; what it began goes on"
            );
            Err(Error::Late)
        })
    }
}

/// Length of the gRPC header of a message, bytes; it contains the message's length.
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
const PREFIX: usize = 5;

/// Methods that wait until AWS has proven the change; they get a longer time limit.
const PROOF_METHODS: [&str; 5] = [
    "credbroker.v1.AdminService/ImportAdminKey",
    "credbroker.v1.AdminService/RotateAdminKey",
    "credbroker.v1.LeaseService/RevokeLease",
    "credbroker.v1.RevocationService/RevokeGrant",
    "credbroker.v1.RevocationService/RevokeService",
];

fn deadline(method: &str, limit: Duration) -> Duration {
    if PROOF_METHODS.contains(&method) {
        limit + PROOF_LIMIT
    } else {
        limit
    }
}

fn not_whole() -> Error {
    Error::Limited {
        reason: "REQUEST_NOT_WHOLE",
        message: "the request did not arrive whole in time".to_owned(),
        next: "send it again, within bounds.body_timeout".to_owned(),
        retry_after: None,
    }
}

fn too_many(whose: &str, setting: &str) -> Error {
    counter!("credbroker_calls_shed_total").increment(1);
    let raised = if setting.is_empty() {
        String::new()
    } else {
        format!("; the broker's operator can raise {setting}")
    };
    Error::Limited {
        reason: "TOO_MANY_CALLS",
        message: format!("too many concurrent calls {whose}"),
        next: format!("try again, with fewer at a time{raised}"),
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
        for method in PROOF_METHODS {
            assert!(TABLE.iter().any(|(name, _)| *name == method), "{method}");
            assert_eq!(deadline(method, limit), limit + PROOF_LIMIT);
        }
        assert_eq!(
            deadline("credbroker.v1.IdentityService/WhoAmI", limit),
            limit
        );
    }
}
