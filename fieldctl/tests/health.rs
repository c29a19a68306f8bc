//! Tests `fieldctl sites health` and `fieldctl sites migrate`: runs the real binary against a fake of AWS and an
//! embedded DynamoDB.

mod cloud;
mod schemas;

use std::collections::BTreeSet;

use cloud::{CALLER_ARN, Cloud, ReceivedRequest, Stacks};
use contracts::{
    OnboardingId, OperatorId, SensorId, SiteId, Timestamp,
    readings::{Bundle, Series, TimeRange},
    sample::Sample,
};
use fieldctl::health::{HealthData, QuarantinedBundle, SiteSensor, StoredReadings};
use ledger::{ErrorInfo, FailureId, FailureRow, Kind, Status, fingerprint::fingerprint};
use serde_json::{Value, json};
use series::{RefusalRow, RevisionRow, SeriesRow, partition};
use store::{Commit, Transaction};
use telemetry::series_store::{Received, rows};
use testkit::{
    dynamo::{AUDIT, FAILURES, READINGS, REFUSALS, SITES},
    golden,
    sample::noon,
};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

fn site() -> SiteId {
    SiteId::registered(OperatorId::DEFAULT, "http", "key-1")
}

fn sensor(index: usize) -> SensorId {
    SensorId::from_onboarding(OnboardingId::from_site(site()), index)
}

type FakeResponse = (u16, Value, Vec<(&'static str, &'static str)>);

/// Returns a site with two sensors and that status, as the API shows it.
fn shown(status: &str) -> Value {
    let sensor =
        |index, metric| json!({ "sensorId": sensor(index), "unit": "Cel", "metric": metric });
    json!({
        "siteId": site(), "operatorId": OperatorId::DEFAULT, "name": "Desert Rock",
        "operator": "NOAA", "status": status,
        "onboarding": { "onboardingId": OnboardingId::from_site(site()), "steps": [
            { "name": "ActivateSite", "status": "COMPLETED", "at": "2025-01-01T00:00:00.000Z" } ] },
        "sensors": [sensor(0, "air_temperature"), sensor(1, "water_temperature")],
    })
}

fn respond(request: &ReceivedRequest) -> FakeResponse {
    match request.operation.as_str() {
        "/local/sites" => (200, json!({ "sites": [shown("ACTIVE")] }), vec![]),
        _ => (200, shown("ACTIVE"), vec![]),
    }
}

/// Returns the rows of a 15-minute bundle of those sensors, which ends and arrives at `end`.
fn bundle(sensors: &[usize], end: Timestamp) -> Vec<(SensorId, SeriesRow)> {
    let samples = (0..15).map(|n| Sample::new(end.plus_millis((n - 15) * MINUTE), 1.5)).collect();
    let series = |index: &usize| Series::new(sensor(*index), Vec::clone(&samples));
    let bundle_id = format!("b-{}", end.millis()).parse().expect("an id");
    let bundle = Bundle::new(bundle_id, site(), sensors.iter().map(series).collect());
    let received = Received { bundle: &bundle, arrival: None, now: end };
    rows(received).map(|(sensor, _, row)| (sensor, row)).collect()
}

/// Stores a bundle for each quarter of an hour in the 26 hours before `until`.
async fn store(cloud: &Cloud, sensors: &[usize], until: Timestamp) {
    for quarter in (0..26 * 4).rev() {
        for (sensor, row) in bundle(sensors, until.plus_millis(-quarter * 15 * MINUTE)) {
            let table = cloud.dynamo.table(READINGS);
            let key = SeriesRow::key(sensor, &row.row);
            let put = Transaction::on(&table).create(&table, &key, &row).commit();
            assert!(matches!(put.await.expect("a row"), Commit::Done));
        }
    }
}

