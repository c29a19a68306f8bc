//! Refused bundles are counted by site, reason, field and sensor. Accepted bundles cost no write.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{OperatorId, Scope, SensorId, SiteId, readings::Bundle};
use lambda::{
    Deadline,
    http::{Caller, Request, response},
};
use serde_json::{Value, json};
use series::RefusalRow;
use store::{Commit, Transaction};
use telemetry::{
    SensorRow, accept_readings::AcceptReadings, refusals::Refusals, register::Register,
};
use testkit::{
    Dynamo,
    dynamo::{READINGS, REFUSALS},
    http::Stub,
    measured::measured,
    sample::{self, caller, default_caller, noon, other_operator, saga},
};

const SEQUENCE_NUMBER: &str = "49543463076548007577105092703039560359975228518395012686";

fn site(name: &str) -> SiteId {
    saga(name).site_id
}

fn sensor(site: &str, index: usize) -> SensorId {
    SensorId::from_onboarding(saga(site).onboarding_id, index)
}

/// Returns a bundle of two series. `second_time` is the time of the sample in the second series.
fn bundle(id: &str, site_name: &str, second_time: &str) -> Value {
    let series = |index, time: &str| json!({ "sensorId": sensor(site_name, index), "samples": [[time, 1.5]] });
    json!({
        "bundleId": id, "siteId": site(site_name),
        "series": [series(0, "2026-01-01T11:00:00Z"), series(1, second_time)],
    })
}

struct World {
    dynamo: Dynamo,
    stream: Stub,
    step: AcceptReadings,
}

impl World {
    async fn start() -> Self {
        let dynamo = Dynamo::start().await;
        let stream = Stub::start(|call| {
            let records = call.json()["Records"].as_array().map_or(0, Vec::len);
            let accepted =
                json!({ "SequenceNumber": SEQUENCE_NUMBER, "ShardId": "shardId-000000000000" });
            (200, json!({ "FailedRecordCount": 0, "Records": vec![accepted; records] }))
        })
        .await;
        let step = AcceptReadings {
            client: aws_sdk_kinesis::Client::new(&stream.config()),
            stream_name: "readings".to_owned(),
            register: Register::new(dynamo.table(READINGS), Duration::from_hours(1)),
            max_age_days: 400,
            refusals: Refusals::new(dynamo.table(REFUSALS)),
        };
        Self { dynamo, stream, step }
    }

    /// Returns the status of the response to a body of the default operator.
    async fn post(&self, body: &str) -> u16 {
        self.post_as(&default_caller(), body).await
    }

    async fn post_as(&self, caller: &Caller, body: &str) -> u16 {
        self.respond(caller, body).await["statusCode"]
            .as_u64()
            .expect("a status")
            .try_into()
            .expect("a status")
    }

    /// Returns the response, with its body as JSON.
    async fn respond(&self, caller: &Caller, body: &str) -> Value {
        let mut event = sample::event("accept-readings");
        event["body"] = body.into();
        let request: Request = serde_json::from_value(event).expect("an event of API Gateway");
        let deadline = Deadline::after(Duration::from_secs(30));
        let response = response(self.step.handle(caller, &request, noon(0), deadline).await);
        let mut response = serde_json::to_value(response).expect("JSON");
        let body = serde_json::from_str(response["body"].as_str().expect("a body"));
        response["body"] = body.expect("a body of JSON");
        response
    }

    async fn rows(&self, site: Option<SiteId>) -> Vec<RefusalRow> {
        self.rows_of(OperatorId::DEFAULT, site).await
    }

    async fn rows_of(&self, sender: OperatorId, site: Option<SiteId>) -> Vec<RefusalRow> {
        let table = self.dynamo.table(REFUSALS);
        RefusalRow::for_site(&table, sender, site, noon(0)).await.expect("the rows of the counters")
    }

    /// Returns the reason, field, sensor and count of each counter.
    async fn counts(&self, site: Option<SiteId>) -> Vec<(String, String, Option<SensorId>, u64)> {
        let rows = self.rows(site).await;
        let key_and_count = |row: &RefusalRow| {
            (row.reason().to_owned(), row.field().to_owned(), row.sensor(), row.refused)
        };
        rows.iter().map(key_and_count).collect()
    }
}

