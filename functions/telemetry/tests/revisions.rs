//! Tests of revisions, growing bundles and the precedence of samples, from the stream to the query.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, rc::Rc, time::Duration};

use contracts::{
    Entity, EntityType, Metric, SensorId, SiteId, Timestamp,
    readings::{Bundle, Series, TimeRange},
    sample::{Flag, Qualifiers, Sample},
    sensor::{Calibration, Dated},
};
use fault::ReplayResponse;
use futures_util::FutureExt;
use lambda::{
    Deadline,
    http::{require_match, response},
};
use quarantine::Quarantine;
use serde::Serialize;
use serde_bytes::ByteBuf;
use serde_json::{Value, json, value::to_raw_value};
use series::{
    RevisionRow, RowKey, SeriesRow,
    packing::{pack, unpack, unpack_qualified},
};
use sha2::{Digest, Sha256};
use store::EventRow;
use telemetry::{
    SensorRow,
    get_readings::GetReadings,
    get_revisions::GetRevisions,
    hold::Hold,
    paging::{KeySource, Paging, SigningKey},
    project_sensors::ProjectSensors,
    register::Register,
    series_store::{Received, SeriesStore, Stored},
    store_readings::StoreReadings,
};
use testkit::{
    cloud::{self, Cloud},
    dynamo::{EVENTS, READINGS},
    golden,
    mapping::{Record, Stream, event},
    rng::Rng,
    saga::run,
    sample::{self, caller, default_caller, noon, other_operator, saga, saga_of, sensors},
};

/// The function, a stream, and a cloud. The register has the sensors of site `a`.
struct World {
    cloud: Cloud,
    step: StoreReadings,
    stream: Stream,
    /// The time of the last record's arrival, since the stream's beginning. The next one arrives a second later.
    time: Duration,
}

impl World {
    fn new() -> Self {
        let world = Self::without_sensors();
        world.register();
        world
    }

    fn without_sensors() -> Self {
        let cloud = Cloud::new(Rng::from_seed(1));
        let readings = cloud.table(READINGS);
        let step = StoreReadings {
            register: Register::new(readings.clone(), Duration::from_mins(1)),
            series: SeriesStore { readings, outbox: cloud.outbox() },
            hold: Hold {
                queues: cloud.queues(),
                url: "http://cloud/hold".to_owned(),
                max_seconds: 120,
            },
            quarantine: Quarantine {
                queues: cloud.queues(),
                url: "http://cloud/quarantine".to_owned(),
                source: "store-readings",
            },
            // The readings have fixed dates.
            max_age_days: 36_500,
        };
        Self { cloud, step, stream: Stream::new(Rng::from_seed(1)), time: Duration::ZERO }
    }

    fn register(&self) {
        for known in sensors(saga("a"), &[Metric::AirTemperature, Metric::WindSpeed]) {
            let row = json!({
                "sensorId": known.sensor_id,
                "row": "SENSOR",
                "siteId": site(),
                "operatorId": saga("a").operator_id,
                "sensor": known,
            });
            self.cloud.put(READINGS, row);
        }
    }

    /// Puts a bundle on the stream, a second after the one before.
    fn put(&mut self, bundle: &Bundle) -> Rc<Record> {
        self.time += Duration::from_secs(1);
        let data = serde_json::to_vec(bundle).expect("JSON");
        self.stream.put(&site().to_string(), data, self.time)
    }

    async fn deliver(&self, record: &Rc<Record>) {
        let payload = to_raw_value(&event(&[Rc::clone(record)])).expect("JSON");
        let deadline = Deadline::after(Duration::from_secs(30));
        let response = self.step.handle(&payload, deadline).await.expect("a response");
        assert_eq!(response.batch_item_failures, []);
    }

    /// Delivers a record again as long as it fails.
    async fn deliver_until_stored(&self, record: &Rc<Record>) {
        let payload = to_raw_value(&event(&[Rc::clone(record)])).expect("JSON");
        for _ in 0..50 {
            let deadline = Deadline::after(Duration::from_secs(30));
            let response = self.step.handle(&payload, deadline).await.expect("a response");
            if response.batch_item_failures.is_empty() {
                return;
            }
        }
        panic!("the record fails again and again");
    }

    async fn send(&mut self, bundle: &Bundle) -> Rc<Record> {
        let record = self.put(bundle);
        self.deliver(&record).await;
        record
    }

    async fn replay(&self, record: &Value) {
        let payload = to_raw_value(record).expect("JSON");
        assert_eq!(self.step.replay(&payload).await, ReplayResponse::Done);
    }

    /// Returns the errors of the quarantined records.
    fn quarantined(&self) -> Vec<Value> {
        self.cloud.messages().into_iter().map(|mut message| message["error"].take()).collect()
    }

