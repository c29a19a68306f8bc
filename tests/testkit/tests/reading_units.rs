//! Counts the DynamoDB units of a reading and of an alert, using the real day of a station. The results are in
//! docs/cost.md and in the inputs of the cost model.
//!
//! `UPDATE_DOCS=1 cargo test -p testkit` rewrites them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    time::Duration,
};

use alerting::{
    configure_alerting::ConfigureAlerting, detect_breaches::DetectBreaches,
    watermarks::WatermarkCache,
};
use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{
    ContextWithSensors, EntityType, Metric, SagaContext, Sensor, SensorId,
    events::SensorsProvisioned,
    readings::{Bundle, Series},
    sample::Sample,
};
use cost::{
    counted::{Alert, Bundles, Readings, Records},
    docs, units,
};
use events::publisher::{Bus, EventKey, EventStream, Memory, PublishRequest, Publisher};
use flate2::{Compression, read::GzEncoder};
use lambda::{Deadline, Step};
use quarantine::Quarantine;
use serde_json::{json, value::to_raw_value};
use store::EventRow;
use surfrad::Day;
use telemetry::{
    hold::Hold, project_sensors::ProjectSensors, register::Register, series_store::SeriesStore,
    store_readings::StoreReadings,
};
use testkit::{
    Dynamo,
    dynamo::{ALERTING, EVENTS, READINGS},
    http::{self, Stub},
    mapping::{self, Stream},
    rng::Rng,
    sample::{self, noon, saga},
    template::root,
};

/// A station whose sensors are registered and have alerting, with limits that its day does not exceed: the plausible range,
/// less the deadband at the upper end.
struct Station {
    dynamo: Dynamo,
    saga: SagaContext,
    sensors: Vec<Sensor>,
}

impl Station {
    async fn start(day: &Day) -> Self {
        let dynamo = Dynamo::start().await;
        let saga = saga("alamosa");
        let metrics: Vec<_> = day.columns.iter().map(|column| column.metric).collect();
        let mut sensors: Vec<Sensor> = sample::sensors(saga, &metrics);
        for sensor in &mut sensors {
            let (low, high) = plausible(sensor);
            let deadband = sensor.metric.deadband(&sensor.unit).expect("a unit of the metric");
            (sensor.min, sensor.max) = (Some(low), Some(high - deadband));
        }
        let provisioned = SensorsProvisioned { site_id: saga.site_id, sensors: sensors.clone() };
        let kind = EntityType::Sensors;
        let event = sample::event_of("project-sensors", saga, kind, json!(provisioned));
        let command = serde_json::from_value(event).expect("project-sensors' event");
        let project = ProjectSensors { readings: dynamo.table(READINGS), outbox: dynamo.outbox() };
        project.run(command, noon(1)).await.expect("projected");
        let configure =
            ConfigureAlerting { alerting: dynamo.table(ALERTING), outbox: dynamo.outbox() };
        let command = ContextWithSensors::new(saga, sensors.clone()).expect("the site's own");
        configure.run(command, noon(1)).await.expect("alerting configured");
        drop(dynamo.take_usage());
        Self { dynamo, saga, sensors }
    }

    fn by_metric(&self) -> BTreeMap<Metric, SensorId> {
        self.sensors.iter().map(|sensor| (sensor.metric, sensor.sensor_id)).collect()
    }

    fn detector(&self) -> DetectBreaches {
        DetectBreaches {
            alerting: self.dynamo.table(ALERTING),
            outbox: self.dynamo.outbox(),
            watermarks: WatermarkCache::default(),
            // The day is years old.
            max_age: Duration::MAX,
        }
    }

