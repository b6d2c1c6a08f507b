//! What AWS's refusals mean, in words a person can act on.
//!
//! Codes: "Common Errors" and each operation's page in the AWS STS and IAM API
//! references. Throttling arrives as HTTP 400.

use std::{error::Error as StdError, fmt, time::Duration};

use aws_sdk_sts::{
    error::{ProvideErrorMetadata, SdkError},
    operation::RequestId,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::broker::ports::{AwsFailure, FailureClass, UNCERTAIN_NEXT};

/// What was asked of AWS, for the words of a refusal.
#[derive(Clone, Debug)]
pub struct Operation<'a> {
    /// `sts:AssumeRole`, …
    pub name: &'static str,
    /// The role, user, group or policy.
    pub on: &'a str,
    /// ARN of the broker's admin identity, where known.
    pub admin: &'a str,
}

impl fmt::Display for Operation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.on.is_empty() {
            f.write_str(self.name)
        } else {
            write!(f, "{} on {}", self.name, self.on)
        }
    }
}

/// An operation whose refusals do not depend on who the admin is.
pub(super) const fn on<'a>(name: &'static str, on: &'a str) -> Operation<'a> {
    Operation {
        name,
        on,
        admin: "",
    }
}

/// AWS does not know what a call names.
pub(super) const MISSING: &str = "AWS_OBJECT_MISSING";
/// AWS has something of this name already.
pub(super) const EXISTS: &str = "AWS_OBJECT_EXISTS";
/// The clock was wrong; AWS's answer has set it.
pub(super) const CLOCK_SKEWED: &str = "CLOCK_SKEWED";
/// Whoever answers does not know the call: no AWS, but an emulator of a part of it.
pub(super) const UNKNOWN_CALL: &str = "AWS_CALL_UNKNOWN";

/// AWS knows whoever calls, and denies the call.
pub(super) const DENIED: [&str; 4] = [
    "AccessDenied",
    "AccessDeniedException",
    "AuthorizationError",
    "UnauthorizedOperation",
];

/// AWS does not accept the key or the token. Codes: "Common Errors" of each service, and
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>.
pub(super) const DEAD: [&str; 7] = [
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "TokenRefreshRequired",
    "UnrecognizedClientException",
];

struct Meaning {
    class: FailureClass,
    reason: &'static str,
    message: String,
    next: String,
}

impl Meaning {
    fn refused(reason: &'static str, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            class: FailureClass::Refused,
            reason,
            message: message.into(),
            next: next.into(),
        }
    }

    fn later(class: FailureClass, reason: &'static str, message: impl Into<String>) -> Self {
        let next = match class {
            FailureClass::Uncertain => UNCERTAIN_NEXT,
            _ => "try again in a few seconds; nothing was issued",
        };
        Self {
            class,
            reason,
            message: message.into(),
            next: next.to_owned(),
        }
    }
}

/// Reads an SDK error.
pub(super) fn failure<E>(operation: &Operation<'_>, error: &SdkError<E, HttpResponse>) -> AwsFailure
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let request_id = error.request_id().map(ToOwned::to_owned);
    let (meaning, aws_said) = match error {
        // An answer without a code is none of AWS's, or a success that cannot be read.
        SdkError::ServiceError(service) => match service.err().code() {
            None => (no_answer(operation), String::new()),
            Some(code) => {
                let words = service.err().message().unwrap_or("");
                let status = service.raw().status().as_u16();
                (
                    answered(operation, status, code, words),
                    format!("{code}: {words}"),
                )
            }
        },
        SdkError::DispatchFailure(dispatch) => {
            let chain = chain(dispatch.as_connector_error().map(|e| e as &dyn StdError));
            (not_sent(operation, &chain), String::new())
        }
        SdkError::ConstructionFailure(_) => {
            (not_sent(operation, &chain(error.source())), String::new())
        }
        _ => (no_answer(operation), String::new()),
    };
    AwsFailure {
        class: meaning.class,
        reason: meaning.reason,
        message: meaning.message,
        next: meaning.next,
        retry_after: retry_after(meaning.class),
        aws_said,
        aws_request_id: request_id,
    }
}

