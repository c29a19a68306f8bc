//! Checks the payment provider: its circuit breaker, the last error, and the API key that was used.

use contracts::{Timestamp, names};
use payments::{CallError, CircuitState};
use serde::Serialize;

use super::{Check, Health};
use crate::{
    error::{CliError, aws},
    render::{ago, span},
    stack::Stack,
};

/// The maximum age at which a failed call still shows that the provider fails now, in milliseconds.
const RECENT_MILLIS: i64 = 60_000;

/// The state of the provider, from the circuit breaker's row and the secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProviderStatus {
    /// `closed`, `open`, or `probing` while a command checks whether the provider responds again.
    pub circuit: &'static str,
    /// The number of failed calls since the last success.
    pub failures: u32,
    /// When the next command may probe, if the circuit is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_probe: Option<Timestamp>,
    /// The last failure since the last success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<CallError>,
    /// When the secret with the API key was last changed. `None` if that can't be read, or if there is no last error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_changed_at: Option<Timestamp>,
}

impl ProviderStatus {
    fn new(state: CircuitState, key_changed_at: Option<Timestamp>) -> Self {
        let circuit = match (state.open_until, state.is_probed()) {
            (None, _) => "closed",
            (Some(_), true) => "probing",
            (Some(_), false) => "open",
        };
        let (failures, next_probe, last_error) =
            (state.failures, state.open_until, state.last_error);
        Self { circuit, failures, next_probe, last_error, key_changed_at }
    }

    /// Returns whether the last call failed, or the circuit is not closed.
    #[must_use]
    pub fn fails(&self) -> bool {
        self.circuit != "closed" || self.failures > 0
    }

    /// Returns whether the last call failed some time ago and none was made since. Then it is not known whether the
    /// provider responds now.
    fn is_unknown(&self, now: Timestamp) -> bool {
        match (self.circuit, self.next_probe, &self.last_error) {
            ("open", Some(at), _) => at <= now,
            ("closed", _, Some(error)) => now.millis() - error.at.millis() > RECENT_MILLIS,
            _ => false,
        }
    }

    /// Returns whether the failed call used an API key from before the secret was changed.
    #[must_use]
    pub fn used_old_key(&self) -> bool {
        let key_read = self.last_error.as_ref().and_then(|error| error.key_read_at);
        key_read.zip(self.key_changed_at).is_some_and(|(read, changed)| read < changed)
    }

    /// Describes the circuit in a sentence.
    #[must_use]
    pub fn summary(&self, now: Timestamp) -> String {
        let failed = match self.failures {
            0 => String::new(),
            1 => ", 1 call failed".to_owned(),
            count => format!(", {count} consecutive calls failed"),
        };
        let next = match (self.circuit, self.next_probe) {
            ("open", Some(at)) if at > now => {
                format!(", next probe in {}", span(at.millis() - now.millis()))
            }
            ("open", Some(_)) => ", the next command probes".to_owned(),
            _ => String::new(),
        };
        format!("circuit {}{failed}{next}", self.circuit)
    }

    /// Describes the last error, and the age of the key that was used.
    #[must_use]
    pub fn details(&self, now: Timestamp) -> Vec<String> {
        let Some(CallError { name, message, at, key_read_at }) = &self.last_error else {
            return Vec::new();
        };
        let mut details = vec![format!("last error, {}: {name}: {message}", ago(now, *at))];
        if let Some(read) = key_read_at {
            let changed = self.key_changed_at.map_or_else(
                || "it is not known when the secret was changed".to_owned(),
                |changed| format!("the secret was changed {}", ago(now, changed)),
            );
            details.push(format!(
                "the call used an API key that was read {}; {changed}",
                ago(now, *read)
            ));
        }
        if self.used_old_key() {
            details.push(
                "the key was changed after that: functions read it again within five minutes"
                    .to_owned(),
            );
        }
        details
    }

    /// Returns what to do about the last error.
    #[must_use]
    pub fn next(&self) -> String {
        match self.last_error.as_ref().map(|error| error.name.as_str()) {
            Some("KeyRefused") if self.used_old_key() => {
                "wait five minutes; if calls are still refused, the new key is wrong".to_owned()
            }
            Some("KeyRefused" | "KeyUnreadable") => {
                "store the correct key: docs/operations.md#providercircuitopen".to_owned()
            }
            Some("Throttled") => {
                "lower BillingConcurrency: docs/operations.md#providercircuitopen".to_owned()
            }
            _ => "see the provider's status page; commands wait and continue by themselves: \
                  docs/operations.md#providercircuitopen"
                .to_owned(),
        }
    }
}

/// Reads the circuit breaker's row, and when the secret was changed.
pub async fn provider(stack: &Stack) -> Result<ProviderStatus, CliError> {
    let rows = stack.table(names::BILLING);
    let state: Option<CircuitState> = rows.get(&CircuitState::key()).await?;
    let state = state.unwrap_or_default();
    // The age of the key matters only after a failure.
    let changed = match &state.last_error {
        Some(_) => key_changed_at(stack).await.unwrap_or_default(),
        None => None,
    };
    Ok(ProviderStatus::new(state, changed))
}

/// Reads when the secret was changed. Does not read its value.
async fn key_changed_at(stack: &Stack) -> Result<Option<Timestamp>, CliError> {
    let secrets = aws_sdk_secretsmanager::Client::new(stack.config());
    let described = secrets.describe_secret().secret_id(stack.named(names::STRIPE)).send().await;
    let described = described.map_err(aws("the secret of the provider can't be described"))?;
    let changed = described.last_changed_date().and_then(|at| at.to_millis().ok());
    Ok(changed.map(Timestamp::from_millis))
}

/// Checks that the provider responds.
pub async fn check(stack: &Stack, now: Timestamp) -> Result<Check, CliError> {
    let provider = provider(stack).await?;
    let summary = provider.summary(now);
    Ok(if provider.fails() {
        let check = Check::problem("provider", summary, provider.next());
        let health = if provider.is_unknown(now) { Health::Unknown } else { check.health };
        Check { health, ..check.with(provider.details(now)) }
    } else {
        Check::good("provider", summary)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn refused(key_read: i64, key_changed: i64) -> ProviderStatus {
        let error = CallError {
            name: "KeyRefused".to_owned(),
            message: "HTTP status 401".to_owned(),
            at: at(100),
            key_read_at: Some(at(key_read)),
        };
        ProviderStatus {
            circuit: "open",
            failures: 5,
            next_probe: Some(at(130)),
            last_error: Some(error),
            key_changed_at: Some(at(key_changed)),
        }
    }

    #[test]
    fn an_open_circuit_shows_the_reason_and_the_time_of_the_next_probe() {
        let provider = refused(90, 50);
        assert_eq!(
            provider.summary(at(118)),
            "circuit open, 5 consecutive calls failed, next probe in 12.0 s"
        );
        let details = provider.details(at(118)).join("\n");
        assert!(details.contains("KeyRefused: HTTP status 401"), "{details}");
        assert!(!provider.is_unknown(at(129)) && provider.is_unknown(at(130)));
        assert!(!provider.used_old_key() && provider.next().contains("store the correct key"));
    }

    #[test]
    fn a_key_from_before_the_change_is_named() {
        let provider = refused(50, 90);
        assert!(provider.used_old_key());
        assert!(provider.details(at(118)).join("\n").contains("changed after that"));
        assert!(provider.next().starts_with("wait five minutes"));
    }
}
