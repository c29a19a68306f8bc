//! watch-stock emits one event for each change of the level of a stock, however its records are delivered.
//!
//! The simulations are determined by their seeds; `SEED=123 make unit-test ARGS='--test watching'` repeats one.

use std::{cell::Cell, collections::BTreeMap, rc::Rc, time::Duration};

use contracts::{Entity, Metric, OperatorId};
use fault::ReplayResponse;
use futures_util::{future::LocalBoxFuture, future::join_all};
use inventory::watch_stock::{Limits, WatchStock};
use lambda::Deadline;
use quarantine::Quarantine;
use serde_json::{Value, json, value::to_raw_value};
use store::EventRow;
use testkit::{
    Dynamo,
    cloud::{self, CallFault, Cloud},
    dynamo::{EVENTS, INVENTORY},
    http::config,
    mapping::{self, FaultRates, Function, Mapping, MappingEvent, Record, Settings, Stream},
    rng::{Rng, all_seeds, seeds},
    sample::{STOCK_STREAM, stock_change},
};

const SEEDS: u64 = 20;
const LIMITS: Limits = Limits { low: 10, deadband: 5 };
const METRICS: [Metric; 3] = [Metric::AirTemperature, Metric::WaterPh, Metric::Ozone];

/// The settings in template.yaml, but with so many retries and such a maximum age that no record is given up. Lambda
/// would not deliver a given-up record again, so the events could differ from the model's.
const SETTINGS: Settings = Settings {
    batch_size: 100,
    full_batches: false,
    parallelization_factor: 1,
    bisects: true,
    max_retries: 10_000,
    max_age: Duration::from_hours(12),
    timeout: Duration::from_secs(30),
};

fn watcher(dynamo: &Dynamo) -> WatchStock {
    WatchStock {
        inventory: dynamo.table(INVENTORY),
        outbox: dynamo.outbox(),
        limits: LIMITS,
        quarantine: Quarantine {
            queues: aws_sdk_sqs::Client::new(&config("http://127.0.0.1:1")),
            url: "http://127.0.0.1:1/quarantine".to_owned(),
            source: "watch-stock",
        },
    }
}

/// Handles a batch. Returns the sequence number of the first record that must be delivered again.
async fn handle(step: &WatchStock, records: &[Value]) -> Option<String> {
    let payload = to_raw_value(&json!({ "Records": records })).expect("JSON");
    let deadline = Deadline::after(Duration::from_secs(20));
    let response = step.handle(&payload, deadline).await.expect("a response");
    assert!(response.batch_item_failures.len() <= 1);
    response.batch_item_failures.into_iter().next()?.item_identifier
}

/// Returns the stream records of these quantities of the stock of `METRICS[0]`, with sequence numbers from `first` on.
fn movements(first: u64, quantities: &[u32]) -> Vec<Value> {
    (first..)
        .zip(quantities)
        .map(|(number, quantity)| stock_change(METRICS[0], number, *quantity))
        .collect()
}

/// Returns the payloads of a metric's events, each with its type.
async fn events(dynamo: &Dynamo, metric: Metric) -> Vec<Value> {
    let rows = dynamo.events(Entity::stock(metric)).await;
    rows.iter().map(shown).collect()
}

fn shown(row: &EventRow) -> Value {
    let mut data = row.envelope().expect("an envelope").data;
    data["type"] = row.kind.as_str().into();
    data
}

async fn level(dynamo: &Dynamo, metric: Metric) -> Value {
    dynamo.row(INVENTORY, &format!("level#{metric}")).await.unwrap_or_default()
}

fn low(quantity: u32) -> Value {
    json!({ "type": "StockLow", "metric": METRICS[0], "quantity": quantity, "limit": 10 })
}

fn sold_out() -> Value {
    json!({ "type": "StockSoldOut", "metric": METRICS[0] })
}

fn replenished(quantity: u32) -> Value {
    json!({ "type": "StockReplenished", "metric": METRICS[0], "quantity": quantity })
}

