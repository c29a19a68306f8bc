//! Tests of reservations, releases and deliveries.

use contracts::{Entity, Metric, ReservationId};
use fault::ErrorKind;
use futures_util::future::join_all;
use inventory::{receive_kits::ReceiveKits, release_kits::ReleaseKits, reserve_kits::ReserveKits};
use lambda::Step;
use serde_json::{Value, json};
use testkit::{
    Dynamo,
    dynamo::{INVENTORY, Usage},
    rng::Rng,
    saga::{StepEvents, StepPair, check_step_contract, run, run_retrying},
    sample::{WEATHER, noon, payload, payload_with_sensors, saga},
    schema::{InvalidDocument, Schema},
};

fn reserve(dynamo: &Dynamo) -> ReserveKits {
    ReserveKits { inventory: dynamo.table(INVENTORY), outbox: dynamo.outbox() }
}

fn release(dynamo: &Dynamo) -> ReleaseKits {
    ReleaseKits { inventory: dynamo.table(INVENTORY), outbox: dynamo.outbox() }
}

fn receive(dynamo: &Dynamo) -> ReceiveKits {
    ReceiveKits { inventory: dynamo.table(INVENTORY) }
}

fn delivery(id: &str, kits: &Value) -> Value {
    json!({
        "version": "0",
        "id": "6a7e8feb-b491-4cf7-a9f1-bf3703467718",
        "detail-type": "KitsDelivered",
        "source": "acme.warehouse",
        "account": "111122223333",
        "time": "2026-01-01T12:00:00Z",
        "region": "eu-central-1",
        "resources": [],
        "detail": { "deliveryId": id, "kits": kits },
    })
}

fn usage(operation: &str, write_units: f64) -> Usage {
    Usage { calls: [(operation.to_owned(), 1)].into(), write_units }
}

/// Returns tables with `quantity` kits of each metric of a weather station.
async fn stocked(quantity: u32) -> Dynamo {
    let dynamo = Dynamo::start().await;
    let kits = json!([
        { "metric": "air_temperature", "quantity": quantity },
        { "metric": "relative_humidity", "quantity": quantity },
        { "metric": "air_pressure", "quantity": quantity },
    ]);
    assert_eq!(run(&receive(&dynamo), &delivery("first", &kits)).await, Ok(json!("Received")));
    dynamo
}

async fn stock(dynamo: &Dynamo, metric: Metric) -> Value {
    let row = dynamo.row(INVENTORY, &format!("stock#{metric}")).await;
    row.map_or(Value::Null, |row| row["quantity"].clone())
}

fn entity(name: &str) -> Entity {
    ReservationId::from_onboarding(saga(name).onboarding_id).into()
}

async fn reservation(dynamo: &Dynamo, name: &str) -> Value {
    let id = ReservationId::from_onboarding(saga(name).onboarding_id);
    dynamo.row(INVENTORY, &format!("reservation#{id}")).await.expect("a reservation")
}

#[tokio::test]
async fn reserving_and_releasing_follow_the_contract_of_the_saga() {
    let pair = async || {
        let dynamo = stocked(10).await;
        StepPair {
            step: reserve(&dynamo),
            undo: release(&dynamo),
            dynamo,
            payload: payload_with_sensors(saga("a"), &WEATHER),
            undo_payload: payload(saga("a")),
            entity: entity("a"),
        }
    };
    let events = StepEvents { done: "KitsReserved", undone: "KitsReleased", fenced: &[] };
    check_step_contract(pair, events).await;
}

#[tokio::test]
async fn one_kit_per_sensor_is_reserved_and_released() {
    let dynamo = stocked(10).await;
    let (reserve_payload, release_payload) =
        (payload_with_sensors(saga("a"), &WEATHER), payload(saga("a")));
    run(&reserve(&dynamo), &reserve_payload).await.expect("kits");
    assert_eq!(stock(&dynamo, Metric::AirTemperature).await, 8);
    assert_eq!(stock(&dynamo, Metric::AirPressure).await, 9);
    let row = reservation(&dynamo, "a").await;
    assert_eq!(row["status"], "RESERVED");
    assert_eq!(row["kits"][0], json!({ "metric": "air_temperature", "quantity": 2 }));

    run(&release(&dynamo), &release_payload).await.expect("a release");
    assert_eq!(stock(&dynamo, Metric::AirTemperature).await, 10);
    assert_eq!(stock(&dynamo, Metric::AirPressure).await, 10);
    assert_eq!(reservation(&dynamo, "a").await["status"], "RELEASED");
    let events = dynamo.events(entity("a")).await;
    let released = events[1].envelope().expect("an envelope").data;
    assert_eq!(released["kits"], row["kits"], "the reserved kits are returned");
}

