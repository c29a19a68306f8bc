//! Events are published on both outlets, on the stream in order per entity. No event is lost, and no event blocks others
//! for good.

use std::{
    collections::BTreeMap,
    slice,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{
    Entity, Timestamp,
    events::{AlertingConfigured, SiteActivated},
};
use events::{
    publish_events::PublishEvents,
    publisher::{Bus, EventKey, EventStream, Memory, PublishRequest, Publisher},
    sweep_events::SweepEvents,
};
use fault::{ErrorKind, ReplayResponse};
use lambda::{Deadline, Step};
use quarantine::Quarantine;
use serde_json::{Value, json, value::to_raw_value};
use store::{Commit, EventRow, NewEvent, Transaction};
use testkit::{
    Dynamo,
    dynamo::EVENTS,
    http::{Call, NO_RESPONSE, Stub},
    measured::measured,
    sample::{self, noon, saga},
};

/// The events table, two outlets whose refusals the test decides, and a quarantine queue.
struct World {
    dynamo: Dynamo,
    stream: Stub,
    bus: Stub,
    queue: Stub,
}

/// The name of the event's site and the event's sequence number.
type SentEvent = (String, u64);
/// Returns the error code for the n-th attempt (from 1) to send an event.
type Refusal = fn(&str, u64, usize) -> Option<&'static str>;

/// Starts an outlet. `entries` returns the events in a call.
async fn outlet(
    refusal: Refusal,
    entries: fn(&Call) -> Vec<SentEvent>,
    response: fn(Vec<Value>) -> Value,
) -> Stub {
    let attempts = std::sync::Mutex::new(BTreeMap::<SentEvent, usize>::new());
    let respond = move |call: &Call| {
        let mut attempts = attempts.lock().expect("the attempts");
        let result = |sent: SentEvent| {
            let attempts = attempts.entry(sent.clone()).or_default();
            *attempts += 1;
            match refusal(&sent.0, sent.1, *attempts) {
                Some(code) => json!({ "ErrorCode": code, "ErrorMessage": "no" }),
                None => json!({ "EventId": "1", "SequenceNumber": "1", "ShardId": "1" }),
            }
        };
        (200, response(entries(call).into_iter().map(result).collect()))
    };
    Stub::start(respond).await
}

/// Starts a bus that refuses events.
async fn bus(refusal: Refusal) -> Stub {
    outlet(refusal, entries, |results| {
        let failed = results.iter().filter(|result| result.get("ErrorCode").is_some()).count();
        json!({ "FailedEntryCount": failed, "Entries": results })
    })
    .await
}

/// Starts a stream that refuses records.
async fn stream(refusal: Refusal) -> Stub {
    outlet(refusal, records, |results| {
        let failed = results.iter().filter(|result| result.get("ErrorCode").is_some()).count();
        json!({ "FailedRecordCount": failed, "Records": results })
    })
    .await
}

/// Starts an outlet that refuses each call with this event.
async fn refusing_calls_with(event: SentEvent, entries: fn(&Call) -> Vec<SentEvent>) -> Stub {
    Stub::start(move |call| {
        let entries = entries(call);
        if entries.contains(&event) {
            let message = "Total size of the entries in the request is over the limit.";
            return (400, json!({ "__type": "ValidationException", "message": message }));
        }
        let results: Vec<_> = entries
            .iter()
            .map(|_| json!({ "EventId": "1", "SequenceNumber": "1", "ShardId": "1" }))
            .collect();
        (200, json!({ "Entries": results, "Records": results }))
    })
    .await
}

impl World {
    async fn start() -> Self {
        Self::refusing(no_refusal, no_refusal).await
    }

    /// Starts the world with refusals of the stream and of the bus.
    async fn refusing(on_stream: Refusal, on_bus: Refusal) -> Self {
        Self {
            dynamo: Dynamo::start().await,
            stream: stream(on_stream).await,
            bus: bus(on_bus).await,
            queue: Stub::start(|_| (200, json!({ "MessageId": "1" }))).await,
        }
    }

    fn publisher(&self) -> Publisher {
        Publisher {
            events: self.dynamo.table(EVENTS),
            stream: EventStream {
                client: aws_sdk_kinesis::Client::new(&self.stream.config()),
                name: "events".to_owned(),
            },
            bus: Bus {
                client: aws_sdk_eventbridge::Client::new(&self.bus.config()),
                name: "fieldstation".to_owned(),
            },
            quarantine: Quarantine {
                queues: aws_sdk_sqs::Client::new(&self.queue.config()),
                url: format!("{}/111122223333/quarantine", self.queue.url()),
                source: "publish-events",
            },
            memory: Memory::default(),
        }
    }

    fn publish_events(&self) -> PublishEvents {
        PublishEvents { publisher: self.publisher() }
    }

    /// Commits an event of a site. Returns its stream record.
    async fn append(&self, site: &str, sequence: u64, at: Timestamp) -> Value {
        let saga = saga(site);
        let data = SiteActivated { site_id: saga.site_id };
        let event = NewEvent::in_saga(saga, saga.site_id, sequence, at, data);
        let row = event.clone().row().expect("a row");
        let table = self.dynamo.table(EVENTS);
        let commit = Transaction::on(&table).event(&self.dynamo.outbox(), event).commit().await;
        assert!(matches!(commit, Ok(Commit::Done)), "{commit:?}");
        record(&row)
    }

    /// Commits a row of a site whose detail is not an event. Returns its stream record.
    async fn append_invalid(&self, site: &str, sequence: u64) -> Value {
        let saga = saga(site);
        let data = SiteActivated { site_id: saga.site_id };
        let event = NewEvent::in_saga(saga, saga.site_id, sequence, noon(0), data);
        let row = EventRow { detail: "{}".to_owned(), ..event.row().expect("a row") };
        self.dynamo.put(EVENTS, json!(row)).await;
        record(&row)
    }

    /// Commits events of a site, each with a row of 180 KiB. Returns the stream record of the last one.
    async fn append_large(&self, site: &str, count: u64) -> Value {
        let (saga, mut last) = (saga(site), Value::Null);
        for sequence in 1..=count {
            let data = SiteActivated { site_id: saga.site_id };
            let event = NewEvent::in_saga(saga, saga.site_id, sequence, noon(0), data);
            let mut row = event.row().expect("a row");
            row.detail += &" ".repeat(180 * 1024 - row.detail.len());
            last = record(&row);
            self.dynamo.put(EVENTS, json!(row)).await;
        }
        last
    }

    /// Returns the sequence numbers of the site's large events that are marked as published.
    async fn published_large(&self, site: &str) -> Vec<u64> {
        let table = self.dynamo.table(EVENTS);
        let query = table.query("entity = :entity").project("#sequence, publishedAt");
        let rows = query.text("entity", Entity::from(saga(site).site_id)).all().await;
        let mut rows = rows.expect("the rows");
        rows.retain(|row| row.contains_key("publishedAt"));
        let sequence = |row: &store::Item| row["sequence"].as_n().expect("a number").parse();
        rows.iter().map(|row| sequence(row).expect("a sequence")).collect()
    }

    /// Delivers a batch to publish-events. Returns the sequence number that it reports as failed.
    async fn publish(&self, records: &[Value]) -> Option<String> {
        self.publish_within(Duration::from_secs(10), records).await
    }

    /// Replays a record, as `fieldctl failures replay` does.
    async fn replay(&self, record: &Value) -> ReplayResponse {
        let record = to_raw_value(record).expect("JSON");
        let deadline = Deadline::after(Duration::from_secs(10));
        self.publish_events().replay(&record, deadline).await
    }

    async fn publish_within(&self, time: Duration, records: &[Value]) -> Option<String> {
        Self::publish_in(&self.publish_events(), time, records).await
    }

    /// Delivers a batch to an execution environment.
    async fn publish_in(
        environment: &PublishEvents,
        time: Duration,
        records: &[Value],
    ) -> Option<String> {
        let payload = to_raw_value(&json!({ "Records": records })).expect("JSON");
        let response = environment.handle(&payload, Deadline::after(time)).await;
        let mut failures = response.expect("a response").batch_item_failures;
        assert!(failures.len() < 2, "Lambda uses only the lowest sequence number");
        failures.pop().map(|failure| failure.item_identifier.expect("a sequence number"))
    }

    async fn sweep(&self, now: Timestamp) -> Result<Value, ErrorKind> {
        let step = SweepEvents { publisher: self.publisher(), timeout: Duration::from_mins(1) };
        let command = fault::decode(&sample::event("sweep-events").to_string()).expect("an event");
        match step.run(command, now).await {
            Ok(reply) => Ok(json!(reply)),
            Err(error) => Err(fault::Fault::kind(&error)),
        }
    }

    /// Returns the messages that the quarantine got since the last call of this function.
    fn quarantined(&self) -> Vec<Value> {
        let body = |call: &Call| {
            let body = call.json()["MessageBody"].take();
            serde_json::from_str(body.as_str().expect("text")).expect("JSON")
        };
        self.queue.take_calls().iter().map(body).collect()
    }

    /// Returns the reason why a site's event was refused.
    async fn refused(&self, site: &str, sequence: u64) -> Option<String> {
        let rows = self.dynamo.events(saga(site).site_id).await;
        rows.into_iter().find(|row| row.sequence == sequence)?.refused
    }

    /// Returns the events in each call to the stream since the last call of this function.
    fn on_stream(&self) -> Vec<Vec<SentEvent>> {
        self.stream.take_calls().iter().map(records).collect()
    }

    /// Returns the events sent to the bus since the last call of this function, in the order of their names and sequence
    /// numbers.
    fn on_bus(&self) -> Vec<SentEvent> {
        let mut sent: Vec<_> = self.bus.take_calls().iter().flat_map(entries).collect();
        sent.sort();
        sent
    }

    /// Returns the sequence numbers of the site's events that are marked as published.
    async fn published(&self, site: &str) -> Vec<u64> {
        let rows = self.dynamo.events(saga(site).site_id).await;
        for row in &rows {
            let marks =
                [row.published_at.is_some(), row.unpublished.is_some(), row.refused.is_some()];
            assert_eq!(marks.iter().filter(|mark| **mark).count(), 1, "{row:?}");
        }
        rows.iter().filter(|row| row.published_at.is_some()).map(|row| row.sequence).collect()
    }
}

/// Returns the events of a `PutEvents` call, with the names of their sites.
fn entries(call: &Call) -> Vec<SentEvent> {
    let entries = call.json()["Entries"].take();
    let entries = entries.as_array().expect("entries").iter();
    entries.map(|entry| sent_event(entry["Detail"].as_str().expect("text"))).collect()
}

/// Returns the events of a `PutRecords` call, with the names of their sites.
fn records(call: &Call) -> Vec<SentEvent> {
    let records = call.json()["Records"].take();
    records.as_array().expect("records").iter().map(|record| sent_event(&data(record))).collect()
}

fn data(record: &Value) -> String {
    let data = STANDARD.decode(record["Data"].as_str().expect("text")).expect("base64");
    String::from_utf8(data).expect("text")
}

fn sent_event(detail: &str) -> SentEvent {
    let names: BTreeMap<String, &str> =
        ["a", "b", "c"].iter().map(|name| (saga(name).site_id.to_string(), *name)).collect();
    let detail: Value = serde_json::from_str(detail).expect("JSON");
    let site = detail["data"]["siteId"].as_str().expect("a site");
    let name = names.get(site).copied().unwrap_or(site);
    (name.to_owned(), detail["metadata"]["sequence"].as_u64().expect("a sequence"))
}

fn sent(site: &str, sequence: u64) -> SentEvent {
    (site.to_owned(), sequence)
}

/// Returns the stream record of a row. Its sequence number in the shard is derived from the event's.
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
    record["dynamodb"]["Keys"] =
        json!({ "entity": image["entity"], "sequence": image["sequence"] });
    record["dynamodb"]["NewImage"] = image.into();
    record["dynamodb"]["SequenceNumber"] = number(row["sequence"].as_u64().unwrap_or(0)).into();
    record
}

