//! Tests of detect-breaches: the events that it emits, its cost, and its behaviour under repetition and errors.

use std::{collections::BTreeMap, time::Duration};

use alerting::{
    configure_alerting::ConfigureAlerting, detect_breaches::DetectBreaches,
    remove_alerting::RemoveAlerting, watermarks::WatermarkCache,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{AlertingId, OnboardingId, OperatorId, SagaContext, SensorId, SiteId, Timestamp};
use fault::ReplayResponse;
use futures_util::future::join;
use lambda::Deadline;
use serde_json::{Value, json, value::to_raw_value};
use store::{Outbox, Table};
use testkit::{
    Dynamo,
    dynamo::ALERTING,
    http::Stub,
    measured,
    saga::run,
    sample::{
        self, WEATHER, noon, other_operator, payload, payload_with_sensors, saga, saga_of, sensors,
    },
};

const BREACH: &str = "ReadingBreachedThreshold";
const BACK: &str = "ReadingBackToNormal";

/// Seconds after noon, and a value.
type Reading = (i64, f64);

fn detector(dynamo: &Dynamo) -> DetectBreaches {
    DetectBreaches {
        alerting: dynamo.table(ALERTING),
        outbox: dynamo.outbox(),
        watermarks: WatermarkCache::default(),
        max_age: Duration::from_hours(1),
    }
}

async fn configure(dynamo: &Dynamo, saga: SagaContext) {
    configure_with(dynamo, &payload_with_sensors(saga, &WEATHER)).await;
}

async fn configure_with(dynamo: &Dynamo, payload: &Value) {
    let step = ConfigureAlerting { alerting: dynamo.table(ALERTING), outbox: dynamo.outbox() };
    run(&step, payload).await.expect("alerting");
}

async fn remove(dynamo: &Dynamo, saga: SagaContext) {
    let step = RemoveAlerting { alerting: dynamo.table(ALERTING), outbox: dynamo.outbox() };
    run(&step, &payload(saga)).await.expect("the removal");
}

/// Configures the site "a" (limits of the first sensor: -50 and 50, of the second: 99.5) and resets the usage
/// counters.
async fn configured_site() -> Dynamo {
    let dynamo = Dynamo::start().await;
    configure(&dynamo, saga("a")).await;
    drop(dynamo.take_usage());
    dynamo
}

/// Returns a bundle of a site with readings of some of its sensors.
fn bundle(saga: SagaContext, series: &[(usize, &[Reading])]) -> Value {
    let series = series.iter().map(|(index, readings)| {
        let samples = readings.iter().map(|(seconds, value)| json!([noon(*seconds), value]));
        json!({
            "sensorId": SensorId::from_onboarding(saga.onboarding_id, *index),
            "samples": samples.collect::<Value>(),
        })
    });
    json!({ "bundleId": "b-1", "siteId": saga.site_id, "series": series.collect::<Value>() })
}

/// Returns a bundle with readings of the first sensor of the site "a".
fn first(readings: &[Reading]) -> Value {
    bundle(saga("a"), &[(0, readings)])
}

/// Returns the bundle with this id and these readings of the first sensor of the site "a".
fn named(id: &str, readings: &[Reading]) -> Value {
    let mut bundle = first(readings);
    bundle["bundleId"] = json!(id);
    bundle
}

/// Delivers bundles in one batch, each of which arrived after its last reading. Returns the index of the record that
/// Lambda must deliver again.
async fn deliver(step: &DetectBreaches, bundles: &[Value]) -> Option<usize> {
    deliver_from(step, None, bundles).await
}

/// Delivers bundles that this operator has sent through the API.
async fn deliver_from(
    step: &DetectBreaches,
    sender: Option<OperatorId>,
    bundles: &[Value],
) -> Option<usize> {
    let arrived = bundles.iter().map(|bundle| (arrival(bundle), bundle.clone()));
    deliver_records(step, sender, &arrived.collect::<Vec<_>>()).await
}

/// Delivers bundles, each with its arrival in seconds after noon.
async fn deliver_arrived(step: &DetectBreaches, bundles: &[(f64, Value)]) {
    assert_eq!(deliver_records(step, None, bundles).await, None);
}

/// Returns half a second after the last reading, in seconds after noon.
fn arrival(bundle: &Value) -> f64 {
    let series = bundle["series"].as_array().map_or(&[][..], Vec::as_slice);
    let samples = series.iter().filter_map(|series| series["samples"].as_array()?.last());
    let times = samples.filter_map(|sample| sample[0].as_str()?.parse::<Timestamp>().ok());
    let last = times.max().unwrap_or(noon(0));
    #[expect(clippy::cast_precision_loss, reason = "exact")]
    let seconds = (last.millis() - noon(0).millis()) as f64 / 1000.0;
    seconds + 0.5
}

async fn deliver_records(
    step: &DetectBreaches,
    sender: Option<OperatorId>,
    bundles: &[(f64, Value)],
) -> Option<usize> {
    let records = bundles.iter().enumerate().map(|(index, (arrival, bundle))| {
        let site: SiteId = serde_json::from_value(bundle["siteId"].clone()).expect("an id");
        let key = sender
            .map_or(site.to_string(), |sender| contracts::stream::partition_key(site, sender));
        json!({
            "eventID": index.to_string(),
            "kinesis": {
                "partitionKey": key,
                "sequenceNumber": index.to_string(),
                "data": STANDARD.encode(bundle.to_string()),
                "approximateArrivalTimestamp": 1_767_268_800.0 + arrival,
            },
        })
    });
    invoke(step, &json!({ "Records": records.collect::<Value>() })).await
}

async fn invoke(step: &DetectBreaches, event: &Value) -> Option<usize> {
    let payload = to_raw_value(event).expect("JSON");
    let response = step.handle(&payload, Deadline::after(Duration::from_secs(30))).await;
    let response = serde_json::to_value(response.expect("a response")).expect("JSON");
    let failures = response["batchItemFailures"].as_array().expect("failures");
    assert!(failures.len() < 2, "{failures:?}");
    let first = failures.first()?["itemIdentifier"].as_str().expect("a sequence number");
    Some(first.parse().expect("an index"))
}

async fn deliver_all(step: &DetectBreaches, bundles: &[Value]) {
    assert_eq!(deliver(step, bundles).await, None);
}

/// Returns the events of the site "a" after its configuration: type, seconds after noon, and value.
async fn emitted(dynamo: &Dynamo) -> Vec<(String, i64, f64)> {
    let events = dynamo.events(AlertingId::from_onboarding(saga("a").onboarding_id)).await;
    let changes = events.iter().skip(1).map(|row| {
        let data = row.envelope().expect("an envelope").data;
        let at: Timestamp = data["at"].as_str().expect("a time").parse().expect("a time");
        let seconds = (at.millis() - noon(0).millis()) / 1000;
        (row.kind.clone(), seconds, data["value"].as_f64().expect("a value"))
    });
    changes.collect()
}

fn breach(seconds: i64, value: f64) -> (String, i64, f64) {
    (BREACH.to_owned(), seconds, value)
}

fn back(seconds: i64, value: f64) -> (String, i64, f64) {
    (BACK.to_owned(), seconds, value)
}

/// Returns the calls since the last time it was called.
fn calls(dynamo: &Dynamo) -> BTreeMap<String, u32> {
    dynamo.take_usage().calls
}

fn call(operation: &str) -> BTreeMap<String, u32> {
    [(operation.to_owned(), 1)].into()
}

fn read_and_write() -> BTreeMap<String, u32> {
    [("GetItem".to_owned(), 1), ("TransactWriteItems".to_owned(), 1)].into()
}

/// Returns the numbers of judged and not judged readings that the work counted.
async fn reading_counts(work: impl Future<Output = ()>) -> BTreeMap<String, f64> {
    let ((), mut metrics) = measured::measured(work).await;
    metrics.retain(|name, _| name.starts_with("Readings"));
    metrics
}

#[tokio::test]
async fn a_replay_returns_its_outcome() {
    let dynamo = configured_site().await;
    let step = detector(&dynamo);
    let replay = async |step: &DetectBreaches, data: &str| {
        let record = json!({ "kinesis": {
            "partitionKey": saga("a").site_id, "sequenceNumber": "1", "data": STANDARD.encode(data),
            "approximateArrivalTimestamp": 1_767_268_800.5,
        } });
        step.replay(&to_raw_value(&record).expect("JSON")).await
    };
    let breach = first(&[(0, 60.0)]).to_string();
    for _ in 0..2 {
        assert_eq!(replay(&step, &breach).await, ReplayResponse::Done);
    }
    assert_eq!(emitted(&dynamo).await, [(BREACH.to_owned(), 0, 60.0)]);
    assert!(matches!(replay(&step, "not a bundle").await, ReplayResponse::NothingToDo { .. }));

    let broken = Stub::start(|_| (500, json!({}))).await;
    let table = Table::new(aws_sdk_dynamodb::Client::new(&broken.config()), ALERTING);
    let step = DetectBreaches { alerting: table, ..detector(&dynamo) };
    let failed = replay(&step, &breach).await;
    assert!(
        matches!(&failed, ReplayResponse::Failed { error, .. } if error == "Transient"),
        "{failed:?}"
    );
}

#[tokio::test]
async fn a_breach_and_its_event_are_one_transaction() {
    let dynamo = configured_site().await;
    let step = detector(&dynamo);
    deliver_all(&step, &[first(&[(0, 20.0)])]).await;
    assert_eq!(calls(&dynamo), call("GetItem"));
    deliver_all(&step, &[first(&[(60, 20.0), (61, 50.5), (62, 51.0)])]).await;
    let usage = dynamo.take_usage();
    // A transaction costs two units for the row, two for the event, and one for each of the event's four indexes.
    assert_eq!((usage.calls, usage.write_units), (read_and_write(), 8.0));

    let saga = saga("a");
    let sensor = SensorId::from_onboarding(saga.onboarding_id, 0);
    let row = dynamo.rows(ALERTING).await.remove(0);
    assert_eq!((&row["status"], &row["sequence"]), (&json!("CONFIGURED"), &json!(2)));
    assert_eq!(row["rules"][0]["sensorId"], json!(sensor));
    assert_eq!(row["rules"][0]["changedAt"], json!(noon(61)));
    let breached = json!({ "BREACHED": { "limit": "max", "breachedAt": noon(61) } });
    assert_eq!(row["rules"][0]["state"], breached);
    assert_eq!(row["rules"][1]["state"], "NORMAL");

    deliver_all(&step, &[first(&[(120, 49.75), (121, 49.5)])]).await;
    let row = dynamo.rows(ALERTING).await.remove(0);
    assert_eq!(row["rules"][0]["state"], "NORMAL");
    assert_eq!(row["rules"][0]["changedAt"], json!(noon(121)));

    let events = dynamo.events(AlertingId::from_onboarding(saga.onboarding_id)).await;
    let data: Vec<_> = events[1..]
        .iter()
        .map(|row| {
            let envelope = row.envelope().expect("an envelope");
            assert_eq!(envelope.metadata.correlation_id, Some(saga.onboarding_id.to_string()));
            assert_eq!(envelope.metadata.causation_id, None);
            (row.kind.as_str(), envelope.data)
        })
        .collect();
    let breach = json!({
        "siteId": saga.site_id, "sensorId": sensor, "metric": "air_temperature", "unit": "Cel",
        "value": 50.5, "at": noon(61), "limit": "max", "threshold": 50.0,
    });
    let back = json!({
        "siteId": saga.site_id, "sensorId": sensor, "metric": "air_temperature", "unit": "Cel",
        "value": 49.5, "at": noon(121), "breachedAt": noon(61),
    });
    assert_eq!(data, [(BREACH, breach), (BACK, back)]);
}

#[tokio::test]
async fn readings_without_a_utc_offset_are_judged_by_that_of_their_site() {
    let dynamo = Dynamo::start().await;
    let mut payload = payload_with_sensors(saga("a"), &WEATHER);
    payload["sensors"][0]["utcOffset"] = json!("-07:00");
    configure_with(&dynamo, &payload).await;
    let step = detector(&dynamo);
    // It is noon in UTC, and five in the morning at the site. The second sensor has a rule without an offset, the third
    // no rule.
    let local = |time: &str| {
        let series = [(0, 60.0), (1, 120.0), (2, 200.0)].map(|(index, value)| {
            json!({
                "sensorId": SensorId::from_onboarding(saga("a").onboarding_id, index),
                "samples": [[time, value]],
            })
        });
        json!({ "bundleId": time, "siteId": saga("a").site_id, "series": series })
    };
    deliver_arrived(&step, &[(0.5, local("2026-01-01T03:59:00"))]).await;
    assert_eq!(emitted(&dynamo).await, [], "it was old");
    for _ in 0..2 {
        deliver_arrived(&step, &[(0.5, local("2026-01-01T05:00:00"))]).await;
        assert_eq!(emitted(&dynamo).await, [breach(0, 60.0)]);
    }
}

#[tokio::test]
async fn a_bundle_that_another_operator_sent_is_not_judged() {
    let dynamo = configured_site().await;
    let step = detector(&dynamo);
    let rows = dynamo.all_rows().await;
    let stranger = Some(other_operator());
    // The bundle is later than those below. It must not make them late.
    assert_eq!(deliver_from(&step, stranger, &[first(&[(600, 60.0)])]).await, None);
    assert_eq!(calls(&dynamo), call("GetItem"));
    assert_eq!(dynamo.all_rows().await, rows);
    let own = Some(OperatorId::DEFAULT);
    assert_eq!(deliver_from(&step, own, &[first(&[(0, 60.0)])]).await, None);
    assert_eq!(emitted(&dynamo).await, [breach(0, 60.0)]);
}

#[tokio::test]
async fn a_breach_is_an_event_of_the_sites_operator() {
    let dynamo = Dynamo::start().await;
    let saga = saga_of(other_operator(), "a");
    configure(&dynamo, saga).await;
    assert_eq!(dynamo.rows(ALERTING).await[0]["operatorId"], json!(other_operator()));
    let reading = bundle(saga, &[(0, &[(0, 60.0)])]);
    let step = detector(&dynamo);
    assert_eq!(deliver_from(&step, Some(other_operator()), &[reading]).await, None);
    let events = dynamo.events(AlertingId::from_onboarding(saga.onboarding_id)).await;
    let operators: Vec<_> = events.iter().map(|event| event.operator_id).collect();
    assert_eq!(operators, [other_operator(); 2]);
}

#[tokio::test]
async fn a_row_without_an_operator_belongs_to_the_default_operator() {
    let dynamo = configured_site().await;
    let mut row = dynamo.rows(ALERTING).await.remove(0);
    row.as_object_mut().expect("an object").remove("operatorId").expect("an operator");
    dynamo.put(ALERTING, row).await;
    let step = detector(&dynamo);
    assert_eq!(deliver_from(&step, Some(other_operator()), &[first(&[(0, 60.0)])]).await, None);
    assert_eq!(emitted(&dynamo).await, []);
    assert_eq!(deliver_from(&step, Some(OperatorId::DEFAULT), &[first(&[(0, 60.0)])]).await, None);
    assert_eq!(emitted(&dynamo).await, [breach(0, 60.0)]);
}

#[tokio::test]
async fn a_breach_has_no_causation_id() {
    let dynamo = Dynamo::start().await;
    let saga = SagaContext::for_site(
        OperatorId::DEFAULT,
        saga("a").site_id,
        Some(saga("b").onboarding_id.uuid()),
    );
    configure(&dynamo, saga).await;
    deliver_all(&detector(&dynamo), &[first(&[(0, 51.0)])]).await;
    let events = dynamo.events(AlertingId::from_onboarding(saga.onboarding_id)).await;
    let causes = events.iter().map(|row| row.envelope().expect("JSON").metadata.causation_id);
    assert_eq!(causes.collect::<Vec<_>>(), [saga.causation_id.map(|id| id.to_string()), None]);
    // The row keeps the causation id of the configuration.
    assert_eq!(dynamo.rows(ALERTING).await[0]["causationId"], json!(saga.causation_id));
}

#[tokio::test]
async fn normal_readings_cost_a_read_and_no_write() {
    let dynamo = configured_site().await;
    let step = detector(&dynamo);
    for minute in 0..3 {
        deliver_all(&step, &[first(&[(60 * minute, 21.0), (60 * minute + 1, -50.0)])]).await;
        assert_eq!(calls(&dynamo), call("GetItem"));
    }
    // These sensors have no limits or no rule, so there is nothing to judge.
    deliver_all(&step, &[bundle(saga("a"), &[(2, &[(300, 1e9)]), (17, &[(300, 1e9)])])]).await;
    assert_eq!(calls(&dynamo), call("GetItem"));
}

#[tokio::test]
async fn a_repeated_bundle_emits_no_event() {
    let dynamo = configured_site().await;
    let step = detector(&dynamo);
    let bundles = [first(&[(0, 51.0), (1, 20.0), (2, -51.0)]), first(&[(60, -52.0), (61, 0.0)])];
    deliver_all(&step, &bundles).await;
    let expected = [breach(0, 51.0), back(1, 20.0), breach(2, -51.0), back(61, 0.0)];
    assert_eq!(emitted(&dynamo).await, expected);
    let before = dynamo.all_rows().await;
    deliver_all(&step, &bundles).await;
    deliver_all(&step, &[bundles[1].clone(), bundles[0].clone()]).await;
    // The result is the same for a new environment without watermarks.
    deliver_all(&detector(&dynamo), &bundles).await;
    assert_eq!(dynamo.all_rows().await, before);
}

#[tokio::test]
async fn a_new_environment_continues_from_the_table() {
    let dynamo = configured_site().await;
    deliver_all(&detector(&dynamo), &[first(&[(0, 51.0)])]).await;
    let before = dynamo.all_rows().await;
    let step = detector(&dynamo);
    deliver_all(&step, &[first(&[(0, 51.0)]), first(&[(60, 49.9)])]).await;
    assert_eq!(
        dynamo.all_rows().await,
        before,
        "the value is beyond the limit or within the deadband"
    );
    deliver_all(&step, &[first(&[(120, 20.0)])]).await;
    assert_eq!(emitted(&dynamo).await, [breach(0, 51.0), back(120, 20.0)]);
}

#[tokio::test]
async fn late_samples_change_nothing() {
    let dynamo = configured_site().await;
    let step = detector(&dynamo);
    let second = bundle(saga("a"), &[(1, &[(70, 50.0)])]);
    deliver_all(&step, &[first(&[(60, 20.0)]), second, first(&[(0, 51.0), (60, 51.0)])]).await;
    assert_eq!(emitted(&dynamo).await, []);
    // Half of this bundle is late. The other half counts.
    deliver_all(&step, &[first(&[(59, 51.0), (61, 52.0)])]).await;
    assert_eq!(emitted(&dynamo).await, [breach(61, 52.0)]);
    // After a restart there are no watermarks. Only the time of a sensor's last change, in the row, makes samples late. The
    // second sensor had no change.
    let step = detector(&dynamo);
    deliver_all(&step, &[bundle(saga("a"), &[(0, &[(60, 20.0)]), (1, &[(30, 99.6)])])]).await;
    assert_eq!(emitted(&dynamo).await, [breach(61, 52.0), breach(30, 99.6)]);
}

#[tokio::test]
async fn both_limits_are_watched_and_a_jump_between_them_emits_an_event() {
    let dynamo = configured_site().await;
    let step = detector(&dynamo);
    deliver_all(&step, &[first(&[(0, -50.5)]), first(&[(60, 50.5)]), first(&[(120, 0.0)])]).await;
    assert_eq!(emitted(&dynamo).await, [breach(0, -50.5), breach(60, 50.5), back(120, 0.0)]);
    let events = dynamo.events(AlertingId::from_onboarding(saga("a").onboarding_id)).await;
    let data = |index: usize| events[index].envelope().expect("an envelope").data;
    assert_eq!((&data(1)["limit"], &data(1)["threshold"]), (&json!("min"), &json!(-50.0)));
    assert_eq!((&data(2)["limit"], &data(2)["threshold"]), (&json!("max"), &json!(50.0)));
    assert_eq!(data(3)["breachedAt"], json!(noon(60)));
}

#[tokio::test]
async fn values_that_scatter_around_a_limit_are_one_breach() {
    let dynamo = configured_site().await;
    let scatter: Vec<_> = (0..60).map(|n| (n, if n % 2 == 0 { 50.2 } else { 49.8 })).collect();
    deliver_all(&detector(&dynamo), &[first(&scatter)]).await;
    assert_eq!(emitted(&dynamo).await, [breach(0, 50.2)]);
}

#[tokio::test]
async fn all_changes_of_a_bundle_are_one_transaction() {
    let dynamo = configured_site().await;
    let bundle = bundle(
        saga("a"),
        &[(1, &[(5, 100.0), (6, 0.0)]), (2, &[(0, 1e9)]), (0, &[(0, 51.0), (1, -51.0), (2, 0.0)])],
    );
    deliver_all(&detector(&dynamo), &[bundle]).await;
    let expected = [("GetItem".to_owned(), 1), ("TransactWriteItems".to_owned(), 1)];
    assert_eq!(calls(&dynamo), expected.into());
    let in_order =
        [breach(5, 100.0), back(6, 0.0), breach(0, 51.0), breach(1, -51.0), back(2, 0.0)];
    assert_eq!(emitted(&dynamo).await, in_order);
    assert_eq!(dynamo.rows(ALERTING).await[0]["sequence"], 6);
}

#[tokio::test]
async fn changes_beyond_the_limit_of_a_transaction_are_committed_in_several() {
    let dynamo = configured_site().await;
    let step = detector(&dynamo);
    let jumping: Vec<_> = (0..130).map(|n| (n, if n % 2 == 0 { 51.0 } else { -51.0 })).collect();
    let bundle = bundle(saga("a"), &[(0, &jumping), (1, &[(0, 100.0)]), (2, &[(0, 1e9)])]);
    deliver_all(&step, std::slice::from_ref(&bundle)).await;
    let expected = [("GetItem".to_owned(), 1), ("TransactWriteItems".to_owned(), 2)];
    assert_eq!(calls(&dynamo), expected.into());
    let mut expected: Vec<_> = jumping.iter().map(|(at, value)| breach(*at, *value)).collect();
    expected.push(breach(0, 100.0));
    assert_eq!(emitted(&dynamo).await, expected);
    let before = dynamo.all_rows().await;
    deliver_all(&step, &[bundle]).await;
    assert_eq!(dynamo.all_rows().await, before);
}

#[tokio::test]
async fn of_two_environments_with_the_same_bundle_one_emits_the_event() {
    let dynamo = configured_site().await;
    let (one, other) = (detector(&dynamo), detector(&dynamo));
    let mut expected = Vec::new();
    let mut conflicts = 0;
    for minute in (0..20).step_by(2) {
        drop(dynamo.take_usage());
        for (at, value) in [(60 * minute, 51.0), (60 * minute + 60, 20.0)] {
            let bundle = [first(&[(at, value)])];
            join(deliver_all(&one, &bundle), deliver_all(&other, &bundle)).await;
        }
        conflicts += calls(&dynamo)["TransactWriteItems"] - 2;
        expected.extend([breach(60 * minute, 51.0), back(60 * minute + 60, 20.0)]);
    }
    assert_eq!(emitted(&dynamo).await, expected);
    assert!(conflicts > 0, "there was no conflicting write");
}

#[tokio::test]
async fn environments_that_alternate_emit_the_same_events_as_one() {
    let dynamo = configured_site().await;
    let (one, other) = (detector(&dynamo), detector(&dynamo));
    deliver_all(&one, &[first(&[(0, 20.0)])]).await;
    deliver_all(&other, &[first(&[(60, 51.0)])]).await;
    deliver_all(&one, &[first(&[(120, 52.0)])]).await;
    deliver_all(&other, &[first(&[(180, 20.0)])]).await;
    deliver_all(&one, &[first(&[(240, 51.0)])]).await;
    assert_eq!(emitted(&dynamo).await, [breach(60, 51.0), back(180, 20.0), breach(240, 51.0)]);
}

#[tokio::test]
async fn no_event_is_emitted_after_the_removal() {
    let dynamo = configured_site().await;
    let step = detector(&dynamo);
    remove(&dynamo, saga("a")).await;
    let before = dynamo.all_rows().await;
    deliver_all(&step, &[first(&[(60, 51.0)])]).await;
    assert_eq!(dynamo.all_rows().await, before);
}

#[tokio::test]
async fn a_concurrent_removal_is_always_the_last_event() {
    for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let dynamo = Dynamo::start().await;
        configure(&dynamo, saga(name)).await;
        let step = detector(&dynamo);
        let breach = [bundle(saga(name), &[(0, &[(60, 51.0)])])];
        let removal = RemoveAlerting { alerting: dynamo.table(ALERTING), outbox: dynamo.outbox() };
        let payload = payload(saga(name));
        // The second writer may have to retry, as the state machine does.
        let ((), removed) = join(deliver_all(&step, &breach), run(&removal, &payload)).await;
        if removed.is_err() {
            remove(&dynamo, saga(name)).await;
        }
        let types = dynamo.event_types(AlertingId::from_onboarding(saga(name).onboarding_id)).await;
        assert_eq!(types.last().map(String::as_str), Some("AlertingRemoved"), "{types:?}");
        assert!(types.len() <= 3, "{types:?}");
        let before = dynamo.all_rows().await;
        deliver_all(&step, &[bundle(saga(name), &[(0, &[(120, 20.0)])])]).await;
        assert_eq!(dynamo.all_rows().await, before);
    }
}

