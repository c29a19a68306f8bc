//! The state of the circuit breaker for calls to the payment provider.

use contracts::Timestamp;
use serde::{Deserialize, Serialize};
use store::Key;
use uuid::Uuid;

/// The error of a call to the payment provider, as an engineer on call sees it. It never contains the API key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallError {
    /// `NoAnswer`, `KeyRefused`, `KeyUnreadable`, `Throttled` or `ServerError`.
    pub name: String,
    /// What happened.
    pub message: String,
    /// When the call was made.
    pub at: Timestamp,
    /// When the function read the API key that it used for the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_read_at: Option<Timestamp>,
}

/// The row `circuit#provider`. Without a row the circuit is closed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CircuitState {
    /// Incremented by each change. The condition on it prevents a lost update.
    pub sequence: u64,
    /// The number of commands in a row whose last call failed before the circuit opened. Failed probes do not change
    /// it.
    pub failures: u32,
    /// How many times in a row the circuit opened.
    pub opened: u32,
    /// While the circuit is open: the end of the pause or, during a probe, the end of the probe's right to probe.
    /// Absent if the circuit is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_until: Option<Timestamp>,
    /// The random id of the running probe. Its right to probe ends at `open_until`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Uuid>,
    /// The last error since the last success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<CallError>,
}

impl CircuitState {
    /// The key of the row in the billing table.
    #[must_use]
    pub fn key() -> Key {
        Key::id("circuit#provider")
    }

    /// Returns whether a command is probing the provider.
    #[must_use]
    pub fn is_probed(&self) -> bool {
        self.probe.is_some()
    }
}