#[tokio::test]
async fn an_accepted_bundle_costs_no_write() {
    let world = World::start().await;
    let good = bundle("b-1", "a", "2026-01-01T11:00:00Z");
    assert_eq!(world.post(&good.to_string()).await, 202);
    assert_eq!(world.post(&json!([good]).to_string()).await, 202);
    let usage = world.dynamo.take_usage();
    assert!(usage.calls.keys().all(|operation| operation == "BatchGetItem"), "{usage:?}");
    assert!(usage.write_units <= 0.0, "{usage:?}");
}

#[tokio::test]
async fn a_wrong_clock_is_counted_for_its_site_and_sensor() {
    let world = World::start().await;
    let ahead = bundle("b-1", "a", "2026-01-01T14:00:00Z");
    assert_eq!(world.post(&ahead.to_string()).await, 202);
    let counts = world.counts(Some(site("a"))).await;
    let (reason, field) = ("ClockAhead".to_owned(), "series[].samples[]".to_owned());
    assert_eq!(counts, [(reason, field, Some(sensor("a", 1)), 1)]);
    let row = world.rows(Some(site("a"))).await.remove(0);
    assert_eq!((row.first_at, row.last_at), (noon(0), noon(0)));
    assert!(row.example.contains("more than 15 minutes ahead"), "{}", row.example);
    assert!(row.expires_at > noon(0).millis() / 1000, "seconds, after its hour");
    assert!(row.expires_at < noon(0).millis() / 1000 + 16 * 86_400, "{}", row.expires_at);
    let usage = world.dynamo.take_usage();
    assert_eq!((usage.calls["UpdateItem"], usage.write_units), (1, 1.0));
}

#[tokio::test]
async fn only_the_bad_bundles_of_a_partly_accepted_list_are_counted() {
    let world = World::start().await;
    let list = json!([
        bundle("b-1", "good", "2026-01-01T11:00:00Z"),
        bundle("b-2", "bad", "1969-01-01T11:00:00Z"),
        bundle("b-3", "good", "2026-01-01T11:00:00Z"),
        bundle("b-1", "good", "2026-01-01T11:00:00Z"),
    ]);
    let (status, metrics) = measured(world.post(&list.to_string())).await;
    assert_eq!(status, 202);
    let counts = world.counts(Some(site("good"))).await;
    assert_eq!(counts, [("Duplicate".to_owned(), "bundleId".to_owned(), None, 1)]);
    let bad = world.counts(Some(site("bad"))).await;
    assert_eq!((bad[0].0.as_str(), bad[0].2), ("ClockNotSet", Some(sensor("bad", 1))));
    assert_eq!(bad.len(), 1);
    for reason in ["Duplicate", "ClockNotSet"] {
        let counted = metrics.get(&format!("ReadingsRefused reason={reason}"));
        assert_eq!(counted, Some(&1.0), "{metrics:?}");
    }
}

/// Adds the sensor of site `a` with this index to the register.
async fn register(world: &World, index: usize, offset: Option<&str>, retired_at: Option<&str>) {
    let mut row = json!({
        "siteId": site("a"), "operatorId": OperatorId::DEFAULT,
        "sensor": { "sensorId": sensor("a", index), "metric": "air_temperature", "unit": "Cel" },
    });
    if let Some(offset) = offset {
        row["sensor"]["utcOffset"] = json!(offset);
    }
    if let Some(at) = retired_at {
        row["retiredAt"] = json!(at);
    }
    let table = world.dynamo.table(READINGS);
    let create = Transaction::on(&table).create(&table, &SensorRow::key(sensor("a", index)), &row);
    assert!(matches!(create.commit().await, Ok(Commit::Done)));
}

/// Returns a bundle of site `a` with a series for each sensor and its times.
fn series_of(series: &[(usize, &[&str])]) -> Value {
    let series = series.iter().map(|(index, times)| {
        let samples: Vec<_> = times.iter().map(|time| json!([time, 1.5])).collect();
        json!({ "sensorId": sensor("a", *index), "samples": samples })
    });
    json!({ "bundleId": "b-1", "siteId": site("a"), "series": series.collect::<Value>() })
}

