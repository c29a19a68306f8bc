//! Publishes the new rows of the events table on both outlets: the stream of all events and the bus. The rows come from
//! the table's stream.
//!
//! A record that can never be published is sent to the failure queue of events (`shared/quarantine`), with its whole
//! payload and the reason, and the shard continues. An event that one outlet has and the other one can't take now is
//! left to sweep-events, and the shard continues too. If the batch can't be parsed or the events table can't be read,
//! the invocation fails. After any other failure, the response names the lowest failed sequence number of the batch.
//! Lambda delivers the batch again from there, and events that are marked as published are skipped.

use std::collections::{HashMap, HashSet};

use aws_lambda_events::{dynamodb::EventRecord, event::streams::DynamoDbEventResponse};
use fault::{Fault, InvocationError, ReplayResponse};
use lambda::{Deadline, TableBatch};
use quarantine::Reason;
use serde_json::value::RawValue;

use crate::publisher::{EventKey, PublishRequest, Publisher, TableRecord, Unpublished};

/// The error name in the quarantine for a record that can't be parsed.
const INVALID_RECORD: &str = "InvalidInput";

/// The function publish-events.
#[derive(Debug)]
pub struct PublishEvents {
    /// Publishes the events of the records.
    pub publisher: Publisher,
}

/// A parsed stream record.
enum ParsedRecord<'a> {
    /// A new row.
    Inserted(PublishRequest<'a>),
    /// A change or a deletion of a row. There is nothing to publish.
    Other,
    /// The record can't be parsed, for this reason.
    Invalid(String),
}

fn parse(json: &RawValue) -> ParsedRecord<'_> {
    let record: EventRecord = match fault::decode(json.get()) {
        Ok(record) => record,
        Err(error) => return ParsedRecord::Invalid(error.to_string()),
    };
    if record.event_name != "INSERT" {
        return ParsedRecord::Other;
    }
    match EventKey::from_item(&record.change.keys.into()) {
        Some(key) => {
            let image = record.change.new_image.into();
            let record = Some(TableRecord { json, image, replay: false });
            ParsedRecord::Inserted(PublishRequest { key, record })
        }
        None => ParsedRecord::Invalid("the record has no event key in dynamodb.Keys".to_owned()),
    }
}

impl PublishEvents {
    /// Publishes a batch. The response names the first record that Lambda must deliver again.
    ///
    /// # Errors
    /// Fails if the batch can't be parsed or the events table can't be reached.
    pub async fn handle(
        &self,
        payload: &RawValue,
        deadline: Deadline,
    ) -> Result<DynamoDbEventResponse, InvocationError> {
        let batch = TableBatch::parse(payload)?;
        let mut requests = Vec::new();
        let mut index_of: HashMap<EventKey, usize> = HashMap::new();
        let mut failed: HashSet<usize> = HashSet::new();
        for (index, record) in batch.records.iter().enumerate() {
            match parse(record) {
                ParsedRecord::Inserted(event) => {
                    index_of.entry(event.key.clone()).or_insert(index);
                    requests.push(event);
                }
                ParsedRecord::Other => {}
                ParsedRecord::Invalid(reason) => {
                    let quarantine = &self.publisher.quarantine;
                    let quarantine_reason = Reason::new(INVALID_RECORD, &reason);
                    if let Err(reason) = quarantine.put(record, quarantine_reason).await {
                        tracing::error!(%reason, "record failed");
                        failed.insert(index);
                    }
                }
            }
        }
        let unpublished = self
            .publisher
            .publish(requests, deadline)
            .await
            .map_err(|error| InvocationError::from_fault(&error))?;
        let (left, unpublished): (Vec<_>, Vec<_>) =
            unpublished.into_iter().partition(|unpublished| unpublished.is_left_to_sweep);
        if let Some(Unpublished { reason, .. }) = left.first() {
            let events = left.len();
            tracing::error!(events, %reason, "events are on one outlet only, and left to sweep-events");
        }
        for Unpublished { event, reason, .. } in unpublished {
            let EventKey { entity, sequence } = &event;
            tracing::error!(entity, sequence, %reason, "event not published");
            failed.extend(index_of.get(&event));
        }
        batch.response(failed)
    }

    /// Publishes one record that an engineer on call replays.
    ///
    /// An event that is refused again is not quarantined again; the result has the reason.
    pub async fn replay(&self, record: &RawValue, deadline: Deadline) -> ReplayResponse {
        let mut request = match parse(record) {
            ParsedRecord::Inserted(request) => request,
            ParsedRecord::Other => {
                return ReplayResponse::nothing_to_do(
                    "the record is a change or a deletion of a row, so there is nothing to publish",
                );
            }
            ParsedRecord::Invalid(reason) => return ReplayResponse::failed(INVALID_RECORD, reason),
        };
        if let Some(record) = &mut request.record {
            record.replay = true;
        }
        let key = request.key.clone();
        match self.publisher.publish(vec![request], deadline).await {
            Ok(unpublished) => match unpublished.into_iter().find(|it| it.event == key) {
                Some(Unpublished { error, reason, .. }) => ReplayResponse::failed(error, reason),
                None => ReplayResponse::Done,
            },
            Err(error) => ReplayResponse::failed(error.kind().name(), error.to_string()),
        }
    }
}
