//! Connects to an environment, and knows the names of its resources.

use std::{collections::BTreeMap, env, net::IpAddr, time::Duration};

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_credential_types::Credentials;
use aws_sdk_cloudformation::{Client, error::ProvideErrorMetadata, types};
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, rustls_provider::CryptoMode},
};
use clap::Args;
use contracts::names;
use hyper::Uri;
use ledger::{Ledger, files::Files};
use store::Table;
use tokio::sync::Mutex;

use crate::{
    api_key::CurrentKey,
    error::{CliError, aws, unreadable},
    http::Http,
};

/// The options that select an environment.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Global options")]
pub struct Target {
    /// Name of the environment: the name of the root stack. If each service has its own stack, these are named
    /// STACK-SERVICE.
    #[arg(
        long,
        global = true,
        env = "FIELDSTATION_STACK",
        hide_env_values = true,
        default_value = "fieldstation"
    )]
    pub stack: String,
    /// The AWS region. The default is that of the environment variables or the profile.
    #[arg(long, global = true)]
    pub region: Option<String>,
    /// The AWS profile in ~/.aws/config.
    #[arg(long, global = true)]
    pub profile: Option<String>,
    /// An endpoint other than AWS, such as the local stack's http://127.0.0.1:4566.
    #[arg(long, global = true, value_name = "URL")]
    pub endpoint_url: Option<String>,
}

/// How the stacks of an environment are deployed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Deployment {
    /// A root stack nests one stack per service.
    Root {
        /// The status of the root stack's last deployment, for example `UPDATE_COMPLETE`.
        status: String,
    },
    /// Each service has its own stack, named `<environment>-<service>`.
    PerService,
}

/// A deployed environment.
#[derive(Debug)]
pub struct Stack {
    name: String,
    region: String,
    partition: String,
    account: String,
    deployment: Deployment,
    /// The outputs of the root stack, or of the gateway's stack.
    outputs: BTreeMap<String, String>,
    config: SdkConfig,
    cloudformation: Client,
    /// The client of DynamoDB.
    pub dynamodb: aws_sdk_dynamodb::Client,
    /// The client of Step Functions.
    pub machines: aws_sdk_sfn::Client,
    /// The client for the HTTP API.
    pub(crate) http: Http,
    /// The key for the HTTP API, once a call has needed it.
    pub(crate) api_key: Mutex<Option<CurrentKey>>,
}

