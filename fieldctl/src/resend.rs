//! Sends failed work back to the target that it came from: a function or a state machine.

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
use fault::{AwsErrorKind, ReplayResponse};
use ledger::{ErrorInfo, FailureId, FailureRow, Kind, sources::RECOVER_ONBOARDING};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::{
    error::{CliError, Exit},
    stack::Stack,
};

/// The maximum duration of a function's invocation.
const MAX_FUNCTION_DURATION: Duration = Duration::from_mins(15);
/// The delays before the retries of a throttled call. A throttled target has not accepted the work.
const RETRY_DELAYS: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_millis(800),
    Duration::from_secs(3),
    Duration::from_secs(10),
];

/// Where failed work is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayTarget {
    /// A function. The call returns the outcome.
    Function {
        /// The function's name without the environment.
        name: String,
        /// The form in which the function gets the work.
        form: PayloadForm,
    },
    /// A state machine, which gets a new execution.
    Machine,
}

/// The form in which a function gets work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadForm {
    /// The function's event is the work itself.
    Event,
    /// The work is a record of a stream. The function's event is a [`ReplayEvent`] with this record.
    Record,
    /// The work is the body of a queue's message. The function's event is a [`ReplayEvent`] with this message.
    Message,
}

impl ReplayTarget {
    /// Returns the target for failures of this kind and source. Returns `None` if they can't be replayed.
    #[must_use]
    pub fn of_failure(kind: Kind, source: &str) -> Option<Self> {
        let function = |form| Self::Function { name: source.to_owned(), form };
        match kind {
            Kind::FunctionFailed | Kind::NotDelivered => Some(function(PayloadForm::Event)),
            Kind::Quarantined | Kind::GivenUp => Some(function(PayloadForm::Record)),
            Kind::DeadLetter => Some(function(PayloadForm::Message)),
            Kind::ExecutionFailed => Some(Self::Machine),
            Kind::Unreadable => None,
        }
    }

    /// Returns the function's event, or the input of the execution.
    fn input(&self, id: FailureId, payload: &str) -> Result<String, serde_json::Error> {
        match self {
            Self::Machine | Self::Function { form: PayloadForm::Event, .. } => {
                // Lambda and Step Functions would refuse a payload that is not JSON, and a refused call ends the run.
                serde_json::from_str::<IgnoredAny>(payload).map(|_| payload.to_owned())
            }
            Self::Function { form: PayloadForm::Record, .. } => replay(payload),
            Self::Function { form: PayloadForm::Message, .. } => {
                replay(&message(id, payload).to_string())
            }
        }
    }
}

/// Returns whether replaying work of this source undoes a site: the work starts a teardown, or is a part of one.
#[must_use]
pub fn undoes(source: &str) -> bool {
    [names::SITE_TEARDOWN, RECOVER_ONBOARDING].contains(&source)
        || STEPS.iter().any(|step| step.undo_function() == source)
}

impl fmt::Display for ReplayTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function { name, form } => {
                let form = match form {
                    PayloadForm::Event => "",
                    PayloadForm::Record => ", as one record",
                    PayloadForm::Message => ", as one message",
                };
                write!(f, "{name}:{LIVE}{form}")
            }
            Self::Machine => write!(f, "{}, a new execution", names::SITE_TEARDOWN),
        }
    }
}

