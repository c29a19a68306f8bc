//! Tests that the simulated cloud responds as AWS does and that its faults have the documented effects.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use store::{Commit, Key, StoreError, Table, Transaction};
use testkit::{
    cloud::{CallFault, Cloud, Entry, run},
    dynamo::{READINGS, SITES},
    rng::Rng,
};
use tokio::time::{Instant, sleep, timeout};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Row {
    status: String,
}

fn row(status: &str) -> Row {
    Row { status: status.to_owned() }
}

fn key(row: &str) -> Key {
    Key::pair(("siteId", "site"), ("row", row))
}

async fn create(table: &Table, at: &str, status: &str) -> Result<Commit, StoreError> {
    Transaction::on(table).create(table, &key(at), &row(status)).commit().await
}

#[test]
fn a_refused_put_returns_the_existing_row() {
    run(async {
        let cloud = Cloud::new(Rng::from_seed(1));
        let table = cloud.table(SITES);
        assert!(matches!(create(&table, "a", "FIRST").await, Ok(Commit::Done)));
        let Ok(Commit::Refused(refused)) = create(&table, "a", "SECOND").await else {
            panic!("created twice")
        };
        assert_eq!(refused.row(&key("a")).expect("a row"), Some(row("FIRST")));
        assert_eq!(table.get(&key("a")).await.expect("a read"), Some(row("FIRST")));
        assert_eq!(cloud.write_units().to_bits(), 1.0_f64.to_bits());
    });
}

#[test]
fn a_cancelled_transaction_names_the_failed_condition() {
    run(async {
        let cloud = Cloud::new(Rng::from_seed(1));
        let table = cloud.table(SITES);
        assert!(matches!(create(&table, "b", "EXISTING").await, Ok(Commit::Done)));
        let both = Transaction::on(&table).create(&table, &key("a"), &row("NEW"));
        let both = both.create(&table, &key("b"), &row("NEW")).commit().await;
        let Ok(Commit::Refused(refused)) = both else { panic!("{both:?}") };
        assert!(!refused.contains(&key("a")));
        assert_eq!(refused.row(&key("b")).expect("a row"), Some(row("EXISTING")));
        assert_eq!(cloud.rows(SITES).len(), 1);
    });
}

#[derive(Debug, PartialEq)]
enum CallEnd {
    Succeeded,
    Transient,
    OtherError,
    Panicked,
}

#[derive(Debug, PartialEq)]
enum Effect {
    Never,
    BeforeEnd,
    Later,
}

/// The result of a call with a fault: how it ended, when it took effect, and how many seconds it took.
#[derive(Debug, PartialEq)]
struct FaultEffect(CallEnd, Effect, u64);

/// Puts rows until the fault occurs, and returns its effect.
fn effect_of(fault: CallFault) -> FaultEffect {
    run(async {
        let cloud = Cloud::new(Rng::from_seed(2));
        let table = cloud.table(SITES);
        cloud.inject_faults(100);
        for n in 0..1_000 {
            let (line, start) = (cloud.log_length(), Instant::now());
            let table_of_call = table.clone();
            let put = tokio::task::spawn_local(async move {
                create(&table_of_call, &format!("row-{n}"), "EXISTING").await
            });
            let end = put.await;
            let seconds = start.elapsed().as_secs();
            let effects = |cloud: &Cloud| {
                let log = cloud.log_from(line);
                log.iter().any(|entry| matches!(entry, Entry::Effect { .. }))
            };
            let effect = effects(&cloud);
            sleep(Duration::from_mins(1)).await;
            let occurred = cloud.log_from(line).into_iter().find_map(|entry| match entry {
                Entry::Called { fault, .. } => fault,
                Entry::Effect { .. } => None,
            });
            if occurred == Some(fault) {
                let end = match end {
                    Ok(Ok(_)) => CallEnd::Succeeded,
                    Ok(Err(StoreError::Transient(_))) => CallEnd::Transient,
                    Ok(Err(_)) => CallEnd::OtherError,
                    Err(_) => CallEnd::Panicked,
                };
                let effect = match effects(&cloud) {
                    _ if effect => Effect::BeforeEnd,
                    true => Effect::Later,
                    false => Effect::Never,
                };
                return FaultEffect(end, effect, seconds);
            }
        }
        panic!("{fault:?} did not occur")
    })
}

#[test]
fn every_fault_has_its_documented_effect() {
    assert_eq!(effect_of(CallFault::Throttled), FaultEffect(CallEnd::Transient, Effect::Never, 0));
    assert_eq!(
        effect_of(CallFault::ServerError),
        FaultEffect(CallEnd::Transient, Effect::Never, 0)
    );
    assert_eq!(
        effect_of(CallFault::LostRequest),
        FaultEffect(CallEnd::Transient, Effect::Never, 3)
    );
    assert_eq!(
        effect_of(CallFault::LostResponse),
        FaultEffect(CallEnd::Transient, Effect::BeforeEnd, 3)
    );
    assert_eq!(effect_of(CallFault::Late), FaultEffect(CallEnd::Transient, Effect::Later, 3));
    assert_eq!(
        effect_of(CallFault::Disconnected),
        FaultEffect(CallEnd::Transient, Effect::BeforeEnd, 0)
    );
    assert_eq!(effect_of(CallFault::Slow), FaultEffect(CallEnd::Succeeded, Effect::BeforeEnd, 2));
    assert_eq!(effect_of(CallFault::Panic), FaultEffect(CallEnd::Panicked, Effect::Never, 0));
}

#[test]
fn a_call_takes_effect_after_its_caller_stopped_waiting() {
    run(async {
        let cloud = Cloud::new(Rng::from_seed(1));
        let table = cloud.table(SITES);
        let put = timeout(Duration::from_micros(1), create(&table, "a", "EXISTING")).await;
        assert!(put.is_err(), "the call ended too early");
        assert!(cloud.rows(SITES).is_empty());
        sleep(Duration::from_secs(1)).await;
        assert_eq!(cloud.rows(SITES).len(), 1);
    });
}

#[test]
fn only_one_partition_is_throttled_for_a_limited_time() {
    run(async {
        let cloud = Cloud::new(Rng::from_seed(1));
        let table = cloud.table(SITES);
        cloud.throttle(vec!["\"row-a\"".to_owned()], Duration::from_mins(1));
        assert!(matches!(create(&table, "row-a", "EXISTING").await, Err(StoreError::Transient(_))));
        assert!(matches!(create(&table, "row-b", "EXISTING").await, Ok(Commit::Done)));
        sleep(Duration::from_mins(1)).await;
        assert!(matches!(create(&table, "row-a", "EXISTING").await, Ok(Commit::Done)));
        assert_eq!(cloud.faults().into_iter().collect::<Vec<_>>(), [(CallFault::Throttled, 1)]);
    });
}

#[test]
fn a_queue_accepts_a_message_unless_it_is_too_large() {
    run(async {
        let cloud = Cloud::new(Rng::from_seed(1));
        let send = async |body: String| {
            let send = cloud.queues().send_message().queue_url("http://cloud/queue");
            send.message_body(body).send().await.is_ok()
        };
        assert!(send("{\"a\": 1}".to_owned()).await);
        assert!(!send(format!("\"{}\"", "x".repeat(1024 * 1024))).await);
        assert_eq!(cloud.messages(), [serde_json::json!({ "a": 1 })]);
        assert!(cloud.rows(READINGS).is_empty());
    });
}
