//! A bundle of CA certificates and their revocation lists.
#![no_main]

use credbroker::authn::certificate::{Authority, VouchesFor};
use credbroker_fuzz::parts;
use libfuzzer_sys::fuzz_target;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

fuzz_target!(|files: &[u8]| {
    let mut parts = parts(files).into_iter().map(<[u8]>::to_vec);
    let bundle = [CertificateDer::from(parts.next().unwrap_or_default())];
    let lists = parts.map(CertificateRevocationListDer::from).collect();
    let _ = Authority::new(VouchesFor::DnsNames, &bundle, lists);
});