/// Returns the endpoint's address if the endpoint is on this machine.
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
    /// Loads the configuration from the options of the command line, and otherwise as the SDK does by default: from
    /// environment variables, the profile and the machine's metadata. For an emulator on this machine, credentials and
    /// a region that are not set get fixed values.
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
                return Err(CliError::usage(format!("--endpoint-url {endpoint:?} is not a URL"))
                    .advise("use a URL such as http://127.0.0.1:4566"));
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
    /// Finds the environment by its root stack, or by the stack of the gateway or of the failures service.
    pub async fn connect(target: &Target) -> Result<Self, CliError> {
        let name = &target.stack;
        let config = target.config().await?;
        let Some(region) = config.region().map(ToString::to_string) else {
            return Err(CliError::usage("there is no AWS region")
                .advise("use --region, set AWS_REGION, or use a profile with a region"));
        };
        let cloudformation = Client::new(&config);
        let (deployment, found) = find_environment(&cloudformation, name, &region).await?;
        let [partition, account] = partition_and_account(&found)?;
        let outputs = found.outputs().iter().filter_map(|output| {
            Some((output.output_key()?.to_owned(), output.output_value()?.to_owned()))
        });
        Ok(Self {
            name: name.clone(),
            region,
            partition,
            account,
            deployment,
            outputs: outputs.collect(),
            dynamodb: aws_sdk_dynamodb::Client::new(&config),
            machines: aws_sdk_sfn::Client::new(&config),
            http: Http::new()?,
            api_key: Mutex::default(),
            cloudformation,
            config,
        })
    }

    pub(crate) fn cloudformation(&self) -> &Client {
        &self.cloudformation
    }

    pub(crate) fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    /// Returns the name of the environment.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the region.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Returns the configuration, for clients of further services.
    #[must_use]
    pub fn config(&self) -> &SdkConfig {
        &self.config
    }

    /// Returns the address of the emulator, if the stack is on this machine.
    pub(crate) fn emulator(&self) -> Option<Uri> {
        self.config.endpoint_url().and_then(loopback)
    }

    /// Returns the outputs of the root stack, or of the gateway's stack, and the fixed names that other systems use.
    /// `ApiUrl` is the URL that can be called from this machine.
    pub fn outputs(&self) -> Result<BTreeMap<String, String>, CliError> {
        let topic = self.named(names::ON_CALL);
        let fixed = [
            ("EventBusName", self.named(names::EVENTS)),
            ("ReadingsStreamName", self.named(names::READINGS)),
            ("SiteOnboardingArn", self.machine_arn(names::SITE_ONBOARDING)),
            ("SiteTeardownArn", self.machine_arn(names::SITE_TEARDOWN)),
            ("OnCallTopicArn", self.arn("sns", &topic)),
            ("StripeSecretName", self.named(names::STRIPE)),
            ("FailuresBucket", names::failures_bucket(&self.name, &self.account, &self.region)),
            ("AlertingTable", self.named(names::ALERTING)),
            ("AuditTable", self.named(names::AUDIT)),
            ("BillingTable", self.named(names::BILLING)),
            ("DevicesTable", self.named(names::DEVICES)),
            ("EventsTable", self.named(names::EVENTS)),
            ("FailuresTable", self.named(names::FAILURES)),
            ("FirstAdministratorSecretName", self.named(names::FIRST_ADMINISTRATOR)),
            ("InventoryTable", self.named(names::INVENTORY)),
            ("KeysTable", self.named(names::KEYS)),
            ("OperatorsTable", self.named(names::OPERATORS)),
            ("ReadingsTable", self.named(names::READINGS)),
            ("RefusalsTable", self.named(names::REFUSALS)),
            ("SitesTable", self.named(names::SITES)),
        ];
        let mut outputs: BTreeMap<_, _> =
            fixed.into_iter().map(|(output, value)| (output.to_owned(), value)).collect();
        outputs.extend(self.outputs.clone());
        outputs.insert("ApiUrl".to_owned(), self.api_url()?);
        Ok(outputs)
    }

    /// Returns an output of the root stack, or of the gateway's stack.
    pub(crate) fn output(&self, name: &str) -> Result<&str, CliError> {
        self.outputs.get(name).map(String::as_str).ok_or_else(|| {
            let stack = match self.deployment {
                Deployment::Root { .. } => self.name.clone(),
                Deployment::PerService => self.named(GATEWAY),
            };
            CliError::not_found(format!("the stack {stack} has no output {name}")).advise(format!(
                "deploy the gateway ({DEPLOYMENT_DOCS}), then run the command again"
            ))
        })
    }

    /// Returns the full name of a table, queue, function or another resource with a fixed name.
    #[must_use]
    pub fn named(&self, name: &str) -> String {
        names::named(&self.name, name)
    }

    /// Returns a name without the environment.
    #[must_use]
    pub fn short<'a>(&self, full_name: &'a str) -> &'a str {
        names::without_environment(&self.name, full_name).unwrap_or(full_name)
    }

    fn arn(&self, service: &str, resource: &str) -> String {
        let Self { partition, region, account, .. } = self;
        format!("arn:{partition}:{service}:{region}:{account}:{resource}")
    }

    /// Returns the ARN of a function's alias `live`, which all its callers use.
    #[must_use]
    pub fn function_arn(&self, function: &str) -> String {
        self.arn("lambda", &format!("function:{}:{}", self.named(function), names::LIVE))
    }

    /// Returns the ARN of a state machine.
    #[must_use]
    pub fn machine_arn(&self, machine: &str) -> String {
        self.arn("states", &format!("stateMachine:{}", self.named(machine)))
    }

    /// Returns the ARN of a state machine's execution.
    #[must_use]
    pub fn execution_arn(&self, machine: &str, execution: &str) -> String {
        self.arn("states", &format!("execution:{}:{execution}", self.named(machine)))
    }

    /// Returns the ledger of failures.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        Ledger { failures: self.table(names::FAILURES) }
    }

    /// Returns a table of the environment.
    #[must_use]
    pub fn table(&self, name: &str) -> Table {
        Table::new(self.dynamodb.clone(), self.named(name))
    }

    /// Returns the client for files with payloads that are too long for a row.
    #[must_use]
    pub fn files(&self) -> Files {
        // On an emulator the bucket is part of the path, since its name can't be resolved as a host.
        let config = aws_sdk_s3::config::Builder::from(&self.config)
            .force_path_style(self.emulator().is_some())
            .build();
        Files { client: aws_sdk_s3::Client::from_conf(config) }
    }
}

