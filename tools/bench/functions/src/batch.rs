//! Measures store-readings with the largest batch that Lambda sends. Each bundle in it has the smallest possible size:
//! one sample of one sensor.

use std::{collections::HashMap, path::Path, sync::Arc};

use anyhow::Result;
use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{OnboardingId, OperatorId, SensorId, SiteId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    aws::Source,
    function::Function,
    process::{Bench, Program},
};

/// The maximum batch size of a stream, in records.
const RECORDS: usize = 10_000;

/// The measurement of this batch.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Batch {
    /// Number of records. Each record is a bundle of a different site.
    pub records: usize,
    /// Peak memory.
    pub peak_bytes: u64,
    /// Duration without a CPU quota.
    pub seconds: f64,
}

/// Invokes store-readings with the batch once.
pub async fn measure(bench: &Bench, store: &Function, binaries: &Path) -> Result<Batch> {
    let (mut records, mut rows) = (Vec::with_capacity(RECORDS), HashMap::new());
    for number in 0..RECORDS {
        let site = SiteId::registered(OperatorId::DEFAULT, "bench", &number.to_string());
        let sensor = SensorId::from_onboarding(OnboardingId::from_site(site), 0);
        records.push(record(number, site, sensor));
        rows.insert(sensor.to_string(), row(site, sensor));
    }
    let event = json!({ "Records": records }).to_string().into();
    let source = Source::Rows(Arc::new(rows));
    let mut process = bench.start(&Program::of(store, binaries), source, &[]).await?;
    let (duration, _) = process.invoke(&event).await?;
    let memory = process.memory()?;
    process.end().await?;
    let seconds = (duration.as_secs_f64() * 100.0).round() / 100.0;
    Ok(Batch { records: RECORDS, peak_bytes: memory.peak, seconds })
}

fn record(number: usize, site: SiteId, sensor: SensorId) -> Value {
    let bundle = json!({
        "bundleId": number.to_string(),
        "siteId": site,
        "series": [{ "sensorId": sensor, "samples": [["2016-01-01T00:00:00Z", -7.6]] }],
    });
    json!({
        "kinesis": {
            "kinesisSchemaVersion": "1.0",
            "partitionKey": site,
            "sequenceNumber": format!("{number:056}"),
            "data": STANDARD.encode(bundle.to_string()),
            "approximateArrivalTimestamp": 1_451_606_400.987,
        },
        "eventSource": "aws:kinesis",
        "eventVersion": "1.0",
        "eventID": format!("shardId-000000000000:{number:056}"),
        "eventName": "aws:kinesis:record",
        "invokeIdentityArn": "arn:aws:iam::123456789012:role/lambda",
        "awsRegion": "eu-central-1",
        "eventSourceARN": "arn:aws:kinesis:eu-central-1:123456789012:stream/readings",
    })
}

/// Returns the row of an active sensor, as project-sensors writes it.
fn row(site: SiteId, sensor: SensorId) -> Value {
    json!({
        "sensorId": { "S": sensor },
        "row": { "S": "SENSOR" },
        "siteId": { "S": site },
        "sensor": { "M": {
            "sensorId": { "S": sensor },
            "metric": { "S": "air_temperature" },
            "unit": { "S": "Cel" },
        } },
    })
}
