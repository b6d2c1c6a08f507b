//! Comparison of the log with CloudTrail. Everything that AWS created for the broker's principal
//! must be in the log, and everything that the log records as created must be in CloudTrail. A
//! difference exposes use of an admin key outside the broker, or a changed log.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    str::FromStr,
};

use jiff::{SignedDuration, Timestamp};

use super::cloudtrail::{Trail, TrailCall, TrailOperation};
use crate::domain::{
    audit::{AuditRecord, Event, Outcome},
    lease::CONSISTENCY_WINDOW,
};

/// Longest delay of CloudTrail's deliveries, and the time by which the compared part of the log
/// exceeds the trail at both ends.
/// <https://docs.aws.amazon.com/awscloudtrail/latest/userguide/get-and-view-cloudtrail-log-files.html>
pub const SLACK: SignedDuration = SignedDuration::from_mins(15);

/// A principal in AWS: an IAM user, the root user, or a role in any of its sessions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CallPrincipal(String);

/// Error of a text that is no [`CallPrincipal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is no ARN of an IAM user or role, like arn:aws:iam::111122223333:user/credbroker-admin"
)]
pub struct PrincipalError;

impl FromStr for CallPrincipal {
    type Err = PrincipalError;

    /// Parses the ARN of a user, the root user, a role, or a session of a role.
    fn from_str(arn: &str) -> Result<Self, PrincipalError> {
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let [
            "arn",
            partition,
            service @ ("iam" | "sts"),
            "",
            account,
            name,
        ] = parts[..]
        else {
            return Err(PrincipalError);
        };
        let role = match name.split_once('/') {
            Some(("role", role)) => role.rsplit('/').next(),
            Some(("assumed-role", session)) => session.split('/').next(),
            Some(("user", _)) => None,
            _ if name == "root" => None,
            _ => return Err(PrincipalError),
        };
        Ok(Self(match role {
            Some(role) => format!("arn:{partition}:sts::{account}:assumed-role/{role}"),
            None => format!("arn:{partition}:{service}::{account}:{name}"),
        }))
    }
}

impl fmt::Display for CallPrincipal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A record, as far as the comparison needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Sequence number.
    pub seq: u64,
    /// Time by the broker's clock.
    pub time: Timestamp,
    /// Event of the record.
    pub event: Event,
    /// True if the outcome is success.
    pub succeeded: bool,
    /// Id of the access key concerned.
    pub access_key_id: Option<String>,
    /// AWS's id of the request.
    pub aws_request_id: Option<String>,
    /// Name of the user or session.
    pub aws_name: Option<String>,
    /// Further text.
    pub detail: Option<String>,
}

impl Entry {
    /// Returns whether the comparison uses this record.
    #[must_use]
    pub fn counts(&self) -> bool {
        self.aws_request_id.is_some() || self.asks() || self.hands_out() || self.is_of_admin_key()
    }

    /// Returns whether the broker is about to ask AWS to create something under the record's name.
    const fn asks(&self) -> bool {
        let event = self.event;
        matches!(
            event,
            Event::LeaseRequested
                | Event::LeaseResumed
                | Event::LeaseReplacing
                | Event::CanaryRequested
        )
    }

    /// Returns whether AWS has created the access key of a lease or of a session of the broker's
    /// own.
    const fn hands_out(&self) -> bool {
        let event = self.event;
        self.succeeded
            && matches!(
                event,
                Event::LeaseIssued
                    | Event::LeaseRedelivered
                    | Event::CanaryIssued
                    | Event::AccountEntered
            )
    }

    /// Returns whether the access key is an admin key of the broker from this record on.
    const fn is_of_admin_key(&self) -> bool {
        let event = self.event;
        self.succeeded
            && matches!(
                event,
                Event::AdminKeyImported | Event::AdminKeyCreated | Event::AdminKeySwitched
            )
    }

