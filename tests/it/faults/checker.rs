//! One checker for every story of faults: the store, AWS and the clients' observations must agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use aho_corasick::AhoCorasick;
use credbroker::audit::{
    leaf,
    tree::{Frontier, leaf_hash},
};
use jiff::Timestamp;
use serde_json::Value;
use sqlx::{Any, AnyConnection, Connection, Row, Transaction, any::AnyRow};

use crate::harness::{Account, Key, aws::ADMIN_USER, stored::Stored};

/// A credential that a client has seen.
#[derive(Clone, Debug)]
pub struct Seen {
    pub lease_id: String,
    /// Id of the client's request that this credential answered.
    pub request_id: Option<String>,
    pub key: Key,
}

struct Recorded {
    lease_id: String,
    kind: String,
    state: String,
    cause: Option<String>,
    aws_name: String,
    access_key_id: Option<String>,
    key_lost: bool,
    told_vanished: bool,
    request_id: Option<String>,
}

impl Recorded {
    /// Returns whether the lease was revoked.
    fn is_revoked(&self) -> bool {
        let cause = self.cause.as_deref().unwrap_or_default();
        cause.starts_with("revoked")
    }
}

/// Checker of the state after recovery.
pub struct Checker<'a> {
    pub account: &'a Account,
    pub stored: &'a Stored,
    /// Directory of the broker's files.
    pub home: &'a Path,
    /// Log of the broker, which must not contain a secret either.
    pub log: String,
    /// True if the broker stores its own key.
    pub keeps_key: bool,
    /// True if the test has made users with the broker's tags.
    pub strays: bool,
    /// Number of times that AWS may have been late with a policy of denials for a dead broker, or
    /// that a stopped broker continued to write one.
    pub late: usize,
}

