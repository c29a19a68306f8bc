//! Rules: every saga ends, and no undo is skipped.

use contracts::{
    names,
    saga::{COMPENSATE, STEPS, undo_order},
};
use serde_json::Value;

use crate::subject::{Subject, Violations, items, members, text, texts};

pub const ONBOARDING: &str = names::SITE_ONBOARDING;
pub const TEARDOWN: &str = names::SITE_TEARDOWN;

/// Returns all Task states, including those in branches and iterations, as machine, name and state.
fn tasks(subject: &Subject) -> Vec<(&str, &str, &Value)> {
    let mut tasks = Vec::new();
    for (machine, definition) in &subject.machines {
        collect_tasks(machine, definition, &mut tasks);
    }
    tasks
}

fn collect_tasks<'a>(
    machine: &'a str,
    value: &'a Value,
    tasks: &mut Vec<(&'a str, &'a str, &'a Value)>,
) {
    for (name, state) in members(&value["States"]) {
        if state["Type"] == "Task" {
            tasks.push((machine, name, state));
        }
        items(&state["Branches"]).for_each(|branch| collect_tasks(machine, branch, tasks));
        collect_tasks(machine, &state["ItemProcessor"], tasks);
    }
}

/// Returns the logical id of a machine: `SiteOnboarding` for `site-onboarding`.
fn resource(machine: &str) -> String {
    let words = machine.split('-').map(|word| word[..1].to_uppercase() + &word[1..]);
    words.collect()
}

pub fn every_task_catches_all_errors(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (machine, name, state) in tasks(subject) {
        let last = items(&state["Catch"]).last();
        let all = last.is_some_and(|catch| texts(&catch["ErrorEquals"]) == ["States.ALL"]);
        violations.check(all, name, format!("does not catch States.ALL in {machine}"));
    }
    violations
}

pub fn failed_steps_are_undone(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (machine, name, state) in tasks(subject) {
        if machine == ONBOARDING && name != COMPENSATE {
            for catch in items(&state["Catch"]) {
                violations.check(
                    catch["Next"] == "Compensate",
                    name,
                    "does not continue with Compensate after an error",
                );
                let passed = text(&catch["Assign"]["failure"]["step"]) == name;
                violations.check(
                    passed,
                    name,
                    "does not pass its name to the teardown as the failed step",
                );
            }
        }
    }
    let nested = &subject.machines[ONBOARDING]["States"][COMPENSATE];
    let waits = text(&nested["Resource"]) == "arn:aws:states:::states:startExecution.sync:2";
    violations.check(waits, "Compensate", "does not wait for the end of the teardown");
    violations
}

pub fn failed_undos_do_not_stop_others(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (machine, name, state) in tasks(subject) {
        if machine == TEARDOWN {
            for catch in items(&state["Catch"]) {
                let continues = catch["Next"] == state["Next"];
                violations.check(
                    continues,
                    name,
                    "does not continue with the next undo after an error",
                );
                let recorded = catch["Assign"]["undoFailures"].is_string();
                violations.check(recorded, name, "does not record its error in undoFailures");
            }
        }
    }
    violations
}

pub fn every_step_has_its_undo(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let forward = path(&subject.machines[ONBOARDING]);
    let back = path(&subject.machines[TEARDOWN]);
    for name in &forward {
        let is_known = STEPS.iter().any(|step| step.name == *name);
        violations.check(is_known, *name, "is not a step in contracts::saga::STEPS");
    }
    for name in &back {
        let is_known = STEPS.iter().any(|step| step.undo == *name);
        violations.check(is_known, *name, "is not an undo in contracts::saga::STEPS");
    }
    for (index, step) in STEPS.iter().enumerate() {
        let is_there = forward.get(index) == Some(&step.name);
        violations.check(
            is_there,
            step.name,
            format!("is not state {} of {ONBOARDING}", index + 1),
        );
    }
    for (index, step) in undo_order().iter().enumerate() {
        let is_there = back.get(index) == Some(&step.undo);
        let what = format!("is not undone by state {} of {TEARDOWN}, {}", index + 1, step.undo);
        violations.check(is_there, step.name, what);
    }
    violations
}

