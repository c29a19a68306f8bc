//! Tests of watch-network: the contract of a consumer, what it counts, what it costs, and its rebuild.

mod support;

use std::{collections::BTreeSet, time::Duration};

use consumer::rebuild;
use contracts::{
    OperatorId, SiteId, Timestamp,
    open::OpenEnvelope,
    replay::{Applied, Rebuild},
};
use fault::{ErrorKind, ReplayResponse};
use lambda::Deadline;
use serde_json::{Value, json, value::to_raw_value};
use store::generation::State;
use support::{rows_of_current, watch_network};
use testkit::{
    cloud::{self, Cloud},
    consuming::{self, EventConsumer, append, batch, event, history, until_poll},
    dynamo::NETWORK,
    rng::Rng,
    sample::{noon, other_operator},
};

const TIME: Duration = Duration::from_secs(29);

fn cloud() -> Cloud {
    Cloud::new(Rng::from_seed(1))
}

async fn deliver(cloud: &Cloud, payload: &Value) -> Value {
    watch_network(cloud).handle(payload, TIME).await.expect("a response")
}

/// Returns the call that applies these entities' events to a generation. It accepts a partial reply.
fn apply_to(generation: u64, entities: Vec<String>) -> Rebuild {
    Rebuild::Apply { generation, entities, partial: true }
}

async fn rebuild_at(
    cloud: &Cloud,
    action: Rebuild,
    now: Timestamp,
) -> Result<Value, fault::InvocationError> {
    watch_network(cloud).0.rebuild(action, now, Deadline::after(TIME)).await
}

#[test]
fn watch_network_applies_every_event_once() {
    consuming::check(watch_network, rows_of_current);
}

#[test]
fn a_record_that_is_no_event_is_quarantined_and_the_others_are_counted() {
    cloud::run(async {
        let cloud = cloud();
        let events = history();
        let mut payload = batch(&events[..2]);
        payload["Records"][0]["kinesis"]["data"] = "bm90IEpTT04=".into();
        let before = cloud.rows(NETWORK);
        let response = deliver(&cloud, &payload).await;
        assert_eq!(response["batchItemFailures"], json!([]));
        let [message] = &cloud.messages()[..] else { panic!("{:?}", cloud.messages()) };
        assert_eq!(
            (&message["source"], &message["error"]),
            (&json!("watch-network"), &json!("InvalidInput"))
        );
        assert_eq!(message["record"]["kinesis"]["sequenceNumber"], "0");
        assert_ne!(cloud.rows(NETWORK), before);
        // A replay answers with the reason and quarantines nothing.
        let record = to_raw_value(&message["record"]).expect("JSON");
        let replayed = watch_network(&cloud).0.replay(&record, Deadline::after(TIME)).await;
        assert!(
            matches!(&replayed, ReplayResponse::Failed { error, .. } if error == "InvalidInput"),
            "{replayed:?}"
        );
        assert_eq!(cloud.messages().len(), 1);
    });
}

#[test]
fn a_replayed_record_is_applied_once() {
    cloud::run(async {
        let cloud = cloud();
        let events = history();
        let payload = batch([&events[1], &events[2]]);
        let record = |index: usize| to_raw_value(&payload["Records"][index]).expect("JSON");
        // The log misses the event before, so the replay fails again.
        let consumer = watch_network(&cloud).0;
        append(&cloud, &events[2]);
        let replay = consumer.replay(&record(1), Deadline::after(TIME)).await;
        let ReplayResponse::Failed { error, message } = &replay else { panic!("{replay:?}") };
        assert_eq!(error, "Internal");
        assert!(message.contains("the log has no event 1"), "{message}");
        append(&cloud, &events[1]);
        for _ in 0..2 {
            assert_eq!(
                consumer.replay(&record(1), Deadline::after(TIME)).await,
                ReplayResponse::Done
            );
        }
        let response = deliver(&cloud, &batch(&events[1..3])).await;
        assert_eq!(response["batchItemFailures"], json!([]));
        let reference = Cloud::new(Rng::from_seed(1));
        for event in &events[1..3] {
            append(&reference, event);
        }
        deliver(&reference, &batch(&events[1..3])).await;
        assert_eq!(rows_of_current(&cloud), rows_of_current(&reference));
    });
}

