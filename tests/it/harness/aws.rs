//! AWS in a test: an account for each test, prepared like `deploy/` says, and clients with any
//! credentials.

use std::sync::atomic::{AtomicU64, Ordering};

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig};
use aws_credential_types::Credentials;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::emulator::{emulator, enforces};

pub const REGION: &str = "us-east-1";
pub const ADMIN_USER: &str = "credbroker-admin";
const ROLE_POLICY: &str = "what-the-role-may";
/// Codes by which AWS refuses a call or its caller.
const REFUSED: [&str; 4] = [
    "AccessDenied",
    "AccessDeniedException",
    "InvalidClientTokenId",
    "ExpiredToken",
];

/// Access key of a session or a user.
#[derive(Clone, Debug)]
pub struct Key {
    pub id: String,
    pub secret: String,
    pub token: Option<String>,
}

impl Key {
    /// Reads the key from the output of `issue -o json`.
    pub fn issued(json: &Value) -> Self {
        let text = |field: &str| {
            json[field]
                .as_str()
                .unwrap_or_else(|| panic!("{field} in {json}"))
                .to_owned()
        };
        Self {
            id: text("access_key_id"),
            secret: text("secret_access_key"),
            token: json["session_token"].as_str().map(ToOwned::to_owned),
        }
    }

    /// Returns whether AWS serves this key: calls ListQueues, which can be denied, unlike
    /// GetCallerIdentity. Panics on any error other than a refusal.
    pub async fn is_served(&self) -> bool {
        let Err(code) = self.list_queues().await else {
            return true;
        };
        assert!(REFUSED.contains(&code.as_str()), "{code}");
        false
    }

    /// Returns whether AWS accepts the key.
    pub async fn works(&self) -> bool {
        self.sts().get_caller_identity().send().await.is_ok()
    }

    pub fn config(&self) -> SdkConfig {
        self.config_at(&emulator().endpoint)
    }

    pub fn config_at(&self, endpoint: &str) -> SdkConfig {
        let credentials =
            Credentials::new(&self.id, &self.secret, self.token.clone(), None, "test");
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .endpoint_url(endpoint)
            // The default client reads the system's certificates for each client.
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .credentials_provider(
                aws_credential_types::provider::SharedCredentialsProvider::new(credentials),
            )
            .retry_config(RetryConfig::disabled())
            .sleep_impl(aws_smithy_async::rt::sleep::SharedAsyncSleep::new(
                aws_smithy_async::rt::sleep::TokioSleep::new(),
            ))
            .build()
    }

    pub fn iam(&self) -> aws_sdk_iam::Client {
        aws_sdk_iam::Client::new(&self.config())
    }

    pub fn sts(&self) -> aws_sdk_sts::Client {
        aws_sdk_sts::Client::new(&self.config())
    }
}

/// An AWS account of one test.
pub struct Account {
    pub id: String,
    tag: u64,
    /// Root key: for preparation, never for the broker.
    pub root: Key,
    /// The broker's admin user, confined to `deploy/aws/admin-policy.json` in the
    /// name-scoped rendering that the emulator can judge.
    pub admin: Key,
}

impl Account {
    /// Creates an account with all that `deploy/aws/bootstrap.sh` makes, except the example role.
    /// Without enforcement the emulator knows one account for all tests, and no users.
    pub async fn new() -> Self {
        let account = Self::empty();
        let iam = account.root.iam();
        let boundary = make_policy(
            &iam,
            "credbroker-boundary",
            include_str!("../../../deploy/aws/boundary-policy.json"),
        );
        if !enforces() {
            let _ = boundary.await;
            return account;
        }
        boundary.await.unwrap();
        let make = async |name: &str, policy: Value| {
            let document = name_scoped(policy, &account.id).to_string();
            make_policy(&iam, name, &document).await.unwrap()
        };
        let policy = make("credbroker-admin", admin_policy(&account.id)).await;
        let bound = admin_boundary_policy(&account.id);
        let bound = make("credbroker-admin-boundary", bound).await;
        iam.create_user()
            .user_name(ADMIN_USER)
            .permissions_boundary(bound)
            .send()
            .await
            .unwrap();
        iam.attach_user_policy()
            .user_name(ADMIN_USER)
            .policy_arn(policy)
            .send()
            .await
            .unwrap();
        let key = iam
            .create_access_key()
            .user_name(ADMIN_USER)
            .send()
            .await
            .unwrap()
            .access_key
            .unwrap();
        let admin = Key {
            id: key.access_key_id,
            secret: key.secret_access_key,
            token: None,
        };
        Self { admin, ..account }
    }