/// Returns the Task states on the success path of a machine.
fn path(machine: &Value) -> Vec<&str> {
    let mut names = Vec::new();
    let mut next = text(&machine["StartAt"]);
    // The limit ends the search if the definition has a loop.
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
fn longest_duration(state: &Value) -> i64 {
    let timeout = state["TimeoutSeconds"].as_i64().unwrap_or_default();
    let mut seconds = timeout;
    for retrier in items(&state["Retry"]) {
        let attempts = retrier["MaxAttempts"].as_i64().unwrap_or_default();
        let (mut wait, rate) = (
            retrier["IntervalSeconds"].as_i64().unwrap_or_default(),
            retrier["BackoffRate"].as_i64().unwrap_or(1),
        );
        let max = retrier["MaxDelaySeconds"].as_i64().unwrap_or(i64::MAX);
        for _ in 0..attempts {
            seconds = seconds.saturating_add(wait.min(max));
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

pub fn retries_are_bounded(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (_, name, state) in tasks(subject) {
        let retriers: Vec<_> = items(&state["Retry"]).collect();
        violations.check(!retriers.is_empty(), name, "has no retries");
        for retrier in retriers {
            let attempts = retrier["MaxAttempts"].as_i64();
            let bounded = attempts.is_some_and(|attempts| (0..=8).contains(&attempts));
            violations.check(bounded, name, "does not limit its retries to at most 8");
            if attempts != Some(0) {
                let grows = retrier["BackoffRate"].as_f64().is_some_and(|rate| rate >= 1.5)
                    && retrier["IntervalSeconds"].as_i64().is_some()
                    && retrier["MaxDelaySeconds"].as_i64().is_some_and(|max| max <= 60);
                violations.check(grows, name, "has no exponential backoff of at most a minute");
                let jitter = retrier["JitterStrategy"] == "FULL";
                violations.check(jitter, name, "retries without jitter");
            }
        }
    }
    violations
}

pub fn tasks_time_out(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (_, name, state) in tasks(subject) {
        let seconds = state["TimeoutSeconds"].as_i64();
        violations.check(seconds.is_some(), name, "has no TimeoutSeconds");
        let function = text(&state["Arguments"]["FunctionName"]);
        if let Some(function) = function.strip_prefix("${").and_then(|it| it.strip_suffix("Arn}")) {
            violations.check(
                seconds.is_none_or(|seconds| seconds > subject.timeout(function)),
                name,
                format!("times out before {function} does"),
            );
        }
    }
    violations
}

pub fn executions_time_out(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (machine, definition) in &subject.machines {
        let exists = definition["TimeoutSeconds"].as_i64().is_some();
        violations.check(exists, machine, "has no TimeoutSeconds");
    }
    violations
}

pub fn timeouts_cover_the_longest_duration(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let total = |machine: &str, except: &str| -> i64 {
        let tasks = tasks(subject).into_iter();
        let of_machine = tasks.filter(|(of, name, _)| *of == machine && *name != except);
        of_machine.map(|(_, _, state)| longest_duration(state)).sum()
    };
    let compensate = &subject.machines[ONBOARDING]["States"][COMPENSATE];
    let (given, needed) = (compensate["TimeoutSeconds"].as_i64(), total(TEARDOWN, ""));
    violations.check(
        given.is_some_and(|given| given >= needed),
        "Compensate",
        format!("has a timeout below the {needed} s that a teardown may take"),
    );
    let (given, needed) =
        (subject.machines[ONBOARDING]["TimeoutSeconds"].as_i64(), total(ONBOARDING, ""));
    violations.check(
        given.is_some_and(|given| given >= needed),
        ONBOARDING,
        format!("has a timeout below the {needed} s that it may take"),
    );
    violations
}

pub fn placeholders_are_substituted(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (machine, definition) in &subject.machines {
        let id = resource(machine);
        let text = definition.to_string();
        let given = &subject.template.properties(&id)["DefinitionSubstitutions"];
        for (name, _) in members(given) {
            let used = text.contains(&format!("${{{name}}}"));
            violations.check(used, &id, format!("{name} is substituted but not used"));
        }
        for rest in text.split("${").skip(1) {
            let name = rest.split('}').next().unwrap_or_default();
            violations.check(
                !given[name].is_null(),
                &id,
                format!("{name} is used but not substituted"),
            );
        }
    }
    violations
}

pub fn state_machines_are_logged_and_traced(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, machine) in subject.template.resources("AWS::Serverless::StateMachine") {
        let machine = &machine["Properties"];
        violations.check(machine["Type"] == "STANDARD", id, "is not of the type STANDARD");
        violations.check(machine["Tracing"]["Enabled"] == true, id, "is not traced");
        let logging = &machine["Logging"];
        let destination = &logging["Destinations"][0]["CloudWatchLogsLogGroup"]["LogGroupArn"];
        let group = text(destination).trim_end_matches(".Arn");
        violations.check(
            subject.is(group, "AWS::Logs::LogGroup")
                && ["ERROR", "ALL"].contains(&text(&logging["Level"])),
            id,
            "does not log its errors",
        );
        violations.check(
            logging["IncludeExecutionData"] == false,
            id,
            "logs inputs, which contain payment method ids",
        );
    }
    violations
}
