//! The event with which an operator replays one stream record or one queue message.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The beginning of the event's JSON. AWS's own events begin with `Records`.
pub const START: &str = "{\"replay\":";

/// The event of a replay.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ReplayEvent<'a> {
    /// The record or message, as Lambda would deliver it in a batch.
    #[serde(borrow)]
    pub replay: &'a RawValue,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_event_begins_as_its_reader_expects() {
        let record = r#"{"kinesis": 1.50}"#;
        let replay = serde_json::from_str(record).unwrap();
        let event = serde_json::to_string(&ReplayEvent { replay }).unwrap();
        // The record's text is not serialized again: its numbers keep their digits.
        assert_eq!(event, format!("{START}{record}}}"));
        assert_eq!(serde_json::from_str::<ReplayEvent>(&event).unwrap().replay.get(), record);
    }
}
