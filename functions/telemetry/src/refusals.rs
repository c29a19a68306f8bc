//! Counts the bundles that `POST /readings` refused, by sender, site, hour, reason, field and sensor. A bundle of which
//! some series were refused counts, too.
//!
//! An accepted bundle costs no write. A refusal is first counted in memory. [`Refusals::write`] adds the counts to the
//! table at most once per `WRITE_INTERVAL`, and at most `MAX_WRITES` rows at a time, so that a flood of refused
//! requests does not cause a flood of writes. The remaining counts are written with a later request. They are lost if
//! Lambda ends the execution environment first. Counts are added twice if a write took effect but its response was
//! lost. So the counters are approximate. The log has every refused request.

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{OperatorId, SensorId, SiteId, Timestamp, input::FieldError};
use futures_util::{StreamExt, stream as futures};
use lambda::{
    Deadline,
    http::{Problem, loggable},
};
use serde::Deserialize;
use serde_json::value::RawValue;
use series::{partition, start_of_hour};
use store::{Commit, Key, StoreError, Table, Transaction};
use tokio::time::Instant;

/// The minimum time between two writes of an execution environment.
const WRITE_INTERVAL: Duration = Duration::from_secs(10);
/// The maximum number of rows that an execution environment writes at a time.
const MAX_WRITES: usize = 100;
/// The maximum number of counters in memory. Beyond it, new counters have no site and no sensor, and the field `(any)`.
const MAX_PENDING: usize = 1_000;
/// The maximum number of counters that one bundle adds to.
const MAX_COUNTERS_PER_BUNDLE: usize = 10;
/// The timeout of one write to the table.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// The number of concurrent writes.
const CONCURRENT_WRITES: usize = 8;
/// The lifetime of a counter, in seconds from the beginning of its hour.
const RETENTION_SECONDS: i64 = 15 * 24 * 60 * 60;

/// The names that are counted: `body`, `query` and the fields of a bundle. Any other name was chosen by the sender
/// and is counted as `(unknown)`.
const FIELDS: [&str; 13] = [
    "body", "query", "bundleId", "siteId", "revision", "reason", "origin", "series", "sensorId",
    "replaces", "from", "to", "samples",
];

/// The key of a counter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Counter {
    /// The operator that sent the body.
    sender: OperatorId,
    /// `None` if the body names no site.
    site: Option<SiteId>,
    /// The beginning of the hour, in milliseconds since the epoch.
    hour: i64,
    reason: String,
    /// A path without indices, such as `series[].samples[]`.
    field: String,
    sensor: Option<SensorId>,
}

/// The number of refusals, with the last error message as an example.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Count {
    refused: u64,
    first_at: Timestamp,
    last_at: Timestamp,
    example: String,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.refused += other.refused;
        self.first_at = self.first_at.min(other.first_at);
        if other.last_at >= self.last_at {
            self.last_at = other.last_at;
            self.example = other.example;
        }
    }
}

#[derive(Debug, Default)]
struct State {
    pending: BTreeMap<Counter, Count>,
    written_at: Option<Instant>,
}

impl State {
    fn keep(&mut self, counter: Counter, count: Count) {
        match self.pending.get_mut(&counter) {
            Some(sum) => sum.add(count),
            None => drop(self.pending.insert(counter, count)),
        }
    }
}

/// The counters of one execution environment of the function.
#[derive(Debug)]
pub struct Refusals {
    table: Table,
    state: Mutex<State>,
}

