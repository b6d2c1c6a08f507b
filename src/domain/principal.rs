//! Who is calling.

use std::net::SocketAddr;

use crate::domain::{name::Name, operator::Role, token::TokenId};

/// Where a call came from and what it called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Address of the peer.
    pub peer: Option<SocketAddr>,
    /// `credbroker.v1.Service/Method`.
    pub method: String,
}

/// A proven identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A registered, unsuspended service.
    Service(Name),
    /// An operator in its role.
    Operator(Name, Role),
}

/// A caller whose identity has been proven. Only `authn` builds it (a test sees to it).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    identity: Identity,
    token_id: TokenId,
    origin: Origin,
}

impl Principal {
    /// For `authn` alone, after it has checked the evidence.
    #[cfg(feature = "server")]
    pub(crate) const fn proven(identity: Identity, token_id: TokenId, origin: Origin) -> Self {
        Self {
            identity,
            token_id,
            origin,
        }
    }

    /// Who it is.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Which token proved it.
    #[must_use]
    pub const fn token_id(&self) -> &TokenId {
        &self.token_id
    }

    /// Where it called from, and what.
    #[must_use]
    pub const fn origin(&self) -> &Origin {
        &self.origin
    }
}
