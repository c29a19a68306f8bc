//! Onboarding: one saga a site, the state machine `site-onboarding`. It has no table: the execution
//! itself, named after the onboarding, is its record.

pub mod start_onboarding;

use lambda::{ErrorKind, Fault};
use machines::StartError;

/// Everything that can go wrong here.
#[derive(Debug, thiserror::Error)]
pub enum OnboardingError {
    /// The saga's input can't be written down.
    #[error("the saga's input is no JSON: {0}")]
    Input(String),
    /// The saga can't be started.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Fault for OnboardingError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Input(_) => ErrorKind::Internal,
            Self::Start(error) => error.kind(),
        }
    }
}
