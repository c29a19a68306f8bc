//! Billing's commands come over a queue with a task token: an outage of the provider fills the
//! queue instead of failing sagas.
//!
//! A command is answered only after its result is committed; a redelivered one is answered again.
//! What is transient goes back to the queue as a new message with a growing delay, so that an
//! outage does not burn the three receives that are meant for messages nobody can work on.

use std::time::Duration;

use aws_lambda_events::sqs::SqsMessage;
use aws_sdk_sfn::error::{DisplayErrorContext, ProvideErrorMetadata};
use aws_sdk_sqs::types::MessageAttributeValue;
use contracts::Timestamp;
use lambda::{Deadline, ErrorKind, Fault, Step};
use serde::Deserialize;
use tracing::Span;

/// The message attribute that counts how often a command went back to the queue.
const ATTEMPT: &str = "attempt";
/// Kept back of the function's time, to put the command back into the queue.
const FOR_THE_QUEUE: Duration = Duration::from_secs(2);
const LONGEST_DELAY: Duration = Duration::from_mins(5);

/// A step behind a queue.
#[derive(Debug)]
pub struct Commands<S> {
    /// What does the work.
    pub step: S,
    /// Step Functions, which waits for the answer.
    pub machines: aws_sdk_sfn::Client,
    /// SQS, for what is to be tried later.
    pub queues: aws_sdk_sqs::Client,
    /// The queue that the commands come from.
    pub queue_url: String,
    /// So often a command goes back to the queue before the saga is told that it failed: enough to
    /// outlast the state's `TimeoutSeconds`.
    pub most_attempts: u32,
}

/// A message's body, as the state machine writes it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Message<C> {
    task_token: String,
    command: C,
}

impl<S: Step> Commands<S> {
    /// Works on one message. `Err` leaves it in the queue, burning a receive: only for what is
    /// broken, or can't be answered now.
    pub async fn handle(&self, message: SqsMessage, deadline: Deadline) -> Result<(), String> {
        let body = message.body.as_deref().unwrap_or_default();
        let Message { task_token, command } =
            lambda::decode::<Message<S::Command>>(body).map_err(|error| error.to_string())?;
        if let Some(correlation) = S::correlation(&command) {
            Span::current().record("correlationId", tracing::field::display(correlation));
        }
        let limit = deadline.left().saturating_sub(FOR_THE_QUEUE);
        let run = Box::pin(self.step.run(command, Timestamp::now()));
        let (error, reason) = match tokio::time::timeout(limit, run).await {
            Ok(Ok(reply)) => {
                let output = serde_json::to_string(&reply).map_err(|error| error.to_string())?;
                return self.succeed(task_token, output).await;
            }
            Ok(Err(fault)) => (fault.kind(), fault.to_string()),
            // A slow provider is an outage too: it must not burn receives.
            Err(_) => (ErrorKind::Transient, "the function's time ran out".to_owned()),
        };
        let attempt = attempt(&message) + 1;
        if error == ErrorKind::Transient && attempt <= self.most_attempts {
            tracing::warn!(%reason, attempt, "tried again later");
            metrics::counter!("BillingCommandsDeferred").increment(1);
            return self.try_later(body, attempt).await;
        }
        tracing::warn!(error = error.name(), %reason, "answered with an error");
        self.fail(task_token, error, reason).await
    }

    async fn succeed(&self, token: String, output: String) -> Result<(), String> {
        let sent = self.machines.send_task_success().task_token(token).output(output).send().await;
        match sent {
            Ok(_) => Ok(()),
            Err(error) => {
                let code = error.as_service_error().and_then(ProvideErrorMetadata::code);
                unanswered(code, &DisplayErrorContext(&error))
            }
        }
    }

    async fn fail(&self, token: String, error: ErrorKind, cause: String) -> Result<(), String> {
        let sent = self
            .machines
            .send_task_failure()
            .task_token(token)
            .error(error.name())
            .cause(cause)
            .send()
            .await;
        match sent {
            Ok(_) => Ok(()),
            Err(error) => {
                let code = error.as_service_error().and_then(ProvideErrorMetadata::code);
                unanswered(code, &DisplayErrorContext(&error))
            }
        }
    }

    async fn try_later(&self, body: &str, attempt: u32) -> Result<(), String> {
        let count = MessageAttributeValue::builder()
            .data_type("Number")
            .string_value(attempt.to_string())
            .build()
            .map_err(|error| error.to_string())?;
        self.queues
            .send_message()
            .queue_url(&self.queue_url)
            .message_body(body)
            .message_attributes(ATTEMPT, count)
            .delay_seconds(delay_seconds(attempt))
            .send()
            .await
            .map(drop)
            .map_err(|error| DisplayErrorContext(error).to_string())
    }
}

/// A token that nobody waits for any more is no reason to keep the message: the saga has moved on,
/// and its teardown undoes what was done.
fn unanswered(code: Option<&str>, error: &impl std::fmt::Display) -> Result<(), String> {
    match code {
        Some(code @ ("TaskTimedOut" | "TaskDoesNotExist" | "InvalidToken")) => {
            tracing::warn!(code, "nobody waits for the answer any more");
            Ok(())
        }
        _ => Err(format!("the answer can't be sent: {error}")),
    }
}

fn attempt(message: &SqsMessage) -> u32 {
    let count = message.message_attributes.get(ATTEMPT);
    count.and_then(|count| count.string_value.as_deref()?.parse().ok()).unwrap_or(0)
}

/// 2 s, 4 s, 8 s, ... up to five minutes.
fn delay_seconds(attempt: u32) -> i32 {
    let seconds = 2_u64.saturating_pow(attempt).min(LONGEST_DELAY.as_secs());
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_grows_and_is_capped() {
        let delays: Vec<_> = [1, 2, 3, 8, 9, 200].map(delay_seconds).into();
        assert_eq!(delays, [2, 4, 8, 256, 300, 300]);
    }

    #[test]
    fn only_a_token_that_is_gone_lets_the_message_go() {
        assert_eq!(unanswered(Some("TaskTimedOut"), &"x"), Ok(()));
        assert!(unanswered(Some("ThrottlingException"), &"x").is_err());
        assert!(unanswered(None, &"connection refused").is_err());
    }
}
