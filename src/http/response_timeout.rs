//! Answers that wait until the peer takes them.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use hyper::body::{Bytes, Frame, SizeHint};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// Answers over one connection that have data to send while the peer grants no window or does not
/// read.
#[derive(Clone, Default)]
pub(super) struct StalledResponses(Arc<SharedState>);

#[derive(Default)]
struct SharedState {
    since: Mutex<HashMap<u64, Instant>>,
    answers: AtomicU64,
    begun: Notify,
}

impl StalledResponses {
    fn since(&self) -> MutexGuard<'_, HashMap<u64, Instant>> {
        self.0.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, answer: u64) {
        self.since().insert(answer, Instant::now());
        self.0.begun.notify_one();
    }

    fn end(&self, answer: u64) {
        self.since().remove(&answer);
    }

    /// Waits until an answer has waited for `limit`.
    pub(super) async fn too_long(&self, limit: Duration) {
        loop {
            self.0.begun.notified().await;
            while let Some(oldest) = { self.since().values().min().copied() } {
                let due = oldest + limit;
                if due <= Instant::now() {
                    return;
                }
                sleep_until(due).await;
            }
        }
    }
}

/// Body of an answer. Records since when the peer has not taken the data that is ready.
pub(super) struct TimedResponse {
    body: Body,
    waiting: StalledResponses,
    number: u64,
}

impl TimedResponse {
    pub(super) fn new(body: Body, waiting: StalledResponses) -> Self {
        let number = waiting.0.answers.fetch_add(1, Ordering::Relaxed);
        waiting.begin(number);
        Self {
            body,
            waiting,
            number,
        }
    }
}

impl Drop for TimedResponse {
    fn drop(&mut self) {
        self.waiting.end(self.number);
    }
}

impl hyper::body::Body for TimedResponse {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.waiting.end(self.number);
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(_)) = polled {
            self.waiting.begin(self.number);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
