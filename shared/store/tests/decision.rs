//! Tests of deciding on a row until the decision is committed.

use contracts::events::SiteActivated;
use serde_json::{Value, json};
use store::{Decision, Key, NewEvent, StoreError, Table, Transaction, decide_and_commit};
use testkit::{
    Dynamo,
    dynamo::INVENTORY,
    sample::{noon, saga},
};

const ATTEMPTS: usize = 3;

fn key() -> Key {
    Key::id("a")
}

fn row(sequence: u64) -> Value {
    json!({ "id": "a", "sequence": sequence })
}

fn sequence(row: &Value) -> u64 {
    row["sequence"].as_u64().expect("a sequence")
}

/// Returns the transaction that writes the next sequence if the row is unchanged.
fn increase(table: &Table, row: &Value) -> Transaction {
    let seen = sequence(row);
    let next = json!({ "sequence": seen + 1 });
    Transaction::on(table).put_if_sequence(table, &key(), &next, seen)
}

async fn stored(sequence: u64) -> (Dynamo, Table) {
    let dynamo = Dynamo::start().await;
    dynamo.put(INVENTORY, row(sequence)).await;
    let table = dynamo.table(INVENTORY);
    (dynamo, table)
}

#[tokio::test]
async fn a_decision_is_committed_and_its_result_returned() {
    let (dynamo, table) = stored(7).await;
    let decide = |row: &Value| -> Result<_, StoreError> {
        Ok(Decision::Change(increase(&table, row), sequence(row)))
    };
    let result = decide_and_commit(ATTEMPTS, &key(), row(7), decide).await;
    assert_eq!(result.expect("a result"), Some(7));
    assert_eq!(dynamo.rows(INVENTORY).await, [row(8)]);
}

#[tokio::test]
async fn a_decision_to_keep_the_row_calls_nothing() {
    let (dynamo, _) = stored(7).await;
    let decide = |row: &Value| -> Result<_, StoreError> { Ok(Decision::Keep(sequence(row))) };
    let result = decide_and_commit(ATTEMPTS, &key(), row(7), decide).await;
    assert_eq!(result.expect("a result"), Some(7));
    assert_eq!(dynamo.take_usage().calls, [].into());
}

#[tokio::test]
async fn a_refused_decision_is_made_again_on_the_row_that_refused_it() {
    let (dynamo, table) = stored(9).await;
    let mut seen = Vec::new();
    let decide = |row: &Value| -> Result<_, StoreError> {
        seen.push(sequence(row));
        Ok(Decision::Change(increase(&table, row), sequence(row)))
    };
    let result = decide_and_commit(ATTEMPTS, &key(), row(7), decide).await;
    assert_eq!(result.expect("a result"), Some(9));
    assert_eq!(seen, [7, 9]);
    // The refusal has the row, so it is not read.
    assert_eq!(dynamo.take_usage().calls, [("PutItem".to_owned(), 2)].into());
    assert_eq!(dynamo.rows(INVENTORY).await, [row(10)]);
}

#[tokio::test]
async fn the_number_of_attempts_is_limited() {
    let (dynamo, table) = stored(9).await;
    let mut decisions = 0;
    // The sequence is always that of an older row.
    let decide = |_: &Value| -> Result<_, StoreError> {
        decisions += 1;
        Ok(Decision::Change(increase(&table, &row(7)), ()))
    };
    let result = decide_and_commit(ATTEMPTS, &key(), row(7), decide).await;
    assert_eq!(result.expect("no error"), None);
    assert_eq!(decisions, ATTEMPTS);
    assert_eq!(dynamo.rows(INVENTORY).await, [row(9)]);
}

#[tokio::test]
async fn a_refusal_for_another_reason_than_the_row_ends_the_attempts() {
    let (dynamo, table) = stored(7).await;
    let (saga, outbox) = (saga("a"), dynamo.outbox());
    let event = || {
        let data = SiteActivated { site_id: saga.site_id };
        NewEvent::in_saga(saga, saga.site_id, 1, noon(0), data)
    };
    let first = Transaction::on(&table).event(&outbox, event()).commit().await;
    assert!(matches!(first, Ok(store::Commit::Done)));
    let mut decisions = 0;
    let decide = |row: &Value| -> Result<_, StoreError> {
        decisions += 1;
        Ok(Decision::Change(increase(&table, row).event(&outbox, event()), ()))
    };
    let result = decide_and_commit(ATTEMPTS, &key(), row(7), decide).await;
    assert_eq!(result.expect("no error"), None);
    assert_eq!(decisions, 1);
    assert_eq!(dynamo.rows(INVENTORY).await, [row(7)]);
}

#[tokio::test]
async fn the_error_of_a_decision_and_of_a_commit_are_returned() {
    let (dynamo, table) = stored(9).await;
    // The second decision fails.
    let decide = |row: &Value| match sequence(row) {
        7 => Ok(Decision::Change(increase(&table, row), ())),
        _ => Err(StoreError::Transient("decision".to_owned())),
    };
    let result = decide_and_commit(ATTEMPTS, &key(), row(7), decide).await;
    assert!(
        matches!(&result, Err(StoreError::Transient(text)) if text == "decision"),
        "{result:?}"
    );

    let no_table = dynamo.table("NoTable");
    let decide = |row: &Value| -> Result<_, StoreError> {
        Ok(Decision::Change(increase(&no_table, row), ()))
    };
    let result = decide_and_commit(ATTEMPTS, &key(), row(7), decide).await;
    assert!(matches!(result, Err(StoreError::Internal(_))), "{result:?}");
}
