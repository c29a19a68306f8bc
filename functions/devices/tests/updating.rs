//! Tests of `PATCH /sensors/{sensorId}`.

use audit::Trail;
use contracts::{OperatorId, Scope, SensorsId, sensor::MAX_DATED};
use devices::{
    deprovision_sensors::DeprovisionSensors, provision_sensors::ProvisionSensors,
    update_sensor::UpdateSensor,
};
use futures_util::future::join_all;
use lambda::http::{Caller, Problem, Request, Response, response};
use serde_json::{Value, json};
use store::Transaction;
use testkit::{
    Dynamo,
    dynamo::{AUDIT, DEVICES, READINGS},
    golden,
    saga::run,
    sample::{
        self, WEATHER, caller, default_caller, noon, other_operator, payload, payload_with_sensors,
        saga, sensors,
    },
};

fn step(dynamo: &Dynamo) -> UpdateSensor {
    UpdateSensor {
        devices: dynamo.table(DEVICES),
        readings: dynamo.table(READINGS),
        outbox: dynamo.outbox(),
        trail: Trail::new(dynamo.table(AUDIT)),
    }
}

/// Returns the id of a sensor of the site.
fn id(index: usize) -> String {
    sensors(saga("a"), &WEATHER)[index].sensor_id.to_string()
}

/// Provisions the sensors of a site. Telemetry's register knows them.
async fn provisioned() -> Dynamo {
    let dynamo = Dynamo::start().await;
    let step = ProvisionSensors { devices: dynamo.table(DEVICES), outbox: dynamo.outbox() };
    run(&step, &payload_with_sensors(saga("a"), &WEATHER)).await.expect("sensors");
    let readings = dynamo.table(READINGS);
    for sensor in sensors(saga("a"), &WEATHER) {
        let key = series::register::key(sensor.sensor_id);
        let row = json!({ "siteId": saga("a").site_id });
        let commit = Transaction::on(&readings).create(&readings, &key, &row).commit().await;
        assert!(matches!(commit, Ok(store::Commit::Done)));
    }
    dynamo
}

fn request(sensor: &str, body: &str) -> Request {
    let mut event = sample::event("update-sensor");
    event["path"] = format!("/sensors/{sensor}").into();
    event["pathParameters"] = json!({ "sensorId": sensor });
    event["body"] = body.into();
    serde_json::from_value(event).expect("an event of API Gateway")
}

/// Returns the response that API Gateway gets, with the body parsed as JSON.
fn api_response(result: Result<Response, Problem>) -> Value {
    let mut api_response = json!(response(result));
    let body = api_response["body"].as_str().expect("a body");
    api_response["body"] = serde_json::from_str(body).expect("a body of JSON");
    api_response
}

async fn patch_as(dynamo: &Dynamo, by: &Caller, sensor: &str, body: &Value, at: i64) -> Value {
    let request = request(sensor, &body.to_string());
    api_response(step(dynamo).handle(by, &request, noon(at)).await)
}

async fn patch(dynamo: &Dynamo, index: usize, body: &Value, at: i64) -> Value {
    patch_as(dynamo, &default_caller(), &id(index), body, at).await
}

/// Returns the data of the site's events `SensorChanged`, after checking that no event is missing.
async fn changes(dynamo: &Dynamo) -> Vec<Value> {
    let events = dynamo.events(SensorsId::from_onboarding(saga("a").onboarding_id)).await;
    let sequences: Vec<_> = events.iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, (1..=events.len() as u64).collect::<Vec<_>>());
    let changed = events.iter().filter(|event| event.kind == "SensorChanged");
    let changed: Vec<_> =
        changed.map(|event| event.envelope().expect("an envelope").data).collect();
    assert_eq!(dynamo.rows(AUDIT).await.len(), changed.len());
    changed
}

