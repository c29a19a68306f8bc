//! The times of samples. They are read more strictly than other times: nothing is rounded, so two different times never
//! become the same instant.

use std::fmt;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
};

use crate::Timestamp;

const DAY_MILLIS: i64 = 24 * 60 * 60 * 1000;
const NANOS_PER_MILLI: i32 = 1_000_000;
/// The length of `2026-01-01T00:00:00`.
const TO_SECONDS: usize = 19;
/// The regular expression of a time without an offset. It does not describe all forms that are accepted.
pub(crate) const LOCAL_PATTERN: &str = "^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,3}0*)?$";

/// The advice for a series with both kinds of times.
pub(crate) const MIXED: &str = "give all times of a series an offset, or none of them";

/// The time of a sample as it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SentTime {
    /// The time. Without a UTC offset, it is the time of the site's clock, read as if it were UTC.
    pub(crate) at: Timestamp,
    /// Whether the text has no UTC offset.
    pub(crate) is_local: bool,
}

/// The error for a text that is not the time of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidTime {
    /// The seconds are 60.
    #[error("which is a leap second; give the time of a neighbouring second that has no sample")]
    LeapSecond,
    /// The time has digits after the milliseconds.
    #[error("which is more precise than milliseconds; give at most three decimals")]
    TooPrecise,
    /// The time has no UTC offset, and neither has the site.
    #[error(
        "which has no UTC offset; add Z for UTC, or an offset such as +01:00, or declare utcOffset when you register \
         the site"
    )]
    NoOffset,
    /// The text is not a time.
    #[error("give an RFC 3339 time such as 2026-01-01T00:00:00Z")]
    NotATime,
}

/// Parses the time of a sample. `24:00:00` is the next midnight.
pub(crate) fn parse(text: &str) -> Result<SentTime, InvalidTime> {
    match parse_common(text) {
        Some(at) => Ok(SentTime { at, is_local: false }),
        None => parse_any(text),
    }
}

/// Parses a time in any form.
fn parse_any(text: &str) -> Result<SentTime, InvalidTime> {
    let Ok(time) = text.parse::<jiff::Timestamp>() else { return parse_uncommon(text) };
    Ok(SentTime { at: checked(time, text)?, is_local: false })
}

/// Parses `2026-01-01T00:00:00Z`, with or without milliseconds. Returns `None` for any other form.
///
/// Most samples have this form. jiff's parser accepts many forms, so it takes more instructions for this one.
fn parse_common(text: &str) -> Option<Timestamp> {
    let [
        year @ ..,
        b'-',
        month_tens,
        month,
        b'-',
        day_tens,
        day,
        b'T',
        hour_tens,
        hour,
        b':',
        minute_tens,
        minute,
        b':',
        second_tens,
        second,
    ] = text.as_bytes().get(..TO_SECONDS)?
    else {
        return None;
    };
    let number = |digits: &[u8]| {
        digits.iter().try_fold(0_i16, |number, digit| {
            digit.is_ascii_digit().then(|| number * 10 + i16::from(digit - b'0'))
        })
    };
    let pair = |tens: &u8, ones: &u8| i8::try_from(number(&[*tens, *ones])?).ok();
    let millis = match text.as_bytes()[TO_SECONDS..] {
        [b'Z'] => 0,
        [b'.', hundreds, tens, ones, b'Z'] => number(&[hundreds, tens, ones])?,
        _ => return None,
    };
    let time = jiff::civil::DateTime::new(
        number(year)?,
        pair(month_tens, month)?,
        pair(day_tens, day)?,
        pair(hour_tens, hour)?,
        pair(minute_tens, minute)?,
        pair(second_tens, second)?,
        i32::from(millis) * NANOS_PER_MILLI,
    );
    let time = jiff::tz::Offset::UTC.to_timestamp(time.ok()?).ok()?;
    Some(Timestamp::from_millis(time.as_millisecond()))
}