#[tokio::test]
async fn each_crossing_emits_one_event() {
    let dynamo = Dynamo::start().await;
    let step = watcher(&dynamo);
    let quantities = [40, 11, 10, 9, 12, 14, 10, 0, 3, 0, 15, 11, 14];
    assert_eq!(handle(&step, &movements(1, &quantities)).await, None);
    assert_eq!(
        events(&dynamo, METRICS[0]).await,
        // From sold out to a few kits: the stock is low, and a subscriber learns that some kits are left.
        [low(10), sold_out(), low(3), sold_out(), replenished(15)]
    );
    let row = level(&dynamo, METRICS[0]).await;
    assert_eq!((&row["level"], &row["sequence"]), (&json!("OK"), &json!(5)));
    assert!(
        row["record"]
            .as_str()
            .expect("a position")
            .ends_with("/0000000000000000000000000000000000000000000000000000000000000011")
    );

    let metadata =
        dynamo.events(Entity::stock(METRICS[0])).await[0].envelope().expect("an envelope").metadata;
    assert_eq!(metadata.correlation_id, None);
    assert_eq!(metadata.operator_id, OperatorId::DEFAULT);
    assert_eq!(metadata.causation_id, None);
}

#[tokio::test]
async fn a_sold_out_stock_that_rises_into_the_deadband_is_reported_as_low() {
    for quantity in 11..=14 {
        let dynamo = Dynamo::start().await;
        let step = watcher(&dynamo);
        // The stock then moves below the limit and up again, which is no change of its level.
        let movements = movements(1, &[40, 0, quantity, 9, quantity]);
        assert_eq!(handle(&step, &movements).await, None);
        assert_eq!(events(&dynamo, METRICS[0]).await, [sold_out(), low(quantity)]);
        assert_eq!(level(&dynamo, METRICS[0]).await["level"], "LOW");
    }
}

#[tokio::test]
async fn a_first_delivery_above_the_limit_writes_nothing() {
    let dynamo = Dynamo::start().await;
    assert_eq!(handle(&watcher(&dynamo), &movements(1, &[11, 40, 12])).await, None);
    assert_eq!(level(&dynamo, METRICS[0]).await, Value::Null);
    assert_eq!(events(&dynamo, METRICS[0]).await, Vec::<Value>::new());
    assert_eq!(dynamo.take_usage().write_units.to_bits(), 0.0_f64.to_bits());
}

#[tokio::test]
async fn a_first_delivery_below_the_limit_is_low() {
    let dynamo = Dynamo::start().await;
    assert_eq!(handle(&watcher(&dynamo), &movements(1, &[5])).await, None);
    assert_eq!(events(&dynamo, METRICS[0]).await, [low(5)]);
}

#[tokio::test]
async fn repeated_records_have_no_second_effect_whichever_part_of_the_stream_is_repeated() {
    let quantities = [40, 8, 0, 20, 20, 7];
    let expected = [low(8), sold_out(), replenished(20), low(7)];
    let all = movements(98, &quantities);
    for first in 0..all.len() {
        for last in first..=all.len() {
            let dynamo = Dynamo::start().await;
            let step = watcher(&dynamo);
            for batch in [&all[..], &all[first..last], &all[first..]] {
                assert_eq!(handle(&step, batch).await, None);
            }
            assert_eq!(events(&dynamo, METRICS[0]).await, expected, "{first}..{last}");
        }
    }
}

#[tokio::test]
async fn invocations_side_by_side_emit_each_event_once() {
    let dynamo = Dynamo::start().await;
    let all = movements(1, &[40, 8, 0, 20, 7, 0]);
    let steps: Vec<_> = (0..4).map(|_| watcher(&dynamo)).collect();
    let failed = join_all(steps.iter().map(|step| handle(step, &all))).await;
    // An invocation that lost each of its races is repeated.
    for (step, failed) in steps.iter().zip(failed) {
        if failed.is_some() {
            assert_eq!(handle(step, &all).await, None);
        }
    }
    assert_eq!(
        events(&dynamo, METRICS[0]).await,
        [low(8), sold_out(), replenished(20), low(7), sold_out()]
    );
}

