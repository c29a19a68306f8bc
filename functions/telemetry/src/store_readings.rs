//! Stores the bundles of the readings stream: a row for each series, once, however often a bundle
//! comes.
//!
//! A bundle that can't be stored ever goes, whole and with the reason, to the quarantine queue, and
//! the shard moves on. Trouble stops its site's lane and no other; Lambda delivers again from the
//! first record that failed, and what was stored meanwhile refuses to be stored twice.

use std::{borrow::Cow, cell::Cell, io::Read};

use aws_lambda_events::event::streams::KinesisEventResponse;
use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{
    SensorId, SiteId, Timestamp,
    readings::{Bundle, Sample},
    stream::Record,
};
use fault::{Failure, InvalidInput, Replayed};
use flate2::{Compression, read::GzEncoder};
use futures_util::{StreamExt, stream as futures};
use lambda::Deadline;
use quarantine::{Quarantine, Reason};
use serde_bytes::ByteBuf;
use serde_json::value::RawValue;
use series::{SeriesRow, packing::pack};
use sha2::{Digest, Sha256};
use store::{Commit, Table, Transaction};
use stream::GZIP;

use crate::{TelemetryError, register::Register};

/// How many series of a bundle are put at once. A function works on 8 bundles at once, and each put
/// takes a connection.
const PUTS_AT_ONCE: usize = 4;

/// Base64 characters of a record's data: SQS takes a message of 1 MiB, ours around it included.
const MOST_A_MESSAGE: usize = 1_000_000;

/// What the step needs.
#[derive(Debug)]
pub struct StoreReadings {
    /// The readings table.
    pub readings: Table,
    /// Who may send readings.
    pub register: Register,
    /// For what can't be stored, ever.
    pub quarantine: Quarantine,
}

/// What became of a series, or of a bundle's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stored {
    /// Samples that are in the table now.
    samples: usize,
    /// Samples that were there already.
    repeated: usize,
}

impl StoreReadings {
    /// Stores a batch; answers with the first record that has to come again.
    pub async fn handle(
        &self,
        payload: &RawValue,
        deadline: Deadline,
    ) -> Result<KinesisEventResponse, Failure> {
        let oldest = Cell::new(0.0);
        let answer = stream::consume(payload, deadline, async |record| {
            if let Err(refused) = self.record(record).await {
                self.set_aside(record, refused).await?;
            }
            oldest.set(record.age_millis(Timestamp::now()).max(oldest.get()));
            Ok(())
        });
        let answer = answer.await;
        // Once a batch: the metrics' collector takes a hundred values and no more.
        metrics::histogram!("ReadingsAgeMillis").record(oldest.get());
        answer
    }

    /// Stores one record that an operator replays. What can't be stored ever is not set aside again: the
    /// answer says why.
    pub async fn replay(&self, record: &RawValue) -> Replayed {
        let record: Record = match fault::decode(record.get()) {
            Ok(record) => record,
            Err(error) => return Replayed::failed("InvalidInput", error.to_string()),
        };
        match self.record(&record).await {
            Ok(()) => Replayed::Done,
            Err(error) => match error.permanent() {
                Some(name) => Replayed::failed(name, error.to_string()),
                None => Replayed::transient(error.to_string()),
            },
        }
    }

    async fn record(&self, record: &Record<'_>) -> Result<(), Refused> {
        let now = Timestamp::now();
        let bundle = stream::bundle(record, now)?;
        let Stored { samples, repeated } = self.store(&bundle, now).await?;
        metrics::counter!("ReadingsStored").increment(samples as u64);
        metrics::counter!("ReadingsRepeated").increment(repeated as u64);
        Ok(())
    }

    /// Nothing of a bundle is stored unless each of its sensors may send.
    async fn store(&self, bundle: &Bundle, now: Timestamp) -> Result<Stored, TelemetryError> {
        let sensors = bundle.series.iter().map(|series| series.sensor_id);
        self.register.admit(bundle.site_id, sensors).await?;

        let site = bundle.site_id;
        let puts =
            rows(bundle, now).map(|(sensor, samples, row)| self.put(site, sensor, samples, row));
        // All of them are tried: a row that is in the way of one series is not in the others'.
        let ends: Vec<_> = futures::iter(puts).buffer_unordered(PUTS_AT_ONCE).collect().await;
        let mut stored = Stored::default();
        let mut conflict = Ok(());
        for end in ends {
            match end {
                Ok(end) => {
                    stored.samples += end.samples;
                    stored.repeated += end.repeated;
                }
                Err(error) if error.permanent().is_some() => conflict = Err(error),
                // Comes again, and finds the conflict then.
                Err(trouble) => return Err(trouble),
            }
        }
        conflict.map(|()| stored)
    }