#[tokio::test]
async fn a_series_without_offsets_is_accepted_only_if_its_site_declares_one() {
    let world = World::start().await;
    register(&world, 0, None, None).await;
    register(&world, 1, Some("-07:00"), None).await;
    drop(world.dynamo.take_usage());
    let local: &[&str] = &["2026-01-01T04:00:00", "2026-01-01T05:14:00"];
    let send = async |series: &[(usize, &[&str])]| {
        world.respond(&default_caller(), &series_of(series).to_string()).await
    };
    let refused = send(&[(0, local)]).await;
    assert_eq!(refused["statusCode"], 400, "{refused}");
    let expected = json!([{
        "field": "series[0].samples[0][0]",
        "message": "is \"2026-01-01T04:00:00\", which has no UTC offset; add Z for UTC, or an offset such as +01:00, or declare utcOffset when you register the site",
        "reason": "InvalidValue",
    }]);
    assert_eq!(refused["body"]["errors"], expected);
    assert_eq!(world.stream.take_calls().len(), 0);

    // The other series are accepted: one with the site's offset, one with its own, and one of an unknown sensor.
    let body = [(1, local), (0, local), (2, local), (3, &["2026-01-01T11:00:00Z"])];
    let partly = send(&body).await;
    assert_eq!(partly["statusCode"], 202, "{partly}");
    let errors = partly["body"]["errors"].as_array().expect("errors");
    assert_eq!((errors.len(), &errors[0]["field"]), (1, &json!("series[1].samples[0][0]")));
    let data = world.stream.take_calls()[0].json()["Records"][0]["Data"].take();
    let data = STANDARD.decode(data.as_str().expect("text")).expect("base64");
    let put: Bundle = serde_json::from_slice(&data).expect("a bundle");
    let put: Vec<_> = put
        .series
        .iter()
        .map(|it| (it.sensor_id, it.is_local, it.samples[0].at.to_string()))
        .collect();
    let time = |hour: &str| format!("2026-01-01T{hour}:00:00.000Z");
    assert_eq!(
        put,
        [
            (sensor("a", 1), false, time("11")),
            (sensor("a", 2), true, time("04")),
            (sensor("a", 3), false, time("11")),
        ]
    );

    // It is now 12:00 in UTC, and 05:00 at the site.
    let ahead = send(&[(1, &["2026-01-01T05:16:00"])]).await;
    assert_eq!(ahead["statusCode"], 400, "{ahead}");
    let error = &ahead["body"]["errors"][0];
    assert_eq!(error["field"], "series[0].samples[0]");
    let message = error["message"].as_str().expect("a message");
    assert!(message.starts_with("2026-01-01T12:16:00.000Z is more than 15 minutes"), "{message}");
    // The sensors 0 and 1 are read once, the unknown ones once.
    assert_eq!(world.dynamo.take_usage().calls["BatchGetItem"], 2);
    let counts = world.counts(Some(site("a"))).await;
    let field = "series[].samples[][]".to_owned();
    assert_eq!(counts, [("InvalidValue".to_owned(), field, Some(sensor("a", 0)), 1)]);
}

#[tokio::test]
async fn the_retirement_of_a_sensor_is_compared_with_times_in_utc() {
    let world = World::start().await;
    register(&world, 0, Some("-07:00"), Some("2026-01-01T11:30:00.000Z")).await;
    // Only the retirement of these sensors is known, and not the site's offset.
    retire(&world, 1..2).await;
    let send = async |index, time: &str| {
        let response =
            world.respond(&default_caller(), &series_of(&[(index, &[time])]).to_string()).await;
        response["statusCode"].as_u64()
    };
    assert_eq!(send(0, "2026-01-01T04:29:59").await, Some(202));
    assert_eq!(send(0, "2026-01-01T04:30:00").await, Some(410));
    assert_eq!(send(1, "2026-01-01T11:45:00").await, Some(202), "store-readings decides");
    assert_eq!(send(1, "2026-01-01T11:45:00Z").await, Some(410));
}

/// Adds sensors of site `a` to the register. They were retired at 11:30.
async fn retire(world: &World, sensors: std::ops::Range<usize>) {
    for index in sensors {
        let row = json!({
            "siteId": site("a"), "operatorId": OperatorId::DEFAULT, "retiredAt": "2026-01-01T11:30:00.000Z",
        });
        let table = world.dynamo.table(READINGS);
        let create =
            Transaction::on(&table).create(&table, &SensorRow::key(sensor("a", index)), &row);
        assert!(matches!(create.commit().await, Ok(Commit::Done)));
    }
}

