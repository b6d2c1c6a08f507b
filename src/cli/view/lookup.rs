//! Owners of access keys and tokens.

use serde::Serialize;

use super::{kind, state, time};
use crate::proto::{self, token_owner::Owner};

/// Output of `lookup -o json` for one key.
#[derive(Serialize)]
pub(in crate::cli) struct KeyOwner {
    pub(in crate::cli) access_key_id: String,
    pub(in crate::cli) known: bool,
    pub(in crate::cli) service: Option<String>,
    pub(in crate::cli) grant: Option<String>,
    pub(in crate::cli) lease_id: Option<String>,
    pub(in crate::cli) kind: Option<&'static str>,
    pub(in crate::cli) state: Option<&'static str>,
    pub(in crate::cli) issued_at: Option<String>,
    pub(in crate::cli) expires_at: Option<String>,
    pub(in crate::cli) ended_at: Option<String>,
    pub(in crate::cli) access_may_live_until: Option<String>,
    pub(in crate::cli) current: Option<bool>,
    pub(in crate::cli) admin_key: bool,
    pub(in crate::cli) revoke_command: Option<String>,
}

/// Output of `lookup -o json` for one token of the broker.
#[derive(Serialize)]
pub(in crate::cli) struct TokenOwner {
    pub(in crate::cli) token_id: String,
    pub(in crate::cli) known: bool,
    /// Service that the token proves, or for which a host may enrol with it.
    pub(in crate::cli) service: Option<String>,
    pub(in crate::cli) operator: Option<String>,
    /// `service`, `operator` or `enrollment`.
    pub(in crate::cli) kind: Option<&'static str>,
    pub(in crate::cli) created_at: Option<String>,
    pub(in crate::cli) expires_at: Option<String>,
    /// Command that ends the access that the token may have given.
    pub(in crate::cli) revoke_command: Option<String>,
    /// Command that ends the token alone.
    pub(in crate::cli) delete_command: Option<String>,
}

impl From<proto::TokenOwner> for TokenOwner {
    fn from(owner: proto::TokenOwner) -> Self {
        let id = owner.token_id;
        let (kind, service, operator) = match owner.owner {
            Some(Owner::Service(name)) => (Some("service"), Some(name), None),
            Some(Owner::Operator(name)) => (Some("operator"), None, Some(name)),
            Some(Owner::Enrolls(name)) => (Some("enrollment"), Some(name), None),
            None => (None, None, None),
        };
        let revoke =
            |name: &String| format!("credbroker revoke {name} --reason \"token {id} was found\"");
        let delete_command = match (kind, &service, &operator) {
            (Some("service"), Some(name), _) => {
                Some(format!("credbroker service token delete {name} {id}"))
            }
            (_, _, Some(name)) => Some(format!("credbroker operator delete {name}")),
            _ => None,
        };
        Self {
            known: kind.is_some(),
            revoke_command: service.as_ref().map(revoke),
            delete_command,
            service,
            operator,
            kind,
            created_at: time(owner.created_at.as_ref()),
            expires_at: time(owner.expires_at.as_ref()),
            token_id: id,
        }
    }
}

/// Owner of one key or token that was looked up.
#[derive(Serialize)]
#[serde(untagged)]
pub(in crate::cli) enum Found {
    Key(KeyOwner),
    Token(TokenOwner),
}

impl From<proto::AccessKeyOwner> for KeyOwner {
    fn from(owner: proto::AccessKeyOwner) -> Self {
        let known = owner.admin_key || owner.lease.is_some();
        let revoke_command = revoke_command(&owner);
        let lease = owner.lease.as_ref();
        Self {
            known,
            revoke_command,
            service: lease.map(|lease| lease.service.clone()),
            grant: lease.map(|lease| lease.grant.clone()),
            lease_id: lease.map(|lease| lease.lease_id.clone()),
            kind: lease.map(|lease| kind(lease.kind)),
            state: lease.map(|lease| state(lease.state)),
            issued_at: time(owner.issued_at.as_ref()),
            expires_at: lease.and_then(|lease| time(lease.expires_at.as_ref())),
            ended_at: lease.and_then(|lease| time(lease.ended_at.as_ref())),
            access_may_live_until: time(owner.access_may_live_until.as_ref()),
            current: known.then_some(owner.current),
            admin_key: owner.admin_key,
            access_key_id: owner.access_key_id,
        }
    }
}

impl KeyOwner {
    /// Returns in words whether AWS accepts the key, as far as the broker knows.
    pub(in crate::cli) fn works(&self) -> String {
        let until = self.expires_at.as_deref().unwrap_or("its end");
        let current = self.current == Some(true);
        let session = self.kind != Some("iam_user");
        match self.state {
            None if current => "yes: the broker works with it".to_owned(),
            None => "the broker does not work with it; `credbroker admin-key status` shows \
                     whether it is still to be deleted"
                .to_owned(),
            Some("revoked" | "expired") => match &self.access_may_live_until {
                None => "no: the lease is over".to_owned(),
                Some(until) => format!(
                    "no: the lease is over; but access made from it before, such as a console session, may live \
                     until {until}: revoke it"
                ),
            },
            Some(_) if session && !current => format!(
                "yes, until {until} at the latest: the lease has another, and revoking it ends both"
            ),
            Some(_) if !current => "no: it was removed to make room for another".to_owned(),
            Some("active") => format!("yes, until {until}"),
            Some(_) if session => {
                format!("yes, until {until}, unless AWS is seen to refuse it: revoke it")
            }
            Some(_) => "perhaps: the broker is taking it away".to_owned(),
        }
    }
}

/// Returns the command that ends the key's access, if any access is left.
fn revoke_command(owner: &proto::AccessKeyOwner) -> Option<String> {
    if owner.admin_key {
        let rotate = || "credbroker admin-key rotate".to_owned();
        return owner.current.then(rotate);
    }
    let lease = owner.lease.as_ref()?;
    let is_left = lease.ended_at.is_none() || owner.access_may_live_until.is_some();
    is_left.then(|| {
        format!(
            "credbroker revoke {} --reason \"access key {} was found\"",
            lease.service, owner.access_key_id
        )
    })
}
