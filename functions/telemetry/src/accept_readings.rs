//! `POST /readings`: takes one bundle or a list of bundles and puts the valid ones on the readings stream.
//!
//! The unit of refusal is the series. A bundle goes on the stream without its refused series. A 202 names each bundle
//! that is on the stream, at least in part, and at most 100 of the problems, or 101 if there is only one more. After
//! any other response the client may send the whole request again: a bundle is stored at most once.

use std::{collections::HashMap, time::Duration};

use aws_sdk_kinesis::{
    Client,
    primitives::Blob,
    types::{PutRecordsRequestEntry, PutRecordsResultEntry},
};
use contracts::{
    OperatorId, Scope, Timestamp,
    input::{Reason, quote_non_numbers},
    readings::{Bundle, BundleId, GoodSeries, Origin, Series, TimeLimits},
    stream::partition_key,
};
use fault::{AwsErrorKind, ErrorKind, Fault};
use lambda::{
    Deadline,
    http::{self, Caller, FieldError, Problem, Request, Response, loggable},
};
use serde::Serialize;
use serde_json::{Value, value::RawValue};
use store::jittered;

use crate::{
    refusals::{Refusals, find_sensors},
    register::{Register, Standing},
};

/// The maximum size of the request body, in bytes. Lambda takes a request of 6 MiB, which contains the body as an
/// escaped string. `PutRecords` takes 5 MiB per call, partition keys included, so a body fits into one call.
const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
/// The maximum number of records in a call of `PutRecords`.
const MAX_BUNDLES: usize = 500;
/// The maximum size of a record, in bytes: data and partition key.
const MAX_RECORD_BYTES: usize = 1024 * 1024;
/// The number of problems that [`listed`] keeps if there are more than one above it. A further entry counts the others.
const MAX_LISTED: usize = 100;
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
    /// The register of sensors, for the retired ones and the UTC offsets of sites.
    pub register: Register,
    /// The maximum age of a live sample, in days.
    pub max_age_days: u32,
    /// The counters of refused bundles.
    pub refusals: Refusals,
}

#[derive(Serialize)]
struct Reply<'a> {
    accepted: usize,
    bundles: Vec<&'a BundleId>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    /// What was refused: the paths in the body have the index of the bundle and of the series.
    errors: Vec<FieldError>,
}

/// A request that is answered with a problem. With a 503, some bundles may be on the stream.
struct Refusal {
    problem: Problem,
    /// The problems of the body. The response lists at most [`MAX_LISTED`] of them. A 503 also lists the bundles that are not
    /// on the stream.
    errors: Vec<FieldError>,
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self { errors: problem.errors.clone(), problem }
    }
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

/// The valid part of a bundle in the body.
struct Sent<'a> {
    /// The index of the bundle in the body.
    index: usize,
    text: &'a str,
    bundle: Bundle,
    /// Whether some series of the bundle in the body were refused, so that `bundle` has fewer series than `text`.
    is_reduced: bool,
}

/// A record for the stream.
struct Record {
    /// The path of the bundle in the body, for error messages.
    path: String,
    bundle: BundleId,
    partition_key: String,
    data: Vec<u8>,
}

impl Record {
    fn bytes(&self) -> usize {
        self.data.len() + self.partition_key.len()
    }
}

