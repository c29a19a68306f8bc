//! Tests of storing bundles from the stream and of the sensor register.

use std::{collections::BTreeMap, io::Read, rc::Rc, time::Duration};

use aws_lambda_events::event::sqs::SqsMessage;
use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{
    EntityType, Metric, OperatorId, SagaContext, SensorId, SiteId, Timestamp,
    readings::{Bundle, Origin, Series},
    sample::Sample,
};
use fault::{ErrorKind, ReplayResponse};
use flate2::read::{GzDecoder, GzEncoder};
use lambda::Deadline;
use quarantine::Quarantine;
use serde_json::{Value, json, value::to_raw_value};
use series::{SeriesRow, packing::unpack};
use store::{Outbox, Table};
use telemetry::{
    SensorRow, hold::Hold, project_sensors::ProjectSensors, register::Register,
    series_store::SeriesStore, store_readings::StoreReadings,
};
use testkit::{
    cloud::{self, CallFault, Cloud},
    dynamo::{EVENTS, READINGS},
    http::Stub,
    mapping::{Record, Stream, event},
    measured::measured,
    rng::Rng,
    saga::{correlation, run},
    sample::{self, noon, other_operator, saga, saga_of, sensors},
};
use tokio::time::sleep;

const METRICS: [Metric; 8] = [
    Metric::AirTemperature,
    Metric::RelativeHumidity,
    Metric::AirPressure,
    Metric::WindSpeed,
    Metric::WindFromDirection,
    Metric::DownwellingShortwave,
    Metric::UpwellingShortwave,
    Metric::DirectShortwave,
];

const REGISTER_AGE: Duration = Duration::from_mins(1);

const HOLD: &str = "http://cloud/hold";
const QUARANTINE: &str = "http://cloud/quarantine";

/// The function, a stream, and a cloud in which site `a` has eight sensors.
struct World {
    cloud: Cloud,
    step: StoreReadings,
    stream: Stream,
}

impl World {
    async fn new() -> Self {
        let cloud = Cloud::new(Rng::from_seed(1));
        let readings = cloud.table(READINGS);
        let step = StoreReadings {
            register: Register::new(readings.clone(), REGISTER_AGE),
            series: SeriesStore { readings, outbox: cloud.outbox() },
            hold: Hold { queues: cloud.queues(), url: HOLD.to_owned(), max_seconds: 120 },
            quarantine: Quarantine {
                queues: cloud.queues(),
                url: QUARANTINE.to_owned(),
                source: "store-readings",
            },
            // The readings have fixed dates.
            max_age_days: 36_500,
        };
        let world = Self { cloud, step, stream: Stream::new(Rng::from_seed(1)) };
        world.project(&provisioned("a")).await;
        world
    }

    /// Delivers an event to project-sensors.
    async fn project(&self, event: &Value) {
        let step =
            ProjectSensors { readings: self.cloud.table(READINGS), outbox: self.cloud.outbox() };
        run(&step, event).await.expect("a projection");
    }

    fn put(&mut self, key: SiteId, data: Vec<u8>) -> Rc<Record> {
        self.stream.put(&key.to_string(), data, Duration::ZERO)
    }

    /// Puts a bundle that this operator sends through the API.
    fn put_from(&mut self, sender: OperatorId, bundle: &Bundle) -> Rc<Record> {
        let key = contracts::stream::partition_key(bundle.site_id, sender);
        self.stream.put(&key, plain(bundle), Duration::ZERO)
    }

    fn put_bundle(&mut self, bundle: &Bundle) -> Rc<Record> {
        self.put(bundle.site_id, plain(bundle))
    }

    /// Delivers a batch. Returns the sequence number from which Lambda must deliver again.
    async fn deliver(&self, records: &[Rc<Record>]) -> Option<String> {
        let payload = to_raw_value(&event(records)).expect("JSON");
        let deadline = Deadline::after(Duration::from_secs(30));
        let response = self.step.handle(&payload, deadline).await.expect("a response");
        let mut failures = response.batch_item_failures;
        assert!(failures.len() < 2, "{failures:?}");
        failures.pop().and_then(|failure| failure.item_identifier)
    }

    async fn deliver_bundle(&mut self, bundle: &Bundle) {
        let record = self.put_bundle(bundle);
        assert_eq!(self.deliver(&[record]).await, None);
    }

    /// Returns the rows of samples, ordered by sensor and time.
    fn rows(&self) -> Vec<(String, SeriesRow)> {
        let rows = self.cloud.rows(READINGS);
        let rows = rows.iter().filter(|row| row["row"]["S"] != "SENSOR");
        let id = |row: &Value| row["sensorId"]["S"].as_str().expect("an id").to_owned();
        let mut rows: Vec<_> = rows.map(|row| (id(row), cloud::read::<SeriesRow>(row))).collect();
        rows.sort_by_key(|(id, row)| (id.clone(), row.row.clone()));
        rows
    }

    /// Returns the calls and write units since `before`.
    fn cost(&self, before: &(BTreeMap<String, u32>, f64)) -> (BTreeMap<String, u32>, f64) {
        let mut calls = self.cloud.calls();
        for (operation, times) in &before.0 {
            if let Some(now) = calls.get_mut(operation) {
                *now -= times;
            }
        }
        calls.retain(|_, times| *times > 0);
        (calls, self.cloud.write_units() - before.1)
    }

    fn counted(&self) -> (BTreeMap<String, u32>, f64) {
        (self.cloud.calls(), self.cloud.write_units())
    }
}

fn site(name: &str) -> SiteId {
    saga(name).site_id
}

fn sensor(name: &str, index: usize) -> SensorId {
    SensorId::from_onboarding(saga(name).onboarding_id, index)
}

fn sensor_event(saga: SagaContext, kind: &str, occurred_at: Timestamp, data: Value) -> Value {
    let mut event = sample::event_of("project-sensors", saga, EntityType::Sensors, data);
    event["detail-type"] = kind.into();
    event["detail"]["metadata"]["type"] = kind.into();
    event["detail"]["metadata"]["occurredAt"] = json!(occurred_at);
    event
}

fn provisioned(name: &str) -> Value {
    provisioned_for(saga(name))
}

fn provisioned_for(saga: SagaContext) -> Value {
    let sensors = sensors(saga, &METRICS);
    let data = json!({ "siteId": saga.site_id, "sensors": sensors });
    sensor_event(saga, "SensorsProvisioned", noon(0), data)
}

/// Returns the event of sensors whose site declares this offset.
fn provisioned_with_offset(name: &str, offset: &str) -> Value {
    let mut event = provisioned(name);
    for sensor in event["detail"]["data"]["sensors"].as_array_mut().expect("sensors") {
        sensor["utcOffset"] = offset.into();
    }
    event
}

fn deprovisioned(name: &str) -> Value {
    let ids: Vec<_> = (0..METRICS.len()).map(|index| sensor(name, index)).collect();
    let data = json!({ "siteId": site(name), "sensorIds": ids });
    sensor_event(saga(name), "SensorsDeprovisioned", noon(60), data)
}

