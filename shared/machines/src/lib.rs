//! Starting a state machine's execution: once, however often it is asked for.

use aws_sdk_sfn::{
    Client,
    error::{DisplayErrorContext, SdkError},
    operation::start_execution::StartExecutionError,
};
use lambda::{ErrorKind, Fault};

/// A state machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Step Functions.
    pub client: Client,
    /// Its ARN.
    pub arn: String,
}

/// What came of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// The execution runs.
    Now,
    /// It was started before.
    Before,
}

/// Why an execution was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Step Functions can't start it now.
    #[error("the execution can't be started now: {0}")]
    Transient(String),
    /// Step Functions refused, and would again.
    #[error("the execution can't be started: {0}")]
    Internal(String),
}

impl Fault for StartError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Transient(_) => ErrorKind::Transient,
            Self::Internal(_) => ErrorKind::Internal,
        }
    }
}

impl Machine {
    /// Starts the execution of that name; `input` is JSON. The name makes a second start a no-op, for
    /// 90 days after the execution's end.
    pub async fn start(&self, name: &str, input: String) -> Result<Started, StartError> {
        let started = self
            .client
            .start_execution()
            .state_machine_arn(&self.arn)
            .name(name)
            .input(input)
            .send()
            .await;
        let Err(error) = started else { return Ok(Started::Now) };
        match error.as_service_error() {
            Some(StartExecutionError::ExecutionAlreadyExists(_)) => Ok(Started::Before),
            _ => Err(classify(&error)),
        }
    }
}

fn classify(error: &SdkError<StartExecutionError>) -> StartError {
    let text = DisplayErrorContext(error).to_string();
    let passes = match error {
        SdkError::ServiceError(service) => {
            service.raw().status().as_u16() >= 500
                || matches!(
                    service.err().meta().code(),
                    Some("ThrottlingException" | "ExecutionLimitExceeded")
                )
        }
        SdkError::ConstructionFailure(_) => false,
        _ => true,
    };
    if passes { StartError::Transient(text) } else { StartError::Internal(text) }
}