/// Parses what jiff does not accept as a time with an offset: `24:00:00`, with or without an offset, and a time without
/// an offset. Otherwise returns the reason.
fn parse_uncommon(text: &str) -> Result<SentTime, InvalidTime> {
    let start = clock_start(text).ok_or(InvalidTime::NotATime)?;
    let clock = &text[start..];
    if clock.starts_with("24") && clock_digits(text)[2..].bytes().all(|digit| digit == b'0') {
        let midnight = format!("{}00{}", &text[..start], &clock[2..]);
        let SentTime { at, is_local } = parse(&midnight)?;
        return Ok(SentTime { at: at.plus_millis(DAY_MILLIS), is_local });
    }
    // jiff ignores what may follow the clock, such as the name of a time zone.
    let is_clock = |byte: u8| byte.is_ascii_digit() || matches!(byte, b':' | b'.' | b',');
    let time = clock.bytes().all(is_clock).then(|| text.parse::<jiff::civil::DateTime>().ok());
    let time = time.flatten().and_then(|time| jiff::tz::Offset::UTC.to_timestamp(time).ok());
    Ok(SentTime { at: checked(time.ok_or(InvalidTime::NotATime)?, text)?, is_local: true })
}

/// Returns the time that jiff read from the text. Fails if it is not exactly the time in the text: a leap second, or
/// more digits than milliseconds.
fn checked(time: jiff::Timestamp, text: &str) -> Result<Timestamp, InvalidTime> {
    // jiff reads second 60 as 59. In a text without colons, the seconds are elsewhere.
    if clock_digits(text).get(4..6) == Some("60") {
        return Err(InvalidTime::LeapSecond);
    }
    if time.subsec_nanosecond() % NANOS_PER_MILLI != 0 {
        return Err(InvalidTime::TooPrecise);
    }
    Ok(Timestamp::from_millis(time.as_millisecond()))
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

/// Writes the time as it was sent: without an offset, if it has none.
impl fmt::Display for SentTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, is_local } = self;
        if !is_local {
            return fmt::Display::fmt(at, f);
        }
        let text = at.to_string();
        let local = text.trim_end_matches('Z');
        f.write_str(local.strip_suffix(".000").unwrap_or(local))
    }
}

impl Serialize for SentTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SentTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = SentTime;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an RFC 3339 time")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SentTime, E> {
                parse(text).map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Reader)
    }
}

/// Deserializes the time of a sample that has a UTC offset.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Timestamp, D::Error> {
    match SentTime::deserialize(d)? {
        SentTime { at, is_local: false } => Ok(at),
        SentTime { is_local: true, .. } => Err(de::Error::custom(InvalidTime::NoOffset)),
    }
}

/// Returns the JSON Schema of a bound of a range: a time with an offset, or one without.
pub(crate) fn schema(generator: &mut SchemaGenerator) -> Schema {
    let with_offset = json_schema!({
        "type": "string",
        "format": "date-time",
        "pattern": "^[^.]*:[0-5][0-9](\\.[0-9]{1,3}0*)?([Zz]|[+-][0-9][0-9]:[0-9][0-9])$",
    });
    json_schema!({ "oneOf": [with_offset, local_schema(generator)] })
}