#[tokio::test]
async fn a_refusal_is_final() {
    let dynamo = stocked(1).await;
    let (reserve_payload, release_payload) =
        (payload_with_sensors(saga("a"), &WEATHER), payload(saga("a")));
    let refused = Err(ErrorKind::KitsOutOfStock);
    let reserve = reserve(&dynamo);
    for outcome in join_all((0..4).map(|_| run_retrying(&reserve, &reserve_payload))).await {
        assert_eq!(outcome, refused);
    }
    let short = json!([{ "metric": "air_temperature", "requested": 2, "available": 1 }]);
    assert_eq!(reservation(&dynamo, "a").await["shortages"], short);
    let events = dynamo.events(entity("a")).await;
    assert_eq!(events[0].envelope().expect("an envelope").data["shortages"], short);

    // A retry gets the same result, even if kits were delivered since: the saga may have acted on the first result.
    let more = json!([{ "metric": "air_temperature", "quantity": 5 }]);
    run(&receive(&dynamo), &delivery("second", &more)).await.expect("a delivery");
    assert_eq!(run(&reserve, &reserve_payload).await, refused);
    assert_eq!(dynamo.event_types(entity("a")).await, ["StockDepleted"]);

    // The undo leaves a tombstone, emits no event and returns no kits.
    run(&release(&dynamo), &release_payload).await.expect("a release");
    assert_eq!(run(&reserve, &reserve_payload).await, Err(ErrorKind::Superseded));
    assert_eq!(stock(&dynamo, Metric::AirTemperature).await, 6);
    assert_eq!(stock(&dynamo, Metric::RelativeHumidity).await, 1);
    assert_eq!(dynamo.event_types(entity("a")).await, ["StockDepleted"]);
    assert_eq!(reservation(&dynamo, "a").await["status"], "RELEASED");
}

#[tokio::test]
async fn the_error_names_every_metric_with_too_few_kits() {
    let dynamo = Dynamo::start().await;
    let reserve_payload =
        payload_with_sensors(saga("a"), &[Metric::WaterPh, Metric::Ozone, Metric::Ozone]);
    let command = fault::decode(&reserve_payload.to_string()).expect("a payload");
    let error = reserve(&dynamo).run(command, noon(0)).await.expect_err("no kits in stock");
    assert_eq!(
        error.to_string(),
        "too few kits in stock: 0 of 2 for mass_concentration_of_ozone_in_air, 0 of 1 for water_ph"
    );
}

#[tokio::test]
async fn concurrent_reservations_never_exceed_the_stock() {
    let dynamo = stocked(13).await;
    let names: Vec<_> = (0..10).map(|n| format!("site {n}")).collect();
    let (reserve, release) = (reserve(&dynamo), release(&dynamo));
    let outcomes = join_all(names.iter().map(|name| async {
        let payload = payload_with_sensors(saga(name), &WEATHER);
        run_retrying(&reserve, &payload).await
    }))
    .await;
    let served = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(served, 6, "{outcomes:?}");
    assert!(outcomes.iter().all(|o| o.is_ok() || *o == Err(ErrorKind::KitsOutOfStock)));
    assert_eq!(stock(&dynamo, Metric::AirTemperature).await, 1);
    assert_eq!(stock(&dynamo, Metric::AirPressure).await, 7);

    let payloads: Vec<_> = names.iter().map(|name| payload(saga(name))).collect();
    let releases = payloads.iter().chain(&payloads);
    join_all(releases.map(|payload| run_retrying(&release, payload))).await;
    assert_eq!(stock(&dynamo, Metric::AirTemperature).await, 13);
    assert_eq!(stock(&dynamo, Metric::AirPressure).await, 13);
    for (name, outcome) in names.iter().zip(outcomes) {
        let events = dynamo.event_types(entity(name)).await;
        let expected: &[&str] =
            if outcome.is_ok() { &["KitsReserved", "KitsReleased"] } else { &["StockDepleted"] };
        assert_eq!(events, expected);
    }
}

#[tokio::test]
async fn a_repeated_delivery_counts_once() {
    let dynamo = Dynamo::start().await;
    let receive = receive(&dynamo);
    let kits = json!([{ "metric": "wind_speed", "quantity": 5 }]);
    let event = delivery("d-1", &kits);
    let outcomes = join_all((0..4).map(|_| run_retrying(&receive, &event))).await;
    let received = outcomes.iter().filter(|outcome| **outcome == Ok(json!("Received")));
    assert_eq!(received.count(), 1, "{outcomes:?}");
    assert_eq!(stock(&dynamo, Metric::WindSpeed).await, 5);

    run(&receive, &delivery("d-2", &kits)).await.expect("another delivery");
    assert_eq!(stock(&dynamo, Metric::WindSpeed).await, 10);

    let other = delivery("d-1", &json!([{ "metric": "wind_speed", "quantity": 6 }]));
    assert_eq!(run(&receive, &other).await, Err(ErrorKind::InvalidInput));
    assert_eq!(stock(&dynamo, Metric::WindSpeed).await, 10);
}

