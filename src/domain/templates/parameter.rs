//! Kinds of template parameters, and the checks of their values.

use std::fmt;

use crate::domain::arn::{AccountId, Partition};

/// Longest prefix of object keys, so that the policy stays within the limit of a session.
const KEY_PREFIX_MAX: usize = 256;

/// Kind of a parameter's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParameterKind {
    /// An AWS region of the partition, such as `eu-central-1`.
    Region,
    /// A 12-digit account number.
    Account,
    /// A general purpose bucket:
    /// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html>.
    Bucket,
    /// The beginning of object keys: 2 to 256 characters, the last one a slash.
    KeyPrefix,
    /// The id of a hosted zone:
    /// <https://docs.aws.amazon.com/Route53/latest/APIReference/API_HostedZone.html>.
    HostedZoneId,
    /// The ARN of an SQS queue:
    /// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-queue-message-identifiers.html>.
    QueueArn,
    /// The ARN of a `DynamoDB` table:
    /// <https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/HowItWorks.NamingRulesDataTypes.html>.
    TableArn,
    /// The ARN of an SES identity, which is a domain or an address:
    /// <https://docs.aws.amazon.com/ses/latest/dg/control-user-access.html>.
    IdentityArn,
    /// An e-mail address without a display name.
    EmailAddress,
    /// The ARN of an ECR repository:
    /// <https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_CreateRepository.html>.
    RepositoryArn,
    /// A namespace of custom metrics:
    /// <https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_PutMetricData.html>.
    MetricNamespace,
    /// The ARN of a KMS key, not of an alias:
    /// <https://docs.aws.amazon.com/kms/latest/developerguide/concepts.html#key-id>.
    KeyArn,
}

/// A value that passed the check of its kind.
pub(super) struct Value(String);

impl Value {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

type Verdict = Result<(), &'static str>;

impl ParameterKind {
    /// Returns a value of this kind, in partition `aws`.
    #[must_use]
    pub const fn example(self) -> &'static str {
        match self {
            Self::Region => "eu-central-1",
            Self::Account => "123456789012",
            Self::Bucket => "acme-invoices",
            Self::KeyPrefix => "reports/2030/",
            Self::HostedZoneId => "Z0123456789ABCDEFGHIJ",
            Self::QueueArn => "arn:aws:sqs:eu-central-1:123456789012:orders",
            Self::TableArn => "arn:aws:dynamodb:eu-central-1:123456789012:table/orders",
            Self::IdentityArn => "arn:aws:ses:eu-central-1:123456789012:identity/example.com",
            Self::EmailAddress => "billing@example.com",
            Self::RepositoryArn => "arn:aws:ecr:eu-central-1:123456789012:repository/team/web",
            Self::MetricNamespace => "Acme/Payments",
            Self::KeyArn => {
                "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
            }
        }
    }

    /// Checks a value. The error says what is wrong with it.
    pub(super) fn parse(self, text: &str, partition: Partition) -> Result<Value, &'static str> {
        if text.contains(['*', '?']) || text.contains("${") {
            return Err("a wildcard or variable would widen the policy; name one thing in full");
        }
        self.check(text, partition)?;
        Ok(Value(text.to_owned()))
    }

    fn check(self, text: &str, partition: Partition) -> Verdict {
        match self {
            Self::Region => region(text, partition),
            Self::Account => account(text),
            Self::Bucket => bucket(text),
            Self::KeyPrefix => key_prefix(text),
            Self::HostedZoneId => hosted_zone_id(text),
            Self::QueueArn => queue(resource(text, "sqs", partition)?),
            Self::TableArn => table(resource(text, "dynamodb", partition)?),
            Self::IdentityArn => identity(resource(text, "ses", partition)?),
            Self::EmailAddress => email(text),
            Self::RepositoryArn => repository(resource(text, "ecr", partition)?),
            Self::MetricNamespace => namespace(text),
            Self::KeyArn => key(resource(text, "kms", partition)?),
        }
    }
}

impl fmt::Display for ParameterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Region => "a region",
            Self::Account => "an account number",
            Self::Bucket => "a bucket name",
            Self::KeyPrefix => "a prefix of object keys",
            Self::HostedZoneId => "a hosted zone id",
            Self::QueueArn => "the ARN of an SQS queue",
            Self::TableArn => "the ARN of a DynamoDB table",
            Self::IdentityArn => "the ARN of an SES identity",
            Self::EmailAddress => "an e-mail address",
            Self::RepositoryArn => "the ARN of an ECR repository",
            Self::MetricNamespace => "a namespace of metrics",
            Self::KeyArn => "the ARN of a KMS key",
        })
    }
}

/// Returns the last part of an ARN. The ARN must be of this service and partition, with a region
/// and an account.
fn resource<'a>(
    text: &'a str,
    service: &str,
    partition: Partition,
) -> Result<&'a str, &'static str> {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let ["arn", of, from, region, account, resource] = parts[..] else {
        return Err("an ARN has six parts with colons between them");
    };
    if of != partition.as_str() {
        return Err("its partition is not the one the policy is for");
    }
    if from != service {
        return Err("it belongs to another service of AWS");
    }
    self::region(region, partition)?;
    self::account(account)?;
    Ok(resource)
}

