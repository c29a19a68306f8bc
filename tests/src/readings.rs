//! Readings, as producers send them and users ask for them, and what became of them inside.

use std::{collections::HashMap, io::Write};

use anyhow::{Context, Result, bail};
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_kinesis::{primitives::Blob, types::PutRecordsRequestEntry};
use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{Metric, SensorId, SiteId, Timestamp, names, readings::Sample};
use flate2::{Compression, write::GzEncoder};
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Stack,
    api::{Answer, Call},
    failures::Failure,
    wait::{Look, PATIENCE, until},
};

/// A sensor, as `GET /sites/{siteId}` tells of it.
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

/// An hour or a day of a sensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bucket {
    /// When it begins.
    pub start: Timestamp,
    /// How many samples there are.
    pub count: usize,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// All, divided by the count.
    pub mean: f64,
}

/// Where a record stands in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The shard.
    pub shard_id: String,
    /// Its place there.
    pub sequence_number: String,
}

/// A record that `store-readings` set aside.
#[derive(Clone, Debug)]
pub struct Quarantined {
    /// Its failure.
    pub failure: Failure,
    record: Record,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    kinesis: Put,
    #[serde(rename = "eventID")]
    event_id: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Put {
    partition_key: String,
    sequence_number: String,
    data: String,
}

impl Quarantined {
    /// The record in a failure of a stream's consumer.
    pub fn of(failure: Failure) -> Result<Self> {
        let record = failure.payload()?;
        let record = serde_json::from_value(record).with_context(|| format!("{failure:?}"))?;
        Ok(Self { failure, record })
    }

    /// Where it stood in the stream.
    #[must_use]
    pub fn position(&self) -> Position {
        let shard = self.record.event_id.split(':').next().unwrap_or_default();
        let sequence_number = self.record.kinesis.sequence_number.clone();
        Position { shard_id: shard.to_owned(), sequence_number }
    }

    /// Under which key it was put.
    #[must_use]
    pub fn partition_key(&self) -> &str {
        &self.record.kinesis.partition_key
    }

    /// What was put.
    pub fn payload(&self) -> Result<Vec<u8>> {
        Ok(STANDARD.decode(&self.record.kinesis.data)?)
    }
}

/// Packed as gzip, as a producer may put it on the stream.
pub fn gzip(data: &[u8]) -> Result<Vec<u8>> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::default());
    packer.write_all(data)?;
    Ok(packer.finish()?)
}

/// A row of a table, as DynamoDB answers it.
pub type Item = HashMap<String, AttributeValue>;

/// An item's size as DynamoDB reckons it, in bytes: names and values, a number as one byte for two
/// digits and one more.
pub fn item_bytes(item: &Item) -> Result<usize> {
    let size = |(name, value): (&String, &AttributeValue)| {
        let size = match value {
            AttributeValue::S(text) => text.len(),
            AttributeValue::B(bytes) => bytes.as_ref().len(),
            AttributeValue::N(number) => {
                number.chars().filter(char::is_ascii_digit).count().div_ceil(2) + 1
            }
            other => bail!("{name} is {other:?}; no row of readings has that"),
        };
        Ok(name.len() + size)
    };
    item.iter().map(size).sum()
}

impl Stack {
    /// The sensors of a site.
    pub async fn sensors(&self, site: SiteId) -> Result<Vec<SiteSensor>> {
        let answer = self.site(site).await?;
        if answer.status != 200 {
            bail!("GET /sites/{site} was answered with {answer}");
        }
        serde_json::from_value(answer.body["sensors"].clone()).context("the site's sensors")
    }

    /// Waits until readings of all these sensors are welcome: who stores them hears of sensors by
    /// event, as everybody else.
    pub async fn sensors_known(&self, sensors: impl IntoIterator<Item = SensorId>) -> Result<()> {
        let known = sensors.into_iter().map(async |sensor| {
            until(&format!("sensor {sensor} to be known"), PATIENCE, async || {
                let answer = self.readings(sensor, "limit=1").await?;
                Ok(if answer.status == 200 { Look::Found(()) } else { Look::Saw(answer) })
            })
            .await
        });
        try_join_all(known).await.map(drop)
    }