impl Checker<'_> {
    /// Returns all violations, a sentence each.
    pub async fn violations(&self, seen: &[Seen]) -> Vec<String> {
        let mut store = self.stored.connect().await;
        let mut moment = snapshot(&mut store).await;
        let (leases, denials) = (leases(&mut moment).await, denials(&mut moment).await);
        moment.rollback().await.unwrap();
        let mut wrong = Vec::new();
        nothing_is_half_done(&leases, &denials, &mut wrong);
        every_credential_is_recorded(&mut store, seen, &mut wrong).await;
        a_request_has_one_lease(&leases, seen, &mut wrong);
        self.users_are_live_leases(&leases, &mut wrong).await;
        self.only_what_is_recorded_works(&leases, seen, &mut wrong)
            .await;
        sessions_are_served_while_they_are_live(&leases, seen, &mut wrong).await;
        self.denials_are_those_of_the_store(&denials, &mut wrong)
            .await;
        self.the_admin_key_is_one(&mut store, &mut wrong).await;
        self.no_secret_is_kept(seen, &mut wrong).await;
        the_log_is_its_tree(&mut store, &mut wrong).await;
        if !self.strays {
            self.nothing_had_to_be_found(&mut store, &mut wrong).await;
        }
        wrong
    }

    /// Checks that users under the path equal live leases; each has the recorded key and no other,
    /// or none if the broker knows that it is gone.
    async fn users_are_live_leases(&self, leases: &[Recorded], wrong: &mut Vec<String>) {
        let live: BTreeMap<&str, &Recorded> = leases
            .iter()
            .filter(|lease| lease.kind == "iam_user" && lease.state == "active")
            .map(|lease| (lease.aws_name.as_str(), lease))
            .collect();
        let users: BTreeSet<String> = self.account.issued_users().await.into_iter().collect();
        for user in &users {
            if !live.contains_key(user.as_str()) {
                wrong.push(format!("user {user} is there and in no live lease"));
            }
        }
        for (user, lease) in live {
            if !users.contains(user) {
                wrong.push(format!("user {user} is in a live lease and not there"));
                continue;
            }
            let keys = self.account.keys_of(user).await;
            let told_missing = lease.key_lost || lease.told_vanished;
            let recorded: Vec<String> = lease.access_key_id.iter().cloned().collect();
            if keys != recorded && !(keys.is_empty() && told_missing) {
                wrong.push(format!(
                    "user {user} has keys {keys:?}, recorded is {recorded:?}"
                ));
            }
        }
    }

    /// Checks that AWS refuses users' ended or replaced keys, so that one request has at most one
    /// live key.
    async fn only_what_is_recorded_works(
        &self,
        leases: &[Recorded],
        seen: &[Seen],
        wrong: &mut Vec<String>,
    ) {
        for seen in seen.iter().filter(|seen| seen.key.token.is_none()) {
            let lease = leases.iter().find(|lease| lease.lease_id == seen.lease_id);
            let recorded = lease.is_some_and(|lease| {
                lease.state == "active" && lease.access_key_id.as_ref() == Some(&seen.key.id)
            });
            if !recorded && seen.key.works().await {
                let (key, lease) = (&seen.key.id, &seen.lease_id);
                wrong.push(format!("key {key} of lease {lease} works and should not"));
            }
        }
    }

    /// Checks that every statement in AWS is about sessions of a row, and that every row has a
    /// statement there that reaches its cutoff.
    async fn denials_are_those_of_the_store(&self, denials: &[Denied], wrong: &mut Vec<String>) {
        let stand: Vec<Clause> = self
            .account
            .denials()
            .await
            .iter()
            .flat_map(clauses)
            .collect();
        for clause in &stand {
            if !denials.iter().any(|row| row.is_for(clause)) {
                wrong.push(format!("{clause:?} stands in AWS and in no denial"));
            }
        }
        for row in denials {
            if !stand.iter().any(|clause| row.is_met_by(clause)) {
                wrong.push(format!(
                    "{row:?} does not stand in AWS, where there is {stand:?}"
                ));
            }
        }
    }

    /// Checks that every half-made user was known by its lease: reconciliation found no orphan. The
    /// broker's own half-done denials were not taken for foreign changes, unless AWS was late with
    /// them.
    async fn nothing_had_to_be_found(&self, store: &mut AnyConnection, wrong: &mut Vec<String>) {
        let orphans = "SELECT count(*) FROM audit WHERE event = 'orphan.removed'";
        let orphans = sqlx::query_scalar(orphans).fetch_one(&mut *store).await;
        let orphans: i64 = orphans.unwrap();
        if orphans > 0 {
            wrong.push(format!("{orphans} users were known by no lease"));
        }
        let repaired = "SELECT leaf FROM audit WHERE event = 'denial.repaired'";
        let repaired = sqlx::query_scalar(repaired).fetch_all(store).await;
        let detail = |leaf: &Vec<u8>| leaf::decode(leaf).unwrap().event.detail.unwrap_or_default();
        let repaired: Vec<String> = repaired.unwrap().iter().map(detail).collect();
        let is_late = |told: &&String| told.contains("AWS applied an earlier write");
        let late = repaired.iter().filter(is_late).count();
        if late < repaired.len() || late > self.late {
            wrong.push(format!(
                "AWS was late {} times, and denials were repaired: {repaired:?}",
                self.late
            ));
        }
    }

    /// Checks that the broker's user has one key, the one that the broker stores.
    async fn the_admin_key_is_one(&self, store: &mut AnyConnection, wrong: &mut Vec<String>) {
        if !self.keeps_key {
            return;
        }
        let row = sqlx::query("SELECT key_id, phase FROM admin_key");
        let row = row.fetch_one(store).await.unwrap();
        let (key, phase): (String, String) = (row.get("key_id"), row.get("phase"));
        if phase != "steady" {
            wrong.push(format!("the admin key is {phase}"));
        }
        let keys = self.account.keys_of(ADMIN_USER).await;
        if keys != [key.clone()] {
            wrong.push(format!(
                "the broker's user has keys {keys:?}, the broker keeps {key}"
            ));
        }
    }

    /// Checks that no secret is stored: every secret that was handed out, and the broker's first.
    async fn no_secret_is_kept(&self, seen: &[Seen], wrong: &mut Vec<String>) {
        let mut kept = vec![
            ("log".to_owned(), self.log.clone().into_bytes()),
            ("store".to_owned(), self.stored.rows().await),
        ];
        for file in std::fs::read_dir(self.home).unwrap() {
            let path = file.unwrap().path();
            kept.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
        let of = |key: &Key| [Some(key.secret.clone()), key.token.clone()];
        let secrets = seen.iter().flat_map(|seen| of(&seen.key)).flatten();
        // One search for all: a search for each would delay every broker of this process.
        let secrets = AhoCorasick::new(secrets.chain([self.account.admin.secret.clone()]));
        let secrets = secrets.unwrap();
        for (place, bytes) in kept {
            if secrets.is_match(&bytes) {
                wrong.push(format!("a secret stands in {place}"));
            }
        }
    }
}