    /// Calibrates the sensor with this gain, for all times. Delivers the event again as long as project-sensors fails.
    async fn calibrate(&self, gain: f64, sequence: u64) {
        let mut calibrated = sensors(saga("a"), &[Metric::AirTemperature]).remove(0);
        let calibration = Calibration { gain, offset: 0.0 };
        calibrated.metadata.calibrations = vec![Dated::always(calibration)];
        let data = json!({ "siteId": site(), "sensor": calibrated });
        let kind = EntityType::Sensors;
        let mut event = sample::event_of("project-sensors", saga("a"), kind, data);
        event["detail-type"] = "SensorChanged".into();
        event["detail"]["metadata"]["type"] = "SensorChanged".into();
        event["detail"]["metadata"]["sequence"] = sequence.into();
        let readings = self.cloud.table(READINGS);
        let step = ProjectSensors { readings, outbox: self.cloud.outbox() };
        for _ in 0..50 {
            let outcome = AssertUnwindSafe(run(&step, &event)).catch_unwind().await;
            if matches!(outcome, Ok(Ok(_))) {
                return;
            }
        }
        panic!("the event fails again and again");
    }

    /// Returns the response to a query of the sensor's whole series, with raw or calibrated values.
    async fn page_of(&self, values: &str) -> lambda::http::Response {
        let step = GetReadings { readings: self.cloud.table(READINGS), paging: paging() };
        let mut event = sample::event("get-readings");
        event["pathParameters"] = json!({ "sensorId": sensor() });
        event["queryStringParameters"] = json!({ "limit": "10000", "values": values });
        let request = serde_json::from_value(event).expect("an event of API Gateway");
        step.handle(&default_caller(), &request).await.expect("a page")
    }

    /// Returns the body of the same response.
    async fn body_of(&self, values: &str) -> String {
        let page = self.page_of(values).await;
        let response = serde_json::to_value(response(Ok(page))).expect("JSON");
        response["body"].as_str().expect("a body").to_owned()
    }

    /// Returns whether the entity tag of the same response has this number of changes.
    async fn has_tag(&self, values: &str, changes: u64) -> bool {
        let hash = &Sha256::digest(self.body_of(values).await)[..16];
        let hash = hash.iter().fold(String::new(), |hash, byte| hash + &format!("{byte:02x}"));
        let tag = format!("\"{changes}-{hash}\"").parse().expect("a header");
        let mut request = lambda::http::Request::default();
        request.headers.insert("if-match", tag);
        require_match(&request, &self.page_of(values).await).is_ok()
    }

    /// Returns the samples of the sensor's whole series, as the API returns them.
    async fn samples(&self) -> Vec<Sample> {
        let body = self.body_of("calibrated").await;
        let mut body: Value = serde_json::from_str(&body).expect("JSON");
        serde_json::from_value(body["samples"].take()).expect("samples")
    }

    /// Stores a row of the sensor as it is.
    fn put_row(&self, row: &SeriesRow) {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Stored<'a> {
            sensor_id: SensorId,
            #[serde(flatten)]
            row: &'a SeriesRow,
        }
        self.cloud.put(READINGS, Stored { sensor_id: sensor(), row });
    }

    /// Returns the rows of samples, in the order of their keys.
    fn rows(&self) -> Vec<SeriesRow> {
        let rows = self.cloud.rows(READINGS);
        let rows = rows.iter().filter(|row| RowKey::parse(text(row, "row")).is_some());
        let mut rows: Vec<_> = rows.map(cloud::read::<SeriesRow>).collect();
        rows.sort_by(|a, b| a.row.cmp(&b.row));
        rows
    }

    fn revisions(&self) -> Vec<RevisionRow> {
        let rows = self.cloud.rows(READINGS);
        let rows = rows.iter().filter(|row| text(row, "row").starts_with("REVISION/"));
        rows.map(cloud::read).collect()
    }

    fn changes(&self) -> u64 {
        let rows = self.cloud.rows(READINGS);
        let is_own = |row: &&Value| {
            text(row, "row") == "SENSOR" && text(row, "sensorId") == sensor().to_string()
        };
        cloud::read::<SensorRow>(rows.iter().find(is_own).expect("the sensor")).changes
    }

    /// Returns the sequence, the kind and the range of the events of the sensor's readings.
    fn events(&self) -> Vec<(u64, String, Timestamp, Timestamp)> {
        let rows = self.cloud.rows(EVENTS);
        let mut events: Vec<_> = rows
            .iter()
            .map(|row| {
                let row: EventRow = cloud::read(row);
                assert_eq!(row.entity, Entity::readings(sensor()).to_string());
                assert_eq!(
                    (row.kind.as_str(), row.source.as_str()),
                    ("ReadingsRevised", "fieldstation.telemetry")
                );
                assert_eq!(row.correlation_id, Some(saga("a").onboarding_id.to_string()));
                let data = row.envelope().expect("an envelope").data;
                assert_eq!(data["siteId"], json!(site()));
                let time = |name: &str| data[name].as_str().expect(name).parse().expect("a time");
                let kind = data["kind"].as_str().expect("a kind").to_owned();
                (row.sequence, kind, time("from"), time("to"))
            })
            .collect();
        events.sort_unstable();
        events
    }

    fn calls(&self, before: &BTreeMap<String, u32>) -> BTreeMap<String, u32> {
        let mut calls = self.cloud.calls();
        for (operation, times) in before {
            if let Some(now) = calls.get_mut(operation) {
                *now -= times;
            }
        }
        calls.retain(|_, times| *times > 0);
        calls
    }
}