impl AcceptReadings {
    /// Puts the valid bundles of the request on the stream and returns 202. The response names what was refused.
    ///
    /// If nothing is left to put, returns 400 for invalid readings, 413 for bundles that are too large, or 410 for
    /// readings of retired sensors. Returns 403 if the caller may not send one of the bundles; nothing is put then.
    /// Returns 503 if the stream does not accept all bundles before the deadline and in six attempts, or if Kinesis
    /// refuses the call permanently after it accepted some bundles; the response lists the bundles that were put and
    /// those that were not. Returns 500 if Kinesis refuses the call permanently before any bundle is on the stream.
    ///
    /// What a 202 or a 4xx refuses is counted in the refusals table, except the 403 for a scope that may send nothing.
    /// What a 503 refuses is not counted: the client sends it again. A request of which everything is accepted writes
    /// nothing there, unless counts of earlier refusals are still pending in this execution environment.
    pub async fn handle(
        &self,
        caller: &Caller,
        request: &Request,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Response, Problem> {
        // The scope comes first, so the response does not depend on the body. Such a request is no refusal of readings.
        caller.require(caller.scope.may_send_some())?;
        let body = quote_non_numbers(request.body.as_deref().unwrap_or_default());
        let response = match self.accept(caller, request, &body, now, deadline).await {
            Ok((response, errors)) => {
                if !errors.is_empty() {
                    self.refusals.count_partly(caller.operator, &body, &errors, now);
                    log_refused(&errors);
                }
                Ok(response)
            }
            Err(Refusal { problem, errors }) => {
                if (400..500).contains(&problem.status) {
                    self.refusals.count(caller.operator, &body, &problem, &errors, now);
                }
                Err(problem)
            }
        };
        self.refusals.write(deadline).await;
        response
    }

    /// Returns the response and what it refuses. `body` is the request's body as JSON.
    async fn accept(
        &self,
        caller: &Caller,
        request: &Request,
        body: &str,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<(Response, Vec<FieldError>), Refusal> {
        http::reject_query(request)?;
        check_body(request)?;
        let (texts, is_list) = texts(body)?;
        check_count(texts.len())?;
        let limits = TimeLimits::new(now, now, self.max_age_days);
        let (mut sent, mut errors) = bundles(&texts, is_list, limits);
        check_scope(caller, &sent, is_list)?;
        self.remove_refused(caller.operator, &mut sent, &mut errors, is_list, limits, deadline)
            .await;
        let records = records(caller.operator, &sent, &mut errors, is_list)?;
        if records.is_empty() {
            return Err(Refusal { problem: nothing_good(&errors), errors });
        }

        let put = self.put(&records, deadline).await.map_err(Problem::from)?;
        let (accepted, rejected): (Vec<_>, Vec<_>) =
            records.iter().zip(put).partition(|(_, put)| *put);
        metrics::counter!("BundlesAccepted").increment(accepted.len() as u64);
        metrics::counter!("BundlesNotTaken").increment(rejected.len() as u64);
        let bundles: Vec<_> = accepted.iter().map(|(record, _)| &record.bundle).collect();
        let refused = listed(&errors);
        if rejected.is_empty() {
            let reply = Reply { accepted: bundles.len(), bundles, errors: refused };
            return Ok((Response::new(202, &reply)?, errors));
        }
        let bundles: Vec<_> = bundles.into_iter().map(BundleId::as_str).collect();
        let problem = stream_busy(&bundles, rejected.into_iter().map(|(record, _)| record));
        Err(Refusal { problem: with_refused(problem, &refused), errors })
    }

    /// Uses the register to remove series that store-readings would refuse completely, in three cases: the times have
    /// no UTC offset and the site declares none; the times are not valid after the conversion with the site's offset;
    /// or all samples are at or after the retirement of the sensor.
    ///
    /// A series with earlier samples stays: store-readings stores those and refuses the others. A series also stays if
    /// its sensor is unknown or belongs to another site, or if its times have no offset and the site's offset is not
    /// known.
    async fn remove_refused(
        &self,
        sender: OperatorId,
        sent: &mut Vec<Sent<'_>>,
        errors: &mut Vec<FieldError>,
        is_list: bool,
        limits: TimeLimits,
        deadline: Deadline,
    ) {
        let sensors = |sent: &Sent<'_>| {
            let site = sent.bundle.site_id;
            let series = sent.bundle.series.iter();
            series.map(|series| (site, series.sensor_id)).collect::<Vec<_>>()
        };
        let sensors: Vec<_> = sent.iter().flat_map(sensors).collect();
        let standings = self.register.known_standings(sender, &sensors, deadline).await;
        let mut standings = standings.into_iter();
        for Sent { index, text, bundle, is_reduced } in sent.iter_mut() {
            let limits = limits.of(bundle.origin);
            let mut refused = Vec::new();
            bundle.series.retain_mut(|series| {
                let standing = standings.next().flatten();
                let problems = standing.map_or_else(Vec::new, |it| problems(series, it, limits));
                let is_good = problems.is_empty();
                refused.extend(problems.into_iter().map(|problem| (series.sensor_id, problem)));
                is_good
            });
            if refused.is_empty() {
                continue;
            }
            *is_reduced = true;
            let sensors = find_sensors(text);
            errors.extend(refused.into_iter().map(|(sensor, problem)| {
                let position =
                    sensors.iter().position(|it| *it == Some(sensor)).unwrap_or_default();
                let FieldError { field: path, .. } =
                    problem.clone().within(&format!("series[{position}]"));
                FieldError { field: field(is_list, *index, &path), ..problem }
            }));
        }
        sent.retain(|sent| !sent.bundle.series.is_empty());
    }

    /// Puts the records, and retries those that failed. Returns for each record whether it is on the stream.
    async fn put(&self, records: &[Record], deadline: Deadline) -> Result<Vec<bool>, PutRefused> {
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
        records: impl Iterator<Item = &'a Record>,
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

/// Returns why store-readings would refuse the whole series of a sensor of this site, with paths in the series. Times
/// without an offset become UTC.
fn problems(series: &mut Series, standing: Standing, limits: TimeLimits) -> Vec<FieldError> {
    let Standing::Registered { retired_at, sensor } = standing else { return Vec::new() };
    if sensor.is_none() && series.is_local {
        return Vec::new();
    }
    let offset = sensor.and_then(|sensor| sensor.utc_offset);
    if let Err(problems) = series.resolve(offset, limits) {
        return problems;
    }
    let is_later = |at: &Timestamp| series.samples.first().is_some_and(|first| first.at >= *at);
    let retired = retired_at.filter(is_later).map(|at| {
        let sensor = series.sensor_id;
        let message =
            format!("sensor {sensor} was retired at {at}; only its earlier readings are stored");
        FieldError::new("samples", message).with_reason(Reason::RetiredSensor)
    });
    retired.into_iter().collect()
}

/// Returns the upper bound of the pause after the given number of attempts, 1 or more.
fn max_pause(attempt: u32) -> Duration {
    INITIAL_MAX_PAUSE * 2_u32.pow(attempt - 1)
}

/// Checks the type and the size of the body.
fn check_body(request: &Request) -> Result<(), Problem> {
    http::body(request, MAX_BODY_BYTES).map(drop).map_err(|problem| match problem.status {
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

/// Checks the number of bundles in the body.
fn check_count(bundles: usize) -> Result<(), Problem> {
    match bundles {
        0 => {
            let message = format!("is an empty list; give 1 to {MAX_BUNDLES} bundles");
            let error = FieldError::new("", message).with_reason(Reason::WrongCount);
            Err(Problem::invalid(vec![error]))
        }
        1..=MAX_BUNDLES => Ok(()),
        _ => Err(too_large(format!(
            "The list has {bundles} bundles; send them in several requests of at most {MAX_BUNDLES}."
        ))),
    }
}

/// Reads the bundles. Returns the valid parts of those that have any, and all problems.
fn bundles<'a>(
    texts: &[&'a str],
    is_list: bool,
    limits: TimeLimits,
) -> (Vec<Sent<'a>>, Vec<FieldError>) {
    let (mut sent, mut errors) = (Vec::with_capacity(texts.len()), Vec::new());
    let mut first_indices = HashMap::new();
    for (index, text) in texts.iter().enumerate() {
        let (bundle, refused) = match Bundle::read_good_series(text, limits) {
            Ok(GoodSeries { bundle, refused }) => (Some(bundle), refused),
            Err(refused) => (None, refused),
        };
        let is_reduced = !refused.is_empty();
        errors.extend(refused.into_iter().map(|error| {
            let field = field(is_list, index, &error.field);
            FieldError { field, ..error }
        }));
        let Some(bundle) = bundle else { continue };
        let Bundle { site_id, bundle_id, revision, .. } = &bundle;
        let first = *first_indices.entry((*site_id, bundle_id.clone(), *revision)).or_insert(index);
        if first == index {
            sent.push(Sent { index, text, bundle, is_reduced });
            continue;
        }
        let message = format!(
            "is {bundle_id}, the same as in [{first}]; give each bundle of a site its own id, and send a bundle that has grown in a later request"
        );
        let field = field(is_list, index, "bundleId");
        errors.push(FieldError::new(field, message).with_reason(Reason::Duplicate));
    }
    (sent, errors)
}

/// Checks that the caller may send for the site of each bundle, and that it may import readings.
///
/// Only the scope decides, so the response does not show which sites exist. Whether the site belongs to the caller's
/// operator is decided when the bundle is stored.
fn check_scope(caller: &Caller, sent: &[Sent<'_>], is_list: bool) -> Result<(), Problem> {
    let may_import = matches!(caller.scope, Scope::Operator | Scope::Admin);
    let mut errors = Vec::new();
    for Sent { index, bundle, .. } in sent {
        if !caller.scope.may_send(bundle.site_id) {
            let message = "is not a site for which your credential may send readings";
            let error = FieldError::new(field(is_list, *index, "siteId"), message);
            errors.push(error.with_reason(Reason::Forbidden));
        }
        if bundle.origin == Origin::Import && !may_import {
            let message =
                "is import; only a credential with the scope operator or admin may import readings";
            let error = FieldError::new(field(is_list, *index, "origin"), message);
            errors.push(error.with_reason(Reason::Forbidden));
        }
    }
    caller.require(errors.is_empty()).map_err(|problem| Problem { errors, ..problem })
}

/// Returns the records of the bundles. A bundle of which nothing was refused is the text as it was sent, with values
/// such as `NaN` in quotes. A text that exceeds a record's size only because of its white space is serialized again. So
/// is a bundle of which a series was refused. Its times and numbers may then be longer than as sent. If it exceeds the
/// size of the text as sent, or a record's size, it is compressed. Adds the bundles that are too large to the errors.
fn records(
    sender: OperatorId,
    sent: &[Sent<'_>],
    errors: &mut Vec<FieldError>,
    is_list: bool,
) -> Result<Vec<Record>, Problem> {
    let mut records = Vec::with_capacity(sent.len());
    for Sent { index, text, bundle, is_reduced, .. } in sent {
        let mut record = Record {
            path: field(is_list, *index, ""),
            bundle: bundle.bundle_id.clone(),
            partition_key: partition_key(bundle.site_id, sender),
            data: text.as_bytes().to_vec(),
        };
        if *is_reduced || record.bytes() > MAX_RECORD_BYTES {
            let serialized =
                serde_json::to_vec(bundle).map_err(|error| PutRefused(error.to_string()))?;
            let fits = serialized.len() + record.partition_key.len() <= MAX_RECORD_BYTES;
            // No record is longer than as sent, so the records fit into one call of PutRecords.
            if *is_reduced && (!fits || serialized.len() > text.len()) {
                record.data = stream::pack(&serialized).unwrap_or(serialized);
            } else if fits {
                record.data = serialized;
            }
        }
        if record.bytes() <= MAX_RECORD_BYTES {
            records.push(record);
            continue;
        }
        let message = format!(
            "bundle {} has {} bytes; give at most {}",
            record.bundle,
            record.data.len(),
            MAX_RECORD_BYTES - record.partition_key.len()
        );
        errors.push(FieldError::new(record.path, message).with_reason(Reason::TooLarge));
    }
    Ok(records)
}

/// Returns the errors that a response lists: at most 101. If there are more, the last one says how many are not listed.
fn listed(errors: &[FieldError]) -> Vec<FieldError> {
    // If a bundle has more than 100 problems, its last error says how many are not listed.
    let mut listed = errors.to_vec();
    if errors.len() > MAX_LISTED + 1 {
        listed.truncate(MAX_LISTED);
        let more = errors.len() - MAX_LISTED;
        listed.push(FieldError::new("", format!("has {more} more problems; correct these first")));
    }
    for error in listed.iter_mut().filter(|error| error.field.is_empty()) {
        "body".clone_into(&mut error.field);
    }
    listed.iter().map(http::masked).collect()
}

/// Returns the problem of a request of which nothing was accepted.
fn nothing_good(errors: &[FieldError]) -> Problem {
    let all = |reason| errors.iter().all(|error| error.reason == reason);
    if all(Reason::RetiredSensor) {
        let problem = Problem::new(
            410,
            "sensors-retired",
            "The sensors are retired",
            "The sensors were retired, for example because their site was decommissioned. Stop sending readings of them. Readings from before the retirement are still accepted.",
        );
        Problem { errors: listed(errors), ..problem }
    } else if all(Reason::TooLarge) {
        let problem = too_large(
            "A bundle is too large for the stream: split it into several bundles of fewer minutes, each \
             with its own bundleId.",
        );
        Problem { errors: listed(errors), ..problem }
    } else {
        Problem::invalid(listed(errors))
    }
}

/// Adds what was refused to a problem about the rest of the request.
fn with_refused(problem: Problem, refused: &[FieldError]) -> Problem {
    match serde_json::to_value(refused) {
        Ok(refused) if refused != Value::Array(Vec::new()) => problem.with("refused", refused),
        _ => problem,
    }
}

/// Logs the readings that a response with status 202 refuses, in one line.
fn log_refused(errors: &[FieldError]) {
    let Some(first) = errors.first() else { return };
    tracing::warn!(
        reason = first.reason.name(),
        field = loggable(&first.field),
        problem = loggable(&first.message),
        problems = errors.len(),
        "readings refused"
    );
}

/// Returns a 503 that lists the bundles that are on the stream and those that are not.
fn stream_busy<'a>(accepted: &[&str], rejected: impl Iterator<Item = &'a Record>) -> Problem {
    let errors = rejected.map(|record| {
        let message = format!("bundle {} is not on the stream", record.bundle);
        FieldError::new(&record.path, message).with_reason(Reason::StreamBusy)
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
