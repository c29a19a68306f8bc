//! Samples: a value or none at an instant, with the sender's flag and qualifiers.
//!
//! In JSON, a sample is `[time, value]`, `[time, value, flag]` or `[time, value, flag, [qualifiers]]`.

use std::{fmt, ops::Range, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, SeqAccess, Visitor},
    ser::SerializeSeq,
};

use crate::{
    Timestamp, number,
    sample_time::{self, InvalidTime, SentTime},
};

/// The maximum number of qualifiers of a sample.
pub const MAX_QUALIFIERS: usize = 8;
/// The maximum number of different qualifiers in a series.
pub const MAX_SERIES_QUALIFIERS: usize = 100;
const MAX_QUALIFIER: usize = 40;
/// Texts that loggers send in place of a value that could not be measured.
pub(crate) const NO_VALUE_TEXTS: [&str; 3] = ["NAN", "INF", "-INF"];

/// The sender's assessment of a sample: the flags of QARTOD.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "u8", into = "u8")]
#[repr(u8)]
pub enum Flag {
    /// The value passed the sender's quality control.
    Pass = 1,
    /// The value was not assessed. It is the default.
    #[default]
    NotEvaluated = 2,
    /// The value is suspect. It still counts.
    Suspect = 3,
    /// The value is wrong.
    Fail = 4,
    /// There is no value.
    Missing = 9,
}

impl Flag {
    /// All flags.
    pub const ALL: [Self; 5] =
        [Self::Pass, Self::NotEvaluated, Self::Suspect, Self::Fail, Self::Missing];

    /// Returns the name that people read.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::NotEvaluated => "not evaluated",
            Self::Suspect => "suspect",
            Self::Fail => "fail",
            Self::Missing => "missing",
        }
    }
}

impl From<Flag> for u8 {
    fn from(flag: Flag) -> Self {
        flag as Self
    }
}

/// The error for a number that is not a [`Flag`].
#[derive(Debug, thiserror::Error)]
#[error(
    "is not a flag; give one of {}",
    Flag::ALL.map(|flag| format!("{} ({})", flag as u8, flag.name())).join(", ")
)]
pub struct InvalidFlag;

impl TryFrom<u8> for Flag {
    type Error = InvalidFlag;

    fn try_from(number: u8) -> Result<Self, InvalidFlag> {
        Self::ALL.into_iter().find(|flag| *flag as u8 == number).ok_or(InvalidFlag)
    }
}

impl JsonSchema for Flag {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Flag".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "enum": Self::ALL })
    }
}

/// The samples that a query counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quality {
    /// Samples that passed the sender's quality control.
    Good,
    /// Samples that did not fail it.
    #[default]
    Usable,
    /// All samples with a value.
    All,
}

impl Quality {
    /// All qualities.
    pub const ALL: [Self; 3] = [Self::Good, Self::Usable, Self::All];

    /// Returns the name that queries use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Usable => "usable",
            Self::All => "all",
        }
    }
}

/// A sample. The time is when the sample was taken. The value is in the unit of the sensor.
///
/// The flag is [`Flag::Missing`] if and only if there is no value. The constructors guarantee it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// When the sample was taken.
    pub at: Timestamp,
    /// The value, never -0.0.
    pub value: Option<f64>,
    /// The sender's assessment.
    pub flag: Flag,
}

impl Sample {
    /// Creates a sample that was not assessed.
    #[must_use]
    pub fn new(at: Timestamp, value: f64) -> Self {
        Self::flagged(at, value, Flag::NotEvaluated)
    }

    /// Creates a sample without a value.
    #[must_use]
    pub fn missing(at: Timestamp) -> Self {
        Self { at, value: None, flag: Flag::Missing }
    }

    /// Creates a sample with a flag. With [`Flag::Missing`] the value is dropped.
    #[must_use]
    pub fn flagged(at: Timestamp, value: f64, flag: Flag) -> Self {
        if flag == Flag::Missing {
            return Self::missing(at);
        }
        // Adding 0.0 turns -0.0 into 0.0 and changes no other value.
        Self { at, value: Some(value + 0.0), flag }
    }

