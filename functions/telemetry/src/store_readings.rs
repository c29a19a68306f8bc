//! Stores the bundles of the readings stream. Each sample is stored once, however often its bundle is delivered
//! ([`crate::series_store`]).
//!
//! A record with a series that can never be stored is sent to telemetry's failure queue (`shared/quarantine`), with its
//! whole payload and the reasons, and the shard continues. The other series of the bundle are stored. A record is put
//! on hold ([`crate::hold`]) if a sensor is not in the register yet but has an id that the bundle's site can have. A
//! transient error stops the site's lane and no other lane. Lambda then delivers the batch again from the first failed
//! record. Rows that were stored in the meantime are not written again.

use std::cell::Cell;

use aws_lambda_events::event::{sqs::SqsMessage, streams::KinesisEventResponse};
use contracts::{
    SiteId, Timestamp,
    input::join_errors,
    quarantine::Quarantined,
    readings::{Series, TimeLimits},
    stream::{Arrival, Record},
};
use fault::{InvocationError, ReplayResponse};
use lambda::{Aws, ConfigError, Deadline};
use quarantine::Quarantine;
use serde_json::value::RawValue;
use stream::SentBundle;

use crate::{
    TelemetryError,
    hold::Hold,
    register::{Register, Standing},
    series_store::{Received, SeriesStore, Stored},
    set_aside::{RecordError, set_aside},
};

/// The dependencies of the functions `store-readings` and `store-held-readings`.
#[derive(Debug)]
pub struct StoreReadings {
    /// Stores the series in the readings table.
    pub series: SeriesStore,
    /// The register of the sensors that may send readings.
    pub register: Register,
    /// The queue for records whose sensors may be in the register soon.
    pub hold: Hold,
    /// The quarantine for records that can never be stored.
    pub quarantine: Quarantine,
    /// The maximum age of a live sample on arrival, in days.
    pub max_age_days: u32,
}

impl StoreReadings {
    /// Creates the step from the environment.
    pub fn from_env(aws: &Aws) -> Result<Self, ConfigError> {
        Ok(Self {
            series: SeriesStore { readings: aws.table("READINGS_TABLE")?, outbox: aws.outbox()? },
            register: Register::from_env(aws)?,
            hold: Hold::from_env(aws)?,
            quarantine: Quarantine::from_env(aws, "store-readings")?,
            max_age_days: lambda::env_number("READINGS_MAX_AGE_DAYS")?,
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

    /// Stores one record that an engineer on call replays.
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
        let arrival = record.arrival();
        let arrived_at = arrival.as_ref().and_then(Arrival::at).unwrap_or(now);
        let limits = TimeLimits::new(now, arrived_at, self.max_age_days);
        let mut sent = stream::bundle(record, limits)?;
        let invalid = std::mem::take(&mut sent.refused);
        let mut refused = self.remove_refused(&mut sent, limits).await?;
        if !invalid.is_empty() {
            refused.insert(0, TelemetryError::InvalidSeries(invalid.into()));
        }
        let received = Received { bundle: &sent.bundle, arrival: arrival.as_ref(), now };
        let (Stored { samples, repeated }, conflicts) = self.series.store(received).await?;
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
    ///
    /// The times of the other series are in UTC afterwards.
    async fn remove_refused(
        &self,
        sent: &mut SentBundle,
        limits: TimeLimits,
    ) -> Result<Vec<TelemetryError>, TelemetryError> {
        let SentBundle { bundle, sender, .. } = sent;
        let sensors = bundle.series.iter().map(|series| series.sensor_id);
        let standings = self.register.standings(bundle.site_id, *sender, sensors).await?;
        let limits = limits.of(bundle.origin);
        let (mut standings, mut refused) = (standings.into_iter(), Vec::new());
        bundle.series.retain_mut(|series| {
            let standing = standings.next().unwrap_or(Standing::Unknown);
            let error = remove_samples(series, bundle.site_id, standing, limits);
            let keep = error.is_none() || !series.samples.is_empty();
            refused.extend(error);
            keep
        });
        Ok(refused)
    }
}

/// Removes the samples that the register does not allow this sensor to send for this site. If it removes or refuses
/// something, returns the reason.
fn remove_samples(
    series: &mut Series,
    site: SiteId,
    standing: Standing,
    limits: TimeLimits,
) -> Option<TelemetryError> {
    let sensor = series.sensor_id;
    let (allowed, error) = match standing {
        // Nothing is known about the site's offset yet, so the record waits like that of an unknown sensor.
        Standing::Registered { sensor: None, .. } if series.is_local => {
            (0, TelemetryError::UnknownSensor(sensor))
        }
        Standing::Registered { retired_at, sensor: registered } => {
            let offset = registered.and_then(|registered| registered.utc_offset);
            match (series.resolve(offset, limits), retired_at) {
                (Err(errors), _) => {
                    let problem = join_errors(&errors);
                    (0, TelemetryError::InvalidTimes { sensor, site, problem })
                }
                (Ok(()), None) => return None,
                (Ok(()), Some(at)) => {
                    let allowed = series.samples.partition_point(|sample| sample.at < at);
                    if allowed == series.samples.len() {
                        return None;
                    }
                    (allowed, TelemetryError::RetiredSensor { sensor, site, at })
                }
            }
        }
        // An empty series is refused, too, because its `replaces` would withdraw samples of other bundles.
        Standing::Unknown => (0, TelemetryError::UnknownSensor(sensor)),
        Standing::OfSite(site) => (0, TelemetryError::SensorOfAnotherSite { sensor, site }),
    };
    series.truncate(allowed);
    Some(error)
}