fn text<'a>(row: &'a Value, name: &str) -> &'a str {
    row[name]["S"].as_str().unwrap_or_default()
}

fn paging() -> Paging {
    let key = SigningKey::new("a key that is long enough for the tests").expect("a key");
    Paging::new(KeySource::Fixed(key))
}

fn site() -> SiteId {
    saga("a").site_id
}

fn sensor() -> SensorId {
    SensorId::from_onboarding(saga("a").onboarding_id, 0)
}

/// Returns one sample a minute, from this minute after noon on.
fn minutes(from: i64, values: impl IntoIterator<Item = f64>) -> Vec<Sample> {
    (from..).zip(values).map(|(minute, value)| Sample::new(noon(60 * minute), value)).collect()
}

fn numbers(count: u32) -> impl Iterator<Item = f64> {
    (0..count).map(f64::from)
}

fn bundle(id: &str, samples: Vec<Sample>) -> Bundle {
    Bundle::new(id.parse().expect("an id"), site(), vec![Series::new(sensor(), samples)])
}

fn revision(id: &str, revision: u32, samples: Vec<Sample>) -> Bundle {
    let reason = Some("The clock was wrong.".to_owned());
    Bundle { revision, reason, ..bundle(id, samples) }
}

/// Returns a revision that replaces these minutes after noon.
fn replacing(id: &str, number: u32, from: i64, to: i64, samples: Vec<Sample>) -> Bundle {
    let mut bundle = revision(id, number, samples);
    bundle.series[0].replaces = Some(TimeRange { from: noon(60 * from), to: noon(60 * to) });
    bundle
}

#[test]
fn a_replayed_original_does_not_win_against_its_correction() {
    let (wrong, right) = (minutes(0, numbers(3)), minutes(0, [7.0, 8.0, 9.0]));
    for correction in [bundle("b-1-corrected", right.clone()), revision("b-1", 2, right.clone())] {
        cloud::run(async {
            let mut world = World::without_sensors();
            world.send(&bundle("b-1", wrong.clone())).await;
            assert_eq!(world.quarantined(), ["UnknownSensor"]);
            world.register();
            world.send(&correction).await;
            assert_eq!(world.samples().await, right);
            let record = world.cloud.messages()[0]["record"].clone();
            world.replay(&record).await;
            assert_eq!(world.samples().await, right, "{}", correction.bundle_id);
            assert_eq!(world.rows().len(), 2);
        });
    }
}

#[test]
fn a_late_original_does_not_win_against_its_correction() {
    let (wrong, right) = (minutes(0, numbers(3)), minutes(0, [7.0, 8.0, 9.0]));
    cloud::run(async {
        let mut world = World::new();
        world.send(&revision("b-1", 2, right.clone())).await;
        world.send(&bundle("b-1", wrong.clone())).await;
        assert_eq!(world.samples().await, right);
    });
    // The original arrived first, but it is processed last.
    cloud::run(async {
        let mut world = World::new();
        let original = world.put(&bundle("b-1", wrong.clone()));
        world.send(&bundle("b-1-corrected", right.clone())).await;
        world.deliver(&original).await;
        assert_eq!(world.samples().await, right);
        // The same bundle again, later: it is a repeat, and keeps its first arrival.
        world.send(&bundle("b-1", wrong.clone())).await;
        assert_eq!(world.samples().await, right);
    });
}

#[test]
fn a_repeat_that_arrived_earlier_gives_its_arrival_to_the_row() {
    let (wrong, right) = (minutes(0, numbers(3)), minutes(0, [7.0, 8.0, 9.0]));
    cloud::run(async {
        let mut world = World::new();
        let first = world.put(&bundle("b-1", wrong.clone()));
        world.send(&bundle("b-1-corrected", right.clone())).await;
        let second = world.put(&bundle("b-1", wrong.clone()));
        world.deliver(&second).await;
        assert_eq!(world.samples().await, wrong, "as far as we know, it arrived last");
        world.deliver(&first).await;
        assert_eq!(world.samples().await, right);
        let rows = world.cloud.rows(READINGS);
        world.deliver(&first).await;
        world.deliver(&second).await;
        assert_eq!(world.cloud.rows(READINGS), rows);
        assert_eq!(world.rows().len(), 2);
    });
}

