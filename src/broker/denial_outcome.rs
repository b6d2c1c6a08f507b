//! Outcome of a denial, and the search for the denial that covers it.

use crate::domain::denial::{Denial, DenialState, DenialSubject, Scope};

/// A denial after the attempt to enforce it.
#[derive(Clone, Debug)]
pub struct DenialOutcome {
    /// Current state of the denial.
    pub denial: Denial,
    /// Seconds from the request until AWS refused the sessions; `None` if AWS was not seen to
    /// refuse them.
    pub refused_after_seconds: Option<f64>,
    /// Call that AWS was seen to refuse, and its region.
    pub seen_by: Option<String>,
    /// Text on what is still open, or was made broader than requested.
    pub notice: Option<String>,
}

impl DenialOutcome {
    /// Returns the outcome according to the denials in `standing`, if AWS has been seen to refuse
    /// the sessions since the request.
    pub(super) fn seen_since(&self, standing: &[Denial]) -> Option<Self> {
        let now = stands_in(standing, &self.denial)?;
        let DenialState::Refused { at } = now.state else {
            return None;
        };
        let asked_at = self.denial.asked_at;
        let is_of_it = now.asked_at.as_microsecond() >= asked_at.as_microsecond();
        is_of_it.then(|| Self {
            denial: now.clone(),
            refused_after_seconds: Some(at.duration_since(asked_at).as_secs_f64()),
            seen_by: None,
            notice: None,
        })
    }
}

/// Finds the denial that covers this one in AWS: the same, or the one of its whole service. Skips a
/// denial whose cutoff is not the one that is to be in the policy now, because the denial was
/// requested again or another canary tests it.
pub(super) fn stands_in<'a>(denials: &'a [Denial], denial: &Denial) -> Option<&'a Denial> {
    let as_it_says = |denial: &Denial| denial.denied_before == Some(denial.issued_before);
    let stands = |against: &DenialSubject| {
        let mut denials = denials.iter();
        denials.find(|denial| denial.against == *against && as_it_says(denial))
    };
    let whole = DenialSubject {
        scope: Scope::Service,
        ..denial.against.clone()
    };
    let whole = (denial.against.scope != Scope::Everyone).then_some(whole);
    stands(&denial.against).or_else(|| stands(&whole?))
}
