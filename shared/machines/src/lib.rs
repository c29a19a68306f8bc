//! Starts executions of a state machine, with the execution's name as the idempotency key. Reads executions: their
//! status, progress and input.

mod history;

use aws_sdk_sfn::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    operation::{
        describe_execution::{DescribeExecutionError, DescribeExecutionOutput},
        start_execution::StartExecutionError,
    },
    primitives::DateTime,
    types::ExecutionStatus,
};
use contracts::Timestamp;
use fault::{AwsErrorKind, ErrorKind, Fault};

pub use history::{History, Task, TaskFailure, events};

/// The number of last events that are read to find the current state. It is sufficient, because a state has at most
/// nine attempts with four events each.
const LAST_EVENTS: i32 = 100;

/// A state machine.
#[derive(Clone, Debug)]
pub struct StateMachine {
    /// The client of Step Functions.
    pub client: Client,
    /// The state machine's ARN.
    pub arn: String,
}

/// The result of starting an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartResult {
    /// This call started the execution, or an earlier call with the same input started it and it is still running. Step
    /// Functions gives both calls the same response.
    Started,
    /// An earlier call started the execution.
    AlreadyStarted,
}

/// A running execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningExecution {
    /// The execution's ARN.
    pub arn: String,
    /// When the execution started.
    pub since: Timestamp,
}

/// The progress of an execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutionProgress {
    /// The state that was entered last. `None` if the execution failed before it entered any.
    pub state: Option<String>,
    /// When the last event happened.
    pub at: Timestamp,
}

/// An execution, as Step Functions describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutionDetails {
    /// Whether the execution is still running.
    pub running: bool,
    /// The execution's input, as JSON.
    pub input: String,
}

/// An error of a call to Step Functions.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The call failed, and a retry may succeed.
    #[error("Step Functions is temporarily unavailable: {0}")]
    Transient(String),
    /// The call failed, and a retry would fail too.
    #[error("Step Functions refused the call: {0}")]
    Internal(String),
}

impl Fault for MachineError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Transient(_) => ErrorKind::Transient,
            Self::Internal(_) => ErrorKind::Internal,
        }
    }
}

impl StateMachine {
    /// Starts the execution with the given name. `input` is JSON. A second start with the same name does nothing,
    /// until 90 days after the execution's end.
    pub async fn start(&self, name: &str, input: String) -> Result<StartResult, MachineError> {
        let started = self
            .client
            .start_execution()
            .state_machine_arn(&self.arn)
            .name(name)
            .input(input)
            .send()
            .await;
        let Err(error) = started else { return Ok(StartResult::Started) };
        match error.as_service_error() {
            Some(StartExecutionError::ExecutionAlreadyExists(_)) => Ok(StartResult::AlreadyStarted),
            _ => Err(error.into()),
        }
    }

    /// Returns a page of the running executions, newest first, and the token of the next page.
    pub async fn running(
        &self,
        page: Option<String>,
    ) -> Result<(Vec<RunningExecution>, Option<String>), MachineError> {
        let listed = self
            .client
            .list_executions()
            .state_machine_arn(&self.arn)
            .status_filter(ExecutionStatus::Running)
            .set_next_token(page)
            .send()
            .await?;
        let running = listed.executions.into_iter().map(|execution| RunningExecution {
            arn: execution.execution_arn,
            since: timestamp(execution.start_date),
        });
        Ok((running.collect(), listed.next_token))
    }

    /// Returns the progress of an execution. The execution may have ended.
    pub async fn progress(&self, execution: &str) -> Result<ExecutionProgress, MachineError> {
        let history = self
            .client
            .get_execution_history()
            .execution_arn(execution)
            .reverse_order(true)
            .max_results(LAST_EVENTS)
            .include_execution_data(false)
            .send()
            .await?;
        let last = history.events.first().map(|event| timestamp(event.timestamp));
        let entered =
            history.events.into_iter().find_map(|event| event.state_entered_event_details);
        Ok(ExecutionProgress {
            state: entered.map(|state| state.name),
            at: last.ok_or_else(|| {
                MachineError::Internal(format!("the execution has no history: {execution}"))
            })?,
        })
    }

