//! Requests in their wire format.
#![no_main]

use credbroker::proto::{
    CreateServiceBindingRequest, EnrollRequest, IssueCredentialsRequest, ListAuditRecordsRequest,
    PutGrantRequest, RenderPolicyTemplateRequest,
};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fn same<M: Message + Default + PartialEq>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        let again = M::decode(&message.encode_to_vec()[..]);
        assert!(again.ok().as_ref() == Some(&message));
    }
}

fuzz_target!(|bytes: &[u8]| {
    let [which, bytes @ ..] = bytes else {
        return;
    };
    match which % 6 {
        0 => same::<CreateServiceBindingRequest>(bytes),
        1 => same::<EnrollRequest>(bytes),
        2 => same::<IssueCredentialsRequest>(bytes),
        3 => same::<ListAuditRecordsRequest>(bytes),
        4 => same::<PutGrantRequest>(bytes),
        _ => same::<RenderPolicyTemplateRequest>(bytes),
    }
});
