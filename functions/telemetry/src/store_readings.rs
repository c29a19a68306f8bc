//! Stores the bundles of the readings stream. Each series of a bundle becomes a row and is stored once, however
//! often the bundle is delivered.
//!
//! A bundle that can never be stored is put into the quarantine queue, with its whole payload and the reason, and
//! the shard continues. A transient error stops the site's lane and no other lane. Lambda then delivers the batch
//! again from the first failed record. Rows that were stored in the meantime are not written again.

use std::{borrow::Cow, cell::Cell, io::Read};

use aws_lambda_events::event::streams::KinesisEventResponse;
use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{SensorId, SiteId, Timestamp, readings::Bundle, sample::Sample, stream::Record};
use fault::{InvalidInput, InvocationError, ReplayResponse};
use flate2::{Compression, read::GzEncoder};
use futures_util::{StreamExt, stream as futures};
use lambda::Deadline;
use quarantine::{Quarantine, Reason};
use serde_bytes::ByteBuf;
use serde_json::value::RawValue;
use series::{
    SeriesRow,
    packing::{hash, pack},
};
use store::{Commit, Table, Transaction};
use stream::{GZIP, SentBundle};

use crate::{TelemetryError, register::Register};

/// The number of concurrent puts per bundle. A function processes 8 bundles concurrently, and each put takes a
/// connection.
const CONCURRENT_PUTS: usize = 4;

/// The maximum size of a record's data in a message, in base64 characters. SQS takes a message of 1 MiB, including
/// the JSON around the data.
const MAX_MESSAGE_BYTES: usize = 1_000_000;

/// The dependencies of the function `store-readings`.
#[derive(Debug)]
pub struct StoreReadings {
    /// The readings table.
    pub readings: Table,
    /// The register of the sensors that may send readings.
    pub register: Register,
    /// The quarantine for records that can never be stored.
    pub quarantine: Quarantine,
}

/// The result of storing a series or a bundle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stored {
    /// The number of samples that were written.
    samples: usize,
    /// The number of samples that were in the table before.
    repeated: usize,
}

impl StoreReadings {
    /// Stores a batch. The response names the first record that Lambda must deliver again.
    pub async fn handle(
        &self,
        payload: &RawValue,
        deadline: Deadline,
    ) -> Result<KinesisEventResponse, InvocationError> {
        let max_age = Cell::new(0.0);
        let response = stream::consume(payload, deadline, async |record| {
            if let Err(error) = self.record(record).await {
                self.quarantine_record(record, error).await?;
            }
            max_age.set(record.age_millis(Timestamp::now()).max(max_age.get()));
            Ok(())
        });
        let response = response.await;
        // Recorded once per batch, because the metrics collector keeps at most 100 values.
        metrics::histogram!("ReadingsAgeMillis").record(max_age.get());
        response
    }

    /// Stores one record that an operator replays.
    ///
    /// A record that can never be stored is not quarantined again; the result has the reason.
    pub async fn replay(&self, record: &RawValue) -> ReplayResponse {
        let record: Record = match fault::decode(record.get()) {
            Ok(record) => record,
            Err(error) => return ReplayResponse::failed("InvalidInput", error.to_string()),
        };
        match self.record(&record).await {
            Ok(()) => ReplayResponse::Done,
            Err(error) => match error.permanent() {
                Some(name) => ReplayResponse::failed(name, error.to_string()),
                None => ReplayResponse::transient(error.to_string()),
            },
        }
    }

    async fn record(&self, record: &Record<'_>) -> Result<(), RecordError> {
        let now = Timestamp::now();
        let sent = stream::bundle(record, now)?;
        let Stored { samples, repeated } = self.store(&sent, now).await?;
        metrics::counter!("ReadingsStored").increment(samples as u64);
        metrics::counter!("ReadingsRepeated").increment(repeated as u64);
        Ok(())
    }

    /// Stores a bundle. Stores nothing unless all its sensors may send.
    async fn store(&self, sent: &SentBundle, now: Timestamp) -> Result<Stored, TelemetryError> {
        let SentBundle { bundle, sender } = sent;
        let sensors = bundle.series.iter().map(|series| series.sensor_id);
        self.register.check_sensors(bundle.site_id, *sender, sensors).await?;

        let site = bundle.site_id;
        let puts =
            rows(bundle, now).map(|(sensor, samples, row)| self.put(site, sensor, samples, row));
        // All series are tried: a conflict in one series does not affect the others.
        let results: Vec<_> = futures::iter(puts).buffer_unordered(CONCURRENT_PUTS).collect().await;
        let mut stored = Stored::default();
        let mut conflict = Ok(());
        for result in results {
            match result {
                Ok(row) => {
                    stored.samples += row.samples;
                    stored.repeated += row.repeated;
                }
                Err(error) if error.permanent().is_some() => conflict = Err(error),
                // The record is delivered again, and the conflict is found then.
                Err(error) => return Err(error),
            }
        }
        conflict.map(|()| stored)
    }