#[tokio::test]
async fn the_later_of_two_records_wins_whichever_commits_first() {
    // Two invocations judge the records at the same time, as when a replay runs while the mapping delivers a later
    // record.
    for reversed in [false, true] {
        let dynamo = Dynamo::start().await;
        let (one, other) = (watcher(&dynamo), watcher(&dynamo));
        let (earlier, later) = (movements(1, &[8]), movements(2, &[0]));
        let (first, second) = if reversed { (&later, &earlier) } else { (&earlier, &later) };
        let failed = join_all([handle(&one, first), handle(&other, second)]).await;
        assert_eq!(failed, [None, None]);
        assert_eq!(level(&dynamo, METRICS[0]).await["level"], "SOLD_OUT");
        assert_eq!(events(&dynamo, METRICS[0]).await.last(), Some(&sold_out()));
    }
}

#[tokio::test]
async fn a_deleted_stock_is_sold_out_and_other_rows_are_ignored() {
    let dynamo = Dynamo::start().await;
    let step = watcher(&dynamo);
    let mut removed = stock_change(METRICS[0], 2, 0);
    removed["eventName"] = "REMOVE".into();
    removed["dynamodb"].as_object_mut().expect("an object").remove("NewImage");
    let mut reservation = stock_change(METRICS[0], 3, 0);
    reservation["dynamodb"]["Keys"]["id"]["S"] = "reservation#a".into();
    assert_eq!(handle(&step, &[stock_change(METRICS[0], 1, 40), removed, reservation]).await, None);
    assert_eq!(events(&dynamo, METRICS[0]).await, [sold_out()]);
}

#[tokio::test]
async fn the_stream_of_a_restored_table_continues_after_the_old_one() {
    let dynamo = Dynamo::start().await;
    let step = watcher(&dynamo);
    assert_eq!(handle(&step, &movements(900, &[8])).await, None);
    let mut after = stock_change(METRICS[0], 7, 40);
    after["eventSourceARN"] = format!("{STOCK_STREAM}2026-02-01T00:00:00.000").into();
    assert_eq!(handle(&step, &[after]).await, None);
    assert_eq!(events(&dynamo, METRICS[0]).await, [low(8), replenished(40)]);
}

/// Returns records that can't be judged, with a part of the reason.
fn invalid_records() -> Vec<(Value, &'static str)> {
    let edited = |edit: fn(&mut Value)| {
        let mut record = stock_change(METRICS[1], 2, 0);
        edit(&mut record);
        record
    };
    vec![
        (edited(|it| it["dynamodb"]["Keys"]["id"]["S"] = "stock#gold".into()), "known metric"),
        (edited(|it| it["dynamodb"]["NewImage"]["quantity"] = json!({ "N": "-1" })), "NewImage"),
        (edited(|it| it["dynamodb"]["NewImage"] = json!({})), "NewImage"),
        (edited(|it| it["dynamodb"]["Keys"] = json!({})), "Keys"),
        (edited(|it| it["eventSourceARN"] = "arn:aws:sqs:eu-central-1:1:queue".into()), "position"),
    ]
}

#[test]
fn one_malformed_record_is_quarantined_and_the_others_are_judged() {
    for (invalid, reason) in invalid_records() {
        cloud::run(async move {
            let cloud = Cloud::new(Rng::from_seed(1));
            let step = simulated(&cloud);
            let batch =
                [stock_change(METRICS[0], 1, 8), invalid.clone(), stock_change(METRICS[0], 3, 0)];
            assert_eq!(handle(&step, &batch).await, None);
            let messages = cloud.messages();
            let [message] = messages.as_slice() else { panic!("{messages:?}") };
            assert_eq!((&message["source"], &message["record"]), (&json!("watch-stock"), &invalid));
            assert!(message["reason"].to_string().contains(reason), "{message}");
            assert_eq!(emitted(&cloud)[&METRICS[0]], [low(8), sold_out()]);
        });
    }
}

#[tokio::test]
async fn a_record_is_delivered_again_if_the_quarantine_does_not_take_it() {
    let dynamo = Dynamo::start().await;
    // The quarantine of this test can't be reached.
    let step = watcher(&dynamo);
    let (invalid, _) = invalid_records().remove(0);
    let batch = [stock_change(METRICS[0], 1, 8), invalid, stock_change(METRICS[0], 3, 0)];
    assert_eq!(handle(&step, &batch).await.as_deref(), Some("2"));
    assert_eq!(events(&dynamo, METRICS[0]).await, [low(8), sold_out()], "other lanes go on");
}

async fn replay(step: &WatchStock, record: &Value) -> ReplayResponse {
    step.replay(&to_raw_value(record).expect("JSON")).await
}

