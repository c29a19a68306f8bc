//! Tests that all rows of an effect commit in one transaction.

use aws_sdk_dynamodb::{Client, config::retry::RetryConfig, types::AttributeValue};
use contracts::{
    AlertingId, Entity, OperatorId,
    events::{AlertingRemoved, SiteActivated},
};
use futures_util::future::join_all;
use serde_json::{Value, json};
use store::{Commit, EventRow, FailedConditions, Key, NewEvent, StoreError, Table, Transaction};
use testkit::{
    Dynamo,
    dynamo::{ALERTING, EVENTS, INVENTORY},
    http::Stub,
    sample::{noon, saga},
};

fn event(sequence: u64) -> NewEvent<SiteActivated> {
    let saga = saga("a");
    NewEvent::in_saga(
        saga,
        saga.site_id,
        sequence,
        noon(0),
        SiteActivated { site_id: saga.site_id },
    )
}

fn site() -> Entity {
    saga("a").site_id.into()
}

fn number(value: u64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

async fn done(transaction: Transaction) {
    let commit = transaction.commit().await.expect("a commit");
    assert!(matches!(commit, Commit::Done), "{commit:?}");
}

async fn refused(transaction: Transaction) -> FailedConditions {
    match transaction.commit().await.expect("a commit") {
        Commit::Refused(refused) => refused,
        Commit::Done => panic!("the transaction was committed"),
    }
}

#[tokio::test]
async fn a_row_is_created_once_and_the_refusal_contains_it() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table(INVENTORY);
    let key = Key::id("a");
    let create = |n: u8| Transaction::on(&table).create(&table, &key, &json!({ "n": n }));
    done(create(1)).await;
    // A single put costs one write unit. In a transaction it would cost two.
    let usage = dynamo.take_usage();
    assert_eq!((usage.calls, usage.write_units), ([("PutItem".to_owned(), 1)].into(), 1.0));

    let refused = refused(create(2)).await;
    assert!(refused.contains(&key));
    assert!(!refused.contains(&Key::id("b")));
    assert_eq!(refused.row(&key).expect("a row"), Some(json!({ "id": "a", "n": 1 })));
    assert_eq!(table.get(&key).await.expect("a row"), Some(json!({ "id": "a", "n": 1 })));
}

#[tokio::test]
async fn a_transaction_is_atomic_and_reports_only_the_refused_actions() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table(INVENTORY);
    let (free, taken) = (Key::id("free"), Key::id("taken"));
    dynamo.put(INVENTORY, json!({ "id": "taken", "by": "someone" })).await;
    let before = dynamo.all_rows().await;
    let refused = refused(
        Transaction::on(&table)
            .create(&table, &free, &json!({}))
            .create(&table, &taken, &json!({}))
            .event(&dynamo.outbox(), event(1)),
    )
    .await;
    assert!(!refused.contains(&free) && refused.contains(&taken));
    assert_eq!(refused.row::<Value>(&free).expect("no row"), None);
    let existing = json!({ "id": "taken", "by": "someone" });
    assert_eq!(refused.row(&taken).expect("a row"), Some(existing));
    assert_eq!(dynamo.all_rows().await, before, "a part was committed");
}

#[tokio::test]
async fn a_row_is_replaced_only_at_the_expected_status() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table(INVENTORY);
    let key = Key::id("a");
    let replace = |status: &str, from: &str| {
        Transaction::on(&table).put_if_status(&table, &key, &json!({ "status": status }), from)
    };
    assert_eq!(refused(replace("B", "A")).await.row::<Value>(&key).expect("none"), None);
    dynamo.put(INVENTORY, json!({ "id": "a", "status": "A", "old": true })).await;
    done(replace("B", "A")).await;
    assert_eq!(dynamo.rows(INVENTORY).await, [json!({ "id": "a", "status": "B" })]);
    refused(replace("C", "A")).await;
    assert_eq!(dynamo.rows(INVENTORY).await, [json!({ "id": "a", "status": "B" })]);
}

