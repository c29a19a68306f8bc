//! Tails the events table's stream to EventBridge.
//!
//! A record that can't be published ever goes, whole and with the reason, to the quarantine queue,
//! and the shard moves on. Other trouble is reported as the batch's lowest failed sequence number:
//! Lambda delivers from there again, and what was published meanwhile is skipped by its mark.

use std::collections::{HashMap, HashSet};

use aws_lambda_events::{
    dynamodb::EventRecord,
    event::streams::{DynamoDbBatchItemFailure, DynamoDbEventResponse},
};
use lambda::{Deadline, Failure};
use quarantine::Quarantine;
use serde::Deserialize;
use serde_json::value::RawValue;
use store::EventRow;

use crate::{
    EventsError,
    publisher::{EventKey, Publisher, Unpublished},
};

/// The quarantine's name of a record that is no event of ours.
const NO_EVENT: &str = "InvalidInput";
/// Its name of an event that EventBridge refuses, whatever the retries.
const REFUSED: &str = "EventRefused";

/// What the step needs.
#[derive(Debug)]
pub struct PublishEvents {
    /// The way to the bus.
    pub publisher: Publisher,
    /// For what can't be published, ever.
    pub quarantine: Quarantine,
}

#[derive(Deserialize)]
struct Batch<'a> {
    #[serde(rename = "Records", borrow)]
    records: Vec<&'a RawValue>,
}

enum Reading {
    /// An event to publish.
    Event(Box<EventRow>),
    /// A mark that was set, a row that expired: not ours to tell.
    Other,
    /// Not what this table holds.
    Broken(String),
}

/// All that is needed of a record that may be broken otherwise.
#[derive(Deserialize)]
struct Position {
    dynamodb: Change,
}

#[derive(Deserialize)]
struct Change {
    #[serde(rename = "SequenceNumber")]
    sequence_number: String,
}

fn read(record: &RawValue) -> Reading {
    let record: EventRecord = match lambda::decode(record.get()) {
        Ok(record) => record,
        Err(error) => return Reading::Broken(error.to_string()),
    };
    if record.event_name != "INSERT" {
        return Reading::Other;
    }
    match serde_dynamo::from_item::<_, EventRow>(record.change.new_image) {
        Ok(row) => match row.envelope() {
            Ok(_) => Reading::Event(Box::new(row)),
            Err(error) => Reading::Broken(format!("detail is no event: {error}")),
        },
        Err(error) => Reading::Broken(format!("the row is no event: {error}")),
    }
}

impl PublishEvents {
    /// Publishes a batch; answers with the first record that has to come again.
    pub async fn handle(
        &self,
        payload: &RawValue,
        deadline: Deadline,
    ) -> Result<DynamoDbEventResponse, Failure> {
        let batch: Batch = lambda::decode(payload.get())?;
        let mut rows = Vec::new();
        let mut record_of: HashMap<EventKey, usize> = HashMap::new();
        let mut failed: HashSet<usize> = HashSet::new();
        for (index, record) in batch.records.iter().enumerate() {
            match read(record) {
                Reading::Event(row) => {
                    record_of.insert((row.entity.clone(), row.sequence), index);
                    rows.push(*row);
                }
                Reading::Other => {}
                Reading::Broken(reason) => {
                    if let Err(reason) = self.quarantine.put(record, NO_EVENT, &reason).await {
                        tracing::error!(%reason, "record failed");
                        failed.insert(index);
                    }
                }
            }
        }
        let rows = self
            .publisher
            .unmarked(rows)
            .await
            .map_err(|error| Failure::of(&EventsError::from(error)))?;
        let unpublished = self.publisher.publish(rows, deadline).await;
        for Unpublished { event, reason, permanent } in unpublished {
            let Some(&index) = record_of.get(&event) else { continue };
            let set_aside = if permanent {
                self.quarantine.put(&batch.records[index], REFUSED, &reason).await
            } else {
                Err(reason)
            };
            if let Err(reason) = set_aside {
                tracing::error!(entity = event.0, sequence = event.1, %reason, "not published");
                failed.insert(index);
            }
        }
        lambda::count_failed(failed.len());
        first_failed(&batch.records, &failed)
    }
}

fn first_failed(
    records: &[&RawValue],
    failed: &HashSet<usize>,
) -> Result<DynamoDbEventResponse, Failure> {
    let mut answer = DynamoDbEventResponse::default();
    if let Some(first) = failed.iter().min() {
        let position: Position = lambda::decode(records[*first].get())?;
        let mut failure = DynamoDbBatchItemFailure::default();
        failure.item_identifier = Some(position.dynamodb.sequence_number);
        answer.batch_item_failures.push(failure);
    }
    Ok(answer)
}
