use super::*;
use crate::domain::policy::SESSION_POLICY_MAX;

/// Characters that every template leaves for the guard.
const GUARD: usize = 150;

fn values(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// Returns the statements of a template, one to a line.
fn rendered(name: &str, pairs: &[(&str, &str)]) -> Vec<String> {
    let document = find(name)
        .unwrap()
        .render(&values(pairs), Partition::Aws)
        .unwrap();
    let json: serde_json::Value = serde_json::from_str(&document.to_json()).unwrap();
    json["Statement"]
        .as_array()
        .unwrap()
        .iter()
        .map(statement_in_words)
        .collect()
}

fn statement_in_words(statement: &serde_json::Value) -> String {
    assert_eq!(statement["Effect"], "Allow");
    let words = |key: &str| match &statement[key] {
        serde_json::Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().unwrap())
            .collect::<Vec<_>>()
            .join(" "),
        item => item.as_str().unwrap().to_owned(),
    };
    let condition = statement
        .get("Condition")
        .map(|condition| format!(" when {condition}"))
        .unwrap_or_default();
    format!("{} on {}{condition}", words("Action"), words("Resource"))
}

fn refusal(name: &str, pairs: &[(&str, &str)]) -> CatalogueError {
    find(name)
        .unwrap()
        .render(&values(pairs), Partition::Aws)
        .unwrap_err()
}

fn tried(kind: ParameterKind, value: &str) -> bool {
    kind.parse(value, Partition::Aws).is_ok()
}

fn longest(kind: ParameterKind) -> String {
    let arn =
        |service: &str, rest: &str| format!("arn:aws:{service}:ap-southeast-1:123456789012:{rest}");
    match kind {
        ParameterKind::Bucket => "b".repeat(63),
        ParameterKind::KeyPrefix => format!("{}/", "p".repeat(255)),
        ParameterKind::HostedZoneId => "Z".repeat(32),
        ParameterKind::QueueArn => arn("sqs", &"q".repeat(80)),
        ParameterKind::TableArn => arn("dynamodb", &format!("table/{}", "t".repeat(255))),
        ParameterKind::IdentityArn => arn(
            "ses",
            &format!(
                "identity/{}.example.com",
                ["d".repeat(60).as_str(); 3].join(".")
            ),
        ),
        ParameterKind::EmailAddress => format!("{}@{}.example.com", "u".repeat(64), "d".repeat(63)),
        ParameterKind::RepositoryArn => arn("ecr", &format!("repository/{}", "r".repeat(256))),
        ParameterKind::MetricNamespace => "n".repeat(255),
        _ => kind.example().to_owned(),
    }
}

#[test]
fn every_template_is_narrow_and_leaves_room_for_the_guard() {
    for template in templates() {
        let all = |parameter: &Parameter| (parameter.name.to_owned(), longest(parameter.kind));
        let longest = template.parameters.iter().map(all).collect();
        for document in [
            template.example().unwrap(),
            template.render(&longest, Partition::Aws).unwrap(),
        ] {
            assert_eq!(document.breadth(), [], "{}", template.name);
            assert!(
                document.size() <= SESSION_POLICY_MAX - GUARD,
                "{} {}",
                template.name,
                document.size()
            );
            assert_eq!(Document::parse(&document.to_json()), Ok(document));
        }
    }
}

#[test]
fn the_guard_fits_beside_an_example_of_every_template() {
    for (name, document) in examples() {
        let guarded = document.unwrap().guarded();
        assert!(guarded.size() <= SESSION_POLICY_MAX, "{name}");
    }
}

#[test]
fn names_are_unique_sorted_and_found() {
    assert!(templates().is_sorted_by(|one, next| one.name < next.name));
    for template in templates() {
        assert_eq!(
            find(template.name).map(|found| found.name),
            Some(template.name)
        );
        assert!(
            template.summary.ends_with('.')
                && template.parameters.iter().all(|p| p.summary.ends_with('.'))
        );
    }
    assert!(find("everything").is_none());
}

#[test]
fn every_template_refuses_wildcards_and_variables_in_each_value() {
    for template in templates() {
        for parameter in template.parameters {
            for widening in ["*", "?", "${aws:username}", "${*}"] {
                for value in [
                    widening.to_owned(),
                    format!("{}{widening}", parameter.kind.example()),
                    format!("{widening}/"),
                ] {
                    assert!(
                        !tried(parameter.kind, &value),
                        "{} {} {value}",
                        template.name,
                        parameter.name
                    );
                }
            }
            for value in ["", " ", "\"", "a\",\"b", "\u{4e00}"] {
                assert!(
                    !tried(parameter.kind, value),
                    "{} {} {value}",
                    template.name,
                    parameter.name
                );
            }
        }
    }
}

