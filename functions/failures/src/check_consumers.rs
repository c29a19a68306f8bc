//! Checks every minute that each event source mapping of the stack runs.
//!
//! A mapping that is disabled or deleted reports nothing: Lambda's metrics about it are missing, and the
//! queue or stream fills up until its messages expire.

use std::{str::FromStr, time::Duration};

use aws_lambda_events::eventbridge::EventBridgeEvent;
use aws_sdk_lambda::{
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    operation::get_event_source_mapping::GetEventSourceMappingError,
};
use aws_sdk_sqs::types::QueueAttributeName;
use contracts::{OnboardingId, Timestamp};
use lambda::{ConfigError, Deadline, Step};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::FailuresError;

/// State of a mapping that runs.
const ENABLED: &str = "Enabled";
/// State that is reported for a mapping that Lambda does not know.
const MISSING: &str = "Missing";
/// Start of the last processing result of a stream's mapping that can't make progress.
const PROBLEM: &str = "PROBLEM";

/// The mappings to check, by their names in the template and their UUIDs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mappings(Vec<(String, String)>);

impl FromStr for Mappings {
    type Err = ConfigError;

    /// From `<name>=<UUID>,...`.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let pair = |pair: &str| match pair.trim().split_once('=') {
            Some((name, uuid)) if !name.is_empty() && !uuid.is_empty() => {
                Ok((name.to_owned(), uuid.to_owned()))
            }
            _ => Err(ConfigError {
                name: "MAPPINGS",
                problem: format!("has {pair:?} where <name>=<UUID> belongs"),
            }),
        };
        text.split(',').map(pair).collect::<Result<_, _>>().map(Self)
    }
}

/// The function check-consumers.
#[derive(Debug)]
pub struct CheckConsumers {
    /// Describes the mappings.
    pub lambda: aws_sdk_lambda::Client,
    /// Counts the messages of a queue whose mapping does not run.
    pub sqs: aws_sdk_sqs::Client,
    /// The mappings to check.
    pub mappings: Mappings,
    /// The URL of a queue without its name: `https://sqs.<region>.amazonaws.com/<account>/`.
    pub queues_url: String,
    /// Time between two calls of Lambda's API.
    pub pause: Duration,
    /// How long a check may take: less than the function's time-out.
    pub time: Duration,
}

/// The answer.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// How many mappings were checked.
    pub checked: usize,
    /// The mappings that do not run.
    pub not_running: Vec<Stopped>,
}

/// A mapping that does not run.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stopped {
    /// Its name in the template.
    pub mapping: String,
    /// `Disabled`, `Disabling`, `Enabling`, ..., or `Missing`.
    pub state: String,
    /// Messages in its queue, those in flight and delayed ones included. Null for a stream, or if the queue
    /// could not be read.
    pub waiting: Option<u64>,
}

impl Step for CheckConsumers {
    type Command = EventBridgeEvent<Value>;
    type Reply = Reply;
    type Error = FailuresError;

    fn correlation(_: &Self::Command) -> Option<OnboardingId> {
        None
    }

    async fn run(&self, _: Self::Command, _: Timestamp) -> Result<Reply, FailuresError> {
        let deadline = Deadline::after(self.time);
        let mut reply = Reply::default();
        let mut failed = None;
        for (name, uuid) in &self.mappings.0 {
            match timeout(deadline.left(), self.check(name, uuid)).await {
                Ok(Ok(stopped)) => {
                    reply.checked += 1;
                    reply.not_running.extend(stopped);
                }
                Ok(Err(error)) => failed = Some(error),
                Err(_) => {
                    let reason = "the time ran out".to_owned();
                    failed = Some(FailuresError::Unchecked { mapping: name.clone(), reason });
                    break;
                }
            }
            sleep(self.pause.min(deadline.left())).await;
        }
        // 0 says that every mapping runs, so it is only reported if every mapping was seen. The alarm
        // ConsumerChecks goes off if nothing is reported.
        if failed.is_none() || !reply.not_running.is_empty() {
            #[expect(clippy::cast_precision_loss, reason = "a count")]
            lambda::report("ConsumersNotRunning", reply.not_running.len() as f64);
        }
        failed.map_or(Ok(reply), Err)
    }
}

impl CheckConsumers {
    /// Describes the mapping if it does not run, and logs it.
    async fn check(&self, name: &str, uuid: &str) -> Result<Option<Stopped>, FailuresError> {
        let described = self.lambda.get_event_source_mapping().uuid(uuid).send().await;
        let mapping = match described {
            Ok(mapping) => Some(mapping),
            Err(error) if is_unknown(&error) => None,
            Err(error) => return Err(unchecked(name, &error)),
        };
        let state = mapping.as_ref().map_or(MISSING, |it| it.state().unwrap_or_default());
        let last_result =
            mapping.as_ref().and_then(|it| it.last_processing_result()).unwrap_or_default();
        if state == ENABLED {
            if last_result.starts_with(PROBLEM) {
                tracing::warn!(
                    mapping = name,
                    uuid,
                    lastProcessingResult = last_result,
                    "the last batch of a consumer failed"
                );
            }
            return Ok(None);
        }
        let source = mapping.as_ref().and_then(|it| it.event_source_arn()).unwrap_or_default();
        let waiting = self.waiting(source).await;
        let reason =
            mapping.as_ref().and_then(|it| it.state_transition_reason()).unwrap_or_default();
        tracing::error!(
            mapping = name,
            uuid,
            state,
            stateTransitionReason = reason,
            lastProcessingResult = last_result,
            waiting,
            "a consumer does not run"
        );
        Ok(Some(Stopped { mapping: name.to_owned(), state: state.to_owned(), waiting }))
    }

    /// How many messages are in the queue with this ARN.
    async fn waiting(&self, arn: &str) -> Option<u64> {
        use QueueAttributeName::{
            ApproximateNumberOfMessages as Visible, ApproximateNumberOfMessagesDelayed as Delayed,
            ApproximateNumberOfMessagesNotVisible as InFlight,
        };
        let (_, rest) = arn.split_once(":sqs:")?;
        let (_, name) = rest.rsplit_once(':')?;
        let asked = self
            .sqs
            .get_queue_attributes()
            .queue_url(format!("{}{name}", self.queues_url))
            .set_attribute_names(Some(vec![Visible, InFlight, Delayed]))
            .send()
            .await;
        match asked {
            Ok(answer) => {
                let counts = answer.attributes?.into_values();
                counts.map(|count| count.parse::<u64>().ok()).sum()
            }
            // That the mapping does not run is reported all the same.
            Err(error) => {
                let error = DisplayErrorContext(&error);
                tracing::warn!(queue = name, %error, "the messages of a queue were not counted");
                None
            }
        }
    }
}

fn is_unknown(error: &SdkError<GetEventSourceMappingError>) -> bool {
    error
        .as_service_error()
        .is_some_and(GetEventSourceMappingError::is_resource_not_found_exception)
}

fn unchecked(name: &str, error: &SdkError<GetEventSourceMappingError>) -> FailuresError {
    let reason = match error.as_service_error() {
        Some(service) => format!(
            "{} {}",
            service.code().unwrap_or("unnamed error"),
            service.message().unwrap_or_default()
        ),
        None => DisplayErrorContext(error).to_string(),
    };
    let status = error.raw_response().map(|response| response.status().as_u16());
    match status {
        Some(status) if status < 500 && status != 429 => {
            FailuresError::Refused { mapping: name.to_owned(), reason }
        }
        _ => FailuresError::Unchecked { mapping: name.to_owned(), reason },
    }
}
