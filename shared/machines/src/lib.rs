//! Starting a state machine's execution, once, however often it is asked for; and looking at
//! executions: which run, how far each came, what it was started with.

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

/// Events of a history that are sure to hold the entering of the current state: the most tries that
/// a state has, nine, take four events each.
const LAST_EVENTS: i32 = 100;

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

/// An execution that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its ARN.
    pub arn: String,
    /// Since when.
    pub since: Timestamp,
}

/// How far an execution came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The state that was entered last; none where the execution broke before it entered any.
    pub state: Option<String>,
    /// When something last happened.
    pub at: Timestamp,
}

/// An execution, as Step Functions describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Whether it still runs.
    pub running: bool,
    /// What it was started with: JSON.
    pub input: String,
}

/// Why Step Functions did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// It can't now.
    #[error("Step Functions can't answer now: {0}")]
    Transient(String),
    /// It refused, and would again.
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

impl Machine {
    /// Starts the execution of that name; `input` is JSON. The name makes a second start a no-op, for
    /// 90 days after the execution's end.
    pub async fn start(&self, name: &str, input: String) -> Result<Started, MachineError> {
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
            _ => Err(error.into()),
        }
    }

    /// A page of the executions that run, the newest first, and the token of the next page.
    pub async fn running(
        &self,
        page: Option<String>,
    ) -> Result<(Vec<Running>, Option<String>), MachineError> {
        let listed = self
            .client
            .list_executions()
            .state_machine_arn(&self.arn)
            .status_filter(ExecutionStatus::Running)
            .set_next_token(page)
            .send()
            .await?;
        let running = listed.executions.into_iter().map(|execution| Running {
            arn: execution.execution_arn,
            since: timestamp(execution.start_date),
        });
        Ok((running.collect(), listed.next_token))
    }

    /// How far the execution came, or got before it ended.
    pub async fn progress(&self, execution: &str) -> Result<Progress, MachineError> {
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
        Ok(Progress {
            state: entered.map(|state| state.name),
            at: last.ok_or_else(|| MachineError::Internal(format!("no history: {execution}")))?,
        })
    }

    /// Whether the ARN is that of an execution of this state machine. Nothing is looked up.
    #[must_use]
    pub fn owns(&self, execution: &str) -> bool {
        let executions = self.arn.replacen(":stateMachine:", ":execution:", 1);
        let name = execution.strip_prefix(&executions).and_then(|rest| rest.strip_prefix(':'));
        executions != self.arn && name.is_some_and(|name| !name.is_empty() && !name.contains(':'))
    }

    /// Describes an execution; `None` if there is no execution with that ARN. The answer is eventually
    /// consistent: an execution that has just started may not be found yet.
    pub async fn describe(&self, execution: &str) -> Result<Option<Described>, MachineError> {
        let Some(described) = describe(&self.client, execution).await? else { return Ok(None) };
        let running = described.status == ExecutionStatus::Running;
        let input = described.input;
        let input =
            input.ok_or_else(|| MachineError::Internal(format!("no input: {execution}")))?;
        Ok(Some(Described { running, input }))
    }

    /// What the execution was started with: JSON.
    pub async fn input(&self, execution: &str) -> Result<String, MachineError> {
        let described = self.describe(execution).await?;
        let input = described.map(|described| described.input);
        input.ok_or_else(|| MachineError::Internal(format!("no such execution: {execution}")))
    }
}

/// What Step Functions says about an execution; `None` if there is no execution with that ARN.
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

/// Step Functions' time, to the millisecond.
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
        if AwsErrorKind::of(&error).is_transient() {
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
    fn a_machine_owns_its_own_executions_only() {
        let client = Client::from_conf(
            aws_sdk_sfn::Config::builder()
                .behavior_version(aws_sdk_sfn::config::BehaviorVersion::latest())
                .build(),
        );
        let arn = |arn: &str| format!("arn:aws:states:eu-central-1:111122223333:{arn}");
        let teardown = Machine { client, arn: arn("stateMachine:teardown") };
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
    fn a_call_that_can_not_be_made_will_not_be_later() {
        let error = SdkError::<StartExecutionError>::construction_failure("no such region");
        assert_eq!(MachineError::from(error).kind(), ErrorKind::Internal);
        let error = SdkError::<StartExecutionError>::timeout_error("too slow");
        assert_eq!(MachineError::from(error).kind(), ErrorKind::Transient);
    }
}
