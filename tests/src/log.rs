//! The event log: the rows of the events table.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use contracts::{OnboardingId, names};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    Stack,
    wait::{Poll, TIMEOUT, until},
};

/// A row of the events table.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoggedEvent {
    /// `type#id`.
    pub entity: String,
    /// The number of the event among the entity's events, from 1.
    pub sequence: u64,
    /// The `detail-type`.
    #[serde(rename = "type")]
    pub kind: String,
    /// RFC 3339.
    pub occurred_at: String,
    /// When the event was marked as published, after the stream and the bus had accepted it.
    pub published_at: Option<String>,
    /// Set until the event is marked as published or as refused.
    pub unpublished: Option<String>,
    /// The whole `detail` as text.
    pub detail: String,
}

impl LoggedEvent {
    /// Returns the event's id.
    pub fn id(&self) -> Result<String> {
        let detail: Value = serde_json::from_str(&self.detail)?;
        let id = detail["metadata"]["eventId"].as_str();
        Ok(id.with_context(|| format!("no eventId in {}", self.detail))?.to_owned())
    }

    /// Returns whether the event was published and marked as published.
    #[must_use]
    pub fn is_published(&self) -> bool {
        self.published_at.is_some() && self.unpublished.is_none()
    }
}

/// Returns the events of one onboarding in the order of their time.
pub async fn saga_events(stack: &Stack, onboarding: OnboardingId) -> Result<Vec<LoggedEvent>> {
    let rows = stack.rows_with(names::EVENTS, "correlationId", &onboarding.to_string()).await?;
    let mut events = rows
        .into_iter()
        .map(|row| serde_json::from_value(row).context("a row of the events table is not an event"))
        .collect::<Result<Vec<LoggedEvent>>>()?;
    events.sort_by(|a, b| {
        (&a.occurred_at, &a.entity, a.sequence).cmp(&(&b.occurred_at, &b.entity, b.sequence))
    });
    Ok(events)
}

/// Waits until all events of an onboarding are published, and returns them. The onboarding must have ended.
pub async fn published_saga_events(
    stack: &Stack,
    onboarding: OnboardingId,
) -> Result<Vec<LoggedEvent>> {
    until("all events to be published", TIMEOUT, async || {
        let events = saga_events(stack, onboarding).await?;
        let unpublished: Vec<_> = events.iter().filter(|event| !event.is_published()).collect();
        Ok(if unpublished.is_empty() && !events.is_empty() {
            Poll::Ready(events)
        } else {
            Poll::Pending(format!("{} events, of which unpublished: {unpublished:?}", events.len()))
        })
    })
    .await
}

/// Returns the event types by kind of entity, in the order of their sequence.
#[must_use]
pub fn by_entity(events: &[LoggedEvent]) -> BTreeMap<&str, Vec<&str>> {
    let mut sorted: Vec<_> = events.iter().collect();
    sorted.sort_by_key(|event| event.sequence);
    let mut entities = BTreeMap::<_, Vec<_>>::new();
    for event in sorted {
        let kind = event.entity.split('#').next().unwrap_or_default();
        entities.entry(kind).or_default().push(event.kind.as_str());
    }
    entities
}

/// Returns an error for each entity whose sequence does not count from 1 without a gap.
#[must_use]
pub fn gaps(events: &[LoggedEvent]) -> Vec<String> {
    let mut sequences = BTreeMap::<&str, Vec<u64>>::new();
    for event in events {
        sequences.entry(&event.entity).or_default().push(event.sequence);
    }
    let mut errors = Vec::new();
    for (entity, mut sequence) in sequences {
        sequence.sort_unstable();
        if !sequence.iter().copied().eq(1..=sequence.len() as u64) {
            errors.push(format!("the events of {entity} have the sequence numbers {sequence:?}"));
        }
    }
    errors
}