#[test]
fn an_entity_whose_cursor_can_not_be_read_fails_alone() {
    cloud::run(async {
        let cloud = cloud();
        let of_site = |name: &str, sequence, kind| {
            let id = SiteId::registered(OperatorId::DEFAULT, "", name).to_string();
            event(OperatorId::DEFAULT, ("site", &id), sequence, kind)
        };
        let first = of_site("broken", 1, "SiteCreated");
        deliver(&cloud, &batch([&first])).await;
        let is_cursor = |row: &&Value| row["row"]["S"] == "cursor";
        let cursor =
            cloud.rows(NETWORK).iter().find(is_cursor).expect("a cursor")["id"]["S"].clone();
        cloud.put(NETWORK, json!({ "id": cursor, "row": "cursor", "sequence": "one" }));
        let events = [of_site("broken", 2, "SiteActivated"), of_site("good", 1, "SiteCreated")];
        let payload = batch(&events);
        let response = deliver(&cloud, &payload).await;
        let failed = &payload["Records"][0]["kinesis"]["sequenceNumber"];
        assert_eq!(response["batchItemFailures"], json!([{ "itemIdentifier": failed }]));
        let good = format!("#{}", events[1].metadata.log_key());
        let is_good = |row: &&Value| row["id"]["S"].as_str().is_some_and(|id| id.ends_with(&good));
        let rows = cloud.rows(NETWORK);
        assert_eq!(
            rows.iter().filter(is_good).find(is_cursor).expect("a cursor")["sequence"]["N"],
            "1"
        );
        let record = to_raw_value(&payload["Records"][0]).expect("JSON");
        let replay = watch_network(&cloud).0.replay(&record, Deadline::after(TIME)).await;
        let ReplayResponse::Failed { error, message } = &replay else { panic!("{replay:?}") };
        assert!(error == "Internal" && message.contains("cursor of"), "{error}: {message}");
    });
}

/// Returns the write units that a batch costs. It has events of `entities` entities, `each` events per entity.
async fn units(entities: u64, each: u64) -> String {
    let cloud = cloud();
    let mut events = Vec::new();
    for entity in 0..entities {
        let id = SiteId::registered(OperatorId::DEFAULT, "", &entity.to_string()).to_string();
        for sequence in 1..=each {
            let kind = if sequence == 1 { "SiteCreated" } else { "SiteActivated" };
            let mut event = event(OperatorId::DEFAULT, ("site", &id), sequence, kind);
            event.metadata.occurred_at = noon(0);
            events.push(event);
        }
    }
    let response = deliver(&cloud, &batch(&events)).await;
    assert_eq!(response["batchItemFailures"], json!([]));
    cloud.write_units().to_string()
}

#[test]
fn an_entity_of_a_batch_costs_two_write_units_and_its_share_of_the_counts() {
    cloud::run(async {
        // 100 cursors, and for each of the 8 shards a row of a type and a row of sites. Each write of a transaction counts
        // twice.
        assert_eq!(units(100, 1).await, (2 * (100 + 2 * 8)).to_string());
        // One cursor, two types, and the sites.
        assert_eq!(units(1, 100).await, (2 * 4).to_string());
        // One cursor, one type, and the sites.
        assert_eq!(units(1, 1).await, (2 * 3).to_string());
    });
}

