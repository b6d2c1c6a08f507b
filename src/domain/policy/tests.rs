use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::*;

fn refusal(statement: &Value) -> String {
    let document = json!({"Version": VERSION, "Statement": [statement]});
    Document::parse(&document.to_string())
        .unwrap_err()
        .to_string()
}

/// Returns a correct statement with `changes`: keys replaced, or removed if null.
fn with(changes: &Value) -> Value {
    let mut statement =
        json!({"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::b/*"});
    for (key, value) in changes.as_object().unwrap() {
        statement[key] = value.clone();
    }
    statement
        .as_object_mut()
        .unwrap()
        .retain(|_, value| !value.is_null());
    statement
}

fn accepts(changes: &Value) {
    let document = json!({"Version": VERSION, "Statement": with(changes)}).to_string();
    assert!(
        Document::parse(&document).is_ok(),
        "{document}: {:?}",
        Document::parse(&document)
    );
}

fn refuses(changes: &Value, expected: &str) {
    let message = refusal(&with(changes));
    assert!(
        message.contains(expected),
        "{message}\n does not say\n{expected}"
    );
}

fn allow(actions: &[&str], resources: &[&str]) -> Document {
    Document::new(vec![
        Statement::allow("", actions.to_vec(), resources.to_vec()).unwrap(),
    ])
    .unwrap()
}

#[test]
fn a_document_is_sent_minified_in_one_order_of_keys() {
    let text = r#"{ "Statement": { "Resource": ["*"], "Condition": {"StringLike": {"s3:prefix": ["b/", "a/"]},
        "Bool": {"aws:SecureTransport": true}}, "Action": ["s3:B", "s3:A"], "Effect": "Allow", "Sid": "One" },
        "Id": "mine", "Version": "2012-10-17" }"#;
    let document = Document::parse(text).unwrap();
    let sent = concat!(
        r#"{"Version":"2012-10-17","Id":"mine","Statement":[{"Sid":"One","Effect":"Allow","Action":["s3:B","s3:A"],"#,
        r#""Resource":"*","Condition":{"StringLike":{"s3:prefix":["b/","a/"]},"Bool":{"aws:SecureTransport":"true"}}}]}"#,
    );
    assert_eq!(document.to_json(), sent);
    assert_eq!(document.to_string(), sent);
    assert_eq!(format!("{document:?}"), sent);
    assert_eq!(document.size(), sent.len());
    assert_eq!(Document::parse(sent).unwrap(), document);
}

#[test]
fn the_size_counts_characters_and_not_bytes() {
    let document = allow(&["s3:GetObject"], &["arn:aws:s3:::b/é"]);
    assert_eq!(document.size() + 1, document.to_json().len());
}