fn number(sequence: u64) -> String {
    format!("{}", 1000 + sequence)
}

fn no_refusal(_: &str, _: u64, _: usize) -> Option<&'static str> {
    None
}

#[tokio::test]
async fn events_of_an_entity_are_put_on_the_stream_one_by_one_and_entities_share_calls() {
    let world = World::start().await;
    let batch = [
        world.append("a", 1, noon(0)).await,
        world.append("b", 1, noon(0)).await,
        world.append("a", 2, noon(0)).await,
        world.append("a", 3, noon(0)).await,
    ];
    assert_eq!(world.publish(&batch).await, None);
    let calls = world.stream.take_calls();
    let order: Vec<_> = calls.iter().map(records).collect();
    assert_eq!(order, [vec![sent("a", 1), sent("b", 1)], vec![sent("a", 2)], vec![sent("a", 3)]]);
    let log = world.dynamo.events(saga("a").site_id).await;
    assert_eq!(calls[0].json()["StreamName"], "events");
    let record = &calls[0].json()["Records"][0];
    assert_eq!(record["PartitionKey"], log[0].entity, "an entity is in one shard");
    assert_eq!(data(record), log[0].detail, "the committed detail is put unchanged");
    // The bus gets all at once.
    let calls = world.bus.take_calls();
    let on_bus: Vec<_> = calls.iter().map(entries).collect();
    assert_eq!(on_bus, [[sent("a", 1), sent("b", 1), sent("a", 2), sent("a", 3)]]);
    let entry = &calls[0].json()["Entries"][0];
    assert_eq!(entry["EventBusName"], "fieldstation");
    assert_eq!(entry["Source"], "fieldstation.sites");
    assert_eq!(entry["DetailType"], "SiteActivated");
    assert_eq!(entry["Detail"], log[0].detail, "the committed detail is sent unchanged");
    assert_eq!(world.published("a").await, [1, 2, 3]);
    assert_eq!(world.published("b").await, [1]);
}

