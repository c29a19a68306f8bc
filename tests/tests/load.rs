//! Sends more readings at once than a consumer can process in one invocation, and checks that each is stored
//! once.

use std::time::Duration;

use anyhow::Result;
use contracts::{
    Metric, SensorId, SiteId, Timestamp,
    readings::{Bundle, Series},
    sample::Sample,
};
use tests::{
    Stack,
    readings::gzip,
    sites::{GOOD_CARD, registration},
    wait::{Poll, until},
};
use uuid::Uuid;

const METRIC: Metric = Metric::AirTemperature;
const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

/// The maximum time without a new row. On a busy machine, storing all rows takes minutes, and another site's load may
/// be processed first.
const STALL_TIMEOUT: Duration = Duration::from_mins(5);

/// The maximum number of records that Kinesis accepts in one call.
const MAX_RECORDS: usize = 500;

/// An active site whose sensors are registered with telemetry.
struct Site {
    id: SiteId,
    sensors: Vec<SensorId>,
}

impl Site {
    async fn with_sensors(stack: &Stack, what: &str, count: u32) -> Result<Self> {
        stack.deliver(&[METRIC], count).await?;
        let metrics: Vec<_> = (0..count).map(|_| METRIC).collect();
        let name = format!("{what} {}", Uuid::new_v4().simple());
        let registration = registration(&name, &metrics, GOOD_CARD);
        let ids = stack.register(&Uuid::new_v4().to_string(), &registration).await?;
        stack.wait_until_active(ids.site_id).await?;
        let sensors = stack.sensors(ids.site_id).await?;
        let sensors: Vec<_> = sensors.iter().map(|sensor| sensor.sensor_id).collect();
        stack.wait_for_sensors(sensors.iter().copied()).await?;
        Ok(Self { id: ids.site_id, sensors })
    }

    /// Returns a bundle with a series for each sensor, and a sample for each minute.
    fn bundle(&self, number: u32, start: Timestamp, minutes: u32) -> Result<Bundle> {
        let series = (0_u32..).zip(&self.sensors).map(|(sensor, &sensor_id)| {
            let sample = |minute| {
                let value = f64::from(number % 30) + f64::from(sensor) / 8.0;
                Sample::new(
                    start.plus_millis(i64::from(minute) * MINUTE),
                    value + f64::from(minute) / 64.0,
                )
            };
            Series::new(sensor_id, (0..minutes).map(sample).collect())
        });
        Ok(Bundle::new(format!("b{number:03}").parse()?, self.id, series.collect()))
    }

    /// Puts the bundles on the stream without a pause, compressed by gzip.
    async fn put(&self, stack: &Stack, bundles: &[Bundle]) -> Result<()> {
        for bundles in bundles.chunks(MAX_RECORDS) {
            let records = bundles.iter().map(|bundle| gzip(&serde_json::to_vec(bundle)?));
            stack.put_records(&self.id.to_string(), records.collect::<Result<_>>()?).await?;
        }
        Ok(())
    }

    /// Waits until all of the bundles are stored. Checks that each sensor has one row for each bundle with the
    /// samples that were sent, and that the failures table has nothing about the site.
    async fn assert_stored(&self, stack: &Stack, bundles: &[Bundle]) -> Result<()> {
        for (index, &sensor) in self.sensors.iter().enumerate() {
            let mut rows = 0;
            while rows < bundles.len() {
                let what = format!("more than {rows} of {} rows of {sensor}", bundles.len());
                rows = until(&what, STALL_TIMEOUT, async || {
                    let count = stack.series_rows(sensor).await?.len();
                    Ok(if count > rows { Poll::Ready(count) } else { Poll::Pending(count) })
                })
                .await?;
            }
            assert_eq!(rows, bundles.len());
            let sent = bundles.iter().flat_map(|bundle| bundle.series[index].samples.clone());
            let stored = stack.samples(sensor, "limit=10000&order=asc").await?;
            assert!(
                stored == sent.collect::<Vec<_>>(),
                "the samples of {sensor} differ from those that were sent"
            );
        }
        for consumer in ["store-readings", "detect-breaches"] {
            let failures = stack.failures_about(consumer, &self.id.to_string()).await?;
            assert!(failures.is_empty(), "{failures:?}");
        }
        Ok(())
    }
}

/// Returns the start of the hour that was `hours` hours ago.
fn hours_ago(hours: i64) -> Timestamp {
    let now = Timestamp::now().millis();
    Timestamp::from_millis(now - now % HOUR - hours * HOUR)
}

#[tokio::test]
#[ignore = "takes minutes and slows down the tests after it; run by `make load-test`"]
async fn five_hundred_bundles_of_a_hundred_series_are_stored_once() -> Result<()> {
    let stack = Stack::connect().await?;
    let site = Site::with_sensors(&stack, "a hundred series", 100).await?;
    let start = hours_ago(24);
    let bundles = (0..500_u32)
        .map(|number| site.bundle(number, start.plus_millis(i64::from(number) * 2 * MINUTE), 2));
    let bundles = bundles.collect::<Result<Vec<_>>>()?;
    site.put(&stack, &bundles).await?;
    site.assert_stored(&stack, &bundles).await
}

#[tokio::test]
async fn a_month_of_seven_sensors_is_stored_once() -> Result<()> {
    let stack = Stack::connect().await?;
    let site = Site::with_sensors(&stack, "a month", 7).await?;
    let start = hours_ago(30 * 24);
    let bundles = (0..30 * 24_u32)
        .map(|hour| site.bundle(hour, start.plus_millis(i64::from(hour) * HOUR), 60));
    let bundles = bundles.collect::<Result<Vec<_>>>()?;
    site.put(&stack, &bundles).await?;
    site.assert_stored(&stack, &bundles).await
}