    /// Creates an empty account.
    pub fn empty() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(200_000_000_001);
        Self::of_tag(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    fn of_tag(tag: u64) -> Self {
        let id = if enforces() {
            tag.to_string()
        } else {
            "000000000000".to_owned()
        };
        let root = Key {
            id: id.clone(),
            secret: "unchecked".to_owned(),
            token: None,
        };
        Self {
            admin: root.clone(),
            root,
            id,
            tag,
        }
    }

    /// Name that no other test uses, for things that are global in AWS.
    pub fn unique(&self, name: &str) -> String {
        format!("{name}-{}", self.tag)
    }

    /// Allows the admin user more than the broker needs: federation sessions get no more than their
    /// issuer has.
    pub async fn let_admin(&self, policy: &Value) {
        if enforces() {
            let put = self
                .root
                .iam()
                .put_user_policy()
                .user_name(ADMIN_USER)
                .policy_name("more");
            put.policy_document(policy.to_string())
                .send()
                .await
                .unwrap();
        }
    }

    /// ARN of the boundary of issued users and of roles.
    pub fn boundary(&self) -> String {
        format!(
            "arn:aws:iam::{}:policy/credbroker/credbroker-boundary",
            self.id
        )
    }

    /// Creates a role like that of `deploy/README.md`, with the boundary, allowed `policy`.
    pub async fn role(&self, name: &str, policy: &Value) -> String {
        let (trust, bound) = (self.trust_policy(), Some(self.boundary()));
        self.make_role(name, policy, &trust, bound).await
    }

    /// Creates such a role for the broker of another account.
    pub async fn role_for(&self, home: &Self, name: &str, policy: &Value) -> String {
        let (trust, bound) = (home.trust_policy(), Some(self.boundary()));
        self.make_role(name, policy, &trust, bound).await
    }

    /// Creates the role in which the broker of another account denies sessions in this one.
    pub async fn revoker_for(&self, home: &Self) -> String {
        let shipped = include_str!("../../../deploy/aws/revoker-trust-policy.json");
        let user = format!("arn:aws:iam::{}:user/{ADMIN_USER}", home.id);
        let trust = serde_json::from_str(&shipped.replace("${BROKER_USER}", &user)).unwrap();
        let policy = name_scoped(revoker_policy(&self.id), &self.id);
        self.make_role("credbroker-revoker", &policy, &trust, None)
            .await
    }

    /// Creates a role that only its policies confine. AWS lets no broker deny its sessions; the
    /// emulator does not know the reason, and does.
    pub async fn unbounded_role(&self, name: &str, policy: &Value) -> String {
        self.make_role(name, policy, &self.trust_policy(), None)
            .await
    }

    async fn make_role(
        &self,
        name: &str,
        policy: &Value,
        trust: &Value,
        boundary: Option<String>,
    ) -> String {
        let iam = self.root.iam();
        let name = &self.unique(name);
        let made = iam
            .create_role()
            .role_name(name)
            .path("/credbroker/")
            .assume_role_policy_document(trust.to_string())
            .set_permissions_boundary(boundary)
            .send()
            .await
            .unwrap();
        let put = iam
            .put_role_policy()
            .role_name(name)
            .policy_name(ROLE_POLICY);
        put.policy_document(policy.to_string())
            .send()
            .await
            .unwrap();
        made.role.unwrap().arn
    }

    /// A managed policy that allows nothing of importance.
    pub async fn managed_policy(&self, name: &str) -> String {
        let policy = r#"{"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": "s3:ListAllMyBuckets", "Resource": "*"}]}"#;
        let iam = self.root.iam();
        make_policy(&iam, &self.unique(name), policy).await.unwrap()
    }

    /// A group that the broker may put users into.
    pub async fn group(&self, name: &str) -> String {
        let name = self.unique(name);
        let iam = self.root.iam();
        let make = iam.create_group().path("/credbroker/").group_name(&name);
        make.send().await.unwrap();
        name
    }

    /// Ids of the keys of a user.
    pub async fn keys_of(&self, user: &str) -> Vec<String> {
        let keys = self.root.iam().list_access_keys().user_name(user);
        let keys = keys.send().await.unwrap().access_key_metadata;
        keys.into_iter()
            .map(|key| key.access_key_id.unwrap())
            .collect()
    }

    /// Policies of denials in AWS, each with the ARN of its role or user.
    pub async fn denials(&self) -> Vec<(String, Value)> {
        let iam = self.root.iam();
        let mut found = Vec::new();
        for role in iam.list_roles().send().await.unwrap().roles {
            let (name, list) = (&role.role_name, iam.list_role_policies());
            let policies = list.role_name(name).send().await.unwrap().policy_names;
            for policy in policies.iter().filter(|policy| is_of_denials(policy)) {
                let get = iam.get_role_policy().role_name(name).policy_name(policy);
                let got = get.send().await.unwrap();
                found.push((role.arn.clone(), document(&got.policy_document)));
            }
        }
        let list = iam.list_user_policies().user_name(ADMIN_USER);
        let policies = list.send().await.unwrap().policy_names;
        for policy in policies.iter().filter(|policy| is_of_denials(policy)) {
            let get = iam.get_user_policy().user_name(ADMIN_USER);
            let got = get.policy_name(policy).send().await.unwrap();
            let user = format!("arn:aws:iam::{}:user/{ADMIN_USER}", self.id);
            found.push((user, document(&got.policy_document)));
        }
        found
    }

    pub fn trust_policy(&self) -> Value {
        let shipped = include_str!("../../../deploy/aws/trust-policy.json");
        rendered(shipped, &self.id)
    }

    /// Names of the IAM users that the broker has made and not removed.
    pub async fn issued_users(&self) -> Vec<String> {
        let users = self
            .root
            .iam()
            .list_users()
            .path_prefix("/credbroker/")
            .send()
            .await
            .unwrap()
            .users;
        users.into_iter().map(|user| user.user_name).collect()
    }
}

fn is_of_denials(policy: &str) -> bool {
    policy.starts_with("credbroker-denials-")
}

/// IAM returns documents percent-encoded.
fn document(text: &str) -> Value {
    let decoded = percent_decode_str(text).decode_utf8().unwrap();
    serde_json::from_str(&decoded).unwrap()
}

async fn make_policy(iam: &aws_sdk_iam::Client, name: &str, document: &str) -> Option<String> {
    let made = iam
        .create_policy()
        .path("/credbroker/")
        .policy_name(name)
        .policy_document(document);
    made.send().await.ok()?.policy?.arn
}

/// Policy of the broker's admin user, as shipped, in one account.
pub fn admin_policy(account: &str) -> Value {
    rendered(
        include_str!("../../../deploy/aws/admin-policy.json"),
        account,
    )
}

/// Boundary of the broker's admin user, as shipped.
pub fn admin_boundary_policy(account: &str) -> Value {
    let shipped = include_str!("../../../deploy/aws/admin-boundary-policy.json");
    rendered(shipped, account)
}

/// Policy of the broker in another account, as shipped. There it is a role's session.
pub fn revoker_policy(account: &str) -> Value {
    let shipped = include_str!("../../../deploy/aws/revoker-policy.json");
    rendered(shipped, account)
}

fn rendered(shipped: &str, account: &str) -> Value {
    let rendered = shipped
        .replace("${PARTITION}", "aws")
        .replace("${ACCOUNT}", account)
        .replace("${ADMIN_USER}", ADMIN_USER);
    serde_json::from_str(&rendered).unwrap()
}

/// Returns a policy of the broker that the emulator can judge. The emulator judges users and roles
/// by name, without their path, AddUserToGroup by the user, GetFederationToken and CreatePolicy by
/// `*`, and knows no `iam:PermissionsBoundary` and no `iam:PolicyARN`. Users that the broker makes
/// are those with a dot; roles that it assumes are those whose name begins with `credbroker-`.
pub fn name_scoped(mut policy: Value, account: &str) -> Value {
    let statements = policy["Statement"].as_array_mut().unwrap();
    for statement in statements.iter_mut() {
        let statement = statement.as_object_mut().unwrap();
        statement.remove("Condition");
        match statement["Sid"].as_str().unwrap() {
            "FederateSessions" => statement["Resource"] = "*".into(),
            "PutDenialsOnRolesWithTheBoundary"
            | "AttachDenialsToRolesWithTheBoundary"
            | "SeeDenialsOnRoles" => {
                statement["Resource"] = format!("arn:aws:iam::{account}:role/credbroker-*").into();
            }
            "MakeUsersOnlyWithTheBoundary" | "KeepAndRemoveUsers" | "PutUsersInGroups" => {
                statement["Resource"] = format!("arn:aws:iam::{account}:user/*.*").into();
            }
            _ => {}
        }
    }
    statements.push(json!({"Effect": "Allow", "Action": "iam:CreatePolicy", "Resource": "*"}));
    policy
}
