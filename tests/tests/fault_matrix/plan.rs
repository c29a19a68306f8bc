//! The cases: every step of both state machines, every observed call of it, and every fault.

use std::{
    collections::{BTreeSet, HashMap},
    fmt, fs,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tests::Stack;

use crate::{
    faults::{Fault, Service},
    proxy::ObservedInvocation,
};

/// When a function runs during an onboarding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Outside the state machines, in every onboarding.
    Outside,
    /// In `site-onboarding`.
    Forward,
    /// In `site-teardown`.
    Undo,
}

/// A function that commits something, and when it runs.
#[derive(Clone, Debug)]
pub struct Step {
    /// The name of the state, or of the function outside the state machines.
    pub name: String,
    /// When it runs.
    pub phase: Phase,
    /// The function's name in AWS.
    pub function: String,
}

/// Functions that every onboarding needs, but no state machine calls.
const OUTSIDE: [&str; 3] = ["CreateSite", "StartOnboarding", "PublishEvents"];

impl Step {
    /// Returns whether one invocation processes several onboardings. Its calls are attributed to one of them, so two
    /// cases of such a step can't run at the same time.
    pub fn is_batched(&self) -> bool {
        self.name == "PublishEvents"
    }
}

/// Returns the steps of both state machines, and the functions outside them.
pub fn steps(stack: &Stack) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    for name in OUTSIDE {
        let function = stack.named(&kebab(name));
        steps.push(Step { name: name.to_owned(), phase: Phase::Outside, function });
    }
    for (machine, phase) in [("site-onboarding", Phase::Forward), ("site-teardown", Phase::Undo)] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(format!("../statemachines/{machine}.asl.json"));
        let machine: Value = serde_json::from_slice(&fs::read(file)?)?;
        let mut next = machine["StartAt"].as_str();
        // In the order of the success path, followed by the states that are not on it.
        let states = machine["States"].as_object().context("the machine has no states")?;
        let mut names = Vec::new();
        while let Some(name) = next {
            names.push(name);
            next = states.get(name).and_then(|state| state["Next"].as_str());
        }
        let others: Vec<_> = states.keys().map(String::as_str).collect();
        names.extend(others.into_iter().filter(|name| !names.contains(name)).collect::<Vec<_>>());
        for name in names {
            if states[name]["Type"] == "Task"
                && let Some(function) = function_of(&states[name])?
            {
                let function = stack.named(&kebab(&function));
                steps.push(Step { name: name.to_owned(), phase, function });
            }
        }
    }
    Ok(steps)
}

/// Returns a function's name: `ReserveKits` becomes `reserve-kits`.
fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.push(letter.to_ascii_lowercase());
    }
    kebab
}

/// Returns the function that does a Task state's work, by its name in the template without `Function`. Returns
/// `None` for a nested execution, which has steps of its own.
fn function_of(state: &Value) -> Result<Option<String>> {
    let resource = state["Resource"].as_str().context("a Task without a Resource")?;
    let variable = |argument: &str, end: &str| {
        let value = state["Arguments"][argument].as_str().unwrap_or_default();
        let name = value.strip_prefix("${").and_then(|value| value.strip_suffix('}'));
        let name = name.and_then(|name| name.strip_suffix(end));
        name.map(str::to_owned).with_context(|| format!("{argument} {value:?} of {resource}"))
    };
    match resource {
        "arn:aws:states:::lambda:invoke" => variable("FunctionName", "FunctionArn").map(Some),
        // A queue is named after the function that consumes it.
        "arn:aws:states:::sqs:sendMessage.waitForTaskToken" => {
            variable("QueueUrl", "QueueUrl").map(Some)
        }
        "arn:aws:states:::states:startExecution.sync:2" => Ok(None),
        other => bail!("can't derive the function of a Task with the resource {other}"),
    }
}

/// An observed call of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepCall {
    /// The name and the ordinal.
    pub name: String,
    /// The service that is called.
    pub service: Service,
    /// Whether only the first invocation of a process makes this call.
    pub cold: bool,
}

/// One fault at one call of one step.
#[derive(Clone, Debug)]
pub struct Case {
    /// The step.
    pub step: Step,
    /// The call.
    pub call: StepCall,
    /// The fault.
    pub fault: Fault,
}

