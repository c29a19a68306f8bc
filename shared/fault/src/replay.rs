//! The outcome of a replay, which a function returns and fieldctl reads.

use serde::{Deserialize, Serialize};

use crate::ErrorKind;

/// The response to a replay: its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ReplayResponse {
    /// The work is done.
    Done,
    /// There is nothing left to do.
    #[serde(rename = "MOOT")]
    NothingToDo {
        /// The reason, for people.
        message: String,
    },
    /// The work failed again.
    Failed {
        /// The error's stable name.
        error: String,
        /// The message for people.
        message: String,
    },
}

impl ReplayResponse {
    /// Creates the outcome of a replay that failed again.
    #[must_use]
    pub fn failed(error: &str, message: impl Into<String>) -> Self {
        Self::Failed { error: error.to_owned(), message: message.into() }
    }

    /// Creates the outcome of a replay that failed with [`ErrorKind::Transient`]. A later replay may succeed.
    #[must_use]
    pub fn transient(message: impl Into<String>) -> Self {
        Self::failed(ErrorKind::Transient.name(), message)
    }

    /// Creates the outcome of a replay that has nothing left to do.
    #[must_use]
    pub fn nothing_to_do(message: impl Into<String>) -> Self {
        Self::NothingToDo { message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_outcome_is_serialized_with_its_name() {
        let json = |response| serde_json::to_value(response).expect("JSON");
        assert_eq!(json(ReplayResponse::Done), json!({"outcome": "DONE"}));
        assert_eq!(
            json(ReplayResponse::nothing_to_do("its task has ended")),
            json!({"outcome": "MOOT", "message": "its task has ended"})
        );
        assert_eq!(
            json(ReplayResponse::failed("UnknownSensor", "no")),
            json!({"outcome": "FAILED", "error": "UnknownSensor", "message": "no"})
        );
    }
}