#[tokio::test]
async fn a_breached_site_can_be_removed() {
    let dynamo = configured_site().await;
    let step = detector(&dynamo);
    deliver_all(&step, &[first(&[(0, 51.0)])]).await;
    remove(&dynamo, saga("a")).await;
    deliver_all(&step, &[first(&[(60, 20.0)])]).await;
    let types = dynamo.event_types(AlertingId::from_onboarding(saga("a").onboarding_id)).await;
    assert_eq!(types, ["AlertingConfigured", BREACH, "AlertingRemoved"]);
}

#[tokio::test]
async fn a_site_is_watched_as_soon_as_it_is_configured() {
    let dynamo = Dynamo::start().await;
    let step = detector(&dynamo);
    deliver_all(&step, &[first(&[(0, 51.0)])]).await;
    configure(&dynamo, saga("a")).await;
    deliver_all(&step, &[first(&[(60, 52.0)])]).await;
    assert_eq!(emitted(&dynamo).await, [breach(60, 52.0)]);
}

#[tokio::test]
async fn a_row_of_the_previous_release_is_read_as_normal() {
    let dynamo = Dynamo::start().await;
    let saga = saga("a");
    let alerting = AlertingId::from_onboarding(saga.onboarding_id);
    configure(&dynamo, saga).await;
    let row = json!({
        "id": format!("alerting#{alerting}"), "onboardingId": saga.onboarding_id,
        "siteId": saga.site_id, "status": "CONFIGURED", "sequence": 1, "at": noon(0),
        "rules": sensors(saga, &WEATHER[..2]),
    });
    dynamo.put(ALERTING, row).await;
    deliver_all(&detector(&dynamo), &[first(&[(0, 51.0)])]).await;
    assert_eq!(emitted(&dynamo).await, [breach(0, 51.0)]);
}

