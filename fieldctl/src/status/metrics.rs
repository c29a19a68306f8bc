//! Reads CloudWatch's metrics of the last 15 minutes, and its alarms.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aws_sdk_cloudwatch::{
    primitives::DateTime,
    types::{Dimension, Metric, MetricDataQuery, MetricStat, StateValue},
};
use contracts::{
    Timestamp,
    names::{CONSUMERS, Source},
};

use super::{Check, Function, copy_error, resources::Resources};
use crate::{
    error::{CliError, aws},
    render::span,
    stack::{DEPLOYMENT_DOCS, Stack},
};

/// The time span for which metrics are read, in seconds.
pub const WINDOW_SECONDS: i32 = 900;

/// The maximum number of queries in one call.
const MAX_QUERIES: usize = 500;

/// The maximum number of alarm names in one call.
const MAX_ALARMS: usize = 100;

/// The age above which a stream's consumer is late, in milliseconds. A stream is read within seconds.
pub const MAX_ITERATOR_AGE_MILLIS: f64 = 60_000.0;

/// Returns the stream or table whose records the function reads. Returns `None` for functions that read no stream.
fn stream_of(function: &str) -> Option<Source<'static>> {
    let consumer = CONSUMERS.iter().find(|it| it.function == function)?;
    Some(consumer.source).filter(|source| !matches!(source, Source::Queue(_)))
}

/// A metric of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MetricKind {
    /// The calls of a function.
    Invocations,
    /// The failed calls of a function.
    Errors,
    /// The failed items of a function's batches.
    FailedItems,
    /// The age of the records that a function reads from a stream.
    IteratorAge,
    /// The time for which asynchronous calls of a function waited.
    AsyncEventAge,
    /// The events that a rule could not deliver, not even with retries.
    FailedInvocations,
    /// The age of a queue's oldest message.
    QueueAge,
    /// The records that a stream got.
    IncomingRecords,
}

impl MetricKind {
    /// Returns namespace, metric, dimension and statistic.
    fn names(self) -> [&'static str; 4] {
        match self {
            Self::Invocations => ["AWS/Lambda", "Invocations", "FunctionName", "Sum"],
            Self::Errors => ["AWS/Lambda", "Errors", "FunctionName", "Sum"],
            Self::FailedItems => ["Fieldstation", "BatchItemFailures", "function", "Sum"],
            Self::IteratorAge => ["AWS/Lambda", "IteratorAge", "FunctionName", "Maximum"],
            Self::AsyncEventAge => ["AWS/Lambda", "AsyncEventAge", "FunctionName", "Maximum"],
            Self::FailedInvocations => ["AWS/Events", "FailedInvocations", "RuleName", "Sum"],
            Self::QueueAge => ["AWS/SQS", "ApproximateAgeOfOldestMessage", "QueueName", "Maximum"],
            Self::IncomingRecords => ["AWS/Kinesis", "IncomingRecords", "StreamName", "Sum"],
        }
    }
}

/// A value to read from CloudWatch.
#[derive(Debug)]
pub struct MetricRequest {
    kind: MetricKind,
    /// The name under which the value is returned.
    name: String,
    /// The value of the metric's dimension: the resource's physical name.
    physical: String,
    /// A second dimension and its value. With the dimension `version`, only the values of that version of the function
    /// are read.
    second: Option<(&'static str, String)>,
}

impl MetricRequest {
    /// Creates a request whose value is returned under this name.
    #[must_use]
    pub fn new(kind: MetricKind, name: &str, physical: &str) -> Self {
        Self { kind, name: name.to_owned(), physical: physical.to_owned(), second: None }
    }

    /// Adds a second dimension.
    #[must_use]
    pub fn with(self, dimension: &'static str, value: &str) -> Self {
        Self { second: Some((dimension, value.to_owned())), ..self }
    }
}

/// The measured values, by metric and name of the request.
pub type Values = HashMap<(MetricKind, String), f64>;

/// The measured values. The names for `IteratorAge` and `IncomingRecords` are those of functions and streams without
/// the environment. The names for all other metrics are logical ids.
#[derive(Debug)]
pub struct Metrics(Result<Values, CliError>);

impl Metrics {
    /// Reads the values with as few calls as possible.
    pub async fn load(
        stack: &Stack,
        resources: &Resources,
        live: &[Function],
        now: Timestamp,
    ) -> Self {
        Self(read(stack, resources, live, now).await)
    }

    /// Checks that the values could be read.
    ///
    /// # Errors
    /// The reason why they could not be read.
    pub fn read(&self) -> Result<(), CliError> {
        self.0.as_ref().map(drop).map_err(copy_error)
    }

