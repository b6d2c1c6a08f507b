//! Ports to AWS.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_trait::async_trait;

use crate::domain::{
    arn::{AccountId, RoleArn, UserArn},
    credential::{AccessKey, Credentials},
    decide::{Authorized, Issue},
    denial::{PolicyLocation, PolicyOwner},
    grant::Grant,
    lease::Issuance,
    policy::Document,
    probe::Probe,
};

/// Class of a failed call to AWS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    /// AWS refused, and will refuse again until the cause is removed.
    Refused,
    /// AWS received too many calls. A later attempt may work.
    Throttled,
    /// The broker itself did not make the call, for example to stay within AWS's rates.
    Deferred,
    /// AWS answered that it cannot do it now. Nothing has happened.
    Busy,
    /// AWS was unreachable. Nothing has happened there.
    Unavailable,
    /// AWS did not answer. The call may have taken effect.
    Uncertain,
}

/// A failed call to AWS, with a text that a person can act on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AwsFailure {
    /// Class of the failure.
    pub class: FailureClass,
    /// Machine-readable reason.
    pub reason: &'static str,
    /// Description of what happened and why.
    pub message: String,
    /// Advice on what to do next; may be empty.
    pub next: String,
    /// Time after which a retry may work; `None` if a retry cannot help.
    pub retry_after: Option<Duration>,
    /// AWS's error code and message, for the audit log.
    pub aws_said: String,
    /// AWS's request id.
    pub aws_request_id: Option<String>,
}

impl AwsFailure {
    /// Returns the failure of an operation that the broker did not do, or not completely. A retry
    /// may work after `wait`.
    #[must_use]
    pub const fn deferred(reason: &'static str, message: String, wait: Duration) -> Self {
        Self {
            class: FailureClass::Deferred,
            reason,
            message,
            next: String::new(),
            retry_after: Some(wait),
            aws_said: String::new(),
            aws_request_id: None,
        }
    }

    /// Returns the failure of an operation whose calls AWS answered, but which took more than
    /// `limit`, because its calls had to wait for their turn.
    #[must_use]
    pub fn too_slow(limit: Duration) -> Self {
        let seconds = limit.as_secs();
        let message = format!("the calls to AWS that it takes were not done after {seconds} s");
        Self {
            next: "the broker goes on; if this lasts, raise aws.iam_calls_per_second".to_owned(),
            ..Self::deferred("AWS_BUDGET", message, Duration::from_secs(5))
        }
    }

    /// Returns the failure of a call that AWS did not answer within `limit`.
    #[must_use]
    pub fn no_answer(limit: Duration) -> Self {
        Self {
            class: FailureClass::Uncertain,
            reason: "AWS_NO_ANSWER",
            message: format!("AWS did not answer within {} s", limit.as_secs()),
            next: UNCERTAIN_NEXT.to_owned(),
            retry_after: Some(Duration::from_secs(5)),
            aws_said: String::new(),
            aws_request_id: None,
        }
    }
}

/// Advice for a call whose outcome is unknown.
pub const UNCERTAIN_NEXT: &str = "try again; what AWS may have made is taken over by the same request id, or found and removed by the broker";

/// Failure to issue credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssueFailure {
    /// Failed call to AWS.
    pub failure: AwsFailure,
    /// Residue of this attempt in AWS.
    pub left: Residue,
}

/// Residue of an attempt to issue in AWS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residue {
    /// The attempt left nothing. An earlier attempt may have left something.
    Nothing,
    /// The attempt may have left objects of the lease.
    Something,
    /// AWS has something under the lease's name that is not the broker's. The broker must not touch
    /// it.
    NotOurs,
}

/// Owner of an access key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminIdentity {
    /// ARN of the user, or of a role's session.
    pub arn: String,
    /// AWS account of the owner.
    pub account: AccountId,
}

/// Result of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteOutcome {
    /// The user existed and is deleted.
    Removed,
    /// AWS knows no such user: deleted earlier, not visible yet, or never created.
    NotFound,
}

/// Priority of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// The removal waits for its turn.
    Ordinary,
    /// An operator has revoked the lease: the removal does not wait behind other calls.
    Revocation,
}

