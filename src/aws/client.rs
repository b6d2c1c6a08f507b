//! The SDK clients: region, endpoint, key, time-outs, retries. One builder for all.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_config::{
    BehaviorVersion, Region, SdkConfig, default_provider::region, identity::IdentityCache,
    meta::region::ProvideRegion, retry::RetryConfig, timeout::TimeoutConfig,
};
use aws_sdk_sts::config::{
    Credentials as SdkCredentials, ProvideCredentials, SharedAsyncSleep, SharedCredentialsProvider,
};
use jiff::Timestamp;
use secrecy::ExposeSecret;

use super::{
    channel::{ApiChannel, BrokerClock, SdkCall, TimingInterceptor},
    error::{MISSING, Operation, UNKNOWN_CALL},
    probe::{self, Wire},
    rate_budget::{Purpose, ReplicaCount},
};
use crate::{
    broker::ports::AwsFailure,
    domain::{
        clock::{Clock, SteadyClock},
        credential::{AccessKey, Credentials},
        probe::Probe,
    },
};

/// Settings for the way to AWS.
#[derive(Clone, Debug)]
pub struct AwsSettings {
    /// Region of the STS endpoint; `None` for the SDK's own chain.
    pub region: Option<String>,
    /// Endpoint in place of AWS's for STS, IAM and the services of probes, e.g. an emulator.
    pub endpoint_url: Option<String>,
    /// Calls per second that IAM accepts from the account.
    pub iam_calls_per_second: u32,
    /// Calls per second that STS accepts from the account in one region.
    pub sts_calls_per_second: u32,
    /// Times that the broker waits for AWS.
    pub patience: Timeouts,
    /// Timer of the SDK's time-outs and pauses; `None`: the runtime's timer. A test that lets a
    /// call hang ends the wait at once with it.
    pub timer: Option<SharedAsyncSleep>,
}

/// Times that the broker waits for AWS.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Pause before a repeatable call is repeated, once; the SDK adds jitter.
    pub repetition: Duration,
    /// Longest time until AWS accepts a new key.
    pub acceptance: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            repetition: Duration::from_millis(200),
            acceptance: Duration::from_secs(20),
        }
    }
}

/// Longest time that AWS may take for one answer.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Most attempts of one call by the SDK.
const REPETITIONS: u32 = 2;
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

impl Default for AwsSettings {
    fn default() -> Self {
        Self {
            region: None,
            endpoint_url: None,
            iam_calls_per_second: 40,
            sts_calls_per_second: 400,
            patience: Timeouts::default(),
            timer: None,
        }
    }
}

/// Returns the region that the standard AWS chain names, if any.
pub async fn chain_region() -> Option<String> {
    let chain = region::default_provider();
    chain.region().await.map(|region| region.to_string())
}

/// Clients of STS and IAM, with one admin key. Clients of another key share the budgets.
#[derive(Debug)]
pub struct Clients {
    config: SdkConfig,
    iam: Api<aws_sdk_iam::Client>,
    sts: Mutex<HashMap<String, Api<aws_sdk_sts::Client>>>,
    sts_lines: Arc<StsChannels>,
    probes: Mutex<HashMap<(Probe, String), Wire>>,
    /// Longest time that AWS may take to accept a new key.
    pub(super) acceptance: Duration,
}

/// IAM, or STS in one region.
#[derive(Clone, Debug)]
struct Api<A> {
    client: A,
    line: Arc<ApiChannel>,
}

impl<A: Clone> Api<A> {
    fn calls(&self, purpose: Purpose) -> ApiCaller<A> {
        ApiCaller {
            client: self.client.clone(),
            line: Arc::clone(&self.line),
            purpose,
        }
    }
}

#[derive(Debug)]
struct StsChannels {
    per_second: u32,
    sharers: ReplicaCount,
    clock: Arc<SteadyClock>,
    lines: Mutex<HashMap<String, Arc<ApiChannel>>>,
}