#[tokio::test]
async fn a_published_event_is_not_sent_again() {
    let world = World::start().await;
    let batch = [world.append("a", 1, noon(0)).await, world.append("a", 2, noon(0)).await];
    assert_eq!(world.publish(&batch[..1]).await, None);
    assert_eq!(world.on_stream(), [[sent("a", 1)]]);
    assert_eq!(world.on_bus(), [sent("a", 1)]);
    assert_eq!(world.publish(&batch).await, None);
    assert_eq!(world.on_stream(), [[sent("a", 2)]]);
    assert_eq!(world.on_bus(), [sent("a", 2)]);
    // The same record twice in a batch is one event.
    let more = world.append("a", 3, noon(0)).await;
    assert_eq!(world.publish(&[more.clone(), more]).await, None);
    assert_eq!(world.on_stream(), [[sent("a", 3)]]);
    assert_eq!(world.on_bus(), [sent("a", 3)]);
}

#[tokio::test]
async fn a_failed_record_is_put_again_before_its_successors() {
    // The status is 200: only `FailedRecordCount` and the records show the failure.
    let fails = |site: &str, sequence, attempt| {
        (site == "a" && sequence == 1 && attempt < 3)
            .then_some("ProvisionedThroughputExceededException")
    };
    let world = World::refusing(fails, no_refusal).await;
    let batch = [
        world.append("a", 1, noon(0)).await,
        world.append("a", 2, noon(0)).await,
        world.append("b", 1, noon(0)).await,
    ];
    let started = Instant::now();
    assert_eq!(world.publish(&batch).await, None);
    assert!(
        started.elapsed() >= Duration::from_millis(300),
        "each pause is longer than the one before"
    );
    let all: Vec<_> = world.on_stream().concat();
    let sent_of_a: Vec<_> = all.iter().filter(|sent| sent.0 == "a").map(|sent| sent.1).collect();
    assert_eq!(sent_of_a, [1, 1, 1, 2]);
    assert_eq!(all.iter().filter(|sent| sent.0 == "b").count(), 1);
    assert_eq!(world.on_bus().len(), 3, "the bus got each event once");
    assert_eq!(world.published("a").await, [1, 2]);
}

#[tokio::test]
async fn a_failed_entry_is_sent_to_the_bus_again_without_order() {
    let fails = |_: &str, sequence, attempt| {
        (sequence == 1 && attempt < 3).then_some("ThrottlingException")
    };
    let world = World::refusing(no_refusal, fails).await;
    let batch = [world.append("a", 1, noon(0)).await, world.append("a", 2, noon(0)).await];
    assert_eq!(world.publish(&batch).await, None);
    let calls: Vec<_> = world.bus.take_calls().iter().map(entries).collect();
    assert_eq!(calls, [vec![sent("a", 1), sent("a", 2)], vec![sent("a", 1)], vec![sent("a", 1)]]);
    assert_eq!(world.on_stream(), [[sent("a", 1)], [sent("a", 2)]]);
    assert_eq!(world.published("a").await, [1, 2]);
}

#[tokio::test]
async fn a_lasting_error_of_both_outlets_stops_only_its_entity_and_the_lowest_number_is_reported() {
    let fails =
        |site: &str, sequence, _| (site == "a" && sequence == 2).then_some("InternalFailure");
    let world = World::refusing(fails, fails).await;
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
    assert!(!world.on_stream().concat().contains(&sent("a", 3)));
    assert!(world.on_bus().contains(&sent("a", 3)), "the bus has no order");
    assert!(world.queue.take_calls().is_empty());
}

/// A problem of one outlet must not hold up the shard, because newer events would reach the other one late.
#[tokio::test]
async fn an_event_that_one_outlet_has_is_left_to_the_sweep() {
    let refuses = |_: &str, _, _| Some("InternalFailure");
    for bus_fails in [true, false] {
        let mut world = if bus_fails {
            World::refusing(no_refusal, refuses).await
        } else {
            World::refusing(refuses, no_refusal).await
        };
        let batch = [world.append("a", 1, noon(0)).await, world.append("a", 2, noon(0)).await];
        let environment = world.publish_events();
        let time = Duration::from_secs(10);
        assert_eq!(World::publish_in(&environment, time, &batch).await, None);
        assert_eq!(world.published("a").await, [0; 0], "one outlet does not have them");
        let (on_stream, on_bus) = (world.on_stream().concat(), world.on_bus());
        let healthy = if bus_fails { &on_stream } else { &on_bus };
        assert_eq!(*healthy, [sent("a", 1), sent("a", 2)], "each once");
        // A repeated delivery in the same environment does not repeat them.
        assert_eq!(World::publish_in(&environment, time, &batch).await, None);
        let healthy = if bus_fails { world.on_stream().concat() } else { world.on_bus() };
        assert_eq!(healthy, []);
        if bus_fails {
            world.bus = bus(no_refusal).await;
        } else {
            world.stream = stream(no_refusal).await;
        }
        assert!(world.sweep(noon(120)).await.is_ok());
        assert_eq!(world.published("a").await, [1, 2]);
    }
}

