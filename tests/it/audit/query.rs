//! Queries of audit records.

use credbroker::proto::{AuditRecord, ListAuditRecordsRequest};
use serde_json::Value;
use tonic::Code;

use super::{fill, policy};
use crate::harness::{Account, Broker, emulator::emulator};

/// Starts a broker with all kinds of records in its log.
async fn eventful() -> Broker {
    let broker = Broker::start(&Account::new().await).await;
    for service in ["pay", "billing"] {
        let token = broker.service(service).await;
        for grant in ["work", "audit"] {
            let name = format!("{service}/{grant}");
            broker
                .grant(&name, &["--kind", "iam_user"], &policy())
                .await;
        }
        let issued = broker.issue(&token, "work").await;
        broker.issue(&token, "audit").await;
        let lease = issued["lease_id"].as_str().unwrap();
        broker.run_as(Some(&token), &["release", lease]).await.ok();
        broker
            .run_as(Some(&token), &["issue", "none"])
            .await
            .fails(5, &[]);
        broker.run_as(Some(&token), &["status"]).await.fails(4, &[]);
    }
    broker
}

/// Result of a query among the first `known` records; later ones come from the query itself.
async fn query(broker: &Broker, flags: &[&str], known: usize) -> Vec<Value> {
    let found = broker.json(&[&["audit", "query"], flags].concat()).await;
    let found = found.as_array().unwrap().iter();
    let old = |record: &&Value| record["seq"].as_u64().unwrap() <= known as u64;
    found.filter(old).cloned().collect()
}

#[tokio::test]
async fn a_query_finds_what_its_filters_name_and_nothing_else() {
    let broker = eventful().await;
    let all = broker.audit().await;
    let filters = [
        ("--service", "service", "nobody"),
        ("--grant", "grant", "nobody/nothing"),
        ("--lease", "lease_id", "00000000000000000000000000"),
        ("--access-key-id", "access_key_id", "AKIANOBODY"),
        ("--actor", "actor", "operator:nobody"),
        ("--event", "event", "lease.postponed"),
        ("--outcome", "outcome", "failure"),
    ];
    for (flag, field, absent) in filters {
        let sample = all
            .iter()
            .rfind(|r| r["access_key_id"].is_string())
            .unwrap();
        let value = sample[field].as_str().unwrap();
        let matching: Vec<Value> = all.iter().filter(|r| r[field] == value).cloned().collect();
        assert!(!matching.is_empty() && matching.len() < all.len(), "{flag}");
        assert_eq!(
            query(&broker, &[flag, value], all.len()).await,
            matching,
            "{flag}"
        );
        assert!(
            query(&broker, &[flag, absent], all.len()).await.is_empty(),
            "{flag}"
        );
    }
    let both = ["--service", "billing", "--event", "lease.issued"];
    assert_eq!(query(&broker, &both, all.len()).await.len(), 2);
}

#[tokio::test]
async fn a_filter_that_no_record_can_match_is_a_mistake_and_not_an_empty_answer() {
    let broker = eventful().await;
    for (flag, wrong) in [
        ("--service", "Nobody"),
        ("--grant", "uploads"),
        ("--lease", "foo"),
        ("--actor", "admin"),
        ("--event", "lease.isued"),
        ("--outcome", "bad"),
    ] {
        let asked = broker.run(&["audit", "query", flag, wrong]).await;
        asked.fails(2, &["write it like"]);
    }
    let times = [
        "--since",
        "2030-01-01T00:00:00Z",
        "--until",
        "2020-01-01T00:00:00Z",
    ];
    let asked = broker
        .run(&[&["audit", "query"], &times[..]].concat())
        .await;
    asked.fails(2, &["until"]);
}

#[tokio::test]
async fn a_query_takes_records_from_one_time_until_before_another() {
    let broker = eventful().await;
    let all = broker.audit().await;
    let time = |record: &Value| record["time"].as_str().unwrap().to_owned();
    let (since, until) = (time(&all[3]), time(&all[9]));
    // Query times are printed to the millisecond, in a form that sorts as text.
    let between: Vec<Value> = all
        .iter()
        .filter(|r| (since.as_str()..until.as_str()).contains(&time(r).as_str()))
        .cloned()
        .collect();
    assert!(!between.is_empty() && between.len() < all.len());
    let flags = ["--since", &since, "--until", &until];
    assert_eq!(query(&broker, &flags, all.len()).await, between);
    let none = ["--until", "2001-01-01T00:00:00Z"];
    assert!(query(&broker, &none, all.len()).await.is_empty());
    broker
        .run(&["audit", "query", "--since", "yesterday"])
        .await
        .fails(2, &["--since"]);
}

#[tokio::test]
async fn a_long_log_is_read_past_the_largest_page() {
    let account = Account::new().await;
    let mut broker = Broker::start(&account).await;
    assert!(broker.stop().await);
    fill(&broker, 2500).await;
    let endpoint = &emulator().endpoint;
    let broker = broker.start_again(&account.admin, endpoint).await;
    assert_eq!(broker.audit().await.len(), 1000);
    let many = broker.json(&["audit", "query", "--limit", "2200"]).await;
    let many = many.as_array().unwrap();
    assert_eq!(many.len(), 2200);
    super::assert_without_gaps(many);
    let lines = broker
        .run(&["audit", "query", "--limit", "1001"])
        .await
        .ok()
        .stdout;
    assert_eq!(lines.lines().count(), 1001);
    let request = ListAuditRecordsRequest {
        page_size: 5000,
        ..Default::default()
    };
    let client = broker.client(broker.admin_token()).await;
    let page = client
        .audit()
        .list_audit_records(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (page.records.len(), page.next_page_token.as_str()),
        (1000, "1000")
    );
}

#[tokio::test]
async fn pages_of_two_make_up_the_whole() {
    let broker = eventful().await;
    for name in ["one", "two", "three"] {
        broker.run(&["service", "create", name]).await.ok();
    }
    let client = broker.client(broker.admin_token()).await;
    let list = async |page_size: i32, page_token: String| {
        let event = "service.created".to_owned();
        let request = ListAuditRecordsRequest {
            event,
            page_size,
            page_token,
            ..Default::default()
        };
        client.audit().list_audit_records(request).await
    };
    let whole = list(100, String::new()).await.unwrap().into_inner();
    assert_eq!(
        (whole.records.len(), whole.next_page_token.as_str()),
        (5, "")
    );
    let (mut records, mut token): (Vec<AuditRecord>, _) = (Vec::new(), String::new());
    loop {
        let page = list(2, token).await.unwrap().into_inner();
        assert!(page.records.len() <= 2);
        records.extend(page.records);
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(records, whole.records);
    let wrong = list(-1, String::new()).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
}
