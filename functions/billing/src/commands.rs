//! Consumes billing's commands from a queue. Each command has a task token. During an outage of the provider,
//! commands collect in the queue, and the sagas do not fail.
//!
//! A command runs only after Step Functions has confirmed who sent it ([`proof`]). Its answer is sent only after its
//! result is committed. A redelivered command is answered again. After a transient failure, the command is sent
//! back to the queue as a new message with a growing delay. An outage therefore does not use up the three
//! receives of a message, which are meant for messages that can't be processed. While the circuit to the
//! provider is open, commands are sent back without being tried, and this does not count as an attempt. A command
//! that is older than the timeout of its state is not sent back again.

use std::time::Duration;

use aws_lambda_events::sqs::SqsMessage;
use aws_sdk_sfn::error::ProvideErrorMetadata;
use aws_sdk_sqs::types::MessageAttributeValue;
use contracts::Timestamp;
use fault::{ErrorKind, Fault, Replayed};
use lambda::{Deadline, Step};
use machines::Machine;
use serde::Deserialize;
use serde_json::Value;
use tracing::Span;

use crate::{
    circuit::{Circuit, Entry, Health},
    proof::{self, Sender, Unproven},
    provider::{Provider, Session},
};

/// The message attribute with the number of failed attempts.
const ATTEMPT: &str = "attempt";
/// The message attribute with the time at which the command was first sent, in epoch milliseconds.
const SINCE: &str = "since";
/// The part of the function's time that is reserved for sending the command back to the queue.
const QUEUE_MARGIN: Duration = Duration::from_secs(2);
/// The time between the end of the calls to the provider and the start of [`QUEUE_MARGIN`]. It lets a step release its
/// lock after the last call.
const STEP_MARGIN: Duration = Duration::from_millis(500);
const CIRCUIT_OPEN: &str = "the circuit to the payment provider is open";
/// The error name for a command whose sender Step Functions does not confirm.
const REFUSED: &str = "Refused";
const LONGEST_DELAY: Duration = Duration::from_mins(5);
/// The longest delay of a message that SQS allows.
const LONGEST_OF_SQS: Duration = Duration::from_mins(15);

/// A step that calls the payment provider.
pub trait ProviderStep: Step {
    /// Returns the provider that the step calls.
    fn provider(&self) -> &Provider;

    /// Runs the command. All calls to the provider are calls of `session`.
    fn run_in(
        &self,
        command: Self::Command,
        session: &mut Session<'_>,
        now: Timestamp,
    ) -> impl Future<Output = Result<Self::Reply, Self::Error>>;
}

/// A step whose commands come from a queue.
#[derive(Debug)]
pub struct Commands<S> {
    /// The step that runs the commands.
    pub step: S,
    /// The state machine whose executions send the commands and wait for the answers.
    pub machine: Machine,
    /// The client that sends commands back to the queue.
    pub queues: aws_sdk_sqs::Client,
    /// The queue that the commands come from.
    pub queue_url: String,
    /// The circuit breaker for the provider.
    pub circuit: Circuit,
    /// The maximum age of a command that is sent back to the queue: the `TimeoutSeconds` of the state that sent
    /// it. After that time nothing waits for its answer.
    pub patience: Duration,
}

/// The body of a message, as the state machine writes it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Message {
    task_token: String,
    /// The ARN of the execution that sent the command. State machines of version 0.1 did not write it. Messages
    /// without it are accepted for one release, since a message may wait in the queue for a day.
    #[serde(default)]
    execution: Option<String>,
    /// Not decoded here, because it is compared with the execution's input.
    command: Value,
}

/// The result of a command.
enum Outcome {
    /// The command ran. Holds the output.
    Done(String),
    /// The command failed. Holds the error's name and the reason.
    Failed(ErrorKind, String),
    /// The command did not complete and may be retried. Holds the reason.
    Later(String),
    /// The command must not run, or its output can't be serialized. Holds the reason.
    Refused(String),
    /// The command did not run because its task has ended.
    MovedOn,
}

/// The result of a message.
enum End {
    /// The state machine got an answer, or its task ended before the answer.
    Answered,
    /// The command did not run because its task has ended.
    MovedOn,
    /// The command may be retried later.
    Later { sent: Sent, delay: Duration, reason: String },
    /// The command was not answered, and the message stays in the queue.
    Failed { error: &'static str, reason: String },
}

impl End {
    fn failed(error: &'static str, reason: String) -> Self {
        Self::Failed { error, reason }
    }

