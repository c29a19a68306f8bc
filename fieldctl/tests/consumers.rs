//! Tests `fieldctl consumers`: the real binary against a fake of AWS.

mod cloud;
mod schemas;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use cloud::{Cloud, ReceivedRequest};
use contracts::{
    EventId, OperatorId, Timestamp,
    consumers::{EVENT_CONSUMERS, EventSource},
};
use serde_json::{Value, json};
use testkit::{
    dynamo::{AUDIT, EVENTS, NETWORK},
    golden,
};

type FakeResponse = (u16, Value, Vec<(&'static str, &'static str)>);

/// What the fake answers.
#[derive(Clone, Default)]
struct Answers {
    /// The state of the mapping. `None`: there is none.
    mapping: Option<&'static str>,
    /// The state of every rule. `None`: there are no rules.
    rules: Option<&'static str>,
    /// The values of the metrics by name.
    metrics: Vec<(&'static str, f64)>,
    /// Whether CloudWatch refuses.
    no_metrics: bool,
    /// The records of the stream: entity, sequence, age in milliseconds.
    records: Vec<(&'static str, u64, i64)>,
    /// The number of reads of the shard before these records. Each returns one event of `site#0`.
    earlier_reads: u64,
}

fn healthy() -> Answers {
    Answers {
        mapping: Some("Enabled"),
        rules: Some("ENABLED"),
        metrics: vec![("IteratorAge", 40.0), ("AsyncEventAge", 90.0), ("IncomingRecords", 7.0)],
        ..Answers::default()
    }
}

/// Returns the metrics in the order in which fieldctl requests them: one of the stream, then those of each consumer.
fn metric_data(answers: &Answers) -> Value {
    let mut names = vec!["IncomingRecords"];
    for consumer in EVENT_CONSUMERS {
        match (consumer.source, answers.rules) {
            (EventSource::Bus, Some(_)) => names.extend(["AsyncEventAge", "FailedInvocations"]),
            (EventSource::Bus, None) => names.push("AsyncEventAge"),
            (EventSource::Stream, _) => names.push("IteratorAge"),
        }
    }
    let value = |name: &str| answers.metrics.iter().find(|(it, _)| *it == name).map(|it| it.1);
    let results = names.iter().enumerate().filter_map(|(index, name)| {
        Some(json!({ "Id": format!("m{index}"), "Values": [value(name)?] }))
    });
    json!({ "MetricDataResults": results.collect::<Vec<_>>() })
}

fn record((entity, sequence, age): &(&str, u64, i64)) -> Value {
    let (kind, id) = entity.split_once('#').expect("an entity");
    let arrived = Timestamp::now().plus_millis(-age);
    let detail = json!({
        "metadata": {
            "eventId": EventId::from_log_key(entity, *sequence), "type": "SiteActivated",
            "occurredAt": arrived, "entity": { "type": kind, "id": id }, "sequence": sequence,
        },
        "data": {},
    });
    #[expect(clippy::cast_precision_loss, reason = "a time")]
    let seconds = arrived.millis() as f64 / 1000.0;
    json!({
        "SequenceNumber": "1", "PartitionKey": entity, "ApproximateArrivalTimestamp": seconds,
        "Data": STANDARD.encode(detail.to_string()),
    })
}

fn respond(answers: &Answers, request: &ReceivedRequest) -> FakeResponse {
    let what = request.operation.rsplit('.').next().unwrap_or_default();
    let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
    let mapping = |state| {
        json!({ "UUID": "u-1", "State": state, "LastProcessingResult": "OK",
            "EventSourceArn": "arn:aws:kinesis:us-east-1:0:stream/test-events" })
    };
    let other = json!({ "UUID": "u-2", "State": "Disabled",
        "EventSourceArn": "arn:aws:kinesis:us-east-1:0:stream/test-readings" });
    let response = match what {
        "ListRuleNamesByTarget" => {
            assert_eq!(body["EventBusName"], "test-events");
            let target = body["TargetArn"].as_str().expect("a target");
            assert!(target.ends_with(":live"), "{target}");
            let name = target.split(':').nth(6).expect("a function");
            let names: Vec<_> = answers.rules.iter().map(|_| format!("{name}-rule")).collect();
            json!({ "RuleNames": names })
        }
        "DescribeRule" => json!({ "Name": body["Name"], "State": answers.rules }),
        path if path.ends_with("/event-source-mappings") => {
            assert!(request.query.contains("FunctionName=test-watch-network%3Alive"));
            let mappings = answers.mapping.map(mapping).into_iter().chain([other]);
            json!({ "EventSourceMappings": mappings.collect::<Vec<_>>() })
        }
        path if path.ends_with("/GetMetricData") && answers.no_metrics => {
            let name = "AccessDeniedException";
            return (
                403,
                json!({ "__type": name, "message": "not you" }),
                vec![("x-amzn-errortype", name)],
            );
        }
        path if path.ends_with("/GetMetricData") => metric_data(answers),
        "ListShards" => json!({ "Shards": [{
            "ShardId": "a", "HashKeyRange": { "StartingHashKey": "0", "EndingHashKey": "1" },
            "SequenceNumberRange": { "StartingSequenceNumber": "0" } }] }),
        "GetShardIterator" => {
            assert_eq!(body["ShardIteratorType"], "AT_TIMESTAMP");
            json!({ "ShardIterator": "0" })
        }
        "GetRecords" => {
            let read: u64 =
                body["ShardIterator"].as_str().expect("text").parse().expect("a number");
            let next = (read + 1).to_string();
            if read < answers.earlier_reads {
                let earlier = record(&("site#0", read + 1, 100_000));
                json!({ "Records": [earlier], "NextShardIterator": next, "MillisBehindLatest": 9 })
            } else {
                let records: Vec<_> = answers.records.iter().map(record).collect();
                json!({ "Records": records, "NextShardIterator": next, "MillisBehindLatest": 0 })
            }
        }
        other => panic!("{other} is not expected"),
    };
    (200, response, vec![])
}

async fn cloud(answers: Answers) -> Cloud {
    Cloud::start(move |request| respond(&answers, request)).await
}

/// Runs a command with `--json`. Returns the exit code and the entries, after checking them against their schema.
async fn entries(cloud: &Cloud, command: &str) -> (i32, Value) {
    let (code, out, err) = cloud.run(&["--json", "consumers", command]).await;
    let entries: Vec<Value> =
        out.lines().map(|line| serde_json::from_str(line).expect(&err)).collect();
    for entry in &entries {
        let schema = format!("consumers-{command}");
        assert_eq!(schemas::violations(&schema, entry), [""; 0], "{entry:#}");
    }
    (code, entries.into())
}

fn of<'a>(entries: &'a Value, function: &str) -> &'a Value {
    let entries = entries.as_array().expect("entries");
    entries.iter().find(|it| it["function"] == function).expect(function)
}

