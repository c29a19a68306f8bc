//! Readings: sending and querying them, and their records in the tables and the quarantine.

use std::{collections::HashMap, io::Write, sync::LazyLock};

use anyhow::{Context, Result, bail};
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_kinesis::{primitives::Blob, types::PutRecordsRequestEntry};
use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{
    Metric, SensorId, SiteId, Timestamp, names,
    readings::{BundleId, TimeRange},
    sample::Sample,
};
use flate2::{Compression, write::GzEncoder};
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Stack,
    api::{Call, Response},
    failures::Failure,
    wait::{FAILURE_TIMEOUT, Poll, TIMEOUT, until},
};

/// Returns a time of the day before yesterday (UTC) as RFC 3339, such as `first_day("00:10:00")`. Tests use recent
/// days, because old samples are refused.
#[must_use]
pub fn first_day(time: &str) -> String {
    days_ago(2, time)
}

/// Returns a time of yesterday (UTC) as RFC 3339. All of that day is in the past.
#[must_use]
pub fn second_day(time: &str) -> String {
    days_ago(1, time)
}

/// Returns a time of an earlier day (UTC) as RFC 3339. It counts from the start of this process, so that the days do not
/// change at midnight.
#[must_use]
pub fn days_ago(days: i64, time: &str) -> String {
    static START: LazyLock<Timestamp> = LazyLock::new(Timestamp::now);
    let day = START.plus_millis(-days * 24 * 60 * 60 * 1000).to_string();
    format!("{}T{time}Z", &day[..10])
}

/// A sensor in the response of `GET /sites/{siteId}`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiteSensor {
    /// Its id.
    pub sensor_id: SensorId,
    /// What it measures.
    pub metric: Metric,
    /// UCUM code.
    pub unit: String,
}

/// An hour or a day of a sensor's readings, aggregated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bucket {
    /// When it begins.
    pub start: Timestamp,
    /// The number of samples with a value of the requested quality.
    pub count: usize,
    /// The minimum. `None` if no sample counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// The maximum. `None` if no sample counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// The mean. `None` if no sample counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean: Option<f64>,
}

/// A revision of a sensor's readings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Revision {
    /// The bundle that has the revision.
    pub bundle_id: BundleId,
    /// The number, above 1.
    pub revision: u32,
    /// Why the readings were revised.
    pub reason: String,
    /// The range that it replaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaces: Option<TimeRange>,
    /// The time of its first sample. `None` without samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// The end of the range of its samples, exclusive. `None` without samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Timestamp>,
    /// The number of samples.
    pub samples: usize,
    /// When it arrived.
    pub arrived_at: Timestamp,
}

/// The position of a record in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The shard.
    pub shard_id: String,
    /// The position in the shard.
    pub sequence_number: String,
}

/// A record that `store-readings` quarantined.
#[derive(Clone, Debug)]
pub struct QuarantinedRecord {
    /// The failure that records it.
    pub failure: Failure,
    record: Record,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    kinesis: KinesisData,
    #[serde(rename = "eventID")]
    event_id: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KinesisData {
    partition_key: String,
    sequence_number: String,
    data: String,
}

impl QuarantinedRecord {
    /// Parses the record in a failure of a stream's consumer.
    pub fn from_failure(failure: Failure) -> Result<Self> {
        let record = failure.payload()?;
        let record = serde_json::from_value(record).with_context(|| format!("{failure:?}"))?;
        Ok(Self { failure, record })
    }

    /// Returns the record's position in the stream.
    #[must_use]
    pub fn position(&self) -> Position {
        let shard = self.record.event_id.split(':').next().unwrap_or_default();
        let sequence_number = self.record.kinesis.sequence_number.clone();
        Position { shard_id: shard.to_owned(), sequence_number }
    }