#[tokio::test]
async fn two_suppliers_may_use_the_same_delivery_id() {
    let dynamo = Dynamo::start().await;
    let kits = json!([{ "metric": "wind_speed", "quantity": 5 }]);
    let first = delivery("d-1", &kits);
    let mut second = first.clone();
    second["source"] = "com.example.other".into();
    for event in [first, second] {
        assert_eq!(run(&receive(&dynamo), &event).await, Ok(json!("Received")));
    }
}

#[tokio::test]
async fn an_invalid_delivery_is_refused_with_its_field() {
    let dynamo = Dynamo::start().await;
    let one = json!({ "metric": "wind_speed", "quantity": 1 });
    for (id, kits, field) in [
        ("", json!([one]), "detail.deliveryId"),
        (&"x".repeat(129), json!([one]), "detail.deliveryId"),
        ("d", json!([]), "detail.kits"),
        ("d", json!(vec![&one; 51]), "detail.kits"),
        ("d", json!([{ "metric": "wind_speed", "quantity": 0 }]), "detail.kits[0].quantity"),
        (
            "d",
            json!([{ "metric": "wind_speed", "quantity": 1_000_001 }]),
            "detail.kits[0].quantity",
        ),
        ("d", json!([{ "metric": "wind_speed", "quantity": -5 }]), "detail.kits[0].quantity"),
        ("d", json!([{ "metric": "wind_speed", "quantity": 1e200 }]), "detail.kits[0].quantity"),
        ("d", json!([["wind_speed", 1]]), "detail.kits[0]"),
        ("d", json!([one, one]), "detail.kits[1].metric"),
        (" d", json!([one]), "detail.deliveryId"),
        ("d\u{202e}", json!([one]), "detail.deliveryId"),
    ] {
        let command = fault::decode(&delivery(id, &kits).to_string()).expect("an event");
        let error = receive(&dynamo).run(command, noon(0)).await.expect_err(field);
        assert!(error.to_string().starts_with(&format!("{field}: ")), "{error}");
    }
    assert_eq!(dynamo.rows(INVENTORY).await, [Value::Null; 0]);
    let longest = delivery(&"x".repeat(128), &json!([one]));
    assert_eq!(run(&receive(&dynamo), &longest).await, Ok(json!("Received")));
}

#[tokio::test]
async fn deliveries_that_match_the_schema_are_received_and_those_just_outside_are_refused() {
    let schema = Schema::published(contracts::inbound::KITS_DELIVERED);
    let dynamo = Dynamo::start().await;
    let receive = receive(&dynamo);
    let run = async |detail: &Value| {
        let mut event = delivery("", &json!([]));
        event["detail"] = detail.clone();
        receive.run(fault::decode(&event.to_string()).expect("an event"), noon(0)).await
    };
    for seed in 0..300 {
        let mut rng = Rng::from_seed(seed);
        let mut detail = schema.document(&mut rng);
        // The rule that the schema can't express: each metric occurs once.
        let mut seen = std::collections::HashSet::new();
        let kits = detail["kits"].as_array_mut().expect("kits");
        kits.retain(|kit| seen.insert(kit["metric"].to_string()));
        if let Err(error) = run(&detail).await {
            // The generator may produce the same short delivery id twice.
            assert!(
                error.to_string().ends_with("was received before with different kits"),
                "{seed}: {error}"
            );
        }
        let InvalidDocument { field, what, document } =
            schema.random_invalid_document(&detail, &mut rng);
        let error = run(&document).await.expect_err("outside the schema").to_string();
        let named =
            if field.is_empty() { "detail: ".to_owned() } else { format!("detail.{field}: ") };
        assert!(error.contains(&named), "seed {seed}, {what} of {field}: {error}");
    }
}

#[tokio::test]
async fn the_cost_of_a_reservation() {
    let dynamo = stocked(10).await;
    let delivered = dynamo.take_usage();
    assert_eq!(delivered, usage("TransactWriteItems", 8.0), "a delivery of three metrics");
    let reserve_payload = payload_with_sensors(saga("a"), &WEATHER);
    // Two units each for the reservation, three stocks and the event, and one for each of the event's four indexes.
    run(&reserve(&dynamo), &reserve_payload).await.expect("kits");
    assert_eq!(dynamo.take_usage(), usage("TransactWriteItems", 14.0));
    // A repeated step makes one call, which is refused, and reads nothing. `Usage` counts the write units of successful
    // calls only.
    run(&reserve(&dynamo), &reserve_payload).await.expect("kits");
    assert_eq!(dynamo.take_usage(), usage("TransactWriteItems", 0.0));
}