#[tokio::test]
async fn consumers_are_listed_with_the_state_of_their_rule_or_mapping() {
    let cloud1 = cloud(healthy()).await;
    let (code, listed) = entries(&cloud1, "list").await;
    assert_eq!(code, 0);
    golden::check(env!("CARGO_MANIFEST_DIR"), "consumers-list", &listed);
    let (_, out, _) = cloud1.run(&["consumers", "list"]).await;
    assert!(out.contains("watch-network") && !out.contains("Disabled"), "{out}");
    for (mapping, rules, expected) in
        [(Some("Disabled"), Some("DISABLED"), "Disabled"), (None, None, "Missing")]
    {
        let cloud = cloud(Answers { mapping, rules, ..healthy() }).await;
        let (_, listed) = entries(&cloud, "list").await;
        for consumer in listed.as_array().expect("consumers") {
            assert_eq!(consumer["state"], expected, "{consumer}");
        }
    }
}

#[tokio::test]
async fn a_lag_is_good_only_if_it_was_measured() {
    let (code, lags) = entries(&cloud(healthy()).await, "lag").await;
    assert_eq!(code, 0, "{lags:#}");
    golden::check(env!("CARGO_MANIFEST_DIR"), "consumers-lag", &lags);

    let cases = [
        ("no metrics", Answers { metrics: vec![], ..healthy() }),
        ("CloudWatch refuses", Answers { no_metrics: true, ..healthy() }),
    ];
    for (name, answers) in cases {
        let (code, lags) = entries(&cloud(answers).await, "lag").await;
        for lag in lags.as_array().expect("lags") {
            assert_eq!(lag["health"], "unknown", "{name}: {lag:#}");
        }
        assert_eq!(code, 1, "{name}");
    }
}