/// Returns `count` samples, one every `seconds` seconds.
fn samples(count: u32, seconds: i64) -> Vec<Sample> {
    let sample = |n: u32| Sample::new(noon(seconds * i64::from(n)), f64::from(n) / 8.0);
    (0..count).map(sample).collect()
}

fn bundle(id: &str, series: Vec<(SensorId, Vec<Sample>)>) -> Bundle {
    let series = series.into_iter().map(|(sensor, samples)| Series::new(sensor, samples));
    Bundle::new(id.parse().expect("an id"), site("a"), series.collect())
}

/// Returns a bundle with 15 minutes of samples of all eight sensors.
fn quarter_hour(id: &str) -> Bundle {
    bundle(id, (0..METRICS.len()).map(|n| (sensor("a", n), samples(15, 60))).collect())
}

fn plain(bundle: &Bundle) -> Vec<u8> {
    serde_json::to_vec(bundle).expect("JSON")
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut compressed = Vec::new();
    let mut encoder = GzEncoder::new(data, flate2::Compression::default());
    encoder.read_to_end(&mut compressed).expect("gzip");
    compressed
}

fn calls<const N: usize>(calls: [(&str, u32); N]) -> BTreeMap<String, u32> {
    calls.into_iter().map(|(operation, times)| (operation.to_owned(), times)).collect()
}

#[test]
fn a_warm_function_puts_once_per_series_and_reads_nothing() {
    cloud::run(async {
        let mut world = World::new().await;
        let before = world.counted();
        world.deliver_bundle(&quarter_hour("b-1")).await;
        let cold = (calls([("BatchGetItem", 1), ("PutItem", 8)]), 8.0);
        assert_eq!(world.cost(&before), cold);

        let before = world.counted();
        world.deliver_bundle(&quarter_hour("b-2")).await;
        assert_eq!(world.cost(&before), (calls([("PutItem", 8)]), 8.0));

        let rows = world.rows();
        assert_eq!(rows.len(), 16);
        for (_, row) in rows {
            assert!(row.row.starts_with("2026-01-01T12:00:00.000Z/b-"), "{row:?}");
            assert_eq!(row.end, noon(14 * 60).millis());
            assert_eq!(unpack(&row.samples), Ok(samples(15, 60)));
        }
        assert!(world.cloud.messages().is_empty());
    });
}

#[test]
fn a_repeated_bundle_changes_nothing_whether_plain_or_compressed() {
    cloud::run(async {
        let mut world = World::new().await;
        let first = world.put_bundle(&quarter_hour("b-1"));
        assert_eq!(world.deliver(&[Rc::clone(&first)]).await, None);
        let rows = world.cloud.rows(READINGS);

        let again = world.put_bundle(&quarter_hour("b-1"));
        let compressed = world.put(site("a"), gzip(&plain(&quarter_hour("b-1"))));
        let before = world.counted();
        assert_eq!(world.deliver(&[first, again, compressed]).await, None);
        assert_eq!(world.cost(&before), (calls([("PutItem", 24)]), 0.0));
        assert_eq!(world.cloud.rows(READINGS), rows);
        assert!(world.cloud.messages().is_empty());
    });
}

#[test]
fn a_conflicting_series_is_quarantined_and_the_other_series_are_stored() {
    cloud::run(async {
        let mut world = World::new().await;
        let (a, b) = (sensor("a", 0), sensor("a", 1));
        let good = bundle("b-1", vec![(a, samples(3, 60))]);
        let mut other = bundle("b-1", vec![(a, samples(3, 60)), (b, samples(2, 60))]);
        other.series[0].samples[2].value = Some(-0.5);
        world.deliver_bundle(&good).await;
        let record = world.put_bundle(&other);
        assert_eq!(world.deliver(&[Rc::clone(&record)]).await, None);

        let rows: Vec<_> = world.rows();
        let stored = |id: SensorId| {
            let row = rows.iter().find(|(sensor, _)| *sensor == id.to_string());
            unpack(&row.expect("a row").1.samples).expect("samples")
        };
        assert_eq!((stored(a), stored(b)), (samples(3, 60), samples(2, 60)));
        let kinesis = &record.event()["kinesis"];
        let message = json!({
            "source": "store-readings",
            "error": "BundleConflict",
            "reason": format!(
                "sensor {a} has a row 2026-01-01T12:00:00.000Z/b-1 with different samples; \
                 a changed bundle needs a greater revision, or a new bundleId"
            ),
            "sensorId": a,
            "sensorSiteId": site("a"),
            "record": {
                "kinesis": {
                    "partitionKey": site("a"),
                    "sequenceNumber": kinesis["sequenceNumber"],
                    "data": STANDARD.encode(plain(&other)),
                    "approximateArrivalTimestamp": kinesis["approximateArrivalTimestamp"],
                },
                "eventID": record.event()["eventID"],
                "eventSourceARN": record.event()["eventSourceARN"],
            },
        });
        assert_eq!(world.cloud.messages(), [message]);
    });
}

#[test]
fn a_key_in_a_bundle_id_is_not_in_the_reason_of_a_quarantined_record() {
    cloud::run(async {
        let mut world = World::new().await;
        let key = "fsl_0123456789abcdefghijklmnopqrstuvwxyz";
        let mut bundle = bundle(key, vec![(sensor("a", 0), samples(3, 60))]);
        world.deliver_bundle(&bundle).await;
        bundle.series[0].samples[2].value = Some(-0.5);
        world.deliver_bundle(&bundle).await;
        let messages = world.cloud.messages();
        assert_eq!(messages[0]["error"], "BundleConflict");
        let reason = messages[0]["reason"].as_str().expect("a reason");
        assert!(reason.contains("/fsl_01234567… with different samples"), "{reason}");
    });
}

#[test]
fn minus_zero_is_a_repeat_of_zero() {
    cloud::run(async {
        let mut world = World::new().await;
        let make_bundle =
            |value| bundle("b-1", vec![(sensor("a", 0), vec![Sample::new(noon(0), value)])]);
        world.deliver_bundle(&make_bundle(0.0)).await;
        world.deliver_bundle(&make_bundle(-0.0)).await;
        assert_eq!(world.cloud.messages(), [] as [serde_json::Value; 0]);
    });
}

#[test]
fn no_row_spans_a_day() {
    cloud::run(async {
        let mut world = World::new().await;
        // The last sample is exactly one day after the first.
        let all = samples(1_441, 60);
        world.deliver_bundle(&bundle("b-1", vec![(sensor("a", 0), all.clone())])).await;
        let rows = world.rows();
        let rows: Vec<_> = rows.iter().map(|(_, row)| unpack(&row.samples)).collect();
        assert_eq!(rows, [Ok(all[..1_440].to_vec()), Ok(all[1_440..].to_vec())]);
    });
}

