//! The metadata of a sensor: how its samples are taken, and what turns a raw value into a calibrated one.
//!
//! A registration gives plain values ([`RegisteredMetadata`]). [`SensorChange`] changes them later. Most values that
//! change the meaning of samples are dated ([`Dated`]), so that earlier samples keep their meaning. `stamp` is not
//! dated: a change applies to all samples.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    Timestamp,
    input::{
        Change, FieldError, FieldRule, Fields, Input, JsonValue, Number, Object, OneOf, Parsed,
        Problems, Purpose, Reason, Text, WholeNumber, quoted_name,
    },
    number, text, utc_offset,
};

/// The name of the schema of [`SensorChange`].
pub const SENSOR_CHANGE: &str = "SensorChange";

/// The maximum size of a sensor's metadata as JSON, in bytes. With it, an event with 100 sensors and the input of an
/// onboarding stay below 256 KB, the limit of EventBridge and Step Functions.
pub const MAX_METADATA_BYTES: usize = 2_250;
/// The maximum length of a label, in characters.
pub const MAX_LABEL: usize = 100;
/// The maximum length of a datum, in characters.
pub const MAX_DATUM: usize = 40;
/// The maximum number of a sensor's ids in other systems.
pub const MAX_EXTERNAL_IDS: usize = 10;
/// The maximum length of the name of another system, in characters.
pub const MAX_SYSTEM: usize = 40;
/// The maximum length of an id in another system, in characters.
pub const MAX_EXTERNAL_ID: usize = 100;
/// The maximum number of entries in a list of dated values.
pub const MAX_DATED: usize = 20;
/// The maximum number of values that mean "no data" at one time.
pub const MAX_NO_DATA_VALUES: usize = 10;
/// The longest interval, in seconds: a leap year.
pub const MAX_SECONDS: u32 = 366 * 86_400;
/// The maximum height above the ground or depth below it, in metres.
const MAX_HEIGHT_M: f64 = 11_000.0;

const LABEL: Text = Text { purpose: Purpose::Name, max: MAX_LABEL };
const DATUM: Text = Text { purpose: Purpose::Id, max: MAX_DATUM };
const SYSTEM: Text = Text { purpose: Purpose::Id, max: MAX_SYSTEM };
const EXTERNAL_ID: Text = Text { purpose: Purpose::Id, max: MAX_EXTERNAL_ID };
const KIND: OneOf<SensorKind> = OneOf { all: SensorKind::ALL, name: SensorKind::name };
const STAMP: OneOf<Stamp> = OneOf { all: Stamp::ALL, name: Stamp::name };
const SECONDS: WholeNumber = WholeNumber { min: 1, max: MAX_SECONDS };
const HEIGHT_M: Number =
    Number { min: -MAX_HEIGHT_M, max: MAX_HEIGHT_M, what: "metres above the ground" };
const POSITIVE: Number = Number {
    min: number::MIN_MAGNITUDE,
    max: number::MAX_MAGNITUDE,
    what: "a number greater than 0,",
};
const VALID_FROM: Parsed<Timestamp> =
    Parsed::new("an RFC 3339 time such as 2026-01-01T00:00:00Z, or null for \"always\"");

/// What a sample of the sensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SensorKind {
    /// The value at an instant.
    Instant,
    /// The mean or the sum of an interval.
    Interval,
    /// A count that only rises, until it is reset or rolls over.
    Counter,
    /// A state that holds until the next sample.
    State,
}

impl SensorKind {
    /// All kinds.
    pub const ALL: &'static [Self] = &[Self::Instant, Self::Interval, Self::Counter, Self::State];

    /// Returns the name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Instant => "instant",
            Self::Interval => "interval",
            Self::Counter => "counter",
            Self::State => "state",
        }
    }
}

/// Whether the time of a sample is the start or the end of its interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stamp {
    /// The start of the interval.
    Start,
    /// The end of the interval.
    End,
    /// The sample has no interval.
    Instant,
}

impl Stamp {
    /// All stamps.
    pub const ALL: &'static [Self] = &[Self::Start, Self::End, Self::Instant];

    /// Returns the name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::End => "end",
            Self::Instant => "instant",
        }
    }
}

/// The properties of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Counter {
    /// The value at which the counter starts at 0 again, in the sensor's unit.
    #[schemars(schema_with = "positive")]
    pub rollover: f64,
}

