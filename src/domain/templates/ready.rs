//! The templates. Actions and the resources they work on are listed in
//! <https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html>.

use super::{Mistake, Parameter, ParameterKind as Kind, Template, Values};
use crate::domain::policy::{Document, Statement};

type Built = Result<Document, Mistake>;

const fn required(name: &'static str, kind: Kind, summary: &'static str) -> Parameter {
    Parameter {
        name,
        kind,
        required: true,
        summary,
    }
}

const fn optional(name: &'static str, kind: Kind, summary: &'static str) -> Parameter {
    Parameter {
        name,
        kind,
        required: false,
        summary,
    }
}

const REGION: Parameter = optional(
    "region",
    Kind::Region,
    "Only in this region; without it in every region.",
);
const ACCOUNT: Parameter = optional(
    "account",
    Kind::Account,
    "Only what this account owns; without it whatever the credentials reach.",
);
const BUCKET: Parameter = required("bucket", Kind::Bucket, "The bucket.");
const PREFIX: Parameter = optional(
    "prefix",
    Kind::KeyPrefix,
    "Only objects whose key begins so; without it all of the bucket.",
);
const ZONE: Parameter = required("zone", Kind::HostedZoneId, "The hosted zone.");
const QUEUE: Parameter = required("queue", Kind::QueueArn, "The queue.");
const TABLE: Parameter = required(
    "table",
    Kind::TableArn,
    "The table; its indexes come with it.",
);
const IDENTITY: Parameter = required(
    "identity",
    Kind::IdentityArn,
    "The verified domain or address to send as.",
);
const FROM: Parameter = optional(
    "from-address",
    Kind::EmailAddress,
    "Only with this sender; without it any of the identity.",
);

pub(super) static ALL: [Template; 14] = [
    Template {
        name: "cloudwatch-put-metrics",
        summary: "Publish metrics in one namespace.",
        parameters: &[required(
            "namespace",
            Kind::MetricNamespace,
            "The namespace.",
        )],
        build: cloudwatch_put_metrics,
    },
    Template {
        name: "dynamodb-reader",
        summary: "Read the items of one table and its indexes.",
        parameters: &[TABLE],
        build: dynamodb_reader,
    },
    Template {
        name: "dynamodb-writer",
        summary: "Read, write and delete the items of one table; the table itself stays as it is.",
        parameters: &[TABLE],
        build: dynamodb_writer,
    },
    Template {
        name: "ec2-image-create",
        summary: "Make machine images of instances and tag them as they are made; delete nothing.",
        parameters: &[REGION, ACCOUNT],
        build: ec2_image_create,
    },
    Template {
        name: "ec2-snapshot-create",
        summary: "Make snapshots of volumes and tag them as they are made; delete nothing.",
        parameters: &[REGION, ACCOUNT],
        build: ec2_snapshot_create,
    },
    Template {
        name: "ecr-pull",
        summary: "Pull the images of one repository.",
        parameters: &[required(
            "repository",
            Kind::RepositoryArn,
            "The repository.",
        )],
        build: ecr_pull,
    },
    Template {
        name: "kms-use-key",
        summary: "Encrypt and decrypt with one key; make no grants on it and change nothing about it.",
        parameters: &[required("key", Kind::KeyArn, "The key.")],
        build: kms_use_key,
    },
    Template {
        name: "route53-full",
        summary: "Read and change every record of one hosted zone and wait for the change; the zone itself stays.",
        parameters: &[ZONE],
        build: route53_full,
    },
    Template {
        name: "route53-read-only",
        summary: "Read one hosted zone and its records.",
        parameters: &[ZONE],
        build: route53_read_only,
    },
    Template {
        name: "s3-read-only",
        summary: "List and read the objects of one bucket, or those below one prefix.",
        parameters: &[BUCKET, PREFIX],
        build: s3_read_only,
    },
    Template {
        name: "s3-read-write",
        summary: "List, read, write and delete the objects of one bucket, or those below one prefix.",
        parameters: &[BUCKET, PREFIX],
        build: s3_read_write,
    },
    Template {
        name: "ses-send",
        summary: "Send mail as one identity.",
        parameters: &[IDENTITY, FROM],
        build: ses_send,
    },
    Template {
        name: "sqs-consumer",
        summary: "Receive and delete the messages of one queue.",
        parameters: &[QUEUE],
        build: sqs_consumer,
    },
    Template {
        name: "sqs-producer",
        summary: "Send messages to one queue.",
        parameters: &[QUEUE],
        build: sqs_producer,
    },
];

/// AWS defines no resource for this action, so the condition alone narrows it.
fn cloudwatch_put_metrics(values: &Values) -> Built {
    let namespace = values.need("namespace", Kind::MetricNamespace)?;
    let put = Statement::allow("PutMetrics", ["cloudwatch:PutMetricData"], ["*"])?;
    document([put.when("StringEquals", "cloudwatch:namespace", [namespace])?])
}

