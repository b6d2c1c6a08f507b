//! Grants and their versions.

use credbroker::{
    broker::ports::Store,
    domain::{audit::Event, grant::Grant},
};
use tokio::join;

use super::{at, audit, grant, granted, name, page, put, refuses, register};

async fn delete(
    store: &dyn Store,
    grant: &Grant,
) -> Result<(), credbroker::broker::ports::StoreError> {
    let event = audit(Event::GrantDeleted).grant_name(&grant.name);
    store
        .delete_grant(&grant.name, at(9), &name("ann"), event)
        .await
}

pub(super) async fn a_version_follows_the_newest_ever(store: &dyn Store) {
    let first = granted(store, "payments-api/work").await;
    assert_eq!(
        store.grant(&first.name).await.unwrap().as_deref(),
        Some(&first)
    );
    for version in [0, 1, 3] {
        refuses(store, put(store, &grant("payments-api/work", version))).await;
    }
    let second = grant("payments-api/work", 2);
    put(store, &second).await.unwrap();
    assert_eq!(
        store.grant(&first.name).await.unwrap().as_deref(),
        Some(&second)
    );
    assert_eq!(store.newest_grant_version(&first.name).await.unwrap(), 2);
}

pub(super) async fn a_grant_of_an_unknown_service_is_refused(store: &dyn Store) {
    let stranger = grant("nobody/work", 1);
    refuses(store, put(store, &stranger)).await;
    assert_eq!(store.newest_grant_version(&stranger.name).await.unwrap(), 0);
    register(store, "nobody").await;
    put(store, &stranger).await.unwrap();
}

pub(super) async fn a_deleted_grant_leaves_its_version_number_behind(store: &dyn Store) {
    let first = granted(store, "payments-api/work").await;
    delete(store, &first).await.unwrap();
    assert_eq!(store.grant(&first.name).await.unwrap(), None);
    assert!(
        store
            .grants(None, &page(None, 10))
            .await
            .unwrap()
            .is_empty()
    );
    refuses(store, delete(store, &first)).await;
    let newest = store.newest_grant_version(&first.name).await.unwrap();
    assert!(newest >= first.version);
    refuses(store, put(store, &first)).await;
    let again = grant("payments-api/work", newest + 1);
    put(store, &again).await.unwrap();
    assert_eq!(
        store.grant(&first.name).await.unwrap().as_deref(),
        Some(&again)
    );
}

pub(super) async fn current_grants_are_listed_by_name_in_pages(store: &dyn Store) {
    // `-` sorts before `/`, so the names alone would sort otherwise.
    for service in ["pay", "pay-roll"] {
        register(store, service).await;
        for short in ["read", "admin"] {
            put(store, &grant(&format!("{service}/{short}"), 1))
                .await
                .unwrap();
        }
    }
    put(store, &grant("pay/read", 2)).await.unwrap();
    let names = |grants: &[Grant]| -> Vec<String> {
        grants
            .iter()
            .map(|g| format!("{}@{}", g.name, g.version))
            .collect()
    };
    let all = store.grants(None, &page(None, 10)).await.unwrap();
    assert_eq!(
        names(&all),
        [
            "pay/admin@1",
            "pay/read@2",
            "pay-roll/admin@1",
            "pay-roll/read@1"
        ]
    );
    let mut paged: Vec<Grant> = Vec::new();
    loop {
        let after = paged.last().map(|grant| grant.name.to_string());
        let part = store
            .grants(None, &page(after.as_deref(), 1))
            .await
            .unwrap();
        if part.is_empty() {
            break;
        }
        paged.extend(part);
    }
    assert_eq!(paged, all);
    let one = store
        .grants(Some(&name("pay-roll")), &page(None, 10))
        .await
        .unwrap();
    assert_eq!(names(&one), ["pay-roll/admin@1", "pay-roll/read@1"]);
}

pub(super) async fn concurrent_puts_of_one_version_succeed_once(store: &dyn Store) {
    granted(store, "payments-api/work").await;
    let second = grant("payments-api/work", 2);
    let won = join!(
        put(store, &second),
        put(store, &second),
        put(store, &second)
    );
    let won = [won.0, won.1, won.2]
        .iter()
        .filter(|put| put.is_ok())
        .count();
    assert_eq!(won, 1);
    assert_eq!(store.newest_grant_version(&second.name).await.unwrap(), 2);
}
