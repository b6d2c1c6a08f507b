//! One harmless call with the credentials of a session, sent as the SDK sends its own calls: the
//! same connector, time-outs and proxies. Only the request is written and its answer read here, so
//! that six calls do not need an SDK crate each.
//!
//! Signature:
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>.
//! Protocols: <https://smithy.io/2.0/aws/protocols/aws-json-1_1-protocol.html> and
//! <https://smithy.io/2.0/aws/protocols/aws-restxml-protocol.html>.

use std::{borrow::Cow, sync::Arc, time::SystemTime};

use aws_config::SdkConfig;
use aws_sdk_sts::{
    config::Credentials as SdkCredentials,
    error::{ErrorMetadata, ProvideErrorMetadata, SdkError},
};
use aws_sigv4::{
    http_request::{
        PayloadChecksumKind, SignableBody, SignableRequest, SigningParams, SigningSettings, sign,
    },
    sign::v4,
};
use aws_smithy_async::time::TimeSource;
use aws_smithy_runtime::client::orchestrator::operation::Operation as SdkOperation;
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        identity::Identity,
        orchestrator::{HttpRequest, HttpResponse, OrchestratorError},
    },
};
use aws_smithy_types::{body::SdkBody, timeout::TimeoutConfig};
use secrecy::ExposeSecret;
use serde_json::Value;
use tokio::time::Instant;

use super::{
    Clients,
    channel::{ApiChannel, TimingInterceptor, count},
    error::{DEAD, DENIED, Operation, failure, on},
};
use crate::{
    broker::ports::{AwsFailure, FailureClass, ProbeOutcome, RefusalCause},
    domain::{arn::Partition, credential::Credentials, probe::Probe},
};

/// Most characters of AWS's words in a verdict.
const SAID_MAX: usize = 512;

/// Client of one probe in one region, with its connections.
pub(super) type Wire = SdkOperation<ProbeAttempt, (), ErrorMetadata>;

/// Makes the call of `probe` once, signed by `credentials`.
pub(super) async fn probe(
    clients: &Clients,
    credentials: &Credentials,
    probe: Probe,
    region: Option<&str>,
) -> Result<ProbeOutcome, AwsFailure> {
    let operation = on(probe.as_str(), "");
    let attempt = ProbeAttempt {
        identity: identity(credentials),
        time: clients.time().now(),
    };
    let wire = clients.probe(probe, region);
    let began = Instant::now();
    let answer = Box::pin(wire.invoke(attempt)).await;
    let verdict = verdict(&operation, answer);
    count(&operation, verdict.as_ref().err(), began.elapsed());
    verdict
}

/// Builds the client of a probe. `line` learns AWS's time from the answers; its budget is not
/// charged.
pub(super) fn connect(
    config: &SdkConfig,
    line: &Arc<ApiChannel>,
    probe: Probe,
    region: &str,
) -> Wire {
    let call = ProbeRequest::of(probe);
    let url = endpoint(config.endpoint_url(), call.service, region);
    let times = config.timeout_config().cloned();
    let builder = SdkOperation::builder()
        .service_name(call.service)
        .operation_name(probe.as_str())
        .endpoint_url(&url)
        .timeout_config(times.unwrap_or_else(TimeoutConfig::disabled))
        .no_auth()
        .no_retry()
        .with_connection_poisoning()
        .interceptor(TimingInterceptor(Arc::clone(line)));
    let region = region.to_owned();
    builder
        .serializer(move |attempt: ProbeAttempt| {
            attempt.request(&ProbeRequest::of(probe), &url, &region)
        })
        .deserializer(move |response| read(&ProbeRequest::of(probe), response))
        .build()
}

/// Returns the URL of a service. `url` is the configured override, for every service.
fn endpoint(url: Option<&str>, service: &str, region: &str) -> String {
    if let Some(url) = url {
        return url.trim_end_matches('/').to_owned();
    }
    let suffix = Partition::for_region(region).dns_suffix();
    format!("https://{service}.{region}.{suffix}")
}

/// Request of a probe, which asks its service for the shortest answer.
struct ProbeRequest {
    /// Prefix of the service's host, and the service's name in a signature.
    service: &'static str,
    method: &'static str,
    path: &'static str,
    /// `Content-Type` and `X-Amz-Target`.
    headers: &'static [(&'static str, &'static str)],
    body: &'static str,
}

const JSON_10: (&str, &str) = ("content-type", "application/x-amz-json-1.0");
const JSON_11: (&str, &str) = ("content-type", "application/x-amz-json-1.1");
const TARGET: &str = "x-amz-target";

