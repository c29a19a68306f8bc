//! The envelope of any event in the log, also of entities, types and systems that this release does not know.
//!
//! Fieldstation's own events are written as [`Envelope`](crate::Envelope). A reader that gets events of all types reads
//! them as [`OpenEnvelope`], so that a new type of entity or an event of another system never stops it.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{EntityType, EventId, OperatorId, SiteId, Timestamp};

/// Any event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenEnvelope {
    /// The metadata.
    pub metadata: OpenMetadata,
    /// The payload. For an event of another system: the CloudEvent's `data`, or null if it has none.
    pub data: Value,
}

/// The metadata of any event. The fields are those of [`Metadata`](crate::Metadata) with open types.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenMetadata {
    /// The event id. A republished event has the same id, so consumers can use it as an idempotency key.
    pub event_id: EventId,
    /// The event type. EventBridge's `detail-type` is this type, followed by `.v<version>` from version 2 on.
    #[serde(rename = "type")]
    pub kind: String,
    /// The version of the payload's schema. Absent in events of other systems.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// When the event was committed.
    pub occurred_at: Timestamp,
    /// The entity that the event is about.
    pub entity: OpenEntity,
    /// The position among the entity's events: 1, 2, 3 and so on, without gaps.
    pub sequence: u64,
    /// What connects this event with others. For events of a site: its onboarding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// The operator that owns the entity. Events of releases without operators do not have it; they belong to the
    /// default operator.
    #[serde(default)]
    pub operator_id: OperatorId,
    /// The id of the event that caused this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causation_id: Option<String>,
    /// The attributes of the CloudEvent that another system sent, without `data`. Absent in Fieldstation's own events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_event: Option<Map<String, Value>>,
}

impl OpenMetadata {
    /// Returns the partition key of the events with this correlation id in the index `byCorrelation`.
    ///
    /// Other systems choose their ids freely, so their keys begin with the operator. The key of Fieldstation's own events
    /// is the onboarding.
    #[must_use]
    pub fn correlation_key(&self) -> Option<String> {
        let id = self.correlation_id.as_deref()?;
        Some(match self.cloud_event {
            Some(_) => foreign_correlation_key(self.operator_id, id),
            None => id.to_owned(),
        })
    }

    /// Returns the partition key of the entity's rows in the log.
    #[must_use]
    pub fn log_key(&self) -> String {
        self.entity.log_key(self.operator_id)
    }
}

/// Returns the partition key of the index `byCorrelation` for events that other systems of this operator sent.
#[must_use]
pub fn foreign_correlation_key(operator: OperatorId, id: &str) -> String {
    format!("{operator}/{id}")
}

/// The entity of any event.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OpenEntity {
    /// The entity type. Fieldstation's own types have no dot; those of other systems have at least one.
    #[serde(rename = "type")]
    pub kind: String,
    /// The entity id. For Fieldstation's own entities it is a UUID.
    pub id: String,
}

impl OpenEntity {
    /// Reads an entity from `<type>/<id>`. Only the first slash is a separator.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, id) = text.split_once('/')?;
        let is_complete = !kind.is_empty() && !id.is_empty();
        is_complete.then(|| Self { kind: kind.to_owned(), id: id.to_owned() })
    }

    /// Returns whether this is an entity of Fieldstation, also of a type that this release does not know.
    #[must_use]
    pub fn is_own(&self) -> bool {
        !self.kind.contains('.')
    }

    /// Returns the type, if it is one of Fieldstation's that this release knows.
    #[must_use]
    pub fn own_type(&self) -> Option<EntityType> {
        serde_json::from_value(Value::String(self.kind.clone())).ok()
    }

    /// Returns the partition key of the entity's rows in the log: `<type>#<id>` for Fieldstation's own entities,
    /// `<operator>/<type>#<id>` for entities of other systems. Two operators may use the same type and id.
    #[must_use]
    pub fn log_key(&self, operator: OperatorId) -> String {
        let Self { kind, id } = self;
        if self.is_own() { format!("{kind}#{id}") } else { format!("{operator}/{kind}#{id}") }
    }
}

/// Formats the entity as `<type>/<id>`.
impl fmt::Display for OpenEntity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.id)
    }
}

impl OpenEnvelope {
    /// Returns the site in the data of one of Fieldstation's own events. Returns `None` if it belongs to no site.
    #[must_use]
    pub fn site_id(&self) -> Option<SiteId> {
        self.data.get("siteId")?.as_str()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Entity, OnboardingId};

    fn envelope(entity: &Value) -> Value {
        json!({
            "metadata": {
                "eventId": "55115657-a433-553f-959b-29ae8465145d", "type": "CalibrationDone",
                "occurredAt": "2026-11-29T10:00:00.000Z", "entity": entity, "sequence": 7,
                "operatorId": OperatorId::registered("a"),
            },
            "data": { "gas": "zero" },
        })
    }

    #[test]
    fn an_event_of_an_unknown_entity_type_is_readable() {
        let wire = envelope(&json!({ "type": "acme.instrument", "id": "SN 4711/b" }));
        let event: OpenEnvelope = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(serde_json::to_value(&event).unwrap(), wire);
        assert_eq!(event.metadata.entity.own_type(), None);
        let operator = OperatorId::registered("a");
        assert_eq!(event.metadata.log_key(), format!("{operator}/acme.instrument#SN 4711/b"));
        assert_eq!(
            Some(&event.metadata.entity),
            OpenEntity::parse("acme.instrument/SN 4711/b").as_ref()
        );
    }

    #[test]
    fn an_own_entity_has_the_key_that_the_outbox_writes() {
        let site = SiteId::registered(OperatorId::DEFAULT, "", "a");
        let own = Entity::from(site);
        let open: OpenEntity = serde_json::from_value(json!(own)).unwrap();
        assert_eq!(open.log_key(OperatorId::registered("a")), own.to_string());
        assert_eq!(open.own_type(), Some(EntityType::Site));
        assert!(OpenEntity::parse("site").is_none() && OpenEntity::parse("site/").is_none());
    }

    #[test]
    fn correlation_keys_of_two_operators_differ() {
        let onboarding = OnboardingId::from_site(SiteId::registered(OperatorId::DEFAULT, "", "a"));
        let mut wire = envelope(&json!({ "type": "site", "id": onboarding }));
        wire["metadata"]["correlationId"] = json!(onboarding);
        let own: OpenEnvelope = serde_json::from_value(wire.clone()).unwrap();
        assert_eq!(own.metadata.correlation_key(), Some(onboarding.to_string()));
        wire["metadata"]["cloudEvent"] = json!({ "id": "1", "source": "acme.lims" });
        let foreign: OpenEnvelope = serde_json::from_value(wire).unwrap();
        let operator = OperatorId::registered("a");
        assert_eq!(foreign.metadata.correlation_key(), Some(format!("{operator}/{onboarding}")));
    }
}
