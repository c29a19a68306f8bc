//! Bundles of readings. A bundle is the unit of transport. Each of its series is stored once.
//!
//! It is the body of `POST /readings` and the data of a record of the readings stream.

use std::{collections::HashSet, fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
    ser::SerializeStruct,
};

use crate::{
    SensorId, SiteId, Timestamp, UtcOffset,
    input::{
        self, FieldError, FieldRule, Fields, JsonValue, List, OneOf, Parsed, Problems, Purpose,
        Reason, Text, WholeNumber,
    },
    sample::{
        self, Flag, MAX_QUALIFIERS, MAX_SERIES_QUALIFIERS, NO_VALUE_TEXTS, QualifiedSample,
        Qualifier, Qualifiers, Sample, SampleList, SentSample, SentSamples,
    },
    sample_time::{self, InvalidTime, MIXED, SentTime},
    text,
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
/// The regular expression of a time without a UTC offset, in the schema of a bundle.
pub const LOCAL_TIME_PATTERN: &str = sample_time::LOCAL_PATTERN;
/// The revision of a bundle that does not say one.
pub const FIRST_REVISION: u32 = 1;
/// The maximum revision.
pub const MAX_REVISION: u32 = 1_000_000;
/// The maximum length of the reason of a revision, in characters.
pub const MAX_REASON: usize = 500;
const MAX_BUNDLE_ID: usize = 64;
const DAY_MILLIS: i64 = 24 * 60 * 60 * 1000;

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

/// The origin of a bundle.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[schemars(inline)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The samples come from a data logger that measures now.
    #[default]
    Live,
    /// The samples are imported from elsewhere. They may be of any age and raise no alerts.
    Import,
}

impl Origin {
    const ALL: [Self; 2] = [Self::Live, Self::Import];

    /// Returns the name that bundles use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Import => "import",
        }
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A bundle of readings: the samples that a data logger sends in one request, usually of some minutes. A bundle that is
/// sent several times is stored once.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bundle {
    /// The data logger's id of the bundle, unique at its site. With the revision, it is the idempotency key.
    pub bundle_id: BundleId,
    /// The id of the site. The partition key of the record in the stream is `<siteId>`, or `<siteId>/<operatorId>` if
    /// the bundle was sent to the API.
    pub site_id: SiteId,
    /// The revision. Samples of a greater revision take precedence over those of a smaller one, whatever their bundle.
    #[serde(default = "first_revision", skip_serializing_if = "is_first_revision")]
    #[schemars(range(min = 1, max = MAX_REVISION))]
    pub revision: u32,
    /// Why the readings were revised. Required if the revision is greater than 1, otherwise not allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "reason_schema")]
    pub reason: Option<String>,
    /// The origin.
    #[serde(default, skip_serializing_if = "Origin::is_default")]
    pub origin: Origin,
    /// The samples by sensor: 1 to 100 entries, each with a different sensor.
    #[schemars(length(min = 1, max = MAX_SERIES))]
    pub series: Vec<Series>,
}

/// The samples of one sensor.
#[derive(Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Series {
    /// The id of the sensor.
    pub sensor_id: SensorId,
    /// The range that this revision replaces: samples of smaller revisions in it vanish. Only allowed if the revision is
    /// greater than 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "TimeRange")]
    pub replaces: Option<TimeRange>,
    /// The samples. Each must be later than the one before. There must be at least one, unless the series replaces a
    /// range. Either all times have a UTC offset, or none has. If none has, the site must declare a `utcOffset`.
    #[schemars(length(min = 0, max = MAX_SAMPLES))]
    pub samples: Vec<Sample>,
    /// The qualifiers of the samples. In JSON they are a part of each sample.
    #[schemars(skip)]
    pub qualifiers: Qualifiers,
    /// Whether the times were sent without a UTC offset. If so, they are local times of the site that are stored as if
    /// they were UTC. [`Series::resolve`] converts them. In JSON they have no offset.
    #[schemars(skip)]
    pub is_local: bool,
}

/// A range of time. In a series it has a UTC offset if and only if the samples have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TimeRange {
    /// The start, inclusive.
    #[serde(deserialize_with = "sample_time::deserialize")]
    #[schemars(schema_with = "sample_time::schema")]
    pub from: Timestamp,
    /// The end, exclusive.
    #[serde(deserialize_with = "sample_time::deserialize")]
    #[schemars(schema_with = "sample_time::schema")]
    pub to: Timestamp,
}

impl TimeRange {
    /// Returns whether this time is in the range.
    #[must_use]
    pub fn contains(&self, time: Timestamp) -> bool {
        (self.from..self.to).contains(&time)
    }
}

const fn first_revision() -> u32 {
    FIRST_REVISION
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_first_revision(revision: &u32) -> bool {
    *revision == FIRST_REVISION
}

fn reason_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": ["string", "null"],
        "pattern": text::name_pattern(),
        "maxLength": MAX_REASON,
    })
}

impl Serialize for Series {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { sensor_id, replaces, samples, qualifiers, is_local } = self;
        let is_local = *is_local;
        let members = if replaces.is_some() { 3 } else { 2 };
        let mut series = serializer.serialize_struct("Series", members)?;
        series.serialize_field("sensorId", sensor_id)?;
        if let Some(replaces) = replaces {
            series.serialize_field("replaces", &SentRange::new(*replaces, is_local))?;
        }
        series.serialize_field("samples", &SampleList { samples, qualifiers, is_local })?;
        series.end()
    }
}

impl<'de> Deserialize<'de> for Bundle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct Members {
            bundle_id: BundleId,
            site_id: SiteId,
            revision: Option<u32>,
            reason: Option<String>,
            origin: Option<Origin>,
            series: Vec<Series>,
        }

        let Members { bundle_id, site_id, revision, reason, origin, series } =
            Members::deserialize(ObjectOnly(deserializer))?;
        let revision = revision.unwrap_or(FIRST_REVISION);
        Ok(Self {
            bundle_id,
            site_id,
            revision,
            reason,
            origin: origin.unwrap_or_default(),
            series,
        })
    }
}

impl<'de> Deserialize<'de> for Series {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct Members {
            sensor_id: SensorId,
            replaces: Option<SentRange>,
            samples: SentSamples,
        }

        let Members { sensor_id, replaces, samples } =
            Members::deserialize(ObjectOnly(deserializer))?;
        let SentSamples { samples, qualifiers, is_local } = samples;
        let bounds = replaces.iter().flat_map(|SentRange { from, to }| [from, to]);
        let mut clocks = is_local.into_iter().chain(bounds.map(|time| time.is_local));
        let is_local = clocks.next().unwrap_or_default();
        if clocks.any(|other| other != is_local) {
            return Err(de::Error::custom(MIXED));
        }
        let replaces = replaces.map(SentRange::range);
        Ok(Self { sensor_id, replaces, samples, qualifiers, is_local })
    }
}

