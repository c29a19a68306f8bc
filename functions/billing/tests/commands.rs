//! Tests billing's commands over the queue: a result is sent after it is committed, and again for a redelivered
//! command.

mod support;

use std::time::Duration;

use aws_lambda_events::sqs::SqsMessage;
use billing::{commands::TaskTokenConsumer, initialize_subscription::InitializeSubscription};
use contracts::SubscriptionId;
use fault::ReplayResponse;
use lambda::Deadline;
use serde_json::{Value, json};
use support::{
    FakeStripe, InjectedFault, MACHINE, PROOF, canceller, command, command_of, consumer, described,
    execution, message, message_of, redelivered, take_effects, waiting,
};
use testkit::{
    Dynamo,
    dynamo::BILLING,
    http::{Call, Stub},
    sample::{noon, payload, saga},
};

struct World {
    dynamo: Dynamo,
    stripe: FakeStripe,
    /// Step Functions and SQS.
    aws: Stub,
}

impl World {
    async fn start(aws: fn(&Call) -> (u16, Value)) -> Self {
        Self {
            dynamo: Dynamo::start().await,
            stripe: FakeStripe::start().await,
            aws: Stub::start(aws).await,
        }
    }

    fn consumer(&self) -> TaskTokenConsumer<InitializeSubscription> {
        consumer(&self.dynamo, self.dynamo.table(BILLING), &self.stripe, &self.aws)
    }

    fn take_one(&self) -> (String, Value) {
        let calls = take_effects(&self.aws);
        assert_eq!(calls.len(), 1, "{calls:?}");
        (calls[0].operation().to_owned(), calls[0].json())
    }
}

/// Returns a deadline close to the function's timeout of 20 s.
fn in_time() -> Deadline {
    Deadline::after(Duration::from_secs(19))
}

/// Confirms the sender, and fails every other call.
fn broken_aws(call: &Call) -> (u16, Value) {
    if PROOF.contains(&call.operation()) { waiting(call) } else { (500, json!({})) }
}

#[tokio::test]
async fn a_result_is_sent_again_for_a_redelivered_command() {
    let world = World::start(waiting).await;
    for _ in 0..2 {
        world
            .consumer()
            .handle(message(&command("pm_card_visa")), in_time(), noon(0))
            .await
            .expect("the result is sent");
        let (operation, call) = world.take_one();
        assert_eq!(operation, "SendTaskSuccess");
        assert_eq!(call["taskToken"], "token-1");
        let output: Value =
            serde_json::from_str(call["output"].as_str().expect("text")).expect("JSON");
        let id = SubscriptionId::from_onboarding(saga("a").onboarding_id);
        assert_eq!(output, json!({ "subscriptionId": id }));
    }
    assert_eq!(world.stripe.paid_for(), 1);
}

#[tokio::test]
async fn a_decline_is_sent_again_for_a_redelivered_command() {
    let world = World::start(waiting).await;
    for _ in 0..2 {
        let declined = message(&command("pm_card_chargeDeclined"));
        world.consumer().handle(declined, in_time(), noon(0)).await.expect("the result is sent");
        let (operation, call) = world.take_one();
        assert_eq!(operation, "SendTaskFailure");
        assert_eq!(call["taskToken"], "token-1");
        assert_eq!(call["error"], "CardDeclined");
        assert_eq!(call["cause"], "Your card was declined.");
    }
}

#[tokio::test]
async fn a_replay_returns_its_result_and_sends_no_message_to_the_queue() {
    let world = World::start(waiting).await;
    let replay =
        async |message: SqsMessage| world.consumer().replay(&message, in_time(), noon(0)).await;
    world.stripe.fail("customer", InjectedFault::NotExecuted);
    let failed = replay(message(&command("pm_card_visa"))).await;
    let ReplayResponse::Failed { error, message: reason } = failed else { panic!("{failed:?}") };
    assert_eq!(error, "Transient");
    assert!(reason.contains("status 500: down"), "{reason}");
    assert_eq!(take_effects(&world.aws).len(), 0);

    let broken = replay(message_of(&json!({}))).await;
    assert!(matches!(broken, ReplayResponse::Failed { error, .. } if error == "InvalidInput"));
    assert_eq!(replay(message(&command("pm_card_visa"))).await, ReplayResponse::Done);
    assert_eq!(world.take_one().0, "SendTaskSuccess");
    assert_eq!(world.stripe.paid_for(), 1);
}

