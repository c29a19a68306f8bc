//! Helpers for the consumers of the readings stream.
//!
//! The data of a record is a [`Bundle`] as JSON, plain or compressed with gzip. The partition key of the record begins
//! with the bundle's site, so the records of one sender for one site are in order. [`contracts::stream::partition_key`]
//! describes the key. [`consume`] processes the records of a batch in lanes: records of the same site in order, and
//! different sites concurrently. Its partial batch response names the first record that failed.

use std::io::{self, Read, Write};

use aws_lambda_events::event::streams::KinesisEventResponse;
use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{
    OperatorId, SiteId,
    input::{FieldError, quote_non_numbers},
    readings::{Bundle, GoodSeries, TimeLimits},
    stream::Record,
};
use fault::{InvalidInput, InvocationError};
use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use lambda::{Deadline, FailedItem};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The maximum size of a bundle as uncompressed JSON, in bytes.
pub const MAX_BUNDLE_BYTES: usize = 2 * 1024 * 1024;

/// The number of sites that are processed concurrently. It is large enough to use the waiting time for DynamoDB, and
/// small enough to need little memory.
const MAX_CONCURRENT_SITES: usize = 8;

/// The first bytes of gzip data.
pub const GZIP: [u8; 2] = [0x1f, 0x8b];

#[derive(Deserialize)]
struct Batch<'a> {
    #[serde(rename = "Records", borrow)]
    records: Vec<Record<'a>>,
}

/// Returns the data that was put on the stream, decoded from base64.
pub fn data(record: &Record<'_>) -> Result<Vec<u8>, InvalidInput> {
    STANDARD
        .decode(record.kinesis.data.as_bytes())
        .map_err(|error| invalid("data", format!("is not base64: {error}")))
}

/// A bundle with its sender and the problems of its refused series.
#[derive(Clone, Debug, PartialEq)]
pub struct SentBundle {
    /// The bundle with its good series, at least one.
    pub bundle: Bundle,
    /// The problems of the series that are not valid.
    pub refused: Vec<FieldError>,
    /// The operator in the partition key. `POST /readings` writes the operator of its credential there. `None` if the
    /// key is only the site: then a producer put the record directly on the stream. The permission to do so covers the
    /// sites of all operators. (Such a producer may also write an operator into the partition key, in the format that
    /// the API uses. Then that operator is the sender.)
    pub sender: Option<OperatorId>,
}

impl SentBundle {
    /// Returns whether the sender may send for a site or a sensor of this operator.
    #[must_use]
    pub fn may_be_from(&self, owner: OperatorId) -> bool {
        may_send(self.sender, owner)
    }
}

/// Returns whether a sender may send readings of a site or a sensor that belongs to `owner`. A record without a sender
/// is trusted.
#[must_use]
pub fn may_send(sender: Option<OperatorId>, owner: OperatorId) -> bool {
    sender.is_none_or(|sender| sender == owner)
}

/// Returns the sender in the partition key of a bundle of this site, if the key has one.
///
/// Refuses any key that is neither the site nor the site with a sender. With the key of another site, the record would
/// be in another lane than the other records of its site, so their order would not be guaranteed.
fn sender(key: &str, site: SiteId) -> Result<Option<OperatorId>, InvalidInput> {
    let rest = key.strip_prefix(&site.to_string());
    if rest == Some("") {
        return Ok(None);
    }
    let sender = rest.and_then(|rest| rest.strip_prefix('/')?.parse().ok());
    let problem = || format!("is {key:?}; put the bundle's siteId there, {site}");
    sender.map(Some).ok_or_else(|| invalid("partitionKey", problem()))
}

/// Returns the lane of a partition key: the site. So all records of one site are in the same lane, with or without a
/// sender.
fn lane(key: &str) -> &str {
    key.split_once('/').map_or(key, |(site, _)| site)
}

/// Returns the bundle in a record with its good series, and the problems of the other series. Returns an error if no
/// series is good, or if the record itself is not valid. The error is permanent: an immediate retry would fail again.
/// (Samples that are too far ahead of the clock become valid later.)
pub fn bundle(
    record: &Record<'_>,
    limits: impl Into<TimeLimits>,
) -> Result<SentBundle, InvalidInput> {
    let data = data(record)?;
    let json = if data.starts_with(&GZIP) { unpack(&data)? } else { data };
    if let Some(problem) = unsupported_encoding(&json) {
        return Err(invalid(".", problem));
    }
    let json = str::from_utf8(&json)
        .map_err(|error| invalid(".", format!("is neither JSON nor gzip: {error}")))?;
    let json = quote_non_numbers(json);
    let GoodSeries { bundle, refused } = Bundle::read_good_series(&json, limits)?;
    let sender = sender(&record.kinesis.partition_key, bundle.site_id)?;
    Ok(SentBundle { bundle, refused, sender })
}