/// The result of sending work.
#[derive(Debug)]
pub enum SendOutcome {
    /// The work was done.
    Done,
    /// There was nothing left to do. Holds the reason.
    Moot(String),
    /// The execution with this ARN was started.
    Started(String),
    /// The work failed again.
    Failed(ErrorInfo),
    /// There was no response, so the work may have been done or not. Holds the reason.
    InDoubt(String),
    /// The work was not sent: its payload is not JSON, or there is no such function or state machine. Other work can be
    /// sent. Holds the reason.
    Impossible(String),
    /// The work was not sent, and no other work can be sent either.
    NotSent(CliError),
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
            .operation_attempt_timeout(MAX_FUNCTION_DURATION)
            .build();
        let config = stack.config().to_builder();
        let config = config.retry_config(RetryConfig::disabled()).timeout_config(timeouts).build();
        Self {
            stack,
            lambda: aws_sdk_lambda::Client::new(&config),
            machines: aws_sdk_sfn::Client::new(&config),
        }
    }

    /// Sends the work of a claimed failure. Sends it again only if the target throttled the call and did not accept it.
    pub async fn send(
        &self,
        target: &ReplayTarget,
        row: &FailureRow,
        payload: &str,
    ) -> SendOutcome {
        for delay in RETRY_DELAYS {
            match self.send_once(target, row, payload).await {
                Ok(sent) => return sent,
                Err(_throttled) => tokio::time::sleep(delay).await,
            }
        }
        self.send_once(target, row, payload).await.unwrap_or_else(|reason| {
            SendOutcome::NotSent(CliError::new(
                Exit::Aws,
                format!("{target} is throttled: {reason}"),
            ))
        })
    }

    /// Sends the work once. Returns `Err` if the target throttled the call and did not accept it.
    async fn send_once(
        &self,
        target: &ReplayTarget,
        row: &FailureRow,
        payload: &str,
    ) -> Result<SendOutcome, String> {
        let Ok(input) = target.input(row.id, payload) else {
            return Ok(SendOutcome::Impossible("the payload is not JSON".to_owned()));
        };
        match target {
            ReplayTarget::Function { name, form } => {
                let call = self.lambda.invoke().function_name(self.stack.named(name));
                match call.qualifier(LIVE).payload(Blob::new(input)).send().await {
                    Ok(response) => {
                        let body = response.payload().map_or(&[][..], |payload| payload.as_ref());
                        Ok(function_outcome(*form, response.function_error(), body))
                    }
                    Err(error) => call_failure(target, &error),
                }
            }
            ReplayTarget::Machine => {
                let name = row.execution_name();
                let arn = self.stack.execution_arn(names::SITE_TEARDOWN, &name);
                let machine = self.stack.machine_arn(names::SITE_TEARDOWN);
                let start = self.machines.start_execution().state_machine_arn(machine);
                match start.name(name).input(input).send().await {
                    Ok(_) => Ok(SendOutcome::Started(arn)),
                    Err(error) if error.code() == Some("ExecutionAlreadyExists") => {
                        Ok(SendOutcome::Started(arn))
                    }
                    Err(error) => call_failure(target, &error),
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

/// Reads the response of a function. An event is done if the function did not fail. The replay of a record or
/// a message is done only if the response says so.
fn function_outcome(
    form: PayloadForm,
    function_error: Option<&str>,
    response: &[u8],
) -> SendOutcome {
    let response: Value = serde_json::from_slice(response).unwrap_or_default();
    let text = |name: &str| response[name].as_str();
    if let Some(error) = function_error {
        let name = text("errorType").unwrap_or(error);
        let message = text("errorMessage").unwrap_or("the function gave no reason");
        return SendOutcome::Failed(ErrorInfo::new(name, message));
    }
    if form == PayloadForm::Event {
        return SendOutcome::Done;
    }
    match serde_json::from_value(response) {
        Ok(ReplayResponse::Done) => SendOutcome::Done,
        Ok(ReplayResponse::NothingToDo { message }) => SendOutcome::Moot(message),
        Ok(ReplayResponse::Failed { error, message }) => {
            SendOutcome::Failed(ErrorInfo::new(&error, &message))
        }
        Err(_) => SendOutcome::InDoubt("the function's response contains no outcome".to_owned()),
    }
}

/// Returns the outcome of a failed call. Returns `Err` if the target throttled the call and did not accept the work.
fn call_failure<E>(
    target: &ReplayTarget,
    error: &SdkError<E, HttpResponse>,
) -> Result<SendOutcome, String>
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
{
    let reason = match error.message() {
        Some(message) => format!("{}: {message}", error.code().unwrap_or_default()),
        None => fault::describe(error),
    };
    if matches!(error.code(), Some("ResourceNotFoundException" | "StateMachineDoesNotExist")) {
        let missing = match target {
            ReplayTarget::Function { name, .. } => format!("function {name} with the alias {LIVE}"),
            ReplayTarget::Machine => format!("state machine {}", names::SITE_TEARDOWN),
        };
        return Ok(SendOutcome::Impossible(format!("there is no {missing}")));
    }
    match AwsErrorKind::classify(error) {
        AwsErrorKind::Busy => Err(reason),
        AwsErrorKind::NoResponse => Ok(SendOutcome::InDoubt(reason)),
        AwsErrorKind::Credentials | AwsErrorKind::Denied | AwsErrorKind::Refused => {
            let message =
                format!("{target} refused the call, so no further failures were sent: {reason}");
            let error = CliError::new(Exit::Aws, message)
                .advise("fix the cause, then run the replay again");
            Ok(SendOutcome::NotSent(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_failure_is_sent_to_its_target() {
        let shown =
            |kind, source| ReplayTarget::of_failure(kind, source).map(|target| target.to_string());
        let assert_target =
            |kind, source, target: &str| assert_eq!(shown(kind, source).as_deref(), Some(target));
        assert_target(Kind::FunctionFailed, "import-site", "import-site:live");
        assert_target(Kind::NotDelivered, "project-site", "project-site:live");
        assert_target(
            Kind::DeadLetter,
            "cancel-subscription",
            "cancel-subscription:live, as one message",
        );
        assert_target(Kind::Quarantined, "store-readings", "store-readings:live, as one record");
        assert_target(Kind::ExecutionFailed, "site-teardown", "site-teardown, a new execution");
        assert_eq!(ReplayTarget::of_failure(Kind::Unreadable, "import-site"), None);
    }

    #[test]
    fn a_function_fails_by_its_error_or_by_its_outcome() {
        let error = br#"{"errorType":"InvalidInput","errorMessage":"name: is empty"}"#;
        let failed = |sent| match sent {
            SendOutcome::Failed(ErrorInfo { name, message, .. }) => Some((name, message)),
            _ => None,
        };
        let is = |name: &str, message: &str| Some((name.to_owned(), message.to_owned()));
        for form in [PayloadForm::Event, PayloadForm::Record, PayloadForm::Message] {
            let sent = function_outcome(form, Some("Unhandled"), error);
            assert_eq!(failed(sent), is("InvalidInput", "name: is empty"));
            assert!(failed(function_outcome(form, Some("Unhandled"), b"")).is_some());
        }
        let again = br#"{"outcome":"FAILED","error":"UnknownSensor","message":"no"}"#;
        assert_eq!(
            failed(function_outcome(PayloadForm::Record, None, again)),
            is("UnknownSensor", "no")
        );
        assert!(matches!(
            function_outcome(PayloadForm::Record, None, br#"{"outcome":"DONE"}"#),
            SendOutcome::Done
        ));
        assert!(matches!(function_outcome(PayloadForm::Event, None, b"null"), SendOutcome::Done));
    }

    #[test]
    fn a_response_without_an_outcome_is_not_a_success() {
        for response in [&br#"{"batchItemFailures":[]}"#[..], b"null", b"", br#"{"outcome":"?"}"#] {
            for form in [PayloadForm::Record, PayloadForm::Message] {
                assert!(
                    matches!(function_outcome(form, None, response), SendOutcome::InDoubt(_)),
                    "{response:?}"
                );
            }
        }
    }
}
