//! Sites that send readings, and the alerts of their sensors.

use anyhow::Result;
use contracts::{
    Event, Metric, SensorId, Timestamp,
    events::{ReadingBackToNormal, ReadingBreachedThreshold},
    readings::{Bundle, Series, TimeRange},
    sample::Sample,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    Stack,
    capture::correlation,
    sites::{GOOD_CARD, Ids, registration},
    wait::{Poll, TIMEOUT, until},
};

const MINUTE_MILLIS: i64 = 60_000;

/// An active site whose sensors are registered with telemetry.
#[derive(Clone, Debug)]
pub struct Site {
    /// Its ids.
    pub ids: Ids,
    /// Its sensors, in the order of the registration.
    pub sensors: Vec<SensorId>,
}

impl Site {
    /// Onboards a site with a sensor for each metric. The first sensor has these limits.
    pub async fn with_limits(
        stack: &Stack,
        what: &str,
        metrics: &[Metric],
        limits: &[(&str, f64)],
    ) -> Result<Self> {
        Self::registered(stack, what, metrics, |registration| {
            for (name, limit) in limits {
                registration["sensors"][0][*name] = json!(limit);
            }
        })
        .await
    }

    /// Onboards a site that declares this UTC offset, with one sensor without limits.
    pub async fn with_offset(stack: &Stack, what: &str, offset: &str) -> Result<Self> {
        Self::registered(stack, what, &[Metric::AirTemperature], |registration| {
            registration["utcOffset"] = json!(offset);
        })
        .await
    }

    /// Onboards a site with a sensor for each metric and with changes of its registration.
    async fn registered(
        stack: &Stack,
        what: &str,
        metrics: &[Metric],
        change: impl FnOnce(&mut Value),
    ) -> Result<Self> {
        stack.deliver(metrics, 1).await?;
        let name = format!("{what} {}", Uuid::new_v4().simple());
        let mut registration = registration(&name, metrics, GOOD_CARD);
        change(&mut registration);
        let ids = stack.register(&Uuid::new_v4().to_string(), &registration).await?;
        Self::onboarded(stack, ids).await
    }

    /// Onboards a site with one sensor without limits.
    pub async fn new(stack: &Stack, what: &str) -> Result<Self> {
        Self::with_limits(stack, what, &[Metric::AirTemperature], &[]).await
    }

    /// Waits until a site is active and its sensors are registered with telemetry.
    pub async fn onboarded(stack: &Stack, ids: Ids) -> Result<Self> {
        stack.wait_until_active(ids.site_id).await?;
        let sensors = stack.sensors(ids.site_id).await?;
        let sensors: Vec<_> = sensors.iter().map(|sensor| sensor.sensor_id).collect();
        stack.wait_for_sensors(sensors.iter().copied()).await?;
        Ok(Self { ids, sensors })
    }

    /// Returns the site's id as text. Tests use it as the partition key of records that they put on the stream.
    #[must_use]
    pub fn key(&self) -> String {
        self.ids.site_id.to_string()
    }

    /// Returns a bundle of the first sensor with one value a minute from the start.
    pub fn bundle(&self, id: &str, start: &str, values: &[f64]) -> Result<Bundle> {
        let samples = minutes(start.parse()?, values);
        let series = vec![Series::new(self.sensors[0], samples)];
        Ok(Bundle::new(id.parse()?, self.ids.site_id, series))
    }

    /// Waits until the first sensor has at least `count` samples, and returns all of them.
    pub async fn samples(&self, stack: &Stack, count: usize) -> Result<Vec<Sample>> {
        until(&format!("{count} samples"), TIMEOUT, async || {
            let samples = stack.samples(self.sensors[0], "limit=10000").await?;
            Ok(if samples.len() >= count {
                Poll::Ready(samples)
            } else {
                Poll::Pending(samples.len())
            })
        })
        .await
    }
}

/// Returns samples with one value a minute.
#[must_use]
pub fn minutes(start: Timestamp, values: &[f64]) -> Vec<Sample> {
    let at = |minute| start.plus_millis(minute * MINUTE_MILLIS);
    (0..).map(at).zip(values).map(|(at, value)| Sample::new(at, *value)).collect()
}

/// Returns a revision of a bundle. Each series replaces this range by these samples.
#[must_use]
pub fn revised(
    original: &Bundle,
    revision: u32,
    reason: &str,
    replaces: TimeRange,
    samples: &[Sample],
) -> Bundle {
    let mut revised = original.clone();
    (revised.revision, revised.reason) = (revision, Some(reason.to_owned()));
    for series in &mut revised.series {
        series.replaces = Some(replaces);
        series.samples = samples.to_vec();
    }
    revised
}

/// Returns all samples of the first series of these bundles.
#[must_use]
pub fn samples_of(bundles: &[&Bundle]) -> Vec<Sample> {
    bundles.iter().flat_map(|bundle| bundle.series[0].samples.clone()).collect()
}

/// Returns the alerts of a site from the bus, as type and data, in the order of their sequence.
#[must_use]
pub fn alerts(captured: &[Value], site: &Site) -> Vec<(String, Value)> {
    let onboarding = site.ids.onboarding_id.to_string();
    let kinds = [ReadingBreachedThreshold::TYPE, ReadingBackToNormal::TYPE];
    let mut alerts: Vec<_> = captured
        .iter()
        .filter(|event| correlation(event) == onboarding)
        .filter(|event| kinds.contains(&event["detail-type"].as_str().unwrap_or_default()))
        .collect();
    alerts.sort_by_key(|event| event["detail"]["metadata"]["sequence"].as_u64());
    let type_and_data = |event: &Value| {
        let kind = event["detail-type"].as_str().unwrap_or_default();
        (kind.to_owned(), event["detail"]["data"].clone())
    };
    alerts.into_iter().map(type_and_data).collect()
}