#[tokio::test]
async fn new_readings_of_a_decommissioned_site_are_gone_and_its_earlier_ones_accepted() {
    let world = World::start().await;
    retire(&world, 0..2).await;
    drop(world.dynamo.take_usage());
    let series = |index, times: &[&str]| {
        let samples: Vec<_> = times.iter().map(|time| json!([time, 1.5])).collect();
        json!({ "sensorId": sensor("a", index), "samples": samples })
    };
    let send = async |series: Vec<Value>| {
        let body = json!({ "bundleId": "b-1", "siteId": site("a"), "series": series });
        world.respond(&default_caller(), &body.to_string()).await
    };
    let (earlier, later) = ("2026-01-01T11:00:00Z", "2026-01-01T11:30:00Z");
    let gone = send(vec![series(0, &[later]), series(1, &[later])]).await;
    assert_eq!(gone["statusCode"], 410, "{gone}");
    assert_eq!(gone["body"]["type"], "urn:fieldstation:problem:sensors-retired");
    assert_eq!(gone["body"]["errors"][1]["field"], "series[1].samples");
    assert_eq!(world.stream.take_calls().len(), 0);
    let counts = world.counts(Some(site("a"))).await;
    let counted: Vec<_> = counts.iter().map(|it| (it.0.as_str(), it.2, it.3)).collect();
    let expected =
        [("RetiredSensor", Some(sensor("a", 0)), 1), ("RetiredSensor", Some(sensor("a", 1)), 1)];
    assert_eq!(counted.len(), 2, "{counted:?}");
    assert!(expected.iter().all(|it| counted.contains(it)), "{counted:?}");

    // store-readings stores the samples before the retirement.
    let whole = send(vec![series(0, &[earlier, later])]).await;
    assert_eq!((&whole["statusCode"], &whole["body"]["errors"]), (&json!(202), &Value::Null));
    let partly = send(vec![series(0, &[later]), series(1, &[earlier])]).await;
    assert_eq!(partly["statusCode"], 202, "{partly}");
    let error = &partly["body"]["errors"][0];
    assert_eq!(
        (&error["field"], &error["reason"]),
        (&json!("series[0].samples"), &json!("RetiredSensor"))
    );
    let calls = world.stream.take_calls();
    let data = calls[1].json()["Records"][0]["Data"].take();
    let data = STANDARD.decode(data.as_str().expect("text")).expect("base64");
    let put: Bundle = serde_json::from_slice(&data).expect("a bundle");
    assert_eq!(put.series.iter().map(|it| it.sensor_id).collect::<Vec<_>>(), [sensor("a", 1)]);

    // One read for the three requests.
    assert_eq!(world.dynamo.take_usage().calls["BatchGetItem"], 1);
}

#[tokio::test]
async fn the_register_is_read_once_for_a_request() {
    let world = World::start().await;
    let list: Vec<_> = (0..100)
        .map(|n| bundle(&format!("b-{n}"), &format!("site-{n}"), "2026-01-01T11:00:00Z"))
        .collect();
    assert_eq!(world.post(&json!(list).to_string()).await, 202);
    let usage = world.dynamo.take_usage();
    assert_eq!(usage.calls["BatchGetItem"], 1);
}

#[tokio::test]
async fn a_retired_sensor_of_another_operator_is_like_an_unknown_one() {
    let world = World::start().await;
    retire(&world, 0..2).await;
    let later =
        bundle("b-1", "a", "2026-01-01T11:45:00Z").to_string().replace("11:00:00Z", "11:45:00Z");
    let stranger = caller(other_operator(), Scope::Operator);
    assert_eq!(world.post(&later).await, 410);
    assert_eq!(world.post_as(&stranger, &later).await, 202);
}

#[tokio::test]
async fn a_sensor_of_another_operator_takes_as_many_reads_as_an_unknown_one() {
    let world = World::start().await;
    register(&world, 0, None, None).await;
    let stranger = caller(other_operator(), Scope::Operator);
    let body = |name: &str| {
        let mut bundle = series_of(&[(0, &["2026-01-01T11:00:00Z"])]);
        bundle["siteId"] = json!(site(name));
        bundle["series"][0]["sensorId"] = json!(sensor(name, 0));
        bundle.to_string()
    };
    let calls = async |by: &Caller, name: &str| {
        drop(world.dynamo.take_usage());
        assert_eq!(world.post_as(by, &body(name)).await, 202);
        world.dynamo.take_usage().calls.values().sum::<u32>()
    };
    // The owner's request fills the cache.
    assert_eq!(calls(&default_caller(), "a").await, 1);
    assert_eq!(calls(&default_caller(), "a").await, 0);
    for _ in 0..2 {
        assert_eq!((calls(&stranger, "a").await, calls(&stranger, "unknown").await), (1, 1));
    }
}