#[test]
fn no_row_holds_more_than_ten_thousand_samples() {
    cloud::run(async {
        let mut world = World::new().await;
        let all = samples(20_001, 1);
        let data = gzip(&plain(&bundle("b-1", vec![(sensor("a", 0), all.clone())])));
        let record = world.put(site("a"), data);
        assert_eq!(world.deliver(&[record]).await, None);
        let rows: Vec<_> =
            world.rows().iter().map(|(_, row)| unpack(&row.samples).expect("samples")).collect();
        assert_eq!(rows.iter().map(Vec::len).collect::<Vec<_>>(), [10_000, 10_000, 1]);
        assert_eq!(rows.concat(), all);
    });
}

#[test]
fn a_series_whose_sensor_may_not_send_is_quarantined_and_the_other_series_are_stored() {
    cloud::run(async {
        let mut world = World::new().await;
        world.project(&provisioned("b")).await;
        world.project(&provisioned("c")).await;
        world.project(&deprovisioned("c")).await;
        for (number, (other, error)) in [
            (sensor("nobody", 0), "UnknownSensor"),
            (sensor("b", 0), "SensorOfAnotherSite"),
            (sensor("c", 0), "SensorOfAnotherSite"),
        ]
        .into_iter()
        .enumerate()
        {
            let series = vec![(other, samples(2, 60)), (sensor("a", 0), samples(2, 60))];
            world.deliver_bundle(&bundle(&format!("b-{number}"), series)).await;
            let messages = world.cloud.messages();
            assert_eq!((messages.len(), world.rows().len()), (number + 1, number + 1));
            let last = messages.last().expect("a message");
            assert_eq!(last["error"], error, "{last}");
            assert_eq!(last["sensorId"], json!(other), "{last}");
            let expected_site = match number {
                0 => Value::Null,
                1 => json!(site("b")),
                _ => json!(site("c")),
            };
            assert_eq!(last["sensorSiteId"], expected_site, "{last}");
            assert!(last["reason"].as_str().is_some_and(|it| it.contains(&other.to_string())));
        }
    });
}

#[test]
fn a_record_with_several_bad_series_is_quarantined_once_with_all_reasons() {
    cloud::run(async {
        let mut world = World::new().await;
        world.project(&provisioned("b")).await;
        let mut changed = samples(2, 60);
        changed[1].value = Some(-0.5);
        world.deliver_bundle(&bundle("b-1", vec![(sensor("a", 2), samples(2, 60))])).await;
        let bad = [sensor("nobody", 0), sensor("b", 0), sensor("a", 2)];
        let series = vec![
            (bad[0], samples(2, 60)),
            (sensor("a", 0), samples(2, 60)),
            (bad[1], samples(2, 60)),
            (bad[2], changed),
        ];
        let record = world.put_bundle(&bundle("b-1", series));
        assert_eq!(world.deliver(&[Rc::clone(&record)]).await, None);
        let [message] = &world.cloud.messages()[..] else { panic!("one message") };
        assert_eq!(message["error"], "UnknownSensor");
        let reason = message["reason"].as_str().expect("a reason");
        let reasons: Vec<_> = reason.split("; sensor ").collect();
        assert_eq!(reasons.len(), 3, "{reason}");
        for (reason, sensor) in reasons.iter().zip(bad) {
            assert!(reason.contains(&sensor.to_string()), "{reason}");
        }
        assert_eq!(world.rows().len(), 2);

        // A replay stores nothing twice and names the same reasons.
        let before = world.rows();
        let payload = to_raw_value(&event(&[record])["Records"][0]).expect("JSON");
        let outcome = world.step.replay(&payload).await;
        let ReplayResponse::Failed { error, message } = outcome else { panic!("{outcome:?}") };
        assert_eq!((error.as_str(), message.as_str()), ("UnknownSensor", reason));
        assert_eq!(world.rows(), before);
    });
}

#[test]
fn the_valid_series_of_a_record_are_stored_and_the_record_is_quarantined_once() {
    cloud::run(async {
        let mut world = World::new().await;
        let mut invalid = serde_json::to_value(quarter_hour("b-1")).expect("JSON");
        invalid["series"][2]["samples"][3][1] = "warm".into();
        invalid["series"][5]["sensorId"] = json!(sensor("nobody", 0));
        let record = world.put(site("a"), invalid.to_string().into_bytes());
        assert_eq!(world.deliver(&[Rc::clone(&record)]).await, None);
        assert_eq!(world.rows().len(), 6);
        let [message] = &world.cloud.messages()[..] else { panic!("one message") };
        assert_eq!(message["error"], "InvalidInput");
        let reason = message["reason"].as_str().expect("a reason");
        assert!(reason.starts_with("series[2].samples[3][1]: "), "{reason}");
        assert!(reason.contains(&sensor("nobody", 0).to_string()), "{reason}");
        let data = &message["record"]["kinesis"]["data"];
        assert_eq!(*data, STANDARD.encode(invalid.to_string()));

        // In a replay, the good series are repeats.
        let rows = world.rows();
        let payload = to_raw_value(&record.event()).expect("JSON");
        let outcome = world.step.replay(&payload).await;
        assert!(matches!(outcome, ReplayResponse::Failed { error, .. } if error == "InvalidInput"));
        assert_eq!(world.rows(), rows);
    });
}

#[test]
fn readings_that_were_too_old_on_arrival_are_stored_only_if_they_are_an_import() {
    cloud::run(async {
        let mut world = World::new().await;
        world.step.max_age_days = 400;
        // The records of the stream arrive at noon.
        let days_before = |days: i64| noon(-86_400 * days);
        let at = |id: &str, time| bundle(id, vec![(sensor("a", 0), vec![Sample::new(time, 1.5)])]);
        let not_set: Timestamp = "1970-01-01T00:00:03Z".parse().expect("a time");
        let of_2019: Timestamp = "2019-07-01T12:00:00Z".parse().expect("a time");
        for (number, time) in [not_set, of_2019, days_before(401)].into_iter().enumerate() {
            world.deliver_bundle(&at("b-1", time)).await;
            let messages = world.cloud.messages();
            assert_eq!(messages.len(), number + 1);
            let reason = messages[number]["reason"].as_str().expect("a reason");
            assert!(reason.contains("is more than 400 days ago; set the clock"), "{reason}");
        }
        assert_eq!(world.rows(), []);

        let mut import = at("b-2", of_2019);
        import.origin = Origin::Import;
        world.deliver_bundle(&import).await;
        // The age is that on arrival: the time in the hold queue and in the quarantine does not count.
        world.deliver_bundle(&at("b-3", days_before(400))).await;
        assert_eq!((world.rows().len(), world.cloud.messages().len()), (2, 3));
    });
}

