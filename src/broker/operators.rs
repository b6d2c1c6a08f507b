//! Operators, the first one included.

use crate::{
    broker::{Actor, Broker, Error, NewToken, on_conflict},
    domain::{
        access::Caller,
        approval::ApprovedChange,
        audit::{Event, Subject},
        name::Name,
        operator::{Operator, Role},
        token::{Token, TokenKind},
    },
};

/// An operator and its token. The token is shown only once.
#[derive(Debug)]
pub struct NewOperator {
    /// The operator.
    pub operator: Operator,
    /// Token of the operator.
    pub token: Token,
}

impl Broker {
    /// Creates the operator `admin` if there are no operators, after `keep` has saved its token.
    /// Only one of several replicas does so. Returns whether this one did.
    ///
    /// # Errors
    /// The store's error, or that of `keep`.
    pub async fn make_first_admin<E: From<Error>>(
        &self,
        keep: impl FnOnce(&NewToken) -> Result<(), E>,
    ) -> Result<bool, E> {
        let is_there = async || Ok::<_, Error>(!self.store().operators().await?.is_empty());
        if is_there().await? {
            return Ok(false);
        }
        let _by_nobody_else = self.lock("first operator").await?;
        if is_there().await? {
            return Ok(false);
        }
        let new = self.new_admin_token()?;
        keep(&new)?;
        self.install_admin(&new).await?;
        Ok(true)
    }

    /// Adds an operator.
    ///
    /// # Errors
    /// The name is taken, or the change needs a second operator.
    pub async fn create_operator(
        &self,
        caller: &Caller,
        name: Name,
        role: Role,
    ) -> Result<NewOperator, Error> {
        let known = self.store().operators().await?;
        if known.iter().any(|operator| operator.name == name) {
            return Err(Error::AlreadyExists(Subject::Operator(name)));
        }
        let change = ApprovedChange::CreateOperator {
            operator: name.to_string(),
            role: role.to_string(),
        };
        self.approved(caller, change).await?;
        let NewToken { token, stored } = self.new_token(TokenKind::Operator, None)?;
        let audit = self
            .caller_event(caller, Event::OperatorCreated)
            .detail(&format!("{name} as {role}"));
        on_conflict(
            self.store()
                .create_operator(&name, role, &stored, audit)
                .await,
            || Error::AlreadyExists(Subject::Operator(name.clone())),
        )?;
        let operator = Operator {
            name,
            role,
            token_id: stored.id,
            created_at: stored.created_at,
        };
        Ok(NewOperator { operator, token })
    }

    /// Returns all operators.
    ///
    /// # Errors
    /// The store's error.
    pub async fn operators(&self, caller: &Caller) -> Result<Vec<Operator>, Error> {
        let operators = self.store().operators().await?;
        self.store()
            .record(self.caller_event(caller, Event::OperatorRead))
            .await?;
        Ok(operators)
    }

    /// Deletes an operator, its token, and the approvals that the operator requested or gave. Needs
    /// no second operator.
    ///
    /// # Errors
    /// The operator is unknown, or is the last admin.
    pub async fn delete_operator(&self, caller: &Caller, name: &Name) -> Result<(), Error> {
        let known = self
            .store()
            .operators()
            .await?
            .iter()
            .any(|o| o.name == *name);
        if !known {
            return Err(Error::NotFound(Subject::Operator(name.clone())));
        }
        let audit = self
            .caller_event(caller, Event::OperatorDeleted)
            .detail(name.as_str());
        on_conflict(self.store().delete_operator(name, audit).await, || {
            Error::WrongState {
                subject: Subject::Operator(name.clone()),
                reason: "LAST_ADMIN",
                message: format!("operator {name} is the last admin"),
                next: "make another first: `credbroker operator create NAME --role admin`"
                    .to_owned(),
            }
        })
    }

    /// Creates a token for the operator `admin`, not yet stored, so that it can be saved safely
    /// first.
    ///
    /// # Errors
    /// None in practice: a token without a lifetime cannot be out of bounds.
    pub fn new_admin_token(&self) -> Result<NewToken, Error> {
        self.new_token(TokenKind::Operator, None)
    }

    /// Stores the token of the operator `admin`, and creates that operator if it is unknown. Used
    /// at the first start.
    ///
    /// # Errors
    /// The store's error.
    pub async fn install_admin(&self, new: &NewToken) -> Result<(), Error> {
        let name: Name = "admin"
            .parse()
            .map_err(|_| Error::Internal("no name".to_owned()))?;
        let audit = self
            .event(Actor::Broker, Event::OperatorCreated)
            .detail("admin as admin, at start");
        self.store()
            .replace_operator_token(&name, &new.stored, audit)
            .await?;
        Ok(())
    }
}
