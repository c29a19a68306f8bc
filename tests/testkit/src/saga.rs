//! The contract of every step of the saga and its undo: repeated runs have one effect, a late step finds the
//! tombstone, and neither order nor concurrency changes that.

use std::time::Duration;

use contracts::{Entity, SensorId, saga::STEPS};
use fault::{ErrorKind, Fault};
use futures_util::future::{join, join_all};
use lambda::Step;
use serde_json::Value;

use crate::{
    Dynamo,
    sample::{noon, saga},
};

/// A step and its undo, on fresh tables with the rows that they need.
pub struct StepPair<D, U> {
    /// The tables.
    pub dynamo: Dynamo,
    /// The step.
    pub step: D,
    /// Its undo.
    pub undo: U,
    /// The step's payload, as the state machine writes it.
    pub payload: Value,
    /// The undo's payload.
    pub undo_payload: Value,
    /// The entity whose events they emit.
    pub entity: Entity,
}

/// The events that a step and its undo emit.
#[derive(Clone, Copy, Debug)]
pub struct StepEvents {
    /// The step's event.
    pub done: &'static str,
    /// The undo's event after the step.
    pub undone: &'static str,
    /// The undo's events if it runs before the step.
    pub fenced: &'static [&'static str],
}

/// The result of a step: its reply, or its error's name.
pub type Outcome = Result<Value, ErrorKind>;

/// Runs a step on a payload, as Lambda does.
///
/// # Panics
/// If the payload is not valid for the step.
pub async fn run<S: Step>(step: &S, payload: &Value) -> Outcome {
    let command = fault::decode(&payload.to_string()).expect("the step's payload");
    match step.run(command, noon(0)).await {
        Ok(reply) => Ok(serde_json::to_value(reply).expect("a reply as JSON")),
        Err(fault) => Err(fault.kind()),
    }
}