    fn value(&self, kind: MetricKind, name: &str) -> Option<f64> {
        self.0.as_ref().ok()?.get(&(kind, name.to_owned())).copied()
    }

    /// Returns the age of the queue's oldest message, in seconds.
    pub fn queue_age(&self, logical_id: &str) -> Option<f64> {
        self.value(MetricKind::QueueAge, logical_id)
    }

    /// Returns the function's invocations, errors and failed items of batches. A value is `None` if nothing was
    /// measured.
    pub fn calls(&self, logical_id: &str) -> [Option<f64>; 3] {
        [MetricKind::Invocations, MetricKind::Errors, MetricKind::FailedItems]
            .map(|kind| self.value(kind, logical_id))
    }
}

async fn read(
    stack: &Stack,
    resources: &Resources,
    live: &[Function],
    now: Timestamp,
) -> Result<Values, CliError> {
    let mut requests: Vec<MetricRequest> = Vec::new();
    for (name, physical) in resources.of_type("AWS::Lambda::Function")? {
        for kind in [MetricKind::Invocations, MetricKind::Errors] {
            requests.push(MetricRequest::new(kind, &name, &physical));
        }
        let function = stack.short(&physical);
        if stream_of(function).is_some() {
            requests.push(MetricRequest::new(MetricKind::IteratorAge, function, &physical));
        }
    }
    for (name, url) in resources.of_type("AWS::SQS::Queue")? {
        let queue = url.rsplit('/').next().unwrap_or(&url).to_owned();
        requests.push(MetricRequest::new(MetricKind::QueueAge, &name, &queue));
    }
    for (_, physical) in resources.of_type("AWS::Kinesis::Stream")? {
        let stream = stack.short(&physical);
        requests.push(MetricRequest::new(MetricKind::IncomingRecords, stream, &physical));
    }
    requests.extend(live.iter().map(|it| {
        MetricRequest::new(MetricKind::FailedItems, &it.logical_id(), &it.function)
            .with("version", &it.version)
    }));
    values(stack, &requests, now).await
}

/// Reads values with as few calls as possible. A value is missing if nothing was measured in the last 15 minutes.
pub async fn values(
    stack: &Stack,
    requests: &[MetricRequest],
    now: Timestamp,
) -> Result<Values, CliError> {
    let client = aws_sdk_cloudwatch::Client::new(stack.config());
    let seconds = now.millis() / 1000;
    let mut values = HashMap::new();
    for requests in requests.chunks(MAX_QUERIES) {
        let queries = requests.iter().enumerate().map(|(index, it)| query(index, it)).collect();
        let call = client
            .get_metric_data()
            .start_time(DateTime::from_secs(seconds - i64::from(WINDOW_SECONDS)))
            .end_time(DateTime::from_secs(seconds + 60))
            .set_metric_data_queries(Some(queries));
        let mut pages = call.into_paginator().send();
        let mut results = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(aws("the metrics can't be read"))?;
            results.extend(page.metric_data_results.unwrap_or_default());
        }
        for result in results {
            let index = result.id().and_then(|id| id.strip_prefix('m')?.parse::<usize>().ok());
            let Some(MetricRequest { kind, name, .. }) =
                index.and_then(|index| requests.get(index))
            else {
                continue;
            };
            let measured = result.values();
            let value = match kind {
                MetricKind::Invocations
                | MetricKind::Errors
                | MetricKind::FailedItems
                | MetricKind::FailedInvocations
                | MetricKind::IncomingRecords => measured.iter().sum(),
                // CloudWatch returns the newest value first.
                MetricKind::IteratorAge | MetricKind::AsyncEventAge | MetricKind::QueueAge => {
                    measured.first().copied().unwrap_or_default()
                }
            };
            if !measured.is_empty() {
                *values.entry((*kind, name.clone())).or_insert(0.0) += value;
            }
        }
    }
    Ok(values)
}

fn query(index: usize, request: &MetricRequest) -> MetricDataQuery {
    let [namespace, metric, dimension, statistic] = request.kind.names();
    let with_value = |name: &str, value: &str| Dimension::builder().name(name).value(value).build();
    let metric = Metric::builder().namespace(namespace).metric_name(metric);
    let mut dimensions = vec![with_value(dimension, &request.physical)];
    dimensions.extend(request.second.as_ref().map(|(name, value)| with_value(name, value)));
    let metric = metric.set_dimensions(Some(dimensions)).build();
    let stat = MetricStat::builder().metric(metric).period(60).stat(statistic).build();
    MetricDataQuery::builder().id(format!("m{index}")).metric_stat(stat).return_data(true).build()
}

