//! Onboarding of sites. Each site has one execution of the state machine `site-onboarding`. The crate has no table: the
//! execution, which is named after the onboarding, is the record of the onboarding.
//!
//! An onboarding that fails undoes itself: the Catch of each step starts the teardown. No Catch runs after a timeout or
//! an abort of the whole execution, or after an error of the state machine itself. `recover-onboarding` handles these
//! cases, and onboardings whose teardown was incomplete. `check-sagas` reports onboardings and teardowns that run but
//! make no progress.
//!
//! Names of executions: `<onboarding id>` is an onboarding. The teardown of a failed onboarding is a nested execution; Step
//! Functions chooses its name. `decommission-<onboarding id>` is started by `DELETE /sites`,
//! `operator-<onboarding id>-<random>` and `replay-<failure id>-<count>` by fieldctl, and `recovery-<onboarding id>...` by
//! recover-onboarding.

pub mod check_sagas;
pub mod recover_onboarding;
pub mod start_onboarding;

use fault::{ErrorKind, Fault, InvalidInput};
use machines::MachineError;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum OnboardingError {
    /// The execution does not belong to a state machine of the saga, or its input is not that of a saga. Or an event
    /// has ids of different sites.
    #[error(transparent)]
    Invalid(#[from] InvalidInput),
    /// The input of an execution can't be serialized.
    #[error("the execution's input can't be serialized: {0}")]
    Input(String),
    /// The last of the automatic recoveries was stopped.
    #[error("the last automatic recovery, {0}, was stopped; no further recovery is started")]
    GivenUp(String),
    /// A call to Step Functions failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

impl Fault for OnboardingError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(_) => ErrorKind::InvalidInput,
            Self::Input(_) | Self::GivenUp(_) => ErrorKind::Internal,
            Self::Machine(error) => error.kind(),
        }
    }
}
