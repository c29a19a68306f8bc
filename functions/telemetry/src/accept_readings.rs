//! `POST /readings`: takes one bundle or a list of bundles and puts each on the readings stream.
//!
//! A 202 means that all bundles are on the stream. After any other answer the client may send the whole request
//! again: a bundle is stored at most once.

use std::{collections::HashMap, time::Duration};

use aws_sdk_kinesis::{
    Client,
    primitives::Blob,
    types::{PutRecordsRequestEntry, PutRecordsResultEntry},
};
use contracts::{
    Timestamp,
    input::{Problems, Reason},
    readings::{Bundle, BundleId},
};
use fault::{AwsErrorKind, ErrorKind, Fault};
use lambda::{
    Deadline,
    http::{self, Answer, FieldError, Problem, Request},
};
use serde::Serialize;
use serde_json::value::RawValue;
use store::jittered;

use crate::refusals::Refusals;

/// The maximum size of the request body, in bytes. Lambda takes a request of 6 MiB, which contains the body as an
/// escaped string. `PutRecords` takes 5 MiB per call, partition keys included, so a body fits into one call.
const LARGEST_BODY: usize = 4 * 1024 * 1024;
/// The maximum number of records in a call of `PutRecords`.
const MAX_BUNDLES: usize = 500;
/// The maximum size of a record, in bytes: data and partition key.
const LARGEST_RECORD: usize = 1024 * 1024;
/// The maximum number of attempts to put a bundle.
const ATTEMPTS: u32 = 6;
/// The upper bound of the pause after the first attempt. It doubles with each further attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
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
#[error("the readings stream can't be put to: {0}")]
struct Refused(String);

impl Fault for Refused {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Internal
    }
}

/// A record for the stream.
struct Record<'a> {
    /// The place of the bundle in the body, for error messages.
    place: String,
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
    /// Returns 400 or 413 for an invalid request; nothing is put then. Returns 503 if the stream does not accept all
    /// bundles before the deadline; the answer lists the bundles that were put and those that were not. Returns 500
    /// if Kinesis refuses the call permanently before any bundle is on the stream.
    ///
    /// A refused request (4xx) is counted in the refusals table. An accepted request writes nothing there, unless
    /// counts of earlier refusals are still pending in this environment.
    pub async fn handle(
        &self,
        request: &Request,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Answer, Problem> {
        let answer = self.accept(request, now, deadline).await;
        if let Err(problem) = &answer
            && (400..500).contains(&problem.status)
        {
            self.refusals.count(request.body.as_deref().unwrap_or_default(), problem, now);
        }
        self.refusals.write(deadline).await;
        answer
    }

    async fn accept(
        &self,
        request: &Request,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Answer, Problem> {
        http::no_query(request)?;
        let body = body(request)?;
        let (texts, listed) = texts(body)?;
        let bundles = bundles(&texts, listed, now)?;
        let records = records(&bundles, &texts, listed)?;

        let taken =
            self.put(&records, deadline).await.map_err(|refused| Problem::from_fault(&refused))?;
        let (put, left): (Vec<_>, Vec<_>) =
            records.iter().zip(taken).partition(|(_, taken)| *taken);
        metrics::counter!("BundlesAccepted").increment(put.len() as u64);
        metrics::counter!("BundlesNotTaken").increment(left.len() as u64);
        let bundles: Vec<_> = put.iter().map(|(record, _)| &record.bundle.bundle_id).collect();
        if left.is_empty() {
            return Answer::new(202, &Reply { accepted: bundles.len(), bundles });
        }
        let bundles: Vec<_> = bundles.into_iter().map(BundleId::as_str).collect();
        Err(busy(&bundles, left.into_iter().map(|(record, _)| record)))
    }

    /// Puts the records, and retries those that failed. Returns for each record whether it is on the stream.
    async fn put(&self, records: &[Record<'_>], deadline: Deadline) -> Result<Vec<bool>, Refused> {
        let mut taken = vec![false; records.len()];
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                let pause = jittered(longest_pause(attempt));
                if pause >= deadline.left() {
                    break;
                }
                tokio::time::sleep(pause).await;
            }
            let left: Vec<_> = (0..records.len()).filter(|index| !taken[*index]).collect();
            // A hanging call must not use up the time that the response needs.
            let put = self.put_once(left.iter().map(|index| &records[*index]));
            let Ok(answers) = tokio::time::timeout(deadline.left(), put).await else { break };
            let answers = match answers {
                // Some bundles are on the stream: the rest is reported as not put, with a 503.
                Err(Refused(reason)) if taken.contains(&true) => {
                    tracing::error!(%reason, "call refused");
                    return Ok(taken);
                }
                answers => answers?,
            };
            for (index, entry) in left.iter().zip(answers) {
                taken[*index] = entry.sequence_number.is_some() && entry.error_code.is_none();
            }
            if deadline.passed() || taken.iter().all(|taken| *taken) {
                break;
            }
        }
        Ok(taken)
    }

    /// Puts the records once. Kinesis returns one result per record, in the same order. Records without a result
    /// count as not put, as do all records of a call that fails.
    async fn put_once<'a>(
        &self,
        records: impl Iterator<Item = &'a Record<'a>>,
    ) -> Result<Vec<PutRecordsResultEntry>, Refused> {
        let entries = records
            .map(|record| {
                PutRecordsRequestEntry::builder()
                    .data(Blob::new(record.data.clone()))
                    .partition_key(&record.partition_key)
                    .build()
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Refused(error.to_string()))?;
        let call = self.client.put_records().stream_name(&self.stream_name);
        match call.set_records(Some(entries)).send().await {
            Ok(answer) => {
                let failed = answer.records().iter().filter(|entry| entry.error_code.is_some());
                if let Some(first) = failed.clone().next() {
                    let records = failed.count();
                    let (error, reason) = (first.error_code(), first.error_message());
                    tracing::warn!(records, error, reason, "records not taken");
                }
                Ok(answer.records)
            }
            Err(error) => {
                let reason = fault::describe(&error);
                if !AwsErrorKind::classify(&error).is_transient() {
                    return Err(Refused(reason));
                }
                tracing::warn!(%reason, "call failed");
                Ok(Vec::new())
            }
        }
    }
}

