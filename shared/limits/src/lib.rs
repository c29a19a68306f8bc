//! The rate limits that Fieldstation enforces itself.
//!
//! # Buckets
//!
//! A token bucket has a rate and a burst ([`contracts::RateLimit`]). A request takes one token from each of these
//! buckets, in this order:
//!
//! 1. the bucket of its logger key, if it has one;
//! 2. the bucket of its operator;
//! 3. if it is a `POST /sites` or a `DELETE /sites/{siteId}`, which start sagas, and its caller may start sagas: the
//!    operator's bucket for sagas;
//! 4. for the same requests: the bucket for sagas of all operators.
//!
//! The limits table has one row per bucket. The attribute `tat` of a row is the time at which the bucket is full again,
//! in milliseconds since the epoch. It is the "theoretical arrival time" of the generic cell rate algorithm (GCRA). An
//! interval is the time in which a bucket gets one new token. Taking a token moves `tat` one interval into the future.
//! Tokens are taken by a conditional update, without an earlier read. The execution environment guesses from the last
//! `tat` that it saw whether the bucket is full. If the guess is wrong, another update follows.
//!
//! If the table can't be used, requests are allowed.
//!
//! # Leases
//!
//! A write per request would cost too much. So an execution environment leases a block of tokens at once. Its next requests
//! use these tokens. A lease ends after [`LIFETIME_MILLIS`]; tokens that are left then are lost.
//!
//! - The first lease has one token. If a lease is used up in less than half of its lifetime, the next one is twice as
//!   large. So an environment with few requests does not hold many tokens.
//! - A lease has at most 100 tokens, and at most half of the bucket's burst.
//! - If the bucket is empty, the environment remembers this until there are tokens again, and for at least a second.
//!   The requests that it refuses in the meantime cost no write.
//!
//! # Credit
//!
//! If an environment has no lease, its first request needs none: it takes its token on credit, without a write. The
//! next lease pays for it. If there is neither a lease nor a refusal within [`LIFETIME_MILLIS`], the credit is
//! forgotten. So the bucket of a data logger that sends every 15 minutes never costs a write. A refusal does not cancel
//! a credit: the next lease still pays for it. Until [`LIFETIME_MILLIS`] after the end of the refusal, the environment
//! grants no new credit. After that, an unpaid credit is forgotten.
//!
//! # Upper bound
//!
//! While the table can be used, a bucket accepts at most `rate * (t + 10) + burst` requests in any `t` seconds, plus one
//! on credit for each execution environment. The 10 seconds are the lifetime of a lease: its tokens may be used up to 10
//! seconds after they were taken from the row. The bound has these exceptions:
//!
//! - An environment grants one more credit to the first request after the end of its last lease or credit. It also does
//!   so after it has removed the bucket from memory, because it had too many buckets.
//! - The clocks of the environments may differ. A clock that is ahead by `s` seconds adds at most `rate * s` requests,
//!   once. (An environment that finds a `tat` far in the future starts the row again, as if the bucket were full.)
//!
//! # Buckets for sagas
//!
//! The buckets for sagas have no leases and no credit. Each request takes its token from the row, or is refused. (As
//! with all buckets, it is allowed if the table can't be used.) The rates of these buckets are small, so a lease would
//! hold a large part of the tokens. The requests are rare, so each may cost a write. While the table can be used, such
//! a bucket accepts at most `rate * t + burst` requests in any `t` seconds, with the same exception for clocks.

mod bucket;
mod row;

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use contracts::{OperatorId, Plan, RateLimit, Timestamp};
use store::{StoreError, Table};

pub use crate::bucket::LIFETIME_MILLIS;
use crate::{
    bucket::{Bucket, Decision},
    row::Row,
};

/// The maximum number of buckets in memory. A bucket takes about 200 bytes.
const MAX_BUCKETS: usize = 2_000;
/// The timeout of a lease, in milliseconds. After it, the request is allowed.
const LEASE_TIMEOUT_MILLIS: i64 = 1_000;
/// [`LEASE_TIMEOUT_MILLIS`] as a duration.
const LEASE_TIMEOUT: Duration = Duration::from_millis(LEASE_TIMEOUT_MILLIS.unsigned_abs());
/// The time after a failed lease in which requests that need a lease are allowed without one, in milliseconds. So a
/// table that fails slowly or does not respond does not slow down every request.
const PAUSE_MILLIS: i64 = 1_000;
/// If the lease of a request fails, the pause ends at most this many milliseconds after the start of the request. The
/// lease fails after up to [`LEASE_TIMEOUT_MILLIS`]. Then the pause lasts [`PAUSE_MILLIS`]. If the end of a pause is
/// further ahead, the clock was set back in the meantime, and the pause is ignored ([`is_ahead`]).
const MAX_PAUSE_MILLIS: i64 = PAUSE_MILLIS + LEASE_TIMEOUT_MILLIS;
/// The minimum time between two log lines about the same cause, in milliseconds.
const LOG_INTERVAL_MILLIS: i64 = 60_000;

