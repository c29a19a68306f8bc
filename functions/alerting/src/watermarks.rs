//! The watermarks that an execution environment of detect-breaches keeps in memory.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use contracts::{SensorId, readings::Bundle};

use crate::judging::{Arrived, Judged, Watermark, Watermarks};

/// The maximum number of sensors in the cache, about 15 MB. The cache is cleared when it is full.
const MAX_SENSORS: usize = 100_000;

/// A cache of the watermark of each sensor.
#[derive(Debug, Default)]
pub struct WatermarkCache(Mutex<HashMap<SensorId, Watermark>>);

impl WatermarkCache {
    /// Returns the watermarks of a bundle's sensors.
    #[must_use]
    pub fn get(&self, bundle: &Bundle) -> Watermarks {
        let watermarks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sensors = bundle.series.iter().map(|series| series.sensor_id);
        sensors.filter_map(|sensor| Some((sensor, watermarks.get(&sensor)?.clone()))).collect()
    }

    /// Advances the watermarks after a bundle was judged and all its changes were committed.
    pub fn advance(&self, arrived: Arrived<'_>, judged: &Judged) {
        let mut watermarks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if watermarks.len() >= MAX_SENSORS {
            watermarks.clear();
        }
        for (sensor, judged_to) in &judged.up_to {
            let Watermark { at, ahead } = watermarks.entry(*sensor).or_default();
            let not_ahead = arrived.at.min(*judged_to);
            let late = at.map_or(not_ahead, |at| at.max(not_ahead));
            *at = Some(late);
            ahead.forget_until(late);
            if *judged_to > arrived.at {
                ahead.add(&arrived.bundle.bundle_id, *judged_to);
            }
        }
    }
}
