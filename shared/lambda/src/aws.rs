//! Configuration and AWS clients, created once at start.

use std::{cell::OnceCell, str::FromStr, time::Duration};

use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_sdk_dynamodb::config::{
    BehaviorVersion, Region, SharedAsyncSleep, retry::RetryConfig, timeout::TimeoutConfig,
};
use aws_smithy_async::{rt::sleep::TokioSleep, time::SystemTimeSource};
use aws_types::SdkConfig;
use contracts::SourceOperators;
use futures_util::future::join_all;
use limits::Limits;
use rustls::pki_types::CertificateDer;
use store::{Outbox, Table};

use crate::{https::Https, telemetry};

/// Timeout for opening a connection in advance. If it expires, the first call opens the connection.
const WARM_UP_TIMEOUT: Duration = Duration::from_secs(1);

/// An environment variable is missing or has an invalid value.
#[derive(Debug, thiserror::Error)]
#[error("environment variable {name} {problem}")]
pub struct ConfigError {
    /// The variable's name.
    pub name: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

/// Returns the value of a required environment variable. Fails if it is missing or empty.
pub fn env(name: &'static str) -> Result<String, ConfigError> {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => Ok(value),
        Ok(_) => Err(ConfigError { name, problem: "is empty".to_owned() }),
        Err(error) => Err(ConfigError { name, problem: format!("can't be read: {error}") }),
    }
}

/// Returns the number in a required environment variable.
pub fn env_number<N: FromStr>(name: &'static str) -> Result<N, ConfigError> {
    let text = env(name)?;
    text.parse().map_err(|_| ConfigError { name, problem: format!("is {text:?}; give a number") })
}

/// Returns the operators of other systems' sources, which `SOURCE_OPERATORS` lists. It is empty if none is configured.
pub fn source_operators() -> Result<SourceOperators, ConfigError> {
    let name = "SOURCE_OPERATORS";
    let text = std::env::var(name).map_err(|error| error.to_string());
    text.and_then(|text| text.parse()).map_err(|problem| ConfigError { name, problem })
}

/// The root certificates of AWS's endpoints in the partition `aws`, the only one that Fieldstation supports.
///
/// They are compiled in, because reading and parsing the system's root store would slow down every start. They are in
/// DER, because parsing PEM takes 40,000 more instructions for each certificate. Source:
/// <https://www.amazontrust.com/repository>.
const AMAZON_ROOTS: [&[u8]; 5] = [
    include_bytes!("amazon-roots/root-ca-1.der"),
    include_bytes!("amazon-roots/root-ca-2.der"),
    include_bytes!("amazon-roots/root-ca-3.der"),
    include_bytes!("amazon-roots/root-ca-4.der"),
    include_bytes!("amazon-roots/starfield-services-root-g2.der"),
];

/// Creates the HTTPS client. It trusts Amazon's roots, or those in the PEM file that `AWS_CA_BUNDLE` names.
fn https() -> Result<Https, ConfigError> {
    let name = "AWS_CA_BUNDLE";
    let problem = |problem: String| ConfigError { name, problem };
    match std::env::var(name) {
        Err(_) => Https::trusting(AMAZON_ROOTS.map(CertificateDer::from_slice)),
        Ok(file) => {
            let pem = std::fs::read(&file)
                .map_err(|error| problem(format!("names {file}, which can't be read: {error}")))?;
            Https::trusting_pem(&pem)
        }
    }
    .map_err(|error| problem(format!("names a file without root certificates: {error}")))
}

/// Returns the URL of a service, with a trailing slash. `AWS_ENDPOINT_URL` replaces the URLs of all services.
fn endpoint(service: &str, region: &str, endpoint_url: Option<&str>) -> String {
    endpoint_url.map_or_else(
        || format!("https://{service}.{region}.amazonaws.com/"),
        |url| format!("{}/", url.trim_end_matches('/')),
    )
}

/// Opens a connection in advance. A failure is only logged: the first call opens a connection itself and retries.
async fn open_connection(https: &Https, endpoint: &str) {
    // A plain HTTP endpoint is the emulator's; without TLS there is no handshake to save.
    if !endpoint.starts_with("https:") {
        return;
    }
    match tokio::time::timeout(WARM_UP_TIMEOUT, https.open(endpoint)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(endpoint, %error, "no connection was opened in advance"),
        Err(_) => tracing::warn!(endpoint, "no connection was opened in advance: timeout"),
    }
}

/// The function's AWS configuration. All its clients share one connection pool.
#[derive(Debug)]
pub struct Aws {
    config: SdkConfig,
    // Created by the first table. A function without tables does not even link the client.
    dynamodb: OnceCell<aws_sdk_dynamodb::Client>,
}

