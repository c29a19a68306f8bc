//! The sensor register as store-readings uses it, with a cache.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use contracts::{OperatorId, SensorId, SiteId, Timestamp};
use serde::{Deserialize, de::IgnoredAny};
use store::{StoreError, Table};
use stream::may_send;
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
    #[serde(default)]
    operator_id: OperatorId,
    sensor: Option<IgnoredAny>,
    retired_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug)]
struct ActiveSensor {
    site: SiteId,
    operator: OperatorId,
    read_at: Instant,
}

impl Register {
    /// Creates the register. It reads the readings table.
    #[must_use]
    pub fn new(readings: Table, age_limit: Duration) -> Self {
        Self { readings, age_limit, active: Mutex::default() }
    }

    /// Checks that all sensors are active sensors of the site, and that the sender may send for them. Returns the first
    /// sensor for which this is not the case, with the reason.
    ///
    /// A sender learns nothing about the sensors of another operator: they are refused like sensors that don't exist.
    pub async fn check_sensors(
        &self,
        site: SiteId,
        sender: Option<OperatorId>,
        sensors: impl Iterator<Item = SensorId>,
    ) -> Result<(), TelemetryError> {
        let now = Instant::now();
        let uncached: Vec<_> = {
            let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = |active: &ActiveSensor| active.read_at.elapsed() < self.age_limit;
            let is_cached = |sensor: &SensorId| {
                active.get(sensor).is_some_and(|cached| {
                    fresh(cached) && cached.site == site && may_send(sender, cached.operator)
                })
            };
            sensors.filter(|sensor| !is_cached(sensor)).collect()
        };
        if uncached.is_empty() {
            return Ok(());
        }
        let mut rows = self.read(&uncached).await?;
        let mut refused = Ok(());
        for sensor in uncached {
            let row = rows.remove(&sensor);
            self.remember(sensor, row.as_ref(), now);
            refused = refused.and(check(sensor, row, site, sender));
        }
        refused
    }

    /// Caches an active sensor with the site and the owner that the register has. The sender does not matter.
    fn remember(&self, sensor: SensorId, row: Option<&RegisterRow>, read_at: Instant) {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        match row {
            Some(RegisterRow { sensor: Some(_), retired_at: None, site_id, operator_id }) => {
                if active.len() >= MAX_CACHED {
                    active.clear();
                }
                let cached = ActiveSensor { site: *site_id, operator: *operator_id, read_at };
                active.insert(sensor, cached);
            }
            _ => drop(active.remove(&sensor)),
        }
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

/// Decides whether a sender may send readings of a sensor for a site.
fn check(
    sensor: SensorId,
    row: Option<RegisterRow>,
    site: SiteId,
    sender: Option<OperatorId>,
) -> Result<(), TelemetryError> {
    // The owner is compared first, because the other errors contain data of the sensor.
    let row = row.filter(|row| may_send(sender, row.operator_id));
    match row {
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
    }
}