#[test]
fn a_document_inside_another_is_an_object_and_is_checked_again() {
    #[derive(Serialize, Deserialize)]
    struct Grant {
        policy: Document,
    }
    let grant = Grant {
        policy: allow(&["s3:GetObject"], &["*"]),
    };
    let text = serde_json::to_string(&grant).unwrap();
    assert!(text.starts_with(r#"{"policy":{"Version":"#), "{text}");
    assert_eq!(
        serde_json::from_str::<Grant>(&text).unwrap().policy,
        grant.policy
    );
    let edited = text.replace("s3:GetObject", "GetObject");
    let error = serde_json::from_str::<Grant>(&edited)
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("Statement[0].Action[0]"), "{error}");
}

#[test]
fn a_text_that_is_not_a_policy_is_refused() {
    for wrong in [
        "",
        "null",
        "[]",
        "\"x\"",
        "{",
        "{}",
        r#"{"Version":"2012-10-17"}"#,
        "{\"Version\":\"2012-10-17\",}",
    ] {
        assert!(Document::parse(wrong).is_err(), "{wrong}");
    }
    for wrong in ["[]", "null", "\"x\"", "[1]", "[[]]", "[{}]"] {
        assert!(
            Document::parse(&format!(r#"{{"Version":"{VERSION}","Statement":{wrong}}}"#)).is_err(),
            "{wrong}"
        );
    }
}

#[test]
fn an_older_or_missing_version_is_refused_with_the_reason() {
    for version in [r#""Version":"2008-10-17","#, ""] {
        let text = format!(
            r#"{{{version}"Statement":{{"Effect":"Allow","Action":"s3:Get*","Resource":"*"}}}}"#
        );
        let message = Document::parse(&text).unwrap_err().to_string();
        assert!(
            message.contains("2012-10-17") && message.contains("plain text"),
            "{message}"
        );
    }
}

#[test]
fn input_that_is_large_or_deep_is_refused() {
    let large = " ".repeat(INPUT_MAX + 1);
    assert!(matches!(
        Document::parse(&large).unwrap_err().problem(),
        Problem::TooLarge { .. }
    ));
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    assert!(matches!(
        Document::parse(&deep).unwrap_err().problem(),
        Problem::Syntax(_)
    ));
}

#[test]
fn a_key_that_is_unknown_or_there_twice_is_refused() {
    refuses(
        &json!({"action": "s3:GetObject"}),
        "Statement[0]: has an unknown key \"action\"",
    );
    let twice = r#"{"Version":"2012-10-17","Statement":{"Effect":"Deny","Effect":"Allow","Action":"*","Resource":"*"}}"#;
    assert!(
        Document::parse(twice)
            .unwrap_err()
            .to_string()
            .contains("key \"Effect\" twice")
    );
    let twice = r#"{"Version":"2012-10-17","Statement":[],"Statement":[]}"#;
    assert_eq!(Document::parse(twice).unwrap_err().place(), "document");
    refuses(
        &json!({"Condition": {"Bool": {"aws:SecureTransport": true, "AWS:securetransport": true}}}),
        "twice",
    );
}

#[test]
fn a_principal_is_refused_with_the_reason() {
    refuses(
        &json!({"Principal": "*"}),
        "Statement[0].Principal: does not belong here",
    );
    refuses(
        &json!({"NotPrincipal": {"AWS": "*"}}),
        "NotPrincipal: does not belong here",
    );
}

#[test]
fn a_sid_is_letters_and_digits_and_names_one_statement() {
    accepts(&json!({"Sid": "Read1"}));
    accepts(&json!({"Sid": ""}));
    refuses(&json!({"Sid": "read-1"}), "Statement[0].Sid: \"read-1\"");
    refuses(
        &json!({"Sid": 1}),
        "Statement[0].Sid: must be a string, not a number",
    );
    let one = Statement::allow("Same", ["s3:GetObject"], ["*"]).unwrap();
    let error = Document::new(vec![one.clone(), one]).unwrap_err();
    assert_eq!(error.place(), "Statement[1].Sid");
}

#[test]
fn an_effect_is_allow_or_deny() {
    accepts(&json!({"Effect": "Deny"}));
    refuses(
        &json!({"Effect": "allow"}),
        "Statement[0].Effect: must be \"Allow\" or \"Deny\"",
    );
    refuses(&json!({"Effect": null}), "Statement[0]: has no Effect");
}

#[test]
fn a_statement_names_actions_in_one_way() {
    for right in [
        "*",
        "*:*",
        "s3:*",
        "S3:getobject",
        "execute-api:Invoke",
        "ec2:Describe?n*",
    ] {
        accepts(&json!({"Action": right}));
        accepts(&json!({"Action": null, "NotAction": [right, "s3:Get*"]}));
    }
    for wrong in [
        "",
        "**",
        "GetObject",
        "s3:",
        ":GetObject",
        "i*:*",
        "s?:GetObject",
        "s3:Get:Object",
        "s3:Get Object",
        "s3:${x}",
    ] {
        refuses(
            &json!({"Action": ["s3:GetObject", wrong]}),
            "Statement[0].Action[1]: ",
        );
    }
    refuses(&json!({"Action": []}), "Statement[0].Action: is empty");
    refuses(
        &json!({"Action": {}}),
        "Statement[0].Action[0]: must be a string, not an object",
    );
    refuses(&json!({"Action": null}), "Statement[0]: has no Action");
    refuses(
        &json!({"NotAction": "iam:*"}),
        "Statement[0]: has both Action and NotAction",
    );
}

#[test]
fn a_statement_names_resources_in_one_way() {
    for right in [
        "*",
        "arn:aws:s3:::bucket/${aws:username}/*",
        "arn:*:sqs:*:*:q?",
        "arn:aws-cn:iam::123456789012:role/team/*",
        "arn:aws:iam::*:*",
        "arn:aws-us-gov:sns:us-gov-west-1:123456789012:topic:sub",
        "arn:aws:s3:::bucket/${$}{x}",
    ] {
        accepts(&json!({"Resource": right}));
        accepts(&json!({"Resource": null, "NotResource": [right]}));
    }
    for wrong in [
        "",
        "**",
        "bucket",
        "arn:aws:s3",
        "arn:aws:s3::bucket",
        "arn:moon:s3:::bucket",
        "arn:aws*:s3:::bucket",
        "arn:aws:*:::bucket",
        "arn:aws:s?:::bucket",
        "arn:aws::::bucket",
        "arn:aws:s3:::",
        "arn:aws:s3:eu-west-1::bucket",
        "arn:aws:sqs:${x}:*:q",
        "arn:aws:sqs:*:${aws:PrincipalAccount}:q",
        "arn:aws:s3:::b/${aws:username",
        "arn:aws:s3:::b/${}",
        "arn:aws:iam:*:*:role/x",
        "arn:aws:iam::123456789012:Bob",
        "arn:aws:iam::123456789012:us*/Bob",
        "arn:aws:s3:::\u{4e00}",
        "arn:aws:s3:::\u{7}",
    ] {
        refuses(&json!({"Resource": wrong}), "Statement[0].Resource[0]: ");
    }
    refuses(&json!({"Resource": []}), "Statement[0].Resource: is empty");
    refuses(&json!({"Resource": null}), "Statement[0]: has no Resource");
    refuses(
        &json!({"NotResource": "*"}),
        "Statement[0]: has both Resource and NotResource",
    );
}

#[test]
fn a_condition_compares_what_its_operator_can() {
    accepts(
        &json!({"Condition": {"ForAnyValue:StringLikeIfExists": {"aws:PrincipalTag/cost centre": ["a*", "${aws:username}", 7, true]}}}),
    );
    accepts(
        &json!({"Condition": {"Null": {"aws:TokenIssueTime": "true"}, "NumericLessThan": {"s3:max-keys": 10}}}),
    );
    accepts(
        &json!({"Condition": {"StringEquals": {"token.actions.githubusercontent.com:sub": "repo:x"}}}),
    );
    let place = "Statement[0].Condition";
    refuses(&json!({"Condition": {}}), &format!("{place}: is empty"));
    refuses(
        &json!({"Condition": {"Bool": {}}}),
        &format!("{place}.Bool: is empty"),
    );
    refuses(
        &json!({"Condition": {"stringEquals": {"a:b": "c"}}}),
        &format!("{place}: \"stringEquals\""),
    );
    refuses(
        &json!({"Condition": {"Bool": {"aws:SecureTransport": []}}}),
        &format!("{place}.Bool.aws:SecureTransport: is empty"),
    );
    refuses(
        &json!({"Condition": {"Bool": {"aws:SecureTransport": null}}}),
        "not null",
    );
    refuses(
        &json!({"Condition": {"DateLessThan": {"aws:CurrentTime": "soon"}}}),
        "\"soon\" cannot be compared",
    );
    refuses(
        &json!({"Condition": {"IpAddress": {"aws:SourceIp": "${aws:SourceIp}"}}}),
        "cannot be compared",
    );
    refuses(
        &json!({"Condition": {"StringEquals": {"a:b": "${open"}}}),
        "not closed",
    );
    for wrong in ["", "SourceIp", "aws:", ":x", "aws:PrincipalTag/", "a b:c"] {
        refuses(
            &json!({"Condition": {"StringEquals": {wrong: "x"}}}),
            "is not a condition key",
        );
    }
}

#[test]
fn a_built_statement_goes_through_the_same_checks() {
    let none: [&str; 0] = [];
    assert!(Statement::allow("a b", ["s3:GetObject"], ["*"]).is_err());
    assert!(Statement::allow("", none, ["*"]).is_err());
    assert!(Statement::deny("", ["s3:GetObject"], ["bucket"]).is_err());
    let right = Statement::allow("", ["s3:GetObject"], ["*"]).unwrap();
    assert!(right.clone().when("Equals", "a:b", ["c"]).is_err());
    assert!(right.clone().when("StringEquals", "a:b", none).is_err());
    let once = right.when("StringEquals", "a:b", ["c"]).unwrap();
    assert!(once.clone().when("StringEquals", "A:B", ["d"]).is_err());
    let twice = once.when("StringEquals", "a:d", ["e"]).unwrap();
    assert!(Document::new(Vec::new()).is_err());
    let json = Document::new(vec![twice]).unwrap().to_json();
    assert!(
        json.ends_with(r#""Condition":{"StringEquals":{"a:b":"c","a:d":"e"}}}]}"#),
        "{json}"
    );
}

#[test]
fn an_error_repeats_at_most_80_characters_of_the_document_and_escapes_them() {
    let long = "\u{1b}\u{e9}\n\"".repeat(200);
    let cases = [
        json!({(long.as_str()): 1}),
        json!({"Sid": long}),
        json!({"Effect": long}),
        json!({"Action": long}),
        json!({"Resource": long}),
        json!({"Resource": format!("arn:aws:s3:::${{{long}")}),
        json!({"Condition": {(long.as_str()): {}}}),
        json!({"Condition": {"Bool": {(long.as_str()): "x"}}}),
        json!({"Condition": {"Bool": {(format!("a:{long}")): long}}}),
        json!({"Condition": {"Bool": {(format!("a:{}", "k".repeat(300))): "v".repeat(300)}}}),
    ];
    for case in cases {
        let message = refusal(&with(&case));
        assert!(!message.contains(char::is_control), "{message:?}");
        let repeated = message
            .matches(['k', 'v'])
            .count()
            .max(message.matches("\\u{1b}").count() * 14);
        assert!(repeated <= 80, "{message}");
    }
}

#[test]
fn the_guard_and_the_boundary_are_what_parsing_would_accept() {
    let guarded = allow(&["s3:GetObject"], &["*"]).guarded();
    for document in [guard_alone(), boundary(), guarded] {
        assert_eq!(Document::parse(&document.to_json()), Ok(document));
    }
    assert!(OUTLIVING_ACTIONS.is_sorted());
    assert!(boundary().size() <= SESSION_POLICY_MAX);
}

/// Returns the actions that the last statement denies.
fn guard_of(document: &Document) -> Vec<&str> {
    let guard = document.statements.last().unwrap();
    assert_eq!(
        (guard.effect, guard.sid()),
        (Effect::Deny, Some("CredbrokerGuard"))
    );
    let Actions::Only(denied) = &guard.actions else {
        panic!("{guard:?}");
    };
    denied.0.iter().map(String::as_str).collect()
}

#[test]
fn the_guard_denies_what_a_policy_could_reach_and_always_iam_and_the_credentials_of_sts() {
    let always = [
        "iam:*",
        "lambda:CreateMicrovm*Token",
        "s3:GetDataAccess",
        "sts:Assume*",
        "sts:Get*Token",
    ];
    for (allowed, denied) in [
        ("s3:GetObject", &[][..]),
        ("codeartifact:*", &["codeartifact:GetAuthorizationToken"]),
        ("SSM:get?ccess*", &["ssm:GetAccessToken"]),
        ("sts:GetCallerIdentity", &[]),
        (
            "ssm:*",
            &["ssm:GetAccessToken", "ssm:RequestManagedInstanceRoleToken"],
        ),
    ] {
        let mut expected = [&always[..], denied].concat();
        expected.sort_unstable();
        let guarded = allow(&[allowed], &["*"]).guarded();
        assert_eq!(guard_of(&guarded), expected, "{allowed}");
    }
    let everything = allow(&["*"], &["*"]);
    assert_eq!(guard_of(&everything.guarded()), OUTLIVING_ACTIONS);
    let managed_beside = allow(&["s3:GetObject"], &["*"]).guarded_against_all();
    assert_eq!(guard_of(&managed_beside), OUTLIVING_ACTIONS);
}

#[test]
fn the_guard_denies_all_that_a_not_action_leaves_allowed() {
    let text = r#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","NotAction":["codeartifact:*","s3:*","sso:*","sts:*"],"Resource":"*"}}"#;
    let guarded = Document::parse(text).unwrap().guarded();
    let left_out = ["codeartifact:GetAuthorizationToken", "sso:*"];
    let expected: Vec<_> = OUTLIVING_ACTIONS
        .into_iter()
        .filter(|action| !left_out.contains(action))
        .collect();
    assert_eq!(guard_of(&guarded), expected);
}

#[test]
fn a_canary_may_make_the_call_of_its_probe_alone() {
    for probe in Probe::ALL {
        let document = canary(&[probe]);
        assert_eq!(
            document.to_json(),
            format!(
                r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":"{probe}","Resource":"*"}}]}}"#
            )
        );
        assert_eq!(Document::parse(&document.to_json()), Ok(document));
    }
}

#[test]
fn an_end_in_the_policy_takes_121_characters() {
    let ends: Timestamp = "2026-12-01T13:05:00.9Z".parse().unwrap();
    let document = allow(&["s3:GetObject"], &["*"]).guarded();
    let ending = document.clone().ending(ends);
    let json = ending.to_json();
    let end = r#"{"Effect":"Deny","Action":"*","Resource":"*","Condition":{"DateGreaterThan":{"aws:CurrentTime":"2026-12-01T13:05:00Z"}}}"#;
    assert!(json.contains(end), "{json}");
    assert_eq!(ending.size() - document.size(), 121);
    for document in [ending, nothing_after(ends), everything().ending(ends)] {
        assert_eq!(Document::parse(&document.to_json()), Ok(document));
    }
}

#[test]
fn an_added_statement_replaces_none_and_keeps_every_sid_unique() {
    let document = allow(&["s3:GetObject"], &["*"]).guarded().guarded();
    let guarded = document.guarded();
    let sids: Vec<_> = guarded.statements.iter().map(Statement::sid).collect();
    assert_eq!(
        sids,
        [
            None,
            Some("CredbrokerGuard"),
            Some("CredbrokerGuard2"),
            Some("CredbrokerGuard3")
        ]
    );
    assert_eq!(Document::parse(&guarded.to_json()), Ok(guarded));
}

#[test]
fn only_an_unconditional_denial_makes_a_boundary_and_an_earlier_versions_is_outdated() {
    assert_eq!(strength(&boundary()), Strength::Full);
    assert_eq!(strength(&deny_all()), Strength::Full);
    let all = Statement::allow("", ["*"], ["*"]).unwrap();
    let with = |denied: Statement| Document::new(vec![all.clone(), denied]).unwrap();
    let earlier = [
        "iam:*",
        "sts:Assume*",
        "sts:GetFederationToken",
        "sts:GetSessionToken",
        "sts:GetWebIdentityToken",
    ];
    let earlier = with(Statement::deny("", earlier, ["*"]).unwrap());
    assert_eq!(strength(&earlier), Strength::Outdated);
    let iam_alone = with(Statement::deny("", ["iam:*"], ["*"]).unwrap());
    assert_eq!(strength(&iam_alone), Strength::Weak);
    let sometimes = Statement::deny("", OUTLIVING_ACTIONS, ["*"])
        .unwrap()
        .when("Bool", "aws:SecureTransport", ["false"])
        .unwrap();
    assert_eq!(strength(&with(sometimes)), Strength::Weak);
    let nothing = Document::new(vec![all.clone()]).unwrap();
    assert_eq!(strength(&nothing), Strength::Weak);
}