#[tokio::test]
async fn a_row_is_replaced_only_at_the_expected_sequence() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table(INVENTORY);
    let key = Key::id("a");
    let replace =
        |row: &Value, seen: u64| Transaction::on(&table).put_if_sequence(&table, &key, row, seen);
    let (first, second) = (json!({ "sequence": 10 }), json!({ "sequence": 11 }));
    assert_eq!(refused(replace(&second, 10)).await.row::<Value>(&key).expect("none"), None);
    dynamo.put(INVENTORY, json!({ "id": "a", "sequence": 9, "old": true })).await;
    done(replace(&first, 9)).await;
    assert_eq!(dynamo.rows(INVENTORY).await, [json!({ "id": "a", "sequence": 10 })]);
    // Neither an older nor a newer sequence is accepted.
    for seen in [9, 11] {
        let existing = refused(replace(&second, seen)).await.row(&key).expect("a row");
        assert_eq!(existing, Some(json!({ "id": "a", "sequence": 10 })));
    }
    assert_eq!(dynamo.rows(INVENTORY).await, [json!({ "id": "a", "sequence": 10 })]);
}

#[tokio::test]
async fn a_projection_is_replaced_only_by_a_higher_sequence() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table(INVENTORY);
    let key = Key::id("a");
    let advance = |sequence: u64| {
        let row = json!({ "sequence": sequence });
        Transaction::on(&table).put_if_newer(&table, &key, &row, sequence)
    };
    done(advance(2)).await;
    refused(advance(1)).await;
    refused(advance(2)).await;
    // Sequences are compared as numbers, not as text.
    done(advance(10)).await;
    refused(advance(9)).await;
    assert_eq!(dynamo.rows(INVENTORY).await, [json!({ "id": "a", "sequence": 10 })]);
}

#[tokio::test]
async fn rows_are_changed_and_deleted_only_if_the_condition_holds() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table(INVENTORY);
    let key = Key::id("a");
    let take = |n| {
        let (take, enough) = ("SET #n = #n - :n", Some("#n >= :n"));
        Transaction::on(&table).update(&table, &key, take, enough, [("n", number(n))])
    };
    let add = Transaction::on(&table).update(&table, &key, "ADD #n :n", None, [("n", number(5))]);
    done(add).await;
    done(take(3)).await;
    let refused_take = refused(take(3)).await;
    assert_eq!(refused_take.row(&key).expect("a row"), Some(json!({ "id": "a", "n": 2 })));

    let delete = |n| Transaction::on(&table).delete(&table, &key, "#n = :n", [("n", number(n))]);
    assert!(refused(delete(3)).await.contains(&key));
    done(delete(2)).await;
    assert_eq!(dynamo.rows(INVENTORY).await, [Value::Null; 0]);
}

#[tokio::test]
async fn an_update_may_use_different_names_for_attributes_and_values() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table(INVENTORY);
    let key = Key::id("a");
    let record = |id: &str, at: u64| {
        let values = vec![
            ("now", number(at)),
            ("one", number(1)),
            ("id", AttributeValue::S(id.to_owned())),
            ("ids", AttributeValue::Ss(vec![id.to_owned()])),
        ];
        let update = "SET #last = :now, #first = if_not_exists(#first, :now) REMOVE #old \
                      ADD #count :one, #ids :ids";
        let is_new = "attribute_not_exists(#ids) OR NOT contains(#ids, :id)";
        Transaction::on(&table).update(&table, &key, update, Some(is_new), values)
    };
    dynamo.put(INVENTORY, json!({ "id": "a", "old": 1 })).await;
    done(record("m1", 1)).await;
    done(record("m2", 2)).await;
    let row = refused(record("m2", 3)).await.row::<Value>(&key).expect("a row").expect("a row");
    assert_eq!((&row["first"], &row["last"], &row["count"]), (&json!(1), &json!(2), &json!(2)));
    assert_eq!(row["old"], Value::Null);
}

#[tokio::test]
async fn an_event_whose_sequence_is_taken_refuses_the_transaction() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table(INVENTORY);
    let with_event = |id: &str, sequence| {
        Transaction::on(&table)
            .create(&table, &Key::id(id), &json!({}))
            .event(&dynamo.outbox(), event(sequence))
    };
    done(with_event("a", 1)).await;
    let log = dynamo.events(site()).await;
    let refused = refused(with_event("b", 1)).await;
    assert!(!refused.contains(&Key::id("b")));
    assert_eq!(dynamo.rows(INVENTORY).await.len(), 1);
    assert_eq!(dynamo.events(site()).await, log);
    done(with_event("c", 2)).await;
    assert_eq!(dynamo.event_types(site()).await, ["SiteActivated", "SiteActivated"]);
}