#[test]
fn samples_before_the_retirement_are_stored_and_later_ones_refused() {
    cloud::run(async {
        let mut world = World::new().await;
        // The sensors of site `a` are retired at noon and one minute.
        world.project(&deprovisioned("a")).await;
        let straddling = bundle("b-1", vec![(sensor("a", 0), samples(3, 30))]);
        world.deliver_bundle(&straddling).await;
        let earlier = bundle("b-2", vec![(sensor("a", 1), samples(2, 30))]);
        world.deliver_bundle(&earlier).await;
        let rows = world.rows();
        let stored: Vec<_> = rows.iter().map(|(_, row)| unpack(&row.samples)).collect();
        assert_eq!(stored, [Ok(samples(2, 30)), Ok(samples(2, 30))]);
        let [message] = &world.cloud.messages()[..] else { panic!("one message") };
        assert_eq!(message["error"], "RetiredSensor");
        assert_eq!(message["sensorId"], json!(sensor("a", 0)));

        // The sensor is cached: later bundles read nothing.
        let before = world.counted();
        let later = vec![Sample::new(noon(60), 1.0)];
        world.deliver_bundle(&bundle("b-3", vec![(sensor("a", 0), later)])).await;
        assert_eq!(world.cost(&before), (calls([("SendMessage", 1)]), 0.0));
    });
}

/// Returns a record that arrived this time ago.
fn arrived(record: &Record, ago: Duration) -> Value {
    let mut event = record.event();
    #[expect(clippy::cast_precision_loss, reason = "exact")]
    let now = Timestamp::now().millis() as f64 / 1000.0;
    event["kinesis"]["approximateArrivalTimestamp"] = json!(now - ago.as_secs_f64());
    event
}

/// Delivers records to store-readings.
async fn deliver_events(world: &World, records: &[Value]) {
    let payload = to_raw_value(&json!({ "Records": records })).expect("JSON");
    let deadline = Deadline::after(Duration::from_secs(30));
    let response = world.step.handle(&payload, deadline).await.expect("a response");
    assert_eq!(response.batch_item_failures, []);
}

/// Delivers a message of the hold queue to store-held-readings.
async fn deliver_held(world: &World, body: &Value) -> Result<(), String> {
    let mut message = SqsMessage::default();
    message.body = Some(body.to_string());
    world.step.handle_held(&message).await
}

#[test]
fn readings_that_come_before_the_registers_update_are_stored_after_it() {
    cloud::run(async {
        let mut world = World::new().await;
        let early = |number: usize| Bundle {
            site_id: site("b"),
            ..bundle(&format!("b-{number}"), vec![(sensor("b", number), samples(2, 60))])
        };
        let records: Vec<_> = (0..3)
            .map(|number| arrived(&world.put_bundle(&early(number)), Duration::from_secs(1)))
            .collect();
        let metrics = measured(deliver_events(&world, &records)).await.1;
        assert_eq!(metrics.get("RecordsHeld"), Some(&3.0));
        let held = world.cloud.messages_of(HOLD);
        assert_eq!((held.len(), world.cloud.messages_of(QUARANTINE).len()), (3, 0));
        for (message, sent) in held.iter().zip(&records) {
            for field in ["sequenceNumber", "approximateArrivalTimestamp", "partitionKey", "data"] {
                assert_eq!(message["record"]["kinesis"][field], sent["kinesis"][field]);
            }
        }

        // Still unknown: held again.
        assert_eq!(deliver_held(&world, &held[0]).await, Ok(()));
        assert_eq!(world.cloud.messages_of(HOLD).len(), 4);
        assert_eq!(world.rows(), []);

        world.project(&provisioned("b")).await;
        // The function may crash after it stored a record, so each message is delivered twice.
        for message in held.iter().chain(&held) {
            assert_eq!(deliver_held(&world, message).await, Ok(()));
        }
        assert_eq!(world.rows().len(), 3);
        assert_eq!(world.cloud.messages_of(HOLD).len(), 4);
        assert_eq!(world.cloud.messages_of(QUARANTINE), [Value::Null; 0]);
    });
}

#[test]
fn a_record_is_quarantined_with_its_payload_two_minutes_after_its_arrival() {
    cloud::run(async {
        let mut world = World::new().await;
        let early = bundle("b-1", vec![(sensor("a", 99), samples(2, 60))]);
        let record = world.put_bundle(&early);
        deliver_events(&world, &[arrived(&record, Duration::from_secs(119))]).await;
        let [held] = &world.cloud.messages_of(HOLD)[..] else { panic!("one message") };
        assert_eq!(world.cloud.messages_of(QUARANTINE), [Value::Null; 0]);

        let mut late = held.clone();
        late["record"] = arrived(&record, Duration::from_secs(121));
        assert_eq!(deliver_held(&world, &late).await, Ok(()));
        let [quarantined] = &world.cloud.messages_of(QUARANTINE)[..] else { panic!("one message") };
        assert_eq!(quarantined["error"], "UnknownSensor");
        assert_eq!(quarantined["source"], "store-readings");
        let data = &quarantined["record"]["kinesis"]["data"];
        assert_eq!(*data, STANDARD.encode(plain(&early)));
        assert_eq!(world.cloud.messages_of(HOLD).len(), 1);
    });
}

#[test]
fn only_a_sensor_that_the_site_can_have_is_waited_for() {
    cloud::run(async {
        let mut world = World::new().await;
        world.project(&provisioned("b")).await;
        for other in [sensor("nobody", 0), sensor("b", 0), sensor("a", 100)] {
            let record = world.put_bundle(&bundle("b-1", vec![(other, samples(2, 60))]));
            deliver_events(&world, &[arrived(&record, Duration::from_secs(1))]).await;
        }
        assert_eq!(world.cloud.messages_of(HOLD), [Value::Null; 0]);
        assert_eq!(world.cloud.messages_of(QUARANTINE).len(), 3);
    });
}

#[test]
fn the_good_series_of_a_record_on_hold_are_stored_at_once() {
    cloud::run(async {
        let mut world = World::new().await;
        let series = vec![(sensor("a", 99), samples(2, 60)), (sensor("a", 0), samples(2, 60))];
        let record = world.put_bundle(&bundle("b-1", series));
        deliver_events(&world, &[arrived(&record, Duration::from_secs(1))]).await;
        assert_eq!((world.rows().len(), world.cloud.messages_of(HOLD).len()), (1, 1));
        assert_eq!(world.cloud.messages_of(QUARANTINE), [Value::Null; 0]);
    });
}

