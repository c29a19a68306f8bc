//! The times of samples. They are read more strictly than other times: nothing is rounded, so two different times never
//! become the same instant.

use std::fmt;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{
    Deserializer,
    de::{self, Visitor},
};

use crate::Timestamp;

const DAY_MILLIS: i64 = 24 * 60 * 60 * 1000;
const NANOS_PER_MILLI: i32 = 1_000_000;
/// The position of the seconds in `2026-01-01T00:00:00Z`.
const SECONDS: std::ops::Range<usize> = 17..19;

/// The error for a text that is not the time of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidTime {
    /// The seconds are 60.
    #[error("which is a leap second; give the time of a neighbouring second that has no sample")]
    LeapSecond,
    /// The time has digits after the milliseconds.
    #[error("which is more precise than milliseconds; give at most three decimals")]
    TooPrecise,
    /// The time has no UTC offset.
    #[error("which has no UTC offset; add Z for UTC, or an offset such as +01:00")]
    NoOffset,
    /// The text is not a time.
    #[error("give an RFC 3339 time such as 2026-01-01T00:00:00Z")]
    NotATime,
}

/// Parses the time of a sample. `24:00:00` is the next midnight.
pub(crate) fn parse(text: &str) -> Result<Timestamp, InvalidTime> {
    if text.get(SECONDS) == Some("60") {
        return Err(InvalidTime::LeapSecond);
    }
    let Ok(time) = text.parse::<jiff::Timestamp>() else { return parse_uncommon(text) };
    // jiff reads second 60 as 59. In a text without colons, the seconds are elsewhere.
    if time.as_second().rem_euclid(60) == 59 && clock_digits(text).get(4..6) == Some("60") {
        return Err(InvalidTime::LeapSecond);
    }
    if time.subsec_nanosecond() % NANOS_PER_MILLI != 0 {
        return Err(InvalidTime::TooPrecise);
    }
    Ok(Timestamp::from_millis(time.as_millisecond()))
}

/// Parses what jiff refuses: `24:00:00`. Otherwise returns the reason.
fn parse_uncommon(text: &str) -> Result<Timestamp, InvalidTime> {
    if let Some(start) = clock_start(text)
        && text[start..].starts_with("24")
        && clock_digits(text)[2..].bytes().all(|digit| digit == b'0')
    {
        let midnight = format!("{}00{}", &text[..start], &text[start + 2..]);
        return parse(&midnight).map(|midnight| midnight.plus_millis(DAY_MILLIS));
    }
    match text.parse::<jiff::civil::DateTime>() {
        Ok(_) => Err(InvalidTime::NoOffset),
        Err(_) => Err(InvalidTime::NotATime),
    }
}

/// Returns the position of the time of day.
fn clock_start(text: &str) -> Option<usize> {
    text.find(['T', 't', ' ']).map(|separator| separator + 1)
}

/// Returns the digits of the time of day, without colons.
fn clock_digits(text: &str) -> String {
    let clock = clock_start(text).and_then(|start| text.get(start..)).unwrap_or_default();
    let clock = clock.chars().take_while(|c| c.is_ascii_digit() || matches!(c, ':' | '.' | ','));
    clock.filter(char::is_ascii_digit).collect()
}

/// Deserializes the time of a sample.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Timestamp, D::Error> {
    struct Reader;

    impl Visitor<'_> for Reader {
        type Value = Timestamp;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an RFC 3339 time")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
            parse(text).map_err(E::custom)
        }
    }

    d.deserialize_str(Reader)
}

/// Returns the JSON Schema of the time of a sample. It does not describe `24:00:00`, which is accepted too.
pub(crate) fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "format": "date-time",
        "pattern": "^[^.]*:[0-5][0-9](\\.[0-9]{1,3}0*)?([Zz]|[+-][0-9][0-9]:[0-9][0-9])$",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_that_loggers_send_are_read() {
        for (text, read) in [
            ("2026-11-27T12:00:00.001Z", "2026-11-27T12:00:00.001Z"),
            ("2026-11-27T12:00:00.001000000+01:00", "2026-11-27T11:00:00.001Z"),
            ("2026-11-27 12:00:00Z", "2026-11-27T12:00:00.000Z"),
            ("2026-11-27T12:00Z", "2026-11-27T12:00:00.000Z"),
            ("20261127T120000Z", "2026-11-27T12:00:00.000Z"),
            ("2026-11-27T24:00:00Z", "2026-11-28T00:00:00.000Z"),
            ("2026-12-31T24:00:00.000+01:00", "2026-12-31T23:00:00.000Z"),
            ("20261127T240000Z", "2026-11-28T00:00:00.000Z"),
            ("2026-11-27T23:59:59Z", "2026-11-27T23:59:59.000Z"),
        ] {
            assert_eq!(parse(text).map(|time| time.to_string()), Ok(read.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_time_that_could_be_mistaken_for_another_is_refused() {
        for (text, reason) in [
            ("2026-11-27T23:59:60Z", InvalidTime::LeapSecond),
            ("2016-12-31T23:59:60Z", InvalidTime::LeapSecond),
            ("20261127T235960Z", InvalidTime::LeapSecond),
            ("2026-11-27 23:59:60+00:00", InvalidTime::LeapSecond),
            ("2026-11-27T12:00:00.0001Z", InvalidTime::TooPrecise),
            ("2026-11-27T12:00:00.123456789Z", InvalidTime::TooPrecise),
            ("1969-12-31T23:59:59.9999Z", InvalidTime::TooPrecise),
            ("2026-11-27T12:00:00", InvalidTime::NoOffset),
            ("2026-11-27 12:00", InvalidTime::NoOffset),
            ("2026-11-27T24:00:01Z", InvalidTime::NotATime),
            ("2026-11-27T24:00:00.001Z", InvalidTime::NotATime),
            ("2026-11-27T25:00:00Z", InvalidTime::NotATime),
            ("2026-11-27T24:00:00", InvalidTime::NoOffset),
            ("12:00", InvalidTime::NotATime),
            ("24", InvalidTime::NotATime),
            ("T24", InvalidTime::NotATime),
            ("", InvalidTime::NotATime),
        ] {
            assert_eq!(parse(text), Err(reason), "{text}");
        }
    }
}
