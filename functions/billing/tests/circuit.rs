//! Tests the circuit breaker: during an outage only a probe calls the provider, and after it every command is
//! processed.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use billing::{
    circuit::Rules, commands::TaskTokenConsumer, initialize_subscription::InitializeSubscription,
};
use contracts::Timestamp;
use futures_util::future::{join, join_all};
use lambda::Deadline;
use serde_json::{Value, json};
use store::Table;
use support::{
    FakeStripe, INITIALIZING, InjectedFault, command_of, consumer, message, redelivered,
    take_effects, waiting,
};
use testkit::{
    Dynamo,
    dynamo::BILLING,
    http::{Call, NO_RESPONSE, Stub},
    measured::measured,
    sample::noon,
};

const CARD: &str = "pm_card_visa";
const DOWN: Option<u16> = Some(503);

struct World {
    dynamo: Dynamo,
    stripe: FakeStripe,
    /// Step Functions and SQS.
    aws: Stub,
}

impl World {
    async fn start() -> Self {
        Self {
            dynamo: Dynamo::start().await,
            stripe: FakeStripe::start().await,
            aws: Stub::start(waiting).await,
        }
    }

    fn consumer(&self) -> TaskTokenConsumer<InitializeSubscription> {
        consumer(&self.dynamo, self.dynamo.table(BILLING), &self.stripe, &self.aws)
    }

    /// Handles a command of the site. Returns the call that sends its result or requeues it, and the calls to the
    /// provider.
    async fn command(&self, site: &str, now: Timestamp) -> (Call, Vec<&'static str>) {
        let message = message(&command_of(site, CARD));
        self.consumer().handle(message, in_time(), now).await.expect("the message is processed");
        let mut calls = take_effects(&self.aws);
        assert_eq!(calls.len(), 1, "{calls:?}");
        (calls.remove(0), self.stripe.take_calls())
    }

    async fn circuit(&self) -> Value {
        self.dynamo.row(BILLING, "circuit#provider").await.unwrap_or_default()
    }

    /// Returns the time until which the circuit is open.
    async fn open_until(&self) -> Timestamp {
        let row = self.circuit().await;
        row["openUntil"].as_str().expect("it is open").parse().expect("a time")
    }

    /// Opens the circuit with five failures at noon.
    async fn open(&self) -> Timestamp {
        self.stripe.set_outage(DOWN);
        for n in 0..5 {
            let (_, calls) = self.command(&format!("early-{n}"), noon(0)).await;
            assert_eq!(calls, ["customer"]);
        }
        self.open_until().await
    }
}

fn in_time() -> Deadline {
    Deadline::after(Duration::from_secs(19))
}

#[tokio::test]
async fn after_failures_in_a_row_commands_are_requeued_without_a_run_until_the_pause_ends() {
    let world = World::start().await;
    let until = world.open().await;
    let mut sent = Value::Null;
    for n in 0..20 {
        let (call, calls) = world.command(&format!("late-{n}"), noon(1)).await;
        assert_eq!(calls, [""; 0], "no call to the provider");
        assert_eq!(call.operation(), "SendMessage");
        sent = call.json();
        let pause = (until.millis() - noon(1).millis() + 999) / 1000;
        let delay = sent["DelaySeconds"].as_i64().expect("seconds");
        assert!((pause..=pause + 15).contains(&delay), "{delay} s of {pause} s");
    }
    // A requeue without a run is not an attempt. The message keeps the time at which the command was first sent.
    let attributes = &sent["MessageAttributes"];
    assert_eq!(attributes["attempt"]["StringValue"], "0");
    assert_eq!(attributes["since"]["StringValue"], noon(0).millis().to_string());

    // A command whose state has timed out is not requeued.
    let old = redelivered(&sent);
    world.stripe.take_calls();
    world.dynamo.put(BILLING, open_until(noon(4000))).await;
    world.consumer().handle(old, in_time(), noon(3601)).await.expect("the result is sent");
    let calls = take_effects(&world.aws);
    assert_eq!(calls.iter().map(Call::operation).collect::<Vec<_>>(), ["SendTaskFailure"]);
}

fn open_until(until: Timestamp) -> Value {
    json!({
        "id": "circuit#provider", "sequence": 9, "failures": 5, "opened": 1, "openUntil": until,
    })
}

#[tokio::test]
async fn a_success_resets_the_count_and_costs_no_write_without_failures() {
    let world = World::start().await;
    world.command("first", noon(0)).await;
    assert_eq!(world.circuit().await, Value::Null, "no write without failures");
    for round in 0..3 {
        world.stripe.set_outage(DOWN);
        for n in 0..4 {
            world.command(&format!("{round}-{n}"), noon(0)).await;
        }
        assert_eq!(world.circuit().await["failures"], 4);
        world.stripe.set_outage(None);
        let (call, _) = world.command(&format!("{round}-good"), noon(0)).await;
        assert_eq!(call.operation(), "SendTaskSuccess");
        assert_eq!(world.circuit().await["failures"], 0);
    }
}

