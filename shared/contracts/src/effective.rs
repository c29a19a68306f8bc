//! The effective sample: what a stored sample means, given its sensor's metadata. Queries and alerts share it.

use crate::{Sensor, Timestamp, sample::Sample, sensor::Calibration};

/// Which values are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Values {
    /// As they were sent.
    Raw,
    /// Calibrated, if the sensor has a calibration.
    #[default]
    Calibrated,
}

impl Values {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Raw, Self::Calibrated];

    /// Returns the name that queries use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Calibrated => "calibrated",
        }
    }
}

impl Sensor {
    /// Returns the effective sample, by the sensor's metadata that are valid at the time of the sample. A value that means
    /// "no data" becomes a missing value. Any other value is calibrated if calibrated values are used, and keeps its flag.
    #[must_use]
    pub fn effective(&self, sample: Sample, values: Values) -> Sample {
        let Sample { at, value: Some(value), flag } = sample else { return sample };
        if self.metadata.no_data_values_at(at).contains(&value) {
            return Sample::missing(at);
        }
        match self.calibration(at, values) {
            None => sample,
            // A value that is too large for a number can't be used.
            Some(Calibration { gain, offset }) => match value * gain + offset {
                calibrated if calibrated.is_finite() => Sample::flagged(at, calibrated, flag),
                _ => Sample::missing(at),
            },
        }
    }

    fn calibration(&self, at: Timestamp, values: Values) -> Option<Calibration> {
        match values {
            Values::Raw => None,
            Values::Calibrated => self.metadata.calibration_at(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{OnboardingId, OperatorId, SensorId, SiteId, sample::Flag};

    fn at(seconds: u32) -> Timestamp {
        format!("2026-01-01T12:00:{seconds:02}Z").parse().expect("a time")
    }

    fn sensor() -> Sensor {
        let onboarding =
            OnboardingId::from_site(SiteId::registered(OperatorId::DEFAULT, "", "effective"));
        let sensor = json!({
            "sensorId": SensorId::from_onboarding(onboarding, 0),
            "metric": "air_temperature",
            "unit": "Cel",
            "noDataValues": [
                { "values": [-9999.9] },
                { "validFrom": at(20), "values": [-7999, -6999] },
            ],
            "calibrations": [
                { "validFrom": at(10), "gain": 2.0, "offset": 1.0 },
                { "validFrom": at(30), "gain": 1e308, "offset": 0.0 },
            ],
        });
        serde_json::from_value(sensor).expect("a sensor")
    }

    #[test]
    fn the_metadata_valid_at_the_samples_time_apply() {
        for (seconds, value, raw, calibrated) in [
            (0, 20.0, Some(20.0), Some(20.0)),
            (9, -9999.9, None, None),
            (9, -7999.0, Some(-7999.0), Some(-7999.0)),
            (10, 20.0, Some(20.0), Some(41.0)),
            // No-data values are compared with the raw value, before the calibration.
            (19, -9999.9, None, None),
            (20, -9999.9, Some(-9999.9), Some(-9999.9 * 2.0 + 1.0)),
            (20, -6999.0, None, None),
            (30, 20.0, Some(20.0), None),
        ] {
            let sample = Sample::flagged(at(seconds), value, Flag::Suspect);
            let of = |values| sensor().effective(sample, values);
            assert_eq!(of(Values::Raw).value, raw, "{sample:?}");
            assert_eq!(of(Values::Calibrated).value, calibrated, "{sample:?}");
            let flag = if calibrated.is_some() { Flag::Suspect } else { Flag::Missing };
            assert_eq!(of(Values::Calibrated).flag, flag, "{sample:?}");
        }
        let missing = Sample::missing(at(10));
        assert_eq!(sensor().effective(missing, Values::Calibrated), missing);
    }
}
