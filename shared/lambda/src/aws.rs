//! Configuration and clients, read once at start.

use std::time::Duration;

use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_sdk_dynamodb::config::{
    BehaviorVersion, Region, SharedAsyncSleep, retry::RetryConfig, timeout::TimeoutConfig,
};
use aws_smithy_async::{rt::sleep::TokioSleep, time::SystemTimeSource};
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, rustls_provider::CryptoMode},
};
use aws_types::SdkConfig;
use store::{Outbox, Table};

use crate::telemetry;

/// An environment variable that the template sets is missing or wrong.
#[derive(Debug, thiserror::Error)]
#[error("environment variable {name} {problem}; template.yaml sets it for the deployed function")]
pub struct ConfigError {
    /// Its name.
    pub name: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

/// A required environment variable.
pub fn env(name: &'static str) -> Result<String, ConfigError> {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => Ok(value),
        Ok(_) => Err(ConfigError { name, problem: "is empty".to_owned() }),
        Err(error) => Err(ConfigError { name, problem: format!("can't be read: {error}") }),
    }
}

/// The function's way to AWS: one configuration and one connection pool for all its clients.
#[derive(Debug)]
pub struct Aws {
    config: SdkConfig,
    dynamodb: aws_sdk_dynamodb::Client,
}

impl Aws {
    /// Starts telemetry and reads region, credentials and (on a laptop) endpoint from the
    /// environment. Lambda always gives a function its role's credentials there, so the SDK's
    /// provider chain, with its file and metadata look-ups, is left out.
    pub fn start() -> Result<Self, ConfigError> {
        telemetry::start();
        let credentials = Credentials::new(
            env("AWS_ACCESS_KEY_ID")?,
            env("AWS_SECRET_ACCESS_KEY")?,
            std::env::var("AWS_SESSION_TOKEN").ok().filter(|token| !token.is_empty()),
            None,
            "environment",
        );
        let http = Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc)).build_https();
        let mut config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(env("AWS_REGION")?))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .http_client(http)
            .sleep_impl(SharedAsyncSleep::new(TokioSleep::new()))
            .time_source(SystemTimeSource::new())
            .retry_config(RetryConfig::standard().with_max_attempts(3))
            // An attempt that hangs is cut while there is time left for another one.
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(Duration::from_secs(1))
                    .operation_attempt_timeout(Duration::from_secs(3))
                    .build(),
            );
        if let Ok(endpoint) = std::env::var("AWS_ENDPOINT_URL") {
            config = config.endpoint_url(endpoint);
        }
        let config = config.build();
        let dynamodb = aws_sdk_dynamodb::Client::new(&config);
        Ok(Self { config, dynamodb })
    }

    /// For the clients of other services.
    #[must_use]
    pub fn config(&self) -> &SdkConfig {
        &self.config
    }

    /// The table whose name the environment variable holds.
    pub fn table(&self, variable: &'static str) -> Result<Table, ConfigError> {
        Ok(Table::new(self.dynamodb.clone(), env(variable)?))
    }

    /// The outbox, in the table named by `EVENTS_TABLE`.
    pub fn outbox(&self) -> Result<Outbox, ConfigError> {
        self.table("EVENTS_TABLE").map(Outbox::new)
    }
}
