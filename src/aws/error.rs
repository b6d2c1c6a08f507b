//! Meaning of AWS's refusals, in words that an operator can act on.
//!
//! Codes: "Common Errors" and each operation's page in the AWS STS and IAM API references.
//! Throttling arrives as HTTP 400.

use std::{error::Error as StdError, fmt, time::Duration};

use aws_sdk_sts::{
    error::{ProvideErrorMetadata, SdkError},
    operation::RequestId,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::broker::ports::{AwsFailure, FailureClass, UNCERTAIN_NEXT};

/// Operation of AWS, for the text of a failure.
#[derive(Clone, Debug)]
pub struct Operation<'a> {
    /// Name, e.g. `sts:AssumeRole`.
    pub name: &'static str,
    /// Object of the operation, e.g. a role, user, group or policy; may be empty.
    pub on: &'a str,
    /// ARN of the broker's admin identity, if known.
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

/// Returns an operation whose refusals do not depend on the admin identity.
pub(super) const fn on<'a>(name: &'static str, on: &'a str) -> Operation<'a> {
    Operation {
        name,
        on,
        admin: "",
    }
}

/// Reason: AWS does not know an object that a call names.
pub(super) const MISSING: &str = "AWS_OBJECT_MISSING";
/// Reason: AWS has an object of this name already.
pub(super) const EXISTS: &str = "AWS_OBJECT_EXISTS";
/// Reason: the broker's clock was wrong; AWS's answers set it.
pub(super) const CLOCK_SKEWED: &str = "CLOCK_SKEWED";
/// Reason: the endpoint does not know the call. It is not AWS, but an emulator of a part of it.
pub(super) const UNKNOWN_CALL: &str = "AWS_CALL_UNKNOWN";

/// Codes by which AWS denies a call whose caller it knows.
pub(super) const DENIED: [&str; 4] = [
    "AccessDenied",
    "AccessDeniedException",
    "AuthorizationError",
    "UnauthorizedOperation",
];

/// Codes by which AWS rejects the key or the token: "Common Errors" of each service, and
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

struct ErrorMeaning {
    class: FailureClass,
    reason: &'static str,
    message: String,
    next: String,
}

impl ErrorMeaning {
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

/// Converts an SDK error.
pub(super) fn failure<E>(operation: &Operation<'_>, error: &SdkError<E, HttpResponse>) -> AwsFailure
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let request_id = error.request_id().map(ToOwned::to_owned);
    let (meaning, aws_said) = match error {
        // An answer without a code is not AWS's, or is a success that cannot be read.
        SdkError::ServiceError(service) => match service.err().code() {
            None => (no_answer(operation), String::new()),
            Some(code) => {
                let words = service.err().message().unwrap_or("");
                let status = service.raw().status().as_u16();
                (
                    classify(operation, status, code, words),
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
        FailureClass::Deferred | FailureClass::Busy | FailureClass::Unavailable => {
            Some(Duration::from_secs(2))
        }
    }
}

/// Returns a failure that the broker itself found.
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

/// Returns the failure of a call while too many others are waiting.
pub(super) fn budget_exhausted(line: &str, wait: Duration) -> AwsFailure {
    let failure = ours(
        FailureClass::Deferred,
        "AWS_BUDGET",
        format!("the budget of calls to AWS ({line}) is used up"),
        "try again later; if AWS takes more, raise aws.iam_calls_per_second or aws.sts_calls_per_second",
    );
    AwsFailure {
        retry_after: Some(wait),
        ..failure
    }
}

/// Returns the failure of a call while AWS does not answer.
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

/// Returns the failure of an incomplete answer.
pub(super) fn incomplete(message: &str) -> AwsFailure {
    ours(
        FailureClass::Uncertain,
        "AWS_ANSWER_INCOMPLETE",
        message.to_owned(),
        UNCERTAIN_NEXT,
    )
}

/// Returns the failure of a change that AWS has reported as done and does not show yet.
pub(super) fn not_yet(reason: &'static str, message: String) -> AwsFailure {
    ours(
        FailureClass::Busy,
        reason,
        message,
        "try again in a few seconds",
    )
}

/// Returns the failure of a call in an account that is not set up for the broker.
pub(super) fn not_set_up(reason: &'static str, message: String) -> AwsFailure {
    let next = "the broker's operator must do that first; nothing was issued";
    ours(FailureClass::Refused, reason, message, next)
}

/// Returns the failure of a grant of the wrong kind, which is a defect of the broker.
pub(super) fn wrong_kind() -> AwsFailure {
    ours(
        FailureClass::Refused,
        "INTERNAL",
        "the grant is of another kind".to_owned(),
        "",
    )
}

/// Returns the failure of a lease's user that was removed outside the broker.
pub(super) fn no_longer_there(user: &str) -> AwsFailure {
    ours(
        FailureClass::Refused,
        MISSING,
        format!("user {user} is no longer in AWS"),
        "it was removed there by hand; issue again, with a new request id",
    )
}

/// Returns the failure of a lease's user name that is in use by a user of another origin.
pub(super) fn not_ours(user: &str) -> AwsFailure {
    ours(
        FailureClass::Refused,
        "AWS_NAME_TAKEN",
        format!("AWS has a user {user} that this broker did not make"),
        "remove it in AWS; the broker does not touch it",
    )
}

/// Returns the text of every error in the chain, one a line.
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

fn not_sent(operation: &Operation<'_>, chain: &str) -> ErrorMeaning {
    // These are texts of aws_credential_types::provider::error::CredentialsError.
    if chain.contains("credential provider was not enabled")
        || chain.contains("not properly configured")
    {
        return ErrorMeaning::refused(
            "ADMIN_KEY_MISSING",
            "the broker has no AWS admin key",
            "give the broker its key by the standard AWS chain (AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY, a profile, or AWS_SHARED_CREDENTIALS_FILE) and restart it",
        );
    }
    if chain.contains("credentials") {
        return ErrorMeaning::later(
            FailureClass::Unavailable,
            "ADMIN_KEY_UNAVAILABLE",
            "the broker's admin key cannot be fetched at the moment",
        );
    }
    // Only a call whose connection was never made certainly had no effect.
    if chain.contains("(Connect)")
        || chain.contains("dns error")
        || chain.contains("Connection refused")
    {
        return ErrorMeaning::later(
            FailureClass::Unavailable,
            "AWS_UNREACHABLE",
            format!("the broker cannot reach AWS for {}", operation.name),
        );
    }
    no_answer(operation)
}

fn no_answer(operation: &Operation<'_>) -> ErrorMeaning {
    ErrorMeaning::later(
        FailureClass::Uncertain,
        "AWS_NO_ANSWER",
        format!("AWS gave no answer to {}", operation.name),
    )
}

/// Codes that the AWS SDKs treat as throttling, except `LimitExceededException`: from IAM it means
/// a quota, which waiting does not free.
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

/// Returns whether AWS's words or code refuse a request because of the signature's time.
pub(super) fn refuses_time(said: &str) -> bool {
    let words = [
        "Signature expired",
        "Signature not yet current",
        "RequestExpired",
        "RequestTimeTooSkewed",
    ];
    words.iter().any(|words| said.contains(words))
}

fn classify(operation: &Operation<'_>, status: u16, code: &str, words: &str) -> ErrorMeaning {
    if THROTTLED.contains(&code) || words.contains("Rate exceeded") || status == 429 {
        return ErrorMeaning::later(
            FailureClass::Throttled,
            "AWS_THROTTLED",
            "AWS is throttling the broker's account",
        );
    }
    if refuses_time(words) || refuses_time(code) {
        return ErrorMeaning::later(
            FailureClass::Busy,
            CLOCK_SKEWED,
            "AWS's clock and the broker's differ; the broker's is set as soon as several answers agree",
        );
    }
    if status >= 500 {
        return ErrorMeaning::later(
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
        | "MissingAuthenticationToken" => ErrorMeaning::refused(
            "ADMIN_KEY_REFUSED",
            format!("AWS does not accept the broker's admin key ({code})"),
            "the broker's operator must give it a valid key and restart it",
        ),
        "AccessDenied" | "AccessDeniedException" => access_denied(operation, words),
        "PackedPolicyTooLarge" | "PackedPolicyTooLargeException" => ErrorMeaning::refused(
            "POLICY_TOO_LARGE",
            "the session policy and tags are too large for AWS once packed",
            "shorten the grant's policy, use managed policies, or drop tags",
        ),
        "MalformedPolicyDocument" | "MalformedPolicyDocumentException" => ErrorMeaning::refused(
            "POLICY_MALFORMED",
            "AWS does not accept the grant's policy document",
            "correct the policy; AWS's own words are in the audit log",
        ),
        "RegionDisabledException" | "RegionDisabled" => ErrorMeaning::refused(
            "REGION_DISABLED",
            "STS is switched off in this region for the account",
            "switch the region on in the account's settings, or set another region on the grant",
        ),
        "LimitExceeded" | "LimitExceededException" => ErrorMeaning::refused(
            "AWS_QUOTA",
            format!("a quota of the AWS account is used up ({operation})"),
            "end leases that are no longer needed, or have the quota raised",
        ),
        "NoSuchEntity" => ErrorMeaning::refused(
            MISSING,
            format!("AWS does not know something that the grant names ({operation})"),
            "see that the role, group, managed policy or boundary exists in the account",
        ),
        "EntityAlreadyExists" => ErrorMeaning::refused(
            EXISTS,
            format!("AWS has something of this name already ({operation})"),
            "AWS's own words are in the audit log of this lease",
        ),
        "InvalidAction" => ErrorMeaning::refused(
            UNKNOWN_CALL,
            format!("the endpoint does not know {}", operation.name),
            "point the broker at AWS itself",
        ),
        "ValidationError" if words.contains("MaxSessionDuration") => ErrorMeaning::refused(
            "TTL_ABOVE_ROLE_MAXIMUM",
            format!(
                "the lifetime is above the MaxSessionDuration of {}",
                operation.on
            ),
            "raise the role's MaxSessionDuration, or lower the grant's --max-ttl",
        ),
        "ConcurrentModification" | "EntityTemporarilyUnmodifiable" => ErrorMeaning::later(
            FailureClass::Busy,
            "AWS_BUSY",
            format!("AWS is busy with another change ({operation})"),
        ),
        _ => ErrorMeaning::refused(
            "AWS_REFUSED",
            format!("AWS refused {operation} ({code})"),
            "AWS's own words are in the audit log of this lease",
        ),
    }
}

/// Calls that the broker may make only on roles with the boundary.
const PUT_ON_ROLE: [&str; 3] = [
    "iam:PutRolePolicy",
    "iam:DeleteRolePolicy",
    "iam:AttachRolePolicy",
];

fn access_denied(operation: &Operation<'_>, words: &str) -> ErrorMeaning {
    let Operation { on, admin, .. } = operation;
    if PUT_ON_ROLE.contains(&operation.name) {
        return ErrorMeaning::refused(
            "ROLE_LACKS_BOUNDARY",
            format!("AWS does not let the broker put a denial on role {on}"),
            "see that the role is under the path /credbroker/ and carries the boundary credbroker-boundary, and \
             compare the broker's policy with deploy/aws/admin-policy.json (in another account, \
             deploy/aws/revoker-policy.json)",
        );
    }
    if operation.name != "sts:AssumeRole" {
        return ErrorMeaning::refused(
            "ADMIN_NOT_ALLOWED",
            format!("the broker's admin user may not call {operation}"),
            "compare its policy with deploy/aws/admin-policy.json",
        );
    }
    if words.contains("sts:TagSession") {
        return ErrorMeaning::refused(
            "ROLE_LACKS_TAG_SESSION",
            format!("role {on} does not let the broker tag its sessions"),
            format!(
                "allow sts:TagSession for {admin} in the role's trust policy, as deploy/aws/trust-policy.json does"
            ),
        );
    }
    if words.contains("sts:SetSourceIdentity") {
        return ErrorMeaning::refused(
            "ROLE_LACKS_SOURCE_IDENTITY",
            format!("role {on} does not let the broker set a source identity"),
            format!(
                "allow sts:SetSourceIdentity for {admin} in the role's trust policy, or put the grant without --source-identity"
            ),
        );
    }
    ErrorMeaning::refused(
        "ROLE_DOES_NOT_TRUST_BROKER",
        format!("role {on} does not let the broker assume it"),
        format!(
            "see that the role exists, that its trust policy allows sts:AssumeRole and sts:TagSession for {admin} \
             (deploy/aws/trust-policy.json), that the external id is right, and that the admin user's own policy \
             reaches the role"
        ),
    )
}