#[tokio::test]
async fn a_row_of_the_previous_release_has_no_arrival_of_its_last_change() {
    let dynamo = configured_site().await;
    let step = detector(&dynamo);
    deliver_all(&step, &[first(&[(60, 51.0)])]).await;
    let mut row = dynamo.rows(ALERTING).await.remove(0);
    let rule = row["rules"][0].as_object_mut().expect("an object");
    assert_eq!(rule.remove("changeArrivedAt"), Some(json!(noon(60).plus_millis(500))));
    dynamo.put(ALERTING, row).await;
    // The reading at 60 s has the time of the last change, so it is not judged again, although its value differs.
    deliver_all(&detector(&dynamo), &[first(&[(60, 20.0), (61, 52.0)])]).await;
    assert_eq!(emitted(&dynamo).await, [breach(60, 51.0)]);
    deliver_all(&detector(&dynamo), &[first(&[(120, 20.0)])]).await;
    assert_eq!(emitted(&dynamo).await, [breach(60, 51.0), back(120, 20.0)]);
}

const QUARTER: i64 = 14 * 60;

#[tokio::test]
async fn a_reading_in_the_future_hides_no_breach() {
    let now: Vec<_> = (0..5).map(|second| (second, 90.0)).collect();
    let future = named("future", &[(QUARTER, 20.0)]);
    // The second bundle arrives in the same millisecond, or after its readings.
    for arrival in [-0.2, 4.5] {
        let dynamo = configured_site().await;
        let records = [(-0.2, future.clone()), (arrival, named("now", &now))];
        deliver_arrived(&detector(&dynamo), &records).await;
        assert_eq!(emitted(&dynamo).await, [breach(0, 90.0)]);
    }
}