impl Case {
    /// Returns whether `words` matches this case: a step, a call and a fault, or only the first one or two of them.
    pub fn matches(&self, words: &str) -> bool {
        let name = self.to_string();
        words.split_whitespace().eq(name.split(' ').take(words.split_whitespace().count()))
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.step.name, self.call.name, self.fault)
    }
}

/// The calls that take tokens from the buckets of the rate limits.
const TOKENS: [&str; 3] = ["UpdateItem(operator)", "UpdateItem(key)", "UpdateItem(sagas)"];

/// Returns the calls of each step, in order. `cold` are the invocations of new processes, `warm` those of processes
/// that were used before.
pub fn calls(
    steps: &[Step],
    cold: &[ObservedInvocation],
    warm: &[ObservedInvocation],
) -> Result<HashMap<String, Vec<StepCall>>> {
    let mut calls = HashMap::new();
    for step in steps {
        let calls_of_step = |invocations: &[ObservedInvocation]| {
            let invocations = invocations.iter().filter(|it| it.function == step.function);
            let mut all: Vec<(Service, String)> = Vec::new();
            for call in invocations.flat_map(|it| &it.calls) {
                if !all.contains(call) {
                    all.push(call.clone());
                }
            }
            all
        };
        let (cold, warm) = (calls_of_step(cold), calls_of_step(warm));
        let only_warm: Vec<_> = warm.iter().filter(|call| !cold.contains(call)).cloned().collect();
        let found: Vec<_> = cold
            .into_iter()
            .chain(only_warm)
            // Outside the state machines, the number of calls depends on other work.
            .filter(|(_, name)| step.phase != Phase::Outside || name.ends_with("#1"))
            // Whether a request takes tokens for its rate limit depends on the requests before it. A failure of such a call
            // has no effect on the request (shared/limits/tests).
            .filter(|(_, name)| !TOKENS.iter().any(|tokens| name.starts_with(tokens)))
            .map(|call| StepCall { cold: !warm.contains(&call), service: call.0, name: call.1 })
            .filter(|call| step.phase != Phase::Outside || !call.cold)
            .collect();
        ensure!(!found.is_empty(), "no call of {} was observed", step.name);
        calls.insert(step.name.clone(), found);
    }
    Ok(calls)
}

/// Returns whether a fault applies to a call.
fn applies(fault: Fault, step: &Step, call: &StepCall) -> bool {
    let has_idempotency_key = call.service == Service::Stripe && call.name.starts_with("POST");
    match fault {
        // Only AWS's client repeats a call within an invocation.
        Fault::ErrorBeforeLasting | Fault::ErrorAfterLasting | Fault::ThrottleLasting => {
            call.service == Service::Aws
        }
        Fault::StoredErrorBefore | Fault::StoredErrorAfter => has_idempotency_key,
        // Only a write has an effect that can come late.
        Fault::LateAfterUndo => {
            let writes = ["TransactWriteItems", "PutItem", "UpdateItem"];
            step.phase == Phase::Forward && writes.iter().any(|it| call.name.starts_with(it))
        }
        _ => true,
    }
}

/// Returns all cases.
pub fn all(steps: &[Step], calls: &HashMap<String, Vec<StepCall>>) -> Vec<Case> {
    let mut cases = Vec::new();
    for step in steps {
        for call in &calls[&step.name] {
            for fault in Fault::ALL.iter().copied().filter(|fault| applies(*fault, step, call)) {
                cases.push(Case { step: step.clone(), call: call.clone(), fault });
            }
        }
    }
    cases
}

/// Returns one case of each step and fault. The faults of a step take its calls in turn. The result is deterministic.
pub fn subset(cases: &[Case]) -> Vec<Case> {
    let mut selected = BTreeSet::new();
    let mut next_calls = HashMap::<&str, usize>::new();
    let mut subset = Vec::new();
    for fault in Fault::ALL {
        let steps: Vec<_> = cases.iter().map(|case| case.step.name.as_str()).collect();
        for step in steps {
            if !selected.insert((step, *fault)) {
                continue;
            }
            let matching: Vec<_> = cases
                .iter()
                .filter(|case| case.step.name == step && case.fault == *fault)
                .collect();
            if matching.is_empty() {
                continue;
            }
            let next_call = next_calls.entry(step).or_default();
            subset.push(matching[*next_call % matching.len()].clone());
            *next_call += 1;
        }
    }
    subset
}