    /// Processes the bundles with store-readings twice, then with detect-breaches, and returns what was used.
    async fn count(&self, minutes: u32, bundles: &[Bundle]) -> Bundles {
        let dynamo = &self.dynamo;
        let readings = || dynamo.table(READINGS);
        let queue = Stub::start(|_| (200, json!({ "MessageId": "1" }))).await;
        let step = StoreReadings {
            series: SeriesStore { readings: readings(), outbox: dynamo.outbox() },
            register: Register::new(readings(), Duration::from_hours(1)),
            hold: Hold {
                queues: aws_sdk_sqs::Client::new(&queue.config()),
                url: queue.url(),
                max_seconds: 120,
            },
            quarantine: Quarantine {
                queues: aws_sdk_sqs::Client::new(&queue.config()),
                url: queue.url(),
                source: "store-readings",
            },
            // The readings have fixed dates.
            max_age_days: 36_500,
        };
        let (mut plain, mut gzip) = (Records::default(), Records::default());
        let mut stream = Stream::new(Rng::from_seed(1));
        let key = self.saga.site_id.to_string();
        let records: Vec<_> = bundles
            .iter()
            .map(|bundle| {
                let data = serde_json::to_vec(bundle).expect("JSON");
                plain.add(&data, &key);
                gzip.add(&packed(&data), &key);
                stream.put(&key, data, Duration::ZERO)
            })
            .collect();
        let event = to_raw_value(&mapping::event(&records)).expect("an event");
        let deadline = || Deadline::after(Duration::from_mins(1));
        let deliver = async || {
            let response = step.handle(&event, deadline()).await.expect("a response");
            assert_eq!(response.batch_item_failures, []);
        };
        // A warm function has its sensors in its cache.
        let sensors: Vec<_> = self.by_metric().into_values().collect();
        let known = step.register.standings(self.saga.site_id, None, sensors.iter().copied());
        known.await.expect("active sensors");
        drop(dynamo.take_usage());

        deliver().await;
        let usage = dynamo.take_usage();
        let stored = rows(dynamo).await;
        let series = stored.iter().filter(|row| row.contains_key("samples"));
        let (rows_stored, row_bytes) =
            (series.clone().count(), series.clone().map(stored_bytes).sum());
        let has_value = |series: &&Series| series.samples.iter().any(|it| it.value.is_some());
        let with_values = bundles.iter().flat_map(|bundle| &bundle.series).filter(has_value);
        let with_values: BTreeSet<_> =
            with_values.map(|series| series.sensor_id.to_string()).collect();
        let is_of_version_1 = |row: &&Row| matches!(&row["sensorId"], AttributeValue::S(id) if with_values.contains(id));
        let without_arrival = |row: &Row| {
            let mut row = row.clone();
            row.remove("arrival");
            stored_bytes(&row)
        };
        let row_bytes_version_1 = series.filter(is_of_version_1).map(without_arrival).sum();
        let puts = BTreeMap::from([("PutItem".to_owned(), number(rows_stored))]);
        assert_eq!(usage.calls, puts, "no reads");

        deliver().await;
        assert_eq!(rows(dynamo).await, stored, "a repeated bundle writes nothing");
        assert_eq!(queue.take_calls().len(), 0, "nothing is quarantined");
        drop(dynamo.take_usage());

        let response = self.detector().handle(&event, deadline()).await.expect("a response");
        assert_eq!(response.batch_item_failures, []);
        let reads = BTreeMap::from([("GetItem".to_owned(), number(bundles.len()))]);
        assert_eq!(dynamo.take_usage().calls, reads, "nothing changes, so nothing is written");

        Bundles {
            minutes,
            bundles: number(bundles.len()),
            readings: number(bundles.iter().map(Bundle::samples).sum()),
            rows: number(rows_stored),
            write_units: usage.write_units,
            row_bytes,
            row_bytes_version_1,
            plain,
            gzip,
            alerting_read_units: bundles.len() as u64 * units::read_units(self.watch_bytes().await),
        }
    }

    /// Returns the size of the row that detect-breaches reads.
    async fn watch_bytes(&self) -> u64 {
        let table = self.dynamo.table(ALERTING);
        let items = table.client().scan().table_name(ALERTING).send().await.expect("a scan");
        let [row] = items.items() else { panic!("one row: {items:?}") };
        stored_bytes(&row.clone().into_iter().collect())
    }

