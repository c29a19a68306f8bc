//! The outbox's way to EventBridge: in order per entity, nothing lost, nothing blocked for ever.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use contracts::{
    Entity, Timestamp,
    events::{AlertingConfigured, SiteActivated},
};
use events::{publish_events::PublishEvents, publisher::Publisher, sweep_events::SweepEvents};
use lambda::{Deadline, ErrorKind, Step};
use quarantine::Quarantine;
use serde_json::{Value, json, value::to_raw_value};
use store::{Commit, EventRow, NewEvent, Transaction};
use testkit::{
    Dynamo,
    dynamo::EVENTS,
    http::{Call, Stub},
    sample::{self, noon, saga},
};

/// The events table, a bus that refuses what the test says, and a quarantine queue.
struct World {
    dynamo: Dynamo,
    bus: Stub,
    queue: Stub,
}

/// An event by its site's name and its sequence.
type Sent = (String, u64);

impl World {
    /// `refusal` gives the error code for an event, when it is tried for the n-th time (from 1).
    async fn start(refusal: fn(&str, u64, usize) -> Option<&'static str>) -> Self {
        let tries = std::sync::Mutex::new(BTreeMap::<Sent, usize>::new());
        let answer = move |call: &Call| {
            let mut tries = tries.lock().expect("no panic in the bus");
            let answers: Vec<_> = entries(call)
                .into_iter()
                .map(|sent| {
                    let attempts = tries.entry(sent.clone()).or_default();
                    *attempts += 1;
                    match refusal(&sent.0, sent.1, *attempts) {
                        Some(code) => json!({ "ErrorCode": code, "ErrorMessage": "no" }),
                        None => json!({ "EventId": "1" }),
                    }
                })
                .collect();
            let failed = answers.iter().filter(|answer| answer.get("ErrorCode").is_some()).count();
            (200, json!({ "FailedEntryCount": failed, "Entries": answers }))
        };
        Self {
            dynamo: Dynamo::start().await,
            bus: Stub::start(answer).await,
            queue: Stub::start(|_| (200, json!({ "MessageId": "1" }))).await,
        }
    }

    fn publisher(&self) -> Publisher {
        Publisher {
            events: self.dynamo.table(EVENTS),
            bus: aws_sdk_eventbridge::Client::new(&self.bus.config()),
            bus_name: "fieldstation".to_owned(),
        }
    }

    fn publish_events(&self) -> PublishEvents {
        PublishEvents {
            publisher: self.publisher(),
            quarantine: Quarantine {
                queues: aws_sdk_sqs::Client::new(&self.queue.config()),
                url: format!("{}/111122223333/quarantine", self.queue.url()),
                source: "publish-events",
            },
        }
    }

    /// Commits a site's event at that time; gives its record in the stream.
    async fn append(&self, site: &str, sequence: u64, at: Timestamp) -> Value {
        let saga = saga(site);
        let data = SiteActivated { site_id: saga.site_id };
        let event = NewEvent::of(saga, saga.site_id, sequence, at, data);
        let row = event.clone().row().expect("a row");
        let table = self.dynamo.table(EVENTS);
        let commit = Transaction::on(&table).event(&self.dynamo.outbox(), event).commit().await;
        assert!(matches!(commit, Ok(Commit::Done)), "{commit:?}");
        record(&row)
    }

    /// Hands a batch to publish-events; gives the sequence number that it reports as failed.
    async fn publish(&self, records: &[Value]) -> Option<String> {
        self.publish_within(Duration::from_secs(10), records).await
    }

    async fn publish_within(&self, time: Duration, records: &[Value]) -> Option<String> {
        let payload = to_raw_value(&json!({ "Records": records })).expect("JSON");
        let answer = self.publish_events().handle(&payload, Deadline::after(time)).await;
        let mut failures = answer.expect("an answer").batch_item_failures;
        assert!(failures.len() < 2, "Lambda takes the lowest, so more only mislead");
        failures.pop().map(|failure| failure.item_identifier.expect("a sequence number"))
    }

    async fn sweep(&self, now: Timestamp) -> Result<Value, ErrorKind> {
        let step = SweepEvents { publisher: self.publisher(), time: Duration::from_secs(10) };
        let command = lambda::decode(&sample::event("sweep-events").to_string()).expect("an event");
        match step.run(command, now).await {
            Ok(reply) => Ok(json!(reply)),
            Err(error) => Err(lambda::Fault::kind(&error)),
        }
    }

