//! Readings on their way: a bundle is the unit of transport, of idempotency and of storage.
//!
//! It is the body of `POST /readings` and the data of a record on the readings stream.

use std::{collections::HashSet, fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{SensorId, SiteId, Timestamp};

/// The name of [`Bundle`]'s schema.
pub const BUNDLE: &str = "Bundle";
/// As many sensors as a site can have.
pub const MOST_SERIES: usize = 100;
/// How far a data logger's clock may be ahead of ours: 15 minutes, in milliseconds.
pub const MOST_AHEAD_MILLIS: i64 = 15 * 60 * 1000;
/// No reading is older: text order would not be time order before the year 0, and a time before the
/// epoch is a logger whose clock was never set.
const OLDEST_MILLIS: i64 = 0;
const LONGEST_BUNDLE_ID: usize = 64;

/// The data logger's number of a bundle, unique at its site: 1 to 64 letters, digits and `._:+-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct BundleId(String);

impl BundleId {
    /// The number's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is no [`BundleId`].
#[derive(Debug, thiserror::Error)]
#[error("is no bundle id: give 1 to {LONGEST_BUNDLE_ID} letters, digits and any of . _ : + -")]
pub struct NoBundleId;

impl TryFrom<String> for BundleId {
    type Error = NoBundleId;

    fn try_from(text: String) -> Result<Self, NoBundleId> {
        let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"._:+-".contains(byte);
        if (1..=LONGEST_BUNDLE_ID).contains(&text.len()) && text.as_bytes().iter().all(good) {
            Ok(Self(text))
        } else {
            Err(NoBundleId)
        }
    }
}

impl FromStr for BundleId {
    type Err = NoBundleId;

    fn from_str(text: &str) -> Result<Self, NoBundleId> {
        text.to_owned().try_into()
    }
}

impl fmt::Display for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BundleId({})", self.0)
    }
}

impl JsonSchema for BundleId {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "BundleId".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[A-Za-z0-9._:+-]{1,64}$" })
    }
}

/// What a data logger sends at a time: some minutes of its sensors' samples. The same bundle may be
/// sent again, and counts once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bundle {
    /// The logger's number of it.
    pub bundle_id: BundleId,
    /// The site; also the record's partition key on the stream.
    pub site_id: SiteId,
    /// 1 to 100, each sensor once.
    #[schemars(length(min = 1, max = MOST_SERIES))]
    pub series: Vec<Series>,
}

/// The samples of one sensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Series {
    /// The sensor.
    pub sensor_id: SensorId,
    /// At least one, each later than the one before.
    #[schemars(length(min = 1))]
    pub samples: Vec<Sample>,
}

/// `[time, value]`: when it was taken (cut to milliseconds), and what was read, in the unit that
/// was fixed when the sensor was provisioned.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sample(pub Timestamp, pub f64);

/// A bundle that is JSON of the right shape and still can't be taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {problem}")]
pub struct BundleProblem {
    /// Path of the field, e.g. `series[2].samples[0]`.
    pub at: String,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

impl Bundle {
    /// Whether it can be taken: everything that the types don't say.
    pub fn check(&self, now: Timestamp) -> Result<(), BundleProblem> {
        let problem = |at: String, problem: String| Err(BundleProblem { at, problem });
        if self.series.is_empty() || self.series.len() > MOST_SERIES {
            let there = self.series.len();
            return problem(
                "series".to_owned(),
                format!("has {there} entries; give 1 to {MOST_SERIES}"),
            );
        }
        let newest = now.millis().saturating_add(MOST_AHEAD_MILLIS);
        let mut sensors = HashSet::with_capacity(self.series.len());
        for (index, series) in self.series.iter().enumerate() {
            if !sensors.insert(series.sensor_id) {
                return problem(
                    format!("series[{index}].sensorId"),
                    format!("{} is there already; give each sensor once", series.sensor_id),
                );
            }
            if series.samples.is_empty() {
                return problem(
                    format!("series[{index}].samples"),
                    "is empty; leave the series out".to_owned(),
                );
            }
            let mut before = OLDEST_MILLIS - 1;
            for (place, Sample(at, value)) in series.samples.iter().enumerate() {
                let at_field = || format!("series[{index}].samples[{place}]");
                let millis = at.millis();
                if millis < OLDEST_MILLIS {
                    return problem(at_field(), format!("{at} is before 1970; set the clock"));
                }
                if millis > newest {
                    return problem(
                        at_field(),
                        format!("{at} is more than 15 minutes ahead of our clock, {now}"),
                    );
                }
                if millis <= before {
                    return problem(
                        at_field(),
                        format!("{at} is not after the sample before it; sort them, one each time"),
                    );
                }
                if !value.is_finite() {
                    return problem(at_field(), "is no finite number; leave it out".to_owned());
                }
                before = millis;
            }
        }
        Ok(())
    }

