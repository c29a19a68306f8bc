//! Rules: every saga ends, and no undo is skipped.

use contracts::{
    names,
    saga::{COMPENSATE, STEPS, undo_order},
};
use serde_json::Value;

use crate::subject::{Objections, Subject, items, members, text, texts};

pub const FORWARD: &str = names::SITE_ONBOARDING;
pub const BACK: &str = names::SITE_TEARDOWN;

/// Returns all Task states, including those in branches and iterations, as machine, name and state.
fn tasks(subject: &Subject) -> Vec<(&str, &str, &Value)> {
    let mut tasks = Vec::new();
    for (machine, definition) in &subject.machines {
        gather(machine, definition, &mut tasks);
    }
    tasks
}

fn gather<'a>(machine: &'a str, value: &'a Value, tasks: &mut Vec<(&'a str, &'a str, &'a Value)>) {
    for (name, state) in members(&value["States"]) {
        if state["Type"] == "Task" {
            tasks.push((machine, name, state));
        }
        items(&state["Branches"]).for_each(|branch| gather(machine, branch, tasks));
        gather(machine, &state["ItemProcessor"], tasks);
    }
}

/// Returns the logical id of a machine: `SiteOnboarding` for `site-onboarding`.
fn resource(machine: &str) -> String {
    let words = machine.split('-').map(|word| word[..1].to_uppercase() + &word[1..]);
    words.collect()
}

pub fn every_task_catches_everything(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (machine, name, state) in tasks(subject) {
        let last = items(&state["Catch"]).last();
        let all = last.is_some_and(|catch| texts(&catch["ErrorEquals"]) == ["States.ALL"]);
        objections.unless(
            all,
            name,
            format!("{machine} breaks off when it fails: no Catch of States.ALL"),
        );
    }
    objections
}

pub fn what_fails_forward_is_undone(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (machine, name, state) in tasks(subject) {
        if machine == FORWARD && name != COMPENSATE {
            for catch in items(&state["Catch"]) {
                objections.unless(
                    catch["Next"] == "Compensate",
                    name,
                    "fails without being undone",
                );
                let said = text(&catch["Assign"]["failure"]["step"]) == name;
                objections.unless(said, name, "is not named in the failure that the undo is told");
            }
        }
    }
    let nested = &subject.machines[FORWARD]["States"][COMPENSATE];
    let waits = text(&nested["Resource"]) == "arn:aws:states:::states:startExecution.sync:2";
    objections.unless(waits, "Compensate", "does not wait for the teardown's end");
    objections
}

pub fn an_undo_that_fails_stops_no_other(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (machine, name, state) in tasks(subject) {
        if machine == BACK {
            for catch in items(&state["Catch"]) {
                let on = catch["Next"] == state["Next"];
                objections.unless(on, name, "skips other undos when it fails");
                let noted = catch["Assign"]["undoFailures"].is_string();
                objections.unless(noted, name, "fails unnoticed: undoFailures is not assigned");
            }
        }
    }
    objections
}

pub fn every_step_has_its_undo(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let forward = path(&subject.machines[FORWARD]);
    let back = path(&subject.machines[BACK]);
    for name in &forward {
        let is_known = STEPS.iter().any(|step| step.name == *name);
        objections.unless(is_known, *name, "is not a step in contracts::saga::STEPS");
    }
    for name in &back {
        let is_known = STEPS.iter().any(|step| step.undo == *name);
        objections.unless(is_known, *name, "is not an undo in contracts::saga::STEPS");
    }
    for (index, step) in STEPS.iter().enumerate() {
        let is_there = forward.get(index) == Some(&step.name);
        objections.unless(is_there, step.name, format!("is not state {} of {FORWARD}", index + 1));
    }
    for (index, step) in undo_order().iter().enumerate() {
        let is_there = back.get(index) == Some(&step.undo);
        let what = format!("is not undone by state {} of {BACK}, {}", index + 1, step.undo);
        objections.unless(is_there, step.name, what);
    }
    objections
}

/// Returns the Task states on the success path of a machine.
fn path(machine: &Value) -> Vec<&str> {
    let mut names = Vec::new();
    let mut next = text(&machine["StartAt"]);
    // The limit ends a loop in the definition.
    for _ in 0..100 {
        let state = &machine["States"][next];
        if state["Type"] == "Task" {
            names.push(next);
        }
        next = text(&state["Next"]);
    }
    names
}

