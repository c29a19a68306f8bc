//! The invocations of a consumer in mode `every`: batches, replays of one record, and rebuilds.

use std::collections::HashMap;

use aws_lambda_events::event::streams::KinesisEventResponse;
use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{
    Timestamp,
    open::OpenEnvelope,
    replay::{Rebuild, ReplayEvent, START},
    stream::Record,
};
use fault::{ErrorKind, InvocationError, ReplayResponse, decode};
use lambda::{Deadline, Error, serve_raw};
use quarantine::{Quarantine, Reason};
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};
use store::{StoreError, Table, generation::State};
use tokio::time::timeout;

use crate::{
    every::{self, Lane, Outcome},
    rebuild::{self, Generations},
};

/// A consumer in mode `every`.
#[derive(Debug)]
pub struct Consumer<G> {
    /// The rows of the consumer and its effect.
    pub generations: G,
    /// The events table.
    pub log: Table,
    /// The quarantine for records that are not events.
    pub quarantine: Quarantine,
}

#[derive(Deserialize)]
struct Batch<'a> {
    #[serde(rename = "Records", borrow)]
    records: Vec<Record<'a>>,
}

/// A request of fieldctl.
#[derive(Debug)]
enum Call<'a> {
    /// One failed record, to be processed again.
    Replay(&'a RawValue),
    /// A step of a rebuild.
    Rebuild(Rebuild),
}

/// A response to Lambda, or to fieldctl.
#[derive(Serialize)]
#[serde(untagged)]
enum Response {
    Batch(KinesisEventResponse),
    Replay(ReplayResponse),
    Rebuild(serde_json::Value),
}

/// Returns the request of fieldctl, or `None` if the payload is a batch.
fn call(payload: &RawValue) -> Result<Option<Call<'_>>, InvocationError> {
    if !payload.get().starts_with(START) {
        return Ok(None);
    }
    let replay = decode::<ReplayEvent>(payload.get())?.replay;
    Ok(Some(if replay.get() == "true" {
        Call::Rebuild(decode(payload.get())?)
    } else {
        Call::Replay(replay)
    }))
}

/// Returns the event in a record, and its size as JSON in bytes. An error is permanent: a retry would fail again.
fn event(record: &Record<'_>) -> Result<(OpenEnvelope, usize), String> {
    let data = STANDARD
        .decode(record.kinesis.data.as_bytes())
        .map_err(|error| format!("data: is not base64: {error}"))?;
    let event: OpenEnvelope = serde_json::from_slice(&data)
        .map_err(|error| format!("data: is not an event of the log: {error}"))?;
    if event.metadata.sequence == 0 {
        return Err("metadata.sequence: is 0; the first event of an entity has 1".to_owned());
    }
    Ok((event, data.len()))
}

/// The outcomes of a batch in the live generations.
#[derive(Debug, Default)]
struct Outcomes {
    /// In the generation that readers see.
    current: Outcome,
    /// In the generation that is being built.
    building: Option<Outcome>,
}

impl Outcomes {
    /// Returns why an event has to be delivered again. Returns `None` if there is no reason to do so.
    ///
    /// An error in the current generation is always a reason. In the generation that is being built, only a transient
    /// error is a reason: without another delivery, the event could be missing in the counts after the rebuild. A
    /// permanent error there is recorded instead.
    fn failure(&self, log_key: &str, sequence: u64) -> Option<(ErrorKind, String)> {
        let kind = |outcome: &Outcome| {
            outcome.errors.get(log_key).map_or(ErrorKind::Transient, ErrorKind::from)
        };
        let current = self.current.failure(log_key, sequence);
        let current = current.map(|reason| (kind(&self.current), reason));
        current.or_else(|| {
            let building = self.building.as_ref()?;
            let reason = building.failure(log_key, sequence)?;
            let kind = kind(building);
            (kind == ErrorKind::Transient).then_some((kind, reason))
        })
    }
}

/// Serves the event source mapping, replays of single records, and rebuilds.
pub async fn serve<G: Generations>(consumer: Consumer<G>) -> Result<(), Error> {
    let consumer = &consumer;
    serve_raw(async |payload, deadline| match call(&payload)? {
        None => Box::pin(consumer.handle(&payload, deadline)).await.map(Response::Batch),
        Some(Call::Replay(record)) => {
            let replay = Box::pin(consumer.replay(record, deadline));
            let timed_out = |_| ReplayResponse::transient("the function's deadline passed");
            let response = timeout(deadline.remaining(), replay).await.unwrap_or_else(timed_out);
            Ok(Response::Replay(response))
        }
        Some(Call::Rebuild(action)) => {
            let rebuild = Box::pin(consumer.rebuild(action, Timestamp::now(), deadline));
            rebuild.await.map(Response::Rebuild)
        }
    })
    .await
}

impl<G: Generations> Consumer<G> {
    /// Applies a batch. The response names the first record that Lambda must deliver again.
    pub async fn handle(
        &self,
        payload: &RawValue,
        deadline: Deadline,
    ) -> Result<KinesisEventResponse, InvocationError> {
        let batch: Batch = decode(payload.get())?;
        let mut failures: Vec<(usize, String)> = Vec::new();
        let mut positions = Vec::new();
        let mut events = Vec::new();
        for (index, record) in batch.records.iter().enumerate() {
            match event(record) {
                Ok((event, bytes)) => {
                    let log_key = event.metadata.log_key();
                    positions.push((index, log_key.clone(), event.metadata.sequence));
                    events.push((log_key, event, bytes));
                }
                Err(problem) => {
                    let reason = Reason::new(ErrorKind::InvalidInput.name(), &problem);
                    if let Err(error) = self.quarantine.put(record, reason).await {
                        failures.push((index, error));
                    }
                }
            }
        }
        let outcomes = self.apply(&events, deadline).await;
        let outcomes = outcomes.map_err(|error| InvocationError::from_fault(&error))?;
        for (index, log_key, sequence) in positions {
            let failure = outcomes.failure(&log_key, sequence);
            failures.extend(failure.map(|(_, reason)| (index, reason)));
        }
        failures.sort_unstable();
        lambda::count_failed(failures.len());
        let mut response = KinesisEventResponse::default();
        for (index, reason) in &failures {
            let sequence_number = &batch.records[*index].kinesis.sequence_number;
            tracing::error!(%sequence_number, %reason, "record failed");
        }
        if let Some((first, _)) = failures.first() {
            response.add_failure(batch.records[*first].kinesis.sequence_number.clone());
        }
        Ok(response)
    }

