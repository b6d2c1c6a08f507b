//! The header `authorization`: the broker's own tokens, and those that issuers sign.
#![no_main]

use std::sync::LazyLock;

use credbroker::authn::{Authenticator, LoginError, PresentedCredentials};
use credbroker_fuzz::Doors;
use libfuzzer_sys::fuzz_target;

static DOORS: LazyLock<(Doors, Authenticator)> = LazyLock::new(|| {
    let doors = Doors::new();
    let authenticator = doors.authenticator(None);
    (doors, authenticator)
});

fuzz_target!(|header: &str| {
    let (doors, authenticator) = &*DOORS;
    let shown = PresentedCredentials {
        authorization: Some(header.into()),
        ..PresentedCredentials::default()
    };
    // The only known caller is an operator whose token is signed.
    match doors.login(authenticator, shown) {
        Ok(principal) => assert!(header.contains('.'), "{principal:?}"),
        Err(LoginError::Refused { .. }) => {}
        Err(other) => panic!("{other}"),
    }
});
