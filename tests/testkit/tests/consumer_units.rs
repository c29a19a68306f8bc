//! Counts the DynamoDB write units of the consumers of events and of the stock. The results are in docs/cost.md and in the
//! inputs of the cost model.
//!
//! `UPDATE_DOCS=1 cargo test -p testkit` rewrites them.

use std::time::Duration;

use contracts::{Metric, OperatorId};
use cost::{
    counted::{ConsumedBatch, Consumers, Stock},
    docs,
};
use inventory::watch_stock::{Limits, WatchStock};
use lambda::Deadline;
use network::watch_network::Counts;
use quarantine::Quarantine;
use serde_json::{json, value::to_raw_value};
use testkit::{
    Dynamo,
    consuming::{batch, event},
    dynamo::{EVENTS, INVENTORY, NETWORK},
    http,
    sample::{noon, stock_change},
    template::root,
};

/// The sizes of the counted batches.
const BATCHES: [u32; 3] = [1, 10, 100];

fn deadline() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

/// Returns a quarantine that can't be reached. The tests quarantine no record.
fn quarantine(source: &'static str) -> Quarantine {
    let queues = aws_sdk_sqs::Client::new(&http::config("http://nowhere"));
    Quarantine { queues, url: String::new(), source }
}

/// Counts the write units of a batch of appended events. They have the same operator, type and day, but different
/// entities.
async fn watch_network(events: u32) -> ConsumedBatch {
    let dynamo = Dynamo::start().await;
    let consumer = consumer::Consumer {
        generations: Counts { network: dynamo.table(NETWORK) },
        log: dynamo.table(EVENTS),
        quarantine: quarantine("watch-network"),
    };
    let appended = (0..events).map(|n| {
        let entity = ("example.instrument", &*format!("SN-{n}"));
        let mut event = event(OperatorId::DEFAULT, entity, 1, "com.example.CalibrationDone");
        event.metadata.occurred_at = noon(0);
        event
    });
    let appended: Vec<_> = appended.collect();
    let payload = to_raw_value(&batch(&appended)).expect("JSON");
    let deliver = async || {
        let response = consumer.handle(&payload, deadline()).await.expect("a response");
        assert_eq!(json!(response)["batchItemFailures"], json!([]));
        dynamo.take_usage().write_units
    };
    let write_units = deliver().await;
    assert!(deliver().await < f64::EPSILON, "a repeat writes nothing");
    ConsumedBatch { events, write_units }
}

/// Counts the write units of a change of the stock that changes no level, and of one that does.
async fn watch_stock() -> Stock {
    let dynamo = Dynamo::start().await;
    let step = WatchStock {
        inventory: dynamo.table(INVENTORY),
        outbox: dynamo.outbox(),
        limits: Limits { low: 10, deadband: 5 },
        quarantine: quarantine("watch-stock"),
    };
    let mut units = Vec::new();
    // The first crossing creates the row of the level, the second one changes it.
    for (sequence, quantity) in [(1, 40), (2, 39), (3, 10), (4, 0)] {
        let payload = json!({ "Records": [stock_change(Metric::Ozone, sequence, quantity)] });
        let payload = to_raw_value(&payload).expect("JSON");
        let response = step.handle(&payload, deadline()).await.expect("a response");
        assert!(response.batch_item_failures.is_empty());
        units.push(dynamo.take_usage().write_units);
    }
    let [first, unchanged, created, changed] = units[..] else { panic!("{units:?}") };
    assert_eq!((first, created), (unchanged, changed), "{units:?}");
    Stock { unchanged, crossing: changed }
}

#[tokio::test]
async fn the_docs_show_the_cost_of_the_consumers() {
    let mut batches = Vec::new();
    for events in BATCHES {
        batches.push(watch_network(events).await);
    }
    let counted = Consumers { watch_network: batches, watch_stock: watch_stock().await };
    let line = |what: String, units: f64, events: f64| {
        vec![what, units.to_string(), format!("{:.2}", units / events)]
    };
    let of_batch = |batch: &ConsumedBatch| {
        let ConsumedBatch { events, write_units } = *batch;
        let noun = if events == 1 { "event" } else { "events of as many entities" };
        line(format!("watch-network: a batch of {events} {noun}"), write_units, events.into())
    };
    let mut lines: Vec<_> = counted.watch_network.iter().map(of_batch).collect();
    let Stock { unchanged, crossing } = counted.watch_stock;
    lines.push(line("watch-stock: a change that changes no level".to_owned(), unchanged, 1.0));
    lines.push(line("watch-stock: a new level with its event".to_owned(), crossing, 1.0));
    let head = ["effect", "write units", "for each event or change"];
    let table = docs::table(&head, &[false, true, true], &lines).expect("a table");
    eprintln!("{table}");
    docs::check_or_update_table(&root().join("docs/cost.md"), "consumer-units", &table)
        .expect("as docs/cost.md has it; run `make write-units`");
    let file = root().join("tools/cost/counted/consumers.json");
    docs::check_or_update_json(&file, &counted)
        .expect("as the cost model reads it; run `make write-units`");
}
