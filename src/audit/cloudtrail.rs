//! CloudTrail log files, as far as the comparison with the audit log needs them: the calls that
//! created credentials, with caller, time and key id.
//! <https://docs.aws.amazon.com/awscloudtrail/latest/userguide/cloudtrail-event-reference-record-contents.html>

use std::collections::HashSet;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

/// Calls that create access or change who has access, and that the broker never makes, each with
/// its event source. `GetSessionToken` needs no permission, and no policy can restrict its
/// sessions below what their user may do.
const NEVER_MADE: [(&str, &str); 24] = [
    ("sts.amazonaws.com", "GetSessionToken"),
    ("sts.amazonaws.com", "AssumeRoot"),
    ("sts.amazonaws.com", "GetDelegatedAccessToken"),
    ("sts.amazonaws.com", "GetServiceBearerToken"),
    ("sts.amazonaws.com", "GetWebIdentityToken"),
    ("signin.amazonaws.com", "ConsoleLogin"),
    ("signin.amazonaws.com", "GetSigninToken"),
    ("signin.amazonaws.com", "CreateOAuth2Token"),
    ("iam.amazonaws.com", "AttachGroupPolicy"),
    ("iam.amazonaws.com", "CreateLoginProfile"),
    ("iam.amazonaws.com", "CreateOpenIDConnectProvider"),
    ("iam.amazonaws.com", "CreateRole"),
    ("iam.amazonaws.com", "CreateSAMLProvider"),
    ("iam.amazonaws.com", "CreateServiceSpecificCredential"),
    ("iam.amazonaws.com", "EnableMFADevice"),
    ("iam.amazonaws.com", "PutGroupPolicy"),
    ("iam.amazonaws.com", "ResetServiceSpecificCredential"),
    ("iam.amazonaws.com", "UpdateAssumeRolePolicy"),
    ("iam.amazonaws.com", "UpdateLoginProfile"),
    ("iam.amazonaws.com", "UploadSSHPublicKey"),
    ("iam.amazonaws.com", "UploadSigningCertificate"),
    ("rolesanywhere.amazonaws.com", "CreateProfile"),
    ("rolesanywhere.amazonaws.com", "CreateTrustAnchor"),
    ("sso.amazonaws.com", "CreateAccountAssignment"),
];

/// Calls that create credentials or access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrailOperation {
    /// `iam:CreateUser`.
    CreateUser,
    /// `iam:CreateAccessKey`.
    CreateAccessKey,
    /// `sts:AssumeRole`.
    AssumeRole,
    /// `sts:GetFederationToken`.
    GetFederationToken,
    /// A call that the broker never makes, by its name.
    NeverMade(&'static str),
}

impl TrailOperation {
    /// Returns the operation's name in CloudTrail.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CreateUser => "CreateUser",
            Self::CreateAccessKey => "CreateAccessKey",
            Self::AssumeRole => "AssumeRole",
            Self::GetFederationToken => "GetFederationToken",
            Self::NeverMade(name) => name,
        }
    }

    fn of(source: &str, name: &str) -> Option<Self> {
        match (source, name) {
            ("iam.amazonaws.com", "CreateUser") => Some(Self::CreateUser),
            ("iam.amazonaws.com", "CreateAccessKey") => Some(Self::CreateAccessKey),
            ("sts.amazonaws.com", "AssumeRole") => Some(Self::AssumeRole),
            ("sts.amazonaws.com", "GetFederationToken") => Some(Self::GetFederationToken),
            _ => NEVER_MADE
                .iter()
                .find(|known| **known == (source, name))
                .map(|(_, name)| Self::NeverMade(name)),
        }
    }

    /// Returns the JSON pointer of the created key's id in the response.
    const fn key(self) -> Option<&'static str> {
        match self {
            Self::CreateUser => None,
            Self::CreateAccessKey => Some("/accessKey/accessKeyId"),
            Self::AssumeRole | Self::GetFederationToken | Self::NeverMade(_) => {
                Some("/credentials/accessKeyId")
            }
        }
    }

    /// Returns the JSON pointer of the user or session name in the request.
    const fn name(self) -> &'static str {
        match self {
            Self::CreateUser | Self::CreateAccessKey | Self::NeverMade(_) => "/userName",
            Self::AssumeRole => "/roleSessionName",
            Self::GetFederationToken => "/name",
        }
    }
}