/// A range of time as it is sent.
#[derive(Clone, Copy, Serialize)]
struct SentRange {
    from: SentTime,
    to: SentTime,
}

impl<'de> Deserialize<'de> for SentRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Members {
            from: SentTime,
            to: SentTime,
        }

        let Members { from, to } = Members::deserialize(ObjectOnly(deserializer))?;
        Ok(Self { from, to })
    }
}

impl SentRange {
    fn new(TimeRange { from, to }: TimeRange, is_local: bool) -> Self {
        Self { from: SentTime { at: from, is_local }, to: SentTime { at: to, is_local } }
    }

    fn range(self) -> TimeRange {
        TimeRange { from: self.from.at, to: self.to.at }
    }
}

impl Series {
    /// Creates a series without qualifiers that replaces nothing.
    #[must_use]
    pub fn new(sensor_id: SensorId, samples: Vec<Sample>) -> Self {
        let (replaces, qualifiers) = (None, Qualifiers::default());
        Self { sensor_id, replaces, samples, qualifiers, is_local: false }
    }

    /// Turns times that were sent without a UTC offset into UTC, by the offset of the sensor's site, and checks them. Times
    /// with an offset are unchanged.
    ///
    /// The limits are those of the bundle's origin ([`TimeLimits::of`]). The paths of errors are relative to the series.
    ///
    /// # Errors
    /// Fails if the site has no offset, or if a time is out of the limits.
    pub fn resolve(
        &mut self,
        offset: Option<UtcOffset>,
        limits: TimeLimits,
    ) -> Result<(), Vec<FieldError>> {
        if !self.is_local {
            return Ok(());
        }
        let Some(offset) = offset else { return Err(vec![self.no_offset()]) };
        let to_utc = |at: Timestamp| at.plus_millis(-offset.millis());
        for sample in &mut self.samples {
            sample.at = to_utc(sample.at);
        }
        self.replaces =
            self.replaces.map(|range| TimeRange { from: to_utc(range.from), to: to_utc(range.to) });
        self.is_local = false;
        let mut problems = Problems::default();
        let replaces = self.replaces.map(|range| SentRange::new(range, false));
        check_end(replaces, limits, || "replaces".to_owned(), &mut problems);
        let samples = self.samples.iter().map(|sample| Some(*sample));
        check_samples(samples, Some(limits), || "samples".to_owned(), &mut problems);
        problems.or(Some(()))
    }

    /// Returns the error of a series whose times have no offset. It names the first time.
    fn no_offset(&self) -> FieldError {
        let first = self.samples.first().map(|first| ("samples[0][0]", first.at));
        let first = first.or_else(|| Some(("replaces.from", self.replaces?.from)));
        let message =
            |at| wrong_time(&SentTime { at, is_local: true }.to_string(), InvalidTime::NoOffset);
        match first {
            Some((field, at)) => FieldError::new(field, message(at)),
            None => FieldError::new("samples", InvalidTime::NoOffset.to_string()),
        }
    }

    /// Keeps the first `count` samples.
    pub fn truncate(&mut self, count: usize) {
        self.samples.truncate(count);
        self.qualifiers.truncate(count);
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
    /// Creates a live bundle of the first revision.
    #[must_use]
    pub fn new(bundle_id: BundleId, site_id: SiteId, series: Vec<Series>) -> Self {
        let (revision, origin) = (FIRST_REVISION, Origin::Live);
        Self { bundle_id, site_id, revision, reason: None, origin, series }
    }

    /// Reads a bundle from JSON text. The error lists all problems.
    pub fn read(json: &str, limits: impl Into<TimeLimits>) -> Result<Self, Vec<FieldError>> {
        let GoodSeries { bundle, refused } = Self::read_good_series(json, limits)?;
        if refused.is_empty() { Ok(bundle) } else { Err(refused) }
    }

    /// Reads the good series of a bundle from JSON text. If there is none, or if a field of the bundle itself is not valid,
    /// returns all problems.
    ///
    /// The times of a series may be without a UTC offset. The caller then needs that of the site ([`Series::resolve`]).
    pub fn read_good_series(
        json: &str,
        limits: impl Into<TimeLimits>,
    ) -> Result<GoodSeries, Vec<FieldError>> {
        let limits = limits.into();
        // Most bundles are valid, and serde reads those several times as fast as the rules do.
        if let Ok(bundle) = serde_json::from_str::<Self>(json)
            && bundle.check(limits).is_ok()
            && !(bundle.has_zero() && input::has_too_small_number(json))
        {
            return Ok(GoodSeries { bundle, refused: Vec::new() });
        }
        input::from_json(json, &BundleRule { limits })
    }

    /// Returns whether a value is 0. serde reads a number that is too close to 0 for an `f64` as 0.
    fn has_zero(&self) -> bool {
        let mut samples = self.series.iter().flat_map(|series| &series.samples);
        samples.any(|sample| sample.value == Some(0.0))
    }

    /// Checks everything that the types do not guarantee. Times without an offset are compared only with each other;
    /// [`Series::resolve`] compares them with the limits.
    pub fn check(&self, limits: impl Into<TimeLimits>) -> Result<(), Vec<FieldError>> {
        let limits = limits.into().of(self.origin);
        let mut problems = Problems::default();
        check_revision(self.revision, self.reason.as_deref(), &mut problems);
        let count = self.series.len();
        if count == 0 || count > MAX_SERIES {
            let message = format!("has {count} entries; give 1 to {MAX_SERIES}");
            problems.add_as(Reason::WrongCount, "series", message);
        }
        check_sensors(self.series.iter().map(|series| series.sensor_id), &mut problems);
        for (index, series) in self.series.iter().enumerate() {
            let at = |name: &str| format!("series[{index}].{name}");
            let replaces = series.replaces.map(|range| SentRange::new(range, series.is_local));
            check_replaces(replaces, self.revision, || at("replaces"), &mut problems);
            check_end(replaces, limits, || at("replaces"), &mut problems);
            let count = series.samples.len();
            check_count(count, replaces.is_some(), || at("samples"), &mut problems);
            let samples = series.samples.iter().map(|sample| Some(*sample));
            let limits = Some(limits).filter(|_| !series.is_local);
            check_samples(samples, limits, || at("samples"), &mut problems);
            check_qualifiers(&series.qualifiers, || at("samples"), &mut problems);
        }
        problems.or(Some(()))
    }

    /// Returns the number of samples.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.series.iter().map(|series| series.samples.len()).sum()
    }
}

/// The good series of a bundle, and the problems of the others.
#[derive(Clone, Debug, PartialEq)]
pub struct GoodSeries {
    /// The bundle with its good series, at least one.
    pub bundle: Bundle,
    /// The problems of the other series. Their paths are those in the bundle that was read.
    pub refused: Vec<FieldError>,
}

