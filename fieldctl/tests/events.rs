//! Tests `fieldctl events`: the index by type and time, events of other systems, and the stream.

mod cloud;

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use cloud::{Cloud, ReceivedRequest};
use contracts::{
    EventId, OnboardingId, OperatorId, SagaContext, SiteId, Timestamp,
    events::SiteActivated,
    open::{OpenEntity, foreign_correlation_key},
};
use serde_json::{Value, json};
use store::{NewEvent, shard, type_bucket};
use testkit::dynamo::EVENTS;

type FakeResponse = (u16, Value, Vec<(&'static str, &'static str)>);

const DAY: i64 = 86_400_000;

fn nothing(_: &ReceivedRequest) -> FakeResponse {
    (200, Value::Null, vec![])
}

fn operator() -> OperatorId {
    OperatorId::registered("alps")
}

fn noon() -> Timestamp {
    "2026-03-10T12:00:00Z".parse().expect("a time")
}

/// Stores an event `SiteActivated`. Each number stands for another site. Without `bucket`, the row is like those of
/// earlier releases.
async fn put_own(cloud: &Cloud, operator: OperatorId, number: u64, at: Timestamp, bucket: bool) {
    let site_id = SiteId::registered(operator, "http", &number.to_string());
    let saga = SagaContext::for_site(operator, site_id, None);
    let row = NewEvent::in_saga(saga, site_id, number, at, SiteActivated { site_id }).row();
    let mut row = row.expect("a row");
    row.type_bucket = row.type_bucket.filter(|_| bucket);
    cloud.dynamo.put(EVENTS, json!(row)).await;
}

/// Returns an event of another system.
fn foreign(operator: OperatorId, id: &str, sequence: u64) -> Value {
    let entity = OpenEntity { kind: "acme.instrument".to_owned(), id: id.to_owned() };
    json!({
        "metadata": {
            "eventId": EventId::from_log_key(&entity.log_key(operator), sequence),
            "type": "acme.Calibrated", "occurredAt": noon(), "sequence": sequence,
            "entity": entity, "correlationId": "order 7", "operatorId": operator,
            "cloudEvent": { "source": "acme.lims", "id": "1" },
        },
        "data": { "gas": "zero", "siteId": SiteId::registered(operator, "", "not a site") },
    })
}

/// Stores the row of an event of another system, as append-event writes it.
async fn put_foreign(cloud: &Cloud, operator: OperatorId, id: &str, sequence: u64) {
    let detail = foreign(operator, id, sequence);
    let key = format!("{operator}/acme.instrument#{id}");
    let row = json!({
        "entity": key, "sequence": sequence, "eventType": "acme.Calibrated", "source": "acme.lims",
        "occurredAt": noon(), "correlationId": foreign_correlation_key(operator, "order 7"),
        "operatorId": operator, "detail": detail.to_string(),
        "typeBucket": type_bucket(operator, "acme.Calibrated", noon(), shard(&key)),
    });
    cloud.dynamo.put(EVENTS, row).await;
}

/// Returns the sequences of the printed events.
fn sequences(out: &str) -> Vec<u64> {
    let events = serde_json::Deserializer::from_str(out).into_iter::<Value>();
    let sequence = |event: Value| event["detail"]["metadata"]["sequence"].as_u64();
    events.map(|event| sequence(event.expect("JSON")).expect("a sequence")).collect()
}