const fn retry_after(class: FailureClass) -> Option<Duration> {
    match class {
        FailureClass::Refused => None,
        FailureClass::Throttled | FailureClass::Uncertain => Some(Duration::from_secs(5)),
        FailureClass::HeldBack | FailureClass::Busy | FailureClass::Unavailable => {
            Some(Duration::from_secs(2))
        }
    }
}

/// The broker's own failures.
fn ours(class: FailureClass, reason: &'static str, message: String, next: &str) -> AwsFailure {
    AwsFailure {
        class,
        reason,
        message,
        next: next.to_owned(),
        retry_after: retry_after(class),
        aws_said: String::new(),
        aws_request_id: None,
    }
}

/// Too many calls wait already.
pub(super) fn held_back(line: &str, wait: Duration) -> AwsFailure {
    let failure = ours(
        FailureClass::HeldBack,
        "AWS_BUDGET",
        format!("the broker has as many calls to AWS ({line}) under way as the account takes"),
        "try again later; if AWS takes more, raise aws.iam_calls_per_second or aws.sts_calls_per_second",
    );
    AwsFailure {
        retry_after: Some(wait),
        ..failure
    }
}

/// AWS has not been answering.
pub(super) fn circuit_open(line: &str, wait: Duration) -> AwsFailure {
    let failure = ours(
        FailureClass::Unavailable,
        "AWS_CIRCUIT_OPEN",
        format!("AWS ({line}) has not been answering; the broker waits before it asks again"),
        "try again later; nothing was issued",
    );
    AwsFailure {
        retry_after: Some(wait),
        ..failure
    }
}

/// AWS answered, but not all of it.
pub(super) fn incomplete(message: &str) -> AwsFailure {
    ours(
        FailureClass::Uncertain,
        "AWS_ANSWER_INCOMPLETE",
        message.to_owned(),
        UNCERTAIN_NEXT,
    )
}

/// AWS has not done yet what it said it has.
pub(super) fn not_yet(reason: &'static str, message: String) -> AwsFailure {
    ours(
        FailureClass::Busy,
        reason,
        message,
        "try again in a few seconds",
    )
}

/// The account is not as bootstrap.sh makes it.
pub(super) fn not_set_up(reason: &'static str, message: String) -> AwsFailure {
    let next = "whoever runs the broker must do that first; nothing was issued";
    ours(FailureClass::Refused, reason, message, next)
}

/// A defect of the broker.
pub(super) fn wrong_kind() -> AwsFailure {
    ours(
        FailureClass::Refused,
        "INTERNAL",
        "the grant is of another kind".to_owned(),
        "",
    )
}

/// Somebody else has removed a lease's user.
pub(super) fn no_longer_there(user: &str) -> AwsFailure {
    ours(
        FailureClass::Refused,
        MISSING,
        format!("user {user} is no longer in AWS"),
        "somebody removed it there; issue anew, with a new request id",
    )
}

/// Somebody else has something of the name that a lease gave.
pub(super) fn not_ours(user: &str) -> AwsFailure {
    ours(
        FailureClass::Refused,
        "AWS_NAME_TAKEN",
        format!("AWS has a user {user} that this broker did not make"),
        "whoever made it must remove it; the broker does not touch it",
    )
}

/// Every error in the chain, as text.
fn chain(error: Option<&dyn StdError>) -> String {
    let mut text = String::new();
    let mut next = error;
    while let Some(error) = next {
        text.push_str(&error.to_string());
        text.push('\n');
        next = error.source();
    }
    text
}

