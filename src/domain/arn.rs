//! Amazon Resource Names and account numbers, checked once and then passed as types.
//!
//! Formats follow <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html>.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Longest name of a role: <https://docs.aws.amazon.com/IAM/latest/APIReference/API_CreateRole.html>.
pub const ROLE_NAME_MAX: usize = 64;
/// Longest name of a managed policy: <https://docs.aws.amazon.com/IAM/latest/APIReference/API_CreatePolicy.html>.
pub const POLICY_NAME_MAX: usize = 128;
/// Longest name of a user: <https://docs.aws.amazon.com/IAM/latest/APIReference/API_CreateUser.html>.
pub const USER_NAME_MAX: usize = 64;
/// Longest path of a role or policy, with both slashes.
pub const PATH_MAX: usize = 512;

const ROLE_EXAMPLE: &str = "arn:aws:iam::123456789012:role/service/payments";
const USER_EXAMPLE: &str = "arn:aws:iam::123456789012:user/credbroker-admin";
const POLICY_EXAMPLE: &str = "arn:aws:iam::aws:policy/AmazonSQSReadOnlyAccess";
const EXCERPT: usize = 60;

/// Reason why a text is not the expected account number, partition or ARN.
///
/// Each message says what is wrong and shows the right form. It repeats at most 60 characters of
/// the refused text, escaped.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ArnError {
    /// The account number is not exactly 12 digits.
    #[error(
        "\"{0}\" is not an AWS account number: write its 12 digits without dashes, such as 123456789012"
    )]
    Account(String),
    /// The partition is not known here.
    #[error("\"{0}\" is not an AWS partition: write aws, aws-cn or aws-us-gov")]
    Partition(String),
    /// The text does not have the form `arn:PARTITION:iam::ACCOUNT:KIND/NAME`.
    #[error("\"{text}\" is not the ARN of a {kind}: write it like {example}")]
    Shape {
        /// The refused text.
        text: String,
        /// `role`, `user` or `managed policy`.
        kind: &'static str,
        /// An ARN of the right form.
        example: &'static str,
    },
    /// The name is empty, too long or has a character that IAM refuses.
    #[error(
        "the name \"{name}\" is not allowed: use 1 to {max} letters, digits or any of + = , . @ - _, as in {example}"
    )]
    Name {
        /// The refused name.
        name: String,
        /// Longest allowed length.
        max: usize,
        /// An ARN of the right form.
        example: &'static str,
    },
    /// The path, between the kind and the name, is not allowed.
    #[error(
        "the path \"{path}\" is not allowed: at most {PATH_MAX} visible ASCII characters in parts between single slashes, without * ? $ or a colon, as in {example}"
    )]
    Path {
        /// The refused path.
        path: String,
        /// An ARN of the right form.
        example: &'static str,
    },
    /// The role is service-linked: only its AWS service can assume or edit it.
    #[error(
        "\"{0}\" is a service-linked role, which only its AWS service can assume: name a role of your own, such as {ROLE_EXAMPLE}"
    )]
    ServiceLinked(String),
}

/// A separate set of AWS regions with its own accounts and ARNs.
///
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference-arns.html>
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Partition {
    /// `aws`: the commercial regions.
    Aws,
    /// `aws-cn`: the regions in China.
    AwsCn,
    /// `aws-us-gov`: AWS `GovCloud` (US).
    AwsUsGov,
}

impl Partition {
    /// Every partition known here.
    pub const ALL: [Self; 3] = [Self::Aws, Self::AwsCn, Self::AwsUsGov];

    /// Returns the text that is used in ARNs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::AwsCn => "aws-cn",
            Self::AwsUsGov => "aws-us-gov",
        }
    }

    /// Returns the end of the host names of its AWS services:
    /// <https://docs.aws.amazon.com/general/latest/gr/rande.html>,
    /// <https://docs.amazonaws.cn/en_us/aws/latest/userguide/endpoints-arns.html>.
    #[must_use]
    pub const fn dns_suffix(self) -> &'static str {
        match self {
            Self::Aws | Self::AwsUsGov => "amazonaws.com",
            Self::AwsCn => "amazonaws.com.cn",
        }
    }

    /// Returns the partition of a region by its prefix: `cn-…`, `us-gov-…`, otherwise the
    /// commercial one.
    #[must_use]
    pub fn for_region(region: &str) -> Self {
        if region.starts_with("cn-") {
            Self::AwsCn
        } else if region.starts_with("us-gov-") {
            Self::AwsUsGov
        } else {
            Self::Aws
        }
    }
}

