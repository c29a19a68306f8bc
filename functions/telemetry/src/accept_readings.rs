//! `POST /readings`: takes one bundle or a list of bundles and puts each on the readings stream.
//!
//! A 202 means that all bundles are on the stream. After any other response the client may send the whole request
//! again: a bundle is stored at most once.

use std::{collections::HashMap, time::Duration};

use aws_sdk_kinesis::{
    Client,
    primitives::Blob,
    types::{PutRecordsRequestEntry, PutRecordsResultEntry},
};
use contracts::{
    OperatorId, Timestamp,
    input::{Problems, Reason},
    readings::{Bundle, BundleId},
};
use fault::{AwsErrorKind, ErrorKind, Fault};
use lambda::{
    Deadline,
    http::{self, Caller, FieldError, Problem, Request, Response},
};
use serde::Serialize;
use serde_json::value::RawValue;
use store::jittered;
use stream::partition_key;

use crate::refusals::Refusals;

/// The maximum size of the request body, in bytes. Lambda takes a request of 6 MiB, which contains the body as an
/// escaped string. `PutRecords` takes 5 MiB per call, partition keys included, so a body fits into one call.
const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
/// The maximum number of records in a call of `PutRecords`.
const MAX_BUNDLES: usize = 500;
/// The maximum size of a record, in bytes: data and partition key.
const MAX_RECORD_BYTES: usize = 1024 * 1024;
/// The maximum number of attempts to put a bundle.
const MAX_ATTEMPTS: u32 = 6;
/// The upper bound of the pause after the first attempt. It doubles with each further attempt.
const INITIAL_MAX_PAUSE: Duration = Duration::from_millis(100);
/// The value of `Retry-After`, in seconds. A shard's throughput limit applies per second, but an on-demand stream
/// takes minutes to grow.
const RETRY_AFTER_SECONDS: u16 = 5;

/// The dependencies of the function `accept-readings`.
#[derive(Debug)]
pub struct AcceptReadings {
    /// The Kinesis client. Its own retries are disabled, because this function retries per record.
    pub client: Client,
    /// The name of the readings stream.
    pub stream_name: String,
    /// The counters of refused bundles.
    pub refusals: Refusals,
}

#[derive(Serialize)]
struct Reply<'a> {
    accepted: usize,
    bundles: Vec<&'a BundleId>,
}

/// Kinesis refused the call permanently. The cause is a defect in the code or in the deployment.
#[derive(Debug, thiserror::Error)]
#[error("records can't be put on the readings stream: {0}")]
struct PutRefused(String);

impl Fault for PutRefused {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Internal
    }
}

/// A record for the stream.
struct Record<'a> {
    /// The path of the bundle in the body, for error messages.
    path: String,
    bundle: &'a Bundle,
    partition_key: String,
    data: Vec<u8>,
}

impl Record<'_> {
    fn bytes(&self) -> usize {
        self.data.len() + self.partition_key.len()
    }
}

