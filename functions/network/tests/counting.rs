//! Tests of watch-network: the contract of a consumer, what it counts, what it costs, and its rebuild.

mod support;

use std::time::Duration;

use consumer::rebuild::{self, State};
use contracts::{OperatorId, SiteId, Timestamp, replay::Rebuild};
use fault::{ErrorKind, ReplayResponse};
use lambda::Deadline;
use serde_json::{Value, json, value::to_raw_value};
use support::{rows_of_current, watch_network};
use testkit::{
    cloud::{self, Cloud},
    consuming::{self, EventConsumer, append, batch, event, history},
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

/// Returns the write units of a batch of these numbers of entities and events of each.
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
fn an_event_costs_two_write_units_and_its_share_of_the_counts() {
    cloud::run(async {
        // 100 cursors, and two rows of counts for each of the 8 shards. Each write of a transaction counts twice.
        assert_eq!(units(100, 1).await, (2 * (100 + 2 * 8)).to_string());
        // One cursor and two rows of counts.
        assert_eq!(units(1, 100).await, (2 * 3).to_string());
        assert_eq!(units(1, 1).await, (2 * 3).to_string());
    });
}

#[test]
fn events_that_do_not_fit_into_a_transaction_are_split() {
    cloud::run(async {
        let other = other_operator();
        // 150 entities of one shard with events of many days: more than 100 rows.
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
        // One entity with more types than an expression may have, and many days.
        for sequence in 1..=400 {
            let kind =
                format!("type {sequence} with a long name that makes the expression too long");
            events.push(event(other, ("acme.sample", "many"), sequence, &kind));
        }
        let response = deliver(&cloud, &batch(&events)).await;
        assert_eq!(response["batchItemFailures"], json!([]));
        let total: u64 = cloud
            .rows(NETWORK)
            .iter()
            .flat_map(|row| row.as_object().expect("a row").iter())
            .filter(|(name, _)| name.starts_with("type_"))
            .map(|(_, value)| {
                value["N"].as_str().expect("a count").parse::<u64>().expect("a count")
            })
            .sum();
        assert_eq!(total, events.len() as u64);
    });
}

#[test]
fn a_rebuilt_generation_equals_one_that_was_never_emptied() {
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
        let apply = Rebuild::Apply { generation: 2, entities: entities.clone() };
        let applied = rebuild_at(&cloud, apply.clone(), noon(0)).await.expect("applied");
        assert_eq!(applied, json!({ "applied": events.len() }));
        let applied = rebuild_at(&cloud, apply, noon(0)).await.expect("applied");
        assert_eq!(applied, json!({ "applied": 0 }));
        let many = Rebuild::Apply { generation: 2, entities: vec![String::new(); 101] };
        let refused = rebuild_at(&cloud, many, noon(0)).await.expect_err("too many");
        assert_eq!(refused.kind, ErrorKind::InvalidInput);
        let unknown = Rebuild::Apply { generation: 3, entities };
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

#[test]
fn a_rebuild_stops_at_its_deadline_and_continues() {
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
        let mut calls = 0;
        loop {
            calls += 1;
            let action = Rebuild::Apply { generation: 2, entities: entities.clone() };
            let time = Deadline::after(Duration::from_millis(400));
            match watch_network(&cloud).0.rebuild(action, noon(0), time).await {
                Ok(_) => break,
                Err(error) => assert_eq!(error.kind, ErrorKind::Transient, "{error}"),
            }
        }
        assert!((2..30).contains(&calls), "{calls} calls");
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
