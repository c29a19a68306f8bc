//! The envelope that every event travels in.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{
    AlertingId, EventId, OnboardingId, ReservationId, SensorsId, SiteId, SubscriptionId, Timestamp,
};

/// A domain event's payload: one Rust type for each type and version on the wire.
pub trait Event: Serialize + DeserializeOwned + JsonSchema {
    /// The `detail-type`.
    const TYPE: &'static str;
    /// Raised when a change would break a reader.
    const VERSION: u32;
    /// Whose event it is.
    const ENTITY: EntityType;
}

/// The kinds of entities that have events, each belonging to the one service that emits them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum EntityType {
    /// sites'.
    Site,
    /// inventory's.
    Reservation,
    /// devices'.
    Sensors,
    /// billing's.
    Subscription,
    /// alerting's.
    Alerting,
}

impl EntityType {
    /// The name on every wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::Reservation => "reservation",
            Self::Sensors => "sensors",
            Self::Subscription => "subscription",
            Self::Alerting => "alerting",
        }
    }

    /// EventBridge's `source` of this entity's events.
    #[must_use]
    pub fn source(self) -> &'static str {
        match self {
            Self::Site => "fieldstation.sites",
            Self::Reservation => "fieldstation.inventory",
            Self::Sensors => "fieldstation.devices",
            Self::Subscription => "fieldstation.billing",
            Self::Alerting => "fieldstation.alerting",
        }
    }
}

/// What an event is about. Prints as `type#id`, the key of its row in the event log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Entity {
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: EntityType,
    /// Its id.
    pub id: Uuid,
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.kind.name(), self.id)
    }
}

macro_rules! entity_of {
    ($($id:ident => $kind:ident),*) => {
        $(impl From<$id> for Entity {
            fn from(id: $id) -> Self {
                Self { kind: EntityType::$kind, id: id.uuid() }
            }
        })*
    };
}

entity_of!(
    SiteId => Site,
    ReservationId => Reservation,
    SensorsId => Sensors,
    SubscriptionId => Subscription,
    AlertingId => Alerting
);

/// Who, what, when and why of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Derived from entity and sequence: a republished event keeps its id.
    pub event_id: EventId,
    /// The same as EventBridge's `detail-type`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The payload's version.
    pub version: u32,
    /// When its transaction was made.
    pub occurred_at: Timestamp,
    /// What it is about.
    pub entity: Entity,
    /// Counts the entity's events from 1 without a gap. EventBridge keeps no order: this does.
    pub sequence: u64,
    /// The onboarding that it belongs to.
    pub correlation_id: OnboardingId,
    /// The event that led to it; absent where a person or another system did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causation_id: Option<Uuid>,
}

/// EventBridge's `detail`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Envelope<D> {
    /// Who, what, when and why.
    pub metadata: Metadata,
    /// What happened.
    pub data: D,
}
