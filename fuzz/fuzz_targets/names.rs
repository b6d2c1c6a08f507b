//! Names, ARNs, ids, patterns, lifetimes: an accepted text is printed as it was read.
#![no_main]

use std::{fmt::Display, str::FromStr};

use credbroker::{
    audit::checkpoint::Receipt,
    domain::{
        arn::{AccountId, PolicyArn, RoleArn, UserArn},
        binding::{BindingId, DnsName},
        claims::Pattern,
        duration,
        name::{GrantName, LeaseId, Name},
        request::RequestId,
        spiffe::{SpiffeId, TrustDomain},
    },
};
use libfuzzer_sys::fuzz_target;

fn same<T: FromStr + Display + PartialEq>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let again = value.to_string().parse::<T>().ok();
        assert!(again.as_ref() == Some(&value), "{text:?} as {value}");
    }
}

fuzz_target!(|text: &str| {
    same::<Name>(text);
    same::<GrantName>(text);
    same::<LeaseId>(text);
    same::<RequestId>(text);
    same::<BindingId>(text);
    same::<AccountId>(text);
    same::<RoleArn>(text);
    same::<PolicyArn>(text);
    same::<UserArn>(text);
    same::<TrustDomain>(text);
    same::<SpiffeId>(text);
    same::<DnsName>(text);
    same::<Receipt>(text);
    if let Ok(lifetime) = duration::parse(text) {
        let written = duration::humanize(lifetime);
        assert_eq!(duration::parse(&written), Ok(lifetime));
    }
    let (pattern, value) = text.split_once('\n').unwrap_or((text, text));
    if let Ok(pattern) = pattern.parse::<Pattern>() {
        assert!(pattern.intersects(&pattern));
        if let Ok(exact) = value.parse::<Pattern>()
            && pattern.matches(value)
            && !value.contains(['*', '?'])
        {
            assert!(pattern.intersects(&exact) && exact.intersects(&pattern));
        }
    }
});