#[test]
fn a_record_too_large_for_a_message_is_held_compressed_and_quarantined_if_that_is_not_enough() {
    cloud::run(async {
        let mut world = World::new().await;
        let early = bundle("b-1", vec![(sensor("a", 99), samples(30_000, 1))]);
        let record = world.put_bundle(&early);
        deliver_events(&world, &[arrived(&record, Duration::from_secs(1))]).await;
        let [held] = &world.cloud.messages_of(HOLD)[..] else { panic!("one message") };
        assert!(held.to_string().len() < 1_000_000);

        // The sensor is registered in the meantime.
        let row = cloud::read::<SensorRow>(&world.cloud.rows(READINGS)[0]);
        let mut row = json!(row);
        row["sensorId"] = json!(sensor("a", 99));
        row["row"] = json!("SENSOR");
        world.cloud.put(READINGS, row);
        assert_eq!(deliver_held(&world, held).await, Ok(()));
        let stored = world
            .rows()
            .iter()
            .map(|(_, row)| unpack(&row.samples).expect("samples").len())
            .sum::<usize>();
        assert_eq!(stored, 30_000);

        // The sender has compressed the data with level 0.
        let mut data = Vec::new();
        let json = plain(&bundle("b-2", vec![(sensor("a", 98), samples(24_000, 1))]));
        let mut encoder = GzEncoder::new(&json[..], flate2::Compression::none());
        encoder.read_to_end(&mut data).expect("gzip");
        let record = world.put(site("a"), data);
        deliver_events(&world, &[arrived(&record, Duration::from_secs(1))]).await;
        assert_eq!(world.cloud.messages_of(HOLD).len(), 1);
        assert_eq!(world.cloud.messages_of(QUARANTINE)[0]["error"], "UnknownSensor");
    });
}

#[test]
fn a_record_is_delivered_again_if_the_hold_queue_or_the_table_is_unreachable() {
    cloud::run(async {
        let mut world = World::new().await;
        let early = bundle("b-1", vec![(sensor("a", 99), samples(2, 60))]);
        let record = arrived(&world.put_bundle(&early), Duration::from_secs(1));
        let payload = to_raw_value(&json!({ "Records": [record] })).expect("JSON");
        let time = Duration::from_secs(20);
        for operation in ["SendMessage", "BatchGetItem"] {
            world.cloud.interrupt(operation, CallFault::ServerError, time);
            let deadline = Deadline::after(Duration::from_secs(30));
            let response = world.step.handle(&payload, deadline).await.expect("a response");
            assert_eq!(response.batch_item_failures.len(), 1, "{operation}");
            sleep(time).await;
        }
        assert_eq!(world.cloud.messages(), [Value::Null; 0]);

        deliver_events(&world, &[record]).await;
        let held = world.cloud.messages_of(HOLD).remove(0);
        world.cloud.interrupt("BatchGetItem", CallFault::ServerError, time);
        assert!(deliver_held(&world, &held).await.is_err(), "the message stays in the queue");
        assert!(deliver_held(&world, &json!("another message")).await.is_err());
    });
}

/// Returns the last quarantined bundle: its error, its reason without the sensor's id, and the sensor's site.
fn quarantined(world: &World) -> (Value, String, Value) {
    let messages = world.cloud.messages();
    let last = messages.last().expect("a message");
    let reason = last["reason"].as_str().expect("a reason");
    let sensor = last["sensorId"].as_str().expect("a sensor");
    (last["error"].clone(), reason.replace(sensor, "<id>"), last["sensorSiteId"].clone())
}

#[test]
fn a_sensor_of_another_operator_is_refused_like_an_unknown_sensor() {
    cloud::run(async {
        let mut world = World::new().await;
        world.project(&provisioned("b")).await;
        world.project(&deprovisioned("b")).await;
        let own = saga_of(other_operator(), "own");
        world.project(&provisioned_for(own)).await;
        let from = |site_id, sensor_id| Bundle {
            site_id,
            ..bundle("b-1", vec![(sensor_id, samples(2, 60))])
        };
        let own_sensor = SensorId::from_onboarding(own.onboarding_id, 0);
        let unknown = world.put_from(other_operator(), &from(own.site_id, sensor("nobody", 0)));
        assert_eq!(world.deliver(&[unknown]).await, None);
        let expected = quarantined(&world);
        assert_eq!((&expected.0, &expected.2), (&json!("UnknownSensor"), &Value::Null));
        // The cache of the function has the sensor of site `a`, because its own operator has sent for it.
        world.deliver_bundle(&from(site("a"), sensor("a", 0))).await;
        let sent = world.put_from(OperatorId::DEFAULT, &from(site("a"), sensor("a", 0)));
        assert_eq!(world.deliver(&[sent]).await, None);
        let rows = world.rows();
        assert_eq!(rows.len(), 1);
        for (site_id, sensor_id) in [
            // The site and the sensor of the default operator.
            (site("a"), sensor("a", 0)),
            // The operator's own site with a sensor of the default operator.
            (own.site_id, sensor("a", 0)),
            (own.site_id, sensor("a", 1)),
            // The default operator's retired sensor, whose error would contain the site and the time.
            (own.site_id, sensor("b", 0)),
            (site("b"), sensor("b", 0)),
        ] {
            let before = world.cloud.messages().len();
            let record = world.put_from(other_operator(), &from(site_id, sensor_id));
            assert_eq!(world.deliver(&[record]).await, None);
            assert_eq!(world.cloud.messages().len(), before + 1, "{site_id} {sensor_id}");
            assert_eq!(quarantined(&world), expected, "{site_id} {sensor_id}");
        }
        assert_eq!(world.rows(), rows);

        // The refused bundles have not removed the sensor from the cache of its own operator.
        let before = world.counted();
        let again = world.put_from(OperatorId::DEFAULT, &from(site("a"), sensor("a", 0)));
        assert_eq!(world.deliver(&[again]).await, None);
        assert_eq!(world.cost(&before), (calls([("PutItem", 1)]), 0.0));

        let record = world.put_from(other_operator(), &from(own.site_id, own_sensor));
        assert_eq!(world.deliver(&[record]).await, None);
        assert_eq!(world.rows().len(), 2);
    });
}

#[test]
fn a_register_row_without_an_operator_belongs_to_the_default_operator() {
    cloud::run(async {
        let mut world = World::new().await;
        let mut event = provisioned("old");
        event["detail"]["metadata"].as_object_mut().expect("an object").remove("operatorId");
        world.project(&event).await;
        let mut rows = world.cloud.rows(READINGS);
        rows.retain(|row| row["siteId"]["S"] == json!(site("old")));
        assert_eq!(rows.len(), METRICS.len());
        for row in rows {
            assert_eq!(row["operatorId"]["S"], json!(OperatorId::DEFAULT));
        }
        // A row that an earlier release has written.
        let old = sensor("older", 0);
        let described = sensors(saga("older"), &METRICS).remove(0);
        let row = json!({
            "sensorId": old, "row": "SENSOR", "siteId": site("older"), "sensor": described,
        });
        world.cloud.put(READINGS, row);
        let sent = Bundle { site_id: site("older"), ..bundle("b-1", vec![(old, samples(2, 60))]) };
        let record = world.put_from(OperatorId::DEFAULT, &sent);
        assert_eq!(world.deliver(&[record]).await, None);
        assert_eq!((world.rows().len(), world.cloud.messages().len()), (1, 0));
        let record = world.put_from(other_operator(), &sent);
        assert_eq!(world.deliver(&[record]).await, None);
        assert_eq!((world.rows().len(), world.cloud.messages().len()), (1, 1));
    });
}

