//! Publishes events on two outlets: the Kinesis stream of all events, in order per entity, and the EventBridge bus, in
//! no order. An event is marked when both have accepted or refused it. On the bus, an event has one form for each version of its type that is
//! published ([`published_forms`]). The bus has the event when it has all forms.
//!
//! - `request`: reads the requested events and their unsettled earlier events.
//! - `outlet`, `stream`, `bus`: send to an outlet. The stream has a lane per entity. The bus has no order.
//! - `settle`: marks an event that both outlets accepted, or quarantines one that an outlet refused permanently.
//! - `memory`: what an outlet accepted before the mark.
//!
//! An event is settled on an outlet when the outlet accepted it or refused it permanently. Invariant: an event is put on
//! the stream only after all earlier events of its entity are settled on the stream, by this publisher or by another one
//! that has marked them. DynamoDB Streams preserve the order per item only, and each event is an item, so a later event
//! may be delivered first. In that case the earlier events are read from the table and put on the stream before it.
//!
//! A row that is not an event is sent to no outlet. It is refused at once, also while earlier events are not settled. So
//! its mark says nothing about them, and they are read from the table before a later event is put on the stream.
//!
//! An event may be put on an outlet more than once: the mark may fail, or a second publisher may run at the same time.
//! The first occurrences on the stream are still in order, since each publisher puts an event only after it has put the
//! predecessor itself or has read its mark.
//!
//! The outlets do not wait for each other. Both are called at the same time. One outlet may finish first. The run then
//! ends when the other outlet has settled no event for `LAG_LIMIT` (`LAG_LIMIT_OF_IDLE_OUTLET` if it settled nothing in
//! the last run that had something to send to it). The events that only one outlet has are left to sweep-events, so that
//! newer events reach the healthy outlet.

pub(crate) mod bus;
pub(crate) mod memory;
mod outlet;
mod request;
mod settle;
pub(crate) mod stream;

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use contracts::events::published_forms;
use fault::ErrorKind;
use futures_util::{StreamExt, stream::FuturesUnordered};
use lambda::Deadline;
use quarantine::Quarantine;
use store::{EventRow, StoreError, Table};
use tokio::time::{Instant, sleep_until, timeout};

pub use self::{
    bus::Bus,
    memory::Memory,
    request::{EventKey, PublishRequest, TableRecord},
    stream::EventStream,
};
use self::{
    outlet::{Delivery, Entry, Outlet, Sent, Side},
    request::{PendingEvent, Read},
    settle::Settlement,
};

/// The error name in the quarantine for a row that is not an event, or that the bus can't get in all its forms.
const INVALID_EVENT: &str = "InvalidInput";
/// After the other outlet has finished, an outlet must settle an event within this time. Otherwise the run ends.
const LAG_LIMIT: Duration = Duration::from_secs(2);
/// The same for an outlet that settled nothing in the last run that had something to send to it.
const LAG_LIMIT_OF_IDLE_OUTLET: Duration = Duration::from_millis(500);
/// The maximum number of concurrent marks.
const MAX_MARKS: usize = 16;

/// Publishes events of the events table.
#[derive(Debug)]
pub struct Publisher {
    /// The events table.
    pub events: Table,
    /// The stream of all events.
    pub stream: EventStream,
    /// The event bus.
    pub bus: Bus,
    /// The quarantine for events that can never be published.
    pub quarantine: Quarantine,
    /// What this execution environment remembers.
    pub memory: Memory,
}

/// An event that could not be published in this run. It stays in the index `unpublished`, except a replayed event whose
/// row is marked as refused: only another replay publishes that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpublished {
    /// The key of the event.
    pub event: EventKey,
    /// The stable name of the error.
    pub error: &'static str,
    /// The reason.
    pub reason: String,
    /// Whether one outlet has the event, and the other one has a problem. The event is left to sweep-events: if Lambda
    /// delivered it again, the problem of one outlet would hold up newer events on both.
    pub is_left_to_sweep: bool,
    /// Whether the event was not read, because the other events have reached the maximum size of a run. Another run can
    /// send it at once.
    pub is_unread: bool,
}