/// A request that is refused, because its bucket is empty, or because other environments changed the bucket's row during
/// each attempt to lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whose bucket is empty.
    pub of: Holder,
    /// The limit of the bucket.
    pub limit: RateLimit,
    /// The time after which there are tokens again, in seconds: at least 1.
    pub retry_after: u16,
    /// The number of refusals since the last log line, this one included, if a log line is due. Otherwise `None`.
    pub to_log: Option<u64>,
}

/// The holder of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// All requests of an operator.
    Operator,
    /// The requests with one logger key.
    LoggerKey,
    /// The requests of an operator that start sagas.
    OperatorSagas,
    /// The requests of all operators that start sagas.
    AllSagas,
}

impl Holder {
    /// Returns whether the tokens of the bucket are leased in blocks.
    const fn leases_blocks(self) -> bool {
        match self {
            Self::Operator | Self::LoggerKey => true,
            Self::OperatorSagas | Self::AllSagas => false,
        }
    }
}

/// The caller of a request.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    /// The operator.
    pub operator: OperatorId,
    /// The plan of the operator.
    pub plan: Plan,
    /// The actor of the logger key (`key:<visible prefix>`), which identifies it among the keys of the operator. `None`
    /// if the caller uses no logger key.
    pub logger_key: Option<&'a str>,
    /// Whether the caller may start sagas. If not, the function refuses the call later, so the call must not take the
    /// tokens of sagas.
    pub may_start_sagas: bool,
}

/// The rate limits, as one execution environment applies them.
#[derive(Debug)]
pub struct Limits {
    table: Table,
    /// Whether the requests of this function start sagas.
    start_sagas: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    buckets: HashMap<String, Bucket>,
    /// No lease is tried before this time, in milliseconds since the epoch.
    paused_until: i64,
    failure_logged_at: Option<i64>,
}

impl Limits {
    /// Creates the limits with their state in the limits table.
    #[must_use]
    pub fn new(table: Table) -> Self {
        Self { table, start_sagas: false, state: Mutex::default() }
    }

    /// Returns the limits of a function whose requests start sagas.
    #[must_use]
    pub fn of_sagas(self) -> Self {
        Self { start_sagas: true, ..self }
    }

    /// Takes a token from each bucket of the sender. Returns the refusal if one is empty, or if its row changes too
    /// often.
    ///
    /// If the table can't be used, the request is allowed.
    pub async fn check(&self, sender: Sender<'_>, now: Timestamp) -> Result<(), Refusal> {
        let operator = sender.operator;
        // The key's bucket comes first, so a request that it refuses takes no token of the operator.
        if let Some(key) = sender.logger_key {
            let id = format!("key#{operator}#{key}");
            self.take(id, Holder::LoggerKey, RateLimit::LOGGER_KEY, now.millis()).await?;
        }
        let id = format!("operator#{operator}");
        let limit = RateLimit::of_operator(operator, sender.plan);
        self.take(id, Holder::Operator, limit, now.millis()).await?;
        if !(self.start_sagas && sender.may_start_sagas) {
            return Ok(());
        }
        // The operator's bucket comes first, so a request that it refuses takes no token of the other operators.
        let id = format!("sagas#{operator}");
        let limit = RateLimit::sagas_of_operator(operator);
        self.take(id, Holder::OperatorSagas, limit, now.millis()).await?;
        let id = "sagas#all".to_owned();
        self.take(id, Holder::AllSagas, RateLimit::ALL_SAGAS, now.millis()).await
    }

