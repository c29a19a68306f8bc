//! The sensor register as store-readings and accept-readings use it, with a cache.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use contracts::{OperatorId, SensorId, SiteId, Timestamp, UtcOffset};
use lambda::{Aws, ConfigError, Deadline};
use serde::Deserialize;
use store::{StoreError, Table};
use stream::may_send;
use tokio::time::Instant;

use crate::{SensorRow, TelemetryError};

/// The maximum number of sensors in the cache, about 10 MB. The cache is cleared when it is full.
const MAX_CACHED: usize = 100_000;
/// The maximum number of keys of a `BatchGetItem` call.
const MAX_KEYS: usize = 100;
/// The timeout of the read in [`Register::known_standings`], which accept-readings makes before it answers the sender.
const EARLY_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The register of the sensors that may send readings.
///
/// Active and retired sensors are cached. Any other sensor is looked up every time, because it may have been provisioned
/// in the meantime.
#[derive(Debug)]
pub struct Register {
    readings: Table,
    /// The lifetime of a cache entry. A retired sensor may still send for this time.
    age_limit: Duration,
    cache: Mutex<HashMap<SensorId, Registered>>,
}

/// What the register says about a sensor for a site and a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The sensor is one of the site.
    Registered {
        /// When the sensor was retired, if it was. Only its earlier samples are accepted.
        retired_at: Option<Timestamp>,
        /// The registered properties of the sensor. `None` if only its retirement is known so far.
        sensor: Option<RegisteredSensor>,
    },
    /// The sensor was not provisioned yet, or it belongs to another operator than the sender.
    Unknown,
    /// The sensor belongs to this other site.
    OfSite(SiteId),
}

/// The properties of a registered sensor that are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegisteredSensor {
    /// The fixed UTC offset of its site, if the site declares one.
    #[serde(default)]
    pub utc_offset: Option<UtcOffset>,
}

/// The attributes of a [`SensorRow`] that are checked.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RegisterRow {
    sensor_id: SensorId,
    site_id: SiteId,
    #[serde(default)]
    operator_id: OperatorId,
    sensor: Option<RegisteredSensor>,
    retired_at: Option<Timestamp>,
}

/// An active or retired sensor.
#[derive(Clone, Copy, Debug)]
struct Registered {
    site: SiteId,
    operator: OperatorId,
    sensor: Option<RegisteredSensor>,
    retired_at: Option<Timestamp>,
    read_at: Instant,
}

impl Registered {
    /// A sender learns nothing about the sensors of another operator: they are like sensors that don't exist.
    fn standing(&self, site: SiteId, sender: Option<OperatorId>) -> Standing {
        if !may_send(sender, self.operator) {
            Standing::Unknown
        } else if self.site != site {
            Standing::OfSite(self.site)
        } else {
            Standing::Registered { retired_at: self.retired_at, sensor: self.sensor }
        }
    }
}

impl Register {
    /// Creates the register. It reads the readings table.
    #[must_use]
    pub fn new(readings: Table, age_limit: Duration) -> Self {
        Self { readings, age_limit, cache: Mutex::default() }
    }

    /// Creates the register with the table in `READINGS_TABLE` and the lifetime in `REGISTER_AGE_SECONDS`.
    pub fn from_env(aws: &Aws) -> Result<Self, ConfigError> {
        let seconds = lambda::env_number("REGISTER_AGE_SECONDS")?;
        Ok(Self::new(aws.table("READINGS_TABLE")?, Duration::from_secs(seconds)))
    }

    fn cache(&self) -> MutexGuard<'_, HashMap<SensorId, Registered>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the standing of each sensor of a site, in the order of the sensors.
    pub async fn standings(
        &self,
        site: SiteId,
        sender: Option<OperatorId>,
        sensors: impl Iterator<Item = SensorId> + Clone,
    ) -> Result<Vec<Standing>, TelemetryError> {
        let cached = self.cached(sensors.clone(), sender);
        let uncached = sensors.clone().zip(&cached).filter(|(_, cached)| cached.is_none());
        let uncached: Vec<_> = uncached.map(|(sensor, _)| sensor).collect();
        let read = if uncached.is_empty() { HashMap::new() } else { self.read(&uncached).await? };
        let standing = |(sensor, cached): (SensorId, Option<Registered>)| {
            let registered = cached.or_else(|| read.get(&sensor).copied());
            registered.map_or(Standing::Unknown, |it| it.standing(site, sender))
        };
        Ok(sensors.zip(cached).map(standing).collect())
    }

