//! A client's certificates, as they come in the handshake.
#![no_main]

use std::sync::LazyLock;

use credbroker::authn::{Authenticator, LoginError, PresentedCredentials};
use credbroker_fuzz::{Doors, parts};
use libfuzzer_sys::fuzz_target;

static DOORS: LazyLock<(Doors, Authenticator)> = LazyLock::new(|| {
    let doors = Doors::new();
    let authenticator = doors.authenticator(None);
    (doors, authenticator)
});

fuzz_target!(|chain: &[u8]| {
    let (doors, authenticator) = &*DOORS;
    let shown = PresentedCredentials {
        certificates: parts(chain).into_iter().map(<[u8]>::to_vec).collect(),
        ..PresentedCredentials::default()
    };
    // The store is empty.
    match doors.login(authenticator, shown) {
        Err(LoginError::Refused { .. }) => {}
        other => panic!("{other:?}"),
    }
});
