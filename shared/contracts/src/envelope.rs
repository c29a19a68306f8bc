//! The envelope of every event.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{
    Entity, EntityType, EventId, IdMismatch, OnboardingId, SagaContext, SiteId, Timestamp,
};

/// The payload of a domain event. There is one Rust type for each event type and version.
pub trait Event: Serialize + DeserializeOwned + JsonSchema {
    /// The `detail-type`.
    const TYPE: &'static str;
    /// The version. A change that breaks readers needs a new version.
    const VERSION: u32;
    /// The kind of entity that emits the event.
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

/// Event data that contains the id of its site.
pub trait SiteData {
    /// Returns the site's id.
    fn site_id(&self) -> SiteId;
}

impl<D: SiteData> Envelope<D> {
    /// Returns the saga of the data's site, with this event as the cause.
    ///
    /// # Errors
    /// Fails if the correlation id or the entity belongs to another site. A consumer must not act on such an event.
    pub fn saga(&self) -> Result<SagaContext, IdMismatch> {
        let Metadata { event_id, entity, correlation_id, .. } = &self.metadata;
        let site_id = self.data.site_id();
        let saga = SagaContext::for_site(site_id, Some(event_id.uuid()));
        let onboarding_id = saga.onboarding_id;
        IdMismatch::check(
            "metadata.correlationId",
            site_id,
            correlation_id.uuid(),
            onboarding_id.uuid(),
        )?;
        let own = Entity::for_site(entity.kind, site_id);
        IdMismatch::check("metadata.entity.id", site_id, entity.id, own.id)?;
        Ok(saga)
    }
}