impl Clients {
    /// Builds the clients, with the admin key of the standard AWS chain. Reads environment and
    /// files, and makes no call. `clock` follows AWS's time.
    pub async fn new(settings: &AwsSettings, clock: &Arc<SteadyClock>) -> Self {
        let answers = TimeoutConfig::builder()
            .connect_timeout(CONNECT_LIMIT)
            .operation_attempt_timeout(ANSWER_LIMIT)
            .operation_timeout(ANSWER_LIMIT * REPETITIONS + CONNECT_LIMIT)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .timeout_config(answers)
            .time_source(BrokerClock(Arc::clone(clock)))
            // The SDK's correction would take the signing time from any one answer.
            .disable_clock_skew_correction(true)
            .retry_config(
                RetryConfig::standard()
                    .with_max_attempts(REPETITIONS)
                    .with_initial_backoff(settings.patience.repetition),
            );
        if let Some(region) = &settings.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(url) = &settings.endpoint_url {
            loader = loader.endpoint_url(url);
        }
        if let Some(timer) = &settings.timer {
            loader = loader.sleep_impl(timer.clone());
        }
        let config = loader.load().await;
        let sharers = ReplicaCount::default();
        let iam_line = ApiChannel::new(
            "iam".to_owned(),
            settings.iam_calls_per_second,
            sharers.clone(),
            Arc::clone(clock),
        );
        let sts_lines = Arc::new(StsChannels {
            per_second: settings.sts_calls_per_second,
            sharers,
            clock: Arc::clone(clock),
            lines: Mutex::default(),
        });
        Self::of(config, iam_line, sts_lines, settings.patience.acceptance)
    }

    fn of(
        config: SdkConfig,
        iam_line: Arc<ApiChannel>,
        sts_lines: Arc<StsChannels>,
        acceptance: Duration,
    ) -> Self {
        let iam = aws_sdk_iam::config::Builder::from(&config)
            .interceptor(TimingInterceptor(Arc::clone(&iam_line)))
            .build();
        Self {
            config,
            iam: Api {
                client: aws_sdk_iam::Client::from_conf(iam),
                line: iam_line,
            },
            sts: Mutex::default(),
            sts_lines,
            probes: Mutex::default(),
            acceptance,
        }
    }

    /// Returns the same clients with another key.
    #[must_use]
    pub fn with_key(&self, key: &AccessKey) -> Self {
        Self::of(
            self.config_with(key),
            Arc::clone(&self.iam.line),
            Arc::clone(&self.sts_lines),
            self.acceptance,
        )
    }

    fn config_with(&self, key: &AccessKey) -> SdkConfig {
        let (id, secret) = (&key.id, key.secret.expose_secret());
        let credentials = SdkCredentials::new(id, secret, None, None, "credbroker");
        let provider = SharedCredentialsProvider::new(credentials);
        // All clients of one configuration share the cache, which evicts nothing.
        let config = self
            .config
            .to_builder()
            .identity_cache(IdentityCache::no_cache());
        config.credentials_provider(provider).build()
    }

    /// Returns the id of the key in use, if the chain has one.
    pub(super) async fn key_id(&self) -> Option<String> {
        let provider = self.config.credentials_provider()?;
        let credentials = provider.provide_credentials().await.ok()?;
        Some(credentials.access_key_id().to_owned())
    }

    /// Returns the region of the settings or of the chain, if any.
    #[must_use]
    pub fn region(&self) -> Option<&str> {
        self.config.region().map(Region::as_ref)
    }

    /// Returns the broker's time.
    pub(super) fn now(&self) -> Timestamp {
        self.sts_lines.clock.now()
    }

    /// Returns STS of `region`, or of the broker's region.
    pub(super) fn sts(&self, region: Option<&str>, purpose: Purpose) -> StsCalls {
        let region = region.or(self.region()).unwrap_or_default();
        let mut known = self.sts.lock().unwrap_or_else(PoisonError::into_inner);
        let sts = known
            .entry(region.to_owned())
            .or_insert_with(|| self.sts_lines.connect(&self.config, region));
        sts.calls(purpose)
    }

    /// Returns the client of a probe's service, in `region` or in the broker's region.
    pub(super) fn probe(&self, probe: Probe, region: Option<&str>) -> Wire {
        let region = region.or(self.region()).unwrap_or_default();
        let mut known = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
        let wire = known
            .entry((probe, region.to_owned()))
            .or_insert_with(|| probe::connect(&self.config, &self.iam.line, probe, region));
        wire.clone()
    }

    /// Returns the clock by which requests are signed.
    pub(super) fn time(&self) -> BrokerClock {
        BrokerClock(Arc::clone(&self.sts_lines.clock))
    }

    /// Returns STS of the broker's region, called with a key that was just created.
    pub(super) fn sts_of(&self, key: &AccessKey) -> StsCalls {
        let region = self.region().unwrap_or_default();
        let sts = self.sts_lines.connect(&self.config_with(key), region);
        sts.calls(Purpose::Complete)
    }

