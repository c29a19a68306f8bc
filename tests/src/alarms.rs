//! The stack's alarms: feeding their metrics, reading their states and receiving their notifications. CloudWatch and
//! SNS are called without their SDKs, because the few calls are not worth the compile time.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use reqwest::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{Stack, api::sign};

/// An alarm on one metric, in the format of CloudWatch's `DescribeAlarms`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Alarm {
    /// The alarm's logical id.
    #[serde(skip)]
    pub logical_id: String,
    /// The alarm's generated name.
    pub alarm_name: String,
    /// The description, for the engineer on call.
    #[serde(default)]
    pub alarm_description: String,
    /// The metric's namespace.
    pub namespace: String,
    /// The metric's name.
    pub metric_name: String,
    /// The metric's dimensions.
    #[serde(default)]
    pub dimensions: Vec<Dimension>,
    /// The length of a period in seconds.
    pub period: u32,
    /// The number of periods that are evaluated.
    pub evaluation_periods: u32,
    /// `OK`, `ALARM` or `INSUFFICIENT_DATA`.
    pub state_value: String,
    /// The ARNs that are notified in state `ALARM`.
    #[serde(default)]
    pub alarm_actions: Vec<String>,
}

/// A dimension of a metric.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Dimension {
    /// The dimension's name.
    pub name: String,
    /// The dimension's value.
    pub value: String,
}

impl Alarm {
    /// Returns the metric's namespace and name, separated by a space.
    #[must_use]
    pub fn metric(&self) -> String {
        format!("{} {}", self.namespace, self.metric_name)
    }

    /// Returns the length of the time range that the alarm evaluates.
    #[must_use]
    pub fn window(&self) -> Duration {
        Duration::from_secs((self.period * self.evaluation_periods).into())
    }
}

impl Stack {
    /// Returns all alarms of the environment.
    pub async fn alarms(&self) -> Result<Vec<Alarm>> {
        let logical_ids: BTreeMap<String, String> = self
            .resources("AWS::CloudWatch::Alarm")
            .await?
            .into_iter()
            .map(|(logical, name)| (name, logical))
            .collect();
        let mut alarms = Vec::new();
        let mut page = Value::Null;
        loop {
            let mut request = json!({ "AlarmNamePrefix": format!("{}-", self.name()) });
            if !page.is_null() {
                request["NextToken"] = page;
            }
            let mut response = self.cloudwatch("DescribeAlarms", &request).await?;
            let described: Vec<Alarm> = serde_json::from_value(response["MetricAlarms"].take())?;
            alarms.extend(described.into_iter().filter_map(|alarm| {
                let logical_id = logical_ids.get(&alarm.alarm_name)?.clone();
                Some(Alarm { logical_id, ..alarm })
            }));
            page = response["NextToken"].take();
            if page.is_null() {
                break;
            }
        }
        ensure!(
            alarms.len() == logical_ids.len(),
            "CloudWatch returned {} of the alarms {logical_ids:?}",
            alarms.len()
        );
        Ok(alarms)
    }

    /// Puts values of the alarms' metric, with a timestamp that is `ago` before now. The alarms' metrics may only
    /// differ in their dimensions.
    ///
    /// `values` are pairs of a value and its count. Without values, a datum without samples is put.
    pub async fn put_metric_values(
        &self,
        alarms: &[&Alarm],
        values: &[(f64, f64)],
        ago: Duration,
    ) -> Result<()> {
        let at = SystemTime::now().duration_since(UNIX_EPOCH)?.saturating_sub(ago).as_secs_f64();
        let data = alarms.iter().map(|alarm| {
            let mut datum = json!({
                "MetricName": alarm.metric_name,
                "Dimensions": alarm.dimensions,
                "Timestamp": at,
            });
            if values.is_empty() {
                let no_samples = json!({ "SampleCount": 0, "Sum": 0, "Minimum": 0, "Maximum": 0 });
                datum["StatisticValues"] = no_samples;
            } else {
                datum["Values"] = values.iter().map(|(value, _)| *value).collect();
                datum["Counts"] = values.iter().map(|(_, count)| *count).collect();
            }
            datum
        });
        let namespace = &alarms.first().context("no alarms")?.namespace;
        let put = json!({ "Namespace": namespace, "MetricData": data.collect::<Vec<_>>() });
        self.cloudwatch("PutMetricData", &put).await.map(drop)
    }

