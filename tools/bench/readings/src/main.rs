//! Benchmark of a batch of readings. It is run by `measure.sh`.
//!
//! - `bench-readings build plain|flagged RECORDS REPEATS`: decodes, validates and packs a batch and builds its writes,
//!   REPEATS times. The instructions of one repetition follow from the difference between two runs with different
//!   REPEATS.
//! - `bench-readings store plain|flagged RECORDS REPEATS`: runs store-readings on a batch REPEATS times, with a stub of
//!   DynamoDB. Prints the samples per second (on one core) and the peak memory of the process.
//!
//! With `flagged`, each sample has the flag of the station's quality control; with `plain`, none has.
//!
//! A record has 15 minutes of a real day: 15 samples of each of 8 sensors. Each site sends one day. The batch contains
//! all records of one site before those of the next.

#![expect(clippy::print_stdout, reason = "a command-line tool")]

mod dynamo;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{Metric, OnboardingId, OperatorId, SensorId, SiteId, Timestamp, sample::Sample};
use lambda::Deadline;
use quarantine::Quarantine;
use serde_json::{json, value::RawValue};
use surfrad::Day;
use telemetry::{
    hold::Hold,
    register::Register,
    series_store::{Received, SeriesStore, rows},
    store_readings::StoreReadings,
};

/// Eight of the eleven metrics that have complete data on that day.
const METRICS: [Metric; 8] = [
    Metric::DownwellingShortwave,
    Metric::UpwellingShortwave,
    Metric::DirectShortwave,
    Metric::DiffuseShortwave,
    Metric::AirTemperature,
    Metric::RelativeHumidity,
    Metric::AirPressure,
    Metric::WindSpeed,
];
const MINUTES: u32 = 15;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [what, flags, records, repeats] = arguments.as_slice() else {
        bail!("usage: bench-readings build|store plain|flagged RECORDS REPEATS");
    };
    let is_flagged = match flags.as_str() {
        "plain" => false,
        "flagged" => true,
        _ => bail!("unknown samples {flags}; expected plain or flagged"),
    };
    let Workload { batch, samples, sites } = workload(records.parse()?, is_flagged)?;
    let repeats: u32 = repeats.parse()?;
    match what.as_str() {
        "build" => {
            for _ in 0..repeats {
                build(&batch).await?;
            }
            println!("{samples}");
        }
        "store" => store(&batch, samples, sites, repeats).await?,
        _ => bail!("unknown command {what}; expected build or store"),
    }
    Ok(())
}

struct Workload {
    /// The Lambda event.
    batch: Box<RawValue>,
    /// The number of samples in the event.
    samples: usize,
    /// The site of each sensor.
    sites: HashMap<SensorId, SiteId>,
}

/// Creates a batch with this number of records. Removes the flags of the samples unless they are wanted.
fn workload(records: usize, is_flagged: bool) -> Result<Workload> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../tests/data/surfrad-alamosa-2016-01-01.dat");
    let mut day = Day::read(&file)?;
    day.columns.retain(|column| METRICS.contains(&column.metric));
    let mut batch = Vec::with_capacity(records);
    let (mut samples, mut sites) = (0, HashMap::new());
    for station in 0.. {
        let site = SiteId::registered(OperatorId::DEFAULT, "bench", &station.to_string());
        let sensor = |index| SensorId::from_onboarding(OnboardingId::from_site(site), index);
        let sensors: BTreeMap<_, _> = METRICS.into_iter().zip((0..).map(sensor)).collect();
        sites.extend(sensors.values().map(|sensor| (*sensor, site)));
        for mut bundle in day.bundles(site, &sensors, MINUTES)? {
            if !is_flagged {
                let samples = bundle.series.iter_mut().flat_map(|series| &mut series.samples);
                samples.for_each(remove_flag);
            }
            if batch.len() == records {
                let event = serde_json::to_string(&json!({ "Records": batch }))?;
                return Ok(Workload { batch: RawValue::from_string(event)?, samples, sites });
            }
            samples += bundle.samples();
            batch.push(json!({
                "kinesis": {
                    "kinesisSchemaVersion": "1.0",
                    "partitionKey": site,
                    "sequenceNumber": format!("{:056}", batch.len()),
                    "data": STANDARD.encode(serde_json::to_string(&bundle)?),
                    "approximateArrivalTimestamp": 1_451_606_400.987,
                },
                "eventSource": "aws:kinesis",
                "eventVersion": "1.0",
                "eventID": format!("shardId-000000000000:{:056}", batch.len()),
                "eventName": "aws:kinesis:record",
                "invokeIdentityArn": "arn:aws:iam::123456789012:role/store-readings",
                "awsRegion": "eu-central-1",
                "eventSourceARN": "arn:aws:kinesis:eu-central-1:123456789012:stream/readings",
            }));
        }
    }
    bail!("no more stations")
}

/// Turns a sample into one that was sent without a flag. A missing value stays missing.
fn remove_flag(sample: &mut Sample) {
    if let Some(value) = sample.value {
        *sample = Sample::new(sample.at, value);
    }
}

/// Does the work of store-readings except its calls to DynamoDB.
async fn build(batch: &RawValue) -> Result<()> {
    let deadline = Deadline::after(Duration::from_hours(1));
    let response = stream::consume(batch, deadline, async |record| {
        let now = Timestamp::now();
        let sent = stream::bundle(record, now).map_err(|error| error.to_string())?;
        let arrival = record.arrival();
        let received = Received { bundle: &sent.bundle, arrival: arrival.as_ref(), now };
        for (sensor, _, row) in rows(received) {
            let item = store::to_item(&row).map_err(|error| error.to_string())?;
            black_box((sensor, item));
        }
        Ok(())
    });
    let response = response.await.map_err(|failure| anyhow::anyhow!("{failure}"))?;
    anyhow::ensure!(response.batch_item_failures.is_empty(), "{response:?}");
    Ok(())
}

async fn store(
    batch: &RawValue,
    samples: usize,
    sites: HashMap<SensorId, SiteId>,
    repeats: u32,
) -> Result<()> {
    let config = dynamo::config(sites);
    let client = aws_sdk_dynamodb::Client::new(&config);
    let readings = store::Table::new(client.clone(), "readings");
    let outbox = store::Outbox::new(store::Table::new(client, "events"));
    let step = StoreReadings {
        register: Register::new(readings.clone(), Duration::from_hours(1)),
        series: SeriesStore { readings, outbox },
        hold: Hold {
            queues: aws_sdk_sqs::Client::new(&config),
            url: "http://localhost/hold".to_owned(),
            max_seconds: 120,
        },
        quarantine: Quarantine {
            queues: aws_sdk_sqs::Client::new(&config),
            url: "http://localhost/quarantine".to_owned(),
            source: "store-readings",
        },
        // The readings have fixed dates.
        max_age_days: 36_500,
    };
    let started = Instant::now();
    for _ in 0..repeats {
        let response = step.handle(batch, Deadline::after(Duration::from_hours(1))).await;
        let response = response.map_err(|failure| anyhow::anyhow!("{failure}"))?;
        anyhow::ensure!(response.batch_item_failures.is_empty(), "{response:?}");
    }
    let seconds = started.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let per_second = samples as f64 * f64::from(repeats) / seconds;
    let status = fs::read_to_string("/proc/self/status")
        .context("can't read the memory from /proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    println!("{samples} {per_second:.0} {}", peak.trim());
    Ok(())
}