#[tokio::test]
async fn a_change_is_one_event_and_one_entry_of_the_audit_trail() {
    let dynamo = provisioned().await;
    let body = json!({
        "label": "Mast, 2 m", "stamp": "end", "reportEverySeconds": 900, "heightM": 2,
        "datum": null, "externalIds": { "WMO": "0-20000-0-74462" }, "intervalSeconds": 60,
        "noDataValues": [-9999.9], "calibration": { "gain": 0.998, "offset": 0.3 },
    });
    let response = patch(&dynamo, 1, &body, 60).await;
    golden::check(env!("CARGO_MANIFEST_DIR"), "update-sensor.changed", &response);

    let changes = changes(&dynamo).await;
    let mut sensor = response["body"].clone();
    let site = sensor.as_object_mut().expect("an object").remove("siteId");
    assert_eq!(changes, [json!({ "siteId": site, "sensor": sensor })]);
    let rows = dynamo.rows(DEVICES).await;
    assert_eq!(
        (&rows[0]["sequence"], &rows[0]["sensors"][1]["label"]),
        (&json!(2), &json!("Mast, 2 m"))
    );
    assert_eq!(
        rows[0]["sensors"][0],
        json!({ "sensorId": id(0), "metric": "air_temperature", "unit": "Cel", "min": -50, "max": 50 })
    );
    let entry = &dynamo.rows(AUDIT).await[0];
    assert_eq!(entry["action"], "UpdateSensor");
    assert_eq!((&entry["target"], &entry["actor"]), (&json!(id(1)), &json!("key:fso_12345678")));
}

#[tokio::test]
async fn a_change_that_changes_nothing_writes_nothing() {
    let dynamo = provisioned().await;
    let body = json!({ "label": "Mast", "noDataValues": [-99] });
    let first = patch(&dynamo, 0, &body, 60).await;
    // The same request, a minute later.
    assert_eq!(patch(&dynamo, 0, &body, 120).await, first);
    assert_eq!(patch(&dynamo, 0, &json!({}), 180).await, first);
    assert_eq!(patch(&dynamo, 0, &json!({ "datum": null }), 180).await, first);
    assert_eq!(changes(&dynamo).await.len(), 1);
}

#[tokio::test]
async fn concurrent_changes_of_a_sites_sensors_are_all_kept() {
    let dynamo = provisioned().await;
    let bodies = [
        (0, json!({ "label": "a" })),
        (0, json!({ "heightM": 2 })),
        (1, json!({ "label": "b" })),
        (2, json!({ "datum": "c" })),
    ];
    let sent = bodies.iter().map(|(index, body)| patch(&dynamo, *index, body, 60));
    for response in join_all(sent).await {
        assert_eq!(response["statusCode"], 200, "{response}");
    }
    assert_eq!(changes(&dynamo).await.len(), 4);
    let sensors = dynamo.rows(DEVICES).await[0]["sensors"].clone();
    assert_eq!((&sensors[0]["label"], &sensors[0]["heightM"]), (&json!("a"), &json!(2)));
    assert_eq!((&sensors[1]["label"], &sensors[2]["datum"]), (&json!("b"), &json!("c")));
}

#[tokio::test]
async fn dated_values_are_replaced_and_removed_by_their_date() {
    let dynamo = provisioned().await;
    let calibration = |gain: f64| json!({ "gain": gain, "offset": 0 });
    for (gain, from) in [
        (1.5, json!("2026-02-01T00:00:00Z")),
        (2.5, json!(null)),
        (3.5, json!("2026-02-01T01:00:00+01:00")),
    ] {
        let body = json!({ "calibration": calibration(gain), "validFrom": from });
        assert_eq!(patch(&dynamo, 0, &body, 60).await["statusCode"], 200);
    }
    let response = patch(&dynamo, 0, &json!({ "calibration": calibration(4.5) }), 60).await;
    assert_eq!(
        response["body"]["calibrations"],
        json!([
            { "gain": 2.5, "offset": 0.0 },
            { "validFrom": "2026-01-01T12:01:00.000Z", "gain": 4.5, "offset": 0.0 },
            { "validFrom": "2026-02-01T00:00:00.000Z", "gain": 3.5, "offset": 0.0 },
        ])
    );
    let body = json!({ "calibration": null, "validFrom": "2026-02-01T00:00:00Z" });
    let response = patch(&dynamo, 0, &body, 60).await;
    assert_eq!(response["body"]["calibrations"].as_array().map(Vec::len), Some(2));
    let response = patch(&dynamo, 0, &json!({ "calibration": null }), 60).await;
    assert_eq!(response["body"].get("calibrations"), None);
}

