//! Policy documents of denials, with as few statements as their cutoffs allow.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::Value;

use super::{Denial, DenialState, NOT_WRITTEN, Scope};
use crate::domain::{
    grant::Kind,
    lease::aws_name_prefix,
    policy::{Document, PolicyError, Statement},
};

/// Condition key for the role's id or the account's number, and the name of the session.
const SESSION: &str = "aws:userid";
const SOURCE: &str = "aws:SourceIdentity";
const GRANT: &str = "aws:PrincipalTag/credbroker:grant";
const ISSUED: &str = "aws:TokenIssueTime";

/// Kind of value by which a statement selects sessions, beside the cutoff.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    /// Every session; the only value is empty.
    Everyone,
    /// Names of sessions.
    Sessions,
    /// Source identities.
    Sources,
    /// Grants of the sessions with this pattern of names.
    Grants(String),
}

/// Cutoff: sessions issued before it are denied. `None`: all sessions are denied.
type Before = Option<Timestamp>;

/// One session name, source identity or grant, with its cutoff.
struct Clause {
    value: String,
    before: Before,
    /// True if the service is reinstated, and AWS still denies all its sessions.
    is_reinstated: bool,
}

impl Clause {
    /// Returns whether this clause makes one with the cutoff `before` needless. The clause of a
    /// reinstated service also replaces one without a cutoff.
    fn says(&self, before: Before) -> bool {
        match (self.before, before) {
            (None, _) => true,
            (Some(_), None) => self.is_reinstated,
            (Some(said), Some(before)) => said >= before,
        }
    }
}

/// Returns the policy of these denials; `None` if there are none.
///
/// All names with the same cutoff share a statement, and so do all names without a cutoff. The same
/// denials give the same policy.
///
/// # Errors
/// The policy is invalid, which does not happen for the broker's own denials.
pub fn document<'a>(
    denials: impl IntoIterator<Item = &'a Denial>,
) -> Result<Option<Document>, PolicyError> {
    policy(by_family(denials))
}

/// Clauses of a policy in AWS that the store's denials may lack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownStatements(Vec<(Family, String, Before)>);

impl UnknownStatements {
    /// Reads the clauses of a policy that concern sessions that may still be usable at `now`.
    /// Statements in another form than the broker's are ignored.
    #[must_use]
    pub fn of(policy: &Document, now: Timestamp) -> Self {
        let longest = Kind::FederationToken.ttl_bounds().1;
        let outlived_by = Kind::FederationToken.outlived_by().unwrap_or_default();
        let since = now - longest - outlived_by;
        let said = statements(policy).into_iter();
        let live = said.filter(|(_, _, before)| before.is_none_or(|before| before > since));
        let each = live.flat_map(|(family, values, before)| {
            let each = values.into_iter();
            each.map(move |value| (family.clone(), value, before))
        });
        Self(each.collect())
    }

    /// Returns the policy of these denials, with the clauses that the denials lack.
    ///
    /// # Errors
    /// The policy is invalid, which does not happen for the broker's own denials.
    pub fn beside<'a>(
        &self,
        denials: impl IntoIterator<Item = &'a Denial>,
    ) -> Result<Option<Document>, PolicyError> {
        let mut families = by_family(denials);
        for (family, value, before) in &self.0 {
            let clauses = families.entry(family.clone()).or_default();
            let is_said = |clause: &Clause| clause.value == *value && clause.says(*before);
            if !clauses.iter().any(is_said) {
                clauses.push(Clause {
                    value: value.clone(),
                    before: *before,
                    is_reinstated: false,
                });
            }
        }
        policy(families)
    }
}

/// Returns the statements of a policy that have the broker's form.
fn statements(policy: &Document) -> Vec<(Family, BTreeSet<String>, Before)> {
    let policy = serde_json::to_value(policy).unwrap_or_default();
    let statements = list(&policy["Statement"]).iter();
    statements.filter_map(read).collect()
}

/// Reads a statement; `None` if it does not have the broker's form.
fn read(statement: &Value) -> Option<(Family, BTreeSet<String>, Before)> {
    let condition = &statement["Condition"];
    let all = |operator: &str, key: &str| -> BTreeSet<String> {
        let values = texts(&condition[operator][key]).into_iter();
        values.map(ToOwned::to_owned).collect()
    };
    let sessions = all("StringLike", SESSION);
    let (grants, sources) = (all("StringEquals", GRANT), all("StringEquals", SOURCE));
    let (family, values) = match (sessions.len(), grants.len(), sources.len()) {
        (1, 1.., _) => (Family::Grants(sessions.into_iter().next()?), grants),
        (1.., ..) => (Family::Sessions, sessions),
        (_, _, 1..) => (Family::Sources, sources),
        _ => (Family::Everyone, BTreeSet::from([String::new()])),
    };
    let before = texts(&condition["DateLessThan"][ISSUED]).pop();
    let before: Before = before.map(str::parse).transpose().ok()?;
    if family == Family::Everyone && before.is_none() {
        return None;
    }
    let ours = self::statement(&family, values.clone(), before).ok()?;
    let is_ours = serde_json::to_value(ours).is_ok_and(|ours| ours == *statement);
    is_ours.then_some((family, values, before))
}