#[tokio::test]
async fn a_consumer_that_is_behind_or_disabled_is_a_problem() {
    let late = |metric| {
        let metrics = healthy().metrics.into_iter();
        metrics.map(|(name, age)| (name, if name == metric { 60_001.0 } else { age })).collect()
    };
    let cases: [(&str, &[&str], Answers); 5] = [
        ("late", &["watch-network"], Answers { metrics: late("IteratorAge"), ..healthy() }),
        ("disabled", &["watch-network"], Answers { mapping: Some("Disabled"), ..healthy() }),
        (
            "unread",
            &["watch-network"],
            Answers {
                metrics: vec![("IncomingRecords", 1.0), ("AsyncEventAge", 1.0)],
                ..healthy()
            },
        ),
        (
            "late on the bus",
            &["start-onboarding", "project-site", "project-sensors", "project-rules"],
            Answers { metrics: late("AsyncEventAge"), ..healthy() },
        ),
        (
            "rules disabled",
            &["start-onboarding", "project-site", "project-sensors", "project-rules"],
            Answers { rules: Some("DISABLED"), ..healthy() },
        ),
    ];
    for (name, expected, answers) in cases {
        let (code, lags) = entries(&cloud(answers).await, "lag").await;
        let lags = lags.as_array().expect("lags").iter();
        let bad: Vec<_> = lags.filter(|it| it["health"] == "problem").collect();
        let functions: Vec<_> =
            bad.iter().map(|it| it["function"].as_str().expect("text")).collect();
        assert_eq!((code, functions.as_slice()), (1, expected), "{name}");
        assert!(bad.iter().all(|it| it["next"].is_string()), "{name}: {bad:#?}");
    }
}

#[tokio::test]
async fn cursors_are_compared_with_the_newest_events_of_the_stream() {
    let records = vec![("site#1", 4, 90_000), ("site#1", 5, 1000), ("site#2", 1, 1000)];
    let answers = Answers { records, metrics: vec![], ..healthy() };
    let cloud = cloud(answers).await;
    let put_cursor = async |generation: u64, log_key: &str, sequence: u64| {
        let id = format!("{generation}/cursor#{log_key}");
        cloud.dynamo.put(NETWORK, json!({ "id": id, "row": "cursor", "sequence": sequence })).await;
    };
    put_cursor(1, "site#1", 5).await;
    put_cursor(1, "site#2", 1).await;
    let (_, lags) = entries(&cloud, "lag").await;
    let lag = of(&lags, "watch-network");
    assert_eq!(lag["health"], "good", "the cursors prove it: {lag:#}");
    assert_eq!(lag["compared"], json!({ "entities": 2, "notApplied": 0 }));

    // Readers see generation 2, which lacks events.
    cloud.dynamo.put(NETWORK, json!({ "id": "state", "row": "state", "current": 2 })).await;
    put_cursor(2, "site#1", 3).await;
    let (code, lags) = entries(&cloud, "lag").await;
    let lag = of(&lags, "watch-network");
    assert_eq!((code, &lag["health"]), (1, &json!("problem")), "{lag:#}");
    assert_eq!(
        (&lag["compared"]["entities"], &lag["compared"]["notApplied"]),
        (&json!(2), &json!(3))
    );
    assert!(lag["compared"]["oldestSeconds"].as_f64().expect("an age") > 80.0, "{lag:#}");
}

#[tokio::test]
async fn the_newest_events_of_a_busy_shard_are_compared() {
    let (records, earlier_reads) = (vec![("site#1", 1, 1000)], 7);
    let cloud = cloud(Answers { records, earlier_reads, metrics: vec![], ..healthy() }).await;
    let cursor = json!({ "id": "1/cursor#site#0", "row": "cursor", "sequence": earlier_reads });
    cloud.dynamo.put(NETWORK, cursor).await;
    let (_, lags) = entries(&cloud, "lag").await;
    let compared = &of(&lags, "watch-network")["compared"];
    assert_eq!(
        (&compared["entities"], &compared["notApplied"]),
        (&json!(2), &json!(1)),
        "{lags:#}"
    );
}

#[tokio::test]
async fn an_event_that_is_not_published_delays_all_consumers() {
    let cloud = cloud(healthy()).await;
    let at = Timestamp::now().plus_millis(-61_000);
    let row = json!({ "entity": "site#1", "sequence": 1, "unpublished": "3", "occurredAt": at });
    cloud.dynamo.put(EVENTS, row).await;
    let (code, lags) = entries(&cloud, "lag").await;
    assert_eq!(code, 1);
    for lag in lags.as_array().expect("lags") {
        assert_eq!(lag["health"], "problem", "{lag:#}");
    }
}

/// A stand-in for a function that can be rebuilt.
#[derive(Default)]
struct Rebuilt {
    /// The actions in the order in which they were called.
    actions: Vec<String>,
    entities: Vec<String>,
    /// The names of the errors with which the next calls of `apply` fail.
    failures: Vec<&'static str>,
    /// The number of the next calls of `apply` that reach their deadline after one event.
    partial: u32,
    /// Whether the first entity of each call of `apply` can't be applied.
    broken: bool,
}

