//! Replays: an engineer on call calls a function with one failed record or message, and waits for the outcome.
//!
//! The response to a batch does not show whether the work succeeded: a record that was quarantined, or a command that
//! was sent back to its queue, counts as success. So a replay has its own event and response. In a replay nothing is
//! quarantined or sent back, and the response contains the outcome.

use aws_lambda_events::event::sqs::SqsMessage;
use contracts::replay::{ReplayEvent, START};
use fault::{ErrorKind, InvocationError, ReplayResponse, decode};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use crate::{Deadline, Error, serve_raw};

/// A response to Lambda, or to an engineer on call.
#[derive(Serialize)]
#[serde(untagged)]
enum Response<R> {
    Batch(R),
    Replay(ReplayResponse),
}

/// Returns the record or message to replay. Returns `None` if the event is a batch.
fn item_to_replay(event: &RawValue) -> Result<Option<&RawValue>, InvocationError> {
    if event.get().starts_with(START) {
        Ok(Some(decode::<ReplayEvent>(event.get())?.replay))
    } else {
        Ok(None)
    }
}

/// Serves a stream's event source mapping, and replays of single records.
pub async fn serve_stream<R: Serialize>(
    batch: impl AsyncFn(&RawValue, Deadline) -> Result<R, InvocationError>,
    replay: impl AsyncFn(&RawValue, Deadline) -> ReplayResponse,
) -> Result<(), Error> {
    let (batch, replay) = (&batch, &replay);
    serve_raw(async |event, deadline| match item_to_replay(&event)? {
        Some(record) => {
            let outcome = timeout(deadline.remaining(), Box::pin(replay(record, deadline))).await;
            let timed_out = |_| ReplayResponse::transient("the function's deadline passed");
            Ok(Response::Replay(outcome.unwrap_or_else(timed_out)))
        }
        None => Box::pin(batch(&event, deadline)).await.map(Response::Batch),
    })
    .await
}

/// Serves the queue of a saga's commands like [`crate::serve_queue`], and replays of single messages.
pub async fn serve_commands(
    work: impl AsyncFn(SqsMessage, Deadline) -> Result<(), String>,
    replay: impl AsyncFn(SqsMessage, Deadline) -> ReplayResponse,
) -> Result<(), Error> {
    let replay = &replay;
    serve_stream(
        async |event, deadline| crate::batch::process_messages(event, deadline, &work).await,
        async |message, deadline| match decode(message.get()) {
            Ok(message) => replay(message, deadline).await,
            Err(error) => ReplayResponse::failed(ErrorKind::InvalidInput.name(), error.to_string()),
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
    fn only_an_event_that_begins_with_replay_is_a_replay() {
        for batch in [r#"{"Records": [{"replay": 1}]}"#, "{}", r#"{"Records": [], "replay": 1}"#] {
            assert!(item_to_replay(&raw(batch)).expect("an event").is_none(), "{batch}");
        }
        let event = raw(r#"{"replay": {"kinesis": 1}}"#);
        assert_eq!(
            item_to_replay(&event).expect("an event").expect("a replay").get(),
            r#"{"kinesis": 1}"#
        );
        assert!(item_to_replay(&raw(r#"{"again": 1}"#)).expect("an event").is_none());
    }
}
