//! Endpoint `GET /v1/credentials/GRANT`, the container credentials endpoint of AWS SDKs.
//! <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::Path,
    http::{
        Method, Request, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use secrecy::{ExposeSecret, SecretString};
use tonic::Code;

use crate::{
    broker::{Broker, Error},
    domain::{
        access::Caller,
        audit::Subject,
        container::{RefusalKind, document},
        credential::Credentials,
        decide::{IssueRequest, own_service},
        grant::{Grant, validate::Violation},
        name::GrantName,
    },
    grpc::{
        auth_layer::{Authorizer, IncomingCall},
        status::status,
    },
};

/// Method that a request counts as: an issue over another protocol.
const METHOD: &str = "credbroker.v1.CredentialService/IssueCredentials";
/// Shortest remaining lifetime of issued credentials. SDKs begin to refresh 15 minutes before the
/// end, and would refresh all the time with less.
const LEAST: Duration = Duration::from_mins(20);

/// Serves a session of one of the caller's own grants.
pub(super) async fn serve(
    door: &Authorizer,
    Path(grant): Path<String>,
    request: Request<Body>,
) -> Response {
    if request.method() != Method::GET {
        // A HEAD request would issue credentials that no caller receives.
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let mut call = match IncomingCall::new(&request, METHOD.to_owned(), refusal) {
        Ok(call) => call,
        Err(answer) => return *answer,
    };
    call.authorization = call.authorization.map(bearer);
    let work = async |broker: Arc<Broker>, caller: Caller, ()| {
        let issued = issue(&broker, caller.clone(), &grant).await;
        match broker.record_result(&caller, issued).await {
            Ok(document) => document,
            Err(error) => refusal(&error),
        }
    };
    door.authorize(&call, async { Ok(()) }, work).await
}

/// Adds the scheme to a bare token: SDKs send the content of their token file and nothing else.
fn bearer(header: SecretString) -> SecretString {
    let text = header.expose_secret();
    if text.contains(' ') {
        return header;
    }
    SecretString::from(format!("Bearer {text}"))
}

async fn issue(broker: &Arc<Broker>, caller: Caller, grant: &str) -> Result<Response, Error> {
    let service = own_service(&caller).ok_or(Error::Unauthenticated)?;
    let wrong = |message: String| Error::Invalid(vec![Violation::new("grant", message)]);
    let name = GrantName::within(service, grant).map_err(|error| wrong(error.to_string()))?;
    let known = broker.store().grant(&name).await?;
    let ttl = known.as_deref().map(long_enough).transpose()?;
    let request = IssueRequest {
        least_left: LEAST,
        ..IssueRequest::new(name, ttl, None)
    };
    let issued = broker.issue(caller, request).await?;
    let Credentials {
        access_key_id,
        secret_access_key,
        session_token: Some(token),
        expires_at: Some(expires_at),
        ..
    } = &issued.credentials
    else {
        return Err(Error::Internal("a session without its token".to_owned()));
    };
    let document = document(access_key_id, secret_access_key, token, *expires_at);
    Ok(answer(StatusCode::OK, &document))
}

/// Returns the lifetime to request, at least [`LEAST`]. Refuses grants that cannot serve SDKs.
fn long_enough(grant: &Grant) -> Result<Duration, Error> {
    let refused = |reason, message: &str, next: &str| {
        Err(Error::WrongState {
            subject: Subject::Grant(grant.name.clone()),
            reason,
            message: format!("grant {} {message}", grant.name),
            next: next.to_owned(),
        })
    };
    let spec = &grant.spec;
    if !spec.kind().is_session() {
        return refused(
            "GRANT_NOT_A_SESSION",
            "is of kind iam_user, which has no session token, so that SDKs do not take it here",
            "use `credbroker issue`, or a grant of another kind",
        );
    }
    if spec.max_ttl < LEAST {
        return refused(
            "GRANT_TOO_SHORT",
            "allows less than the 20 minutes that SDKs need",
            "have an operator raise its --max-ttl",
        );
    }
    // A shared session must also be of use to later callers.
    let least = if spec.reuse.is_some() {
        2 * LEAST
    } else {
        LEAST
    };
    Ok(spec.default_ttl.max(least).min(spec.max_ttl))
}

fn refusal(error: &Error) -> Response {
    let told = status(error);
    let refusal = match told.code() {
        Code::Unavailable
        | Code::ResourceExhausted
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal => RefusalKind::Unavailable,
        _ => RefusalKind::Denied,
    };
    let next = error.next();
    let message = if next.is_empty() {
        told.message().to_owned()
    } else {
        format!("{}; {next}", told.message())
    };
    let code = StatusCode::from_u16(refusal.status()).unwrap_or_default();
    let mut refused = answer(code, &refusal.document(&message));
    if refusal == RefusalKind::Unavailable {
        refused.headers_mut().insert(RETRY_AFTER, 1.into());
    }
    refused
}

fn answer(code: StatusCode, document: &serde_json::Value) -> Response {
    let headers = [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "no-store"),
    ];
    (code, headers, document.to_string()).into_response()
}
