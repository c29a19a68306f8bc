//! Tests the comparison of the provider's subscriptions with billing's rows: disagreements are reported, and nothing
//! is changed.

mod support;

use std::time::Duration;

use billing::reconcile_subscriptions::ReconcileSubscriptions;
use contracts::{OnboardingId, SiteId, SubscriptionId, Timestamp};
use fault::{ErrorKind, Fault};
use lambda::Step;
use serde_json::{Value, json};
use support::{FakeStripe, cancel, command, command_of, initialize};
use testkit::{
    Dynamo,
    dynamo::BILLING,
    measured::measured,
    saga::run,
    sample::{self, noon, payload, saga},
};

const CARD: &str = "pm_card_visa";
/// Three hours after noon, in seconds. Changes at noon no longer count as in flight then.
const LATER: i64 = 3 * 3600;

struct World {
    dynamo: Dynamo,
    stripe: FakeStripe,
}

impl World {
    async fn start() -> Self {
        Self { dynamo: Dynamo::start().await, stripe: FakeStripe::start().await }
    }

    fn step(&self) -> ReconcileSubscriptions {
        ReconcileSubscriptions {
            billing: self.dynamo.table(BILLING),
            provider: self.stripe.provider(),
            timeout: Duration::from_secs(20),
        }
    }

    async fn reconcile(&self, now: Timestamp) -> Result<Value, ErrorKind> {
        let event = sample::event("reconcile-subscriptions").to_string();
        let event = fault::decode(&event).expect("an event");
        self.step().run(event, now).await.map(|reply| json!(reply)).map_err(|it| it.kind())
    }

    async fn report(&self) -> Value {
        self.dynamo.row(BILLING, "reconciliation#provider").await.expect("a report")
    }

    async fn findings(&self, now: Timestamp) -> Vec<(String, String)> {
        self.reconcile(now).await.expect("a report");
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let report = self.report().await;
        let findings = report["findings"].as_array().expect("findings").iter();
        findings.map(|it| (text(&it["kind"]), text(&it["providerSubscriptionId"]))).collect()
    }
}

fn site(name: &str) -> SiteId {
    saga(name).site_id
}

fn subscription(id: &str, site: &Value, created: Timestamp) -> Value {
    json!({
        "id": id, "status": "active", "created": created.seconds(), "metadata": { "siteId": site },
    })
}

#[tokio::test]
async fn agreeing_rows_on_all_pages_give_no_findings() {
    let world = World::start().await;
    let step = initialize(&world.dynamo, &world.stripe);
    for name in ["a", "b", "c", "d", "e"] {
        run(&step, &command_of(name, CARD)).await.expect("a subscription");
    }
    run(&cancel(&world.dynamo, &world.stripe), &payload(saga("e"))).await.expect("an undo");
    let foreign = json!({ "id": "sub_x", "status": "active", "created": 1, "metadata": {} });
    world.stripe.set_other_subscriptions(vec![foreign]);
    let before = world.dynamo.rows(BILLING).await.len();
    let ((), metrics) = measured(async {
        let reply = world.reconcile(noon(LATER)).await.expect("a report");
        assert_eq!(reply, json!({ "running": 4, "active": 4, "found": 0 }));
    })
    .await;
    assert_eq!(metrics.get("SubscriptionFindings").map(ToString::to_string).as_deref(), Some("0"));
    let report = world.report().await;
    assert_eq!((&report["found"], &report["foreign"]), (&json!(0), &json!(1)));
    assert_eq!(report["at"], json!(noon(LATER)));
    assert_eq!(world.dynamo.rows(BILLING).await.len(), before + 1, "the report, and nothing else");
}

#[tokio::test]
async fn each_disagreement_is_a_finding_until_it_is_resolved() {
    let world = World::start().await;
    run(&initialize(&world.dynamo, &world.stripe), &command(CARD)).await.expect("a subscription");
    let own = world.dynamo.rows(BILLING).await.into_iter().find(|row| row["status"] == "ACTIVE");
    let own = own.expect("a row")["providerSubscriptionId"].as_str().expect("text").to_owned();
    run(&cancel(&world.dynamo, &world.stripe), &payload(saga("gone"))).await.expect("a tombstone");
    let (a, gone, stranger) = (json!(site("a")), json!(site("gone")), json!(site("stranger")));
    world.stripe.set_other_subscriptions(vec![
        subscription("sub_second", &a, noon(0)),
        subscription("sub_gone", &gone, noon(0)),
        subscription("sub_stranger", &stranger, noon(0)),
        subscription("sub_young", &json!(site("young")), noon(LATER)),
    ]);
    let expected = [
        ("NO_ACTIVE_ROW", "sub_stranger"),
        ("STILL_RUNNING", "sub_gone"),
        ("DUPLICATE", "sub_second"),
    ]
    .map(|(kind, id)| (kind.to_owned(), id.to_owned()));
    assert_eq!(world.findings(noon(LATER)).await, expected);
    // A later report has the same findings, with the time at which they were first seen.
    assert_eq!(world.findings(noon(LATER + 60)).await, expected);
    let finding = &world.report().await["findings"][0];
    assert_eq!(
        (&finding["firstSeen"], &finding["lastSeen"]),
        (&json!(noon(LATER)), &json!(noon(LATER + 60)))
    );

    // The active row's own subscription is cancelled at the provider.
    world.stripe.set_other_subscriptions(Vec::new());
    let provider = world.stripe.provider();
    let mut session = provider.session(None);
    let stripe = session.client().await.expect("a client");
    let id = own.clone().try_into().expect("an id");
    stripe.cancel_subscription(&id).await.expect("cancelled");
    assert_eq!(world.findings(noon(LATER + 120)).await, [("NOT_RUNNING".to_owned(), own)]);
}

#[tokio::test]
async fn an_unfinished_initialization_is_not_a_finding() {
    let world = World::start().await;
    let lost = OnboardingId::from_site(site("lost"));
    let running = subscription("sub_lost", &json!(site("lost")), noon(0));
    world.stripe.set_other_subscriptions(vec![running]);
    let record = json!({
        "id": format!("idempotency#initialize-subscription#{lost}"), "status": "INPROGRESS",
    });
    world.dynamo.put(BILLING, record.clone()).await;
    // A row that can't be read does not stop the comparison of the others.
    let broken = format!("subscription#{}", SubscriptionId::from_onboarding(lost));
    world.dynamo.put(BILLING, json!({ "id": broken, "siteId": 7, "status": "ACTIVE" })).await;
    assert_eq!(world.findings(noon(LATER)).await, []);
    let done = json!({ "id": record["id"], "status": "COMPLETED" });
    world.dynamo.put(BILLING, done).await;
    let found = world.findings(noon(LATER + 1)).await;
    assert_eq!(found, [("NO_ACTIVE_ROW".to_owned(), "sub_lost".to_owned())]);
}

#[tokio::test]
async fn an_outage_of_the_provider_fails_the_run_and_keeps_the_report() {
    let world = World::start().await;
    world.reconcile(noon(LATER)).await.expect("a report");
    let report = world.report().await;
    world.stripe.set_outage(Some(500));
    assert_eq!(world.reconcile(noon(2 * LATER)).await, Err(ErrorKind::Transient));
    assert_eq!(world.report().await, report);
    world.stripe.set_outage(None);
    world.reconcile(noon(2 * LATER)).await.expect("a report");
    // A comparison that began earlier and ends later does not replace the report.
    let newer = world.report().await;
    world.reconcile(noon(LATER)).await.expect("no error");
    assert_eq!(world.report().await, newer);
}
