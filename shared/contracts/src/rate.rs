//! How many requests a caller may send.

use crate::{OperatorId, Plan};

/// A rate limit: a bucket that holds `burst` tokens and gets `per_second` new ones each second. Each request takes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RateLimit {
    per_second: u32,
    burst: u32,
}

impl RateLimit {
    /// The limit of each API key with the scope `logger:<site>`. It is for a data logger that sends its backlog after a
    /// break: 120 bundles at once, then two per second.
    pub const LOGGER_KEY: Self = Self::new(2, 120);

    /// The limit of the default operator: half of what the stage accepts. A deployment that has no other operators may
    /// send about as much as before there were limits.
    const DEFAULT_OPERATOR: Self = Self::new(500, 1_000);

    /// The limit of the calls that start sagas, of all operators together. It protects Step Functions and the payment
    /// provider: 10 onboardings per second are what the quotas allow for a long time (`docs/cost.md`).
    ///
    /// One operator may use at most half of it: half of the tokens per second, and half of the bucket.
    pub const ALL_SAGAS: Self = Self::new(10, 400);

    /// The limit of the calls that start sagas, of each operator.
    const SAGAS: Self = Self::new(2, 20);

    /// The limit of the calls that start sagas, of the default operator.
    const DEFAULT_OPERATOR_SAGAS: Self = Self::new(5, 200);

    /// Returns the limit of all requests of an operator together.
    #[must_use]
    pub fn of_operator(operator: OperatorId, plan: Plan) -> Self {
        if operator == OperatorId::DEFAULT { Self::DEFAULT_OPERATOR } else { plan.rate_limit() }
    }

    /// Returns the limit of an operator's calls that start sagas.
    #[must_use]
    pub fn sagas_of_operator(operator: OperatorId) -> Self {
        if operator == OperatorId::DEFAULT { Self::DEFAULT_OPERATOR_SAGAS } else { Self::SAGAS }
    }

    const fn new(per_second: u32, burst: u32) -> Self {
        // A bucket's row counts in whole milliseconds.
        assert!(
            per_second > 0 && 1_000 % per_second == 0,
            "the interval must be whole milliseconds"
        );
        assert!(burst >= 2 && burst <= 1_000_000, "a lease must be smaller than the bucket");
        Self { per_second, burst }
    }

    /// Returns the number of tokens per second.
    #[must_use]
    pub const fn per_second(self) -> u32 {
        self.per_second
    }

    /// Returns the number of tokens of a full bucket.
    #[must_use]
    pub const fn burst(self) -> u32 {
        self.burst
    }

    /// Returns the time between two tokens, in milliseconds.
    #[must_use]
    pub const fn interval_millis(self) -> i64 {
        (1_000 / self.per_second) as i64
    }
}

impl Plan {
    /// Returns the limit of all requests of an operator with this plan together.
    ///
    /// 10 requests per second are 9,000 data loggers that send every 15 minutes. Each bucket is full again after 10
    /// seconds without requests.
    ///
    /// The highest rate is a twentieth of what the stage accepts from all operators together (`ThrottlingRateLimit`
    /// in the gateway's template). So an operator that sends too much is refused here, alone, and not by the stage,
    /// together with the others.
    #[must_use]
    pub const fn rate_limit(self) -> RateLimit {
        match self {
            Self::Community => RateLimit::new(10, 100),
            Self::Standard => RateLimit::new(20, 200),
            Self::Professional => RateLimit::new(50, 500),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_operator_may_send_more_than_any_plan_allows() {
        for plan in Plan::ALL {
            let limit = RateLimit::of_operator(OperatorId::DEFAULT, *plan);
            assert!(limit.per_second() >= 10 * plan.rate_limit().per_second(), "{plan:?}");
            let other = OperatorId::registered("other");
            assert_eq!(RateLimit::of_operator(other, *plan), plan.rate_limit());
        }
    }

    #[test]
    fn no_operator_can_start_more_than_half_of_all_sagas() {
        let all = RateLimit::ALL_SAGAS;
        for operator in [OperatorId::DEFAULT, OperatorId::registered("other")] {
            let limit = RateLimit::sagas_of_operator(operator);
            assert!(2 * limit.per_second() <= all.per_second(), "{operator}");
            assert!(2 * limit.burst() <= all.burst(), "{operator}");
        }
    }

    #[test]
    fn every_plan_has_a_limit_and_a_change_of_the_plan_keeps_the_bucket() {
        for plan in Plan::ALL {
            let limit = plan.rate_limit();
            assert_eq!(limit.burst(), 10 * limit.per_second(), "{plan:?}");
            assert_eq!(limit.interval_millis() * i64::from(limit.per_second()), 1_000, "{plan:?}");
            assert!(RateLimit::LOGGER_KEY.per_second() < limit.per_second(), "{plan:?}");
        }
    }
}