#[test]
fn each_sample_of_a_growing_bundle_keeps_its_own_first_arrival() {
    cloud::run(async {
        let mut world = World::new();
        let part = world.put(&bundle("day", minutes(0, numbers(2))));
        let other = world.put(&bundle("other", minutes(1, [70.0, 80.0])));
        let whole = world.put(&bundle("day", minutes(0, numbers(3))));
        for order in [[&whole, &other, &part], [&part, &other, &whole], [&other, &whole, &part]] {
            let mut world = World::new();
            for record in order {
                world.deliver(record).await;
            }
            let expected = [0.0, 70.0, 2.0];
            assert_eq!(world.samples().await, minutes(0, expected), "{order:?}");
            world.time = Duration::from_mins(1);
            world.send(&bundle("day", minutes(0, numbers(2)))).await;
            assert_eq!(world.samples().await, minutes(0, expected), "{order:?}");
        }
    });
}

#[test]
fn a_revision_replaces_a_range_in_any_order() {
    let original = || bundle("hour", minutes(-120, numbers(60)));
    let right = minutes(-180, numbers(60));
    let correction = || replacing("hour", 2, -120, -60, right.clone());
    cloud::run(async {
        let mut world = World::new();
        let sent = world.send(&original()).await;
        assert_eq!(world.samples().await, minutes(-120, numbers(60)));
        world.send(&correction()).await;
        assert_eq!(world.samples().await, right);
        let record = event(&[sent])["Records"][0].take();
        world.replay(&record).await;
        world.send(&original()).await;
        assert_eq!(world.samples().await, right);
    });
    cloud::run(async {
        let mut world = World::new();
        world.send(&correction()).await;
        assert_eq!(world.samples().await, right);
        world.send(&original()).await;
        // Another bundle of a lower revision in the range vanishes, too.
        world.send(&bundle("other", minutes(-90, [5.0]))).await;
        assert_eq!(world.samples().await, right);
        // The end of the range is not in it.
        world.send(&bundle("next", minutes(-60, [6.0]))).await;
        assert_eq!(world.samples().await, [right.clone(), minutes(-60, [6.0])].concat());
        assert_eq!(world.quarantined(), [Value::Null; 0]);
    });
}

#[test]
fn a_growing_bundle_is_stored_once_in_any_order_of_arrival() {
    let sizes = [4, 8, 12, 96];
    let mut orders = Vec::new();
    for a in 0..4 {
        for b in (0..4).filter(|b| *b != a) {
            for c in (0..4).filter(|c| *c != a && *c != b) {
                orders.push([a, b, c, 6 - a - b - c].map(|index: usize| sizes[index]));
            }
        }
    }
    assert_eq!(orders.len(), 24);
    for order in orders {
        cloud::run(async {
            let mut world = World::new();
            for size in order {
                world.send(&bundle("2026-11-27", minutes(0, numbers(size)))).await;
            }
            assert_eq!(world.samples().await, minutes(0, numbers(96)));
            let stored: usize =
                world.rows().iter().map(|row| unpack(&row.samples).expect("samples").len()).sum();
            assert_eq!(stored, 96, "each sample is stored once");
            let rows = world.cloud.rows(READINGS);
            for size in order {
                world.send(&bundle("2026-11-27", minutes(0, numbers(size)))).await;
            }
            assert_eq!(world.cloud.rows(READINGS), rows);
            assert_eq!(world.quarantined(), [Value::Null; 0]);
        });
    }
}

#[test]
fn growth_costs_one_refused_put_one_query_and_one_row() {
    cloud::run(async {
        let mut world = World::new();
        for size in [4, 8, 12] {
            world.send(&bundle("day", minutes(0, numbers(size)))).await;
        }
        let before = world.cloud.calls();
        world.send(&bundle("day", minutes(0, numbers(16)))).await;
        let expected = [("PutItem", 2), ("Query", 1)].map(|(name, n)| (name.to_owned(), n));
        assert_eq!(world.calls(&before), BTreeMap::from(expected));
        // A series that is not longer than the first row needs no query.
        let before = world.cloud.calls();
        for size in [2, 4] {
            world.send(&bundle("day", minutes(0, numbers(size)))).await;
        }
        assert_eq!(world.calls(&before), BTreeMap::from([("PutItem".to_owned(), 2)]));
    });
}