const DYNAMODB_READ: [&str; 5] = [
    "dynamodb:BatchGetItem",
    "dynamodb:DescribeTable",
    "dynamodb:GetItem",
    "dynamodb:Query",
    "dynamodb:Scan",
];

const DYNAMODB_WRITE: [&str; 5] = [
    "dynamodb:BatchWriteItem",
    "dynamodb:ConditionCheckItem",
    "dynamodb:DeleteItem",
    "dynamodb:PutItem",
    "dynamodb:UpdateItem",
];

fn dynamodb_reader(values: &Values) -> Built {
    let table = values.need("table", Kind::TableArn)?;
    document([Statement::allow(
        "ReadItems",
        DYNAMODB_READ,
        [table.to_owned(), format!("{table}/index/*")],
    )?])
}

fn dynamodb_writer(values: &Values) -> Built {
    let table = values.need("table", Kind::TableArn)?;
    let read = Statement::allow(
        "ReadItems",
        DYNAMODB_READ,
        [table.to_owned(), format!("{table}/index/*")],
    )?;
    document([
        read,
        Statement::allow("WriteItems", DYNAMODB_WRITE, [table])?,
    ])
}

fn ec2_image_create(values: &Values) -> Built {
    let made = [ec2_made(values, "image"), ec2_made(values, "snapshot")];
    let taken = [ec2_owned(values, "instance")];
    let create = Statement::allow(
        "CreateImages",
        ["ec2:CreateImage"],
        taken.into_iter().chain(made.clone()),
    )?;
    let tag = Statement::allow("TagNewImages", ["ec2:CreateTags"], made)?;
    let tag = tag.when("StringEquals", "ec2:CreateAction", ["CreateImage"])?;
    let find = [
        "ec2:DescribeImages",
        "ec2:DescribeInstances",
        "ec2:DescribeSnapshots",
        "ec2:DescribeTags",
    ];
    document([create, tag, ec2_find("FindInstances", find, values)?])
}

fn ec2_snapshot_create(values: &Values) -> Built {
    let made = ec2_made(values, "snapshot");
    let all = [
        ec2_owned(values, "instance"),
        ec2_owned(values, "volume"),
        made.clone(),
    ];
    let create = Statement::allow(
        "CreateSnapshots",
        ["ec2:CreateSnapshot", "ec2:CreateSnapshots"],
        all,
    )?;
    let tag = Statement::allow("TagNewSnapshots", ["ec2:CreateTags"], [made])?;
    let tag = tag.when(
        "StringEquals",
        "ec2:CreateAction",
        ["CreateSnapshot", "CreateSnapshots"],
    )?;
    let find = [
        "ec2:DescribeInstances",
        "ec2:DescribeSnapshots",
        "ec2:DescribeTags",
        "ec2:DescribeVolumes",
    ];
    document([create, tag, ec2_find("FindVolumes", find, values)?])
}

fn ec2_owned(values: &Values, kind: &str) -> String {
    let (region, account) = (
        values.get("region").unwrap_or("*"),
        values.get("account").unwrap_or("*"),
    );
    format!("arn:{}:ec2:{region}:{account}:{kind}/*", values.partition)
}

/// Returns the ARN pattern of images or snapshots that a call creates. They are new, so they have
/// no id yet. EC2 authorizes them by an ARN without an account, which a wildcard matches and an
/// account number does not.
fn ec2_made(values: &Values, kind: &str) -> String {
    format!(
        "arn:{}:ec2:{}:*:{kind}/*",
        values.partition,
        values.get("region").unwrap_or("*")
    )
}

/// AWS defines no resource for the describing actions: only the region can narrow them.
fn ec2_find(sid: &str, actions: [&str; 4], values: &Values) -> Result<Statement, Mistake> {
    let find = Statement::allow(sid, actions, ["*"])?;
    match values.get("region") {
        Some(region) => Ok(find.when("StringEquals", "aws:RequestedRegion", [region])?),
        None => Ok(find),
    }
}

fn ecr_pull(values: &Values) -> Built {
    let repository = values.need("repository", Kind::RepositoryArn)?;
    let sign_in = Statement::allow("SignIn", ["ecr:GetAuthorizationToken"], ["*"])?;
    let pull = [
        "ecr:BatchCheckLayerAvailability",
        "ecr:BatchGetImage",
        "ecr:GetDownloadUrlForLayer",
    ];
    document([sign_in, Statement::allow("Pull", pull, [repository])?])
}