fn not_sent(operation: &Operation<'_>, chain: &str) -> Meaning {
    // The words of aws_credential_types::provider::error::CredentialsError.
    if chain.contains("credential provider was not enabled")
        || chain.contains("not properly configured")
    {
        return Meaning::refused(
            "ADMIN_KEY_MISSING",
            "the broker has no AWS admin key",
            "give the broker its key by the standard AWS chain (AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY, a profile, or AWS_SHARED_CREDENTIALS_FILE) and restart it",
        );
    }
    if chain.contains("credentials") {
        return Meaning::later(
            FailureClass::Unavailable,
            "ADMIN_KEY_UNAVAILABLE",
            "the broker's admin key cannot be fetched at the moment",
        );
    }
    // Only a connection that was never made is sure to have had no effect.
    if chain.contains("(Connect)")
        || chain.contains("dns error")
        || chain.contains("Connection refused")
    {
        return Meaning::later(
            FailureClass::Unavailable,
            "AWS_UNREACHABLE",
            format!("the broker cannot reach AWS for {}", operation.name),
        );
    }
    no_answer(operation)
}

fn no_answer(operation: &Operation<'_>) -> Meaning {
    Meaning::later(
        FailureClass::Uncertain,
        "AWS_NO_ANSWER",
        format!("AWS gave no answer to {}", operation.name),
    )
}

/// What the AWS SDKs take for throttling, less `LimitExceededException`: of IAM it means
/// a quota, which no waiting frees.
const THROTTLED: [&str; 13] = [
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestLimitExceeded",
    "TooManyRequestsException",
    "ProvisionedThroughputExceededException",
    "TransactionInProgressException",
    "BandwidthLimitExceeded",
    "PriorRequestNotComplete",
    "SlowDown",
    "EC2ThrottledException",
];

/// Tells from AWS's words or code whether it refuses a request for the time of its signature.
pub(super) fn refuses_time(said: &str) -> bool {
    let words = [
        "Signature expired",
        "Signature not yet current",
        "RequestExpired",
        "RequestTimeTooSkewed",
    ];
    words.iter().any(|words| said.contains(words))
}

fn answered(operation: &Operation<'_>, status: u16, code: &str, words: &str) -> Meaning {
    if THROTTLED.contains(&code) || words.contains("Rate exceeded") || status == 429 {
        return Meaning::later(
            FailureClass::Throttled,
            "AWS_THROTTLED",
            "AWS is throttling the broker's account",
        );
    }
    if refuses_time(words) || refuses_time(code) {
        return Meaning::later(
            FailureClass::Busy,
            CLOCK_SKEWED,
            "AWS's clock and the broker's differ; the broker's is set as soon as several answers agree",
        );
    }
    if status >= 500 {
        return Meaning::later(
            FailureClass::Uncertain,
            "AWS_FAULT",
            format!("AWS failed on {} (HTTP {status})", operation.name),
        );
    }
    match code {
        "InvalidClientTokenId"
        | "SignatureDoesNotMatch"
        | "UnrecognizedClientException"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "InvalidAccessKeyId"
        | "IncompleteSignature"
        | "MissingAuthenticationToken" => Meaning::refused(
            "ADMIN_KEY_REFUSED",
            format!("AWS does not accept the broker's admin key ({code})"),
            "whoever runs the broker must give it a valid key and restart it",
        ),
        "AccessDenied" | "AccessDeniedException" => access_denied(operation, words),
        "PackedPolicyTooLarge" | "PackedPolicyTooLargeException" => Meaning::refused(
            "POLICY_TOO_LARGE",
            "the session policy and tags are too large for AWS once packed",
            "shorten the grant's policy, use managed policies, or drop tags",
        ),
        "MalformedPolicyDocument" | "MalformedPolicyDocumentException" => Meaning::refused(
            "POLICY_MALFORMED",
            "AWS does not accept the grant's policy document",
            "correct the policy; AWS's own words are in the audit log",
        ),
        "RegionDisabledException" | "RegionDisabled" => Meaning::refused(
            "REGION_DISABLED",
            "STS is switched off in this region for the account",
            "switch the region on in the account's settings, or set another region on the grant",
        ),
        "LimitExceeded" | "LimitExceededException" => Meaning::refused(
            "AWS_QUOTA",
            format!("a quota of the AWS account is used up ({operation})"),
            "end leases that are no longer needed, or have the quota raised",
        ),
        "NoSuchEntity" => Meaning::refused(
            MISSING,
            format!("AWS does not know something that the grant names ({operation})"),
            "see that the role, group, managed policy or boundary exists in the account",
        ),
        "EntityAlreadyExists" => Meaning::refused(
            EXISTS,
            format!("AWS has something of this name already ({operation})"),
            "AWS's own words are in the audit log of this lease",
        ),
        "InvalidAction" => Meaning::refused(
            UNKNOWN_CALL,
            format!("the endpoint does not know {}", operation.name),
            "point the broker at AWS itself",
        ),
        "ValidationError" if words.contains("MaxSessionDuration") => Meaning::refused(
            "TTL_ABOVE_ROLE_MAXIMUM",
            format!(
                "the lifetime is above the MaxSessionDuration of {}",
                operation.on
            ),
            "raise the role's MaxSessionDuration, or lower the grant's --max-ttl",
        ),
        "ConcurrentModification" | "EntityTemporarilyUnmodifiable" => Meaning::later(
            FailureClass::Busy,
            "AWS_BUSY",
            format!("AWS is busy with another change ({operation})"),
        ),
        _ => Meaning::refused(
            "AWS_REFUSED",
            format!("AWS refused {operation} ({code})"),
            "AWS's own words are in the audit log of this lease",
        ),
    }
}