#[test]
fn a_bundle_that_grows_beyond_a_row_keeps_its_rows() {
    cloud::run(async {
        let mut world = World::new();
        // A sample every ten minutes. A day has 144.
        let samples = |count: i64| -> Vec<_> {
            let value = |n: i64| f64::from(i32::try_from(n).expect("a small number"));
            (0..count).map(|n| Sample::new(noon(600 * n), value(n))).collect()
        };
        for size in [4, 150, 148, 300, 4, 290] {
            world.send(&bundle("days", samples(size))).await;
        }
        let rows: Vec<_> =
            world.rows().iter().map(|row| unpack(&row.samples).expect("samples")).collect();
        assert_eq!(rows.iter().map(Vec::len).collect::<Vec<_>>(), [4, 140, 6, 138, 12]);
        assert_eq!(rows.concat(), samples(300));
        assert_eq!(world.samples().await, samples(300));
    });
}

#[test]
fn concurrent_records_of_a_growing_bundle_store_each_sample_once() {
    for seed in 0..20 {
        cloud::run(async {
            let mut world = World::new();
            let mut rng = Rng::from_seed(seed);
            world.send(&bundle("day", minutes(0, numbers(4)))).await;
            let sizes: Vec<_> =
                (0..6).map(|_| 1 + u32::try_from(rng.below(96)).expect("small")).collect();
            let max = sizes.iter().copied().max().unwrap_or_default().max(4);
            let records: Vec<_> = sizes
                .iter()
                .map(|size| world.put(&bundle("day", minutes(0, numbers(*size)))))
                .collect();
            let deliveries = records.iter().map(|record| world.deliver(record));
            futures_util::future::join_all(deliveries).await;
            assert_eq!(world.samples().await, minutes(0, numbers(max)));
            let stored: usize =
                world.rows().iter().map(|row| unpack(&row.samples).expect("samples").len()).sum();
            assert_eq!(stored, max as usize, "{sizes:?}");
            // The first record that had a sample arrived before all others that had it.
            let arrivals: Vec<_> = world
                .rows()
                .iter()
                .flat_map(|row| {
                    let count = unpack(&row.samples).expect("samples").len();
                    (0..count).map(|index| row.arrival_of(index)).collect::<Vec<_>>()
                })
                .collect();
            for (sample, arrival) in arrivals.iter().enumerate().skip(4) {
                let first =
                    sizes.iter().position(|size| *size as usize > sample).expect("a record");
                let record: Value = event(&[Rc::clone(&records[first])])["Records"][0].take();
                let text = record.to_string();
                let record: contracts::stream::Record =
                    serde_json::from_str(&text).expect("a record");
                assert_eq!(
                    record.arrival().as_ref(),
                    Some(arrival),
                    "sample {sample} of {sizes:?}"
                );
            }
            assert_eq!(world.quarantined(), [Value::Null; 0]);
        });
    }
}

#[test]
fn another_value_flag_qualifier_or_range_is_a_conflict() {
    let first = || revision("b-1", 2, minutes(0, numbers(4)));
    let changed = |change: fn(&mut Series)| {
        let mut bundle = first();
        change(&mut bundle.series[0]);
        bundle
    };
    let conflicts = [
        changed(|series| series.samples[1].value = Some(1.5)),
        changed(|series| series.samples[1].flag = Flag::Suspect),
        changed(|series| series.samples[1] = Sample::missing(series.samples[1].at)),
        changed(|series| series.qualifiers.push(1, vec!["<".parse().expect("a qualifier")])),
        changed(|series| series.replaces = Some(TimeRange { from: noon(0), to: noon(1) })),
        changed(|series| series.samples.retain(|sample| sample.at != noon(0))),
        changed(|series| series.samples.retain(|sample| sample.at != noon(60))),
        changed(|series| series.samples[1].at = noon(61)),
        // It has more samples, but not the same prefix.
        changed(|series| {
            series.samples.remove(1);
            series.samples.push(Sample::new(noon(600), 1.0));
        }),
    ];
    for conflict in conflicts {
        cloud::run(async {
            let mut world = World::new();
            world.send(&first()).await;
            let rows = world.cloud.rows(READINGS);
            world.send(&conflict).await;
            assert_eq!(world.quarantined(), ["BundleConflict"], "{conflict:?}");
            assert_eq!(world.cloud.rows(READINGS), rows, "{conflict:?}");
            assert_eq!(world.events().len(), 1);
        });
    }
    // The reason is not compared.
    cloud::run(async {
        let mut world = World::new();
        world.send(&first()).await;
        world.send(&Bundle { reason: Some("Another one.".to_owned()), ..first() }).await;
        assert_eq!(world.quarantined(), [Value::Null; 0]);
        assert_eq!(world.revisions()[0].reason, "The clock was wrong.");
    });
}