#[tokio::test]
async fn an_event_row_has_the_attributes_for_the_publisher_and_the_indexes() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table(INVENTORY);
    done(Transaction::on(&table).event(&dynamo.outbox(), event(1))).await;
    let saga = saga("a");
    let entity = format!("site#{}", saga.site_id);
    let shard = store::shard(&entity);
    let mut row = dynamo.rows(EVENTS).await.remove(0);
    let detail = row["detail"].take();
    let detail: Value = serde_json::from_str(detail.as_str().expect("text")).expect("JSON");
    assert_eq!(detail["data"], json!({ "siteId": saga.site_id }));
    assert_eq!(detail["metadata"]["occurredAt"], "2026-01-01T12:00:00.000Z");
    assert_eq!(
        row,
        json!({
            "entity": entity,
            "sequence": 1,
            "type": "SiteActivated",
            "source": "fieldstation.sites",
            "occurredAt": "2026-01-01T12:00:00.000Z",
            "correlationId": saga.onboarding_id,
            "operatorId": saga.operator_id,
            "typeBucket": format!("{}/SiteActivated/2026-01-01/{shard}", saga.operator_id),
            "detail": null,
            "unpublished": shard.to_string(),
        })
    );
    // A row of a release without operators belongs to the default operator.
    row.as_object_mut().expect("a row").remove("operatorId");
    row["detail"] = json!("{}");
    let earlier: EventRow = serde_json::from_value(row).expect("a row of an earlier release");
    assert_eq!(earlier.operator_id, OperatorId::DEFAULT);
}

#[tokio::test]
async fn a_transaction_with_an_unwritable_row_is_not_sent() {
    let dynamo = Dynamo::start().await;
    let table = dynamo.table(ALERTING);
    let saga = saga("a");
    let other = AlertingRemoved { site_id: saga.site_id };
    let foreign = NewEvent::in_saga(saga, saga.site_id, 1, noon(0), other);
    let unwritable = [
        // An event of another entity type, and a row that is not a map.
        Transaction::on(&table).event(&dynamo.outbox(), foreign),
        Transaction::on(&table).create(&table, &Key::id("a"), &"no map"),
    ];
    for transaction in unwritable {
        let transaction = transaction.create(&table, &Key::id("b"), &json!({}));
        let error = transaction.commit().await.expect_err("an unwritable row");
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    }
    assert!(dynamo.take_usage().calls.is_empty());
    let entity = Entity::from(AlertingId::from_onboarding(saga.onboarding_id));
    assert_eq!(dynamo.event_types(entity).await, [""; 0]);
}

#[tokio::test]
async fn an_unreadable_row_is_named_in_the_error() {
    let dynamo = Dynamo::start().await;
    dynamo.put(INVENTORY, json!({ "id": "a", "n": "text" })).await;
    let read = dynamo.table(INVENTORY).get::<EventRow>(&Key::id("a")).await;
    let error = read.expect_err("no event");
    assert!(error.to_string().starts_with("row a can't be used: "), "{error}");
}

#[tokio::test]
async fn concurrent_writers_leave_no_gap_and_no_duplicate() {
    let dynamo = Dynamo::start().await;
    let (table, events) = (dynamo.table(INVENTORY), dynamo.table(EVENTS));
    let writers = (0..12).map(|writer| {
        let (dynamo, table, events) = (&dynamo, &table, &events);
        async move {
            loop {
                let sequence = last_sequence(events).await + 1;
                let key = Key::id(format!("writer {writer}"));
                let commit = Transaction::on(table)
                    .create(table, &key, &json!({ "sequence": sequence }))
                    .event(&dynamo.outbox(), event(sequence))
                    .commit()
                    .await;
                if matches!(commit.expect("a commit"), Commit::Done) {
                    break;
                }
            }
        }
    });
    join_all(writers).await;
    assert_eq!(dynamo.events(site()).await.len(), 12);
    let rows = dynamo.rows(INVENTORY).await;
    let mut sequences: Vec<_> = rows.iter().filter_map(|row| row["sequence"].as_u64()).collect();
    sequences.sort_unstable();
    assert_eq!(sequences, (1..=12).collect::<Vec<_>>());
}

async fn last_sequence(events: &Table) -> u64 {
    let query = events.client().query().table_name(events.name());
    let response = query
        .key_condition_expression("entity = :entity")
        .expression_attribute_values(":entity", AttributeValue::S(site().to_string()))
        .consistent_read(true)
        .send()
        .await
        .expect("a query");
    u64::try_from(response.count()).expect("a count")
}