    async fn events(&self) -> Vec<EventRow> {
        let rows = self.dynamo.rows(EVENTS).await.into_iter();
        rows.map(|row| serde_json::from_value(row).expect("an event's row")).collect()
    }

    /// Counts the write units when a sensor exceeds its limits: the change of state with its event, then the
    /// publishing of the event.
    async fn alert(&self, day: &Day) -> Alert {
        let bundles = day.bundles(self.saga.site_id, &self.by_metric(), 15).expect("bundles");
        let mut bundle = bundles[0].clone();
        bundle.series.truncate(1);
        bundle.series[0].samples.truncate(1);
        let series = &mut bundle.series[0];
        let sensor = self.sensors.iter().find(|sensor| sensor.sensor_id == series.sensor_id);
        let (_, high) = plausible(sensor.expect("a sensor of the station"));
        series.samples[0] = Sample::new(series.samples[0].at, high);
        let mut stream = Stream::new(Rng::from_seed(1));
        let data = serde_json::to_vec(&bundle).expect("JSON");
        let record = stream.put(&self.saga.site_id.to_string(), data, Duration::ZERO);
        let event = to_raw_value(&mapping::event(&[record])).expect("an event");
        let outlets = Stub::of_outlets().await;
        let publisher = Publisher {
            events: self.dynamo.table(EVENTS),
            stream: EventStream {
                client: aws_sdk_kinesis::Client::new(&outlets.config()),
                name: "events".to_owned(),
            },
            bus: Bus {
                client: aws_sdk_eventbridge::Client::new(&outlets.config()),
                name: "bus".to_owned(),
            },
            memory: Memory::default(),
            // No event is refused.
            quarantine: Quarantine {
                queues: aws_sdk_sqs::Client::new(&http::config("http://nowhere")),
                url: String::new(),
                source: "publish-events",
            },
        };
        let deadline = || Deadline::after(Duration::from_mins(1));
        // An event waits for its predecessors, so these are published first and not counted.
        let earlier = self.events().await;
        let before = earlier.len();
        let requests =
            earlier.iter().map(|row| PublishRequest { key: row.into(), record: None }).collect();
        assert_eq!(publisher.publish(requests, deadline()).await.expect("the rows"), []);
        drop(self.dynamo.take_usage());
        let response = self.detector().handle(&event, deadline()).await.expect("a response");
        assert_eq!(response.batch_item_failures, []);
        let detect_write_units = self.dynamo.take_usage().write_units;

        let stored = self.events().await;
        assert_eq!(stored.len(), before + 1, "one event");
        let breaches = stored.into_iter().filter(|row| row.kind == "ReadingBreachedThreshold");
        let requests = breaches
            .map(|row| PublishRequest { key: EventKey::from(&row), record: None })
            .collect();
        let unpublished = publisher.publish(requests, deadline()).await.expect("the rows");
        assert_eq!(unpublished, []);
        Alert { detect_write_units, publish_write_units: self.dynamo.take_usage().write_units }
    }
}

fn plausible(sensor: &Sensor) -> (f64, f64) {
    sensor.metric.plausible(&sensor.unit).expect("a unit of the metric")
}

type Row = BTreeMap<String, AttributeValue>;

/// Returns all rows of the readings table.
async fn rows(dynamo: &Dynamo) -> Vec<Row> {
    let table = dynamo.table(READINGS);
    let mut pages = table.client().scan().table_name(READINGS).into_paginator().items().send();
    let mut rows = Vec::new();
    while let Some(row) = pages.next().await {
        rows.push(row.expect("a row").into_iter().collect());
    }
    rows
}

/// Returns the size of a row as DynamoDB counts it: names and values. A number takes half a byte for each digit,
/// and one byte more.
fn stored_bytes(row: &Row) -> u64 {
    fn value_bytes(value: &AttributeValue) -> usize {
        match value {
            AttributeValue::S(text) => text.len(),
            AttributeValue::N(number) => {
                number.bytes().filter(u8::is_ascii_digit).count().div_ceil(2) + 1
            }
            AttributeValue::B(bytes) => bytes.as_ref().len(),
            AttributeValue::L(values) => {
                3 + values.iter().map(|value| 1 + value_bytes(value)).sum::<usize>()
            }
            AttributeValue::M(members) => {
                let members = members.iter();
                3 + members.map(|(name, value)| 1 + name.len() + value_bytes(value)).sum::<usize>()
            }
            _ => 1,
        }
    }
    row.iter().map(|(name, value)| (name.len() + value_bytes(value)) as u64).sum()
}

