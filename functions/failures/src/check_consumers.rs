//! Checks every minute that each event source mapping of the environment runs.
//!
//! A disabled or deleted mapping reports no error, and its queue or stream fills up until the messages expire. This
//! check reports its state. The `Polls` alarms only show that a stream or a queue of commands is not read.

use std::{collections::HashSet, time::Duration};

use aws_lambda_events::eventbridge::EventBridgeEvent;
use aws_sdk_lambda::{
    error::SdkError, operation::list_event_source_mappings::ListEventSourceMappingsError,
    types::EventSourceMappingConfiguration,
};
use aws_sdk_sqs::types::QueueAttributeName;
use contracts::{
    OnboardingId, Timestamp,
    names::{CONSUMERS, Consumer, Source, function_of_arn, named},
};
use fault::{AwsErrorKind, ErrorKind, Fault};
use lambda::{Deadline, Step};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{sleep, timeout};

/// The state of a mapping that runs.
const ENABLED: &str = "Enabled";
/// The state that is reported for an expected mapping that does not exist.
const MISSING: &str = "Missing";
/// The prefix of a stream mapping's `LastProcessingResult` if its last batch failed.
const PROBLEM: &str = "PROBLEM";

/// The function check-consumers.
#[derive(Debug)]
pub struct CheckConsumers {
    /// The client that lists the mappings.
    pub lambda: aws_sdk_lambda::Client,
    /// The client that counts the messages in the queue of a mapping that does not run.
    pub sqs: aws_sdk_sqs::Client,
    /// The name of the environment, such as `fieldstation-prod`.
    pub environment: String,
    /// The URL of a queue without its name: `https://sqs.<region>.amazonaws.com/<account>/`.
    pub queues_url: String,
    /// The pause between two calls of Lambda's API.
    pub pause: Duration,
    /// The maximum duration of a check. It must be less than the function's timeout.
    pub timeout: Duration,
}

/// An error of the check.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The mappings can't be listed now: Lambda throttled the call or was unavailable, or the check's deadline passed.
    #[error("the event source mappings can't be listed now: {0}")]
    Unavailable(String),
    /// Lambda refused to list the mappings. A retry would be refused again.
    #[error("Lambda refused to list the event source mappings: {0}")]
    Refused(String),
}

impl Fault for CheckError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Unavailable(_) => ErrorKind::Transient,
            Self::Refused(_) => ErrorKind::Internal,
        }
    }
}

/// The result of the check.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// The number of mappings of the environment that were found.
    pub checked: usize,
    /// The mappings that do not run.
    pub not_running: Vec<StoppedMapping>,
}

/// A mapping that does not run.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StoppedMapping {
    /// The function and the source, such as `store-readings <- stream readings`.
    pub mapping: String,
    /// The state, such as `Disabled`, `Disabling` or `Enabling`; `Missing` if the mapping does not exist.
    pub state: String,
    /// The number of messages in its queue, including those in flight and delayed ones. `None` for a stream, for a
    /// source of another environment, or if the queue could not be read.
    pub waiting: Option<u64>,
}

impl Step for CheckConsumers {
    type Command = EventBridgeEvent<Value>;
    type Reply = Reply;
    type Error = CheckError;

    fn correlation(_: &Self::Command) -> Option<OnboardingId> {
        None
    }

    async fn run(&self, _: Self::Command, _: Timestamp) -> Result<Reply, CheckError> {
        let deadline = Deadline::after(self.timeout);
        let mut reply = Reply::default();
        let listed = timeout(deadline.remaining(), self.check(&mut reply)).await;
        let listed = listed
            .unwrap_or_else(|_| Err(CheckError::Unavailable("the deadline passed".to_owned())));
        // 0 means that every mapping runs, so it is only reported if all were listed. The alarm ConsumerChecks
        // fires if nothing is reported.
        if listed.is_ok() || !reply.not_running.is_empty() {
            #[expect(clippy::cast_precision_loss, reason = "a count")]
            lambda::report("ConsumersNotRunning", reply.not_running.len() as f64);
        }
        listed.map(|()| reply)
    }
}

