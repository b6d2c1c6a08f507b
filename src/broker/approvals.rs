//! Changes that need a second operator, where the configuration says so.
//!
//! One operator sends the change and gets `APPROVAL_REQUIRED`. Another operator approves it. The
//! first operator sends the change again. So the broker makes only the approved change, and only
//! for the operator it was approved for. The stored request contains no secret: the secret of an
//! imported key comes with the repetition.

use crate::{
    broker::{Broker, Error, on_conflict},
    domain::{
        access::Caller,
        approval::{Approval, ApprovalId, ApprovedChange, LIFETIME, OPEN_MAX, Person},
        audit::{AuditEvent, Event, Subject},
        name::Name,
        principal::Identity,
    },
};

impl Broker {
    /// Permits a change that needs no second operator, or that has been approved; the approval is
    /// then used up. Returns the permitted change, which may be less than the wanted one.
    ///
    /// # Errors
    /// The change needs an approval, which is requested now if it was not before.
    pub(super) async fn approved(
        &self,
        caller: &Caller,
        wanted: ApprovedChange,
    ) -> Result<ApprovedChange, Error> {
        if !self.parts.two_person {
            return Ok(wanted);
        }
        let by = person(caller);
        let open = self.store().approvals(self.now()).await?;
        let own = |a: &&Approval| a.requested_by == by && a.change.covers(&wanted);
        let given = open.iter().filter(own).find(|a| a.approved_by.is_some());
        if let Some(given) = given {
            let audit = self.approval_event(caller, Event::ApprovalUsed, given);
            let used = self
                .store()
                .use_approval(&given.id, self.now(), audit)
                .await;
            on_conflict(used, || {
                Error::Conflict(Subject::Approval(given.id.clone()))
            })?;
            return Ok(given.change.clone());
        }
        let asked = match open.iter().find(own) {
            Some(asked) => asked.clone(),
            None => self.ask_for(caller, by, wanted).await?,
        };
        Err(to_be_approved(&asked))
    }

    async fn ask_for(
        &self,
        caller: &Caller,
        by: Person,
        change: ApprovedChange,
    ) -> Result<Approval, Error> {
        let now = self.now();
        let asked = Approval {
            id: ApprovalId::new(self.parts.random.as_ref()),
            change,
            requested_by: by,
            requested_at: now,
            expires_at: now + LIFETIME,
            approved_by: None,
        };
        let audit = self.approval_event(caller, Event::ApprovalRequested, &asked);
        let written = self.store().request_approval(&asked, audit).await;
        on_conflict(written, || Error::Limited {
            reason: "TOO_MANY_APPROVALS",
            message: format!("{OPEN_MAX} changes of yours wait for a second operator already"),
            next: "see `credbroker approval list`, and reject what is not to be".to_owned(),
            retry_after: None,
        })?;
        Ok(asked)
    }

    /// Returns the changes that wait for a second operator, and the approved ones that the first
    /// operator has not made yet.
    ///
    /// # Errors
    /// The store's error.
    pub async fn approvals(&self, caller: &Caller) -> Result<Vec<Approval>, Error> {
        let open = self.store().approvals(self.now()).await?;
        let read = self.caller_event(caller, Event::ApprovalRead);
        self.store().record(read).await?;
        Ok(open)
    }

    /// Approves a change that another operator wants to make.
    ///
    /// # Errors
    /// The request is unknown, expired, approved already, the caller's own, or not for the caller's
    /// role.
    pub async fn give_approval(&self, caller: &Caller, id: &ApprovalId) -> Result<Approval, Error> {
        let asked = self.open_approval(id).await?;
        let by = person(caller);
        may_approve(caller, &asked)?;
        if asked.requested_by.may_be(&by) {
            return Err(not_approved(
                &asked,
                "APPROVAL_OWN",
                format!(
                    "operator {} wants to make this change",
                    asked.requested_by.name
                ),
                "have another operator approve it",
            ));
        }
        let audit = self.approval_event(caller, Event::ApprovalGiven, &asked);
        let given = self.store().give_approval(id, &by, self.now(), audit).await;
        on_conflict(given, || {
            not_approved(
                &asked,
                "APPROVAL_GIVEN",
                "it is approved already".to_owned(),
                "see `credbroker approval list`",
            )
        })?;
        Ok(Approval {
            approved_by: Some(by),
            ..asked
        })
    }

    /// Rejects a change that an operator wants to make, or withdraws the approval of it.
    ///
    /// # Errors
    /// The request is unknown or expired, or the caller neither made it nor could approve it.
    pub async fn reject_approval(&self, caller: &Caller, id: &ApprovalId) -> Result<(), Error> {
        let asked = self.open_approval(id).await?;
        if asked.requested_by != person(caller) {
            may_approve(caller, &asked)?;
        }
        let audit = self.approval_event(caller, Event::ApprovalRejected, &asked);
        let rejected = self.store().reject_approval(id, audit).await;
        on_conflict(rejected, || {
            Error::NotFound(Subject::Approval(asked.id.clone()))
        })
    }

    async fn open_approval(&self, id: &ApprovalId) -> Result<Approval, Error> {
        let open = self.store().approvals(self.now()).await?;
        let found = open.into_iter().find(|approval| approval.id == *id);
        found.ok_or_else(|| Error::NotFound(Subject::Approval(id.clone())))
    }

    fn approval_event(&self, caller: &Caller, event: Event, approval: &Approval) -> AuditEvent {
        let Approval {
            id,
            change,
            requested_by,
            ..
        } = approval;
        let approved = match &approval.approved_by {
            Some(by) => format!(", approved by {}", by.name),
            None => String::new(),
        };
        let words = format!(
            "approval {id}: {change}, for {}{approved}",
            requested_by.name
        );
        self.caller_event(caller, event).detail(&words)
    }
}

/// Checks that the caller's role could make the change itself.
fn may_approve(caller: &Caller, asked: &Approval) -> Result<(), Error> {
    match caller.principal().identity() {
        Identity::Operator(_, role) if !asked.change.may_be_approved_by(*role) => {
            Err(not_approved(
                asked,
                "APPROVAL_ROLE",
                format!("role {role} could not make this change itself"),
                "have an admin decide",
            ))
        }
        _ => Ok(()),
    }
}

fn person(caller: &Caller) -> Person {
    Person::of(&operator(caller), &caller.principal().proof().evidence)
}

/// Returns the caller's name.
pub(super) fn operator(caller: &Caller) -> Name {
    match caller.principal().identity() {
        Identity::Operator(name, _) | Identity::Service(name) | Identity::Enrollee(name) => {
            name.clone()
        }
    }
}

fn to_be_approved(asked: &Approval) -> Error {
    let (id, change) = (&asked.id, &asked.change);
    let message = format!("to {change} takes a second operator; it is asked for as {id}");
    let next = format!(
        "have another operator say `credbroker approval approve {id}`, then repeat this,          until {}",
        asked.expires_at.strftime("%F %T UTC")
    );
    Error::WrongState {
        subject: Subject::Approval(id.clone()),
        reason: "APPROVAL_REQUIRED",
        message,
        next,
    }
}

fn not_approved(asked: &Approval, reason: &'static str, message: String, next: &str) -> Error {
    Error::WrongState {
        subject: Subject::Approval(asked.id.clone()),
        reason,
        message,
        next: next.to_owned(),
    }
}
