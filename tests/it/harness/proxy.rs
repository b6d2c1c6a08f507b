//! A loopback proxy between the broker and the emulator that forwards, counts, and on
//! demand answers in AWS's shape or not at all. A fault injector, never the judge of a
//! policy.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::State,
    http::{Request, Response, StatusCode},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{net::TcpListener, sync::Notify};

use super::emulator::emulator;

/// What happens to a call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// AWS answers with this error, and nothing has happened.
    Answer(u16, &'static str, &'static str),
    /// It happens, and the connection breaks before the answer.
    LoseAnswer,
    /// It waits until the proxy is healed, then happens.
    Hold,
}

#[derive(Clone)]
pub struct Proxy {
    pub endpoint: String,
    state: Arc<Mutex<Calls>>,
    healed: Arc<Notify>,
    client: Client<HttpConnector, Body>,
}

#[derive(Default)]
struct Calls {
    faults: HashMap<String, Fault>,
    seen: Vec<(String, String)>,
}

impl Proxy {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let client = Client::builder(TokioExecutor::new()).build_http();
        let proxy = Self {
            endpoint,
            state: Arc::default(),
            healed: Arc::default(),
            client,
        };
        let router = Router::new().fallback(forward).with_state(proxy.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        proxy
    }

    /// From now on, calls of this action meet this fault.
    pub fn inject(&self, action: &str, fault: Fault) {
        self.state
            .lock()
            .unwrap()
            .faults
            .insert(action.to_owned(), fault);
    }

    /// No more faults; what was held goes on.
    pub fn heal(&self) {
        self.state.lock().unwrap().faults.clear();
        self.healed.notify_waiters();
    }

    /// Bodies of the calls of one action.
    pub fn calls(&self, action: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state
            .seen
            .iter()
            .filter(|(name, _)| name == action)
            .map(|(_, body)| body.clone())
            .collect()
    }
}

async fn forward(State(proxy): State<Proxy>, request: Request<Body>) -> Response<Body> {
    let (mut parts, body) = request.into_parts();
    let bytes = to_bytes(body, 1 << 20).await.unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let action = text
        .split('&')
        .find_map(|pair| pair.strip_prefix("Action="))
        .unwrap_or("")
        .to_owned();
    let (fault, healed) = {
        let mut state = proxy.state.lock().unwrap();
        state.seen.push((action.clone(), text));
        (state.faults.get(&action).cloned(), proxy.healed.notified())
    };
    if let Some(Fault::Answer(status, code, message)) = fault {
        return aws_error(status, code, message);
    }
    if matches!(fault, Some(Fault::Hold)) {
        healed.await;
    }
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = format!("{}{path}", emulator().endpoint).parse().unwrap();
    let answer = proxy
        .client
        .request(Request::from_parts(parts, Body::from(bytes)))
        .await
        .unwrap();
    if matches!(fault, Some(Fault::LoseAnswer)) {
        // Ends the task of this connection without a word, and so the connection.
        std::panic::resume_unwind(Box::new("cut"));
    }
    answer.map(Body::new)
}

fn aws_error(status: u16, code: &str, message: &str) -> Response<Body> {
    let body = format!(
        "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>\
         <RequestId>00000000-0000-0000-0000-000000000000</RequestId></ErrorResponse>"
    );
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
        .headers_mut()
        .insert("content-type", "text/xml".parse().unwrap());
    response
}
