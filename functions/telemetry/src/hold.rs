//! The hold queue: records that came before the sensors of their site were in the register.
//!
//! A site may send as soon as its sensors are provisioned. The register gets them some time later, by an event. A record
//! that names such a sensor waits in the hold queue, so that it does not stop the records behind it in its shard.
//! store-held-readings stores it, or holds it again. [`MAX_HOLD_MILLIS`] after its arrival it is quarantined.

use aws_sdk_sqs::Client;
use contracts::{Timestamp, stream::Record};
use lambda::{Aws, ConfigError};

/// The maximum time between a record's arrival and its last attempt, in milliseconds.
const MAX_HOLD_MILLIS: f64 = 120_000.0;
/// The shortest time in the hold queue, in milliseconds.
const MIN_DELAY_MILLIS: f64 = 5_000.0;

/// The hold queue.
///
/// A message has the format of the quarantine. The queue's dead-letter queue is the failure queue, so a record that
/// can't be processed for another reason becomes a failure with its payload, too.
#[derive(Clone, Debug)]
pub struct Hold {
    /// The SQS client.
    pub queues: Client,
    /// The queue's URL.
    pub url: String,
}

impl Hold {
    /// Creates the hold queue with the URL in `HOLD_QUEUE_URL`.
    pub fn from_env(aws: &Aws) -> Result<Self, ConfigError> {
        Ok(Self { queues: Client::new(aws.config()), url: lambda::env("HOLD_QUEUE_URL")? })
    }

    /// Sends a message about a record. If that fails, the caller must report the record as failed, not as done.
    pub(crate) async fn put(&self, message: String, delay_seconds: i32) -> Result<(), String> {
        let send = self.queues.send_message().queue_url(&self.url).message_body(message);
        match send.delay_seconds(delay_seconds).send().await {
            Ok(_) => {
                tracing::info!(delay_seconds, "record put on hold");
                metrics::counter!("RecordsHeld").increment(1);
                Ok(())
            }
            Err(error) => {
                let error = fault::describe(&error);
                Err(format!(
                    "the record's sensor is not in the register, and the hold queue can't be reached: {error}"
                ))
            }
        }
    }
}

/// Returns how long to hold a record, in seconds. Returns `None` if it was on hold for the maximum time.
///
/// The delay doubles the record's age. So a record is held at most seven times, and a sensor that is registered within
/// seconds, as usual, costs its record only a few seconds.
pub(crate) fn delay_seconds(record: &Record<'_>, now: Timestamp) -> Option<i32> {
    let age = record.age_millis(now);
    let remaining = MAX_HOLD_MILLIS - age;
    let delay = age.max(MIN_DELAY_MILLIS).min(remaining);
    #[expect(clippy::cast_possible_truncation, reason = "at most 120")]
    (remaining > 0.0).then(|| (delay / 1000.0).ceil() as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a record that arrived this time before `now`.
    fn arrived(now: Timestamp, age_millis: i64) -> Record<'static> {
        let text = r#"{"kinesis": {"partitionKey": "", "sequenceNumber": "", "data": ""}}"#;
        let mut record: Record<'static> = serde_json::from_str(text).expect("a record");
        #[expect(clippy::cast_precision_loss, reason = "exact")]
        let arrival = (now.millis() - age_millis) as f64 / 1000.0;
        record.kinesis.approximate_arrival_timestamp = arrival;
        record
    }

    #[test]
    fn a_record_is_held_until_two_minutes_after_its_arrival() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().expect("a time");
        for (age, delay) in [
            (-1_000, Some(5)),
            (0, Some(5)),
            (4_000, Some(5)),
            (5_200, Some(6)),
            (30_000, Some(30)),
            (90_000, Some(30)),
            (119_900, Some(1)),
            (120_000, None),
            (3_600_000, None),
        ] {
            assert_eq!(delay_seconds(&arrived(now, age), now), delay, "{age}");
        }
    }

    #[test]
    fn a_record_is_held_at_most_seven_times() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().expect("a time");
        let (mut age, mut times) = (0, 0);
        while let Some(delay) = delay_seconds(&arrived(now, age), now) {
            times += 1;
            age += i64::from(delay) * 1000;
        }
        assert_eq!((age, times), (120_000, 6));
    }
}
