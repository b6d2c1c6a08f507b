//! Records as events of the Open Cybersecurity Schema Framework, version 1.3.0: failed logins as
//! Authentication, everything else as API Activity. Log fields without a place in the schema stay
//! under `unmapped`, with their names in the log.
//! <https://schema.ocsf.io/1.3.0/>

use serde_json::{Map, Value, json};

use super::leaf::{LeafError, decode};
use crate::domain::audit::{Actor, AuditEvent, AuditRecord, Event, Outcome};

/// Version of the schema.
const SCHEMA: &str = "1.3.0";
const PRODUCT: &str = "credbroker";

/// A class of events and its category.
struct Class {
    uid: u32,
    name: &'static str,
    category_uid: u32,
    category: &'static str,
    /// Log fields that have a place in this class.
    maps: &'static [&'static str],
}

/// Class of failed logins. <https://schema.ocsf.io/1.3.0/classes/authentication>
const AUTHENTICATION: Class = Class {
    uid: 3002,
    name: "Authentication",
    category_uid: 3,
    category: "Identity & Access Management",
    maps: &["service"],
};

/// Class of all other records. <https://schema.ocsf.io/1.3.0/classes/api_activity>
const API_ACTIVITY: Class = Class {
    uid: 6003,
    name: "API Activity",
    category_uid: 6,
    category: "Application Activity",
    maps: &[
        "method",
        "service",
        "grant",
        "grant_version",
        "lease_id",
        "access_key_id",
        "request_id",
    ],
};

/// Log fields that have a place in every class.
const MAPPED: [&str; 8] = [
    "seq", "time", "event", "actor", "token_id", "peer", "reason", "detail",
];

/// Returns the OCSF event of a record. `bytes` is the record as the log stores it, `log` the name
/// of the log.
///
/// # Errors
/// The bytes are not a record.
pub fn event(bytes: &[u8], log: &str) -> Result<Value, LeafError> {
    let record = decode(bytes)?;
    let mut fields: Map<String, Value> = serde_json::from_slice(bytes)?;
    let is_login = record.event.event == Event::LoginFailed;
    let class = if is_login {
        AUTHENTICATION
    } else {
        API_ACTIVITY
    };
    let mut told = classified(&record.event, &class);
    told.insert("metadata".to_owned(), metadata(&record, &fields, log));
    let more = if is_login {
        login(&record.event)
    } else {
        call(&record.event)
    };
    told.extend(present(more));
    told.extend(present(json!({
        "src_endpoint": source(&record.event),
        "cloud": of_aws(&record.event).then(|| json!({"provider": "AWS"})),
        "message": record.event.detail,
    })));
    fields.retain(|name, _| !MAPPED.contains(&&**name) && !class.maps.contains(&&**name));
    told.insert("unmapped".to_owned(), Value::Object(fields));
    Ok(Value::Object(told))
}

/// Returns the fields of an object that are not null.
fn present(object: Value) -> Map<String, Value> {
    match object {
        Value::Object(fields) => fields.into_iter().filter(|(_, v)| !v.is_null()).collect(),
        _ => Map::new(),
    }
}

fn classified(event: &AuditEvent, class: &Class) -> Map<String, Value> {
    let (activity_id, activity) = activity(event.event);
    let (severity_id, severity) = severity(event.outcome);
    let (status_id, status) = match event.outcome {
        Outcome::Success => (1, "Success"),
        Outcome::Denied | Outcome::Failure => (2, "Failure"),
    };
    present(json!({
        "class_uid": class.uid,
        "class_name": class.name,
        "category_uid": class.category_uid,
        "category_name": class.category,
        "activity_id": activity_id,
        "activity_name": activity,
        "type_uid": class.uid * 100 + activity_id,
        "severity_id": severity_id,
        "severity": severity,
        "status_id": status_id,
        "status": status,
        "status_detail": event.reason,
        "time": event.time.as_millisecond(),
    }))
}

const fn severity(outcome: Outcome) -> (u32, &'static str) {
    match outcome {
        Outcome::Success => (1, "Informational"),
        Outcome::Denied => (2, "Low"),
        Outcome::Failure => (3, "Medium"),
    }
}

/// Returns the activity that matches the event's verb, or activity 99 with the verb as its name.
fn activity(event: Event) -> (u32, &'static str) {
    let name = event.as_str();
    let verb = name.rsplit('.').next().unwrap_or(name);
    match verb {
        _ if event == Event::LoginFailed => (1, "Logon"),
        _ if event == Event::LeaseDenied => (1, "Create"),
        "created" | "requested" | "issued" | "redelivered" | "uncertain" | "imported"
        | "key_made" => (1, "Create"),
        "read" => (2, "Read"),
        "put" | "suspended" | "reinstated" | "renewed" | "resumed" | "replacing" | "kept"
        | "bound" | "rotating" | "switched" | "deactivated" | "rotated" => (3, "Update"),
        "deleted" | "revoking" | "revoked" | "released" | "expired" | "removed" => (4, "Delete"),
        other => (99, other),
    }
}