    /// Returns the record's partition key up to the `/` before the sender. This is the site, unless a producer wrote
    /// another key directly.
    #[must_use]
    pub fn partition_key(&self) -> &str {
        let key = &self.record.kinesis.partition_key;
        key.split_once('/').map_or(key, |(site, _)| site)
    }

    /// Returns the record's data.
    pub fn payload(&self) -> Result<Vec<u8>> {
        Ok(STANDARD.decode(&self.record.kinesis.data)?)
    }
}

/// Compresses data with gzip, which producers may do.
pub fn gzip(data: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(data)?;
    Ok(encoder.finish()?)
}

/// A row of a table, in the SDK's format.
pub type Item = HashMap<String, AttributeValue>;

/// Returns an item's size in bytes by DynamoDB's rules: the sizes of names and values. A number takes one byte for
/// each two digits, plus one.
pub fn item_bytes(item: &Item) -> Result<usize> {
    let size = |(name, value): (&String, &AttributeValue)| {
        let size = match value {
            AttributeValue::S(text) => text.len(),
            AttributeValue::B(bytes) => bytes.as_ref().len(),
            AttributeValue::N(number) => {
                number.chars().filter(char::is_ascii_digit).count().div_ceil(2) + 1
            }
            other => bail!("unexpected type of {name} in a row of readings: {other:?}"),
        };
        Ok(name.len() + size)
    };
    item.iter().map(size).sum()
}

impl Stack {
    /// Returns the sensors of a site.
    pub async fn sensors(&self, site: SiteId) -> Result<Vec<SiteSensor>> {
        let response = self.site(site).await?;
        if response.status != 200 {
            bail!("GET /sites/{site} returned {response}");
        }
        serde_json::from_value(response.body["sensors"].clone())
            .context("the sensors in the response are invalid")
    }

    /// Waits until readings of all these sensors are accepted. An event registers new sensors with telemetry.
    pub async fn wait_for_sensors(
        &self,
        sensors: impl IntoIterator<Item = SensorId>,
    ) -> Result<()> {
        let waits = sensors.into_iter().map(async |sensor| {
            until(
                &format!("sensor {sensor} to be registered with telemetry"),
                TIMEOUT,
                async || {
                    let response = self.readings(sensor, "limit=1").await?;
                    Ok(if response.status == 200 {
                        Poll::Ready(())
                    } else {
                        Poll::Pending(response)
                    })
                },
            )
            .await
        });
        try_join_all(waits).await.map(drop)
    }

    /// Calls `GET /sensors/{sensorId}/readings` with this query.
    pub async fn readings(&self, sensor: SensorId, query: &str) -> Result<Response> {
        self.call(Call::get(format!("/sensors/{sensor}/readings?{query}"))).await
    }

    /// Returns a sensor's samples from all pages.
    pub async fn samples(&self, sensor: SensorId, query: &str) -> Result<Vec<Sample>> {
        self.pages(&format!("/sensors/{sensor}/readings"), query, "samples").await
    }

    /// Returns a sensor's aggregated hours or days from all pages.
    pub async fn buckets(&self, sensor: SensorId, query: &str) -> Result<Vec<Bucket>> {
        self.pages(&format!("/sensors/{sensor}/readings"), query, "buckets").await
    }

    /// Returns the revisions of a sensor's readings from all pages.
    pub async fn revisions(&self, sensor: SensorId, query: &str) -> Result<Vec<Revision>> {
        self.pages(&format!("/sensors/{sensor}/revisions"), query, "revisions").await
    }

    async fn pages<T: for<'de> Deserialize<'de>>(
        &self,
        path: &str,
        query: &str,
        member: &str,
    ) -> Result<Vec<T>> {
        let mut all = Vec::new();
        let mut page = query.to_owned();
        loop {
            let call = Call::get(format!("{path}?{page}"));
            let Response { status, body, .. } = self.call(call).await?;
            let Value::Array(entries) = &body[member] else {
                bail!("GET {path}?{page} returned {status}: {body}");
            };
            for entry in entries {
                all.push(serde_json::from_value(entry.clone())?);
            }
            match body.get("next") {
                None => return Ok(all),
                Some(next) => {
                    let next = next.as_str().context("the page token is not a string")?;
                    page = format!("{query}&next={next}");
                }
            }
        }
    }