/// The interval that a sample covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Interval {
    /// The length in seconds.
    #[schemars(range(min = 1, max = MAX_SECONDS))]
    pub seconds: u32,
}

/// Values that mean "no data".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NoDataValues {
    /// The values, in the unit of the raw samples. If there are none, each value is data.
    #[schemars(schema_with = "numbers")]
    pub values: Vec<f64>,
}

/// A linear calibration: the calibrated value is `raw * gain + offset`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Calibration {
    /// The factor. It is not 0.
    #[schemars(schema_with = "nonzero")]
    pub gain: f64,
    /// The offset, in the sensor's unit.
    #[schemars(schema_with = "number::storable")]
    pub offset: f64,
}

/// A value that is valid from a time on, until the next entry of its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Dated{T}")]
pub struct Dated<T> {
    /// The time from which on the value is valid. Absent in the entry that is valid before all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Timestamp")]
    pub valid_from: Option<Timestamp>,
    /// The value.
    #[serde(flatten)]
    pub value: T,
}

impl<T> Dated<T> {
    /// Returns a value that is valid at all times.
    pub fn always(value: T) -> Self {
        Self { valid_from: None, value }
    }
}

/// Returns the value that is valid at this time. The entries are in the order of their times.
pub fn valid_at<T>(entries: &[Dated<T>], at: Timestamp) -> Option<&T> {
    let valid = |entry: &&Dated<T>| entry.valid_from.is_none_or(|from| from <= at);
    entries.iter().rev().find(valid).map(|entry| &entry.value)
}

/// The part of the metadata that has one value for all times.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SensorDescription {
    /// The name of the sensor, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "label")]
    pub label: Option<String>,
    /// What a sample of the sensor is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "kind")]
    pub kind: Option<SensorKind>,
    /// Whether the time of a sample is the start or the end of its interval, or the sample has no interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "stamp")]
    pub stamp: Option<Stamp>,
    /// How often the data logger sends the sensor's samples, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "seconds")]
    pub report_every_seconds: Option<u32>,
    /// The height above the ground in metres. A negative height is a depth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "height_m")]
    pub height_m: Option<f64>,
    /// What a level or a height refers to, such as the name of a gauge datum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "datum")]
    pub datum: Option<String>,
    /// The smallest difference that the sensor shows, in its unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "positive_or_null")]
    pub resolution: Option<f64>,
    /// The smallest value that the sensor can tell from 0, in its unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "number::any_or_null")]
    pub detection_limit: Option<f64>,
    /// The properties of a counter. Only a sensor of the kind `counter` has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "counter")]
    pub counter: Option<Counter>,
    /// The ids of the sensor in other systems, by the name of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "external_ids")]
    pub external_ids: Option<BTreeMap<String, String>>,
}

/// The metadata of a sensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SensorMetadata {
    /// The values for all times.
    #[serde(flatten)]
    pub description: SensorDescription,
    /// The interval of a sample, in the order of time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_DATED))]
    pub intervals: Vec<Dated<Interval>>,
    /// The values that mean "no data", in the order of time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_DATED))]
    pub no_data_values: Vec<Dated<NoDataValues>>,
    /// The calibrations, in the order of time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_DATED))]
    pub calibrations: Vec<Dated<Calibration>>,
}

impl SensorMetadata {
    /// Returns the interval of a sample of this time, in seconds.
    #[must_use]
    pub fn interval_at(&self, at: Timestamp) -> Option<u32> {
        valid_at(&self.intervals, at).map(|interval| interval.seconds)
    }

    /// Returns the values that mean "no data" in a sample of this time.
    #[must_use]
    pub fn no_data_values_at(&self, at: Timestamp) -> &[f64] {
        valid_at(&self.no_data_values, at).map_or(&[], |no_data| &no_data.values)
    }

    /// Returns the calibration of a sample of this time.
    #[must_use]
    pub fn calibration_at(&self, at: Timestamp) -> Option<Calibration> {
        valid_at(&self.calibrations, at).copied()
    }

