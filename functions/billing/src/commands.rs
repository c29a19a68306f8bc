//! Consumes billing's commands from a queue. Each command has a task token. During an outage of the provider, commands
//! wait in the queue, and their sagas do not fail until the states that sent the commands time out.
//!
//! A command runs only after Step Functions has confirmed who sent it ([`proof`]). Its result is sent only after it
//! is committed, and is sent again for a redelivered command. After a transient failure, the command is requeued as a
//! new message with a growing delay. An outage therefore does not use up the three receives of a message, which are
//! meant for messages that can't be processed. While the circuit breaker for the provider is open, commands are
//! requeued without a run, and this does not count as an attempt. A command that is older than the timeout of its
//! state is not requeued.

use std::time::Duration;

use aws_lambda_events::sqs::SqsMessage;
use aws_sdk_sfn::error::ProvideErrorMetadata;
use aws_sdk_sqs::types::MessageAttributeValue;
use contracts::Timestamp;
use fault::{ErrorKind, Fault, ReplayResponse};
use lambda::{Deadline, Step};
use machines::StateMachine;
use serde::Deserialize;
use serde_json::Value;
use tracing::Span;

use crate::{
    circuit::{Admission, Circuit, Health},
    proof::{self, SenderError, SenderState},
    provider::{Provider, Session},
};

/// The message attribute with the number of failed attempts.
const ATTEMPT: &str = "attempt";
/// The message attribute with the time at which the command was first sent, in epoch milliseconds.
const SINCE: &str = "since";
/// The part of the function's time that is reserved for requeuing the command.
const QUEUE_MARGIN: Duration = Duration::from_secs(2);
/// The time between the end of the calls to the provider and the start of [`QUEUE_MARGIN`]. It lets a step release its
/// lock after the last call.
const STEP_MARGIN: Duration = Duration::from_millis(500);
const CIRCUIT_OPEN: &str = "the circuit breaker for the payment provider is open";
/// The error name of [`CommandOutcome::Rejected`].
const REFUSED: &str = "Refused";
/// The maximum delay of a requeued command.
const MAX_DELAY: Duration = Duration::from_mins(5);
/// The maximum delay of a message that SQS allows.
const MAX_SQS_DELAY: Duration = Duration::from_mins(15);

/// A step that calls the payment provider.
pub trait ProviderStep: Step {
    /// Returns the provider that the step calls.
    fn provider(&self) -> &Provider;

    /// Runs the command. All calls to the provider must use `session`.
    fn run_in(
        &self,
        command: Self::Command,
        session: &mut Session<'_>,
        now: Timestamp,
    ) -> impl Future<Output = Result<Self::Reply, Self::Error>>;
}

/// Consumes the commands of one step from a queue, and sends each result to Step Functions with the task token.
#[derive(Debug)]
pub struct TaskTokenConsumer<S> {
    /// The step that runs the commands.
    pub step: S,
    /// The state machine whose executions send the commands and wait for the results.
    pub machine: StateMachine,
    /// The client that requeues commands.
    pub queues: aws_sdk_sqs::Client,
    /// The queue that the commands come from.
    pub queue_url: String,
    /// The circuit breaker for the provider.
    pub circuit: Circuit,
    /// The `TimeoutSeconds` of the state that sends the commands. Nothing waits for the result of an older command,
    /// so it is not requeued.
    pub state_timeout: Duration,
}

/// The body of a message, as the state machine writes it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Message {
    task_token: String,
    /// The ARN of the execution that sent the command. Earlier versions of the state machines did not write it.
    /// Messages without it are accepted for one release, because a message may wait in the queue for a day.
    #[serde(default)]
    execution: Option<String>,
    /// Not decoded here, because it is compared with the execution's input.
    command: Value,
}

/// The result of a command.
enum CommandOutcome {
    /// The command ran. Holds the output.
    Succeeded(String),
    /// The command failed. Holds the error's name and the reason.
    Failed(ErrorKind, String),
    /// The command did not complete and may be retried. Holds the reason.
    Retry(String),
    /// The command must not run, because its sender is refused. Holds the reason.
    Rejected(String),
    /// The command did not run because its task has ended.
    TaskEnded,
}

