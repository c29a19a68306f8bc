//! The state of the circuit breaker before the payment provider.

use contracts::Timestamp;
use serde::{Deserialize, Serialize};
use store::Key;
use uuid::Uuid;

/// An error of a call to the provider, as an operator sees it. It never holds the API key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallError {
    /// `NoAnswer`, `KeyRefused`, `KeyUnreadable`, `Throttled` or `ServerError`.
    pub name: String,
    /// What happened.
    pub message: String,
    /// When the call was made.
    pub at: Timestamp,
    /// When the function had read the API key that it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_read_at: Option<Timestamp>,
}

/// The row `circuit#provider`. Without a row the circuit is closed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CircuitState {
    /// Raised by each change, so that no change overwrites one that its author has not read.
    pub sequence: u64,
    /// Failures since the last success.
    pub failures: u32,
    /// How often in a row it opened.
    pub opened: u32,
    /// The circuit is open, at least until then; closed if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_until: Option<Timestamp>,
    /// The command that probes, until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Uuid>,
    /// The last failure since the last success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<CallError>,
}

impl CircuitState {
    /// The key of the row in the billing table.
    #[must_use]
    pub fn key() -> Key {
        Key::id("circuit#provider")
    }

    /// Whether a command calls the provider now, to find out whether it is back.
    #[must_use]
    pub fn is_probed(&self) -> bool {
        self.probe.is_some()
    }
}
