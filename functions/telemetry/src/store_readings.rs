//! Stores the bundles of the readings stream. Each series of a bundle becomes a row and is stored once, however
//! often the bundle is delivered.
//!
//! A record with a series that can never be stored is put into the quarantine queue, with its whole payload and the
//! reasons, and the shard continues. The other series of the bundle are stored. A record with a sensor that the register
//! may have soon is put on hold ([`crate::hold`]). A transient error stops the site's lane and no other lane. Lambda then
//! delivers the batch again from the first failed record. Rows that were stored in the meantime are not written again.

use std::cell::Cell;

use aws_lambda_events::event::{sqs::SqsMessage, streams::KinesisEventResponse};
use contracts::{
    SensorId, SiteId, Timestamp,
    quarantine::Quarantined,
    readings::{Bundle, Series},
    sample::Sample,
    stream::Record,
};
use fault::{InvocationError, ReplayResponse};
use futures_util::{StreamExt, stream as futures};
use lambda::{Aws, ConfigError, Deadline};
use quarantine::Quarantine;
use serde_bytes::ByteBuf;
use serde_json::value::RawValue;
use series::{
    SeriesRow,
    packing::{hash, pack},
};
use store::{Commit, Table, Transaction};
use stream::SentBundle;

use crate::{
    TelemetryError,
    hold::Hold,
    register::{Register, Standing},
    set_aside::{RecordError, set_aside},
};

/// The number of concurrent puts per bundle. A function processes 8 bundles concurrently, and each put takes a
/// connection.
const CONCURRENT_PUTS: usize = 4;

/// The dependencies of the functions `store-readings` and `store-held-readings`.
#[derive(Debug)]
pub struct StoreReadings {
    /// The readings table.
    pub readings: Table,
    /// The register of the sensors that may send readings.
    pub register: Register,
    /// The queue for records whose sensors may be in the register soon.
    pub hold: Hold,
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
    /// Creates the step from the environment.
    pub fn from_env(aws: &Aws) -> Result<Self, ConfigError> {
        Ok(Self {
            readings: aws.table("READINGS_TABLE")?,
            register: Register::from_env(aws)?,
            hold: Hold::from_env(aws)?,
            quarantine: Quarantine::from_env(aws, "store-readings")?,
        })
    }

    /// Stores a batch. The response names the first record that Lambda must deliver again.
    pub async fn handle(
        &self,
        payload: &RawValue,
        deadline: Deadline,
    ) -> Result<KinesisEventResponse, InvocationError> {
        let max_age = Cell::new(0.0);
        let response = stream::consume(payload, deadline, async |record| {
            self.process(record).await?;
            max_age.set(record.age_millis(Timestamp::now()).max(max_age.get()));
            Ok(())
        });
        let response = response.await;
        // Recorded once per batch, because the metrics collector keeps at most 100 values.
        metrics::histogram!("ReadingsAgeMillis").record(max_age.get());
        response
    }

    /// Stores the record in a message of the hold queue. Returns `Err` for a message that must be delivered again.
    ///
    /// A message that is delivered again after its record was stored changes nothing.
    pub async fn handle_held(&self, message: &SqsMessage) -> Result<(), String> {
        let body = message.body.as_deref().unwrap_or_default();
        let held: Quarantined<'_, Record<'_>> =
            fault::decode(body).map_err(|error| error.to_string())?;
        self.process(&held.record).await
    }

    /// Stores one record, and sets it aside if that is not possible.
    async fn process(&self, record: &Record<'_>) -> Result<(), String> {
        match self.record(record).await {
            Ok(()) => Ok(()),
            Err(error) => set_aside(record, &error, &self.hold, &self.quarantine).await,
        }
    }

    /// Stores one record that an operator replays.
    ///
    /// A record that can never be stored is neither put on hold nor quarantined again; the result has the reason.
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

    /// Stores the series of a record that may be stored. The error has the reasons of all others.
    async fn record(&self, record: &Record<'_>) -> Result<(), RecordError> {
        let now = Timestamp::now();
        let mut sent = stream::bundle(record, now)?;
        let mut refused = self.remove_refused(&mut sent).await?;
        let (Stored { samples, repeated }, conflicts) = self.store(&sent.bundle, now).await?;
        metrics::counter!("ReadingsStored").increment(samples as u64);
        metrics::counter!("ReadingsRepeated").increment(repeated as u64);
        refused.extend(conflicts);
        if refused.is_empty() {
            Ok(())
        } else {
            Err(RecordError::Refused(sent.bundle.site_id, refused))
        }
    }

    /// Removes the series and samples that the register does not allow. Returns the reasons.
    async fn remove_refused(
        &self,
        sent: &mut SentBundle,
    ) -> Result<Vec<TelemetryError>, TelemetryError> {
        let SentBundle { bundle, sender } = sent;
        let sensors = bundle.series.iter().map(|series| series.sensor_id);
        let standings = self.register.standings(bundle.site_id, *sender, sensors).await?;
        let (mut standings, mut refused) = (standings.into_iter(), Vec::new());
        bundle.series.retain_mut(|series| {
            let standing = standings.next().unwrap_or(Standing::Unknown);
            let error = remove_samples(series, bundle.site_id, standing);
            let keep = error.is_none() || !series.samples.is_empty();
            refused.extend(error);
            keep
        });
        Ok(refused)
    }

    /// Stores the series of a bundle. Returns the series that conflict with stored rows beside what was stored.
    async fn store(
        &self,
        bundle: &Bundle,
        now: Timestamp,
    ) -> Result<(Stored, Vec<TelemetryError>), TelemetryError> {
        let site = bundle.site_id;
        let puts =
            rows(bundle, now).map(|(sensor, samples, row)| self.put(site, sensor, samples, row));
        // All series are tried: a conflict in one series does not affect the others.
        let results: Vec<_> = futures::iter(puts).buffered(CONCURRENT_PUTS).collect().await;
        let (mut stored, mut conflicts) = (Stored::default(), Vec::new());
        for result in results {
            match result {
                Ok(row) => {
                    stored.samples += row.samples;
                    stored.repeated += row.repeated;
                }
                Err(error) if error.permanent().is_some() => conflicts.push(error),
                // The record is delivered again, and the conflict is found then.
                Err(error) => return Err(error),
            }
        }
        Ok((stored, conflicts))
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
}

/// Removes the samples of a series that its sensor may not send for this site. Returns the reason if there are any.
fn remove_samples(series: &mut Series, site: SiteId, standing: Standing) -> Option<TelemetryError> {
    let sensor = series.sensor_id;
    let (allowed, error) = match standing {
        Standing::Active => return None,
        Standing::RetiredAt(at) => (
            series.samples.partition_point(|sample| sample.at < at),
            TelemetryError::RetiredSensor { sensor, site, at },
        ),
        Standing::Unknown => (0, TelemetryError::UnknownSensor(sensor)),
        Standing::OfSite(site) => (0, TelemetryError::SensorOfAnotherSite { sensor, site }),
    };
    if allowed == series.samples.len() {
        return None;
    }
    series.truncate(allowed);
    Some(error)
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