#[tokio::test]
async fn a_change_in_the_future_hides_no_later_change() {
    let dynamo = configured_site().await;
    let step = detector(&dynamo);
    deliver_arrived(&step, &[(0.0, named("future", &[(QUARTER, 90.0)]))]).await;
    for step in [&step, &detector(&dynamo)] {
        let bundles =
            [(60.5, named("now", &[(60, 20.0)])), (120.5, named("later", &[(120, 91.0)]))];
        deliver_arrived(step, &bundles).await;
        // Neither the future nor the present is judged again: not by another environment, and not if it is sent again.
        deliver_arrived(step, &[(0.0, named("future", &[(QUARTER, 90.0)]))]).await;
        deliver_arrived(step, &[(125.0, named("future", &[(QUARTER, 90.0)]))]).await;
        assert_eq!(
            emitted(&dynamo).await,
            [breach(QUARTER, 90.0), back(60, 20.0), breach(120, 91.0)]
        );
    }
    // The rule remembers the bundle until a later change is after it.
    let row = &dynamo.rows(ALERTING).await[0];
    assert_eq!(row["rules"][0]["changeArrivedAt"], json!(noon(120).plus_millis(500)));
    let ahead = json!([{ "bundleId": "future", "judgedTo": noon(QUARTER) }]);
    assert_eq!(row["rules"][0]["ahead"], ahead);
    deliver_arrived(&step, &[(900.5, named("last", &[(900, 20.0)]))]).await;
    assert_eq!(dynamo.rows(ALERTING).await[0]["rules"][0].get("ahead"), None);
}