#[tokio::test]
async fn a_body_that_names_no_site_is_counted_for_the_unknown_site() {
    let world = World::start().await;
    assert_eq!(world.post("").await, 400);
    let counts = world.counts(None).await;
    assert_eq!(counts, [("InvalidJson".to_owned(), "body".to_owned(), None, 1)]);

    // A truncated body still names its site.
    let world = World::start().await;
    let whole = bundle("b-1", "a", "2026-01-01T11:00:00Z").to_string();
    assert_eq!(world.post(&whole[..whole.len() - 1]).await, 400);
    assert_eq!(world.counts(Some(site("a"))).await[0].0, "InvalidJson");
    assert_eq!(world.counts(None).await, []);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_counted() {
    let world = World::start().await;
    let good = bundle("b-1", "a", "2026-01-01T11:00:00Z");
    assert_eq!(world.post(&format!("{good}{}", " ".repeat(4 << 20))).await, 413);
    assert_eq!(world.counts(Some(site("a"))).await[0].0, "TooLarge");

    let world = World::start().await;
    let list: Vec<_> =
        (0..501).map(|n| bundle(&format!("b-{n}"), "a", "2026-01-01T11:00:00Z")).collect();
    assert_eq!(world.post(&json!(list).to_string()).await, 413);
    let counts = world.counts(Some(site("a"))).await;
    assert_eq!(counts, [("TooLarge".to_owned(), "body".to_owned(), None, 501)]);
}

#[tokio::test]
async fn names_and_values_of_the_sender_are_never_keys_and_never_printed_unescaped() {
    let world = World::start().await;
    let mut hostile = bundle("b-1", "a", "2026-01-01T11:00:00Z");
    hostile["\u{1b}[2J/\u{202e}password"] = "hunter2".into();
    hostile["series"][0]["sensorId"] = format!("\u{1b}]0;x\u{7}{}", "x".repeat(1_000)).into();
    assert_eq!(world.post(&hostile.to_string()).await, 400);
    let rows = world.rows(Some(site("a"))).await;
    let fields: Vec<_> = rows.iter().map(|row| (row.reason(), row.field())).collect();
    let expected = [("InvalidValue", "series[].sensorId"), ("UnknownField", "(unknown)")];
    assert_eq!(fields, expected, "{rows:?}");
    for row in rows {
        assert!(!row.example.contains("hunter2"), "{}", row.example);
        assert!(!row.example.chars().any(|it| it.is_control() || it == '\u{202e}'));
        assert!(row.example.chars().count() < 210, "{}", row.example);
    }
}

#[tokio::test]
async fn an_unreachable_refusals_table_changes_no_response() {
    let mut world = World::start().await;
    world.step.refusals = Refusals::new(world.dynamo.table("NoSuchTable"));
    let ahead = bundle("b-1", "a", "2026-01-01T14:00:00Z");
    assert_eq!(world.post(&ahead.to_string()).await, 202);
    assert_eq!(world.post(&bundle("b-1", "a", "2026-01-01T11:00:00Z").to_string()).await, 202);
}

#[tokio::test]
async fn a_sender_does_not_change_the_counters_of_another_operators_site() {
    let world = World::start().await;
    let stranger = caller(other_operator(), Scope::Operator);
    let ahead = bundle("b-1", "a", "2026-01-01T14:00:00Z").to_string();
    assert_eq!(world.post_as(&stranger, &ahead).await, 202);
    assert_eq!(world.counts(Some(site("a"))).await, []);
    assert_eq!(world.rows_of(other_operator(), Some(site("a"))).await.len(), 1);

    let world = World::start().await;
    assert_eq!(world.post_as(&stranger, "").await, 400);
    assert_eq!(world.counts(None).await, []);
    assert_eq!(world.rows_of(other_operator(), None).await.len(), 1);
}

#[tokio::test]
async fn a_forbidden_bundle_is_counted_for_its_sender() {
    let world = World::start().await;
    let logger = caller(other_operator(), Scope::Logger(site("own")));
    let good = bundle("b-1", "a", "2026-01-01T11:00:00Z").to_string();
    assert_eq!(world.post_as(&logger, &good).await, 403);
    assert_eq!(world.counts(Some(site("a"))).await, []);
    let rows = world.rows_of(other_operator(), Some(site("a"))).await;
    let counted: Vec<_> = rows.iter().map(|row| (row.reason(), row.field())).collect();
    assert_eq!(counted, [("Forbidden", "siteId")]);
}
