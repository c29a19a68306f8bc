//! Publishes events that stayed unpublished, every minute, and reports the age of the oldest one.
//!
//! Events that can't be published yet are no error of the sweep: they stay in the index, the next sweep finds them, and
//! the age of the oldest one raises the alarm. An error would be recorded as a failure every minute while an outlet is
//! down.

use std::time::Duration;

use aws_lambda_events::eventbridge::EventBridgeEvent;
use contracts::{OnboardingId, Timestamp};
use lambda::{Deadline, Step};
use serde::Serialize;
use serde_json::Value;
use store::{Item, Page, SHARDS, StoreError};

use crate::publisher::{EventKey, PublishRequest, Publisher, Unpublished};

/// The minimum age of an event for the sweep. publish-events may still get younger events from the table's stream.
const MIN_AGE: Duration = Duration::from_mins(1);
/// The number of events per page of an index shard.
const PAGE_SIZE: i32 = 100;

/// The function sweep-events.
#[derive(Debug)]
pub struct SweepEvents {
    /// The publisher of the events that are found.
    pub publisher: Publisher,
    /// The maximum duration of a sweep. It must be less than the function's timeout.
    pub timeout: Duration,
}

/// The result of the invocation. The call is asynchronous, so Lambda discards it; only tests read it.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// The number of unpublished events that were found.
    pub found: usize,
    /// The number of them that could not be published. The next sweep tries again.
    pub unpublished: usize,
    /// The age of the oldest one that was found, in seconds.
    pub oldest_age_seconds: i64,
}

impl Step for SweepEvents {
    type Command = EventBridgeEvent<Value>;
    type Reply = Reply;
    type Error = StoreError;

    fn correlation(_: &Self::Command) -> Option<OnboardingId> {
        None
    }

    async fn run(&self, _: Self::Command, now: Timestamp) -> Result<Reply, StoreError> {
        let deadline = Deadline::after(self.timeout);
        let min_age = i64::try_from(MIN_AGE.as_millis()).unwrap_or(i64::MAX);
        let until = now.plus_millis(-min_age);
        let mut reply = Reply::default();
        let mut unpublished: Vec<Unpublished> = Vec::new();
        let mut page_starts: Vec<(u8, Option<Item>)> =
            (0..SHARDS).map(|shard| (shard, None)).collect();
        let mut first_round = true;
        // Each round reads one page of each shard, so that no shard uses up the time of the others.
        while !page_starts.is_empty() && !deadline.passed() {
            let (mut items, mut next) = (Vec::new(), Vec::new());
            for (shard, start) in page_starts {
                let page = self.page(shard, until, start).await?;
                items.extend(page.items);
                next.extend(page.next.map(|start| (shard, Some(start))));
            }
            page_starts = next;
            if first_round {
                // The first page of each shard begins with the shard's oldest event.
                reply.oldest_age_seconds = oldest_age(&items, now);
                #[expect(clippy::cast_precision_loss, reason = "an age in seconds")]
                lambda::report("OldestUnpublishedEventAgeSeconds", reply.oldest_age_seconds as f64);
                first_round = false;
            }
            reply.found += items.len();
            let keys = items.iter().filter_map(EventKey::from_item).collect();
            unpublished.extend(self.publish(keys, deadline).await?);
        }
        reply.unpublished = unpublished.len();
        if let Some(Unpublished { event: EventKey { entity, sequence }, reason, .. }) =
            unpublished.first()
        {
            let (events, found) = (reply.unpublished, reply.found);
            tracing::error!(events, found, entity, sequence, %reason, "events can't be published");
        }
        Ok(reply)
    }
}

fn oldest_age(items: &[Item], now: Timestamp) -> i64 {
    // An invalid row must not stop the sweep of the others.
    let occurred_at = |item: &Item| item.get("occurredAt")?.as_s().ok()?.parse::<Timestamp>().ok();
    let oldest = items.iter().filter_map(occurred_at).min();
    oldest.map_or(0, |oldest| now.seconds() - oldest.seconds())
}

impl SweepEvents {
    /// Publishes events, in several runs if they are too large for one. Returns those that are not published.
    async fn publish(
        &self,
        mut keys: Vec<EventKey>,
        deadline: Deadline,
    ) -> Result<Vec<Unpublished>, StoreError> {
        let mut unpublished = Vec::new();
        loop {
            let requests = keys.into_iter().map(|key| PublishRequest { key, record: None });
            let rest = self.publisher.publish(requests.collect(), deadline).await?;
            let (unread, failed): (Vec<_>, Vec<_>) = rest.into_iter().partition(|it| it.is_unread);
            unpublished.extend(failed);
            if unread.is_empty() || deadline.passed() {
                unpublished.extend(unread);
                return Ok(unpublished);
            }
            keys = unread.into_iter().map(|unread| unread.event).collect();
        }
    }

    /// Reads a page of one shard of the index `unpublished`.
    async fn page(
        &self,
        shard: u8,
        until: Timestamp,
        start: Option<Item>,
    ) -> Result<Page, StoreError> {
        self.publisher
            .events
            .query("unpublished = :shard AND occurredAt < :until")
            .index("unpublished")
            .text("shard", shard)
            .text("until", until)
            .limit(PAGE_SIZE)
            .page(start)
            .await
    }
}