/// The times that samples may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLimits {
    now: Timestamp,
    /// The earliest time in milliseconds since the Unix epoch, and the maximum age in days that it follows from.
    oldest: Option<(i64, u32)>,
}

impl TimeLimits {
    /// Creates the limits for a bundle that arrived at this time. A live sample may be at most `max_age_days` old at the
    /// arrival. Every sample may be at most [`MAX_AHEAD_MILLIS`] ahead of `now`.
    #[must_use]
    pub fn new(now: Timestamp, arrival: Timestamp, max_age_days: u32) -> Self {
        let oldest = arrival.plus_millis(-i64::from(max_age_days) * DAY_MILLIS);
        Self { now, oldest: Some((oldest.millis(), max_age_days)) }
    }

    /// Returns the limits of a bundle of this origin. An import may be of any age.
    #[must_use]
    pub fn of(self, origin: Origin) -> Self {
        match origin {
            Origin::Live => self,
            Origin::Import => Self { oldest: None, ..self },
        }
    }

    fn oldest_millis(self) -> i64 {
        self.oldest.map_or(MIN_SAMPLE_MILLIS, |(oldest, _)| oldest.max(MIN_SAMPLE_MILLIS))
    }

    fn newest_millis(self) -> i64 {
        self.now.millis().saturating_add(MAX_AHEAD_MILLIS)
    }

    /// Returns why a sample can't have this time.
    fn problem(self, time: Timestamp) -> Option<(Reason, String)> {
        let millis = time.millis();
        if millis < MIN_SAMPLE_MILLIS {
            return Some((Reason::ClockNotSet, format!("{time} is before 1970; set the clock")));
        }
        if let Some((oldest, days)) = self.oldest
            && millis < oldest
        {
            let message = format!(
                "{time} is more than {days} days ago; set the clock, or give the bundle the origin \"import\""
            );
            return Some((Reason::ClockNotSet, message));
        }
        (millis > self.newest_millis()).then(|| {
            let message =
                format!("{time} is more than 15 minutes ahead of our clock, {}", self.now);
            (Reason::ClockAhead, message)
        })
    }
}

impl From<Timestamp> for TimeLimits {
    /// Creates the limits without a maximum age.
    fn from(now: Timestamp) -> Self {
        Self { now, oldest: None }
    }
}

/// Checks that a revision has a reason, and that only a revision has one.
fn check_revision(revision: u32, reason: Option<&str>, problems: &mut Problems) {
    let give = "give 1 to 500 characters that say why the readings were revised";
    match reason {
        None if revision > FIRST_REVISION => {
            let message = format!("is missing, but the revision is {revision}; {give}");
            problems.add_as(Reason::MissingField, "reason", message);
        }
        Some(_) if revision == FIRST_REVISION => {
            problems.add("reason", "is only for revisions above 1; leave it out");
        }
        Some(reason) => {
            // The rule has the messages.
            REASON.read(&JsonValue::Text(reason.to_owned()), "reason", problems);
        }
        None => {}
    }
    if !(FIRST_REVISION..=MAX_REVISION).contains(&revision) {
        problems.add("revision", format!("is {revision}; give {}", REVISION.expected()));
    }
}

/// Checks that only a revision replaces a range, and that the range is not empty.
fn check_replaces(
    replaces: Option<SentRange>,
    revision: u32,
    at: impl Fn() -> String,
    problems: &mut Problems,
) {
    let Some(SentRange { from, to }) = replaces else { return };
    if revision == FIRST_REVISION {
        problems.add(at(), "is only for revisions above 1; give the revision, or leave it out");
    }
    if from.is_local == to.is_local && from.at >= to.at {
        problems.add(at(), format!("is from {from} to {to}; give a `from` before `to`"));
    }
}

/// Checks that a replaced range does not end in the future. It would hide the live samples to come. An end without a UTC
/// offset has no limit.
fn check_end(
    replaces: Option<SentRange>,
    limits: TimeLimits,
    at: impl Fn() -> String,
    problems: &mut Problems,
) {
    let Some(SentRange { to, .. }) = replaces.filter(|range| !range.to.is_local) else { return };
    if to.at.millis() > limits.newest_millis() {
        let now = limits.now;
        let message = format!(
            "ends at {to}, more than 15 minutes ahead of our clock, {now}; give a `to` up to which you have replaced the readings"
        );
        problems.add_as(Reason::ClockAhead, at(), message);
    }
}

/// Checks the number of samples. Only a series that replaces a range may have none.
fn check_count(count: usize, replaces: bool, at: impl Fn() -> String, problems: &mut Problems) {
    if count > MAX_SAMPLES || count == 0 && !replaces {
        let message = format!("has {count} entries; give 1 to {MAX_SAMPLES}");
        problems.add_as(Reason::WrongCount, at(), message);
    }
}

/// Checks that each sensor occurs once.
fn check_sensors(sensors: impl Iterator<Item = SensorId>, problems: &mut Problems) {
    let mut seen = HashSet::with_capacity(sensors.size_hint().0);
    for (index, sensor) in sensors.enumerate() {
        if !seen.insert(sensor) {
            problems.add_as(Reason::Duplicate, sensor_path(index), duplicate(sensor));
        }
    }
}

fn sensor_path(index: usize) -> String {
    format!("series[{index}].sensorId")
}

fn duplicate(sensor: SensorId) -> String {
    format!("{sensor} is a duplicate; give each sensor once")
}

/// Checks that times are in order and in range, and that values are finite. A sample is `None` if it could not be
/// read. Times without a UTC offset have no limits.
fn check_samples(
    samples: impl Iterator<Item = Option<Sample>>,
    limits: Option<TimeLimits>,
    at: impl Fn() -> String,
    problems: &mut Problems,
) {
    let (oldest, newest) = limits
        .map_or((i64::MIN, i64::MAX), |limits| (limits.oldest_millis(), limits.newest_millis()));
    let mut previous = i64::MIN;
    for (index, sample) in samples.enumerate() {
        let Some(Sample { at: time, value, .. }) = sample else { continue };
        let millis = time.millis();
        let in_time = (oldest..=newest).contains(&millis) && millis > previous;
        let is_finite = value.is_none_or(f64::is_finite);
        if in_time && is_finite {
            previous = millis;
            continue;
        }
        let at = format!("{}[{index}]", at());
        let sent = SentTime { at: time, is_local: limits.is_none() };
        if let Some((reason, message)) = limits.and_then(|limits| limits.problem(time)) {
            problems.add_as(reason, at.as_str(), message);
        } else if millis <= previous {
            let message = "is not later than the sample before it; sort the samples by time, and give one sample for each time";
            problems.add_as(Reason::OutOfOrder, at.as_str(), format!("{sent} {message}"));
        } else {
            previous = millis;
        }
        if !is_finite {
            problems.add(at, "is not a finite number; give null");
        }
    }
}