fn region(text: &str, partition: Partition) -> Verdict {
    let parts: Vec<&str> = text.split('-').collect();
    let shaped = match &parts[..] {
        [words @ .., number] => {
            words.len() >= 2
                && words
                    .iter()
                    .all(|word| only(word, |byte| byte.is_ascii_lowercase()))
                && only(number, |byte| byte.is_ascii_digit())
        }
        [] => false,
    };
    require(
        shaped && text.len() <= 32,
        "a region is words and a number with dashes between them",
    )?;
    require(
        Partition::for_region(text) == partition,
        "that region is in another partition",
    )
}

fn account(text: &str) -> Verdict {
    require(
        text.parse::<AccountId>().is_ok(),
        "an account number is 12 digits",
    )
}

fn bucket(text: &str) -> Verdict {
    let inner =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
    require(
        (3..=63).contains(&text.len()),
        "a bucket name has 3 to 63 characters",
    )?;
    require(
        only(text, inner),
        "a bucket name has only lower-case letters, digits, dots and dashes",
    )?;
    require(
        !text.starts_with(['.', '-']) && !text.ends_with(['.', '-']),
        "a bucket name begins and ends with a letter or digit",
    )?;
    require(
        !text.contains("..") && text.parse::<std::net::Ipv4Addr>().is_err(),
        "a bucket name has no two dots in a row and is no IP address",
    )?;
    let reserved = ["xn--", "sthree-", "amzn-s3-demo-"]
        .iter()
        .any(|start| text.starts_with(start))
        || ["-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"]
            .iter()
            .any(|end| text.ends_with(end));
    require(
        !reserved,
        "that beginning or end is reserved by AWS and names no general purpose bucket",
    )
}

fn key_prefix(text: &str) -> Verdict {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!-_.'()/=+@,:~".contains(&byte);
    require(
        text.len() <= KEY_PREFIX_MAX,
        "it has more than 256 characters",
    )?;
    require(
        only(text, allowed),
        "it has only letters, digits and ! - _ . ' ( ) / = + @ , : ~",
    )?;
    require(!text.starts_with('/'), "keys do not begin with a slash")?;
    require(
        text.ends_with('/'),
        "close it with a slash, or reports would open reports-secret too",
    )
}

fn hosted_zone_id(text: &str) -> Verdict {
    let allowed = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit();
    let shaped = text.starts_with('Z') && (2..=32).contains(&text.len()) && only(text, allowed);
    require(
        shaped,
        "it is a Z and up to 31 upper-case letters and digits, without /hostedzone/ before it",
    )
}

fn queue(name: &str) -> Verdict {
    let stem = name.strip_suffix(".fifo").unwrap_or(name);
    let shaped = name.len() <= 80
        && only(stem, |byte| {
            byte.is_ascii_alphanumeric() || b"-_".contains(&byte)
        });
    require(
        shaped,
        "a queue's name has up to 80 letters, digits, dashes and underscores, .fifo at most behind them",
    )
}

fn table(resource: &str) -> Verdict {
    let name = resource.strip_prefix("table/").unwrap_or_default();
    let shaped = (3..=255).contains(&name.len())
        && only(name, |byte| {
            byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
        });
    require(
        shaped,
        "it ends in table/NAME, the name having 3 to 255 letters, digits, dashes, dots and underscores; an index or stream is not a table",
    )
}

fn identity(resource: &str) -> Verdict {
    let name = resource.strip_prefix("identity/").unwrap_or_default();
    require(
        is_domain(name) || email(name).is_ok(),
        "it ends in identity/ and a domain or an address",
    )
}

fn email(text: &str) -> Verdict {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._%+=-".contains(&byte);
    let shaped = text
        .split_once('@')
        .is_some_and(|(user, domain)| user.len() <= 64 && only(user, allowed) && is_domain(domain));
    require(shaped, "an address is NAME@DOMAIN alone, in ASCII")
}

fn repository(resource: &str) -> Verdict {
    let name = resource.strip_prefix("repository/").unwrap_or_default();
    let edge = |part: &str| part.starts_with(['.', '_', '-']) || part.ends_with(['.', '_', '-']);
    let part = |part: &str| {
        only(part, |byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte)
        }) && !edge(part)
    };
    let shaped = (2..=256).contains(&name.len()) && name.split('/').all(part);
    require(
        shaped,
        "it ends in repository/NAME, the name having 2 to 256 lower-case letters and digits, with . _ - and / inside",
    )
}

fn namespace(text: &str) -> Verdict {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/#:".contains(&byte);
    require(
        text.len() <= 255 && only(text, allowed),
        "it has up to 255 letters, digits and . _ - / # :",
    )?;
    require(!text.starts_with(':'), "it does not begin with a colon")?;
    require(
        !text.starts_with("AWS/"),
        "AWS/ is reserved for the services of AWS",
    )
}

fn key(resource: &str) -> Verdict {
    require(
        !resource.starts_with("alias/"),
        "an alias is not a key in a policy; give the ARN of the key it stands for",
    )?;
    let id = resource.strip_prefix("key/").unwrap_or_default();
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let many_regions = id
        .strip_prefix("mrk-")
        .is_some_and(|rest| rest.len() == 32 && only(rest, hex));
    let lengths = id.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
    require(
        many_regions || (lengths && id.split('-').all(|part| only(part, hex))),
        "it ends in key/ and the key's UUID, or mrk- and 32 digits",
    )
}

fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        label.len() <= 63
            && only(label, |byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.contains('.') && text.split('.').all(label)
}

fn only(text: &str, allowed: impl Fn(u8) -> bool) -> bool {
    !text.is_empty() && text.bytes().all(allowed)
}

fn require(holds: bool, why: &'static str) -> Verdict {
    if holds { Ok(()) } else { Err(why) }
}
