//! Records of the readings stream: as Lambda delivers them, and as they are quarantined and replayed.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{OperatorId, SiteId, Timestamp};

/// Returns the partition key of a bundle that an operator sends through the API: `<siteId>/<operatorId>`.
///
/// A producer with permission to put records on the stream uses the plain `<siteId>`. Kinesis keeps only records with
/// the same partition key in order, so a producer that sends through the API too uses the key of the API.
#[must_use]
pub fn partition_key(site: SiteId, sender: OperatorId) -> String {
    format!("{site}/{sender}")
}

/// A record of the stream in the format of Lambda's event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record<'a> {
    /// The data and its position.
    #[serde(borrow)]
    pub kinesis: Data<'a>,
    /// Shard and sequence number.
    #[serde(rename = "eventID", borrow, default)]
    pub event_id: Cow<'a, str>,
    /// The stream's ARN.
    #[serde(rename = "eventSourceARN", borrow, default)]
    pub source_arn: Cow<'a, str>,
    /// The number of the part, if the record was quarantined in parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
}

/// The data that was put on the stream, and its position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Data<'a> {
    /// The partition key. It begins with the site's id if the sender follows the contract.
    #[serde(borrow)]
    pub partition_key: Cow<'a, str>,
    /// The position in the shard.
    #[serde(borrow)]
    pub sequence_number: Cow<'a, str>,
    /// The data in base64.
    #[serde(borrow)]
    pub data: Cow<'a, str>,
    /// The time of arrival in seconds since the epoch.
    #[serde(default)]
    pub approximate_arrival_timestamp: f64,
}

/// The number of a record's part. Its JSON form is text, such as `1/2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Cow<'_, str>", into = "String")]
pub struct Part {
    /// The part's number, from 1.
    pub number: usize,
    /// The number of parts.
    pub count: usize,
}

/// The error for a text that is not a valid [`Part`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not <number>/<count>, such as 1/2")]
pub struct InvalidPart;

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.count)
    }
}

impl FromStr for Part {
    type Err = InvalidPart;

    fn from_str(text: &str) -> Result<Self, InvalidPart> {
        let (number, count) = text.split_once('/').ok_or(InvalidPart)?;
        let (number, count) = (number.parse(), count.parse());
        let part =
            Self { number: number.or(Err(InvalidPart))?, count: count.or(Err(InvalidPart))? };
        if (1..=part.count).contains(&part.number) { Ok(part) } else { Err(InvalidPart) }
    }
}

impl TryFrom<Cow<'_, str>> for Part {
    type Error = InvalidPart;

    fn try_from(text: Cow<'_, str>) -> Result<Self, InvalidPart> {
        text.parse()
    }
}

impl From<Part> for String {
    fn from(part: Part) -> Self {
        part.to_string()
    }
}

/// When a record arrived at the stream: `<milliseconds since the epoch>/<sequence number>`, padded with zeros, so that
/// the texts sort in the order of arrival.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Arrival(String);

impl Arrival {
    /// The length of the longest sequence number that Kinesis gives.
    const SEQUENCE_DIGITS: usize = 56;

    /// Creates the arrival of a record with this sequence number.
    #[must_use]
    pub fn new(at: Timestamp, sequence_number: &str) -> Self {
        Self(format!(
            "{:013}/{sequence_number:0>width$}",
            at.millis(),
            width = Self::SEQUENCE_DIGITS
        ))
    }

