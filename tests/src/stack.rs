//! The environment: the clients to access it, and the names of its resources.

use std::{collections::BTreeMap, env, net::IpAddr, sync::Arc};

use anyhow::{Context, Result, bail};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_sqs::types::QueueAttributeName;
use aws_smithy_async::{
    rt::sleep::{SharedAsyncSleep, TokioSleep},
    time::SystemTimeSource,
};
use aws_types::{SdkConfig, region::Region};
use contracts::names::{self, SERVICES};
use reqwest::Url;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

/// The region of the emulator. The functions get the same.
pub(crate) const REGION: &str = "us-east-1";

/// A deployed environment on this machine.
#[derive(Clone, Debug)]
pub struct Stack {
    name: String,
    account: String,
    /// Whether there is a root stack that nests the services' stacks.
    has_root: bool,
    /// The emulator's endpoint.
    endpoint: Url,
    /// The outputs of the root stack, or of the gateway's stack.
    outputs: BTreeMap<String, String>,
    pub(crate) http: reqwest::Client,
    config: SdkConfig,
    cloudformation: aws_sdk_cloudformation::Client,
    /// The resources of all stacks, after they were listed. A deployment does not change generated names.
    resources: Arc<OnceCell<Vec<Resource>>>,
    dynamodb: aws_sdk_dynamodb::Client,
    pub(crate) bus: aws_sdk_eventbridge::Client,
    pub(crate) kinesis: aws_sdk_kinesis::Client,
    pub(crate) sfn: aws_sdk_sfn::Client,
    pub(crate) sqs: aws_sdk_sqs::Client,
}

/// A resource of a stack.
#[derive(Debug)]
struct Resource {
    kind: String,
    logical_id: String,
    physical_id: String,
}

/// Parses the endpoint. Refuses every host but this one, so that tests never change a real account.
fn loopback(text: &str) -> Result<Url> {
    let url: Url = text.parse().with_context(|| format!("AWS_ENDPOINT_URL is {text:?}"))?;
    let host = url.host_str().unwrap_or_default();
    let local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if url.scheme() != "http" || !local {
        bail!(
            "AWS_ENDPOINT_URL is {text:?}; only the local stack is supported, at an address like \
             http://127.0.0.1:4566"
        );
    }
    Ok(url)
}

fn config(endpoint: &Url) -> SdkConfig {
    let credentials = Credentials::new("test", "test", None, None, "local stack");
    SdkConfig::builder()
        .behavior_version(aws_sdk_dynamodb::config::BehaviorVersion::latest())
        .region(Region::new(REGION))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .endpoint_url(endpoint.as_str())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .sleep_impl(SharedAsyncSleep::new(TokioSleep::new()))
        .time_source(SystemTimeSource::new())
        .build()
}

impl Stack {
    /// Connects to the environment that `FIELDSTATION_STACK` names (`fieldstation-local`), at `AWS_ENDPOINT_URL`
    /// (`http://127.0.0.1:4566`). It has a root stack of this name, or one stack per service.
    pub async fn connect() -> Result<Self> {
        let name = env::var("FIELDSTATION_STACK").unwrap_or_else(|_| "fieldstation-local".into());
        let endpoint =
            env::var("AWS_ENDPOINT_URL").unwrap_or_else(|_| "http://127.0.0.1:4566".into());
        let endpoint = loopback(&endpoint)?;
        let config = config(&endpoint);
        let cloudformation = aws_sdk_cloudformation::Client::new(&config);
        let describe = |stack: &str| cloudformation.describe_stacks().stack_name(stack).send();
        let gateway = names::named(&name, "gateway");
        let (has_root, described) = match describe(&name).await {
            Ok(described) => (true, described),
            Err(_) => (
                false,
                describe(&gateway).await.with_context(|| {
                    format!(
                        "neither stack {name} nor stack {gateway} exists at {endpoint}; run `make up \
                         deploy-local` and try again"
                    )
                })?,
            ),
        };
        let stack = described.stacks().first().context("CloudFormation described no stack")?;
        let account = stack.stack_id().and_then(|arn| arn.split(':').nth(4));
        let account = account.context("the stack's ARN has no account")?.to_owned();
        let outputs = stack.outputs().iter().filter_map(|output| {
            Some((output.output_key()?.to_owned(), output.output_value()?.to_owned()))
        });
        Ok(Self {
            outputs: outputs.collect(),
            http: reqwest::Client::builder().no_proxy().build()?,
            dynamodb: aws_sdk_dynamodb::Client::new(&config),
            bus: aws_sdk_eventbridge::Client::new(&config),
            kinesis: aws_sdk_kinesis::Client::new(&config),
            sfn: aws_sdk_sfn::Client::new(&config),
            sqs: aws_sdk_sqs::Client::new(&config),
            name,
            account,
            has_root,
            endpoint,
            config,
            cloudformation,
            resources: Arc::default(),
        })
    }