/// Checks that the streams' consumers are not late.
pub fn streams(stack: &Stack, resources: &Resources, metrics: &Metrics) -> Result<Check, CliError> {
    metrics.read()?;
    let functions = resources.of_type("AWS::Lambda::Function")?;
    let consumers: BTreeMap<&str, Source<'_>> = functions
        .iter()
        .filter_map(|(_, physical)| {
            let function = stack.short(physical);
            Some((function, stream_of(function)?))
        })
        .collect();
    let age_of = |function: &str| metrics.value(MetricKind::IteratorAge, function);
    let ages: Vec<_> =
        consumers.keys().filter_map(|function| Some((*function, age_of(function)?))).collect();
    // Lambda measures no age for a stream that it does not read.
    let unread = consumers.iter().find_map(|(function, source)| {
        let Source::Stream(stream) = source else { return None };
        let incoming = metrics.value(MetricKind::IncomingRecords, stream).unwrap_or_default();
        (incoming > 0.0 && age_of(function).is_none()).then_some((*function, *stream, incoming))
    });
    let late: Vec<_> = ages.iter().filter(|(_, age)| *age > MAX_ITERATOR_AGE_MILLIS).collect();
    #[expect(clippy::cast_possible_truncation, reason = "an age in milliseconds")]
    let shown = |(name, age): &(&str, f64)| format!("{name} is {} behind", span(*age as i64));
    if let Some((function, stream, incoming)) = unread {
        let summary =
            format!("{incoming} records arrived on the stream {stream}, but {function} read none");
        return Ok(Check::problem("streams", summary, "see consumers above"));
    }
    if let Some((function, _)) = late.first() {
        let next = format!("fieldctl logs --function {function} --errors");
        let details = late.iter().map(|it| shown(it)).collect();
        return Ok(Check::problem("streams", "a consumer is late", next).with(details));
    }
    Ok(Check::good(
        "streams",
        if ages.is_empty() {
            "no records in the last 15 minutes".to_owned()
        } else {
            ages.iter().map(shown).collect::<Vec<_>>().join(", ")
        },
    ))
}

/// Checks that every alarm exists, and that none is in the state `ALARM`.
pub async fn alarms(stack: &Stack, resources: &Resources) -> Result<Check, CliError> {
    let client = aws_sdk_cloudwatch::Client::new(stack.config());
    // The logical ids, by the alarms' generated names.
    let known: BTreeMap<String, String> = resources
        .of_type("AWS::CloudWatch::Alarm")?
        .into_iter()
        .map(|(logical, name)| (name, logical))
        .collect();
    if known.is_empty() {
        return Err(CliError::not_found("the stacks have no alarms"));
    }
    let (mut described, mut without_data, mut on) = (BTreeSet::new(), 0, Vec::new());
    for names in known.keys().cloned().collect::<Vec<_>>().chunks(MAX_ALARMS) {
        let call = client.describe_alarms().set_alarm_names(Some(names.to_vec()));
        let mut pages = call.into_paginator().send();
        while let Some(page) = pages.next().await {
            for alarm in page.map_err(aws("the alarms can't be read"))?.metric_alarms() {
                let name = alarm.alarm_name().unwrap_or("?");
                let shown = known.get(name).map_or(name, String::as_str);
                described.insert(name.to_owned());
                match alarm.state_value() {
                    Some(StateValue::Ok) => {}
                    Some(StateValue::Alarm) => on.push(format!(
                        "{shown}: {}",
                        alarm.alarm_description().unwrap_or("no description")
                    )),
                    _ => without_data += 1,
                }
            }
        }
    }
    let missing = known.iter().filter(|(name, _)| !described.contains(*name));
    let missing: Vec<_> =
        missing.map(|(_, logical)| format!("{logical}: it was deleted")).collect();
    let all = known.len();
    Ok(match (on.len(), missing.len()) {
        (0, 0) => {
            Check::good("alarms", format!("none of {all} is on; {without_data} have no data yet"))
        }
        (0, count) => {
            let summary = format!("{count} of {all} do not exist");
            let next = format!("deploy the stacks again: {DEPLOYMENT_DOCS}");
            Check::problem("alarms", summary, next).with(missing)
        }
        (count, _) => {
            let summary = format!("{count} of {all} are on");
            Check::problem("alarms", summary, "docs/operations.md has a runbook for each")
                .with([on, missing].concat())
        }
    })
}
