//! Loopback proxy between the broker and the emulator. It forwards and counts calls, and on demand
//! answers in AWS's shape or not at all. It injects faults and never judges a policy.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_smithy_async::rt::sleep::{AsyncSleep, SharedAsyncSleep, Sleep};
use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::State,
    http::{Request, Response, StatusCode, request::Parts},
    serve::ListenerExt,
};
use credbroker::{aws::ANSWER_LIMIT, domain::clock::wall_time};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use jiff::SignedDuration;
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
    time::sleep,
};
use tokio_util::task::TaskTracker;

use super::emulator::emulator;

/// Fault of a call. "Done" means that the emulator carries out the call.
#[derive(Clone)]
pub enum Fault {
    /// The proxy returns this answer, and the call is not done.
    Say(String),
    /// AWS answers with this error, and the call is not done.
    Answer(u16, &'static str, &'static str),
    /// AWS answers with this error to bodies that match, and those calls are not done.
    AnswerIf(
        Arc<dyn Fn(&str) -> bool + Send + Sync>,
        u16,
        &'static str,
        &'static str,
    ),
    /// The call is done, and AWS answers with this error.
    AnswerAfter(u16, &'static str, &'static str),
    /// The connection breaks before the call is done.
    Cut,
    /// The call is done, and the connection breaks before the answer.
    LoseAnswer,
    /// The call waits until the proxy is healed, then is done, even if its caller no longer waits
    /// for the answer.
    Hold,
    /// The call is done after this time, even if its caller no longer waits for the answer.
    Late(Duration),
    /// The call is done, and the answer waits until the proxy is healed.
    HoldAnswer,
    /// The call is done, and the answer is not one of AWS.
    Garble,
    /// The call is done, and the answer's `Date` is wrong by this much.
    Skew(SignedDuration),
    /// The call is done, and the function rewrites its answer.
    Rewrite(fn(&str) -> String),
    /// The function runs first, and the call is not done.
    Instead(Arc<dyn Fn() + Send + Sync>),
    /// The call is done, then the function runs, and there is no answer.
    After(Arc<dyn Fn() + Send + Sync>),
}

#[derive(Clone)]
pub struct Proxy {
    pub endpoint: String,
    state: Arc<Mutex<Calls>>,
    healed: Arc<Notify>,
    /// Number of calls or answers that were held.
    held: watch::Sender<usize>,
    /// Calls that were held and are done late.
    late: TaskTracker,
    client: Client<HttpConnector, Body>,
}

#[derive(Default)]
struct Calls {
    faults: HashMap<String, Fault>,
    /// Faults of the next calls of an action, one each.
    in_turn: HashMap<String, VecDeque<Fault>>,
    strike: Option<Strike>,
    seen: Vec<Seen>,
    /// Actions of calls whose caller had left before they were done.
    abandoned: Vec<String>,
}

/// A call as the proxy received it.
struct Seen {
    action: String,
    body: String,
    /// Region of the call's signature.
    region: String,
}

/// A fault for one call, chosen by its number.
struct Strike {
    /// Number of calls that pass before.
    after: usize,
    fault: Fault,
    /// True if the fault also applies to later calls of the same action.
    lasts: bool,
}

impl Calls {
    /// Records a call. Returns its fault, if any.
    fn meet(&mut self, call: Seen) -> Option<Fault> {
        let action = &call.action.clone();
        self.seen.push(call);
        match self.strike.take() {
            Some(strike) if strike.after > 0 => {
                self.strike = Some(Strike {
                    after: strike.after - 1,
                    ..strike
                });
            }
            Some(strike) => {
                if strike.lasts {
                    self.faults.insert(action.to_owned(), strike.fault.clone());
                }
                return Some(strike.fault);
            }
            None => {}
        }
        let next = self.in_turn.get_mut(action).and_then(VecDeque::pop_front);
        let fault = next.or_else(|| self.faults.get(action).cloned());
        fault.filter(|fault| match fault {
            Fault::AnswerIf(finds, ..) => self.seen.last().is_some_and(|call| finds(&call.body)),
            _ => true,
        })
    }
}

