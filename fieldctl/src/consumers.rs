//! The functions that consume events: whether they get events, and how far they are behind.
//!
//! A lag is reported only if it was measured. The details of the report name what was not measured.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use aws_sdk_eventbridge::operation::list_rule_names_by_target::ListRuleNamesByTargetError;
use aws_sdk_lambda::operation::list_event_source_mappings::ListEventSourceMappingsError;
use contracts::{
    Timestamp,
    consumers::{EVENT_CONSUMERS, EventConsumer, EventSource, Mode, WATCH_NETWORK},
    names::{self, LIVE, Source},
};
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use store::{
    from_item,
    generation::{self, State},
};
use tokio::time::{Instant, sleep};

use crate::{
    error::{CliError, aws},
    event_log::MAX_PUBLISH_DELAY,
    event_stream::{EventStream, READ_INTERVAL, Start},
    render::span,
    stack::Stack,
    status::{
        Health,
        metrics::{MAX_ITERATOR_AGE_MILLIS, MetricKind, MetricRequest, Values, values},
    },
};

/// How far back the stream is read to compare its events with a consumer's cursors, in milliseconds.
const SAMPLE_MILLIS: i64 = 120_000;
/// The maximum time of reading the stream for the comparison. Each read takes throughput from the consumers of the
/// stream.
const MAX_SAMPLE_TIME: Duration = Duration::from_secs(30);
/// The maximum number of entities whose cursors are compared.
const MAX_SAMPLED: usize = 100;

/// The state of a consumer that has no rule or mapping.
const MISSING: &str = "Missing";

/// A consumer and what delivers events to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Consumer {
    /// The function's name without the environment.
    pub function: &'static str,
    /// How it processes repeated events and events out of order: `command`, `latest` or `every`.
    pub mode: &'static str,
    /// Where it gets its events from: `bus` or `stream`.
    pub source: &'static str,
    /// Whether `consumers replay` can rebuild it.
    pub replayable: bool,
    /// The state of the first rule or mapping that does not deliver events, such as `Disabled`. If all deliver events,
    /// the state of the first one, usually `Enabled`. `Missing` if the consumer has no rule or mapping.
    pub state: String,
    /// The rules of the bus by their names, or the event source mapping by its UUID.
    pub inputs: Vec<Input>,
}

/// What delivers events to a consumer: a rule or an event source mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The name of the rule, or the UUID of the mapping.
    pub name: String,
    /// Its state, as AWS names it, in Pascal case.
    pub state: String,
    /// Lambda's report on its last read of the stream. `None` for a rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_result: Option<String>,
}

/// The lag of a consumer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lag {
    /// The function's name without the environment.
    pub function: &'static str,
    /// How it processes events.
    pub mode: &'static str,
    /// Where it gets its events from.
    pub source: &'static str,
    /// The state of its rules or its mapping.
    pub state: String,
    /// `Problem` if one was found, for example a lag of more than a minute. Otherwise `Good` if the lag was measured,
    /// and `Unknown` if not.
    pub health: Health,
    /// How far it is behind. With the stream as its source: the age of the records that Lambda read last. With the bus:
    /// the time for which the last asynchronous call waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behind_seconds: Option<f64>,
    /// How long the oldest unpublished event has waited. Such an event delays all consumers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unpublished_seconds: Option<f64>,
    /// The deliveries that EventBridge gave up in the last 15 minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_deliveries: Option<f64>,
    /// The comparison with the stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compared: Option<Compared>,
    /// The result in a sentence.
    pub summary: String,
    /// What is wrong, and what is not known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
    /// The next command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The comparison of a consumer's cursors with the newest events of the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Compared {
    /// The number of entities whose cursors were compared.
    pub entities: usize,
    /// The number of their events that the consumer has not applied yet.
    pub not_applied: u64,
    /// How long the oldest of these events has been in the stream, in seconds. Only the end of the stream is read, so
    /// an older event may have waited longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_seconds: Option<f64>,
}

impl Compared {
    /// Returns whether an event has waited for so long that it is a problem.
    fn is_late(&self) -> bool {
        self.oldest_seconds.is_some_and(|oldest| oldest * 1000.0 > MAX_ITERATOR_AGE_MILLIS)
    }
}