#[tokio::test]
async fn a_change_beyond_the_limits_is_refused() {
    let dynamo = provisioned().await;
    for day in 1..=MAX_DATED {
        let body =
            json!({ "intervalSeconds": day, "validFrom": format!("2026-02-{day:02}T00:00:00Z") });
        assert_eq!(patch(&dynamo, 0, &body, 60).await["statusCode"], 200, "{day}");
    }
    let response = patch(&dynamo, 0, &json!({ "intervalSeconds": 60 }), 60).await;
    golden::check(env!("CARGO_MANIFEST_DIR"), "update-sensor.too-many", &response);
    assert_eq!(changes(&dynamo).await.len(), MAX_DATED);
}

#[tokio::test]
async fn each_wrong_field_is_named() {
    let dynamo = provisioned().await;
    let body = json!({
        "metric": "wind_speed", "min": null, "colour": "red", "heightM": "2", "label": "",
        "noDataValues": [null], "calibration": { "gain": 0 }, "validFrom": "yesterday",
    });
    let response = patch(&dynamo, 0, &body, 60).await;
    golden::check(env!("CARGO_MANIFEST_DIR"), "update-sensor.wrong-fields", &response);
    for (sensor, body, status) in [("1", "{}", 400), (&*id(0), "{", 400), (&*id(0), "[]", 400)] {
        let request = request(sensor, body);
        let response =
            api_response(step(&dynamo).handle(&default_caller(), &request, noon(0)).await);
        assert_eq!(response["statusCode"], status, "{response}");
    }
    assert_eq!(changes(&dynamo).await, [json!(null); 0]);
}

#[tokio::test]
async fn only_operators_change_their_own_sensors() {
    let dynamo = provisioned().await;
    let body = json!({ "label": "a" });
    let other = caller(other_operator(), Scope::Operator);
    drop(dynamo.take_usage());
    let of_other = patch_as(&dynamo, &other, &id(0), &body, 60).await;
    let calls = dynamo.take_usage().calls;
    golden::check(env!("CARGO_MANIFEST_DIR"), "update-sensor.other-operator", &of_other);
    let unknown = sample::sensors(saga("b"), &WEATHER)[0].sensor_id.to_string();
    let of_nobody = patch_as(&dynamo, &other, &unknown, &body, 60).await;
    // Apart from the id, both responses are equal, and neither takes more reads.
    assert_eq!(dynamo.take_usage().calls, calls);
    assert_eq!(of_other.to_string().replace(&id(0), &unknown), of_nobody.to_string());
    for scope in [Scope::Read, Scope::Logger(saga("a").site_id)] {
        let response =
            patch_as(&dynamo, &caller(OperatorId::DEFAULT, scope), &id(0), &body, 60).await;
        assert_eq!(response["statusCode"], 403, "{response}");
    }
    assert_eq!(changes(&dynamo).await, [json!(null); 0]);
}

#[tokio::test]
async fn a_retired_sensor_can_not_be_changed() {
    let dynamo = provisioned().await;
    let undo = DeprovisionSensors { devices: dynamo.table(DEVICES), outbox: dynamo.outbox() };
    assert_eq!(patch(&dynamo, 0, &json!({ "label": "a" }), 60).await["statusCode"], 200);
    run(&undo, &payload(saga("a"))).await.expect("an undo");
    let response = patch(&dynamo, 0, &json!({ "label": "b" }), 60).await;
    golden::check(env!("CARGO_MANIFEST_DIR"), "update-sensor.retired", &response);
    assert_eq!(changes(&dynamo).await.len(), 1);
}