#[tokio::test]
async fn only_failures_of_the_provider_count() {
    for (status, counted) in
        [(500, 1), (503, 1), (429, 1), (401, 1), (403, 1), (402, 0), (400, 0), (409, 0)]
    {
        let world = World::start().await;
        world.stripe.set_outage(Some(status));
        world.command("a", noon(0)).await;
        let failures = world.circuit().await["failures"].as_i64().unwrap_or(0);
        assert_eq!(failures, counted, "{status}");
    }
    // A run that finds the lock taken makes no call to the provider, so it does not count.
    let world = World::start().await;
    let (blocked, other) = (world.consumer(), world.consumer());
    let gate = world.stripe.stub.hold().await;
    let first = blocked.handle(message(&command_of("a", CARD)), in_time(), noon(0));
    let second = async {
        while world.stripe.stub.take_calls().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        other.handle(message(&command_of("a", CARD)), in_time(), noon(0)).await.expect("requeued");
        drop(gate);
    };
    let (first, ()) = Box::pin(join(first, second)).await;
    first.expect("the result is sent");
    assert_eq!(world.circuit().await, Value::Null);
}

#[tokio::test]
async fn a_stored_failure_of_the_provider_does_not_count() {
    let world = World::start().await;
    world.stripe.fail("customer", InjectedFault::StoredError);
    world.command("a", noon(0)).await;
    assert_eq!(world.circuit().await["failures"], 1);
    assert_eq!(world.command("a", noon(0)).await.1, ["customer"]);
    assert_eq!(world.circuit().await["failures"], 0);
}

#[tokio::test]
async fn no_response_before_the_deadline_counts_as_a_failure() {
    let world = World::start().await;
    world.stripe.set_outage(Some(NO_RESPONSE));
    let deadline = Deadline::after(Duration::from_secs(4));
    let silent = message(&command_of("a", CARD));
    world.consumer().handle(silent, deadline, noon(0)).await.expect("requeued");
    let circuit = world.circuit().await;
    assert_eq!(
        (&circuit["failures"], &circuit["lastError"]["name"]),
        (&json!(1), &json!("NoAnswer"))
    );
    let message = circuit["lastError"]["message"].as_str().expect("text");
    assert!(message.contains("no response within"), "{message}");
}

#[tokio::test]
async fn after_the_pause_one_of_many_commands_probes_and_its_success_closes_the_circuit() {
    let world = World::start().await;
    let until = world.open().await;
    world.stripe.set_outage(None);
    let consumers: Vec<_> = (0..50).map(|n| (world.consumer(), format!("site-{n}"))).collect();
    let all = consumers.iter().map(|(consumer, site)| {
        consumer.handle(message(&command_of(site, CARD)), in_time(), until)
    });
    // The provider responds after all other commands were requeued.
    let gate = world.stripe.stub.hold().await;
    let release = async {
        let mut requeued = Vec::new();
        while requeued.len() < 49 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            requeued.extend(take_effects(&world.aws));
        }
        drop(gate);
        requeued
    };
    let (results, requeued) = join(join_all(all), release).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(world.stripe.take_calls(), INITIALIZING, "one command's calls");
    assert!(requeued.iter().all(|call| call.operation() == "SendMessage"), "{requeued:?}");
    let rest = take_effects(&world.aws);
    assert_eq!(rest.iter().map(Call::operation).collect::<Vec<_>>(), ["SendTaskSuccess"]);
    assert_eq!(world.circuit().await["openUntil"], Value::Null);
    assert_eq!(world.command("after", until).await.0.operation(), "SendTaskSuccess");
}

#[tokio::test]
async fn a_failed_probe_lengthens_the_pause_and_a_crashed_probe_is_replaced() {
    let world = World::start().await;
    let until = world.open().await;
    assert_eq!(world.command("probe", until).await.1, ["customer"]);
    let longer = world.open_until().await;
    assert!((48_000..=60_500).contains(&(longer.millis() - until.millis())), "{longer}");

    // The next probe crashes during its call.
    world.stripe.set_outage(Some(NO_RESPONSE));
    let crashing = world.consumer();
    let command = message(&command_of("crash", CARD));
    let mut probe = Box::pin(crashing.handle(command, in_time(), longer));
    while world.stripe.take_calls().is_empty() {
        let moment = tokio::time::timeout(Duration::from_millis(1), &mut probe);
        assert!(moment.await.is_err(), "the command ended before its call");
    }
    drop(probe);
    world.stripe.set_outage(None);
    let lease_ends = longer.plus_millis(30_000);
    let (call, calls) = world.command("late", lease_ends.plus_millis(-1)).await;
    assert_eq!((call.operation(), calls.is_empty()), ("SendMessage", true));
    let (call, calls) = world.command("next", lease_ends).await;
    assert_eq!((call.operation(), &calls[..]), ("SendTaskSuccess", &INITIALIZING[..]));
    assert_eq!(world.circuit().await["openUntil"], Value::Null);
}