    /// Returns the standing of each pair of site and sensor. The entry is `None` if the standing is not known.
    ///
    /// Makes at most one call, for up to [`MAX_KEYS`] sensors that are not cached. The entry of a sensor that is not
    /// cached is `None` in three cases: it is beyond these [`MAX_KEYS`], the call failed, or the register does not have
    /// it. This is for an early answer to the sender; store-readings decides.
    pub async fn known_standings(
        &self,
        sender: OperatorId,
        sensors: &[(SiteId, SensorId)],
        deadline: Deadline,
    ) -> Vec<Option<Standing>> {
        let ids = || sensors.iter().map(|(_, sensor)| *sensor);
        let mut cached = self.cached(ids(), Some(sender));
        let uncached = ids().zip(&cached).filter(|(_, cached)| cached.is_none());
        let uncached: BTreeSet<_> = uncached.map(|(sensor, _)| sensor).collect();
        let uncached: Vec<_> = uncached.into_iter().take(MAX_KEYS).collect();
        if !uncached.is_empty() {
            let time = deadline.remaining().min(EARLY_ANSWER_TIMEOUT);
            match tokio::time::timeout(time, self.read(&uncached)).await {
                Ok(Ok(read)) => {
                    for (sensor, cached) in ids().zip(&mut cached) {
                        *cached = cached.or_else(|| read.get(&sensor).copied());
                    }
                }
                Ok(Err(error)) => tracing::warn!(reason = %error, "the register can't be read"),
                Err(_) => tracing::warn!(reason = "timeout", "the register can't be read"),
            }
        }
        let standing = |((site, _), cached): (&(SiteId, SensorId), Option<Registered>)| {
            cached.map(|registered| registered.standing(*site, Some(sender)))
        };
        sensors.iter().zip(cached).map(standing).collect()
    }

    /// Returns the fresh cache entry of each sensor that the sender may send for.
    ///
    /// A sensor of another operator counts as not cached. Otherwise the sender could tell it from an unknown sensor, which
    /// is read each time.
    fn cached(
        &self,
        sensors: impl Iterator<Item = SensorId>,
        sender: Option<OperatorId>,
    ) -> Vec<Option<Registered>> {
        let cache = self.cache();
        let fresh = |cached: &&Registered| {
            cached.read_at.elapsed() < self.age_limit && may_send(sender, cached.operator)
        };
        sensors.map(|sensor| cache.get(&sensor).filter(fresh).copied()).collect()
    }

    /// Reads sensors, and caches those that are active or retired.
    async fn read(
        &self,
        sensors: &[SensorId],
    ) -> Result<HashMap<SensorId, Registered>, TelemetryError> {
        let read_at = Instant::now();
        let keys = sensors.iter().map(|sensor| SensorRow::key(*sensor));
        let items = self.readings.batch_get(keys).consistent().send().await?;
        let mut read = HashMap::with_capacity(items.len());
        for item in items {
            let corrupt = |reason: serde_dynamo::Error| StoreError::Corrupt {
                row: format!("of the register: {item:?}"),
                reason: reason.to_string(),
            };
            let row: RegisterRow = serde_dynamo::from_item(item.clone()).map_err(corrupt)?;
            if row.sensor.is_some() || row.retired_at.is_some() {
                let RegisterRow { sensor_id, site_id: site, operator_id: operator, .. } = row;
                let RegisterRow { sensor, retired_at, .. } = row;
                let registered = Registered { site, operator, sensor, retired_at, read_at };
                read.insert(sensor_id, registered);
            }
        }
        let mut cache = self.cache();
        if cache.len() + read.len() > MAX_CACHED {
            cache.clear();
        }
        cache.extend(&read);
        drop(cache);
        Ok(read)
    }
}
