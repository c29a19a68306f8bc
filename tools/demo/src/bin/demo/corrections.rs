//! A file of readings that grows through the day, the correction of a clock that was an hour fast, and a retraction.
//!
//! All three use Alamosa's air pressure again. They are sent for the two days before the day that the demo compares
//! with the station's file.

use anyhow::Result;
use contracts::{
    SensorId, SiteId, Timestamp,
    readings::{Bundle, Series, TimeRange},
    sample::Sample,
};
use serde::Serialize;
use tests::{
    Stack,
    data_logger::send,
    readings::{Revision, second_day},
    sending::revised,
    wait::{Poll, TIMEOUT, until},
};

const HOUR_MILLIS: i64 = 60 * 60 * 1000;
const DAY_MILLIS: i64 = 24 * HOUR_MILLIS;
/// The hours of the day that the growing file has when it is sent.
const SENT_AFTER_HOURS: [i64; 3] = [6, 12, 24];
/// The hour of the day whose times are corrected.
const FAST_HOUR: i64 = 10;

/// What was corrected.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Corrections {
    pub growing: Vec<GrowingFile>,
    pub revisions: Vec<Revision>,
}

/// A state of the growing file.
#[derive(Debug, Serialize)]
pub struct GrowingFile {
    pub hours: i64,
    pub samples: usize,
}

/// The sensor whose readings are corrected.
#[derive(Clone, Copy, Debug)]
pub struct Corrected<'a> {
    pub site: SiteId,
    pub sensor: SensorId,
    /// A day of samples.
    pub day: &'a [Sample],
}

impl Corrected<'_> {
    /// Sends the growing file and the corrections. Checks after each what the API returns.
    pub async fn run(self, stack: &Stack) -> Result<Corrections> {
        let midnight: Timestamp = second_day("00:00:00").parse()?;
        let growing = self.grow(stack, midnight.plus_millis(-DAY_MILLIS)).await?;
        self.correct(stack, midnight.plus_millis(-2 * DAY_MILLIS)).await?;
        Ok(Corrections { growing, revisions: stack.revisions(self.sensor, "").await? })
    }

    async fn grow(self, stack: &Stack, midnight: Timestamp) -> Result<Vec<GrowingFile>> {
        let mut states = Vec::new();
        for hours in SENT_AFTER_HOURS {
            let samples = self.moved_to(midnight, 0..hours);
            let count = samples.len();
            send(stack, &[&self.bundle("file-of-the-day", samples.clone())?]).await?;
            self.wait_for(stack, midnight, &samples).await?;
            states.push(GrowingFile { hours, samples: count });
        }
        Ok(states)
    }

    /// Sends an hour of samples, moves them to the hour before, and withdraws the second half of that hour.
    async fn correct(self, stack: &Stack, midnight: Timestamp) -> Result<()> {
        let sent = self.moved_to(midnight, FAST_HOUR..FAST_HOUR + 1);
        let moved = |sample: &Sample| Sample { at: sample.at.plus_millis(-HOUR_MILLIS), ..*sample };
        let right: Vec<_> = sent.iter().map(moved).collect();
        let from = midnight.plus_millis(FAST_HOUR * HOUR_MILLIS);
        let half_before = from.plus_millis(-HOUR_MILLIS / 2);

        let original = self.bundle("fast-clock", sent.clone())?;
        send(stack, &[&original]).await?;
        self.wait_for(stack, midnight, &sent).await?;
        let hour = TimeRange { from, to: from.plus_millis(HOUR_MILLIS) };
        let reason = "The logger's clock was an hour fast.";
        send(stack, &[&revised(&original, 2, reason, hour, &right)]).await?;
        self.wait_for(stack, midnight, &right).await?;
        // The original arrives again, after its correction. It has no effect.
        send(stack, &[&original]).await?;
        let half = TimeRange { from: half_before, to: from };
        let reason = "The barometer was being cleaned.";
        send(stack, &[&revised(&original, 3, reason, half, &[])]).await?;
        let rest: Vec<_> = right.into_iter().filter(|sample| sample.at < half_before).collect();
        self.wait_for(stack, midnight, &rest).await
    }

    /// Returns the samples of these hours of the day, moved to the day that begins at `midnight`.
    fn moved_to(self, midnight: Timestamp, hours: std::ops::Range<i64>) -> Vec<Sample> {
        let time_of_day = |sample: &Sample| sample.at.millis().rem_euclid(DAY_MILLIS);
        self.day
            .iter()
            .filter(|sample| hours.contains(&(time_of_day(sample) / HOUR_MILLIS)))
            .map(|sample| Sample { at: midnight.plus_millis(time_of_day(sample)), ..*sample })
            .collect()
    }

    fn bundle(self, id: &str, samples: Vec<Sample>) -> Result<Bundle> {
        let series = vec![Series::new(self.sensor, samples)];
        Ok(Bundle::new(id.parse()?, self.site, series))
    }

    /// Waits until the API returns exactly these samples of a day.
    async fn wait_for(self, stack: &Stack, midnight: Timestamp, expected: &[Sample]) -> Result<()> {
        let to = midnight.plus_millis(DAY_MILLIS);
        let query = format!("from={midnight}&to={to}&quality=all&flags=true&limit=10000");
        until(&format!("the {} samples of {midnight}", expected.len()), TIMEOUT, async || {
            let samples = stack.samples(self.sensor, &query).await?;
            Ok(if samples == expected {
                Poll::Ready(())
            } else {
                Poll::Pending(format!("{} samples", samples.len()))
            })
        })
        .await
    }
}
