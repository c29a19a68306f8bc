//! The state of a bucket in the memory of an execution environment. The state decides whether a request needs a lease,
//! and how many tokens to lease.

use contracts::RateLimit;

use crate::{is_ahead, is_due};

/// The lifetime of a lease or a credit, in milliseconds.
pub const LIFETIME_MILLIS: i64 = 10_000;
/// The maximum size of a lease, in tokens.
const MAX_LEASE: u32 = 100;
/// The minimum time for which a refusal is remembered, in milliseconds: one second, because `Retry-After` has
/// whole seconds.
const MIN_REFUSAL_MILLIS: i64 = 1_000;
/// The maximum time for which a refusal is remembered, in milliseconds.
const MAX_REFUSAL_MILLIS: i64 = 60_000;

/// What an execution environment knows about a bucket. All times are in milliseconds since the epoch.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    /// The number of tokens in the last lease, without those that paid for credit. If the lease ended with unused tokens,
    /// the next request lowers this value to the number of used ones, so that the next lease is smaller.
    size: u32,
    /// The leased tokens that are not used yet.
    tokens: u32,
    /// The tokens that were taken on credit. The next lease pays for them.
    owed: u32,
    /// Until when the bucket is in use: see `is_in_use`.
    expires_at: i64,
    /// Until when requests are refused.
    refused_until: i64,
    /// The last `tat` of the bucket's row that this environment has seen. Other environments may have increased it
    /// since.
    tat: Option<i64>,
    /// Whether the last lease found that other environments use the bucket too.
    shared: bool,
    /// The number of refusals that no log line has reported.
    refusals: u64,
    logged_at: Option<i64>,
}

/// The decision on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Accepted,
    Refused {
        until: i64,
    },
    /// Tokens must be leased first.
    Lease(Lease),
}

/// What to lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// The tokens that pay for the credit. They serve no further request.
    pub owed: u32,
    /// The tokens to lease in addition to `owed`.
    pub wanted: u32,
    /// The last `tat` of the row that the environment has seen. `None` if it has seen none.
    pub tat: Option<i64>,
    /// Whether the last lease found that other environments use the bucket too.
    pub shared: bool,
}

/// The result of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Tokens were taken, including those that were owed.
    Taken { tokens: u32, tat: i64, shared: bool },
    /// There are not enough tokens before `until`, or each update was refused and `until` is now. Nothing was taken.
    Empty { until: i64, tat: i64 },
}

impl Bucket {
    /// Decides on a request. Takes a token if that is possible without the table. If `blocks` is false, each request
    /// leases one token from the table, unless a refusal is remembered.
    pub fn take(&mut self, limit: RateLimit, blocks: bool, now: i64) -> Decision {
        if is_ahead(self.refused_until, now, MAX_REFUSAL_MILLIS) {
            return Decision::Refused { until: self.refused_until };
        }
        if !blocks {
            return Decision::Lease(self.lease(1));
        }
        if !self.is_in_use(now) {
            self.size = self.size.saturating_sub(self.tokens);
            (self.tokens, self.owed) = (0, 1);
            self.expires_at = now.saturating_add(LIFETIME_MILLIS);
            return Decision::Accepted;
        }
        if self.tokens > 0 {
            self.tokens -= 1;
            return Decision::Accepted;
        }
        let used_up_quickly = self.expires_at.saturating_sub(now) > LIFETIME_MILLIS / 2;
        let size = match self.owed {
            0 if used_up_quickly => self.size.saturating_mul(2),
            _ => self.size,
        };
        Decision::Lease(self.lease(size.clamp(1, max_lease(limit))))
    }

    /// Returns a lease of the wanted tokens and those that are owed.
    fn lease(&self, wanted: u32) -> Lease {
        Lease { owed: self.owed, wanted, tat: self.tat, shared: self.shared }
    }

    /// Applies the result of a lease. Takes a token for the request that needed it, or returns the time until which
    /// requests are refused.
    pub fn settle(&mut self, lease: Lease, outcome: Outcome, now: i64) -> Option<i64> {
        match outcome {
            Outcome::Taken { tokens, tat, shared } => {
                (self.tat, self.shared) = (Some(tat), shared);
                self.owed = self.owed.saturating_sub(lease.owed);
                self.size = tokens.saturating_sub(lease.owed);
                // A concurrent request may have leased tokens too, so those are kept.
                self.tokens = self.tokens.saturating_add(self.size).saturating_sub(1);
                self.refused_until = 0;
                self.expires_at = now.saturating_add(LIFETIME_MILLIS);
                None
            }
            Outcome::Empty { until, tat } => {
                self.tat = Some(tat);
                let wait = until.saturating_sub(now);
                let wait = wait.clamp(MIN_REFUSAL_MILLIS, MAX_REFUSAL_MILLIS);
                self.refused_until = now.saturating_add(wait);
                // A sender that comes back soon after the refusal gets no new credit.
                self.expires_at = self.refused_until.saturating_add(LIFETIME_MILLIS);
                Some(self.refused_until)
            }
        }
    }

    /// Returns whether the bucket has a lease or a credit whose lifetime has not passed, or a refusal that ended less
    /// than [`LIFETIME_MILLIS`] ago or has not ended.
    pub fn is_in_use(&self, now: i64) -> bool {
        is_ahead(self.expires_at, now, LIFETIME_MILLIS + MAX_REFUSAL_MILLIS)
    }

    /// Counts a refusal. Returns the number of refusals since the last log line if a line is due.
    pub fn count_refusal(&mut self, now: i64) -> Option<u64> {
        self.refusals = self.refusals.saturating_add(1);
        if !is_due(self.logged_at, now) {
            return None;
        }
        self.logged_at = Some(now);
        Some(std::mem::take(&mut self.refusals))
    }
}

/// Returns the maximum size of a lease: at most half of the bucket.
fn max_lease(limit: RateLimit) -> u32 {
    MAX_LEASE.min(limit.burst() / 2)
}