/// Checks the numbers of qualifiers.
fn check_qualifiers(qualifiers: &Qualifiers, at: impl Fn() -> String, problems: &mut Problems) {
    let mut different = HashSet::new();
    for (index, qualifiers) in qualifiers.iter() {
        different.extend(qualifiers);
        if qualifiers.len() > MAX_QUALIFIERS {
            let message =
                format!("has {} entries; give at most {MAX_QUALIFIERS}", qualifiers.len());
            problems.add_as(Reason::WrongCount, format!("{}[{index}][3]", at()), message);
        }
    }
    if different.len() > MAX_SERIES_QUALIFIERS {
        let count = different.len();
        let message =
            format!("has {count} different qualifiers; give at most {MAX_SERIES_QUALIFIERS}");
        problems.add_as(Reason::WrongCount, at(), message);
    }
}

const REVISION: WholeNumber = WholeNumber { min: FIRST_REVISION, max: MAX_REVISION };
const REASON: Text = Text { purpose: Purpose::Name, max: MAX_REASON };

/// The rule of a bundle with at least one good series.
struct BundleRule {
    limits: TimeLimits,
}

impl BundleRule {
    const FIELDS: &[&str] = &["bundleId", "siteId", "revision", "reason", "origin", "series"];
    const BUNDLE_ID: Parsed<BundleId> =
        Parsed::new("a string of 1 to 64 letters, digits and any of . _ : + -");
    const SITE_ID: Parsed<SiteId> = Parsed::new("the UUID that POST /sites returned");
    const ORIGIN: OneOf<Origin> = OneOf { all: &Origin::ALL, name: Origin::name };
}

impl FieldRule for BundleRule {
    type Value = GoodSeries;

    fn expected(&self) -> String {
        format!("an object with the fields {}", Self::FIELDS.join(", "))
    }

    fn read(&self, value: &JsonValue, at: &str, problems: &mut Problems) -> Option<GoodSeries> {
        let fields = Fields::parse(value, at, Self::FIELDS, problems)?;
        let bundle_id = fields.required("bundleId", &Self::BUNDLE_ID, problems);
        let site_id = fields.required("siteId", &Self::SITE_ID, problems);
        let revision = fields.optional("revision", &REVISION, problems).unwrap_or(FIRST_REVISION);
        let reason = fields.optional("reason", &REASON, problems);
        check_revision(revision, reason.as_deref(), problems);
        let origin = fields.optional("origin", &Self::ORIGIN, problems).unwrap_or_default();
        let item = SeriesRule { limits: self.limits.of(origin), revision };
        let series = List { max: MAX_SERIES, what: "series", item: Separate(item) };
        let series = fields.required("series", &series, problems)?;
        let (mut good, mut refused) = (Vec::new(), Problems::default());
        let mut sensors = HashSet::new();
        for (index, (read, mut own)) in series.into_iter().flatten().enumerate() {
            let (sensor, series) = read.unwrap_or_default();
            if let Some(sensor) = sensor
                && !sensors.insert(sensor)
            {
                own.add_as(Reason::Duplicate, sensor_path(index), duplicate(sensor));
            }
            match series.filter(|_| own.is_empty()) {
                Some(series) => good.push(series),
                None => refused.merge(own),
            }
        }
        if good.is_empty() || !problems.is_empty() {
            problems.merge(refused);
            return None;
        }
        let refused = refused.or(None::<()>).err().unwrap_or_default();
        let mut bundle = Bundle::new(bundle_id?, site_id?, good);
        (bundle.revision, bundle.reason, bundle.origin) = (revision, reason, origin);
        Some(GoodSeries { bundle, refused })
    }
}

/// The rule of an entry of a list whose problems are kept apart from those of the other entries.
struct Separate<R>(R);

impl<R: FieldRule> FieldRule for Separate<R> {
    type Value = (Option<R::Value>, Problems);

    fn expected(&self) -> String {
        self.0.expected()
    }

    fn read(&self, value: &JsonValue, at: &str, _: &mut Problems) -> Option<Self::Value> {
        let mut problems = Problems::default();
        let read = self.0.read(value, at, &mut problems);
        Some((read, problems))
    }
}

struct SeriesRule {
    limits: TimeLimits,
    revision: u32,
}

impl SeriesRule {
    const FIELDS: &[&str] = &["sensorId", "replaces", "samples"];
    const SENSOR_ID: Parsed<SensorId> = Parsed::new("a UUID that GET /sites/{siteId} lists");
}

impl FieldRule for SeriesRule {
    /// The sensor, if it could be read, and the series, if it could be read.
    type Value = (Option<SensorId>, Option<Series>);

    fn expected(&self) -> String {
        format!("an object with the fields {}", Self::FIELDS.join(", "))
    }

    fn read(&self, value: &JsonValue, at: &str, problems: &mut Problems) -> Option<Self::Value> {
        let fields = Fields::parse(value, at, Self::FIELDS, problems)?;
        let sensor_id = fields.required("sensorId", &Self::SENSOR_ID, problems);
        let replaces = fields.optional("replaces", &RangeRule, problems);
        check_replaces(replaces, self.revision, || fields.path("replaces"), problems);
        check_end(replaces, self.limits, || fields.path("replaces"), problems);
        let samples = fields.required("samples", &SamplesRule, problems);
        let Some(read) = samples else { return Some((sensor_id, None)) };
        let at = || fields.path("samples");
        check_count(read.len(), replaces.is_some(), at, problems);
        let is_local = Self::is_local(&read, replaces, &fields, problems);
        if let Some(is_local) = is_local {
            let samples = read.iter().map(|entry| entry.as_ref().map(|entry| entry.sample.sample));
            check_samples(samples, Some(self.limits).filter(|_| !is_local), at, problems);
        }
        let (mut samples, mut qualifiers) = (Vec::with_capacity(read.len()), Qualifiers::default());
        let complete = read.len();
        for SentSample { sample, .. } in read.into_iter().flatten() {
            qualifiers.push(samples.len(), sample.qualifiers);
            samples.push(sample.sample);
        }
        check_qualifiers(&qualifiers, at, problems);
        let replaces = replaces.map(SentRange::range);
        let series = sensor_id.zip(is_local).filter(|_| samples.len() == complete);
        let series = series.map(|(sensor_id, is_local)| Series {
            sensor_id,
            replaces,
            samples,
            qualifiers,
            is_local,
        });
        Some((sensor_id, series))
    }
}

