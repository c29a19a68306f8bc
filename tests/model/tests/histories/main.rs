//! Runs the saga's steps and undos on random histories and compares each effect with a model.
//!
//! In a history, commands come twice, late, in any order and concurrently. Calls fail before or after their effect, or
//! take effect late. Functions crash at any call. Sites compete for the same stock. The steps are the real ones. After
//! every call with an effect, the rows are compared with what the model allows.
//!
//! A failing history is shrunk and printed in words. `SEED=123 cargo test -p model` runs one history again,
//! `HISTORIES=100000` runs that many.

mod history;
mod model;
mod play;
mod provider;
mod world;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use history::{Beginning, Card, DELIVERIES, History, Move, Site, Trouble, Work, histories};
use play::{Met, Played, play};
use proptest::{
    prelude::ProptestConfig,
    test_runner::{RngSeed, TestCaseError, TestError, TestRunner},
};
use testkit::rng::{all_seeds, seeds};
use tokio::runtime::{Builder, Runtime};
use world::World;

const HISTORIES: u64 = 10_000;

/// The number of pairs of function and operation that occur often (see [`OFTEN`]).
const CALLS: u32 = 29;

/// The runtime and the functions on which a thread runs its histories.
struct Stage {
    runtime: Runtime,
    world: RefCell<World>,
}

thread_local! {
    static STAGE: Stage = {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let world = RefCell::new(runtime.block_on(World::start()));
        Stage { runtime, world }
    };
}

fn played(history: &History) -> Played {
    STAGE.with(|stage| {
        let world = &mut *stage.world.borrow_mut();
        stage.runtime.block_on(play(world, history))
    })
}

/// Runs the history of a seed. If it fails, shrinks it and panics.
fn of_seed(seed: u64) -> Met {
    let config = ProptestConfig {
        cases: 1,
        failure_persistence: None,
        max_shrink_iters: 5_000,
        rng_seed: RngSeed::Fixed(seed),
        ..ProptestConfig::default()
    };
    let met = RefCell::new(Met::new());
    let result = TestRunner::new(config).run(&histories(), |history| {
        let played = played(&history);
        *met.borrow_mut() = played.met;
        played.wrong.map_or(Ok(()), |wrong| Err(TestCaseError::fail(wrong)))
    });
    match result {
        Ok(()) => met.into_inner(),
        Err(TestError::Fail(_, history)) => panic!("{}", told(&shortest(history))),
        Err(TestError::Abort(reason)) => panic!("no history: {reason}"),
    }
}

/// Removes everything from a failing history that does not affect the failure. Proptest does not shrink parts that it
/// generated together.
fn shortest(mut history: History) -> History {
    let is_bad = |history: &History| played(history).wrong.is_some();
    loop {
        let before = history.weight();
        for shorter in history.shorter() {
            if is_bad(&shorter) {
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
fn told(history: &History) -> String {
    let played = played(history);
    let mut text = String::from("the shortest bad history that was found:\n\n");
    let [first, second] = model::METRICS;
    let [of_first, of_second] = history.stock;
    writeln!(text, "In stock: {of_first} of {first}, {of_second} of {second}.").expect("text");
    if played.story.iter().any(|line| line.starts_with("receive-kits")) {
        for (number, [of_first, of_second]) in DELIVERIES.into_iter().enumerate() {
            writeln!(text, "Delivery {number}: {of_first} and {of_second} more.").expect("text");
        }
    }
    for (name, site) in history::NAMES.into_iter().zip(&history.sites) {
        let ([of_first, of_second], card) = (site.sensors, site.card);
        writeln!(text, "Site {name} needs {of_first} and {of_second}; its card: {card:?}.")
            .expect("text");
    }
    text.push('\n');
    for line in played.story {
        writeln!(text, "{line}").expect("text");
    }
    let wrong = played.wrong.unwrap_or_else(|| "nothing, when it was played again".to_owned());
    writeln!(text, "\nWRONG: {wrong}").expect("text");
    text
}

#[test]
fn in_every_history_each_step_has_one_effect_and_an_undo_is_final() {
    let wanted = std::env::var("HISTORIES").map(|it| it.parse().expect("HISTORIES is a number"));
    let histories = wanted.unwrap_or(HISTORIES);
    let mut met = Met::new();
    for each in seeds(histories, of_seed) {
        for (what, times) in each {
            *met.entry(what).or_default() += times;
        }
    }
    if all_seeds() && histories >= HISTORIES {
        assert_everything_was_tried(&met);
    }
}

/// A call that occurs this often must have met every fault.
const OFTEN: u32 = 1_000;

/// Asserts that every frequent call of every function met every fault.
fn assert_everything_was_tried(met: &Met) {
    let mut calls: BTreeMap<(&str, &str), BTreeMap<&str, u32>> = BTreeMap::new();
    for ((function, at, what), times) in met {
        calls.entry((function, at)).or_default().insert(what, *times);
    }
    let functions: BTreeSet<_> = calls.keys().map(|(function, _)| *function).collect();
    assert_eq!(functions.len(), 15, "{functions:?}");
    let troubles = Trouble::ALL.map(|trouble| trouble.to_string());
    let mut tried = 0;
    for ((function, at), whats) in calls {
        eprintln!("{function}, {at}: {whats:?}");
        if whats.get("done").is_none_or(|times| *times < OFTEN) {
            continue;
        }
        let untried = troubles.iter().find(|it| !whats.contains_key(it.as_str()));
        assert_eq!(untried, None, "never met by {at} of {function}");
        tried += 1;
    }
    assert_eq!(tried, CALLS);
}

/// A regression that a random history found: the undo had read neither row nor record, and an initialization began
/// before the undo wrote the tombstone.
#[test]
fn an_undo_does_not_end_while_a_concurrent_initialization_may_still_subscribe() {
    let deliver =
        |work, troubles: &[_]| Move::Deliver { site: 0, work, troubles: troubles.to_vec() };
    let site = Site { sensors: [1, 0], card: Card::Good, begins: Beginning::Unknown, fails: false };
    let moves = vec![
        deliver(Work::Cancel, &[(3, Trouble::HeldBefore)]),
        deliver(Work::Initialize, &[(3, Trouble::HeldBefore)]),
        Move::GoOn(0),
        Move::GoOn(0),
    ];
    let played = played(&History { sites: vec![site], stock: [0, 0], moves });
    let story = played.story.join("\n");
    assert_eq!(played.wrong, None, "{story}");
    for call in ["TransactWriteItems", "create customer"] {
        let held = format!("{call}: {}", Trouble::HeldBefore);
        assert!(story.contains(&held), "not held up where it is meant to be:\n{story}");
    }
}