#[test]
fn every_template_renders_for_the_partition_asked_for() {
    for template in templates() {
        let local = |parameter: &Parameter| {
            let example = parameter.kind.example().replace("arn:aws:", "arn:aws-cn:");
            (
                parameter.name.to_owned(),
                example.replace("eu-central-1", "cn-north-1"),
            )
        };
        let values = template.parameters.iter().map(local).collect();
        let json = template
            .render(&values, Partition::AwsCn)
            .unwrap()
            .to_json();
        assert!(!json.contains("arn:aws:"), "{json}");
    }
    let elsewhere = values(&[("queue", "arn:aws:sqs:eu-central-1:123456789012:orders")]);
    assert!(
        find("sqs-producer")
            .unwrap()
            .render(&elsewhere, Partition::AwsUsGov)
            .is_err()
    );
}

#[test]
fn every_mistake_is_told_at_once() {
    let error = refusal(
        "s3-read-only",
        &[("bucket", "Acme"), ("prefix", "a"), ("object", "x")],
    );
    assert_eq!(error.mistakes().len(), 3);
    assert_eq!(
        error.to_string(),
        "template s3-read-only: there is no parameter \"object\": it has bucket, prefix; \
         bucket is not a bucket name: a bucket name has only lower-case letters, digits, dots and dashes; an example is acme-invoices; \
         prefix is not a prefix of object keys: close it with a slash, or reports would open reports-secret too; an example is reports/2030/"
    );
    assert_eq!(
        refusal("s3-read-only", &[]).to_string(),
        "template s3-read-only: bucket is missing: give a bucket name, such as acme-invoices"
    );
}

#[test]
fn each_kind_takes_what_aws_takes() {
    let arn = "arn:aws:kms:eu-west-1:123456789012:key/mrk-1234abcd12ab34cd56ef1234567890ab";
    for (kind, values) in [
        (ParameterKind::Region, "eu-west-1 ap-southeast-3"),
        (ParameterKind::Bucket, "abc my.logs-2030"),
        (ParameterKind::KeyPrefix, "in/ year=2030/month=1/"),
        (ParameterKind::HostedZoneId, "Z1"),
        (ParameterKind::EmailAddress, "me+a@example.com"),
        (ParameterKind::MetricNamespace, "Acme Acme/Web:1"),
        (ParameterKind::KeyArn, arn),
    ] {
        for value in values.split(' ') {
            assert!(tried(kind, value), "{kind} {value}");
        }
    }
}

#[test]
fn each_kind_refuses_what_is_no_such_thing() {
    for (kind, values) in [
        (
            ParameterKind::Region,
            "eu-central us-gov-west-1 cn-north-1 eu-central-1a EU-west-1",
        ),
        (ParameterKind::Account, "1234 1234-5678-9012"),
        (
            ParameterKind::Bucket,
            "ab 10.0.0.1 a..b a/b -ab ab. Abc data--x-s3 xn--data",
        ),
        (ParameterKind::KeyPrefix, "in /in/ / i<n/"),
        (ParameterKind::HostedZoneId, "z1 Z /hostedzone/Z1 A1"),
        (
            ParameterKind::EmailAddress,
            "<me@example.com> me@localhost me@-a.com @a.com a@b@c.com",
        ),
        (ParameterKind::MetricNamespace, "AWS/EC2 :x"),
    ] {
        for value in values.split(' ') {
            assert!(!tried(kind, value), "{kind} {value}");
        }
    }
}