fn kms_use_key(values: &Values) -> Built {
    let use_key = [
        "kms:Decrypt",
        "kms:DescribeKey",
        "kms:Encrypt",
        "kms:GenerateDataKey",
        "kms:GenerateDataKeyWithoutPlaintext",
        "kms:ReEncryptFrom",
        "kms:ReEncryptTo",
    ];
    document([Statement::allow(
        "UseKey",
        use_key,
        [values.need("key", Kind::KeyArn)?],
    )?])
}

fn route53_full(values: &Values) -> Built {
    let all = [
        "route53:ChangeResourceRecordSets",
        "route53:GetHostedZone",
        "route53:ListResourceRecordSets",
    ];
    let zone = Statement::allow("ChangeRecords", all, [hosted_zone(values)?])?;
    // A change has an id of its own. It shows its progress and nothing of the records.
    let changes = format!("arn:{}:route53:::change/*", values.partition);
    document([
        zone,
        Statement::allow("WaitForChanges", ["route53:GetChange"], [changes])?,
    ])
}

fn route53_read_only(values: &Values) -> Built {
    let read = ["route53:GetHostedZone", "route53:ListResourceRecordSets"];
    document([Statement::allow(
        "ReadRecords",
        read,
        [hosted_zone(values)?],
    )?])
}

fn hosted_zone(values: &Values) -> Result<String, Mistake> {
    let zone = values.need("zone", Kind::HostedZoneId)?;
    Ok(format!(
        "arn:{}:route53:::hostedzone/{zone}",
        values.partition
    ))
}

fn s3_read_only(values: &Values) -> Built {
    let read = Statement::allow("ReadObjects", ["s3:GetObject"], [s3_objects(values)?])?;
    document([
        s3_list(values)?,
        s3_find(values, &["s3:GetBucketLocation"])?,
        read,
    ])
}

fn s3_read_write(values: &Values) -> Built {
    let write = [
        "s3:AbortMultipartUpload",
        "s3:DeleteObject",
        "s3:GetObject",
        "s3:ListMultipartUploadParts",
        "s3:PutObject",
    ];
    let write = Statement::allow("ReadAndWriteObjects", write, [s3_objects(values)?])?;
    // The list of unfinished uploads cannot be limited to a prefix, and it shows keys outside it.
    let find: &[&str] = match values.get("prefix") {
        Some(_) => &["s3:GetBucketLocation"],
        None => &["s3:GetBucketLocation", "s3:ListBucketMultipartUploads"],
    };
    document([s3_list(values)?, s3_find(values, find)?, write])
}

fn s3_list(values: &Values) -> Result<Statement, Mistake> {
    let list = Statement::allow("ListObjects", ["s3:ListBucket"], [s3_bucket(values)?])?;
    match values.get("prefix") {
        Some(prefix) => Ok(list.when("StringLike", "s3:prefix", [format!("{prefix}*")])?),
        None => Ok(list),
    }
}

fn s3_find(values: &Values, actions: &[&str]) -> Result<Statement, Mistake> {
    Ok(Statement::allow(
        "FindBucket",
        actions.iter().copied(),
        [s3_bucket(values)?],
    )?)
}

fn s3_bucket(values: &Values) -> Result<String, Mistake> {
    Ok(format!(
        "arn:{}:s3:::{}",
        values.partition,
        values.need("bucket", Kind::Bucket)?
    ))
}

fn s3_objects(values: &Values) -> Result<String, Mistake> {
    Ok(format!(
        "{}/{}*",
        s3_bucket(values)?,
        values.get("prefix").unwrap_or_default()
    ))
}

fn ses_send(values: &Values) -> Built {
    let identity = values.need("identity", Kind::IdentityArn)?;
    let send = Statement::allow("Send", ["ses:SendEmail", "ses:SendRawEmail"], [identity])?;
    match values.get("from-address") {
        Some(from) => document([send.when("StringEquals", "ses:FromAddress", [from])?]),
        None => document([send]),
    }
}

fn sqs_consumer(values: &Values) -> Built {
    let consume = [
        "sqs:ChangeMessageVisibility",
        "sqs:DeleteMessage",
        "sqs:GetQueueAttributes",
        "sqs:GetQueueUrl",
        "sqs:ReceiveMessage",
    ];
    document([Statement::allow(
        "Consume",
        consume,
        [values.need("queue", Kind::QueueArn)?],
    )?])
}

fn sqs_producer(values: &Values) -> Built {
    let produce = [
        "sqs:GetQueueAttributes",
        "sqs:GetQueueUrl",
        "sqs:SendMessage",
    ];
    document([Statement::allow(
        "Produce",
        produce,
        [values.need("queue", Kind::QueueArn)?],
    )?])
}

fn document<const N: usize>(statements: [Statement; N]) -> Built {
    Ok(Document::new(statements.into())?)
}
