//! The SDK clients: region, endpoint, time-outs, retries. One builder for all.

use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};

/// How AWS is reached.
#[derive(Clone, Debug)]
pub struct AwsSettings {
    /// Region of the STS endpoint; `None` for the SDK's own chain.
    pub region: Option<String>,
    /// Another endpoint for STS and IAM, e.g. an emulator or a VPC endpoint.
    pub endpoint_url: Option<String>,
}

/// STS and IAM, with the admin key of the standard AWS chain.
#[derive(Clone, Debug)]
pub struct Clients {
    config: SdkConfig,
    sts: aws_sdk_sts::Client,
    iam: aws_sdk_iam::Client,
}

impl Clients {
    /// Builds the clients. Reads environment and files, calls nothing.
    pub async fn new(settings: &AwsSettings) -> Self {
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(Duration::from_secs(3))
                    .operation_attempt_timeout(Duration::from_secs(5))
                    .operation_timeout(Duration::from_secs(12))
                    .build(),
            )
            .retry_config(RetryConfig::standard().with_max_attempts(3));
        if let Some(region) = &settings.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(url) = &settings.endpoint_url {
            loader = loader.endpoint_url(url);
        }
        let config = loader.load().await;
        Self {
            sts: aws_sdk_sts::Client::new(&config),
            iam: aws_sdk_iam::Client::new(&config),
            config,
        }
    }

    /// The region that the chain found.
    #[must_use]
    pub fn region(&self) -> Option<&str> {
        self.config.region().map(Region::as_ref)
    }

    /// STS of the broker's region, or of another.
    pub(super) fn sts(&self, region: Option<&str>) -> aws_sdk_sts::Client {
        match region {
            Some(region) if Some(region) != self.region() => {
                let config = aws_sdk_sts::config::Builder::from(&self.config)
                    .region(Region::new(region.to_owned()));
                aws_sdk_sts::Client::from_conf(config.build())
            }
            _ => self.sts.clone(),
        }
    }

    /// IAM, which is global within a partition.
    pub(super) const fn iam(&self) -> &aws_sdk_iam::Client {
        &self.iam
    }
}

/// For calls whose repetition would make a second thing.
pub(super) fn never_twice() -> aws_sdk_iam::config::Builder {
    aws_sdk_iam::config::Builder::new().retry_config(RetryConfig::disabled())
}
