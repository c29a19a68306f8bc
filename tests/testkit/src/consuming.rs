//! The contracts of consumers of events: whatever is delivered, at the end the consumer's rows equal those of a consumer
//! that got each event once and in order.
//!
//! [`check`] is for the mode `every`, [`check_latest`] for the mode `latest`.

use std::{future::poll_fn, pin::pin, task::Poll, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{EventId, OperatorId, SiteId, open::OpenEnvelope};
use futures_util::future::join;
use lambda::Step;
use serde_json::{Value, json};

use crate::{
    cloud::{self, CallFault, Cloud, Entry},
    dynamo::EVENTS,
    rng::Rng,
    saga::{run, run_retrying},
    sample::{noon, other_operator},
};

/// The time of an invocation.
const TIME: Duration = Duration::from_secs(29);

/// A consumer under test.
pub trait EventConsumer {
    /// Handles a batch of the stream of all events within this time. Returns the response to Lambda.
    fn handle(&self, batch: &Value, time: Duration) -> impl Future<Output = Result<Value, String>>;
}

/// Returns an event with this type of this entity.
///
/// # Panics
/// Never: each event can be written as JSON.
#[must_use]
pub fn event(
    operator: OperatorId,
    entity: (&str, &str),
    sequence: u64,
    kind: &str,
) -> OpenEnvelope {
    let seconds = i64::try_from(sequence).unwrap_or(i64::MAX) * 40_000;
    let (entity_type, id) = entity;
    let entity = contracts::open::OpenEntity { kind: entity_type.to_owned(), id: id.to_owned() };
    let event = json!({
        "metadata": {
            "eventId": EventId::from_log_key(&entity.log_key(operator), sequence),
            "type": kind,
            "occurredAt": noon(seconds),
            "entity": entity,
            "sequence": sequence,
            "operatorId": operator,
        },
        "data": { "text": format!("event {sequence}") },
    });
    serde_json::from_value(event).expect("an event")
}

/// Returns sample events: of sites whose onboardings end differently, of an entity with a type that no release knows,
/// and of two entities of another system that have the same name and belong to two operators. The events of each entity
/// are in order.
#[must_use]
pub fn history() -> Vec<OpenEnvelope> {
    let (own, other) = (OperatorId::DEFAULT, other_operator());
    let site = |name: &str| SiteId::registered(own, "", name).to_string();
    let mut events = Vec::new();
    let mut add = |operator, entity: (&str, &str), kinds: &[&str]| {
        events.extend(
            (1..).zip(kinds).map(|(sequence, kind)| event(operator, entity, sequence, kind)),
        );
    };
    let live = ["SiteCreated", "SiteActivated"];
    let closed = ["SiteCreated", "SiteActivated", "SiteRenamed", "SiteDecommissioned"];
    for (name, operator, kinds) in [
        ("a", own, &live[..1]),
        ("b", own, &live[..]),
        ("c", own, &["SiteCreated", "SiteRejected"]),
        ("d", own, &closed[..]),
        // An activation whose response was lost: the site was active when it was rejected.
        ("e", own, &["SiteCreated", "SiteActivated", "SiteRejected"]),
        ("f", other, &live[..]),
    ] {
        add(operator, ("site", &site(name)), kinds);
    }
    add(own, ("balloon", "B-1"), &["BalloonLaunched", "BalloonLost", "BalloonFound"]);
    for operator in [own, other] {
        let kinds = ["sample.taken", "sample taken/again", "sample.taken", "sample.lost"];
        add(operator, ("acme.sample", "S-1"), &kinds);
    }
    events
}

/// Puts an event into the log, as its writer does.
///
/// # Panics
/// Never: each event can be written as JSON.
pub fn append(cloud: &Cloud, event: &OpenEnvelope) {
    let metadata = &event.metadata;
    cloud.put(
        EVENTS,
        json!({
            "entity": metadata.log_key(),
            "sequence": metadata.sequence,
            "type": metadata.kind,
            "source": "test",
            "occurredAt": metadata.occurred_at,
            "operatorId": metadata.operator_id,
            "detail": serde_json::to_string(event).expect("JSON"),
        }),
    );
}

/// Returns a batch of these events in the format of Lambda's event. The sequence number of a record is its index.
///
/// # Panics
/// Never: each event can be written as JSON.
#[must_use]
pub fn batch<'a>(events: impl IntoIterator<Item = &'a OpenEnvelope>) -> Value {
    let record = |(number, event): (u64, &OpenEnvelope)| {
        json!({
            "eventID": format!("shardId-000000000000:{number}"),
            "kinesis": {
                "partitionKey": event.metadata.log_key(),
                "sequenceNumber": number.to_string(),
                "data": STANDARD.encode(serde_json::to_vec(event).expect("JSON")),
            },
        })
    };
    json!({ "Records": (0..).zip(events).map(record).collect::<Vec<_>>() })
}