impl Refusals {
    /// Creates counters that are written to the refusals table.
    #[must_use]
    pub fn new(table: Table) -> Self {
        Self { table, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the bundles of a body that was refused with this problem. `errors` are all its field errors.
    pub fn count(
        &self,
        sender: OperatorId,
        body: &str,
        problem: &Problem,
        errors: &[FieldError],
        now: Timestamp,
    ) {
        self.keep(counters(sender, body, Some(problem), errors, now));
    }

    /// Counts the bundles of a body that these errors name. The other bundles were accepted.
    pub fn count_partly(
        &self,
        sender: OperatorId,
        body: &str,
        errors: &[FieldError],
        now: Timestamp,
    ) {
        self.keep(counters(sender, body, None, errors, now));
    }

    fn keep(&self, counts: Vec<(Counter, Count)>) {
        let mut state = self.state();
        for (counter, count) in counts {
            let full = state.pending.len() >= MAX_PENDING && !state.pending.contains_key(&counter);
            let counter = if full {
                Counter { site: None, field: "(any)".to_owned(), sensor: None, ..counter }
            } else {
                counter
            };
            state.keep(counter, count);
        }
    }

    /// Writes the pending counts if they are due, the largest first. Counts that can't be written are kept for a later
    /// request. An error never fails this request.
    pub async fn write(&self, deadline: Deadline) {
        let due = self.due();
        if due.is_empty() {
            return;
        }
        let writes = due.into_iter().map(|(counter, count)| async move {
            let written = tokio::time::timeout(
                deadline.remaining().min(WRITE_TIMEOUT),
                self.add(&counter, &count),
            );
            let reason = match written.await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the write timed out".to_owned(),
            };
            // If the write took effect despite the error, these bundles are counted twice.
            tracing::warn!(%reason, "refusal counts can't be written now and are kept");
            self.state().keep(counter, count);
        });
        futures::iter(writes).buffer_unordered(CONCURRENT_WRITES).collect::<()>().await;
    }

    fn due(&self) -> Vec<(Counter, Count)> {
        let mut state = self.state();
        let too_early = state.written_at.is_some_and(|at| at.elapsed() < WRITE_INTERVAL);
        if too_early || state.pending.is_empty() {
            return Vec::new();
        }
        state.written_at = Some(Instant::now());
        let mut counts: Vec<_> = std::mem::take(&mut state.pending).into_iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(count.refused));
        state.pending = counts.split_off(counts.len().min(MAX_WRITES)).into_iter().collect();
        counts
    }

    async fn add(&self, counter: &Counter, count: &Count) -> Result<(), StoreError> {
        let site = partition(counter.sender, counter.site);
        let sensor = counter.sensor.map_or("-".to_owned(), |sensor| sensor.to_string());
        let hour = Timestamp::from_millis(counter.hour);
        let row = format!("{hour}/{}/{}/{sensor}", counter.reason, counter.field);
        let text = |text: &dyn ToString| AttributeValue::S(text.to_string());
        let number = |number: &dyn ToString| AttributeValue::N(number.to_string());
        let key = Key::pair(("siteId", site), ("row", row));
        let add = Transaction::on(&self.table).update(
            &self.table,
            &key,
            "SET #firstAt = if_not_exists(#firstAt, :firstAt), #lastAt = :lastAt, \
             #example = :example, #expiresAt = :expiresAt ADD #refused :refused",
            None,
            [
                ("firstAt", text(&count.first_at)),
                ("lastAt", text(&count.last_at)),
                ("example", text(&count.example)),
                ("expiresAt", number(&(counter.hour / 1000 + RETENTION_SECONDS))),
                ("refused", number(&count.refused)),
            ],
        );
        match add.commit().await? {
            Commit::Done => Ok(()),
            Commit::Refused(_) => {
                Err(StoreError::Internal("an update without a condition was refused".to_owned()))
            }
        }
    }
}