    /// What was sent, call by call, since it was last asked.
    fn sent(&self) -> Vec<Vec<Sent>> {
        self.bus.take_calls().iter().map(entries).collect()
    }

    /// Which events of a site are marked as published.
    async fn published(&self, site: &str) -> Vec<u64> {
        let rows = self.dynamo.events(saga(site).site_id).await;
        for row in &rows {
            assert_ne!(row.published_at.is_some(), row.unpublished.is_some(), "{row:?}");
        }
        rows.iter().filter(|row| row.published_at.is_some()).map(|row| row.sequence).collect()
    }
}

/// The events of a PutEvents call, the site by its name.
fn entries(call: &Call) -> Vec<Sent> {
    let names: BTreeMap<String, &str> =
        ["a", "b", "c"].iter().map(|name| (saga(name).site_id.to_string(), *name)).collect();
    let entries = call.json()["Entries"].take();
    let entries = entries.as_array().expect("entries").iter().map(|entry| {
        let detail: Value =
            serde_json::from_str(entry["Detail"].as_str().expect("text")).expect("JSON");
        let site = detail["data"]["siteId"].as_str().expect("a site");
        let name = names.get(site).copied().unwrap_or(site);
        (name.to_owned(), detail["metadata"]["sequence"].as_u64().expect("a sequence"))
    });
    entries.collect()
}

fn sent(site: &str, sequence: u64) -> Sent {
    (site.to_owned(), sequence)
}

/// A row as the stream shows it; its number in the shard is made of site and sequence.
fn record(row: &EventRow) -> Value {
    let row = json!(row);
    let image: serde_json::Map<_, _> = row
        .as_object()
        .expect("a row")
        .iter()
        .map(|(name, value)| {
            let typed = match value {
                Value::Number(number) => json!({ "N": number.to_string() }),
                text => json!({ "S": text }),
            };
            (name.clone(), typed)
        })
        .collect();
    let mut record = sample::event("publish-events")["Records"][0].take();
    record["dynamodb"]["NewImage"] = image.into();
    record["dynamodb"]["SequenceNumber"] = number(row["sequence"].as_u64().unwrap_or(0)).into();
    record
}

fn number(sequence: u64) -> String {
    format!("{}", 1000 + sequence)
}

fn never(_: &str, _: u64, _: usize) -> Option<&'static str> {
    None
}

#[tokio::test]
async fn an_entitys_events_go_one_by_one_and_entities_side_by_side() {
    let world = World::start(never).await;
    let batch = [
        world.append("a", 1, noon(0)).await,
        world.append("b", 1, noon(0)).await,
        world.append("a", 2, noon(0)).await,
        world.append("a", 3, noon(0)).await,
    ];
    assert_eq!(world.publish(&batch).await, None);
    let calls = world.bus.take_calls();
    let order: Vec<_> = calls.iter().map(entries).collect();
    assert_eq!(order, [vec![sent("a", 1), sent("b", 1)], vec![sent("a", 2)], vec![sent("a", 3)]]);
    let entry = &calls[0].json()["Entries"][0];
    assert_eq!(entry["EventBusName"], "fieldstation");
    assert_eq!(entry["Source"], "fieldstation.sites");
    assert_eq!(entry["DetailType"], "SiteActivated");
    let log = world.dynamo.events(saga("a").site_id).await;
    assert_eq!(entry["Detail"], log[0].detail, "what was committed is what is sent");
    assert_eq!(world.published("a").await, [1, 2, 3]);
    assert_eq!(world.published("b").await, [1]);
}

#[tokio::test]
async fn what_is_published_already_is_not_sent_again() {
    let world = World::start(never).await;
    let batch = [world.append("a", 1, noon(0)).await, world.append("a", 2, noon(0)).await];
    assert_eq!(world.publish(&batch[..1]).await, None);
    assert_eq!(world.sent(), [[sent("a", 1)]]);
    assert_eq!(world.publish(&batch).await, None);
    assert_eq!(world.sent(), [[sent("a", 2)]]);
    // The same record twice in a batch is one event.
    let more = world.append("a", 3, noon(0)).await;
    assert_eq!(world.publish(&[more.clone(), more]).await, None);
    assert_eq!(world.sent(), [[sent("a", 3)]]);
}

