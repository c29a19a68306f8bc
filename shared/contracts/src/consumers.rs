//! The consumers of events. A rule test compares this list with the templates.

use crate::names::{self, Source};

/// How a consumer processes events that are repeated or out of order. `shared/consumer` implements `Latest` and
/// `Every`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each event is one command. Its effect has a key of its own, so a repeated event has no second effect, and the
    /// order of events does not matter.
    Command,
    /// Only the newest event counts. The sequence is kept in the projected row, and older events are skipped.
    Latest,
    /// Every event counts once, in the order of its entity. A cursor per entity is kept, and gaps are read from the log.
    Every,
}

impl Mode {
    /// Returns the name, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Latest => "latest",
            Self::Every => "every",
        }
    }
}

/// Where a consumer gets its events from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventSource {
    /// A rule of the event bus. EventBridge keeps no order.
    Bus,
    /// The stream of all events, in order per entity.
    Stream,
}

impl EventSource {
    /// Returns the name, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bus => "bus",
            Self::Stream => "stream",
        }
    }
}

/// A function that consumes Fieldstation's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventConsumer {
    /// The function's name without the environment.
    pub function: &'static str,
    /// How it processes repeated events and events out of order.
    pub mode: Mode,
    /// Where it gets its events from.
    pub source: EventSource,
    /// Whether it can be rebuilt from the log, by the payloads of [`Rebuild`](crate::replay::Rebuild).
    pub replayable: bool,
}

/// The function that counts sites and events.
pub const WATCH_NETWORK: &str = "watch-network";

/// All functions that consume Fieldstation's events. Functions that consume only events of other systems, `import-site`
/// and `receive-kits`, are not in the list.
pub const EVENT_CONSUMERS: [EventConsumer; 5] = [
    EventConsumer {
        function: "start-onboarding",
        mode: Mode::Command,
        source: EventSource::Bus,
        replayable: false,
    },
    EventConsumer {
        function: "project-site",
        mode: Mode::Latest,
        source: EventSource::Bus,
        replayable: false,
    },
    EventConsumer {
        function: "project-sensors",
        mode: Mode::Latest,
        source: EventSource::Bus,
        replayable: false,
    },
    EventConsumer {
        function: "project-rules",
        mode: Mode::Latest,
        source: EventSource::Bus,
        replayable: false,
    },
    EventConsumer {
        function: WATCH_NETWORK,
        mode: Mode::Every,
        source: EventSource::Stream,
        replayable: true,
    },
];

/// Returns the consumer with this function name.
#[must_use]
pub fn event_consumer(function: &str) -> Option<&'static EventConsumer> {
    EVENT_CONSUMERS.iter().find(|consumer| consumer.function == function)
}

/// Returns whether an event source mapping reads the stream of all events.
#[must_use]
pub fn reads_all_events(source: Source<'_>) -> bool {
    source == Source::Stream(names::EVENTS)
}
