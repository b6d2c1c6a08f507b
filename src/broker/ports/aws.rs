//! What the use cases need of AWS.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_trait::async_trait;

use crate::domain::{
    arn::{AccountId, RoleArn, UserArn},
    credential::{AccessKey, Credentials},
    decide::{Authorized, Issue},
    denial::{Holder, Place},
    grant::Grant,
    lease::Binding,
    policy::Document,
    probe::Probe,
};

/// What became of a call to AWS that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    /// AWS refused, and will again until somebody mends something.
    Refused,
    /// Too many calls; later it may work.
    Throttled,
    /// The broker itself held the call back, to stay within what AWS takes.
    HeldBack,
    /// AWS answered that it cannot do it now; nothing has happened.
    Busy,
    /// AWS could not be reached, and nothing has happened there.
    Unavailable,
    /// No answer came: it may have happened or not.
    Uncertain,
}

/// A call to AWS that did not succeed, in words a person can act on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AwsFailure {
    /// What to make of it.
    pub class: FailureClass,
    /// Machine reason.
    pub reason: &'static str,
    /// What happened and why.
    pub message: String,
    /// What to do next.
    pub next: String,
    /// When to try again, where that can help.
    pub retry_after: Option<Duration>,
    /// AWS's own code and words, for the audit log.
    pub aws_said: String,
    /// AWS's id of the request.
    pub aws_request_id: Option<String>,
}

impl AwsFailure {
    /// The broker did not ask, or not all, and will after `wait`.
    #[must_use]
    pub const fn held_back(reason: &'static str, message: String, wait: Duration) -> Self {
        Self {
            class: FailureClass::HeldBack,
            reason,
            message,
            next: String::new(),
            retry_after: Some(wait),
            aws_said: String::new(),
            aws_request_id: None,
        }
    }

    /// Each call was answered, but so many had to wait for their turn that all of them
    /// took more than `limit`.
    #[must_use]
    pub fn too_slow(limit: Duration) -> Self {
        let seconds = limit.as_secs();
        let message = format!("the calls to AWS that it takes were not done after {seconds} s");
        Self {
            next: "the broker goes on; if this lasts, raise aws.iam_calls_per_second".to_owned(),
            ..Self::held_back("AWS_BUDGET", message, Duration::from_secs(5))
        }
    }

    /// AWS took more than `limit`.
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

/// What to do when nobody knows what has happened.
pub const UNCERTAIN_NEXT: &str = "try again; what AWS may have made is taken over by the same request id, or found and removed by the broker";

/// Why no credentials came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssueFailure {
    /// What AWS did.
    pub failure: AwsFailure,
    /// What this attempt has left there.
    pub left: Left,
}

/// What an attempt to issue has left in AWS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing; an earlier attempt may have left something.
    Nothing,
    /// Perhaps something of the lease's.
    Something,
    /// Something of the lease's name that is somebody else's: not to be touched.
    NotOurs,
}

/// Whom an access key belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminIdentity {
    /// ARN of the user, or of a role's session.
    pub arn: String,
    /// Its account.
    pub account: AccountId,
}

/// What a removal found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// The user was there and is gone.
    Removed,
    /// AWS knows no such user: gone, not there yet, or never made.
    NotFound,
}

/// How soon something is to be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// In its turn.
    Ordinary,
    /// Somebody has shut it out: it waits for nobody else's calls.
    Revocation,
}

/// Makes and takes away credentials in AWS.
///
/// Every call is bounded in time and keeps within AWS's rates, where taking away goes
/// before making. `issue` and `replace_key` may be repeated: what an earlier attempt
/// made for the same lease is taken over, and no second key is left.
#[async_trait]
pub trait Issuer: Send + Sync {
    /// Whether AWS is to be asked to issue at all.
    ///
    /// # Errors
    /// Not while it has been failing, or while too many calls wait already.
    fn ready(&self, issue: &Authorized<Issue>) -> Result<(), AwsFailure>;
    /// Whether AWS has answered of late, or has not been asked; nobody is asked now.
    fn answers(&self) -> bool;
    /// How many removals may go on side by side, so that each comes to its end in some
    /// 20 s: at least 1.
    fn removals_at_once(&self) -> usize;
    /// Makes the credentials of one lease, everything named and tagged after it. A
    /// user's key is handed over once AWS accepts it.
    async fn issue(
        &self,
        issue: &Authorized<Issue>,
        lease: &Binding,
    ) -> Result<Credentials, IssueFailure>;
    /// Takes every key of an `iam_user` lease's user away, the recorded one among them,
    /// and makes another. `settled`: AWS must know the user by now, so one that it does
    /// not show is gone.
    async fn replace_key(
        &self,
        lease: &Binding,
        recorded: &str,
        settled: bool,
    ) -> Result<Credentials, IssueFailure>;
    /// Removes whatever `issue` made for an `iam_user` lease: access first, then what
    /// is left of the user, the user last. Returns once AWS no longer knows the user;
    /// safe to repeat, and when nothing was made.
    async fn withdraw(&self, user: &str, urgency: Urgency) -> Result<Withdrawn, AwsFailure>;
    /// Whom the admin key belongs to, asked of AWS.
    async fn identity(&self) -> Result<AdminIdentity, AwsFailure>;
    /// From now on so many brokers ask AWS, this one included: it takes its share.
    fn share_with(&self, brokers: u64);
}