    /// Creates a sample from what a sender gave. If the sender gave no flag, it is `NotEvaluated` with a value and
    /// `Missing` without one.
    pub(crate) fn sent(
        at: Timestamp,
        value: Option<f64>,
        flag: Option<Flag>,
    ) -> Result<Self, InvalidSample> {
        match (value, flag) {
            (Some(_), Some(Flag::Missing)) => Err(InvalidSample::ValueIsMissing),
            (Some(value), flag) => Ok(Self::flagged(at, value, flag.unwrap_or_default())),
            (None, None | Some(Flag::Missing)) => Ok(Self::missing(at)),
            (None, Some(_)) => Err(InvalidSample::NoValue),
        }
    }

    /// Returns the value if it counts in a query of this quality.
    ///
    /// Queries and alerts share this decision.
    #[must_use]
    pub fn counted(self, quality: Quality) -> Option<f64> {
        let counts = match quality {
            Quality::Good => self.flag == Flag::Pass,
            Quality::Usable => {
                matches!(self.flag, Flag::Pass | Flag::NotEvaluated | Flag::Suspect)
            }
            Quality::All => true,
        };
        self.value.filter(|_| counts)
    }

    /// Returns whether the flag can be left out in JSON: a reader then sets the same flag.
    fn has_default_flag(self) -> bool {
        matches!(self.flag, Flag::NotEvaluated | Flag::Missing)
    }
}

/// The error for a sample whose value and flag contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSample {
    /// The sample has a value and the flag 9.
    #[error("is 9 (missing), but there is a value; give null as the value, or another flag")]
    ValueIsMissing,
    /// The sample has no value and another flag than 9.
    #[error("is not 9 (missing), but there is no value; give 9, or leave the flag out")]
    NoValue,
}

/// A note of the sender on a sample, such as `<`, `calibration` or `maintenance`: 1 to 40 printable ASCII characters
/// without quotes and backslashes. The vocabulary is open.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Qualifier(String);

impl Qualifier {
    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The error for a text that is not a valid [`Qualifier`].
#[derive(Debug, thiserror::Error)]
#[error(
    "is not a qualifier; give 1 to {MAX_QUALIFIER} printable ASCII characters without quotes and backslashes"
)]
pub struct InvalidQualifier;

impl TryFrom<String> for Qualifier {
    type Error = InvalidQualifier;

    fn try_from(text: String) -> Result<Self, InvalidQualifier> {
        let good = |byte: &u8| matches!(byte, b' '..=b'~') && !b"\"'`\\".contains(byte);
        let has_blank_ends = text.starts_with(' ') || text.ends_with(' ');
        let fits = (1..=MAX_QUALIFIER).contains(&text.len());
        if fits && !has_blank_ends && text.as_bytes().iter().all(good) {
            Ok(Self(text))
        } else {
            Err(InvalidQualifier)
        }
    }
}

impl FromStr for Qualifier {
    type Err = InvalidQualifier;

    fn from_str(text: &str) -> Result<Self, InvalidQualifier> {
        text.to_owned().try_into()
    }
}

impl fmt::Display for Qualifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Qualifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Qualifier({})", self.0)
    }
}

impl JsonSchema for Qualifier {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Qualifier".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // Printable ASCII without " ' \ and `, and no space at the ends.
        json_schema!({
            "type": "string",
            "pattern": "^[!#-&(-\\[\\]-_a-~]([ !#-&(-\\[\\]-_a-~]*[!#-&(-\\[\\]-_a-~])?$",
            "maxLength": MAX_QUALIFIER,
        })
    }
}

/// The qualifiers of the samples of a series. Most samples have none, so the lists are kept by the sample's index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Qualifiers(Vec<(u32, Vec<Qualifier>)>);

impl Qualifiers {
    /// Returns whether no sample has a qualifier.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the qualifiers of a sample. Samples must be added in their order. An empty list is not added.
    pub fn push(&mut self, index: usize, qualifiers: Vec<Qualifier>) {
        // A bundle has room for fewer than 2^32 samples.
        if let Ok(index) = u32::try_from(index)
            && !qualifiers.is_empty()
        {
            self.0.push((index, qualifiers));
        }
    }

    /// Returns the qualifiers of the sample with this index.
    #[must_use]
    pub fn of(&self, index: usize) -> &[Qualifier] {
        let found = self.0.binary_search_by_key(&index, |(index, _)| *index as usize);
        found.map_or(&[], |found| &self.0[found].1)
    }

