//! The stack: where it is, what it is made of, and the way to it.

use std::{collections::BTreeMap, env, net::IpAddr, time::Duration};

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_credential_types::Credentials;
use aws_sdk_cloudformation::error::ProvideErrorMetadata;
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, rustls_provider::CryptoMode},
};
use clap::Args;
use hyper::Uri;
use ledger::{Ledger, files::Files};
use store::Table;

use crate::{
    error::{CliError, aws},
    http::Http,
};

/// Which stack, and how to get there.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Everywhere")]
pub struct Target {
    /// Name of the CloudFormation stack.
    #[arg(
        long,
        global = true,
        env = "FIELDSTATION_STACK",
        hide_env_values = true,
        default_value = "fieldstation"
    )]
    pub stack: String,
    /// AWS region; without it the environment's or the profile's.
    #[arg(long, global = true)]
    pub region: Option<String>,
    /// AWS profile of ~/.aws/config.
    #[arg(long, global = true)]
    pub profile: Option<String>,
    /// Another endpoint of AWS, such as the local stack's http://127.0.0.1:4566.
    #[arg(long, global = true, value_name = "URL")]
    pub endpoint_url: Option<String>,
}

/// A deployed stack.
#[derive(Debug)]
pub struct Stack {
    name: String,
    region: String,
    outputs: BTreeMap<String, String>,
    config: SdkConfig,
    cloudformation: aws_sdk_cloudformation::Client,
    /// DynamoDB.
    pub dynamodb: aws_sdk_dynamodb::Client,
    /// Step Functions.
    pub machines: aws_sdk_sfn::Client,
    /// For the HTTP API.
    pub(crate) http: Http,
}

/// The endpoint's address, where it is one on this machine.
fn loopback(endpoint: &str) -> Option<Uri> {
    let uri: Uri = endpoint.parse().ok()?;
    let host = uri.host()?.trim_matches(['[', ']']);
    let local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    local.then_some(uri)
}

fn is_set(variable: &str) -> bool {
    env::var_os(variable).is_some_and(|value| !value.is_empty())
}

impl Target {
    /// The SDK's usual chain: flags, environment, profile, then what the machine has. An emulator on
    /// this machine needs neither credentials nor a region.
    async fn config(&self) -> Result<SdkConfig, CliError> {
        let http = Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc)).build_https();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .retry_config(RetryConfig::standard().with_max_attempts(4))
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(Duration::from_secs(5))
                    .operation_attempt_timeout(Duration::from_secs(30))
                    .build(),
            );
        if let Some(region) = &self.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(profile) = &self.profile {
            loader = loader.profile_name(profile);
        }
        let endpoint = self.endpoint_url.clone().or_else(|| env::var("AWS_ENDPOINT_URL").ok());
        if let Some(endpoint) = &self.endpoint_url {
            if endpoint.parse::<Uri>().ok().is_none_or(|uri| uri.scheme().is_none()) {
                return Err(CliError::usage(format!("--endpoint-url {endpoint:?} is no address"))
                    .advise("give one such as http://127.0.0.1:4566"));
            }
            loader = loader.endpoint_url(endpoint);
        }
        if endpoint.as_deref().and_then(loopback).is_some() {
            let chosen = self.profile.is_some() || is_set("AWS_PROFILE");
            if !chosen && !is_set("AWS_ACCESS_KEY_ID") {
                loader = loader
                    .credentials_provider(Credentials::new("test", "test", None, None, "emulator"));
            }
            if !chosen
                && self.region.is_none()
                && !is_set("AWS_REGION")
                && !is_set("AWS_DEFAULT_REGION")
            {
                loader = loader.region(Region::from_static("us-east-1"));
            }
        }
        Ok(loader.load().await)
    }
}

impl Stack {
    /// Finds the stack and what it tells of itself.
    pub async fn connect(target: &Target) -> Result<Self, CliError> {
        let name = &target.stack;
        let config = target.config().await?;
        let Some(region) = config.region().map(ToString::to_string) else {
            return Err(CliError::usage("there is no AWS region")
                .advise("give --region, set AWS_REGION, or choose a profile that has one"));
        };
        let cloudformation = aws_sdk_cloudformation::Client::new(&config);
        let described = cloudformation.describe_stacks().stack_name(name).send().await;
        let described = described.map_err(|error| {
            if does_not_exist(&error) {
                no_stack(name, &region)
            } else {
                aws("the stack can't be looked up")(error)
            }
        })?;
        let stack = described.stacks().first().ok_or_else(|| no_stack(name, &region))?;
        let outputs = stack.outputs().iter().filter_map(|output| {
            Some((output.output_key()?.to_owned(), output.output_value()?.to_owned()))
        });
        Ok(Self {
            name: name.clone(),
            region,
            outputs: outputs.collect(),
            dynamodb: aws_sdk_dynamodb::Client::new(&config),
            machines: aws_sdk_sfn::Client::new(&config),
            http: Http::new()?,
            cloudformation,
            config,
        })
    }

