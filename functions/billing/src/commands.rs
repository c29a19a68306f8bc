//! Billing's commands come over a queue with a task token: an outage of the provider fills the
//! queue instead of failing sagas.
//!
//! A command is answered only after its result is committed; a redelivered one is answered again.
//! What is transient goes back to the queue as a new message with a growing delay, so that an
//! outage does not burn the three receives that are meant for messages nobody can work on. While
//! the circuit to the provider is open, commands go back without being tried, which is no attempt.
//! A command that grew older than its saga waits is answered with its error, whatever happened.

use std::time::Duration;

use aws_lambda_events::sqs::SqsMessage;
use aws_sdk_sfn::error::{DisplayErrorContext, ProvideErrorMetadata};
use aws_sdk_sqs::types::MessageAttributeValue;
use contracts::Timestamp;
use lambda::{Deadline, ErrorKind, Fault, Step};
use serde::Deserialize;
use tracing::Span;

use crate::circuit::{Circuit, Entry};

/// The message attribute that counts how often a command was tried in vain.
const ATTEMPT: &str = "attempt";
/// The message attribute that says when the command was first sent, in epoch milliseconds.
const SINCE: &str = "since";
/// Kept back of the function's time, to put the command back into the queue.
const FOR_THE_QUEUE: Duration = Duration::from_secs(2);
const LONGEST_DELAY: Duration = Duration::from_mins(5);
/// SQS holds no message back for longer.
const LONGEST_OF_SQS: Duration = Duration::from_mins(15);

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
    /// Breaks the calls off while the provider is out.
    pub circuit: Circuit,
    /// So long a command goes back to the queue: the `TimeoutSeconds` of the state that sent it, after
    /// which nobody waits for its answer.
    pub patience: Duration,
}

/// A message's body, as the state machine writes it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Message<C> {
    task_token: String,
    command: C,
}

/// A message's history in the queue.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// Tries so far.
    attempts: u32,
    /// When the state machine sent the command.
    since: Timestamp,
}

impl<S: Step> Commands<S> {
    /// Works on one message. `Err` leaves it in the queue, burning a receive: only for what is
    /// broken, or can't be answered now.
    pub async fn handle(
        &self,
        message: SqsMessage,
        deadline: Deadline,
        now: Timestamp,
    ) -> Result<(), String> {
        let body = message.body.as_deref().unwrap_or_default();
        let Message { task_token, command } =
            lambda::decode::<Message<S::Command>>(body).map_err(|error| error.to_string())?;
        if let Some(correlation) = S::correlation(&command) {
            Span::current().record("correlationId", tracing::field::display(correlation));
        }
        let sent = Sent::of(&message, now);
        let pass = match self.circuit.enter(now).await {
            Entry::Pass(pass) => pass,
            Entry::Wait(delay) => {
                let reason = "the circuit to the payment provider is open".to_owned();
                return self.try_later(task_token, body, sent, delay, reason, now).await;
            }
        };
        let limit = deadline.left().saturating_sub(FOR_THE_QUEUE);
        let run = Box::pin(self.step.run(command, now));
        let outcome = tokio::time::timeout(limit, run).await;
        let answered = match outcome {
            Ok(Ok(reply)) => match serde_json::to_string(&reply) {
                Ok(output) => self.succeed(task_token, output).await,
                Err(error) => Err(error.to_string()),
            },
            Ok(Err(fault)) if fault.kind() != ErrorKind::Transient => {
                self.fail(task_token, fault.kind(), fault.to_string()).await
            }
            // A slow provider is an outage too: it must not burn receives.
            transient => {
                let reason = match transient {
                    Ok(Err(fault)) => fault.to_string(),
                    _ => "the function's time ran out".to_owned(),
                };
                let sent = Sent { attempts: sent.attempts + 1, ..sent };
                self.try_later(task_token, body, sent, delay(sent.attempts), reason, now).await
            }
        };
        self.circuit.left(pass).await;
        answered
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
        tracing::warn!(error = error.name(), reason = %cause, "answered with an error");
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

    /// Back into the queue as a new message, unless nobody waits for the answer any more.
    async fn try_later(
        &self,
        token: String,
        body: &str,
        sent: Sent,
        delay: Duration,
        reason: String,
        now: Timestamp,
    ) -> Result<(), String> {
        let age = u64::try_from(now.millis() - sent.since.millis()).unwrap_or(0);
        if Duration::from_millis(age) > self.patience {
            return self.fail(token, ErrorKind::Transient, reason).await;
        }
        tracing::warn!(%reason, attempts = sent.attempts, "tried again later");
        metrics::counter!("BillingCommandsDeferred").increment(1);
        self.queues
            .send_message()
            .queue_url(&self.queue_url)
            .message_body(body)
            .message_attributes(ATTEMPT, number(&sent.attempts)?)
            .message_attributes(SINCE, number(&sent.since.millis())?)
            .delay_seconds(seconds(delay))
            .send()
            .await
            .map(drop)
            .map_err(|error| DisplayErrorContext(error).to_string())
    }
}

impl Sent {
    fn of(message: &SqsMessage, now: Timestamp) -> Self {
        let text = |name| message.message_attributes.get(name)?.string_value.as_deref();
        let first =
            text(SINCE).or_else(|| message.attributes.get("SentTimestamp").map(String::as_str));
        let since = first.and_then(|millis| millis.parse().ok()).map(Timestamp::from_millis);
        Self {
            attempts: text(ATTEMPT).and_then(|count| count.parse().ok()).unwrap_or(0),
            since: since.unwrap_or(now),
        }
    }
}

fn number(value: &impl ToString) -> Result<MessageAttributeValue, String> {
    let number = MessageAttributeValue::builder().data_type("Number");
    number.string_value(value.to_string()).build().map_err(|error| error.to_string())
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

/// 2 s, 4 s, 8 s, ... up to five minutes.
fn delay(attempts: u32) -> Duration {
    Duration::from_secs(2_u64.saturating_pow(attempts)).min(LONGEST_DELAY)
}

/// Whole seconds, rather too late than too early.
fn seconds(delay: Duration) -> i32 {
    let seconds = delay.min(LONGEST_OF_SQS).as_secs_f64().ceil();
    #[expect(clippy::cast_possible_truncation, reason = "at most 900")]
    return seconds as i32;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_grows_and_is_capped() {
        let delays = [1, 2, 3, 8, 9, 200].map(|attempts| seconds(delay(attempts)));
        assert_eq!(delays, [2, 4, 8, 256, 300, 300]);
        let given = [0, 1, 1000, 1001, 899_001, 5_000_000].map(Duration::from_millis).map(seconds);
        assert_eq!(given, [0, 1, 1, 2, 900, 900]);
    }

    #[test]
    fn only_a_token_that_is_gone_lets_the_message_go() {
        assert_eq!(unanswered(Some("TaskTimedOut"), &"x"), Ok(()));
        assert!(unanswered(Some("ThrottlingException"), &"x").is_err());
        assert!(unanswered(None, &"connection refused").is_err());
    }
}
