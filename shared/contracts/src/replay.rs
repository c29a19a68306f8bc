//! The event with which an engineer on call replays one stream record or one queue message.

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

/// The event with which an engineer on call rebuilds a replayable consumer from the log: `{"replay": true, "action":
/// "begin"}` and so on.
///
/// `begin` creates an empty generation of the consumer's rows, `apply` applies the events of some entities to it,
/// `finish` makes it the one that readers see, `abort` gives it up, and `clean` deletes the rows of generations that are
/// neither current nor being built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "camelCase")]
pub enum Rebuild {
    /// Starts a new generation, or continues the one that is being built. The reply is [`Begun`].
    Begin,
    /// Applies all events of these entities that the generation does not have yet. The reply is [`Applied`].
    Apply {
        /// The generation.
        generation: u64,
        /// The entities' keys in the log, at most [`Rebuild::MAX_ENTITIES`].
        entities: Vec<String>,
        /// Whether the caller repeats the call if [`Applied::more`] is true. An earlier fieldctl, which takes every
        /// reply as complete, does not send this. It gets a transient error instead of a partial reply.
        #[serde(default, skip_serializing_if = "is_false")]
        partial: bool,
    },
    /// Makes the generation the current one. The reply is an empty object.
    Finish {
        /// The generation.
        generation: u64,
    },
    /// Gives up the generation that is being built. Readers still see the current one. The reply is [`Aborted`].
    Abort,
    /// Deletes some rows of earlier and aborted generations. The reply is [`Cleaned`].
    Clean,
}

impl Rebuild {
    /// The maximum number of entities in one `apply`.
    pub const MAX_ENTITIES: usize = 100;

    /// Returns the event as JSON, with `replay` first. The member marks the event for its reader.
    pub fn event(&self) -> Result<String, serde_json::Error> {
        let action = serde_json::to_string(self)?;
        Ok(format!("{START}true,{}", action.trim_start_matches('{')))
    }
}

/// The reply to [`Rebuild::Begin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// The generation that is being built.
    pub generation: u64,
}

/// The reply to [`Rebuild::Apply`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The number of events that were applied.
    pub applied: u64,
    /// The entities whose events can't all be applied, at most [`Rebuild::MAX_ENTITIES`]. A repeated call can't apply
    /// them either, unless the log was repaired.
    #[serde(default)]
    pub failed: Vec<FailedEntity>,
    /// Whether events may be left. If so, the same call has to be sent again. At least one event was applied, so the
    /// caller gets to the end.
    #[serde(default, skip_serializing_if = "is_false")]
    pub more: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// An entity whose events can't all be applied.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FailedEntity {
    /// The entity's key in the log.
    pub entity: String,
    /// Why the first of these events can't be applied.
    pub reason: String,
}

/// The reply to [`Rebuild::Abort`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aborted {
    /// The generation that was being built. `None` if there was none.
    pub generation: Option<u64>,
}

/// The reply to [`Rebuild::Clean`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleaned {
    /// The number of rows that were deleted.
    pub deleted: u64,
    /// Whether rows may be left. If so, call again after a moment.
    pub more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rebuild_is_a_flat_object_that_begins_with_replay() {
        let apply = |partial| {
            let apply =
                Rebuild::Apply { generation: 2, entities: vec!["site#1".to_owned()], partial };
            let event = apply.event().unwrap();
            assert_eq!(serde_json::from_str::<Rebuild>(&event).unwrap(), apply);
            event
        };
        let wire = r#"{"replay":true,"action":"apply","generation":2,"entities":["site#1"]}"#;
        assert_eq!(apply(false), wire, "the call of an earlier fieldctl");
        assert_eq!(apply(true), wire.replace('}', r#","partial":true}"#));
        assert_eq!(Rebuild::Begin.event().unwrap(), r#"{"replay":true,"action":"begin"}"#);
        assert_eq!(Rebuild::Abort.event().unwrap(), r#"{"replay":true,"action":"abort"}"#);
    }

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
