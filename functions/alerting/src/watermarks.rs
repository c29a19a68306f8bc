//! The watermarks that an execution environment of detect-breaches keeps in memory.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use contracts::{SensorId, Timestamp, readings::Bundle};

use crate::{Alerting, AlertingRow, judging::Watermarks};

/// The maximum number of sensors in the cache, about 10 MB. The cache is cleared when it is full.
const MAX_SENSORS: usize = 100_000;

/// A cache of the time of the last judged reading of each sensor.
#[derive(Debug, Default)]
pub struct WatermarkCache(Mutex<HashMap<SensorId, Timestamp>>);

impl WatermarkCache {
    /// Returns the watermarks of a bundle's sensors.
    #[must_use]
    pub fn get(&self, bundle: &Bundle) -> Watermarks {
        let watermarks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sensors = bundle.series.iter().map(|series| series.sensor_id);
        sensors.filter_map(|sensor| Some((sensor, *watermarks.get(&sensor)?))).collect()
    }

    /// Advances the watermarks after a bundle was judged with the row's rules and all its changes were committed.
    pub fn advance(&self, row: &AlertingRow, bundle: &Bundle) {
        let Alerting::Configured { rules } = &row.state else { return };
        let mut watermarks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if watermarks.len() >= MAX_SENSORS {
            watermarks.clear();
        }
        for series in &bundle.series {
            let watched = rules.iter().any(|rule| rule.sensor.sensor_id == series.sensor_id);
            let Some(last) = series.samples.last().filter(|_| watched) else { continue };
            let watermark = watermarks.entry(series.sensor_id).or_insert(last.at);
            *watermark = last.at.max(*watermark);
        }
    }
}