#[tokio::test]
async fn a_hanging_outlet_does_not_delay_the_other_one_nor_newer_events() {
    for bus_hangs in [true, false] {
        let mut world = World::start().await;
        let hangs = |_: &Call| (NO_RESPONSE, Value::Null);
        if bus_hangs {
            world.bus = Stub::start(hangs).await;
        } else {
            world.stream = Stub::start(hangs).await;
        }
        let healthy = if bus_hangs { &world.stream } else { &world.bus };
        let environment = world.publish_events();
        for sequence in 1..=2 {
            let batch = [world.append("a", sequence, noon(0)).await];
            let started = Instant::now();
            let time = Duration::from_secs(20);
            assert_eq!(World::publish_in(&environment, time, &batch).await, None);
            let limit = if sequence == 1 { 2_500 } else { 1_000 };
            assert!(started.elapsed() < Duration::from_millis(limit), "{:?}", started.elapsed());
            assert_eq!(healthy.take_calls().len(), 1);
        }
        assert_eq!(world.published("a").await, [0; 0]);
    }
}

#[tokio::test]
async fn a_permanently_refused_event_is_quarantined_and_the_shard_continues() {
    let refuses =
        |site: &str, sequence, _| (site == "a" && sequence == 1).then_some("MalformedDetail");
    let world = World::refusing(no_refusal, refuses).await;
    let batch = [world.append("a", 1, noon(0)).await, world.append("b", 1, noon(0)).await];
    assert_eq!(world.publish(&batch).await, None);
    assert_eq!(world.published("b").await, [1]);
    assert!(world.on_stream().concat().contains(&sent("a", 1)), "the other outlet gets it");
    let reason = world.refused("a", 1).await;
    assert_eq!(reason.as_deref(), Some("EventRefused: the bus refused it: MalformedDetail: no"));
    let calls = world.queue.take_calls();
    assert_eq!(calls[0].operation(), "SendMessage");
    let message = calls[0].json();
    assert!(message["QueueUrl"].as_str().expect("a URL").ends_with("/quarantine"));
    let body: Value =
        serde_json::from_str(message["MessageBody"].as_str().expect("text")).expect("JSON");
    assert_eq!(body["source"], "publish-events");
    assert_eq!(body["error"], "EventRefused");
    assert_eq!(body["reason"], "the bus refused it: MalformedDetail: no");
    assert_eq!(body["record"], batch[0], "the whole record, so that it can be replayed");
}

#[tokio::test]
async fn a_refused_event_does_not_block_its_successors() {
    let refuses = |_: &str, sequence, _| (sequence == 1).then_some("MalformedDetail");
    let world = World::refusing(no_refusal, refuses).await;
    let batch = [world.append("a", 1, noon(0)).await, world.append("a", 2, noon(0)).await];
    assert_eq!(world.publish(&batch).await, None);
    assert_eq!(world.published("a").await, [2]);
    assert_eq!(world.quarantined().len(), 1);
    // Nor does it block successors in a later batch.
    drop(world.dynamo.take_usage());
    world.append("b", 1, noon(0)).await;
    let later = world.append("b", 2, noon(0)).await;
    assert_eq!(world.publish(&[later]).await, None);
    assert_eq!(world.published("b").await, [2]);
    let expected = [sent("a", 1), sent("a", 2), sent("b", 1), sent("b", 2)];
    assert_eq!(world.on_stream().concat(), expected, "the stream gets all in order");
    assert!(world.refused("b", 1).await.is_some());
}

#[tokio::test]
async fn invalid_rows_are_refused_and_changes_of_rows_are_skipped() {
    let world = World::start().await;
    let valid = world.append("a", 1, noon(0)).await;
    let mut changed = valid.clone();
    changed["eventName"] = "MODIFY".into();
    let mut removed = valid.clone();
    removed["eventName"] = "REMOVE".into();
    removed["dynamodb"].as_object_mut().expect("a change").remove("NewImage");
    let mut rows = Vec::new();
    for (sequence, field) in [(1, "detail"), (2, "type")] {
        let record = world.append("b", sequence, noon(0)).await;
        let row = world.dynamo.events(saga("b").site_id).await.pop().expect("a row");
        let mut row = json!(row);
        match field {
            "type" => drop(row.as_object_mut().expect("a row").remove(field)),
            _ => row[field] = "{}".into(),
        }
        rows.push((record, row));
    }
    for (_, row) in &rows {
        world.dynamo.put(EVENTS, row.clone()).await;
    }
    let mut no_image = valid.clone();
    no_image["dynamodb"]["NewImage"] = json!({ "entity": { "Q": "x" } });
    let mut no_key = valid.clone();
    no_key["dynamodb"]["Keys"] = json!({ "id": { "S": "x" } });
    let [not_an_event, not_a_row] = [&rows[0].0, &rows[1].0].map(Clone::clone);
    let batch = [changed, not_an_event, not_a_row, no_image, no_key, removed, valid];
    assert_eq!(world.publish(&batch).await, None);
    assert_eq!(world.on_stream(), [[sent("a", 1)]]);
    assert_eq!(world.on_bus(), [sent("a", 1)]);
    let mut reasons: Vec<_> =
        world.quarantined().iter().map(|it| it["reason"].to_string()).collect();
    reasons.sort();
    assert_eq!(reasons.len(), 4, "{reasons:?}");
    assert!(reasons[0].contains("detail is not a valid event: missing field"), "{reasons:?}");
    assert!(reasons[2].contains("has no event key"), "{reasons:?}");
    assert!(reasons[3].contains("the row is not a valid event: "), "{reasons:?}");
    let stored = world.dynamo.rows(EVENTS).await;
    let refused = stored.iter().filter(|row| row["refused"].is_string());
    assert!(refused.clone().all(|row| row.get("unpublished").is_none()), "{stored:#?}");
    assert_eq!(refused.count(), 2);
}

#[tokio::test]
async fn an_unreachable_quarantine_stops_the_shard() {
    let mut world = World::start().await;
    world.queue = Stub::start(|_| (500, json!({}))).await;
    let valid = world.append("a", 1, noon(0)).await;
    let mut invalid = valid.clone();
    invalid["dynamodb"]["NewImage"] = json!({ "entity": { "Q": "x" } });
    invalid["dynamodb"]["SequenceNumber"] = number(0).into();
    assert_eq!(world.publish(&[invalid, valid]).await, Some(number(0)));
    assert_eq!(world.published("a").await, [1]);
    // A refused event is not marked while the quarantine is unreachable.
    let mut world = World::refusing(no_refusal, |_, _, _| Some("MalformedDetail")).await;
    world.queue = Stub::start(|_| (500, json!({}))).await;
    let batch = [world.append("a", 1, noon(0)).await];
    assert_eq!(world.publish(&batch).await, Some(number(1)));
    assert_eq!(world.refused("a", 1).await, None);
}