async fn refuse(
    cloud: &Cloud,
    sender: OperatorId,
    site: Option<SiteId>,
    at: Timestamp,
    refused: u64,
) {
    let hour = Timestamp::from_millis(at.millis() / HOUR * HOUR);
    let row = RefusalRow {
        site_id: partition(sender, site),
        row: format!("{hour}/ClockAhead/series[].samples[]/{}", sensor(0)),
        refused,
        first_at: at,
        last_at: at,
        example: "2030-01-01T00:00:00.000Z is more than 15 minutes ahead of our clock".to_owned(),
        expires_at: 0,
    };
    cloud.dynamo.put(REFUSALS, json!(row)).await;
}

async fn quarantine(cloud: &Cloud, site_id: SiteId, at: Timestamp) -> FailureId {
    let source = "store-readings";
    let error = ErrorInfo::new("BundleConflict", &format!("{} has other samples", sensor(1)));
    let id = FailureId::new(source, [u8::from(site_id == site()); 32]);
    let row = FailureRow {
        id,
        source: source.to_owned(),
        kind: Kind::Quarantined,
        payload: None,
        payload_file: None,
        fingerprint: fingerprint(source, &error),
        error,
        attempts: 1,
        first_at: at,
        last_at: at,
        status: Status::Open,
        correlation_id: None,
        site_id: Some(site_id),
        execution: None,
        messages: BTreeSet::new(),
        replays: 0,
        replay: None,
        note: None,
    };
    cloud.dynamo.put(FAILURES, json!(row)).await;
    id
}

/// Runs the command. Returns the exit code and the document, after checking it against its schema.
async fn health(cloud: &Cloud) -> (i32, Value) {
    let (code, out, err) = cloud.run(&["--json", "sites", "health", "desert rock"]).await;
    let document: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    assert_fits(&document);
    (code, document)
}

/// Returns the differences between the document and its schema.
fn violations(document: &Value) -> Vec<String> {
    schemas::violations("sites-health", document)
}

fn assert_fits(document: &Value) {
    assert_eq!(violations(document), Vec::<String>::new(), "{document:#}");
}

#[tokio::test]
async fn a_station_that_sends_is_reporting() {
    let cloud = Cloud::start(respond).await;
    store(&cloud, &[0, 1], Timestamp::now().plus_millis(-5 * MINUTE)).await;
    let (code, document) = health(&cloud).await;
    assert_eq!((code, &document["verdict"]), (0, &json!("REPORTING")), "{document:#}");
    assert_eq!(document["findings"], json!([]));
    let first = &document["sensors"][0];
    assert_eq!(first["intervalSeconds"], 900);
    assert!(first["completeness"].as_f64().expect("a part") > 0.98, "{document:#}");
    assert_eq!(first["refused"], 0);
    let (code, out, _) = cloud.run(&["sites", "health", &site().to_string()]).await;
    assert!(code == 0 && out.contains("reporting; last arrival 5m ago"), "{out}");
}

#[tokio::test]
async fn a_station_that_stops_sending_is_silent_since_its_last_arrival() {
    let cloud = Cloud::start(respond).await;
    let last = Timestamp::now().plus_millis(-4 * HOUR);
    store(&cloud, &[0, 1], last).await;
    let (code, document) = health(&cloud).await;
    assert_eq!((code, &document["verdict"]), (1, &json!("SILENT")), "{document:#}");
    let (code, out, _) = cloud.run(&["sites", "health", "Desert Rock"]).await;
    assert_eq!(code, 1);
    assert!(
        out.contains(&format!("silent since {last} (4h ago); bundles arrived every 15m")),
        "{out}"
    );
    assert!(out.contains("fieldctl status"), "the next action: {out}");
    let completeness = document["sensors"][0]["completeness"].as_f64().expect("a part");
    assert!((0.8..0.85).contains(&completeness), "20 of 24 hours: {completeness}");

    // A delay of one bundle is not silence.
    let cloud = Cloud::start(respond).await;
    store(&cloud, &[0, 1], Timestamp::now().plus_millis(-20 * MINUTE)).await;
    assert_eq!(health(&cloud).await.0, 0);
}