/// Returns the counters of a body: each refused bundle counts once per reason, field and sensor. `problem` is `None` if
/// the request was accepted in part. Then only the bundles that `errors` names were refused.
///
/// Also logs the site and sensor of the first invalid bundle, and counts the bundles by reason as a metric.
fn counters(
    sender: OperatorId,
    body: &str,
    problem: Option<&Problem>,
    errors: &[FieldError],
    now: Timestamp,
) -> Vec<(Counter, Count)> {
    let (texts, is_list) = split_bundles(body);
    let by_bundle = by_bundle(errors, texts.len(), is_list);
    // With 400, 410 and 413, each field error has its own reason. With any other status, such as a 403 because of the
    // scope, the reason of the response is counted.
    let whole = problem.filter(|problem| ![400, 410, 413].contains(&problem.status));
    let reason_of =
        |error: &FieldError| whole.map_or_else(|| error.reason.name().to_owned(), Problem::reason);
    let mut counters = Vec::new();
    let mut ids_recorded = false;
    for (text, errors_of_bundle) in texts.iter().zip(by_bundle) {
        let site = find_id(text, "siteId");
        let mut seen = BTreeSet::new();
        let mut add = |reason: String, field: String, sensor, message: &str| {
            let hour = start_of_hour(now);
            let counter = Counter { sender, site, hour, reason, field, sensor };
            if seen.len() < MAX_COUNTERS_PER_BUNDLE && seen.insert(counter.clone()) {
                let example = loggable(message);
                let count = Count { refused: 1, first_at: now, last_at: now, example };
                counters.push((counter, count));
            }
        };
        let reason = match (errors_of_bundle.first(), problem) {
            (Some(first), _) => {
                let sensors = find_sensors(text);
                let sensor_of = |error: &FieldError| {
                    sensors.get(series_index(&error.field)?).copied().flatten()
                };
                if !ids_recorded {
                    ids_recorded = true;
                    record_ids(site, sensor_of(first));
                }
                for error in &errors_of_bundle {
                    let reason = reason_of(error);
                    add(reason, normalize_path(&error.field), sensor_of(error), &error.message);
                }
                reason_of(first)
            }
            // The whole body was refused.
            (None, Some(problem)) => {
                let error =
                    errors.iter().find(|error| !is_list || index_of(&error.field).is_none());
                let field = error.map_or("body".to_owned(), |error| normalize_path(&error.field));
                let message = error.map_or(&problem.detail, |error| &error.message);
                add(problem.reason(), field, None, message);
                problem.reason()
            }
            (None, None) => continue,
        };
        metrics::counter!("ReadingsRefused", "reason" => reason).increment(1);
    }
    if !ids_recorded {
        record_ids(texts.first().and_then(|text| find_id(text, "siteId")), None);
    }
    counters
}

/// Adds the site and the sensor to the log lines of this invocation.
fn record_ids(site: Option<SiteId>, sensor: Option<SensorId>) {
    let span = tracing::Span::current();
    if let Some(site) = site {
        span.record("siteId", tracing::field::display(site));
    }
    if let Some(sensor) = sensor {
        span.record("sensorId", tracing::field::display(sensor));
    }
}

/// Returns the texts of the body's bundles, and whether the body is a list. A body that is not JSON counts as one
/// bundle.
fn split_bundles(body: &str) -> (Vec<&str>, bool) {
    match serde_json::from_str::<Vec<&RawValue>>(body) {
        Ok(list) if !list.is_empty() => (list.into_iter().map(RawValue::get).collect(), true),
        _ => (vec![body], false),
    }
}

/// Returns the index at the beginning of a path such as `[3].siteId`.
fn index_of(field: &str) -> Option<usize> {
    field.strip_prefix('[')?.split_once(']')?.0.parse().ok()
}

/// Returns the index of the series in a path such as `[3].series[7].samples`.
fn series_index(field: &str) -> Option<usize> {
    field.split_once("series[")?.1.split_once(']')?.0.parse().ok()
}

/// Groups the errors by bundle.
fn by_bundle(errors: &[FieldError], bundles: usize, is_list: bool) -> Vec<Vec<&FieldError>> {
    let mut groups = vec![Vec::new(); bundles];
    for error in errors {
        let index = if is_list { index_of(&error.field) } else { Some(0) };
        if let Some(errors) = index.and_then(|index| groups.get_mut(index)) {
            errors.push(error);
        }
    }
    groups
}

/// Replaces each index in a path by `[]`, and each name that the sender chose by `(unknown)`.
fn normalize_path(path: &str) -> String {
    // The name of a query parameter is removed: `query colour` becomes `query`.
    let path = path.split_once(' ').map_or(path, |(kind, _)| kind);
    let path = match path.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((_, "")) => "body",
        Some((_, rest)) => rest.trim_start_matches('.'),
        None => path,
    };
    let segment = |segment: &str| {
        let (name, indices) = segment.split_at(segment.find('[').unwrap_or(segment.len()));
        if !FIELDS.contains(&name) {
            return "(unknown)".to_owned();
        }
        let depth = indices.bytes().filter(|byte| *byte == b'[').count().min(2);
        name.to_owned() + &"[]".repeat(depth)
    };
    path.splitn(3, '.').map(segment).collect::<Vec<_>>().join(".")
}

/// Returns the first id with this name in a text. The text need not be valid JSON, so that the site of a truncated
/// body is found, too.
fn find_id<I: FromStr>(text: &str, name: &str) -> Option<I> {
    let (_, rest) = text.split_once(&format!("\"{name}\""))?;
    let value = rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    value.split_once('"')?.0.parse().ok()
}

