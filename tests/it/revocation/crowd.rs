//! Many services with a session each on one role, and many leases of one service, with the shipped
//! clients.

use credbroker::{
    client::Client,
    proto::{
        AssumeRole, CreateServiceRequest, CreateServiceTokenRequest, Grant, InlinePolicy,
        IssueCredentialsRequest, IssueCredentialsResponse, PutGrantRequest, RevokeServiceRequest,
        grant::Kind, inline_policy::Source,
    },
};
use tokio::task::JoinSet;

use super::Neighbours;
use crate::harness::Key;

/// Number of concurrent calls to the broker.
pub(super) const ABREAST: usize = 16;

/// A service and the key of its session.
pub(super) struct Member {
    pub(super) service: String,
    pub(super) key: Key,
}

/// Runs `work` on each, some concurrently.
pub(super) async fn each<T, R, F>(all: Vec<T>, work: impl Fn(T) -> F) -> Vec<R>
where
    T: Send + 'static,
    R: Send + 'static,
    F: Future<Output = R> + Send + 'static,
{
    let (mut tasks, mut done) = (JoinSet::new(), Vec::new());
    for one in all {
        if tasks.len() == ABREAST {
            done.push(tasks.join_next().await.unwrap().unwrap());
        }
        tasks.spawn(work(one));
    }
    done.extend(tasks.join_all().await);
    done
}

impl Neighbours {
    pub(super) async fn admin(&self) -> Client {
        let broker = &self.world.broker;
        broker.client(broker.admin_token()).await
    }

    /// Adds `count` services, each with a session on the shared role.
    pub(super) async fn crowd(&self, count: usize) -> Vec<Member> {
        let (admin, grant) = (self.admin().await, self.work());
        let mut services = Vec::new();
        for number in 0..count {
            let service = format!("a-service-no-{number:03}");
            let token = enlist(&admin, &service).await;
            services.push((service, self.world.broker.settings(&token)));
        }
        each(services, |(service, settings)| {
            let (admin, grant) = (admin.clone(), grant.clone());
            async move {
                // The broker would close a connection that never calls.
                let client = Client::connect(&settings).await.unwrap();
                let name = format!("{service}/work");
                let grant = Some(Grant { name, ..grant });
                let put = PutGrantRequest { grant };
                admin.grants().put_grant(put).await.unwrap();
                let key = key(issue(&client, "work").await);
                Member { service, key }
            }
        })
        .await
    }

    fn work(&self) -> Grant {
        let policy = self.world.narrow_policy().to_string();
        Grant {
            kind: Some(Kind::AssumeRole(AssumeRole {
                role_arn: self.role.clone(),
                ..AssumeRole::default()
            })),
            policy: Some(InlinePolicy {
                source: Some(Source::Document(policy)),
            }),
            ..Grant::default()
        }
    }

    /// Revokes these, some concurrently; asserts that AWS is seen to refuse each.
    pub(super) async fn revoke_all(&self, crowd: &[Member]) {
        let admin = self.admin().await;
        let services = crowd.iter().map(|member| member.service.clone()).collect();
        each(services, |service| {
            let admin = admin.clone();
            async move {
                let request = RevokeServiceRequest {
                    service,
                    reason: String::new(),
                };
                let revoked = admin.revocation().revoke_service(request).await;
                let revoked = revoked.unwrap().into_inner();
                assert!(revoked.confirmed, "{revoked:?}");
            }
        })
        .await;
    }
}

async fn enlist(admin: &Client, service: &str) -> String {
    let service = service.to_owned();
    let create = CreateServiceRequest {
        name: service.clone(),
    };
    admin.services().create_service(create).await.unwrap();
    let create = CreateServiceTokenRequest { service, ttl: None };
    let created = admin.services().create_service_token(create).await;
    created.unwrap().into_inner().token
}

pub(super) async fn issue(client: &Client, grant: &str) -> IssueCredentialsResponse {
    let request = IssueCredentialsRequest {
        grant: grant.to_owned(),
        ttl: None,
        request_id: String::new(),
    };
    let issued = client.credentials().issue_credentials(request).await;
    issued.unwrap().into_inner()
}

pub(super) fn key(issued: IssueCredentialsResponse) -> Key {
    Key {
        id: issued.lease.unwrap().access_key_id.unwrap(),
        secret: issued.secret_access_key,
        token: issued.session_token,
    }
}