#[tokio::test]
async fn a_silent_sensor_of_a_reporting_site_is_found() {
    let cloud = Cloud::start(respond).await;
    let now = Timestamp::now();
    store(&cloud, &[0], now.plus_millis(-5 * MINUTE)).await;
    store(&cloud, &[1], now.plus_millis(-3 * HOUR)).await;
    let (code, document) = health(&cloud).await;
    assert_eq!((code, &document["verdict"]), (1, &json!("PARTLY_SILENT")), "{document:#}");
    let verdicts = [0, 1].map(|index| document["sensors"][index]["verdict"].clone());
    assert_eq!(verdicts, [json!("REPORTING"), json!("SILENT")]);
}

#[tokio::test]
async fn a_station_that_never_sent_has_never_reported() {
    let cloud = Cloud::start(respond).await;
    let (code, document) = health(&cloud).await;
    assert_eq!((code, &document["verdict"]), (1, &json!("NEVER_REPORTED")), "{document:#}");
}

#[tokio::test]
async fn samples_that_a_revision_withdrew_do_not_count() {
    let cloud = Cloud::start(respond).await;
    let now = Timestamp::now();
    let until = now.plus_millis(-5 * MINUTE);
    store(&cloud, &[0, 1], until).await;
    let (_, before) = health(&cloud).await;
    // The first sensor's last twelve hours.
    let row = RevisionRow {
        bundle_id: "half-a-day".parse().expect("an id"),
        revision: 2,
        reason: "The shield was open.".to_owned(),
        replaces: Some(TimeRange { from: until.plus_millis(-12 * HOUR), to: until }),
        span: None,
        samples: 0,
        arrival: None,
        stored_at: now.millis(),
    };
    let table = cloud.dynamo.table(READINGS);
    let key = RevisionRow::key(sensor(0), &row.bundle_id, row.revision);
    let put = Transaction::on(&table).create(&table, &key, &row).commit();
    assert!(matches!(put.await.expect("a row"), Commit::Done));
    let (code, after) = health(&cloud).await;
    let samples = |document: &Value, index: usize| {
        document["sensors"][index]["accepted"]["samples"].as_u64().expect("a number")
    };
    assert_eq!(samples(&before, 0) - samples(&after, 0), 12 * 60, "{after:#}");
    assert_eq!(samples(&before, 1), samples(&after, 1), "{after:#}");
    let withdrawn = &after["sensors"][0];
    assert_eq!(withdrawn["lastSample"], json!(until.plus_millis(-12 * HOUR - MINUTE)));
    let complete = withdrawn["completeness"].as_f64().expect("a number");
    assert!((0.45..0.55).contains(&complete), "{after:#}");
    // Its bundles arrive nevertheless.
    assert_eq!((code, &withdrawn["verdict"]), (0, &json!("REPORTING")), "{after:#}");
}

#[tokio::test]
async fn a_station_whose_bundles_are_refused_is_refused_and_not_silent() {
    let cloud = Cloud::start(respond).await;
    let now = Timestamp::now();
    store(&cloud, &[0, 1], now.plus_millis(-4 * HOUR)).await;
    // A refusal that is older than 24 hours does not count.
    refuse(&cloud, OperatorId::DEFAULT, Some(site()), now.plus_millis(-30 * HOUR), 7).await;
    refuse(&cloud, OperatorId::DEFAULT, Some(site()), now.plus_millis(-2 * HOUR), 4).await;
    refuse(&cloud, OperatorId::DEFAULT, Some(site()), now.plus_millis(-MINUTE), 1).await;
    let other = SiteId::registered(OperatorId::DEFAULT, "http", "key-2");
    refuse(&cloud, OperatorId::DEFAULT, Some(other), now, 100).await;
    refuse(&cloud, OperatorId::DEFAULT, None, now, 3).await;
    // What another operator sent does not count, whether or not it names the site.
    let stranger = OperatorId::registered("another operator");
    refuse(&cloud, stranger, Some(site()), now, 1_000).await;
    refuse(&cloud, stranger, None, now, 1_000).await;
    let (code, document) = health(&cloud).await;
    assert_eq!((code, &document["verdict"]), (1, &json!("REFUSED")), "{document:#}");
    assert_eq!(document["refused"][0]["count"], 5, "{document:#}");
    assert_eq!(document["refused"][0]["sensorId"], json!(sensor(0)));
    assert_eq!(document["sensors"][0]["refused"], 5);
    assert_eq!(document["sensors"][1]["refused"], 0);
    assert_eq!(document["refusedWithoutSite"], 3);
    let kinds: Vec<_> = document["findings"].as_array().expect("a list").iter().collect();
    assert_eq!(kinds[1]["kind"], "SILENT", "{document:#}");
    let (_, out, _) = cloud.run(&["sites", "health", "Desert Rock"]).await;
    assert!(out.contains("ClockAhead") && out.contains("more than 15 minutes ahead"), "{out}");
}

