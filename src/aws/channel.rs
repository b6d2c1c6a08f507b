//! The only way to call IAM and STS: within the budget, reported to the breaker, counted, and with
//! failures put into words.

use std::{error::Error as StdError, pin::Pin, sync::Arc, time::Duration};

use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_async::time::TimeSource;
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        connection::{CaptureSmithyConnection, ConnectionMetadata},
        interceptors::{
            Intercept,
            context::{
                AfterDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
            },
        },
        orchestrator::HttpResponse,
        retries::RequestAttempts,
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::{
    DateTime,
    config_bag::{ConfigBag, Storable, StoreReplace},
    date_time::Format,
};
use jiff::Timestamp;
use metrics::{counter, histogram};
use tokio::time::{Instant, sleep};

use super::{
    circuit_breaker::CircuitBreaker,
    error::{Operation, budget_exhausted, circuit_open, failure, refuses_time},
    rate_budget::{Purpose, RateBudget, ReplicaCount},
    timestamp,
};
use crate::{
    broker::ports::{AwsFailure, FailureClass},
    domain::clock::{Clock, Observation, SteadyClock},
};

/// Longest time of a call whose answer shows the time of AWS's clock.
const ROUND_TRIP: Duration = Duration::from_secs(2);

/// A call of the SDK, not yet made.
pub(super) trait SdkCall:
    Future<Output = Result<Self::Answer, SdkError<Self::Failure, HttpResponse>>> + Send
{
    type Answer: Send;
    type Failure: ProvideErrorMetadata + StdError + Send + Sync + 'static;
}

impl<T, E, F> SdkCall for F
where
    T: Send,
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    F: Future<Output = Result<T, SdkError<E, HttpResponse>>> + Send,
{
    type Answer = T;
    type Failure = E;
}

/// One API family in one region, with its budget and its circuit breaker.
#[derive(Debug)]
pub(super) struct ApiChannel {
    /// `iam` or `sts:REGION`.
    name: String,
    budget: RateBudget,
    breaker: CircuitBreaker,
    clock: Arc<SteadyClock>,
}

impl ApiChannel {
    pub(super) fn new(
        name: String,
        per_second: u32,
        sharers: ReplicaCount,
        clock: Arc<SteadyClock>,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            budget: RateBudget::new(per_second, sharers),
            breaker: CircuitBreaker::new(),
            clock,
        })
    }

    /// Returns how many callers may work in parallel, so that each makes a call a second.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate is a small number above 0"
    )]
    pub(super) fn at_once(&self) -> usize {
        (self.budget.common_rate() as usize).max(1)
    }

    /// Checks whether an operation that needs calls for issue may begin.
    pub(super) fn ready(&self) -> Result<(), AwsFailure> {
        let held_back = |wait| budget_exhausted(&self.name, wait);
        self.budget.check(Purpose::Begin).map_err(held_back)?;
        let open = |wait| circuit_open(&self.name, wait);
        self.breaker.check().map_err(open)
    }

    /// Returns whether AWS answers, as far as recent calls show.
    pub(super) fn is_answering(&self) -> bool {
        self.breaker.check().is_ok()
    }

    /// Makes `call` when its turn comes. The SDK's futures are large, so the call is boxed.
    pub(super) async fn ask<C: SdkCall>(
        &self,
        purpose: Purpose,
        operation: &Operation<'_>,
        call: Pin<Box<C>>,
    ) -> Result<C::Answer, AwsFailure> {
        let wait = self.budget.reserve(purpose);
        let wait = wait.map_err(|wait| budget_exhausted(&self.name, wait))?;
        // The timer counts in milliseconds: even a sleep of zero takes one.
        if !wait.is_zero() {
            sleep(wait).await;
        }
        if purpose == Purpose::Begin {
            let open = |wait| circuit_open(&self.name, wait);
            self.breaker.admit().map_err(open)?;
        }
        let began = Instant::now();
        let result = call.await.map_err(|error| failure(operation, &error));
        self.record_outcome(result.as_ref().err().map(|failure| failure.class));
        count(operation, result.as_ref().err(), began.elapsed());
        result
    }

    fn record_outcome(&self, failed: Option<FailureClass>) {
        match failed {
            None | Some(FailureClass::Refused | FailureClass::Deferred | FailureClass::Busy) => {
                self.breaker.answered();
            }
            Some(FailureClass::Throttled) => {
                self.breaker.answered();
                self.budget.throttled();
            }
            Some(FailureClass::Unavailable | FailureClass::Uncertain) => {
                if self.breaker.failed() {
                    counter!("credbroker_aws_circuit_opened_total", "line" => self.name.clone())
                        .increment(1);
                    tracing::warn!(line = self.name, "AWS does not answer; issuing pauses");
                }
            }
        }
    }
}