#[test]
fn a_replay_returns_its_outcome_and_quarantines_nothing() {
    cloud::run(async {
        let mut world = World::new().await;
        world.project(&provisioned("b")).await;
        world.project(&deprovisioned("b")).await;
        let mut replay = async |site: SiteId, data: Vec<u8>| {
            let record = world.put(site, data);
            let record = event(&[record])["Records"][0].take();
            let payload = to_raw_value(&record).expect("JSON");
            (world.step.replay(&payload).await, world.cloud.messages().len())
        };
        let make_bundle = |sensor| bundle("b-1", vec![(sensor, samples(2, 60))]);
        for (sensor, name) in
            [(sensor("nobody", 0), "UnknownSensor"), (sensor("b", 0), "SensorOfAnotherSite")]
        {
            let (outcome, messages) = replay(site("a"), plain(&make_bundle(sensor))).await;
            let ReplayResponse::Failed { error, message } = outcome else { panic!("{outcome:?}") };
            assert_eq!((error.as_str(), messages), (name, 0));
            assert!(message.contains(&sensor.to_string()), "{message}");
        }
        let (outcome, messages) = replay(site("a"), b"not a bundle".to_vec()).await;
        assert!(matches!(outcome, ReplayResponse::Failed { error, .. } if error == "InvalidInput"));
        assert_eq!(messages, 0);
        for _ in 0..2 {
            let (outcome, messages) = replay(site("a"), plain(&make_bundle(sensor("a", 0)))).await;
            assert_eq!((outcome, messages), (ReplayResponse::Done, 0));
        }
        assert_eq!(world.rows().len(), 1);
    });
}

#[test]
fn a_poison_record_too_large_for_a_message_is_quarantined_compressed() {
    cloud::run(async {
        let mut world = World::new().await;
        let unknown = bundle("b-1", vec![(sensor("nobody", 0), samples(30_000, 1))]);
        let data = plain(&unknown);
        assert!(data.len() > 1_000_000, "{} bytes", data.len());
        let record = world.put(site("a"), data.clone());
        assert_eq!(world.deliver(&[Rc::clone(&record)]).await, None);

        let [message] = &world.cloud.messages()[..] else { panic!("one message") };
        assert_eq!(message["error"], "UnknownSensor");
        assert_eq!(message["record"]["part"], Value::Null);
        let kinesis = &message["record"]["kinesis"];
        assert_eq!(kinesis["sequenceNumber"], json!(record.sequence_number));
        let compressed = STANDARD.decode(kinesis["data"].as_str().expect("data")).expect("base64");
        let mut decompressed = Vec::new();
        GzDecoder::new(&compressed[..]).read_to_end(&mut decompressed).expect("gzip");
        assert!(decompressed == data, "the data differs");
    });
}

/// Returns random bytes, which can't be compressed.
fn random_bytes(bytes: usize) -> Vec<u8> {
    let mut rng = Rng::from_seed(1);
    (0..bytes / 8).flat_map(|_| rng.number().to_le_bytes()).collect()
}

/// Joins the data of a record from the messages of its parts.
fn joined_data(messages: &[Value]) -> Vec<u8> {
    let data = |message: &Value| message["record"]["kinesis"]["data"].as_str().map(str::to_owned);
    let text: String = messages.iter().map(|message| data(message).expect("data")).collect();
    STANDARD.decode(text).expect("base64")
}

#[test]
fn a_compressed_poison_record_is_quarantined_unchanged() {
    cloud::run(async {
        let mut world = World::new().await;
        let data = gzip(&random_bytes(900_000));
        let record = world.put(site("a"), data.clone());
        assert_eq!(world.deliver(&[record]).await, None);
        assert!(joined_data(&world.cloud.messages()) == data, "the data differs");
    });
}

#[test]
fn a_poison_record_too_large_even_if_compressed_is_quarantined_in_parts() {
    cloud::run(async {
        let mut world = World::new().await;
        // The maximum size of a record.
        let data = random_bytes(1024 * 1024);
        let record = world.put(site("a"), data.clone());
        assert_eq!(world.deliver(&[Rc::clone(&record)]).await, None);

        let messages = world.cloud.messages();
        let parts: Vec<_> = messages.iter().map(|message| &message["record"]["part"]).collect();
        assert_eq!(parts, ["1/2", "2/2"]);
        let compressed = joined_data(&messages);
        let mut decompressed = Vec::new();
        GzDecoder::new(&compressed[..]).read_to_end(&mut decompressed).expect("gzip");
        assert!(decompressed == data, "the data differs");
        assert!(messages.iter().all(|message| message.to_string().len() < 1024 * 1024));
    });
}

#[test]
fn a_long_invalid_value_has_a_short_reason() {
    cloud::run(async {
        let mut world = World::new().await;
        let series = "[".repeat(400_000);
        let invalid = json!({ "bundleId": "b-1", "siteId": site("a"), "series": series });
        let record = world.put(site("a"), invalid.to_string().into_bytes());
        assert_eq!(world.deliver(&[record]).await, None);
        let [message] = &world.cloud.messages()[..] else { panic!("one message") };
        let reason = message["reason"].as_str().expect("a reason");
        assert!(reason.starts_with("series: is a string; give an array"), "{reason}");
        assert!(reason.len() < 2_500, "{} bytes", reason.len());
    });
}

#[test]
fn a_throttled_site_stops_at_its_first_failed_record_and_other_sites_continue() {
    cloud::run(async {
        let mut world = World::new().await;
        world.project(&provisioned("b")).await;
        let make_bundle = |name: &str, id: &str| Bundle {
            site_id: site(name),
            ..bundle(id, vec![(sensor(name, 0), samples(1, 60))])
        };
        let all = [
            make_bundle("b", "b-1"),
            make_bundle("a", "b-1"),
            make_bundle("b", "b-2"),
            make_bundle("a", "b-2"),
            make_bundle("b", "b-3"),
        ];
        let records: Vec<_> = all.iter().map(|bundle| world.put_bundle(bundle)).collect();
        world.cloud.throttle(vec![sensor("a", 0).to_string()], Duration::from_mins(1));
        let before = world.counted();
        let failed = world.deliver(&records).await;
        assert_eq!(failed.as_deref(), Some(records[1].sequence_number.as_str()));
        // For the throttled site there was only one read of the register.
        assert_eq!(world.cost(&before).0, calls([("BatchGetItem", 2), ("PutItem", 3)]));
        assert_eq!(world.rows().len(), 3);

        sleep(Duration::from_mins(1)).await;
        assert_eq!(world.deliver(&records[1..]).await, None);
        assert_eq!(world.rows().len(), 5);
        assert!(world.cloud.messages().is_empty());
    });
}

