//! Tests of projecting changed sensors into the register, and of reporting the readings that they revise.

use contracts::{Entity, EntityType, SensorId, Timestamp, readings::MAX_AHEAD_MILLIS};
use fault::ErrorKind;
use serde_json::{Value, json};
use store::{Outbox, Table};
use telemetry::{SensorRow, project_sensors::ProjectSensors};
use testkit::{
    Dynamo,
    cloud::Cloud,
    consuming::{self, LatestConsumer},
    dynamo::{EVENTS, READINGS},
    http::{Call, Stub},
    saga::run,
    sample::{self, WEATHER, noon, saga, sensors},
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

/// Returns a `SensorChanged` event that gives the first sensor this label.
fn changed(label: &str, sequence: u64) -> Value {
    changed_to(json!({ "label": label }), sequence)
}

/// Returns a `SensorChanged` event that gives the first sensor these metadata.
fn changed_to(metadata: Value, sequence: u64) -> Value {
    let mut sensor = json!(sensors(saga("a"), &WEATHER)[0]);
    let Value::Object(metadata) = metadata else { panic!("{metadata} is no object") };
    sensor.as_object_mut().expect("an object").extend(metadata);
    event("SensorChanged", sequence, json!({ "siteId": saga("a").site_id, "sensor": sensor }))
}

/// Returns a calibration from noon plus these seconds on.
fn gain(from: i64, gain: f64) -> Value {
    json!({ "validFrom": noon(from), "gain": gain, "offset": 0.0 })
}

fn step(dynamo: &Dynamo) -> ProjectSensors {
    ProjectSensors { readings: dynamo.table(READINGS), outbox: dynamo.outbox() }
}

/// The kind and the range of an event `ReadingsRevised`.
type Revised = (String, Timestamp, Timestamp);

/// Returns the sensor's events. Their sequences have no gap, and the row has counted them.
async fn revised(dynamo: &Dynamo) -> Vec<Revised> {
    let events = dynamo.events(Entity::readings(sensor())).await;
    let sequences = events.iter().map(|event| event.sequence);
    assert!(sequences.eq(1..=row(dynamo).await.changes), "{events:?}");
    let read = |event: &store::EventRow| {
        assert_eq!((event.kind.as_str(), event.occurred_at), ("ReadingsRevised", noon(0)));
        let data = event.envelope().expect("an envelope").data;
        let time = |name: &str| data[name].as_str().expect(name).parse().expect("a time");
        (data["kind"].as_str().expect("a kind").to_owned(), time("from"), time("to"))
    };
    events.iter().map(read).collect()
}

/// Returns an event of this kind from noon plus these seconds to the last reading that can be stored at noon.
fn open(kind: &str, from: i64) -> Revised {
    (kind.to_owned(), noon(from), noon(0).plus_millis(MAX_AHEAD_MILLIS + 1))
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
        let step = step(&dynamo);
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

/// project-sensors with changes of a sensor that is registered already. The first one changes the results of queries.
struct Changing;

impl LatestConsumer for Changing {
    type Function = ProjectSensors;

    fn start(&self, cloud: &Cloud) -> ProjectSensors {
        ProjectSensors { readings: cloud.table(READINGS), outbox: cloud.outbox() }
    }

    async fn prepare(&self, cloud: &Cloud) {
        run(&self.start(cloud), &provisioned()).await.expect("a reply");
    }

    fn histories(&self) -> Vec<Vec<Value>> {
        let calibrations = json!([gain(-3600, 2.0)]);
        let change = |(sequence, label)| {
            changed_to(json!({ "label": label, "calibrations": calibrations }), sequence)
        };
        vec![[(2, "second"), (3, "third"), (4, "fourth")].map(change).into()]
    }

    /// Returns the rows of all sensors and the keys of the log. The event of the log names the change that revised the
    /// readings, which is the first one that arrives.
    fn rows(&self, cloud: &Cloud) -> Vec<Value> {
        let mut rows = cloud.rows(READINGS);
        let key = |row: Value| json!([row["entity"], row["sequence"], row["type"]]);
        rows.extend(cloud.rows(EVENTS).into_iter().map(key));
        rows
    }
}

/// project-sensors with the registration of a sensor and its changes.
struct Registering;

impl LatestConsumer for Registering {
    type Function = ProjectSensors;

    fn start(&self, cloud: &Cloud) -> ProjectSensors {
        Changing.start(cloud)
    }

    async fn prepare(&self, _: &Cloud) {}

    fn histories(&self) -> Vec<Vec<Value>> {
        let mut provisioned = provisioned();
        let sensors = &mut provisioned["detail"]["data"]["sensors"];
        sensors.as_array_mut().expect("sensors").truncate(1);
        vec![vec![provisioned, changed("second", 2), changed("third", 3)]]
    }

    fn rows(&self, cloud: &Cloud) -> Vec<Value> {
        Changing.rows(cloud)
    }
}

#[test]
fn project_sensors_follows_the_contract_of_the_mode_latest() {
    consuming::check_latest(&Registering);
    consuming::check_latest(&Changing);
}

#[tokio::test]
async fn the_row_of_a_sensor_that_was_never_changed_is_as_before() {
    let dynamo = Dynamo::start().await;
    let step = step(&dynamo);
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
    let step = step(&dynamo);
    let mut event = changed("a", 2);
    event["detail"]["data"]["sensor"]["sensorId"] =
        json!(sensors(saga("b"), &WEATHER)[0].sensor_id);
    assert_eq!(run(&step, &event).await, Err(ErrorKind::InvalidInput));
    assert_eq!(dynamo.rows(READINGS).await, [Value::Null; 0]);
}

#[tokio::test]
async fn a_change_of_what_queries_use_is_counted_and_reported_once() {
    let dynamo = Dynamo::start().await;
    let step = step(&dynamo);
    run(&step, &provisioned()).await.expect("a reply");
    let hour = json!([gain(-3600, 2.0), gain(-1800, 1.0)]);
    let mut expected = Vec::new();
    for (sequence, metadata, reported) in [
        // These do not change what a query returns.
        (2, json!({ "label": "Mast", "heightM": 2.0, "externalIds": { "wmo": "72462" } }), vec![]),
        (3, json!({ "intervals": [{ "seconds": 60 }], "resolution": 0.1 }), vec![]),
        // An hour ago, for half an hour.
        (
            4,
            json!({ "calibrations": hour }),
            vec![("calibration".into(), noon(-3600), noon(-1800))],
        ),
        (5, json!({ "calibrations": hour, "label": "Mast" }), vec![]),
        // Two kinds at once.
        (
            6,
            json!({
                "calibrations": [gain(-3600, 2.0)],
                "noDataValues": [{ "validFrom": noon(-60), "values": [-9999.0] }],
            }),
            vec![open("calibration", -1800), open("flag", -60)],
        ),
        // From tomorrow on: no such reading is stored.
        (
            7,
            json!({
                "calibrations": [gain(-3600, 2.0), gain(86_400, 3.0)],
                "noDataValues": [{ "validFrom": noon(-60), "values": [-9999.0] }],
            }),
            vec![],
        ),
    ] {
        let event = changed_to(metadata.clone(), sequence);
        for _ in 0..2 {
            run(&step, &event).await.expect("a reply");
        }
        expected.extend(reported);
        assert_eq!(revised(&dynamo).await, expected, "{metadata}");
        assert_eq!(row(&dynamo).await.sensor_sequence, Some(sequence));
    }

    let [first, ..] = &dynamo.events(Entity::readings(sensor())).await[..] else {
        panic!("no event")
    };
    let detail: Value = serde_json::from_str(&first.detail).expect("JSON");
    let saga = saga("a");
    let own = json!({
        "siteId": saga.site_id, "sensorId": sensor(), "kind": "calibration",
        "from": noon(-3600), "to": noon(-1800),
    });
    assert_eq!(detail["data"], own);
    assert_eq!(detail["metadata"]["correlationId"], json!(saga.onboarding_id));
    assert_eq!(detail["metadata"]["operatorId"], json!(saga.operator_id));
    let cause = &changed("any", 4)["detail"]["metadata"]["eventId"];
    assert_eq!(&detail["metadata"]["causationId"], cause);
}

#[tokio::test]
async fn a_skipped_change_is_in_the_range_of_the_newer_one() {
    let calibrated = json!({ "calibrations": [gain(-3600, 2.0)] });
    let both = json!({
        "calibrations": [gain(-3600, 2.0)],
        "noDataValues": [{ "validFrom": noon(-60), "values": [-9999.0] }],
    });
    let (second, third) = (changed_to(calibrated, 2), changed_to(both, 3));
    for order in [[&second, &third], [&third, &second]] {
        let dynamo = Dynamo::start().await;
        let step = step(&dynamo);
        for event in [&provisioned()].into_iter().chain(order).chain(order) {
            run(&step, event).await.expect("a reply");
        }
        assert_eq!(revised(&dynamo).await, [open("calibration", -3600), open("flag", -60)]);
    }
    // What was never in the register was never read.
    let (second, third) =
        (changed_to(json!({ "calibrations": [gain(0, 2.0)] }), 2), changed("a", 3));
    let dynamo = Dynamo::start().await;
    for event in [&provisioned(), &third, &second] {
        run(&step(&dynamo), event).await.expect("a reply");
    }
    assert_eq!(revised(&dynamo).await, []);
}

#[tokio::test]
async fn the_first_definition_of_a_sensor_reports_nothing() {
    let change = changed_to(json!({ "calibrations": [gain(-3600, 2.0)] }), 2);
    for order in [vec![change.clone()], vec![deprovisioned(), change]] {
        let dynamo = Dynamo::start().await;
        let step = step(&dynamo);
        for event in order.into_iter().chain([provisioned()]) {
            run(&step, &event).await.expect("a reply");
        }
        assert_eq!(row(&dynamo).await.sensor_sequence, Some(2));
        assert_eq!(revised(&dynamo).await, []);
        assert_eq!(dynamo.rows(EVENTS).await, [Value::Null; 0]);
    }
}

#[tokio::test]
async fn a_row_that_others_change_again_and_again_is_busy() {
    let table = Stub::start(|call| {
        if call.operation() == "GetItem" {
            return (200, json!({}));
        }
        let error = "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException";
        (400, json!({ "__type": error, "message": "The conditional request failed" }))
    })
    .await;
    let client = aws_sdk_dynamodb::Client::new(&table.config());
    let step = ProjectSensors {
        readings: Table::new(client.clone(), READINGS),
        outbox: Outbox::new(Table::new(client, EVENTS)),
    };
    assert_eq!(run(&step, &changed("a", 2)).await, Err(ErrorKind::Transient));
    let calls = table.take_calls();
    let calls = calls.iter().map(Call::operation);
    assert_eq!(calls.collect::<Vec<_>>(), ["GetItem", "UpdateItem"].repeat(6));
}
