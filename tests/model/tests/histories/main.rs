//! Runs the saga's steps and undos on random histories and compares each effect with a model.
//!
//! In a history, commands come twice, late, in any order and concurrently. Calls fail before or after their effect, or
//! take effect late. Functions crash at any call. Sites compete for the same stock. The steps are the real ones. After
//! every call with an effect, the changed rows are compared with the changes that the model allows.
//!
//! A failing history is shrunk and printed in words. `SEED=123 make unit-test ARGS='--test histories'` runs one history
//! again, `make proofs` runs ten thousand.

mod harness;
mod history;
mod model;
mod provider;
mod run;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use harness::Harness;
use history::{
    Action, Card, DELIVERIES, History, InitialState, InjectedFault, Invocation, Site, histories,
};
use proptest::{
    prelude::ProptestConfig,
    test_runner::{RngSeed, TestCaseError, TestError, TestRunner},
};
use run::{OutcomeCounts, RunResult, run_history};
use testkit::rng::{all_seeds, seed_count, seeds};
use tokio::runtime::{Builder, Runtime};

/// The number of histories of `make proofs`. They contain every fault at every frequent call.
const ALL_HISTORIES: u64 = 10_000;
/// The number of histories of `make test`.
const HISTORIES: u64 = 3_000;

/// The number of pairs of function and operation that occur frequently (see [`FREQUENT`]).
const FREQUENT_CALLS: u32 = 30;

/// The runtime and the functions with which a thread runs its histories.
struct ThreadContext {
    runtime: Runtime,
    harness: RefCell<Harness>,
}

thread_local! {
    static CONTEXT: ThreadContext = {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime can be created");
        let harness = RefCell::new(runtime.block_on(Harness::start()));
        ThreadContext { runtime, harness }
    };
}

fn run_on_this_thread(history: &History) -> RunResult {
    CONTEXT.with(|context| {
        let harness = &mut *context.harness.borrow_mut();
        context.runtime.block_on(run_history(harness, history))
    })
}

/// Runs the history of a seed. If it fails, shrinks it and panics.
fn run_seed(seed: u64) -> OutcomeCounts {
    let config = ProptestConfig {
        cases: 1,
        failure_persistence: None,
        max_shrink_iters: 5_000,
        rng_seed: RngSeed::Fixed(seed),
        ..ProptestConfig::default()
    };
    let outcomes = RefCell::new(OutcomeCounts::new());
    let result = TestRunner::new(config).run(&histories(), |history| {
        let result = run_on_this_thread(&history);
        *outcomes.borrow_mut() = result.outcomes;
        result.violation.map_or(Ok(()), |violation| Err(TestCaseError::fail(violation)))
    });
    match result {
        Ok(()) => outcomes.into_inner(),
        Err(TestError::Fail(_, history)) => panic!("{}", describe(&shortest(history))),
        Err(TestError::Abort(reason)) => panic!("no history was generated: {reason}"),
    }
}

/// Removes all parts of a failing history that the failure does not need. Proptest does not shrink parts that it
/// generated together.
fn shortest(mut history: History) -> History {
    let fails = |history: &History| run_on_this_thread(history).violation.is_some();
    loop {
        let before = history.weight();
        for shorter in history.shorter() {
            if fails(&shorter) {
                history = shorter;
                break;
            }
        }
        if history.weight() == before {
            return history;
        }
    }
}

/// Describes a failing history in words.
fn describe(history: &History) -> String {
    let result = run_on_this_thread(history);
    let mut text = String::from("the shortest failing history:\n\n");
    let [first, second] = model::METRICS;
    let [of_first, of_second] = history.stock;
    writeln!(text, "Stock: {of_first} of {first}, {of_second} of {second}.")
        .expect("writing to a String succeeds");
    if result.transcript.iter().any(|line| line.starts_with("receive-kits")) {
        for (number, [of_first, of_second]) in DELIVERIES.into_iter().enumerate() {
            writeln!(text, "Delivery {number}: {of_first} of {first}, {of_second} of {second}.")
                .expect("writing to a String succeeds");
        }
    }
    for (name, site) in history::NAMES.into_iter().zip(&history.sites) {
        let ([of_first, of_second], card) = (site.sensors, site.card);
        writeln!(
            text,
            "Site {name} needs {of_first} of {first}, {of_second} of {second}. Card: {card:?}."
        )
        .expect("writing to a String succeeds");
    }
    text.push('\n');
    for line in result.transcript {
        writeln!(text, "{line}").expect("writing to a String succeeds");
    }
    let violation = result.violation;
    let violation = violation.unwrap_or_else(|| "none in the second run".to_owned());
    writeln!(text, "\nViolation: {violation}").expect("writing to a String succeeds");
    text
}

#[test]
fn in_every_history_each_step_has_one_effect_and_an_undo_is_final() {
    let histories = seed_count(HISTORIES, ALL_HISTORIES);
    let mut outcomes = OutcomeCounts::new();
    for counts in seeds(histories, run_seed) {
        for (outcome, times) in counts {
            *outcomes.entry(outcome).or_default() += times;
        }
    }
    if all_seeds() && histories == ALL_HISTORIES {
        assert_all_faults_occurred(&outcomes);
    }
}

/// A call that occurs at least this often must have met every fault.
const FREQUENT: u32 = 1_000;

/// Asserts that every frequent call of every function met every fault.
fn assert_all_faults_occurred(outcomes: &OutcomeCounts) {
    let mut calls: BTreeMap<(&str, &str), BTreeMap<&str, u32>> = BTreeMap::new();
    for ((function, call, effect), times) in outcomes {
        calls.entry((function, call)).or_default().insert(effect, *times);
    }
    let functions: BTreeSet<_> = calls.keys().map(|(function, _)| *function).collect();
    assert_eq!(functions.len(), 15, "{functions:?}");
    let faults = InjectedFault::ALL.map(|fault| fault.to_string());
    let mut frequent = 0;
    for ((function, call), effects) in calls {
        eprintln!("{function}, {call}: {effects:?}");
        if effects.get("executed").is_none_or(|times| *times < FREQUENT) {
            continue;
        }
        let missing = faults.iter().find(|it| !effects.contains_key(it.as_str()));
        assert_eq!(missing, None, "this fault never occurred at {call} of {function}");
        frequent += 1;
    }
    assert_eq!(frequent, FREQUENT_CALLS);
}

/// A regression that a random history found: the undo had read neither a row nor a record. Then an initialization
/// started before the undo wrote the tombstone.
#[test]
fn an_undo_does_not_end_while_a_concurrent_initialization_may_still_subscribe() {
    let deliver =
        |invocation, faults: &[_]| Action::Deliver { site: 0, invocation, faults: faults.to_vec() };
    let site = Site {
        sensors: [1, 0],
        card: Card::Good,
        initial_state: InitialState::Unknown,
        fails: false,
    };
    let actions = vec![
        deliver(Invocation::Cancel, &[(3, InjectedFault::PausedBefore)]),
        deliver(Invocation::Initialize, &[(3, InjectedFault::PausedBefore)]),
        Action::Resume(0),
        Action::Resume(0),
    ];
    let result = run_on_this_thread(&History { sites: vec![site], stock: [0, 0], actions });
    let transcript = result.transcript.join("\n");
    assert_eq!(result.violation, None, "{transcript}");
    for call in ["TransactWriteItems", "create customer"] {
        let paused = format!("{call}: {}", InjectedFault::PausedBefore);
        assert!(transcript.contains(&paused), "{call} was not paused:\n{transcript}");
    }
}