#[tokio::test]
async fn events_that_miss_the_deadline_are_delivered_again() {
    let world = World::start().await;
    let batch = [world.append("a", 1, noon(0)).await, world.append("b", 2, noon(0)).await];
    assert_eq!(world.publish_within(Duration::ZERO, &batch).await, Some(number(1)));
    assert!(world.on_stream().is_empty() && world.on_bus().is_empty());
}

#[tokio::test]
async fn unreachable_outlets_fail_the_batch_from_its_first_record() {
    let mut world = World::start().await;
    world.bus = Stub::start(|_| (500, json!({}))).await;
    world.stream = Stub::start(|_| (500, json!({}))).await;
    let batch = [world.append("a", 1, noon(0)).await, world.append("b", 2, noon(0)).await];
    assert_eq!(world.publish_within(Duration::from_millis(250), &batch).await, Some(number(1)));
    assert_eq!(world.published("a").await, [0; 0]);
}

#[tokio::test]
async fn a_call_to_the_bus_has_at_most_ten_entries() {
    let world = World::start().await;
    let mut batch = Vec::new();
    for site in 0..23 {
        batch.push(world.append(&format!("site {site}"), 1, noon(0)).await);
    }
    assert_eq!(world.publish(&batch).await, None);
    let mut sizes: Vec<_> = world.bus.take_calls().iter().map(|call| entries(call).len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [3, 10, 10]);
    assert_eq!(world.on_stream().iter().map(Vec::len).collect::<Vec<_>>(), [23]);
}

#[tokio::test]
async fn a_call_does_not_exceed_the_size_limit_of_the_bus() {
    // Two of these entries fill a call to the byte, by EventBridge's way of counting.
    for (bytes, calls) in [(120 * 1024, [2, 1].as_slice()), (120 * 1024 + 1, &[1, 1, 1])] {
        let world = World::start().await;
        let mut rows = Vec::new();
        for site in ["a", "b", "c"] {
            world.append(site, 1, noon(0)).await;
            let mut row = world.dynamo.events(saga(site).site_id).await.pop().expect("an event");
            row.detail += &" ".repeat(bytes - row.detail.len() - row.kind.len() - row.source.len());
            rows.push(PublishRequest { key: EventKey::from(&row), record: None });
            world.dynamo.put(EVENTS, json!(row)).await;
        }
        let deadline = Deadline::after(Duration::from_secs(10));
        let unpublished = world.publisher().publish(rows, deadline).await;
        assert_eq!(unpublished.expect("the rows"), []);
        let mut sizes: Vec<_> =
            world.bus.take_calls().iter().map(|call| entries(call).len()).collect();
        sizes.sort_unstable_by_key(|size| std::cmp::Reverse(*size));
        assert_eq!(sizes, calls);
    }
}

/// Returns the reply of a sweep that published all events that it found.
fn swept(found: u32, oldest_age_seconds: u32) -> Value {
    json!({ "found": found, "unpublished": 0, "oldestAgeSeconds": oldest_age_seconds })
}

#[tokio::test]
async fn a_sweep_publishes_unpublished_events_and_reports_the_oldest_age() {
    let world = World::start().await;
    world.append("a", 2, noon(10)).await;
    world.append("a", 1, noon(0)).await;
    world.append("b", 1, noon(20)).await;
    world.append("c", 1, noon(100)).await;
    // Events younger than a minute may still be in the stream.
    let result = world.sweep(noon(120)).await;
    assert_eq!(result, Ok(swept(3, 120)));
    let sent_of_a: Vec<_> =
        world.on_stream().concat().into_iter().filter(|sent| sent.0 == "a").collect();
    assert_eq!(sent_of_a, [sent("a", 1), sent("a", 2)]);
    assert_eq!(world.published("c").await, [0; 0]);

    let result = world.sweep(noon(200)).await;
    assert_eq!(result, Ok(swept(1, 100)));
    let result = world.sweep(noon(200)).await;
    assert_eq!(result, Ok(swept(0, 0)));
    assert_eq!(world.published("c").await, [1]);
}

/// The alarm `SweptEvents` fires if sweep-events publishes events in two minutes of five.
#[tokio::test]
async fn a_sweep_counts_the_events_that_publish_events_should_have_published() {
    let world = World::start().await;
    let published = async |now| measured(world.sweep(now)).await.1.get("EventsPublished").copied();
    assert_eq!(published(noon(120)).await, None);
    world.append("a", 1, noon(0)).await;
    world.append("b", 1, noon(20)).await;
    assert_eq!(published(noon(59)).await, None, "the events are younger than a minute");
    assert_eq!(published(noon(120)).await, Some(2.0));
    assert_eq!(published(noon(180)).await, None, "the events are published");
}

/// An error would be recorded as a failure each minute. The alarm `OldestUnpublishedEvent` fires once.
#[tokio::test]
async fn a_sweep_that_leaves_events_unpublished_succeeds_and_reports_their_age_until_the_outlet_works()
 {
    let fails = |site: &str, _, _| (site == "a").then_some("InternalFailure");
    let mut world = World::refusing(no_refusal, fails).await;
    world.append("a", 1, noon(0)).await;
    world.append("b", 1, noon(0)).await;
    for (now, found) in [(120_u32, 2), (180, 1), (240, 1)] {
        let (reply, metrics) = measured(world.sweep(noon(now.into()))).await;
        let expected = json!({ "found": found, "unpublished": 1, "oldestAgeSeconds": now });
        assert_eq!(reply, Ok(expected));
        assert_eq!(metrics.get("OldestUnpublishedEventAgeSeconds"), Some(&f64::from(now)));
    }
    assert_eq!(world.published("b").await, [1]);
    assert_eq!(world.published("a").await, [0; 0]);
    world.bus = bus(no_refusal).await;
    assert_eq!(world.sweep(noon(300)).await, Ok(swept(1, 300)));
    assert_eq!(world.published("a").await, [1], "nothing is lost");
}