/// Creates and deletes credentials in AWS.
///
/// Every call has a time limit and stays within AWS's rates, where deletion goes before creation.
/// `issue` and `replace_key` may be repeated: they take over what an earlier attempt created for
/// the same lease, and leave no second key.
#[async_trait]
pub trait Issuer: Send + Sync {
    /// Checks that AWS can be asked to issue now.
    ///
    /// # Errors
    /// AWS has been failing, or too many calls wait already.
    fn ready(&self, issue: &Authorized<Issue>) -> Result<(), AwsFailure>;
    /// Returns whether AWS has answered recently, or has not been called. Makes no call.
    fn answers(&self) -> bool;
    /// Returns the number of removals that may run concurrently, at least 1, so that each ends
    /// within some 20 s.
    fn removals_at_once(&self) -> usize;
    /// Creates the credentials of one lease; all names and tags derive from the lease. Returns a
    /// user's key once AWS accepts it.
    async fn issue(
        &self,
        issue: &Authorized<Issue>,
        lease: &Issuance,
    ) -> Result<Credentials, IssueFailure>;
    /// Deletes every key of an `iam_user` lease's user, `recorded` included, and creates another.
    /// `settled`: AWS must know the user by now, so a user that AWS does not show is gone.
    async fn replace_key(
        &self,
        lease: &Issuance,
        recorded: &str,
        settled: bool,
    ) -> Result<Credentials, IssueFailure>;
    /// Deletes everything that `issue` created for an `iam_user` lease: access first, then the
    /// other parts of the user, the user last. Returns once AWS no longer knows the user. Safe to
    /// repeat, also when nothing was created.
    async fn withdraw(&self, user: &str, urgency: Priority) -> Result<DeleteOutcome, AwsFailure>;
    /// Returns the owner of the admin key, as AWS reports it.
    async fn identity(&self) -> Result<AdminIdentity, AwsFailure>;
    /// Sets the number of replicas that call AWS, this one included. Each replica takes an equal
    /// share of the rates.
    fn share_with(&self, brokers: u64);
}

/// Cause of a refusal by AWS, as AWS's message states it:
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_access-denied.html>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalCause {
    /// An explicit denial in a policy of the role or user, as the broker writes them.
    IdentityDenial,
    /// A denial in a policy of the organization, the resource, the session, a boundary or an
    /// endpoint.
    OtherDenial,
    /// Absence of a policy that allows the call.
    NotAllowed,
    /// AWS does not state the cause.
    Untold,
}

/// AWS's answer to the probe of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// The session may make the call.
    Allowed,
    /// AWS knows the session and refuses the call.
    Refused {
        /// Cause, from AWS's message.
        cause: RefusalCause,
        /// AWS's error code and message, up to 512 characters.
        said: String,
    },
    /// The credentials are no longer accepted: expired, or unknown to AWS.
    Dead,
}

/// Users and keys of this broker in AWS, for reconciliation.
#[async_trait]
pub trait Inventory: Send + Sync {
    /// Returns the names of all users under this broker's path.
    async fn users(&self) -> Result<Vec<String>, AwsFailure>;
    /// Returns whether a user is under this broker's path and its tags agree with its name; `None`
    /// when AWS knows no such user.
    async fn is_ours(&self, user: &str) -> Result<Option<bool>, AwsFailure>;
    /// Returns the ids of a user's keys; empty when AWS knows no such user.
    async fn keys(&self, user: &str) -> Result<Vec<String>, AwsFailure>;
    /// Deletes one key of a user.
    async fn remove_key(&self, user: &str, access_key_id: &str) -> Result<(), AwsFailure>;
}

/// Reason code when no role is configured for another AWS account.
pub const NO_REVOKER: &str = "NO_REVOKER";

