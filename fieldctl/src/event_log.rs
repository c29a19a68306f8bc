//! Reads the event log: the rows of the events table.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    time::Duration,
};

use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes};
use contracts::{
    Entity, Event, OnboardingId, OperatorId, SiteId, Timestamp,
    events::{SiteChanged, SiteCreated},
    names,
};
use futures_util::future::try_join_all;
use serde::Deserialize;
use store::{EventRow, SHARDS, type_bucket};

use crate::{
    error::{CliError, Exit, aws, unreadable},
    output,
    stack::Stack,
};

type Item = HashMap<String, AttributeValue>;

/// The age above which an unpublished event is a problem. Normally events are published within a second.
pub const MAX_PUBLISH_DELAY: Duration = Duration::from_mins(1);

/// The maximum number of keys of a `BatchGetItem` call.
const MAX_BATCH_GET: usize = 100;
/// The maximum number of keys of the index `byType` that a command reads.
const MAX_KEYS_BY_TYPE: usize = 10_000;
/// The milliseconds of a day.
const DAY_MILLIS: i64 = 86_400_000;
/// How far the clock of a function may be ahead of this machine's, in milliseconds.
const MAX_CLOCK_SKEW_MILLIS: i64 = 60_000;

/// A period: `from` is inclusive, `to` is exclusive.
#[derive(Clone, Copy, Debug, Default)]
pub struct Period {
    /// `None`: from the first event.
    pub from: Option<Timestamp>,
    /// `None`: to the last event.
    pub to: Option<Timestamp>,
}

impl Period {
    /// Returns both bounds for `BETWEEN`, which includes them: so `to` is a millisecond earlier. As texts, times sort
    /// in chronological order.
    fn bounds(self) -> Result<(String, String), CliError> {
        let from = self.from.map_or("0".to_owned(), |from| from.to_string());
        let to = self.to.map_or("9".to_owned(), |to| to.plus_millis(-1).to_string());
        if from > to {
            return Err(CliError::usage("--from must be before --to"));
        }
        Ok((from, to))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        self.to.map_or(Ok(()), |to| write!(f, " until {to}"))
    }
}

/// An event as an index has it: its key and its time.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct IndexedEvent {
    /// The entity's key in the log.
    pub entity: String,
    /// The event's position in the entity's sequence.
    pub sequence: u64,
    /// When the event happened.
    #[serde(rename = "occurredAt")]
    pub at: Timestamp,
}

impl IndexedEvent {
    fn key(&self) -> Item {
        Item::from([
            ("entity".to_owned(), text(&self.entity)),
            ("sequence".to_owned(), AttributeValue::N(self.sequence.to_string())),
        ])
    }
}

fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

impl Stack {
    /// Returns the last `limit` events of an entity (`type#id`), in chronological order.
    pub async fn events_of_entity(
        &self,
        entity: &str,
        period: Period,
        limit: usize,
    ) -> Result<Vec<EventRow>, CliError> {
        let (from, to) = period.bounds()?;
        let query = self
            .dynamodb
            .query()
            .table_name(self.named(names::EVENTS))
            .key_condition_expression("entity = :entity")
            .filter_expression("occurredAt BETWEEN :from AND :to")
            .expression_attribute_values(":entity", text(entity))
            .expression_attribute_values(":from", text(from))
            .expression_attribute_values(":to", text(to))
            .scan_index_forward(false)
            .consistent_read(true);
        let mut items = query.into_paginator().items().send();
        let mut rows = Vec::new();
        while let Some(item) = items.next().await {
            rows.push(row(item.map_err(aws("the event log can't be read"))?)?);
            if rows.len() == limit {
                break;
            }
        }
        rows.reverse();
        Ok(rows)
    }

    /// Returns the name of a site from its newest event that has one: the last `SiteChanged`, or `SiteCreated`.
    pub async fn name_of_site(&self, site: SiteId) -> Result<Option<String>, CliError> {
        let query = self
            .dynamodb
            .query()
            .table_name(self.named(names::EVENTS))
            .key_condition_expression("entity = :entity")
            .filter_expression("#type IN (:created, :changed)")
            .expression_attribute_names("#type", "type")
            .expression_attribute_values(":entity", text(Entity::from(site).to_string()))
            .expression_attribute_values(":created", text(SiteCreated::TYPE))
            .expression_attribute_values(":changed", text(SiteChanged::TYPE))
            .scan_index_forward(false);
        let newest = query.into_paginator().items().send().next().await;
        let newest = newest.transpose().map_err(aws("the event log can't be read"))?;
        let Some(event) = newest.map(row).transpose()? else { return Ok(None) };
        let name = event.envelope().map(|mut envelope| envelope.data["name"].take());
        Ok(name.ok().and_then(|name| name.as_str().map(str::to_owned)))
    }