/// The result of processing a message.
enum MessageOutcome {
    /// Step Functions got the command's result, or the task ended before that.
    ResultSent,
    /// The command did not run because its task has ended.
    TaskEnded,
    /// The command may be retried after `delay`.
    Retry { history: DeliveryHistory, delay: Duration, reason: String },
    /// Step Functions got no result, and the message stays in the queue.
    Failed { error: &'static str, reason: String },
}

impl MessageOutcome {
    fn failed(error: &'static str, reason: String) -> Self {
        Self::Failed { error, reason }
    }

    fn after_sending(sent: Result<(), String>) -> Self {
        match sent {
            Ok(()) => Self::ResultSent,
            Err(reason) => Self::failed(ErrorKind::Transient.name(), reason),
        }
    }
}

/// The delivery history of a command, over all messages that carried it.
#[derive(Clone, Copy, Debug)]
struct DeliveryHistory {
    /// The number of attempts so far.
    attempts: u32,
    /// When the state machine sent the command.
    first_sent: Timestamp,
}

impl<S: ProviderStep> TaskTokenConsumer<S> {
    /// Processes one message. Returns `Err` in these cases: the message is malformed, its sender is refused, its result
    /// can't be sent now, it can't be requeued now, or it is too old to be requeued and either its sender can't be
    /// confirmed now or the function's deadline passed. Such a message stays in the queue, and one of its receives is
    /// used up.
    pub async fn handle(
        &self,
        message: SqsMessage,
        deadline: Deadline,
        now: Timestamp,
    ) -> Result<(), String> {
        match self.process(&message, deadline, now).await {
            MessageOutcome::ResultSent | MessageOutcome::TaskEnded => Ok(()),
            MessageOutcome::Retry { history, delay, reason } => {
                let body = message.body.as_deref().unwrap_or_default();
                self.requeue(body, history, delay, &reason).await
            }
            MessageOutcome::Failed { reason, .. } => Err(reason),
        }
    }

    /// Processes one message that an engineer on call replays. It is not requeued. The result says why the command did not
    /// complete.
    pub async fn replay(
        &self,
        message: &SqsMessage,
        deadline: Deadline,
        now: Timestamp,
    ) -> ReplayResponse {
        match self.process(message, deadline, now).await {
            MessageOutcome::ResultSent => ReplayResponse::Done,
            MessageOutcome::TaskEnded => ReplayResponse::nothing_to_do(
                "the task of this command has ended, so it was not run; `fieldctl trace` shows its saga",
            ),
            MessageOutcome::Retry { reason, .. } => ReplayResponse::transient(reason),
            MessageOutcome::Failed { error, reason } => ReplayResponse::failed(error, reason),
        }
    }

