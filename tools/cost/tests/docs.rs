//! Compares docs/cost.md and the counted runs with the cost model.

use std::path::Path;

use anyhow::Result;
use cost::{
    docs::check_or_update_table, inputs::Inputs, machine::transitions, onboarding, report::tables,
};

#[test]
fn the_docs_contain_the_results_of_the_model() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (name, table) in tables(&Inputs::read(&root)?)? {
        check_or_update_table(&root.join("docs/cost.md"), name, &table)
            .map_err(|error| error.context("run `make cost`"))?;
    }
    Ok(())
}

#[test]
fn the_counted_transitions_and_events_match_the_definitions() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let inputs = Inputs::read(&root)?;
    let computed = |failing| transitions(&inputs.saga, &inputs.teardown, failing);
    assert_eq!(
        inputs.stack.done.transitions,
        computed(None)?,
        "outdated count; run the test tests/cost.rs on the local stack"
    );
    assert_eq!(inputs.stack.declined.transitions, computed(Some("InitializeSubscription"))?);
    let events = onboarding::events(&inputs.onboardings.done);
    assert!((f64::from(inputs.stack.done.events) - events).abs() < f64::EPSILON);
    Ok(())
}