    pub(crate) fn cloudformation(&self) -> &aws_sdk_cloudformation::Client {
        &self.cloudformation
    }

    /// The status of the last deployment, for example `UPDATE_COMPLETE`.
    pub async fn deployment(&self) -> Result<String, CliError> {
        let described = self.cloudformation.describe_stacks().stack_name(&self.name).send().await;
        let described = described.map_err(aws("the stack can't be looked up"))?;
        let stack = described.stacks().first().ok_or_else(|| no_stack(&self.name, &self.region))?;
        let status = stack.stack_status().map(|status| status.as_str().to_owned());
        status.ok_or_else(|| CliError::not_found("CloudFormation gave no status of the stack"))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// For the clients of further services.
    #[must_use]
    pub fn config(&self) -> &SdkConfig {
        &self.config
    }

    /// Where the emulator is, if the stack is on this machine.
    pub(crate) fn emulator(&self) -> Option<Uri> {
        self.config.endpoint_url().and_then(loopback)
    }

    /// The outputs of the template, by name, with the API's URL as it can be called.
    pub fn outputs(&self) -> Result<BTreeMap<String, String>, CliError> {
        let mut outputs = self.outputs.clone();
        outputs.insert("ApiUrl".to_owned(), self.api_url()?);
        Ok(outputs)
    }

    /// An output of the template.
    pub fn output(&self, name: &str) -> Result<&str, CliError> {
        self.outputs.get(name).map(String::as_str).ok_or_else(|| {
            CliError::not_found(format!("the stack {} has no output {name}", self.name)).advise(
                "is it a Fieldstation stack, and was this version of template.yaml deployed?",
            )
        })
    }

    /// The failures.
    pub fn ledger(&self) -> Result<Ledger, CliError> {
        let failures = Table::new(self.dynamodb.clone(), self.output("FailuresTable")?);
        Ok(Ledger { failures })
    }

    /// The files of payloads that are too long for a row.
    #[must_use]
    pub fn files(&self) -> Files {
        // On a laptop a bucket is a path below the endpoint: its name there is no host's.
        let config = aws_sdk_s3::config::Builder::from(&self.config)
            .force_path_style(self.emulator().is_some())
            .build();
        Files { client: aws_sdk_s3::Client::from_conf(config) }
    }

    /// The physical id of one of the template's resources.
    pub async fn resource(&self, logical_id: &str) -> Result<String, CliError> {
        let missing =
            || CliError::not_found(format!("the stack {} has no {logical_id}", self.name));
        let described = self
            .cloudformation
            .describe_stack_resource()
            .stack_name(&self.name)
            .logical_resource_id(logical_id)
            .send()
            .await
            .map_err(|error| {
                if does_not_exist(&error) {
                    missing()
                } else {
                    aws(&format!("{logical_id} can't be looked up"))(error)
                }
            })?;
        let detail = described.stack_resource_detail();
        let id = detail.and_then(|detail| detail.physical_resource_id());
        id.map(str::to_owned).ok_or_else(missing)
    }
}

/// CloudFormation has no code of its own for it.
fn does_not_exist(error: &impl ProvideErrorMetadata) -> bool {
    error.message().is_some_and(|text| text.contains("does not exist"))
}

fn no_stack(name: &str, region: &str) -> CliError {
    CliError::not_found(format!("there is no stack {name} in {region}"))
        .advise("name it with --stack or FIELDSTATION_STACK, and its region with --region")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_credentials_go_to_this_machine_only() {
        for here in ["http://127.0.0.1:4566", "http://localhost:4566/", "http://[::1]:4566"] {
            assert!(loopback(here).is_some(), "{here}");
        }
        for away in ["https://sts.amazonaws.com", "http://127.0.0.1.x.org", "nonsense", ""] {
            assert!(loopback(away).is_none(), "{away}");
        }
    }
}