pub(super) fn count(operation: &Operation<'_>, failed: Option<&AwsFailure>, took: Duration) {
    let outcome = failed.map_or("OK", |failure| failure.reason);
    counter!("credbroker_aws_calls_total", "operation" => operation.name, "outcome" => outcome)
        .increment(1);
    histogram!("credbroker_aws_call_seconds", "operation" => operation.name).record(took);
}

/// Observer of every attempt of the SDK: repeated attempts are paid for, and each answer shows
/// AWS's time.
#[derive(Debug)]
pub(super) struct TimingInterceptor(pub(super) Arc<ApiChannel>);

/// Time at which an attempt was sent.
#[derive(Debug)]
struct SentAt(Instant);

impl Storable for SentAt {
    type Storer = StoreReplace<Self>;
}

impl Intercept for TimingInterceptor {
    fn name(&self) -> &'static str {
        "credbroker"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if config
            .load::<RequestAttempts>()
            .is_some_and(|attempts| attempts.attempts() > 1)
        {
            self.0.budget.spend();
        }
        config.interceptor_state().store_put(SentAt(Instant::now()));
        Ok(())
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let prompt = config
            .load::<SentAt>()
            .is_some_and(|sent| sent.0.elapsed() <= ROUND_TRIP);
        let connection = config
            .load::<CaptureSmithyConnection>()
            .and_then(CaptureSmithyConnection::get);
        if prompt && let Some((time, connection)) = aws_time(context.response()).zip(connection) {
            self.0.observe(time, &connection);
        }
        Ok(())
    }
}

/// Returns AWS's time from the answer of a server that has checked the signature: the server has
/// accepted the request, or refuses it because of the signature's time.
fn aws_time(answer: &HttpResponse) -> Option<Timestamp> {
    let refuses_time = || {
        let body = answer.body().bytes().unwrap_or_default();
        refuses_time(&String::from_utf8_lossy(body))
    };
    if !answer.status().is_success() && !refuses_time() {
        return None;
    }
    let date = answer.headers().get("date")?;
    let date = DateTime::from_str(date, Format::HttpDate).ok()?;
    timestamp(&date)
}

impl ApiChannel {
    /// Reports AWS's time to the clock. While the time is uncertain, the next call uses another
    /// connection.
    fn observe(&self, time: Timestamp, connection: &ConnectionMetadata) {
        let Some(near_end) = connection.local_addr() else {
            return;
        };
        match self.clock.observe(time, near_end) {
            Observation::Agrees => {}
            Observation::Uncertain => {
                connection.poison();
                tracing::warn!(aws = %time, ours = %self.clock.now(), "AWS's answers do not agree on the time; more are asked for");
            }
            Observation::Dismissed => {
                tracing::warn!(
                    "the broker's clock is certain again: several answers agree with it"
                );
            }
            Observation::Set(wrong_by) => {
                tracing::warn!(wrong_by = %format!("{wrong_by:#}"), "the broker's clock was set to AWS's: several answers agree");
            }
        }
    }
}

/// The broker's clock, by which the SDK signs.
#[derive(Debug)]
pub(super) struct BrokerClock(pub(super) Arc<SteadyClock>);

impl TimeSource for BrokerClock {
    fn now(&self) -> std::time::SystemTime {
        let since =
            std::time::Duration::try_from(self.0.now().duration_since(Timestamp::UNIX_EPOCH));
        std::time::UNIX_EPOCH + since.unwrap_or_default()
    }
}
