//! `POST /readings`: takes a bundle, or a list of bundles, and puts each on the readings stream.
//!
//! 202 says that all of them are on the stream. Whatever else happened, the whole request may be
//! sent again: a bundle counts once.

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

/// In bytes. Lambda takes a request of 6 MiB, with the body escaped in it; and with the partition keys
/// of all its bundles, a body fits into one call of `PutRecords`, which takes 5 MiB.
const LARGEST_BODY: usize = 4 * 1024 * 1024;
/// `PutRecords` takes so many records a call.
const MOST_BUNDLES: usize = 500;
/// A record's data and partition key, in bytes.
const LARGEST_RECORD: usize = 1024 * 1024;
/// How often a bundle is put that the stream can't take now.
const ATTEMPTS: u32 = 6;
/// The longest pause after the first attempt; after each further one it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// A shard's allowance is by the second; a stream on demand takes minutes to grow.
const RETRY_AFTER_SECONDS: u16 = 5;

/// What the step needs.
#[derive(Debug)]
pub struct AcceptReadings {
    /// Kinesis. What failed is put again here, so the client need not.
    pub client: Client,
    /// The readings stream's name.
    pub stream_name: String,
    /// Counts what is refused.
    pub refusals: Refusals,
}

#[derive(Serialize)]
struct Reply<'a> {
    accepted: usize,
    bundles: Vec<&'a BundleId>,
}

/// Kinesis refuses the call, and would again: a defect of ours, or of the deployment.
#[derive(Debug, thiserror::Error)]
#[error("the readings stream can't be put to: {0}")]
struct Refused(String);

impl Fault for Refused {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Internal
    }
}

/// A bundle on its way.
struct Record<'a> {
    /// Of the bundle in the body, for the answer.
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
    /// 202 once all bundles are on the stream; 400 or 413 with what to do, and nothing put; 503
    /// with what was put and what was not, when the stream can't take all before the deadline.
    ///
    /// What is refused (4xx) is counted in the refusals table. An accepted request writes nothing there, unless
    /// earlier refusals of this environment are still to be written.
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

        let taken = self.put(&records, deadline).await.map_err(|refused| Problem::of(&refused))?;
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

    /// Puts the records, those again that were not taken; tells of each whether it was.
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
            // A stream that hangs must not take the time that the answer needs.
            let put = self.put_once(left.iter().map(|index| &records[*index]));
            let Ok(answers) = tokio::time::timeout(deadline.left(), put).await else { break };
            let answers = match answers {
                // Some are on the stream: told like those that it can't take now.
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

    /// Kinesis answers entry by entry, in the records' order. Nothing is known of a record that
    /// the answer leaves out, nor of all of them if the call fails: they count as not put.
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
                if !AwsErrorKind::of(&error).is_transient() {
                    return Err(Refused(reason));
                }
                tracing::warn!(%reason, "call failed");
                Ok(Vec::new())
            }
        }
    }
}

/// The longest pause before an attempt; the one after the first is number 1.
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

/// The field at `path` (nothing for the whole) of the bundle at that index.
fn field(listed: bool, index: usize, path: &str) -> String {
    match (listed, path) {
        (true, "") => format!("[{index}]"),
        (true, path) => format!("[{index}].{path}"),
        (false, "") => "body".to_owned(),
        (false, path) => path.to_owned(),
    }
}

/// The text of each bundle in the body, and whether the body is a list.
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

/// The bundles, if all of them can be taken.
fn bundles(texts: &[&str], listed: bool, now: Timestamp) -> Result<Vec<Bundle>, Problem> {
    if texts.len() > MOST_BUNDLES {
        return Err(too_large(format!(
            "The list has {} bundles; send them in several requests of at most {MOST_BUNDLES}.",
            texts.len()
        )));
    }
    let mut problems = Problems::default();
    if texts.is_empty() {
        let message = format!("is an empty list; give 1 to {MOST_BUNDLES} bundles");
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

/// The bundles as they go onto the stream: each as it was sent, byte for byte. One that is too large
/// for a record only by its white space is written out anew.
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
                .map_err(|error| Problem::of(&Refused(error.to_string())))?;
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

/// 503: some bundles, or all, are not on the stream.
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
    fn each_pause_may_be_twice_as_long_as_the_one_before() {
        let pauses = [1, 2, 3, 4, 5].map(|attempt| longest_pause(attempt).as_millis());
        assert_eq!(pauses, [100, 200, 400, 800, 1600]);
    }
}
