//! Keeps the last state of each entity, from the stream `<environment>-events`.
//!
//! What the stream promises: the first occurrences of an entity's events arrive in order, and an event may arrive again
//! later. If Kinesis swapped two events, the older one would be skipped. So one condition is enough: an event is
//! applied only if its sequence is above the sequence of the stored state. A repeated event has the same event id and
//! the same sequence as before, so the condition also removes repeats.

use std::collections::HashSet;

use aws_lambda_events::{
    kinesis::{KinesisEvent, KinesisEventRecord},
    streams::KinesisEventResponse,
};
use aws_sdk_dynamodb::{Client, types::AttributeValue};
use lambda_runtime::Error;
use serde::Deserialize;
use serde_json::Value;

/// A record's data. It has more fields; this consumer ignores them.
#[derive(Debug, Deserialize)]
pub struct Event {
    /// The metadata.
    pub metadata: Metadata,
    /// The payload. Its schema depends on the type and the version.
    pub data: Value,
}

/// The metadata of an event.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The same whenever the event is delivered.
    pub event_id: String,
    /// The event type.
    #[serde(rename = "type")]
    pub kind: String,
    /// The position among the events of the entity: 1, 2, 3 and so on.
    pub sequence: u64,
}

/// The stored states.
pub trait States {
    /// Stores the state after this event, unless the stored state is as new or newer. Returns whether it was stored.
    fn apply(
        &self,
        entity: &str,
        event: &Event,
    ) -> impl Future<Output = Result<bool, Error>> + Send;
}

/// Applies the records of a batch in order.
///
/// After a failed record, the later records of its entity are not applied. Records of other entities are. Lambda
/// delivers all records again from the first failed one. After the last attempt, Lambda puts the records into the
/// failure bucket and continues with the next batch.
pub async fn handle(batch: KinesisEvent, states: &impl States) -> KinesisEventResponse {
    let mut response = KinesisEventResponse::default();
    let mut waiting = HashSet::new();
    for record in batch.records {
        if waiting.contains(&record.kinesis.partition_key) {
            continue;
        }
        if let Err(error) = apply(&record, states).await {
            let number = record.kinesis.sequence_number;
            eprintln!("record {number} failed: {error}");
            response.add_failure(number);
            waiting.insert(record.kinesis.partition_key);
        }
    }
    response
}

async fn apply(record: &KinesisEventRecord, states: &impl States) -> Result<(), Error> {
    let event: Event = serde_json::from_slice(&record.kinesis.data)?;
    // The partition key identifies the entity. It includes the operator if two operators could use the same id.
    let entity = &record.kinesis.partition_key;
    if !states.apply(entity, &event).await? {
        eprintln!("{} was skipped, because {entity} is as new or newer", event.metadata.event_id);
    }
    Ok(())
}

/// The states in a DynamoDB table with the partition key `entity`.
#[derive(Debug)]
pub struct Table {
    /// The client.
    pub client: Client,
    /// The table's name.
    pub name: String,
}

impl States for Table {
    async fn apply(&self, entity: &str, event: &Event) -> Result<bool, Error> {
        let Event { metadata, data } = event;
        let result = self
            .client
            .update_item()
            .table_name(&self.name)
            .key("entity", AttributeValue::S(entity.to_owned()))
            .update_expression(
                "SET lastSequence = :sequence, lastEventId = :id, lastType = :type, lastData = :data ADD applied :one",
            )
            .condition_expression("attribute_not_exists(entity) OR lastSequence < :sequence")
            .expression_attribute_values(
                ":sequence",
                AttributeValue::N(metadata.sequence.to_string()),
            )
            .expression_attribute_values(":id", AttributeValue::S(metadata.event_id.clone()))
            .expression_attribute_values(":type", AttributeValue::S(metadata.kind.clone()))
            .expression_attribute_values(":data", AttributeValue::S(data.to_string()))
            .expression_attribute_values(":one", AttributeValue::N("1".to_owned()))
            .send()
            .await
            .map_err(aws_sdk_dynamodb::Error::from);
        match result {
            Ok(_) => Ok(true),
            Err(aws_sdk_dynamodb::Error::ConditionalCheckFailedException(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