    /// Returns the samples' indexes with their qualifiers, in order.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &[Qualifier])> {
        self.0.iter().map(|(index, qualifiers)| (*index as usize, &qualifiers[..]))
    }

    /// Keeps the qualifiers of the first `count` samples.
    pub fn truncate(&mut self, count: usize) {
        self.0.retain(|(index, _)| (*index as usize) < count);
    }

    /// Returns the qualifiers of a part of the series, with the indexes in that part.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Self {
        let mut part = Self::default();
        for (index, qualifiers) in self.iter().filter(|(index, _)| range.contains(index)) {
            part.push(index - range.start, qualifiers.to_vec());
        }
        part
    }
}

/// A sample with its qualifiers.
#[derive(Clone, Debug, PartialEq)]
pub struct QualifiedSample {
    /// The sample.
    pub sample: Sample,
    /// The qualifiers.
    pub qualifiers: Vec<Qualifier>,
}

/// Writes the shortest form that has everything.
fn serialize<S: Serializer>(
    Sample { at, value, flag }: Sample,
    is_local: bool,
    qualifiers: &[Qualifier],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let is_plain = Sample { at, value, flag }.has_default_flag();
    let length = match (qualifiers.is_empty(), is_plain) {
        (true, true) => 2,
        (true, false) => 3,
        (false, _) => 4,
    };
    let mut entries = serializer.serialize_seq(Some(length))?;
    entries.serialize_element(&SentTime { at, is_local })?;
    entries.serialize_element(&value)?;
    if length > 2 {
        entries.serialize_element(&flag)?;
    }
    if length > 3 {
        entries.serialize_element(qualifiers)?;
    }
    entries.end()
}

impl Serialize for Sample {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize(*self, false, &[], serializer)
    }
}

impl Serialize for QualifiedSample {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize(self.sample, false, &self.qualifiers, serializer)
    }
}

/// Samples with the qualifiers of some of them, as one JSON array.
pub(crate) struct SampleList<'a> {
    pub(crate) samples: &'a [Sample],
    pub(crate) qualifiers: &'a Qualifiers,
    /// Whether the times have no UTC offset.
    pub(crate) is_local: bool,
}

impl Serialize for SampleList<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Entry<'a>(Sample, bool, &'a [Qualifier]);

        impl Serialize for Entry<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serialize(self.0, self.1, self.2, serializer)
            }
        }

        let Self { samples, qualifiers, is_local } = *self;
        let samples = samples.iter().enumerate();
        serializer
            .collect_seq(samples.map(|(index, at)| Entry(*at, is_local, qualifiers.of(index))))
    }
}

/// A sample as it is sent.
pub(crate) struct SentSample {
    /// The sample. Without a UTC offset, its time is that of the site's clock, read as if it were UTC.
    pub(crate) sample: QualifiedSample,
    /// Whether the time has no UTC offset.
    pub(crate) is_local: bool,
}

impl<'de> Deserialize<'de> for SentSample {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = SentSample;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array [time, value, flag, [qualifiers]]")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let too_short = |length| de::Error::invalid_length(length, &self);
                let SentTime { at, is_local } =
                    entries.next_element()?.ok_or_else(|| too_short(0))?;
                let SentValue(value) = entries.next_element()?.ok_or_else(|| too_short(1))?;
                let flag = entries.next_element()?;
                let qualifiers: Option<Vec<_>> = entries.next_element()?;
                let qualifiers = qualifiers.unwrap_or_default();
                if qualifiers.len() > MAX_QUALIFIERS {
                    return Err(de::Error::invalid_length(qualifiers.len(), &self));
                }
                let sample = Sample::sent(at, value, flag).map_err(de::Error::custom)?;
                Ok(SentSample { sample: QualifiedSample { sample, qualifiers }, is_local })
            }
        }

        deserializer.deserialize_seq(Reader)
    }
}

impl<'de> Deserialize<'de> for QualifiedSample {
    /// Reads a sample whose time has a UTC offset.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match SentSample::deserialize(deserializer)? {
            SentSample { sample, is_local: false } => Ok(sample),
            SentSample { is_local: true, .. } => Err(de::Error::custom(InvalidTime::NoOffset)),
        }
    }
}

impl<'de> Deserialize<'de> for Sample {
    /// Reads a sample without qualifiers.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let QualifiedSample { sample, qualifiers } = QualifiedSample::deserialize(deserializer)?;
        if qualifiers.is_empty() {
            Ok(sample)
        } else {
            Err(de::Error::custom("the sample has qualifiers"))
        }
    }
}

/// The samples of a series as they are sent.
#[derive(Default)]
pub(crate) struct SentSamples {
    pub(crate) samples: Vec<Sample>,
    /// The qualifiers of some of the samples.
    pub(crate) qualifiers: Qualifiers,
    /// Whether the times have no UTC offset. `None` if there are no samples.
    pub(crate) is_local: Option<bool>,
}