    /// The row's key is the guard: what is there is not written again.
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
                Some(there) if there.hash == row.hash => {
                    Ok(Stored { samples: 0, repeated: samples })
                }
                _ => Err(TelemetryError::BundleConflict { sensor, site, row: row.row }),
            },
        }
    }

    /// Puts a record that can't be stored ever into the quarantine, whole and as it came. Data that is too
    /// large for a message is compressed, as the stream may carry it as well; if that is not enough, it goes
    /// in parts. `Err` for a record that has to come again.
    async fn set_aside(&self, record: &Record<'_>, refused: Refused) -> Result<(), String> {
        let message = refused.to_string();
        let Some(error) = refused.permanent() else { return Err(message) };
        let sensor = refused.sensor();
        let reason = Reason {
            error,
            message: &message,
            sensor_id: sensor.map(|(sensor, _)| sensor),
            sensor_site_id: sensor.and_then(|(_, site)| site),
        };
        if record.kinesis.data.len() <= MOST_A_MESSAGE {
            return self.quarantine.put(record, reason).await;
        }
        let packed = packed(record).map_err(|fault| format!("{message}; and {fault}"))?;
        for part in record.split(&packed, MOST_A_MESSAGE) {
            self.quarantine.put(&part, reason).await?;
        }
        Ok(())
    }
}

/// Why a record was not stored.
#[derive(Debug, thiserror::Error)]
enum Refused {
    /// It is no bundle.
    #[error(transparent)]
    Invalid(#[from] InvalidInput),
    /// Its bundle was not stored.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
}

impl Refused {
    /// The stable name of an error that no retry removes.
    fn permanent(&self) -> Option<&'static str> {
        match self {
            Self::Invalid(_) => Some("InvalidInput"),
            Self::Telemetry(error) => error.permanent(),
        }
    }

    /// The sensor that the error is about, and the site at which the register has it.
    fn sensor(&self) -> Option<(SensorId, Option<SiteId>)> {
        match self {
            Self::Invalid(_) => None,
            Self::Telemetry(error) => error.sensor(),
        }
    }
}

/// A record's data as gzip, in base64; as it is where it is no base64, or gzip already.
fn packed<'a>(record: &'a Record<'_>) -> Result<Cow<'a, str>, String> {
    match stream::data(record) {
        Ok(data) if !data.starts_with(&GZIP) => {
            let mut packed = Vec::new();
            GzEncoder::new(&data[..], Compression::default())
                .read_to_end(&mut packed)
                .map_err(|fault| format!("it can't be packed: {fault}"))?;
            Ok(STANDARD.encode(packed).into())
        }
        _ => Ok(Cow::Borrowed(&*record.kinesis.data)),
    }
}

/// The rows that a bundle becomes, each with its sensor and how many samples it holds.
pub fn rows(bundle: &Bundle, now: Timestamp) -> impl Iterator<Item = (SensorId, usize, SeriesRow)> {
    bundle.series.iter().flat_map(move |series| {
        split(&series.samples).filter_map(move |samples| {
            let (Sample(start, _), Sample(end, _)) = (samples.first()?, samples.last()?);
            let row = SeriesRow {
                row: SeriesRow::sort_key(*start, &bundle.bundle_id),
                end: end.millis(),
                stored_at: now.millis(),
                samples: ByteBuf::from(pack(samples)),
                hash: hash(samples),
            };
            Some((series.sensor_id, samples.len(), row))
        })
    })
}

/// In rows that hold and span no more than a row may.
fn split(samples: &[Sample]) -> impl Iterator<Item = &[Sample]> {
    let mut rest = samples;
    std::iter::from_fn(move || {
        let Sample(start, _) = rest.first()?;
        let most = start.plus_millis(SeriesRow::LONGEST_MILLIS);
        let within = rest.iter().take(SeriesRow::MOST_SAMPLES).take_while(|at| at.0 < most).count();
        let (row, left) = rest.split_at(within);
        rest = left;
        Some(row)
    })
}

/// Of times and values, however they are packed: half of a SHA-256 tells two series apart.
fn hash(samples: &[Sample]) -> ByteBuf {
    let mut hash = Sha256::new();
    for Sample(at, value) in samples {
        hash.update(at.millis().to_le_bytes());
        hash.update(value.to_le_bytes());
    }
    ByteBuf::from(hash.finalize()[..16].to_vec())
}