impl SeriesRule {
    /// Returns whether the times of a series have no UTC offset. If some have one and others have not, adds a problem that
    /// names the first one that differs, and returns `None`.
    fn is_local(
        samples: &[Option<SentSample>],
        replaces: Option<SentRange>,
        fields: &Fields<'_>,
        problems: &mut Problems,
    ) -> Option<bool> {
        let samples = samples.iter().enumerate().filter_map(|(index, sample)| {
            Some((format!("samples[{index}][0]"), sample.as_ref()?.is_local))
        });
        let bounds = replaces.into_iter().flat_map(|SentRange { from, to }| {
            [("replaces.from", from), ("replaces.to", to)]
                .map(|(field, time)| (field.to_owned(), time.is_local))
        });
        let mut times = samples.chain(bounds);
        let Some((first, is_local)) = times.next() else { return Some(false) };
        let Some((other, _)) = times.find(|(_, other)| *other != is_local) else {
            return Some(is_local);
        };
        let message = if is_local {
            format!("has a UTC offset, but {first} has none; {MIXED}")
        } else {
            format!("has no UTC offset, but {first} has one; {MIXED}")
        };
        problems.add(fields.path(&other), message);
        None
    }
}

/// The rule of a range of time.
struct RangeRule;

impl FieldRule for RangeRule {
    type Value = SentRange;

    fn expected(&self) -> String {
        "an object with the fields from, to".to_owned()
    }

    fn read(&self, value: &JsonValue, at: &str, problems: &mut Problems) -> Option<SentRange> {
        let fields = Fields::parse(value, at, &["from", "to"], problems)?;
        let from = fields.required("from", &TimeRule, problems);
        let to = fields.required("to", &TimeRule, problems);
        Some(SentRange { from: from?, to: to? })
    }
}

/// The rule of the samples of a series. `check_count` checks their number, because a series that replaces a range may
/// have no samples.
struct SamplesRule;

impl FieldRule for SamplesRule {
    type Value = Vec<Option<SentSample>>;

    fn expected(&self) -> String {
        format!("an array of 1 to {MAX_SAMPLES} samples")
    }

    fn read(&self, value: &JsonValue, at: &str, problems: &mut Problems) -> Option<Self::Value> {
        let JsonValue::List(items) = value else {
            problems.add(at, value.is_not(&self.expected()));
            return None;
        };
        let items = items.iter().take(MAX_SAMPLES + 1).enumerate();
        let read = |(index, item)| SampleRule.read(item, &format!("{at}[{index}]"), problems);
        Some(items.map(read).collect())
    }
}

/// The rule of the time of a sample.
struct TimeRule;

impl FieldRule for TimeRule {
    type Value = SentTime;

    fn expected(&self) -> String {
        "an RFC 3339 time such as 2026-01-01T00:00:00Z".to_owned()
    }

    fn read(&self, value: &JsonValue, at: &str, problems: &mut Problems) -> Option<SentTime> {
        let text = value.string(at, &self.expected(), problems)?;
        let time = sample_time::parse(text);
        time.map_err(|error| problems.add(at, wrong_time(text, error))).ok()
    }
}

/// Returns the message about the text of a time.
fn wrong_time(text: &str, error: InvalidTime) -> String {
    let separator = if error == InvalidTime::NotATime { ";" } else { "," };
    format!("is {}{separator} {error}", input::quoted(text))
}

struct SampleRule;

impl SampleRule {
    const QUALIFIER: Parsed<Qualifier> =
        Parsed::new("1 to 40 printable ASCII characters without quotes and backslashes");

    /// Reads the value, which may be missing.
    fn value(value: &JsonValue, at: &str, problems: &mut Problems) -> Result<Option<f64>, ()> {
        match value {
            JsonValue::Number(value) => Ok(Some(*value)),
            JsonValue::Null => Ok(None),
            JsonValue::Text(text) if NO_VALUE_TEXTS.contains(&text.as_str()) => Ok(None),
            _ => {
                problems.add(at, value.is_not("a number, or null if there is no value"));
                Err(())
            }
        }
    }

    /// Reads the flag, which may be absent.
    fn flag(
        flag: Option<&JsonValue>,
        at: &str,
        problems: &mut Problems,
    ) -> Result<Option<Flag>, ()> {
        let flag = match flag {
            None => return Ok(None),
            Some(JsonValue::Number(number)) => Flag::ALL
                .into_iter()
                .find(|flag| number.total_cmp(&f64::from(u8::from(*flag))).is_eq()),
            Some(_) => None,
        };
        if flag.is_none() {
            problems.add(at, sample::InvalidFlag.to_string());
        }
        flag.map(Some).ok_or(())
    }

    fn qualifiers(
        qualifiers: Option<&JsonValue>,
        at: &str,
        problems: &mut Problems,
    ) -> Option<Vec<Qualifier>> {
        let qualifiers = match qualifiers {
            None => return Some(Vec::new()),
            Some(JsonValue::List(qualifiers)) => qualifiers,
            Some(value) => {
                problems.add(at, value.is_not("an array of qualifiers"));
                return None;
            }
        };
        let mut read = |(index, item): (usize, &JsonValue)| {
            Self::QUALIFIER.read(item, &format!("{at}[{index}]"), problems)
        };
        let read: Vec<_> = qualifiers.iter().enumerate().map(&mut read).collect();
        read.into_iter().collect()
    }
}

impl FieldRule for SampleRule {
    type Value = SentSample;

    fn expected(&self) -> String {
        "an array [time, value] such as [\"2026-01-01T00:00:00Z\", -7.6], optionally with a flag and \
         an array of qualifiers after the value"
            .to_owned()
    }