/// Returns whether `text` has the form of an AWS region name.
#[must_use]
pub fn is_region(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let letters = |p: &&str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_lowercase());
    match parts.split_last() {
        Some((number, rest)) => {
            rest.len() >= 2
                && text.len() <= 32
                && rest.iter().all(letters)
                && number.len() == 1
                && number.bytes().all(|b| b.is_ascii_digit())
        }
        None => false,
    }
}

impl FromStr for Partition {
    type Err = ArnError;

    fn from_str(text: &str) -> Result<Self, ArnError> {
        Self::ALL
            .into_iter()
            .find(|partition| partition.as_str() == text)
            .ok_or_else(|| ArnError::Partition(shorten(text, EXCERPT)))
    }
}

/// The 12-digit number of an AWS account.
///
/// <https://docs.aws.amazon.com/accounts/latest/reference/manage-acct-identifiers.html>
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AccountId(String);

impl AccountId {
    /// Returns the 12 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AccountId {
    type Err = ArnError;

    fn from_str(text: &str) -> Result<Self, ArnError> {
        if text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ArnError::Account(shorten(text, EXCERPT)))
        }
    }
}

/// The ARN of an IAM role that can be assumed: `arn:PARTITION:iam::ACCOUNT:role/[PATH/]NAME`.
///
/// The name has 1 to 64 characters `[A-Za-z0-9_+=,.@-]`, the path at most 512. Service-linked roles
/// are refused. `*`, `?`, `$` and `:` in the path are refused too: IAM would allow them, but they
/// change their meaning inside a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RoleArn {
    text: String,
    partition: Partition,
    account: AccountId,
    name_at: usize,
}

impl RoleArn {
    /// Returns the whole ARN.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the partition of the role.
    #[must_use]
    pub const fn partition(&self) -> Partition {
        self.partition
    }

    /// Returns the account of the role.
    #[must_use]
    pub const fn account(&self) -> &AccountId {
        &self.account
    }

    /// Returns the name without its path.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.text[self.name_at..]
    }
}

impl FromStr for RoleArn {
    type Err = ArnError;

    fn from_str(text: &str) -> Result<Self, ArnError> {
        let parts = IamArn::split(text, "role", ROLE_EXAMPLE)?;
        let account = parts.account.parse()?;
        if parts.path.starts_with("aws-service-role/") {
            return Err(ArnError::ServiceLinked(shorten(text, EXCERPT)));
        }
        parts.check(ROLE_NAME_MAX, ROLE_EXAMPLE)?;
        Ok(Self {
            text: text.to_owned(),
            partition: parts.partition,
            account,
            name_at: text.len() - parts.name.len(),
        })
    }
}

/// The ARN of an IAM user: `arn:PARTITION:iam::ACCOUNT:user/[PATH/]NAME`. Name and path are as for
/// [`RoleArn`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserArn {
    text: String,
    account: AccountId,
    name_at: usize,
}

impl UserArn {
    /// Returns the whole ARN.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the account of the user.
    #[must_use]
    pub const fn account(&self) -> &AccountId {
        &self.account
    }

    /// Returns the name without its path.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.text[self.name_at..]
    }
}

impl FromStr for UserArn {
    type Err = ArnError;

    fn from_str(text: &str) -> Result<Self, ArnError> {
        let parts = IamArn::split(text, "user", USER_EXAMPLE)?;
        parts.check(USER_NAME_MAX, USER_EXAMPLE)?;
        Ok(Self {
            text: text.to_owned(),
            account: parts.account.parse()?,
            name_at: text.len() - parts.name.len(),
        })
    }
}

/// The ARN of a managed policy: `arn:PARTITION:iam::OWNER:policy/[PATH/]NAME`.
///
/// The owner is `aws` for AWS's own policies, otherwise the account that created the policy. The
/// name has 1 to 128 characters `[A-Za-z0-9_+=,.@-]`; the path is as for [`RoleArn`].
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/access_policies_managed-vs-inline.html>
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PolicyArn {
    text: String,
    partition: Partition,
    account: Option<AccountId>,
    path_at: usize,
    name_at: usize,
}