impl AcceptReadings {
    /// Puts all bundles of the request on the stream and returns 202.
    ///
    /// Returns 400 or 413 for an invalid request, and 403 if the caller may not send for the site of a bundle; nothing is
    /// put then. Returns 503 if the stream does not accept all
    /// bundles before the deadline; the response lists the bundles that were put and those that were not. Returns 500
    /// if Kinesis refuses the call permanently before any bundle is on the stream.
    ///
    /// A refused request (4xx) is counted in the refusals table. An accepted request writes nothing there, unless
    /// counts of earlier refusals are still pending in this execution environment.
    pub async fn handle(
        &self,
        caller: &Caller,
        request: &Request,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Response, Problem> {
        let response = self.accept(caller, request, now, deadline).await;
        if let Err(problem) = &response
            && (400..500).contains(&problem.status)
        {
            let body = request.body.as_deref().unwrap_or_default();
            self.refusals.count(caller.operator, body, problem, now);
        }
        self.refusals.write(deadline).await;
        response
    }

    async fn accept(
        &self,
        caller: &Caller,
        request: &Request,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Response, Problem> {
        http::reject_query(request)?;
        let body = body(request)?;
        let (texts, is_list) = texts(body)?;
        let bundles = bundles(&texts, is_list, now)?;
        check_sites(caller, &bundles, is_list)?;
        let records = records(caller.operator, &bundles, &texts, is_list)?;

        let put =
            self.put(&records, deadline).await.map_err(|error| Problem::from_fault(&error))?;
        let (accepted, rejected): (Vec<_>, Vec<_>) =
            records.iter().zip(put).partition(|(_, put)| *put);
        metrics::counter!("BundlesAccepted").increment(accepted.len() as u64);
        metrics::counter!("BundlesNotTaken").increment(rejected.len() as u64);
        let bundles: Vec<_> = accepted.iter().map(|(record, _)| &record.bundle.bundle_id).collect();
        if rejected.is_empty() {
            return Response::new(202, &Reply { accepted: bundles.len(), bundles });
        }
        let bundles: Vec<_> = bundles.into_iter().map(BundleId::as_str).collect();
        Err(stream_busy(&bundles, rejected.into_iter().map(|(record, _)| record)))
    }

    /// Puts the records, and retries those that failed. Returns for each record whether it is on the stream.
    async fn put(
        &self,
        records: &[Record<'_>],
        deadline: Deadline,
    ) -> Result<Vec<bool>, PutRefused> {
        let mut put = vec![false; records.len()];
        for attempt in 0..MAX_ATTEMPTS {
            if attempt > 0 {
                let pause = jittered(max_pause(attempt));
                if pause >= deadline.remaining() {
                    break;
                }
                tokio::time::sleep(pause).await;
            }
            let remaining: Vec<_> = (0..records.len()).filter(|index| !put[*index]).collect();
            // A hanging call must not use up the time that the response needs.
            let call = self.put_once(remaining.iter().map(|index| &records[*index]));
            let Ok(results) = tokio::time::timeout(deadline.remaining(), call).await else { break };
            let results = match results {
                // Some bundles are on the stream: the rest is reported as not put, with a 503.
                Err(PutRefused(reason)) if put.contains(&true) => {
                    tracing::error!(%reason, "Kinesis refused the call");
                    return Ok(put);
                }
                results => results?,
            };
            for (index, entry) in remaining.iter().zip(results) {
                put[*index] = entry.sequence_number.is_some() && entry.error_code.is_none();
            }
            if deadline.passed() || put.iter().all(|put| *put) {
                break;
            }
        }
        Ok(put)
    }

    /// Puts the records once. Kinesis returns one result per record, in the same order. Records without a result
    /// count as not put, as do all records of a call that fails.
    async fn put_once<'a>(
        &self,
        records: impl Iterator<Item = &'a Record<'a>>,
    ) -> Result<Vec<PutRecordsResultEntry>, PutRefused> {
        let entries = records
            .map(|record| {
                PutRecordsRequestEntry::builder()
                    .data(Blob::new(record.data.clone()))
                    .partition_key(&record.partition_key)
                    .build()
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| PutRefused(error.to_string()))?;
        let call = self.client.put_records().stream_name(&self.stream_name);
        match call.set_records(Some(entries)).send().await {
            Ok(response) => {
                let failed = response.records().iter().filter(|entry| entry.error_code.is_some());
                if let Some(first) = failed.clone().next() {
                    let records = failed.count();
                    let (error, reason) = (first.error_code(), first.error_message());
                    tracing::warn!(records, error, reason, "Kinesis did not accept all records");
                }
                Ok(response.records)
            }
            Err(error) => {
                let reason = fault::describe(&error);
                if !AwsErrorKind::classify(&error).is_transient() {
                    return Err(PutRefused(reason));
                }
                tracing::warn!(%reason, "the call to Kinesis failed");
                Ok(Vec::new())
            }
        }
    }
}

/// Returns the upper bound of the pause after the given number of attempts, 1 or more.
fn max_pause(attempt: u32) -> Duration {
    INITIAL_MAX_PAUSE * 2_u32.pow(attempt - 1)
}

fn body(request: &Request) -> Result<&str, Problem> {
    http::body(request, MAX_BODY_BYTES).map_err(|problem| match problem.status {
        413 => Problem {
            detail: format!(
                "{} Send the bundles in several requests, or split a bundle into several bundles of \
                 fewer minutes, each with its own bundleId.",
                problem.detail
            ),
            ..problem
        },
        _ => problem,
    })
}

fn too_large(detail: impl Into<String>) -> Problem {
    Problem::new(413, "too-large", "The body is too large", detail)
}

/// Returns the path of a field in the body. `path` is relative to the bundle at `index`; an empty path is the
/// whole bundle.
fn field(is_list: bool, index: usize, path: &str) -> String {
    match (is_list, path) {
        (true, "") => format!("[{index}]"),
        (true, path) => format!("[{index}].{path}"),
        (false, "") => "body".to_owned(),
        (false, path) => path.to_owned(),
    }
}

/// Returns the JSON text of each bundle in the body, and whether the body is a list.
fn texts(body: &str) -> Result<(Vec<&str>, bool), Problem> {
    if !body.trim_start().starts_with('[') {
        return Ok((vec![body.trim()], false));
    }
    let list: Vec<&RawValue> = serde_json::from_str(body).map_err(|error| {
        let message = format!("is not JSON: {error}");
        Problem::invalid(vec![FieldError::new("body", message).with_reason(Reason::InvalidJson)])
    })?;
    Ok((list.into_iter().map(RawValue::get).collect(), true))
}

/// Parses the bundles. Fails if any of them is invalid or if a bundle id is repeated.
fn bundles(texts: &[&str], is_list: bool, now: Timestamp) -> Result<Vec<Bundle>, Problem> {
    if texts.len() > MAX_BUNDLES {
        return Err(too_large(format!(
            "The list has {} bundles; send them in several requests of at most {MAX_BUNDLES}.",
            texts.len()
        )));
    }
    let mut problems = Problems::default();
    if texts.is_empty() {
        let message = format!("is an empty list; give 1 to {MAX_BUNDLES} bundles");
        problems.add_as(Reason::WrongCount, "", message);
    }
    let mut bundles = Vec::with_capacity(texts.len());
    let mut first_indices = HashMap::new();
    for (index, text) in texts.iter().enumerate() {
        let bundle = match Bundle::read(text, now) {
            Ok(bundle) => bundle,
            Err(errors) if is_list => {
                let at = field(is_list, index, "");
                problems.extend(errors.into_iter().map(|error| error.within(&at)).collect());
                continue;
            }
            Err(errors) => return Err(Problem::invalid(errors)),
        };
        let first =
            *first_indices.entry((bundle.site_id, bundle.bundle_id.clone())).or_insert(index);
        if first != index {
            let message = format!(
                "is {}, the same as in [{first}]; give each bundle of a site its own id, and send \
                 it once",
                bundle.bundle_id
            );
            problems.add_as(Reason::Duplicate, field(is_list, index, "bundleId"), message);
        }
        bundles.push(bundle);
    }
    problems.or(Some(bundles)).map_err(Problem::invalid)
}

/// Checks that the caller may send for the site of each bundle.
///
/// Only the scope decides, so the response does not show which sites exist. Whether the site belongs to the caller's
/// operator is decided when the bundle is stored.
fn check_sites(caller: &Caller, bundles: &[Bundle], is_list: bool) -> Result<(), Problem> {
    let refused = bundles.iter().enumerate();
    let refused = refused.filter(|(_, bundle)| !caller.scope.may_send(bundle.site_id));
    let errors: Vec<_> = refused
        .map(|(index, _)| {
            let message = "is not a site for which your credential may send readings";
            FieldError::new(field(is_list, index, "siteId"), message)
        })
        .collect();
    caller.require(errors.is_empty()).map_err(|problem| Problem { errors, ..problem })
}

/// Returns the records of the bundles. Each record has the bundle's text as it was sent, byte for byte. A text
/// that exceeds a record's size only because of its white space is serialized again.
fn records<'a>(
    sender: OperatorId,
    bundles: &'a [Bundle],
    texts: &[&str],
    is_list: bool,
) -> Result<Vec<Record<'a>>, Problem> {
    let mut records = Vec::with_capacity(bundles.len());
    let mut errors = Vec::new();
    for (index, (bundle, text)) in bundles.iter().zip(texts).enumerate() {
        let mut record = Record {
            path: field(is_list, index, ""),
            bundle,
            partition_key: partition_key(bundle.site_id, sender),
            data: text.as_bytes().to_vec(),
        };
        if record.bytes() > MAX_RECORD_BYTES {
            let reserialized = serde_json::to_vec(bundle)
                .map_err(|error| Problem::from_fault(&PutRefused(error.to_string())))?;
            if reserialized.len() + record.partition_key.len() <= MAX_RECORD_BYTES {
                record.data = reserialized;
            }
        }
        if record.bytes() > MAX_RECORD_BYTES {
            let message = format!(
                "bundle {} has {} bytes; give at most {}",
                bundle.bundle_id,
                record.data.len(),
                MAX_RECORD_BYTES - record.partition_key.len()
            );
            errors.push(FieldError::new(&record.path, message).with_reason(Reason::TooLarge));
        }
        records.push(record);
    }
    if errors.is_empty() {
        return Ok(records);
    }
    let problem = too_large(
        "A bundle is too large for the stream: split it into several bundles of fewer minutes, each \
         with its own bundleId.",
    );
    Err(Problem { errors, ..problem })
}

/// Returns a 503 that lists the bundles that are on the stream and those that are not.
fn stream_busy<'a>(accepted: &[&str], rejected: impl Iterator<Item = &'a Record<'a>>) -> Problem {
    let errors = rejected.map(|record| {
        let message = format!("bundle {} is not on the stream", record.bundle.bundle_id);
        FieldError::new(&record.path, message)
    });
    let problem = Problem::new(
        503,
        "stream-busy",
        "The stream can't accept all bundles now",
        "Wait for the number of seconds in Retry-After, then send the bundles in `errors` again. \
         Sending all bundles again is safe: a bundle is stored at most once.",
    )
    .with("accepted", accepted.len())
    .with("bundles", accepted);
    Problem { errors: errors.collect(), retry_after: Some(RETRY_AFTER_SECONDS), ..problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upper_bound_of_the_pause_doubles() {
        let pauses = [1, 2, 3, 4, 5].map(|attempt| max_pause(attempt).as_millis());
        assert_eq!(pauses, [100, 200, 400, 800, 1600]);
    }
}
