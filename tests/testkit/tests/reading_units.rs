//! What a reading costs in DynamoDB, counted on the real day of a station, and told in docs/costs.md.
//!
//! `UPDATE_DOCS=1 cargo test -p testkit` writes the table anew.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path, time::Duration};

use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{Metric, Saga, Sensor, SensorId, events::SensorsProvisioned};
use lambda::{Deadline, Step};
use quarantine::Quarantine;
use serde_json::{json, value::to_raw_value};
use surfrad::Day;
use telemetry::{
    project_sensors::ProjectSensors, register::Register, store_readings::StoreReadings,
};
use testkit::{
    Dynamo,
    chance::Chance,
    dynamo::READINGS,
    http::Stub,
    mapping::{self, Stream},
    sample::{self, noon, saga},
};

const START: &str = "<!-- reading-units: by `make write-units` -->\n";
const END: &str = "<!-- /reading-units -->";

/// The day's bundles through store-readings, then all of them again.
async fn line(day: &Day, minutes: u32, what: &str, most: f64) -> String {
    let dynamo = Dynamo::start().await;
    let readings = || dynamo.table(READINGS);
    let saga = saga("alamosa");
    let metrics: Vec<_> = day.columns.iter().map(|column| column.metric).collect();
    let sensors = provision(&dynamo, saga, &metrics).await;
    let queue = Stub::start(|_| (200, json!({ "MessageId": "1" }))).await;
    let step = StoreReadings {
        readings: readings(),
        register: Register::new(readings(), Duration::from_hours(1)),
        quarantine: Quarantine {
            queues: aws_sdk_sqs::Client::new(&queue.config()),
            url: queue.url(),
            source: "store-readings",
        },
    };
    let bundles = day.bundles(saga.site_id, &sensors, minutes).expect("the day in bundles");
    let mut stream = Stream::new(Chance::of(1));
    let records: Vec<_> = bundles
        .iter()
        .map(|bundle| {
            let data = serde_json::to_vec(bundle).expect("JSON");
            stream.put(&saga.site_id.to_string(), data, Duration::ZERO)
        })
        .collect();
    let event = to_raw_value(&mapping::event(&records)).expect("an event");
    let deliver = async || {
        let deadline = Deadline::after(Duration::from_mins(1));
        let answer = step.handle(&event, deadline).await.expect("an answer");
        assert_eq!(answer.batch_item_failures, []);
    };
    // A function that runs knows its sensors.
    let known = step.register.admit(saga.site_id, sensors.values().copied());
    known.await.expect("active sensors");
    drop(dynamo.take_usage());

    deliver().await;
    let usage = dynamo.take_usage();
    let stored = rows(&dynamo).await;
    let count = stored.len() - sensors.len();
    let puts = u32::try_from(count).expect("few rows");
    assert_eq!(usage.calls, BTreeMap::from([("PutItem".to_owned(), puts)]), "no reads");

    deliver().await;
    assert_eq!(rows(&dynamo).await, stored, "a repeated bundle writes nothing");
    assert_eq!(queue.take_calls().len(), 0, "nothing is quarantined");

    let samples: usize = bundles.iter().map(contracts::readings::Bundle::samples).sum();
    assert_eq!(samples, day.samples());
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let each = usage.write_units / samples as f64;
    assert!(each <= most, "{each} write units a reading, not {most}");
    format!(
        "| {what} | {} | {samples} | {count} | {} | {each:.4} | 0 |\n",
        bundles.len(),
        usage.write_units
    )
}

/// The table's rows, bytes and all.
async fn rows(dynamo: &Dynamo) -> Vec<BTreeMap<String, AttributeValue>> {
    let table = dynamo.table(READINGS);
    let mut pages = table.client().scan().table_name(READINGS).into_paginator().items().send();
    let mut rows = Vec::new();
    while let Some(row) = pages.next().await {
        rows.push(row.expect("a row").into_iter().collect());
    }
    rows
}

async fn provision(dynamo: &Dynamo, saga: Saga, metrics: &[Metric]) -> BTreeMap<Metric, SensorId> {
    let sensors: Vec<Sensor> = sample::sensors(saga, metrics);
    let known = sensors.iter().map(|sensor| (sensor.metric, sensor.sensor_id)).collect();
    let provisioned = SensorsProvisioned { site_id: saga.site_id, sensors };
    let mut event = sample::event("project-sensors");
    event["detail"]["data"] = json!(provisioned);
    let command = serde_json::from_value(event).expect("project-sensors' event");
    ProjectSensors { readings: dynamo.table(READINGS) }.run(command, noon(1)).await.expect("known");
    known
}

#[tokio::test]
async fn the_docs_tell_what_a_reading_costs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let day = Day::read(&root.join("../data/surfrad-alamosa-2016-01-01.dat")).expect("the day");
    let mut counted = String::from(
        "| bundles of | bundles | readings | rows | write units | per reading | reads |\n\
         |---|---:|---:|---:|---:|---:|---:|\n",
    );
    for (minutes, what, most) in
        [(15, "15 minutes", 0.1), (60, "an hour", 0.03), (1440, "a day", 0.03)]
    {
        write!(counted, "{}", line(&day, minutes, what, most).await).expect("text");
    }
    eprintln!("{counted}");
    let path = root.join("../../docs/costs.md");
    let docs = fs::read_to_string(&path).expect("docs/costs.md");
    let (before, rest) = docs.split_once(START).expect("the table's start in docs/costs.md");
    let (told, after) = rest.split_once(END).expect("the table's end in docs/costs.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{before}{START}{counted}{END}{after}")).expect("docs/costs.md");
    } else {
        assert_eq!(told, counted, "docs/costs.md tells another cost; run `make write-units`");
    }
}
