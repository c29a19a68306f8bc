//! Reads CloudWatch's metrics of the last 15 minutes, and its alarms.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aws_sdk_cloudwatch::{
    primitives::DateTime,
    types::{Dimension, Metric, MetricDataQuery, MetricStat, StateValue},
};
use contracts::Timestamp;

use super::{Check, Function, copy_error, resources::Resources};
use crate::{
    error::{CliError, aws},
    render::span,
    stack::{DEPLOYMENT_DOCS, Stack},
};

/// The period of the metrics, in seconds.
pub const WINDOW_SECONDS: i32 = 900;

/// The maximum number of queries in one call.
const MAX_QUERIES: usize = 500;

/// The maximum number of alarm names in one call.
const MAX_ALARMS: usize = 100;

/// The age above which a stream's consumer is late, in milliseconds. A stream is read within seconds.
const MAX_ITERATOR_AGE_MILLIS: f64 = 60_000.0;

/// The functions that read streams, by their logical ids.
const STREAM_FUNCTIONS: [&str; 3] =
    ["StoreReadingsFunction", "DetectBreachesFunction", "PublishEventsFunction"];

/// A metric of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum MetricKind {
    Invocations,
    Errors,
    FailedItems,
    IteratorAge,
    QueueAge,
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
            Self::QueueAge => ["AWS/SQS", "ApproximateAgeOfOldestMessage", "QueueName", "Maximum"],
            Self::IncomingRecords => ["AWS/Kinesis", "IncomingRecords", "StreamName", "Sum"],
        }
    }
}

/// A value to read from CloudWatch.
#[derive(Debug)]
struct MetricRequest {
    kind: MetricKind,
    /// The logical id of the resource.
    name: String,
    /// The value of the metric's dimension: the resource's physical name.
    physical: String,
    /// If set, only the values of this version of the function are read.
    version: Option<String>,
}

impl MetricRequest {
    fn new(kind: MetricKind, name: &str, physical: &str) -> Self {
        Self { kind, name: name.to_owned(), physical: physical.to_owned(), version: None }
    }
}

/// The measured values, by metric and logical id.
#[derive(Debug)]
pub struct Metrics(Result<HashMap<(MetricKind, String), f64>, CliError>);

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
) -> Result<HashMap<(MetricKind, String), f64>, CliError> {
    let mut requests: Vec<MetricRequest> = Vec::new();
    for (name, physical) in resources.of_type("AWS::Lambda::Function")? {
        for kind in [MetricKind::Invocations, MetricKind::Errors] {
            requests.push(MetricRequest::new(kind, &name, &physical));
        }
        if STREAM_FUNCTIONS.contains(&name.as_str()) {
            requests.push(MetricRequest::new(MetricKind::IteratorAge, &name, &physical));
        }
    }
    for (name, url) in resources.of_type("AWS::SQS::Queue")? {
        let queue = url.rsplit('/').next().unwrap_or(&url).to_owned();
        requests.push(MetricRequest::new(MetricKind::QueueAge, &name, &queue));
    }
    for (name, physical) in resources.of_type("AWS::Kinesis::Stream")? {
        requests.push(MetricRequest::new(MetricKind::IncomingRecords, &name, &physical));
    }
    requests.extend(live.iter().map(|it| MetricRequest {
        version: Some(it.version.clone()),
        ..MetricRequest::new(MetricKind::FailedItems, &it.logical_id(), &it.function)
    }));
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
                | MetricKind::IncomingRecords => measured.iter().sum(),
                // CloudWatch returns the newest value first.
                MetricKind::IteratorAge | MetricKind::QueueAge => {
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
    dimensions.extend(request.version.as_ref().map(|version| with_value("version", version)));
    let metric = metric.set_dimensions(Some(dimensions)).build();
    let stat = MetricStat::builder().metric(metric).period(60).stat(statistic).build();
    MetricDataQuery::builder().id(format!("m{index}")).metric_stat(stat).return_data(true).build()
}

/// Checks that the streams' consumers are not late.
pub fn streams(metrics: &Metrics) -> Result<Check, CliError> {
    metrics.read()?;
    let ages = STREAM_FUNCTIONS
        .iter()
        .filter_map(|name| Some((*name, metrics.value(MetricKind::IteratorAge, name)?)));
    let ages: Vec<_> = ages.collect();
    let incoming = metrics.value(MetricKind::IncomingRecords, "ReadingsStream").unwrap_or_default();
    let late: Vec<_> = ages.iter().filter(|(_, age)| *age > MAX_ITERATOR_AGE_MILLIS).collect();
    // Lambda measures no age for a stream that it does not read.
    let is_unread =
        incoming > 0.0 && !ages.iter().any(|(name, _)| *name == "StoreReadingsFunction");
    #[expect(clippy::cast_possible_truncation, reason = "an age in milliseconds")]
    let shown = |(name, age): &(&str, f64)| format!("{name} is {} behind", span(*age as i64));
    if is_unread {
        let summary = format!("{incoming} bundles arrived, but store-readings read none");
        return Ok(Check::problem("streams", summary, "see consumers above"));
    }
    if !late.is_empty() {
        let details = late.into_iter().map(shown).collect();
        let next =
            "fieldctl logs --function store-readings --errors (or the function that is behind)";
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