/// What was measured about a consumer. A value is `None` if it was not measured.
#[derive(Clone, Debug, Default)]
struct Measured {
    /// How far the consumer is behind, in milliseconds.
    behind: Option<f64>,
    /// The records that the stream got in the last 15 minutes.
    incoming: Option<f64>,
    failed_deliveries: Option<f64>,
    compared: Option<Compared>,
    /// The time for which the oldest unpublished event has waited, in milliseconds.
    unpublished: Option<i64>,
    /// Why something could not be measured.
    errors: Vec<String>,
}

impl Measured {
    /// Adds the comparison with the events that were read. If reading did not reach the end of the stream, the newest
    /// events are missing. Then the comparison can prove a lag, but not that there is none.
    fn add(&mut self, compared: Compared, is_at_end: bool) {
        self.compared = Some(compared).filter(|it| is_at_end || it.is_late());
        if !is_at_end {
            let seconds = MAX_SAMPLE_TIME.as_secs();
            self.errors.push(format!(
                "reading the stream of events for {seconds} s did not reach its end"
            ));
        }
    }
}

/// Returns all consumers with the state of their rules or mappings.
pub async fn list(stack: &Stack) -> Result<Vec<Consumer>, CliError> {
    try_join_all(EVENT_CONSUMERS.iter().map(|consumer| read(stack, consumer))).await
}

async fn read(stack: &Stack, consumer: &EventConsumer) -> Result<Consumer, CliError> {
    let inputs = match consumer.source {
        EventSource::Bus => rules(stack, consumer.function).await?,
        EventSource::Stream => mappings(stack, consumer.function).await?,
    };
    let stopped = inputs.iter().find(|input| !runs(&input.state)).or(inputs.first());
    Ok(Consumer {
        function: consumer.function,
        mode: consumer.mode.name(),
        source: consumer.source.name(),
        replayable: consumer.replayable,
        state: stopped.map_or(MISSING, |input| &input.state).to_owned(),
        inputs,
    })
}

/// Returns whether a rule or mapping in this state delivers events, or is about to.
#[must_use]
pub fn runs(state: &str) -> bool {
    matches!(state, "Enabled" | "Enabling" | "Creating" | "Updating")
}

/// Returns the rules of the bus that call the function.
async fn rules(stack: &Stack, function: &str) -> Result<Vec<Input>, CliError> {
    let client = aws_sdk_eventbridge::Client::new(stack.config());
    let bus = stack.named(names::EVENTS);
    let list = client
        .list_rule_names_by_target()
        .event_bus_name(&bus)
        .target_arn(stack.function_arn(function));
    let names = match list.send().await {
        Ok(found) => found.rule_names.unwrap_or_default(),
        Err(error)
            if error
                .as_service_error()
                .is_some_and(ListRuleNamesByTargetError::is_resource_not_found_exception) =>
        {
            Vec::new()
        }
        Err(error) => return Err(aws("the rules of the bus can't be read")(error)),
    };
    let mut rules = Vec::with_capacity(names.len());
    for name in names {
        let rule = client.describe_rule().event_bus_name(&bus).name(&name).send().await;
        let rule = rule.map_err(aws("a rule of the bus can't be read"))?;
        let state = rule.state().map_or("?", |state| state.as_str());
        let state = match state {
            "DISABLED" => "Disabled",
            state if state.starts_with("ENABLED") => "Enabled",
            other => other,
        };
        rules.push(Input { name, state: state.to_owned(), last_result: None });
    }
    Ok(rules)
}

/// Returns the mappings with which the function reads the stream of all events.
async fn mappings(stack: &Stack, function: &str) -> Result<Vec<Input>, CliError> {
    let client = aws_sdk_lambda::Client::new(stack.config());
    let qualified = format!("{}:{LIVE}", stack.named(function));
    let list = client.list_event_source_mappings().function_name(qualified);
    let mut pages = list.into_paginator().items().send();
    let mut found = Vec::new();
    while let Some(mapping) = pages.next().await {
        let mapping = match mapping {
            Ok(mapping) => mapping,
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(ListEventSourceMappingsError::is_resource_not_found_exception) =>
            {
                return Ok(Vec::new());
            }
            Err(error) => return Err(aws("the event source mappings can't be read")(error)),
        };
        let source = mapping.event_source_arn().unwrap_or_default();
        if Source::from_arn(stack.name(), source) == Some(Source::Stream(names::EVENTS)) {
            found.push(Input {
                name: mapping.uuid().unwrap_or("?").to_owned(),
                state: mapping.state().unwrap_or("?").to_owned(),
                last_result: mapping.last_processing_result().map(str::to_owned),
            });
        }
    }
    Ok(found)
}

