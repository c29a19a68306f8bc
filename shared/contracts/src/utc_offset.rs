//! The fixed UTC offset of a site.

use std::{fmt, str::FromStr};

use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};

/// Why the offset can't be changed.
pub(crate) const FIXED: &str = "can't be changed, because bundles that are sent again would get other times; leave \
     it out. To correct stored readings, send a revision that replaces their range";
const MILLIS_PER_MINUTE: i64 = 60_000;
/// The minimum and the maximum in minutes.
const RANGE: std::ops::RangeInclusive<i16> = -12 * 60..=14 * 60;

/// The fixed UTC offset of a site, for times that its loggers send without an offset: whole minutes from -12:00 to
/// +14:00.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct UtcOffset {
    minutes: i16,
}

impl UtcOffset {
    /// The regular expression of the text.
    pub const PATTERN: &str =
        "^(Z|[+-](0[0-9]|1[01]):[0-5][0-9]|-12:00|\\+1[23]:[0-5][0-9]|\\+14:00)$";

    /// Returns the offset in milliseconds: the local time minus UTC.
    #[must_use]
    pub fn millis(self) -> i64 {
        i64::from(self.minutes) * MILLIS_PER_MINUTE
    }
}

/// The error for a text that is not a valid [`UtcOffset`].
#[derive(Debug, thiserror::Error)]
#[error("is not a UTC offset; give Z, or an offset from -12:00 to +14:00 such as +01:00")]
pub struct InvalidUtcOffset;

impl FromStr for UtcOffset {
    type Err = InvalidUtcOffset;

    fn from_str(text: &str) -> Result<Self, InvalidUtcOffset> {
        let (sign, clock) = match text.as_bytes() {
            [b'Z'] => return Ok(Self { minutes: 0 }),
            [b'+', clock @ ..] => (1, clock),
            [b'-', clock @ ..] => (-1, clock),
            _ => return Err(InvalidUtcOffset),
        };
        let &[h, hh, b':', m, mm] = clock else { return Err(InvalidUtcOffset) };
        let number = |tens: u8, units: u8| {
            let digits = tens.is_ascii_digit() && units.is_ascii_digit();
            digits.then(|| i16::from(tens - b'0') * 10 + i16::from(units - b'0'))
        };
        let (Some(hours), Some(minutes @ 0..=59)) = (number(h, hh), number(m, mm)) else {
            return Err(InvalidUtcOffset);
        };
        let minutes = sign * (hours * 60 + minutes);
        if RANGE.contains(&minutes) { Ok(Self { minutes }) } else { Err(InvalidUtcOffset) }
    }
}

impl TryFrom<String> for UtcOffset {
    type Error = InvalidUtcOffset;

    fn try_from(text: String) -> Result<Self, InvalidUtcOffset> {
        text.parse()
    }
}

impl fmt::Display for UtcOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { minutes } = *self;
        if minutes == 0 {
            return f.write_str("Z");
        }
        let (sign, minutes) = (if minutes < 0 { '-' } else { '+' }, minutes.unsigned_abs());
        write!(f, "{sign}{:02}:{:02}", minutes / 60, minutes % 60)
    }
}

impl fmt::Debug for UtcOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for UtcOffset {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Returns the JSON Schema of an offset, or `null`.
pub(crate) fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["string", "null"], "pattern": UtcOffset::PATTERN })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_minutes_in_the_range_of_offsets_are_read_and_written_in_one_form() {
        for (text, minutes, written) in [
            ("Z", 0, "Z"),
            ("+00:00", 0, "Z"),
            ("-00:00", 0, "Z"),
            ("+01:00", 60, "+01:00"),
            ("-07:00", -420, "-07:00"),
            ("-00:30", -30, "-00:30"),
            ("+05:45", 345, "+05:45"),
            ("-12:00", -720, "-12:00"),
            ("+13:59", 839, "+13:59"),
            ("+14:00", 840, "+14:00"),
        ] {
            let offset: UtcOffset = text.parse().expect(text);
            assert_eq!(offset.millis(), minutes * MILLIS_PER_MINUTE, "{text}");
            assert_eq!(serde_json::to_string(&offset).expect("JSON"), format!("{written:?}"));
            assert_eq!(serde_json::from_str::<UtcOffset>(&format!("{text:?}")).ok(), Some(offset));
        }
        for bad in [
            "",
            "z",
            "1",
            "+1",
            "+01",
            "+0100",
            "+1:00",
            "01:00",
            "+01:60",
            "-12:01",
            "+14:01",
            "+15:00",
            "+01:00:00",
            "+01:0a",
            "Europe/Berlin",
            "\u{2212}07:00",
        ] {
            assert!(bad.parse::<UtcOffset>().is_err(), "{bad}");
        }
    }
}