#[tokio::test]
async fn a_sweep_quarantines_a_refused_event_once_and_a_replay_publishes_it() {
    let refuses = |site: &str, sequence, attempt| {
        (site == "a" && sequence == 1 && attempt == 1).then_some("MalformedDetail")
    };
    let world = World::refusing(no_refusal, refuses).await;
    world.append("a", 1, noon(0)).await;
    world.append("a", 2, noon(0)).await;
    assert_eq!(world.sweep(noon(120)).await, Ok(swept(2, 120)));
    assert_eq!(world.published("a").await, [2]);
    let reason = world.refused("a", 1).await;
    assert_eq!(reason.as_deref(), Some("EventRefused: the bus refused it: MalformedDetail: no"));
    let messages = world.quarantined();
    assert_eq!(messages.len(), 1);
    assert_eq!(world.sweep(noon(180)).await, Ok(swept(0, 0)));
    assert!(world.quarantined().is_empty());

    drop((world.on_stream(), world.on_bus()));
    assert_eq!(world.replay(&messages[0]["record"]).await, ReplayResponse::Done);
    assert_eq!(world.on_bus(), [sent("a", 1)]);
    assert_eq!(world.on_stream(), [[sent("a", 1)]], "a repeat");
    assert_eq!(world.published("a").await, [1, 2]);
}

#[tokio::test]
async fn a_replay_publishes_the_current_row() {
    let world = World::start().await;
    world.append("a", 1, noon(0)).await;
    let valid = json!(world.dynamo.events(saga("a").site_id).await[0]);
    let mut invalid = valid.clone();
    invalid["detail"] = "not JSON".into();
    world.dynamo.put(EVENTS, invalid.clone()).await;
    assert!(world.sweep(noon(120)).await.is_ok());
    let messages = world.quarantined();
    assert_eq!(messages[0]["error"], "InvalidInput");
    assert_eq!(messages[0]["record"]["dynamodb"]["NewImage"]["detail"]["S"], "not JSON");
    // An engineer on call corrects the row by changing `detail` only.
    let mut corrected = world.dynamo.rows(EVENTS).await.remove(0);
    assert!(corrected["refused"].is_string());
    corrected["detail"] = valid["detail"].clone();
    let refused =
        ReplayResponse::failed("InvalidInput", messages[0]["reason"].as_str().expect("text"));
    assert_eq!(world.replay(&messages[0]["record"]).await, refused, "the row is not corrected yet");
    assert!(
        world.quarantined().is_empty(),
        "the failure is still open, so there is no second message"
    );
    world.dynamo.put(EVENTS, corrected).await;
    assert_eq!(world.replay(&messages[0]["record"]).await, ReplayResponse::Done);
    assert_eq!(world.on_stream(), [[sent("a", 1)]]);
    assert_eq!(world.published("a").await, [1]);
}

/// A shard of the index `unpublished`.
const SHARD: u8 = 3;

/// Returns the shard of a site's events in the index `unpublished`.
fn shard_of(site: &str) -> u8 {
    store::shard(&Entity::from(saga(site).site_id).to_string())
}

/// Returns names of sites whose events are in [`SHARD`].
fn sites_of_one_shard(count: usize) -> Vec<String> {
    let names = (0..).map(|number| format!("site {number}"));
    names.filter(|name| shard_of(name) == SHARD).take(count).collect()
}

#[tokio::test]
async fn unpublishable_events_do_not_hide_later_events_from_the_sweep() {
    // More than a page of the shard.
    let (unpublishable, later_site) = (sites_of_one_shard(110), "c");
    for permanent in [true, false] {
        let refusal: Refusal = if permanent {
            |site, _, _| (site != "c").then_some("MalformedDetail")
        } else {
            |site, _, _| (site != "c").then_some("InternalFailure")
        };
        let world = World::refusing(no_refusal, refusal).await;
        for site in &unpublishable {
            world.append(site, 1, noon(0)).await;
        }
        let mut row = json!(
            NewEvent::in_saga(
                saga(later_site),
                saga(later_site).site_id,
                1,
                noon(30),
                SiteActivated { site_id: saga(later_site).site_id },
            )
            .row()
            .expect("a row")
        );
        row["unpublished"] = SHARD.to_string().into();
        world.dynamo.put(EVENTS, row).await;
        let result = world.sweep(noon(120)).await;
        let left = if permanent { 0 } else { unpublishable.len() };
        assert_eq!(result.expect("swept")["unpublished"], left);
        assert_eq!(world.published(later_site).await, [1], "it is published in the same run");
        if permanent {
            assert_eq!(world.quarantined().len(), unpublishable.len());
            let result = world.sweep(noon(180)).await;
            assert_eq!(result, Ok(swept(0, 0)));
        }
    }
}

#[tokio::test]
async fn only_the_event_that_makes_a_call_invalid_is_refused() {
    for on_bus in [true, false] {
        let mut world = World::start().await;
        if on_bus {
            world.bus = refusing_calls_with(sent("b", 1), entries).await;
        } else {
            world.stream = refusing_calls_with(sent("b", 1), records).await;
        }
        let mut batch = Vec::new();
        for site in ["a", "b", "c"] {
            batch.push(world.append(site, 1, noon(0)).await);
        }
        assert_eq!(world.publish(&batch).await, None);
        assert_eq!(world.published("a").await, [1]);
        assert_eq!(world.published("c").await, [1]);
        let reason = world.refused("b", 1).await.expect("refused");
        let outlet = if on_bus { "the bus" } else { "the stream" };
        assert!(reason.starts_with(&format!("EventRefused: {outlet} refused it: ")), "{reason}");
        assert!(reason.contains("over the limit"), "{reason}");
        let messages = world.quarantined();
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0]["record"], batch[1]);
        // The successor follows on both outlets.
        let next = world.append("b", 2, noon(0)).await;
        assert_eq!(world.publish(&[next]).await, None);
        assert_eq!(world.published("b").await, [2]);
    }
}

