//! Starts one teardown after an onboarding ended without success and was not completely undone, or after a teardown was
//! stopped.
//!
//! A teardown undoes everything that may exist, and does not depend on how far the saga got. It is harmless if the
//! saga's own teardown is still running or has run. A site that was already ACTIVE when its onboarding was stopped
//! becomes REJECTED, because the onboarding was not completed.

use aws_lambda_events::eventbridge::EventBridgeEvent;
use contracts::{
    OnboardingFailure, OnboardingId, SagaContext, Timestamp,
    saga::{ONBOARDING_FAILED, TeardownInput},
};
use fault::InvalidInput;
use lambda::Step;
use machines::{StartResult, StateMachine};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::OnboardingError;

/// The maximum number of recoveries in a row. After that many were stopped, this function starts no other: somebody is
/// stopping them on purpose.
const MAX_RECOVERIES: u32 = 3;

/// The dependencies of the function `recover-onboarding`.
#[derive(Debug)]
pub struct RecoverOnboarding {
    /// The state machine `site-onboarding`.
    pub onboarding: StateMachine,
    /// The state machine `site-teardown`.
    pub teardown: StateMachine,
}

/// The part of the `detail` of Step Functions' event "Execution Status Change" that is used here.
///
/// It has no `Debug`, because the input contains the payment method.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndedExecution {
    /// The ARN of the execution.
    pub execution_arn: String,
    /// The ARN of its state machine.
    pub state_machine_arn: String,
    /// The name of the execution.
    pub name: String,
    /// The status in which it ended.
    pub status: EndStatus,
    /// The input of the execution, as JSON. Absent if the event would be too large with it.
    pub input: Option<String>,
    /// The name of the error of a failed execution.
    pub error: Option<String>,
    /// The cause that the Fail state reported.
    pub cause: Option<String>,
}

/// The part of the cause of `CompensationIncomplete` that is used here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Incomplete {
    onboarding_failure: OnboardingFailure,
}

/// The status of an execution that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EndStatus {
    /// It ended in a Fail state, or with an error that was not caught.
    Failed,
    /// It exceeded the timeout of the whole execution.
    TimedOut,
    /// It was stopped.
    Aborted,
}

/// The result of the invocation. The call is asynchronous, so Lambda discards it; only tests read it.
#[derive(Debug, PartialEq, Serialize)]
pub enum Reply {
    /// A teardown was started.
    Started,
    /// The teardown was started before.
    Already,
    /// No recovery is necessary: everything was undone, or a teardown failed by itself. A failed teardown has its own
    /// alarm.
    NotNeeded,
}

impl Step for RecoverOnboarding {
    type Command = EventBridgeEvent<EndedExecution>;
    type Reply = Reply;
    type Error = OnboardingError;

    fn correlation(command: &Self::Command) -> Option<OnboardingId> {
        let saga: SagaContext = fault::decode(command.detail.input.as_deref()?).ok()?;
        Some(saga.onboarding_id)
    }

    async fn run(&self, command: Self::Command, _: Timestamp) -> Result<Reply, OnboardingError> {
        let ended = command.detail;
        let recovery = if ended.state_machine_arn == self.onboarding.arn {
            self.after_onboarding(&ended).await?
        } else if ended.state_machine_arn == self.teardown.arn {
            self.after_teardown(&ended).await?
        } else {
            return Err(OnboardingError::Invalid(InvalidInput {
                at: "detail.stateMachineArn".to_owned(),
                problem: format!("{} is not a state machine of the saga", ended.state_machine_arn),
            }));
        };
        let Some((name, input)) = recovery else { return Ok(Reply::NotNeeded) };
        Ok(match self.teardown.start(&name, input).await? {
            StartResult::Started => {
                tracing::warn!(execution = %ended.execution_arn, recovery = %name, "recovery started");
                metrics::counter!("SagaRecoveries").increment(1);
                Reply::Started
            }
            StartResult::AlreadyStarted => Reply::Already,
        })
    }
}