#[tokio::test]
async fn a_bundle_that_grows_is_judged_from_where_it_ended() {
    // A quarter of an hour between readings, which cross the limit every hour. The clock is right or fast.
    let readings: Vec<_> =
        (0..96).map(|n| (900 * n, if n / 4 % 2 == 1 { 60.0 } else { 20.0 })).collect();
    let changes = (1..24).map(|hour| 3600 * hour);
    let expected: Vec<_> = changes
        .zip([breach, back].into_iter().cycle())
        .map(|(at, change)| change(at, if at / 3600 % 2 == 1 { 60.0 } else { 20.0 }))
        .collect();
    for ahead in [0, QUARTER] {
        let dynamo = configured_site().await;
        // The whole day is young enough.
        let new = || DetectBreaches { max_age: Duration::from_hours(24), ..detector(&dynamo) };
        let mut step = new();
        for length in [4, 8, 12, 8, 40, 96, 96] {
            let readings = &readings[..length];
            let (last, _) = readings[length - 1];
            #[expect(clippy::cast_precision_loss, reason = "exact")]
            let arrival = (last - ahead) as f64 + 0.5;
            for _ in 0..2 {
                deliver_arrived(&step, &[(arrival, named("2026-01-01", readings))]).await;
                step = new();
            }
        }
        assert_eq!(emitted(&dynamo).await, expected, "{ahead}");
    }
}