/// Measures how far each consumer is behind.
pub async fn lag(stack: &Stack, now: Timestamp) -> Result<Vec<Lag>, CliError> {
    let consumers = list(stack).await?;
    let unpublished = stack.oldest_unpublished().await?;
    let unpublished = unpublished.map(|it| now.millis() - it.at.millis());
    let (values, error) = match values(stack, &requests(stack, &consumers), now).await {
        Ok(values) => (values, None),
        Err(error) => (Values::new(), Some(error.message)),
    };
    let mut lags = Vec::with_capacity(consumers.len());
    for consumer in &consumers {
        let mut measured = measured(consumer, &values, unpublished);
        measured.errors.extend(error.clone());
        if has_cursors(consumer) {
            match compare(stack, now).await {
                Ok((compared, is_at_end)) => measured.add(compared, is_at_end),
                Err(error) => measured.errors.push(error.message),
            }
        }
        lags.push(judge(stack.name(), consumer, &measured));
    }
    Ok(lags)
}

fn requests(stack: &Stack, consumers: &[Consumer]) -> Vec<MetricRequest> {
    let bus = stack.named(names::EVENTS);
    let mut requests = vec![MetricRequest::new(MetricKind::IncomingRecords, names::EVENTS, &bus)];
    for consumer in consumers {
        let kind = age_metric(consumer);
        requests.push(MetricRequest::new(kind, consumer.function, &stack.named(consumer.function)));
        if kind == MetricKind::AsyncEventAge {
            requests.extend(consumer.inputs.iter().map(|rule| {
                MetricRequest::new(MetricKind::FailedInvocations, consumer.function, &rule.name)
                    .with("EventBusName", &bus)
            }));
        }
    }
    requests
}

fn age_metric(consumer: &Consumer) -> MetricKind {
    if consumer.source == EventSource::Stream.name() {
        MetricKind::IteratorAge
    } else {
        MetricKind::AsyncEventAge
    }
}

fn measured(consumer: &Consumer, values: &Values, unpublished: Option<i64>) -> Measured {
    let value = |kind, name: &str| values.get(&(kind, name.to_owned())).copied();
    let is_stream = consumer.source == EventSource::Stream.name();
    Measured {
        behind: value(age_metric(consumer), consumer.function),
        incoming: value(MetricKind::IncomingRecords, names::EVENTS).filter(|_| is_stream),
        failed_deliveries: value(MetricKind::FailedInvocations, consumer.function),
        compared: None,
        unpublished,
        errors: Vec::new(),
    }
}

