//! The hold queue: records that came before the sensors of their site were in the register.
//!
//! A site may send as soon as its sensors are provisioned. The register gets them some time later, by an event. A
//! record that names such a sensor waits in the hold queue, so that it does not stop the records behind it in its
//! shard. store-held-readings stores it, or holds it again. If the sensor is still unknown [`Hold::max_seconds`] after
//! the record's arrival, the record is quarantined.

use aws_sdk_sqs::Client;
use contracts::{Timestamp, stream::Record};
use lambda::{Aws, ConfigError};

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
    /// The maximum time between a record's arrival and its last attempt, in seconds: at most 900, the maximum delay of SQS.
    pub max_seconds: u32,
}

impl Hold {
    /// Creates the hold queue with the URL in `HOLD_QUEUE_URL` and the time in `READINGS_HOLD_SECONDS`.
    pub fn from_env(aws: &Aws) -> Result<Self, ConfigError> {
        Ok(Self {
            queues: Client::new(aws.config()),
            url: lambda::env("HOLD_QUEUE_URL")?,
            max_seconds: lambda::env_number("READINGS_HOLD_SECONDS")?,
        })
    }

    /// Returns how long to hold a record, in seconds. Returns `None` if it was on hold for the maximum time.
    ///
    /// The delay doubles the record's age. So a record is held at most ten times, and a sensor that is registered within
    /// seconds, as usual, costs its record only a few seconds.
    pub(crate) fn delay_seconds(&self, record: &Record<'_>, now: Timestamp) -> Option<i32> {
        delay_seconds(f64::from(self.max_seconds) * 1000.0, record.age_millis(now))
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

/// Returns the delay, in seconds, of a record of this age. An attempt is planned at most one second after the maximum
/// age, because delays are whole seconds. Returns `None` at or above the maximum age.
fn delay_seconds(max_age_millis: f64, age_millis: f64) -> Option<i32> {
    let remaining = max_age_millis - age_millis;
    let delay = age_millis.max(MIN_DELAY_MILLIS).min(remaining);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "at most 900, the maximum of the parameter"
    )]
    (remaining > 0.0).then(|| (delay / 1000.0).ceil() as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_MINUTES: f64 = 120_000.0;

    #[test]
    fn a_record_is_held_until_its_maximum_age() {
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
            assert_eq!(delay_seconds(TWO_MINUTES, f64::from(age)), delay, "{age}");
        }
    }

    #[test]
    fn a_record_is_held_at_most_ten_times() {
        for (max_age, most) in [(10_000, 2), (120_000, 6), (900_000, 9)] {
            let (mut age, mut times) = (0, 0);
            while let Some(delay) = delay_seconds(f64::from(max_age), f64::from(age)) {
                times += 1;
                age += delay * 1000;
            }
            assert_eq!((age, times), (max_age, most));
        }
    }
}
