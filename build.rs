//! Compiles `proto/` with protox, so that no system `protoc` is needed.

use std::{env, fs, path::PathBuf};

use protox::prost::Message;

const PROTOS: [&str; 9] = [
    "credbroker/v1/admin_service.proto",
    "credbroker/v1/audit_service.proto",
    "credbroker/v1/credential_service.proto",
    "credbroker/v1/grant_service.proto",
    "credbroker/v1/identity_service.proto",
    "credbroker/v1/lease_service.proto",
    "credbroker/v1/revocation_service.proto",
    "credbroker/v1/service_registry.proto",
    "credbroker/v1/types.proto",
];

/// Messages that carry a secret get a hand-written `Debug` that hides it.
const SECRET_MESSAGES: [&str; 6] = [
    "credbroker.v1.ImportAdminKeyRequest",
    "credbroker.v1.IssueCredentialsResponse",
    "credbroker.v1.RenewLeaseResponse",
    "credbroker.v1.CreateServiceTokenResponse",
    "credbroker.v1.CreateOperatorResponse",
    "credbroker.v1.CreateEnrollmentTokenResponse",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_server(env::var_os("CARGO_FEATURE_SERVER").is_some())
        .build_client(env::var_os("CARGO_FEATURE_CLIENT").is_some())
        .skip_debug(SECRET_MESSAGES)
        .compile_fds(descriptors)?;
    Ok(())
}