impl RecoverOnboarding {
    /// Returns the name and the input of the teardown that an onboarding needs, or `None` if it has undone itself.
    async fn after_onboarding(
        &self,
        ended: &EndedExecution,
    ) -> Result<Option<(String, String)>, OnboardingError> {
        let state = self.onboarding.progress(&ended.execution_arn).await?.state;
        if state.as_deref() == Some(ONBOARDING_FAILED) {
            return Ok(None);
        }
        let input = input(&self.onboarding, ended).await?;
        let saga: SagaContext = fault::decode(&input)?;
        let failure = failure(ended, state.unwrap_or_else(|| "Start".to_owned()));
        let input = json(&TeardownInput::new(saga, Some(failure)))?;
        Ok(Some((recovery_name(saga.onboarding_id), input)))
    }

    /// Returns the name and the input of the teardown that replaces a stopped one, or `None` if the teardown was not
    /// stopped but failed.
    async fn after_teardown(
        &self,
        ended: &EndedExecution,
    ) -> Result<Option<(String, String)>, OnboardingError> {
        if ended.status == EndStatus::Failed {
            return Ok(None);
        }
        let input = input(&self.teardown, ended).await?;
        let TeardownInput { saga, failure, started_by } = fault::decode(&input)?;
        let is_nested = started_by.is_some();
        let Some(name) = next_recovery_name(saga.onboarding_id, ended, is_nested) else {
            return Err(OnboardingError::GivenUp(ended.name.clone()));
        };
        Ok(Some((name, json(&TeardownInput::new(saga, failure))?)))
    }
}

/// Returns the input of the execution.
async fn input(machine: &StateMachine, ended: &EndedExecution) -> Result<String, OnboardingError> {
    Ok(match &ended.input {
        Some(input) => input.clone(),
        None => machine.input(&ended.execution_arn).await?,
    })
}

/// Returns the failure that the site shows: the onboarding's own, if the cause contains it, or else one that names the
/// state in which the execution ended.
fn failure(ended: &EndedExecution, step: String) -> OnboardingFailure {
    let cause = ended.cause.as_deref().map(serde_json::from_str::<Incomplete>);
    if let Some(Ok(Incomplete { onboarding_failure })) = cause {
        return onboarding_failure;
    }
    let (error, happened) = match ended.status {
        EndStatus::TimedOut => ("TimedOut", "timed out"),
        EndStatus::Aborted => ("Aborted", "was stopped"),
        EndStatus::Failed => (ended.error.as_deref().unwrap_or("Failed"), "failed"),
    };
    let message = format!("The onboarding {happened} in the state {step} and was then undone.");
    OnboardingFailure { step, error: error.to_owned(), message }
}

/// Returns the name of the recovery. It is the same for an onboarding and its nested teardown, so that their two events
/// start only one recovery.
fn recovery_name(onboarding: OnboardingId) -> String {
    format!("recovery-{onboarding}")
}

/// Returns the name of the recovery of a stopped teardown. It depends on what started the teardown:
///
/// - An onboarding (the teardown is nested): the name of that onboarding's recovery.
/// - A recovery: the same name with the next number, or `None` if `MAX_RECOVERIES` is reached.
/// - A decommission, or an engineer on call with fieldctl (recover or replay): a separate name, which is derived from the
///   ARN of the stopped execution.
fn next_recovery_name(
    onboarding: OnboardingId,
    ended: &EndedExecution,
    nested: bool,
) -> Option<String> {
    let first = recovery_name(onboarding);
    if nested {
        return Some(first);
    }
    if !ended.name.starts_with(&first) {
        let execution = Uuid::new_v5(&onboarding.uuid(), ended.execution_arn.as_bytes());
        return Some(format!("{first}-{:08x}", execution.as_fields().0));
    }
    let previous = (2..=MAX_RECOVERIES).find_map(|count| {
        let base = ended.name.strip_suffix(&format!("-{count}"))?;
        Some((base, count))
    });
    let (base, count) = previous.unwrap_or((&ended.name, 1));
    (count < MAX_RECOVERIES).then(|| format!("{base}-{}", count + 1))
}

fn json(input: &impl Serialize) -> Result<String, OnboardingError> {
    serde_json::to_string(input).map_err(|error| OnboardingError::Input(error.to_string()))
}