#[tokio::test]
async fn a_fast_clock_does_not_repeat_changes() {
    let dynamo = configured_site().await;
    let step = detector(&dynamo);
    let bundles: Vec<_> = [20.0, 60.0, 20.0, 61.0, 21.0, 62.0]
        .into_iter()
        .zip(0..)
        .map(|(value, minute)| {
            let readings = [(QUARTER + 60 * minute, value), (QUARTER + 60 * minute + 30, value)];
            (
                60.0 * f64::from(u32::try_from(minute).expect("a minute")),
                named(&format!("b-{minute}"), &readings),
            )
        })
        .collect();
    deliver_arrived(&step, &bundles).await;
    let events = emitted(&dynamo).await;
    assert_eq!(events.len(), 5);
    let before = dynamo.all_rows().await;
    // The same environment and another one get the records again, and the logger sends all bundles again.
    for step in [&step, &detector(&dynamo)] {
        deliver_arrived(step, &bundles).await;
        let again: Vec<_> = bundles.iter().map(|(_, bundle)| (301.0, bundle.clone())).collect();
        deliver_arrived(step, &again).await;
    }
    assert_eq!(dynamo.all_rows().await, before);
}

#[tokio::test]
async fn an_import_raises_no_alert_and_the_next_live_crossing_one() {
    let dynamo = configured_site().await;
    let step = detector(&dynamo);
    let half_a_day = 12 * 3600;
    let year: Vec<_> =
        (1..=730).rev().map(|n| (-half_a_day * n, if n % 2 == 0 { 60.0 } else { 20.0 })).collect();
    let mut import = first(&year);
    import["origin"] = json!("import");
    let mut revision = first(&[(0, 60.0)]);
    revision["revision"] = json!(2);
    revision["reason"] = json!("the clock was an hour fast");
    let before = dynamo.all_rows().await;
    let not_live = [(0.0, import), (1.0, revision)];
    let metrics = reading_counts(deliver_arrived(&step, &not_live)).await;
    assert_eq!(dynamo.all_rows().await, before);
    assert_eq!(calls(&dynamo), BTreeMap::new());
    let counted = |reason: &str, count: f64| (format!("ReadingsNotJudged reason={reason}"), count);
    assert_eq!(metrics, [counted("Import", 730.0), counted("Revision", 1.0)].into());
    deliver_all(&step, &[first(&[(0, 60.0), (1, 61.0)])]).await;
    assert_eq!(emitted(&dynamo).await, [breach(0, 60.0)]);
}

