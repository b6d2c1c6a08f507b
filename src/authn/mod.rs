//! Evidence to [`Principal`]: the only room that makes one. Client certificates and
//! OIDC tokens get a file each beside `token`.

pub mod token;

use crate::{
    broker::ports::StoreError,
    domain::{name::Name, principal::Principal, token::TokenId},
};

/// Why a caller is not who it says, or may not come in.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The evidence is not good; why, and which token it claimed to be, is for the audit
    /// log alone.
    #[error("the evidence was refused: {reason}")]
    Refused {
        /// Machine reason.
        reason: &'static str,
        /// The visible part of the token.
        token_id: Option<TokenId>,
    },
    /// The evidence is good, and its service is shut out.
    #[error("service {service} is suspended")]
    Suspended {
        /// Which service.
        service: Name,
        /// Which token proved it.
        token_id: TokenId,
    },
    /// The store could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What authentication yields.
pub type Login = Result<Principal, LoginError>;
