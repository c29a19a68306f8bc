//! The circuit breaker before the payment provider: while it is out, commands stay in their queue
//! and nobody calls, but for one probe at a time.
//!
//! Its state is one row of the billing table, `circuit#provider`, shared by all consumers of both
//! queues. After some failures in a row the circuit opens for a pause; when that is over, the one
//! consumer whose write moves `openUntil` on is the probe. If the provider answers the probe, the
//! circuit closes; if not, it stays open for a longer pause; if the probe never tells, its lease
//! ends, and another one probes. A command costs one read, and no write while all is well.
//!
//! The breaker saves calls, it does not decide anything: where its row can't be read or written in
//! time, commands run as if there were none.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use contracts::Timestamp;
use lambda::ConfigError;
use serde::{Deserialize, Serialize};
use store::{Commit, Key, StoreError, Table, Transaction, jittered};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

/// How often a write is tried that others were ahead of.
const TRIES: u32 = 5;
/// How long a probe may take: longer than the functions' time-out of 20 s.
const LEASE: Duration = Duration::from_secs(30);
/// The longest pause, in first pauses.
const LONGEST: u32 = 10;

/// What the provider was to whoever called it last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answered; a decline is an answer, too.
    Up,
    /// It did not answer, or only that it can't serve us.
    Down,
}

/// Where the calls to the provider leave what they heard.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<Mutex<Option<Health>>>);

impl Pulse {
    /// Notes what a call heard.
    pub(crate) fn felt(&self, health: Health) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(health);
    }

    /// What the last call heard since this was asked for; none where none was made.
    fn take(&self) -> Option<Health> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// When the circuit opens, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// It opens after so many failures without a success in between.
    pub failures: u32,
    /// The first pause; each further one is twice as long, up to ten times the first.
    pub pause: Duration,
    /// For reading or writing the row: a command must not wait for its breaker.
    pub time: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self { failures: 5, pause: Duration::from_secs(30), time: Duration::from_millis(500) }
    }
}

impl Rules {
    /// From `CIRCUIT_FAILURES` and `CIRCUIT_PAUSE_SECONDS`, where they are set.
    pub fn of_environment() -> Result<Self, ConfigError> {
        let default = Self::default();
        let pause = number("CIRCUIT_PAUSE_SECONDS")?.map(|s| Duration::from_secs(s.into()));
        Ok(Self {
            failures: number("CIRCUIT_FAILURES")?.unwrap_or(default.failures),
            pause: pause.unwrap_or(default.pause),
            ..default
        })
    }

    /// Those who paused together do not come back in step.
    fn pause(&self, opened: u32) -> Duration {
        let longer = 2_u32.saturating_pow(opened.saturating_sub(1)).min(LONGEST);
        let pause = self.pause * longer;
        pause.saturating_sub(jittered(pause / 5))
    }
}

fn number(name: &'static str) -> Result<Option<u32>, ConfigError> {
    let Ok(text) = std::env::var(name) else { return Ok(None) };
    let problem = |_| ConfigError { name, problem: format!("is {text:?}, no positive number") };
    text.parse::<std::num::NonZeroU32>().map(|number| Some(number.get())).map_err(problem)
}

/// The row; where there is none, the circuit is closed and all is well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct State {
    /// Raised by each change: nobody overwrites what they have not seen.
    sequence: u64,
    /// Failures since the last success.
    failures: u32,
    /// How often in a row it opened.
    opened: u32,
    /// It is open, at least until then; closed where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    open_until: Option<Timestamp>,
    /// Who probes, until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    probe: Option<Uuid>,
}

impl State {
    fn key() -> Key {
        Key::id("circuit#provider")
    }

    /// The pause is over, and `probe` tries.
    fn probed(&self, probe: Uuid, now: Timestamp) -> Option<Self> {
        let over = self.open_until.is_some_and(|until| until <= now);
        over.then(|| Self { open_until: Some(after(now, LEASE)), probe: Some(probe), ..*self })
    }