#[tokio::test]
async fn a_command_to_a_slow_provider_is_requeued_before_the_deadline() {
    let world = World::start(waiting).await;
    world.stripe.fail("customer", InjectedFault::NoResponse);
    // Two of these three seconds are reserved for the queue.
    let deadline = Deadline::after(Duration::from_secs(3));
    let consumer = world.consumer();
    consumer.handle(message(&command("pm_card_visa")), deadline, noon(0)).await.expect("requeued");
    let (operation, call) = world.take_one();
    assert_eq!(operation, "SendMessage");
    assert!(!deadline.passed());
    // The step has released its lock, so the next attempt need not wait until the lease ends.
    consumer.handle(redelivered(&call), in_time(), noon(2)).await.expect("the result is sent");
    assert_eq!(world.take_one().0, "SendTaskSuccess");
    assert_eq!((world.stripe.customers(), world.stripe.paid_for()), (1, 1));
}

#[tokio::test]
async fn an_outage_requeues_the_command_with_a_growing_delay_until_its_state_times_out() {
    let world = World::start(waiting).await;
    let mut next = message(&command("pm_card_visa"));
    for (attempt, delay, seconds) in [("1", 2, 0), ("2", 4, 2), ("3", 8, 3600)] {
        world.stripe.fail("customer", InjectedFault::NotExecuted);
        let body = next.body.clone();
        world.consumer().handle(next, in_time(), noon(seconds)).await.expect("requeued");
        let (operation, call) = world.take_one();
        assert_eq!(operation, "SendMessage");
        assert_eq!(call["MessageBody"], json!(body));
        assert_eq!(call["DelaySeconds"], delay);
        assert_eq!(call["MessageAttributes"]["attempt"]["StringValue"], attempt);
        let since = noon(0).millis().to_string();
        assert_eq!(call["MessageAttributes"]["since"]["StringValue"], since);
        next = redelivered(&call);
    }
    // The state's timeout is one hour, so the command fails and is not requeued.
    world.stripe.fail("customer", InjectedFault::NotExecuted);
    world.consumer().handle(next, in_time(), noon(3601)).await.expect("the result is sent");
    let (operation, call) = world.take_one();
    assert_eq!((operation.as_str(), &call["error"]), ("SendTaskFailure", &json!("Transient")));
    assert!(call["cause"].as_str().expect("text").contains("status 500: down"), "{call}");
}

/// Lambda's recursion detection would end the chain after 16 calls, so the functions allow recursion (`RecursiveLoop`).
#[tokio::test]
async fn a_command_survives_an_outage_with_more_than_sixteen_deferrals() {
    let world = World::start(waiting).await;
    let mut next = message(&command("pm_card_visa"));
    let (mut seconds, mut deferrals) = (0, 0);
    while seconds < 3_300 {
        world.stripe.fail("customer", InjectedFault::NotExecuted);
        world.consumer().handle(next, in_time(), noon(seconds)).await.expect("requeued");
        let (operation, call) = world.take_one();
        assert_eq!(operation, "SendMessage", "after {deferrals} deferrals and {seconds} s");
        deferrals += 1;
        seconds += call["DelaySeconds"].as_i64().expect("a delay");
        next = redelivered(&call);
    }
    assert!(deferrals > 16, "{deferrals}");
    world.consumer().handle(next, in_time(), noon(seconds)).await.expect("the result is sent");
    assert_eq!(world.take_one().0, "SendTaskSuccess");
    assert_eq!(world.stripe.paid_for(), 1);
}

