//! Outcome of a denial, and what stands for it.

use crate::domain::denial::{Against, Denial, DenialState, Scope};

/// A denial after the attempt to carry it out.
#[derive(Clone, Debug)]
pub struct Denied {
    /// As it stands now.
    pub denial: Denial,
    /// Seconds from the request until AWS refused its sessions, if it does.
    pub refused_after_seconds: Option<f64>,
    /// The call by which AWS was seen to refuse, and its region.
    pub seen_by: Option<String>,
    /// Words on what is still open, or was made broader than asked.
    pub notice: Option<String>,
}

impl Denied {
    /// Its standing by these denials, if AWS has been seen since to refuse its sessions.
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

/// Finds the denial that covers this one as written: itself, or that of its service as a whole.
/// One that was asked for again, or is tried by another session, is not written as it says yet.
pub(super) fn stands_in<'a>(denials: &'a [Denial], denial: &Denial) -> Option<&'a Denial> {
    let as_it_says = |denial: &Denial| denial.denied_before == Some(denial.issued_before);
    let stands = |against: &Against| {
        let mut denials = denials.iter();
        denials.find(|denial| denial.against == *against && as_it_says(denial))
    };
    let whole = Against {
        scope: Scope::Service,
        ..denial.against.clone()
    };
    let whole = (denial.against.scope != Scope::Everyone).then_some(whole);
    stands(&denial.against).or_else(|| stands(&whole?))
}
