//! What this broker is and how it does.

use std::sync::atomic::Ordering;

use jiff::Timestamp;

use crate::{
    broker::{
        Broker, Error,
        ports::{AwsFailure, Counts},
        reconcile::Reconciliation,
    },
    domain::{access::Caller, audit::Event, denial::Denial},
};

/// What this broker is and how it does.
#[derive(Debug)]
pub struct Status {
    /// When it began to serve.
    pub started_at: Timestamp,
    /// ARN of the identity behind the admin key, or why AWS does not tell.
    pub admin: Result<String, AwsFailure>,
    /// Its AWS region.
    pub region: String,
    /// How many brokers live on the store.
    pub brokers: u64,
    /// How much there is of what.
    pub counts: Counts,
    /// Those that AWS has not been seen to enforce.
    pub open_denials: Vec<Denial>,
    /// Number of denials in the store that cannot be read.
    pub unreadable_denials: u64,
    /// What the last reconciliation found.
    pub reconciliation: Option<Reconciliation>,
    /// True while AWS's answers agree on the time.
    pub clock_is_certain: bool,
}

impl Broker {
    /// Whether it can do what it is for: the store answers, and nothing speaks against the
    /// log.
    ///
    /// # Errors
    /// Why not, in words.
    pub async fn readiness(&self) -> Result<(), &'static str> {
        if self.is_leaving.load(Ordering::Relaxed) {
            return Err("the broker ends");
        }
        if self.store().log_start().await.is_err() {
            return Err("the store does not answer");
        }
        let doubt = "the audit log is in doubt: nothing is issued, revocation works";
        self.log_is_whole().map_err(|_| doubt)
    }

    /// Tells whether the broker can issue: it is ready, AWS answers, and the clock is certain.
    pub async fn issues(&self) -> bool {
        self.parts.issuer.answers() && self.clock_is_certain() && self.readiness().await.is_ok()
    }

    /// From now on the broker is unready, though it serves on until it ends.
    pub fn leave(&self) {
        self.is_leaving.store(true, Ordering::Relaxed);
    }

    /// What this broker is and how it does, AWS asked anew.
    ///
    /// # Errors
    /// The store's; AWS's silence is part of the answer.
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
