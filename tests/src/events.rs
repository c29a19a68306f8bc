//! Events that other systems append, and the stream of all events.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_kinesis::types::ShardIteratorType;
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

/// A reader of the stream of all events.
#[derive(Debug)]
pub struct EventStream {
    iterators: BTreeMap<String, String>,
}

impl EventStream {
    /// Starts at the oldest record of each shard.
    pub async fn from_the_beginning(stack: &Stack) -> Result<Self> {
        Self::open(stack, ShardIteratorType::TrimHorizon).await
    }

    /// Starts at the end of each shard.
    pub async fn from_now(stack: &Stack) -> Result<Self> {
        Self::open(stack, ShardIteratorType::Latest).await
    }

    async fn open(stack: &Stack, start: ShardIteratorType) -> Result<Self> {
        let name = stack.named(names::EVENTS);
        let shards = stack.kinesis.list_shards().stream_name(&name).send().await?;
        let mut iterators = BTreeMap::new();
        for shard in shards.shards() {
            let iterator = stack
                .kinesis
                .get_shard_iterator()
                .stream_name(&name)
                .shard_id(shard.shard_id())
                .shard_iterator_type(start.clone())
                .send()
                .await?;
            let iterator = iterator.shard_iterator.context("no iterator")?;
            iterators.insert(shard.shard_id().to_owned(), iterator);
        }
        ensure!(!iterators.is_empty(), "the stream {name} has no shards");
        Ok(Self { iterators })
    }

    /// Reads all records since the last call. Returns the events' details in the order of each shard.
    pub async fn take(&mut self, stack: &Stack) -> Result<Vec<Value>> {
        let mut details = Vec::new();
        for iterator in self.iterators.values_mut() {
            loop {
                let response =
                    stack.kinesis.get_records().shard_iterator(&*iterator).send().await?;
                for record in response.records() {
                    let detail: Value = serde_json::from_slice(record.data().as_ref())
                        .context("a record of the stream is not JSON")?;
                    details.push(detail);
                }
                if let Some(next) = response.next_shard_iterator {
                    *iterator = next;
                }
                if response.records.is_empty() {
                    break;
                }
            }
        }
        Ok(details)
    }
}