#[tokio::test]
async fn a_failed_entry_is_sent_again_before_what_is_behind_it() {
    // The answer is 200: only FailedEntryCount and the entries tell.
    let world = World::start(|site, sequence, tried| {
        (site == "a" && sequence == 1 && tried < 3).then_some("ThrottlingException")
    })
    .await;
    let batch = [
        world.append("a", 1, noon(0)).await,
        world.append("a", 2, noon(0)).await,
        world.append("b", 1, noon(0)).await,
    ];
    let begun = Instant::now();
    assert_eq!(world.publish(&batch).await, None);
    assert!(begun.elapsed() >= Duration::from_millis(300), "the pauses grow");
    let all: Vec<_> = world.sent().concat();
    let of_a: Vec<_> = all.iter().filter(|sent| sent.0 == "a").map(|sent| sent.1).collect();
    assert_eq!(of_a, [1, 1, 1, 2]);
    assert_eq!(all.iter().filter(|sent| sent.0 == "b").count(), 1);
    assert_eq!(world.published("a").await, [1, 2]);
}

#[tokio::test]
async fn lasting_trouble_stops_its_entity_alone_and_the_lowest_number_is_reported() {
    let world = World::start(|site, sequence, _| {
        (site == "a" && sequence == 2).then_some("InternalFailure")
    })
    .await;
    let batch = [
        world.append("a", 1, noon(0)).await,
        world.append("b", 1, noon(0)).await,
        world.append("a", 2, noon(0)).await,
        world.append("a", 3, noon(0)).await,
        world.append("b", 2, noon(0)).await,
    ];
    assert_eq!(world.publish(&batch).await, Some(number(2)));
    assert_eq!(world.published("a").await, [1], "the third must not overtake the second");
    assert_eq!(world.published("b").await, [1, 2]);
    assert!(!world.sent().concat().contains(&sent("a", 3)));
    assert!(world.queue.take_calls().is_empty());
}

#[tokio::test]
async fn what_can_never_be_published_goes_to_the_quarantine_and_the_shard_moves_on() {
    let world = World::start(|site, sequence, _| {
        (site == "a" && sequence == 1).then_some("MalformedDetail")
    })
    .await;
    let batch = [world.append("a", 1, noon(0)).await, world.append("b", 1, noon(0)).await];
    assert_eq!(world.publish(&batch).await, None);
    assert_eq!(world.published("b").await, [1]);
    let calls = world.queue.take_calls();
    assert_eq!(calls[0].operation(), "SendMessage");
    let message = calls[0].json();
    assert!(message["QueueUrl"].as_str().expect("a URL").ends_with("/quarantine"));
    let body: Value =
        serde_json::from_str(message["MessageBody"].as_str().expect("text")).expect("JSON");
    assert_eq!(body["source"], "publish-events");
    assert_eq!(body["error"], "EventRefused");
    assert_eq!(body["reason"], "MalformedDetail: no");
    assert_eq!(body["record"], batch[0], "whole, so that it can be replayed");
}

#[tokio::test]
async fn behind_a_quarantined_event_the_entity_goes_on_with_the_next_batch() {
    let world = World::start(|_, sequence, _| (sequence == 1).then_some("MalformedDetail")).await;
    let batch = [world.append("a", 1, noon(0)).await, world.append("a", 2, noon(0)).await];
    // Lambda delivers from the reported record on.
    assert_eq!(world.publish(&batch).await, Some(number(2)));
    assert_eq!(world.publish(&batch[1..]).await, None);
    assert_eq!(world.published("a").await, [2]);
    assert_eq!(world.queue.take_calls().len(), 1);
}