/// Computes the lag from what was measured. The health is never `Good` if the consumer's own lag was not measured.
fn judge(environment: &str, consumer: &Consumer, measured: &Measured) -> Lag {
    let is_stream = consumer.source == EventSource::Stream.name();
    let (mut problems, mut next) = (Vec::new(), None);
    let max_unpublished = i64::try_from(MAX_PUBLISH_DELAY.as_millis()).unwrap_or(i64::MAX);
    let stopped = consumer.inputs.iter().find(|input| !runs(&input.state));
    if let Some(input) = stopped {
        let (what, command) = if is_stream {
            let command =
                format!("aws lambda update-event-source-mapping --uuid {} --enabled", input.name);
            ("mapping", command)
        } else {
            let (bus, name) = (names::named(environment, names::EVENTS), &input.name);
            ("rule", format!("aws events enable-rule --event-bus-name {bus} --name {name}"))
        };
        problems.push(format!("its {what} {} is {}", input.name, input.state));
        next = next.or(Some(command));
    } else if consumer.inputs.is_empty() {
        let what = if is_stream { "mapping" } else { "rule" };
        problems.push(format!("it has no {what}"));
        next = next.or(Some("deploy the stacks again: docs/deploying.md".to_owned()));
    }
    let logs = || Some(format!("fieldctl logs --function {} --errors", consumer.function));
    if measured.behind.is_some_and(|age| age > MAX_ITERATOR_AGE_MILLIS) {
        problems.push(format!("it is {} behind", shown(measured.behind)));
        next = next.or_else(logs);
    }
    if let Some(late) = measured.compared.filter(Compared::is_late) {
        let Compared { entities, not_applied, oldest_seconds } = late;
        problems.push(format!(
            "it has not applied {not_applied} events of {entities} entities with new events, the oldest for {}",
            shown(oldest_seconds.map(|oldest| oldest * 1000.0))
        ));
        next = next.or_else(logs);
    }
    if is_stream && measured.behind.is_none() && measured.incoming.is_some_and(|it| it > 0.0) {
        problems.push("the stream got events in the last 15 minutes, but it read none".to_owned());
        next = next.or_else(|| Some("fieldctl status".to_owned()));
    }
    if measured.failed_deliveries.is_some_and(|count| count > 0.0) {
        let count = measured.failed_deliveries.unwrap_or_default();
        problems.push(format!("EventBridge gave up {count} deliveries in the last 15 minutes"));
        next =
            next.or_else(|| Some(format!("fieldctl failures list --source {}", consumer.function)));
    }
    if measured.unpublished.is_some_and(|age| age > max_unpublished) {
        let age = span(measured.unpublished.unwrap_or_default());
        problems.push(format!("an event has not been published for {age}"));
        next = next.or_else(|| Some("fieldctl logs --function publish-events --errors".to_owned()));
    }
    let compared = measured.compared.filter(|it| it.entities > 0);
    let is_measured = measured.behind.is_some() || compared.is_some();
    let mut unknown: Vec<_> =
        measured.errors.iter().map(|error| format!("not measured: {error}")).collect();
    if measured.behind.is_none() && unknown.is_empty() {
        unknown.push(
            "it got no events in the last 15 minutes, so its age was not measured".to_owned(),
        );
    }
    if !is_stream {
        unknown
            .push("not known: how many events EventBridge is still trying to deliver".to_owned());
    }
    let health = match (problems.is_empty(), is_measured) {
        (false, _) => Health::Problem,
        (true, true) => Health::Good,
        (true, false) => Health::Unknown,
    };
    let summary = match (problems.first(), measured.behind, compared) {
        (Some(problem), ..) => problem.clone(),
        (None, Some(_), _) => format!("{} behind", shown(measured.behind)),
        (None, None, Some(Compared { entities, not_applied, .. })) => {
            format!("{not_applied} events of {entities} entities are not applied yet")
        }
        (None, None, None) => "not measured".to_owned(),
    };
    Lag {
        function: consumer.function,
        mode: consumer.mode,
        source: consumer.source,
        state: consumer.state.clone(),
        health,
        behind_seconds: measured.behind.map(|age| age / 1000.0),
        #[expect(clippy::cast_precision_loss, reason = "an age in milliseconds")]
        unpublished_seconds: measured.unpublished.map(|age| age as f64 / 1000.0),
        failed_deliveries: measured.failed_deliveries,
        compared: measured.compared,
        summary,
        details: problems.into_iter().skip(1).chain(unknown).collect(),
        next,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "an age in milliseconds")]
fn shown(millis: Option<f64>) -> String {
    span(millis.unwrap_or_default() as i64)
}

/// Returns whether the consumer's table has a cursor for each entity. `shared/consumer` writes these cursors.
fn has_cursors(consumer: &Consumer) -> bool {
    consumer.mode == Mode::Every.name() && consumer.function == WATCH_NETWORK
}

/// A cursor: the consumer's position in the events of an entity. `sequence` is that of the last event that it applied.
#[derive(Debug, Deserialize)]
struct Cursor {
    id: String,
    sequence: u64,
}

/// The sequences and arrival times of an entity's events.
type Arrivals = BTreeMap<u64, Timestamp>;

/// Compares the newest events of the stream with the cursors of watch-network, entity by entity. Also returns whether
/// reading reached the end of the stream.
async fn compare(stack: &Stack, now: Timestamp) -> Result<(Compared, bool), CliError> {
    let since = now.plus_millis(-SAMPLE_MILLIS);
    let mut stream = EventStream::open(stack, Start::Since(since)).await?;
    // By the entity's key in the log.
    let mut events: HashMap<String, Arrivals> = HashMap::new();
    let read = async || {
        for event in stream.read().await? {
            let metadata = &event.envelope.metadata;
            let arrived = event.arrived.unwrap_or(metadata.occurred_at);
            events.entry(metadata.log_key()).or_default().insert(metadata.sequence, arrived);
        }
        Ok(stream.is_at_end())
    };
    let is_at_end = read_to_end(read).await?;
    let entities = chosen(events);
    let applied = cursors(stack, entities.iter().map(|(log_key, _)| log_key)).await?;
    Ok((compared(&entities, &applied, now), is_at_end))
}

