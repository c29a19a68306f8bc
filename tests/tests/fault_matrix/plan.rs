//! The cases: every step of both state machines, every call that it was seen to make, every fault.

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
    proxy::Seen,
};

/// When a function works for an onboarding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Beside the state machines, whatever becomes of the onboarding.
    Beside,
    /// In `site-onboarding`.
    Forward,
    /// In `site-teardown`.
    Undo,
}

/// A function that commits something, and where.
#[derive(Clone, Debug)]
pub struct Step {
    /// The state's name, or that of the function beside the state machines.
    pub name: String,
    /// When it works.
    pub phase: Phase,
    /// The function's name in AWS.
    pub function: String,
}

/// Functions that no state machine calls, but no onboarding goes without.
const BESIDE: [&str; 3] = ["CreateSite", "StartOnboarding", "PublishEvents"];

impl Step {
    /// Whether one invocation works for several onboardings. Its calls are attributed to one of them, so two
    /// cases of such a step can't run at the same time.
    pub fn is_batched(&self) -> bool {
        self.name == "PublishEvents"
    }
}

/// The steps of both state machines, and those beside them.
pub fn steps(stack: &Stack) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    for name in BESIDE {
        let function = stack.named(&kebab(name));
        steps.push(Step { name: name.to_owned(), phase: Phase::Beside, function });
    }
    for (machine, phase) in [("site-onboarding", Phase::Forward), ("site-teardown", Phase::Undo)] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(format!("../statemachines/{machine}.asl.json"));
        let machine: Value = serde_json::from_slice(&fs::read(file)?)?;
        let mut next = machine["StartAt"].as_str();
        // In the order of the way that goes well; what is not on it follows.
        let states = machine["States"].as_object().context("states")?;
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

/// `ReserveKits` as `reserve-kits`: a function's name.
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

/// The function that does a Task state's work, as the template names it without `Function`. `None` for a
/// nested execution, which has steps of its own.
fn function_of(state: &Value) -> Result<Option<String>> {
    let resource = state["Resource"].as_str().context("a Task's resource")?;
    let variable = |argument: &str, end: &str| {
        let value = state["Arguments"][argument].as_str().unwrap_or_default();
        let name = value.strip_prefix("${").and_then(|value| value.strip_suffix('}'));
        let name = name.and_then(|name| name.strip_suffix(end));
        name.map(str::to_owned).with_context(|| format!("{argument} {value:?} of {resource}"))
    };
    match resource {
        "arn:aws:states:::lambda:invoke" => variable("FunctionName", "FunctionArn").map(Some),
        // A queue is named after the function that it leads to.
        "arn:aws:states:::sqs:sendMessage.waitForTaskToken" => {
            variable("QueueUrl", "QueueUrl").map(Some)
        }
        "arn:aws:states:::states:startExecution.sync:2" => Ok(None),
        other => bail!("the matrix does not know which function does the work of {other}"),
    }
}

/// A call that a step was seen to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Name and ordinal.
    pub name: String,
    /// Whom it calls.
    pub service: Service,
    /// Only the first invocation of a process makes it.
    pub cold: bool,
}

/// One fault at one call of one step.
#[derive(Clone, Debug)]
pub struct Case {
    /// The step.
    pub step: Step,
    /// The call.
    pub call: Call,
    /// The fault.
    pub fault: Fault,
}

impl Case {
    /// Whether the words, a step, a call and a fault, or the first of them, mean this case.
    pub fn is_meant_by(&self, words: &str) -> bool {
        let name = self.to_string();
        words.split_whitespace().eq(name.split(' ').take(words.split_whitespace().count()))
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.step.name, self.call.name, self.fault)
    }
}

/// What each step calls, in order. `cold` was seen of processes that had just started, `warm` of those
/// that had worked before.
pub fn calls(steps: &[Step], cold: &[Seen], warm: &[Seen]) -> Result<HashMap<String, Vec<Call>>> {
    let mut calls = HashMap::new();
    for step in steps {
        let of = |seen: &[Seen]| {
            let ours = seen.iter().filter(|seen| seen.function == step.function);
            let mut all: Vec<(Service, String)> = Vec::new();
            for call in ours.flat_map(|seen| &seen.calls) {
                if !all.contains(call) {
                    all.push(call.clone());
                }
            }
            all
        };
        let (cold, warm) = (of(cold), of(warm));
        let only_warm: Vec<_> = warm.iter().filter(|call| !cold.contains(call)).cloned().collect();
        let found: Vec<_> = cold
            .into_iter()
            .chain(only_warm)
            // How many calls it makes beside the state machines depends on what else happens.
            .filter(|(_, name)| step.phase != Phase::Beside || name.ends_with("#1"))
            .map(|call| Call { cold: !warm.contains(&call), service: call.0, name: call.1 })
            .filter(|call| step.phase != Phase::Beside || !call.cold)
            .collect();
        ensure!(!found.is_empty(), "{} was not seen to call anything", step.name);
        calls.insert(step.name.clone(), found);
    }
    Ok(calls)
}

/// Whether a fault makes sense at a call.
fn fits(fault: Fault, step: &Step, call: &Call) -> bool {
    let keyed = call.service == Service::Stripe && call.name.starts_with("POST");
    match fault {
        // Nobody but AWS's client repeats a call within an invocation.
        Fault::ErrorBeforeLasting | Fault::ErrorAfterLasting | Fault::ThrottleLasting => {
            call.service == Service::Aws
        }
        Fault::StoredErrorBefore | Fault::StoredErrorAfter => keyed,
        // What is not written changes nothing, however late it comes.
        Fault::LateAfterUndo => {
            let writes = ["TransactWriteItems", "PutItem", "UpdateItem"];
            step.phase == Phase::Forward && writes.iter().any(|it| call.name.starts_with(it))
        }
        _ => true,
    }
}

/// All cases.
pub fn all(steps: &[Step], calls: &HashMap<String, Vec<Call>>) -> Vec<Case> {
    let mut cases = Vec::new();
    for step in steps {
        for call in &calls[&step.name] {
            for fault in Fault::ALL.iter().copied().filter(|fault| fits(*fault, step, call)) {
                cases.push(Case { step: step.clone(), call: call.clone(), fault });
            }
        }
    }
    cases
}

/// Of each step and each fault one case, at the step's calls in turn: always the same ones.
pub fn subset(cases: &[Case]) -> Vec<Case> {
    let mut taken = BTreeSet::new();
    let mut turns = HashMap::<&str, usize>::new();
    let mut subset = Vec::new();
    for fault in Fault::ALL {
        let steps: Vec<_> = cases.iter().map(|case| case.step.name.as_str()).collect();
        for step in steps {
            if !taken.insert((step, *fault)) {
                continue;
            }
            let fitting: Vec<_> = cases
                .iter()
                .filter(|case| case.step.name == step && case.fault == *fault)
                .collect();
            if fitting.is_empty() {
                continue;
            }
            let turn = turns.entry(step).or_default();
            subset.push(fitting[*turn % fitting.len()].clone());
            *turn += 1;
        }
    }
    subset
}
