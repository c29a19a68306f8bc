//! The contract of the mode `latest` holds for `consumer::latest`, and finds the defects of other projections.

use aws_sdk_dynamodb::types::AttributeValue;
use consumer::latest;
use contracts::{OnboardingId, Timestamp};
use lambda::Step;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{Key, StoreError, Table, Transaction};
use testkit::{
    cloud::Cloud,
    consuming::{LatestConsumer, check_latest},
    dynamo::{EVENTS, INVENTORY},
};

/// An event, and the row that it replaces.
#[derive(Deserialize, Serialize)]
struct Change {
    text: String,
    sequence: u64,
}

/// How a projection writes the row.
#[derive(Clone, Copy)]
enum Writing {
    /// As the library does.
    Latest,
    /// As the library does, after reading the log.
    LatestAfterLog,
    /// Without comparing sequences.
    Always,
    /// Compares sequences before the write. The write has no condition.
    ComparedBefore,
    /// Only if there is no row.
    Once,
}

struct Projection {
    table: Table,
    log: Table,
    writing: Writing,
}

impl Projection {
    async fn put(&self, key: &Key, change: &Change) -> Result<(), StoreError> {
        let values = [
            ("text", AttributeValue::S(change.text.clone())),
            ("sequence", AttributeValue::N(change.sequence.to_string())),
        ];
        let set = "SET #text = :text, #sequence = :sequence";
        let update = Transaction::on(&self.table).update(&self.table, key, set, None, values);
        update.commit().await.map(drop)
    }
}

impl Step for Projection {
    type Command = Change;
    type Reply = ();
    type Error = StoreError;

    fn correlation(_: &Change) -> Option<OnboardingId> {
        None
    }

    async fn run(&self, change: Change, _: Timestamp) -> Result<(), StoreError> {
        let key = Key::id("projected");
        match self.writing {
            Writing::Latest => {}
            Writing::LatestAfterLog => {
                let events = self.log.query("entity = :entity").text("entity", "site#1");
                events.all().await?;
            }
            Writing::Always => return self.put(&key, &change).await,
            Writing::ComparedBefore => {
                let row: Option<Change> = self.table.get(&key).await?;
                if row.is_none_or(|row| row.sequence < change.sequence) {
                    self.put(&key, &change).await?;
                }
                return Ok(());
            }
            Writing::Once => {
                let create = Transaction::on(&self.table).create(&self.table, &key, &change);
                return create.commit().await.map(drop);
            }
        }
        latest::project(&self.table, &key, &change, change.sequence).await.map(drop)
    }
}

impl LatestConsumer for Writing {
    type Function = Projection;

    fn start(&self, cloud: &Cloud) -> Projection {
        Projection { table: cloud.table(INVENTORY), log: cloud.table(EVENTS), writing: *self }
    }

    async fn prepare(&self, _: &Cloud) {}

    fn histories(&self) -> Vec<Vec<Value>> {
        vec![(1..=3).map(|n| json!({ "text": format!("event {n}"), "sequence": n })).collect()]
    }

    fn rows(&self, cloud: &Cloud) -> Vec<Value> {
        cloud.rows(INVENTORY)
    }
}

#[test]
fn the_library_follows_the_contract() {
    check_latest(&Writing::Latest);
}

#[test]
#[should_panic(expected = "an older or a repeated event writes")]
fn a_projection_that_compares_no_sequences_is_found() {
    check_latest(&Writing::Always);
}

#[test]
#[should_panic(expected = "at once")]
fn a_projection_whose_write_has_no_condition_is_found() {
    check_latest(&Writing::ComparedBefore);
}

#[test]
#[should_panic(expected = "the event changes nothing")]
fn a_projection_that_keeps_the_first_event_is_found() {
    check_latest(&Writing::Once);
}

#[test]
#[should_panic(expected = "the log is read")]
fn a_projection_that_reads_the_log_is_found() {
    check_latest(&Writing::LatestAfterLog);
}
