//! Replays: an operator calls a function with one failed record, or one failed message, and waits for the
//! outcome.
//!
//! Lambda's answer to a batch names only what has to come again. A function that sets a record aside, or
//! sends a command back to its queue, answers as if all was well, and the work fails a moment later. So a
//! replay has an event and an answer of its own: nothing is set aside or sent back, and the answer says
//! what happened.

use aws_lambda_events::event::sqs::SqsMessage;
use contracts::replay::{ReplayEvent, START};
use fault::{ErrorKind, Failure, Replayed, decode};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use crate::{Deadline, Error, serve_raw};

/// An answer to Lambda, or to an operator.
#[derive(Serialize)]
#[serde(untagged)]
enum Answer<R> {
    Batch(R),
    Replay(Replayed),
}

/// The record or message that the event asks to replay; `None` for a batch.
fn replayed(event: &RawValue) -> Result<Option<&RawValue>, Failure> {
    if event.get().starts_with(START) {
        Ok(Some(decode::<ReplayEvent>(event.get())?.replay))
    } else {
        Ok(None)
    }
}

/// Serves a stream's mapping, and the replays of single records.
pub async fn serve_stream<R: Serialize>(
    batch: impl AsyncFn(&RawValue, Deadline) -> Result<R, Failure>,
    replay: impl AsyncFn(&RawValue, Deadline) -> Replayed,
) -> Result<(), Error> {
    let (batch, replay) = (&batch, &replay);
    serve_raw(async |event, deadline| match replayed(&event)? {
        Some(record) => {
            let outcome = timeout(deadline.left(), Box::pin(replay(record, deadline))).await;
            let late = |_| Replayed::transient("the function's time ran out");
            Ok(Answer::Replay(outcome.unwrap_or_else(late)))
        }
        None => Box::pin(batch(&event, deadline)).await.map(Answer::Batch),
    })
    .await
}

/// Serves the queue of a saga's commands: as [`crate::serve_queue`], and the replays of single messages.
pub async fn serve_commands(
    work: impl AsyncFn(SqsMessage, Deadline) -> Result<(), String>,
    replay: impl AsyncFn(SqsMessage, Deadline) -> Replayed,
) -> Result<(), Error> {
    let replay = &replay;
    serve_stream(
        async |event, deadline| crate::batch::messages(event, deadline, &work).await,
        async |message, deadline| match decode(message.get()) {
            Ok(message) => replay(message, deadline).await,
            Err(error) => Replayed::failed(ErrorKind::InvalidInput.name(), error.to_string()),
        },
    )
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).expect("JSON")
    }

    #[test]
    fn only_a_replays_event_is_a_replay() {
        for batch in [r#"{"Records": [{"replay": 1}]}"#, "{}", r#"{"Records": [], "replay": 1}"#] {
            assert!(replayed(&raw(batch)).expect("an event").is_none(), "{batch}");
        }
        let event = raw(r#"{"replay": {"kinesis": 1}}"#);
        assert_eq!(
            replayed(&event).expect("an event").expect("a replay").get(),
            r#"{"kinesis": 1}"#
        );
        assert!(replayed(&raw(r#"{"again": 1}"#)).expect("an event").is_none());
    }
}