impl CheckConsumers {
    /// Counts the mappings of the environment, and adds those that do not run to the reply. If a call fails, the reply
    /// has only the mappings that were listed before.
    async fn check(&self, reply: &mut Reply) -> Result<(), CheckError> {
        let mut missing: HashSet<_> = CONSUMERS.iter().copied().collect();
        let mut marker = None;
        loop {
            let page = self.lambda.list_event_source_mappings().set_marker(marker).send().await;
            let page = page.map_err(|error| list_error(&error))?;
            for mapping in page.event_source_mappings() {
                let arn = mapping.function_arn().unwrap_or_default();
                let Some(function) = function_of_arn(&self.environment, arn) else { continue };
                let arn = mapping.event_source_arn().unwrap_or_default();
                let source = Source::from_arn(&self.environment, arn);
                let name = match source {
                    Some(source) => {
                        let consumer = Consumer { function, source };
                        missing.retain(|it| *it != consumer);
                        consumer.to_string()
                    }
                    None => format!("{function} <- {arn}"),
                };
                reply.checked += 1;
                reply.not_running.extend(self.stopped(name, source, mapping).await);
            }
            marker = page.next_marker().filter(|marker| !marker.is_empty()).map(str::to_owned);
            if marker.is_none() {
                break;
            }
            sleep(self.pause).await;
        }
        for consumer in CONSUMERS.iter().filter(|it| missing.contains(it)) {
            let mapping = consumer.to_string();
            let waiting = self.waiting(Some(consumer.source)).await;
            tracing::error!(mapping, state = MISSING, waiting, "a consumer does not run");
            let state = MISSING.to_owned();
            reply.not_running.push(StoppedMapping { mapping, state, waiting });
        }
        Ok(())
    }

    /// Returns a description of the mapping if it does not run, and logs it.
    async fn stopped(
        &self,
        name: String,
        source: Option<Source<'_>>,
        mapping: &EventSourceMappingConfiguration,
    ) -> Option<StoppedMapping> {
        let uuid = mapping.uuid().unwrap_or_default();
        let state = mapping.state().unwrap_or_default();
        let last_result = mapping.last_processing_result().unwrap_or_default();
        if state == ENABLED {
            if last_result.starts_with(PROBLEM) {
                tracing::warn!(
                    mapping = name,
                    uuid,
                    lastProcessingResult = last_result,
                    "the last batch of a consumer failed"
                );
            }
            return None;
        }
        let waiting = self.waiting(source).await;
        tracing::error!(
            mapping = name,
            uuid,
            state,
            stateTransitionReason = mapping.state_transition_reason().unwrap_or_default(),
            lastProcessingResult = last_result,
            waiting,
            "a consumer does not run"
        );
        Some(StoppedMapping { mapping: name, state: state.to_owned(), waiting })
    }

    /// Returns the number of messages in the source if it is a queue.
    async fn waiting(&self, source: Option<Source<'_>>) -> Option<u64> {
        use QueueAttributeName::{
            ApproximateNumberOfMessages as Visible, ApproximateNumberOfMessagesDelayed as Delayed,
            ApproximateNumberOfMessagesNotVisible as InFlight,
        };
        let Some(Source::Queue(name)) = source else { return None };
        let name = named(&self.environment, name);
        let result = self
            .sqs
            .get_queue_attributes()
            .queue_url(format!("{}{name}", self.queues_url))
            .set_attribute_names(Some(vec![Visible, InFlight, Delayed]))
            .send()
            .await;
        match result {
            Ok(response) => {
                let counts = response.attributes?.into_values();
                counts.map(|count| count.parse::<u64>().ok()).sum()
            }
            // The mapping is reported even if its messages can't be counted.
            Err(error) => {
                let error = fault::describe(&error);
                tracing::warn!(queue = name, %error, "the messages of a queue can't be counted");
                None
            }
        }
    }
}

fn list_error(error: &SdkError<ListEventSourceMappingsError>) -> CheckError {
    let reason = fault::summary(error);
    if AwsErrorKind::classify(error).is_transient() {
        CheckError::Unavailable(reason)
    } else {
        CheckError::Refused(reason)
    }
}