#[tokio::test]
async fn a_replayed_record_is_judged_only_if_its_quantity_is_the_present_stock() {
    let dynamo = Dynamo::start().await;
    let step = watcher(&dynamo);
    let stock = async |quantity: u32| {
        let row = json!({ "id": format!("stock#{}", METRICS[0]), "quantity": quantity });
        dynamo.put(INVENTORY, row).await;
    };
    // Record 2 was given up. Record 3 did not change the level.
    assert_eq!(handle(&step, &movements(1, &[40])).await, None);
    assert_eq!(handle(&step, &movements(3, &[50])).await, None);
    stock(50).await;
    let given_up = stock_change(METRICS[0], 2, 0);
    assert!(matches!(replay(&step, &given_up).await, ReplayResponse::NothingToDo { .. }));
    assert_eq!(events(&dynamo, METRICS[0]).await, Vec::<Value>::new());

    stock(0).await;
    assert_eq!(replay(&step, &stock_change(METRICS[0], 4, 0)).await, ReplayResponse::Done);
    assert_eq!(replay(&step, &stock_change(METRICS[0], 4, 0)).await, ReplayResponse::Done);
    assert_eq!(events(&dynamo, METRICS[0]).await, [sold_out()]);

    let (invalid, _) = invalid_records().remove(0);
    assert!(matches!(replay(&step, &invalid).await, ReplayResponse::Failed { .. }));
}

/// Returns the function in a simulated cloud.
fn simulated(cloud: &Cloud) -> WatchStock {
    WatchStock {
        inventory: cloud.table(INVENTORY),
        outbox: cloud.outbox(),
        limits: LIMITS,
        quarantine: Quarantine {
            queues: cloud.queues(),
            url: "http://cloud/quarantine".to_owned(),
            source: "watch-stock",
        },
    }
}

/// Returns all emitted events by metric, in the order of their sequence. Asserts that no sequence has a gap.
fn emitted(cloud: &Cloud) -> BTreeMap<Metric, Vec<Value>> {
    let mut rows: Vec<EventRow> = cloud.rows(EVENTS).iter().map(cloud::read).collect();
    rows.sort_by_key(|row| row.sequence);
    let of = |metric: Metric| {
        let entity = Entity::stock(metric).to_string();
        let rows: Vec<_> = rows.iter().filter(|row| row.entity == entity).collect();
        let sequences = rows.iter().map(|row| row.sequence);
        assert!(sequences.eq(1..=rows.len() as u64), "{rows:#?}");
        rows.into_iter().map(shown).collect()
    };
    METRICS.into_iter().map(|metric| (metric, of(metric))).collect()
}

/// The model: the events that a sequence of quantities emits. It is written from the documentation, not from the code.
fn expected(metric: Metric, quantities: &[u32]) -> Vec<Value> {
    let mut events = Vec::new();
    let mut level = "OK";
    for &quantity in quantities {
        let now = match (level, quantity) {
            (_, 0) => "SOLD_OUT",
            (_, 1..=10) => "LOW",
            ("OK", _) | (_, 15..) => "OK",
            (_, 11..=14) => "LOW",
        };
        if now != level {
            events.push(match now {
                "OK" => json!({ "type": "StockReplenished", "metric": metric, "quantity": quantity }),
                "LOW" => json!({ "type": "StockLow", "metric": metric, "quantity": quantity, "limit": 10 }),
                _ => json!({ "type": "StockSoldOut", "metric": metric }),
            });
        }
        level = now;
    }
    events
}

/// The function watch-stock, as Lambda invokes it.
struct WatchFunction {
    cloud: Cloud,
    given_up: Cell<usize>,
}

impl Function for WatchFunction {
    type Environment = WatchStock;

    fn start(&self) -> WatchStock {
        simulated(&self.cloud)
    }

    fn invoke(
        &self,
        step: Rc<WatchStock>,
        records: Vec<Rc<Record>>,
        time: Duration,
    ) -> LocalBoxFuture<'static, Result<Value, String>> {
        let batch = mapping::table_event(&records);
        Box::pin(mapping::invoke(batch, time, async move |payload, deadline| {
            step.handle(payload, deadline).await
        }))
    }

    fn gave_up(&self, records: &[Rc<Record>], _: Value) {
        self.given_up.set(self.given_up.get() + records.len());
    }
}

