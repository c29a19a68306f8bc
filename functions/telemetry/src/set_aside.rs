//! What happens with a record that can't be stored completely: it is put on hold, quarantined, or delivered again.

use std::{borrow::Cow, io::Read};

use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{
    OnboardingId, SensorId, SiteId, Timestamp,
    input::{MAX_LINE, truncate},
    readings::MAX_SERIES,
    stream::Record,
};
use fault::InvalidInput;
use flate2::{Compression, read::GzEncoder};
use quarantine::{Quarantine, Reason};
use stream::GZIP;

use crate::{TelemetryError, hold::Hold};

/// The maximum size of a record's data in a message, in base64 characters. SQS takes a message of 1 MiB, including
/// the JSON around the data.
const MAX_MESSAGE_BYTES: usize = 1_000_000;

/// The reason why a record was not stored completely.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// The record does not contain a valid bundle.
    #[error(transparent)]
    Invalid(#[from] InvalidInput),
    /// Some series of a bundle of this site were not stored. They can never be stored, or their sensors are not registered
    /// yet. The others are stored.
    #[error("{}", joined(.1))]
    Refused(SiteId, Vec<TelemetryError>),
    /// The record, or a part of it, was not processed.
    #[error(transparent)]
    Failed(#[from] TelemetryError),
}

/// Joins the messages. The length of the joined text is limited, because the message also contains the record.
fn joined(errors: &[TelemetryError]) -> String {
    let line = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    truncate(line, MAX_LINE)
}

impl RecordError {
    /// Returns the stable name of a permanent error. The name of the first refused series stands for all of them.
    pub(crate) fn permanent(&self) -> Option<&'static str> {
        match self {
            Self::Invalid(_) => Some("InvalidInput"),
            Self::Refused(_, errors) => errors.first().and_then(TelemetryError::permanent),
            Self::Failed(error) => error.permanent(),
        }
    }

    /// Returns the sensor that the first error is about, and the sensor's site in the register.
    fn sensor(&self) -> Option<(SensorId, Option<SiteId>)> {
        match self {
            Self::Invalid(_) => None,
            Self::Refused(_, errors) => errors.first().and_then(TelemetryError::sensor),
            Self::Failed(error) => error.sensor(),
        }
    }

    /// Returns whether a refused sensor may be in the register soon: its id is one that the bundle's site can have.
    fn may_be_registered_soon(&self) -> bool {
        let Self::Refused(site, errors) = self else { return false };
        let onboarding = OnboardingId::from_site(*site);
        let is_of_site = |sensor| {
            (0..MAX_SERIES).any(|index| SensorId::from_onboarding(onboarding, index) == sensor)
        };
        errors.iter().any(
            |error| matches!(error, TelemetryError::UnknownSensor(sensor) if is_of_site(*sensor)),
        )
    }
}

/// Puts a record that can't be stored completely on hold, or into the quarantine. Returns `Err` for a record that must be
/// delivered again.
///
/// Data that is too large for a message is compressed with gzip. Compressed data that is still too large is quarantined in
/// parts. A replay can read compressed data, because data on the stream may be compressed, too.
pub(crate) async fn set_aside(
    record: &Record<'_>,
    error: &RecordError,
    hold: &Hold,
    quarantine: &Quarantine,
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
    let data = if record.kinesis.data.len() <= MAX_MESSAGE_BYTES {
        Cow::Borrowed(&*record.kinesis.data)
    } else {
        compressed(record).map_err(|error| format!("{message}; and {error}"))?
    };
    let delay = hold.delay_seconds(record, Timestamp::now());
    let delay = delay.filter(|_| error.may_be_registered_soon() && data.len() <= MAX_MESSAGE_BYTES);
    for part in record.split(&data, MAX_MESSAGE_BYTES) {
        match delay {
            Some(delay) => hold.put(quarantine.message(&part, reason)?, delay).await?,
            None => quarantine.put(&part, reason).await?,
        }
    }
    Ok(())
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