#[test]
fn events_that_do_not_fit_into_a_transaction_are_split() {
    cloud::run(async {
        let other = other_operator();
        // 150 entities of one shard: their cursors alone are more rows than a transaction may have.
        let cloud = cloud();
        let ids = (0..).map(|n| format!("S-{n}"));
        let of_shard = |id: &String| store::shard(&format!("{other}/acme.sample#{id}")) == 0;
        let ids: Vec<_> = ids.filter(of_shard).take(150).collect();
        let mut events = Vec::new();
        for id in &ids {
            let kinds = ["sample.taken", "sample.lost"];
            events.extend(
                (1..).zip(kinds).map(|(n, kind)| event(other, ("acme.sample", id), n, kind)),
            );
        }
        // One entity with more types than a transaction may have rows.
        for sequence in 1..=400 {
            let kind = format!("type {sequence} with a long name");
            events.push(event(other, ("acme.sample", "many"), sequence, &kind));
        }
        let response = deliver(&cloud, &batch(&events)).await;
        assert_eq!(response["batchItemFailures"], json!([]));
        let total: u64 = cloud
            .rows(NETWORK)
            .iter()
            .flat_map(|row| row.as_object().expect("a row").iter())
            .filter(|(name, _)| *name == "count")
            .map(|(_, value)| {
                value["N"].as_str().expect("a count").parse::<u64>().expect("a count")
            })
            .sum();
        assert_eq!(total, events.len() as u64);
    });
}

/// Returns the number of events in the rows of these types.
fn count_of_types(cloud: &Cloud, is_type: impl Fn(&str) -> bool) -> u64 {
    let rows = cloud.rows(NETWORK);
    let rows = rows.iter().filter(|row| {
        let of_type = row["row"]["S"].as_str().expect("a row").split_once('#');
        of_type.is_some_and(|(_, kind)| is_type(kind))
    });
    let counts = rows.filter_map(|row| row["count"]["N"].as_str());
    counts.map(|count| count.parse::<u64>().expect("a count")).sum()
}

#[test]
fn a_batch_of_100_entities_of_one_shard_with_100_types_is_counted() {
    cloud::run(async {
        let (cloud, other) = (cloud(), other_operator());
        let ids = (0..).map(|n| format!("S-{n}"));
        let of_shard = |id: &String| store::shard(&format!("{other}/acme.sample#{id}")) == 0;
        let ids: Vec<_> = ids.filter(of_shard).take(100).collect();
        // 100 cursors and 100 types are 200 writes, but a transaction has at most 100.
        let mut events = Vec::new();
        for (n, id) in ids.iter().enumerate() {
            events.push(event(other, ("acme.sample", id), 1, &format!("type {n}")));
        }
        let response = deliver(&cloud, &batch(&events)).await;
        assert_eq!(response["batchItemFailures"], json!([]));
        assert_eq!(cloud.write_units().to_string(), (2 * 200).to_string());
        assert_eq!(count_of_types(&cloud, |row| row.starts_with("type ")), 100);
    });
}

#[test]
fn a_type_of_128_special_characters_is_counted_under_its_name() {
    cloud::run(async {
        let cloud = cloud();
        let kind = "/.#\"\\ ~_".repeat(16);
        assert_eq!(kind.len(), 128);
        let events = [1, 2].map(|n| event(other_operator(), ("acme.sample", "S"), n, &kind));
        let response = deliver(&cloud, &batch(&events)).await;
        assert_eq!(response["batchItemFailures"], json!([]));
        assert_eq!(count_of_types(&cloud, |row| row == kind), 2);
    });
}

