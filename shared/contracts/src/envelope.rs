//! The envelope that every event travels in.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{
    AlertingId, EventId, IdMismatch, OnboardingId, ReservationId, Saga, SensorsId, SiteId,
    SubscriptionId, Timestamp,
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
    pub const fn name(self) -> &'static str {
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

    /// The service that owns the entity.
    #[must_use]
    pub fn service(self) -> &'static str {
        self.source().trim_start_matches("fieldstation.")
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

impl Entity {
    /// The site's entity of this kind: a site has one of each.
    #[must_use]
    pub fn of_site(kind: EntityType, site: SiteId) -> Self {
        let onboarding = OnboardingId::of(site);
        match kind {
            EntityType::Site => site.into(),
            EntityType::Reservation => ReservationId::of(onboarding).into(),
            EntityType::Sensors => SensorsId::of(onboarding).into(),
            EntityType::Subscription => SubscriptionId::of(onboarding).into(),
            EntityType::Alerting => AlertingId::of(onboarding).into(),
        }
    }
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

/// Event data that names the site it belongs to.
pub trait SiteData {
    /// The site.
    fn site_id(&self) -> SiteId;
}

impl<D: SiteData> Envelope<D> {
    /// The saga of the data's site, caused by this event. Refuses an event whose correlation id or
    /// entity belongs to another site: a consumer must not act on it.
    pub fn saga(&self) -> Result<Saga, IdMismatch> {
        let Metadata { event_id, entity, correlation_id, .. } = &self.metadata;
        let site_id = self.data.site_id();
        let saga = Saga::of_site(site_id, Some(event_id.uuid()));
        let onboarding_id = saga.onboarding_id;
        IdMismatch::check(
            "metadata.correlationId",
            site_id,
            correlation_id.uuid(),
            onboarding_id.uuid(),
        )?;
        let own = Entity::of_site(entity.kind, site_id);
        IdMismatch::check("metadata.entity.id", site_id, entity.id, own.id)?;
        Ok(saga)
    }
}