impl<'de> Deserialize<'de> for SentSamples {
    /// Reads an array of samples. All of them have an offset, or none has.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = SentSamples;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of samples")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let mut sent = SentSamples::default();
                while let Some(SentSample { sample, is_local }) = entries.next_element()? {
                    if *sent.is_local.get_or_insert(is_local) != is_local {
                        return Err(de::Error::custom(sample_time::MIXED));
                    }
                    sent.qualifiers.push(sent.samples.len(), sample.qualifiers);
                    sent.samples.push(sample.sample);
                }
                Ok(sent)
            }
        }

        deserializer.deserialize_seq(Reader)
    }
}

/// A value as it is sent: a number, or what stands for a missing one.
struct SentValue(Option<f64>);

impl<'de> Deserialize<'de> for SentValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = SentValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or null")
            }

            fn visit_f64<E>(self, value: f64) -> Result<SentValue, E> {
                Ok(SentValue(Some(value)))
            }

            #[expect(clippy::cast_precision_loss, reason = "a value beyond 2^53 is rounded")]
            fn visit_i64<E>(self, value: i64) -> Result<SentValue, E> {
                Ok(SentValue(Some(value as f64)))
            }

            #[expect(clippy::cast_precision_loss, reason = "a value beyond 2^53 is rounded")]
            fn visit_u64<E>(self, value: u64) -> Result<SentValue, E> {
                Ok(SentValue(Some(value as f64)))
            }

            fn visit_unit<E>(self) -> Result<SentValue, E> {
                Ok(SentValue(None))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SentValue, E> {
                if NO_VALUE_TEXTS.contains(&text) {
                    Ok(SentValue(None))
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(text), &self))
                }
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

/// Returns the JSON Schema of a sample: with a value, or without one.
fn schema(generator: &mut SchemaGenerator) -> Schema {
    // The released schema accepts more precise times, so a pattern would be a breaking change.
    let time = json_schema!({ "type": "string", "format": "date-time" });
    let local_time = sample_time::local_schema(generator);
    let qualifier = Qualifier::json_schema(generator);
    let qualifiers = json_schema!({
        "type": "array", "items": qualifier, "minItems": 0, "maxItems": MAX_QUALIFIERS,
    });
    let flags = Flag::ALL.into_iter().filter(|flag| *flag != Flag::Missing).collect::<Vec<_>>();
    let flags = json_schema!({ "enum": flags });
    let missing = json_schema!({ "enum": [Flag::Missing] });
    let value = number::finite(generator);
    let no_value: Vec<_> = [None].into_iter().chain(NO_VALUE_TEXTS.map(Some)).collect();
    let no_value = json_schema!({ "enum": no_value });
    // The tool that compares schemas needs the type and the lengths in each case.
    let case = |items: [Schema; 4]| json_schema!({ "type": "array", "minItems": 2, "maxItems": 4, "prefixItems": items });
    let cases: Vec<_> = [time, local_time]
        .into_iter()
        .flat_map(|time| {
            let value = [time.clone(), value.clone(), flags.clone(), qualifiers.clone()];
            let no_value = [time, no_value.clone(), missing.clone(), qualifiers.clone()];
            [case(value), case(no_value)]
        })
        .collect();
    json_schema!({
        "description": "A sample: `[time, value]`, `[time, value, flag]` or `[time, value, flag, [qualifiers]]`.\n\n\
            The time is when the sample was taken. It must be in 1970 or later, at most 15 minutes in the future, and \
            not more precise than milliseconds. It has no UTC offset only if the site declares a `utcOffset`; then no \
            time of the series has one. The value is in the unit of the sensor; null, \"NAN\", \"INF\" and \
            \"-INF\" mean that there is none.\n\nFlags: 1 pass, 2 not evaluated (the default), 3 suspect, 4 fail, \
            9 missing (if and only if there is no value).",
        "type": "array",
        "minItems": 2,
        "maxItems": 4,
        "anyOf": cases,
    })
}