async fn leases(store: &mut AnyConnection) -> Vec<Recorded> {
    let rows = sqlx::query(
        "SELECT *, CAST(key_lost AS INTEGER) AS lost,
                CAST(EXISTS (SELECT 1 FROM audit WHERE audit.lease_id = leases.lease_id
                             AND event = 'lease.vanished') AS INTEGER) AS told_vanished FROM leases",
    )
    .fetch_all(store)
    .await;
    let row = |row: &AnyRow| Recorded {
        lease_id: row.get("lease_id"),
        kind: row.get("kind"),
        state: row.get("state"),
        cause: row.get("cause"),
        aws_name: row.get("aws_name"),
        access_key_id: row.get("access_key_id"),
        key_lost: row.get::<i64, _>("lost") != 0,
        told_vanished: row.get::<i64, _>("told_vanished") != 0,
        request_id: row.get("request_id"),
    };
    rows.unwrap().iter().map(row).collect()
}

/// A denial in the store.
#[derive(Debug)]
struct Denied {
    service: String,
    holder: String,
    scope: String,
    issued_before: Timestamp,
    is_refused: bool,
    failure: Option<String>,
}

impl Denied {
    /// Returns whether a statement in AWS is the one that this denial puts there.
    fn is_for(&self, clause: &Clause) -> bool {
        let names = match self.scope.strip_prefix("lease ") {
            // A federated user's name contains the end of the lease's id.
            Some(lease) => clause.lease.len() > 9 && lease.ends_with(&clause.lease),
            None => clause.lease == "*",
        };
        names && self.is_within(clause)
    }

    /// Returns whether a statement in AWS is about this denial's sessions, or may be.
    fn is_within(&self, clause: &Clause) -> bool {
        self.holder == clause.holder && self.service == clause.service
    }

    /// Returns whether a statement in AWS denies all sessions of this denial.
    fn is_met_by(&self, clause: &Clause) -> bool {
        let whole = clause.lease == "*" && self.is_within(clause);
        let moment = clause.before.unwrap_or(Timestamp::MAX);
        (whole || self.is_for(clause)) && self.issued_before <= moment
    }

    /// Returns whether no canary can prove the denial: the canary would be one of the service's
    /// newer sessions. The denial holds, and is never seen to.
    fn cannot_be_seen(&self) -> bool {
        let failure = self.failure.as_deref().unwrap_or_default();
        failure.contains("new sessions since")
    }
}

async fn denials(store: &mut AnyConnection) -> Vec<Denied> {
    let rows = sqlx::query("SELECT * FROM denials").fetch_all(store).await;
    let row = |row: &AnyRow| Denied {
        service: row.get("service"),
        holder: row.get("holder"),
        scope: row.get("scope"),
        issued_before: Timestamp::from_microsecond(row.get("issued_before")).unwrap(),
        is_refused: row.get::<Option<i64>, _>("refused_at").is_some(),
        failure: row.get("failure"),
    };
    rows.unwrap().iter().map(row).collect()
}

/// Sessions that a statement in AWS names, and the cutoff before which it denies them.
#[derive(Debug)]
struct Clause {
    holder: String,
    service: String,
    /// Rest of the sessions' names, or `*`.
    lease: String,
    /// Cutoff; `None` for all sessions.
    before: Option<Timestamp>,
}

fn clauses((holder, document): &(String, Value)) -> Vec<Clause> {
    let mut found = Vec::new();
    for statement in document["Statement"].as_array().unwrap() {
        assert_eq!(statement["Effect"], "Deny", "{document}");
        let condition = &statement["Condition"];
        let before = condition.get("DateLessThan");
        let before = before.map(|before| texts(&before["aws:TokenIssueTime"]).remove(0));
        let before = before.map(|before| before.parse().unwrap());
        let sessions = &condition["StringLike"]["aws:userid"];
        for sessions in texts(sessions) {
            let named = sessions.strip_prefix("*:").unwrap();
            let (service, lease) = named.split_once('.').unwrap();
            found.push(Clause {
                holder: holder.clone(),
                service: service.to_owned(),
                lease: lease.to_owned(),
                before,
            });
        }
    }
    found
}

