//! Tests a site's subscription: an operator never pays twice, and never pays for a site that was undone.

mod support;

use std::time::Duration;

use billing::initialize_subscription::InitializeSubscription;
use contracts::{Entity, SubscriptionId, Timestamp};
use fault::{ErrorKind, Fault};
use lambda::Step;
use serde_json::{Value, json};
use support::{CANCELLING, FakeStripe, INITIALIZING, InjectedFault, cancel, command, initialize};
use testkit::{
    Dynamo,
    dynamo::BILLING,
    saga::{Outcome, StepEvents, StepPair, check_step_contract, run},
    sample::{noon, payload, saga},
};

const CARD: &str = "pm_card_visa";

fn entity() -> Entity {
    SubscriptionId::from_onboarding(saga("a").onboarding_id).into()
}

fn undo() -> Value {
    payload(saga("a"))
}

async fn row(dynamo: &Dynamo) -> Value {
    let id = format!("subscription#{}", SubscriptionId::from_onboarding(saga("a").onboarding_id));
    dynamo.row(BILLING, &id).await.expect("a subscription")
}

/// Runs a step at this time.
async fn run_at<S: Step>(step: &S, payload: &Value, now: Timestamp) -> Outcome {
    let command = fault::decode(&payload.to_string()).expect("the step's payload");
    match step.run(command, now).await {
        Ok(reply) => Ok(json!(reply)),
        Err(fault) => Err(fault.kind()),
    }
}

/// Runs a step that crashes after the provider executed the named call, before the step gets the response.
async fn crash<S: Step>(step: &S, payload: &Value, stripe: &FakeStripe, call: &'static str) {
    stripe.fail(call, InjectedFault::NoResponse);
    let command = fault::decode(&payload.to_string()).expect("the step's payload");
    let mut running = Box::pin(step.run(command, noon(0)));
    while !stripe.take_calls().contains(&call) {
        let moment = tokio::time::timeout(Duration::from_millis(1), &mut running);
        assert!(moment.await.is_err(), "the step ended before {call}");
    }
}

#[tokio::test]
async fn initializing_and_cancelling_follow_the_contract_of_the_saga() {
    let pair = async || {
        let (dynamo, stripe) = (Dynamo::start().await, FakeStripe::start().await);
        StepPair {
            step: initialize(&dynamo, &stripe),
            undo: cancel(&dynamo, &stripe),
            dynamo,
            payload: command(CARD),
            undo_payload: undo(),
            entity: entity(),
        }
    };
    let events = StepEvents {
        done: "SubscriptionInitialized",
        undone: "SubscriptionCancelled",
        fenced: &[],
    };
    check_step_contract(pair, events).await;
}

#[tokio::test]
async fn a_subscription_is_paid_once_and_is_cancelled_by_the_undo() {
    let (dynamo, stripe) = (Dynamo::start().await, FakeStripe::start().await);
    let step = initialize(&dynamo, &stripe);
    run(&step, &command(CARD)).await.expect("a subscription");
    assert_eq!(stripe.take_calls(), INITIALIZING);
    assert_eq!((stripe.customers(), stripe.paid_for()), (1, 1));
    let active = row(&dynamo).await;
    assert_eq!(active["status"], "ACTIVE");
    let event = dynamo.events(entity()).await.remove(0).envelope().expect("an envelope").data;
    assert_eq!(event["plan"], "standard");
    assert_eq!(event["providerSubscriptionId"], active["providerSubscriptionId"]);

    // A redelivered command gets its reply from the idempotency record.
    run(&step, &command(CARD)).await.expect("the stored reply");
    assert_eq!(stripe.take_calls(), [""; 0]);

    run(&cancel(&dynamo, &stripe), &undo()).await.expect("an undo");
    assert_eq!(stripe.take_calls(), CANCELLING);
    assert_eq!((stripe.customers(), stripe.paid_for()), (0, 0));
    assert_eq!(row(&dynamo).await["status"], "CANCELLED");
    assert_eq!(dynamo.rows(BILLING).await.len(), 1, "the idempotency record is gone");
}