/// Reads until `read` returns true, for at most [`MAX_SAMPLE_TIME`]. Returns whether it returned true.
async fn read_to_end(
    mut read: impl AsyncFnMut() -> Result<bool, CliError>,
) -> Result<bool, CliError> {
    let started = Instant::now();
    loop {
        if read().await? {
            return Ok(true);
        }
        if started.elapsed() >= MAX_SAMPLE_TIME {
            return Ok(false);
        }
        sleep(READ_INTERVAL).await;
    }
}

/// Returns at most [`MAX_SAMPLED`] entities: the one with the newest event, and others evenly by the time of their newest
/// events. If all had the newest events, the oldest event that is not applied would seldom be one of theirs.
fn chosen(events: HashMap<String, Arrivals>) -> Vec<(String, Arrivals)> {
    let mut entities: Vec<_> = events.into_iter().collect();
    entities.sort_by_key(|(_, events)| Reverse(events.values().max().copied()));
    let step = entities.len().div_ceil(MAX_SAMPLED).max(1);
    entities.into_iter().step_by(step).collect()
}

/// Returns the cursors of these entities. A rebuild writes a new generation of cursors; the current one is read.
async fn cursors(
    stack: &Stack,
    log_keys: impl Iterator<Item = &String>,
) -> Result<HashMap<String, u64>, CliError> {
    let table = stack.table(names::NETWORK);
    let current = State::read(&table).await?.current;
    let keys = log_keys.map(|log_key| generation::cursor_key(current, log_key));
    let rows = table.batch_get(keys).consistent().send().await?;
    let cursor = |item| {
        let Cursor { id, sequence } = from_item(item, || "a cursor".to_owned())?;
        Ok((generation::entity_of_cursor(&id).unwrap_or(&id).to_owned(), sequence))
    };
    rows.into_iter().map(cursor).collect()
}