    fn answered(answer: Result<(), String>) -> Self {
        match answer {
            Ok(()) => Self::Answered,
            Err(reason) => Self::failed(ErrorKind::Transient.name(), reason),
        }
    }
}

/// The history of a message in the queue.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// The number of attempts so far.
    attempts: u32,
    /// When the state machine sent the command.
    since: Timestamp,
}

impl<S: ProviderStep> Commands<S> {
    /// Processes one message. `Err` leaves it in the queue and uses up one of its receives. This is for a message
    /// that is malformed or forged, or whose answer can't be sent now.
    pub async fn handle(
        &self,
        message: SqsMessage,
        deadline: Deadline,
        now: Timestamp,
    ) -> Result<(), String> {
        match self.attempt(&message, deadline, now).await {
            End::Answered | End::MovedOn => Ok(()),
            End::Later { sent, delay, reason } => {
                let body = message.body.as_deref().unwrap_or_default();
                self.put_back(body, sent, delay, &reason).await
            }
            End::Failed { reason, .. } => Err(reason),
        }
    }

    /// Processes one message that an operator replays. It is not sent back to the queue. The result says why
    /// the command did not complete.
    pub async fn replay(
        &self,
        message: &SqsMessage,
        deadline: Deadline,
        now: Timestamp,
    ) -> Replayed {
        match self.attempt(message, deadline, now).await {
            End::Answered => Replayed::Done,
            End::MovedOn => Replayed::moot(
                "the task of this command has ended, so it was not run; `fieldctl trace` shows its saga",
            ),
            End::Later { reason, .. } => Replayed::transient(reason),
            End::Failed { error, reason } => Replayed::failed(error, reason),
        }
    }

    async fn attempt(&self, message: &SqsMessage, deadline: Deadline, now: Timestamp) -> End {
        let body = message.body.as_deref().unwrap_or_default();
        let Message { task_token: token, execution, command } = match fault::decode(body) {
            Ok(message) => message,
            Err(error) => return End::failed(ErrorKind::InvalidInput.name(), error.to_string()),
        };
        let sent = Sent::of(message, now);
        let expired = self.has_expired(sent, now);
        let mut pass = None;
        let run = match fault::decode::<S::Command>(&command.to_string()) {
            Ok(decoded) => {
                if let Some(correlation) = S::correlation(&decoded) {
                    Span::current().record("correlationId", tracing::field::display(correlation));
                }
                match self.circuit.enter(now).await {
                    Entry::Pass(entered) => {
                        pass = Some(entered);
                        Ok(decoded)
                    }
                    Entry::Wait(_) if expired => {
                        Err((ErrorKind::Transient, CIRCUIT_OPEN.to_owned()))
                    }
                    Entry::Wait(delay) => {
                        return End::Later { sent, delay, reason: CIRCUIT_OPEN.to_owned() };
                    }
                }
            }
            Err(error) => Err((ErrorKind::InvalidInput, error.to_string())),
        };
        let limit = deadline.left().saturating_sub(QUEUE_MARGIN);
        let calls_end = Deadline::after(limit.saturating_sub(STEP_MARGIN));
        let work = async {
            match self.command(&token, execution.as_deref(), &command, run).await {
                Ok(command) => self.work(command, now, calls_end).await,
                Err(outcome) => (outcome, None),
            }
        };
        // The calls to the provider end before this limit. The limit is for slow calls to AWS, which must not use up
        // receives either.
        let (outcome, health) = tokio::time::timeout(limit, Box::pin(work))
            .await
            .unwrap_or_else(|_| (Outcome::Later("the function's time ran out".to_owned()), None));
        let end = match outcome {
            Outcome::Done(output) => End::answered(self.succeed(token, output).await),
            Outcome::Failed(ErrorKind::Transient, reason) | Outcome::Later(reason) if !expired => {
                let sent = Sent { attempts: sent.attempts + 1, ..sent };
                End::Later { sent, delay: delay(sent.attempts), reason }
            }
            Outcome::Failed(kind, cause) => End::answered(self.fail(token, kind, cause).await),
            Outcome::Later(reason) => End::failed(ErrorKind::Transient.name(), reason),
            Outcome::Refused(reason) => End::failed(REFUSED, reason),
            Outcome::MovedOn => {
                tracing::warn!("nobody waits for the answer any more: the command is not run");
                End::MovedOn
            }
        };
        if let Some(pass) = pass {
            self.circuit.left(pass, health).await;
        }
        end
    }

