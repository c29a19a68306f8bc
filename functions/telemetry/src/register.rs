//! The sensor register as store-readings uses it, with a cache.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use contracts::{SensorId, SiteId, Timestamp};
use serde::{Deserialize, de::IgnoredAny};
use store::{StoreError, Table};
use tokio::time::Instant;

use crate::{SensorRow, TelemetryError};

/// The maximum number of sensors in the cache, about 10 MB. The cache is cleared when it is full.
const MAX_CACHED: usize = 100_000;

/// The register of the sensors that may send readings.
///
/// Active sensors are cached. Any other sensor is looked up every time, because it may have been provisioned in the
/// meantime.
#[derive(Debug)]
pub struct Register {
    readings: Table,
    /// The lifetime of a cache entry. A retired sensor may still send for this time.
    age_limit: Duration,
    active: Mutex<HashMap<SensorId, ActiveSensor>>,
}

/// The attributes of a [`crate::SensorRow`] that are checked.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RegisterRow {
    site_id: SiteId,
    sensor: Option<IgnoredAny>,
    retired_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug)]
struct ActiveSensor {
    site: SiteId,
    read_at: Instant,
}

impl Register {
    /// Creates the register. It reads the readings table.
    #[must_use]
    pub fn new(readings: Table, age_limit: Duration) -> Self {
        Self { readings, age_limit, active: Mutex::default() }
    }

    /// Checks that all sensors are active sensors of the site. Returns the first sensor that is not, with the reason.
    pub async fn check_sensors(
        &self,
        site: SiteId,
        sensors: impl Iterator<Item = SensorId>,
    ) -> Result<(), TelemetryError> {
        let now = Instant::now();
        let uncached: Vec<_> = {
            let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = |active: &ActiveSensor| active.read_at.elapsed() < self.age_limit;
            let is_cached = |sensor: &SensorId| {
                active.get(sensor).is_some_and(|cached| fresh(cached) && cached.site == site)
            };
            sensors.filter(|sensor| !is_cached(sensor)).collect()
        };
        if uncached.is_empty() {
            return Ok(());
        }
        let mut rows = self.read(&uncached).await?;
        let mut refused = Ok(());
        for sensor in uncached {
            let result = match rows.remove(&sensor) {
                None | Some(RegisterRow { sensor: None, retired_at: None, .. }) => {
                    Err(TelemetryError::UnknownSensor(sensor))
                }
                Some(RegisterRow { retired_at: Some(at), site_id, .. }) => {
                    Err(TelemetryError::RetiredSensor { sensor, site: site_id, at })
                }
                Some(row) if row.site_id != site => {
                    Err(TelemetryError::SensorOfAnotherSite { sensor, site: row.site_id })
                }
                Some(_) => Ok(()),
            };
            let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
            if result.is_ok() {
                if active.len() >= MAX_CACHED {
                    active.clear();
                }
                active.insert(sensor, ActiveSensor { site, read_at: now });
            } else {
                active.remove(&sensor);
                refused = refused.and(result);
            }
        }
        refused
    }

    async fn read(
        &self,
        sensors: &[SensorId],
    ) -> Result<HashMap<SensorId, RegisterRow>, TelemetryError> {
        let keys = sensors.iter().map(|sensor| SensorRow::key(*sensor));
        let items = self.readings.batch_get(keys).consistent().send().await?;
        items
            .into_iter()
            .map(|item| {
                let corrupt = |reason: String| StoreError::Corrupt {
                    row: format!("of the register: {item:?}"),
                    reason,
                };
                let id = item.get("sensorId").and_then(|id| id.as_s().ok());
                let id = id.and_then(|id| id.parse().ok());
                let id = id.ok_or_else(|| corrupt("it has no sensorId".to_owned()))?;
                let row = serde_dynamo::from_item(item.clone())
                    .map_err(|error| corrupt(error.to_string()))?;
                Ok((id, row))
            })
            .collect()
    }
}
