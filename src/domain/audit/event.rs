//! Names of the audit log's events.

use std::str::FromStr;

macro_rules! events {
    ($($(#[$doc:meta])* $variant:ident => $text:literal,)*) => {
        /// Kind of an event in the audit log. Its name is `noun.verb`, the verb in the past tense.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Event { $($(#[$doc])* $variant,)* }

        impl Event {
            /// Names of all events.
            pub const NAMES: &[&str] = &[$($text,)*];

            /// Returns the event's name in the log.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl FromStr for Event {
            type Err = ();

            fn from_str(text: &str) -> Result<Self, ()> {
                match text { $($text => Ok(Self::$variant),)* _ => Err(()) }
            }
        }
    };
}

events! {
    /// The broker started to serve.
    BrokerStarted => "broker.started",
    /// The broker stopped after an orderly shutdown.
    BrokerStopped => "broker.stopped",
    /// All stored data was moved to another store.
    StoreMoved => "store.moved",
    /// A proof of identity was refused.
    LoginFailed => "login.failed",
    /// A caller with a proven identity called a method that its role does not permit.
    RequestDenied => "request.denied",
    /// A service was registered.
    ServiceCreated => "service.created",
    /// Services were read.
    ServiceRead => "service.read",
    /// A service was suspended.
    ServiceSuspended => "service.suspended",
    /// A suspension was lifted.
    ServiceReinstated => "service.reinstated",
    /// A service was deleted.
    ServiceDeleted => "service.deleted",
    /// A service was suspended, and the broker ends everything issued to it.
    ServiceRevoked => "service.revoked",
    /// A grant was revoked, and the broker ends everything issued under it.
    GrantRevoked => "grant.revoked",
    /// The broker is about to ask AWS for a canary.
    CanaryRequested => "canary.requested",
    /// A canary was issued: its session may make the probe calls and nothing else.
    CanaryIssued => "canary.issued",
    /// The broker got a session for changing policies in another account.
    AccountEntered => "account.entered",
    /// A denial was written to a policy in AWS.
    DenialWritten => "denial.written",
    /// AWS was seen to enforce a denial.
    DenialConfirmed => "denial.confirmed",
    /// A denial was checked a second time, half a minute after AWS was seen to enforce it.
    DenialSettled => "denial.settled",
    /// A denial could not be written, or AWS was not seen to enforce it. The broker retries later.
    DenialPostponed => "denial.postponed",
    /// The policy in AWS had no room, so a denial was widened to more sessions of the same service.
    DenialWidened => "denial.widened",
    /// Denials that had been changed in AWS outside the broker were written again.
    DenialRepaired => "denial.repaired",
    /// All access that a denial was about has expired, and the denial was removed.
    DenialLifted => "denial.lifted",
    /// A service token was created.
    TokenCreated => "token.created",
    /// Tokens were read.
    TokenRead => "token.read",
    /// A token was deleted.
    TokenDeleted => "token.deleted",
    /// A binding was created: a service is identified by it from now on.
    BindingCreated => "binding.created",
    /// Bindings of services were read.
    BindingRead => "binding.read",
    /// A binding was deleted: a service is not identified by it any more.
    BindingDeleted => "binding.deleted",
    /// A token was created with which a host may enrol.
    EnrollmentAllowed => "enrollment.allowed",
    /// A host enrolled with its token and got a client certificate.
    EnrollmentMade => "enrollment.made",
    /// A host got another certificate for its key.
    CertificateRenewed => "certificate.renewed",
    /// A caller asked for its own identity.
    IdentityRead => "identity.read",
    /// A change was requested that a second operator has to approve.
    ApprovalRequested => "approval.requested",
    /// A second operator approved a change.
    ApprovalGiven => "approval.given",
    /// A requested change was rejected, or its approval was withdrawn.
    ApprovalRejected => "approval.rejected",
    /// An approved change is being made.
    ApprovalUsed => "approval.used",
    /// Requested changes were read.
    ApprovalRead => "approval.read",
    /// A new version of a grant was put.
    GrantPut => "grant.put",
    /// Grants were read.
    GrantRead => "grant.read",
    /// A grant was deleted.
    GrantDeleted => "grant.deleted",
    /// The policy catalogue was read.
    PolicyRead => "policy.read",
    /// Credentials were requested; AWS has not been called yet.
    LeaseRequested => "lease.requested",
    /// Credentials were issued.
    LeaseIssued => "lease.issued",
    /// A session was handed out that other callers have, too.
    LeaseShared => "lease.shared",
    /// Credentials were refused, by the broker or by AWS.
    LeaseDenied => "lease.denied",
    /// AWS did not answer an issue. The broker finds out later what exists.
    LeaseUncertain => "lease.uncertain",
    /// An issue that an earlier attempt did not finish was taken over.
    LeaseResumed => "lease.resumed",
    /// A repeated request is about to get another key or session under its lease.
    LeaseReplacing => "lease.replacing",
    /// A repeated request got another key or session under its lease.
    LeaseRedelivered => "lease.redelivered",
    /// A replacement was cancelled; the lease continues without it.
    LeaseKept => "lease.kept",
    /// The end of a lease was extended.
    LeaseRenewed => "lease.renewed",
    /// Leases were read.
    LeaseRead => "lease.read",
    /// A service subscribed to revocations of its own credentials.
    LeaseWatched => "lease.watched",
    /// A service released a lease.
    LeaseReleased => "lease.released",
    /// The end of a lease has begun, by a revocation or by the clean-up.
    LeaseRevoking => "lease.revoking",
    /// A lease has ended for another reason than its expiry.
    LeaseRevoked => "lease.revoked",
    /// A lease expired, and nothing of it is left.
    LeaseExpired => "lease.expired",
    /// A lease could not be ended in AWS yet. The broker retries later.
    LeasePostponed => "lease.postponed",
    /// AWS keeps refusing to end a lease. The broker retries indefinitely.
    LeaseQuarantined => "lease.quarantined",
    /// The user or key of a live lease is missing in AWS, and the broker did not remove it.
    LeaseVanished => "lease.vanished",
    /// A user under the broker's path without a live lease was removed.
    OrphanRemoved => "orphan.removed",
    /// A key that no lease records was removed from a user.
    KeyRemoved => "key.removed",
    /// The broker's AWS account was read from AWS and stored.
    AccountBound => "account.bound",
    /// The state of the admin key was read.
    AdminKeyRead => "admin_key.read",
    /// A key was imported as the admin key and is in use.
    AdminKeyImported => "admin_key.imported",
    /// A rotation of the admin key has begun.
    AdminKeyRotating => "admin_key.rotating",
    /// AWS has created the new admin key.
    AdminKeyCreated => "admin_key.created",
    /// AWS accepts the new admin key, and the broker uses it.
    AdminKeySwitched => "admin_key.switched",
    /// The old admin key was deactivated.
    AdminKeyDeactivated => "admin_key.deactivated",
    /// The old admin key was deleted, which completes the rotation.
    AdminKeyRotated => "admin_key.rotated",
    /// A step of the rotation failed. The broker retries later.
    AdminKeyPostponed => "admin_key.postponed",
    /// An operator reported that the admin key is stolen.
    AdminKeyStolen => "admin_key.stolen",
    /// An operator was created.
    OperatorCreated => "operator.created",
    /// Operators were read.
    OperatorRead => "operator.read",
    /// An operator was deleted.
    OperatorDeleted => "operator.deleted",
    /// A key was created that signs the log from now on.
    LogKeyMade => "log.key_made",
    /// The first records of the log were pruned; an export has them.
    LogPruned => "log.pruned",
    /// A sign of life, recorded every minute so that silence is visible.
    LogHeartbeat => "log.heartbeat",
    /// The audit log was read.
    AuditRead => "audit.read",
    /// The broker's state was read.
    StatusRead => "status.read",
}