    /// Applies events to all live generations.
    async fn apply(
        &self,
        events: &[(String, OpenEnvelope, usize)],
        deadline: Deadline,
    ) -> Result<Outcomes, StoreError> {
        let mut outcomes = Outcomes::default();
        if events.is_empty() {
            return Ok(outcomes);
        }
        let state = State::read(self.generations.table()).await?;
        for generation in state.live() {
            let mut lanes: HashMap<String, Lane> = HashMap::new();
            for (log_key, event, bytes) in events {
                let lane = lanes.entry(log_key.clone()).or_default();
                lane.events.insert(event.metadata.sequence, (event.clone(), *bytes));
            }
            let effect = self.generations.effect(generation);
            let replay = generation != state.current;
            let mut outcome = every::apply(&effect, &self.log, lanes, replay, deadline).await;
            if replay {
                self.record_unapplied(&state, generation, &mut outcome).await?;
                outcomes.building = Some(outcome);
            } else {
                metrics::counter!("EventsApplied").increment(outcome.applied);
                outcomes.current = outcome;
            }
        }
        Ok(outcomes)
    }

    /// Records the entities whose events can't be applied to the generation that is being built. If that generation was
    /// finished or aborted in the meantime, makes the errors transient, so that the events are delivered again: the
    /// generation may have become the current one.
    async fn record_unapplied(
        &self,
        state: &State,
        generation: u64,
        outcome: &mut Outcome,
    ) -> Result<(), StoreError> {
        let mut unapplied = Vec::new();
        for (entity, error) in &outcome.errors {
            tracing::error!(%entity, generation, %error, "not applied to the rebuild");
            metrics::counter!("RebuildErrors").increment(1);
            if ErrorKind::from(error) != ErrorKind::Transient {
                unapplied.push(entity.clone());
            }
        }
        let table = self.generations.table();
        if !rebuild::record_unapplied(table, state, generation, unapplied.clone()).await? {
            let ended = || StoreError::Transient(format!("the rebuild of {generation} ended"));
            outcome.errors.extend(unapplied.into_iter().map(|entity| (entity, ended())));
        }
        Ok(())
    }

    /// Applies one record that an engineer on call replays. If the record is not an event, returns an error and does
    /// not quarantine the record again.
    pub async fn replay(&self, record: &RawValue, deadline: Deadline) -> ReplayResponse {
        let invalid = |problem: String| ReplayResponse::failed("InvalidInput", problem);
        let record: Record = match decode(record.get()) {
            Ok(record) => record,
            Err(error) => return invalid(error.to_string()),
        };
        let (event, bytes) = match event(&record) {
            Ok(event) => event,
            Err(problem) => return invalid(problem),
        };
        let (log_key, sequence) = (event.metadata.log_key(), event.metadata.sequence);
        match self.apply(&[(log_key.clone(), event, bytes)], deadline).await {
            Err(error) => ReplayResponse::failed(ErrorKind::from(&error).name(), error.to_string()),
            Ok(outcomes) => match outcomes.failure(&log_key, sequence) {
                Some((kind, reason)) => ReplayResponse::failed(kind.name(), reason),
                None => ReplayResponse::Done,
            },
        }
    }

    /// Performs one step of a rebuild.
    pub async fn rebuild(
        &self,
        action: Rebuild,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<serde_json::Value, InvocationError> {
        let table = self.generations.table();
        Ok(match action {
            Rebuild::Begin => json!(rebuild::begin(table).await?),
            Rebuild::Apply { generation, entities, partial } => {
                let consumer = &self.generations;
                let apply =
                    rebuild::apply(consumer, &self.log, generation, entities, partial, deadline);
                json!(apply.await?)
            }
            Rebuild::Finish { generation } => {
                rebuild::finish(table, generation, now).await?;
                json!({})
            }
            Rebuild::Abort => json!(rebuild::abort(table, now).await?),
            Rebuild::Clean => json!(rebuild::clean(table, now, deadline).await?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).expect("JSON")
    }

    #[test]
    fn a_rebuild_a_replay_and_a_batch_are_distinguished() {
        assert!(call(&raw(r#"{"Records": []}"#)).expect("a batch").is_none());
        let begin = raw(r#"{"replay": true, "action": "begin"}"#);
        assert!(matches!(call(&begin), Ok(Some(Call::Rebuild(Rebuild::Begin)))));
        let entities = vec!["site#1".to_owned()];
        let apply = Rebuild::Apply { generation: 2, entities, partial: true };
        let event = raw(&apply.event().expect("JSON"));
        assert!(matches!(call(&event), Ok(Some(Call::Rebuild(found))) if found == apply));
        let record = raw(r#"{"replay":{"kinesis":1}}"#);
        assert!(matches!(call(&record), Ok(Some(Call::Replay(_)))));
        assert!(call(&raw(r#"{"replay":true,"action":"destroy"}"#)).is_err());
    }
}