impl PolicyArn {
    /// Returns the whole ARN.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the partition of the policy.
    #[must_use]
    pub const fn partition(&self) -> Partition {
        self.partition
    }

    /// Returns the account that owns the policy; `None` for AWS's own policies.
    #[must_use]
    pub const fn account(&self) -> Option<&AccountId> {
        self.account.as_ref()
    }

    /// Returns whether AWS wrote the policy and may change it.
    #[must_use]
    pub const fn is_aws_managed(&self) -> bool {
        self.account.is_none()
    }

    /// Returns the name without its path.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.text[self.name_at..]
    }

    /// Returns the name with its path, such as `job-function/DatabaseAdministrator`.
    #[must_use]
    pub fn path_and_name(&self) -> &str {
        &self.text[self.path_at..]
    }
}

impl FromStr for PolicyArn {
    type Err = ArnError;

    fn from_str(text: &str) -> Result<Self, ArnError> {
        let parts = IamArn::split(text, "policy", POLICY_EXAMPLE)?;
        let account = match parts.account {
            "aws" => None,
            number => Some(number.parse()?),
        };
        parts.check(POLICY_NAME_MAX, POLICY_EXAMPLE)?;
        let name_at = text.len() - parts.name.len();
        Ok(Self {
            text: text.to_owned(),
            partition: parts.partition,
            account,
            path_at: name_at - parts.path.len(),
            name_at,
        })
    }
}

/// An ARN of IAM, split into parts. The path includes its closing slash; an absent path is empty.
struct IamArn<'a> {
    partition: Partition,
    account: &'a str,
    path: &'a str,
    name: &'a str,
}

impl<'a> IamArn<'a> {
    fn split(text: &'a str, kind: &'static str, example: &'static str) -> Result<Self, ArnError> {
        let shape = || ArnError::Shape {
            text: shorten(text, EXCERPT),
            kind: if kind == "policy" {
                "managed policy"
            } else {
                kind
            },
            example,
        };
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let ["arn", partition, "iam", "", account, resource] = parts[..] else {
            return Err(shape());
        };
        let rest = resource
            .strip_prefix(kind)
            .and_then(|rest| rest.strip_prefix('/'));
        let rest = rest.ok_or_else(shape)?;
        let (path, name) = rest.split_at(rest.rfind('/').map_or(0, |at| at + 1));
        Ok(Self {
            partition: partition.parse()?,
            account,
            path,
            name,
        })
    }

    fn check(&self, name_max: usize, example: &'static str) -> Result<(), ArnError> {
        if !is_path(self.path) {
            return Err(ArnError::Path {
                path: shorten(self.path, EXCERPT),
                example,
            });
        }
        if !is_name(self.name, name_max) {
            return Err(ArnError::Name {
                name: shorten(self.name, EXCERPT),
                max: name_max,
                example,
            });
        }
        Ok(())
    }
}

fn is_name(name: &str, max: usize) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
    (1..=max).contains(&name.len()) && name.bytes().all(allowed)
}

fn is_path(path: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !b"*?$:".contains(&byte);
    // IAM also counts the leading slash of the path. In the ARN that slash follows the kind.
    path.len() < PATH_MAX
        && path.bytes().all(allowed)
        && !path.starts_with('/')
        && !path.contains("//")
}

/// Returns the beginning of a text for an error: escaped, at most `most` characters, then an
/// ellipsis.
pub(super) fn shorten(text: &str, most: usize) -> String {
    let mut escaped: String = text.escape_debug().take(most + 1).collect();
    if escaped.chars().count() > most {
        escaped.pop();
        escaped.push('…');
    }
    escaped
}

macro_rules! text_form {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl TryFrom<String> for $name {
            type Error = ArnError;

            fn try_from(text: String) -> Result<Self, ArnError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.as_str().to_owned()
            }
        }
    )*};
}

text_form!(Partition, AccountId, RoleArn, UserArn, PolicyArn);

#[cfg(test)]
mod tests {
    use super::*;

    fn role(text: &str) -> Result<RoleArn, ArnError> {
        text.parse()
    }

    #[test]
    fn a_partition_is_read_back_from_its_own_text() {
        for partition in Partition::ALL {
            assert_eq!(partition.to_string().parse(), Ok(partition));
        }
        assert!("aws-moon".parse::<Partition>().is_err());
    }