fn metadata(record: &AuditRecord, fields: &Map<String, Value>, log: &str) -> Value {
    let profiles = of_aws(&record.event).then(|| json!(["cloud"]));
    Value::Object(present(json!({
        "version": SCHEMA,
        "product": {
            "name": PRODUCT,
            "vendor_name": PRODUCT,
            "version": env!("CARGO_PKG_VERSION"),
        },
        "profiles": profiles,
        "log_name": log,
        "uid": record.seq.to_string(),
        "sequence": record.seq,
        "event_code": record.event.event.as_str(),
        "original_time": fields.get("time"),
    })))
}

/// Returns the fields that only a failed login has.
fn login(event: &AuditEvent) -> Value {
    let claimed = event
        .service
        .as_ref()
        .map(|name| Actor::Service(name.clone()));
    json!({
        "user": user(claimed.as_ref().unwrap_or(&event.actor), event),
        "service": {"name": PRODUCT},
        "is_remote": true,
    })
}

/// Returns the fields that only a call has.
fn call(event: &AuditEvent) -> Value {
    let actor = match &event.actor {
        Actor::Broker => json!({"app_name": PRODUCT}),
        caller => json!({"user": user(caller, event)}),
    };
    let operation = event.method.as_deref().unwrap_or(event.event.as_str());
    let request = event
        .request_id
        .as_ref()
        .map(|id| json!({"uid": id.as_str()}));
    let api = json!({"operation": operation, "service": {"name": PRODUCT}, "request": request});
    let resources = resources(event);
    json!({
        "actor": actor,
        "api": present(api),
        "resources": (!resources.is_empty()).then_some(resources),
    })
}

fn user(actor: &Actor, event: &AuditEvent) -> Value {
    let (name, type_id, kind) = match actor {
        Actor::Operator(name) => (name.as_str(), 1, "User"),
        Actor::Service(name) => (name.as_str(), 99, "Service"),
        Actor::Broker => (PRODUCT, 3, "System"),
        Actor::Unknown => ("unknown", 0, "Unknown"),
    };
    Value::Object(present(json!({
        "name": name,
        "type_id": type_id,
        "type": kind,
        "credential_uid": event.token_id.as_ref().map(ToString::to_string),
    })))
}

fn source(event: &AuditEvent) -> Value {
    match (event.peer, &event.actor) {
        (Some(peer), _) => json!({"ip": peer.ip().to_string(), "port": peer.port()}),
        (None, Actor::Broker) => json!({"svc_name": PRODUCT}),
        (None, _) => json!({"name": "unknown"}),
    }
}

fn resources(event: &AuditEvent) -> Vec<Value> {
    let service = event.service.as_ref();
    let grant = event.grant.as_ref();
    let version = event.grant_version.map(|version| version.to_string());
    let lease = event.lease_id.as_ref();
    let key = event.access_key_id.as_ref();
    let named = [
        service.map(|name| json!({"type": "service", "name": name.as_str()})),
        grant.map(|name| json!({"type": "grant", "name": name.to_string(), "version": version})),
        lease.map(|id| json!({"type": "lease", "uid": id.as_str()})),
        key.map(|id| json!({"type": "AWS access key", "uid": id})),
    ];
    let named = named.into_iter().flatten();
    named.map(|one| Value::Object(present(one))).collect()
}