/// A call that created credentials, a user or access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrailCall {
    /// CloudTrail's id of the event.
    pub event_id: String,
    /// Time of the call, to the second.
    pub time: Timestamp,
    /// Operation that was called.
    pub operation: TrailOperation,
    /// ARN of the caller; absent where AWS does not show it to another account.
    pub caller: Option<String>,
    /// Id of the access key that signed the call.
    pub caller_key: Option<String>,
    /// AWS's id of the request.
    pub request_id: Option<String>,
    /// Name of the user or session.
    pub name: Option<String>,
    /// Id of the access key that the call created.
    pub made_key: Option<String>,
}

/// Error of bytes that are no CloudTrail log file.
#[derive(Debug, thiserror::Error)]
#[error("it is no log file of CloudTrail's: {0}")]
pub struct CloudTrailError(#[from] serde_json::Error);

/// Content of the log files read so far.
#[derive(Debug, Default)]
pub struct Trail {
    /// Times of the earliest and the latest event of any kind; `None` without events.
    pub span: Option<(Timestamp, Timestamp)>,
    /// Successful calls, each once: CloudTrail may deliver an event several times.
    pub calls: Vec<TrailCall>,
    known: HashSet<String>,
}

#[derive(Deserialize)]
struct LogFile {
    #[serde(rename = "Records")]
    records: Vec<Record>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    #[serde(deserialize_with = "instant")]
    event_time: Timestamp,
    event_source: String,
    event_name: String,
    #[serde(rename = "eventID")]
    event_id: String,
    #[serde(rename = "requestID")]
    request_id: Option<String>,
    error_code: Option<String>,
    #[serde(default)]
    user_identity: Value,
    #[serde(default)]
    request_parameters: Value,
    #[serde(default)]
    response_elements: Value,
}

fn instant<'a, D: serde::Deserializer<'a>>(text: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(text)?;
    text.parse()
        .map_err(|_| serde::de::Error::custom("an eventTime is no time"))
}

fn text(value: &Value, path: &str) -> Option<String> {
    let text = value.pointer(path)?.as_str()?;
    (!text.is_empty()).then(|| text.to_owned())
}

impl Trail {
    /// Adds a log file: `{"Records": […]}`, decompressed.
    ///
    /// # Errors
    /// The bytes are no CloudTrail log file.
    pub fn read(&mut self, file: &[u8]) -> Result<(), CloudTrailError> {
        let file: LogFile = serde_json::from_slice(file)?;
        for record in file.records {
            let time = record.event_time;
            let (first, last) = self.span.unwrap_or((time, time));
            self.span = Some((first.min(time), last.max(time)));
            if let Some(call) = call(record)
                && self.known.insert(call.event_id.clone())
            {
                self.calls.push(call);
            }
        }
        Ok(())
    }
}

/// Returns the call that the record describes, if the call is of interest and succeeded.
fn call(record: Record) -> Option<TrailCall> {
    let operation = TrailOperation::of(&record.event_source, &record.event_name)?;
    if record.error_code.is_some() {
        return None;
    }
    let answer = &record.response_elements;
    let name = text(&record.request_parameters, operation.name());
    Some(TrailCall {
        event_id: record.event_id,
        time: record.event_time,
        operation,
        caller: text(&record.user_identity, "/arn"),
        caller_key: text(&record.user_identity, "/accessKeyId"),
        request_id: record.request_id,
        // `CreateAccessKey` for the caller's own user may omit `userName` in the request.
        name: name.or_else(|| text(answer, "/accessKey/userName")),
        made_key: operation.key().and_then(|path| text(answer, path)),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(name: &str, more: &Value) -> Value {
        let mut record = json!({
            "eventVersion": "1.08", "eventTime": "2026-01-31T10:00:00Z", "eventID": name,
            "eventSource": "sts.amazonaws.com", "eventName": name, "awsRegion": "us-east-1",
            "userIdentity": {
                "type": "IAMUser", "arn": "arn:aws:iam::111122223333:user/admin",
                "accountId": "111122223333", "accessKeyId": "AKIAADMIN", "userName": "admin",
            },
            "requestID": "r-1", "requestParameters": null, "responseElements": null,
        });
        for (field, value) in more.as_object().unwrap() {
            record[field] = value.clone();
        }
        record
    }

    fn read(records: &[Value]) -> Trail {
        let mut trail = Trail::default();
        let file = json!({ "Records": records }).to_string();
        trail.read(file.as_bytes()).unwrap();
        trail
    }

    #[test]
    fn each_call_tells_whom_it_made_what_for() {
        let records = [
            record(
                "CreateUser",
                &json!({"eventSource": "iam.amazonaws.com", "requestParameters": {"userName": "pay.1"}}),
            ),
            record(
                "CreateAccessKey",
                &json!({"eventSource": "iam.amazonaws.com", "responseElements": {
                    "accessKey": {"accessKeyId": "AKIA1", "userName": "pay.1", "status": "Active"}}}),
            ),
            record(
                "AssumeRole",
                &json!({"requestParameters": {"roleArn": "arn:…", "roleSessionName": "pay.2"},
                    "responseElements": {"credentials": {"accessKeyId": "ASIA2"}}}),
            ),
            record(
                "GetFederationToken",
                &json!({"requestParameters": {"name": "pay.3"},
                    "responseElements": {"credentials": {"accessKeyId": "ASIA3"}}}),
            ),
        ];
        let trail = read(&records);
        let told: Vec<_> = trail
            .calls
            .iter()
            .map(|call| (call.name.as_deref().unwrap(), call.made_key.as_deref()))
            .collect();
        let expected = [
            ("pay.1", None),
            ("pay.1", Some("AKIA1")),
            ("pay.2", Some("ASIA2")),
            ("pay.3", Some("ASIA3")),
        ];
        assert_eq!(told, expected);
        for (call, record) in trail.calls.iter().zip(&records) {
            assert_eq!(call.operation.as_str(), record["eventName"]);
            assert_eq!(call.caller_key.as_deref(), Some("AKIAADMIN"));
            assert_eq!(call.request_id.as_deref(), Some("r-1"));
        }
    }

    #[test]
    fn what_the_broker_never_calls_is_told_by_its_name() {
        let trail = read(&[
            record(
                "GetSessionToken",
                &json!({"responseElements": {"credentials": {"accessKeyId": "ASIA4"}}}),
            ),
            record(
                "CreateLoginProfile",
                &json!({"eventSource": "iam.amazonaws.com", "requestParameters": {"userName": "admin"}}),
            ),
            // The same name from another event source is another call.
            record("CreateLoginProfile", &json!({"eventID": "elsewhere"})),
        ]);
        let told: Vec<_> = trail
            .calls
            .iter()
            .map(|call| {
                let (name, key) = (call.name.as_deref(), call.made_key.as_deref());
                (call.operation.as_str(), name, key)
            })
            .collect();
        let expected = [
            ("GetSessionToken", None, Some("ASIA4")),
            ("CreateLoginProfile", Some("admin"), None),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn what_failed_or_made_nothing_is_no_call_but_counts_for_the_span() {
        let trail = read(&[
            record(
                "AssumeRole",
                &json!({"errorCode": "AccessDenied", "eventTime": "2026-01-31T09:00:00Z"}),
            ),
            record(
                "GetCallerIdentity",
                &json!({"eventTime": "2026-01-31T11:00:00Z"}),
            ),
            record("AssumeRole", &json!({})),
            record("AssumeRole", &json!({})),
        ]);
        assert_eq!(trail.calls.len(), 1);
        let (first, last) = trail.span.unwrap();
        assert_eq!(first.to_string(), "2026-01-31T09:00:00Z");
        assert_eq!(last.to_string(), "2026-01-31T11:00:00Z");
    }

    #[test]
    fn another_file_is_refused() {
        let digest = json!({"awsAccountId": "1", "logFiles": []}).to_string();
        let undated = json!({"Records": [record("AssumeRole", &json!({"eventTime": "now"}))]});
        for text in ["", "{", "[]", &digest, &undated.to_string()] {
            assert!(Trail::default().read(text.as_bytes()).is_err(), "{text}");
        }
    }
}