#[tokio::test]
async fn after_a_probe_without_a_call_the_next_command_probes() {
    let world = World::start().await;
    world.command("done", noon(0)).await;
    let until = world.open().await;
    let (call, calls) = world.command("done", until).await;
    assert_eq!((call.operation(), calls.is_empty()), ("SendTaskSuccess", true));
    world.stripe.set_outage(None);
    let (call, _) = world.command("next", until.plus_millis(1000)).await;
    assert_eq!(call.operation(), "SendTaskSuccess");
}

#[tokio::test]
async fn metrics_count_each_failure_and_each_command_that_an_open_circuit_defers() {
    let world = World::start().await;
    let metrics_of = async |site: &str, now| measured(world.command(site, now)).await.1;
    let metrics = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), 1.0)).collect();
    assert_eq!(metrics_of("done", noon(0)).await, metrics(&[]));
    world.stripe.set_outage(DOWN);
    for n in 0..4 {
        let failed = metrics(&["BillingCommandsDeferred", "ProviderFailures"]);
        assert_eq!(metrics_of(&format!("failed-{n}"), noon(0)).await, failed);
    }
    let opened = metrics(&["BillingCommandsDeferred", "ProviderCircuitOpen", "ProviderFailures"]);
    assert_eq!(metrics_of("last", noon(0)).await, opened);
    let deferred = metrics(&["BillingCommandsDeferred", "ProviderCircuitOpen"]);
    assert_eq!(metrics_of("late", noon(1)).await, deferred);
    let until = world.open_until().await;
    assert_eq!(metrics_of("done", until).await, metrics(&[]), "the stored result needs no call");
    world.stripe.set_outage(None);
    assert_eq!(metrics_of("next", until.plus_millis(1000)).await, metrics(&[]));
}

#[tokio::test]
async fn without_access_to_its_row_the_breaker_lets_commands_run() {
    for status in [400, 500, NO_RESPONSE] {
        let world = World::start().await;
        let broken = Stub::start(move |_| (status, json!({ "__type": "AccessDenied" }))).await;
        let client = aws_sdk_dynamodb::Client::new(&broken.config());
        let table = Table::new(client, BILLING);
        // Without a response, each call takes the whole timeout, so there are fewer commands.
        for n in if status == NO_RESPONSE { 5..7 } else { 0..7 } {
            let mut consumer = consumer(&world.dynamo, table.clone(), &world.stripe, &world.aws);
            consumer.circuit.rules.timeout = Rules::default().timeout;
            let (site, expected) =
                (n.to_string(), if n < 6 { "SendMessage" } else { "SendTaskSuccess" });
            world.stripe.set_outage(if n < 6 { DOWN } else { None });
            let message = message(&command_of(&site, CARD));
            consumer.handle(message, in_time(), noon(0)).await.expect("the command runs");
            assert_eq!(take_effects(&world.aws)[0].operation(), expected, "{status}");
        }
    }
}

#[tokio::test]
async fn two_hundred_commands_survive_an_outage_of_ten_minutes() {
    const OUTAGE_MILLIS: i64 = 600_000;
    let world = World::start().await;
    // The messages in the queue, by the time at which they may be received.
    let mut queue = BTreeMap::new();
    for n in 0..200_i64 {
        let mut one = message(&command_of(&format!("site-{n}"), CARD));
        let body = one.body.take().expect("a body").replace("token-1", &format!("token-{n}"));
        one.body = Some(body);
        queue.insert((noon(0).millis() + n * 100, n), one);
    }
    let (mut next, mut done, mut calls_down) = (200, BTreeSet::new(), Vec::new());
    let mut last = noon(0);
    while let Some(((millis, _), message)) = queue.pop_first() {
        let now = Timestamp::from_millis(millis);
        let down = millis < noon(0).millis() + OUTAGE_MILLIS;
        world.stripe.set_outage(if down { DOWN } else { None });
        world.consumer().handle(message, in_time(), now).await.expect("the message is processed");
        let calls = world.stripe.take_calls();
        if down && !calls.is_empty() {
            assert_eq!(calls, ["customer"]);
            calls_down.push(now);
        }
        for call in take_effects(&world.aws) {
            let sent = call.json();
            if call.operation() == "SendMessage" {
                let delay = sent["DelaySeconds"].as_i64().expect("seconds");
                queue.insert((millis + 1000 * delay, next), redelivered(&sent));
                next += 1;
            } else {
                assert_eq!(call.operation(), "SendTaskSuccess");
                assert!(done.insert(sent["taskToken"].to_string()), "one result for each task");
            }
        }
        last = now;
    }
    assert_eq!((done.len(), world.stripe.paid_for()), (200, 200));
    // Five calls until the circuit opened, then the probes after 30 s and 1, 2, 4 and 5 minutes at most.
    assert!((8..=11).contains(&calls_down.len()), "{calls_down:?}");
    let over = last.millis() - noon(0).millis() - OUTAGE_MILLIS;
    assert!(over < 400_000, "drained {over} ms after the outage");
    assert!(next < 200 * 12, "{next} messages");
}