#[tokio::test]
async fn quarantined_readings_are_shown_with_their_failure() {
    let cloud = Cloud::start(respond).await;
    let now = Timestamp::now();
    store(&cloud, &[0, 1], now.plus_millis(-5 * MINUTE)).await;
    quarantine(&cloud, SiteId::registered(OperatorId::DEFAULT, "http", "key-2"), now).await;
    assert_eq!(health(&cloud).await.0, 0, "another site's failure");
    let id = quarantine(&cloud, site(), now).await;
    let (code, document) = health(&cloud).await;
    assert_eq!((code, &document["verdict"]), (1, &json!("QUARANTINED")), "{document:#}");
    assert_eq!(document["quarantined"][0]["failureId"], json!(id));
    assert_eq!(document["sensors"][1]["quarantined"], 1);
    assert_eq!(document["findings"][0]["next"], format!("fieldctl failures show {id}"));
}

#[tokio::test]
async fn what_can_not_be_read_is_unknown_and_never_healthy() {
    for (table, source) in [(REFUSALS, "refusals"), (FAILURES, "failures"), (READINGS, "readings")]
    {
        let cloud = Cloud::start(respond).await;
        store(&cloud, &[0, 1], Timestamp::now().plus_millis(-5 * MINUTE)).await;
        let delete = cloud.dynamo.client().delete_table().table_name(table);
        delete.send().await.expect("the table deleted");
        let (code, document) = health(&cloud).await;
        assert_eq!((code, &document["verdict"]), (5, &json!("UNKNOWN")), "{document:#}");
        assert_eq!(document["unknown"][0]["source"], source, "{document:#}");
        let (code, out, _) = cloud.run(&["sites", "health", "Desert Rock"]).await;
        assert!(code == 5 && out.contains(&format!("not checked   {source}: ")), "{out}");
        let expected = match source {
            "readings" => "unknown: the readings of 2 of 2 sensors can't be read".to_owned(),
            _ => format!("unknown: last arrival 5m ago, but not checked: {source}"),
        };
        assert!(out.contains(&expected), "{out}");
    }
}

#[tokio::test]
async fn a_site_out_of_service_is_not_silent() {
    let cloud = Cloud::start(|request| match request.operation.as_str() {
        "/local/sites" => (200, json!({ "sites": [shown("DECOMMISSIONED")] }), vec![]),
        _ => (200, shown("DECOMMISSIONED"), vec![]),
    })
    .await;
    let (code, document) = health(&cloud).await;
    assert_eq!((code, &document["verdict"]), (1, &json!("NOT_IN_SERVICE")), "{document:#}");
}

#[tokio::test]
async fn the_refusals_of_a_site_are_those_of_its_operator() {
    let operator = OperatorId::registered("another operator");
    let cloud = Cloud::start(move |request| {
        let (status, mut body, headers) = respond(request);
        let site = if body["sites"].is_array() { &mut body["sites"][0] } else { &mut body };
        site["operatorId"] = json!(operator);
        (status, body, headers)
    })
    .await;
    let now = Timestamp::now();
    refuse(&cloud, operator, Some(site()), now, 2).await;
    refuse(&cloud, OperatorId::DEFAULT, Some(site()), now, 1_000).await;
    let (_, document) = health(&cloud).await;
    assert_eq!(document["refused"][0]["count"], 2, "{document:#}");
}