#[test]
fn a_provisioned_sensor_is_known_at_once_and_a_retired_one_is_refused_when_its_cache_entry_expires()
{
    cloud::run(async {
        let mut world = World::new().await;
        // The sample is later than the retirement.
        let make_bundle = |id: &str| Bundle {
            site_id: site("b"),
            ..bundle(id, vec![(sensor("b", 0), vec![Sample::new(noon(60), 1.0)])])
        };
        world.deliver_bundle(&make_bundle("b-1")).await;
        assert_eq!(world.cloud.messages()[0]["error"], "UnknownSensor");

        world.project(&provisioned("b")).await;
        world.deliver_bundle(&make_bundle("b-2")).await;
        assert_eq!(world.rows().len(), 1);

        world.project(&deprovisioned("b")).await;
        world.deliver_bundle(&make_bundle("b-3")).await;
        assert_eq!(world.rows().len(), 2, "the cached sensor is still valid");
        sleep(REGISTER_AGE).await;
        world.deliver_bundle(&make_bundle("b-4")).await;
        assert_eq!(world.rows().len(), 2);
        assert_eq!(world.cloud.messages()[1]["error"], "RetiredSensor");
    });
}

#[test]
fn the_register_does_not_depend_on_the_order_and_repetition_of_events() {
    let (provisioned_event, deprovisioned_event) = (provisioned("a"), deprovisioned("a"));
    let onboarding = Some(saga("a").onboarding_id.to_string());
    assert_eq!(correlation::<ProjectSensors>(&provisioned_event), onboarding);
    let orders = [
        vec![&provisioned_event, &deprovisioned_event],
        vec![&deprovisioned_event, &provisioned_event],
        vec![
            &deprovisioned_event,
            &provisioned_event,
            &deprovisioned_event,
            &provisioned_event,
            &provisioned_event,
        ],
    ];
    for order in orders {
        cloud::run(async {
            let cloud = Cloud::new(Rng::from_seed(1));
            let step = ProjectSensors { readings: cloud.table(READINGS), outbox: cloud.outbox() };
            for event in order {
                let reply = run(&step, event).await;
                assert_eq!(reply, Ok(json!({ "sensors": 8 })));
            }
            let described = sensors(saga("a"), &METRICS);
            let rows = cloud.rows(READINGS);
            assert_eq!(rows.len(), 8);
            for row in &rows {
                let sensor: SensorRow = cloud::read(row);
                let same = |it: &&contracts::Sensor| json!(it.sensor_id) == row["sensorId"]["S"];
                let described = described.iter().find(same).expect("a sensor of the site");
                assert_eq!(row["row"]["S"], "SENSOR");
                assert_eq!(sensor.site_id, site("a"));
                assert_eq!(sensor.sensor.as_ref(), Some(described));
                assert_eq!(sensor.retired_at, Some(noon(60)));
            }
        });
    }
}

#[test]
fn a_transient_error_beside_a_conflict_is_retried_and_the_conflict_is_found_then() {
    // The bundle has eight series, and at most four puts run at the same time. So the put of the first series ends
    // before that of the last one begins.
    for (conflict, throttled) in [(0, 7), (7, 0)] {
        cloud::run(async {
            let mut world = World::new().await;
            // Now the register is cached, and a row of one sensor has different samples.
            world.deliver_bundle(&quarter_hour("b-0")).await;
            let other = vec![(sensor("a", conflict), samples(3, 30))];
            world.deliver_bundle(&bundle("b-1", other)).await;

            let record = world.put_bundle(&quarter_hour("b-1"));
            let time = Duration::from_secs(20);
            world.cloud.throttle(vec![sensor("a", throttled).to_string()], time);
            assert!(
                world.deliver(&[Rc::clone(&record)]).await.is_some(),
                "Lambda must deliver it again"
            );
            assert_eq!(world.cloud.messages(), [Value::Null; 0]);
            sleep(time).await;
            assert_eq!(world.deliver(&[record]).await, None);
            assert_eq!(world.cloud.messages()[0]["error"], "BundleConflict");
        });
    }
}

#[test]
fn readings_are_counted_once_and_repeated_readings_separately() {
    cloud::run(async {
        let mut world = World::new().await;
        for expected in [(120.0, 0.0), (0.0, 120.0)] {
            let metrics = measured(world.deliver_bundle(&quarter_hour("b-1"))).await.1;
            assert_eq!((metrics["ReadingsStored"], metrics["ReadingsRepeated"]), expected);
        }
    });
}

#[tokio::test]
async fn an_unreachable_register_is_a_transient_error() {
    let table = Stub::start(|_| (500, json!({}))).await;
    let client = aws_sdk_dynamodb::Client::new(&table.config());
    let step = ProjectSensors {
        readings: Table::new(client.clone(), READINGS),
        outbox: Outbox::new(Table::new(client, EVENTS)),
    };
    assert_eq!(run(&step, &provisioned("a")).await, Err(ErrorKind::Transient));
}

#[test]
fn a_retirement_without_a_provisioning_refuses_the_sensor() {
    cloud::run(async {
        let mut world = World::new().await;
        world.project(&deprovisioned("b")).await;
        let later = vec![Sample::new(noon(60), 1.0)];
        let bundle = Bundle { site_id: site("b"), ..bundle("b-1", vec![(sensor("b", 0), later)]) };
        world.deliver_bundle(&bundle).await;
        assert_eq!(world.cloud.messages()[0]["error"], "RetiredSensor");
    });
}

/// Returns the bundle without the offsets of its times, as JSON. The times are those of a clock with this offset in hours.
fn local(bundle: &Bundle, hours: i64) -> Vec<u8> {
    let mut bundle = bundle.clone();
    for series in &mut bundle.series {
        series.is_local = true;
        for sample in &mut series.samples {
            sample.at = sample.at.plus_millis(hours * 3_600_000);
        }
        if let Some(range) = &mut series.replaces {
            range.from = range.from.plus_millis(hours * 3_600_000);
            range.to = range.to.plus_millis(hours * 3_600_000);
        }
    }
    let json = plain(&bundle);
    assert!(!json.windows(2).any(|pair| pair == b"Z\""));
    json
}