    /// Returns the ids of the access keys that AWS has created for the broker by this record.
    fn made_keys(&self) -> Vec<&str> {
        match (self.event, &self.detail) {
            _ if self.hands_out() => self.access_key_id.as_deref().into_iter().collect(),
            // The record's access key id is the previous key; the detail contains the new one.
            (Event::AdminKeyCreated, Some(words)) => words.split([' ', ',']).collect(),
            _ => Vec::new(),
        }
    }
}

impl From<AuditRecord> for Entry {
    fn from(record: AuditRecord) -> Self {
        let event = record.event;
        Self {
            seq: record.seq,
            time: event.time,
            event: event.event,
            succeeded: event.outcome == Outcome::Success,
            access_key_id: event.access_key_id,
            aws_request_id: event.aws_request_id,
            aws_name: event.aws_name,
            detail: event.detail,
        }
    }
}

/// A difference between the log and CloudTrail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A call by the broker's principal that no record mentions.
    UnrecordedCall(TrailCall),
    /// A record of created credentials that CloudTrail does not show.
    UnseenRecord(Entry),
}

/// Result of the comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Number of calls by the broker's principal.
    pub checked_calls: usize,
    /// Number of records that were searched for in CloudTrail.
    pub checked_records: usize,
    /// Differences, sorted by time.
    pub findings: Vec<Finding>,
}

/// Error: neither the caller nor the log identifies the broker's principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no principal of the broker is known: neither the log nor the command line names one")]
pub struct UnknownPrincipal;

/// Compares a trail with the records of its time span, extended by [`SLACK`]. The broker's
/// principals are the given ones, those that sign with an admin key in the records, and those that
/// created a key which the records show as issued.
///
/// # Errors
/// None of these identifies a principal.
pub fn reconcile(
    trail: &Trail,
    entries: &[Entry],
    given: &[CallPrincipal],
) -> Result<Reconciled, UnknownPrincipal> {
    let known = RecordIndex::new(entries);
    let own = OwnPrincipals::new(trail, &known, entries, given)?;
    let calls: Vec<&TrailCall> = trail.calls.iter().filter(|call| own.made(call)).collect();
    let sought = sought(trail, entries);
    let seen = SeenCall::new(trail);
    let unrecorded = calls.iter().filter(|call| !known.tells_of(call));
    let unseen = sought.iter().filter(|entry| !seen.shows(entry));
    let mut findings: Vec<Finding> = unrecorded
        .map(|call| Finding::UnrecordedCall((*call).clone()))
        .chain(unseen.map(|entry| Finding::UnseenRecord((*entry).clone())))
        .collect();
    findings.sort_by_key(|finding| match finding {
        Finding::UnrecordedCall(call) => call.time,
        Finding::UnseenRecord(entry) => entry.time,
    });
    Ok(Reconciled {
        checked_calls: calls.len(),
        checked_records: sought.len(),
        findings,
    })
}

/// Returns the records that CloudTrail must show: at least [`SLACK`] away from the trail's ends.
fn sought<'a>(trail: &Trail, entries: &'a [Entry]) -> Vec<&'a Entry> {
    let Some((first, last)) = trail.span else {
        return Vec::new();
    };
    let within =
        |time: Timestamp| time.duration_since(first) >= SLACK && last.duration_since(time) >= SLACK;
    let sought = |entry: &&Entry| entry.hands_out() && within(entry.time);
    entries.iter().filter(sought).collect()
}

/// Calls to AWS that the log knows.
struct RecordIndex<'a> {
    keys: HashSet<&'a str>,
    requests: HashSet<&'a str>,
    /// Times at which the broker was about to create something, by its name in AWS.
    asked: HashMap<&'a str, Vec<Timestamp>>,
}

impl<'a> RecordIndex<'a> {
    fn new(entries: &'a [Entry]) -> Self {
        let mut asked: HashMap<&str, Vec<Timestamp>> = HashMap::new();
        for entry in entries.iter().filter(|entry| entry.asks()) {
            if let Some(name) = &entry.aws_name {
                asked.entry(name).or_default().push(entry.time);
            }
        }
        let requests = entries.iter().filter_map(|e| e.aws_request_id.as_deref());
        Self {
            keys: entries.iter().flat_map(Entry::made_keys).collect(),
            requests: requests.collect(),
            asked,
        }
    }

