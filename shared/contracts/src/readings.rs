//! Bundles of readings. A bundle is the unit of transport. Each of its series is stored once.
//!
//! It is the body of `POST /readings` and the data of a record of the readings stream.

use std::{collections::HashSet, fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Visitor};

use crate::{
    SensorId, SiteId, Timestamp,
    input::{self, FieldError, FieldRule, Fields, JsonValue, List, Parsed, Problems, Reason},
    number,
};

/// The name of [`Bundle`]'s schema.
pub const BUNDLE_SCHEMA: &str = "Bundle";
/// The maximum number of series in a bundle. It is also the maximum number of sensors of a site.
pub const MAX_SERIES: usize = 100;
/// The maximum number of samples in a series. The largest bundle has no room for more.
pub const MAX_SAMPLES: usize = 100_000;
/// How far a data logger's clock may be ahead of the server's: 15 minutes, in milliseconds.
pub const MAX_AHEAD_MILLIS: i64 = 15 * 60 * 1000;
/// The earliest time of a sample: the epoch. An earlier time means that the logger's clock was never set. The
/// minimum also excludes years before 0: their texts do not sort in the order of time.
const MIN_SAMPLE_MILLIS: i64 = 0;
const MAX_BUNDLE_ID: usize = 64;

/// The data logger's id of a bundle, unique at its site: 1 to 64 letters, digits and `._:+-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct BundleId(String);

impl BundleId {
    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The error for a text that is not a valid [`BundleId`].
#[derive(Debug, thiserror::Error)]
#[error("is not a bundle id; give 1 to {MAX_BUNDLE_ID} letters, digits and any of . _ : + -")]
pub struct InvalidBundleId;

impl TryFrom<String> for BundleId {
    type Error = InvalidBundleId;

    fn try_from(text: String) -> Result<Self, InvalidBundleId> {
        let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"._:+-".contains(byte);
        if (1..=MAX_BUNDLE_ID).contains(&text.len()) && text.as_bytes().iter().all(good) {
            Ok(Self(text))
        } else {
            Err(InvalidBundleId)
        }
    }
}

impl FromStr for BundleId {
    type Err = InvalidBundleId;

    fn from_str(text: &str) -> Result<Self, InvalidBundleId> {
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

/// A bundle of readings: the samples that a data logger sends in one request, usually of some minutes. A bundle that is
/// sent several times is stored once.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bundle {
    /// The data logger's id of the bundle, unique at its site. It is the idempotency key.
    pub bundle_id: BundleId,
    /// The id of the site. It is also the partition key of the record in the stream.
    pub site_id: SiteId,
    /// The samples by sensor: 1 to 100 entries, each with a different sensor.
    #[schemars(length(min = 1, max = MAX_SERIES))]
    pub series: Vec<Series>,
}

/// The samples of one sensor.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Series {
    /// The id of the sensor.
    pub sensor_id: SensorId,
    /// The samples, at least one. Each must be later than the one before.
    #[schemars(length(min = 1, max = MAX_SAMPLES))]
    pub samples: Vec<Sample>,
}

/// A sample: `[time, value]`. The time is when the sample was taken. It is truncated to milliseconds, and must be in
/// 1970 or later and at most 15 minutes in the future. The value is in the unit of the sensor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sample(pub Timestamp, #[schemars(schema_with = "number::finite")] pub f64);

impl<'de> Deserialize<'de> for Bundle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct Members {
            bundle_id: BundleId,
            site_id: SiteId,
            series: Vec<Series>,
        }

        let Members { bundle_id, site_id, series } =
            Members::deserialize(ObjectOnly(deserializer))?;
        Ok(Self { bundle_id, site_id, series })
    }
}

impl<'de> Deserialize<'de> for Series {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct Members {
            sensor_id: SensorId,
            samples: Vec<Sample>,
        }

        let Members { sensor_id, samples } = Members::deserialize(ObjectOnly(deserializer))?;
        Ok(Self { sensor_id, samples })
    }
}

/// Accepts only objects. A derived `Deserialize` also accepts an array for a struct.
struct ObjectOnly<D>(D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for ObjectOnly<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier
        ignored_any
    }
}

impl Bundle {
    /// Reads a bundle from JSON text. The error lists all problems.
    pub fn read(json: &str, now: Timestamp) -> Result<Self, Vec<FieldError>> {
        // Most bundles are valid, and serde reads those several times as fast as the rules do.
        if let Ok(bundle) = serde_json::from_str::<Self>(json)
            && bundle.check(now).is_ok()
        {
            return Ok(bundle);
        }
        input::from_json(json, &BundleRule { newest: newest(now) })
    }

