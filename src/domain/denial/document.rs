//! Denials as a policy: as few statements as their moments allow.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::Value;

use super::{Denial, DenialState, Scope};
use crate::domain::{
    lease::aws_name_prefix,
    policy::{Document, PolicyError, Statement},
};

/// What the sessions of a statement have in common beside their time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    /// Names of sessions.
    Sessions,
    /// Source identities.
    Sources,
    /// Grants of sessions of this name.
    Grants(String),
}

/// One session name, source identity or grant, and the moments that its denial may have.
struct Clause {
    value: String,
    earliest: Timestamp,
    latest: Option<Timestamp>,
}

/// The policy of these denials; `None` when there are none.
///
/// Each statement has one moment and all names that it may apply to; how many there are is
/// the least that the denials allow. The same denials give the same policy.
///
/// # Errors
/// Never for denials of the broker's own.
pub fn document<'a>(
    denials: impl IntoIterator<Item = &'a Denial>,
) -> Result<Option<Document>, PolicyError> {
    let denials: Vec<&Denial> = denials.into_iter().collect();
    let mut families: BTreeMap<Family, Vec<Clause>> = BTreeMap::new();
    for denial in denials.iter().filter(|denial| !is_within(denial, &denials)) {
        let Some(earliest) = denial.denied_before else {
            continue;
        };
        for (family, clause) in clauses(denial, earliest) {
            families.entry(family).or_default().push(clause);
        }
    }
    let mut statements = Vec::new();
    for (family, clauses) in families {
        for (moment, values) in by_moment(clauses) {
            statements.push(statement(&family, values, moment)?);
        }
    }
    if statements.is_empty() {
        return Ok(None);
    }
    Document::new(statements).map(Some)
}

/// Whether another denial says all that this one says.
fn is_within(denial: &Denial, all: &[&Denial]) -> bool {
    let (scope, service) = (&denial.against.scope, &denial.against.service);
    *scope != Scope::Service
        && all.iter().any(|other| {
            other.against.scope == Scope::Service
                && other.against.service == *service
                && other.against.holder == denial.against.holder
                && other.denied_before >= denial.denied_before
        })
}

/// Whether a policy of denials may meet a session of these, issued at that moment: it names
/// the service, under a later one.
#[must_use]
pub fn may_meet(policy: &Document, denial: &Denial, issued: Timestamp) -> bool {
    let (kind, service) = (denial.against.holder.kind(), &denial.against.service);
    let sessions = format!("*:{}", aws_name_prefix(kind, service));
    let policy = serde_json::to_value(policy).unwrap_or_default();
    let statements = policy["Statement"].as_array().cloned().unwrap_or_default();
    statements.iter().any(|statement| {
        let condition = &statement["Condition"];
        let names = texts(&condition["StringLike"]["aws:userid"]);
        let moments = texts(&condition["DateLessThan"]["aws:TokenIssueTime"]);
        let later = |moment: &&str| {
            moment
                .parse()
                .is_ok_and(|moment: Timestamp| moment > issued)
        };
        names.iter().any(|name| name.starts_with(&sessions)) && moments.iter().any(later)
    })
}

/// AWS takes one value by itself as well as in a list.
fn texts(value: &Value) -> Vec<&str> {
    let list = value
        .as_array()
        .map_or(std::slice::from_ref(value), Vec::as_slice);
    list.iter().filter_map(Value::as_str).collect()
}