    fn tells_of(&self, call: &TrailCall) -> bool {
        let is_in = |set: &HashSet<&str>, id: &Option<String>| {
            id.as_deref().is_some_and(|id| set.contains(id))
        };
        let is_the_brokers = !matches!(call.operation, TrailOperation::NeverMade(_));
        is_the_brokers
            && (is_in(&self.keys, &call.made_key)
                || is_in(&self.requests, &call.request_id)
                || self.may_be_lost(call))
    }

    /// Returns whether this may be a call of the broker whose answer was lost. The log then has
    /// only the name, so the call must be close to the time at which the broker was asking.
    fn may_be_lost(&self, call: &TrailCall) -> bool {
        let name = call.name.as_deref();
        let asked = name.and_then(|name| self.asked.get(name));
        asked.is_some_and(|times| {
            let near = |at: &Timestamp| call.time.duration_since(*at).abs() <= CONSISTENCY_WINDOW;
            times.iter().any(near)
        })
    }
}

/// Keys and request ids of all calls in CloudTrail, by any principal.
struct SeenCall<'a> {
    keys: HashSet<&'a str>,
    requests: HashSet<&'a str>,
}

impl<'a> SeenCall<'a> {
    fn new(trail: &'a Trail) -> Self {
        let calls = || trail.calls.iter();
        Self {
            keys: calls().filter_map(|c| c.made_key.as_deref()).collect(),
            requests: calls().filter_map(|c| c.request_id.as_deref()).collect(),
        }
    }

    fn shows(&self, entry: &Entry) -> bool {
        let key = entry.access_key_id.as_deref();
        let request = entry.aws_request_id.as_deref();
        key.is_some_and(|id| self.keys.contains(id))
            || request.is_some_and(|id| self.requests.contains(id))
    }
}

/// Identity of the broker in CloudTrail.
struct OwnPrincipals<'a> {
    principals: HashSet<CallPrincipal>,
    keys: HashSet<&'a str>,
}

impl<'a> OwnPrincipals<'a> {
    fn new(
        trail: &Trail,
        known: &RecordIndex<'_>,
        entries: &'a [Entry],
        given: &[CallPrincipal],
    ) -> Result<Self, UnknownPrincipal> {
        let admin = entries.iter().filter(|entry| entry.is_of_admin_key());
        let mut own = Self {
            principals: given.iter().cloned().collect(),
            keys: admin.filter_map(|e| e.access_key_id.as_deref()).collect(),
        };
        let made = |call: &&TrailCall| {
            let made = call.made_key.as_deref();
            own.signed(call) || made.is_some_and(|id| known.keys.contains(id))
        };
        let makers = trail.calls.iter().filter(made).filter_map(principal);
        let makers: Vec<CallPrincipal> = makers.collect();
        own.principals.extend(makers);
        let nobody = own.principals.is_empty() && own.keys.is_empty();
        (!nobody).then_some(own).ok_or(UnknownPrincipal)
    }

    fn signed(&self, call: &TrailCall) -> bool {
        let signer = call.caller_key.as_deref();
        signer.is_some_and(|id| self.keys.contains(id))
    }

    fn made(&self, call: &TrailCall) -> bool {
        self.signed(call) || principal(call).is_some_and(|who| self.principals.contains(&who))
    }
}