    /// Returns the number of the function's log lines since this time that contain the text.
    pub async fn log_lines(&self, function: &str, since: SystemTime, text: &str) -> Result<usize> {
        let group = format!("/aws/lambda/{}/{function}", self.name());
        let since = u64::try_from(since.duration_since(UNIX_EPOCH)?.as_millis())?;
        let (mut count, mut page) = (0, Value::Null);
        loop {
            let mut input = json!({ "logGroupName": group, "startTime": since });
            if !page.is_null() {
                input["nextToken"] = page.take();
            }
            let target = "Logs_20140328.FilterLogEvents";
            let found = self.json_call("logs", target, &input).await?;
            let lines = found["events"].as_array().map_or(&[][..], Vec::as_slice);
            let lines = lines.iter().filter_map(|line| line["message"].as_str());
            count += lines.filter(|line| line.contains(text)).count();
            page = found["nextToken"].clone();
            if page.is_null() {
                return Ok(count);
            }
        }
    }

    async fn cloudwatch(&self, operation: &str, input: &Value) -> Result<Value> {
        let target = format!("GraniteServiceVersion20100801.{operation}");
        self.json_call("monitoring", &target, input).await
    }
}

/// A queue that is subscribed to the SNS topic of the alarms.
#[derive(Debug)]
pub struct OnCallQueue {
    queue_url: String,
    subscription: String,
}

impl OnCallQueue {
    /// Creates the queue and subscribes it to the topic.
    pub async fn subscribe(stack: &Stack) -> Result<Self> {
        let name = format!("{}-on-call-{}", stack.name(), Uuid::new_v4().simple());
        let (queue_url, arn) = stack.create_queue(&name, "sns.amazonaws.com").await?;
        let topic = stack.on_call_topic();
        let response = sns(
            stack,
            &[
                ("Action", "Subscribe"),
                ("TopicArn", &topic),
                ("Protocol", "sqs"),
                ("Endpoint", arn.as_str()),
            ],
        )
        .await?;
        let (_, rest) = response
            .split_once("<SubscriptionArn>")
            .context("the response has no SubscriptionArn")?;
        let (subscription, _) = rest.split_once('<').context("the SubscriptionArn has no end")?;
        Ok(Self { queue_url, subscription: subscription.to_owned() })
    }

    /// Receives and deletes the notifications of CloudWatch since the last call.
    pub async fn take(&self, stack: &Stack) -> Result<Vec<Value>> {
        let bodies = stack.take(&self.queue_url).await?;
        let message = |body: &String| {
            let envelope: Value = serde_json::from_str(body)?;
            Ok(serde_json::from_str(envelope["Message"].as_str().unwrap_or("null"))?)
        };
        bodies.iter().map(message).collect()
    }

    /// Deletes the subscription and the queue.
    pub async fn unsubscribe(self, stack: &Stack) -> Result<()> {
        let Self { queue_url, subscription } = self;
        sns(stack, &[("Action", "Unsubscribe"), ("SubscriptionArn", &subscription)]).await?;
        stack.sqs.delete_queue().queue_url(queue_url).send().await?;
        Ok(())
    }
}

/// Calls SNS with the fields of a form, the first of which is `Action`. Returns the response.
pub async fn sns(stack: &Stack, form: &[(&str, &str)]) -> Result<String> {
    let mut url = stack.endpoint().clone();
    url.query_pairs_mut().extend_pairs(form).append_pair("Version", "2010-03-31");
    let body = url.query().unwrap_or_default().to_owned();
    let mut request = stack
        .http
        .post(stack.endpoint().clone())
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(body.clone())
        .build()?;
    sign(&mut request, "sns", body.as_bytes())?;
    let response = stack.http.execute(request).await?;
    let (status, text) = (response.status(), response.text().await?);
    ensure!(status.is_success(), "{}: {status}: {text}", form[0].1);
    Ok(text)
}