impl Rebuilt {
    fn call(&mut self, request: &ReceivedRequest) -> FakeResponse {
        if !request.operation.contains("/functions/test-watch-network/invocations") {
            return (404, json!({}), vec![]);
        }
        assert!(request.query.contains("Qualifier=live"), "{}", request.query);
        let event: Value = serde_json::from_str(&request.body).expect("JSON");
        assert_eq!(event["replay"], true);
        let action = event["action"].as_str().expect("an action");
        let has_none = matches!(action, "begin" | "abort" | "clean");
        let is_current = has_none || event["generation"] == 2;
        assert!(is_current, "{event}");
        if action == "apply" {
            match self.failures.pop() {
                Some("throttled") => {
                    let name = "TooManyRequestsException";
                    return (429, json!({ "message": "later" }), vec![("x-amzn-errortype", name)]);
                }
                Some(error) => {
                    let body = json!({ "errorType": error, "errorMessage": "no" });
                    return (200, body, vec![("x-amz-function-error", "Unhandled")]);
                }
                None => {}
            }
            assert_eq!(event["partial"], true, "{event}");
            if self.partial > 0 {
                self.partial -= 1;
                return (200, json!({ "applied": 1, "failed": [], "more": true }), vec![]);
            }
        }
        self.actions.push(action.to_owned());
        let cleaned = self.actions.iter().filter(|it| *it == "clean").count();
        let reply = match action {
            "begin" | "abort" => json!({ "generation": 2 }),
            "apply" => {
                let entities = event["entities"].as_array().expect("entities");
                assert!(entities.len() <= 100, "{}", entities.len());
                let keys = entities.iter().map(|it| it.as_str().expect("a key").to_owned());
                self.entities.extend(keys);
                let failed = entities.iter().take(usize::from(self.broken));
                let failed = failed.map(|it| json!({ "entity": it, "reason": "it is broken" }));
                let failed: Vec<_> = failed.collect();
                json!({ "applied": 2 * (entities.len() - failed.len()), "failed": failed })
            }
            "finish" => json!({}),
            "clean" => json!({ "deleted": 7 - cleaned, "more": cleaned < 2 }),
            other => panic!("{other}"),
        };
        (200, reply, vec![])
    }
}