    /// Returns the size as JSON, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        serde_json::to_string(self).map_or(0, |json| json.len())
    }

    /// Adds a problem of the field at this path if the metadata are too large.
    fn check_size(&self, at: &str, problems: &mut Problems) {
        let bytes = self.bytes();
        if bytes > MAX_METADATA_BYTES {
            let message = format!(
                "has {bytes} bytes of metadata; give at most {MAX_METADATA_BYTES}, with shorter texts or fewer entries"
            );
            problems.add_as(Reason::TooLarge, at, message);
        }
    }
}

/// The metadata of a sensor that is registered. Its dated values are valid at all times.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RegisteredMetadata {
    /// The values for all times.
    #[serde(flatten)]
    pub description: SensorDescription,
    /// The interval that a sample covers, in seconds: 1 to 31622400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "seconds")]
    pub interval_seconds: Option<u32>,
    /// The values that mean "no data": 1 to 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "some_numbers")]
    pub no_data_values: Option<Vec<f64>>,
    /// The calibration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "calibration")]
    pub calibration: Option<Calibration>,
}

impl From<&RegisteredMetadata> for SensorMetadata {
    fn from(registered: &RegisteredMetadata) -> Self {
        let RegisteredMetadata { description, interval_seconds, no_data_values, calibration } =
            registered;
        let interval = interval_seconds.map(|seconds| Dated::always(Interval { seconds }));
        let no_data = no_data_values.clone().map(|values| Dated::always(NoDataValues { values }));
        Self {
            description: description.clone(),
            intervals: interval.into_iter().collect(),
            no_data_values: no_data.into_iter().collect(),
            calibrations: calibration.map(Dated::always).into_iter().collect(),
        }
    }
}

impl RegisteredMetadata {
    /// Reads the fields of a registration's sensor.
    pub(crate) fn read(fields: &Fields<'_>, problems: &mut Problems) -> Self {
        let description = SensorDescription {
            label: fields.optional("label", &Label, problems),
            kind: fields.optional("kind", &KIND, problems),
            stamp: fields.optional("stamp", &STAMP, problems),
            report_every_seconds: fields.optional("reportEverySeconds", &SECONDS, problems),
            height_m: fields.optional("heightM", &HEIGHT_M, problems),
            datum: fields.optional("datum", &DATUM, problems),
            resolution: fields.optional("resolution", &POSITIVE, problems),
            detection_limit: fields.optional("detectionLimit", &Number::ANY, problems),
            counter: fields.optional("counter", &Object::default(), problems),
            external_ids: fields.optional("externalIds", &ExternalIds, problems),
        };
        if description.counter.is_some() && description.kind != Some(SensorKind::Counter) {
            let message = "is only for a sensor of the kind counter; give \"kind\": \"counter\", or leave it out";
            problems.add(fields.path("counter"), message);
        }
        let registered = Self {
            description,
            interval_seconds: fields.optional("intervalSeconds", &SECONDS, problems),
            no_data_values: fields.optional("noDataValues", &Numbers { min: 1 }, problems),
            calibration: fields.optional("calibration", &Object::default(), problems),
        };
        SensorMetadata::from(&registered).check_size(fields.at(), problems);
        registered
    }
}