#[tokio::test]
async fn readings_that_were_old_on_arrival_are_not_judged() {
    let dynamo = configured_site().await;
    let step = detector(&dynamo);
    // A bundle of old readings needs no row.
    let old = [(3600.5, first(&[(-1, 60.0), (0, 60.0)]))];
    let metrics = reading_counts(deliver_arrived(&step, &old)).await;
    assert_eq!(metrics, [("ReadingsNotJudged reason=Old".to_owned(), 2.0)].into());
    assert_eq!(calls(&dynamo), BTreeMap::new());
    // The reading at second 1 is as old as allowed. The two at second 0 are too old. (The present is months later, which
    // does not matter.)
    let readings = bundle(saga("a"), &[(0, &[(0, 60.0), (1, 61.0)]), (1, &[(0, 99.7)])]);
    let metrics = reading_counts(deliver_arrived(&step, &[(3601.0, readings)])).await;
    assert_eq!(emitted(&dynamo).await, [breach(1, 61.0)]);
    let counted = |name: &str, count: f64| (name.to_owned(), count);
    let expected = [counted("ReadingsJudged", 1.0), counted("ReadingsNotJudged reason=Old", 2.0)];
    assert_eq!(metrics, expected.into());
}

#[tokio::test]
async fn readings_that_do_not_count_change_no_state() {
    let dynamo = Dynamo::start().await;
    let mut payload = payload_with_sensors(saga("a"), &WEATHER);
    payload["sensors"][0]["noDataValues"] = json!([{ "values": [-9999, -77] }]);
    configure_with(&dynamo, &payload).await;
    let step = detector(&dynamo);
    let does_not_count = |at: i64| {
        let mut bundle = first(&[]);
        bundle["series"][0]["samples"] = json!([
            [noon(at), -9999],
            [noon(at + 1), -77],
            [noon(at + 2), null],
            [noon(at + 3), 60, 4],
            [noon(at + 4), 101],
            [noon(at + 5), -100.1],
        ]);
        bundle
    };
    let before = dynamo.all_rows().await;
    let metrics = reading_counts(deliver_all(&step, &[does_not_count(10)])).await;
    assert_eq!(dynamo.all_rows().await, before);
    let counted = |name: &str, count: f64| (name.to_owned(), count);
    let expected = [
        counted("ReadingsJudged", 0.0),
        counted("ReadingsNotJudged reason=Implausible", 2.0),
        counted("ReadingsNotJudged reason=NotUsable", 4.0),
    ];
    assert_eq!(metrics, expected.into());
    // They do not make other readings late, and do not end a breach.
    deliver_all(&step, &[first(&[(0, 60.0)]), does_not_count(20)]).await;
    assert_eq!(emitted(&dynamo).await, [breach(0, 60.0)]);
    // A suspect value counts.
    let mut suspect = first(&[]);
    suspect["series"][0]["samples"] = json!([[noon(30), 20, 3]]);
    deliver_all(&step, &[suspect]).await;
    assert_eq!(emitted(&dynamo).await, [breach(0, 60.0), back(30, 20.0)]);
}