    /// Checks everything that the types do not guarantee.
    pub fn check(&self, now: Timestamp) -> Result<(), Vec<FieldError>> {
        let mut problems = Problems::default();
        let count = self.series.len();
        if count == 0 || count > MAX_SERIES {
            let message = format!("has {count} entries; give 1 to {MAX_SERIES}");
            problems.add_as(Reason::WrongCount, "series", message);
        }
        check_sensors(self.series.iter().map(|series| Some(series.sensor_id)), &mut problems);
        for (index, series) in self.series.iter().enumerate() {
            let at = || format!("series[{index}].samples");
            let count = series.samples.len();
            if count == 0 || count > MAX_SAMPLES {
                let message = format!("has {count} entries; give 1 to {MAX_SAMPLES}");
                problems.add_as(Reason::WrongCount, at(), message);
            }
            let samples = series.samples.iter().map(|sample| Some(*sample));
            check_samples(samples, newest(now), at, &mut problems);
        }
        problems.or(Some(()))
    }

    /// Returns the number of samples.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.series.iter().map(|series| series.samples.len()).sum()
    }
}

/// Returns the latest accepted time of a sample, in milliseconds since the Unix epoch.
fn newest(now: Timestamp) -> i64 {
    now.millis().saturating_add(MAX_AHEAD_MILLIS)
}

/// Checks that each sensor occurs once. A sensor is `None` if it could not be read.
fn check_sensors(sensors: impl Iterator<Item = Option<SensorId>>, problems: &mut Problems) {
    let mut seen = HashSet::with_capacity(sensors.size_hint().0);
    for (index, sensor) in sensors.enumerate() {
        if let Some(sensor) = sensor
            && !seen.insert(sensor)
        {
            let message = format!("{sensor} is a duplicate; give each sensor once");
            problems.add_as(Reason::Duplicate, format!("series[{index}].sensorId"), message);
        }
    }
}

/// Checks that times are in order and in range, and that values are finite. A sample is `None` if it could not be
/// read.
fn check_samples(
    samples: impl Iterator<Item = Option<Sample>>,
    newest: i64,
    at: impl Fn() -> String,
    problems: &mut Problems,
) {
    let mut previous = MIN_SAMPLE_MILLIS - 1;
    for (index, sample) in samples.enumerate() {
        let Some(Sample(time, value)) = sample else { continue };
        let millis = time.millis();
        let in_time = (MIN_SAMPLE_MILLIS..=newest).contains(&millis) && millis > previous;
        if in_time && value.is_finite() {
            previous = millis;
            continue;
        }
        let at = format!("{}[{index}]", at());
        if millis < MIN_SAMPLE_MILLIS {
            let message = format!("{time} is before 1970; set the clock");
            problems.add_as(Reason::ClockNotSet, at.as_str(), message);
        } else if millis > newest {
            let now = Timestamp::from_millis(newest - MAX_AHEAD_MILLIS);
            let message = format!("{time} is more than 15 minutes ahead of our clock, {now}");
            problems.add_as(Reason::ClockAhead, at.as_str(), message);
        } else if millis <= previous {
            let message = "is not after the sample before it; sort them, one each time";
            problems.add_as(Reason::OutOfOrder, at.as_str(), format!("{time} {message}"));
        } else {
            previous = millis;
        }
        if !value.is_finite() {
            problems.add(at, "is not a finite number; leave it out");
        }
    }
}

/// The rule of a bundle, with the latest accepted time of a sample.
struct BundleRule {
    newest: i64,
}

impl BundleRule {
    const FIELDS: &[&str] = &["bundleId", "siteId", "series"];
    const BUNDLE_ID: Parsed<BundleId> =
        Parsed::new("a string of 1 to 64 letters, digits and any of . _ : + -");
    const SITE_ID: Parsed<SiteId> = Parsed::new("the UUID that POST /sites returned");
}

impl FieldRule for BundleRule {
    type Value = Bundle;

    fn expected(&self) -> String {
        format!("an object with the fields {}", Self::FIELDS.join(", "))
    }