#[tokio::test]
async fn a_declined_card_is_final_and_leaves_nothing_behind() {
    let (dynamo, stripe) = (Dynamo::start().await, FakeStripe::start().await);
    let (step, declined) = (initialize(&dynamo, &stripe), command("pm_card_chargeDeclined"));
    assert_eq!(run(&step, &declined).await, Err(ErrorKind::CardDeclined));
    assert_eq!((stripe.customers(), stripe.paid_for()), (0, 0));
    let event = dynamo.events(entity()).await.remove(0).envelope().expect("an envelope").data;
    assert_eq!(event["error"], "CardDeclined");
    assert_eq!(event["message"], "Your card was declined.");

    let (after, calls) = (dynamo.all_rows().await, stripe.take_calls());
    assert_eq!(calls, ["customer", "attach", "list", "delete"]);
    assert_eq!(run(&step, &declined).await, Err(ErrorKind::CardDeclined));
    assert_eq!(dynamo.all_rows().await, after);
    assert_eq!(stripe.take_calls(), [""; 0]);

    run(&cancel(&dynamo, &stripe), &undo()).await.expect("an undo");
    assert_eq!(run(&step, &declined).await, Err(ErrorKind::Superseded));
    assert_eq!(dynamo.event_types(entity()).await, ["SubscriptionFailed"]);
}

#[tokio::test]
async fn an_invalid_payment_method_is_an_input_error() {
    for method in ["pm_nobody", "pm_unknown", "../customers/cus_1"] {
        let (dynamo, stripe) = (Dynamo::start().await, FakeStripe::start().await);
        let outcome = run(&initialize(&dynamo, &stripe), &command(method)).await;
        assert_eq!(outcome, Err(ErrorKind::InvalidInput), "{method}");
        assert_eq!(stripe.customers(), 0);
        assert_eq!(dynamo.event_types(entity()).await, ["SubscriptionFailed"]);
    }
}

#[tokio::test]
async fn an_outage_at_any_call_is_transient_and_the_next_attempt_creates_one_subscription() {
    for call in INITIALIZING {
        for fault in [InjectedFault::NotExecuted, InjectedFault::ResponseLost] {
            let (dynamo, stripe) = (Dynamo::start().await, FakeStripe::start().await);
            let step = initialize(&dynamo, &stripe);
            stripe.fail(call, fault);
            let outcome = run(&step, &command(CARD)).await;
            assert_eq!(outcome, Err(ErrorKind::Transient), "{call} {fault:?}");
            // The lock was released, so the next attempt need not wait until the lease ends.
            run(&step, &command(CARD)).await.expect("a subscription");
            let counts = (stripe.customers(), stripe.paid_for());
            assert_eq!(counts, (1, 1), "{call} {fault:?}");
            assert_eq!(dynamo.event_types(entity()).await, ["SubscriptionInitialized"]);
        }
    }
}

#[tokio::test]
async fn a_stored_failure_of_the_provider_is_avoided_with_other_keys() {
    for call in INITIALIZING {
        let (dynamo, stripe) = (Dynamo::start().await, FakeStripe::start().await);
        let step = initialize(&dynamo, &stripe);
        stripe.fail(call, InjectedFault::StoredError);
        // The second attempt gets the stored response and switches to other keys.
        for _ in 0..2 {
            assert_eq!(run(&step, &command(CARD)).await, Err(ErrorKind::Transient), "{call}");
        }
        run(&step, &command(CARD)).await.expect("a subscription");
        assert_eq!((stripe.customers(), stripe.paid_for()), (1, 1), "{call}");
    }
}