fn invalid(at: &str, problem: String) -> InvalidInput {
    InvalidInput { at: at.to_owned(), problem }
}

/// Encodings that senders use by mistake: the first bytes of the data, and a message that names the correct encoding.
const UNSUPPORTED_ENCODINGS: &[(&[u8], &str)] = &[
    (
        &[0xf3, 0x89, 0x9a, 0xc2],
        "is an aggregated record of the Kinesis Producer Library; turn AggregationEnabled off, so \
         that each bundle is a record",
    ),
    (&[0x28, 0xb5, 0x2f, 0xfd], "is zstd; send plain JSON or gzip"),
    (&[0x78, 0x01], "is zlib; send plain JSON or gzip (RFC 1952)"),
    (&[0x78, 0x5e], "is zlib; send plain JSON or gzip (RFC 1952)"),
    (&[0x78, 0x9c], "is zlib; send plain JSON or gzip (RFC 1952)"),
    (&[0x78, 0xda], "is zlib; send plain JSON or gzip (RFC 1952)"),
    (&[0xef, 0xbb, 0xbf], "begins with a byte order mark; send the JSON without it, in UTF-8"),
    (&[0xff, 0xfe], "is UTF-16 (a byte order mark says so); send the JSON in UTF-8"),
    (&[0xfe, 0xff], "is UTF-16 (a byte order mark says so); send the JSON in UTF-8"),
    (b"{\0", "is UTF-16; send the JSON in UTF-8"),
    (b"\0{", "is UTF-16; send the JSON in UTF-8"),
    (&GZIP, "is gzip in gzip; compress the JSON once"),
    (b"eyJ", "is JSON in base64; put the bytes themselves onto the stream"),
    (b"H4sI", "is gzip in base64; put the bytes themselves onto the stream"),
];

/// Returns the message for data that is not plain JSON in UTF-8. Returns `None` if no known encoding matches.
fn unsupported_encoding(data: &[u8]) -> Option<String> {
    let (_, problem) = UNSUPPORTED_ENCODINGS.iter().find(|(start, _)| data.starts_with(start))?;
    Some((*problem).to_owned())
}

/// Compresses the JSON of a bundle.
///
/// # Errors
/// Fails if the JSON has more than [`MAX_BUNDLE_BYTES`], because [`bundle`] would refuse it.
pub fn pack(json: &[u8]) -> io::Result<Vec<u8>> {
    if json.len() > MAX_BUNDLE_BYTES {
        return Err(io::Error::other(format!("more than {MAX_BUNDLE_BYTES} bytes")));
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(json)?;
    encoder.finish()
}

fn unpack(data: &[u8]) -> Result<Vec<u8>, InvalidInput> {
    let mut json = Vec::new();
    // The limit is one byte more than allowed, to detect data that is too large.
    let mut reader = MultiGzDecoder::new(data).take(MAX_BUNDLE_BYTES as u64 + 1);
    reader
        .read_to_end(&mut json)
        .map_err(|error| invalid(".", format!("is not valid gzip: {error}")))?;
    if json.len() > MAX_BUNDLE_BYTES {
        let problem = format!("unpacks to more than {MAX_BUNDLE_BYTES} bytes; split it");
        return Err(invalid(".", problem));
    }
    Ok(json)
}

/// Processes a batch with one lane per site.
///
/// A failed record does not affect other lanes. The records after it in its lane are not started. The response names
/// the first failed record of the batch. Lambda delivers that record and all later records of the batch again. So
/// `work` must have no further effect for a record that it has already processed.
pub async fn consume(
    payload: &RawValue,
    deadline: Deadline,
    work: impl AsyncFn(&Record<'_>) -> Result<(), String>,
) -> Result<KinesisEventResponse, InvocationError> {
    let batch: Batch = fault::decode(payload.get())?;
    let lanes = batch.records.iter().map(|record| (lane(&record.kinesis.partition_key), record));
    let failed = lambda::process_lanes(lanes, MAX_CONCURRENT_SITES, deadline, async |record| {
        work(record).await
    });
    let failed = failed.await;
    lambda::count_failed(failed.len());
    for FailedItem { id, reason } in &failed {
        let sequence_number = &batch.records[*id].kinesis.sequence_number;
        tracing::error!(%sequence_number, %reason, "record failed");
    }
    let mut response = KinesisEventResponse::default();
    if let Some(first) = failed.first() {
        response.add_failure(batch.records[first.id].kinesis.sequence_number.clone());
    }
    Ok(response)
}