    fn read(&self, value: &JsonValue, at: &str, problems: &mut Problems) -> Option<Bundle> {
        let fields = Fields::parse(value, at, Self::FIELDS, problems)?;
        let bundle_id = fields.required("bundleId", &Self::BUNDLE_ID, problems);
        let site_id = fields.required("siteId", &Self::SITE_ID, problems);
        let item = SeriesRule { newest: self.newest };
        let series = List { max: MAX_SERIES, what: "series", item };
        let series = fields.required("series", &series, problems)?;
        let sensors = series.iter().map(|series| series.as_ref().and_then(|(sensor, _)| *sensor));
        check_sensors(sensors, problems);
        let series = series.into_iter().map(|series| {
            let (sensor_id, samples) = series?;
            Some(Series { sensor_id: sensor_id?, samples: samples? })
        });
        Some(Bundle {
            bundle_id: bundle_id?,
            site_id: site_id?,
            series: series.collect::<Option<_>>()?,
        })
    }
}

struct SeriesRule {
    newest: i64,
}

impl SeriesRule {
    const FIELDS: &[&str] = &["sensorId", "samples"];
    const SENSOR_ID: Parsed<SensorId> = Parsed::new("a UUID that GET /sites/{siteId} lists");
}

impl FieldRule for SeriesRule {
    type Value = (Option<SensorId>, Option<Vec<Sample>>);

    fn expected(&self) -> String {
        format!("an object with the fields {}", Self::FIELDS.join(", "))
    }

    fn read(&self, value: &JsonValue, at: &str, problems: &mut Problems) -> Option<Self::Value> {
        let fields = Fields::parse(value, at, Self::FIELDS, problems)?;
        let sensor_id = fields.required("sensorId", &Self::SENSOR_ID, problems);
        let samples = List { max: MAX_SAMPLES, what: "samples", item: SampleRule };
        let samples = fields.required("samples", &samples, problems);
        if let Some(samples) = &samples {
            check_samples(
                samples.iter().copied(),
                self.newest,
                || fields.path("samples"),
                problems,
            );
        }
        Some((sensor_id, samples.and_then(|samples| samples.into_iter().collect())))
    }
}

struct SampleRule;

impl SampleRule {
    const TIME: Parsed<Timestamp> = Parsed::new("an RFC 3339 time such as 2026-01-01T00:00:00Z");
}

impl FieldRule for SampleRule {
    type Value = Sample;

    fn expected(&self) -> String {
        "an array [time, value] such as [\"2026-01-01T00:00:00Z\", -7.6]".to_owned()
    }

    fn read(&self, value: &JsonValue, at: &str, problems: &mut Problems) -> Option<Sample> {
        let JsonValue::List(pair) = value else {
            problems.add(at, value.is_not(&self.expected()));
            return None;
        };
        let [time, value] = pair.as_slice() else {
            problems.add(at, format!("has {} entries; give {}", pair.len(), self.expected()));
            return None;
        };
        let time = Self::TIME.read(time, &format!("{at}[0]"), problems);
        let JsonValue::Number(value) = *value else {
            let message = value.is_not("a number, or leave the sample out");
            problems.add(format!("{at}[1]"), message);
            return None;
        };
        Some(Sample(time?, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OnboardingId, OperatorId};

    fn site() -> SiteId {
        SiteId::registered(OperatorId::DEFAULT, "", "readings")
    }

    fn sensor(index: usize) -> SensorId {
        SensorId::from_onboarding(OnboardingId::from_site(site()), index)
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
    fn the_error_of_an_invalid_bundle_names_the_field() {
        let now = at("2026-01-01T12:00:00Z");
        let check =
            |series| bundle(series).check(now).map_err(|errors| input::join_errors(&errors));
        assert_eq!(check(vec![(0, &["2026-01-01T11:00:00Z", "2026-01-01T12:15:00Z"])]), Ok(()));
        for (series, expected) in [
            (vec![], "series: has 0 entries"),
            (vec![(0, &[][..])], "series[0].samples: has 0 entries"),
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
            // Two different texts of the same millisecond.
            (
                vec![(0, &["2026-01-01T11:00:00.0001Z", "2026-01-01T11:00:00.0002Z"])],
                "series[0].samples[1]: 2026-01-01T11:00:00.000Z is not after the sample before it",
            ),
        ] {
            let refused = check(series).expect_err(expected);
            assert!(refused.starts_with(expected), "{refused}");
        }
        let mut infinite = bundle(vec![(0, &["2026-01-01T11:00:00Z"])]);
        infinite.series[0].samples[0].1 = f64::INFINITY;
        assert!(infinite.check(now).is_err());
    }

    #[test]
    fn a_bundle_id_is_short_and_has_no_special_characters() {
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