#[tokio::test]
async fn events_of_a_type_are_listed_once_with_those_of_earlier_releases() {
    let cloud = Cloud::start(nothing).await;
    let own = OperatorId::DEFAULT;
    // One event a day: 1, 3 and 6 are of an earlier release.
    for (number, bucket) in [(1, false), (2, true), (3, false), (4, true), (5, true), (6, false)] {
        let at = noon().plus_millis(DAY * i64::try_from(number).expect("small"));
        put_own(&cloud, own, number, at, bucket).await;
        put_own(&cloud, operator(), number + 100, at, bucket).await;
    }
    let list = async |more: &[&str]| {
        let period = ["--from", "2026-03-10T12:00:00Z", "--to", "2026-03-20T00:00:00Z"];
        let of = ["--json", "events", "list", "--type", "SiteActivated"];
        let (code, out, err) = cloud.run(&[&of[..], &period, more].concat()).await;
        assert_eq!((code, err.as_str()), (0, ""), "{more:?}");
        sequences(&out)
    };
    assert_eq!(list(&[]).await, [1, 2, 3, 4, 5, 6]);
    for (limit, expected) in [("1", &[6][..]), ("2", &[5, 6]), ("4", &[3, 4, 5, 6])] {
        assert_eq!(list(&["--limit", limit]).await, expected, "{limit}");
    }
    let other = operator().to_string();
    assert_eq!(list(&["--operator", &other]).await, [101, 102, 103, 104, 105, 106]);
}

#[tokio::test]
async fn a_period_ends_within_a_day() {
    let cloud = Cloud::start(nothing).await;
    for number in 0..4 {
        let at = noon().plus_millis(DAY * i64::try_from(number).expect("small"));
        put_own(&cloud, OperatorId::DEFAULT, number + 1, at, true).await;
    }
    for (from, to, expected) in [
        ("2026-03-10T12:00:00Z", "2026-03-13T12:00:00Z", &[1, 2, 3][..]),
        ("2026-03-10T12:00:00.001Z", "2026-03-13T12:00:00.001Z", &[2, 3, 4]),
        ("2026-03-11T00:00:00Z", "2026-03-12T00:00:00Z", &[2]),
    ] {
        let of = ["--json", "events", "list", "--type", "SiteActivated"];
        let (_, out, err) = cloud.run(&[&of[..], &["--from", from, "--to", to]].concat()).await;
        assert_eq!(sequences(&out), expected, "{from} {to}: {err}");
    }
    let backwards = ["--from", "2026-03-11T00:00:00Z", "--to", "2026-03-10T00:00:00Z"];
    let of = ["events", "list", "--type", "SiteActivated"];
    assert_eq!(cloud.run(&[&of[..], &backwards].concat()).await.0, 2);
}

#[tokio::test]
async fn a_type_that_is_not_known_is_no_error() {
    let cloud = Cloud::start(nothing).await;
    let list = async |kind: &str, more: &[&str]| {
        let of =
            ["events", "list", "--from", "2026-03-01T00:00:00Z", "--to", "2026-04-01T00:00:00Z"];
        cloud.run(&[&of[..], &["--type", kind], more].concat()).await
    };
    let (code, out, _) = list("SiteActive", &[]).await;
    let period = "from 2026-03-01T00:00:00.000Z until 2026-04-01T00:00:00.000Z";
    let expected = format!(
        "No events of type SiteActive of the default operator {period}; did you mean SiteActivated?\n"
    );
    assert_eq!((code, out), (0, expected));
    let (code, out, err) = list("SiteActive", &["--json"]).await;
    assert!(code == 0 && out.is_empty() && err.contains("SiteActivated?"), "{err}");
    let (code, out, _) = list("acme.Calibrated", &[]).await;
    let expected = format!("No events of type acme.Calibrated of the default operator {period}.\n");
    assert_eq!((code, out), (0, expected));
    put_foreign(&cloud, operator(), "SN 1", 1).await;
    assert!(list("acme.Calibrated", &[]).await.1.starts_with("No events"), "another operator's");
    let other = operator().to_string();
    let (_, out, _) = list("acme.Calibrated", &["--operator", &other, "--json"]).await;
    assert_eq!(sequences(&out), [1]);
}