#[tokio::test]
async fn a_subscription_whose_response_was_lost_is_found_without_its_key() {
    let (dynamo, stripe) = (Dynamo::start().await, FakeStripe::start().await);
    let step = initialize(&dynamo, &stripe);
    stripe.fail("subscription", InjectedFault::ResponseLost);
    assert_eq!(run(&step, &command(CARD)).await, Err(ErrorKind::Transient));
    stripe.forget_keys();
    run(&step, &command(CARD)).await.expect("a subscription");
    assert_eq!((stripe.customers(), stripe.paid_for()), (1, 1));
}

#[tokio::test]
async fn after_a_crash_at_any_call_a_retry_completes_once_the_lease_ends() {
    for call in INITIALIZING {
        let (dynamo, stripe) = (Dynamo::start().await, FakeStripe::start().await);
        let step = initialize(&dynamo, &stripe);
        crash(&step, &command(CARD), &stripe, call).await;
        assert_eq!(run_at(&step, &command(CARD), noon(30)).await, Err(ErrorKind::Transient));
        run_at(&step, &command(CARD), noon(31)).await.expect("a subscription");
        assert_eq!((stripe.customers(), stripe.paid_for()), (1, 1), "{call}");
        assert_eq!(dynamo.event_types(entity()).await, ["SubscriptionInitialized"]);
    }
}

#[tokio::test]
async fn the_undo_of_a_crashed_initialization_leaves_nothing_paid_for() {
    for call in INITIALIZING {
        let (dynamo, stripe) = (Dynamo::start().await, FakeStripe::start().await);
        let (step, cancel) = (initialize(&dynamo, &stripe), cancel(&dynamo, &stripe));
        crash(&step, &command(CARD), &stripe, call).await;
        // While the crashed run may still be running, the undo can't finish.
        assert_eq!(run_at(&cancel, &undo(), noon(1)).await, Err(ErrorKind::Transient), "{call}");
        run_at(&cancel, &undo(), noon(31)).await.expect(call);
        assert_eq!(stripe.paid_for(), 0, "{call}");
        assert_eq!(row(&dynamo).await["status"], "CANCELLED");
        let late = run_at(&step, &command(CARD), noon(62)).await;
        assert_eq!(late, Err(ErrorKind::Superseded), "{call}");
        assert_eq!(stripe.paid_for(), 0, "{call}");
        assert_eq!(dynamo.event_types(entity()).await, [""; 0]);
    }
}

#[tokio::test]
async fn a_run_that_the_undo_overtakes_cleans_up_after_itself() {
    let (dynamo, stripe) = (Dynamo::start().await, FakeStripe::start().await);
    let (step, cancel) = (initialize(&dynamo, &stripe), cancel(&dynamo, &stripe));
    // The undo runs while the customer is being created, so it finds nothing to clean up.
    let held = stripe.stub.hold().await;
    let command = fault::decode(&command(CARD).to_string()).expect("a command");
    let mut running = Box::pin(step.run(command, noon(0)));
    while stripe.stub.take_calls().is_empty() {
        let moment = tokio::time::timeout(Duration::from_millis(1), &mut running);
        assert!(moment.await.is_err(), "the step ended before its first call");
    }
    assert_eq!(run_at(&cancel, &undo(), noon(1)).await, Err(ErrorKind::Transient));
    drop(held);
    let error = running.await.expect_err("the undo committed first");
    assert_eq!(error.kind(), ErrorKind::Superseded);
    run_at(&cancel, &undo(), noon(2)).await.expect("an undo");
    assert_eq!((stripe.customers(), stripe.paid_for()), (0, 0));
    assert_eq!(dynamo.event_types(entity()).await, [""; 0]);
}

#[tokio::test]
async fn a_redelivery_between_crash_and_undo_cleans_up_as_well() {
    for call in INITIALIZING {
        let (dynamo, stripe) = (Dynamo::start().await, FakeStripe::start().await);
        let (step, cancel) = (initialize(&dynamo, &stripe), cancel(&dynamo, &stripe));
        crash(&step, &command(CARD), &stripe, call).await;
        assert_eq!(run_at(&cancel, &undo(), noon(1)).await, Err(ErrorKind::Transient));
        let late = run_at(&step, &command(CARD), noon(31)).await;
        assert_eq!(late, Err(ErrorKind::Superseded), "{call}");
        run_at(&cancel, &undo(), noon(32)).await.expect(call);
        assert_eq!(stripe.paid_for(), 0, "{call}");
        assert_eq!(row(&dynamo).await["status"], "CANCELLED");
    }
}

