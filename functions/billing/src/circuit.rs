//! The circuit breaker for the payment provider. While the circuit is open, commands stay in their queue, and only
//! one probe at a time calls the provider.
//!
//! Its state is one row of the billing table, `circuit#provider`, shared by all consumers of both queues. After some
//! failures in a row the circuit opens for a pause. After the pause, the first command that writes a new `openUntil` is
//! the probe. If the provider responds to the probe, the circuit closes. If not, it stays open for a longer pause. If
//! the probe crashes, its lease ends and the next command is the probe. A command costs one read, and no write while
//! the provider responds.
//!
//! A run of a step returns the result of its last call, and [`Circuit::record_result`] counts it. The step and the
//! breaker share no state.
//!
//! The breaker is only an optimization: it saves calls. If its row can't be read or written in time, commands run
//! without it.

use std::time::Duration;

use contracts::Timestamp;
use lambda::ConfigError;
use payments::{CallError, CircuitState};
use store::{Commit, StoreError, Table, Transaction, jittered};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

/// The number of attempts for a write that conflicts with other writers.
const MAX_ATTEMPTS: u32 = 5;
/// How long a probe may take. It is longer than the functions' timeout of 20 s.
const PROBE_LEASE: Duration = Duration::from_secs(30);
/// The maximum pause, as a multiple of the first pause.
const MAX_PAUSE_FACTOR: u32 = 10;

/// The result of a call to the provider, as the breaker counts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// The provider responded. A decline is a response too.
    Up,
    /// The provider did not respond, or it can't serve this account now.
    Down(CallError),
}

/// When the circuit opens, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The number of failures in a row after which the circuit opens.
    pub failures: u32,
    /// The first pause. Each further pause is twice as long, up to ten times the first.
    pub pause: Duration,
    /// The timeout for reading or writing the row, so that the breaker does not delay a command.
    pub timeout: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self { failures: 5, pause: Duration::from_secs(30), timeout: Duration::from_millis(500) }
    }
}

impl Rules {
    /// Reads `CIRCUIT_FAILURES` and `CIRCUIT_PAUSE_SECONDS`. The defaults apply where they are not set.
    pub fn from_env() -> Result<Self, ConfigError> {
        let default = Self::default();
        let pause =
            positive_number("CIRCUIT_PAUSE_SECONDS")?.map(|s| Duration::from_secs(s.into()));
        Ok(Self {
            failures: positive_number("CIRCUIT_FAILURES")?.unwrap_or(default.failures),
            pause: pause.unwrap_or(default.pause),
            ..default
        })
    }

    /// Returns the pause after the circuit opened `opened` times in a row. Jitter shortens it by up to a fifth, so
    /// that several consumers do not retry at the same time.
    fn pause(&self, opened: u32) -> Duration {
        let factor = 2_u32.saturating_pow(opened.saturating_sub(1)).min(MAX_PAUSE_FACTOR);
        let pause = self.pause * factor;
        pause.saturating_sub(jittered(pause / 5))
    }
}

fn positive_number(name: &'static str) -> Result<Option<u32>, ConfigError> {
    let Ok(text) = std::env::var(name) else { return Ok(None) };
    let problem = |_| ConfigError { name, problem: format!("is {text:?}, not a positive number") };
    text.parse::<std::num::NonZeroU32>().map(|number| Some(number.get())).map_err(problem)
}

/// Returns the state in which `probe` calls the provider. Returns `None` if the circuit is closed, or if its pause is
/// not over.
fn begin_probe(state: &CircuitState, probe: Uuid, now: Timestamp) -> Option<CircuitState> {
    let over = state.open_until.is_some_and(|until| until <= now);
    over.then(|| CircuitState {
        open_until: Some(after(now, PROBE_LEASE)),
        probe: Some(probe),
        ..state.clone()
    })
}

/// Returns the state after a command, or `None` if it does not change. `health` is the result of the command's last
/// call. `probe` is the id of the probe, if the command was one. The result of a call that began before the circuit
/// opened changes nothing.
fn after_call(
    state: &CircuitState,
    health: Option<&Health>,
    probe: Option<Uuid>,
    rules: Rules,
    now: Timestamp,
) -> Option<CircuitState> {
    let open = |failures, opened, error: &CallError| CircuitState {
        failures,
        opened,
        open_until: Some(after(now, rules.pause(opened))),
        probe: None,
        last_error: Some(error.clone()),
        ..*state
    };
    let is_probe = probe.is_some() && probe == state.probe;
    match (state.open_until, health) {
        (Some(_), _) if !is_probe => None,
        (Some(_), Some(Health::Down(error))) => Some(open(state.failures, state.opened + 1, error)),
        // The probe made no call to the provider, so the next command may be the probe.
        (Some(_), None) => {
            Some(CircuitState { open_until: Some(now), probe: None, ..state.clone() })
        }
        (None, Some(Health::Down(error))) if state.failures + 1 >= rules.failures => {
            Some(open(state.failures + 1, 1, error))
        }
        (None, Some(Health::Down(error))) => Some(CircuitState {
            failures: state.failures + 1,
            last_error: Some(error.clone()),
            ..state.clone()
        }),
        (None, Some(Health::Up)) if state.failures == 0 => None,
        (_, Some(Health::Up)) => Some(CircuitState::default()),
        (None, None) => None,
    }
}