/// Returns the JSON Schema of a time without an offset. It does not describe `24:00:00`, which is accepted too.
pub(crate) fn local_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": LOCAL_PATTERN })
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
            ("2026-11-27T12:00:00", "2026-11-27T12:00:00"),
            ("2026-11-27 12:00", "2026-11-27T12:00:00"),
            ("20261127T120000.5", "2026-11-27T12:00:00.500"),
            // The digits 60 are where `2026-11-27T12:00:60Z` has its seconds.
            ("20261127T101500.060Z", "2026-11-27T10:15:00.060Z"),
            ("20261127T101500,160", "2026-11-27T10:15:00.160"),
            ("2026-11-27T24:00:00", "2026-11-28T00:00:00"),
            ("2026-11-27T24:00", "2026-11-28T00:00:00"),
            ("2026-11-27T23:59:59.001", "2026-11-27T23:59:59.001"),
        ] {
            let sent = parse(text).expect(text);
            assert_eq!(sent.to_string(), read, "{text}");
            assert_eq!(sent.is_local, !read.ends_with('Z'), "{text}");
            assert_eq!(parse(read), Ok(sent), "{text}");
        }
    }

    #[test]
    fn the_common_form_is_read_as_any_other_form() {
        let same = |text: &str| {
            let common = parse_common(text).map(|at| SentTime { at, is_local: false });
            assert!(common.is_none_or(|common| parse_any(text) == Ok(common)), "{text}");
            common.is_some()
        };
        let day = jiff::civil::Date::new(1970, 1, 1).expect("a date");
        for date in day.series(jiff::Span::new().days(1)).take(50_000) {
            assert!(same(&format!("{date}T23:59:59Z")) && same(&format!("{date}T00:00:00.001Z")));
        }
        // Each text that differs in one byte from a time.
        let mut common = 0;
        for text in ["2024-02-29T12:34:56Z", "2026-11-27T12:34:56.789Z", "9999-12-31T23:59:59Z"] {
            for index in 0..text.len() {
                for byte in 0..128_u8 {
                    let mut changed = text.as_bytes().to_vec();
                    changed[index] = byte;
                    common += u32::from(same(str::from_utf8(&changed).expect("ASCII")));
                }
            }
        }
        assert!(common > 200, "{common} of these texts have the common form");
    }

    #[test]
    fn a_time_that_could_be_mistaken_for_another_is_refused() {
        for (text, reason) in [
            ("2026-11-27T23:59:60Z", InvalidTime::LeapSecond),
            ("2016-12-31T23:59:60Z", InvalidTime::LeapSecond),
            ("20261127T235960Z", InvalidTime::LeapSecond),
            ("20261127T101560.500Z", InvalidTime::LeapSecond),
            ("2026-11-27T10:15:60.5+01:00", InvalidTime::LeapSecond),
            ("2026-11-27T10:15:60+00:00:30", InvalidTime::LeapSecond),
            ("2026-11-27 23:59:60+00:00", InvalidTime::LeapSecond),
            ("2026-11-27T12:00:00.0001Z", InvalidTime::TooPrecise),
            ("2026-11-27T12:00:00.123456789Z", InvalidTime::TooPrecise),
            ("1969-12-31T23:59:59.9999Z", InvalidTime::TooPrecise),
            ("2026-11-27T23:59:60", InvalidTime::LeapSecond),
            ("20261127T235960", InvalidTime::LeapSecond),
            ("2026-11-27T12:00:00.0001", InvalidTime::TooPrecise),
            ("2026-11-27T12:00:00[Europe/Berlin]", InvalidTime::NotATime),
            ("2026-11-27T12:00:00[UTC]", InvalidTime::NotATime),
            ("2026-11-27T12:00:00+99:00", InvalidTime::NotATime),
            ("2026-11-27T12:00:00 CET", InvalidTime::NotATime),
            ("2026-02-30T12:00:00", InvalidTime::NotATime),
            ("2026-11-27", InvalidTime::NotATime),
            ("2026-11-27T24:00:01Z", InvalidTime::NotATime),
            ("2026-11-27T24:00:00.001Z", InvalidTime::NotATime),
            ("2026-11-27T25:00:00Z", InvalidTime::NotATime),
            ("2026-11-27T24:00:01", InvalidTime::NotATime),
            ("12:00", InvalidTime::NotATime),
            ("24", InvalidTime::NotATime),
            ("T24", InvalidTime::NotATime),
            ("", InvalidTime::NotATime),
        ] {
            assert_eq!(parse(text), Err(reason), "{text}");
        }
    }
}