    /// Checks who sent the command. Returns `Err` if it must not run: its sender is not confirmed, its task has
    /// ended, or `run` is an error.
    async fn command(
        &self,
        token: &str,
        execution: Option<&str>,
        command: &Value,
        run: Result<S::Command, (ErrorKind, String)>,
    ) -> Result<S::Command, Outcome> {
        match proof::sender(&self.machine, token, execution, command).await {
            Ok(Sender::Waits) => run.map_err(|(kind, reason)| Outcome::Failed(kind, reason)),
            Ok(Sender::MovedOn) => Err(Outcome::MovedOn),
            Err(Unproven::Yet(reason)) => Err(Outcome::Later(reason)),
            Err(Unproven::Refused(reason)) => Err(Outcome::Refused(reason)),
        }
    }

    /// Runs the step.
    async fn work(
        &self,
        command: S::Command,
        now: Timestamp,
        calls_end: Deadline,
    ) -> (Outcome, Option<Health>) {
        let mut session = self.step.provider().session(Some(calls_end));
        let result = self.step.run_in(command, &mut session, now).await;
        let outcome = match result {
            Ok(reply) => match serde_json::to_string(&reply) {
                Ok(output) => Outcome::Done(output),
                Err(error) => Outcome::Refused(error.to_string()),
            },
            Err(fault) => Outcome::Failed(fault.kind(), fault.to_string()),
        };
        (outcome, session.into_health())
    }

    async fn succeed(&self, token: String, output: String) -> Result<(), String> {
        let success = self.machine.client.send_task_success().task_token(token).output(output);
        let sent = success.send().await;
        match sent {
            Ok(_) => Ok(()),
            Err(error) => {
                let code = error.as_service_error().and_then(ProvideErrorMetadata::code);
                unanswered(code, &fault::describe(&error))
            }
        }
    }

    async fn fail(&self, token: String, error: ErrorKind, cause: String) -> Result<(), String> {
        tracing::warn!(error = error.name(), reason = %cause, "answered with an error");
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
                unanswered(code, &fault::describe(&error))
            }
        }
    }

    /// Returns whether the state that sent the command has timed out by now.
    fn has_expired(&self, sent: Sent, now: Timestamp) -> bool {
        let age = u64::try_from(now.millis() - sent.since.millis()).unwrap_or(0);
        Duration::from_millis(age) > self.patience
    }

    /// Sends the command to its queue again, as a new message.
    async fn put_back(
        &self,
        body: &str,
        sent: Sent,
        delay: Duration,
        reason: &str,
    ) -> Result<(), String> {
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
            .map_err(|error| fault::describe(&error))
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

/// Returns the result of a failed call that answers a task. A task that has ended is a success: the saga has moved
/// on, its teardown undoes what was done, and the message need not be kept.
fn unanswered(code: Option<&str>, error: &impl std::fmt::Display) -> Result<(), String> {
    match code {
        Some(code @ ("TaskTimedOut" | "TaskDoesNotExist")) => {
            tracing::warn!(code, "nobody waits for the answer any more");
            Ok(())
        }
        _ => Err(format!("the answer can't be sent: {error}")),
    }
}

/// Returns the delay after a number of attempts: 2 s, 4 s, 8 s, ... up to five minutes.
fn delay(attempts: u32) -> Duration {
    Duration::from_secs(2_u64.saturating_pow(attempts)).min(LONGEST_DELAY)
}

/// Returns the delay in whole seconds, rounded up, and at most the longest that SQS allows.
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
    fn only_a_task_that_has_ended_makes_an_unsent_answer_a_success() {
        assert_eq!(unanswered(Some("TaskTimedOut"), &"x"), Ok(()));
        assert!(unanswered(Some("InvalidToken"), &"x").is_err());
        assert!(unanswered(Some("ThrottlingException"), &"x").is_err());
        assert!(unanswered(None, &"connection refused").is_err());
    }
}
