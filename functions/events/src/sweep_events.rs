//! Publishes events that stayed unpublished, every minute, and reports the age of the oldest one.

use std::{collections::HashSet, time::Duration};

use aws_lambda_events::eventbridge::EventBridgeEvent;
use contracts::{OnboardingId, Timestamp};
use lambda::{Deadline, Step};
use serde::Serialize;
use serde_json::Value;
use store::{Item, Page, StoreError, UNPUBLISHED_SHARDS};

use crate::{
    EventsError,
    publisher::{EventKey, Named, Publisher, Unpublished},
};

/// The minimum age of an event for the sweep. Younger events are still on their way through the stream.
const GRACE: Duration = Duration::from_mins(1);
/// The number of events per page of an index shard.
const PAGE: i32 = 100;

/// The function sweep-events.
#[derive(Debug)]
pub struct SweepEvents {
    /// The publisher of the events that are found.
    pub publisher: Publisher,
    /// The maximum duration of a sweep. It must be less than the function's timeout.
    pub time: Duration,
}

/// The result of the invocation. It is only logged.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// The number of unpublished events that were found.
    pub found: usize,
    /// The age of the oldest one, in seconds.
    pub oldest_age_seconds: i64,
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
        let mut reply = Reply::default();
        let mut unpublished: Vec<Unpublished> = Vec::new();
        let mut stuck: HashSet<String> = HashSet::new();
        let mut starts: Vec<(u8, Option<Item>)> =
            (0..UNPUBLISHED_SHARDS).map(|shard| (shard, None)).collect();
        let mut first_round = true;
        // Each round reads one page of each shard, so that no shard uses up the time of the others.
        while !starts.is_empty() && !deadline.passed() {
            let (mut items, mut next) = (Vec::new(), Vec::new());
            for (shard, start) in starts {
                let page = self.page(shard, until, start).await?;
                items.extend(page.items);
                next.extend(page.next.map(|start| (shard, Some(start))));
            }
            starts = next;
            if first_round {
                // The first page of each shard begins with the shard's oldest event.
                reply.oldest_age_seconds = oldest_age(&items, now);
                #[expect(clippy::cast_precision_loss, reason = "an age in seconds")]
                lambda::report("OldestUnpublishedEventAgeSeconds", reply.oldest_age_seconds as f64);
                first_round = false;
            }
            reply.found += items.len();
            let keys = items.iter().filter_map(EventKey::from_item);
            // An earlier event of these entities failed in this sweep.
            let (late, keys): (Vec<_>, Vec<_>) = keys.partition(|key| stuck.contains(&key.entity));
            let reason = "an earlier event was not published";
            let late = late.into_iter();
            unpublished.extend(late.map(|event| Unpublished::for_now(event, reason)));
            let named = keys.into_iter().map(|key| Named { key, record: None }).collect();
            let failed = self.publisher.publish(named, deadline).await?;
            stuck.extend(failed.iter().map(|failed| failed.event.entity.clone()));
            unpublished.extend(failed);
        }
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

fn oldest_age(items: &[Item], now: Timestamp) -> i64 {
    // An invalid row must not stop the sweep of the others.
    let occurred_at = |item: &Item| item.get("occurredAt")?.as_s().ok()?.parse::<Timestamp>().ok();
    let oldest = items.iter().filter_map(occurred_at).min();
    oldest.map_or(0, |oldest| now.seconds() - oldest.seconds())
}

impl SweepEvents {
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
            .limit(PAGE)
            .page(start)
            .await
    }
}