impl Aws {
    /// Starts telemetry and reads region, credentials and (on a laptop) the endpoint from the environment.
    ///
    /// Lambda always sets the role's credentials in the environment, so the SDK's provider chain, with its file and
    /// metadata look-ups, is not used.
    ///
    /// Opens a connection to each of `services`, which are names as in endpoints, such as `dynamodb`. The TLS handshake
    /// is faster here than later: during init a function has a whole core, afterwards only a share that depends on its
    /// memory size.
    pub async fn start(services: &[&str]) -> Result<Self, ConfigError> {
        telemetry::start();
        let credentials = Credentials::new(
            env("AWS_ACCESS_KEY_ID")?,
            env("AWS_SECRET_ACCESS_KEY")?,
            std::env::var("AWS_SESSION_TOKEN").ok().filter(|token| !token.is_empty()),
            None,
            "environment",
        );
        let https = https()?;
        let region = env("AWS_REGION")?;
        let endpoint_url = std::env::var("AWS_ENDPOINT_URL").ok();
        join_all(services.iter().map(|service| {
            let https = &https;
            let endpoint = endpoint(service, &region, endpoint_url.as_deref());
            async move { open_connection(https, &endpoint).await }
        }))
        .await;
        let mut config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .http_client(https)
            .sleep_impl(SharedAsyncSleep::new(TokioSleep::new()))
            .time_source(SystemTimeSource::new())
            .retry_config(RetryConfig::standard().with_max_attempts(3))
            // An attempt that hangs is aborted early, so that there is time for another attempt.
            .timeout_config(
                TimeoutConfig::builder().operation_attempt_timeout(Duration::from_secs(3)).build(),
            );
        if let Some(endpoint) = endpoint_url {
            config = config.endpoint_url(endpoint);
        }
        Ok(Self { config: config.build(), dynamodb: OnceCell::new() })
    }

    /// Returns the configuration for clients of other services.
    #[must_use]
    pub fn config(&self) -> &SdkConfig {
        &self.config
    }

    /// Returns the table that the environment variable `variable` names.
    pub fn table(&self, variable: &'static str) -> Result<Table, ConfigError> {
        let dynamodb =
            self.dynamodb.get_or_init(|| aws_sdk_dynamodb::Client::new(&self.config)).clone();
        Ok(Table::new(dynamodb, env(variable)?))
    }

    /// Returns the outbox in the table that `EVENTS_TABLE` names.
    pub fn outbox(&self) -> Result<Outbox, ConfigError> {
        self.table("EVENTS_TABLE").map(Outbox::new)
    }

    /// Returns the rate limits in the table that `LIMITS_TABLE` names.
    pub fn limits(&self) -> Result<Limits, ConfigError> {
        self.table("LIMITS_TABLE").map(Limits::new)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::atomic::Ordering::SeqCst};

    use aws_credential_types::provider::ProvideCredentials;
    use tempfile::NamedTempFile;

    use super::*;
    use crate::https::tests::server;

    #[test]
    fn a_missing_or_empty_variable_is_an_error() {
        let name = "SOME_TABLE";
        let read = |value: Option<&str>| {
            temp_env::with_var(name, value, || env(name)).map_err(|error| error.to_string())
        };
        assert_eq!(read(Some("sites")), Ok("sites".to_owned()));
        for (value, problem) in [(Some(""), "is empty"), (None, "can't be read")] {
            let error = read(value).expect_err(problem);
            assert!(error.starts_with(&format!("environment variable {name} {problem}")));
        }
    }

    fn ca_file(text: &str) -> NamedTempFile {
        let mut file = NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("the file is written");
        file
    }

    #[tokio::test]
    async fn starting_opens_the_connections() {
        let (url, pem, connections) = server().await;
        let ca_file = ca_file(&pem);
        let variables = |token| {
            [
                ("AWS_ACCESS_KEY_ID", Some("id")),
                ("AWS_SECRET_ACCESS_KEY", Some("secret")),
                ("AWS_SESSION_TOKEN", token),
                ("AWS_REGION", Some("eu-central-1")),
                ("AWS_ENDPOINT_URL", Some(url.as_str())),
                ("AWS_CA_BUNDLE", ca_file.path().to_str()),
            ]
        };
        for (starts, token) in [(1, Some("token")), (2, Some("")), (3, None)] {
            let start = Aws::start(&["dynamodb"]);
            let aws = temp_env::async_with_vars(variables(token), start).await.expect("a start");
            assert_eq!(connections.load(SeqCst), starts);
            let provider = aws.config().credentials_provider().expect("credentials");
            let credentials = provider.provide_credentials().await.expect("credentials");
            let used = (credentials.access_key_id(), credentials.session_token());
            assert_eq!(used, ("id", token.filter(|token| !token.is_empty())));
        }
    }

    #[test]
    fn an_unusable_ca_bundle_is_an_error() {
        let empty = ca_file("");
        for (file, problem) in [
            ("/no/such/file", "names /no/such/file, which can't be read"),
            (empty.path().to_str().expect("a path"), "names a file without root certificates"),
        ] {
            let error = temp_env::with_var("AWS_CA_BUNDLE", Some(file), https).expect_err(problem);
            assert!(error.problem.starts_with(problem), "{error}");
        }
    }

    #[test]
    fn an_endpoint_is_regional_unless_the_environment_sets_one() {
        assert_eq!(
            endpoint("kinesis", "eu-central-1", None),
            "https://kinesis.eu-central-1.amazonaws.com/"
        );
        let endpoint_url = endpoint("states", "eu-central-1", Some("http://127.0.0.1:4566"));
        assert_eq!(endpoint_url, "http://127.0.0.1:4566/");
    }

    #[test]
    fn amazons_five_roots_are_trusted() {
        Https::trusting(AMAZON_ROOTS.map(CertificateDer::from_slice)).expect("roots");
        for name in ["Amazon Root CA 1", "Amazon Root CA 2", "Amazon Root CA 3", "Amazon Root CA 4"]
            .into_iter()
            .chain(["Starfield Services Root Certificate Authority - G2"])
        {
            let named = |root: &&&[u8]| root.windows(name.len()).any(|it| it == name.as_bytes());
            assert_eq!(AMAZON_ROOTS.iter().filter(named).count(), 1, "{name}");
        }
    }

    #[test]
    fn invalid_certificates_are_refused() {
        let pem = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(Https::trusting_pem(pem).is_err());
        assert!(Https::trusting_pem(b"").is_err());
    }
}