impl JsonSchema for Sample {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Sample".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn only_samples_of_the_quality_are_counted() {
        let at = at("2026-01-01T00:00:00Z");
        let samples = [
            Sample::flagged(at, 5.0, Flag::Pass),
            Sample::missing(at),
            Sample::flagged(at, 1400.0, Flag::Fail),
            Sample::flagged(at, 600.0, Flag::Suspect),
            Sample::new(at, 7.0),
        ];
        let counted = |quality| samples.map(|sample| sample.counted(quality));
        assert_eq!(counted(Quality::Good), [Some(5.0), None, None, None, None]);
        assert_eq!(counted(Quality::Usable), [Some(5.0), None, None, Some(600.0), Some(7.0)]);
        let all = [Some(5.0), None, Some(1400.0), Some(600.0), Some(7.0)];
        assert_eq!(counted(Quality::All), all);
    }

    #[test]
    fn a_sample_has_two_to_four_entries() {
        let time = at("2026-01-01T11:00:00Z");
        for (json, sample, written) in [
            (r#"["2026-01-01T12:00:00+01:00", -1.8]"#, Sample::new(time, -1.8), ",-1.8]"),
            (
                r#"["2026-01-01T11:00:00Z", 7, 1]"#,
                Sample::flagged(time, 7.0, Flag::Pass),
                ",7.0,1]",
            ),
            (r#"["2026-01-01T11:00:00Z", 7, 2, []]"#, Sample::new(time, 7.0), ",7.0]"),
            (r#"["2026-01-01T11:00:00Z", null]"#, Sample::missing(time), ",null]"),
            (r#"["2026-01-01T11:00:00Z", "NAN", 9]"#, Sample::missing(time), ",null]"),
            (r#"["2026-01-01T11:00:00Z", "-INF"]"#, Sample::missing(time), ",null]"),
            (r#"["2026-01-01T11:00:00Z", -0.0]"#, Sample::new(time, 0.0), ",0.0]"),
        ] {
            let read: Sample = serde_json::from_str(json).expect(json);
            assert_eq!(read, sample, "{json}");
            let text = serde_json::to_string(&read).expect("JSON");
            assert_eq!(text, format!(r#"["2026-01-01T11:00:00.000Z"{written}"#));
        }
        for bad in [
            r#"["2026-01-01T12:00:00Z"]"#,
            r#"["2026-01-01T12:00:00Z", "nan"]"#,
            r#"["2026-01-01T12:00:00Z", "7"]"#,
            r#"["2026-01-01T12:00:00Z", 7, 9]"#,
            r#"["2026-01-01T12:00:00Z", null, 4]"#,
            r#"["2026-01-01T12:00:00Z", 1, 5]"#,
            r#"["2026-01-01T12:00:00Z", 1, "1"]"#,
            r#"["2026-01-01T12:00:00Z", 1, 2, "<"]"#,
            r#"["2026-01-01T12:00:00Z", 1, 2, ["<"], 1]"#,
            r#"["2026-01-01T12:00:00Z", 1e999]"#,
            r#"["12:00", 1]"#,
            r#"["2026-01-01T12:00:00", 1]"#,
        ] {
            assert!(serde_json::from_str::<QualifiedSample>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_sample_keeps_its_qualifiers() {
        let json = r#"["2026-01-01T12:00:00.000Z",0.1,3,["<","wind speed < 0.5 m/s"]]"#;
        let read: QualifiedSample = serde_json::from_str(json).expect("a sample");
        assert_eq!(read.qualifiers[1].as_str(), "wind speed < 0.5 m/s");
        assert_eq!(serde_json::to_string(&read).expect("JSON"), json);
        assert!(serde_json::from_str::<Sample>(json).is_err(), "the qualifiers would be lost");
    }

    #[test]
    fn a_qualifier_is_short_and_printable() {
        for good in ["<", "calibration", "a b", &"x".repeat(40)] {
            assert!(good.parse::<Qualifier>().is_ok(), "{good}");
        }
        for bad in ["", " a", "a ", "a\"b", "a'b", "`", "a\\b", "ä", "a\nb", &"x".repeat(41)] {
            assert!(bad.parse::<Qualifier>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_part_of_a_series_keeps_its_qualifiers() {
        let qualifier = |text: &str| vec![text.parse::<Qualifier>().expect("a qualifier")];
        let mut all = Qualifiers::default();
        all.push(1, qualifier("a"));
        all.push(2, Vec::new());
        all.push(5, qualifier("b"));
        assert_eq!(all.of(5), qualifier("b"));
        assert!(all.of(2).is_empty());
        let part = all.part(2..6);
        assert_eq!(part.iter().collect::<Vec<_>>(), [(3, &qualifier("b")[..])]);
        assert!(all.part(6..9).is_empty());
    }
}