/// The counts of one run.
struct RunCounts {
    events: usize,
    quarantined: usize,
    deliveries: BTreeMap<MappingEvent, u32>,
    faults: BTreeMap<CallFault, u32>,
}

/// Moves the stock of each metric at random, and delivers its records with faults.
async fn simulate(seed: u64) -> RunCounts {
    let mut rng = Rng::from_seed(seed);
    let cloud = Cloud::new(rng.fork());
    let mut stream = Stream::new(rng.fork());
    let mut quantities: BTreeMap<Metric, Vec<u32>> = BTreeMap::new();
    let (mut at, mut invalid) = (Duration::from_secs(1), 0);
    for movement in 0..120_u32 {
        at += Duration::from_millis(rng.below(2_000));
        if movement % 40 == 39 {
            stream.reshard();
        }
        let metric = *rng.pick(&METRICS);
        let of_metric = quantities.entry(metric).or_default();
        let before = of_metric.last().copied().unwrap_or_default();
        let quantity = match rng.below(10) {
            0 => 0,
            1..=3 => before + u32::try_from(rng.below(12)).expect("a small number"),
            _ => before.saturating_sub(u32::try_from(rng.below(6)).expect("a small number")),
        };
        let id = json!({ "S": format!("stock#{metric}") });
        let mut change = json!({
            "Keys": { "id": id },
            "NewImage": { "id": id, "quantity": { "N": quantity.to_string() } },
        });
        if rng.percent(3) {
            change["NewImage"]["quantity"] = json!({ "N": "many" });
            invalid += 1;
        } else {
            of_metric.push(quantity);
        }
        stream.put(&format!("stock#{metric}"), change.to_string().into_bytes(), at);
    }
    cloud.inject_faults(12);
    let fault_rates = FaultRates { crash: 8, lost_response: 8, replaced_poller: 8, repeat: 15 };
    let function = WatchFunction { cloud: cloud.clone(), given_up: Cell::default() };
    let mapping = Mapping::new(SETTINGS, fault_rates, rng.fork(), function);
    mapping.run(&stream).await;
    assert_eq!(mapping.function().given_up.get(), 0, "seed {seed}");

    let emitted = emitted(&cloud);
    for metric in METRICS {
        let quantities = quantities.remove(&metric).unwrap_or_default();
        let expected = expected(metric, &quantities);
        assert_eq!(emitted[&metric], expected, "seed {seed}, {metric}: {quantities:?}");
    }
    let quarantined = cloud.messages().len();
    assert!(quarantined >= invalid, "seed {seed}: {quarantined} messages of {invalid} records");
    RunCounts {
        events: emitted.values().map(Vec::len).sum(),
        quarantined,
        deliveries: mapping.event_counts(),
        faults: cloud.faults(),
    }
}

#[test]
fn the_events_equal_those_of_the_model_under_faults() {
    let runs = seeds(SEEDS, |seed| cloud::run(simulate(seed)));
    if !all_seeds() {
        return;
    }
    // The runs prove nothing unless these cases occurred.
    let events: usize = runs.iter().map(|run| run.events).sum();
    let quarantined: usize = runs.iter().map(|run| run.quarantined).sum();
    let delivered = |event| runs.iter().filter_map(|run| run.deliveries.get(&event)).sum::<u32>();
    let repeats = [
        MappingEvent::Crashed,
        MappingEvent::ResponseLost,
        MappingEvent::PollerReplaced,
        MappingEvent::Repeated,
        MappingEvent::Progressed,
        MappingEvent::Stuck,
    ];
    let repeats: Vec<_> = repeats.into_iter().map(|event| (event, delivered(event))).collect();
    let fault = |fault| runs.iter().filter_map(|run| run.faults.get(&fault)).sum::<u32>();
    let lost =
        [fault(CallFault::LostResponse), fault(CallFault::Late), fault(CallFault::Disconnected)];
    let summary = format!("{events} events, {quarantined} quarantined, {repeats:?}, {lost:?}");
    assert!(events > 300 && quarantined > 10, "{summary}");
    assert!(repeats.iter().all(|(_, count)| *count > 5), "{summary}");
    assert!(lost.iter().all(|count| *count > 5), "{summary}");
}