#[test]
fn an_entity_that_can_not_be_applied_fails_neither_the_others_nor_live_batches() {
    cloud::run(async {
        let cloud = cloud();
        let events = history();
        let mut entities: Vec<_> = events.iter().map(|event| event.metadata.log_key()).collect();
        entities.dedup();
        let last = events.iter().rfind(|event| event.metadata.kind == "SiteDecommissioned");
        let last = last.expect("an event");
        let broken = last.metadata.log_key();
        let first = |event: &&_| -> bool {
            let event: &contracts::open::OpenEnvelope = event;
            event.metadata.log_key() == broken && event.metadata.sequence == 1
        };
        let before = |event: &&contracts::open::OpenEnvelope| *event != last;
        deliver(&cloud, &batch(events.iter().filter(before))).await;
        // The log lacks the first event of one entity.
        for event in events.iter().filter(|event| !first(event)) {
            append(&cloud, event);
        }
        rebuild_at(&cloud, Rebuild::Begin, noon(0)).await.expect("begun");
        let apply = || apply_to(2, entities.clone());

        // The new generation lacks the entity's first event, so only the current one gets its last event.
        let response = deliver(&cloud, &batch([last])).await;
        assert_eq!(response["batchItemFailures"], json!([]));
        let record = to_raw_value(&batch([last])["Records"][0]).expect("JSON");
        let replayed = watch_network(&cloud).0.replay(&record, Deadline::after(TIME)).await;
        assert_eq!(replayed, ReplayResponse::Done);
        let of_current = |cloud: &Cloud| {
            let mut rows = cloud.rows(NETWORK);
            rows.retain(|row| row["id"]["S"].as_str().expect("an id").starts_with("1/"));
            rows
        };
        let written = of_current(&cloud);
        // The log row of the first event can't be read.
        let unreadable = json!({
            "entity": broken, "sequence": 1, "type": "SiteCreated", "source": "test",
            "occurredAt": noon(0), "operatorId": OperatorId::DEFAULT, "detail": "{",
        });
        cloud.put(testkit::dynamo::EVENTS, unreadable);
        let applied = rebuild_at(&cloud, apply(), noon(0)).await.expect("applied");
        let [failed] = &applied["failed"].as_array().expect("entities")[..] else {
            panic!("{applied}")
        };
        assert_eq!(failed["entity"], broken);
        assert!(failed["reason"].as_str().expect("a reason").contains("/1"), "{failed}");
        let others = events.iter().filter(|event| event.metadata.log_key() != broken).count();
        assert_eq!(applied["applied"], others);

        let aborted = rebuild_at(&cloud, Rebuild::Abort, noon(0)).await.expect("aborted");
        assert_eq!(aborted, json!({ "generation": 2 }));
        let aborted = rebuild_at(&cloud, Rebuild::Abort, noon(0)).await.expect("aborted before");
        assert_eq!(aborted, json!({ "generation": null }));
        let finish = Rebuild::Finish { generation: 2 };
        assert!(rebuild_at(&cloud, finish, noon(0)).await.is_err());
        // The rows of the aborted generation are not used again.
        let begun = rebuild_at(&cloud, Rebuild::Begin, noon(0)).await.expect("begun");
        assert_eq!(begun, json!({ "generation": 3 }));
        assert!(rebuild_at(&cloud, apply(), noon(0)).await.is_err());
        rebuild_at(&cloud, Rebuild::Abort, noon(0)).await.expect("aborted");
        let early = rebuild_at(&cloud, Rebuild::Clean, noon(59)).await.expect("nothing yet");
        assert_eq!(early, json!({ "deleted": 0, "more": true }));
        let cleaned = rebuild_at(&cloud, Rebuild::Clean, noon(60)).await.expect("cleaned");
        assert_eq!(cleaned["more"], false);
        assert_eq!(of_current(&cloud), written);
        assert_eq!(cloud.rows(NETWORK).len(), written.len() + 1, "rows of generation 2 are left");
    });
}

#[test]
fn an_abort_while_old_rows_are_deleted_starts_the_deletion_again() {
    cloud::run(async {
        let cloud = cloud();
        // More rows than one `clean` reads.
        for n in 0..6000 {
            let row = format!("type {n}");
            cloud.put(NETWORK, json!({ "id": "1/a/events#0", "row": row, "count": 1 }));
        }
        rebuild_at(&cloud, Rebuild::Begin, noon(0)).await.expect("begun");
        rebuild_at(&cloud, Rebuild::Finish { generation: 2 }, noon(0)).await.expect("finished");
        let cleaned = rebuild_at(&cloud, Rebuild::Clean, noon(60)).await.expect("cleaned");
        assert_eq!(cleaned, json!({ "deleted": 5000, "more": true }));
        rebuild_at(&cloud, Rebuild::Begin, noon(60)).await.expect("begun");
        cloud.put(NETWORK, json!({ "id": "3/cursor#site#0", "row": "cursor", "sequence": 1 }));
        rebuild_at(&cloud, Rebuild::Abort, noon(60)).await.expect("aborted");
        let cleaned = rebuild_at(&cloud, Rebuild::Clean, noon(120)).await.expect("cleaned");
        assert_eq!(cleaned, json!({ "deleted": 1001, "more": false }));
    });
}