#[tokio::test]
async fn a_failed_initialization_is_undone_at_once() {
    // The provider does not know the price: the configuration is wrong, and the saga gets an error.
    let (dynamo, stripe) = (Dynamo::start().await, FakeStripe::start().await);
    stripe.forget_prices();
    let step = initialize(&dynamo, &stripe);
    assert_eq!(run(&step, &command(CARD)).await, Err(ErrorKind::Internal));
    run_at(&cancel(&dynamo, &stripe), &undo(), noon(1)).await.expect("an undo");
    assert_eq!((stripe.customers(), stripe.paid_for()), (0, 0));
    assert_eq!(row(&dynamo).await["status"], "CANCELLED");
    assert_eq!(dynamo.event_types(entity()).await, [""; 0]);

    // The provider is down until the saga's state times out.
    let (dynamo, stripe) = (Dynamo::start().await, FakeStripe::start().await);
    stripe.fail("subscription", InjectedFault::ResponseLost);
    let step = initialize(&dynamo, &stripe);
    assert_eq!(run(&step, &command(CARD)).await, Err(ErrorKind::Transient));
    run_at(&cancel(&dynamo, &stripe), &undo(), noon(1)).await.expect("an undo");
    assert_eq!((stripe.customers(), stripe.paid_for()), (0, 0));
}

#[tokio::test]
async fn after_a_failure_or_crash_at_any_call_the_next_undo_completes() {
    for call in CANCELLING {
        for fault in [Some(InjectedFault::NotExecuted), Some(InjectedFault::ResponseLost), None] {
            let (dynamo, stripe) = (Dynamo::start().await, FakeStripe::start().await);
            run(&initialize(&dynamo, &stripe), &command(CARD)).await.expect("a subscription");
            let cancel = cancel(&dynamo, &stripe);
            if let Some(fault) = fault {
                stripe.fail(call, fault);
                assert_eq!(run(&cancel, &undo()).await, Err(ErrorKind::Transient));
            } else {
                crash(&cancel, &undo(), &stripe, call).await;
            }
            assert_eq!(dynamo.event_types(entity()).await, ["SubscriptionInitialized"]);
            run(&cancel, &undo()).await.expect(call);
            let counts = (stripe.customers(), stripe.paid_for());
            assert_eq!(counts, (0, 0), "{call} {fault:?}");
            let event_types = dynamo.event_types(entity()).await;
            assert_eq!(event_types, ["SubscriptionInitialized", "SubscriptionCancelled"]);
        }
    }
}

#[tokio::test]
async fn another_command_for_the_same_onboarding_is_refused() {
    let (dynamo, stripe) = (Dynamo::start().await, FakeStripe::start().await);
    let step: InitializeSubscription = initialize(&dynamo, &stripe);
    run(&step, &command(CARD)).await.expect("a subscription");
    assert_eq!(run(&step, &command("pm_other")).await, Err(ErrorKind::Internal));
    assert_eq!(stripe.paid_for(), 1);
}

#[tokio::test]
async fn the_payment_method_is_hidden_in_debug_output() {
    let command: billing::initialize_subscription::Command =
        fault::decode(&command("pm_card_secret").to_string()).expect("a command");
    assert!(!format!("{command:?}").contains("secret"), "{command:?}");
    let (dynamo, stripe) = (Dynamo::start().await, FakeStripe::start().await);
    initialize(&dynamo, &stripe).run(command, noon(0)).await.expect("a subscription");
    assert!(!format!("{:?}", dynamo.all_rows().await).contains("secret"));
}
