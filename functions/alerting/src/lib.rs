//! Alerting on the limits of a site's sensors.
//!
//! This crate owns the alerting table. Its key is `id`, with values `alerting#<uuid>` ([`AlertingRow`]). The crate
//! emits the events of the entity `alerting`. A removed configuration stays as a tombstone, which prevents a late
//! configuration.
//!
//! A sensor may be changed before alerting is configured. The row then exists already, with the status `NOT_CONFIGURED`,
//! and keeps the change until `configure-alerting` replaces the row ([`Alerting::NotConfigured`]).

pub mod ahead;
pub mod configure_alerting;
pub mod detect_breaches;
pub mod judging;
pub mod project_rules;
pub mod remove_alerting;
pub mod watermarks;

use contracts::{
    AlertingId, IdMismatch, SagaContext, Sensor, Timestamp, events::Limit, sensor::SensorMetadata,
};
use fault::{ErrorKind, Fault};
use serde::{Deserialize, Deserializer, Serialize};
use store::{Key, StoreError, Table, Transaction};

use crate::ahead::Ahead;

/// The maximum number of attempts to change a row that other writers change at the same time.
const MAX_ATTEMPTS: usize = 5;

/// The alerting configuration of one onboarding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AlertingRow {
    /// The saga of the onboarding.
    #[serde(flatten)]
    pub saga: SagaContext,
    /// The state of the configuration.
    #[serde(flatten)]
    pub state: Alerting,
    /// The sequence number of its last event.
    pub sequence: u64,
    /// The time of the last change. A changed sensor increases `at` but not `sequence`, because the change is no event of
    /// this entity.
    pub at: Timestamp,
}

impl AlertingRow {
    /// Returns the key of the row.
    #[must_use]
    pub fn key(alerting: AlertingId) -> Key {
        Key::id(format!("alerting#{alerting}"))
    }

    /// Returns the row of a site whose alerting is not configured and whose sensors were not changed. It is not stored.
    #[must_use]
    pub fn absent(saga: SagaContext) -> Self {
        let state = Alerting::NotConfigured { rules: Vec::new() };
        Self { saga, state, sequence: 0, at: Timestamp::from_millis(0) }
    }

    /// Returns a transaction that replaces this row, on the condition that it is unchanged.
    fn replace(&self, table: &Table, after: &Self) -> Transaction {
        let key = Self::key(AlertingId::from_onboarding(self.saga.onboarding_id));
        let transaction = Transaction::on(table);
        match &self.state {
            Alerting::NotConfigured { rules } if rules.is_empty() => {
                transaction.create(table, &key, after)
            }
            _ => transaction.put_if_same_version(table, &key, after, self.sequence, self.at),
        }
    }

    /// Returns the time of a change that is made now. It is later than that of the last change, so that each change gives the
    /// row another time.
    #[must_use]
    pub fn next_time(&self, now: Timestamp) -> Timestamp {
        now.max(self.at.plus_millis(1))
    }
}

/// The state of an alerting configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Alerting {
    /// The site is being onboarded. Its row exists if sensors were changed before the limits are watched. It has the sequence 0.
    NotConfigured {
        /// The changed sensors, each in a rule with its metadata.
        rules: Vec<Rule>,
    },
    /// The limits are watched.
    Configured {
        /// The rules of the sensors that have limits.
        rules: Vec<Rule>,
    },
    /// A tombstone: the limits are not watched and will never be watched again.
    Removed,
}

impl Alerting {
    /// Returns the name of the state in the row.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotConfigured { .. } => "NOT_CONFIGURED",
            Self::Configured { .. } => "CONFIGURED",
            Self::Removed => "REMOVED",
        }
    }
}

/// A sensor with limits, and its state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// The sensor and its limits, with the metadata that judging uses. Rows of earlier releases may have all metadata; the
    /// next write of the row drops the others.
    #[serde(flatten, deserialize_with = "sensor_for_judging")]
    pub sensor: Sensor,
    /// The state after the judged readings. Rows of earlier releases have no state and are read as `Normal`.
    #[serde(default)]
    pub state: State,
    /// The sequence of the `SensorChanged` event from which the rule took the sensor's metadata. Absent if they are
    /// from the onboarding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensor_sequence: Option<u64>,
    /// The time of the reading that last changed the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<Timestamp>,
    /// The latest arrival of a record that changed the state. Rows of earlier releases do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change_arrived_at: Option<Timestamp>,
    /// The bundles in which samples were judged that are ahead (later than the arrival of their record, see [`judging`]),
    /// each with the time of its last judged sample. A bundle is kept only while that time is later than
    /// [`Rule::late_until`]. The bundle that caused the last change may be one of them.
    #[serde(default, skip_serializing_if = "Ahead::is_empty")]
    pub ahead: Ahead,
}

impl Rule {
    /// Returns a rule in the state `Normal`, before any reading was judged.
    #[must_use]
    pub fn new(sensor: Sensor) -> Self {
        Self {
            sensor: for_judging(sensor),
            state: State::Normal,
            sensor_sequence: None,
            changed_at: None,
            change_arrived_at: None,
            ahead: Ahead::default(),
        }
    }

    /// Takes the metadata of a `SensorChanged` with this sequence. Returns false, and changes nothing, if the rule already has
    /// those of this or a later event. The limits never change.
    pub fn change(&mut self, changed: &Sensor, sequence: Option<u64>) -> bool {
        let is_newer = sequence > self.sensor_sequence;
        if is_newer {
            self.sensor.metadata = for_judging(changed.clone()).metadata;
            self.sensor_sequence = sequence;
        }
        is_newer
    }

    /// Returns the time up to which all readings are late or judged: the earlier of `changed_at` and `change_arrived_at`.
    #[must_use]
    pub fn late_until(&self) -> Option<Timestamp> {
        let changed_at = self.changed_at?;
        Some(self.change_arrived_at.map_or(changed_at, |arrived_at| arrived_at.min(changed_at)))
    }
}

/// Returns the sensor with only the metadata that judging uses: which values mean "no data", and the calibrations. The row is
/// read for each bundle, and has up to 100 sensors.
fn for_judging(sensor: Sensor) -> Sensor {
    let SensorMetadata { no_data_values, calibrations, .. } = sensor.metadata;
    let metadata = SensorMetadata { no_data_values, calibrations, ..SensorMetadata::default() };
    Sensor { metadata, ..sensor }
}

fn sensor_for_judging<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Sensor, D::Error> {
    Sensor::deserialize(deserializer).map(for_judging)
}

/// The state of a sensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE", rename_all_fields = "camelCase")]
pub enum State {
    /// Within the limits.
    #[default]
    Normal,
    /// Beyond a limit, or not yet back within it by the deadband.
    Breached {
        /// The limit that was breached.
        limit: Limit,
        /// The time of the reading that breached it.
        breached_at: Timestamp,
    },
}

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum AlertingError {
    /// The configuration is already removed, so it can't be created.
    #[error("alerting {0} is already removed")]
    Superseded(AlertingId),
    /// The ids in an event belong to different sites.
    #[error(transparent)]
    WrongSite(#[from] IdMismatch),
    /// Another writer changed the row between the read and the conditional write.
    #[error("another writer changed alerting {0}")]
    Busy(AlertingId),
    /// A call to the table failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Fault for AlertingError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Superseded(_) => ErrorKind::Superseded,
            Self::Busy(_) => ErrorKind::Transient,
            Self::WrongSite(_) => ErrorKind::InvalidInput,
            Self::Store(error) => error.into(),
        }
    }
}