/// Returns the upper bound of the pause after the given number of attempts, 1 or more.
fn longest_pause(attempt: u32) -> Duration {
    FIRST_PAUSE * 2_u32.pow(attempt - 1)
}

fn body(request: &Request) -> Result<&str, Problem> {
    http::body(request, LARGEST_BODY).map_err(|problem| match problem.status {
        413 => Problem {
            detail: format!(
                "{} Send the bundles in several requests, or a single one as several bundles of \
                 fewer minutes, each with a bundleId of its own.",
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
fn field(listed: bool, index: usize, path: &str) -> String {
    match (listed, path) {
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
    let listed: Vec<&RawValue> = serde_json::from_str(body).map_err(|error| {
        let message = format!("is not JSON: {error}");
        Problem::invalid(vec![FieldError::new("body", message).because(Reason::InvalidJson)])
    })?;
    Ok((listed.into_iter().map(RawValue::get).collect(), true))
}

/// Parses the bundles. Fails if any of them is invalid or if a bundle id is repeated.
fn bundles(texts: &[&str], listed: bool, now: Timestamp) -> Result<Vec<Bundle>, Problem> {
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
    let mut places = HashMap::new();
    for (index, text) in texts.iter().enumerate() {
        let bundle = match Bundle::read(text, now) {
            Ok(bundle) => bundle,
            Err(errors) if listed => {
                let at = field(listed, index, "");
                problems.extend(errors.into_iter().map(|error| error.within(&at)).collect());
                continue;
            }
            Err(errors) => return Err(Problem::invalid(errors)),
        };
        let place = *places.entry((bundle.site_id, bundle.bundle_id.clone())).or_insert(index);
        if place != index {
            let message = format!(
                "is {}, as [{place}] is; give each bundle of a site an id of its own, and each \
                 once",
                bundle.bundle_id
            );
            problems.add_as(Reason::Duplicate, field(listed, index, "bundleId"), message);
        }
        bundles.push(bundle);
    }
    problems.or(Some(bundles)).map_err(Problem::invalid)
}

/// Returns the records of the bundles. Each record has the bundle's text as it was sent, byte for byte. A text
/// that exceeds a record's size only because of its white space is serialized again.
fn records<'a>(
    bundles: &'a [Bundle],
    texts: &[&str],
    listed: bool,
) -> Result<Vec<Record<'a>>, Problem> {
    let mut records = Vec::with_capacity(bundles.len());
    let mut errors = Vec::new();
    for (index, (bundle, text)) in bundles.iter().zip(texts).enumerate() {
        let mut record = Record {
            place: field(listed, index, ""),
            bundle,
            partition_key: bundle.site_id.to_string(),
            data: text.as_bytes().to_vec(),
        };
        if record.bytes() > LARGEST_RECORD {
            let rewritten = serde_json::to_vec(bundle)
                .map_err(|error| Problem::from_fault(&Refused(error.to_string())))?;
            if rewritten.len() + record.partition_key.len() <= LARGEST_RECORD {
                record.data = rewritten;
            }
        }
        if record.bytes() > LARGEST_RECORD {
            let message = format!(
                "bundle {} has {} bytes; give at most {}",
                bundle.bundle_id,
                record.data.len(),
                LARGEST_RECORD - record.partition_key.len()
            );
            errors.push(FieldError::new(&record.place, message).because(Reason::TooLarge));
        }
        records.push(record);
    }
    if errors.is_empty() {
        return Ok(records);
    }
    let problem = too_large(
        "A bundle is too large for the stream: send it as several bundles of fewer minutes, each \
         with a bundleId of its own.",
    );
    Err(Problem { errors, ..problem })
}

/// Returns a 503 that lists the bundles that are on the stream and those that are not.
fn busy<'a>(put: &[&str], left: impl Iterator<Item = &'a Record<'a>>) -> Problem {
    let errors = left.map(|record| {
        let message = format!("bundle {} is not on the stream", record.bundle.bundle_id);
        FieldError::new(&record.place, message)
    });
    let problem = Problem::new(
        503,
        "stream-busy",
        "The stream can't take all bundles now",
        "Send the bundles that `errors` names again, after the seconds that Retry-After tells. \
         Sending all of them again does no harm: a bundle counts once.",
    )
    .with("accepted", put.len())
    .with("bundles", put);
    Problem { errors: errors.collect(), retry_after: Some(RETRY_AFTER_SECONDS), ..problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upper_bound_of_the_pause_doubles() {
        let pauses = [1, 2, 3, 4, 5].map(|attempt| longest_pause(attempt).as_millis());
        assert_eq!(pauses, [100, 200, 400, 800, 1600]);
    }
}