/// What the broker may do only to roles with the boundary.
const PUT_ON_ROLE: [&str; 3] = [
    "iam:PutRolePolicy",
    "iam:DeleteRolePolicy",
    "iam:AttachRolePolicy",
];

fn access_denied(operation: &Operation<'_>, words: &str) -> Meaning {
    let Operation { on, admin, .. } = operation;
    if PUT_ON_ROLE.contains(&operation.name) {
        return Meaning::refused(
            "ROLE_LACKS_BOUNDARY",
            format!("AWS does not let the broker put a denial on role {on}"),
            "see that the role is under the path /credbroker/ and carries the boundary credbroker-boundary, and \
             compare the broker's policy with deploy/aws/admin-policy.json (in another account, \
             deploy/aws/revoker-policy.json)",
        );
    }
    if operation.name != "sts:AssumeRole" {
        return Meaning::refused(
            "ADMIN_NOT_ALLOWED",
            format!("the broker's admin user may not call {operation}"),
            "compare its policy with deploy/aws/admin-policy.json",
        );
    }
    if words.contains("sts:TagSession") {
        return Meaning::refused(
            "ROLE_LACKS_TAG_SESSION",
            format!("role {on} does not let the broker tag its sessions"),
            format!(
                "allow sts:TagSession for {admin} in the role's trust policy, as deploy/aws/trust-policy.json does"
            ),
        );
    }
    if words.contains("sts:SetSourceIdentity") {
        return Meaning::refused(
            "ROLE_LACKS_SOURCE_IDENTITY",
            format!("role {on} does not let the broker set a source identity"),
            format!(
                "allow sts:SetSourceIdentity for {admin} in the role's trust policy, or put the grant without --source-identity"
            ),
        );
    }
    Meaning::refused(
        "ROLE_DOES_NOT_TRUST_BROKER",
        format!("role {on} does not let the broker assume it"),
        format!(
            "see that the role exists, that its trust policy allows sts:AssumeRole and sts:TagSession for {admin} \
             (deploy/aws/trust-policy.json), that the external id is right, and that the admin user's own policy \
             reaches the role"
        ),
    )
}
