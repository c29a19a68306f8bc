//! Sending to one outlet: lanes, calls and retries.
//!
//! A lane has the entries that must be sent in order. An entry is sent only after the entries before it in its lane were
//! accepted or permanently refused. Lanes share calls, with at most one entry of each.

use std::{borrow::Cow, collections::VecDeque, time::Duration};

use contracts::EventId;
use futures_util::{StreamExt, future::LocalBoxFuture, stream::FuturesUnordered};
use store::EventRow;
use tokio::time::{Instant, sleep_until};

/// The maximum number of attempts to send an entry that the outlet can't accept now.
const MAX_ATTEMPTS: u32 = 4;
/// The maximum number of concurrent calls.
const MAX_CALLS: usize = 4;
/// The error name in the quarantine for an event that an outlet refuses permanently.
pub(super) const EVENT_REFUSED: &str = "EventRefused";

/// An outlet of the publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The Kinesis stream, in order per entity.
    Stream,
    /// The EventBridge bus, in no order.
    Bus,
}

impl Side {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stream => "the stream",
            Self::Bus => "the bus",
        }
    }
}

/// A client that sends entries to an outlet.
pub(super) trait Outlet {
    const SIDE: Side;
    /// The maximum number of entries per call.
    const MAX_ENTRIES: usize;
    /// The maximum size of all entries of a call.
    const MAX_CALL_BYTES: usize;

    /// Returns the size of an entry, as the outlet counts it.
    fn bytes(entry: &Entry<'_>) -> usize;

    /// Sends the entries in one call. If the outlet refuses the call because an entry is invalid, sends each entry
    /// alone. There must be at least one entry. Returns a result for each.
    async fn put(&self, entries: &[&Entry<'_>]) -> Vec<PutResult>;
}

/// What an outlet gets of an event.
#[derive(Clone, Debug)]
pub(super) struct Entry<'a> {
    /// The index of the event in the run.
    pub(super) event: usize,
    pub(super) row: &'a EventRow,
    pub(super) detail_type: Cow<'a, str>,
    pub(super) detail: Cow<'a, str>,
}

/// The result of one attempt.
#[derive(Clone, Debug)]
pub(super) enum PutResult {
    Accepted,
    Retry(String),
    /// A permanent refusal of this entry.
    Refused(String),
}

/// The final result of an entry in this run.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Sent {
    Accepted,
    /// A permanent refusal: the error name in the quarantine, and the reason.
    Refused(&'static str, String),
    /// Another run must try again.
    Failed(String),
}

impl Sent {
    /// Returns whether there is nothing left to send.
    pub(super) fn is_settled(&self) -> bool {
        !matches!(self, Self::Failed(_))
    }
}

struct Lane<'a> {
    entries: VecDeque<Entry<'a>>,
    /// The number of attempts to send the first entry.
    attempts: u32,
    /// The earliest time to send the first entry.
    ready_at: Instant,
}

type FinishedCall<'a> = (Vec<Lane<'a>>, Vec<PutResult>);

/// The entries that one run sends to an outlet.
pub(super) struct Delivery<'a, O> {
    outlet: &'a O,
    lanes: VecDeque<Lane<'a>>,
    calls: FuturesUnordered<LocalBoxFuture<'a, FinishedCall<'a>>>,
    results: VecDeque<(usize, Sent)>,
    /// Whether there was anything to send.
    pub(super) has_entries: bool,
    /// When the outlet last settled an entry, or the beginning.
    pub(super) last_settled: Instant,
    /// Whether the outlet settled any entry.
    pub(super) settled_any: bool,
}

impl<'a, O: Outlet> Delivery<'a, O> {
    pub(super) fn new(outlet: &'a O, lanes: Vec<Vec<Entry<'a>>>) -> Self {
        let now = Instant::now();
        let lane = |entries: Vec<_>| Lane { entries: entries.into(), attempts: 0, ready_at: now };
        let lanes: VecDeque<_> =
            lanes.into_iter().filter(|lane| !lane.is_empty()).map(lane).collect();
        Self {
            outlet,
            has_entries: !lanes.is_empty(),
            lanes,
            calls: FuturesUnordered::new(),
            results: VecDeque::new(),
            last_settled: now,
            settled_any: false,
        }
    }

    /// Returns whether every entry has its result.
    pub(super) fn is_finished(&self) -> bool {
        self.lanes.is_empty() && self.calls.is_empty() && self.results.is_empty()
    }

    /// Stops sending. The remaining entries get no result.
    pub(super) fn stop(&mut self) {
        self.lanes.clear();
        self.calls.clear();
        self.results.clear();
    }