impl Proxy {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        // Small answers must not wait for more data.
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let proxy = Self {
            endpoint,
            state: Arc::default(),
            healed: Arc::default(),
            held: watch::Sender::default(),
            late: TaskTracker::new(),
            client,
        };
        let router = Router::new().fallback(forward).with_state(proxy.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        proxy
    }

    /// Injects this fault into all calls of this action from now on.
    pub fn inject(&self, action: &str, fault: Fault) {
        let mut state = self.state.lock().unwrap();
        state.faults.insert(action.to_owned(), fault);
    }

    /// Injects these faults into the next calls of this action, one each.
    pub fn inject_in_turn(&self, action: &str, faults: impl IntoIterator<Item = Fault>) {
        let mut state = self.state.lock().unwrap();
        let faults = faults.into_iter().collect();
        state.in_turn.insert(action.to_owned(), faults);
    }

    /// Injects this fault into one call, after `after` others; with `lasts`, also into the later
    /// calls of the same action.
    pub fn strike(&self, after: usize, fault: Fault, lasts: bool) {
        let strike = Strike {
            after,
            fault,
            lasts,
        };
        self.state.lock().unwrap().strike = Some(strike);
    }

    /// Timer for a broker's SDK. The time-out for an answer ends as soon as a call is held: no test
    /// waits for it, and a busy emulator is not taken for silent.
    pub fn timer(&self) -> SharedAsyncSleep {
        SharedAsyncSleep::new(UntilHeld(self.held.clone()))
    }

    /// Removes all faults; held calls continue.
    pub fn heal(&self) {
        let mut state = self.state.lock().unwrap();
        state.faults.clear();
        state.in_turn.clear();
        state.strike = None;
        self.healed.notify_waiters();
    }

    /// Waits until all held calls are done, even if their callers have left.
    pub async fn caught_up(&self) {
        self.late.close();
        self.late.wait().await;
    }

    /// Bodies of the calls of one action.
    pub fn calls(&self, action: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state
            .seen
            .iter()
            .filter(|call| call.action == action)
            .map(|call| call.body.clone())
            .collect()
    }

    /// Regions that the calls of one action were signed for, in their order.
    pub fn regions(&self, action: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let calls = state.seen.iter().filter(|call| call.action == action);
        calls.map(|call| call.region.clone()).collect()
    }

    /// Actions of all calls, in their order.
    pub fn actions(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.seen.iter().map(|call| call.action.clone()).collect()
    }

    /// Number of calls of these actions that may have been done after their caller had left.
    pub fn abandoned(&self, actions: &[&str]) -> usize {
        let state = self.state.lock().unwrap();
        let of_these = |action: &&String| actions.contains(&action.as_str());
        state.abandoned.iter().filter(of_these).count()
    }

    /// Records the action if its caller leaves before `happening` ends.
    async fn awaited<T>(&self, action: String, happening: impl Future<Output = T>) -> T {
        let mut waits = Waits {
            calls: &self.state,
            action: Some(action),
        };
        let happened = happening.await;
        waits.action = None;
        happened
    }

    /// Carries out the call, even if its caller no longer waits for the answer.
    async fn happens_after(
        &self,
        then: impl Future<Output = ()> + Send + 'static,
        action: String,
        parts: Parts,
        bytes: Bytes,
    ) -> Response<Body> {
        let proxy = self.clone();
        let late = self.late.spawn(async move {
            then.await;
            proxy.pass_on(parts, bytes).await
        });
        self.awaited(action, late).await.unwrap()
    }

    async fn pass_on(&self, parts: Parts, bytes: Bytes) -> Response<Body> {
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut parts = parts.clone();
        parts.uri = format!("{}{path}", emulator().endpoint).parse().unwrap();
        let request = Request::from_parts(parts, Body::from(bytes));
        self.client.request(request).await.unwrap().map(Body::new)
    }
}

#[derive(Debug)]
struct UntilHeld(watch::Sender<usize>);

impl AsyncSleep for UntilHeld {
    fn sleep(&self, duration: Duration) -> Sleep {
        let mut held = self.0.subscribe();
        let ends_early = duration == ANSWER_LIMIT;
        Sleep::new(async move {
            tokio::select! {
                () = sleep(duration) => {}
                Ok(()) = held.changed(), if ends_early => {}
            }
        })
    }
}