impl Unpublished {
    fn for_now(event: EventKey, reason: impl Into<String>) -> Self {
        let error = ErrorKind::Transient.name();
        Self { event, error, reason: reason.into(), is_left_to_sweep: false, is_unread: false }
    }
}

/// The results of an event in a run.
#[derive(Default)]
struct Results {
    /// Absent while there is no result.
    stream: Option<Sent>,
    bus: Option<Sent>,
    /// The number of forms whose result on the bus is missing.
    forms: usize,
    settlement: Option<Settlement>,
}

impl Results {
    fn add(&mut self, side: Side, sent: Sent) {
        match side {
            Side::Stream => self.stream = Some(sent),
            Side::Bus => {
                self.forms = self.forms.saturating_sub(1);
                // The event is accepted if all forms are. If a form failed for now, the event failed. Otherwise, if a
                // form was refused, the event is refused.
                let worst = match (self.bus.take(), sent) {
                    (Some(failed @ Sent::Failed(_)), _) | (_, failed @ Sent::Failed(_)) => failed,
                    (Some(refused @ Sent::Refused(..)), _) => refused,
                    (_, sent) => sent,
                };
                self.bus = Some(worst);
            }
        }
    }

    /// Returns the result on an outlet once it is complete.
    fn on(&self, side: Side) -> Option<&Sent> {
        match side {
            Side::Stream => self.stream.as_ref(),
            Side::Bus => self.bus.as_ref().filter(|_| self.forms == 0),
        }
    }

    fn is_settled(&self, side: Side) -> bool {
        self.on(side).is_some_and(Sent::is_settled)
    }

    /// Returns both results if nothing is left to send.
    fn settled(&self) -> Option<(Sent, Sent)> {
        let both = self.on(Side::Stream).zip(self.on(Side::Bus));
        let (stream, bus) = both.filter(|(stream, bus)| stream.is_settled() && bus.is_settled())?;
        Some((stream.clone(), bus.clone()))
    }
}

impl Publisher {
    /// Publishes and marks the requested events that are not marked as published or refused. A replayed event is
    /// published even if it is marked as refused.
    ///
    /// On the stream, the events of one entity are sent in order, one per call, so that no event overtakes one that failed.
    /// On the bus, all are sent at once. If an outlet refuses an event permanently, the event is quarantined and
    /// marked as refused once the other outlet has accepted or refused it.
    ///
    /// Returns the requested events that are neither published nor recorded as refused, and a replayed event that was
    /// refused again. An event that both outlets accepted is not returned if its mark failed, but it is returned if the
    /// deadline passed before the mark was done.
    ///
    /// # Errors
    /// Fails if the rows can't be read. Nothing was published then.
    pub async fn publish(
        &self,
        requests: Vec<PublishRequest<'_>>,
        deadline: Deadline,
    ) -> Result<Vec<Unpublished>, StoreError> {
        let keys: Vec<EventKey> = requests.iter().map(|request| request.key.clone()).collect();
        let Ok(read) = timeout(deadline.remaining(), self.read_pending(requests)).await else {
            let timed_out = |event| Unpublished::for_now(event, "the deadline passed");
            return Ok(keys.into_iter().map(timed_out).collect());
        };
        let Read { pending, unread } = read?;
        let mut results: Vec<Results> = pending.iter().map(|_| Results::default()).collect();
        let stream_lanes = self.stream_lanes(&pending, &mut results);
        let bus_lanes = self.bus_lanes(&pending, &mut results);
        let stream = Delivery::new(&self.stream, stream_lanes);
        let bus = Delivery::new(&self.bus, bus_lanes);
        self.send(&pending, &mut results, stream, bus, deadline).await;
        let mut unpublished = unpublished(&pending, results);
        unpublished.extend(unread.into_iter().map(|event| {
            let event = Unpublished::for_now(
                event,
                "the other events have reached the maximum size of a run",
            );
            Unpublished { is_unread: true, ..event }
        }));
        Ok(unpublished)
    }