/// A change of a sensor. It is the body of `PATCH /sensors/{sensorId}`: a JSON merge patch (RFC 7396). What is left out
/// stays as it is, and `null` removes a value.
///
/// `intervalSeconds`, `noDataValues` and `calibration` are dated: they are valid from `validFrom` on, until the next
/// entry. An entry with the same `validFrom` is replaced. With `validFrom`, `null` removes the entry of this time;
/// without it, all entries.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SensorChange {
    /// The name of the sensor, for people: 1 to 100 characters. Leading and trailing white space is removed.
    #[serde(default)]
    #[schemars(schema_with = "label")]
    pub label: Change<String>,
    /// Whether the time of a sample is the start or the end of its interval, or the sample has no interval.
    #[serde(default)]
    #[schemars(schema_with = "stamp")]
    pub stamp: Change<Stamp>,
    /// How often the data logger sends the sensor's samples, in seconds.
    #[serde(default)]
    #[schemars(schema_with = "seconds")]
    pub report_every_seconds: Change<u32>,
    /// The height above the ground in metres. A negative height is a depth.
    #[serde(default)]
    #[schemars(schema_with = "height_m")]
    pub height_m: Change<f64>,
    /// What a level or a height refers to.
    #[serde(default)]
    #[schemars(schema_with = "datum")]
    pub datum: Change<String>,
    /// The smallest difference that the sensor shows, in its unit.
    #[serde(default)]
    #[schemars(schema_with = "positive_or_null")]
    pub resolution: Change<f64>,
    /// The smallest value that the sensor can tell from 0, in its unit.
    #[serde(default)]
    #[schemars(schema_with = "number::any_or_null")]
    pub detection_limit: Change<f64>,
    /// The ids of the sensor in other systems. They are merged with the existing ones; `null` removes one.
    #[serde(default)]
    #[schemars(schema_with = "changed_external_ids")]
    pub external_ids: Change<BTreeMap<String, Option<String>>>,
    /// The time from which on the dated values are valid. Without it, the time of the request. With `null`, they are valid
    /// before all other entries.
    #[serde(default)]
    #[schemars(schema_with = "valid_from")]
    pub valid_from: Change<Timestamp>,
    /// The interval that a sample covers, in seconds. Dated.
    #[serde(default)]
    #[schemars(schema_with = "seconds")]
    pub interval_seconds: Change<u32>,
    /// The values that mean "no data": 0 to 10. Dated.
    #[serde(default)]
    #[schemars(schema_with = "numbers_or_null")]
    pub no_data_values: Change<Vec<f64>>,
    /// The calibration. Dated.
    #[serde(default)]
    #[schemars(schema_with = "calibration")]
    pub calibration: Change<Calibration>,
}

/// The fields of a sensor that a [`SensorChange`] can't change.
const FIXED: &[&str] = &["sensorId", "metric", "unit", "kind", "counter", "min", "max"];

impl SensorChange {
    const FIELDS: &[&str] = &[
        "label",
        "stamp",
        "reportEverySeconds",
        "heightM",
        "datum",
        "resolution",
        "detectionLimit",
        "externalIds",
        "validFrom",
        "intervalSeconds",
        "noDataValues",
        "calibration",
    ];

    /// Returns the metadata after the change. The request was sent `now`.
    ///
    /// # Errors
    /// Fails if a list has too many entries, or the metadata are too large.
    pub fn applied_to(
        &self,
        metadata: SensorMetadata,
        now: Timestamp,
    ) -> Result<SensorMetadata, Vec<FieldError>> {
        let mut problems = Problems::default();
        let SensorMetadata { description, mut intervals, mut no_data_values, mut calibrations } =
            metadata;
        let external_ids = match &self.external_ids {
            Change::Keep => description.external_ids,
            Change::Remove => None,
            Change::Set(changes) => {
                merged(description.external_ids.unwrap_or_default(), changes, &mut problems)
            }
        };
        let date = Date::new(&self.valid_from, now);
        let interval = self.interval_seconds.map(|seconds| Interval { seconds });
        date.change(&mut intervals, interval, "intervalSeconds", &mut problems);
        let no_data = self.no_data_values.clone().map(|values| NoDataValues { values });
        date.change(&mut no_data_values, no_data, "noDataValues", &mut problems);
        date.change(&mut calibrations, self.calibration, "calibration", &mut problems);
        let after = SensorMetadata {
            description: SensorDescription {
                label: self.label.applied_to(description.label),
                kind: description.kind,
                stamp: self.stamp.applied_to(description.stamp),
                report_every_seconds: self
                    .report_every_seconds
                    .applied_to(description.report_every_seconds),
                height_m: self.height_m.applied_to(description.height_m),
                datum: self.datum.applied_to(description.datum),
                resolution: self.resolution.applied_to(description.resolution),
                detection_limit: self.detection_limit.applied_to(description.detection_limit),
                counter: description.counter,
                external_ids,
            },
            intervals,
            no_data_values,
            calibrations,
        };
        after.check_size("", &mut problems);
        problems.or(Some(after))
    }
}

/// Returns the ids in other systems after a change, and `None` if there are none.
fn merged(
    mut ids: BTreeMap<String, String>,
    changes: &BTreeMap<String, Option<String>>,
    problems: &mut Problems,
) -> Option<BTreeMap<String, String>> {
    for (system, id) in changes {
        match id {
            Some(id) => drop(ids.insert(system.clone(), id.clone())),
            None => drop(ids.remove(system)),
        }
    }
    let count = ids.len();
    if count > MAX_EXTERNAL_IDS {
        let message = format!(
            "would have {count} entries; the maximum is {MAX_EXTERNAL_IDS}, so remove some with null"
        );
        problems.add_as(Reason::WrongCount, "externalIds", message);
    }
    (count > 0).then_some(ids)
}