#[tokio::test]
async fn broken_records_are_quarantined_and_others_are_not_ours() {
    let world = World::start(never).await;
    let good = world.append("a", 1, noon(0)).await;
    let mut changed = good.clone();
    changed["eventName"] = "MODIFY".into();
    let mut expired = good.clone();
    expired["eventName"] = "REMOVE".into();
    expired["dynamodb"].as_object_mut().expect("a change").remove("NewImage");
    let mut no_event = good.clone();
    no_event["dynamodb"]["NewImage"]["detail"] = json!({ "S": "{}" });
    let mut no_row = good.clone();
    no_row["dynamodb"]["NewImage"] = json!({ "entity": { "S": "x" } });
    let mut no_image = good.clone();
    no_image["dynamodb"]["NewImage"] = json!({ "entity": { "Q": "x" } });
    let batch = [changed, no_event, no_row, no_image, expired, good];
    assert_eq!(world.publish(&batch).await, None);
    assert_eq!(world.sent(), [[sent("a", 1)]]);
    let reasons: Vec<_> = world
        .queue
        .take_calls()
        .iter()
        .map(|call| {
            let body = call.json()["MessageBody"].take();
            let body: Value = serde_json::from_str(body.as_str().expect("text")).expect("JSON");
            body["reason"].as_str().expect("a reason").to_owned()
        })
        .collect();
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    assert!(reasons[0].starts_with("detail is no event: missing field"), "{reasons:?}");
    assert!(reasons[1].starts_with("the row is no event: missing field"), "{reasons:?}");
}

#[tokio::test]
async fn a_quarantine_out_of_reach_holds_the_shard() {
    let mut world = World::start(never).await;
    world.queue = Stub::start(|_| (500, json!({}))).await;
    let good = world.append("a", 1, noon(0)).await;
    let mut broken = good.clone();
    broken["dynamodb"]["NewImage"]["detail"] = json!({ "S": "{}" });
    broken["dynamodb"]["SequenceNumber"] = number(0).into();
    assert_eq!(world.publish(&[broken, good]).await, Some(number(0)));
    assert_eq!(world.published("a").await, [1]);
}

#[tokio::test]
async fn what_the_time_does_not_reach_comes_again() {
    let world = World::start(never).await;
    let batch = [world.append("a", 1, noon(0)).await, world.append("b", 2, noon(0)).await];
    assert_eq!(world.publish_within(Duration::ZERO, &batch).await, Some(number(1)));
    assert!(world.sent().is_empty());
}

#[tokio::test]
async fn a_bus_out_of_reach_fails_the_batch_from_its_first_record() {
    let mut world = World::start(never).await;
    world.bus = Stub::start(|_| (500, json!({}))).await;
    let batch = [world.append("a", 1, noon(0)).await, world.append("b", 2, noon(0)).await];
    assert_eq!(world.publish_within(Duration::from_millis(250), &batch).await, Some(number(1)));
    assert_eq!(world.published("a").await, [0; 0]);
}

#[tokio::test]
async fn ten_entries_a_call_are_the_most() {
    let world = World::start(never).await;
    let mut batch = Vec::new();
    for site in 0..23 {
        batch.push(world.append(&format!("site {site}"), 1, noon(0)).await);
    }
    assert_eq!(world.publish(&batch).await, None);
    let sizes: Vec<_> = world.sent().iter().map(Vec::len).collect();
    assert_eq!(sizes, [10, 10, 3]);
}

#[tokio::test]
async fn a_call_is_no_larger_than_the_bus_takes() {
    // Two of these fill a call to the byte, EventBridge's count of them included.
    for (bytes, calls) in [(120 * 1024, [2, 1].as_slice()), (120 * 1024 + 1, &[1, 1, 1])] {
        let world = World::start(never).await;
        let mut rows = Vec::new();
        for site in ["a", "b", "c"] {
            world.append(site, 1, noon(0)).await;
            let mut row = world.dynamo.events(saga(site).site_id).await.pop().expect("an event");
            row.detail += &" ".repeat(bytes - row.detail.len() - row.kind.len() - row.source.len());
            rows.push(row);
        }
        let deadline = Deadline::after(Duration::from_secs(10));
        assert_eq!(world.publisher().publish(rows, deadline).await, []);
        assert_eq!(world.sent().iter().map(Vec::len).collect::<Vec<_>>(), calls);
    }
}

#[tokio::test]
async fn a_sweep_publishes_what_stayed_behind_and_tells_its_age() {
    let world = World::start(never).await;
    world.append("a", 2, noon(10)).await;
    world.append("a", 1, noon(0)).await;
    world.append("b", 1, noon(20)).await;
    world.append("c", 1, noon(100)).await;
    // What is younger than a minute is still on its way through the stream.
    let swept = world.sweep(noon(120)).await;
    assert_eq!(swept, Ok(json!({ "found": 3, "oldestAgeSeconds": 120 })));
    let of_a: Vec<_> = world.sent().concat().into_iter().filter(|sent| sent.0 == "a").collect();
    assert_eq!(of_a, [sent("a", 1), sent("a", 2)]);
    assert_eq!(world.published("c").await, [0; 0]);

    let swept = world.sweep(noon(200)).await;
    assert_eq!(swept, Ok(json!({ "found": 1, "oldestAgeSeconds": 100 })));
    let swept = world.sweep(noon(200)).await;
    assert_eq!(swept, Ok(json!({ "found": 0, "oldestAgeSeconds": 0 })));
    assert_eq!(world.published("c").await, [1]);
}

