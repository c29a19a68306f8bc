//! Computes the expected alerts of a sensor's samples. Tests compare the alerts of `detect-breaches` with them. The two
//! share only `contracts`: the deadband of a metric, and which samples count.

use contracts::{
    Metric, SensorId, Timestamp,
    events::{Limit, ReadingBackToNormal, ReadingBreachedThreshold},
    sample::{Quality, Sample},
};
use serde::{Deserialize, Serialize};

/// A sensor with its limits.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SensorLimits {
    /// The sensor.
    pub sensor_id: SensorId,
    /// What it measures.
    pub metric: Metric,
    /// UCUM code.
    pub unit: String,
    /// The lower limit.
    pub min: Option<f64>,
    /// The upper limit.
    pub max: Option<f64>,
}

/// A change of a sensor's state.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Alert {
    /// The sensor.
    pub sensor_id: SensorId,
    /// What it measures.
    pub metric: Metric,
    /// UCUM code of the value and the limit.
    pub unit: String,
    /// The time of the sample that changed the state.
    pub at: Timestamp,
    /// The value of the sample.
    pub value: f64,
    /// The new state.
    pub became: SensorState,
}

/// The state of a sensor after an alert.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SensorState {
    /// A value is beyond a limit.
    Breached {
        /// The limit.
        limit: Limit,
        /// The limit's value.
        threshold: f64,
    },
    /// The values are within the limits again.
    Normal {
        /// When the breach began.
        #[serde(rename = "breachedAt")]
        breached_at: Timestamp,
    },
}

impl From<ReadingBreachedThreshold> for Alert {
    fn from(event: ReadingBreachedThreshold) -> Self {
        let ReadingBreachedThreshold { sensor_id, metric, unit, at, value, .. } = event;
        let became = SensorState::Breached { limit: event.limit, threshold: event.threshold };
        Self { sensor_id, metric, unit, at, value, became }
    }
}

impl From<ReadingBackToNormal> for Alert {
    fn from(event: ReadingBackToNormal) -> Self {
        let ReadingBackToNormal { sensor_id, metric, unit, at, value, breached_at, .. } = event;
        Self { sensor_id, metric, unit, at, value, became: SensorState::Normal { breached_at } }
    }
}

impl SensorLimits {
    /// Returns the distance from the limits that a sample needs to end a breach.
    fn deadband(&self) -> f64 {
        let band = self.metric.deadband(&self.unit).unwrap_or_default();
        match (self.min, self.max) {
            (Some(min), Some(max)) => band.min((max - min) / 4.0),
            _ => band,
        }
    }

    /// Returns the limit that a value is beyond.
    fn breached_limit(&self, value: f64) -> Option<(Limit, f64)> {
        let below = self.min.filter(|min| value < *min).map(|min| (Limit::Min, min));
        below.or(self.max.filter(|max| value > *max).map(|max| (Limit::Max, max)))
    }

    /// Returns the alerts of these samples, which must be sorted by time.
    #[must_use]
    pub fn alerts(&self, samples: &[Sample]) -> Vec<Alert> {
        let mut breached = None;
        let mut alerts = Vec::new();
        for sample in samples {
            let (at, Some(value)) = (sample.at, sample.counted(Quality::Usable)) else { continue };
            let became = match (breached, self.breached_limit(value)) {
                (Some((current, _)), Some((limit, _))) if current == limit => continue,
                (_, Some((limit, threshold))) => {
                    breached = Some((limit, at));
                    SensorState::Breached { limit, threshold }
                }
                (Some((_, breached_at)), None) => {
                    let band = self.deadband();
                    let is_normal = self.min.is_none_or(|min| value >= min + band)
                        && self.max.is_none_or(|max| value <= max - band);
                    if !is_normal {
                        continue;
                    }
                    breached = None;
                    SensorState::Normal { breached_at }
                }
                (None, None) => continue,
            };
            let (metric, unit) = (self.metric, self.unit.clone());
            alerts.push(Alert { sensor_id: self.sensor_id, metric, unit, at, value, became });
        }
        alerts
    }
}

#[cfg(test)]
mod tests {
    use contracts::{OnboardingId, OperatorId, SiteId};

    use super::*;

    fn expected(min: Option<f64>, max: Option<f64>, values: &[f64]) -> Vec<(i64, &'static str)> {
        let sensor_id = SensorId::from_onboarding(
            OnboardingId::from_site(SiteId::registered(OperatorId::DEFAULT, "", "expected alerts")),
            0,
        );
        let (metric, unit) = (Metric::AirTemperature, "Cel".to_owned());
        let samples: Vec<_> = (0..)
            .zip(values)
            .map(|(at, value)| Sample::new(Timestamp::from_millis(at), *value))
            .collect();
        let limits = SensorLimits { sensor_id, metric, unit, min, max };
        let alerts = limits.alerts(&samples).into_iter();
        let name = |became| match became {
            SensorState::Breached { limit: Limit::Min, .. } => "below",
            SensorState::Breached { limit: Limit::Max, .. } => "above",
            SensorState::Normal { .. } => "normal",
        };
        alerts.map(|alert| (alert.at.millis(), name(alert.became))).collect()
    }

    #[test]
    fn a_breach_ends_when_the_value_is_within_the_limit_by_the_deadband() {
        let values = [10.0, 10.1, 11.0, 9.9, 9.6, 9.5, 10.0, 10.1];
        assert_eq!(
            expected(None, Some(10.0), &values),
            [(1, "above"), (5, "normal"), (7, "above")]
        );
    }

    #[test]
    fn a_jump_beyond_the_other_limit_is_another_breach() {
        let values = [0.0, -1.0, 11.0, 10.5, -0.1, 0.4, 0.5];
        let alerts = [(1, "below"), (2, "above"), (4, "below"), (6, "normal")];
        assert_eq!(expected(Some(0.0), Some(10.0), &values), alerts);
    }

    #[test]
    fn the_deadband_is_at_most_a_quarter_of_the_range() {
        assert_eq!(
            expected(Some(0.0), Some(1.0), &[-0.1, 0.2, 0.25]),
            [(0, "below"), (2, "normal")]
        );
    }
}