#[test]
fn a_rebuilt_generation_has_the_same_rows_as_the_one_that_it_replaces() {
    cloud::run(async {
        let cloud = cloud();
        let events = history();
        for event in &events {
            append(&cloud, event);
        }
        deliver(&cloud, &batch(&events)).await;
        let expected = rows_of_current(&cloud);
        let written = cloud.rows(NETWORK).len();
        let mut entities: Vec<_> = events.iter().map(|event| event.metadata.log_key()).collect();
        entities.dedup();

        let finish = Rebuild::Finish { generation: 2 };
        let refused = rebuild_at(&cloud, finish.clone(), noon(0)).await.expect_err("not begun");
        assert_eq!(refused.kind, ErrorKind::InvalidInput);
        for _ in 0..2 {
            let begun = rebuild_at(&cloud, Rebuild::Begin, noon(0)).await.expect("begun");
            assert_eq!(begun, json!({ "generation": 2 }));
        }
        let apply = apply_to(2, entities.clone());
        let applied = rebuild_at(&cloud, apply.clone(), noon(0)).await.expect("applied");
        assert_eq!(applied, json!({ "applied": events.len(), "failed": [] }));
        let applied = rebuild_at(&cloud, apply, noon(0)).await.expect("applied");
        assert_eq!(applied, json!({ "applied": 0, "failed": [] }));
        let many = apply_to(2, vec![String::new(); 101]);
        let refused = rebuild_at(&cloud, many, noon(0)).await.expect_err("too many");
        assert_eq!(refused.kind, ErrorKind::InvalidInput);
        let unknown = apply_to(3, entities);
        assert!(rebuild_at(&cloud, unknown, noon(0)).await.is_err());
        for _ in 0..2 {
            assert_eq!(
                rebuild_at(&cloud, finish.clone(), noon(0)).await.expect("finished"),
                json!({})
            );
        }
        // An execution that began before may still write to the old generation.
        let early = rebuild_at(&cloud, Rebuild::Clean, noon(59)).await.expect("nothing yet");
        assert_eq!(early, json!({ "deleted": 0, "more": true }));
        let cleaned = rebuild_at(&cloud, Rebuild::Clean, noon(60)).await.expect("cleaned");
        assert_eq!(cleaned, json!({ "deleted": written, "more": false }));
        assert_eq!(rows_of_current(&cloud), expected);
        let state = State::read(&cloud.table(NETWORK)).await.expect("a state");
        assert_eq!(state.live().collect::<Vec<_>>(), [2]);
        let begun = rebuild::begin(&cloud.table(NETWORK)).await.expect("begun");
        assert_eq!(begun.generation, 3);
    });
}

/// Returns the event of an instrument with this sequence.
fn of_instrument(sequence: u64) -> OpenEnvelope {
    event(other_operator(), ("acme.sample", "S-1"), sequence, "sample.taken")
}

fn instrument() -> String {
    of_instrument(1).metadata.log_key()
}

#[test]
fn live_events_during_a_rebuild_are_in_both_generations() {
    cloud::run(async {
        let cloud = cloud();
        append(&cloud, &of_instrument(1));
        deliver(&cloud, &batch([&of_instrument(1)])).await;
        rebuild_at(&cloud, Rebuild::Begin, noon(0)).await.expect("begun");
        let apply = apply_to(2, vec![instrument()]);
        rebuild_at(&cloud, apply, noon(0)).await.expect("applied");
        // This event is appended after its entity was applied, and it is the last one of the entity. So no call reads
        // it from the log.
        append(&cloud, &of_instrument(2));
        deliver(&cloud, &batch([&of_instrument(2)])).await;
        assert_eq!(count_of_types(&cloud, |kind| kind == "sample.taken"), 2 * 2);
        let finish = Rebuild::Finish { generation: 2 };
        rebuild_at(&cloud, finish, noon(0)).await.expect("finished");
        rebuild_at(&cloud, Rebuild::Clean, noon(60)).await.expect("cleaned");
        assert_eq!(count_of_types(&cloud, |kind| kind == "sample.taken"), 2);
    });
}

