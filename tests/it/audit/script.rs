//! One call of every method.

use std::path::Path;

use credbroker::proto::{
    RevokeGrantRequest, RevokeServiceRequest, WatchCredentialsRequest, WatchRevocationsRequest,
};
use serde_json::Value;

use crate::{
    harness::{Account, Broker, Key},
    identities::enrollment::age,
};

/// Calls every method of the table, and returns their names in that order.
pub(super) async fn called(account: &Account, broker: &Broker) -> Vec<String> {
    let mut script = Script {
        account,
        broker,
        called: Vec::new(),
        lease: String::new(),
    };
    let token = script.registry().await;
    script.grants().await;
    script.leases(&token).await;
    script.rest(&token).await;
    script.called
}

/// Calls one method after the other, and records their names.
struct Script<'a> {
    account: &'a Account,
    broker: &'a Broker,
    called: Vec<String>,
    lease: String,
}

impl Script<'_> {
    async fn call(&mut self, method: &str, token: Option<&str>, args: &[&str]) -> Value {
        self.called.push(format!("credbroker.v1.{method}"));
        let args: Vec<&str> = args.iter().copied().chain(["-o", "json"]).collect();
        let told = self.broker.run_as(token, &args).await.ok().stdout;
        serde_json::from_str(&told).unwrap_or(Value::Null)
    }

    /// Calls a method as the operator `admin`.
    async fn admin(&mut self, method: &str, args: &[&str]) -> Value {
        self.call(method, None, args).await
    }

    async fn registry(&mut self) -> String {
        self.admin(
            "ServiceRegistry/CreateService",
            &["service", "create", "pay"],
        )
        .await;
        self.admin("ServiceRegistry/GetService", &["service", "show", "pay"])
            .await;
        self.admin("ServiceRegistry/ListServices", &["service", "list"])
            .await;
        self.admin(
            "ServiceRegistry/SuspendService",
            &["service", "suspend", "pay"],
        )
        .await;
        self.admin(
            "ServiceRegistry/ReinstateService",
            &["service", "reinstate", "pay"],
        )
        .await;
        // The command lists the tokens and bindings that work again.
        for listed in ["ListServiceTokens", "ListServiceBindings"] {
            let method = format!("credbroker.v1.ServiceRegistry/{listed}");
            self.called.push(method);
        }
        let create = ["service", "token", "create", "pay"];
        let token = self
            .admin("ServiceRegistry/CreateServiceToken", &create)
            .await;
        self.admin(
            "ServiceRegistry/ListServiceTokens",
            &["service", "token", "list", "pay"],
        )
        .await;
        let bind = ["service", "bind", "pay", "--dns-name", "pay.example"];
        let bound = self
            .admin("ServiceRegistry/CreateServiceBinding", &bind)
            .await;
        let list = ["service", "binding", "list", "pay"];
        self.admin("ServiceRegistry/ListServiceBindings", &list)
            .await;
        let id = bound["binding_id"].as_str().unwrap();
        let delete = ["service", "binding", "delete", "pay", id];
        self.admin("ServiceRegistry/DeleteServiceBinding", &delete)
            .await;
        self.admin("IdentityService/WhoAmI", &["whoami"]).await;
        let create = ["service", "enroll-token", "create", "pay"];
        let made = self
            .admin("ServiceRegistry/CreateEnrollmentToken", &create)
            .await;
        self.enroll(made["token"].as_str().unwrap()).await;
        token["token"].as_str().unwrap().to_owned()
    }

    async fn enroll(&mut self, token: &str) {
        let file = |name: &str| self.broker.state.join(name).display().to_string();
        let (cert, key) = (file("host.pem"), file("host.key"));
        let files = ["--client-cert-file", &cert, "--client-key-file", &key];
        let enroll = [&["enroll"], &files[..]].concat();
        self.call("IdentityService/Enroll", Some(token), &enroll)
            .await;
        age(self.broker, Path::new(&cert), Path::new(&key));
        let renew = [&["enroll", "--renew"], &files[..]].concat();
        self.admin("IdentityService/RenewCertificate", &renew).await;
    }

    async fn grants(&mut self) {
        let put = [
            "grant",
            "put",
            "pay/work",
            "--kind",
            "iam_user",
            "--ttl",
            "30m",
            "--policy",
            "s3-read-only",
            "--param",
            "bucket=acme",
        ];
        self.admin("GrantService/PutGrant", &put).await;
        self.admin("GrantService/GetGrant", &["grant", "show", "pay/work"])
            .await;
        self.admin("GrantService/ListGrants", &["grant", "list"])
            .await;
        self.admin("GrantService/ListPolicyTemplates", &["policy", "list"])
            .await;
        let show = ["policy", "show", "s3-read-only", "--param", "bucket=acme"];
        self.admin("GrantService/RenderPolicyTemplate", &show).await;
    }

    async fn leases(&mut self, token: &str) {
        let lease = async |script: &mut Self| {
            let issued = script
                .call(
                    "CredentialService/IssueCredentials",
                    Some(token),
                    &["issue", "work"],
                )
                .await;
            issued["lease_id"].as_str().unwrap().to_owned()
        };
        let id = lease(self).await;
        let shown = self
            .admin("LeaseService/GetLease", &["lease", "show", &id])
            .await;
        self.admin("LeaseService/ListLeases", &["lease", "list"])
            .await;
        let key = shown["access_key_id"].as_str().unwrap();
        self.admin("LeaseService/LookupAccessKeys", &["lookup", key])
            .await;
        self.admin("ServiceRegistry/LookupTokens", &["lookup", token])
            .await;
        self.call(
            "CredentialService/RenewLease",
            Some(token),
            &["lease", "renew", &id],
        )
        .await;
        self.call(
            "CredentialService/ReleaseLease",
            Some(token),
            &["release", &id],
        )
        .await;
        let client = self.broker.try_client(token).await.unwrap();
        let watch = WatchRevocationsRequest::default();
        let watched = client.credentials().watch_revocations(watch).await;
        drop(watched.unwrap());
        let follow = WatchCredentialsRequest {
            grant: "work".to_owned(),
            ..WatchCredentialsRequest::default()
        };
        let followed = client.credentials().watch_credentials(follow).await;
        let first = followed.unwrap().into_inner().message().await.unwrap();
        assert!(first.is_some());
        for method in ["WatchRevocations", "WatchCredentials"] {
            let method = format!("credbroker.v1.CredentialService/{method}");
            self.called.push(method);
        }
        let id = lease(self).await;
        self.lease.clone_from(&id);
        self.admin("LeaseService/RevokeLease", &["lease", "revoke", &id])
            .await;
        lease(self).await;
        self.admin(
            "RevocationService/StreamRevocation",
            &["revoke", "pay/work"],
        )
        .await;
        lease(self).await;
        let client = self.broker.try_client(self.broker.admin_token()).await;
        let mut revocation = client.unwrap().revocation();
        let grant = RevokeGrantRequest {
            grant: "pay/work".to_owned(),
            reason: String::new(),
        };
        revocation.revoke_grant(grant).await.unwrap();
        let service = RevokeServiceRequest {
            service: "pay".to_owned(),
            reason: String::new(),
        };
        revocation.revoke_service(service).await.unwrap();
        for method in ["RevokeGrant", "RevokeService"] {
            let method = format!("credbroker.v1.RevocationService/{method}");
            self.called.push(method);
        }
    }

    /// Calls the methods of approvals. The broker requires none, so the test inserts one.
    async fn approvals(&mut self) {
        let ask = "INSERT INTO approvals SELECT value, '{\"change\":\"create_operator\",\"operator\":\"x\",\"role\":\"viewer\"}', 'ann', 1, 4000000000000000, NULL, 'operator ann', NULL FROM (SELECT 'aaaaaaaaaaaaaaaa' AS value UNION ALL SELECT 'bbbbbbbbbbbbbbbb') AS ids";
        self.broker.write_store(ask).await;
        self.admin("AdminService/ListApprovals", &["approval", "list"])
            .await;
        let approve = ["approval", "approve", "aaaaaaaaaaaaaaaa"];
        self.admin("AdminService/ApproveChange", &approve).await;
        let reject = ["approval", "reject", "bbbbbbbbbbbbbbbb"];
        self.admin("AdminService/RejectChange", &reject).await;
    }

    async fn admin_key(&mut self) {
        let Key { id, secret, .. } = &self.account.admin;
        let key = format!("aws_access_key_id={id}\naws_secret_access_key={secret}\n");
        let args = ["admin-key", "import"];
        self.broker.run_in(None, &args, &key).await.ok();
        let method = "credbroker.v1.AdminService/ImportAdminKey";
        self.called.push(method.to_owned());
    }

    async fn rest(&mut self, token: &str) {
        let id = &token[4..20];
        self.admin("GrantService/DeleteGrant", &["grant", "delete", "pay/work"])
            .await;
        self.admin(
            "ServiceRegistry/DeleteServiceToken",
            &["service", "token", "delete", "pay", id],
        )
        .await;
        self.admin(
            "ServiceRegistry/DeleteService",
            &["service", "delete", "pay"],
        )
        .await;
        let create = ["operator", "create", "ann", "--role", "viewer"];
        self.admin("AdminService/CreateOperator", &create).await;
        self.admin("AdminService/ListOperators", &["operator", "list"])
            .await;
        self.admin(
            "AdminService/DeleteOperator",
            &["operator", "delete", "ann"],
        )
        .await;
        self.approvals().await;
        self.admin("AdminService/GetStatus", &["status"]).await;
        self.admin("AdminService/GetAdminKey", &["admin-key", "status"])
            .await;
        self.admin_key().await;
        self.admin("AdminService/RotateAdminKey", &["admin-key", "rotate"])
            .await;
        let stolen = ["admin-key", "rotate", "--stolen"];
        self.admin("AdminService/ReplaceStolenAdminKey", &stolen)
            .await;
        self.admin("AuditService/ListAuditRecords", &["audit", "query"])
            .await;
        let export = self.broker.state.join("export").display().to_string();
        // The export requests a checkpoint first.
        let asked = "credbroker.v1.AuditService/GetCheckpoint";
        self.called.push(asked.to_owned());
        self.admin("AuditService/ExportEntries", &["audit", "export", &export])
            .await;
        self.admin("AuditService/GetCheckpoint", &["audit", "checkpoint"])
            .await;
        let prune = ["audit", "prune", &export, "--older-than", "1d"];
        self.admin("AuditService/PruneRecords", &prune).await;
        self.admin("AuditService/RotateLogKey", &["audit", "rotate-key"])
            .await;
        let lease = self.lease.clone();
        let prove = ["audit", "prove", &lease, &export];
        self.admin("AuditService/ProveLease", &prove).await;
        self.admin("AuditService/TailAuditRecords", &["audit", "tail"])
            .await;
    }
}