    async fn process(
        &self,
        message: &SqsMessage,
        deadline: Deadline,
        now: Timestamp,
    ) -> MessageOutcome {
        let body = message.body.as_deref().unwrap_or_default();
        let Message { task_token: token, execution, command } = match fault::decode(body) {
            Ok(message) => message,
            Err(error) => {
                return MessageOutcome::failed(ErrorKind::InvalidInput.name(), error.to_string());
            }
        };
        let history = DeliveryHistory::from_message(message, now);
        let expired = self.has_expired(history, now);
        let mut permit = None;
        let decoded = match fault::decode::<S::Command>(&command.to_string()) {
            Ok(decoded) => {
                if let Some(correlation) = S::correlation(&decoded) {
                    Span::current().record("correlationId", tracing::field::display(correlation));
                }
                match self.circuit.admit(now).await {
                    Admission::Granted(granted) => {
                        permit = Some(granted);
                        Ok(decoded)
                    }
                    Admission::RetryAfter(_) if expired => {
                        Err((ErrorKind::Transient, CIRCUIT_OPEN.to_owned()))
                    }
                    Admission::RetryAfter(delay) => {
                        return MessageOutcome::Retry {
                            history,
                            delay,
                            reason: CIRCUIT_OPEN.to_owned(),
                        };
                    }
                }
            }
            Err(error) => Err((ErrorKind::InvalidInput, error.to_string())),
        };
        let limit = deadline.remaining().saturating_sub(QUEUE_MARGIN);
        let calls_end = Deadline::after(limit.saturating_sub(STEP_MARGIN));
        let run = async {
            match self.check_sender(&token, execution.as_deref(), &command, decoded).await {
                Ok(command) => self.run_step(command, now, calls_end).await,
                Err(outcome) => (outcome, None),
            }
        };
        // The calls to the provider end before this limit, at `calls_end`. The limit is for slow calls to AWS: the
        // command must be requeued before the function times out, because a timeout would use up a receive.
        let (outcome, health) =
            tokio::time::timeout(limit, Box::pin(run)).await.unwrap_or_else(|_| {
                (CommandOutcome::Retry("the function's deadline passed".to_owned()), None)
            });
        let result = match outcome {
            CommandOutcome::Succeeded(output) => {
                MessageOutcome::after_sending(self.send_success(token, output).await)
            }
            CommandOutcome::Failed(ErrorKind::Transient, reason)
            | CommandOutcome::Retry(reason)
                if !expired =>
            {
                let history = DeliveryHistory { attempts: history.attempts + 1, ..history };
                MessageOutcome::Retry { history, delay: delay(history.attempts), reason }
            }
            CommandOutcome::Failed(kind, cause) => {
                MessageOutcome::after_sending(self.send_failure(token, kind, cause).await)
            }
            CommandOutcome::Retry(reason) => {
                MessageOutcome::failed(ErrorKind::Transient.name(), reason)
            }
            CommandOutcome::Rejected(reason) => MessageOutcome::failed(REFUSED, reason),
            CommandOutcome::TaskEnded => {
                tracing::warn!("the task has ended: the command is not run");
                MessageOutcome::TaskEnded
            }
        };
        if let Some(permit) = permit {
            self.circuit.record_result(permit, health).await;
        }
        result
    }

    /// Checks who sent the command. Returns `Err` if it must not run: its sender is not confirmed, its task has
    /// ended, or `decoded` is an error.
    async fn check_sender(
        &self,
        token: &str,
        execution: Option<&str>,
        command: &Value,
        decoded: Result<S::Command, (ErrorKind, String)>,
    ) -> Result<S::Command, CommandOutcome> {
        match proof::check_sender(&self.machine, token, execution, command).await {
            Ok(SenderState::Waiting) => {
                decoded.map_err(|(kind, reason)| CommandOutcome::Failed(kind, reason))
            }
            Ok(SenderState::TaskEnded) => Err(CommandOutcome::TaskEnded),
            Err(SenderError::Unavailable(reason)) => Err(CommandOutcome::Retry(reason)),
            Err(SenderError::Refused(reason)) => Err(CommandOutcome::Rejected(reason)),
        }
    }

    /// Runs the step. Also returns the result of its last call to the provider.
    async fn run_step(
        &self,
        command: S::Command,
        now: Timestamp,
        calls_end: Deadline,
    ) -> (CommandOutcome, Option<Health>) {
        let mut session = self.step.provider().session(Some(calls_end));
        let result = self.step.run_in(command, &mut session, now).await;
        let outcome = match result {
            Ok(reply) => match serde_json::to_string(&reply) {
                Ok(output) => CommandOutcome::Succeeded(output),
                Err(error) => CommandOutcome::Failed(ErrorKind::Internal, error.to_string()),
            },
            Err(fault) => CommandOutcome::Failed(fault.kind(), fault.to_string()),
        };
        (outcome, session.into_health())
    }

    async fn send_success(&self, token: String, output: String) -> Result<(), String> {
        let success = self.machine.client.send_task_success().task_token(token).output(output);
        let sent = success.send().await;
        match sent {
            Ok(_) => Ok(()),
            Err(error) => {
                let code = error.as_service_error().and_then(ProvideErrorMetadata::code);
                ignore_ended_task(code, &fault::describe(&error))
            }
        }
    }