#[tokio::test]
async fn events_of_other_systems_are_shown_with_their_entity() {
    let cloud = Cloud::start(nothing).await;
    for sequence in [1, 2] {
        put_foreign(&cloud, OperatorId::DEFAULT, "SN 1/#b", sequence).await;
    }
    put_foreign(&cloud, operator(), "SN 1/#b", 3).await;
    let other = operator().to_string();
    for of in [["--entity", "acme.instrument/SN 1/#b"], ["--correlation", "order 7"]] {
        let list =
            async |more: &[&str]| cloud.run(&[&["events", "list"][..], &of, more].concat()).await;
        let (code, out, err) = list(&[]).await;
        assert_eq!((code, err.as_str()), (0, ""), "{of:?}");
        let lines: Vec<_> = out.lines().collect();
        assert_eq!(lines.len(), 3, "{out}");
        assert!(
            lines[1].contains("acme.instrument/SN 1/#b") && lines[1].ends_with("gas zero"),
            "{out}"
        );
        assert!(!out.contains("not a site"), "{out}");
        let (_, out, _) = list(&["--operator", &other, "--json"]).await;
        assert_eq!(sequences(&out), [3], "{of:?}");
    }
    let (code, _, err) = cloud.run(&["events", "list", "--entity", "acme.instrument/none"]).await;
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("of the default operator") && err.contains("--operator"), "{err}");
    let (code, _, err) = cloud.run(&["events", "list", "--correlation", "none"]).await;
    assert_eq!(code, 3, "{err}");
    let (code, _, err) = cloud.run(&["events", "list", "--entity", "sit/1"]).await;
    assert!(code == 2 && err.contains("did you mean site?") && err.contains("have a dot"), "{err}");
}

/// An id that another system has chosen may be that of an onboarding.
#[tokio::test]
async fn a_correlation_id_finds_the_events_of_the_site_and_of_other_systems() {
    let cloud = Cloud::start(nothing).await;
    let site = SiteId::registered(OperatorId::DEFAULT, "http", "1");
    put_own(&cloud, OperatorId::DEFAULT, 1, noon(), true).await;
    let onboarding = OnboardingId::from_site(site).to_string();
    let key = format!("{}/acme.instrument#1", OperatorId::DEFAULT);
    let row = json!({
        "entity": key, "sequence": 2, "eventType": "acme.Calibrated", "source": "acme.lims",
        "occurredAt": noon().plus_millis(1), "detail": foreign(OperatorId::DEFAULT, "1", 2).to_string(),
        "correlationId": foreign_correlation_key(OperatorId::DEFAULT, &onboarding),
    });
    cloud.dynamo.put(EVENTS, row).await;
    let (_, out, err) =
        cloud.run(&["--json", "events", "list", "--correlation", &onboarding]).await;
    assert_eq!(sequences(&out), [1, 2], "{err}");
}

/// Returns a record with that event.
fn record(detail: &Value) -> Value {
    json!({
        "SequenceNumber": detail["metadata"]["sequence"].to_string(), "PartitionKey": "k",
        "Data": STANDARD.encode(detail.to_string()), "ApproximateArrivalTimestamp": 1_767_225_600.0,
    })
}

fn own(sequence: u64) -> Value {
    foreign(OperatorId::DEFAULT, "1", sequence)
}

fn shard_of_stream(id: &str, parents: &[&str], is_closed: bool) -> Value {
    let mut range = json!({ "StartingSequenceNumber": "0" });
    if is_closed {
        range["EndingSequenceNumber"] = "9".into();
    }
    json!({
        "ShardId": id, "SequenceNumberRange": range, "ParentShardId": parents.first(),
        "AdjacentParentShardId": parents.get(1),
        "HashKeyRange": { "StartingHashKey": "0", "EndingHashKey": "1" },
    })
}