#[test]
fn each_arn_names_one_thing_of_its_own_service() {
    let at = "eu-west-1:123456789012";
    for (kind, service, right, wrong) in [
        (ParameterKind::QueueArn, "sqs", "q q.fifo", "a.b .fifo a:b"),
        (
            ParameterKind::TableArn,
            "dynamodb",
            "table/t.1",
            "table/t1/index/i table/t t1",
        ),
        (
            ParameterKind::IdentityArn,
            "ses",
            "identity/a.com identity/me@a.com",
            "template/t identity/a",
        ),
        (
            ParameterKind::RepositoryArn,
            "ecr",
            "repository/a/b",
            "repository/a/ repository/A1 a/b",
        ),
        (ParameterKind::KeyArn, "kms", "", "alias/mine key/1234 key/"),
    ] {
        for name in right.split(' ').filter(|name| !name.is_empty()) {
            assert!(
                tried(kind, &format!("arn:aws:{service}:{at}:{name}")),
                "{kind} {name}"
            );
            assert!(
                !tried(kind, &format!("arn:aws:s3:{at}:{name}")),
                "{kind} {name}"
            );
            assert!(
                !tried(kind, &format!("arn:aws:{service}:::{name}")),
                "{kind} {name}"
            );
        }
        for name in wrong.split(' ') {
            assert!(
                !tried(kind, &format!("arn:aws:{service}:{at}:{name}")),
                "{kind} {name}"
            );
        }
    }
}

#[test]
fn a_whole_bucket_is_listed_and_read() {
    assert_eq!(
        rendered("s3-read-only", &[("bucket", "acme")]),
        [
            "s3:ListBucket on arn:aws:s3:::acme",
            "s3:GetBucketLocation on arn:aws:s3:::acme",
            "s3:GetObject on arn:aws:s3:::acme/*"
        ]
    );
}

#[test]
fn a_prefix_narrows_both_the_listing_and_the_objects() {
    assert_eq!(
        rendered("s3-read-only", &[("bucket", "acme"), ("prefix", "in/")]),
        [
            r#"s3:ListBucket on arn:aws:s3:::acme when {"StringLike":{"s3:prefix":"in/*"}}"#,
            "s3:GetBucketLocation on arn:aws:s3:::acme",
            "s3:GetObject on arn:aws:s3:::acme/in/*",
        ]
    );
}

#[test]
fn writing_a_bucket_covers_multipart_uploads_and_tells_none_outside_a_prefix() {
    let objects = "s3:AbortMultipartUpload s3:DeleteObject s3:GetObject s3:ListMultipartUploadParts s3:PutObject on arn:aws:s3:::acme";
    let whole = rendered("s3-read-write", &[("bucket", "acme")]);
    assert_eq!(
        whole[1],
        "s3:GetBucketLocation s3:ListBucketMultipartUploads on arn:aws:s3:::acme"
    );
    assert_eq!(whole[2], format!("{objects}/*"));
    let below = rendered("s3-read-write", &[("bucket", "acme"), ("prefix", "in/")]);
    assert_eq!(below[1], "s3:GetBucketLocation on arn:aws:s3:::acme");
    assert_eq!(below[2], format!("{objects}/in/*"));
}

#[test]
fn a_zone_is_read_by_one_template_and_changed_by_the_other() {
    assert_eq!(
        rendered("route53-read-only", &[("zone", "Z1")]),
        ["route53:GetHostedZone route53:ListResourceRecordSets on arn:aws:route53:::hostedzone/Z1"]
    );
    assert_eq!(
        rendered("route53-full", &[("zone", "Z1")]),
        [
            "route53:ChangeResourceRecordSets route53:GetHostedZone route53:ListResourceRecordSets on arn:aws:route53:::hostedzone/Z1",
            "route53:GetChange on arn:aws:route53:::change/*",
        ]
    );
}

#[test]
fn snapshots_are_made_of_the_accounts_volumes_and_tagged_only_when_made() {
    assert_eq!(
        rendered(
            "ec2-snapshot-create",
            &[("region", "eu-west-1"), ("account", "123456789012")]
        ),
        [
            "ec2:CreateSnapshot ec2:CreateSnapshots on arn:aws:ec2:eu-west-1:123456789012:instance/* \
             arn:aws:ec2:eu-west-1:123456789012:volume/* arn:aws:ec2:eu-west-1:*:snapshot/*",
            "ec2:CreateTags on arn:aws:ec2:eu-west-1:*:snapshot/* \
             when {\"StringEquals\":{\"ec2:CreateAction\":[\"CreateSnapshot\",\"CreateSnapshots\"]}}",
            "ec2:DescribeInstances ec2:DescribeSnapshots ec2:DescribeTags ec2:DescribeVolumes on * \
             when {\"StringEquals\":{\"aws:RequestedRegion\":\"eu-west-1\"}}",
        ]
    );
    assert_eq!(
        rendered("ec2-snapshot-create", &[])[2],
        "ec2:DescribeInstances ec2:DescribeSnapshots ec2:DescribeTags ec2:DescribeVolumes on *"
    );
}

