//! Quarantine for stream records that can never be processed.
//!
//! The whole record is sent to a failure queue with the reason. Lambda then continues with the later records of the
//! shard. The record can be replayed after the cause is fixed.

use aws_sdk_sqs::Client;
use contracts::{SensorId, SiteId, quarantine::Quarantined};
use lambda::{Aws, ConfigError};
use serde::Serialize;

/// The failure queue of a service.
#[derive(Clone, Debug)]
pub struct Quarantine {
    /// The SQS client.
    pub queues: Client,
    /// The queue's URL.
    pub url: String,
    /// The function that processes a quarantined record when the record is replayed. Its name becomes the source of the
    /// failure.
    pub source: &'static str,
}

/// Why a record can't be processed, with the sensor and its site if they are known.
#[derive(Clone, Copy, Debug)]
pub struct Reason<'a> {
    /// The error's stable name.
    pub error: &'a str,
    /// The message for people.
    pub message: &'a str,
    /// The sensor that the error is about.
    pub sensor_id: Option<SensorId>,
    /// The site to which the sensor register assigns the sensor. The site in the record is only the sender's claim.
    pub sensor_site_id: Option<SiteId>,
}

impl<'a> Reason<'a> {
    /// Creates a reason without a sensor.
    #[must_use]
    pub fn new(error: &'a str, message: &'a str) -> Self {
        Self { error, message, sensor_id: None, sensor_site_id: None }
    }
}

impl Quarantine {
    /// Creates the quarantine with the queue URL in `QUARANTINE_QUEUE_URL`.
    pub fn from_env(aws: &Aws, source: &'static str) -> Result<Self, ConfigError> {
        let url = lambda::env("QUARANTINE_QUEUE_URL")?;
        Ok(Self { queues: Client::new(aws.config()), url, source })
    }

    /// Sends a record to the quarantine. If this returns an error, the caller must report the record as failed, so that
    /// Lambda delivers it again.
    pub async fn put(&self, record: &impl Serialize, reason: Reason<'_>) -> Result<(), String> {
        let Reason { error: name, message, .. } = reason;
        let message = &*keys::mask(message);
        let body = self.message(record, reason)?;
        let sent = self.queues.send_message().queue_url(&self.url).message_body(body).send().await;
        match sent {
            Ok(_) => {
                tracing::error!(error = name, reason = message, "record quarantined");
                metrics::counter!("RecordsQuarantined").increment(1);
                Ok(())
            }
            Err(error) => {
                let error = fault::describe(&error);
                Err(format!(
                    "{message}; and the record can't be sent to the quarantine queue: {error}"
                ))
            }
        }
    }

    /// Returns the message about a quarantined record: a [`Quarantined`] as JSON in ASCII. The reason may quote the record,
    /// so credentials in it are hidden. The record stays as it is.
    pub fn message(&self, record: &impl Serialize, reason: Reason<'_>) -> Result<String, String> {
        let Reason { error, message, sensor_id, sensor_site_id } = reason;
        let quarantined = Quarantined {
            source: self.source.into(),
            error: error.into(),
            reason: keys::mask(message),
            sensor_id,
            sensor_site_id,
            record,
        };
        let body = serde_json::to_string(&quarantined)
            .map_err(|error| format!("{message}; and the record can't be serialized: {error}"))?;
        Ok(ascii(&body))
    }
}

/// Escapes all characters outside ASCII, because SQS refuses some characters that JSON allows.
fn ascii(json: &str) -> String {
    let mut ascii = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            ascii.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                ascii.extend(format!("\\u{unit:04x}").chars());
            }
        }
    }
    ascii
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_ascii_and_parses_to_the_same_text() {
        for text in ["plain", "\u{ffff} \u{fffe}", "ä \u{1f321} \"quoted\" \n"] {
            let json = serde_json::to_string(text).expect("JSON");
            let written = ascii(&json);
            assert!(written.is_ascii(), "{written}");
            assert_eq!(serde_json::from_str::<String>(&written).expect("JSON"), text);
        }
    }
}