/// Answers as a stream whose shard `a` is split into `b` and `c`, which are merged into `d`. A closed shard `old` has
/// earlier events.
fn resharded(request: &ReceivedRequest, reads: &Mutex<BTreeMap<String, usize>>) -> FakeResponse {
    let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
    let refuse = |name: &'static str| {
        (400, json!({ "__type": name, "message": "no" }), vec![("x-amzn-errortype", name)])
    };
    let read = |records: &[Value], next: Option<&str>| {
        let records: Vec<_> = records.iter().map(record).collect();
        (
            200,
            json!({ "Records": records, "NextShardIterator": next, "MillisBehindLatest": 0 }),
            vec![],
        )
    };
    let mut reads = reads.lock().unwrap_or_else(PoisonError::into_inner);
    match request.operation.rsplit('.').next().unwrap_or_default() {
        "ListShards" => {
            assert_eq!(body["StreamName"], "test-events");
            let is_split = reads.contains_key("a2");
            let mut shards =
                vec![shard_of_stream("old", &[], true), shard_of_stream("a", &["old"], is_split)];
            if is_split {
                shards.push(shard_of_stream("b", &["a"], true));
                shards.push(shard_of_stream("c", &["a"], true));
                shards.push(shard_of_stream("d", &["b", "c"], false));
            }
            (200, json!({ "Shards": shards }), vec![])
        }
        "GetShardIterator" => {
            let shard = body["ShardId"].as_str().expect("a shard");
            let kind = body["ShardIteratorType"].as_str().expect("a type");
            let iterator = match (shard, kind) {
                ("a", "LATEST") => "a0",
                ("a", "AFTER_SEQUENCE_NUMBER") => {
                    assert_eq!(body["StartingSequenceNumber"], "1");
                    "a2"
                }
                ("b" | "c" | "d", "TRIM_HORIZON") => shard,
                other => panic!("{other:?}"),
            };
            (200, json!({ "ShardIterator": iterator }), vec![])
        }
        "GetRecords" => {
            let iterator = body["ShardIterator"].as_str().expect("an iterator").to_owned();
            let count = reads.entry(iterator.clone()).or_default();
            *count += 1;
            match (iterator.as_str(), *count) {
                ("a0", _) => read(&[own(1), foreign(operator(), "1", 1)], Some("a1")),
                ("a1", 1) => refuse("ProvisionedThroughputExceededException"),
                ("a1", _) => refuse("ExpiredIteratorException"),
                // The first event is repeated.
                ("a2", _) => read(&[own(1), own(2)], None),
                ("b", _) => read(&[own(3)], None),
                // The shard `b` ends two reads before `c`. The shard `d` must not be read before `c` ends.
                ("c", 1 | 2) => read(&[], Some("c")),
                ("c", _) => read(&[own(4)], None),
                ("d", _) => read(&[own(5)], Some("d")),
                other => panic!("{other:?}"),
            }
        }
        other => panic!("{other} is not expected"),
    }
}

#[tokio::test]
async fn tail_follows_shards_and_shows_each_event_once() {
    let reads = Mutex::default();
    let cloud = Cloud::start(move |request| resharded(request, &reads)).await;
    let default = OperatorId::DEFAULT.to_string();
    let tail = ["--json", "events", "tail", "--seconds", "11", "--operator", &default];
    let (code, out, err) = cloud.run(&tail).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert_eq!(sequences(&out), [1, 2, 3, 4, 5]);
    let event: Value = serde_json::from_str(out.lines().next().expect("a line")).expect("JSON");
    assert_eq!(event["source"], "acme.lims");
    assert_eq!(event["publishedAt"], "2026-01-01T00:00:00.000Z");
    assert_eq!(event["detail"], own(1));
}

#[tokio::test]
async fn tail_shows_all_operators_and_selects_by_type() {
    let reads = Mutex::default();
    let cloud = Cloud::start(move |request| resharded(request, &reads)).await;
    let (_, out, _) = cloud.run(&["events", "tail", "--seconds", "1"]).await;
    assert_eq!(out.matches("acme.instrument/1").count(), 2, "{out}");
    let (code, out, err) =
        cloud.run(&["events", "tail", "--seconds", "1", "--type", "SiteCreate"]).await;
    assert!(code == 0 && out.is_empty(), "{out}");
    assert!(err.contains("did you mean SiteCreated?"), "{err}");
}

#[tokio::test]
async fn a_stream_that_can_not_be_read_is_an_error() {
    let cloud = Cloud::start(|_| {
        let name = "ResourceNotFoundException";
        (400, json!({ "__type": name, "message": "no stream" }), vec![("x-amzn-errortype", name)])
    })
    .await;
    let (code, _, err) = cloud.run(&["events", "tail", "--seconds", "1"]).await;
    assert_eq!(code, 3, "{err}");
}