/// Runs a step as the state machine does: it is retried after a pause if the error is transient.
pub async fn run_retrying<S: Step>(step: &S, payload: &Value) -> Outcome {
    for _ in 0..20 {
        let outcome = run(step, payload).await;
        if outcome != Err(ErrorKind::Transient) {
            return outcome;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    run(step, payload).await
}

impl<D: Step, U: Step> StepPair<D, U> {
    async fn step(&self) -> Outcome {
        run_retrying(&self.step, &self.payload).await
    }

    async fn undo(&self) -> Outcome {
        run_retrying(&self.undo, &self.undo_payload).await
    }

    /// Returns all rows except the idempotency records, which describe requests and not the state.
    async fn state(&self) -> Vec<Value> {
        let rows = self.dynamo.all_rows().await.into_values().flatten();
        rows.filter(|row| !row["id"].as_str().is_some_and(|id| id.starts_with("idempotency#")))
            .collect()
    }

    /// Returns the events after the first `before` ones.
    async fn new_events(&self, before: usize) -> Vec<String> {
        self.dynamo.event_types(self.entity).await.split_off(before)
    }
}

/// Tests the contract of a step and its undo. `pair` creates them on fresh tables.
///
/// # Panics
/// If they break the contract.
pub async fn check_step_contract<D: Step, U: Step>(
    pair: impl AsyncFn() -> StepPair<D, U>,
    events: StepEvents,
) {
    // The futures are boxed, because each contains a pair.
    let it = Box::pin(pair()).await;
    assert_eq!(correlation::<D>(&it.payload).as_deref(), it.payload["onboardingId"].as_str());
    assert_eq!(correlation::<U>(&it.undo_payload), correlation::<D>(&it.payload));
    refuses_another_sites_onboarding::<D>(&it.payload);
    refuses_another_sites_onboarding::<U>(&it.undo_payload);
    let declared = STEPS.iter().find(|step| step.done == events.done);
    let declared = declared.expect("the step in contracts::saga::STEPS");
    assert_eq!(it.entity.kind, declared.entity);
    assert!(declared.undone.contains(&events.undone), "{} is not in {declared:?}", events.undone);
    let before = it.dynamo.event_types(it.entity).await.len();
    let expected = Box::pin(step_then_undo(it, before, events)).await;
    Box::pin(undo_before_step(Box::pin(pair()).await, before, events, &expected)).await;
    Box::pin(concurrent_runs(Box::pin(pair()).await, before, events, &expected)).await;
    for step_first in [true, false] {
        let it = Box::pin(pair()).await;
        Box::pin(step_and_undo_concurrently(it, before, events, &expected, step_first)).await;
    }
}

/// Asserts that the step refuses a payload with another site's id before it runs.
fn refuses_another_sites_onboarding<S: Step>(payload: &Value) {
    let other = saga("another site");
    for (field, id) in [
        ("onboardingId", serde_json::json!(other.onboarding_id)),
        ("siteId", serde_json::json!(other.site_id)),
    ] {
        let mut mismatched = payload.clone();
        mismatched[field] = id;
        let Err(refused) = fault::decode::<S::Command>(&mismatched.to_string()) else {
            panic!("{field} of another site is accepted");
        };
        assert!(refused.problem.contains("is not the id that was expected for site"), "{refused}");
    }
    if payload["sensors"].is_array() {
        let mut mismatched = payload.clone();
        mismatched["sensors"][0]["sensorId"] =
            serde_json::json!(SensorId::from_onboarding(other.onboarding_id, 0));
        assert!(
            fault::decode::<S::Command>(&mismatched.to_string()).is_err(),
            "a sensor of another site is accepted"
        );
    }
}

/// Returns the onboarding id that the step's log lines contain.
///
/// # Panics
/// If the payload is not valid for the step.
#[must_use]
pub fn correlation<S: Step>(payload: &Value) -> Option<String> {
    let command = fault::decode(&payload.to_string()).expect("the step's payload");
    S::correlation(&command).map(|id| id.to_string())
}

/// The results of the step and its undo.
struct Expected {
    step: Outcome,
    undo: Outcome,
}

/// Repeated runs have one effect, and a step after its undo changes nothing.
async fn step_then_undo<D: Step, U: Step>(
    it: StepPair<D, U>,
    before: usize,
    StepEvents { done, undone, .. }: StepEvents,
) -> Expected {
    let step = it.step().await;
    assert!(step.is_ok(), "{step:?}");
    assert_eq!(it.new_events(before).await, [done]);
    let after = it.state().await;
    assert_eq!(it.step().await, step, "a second run returns another result");
    assert_eq!(it.state().await, after, "a second run changed something");

    let undo = it.undo().await;
    assert!(undo.is_ok(), "{undo:?}");
    assert_eq!(it.new_events(before).await, [done, undone]);
    let after = it.state().await;
    let statuses: Vec<_> = after.iter().filter_map(|row| row["status"].as_str()).collect();
    let declared = STEPS.iter().filter(|step| step.done == done);
    let mut tombstones = declared.flat_map(|step| step.tombstones);
    assert!(tombstones.any(|status| statuses.contains(status)), "no tombstone: {statuses:?}");
    assert_eq!(it.undo().await, undo, "a second undo returns another result");
    assert_eq!(it.step().await, Err(ErrorKind::Superseded), "a step after its undo");
    assert_eq!(it.state().await, after, "a run after the undo changed something");
    Expected { step, undo }
}

/// An undo that runs before its step leaves a tombstone.
async fn undo_before_step<D: Step, U: Step>(
    it: StepPair<D, U>,
    before: usize,
    StepEvents { fenced, .. }: StepEvents,
    expected: &Expected,
) {
    assert_eq!(it.undo().await, expected.undo);
    assert_eq!(it.new_events(before).await, fenced);
    let after = it.state().await;
    assert_eq!(it.step().await, Err(ErrorKind::Superseded), "a fenced step");
    assert_eq!(it.undo().await, expected.undo);
    assert_eq!(it.state().await, after, "a fenced step changed something");
}

/// Concurrent runs of the same step have one effect.
async fn concurrent_runs<D: Step, U: Step>(
    it: StepPair<D, U>,
    before: usize,
    StepEvents { done, undone, .. }: StepEvents,
    expected: &Expected,
) {
    for outcome in join_all((0..5).map(|_| it.step())).await {
        assert_eq!(outcome, expected.step, "a concurrent run returns another result");
    }
    assert_eq!(it.new_events(before).await, [done]);
    for outcome in join_all((0..5).map(|_| it.undo())).await {
        assert_eq!(outcome, expected.undo, "a concurrent run returns another result");
    }
    assert_eq!(it.new_events(before).await, [done, undone]);
}

/// If step and undo run concurrently, the result is undone.
async fn step_and_undo_concurrently<D: Step, U: Step>(
    it: StepPair<D, U>,
    before: usize,
    StepEvents { done, undone, fenced }: StepEvents,
    expected: &Expected,
    step_first: bool,
) {
    let (step, undo) = if step_first {
        join(it.step(), it.undo()).await
    } else {
        let (undo, step) = join(it.undo(), it.step()).await;
        (step, undo)
    };
    assert!(step == expected.step || step == Err(ErrorKind::Superseded), "{step:?}");
    assert_eq!(undo, expected.undo);
    let new_events = it.new_events(before).await;
    assert!(
        new_events == [done, undone] || (step.is_err() && new_events == fenced),
        "{new_events:?}"
    );
    let after = it.state().await;
    assert_eq!(it.step().await, Err(ErrorKind::Superseded), "a late step");
    assert_eq!(it.state().await, after, "a late step changed something");
}