/// The date of the dated values of a change.
#[derive(Clone, Copy, Debug)]
struct Date {
    valid_from: Option<Timestamp>,
    /// Whether the request has a `validFrom`.
    is_given: bool,
    now: Timestamp,
}

impl Date {
    fn new(valid_from: &Change<Timestamp>, now: Timestamp) -> Self {
        let is_given = !valid_from.is_keep();
        Self { valid_from: valid_from.applied_to(Some(now)), is_given, now }
    }

    /// Changes a list of dated values.
    fn change<T: PartialEq>(
        self,
        entries: &mut Vec<Dated<T>>,
        change: Change<T>,
        field: &str,
        problems: &mut Problems,
    ) {
        let Self { valid_from, is_given, now } = self;
        match change {
            Change::Keep => {}
            Change::Remove if !is_given => entries.clear(),
            Change::Remove => entries.retain(|entry| entry.valid_from != valid_from),
            // A request without a date is often repeated, with a later time. It must not add an entry each time.
            Change::Set(value) if !is_given && valid_at(entries, now) == Some(&value) => {}
            Change::Set(value) => {
                entries.retain(|entry| entry.valid_from != valid_from);
                let index = entries.partition_point(|entry| entry.valid_from < valid_from);
                entries.insert(index, Dated { valid_from, value });
            }
        }
        if entries.len() > MAX_DATED {
            let message = format!(
                "would have {} dated entries; the maximum is {MAX_DATED}, so remove one with null and its validFrom",
                entries.len()
            );
            problems.add_as(Reason::WrongCount, field, message);
        }
    }
}

/// The rule of a [`SensorChange`].
#[derive(Clone, Copy, Debug)]
pub struct SensorChangeRule;

impl FieldRule for SensorChangeRule {
    type Value = SensorChange;

    fn expected(&self) -> String {
        format!("an object with the fields {}", SensorChange::FIELDS.join(", "))
    }

    fn read(&self, tree: &JsonValue, at: &str, problems: &mut Problems) -> Option<SensorChange> {
        let fields = Fields::open(tree, at, &self.expected(), problems)?;
        for (name, _) in fields.members() {
            if name == "utcOffset" {
                problems.add(fields.path(name), utc_offset::FIXED);
            } else if FIXED.contains(&name) {
                let message = "can't be changed; register another sensor, or leave it out";
                problems.add(fields.path(name), message);
            } else if !SensorChange::FIELDS.contains(&name) {
                let known = SensorChange::FIELDS.join(", ");
                let message = format!("is not known; the fields are {known}");
                problems.add_as(Reason::UnknownField, fields.path(&quoted_name(name)), message);
            }
        }
        let change = SensorChange {
            label: fields.change("label", &Label, problems),
            stamp: fields.change("stamp", &STAMP, problems),
            report_every_seconds: fields.change("reportEverySeconds", &SECONDS, problems),
            height_m: fields.change("heightM", &HEIGHT_M, problems),
            datum: fields.change("datum", &DATUM, problems),
            resolution: fields.change("resolution", &POSITIVE, problems),
            detection_limit: fields.change("detectionLimit", &Number::ANY, problems),
            external_ids: fields.change("externalIds", &ChangedExternalIds, problems),
            valid_from: fields
                .change("validFrom", &VALID_FROM, problems)
                // Times are stored in milliseconds.
                .map(|at| Timestamp::from_millis(at.millis())),
            interval_seconds: fields.change("intervalSeconds", &SECONDS, problems),
            no_data_values: fields.change("noDataValues", &Numbers { min: 0 }, problems),
            calibration: fields.change("calibration", &Object::default(), problems),
        };
        let dates_nothing = change.interval_seconds.is_keep()
            && change.no_data_values.is_keep()
            && change.calibration.is_keep();
        if !change.valid_from.is_keep() && dates_nothing {
            let message = "has no effect without a value to date; give intervalSeconds, noDataValues or calibration, or leave it out";
            problems.add(fields.path("validFrom"), message);
        }
        Some(change)
    }
}