/// Denies sessions in AWS, and probes whether AWS enforces the denials.
///
/// Every call has a time limit, and goes before all calls that create credentials.
#[async_trait]
pub trait DenyPolicyApi: Send + Sync {
    /// Returns the region of a probe for which none is named.
    fn region(&self) -> Option<String>;
    /// Returns the user that federates sessions, the owner of the admin key; `None` when the owner
    /// is not a user.
    async fn federates(&self) -> Result<Option<UserArn>, AwsFailure>;
    /// Prepares to change policies of an account. In another account than the broker's, assumes the
    /// role there. Returns the session of that role if it is new.
    async fn open_account(
        &self,
        account: &AccountId,
    ) -> Result<Option<AssumedRevokerRole>, AwsFailure>;
    /// Replaces the policy at `place`. Attaches a managed policy to each of `holders`. `None`:
    /// removes the denials. Safe to repeat.
    async fn write(
        &self,
        place: &PolicyLocation,
        holders: &BTreeSet<PolicyOwner>,
        document: Option<&Document>,
    ) -> Result<PolicyWritten, AwsFailure>;
    /// Returns the policy at `place` as AWS has it. A policy that the broker never writes, or that
    /// is not attached to each of `holders`, is [`PolicyState::Other`].
    async fn read(
        &self,
        place: &PolicyLocation,
        holders: &BTreeSet<PolicyOwner>,
    ) -> Result<PolicyState, AwsFailure>;
    /// Creates a canary: a session of a grant, named and tagged as `binding` says. The session may
    /// only make the probes, and lives for 15 minutes.
    async fn canary(
        &self,
        grant: &Grant,
        binding: &Issuance,
        probes: &[Probe],
    ) -> Result<Credentials, AwsFailure>;
    /// Makes the probe once, with `credentials` and nothing of the broker's own, in `region` or
    /// else the broker's region. Changes nothing. May be repeated and may run concurrently.
    ///
    /// # Errors
    /// Every answer that is no verdict: no answer within the time of one attempt, throttling, a
    /// fault of AWS, an answer that is not AWS's, a signature that AWS does not accept.
    async fn probe(
        &self,
        credentials: &Credentials,
        probe: Probe,
        region: Option<&str>,
    ) -> Result<ProbeOutcome, AwsFailure>;
}

/// A session of the role that changes policies in another account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssumedRevokerRole {
    /// Role that was assumed.
    pub role: RoleArn,
    /// Access key id of the session, `ASIA…`.
    pub access_key_id: String,
    /// AWS's request id.
    pub aws_request_id: Option<String>,
}

/// Result of writing the policy at a location.
#[derive(Debug, Default)]
pub struct PolicyWritten {
    /// AWS's request id.
    pub aws_request_id: Option<String>,
    /// Roles and users to which AWS did not attach the policy, and why.
    pub missed: BTreeMap<PolicyOwner, AwsFailure>,
}

/// Policy at a location, as AWS has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyState {
    /// Absence of a policy, or a policy that denies nothing.
    Nothing,
    /// The document of the policy.
    Policy(Document),
    /// A policy that the broker never writes, or that is not attached as it should be.
    Other,
}

/// The broker's own key in AWS: the admin key.
#[async_trait]
pub trait AdminKeyApi: Send + Sync {
    /// Switches to this key. Operations in progress continue with the key they began with.
    fn adopt(&self, key: &AccessKey);
    /// Returns the id of the current key, without asking AWS; `None` when the standard AWS chain
    /// does not name one within two seconds.
    async fn id(&self) -> Option<String>;
    /// Waits until AWS accepts a key, for up to 20 s. Returns the owner of the key.
    async fn prove(&self, key: &AccessKey) -> Result<AdminIdentity, AwsFailure>;
    /// Returns the ids of the keys of the user with this ARN. The call uses the current key.
    async fn keys(&self, user: &str) -> Result<Vec<String>, AwsFailure>;
    /// Creates a key of this user. The call uses the current key, and is never repeated
    /// automatically.
    async fn create(&self, user: &str) -> Result<AccessKey, AwsFailure>;
    /// Deactivates a key of this user. Safe to repeat.
    async fn deactivate(&self, user: &str, access_key_id: &str) -> Result<(), AwsFailure>;
    /// Deletes a key of this user. Safe to repeat.
    async fn delete(&self, user: &str, access_key_id: &str) -> Result<(), AwsFailure>;
}
