//! Denials as a policy: as few statements as their moments allow.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{Denial, DenialState, Scope};
use crate::domain::{
    grant::Kind,
    lease::aws_name_prefix,
    policy::{Document, PolicyError, Statement},
};

/// The id of the role, or the number of the account, and the name of the session.
const SESSION: &str = "aws:userid";
const SOURCE: &str = "aws:SourceIdentity";
const GRANT: &str = "aws:PrincipalTag/credbroker:grant";
const ISSUED: &str = "aws:TokenIssueTime";

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
    policy(by_family(denials))
}

/// What a policy of denials says that denials of the store's need not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown(Vec<(Family, String, Timestamp)>);

impl Unknown {
    /// What of a policy still concerns sessions that may live at `now`. Statements that are
    /// not as the broker writes them are somebody else's, and not among it.
    #[must_use]
    pub fn of(policy: &Document, now: Timestamp) -> Self {
        let longest = Kind::ttl_bounds(Kind::FederationToken).1;
        let since = now - SignedDuration::try_from(longest).unwrap_or(SignedDuration::MAX);
        let policy = serde_json::to_value(policy).unwrap_or_default();
        let said = list(&policy["Statement"]).iter().filter_map(read);
        let live = said.filter(|(_, _, moment)| *moment > since);
        let each = live.flat_map(|(family, values, moment)| {
            let each = values.into_iter();
            each.map(move |value| (family.clone(), value, moment))
        });
        Self(each.collect())
    }

    /// The policy of these denials and of what they do not say of it.
    ///
    /// # Errors
    /// Never for denials of the broker's own.
    pub fn beside<'a>(
        &self,
        denials: impl IntoIterator<Item = &'a Denial>,
    ) -> Result<Option<Document>, PolicyError> {
        let mut families = by_family(denials);
        for (family, value, moment) in &self.0 {
            let clauses = families.entry(family.clone()).or_default();
            let is_said = |said: &Clause| said.value == *value && said.earliest >= *moment;
            if !clauses.iter().any(is_said) {
                clauses.push(Clause {
                    value: value.clone(),
                    earliest: *moment,
                    latest: Some(*moment),
                });
            }
        }
        policy(families)
    }
}

/// A statement as the broker writes it.
fn read(statement: &Value) -> Option<(Family, BTreeSet<String>, Timestamp)> {
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
        _ => (Family::Sources, sources),
    };
    let moment = texts(&condition["DateLessThan"][ISSUED])
        .pop()?
        .parse()
        .ok()?;
    let ours = self::statement(&family, values.clone(), moment).ok()?;
    let is_ours = serde_json::to_value(ours).is_ok_and(|ours| ours == *statement);
    is_ours.then_some((family, values, moment))
}

fn by_family<'a>(denials: impl IntoIterator<Item = &'a Denial>) -> BTreeMap<Family, Vec<Clause>> {
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
    families
}

fn policy(families: BTreeMap<Family, Vec<Clause>>) -> Result<Option<Document>, PolicyError> {
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
    list(&policy["Statement"]).iter().any(|statement| {
        let condition = &statement["Condition"];
        let names = texts(&condition["StringLike"][SESSION]);
        let moments = texts(&condition["DateLessThan"][ISSUED]);
        let later = |moment: &&str| {
            moment
                .parse()
                .is_ok_and(|moment: Timestamp| moment > issued)
        };
        names.iter().any(|name| name.starts_with(&sessions)) && moments.iter().any(later)
    })
}

/// AWS takes one value by itself as well as in a list.
fn list(value: &Value) -> &[Value] {
    let list = value.as_array();
    list.map_or(std::slice::from_ref(value), Vec::as_slice)
}

fn texts(value: &Value) -> Vec<&str> {
    list(value).iter().filter_map(Value::as_str).collect()
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
    let named =
        match family {
            Family::Sessions => all.when("StringLike", SESSION, values)?,
            Family::Sources => all.when("StringEquals", SOURCE, values)?,
            Family::Grants(sessions) => all
                .when("StringLike", SESSION, [sessions.as_str()])?
                .when("StringEquals", GRANT, values)?,
        };
    let moment = moment.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    named.when("DateLessThan", ISSUED, [moment])
}

/// Fewer and broader denials of the same services, where AWS has no room for these: those to
/// be put, in the place of those of the same subject, and those that they make needless.
/// `None` when nothing can be made broader.
#[must_use]
pub fn widen(denials: &[Denial], now: Timestamp) -> Option<(Vec<Denial>, Vec<Denial>)> {
    one_service_as_a_whole(denials, now).or_else(|| one_moment(denials, now))
}

/// The service whose leases and grants take the most room is denied as a whole.
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
    let mut whole = standing.unwrap_or(narrow[0]).moved(now);
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
fn one_moment(denials: &[Denial], now: Timestamp) -> Option<(Vec<Denial>, Vec<Denial>)> {
    let moments: BTreeSet<Timestamp> = denials.iter().map(|d| d.issued_before).collect();
    let nearest = moments
        .iter()
        .zip(moments.iter().skip(1))
        .map(|(earlier, later)| {
            (
                later.duration_since(*earlier),
                moved(denials, *earlier, *later, now),
            )
        })
        .filter(|(_, moved)| !moved.is_empty())
        .min_by_key(|(apart, _)| *apart);
    nearest.map(|(_, moved)| (moved, Vec::new()))
}

/// The denials of the earlier moment that cannot share the later one, as they do then.
fn moved(denials: &[Denial], earlier: Timestamp, later: Timestamp, now: Timestamp) -> Vec<Denial> {
    let fixed = |denial: &&Denial| {
        denial.issued_before == earlier && denial.latest.is_some_and(|latest| latest < later)
    };
    let moved = denials.iter().filter(fixed).map(|denial| Denial {
        issued_before: later,
        denied_before: Some(later),
        latest: Some(later),
        ..denial.moved(now)
    });
    moved.collect()
}
