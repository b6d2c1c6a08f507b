//! An issuer's JWK set, with which a token is then checked.
#![no_main]

use std::sync::LazyLock;

use credbroker::authn::{LoginError, PresentedCredentials};
use credbroker_fuzz::Doors;
use libfuzzer_sys::fuzz_target;

static DOORS: LazyLock<Doors> = LazyLock::new(Doors::new);
const TOKEN: &str = include_str!("../seeds/login/jwt");

fuzz_target!(|keys: &[u8]| {
    let shown = PresentedCredentials {
        authorization: Some(TOKEN.into()),
        ..PresentedCredentials::default()
    };
    match DOORS.login(&DOORS.authenticator(Some(keys)), shown) {
        Ok(_) | Err(LoginError::Refused { .. }) => {}
        Err(other) => panic!("{other}"),
    }
});