fn compared(
    entities: &[(String, Arrivals)],
    applied: &HashMap<String, u64>,
    now: Timestamp,
) -> Compared {
    let (mut not_applied, mut oldest) = (0, None::<Timestamp>);
    for (log_key, events) in entities {
        let cursor = applied.get(log_key).copied().unwrap_or_default();
        let last = events.last_key_value().map_or(0, |(last, _)| *last);
        not_applied += last.saturating_sub(cursor);
        let waiting = events.range(cursor + 1..).map(|(_, at)| *at).min();
        oldest = oldest.into_iter().chain(waiting).min();
    }
    #[expect(clippy::cast_precision_loss, reason = "an age in milliseconds")]
    let age = |at: Timestamp| (now.millis() - at.millis()).max(0) as f64 / 1000.0;
    Compared { entities: entities.len(), not_applied, oldest_seconds: oldest.map(age) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumer(function: &'static str, source: &'static str, state: &str) -> Consumer {
        Consumer {
            function,
            mode: "every",
            source,
            replayable: true,
            state: state.to_owned(),
            inputs: vec![Input {
                name: "input-1".to_owned(),
                state: state.to_owned(),
                last_result: None,
            }],
        }
    }

    fn health(measured: &Measured) -> Health {
        judge("test", &consumer("watch-network", "stream", "Enabled"), measured).health
    }

    #[test]
    fn a_consumer_is_good_only_if_its_lag_was_measured() {
        let good = Measured { behind: Some(60_000.0), ..Measured::default() };
        assert_eq!(health(&good), Health::Good);
        assert_eq!(health(&Measured::default()), Health::Unknown);
        let denied = Measured { errors: vec!["denied".to_owned()], ..Measured::default() };
        assert_eq!(health(&denied), Health::Unknown);
        let nothing = Compared { entities: 0, not_applied: 0, oldest_seconds: None };
        assert_eq!(
            health(&Measured { compared: Some(nothing), ..Measured::default() }),
            Health::Unknown
        );
        let applied = Compared { entities: 3, ..nothing };
        assert_eq!(
            health(&Measured { compared: Some(applied), ..Measured::default() }),
            Health::Good
        );
        let bus = consumer("project-site", "bus", "Enabled");
        let lag = judge("test", &bus, &good);
        assert_eq!(lag.health, Health::Good);
        assert!(lag.details[0].contains("not known"), "{lag:?}");
    }

    #[test]
    fn each_reason_for_a_lag_is_a_problem() {
        let good = Measured { behind: Some(1.0), ..Measured::default() };
        let late = Compared { entities: 3, not_applied: 9, oldest_seconds: Some(61.0) };
        for bad in [
            Measured { behind: Some(60_001.0), ..good.clone() },
            Measured { unpublished: Some(60_001), ..good.clone() },
            Measured { failed_deliveries: Some(1.0), ..good.clone() },
            Measured { compared: Some(late), ..good.clone() },
            Measured { incoming: Some(1.0), behind: None, ..good.clone() },
        ] {
            assert_eq!(health(&bad), Health::Problem, "{bad:?}");
        }
        let stopped = judge("test", &consumer("watch-network", "stream", "Disabled"), &good);
        assert_eq!(stopped.health, Health::Problem);
        let next = "aws lambda update-event-source-mapping --uuid input-1 --enabled";
        assert_eq!(stopped.next.as_deref(), Some(next));
        let stopped = judge("test", &consumer("project-site", "bus", "Disabled"), &good);
        let next = "aws events enable-rule --event-bus-name test-events --name input-1";
        assert_eq!(stopped.next.as_deref(), Some(next));
        let mut missing = consumer("watch-network", "stream", MISSING);
        missing.inputs.clear();
        assert_eq!(judge("test", &missing, &good).health, Health::Problem);
    }

    #[test]
    fn a_comparison_without_the_end_of_the_stream_proves_a_lag_but_not_that_there_is_none() {
        let good = Compared { entities: 3, not_applied: 0, oldest_seconds: None };
        let late = Compared { entities: 3, not_applied: 9, oldest_seconds: Some(61.0) };
        for (compared, is_at_end, expected) in [
            (good, true, Health::Good),
            (good, false, Health::Unknown),
            (late, true, Health::Problem),
            (late, false, Health::Problem),
        ] {
            let mut measured = Measured::default();
            measured.add(compared, is_at_end);
            assert_eq!(health(&measured), expected, "{measured:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_stream_is_read_to_its_end_for_a_bounded_time() {
        for (end, expected) in [(1, true), (20, true), (1_000, false)] {
            let (started, mut reads) = (Instant::now(), 0);
            let read = async || {
                reads += 1;
                Ok(reads == end)
            };
            assert_eq!(read_to_end(read).await.ok(), Some(expected), "{end}");
            assert!(started.elapsed() <= MAX_SAMPLE_TIME + READ_INTERVAL, "{end}");
        }
    }

    #[test]
    fn a_lag_shows_in_the_chosen_entities_whether_it_is_long_or_short() {
        let at = Timestamp::from_millis;
        let now = at(1_000_000);
        // An event of another entity each 100 ms.
        let events = || (0..1_000).map(|n| (format!("site#{n}"), now.plus_millis(-100 * n)));
        for lag in [0, 1_000, 30_000, 70_000] {
            let entities =
                chosen(events().map(|(key, at)| (key, Arrivals::from([(1, at)]))).collect());
            assert_eq!(entities.len(), MAX_SAMPLED);
            let is_applied = |(_, at): &(String, Timestamp)| *at < now.plus_millis(-lag);
            let applied = events().filter(is_applied).map(|(key, _)| (key, 1)).collect();
            let compared = compared(&entities, &applied, now);
            let oldest = compared.oldest_seconds.expect("the newest event is not applied") * 1000.0;
            #[expect(clippy::cast_precision_loss, reason = "a time in milliseconds")]
            let missing = lag as f64 - oldest;
            assert!((0.0..=1_000.0).contains(&missing), "{lag}: {compared:?}");
        }
    }

    #[test]
    fn events_after_the_cursor_are_not_applied_yet() {
        let at = Timestamp::from_millis;
        let events = |of: &[(u64, i64)]| of.iter().map(|(n, millis)| (*n, at(*millis))).collect();
        let entities = [
            ("site#1".to_owned(), events(&[(3, 1000), (4, 2000), (5, 3000)])),
            ("site#2".to_owned(), events(&[(1, 2500)])),
            ("site#3".to_owned(), events(&[(7, 500)])),
        ];
        let applied = HashMap::from([("site#1".to_owned(), 3), ("site#3".to_owned(), 7)]);
        let expected = Compared { entities: 3, not_applied: 3, oldest_seconds: Some(8.0) };
        assert_eq!(compared(&entities, &applied, at(10_000)), expected);
    }
}
