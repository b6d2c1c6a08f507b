//! Services, operators, and their tokens.

use credbroker::{
    broker::ports::{Store, StoreError, TokenOwner},
    domain::{
        audit::Event,
        lease::EndReason,
        operator::Role,
        service::{Service, ServiceOverview, TOKENS_MAX},
        token::{StoredToken, TokenId, TokenKind},
    },
};

use super::{active, at, audit, granted, name, page, refuses, register, suspension, token, update};

async fn delete_service(store: &dyn Store, service: &str) -> Result<(), StoreError> {
    let event = audit(Event::ServiceDeleted);
    store.delete_service(&name(service), event).await
}

async fn give(store: &dyn Store, service: &str, token: &StoredToken) -> Result<(), StoreError> {
    store
        .create_token(&name(service), token, audit(Event::TokenCreated))
        .await
}

async fn drop_token(store: &dyn Store, service: &str, id: &TokenId) -> Result<(), StoreError> {
    store
        .delete_token(&name(service), id, audit(Event::TokenDeleted))
        .await
}

async fn hire(store: &dyn Store, who: &str, role: Role) -> Result<TokenId, StoreError> {
    let token = token(TokenKind::Operator, 1);
    let event = audit(Event::OperatorCreated);
    store
        .create_operator(&name(who), role, &token, event)
        .await?;
    Ok(token.id)
}

async fn fire(store: &dyn Store, who: &str) -> Result<(), StoreError> {
    store
        .delete_operator(&name(who), audit(Event::OperatorDeleted))
        .await
}

pub(super) async fn a_service_name_is_taken_once(store: &dyn Store) {
    register(store, "payments-api").await;
    let again = Service {
        name: name("payments-api"),
        created_at: at(2),
        suspension: None,
    };
    let event = audit(Event::ServiceCreated);
    refuses(store, store.create_service(&again, event)).await;
    register(store, "payments-api2").await;
    let kept = store.service(&again.name).await.unwrap().unwrap();
    assert_eq!(kept.service.created_at, at(1));
    assert_eq!(store.service(&name("nobody")).await.unwrap(), None);
}

pub(super) async fn services_are_listed_by_name_in_pages_with_what_they_hold(store: &dyn Store) {
    let grant = granted(store, "payments-api/work").await;
    register(store, "billing").await;
    register(store, "zebra").await;
    active(store, &grant, 20).await;
    active(store, &grant, 30).await;
    let names = |services: &[ServiceOverview]| -> Vec<String> {
        services
            .iter()
            .map(|o| o.service.name.to_string())
            .collect()
    };
    let first = store.services(&page(None, 2)).await.unwrap();
    assert_eq!(names(&first), ["billing", "payments-api"]);
    let rest = store
        .services(&page(Some("payments-api"), 2))
        .await
        .unwrap();
    assert_eq!(names(&rest), ["zebra"]);
    assert_eq!((first[0].live_leases, first[0].last_issued_at), (0, None));
    assert_eq!(
        (first[1].live_leases, first[1].last_issued_at),
        (2, Some(at(30)))
    );
}

pub(super) async fn a_service_is_suspended_once_and_reinstated_once(store: &dyn Store) {
    let service = register(store, "payments-api").await;
    let reinstate = || store.reinstate_service(&service, audit(Event::ServiceReinstated));
    let (first, second) = (suspension(5, "audit"), suspension(6, "again"));
    let suspend = |why| store.suspend_service(&service, why, audit(Event::ServiceSuspended));
    refuses(store, reinstate()).await;
    suspend(&first).await.unwrap();
    refuses(store, suspend(&second)).await;
    let stands = store.service(&service).await.unwrap().unwrap();
    assert_eq!(stands.service.suspension, Some(first.clone()));
    reinstate().await.unwrap();
    let stands = store.service(&service).await.unwrap().unwrap();
    assert_eq!(stands.service.suspension, None);
    let nobody = name("nobody");
    let event = audit(Event::ServiceSuspended);
    refuses(store, store.suspend_service(&nobody, &first, event)).await;
    let event = audit(Event::ServiceReinstated);
    refuses(store, store.reinstate_service(&nobody, event)).await;
}

pub(super) async fn a_service_with_live_leases_cannot_be_deleted(store: &dyn Store) {
    let grant = granted(store, "payments-api/work").await;
    let held = token(TokenKind::Service, 1);
    give(store, "payments-api", &held).await.unwrap();
    let lease = active(store, &grant, 10).await;
    refuses(store, delete_service(store, "nobody")).await;
    refuses(store, delete_service(store, "payments-api")).await;
    let revoking = lease
        .clone()
        .begin_revocation(EndReason::Released, at(11))
        .unwrap();
    update(store, &lease, &revoking).await.unwrap();
    refuses(store, delete_service(store, "payments-api")).await;
    let ended = revoking.clone().finish(at(12)).unwrap();
    update(store, &revoking, &ended).await.unwrap();
    delete_service(store, "payments-api").await.unwrap();

    assert_eq!(store.service(&name("payments-api")).await.unwrap(), None);
    assert!(store.token_owner(&held.id).await.unwrap().is_none());
    assert_eq!(store.grant(&grant.name).await.unwrap(), None);
    assert_eq!(
        store.lease(&lease.binding.lease_id).await.unwrap(),
        Some(ended)
    );
    // A new service of the same name has nothing.
    register(store, "payments-api").await;
    assert_eq!(store.grant(&grant.name).await.unwrap(), None);
    assert!(
        store
            .tokens(&name("payments-api"))
            .await
            .unwrap()
            .is_empty()
    );
}