fn principal(call: &TrailCall) -> Option<CallPrincipal> {
    call.caller.as_ref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADMIN: &str = "arn:aws:iam::111122223333:user/admin";

    fn at(minutes: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes)
    }

    fn call(operation: TrailOperation, name: &str, key: &str, minutes: i64) -> TrailCall {
        TrailCall {
            event_id: format!("{name}/{key}"),
            time: at(minutes),
            operation,
            caller: Some(ADMIN.to_owned()),
            caller_key: Some("AKIAADMIN".to_owned()),
            request_id: None,
            name: Some(name.to_owned()),
            made_key: (!key.is_empty()).then(|| key.to_owned()),
        }
    }

    fn entry(event: Event, name: &str, key: &str, minutes: i64) -> Entry {
        Entry {
            seq: 1,
            time: at(minutes),
            event,
            succeeded: true,
            access_key_id: (!key.is_empty()).then(|| key.to_owned()),
            aws_request_id: None,
            aws_name: (!name.is_empty()).then(|| name.to_owned()),
            detail: None,
        }
    }

    /// Returns a trail from minute 0 to minute 120.
    fn trail(calls: Vec<TrailCall>) -> Trail {
        let mut trail = Trail::default();
        trail.calls = calls;
        trail.span = Some((at(0), at(120)));
        trail
    }

    fn given() -> [CallPrincipal; 1] {
        [ADMIN.parse().unwrap()]
    }

    fn found(calls: Vec<TrailCall>, entries: &[Entry]) -> Vec<String> {
        let reconciled = reconcile(&trail(calls), entries, &given()).unwrap();
        let told = |finding: &Finding| match finding {
            Finding::UnrecordedCall(call) => format!("call {}", call.event_id),
            Finding::UnseenRecord(entry) => format!("record {:?}", entry.access_key_id),
        };
        reconciled.findings.iter().map(told).collect()
    }

    #[test]
    fn an_issued_user_matches_its_two_calls_in_both_directions() {
        let calls = vec![
            call(TrailOperation::CreateUser, "pay.1", "", 60),
            call(TrailOperation::CreateAccessKey, "pay.1", "AKIA1", 60),
        ];
        let entries = [
            entry(Event::LeaseRequested, "pay.1", "", 60),
            entry(Event::LeaseIssued, "pay.1", "AKIA1", 60),
        ];
        let reconciled = reconcile(&trail(calls.clone()), &entries, &given()).unwrap();
        let expected = Reconciled {
            checked_calls: 2,
            checked_records: 1,
            findings: Vec::new(),
        };
        assert_eq!(reconciled, expected);
        assert_eq!(
            found(calls, &entries[1..]),
            ["call pay.1/"],
            "without its intent"
        );
        assert_eq!(found(vec![], &entries), ["record Some(\"AKIA1\")"]);
    }

    #[test]
    fn a_name_vouches_for_a_call_only_while_the_broker_was_asking() {
        let entries = [
            entry(Event::LeaseRequested, "pay.1", "", 60),
            entry(Event::LeaseIssued, "pay.1", "ASIA1", 60),
        ];
        let issued = call(TrailOperation::AssumeRole, "pay.1", "ASIA1", 60);
        let lost = call(TrailOperation::AssumeRole, "pay.1", "ASIA2", 62);
        let beside = call(TrailOperation::AssumeRole, "pay.1", "ASIA3", 70);
        assert_eq!(
            found(vec![issued, lost, beside], &entries),
            ["call pay.1/ASIA3"]
        );
    }

    #[test]
    fn a_request_id_vouches_for_a_call() {
        let mut asked = call(TrailOperation::GetFederationToken, "other", "ASIA1", 60);
        asked.request_id = Some("r-1".to_owned());
        let mut uncertain = entry(Event::LeaseUncertain, "pay.1", "", 60);
        uncertain.aws_request_id = Some("r-1".to_owned());
        assert!(uncertain.counts());
        assert_eq!(
            found(vec![asked.clone()], &[uncertain]),
            Vec::<String>::new()
        );
        assert_eq!(found(vec![asked], &[]), ["call other/ASIA1"]);
    }

    #[test]
    fn nothing_vouches_for_a_call_that_the_broker_never_makes() {
        let mut stolen = call(
            TrailOperation::NeverMade("GetSessionToken"),
            "pay.1",
            "ASIA1",
            60,
        );
        stolen.request_id = Some("r-1".to_owned());
        let mut issued = entry(Event::LeaseIssued, "pay.1", "ASIA1", 60);
        issued.aws_request_id = Some("r-1".to_owned());
        let entries = [entry(Event::LeaseRequested, "pay.1", "", 60), issued];
        assert_eq!(found(vec![stolen], &entries), ["call pay.1/ASIA1"]);
    }

    #[test]
    fn the_admin_keys_own_rotation_matches_by_the_key_that_it_made() {
        let mut created = entry(Event::AdminKeyCreated, "", "AKIAADMIN", 60);
        created.detail = Some("proving; other key: AKIANEW".to_owned());
        let rotated = call(TrailOperation::CreateAccessKey, "admin", "AKIANEW", 60);
        let beside = call(TrailOperation::CreateAccessKey, "admin", "AKIATHIRD", 61);
        // Records of a key's import or removal do not prove who created the key.
        let imported = entry(Event::AdminKeyImported, "", "AKIATHIRD", 62);
        let mut removed = entry(Event::KeyRemoved, "pay.1", "AKIA1", 62);
        removed.detail = Some("key AKIATHIRD of user admin: no lease knows it".to_owned());
        assert!(!removed.counts());
        assert_eq!(
            found(vec![rotated, beside], &[created, imported, removed]),
            ["call admin/AKIATHIRD"]
        );
    }

    #[test]
    fn records_near_the_ends_of_the_trail_are_not_sought() {
        let issued =
            [14, 15, 105, 106].map(|minutes| entry(Event::LeaseIssued, "pay.1", "ASIA1", minutes));
        let reconciled = reconcile(&trail(vec![]), &issued, &given()).unwrap();
        assert_eq!(reconciled.checked_records, 2);
        assert_eq!(reconciled.findings.len(), 2);
        let failed = Entry {
            succeeded: false,
            ..issued[1].clone()
        };
        assert_eq!(found(vec![], &[failed]), Vec::<String>::new());
    }

    #[test]
    fn others_calls_are_not_the_brokers() {
        let mut foreign = call(TrailOperation::AssumeRole, "ci", "ASIA9", 60);
        foreign.caller = Some("arn:aws:iam::111122223333:user/ci".to_owned());
        foreign.caller_key = Some("AKIACI".to_owned());
        let mut unnamed = foreign.clone();
        unnamed.caller = None;
        let reconciled = reconcile(&trail(vec![foreign, unnamed]), &[], &given()).unwrap();
        assert_eq!(reconciled, Reconciled::default());
    }

    #[test]
    fn who_the_broker_is_follows_from_what_the_log_says_was_made() {
        let issued = call(TrailOperation::AssumeRole, "pay.1", "ASIA1", 60);
        let mut beside = call(TrailOperation::CreateUser, "mallory", "", 61);
        beside.caller_key = Some("AKIASECOND".to_owned());
        let entries = [entry(Event::LeaseIssued, "pay.1", "ASIA1", 60)];
        let both = trail(vec![issued.clone(), beside.clone()]);
        let reconciled = reconcile(&both, &entries, &[]).unwrap();
        assert_eq!(
            reconciled.findings,
            [Finding::UnrecordedCall(beside.clone())]
        );
        // An admin key in the records identifies the broker too.
        let named = [entry(Event::AdminKeySwitched, "", "AKIASECOND", 0)];
        let reconciled = reconcile(&trail(vec![beside.clone()]), &named, &[]).unwrap();
        assert_eq!(
            reconciled.findings,
            [Finding::UnrecordedCall(beside.clone())]
        );
        assert_eq!(reconcile(&both, &[], &[]), Err(UnknownPrincipal));
    }

    #[test]
    fn a_role_is_the_same_by_every_session_and_spelling() {
        let role = "arn:aws:sts::111122223333:assumed-role/broker";
        for arn in [
            role,
            "arn:aws:sts::111122223333:assumed-role/broker/i-0abc",
            "arn:aws:iam::111122223333:role/path/broker",
        ] {
            assert_eq!(arn.parse::<CallPrincipal>().unwrap().to_string(), role);
        }
        assert_eq!(ADMIN.parse::<CallPrincipal>().unwrap().to_string(), ADMIN);
        for arn in [
            "",
            "admin",
            "arn:aws:s3:::bucket",
            "arn:aws:iam::1:group/admins",
        ] {
            assert_eq!(arn.parse::<CallPrincipal>(), Err(PrincipalError), "{arn}");
        }
    }
}
