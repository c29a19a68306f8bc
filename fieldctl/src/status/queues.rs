//! Checks the queues: how many messages wait in each, and for how long.

use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use serde::Serialize;

use super::{Check, copy_error, metrics::Metrics, resources::Resources};
use crate::{
    error::{CliError, aws},
    render::{counted, span},
    stack::Stack,
};

/// The maximum time that a message may wait. Consumers receive messages within seconds.
const MAX_WAIT: Duration = Duration::from_mins(1);

/// A queue.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Queue {
    /// The queue's name without the environment, for example `telemetry-failures`.
    pub name: String,
    /// The number of messages that wait to be received.
    pub waiting: u64,
    /// The number of delayed messages.
    pub delayed: u64,
    /// The number of messages that a consumer has received and not deleted.
    pub in_flight: u64,
    /// The age of the oldest message, in seconds, from CloudWatch. `None` if CloudWatch has no value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_seconds: Option<f64>,
}

impl Queue {
    /// Returns whether messages wait longer than [`MAX_WAIT`]. If the age is unknown, any waiting message counts.
    fn is_waiting(&self) -> bool {
        self.waiting > 0 && self.oldest_seconds.is_none_or(|age| age > MAX_WAIT.as_secs_f64())
    }
}

/// Returns every queue of the stack.
pub async fn queues(
    stack: &Stack,
    resources: &Resources,
    metrics: &Metrics,
) -> Result<Vec<Queue>, CliError> {
    let client = aws_sdk_sqs::Client::new(stack.config());
    let read = async |logical: String, url: String| {
        let full_name = url.rsplit('/').next().unwrap_or(&url);
        let queue = get(&client, stack.short(full_name), &url).await?;
        Ok(Queue { oldest_seconds: metrics.queue_age(&logical), ..queue })
    };
    resources.read_each("AWS::SQS::Queue", read).await
}

/// Reads the queue without the age of its oldest message, which SQS does not report.
async fn get(client: &aws_sdk_sqs::Client, name: &str, url: &str) -> Result<Queue, CliError> {
    let attributes = [
        Attribute::ApproximateNumberOfMessages,
        Attribute::ApproximateNumberOfMessagesDelayed,
        Attribute::ApproximateNumberOfMessagesNotVisible,
    ];
    let response = client.get_queue_attributes().queue_url(url);
    let response = response.set_attribute_names(Some(attributes.to_vec())).send().await;
    let response = response.map_err(aws(&format!("the depth of {name} can't be read")))?;
    let number = |attribute: Attribute| {
        let text = response.attributes().and_then(|all| all.get(&attribute));
        text.and_then(|text| text.parse().ok())
            .ok_or_else(|| CliError::not_found(format!("SQS returned no {attribute} for {name}")))
    };
    let [waiting, delayed, in_flight] = attributes.map(number);
    Ok(Queue {
        waiting: waiting?,
        delayed: delayed?,
        in_flight: in_flight?,
        oldest_seconds: None,
        name: name.to_owned(),
    })
}

/// Checks that no message waits for long.
pub fn check(queues: Result<&[Queue], &CliError>) -> Result<Check, CliError> {
    let queues = queues.map_err(copy_error)?;
    if queues.is_empty() {
        return Err(CliError::not_found("the stack has no queues"));
    }
    let waiting: Vec<_> = queues.iter().filter(|queue| queue.is_waiting()).collect();
    if waiting.is_empty() {
        let all: u64 = queues.iter().map(|it| it.waiting + it.delayed + it.in_flight).sum();
        return Ok(Check::good(
            "queues",
            format!(
                "no message waits too long in {}; {} in total",
                counted(queues.len(), "queue", "queues"),
                counted(all, "message", "messages")
            ),
        ));
    }
    let details = waiting.iter().map(|queue| {
        let age = queue.oldest_seconds.map(|age| Duration::from_secs_f64(age.max(0.0)).as_millis());
        let age = age
            .and_then(|age| i64::try_from(age).ok())
            .map(|age| format!(", the oldest for {}", span(age)));
        format!("{}: {} wait{}", queue.name, queue.waiting, age.unwrap_or_default())
    });
    let summary = format!("messages wait in {} of {} queues", waiting.len(), queues.len());
    let next =
        "see consumers above; if all run: fieldctl logs --function <the queue's consumer> --errors";
    Ok(Check::problem("queues", summary, next).with(details.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Health;

    #[test]
    fn a_waiting_message_is_a_problem_unless_it_is_known_to_be_recent() {
        let queue = |waiting, oldest_seconds| Queue {
            name: "Q".to_owned(),
            waiting,
            delayed: 2,
            in_flight: 1,
            oldest_seconds,
        };
        let health = |it| check(Ok(&[it])).unwrap().health;
        assert_eq!(health(queue(0, None)), Health::Good, "delayed and in flight");
        assert_eq!(health(queue(0, Some(600.0))), Health::Good);
        assert_eq!(health(queue(1, Some(60.0))), Health::Good);
        assert_eq!(health(queue(1, Some(61.0))), Health::Problem);
        assert_eq!(health(queue(1, None)), Health::Problem, "its age is unknown");
        assert!(check(Ok(&[])).is_err());
    }
}