#[tokio::test]
async fn the_calibrated_value_is_compared_and_reported() {
    let dynamo = Dynamo::start().await;
    let mut payload = payload_with_sensors(saga("a"), &WEATHER);
    payload["sensors"][0]["calibrations"] =
        json!([{ "validFrom": noon(10), "gain": 2.0, "offset": 1.0 }]);
    configure_with(&dynamo, &payload).await;
    deliver_all(&detector(&dynamo), &[first(&[(9, 30.0), (10, 24.5), (11, 30.0), (12, 60.0)])])
        .await;
    assert_eq!(emitted(&dynamo).await, [breach(11, 61.0)]);
}

#[tokio::test]
async fn an_invalid_bundle_is_skipped() {
    let dynamo = configured_site().await;
    let mut future = first(&[(0, 51.0)]);
    let ahead = Timestamp::now().plus_millis(24 * 60 * 60 * 1000);
    future["series"][0]["samples"] = json!([[ahead, 51.0]]);
    let not_a_bundle = json!({ "siteId": saga("a").site_id, "temperature": 51.0 });
    deliver_all(&detector(&dynamo), &[not_a_bundle, future, first(&[(0, 52.0)])]).await;
    assert_eq!(emitted(&dynamo).await, [breach(0, 52.0)]);
}

#[tokio::test]
async fn an_unreadable_row_stops_only_its_site() {
    let dynamo = configured_site().await;
    let other = saga("b");
    let key = format!("alerting#{}", AlertingId::from_onboarding(other.onboarding_id));
    dynamo.put(ALERTING, json!({ "id": key, "status": "CONFIGURED", "rules": "none" })).await;
    let step = detector(&dynamo);
    let broken = bundle(other, &[(0, &[(0, 51.0)])]);
    assert_eq!(deliver(&step, &[broken, first(&[(0, 51.0)])]).await, Some(0));
    assert_eq!(emitted(&dynamo).await, [breach(0, 51.0)]);
}

#[tokio::test]
async fn an_error_stops_the_lane_and_uncommitted_readings_are_judged_again() {
    let dynamo = configured_site().await;
    let mut step = detector(&dynamo);
    let bundles = [first(&[(0, 20.0)]), first(&[(60, 51.0)]), first(&[(120, 20.0)])];
    let unavailable = Stub::start(|_| (500, json!({}))).await;
    let client = aws_sdk_dynamodb::Client::new(&unavailable.config());
    // First the read fails, then only the write.
    step.outbox = Outbox::new(Table::new(client.clone(), "EventsTable"));
    let table = std::mem::replace(&mut step.alerting, Table::new(client, ALERTING));
    assert_eq!(deliver(&step, &bundles).await, Some(0));
    step.alerting = table;
    step.outbox = Outbox::new(dynamo.table("NoTable"));
    assert_eq!(deliver(&step, &bundles).await, Some(1));
    assert_eq!(emitted(&dynamo).await, []);
    step.outbox = dynamo.outbox();
    assert_eq!(deliver(&step, &bundles[1..]).await, None);
    assert_eq!(emitted(&dynamo).await, [breach(60, 51.0), back(120, 20.0)]);
}

#[tokio::test]
async fn the_sample_event_breaches_a_limit_of_the_sample_site() {
    let dynamo = Dynamo::start().await;
    let step = ConfigureAlerting { alerting: dynamo.table(ALERTING), outbox: dynamo.outbox() };
    run(&step, &sample::event("configure-alerting")).await.expect("alerting");
    assert_eq!(invoke(&detector(&dynamo), &sample::event("detect-breaches")).await, None);
    let site = SiteId::registered(OperatorId::DEFAULT, "registry.example", "sample-registration");
    let alerting = AlertingId::from_onboarding(OnboardingId::from_site(site));
    assert_eq!(dynamo.event_types(alerting).await, ["AlertingConfigured", BREACH]);
}