/// Returns a cloud in which generation 2 is being built. The log lacks event 2 of the instrument, which generation 1 has
/// counted, so event 3 can be applied to generation 1 only.
async fn with_a_gap() -> Cloud {
    let cloud = cloud();
    append(&cloud, &of_instrument(1));
    deliver(&cloud, &batch([&of_instrument(1), &of_instrument(2)])).await;
    rebuild_at(&cloud, Rebuild::Begin, noon(0)).await.expect("begun");
    let apply = apply_to(2, vec![instrument()]);
    let applied = rebuild_at(&cloud, apply, noon(0)).await.expect("applied");
    assert_eq!(applied, json!({ "applied": 1, "failed": [] }));
    append(&cloud, &of_instrument(3));
    cloud
}

#[test]
fn a_rebuild_that_lacks_a_live_event_is_not_finished_before_the_event_is_applied() {
    cloud::run(async {
        let cloud = with_a_gap().await;
        let finish = || rebuild_at(&cloud, Rebuild::Finish { generation: 2 }, noon(0));
        let response = deliver(&cloud, &batch([&of_instrument(3)])).await;
        assert_eq!(response["batchItemFailures"], json!([]), "readers see the event");
        let refused = finish().await.expect_err("an event is missing");
        assert_eq!(refused.kind, ErrorKind::InvalidInput);
        assert!(refused.message.contains(&instrument()), "{refused}");
        // A further `apply` can't apply it either.
        let apply = || {
            let apply = apply_to(2, vec![instrument()]);
            rebuild_at(&cloud, apply, noon(0))
        };
        let applied = apply().await.expect("a reply");
        assert_eq!(applied["failed"][0]["entity"], json!(instrument()));
        finish().await.expect_err("the event is still missing");
        append(&cloud, &of_instrument(2));
        finish().await.expect_err("the event is in the log, but not applied");
        let applied = apply().await.expect("a reply");
        assert_eq!(applied, json!({ "applied": 2, "failed": [] }));
        finish().await.expect("finished");
        rebuild_at(&cloud, Rebuild::Clean, noon(60)).await.expect("cleaned");
        assert_eq!(count_of_types(&cloud, |kind| kind == "sample.taken"), 3);
    });
}

#[test]
fn an_event_that_can_not_be_applied_while_a_rebuild_is_finished_is_delivered_again() {
    let (mut refused, mut delivered_again) = (0, 0);
    for polls in 1..80 {
        cloud::run(async {
            let cloud = with_a_gap().await;
            let (consumer, payload) = (watch_network(&cloud), batch([&of_instrument(3)]));
            let mut handling = Box::pin(consumer.handle(&payload, TIME));
            let early = until_poll(&mut handling, polls).await;
            let finish = Rebuild::Finish { generation: 2 };
            let finished = rebuild_at(&cloud, finish, noon(0)).await;
            let response = match early {
                Some(response) => response,
                None => handling.await,
            };
            let failures = response.expect("a response")["batchItemFailures"].clone();
            match finished {
                Ok(_) => assert_ne!(failures, json!([]), "{polls}: the event is missing"),
                Err(_) => assert_eq!(failures, json!([]), "{polls}"),
            }
            refused += u32::from(failures == json!([]));
            delivered_again += u32::from(failures != json!([]));
        });
    }
    assert!(refused > 0 && delivered_again > 0, "{refused}, {delivered_again}");
}