    /// Returns the lanes of the stream: the events of each entity that are to be put, the oldest first.
    fn stream_lanes<'a>(
        &self,
        pending: &'a [PendingEvent<'_>],
        results: &mut [Results],
    ) -> Vec<Vec<Entry<'a>>> {
        let mut lanes: Vec<Vec<Entry>> = Vec::new();
        let mut lane_of: HashMap<&str, usize> = HashMap::new();
        for (index, event) in pending.iter().enumerate() {
            let Some(row) = self.to_send(event, Side::Stream, &mut results[index]) else {
                continue;
            };
            if event.is_behind_gap {
                continue;
            }
            let lane = *lane_of.entry(&event.key.entity).or_insert_with(|| {
                lanes.push(Vec::new());
                lanes.len() - 1
            });
            lanes[lane].push(Entry {
                event: index,
                row,
                detail_type: row.kind.as_str().into(),
                detail: row.detail.as_str().into(),
            });
        }
        for lane in &mut lanes {
            lane.sort_by_key(|entry| entry.row.sequence);
        }
        lanes
    }

    /// Returns the lanes of the bus: each form of each event is a lane.
    fn bus_lanes<'a>(
        &self,
        pending: &'a [PendingEvent<'_>],
        results: &mut [Results],
    ) -> Vec<Vec<Entry<'a>>> {
        let mut lanes = Vec::new();
        for (index, event) in pending.iter().enumerate() {
            let results = &mut results[index];
            let Some(row) = self.to_send(event, Side::Bus, results) else { continue };
            if !event.is_requested && self.memory.is_idle(Side::Bus) {
                continue;
            }
            match published_forms(&row.kind, &row.detail) {
                Ok(forms) => {
                    results.forms = forms.len();
                    lanes.extend(forms.into_iter().map(|form| {
                        let (detail_type, detail) = (form.detail_type, form.detail);
                        vec![Entry { event: index, row, detail_type, detail }]
                    }));
                }
                Err(error) => {
                    let reason = format!("detail is not a {}: {error}", row.kind);
                    results.bus = Some(Sent::Refused(INVALID_EVENT, reason));
                }
            }
        }
        lanes
    }

    /// Returns the event if an outlet must get it. Otherwise the result is known.
    fn to_send<'a>(
        &self,
        event: &'a PendingEvent<'_>,
        side: Side,
        results: &mut Results,
    ) -> Option<&'a EventRow> {
        let known = match &event.event {
            Err(reason) => Sent::Refused(INVALID_EVENT, reason.clone()),
            Ok(_) if !event.replay && self.memory.is_accepted(side, &event.key) => Sent::Accepted,
            Ok(row) => return Some(row),
        };
        match side {
            Side::Stream => results.stream = Some(known),
            Side::Bus => results.bus = Some(known),
        }
        None
    }

    /// Sends to both outlets at the same time, and settles each event as soon as both have accepted or refused it.
    async fn send(
        &self,
        pending: &[PendingEvent<'_>],
        results: &mut [Results],
        mut stream: Delivery<'_, EventStream>,
        mut bus: Delivery<'_, Bus>,
        deadline: Deadline,
    ) {
        let end = Instant::now() + deadline.remaining();
        let mut to_settle: VecDeque<usize> =
            (0..results.len()).filter(|&index| results[index].settled().is_some()).collect();
        let mut settling = FuturesUnordered::new();
        let mut first_finished = None;
        loop {
            while settling.len() < MAX_MARKS
                && let Some(index) = to_settle.pop_front()
                && let Some((on_stream, on_bus)) = results[index].settled()
            {
                settling.push(async move {
                    (index, self.settle(&pending[index], &on_stream, &on_bus).await)
                });
            }
            let [stream_done, bus_done] = [stream.is_finished(), bus.is_finished()];
            if stream_done && bus_done && settling.is_empty() {
                break;
            }
            let lagging = if stream_done { Side::Bus } else { Side::Stream };
            let last_settled = stream.last_settled.max(bus.last_settled);
            let stop_at = if stream_done == bus_done {
                end
            } else {
                let since = *first_finished.get_or_insert_with(Instant::now);
                last_settled.max(since) + self.lag_limit(lagging)
            };
            let stop_at = stop_at.min(end);
            let (side, result) = tokio::select! {
                biased;
                Some((index, settlement)) = settling.next(), if !settling.is_empty() => {
                    results[index].settlement = Some(settlement);
                    continue;
                }
                result = stream.next(), if !stream_done => (Side::Stream, result),
                result = bus.next(), if !bus_done => (Side::Bus, result),
                () = sleep_until(stop_at) => {
                    stream.stop();
                    bus.stop();
                    if Instant::now() >= end {
                        break;
                    }
                    continue;
                }
            };
            let Some((index, sent)) = result else { continue };
            results[index].add(side, sent);
            if results[index].on(side) == Some(&Sent::Accepted) {
                self.memory.accept(side, &pending[index].key);
            }
            if results[index].settled().is_some() {
                to_settle.push_back(index);
            }
        }
        self.remember_idle(&stream);
        self.remember_idle(&bus);
    }

    fn lag_limit(&self, side: Side) -> Duration {
        if self.memory.is_idle(side) { LAG_LIMIT_OF_IDLE_OUTLET } else { LAG_LIMIT }
    }

    fn remember_idle<O: Outlet>(&self, delivery: &Delivery<'_, O>) {
        if delivery.has_entries {
            self.memory.set_idle(O::SIDE, !delivery.settled_any);
        }
    }
}

