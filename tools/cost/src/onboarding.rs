//! The cost of an onboarding.

use anyhow::Result;

use crate::{
    counted::Effect,
    data::{Amounts, Item},
    inputs::Inputs,
    machine::transitions,
    readings::add,
    units::{GIGABYTE, gigabyte_seconds, share_of_a_core},
};

/// The last step.
const LAST_STEP: &str = "ActivateSite";
/// The functions that get their commands from a queue.
const QUEUE_CONSUMERS: [&str; 2] = ["initialize-subscription", "cancel-subscription"];
/// The function that publishes the events, with one invocation per event.
pub const PUBLISHER: &str = "publish-events";

/// The implementation of the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// The functions of this repository.
    Own,
    /// Powertools for Python: the same calls, and an idempotency record for each invocation.
    Powertools,
}

/// Returns the amounts of a successful onboarding.
pub fn done(inputs: &Inputs, implementation: Implementation) -> Result<Amounts> {
    amounts(inputs, &inputs.onboardings.done, None, implementation)
}

/// Returns the amounts of an onboarding that fails at its last step.
pub fn undone(inputs: &Inputs, implementation: Implementation) -> Result<Amounts> {
    amounts(inputs, &inputs.onboardings.undone, Some(LAST_STEP), implementation)
}

/// Returns the number of published events.
#[must_use]
pub fn events(effects: &[Effect]) -> f64 {
    let published = effects.iter().find(|effect| effect.function == PUBLISHER);
    published.map_or(0.0, |effect| f64::from(effect.invocations))
}

/// Returns the amounts of an alert, when a sensor leaves its limits or comes back: the state change and its event.
///
/// detect-breaches itself is not included, because it runs for the bundle anyway.
pub fn alert(inputs: &Inputs) -> Result<Amounts> {
    let alert = inputs.readings.alert;
    let published = invocation(inputs, PUBLISHER, Implementation::Own)?;
    let write_units = alert.detect_write_units + alert.publish_write_units;
    Ok(add(published, &Amounts::from([(Item::WriteUnit, write_units), (Item::Event, 1.0)])))
}

fn amounts(
    inputs: &Inputs,
    effects: &[Effect],
    failing: Option<&str>,
    implementation: Implementation,
) -> Result<Amounts> {
    let transitions = transitions(&inputs.saga, &inputs.teardown, failing)?;
    let mut amounts = Amounts::from([
        (Item::Transition, f64::from(transitions)),
        (Item::Event, events(effects)),
        (Item::ApiRequest, 1.0),
    ]);
    for Effect { function, invocations, write_units, .. } in effects {
        for _ in 0..*invocations {
            amounts = add(amounts, &invocation(inputs, function, implementation)?);
        }
        amounts = add(amounts, &Amounts::from([(Item::WriteUnit, *write_units)]));
    }
    Ok(amounts)
}

/// Returns the duration of an invocation of this repository's function, in milliseconds.
pub fn millis(inputs: &Inputs, function: &str) -> Result<f64> {
    let Inputs { assumed, figures, .. } = inputs;
    let ours = figures.function(function)?;
    let (aws, provider) = ours.calls();
    let waits = aws * assumed.aws_millis + provider * assumed.provider_millis;
    Ok(ours.millis() / share_of_a_core(inputs.memory(function)) + waits)
}

/// Returns the amounts of an invocation, without its writes.
fn invocation(inputs: &Inputs, function: &str, implementation: Implementation) -> Result<Amounts> {
    let Inputs { assumed, figures, .. } = inputs;
    let ours = figures.function(function)?;
    let memory = inputs.memory(function);
    let mut millis = millis(inputs, function)?;
    let (mut logs, mut units) = (ours.log_bytes(), 0.0);
    if implementation == Implementation::Powertools {
        let python = figures.peer("python")?;
        millis += (python.millis() - ours.millis()) / share_of_a_core(memory);
        millis += assumed.peer_record_calls * assumed.aws_millis;
        (logs, units) = (python.log_bytes(), assumed.peer_record_units);
    }
    let logged = logs + assumed.platform_log_bytes + assumed.log_lines * assumed.log_line_bytes;
    let queued = if QUEUE_CONSUMERS.contains(&function) { assumed.queue_requests } else { 0.0 };
    Ok(Amounts::from([
        (Item::WriteUnit, units),
        (Item::Request, 1.0),
        (Item::GigabyteSecond, gigabyte_seconds(millis, memory)),
        (Item::LogGigabyte, logged / GIGABYTE),
        // An upper bound: if the previous invocation is traced, this one belongs to the same trace.
        (Item::Trace, 1.0),
        (Item::QueueRequest, queued),
    ]))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn assert_near(one: f64, other: f64) {
        assert!((one - other).abs() < 1e-9 * other.abs().max(1.0), "{one}, not {other}");
    }

    fn inputs() -> Inputs {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut inputs = Inputs::read(&root).expect("the repository has all inputs");
        let effect = |function: &str, invocations, write_units| Effect {
            function: function.to_owned(),
            invocations,
            write_units,
            calls: std::collections::BTreeMap::new(),
        };
        inputs.onboardings.done = vec![
            effect("create-site", 1, 10.0),
            effect("initialize-subscription", 1, 11.0),
            effect(PUBLISHER, 2, 4.0),
        ];
        inputs
    }

    #[test]
    fn the_cost_of_an_onboarding_has_effects_transitions_and_events() -> Result<()> {
        let inputs = inputs();
        let done = done(&inputs, Implementation::Own)?;
        assert_near(done[&Item::WriteUnit], 25.0);
        assert_near(done[&Item::Request], 4.0);
        assert_near(done[&Item::Event], 2.0);
        // One command: send, receive, delete.
        assert_near(done[&Item::QueueRequest], 3.0);
        assert_near(done[&Item::Transition], 5.0);
        let powertools = super::done(&inputs, Implementation::Powertools)?;
        assert_near(powertools[&Item::WriteUnit], 25.0 + 4.0 * 2.0);
        assert_near(powertools[&Item::Transition], 5.0);
        assert!(powertools[&Item::GigabyteSecond] > done[&Item::GigabyteSecond]);
        Ok(())
    }

    #[test]
    fn an_undone_onboarding_counts_both_machines() -> Result<()> {
        // Onboarding: five steps, the compensation, the final state. Teardown: the initial state, five steps, the
        // choice, the final state.
        assert_near(undone(&inputs(), Implementation::Own)?[&Item::Transition], 7.0 + 8.0);
        Ok(())
    }
}
