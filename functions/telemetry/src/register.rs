//! The telemetry's register of sensors, as store-readings asks it.

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

/// Beyond that many sensors the cache starts anew: some 10 MB.
const MOST_CACHED: usize = 100_000;

/// Who may send readings. A sensor that may is remembered for a while; any other is looked up
/// every time, for it may have come meanwhile.
#[derive(Debug)]
pub struct Register {
    readings: Table,
    /// How long a sensor may still send after it was retired.
    age_limit: Duration,
    active: Mutex<HashMap<SensorId, Active>>,
}

/// All that is asked of a [`crate::SensorRow`].
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    site_id: SiteId,
    sensor: Option<IgnoredAny>,
    retired_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug)]
struct Active {
    site: SiteId,
    read_at: Instant,
}

impl Register {
    /// The register in the readings table.
    #[must_use]
    pub fn new(readings: Table, age_limit: Duration) -> Self {
        Self { readings, age_limit, active: Mutex::default() }
    }

    /// Whether all these sensors are active ones of that site; if not, which is not, and why.
    pub async fn admit(
        &self,
        site: SiteId,
        sensors: impl Iterator<Item = SensorId>,
    ) -> Result<(), TelemetryError> {
        let now = Instant::now();
        let unknown: Vec<_> = {
            let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = |active: &Active| active.read_at.elapsed() < self.age_limit;
            let known = |sensor: &SensorId| {
                active.get(sensor).is_some_and(|known| fresh(known) && known.site == site)
            };
            sensors.filter(|sensor| !known(sensor)).collect()
        };
        if unknown.is_empty() {
            return Ok(());
        }
        let mut rows = self.read(&unknown).await?;
        let mut refused = Ok(());
        for sensor in unknown {
            let verdict = match rows.remove(&sensor) {
                None | Some(Entry { sensor: None, retired_at: None, .. }) => {
                    Err(TelemetryError::UnknownSensor(sensor))
                }
                Some(Entry { retired_at: Some(at), site_id, .. }) => {
                    Err(TelemetryError::RetiredSensor { sensor, site: site_id, at })
                }
                Some(row) if row.site_id != site => {
                    Err(TelemetryError::SensorOfAnotherSite { sensor, site: row.site_id })
                }
                Some(_) => Ok(()),
            };
            let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
            if verdict.is_ok() {
                if active.len() >= MOST_CACHED {
                    active.clear();
                }
                active.insert(sensor, Active { site, read_at: now });
            } else {
                active.remove(&sensor);
                refused = refused.and(verdict);
            }
        }
        refused
    }

    async fn read(&self, sensors: &[SensorId]) -> Result<HashMap<SensorId, Entry>, TelemetryError> {
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
