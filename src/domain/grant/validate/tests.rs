use std::time::Duration;

use super::super::{InlinePolicy, Reuse};
use super::*;
use crate::domain::{policy::Document, probe::Probe};

fn role_grant() -> GrantSpec {
    GrantSpec {
        kind: KindSpec::AssumeRole {
            role_arn: "arn:aws:iam::111122223333:role/credbroker/app"
                .parse()
                .unwrap(),
            external_id: None,
            source_identity: false,
            region: None,
            tags: vec![],
        },
        policy: Some(inline(
            r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::b/*"}}"#,
        )),
        managed_policies: vec![],
        default_ttl: Duration::from_secs(3600),
        max_ttl: Duration::from_secs(7200),
        allow_broad: false,
        probe: None,
        further_probes: Vec::new(),
        probe_regions: Vec::new(),
        ends_by_policy: false,
        reuse: None,
    }
}

fn user_grant() -> GrantSpec {
    GrantSpec {
        kind: KindSpec::IamUser {
            groups: vec![],
            path: "/".to_owned(),
            permissions_boundary: None,
            tags: vec![],
        },
        ..role_grant()
    }
}

fn inline(json: &str) -> InlinePolicy {
    InlinePolicy {
        document: Document::parse(json).unwrap(),
        template: None,
    }
}

fn fields(spec: &GrantSpec) -> Vec<String> {
    violations(spec, Partition::Aws)
        .into_iter()
        .map(|v| v.field)
        .collect()
}

fn tag(key: &str) -> Tag {
    Tag {
        key: key.to_owned(),
        value: "v".to_owned(),
        transitive: false,
    }
}

#[test]
fn a_narrow_grant_has_no_violations() {
    assert_eq!(fields(&role_grant()), [""; 0]);
    assert_eq!(fields(&user_grant()), [""; 0]);
}

#[test]
fn a_session_policy_is_sent_with_the_guard_against_minting() {
    let sent = role_grant().effective_policy().unwrap().to_json();
    assert!(
        sent.contains(r#""Effect":"Deny""#) && sent.contains("iam:*"),
        "{sent}"
    );
    let unnarrowed = GrantSpec {
        policy: None,
        ..role_grant()
    };
    assert_eq!(unnarrowed.effective_policy(), Some(policy_boundary()));
    let broad = GrantSpec {
        allow_broad: true,
        ..role_grant()
    };
    assert_eq!(broad.effective_policy(), broad.policy.map(|p| p.document));
}

fn policy_boundary() -> Document {
    crate::domain::policy::boundary()
}

#[test]
fn lifetimes_outside_the_bounds_of_aws_are_refused_with_the_bound_named() {
    let short = GrantSpec {
        default_ttl: Duration::from_secs(899),
        ..role_grant()
    };
    assert_eq!(fields(&short), ["grant.default_ttl"]);
    let long = GrantSpec {
        max_ttl: Duration::from_secs(43_201),
        ..role_grant()
    };
    let found = violations(&long, Partition::Aws);
    assert!(found[0].message.contains("15m to 12h"), "{found:?}");
    let inverted = GrantSpec {
        max_ttl: Duration::from_secs(1800),
        ..role_grant()
    };
    assert_eq!(fields(&inverted), ["grant.default_ttl"]);
}

#[test]
fn a_session_policy_one_character_too_long_is_refused() {
    let sized = |bucket: usize| {
        let json = format!(
            r#"{{"Version":"2012-10-17","Statement":{{"Effect":"Allow","Action":"s3:GetObject","Resource":"arn:aws:s3:::{}"}}}}"#,
            "b".repeat(bucket)
        );
        GrantSpec {
            policy: Some(inline(&json)),
            ..role_grant()
        }
    };
    let base = sized(1).effective_policy().unwrap().to_json().len() - 1;
    assert_eq!(fields(&sized(SESSION_POLICY_MAX - base)), [""; 0]);
    assert_eq!(
        fields(&sized(SESSION_POLICY_MAX - base + 1)),
        ["grant.policy"]
    );
}

#[test]
fn a_broad_policy_needs_to_be_allowed_in_words() {
    for json in [
        r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}"#,
        r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"iam:*","Resource":"*"}}"#,
    ] {
        let broad = GrantSpec {
            policy: Some(inline(json)),
            ..user_grant()
        };
        assert!(
            fields(&broad).contains(&"grant.allow_broad".to_owned()),
            "{json}"
        );
        let allowed = GrantSpec {
            allow_broad: true,
            ..broad
        };
        assert_eq!(fields(&allowed), [""; 0]);
        assert!(!allowed.breadth().is_empty());
    }
}

#[test]
fn tags_follow_the_patterns_and_counts_of_aws() {
    let with = |tags: Vec<Tag>| {
        let mut spec = user_grant();
        if let KindSpec::IamUser { tags: t, .. } = &mut spec.kind {
            *t = tags;
        }
        fields(&spec)
    };
    assert_eq!(with(vec![tag("team"), tag("cost centre")]), [""; 0]);
    assert_eq!(
        with((0..47).map(|i| tag(&format!("k{i}"))).collect()),
        [""; 0]
    );
    let wrong: [Vec<Tag>; 7] = [
        (0..48).map(|i| tag(&format!("k{i}"))).collect(),
        vec![tag("Team"), tag("team")],
        vec![tag("aws:x")],
        vec![tag("Credbroker:service")],
        vec![tag("semi;colon")],
        vec![Tag {
            value: "v".repeat(257),
            ..tag("k")
        }],
        vec![Tag {
            transitive: true,
            ..tag("k")
        }],
    ];
    for tags in wrong {
        assert_eq!(with(tags.clone()), ["grant.tags"], "{tags:?}");
    }
}

#[test]
fn a_kind_that_could_do_nothing_is_refused() {
    assert_eq!(
        fields(&GrantSpec {
            policy: None,
            ..user_grant()
        }),
        ["grant.policy"]
    );
}

#[test]
fn regions_are_of_the_brokers_partition() {
    for (region, good) in [
        ("eu-central-1", true),
        ("cn-north-1", false),
        ("Europe", false),
        ("us-east-", false),
    ] {
        let spec = GrantSpec {
            kind: KindSpec::FederationToken {
                region: Some(region.to_owned()),
                tags: vec![],
            },
            ..role_grant()
        };
        assert_eq!(fields(&spec).is_empty(), good, "{region}");
    }
}

#[test]
fn regions_to_probe_in_are_few_and_named_once() {
    let many = (1..=9).map(|number| format!("eu-west-{number}")).collect();
    for regions in [many, vec!["eu-west-1".to_owned(); 2]] {
        let spec = GrantSpec {
            probe_regions: regions,
            ..role_grant()
        };
        assert_eq!(fields(&spec), ["grant.probe_regions"]);
    }
}

#[test]
fn probes_are_named_once_and_few_with_their_regions() {
    let with = |further: &[Probe], regions: &[&str]| {
        fields(&GrantSpec {
            probe: Some(Probe::KmsListKeys),
            further_probes: further.to_vec(),
            probe_regions: regions.iter().map(ToString::to_string).collect(),
            ..role_grant()
        })
    };
    let (sqs, s3, kms) = (
        Probe::SqsListQueues,
        Probe::S3ListAllMyBuckets,
        Probe::KmsListKeys,
    );
    let regions = ["eu-west-1", "eu-west-2"];
    assert_eq!(with(&[sqs, s3], &regions), [""; 0]);
    let with_ssm = [sqs, s3, Probe::SsmDescribeParameters];
    assert_eq!(with(&with_ssm, &regions), ["grant.probe_regions"]);
    for twice in [[kms].as_slice(), &[sqs, sqs]] {
        assert_eq!(with(twice, &[]), ["grant.further_probes"]);
    }
}

#[test]
fn sessions_alone_are_probed_and_shared() {
    let given = |spec| {
        fields(&GrantSpec {
            probe: Some(Probe::KmsListKeys),
            further_probes: vec![Probe::SqsListQueues],
            probe_regions: vec!["eu-west-1".to_owned()],
            reuse: Some(Reuse::PerService),
            ends_by_policy: true,
            ..spec
        })
    };
    assert_eq!(given(role_grant()), [""; 0]);
    let refused = [
        "grant.probe",
        "grant.further_probes",
        "grant.probe_regions",
        "grant.reuse",
        "grant.ends_by_policy",
    ];
    assert_eq!(given(user_grant()), refused);
}

#[test]
fn a_user_path_stays_below_the_brokers_own() {
    for (path, good) in [
        ("/", true),
        ("/team/api/", true),
        ("team", false),
        ("/a//b/", false),
        ("//", false),
    ] {
        assert_eq!(is_path(path), good, "{path}");
    }
}
