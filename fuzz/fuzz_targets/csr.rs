//! A host's request for a certificate.
#![no_main]

use std::{sync::LazyLock, time::Duration};

use credbroker::{broker::ports::CertificateAuthority, ca::OwnCa};
use credbroker_fuzz::now;
use libfuzzer_sys::fuzz_target;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

static CA: LazyLock<OwnCa> = LazyLock::new(|| {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let chain = params.self_signed(&key).expect("a certificate").pem();
    let domain = "prod.example".parse().expect("a trust domain");
    let ttl = Duration::from_secs(3600);
    OwnCa::new(chain, &key.serialize_pem(), domain, ttl).expect("a CA")
});

fuzz_target!(|request: &[u8]| {
    let service = "payments".parse().expect("a name");
    let _ = CA.sign(request, &service, now());
});