/// Guard that exists while the caller of an action waits for it.
struct Waits<'a> {
    calls: &'a Mutex<Calls>,
    action: Option<String>,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let abandoned = self.action.take();
        self.calls.lock().unwrap().abandoned.extend(abandoned);
    }
}

async fn forward(State(proxy): State<Proxy>, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let bytes = to_bytes(body, 1 << 20).await.unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let action = action(&parts, &text);
    let (fault, healed) = {
        let mut state = proxy.state.lock().unwrap();
        // Subscribes before the test can heal the proxy.
        let healed = Arc::clone(&proxy.healed).notified_owned();
        let region = region(&parts);
        let call = Seen {
            action: action.clone(),
            body: text,
            region,
        };
        (state.meet(call), healed)
    };
    match fault {
        None => proxy.awaited(action, proxy.pass_on(parts, bytes)).await,
        Some(Fault::Say(text)) => xml(text),
        Some(Fault::Answer(status, code, message) | Fault::AnswerIf(_, status, code, message)) => {
            aws_error(status, code, message)
        }
        Some(Fault::AnswerAfter(status, code, message)) => {
            proxy.pass_on(parts, bytes).await;
            aws_error(status, code, message)
        }
        Some(Fault::Cut) => cut(),
        Some(Fault::LoseAnswer) => {
            proxy.pass_on(parts, bytes).await;
            cut()
        }
        Some(Fault::Hold) => {
            proxy.held.send_modify(|held| *held += 1);
            proxy.happens_after(healed, action, parts, bytes).await
        }
        Some(Fault::Late(pause)) => {
            let later = sleep(pause);
            proxy.happens_after(later, action, parts, bytes).await
        }
        Some(Fault::HoldAnswer) => {
            let answer = proxy.pass_on(parts, bytes).await;
            proxy.held.send_modify(|held| *held += 1);
            healed.await;
            answer
        }
        Some(Fault::Garble) => {
            proxy.pass_on(parts, bytes).await;
            Response::new(Body::from("<html>it works"))
        }
        Some(Fault::Skew(wrong_by)) => {
            let mut answer = proxy.pass_on(parts, bytes).await;
            let date = (wall_time() + wrong_by).strftime("%a, %d %b %Y %H:%M:%S GMT");
            let date = date.to_string().parse().unwrap();
            answer.headers_mut().insert("date", date);
            answer
        }
        Some(Fault::Rewrite(change)) => {
            let answer = proxy.pass_on(parts, bytes).await;
            let bytes = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
            xml(change(std::str::from_utf8(&bytes).unwrap()))
        }
        Some(Fault::Instead(deed)) => {
            deed();
            cut()
        }
        Some(Fault::After(deed)) => {
            proxy.pass_on(parts, bytes).await;
            deed();
            cut()
        }
    }
}

/// Name of the action, without its service; S3 names none.
fn action(parts: &Parts, body: &str) -> String {
    let target = parts.headers.get("x-amz-target");
    let target = target.and_then(|target| target.to_str().unwrap().split_once('.'));
    let query = || {
        body.split('&')
            .find_map(|pair| pair.strip_prefix("Action="))
    };
    let action = target.map(|(_, action)| action).or_else(query);
    action.unwrap_or_default().to_owned()
}

/// Region of a signature (Signature Version 4); empty without one.
fn region(parts: &Parts) -> String {
    let signed = parts.headers.get("authorization");
    let signed = signed.and_then(|signed| signed.to_str().ok());
    let scope = signed.and_then(|signed| signed.split_once("Credential="));
    let region = scope.and_then(|(_, scope)| scope.split('/').nth(2));
    region.unwrap_or_default().to_owned()
}

/// Ends the task of this connection silently, and so the connection.
fn cut() -> ! {
    std::panic::resume_unwind(Box::new("cut"))
}

fn aws_error(status: u16, code: &str, message: &str) -> Response<Body> {
    let body = format!(
        "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>\
         <RequestId>00000000-0000-0000-0000-000000000000</RequestId></ErrorResponse>"
    );
    let mut response = xml(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn xml(body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    let kind = "text/xml".parse().unwrap();
    response.headers_mut().insert("content-type", kind);
    response
}