#[tokio::test]
async fn old_sites_are_migrated_once() {
    let cloud = Cloud::start(respond).await;
    let operator = OperatorId::registered("another operator");
    let ids = ["a", "b", "c"].map(|key| SiteId::registered(OperatorId::DEFAULT, "http", key));
    let migrated = json!({
        "siteId": ids[2], "row": "SITE", "status": "ACTIVE", "createdAt": noon(0),
        "operatorId": operator, "operatorStatus": format!("{operator}#ACTIVE"),
    });
    let step = json!({ "siteId": ids[0], "row": "STEP#ReserveKits", "status": "COMPLETED" });
    for row in [
        json!({ "siteId": ids[0], "row": "SITE", "status": "ACTIVE", "createdAt": noon(0) }),
        json!({ "siteId": ids[1], "row": "SITE", "status": "REJECTED", "createdAt": noon(0) }),
        migrated.clone(),
        step.clone(),
    ] {
        cloud.dynamo.put(SITES, row).await;
    }
    let migrate = async || {
        let (code, out, err) = cloud.run(&["sites", "migrate"]).await;
        assert_eq!(code, 0, "{err}");
        (out, cloud.dynamo.rows(SITES).await)
    };
    let (out, rows) = migrate().await;
    assert_eq!(out, "Changed 2 of 3 sites.\n");
    let entries = cloud.dynamo.rows(AUDIT).await;
    assert_eq!(entries.len(), 1, "one run is one entry: {entries:?}");
    for (name, value) in [
        ("operatorId", OperatorId::DEFAULT.to_string()),
        ("actor", format!("iam:{CALLER_ARN}")),
        ("action", "MigrateSites".to_owned()),
        ("target", "sites".to_owned()),
    ] {
        assert_eq!(entries[0][name], value);
    }
    let of = |id: SiteId, kind: &str| {
        let is_of = |row: &&Value| row["siteId"] == json!(id) && row["row"] == kind;
        rows.iter().find(is_of).expect("a row").clone()
    };
    for (id, status) in [(ids[0], "ACTIVE"), (ids[1], "REJECTED")] {
        let row = of(id, "SITE");
        assert_eq!(row["operatorId"], json!(OperatorId::DEFAULT));
        assert_eq!(row["operatorStatus"], format!("{}#{status}", OperatorId::DEFAULT));
    }
    assert_eq!(of(ids[2], "SITE"), migrated);
    assert_eq!(of(ids[0], "STEP#ReserveKits"), step);
    let again = migrate().await;
    assert_eq!(again, ("Changed 0 of 3 sites.\n".to_owned(), rows));
    assert_eq!(cloud.dynamo.rows(AUDIT).await, entries, "a run without a change has no entry");
}

#[tokio::test]
async fn without_an_entry_of_the_audit_trail_no_site_is_migrated() {
    let stacks = Stacks { no_audit: true, ..Stacks::default() };
    let cloud = Cloud::with(stacks, respond).await;
    let old = json!({ "siteId": site(), "row": "SITE", "status": "ACTIVE", "createdAt": noon(0) });
    cloud.dynamo.put(SITES, old.clone()).await;
    let (code, out, err) = cloud.run(&["sites", "migrate"]).await;
    assert_eq!(code, 5, "{out}{err}");
    assert!(err.contains("dynamodb:PutItem on the table test-audit"), "{err}");
    assert_eq!(cloud.dynamo.rows(SITES).await, [old]);
}

