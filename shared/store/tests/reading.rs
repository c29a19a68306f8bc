//! Reads of several rows: pages, expressions, and unprocessed keys.

use std::{sync::Mutex, time::Duration};

use aws_sdk_dynamodb::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Item, Key, StoreError, Table, from_item};
use testkit::{
    Dynamo,
    dynamo::{READINGS, SITES},
    http::Stub,
};
use tokio::time::Instant;

#[derive(Debug, Deserialize, PartialEq)]
struct Row {
    row: String,
    #[serde(default)]
    status: Option<String>,
}

fn rows(items: Vec<Item>) -> Vec<Row> {
    items
        .into_iter()
        .map(|item| from_item(item, || "of a test".to_owned()).expect("a row"))
        .collect()
}

fn names(items: Vec<Item>) -> Vec<String> {
    rows(items).into_iter().map(|row| row.row).collect()
}

async fn five_rows() -> Dynamo {
    let dynamo = Dynamo::start().await;
    for row in ["a", "b", "c", "d", "e"] {
        dynamo.put(READINGS, json!({ "sensorId": "s", "row": row, "status": "GOOD" })).await;
    }
    dynamo
}

#[tokio::test]
async fn a_query_reads_its_range_in_order_and_in_pages() {
    let dynamo = five_rows().await;
    let table = dynamo.table(READINGS);
    drop(dynamo.take_usage());
    let query =
        table.query("sensorId = :sensor AND #row BETWEEN :from AND :to").text("sensor", "s");
    let query = query.text("from", "b").text("to", "e").consistent();
    assert_eq!(names(query.all().await.expect("rows")), ["b", "c", "d", "e"]);
    assert_eq!(dynamo.take_usage().calls, [("Query".to_owned(), 1)].into());

    let query = query.descending(true).limit(3);
    let first = query.page(None).await.expect("a page");
    assert_eq!(names(first.items), ["e", "d", "c"]);
    let last = query.page(first.next).await.expect("a page");
    assert_eq!((names(last.items), last.next), (vec!["b".to_owned()], None));
    drop(dynamo.take_usage());
    assert_eq!(names(query.all().await.expect("rows")), ["e", "d", "c", "b"]);
    assert_eq!(dynamo.take_usage().calls, [("Query".to_owned(), 2)].into());
}

#[tokio::test]
async fn a_scan_reads_all_rows_with_the_projected_attributes() {
    let dynamo = five_rows().await;
    let table = dynamo.table(READINGS);
    let all = table.scan().limit(2).all().await.expect("rows");
    assert_eq!(all.len(), 5);
    assert!(rows(all).iter().all(|row| row.status.as_deref() == Some("GOOD")));
    let projected = table.scan().project("#row").all().await.expect("rows");
    assert!(rows(projected).iter().all(|row| row.status.is_none()));
}

#[tokio::test]
async fn a_query_can_use_an_index_and_an_error_names_the_row() {
    let dynamo = Dynamo::start().await;
    let site = json!({
        "siteId": "x", "row": "SITE", "status": "ACTIVE", "createdAt": "2026-01-01T00:00:00.000Z",
    });
    dynamo.put(SITES, site).await;
    let table = dynamo.table(SITES);
    let query = table.query("#status = :status").text("status", "ACTIVE").index("byStatus");
    let items = query.all().await.expect("rows");
    assert_eq!(items.len(), 1);
    let wrong =
        from_item::<u64>(items[0].clone(), || "x/SITE".to_owned()).expect_err("not a number");
    assert!(wrong.to_string().starts_with("row x/SITE can't be used: "), "{wrong}");
}

#[tokio::test]
async fn a_batch_get_reads_100_keys_per_call() {
    let dynamo = five_rows().await;
    let table = dynamo.table(READINGS);
    let key = |row: usize| Key::pair(("sensorId", "s"), ("row", format!("n{row:03}")));
    for row in 0..150 {
        dynamo.put(READINGS, json!({ "sensorId": "s", "row": format!("n{row:03}") })).await;
    }
    drop(dynamo.take_usage());
    // Fifty of these 200 rows do not exist.
    let read = table.batch_get((0..200).map(key)).consistent().send().await.expect("rows");
    let mut read = names(read);
    read.sort();
    assert_eq!(read, (0..150).map(|row| format!("n{row:03}")).collect::<Vec<_>>());
    assert_eq!(dynamo.take_usage().calls, [("BatchGetItem".to_owned(), 2)].into());
    assert_eq!(table.batch_get([]).send().await.expect("nothing"), []);
}

/// Starts a fake DynamoDB. Each call processes as many keys as the next entry of `counts`. When no entry is left, calls
/// process no keys.
async fn fake_dynamodb(counts: &[usize]) -> Stub {
    let counts = Mutex::new(counts.to_vec());
    Stub::start(move |call| {
        let keys = call.json()["RequestItems"]["rows"]["Keys"].as_array().cloned();
        let keys = keys.expect("keys");
        let mut counts = counts.lock().expect("counts");
        let count = if counts.is_empty() { 0 } else { counts.remove(0) };
        let (done, remaining) = keys.split_at(count.min(keys.len()));
        let unprocessed: Value =
            if remaining.is_empty() { json!({}) } else { json!({ "rows": { "Keys": remaining } }) };
        (200, json!({ "Responses": { "rows": done }, "UnprocessedKeys": unprocessed }))
    })
    .await
}

#[tokio::test]
async fn unprocessed_keys_are_read_again_after_a_pause() {
    let stub = fake_dynamodb(&[1, 0, 0, 1, 1]).await;
    let table = Table::new(Client::new(&stub.config()), "rows");
    let start = Instant::now();
    let read = table.batch_get(["a", "b", "c"].map(Key::id)).send().await.expect("rows");
    assert_eq!(read.len(), 3);
    assert_eq!(stub.take_calls().len(), 5);
    // The pause is 100 ms after a call with progress, and doubles after each call without progress.
    assert!(
        start.elapsed() >= Duration::from_millis(100 + 200 + 400 + 100),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn keys_that_stay_unprocessed_are_a_transient_error() {
    let stub = fake_dynamodb(&[1]).await;
    let table = Table::new(Client::new(&stub.config()), "rows");
    let error = table.batch_get(["a", "b"].map(Key::id)).send().await.expect_err("keys are left");
    assert!(matches!(error, StoreError::Transient(_)), "{error}");
    assert_eq!(stub.take_calls().len(), 4);
}