    /// Returns IAM, called with the credentials of a session, within the same budget.
    pub(super) fn iam_with(&self, credentials: &Credentials, purpose: Purpose) -> IamCalls {
        let token = credentials.session_token.as_ref();
        let credentials = SdkCredentials::new(
            &credentials.access_key_id,
            credentials.secret_access_key.expose_secret(),
            token.map(|token| token.expose_secret().to_owned()),
            None,
            "credbroker",
        );
        let iam = aws_sdk_iam::config::Builder::from(&self.config)
            .identity_cache(IdentityCache::no_cache())
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .interceptor(TimingInterceptor(Arc::clone(&self.iam.line)))
            .build();
        let api = Api {
            client: aws_sdk_iam::Client::from_conf(iam),
            line: Arc::clone(&self.iam.line),
        };
        api.calls(purpose)
    }

    /// Sets the number of replicas that share the budgets.
    pub(super) fn share_with(&self, brokers: u64) {
        let brokers = u32::try_from(brokers).unwrap_or(u32::MAX);
        self.sts_lines.sharers.set(brokers);
    }

    /// Returns how many removals may go on in parallel: each takes some twenty calls.
    pub(super) fn removals_at_once(&self) -> usize {
        self.iam.line.at_once().min(REMOVALS_MAX)
    }

    /// Returns IAM, which is global within a partition.
    pub(super) fn iam(&self, purpose: Purpose) -> IamCalls {
        self.iam.calls(purpose)
    }
}

impl StsChannels {
    fn connect(&self, config: &SdkConfig, region: &str) -> Api<aws_sdk_sts::Client> {
        let line = self.of(region);
        let config = aws_sdk_sts::config::Builder::from(config)
            .region(Region::new(region.to_owned()))
            .interceptor(TimingInterceptor(Arc::clone(&line)));
        Api {
            client: aws_sdk_sts::Client::from_conf(config.build()),
            line,
        }
    }

    fn of(&self, region: &str) -> Arc<ApiChannel> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let line = lines.entry(region.to_owned()).or_insert_with(|| {
            let name = format!("sts:{region}");
            ApiChannel::new(
                name,
                self.per_second,
                self.sharers.clone(),
                Arc::clone(&self.clock),
            )
        });
        Arc::clone(line)
    }
}

/// Calls to one API of AWS, for one purpose.
pub(super) struct ApiCaller<A> {
    pub(super) client: A,
    line: Arc<ApiChannel>,
    purpose: Purpose,
}

/// Most removals in parallel, however many calls AWS accepts.
const REMOVALS_MAX: usize = 32;

pub(super) type IamCalls = ApiCaller<aws_sdk_iam::Client>;
pub(super) type StsCalls = ApiCaller<aws_sdk_sts::Client>;

impl<A: Sync> ApiCaller<A> {
    pub(super) fn answers(&self) -> bool {
        self.line.is_answering()
    }

    pub(super) fn ready(&self) -> Result<(), AwsFailure> {
        self.line.ready()
    }

    pub(super) fn ask<C: SdkCall>(
        &self,
        operation: &Operation<'_>,
        call: C,
    ) -> impl Future<Output = Result<C::Answer, AwsFailure>> + Send {
        self.line.ask(self.purpose, operation, Box::pin(call))
    }

    /// Makes a call; `None`: AWS knows no such object, which is what a removal wants.
    pub(super) fn call_if_exists<C: SdkCall>(
        &self,
        operation: &Operation<'_>,
        call: C,
    ) -> impl Future<Output = Result<Option<C::Answer>, AwsFailure>> + Send {
        let asked = self.ask(operation, call);
        async { none_if(MISSING, asked.await.map(Some)) }
    }

    /// Reads a page of a list. `None` also if the endpoint does not know the list, as emulators of
    /// a part of IAM do.
    pub(super) fn list<C: SdkCall>(
        &self,
        operation: &Operation<'_>,
        call: C,
    ) -> impl Future<Output = Result<Option<C::Answer>, AwsFailure>> + Send {
        let looked = self.call_if_exists(operation, call);
        async { none_if(UNKNOWN_CALL, looked.await) }
    }
}

fn none_if<T>(
    reason: &str,
    answer: Result<Option<T>, AwsFailure>,
) -> Result<Option<T>, AwsFailure> {
    match answer {
        Err(failure) if failure.reason == reason => Ok(None),
        answer => answer,
    }
}

/// Returns the configuration of calls whose repetition would create a second object.
pub(super) fn never_twice() -> aws_sdk_iam::config::Builder {
    aws_sdk_iam::config::Builder::new().retry_config(RetryConfig::disabled())
}