fn clauses(denial: &Denial, earliest: Timestamp) -> Vec<(Family, Clause)> {
    let clause = |value| Clause {
        value,
        earliest,
        latest: denial.latest,
    };
    let sessions = denial.sessions();
    match &denial.against.scope {
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

/// As few moments as each clause's earliest and latest allow. Taken in the order of their
/// latest, every clause that does not reach the last moment begins another.
fn by_moment(mut clauses: Vec<Clause>) -> Vec<(Timestamp, BTreeSet<String>)> {
    clauses.sort_by_key(|clause| clause.latest.unwrap_or(Timestamp::MAX));
    let mut moments: Vec<(Timestamp, BTreeSet<String>)> = Vec::new();
    while let Some(first) = clauses.first() {
        let latest = first.latest.unwrap_or(Timestamp::MAX);
        let (together, later): (Vec<_>, Vec<_>) = clauses
            .into_iter()
            .partition(|clause| clause.earliest <= latest);
        let moment = together.iter().map(|clause| clause.earliest).max();
        let values = together.into_iter().map(|clause| clause.value).collect();
        moments.push((moment.unwrap_or(latest), values));
        clauses = later;
    }
    moments
}

fn statement(
    family: &Family,
    values: BTreeSet<String>,
    moment: Timestamp,
) -> Result<Statement, PolicyError> {
    let all = Statement::deny("", ["*"], ["*"])?;
    let named = match family {
        Family::Sessions => all.when("StringLike", "aws:userid", values)?,
        Family::Sources => all.when("StringEquals", "aws:SourceIdentity", values)?,
        Family::Grants(sessions) => all
            .when("StringLike", "aws:userid", [sessions.as_str()])?
            .when("StringEquals", "aws:PrincipalTag/credbroker:grant", values)?,
    };
    let moment = moment.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    named.when("DateLessThan", "aws:TokenIssueTime", [moment])
}

/// Fewer and broader denials of the same services, where AWS has no room for these: those to
/// be put, in the place of those of the same subject, and those that they make needless.
/// `None` when nothing can be made broader.
#[must_use]
pub fn widen(denials: &[Denial]) -> Option<(Vec<Denial>, Vec<Denial>)> {
    one_service_as_a_whole(denials).or_else(|| one_moment(denials))
}

/// The service whose leases and grants take the most room is denied as a whole.
fn one_service_as_a_whole(denials: &[Denial]) -> Option<(Vec<Denial>, Vec<Denial>)> {
    let subject = |denial: &Denial| {
        let against = &denial.against;
        (against.holder.clone(), against.service.clone())
    };
    let mut narrow: BTreeMap<_, Vec<&Denial>> = BTreeMap::new();
    for denial in denials {
        if denial.against.scope != Scope::Service {
            narrow.entry(subject(denial)).or_default().push(denial);
        }
    }
    let (of, narrow) = narrow
        .into_iter()
        .filter(|(_, narrow)| narrow.len() > 1)
        .max_by_key(|(_, narrow)| narrow.len())?;
    let standing = denials
        .iter()
        .find(|denial| denial.against.scope == Scope::Service && subject(denial) == of);
    let mut whole = standing.unwrap_or(narrow[0]).next();
    whole.against.scope = Scope::Service;
    whole.revision = standing.map_or(0, |standing| standing.revision + 1);
    for denial in &narrow {
        whole.issued_before = whole.issued_before.max(denial.issued_before);
        whole.lasts_until = whole.lasts_until.max(denial.lasts_until);
        whole.source_identity |= denial.source_identity;
        if let (DenialState::Refused { .. }, DenialState::Open(_)) = (&whole.state, &denial.state) {
            whole.state = denial.state.clone();
            whole.due_at = denial.due_at;
        }
        // What it covers was asked for by then.
        whole.asked_at = whole.asked_at.max(denial.asked_at);
    }
    whole.denied_before = Some(whole.issued_before);
    if standing.is_none_or(|standing| standing.latest.is_some()) {
        whole.latest = Some(whole.issued_before);
    }
    Some((vec![whole], narrow.into_iter().cloned().collect()))
}

/// Of the moments that cannot be moved, the two that are nearest become the later.
fn one_moment(denials: &[Denial]) -> Option<(Vec<Denial>, Vec<Denial>)> {
    let moments: BTreeSet<Timestamp> = denials.iter().map(|d| d.issued_before).collect();
    let nearest = moments
        .iter()
        .zip(moments.iter().skip(1))
        .map(|(earlier, later)| {
            (
                later.duration_since(*earlier),
                moved(denials, *earlier, *later),
            )
        })
        .filter(|(_, moved)| !moved.is_empty())
        .min_by_key(|(apart, _)| *apart);
    nearest.map(|(_, moved)| (moved, Vec::new()))
}

/// The denials of the earlier moment that cannot share the later one, as they do then.
fn moved(denials: &[Denial], earlier: Timestamp, later: Timestamp) -> Vec<Denial> {
    let fixed = |denial: &&Denial| {
        denial.issued_before == earlier && denial.latest.is_some_and(|latest| latest < later)
    };
    let moved = denials.iter().filter(fixed).map(|denial| Denial {
        issued_before: later,
        denied_before: Some(later),
        latest: Some(later),
        ..denial.next()
    });
    moved.collect()
}
