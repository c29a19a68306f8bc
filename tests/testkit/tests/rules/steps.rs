//! Rules: everything that names a step of the saga agrees with `contracts::saga::STEPS`.

use std::collections::BTreeSet;

use contracts::{
    Event, OnboardingFailure, OperatorId, SagaContext, SiteId,
    events::SensorChanged,
    saga::{COMPENSATE, STEPS, SagaStep, TeardownInput, undo_order},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    sagas::{ONBOARDING, TEARDOWN},
    subject::{Subject, Violations, members, text, texts},
};

/// Returns what a Task state passes to its function: the payload of a call, or the command in a message.
fn input(state: &Value) -> &Value {
    let arguments = &state["Arguments"];
    let command = &arguments["MessageBody"]["command"];
    if command.is_null() { &arguments["Payload"] } else { command }
}

fn keys(value: &Value) -> BTreeSet<&str> {
    members(value).map(|(name, _)| name).collect()
}

/// Returns a teardown's input with a value in every field.
fn full_input() -> Value {
    let saga = SagaContext::for_site(
        OperatorId::DEFAULT,
        SiteId::registered(OperatorId::DEFAULT, "rules", "steps"),
        Some(Uuid::nil()),
    );
    let part = String::new;
    let failure = OnboardingFailure { step: part(), error: part(), message: part() };
    json!(TeardownInput { started_by: Some(part()), ..TeardownInput::new(saga, Some(failure)) })
}

pub fn states_call_their_functions(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let steps = STEPS.map(|step| (ONBOARDING, step.name, step.function()));
    let undos = STEPS.map(|step| (TEARDOWN, step.undo, step.undo_function()));
    for (machine, name, function) in steps.into_iter().chain(undos) {
        let arguments = &subject.machines[machine]["States"][name]["Arguments"];
        let called = format!("{}{}", arguments["FunctionName"], arguments["QueueUrl"]);
        let is_called = called.contains(name) || called.contains(&function);
        violations.check(is_called, name, format!("calls {called}"));
        let id = format!("{name}Function");
        violations.check(
            subject.is(&id, "AWS::Serverless::Function"),
            name,
            format!("has no resource {id}"),
        );
    }
    violations
}

pub fn teardowns_get_the_declared_input(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let full = full_input();
    let all = keys(&full);
    let compensate = &subject.machines[ONBOARDING]["States"][COMPENSATE];
    let written = keys(&compensate["Arguments"]["Input"]);
    violations.check(written == all, COMPENSATE, format!("writes {written:?}, not {all:?}"));

    // The ids of the saga are enough for an undo, unless it needs the failure.
    let saga = json!(SagaContext::for_site(
        OperatorId::DEFAULT,
        SiteId::registered(OperatorId::DEFAULT, "rules", "steps"),
        Some(Uuid::nil())
    ));
    let saga = keys(&saga);
    for SagaStep { undo, .. } in undo_order() {
        let read = keys(input(&subject.machines[TEARDOWN]["States"][undo]));
        let is_valid = read.is_superset(&saga) && read.is_subset(&all);
        violations.check(
            is_valid,
            undo,
            format!("gets {read:?}, expected the saga and fields of {all:?}"),
        );
    }

    // The cause of each machine's failure contains the input with which an engineer on call starts the teardown again.
    for machine in [ONBOARDING, TEARDOWN] {
        let cause = text(&subject.machines[machine]["States"]["CompensationIncomplete"]["Cause"]);
        let written = cause.split("'teardownInput': {").nth(1).and_then(|it| it.split('}').next());
        let written: BTreeSet<_> = written
            .into_iter()
            .flat_map(|fields| fields.split(", "))
            .map(|field| field.split(':').next().unwrap_or_default().trim_matches('\''))
            .collect();
        let mut expected = all.clone();
        expected.retain(|name| !name.starts_with("AWS_"));
        violations.check(
            written == expected,
            machine,
            format!("writes {written:?} to its cause, not {expected:?}"),
        );
    }
    violations
}

pub fn project_site_gets_the_events(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let expected: BTreeSet<_> = STEPS
        .iter()
        .filter(|step| !step.is_of_site())
        .flat_map(|step| step.events().map(|(event, _)| event))
        .chain([SensorChanged::TYPE])
        .collect();
    let function = "ProjectSiteFunction";
    let events = &subject.template.properties(function)["Events"];
    let types =
        members(events).flat_map(|(_, it)| texts(&it["Properties"]["Pattern"]["detail-type"]));
    let received: BTreeSet<_> = types.collect();
    for event in expected.difference(&received) {
        violations.check(false, function, format!("does not get {event}"));
    }
    for event in received.difference(&expected) {
        violations.check(
            false,
            function,
            format!("gets {event}, which is no event of a step and no change of a sensor"),
        );
    }
    violations
}
