//! Reads the event log: the rows of the events table.

use std::{collections::HashMap, fmt, time::Duration};

use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes};
use contracts::{Entity, OnboardingId, SiteId, Timestamp, names};
use futures_util::future::try_join_all;
use serde::Deserialize;
use store::{EventRow, SHARDS};

use crate::{
    error::{CliError, Exit, aws, unreadable},
    stack::Stack,
};

type Item = HashMap<String, AttributeValue>;

/// The maximum age of an unpublished event. Normally events are published within a second.
pub const MAX_PUBLISH_DELAY: Duration = Duration::from_mins(1);

/// The maximum number of keys of a `BatchGetItem` call.
const MAX_BATCH_GET: usize = 100;

/// A period: `from` is inclusive, `to` is exclusive.
#[derive(Clone, Copy, Debug, Default)]
pub struct Period {
    /// `None`: from the first event.
    pub from: Option<Timestamp>,
    /// `None`: to the last event.
    pub to: Option<Timestamp>,
}

impl Period {
    /// Returns both bounds for `BETWEEN`, which includes them. As texts, times sort in chronological order.
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

/// An event that is not published yet.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct UnpublishedEvent {
    /// The entity, as `type#id`.
    pub entity: String,
    /// The event's position in the entity's sequence.
    pub sequence: u64,
    /// When the event happened.
    #[serde(rename = "occurredAt")]
    pub at: Timestamp,
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

    /// Returns the name of a site from its first event, `SiteCreated`.
    pub async fn name_of_site(&self, site: SiteId) -> Result<Option<String>, CliError> {
        let response = self
            .dynamodb
            .get_item()
            .table_name(self.named(names::EVENTS))
            .key("entity", text(Entity::from(site).to_string()))
            .key("sequence", AttributeValue::N("1".to_owned()))
            .send()
            .await
            .map_err(aws("the event log can't be read"))?;
        let Some(event) = response.item.map(row).transpose()? else { return Ok(None) };
        let name = event.envelope().map(|mut envelope| envelope.data["name"].take());
        Ok(name.ok().and_then(|name| name.as_str().map(str::to_owned)))
    }

    /// Returns the last `limit` events of a type, in chronological order.
    pub async fn events_of_type(
        &self,
        kind: &str,
        period: Period,
        limit: usize,
    ) -> Result<Vec<EventRow>, CliError> {
        self.query_index("byType", "type", kind, period, limit).await
    }

    /// Returns the last `limit` events of an onboarding, in chronological order.
    pub async fn events_of_onboarding(
        &self,
        onboarding: OnboardingId,
        period: Period,
        limit: usize,
    ) -> Result<Vec<EventRow>, CliError> {
        let id = onboarding.to_string();
        self.query_index("byCorrelation", "correlationId", &id, period, limit).await
    }

    /// Returns the oldest unpublished event, or `None` if all are published.
    pub async fn oldest_unpublished(&self) -> Result<Option<UnpublishedEvent>, CliError> {
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
            let event: Option<UnpublishedEvent> =
                item.map(serde_dynamo::from_item).transpose().map_err(
                    |error: serde_dynamo::Error| unreadable("a row of the events table", &error),
                )?;
            Ok::<_, CliError>(event)
        };
        let found = try_join_all((0..SHARDS).map(oldest_of)).await?;
        Ok(found.into_iter().flatten().min_by_key(|event| event.at))
    }

    /// Finds events by an index. The indexes hold only keys, so the rows are read by their keys.
    async fn query_index(
        &self,
        index: &str,
        attribute: &str,
        value: &str,
        period: Period,
        limit: usize,
    ) -> Result<Vec<EventRow>, CliError> {
        let table = self.named(names::EVENTS);
        let (from, to) = period.bounds()?;
        let query = self
            .dynamodb
            .query()
            .table_name(&table)
            .index_name(index)
            .key_condition_expression("#of = :of AND occurredAt BETWEEN :from AND :to")
            .expression_attribute_names("#of", attribute)
            .expression_attribute_values(":of", text(value))
            .expression_attribute_values(":from", text(from))
            .expression_attribute_values(":to", text(to))
            .scan_index_forward(false);
        let mut items = query.into_paginator().items().send();
        let mut keys: Vec<Item> = Vec::new();
        while let Some(item) = items.next().await {
            let mut item = item.map_err(aws("the event log can't be read"))?;
            item.retain(|name, _| name == "entity" || name == "sequence");
            keys.push(item);
            if keys.len() == limit {
                break;
            }
        }
        let mut rows = Vec::with_capacity(keys.len());
        for keys in keys.chunks(MAX_BATCH_GET) {
            rows.extend(self.batch_get(&table, keys.to_vec()).await?);
        }
        sort(&mut rows);
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

fn row(item: Item) -> Result<EventRow, CliError> {
    serde_dynamo::from_item(item).map_err(|error| unreadable("a row of the events table", &error))
}

/// Sorts events by time. Events of the same time are sorted by entity and sequence.
pub fn sort(rows: &mut [EventRow]) {
    rows.sort_by(|a, b| {
        (a.occurred_at, &a.entity, a.sequence).cmp(&(b.occurred_at, &b.entity, b.sequence))
    });
}
