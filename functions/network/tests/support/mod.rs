//! Helpers that the tests of network share.

// Each test file uses a part of the helpers.
#![allow(dead_code)]

use std::time::Duration;

use consumer::Consumer;
use lambda::Deadline;
use network::watch_network::Counts;
use quarantine::Quarantine;
use serde_json::{Value, json, value::to_raw_value};
use testkit::{
    cloud::Cloud,
    consuming::EventConsumer,
    dynamo::{EVENTS, NETWORK},
};

pub struct WatchNetwork(pub Consumer<Counts>);

impl EventConsumer for WatchNetwork {
    async fn handle(&self, batch: &Value, time: Duration) -> Result<Value, String> {
        let payload = to_raw_value(batch).expect("JSON");
        let response = self.0.handle(&payload, Deadline::after(time)).await;
        response.map(|response| json!(response)).map_err(|error| error.to_string())
    }
}

pub fn watch_network(cloud: &Cloud) -> WatchNetwork {
    WatchNetwork(Consumer {
        generations: Counts { network: cloud.table(NETWORK) },
        log: cloud.table(EVENTS),
        quarantine: Quarantine {
            queues: cloud.queues(),
            url: "http://cloud/quarantine".to_owned(),
            source: "watch-network",
        },
    })
}

/// Returns the rows of the current generation without its number, and asserts that there are no others.
pub fn rows_of_current(cloud: &Cloud) -> Vec<Value> {
    let mut rows = cloud.rows(NETWORK);
    let state = rows.iter().position(|row| row["id"]["S"] == "state");
    let current = state.map_or("1".to_owned(), |index| {
        let state = rows.remove(index);
        assert_eq!(state["building"], Value::Null);
        state["current"]["N"].as_str().expect("a number").to_owned()
    });
    // A count of 0 equals one that was never written.
    for row in &mut rows {
        let row = row.as_object_mut().expect("a row");
        row.retain(|_, value| value["N"] != "0");
    }
    rows.retain(|row| row.as_object().is_some_and(|row| row.len() > 2));
    for row in &mut rows {
        let id = row["id"]["S"].as_str().expect("an id");
        let (generation, rest) = id.split_once('/').expect("a generation");
        assert_eq!(generation, current, "{id} is left of another generation");
        row["id"] = json!({ "S": rest.to_owned() });
    }
    rows.sort_by_cached_key(Value::to_string);
    rows
}
