//! Issue to a reinstated service, which gets no session that AWS still denies.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{
    broker::{
        Broker,
        canary::issued,
        issue::SOON,
        ports::{AwsFailure, IssueFailure, Residue},
    },
    domain::{
        credential::Credentials,
        decide::Issue,
        denial::{PolicyOwner, newer_hit_until, uncontested_from},
        lease::Issuance,
        name::Name,
    },
};

/// Longest time for which an issue waits until AWS stops denying a reinstated service.
const LET_LIMIT: Duration = Duration::from_secs(25);
/// Interval at which the waiting issue reads the denials.
const LOOK_EVERY: Duration = Duration::from_millis(250);

impl Broker {
    /// Waits until AWS no longer denies the sessions of a reinstated service.
    pub(super) async fn wait_for_reinstatement(
        &self,
        service: &Name,
        holder: &PolicyOwner,
    ) -> Result<(), IssueFailure> {
        let began = Instant::now();
        loop {
            // A store that cannot be read cannot record the lease, either.
            let denials = self.store().denials_of(service).await.unwrap_or_default();
            let until = newer_hit_until(&denials, holder);
            let wait = until.map(|until| until.duration_since(self.now()));
            let wait = wait.and_then(|wait| Duration::try_from(wait).ok());
            let Some(wait) = wait.filter(|wait| !wait.is_zero()) else {
                return Ok(());
            };
            if began.elapsed() > LET_LIMIT {
                return Err(IssueFailure {
                    failure: still_denied(service, holder),
                    left: Residue::Nothing,
                });
            }
            sleep(wait.min(LOOK_EVERY)).await;
        }
    }

    /// Returns the pause before another session is requested in place of this one, which a denial
    /// of the service's earlier sessions also denies; `None` if no denial does.
    pub(super) async fn too_early(
        &self,
        issue: &Issue,
        binding: &Issuance,
        credentials: &Credentials,
    ) -> Option<Duration> {
        binding.holder.as_ref()?;
        let grant = &binding.grant;
        // A store that cannot be read cannot record the lease, either.
        let denials = self.store().denials_of(&grant.service).await.ok()?;
        let free = uncontested_from(&denials, &grant.grant)?;
        let early = free.duration_since(issued(credentials, issue.ttl));
        Duration::try_from(early)
            .ok()
            .filter(|early| !early.is_zero())
    }
}

fn still_denied(service: &Name, holder: &PolicyOwner) -> AwsFailure {
    let message = format!(
        "AWS denies every session of service {service} at {holder} since it was revoked, and the \
         broker has not been able to change that since it was reinstated"
    );
    AwsFailure {
        next: "ask again later; the broker's log shows an operator what AWS says".to_owned(),
        ..AwsFailure::deferred("STILL_DENIED", message, SOON)
    }
}