    /// Returns an operator's last `limit` events of one type since `from`, in chronological order. `to` is exclusive.
    /// `is_own` says whether the type is one of Fieldstation's.
    ///
    /// The index has a partition for each day and shard, so this method reads one day after another, the newest first.
    pub async fn events_of_type(
        &self,
        operator: OperatorId,
        kind: &str,
        is_own: bool,
        (from, to): (Timestamp, Option<Timestamp>),
        limit: usize,
    ) -> Result<Vec<EventRow>, CliError> {
        let mut period = Period { from: Some(from), to };
        period.bounds()?;
        let end = to.unwrap_or_else(|| Timestamp::now().plus_millis(MAX_CLOCK_SKEW_MILLIS));
        let mut found: Vec<IndexedEvent> = Vec::new();
        for day in (day(from)..=day(end)).rev() {
            let day = Timestamp::from_millis(day * DAY_MILLIS);
            let of_shard = async |shard| {
                let bucket = type_bucket(operator, kind, day, shard);
                self.entries("byTypeAndTime", "typeBucket", &bucket, period, limit).await
            };
            found.extend(try_join_all((0..SHARDS).map(of_shard)).await?.into_iter().flatten());
            if found.len() >= limit {
                break;
            }
        }
        found.sort_by(|a, b| (b.at, &b.entity, b.sequence).cmp(&(a.at, &a.entity, a.sequence)));
        found.truncate(limit);
        if found.len() == limit {
            period.from = found.last().map(|oldest| oldest.at);
        }
        let mut rows = self.rows(&found).await?;
        if is_own {
            let known = found.iter().map(|it| (&*it.entity, it.sequence)).collect();
            rows.extend(self.rows_without_bucket(operator, kind, period, limit, &known).await?);
        }
        sort(&mut rows);
        Ok(rows.split_off(rows.len().saturating_sub(limit)))
    }

    /// Returns the events of a type that earlier releases wrote. Their rows have no `typeBucket`, so the index
    /// `byTypeAndTime` does not contain them. `known` are the events that were found in that index.
    ///
    /// Remove this method, its call and [`MAX_KEYS_BY_TYPE`] together with the index `byType`.
    async fn rows_without_bucket(
        &self,
        operator: OperatorId,
        kind: &str,
        period: Period,
        limit: usize,
        known: &HashSet<(&str, u64)>,
    ) -> Result<Vec<EventRow>, CliError> {
        let entries = self.entries("byType", "type", kind, period, MAX_KEYS_BY_TYPE).await;
        let entries = match entries {
            Err(error) if error.message.contains("does not have the specified index") => {
                return Ok(Vec::new());
            }
            entries => entries?,
        };
        if entries.len() == MAX_KEYS_BY_TYPE {
            output::print_notice(
                "there are many events of this type; events of earlier releases may be missing: use a shorter period (--from, --to)",
            );
        }
        let entries: Vec<_> =
            entries.into_iter().filter(|it| !known.contains(&(&*it.entity, it.sequence))).collect();
        let mut found = Vec::new();
        for entries in entries.chunks(MAX_BATCH_GET) {
            let mut rows = self.rows(entries).await?;
            rows.retain(|row| row.type_bucket.is_none() && row.operator_id == operator);
            found.extend(rows);
            if found.len() >= limit {
                break;
            }
        }
        Ok(found)
    }

    /// Returns the last `limit` events of an onboarding, in chronological order.
    pub async fn events_of_onboarding(
        &self,
        onboarding: OnboardingId,
        period: Period,
        limit: usize,
    ) -> Result<Vec<EventRow>, CliError> {
        self.events_of_correlation(&onboarding.to_string(), period, limit).await
    }

    /// Returns the last `limit` events with this key of the index `byCorrelation`, in chronological order.
    pub async fn events_of_correlation(
        &self,
        key: &str,
        period: Period,
        limit: usize,
    ) -> Result<Vec<EventRow>, CliError> {
        let entries = self.entries("byCorrelation", "correlationId", key, period, limit).await?;
        let mut rows = self.rows(&entries).await?;
        sort(&mut rows);
        Ok(rows)
    }