#[tokio::test]
async fn a_sweep_that_leaves_something_behind_says_so() {
    let world = World::start(|site, _, _| (site == "a").then_some("MalformedDetail")).await;
    world.append("a", 1, noon(0)).await;
    world.append("b", 1, noon(0)).await;
    assert_eq!(world.sweep(noon(120)).await, Err(ErrorKind::Transient));
    assert_eq!(world.published("b").await, [1]);
    assert_eq!(world.published("a").await, [0; 0]);
}

#[tokio::test]
async fn a_row_that_is_no_event_does_not_stop_the_sweep() {
    let world = World::start(never).await;
    let broken = json!({
        "entity": "site#x", "sequence": 1, "unpublished": "0", "occurredAt": "yesterday",
    });
    world.dynamo.put(EVENTS, broken).await;
    world.append("b", 1, noon(0)).await;
    // Told as left behind, while the others go out. ("yesterday" sorts behind every year.)
    let late = noon(120);
    assert!("yesterday" > late.to_string().as_str());
    assert_eq!(world.sweep(late).await, Ok(json!({ "found": 1, "oldestAgeSeconds": 120 })));
    assert_eq!(world.published("b").await, [1]);

    let broken = json!({
        "entity": "site#y", "sequence": 1, "unpublished": "0", "occurredAt": noon(0),
    });
    world.dynamo.put(EVENTS, broken).await;
    world.append("c", 1, noon(0)).await;
    assert_eq!(world.sweep(late).await, Err(ErrorKind::Transient));
    assert_eq!(world.published("c").await, [1]);
    let keys = vec![("site#y".to_owned(), 1)];
    let (_, broken) = world.publisher().read(keys.clone()).await.expect("an answer");
    assert_eq!(broken.into_iter().map(|broken| broken.event).collect::<Vec<_>>(), keys);
}

#[tokio::test]
async fn every_shard_of_the_index_is_swept() {
    let world = World::start(never).await;
    let mut shards = std::collections::BTreeSet::new();
    for site in 0..40 {
        let site = format!("site {site}");
        let entity = Entity::from(saga(&site).site_id);
        shards.insert(entity.id.as_bytes()[0] % store::UNPUBLISHED_SHARDS);
        world.append(&site, 1, noon(0)).await;
    }
    assert_eq!(shards.len(), usize::from(store::UNPUBLISHED_SHARDS), "enough sites for each");
    let swept = world.sweep(noon(60)).await;
    assert_eq!(swept, Ok(json!({ "found": 0, "oldestAgeSeconds": 0 })), "not yet a minute old");
    let swept = world.sweep(noon(61)).await;
    assert_eq!(swept, Ok(json!({ "found": 40, "oldestAgeSeconds": 61 })));
}

#[tokio::test]
async fn publishing_changes_nothing_but_the_mark() {
    let world = World::start(never).await;
    let saga = saga("a");
    let table = world.dynamo.table(EVENTS);
    let data = AlertingConfigured { site_id: saga.site_id, rules: 0 };
    let entity = contracts::AlertingId::of(saga.onboarding_id);
    let event = NewEvent::of(saga, entity, 1, noon(0), data);
    let record = record(&event.clone().row().expect("a row"));
    let commit = Transaction::on(&table).event(&world.dynamo.outbox(), event).commit().await;
    assert!(matches!(commit, Ok(Commit::Done)));
    let mut before = world.dynamo.rows(EVENTS).await.remove(0);
    assert_eq!(world.publish(&[record]).await, None);
    let mut after = world.dynamo.rows(EVENTS).await.remove(0);
    assert!(before["unpublished"].take().is_string());
    assert!(after["publishedAt"].take().is_string());
    before.as_object_mut().expect("a row").remove("unpublished");
    after.as_object_mut().expect("a row").remove("publishedAt");
    assert_eq!(before, after);
}