#[test]
fn images_are_made_of_the_accounts_instances_and_tagged_only_when_made() {
    assert_eq!(
        rendered("ec2-image-create", &[("account", "123456789012")]),
        [
            "ec2:CreateImage on arn:aws:ec2:*:123456789012:instance/* arn:aws:ec2:*:*:image/* arn:aws:ec2:*:*:snapshot/*",
            "ec2:CreateTags on arn:aws:ec2:*:*:image/* arn:aws:ec2:*:*:snapshot/* \
             when {\"StringEquals\":{\"ec2:CreateAction\":\"CreateImage\"}}",
            "ec2:DescribeImages ec2:DescribeInstances ec2:DescribeSnapshots ec2:DescribeTags on *",
        ]
    );
}

#[test]
fn a_queue_is_consumed_or_fed_by_different_templates() {
    let queue = "arn:aws:sqs:eu-west-1:123456789012:orders";
    assert_eq!(
        rendered("sqs-consumer", &[("queue", queue)]),
        [format!(
            "sqs:ChangeMessageVisibility sqs:DeleteMessage sqs:GetQueueAttributes sqs:GetQueueUrl sqs:ReceiveMessage on {queue}"
        )]
    );
    assert_eq!(
        rendered("sqs-producer", &[("queue", queue)]),
        [format!(
            "sqs:GetQueueAttributes sqs:GetQueueUrl sqs:SendMessage on {queue}"
        )]
    );
}

#[test]
fn a_table_is_read_with_its_indexes_and_written_without_them() {
    let table = "arn:aws:dynamodb:eu-west-1:123456789012:table/orders";
    let read = format!(
        "dynamodb:BatchGetItem dynamodb:DescribeTable dynamodb:GetItem dynamodb:Query dynamodb:Scan on {table} {table}/index/*"
    );
    let write = format!(
        "dynamodb:BatchWriteItem dynamodb:ConditionCheckItem dynamodb:DeleteItem dynamodb:PutItem dynamodb:UpdateItem on {table}"
    );
    assert_eq!(
        rendered("dynamodb-reader", &[("table", table)]),
        std::slice::from_ref(&read)
    );
    assert_eq!(
        rendered("dynamodb-writer", &[("table", table)]),
        [read, write]
    );
}

#[test]
fn mail_is_sent_as_one_identity_and_from_one_address_if_asked() {
    let identity = "arn:aws:ses:eu-west-1:123456789012:identity/example.com";
    let send = format!("ses:SendEmail ses:SendRawEmail on {identity}");
    assert_eq!(
        rendered("ses-send", &[("identity", identity)]),
        std::slice::from_ref(&send)
    );
    assert_eq!(
        rendered(
            "ses-send",
            &[("identity", identity), ("from-address", "me@example.com")]
        ),
        [format!(
            "{send} when {{\"StringEquals\":{{\"ses:FromAddress\":\"me@example.com\"}}}}"
        )]
    );
}

#[test]
fn images_are_pulled_from_one_repository() {
    let repository = "arn:aws:ecr:eu-west-1:123456789012:repository/web";
    assert_eq!(
        rendered("ecr-pull", &[("repository", repository)]),
        [
            "ecr:GetAuthorizationToken on *".to_owned(),
            format!(
                "ecr:BatchCheckLayerAvailability ecr:BatchGetImage ecr:GetDownloadUrlForLayer on {repository}"
            ),
        ]
    );
}

#[test]
fn metrics_are_put_in_one_namespace() {
    assert_eq!(
        rendered("cloudwatch-put-metrics", &[("namespace", "Acme")]),
        [r#"cloudwatch:PutMetricData on * when {"StringEquals":{"cloudwatch:namespace":"Acme"}}"#]
    );
}

#[test]
fn a_key_is_used_and_not_managed() {
    let key = ParameterKind::KeyArn.example();
    assert_eq!(
        rendered("kms-use-key", &[("key", key)]),
        [format!(
            "kms:Decrypt kms:DescribeKey kms:Encrypt kms:GenerateDataKey kms:GenerateDataKeyWithoutPlaintext \
             kms:ReEncryptFrom kms:ReEncryptTo on {key}"
        )]
    );
}