    async fn send_failure(
        &self,
        token: String,
        error: ErrorKind,
        cause: String,
    ) -> Result<(), String> {
        tracing::warn!(error = error.name(), reason = %cause, "command failed");
        let sent = self
            .machine
            .client
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
                ignore_ended_task(code, &fault::describe(&error))
            }
        }
    }

    /// Returns whether the state that sent the command has timed out by now.
    fn has_expired(&self, history: DeliveryHistory, now: Timestamp) -> bool {
        let age = u64::try_from(now.millis() - history.first_sent.millis()).unwrap_or(0);
        Duration::from_millis(age) > self.state_timeout
    }

    /// Sends the command to its queue again, as a new message after `delay`.
    async fn requeue(
        &self,
        body: &str,
        history: DeliveryHistory,
        delay: Duration,
        reason: &str,
    ) -> Result<(), String> {
        tracing::warn!(%reason, attempts = history.attempts, "command deferred");
        metrics::counter!("BillingCommandsDeferred").increment(1);
        self.queues
            .send_message()
            .queue_url(&self.queue_url)
            .message_body(body)
            .message_attributes(ATTEMPT, number(&history.attempts)?)
            .message_attributes(SINCE, number(&history.first_sent.millis())?)
            .delay_seconds(seconds(delay))
            .send()
            .await
            .map(drop)
            .map_err(|error| fault::describe(&error))
    }
}

impl DeliveryHistory {
    fn from_message(message: &SqsMessage, now: Timestamp) -> Self {
        let text = |name| message.message_attributes.get(name)?.string_value.as_deref();
        let first =
            text(SINCE).or_else(|| message.attributes.get("SentTimestamp").map(String::as_str));
        let first_sent = first.and_then(|millis| millis.parse().ok()).map(Timestamp::from_millis);
        Self {
            attempts: text(ATTEMPT).and_then(|count| count.parse().ok()).unwrap_or(0),
            first_sent: first_sent.unwrap_or(now),
        }
    }
}

fn number(value: &impl ToString) -> Result<MessageAttributeValue, String> {
    let number = MessageAttributeValue::builder().data_type("Number");
    number.string_value(value.to_string()).build().map_err(|error| error.to_string())
}

/// Converts the error of `SendTaskSuccess` or `SendTaskFailure`. A task that has ended is not an error: the saga's
/// teardown undoes what the command did, and the message need not be kept.
fn ignore_ended_task(code: Option<&str>, error: &impl std::fmt::Display) -> Result<(), String> {
    match code {
        Some(code @ ("TaskTimedOut" | "TaskDoesNotExist")) => {
            tracing::warn!(code, "the task has ended: its result is dropped");
            Ok(())
        }
        _ => Err(format!("the result can't be sent to Step Functions: {error}")),
    }
}

/// Returns the delay after a number of attempts: 2 s, 4 s, 8 s, ... up to five minutes.
fn delay(attempts: u32) -> Duration {
    Duration::from_secs(2_u64.saturating_pow(attempts)).min(MAX_DELAY)
}

/// Returns the delay in whole seconds, rounded up, and at most the maximum that SQS allows.
fn seconds(delay: Duration) -> i32 {
    let seconds = delay.min(MAX_SQS_DELAY).as_secs_f64().ceil();
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
        let seconds =
            [0, 1, 1000, 1001, 899_001, 5_000_000].map(Duration::from_millis).map(seconds);
        assert_eq!(seconds, [0, 1, 1, 2, 900, 900]);
    }

    #[test]
    fn an_ended_task_is_not_an_error_and_every_other_error_is() {
        assert_eq!(ignore_ended_task(Some("TaskTimedOut"), &"x"), Ok(()));
        assert!(ignore_ended_task(Some("InvalidToken"), &"x").is_err());
        assert!(ignore_ended_task(Some("ThrottlingException"), &"x").is_err());
        assert!(ignore_ended_task(None, &"connection refused").is_err());
    }
}
