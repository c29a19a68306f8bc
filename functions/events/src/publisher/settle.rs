//! Settling an event: one mark when both outlets have accepted or refused it, and the quarantine if one refused it
//! permanently.

use aws_sdk_dynamodb::types::AttributeValue;
use contracts::Timestamp;
use quarantine::Reason;
use serde_json::json;
use store::{Commit, Item, Transaction};

use super::{
    EventKey, Publisher,
    outlet::{Sent, Side},
    request::PendingEvent,
};

/// The maximum length of the reason in a refused row, in characters.
const MAX_REASON_CHARS: usize = 1_000;

/// The result of settling an event of which nothing is left to send.
#[derive(Debug)]
pub(super) enum Settlement {
    /// The event is marked, or it is published and the mark failed.
    Done,
    /// A replayed event was refused again: the error name and the reason.
    Refused(&'static str, String),
    /// The event was refused, and that could not be recorded.
    Failed(String),
}

impl Publisher {
    /// Marks an event that both outlets accepted. Quarantines an event that one of them refused.
    pub(super) async fn settle(
        &self,
        event: &PendingEvent<'_>,
        stream: &Sent,
        bus: &Sent,
    ) -> Settlement {
        let Some((error, reason)) = refusal(stream, bus) else {
            self.mark_published(&event.key).await;
            return Settlement::Done;
        };
        match self.quarantine_event(event, error, &reason).await {
            Ok(()) if event.replay => Settlement::Refused(error, reason),
            Ok(()) => Settlement::Done,
            Err(reason) => Settlement::Failed(reason),
        }
    }

    /// Marks a row as published.
    ///
    /// If the mark fails, the event stays in the index `unpublished`, and this execution environment remembers that
    /// both outlets have it. Another execution environment may send it a second time.
    async fn mark_published(&self, key: &EventKey) {
        let now = AttributeValue::S(Timestamp::now().to_string());
        let mark = Transaction::on(&self.events).update(
            &self.events,
            &key.key(),
            "SET #publishedAt = :publishedAt REMOVE unpublished, refused",
            Some("attribute_exists(entity)"),
            [("publishedAt", now)],
        );
        let error = match mark.commit().await {
            Ok(Commit::Done) => {
                self.memory.forget(key);
                metrics::counter!("EventsPublished").increment(1);
                return;
            }
            Ok(Commit::Refused(_)) => "the row does not exist".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::error!(
            entity = key.entity,
            sequence = key.sequence,
            error,
            "the event is published but not marked"
        );
    }

    /// Puts an event into the quarantine, then marks its row as refused. A refused row is not in the index
    /// `unpublished`.
    ///
    /// A replay of the quarantined record publishes the event. If the replay is refused again, no second message is
    /// sent: the failure is still open, and a message would count it twice.
    async fn quarantine_event(
        &self,
        event: &PendingEvent<'_>,
        error: &str,
        reason: &str,
    ) -> Result<(), String> {
        let why = Reason::new(error, reason);
        match event.record {
            _ if event.replay => {}
            Some(record) => self.quarantine.put(&record, why).await?,
            None => self.quarantine.put(&self.as_record(&event.item), why).await?,
        }
        // The reason begins with the error name, because `is_settled` reads it: after `EventRefused`, the earlier events are
        // settled on the stream. After another name, they may not be.
        let refusal: String = format!("{error}: {reason}").chars().take(MAX_REASON_CHARS).collect();
        let mark = Transaction::on(&self.events).update(
            &self.events,
            &event.key.key(),
            "SET #refused = :refused REMOVE unpublished",
            Some("attribute_exists(entity) AND attribute_not_exists(publishedAt)"),
            [("refused", AttributeValue::S(refusal))],
        );
        match mark.commit().await {
            // The condition refuses the mark if the row is gone, or if another publisher has published the event.
            Ok(Commit::Done | Commit::Refused(_)) => {
                self.memory.forget(&event.key);
                Ok(())
            }
            Err(error) => {
                Err(format!("{reason}; and the event's row can't be marked as refused: {error}"))
            }
        }
    }

    /// Returns a row as the stream record of its insertion, which publish-events can replay.
    fn as_record(&self, item: &Item) -> serde_json::Value {
        let typed = |item: Item| json!(serde_dynamo::Item::from(item));
        let key = EventKey::from_item(item).map(|key| key.key().item()).unwrap_or_default();
        json!({
            "eventID": "",
            "eventName": "INSERT",
            "eventSource": "aws:dynamodb",
            "awsRegion": self.events.region().unwrap_or_default(),
            "dynamodb": {
                "Keys": typed(key),
                "NewImage": typed(item.clone()),
                // The row was not read from the stream, so it has no sequence number there.
                "SequenceNumber": "0",
                "SizeBytes": 0,
                "StreamViewType": "NEW_IMAGE",
            },
        })
    }
}

/// Returns the error name and the reason of a refusal. The reason names the outlets that refused.
fn refusal(stream: &Sent, bus: &Sent) -> Option<(&'static str, String)> {
    match (stream, bus) {
        // A row that is not an event was sent to neither outlet.
        (Sent::Refused(error, reason), Sent::Refused(_, same)) if reason == same => {
            Some((error, reason.clone()))
        }
        (Sent::Refused(error, stream), Sent::Refused(_, bus)) => {
            let [on_stream, on_bus] = [Side::Stream, Side::Bus].map(Side::name);
            Some((error, format!("{on_stream} refused it: {stream}; {on_bus} refused it: {bus}")))
        }
        (Sent::Refused(error, reason), _) => {
            Some((error, format!("{} refused it: {reason}", Side::Stream.name())))
        }
        (_, Sent::Refused(error, reason)) => {
            Some((error, format!("{} refused it: {reason}", Side::Bus.name())))
        }
        _ => None,
    }
}
