//! Status and readiness of the broker.

use std::sync::atomic::Ordering;

use jiff::Timestamp;

use crate::{
    broker::{
        Broker, Error,
        iam_reconcile::Reconciliation,
        ports::{AwsFailure, StoreCounts},
    },
    domain::{access::Caller, audit::Event, denial::Denial},
};

/// Status of the broker.
#[derive(Debug)]
pub struct Status {
    /// Time of the broker's start.
    pub started_at: Timestamp,
    /// ARN of the identity behind the admin key, or the failure of the call to AWS.
    pub admin: Result<String, AwsFailure>,
    /// AWS region of the broker.
    pub region: String,
    /// Number of live replicas on the store.
    pub brokers: u64,
    /// Numbers of services, grants, leases, denials and audit records.
    pub counts: StoreCounts,
    /// Denials that AWS has not been seen to enforce.
    pub open_denials: Vec<Denial>,
    /// Number of denials in the store that cannot be read.
    pub unreadable_denials: u64,
    /// Outcome of the last reconciliation; `None` before the first.
    pub reconciliation: Option<Reconciliation>,
    /// True while AWS's answers agree on the time.
    pub clock_is_certain: bool,
}

impl Broker {
    /// Checks that the broker can work: it is not about to stop, the store answers, and nothing
    /// contradicts the log.
    ///
    /// # Errors
    /// Reason, in words.
    pub async fn readiness(&self) -> Result<(), &'static str> {
        if self.is_leaving.load(Ordering::Relaxed) {
            return Err("the broker ends");
        }
        if self.store().log_start().await.is_err() {
            return Err("the store does not answer");
        }
        let doubt = "the audit log is in doubt: nothing is issued, revocation works";
        self.check_log_integrity().map_err(|_| doubt)
    }

    /// Returns whether the broker can issue: it is ready, AWS answers, and the clock is certain.
    pub async fn issues(&self) -> bool {
        self.parts.issuer.answers() && self.clock_is_certain() && self.readiness().await.is_ok()
    }

    /// Makes the broker unready. It serves until it stops.
    pub fn leave(&self) {
        self.is_leaving.store(true, Ordering::Relaxed);
    }

    /// Returns the status. AWS is asked for the admin identity each time.
    ///
    /// # Errors
    /// The store's error. A failure of AWS is part of the status.
    pub async fn status(&self, caller: &Caller) -> Result<Status, Error> {
        let counts = self.store().counts().await?;
        let mut denials = self.store().denials().await?;
        denials.known.retain(|denial| !denial.is_refused());
        self.store()
            .record(self.caller_event(caller, Event::StatusRead))
            .await?;
        Ok(Status {
            started_at: self.started_at,
            admin: self.admin_arn().await,
            region: self.parts.region.clone(),
            brokers: self.claims.living(),
            counts,
            open_denials: denials.known,
            unreadable_denials: denials.unreadable,
            reconciliation: self.reconciled(),
            clock_is_certain: self.clock_is_certain(),
        })
    }
}
