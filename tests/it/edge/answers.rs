//! Size of one answer: a longer list comes in more pages, and comes whole.

use credbroker::{
    client::{Client, Evidence, Settings},
    proto::{
        self, Grant, IamUser, InlinePolicy, ListApprovalsRequest, ListGrantsRequest,
        ListOperatorsRequest, ListServiceBindingsRequest, PutGrantRequest, Tag,
        inline_policy::Source,
    },
};
use prost::Message;
use tonic::{Code, Status};

use crate::harness::{
    Account, Broker,
    site::{Site, stop},
    stepped::policy,
};

const ANSWER_MAX: usize = 256 * 1024;
/// Number of grants of some 17 KiB that exceed one answer.
const GRANTS: usize = 40;

/// A grant with as many tags as AWS allows.
fn large(number: usize) -> Grant {
    let tag = |at: usize| Tag {
        key: format!("{at:x>128}"),
        value: "v".repeat(256),
        transitive: false,
    };
    Grant {
        name: format!("pay/work-{number:02}"),
        kind: Some(proto::grant::Kind::IamUser(IamUser {
            tags: (0..47).map(tag).collect(),
            ..IamUser::default()
        })),
        policy: Some(InlinePolicy {
            source: Some(Source::Document(policy().to_string())),
        }),
        ..Grant::default()
    }
}

async fn put(client: &Client, number: usize) -> Result<(), Status> {
    let request = PutGrantRequest {
        grant: Some(large(number)),
    };
    client.grants().put_grant(request).await.map(drop)
}

/// Follows a list to its end. Returns the answers, none of which is too large.
async fn pages<M: Message>(
    mut list: impl AsyncFnMut(String) -> M,
    next: impl Fn(&M) -> &str,
) -> Vec<M> {
    let (mut answers, mut token) = (Vec::new(), String::new());
    loop {
        let answer = list(token).await;
        let size = answer.encoded_len();
        assert!(size <= ANSWER_MAX, "{size}");
        token = next(&answer).to_owned();
        answers.push(answer);
        if token.is_empty() {
            return answers;
        }
    }
}

#[tokio::test]
async fn a_list_larger_than_one_answer_is_complete_over_several_pages() {
    let broker = Broker::start(&Account::new().await).await;
    broker.service("pay").await;
    let client = broker.client(broker.admin_token()).await;
    for number in 0..GRANTS {
        put(&client, number).await.unwrap();
    }
    let list = async |page_token| {
        let request = ListGrantsRequest {
            page_size: 1000,
            page_token,
            ..ListGrantsRequest::default()
        };
        client
            .grants()
            .list_grants(request)
            .await
            .unwrap()
            .into_inner()
    };
    let answers = pages(list, |answer| &answer.next_page_token).await;
    assert!(answers.len() > 2, "{}", answers.len());
    let names = answers.iter().flat_map(|answer| &answer.grants);
    let names: Vec<_> = names.map(|grant| grant.name.clone()).collect();
    let all: Vec<_> = (0..GRANTS).map(|number| large(number).name).collect();
    assert_eq!(names, all);
    // The command line follows all pages.
    let listed = broker.json(&["grant", "list"]).await;
    assert_eq!(listed.as_array().unwrap().len(), GRANTS);
}

#[tokio::test]
async fn large_approvals_are_listed_completely() {
    let (site, account) = (Site::new(), Account::new().await);
    let child = site.serving(&account.admin).await;
    site.create("pay").await;
    // One operator alone may not request this many.
    let create = ["operator", "create", "ann", "--role", "admin", "-o", "json"];
    let ann = site.run(&create).await.ok().json();
    let ann = ann["token"].as_str().unwrap().to_owned();
    stop(child).await;
    let config = site.config().replace("# two_person", "two_person");
    std::fs::write(site.path("config.toml"), config).unwrap();
    let child = site.serving(&account.admin).await;
    let first = std::fs::read_to_string(site.path("admin-token")).unwrap();
    let connect = async |token: &str| {
        let settings = Settings {
            address: format!("https://{}", site.address),
            ca_file: site.path("tls.pem"),
            evidence: Evidence::Token(token.trim().into()),
        };
        Client::connect(&settings).await.unwrap()
    };
    let (client, other) = (connect(&first).await, connect(&ann).await);
    for number in 0..GRANTS {
        let by = if number % 2 == 0 { &client } else { &other };
        let refused = put(by, number).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    }
    let list = async |page_token| {
        let request = ListApprovalsRequest {
            page_token,
            ..ListApprovalsRequest::default()
        };
        client
            .admin()
            .list_approvals(request)
            .await
            .unwrap()
            .into_inner()
    };
    let answers = pages(list, |answer| &answer.next_page_token).await;
    assert!(answers.len() > 2, "{}", answers.len());
    let asked = answers.iter().flat_map(|answer| &answer.approvals);
    let asked: Vec<_> = asked.map(|asked| asked.summary.clone()).collect();
    let all = (0..GRANTS).map(|number| format!("put grant {}", large(number).name));
    assert_eq!(asked, all.collect::<Vec<_>>());
    let list = site.run(&["approval", "list", "-o", "json"]).await.ok();
    assert_eq!(list.json().as_array().unwrap().len(), GRANTS);
    stop(child).await;
}

#[tokio::test]
async fn operators_and_bindings_come_in_pages_as_well() {
    let broker = Broker::start(&Account::new().await).await;
    broker.service("pay").await;
    for name in ["ann", "bob"] {
        let create = ["operator", "create", name, "--role", "viewer"];
        broker.run(&create).await.ok();
    }
    let hosts = ["a.example", "b.example", "c.example"];
    for host in hosts {
        let bind = ["service", "bind", "pay", "--dns-name", host];
        broker.run(&bind).await.ok();
    }
    let client = broker.client(broker.admin_token()).await;
    let operators = async |page_token| {
        let request = ListOperatorsRequest {
            page_size: 1,
            page_token,
        };
        client
            .admin()
            .list_operators(request)
            .await
            .unwrap()
            .into_inner()
    };
    let answers = pages(operators, |answer| &answer.next_page_token).await;
    let names = answers.iter().flat_map(|answer| &answer.operators);
    let names: Vec<_> = names.map(|operator| &operator.name).collect();
    assert_eq!(names, ["admin", "ann", "bob"]);
    let bindings = async |page_token| {
        let request = ListServiceBindingsRequest {
            service: "pay".to_owned(),
            page_size: 2,
            page_token,
        };
        let answer = client.services().list_service_bindings(request).await;
        answer.unwrap().into_inner()
    };
    let answers = pages(bindings, |answer| &answer.next_page_token).await;
    let sizes: Vec<_> = answers
        .iter()
        .map(|answer| answer.service_bindings.len())
        .collect();
    assert_eq!(sizes, [2, 1]);
    let listed = broker.json(&["service", "binding", "list", "pay"]).await;
    let listed = listed.as_array().unwrap().iter();
    let listed: Vec<_> = listed
        .map(|bound| bound["dns_name"].as_str().unwrap())
        .collect();
    assert_eq!(listed, hosts);
}