impl Input for Counter {
    const FIELDS: &'static [&'static str] = &["rollover"];

    fn read(fields: &Fields<'_>, problems: &mut Problems) -> Option<Self> {
        Some(Self { rollover: fields.required("rollover", &POSITIVE, problems)? })
    }
}

impl Input for Calibration {
    const FIELDS: &'static [&'static str] = &["gain", "offset"];

    fn read(fields: &Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let gain = fields.required("gain", &Number::ANY, problems);
        let offset = fields.required("offset", &Number::ANY, problems);
        if gain == Some(0.0) {
            problems.add(
                fields.path("gain"),
                "is 0; give another factor, or 1 to leave values unscaled",
            );
        }
        Some(Self { gain: gain?, offset: offset? })
    }
}

/// The rule of a label. White space at the ends is removed.
struct Label;

impl FieldRule for Label {
    type Value = String;

    fn expected(&self) -> String {
        LABEL.expected()
    }

    fn read(&self, tree: &JsonValue, at: &str, problems: &mut Problems) -> Option<String> {
        LABEL.read(tree, at, problems).map(|label| label.trim().to_owned())
    }
}

/// The rule of a list of `min` to [`MAX_NO_DATA_VALUES`] numbers.
struct Numbers {
    min: usize,
}

impl FieldRule for Numbers {
    type Value = Vec<f64>;

    fn expected(&self) -> String {
        format!("an array of {} to {MAX_NO_DATA_VALUES} numbers", self.min)
    }

    fn read(&self, tree: &JsonValue, at: &str, problems: &mut Problems) -> Option<Vec<f64>> {
        let JsonValue::List(items) = tree else {
            problems.add(at, tree.is_not(&self.expected()));
            return None;
        };
        if !(self.min..=MAX_NO_DATA_VALUES).contains(&items.len()) {
            let message = format!("has {} entries; give {}", items.len(), self.expected());
            problems.add_as(Reason::WrongCount, at, message);
            return None;
        }
        let items = items.iter().enumerate();
        let read = |(index, item)| Number::ANY.read(item, &format!("{at}[{index}]"), problems);
        items.map(read).collect::<Vec<_>>().into_iter().collect()
    }
}

/// The rule of the ids in other systems.
struct ExternalIds;

impl FieldRule for ExternalIds {
    type Value = BTreeMap<String, String>;

    fn expected(&self) -> String {
        format!("an object with at most {MAX_EXTERNAL_IDS} ids by the name of the other system")
    }

    fn read(&self, tree: &JsonValue, at: &str, problems: &mut Problems) -> Option<Self::Value> {
        let ids = ids(tree, at, &self.expected(), problems)?;
        let read = |(system, tree): (&str, &JsonValue)| {
            let at = format!("{at}.{}", quoted_name(system));
            Some((system.to_owned(), EXTERNAL_ID.read(tree, &at, problems)?))
        };
        ids.into_iter().map(read).collect::<Vec<_>>().into_iter().collect()
    }
}

/// The rule of a change of the ids in other systems.
struct ChangedExternalIds;

impl FieldRule for ChangedExternalIds {
    type Value = BTreeMap<String, Option<String>>;

    fn expected(&self) -> String {
        ExternalIds.expected()
    }

    fn read(&self, tree: &JsonValue, at: &str, problems: &mut Problems) -> Option<Self::Value> {
        let ids = ids(tree, at, &self.expected(), problems)?;
        let read = |(system, tree): (&str, &JsonValue)| {
            let at = format!("{at}.{}", quoted_name(system));
            let id = match tree {
                JsonValue::Null => None,
                tree => Some(EXTERNAL_ID.read(tree, &at, problems)?),
            };
            Some((system.to_owned(), id))
        };
        ids.into_iter().map(read).collect::<Vec<_>>().into_iter().collect()
    }
}

/// Returns the members of an object with the names of other systems.
fn ids<'a>(
    tree: &'a JsonValue,
    at: &'a str,
    expected: &str,
    problems: &mut Problems,
) -> Option<Vec<(&'a str, &'a JsonValue)>> {
    let fields = Fields::open(tree, at, expected, problems)?;
    let members: Vec<_> = fields.members().collect();
    if members.len() > MAX_EXTERNAL_IDS {
        let message = format!("has {} entries; give {expected}", members.len());
        problems.add_as(Reason::WrongCount, at, message);
        return None;
    }
    for (system, _) in &members {
        let at = format!("{at}.{}", quoted_name(system));
        SYSTEM.read(&JsonValue::Text((*system).to_owned()), &at, problems)?;
    }
    Some(members)
}