/// Returns the sequence number of the record from which Lambda delivers again. `None` if the batch is done.
fn first_failed(response: &Result<Value, String>) -> Option<String> {
    let failures = response.as_ref().expect("a response")["batchItemFailures"].as_array();
    let first = failures.and_then(|all| all.first())?;
    Some(first["itemIdentifier"].as_str().expect("a number").to_owned())
}

/// Checks a consumer. `start` starts an execution environment. `rows` returns the consumer's rows, without anything
/// that may depend on the order or the number of deliveries.
///
/// # Panics
/// If the consumer does not keep the contract.
pub fn check<C: EventConsumer>(start: impl Fn(&Cloud) -> C, rows: impl Fn(&Cloud) -> Vec<Value>) {
    let events = history();
    let prepared = || {
        let cloud = Cloud::new(Rng::from_seed(7));
        for event in &events {
            append(&cloud, event);
        }
        cloud
    };
    let deliver = async |cloud: &Cloud, batch: &Value| {
        let response = start(cloud).handle(batch, TIME).await;
        assert_eq!(first_failed(&response), None, "{response:?}");
    };

    let expected = cloud::run(async {
        let cloud = prepared();
        for event in &events {
            deliver(&cloud, &batch([event])).await;
        }
        rows(&cloud)
    });
    assert!(!expected.is_empty(), "the consumer writes nothing");
    let whole = batch(&events);
    let same = |case: &str, cloud: &Cloud| assert_eq!(rows(cloud), expected, "{case}");

    cloud::run(async {
        let cloud = prepared();
        for _ in 0..2 {
            deliver(&cloud, &whole).await;
        }
        same("the batch is delivered twice", &cloud);

        let cloud = prepared();
        deliver(&cloud, &batch(events.iter().rev())).await;
        same("the events are in reverse order", &cloud);

        let cloud = prepared();
        for event in events.iter().rev() {
            deliver(&cloud, &batch([event])).await;
        }
        same("each event is delivered alone, the last one first", &cloud);
    });
    cloud::run(only_the_last_events(&events, prepared(), &start, &same));
    cloud::run(a_gap_in_the_log(&events, &start, &same));

    // The entities have no cursor yet, or a cursor at their first event.
    for earlier in [0, 1] {
        cloud::run(async {
            let cloud = prepared();
            let first = events.iter().filter(|event| event.metadata.sequence <= earlier);
            deliver(&cloud, &batch(first)).await;
            let (old, new) = (start(&cloud), start(&cloud));
            let reversed = batch(events.iter().rev());
            let (one, two) = join(old.handle(&whole, TIME), new.handle(&reversed, TIME)).await;
            assert_eq!((first_failed(&one), first_failed(&two)), (None, None));
            same("two executions get the same events at once", &cloud);
        });
    }

    // The transaction takes effect, but the function does not get the response.
    for operation in ["TransactWriteItems", "UpdateItem"] {
        cloud::run(async {
            let cloud = prepared();
            cloud.interrupt(operation, CallFault::LostResponse, Duration::from_secs(1));
            start(&cloud).handle(&whole, TIME).await.expect("a response");
            cloud.stop_faults();
            deliver(&cloud, &whole).await;
            same("the response to a transaction is lost", &cloud);
        });
    }
    // The function dies at any point, also between its effect and its response.
    for polls in 1..200 {
        cloud::run(async {
            let cloud = prepared();
            let function = start(&cloud);
            let finished = until_poll(function.handle(&whole, TIME), polls).await;
            // What was sent still takes effect.
            tokio::time::sleep(Duration::from_secs(1)).await;
            if finished.is_none() {
                deliver(&cloud, &whole).await;
            }
            same("the function dies", &cloud);
        });
    }
}

