//! What an execution environment remembers between its runs.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use contracts::EventId;

use super::{EventKey, outlet::Side};

/// The maximum number of events that are remembered. An id has 16 bytes, so they take a few megabytes.
const MAX_EVENTS: usize = 50_000;

/// The events that an outlet accepted and that are not marked yet, and the outlets that accept nothing.
///
/// Without it, while one outlet accepts nothing, each retry would send the events to the other outlet again. The order on
/// the stream does not depend on what is forgotten: a forgotten event is put again, which is a repeat. An event counts as
/// being on the stream only after the stream accepted it, and by then the earlier events of its entity were settled there.
#[derive(Debug, Default)]
pub struct Memory(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// For each event, whether each outlet accepted it.
    accepted: HashMap<EventId, [bool; 2]>,
    /// The remembered events, the oldest first. It may have events that were forgotten because they are marked.
    order: VecDeque<EventId>,
    /// The outlets that settled nothing in the last run that had something to send to them.
    idle: [bool; 2],
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the outlet accepted the event. If it returns `false`, the outlet may still have accepted the
    /// event.
    pub(super) fn is_accepted(&self, side: Side, key: &EventKey) -> bool {
        let accepted = |id| self.state().accepted.get(&id).copied();
        key.event_id().and_then(accepted).is_some_and(|accepted| accepted[side as usize])
    }

    /// Returns whether the stream accepted the event. If it returns `false`, the stream may still have accepted it.
    pub(super) fn is_on_stream(&self, key: &EventKey) -> bool {
        self.is_accepted(Side::Stream, key)
    }

    pub(super) fn accept(&self, side: Side, key: &EventKey) {
        let Some(id) = key.event_id() else { return };
        let state = &mut *self.state();
        let accepted = state.accepted.entry(id).or_insert_with(|| {
            state.order.push_back(id);
            [false; 2]
        });
        accepted[side as usize] = true;
        if state.order.len() > MAX_EVENTS
            && let Some(oldest) = state.order.pop_front()
        {
            state.accepted.remove(&oldest);
        }
    }

    /// Forgets an event that is marked.
    pub(super) fn forget(&self, key: &EventKey) {
        if let Some(id) = key.event_id() {
            self.state().accepted.remove(&id);
        }
    }

    pub(super) fn is_idle(&self, side: Side) -> bool {
        self.state().idle[side as usize]
    }

    pub(super) fn set_idle(&self, side: Side, idle: bool) {
        self.state().idle[side as usize] = idle;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(sequence: usize) -> EventKey {
        EventKey { entity: "site#a".to_owned(), sequence: sequence.to_string() }
    }

    #[test]
    fn each_outlet_is_remembered_alone_until_the_mark() {
        let memory = Memory::default();
        memory.accept(Side::Bus, &key(1));
        assert!(memory.is_accepted(Side::Bus, &key(1)));
        assert!(!memory.is_on_stream(&key(1)));
        memory.accept(Side::Stream, &key(1));
        assert!(memory.is_on_stream(&key(1)));
        memory.forget(&key(1));
        assert!(!memory.is_on_stream(&key(1)));
        assert!(!memory.is_accepted(Side::Bus, &key(1)));
    }

    #[test]
    fn the_number_of_remembered_events_is_bounded() {
        let memory = Memory::default();
        for sequence in 1..=MAX_EVENTS + 1 {
            memory.accept(Side::Stream, &key(sequence));
        }
        assert!(!memory.is_on_stream(&key(1)), "the oldest is forgotten");
        assert!(memory.is_on_stream(&key(2)));
        assert_eq!(memory.state().accepted.len(), MAX_EVENTS);
        // Events that are marked are forgotten, and do not fill the memory either.
        for sequence in 1..=2 * MAX_EVENTS {
            memory.accept(Side::Bus, &key(sequence));
            memory.forget(&key(sequence));
        }
        assert_eq!(memory.state().accepted.len(), 0);
        assert_eq!(memory.state().order.len(), MAX_EVENTS);
    }
}