#[test]
fn a_conflict_in_the_tail_of_a_growing_bundle_is_found() {
    cloud::run(async {
        let mut world = World::new();
        for size in [4, 8] {
            world.send(&bundle("day", minutes(0, numbers(size)))).await;
        }
        let mut other = bundle("day", minutes(0, numbers(12)));
        other.series[0].samples[6].value = Some(0.5);
        world.send(&other).await;
        assert_eq!(world.quarantined(), ["BundleConflict"]);
        assert_eq!(world.samples().await, minutes(0, numbers(8)));
    });
}

#[test]
fn qualifiers_follow_their_samples_into_the_tail() {
    cloud::run(async {
        let mut world = World::new();
        let grown = |count: u32| {
            let mut bundle = bundle("day", minutes(0, numbers(count)));
            let mut qualifiers = Qualifiers::default();
            for index in [1, 5].into_iter().filter(|index| *index < count as usize) {
                qualifiers.push(index, vec!["maintenance".parse().expect("a qualifier")]);
            }
            bundle.series[0].qualifiers = qualifiers;
            bundle
        };
        for size in [4, 8, 6, 10] {
            world.send(&grown(size)).await;
        }
        assert_eq!(world.quarantined(), [Value::Null; 0]);
        let rows = world.rows();
        assert_eq!(rows.len(), 3);
        let (_, qualifiers) = unpack_qualified(&rows[1].samples).expect("samples");
        assert_eq!(qualifiers.of(1).len(), 1, "the sixth sample of the bundle");
    });
}

#[test]
fn minus_zero_is_the_same_value_as_zero() {
    cloud::run(async {
        let mut world = World::new();
        let json = |value: &str| {
            let time = noon(0);
            format!(
                r#"{{"bundleId":"b-1","siteId":"{}","series":[{{"sensorId":"{}","samples":[["{time}",{value}]]}}]}}"#,
                site(),
                sensor()
            )
        };
        for value in ["0.0", "-0.0"] {
            let data = json(value).into_bytes();
            let record = world.stream.put(&site().to_string(), data, Duration::ZERO);
            world.deliver(&record).await;
        }
        assert_eq!(world.quarantined(), [Value::Null; 0]);
        assert_eq!(world.rows().len(), 1);
    });
    // A row of an earlier release has -0.0 as it was sent.
    cloud::run(async {
        let mut world = World::new();
        let at = noon(0);
        let old = Sample { at, value: Some(-0.0), flag: Flag::NotEvaluated };
        let row = SeriesRow {
            row: format!("{at}/b-1"),
            end: at.millis(),
            stored_at: at.millis(),
            arrival: None,
            earlier: Vec::new(),
            samples: ByteBuf::from(pack(&[old], &Qualifiers::default())),
            hash: ByteBuf::from([0; 16]),
        };
        world.put_row(&row);
        world.send(&bundle("b-1", vec![Sample::new(at, 0.0)])).await;
        assert_eq!(world.quarantined(), [Value::Null; 0]);
        assert_eq!(world.rows().len(), 1);
    });
}

#[test]
fn each_revision_has_one_event_and_one_change_however_often_it_is_sent() {
    cloud::run(async {
        let mut world = World::new();
        let correction = revision("b-1", 2, minutes(0, numbers(4)));
        world.send(&correction).await;
        world.send(&correction).await;
        world.send(&revision("b-1", 2, minutes(0, numbers(2)))).await;
        assert_eq!(world.events(), [(1, "value".to_owned(), noon(0), noon(180).plus_millis(1))]);
        assert_eq!((world.changes(), world.revisions().len()), (1, 1));

        // More samples of the same revision: the event has only these.
        world.send(&revision("b-1", 2, minutes(0, numbers(6)))).await;
        world.send(&correction).await;
        let grown = (2, "value".to_owned(), noon(240), noon(300).plus_millis(1));
        assert_eq!(world.events()[1..], [grown]);
        let [row] = &world.revisions()[..] else { panic!("one revision") };
        assert_eq!((row.samples, row.span), (6, Some((noon(0), noon(300)))));

        // A retraction.
        let retraction = replacing("b-1", 3, -10, 3, Vec::new());
        world.send(&retraction).await;
        world.send(&retraction).await;
        assert_eq!(world.events()[2..], [(3, "retraction".to_owned(), noon(-600), noon(180))]);
        assert_eq!(world.samples().await, minutes(3, [3.0, 4.0, 5.0]));
        assert_eq!((world.changes(), world.revisions().len()), (3, 2));

        // It replaces a range and moves the samples: the event has both.
        world.send(&replacing("b-1", 4, 0, 60, minutes(-30, numbers(2)))).await;
        assert_eq!(world.events()[3..], [(4, "value".to_owned(), noon(-1800), noon(3600))]);
        // A bundle of the first revision has no event.
        world.send(&bundle("b-2", minutes(100, numbers(2)))).await;
        assert_eq!((world.changes(), world.events().len()), (4, 4));
        assert_eq!(world.quarantined(), [Value::Null; 0]);
    });
}

