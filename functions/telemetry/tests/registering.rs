//! Tests of projecting changed sensors into the register.

use contracts::{EntityType, SensorId};
use fault::ErrorKind;
use serde_json::{Value, json};
use telemetry::{SensorRow, project_sensors::ProjectSensors};
use testkit::{
    Dynamo,
    dynamo::READINGS,
    saga::run,
    sample::{self, WEATHER, saga, sensors},
};

fn sensor() -> SensorId {
    sensors(saga("a"), &WEATHER)[0].sensor_id
}

fn event(kind: &str, sequence: u64, data: Value) -> Value {
    let mut event = sample::event_of("project-sensors", saga("a"), EntityType::Sensors, data);
    event["detail-type"] = kind.into();
    event["detail"]["metadata"]["type"] = kind.into();
    event["detail"]["metadata"]["sequence"] = sequence.into();
    event
}

fn provisioned() -> Value {
    let sensors = sensors(saga("a"), &WEATHER);
    event("SensorsProvisioned", 1, json!({ "siteId": saga("a").site_id, "sensors": sensors }))
}

fn deprovisioned() -> Value {
    let ids: Vec<_> = sensors(saga("a"), &WEATHER).iter().map(|it| it.sensor_id).collect();
    event("SensorsDeprovisioned", 4, json!({ "siteId": saga("a").site_id, "sensorIds": ids }))
}

/// Returns the event that the first sensor has this label.
fn changed(label: &str, sequence: u64) -> Value {
    let mut sensor = json!(sensors(saga("a"), &WEATHER)[0]);
    sensor["label"] = label.into();
    event("SensorChanged", sequence, json!({ "siteId": saga("a").site_id, "sensor": sensor }))
}

async fn row(dynamo: &Dynamo) -> SensorRow {
    let table = dynamo.table(READINGS);
    table.get(&SensorRow::key(sensor())).await.expect("a read").expect("a row")
}

#[tokio::test]
async fn the_register_has_the_newest_change_in_any_order_of_the_events() {
    let events = [provisioned(), changed("second", 2), changed("third", 3), deprovisioned()];
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]] {
        let dynamo = Dynamo::start().await;
        let step = ProjectSensors { readings: dynamo.table(READINGS) };
        for index in order.into_iter().chain([0, 1]) {
            run(&step, &events[index]).await.expect("a reply");
        }
        let SensorRow { sensor, sensor_sequence, retired_at, .. } = row(&dynamo).await;
        let label = sensor.and_then(|sensor| sensor.metadata.description.label);
        assert_eq!((label.as_deref(), sensor_sequence), (Some("third"), Some(3)), "{order:?}");
        assert!(retired_at.is_some(), "{order:?}");
        assert_eq!(dynamo.rows(READINGS).await.len(), WEATHER.len());
    }
}

#[tokio::test]
async fn the_row_of_a_sensor_that_was_never_changed_is_as_before() {
    let dynamo = Dynamo::start().await;
    let step = ProjectSensors { readings: dynamo.table(READINGS) };
    for _ in 0..2 {
        run(&step, &provisioned()).await.expect("a reply");
    }
    let rows = dynamo.rows(READINGS).await;
    let own = rows.iter().find(|row| row["sensorId"] == json!(sensor())).expect("a row");
    let expected = json!({
        "sensorId": sensor(), "row": "SENSOR", "siteId": saga("a").site_id,
        "operatorId": saga("a").operator_id,
        "sensor": {
            "sensorId": sensor(), "metric": "air_temperature", "unit": "Cel", "min": -50, "max": 50,
        },
    });
    assert_eq!(own, &expected);
}

#[tokio::test]
async fn a_change_of_another_sites_sensor_is_refused() {
    let dynamo = Dynamo::start().await;
    let step = ProjectSensors { readings: dynamo.table(READINGS) };
    let mut event = changed("a", 2);
    event["detail"]["data"]["sensor"]["sensorId"] =
        json!(sensors(saga("b"), &WEATHER)[0].sensor_id);
    assert_eq!(run(&step, &event).await, Err(ErrorKind::InvalidInput));
    assert_eq!(dynamo.rows(READINGS).await, [Value::Null; 0]);
}