    /// Returns the name of the environment.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the emulator's endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &Url {
        &self.endpoint
    }

    /// Returns the configuration for clients of further services.
    #[must_use]
    pub fn config(&self) -> &SdkConfig {
        &self.config
    }

    /// Returns the DynamoDB client.
    #[must_use]
    pub fn dynamodb(&self) -> &aws_sdk_dynamodb::Client {
        &self.dynamodb
    }

    /// Returns the SQS client.
    #[must_use]
    pub fn sqs(&self) -> &aws_sdk_sqs::Client {
        &self.sqs
    }

    /// Returns an output of the root stack, or of the gateway's stack.
    pub fn output(&self, name: &str) -> Result<&str> {
        self.outputs.get(name).map(String::as_str).with_context(|| {
            format!("the stack {} has no output {name}; its outputs: {:?}", self.name, self.outputs)
        })
    }

    /// Returns the full name of a table, queue, function or another resource with a fixed name.
    #[must_use]
    pub fn named(&self, name: &str) -> String {
        names::named(&self.name, name)
    }

    /// Returns the ARN of a state machine.
    #[must_use]
    pub fn machine_arn(&self, machine: &str) -> String {
        format!("arn:aws:states:{REGION}:{}:stateMachine:{}", self.account, self.named(machine))
    }

    /// Returns the ARN of a function's alias `live`.
    #[must_use]
    pub fn function_arn(&self, function: &str) -> String {
        let function = self.named(function);
        format!("arn:aws:lambda:{REGION}:{}:function:{function}:{}", self.account, names::LIVE)
    }

    /// Returns the ARN of an SNS topic.
    #[must_use]
    pub fn topic_arn(&self, topic: &str) -> String {
        format!("arn:aws:sns:{REGION}:{}:{}", self.account, self.named(topic))
    }

    /// Returns the ARN of the topic of the alarms.
    #[must_use]
    pub fn on_call_topic(&self) -> String {
        self.topic_arn(names::ON_CALL)
    }

    /// Returns the name of the failure bucket. It holds stream batches whose retries are exhausted, and long payloads.
    #[must_use]
    pub fn failures_bucket(&self) -> String {
        names::failures_bucket(&self.name, &self.account, REGION)
    }

    /// Returns the URL of a queue.
    pub async fn queue_url(&self, queue: &str) -> Result<String> {
        let name = self.named(queue);
        let response = self.sqs.get_queue_url().queue_name(&name).send().await;
        let response =
            response.with_context(|| format!("can't get the URL of the queue {name}"))?;
        response.queue_url.with_context(|| format!("the queue {name} has no URL"))
    }

    /// Returns the physical ids of all resources of a type, by their logical ids.
    pub async fn resources(&self, kind: &str) -> Result<BTreeMap<String, String>> {
        let matching = self.all_resources().await?.iter().filter(|it| it.kind == kind);
        Ok(matching.map(|it| (it.logical_id.clone(), it.physical_id.clone())).collect())
    }

    /// Returns the physical id of a resource with a generated name, such as an event source mapping.
    pub async fn physical_id(&self, logical_id: &str) -> Result<String> {
        let found = self.all_resources().await?.iter().find(|it| it.logical_id == logical_id);
        let found = found
            .with_context(|| format!("no stack of {} has the resource {logical_id}", self.name))?;
        Ok(found.physical_id.clone())
    }

    /// Returns the resources of all stacks of the environment.
    async fn all_resources(&self) -> Result<&[Resource]> {
        self.resources.get_or_try_init(|| self.list_resources()).await.map(Vec::as_slice)
    }

    async fn list_resources(&self) -> Result<Vec<Resource>> {
        let (mut resources, stacks) = if self.has_root {
            let root_resources = self.resources_of(&self.name).await?;
            let is_stack = |it: &&Resource| it.kind == "AWS::CloudFormation::Stack";
            let nested =
                root_resources.iter().filter(is_stack).map(|it| it.physical_id.clone()).collect();
            (root_resources, nested)
        } else {
            (Vec::new(), SERVICES.map(|service| self.named(service)).to_vec())
        };
        for stack in stacks {
            resources.extend(self.resources_of(&stack).await?);
        }
        Ok(resources)
    }

    async fn resources_of(&self, stack: &str) -> Result<Vec<Resource>> {
        let listing = self.cloudformation.list_stack_resources().stack_name(stack);
        let mut items = listing.into_paginator().items().send();
        let mut resources = Vec::new();
        while let Some(item) = items.next().await {
            let item = item.with_context(|| format!("can't list the resources of {stack}"))?;
            if let (Some(kind), Some(logical_id), Some(physical_id)) =
                (item.resource_type, item.logical_resource_id, item.physical_resource_id)
            {
                resources.push(Resource { kind, logical_id, physical_id });
            }
        }
        Ok(resources)
    }

    /// Returns all rows of a table.
    pub async fn rows(&self, table: &str) -> Result<Vec<Value>> {
        let scan = self.dynamodb.scan().table_name(self.named(table)).consistent_read(true);
        let mut items = scan.into_paginator().items().send();
        let mut rows = Vec::new();
        while let Some(item) = items.next().await {
            rows.push(serde_dynamo::from_item(item?)?);
        }
        Ok(rows)
    }

    /// Returns the rows of a table whose attribute has this value.
    pub async fn rows_with(&self, table: &str, attribute: &str, value: &str) -> Result<Vec<Value>> {
        let scan = self
            .dynamodb
            .scan()
            .table_name(self.named(table))
            .consistent_read(true)
            .filter_expression("#attribute = :value")
            .expression_attribute_names("#attribute", attribute)
            .expression_attribute_values(":value", AttributeValue::S(value.to_owned()));
        let mut items = scan.into_paginator().items().send();
        let mut rows = Vec::new();
        while let Some(item) = items.next().await {
            rows.push(serde_dynamo::from_item(item?)?);
        }
        Ok(rows)
    }

    /// Puts an event of another system on the bus. Returns EventBridge's id of the event.
    pub async fn put_event(
        &self,
        source: &str,
        detail_type: &str,
        detail: &Value,
    ) -> Result<String> {
        let entry = aws_sdk_eventbridge::types::PutEventsRequestEntry::builder()
            .event_bus_name(self.named(names::EVENTS))
            .source(source)
            .detail_type(detail_type)
            .detail(detail.to_string())
            .build();
        let response = self.bus.put_events().entries(entry).send().await?;
        let entry = response.entries().first().context("PutEvents returned no entry")?;
        match entry.event_id() {
            Some(id) => Ok(id.to_owned()),
            None => bail!("EventBridge rejected the {detail_type}: {entry:?}"),
        }
    }

    /// Creates a queue to which this AWS service may send messages. Returns its URL and its ARN.
    pub async fn create_queue(&self, name: &str, service: &str) -> Result<(String, String)> {
        let queue = self.sqs.create_queue().queue_name(name).send().await?;
        let queue_url = queue.queue_url().context("the queue has no URL")?;
        let response = self
            .sqs
            .get_queue_attributes()
            .queue_url(queue_url)
            .attribute_names(QueueAttributeName::QueueArn)
            .send()
            .await?;
        let arn = response
            .attributes()
            .and_then(|attributes| attributes.get(&QueueAttributeName::QueueArn))
            .context("the queue has no ARN")?;
        let policy = json!({
            "Version": "2012-10-17",
            "Statement": [{
                "Effect": "Allow",
                "Principal": { "Service": service },
                "Action": "sqs:SendMessage",
                "Resource": arn,
            }],
        });
        self.sqs
            .set_queue_attributes()
            .queue_url(queue_url)
            .attributes(QueueAttributeName::Policy, policy.to_string())
            .send()
            .await?;
        Ok((queue_url.to_owned(), arn.clone()))
    }

    /// Receives and deletes all messages of a queue. Returns their bodies in the queue's order.
    pub async fn take(&self, queue_url: &str) -> Result<Vec<String>> {
        let mut bodies = Vec::new();
        loop {
            let receive =
                self.sqs.receive_message().queue_url(queue_url).max_number_of_messages(10);
            let received = receive.send().await?;
            if received.messages().is_empty() {
                return Ok(bodies);
            }
            for message in received.messages() {
                bodies.push(message.body().unwrap_or_default().to_owned());
                let handle = message.receipt_handle().context("a message without a handle")?;
                let delete = self.sqs.delete_message().queue_url(queue_url);
                delete.receipt_handle(handle).send().await?;
            }
        }
    }

    /// Returns the number of messages in a queue: (visible, in flight or delayed).
    pub async fn queue_depth(&self, queue_url: &str) -> Result<(u32, u32)> {
        use QueueAttributeName::{
            ApproximateNumberOfMessages as Visible, ApproximateNumberOfMessagesDelayed as Delayed,
            ApproximateNumberOfMessagesNotVisible as InFlight,
        };
        let response = self
            .sqs
            .get_queue_attributes()
            .queue_url(queue_url)
            .set_attribute_names(Some(vec![Visible, InFlight, Delayed]))
            .send()
            .await?;
        let attributes = response.attributes().context("the queue has no attributes")?;
        let count = |name| -> Result<u32> {
            Ok(attributes.get(&name).map_or(Ok(0), |count| count.parse())?)
        };
        Ok((count(Visible)?, count(InFlight)? + count(Delayed)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_on_another_host_is_refused() {
        for good in ["http://127.0.0.1:4566", "http://localhost:4566"] {
            assert!(loopback(good).is_ok(), "{good}");
        }
        for bad in [
            "https://sqs.us-east-1.amazonaws.com",
            "http://10.0.0.1:4566",
            "http://127.0.0.1.x.org",
        ] {
            assert!(loopback(bad).is_err(), "{bad}");
        }
    }
}
