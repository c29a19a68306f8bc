//! Tests messages with the ids of two different sites: every step refuses them, the failure is recorded with its
//! payload, and the live site does not change.

use anyhow::{Context, Result};
use contracts::{Metric, OperatorId, SiteId};
use serde_json::{Value, json};
use tests::{
    Stack, log,
    sites::{DECLINED_CARD, GOOD_CARD, Ids, UNDO, registration},
};
use uuid::Uuid;

async fn live_site(stack: &Stack, name: &str) -> Result<Ids> {
    stack.deliver(&[Metric::WindSpeed], 1).await?;
    let body = registration(name, &[Metric::WindSpeed], GOOD_CARD);
    let ids = stack.register(&Uuid::new_v4().to_string(), &body).await?;
    stack.assert_onboarded_once(ids).await?;
    Ok(ids)
}

/// Returns the `detail` of the event that created the site, with another onboarding id.
async fn created_with_another_onboarding(stack: &Stack, ids: Ids, card: &str) -> Result<Value> {
    let saga_events = log::published_saga_events(stack, ids.onboarding_id).await?;
    let created = saga_events
        .iter()
        .find(|event| event.kind == "SiteCreated")
        .context("no event SiteCreated")?;
    let mut detail: Value = serde_json::from_str(&created.detail)?;
    let onboarding = Uuid::new_v4().to_string();
    detail["metadata"]["correlationId"] = onboarding.clone().into();
    detail["data"]["onboardingId"] = onboarding.into();
    detail["data"]["paymentMethod"] = card.into();
    Ok(detail)
}

#[tokio::test]
async fn a_copy_of_a_sites_event_with_another_onboarding_is_recorded_and_changes_nothing()
-> Result<()> {
    let stack = Stack::connect().await?;
    let ids = live_site(&stack, "copied").await?;
    for card in [DECLINED_CARD, GOOD_CARD] {
        let detail = created_with_another_onboarding(&stack, ids, card).await?;
        let onboarding =
            detail["data"]["onboardingId"].as_str().context("no onboarding id")?.to_owned();
        stack.put_event("fieldstation.sites", "SiteCreated", &detail).await?;
        let failure = stack.failure_about("start-onboarding", &onboarding).await?;
        assert_eq!(failure.error.name, "InvalidInput", "{failure}");
        assert!(
            failure.error.message.contains("is not the id that was expected for site"),
            "{failure}"
        );
        assert_eq!(failure.payload()?["detail"], detail);
        assert!(stack.onboarding(onboarding.parse()?).await?.is_none(), "a saga was started");
    }
    stack.assert_onboarded_once(ids).await?;
    Ok(())
}

#[tokio::test]
async fn a_teardown_of_a_live_site_under_another_onboarding_undoes_nothing() -> Result<()> {
    let stack = Stack::connect().await?;
    let ids = live_site(&stack, "torn down under another id").await?;
    let foreign_onboarding = Uuid::new_v4().to_string();
    let input = json!({ "onboardingId": foreign_onboarding, "siteId": ids.site_id });
    stack.start_teardown(&input.to_string()).await?;
    let failure = stack.failure_about("site-teardown", &foreign_onboarding).await?;
    assert_eq!(failure.kind, "EXECUTION_FAILED", "{failure}");
    assert_eq!(failure.site_id, Some(ids.site_id.to_string()), "{failure}");
    let message = &failure.error.message;
    for step in UNDO {
        assert!(message.contains(step), "the error does not name {step}: {failure}");
    }
    stack.assert_onboarded_once(ids).await?;
    Ok(())
}

#[tokio::test]
async fn a_step_event_that_names_another_site_is_not_shown_at_that_site() -> Result<()> {
    let stack = Stack::connect().await?;
    let ids = live_site(&stack, "named by a foreign event").await?;
    let saga_events = log::published_saga_events(&stack, ids.onboarding_id).await?;
    let event = saga_events
        .iter()
        .find(|event| event.kind == "KitsReserved")
        .context("no event KitsReserved")?;
    let mut detail: Value = serde_json::from_str(&event.detail)?;
    let foreign_site =
        SiteId::registered(OperatorId::DEFAULT, "foreign", &Uuid::new_v4().to_string());
    detail["data"]["siteId"] = json!(foreign_site);
    stack.put_event("fieldstation.inventory", "KitsReserved", &detail).await?;
    let failure = stack.failure_about("project-site", &foreign_site.to_string()).await?;
    assert_eq!(failure.error.name, "InvalidInput", "{failure}");
    Ok(())
}