impl ProbeRequest {
    /// Returns the request of a probe, by the API reference of each service. The smallest size of a
    /// page is 1.
    const fn of(probe: Probe) -> Self {
        match probe {
            Probe::SqsListQueues => Self::post(
                "sqs",
                &[JSON_10, (TARGET, "AmazonSQS.ListQueues")],
                r#"{"MaxResults":1}"#,
            ),
            Probe::DynamodbListTables => Self::post(
                "dynamodb",
                &[JSON_10, (TARGET, "DynamoDB_20120810.ListTables")],
                r#"{"Limit":1}"#,
            ),
            Probe::S3ListAllMyBuckets => Self {
                service: "s3",
                method: "GET",
                path: "/?max-buckets=1",
                headers: &[],
                body: "",
            },
            Probe::KmsListKeys => Self::post(
                "kms",
                &[JSON_11, (TARGET, "TrentService.ListKeys")],
                r#"{"Limit":1}"#,
            ),
            Probe::SecretsmanagerListSecrets => Self::post(
                "secretsmanager",
                &[JSON_11, (TARGET, "secretsmanager.ListSecrets")],
                r#"{"MaxResults":1}"#,
            ),
            Probe::SsmDescribeParameters => Self::post(
                "ssm",
                &[JSON_11, (TARGET, "AmazonSSM.DescribeParameters")],
                r#"{"MaxResults":1}"#,
            ),
        }
    }

    const fn post(
        service: &'static str,
        headers: &'static [(&'static str, &'static str)],
        body: &'static str,
    ) -> Self {
        Self {
            service,
            method: "POST",
            path: "/",
            headers,
            body,
        }
    }

    /// Returns whether a body reads as a success of the service.
    fn is_success(&self, body: &[u8]) -> bool {
        if self.body.is_empty() {
            text(body).contains("<ListAllMyBucketsResult")
        } else {
            serde_json::from_slice::<Value>(body).is_ok_and(|answer| answer.is_object())
        }
    }
}

/// Identity and time by which a call is signed. Debug hides the secrets, as the SDK's types do.
#[derive(Debug)]
pub(super) struct ProbeAttempt {
    identity: Identity,
    time: SystemTime,
}

fn identity(credentials: &Credentials) -> Identity {
    let token = credentials.session_token.as_ref();
    SdkCredentials::new(
        &credentials.access_key_id,
        credentials.secret_access_key.expose_secret(),
        token.map(|token| token.expose_secret().to_owned()),
        None,
        "credbroker",
    )
    .into()
}

impl ProbeAttempt {
    /// Returns the signed request, with a path relative to `url`.
    fn request(
        &self,
        call: &ProbeRequest,
        url: &str,
        region: &str,
    ) -> Result<HttpRequest, BoxError> {
        let mut request = HttpRequest::new(SdkBody::from(call.body));
        request.set_method(call.method)?;
        request.set_uri(call.path)?;
        for (name, value) in call.headers {
            request.headers_mut().try_insert(*name, *value)?;
        }
        let signable = SignableRequest::new(
            call.method,
            format!("{url}{}", call.path),
            call.headers.iter().copied(),
            SignableBody::Bytes(call.body.as_bytes()),
        )?;
        let (instructions, _) = sign(signable, &self.signing(call, region)?)?.into_parts();
        for (name, value) in instructions.headers() {
            request
                .headers_mut()
                .try_insert(name.to_owned(), value.to_owned())?;
        }
        Ok(request)
    }

    fn signing<'a>(
        &'a self,
        call: &ProbeRequest,
        region: &'a str,
    ) -> Result<SigningParams<'a>, BoxError> {
        let mut settings = SigningSettings::default();
        // S3 requires the header; the other services accept it.
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let params = v4::SigningParams::builder()
            .identity(&self.identity)
            .region(region)
            .name(call.service)
            .time(self.time)
            .settings(settings);
        Ok(params.build()?.into())
    }
}

/// Reads an answer. A success counts only if it reads as AWS's: a proxy in between may answer 200
/// as well.
fn read(
    call: &ProbeRequest,
    response: &HttpResponse,
) -> Result<(), OrchestratorError<ErrorMetadata>> {
    let body = response.body().bytes().unwrap_or_default();
    if !response.status().is_success() {
        let told = |name| response.headers().get(name);
        let header = told("x-amzn-errortype").or_else(|| told("x-amzn-query-error"));
        return Err(OrchestratorError::operation(refusal(header, body)));
    }
    if call.is_success(body) {
        Ok(())
    } else {
        let no_answer = "a success that is not in AWS's form".into();
        Err(OrchestratorError::response(no_answer))
    }
}