    fn read(&self, value: &JsonValue, at: &str, problems: &mut Problems) -> Option<SentSample> {
        let JsonValue::List(entries) = value else {
            problems.add(at, value.is_not(&self.expected()));
            return None;
        };
        let [time, value, optional @ ..] = entries.as_slice() else {
            problems.add(at, format!("has {} entries; give {}", entries.len(), self.expected()));
            return None;
        };
        if optional.len() > 2 {
            problems.add(at, format!("has {} entries; give {}", entries.len(), self.expected()));
            return None;
        }
        let entry = |index: usize| format!("{at}[{index}]");
        let time = TimeRule.read(time, &entry(0), problems);
        let value = Self::value(value, &entry(1), problems);
        let flag = Self::flag(optional.first(), &entry(2), problems);
        let qualifiers = Self::qualifiers(optional.get(1), &entry(3), problems);
        let (value, flag) = (value.ok()?, flag.ok()?);
        let SentTime { at: time, is_local } = time?;
        let sample = Sample::sent(time, value, flag);
        let sample = sample.map_err(|error| problems.add(entry(2), error.to_string())).ok()?;
        let sample = QualifiedSample { sample, qualifiers: qualifiers? };
        Some(SentSample { sample, is_local })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OnboardingId, OperatorId, sample::Quality};

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
        let series = series.into_iter().map(|(index, times)| {
            let samples = times.iter().map(|time| Sample::new(at(time), 1.0)).collect();
            Series::new(sensor(index), samples)
        });
        Bundle::new("b-1".parse().expect("an id"), site(), series.collect())
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
                "series[0].samples[1]: 2026-01-01T11:00:00.000Z is not later than the sample before it",
            ),
        ] {
            let refused = check(series).expect_err(expected);
            assert!(refused.starts_with(expected), "{refused}");
        }
        let mut infinite = bundle(vec![(0, &["2026-01-01T11:00:00Z"])]);
        infinite.series[0].samples[0].value = Some(f64::INFINITY);
        assert!(infinite.check(now).is_err());
    }

    /// Returns a bundle as JSON with a series for each of these lists of samples.
    fn json(members: &str, series: &[&str]) -> String {
        let series = series.iter().enumerate().map(|(index, samples)| {
            format!(r#"{{ "sensorId": "{}", "samples": [{samples}] }}"#, sensor(index))
        });
        let series = series.collect::<Vec<_>>().join(", ");
        format!(
            r#"{{ "bundleId": "b-1", "siteId": "{}", {members} "series": [{series}] }}"#,
            site()
        )
    }

    const NOW: &str = "2026-11-28T00:00:00Z";

    fn read(json: &str) -> Result<GoodSeries, String> {
        let limits = TimeLimits::new(at(NOW), at(NOW), 400);
        Bundle::read_good_series(json, limits).map_err(|errors| input::join_errors(&errors))
    }

    /// Returns the reason and the message of the only problem of a bundle with these samples.
    fn problem(samples: &str) -> (Reason, String) {
        let errors =
            Bundle::read_good_series(&json("", &[samples]), TimeLimits::new(at(NOW), at(NOW), 400));
        let [error] = &errors.expect_err(samples)[..] else { panic!("not one problem: {samples}") };
        (error.reason, error.to_string())
    }

    #[test]
    fn samples_have_flags_qualifiers_or_no_value() {
        let samples = r#"["2026-11-27T12:00:00Z", 5, 1], ["2026-11-27T12:01:00Z", null, 9],
            ["2026-11-27T12:02:00Z", 1400, 4, []], ["2026-11-27T12:03:00Z", 600.0, 3.0, ["<"]],
            ["2026-11-27T12:04:00Z", -0.0]"#;
        let text = json("", &[samples]);
        // 3.0 is a whole number, but serde does not read it as a flag. So both readers are compared.
        let fast: Bundle = serde_json::from_str(&text.replace("3.0", "3")).expect("a bundle");
        let read = read(&text).expect("a bundle");
        assert_eq!((&read.bundle, read.refused.len()), (&fast, 0));
        let series = &fast.series[0];
        let counted = series.samples.iter().map(|sample| sample.counted(Quality::Usable));
        let usable = [Some(5.0), None, None, Some(600.0), Some(0.0)];
        assert_eq!(counted.collect::<Vec<_>>(), usable);
        assert!(series.samples[4].value.is_some_and(f64::is_sign_positive));
        assert_eq!(series.qualifiers.of(3)[0].as_str(), "<");
        let written = serde_json::to_string(&fast).expect("JSON");
        assert!(
            written.contains(r#"600.0,3,["<"]],["2026-11-27T12:04:00.000Z",0.0]]"#),
            "{written}"
        );
        assert_eq!(Bundle::read(&written, at(NOW)), Ok(fast));
    }

    #[test]
    fn a_bad_sample_is_named_with_its_reason() {
        for (samples, reason, expected) in [
            (
                r#"["2026-11-27T12:00:00Z", 1e-400]"#,
                Reason::InvalidValue,
                "[1]: is a number that is too close to 0",
            ),
            (
                r#"["2026-11-27T12:00:00Z", -1e400]"#,
                Reason::InvalidValue,
                "[1]: is a number that is too large",
            ),
            (
                r#"["2026-11-27T12:00:00Z", -9999.9, 9]"#,
                Reason::InvalidValue,
                "[2]: is 9 (missing), but there is a value",
            ),
            (
                r#"["2026-11-27T12:00:00Z", null, 4]"#,
                Reason::InvalidValue,
                "[2]: is not 9 (missing)",
            ),
            (r#"["2026-11-27T12:00:00Z", 1, 5]"#, Reason::InvalidValue, "[2]: is not a flag"),
            (
                r#"["2026-11-27T12:00:00Z", "nan"]"#,
                Reason::InvalidValue,
                "[1]: is a string; give a number, or null",
            ),
            (r#"["2026-11-27T12:00:00Z", 1, 1, ["a\"b"]]"#, Reason::InvalidValue, "[3][0]: is "),
            (
                r#"["2026-11-27T23:59:60Z", 2]"#,
                Reason::InvalidValue,
                "[0]: is \"2026-11-27T23:59:60Z\", which is a leap second",
            ),
            (
                r#"["2026-11-27T12:00:00.0001Z", 2]"#,
                Reason::InvalidValue,
                "[0]: is \"2026-11-27T12:00:00.0001Z\", which is more precise",
            ),
            (
                r#"["2026-11-27", 2]"#,
                Reason::InvalidValue,
                "[0]: is \"2026-11-27\"; give an RFC 3339 time",
            ),
            (
                r#"["1970-01-01T00:00:03Z", 2]"#,
                Reason::ClockNotSet,
                ": 1970-01-01T00:00:03.000Z is more than 400 days ago",
            ),
            (
                r#"["1969-12-31T23:59:59Z", 2]"#,
                Reason::ClockNotSet,
                ": 1969-12-31T23:59:59.000Z is before 1970",
            ),
            (
                r#"["2026-11-28T00:15:00.001Z", 2]"#,
                Reason::ClockAhead,
                ": 2026-11-28T00:15:00.001Z is more than 15 minutes",
            ),
        ] {
            let (actual, line) = problem(samples);
            assert!(line.starts_with(&format!("series[0].samples[0]{expected}")), "{line}");
            assert_eq!(actual, reason, "{line}");
        }
        // The second time, if rounded, would equal the first. It must be refused for its own reason, not as out of
        // order.
        let twice = r#"["2026-11-27T23:59:59Z", 1], ["2026-11-27T23:59:60Z", 2]"#;
        assert_eq!(problem(twice).0, Reason::InvalidValue);
        let twice = r#"["2026-11-27T12:00:00.000Z", 1], ["2026-11-27T12:00:00.0005Z", 2]"#;
        assert_eq!(problem(twice).0, Reason::InvalidValue);
        assert!(read(&json("", &[r#"["2026-11-27T12:00:00Z", 0e-9]"#])).is_ok());
    }

    #[test]
    fn the_good_series_of_a_bundle_are_read() {
        let good = r#"["2026-11-27T12:00:00Z", 0.0]"#;
        let bad = r#"["2026-11-27T12:00:00Z", 1e-400]"#;
        let text = json("", &[good, bad, good, "", good]);
        let text = text.replace(&sensor(4).to_string(), &sensor(0).to_string());
        let GoodSeries { bundle, refused } = read(&text).expect("good series");
        let sensors = bundle.series.iter().map(|series| series.sensor_id);
        assert_eq!(sensors.collect::<Vec<_>>(), [sensor(0), sensor(2)]);
        let fields: Vec<_> = refused.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["series[1].samples[0][1]", "series[3].samples", "series[4].sensorId"]);
        assert_eq!(Bundle::read(&text, at(NOW)), Err(refused));

        // A problem of the bundle, or no good series, refuses the bundle with all problems.
        let errors = read(&json(r#""origin": "replay","#, &[good, bad])).expect_err("an origin");
        assert!(errors.starts_with("origin: ") && errors.contains("series[1]"), "{errors}");
        assert!(read(&json("", &[bad, bad])).is_err());
    }

    #[test]
    fn only_a_revision_has_a_reason_and_replaces_a_range() {
        let sample = r#"["2026-11-27T12:00:00Z", 1]"#;
        let range = r#""replaces": { "from": "2026-11-27T10:00:00Z", "to": "2026-11-27T24:00:00Z" }, "samples""#;
        for (members, replaces, problem) in [
            ("", false, None),
            (r#""revision": 2, "reason": "the clock was fast","#, false, None),
            (r#""revision": 2, "reason": "the clock was fast","#, true, None),
            (r#""revision": 2,"#, false, Some("reason: is missing")),
            (r#""reason": "a","#, false, Some("reason: is only for revisions above 1")),
            (r#""revision": 2, "reason": "","#, false, Some("reason: has 0 characters")),
            (
                r#""revision": 0,"#,
                false,
                Some("revision: is 0; give a whole number from 1 to 1000000"),
            ),
            ("", true, Some("series[0].replaces: is only for revisions above 1")),
        ] {
            let text = json(members, &[sample]);
            let text = if replaces { text.replace(r#""samples""#, range) } else { text };
            match (read(&text), problem) {
                (Ok(read), None) => {
                    let written = serde_json::to_string(&read.bundle).expect("JSON");
                    assert_eq!(Bundle::read(&written, at(NOW)), Ok(read.bundle), "{text}");
                }
                (Err(errors), Some(problem)) => assert!(errors.starts_with(problem), "{errors}"),
                (read, problem) => panic!("{text}: {read:?} is not {problem:?}"),
            }
        }
        let array = r#""replaces": ["2026-11-27T10:00:00Z", "2026-11-27T24:00:00Z"], "samples""#;
        let text = json(r#""revision": 2, "reason": "a","#, &[sample]);
        let errors = read(&text.replace(r#""samples""#, array)).expect_err("an array");
        assert!(errors.starts_with("series[0].replaces: is an array; give an object"), "{errors}");
        // A retraction has no samples.
        let retraction = json(r#""revision": 2, "reason": "wrong sensor","#, &[""]);
        assert!(read(&retraction).is_err());
        let read = read(&retraction.replace(r#""samples""#, range)).expect("a retraction");
        let replaces = read.bundle.series[0].replaces.expect("a range");
        assert_eq!(replaces.to, at("2026-11-28T00:00:00Z"));
        assert!(replaces.contains(replaces.from) && !replaces.contains(replaces.to));
    }

    fn offset(text: &str) -> UtcOffset {
        text.parse().expect("an offset")
    }

    /// Returns a bundle with this range and these samples, read by serde and by the rules.
    fn both(members: &str, replaces: &str, samples: &str) -> [Result<Bundle, String>; 2] {
        // A flag such as 2.0 is a whole number, but serde does not read it as a flag.
        let of_rules = samples.replacen(", 1]", ", 1, 2.0]", 1);
        [samples, &of_rules].map(|samples| {
            let text = json(members, &[samples]);
            let text = text.replace(r#""samples""#, &format!(r#"{replaces} "samples""#));
            read(&text).map(|read| read.bundle)
        })
    }

    #[test]
    fn a_series_without_offsets_becomes_utc_by_the_offset_of_the_site() {
        let revision = r#""revision": 2, "reason": "the clock was fast","#;
        let range =
            r#""replaces": { "from": "2026-11-27T09:00:00", "to": "2026-11-27T24:00:00" },"#;
        let local =
            r#"["2026-11-27T10:00:00", 1], ["2026-11-27 10:01", 2], ["2026-11-27T24:00:00", 3]"#;
        let utc = r#"["2026-11-27T17:00:00Z", 1], ["2026-11-27T17:01:00Z", 2], ["2026-11-28T07:00:00Z", 3]"#;
        let utc_range =
            range.replace("27T09:00:00", "27T16:00:00Z").replace("27T24:00:00", "28T07:00:00Z");
        let later = TimeLimits::from(at("2026-11-28T07:00:00Z"));
        let text =
            json(revision, &[utc]).replace(r#""samples""#, &format!(r#"{utc_range} "samples""#));
        let expected = Bundle::read(&text, later).expect("a bundle");
        for sent in both(revision, range, local) {
            let sent = sent.expect("a bundle");
            // A bundle that accept-readings serializes again, such as one with a refused series, still has no offsets.
            let written = serde_json::to_string(&sent).expect("JSON");
            assert!(written.contains(r#"["2026-11-28T00:00:00",3.0]"#), "{written}");
            assert!(!written.contains("Z\""), "{written}");
            assert_eq!(Bundle::read(&written, at(NOW)), Ok(sent.clone()));

            let mut resolved = sent.clone();
            assert_eq!(resolved.series[0].resolve(Some(offset("-07:00")), later), Ok(()));
            assert_eq!(resolved, expected);
            // Times in UTC stay as they are.
            assert_eq!(resolved.series[0].resolve(Some(offset("-07:00")), later), Ok(()));
            assert_eq!(resolved.series[0].resolve(None, later), Ok(()));
            assert_eq!(resolved, expected);
        }
        let retraction = both(revision, range, "");
        let [Ok(mut retraction), _] = retraction else { panic!("{retraction:?}") };
        assert_eq!(retraction.series[0].resolve(Some(offset("-07:00")), later), Ok(()));
        assert_eq!(retraction.series[0].replaces, expected.series[0].replaces);
    }

    #[test]
    fn a_replaced_range_does_not_end_in_the_future() {
        let revision = r#""revision": 2, "reason": "the clock was fast","#;
        let range = |to: &str| {
            let from =
                if to.ends_with('Z') { "2026-11-27T10:00:00Z" } else { "2026-11-27T10:00:00" };
            format!(r#""replaces": {{ "from": "{from}", "to": "{to}" }},"#)
        };
        let problem = "replaces: ends at 2062-11-27T12:00:00.000Z, more than 15 minutes ahead of our clock, 2026-11-28T00:00:00.000Z; ";
        for samples in [r#"["2026-11-27T12:00:00Z", 1]"#, ""] {
            for read in both(revision, &range("2026-11-28T00:15:00Z"), samples) {
                assert!(read.is_ok(), "{read:?}");
            }
            for to in ["2026-11-28T00:15:00.001Z", "2062-11-27T12:00:00Z"] {
                for read in both(revision, &range(to), samples) {
                    let errors = read.expect_err("a range into the future");
                    let start = if to.starts_with("2062") { problem } else { "replaces: ends at " };
                    assert!(errors.starts_with(&format!("series[0].{start}")), "{errors}");
                }
            }
        }
        // The end of a range without an offset is compared when the offset is known.
        for (to, is_good) in [("2026-11-27T17:15:00", true), ("2026-11-27T17:15:00.001", false)] {
            for read in both(revision, &range(to), r#"["2026-11-27T12:00:00", 1]"#) {
                let mut series = read.expect("a bundle").series.remove(0);
                let resolved = series.resolve(Some(offset("-07:00")), at(NOW).into());
                assert_eq!(resolved.is_ok(), is_good, "{to}: {resolved:?}");
                let reasons = resolved.err().into_iter().flatten().map(|error| error.reason);
                assert!(reasons.eq((!is_good).then_some(Reason::ClockAhead)));
            }
        }
    }

    #[test]
    fn the_times_of_a_series_have_all_an_offset_or_none() {
        let revision = r#""revision": 2, "reason": "the clock was fast","#;
        let range =
            |from: &str, to: &str| format!(r#""replaces": {{ "from": "{from}", "to": "{to}" }},"#);
        let local = r#"["2026-11-27T10:00:00", 1]"#;
        let utc = r#"["2026-11-27T17:00:00Z", 1]"#;
        let two = format!("{local}, {utc}");
        let turned = format!("{utc}, {}", local.replace("10:", "18:"));
        for (replaces, samples, problem) in [
            (
                String::new(),
                two.as_str(),
                "series[0].samples[1][0]: has a UTC offset, but samples[0][0] has none; give all times of a series an offset, or none of them",
            ),
            (
                String::new(),
                &turned,
                "series[0].samples[1][0]: has no UTC offset, but samples[0][0] has one; ",
            ),
            (
                range("2026-11-27T09:00:00", "2026-11-27T19:00:00Z"),
                local,
                "series[0].replaces.to: has a UTC offset, but samples[0][0] has none; ",
            ),
            (
                range("2026-11-27T09:00:00", "2026-11-27T19:00:00"),
                utc,
                "series[0].replaces.from: has no UTC offset, but samples[0][0] has one; ",
            ),
            (
                range("2026-11-27T09:00:00", "2026-11-27T19:00:00Z"),
                "",
                "series[0].replaces.to: has a UTC offset, but replaces.from has none; ",
            ),
        ] {
            let members = if replaces.is_empty() { "" } else { revision };
            for sent in both(members, &replaces, samples) {
                let errors = sent.expect_err(problem);
                assert!(errors.starts_with(problem) && !errors.contains("; series"), "{errors}");
            }
        }
        // Two series of a bundle are independent.
        let read = read(&json("", &[local, utc])).expect("a bundle").bundle;
        assert_eq!(read.series.iter().map(|it| it.is_local).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn the_limits_of_a_local_time_apply_to_its_utc_time() {
        let limits = TimeLimits::new(at(NOW), at(NOW), 400);
        for (time, utc_offset, expected) in [
            // NOW is the midnight before 2026-11-28.
            ("2026-11-28T00:15:00", "Z", Ok(())),
            (
                "2026-11-28T00:15:00.001",
                "Z",
                Err((Reason::ClockAhead, "2026-11-28T00:15:00.001Z is more than 15")),
            ),
            ("2026-11-28T14:15:00", "+14:00", Ok(())),
            (
                "2026-11-28T14:15:01",
                "+14:00",
                Err((Reason::ClockAhead, "2026-11-28T00:15:01.000Z is more than 15")),
            ),
            (
                "2026-11-27T17:16:00",
                "-07:00",
                Err((Reason::ClockAhead, "2026-11-28T00:16:00.000Z is more than 15")),
            ),
            (
                "1970-01-01T00:00:03",
                "Z",
                Err((Reason::ClockNotSet, "1970-01-01T00:00:03.000Z is more than 400")),
            ),
            (
                "1970-01-01T00:00:03",
                "+01:00",
                Err((Reason::ClockNotSet, "1969-12-31T23:00:03.000Z is before 1970")),
            ),
        ] {
            let bundle = read(&json("", &[&format!(r#"["{time}", 1]"#)])).expect(time).bundle;
            let resolved = bundle.series[0].clone().resolve(Some(offset(utc_offset)), limits);
            match (resolved, expected) {
                (Ok(()), Ok(())) => {}
                (Err(errors), Err((reason, message))) => {
                    assert_eq!((errors.len(), errors[0].reason), (1, reason), "{errors:?}");
                    assert!(
                        errors[0].to_string().starts_with(&format!("samples[0]: {message}")),
                        "{errors:?}"
                    );
                }
                (resolved, _) => panic!("{time} {utc_offset}: {resolved:?}"),
            }
        }
        // The order does not depend on the offset.
        let twice = r#"["2026-11-27T10:00:00", 1], ["2026-11-27T10:00:00.000", 2]"#;
        let (reason, line) = problem(twice);
        assert_eq!(reason, Reason::OutOfOrder);
        assert!(
            line.starts_with("series[0].samples[1]: 2026-11-27T10:00:00 is not later than"),
            "{line}"
        );
        assert!(problem(r#"["2026-11-27T23:59:60", 1]"#).1.contains("which is a leap second"));
        assert!(problem(r#"["2026-11-27T10:00:00.0001", 1]"#).1.contains("which is more precise"));
    }

    #[test]
    fn a_series_without_offsets_needs_a_site_with_one() {
        let sample = r#"["2026-11-27T10:00:00", 1], ["2026-11-27T10:01:00", 1]"#;
        let mut series = read(&json("", &[sample])).expect("a bundle").bundle.series.remove(0);
        let errors = series.resolve(None, at(NOW).into()).expect_err("no offset");
        assert_eq!(
            input::join_errors(&errors),
            "samples[0][0]: is \"2026-11-27T10:00:00\", which has no UTC offset; add Z for UTC, or an offset such as \
             +01:00, or declare utcOffset when you register the site"
        );
        assert!(series.is_local);
        series.samples.clear();
        let (from, to) = (at("2026-11-27T10:00:00Z"), at("2026-11-27T11:00:00Z"));
        series.replaces = Some(TimeRange { from, to });
        let errors = series.resolve(None, at(NOW).into()).expect_err("no offset");
        assert!(errors[0].to_string().starts_with("replaces.from: is \"2026-11-27T10:00:00\", "));
    }

    #[test]
    fn an_import_may_be_of_any_age_since_1970() {
        let old = r#"["1970-01-01T00:00:03Z", 2]"#;
        assert!(read(&json(r#""origin": "import","#, &[old])).is_ok());
        let older = r#"["1969-12-31T00:00:00Z", 2]"#;
        assert!(read(&json(r#""origin": "import","#, &[older])).is_err());
        assert!(Bundle::read(&json("", &[old]), at(NOW)).is_ok(), "there is no maximum age");
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
}