    /// Puts a record on the readings stream directly.
    pub async fn put_record(&self, key: &str, data: impl Into<Vec<u8>>) -> Result<Position> {
        let put = self
            .kinesis
            .put_record()
            .stream_name(self.named(names::READINGS))
            .partition_key(key)
            .data(Blob::new(data))
            .send()
            .await?;
        let (shard_id, sequence_number) = (put.shard_id, put.sequence_number);
        Ok(Position { shard_id, sequence_number })
    }

    /// Puts records with one partition key on the readings stream, in one call.
    pub async fn put_records(&self, key: &str, records: Vec<Vec<u8>>) -> Result<()> {
        let entry = |data| {
            PutRecordsRequestEntry::builder().partition_key(key).data(Blob::new(data)).build()
        };
        let entries = records.into_iter().map(entry).collect::<Result<Vec<_>, _>>()?;
        let stream = self.named(names::READINGS);
        let put = self.kinesis.put_records().stream_name(stream).set_records(Some(entries));
        let put = put.send().await?;
        if put.failed_record_count().unwrap_or_default() > 0 {
            bail!("the stream rejected some records: {put:?}");
        }
        Ok(())
    }

    /// Returns the records that `store-readings` quarantined.
    pub async fn quarantine(&self) -> Result<Vec<QuarantinedRecord>> {
        let failures = self.failures_of("store-readings").await?.into_iter();
        failures
            .filter(|failure| failure.kind == "QUARANTINED")
            .map(QuarantinedRecord::from_failure)
            .collect()
    }

    /// Waits until `count` records with this partition key are quarantined. Returns all of them.
    pub async fn wait_for_quarantined(
        &self,
        key: &str,
        count: usize,
    ) -> Result<Vec<QuarantinedRecord>> {
        let what = format!("{count} quarantined records of {key}");
        until(&what, FAILURE_TIMEOUT, async || {
            let mut records = self.quarantine().await?;
            records.retain(|record| record.partition_key() == key);
            Ok(if records.len() >= count {
                Poll::Ready(records)
            } else {
                Poll::Pending(format!("{records:?}"))
            })
        })
        .await
    }

    /// Returns a sensor's rows of samples, in the order of their first sample.
    pub async fn series_rows(&self, sensor: SensorId) -> Result<Vec<Item>> {
        let query = self
            .dynamodb()
            .query()
            .table_name(self.named(names::READINGS))
            .consistent_read(true)
            .key_condition_expression("sensorId = :sensorId")
            .expression_attribute_values(":sensorId", AttributeValue::S(sensor.to_string()));
        let mut items = query.into_paginator().items().send();
        let mut rows = Vec::new();
        while let Some(item) = items.next().await {
            rows.push(item?);
        }
        // The key of a row of samples begins with the time of its first sample. Other keys are SENSOR and REVISION/...
        let begins_with_a_time = |key: &AttributeValue| {
            key.as_s().is_ok_and(|key| key.starts_with(|first: char| first.is_ascii_digit()))
        };
        rows.retain(|row: &Item| row.get("row").is_some_and(begins_with_a_time));
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_row_follows_dynamodbs_rules() -> Result<()> {
        let item = HashMap::from([
            ("sensorId".to_owned(), AttributeValue::S("0123456789".to_owned())),
            ("end".to_owned(), AttributeValue::N("1451606400000".to_owned())),
            ("samples".to_owned(), AttributeValue::B(vec![0; 241].into())),
        ]);
        assert_eq!(item_bytes(&item)?, (8 + 10) + (3 + 7 + 1) + (7 + 241));
        Ok(())
    }
}