#[test]
fn times_without_an_offset_are_stored_in_utc_and_compared_in_utc() {
    cloud::run(async {
        let mut world = World::new().await;
        world.project(&provisioned_with_offset("b", "-07:00")).await;
        let of_b = |id: &str, count| Bundle {
            site_id: site("b"),
            ..bundle(id, vec![(sensor("b", 0), samples(count, 60))])
        };
        let sent = of_b("b-1", 3);
        let record = world.put(site("b"), local(&sent, -7));
        let before = world.counted();
        assert_eq!(world.deliver(&[Rc::clone(&record)]).await, None);
        assert_eq!(world.cost(&before), (calls([("BatchGetItem", 1), ("PutItem", 1)]), 1.0));
        let stored = |world: &World| {
            let rows = world.rows();
            let rows = rows.iter().map(|(_, row)| (row.row.clone(), unpack(&row.samples)));
            rows.collect::<Vec<_>>()
        };
        let row = "2026-01-01T12:00:00.000Z/b-1".to_owned();
        assert_eq!(stored(&world), [(row, Ok(samples(3, 60)))]);

        // The same instants are a repeat, whatever their offset; a replay is one, too.
        world.deliver_bundle(&sent).await;
        let payload = to_raw_value(&record.event()).expect("JSON");
        assert_eq!(world.step.replay(&payload).await, ReplayResponse::Done);
        assert_eq!(stored(&world).len(), 1);
        // A bundle grows, with and without offsets.
        let grown = world.put(site("b"), local(&of_b("b-1", 4), -7));
        assert_eq!(world.deliver(&[grown]).await, None);
        world.deliver_bundle(&of_b("b-1", 5)).await;
        let all: Vec<_> =
            stored(&world).into_iter().flat_map(|(_, row)| row.expect("samples")).collect();
        assert_eq!(all, samples(5, 60));

        // A revision replaces a range that is given in the site's time, too.
        let mut revision = of_b("b-1", 1);
        (revision.revision, revision.reason) = (2, Some("the clock was fast".to_owned()));
        let range = contracts::readings::TimeRange { from: noon(0), to: noon(90) };
        revision.series[0].replaces = Some(range);
        let revised = world.put(site("b"), local(&revision, -7));
        assert_eq!(world.deliver(&[revised]).await, None);
        world.deliver_bundle(&revision).await;
        assert_eq!(world.cloud.messages(), [Value::Null; 0]);
        let rows = world.cloud.rows(READINGS);
        let rows = rows.iter().map(|row| row["row"]["S"].as_str().unwrap_or_default());
        assert_eq!(
            rows.filter(|row| row.ends_with("/b-1/2")).count(),
            2,
            "the samples and the range"
        );
    });
}

#[test]
fn a_series_without_offsets_is_quarantined_if_its_site_declares_none_and_the_others_are_stored() {
    cloud::run(async {
        let mut world = World::new().await;
        let mut both =
            bundle("b-1", vec![(sensor("a", 0), samples(2, 60)), (sensor("a", 1), samples(2, 60))]);
        both.series[0].is_local = true;
        let record = world.put_bundle(&both);
        assert_eq!(world.deliver(&[Rc::clone(&record)]).await, None);
        assert_eq!(world.rows().len(), 1);
        let [message] = &world.cloud.messages()[..] else { panic!("one message") };
        let reason = format!(
            "sensor {}: samples[0][0]: is \"2026-01-01T12:00:00\", which has no UTC offset; add Z for UTC, or an offset such \
             as +01:00, or declare utcOffset when you register the site",
            sensor("a", 0)
        );
        assert_eq!(
            (&message["error"], &message["reason"]),
            (&json!("InvalidInput"), &json!(reason))
        );
        assert_eq!(
            (&message["sensorId"], &message["sensorSiteId"]),
            (&json!(sensor("a", 0)), &json!(site("a")))
        );
        let payload = to_raw_value(&record.event()).expect("JSON");
        let outcome = world.step.replay(&payload).await;
        assert!(matches!(outcome, ReplayResponse::Failed { error, .. } if error == "InvalidInput"));
        assert_eq!(world.rows().len(), 1);
    });
}

#[test]
fn the_limits_of_times_without_an_offset_are_checked_in_utc() {
    cloud::run(async {
        let mut world = World::new().await;
        world.step.max_age_days = 400;
        world.project(&provisioned_with_offset("b", "+14:00")).await;
        let of_b = |at: Timestamp| Bundle {
            site_id: site("b"),
            ..bundle("b-1", vec![(sensor("b", 0), vec![Sample::new(at, 1.5)])])
        };
        // The record arrives at noon. In the site's time, the sample is less than 400 days old.
        let old = noon(-86_400 * 400 - 3_600);
        let record = world.put(site("b"), local(&of_b(old), 14));
        assert_eq!(world.deliver(&[record]).await, None);
        let ahead = Timestamp::now().plus_millis(20 * 60_000);
        let record = world.put(site("b"), local(&of_b(ahead), 14));
        assert_eq!(world.deliver(&[record]).await, None);
        let reasons: Vec<_> =
            world.cloud.messages().iter().map(|it| it["reason"].to_string()).collect();
        assert!(reasons[0].contains(&format!("{old} is more than 400 days ago")), "{reasons:?}");
        assert!(reasons[1].contains(&format!("{ahead} is more than 15 minutes")), "{reasons:?}");
        assert_eq!(world.rows(), []);

        // The sensors of the site are retired at noon and one minute in UTC.
        world.project(&deprovisioned("b")).await;
        sleep(REGISTER_AGE).await;
        let straddling =
            Bundle { series: vec![Series::new(sensor("b", 0), samples(3, 30))], ..of_b(noon(0)) };
        let record = world.put(site("b"), local(&straddling, 14));
        assert_eq!(world.deliver(&[record]).await, None);
        let rows = world.rows();
        let rows: Vec<_> = rows.iter().map(|(_, row)| unpack(&row.samples)).collect();
        assert_eq!(rows, [Ok(samples(2, 30))]);
        assert_eq!(world.cloud.messages()[2]["error"], "RetiredSensor");
    });
}

#[test]
fn times_without_an_offset_wait_until_the_offset_of_the_site_is_known() {
    cloud::run(async {
        let mut world = World::new().await;
        // The events come in the wrong order, so that only the retirement is known.
        world.project(&deprovisioned("b")).await;
        let earlier =
            Bundle { site_id: site("b"), ..bundle("b-1", vec![(sensor("b", 0), samples(2, 30))]) };
        let record = world.put(site("b"), local(&earlier, -7));
        deliver_events(&world, &[arrived(&record, Duration::from_secs(1))]).await;
        let [held] = &world.cloud.messages_of(HOLD)[..] else { panic!("one message") };
        assert_eq!(world.rows(), []);

        world.project(&provisioned_with_offset("b", "-07:00")).await;
        sleep(REGISTER_AGE).await;
        assert_eq!(deliver_held(&world, held).await, Ok(()));
        let rows = world.rows();
        let rows: Vec<_> = rows.iter().map(|(_, row)| unpack(&row.samples)).collect();
        assert_eq!(rows, [Ok(samples(2, 30))]);
        assert_eq!(world.cloud.messages_of(QUARANTINE), [Value::Null; 0]);
    });
}

#[test]
fn an_event_with_ids_of_another_site_changes_no_sensor() {
    cloud::run(async {
        let cloud = Cloud::new(Rng::from_seed(1));
        let step = ProjectSensors { readings: cloud.table(READINGS), outbox: cloud.outbox() };
        let other = saga("b");
        for event in [provisioned("a"), deprovisioned("a")] {
            for (path, id) in [
                ("/detail/data/siteId", json!(other.site_id)),
                ("/detail/data/sensors/1/sensorId", json!(sensor("b", 1))),
                ("/detail/data/sensorIds/1", json!(sensor("b", 1))),
                ("/detail/metadata/correlationId", json!(other.onboarding_id)),
            ] {
                let mut event = event.clone();
                let Some(field) = event.pointer_mut(path) else { continue };
                *field = id;
                assert_eq!(run(&step, &event).await, Err(ErrorKind::InvalidInput), "{path}");
                assert_eq!(cloud.rows(READINGS).len(), 0, "{path}");
            }
        }
    });
}
