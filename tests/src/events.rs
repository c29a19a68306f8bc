//! Events that other systems append, and the stream of all events.

use std::{collections::BTreeMap, time::SystemTime};

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_kinesis::{primitives::DateTime, types::ShardIteratorType};
use contracts::names;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    Stack,
    api::{Call, Response},
};

/// The response to an appended event.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Appended {
    /// The event's id.
    pub event_id: String,
    /// The event's position among the entity's events.
    pub sequence: u64,
}

impl Appended {
    /// Reads a response with the status 201.
    pub fn from_response(response: &Response) -> Result<Self> {
        ensure!(response.status == 201, "the event was not appended: {response}");
        let event_id = response.body["eventId"].as_str();
        let sequence = response.body["sequence"].as_u64();
        match (event_id, sequence) {
            (Some(event_id), Some(sequence)) => {
                Ok(Self { event_id: event_id.to_owned(), sequence })
            }
            _ => bail!("the response has no eventId and sequence: {response}"),
        }
    }
}

/// Returns a CloudEvent. `entity` is `<type>/<id>`.
#[must_use]
pub fn cloud_event(source: &str, id: &str, kind: &str, entity: &str, data: &Value) -> Value {
    json!({
        "specversion": "1.0", "id": id, "source": source, "type": kind, "subject": entity, "data": data,
    })
}

/// Returns the call that appends an event.
#[must_use]
pub fn append(event: &Value) -> Call {
    Call::new(Method::POST, "/events").text(event.to_string())
}

/// Returns an entity's `<type>/<id>` from an event's detail.
#[must_use]
pub fn entity(detail: &Value) -> String {
    let entity = &detail["metadata"]["entity"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text(&entity["type"]), text(&entity["id"]))
}

/// Returns the position of an event among its entity's events.
#[must_use]
pub fn sequence(detail: &Value) -> u64 {
    detail["metadata"]["sequence"].as_u64().unwrap_or_default()
}

/// A reader of the stream of all events. It keeps positions and no iterators, because an iterator expires after five
/// minutes without a read.
#[derive(Debug)]
pub struct EventStream {
    /// When the reader was opened. `None` starts at the oldest record.
    since: Option<DateTime>,
    /// The sequence number of the last record that was read, by shard.
    last_read: BTreeMap<String, Option<String>>,
}

impl EventStream {
    /// Starts at the oldest record of each shard.
    pub async fn from_the_beginning(stack: &Stack) -> Result<Self> {
        Self::open(stack, None).await
    }

    /// Starts with the records that arrive from now on.
    pub async fn from_now(stack: &Stack) -> Result<Self> {
        Self::open(stack, Some(DateTime::from(SystemTime::now()))).await
    }

    async fn open(stack: &Stack, since: Option<DateTime>) -> Result<Self> {
        let name = stack.named(names::EVENTS);
        let shards = stack.kinesis.list_shards().stream_name(&name).send().await?;
        let last_read: BTreeMap<_, _> =
            shards.shards().iter().map(|shard| (shard.shard_id().to_owned(), None)).collect();
        ensure!(!last_read.is_empty(), "the stream {name} has no shards");
        Ok(Self { since, last_read })
    }

    async fn iterator(
        &self,
        stack: &Stack,
        shard: &str,
        last_read: Option<&String>,
    ) -> Result<String> {
        let call = stack
            .kinesis
            .get_shard_iterator()
            .stream_name(stack.named(names::EVENTS))
            .shard_id(shard);
        let call = match (last_read, self.since) {
            (Some(number), _) => call
                .shard_iterator_type(ShardIteratorType::AfterSequenceNumber)
                .starting_sequence_number(number),
            (None, Some(since)) => {
                call.shard_iterator_type(ShardIteratorType::AtTimestamp).timestamp(since)
            }
            (None, None) => call.shard_iterator_type(ShardIteratorType::TrimHorizon),
        };
        call.send().await?.shard_iterator.context("no iterator")
    }

    /// Reads all records since the last call. Returns the events' details in the order of each shard.
    pub async fn take(&mut self, stack: &Stack) -> Result<Vec<Value>> {
        let mut details = Vec::new();
        for (shard, mut last_read) in self.last_read.clone() {
            let mut iterator = self.iterator(stack, &shard, last_read.as_ref()).await?;
            loop {
                let response = stack.kinesis.get_records().shard_iterator(iterator).send().await?;
                for record in response.records() {
                    let detail: Value = serde_json::from_slice(record.data().as_ref())
                        .context("a record of the stream is not JSON")?;
                    details.push(detail);
                    last_read = Some(record.sequence_number().to_owned());
                }
                match response.next_shard_iterator {
                    Some(next) if !response.records.is_empty() => iterator = next,
                    _ => break,
                }
            }
            self.last_read.insert(shard, last_read);
        }
        Ok(details)
    }
}