#[tokio::test]
async fn all_forms_of_an_event_are_sent_to_the_bus_and_only_failed_forms_again() {
    let mut world = World::start().await;
    let attempts = std::sync::atomic::AtomicUsize::new(0);
    world.bus = Stub::start(move |call| {
        let entries = call.json()["Entries"].take();
        let result = |entry: &Value| {
            let is_first = || attempts.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
            if entry["DetailType"] == "AlertingConfigured" && is_first() {
                json!({ "ErrorCode": "InternalFailure", "ErrorMessage": "no" })
            } else {
                json!({ "EventId": "1" })
            }
        };
        let results: Vec<_> = entries.as_array().expect("entries").iter().map(result).collect();
        (200, json!({ "Entries": results }))
    })
    .await;
    let saga = saga("a");
    let data = AlertingConfigured { site_id: saga.site_id, limits: Vec::new() };
    let entity = contracts::AlertingId::from_onboarding(saga.onboarding_id);
    let row = NewEvent::in_saga(saga, entity, 1, noon(0), data).row().expect("a row");
    world.dynamo.put(EVENTS, json!(row)).await;
    assert_eq!(world.publish(&[record(&row)]).await, None);
    let types = |call: &Call| {
        let entries = call.json()["Entries"].take();
        let types = entries.as_array().expect("entries").iter();
        types.map(|it| it["DetailType"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    let calls: Vec<_> = world.bus.take_calls().iter().map(types).collect();
    assert_eq!(
        calls,
        [vec!["AlertingConfigured.v2", "AlertingConfigured"], vec!["AlertingConfigured"]]
    );
    assert_eq!(world.stream.take_calls().len(), 1, "the stream has only the newest version");
    let stored = world.dynamo.rows(EVENTS).await;
    assert!(stored[0]["publishedAt"].is_string(), "{stored:?}");
}

#[tokio::test]
async fn an_event_waits_for_its_unpublished_predecessors_on_the_stream() {
    let world = World::start().await;
    let first = world.append("a", 1, noon(0)).await;
    let second = world.append("a", 2, noon(0)).await;
    let third = world.append("a", 3, noon(0)).await;
    // The first event is in a later batch.
    assert_eq!(world.publish(&[third, second]).await, None);
    assert_eq!(world.on_stream(), [[sent("a", 1)], [sent("a", 2)], [sent("a", 3)]]);
    assert_eq!(world.on_bus(), [sent("a", 1), sent("a", 2), sent("a", 3)]);
    assert_eq!(world.publish(&[first]).await, None);
    assert!(world.on_stream().is_empty() && world.on_bus().is_empty());
    assert_eq!(world.published("a").await, [1, 2, 3]);
}

/// Publishes the event. Asserts that it only costs the read of the event's own mark and the update of it.
async fn publish_without_further_calls(world: &World, event: Value) {
    drop(world.dynamo.take_usage());
    assert_eq!(world.publish(&[event]).await, None);
    let calls = world.dynamo.take_usage().calls;
    let expected = [("BatchGetItem".to_owned(), 1), ("UpdateItem".to_owned(), 1)];
    assert_eq!(calls, BTreeMap::from(expected));
}

#[tokio::test]
async fn a_published_predecessor_costs_no_further_call() {
    let world = World::start().await;
    let first = world.append("a", 1, noon(0)).await;
    let second = world.append("a", 2, noon(0)).await;
    assert_eq!(world.publish(&[first]).await, None);
    publish_without_further_calls(&world, second).await;
}

#[tokio::test]
async fn an_event_is_not_put_on_the_stream_if_its_predecessor_fails() {
    let fails = |_: &str, sequence, _| (sequence == 1).then_some("InternalFailure");
    let world = World::refusing(fails, no_refusal).await;
    world.append("a", 1, noon(0)).await;
    let second = world.append("a", 2, noon(0)).await;
    assert_eq!(world.publish(&[second]).await, None, "the bus has it");
    assert_eq!(world.published("a").await, [0; 0]);
    assert!(!world.on_stream().concat().contains(&sent("a", 2)));
}

/// A row that is not an event is refused at once, also while an earlier event is not on the stream.
#[tokio::test]
async fn an_event_after_an_invalid_row_waits_for_the_events_before_that_row() {
    // What is delivered after the stream works again: the event after the refused row; that row and the event after it; or
    // that row and a later event, without the one in between.
    for redelivered in [&[3][..], &[2, 3], &[2, 4]] {
        let mut world = World::refusing(|_, _, _| Some("InternalFailure"), no_refusal).await;
        let first = world.append("a", 1, noon(0)).await;
        let second = world.append_invalid("a", 2).await;
        assert_eq!(world.publish(&[first]).await, None, "the bus has it");
        assert_eq!(world.publish(slice::from_ref(&second)).await, None);
        assert_eq!(world.quarantined().len(), 1, "the row is refused");
        world.stream = stream(no_refusal).await;
        let mut records = BTreeMap::from([(2, second)]);
        for sequence in 3..=4 {
            records.insert(sequence, world.append("a", sequence, noon(0)).await);
        }
        let batch: Vec<_> = redelivered.iter().map(|sequence| records[sequence].clone()).collect();
        assert_eq!(world.publish(&batch).await, None);
        let expected: Vec<_> = (1..=4)
            .filter(|sequence| *sequence != 2 && sequence <= redelivered.last().expect("an event"))
            .map(|sequence| sent("a", sequence))
            .collect();
        assert_eq!(world.on_stream().concat(), expected, "{redelivered:?}");
    }
}

/// The bus refused the predecessor. The publisher had settled it on the stream, with all earlier events.
#[tokio::test]
async fn a_predecessor_that_an_outlet_refused_costs_no_further_call() {
    let refuses = |_: &str, sequence, _| (sequence == 1).then_some("MalformedDetail");
    let world = World::refusing(no_refusal, refuses).await;
    let first = world.append("a", 1, noon(0)).await;
    let second = world.append("a", 2, noon(0)).await;
    assert_eq!(world.publish(&[first]).await, None);
    publish_without_further_calls(&world, second).await;
}

#[tokio::test]
async fn a_gap_of_any_length_is_put_on_the_stream_before_later_events() {
    let world = World::start().await;
    let mut last = Value::Null;
    for sequence in 1..=110 {
        last = world.append("a", sequence, noon(0)).await;
    }
    // The oldest events of the gap are put, and the last event must be delivered again.
    let time = Duration::from_mins(1);
    let batch = [last];
    assert_eq!(world.publish_within(time, &batch).await, Some(number(110)));
    let expected: Vec<_> = (1..=100).map(|sequence| sent("a", sequence)).collect();
    assert_eq!(world.on_stream().concat(), expected);
    assert_eq!(world.publish_within(time, &batch).await, None);
    let expected: Vec<_> = (101..=110).map(|sequence| sent("a", sequence)).collect();
    assert_eq!(world.on_stream().concat(), expected);
    assert_eq!(world.published("a").await.len(), 110);
}

#[tokio::test]
async fn a_gap_of_large_events_is_put_on_the_stream_in_several_runs() {
    let world = World::start().await;
    let last = world.append_large("a", 10).await;
    // Five of the events have less than a mebibyte.
    assert_eq!(world.publish(std::slice::from_ref(&last)).await, Some(number(10)));
    let expected: Vec<_> = (1..=5).map(|sequence| sent("a", sequence)).collect();
    assert_eq!(world.on_stream().concat(), expected);
    assert_eq!(world.publish(&[last]).await, None);
    let expected: Vec<_> = (6..=10).map(|sequence| sent("a", sequence)).collect();
    assert_eq!(world.on_stream().concat(), expected);
}

#[tokio::test]
async fn a_run_stops_reading_when_the_events_are_too_large_together() {
    let world = World::start().await;
    for site in ["a", "b", "c"] {
        world.append_large(site, 34).await;
    }
    // The newest first, so that the events that are not read are the first ones of an entity.
    let mut keys = Vec::new();
    for site in ["a", "b", "c"] {
        let entity = Entity::from(saga(site).site_id).to_string();
        let key =
            |sequence: u64| EventKey { entity: entity.clone(), sequence: sequence.to_string() };
        keys.extend((1..=34).map(key));
    }
    let requests = keys.iter().rev().map(|key| PublishRequest { key: key.clone(), record: None });
    let deadline = Deadline::after(Duration::from_mins(1));
    let unpublished = world.publisher().publish(requests.collect(), deadline).await;
    let unpublished = unpublished.expect("the rows");
    let unread: Vec<_> = unpublished.iter().filter(|it| it.is_unread).map(|it| &it.event).collect();
    // The rows of 91 events have more than 16 MiB.
    assert_eq!(unread, keys[..11].iter().rev().collect::<Vec<_>>());
    assert_eq!(unpublished.len(), 34, "the events of the site that are behind a gap");
    assert_eq!(world.published_large("a").await, [1, 2, 3, 4, 5], "from the gap");
    for site in ["b", "c"] {
        assert_eq!(world.published_large(site).await, (1..=34).collect::<Vec<_>>());
    }
    let on_stream = world.on_stream().concat();
    for site in ["a", "b", "c"] {
        let put: Vec<_> =
            on_stream.iter().filter(|sent| sent.0 == site).map(|sent| sent.1).collect();
        assert_eq!(put, world.published_large(site).await);
    }
}

#[tokio::test]
async fn a_sweep_publishes_events_that_are_too_large_for_one_run() {
    let world = World::start().await;
    for site in ["a", "b", "c"] {
        world.append_large(site, 34).await;
    }
    let reply = swept(102, 120);
    assert_eq!(world.sweep(noon(120)).await, Ok(reply));
    for site in ["a", "b", "c"] {
        assert_eq!(world.published_large(site).await, (1..=34).collect::<Vec<_>>());
    }
}

/// If the event were not left to the sweep, Lambda would deliver its batch again. An error of the stream would then
/// hold up newer events on the bus.
#[tokio::test]
async fn an_event_behind_a_long_gap_is_left_to_the_sweep_while_the_stream_fails() {
    let world = World::refusing(|_, _, _| Some("InternalFailure"), no_refusal).await;
    let mut last = Value::Null;
    for sequence in 1..=110 {
        last = world.append("a", sequence, noon(0)).await;
    }
    assert_eq!(world.publish(&[last]).await, None);
    assert!(world.on_bus().contains(&sent("a", 110)));
}

#[tokio::test]
async fn a_sweep_publishes_a_younger_predecessor_first() {
    let world = World::start().await;
    // The clocks of two writers differ, so the predecessor looks too young for this sweep.
    world.append("a", 1, noon(100)).await;
    world.append("a", 2, noon(0)).await;
    assert_eq!(world.sweep(noon(120)).await, Ok(swept(1, 120)));
    assert_eq!(world.on_stream(), [[sent("a", 1)], [sent("a", 2)]]);
}

#[tokio::test]
async fn an_event_that_dynamodb_leaves_unprocessed_is_not_published() {
    let world = World::start().await;
    let record = world.append("a", 1, noon(0)).await;
    let dynamo = Stub::start(|call| {
        let request = call.json()["RequestItems"].take();
        (200, json!({ "Responses": {}, "UnprocessedKeys": request }))
    })
    .await;
    let mut step = world.publish_events();
    let client = aws_sdk_dynamodb::Client::new(&dynamo.config());
    step.publisher.events = store::Table::new(client, EVENTS);
    let payload = to_raw_value(&json!({ "Records": [record] })).expect("JSON");
    let response = step.handle(&payload, Deadline::after(Duration::from_secs(10))).await;
    assert_eq!(response.expect_err("unprocessed keys").kind, ErrorKind::Transient);
    assert_eq!(dynamo.take_calls().len(), 4);
    assert!(world.on_stream().is_empty() && world.on_bus().is_empty());
}

#[tokio::test]
async fn an_invalid_row_does_not_stop_the_sweep() {
    let world = World::start().await;
    let now = noon(120);
    for (entity, sequence) in [("site#x", json!(1)), ("site#y", json!(1.5)), ("site#z", json!(-1))]
    {
        let invalid = json!({
            "entity": entity, "sequence": sequence, "unpublished": "0", "occurredAt": noon(0),
        });
        world.dynamo.put(EVENTS, invalid).await;
    }
    world.append("b", 1, noon(0)).await;
    assert_eq!(world.sweep(now).await, Ok(swept(4, 120)));
    assert_eq!(world.published("b").await, [1]);
    assert_eq!(world.quarantined().len(), 3);
    assert_eq!(world.sweep(now).await, Ok(swept(0, 0)));
}

#[tokio::test]
async fn every_shard_of_the_index_is_swept() {
    let world = World::start().await;
    let mut shards = std::collections::BTreeSet::new();
    for site in 0..40 {
        let site = format!("site {site}");
        shards.insert(shard_of(&site));
        world.append(&site, 1, noon(0)).await;
    }
    assert_eq!(shards.len(), usize::from(store::SHARDS), "each shard has a site");
    let result = world.sweep(noon(60)).await;
    assert_eq!(result, Ok(swept(0, 0)), "the events are less than a minute old");
    let result = world.sweep(noon(61)).await;
    assert_eq!(result, Ok(swept(40, 61)));
}

#[tokio::test]
async fn publishing_changes_only_the_mark() {
    let world = World::start().await;
    let saga = saga("a");
    let table = world.dynamo.table(EVENTS);
    let data = AlertingConfigured { site_id: saga.site_id, limits: Vec::new() };
    let entity = contracts::AlertingId::from_onboarding(saga.onboarding_id);
    let event = NewEvent::in_saga(saga, entity, 1, noon(0), data);
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