/// Returns the code and words of an answer that is not a success; neither if the answer is not
/// AWS's.
fn refusal(header: Option<&str>, body: &[u8]) -> ErrorMetadata {
    let (code, words) = if let Ok(json) = serde_json::from_slice::<Value>(body) {
        let field = |name: &str| json[name].as_str().map(ToOwned::to_owned);
        (
            field("__type"),
            field("message").or_else(|| field("Message")),
        )
    } else {
        let xml = text(body);
        (element(&xml, "Code"), element(&xml, "Message"))
    };
    let mut told = ErrorMetadata::builder();
    if let Some(code) = code.as_deref().or(header) {
        told = told.code(bare(code));
    }
    if let Some(words) = words {
        told = told.message(words);
    }
    told.build()
}

/// Returns the code in `namespace#Code:origin` or `Code;Sender`.
fn bare(code: &str) -> &str {
    let code = code.split([':', ';']).next().unwrap_or_default();
    code.rsplit('#').next().unwrap_or_default()
}

fn text(body: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(body)
}

/// Returns the text of the first element of this name.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.to_owned())
}

fn verdict(
    operation: &Operation<'_>,
    answer: Result<(), SdkError<ErrorMetadata, HttpResponse>>,
) -> Result<ProbeOutcome, AwsFailure> {
    let Err(error) = answer else {
        return Ok(ProbeOutcome::Allowed);
    };
    let failure = failure(operation, &error);
    match error.code() {
        Some(code) if failure.class == FailureClass::Refused => {
            let words = error.message().unwrap_or_default();
            judged(code, words).ok_or_else(|| unexpected(operation, code, failure))
        }
        _ => Err(AwsFailure {
            next: "try again in a few seconds".to_owned(),
            ..failure
        }),
    }
}

fn judged(code: &str, words: &str) -> Option<ProbeOutcome> {
    if DENIED.contains(&code) {
        let said = format!("{code}: {words}");
        return Some(ProbeOutcome::Refused {
            cause: cause(words),
            said: said.chars().take(SAID_MAX).collect(),
        });
    }
    DEAD.contains(&code).then_some(ProbeOutcome::Dead)
}

/// Returns the cause of a refusal, by AWS's words. AWS may say "explicit deny" of a policy of the
/// organization that has none:
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_access-denied.html>.
fn cause(words: &str) -> RefusalCause {
    let words = words.to_ascii_lowercase();
    if words.contains("explicit deny in an identity-based policy") {
        RefusalCause::IdentityDenial
    } else if words.contains("explicit deny") {
        RefusalCause::OtherDenial
    } else if words.contains("because no") {
        RefusalCause::NotAllowed
    } else {
        RefusalCause::Untold
    }
}