/// Returns the bodies of the requests that change sensors, with their JSON Schemas.
#[must_use]
pub fn schemas() -> Vec<(&'static str, Schema)> {
    vec![(SENSOR_CHANGE, schemars::schema_for!(SensorChange))]
}

fn label(_: &mut SchemaGenerator) -> Schema {
    text_or_null(MAX_LABEL, &text::name_pattern())
}

fn datum(_: &mut SchemaGenerator) -> Schema {
    text_or_null(MAX_DATUM, &text::id_pattern())
}

fn text_or_null(max: usize, pattern: &str) -> Schema {
    json_schema!({ "type": ["string", "null"], "minLength": 1, "maxLength": max, "pattern": pattern })
}

fn kind(_: &mut SchemaGenerator) -> Schema {
    one_of_or_null(SensorKind::ALL.iter().map(|kind| kind.name()))
}

fn stamp(_: &mut SchemaGenerator) -> Schema {
    one_of_or_null(Stamp::ALL.iter().map(|stamp| stamp.name()))
}

fn one_of_or_null<'a>(names: impl Iterator<Item = &'a str>) -> Schema {
    let values: Vec<_> = names.map(Some).chain([None]).collect();
    json_schema!({ "type": ["string", "null"], "enum": values })
}

fn seconds(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["integer", "null"], "minimum": 1, "maximum": MAX_SECONDS })
}

fn height_m(_: &mut SchemaGenerator) -> Schema {
    number::or_null(number::schema(HEIGHT_M.min, HEIGHT_M.max))
}

fn positive(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "number", "minimum": POSITIVE.min, "maximum": POSITIVE.max })
}

fn positive_or_null(generator: &mut SchemaGenerator) -> Schema {
    number::or_null(positive(generator))
}

fn nonzero(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "number",
        "minimum": -number::MAX_MAGNITUDE,
        "maximum": number::MAX_MAGNITUDE,
        "anyOf": [{ "minimum": number::MIN_MAGNITUDE }, { "maximum": -number::MIN_MAGNITUDE }],
    })
}

fn numbers(generator: &mut SchemaGenerator) -> Schema {
    let item = number::storable(generator);
    json_schema!({ "type": "array", "items": item, "minItems": 0, "maxItems": MAX_NO_DATA_VALUES })
}

fn numbers_or_null(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = numbers(generator);
    schema.insert("type".to_owned(), json!(["array", "null"]));
    schema
}

fn some_numbers(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = numbers_or_null(generator);
    schema.insert("minItems".to_owned(), json!(1));
    schema
}

fn counter(generator: &mut SchemaGenerator) -> Schema {
    object_or_null::<Counter>(generator)
}

fn calibration(generator: &mut SchemaGenerator) -> Schema {
    object_or_null::<Calibration>(generator)
}

/// Returns the JSON Schema of an object or `null`. It is not a reference, because a nullable reference needs `anyOf`.
fn object_or_null<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = T::json_schema(generator);
    schema.remove("description");
    schema.insert("type".to_owned(), json!(["object", "null"]));
    schema
}

fn external_ids(_: &mut SchemaGenerator) -> Schema {
    ids_schema("string".into())
}

fn changed_external_ids(_: &mut SchemaGenerator) -> Schema {
    ids_schema(json!(["string", "null"]))
}

#[expect(clippy::needless_pass_by_value, reason = "the macro takes it")]
fn ids_schema(types: serde_json::Value) -> Schema {
    let pattern = text::id_pattern();
    json_schema!({
        "type": ["object", "null"],
        "maxProperties": MAX_EXTERNAL_IDS,
        "propertyNames": { "minLength": 1, "maxLength": MAX_SYSTEM, "pattern": pattern },
        "additionalProperties":
            { "type": types, "minLength": 1, "maxLength": MAX_EXTERNAL_ID, "pattern": pattern },
    })
}

fn valid_from(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["string", "null"], "format": "date-time" })
}