fn after(now: Timestamp, time: Duration) -> Timestamp {
    now.plus_millis(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}

/// The circuit breaker of a queue's consumer.
#[derive(Debug)]
pub struct Circuit {
    /// The billing table.
    pub table: Table,
    /// When the circuit opens, and for how long.
    pub rules: Rules,
}

/// Whether a command may run.
#[derive(Debug)]
pub enum Admission {
    /// The command may run. [`Circuit::record_result`] must be called after it.
    Granted(Permit),
    /// The circuit is open. The command may be retried after this time.
    RetryAfter(Duration),
}

/// The permission for one command to call the provider.
#[derive(Debug)]
pub struct Permit {
    /// The circuit's state when the permission was given.
    state: CircuitState,
    /// The id of the probe, if the command is one.
    probe: Option<Uuid>,
    /// The time of the permission, and the same moment on the monotonic clock.
    admitted: (Timestamp, Instant),
}

impl Circuit {
    /// Decides whether a command may run now.
    pub async fn admit(&self, now: Timestamp) -> Admission {
        let probe = Uuid::new_v4();
        let admitted = (now, Instant::now());
        let result = self.with_timeout(async {
            let state: CircuitState =
                self.table.get(&CircuitState::key()).await?.unwrap_or_default();
            self.update(state, |state| begin_probe(state, probe, now)).await
        });
        let (state, is_probe) = result.await.unwrap_or_default();
        match state.open_until {
            Some(until) if !is_probe => {
                metrics::counter!("ProviderCircuitOpen").increment(1);
                let remaining = u64::try_from(until.millis() - now.millis()).unwrap_or(0);
                Admission::RetryAfter(
                    Duration::from_millis(remaining) + jittered(self.rules.pause / 2),
                )
            }
            _ => {
                if is_probe {
                    tracing::info!(opened = state.opened, "calling the provider as the probe");
                }
                Admission::Granted(Permit { state, probe: is_probe.then_some(probe), admitted })
            }
        }
    }

    /// Records the result of a command's last call to the provider. `health` is `None` if the command made no call.
    pub async fn record_result(&self, permit: Permit, health: Option<Health>) {
        let Permit { state, probe, admitted: (admitted, since) } = permit;
        let now = after(admitted, since.elapsed());
        if let Some(Health::Down(CallError { name, message, .. })) = &health {
            metrics::counter!("ProviderFailures").increment(1);
            tracing::warn!(error = name, reason = message, "the call to the provider failed");
        }
        let was_open = state.open_until.is_some();
        let update =
            self.update(state, |state| after_call(state, health.as_ref(), probe, self.rules, now));
        let Some((state, true)) = self.with_timeout(update).await else { return };
        match state.open_until {
            Some(until) if health.is_some() => {
                metrics::counter!("ProviderCircuitOpen").increment(1);
                tracing::warn!(%until, opened = state.opened, "circuit opened");
            }
            None if was_open => tracing::info!("circuit closed: the provider responds again"),
            _ => {}
        }
    }

    /// Writes the state that `next` returns for `state`. Writes nothing if `next` returns `None`. On a conflict, calls
    /// `next` with the newer row and tries again. Returns the row's final state, and whether this call changed it.
    async fn update(
        &self,
        mut state: CircuitState,
        next: impl Fn(&CircuitState) -> Option<CircuitState>,
    ) -> Result<(CircuitState, bool), StoreError> {
        let key = CircuitState::key();
        for _ in 0..MAX_ATTEMPTS {
            let Some(changed) = next(&state) else { break };
            let changed = CircuitState { sequence: state.sequence + 1, ..changed };
            let put = Transaction::on(&self.table);
            let put = match state.sequence {
                0 => put.create(&self.table, &key, &changed),
                sequence => put.put_if_sequence(&self.table, &key, &changed, sequence),
            };
            match put.commit().await? {
                Commit::Done => return Ok((changed, true)),
                Commit::Refused(refused) => state = refused.row(&key)?.unwrap_or_default(),
            }
        }
        Ok((state, false))
    }

    /// Runs `work` with the breaker's timeout. Logs a warning and returns `None` if it fails or takes too long.
    async fn with_timeout<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Option<T> {
        let reason = match timeout(self.rules.timeout, Box::pin(work)).await {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no response within {:?}", self.rules.timeout),
        };
        tracing::warn!(%reason, "continuing without the circuit breaker");
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules =
        Rules { failures: 3, pause: Duration::from_secs(30), timeout: Duration::from_secs(1) };

    fn down() -> Health {
        Health::Down(CallError {
            name: "NoAnswer".to_owned(),
            message: "no response within 6s".to_owned(),
            at: at(0),
            key_read_at: None,
        })
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    /// Returns how long the circuit stays open after `now`, in milliseconds.
    fn open_for(state: &CircuitState, now: Timestamp) -> i64 {
        state.open_until.expect("the circuit is open").millis() - now.millis()
    }

    #[test]
    fn the_rules_are_read_from_the_environment() {
        let rules = |failures: Option<&str>, pause: Option<&str>| {
            let variables = [("CIRCUIT_FAILURES", failures), ("CIRCUIT_PAUSE_SECONDS", pause)];
            temp_env::with_vars(variables, Rules::from_env)
        };
        let values = |rules: Result<Rules, ConfigError>| {
            let Rules { failures, pause, timeout } = rules.expect("rules");
            (failures, pause.as_secs(), timeout.as_millis())
        };
        assert_eq!(values(rules(None, None)), (5, 30, 500));
        assert_eq!(values(rules(Some("1"), Some("7"))), (1, 7, 500));
        for wrong in ["0", "-1", "many", ""] {
            let error = rules(Some(wrong), None).expect_err(wrong).to_string();
            assert!(error.starts_with("environment variable CIRCUIT_FAILURES is"), "{error}");
            assert_eq!(rules(None, Some(wrong)).expect_err(wrong).name, "CIRCUIT_PAUSE_SECONDS");
        }
    }

    #[test]
    fn the_circuit_opens_after_failures_in_a_row_and_a_success_resets_the_count() {
        let (up, down) = (Some(Health::Up), Some(down()));
        let (up, down) = (up.as_ref(), down.as_ref());
        let mut state = CircuitState::default();
        for health in [down, down, up, down, down] {
            state = after_call(&state, health, None, RULES, at(0)).expect("a new state");
            assert_eq!(state.open_until, None);
        }
        assert_eq!(after_call(&state, None, None, RULES, at(0)), None, "no call was made");
        state = after_call(&state, down, None, RULES, at(0)).expect("a new state");
        assert_eq!((state.failures, state.opened, state.probe), (3, 1, None));
        assert_eq!(state.last_error.as_ref().map(|it| it.name.as_str()), Some("NoAnswer"));
        let pause = open_for(&state, at(0));
        assert!((24_000..=30_000).contains(&pause), "{pause}");
        // The results of calls that began before the circuit opened are ignored.
        assert_eq!(after_call(&state, down, None, RULES, at(1)), None);
        assert_eq!(after_call(&state, up, None, RULES, at(1)), None);
        assert_eq!(
            after_call(&CircuitState::default(), up, None, RULES, at(0)),
            None,
            "no write without failures"
        );
    }

    #[test]
    fn each_failed_probe_lengthens_the_pause_up_to_the_maximum() {
        let probe = Uuid::from_u128(1);
        let mut state = CircuitState {
            failures: 3,
            opened: 1,
            open_until: Some(at(0)),
            ..CircuitState::default()
        };
        for (opened, max) in (2..).zip([60, 120, 240, 300, 300, 300]) {
            let now = state.open_until.expect("the circuit is open");
            let probed = begin_probe(&state, probe, now).expect("a probe");
            assert_eq!(open_for(&probed, now), 30_000, "the probe's lease");
            assert_eq!(begin_probe(&probed, Uuid::from_u128(2), now), None, "one probe at a time");
            let other = Some(Uuid::from_u128(2));
            assert_eq!(after_call(&probed, Some(&Health::Up), other, RULES, now), None);
            state =
                after_call(&probed, Some(&down()), Some(probe), RULES, now).expect("a new state");
            assert_eq!((state.failures, state.opened, state.probe), (3, opened, None));
            let pause = open_for(&state, now);
            assert!((max * 800..=max * 1000).contains(&pause), "{pause} ms, maximum {max} s");
        }
        let now = state.open_until.expect("the circuit is open");
        let probed = begin_probe(&state, probe, now).expect("a probe");
        let idle = after_call(&probed, None, Some(probe), RULES, now).expect("a new state");
        assert_eq!((idle.probe, idle.open_until), (None, Some(now)), "the next command probes");
        let closed =
            after_call(&probed, Some(&Health::Up), Some(probe), RULES, now).expect("a new state");
        assert_eq!(closed, CircuitState::default());
    }
}