#[tokio::test]
async fn a_message_stays_in_the_queue_if_it_is_malformed_or_its_result_can_not_be_sent() {
    let world = World::start(waiting).await;
    let mut broken = message(&command("pm_card_visa"));
    broken.body = Some(r#"{"taskToken": "t"}"#.to_owned());
    let error = world.consumer().handle(broken, in_time(), noon(0)).await.expect_err("malformed");
    assert!(error.contains("missing field `command`"), "{error}");
    assert!(world.aws.take_calls().is_empty());

    // Neither the result nor the requeued message can be sent.
    let world = World::start(broken_aws).await;
    let good = message(&command("pm_card_visa"));
    world
        .consumer()
        .handle(good.clone(), in_time(), noon(0))
        .await
        .expect_err("the result can't be sent");
    let (operation, _) = world.take_one();
    assert_eq!(operation, "SendTaskSuccess");
    let world = World::start(broken_aws).await;
    world.stripe.fail("customer", InjectedFault::NotExecuted);
    world
        .consumer()
        .handle(good, in_time(), noon(0))
        .await
        .expect_err("the message can't be requeued");
    assert_eq!(world.take_one().0, "SendMessage");
}

#[tokio::test]
async fn a_message_whose_task_ends_during_the_run_is_deleted() {
    let world = World::start(|call| match call.operation() {
        "SendTaskSuccess" | "SendTaskFailure" => (400, json!({ "__type": "TaskTimedOut" })),
        _ => waiting(call),
    })
    .await;
    for method in ["pm_card_visa", "pm_other"] {
        let late = message(&command(method));
        world.consumer().handle(late, in_time(), noon(0)).await.expect("the message is deleted");
    }
    let calls = take_effects(&world.aws);
    let operations: Vec<_> = calls.iter().map(Call::operation).collect();
    assert_eq!(operations, ["SendTaskSuccess", "SendTaskFailure"]);
}

/// Starts a world with a site whose subscription is paid for.
async fn live_site(aws: fn(&Call) -> (u16, Value)) -> World {
    let world = World::start(aws).await;
    let step = support::initialize(&world.dynamo, &world.stripe);
    testkit::saga::run(&step, &command("pm_card_visa")).await.expect("a subscription");
    world.stripe.take_calls();
    world
}

/// Returns the command that cancels the site's subscription.
fn cancel(site: &str) -> Value {
    payload(saga(site))
}

fn ended_task(call: &Call) -> (u16, Value) {
    match call.operation() {
        "SendTaskHeartbeat" => (400, json!({ "__type": "TaskTimedOut" })),
        _ => waiting(call),
    }
}

fn invalid_token(call: &Call) -> (u16, Value) {
    match call.operation() {
        "SendTaskHeartbeat" => (400, json!({ "__type": "InvalidToken" })),
        _ => waiting(call),
    }
}

fn ended_execution(call: &Call) -> (u16, Value) {
    match call.operation() {
        "DescribeExecution" => described(call, "SUCCEEDED"),
        _ => waiting(call),
    }
}

fn unknown_execution(call: &Call) -> (u16, Value) {
    match call.operation() {
        "DescribeExecution" => (400, json!({ "__type": "ExecutionDoesNotExist" })),
        _ => waiting(call),
    }
}

fn forbidden(call: &Call) -> (u16, Value) {
    if PROOF.contains(&call.operation()) {
        (400, json!({ "__type": "AccessDeniedException" }))
    } else {
        waiting(call)
    }
}

#[tokio::test]
async fn a_forged_cancellation_has_no_effect_and_stays_in_the_queue() {
    let genuine = message(&cancel("a"));
    let message_with = |execution: Option<String>| {
        let mut body = json!({ "taskToken": "token-1", "command": cancel("a") });
        body["execution"] = json!(execution);
        message_of(&body)
    };
    let of_other_machine = execution(&cancel("a")).replace(":saga:", ":other-machine:");
    for (what, aws, forged) in [
        ("a random token", invalid_token as fn(&Call) -> (u16, Value), genuine.clone()),
        ("a random token, without an execution", invalid_token, message_with(None)),
        ("the token of an ended task, without an execution", ended_task, message_with(None)),
        (
            "another site's execution and token",
            waiting,
            message_with(Some(execution(&cancel("b")))),
        ),
        (
            "another site's execution, which has ended",
            ended_execution,
            message_with(Some(execution(&cancel("b")))),
        ),
        ("another site's token and an execution that has ended", ended_execution, genuine.clone()),
        ("another state machine's execution", waiting, message_with(Some(of_other_machine))),
        ("an empty ARN", waiting, message_with(Some(String::new()))),
        ("the state machine's ARN", waiting, message_with(Some(MACHINE.to_owned()))),
        ("a token of another machine", forbidden, genuine.clone()),
    ] {
        let world = live_site(aws).await;
        let before = world.dynamo.all_rows().await;
        let consumer = canceller(&world.dynamo, &world.stripe, &world.aws);
        consumer.handle(forged, in_time(), noon(0)).await.expect_err(what);
        assert_eq!(world.dynamo.all_rows().await, before, "{what}");
        assert_eq!(world.stripe.take_calls(), [""; 0], "{what}");
        assert_eq!(world.stripe.paid_for(), 1, "{what}");
        // The task whose token was stolen gets no result either.
        assert!(take_effects(&world.aws).is_empty(), "{what}");
    }
}

#[tokio::test]
async fn a_forged_initialization_opens_no_subscription() {
    let genuine = command("pm_card_visa");
    let body = |execution: Value, command: &Value| {
        message_of(&json!({ "taskToken": "token-1", "execution": execution, "command": command }))
    };
    let own = json!(execution(&genuine));
    let with = |field: &str, value: &str| {
        let mut command = genuine.clone();
        command[field] = value.into();
        command
    };
    for (what, aws, forged) in [
        ("a random token", invalid_token as fn(&Call) -> (u16, Value), body(own.clone(), &genuine)),
        ("no execution", ended_task, body(Value::Null, &genuine)),
        ("another site", waiting, body(own.clone(), &command_of("b", "pm_card_visa"))),
        ("a cheaper plan", waiting, body(own.clone(), &with("plan", "community"))),
        ("another payer", waiting, body(own.clone(), &with("paymentMethod", "pm_victim"))),
        ("an execution that has ended", ended_execution, body(own, &genuine)),
    ] {
        let world = World::start(aws).await;
        world.consumer().handle(forged, in_time(), noon(0)).await.expect_err(what);
        assert!(world.dynamo.all_rows().await.values().all(Vec::is_empty), "{what}");
        assert_eq!(world.stripe.take_calls(), [""; 0], "{what}");
        assert!(take_effects(&world.aws).is_empty(), "{what}");
    }
}

#[tokio::test]
async fn two_calls_confirm_the_sender_before_every_effect() {
    let world = live_site(waiting).await;
    let consumer = canceller(&world.dynamo, &world.stripe, &world.aws);
    consumer.handle(message(&cancel("a")), in_time(), noon(0)).await.expect("the result is sent");
    let calls = world.aws.take_calls();
    let operations: Vec<_> = calls.iter().map(Call::operation).collect();
    assert_eq!(operations, ["SendTaskHeartbeat", "DescribeExecution", "SendTaskSuccess"]);
    assert_eq!(calls[0].json()["taskToken"], "token-1");
    assert_eq!(world.stripe.paid_for(), 0);
}

#[tokio::test]
async fn a_genuine_command_that_can_not_be_decoded_fails_as_invalid_input() {
    let world = live_site(waiting).await;
    let consumer = canceller(&world.dynamo, &world.stripe, &world.aws);
    let mut of_two_sites = cancel("a");
    of_two_sites["siteId"] = json!(saga("b").site_id);
    let message = message(&of_two_sites);
    consumer.handle(message, in_time(), noon(0)).await.expect("the result is sent");
    let (operation, call) = world.take_one();
    assert_eq!((operation.as_str(), &call["error"]), ("SendTaskFailure", &json!("InvalidInput")));
    assert_eq!((world.stripe.take_calls(), world.stripe.paid_for()), (vec![], 1));
}

#[tokio::test]
async fn a_message_of_the_previous_version_needs_a_waiting_task() {
    let old = || message_of(&json!({ "taskToken": "token-1", "command": cancel("a") }));
    let world = live_site(waiting).await;
    let consumer = canceller(&world.dynamo, &world.stripe, &world.aws);
    consumer.handle(old(), in_time(), noon(0)).await.expect("the result is sent");
    assert_eq!(world.take_one().0, "SendTaskSuccess");
    assert_eq!(world.stripe.paid_for(), 0);
    let world = live_site(ended_task).await;
    let consumer = canceller(&world.dynamo, &world.stripe, &world.aws);
    consumer.handle(old(), in_time(), noon(0)).await.expect_err("no task waits");
    assert_eq!(world.stripe.paid_for(), 1);
}

#[tokio::test]
async fn a_genuine_command_whose_task_has_ended_is_deleted_without_a_run() {
    let world = live_site(ended_task).await;
    let consumer = canceller(&world.dynamo, &world.stripe, &world.aws);
    consumer
        .handle(message(&cancel("a")), in_time(), noon(0))
        .await
        .expect("the message is deleted");
    assert!(take_effects(&world.aws).is_empty());
    assert_eq!((world.stripe.take_calls(), world.stripe.paid_for()), (vec![], 1));
}

#[tokio::test]
async fn an_execution_that_is_not_visible_yet_is_checked_again_later() {
    let world = live_site(unknown_execution).await;
    let consumer = canceller(&world.dynamo, &world.stripe, &world.aws);
    let genuine = message(&cancel("a"));
    consumer.handle(genuine, in_time(), noon(0)).await.expect("requeued");
    let (operation, call) = world.take_one();
    assert_eq!((operation.as_str(), &call["DelaySeconds"]), ("SendMessage", &json!(2)));
    assert_eq!(world.stripe.paid_for(), 1);
    // The execution is found.
    let found = Stub::start(waiting).await;
    let consumer = canceller(&world.dynamo, &world.stripe, &found);
    consumer.handle(redelivered(&call), in_time(), noon(2)).await.expect("the result is sent");
    assert_eq!(take_effects(&found)[0].operation(), "SendTaskSuccess");
    assert_eq!(world.stripe.paid_for(), 0);

    // The execution is never found. After its state has timed out, the message stays in the queue.
    let world = live_site(unknown_execution).await;
    let consumer = canceller(&world.dynamo, &world.stripe, &world.aws);
    let day = 24 * 3600;
    let last = consumer.handle(redelivered(&call), in_time(), noon(day)).await;
    last.expect("requeued");
    assert_eq!(world.take_one().0, "SendMessage");
    let error = consumer.handle(redelivered(&call), in_time(), noon(day + 1)).await;
    let error = error.expect_err("too old");
    assert!(error.starts_with("there is no execution arn:aws:states:"), "{error}");
    assert!(take_effects(&world.aws).is_empty());
    assert_eq!(world.stripe.paid_for(), 1);
}

#[tokio::test]
async fn a_throttled_proof_is_retried_later() {
    fn throttled(call: &Call) -> (u16, Value) {
        match call.operation() {
            "SendMessage" => waiting(call),
            _ => (400, json!({ "__type": "ThrottlingException" })),
        }
    }
    let world = live_site(throttled).await;
    let consumer = canceller(&world.dynamo, &world.stripe, &world.aws);
    consumer.handle(message(&cancel("a")), in_time(), noon(0)).await.expect("requeued");
    assert_eq!(world.take_one().0, "SendMessage");
    assert_eq!(world.stripe.paid_for(), 1);
}
