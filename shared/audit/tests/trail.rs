//! Tests of the audit trail against an embedded DynamoDB.

use audit::{Action, Entry, Trail};
use contracts::OperatorId;
use serde_json::json;
use store::{Commit, Key, Transaction};
use testkit::{
    Dynamo,
    dynamo::{AUDIT, OPERATORS},
    sample::noon,
};

fn entry() -> Entry {
    Entry {
        operator_id: OperatorId::DEFAULT,
        actor: "key:fsa_Ada00000".to_owned(),
        action: Action::DiscardFailure,
        target: "a".to_owned(),
        details: None,
    }
}

#[tokio::test]
async fn entries_of_the_same_time_do_not_replace_each_other() {
    let dynamo = Dynamo::start().await;
    let trail = Trail::new(dynamo.table(AUDIT));
    for _ in 0..3 {
        trail.write(&entry(), noon(0)).await.expect("an entry");
    }
    let rows = dynamo.rows(AUDIT).await;
    assert_eq!(rows.len(), 3);
    for row in rows {
        let (time, id) = row["at"].as_str().and_then(|at| at.split_once('/')).expect("two parts");
        assert_eq!(time, noon(0).to_string());
        assert_eq!(id.len(), 36);
        let mut row = row.clone();
        row.as_object_mut().expect("a row").remove("at");
        let expected = json!({
            "operatorId": OperatorId::DEFAULT, "actor": "key:fsa_Ada00000",
            "action": "DiscardFailure", "target": "a",
        });
        assert_eq!(row, expected);
    }
}

#[tokio::test]
async fn an_entry_is_committed_with_its_action_or_not_at_all() {
    let dynamo = Dynamo::start().await;
    let (trail, table) = (Trail::new(dynamo.table(AUDIT)), dynamo.table(OPERATORS));
    for is_first in [true, false] {
        let row = json!({ "name": "A" });
        let action = Transaction::on(&table).create(&table, &Key::id("a"), &row);
        let commit = trail.add(action, &entry(), noon(0)).commit().await.expect("a response");
        assert_eq!(matches!(commit, Commit::Done), is_first);
        assert_eq!(dynamo.rows(AUDIT).await.len(), 1);
    }
}

#[tokio::test]
async fn an_entry_that_can_not_be_written_is_an_error() {
    let dynamo = Dynamo::start().await;
    let trail = Trail::new(dynamo.table("NoTable"));
    trail.write(&entry(), noon(0)).await.expect_err("no such table");
}
