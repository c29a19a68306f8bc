//! The envelope of every event.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{
    Entity, EntityType, EventId, IdMismatch, OnboardingId, OperatorId, SagaContext, SiteId,
    Timestamp,
};

/// The payload of a domain event. There is one Rust type for each event type and version.
pub trait Event: Serialize + DeserializeOwned + JsonSchema {
    /// The event type: the `detail-type` of version 1.
    const TYPE: &'static str;
    /// The version. A change that breaks readers needs a new version.
    const VERSION: u32;
    /// The type of the entity that emits the event.
    const ENTITY: EntityType;
}

/// The metadata of an event. All event types have the same fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The event id, derived from the entity and the sequence number. A republished event has the same id, so consumers
    /// can use it as an idempotency key.
    pub event_id: EventId,
    /// The event type. EventBridge's `detail-type` is the event type, followed by `.v<version>` from version 2 on.
    #[serde(rename = "type")]
    pub kind: String,
    /// The version of the payload's schema.
    pub version: u32,
    /// When the change was committed.
    pub occurred_at: Timestamp,
    /// The entity that the event is about.
    pub entity: Entity,
    /// The position among the entity's events: 1, 2, 3 and so on, without gaps. EventBridge does not preserve the order
    /// of events; use this number to restore it.
    #[schemars(range(min = 1))]
    pub sequence: u64,
    /// The onboarding of the site that the event belongs to. Absent if the event belongs to no site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<OnboardingId>,
    /// The operator that owns the entity. Absent in events of releases before there were operators; they belong to the
    /// default operator.
    #[serde(default)]
    pub operator_id: OperatorId,
    /// The id of the event that caused this one. Absent if a person or another system caused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causation_id: Option<Uuid>,
}

/// The `detail` of an event on EventBridge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Envelope<D> {
    /// The metadata.
    pub metadata: Metadata,
    /// The payload.
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
        let Metadata { event_id, entity, correlation_id, operator_id, .. } = &self.metadata;
        let site_id = self.data.site_id();
        let saga = SagaContext::for_site(*operator_id, site_id, Some(event_id.uuid()));
        let onboarding_id = saga.onboarding_id;
        IdMismatch::check(
            "metadata.correlationId",
            site_id,
            correlation_id.map_or(Uuid::nil(), OnboardingId::uuid),
            onboarding_id.uuid(),
        )?;
        let own = Entity::for_site(entity.kind, site_id).map_or(Uuid::nil(), |own| own.id);
        IdMismatch::check("metadata.entity.id", site_id, entity.id, own)?;
        Ok(saga)
    }
}
