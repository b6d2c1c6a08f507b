//! Operators, the first one included.

use crate::{
    broker::{Broker, By, Error, NewToken, on_conflict},
    domain::{
        access::Caller,
        approval::Change,
        audit::{Event, Subject},
        name::Name,
        operator::{Operator, Role},
        token::{Token, TokenKind},
    },
};

/// An operator and its token, for the one moment it is shown.
#[derive(Debug)]
pub struct NewOperator {
    /// The operator.
    pub operator: Operator,
    /// Its token.
    pub token: Token,
}

impl Broker {
    /// Makes the operator `admin` if there is none yet, once `keep` has its token; of several
    /// brokers one does. Returns whether it has.
    ///
    /// # Errors
    /// The store's, or those of `keep`.
    pub async fn make_first_admin<E: From<Error>>(
        &self,
        keep: impl FnOnce(&NewToken) -> Result<(), E>,
    ) -> Result<bool, E> {
        let is_there = async || Ok::<_, Error>(!self.store().operators().await?.is_empty());
        if is_there().await? {
            return Ok(false);
        }
        let _by_nobody_else = self.claim("first operator").await?;
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
    /// The name is taken, or it takes a second operator.
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
        let change = Change::CreateOperator {
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

    /// All operators.
    ///
    /// # Errors
    /// The store's.
    pub async fn operators(&self, caller: &Caller) -> Result<Vec<Operator>, Error> {
        let operators = self.store().operators().await?;
        self.store()
            .record(self.caller_event(caller, Event::OperatorRead))
            .await?;
        Ok(operators)
    }

    /// Removes an operator, its token, and the approvals that it has asked for or given. That takes
    /// nobody's consent.
    ///
    /// # Errors
    /// It is unknown, or the last admin.
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

    /// A token for the operator `admin`, not yet known to the store, so that it can be
    /// put into safe hands first.
    ///
    /// # Errors
    /// None; the type is that of its part.
    pub fn new_admin_token(&self) -> Result<NewToken, Error> {
        self.new_token(TokenKind::Operator, None)
    }

    /// Makes this the token of the operator `admin`, who is made if unknown: for the
    /// first start.
    ///
    /// # Errors
    /// The store's.
    pub async fn install_admin(&self, new: &NewToken) -> Result<(), Error> {
        let name: Name = "admin"
            .parse()
            .map_err(|_| Error::Internal("no name".to_owned()))?;
        let audit = self
            .event(By::Broker, Event::OperatorCreated)
            .detail("admin as admin, at start");
        self.store()
            .replace_operator_token(&name, &new.stored, audit)
            .await?;
        Ok(())
    }
}