/// All events but the last one of each entity are missing. The consumer reads them from the log.
async fn only_the_last_events<C: EventConsumer>(
    events: &[OpenEnvelope],
    cloud: Cloud,
    start: &impl Fn(&Cloud) -> C,
    same: &impl Fn(&str, &Cloud),
) {
    let is_last = |event: &&OpenEnvelope| {
        let later = |other: &OpenEnvelope| {
            other.metadata.log_key() == event.metadata.log_key()
                && other.metadata.sequence > event.metadata.sequence
        };
        !events.iter().any(later)
    };
    let last: Vec<_> = events.iter().filter(is_last).collect();
    assert!(last.len() < events.len());
    let response = start(&cloud).handle(&batch(last), TIME).await;
    assert_eq!(first_failed(&response), None, "{response:?}");
    same("all events but the last ones are missing", &cloud);
}

/// One event is not in the log, but its successors are delivered. Only the records of its entity fail.
async fn a_gap_in_the_log<C: EventConsumer>(
    events: &[OpenEnvelope],
    start: &impl Fn(&Cloud) -> C,
    same: &impl Fn(&str, &Cloud),
) {
    let missing = events.iter().find(|event| event.metadata.kind == "SiteRenamed");
    let missing = missing.expect("an event in the middle");
    let cloud = Cloud::new(Rng::from_seed(7));
    let others: Vec<_> = events.iter().filter(|event| *event != missing).collect();
    for event in &others {
        append(&cloud, event);
    }
    let without = batch(others.iter().copied());
    let after = others.iter().position(|event| {
        event.metadata.log_key() == missing.metadata.log_key()
            && event.metadata.sequence > missing.metadata.sequence
    });
    let after = after.map(|index| index.to_string());
    for _ in 0..2 {
        let response = start(&cloud).handle(&without, TIME).await;
        assert_eq!(first_failed(&response), after, "only the events after the gap fail");
    }
    // The later records of other entities were applied, so it is enough to deliver the records of this entity again.
    append(&cloud, missing);
    let of_entity =
        others.iter().filter(|event| event.metadata.log_key() == missing.metadata.log_key());
    let response = start(&cloud).handle(&batch(of_entity.copied()), TIME).await;
    assert_eq!(first_failed(&response), None, "{response:?}");
    same("a gap of the log is filled late", &cloud);
}

/// A projection in mode `latest` under test.
pub trait LatestConsumer {
    /// The function, which EventBridge calls with one event at a time.
    type Function: Step;

    /// Starts an execution environment.
    fn start(&self, cloud: &Cloud) -> Self::Function;

    /// Writes the rows that the events presuppose.
    fn prepare(&self, cloud: &Cloud) -> impl Future<Output = ()>;

    /// Returns the events in the format of EventBridge: for each projected row, those events of one entity that replace
    /// it, in their order. Each must change the row.
    fn histories(&self) -> Vec<Vec<Value>>;

    /// Returns the rows of the projection, without anything that may depend on the order or the number of deliveries.
    fn rows(&self, cloud: &Cloud) -> Vec<Value>;
}

/// Checks a projection in mode `latest`.
///
/// # Panics
/// If it does not keep the contract.
pub fn check_latest<C: LatestConsumer>(consumer: &C) {
    let case = LatestCase { consumer, histories: consumer.histories() };
    let in_order: Vec<&Value> = case.histories.iter().flatten().collect();
    let expected = cloud::run(async {
        let cloud = case.prepared().await;
        for event in &in_order {
            let before = consumer.rows(&cloud);
            case.deliver(&cloud, event).await;
            assert_ne!(consumer.rows(&cloud), before, "the event changes nothing: {event}");
        }
        // All events are repeated, so all but the newest ones are older than their rows.
        let line = cloud.log_length();
        for event in in_order.iter().rev().chain(&in_order) {
            case.deliver(&cloud, event).await;
        }
        let writes = |entry: &Entry| matches!(entry, Entry::Effect { .. });
        assert!(!cloud.log_from(line).iter().any(writes), "an older or a repeated event writes");
        consumer.rows(&cloud)
    });

    let newest: Vec<&Value> = case.histories.iter().filter_map(|events| events.last()).collect();
    for (name, order) in [
        ("each event is delivered twice", in_order.iter().flat_map(|it| [*it, *it]).collect()),
        ("the events are in reverse order", in_order.iter().rev().copied().collect()),
        ("the newest events come first", newest.iter().chain(&in_order).copied().collect()),
        ("all events but the newest ones are missing", newest.clone()),
    ] {
        let order: Vec<&Value> = order;
        cloud::run(async {
            let cloud = case.prepared().await;
            let line = cloud.log_length();
            for event in order {
                case.deliver(&cloud, event).await;
            }
            assert_eq!(consumer.rows(&cloud), expected, "{name}");
            assert!(!cloud.log_from(line).iter().any(reads_the_log), "{name}: the log is read");
        });
    }
    for (index, history) in case.histories.iter().enumerate() {
        let Some((newest, older)) = history.split_last() else { continue };
        assert!(!older.is_empty(), "without an older event, the order is not checked");
        for other in history {
            for pair in [[other, newest], [newest, other]] {
                case.at_once(index, pair, &expected);
            }
        }
        case.crashes(index, &expected);
    }
}

