//! A saga was cut off, or broke: starts the teardown that undoes what it left, once.
//!
//! A teardown undoes all there may be and needs no knowledge of how far the saga came, so it does no
//! harm where the saga's own teardown still runs, or has run. A site that was ACTIVE already when
//! its onboarding was cut off goes out of service as REJECTED: the onboarding never came to its end.

use aws_lambda_events::eventbridge::EventBridgeEvent;
use contracts::{
    Failure, OnboardingId, Saga, Timestamp,
    saga::{ONBOARDING_FAILED, TeardownInput},
};
use fault::InvalidInput;
use lambda::Step;
use machines::{Machine, Started};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::OnboardingError;

/// Recoveries of one saga: who stops the last one too, by hand, means it.
const MOST_RECOVERIES: u32 = 3;

/// What the step needs.
#[derive(Debug)]
pub struct RecoverOnboarding {
    /// The state machine `site-onboarding`.
    pub onboarding: Machine,
    /// The state machine `site-teardown`.
    pub teardown: Machine,
}

/// The `detail` of Step Functions' event "Execution Status Change", as far as it matters here. No
/// `Debug`: the input holds how the operator pays.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// The execution.
    pub execution_arn: String,
    /// Its machine.
    pub state_machine_arn: String,
    /// The execution's name.
    pub name: String,
    /// How it ended.
    pub status: EndStatus,
    /// What it was started with, JSON; left out where the event would become too large.
    pub input: Option<String>,
    /// The error's name, of a failed one.
    pub error: Option<String>,
    /// What the Fail state told of it.
    pub cause: Option<String>,
}

/// What an onboarding tells that was not undone wholly.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Incomplete {
    onboarding_failure: Failure,
}

/// How an execution ended other than well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EndStatus {
    /// By a Fail state, or an error that nothing caught.
    Failed,
    /// The time for the whole execution was over.
    TimedOut,
    /// Somebody stopped it.
    Aborted,
}

/// What it answers; seen only in the log.
#[derive(Debug, PartialEq, Serialize)]
pub enum Reply {
    /// A teardown runs.
    Started,
    /// It was started before.
    Already,
    /// Nothing is left to undo; or a teardown ran to its end and something resists it, of which its
    /// own alarm tells.
    NotNeeded,
}

impl Step for RecoverOnboarding {
    type Command = EventBridgeEvent<Ended>;
    type Reply = Reply;
    type Error = OnboardingError;

    fn correlation(command: &Self::Command) -> Option<OnboardingId> {
        let saga: Saga = fault::decode(command.detail.input.as_deref()?).ok()?;
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
                problem: format!("{} is no saga", ended.state_machine_arn),
            }));
        };
        let Some((name, input)) = recovery else { return Ok(Reply::NotNeeded) };
        Ok(match self.teardown.start(&name, input).await? {
            Started::Now => {
                tracing::warn!(execution = %ended.execution_arn, recovery = %name, "recovers");
                metrics::counter!("SagaRecoveries").increment(1);
                Reply::Started
            }
            Started::Before => Reply::Already,
        })
    }
}

impl RecoverOnboarding {
    /// Name and input of the teardown that an onboarding needs.
    async fn after_onboarding(
        &self,
        ended: &Ended,
    ) -> Result<Option<(String, String)>, OnboardingError> {
        let state = self.onboarding.progress(&ended.execution_arn).await?.state;
        if state.as_deref() == Some(ONBOARDING_FAILED) {
            return Ok(None);
        }
        let input = input(&self.onboarding, ended).await?;
        let saga: Saga = fault::decode(&input)?;
        let failure = failure(ended, state.unwrap_or_else(|| "Start".to_owned()));
        let input = json(&TeardownInput::new(saga, Some(failure)))?;
        Ok(Some((recovery_name(saga.onboarding_id), input)))
    }

    /// The same for a teardown: the next one of the same input.
    async fn after_teardown(
        &self,
        ended: &Ended,
    ) -> Result<Option<(String, String)>, OnboardingError> {
        if ended.status == EndStatus::Failed {
            return Ok(None);
        }
        let input = input(&self.teardown, ended).await?;
        let TeardownInput { saga, failure, started_by } = fault::decode(&input)?;
        let is_nested = started_by.is_some();
        let Some(name) = recovery_of(saga.onboarding_id, ended, is_nested) else {
            return Err(OnboardingError::GivenUp(ended.name.clone()));
        };
        Ok(Some((name, json(&TeardownInput::new(saga, failure))?)))
    }
}

/// What the execution was started with.
async fn input(machine: &Machine, ended: &Ended) -> Result<String, OnboardingError> {
    Ok(match &ended.input {
        Some(input) => input.clone(),
        None => machine.input(&ended.execution_arn).await?,
    })
}

/// What the site's operator is told: the onboarding's own failure, where it came as far as to tell.
fn failure(ended: &Ended, step: String) -> Failure {
    let told = ended.cause.as_deref().map(serde_json::from_str::<Incomplete>);
    if let Some(Ok(Incomplete { onboarding_failure })) = told {
        return onboarding_failure;
    }
    let (error, happened) = match ended.status {
        EndStatus::TimedOut => ("TimedOut", "ran out of time"),
        EndStatus::Aborted => ("Aborted", "was stopped"),
        EndStatus::Failed => (ended.error.as_deref().unwrap_or("Failed"), "broke"),
    };
    let message =
        format!("The onboarding {happened} in the state {step}, and was undone after it.");
    Failure { step, error: error.to_owned(), message }
}

/// The recovery of an onboarding, and of the teardown nested in it: one, though both tell.
fn recovery_name(onboarding: OnboardingId) -> String {
    format!("recovery-{onboarding}")
}

/// The recovery of a stopped teardown, a name of its own for each; after a recovery its next, as
/// long as there may be one.
fn recovery_of(onboarding: OnboardingId, ended: &Ended, nested: bool) -> Option<String> {
    let first = recovery_name(onboarding);
    if nested {
        return Some(first);
    }
    if !ended.name.starts_with(&first) {
        let execution = Uuid::new_v5(&onboarding.uuid(), ended.execution_arn.as_bytes());
        return Some(format!("{first}-{:08x}", execution.as_fields().0));
    }
    let counted = (2..=MOST_RECOVERIES).find_map(|count| {
        let recovered = ended.name.strip_suffix(&format!("-{count}"))?;
        Some((recovered, count))
    });
    let (recovered, count) = counted.unwrap_or((&ended.name, 1));
    (count < MOST_RECOVERIES).then(|| format!("{recovered}-{}", count + 1))
}

fn json(input: &impl Serialize) -> Result<String, OnboardingError> {
    serde_json::to_string(input).map_err(|error| OnboardingError::Input(error.to_string()))
}