    /// Returns whether the ARN is that of an execution of this state machine. Compares only the ARNs, without a call.
    #[must_use]
    pub fn owns(&self, execution: &str) -> bool {
        let executions = self.arn.replacen(":stateMachine:", ":execution:", 1);
        let name = execution.strip_prefix(&executions).and_then(|rest| rest.strip_prefix(':'));
        executions != self.arn && name.is_some_and(|name| !name.is_empty() && !name.contains(':'))
    }

    /// Describes an execution. Returns `None` if there is no execution with that ARN. The response is eventually
    /// consistent: an execution that has just started may not be found yet.
    pub async fn describe(
        &self,
        execution: &str,
    ) -> Result<Option<ExecutionDetails>, MachineError> {
        let Some(described) = describe(&self.client, execution).await? else { return Ok(None) };
        let running = described.status == ExecutionStatus::Running;
        let input = described.input;
        let input = input.ok_or_else(|| {
            MachineError::Internal(format!("the execution has no input: {execution}"))
        })?;
        Ok(Some(ExecutionDetails { running, input }))
    }

    /// Returns the input of the execution, as JSON.
    pub async fn input(&self, execution: &str) -> Result<String, MachineError> {
        let described = self.describe(execution).await?;
        let input = described.map(|described| described.input);
        input.ok_or_else(|| MachineError::Internal(format!("no such execution: {execution}")))
    }
}

/// Calls `DescribeExecution`. Returns `None` if there is no execution with that ARN.
pub async fn describe(
    client: &Client,
    execution: &str,
) -> Result<Option<DescribeExecutionOutput>, SdkError<DescribeExecutionError>> {
    match client.describe_execution().execution_arn(execution).send().await {
        Ok(described) => Ok(Some(described)),
        Err(error) => match error.as_service_error() {
            Some(DescribeExecutionError::ExecutionDoesNotExist(_)) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Converts a time of Step Functions to a timestamp with milliseconds.
#[must_use]
pub fn timestamp(time: DateTime) -> Timestamp {
    Timestamp::from_millis(time.to_millis().unwrap_or(i64::MAX))
}

impl<E> From<SdkError<E>> for MachineError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    fn from(error: SdkError<E>) -> Self {
        let text = fault::describe(&error);
        if AwsErrorKind::classify(&error).is_transient() {
            Self::Transient(text)
        } else {
            Self::Internal(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_owns_only_its_own_executions() {
        let client = Client::from_conf(
            aws_sdk_sfn::Config::builder()
                .behavior_version(aws_sdk_sfn::config::BehaviorVersion::latest())
                .build(),
        );
        let arn = |arn: &str| format!("arn:aws:states:eu-central-1:111122223333:{arn}");
        let teardown = StateMachine { client, arn: arn("stateMachine:teardown") };
        assert!(teardown.owns(&arn("execution:teardown:recovery-1")));
        for other in [
            arn("execution:onboarding:1"),
            arn("execution:teardown2:1"),
            arn("execution:teardown:"),
            arn("execution:teardown"),
            arn("execution:teardown:1:2"),
            arn("stateMachine:teardown"),
            arn("stateMachine:teardown:1"),
            arn("execution:teardown:1").replace("1111", "2222"),
            String::new(),
        ] {
            assert!(!teardown.owns(&other), "{other}");
        }
    }

    #[test]
    fn a_call_that_can_not_be_constructed_is_not_retried() {
        let error = SdkError::<StartExecutionError>::construction_failure("no such region");
        assert_eq!(MachineError::from(error).kind(), ErrorKind::Internal);
        let error = SdkError::<StartExecutionError>::timeout_error("too slow");
        assert_eq!(MachineError::from(error).kind(), ErrorKind::Transient);
    }
}