#[test]
fn a_revision_that_an_earlier_record_extends_gets_the_arrival_of_that_record() {
    cloud::run(async {
        let mut world = World::new();
        // The longer record arrived first, and is stored last: Lambda gave up on it, and an engineer on call replays it.
        let long = world.put(&revision("b-1", 2, minutes(0, numbers(4))));
        let short = world.put(&revision("b-1", 2, minutes(0, numbers(2))));
        world.deliver(&short).await;
        world.deliver(&long).await;
        let [row] = &world.revisions()[..] else { panic!("one revision") };
        assert_eq!((row.samples, row.arrived_at()), (4, noon(1)));
    });
}

#[test]
fn concurrent_revisions_of_a_sensor_have_events_without_gaps() {
    for seed in 0..10 {
        cloud::run(async {
            let mut world = World::new();
            world.cloud.inject_faults(seed);
            let records: Vec<_> = (0..5)
                .map(|n| {
                    let id = format!("b-{}", n % 4);
                    world.put(&revision(&id, 2, minutes(100 * (n % 4), numbers(3))))
                })
                .collect();
            let deliveries = records.iter().map(|record| world.deliver_until_stored(record));
            futures_util::future::join_all(deliveries).await;
            let sequences: Vec<_> = world.events().iter().map(|event| event.0).collect();
            assert_eq!(sequences, [1, 2, 3, 4]);
            assert_eq!((world.changes(), world.rows().len()), (4, 4));
        });
    }
}

#[test]
fn a_revision_with_more_rows_than_a_transaction_is_stored_completely() {
    cloud::run(async {
        let mut world = World::new();
        // A sample a day: each is a row.
        let samples: Vec<_> = (0..120)
            .map(|n| {
                Sample::new(noon(-86_400 * (200 - n)), f64::from(i32::try_from(n).expect("small")))
            })
            .collect();
        world.send(&replacing("year", 2, -60 * 24 * 300, 0, samples.clone())).await;
        assert_eq!(world.samples().await, samples);
        assert_eq!(
            (world.events().len(), world.revisions().len(), world.rows().len()),
            (1, 1, 120)
        );
        world.send(&replacing("year", 2, -60 * 24 * 300, 0, samples.clone())).await;
        assert_eq!((world.events().len(), world.rows().len()), (1, 120));
        // A row that an attempt has left behind, whose revision was not written.
        let mut left = world.rows()[0].clone();
        left.row = RowKey::text(samples[0].at, &"small".parse().expect("an id"), 2);
        world.put_row(&left);
        let small = revision("small", 2, samples[..2].to_vec());
        let received = Received { bundle: &small, arrival: None, now: noon(0) };
        let (stored, conflicts) = world.step.series.store(received).await.expect("stored");
        assert_eq!((stored, conflicts.len()), (Stored { samples: 1, repeated: 1 }, 0));
        assert_eq!((world.events().len(), world.revisions().len()), (2, 2));
    });
}

#[test]
fn nobody_withdraws_the_readings_of_another_operators_or_an_unknown_sensor() {
    cloud::run(async {
        let mut world = World::new();
        let other = saga_of(other_operator(), "a");
        let own = sensors(other, &[Metric::AirTemperature]).remove(0);
        world.cloud.put(
            READINGS,
            json!({
                "sensorId": own.sensor_id,
                "row": "SENSOR",
                "siteId": other.site_id,
                "operatorId": other.operator_id,
                "sensor": own,
            }),
        );
        let nobody = SensorId::from_onboarding(saga("nobody").onboarding_id, 0);
        for sensor_id in [own.sensor_id, nobody] {
            let mut retraction = replacing("b-1", 2, 0, 60, Vec::new());
            retraction.series[0].sensor_id = sensor_id;
            let data = serde_json::to_vec(&retraction).expect("JSON");
            let key = contracts::stream::partition_key(site(), saga("a").operator_id);
            let record = world.stream.put(&key, data, world.time);
            let rows = world.cloud.rows(READINGS);
            world.deliver(&record).await;
            assert_eq!(world.quarantined().last(), Some(&json!("UnknownSensor")));
            assert_eq!(world.cloud.rows(READINGS), rows);
            assert_eq!(world.cloud.rows(EVENTS), [Value::Null; 0]);
        }
    });
}

#[test]
fn the_entity_tag_of_a_page_has_the_number_of_changes() {
    cloud::run(async {
        let mut world = World::new();
        world.send(&bundle("b-1", minutes(0, numbers(3)))).await;
        assert!(world.has_tag("calibrated", 0).await);
        // It withdraws nothing that the page has, but the readings were revised.
        world.send(&replacing("b-2", 2, 60, 120, Vec::new())).await;
        assert!(world.has_tag("calibrated", 1).await && !world.has_tag("calibrated", 0).await);
    });
}

