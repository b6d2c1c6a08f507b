//! Messages, clients and servers generated from `proto/`.

#![allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::nursery,
    reason = "generated"
)]

use std::fmt;

tonic::include_proto!("credbroker.v1");

/// Compiled proto files, for reflection and for the test of the access table.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

macro_rules! debug_without_secrets {
    ($message:ident, $shown:ident) => {
        impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message))
                    .field(stringify!($shown), &self.$shown)
                    .finish_non_exhaustive()
            }
        }
    };
}

debug_without_secrets!(ImportAdminKeyRequest, access_key_id);
debug_without_secrets!(IssueCredentialsResponse, lease);
debug_without_secrets!(RenewLeaseResponse, lease);
debug_without_secrets!(CreateServiceTokenResponse, service_token);
debug_without_secrets!(CreateOperatorResponse, operator);
debug_without_secrets!(CreateEnrollmentTokenResponse, token_id);
