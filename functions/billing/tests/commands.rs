//! Billing's commands over the queue: answered once the result is committed, and answered again.

mod support;

use std::time::Duration;

use billing::{commands::Commands, initialize_subscription::InitializeSubscription};
use contracts::SubscriptionId;
use lambda::Deadline;
use serde_json::{Value, json};
use support::{FakeStripe, Trouble, command, consumer, message, redelivered};
use testkit::{
    Dynamo,
    dynamo::BILLING,
    http::{Call, Stub},
    sample::{noon, saga},
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
        let calls = self.aws.take_calls();
        assert_eq!(calls.len(), 1, "{calls:?}");
        (calls[0].operation().to_owned(), calls[0].json())
    }
}

/// As much time as the function has.
fn in_time() -> Deadline {
    Deadline::after(Duration::from_secs(19))
}

fn fine(_: &Call) -> (u16, Value) {
    (200, json!({ "MessageId": "1" }))
}

#[tokio::test]
async fn a_result_is_answered_and_answered_again() {
    let world = World::start(fine).await;
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
        let id = SubscriptionId::of(saga("a").onboarding_id);
        assert_eq!(output, json!({ "subscriptionId": id }));
    }
    assert_eq!(world.stripe.paid_for(), 1);
}

#[tokio::test]
async fn a_decline_is_answered_by_its_name_and_answered_again() {
    let world = World::start(fine).await;
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
async fn a_slow_provider_sends_the_command_back_before_the_time_runs_out() {
    let world = World::start(fine).await;
    world.stripe.fail("customer", Trouble::Silent);
    // Two of these three seconds are kept for the queue.
    let deadline = Deadline::after(Duration::from_secs(3));
    let commands = world.commands();
    commands
        .handle(message(&command("pm_card_visa")), deadline, noon(0))
        .await
        .expect("a later try");
    assert_eq!(world.take_one().0, "SendMessage");
    assert!(!deadline.passed());
}

#[tokio::test]
async fn an_outage_sends_the_command_back_with_a_growing_delay_until_the_patience_ends() {
    let world = World::start(fine).await;
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
    // The state waits for an hour: nobody would hear of a later try.
    world.stripe.fail("customer", Trouble::Refused);
    world.commands().handle(next, in_time(), noon(3601)).await.expect("an answer");
    let (operation, call) = world.take_one();
    assert_eq!((operation.as_str(), &call["error"]), ("SendTaskFailure", &json!("Transient")));
    assert!(call["cause"].as_str().expect("text").contains("status 500: down"), "{call}");
}

#[tokio::test]
async fn what_is_broken_or_can_not_be_answered_stays_in_the_queue() {
    let world = World::start(fine).await;
    let mut broken = message(&command("pm_card_visa"));
    broken.body = Some(r#"{"taskToken": "t"}"#.to_owned());
    let error = world.commands().handle(broken, in_time(), noon(0)).await.expect_err("no command");
    assert!(error.contains("missing field `command`"), "{error}");
    assert!(world.aws.take_calls().is_empty());

    // Neither the answer nor the way back to the queue gets through.
    let world = World::start(|_| (500, json!({}))).await;
    let good = message(&command("pm_card_visa"));
    world.commands().handle(good.clone(), in_time(), noon(0)).await.expect_err("no answer");
    let (operation, _) = world.take_one();
    assert_eq!(operation, "SendTaskSuccess");
    let world = World::start(|_| (500, json!({}))).await;
    world.stripe.fail("customer", Trouble::Refused);
    world.commands().handle(good, in_time(), noon(0)).await.expect_err("no way back");
    assert_eq!(world.take_one().0, "SendMessage");
}

#[tokio::test]
async fn an_answer_that_nobody_waits_for_is_not_kept() {
    let world = World::start(|_| (400, json!({ "__type": "TaskTimedOut" }))).await;
    world
        .commands()
        .handle(message(&command("pm_card_visa")), in_time(), noon(0))
        .await
        .expect("let go");
    world
        .commands()
        .handle(message(&command("pm_other")), in_time(), noon(0))
        .await
        .expect("let go");
    let calls = world.aws.take_calls();
    let operations: Vec<_> = calls.iter().map(Call::operation).collect();
    assert_eq!(operations, ["SendTaskSuccess", "SendTaskFailure"]);
}
