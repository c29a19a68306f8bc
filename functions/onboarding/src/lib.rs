//! Onboarding: one saga a site, the state machine `site-onboarding`. It has no table: the execution
//! itself, named after the onboarding, is its record.
//!
//! A saga undoes itself by its own Catch, except where it is cut off: a time-out or an abort of the
//! whole execution, or an error of the machine itself, run none. `recover-onboarding` hears of
//! those; `check-sagas` tells of those that run but get nowhere.

pub mod check_sagas;
pub mod recover_onboarding;
pub mod start_onboarding;

use fault::{ErrorKind, Fault, InvalidInput};
use machines::MachineError;

/// Everything that can go wrong here.
#[derive(Debug, thiserror::Error)]
pub enum OnboardingError {
    /// The execution is none of ours, or was not started with a saga's input.
    #[error(transparent)]
    Invalid(#[from] InvalidInput),
    /// An execution's input can't be written down.
    #[error("the execution's input is no JSON: {0}")]
    Input(String),
    /// The last recovery was stopped too: someone means it.
    #[error("{0} was stopped as well; no further recovery is started")]
    GivenUp(String),
    /// Step Functions.
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