    /// `GET /sensors/{sensorId}/readings` with that query.
    pub async fn readings(&self, sensor: SensorId, query: &str) -> Result<Answer> {
        self.call(Call::get(format!("/sensors/{sensor}/readings?{query}"))).await
    }

    /// A sensor's samples, from page to page.
    pub async fn samples(&self, sensor: SensorId, query: &str) -> Result<Vec<Sample>> {
        self.pages(sensor, query, "samples").await
    }

    /// A sensor's hours or days, from page to page.
    pub async fn buckets(&self, sensor: SensorId, query: &str) -> Result<Vec<Bucket>> {
        self.pages(sensor, query, "buckets").await
    }

    async fn pages<T: for<'de> Deserialize<'de>>(
        &self,
        sensor: SensorId,
        query: &str,
        member: &str,
    ) -> Result<Vec<T>> {
        let mut all = Vec::new();
        let mut page = query.to_owned();
        loop {
            let Answer { status, body, .. } = self.readings(sensor, &page).await?;
            let Value::Array(entries) = &body[member] else {
                bail!("the readings of {sensor}, {page}, were answered with {status}: {body}");
            };
            for entry in entries {
                all.push(serde_json::from_value(entry.clone())?);
            }
            match body.get("next") {
                None => return Ok(all),
                Some(next) => {
                    let next = next.as_str().context("a token")?;
                    page = format!("{query}&next={next}");
                }
            }
        }
    }

    /// Puts a record on the readings stream, as a producer with access to it does.
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

    /// Puts records under one key in one call, as a producer with access to the stream does.
    pub async fn put_records(&self, key: &str, records: Vec<Vec<u8>>) -> Result<()> {
        let entry = |data| {
            PutRecordsRequestEntry::builder().partition_key(key).data(Blob::new(data)).build()
        };
        let entries = records.into_iter().map(entry).collect::<Result<Vec<_>, _>>()?;
        let stream = self.named(names::READINGS);
        let put = self.kinesis.put_records().stream_name(stream).set_records(Some(entries));
        let put = put.send().await?;
        if put.failed_record_count().unwrap_or_default() > 0 {
            bail!("the stream refused some of the records: {put:?}");
        }
        Ok(())
    }

    /// The records that `store-readings` set aside.
    pub async fn quarantine(&self) -> Result<Vec<Quarantined>> {
        let failures = self.failures_of("store-readings").await?.into_iter();
        failures.filter(|failure| failure.kind == "QUARANTINED").map(Quarantined::of).collect()
    }

    /// Waits until so many records with that partition key are set aside; all of them.
    pub async fn quarantined(&self, key: &str, count: usize) -> Result<Vec<Quarantined>> {
        until(&format!("{count} quarantined records of {key}"), PATIENCE, async || {
            let mut records = self.quarantine().await?;
            records.retain(|record| record.partition_key() == key);
            Ok(if records.len() >= count {
                Look::Found(records)
            } else {
                Look::Saw(format!("{records:?}"))
            })
        })
        .await
    }

    /// The rows of a sensor's samples, by the time of their first.
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
        let of_register = AttributeValue::S("SENSOR".to_owned());
        rows.retain(|row: &Item| row.get("row") != Some(&of_register));
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_as_large_as_dynamodb_reckons() -> Result<()> {
        let item = HashMap::from([
            ("sensorId".to_owned(), AttributeValue::S("0123456789".to_owned())),
            ("end".to_owned(), AttributeValue::N("1451606400000".to_owned())),
            ("samples".to_owned(), AttributeValue::B(vec![0; 241].into())),
        ]);
        assert_eq!(item_bytes(&item)?, (8 + 10) + (3 + 7 + 1) + (7 + 241));
        Ok(())
    }
}