    /// How many samples it holds.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.series.iter().map(|series| series.samples.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OnboardingId;

    fn site() -> SiteId {
        SiteId::registered("", "readings")
    }

    fn sensor(index: usize) -> SensorId {
        SensorId::of(OnboardingId::of(site()), index)
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn bundle(series: Vec<(usize, &[&str])>) -> Bundle {
        Bundle {
            bundle_id: "b-1".parse().expect("an id"),
            site_id: site(),
            series: series
                .into_iter()
                .map(|(index, times)| Series {
                    sensor_id: sensor(index),
                    samples: times.iter().map(|time| Sample(at(time), 1.0)).collect(),
                })
                .collect(),
        }
    }

    #[test]
    fn what_can_not_be_taken_is_told_by_its_field() {
        let now = at("2026-01-01T12:00:00Z");
        let check = |series| bundle(series).check(now).map_err(|problem| problem.to_string());
        assert_eq!(check(vec![(0, &["2026-01-01T11:00:00Z", "2026-01-01T12:15:00Z"])]), Ok(()));
        for (series, told) in [
            (vec![], "series: has 0 entries"),
            (vec![(0, &[][..])], "series[0].samples: is empty"),
            (
                vec![(0, &["2026-01-01T11:00:00Z"][..]), (0, &["2026-01-01T11:00:00Z"])],
                "series[1].sensorId: ",
            ),
            (
                vec![(0, &["2026-01-01T12:15:00.001Z"])],
                "series[0].samples[0]: 2026-01-01T12:15:00.001Z is more than 15 minutes ahead",
            ),
            (
                vec![(0, &["1969-12-31T23:59:59.999Z"])],
                "series[0].samples[0]: 1969-12-31T23:59:59.999Z is before 1970",
            ),
            // The same millisecond, though not the same text.
            (
                vec![(0, &["2026-01-01T11:00:00.0001Z", "2026-01-01T11:00:00.0002Z"])],
                "series[0].samples[1]: 2026-01-01T11:00:00.000Z is not after the sample before it",
            ),
        ] {
            let refused = check(series).expect_err(told);
            assert!(refused.starts_with(told), "{refused}");
        }
        let mut infinite = bundle(vec![(0, &["2026-01-01T11:00:00Z"])]);
        infinite.series[0].samples[0].1 = f64::INFINITY;
        assert!(infinite.check(now).is_err());
    }

    #[test]
    fn a_bundle_id_fits_into_a_key_and_a_log() {
        for good in ["1", "SLV:2016-01-01T00.15_a+b", &"x".repeat(64)] {
            assert!(good.parse::<BundleId>().is_ok(), "{good}");
        }
        for bad in ["", "a b", "a/b", "ä", "a#b", &"x".repeat(65)] {
            assert!(bad.parse::<BundleId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_sample_is_a_pair() {
        let sample: Sample =
            serde_json::from_str(r#"["2026-01-01T12:00:00+01:00", -1.8]"#).expect("a sample");
        assert_eq!(sample, Sample(at("2026-01-01T11:00:00Z"), -1.8));
        assert_eq!(
            serde_json::to_string(&sample).expect("JSON"),
            r#"["2026-01-01T11:00:00.000Z",-1.8]"#
        );
        for bad in [
            r#"["2026-01-01T12:00:00Z"]"#,
            r#"["2026-01-01T12:00:00Z", null]"#,
            r#"["2026-01-01T12:00:00Z", 1, 2]"#,
            r#"["2026-01-01T12:00:00Z", 1e999]"#,
            r#"["12:00", 1]"#,
        ] {
            assert!(serde_json::from_str::<Sample>(bad).is_err(), "{bad}");
        }
    }
}