#[test]
fn a_calibration_changes_the_entity_tag_of_raw_and_calibrated_pages() {
    cloud::run(async {
        let mut world = World::new();
        world.send(&bundle("b-1", minutes(0, numbers(3)))).await;
        let raw = world.body_of("raw").await;
        for values in ["raw", "calibrated"] {
            assert!(world.has_tag(values, 0).await, "{values}");
        }
        world.calibrate(2.0, 2).await;
        assert_eq!(world.body_of("raw").await, raw);
        assert_eq!(world.samples().await, minutes(0, [0.0, 2.0, 4.0]));
        for values in ["raw", "calibrated"] {
            assert!(world.has_tag(values, 1).await && !world.has_tag(values, 0).await, "{values}");
        }
        // It is no revision of a bundle.
        assert_eq!(world.revisions(), []);
    });
}

#[test]
fn concurrent_revisions_and_calibrations_are_all_counted() {
    for seed in 0..10 {
        cloud::run(async {
            let mut world = World::new();
            world.cloud.inject_faults(seed);
            let records: Vec<_> = (0..3)
                .map(|n| world.put(&revision(&format!("b-{n}"), 2, minutes(100 * n, numbers(3)))))
                .collect();
            let revisions = records.iter().map(|record| world.deliver_until_stored(record));
            let calibrations = (2..5_u32).map(|n| world.calibrate(f64::from(n), n.into()));
            futures_util::future::join(
                futures_util::future::join_all(revisions),
                futures_util::future::join_all(calibrations),
            )
            .await;
            let events = world.events();
            let count = |kind: &str| events.iter().filter(|event| event.1 == kind).count();
            assert_eq!(count("value"), 3, "{events:?}");
            assert!((1..=3).contains(&count("calibration")), "{events:?}");
            let sequences = events.iter().map(|event| event.0);
            assert!(sequences.eq(1..=world.changes()), "{events:?}");
            world.cloud.stop_faults();
            assert_eq!(world.samples().await[2].value, Some(8.0), "the newest calibration");
        });
    }
}

#[test]
fn revisions_are_listed_page_by_page() {
    cloud::run(async {
        let mut world = World::new();
        let step = GetRevisions { readings: world.cloud.table(READINGS), paging: paging() };
        let get = async |caller: &lambda::http::Caller, sensor: SensorId, query: Value| {
            let mut event = sample::event("get-revisions");
            event["pathParameters"] = json!({ "sensorId": sensor });
            event["queryStringParameters"] = query;
            let request = serde_json::from_value(event).expect("an event of API Gateway");
            let mut api =
                serde_json::to_value(response(step.handle(caller, &request).await)).expect("JSON");
            let body = api["body"].as_str().expect("a body");
            api["body"] = serde_json::from_str(body).expect("a body of JSON");
            api
        };
        let check = |name: &str, api: Value| {
            golden::check(env!("CARGO_MANIFEST_DIR"), &format!("get-revisions.{name}"), &api);
        };
        let own = default_caller();
        check("empty", get(&own, sensor(), json!({})).await);
        world.send(&bundle("b-1", minutes(0, numbers(3)))).await;
        world.send(&replacing("b-1", 2, 0, 60, minutes(-60, numbers(3)))).await;
        world.send(&replacing("b-2", 2, 60, 120, Vec::new())).await;
        world.send(&revision("b-2", 3, minutes(60, [1.5]))).await;
        check("all", get(&own, sensor(), json!({})).await);
        let first = get(&own, sensor(), json!({ "limit": "2" })).await;
        let next = first["body"]["next"].as_str().expect("another page").to_owned();
        check("page", first);
        let last = get(&own, sensor(), json!({ "next": next, "limit": "1000" })).await;
        check("next-page", last);
        // The token is for this sensor and this operator only.
        let other = SensorId::from_onboarding(saga("a").onboarding_id, 1);
        check("foreign-next", get(&own, other, json!({ "next": next })).await);
        check("wrong-query", get(&own, sensor(), json!({ "limit": "0", "colour": "red" })).await);
        let stranger = caller(other_operator(), contracts::Scope::Read);
        check("unknown", get(&stranger, sensor(), json!({})).await);
        let unknown = SensorId::from_onboarding(saga("nobody").onboarding_id, 0);
        assert_eq!(get(&own, unknown, json!({})).await["statusCode"], 404);
        let logger = caller(saga("a").operator_id, contracts::Scope::Logger(site()));
        assert_eq!(get(&logger, sensor(), json!({})).await["statusCode"], 403);
    });
}