    /// Sends until an entry has its result. Returns the index of its event. Returns `None` when all entries have theirs.
    ///
    /// It can be cancelled and called again: the calls continue.
    pub(super) async fn next(&mut self) -> Option<(usize, Sent)> {
        loop {
            if let Some(result) = self.results.pop_front() {
                return Some(result);
            }
            self.start_calls();
            let next_ready = self.lanes.iter().map(|lane| lane.ready_at).min();
            if self.calls.is_empty() && next_ready.is_none() {
                return None;
            }
            let may_start = next_ready.is_some() && self.calls.len() < MAX_CALLS;
            tokio::select! {
                biased;
                Some((lanes, results)) = self.calls.next(), if !self.calls.is_empty() => {
                    self.finish_call(lanes, results);
                }
                () = sleep_until(next_ready.unwrap_or_else(Instant::now)), if may_start => {}
            }
        }
    }

    fn start_calls(&mut self) {
        while self.calls.len() < MAX_CALLS {
            let round = self.take_round();
            if round.is_empty() {
                return;
            }
            let outlet = self.outlet;
            self.calls.push(Box::pin(async move {
                let entries: Vec<_> = round.iter().map(|lane| &lane.entries[0]).collect();
                let mut results = outlet.put(&entries).await;
                let missing = || PutResult::Retry("the response has no result for it".to_owned());
                results.resize_with(entries.len(), missing);
                (round, results)
            }));
        }
    }

    /// Takes the lanes whose first entries are ready and fit into one call. Takes at least one lane if any is ready.
    fn take_round(&mut self) -> Vec<Lane<'a>> {
        let now = Instant::now();
        let (mut round, mut rest) = (Vec::new(), VecDeque::new());
        let mut bytes = 0;
        for lane in self.lanes.drain(..) {
            let size = O::bytes(&lane.entries[0]);
            let fits = round.len() < O::MAX_ENTRIES
                && (round.is_empty() || bytes + size <= O::MAX_CALL_BYTES);
            if fits && lane.ready_at <= now {
                bytes += size;
                round.push(lane);
            } else {
                rest.push_back(lane);
            }
        }
        self.lanes = rest;
        round
    }

    fn finish_call(&mut self, lanes: Vec<Lane<'a>>, results: Vec<PutResult>) {
        // One pause for all entries of a call, so that they share calls again.
        let spread = lanes.first().map(|lane| spread(lane.entries[0].row)).unwrap_or_default();
        for (mut lane, result) in lanes.into_iter().zip(results) {
            let event = lane.entries[0].event;
            let sent = match result {
                PutResult::Accepted => Sent::Accepted,
                PutResult::Refused(reason) => Sent::Refused(EVENT_REFUSED, reason),
                PutResult::Retry(reason) => {
                    lane.attempts += 1;
                    if lane.attempts == MAX_ATTEMPTS {
                        self.give_up(lane, reason);
                    } else {
                        lane.ready_at = Instant::now() + pause(lane.attempts, spread);
                        self.lanes.push_back(lane);
                    }
                    continue;
                }
            };
            self.results.push_back((event, sent));
            self.last_settled = Instant::now();
            self.settled_any = true;
            lane.entries.pop_front();
            lane.attempts = 0;
            if !lane.entries.is_empty() {
                self.lanes.push_back(lane);
            }
        }
    }

    /// Gives up a lane whose first entry failed.
    fn give_up(&mut self, lane: Lane<'a>, reason: String) {
        let mut entries = lane.entries.into_iter();
        let Some(first) = entries.next() else { return };
        let sequence = first.row.sequence;
        for entry in entries {
            let reason = format!("the earlier event {sequence} was not sent: {reason}");
            self.results.push_back((entry.event, Sent::Failed(reason)));
        }
        self.results.push_back((first.event, Sent::Failed(reason)));
    }
}

/// Returns the pause after this number of attempts: 200 ms after the first one, doubled with each further one, and
/// shortened by up to a half. `spread`, from 0 to 255, says by how much.
fn pause(attempts: u32, spread: u8) -> Duration {
    let max = Duration::from_millis(100) * 2_u32.pow(attempts);
    max.saturating_sub(max / 2 * u32::from(spread) / u32::from(u8::MAX))
}

/// Returns a number that spreads the retries of concurrent publishers. It depends on the event only, so a simulation can
/// be repeated.
fn spread(row: &EventRow) -> u8 {
    let id = EventId::from_log_key(&row.entity, row.sequence);
    id.to_string().bytes().fold(0, |spread: u8, byte| spread.wrapping_mul(31).wrapping_add(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_are_spread_over_the_upper_half() {
        let pauses = |spread| [1, 2, 3].map(|attempts| pause(attempts, spread).as_millis());
        assert_eq!(pauses(0), [200, 400, 800]);
        assert_eq!(pauses(u8::MAX), [100, 200, 400]);
    }
}