/// Starts a stack whose log has 250 entities, with two events each.
async fn with_log(failures: &[&'static str]) -> (Cloud, Arc<Mutex<Rebuilt>>, BTreeSet<String>) {
    let rebuilt = Rebuilt { failures: failures.to_vec(), ..Rebuilt::default() };
    let rebuilt = Arc::new(Mutex::new(rebuilt));
    let shared = Arc::clone(&rebuilt);
    let cloud = Cloud::start(move |request| shared.lock().expect("no panic").call(request)).await;
    let mut keys = BTreeSet::new();
    for number in 0..250 {
        let key = match number % 2 {
            0 => format!("site#{number}"),
            _ => format!("{}/acme.instrument#{number}", OperatorId::DEFAULT),
        };
        for sequence in [1, 2] {
            cloud.dynamo.put(EVENTS, json!({ "entity": key, "sequence": sequence })).await;
        }
        keys.insert(key);
    }
    (cloud, rebuilt, keys)
}

#[tokio::test]
async fn a_replay_sends_every_entity_once_and_then_switches() {
    let (cloud, rebuilt, keys) = with_log(&["Transient", "throttled", "Sandbox.Timedout"]).await;
    let command = ["--json", "consumers", "replay", "watch-network", "--yes"];
    let (code, out, err) = cloud.run(&command).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    let document: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(schemas::violations("consumers-replay", &document), [""; 0], "{document:#}");
    golden::check(env!("CARGO_MANIFEST_DIR"), "consumers-replay", &document);
    {
        let rebuilt = rebuilt.lock().expect("no panic");
        assert_eq!(rebuilt.entities.len(), 250);
        assert_eq!(rebuilt.entities.iter().cloned().collect::<BTreeSet<_>>(), keys);
        let mut actions = rebuilt.actions.clone();
        actions.dedup();
        assert_eq!(actions, ["begin", "apply", "finish", "clean"]);
    }
    let entries = cloud.dynamo.rows(AUDIT).await;
    assert_eq!(entries.len(), 1);
    assert_eq!(
        (&entries[0]["action"], &entries[0]["target"]),
        (&json!("RebuildConsumer"), &json!("watch-network"))
    );
    let (code, out, _) = cloud.run(&command[1..]).await;
    assert_eq!(code, 0);
    for part in [
        "Generation 2 of watch-network is being built",
        "500 events of 250 entities",
        "were deleted",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
}

#[tokio::test]
async fn a_call_that_makes_progress_is_repeated_until_all_its_events_are_applied() {
    let (cloud, rebuilt, keys) = with_log(&[]).await;
    // One of the three calls reaches its deadline more often than a call without progress is repeated.
    rebuilt.lock().expect("no panic").partial = 30;
    let command = ["--json", "consumers", "replay", "watch-network", "--yes"];
    let (code, out, err) = cloud.run(&command).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    let document: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(document["applied"], json!(30 + 2 * 250), "each event is counted: {document}");
    let rebuilt = rebuilt.lock().expect("no panic");
    assert_eq!(rebuilt.entities.iter().cloned().collect::<BTreeSet<_>>(), keys);
    assert!(rebuilt.actions.iter().any(|it| it == "finish"), "{:?}", rebuilt.actions);
}

#[tokio::test]
async fn a_failed_call_ends_the_replay_before_it_switches() {
    let (cloud, rebuilt, _) = with_log(&["Internal"]).await;
    let (code, _, err) = cloud.run(&["consumers", "replay", "watch-network", "--yes"]).await;
    assert_eq!(code, 1, "{err}");
    for part in ["Internal: no", "fieldctl logs", "readers still see the old rows", "to continue"] {
        assert!(err.contains(part), "{part}: {err}");
    }
    let actions = rebuilt.lock().expect("no panic").actions.clone();
    assert!(!actions.iter().any(|it| it == "finish" || it == "clean"), "{actions:?}");
}

#[tokio::test]
async fn a_replay_with_entities_that_can_not_be_applied_is_not_finished() {
    let (cloud, rebuilt, keys) = with_log(&[]).await;
    rebuilt.lock().expect("no panic").broken = true;
    let command = ["--json", "consumers", "replay", "watch-network", "--yes"];
    let (code, out, err) = cloud.run(&command).await;
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("--abort") && err.contains("readers still see the old rows"), "{err}");
    let document: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(schemas::violations("consumers-replay", &document), [""; 0], "{document:#}");
    let failed = document["failed"].as_array().expect("entities");
    // 250 entities in 3 calls.
    assert_eq!((document["result"].as_str(), failed.len()), (Some("failed"), 3));
    assert_eq!((&document["entities"], &document["applied"]), (&json!(250), &json!(2 * 247)));
    for entity in failed {
        assert!(keys.contains(entity["entity"].as_str().expect("a key")), "{entity}");
        assert_eq!(entity["reason"], "it is broken");
    }
    let (_, out, _) = cloud.run(&command[1..]).await;
    assert_eq!(out.matches(": it is broken").count(), 3, "{out}");
    let actions = rebuilt.lock().expect("no panic").actions.clone();
    assert!(!actions.iter().any(|it| it == "finish" || it == "clean"), "{actions:?}");
}

#[tokio::test]
async fn an_abort_gives_up_the_rebuild_and_deletes_its_rows() {
    let (cloud, rebuilt, _) = with_log(&[]).await;
    let command = ["--json", "consumers", "replay", "watch-network", "--abort", "--yes"];
    let (code, out, err) = cloud.run(&command).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    let document: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(schemas::violations("consumers-replay", &document), [""; 0], "{document:#}");
    golden::check(env!("CARGO_MANIFEST_DIR"), "consumers-replay-abort", &document);
    assert_eq!(rebuilt.lock().expect("no panic").actions, ["abort", "clean", "clean"]);
    assert_eq!(cloud.dynamo.rows(AUDIT).await.len(), 1);
    let (_, out, _) = cloud.run(&command[1..]).await;
    assert!(out.contains("Generation 2 of watch-network is aborted"), "{out}");
}

#[tokio::test]
async fn only_a_consumer_that_can_be_rebuilt_is_replayed_and_only_after_a_confirmation() {
    let (cloud, rebuilt, _) = with_log(&[]).await;
    for (function, more, expected, message) in [
        ("project-site", &["--yes"][..], 4, "can be rebuilt: watch-network"),
        ("watch-netwrk", &["--yes"], 2, "did you mean watch-network?"),
        ("watch-network", &[], 2, "--yes"),
    ] {
        let (code, _, err) =
            cloud.run(&[&["consumers", "replay", function][..], more].concat()).await;
        assert_eq!(code, expected, "{err}");
        assert!(err.contains(message), "{err}");
    }
    assert!(rebuilt.lock().expect("no panic").actions.is_empty());
    assert!(cloud.dynamo.rows(AUDIT).await.is_empty());
}