/// Returns one text, or a list of them, as a list.
fn texts(value: &Value) -> Vec<String> {
    let many = value.as_array().cloned();
    let all = many.unwrap_or_else(|| vec![value.clone()]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    all.iter().map(text).collect()
}

/// Checks that a released session waits for AWS, and that a revoked one is denied, and seen to be
/// if possible.
fn nothing_is_half_done(leases: &[Recorded], denials: &[Denied], wrong: &mut Vec<String>) {
    for denial in denials {
        if !denial.is_refused && !denial.cannot_be_seen() {
            wrong.push(format!("{denial:?} is still open"));
        }
    }
    let unseen: BTreeSet<&str> = denials
        .iter()
        .filter(|denial| denial.cannot_be_seen())
        .map(|denial| denial.service.as_str())
        .collect();
    for lease in leases {
        let (service, _) = lease.aws_name.split_once('.').unwrap();
        let waits = lease.state == "revoking"
            && lease.kind != "iam_user"
            && (!lease.is_revoked() || unseen.contains(service));
        let done = ["active", "revoked", "expired"].contains(&lease.state.as_str());
        if !done && !waits {
            wrong.push(format!("lease {} is still {}", lease.lease_id, lease.state));
        }
    }
}

/// Checks that AWS serves the sessions of live leases, and of no revoked one.
async fn sessions_are_served_while_they_are_live(
    leases: &[Recorded],
    seen: &[Seen],
    wrong: &mut Vec<String>,
) {
    for seen in seen.iter().filter(|seen| seen.key.token.is_some()) {
        let lease = leases.iter().find(|lease| lease.lease_id == seen.lease_id);
        let must_be_served = match lease {
            Some(lease) if lease.state == "active" => true,
            Some(lease) if !lease.is_revoked() => continue,
            _ => false,
        };
        if seen.key.is_served().await != must_be_served {
            let (id, state) = (&seen.lease_id, lease.map(|lease| &lease.state));
            wrong.push(format!(
                "of lease {id}, {state:?}, the session is not as it must be"
            ));
        }
    }
}

async fn every_credential_is_recorded(
    store: &mut AnyConnection,
    seen: &[Seen],
    wrong: &mut Vec<String>,
) {
    for seen in seen {
        let records: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM audit WHERE lease_id = $1 AND access_key_id = $2 AND outcome = 'success'
             AND event IN ('lease.issued', 'lease.redelivered')",
        )
        .bind(&seen.lease_id)
        .bind(&seen.key.id)
        .fetch_one(&mut *store)
        .await
        .unwrap();
        if records == 0 {
            wrong.push(format!(
                "key {} was handed out and is in no record",
                seen.key.id
            ));
        }
    }
}

/// Checks that a request has one lease, in the store and in the answers to clients.
fn a_request_has_one_lease(leases: &[Recorded], seen: &[Seen], wrong: &mut Vec<String>) {
    let mut of_request: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let stored = leases
        .iter()
        .filter_map(|lease| Some((lease.request_id.as_deref()?, lease.lease_id.as_str())));
    let told = seen
        .iter()
        .filter_map(|seen| Some((seen.request_id.as_deref()?, seen.lease_id.as_str())));
    for (request, lease) in stored.chain(told) {
        of_request.entry(request).or_default().insert(lease);
    }
    for (request, leases) in of_request.iter().filter(|(_, leases)| leases.len() > 1) {
        wrong.push(format!("request {request} has leases {leases:?}"));
    }
}

/// Snapshot of the store: the broker runs, and may write in between.
async fn snapshot(store: &mut AnyConnection) -> Transaction<'_, Any> {
    let is_postgres = store.backend_name() == "PostgreSQL";
    let mut moment = store.begin().await.unwrap();
    if is_postgres {
        let one = sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ");
        one.execute(&mut *moment).await.unwrap();
    }
    moment
}

/// Checks that every record is a leaf of the log's tree, and the tree has no other.
async fn the_log_is_its_tree(store: &mut AnyConnection, wrong: &mut Vec<String>) {
    let mut store = snapshot(store).await;
    let rows = sqlx::query("SELECT seq, leaf FROM audit ORDER BY seq").fetch_all(&mut *store);
    let mut tree = Frontier::default();
    for row in rows.await.unwrap() {
        let (seq, bytes): (i64, Vec<u8>) = (row.get("seq"), row.get("leaf"));
        tree.push(leaf_hash(&bytes));
        let told = leaf::decode(&bytes).map(|record| record.seq).ok();
        if [told, u64::try_from(seq).ok()] != [Some(tree.size()); 2] {
            let at = tree.size();
            wrong.push(format!(
                "record {at} has the number {seq} and tells {told:?}"
            ));
        }
    }
    let edge = sqlx::query("SELECT size, subtrees FROM audit_edge").fetch_one(&mut *store);
    let edge = edge.await.unwrap();
    let (size, subtrees): (i64, Vec<u8>) = (edge.get("size"), edge.get("subtrees"));
    let same = subtrees == tree.subtrees().as_flattened();
    if u64::try_from(size) != Ok(tree.size()) || !same {
        let records = tree.size();
        wrong.push(format!(
            "the tree of {size} leaves is not that of {records} records"
        ));
    }
}

/// Asserts that there are no violations.
#[track_caller]
pub fn assert_sound(story: &str, violations: &[String]) {
    assert!(violations.is_empty(), "{story}:\n{}", violations.join("\n"));
}