fn packed(data: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    GzEncoder::new(data, Compression::default()).read_to_end(&mut packed).expect("gzip");
    packed
}

fn number(of: usize) -> u32 {
    u32::try_from(of).expect("few of them")
}

/// Returns an hour of the day, with each reading in a bundle of its own.
fn single(bundles: &[Bundle]) -> Vec<Bundle> {
    let hour = bundles[0].clone();
    let series = hour.series.iter().enumerate();
    let readings = series.flat_map(|(index, series)| {
        let samples = series.samples.iter().map(move |sample| (index, series.sensor_id, *sample));
        samples.collect::<Vec<_>>()
    });
    readings
        .map(|(index, sensor_id, sample)| {
            // This id is as long as the bundle ids of real loggers.
            let bundle_id = format!("{}-{index:02}", sample.at).parse().expect("an id");
            Bundle::new(bundle_id, hour.site_id, vec![Series::new(sensor_id, vec![sample])])
        })
        .collect()
}

fn line(what: &str, counted: &Bundles) -> Vec<String> {
    let Bundles { bundles, readings, rows, write_units, plain, gzip, .. } = counted;
    let each = write_units / f64::from(*readings);
    [
        what.to_owned(),
        bundles.to_string(),
        readings.to_string(),
        rows.to_string(),
        write_units.to_string(),
        format!("{each:.4}"),
        "0".to_owned(),
        counted.row_bytes.to_string(),
        counted.row_bytes_version_1.to_string(),
        (plain.bytes / u64::from(*bundles)).to_string(),
        (gzip.bytes / u64::from(*bundles)).to_string(),
    ]
    .to_vec()
}

#[tokio::test]
async fn the_docs_show_the_cost_of_a_reading() {
    let root = root();
    let file = root.join("tests/data/surfrad-alamosa-2016-01-01.dat");
    let day = Day::read(&file).expect("the day");
    let split = async |minutes| {
        let station = Station::start(&day).await;
        let sensors = station.by_metric();
        let bundles = day.bundles(station.saga.site_id, &sensors, minutes).expect("bundles");
        (station, bundles)
    };
    let (mut bundles, mut lines) = (Vec::new(), Vec::new());
    for (minutes, what, max) in
        [(15, "15 minutes", 0.1), (60, "an hour", 0.03), (1440, "a day", 0.03)]
    {
        let (station, split) = split(minutes).await;
        let counted = station.count(minutes, &split).await;
        assert_eq!(counted.readings as usize, day.samples());
        let each = counted.write_units / f64::from(counted.readings);
        assert!(each <= max, "{each} write units per reading, expected at most {max}");
        lines.push(line(what, &counted));
        bundles.push(counted);
    }
    let (station, hours) = split(60).await;
    let single = station.count(0, &single(&hours)).await;
    lines.insert(0, line("one reading (an hour of them)", &single));
    let alert = station.alert(&day).await;

    let head = [
        "bundles of",
        "bundles",
        "readings",
        "rows",
        "write units",
        "per reading",
        "reads",
        "bytes of rows",
        "in version 1",
        "bytes of a bundle",
        "as gzip",
    ];
    let right = [false, true, true, true, true, true, true, true, true, true, true];
    let table = docs::table(&head, &right, &lines).expect("a table");
    eprintln!("{table}");
    docs::check_or_update_table(&root.join("docs/cost.md"), "reading-units", &table)
        .expect("as docs/cost.md has it; run `make write-units`");
    let file = root.join("tools/cost/counted/readings.json");
    docs::check_or_update_json(&file, &Readings { bundles, single, alert })
        .expect("as the cost model reads it; run `make write-units`");
}
