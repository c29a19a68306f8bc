//! Once a minute: publishes what stayed unpublished, and reports the age of the oldest of it.

use std::time::Duration;

use aws_lambda_events::eventbridge::EventBridgeEvent;
use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{OnboardingId, Timestamp};
use lambda::{Deadline, Step};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::{StoreError, UNPUBLISHED_SHARDS};

use crate::{
    EventsError,
    publisher::{EventKey, KEYS_PER_CALL, Publisher},
};

/// Younger events are still on their way through the stream.
const GRACE: Duration = Duration::from_mins(1);
/// So many of a shard at a time; the next minute takes the next ones.
const LARGEST_SWEEP: i32 = 100;

/// What the step needs.
#[derive(Debug)]
pub struct SweepEvents {
    /// The way to the bus.
    pub publisher: Publisher,
    /// How long a sweep may take: less than the function's time-out.
    pub time: Duration,
}

/// What it answers; seen only in the log.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// How many were found unpublished.
    pub found: usize,
    /// Age of the oldest, in seconds.
    pub oldest_age_seconds: i64,
}

/// A row as the index `unpublished` holds it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Indexed {
    entity: String,
    sequence: u64,
    /// Text: a row that is broken must not stop the sweep of the others.
    occurred_at: String,
}

impl Step for SweepEvents {
    type Command = EventBridgeEvent<Value>;
    type Reply = Reply;
    type Error = EventsError;

    fn correlation(_: &Self::Command) -> Option<OnboardingId> {
        None
    }

    async fn run(&self, _: Self::Command, now: Timestamp) -> Result<Reply, EventsError> {
        let deadline = Deadline::after(self.time);
        let grace = i64::try_from(GRACE.as_millis()).unwrap_or(i64::MAX);
        let until = now.plus_millis(-grace);
        let mut found = Vec::new();
        for shard in 0..UNPUBLISHED_SHARDS {
            found.extend(self.unpublished(shard, until).await?);
        }
        let times = found.iter().filter_map(|event| event.occurred_at.parse::<Timestamp>().ok());
        let oldest = times.min();
        let age = oldest.map_or(0, |oldest| now.seconds() - oldest.seconds());
        #[expect(clippy::cast_precision_loss, reason = "an age in seconds")]
        metrics::gauge!("OldestUnpublishedEventAgeSeconds").set(age as f64);

        let keys: Vec<EventKey> =
            found.into_iter().map(|event| (event.entity, event.sequence)).collect();
        let reply = Reply { found: keys.len(), oldest_age_seconds: age };
        let (mut rows, mut unpublished) = (Vec::new(), Vec::new());
        for chunk in keys.chunks(KEYS_PER_CALL) {
            let (events, broken) = self.publisher.read(chunk.to_vec()).await?;
            rows.extend(events);
            unpublished.extend(broken);
        }
        unpublished.extend(self.publisher.publish(rows, deadline).await);
        match unpublished.first() {
            None => Ok(reply),
            Some(first) => Err(EventsError::Unpublished {
                unpublished: unpublished.len(),
                found: reply.found,
                reason: first.reason.clone(),
            }),
        }
    }
}

impl SweepEvents {
    async fn unpublished(&self, shard: u8, until: Timestamp) -> Result<Vec<Indexed>, StoreError> {
        let events = &self.publisher.events;
        let answer = events
            .client()
            .query()
            .table_name(events.name())
            .index_name("unpublished")
            .key_condition_expression("unpublished = :shard AND occurredAt < :until")
            .expression_attribute_values(":shard", AttributeValue::S(shard.to_string()))
            .expression_attribute_values(":until", AttributeValue::S(until.to_string()))
            .limit(LARGEST_SWEEP)
            .send()
            .await?;
        let items = answer.items.unwrap_or_default().into_iter();
        items
            .map(|item| {
                serde_dynamo::from_item(item).map_err(|error| StoreError::Corrupt {
                    row: "of the index unpublished".to_owned(),
                    reason: error.to_string(),
                })
            })
            .collect()
    }
}