/// Why AWS refuses a call, as its words tell:
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_access-denied.html>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalCause {
    /// An explicit denial in a policy of the role or user, as the broker writes them.
    IdentityDenial,
    /// A denial in a policy of the organization, the resource, the session, a boundary or an
    /// endpoint.
    OtherDenial,
    /// No policy allows it.
    NotAllowed,
    /// AWS does not tell.
    Untold,
}

/// What AWS says to a session that tries something harmless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allowed,
    /// AWS knows the session, and denies it the call.
    Refused {
        /// For what, by AWS's own words.
        cause: RefusalCause,
        /// AWS's code and words, up to 512 characters.
        said: String,
    },
    /// The credentials are no longer accepted: expired, or unknown to AWS.
    Dead,
}

/// What AWS holds of this broker's, for reconciliation.
#[async_trait]
pub trait Inventory: Send + Sync {
    /// Names of all users under this broker's path.
    async fn users(&self) -> Result<Vec<String>, AwsFailure>;
    /// Whether a user is under this broker's path and its tags say what its name says;
    /// `None` when AWS knows no such user.
    async fn is_ours(&self, user: &str) -> Result<Option<bool>, AwsFailure>;
    /// Ids of the keys of a user; none when AWS knows no such user.
    async fn keys(&self, user: &str) -> Result<Vec<String>, AwsFailure>;
    /// Removes one key of a user.
    async fn remove_key(&self, user: &str, access_key_id: &str) -> Result<(), AwsFailure>;
}

/// Why an account cannot be entered: no role is configured for it.
pub const NO_REVOKER: &str = "NO_REVOKER";

/// Denies sessions in AWS, and sees whether AWS refuses them.
///
/// Every call is bounded in time, and goes before all that makes credentials.
#[async_trait]
pub trait Denier: Send + Sync {
    /// Region of a probe for which none is named.
    fn region(&self) -> Option<String>;
    /// The user that federates sessions: the broker's own; `None` when it is none.
    async fn federates(&self) -> Result<Option<UserArn>, AwsFailure>;
    /// Makes ready to change policies of an account; of another than the broker's by a session
    /// of the role there, which is returned when it is a new one.
    async fn enter(&self, account: &AccountId) -> Result<Option<Entered>, AwsFailure>;
    /// Puts this policy of denials in the place of the last, attached to each of `holders`
    /// where it is a managed one; removes it for `None`. Safe to repeat.
    async fn write(
        &self,
        place: &Place,
        holders: &BTreeSet<Holder>,
        document: Option<&Document>,
    ) -> Result<Put, AwsFailure>;
    /// The policy of denials as AWS has it; one that is no policy of ours, or that is not
    /// attached to each of `holders`, is [`Found::Other`].
    async fn read(&self, place: &Place, holders: &BTreeSet<Holder>) -> Result<Found, AwsFailure>;
    /// Makes a session of a grant, named and tagged as `binding` says, that may do nothing
    /// but the probes, and lives for a quarter of an hour.
    async fn canary(
        &self,
        grant: &Grant,
        binding: &Binding,
        probes: &[Probe],
    ) -> Result<Credentials, AwsFailure>;
    /// Makes the call once, with `credentials` and nothing of the broker's own, in `region` or
    /// the broker's. Changes nothing; may be repeated, and side by side.
    ///
    /// # Errors
    /// Whatever is no verdict: no answer within the time of one attempt, throttling, a fault of
    /// AWS, an answer that is not AWS's, a signature that AWS does not accept.
    async fn probe(
        &self,
        credentials: &Credentials,
        probe: Probe,
        region: Option<&str>,
    ) -> Result<Verdict, AwsFailure>;
}

/// A session by which policies of another account are changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entered {
    /// The role.
    pub role: RoleArn,
    /// `ASIA…`.
    pub access_key_id: String,
    /// AWS's id of the request.
    pub aws_request_id: Option<String>,
}

/// A policy of denials that was written.
#[derive(Debug, Default)]
pub struct Put {
    /// AWS's id of the request.
    pub aws_request_id: Option<String>,
    /// What AWS would not attach it to, and why.
    pub missed: BTreeMap<Holder, AwsFailure>,
}

/// What AWS has for a policy of denials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// None.
    Nothing,
    /// This.
    Policy(Document),
    /// Something that the broker never writes.
    Other,
}

/// The broker's own key in AWS.
#[async_trait]
pub trait Keyring: Send + Sync {
    /// From now on works with this key. What has been begun with another goes on.
    fn adopt(&self, key: &AccessKey);
    /// Id of the key at work, without asking AWS; `None` when the standard AWS chain does
    /// not tell within two seconds.
    async fn id(&self) -> Option<String>;
    /// Sees that AWS accepts a key, for up to 20 s if it does not at once. Returns whom
    /// it belongs to.
    async fn prove(&self, key: &AccessKey) -> Result<AdminIdentity, AwsFailure>;
    /// Ids of the keys of the user of this ARN, by the key at work.
    async fn keys(&self, user: &str) -> Result<Vec<String>, AwsFailure>;
    /// Makes a key of this user, by the key at work. Never repeated by itself.
    async fn create(&self, user: &str) -> Result<AccessKey, AwsFailure>;
    /// Switches a key of this user off. Safe to repeat.
    async fn deactivate(&self, user: &str, access_key_id: &str) -> Result<(), AwsFailure>;
    /// Deletes a key of this user. Safe to repeat.
    async fn delete(&self, user: &str, access_key_id: &str) -> Result<(), AwsFailure>;
}