#[test]
fn a_rebuild_that_lacks_events_of_very_many_entities_can_only_be_aborted() {
    cloud::run(async {
        let cloud = cloud();
        rebuild_at(&cloud, Rebuild::Begin, noon(0)).await.expect("begun");
        let of = |n: u32, sequence| {
            event(other_operator(), ("acme.sample", &n.to_string()), sequence, "sample.taken")
        };
        for n in 0..120 {
            // Event 1 is in neither the log nor any generation.
            deliver(&cloud, &batch([&of(n, 2)])).await;
            let state = State::read(&cloud.table(NETWORK)).await.expect("a state");
            assert!(state.unapplied.len() <= 101, "{}", state.unapplied.len());
        }
        let refused = rebuild_at(&cloud, Rebuild::Finish { generation: 2 }, noon(0)).await;
        assert!(refused.expect_err("missing").message.contains("abort"));
        let aborted = rebuild_at(&cloud, Rebuild::Abort, noon(0)).await.expect("aborted");
        assert_eq!(aborted, json!({ "generation": 2 }));
        let state = State::read(&cloud.table(NETWORK)).await.expect("a state");
        assert_eq!(state.unapplied, BTreeSet::default());
        rebuild_at(&cloud, Rebuild::Begin, noon(0)).await.expect("begun");
        rebuild_at(&cloud, Rebuild::Finish { generation: 3 }, noon(0)).await.expect("finished");
    });
}

#[test]
fn a_rebuild_stops_at_its_deadline_and_continues() {
    /// The time of a call, in which some of the events are applied.
    const SHORT: Duration = Duration::from_millis(400);
    cloud::run(async {
        let cloud = cloud();
        let ids: Vec<_> = (0..100).map(|n| format!("S-{n}")).collect();
        for id in &ids {
            for sequence in 1..=20 {
                append(&cloud, &event(other_operator(), ("acme.sample", id), sequence, "taken"));
            }
        }
        let entities: Vec<_> =
            ids.iter().map(|id| format!("{}/acme.sample#{id}", other_operator())).collect();
        rebuild_at(&cloud, Rebuild::Begin, noon(0)).await.expect("begun");
        let apply = async |partial, time| {
            let action = Rebuild::Apply { generation: 2, entities: entities.clone(), partial };
            watch_network(&cloud).0.rebuild(action, noon(0), Deadline::after(time)).await
        };
        let applied = || count_of_types(&cloud, |kind| kind == "taken");

        // An earlier fieldctl would take a partial reply as complete.
        let refused = apply(false, SHORT).await.expect_err("not complete");
        assert_eq!(refused.kind, ErrorKind::Transient, "{refused}");
        // A transaction that was sent before the deadline takes effect, but the function does not count it.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = applied();
        assert!(before > 0, "an event was applied");
        // A call without progress fails.
        let refused = apply(true, Duration::from_millis(1)).await.expect_err("no event is applied");
        assert_eq!((refused.kind, applied()), (ErrorKind::Transient, before), "{refused}");

        let mut replies: Vec<Applied> = Vec::new();
        while replies.last().is_none_or(|reply| reply.more) {
            let reply = apply(true, SHORT).await.expect("a reply");
            replies.push(serde_json::from_value(reply).expect("a reply"));
        }
        assert!((2..30).contains(&replies.len()), "{replies:?}");
        assert!(replies.iter().all(|reply| !reply.more || reply.applied > 0), "{replies:?}");
        let total: u64 = replies.iter().map(|reply| reply.applied).sum();
        assert_eq!(applied(), 2000);
        assert!(before + total <= 2000, "{before}, {replies:?}");
        rebuild_at(&cloud, Rebuild::Finish { generation: 2 }, noon(0)).await.expect("finished");
        let reference = Cloud::new(Rng::from_seed(2));
        for id in &ids {
            let events: Vec<_> = (1..=20)
                .map(|sequence| event(other_operator(), ("acme.sample", id), sequence, "taken"))
                .collect();
            deliver(&reference, &batch(&events)).await;
        }
        assert_eq!(rows_of_current(&cloud), rows_of_current(&reference));
    });
}