/// Returns the sensor of each series, where it can be parsed.
pub(crate) fn find_sensors(text: &str) -> Vec<Option<SensorId>> {
    #[derive(Deserialize)]
    struct SeriesList<'a> {
        #[serde(borrow)]
        series: Vec<&'a RawValue>,
    }
    let Ok(SeriesList { series }) = serde_json::from_str::<SeriesList<'_>>(text) else {
        return Vec::new();
    };
    series.into_iter().map(|series| find_id(series.get(), "sensorId")).collect()
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::Client;
    use contracts::input::Reason;
    use serde_json::json;
    use testkit::sample::{noon, saga};

    use super::*;

    fn refusals() -> Refusals {
        let client = Client::new(&testkit::http::config("http://127.0.0.1:1"));
        Refusals::new(Table::new(client, "RefusalsTable"))
    }

    fn clock_ahead(bundle: usize) -> [FieldError; 1] {
        let field = format!("[{bundle}].series[0].samples[0]");
        [FieldError::new(field, "is ahead").with_reason(Reason::ClockAhead)]
    }

    fn bundle(site: SiteId) -> String {
        json!({ "bundleId": "b-1", "siteId": site, "series": [] }).to_string()
    }

    #[test]
    fn indices_and_names_chosen_by_the_sender_are_removed_from_a_path() {
        for (path, expected) in [
            ("body", "body"),
            ("[3]", "body"),
            ("siteId", "siteId"),
            ("[3].siteId", "siteId"),
            ("series[17].sensorId", "series[].sensorId"),
            ("[0].series[1].samples[2]", "series[].samples[]"),
            ("[0].series[1].samples[2][0]", "series[].samples[][]"),
            ("query colour", "query"),
            ("colour", "(unknown)"),
            ("[0].series[0].\"\\u{1b}[2J/ \"", "series[].(unknown)"),
            ("\"\\u{1b}[2J/\"", "(unknown)"),
            ("a.b.c.d.e", "(unknown).(unknown).(unknown)"),
        ] {
            assert_eq!(normalize_path(path), expected, "{path}");
        }
    }

    #[test]
    fn an_id_is_found_in_a_body_that_is_not_json() {
        let site = saga("a").site_id;
        let complete = bundle(site);
        assert_eq!(find_id(&complete, "siteId"), Some(site));
        assert_eq!(find_id(&complete[..complete.len() - 1], "siteId"), Some(site));
        assert_eq!(find_id::<SiteId>("{\"siteId\" : 7}", "siteId"), None);
        assert_eq!(find_id::<SiteId>("{\"siteId\"", "siteId"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_refusals_does_not_cause_a_flood_of_writes() {
        let refusals = refusals();
        let (mut requests, mut rows, mut counted) = (0, 0, 0);
        for second in 0..60 {
            for n in 0..100 {
                // A different site in each request, alternating with one real site.
                let random = saga(&format!("{second}/{n}")).site_id;
                for site in [random, saga("real").site_id] {
                    let body = format!("[{}]", bundle(site));
                    refusals.count_partly(
                        OperatorId::DEFAULT,
                        &body,
                        &clock_ahead(0),
                        noon(second),
                    );
                    requests += 1;
                }
                let due = refusals.due();
                rows += due.len();
                counted += due.iter().map(|(_, count)| count.refused).sum::<u64>();
                if due.len() > 2 {
                    let largest = &due[0].0;
                    assert_eq!(
                        largest.site,
                        Some(saga("real").site_id),
                        "the largest count is first"
                    );
                }
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(rows <= 6 * MAX_WRITES, "{rows} rows for {requests} refused requests");
        let state = refusals.state();
        assert!(state.pending.len() <= MAX_PENDING + 1, "{} counters", state.pending.len());
        let pending: u64 = state.pending.values().map(|count| count.refused).sum();
        assert_eq!(counted + pending, requests, "no count is lost");
    }

    #[tokio::test]
    async fn counts_that_can_not_be_written_are_kept() {
        let refusals = refusals();
        let body = bundle(saga("a").site_id);
        refusals.count_partly(OperatorId::DEFAULT, &body, &clock_ahead(0), noon(0));
        refusals.write(Deadline::after(Duration::from_secs(5))).await;
        let pending: Vec<_> = refusals.state().pending.values().map(|it| it.refused).collect();
        assert_eq!(pending, [1]);
    }
}
