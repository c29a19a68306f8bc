//! Timestamps, as they are written in JSON and in rows.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

/// A time as RFC 3339. Fieldstation writes UTC with exactly three decimals, such as `2026-01-01T12:00:00.000Z`, so
/// sorting the texts sorts the times.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// Returns the current time, truncated to milliseconds.
    #[must_use]
    pub fn now() -> Self {
        Self::from_millis(jiff::Timestamp::now().as_millisecond())
    }

    /// Creates a timestamp from milliseconds since the Unix epoch. Times outside the years -9999 to 9999 are clamped.
    #[must_use]
    pub fn from_millis(millis: i64) -> Self {
        let outside = if millis < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX };
        Self(jiff::Timestamp::from_millisecond(millis).unwrap_or(outside))
    }

    /// Returns milliseconds since the Unix epoch.
    #[must_use]
    pub fn millis(self) -> i64 {
        self.0.as_millisecond()
    }

    /// Returns whole seconds since the Unix epoch, the unit of DynamoDB's TTL.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.0.as_second()
    }

    /// Returns the day in UTC, such as `2026-11-29`.
    #[must_use]
    pub fn day(self) -> String {
        self.0.strftime("%F").to_string()
    }

    /// Returns this time plus `millis` milliseconds.
    #[must_use]
    pub fn plus_millis(self, millis: i64) -> Self {
        Self::from_millis(self.millis().saturating_add(millis))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.0)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_order_is_time_order() {
        let whole: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let later = whole.plus_millis(5);
        assert_eq!(whole.to_string(), "2026-01-01T00:00:00.000Z");
        assert_eq!(later.to_string(), "2026-01-01T00:00:00.005Z");
        assert!(whole.to_string() < later.to_string());
    }

    #[test]
    fn a_time_out_of_range_is_clamped() {
        assert_eq!(Timestamp::from_millis(i64::MAX).to_string(), "9999-12-30T22:00:00.999Z");
        assert_eq!(Timestamp::from_millis(i64::MIN).to_string(), "-009999-01-02T01:59:59.000Z");
    }

    #[test]
    fn the_day_is_that_of_utc() {
        let last: Timestamp = "2026-01-01T01:59:59.999+02:00".parse().expect("a time");
        assert_eq!([last, last.plus_millis(1)].map(Timestamp::day), ["2025-12-31", "2026-01-01"]);
    }

    #[test]
    fn seconds_and_milliseconds_are_not_mixed() {
        let time: Timestamp = "2026-01-01T00:00:01.500Z".parse().expect("a time");
        assert_eq!(time.millis(), 1_767_225_601_500);
        assert_eq!(time.seconds(), 1_767_225_601);
    }
}
