//! Sends failed work back to the entry that it came from: a function or a state machine.

use std::{fmt, time::Duration};

use aws_config::{retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_lambda::primitives::Blob;
use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use contracts::{
    names::{self, LIVE},
    replay::ReplayEvent,
    saga::STEPS,
};
use fault::{AwsErrorKind, Replayed};
use ledger::{ErrorInfo, FailureId, FailureRow, Kind};
use serde_json::{Value, json};

use crate::{
    error::{CliError, Exit},
    stack::Stack,
};

/// The maximum time that a function may run.
const LONGEST_RUN: Duration = Duration::from_mins(15);
/// The pauses before a busy entry is tried again. A busy entry has not accepted the work.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_millis(800),
    Duration::from_secs(3),
    Duration::from_secs(10),
];

/// The entry that failed work is sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A function. The call returns the outcome.
    Function {
        /// The function's name without the environment.
        name: String,
        /// The form in which the function gets the work.
        form: Form,
    },
    /// A state machine, which gets a new execution.
    Machine,
}

/// The form in which a function gets work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The work is the event.
    Event,
    /// The work is a record of a stream. The event is a replay of the record.
    Record,
    /// The work is the body of a queue's message. The event is a replay of the message.
    Message,
}

impl Entry {
    /// Returns the entry that such a failure came from. `None` if it can't be replayed.
    #[must_use]
    pub fn of(kind: Kind, source: &str) -> Option<Self> {
        let function = |form| Self::Function { name: source.to_owned(), form };
        match kind {
            Kind::FunctionFailed | Kind::NotDelivered => Some(function(Form::Event)),
            Kind::Quarantined | Kind::GivenUp => Some(function(Form::Record)),
            Kind::DeadLetter => Some(function(Form::Message)),
            Kind::ExecutionFailed => Some(Self::Machine),
            Kind::Unreadable => None,
        }
    }
}

/// Returns whether a replay of this source's work undoes a site: it starts the site's teardown, or is a part of it.
#[must_use]
pub fn undoes(source: &str) -> bool {
    [names::SITE_TEARDOWN, "recover-onboarding"].contains(&source)
        || STEPS.iter().any(|step| step.undo_function() == source)
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function { name, form } => {
                let form = match form {
                    Form::Event => "",
                    Form::Record => ", as one record",
                    Form::Message => ", as one message",
                };
                write!(f, "{name}:{LIVE}{form}")
            }
            Self::Machine => write!(f, "{}, a new execution", names::SITE_TEARDOWN),
        }
    }
}

/// The result of sending work.
#[derive(Debug)]
pub enum Sent {
    /// The work was done.
    Done,
    /// There was nothing left to do. Holds the reason.
    Moot(String),
    /// The execution with this ARN was started.
    Started(String),
    /// The work failed again.
    Failed(ErrorInfo),
    /// There was no answer, so the work may have been done or not. Holds the reason.
    InDoubt(String),
    /// The work was not sent: there is no such function or state machine.
    Missing(CliError),
    /// The work was not sent, and no other work can be sent either.
    Not(CliError),
}

/// Sends failed work to a stack.
#[derive(Debug)]
pub struct Resend<'a> {
    stack: &'a Stack,
    lambda: aws_sdk_lambda::Client,
    machines: aws_sdk_sfn::Client,
}

impl<'a> Resend<'a> {
    /// Creates the clients. They do not retry, so that nothing is sent twice.
    #[must_use]
    pub fn new(stack: &'a Stack) -> Self {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(5))
            .operation_attempt_timeout(LONGEST_RUN)
            .build();
        let config = stack.config().to_builder();
        let config = config.retry_config(RetryConfig::disabled()).timeout_config(timeouts).build();
        Self {
            stack,
            lambda: aws_sdk_lambda::Client::new(&config),
            machines: aws_sdk_sfn::Client::new(&config),
        }
    }

    /// Sends the work of a claimed failure. Sends it again only if the entry was busy and did not accept it.
    pub async fn send(&self, entry: &Entry, row: &FailureRow, payload: &str) -> Sent {
        for pause in PAUSES {
            match self.once(entry, row, payload).await {
                Ok(sent) => return sent,
                Err(_busy) => tokio::time::sleep(pause).await,
            }
        }
        self.once(entry, row, payload).await.unwrap_or_else(|busy| {
            Sent::Not(CliError::new(Exit::Aws, format!("{entry} is too busy: {busy}")))
        })
    }

    /// Sends the work once. Returns `Err` if the entry was busy and did not accept it.
    async fn once(&self, entry: &Entry, row: &FailureRow, payload: &str) -> Result<Sent, String> {
        match entry {
            Entry::Function { name, form } => {
                let event = match form {
                    Form::Event => Ok(payload.to_owned()),
                    Form::Record => replay(payload),
                    Form::Message => replay(&message(row.id, payload).to_string()),
                };
                let event = match event {
                    Ok(event) => event,
                    Err(error) => {
                        let message =
                            format!("the payload of failure {} is no JSON: {error}", row.id);
                        return Ok(Sent::Not(CliError::new(Exit::Failed, message)));
                    }
                };
                let call = self.lambda.invoke().function_name(self.stack.named(name));
                match call.qualifier(LIVE).payload(Blob::new(event)).send().await {
                    Ok(answer) => {
                        let told = answer.payload().map_or(&[][..], |payload| payload.as_ref());
                        Ok(outcome(*form, answer.function_error(), told))
                    }
                    Err(error) => failure(entry, &error),
                }
            }
            Entry::Machine => {
                let name = row.execution_name();
                let arn = self.stack.execution_arn(names::SITE_TEARDOWN, &name);
                let machine = self.stack.machine_arn(names::SITE_TEARDOWN);
                let start = self.machines.start_execution().state_machine_arn(machine);
                match start.name(name).input(payload).send().await {
                    Ok(_) => Ok(Sent::Started(arn)),
                    Err(error) if error.code() == Some("ExecutionAlreadyExists") => {
                        Ok(Sent::Started(arn))
                    }
                    Err(error) => failure(entry, &error),
                }
            }
        }
    }
}