    #[test]
    fn a_region_tells_its_partition() {
        let told = ["eu-central-1", "cn-north-1", "us-gov-west-1"].map(Partition::for_region);
        assert_eq!(told, Partition::ALL);
    }

    #[test]
    fn an_account_number_is_exactly_twelve_digits() {
        assert!("123456789012".parse::<AccountId>().is_ok());
        for wrong in "12345678901,1234567890123,1234-5678-901,12345678901x,１２３４,".split(',')
        {
            assert!(wrong.parse::<AccountId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_role_arn_gives_its_parts() {
        let arn = role("arn:aws-cn:iam::123456789012:role/team/web/payments").unwrap();
        assert_eq!(arn.partition(), Partition::AwsCn);
        assert_eq!(arn.account().as_str(), "123456789012");
        assert_eq!(arn.name(), "payments");
        let marks = role("arn:aws:iam::123456789012:role/a+=,.@-_B9").unwrap();
        assert_eq!(marks.name(), "a+=,.@-_B9");
    }

    #[test]
    fn a_text_that_is_not_a_role_arn_is_refused() {
        for name in ["", "a b", "a//b", "/b", "a/*/b", "b*", "a:b", "b\n"] {
            let wrong = format!("arn:aws:iam::123456789012:role/{name}");
            assert!(role(&wrong).is_err(), "{wrong}");
        }
        for wrong in [
            "payments",
            "arn:aws:iam::123456789012:user/payments",
            "arn:aws:iam:eu-west-1:123456789012:role/payments",
            "arn:moon:iam::123456789012:role/payments",
        ] {
            assert!(role(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_and_paths_are_bounded() {
        let named = |length| format!("arn:aws:iam::123456789012:role/{}", "n".repeat(length));
        let under = |length| format!("arn:aws:iam::123456789012:role/{}/n", "p".repeat(length));
        assert!(role(&named(ROLE_NAME_MAX)).is_ok());
        let longer = role(&named(ROLE_NAME_MAX + 1));
        assert!(matches!(longer, Err(ArnError::Name { .. })));
        assert!(role(&under(PATH_MAX - 2)).is_ok());
        let longer = role(&under(PATH_MAX - 1));
        assert!(matches!(longer, Err(ArnError::Path { .. })));
    }

    #[test]
    fn a_service_linked_role_is_refused() {
        let linked = "arn:aws:iam::123456789012:role/aws-service-role/ecs.amazonaws.com/AWSServiceRoleForECS";
        assert!(matches!(role(linked), Err(ArnError::ServiceLinked(_))));
    }

    #[test]
    fn aws_managed_and_customer_managed_policies_are_told_apart() {
        let theirs = "arn:aws:iam::aws:policy/job-function/DataScientist";
        let theirs: PolicyArn = theirs.parse().unwrap();
        assert!(theirs.is_aws_managed());
        assert_eq!(theirs.name(), "DataScientist");
        assert_eq!(theirs.path_and_name(), "job-function/DataScientist");
        let ours = "arn:aws:iam::123456789012:policy/boundary";
        let ours: PolicyArn = ours.parse().unwrap();
        assert_eq!(ours.account().map(AccountId::as_str), Some("123456789012"));
        for wrong in ["arn:aws:iam::amazon:policy/x", "arn:aws:iam::aws:role/x"] {
            assert!(wrong.parse::<PolicyArn>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_type_travels_as_its_string() {
        let text = "\"arn:aws:iam::123456789012:role/team/payments\"";
        let arn: RoleArn = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&arn).unwrap(), text);
        assert!(serde_json::from_str::<AccountId>("123456789012").is_err());
        assert!(serde_json::from_str::<PolicyArn>("\"boundary\"").is_err());
        assert_eq!(serde_json::json!(Partition::AwsUsGov), "aws-us-gov");
    }

    #[test]
    fn an_error_repeats_little_of_the_text_and_shows_an_example() {
        let message = role(&"\u{1b}\n".repeat(500)).unwrap_err().to_string();
        assert!(message.contains(ROLE_EXAMPLE));
        assert!(!message.contains('\n'), "{message}");
        assert!(message.chars().count() < 200, "{message}");
    }
}