    /// What a command that came in as `probe`, or as one of many, heard of the provider. Late news
    /// from before the circuit opened changes nothing.
    fn heard(
        &self,
        health: Option<Health>,
        probe: Option<Uuid>,
        rules: Rules,
        now: Timestamp,
    ) -> Option<Self> {
        let open = |failures, opened| Self {
            failures,
            opened,
            open_until: Some(after(now, rules.pause(opened))),
            probe: None,
            ..*self
        };
        let probes = probe.is_some() && probe == self.probe;
        match (self.open_until, health) {
            (Some(_), _) if !probes => None,
            (Some(_), Some(Health::Down)) => Some(open(self.failures, self.opened + 1)),
            // The probe did not need the provider: the next command may be the probe.
            (Some(_), None) => Some(Self { open_until: Some(now), probe: None, ..*self }),
            (None, Some(Health::Down)) if self.failures + 1 >= rules.failures => {
                Some(open(self.failures + 1, 1))
            }
            (None, Some(Health::Down)) => Some(Self { failures: self.failures + 1, ..*self }),
            (None, Some(Health::Up)) if self.failures == 0 => None,
            (_, Some(Health::Up)) => Some(Self::default()),
            (None, None) => None,
        }
    }
}

fn after(now: Timestamp, time: Duration) -> Timestamp {
    now.plus_millis(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}

/// The breaker, as a queue's consumer uses it.
#[derive(Debug)]
pub struct Circuit {
    /// The billing table.
    pub table: Table,
    /// What the consumer's calls hear.
    pub pulse: Pulse,
    /// When it opens, and for how long.
    pub rules: Rules,
}

/// Whether a command may run.
#[derive(Debug)]
pub enum Entry {
    /// It may; [`Circuit::left`] wants to hear of it.
    Pass(Pass),
    /// It is to come again after that time.
    Wait(Duration),
}

/// A command's leave to call the provider.
#[derive(Debug)]
pub struct Pass {
    seen: State,
    probe: Option<Uuid>,
    entered: (Timestamp, Instant),
}

impl Circuit {
    /// Asked before a command is run.
    pub async fn enter(&self, now: Timestamp) -> Entry {
        let probe = Uuid::new_v4();
        let entered = (now, Instant::now());
        let looked = self.in_time(async {
            let seen: State = self.table.get(&State::key()).await?.unwrap_or_default();
            self.change(seen, |state| state.probed(probe, now)).await
        });
        let (seen, ours) = looked.await.unwrap_or_default();
        self.pulse.take();
        match seen.open_until {
            Some(until) if !ours => {
                metrics::counter!("ProviderCircuitOpen").increment(1);
                let left = u64::try_from(until.millis() - now.millis()).unwrap_or(0);
                Entry::Wait(Duration::from_millis(left) + jittered(self.rules.pause / 2))
            }
            _ => {
                if ours {
                    tracing::info!(opened = seen.opened, "probes whether the provider is back");
                }
                Entry::Pass(Pass { seen, probe: ours.then_some(probe), entered })
            }
        }
    }

    /// Told when the command is over.
    pub async fn left(&self, pass: Pass) {
        let Pass { seen, probe, entered: (entered, since) } = pass;
        let now = after(entered, since.elapsed());
        let health = self.pulse.take();
        if health == Some(Health::Down) {
            metrics::counter!("ProviderFailures").increment(1);
        }
        let was_open = seen.open_until.is_some();
        let heard = self.change(seen, |state| state.heard(health, probe, self.rules, now));
        let Some((state, true)) = self.in_time(heard).await else { return };
        match state.open_until {
            Some(until) if health.is_some() => {
                metrics::counter!("ProviderCircuitOpen").increment(1);
                tracing::warn!(%until, opened = state.opened, "the provider is out: circuit open");
            }
            None if was_open => tracing::info!("the provider is back: circuit closed"),
            _ => {}
        }
    }

    /// Puts what `next` makes of the row; where others were ahead, of theirs. Answers with the row as
    /// it is then, and whether it was changed.
    async fn change(
        &self,
        mut state: State,
        next: impl Fn(&State) -> Option<State>,
    ) -> Result<(State, bool), StoreError> {
        let key = State::key();
        for _ in 0..TRIES {
            let Some(changed) = next(&state) else { break };
            let changed = State { sequence: state.sequence + 1, ..changed };
            let put = Transaction::on(&self.table);
            let put = match state.sequence {
                0 => put.create(&self.table, &key, &changed),
                seen => put.replace_at(&self.table, &key, &changed, seen),
            };
            match put.commit().await? {
                Commit::Done => return Ok((changed, true)),
                Commit::Refused(refused) => state = refused.row(&key)?.unwrap_or_default(),
            }
        }
        Ok((state, false))
    }

    /// The outcome, if there is one in time; else a warning.
    async fn in_time<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Option<T> {
        let reason = match timeout(self.rules.time, Box::pin(work)).await {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {:?}", self.rules.time),
        };
        tracing::warn!(%reason, "goes on without the circuit breaker");
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules =
        Rules { failures: 3, pause: Duration::from_secs(30), time: Duration::from_secs(1) };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    /// How long the circuit stays open after that, in milliseconds.
    fn open_for(state: &State, now: Timestamp) -> i64 {
        state.open_until.expect("it is open").millis() - now.millis()
    }

    #[test]
    fn the_rules_come_from_the_environment_where_it_has_them() {
        let rules = |failures: Option<&str>, pause: Option<&str>| {
            let variables = [("CIRCUIT_FAILURES", failures), ("CIRCUIT_PAUSE_SECONDS", pause)];
            temp_env::with_vars(variables, Rules::of_environment)
        };
        let told = |rules: Result<Rules, ConfigError>| {
            let Rules { failures, pause, time } = rules.expect("rules");
            (failures, pause.as_secs(), time.as_millis())
        };
        assert_eq!(told(rules(None, None)), (5, 30, 500));
        assert_eq!(told(rules(Some("1"), Some("7"))), (1, 7, 500));
        for wrong in ["0", "-1", "many", ""] {
            let error = rules(Some(wrong), None).expect_err(wrong).to_string();
            assert!(error.starts_with("environment variable CIRCUIT_FAILURES is"), "{error}");
            assert_eq!(rules(None, Some(wrong)).expect_err(wrong).name, "CIRCUIT_PAUSE_SECONDS");
        }
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_a_success_begins_anew() {
        let (up, down) = (Some(Health::Up), Some(Health::Down));
        let mut state = State::default();
        for health in [down, down, up, down, down] {
            state = state.heard(health, None, RULES, at(0)).expect("a change");
            assert_eq!(state.open_until, None);
        }
        assert_eq!(state.heard(None, None, RULES, at(0)), None, "who did not call tells nothing");
        state = state.heard(down, None, RULES, at(0)).expect("a change");
        assert_eq!((state.failures, state.opened, state.probe), (3, 1, None));
        let pause = open_for(&state, at(0));
        assert!((24_000..=30_000).contains(&pause), "{pause}");
        // Those who were under way when it opened.
        assert_eq!(state.heard(down, None, RULES, at(1)), None);
        assert_eq!(state.heard(up, None, RULES, at(1)), None);
        assert_eq!(State::default().heard(up, None, RULES, at(0)), None, "no write while well");
    }

    #[test]
    fn each_probe_that_fails_lengthens_the_pause_up_to_its_most() {
        let probe = Uuid::from_u128(1);
        let mut state =
            State { failures: 3, opened: 1, open_until: Some(at(0)), ..State::default() };
        for (opened, most) in (2..).zip([60, 120, 240, 300, 300, 300]) {
            let now = state.open_until.expect("it is open");
            let probed = state.probed(probe, now).expect("a probe");
            assert_eq!(open_for(&probed, now), 30_000, "the probe's lease");
            assert_eq!(probed.probed(Uuid::from_u128(2), now), None, "one probe at a time");
            let stranger = Some(Uuid::from_u128(2));
            assert_eq!(probed.heard(Some(Health::Up), stranger, RULES, now), None);
            state = probed.heard(Some(Health::Down), Some(probe), RULES, now).expect("a change");
            assert_eq!((state.failures, state.opened, state.probe), (3, opened, None));
            let pause = open_for(&state, now);
            assert!((most * 800..=most * 1000).contains(&pause), "{pause} of {most} s");
        }
        let now = state.open_until.expect("it is open");
        let probed = state.probed(probe, now).expect("a probe");
        let idle = probed.heard(None, Some(probe), RULES, now).expect("a change");
        assert_eq!((idle.probe, idle.open_until), (None, Some(now)), "the next one probes");
        let closed = probed.heard(Some(Health::Up), Some(probe), RULES, now).expect("a change");
        assert_eq!(closed, State::default());
    }
}