fn by_family<'a>(denials: impl IntoIterator<Item = &'a Denial>) -> BTreeMap<Family, Vec<Clause>> {
    let denials: Vec<&Denial> = denials.into_iter().collect();
    let mut families: BTreeMap<Family, Vec<Clause>> = BTreeMap::new();
    for denial in denials.iter().filter(|denial| !is_within(denial, &denials)) {
        let Some(denied_before) = denial.denied_before else {
            continue;
        };
        let before = denial.spares_newer.then_some(denied_before);
        for (family, clause) in clauses(denial, before) {
            families.entry(family).or_default().push(clause);
        }
    }
    families
}

fn policy(families: BTreeMap<Family, Vec<Clause>>) -> Result<Option<Document>, PolicyError> {
    let mut statements = Vec::new();
    for (family, clauses) in families {
        let mut by_moment: BTreeMap<Before, BTreeSet<String>> = BTreeMap::new();
        for clause in clauses {
            let values = by_moment.entry(clause.before).or_default();
            values.insert(clause.value);
        }
        for (before, values) in by_moment {
            statements.push(statement(&family, values, before)?);
        }
    }
    if statements.is_empty() {
        return Ok(None);
    }
    Document::new(statements).map(Some)
}

/// Returns whether another denial includes this one.
fn is_within(denial: &Denial, all: &[&Denial]) -> bool {
    let (scope, service) = (&denial.against.scope, &denial.against.service);
    let says_it = |other: &Denial| {
        if other.spares_newer {
            denial.spares_newer && other.denied_before >= denial.denied_before
        } else {
            other.denied_before.is_some()
        }
    };
    !matches!(scope, Scope::Service | Scope::Everyone)
        && all.iter().any(|other| {
            other.against.scope == Scope::Service
                && other.against.service == *service
                && other.against.holder == denial.against.holder
                && says_it(other)
        })
}

/// Returns whether a policy denies the sessions of a denial regardless of their time of issue.
#[must_use]
pub fn denies_all(policy: &Document, denial: &Denial) -> bool {
    let names = [denial.sessions(), denial.sessions_of_service()];
    statements(policy).iter().any(|(family, values, before)| {
        let names_them = names.iter().any(|name| values.contains(name));
        *family == Family::Sessions && before.is_none() && names_them
    })
}

/// Returns whether a policy may deny a session of this denial that was issued at `issued`. That is
/// so if a statement names the service, or everyone, with a later cutoff.
#[must_use]
pub fn may_meet(policy: &Document, denial: &Denial, issued: Timestamp) -> bool {
    let (kind, service) = (denial.against.holder.kind(), &denial.against.service);
    let sessions = format!("*:{}", aws_name_prefix(kind, service));
    let policy = serde_json::to_value(policy).unwrap_or_default();
    list(&policy["Statement"]).iter().any(|statement| {
        let condition = &statement["Condition"];
        let names = texts(&condition["StringLike"][SESSION]);
        let is_everyone = names.is_empty() && texts(&condition["StringEquals"][SOURCE]).is_empty();
        let moments = texts(&condition["DateLessThan"][ISSUED]);
        let later = |moment: &&str| {
            moment
                .parse()
                .is_ok_and(|moment: Timestamp| moment > issued)
        };
        let names_it = names.iter().any(|name| name.starts_with(&sessions));
        (names_it || is_everyone) && moments.iter().any(later)
    })
}

/// Returns the values of a list. AWS also accepts a single value instead of a list.
fn list(value: &Value) -> &[Value] {
    let list = value.as_array();
    list.map_or(std::slice::from_ref(value), Vec::as_slice)
}

fn texts(value: &Value) -> Vec<&str> {
    list(value).iter().filter_map(Value::as_str).collect()
}

fn clauses(denial: &Denial, before: Before) -> Vec<(Family, Clause)> {
    let clause = |value| Clause {
        value,
        before,
        is_reinstated: denial.newer_hit_until == Some(NOT_WRITTEN),
    };
    let sessions = denial.sessions();
    match &denial.against.scope {
        Scope::Everyone => vec![(Family::Everyone, clause(String::new()))],
        Scope::Lease(_) => vec![(Family::Sessions, clause(sessions))],
        Scope::Grant(grant) => vec![(Family::Grants(sessions), clause(grant.to_string()))],
        Scope::Service => {
            let source = clause(denial.against.service.to_string());
            let source = denial.source_identity.then_some((Family::Sources, source));
            let sessions = (Family::Sessions, clause(sessions));
            [Some(sessions), source].into_iter().flatten().collect()
        }
    }
}

