//! Batches as Lambda delivers them, with a table in memory.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Mutex};

use aws_lambda_events::{kinesis::KinesisEvent, streams::KinesisEventResponse};
use lambda_runtime::Error;
use last_state::{Event, States, handle};
use serde_json::{Value, json};

/// The applied sequences of each entity. Refuses one entity, like a table that is throttled.
#[derive(Default)]
struct Fake {
    applied: Mutex<BTreeMap<String, Vec<u64>>>,
    refused: Option<&'static str>,
}

impl States for Fake {
    async fn apply(&self, entity: &str, event: &Event) -> Result<bool, Error> {
        if self.refused == Some(entity) {
            return Err("throttled".into());
        }
        let mut entities = self.applied.lock().unwrap();
        let applied = entities.entry(entity.to_owned()).or_default();
        let is_new = applied.last().is_none_or(|last| *last < event.metadata.sequence);
        if is_new {
            applied.push(event.metadata.sequence);
        }
        Ok(is_new)
    }
}

/// Base64, as Lambda encodes the data of a record.
fn base64(bytes: &[u8]) -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let groups = bytes.chunks(3).flat_map(|chunk| {
        let bits =
            (0..3).fold(0_u32, |bits, at| (bits << 8) | u32::from(*chunk.get(at).unwrap_or(&0)));
        (0..4).map(move |at| {
            let digit = digits[usize::try_from((bits >> (18 - 6 * at)) & 63).unwrap()];
            if at <= chunk.len() { char::from(digit) } else { '=' }
        })
    });
    groups.collect()
}

fn record(number: u32, entity: &str, data: &str) -> Value {
    json!({
        "eventSource": "aws:kinesis", "eventID": format!("shardId-000000000000:{number}"),
        "kinesis": {
            "kinesisSchemaVersion": "1.0", "partitionKey": entity, "sequenceNumber": number.to_string(),
            "data": base64(data.as_bytes()), "approximateArrivalTimestamp": 1_700_000_000.0,
        },
    })
}

fn event(number: u32, entity: &str, sequence: u64) -> Value {
    let data = json!({
        "metadata": { "eventId": format!("{entity} {sequence}"), "type": "Measured", "sequence": sequence },
        "data": { "value": sequence },
    });
    record(number, entity, &data.to_string())
}

async fn deliver(states: &Fake, records: &[Value]) -> Vec<String> {
    let batch: KinesisEvent = serde_json::from_value(json!({ "Records": records })).unwrap();
    let KinesisEventResponse { batch_item_failures, .. } = handle(batch, states).await;
    batch_item_failures.into_iter().map(|failure| failure.item_identifier.unwrap()).collect()
}

#[tokio::test]
async fn each_event_is_applied_once_and_in_order_although_some_are_repeated() {
    let states = Fake::default();
    let records = [
        event(1, "a", 1),
        event(2, "b", 1),
        event(3, "a", 2),
        event(4, "a", 1),
        event(5, "a", 2),
        event(6, "a", 3),
    ];
    assert_eq!(deliver(&states, &records).await, [""; 0]);
    assert_eq!(deliver(&states, &records).await, [""; 0], "Lambda delivers a batch again");
    let applied = states.applied.lock().unwrap();
    assert_eq!(applied["a"], [1, 2, 3]);
    assert_eq!(applied["b"], [1]);
}

#[tokio::test]
async fn after_a_failed_record_its_entity_waits_and_others_go_on() {
    let mut states = Fake { refused: Some("b"), ..Fake::default() };
    let records = [event(1, "a", 1), event(2, "b", 1), event(3, "a", 2), event(4, "b", 2)];
    assert_eq!(deliver(&states, &records).await, ["2"]);
    assert_eq!(*states.applied.lock().unwrap(), BTreeMap::from([("a".to_owned(), vec![1, 2])]));
    states.refused = None;
    assert_eq!(deliver(&states, &records[1..]).await, [""; 0], "Lambda delivers them again");
    let applied = states.applied.lock().unwrap();
    assert_eq!((&applied["a"], &applied["b"]), (&vec![1, 2], &vec![1, 2]));
}

#[tokio::test]
async fn a_record_that_is_not_an_event_is_reported_and_delays_no_other_entity() {
    let states = Fake::default();
    let records = [record(7, "a", "not JSON"), event(8, "b", 1)];
    assert_eq!(deliver(&states, &records).await, ["7"]);
    assert_eq!(states.applied.lock().unwrap()["b"], [1]);
}
