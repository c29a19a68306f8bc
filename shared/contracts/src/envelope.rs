//! The envelope that every event travels in.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{Entity, EntityType, EventId, IdMismatch, OnboardingId, Saga, SiteId, Timestamp};

/// A domain event's payload: one Rust type for each type and version on the wire.
pub trait Event: Serialize + DeserializeOwned + JsonSchema {
    /// The `detail-type`.
    const TYPE: &'static str;
    /// Raised when a change would break a reader.
    const VERSION: u32;
    /// Whose event it is.
    const ENTITY: EntityType;
}

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