fn statement(
    family: &Family,
    values: BTreeSet<String>,
    before: Before,
) -> Result<Statement, PolicyError> {
    let all = Statement::deny("", ["*"], ["*"])?;
    let named =
        match family {
            Family::Everyone => all,
            Family::Sessions => all.when("StringLike", SESSION, values)?,
            Family::Sources => all.when("StringEquals", SOURCE, values)?,
            Family::Grants(sessions) => all
                .when("StringLike", SESSION, [sessions.as_str()])?
                .when("StringEquals", GRANT, values)?,
        };
    let Some(before) = before else {
        return Ok(named);
    };
    let before = before.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    named.when("DateLessThan", ISSUED, [before])
}

/// Returns fewer and broader denials of the same services, for a policy that AWS has no room for.
/// The first list is to be put, in the place of denials with the same subject. The second list is
/// to be removed. `None` if no denial can be made broader.
#[must_use]
pub fn widen(denials: &[Denial], now: Timestamp) -> Option<(Vec<Denial>, Vec<Denial>)> {
    one_service_as_a_whole(denials, now).or_else(|| one_moment(denials, now))
}

/// Denies the service as a whole whose leases and grants take the most room.
fn one_service_as_a_whole(
    denials: &[Denial],
    now: Timestamp,
) -> Option<(Vec<Denial>, Vec<Denial>)> {
    let subject = |denial: &Denial| {
        let against = &denial.against;
        (against.holder.clone(), against.service.clone())
    };
    let mut narrow: BTreeMap<_, Vec<&Denial>> = BTreeMap::new();
    for denial in denials {
        if !matches!(denial.against.scope, Scope::Service | Scope::Everyone) {
            narrow.entry(subject(denial)).or_default().push(denial);
        }
    }
    let whole = |of: &_| {
        let mut denials = denials.iter();
        denials.find(|denial| denial.against.scope == Scope::Service && subject(denial) == *of)
    };
    let (of, narrow) = narrow
        .into_iter()
        .filter(|(of, narrow)| narrow.len() > 1 || whole(of).is_some())
        .max_by_key(|(_, narrow)| narrow.len())?;
    let standing = whole(&of);
    let mut whole = standing.unwrap_or(narrow[0]).moved(now);
    whole.against.scope = Scope::Service;
    whole.revision = standing.map_or(0, |standing| standing.revision + 1);
    // Sessions issued from now on work, unless a standing denial includes them.
    whole.spares_newer = standing.is_none_or(|standing| standing.spares_newer);
    whole.newer_hit_until = standing.and_then(|standing| standing.newer_hit_until);
    for denial in &narrow {
        whole.issued_before = whole.issued_before.max(denial.issued_before);
        whole.lasts_until = whole.lasts_until.max(denial.lasts_until);
        whole.source_identity |= denial.source_identity;
        if let (DenialState::Refused { .. }, DenialState::Open(_)) = (&whole.state, &denial.state) {
            whole.state = denial.state.clone();
            whole.due_at = denial.due_at;
        }
        // The broader denial covers every lease that the narrow ones cover.
        whole.asked_at = whole.asked_at.max(denial.asked_at);
    }
    whole.denied_before = Some(whole.issued_before);
    Some((vec![whole], narrow.into_iter().cloned().collect()))
}

/// Joins the two nearest cutoffs at the later one.
fn one_moment(denials: &[Denial], now: Timestamp) -> Option<(Vec<Denial>, Vec<Denial>)> {
    let dated = denials.iter().filter(|denial| may_move(denial));
    let moments: BTreeSet<Timestamp> = dated.map(|denial| denial.issued_before).collect();
    let nearest = moments
        .iter()
        .zip(moments.iter().skip(1))
        .min_by_key(|(earlier, later)| later.duration_since(**earlier));
    nearest.map(|(earlier, later)| (moved(denials, *earlier, *later, now), Vec::new()))
}

/// Returns whether a later cutoff affects sessions of the same service only.
fn may_move(denial: &Denial) -> bool {
    denial.spares_newer && denial.against.scope != Scope::Everyone
}

/// Returns the denials of the earlier cutoff, moved to the later one.
fn moved(denials: &[Denial], earlier: Timestamp, later: Timestamp, now: Timestamp) -> Vec<Denial> {
    let is_earlier = |denial: &&Denial| may_move(denial) && denial.issued_before == earlier;
    let moved = denials.iter().filter(is_earlier).map(|denial| Denial {
        issued_before: later,
        denied_before: Some(later),
        ..denial.moved(now)
    });
    moved.collect()
}