/// Returns the failure of a refusal that says nothing about the session's permissions.
fn unexpected(operation: &Operation<'_>, code: &str, failure: AwsFailure) -> AwsFailure {
    AwsFailure {
        reason: "AWS_REFUSED",
        message: format!("AWS answered {operation} neither with leave nor with denial ({code})"),
        next: "put the grant with another --probe".to_owned(),
        ..failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_is_asked_at_its_endpoint_of_the_region_and_partition() {
        let hosts = |region| {
            Probe::ALL
                .map(|probe| endpoint(None, ProbeRequest::of(probe).service, region).split_off(8))
        };
        let services = ["sqs", "dynamodb", "s3", "kms", "secretsmanager", "ssm"];
        for (region, suffix) in [
            ("eu-central-1", "amazonaws.com"),
            ("us-gov-west-1", "amazonaws.com"),
            ("cn-north-1", "amazonaws.com.cn"),
        ] {
            let expected = services.map(|service| format!("{service}.{region}.{suffix}"));
            assert_eq!(hosts(region), expected);
        }
        let other = Some("http://127.0.0.1:4566/");
        assert_eq!(
            endpoint(other, "sqs", "cn-north-1"),
            "http://127.0.0.1:4566"
        );
    }

    #[test]
    fn a_probe_asks_the_service_that_its_action_names() {
        for probe in Probe::ALL {
            let (service, _) = probe.as_str().split_once(':').unwrap();
            assert_eq!(ProbeRequest::of(probe).service, service);
        }
    }

    #[test]
    fn a_code_is_read_wherever_the_protocols_put_it() {
        let read = |header, body: &str| {
            let told = refusal(header, body.as_bytes());
            let part = |part: Option<&str>| part.unwrap_or_default().to_owned();
            (part(told.code()), part(told.message()))
        };
        let denied = ("AccessDeniedException".to_owned(), "no".to_owned());
        for (header, body) in [
            (None, r#"{"__type":"AccessDeniedException","Message":"no"}"#),
            (
                None,
                r#"{"__type":"com.amazon.coral.service#AccessDeniedException","message":"no"}"#,
            ),
            (
                Some("AccessDeniedException:http://internal.amazon.com/x#y"),
                r#"{"message":"no"}"#,
            ),
            (Some("AccessDeniedException;Sender"), r#"{"message":"no"}"#),
            (
                None,
                "<?xml version=\"1.0\"?>\n<Error><Code>AccessDeniedException</Code><Message>no</Message></Error>",
            ),
        ] {
            assert_eq!(read(header, body), denied, "{body}");
        }
        for body in ["", "<html>it works", "[1]", "{}", "\u{0}"] {
            assert_eq!(read(None, body), (String::new(), String::new()), "{body}");
        }
    }

    #[test]
    fn words_and_codes_make_the_verdict() {
        use RefusalCause::{IdentityDenial, NotAllowed, OtherDenial, Untold};
        let told = [
            (
                IdentityDenial,
                "with an explicit deny in an identity-based policy",
            ),
            (
                IdentityDenial,
                "with an explicit deny in an identity-based policy: arn:aws:iam::123456789012:policy/credbroker-denials",
            ),
            (
                NotAllowed,
                "because no identity-based policy allows the sqs:listqueues action",
            ),
            (
                NotAllowed,
                "because no permissions boundary allows the sqs:listqueues action",
            ),
            (
                NotAllowed,
                "because no session policy allows the sqs:listqueues action",
            ),
            (
                NotAllowed,
                "because no VPC endpoint policy allows the sqs:listqueues action",
            ),
            (
                OtherDenial,
                "with an explicit deny in a service control policy",
            ),
            (
                OtherDenial,
                "with an explicit deny in a service control policy: arn:aws:organizations::123456789012:policy/o-x/p-y",
            ),
            (
                OtherDenial,
                "due to an explicit deny in a Service Control Policy, even if the denial is implicit",
            ),
            (
                OtherDenial,
                "with an explicit deny in a resource control policy",
            ),
            (
                OtherDenial,
                "with an explicit deny in a resource-based policy",
            ),
            (OtherDenial, "with an explicit deny in a session policy"),
            (
                OtherDenial,
                "with an explicit deny in a permissions boundary",
            ),
            (
                OtherDenial,
                "with an explicit deny in a VPC endpoint policy",
            ),
            (Untold, ""),
        ];
        for (cause, why) in told {
            let user = "User: arn:aws:sts::123456789012:assumed-role/app/pay.1 is not authorized to perform: y";
            let words = format!("{user} {why}");
            for code in DENIED {
                let said = format!("{code}: {words}");
                let expected = ProbeOutcome::Refused { cause, said };
                assert_eq!(judged(code, &words), Some(expected));
            }
            for code in DEAD {
                assert_eq!(judged(code, &words), Some(ProbeOutcome::Dead));
            }
        }
        for code in [
            "InvalidSignatureException",
            "SignatureDoesNotMatch",
            "ValidationException",
        ] {
            assert_eq!(judged(code, "explicit deny"), None);
        }
        let Some(ProbeOutcome::Refused { said, .. }) = judged("AccessDenied", &"ä".repeat(9000))
        else {
            panic!("it is refused");
        };
        assert_eq!(said.chars().count(), SAID_MAX);
    }

    #[test]
    fn an_attempt_shows_no_secret() {
        let credentials = Credentials {
            access_key_id: "ASIAEXAMPLE".to_owned(),
            secret_access_key: "the-secret".to_owned().into(),
            session_token: Some("the-token".to_owned().into()),
            expires_at: None,
            usable_after: None,
            aws_request_id: None,
        };
        let attempt = ProbeAttempt {
            identity: identity(&credentials),
            time: std::time::UNIX_EPOCH,
        };
        let call = ProbeRequest::of(Probe::KmsListKeys);
        let request = attempt.request(
            &call,
            "https://kms.eu-central-1.amazonaws.com",
            "eu-central-1",
        );
        let request = request.unwrap();
        assert_eq!(
            request.headers().get("x-amz-security-token"),
            Some("the-token")
        );
        let shown = format!("{attempt:?} {request:?}");
        assert!(
            !shown.contains("the-secret") && !shown.contains("the-token"),
            "{shown}"
        );
    }
}