/// Returns the longest possible duration of a task, in seconds: every try lasts until its timeout, and every
/// wait has its longest duration. Errors that only the call itself can return (`SQS.` and `StepFunctions.`)
/// take no time.
fn worst(state: &Value) -> i64 {
    let timeout = state["TimeoutSeconds"].as_i64().unwrap_or_default();
    let mut seconds = timeout;
    for retrier in items(&state["Retry"]) {
        let attempts = retrier["MaxAttempts"].as_i64().unwrap_or_default();
        let (mut wait, rate) = (
            retrier["IntervalSeconds"].as_i64().unwrap_or_default(),
            retrier["BackoffRate"].as_i64().unwrap_or(1),
        );
        let most = retrier["MaxDelaySeconds"].as_i64().unwrap_or(i64::MAX);
        for _ in 0..attempts {
            seconds = seconds.saturating_add(wait.min(most));
            wait = wait.saturating_mul(rate);
        }
        let late = texts(&retrier["ErrorEquals"])
            .iter()
            .any(|error| !error.starts_with("SQS.") && !error.starts_with("StepFunctions."));
        if late {
            seconds = seconds.saturating_add(attempts.saturating_mul(timeout));
        }
    }
    seconds
}

pub fn retries_are_bounded(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (_, name, state) in tasks(subject) {
        let retriers: Vec<_> = items(&state["Retry"]).collect();
        objections.unless(!retriers.is_empty(), name, "is not tried again");
        for retrier in retriers {
            let attempts = retrier["MaxAttempts"].as_i64();
            let bounded = attempts.is_some_and(|attempts| (0..=8).contains(&attempts));
            objections.unless(
                bounded,
                name,
                "does not say how often it is tried again, or above 8 times",
            );
            if attempts != Some(0) {
                let grows = retrier["BackoffRate"].as_f64().is_some_and(|rate| rate >= 1.5)
                    && retrier["IntervalSeconds"].as_i64().is_some()
                    && retrier["MaxDelaySeconds"].as_i64().is_some_and(|most| most <= 60);
                objections.unless(grows, name, "waits that do not grow, or above a minute");
                let jitter = retrier["JitterStrategy"] == "FULL";
                objections.unless(jitter, name, "tries again in step with all others: no jitter");
            }
        }
    }
    objections
}

pub fn tasks_time_out(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (_, name, state) in tasks(subject) {
        let seconds = state["TimeoutSeconds"].as_i64();
        objections.unless(seconds.is_some(), name, "waits without end: no TimeoutSeconds");
        let function = text(&state["Arguments"]["FunctionName"]);
        if let Some(function) = function.strip_prefix("${").and_then(|it| it.strip_suffix("Arn}")) {
            objections.unless(
                seconds.is_none_or(|seconds| seconds > subject.timeout(function)),
                name,
                format!("gives up before {function} does"),
            );
        }
    }
    objections
}

pub fn executions_time_out(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (machine, definition) in &subject.machines {
        let there = definition["TimeoutSeconds"].as_i64().is_some();
        objections.unless(there, machine, "may run without end: no TimeoutSeconds");
    }
    objections
}

pub fn no_time_out_cuts_an_undo_short(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let total = |machine: &str, but: &str| -> i64 {
        let tasks = tasks(subject).into_iter();
        let of = tasks.filter(|(of, name, _)| *of == machine && *name != but);
        of.map(|(_, _, state)| worst(state)).sum()
    };
    let compensate = &subject.machines[FORWARD]["States"][COMPENSATE];
    let (given, needed) = (compensate["TimeoutSeconds"].as_i64(), total(BACK, ""));
    objections.unless(
        given.is_some_and(|given| given >= needed),
        "Compensate",
        format!("stops a teardown that may take {needed} s"),
    );
    let (given, needed) =
        (subject.machines[FORWARD]["TimeoutSeconds"].as_i64(), total(FORWARD, ""));
    objections.unless(
        given.is_some_and(|given| given >= needed),
        FORWARD,
        format!("is stopped before its {needed} s are over, and an undo with it"),
    );
    objections
}

pub fn placeholders_are_filled(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (machine, definition) in &subject.machines {
        let id = resource(machine);
        let text = definition.to_string();
        let given = &subject.template.properties(&id)["DefinitionSubstitutions"];
        for (name, _) in members(given) {
            let used = text.contains(&format!("${{{name}}}"));
            objections.unless(used, &id, format!("{name} is given and not used"));
        }
        for rest in text.split("${").skip(1) {
            let name = rest.split('}').next().unwrap_or_default();
            objections.unless(!given[name].is_null(), &id, format!("{name} is used and not given"));
        }
    }
    objections
}

pub fn machines_are_recorded(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, machine) in subject.template.resources("AWS::Serverless::StateMachine") {
        let machine = &machine["Properties"];
        objections.unless(machine["Type"] == "STANDARD", id, "keeps no history, and may run twice");
        objections.unless(machine["Tracing"]["Enabled"] == true, id, "is not traced");
        let logging = &machine["Logging"];
        let destination = &logging["Destinations"][0]["CloudWatchLogsLogGroup"]["LogGroupArn"];
        let group = text(destination).trim_end_matches(".Arn");
        objections.unless(
            subject.is(group, "AWS::Logs::LogGroup")
                && ["ERROR", "ALL"].contains(&text(&logging["Level"])),
            id,
            "does not log its errors",
        );
        objections.unless(
            logging["IncludeExecutionData"] == false,
            id,
            "logs inputs, which carry payment method ids",
        );
    }
    objections
}
