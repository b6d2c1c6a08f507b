//! Evidence to [`Principal`]: the only room that makes one. Client certificates and
//! OIDC tokens get a file each beside `token`.

pub mod token;

use crate::{
    broker::ports::StoreError,
    domain::{name::Name, principal::Principal},
};

/// Why a caller is not who it says, or may not come in.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The evidence is not good; the reason is for the audit log alone.
    #[error("the evidence was refused: {0}")]
    Refused(&'static str),
    /// The evidence is good, and its service is shut out.
    #[error("service {0} is suspended")]
    Suspended(Name),
    /// The store could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What authentication yields.
pub type Login = Result<Principal, LoginError>;
