//! Tests billing's commands over the queue: each is answered after its result is committed, and a redelivered one is
//! answered again.

mod support;

use std::time::Duration;

use aws_lambda_events::sqs::SqsMessage;
use billing::{commands::Commands, initialize_subscription::InitializeSubscription};
use contracts::SubscriptionId;
use fault::Replayed;
use lambda::Deadline;
use serde_json::{Value, json};
use support::{
    FakeStripe, MACHINE, PROOF, Trouble, canceller, command, command_of, consumer, described,
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

    fn commands(&self) -> Commands<InitializeSubscription> {
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

/// Proves the sender, and fails every other call.
fn broken_answers(call: &Call) -> (u16, Value) {
    if PROOF.contains(&call.operation()) { waiting(call) } else { (500, json!({})) }
}

#[tokio::test]
async fn a_result_is_sent_again_for_a_redelivered_command() {
    let world = World::start(waiting).await;
    for _ in 0..2 {
        world
            .commands()
            .handle(message(&command("pm_card_visa")), in_time(), noon(0))
            .await
            .expect("an answer");
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
        world.commands().handle(declined, in_time(), noon(0)).await.expect("an answer");
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
        async |message: SqsMessage| world.commands().replay(&message, in_time(), noon(0)).await;
    world.stripe.fail("customer", Trouble::Refused);
    let failed = replay(message(&command("pm_card_visa"))).await;
    let Replayed::Failed { error, message: reason } = failed else { panic!("{failed:?}") };
    assert_eq!(error, "Transient");
    assert!(reason.contains("status 500: down"), "{reason}");
    assert_eq!(take_effects(&world.aws).len(), 0);

    let broken = replay(message_of(&json!({}))).await;
    assert!(matches!(broken, Replayed::Failed { error, .. } if error == "InvalidInput"));
    assert_eq!(replay(message(&command("pm_card_visa"))).await, Replayed::Done);
    assert_eq!(world.take_one().0, "SendTaskSuccess");
    assert_eq!(world.stripe.paid_for(), 1);
}

#[tokio::test]
async fn a_slow_provider_sends_the_command_back_before_the_time_runs_out() {
    let world = World::start(waiting).await;
    world.stripe.fail("customer", Trouble::Silent);
    // Two of these three seconds are reserved for the queue.
    let deadline = Deadline::after(Duration::from_secs(3));
    let commands = world.commands();
    commands
        .handle(message(&command("pm_card_visa")), deadline, noon(0))
        .await
        .expect("a later try");
    let (operation, call) = world.take_one();
    assert_eq!(operation, "SendMessage");
    assert!(!deadline.passed());
    // The step has released its lock, so the next attempt need not wait until the lease ends.
    commands.handle(redelivered(&call), in_time(), noon(2)).await.expect("an answer");
    assert_eq!(world.take_one().0, "SendTaskSuccess");
    assert_eq!((world.stripe.customers(), world.stripe.paid_for()), (1, 1));
}

#[tokio::test]
async fn an_outage_sends_the_command_back_with_a_growing_delay_until_its_state_times_out() {
    let world = World::start(waiting).await;
    let mut next = message(&command("pm_card_visa"));
    for (attempt, delay, seconds) in [("1", 2, 0), ("2", 4, 2), ("3", 8, 3600)] {
        world.stripe.fail("customer", Trouble::Refused);
        let body = next.body.clone();
        world.commands().handle(next, in_time(), noon(seconds)).await.expect("a later try");
        let (operation, call) = world.take_one();
        assert_eq!(operation, "SendMessage");
        assert_eq!(call["MessageBody"], json!(body));
        assert_eq!(call["DelaySeconds"], delay);
        assert_eq!(call["MessageAttributes"]["attempt"]["StringValue"], attempt);
        let since = noon(0).millis().to_string();
        assert_eq!(call["MessageAttributes"]["since"]["StringValue"], since);
        next = redelivered(&call);
    }
    // The state waits for an hour, so the command is answered and not sent back again.
    world.stripe.fail("customer", Trouble::Refused);
    world.commands().handle(next, in_time(), noon(3601)).await.expect("an answer");
    let (operation, call) = world.take_one();
    assert_eq!((operation.as_str(), &call["error"]), ("SendTaskFailure", &json!("Transient")));
    assert!(call["cause"].as_str().expect("text").contains("status 500: down"), "{call}");
}

/// Lambda's recursion detection would end the chain after 16 calls, so the functions allow recursion (`RecursiveLoop`).
#[tokio::test]
async fn a_command_survives_more_than_sixteen_deferrals_of_an_outage() {
    let world = World::start(waiting).await;
    let mut next = message(&command("pm_card_visa"));
    let (mut seconds, mut deferrals) = (0, 0);
    while seconds < 3_300 {
        world.stripe.fail("customer", Trouble::Refused);
        world.commands().handle(next, in_time(), noon(seconds)).await.expect("a later try");
        let (operation, call) = world.take_one();
        assert_eq!(operation, "SendMessage", "after {deferrals} deferrals and {seconds} s");
        deferrals += 1;
        seconds += call["DelaySeconds"].as_i64().expect("a delay");
        next = redelivered(&call);
    }
    assert!(deferrals > 16, "{deferrals}");
    world.commands().handle(next, in_time(), noon(seconds)).await.expect("an answer");
    assert_eq!(world.take_one().0, "SendTaskSuccess");
    assert_eq!(world.stripe.paid_for(), 1);
}

#[tokio::test]
async fn a_malformed_message_or_an_unsendable_answer_stays_in_the_queue() {
    let world = World::start(waiting).await;
    let mut broken = message(&command("pm_card_visa"));
    broken.body = Some(r#"{"taskToken": "t"}"#.to_owned());
    let error = world.commands().handle(broken, in_time(), noon(0)).await.expect_err("no command");
    assert!(error.contains("missing field `command`"), "{error}");
    assert!(world.aws.take_calls().is_empty());

    // Neither the answer nor the message to the queue can be sent.
    let world = World::start(broken_answers).await;
    let good = message(&command("pm_card_visa"));
    world.commands().handle(good.clone(), in_time(), noon(0)).await.expect_err("no answer");
    let (operation, _) = world.take_one();
    assert_eq!(operation, "SendTaskSuccess");
    let world = World::start(broken_answers).await;
    world.stripe.fail("customer", Trouble::Refused);
    world.commands().handle(good, in_time(), noon(0)).await.expect_err("no way back");
    assert_eq!(world.take_one().0, "SendMessage");
}

#[tokio::test]
async fn a_message_whose_answer_comes_too_late_is_deleted() {
    // The task ends while the command runs.
    let world = World::start(|call| match call.operation() {
        "SendTaskSuccess" | "SendTaskFailure" => (400, json!({ "__type": "TaskTimedOut" })),
        _ => waiting(call),
    })
    .await;
    for method in ["pm_card_visa", "pm_other"] {
        let late = message(&command(method));
        world.commands().handle(late, in_time(), noon(0)).await.expect("let go");
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

fn dead_token(call: &Call) -> (u16, Value) {
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

fn ended(call: &Call) -> (u16, Value) {
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
    let of_the_other = |execution: Option<String>| {
        let mut body = json!({ "taskToken": "token-1", "command": cancel("a") });
        body["execution"] = json!(execution);
        message_of(&body)
    };
    let onboarding = execution(&cancel("a")).replace(":saga:", ":other-machine:");
    for (what, aws, forged) in [
        ("a random token", invalid_token as fn(&Call) -> (u16, Value), genuine.clone()),
        ("a random token, without an execution", invalid_token, of_the_other(None)),
        ("a token that nobody waits for, without an execution", dead_token, of_the_other(None)),
        (
            "another site's execution and token",
            waiting,
            of_the_other(Some(execution(&cancel("b")))),
        ),
        (
            "another site's execution, which has ended",
            ended,
            of_the_other(Some(execution(&cancel("b")))),
        ),
        ("another site's token and an execution that has ended", ended, genuine.clone()),
        ("another state machine's execution", waiting, of_the_other(Some(onboarding))),
        ("no ARN", waiting, of_the_other(Some(String::new()))),
        ("the state machine's ARN", waiting, of_the_other(Some(MACHINE.to_owned()))),
        ("a token of another machine", forbidden, genuine.clone()),
    ] {
        let world = live_site(aws).await;
        let before = world.dynamo.everything().await;
        let commands = canceller(&world.dynamo, &world.stripe, &world.aws);
        commands.handle(forged, in_time(), noon(0)).await.expect_err(what);
        assert_eq!(world.dynamo.everything().await, before, "{what}");
        assert_eq!(world.stripe.take_calls(), [""; 0], "{what}");
        assert_eq!(world.stripe.paid_for(), 1, "{what}");
        // The task whose token was stolen is not answered either.
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
        ("no execution", dead_token, body(Value::Null, &genuine)),
        ("another site", waiting, body(own.clone(), &command_of("b", "pm_card_visa"))),
        ("a cheaper plan", waiting, body(own.clone(), &with("plan", "community"))),
        ("another payer", waiting, body(own.clone(), &with("paymentMethod", "pm_victim"))),
        ("an execution that has ended", ended, body(own, &genuine)),
    ] {
        let world = World::start(aws).await;
        world.commands().handle(forged, in_time(), noon(0)).await.expect_err(what);
        assert!(world.dynamo.everything().await.values().all(Vec::is_empty), "{what}");
        assert_eq!(world.stripe.take_calls(), [""; 0], "{what}");
        assert!(take_effects(&world.aws).is_empty(), "{what}");
    }
}

#[tokio::test]
async fn the_sender_is_proved_before_every_effect_with_two_calls() {
    let world = live_site(waiting).await;
    let commands = canceller(&world.dynamo, &world.stripe, &world.aws);
    commands.handle(message(&cancel("a")), in_time(), noon(0)).await.expect("an answer");
    let calls = world.aws.take_calls();
    let operations: Vec<_> = calls.iter().map(Call::operation).collect();
    assert_eq!(operations, ["SendTaskHeartbeat", "DescribeExecution", "SendTaskSuccess"]);
    assert_eq!(calls[0].json()["taskToken"], "token-1");
    assert_eq!(world.stripe.paid_for(), 0);
}

#[tokio::test]
async fn a_genuine_command_that_can_not_be_decoded_is_answered_as_invalid() {
    let world = live_site(waiting).await;
    let commands = canceller(&world.dynamo, &world.stripe, &world.aws);
    let mut of_two_sites = cancel("a");
    of_two_sites["siteId"] = json!(saga("b").site_id);
    let message = message(&of_two_sites);
    commands.handle(message, in_time(), noon(0)).await.expect("an answer");
    let (operation, call) = world.take_one();
    assert_eq!((operation.as_str(), &call["error"]), ("SendTaskFailure", &json!("InvalidInput")));
    assert_eq!((world.stripe.take_calls(), world.stripe.paid_for()), (vec![], 1));
}

#[tokio::test]
async fn a_message_of_the_previous_version_needs_a_waiting_task() {
    let old = || message_of(&json!({ "taskToken": "token-1", "command": cancel("a") }));
    let world = live_site(waiting).await;
    let commands = canceller(&world.dynamo, &world.stripe, &world.aws);
    commands.handle(old(), in_time(), noon(0)).await.expect("an answer");
    assert_eq!(world.take_one().0, "SendTaskSuccess");
    assert_eq!(world.stripe.paid_for(), 0);
    let world = live_site(dead_token).await;
    let commands = canceller(&world.dynamo, &world.stripe, &world.aws);
    commands.handle(old(), in_time(), noon(0)).await.expect_err("nobody waits");
    assert_eq!(world.stripe.paid_for(), 1);
}

#[tokio::test]
async fn a_genuine_command_whose_task_has_ended_is_deleted_without_a_run() {
    let world = live_site(dead_token).await;
    let commands = canceller(&world.dynamo, &world.stripe, &world.aws);
    commands.handle(message(&cancel("a")), in_time(), noon(0)).await.expect("let go");
    assert!(take_effects(&world.aws).is_empty());
    assert_eq!((world.stripe.take_calls(), world.stripe.paid_for()), (vec![], 1));
}

#[tokio::test]
async fn an_execution_that_is_not_visible_yet_is_checked_again_later() {
    let world = live_site(unknown_execution).await;
    let commands = canceller(&world.dynamo, &world.stripe, &world.aws);
    let genuine = message(&cancel("a"));
    commands.handle(genuine, in_time(), noon(0)).await.expect("a later try");
    let (operation, call) = world.take_one();
    assert_eq!((operation.as_str(), &call["DelaySeconds"]), ("SendMessage", &json!(2)));
    assert_eq!(world.stripe.paid_for(), 1);
    // The execution is found.
    let found = Stub::start(waiting).await;
    let commands = canceller(&world.dynamo, &world.stripe, &found);
    commands.handle(redelivered(&call), in_time(), noon(2)).await.expect("an answer");
    assert_eq!(take_effects(&found)[0].operation(), "SendTaskSuccess");
    assert_eq!(world.stripe.paid_for(), 0);

    // The execution is never found. After its state has timed out, the message stays in the queue.
    let world = live_site(unknown_execution).await;
    let commands = canceller(&world.dynamo, &world.stripe, &world.aws);
    let day = 24 * 3600;
    let last = commands.handle(redelivered(&call), in_time(), noon(day)).await;
    last.expect("a last try");
    assert_eq!(world.take_one().0, "SendMessage");
    let error = commands.handle(redelivered(&call), in_time(), noon(day + 1)).await;
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
    let commands = canceller(&world.dynamo, &world.stripe, &world.aws);
    commands.handle(message(&cancel("a")), in_time(), noon(0)).await.expect("a later try");
    assert_eq!(world.take_one().0, "SendMessage");
    assert_eq!(world.stripe.paid_for(), 1);
}