/// The service that owns the API.
const GATEWAY: &str = "gateway";
/// The service that is deployed first. Its stack shows that the environment exists, even without a gateway.
const FIRST_DEPLOYED_SERVICE: &str = names::SERVICES[0];
/// The documentation of how stacks are deployed.
pub(crate) const DEPLOYMENT_DOCS: &str = "docs/deploying.md";

/// Describes a stack with `DescribeStacks`. Returns `None` if there is no such stack.
pub(crate) async fn describe(
    client: &Client,
    stack: &str,
) -> Result<Option<types::Stack>, CliError> {
    match client.describe_stacks().stack_name(stack).send().await {
        Ok(described) => Ok(described.stacks.unwrap_or_default().into_iter().next()),
        Err(error) if does_not_exist(&error) => Ok(None),
        Err(error) => Err(aws(&format!("the stack {stack} can't be described"))(error)),
    }
}

/// Finds the stack with the API's outputs, and how the environment is deployed. If there is no gateway yet, the stack
/// is that of the failures service, which has no such outputs.
async fn find_environment(
    client: &Client,
    environment: &str,
    region: &str,
) -> Result<(Deployment, types::Stack), CliError> {
    if let Some(root) = describe(client, environment).await? {
        let owner = root.parameters().iter().find(|it| it.parameter_key() == Some("Environment"));
        if let Some(owner) =
            owner.and_then(|it| it.parameter_value()).filter(|it| *it != environment)
        {
            return Err(CliError::usage(format!(
                "{environment} is not an environment, but a stack of the environment {owner}"
            ))
            .advise(format!("use --stack {owner}")));
        }
        let status = root.stack_status().map_or("without a status", |status| status.as_str());
        return Ok((Deployment::Root { status: status.to_owned() }, root));
    }
    for service in [GATEWAY, FIRST_DEPLOYED_SERVICE] {
        if let Some(stack) = describe(client, &names::named(environment, service)).await? {
            return Ok((Deployment::PerService, stack));
        }
    }
    Err(no_stack(environment, region))
}

/// Returns the partition and the account in the ARN of a stack.
fn partition_and_account(stack: &types::Stack) -> Result<[String; 2], CliError> {
    let arn = stack.stack_id().unwrap_or_default();
    match arn.split(':').collect::<Vec<_>>()[..] {
        ["arn", partition, "cloudformation", _, account, ..] => {
            Ok([partition.to_owned(), account.to_owned()])
        }
        _ => Err(unreadable("the ARN of the stack", &format!("it is {arn:?}"))),
    }
}

/// Returns whether the error says that there is no such stack. CloudFormation has no error code for it.
pub(crate) fn does_not_exist(error: &impl ProvideErrorMetadata) -> bool {
    error.message().is_some_and(|text| text.contains("does not exist"))
}

fn no_stack(environment: &str, region: &str) -> CliError {
    let gateway = names::named(environment, GATEWAY);
    CliError::not_found(format!("there is neither a stack {environment} nor {gateway} in {region}"))
        .advise(
            "set the environment with --stack or FIELDSTATION_STACK, and its region with --region",
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_credentials_are_sent_only_to_this_machine() {
        for local in ["http://127.0.0.1:4566", "http://localhost:4566/", "http://[::1]:4566"] {
            assert!(loopback(local).is_some(), "{local}");
        }
        for remote in ["https://sts.amazonaws.com", "http://127.0.0.1.x.org", "nonsense", ""] {
            assert!(loopback(remote).is_none(), "{remote}");
        }
    }
}