pub(super) async fn a_service_has_ten_tokens_at_most_listed_oldest_first(store: &dyn Store) {
    register(store, "payments-api").await;
    register(store, "billing").await;
    let mut tokens = Vec::new();
    for second in (1..=10).rev() {
        let token = token(TokenKind::Service, second);
        give(store, "payments-api", &token).await.unwrap();
        tokens.insert(0, token);
    }
    assert_eq!(tokens.len(), TOKENS_MAX);
    let eleventh = token(TokenKind::Service, 11);
    refuses(store, give(store, "payments-api", &eleventh)).await;
    refuses(store, give(store, "nobody", &eleventh)).await;
    give(store, "billing", &eleventh).await.unwrap();
    let listed = store.tokens(&name("payments-api")).await.unwrap();
    let ids = |tokens: &[StoredToken]| -> Vec<TokenId> {
        tokens.iter().map(|token| token.id.clone()).collect()
    };
    assert_eq!(ids(&listed), ids(&tokens));
    assert_eq!(listed[3].expires_at, tokens[3].expires_at);
    drop_token(store, "payments-api", &tokens[0].id)
        .await
        .unwrap();
    let next = token(TokenKind::Service, 12);
    give(store, "payments-api", &next).await.unwrap();
}

pub(super) async fn a_token_is_deleted_by_its_own_service_alone(store: &dyn Store) {
    register(store, "payments-api").await;
    register(store, "billing").await;
    let ours = token(TokenKind::Service, 1);
    give(store, "payments-api", &ours).await.unwrap();
    refuses(store, drop_token(store, "billing", &ours.id)).await;
    drop_token(store, "payments-api", &ours.id).await.unwrap();
    refuses(store, drop_token(store, "payments-api", &ours.id)).await;
    let operators = hire(store, "ann", Role::Admin).await.unwrap();
    refuses(store, drop_token(store, "payments-api", &operators)).await;
}

pub(super) async fn a_token_leads_to_its_owner_as_it_stands_now(store: &dyn Store) {
    let service = register(store, "payments-api").await;
    let held = token(TokenKind::Service, 1);
    give(store, "payments-api", &held).await.unwrap();
    let why = suspension(5, "audit");
    store
        .suspend_service(&service, &why, audit(Event::ServiceSuspended))
        .await
        .unwrap();
    let (stored, owner) = store.token_owner(&held.id).await.unwrap().unwrap();
    assert!(stored.digest.matches(&held.digest));
    assert_eq!(
        (stored.created_at, stored.expires_at),
        (held.created_at, held.expires_at)
    );
    assert!(matches!(owner, TokenOwner::Service(s) if s.suspension == Some(why)));
    let id = hire(store, "ann", Role::Auditor).await.unwrap();
    let (_, owner) = store.token_owner(&id).await.unwrap().unwrap();
    assert!(matches!(owner, TokenOwner::Operator(o) if o.role == Role::Auditor));
    let unknown = token(TokenKind::Service, 1).id;
    assert!(store.token_owner(&unknown).await.unwrap().is_none());
}

pub(super) async fn an_operator_name_is_taken_once(store: &dyn Store) {
    let id = hire(store, "ann", Role::Viewer).await.unwrap();
    refuses(store, hire(store, "ann", Role::Admin)).await;
    hire(store, "abe", Role::Admin).await.unwrap();
    let operators = store.operators().await.unwrap();
    let names: Vec<_> = operators.iter().map(|o| o.name.to_string()).collect();
    assert_eq!(names, ["abe", "ann"]);
    assert_eq!(
        (operators[1].role, &operators[1].token_id),
        (Role::Viewer, &id)
    );
}

pub(super) async fn the_last_admin_cannot_be_deleted(store: &dyn Store) {
    hire(store, "ann", Role::Admin).await.unwrap();
    let viewer = hire(store, "joe", Role::Viewer).await.unwrap();
    refuses(store, fire(store, "nobody")).await;
    refuses(store, fire(store, "ann")).await;
    fire(store, "joe").await.unwrap();
    assert!(store.token_owner(&viewer).await.unwrap().is_none());
    hire(store, "bob", Role::Admin).await.unwrap();
    fire(store, "ann").await.unwrap();
    refuses(store, fire(store, "bob")).await;
}

pub(super) async fn a_replaced_operator_token_ends_the_one_before(store: &dyn Store) {
    let replace = async |who: &str| {
        let token = token(TokenKind::Operator, 1);
        let event = audit(Event::OperatorCreated);
        store
            .replace_operator_token(&name(who), &token, event)
            .await
            .unwrap();
        token.id
    };
    let first = replace("admin").await;
    let second = replace("admin").await;
    assert!(store.token_owner(&first).await.unwrap().is_none());
    let (_, owner) = store.token_owner(&second).await.unwrap().unwrap();
    assert!(matches!(owner, TokenOwner::Operator(o) if o.role == Role::Admin));
    assert_eq!(store.operators().await.unwrap().len(), 1);
}
