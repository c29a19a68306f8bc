//! The events table. It is both the outbox and the event log.

#[cfg(doc)]
use contracts::open::OpenMetadata;
use contracts::{
    Entity, Envelope, Event, EventId, Metadata, OnboardingId, OperatorId, SagaContext, Timestamp,
    open::OpenEnvelope,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Item, StoreError, Table, table::to_item};

/// The number of shards. The index `unpublished` has this many partitions. In the index `byTypeAndTime`, the events of
/// one operator, type and day are spread over this many partitions.
pub const SHARDS: u8 = 8;

/// Returns the shard of an entity's events, by a hash of its key in the log.
#[must_use]
pub fn shard(entity: &str) -> u8 {
    Uuid::new_v5(&Uuid::nil(), entity.as_bytes()).as_bytes()[0] % SHARDS
}

/// Returns the partition key of the index `byTypeAndTime`: `<operator>/<type>/<day>/<shard>`.
///
/// One type can make up most of the events. So the events of one type and day are spread over [`SHARDS`] partitions.
/// The operator comes first, so that a query never reads events of another operator.
#[must_use]
pub fn type_bucket(operator: OperatorId, kind: &str, at: Timestamp, shard: u8) -> String {
    format!("{operator}/{kind}/{}/{shard}", at.day())
}

/// A handle for adding events to the events table.
#[derive(Clone, Debug)]
pub struct Outbox(Table);

impl Outbox {
    /// Creates an outbox that adds events to this table.
    #[must_use]
    pub fn new(table: Table) -> Self {
        Self(table)
    }

    pub(crate) fn table_name(&self) -> &str {
        self.0.name()
    }
}

/// An event to commit together with the change that it reports.
#[derive(Clone, Debug)]
pub struct NewEvent<D> {
    /// The entity that the event is about.
    pub entity: Entity,
    /// The position of the event among the entity's events, from 1.
    pub sequence: u64,
    /// The onboarding that the event belongs to. `None` if it belongs to no site.
    pub correlation_id: Option<OnboardingId>,
    /// The operator that owns the entity.
    pub operator_id: OperatorId,
    /// The event that caused this one.
    pub causation_id: Option<Uuid>,
    /// The time of the transaction.
    pub occurred_at: Timestamp,
    /// The payload.
    pub data: D,
}

/// A row of the events table. Its key is `entity` and `sequence`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventRow {
    /// The entity's key in the log: `<type>#<id>`, and `<operator>/<type>#<id>` for an entity of another system.
    pub entity: String,
    /// The position of the event among the entity's events, from 1.
    pub sequence: u64,
    /// EventBridge's `detail-type`. In the rows of Fieldstation's own events it is the attribute `type`, the partition
    /// key of the index `byType`. Events of other systems are not in that index: their attribute is `eventType`.
    #[serde(rename = "type", alias = "eventType")]
    pub kind: String,
    /// EventBridge's `source`.
    pub source: String,
    /// RFC 3339 with milliseconds. Sort key of the indexes.
    pub occurred_at: Timestamp,
    /// Partition key of the index `byCorrelation`: the onboarding of the site, or [`OpenMetadata::correlation_key`] for
    /// an event of another system. Absent if the event has no correlation id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// The operator that owns the entity. Rows of releases before there were operators have none.
    #[serde(default)]
    pub operator_id: OperatorId,
    /// Partition key of the index `byTypeAndTime`; see [`type_bucket`]. Rows of earlier releases have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub type_bucket: Option<String>,
    /// The whole `detail`, `{metadata, data}`, as JSON text. It is published unchanged.
    pub detail: String,
    /// Partition key of the sparse index `unpublished`. Removed when the event is published or refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpublished: Option<String>,
    /// When both outlets, the stream of all events and the bus, had the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_at: Option<Timestamp>,
    /// Why the event can't be published. Removed when a replay publishes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl EventRow {
    /// Parses `detail`. It may be an event of another system, and of any entity.
    pub fn envelope(&self) -> Result<OpenEnvelope, serde_json::Error> {
        serde_json::from_str(&self.detail)
    }

    /// Converts the row of an event of another system. Its type is the attribute `eventType`, so it is not in the index
    /// `byType`.
    pub(crate) fn foreign_item(&self) -> Result<Item, StoreError> {
        let mut item = item(self)?;
        if let Some(kind) = item.remove("type") {
            item.insert("eventType".to_owned(), kind);
        }
        Ok(item)
    }
}

impl<D: Event> NewEvent<D> {
    /// Creates an event of this saga's onboarding.
    pub fn in_saga(
        saga: SagaContext,
        entity: impl Into<Entity>,
        sequence: u64,
        occurred_at: Timestamp,
        data: D,
    ) -> Self {
        Self {
            entity: entity.into(),
            sequence,
            correlation_id: Some(saga.onboarding_id),
            operator_id: saga.operator_id,
            causation_id: saga.causation_id,
            occurred_at,
            data,
        }
    }

    /// Converts the event to its row.
    pub fn row(self) -> Result<EventRow, StoreError> {
        let key = self.entity.to_string();
        let corrupt = |reason: String| StoreError::Corrupt { row: key.clone(), reason };
        if self.entity.kind != D::ENTITY {
            return Err(corrupt(format!("{} is not an event of this entity type", D::TYPE)));
        }
        let envelope = Envelope {
            metadata: Metadata {
                event_id: EventId::from_entity(&self.entity, self.sequence),
                kind: D::TYPE.to_owned(),
                version: D::VERSION,
                occurred_at: self.occurred_at,
                entity: self.entity,
                sequence: self.sequence,
                correlation_id: self.correlation_id,
                operator_id: self.operator_id,
                causation_id: self.causation_id,
            },
            data: self.data,
        };
        let detail =
            serde_json::to_string(&envelope).map_err(|error| corrupt(error.to_string()))?;
        Ok(EventRow {
            entity: key.clone(),
            sequence: self.sequence,
            kind: D::TYPE.to_owned(),
            source: D::ENTITY.source().to_owned(),
            occurred_at: self.occurred_at,
            correlation_id: self.correlation_id.map(|id| id.to_string()),
            operator_id: self.operator_id,
            type_bucket: Some(type_bucket(
                self.operator_id,
                D::TYPE,
                self.occurred_at,
                shard(&key),
            )),
            detail,
            unpublished: Some(shard(&key).to_string()),
            published_at: None,
            refused: None,
        })
    }

    pub(crate) fn item(self) -> Result<Item, StoreError> {
        item(&self.row()?)
    }
}

fn item(row: &EventRow) -> Result<Item, StoreError> {
    to_item(row)
        .map_err(|error| StoreError::Corrupt { row: row.entity.clone(), reason: error.to_string() })
}