    /// Stores one row. The conditional write makes it idempotent: an existing row is never overwritten.
    async fn put(
        &self,
        site: SiteId,
        sensor: SensorId,
        samples: usize,
        row: SeriesRow,
    ) -> Result<Stored, TelemetryError> {
        let key = SeriesRow::key(sensor, &row.row);
        let commit = Transaction::on(&self.readings).create(&self.readings, &key, &row).commit();
        match commit.await? {
            Commit::Done => Ok(Stored { samples, repeated: 0 }),
            Commit::Refused(refused) => match refused.row::<SeriesRow>(&key)? {
                Some(existing) if existing.hash == row.hash => {
                    Ok(Stored { samples: 0, repeated: samples })
                }
                _ => Err(TelemetryError::BundleConflict { sensor, site, row: row.row }),
            },
        }
    }

    /// Puts a record that can never be stored into the quarantine.
    ///
    /// Data that is too large for a message is compressed with gzip. Compressed data that is still too large is sent in
    /// parts. A replay can read compressed data, because data on the stream may be compressed, too. Returns `Err` for a
    /// record that must be delivered again.
    async fn quarantine_record(
        &self,
        record: &Record<'_>,
        error: RecordError,
    ) -> Result<(), String> {
        let message = error.to_string();
        let Some(name) = error.permanent() else { return Err(message) };
        let sensor = error.sensor();
        let reason = Reason {
            error: name,
            message: &message,
            sensor_id: sensor.map(|(sensor, _)| sensor),
            sensor_site_id: sensor.and_then(|(_, site)| site),
        };
        if record.kinesis.data.len() <= MAX_MESSAGE_BYTES {
            return self.quarantine.put(record, reason).await;
        }
        let compressed = compressed(record).map_err(|error| format!("{message}; and {error}"))?;
        for part in record.split(&compressed, MAX_MESSAGE_BYTES) {
            self.quarantine.put(&part, reason).await?;
        }
        Ok(())
    }
}

/// The reason why a record was not stored.
#[derive(Debug, thiserror::Error)]
enum RecordError {
    /// The record does not contain a valid bundle.
    #[error(transparent)]
    Invalid(#[from] InvalidInput),
    /// The bundle was not stored.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
}

impl RecordError {
    /// Returns the stable name of a permanent error.
    fn permanent(&self) -> Option<&'static str> {
        match self {
            Self::Invalid(_) => Some("InvalidInput"),
            Self::Telemetry(error) => error.permanent(),
        }
    }

    /// Returns the sensor that the error is about, and the sensor's site in the register.
    fn sensor(&self) -> Option<(SensorId, Option<SiteId>)> {
        match self {
            Self::Invalid(_) => None,
            Self::Telemetry(error) => error.sensor(),
        }
    }
}

/// Returns a record's data compressed with gzip, in base64. Returns it unchanged if it is not base64 or is gzip
/// already.
fn compressed<'a>(record: &'a Record<'_>) -> Result<Cow<'a, str>, String> {
    match stream::data(record) {
        Ok(data) if !data.starts_with(&GZIP) => {
            let mut compressed = Vec::new();
            GzEncoder::new(&data[..], Compression::default())
                .read_to_end(&mut compressed)
                .map_err(|error| format!("its data can't be compressed: {error}"))?;
            Ok(STANDARD.encode(compressed).into())
        }
        _ => Ok(Cow::Borrowed(&*record.kinesis.data)),
    }
}

/// Returns the rows of a bundle, each with its sensor and its number of samples.
pub fn rows(bundle: &Bundle, now: Timestamp) -> impl Iterator<Item = (SensorId, usize, SeriesRow)> {
    bundle.series.iter().flat_map(move |series| {
        let mut first = 0;
        split(&series.samples).filter_map(move |samples| {
            let (start, end) = (samples.first()?.at, samples.last()?.at);
            let qualifiers = series.qualifiers.part(first..first + samples.len());
            first += samples.len();
            let row = SeriesRow {
                row: SeriesRow::sort_key(start, &bundle.bundle_id),
                end: end.millis(),
                stored_at: now.millis(),
                samples: ByteBuf::from(pack(samples, &qualifiers)),
                hash: ByteBuf::from(hash(samples, &qualifiers)),
            };
            Some((series.sensor_id, samples.len(), row))
        })
    })
}

/// Splits samples into rows within the limits on a row's samples and time span.
fn split(samples: &[Sample]) -> impl Iterator<Item = &[Sample]> {
    let mut rest = samples;
    std::iter::from_fn(move || {
        let end = rest.first()?.at.plus_millis(SeriesRow::MAX_SPAN_MILLIS);
        let within =
            rest.iter().take(SeriesRow::MAX_SAMPLES).take_while(|sample| sample.at < end).count();
        let (row, remaining) = rest.split_at(within);
        rest = remaining;
        Some(row)
    })
}