#[tokio::test]
async fn at_80_columns_nothing_is_truncated() {
    let cloud = Cloud::start(respond).await;
    let now = Timestamp::now();
    store(&cloud, &[0, 1], now.plus_millis(-4 * HOUR)).await;
    refuse(&cloud, OperatorId::DEFAULT, Some(site()), now, 4).await;
    let id = quarantine(&cloud, site(), now).await;
    let output = cloud
        .command(&["sites", "health", "Desert Rock"])
        .env("COLUMNS", "80")
        .output()
        .await
        .expect("it runs");
    let out = String::from_utf8(output.stdout).expect("text");
    let longest = out.lines().map(|line| line.chars().count()).max();
    assert!(longest <= Some(80), "{out}");
    for whole in [
        "air_temperature Cel",
        &sensor(1).to_string()[..8],
        &id.to_string(),
        "series[].samples[]",
        "15 minutes ahead",
    ] {
        assert!(out.contains(whole), "{whole} is missing:\n{out}");
    }
}

/// Returns the data of a site with every kind of finding, at a fixed time.
fn health_data() -> HealthData {
    let now = noon(0);
    let row = |reason: &str, at: Timestamp| RefusalRow {
        site_id: site().to_string(),
        row: format!("2026-01-01T11:00:00.000Z/{reason}/series[].samples[]/{}", sensor(0)),
        refused: 2,
        first_at: at,
        last_at: at,
        example: "is bad".to_owned(),
        expires_at: 0,
    };
    let sensor_with_rows = |index, hours: i64| {
        let quarters = (0..8).map(|n| now.plus_millis(-hours * HOUR - n * 15 * MINUTE));
        let rows = quarters.flat_map(|end| bundle(&[index], end)).map(|(_, row)| row).collect();
        let sensor = SiteSensor {
            id: sensor(index).to_string(),
            metric: "air_temperature".to_owned(),
            unit: "Cel".to_owned(),
        };
        (sensor, Ok(StoredReadings { rows, ..StoredReadings::default() }))
    };
    let never = SiteSensor { id: sensor(2).to_string(), ..sensor_with_rows(2, 0).0 };
    let unread = SiteSensor { id: sensor(3).to_string(), ..sensor_with_rows(3, 0).0 };
    HealthData {
        site_id: site(),
        name: "Desert Rock".to_owned(),
        status: "ACTIVE".to_owned(),
        active_since: None,
        sensors: vec![
            sensor_with_rows(0, 0),
            sensor_with_rows(1, 5),
            (never, Ok(StoredReadings::default())),
            (unread, Err("no answer".to_owned())),
        ],
        refusals: Ok(vec![row("ClockAhead", noon(-60)), row("OutOfOrder", noon(-120))]),
        refusals_without_site: Err("no answer".to_owned()),
        failures: Ok(vec![QuarantinedBundle {
            failure_id: FailureId::new("store-readings", [7; 32]).to_string(),
            error: ErrorInfo::new("BundleConflict", "other samples"),
            last_at: noon(-30),
        }]),
    }
}

#[test]
fn the_rows_of_a_growing_bundle_count_as_one_bundle_and_a_revision_as_another() {
    let mut data = health_data();
    let readings = data.sensors[0].1.as_mut().expect("readings");
    for (index, row) in readings.rows.iter_mut().enumerate() {
        let (start, _) = row.row.split_once('/').expect("a key");
        let revision = if index < 3 { "/2" } else { "" };
        row.row = format!("{start}/day{revision}");
    }
    let sensor = data.into_health(noon(0)).sensors.remove(0);
    let accepted = sensor.accepted.expect("readings");
    assert_eq!((accepted.bundles, accepted.samples), (2, 8 * 15));
    assert_eq!(sensor.interval_seconds, Some(15 * 60));
}

#[test]
fn the_document_matches_the_golden_file_and_its_schema_rejects_others() {
    let document = json!(health_data().into_health(noon(0)));
    golden::check(env!("CARGO_MANIFEST_DIR"), "sites-health", &document);
    assert_fits(&document);
    for member in document.as_object().expect("an object").keys() {
        let mut less = document.clone();
        less.as_object_mut().expect("an object").remove(member);
        assert!(!violations(&less).is_empty(), "{member} is mandatory");
    }
    let mut more = document.clone();
    more["sensors"][0]["colour"] = "red".into();
    assert!(!violations(&more).is_empty(), "a member that is not described");
}
