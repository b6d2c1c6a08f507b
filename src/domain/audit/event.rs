//! Everything that is recorded.

use std::str::FromStr;

macro_rules! events {
    ($($(#[$doc:meta])* $variant:ident => $text:literal,)*) => {
        /// Everything that is recorded, `noun.verb` in the past.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Event { $($(#[$doc])* $variant,)* }

        impl Event {
            /// All names.
            pub const NAMES: &[&str] = &[$($text,)*];

            /// The event's name in the log.
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
    /// The broker began to serve.
    BrokerStarted => "broker.started",
    /// The broker ended in good order.
    BrokerStopped => "broker.stopped",
    /// All that is stored was moved to another store.
    StoreMoved => "store.moved",
    /// A proof of identity was refused.
    LoginFailed => "login.failed",
    /// A proven caller called what its role does not permit.
    RequestDenied => "request.denied",
    /// A service was registered.
    ServiceCreated => "service.created",
    /// Services were looked at.
    ServiceRead => "service.read",
    /// A service was suspended.
    ServiceSuspended => "service.suspended",
    /// A suspension was lifted.
    ServiceReinstated => "service.reinstated",
    /// A service was removed.
    ServiceDeleted => "service.deleted",
    /// A service was shut out with all it holds.
    ServiceRevoked => "service.revoked",
    /// All that was issued under a grant is being taken away.
    GrantRevoked => "grant.revoked",
    /// A session is to be made to see whether AWS refuses its like.
    CanaryRequested => "canary.requested",
    /// A session was made to see whether AWS refuses its like; it may do nothing else.
    CanaryIssued => "canary.issued",
    /// A session was made by which policies of another account are changed.
    AccountEntered => "account.entered",
    /// A denial of sessions was written in AWS.
    DenialWritten => "denial.written",
    /// AWS refuses the sessions that a denial is about.
    DenialConfirmed => "denial.confirmed",
    /// A second look at a denial, half a minute after AWS was seen to enforce it.
    DenialSettled => "denial.settled",
    /// A denial could not be written, or is not seen to hold; tried again later.
    DenialPostponed => "denial.postponed",
    /// For want of room in AWS, more of the same service's sessions are denied.
    DenialWidened => "denial.widened",
    /// A denial that somebody had changed in AWS was written anew.
    DenialRepaired => "denial.repaired",
    /// The last session that a denial was about is over, and so is the denial.
    DenialLifted => "denial.lifted",
    /// A service token was made.
    TokenCreated => "token.created",
    /// Tokens were looked at.
    TokenRead => "token.read",
    /// A token was ended.
    TokenDeleted => "token.deleted",
    /// A service is known by something from now on.
    BindingCreated => "binding.created",
    /// What services are known by was looked at.
    BindingRead => "binding.read",
    /// A service is not known by something any more.
    BindingDeleted => "binding.deleted",
    /// A token by which a host may enrol was made.
    EnrollmentAllowed => "enrollment.allowed",
    /// A host got a client certificate for its token.
    EnrollmentMade => "enrollment.made",
    /// A host got another certificate for its key.
    CertificateRenewed => "certificate.renewed",
    /// A caller asked who it is.
    IdentityRead => "identity.read",
    /// A change was asked for that takes a second operator.
    ApprovalRequested => "approval.requested",
    /// A second operator agreed to a change.
    ApprovalGiven => "approval.given",
    /// A change that was asked for is not to be.
    ApprovalRejected => "approval.rejected",
    /// A change that a second operator agreed to is being made.
    ApprovalUsed => "approval.used",
    /// Changes that were asked for were looked at.
    ApprovalRead => "approval.read",
    /// A grant got a new version.
    GrantPut => "grant.put",
    /// Grants were looked at.
    GrantRead => "grant.read",
    /// A grant was ended.
    GrantDeleted => "grant.deleted",
    /// The policy catalogue was looked at.
    PolicyRead => "policy.read",
    /// Credentials were asked for; AWS has not been called yet.
    LeaseRequested => "lease.requested",
    /// Credentials were issued.
    LeaseIssued => "lease.issued",
    /// A session was handed out that others have, too.
    LeaseShared => "lease.shared",
    /// Credentials were refused, by the broker or by AWS.
    LeaseDenied => "lease.denied",
    /// AWS's answer never came; what exists is found out later.
    LeaseUncertain => "lease.uncertain",
    /// An issue that its first issuer did not bring to its end was taken over.
    LeaseResumed => "lease.resumed",
    /// A repeated request is to get another key or session under its lease.
    LeaseReplacing => "lease.replacing",
    /// A repeated request got another key or session under its lease.
    LeaseRedelivered => "lease.redelivered",
    /// A replacement came to nothing; the lease stays as it was.
    LeaseKept => "lease.kept",
    /// A lease's life was prolonged.
    LeaseRenewed => "lease.renewed",
    /// Leases were looked at.
    LeaseRead => "lease.read",
    /// A service began to watch what of its own is revoked.
    LeaseWatched => "lease.watched",
    /// A service handed a lease back.
    LeaseReleased => "lease.released",
    /// A lease is being taken away.
    LeaseRevoking => "lease.revoking",
    /// A lease has been taken away.
    LeaseRevoked => "lease.revoked",
    /// A lease's time ran out and nothing of it is left.
    LeaseExpired => "lease.expired",
    /// AWS could not be brought to take a lease away; tried again later.
    LeasePostponed => "lease.postponed",
    /// AWS keeps refusing to take a lease away; tried for ever.
    LeaseQuarantined => "lease.quarantined",
    /// A live lease's user or key is no longer in AWS, and not by the broker's doing.
    LeaseVanished => "lease.vanished",
    /// A user under the broker's path without a live lease was removed.
    OrphanRemoved => "orphan.removed",
    /// A key that no lease knows was removed from a user.
    KeyRemoved => "key.removed",
    /// The account that everything is in was learnt of AWS.
    AccountBound => "account.bound",
    /// The admin key was looked at.
    AdminKeyRead => "admin_key.read",
    /// A key was imported and is at work.
    AdminKeyImported => "admin_key.imported",
    /// The admin key is to be replaced.
    AdminKeyRotating => "admin_key.rotating",
    /// AWS has made the key that is to replace it.
    AdminKeyCreated => "admin_key.created",
    /// AWS accepts the new key; it is at work.
    AdminKeySwitched => "admin_key.switched",
    /// The old key is switched off.
    AdminKeyDeactivated => "admin_key.deactivated",
    /// The old key is deleted: the admin key has been replaced.
    AdminKeyRotated => "admin_key.rotated",
    /// A step of its replacement failed; tried again later.
    AdminKeyPostponed => "admin_key.postponed",
    /// An operator said that the admin key is stolen.
    AdminKeyStolen => "admin_key.stolen",
    /// An operator was added.
    OperatorCreated => "operator.created",
    /// Operators were looked at.
    OperatorRead => "operator.read",
    /// An operator was removed.
    OperatorDeleted => "operator.deleted",
    /// A key was made that signs the log from now on.
    LogKeyMade => "log.key_made",
    /// The log's first records were given up; an export has them.
    LogPruned => "log.pruned",
    /// Nothing happened for a minute but this.
    LogHeartbeat => "log.heartbeat",
    /// The audit log was looked at.
    AuditRead => "audit.read",
    /// The broker's state was looked at.
    StatusRead => "status.read",
}