    /// Creates the arrival of data whose record is unknown. It is before each record of the same millisecond.
    #[must_use]
    pub fn unrecorded(at: Timestamp) -> Self {
        Self(format!("{:013}/", at.millis()))
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the time of the arrival. `None` if the text was not made by this type.
    #[must_use]
    pub fn at(&self) -> Option<Timestamp> {
        let (millis, _) = self.0.split_once('/')?;
        millis.parse().ok().map(Timestamp::from_millis)
    }
}

impl Record<'_> {
    /// Returns when the record arrived. A record keeps it in the quarantine and in a replay. `None` if the record does
    /// not have it.
    #[must_use]
    pub fn arrival(&self) -> Option<Arrival> {
        let Data { sequence_number, approximate_arrival_timestamp, .. } = &self.kinesis;
        let digits = sequence_number.bytes().all(|byte| byte.is_ascii_digit());
        if *approximate_arrival_timestamp <= 0.0 || sequence_number.is_empty() || !digits {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "exact for some 200,000 years")]
        let millis = (approximate_arrival_timestamp * 1000.0).round() as i64;
        Some(Arrival::new(Timestamp::from_millis(millis), sequence_number))
    }

    /// Returns the time since the record arrived, in milliseconds.
    #[must_use]
    pub fn age_millis(&self, now: Timestamp) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "exact for some 200,000 years")]
        let now = now.millis() as f64;
        (now - self.kinesis.approximate_arrival_timestamp * 1000.0).max(0.0)
    }

    /// Splits the record into parts with at most `max` characters of `data`, which is base64. A record that fits into
    /// one part gets no part number.
    pub fn split<'r>(&'r self, data: &'r str, max: usize) -> impl Iterator<Item = Record<'r>> {
        let parts = data.as_bytes().chunks(max);
        let count = parts.len();
        parts.zip(1..).map(move |(part, number)| {
            let mut record = self.clone();
            record.kinesis.data = String::from_utf8_lossy(part);
            record.part = (count > 1).then_some(Part { number, count });
            record
        })
    }

    /// Joins the parts of a record, in any order. Returns `None` unless each part is there exactly once.
    #[must_use]
    pub fn join<'r>(parts: &[Record<'r>]) -> Option<Record<'r>> {
        let numbered = parts.iter().map(|record| Some((record.part?, record)));
        let mut numbered: Vec<_> = numbered.collect::<Option<_>>()?;
        numbered.sort_by_key(|(part, _)| part.number);
        let (Part { count, .. }, first) = *numbered.first()?;
        if !numbered.iter().map(|(part, _)| part.number).eq(1..=count) {
            return None;
        }
        let mut record = first.clone();
        record.kinesis.data = numbered.iter().map(|(_, record)| &*record.kinesis.data).collect();
        record.part = None;
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn delivered() -> Value {
        json!({
            "eventID": "shardId-000000000000:49",
            "eventSourceARN": "arn:aws:kinesis:eu-central-1:123456789012:stream/readings",
            "kinesis": {
                "partitionKey": "a site",
                "sequenceNumber": "49",
                "data": "abcdefgh",
                "approximateArrivalTimestamp": 1_767_268_800.5,
            },
        })
    }

    #[test]
    fn joined_parts_equal_the_record_that_was_split() {
        let text = delivered().to_string();
        let record: Record = serde_json::from_str(&text).unwrap();
        let wire: Vec<_> =
            record.split(&record.kinesis.data, 3).map(|part| json!(part).to_string()).collect();
        let read = |text| serde_json::from_str::<Record>(text).unwrap();
        let mut parts: Vec<Record> = wire.iter().map(|text| read(text)).collect();
        let shown: Vec<_> = parts
            .iter()
            .map(|record| (record.part.unwrap().to_string(), &*record.kinesis.data))
            .collect();
        assert_eq!(
            shown,
            [("1/3".to_owned(), "abc"), ("2/3".to_owned(), "def"), ("3/3".to_owned(), "gh")]
        );
        parts.reverse();
        assert_eq!(json!(Record::join(&parts)), delivered());
        // A part is missing, or there twice.
        assert_eq!(Record::join(&parts[1..]), None);
        assert_eq!(Record::join(&[parts[0].clone(), parts[1].clone(), parts[1].clone()]), None);
        assert_eq!(Record::join(&[]), None);
    }

    #[test]
    fn arrivals_sort_in_the_order_of_time_and_sequence_number() {
        let arrival = |seconds: f64, sequence_number: &str| {
            let mut record = delivered();
            record["kinesis"]["approximateArrivalTimestamp"] = json!(seconds);
            record["kinesis"]["sequenceNumber"] = sequence_number.into();
            let text = record.to_string();
            serde_json::from_str::<Record>(&text).unwrap().arrival()
        };
        let in_order = [
            arrival(999.999, "1"),
            // 1,767,268,800.123 has no exact binary form.
            arrival(1_767_268_800.123, "9"),
            arrival(1_767_268_800.123, "10"),
            arrival(1_767_268_800.124, "2"),
        ];
        assert!(in_order.iter().all(Option::is_some) && in_order.is_sorted(), "{in_order:?}");
        let at = Timestamp::from_millis(1_767_268_800_123);
        let second = in_order[1].clone().unwrap();
        assert_eq!(second.as_str(), format!("1767268800123/{}9", "0".repeat(55)));
        assert_eq!(second.at(), Some(at));
        let unrecorded = Arrival::unrecorded(at);
        assert_eq!(unrecorded.at(), Some(at));
        let unrecorded = Some(unrecorded);
        assert!(in_order[0] < unrecorded && unrecorded < in_order[1]);
        assert_eq!(arrival(0.0, "1"), None);
        assert_eq!(arrival(1.0, ""), None);
        assert_eq!(arrival(1.0, "a"), None);
    }

    #[test]
    fn the_parts_of_a_record_keep_its_arrival() {
        let text = delivered().to_string();
        let record: Record = serde_json::from_str(&text).unwrap();
        let parts: Vec<_> = record.split(&record.kinesis.data, 3).collect();
        assert!(record.arrival().is_some());
        assert_eq!(Record::join(&parts).unwrap().arrival(), record.arrival());
    }

    #[test]
    fn a_record_that_fits_is_not_numbered() {
        let text = delivered().to_string();
        let record: Record = serde_json::from_str(&text).unwrap();
        let parts: Vec<_> = record.split(&record.kinesis.data, 8).collect();
        assert_eq!(json!(parts), json!([delivered()]));
    }

    #[test]
    fn a_part_is_written_as_number_and_count() {
        assert_eq!("2/3".parse(), Ok(Part { number: 2, count: 3 }));
        for bad in ["", "1", "0/2", "3/2", "1/", "/2", "a/b", "-1/2"] {
            assert_eq!(bad.parse::<Part>(), Err(InvalidPart), "{bad:?}");
        }
    }
}
