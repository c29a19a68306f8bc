//! What a running detect-breaches remembers of the readings that it judged.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use contracts::{SensorId, Timestamp, readings::Bundle};

use crate::{Alerting, AlertingRow, judging::Watermarks};

/// Beyond that many sensors the memory starts anew: some 10 MB.
const MOST_SENSORS: usize = 100_000;

/// Up to which reading each sensor was judged.
#[derive(Debug, Default)]
pub struct Memory(Mutex<HashMap<SensorId, Timestamp>>);

impl Memory {
    /// The watermarks of a bundle's sensors.
    #[must_use]
    pub fn recall(&self, bundle: &Bundle) -> Watermarks {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sensors = bundle.series.iter().map(|series| series.sensor_id);
        sensors.filter_map(|sensor| Some((sensor, *known.get(&sensor)?))).collect()
    }

    /// Takes note that the bundle was judged by the row's rules, and all that came of it committed.
    pub fn advance(&self, row: &AlertingRow, bundle: &Bundle) {
        let Alerting::Configured { rules } = &row.state else { return };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST_SENSORS {
            known.clear();
        }
        for series in &bundle.series {
            let watched = rules.iter().any(|rule| rule.sensor.sensor_id == series.sensor_id);
            let Some(last) = series.samples.last().filter(|_| watched) else { continue };
            let watermark = known.entry(series.sensor_id).or_insert(last.0);
            *watermark = last.0.max(*watermark);
        }
    }
}