/// Returns the event that replays a record or a message.
fn replay(work: &str) -> Result<String, serde_json::Error> {
    serde_json::to_string(&ReplayEvent { replay: serde_json::from_str(work)? })
}

/// Returns a message with that body in SQS's format. It has no `SentTimestamp`, so the function treats the
/// command as sent at the time of the replay.
fn message(id: FailureId, body: &str) -> Value {
    json!({
        "messageId": id,
        "body": body,
        "attributes": {},
        "messageAttributes": {},
        "eventSource": "aws:sqs",
    })
}

/// Reads the answer of a function. An event is done if the function did not fail. The replay of a record or
/// a message is done only if the answer says so.
fn outcome(form: Form, function_error: Option<&str>, answer: &[u8]) -> Sent {
    let told: Value = serde_json::from_slice(answer).unwrap_or_default();
    let text = |name: &str| told[name].as_str();
    if let Some(error) = function_error {
        let name = text("errorType").unwrap_or(error);
        let message = text("errorMessage").unwrap_or("the function gave no reason");
        return Sent::Failed(ErrorInfo::new(name, message));
    }
    if form == Form::Event {
        return Sent::Done;
    }
    match serde_json::from_value(told) {
        Ok(Replayed::Done) => Sent::Done,
        Ok(Replayed::Moot { message }) => Sent::Moot(message),
        Ok(Replayed::Failed { error, message }) => Sent::Failed(ErrorInfo::new(&error, &message)),
        Err(_) => Sent::InDoubt("the function answered without an outcome".to_owned()),
    }
}

/// Returns the outcome of a failed call. Returns `Err` if the entry was busy and did not accept the work.
fn failure<E>(entry: &Entry, error: &SdkError<E, HttpResponse>) -> Result<Sent, String>
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
{
    let said = match error.message() {
        Some(message) => format!("{}: {message}", error.code().unwrap_or_default()),
        None => fault::describe(error),
    };
    if matches!(error.code(), Some("ResourceNotFoundException" | "StateMachineDoesNotExist")) {
        let missing = match entry {
            Entry::Function { name, .. } => format!("function {name} with the alias {LIVE}"),
            Entry::Machine => format!("state machine {}", names::SITE_TEARDOWN),
        };
        return Ok(Sent::Missing(CliError::not_found(format!("there is no {missing}"))));
    }
    match AwsErrorKind::classify(error) {
        AwsErrorKind::Busy => Err(said),
        AwsErrorKind::NoAnswer => Ok(Sent::InDoubt(said)),
        AwsErrorKind::Credentials | AwsErrorKind::Denied | AwsErrorKind::Refused => {
            let message = format!("{entry} refused the work, so nothing more was sent: {said}");
            let trouble =
                CliError::new(Exit::Aws, message).advise("correct that, then replay again");
            Ok(Sent::Not(trouble))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_failure_is_sent_to_its_entry() {
        let shown = |kind, source| Entry::of(kind, source).map(|entry| entry.to_string());
        let is =
            |kind, source, entry: &str| assert_eq!(shown(kind, source).as_deref(), Some(entry));
        is(Kind::FunctionFailed, "import-site", "import-site:live");
        is(Kind::NotDelivered, "project-site", "project-site:live");
        is(Kind::DeadLetter, "cancel-subscription", "cancel-subscription:live, as one message");
        is(Kind::Quarantined, "store-readings", "store-readings:live, as one record");
        is(Kind::ExecutionFailed, "site-teardown", "site-teardown, a new execution");
        assert_eq!(Entry::of(Kind::Unreadable, "import-site"), None);
    }

    #[test]
    fn a_function_fails_by_its_error_or_by_its_outcome() {
        let error = br#"{"errorType":"InvalidInput","errorMessage":"name: is empty"}"#;
        let failed = |sent| match sent {
            Sent::Failed(ErrorInfo { name, message, .. }) => Some((name, message)),
            _ => None,
        };
        let is = |name: &str, message: &str| Some((name.to_owned(), message.to_owned()));
        for form in [Form::Event, Form::Record, Form::Message] {
            let sent = outcome(form, Some("Unhandled"), error);
            assert_eq!(failed(sent), is("InvalidInput", "name: is empty"));
            assert!(failed(outcome(form, Some("Unhandled"), b"")).is_some());
        }
        let again = br#"{"outcome":"FAILED","error":"UnknownSensor","message":"no"}"#;
        assert_eq!(failed(outcome(Form::Record, None, again)), is("UnknownSensor", "no"));
        assert!(matches!(outcome(Form::Record, None, br#"{"outcome":"DONE"}"#), Sent::Done));
        assert!(matches!(outcome(Form::Event, None, b"null"), Sent::Done));
    }

    #[test]
    fn an_answer_without_an_outcome_is_not_a_success() {
        for answer in [&br#"{"batchItemFailures":[]}"#[..], b"null", b"", br#"{"outcome":"?"}"#] {
            for form in [Form::Record, Form::Message] {
                assert!(matches!(outcome(form, None, answer), Sent::InDoubt(_)), "{answer:?}");
            }
        }
    }
}