    /// Returns the oldest unpublished event, or `None` if all are published.
    pub async fn oldest_unpublished(&self) -> Result<Option<IndexedEvent>, CliError> {
        let table = self.named(names::EVENTS);
        let oldest_of = async |shard: u8| {
            let query = self
                .dynamodb
                .query()
                .table_name(&table)
                .index_name("unpublished")
                .key_condition_expression("unpublished = :shard")
                .expression_attribute_values(":shard", text(shard.to_string()))
                .limit(1);
            let found = query.send().await.map_err(aws("the event log can't be read"))?;
            let item = found.items.unwrap_or_default().into_iter().next();
            item.map(indexed).transpose()
        };
        let found = try_join_all((0..SHARDS).map(oldest_of)).await?;
        Ok(found.into_iter().flatten().min_by_key(|event| event.at))
    }

    /// Returns the last `limit` events in a partition of an index, the newest first.
    async fn entries(
        &self,
        index: &str,
        attribute: &str,
        value: &str,
        period: Period,
        limit: usize,
    ) -> Result<Vec<IndexedEvent>, CliError> {
        let (from, to) = period.bounds()?;
        let query = self
            .dynamodb
            .query()
            .table_name(self.named(names::EVENTS))
            .index_name(index)
            .key_condition_expression("#of = :of AND occurredAt BETWEEN :from AND :to")
            .expression_attribute_names("#of", attribute)
            .expression_attribute_values(":of", text(value))
            .expression_attribute_values(":from", text(from))
            .expression_attribute_values(":to", text(to))
            .scan_index_forward(false);
        let mut items = query.into_paginator().items().send();
        let mut entries = Vec::new();
        while let Some(item) = items.next().await {
            entries.push(indexed(item.map_err(aws("the event log can't be read"))?)?);
            if entries.len() == limit {
                break;
            }
        }
        Ok(entries)
    }

    /// Reads the rows of these events, in no particular order. An index has only their keys.
    async fn rows(&self, events: &[IndexedEvent]) -> Result<Vec<EventRow>, CliError> {
        let table = self.named(names::EVENTS);
        let mut rows = Vec::with_capacity(events.len());
        for events in events.chunks(MAX_BATCH_GET) {
            let keys = events.iter().map(IndexedEvent::key).collect();
            rows.extend(self.batch_get(&table, keys).await?);
        }
        Ok(rows)
    }

    async fn batch_get(&self, table: &str, mut keys: Vec<Item>) -> Result<Vec<EventRow>, CliError> {
        let mut rows = Vec::with_capacity(keys.len());
        while !keys.is_empty() {
            let request = KeysAndAttributes::builder().set_keys(Some(keys)).build();
            let request =
                request.map_err(|error| CliError::new(Exit::Failed, error.to_string()))?;
            let response =
                self.dynamodb.batch_get_item().request_items(table, request).send().await;
            let response = response.map_err(aws("the event log can't be read"))?;
            for item in response.responses.into_iter().filter_map(|mut tables| tables.remove(table))
            {
                rows.extend(item.into_iter().map(row).collect::<Result<Vec<_>, _>>()?);
            }
            let unprocessed = response.unprocessed_keys.and_then(|mut tables| tables.remove(table));
            keys = unprocessed.map_or_else(Vec::new, |unprocessed| unprocessed.keys);
        }
        Ok(rows)
    }
}

/// Returns the number of the day, in UTC.
fn day(at: Timestamp) -> i64 {
    at.millis().div_euclid(DAY_MILLIS)
}

fn indexed(item: Item) -> Result<IndexedEvent, CliError> {
    serde_dynamo::from_item(item).map_err(|error| unreadable("a row of the events table", &error))
}

fn row(item: Item) -> Result<EventRow, CliError> {
    serde_dynamo::from_item(item).map_err(|error| unreadable("a row of the events table", &error))
}

/// Sorts events by time. Events of the same time are sorted by entity and sequence.
pub fn sort(rows: &mut [EventRow]) {
    rows.sort_by(|a, b| {
        (a.occurred_at, &a.entity, a.sequence).cmp(&(b.occurred_at, &b.entity, b.sequence))
    });
}
