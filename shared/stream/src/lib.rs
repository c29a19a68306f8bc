//! Consuming the readings stream.
//!
//! A record's data is a [`Bundle`] as JSON, plain or gzip. Its partition key begins with the bundle's site, so a sender's
//! records of a site are in order. [`partition_key`] describes the key. [`consume`] processes a batch with one lane per
//! site. Its partial batch response names the first record that failed.

use std::io::Read;

use aws_lambda_events::event::streams::KinesisEventResponse;
use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{
    OperatorId, SiteId,
    input::FieldError,
    readings::{Bundle, GoodSeries, TimeLimits},
    stream::Record,
};
use fault::{InvalidInput, InvocationError};
use flate2::read::MultiGzDecoder;
use lambda::{Deadline, FailedItem};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The maximum size of a bundle as uncompressed JSON, in bytes.
pub const MAX_BUNDLE_BYTES: usize = 2 * 1024 * 1024;

/// The number of sites that are processed concurrently: enough to keep DynamoDB busy, with little memory.
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

/// A bundle with its sender.
#[derive(Clone, Debug, PartialEq)]
pub struct SentBundle {
    /// The bundle, with its good series.
    pub bundle: Bundle,
    /// The problems of its other series.
    pub refused: Vec<FieldError>,
    /// The operator whose credential was used for `POST /readings`. `None` if a producer put the record on the stream
    /// itself. Its permission to do so covers every site.
    pub sender: Option<OperatorId>,
}

impl SentBundle {
    /// Returns whether the sender may send for a site or a sensor of this operator.
    #[must_use]
    pub fn may_be_from(&self, owner: OperatorId) -> bool {
        may_send(self.sender, owner)
    }
}

/// Returns whether a sender may send for what belongs to `owner`. A record without a sender is trusted.
#[must_use]
pub fn may_send(sender: Option<OperatorId>, owner: OperatorId) -> bool {
    sender.is_none_or(|sender| sender == owner)
}

/// Returns the partition key of a bundle that an operator sends through the API: `<siteId>/<operatorId>`.
///
/// A producer with permission to put records on the stream uses the plain `<siteId>`.
#[must_use]
pub fn partition_key(site: SiteId, sender: OperatorId) -> String {
    format!("{site}/{sender}")
}

/// Returns the sender in the partition key of a bundle of this site, if there is one.
///
/// With another key the record would be in another lane, where its order is not guaranteed. So it is refused.
fn sender(key: &str, site: SiteId) -> Result<Option<OperatorId>, InvalidInput> {
    let rest = key.strip_prefix(&site.to_string());
    if rest == Some("") {
        return Ok(None);
    }
    let sender = rest.and_then(|rest| rest.strip_prefix('/')?.parse().ok());
    let problem = || format!("is {key:?}; put the bundle's siteId there, {site}");
    sender.map(Some).ok_or_else(|| invalid("partitionKey", problem()))
}

/// Returns the lane of a partition key: the site. All records of one site are in the same lane, with and without a sender.
fn lane(key: &str) -> &str {
    key.split_once('/').map_or(key, |(site, _)| site)
}

/// Parses the bundle in a record, as far as its series are valid. An error is permanent: no series can ever be processed.
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
    let GoodSeries { bundle, refused } = Bundle::read_good_series(json, limits)?;
    let sender = sender(&record.kinesis.partition_key, bundle.site_id)?;
    Ok(SentBundle { bundle, refused, sender })
}

fn invalid(at: &str, problem: String) -> InvalidInput {
    InvalidInput { at: at.to_owned(), problem }
}

/// Encodings that senders use by mistake: their first bytes, and the message with the correct encoding.
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

fn unpack(data: &[u8]) -> Result<Vec<u8>, InvalidInput> {
    let mut json = Vec::new();
    // Reads one byte more than allowed, to detect data that is too large.
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
/// the first failed record of the batch. Lambda delivers again from there.
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
