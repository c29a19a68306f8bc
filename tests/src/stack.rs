//! The stack: where it is, what it is made of.

use std::{collections::BTreeMap, env, net::IpAddr};

use anyhow::{Context, Result, bail};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_sqs::types::QueueAttributeName;
use aws_smithy_async::{
    rt::sleep::{SharedAsyncSleep, TokioSleep},
    time::SystemTimeSource,
};
use aws_types::{SdkConfig, region::Region};
use reqwest::Url;
use serde_json::{Value, json};

/// The emulator knows one account's region; the functions are told the same.
pub(crate) const REGION: &str = "us-east-1";

/// A deployed stack on this machine.
#[derive(Clone, Debug)]
pub struct Stack {
    name: String,
    endpoint: Url,
    outputs: BTreeMap<String, String>,
    pub(crate) http: reqwest::Client,
    config: SdkConfig,
    cloudformation: aws_sdk_cloudformation::Client,
    dynamodb: aws_sdk_dynamodb::Client,
    pub(crate) bus: aws_sdk_eventbridge::Client,
    pub(crate) kinesis: aws_sdk_kinesis::Client,
    pub(crate) machines: aws_sdk_sfn::Client,
    pub(crate) sqs: aws_sdk_sqs::Client,
}

/// The endpoint, if it is on this machine: what is done here must never be done to a real account.
fn loopback(text: &str) -> Result<Url> {
    let url: Url = text.parse().with_context(|| format!("AWS_ENDPOINT_URL is {text:?}"))?;
    let host = url.host_str().unwrap_or_default();
    let local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if url.scheme() != "http" || !local {
        bail!(
            "AWS_ENDPOINT_URL is {text:?}; this works on the local stack only, at an address like \
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
    /// The stack named by `FIELDSTATION_STACK` (`fieldstation-local`) behind `AWS_ENDPOINT_URL`
    /// (`http://127.0.0.1:4566`).
    pub async fn connect() -> Result<Self> {
        let name = env::var("FIELDSTATION_STACK").unwrap_or_else(|_| "fieldstation-local".into());
        let endpoint =
            env::var("AWS_ENDPOINT_URL").unwrap_or_else(|_| "http://127.0.0.1:4566".into());
        let endpoint = loopback(&endpoint)?;
        let config = config(&endpoint);
        let cloudformation = aws_sdk_cloudformation::Client::new(&config);
        let described =
            cloudformation.describe_stacks().stack_name(&name).send().await.with_context(|| {
                format!(
                    "there is no stack {name} at {endpoint}; run `make up deploy-local` and try \
                     again"
                )
            })?;
        let stack = described.stacks().first().context("CloudFormation described no stack")?;
        let outputs = stack.outputs().iter().filter_map(|output| {
            Some((output.output_key()?.to_owned(), output.output_value()?.to_owned()))
        });
        Ok(Self {
            outputs: outputs.collect(),
            http: reqwest::Client::builder().no_proxy().build()?,
            dynamodb: aws_sdk_dynamodb::Client::new(&config),
            bus: aws_sdk_eventbridge::Client::new(&config),
            kinesis: aws_sdk_kinesis::Client::new(&config),
            machines: aws_sdk_sfn::Client::new(&config),
            sqs: aws_sdk_sqs::Client::new(&config),
            name,
            endpoint,
            config,
            cloudformation,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    #[must_use]
    pub fn endpoint(&self) -> &Url {
        &self.endpoint
    }

    /// For the clients of further services.
    #[must_use]
    pub fn config(&self) -> &SdkConfig {
        &self.config
    }

    /// DynamoDB, for what only a test does to a table.
    #[must_use]
    pub fn dynamodb(&self) -> &aws_sdk_dynamodb::Client {
        &self.dynamodb
    }

    /// SQS, for what only a test does to a queue.
    #[must_use]
    pub fn sqs(&self) -> &aws_sdk_sqs::Client {
        &self.sqs
    }

    /// An output of the template.
    pub fn output(&self, name: &str) -> Result<&str> {
        self.outputs.get(name).map(String::as_str).with_context(|| {
            format!("the stack {} has no output {name}; it has {:?}", self.name, self.outputs)
        })
    }

    /// The physical id of one of the template's resources.
    pub async fn physical_id(&self, logical_id: &str) -> Result<String> {
        let described = self
            .cloudformation
            .describe_stack_resource()
            .stack_name(&self.name)
            .logical_resource_id(logical_id)
            .send()
            .await
            .with_context(|| format!("the stack {} has no {logical_id}", self.name))?;
        let detail = described.stack_resource_detail();
        let id = detail.and_then(|detail| detail.physical_resource_id());
        id.map(str::to_owned).with_context(|| format!("{logical_id} has no physical id"))
    }

    /// All rows of the table in that output.
    pub async fn rows(&self, output: &str) -> Result<Vec<Value>> {
        let scan = self.dynamodb.scan().table_name(self.output(output)?).consistent_read(true);
        let mut items = scan.into_paginator().items().send();
        let mut rows = Vec::new();
        while let Some(item) = items.next().await {
            rows.push(serde_dynamo::from_item(item?)?);
        }
        Ok(rows)
    }

    /// The rows of the table in that output whose attribute has that value.
    pub async fn rows_with(
        &self,
        output: &str,
        attribute: &str,
        value: &str,
    ) -> Result<Vec<Value>> {
        let scan = self
            .dynamodb
            .scan()
            .table_name(self.output(output)?)
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

    /// Puts one event of another system on the bus; EventBridge's id of it.
    pub async fn put_event(
        &self,
        source: &str,
        detail_type: &str,
        detail: &Value,
    ) -> Result<String> {
        let entry = aws_sdk_eventbridge::types::PutEventsRequestEntry::builder()
            .event_bus_name(self.output("EventBusName")?)
            .source(source)
            .detail_type(detail_type)
            .detail(detail.to_string())
            .build();
        let answer = self.bus.put_events().entries(entry).send().await?;
        let entry = answer.entries().first().context("PutEvents answered nothing")?;
        match entry.event_id() {
            Some(id) => Ok(id.to_owned()),
            None => bail!("EventBridge refused the {detail_type}: {entry:?}"),
        }
    }

    /// A queue for what a service of AWS tells a test: its URL and its ARN.
    pub async fn mailbox(&self, name: &str, service: &str) -> Result<(String, String)> {
        let queue = self.sqs.create_queue().queue_name(name).send().await?;
        let queue_url = queue.queue_url().context("the queue has no URL")?;
        let asked = self
            .sqs
            .get_queue_attributes()
            .queue_url(queue_url)
            .attribute_names(QueueAttributeName::QueueArn)
            .send()
            .await?;
        let arn = asked
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

    /// Takes all that is in a queue now: the messages' bodies, in the queue's order.
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

    /// Messages in a queue, as (waiting, in work or delayed).
    pub async fn depth(&self, queue_url: &str) -> Result<(u32, u32)> {
        use QueueAttributeName::{
            ApproximateNumberOfMessages as Waiting, ApproximateNumberOfMessagesDelayed as Delayed,
            ApproximateNumberOfMessagesNotVisible as InWork,
        };
        let answer = self
            .sqs
            .get_queue_attributes()
            .queue_url(queue_url)
            .set_attribute_names(Some(vec![Waiting, InWork, Delayed]))
            .send()
            .await?;
        let attributes = answer.attributes().context("the queue has no attributes")?;
        let count = |name| -> Result<u32> {
            Ok(attributes.get(&name).map_or(Ok(0), |count| count.parse())?)
        };
        Ok((count(Waiting)?, count(InWork)? + count(Delayed)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_taken() {
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
