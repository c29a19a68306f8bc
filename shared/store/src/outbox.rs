//! The events table: outbox and event log in one.

use contracts::{Entity, Envelope, Event, EventId, Metadata, OnboardingId, Saga, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::{Item, StoreError, Table};

/// Over how many partitions the index of unpublished events is spread.
pub const UNPUBLISHED_SHARDS: u8 = 8;

/// The events table, as those see it who add to it.
#[derive(Clone, Debug)]
pub struct Outbox(Table);

impl Outbox {
    /// The outbox in that table.
    #[must_use]
    pub fn new(table: Table) -> Self {
        Self(table)
    }

    pub(crate) fn table_name(&self) -> &str {
        self.0.name()
    }
}

/// An event about to be committed together with what it tells of.
#[derive(Clone, Debug)]
pub struct NewEvent<D> {
    /// What it is about.
    pub entity: Entity,
    /// The entity's events so far, plus one.
    pub sequence: u64,
    /// The onboarding that it belongs to.
    pub correlation_id: OnboardingId,
    /// The event that led to it.
    pub causation_id: Option<Uuid>,
    /// The time of the transaction.
    pub occurred_at: Timestamp,
    /// What happened.
    pub data: D,
}

/// A row of the events table: key `entity` (`type#id`) and `sequence`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventRow {
    /// `type#id`.
    pub entity: String,
    /// Counts the entity's events from 1.
    pub sequence: u64,
    /// EventBridge's `detail-type`; partition key of the index `byType`.
    #[serde(rename = "type")]
    pub kind: String,
    /// EventBridge's `source`.
    pub source: String,
    /// RFC 3339 with milliseconds; sort key of the indexes.
    pub occurred_at: Timestamp,
    /// Partition key of the index `byCorrelation`.
    pub correlation_id: OnboardingId,
    /// The whole `detail`, `{metadata, data}`, as JSON text: what was committed is what is sent.
    pub detail: String,
    /// Partition key of the sparse index `unpublished`; removed when the event is published or refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpublished: Option<String>,
    /// When EventBridge took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_at: Option<Timestamp>,
    /// Why the event can't be published; removed when a replay publishes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl EventRow {
    /// `detail`, read back.
    pub fn envelope(&self) -> Result<Envelope<Value>, serde_json::Error> {
        serde_json::from_str(&self.detail)
    }
}

impl<D: Event> NewEvent<D> {
    /// An event of a saga's step.
    pub fn of(
        saga: Saga,
        entity: impl Into<Entity>,
        sequence: u64,
        occurred_at: Timestamp,
        data: D,
    ) -> Self {
        Self {
            entity: entity.into(),
            sequence,
            correlation_id: saga.onboarding_id,
            causation_id: saga.causation_id,
            occurred_at,
            data,
        }
    }

    /// The row that it becomes.
    pub fn row(self) -> Result<EventRow, StoreError> {
        let key = self.entity.to_string();
        let corrupt = |reason: String| StoreError::Corrupt { row: key.clone(), reason };
        if self.entity.kind != D::ENTITY {
            return Err(corrupt(format!("{} is no event of it", D::TYPE)));
        }
        let envelope = Envelope {
            metadata: Metadata {
                event_id: EventId::of(&self.entity, self.sequence),
                kind: D::TYPE.to_owned(),
                version: D::VERSION,
                occurred_at: self.occurred_at,
                entity: self.entity,
                sequence: self.sequence,
                correlation_id: self.correlation_id,
                causation_id: self.causation_id,
            },
            data: self.data,
        };
        let detail =
            serde_json::to_string(&envelope).map_err(|error| corrupt(error.to_string()))?;
        let shard = self.entity.id.as_bytes()[0] % UNPUBLISHED_SHARDS;
        Ok(EventRow {
            entity: key,
            sequence: self.sequence,
            kind: D::TYPE.to_owned(),
            source: D::ENTITY.source().to_owned(),
            occurred_at: self.occurred_at,
            correlation_id: self.correlation_id,
            detail,
            unpublished: Some(shard.to_string()),
            published_at: None,
            refused: None,
        })
    }

    pub(crate) fn item(self) -> Result<Item, StoreError> {
        let row = self.row()?;
        serde_dynamo::to_item(&row).map_err(|error| StoreError::Corrupt {
            row: row.entity.clone(),
            reason: error.to_string(),
        })
    }
}