    async fn take(
        &self,
        id: String,
        of: Holder,
        limit: RateLimit,
        now: i64,
    ) -> Result<(), Refusal> {
        let refusal = |bucket: &mut Bucket, until: i64| Refusal {
            of,
            limit,
            retry_after: seconds(until.saturating_sub(now)),
            to_log: bucket.count_refusal(now),
        };
        let lease = {
            let mut state = self.state();
            let paused = is_ahead(state.paused_until, now, MAX_PAUSE_MILLIS);
            let bucket = state.bucket(&id, now);
            match bucket.take(limit, of.leases_blocks(), now) {
                Decision::Accepted => return Ok(()),
                Decision::Refused { until } => return Err(refusal(bucket, until)),
                Decision::Lease(_) if paused => {
                    count_unavailable();
                    return Ok(());
                }
                Decision::Lease(lease) => lease,
            }
        };
        let row = Row { table: &self.table, id: &id, limit };
        let started = Instant::now();
        let leased = tokio::time::timeout(LEASE_TIMEOUT, row.lease(lease, now)).await;
        let leased = leased
            .unwrap_or_else(|_| Err(StoreError::Transient("the lease took too long".to_owned())));
        let mut state = self.state();
        match leased {
            Ok(outcome) => {
                let bucket = state.bucket(&id, now);
                match bucket.settle(lease, outcome, now) {
                    None => Ok(()),
                    Some(until) => Err(refusal(bucket, until)),
                }
            }
            Err(error) => {
                state.log_failure(&error, now);
                let took = i64::try_from(started.elapsed().as_millis())
                    .map_or(LEASE_TIMEOUT_MILLIS, |took| took.min(LEASE_TIMEOUT_MILLIS));
                state.paused_until = now.saturating_add(took).saturating_add(PAUSE_MILLIS);
                count_unavailable();
                Ok(())
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the bucket, which is new if it is not in memory. If memory has too many buckets, first removes those
    /// that are not in use, or all if that does not suffice.
    fn bucket(&mut self, id: &str, now: i64) -> &mut Bucket {
        if self.buckets.len() >= MAX_BUCKETS && !self.buckets.contains_key(id) {
            self.buckets.retain(|_, bucket| bucket.is_in_use(now));
            if self.buckets.len() >= MAX_BUCKETS {
                // The leased tokens are lost. The refusals are forgotten too, but the next lease finds in the table
                // that the bucket is empty.
                self.buckets.clear();
            }
        }
        self.buckets.entry(id.to_owned()).or_default()
    }

    fn log_failure(&mut self, error: &StoreError, now: i64) {
        if is_due(self.failure_logged_at, now) {
            self.failure_logged_at = Some(now);
            tracing::error!(reason = %error, "rate limits can't be checked; requests are allowed");
        }
    }
}

/// Counts a bucket that a request passes without a check, because the table can't be used.
fn count_unavailable() {
    metrics::counter!("RateLimitsUnavailable").increment(1);
}

/// Returns whether a log line is due.
fn is_due(logged_at: Option<i64>, now: i64) -> bool {
    logged_at.is_none_or(|at| {
        !is_ahead(at.saturating_add(LOG_INTERVAL_MILLIS), now, LOG_INTERVAL_MILLIS)
    })
}

/// Returns whether `time` is after `now` by at most `by` milliseconds. A time that is further ahead was stored before
/// the clock was set back, so it must not have an effect.
fn is_ahead(time: i64, now: i64, by: i64) -> bool {
    (1..=by).contains(&time.saturating_sub(now))
}

/// Converts milliseconds to whole seconds, rounded up, at least 1.
fn seconds(millis: i64) -> u16 {
    u16::try_from(millis.max(1).div_euclid(1_000) + i64::from(millis.rem_euclid(1_000) > 0))
        .unwrap_or(u16::MAX)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_buckets_in_memory_is_bounded() {
        let mut state = State::default();
        for id in 0..3 * MAX_BUCKETS {
            state.bucket(&id.to_string(), 0).take(RateLimit::LOGGER_KEY, true, 0);
            assert!(state.buckets.len() <= MAX_BUCKETS);
        }
        // A bucket that is in use is kept if the other buckets are not in use.
        let later = LIFETIME_MILLIS;
        state.bucket("in use", later).take(RateLimit::LOGGER_KEY, true, later);
        for id in 0..MAX_BUCKETS {
            state.bucket(&format!("new {id}"), later);
        }
        assert!(state.buckets.contains_key("in use"));
    }

    #[test]
    fn a_wait_is_rounded_up_to_whole_seconds() {
        for (millis, rounded) in [
            (i64::MIN, 1),
            (0, 1),
            (1, 1),
            (1_000, 1),
            (1_001, 2),
            (60_000, 60),
            (i64::MAX, u16::MAX),
        ] {
            assert_eq!(seconds(millis), rounded, "{millis}");
        }
    }
}