/// Returns DynamoDB's response to a transaction of two actions that was cancelled for these reasons.
fn cancelled(reasons: [&str; 2]) -> (u16, Value) {
    let reasons = reasons.map(|code| json!({ "Code": code }));
    let kind = "com.amazonaws.dynamodb.v20120810#TransactionCanceledException";
    (400, json!({ "__type": kind, "Message": "cancelled", "CancellationReasons": reasons }))
}

fn two_rows(client: Client) -> Transaction {
    let table = Table::new(client, "Table");
    Transaction::on(&table).create(&table, &Key::id("a"), &json!({})).create(
        &table,
        &Key::id("b"),
        &json!({}),
    )
}

#[tokio::test]
async fn a_conflicting_transaction_is_retried_until_it_commits() {
    let conflict = || cancelled(["TransactionConflict", "None"]);
    let responses = std::sync::Mutex::new(vec![(200, json!({})), conflict(), conflict()]);
    let stub =
        Stub::start(move |_| responses.lock().expect("responses").pop().expect("a response")).await;
    done(two_rows(Client::new(&stub.config()))).await;
    let tokens: Vec<_> =
        stub.take_calls().iter().map(|call| call.json()["ClientRequestToken"].clone()).collect();
    assert_eq!(tokens.len(), 3);
    assert_ne!(tokens[0], tokens[1], "a retry after a conflict is a new request");
}

#[tokio::test]
async fn each_error_of_dynamodb_is_classified() {
    let refusal = cancelled(["ConditionalCheckFailed", "None"]);
    let mixed = cancelled(["TransactionConflict", "ConditionalCheckFailed"]);
    for response in [refusal, mixed] {
        let stub = Stub::start(move |_| response.clone()).await;
        let refused = refused(two_rows(Client::new(&stub.config()))).await;
        // Only the row whose condition failed is reported.
        assert!(refused.contains(&Key::id("a")) != refused.contains(&Key::id("b")));
        assert_eq!(stub.take_calls().len(), 1);
    }

    let error =
        |kind: &str| json!({ "__type": format!("com.amazonaws.dynamodb.v20120810#{kind}") });
    for (response, transient, calls) in [
        (cancelled(["None", "TransactionConflict"]), true, 5),
        (cancelled(["ThrottlingError", "None"]), true, 5),
        (cancelled(["ValidationError", "None"]), false, 1),
        ((400, error("ProvisionedThroughputExceededException")), true, 1),
        ((400, error("ThrottlingException")), true, 1),
        ((400, error("TransactionInProgressException")), true, 1),
        ((500, error("InternalServerError")), true, 1),
        ((503, json!({})), true, 1),
        ((400, error("AccessDeniedException")), false, 1),
        ((400, error("ResourceNotFoundException")), false, 1),
        ((400, error("ValidationException")), false, 1),
    ] {
        let sent = response.clone();
        let stub = Stub::start(move |_| response.clone()).await;
        let committed = two_rows(Client::new(&stub.config())).commit().await;
        let error = committed.expect_err("no commit");
        assert_eq!(matches!(error, StoreError::Transient(_)), transient, "{sent:?}: {error}");
        assert_eq!(stub.take_calls().len(), calls, "{sent:?}");
    }
}

#[tokio::test]
async fn the_sdks_own_retry_uses_the_same_request_token() {
    let responses = std::sync::Mutex::new(vec![(200, json!({})), (500, json!({}))]);
    let stub =
        Stub::start(move |_| responses.lock().expect("responses").pop().expect("a response")).await;
    let config = stub.config().into_builder().retry_config(RetryConfig::standard()).build();
    done(two_rows(Client::new(&config))).await;
    let calls = stub.take_calls();
    let token = |call: usize| calls[call].json()["ClientRequestToken"].clone();
    assert_eq!(calls.len(), 2);
    assert!(token(0).is_string());
    assert_eq!(token(0), token(1), "a retry after a lost response has no second effect");
}

#[tokio::test]
async fn a_refused_connection_is_transient() {
    let stub = Stub::start(|_| (200, json!({}))).await;
    let config = stub.config().into_builder().endpoint_url("http://127.0.0.1:1").build();
    let committed = two_rows(Client::new(&config)).commit().await;
    assert!(matches!(committed, Err(StoreError::Transient(_))), "{committed:?}");
}
