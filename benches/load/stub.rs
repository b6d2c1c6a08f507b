//! Fast stand-in for AWS: answers every call after the same time, and checks nothing. For figures
//! alone; other tests check what AWS would answer.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use credbroker::domain::clock::wall_time;
use data_encoding::BASE32;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use jiff::SignedDuration;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use tokio::net::TcpListener;

pub const ACCOUNT: &str = "123456789012";

/// Prints its address and serves, answering each call after `delay`.
pub async fn serve(delay: Duration) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("http://{}", listener.local_addr().unwrap());
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let answering = service_fn(move |request| answer(request, delay));
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), answering);
        // A caller may disconnect.
        tokio::spawn(async move { drop(connection.await) });
    }
}

async fn answer(
    request: Request<Incoming>,
    delay: Duration,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8_lossy(&body);
    let action = body
        .split('&')
        .find_map(|field| field.strip_prefix("Action="));
    let action = action.unwrap_or_default();
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let result = match action {
        "AssumeRole" | "GetFederationToken" => session(),
        "GetCallerIdentity" => identity(),
        "GetPolicy" => "<Policy><DefaultVersionId>v1</DefaultVersionId></Policy>".to_owned(),
        "GetPolicyVersion" => boundary(),
        _ => String::new(),
    };
    let answer = format!(
        "<{action}Response><{action}Result>{result}</{action}Result>\
         <ResponseMetadata><RequestId>7a62c49f-347e-4fc4-9331-6e8eEXAMPLE</RequestId></ResponseMetadata>\
         </{action}Response>"
    );
    Ok(Response::new(Full::from(answer)))
}

fn session() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let id = BASE32.encode(&[&[0; 2], &number[..]].concat());
    let until = wall_time() + SignedDuration::from_hours(1);
    let (until, token) = (until.strftime("%Y-%m-%dT%H:%M:%SZ"), "t".repeat(700));
    format!(
        "<Credentials><AccessKeyId>ASIA{id}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey>\
         <SessionToken>{token}</SessionToken><Expiration>{until}</Expiration></Credentials>",
        "s".repeat(40)
    )
}

/// Boundary of the users that the broker might make.
fn boundary() -> String {
    let policy = include_bytes!("../../deploy/aws/boundary-policy.json");
    let policy = percent_encode(policy, NON_ALPHANUMERIC);
    format!("<PolicyVersion><Document>{policy}</Document></PolicyVersion>")
}

fn identity() -> String {
    format!(
        "<Arn>arn:aws:iam::{ACCOUNT}:user/credbroker-admin</Arn><UserId>AIDAEXAMPLEEXAMPLE12</UserId>\
         <Account>{ACCOUNT}</Account>"
    )
}