/// Returns whether a call reads the events table.
fn reads_the_log(entry: &Entry) -> bool {
    let Entry::Called { operation, body, .. } = entry else { return false };
    match operation.as_str() {
        "GetItem" | "Query" | "Scan" => body["TableName"] == EVENTS,
        "BatchGetItem" => body["RequestItems"].get(EVENTS).is_some(),
        _ => false,
    }
}

/// A projection in mode `latest` with its events.
struct LatestCase<'a, C> {
    consumer: &'a C,
    histories: Vec<Vec<Value>>,
}

impl<C: LatestConsumer> LatestCase<'_, C> {
    async fn prepared(&self) -> Cloud {
        let cloud = Cloud::new(Rng::from_seed(7));
        self.consumer.prepare(&cloud).await;
        cloud
    }

    /// Delivers an event to a new execution environment until it succeeds, as Lambda does.
    async fn deliver(&self, cloud: &Cloud, event: &Value) {
        let function = self.consumer.start(cloud);
        let outcome = Box::pin(run_retrying(&function, event)).await;
        assert!(outcome.is_ok(), "{outcome:?}: {event}");
    }

    /// Returns a cloud in which all rows have their newest events, except the row of this history.
    async fn without(&self, index: usize) -> Cloud {
        let cloud = self.prepared().await;
        let others = self.histories.iter().enumerate().filter(|(other, _)| *other != index);
        for newest in others.filter_map(|(_, events)| events.last()) {
            self.deliver(&cloud, newest).await;
        }
        cloud
    }

    /// Two executions get events of the same row at once. One of the events is the newest one.
    fn at_once(&self, index: usize, [one, other]: [&Value; 2], expected: &[Value]) {
        cloud::run(async {
            let cloud = self.without(index).await;
            join(self.deliver(&cloud, one), self.deliver(&cloud, other)).await;
            assert_eq!(self.consumer.rows(&cloud), expected, "at once: {one} and {other}");
        });
    }

    /// The function dies at any point with one event of the row, also between its effect and its response. Or it gets no
    /// response to its write. The event is delivered again after the newest one.
    fn crashes(&self, index: usize, expected: &[Value]) {
        for event in &self.histories[index] {
            let newest = self.histories[index].last().expect("an event");
            let finish = async |cloud: &Cloud, case: &str| {
                // What was sent may take effect after the newest event, and before it is delivered again.
                self.deliver(cloud, newest).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
                self.deliver(cloud, event).await;
                assert_eq!(self.consumer.rows(cloud), expected, "{case}: {event}");
            };
            for operation in ["PutItem", "TransactWriteItems", "UpdateItem"] {
                cloud::run(async {
                    let cloud = self.without(index).await;
                    let second = Duration::from_secs(1);
                    cloud.interrupt(operation, CallFault::LostResponse, second);
                    self.deliver(&cloud, event).await;
                    finish(&cloud, "the response to a write is lost").await;
                });
            }
            let mut polls = 0;
            let mut has_finished = false;
            while !has_finished {
                polls += 1;
                has_finished = cloud::run(async {
                    let cloud = self.without(index).await;
                    let function = self.consumer.start(&cloud);
                    let outcome = until_poll(Box::pin(run(&function, event)), polls).await;
                    finish(&cloud, "the function dies").await;
                    outcome.is_some()
                });
            }
            assert!(polls > 1, "the function never dies");
        }
    }
}

/// Polls the work at most `polls` times, then drops it. Returns `None` if it has not ended by then.
pub async fn until_poll<T>(work: impl Future<Output = T>, polls: u64) -> Option<T> {
    let mut work = pin!(work);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        work.as_mut().poll(context).map(Some)
    })
    .await
}