/// Returns whether the event concerns something in AWS.
const fn of_aws(event: &AuditEvent) -> bool {
    event.access_key_id.is_some() || event.aws_request_id.is_some() || event.aws_name.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(leaf: &Value) -> Value {
        event(leaf.to_string().as_bytes(), "credbroker/1").unwrap()
    }

    fn issued() -> Value {
        json!({
            "seq": 7, "time": "2026-01-31T10:00:00.123456Z", "event": "lease.issued",
            "outcome": "success", "actor": "service:pay", "token_id": "abcdefgh234567ab",
            "peer": "[::1]:4711", "method": "credbroker.v1.CredentialService/IssueCredentials",
            "service": "pay", "grant": "pay/work", "grant_version": 3,
            "lease_id": "06h0rl84fpr8t5bmtrtatllllg", "access_key_id": "AKIA1",
            "aws_request_id": "r-1", "detail": "AWS accepted the key after 1.0 s",
            "instance": "01234567", "request_id": "6f1d0c6e-2f0b-4c39-9d2e-5a1c7b9e3f10",
            "kind": "iam_user", "aws_name": "pay.06h0rl84fpr8t5bmtrtatllllg",
            "expires_at": "2026-01-31T11:00:00.000000Z", "permissions": {"policy": "inline"},
        })
    }

    #[test]
    fn an_issue_is_an_api_activity_with_everything_that_the_record_says() {
        let expected = json!({
            "class_uid": 6003, "class_name": "API Activity",
            "category_uid": 6, "category_name": "Application Activity",
            "activity_id": 1, "activity_name": "Create", "type_uid": 600_301,
            "severity_id": 1, "severity": "Informational", "status_id": 1, "status": "Success",
            "time": 1_769_853_600_123_i64,
            "metadata": {
                "version": "1.3.0",
                "product": {"name": "credbroker", "vendor_name": "credbroker", "version": env!("CARGO_PKG_VERSION")},
                "profiles": ["cloud"], "log_name": "credbroker/1", "uid": "7", "sequence": 7,
                "event_code": "lease.issued", "original_time": "2026-01-31T10:00:00.123456Z",
            },
            "actor": {"user": {
                "name": "pay", "type_id": 99, "type": "Service", "credential_uid": "abcdefgh234567ab",
            }},
            "api": {
                "operation": "credbroker.v1.CredentialService/IssueCredentials",
                "service": {"name": "credbroker"},
                "request": {"uid": "6f1d0c6e-2f0b-4c39-9d2e-5a1c7b9e3f10"},
            },
            "resources": [
                {"type": "service", "name": "pay"},
                {"type": "grant", "name": "pay/work", "version": "3"},
                {"type": "lease", "uid": "06h0rl84fpr8t5bmtrtatllllg"},
                {"type": "AWS access key", "uid": "AKIA1"},
            ],
            "src_endpoint": {"ip": "::1", "port": 4711},
            "cloud": {"provider": "AWS"},
            "message": "AWS accepted the key after 1.0 s",
            "unmapped": {
                "outcome": "success", "aws_request_id": "r-1", "instance": "01234567",
                "kind": "iam_user", "aws_name": "pay.06h0rl84fpr8t5bmtrtatllllg",
                "expires_at": "2026-01-31T11:00:00.000000Z", "permissions": {"policy": "inline"},
            },
        });
        assert_eq!(told(&issued()), expected);
    }

    #[test]
    fn a_failed_login_is_an_authentication() {
        let mut leaf = json!({
            "seq": 8, "time": "2026-01-31T10:00:00.000000Z", "event": "login.failed",
            "outcome": "denied", "actor": "unknown", "token_id": "abcdefgh234567ab",
            "peer": "192.0.2.7:4711", "method": "credbroker.v1.AdminService/GetStatus",
            "reason": "TOKEN_EXPIRED",
        });
        let event = told(&leaf);
        for (field, value) in [
            ("class_uid", json!(3002)),
            ("category_uid", json!(3)),
            ("activity_id", json!(1)),
            ("type_uid", json!(300_201)),
            ("status_id", json!(2)),
            ("status_detail", json!("TOKEN_EXPIRED")),
            ("severity_id", json!(2)),
            ("service", json!({"name": "credbroker"})),
        ] {
            assert_eq!(event[field], value, "{field}");
        }
        assert_eq!(event["user"]["name"], "unknown");
        assert_eq!(event["user"]["credential_uid"], "abcdefgh234567ab");
        assert_eq!(event["unmapped"]["method"], leaf["method"]);
        assert_eq!(event["cloud"], Value::Null);
        assert_eq!(event["metadata"]["profiles"], Value::Null);
        leaf["service"] = "pay".into();
        assert_eq!(told(&leaf)["user"]["name"], "pay");
    }

    #[test]
    fn what_the_broker_does_by_itself_has_what_the_class_requires() {
        let leaf = json!({
            "seq": 9, "time": "2026-01-31T10:00:00.000000Z", "event": "lease.postponed",
            "outcome": "failure", "actor": "broker", "reason": "AWS_DOES_NOT_ANSWER",
        });
        let event = told(&leaf);
        assert_eq!(event["actor"], json!({"app_name": "credbroker"}));
        assert_eq!(event["src_endpoint"], json!({"svc_name": "credbroker"}));
        assert_eq!(event["api"]["operation"], "lease.postponed");
        assert_eq!(event["activity_id"], 99);
        assert_eq!(event["activity_name"], "postponed");
        assert_eq!(event["type_uid"], 600_399);
        assert_eq!(event["severity_id"], 3);
        assert_eq!(event["resources"], Value::Null);
    }

    #[test]
    fn every_event_has_an_activity_and_each_verb_of_change_its_own() {
        let id = |name: &&str| activity(name.parse().unwrap()).0;
        let others: Vec<_> = Event::NAMES.iter().filter(|name| id(name) == 99).collect();
        for name in &others {
            let verb = name.rsplit('.').next().unwrap();
            let known = ["created", "read", "put", "deleted", "revoked", "issued"];
            assert!(!known.contains(&verb), "{name}");
        }
        for (name, expected) in [
            ("login.failed", 1),
            ("service.created", 1),
            ("lease.denied", 1),
            ("request.denied", 99),
            ("audit.read", 2),
            ("grant.put", 3),
            ("orphan.removed", 4),
            ("log.heartbeat", 99),
        ] {
            assert_eq!(id(&name), expected, "{name}");
        }
    }

    #[test]
    fn what_is_no_record_is_refused() {
        assert!(event(b"{}", "credbroker/1").is_err());
        assert!(event(b"", "credbroker/1").is_err());
    }
}