/// Returns the requested events that are neither published nor recorded as refused, and a replayed event that was
/// refused again. An event that both outlets accepted is returned only if the deadline passed before its mark was done.
fn unpublished(pending: &[PendingEvent<'_>], results: Vec<Results>) -> Vec<Unpublished> {
    let stream_works = pending
        .iter()
        .zip(&results)
        .all(|(event, results)| event.is_behind_gap || results.is_settled(Side::Stream));
    let mut unpublished = Vec::new();
    for (event, results) in pending.iter().zip(results).filter(|(event, _)| event.is_requested) {
        let [on_stream, on_bus] = [Side::Stream, Side::Bus].map(|side| results.is_settled(side));
        let reason = |side: Side| match results.on(side) {
            Some(Sent::Failed(reason)) => format!("{}: {reason}", side.name()),
            _ => format!("{} did not answer in time", side.name()),
        };
        let reason = match (&results.settlement, on_stream) {
            (Some(Settlement::Done), _) => continue,
            (Some(Settlement::Refused(error, reason)), _) => {
                let refused = Unpublished::for_now(event.key.clone(), reason);
                unpublished.push(Unpublished { error, ..refused });
                continue;
            }
            (Some(Settlement::Failed(reason)), _) => reason.clone(),
            (None, true) if on_bus => "the deadline passed before the event was marked".to_owned(),
            (None, true) => reason(Side::Bus),
            (None, false) if event.is_behind_gap => {
                "earlier events are put on the stream first, and they are too many for one run"
                    .to_owned()
            }
            (None, false) => reason(Side::Stream),
        };
        let is_left_to_sweep = on_stream != on_bus && !(event.is_behind_gap && stream_works);
        let event = event.key.clone();
        unpublished.push(Unpublished { is_left_to_sweep, ..Unpublished::for_now(event, reason) });
    }
    unpublished
}
