//! Registering and reading sites.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use contracts::{
    EntityType, Metric, OnboardingId, SiteId,
    saga::{STEPS, SagaStep, undo_order},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Stack,
    api::{Call, Response},
    executions::Execution,
    log::{self, LoggedEvent},
    stripe,
    wait::{Poll, TIMEOUT, until},
};

/// A card that is accepted.
pub const GOOD_CARD: &str = "pm_card_visa";
/// A card that is declined.
pub const DECLINED_CARD: &str = "pm_card_visa_chargeDeclined";

const STEP_COUNT: usize = STEPS.len();

/// The steps of an onboarding, in order.
pub const FORWARD: [&str; STEP_COUNT] = {
    let mut names = [""; STEP_COUNT];
    let mut index = 0;
    while index < STEP_COUNT {
        names[index] = STEPS[index].name;
        index += 1;
    }
    names
};
/// The undos of a teardown, in order.
pub const UNDO: [&str; STEP_COUNT] = {
    let mut names = [""; STEP_COUNT];
    let mut index = 0;
    while index < STEP_COUNT {
        names[index] = undo_order()[index].undo;
        index += 1;
    }
    names
};

/// The event types of an onboarding, by the names of their entities.
pub type EventsByEntity = BTreeMap<&'static str, Vec<&'static str>>;

/// Returns the expected events if the first `steps` steps were done. `site_events` are the events of the site.
#[must_use]
pub fn events_done(steps: usize, site_events: &[&'static str]) -> EventsByEntity {
    let mut events = EventsByEntity::from([(EntityType::Site.name(), site_events.to_vec())]);
    for step in STEPS.iter().take(steps).filter(|step| !step.is_of_site()) {
        events.entry(step.entity.name()).or_default().push(step.done);
    }
    events
}

/// Returns the expected events if the first `steps` steps were done and undone. `site_events` are the events of the site.
#[must_use]
pub fn events_undone(steps: usize, site_events: &[&'static str]) -> EventsByEntity {
    let mut events = events_done(steps, site_events);
    let done = &STEPS[..steps];
    for step in undo_order().iter().filter(|step| !step.is_of_site() && done.contains(step)) {
        events.entry(step.entity.name()).or_default().extend(step.undone);
    }
    events
}

/// Returns a registration with a sensor for each metric, in the metric's usual unit.
#[must_use]
pub fn registration(name: &str, metrics: &[Metric], card: &str) -> Value {
    let sensors: Vec<_> = metrics
        .iter()
        .map(|metric| json!({ "metric": metric, "unit": metric.units()[0] }))
        .collect();
    json!({
        "name": name,
        "operator": "NOAA Global Monitoring Laboratory",
        "location": { "latitude": 40.05155, "longitude": -88.37325, "elevationM": 230.0 },
        "sensors": sensors,
        "plan": "standard",
        "paymentMethod": card,
    })
}

/// The ids of a site and its saga.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ids {
    /// The site.
    pub site_id: SiteId,
    /// Its saga.
    pub onboarding_id: OnboardingId,
}

impl Ids {
    /// Parses the response of `POST /sites`.
    pub fn from_response(response: &Response) -> Result<Self> {
        if response.status != 202 {
            bail!("POST /sites returned {response}");
        }
        serde_json::from_value(response.body.clone())
            .context("the response of POST /sites has no ids")
    }
}

impl Stack {
    /// Registers a site over HTTP.
    pub async fn register(&self, key: &str, registration: &Value) -> Result<Ids> {
        Ids::from_response(&self.call(Call::post_site(key, registration)).await?)
    }

    /// Calls `GET /sites/{siteId}`.
    pub async fn site(&self, site: SiteId) -> Result<Response> {
        self.call(Call::get(format!("/sites/{site}"))).await
    }

    /// Waits until the site has this status and its onboarding these steps: `(step, status)`. Returns the response of
    /// `GET /sites/{siteId}`.
    pub async fn wait_for_site(
        &self,
        site: SiteId,
        status: &str,
        steps: &[(&str, &str)],
    ) -> Result<Value> {
        until(
            &format!("site {site} to be {status} with the steps {steps:?}"),
            TIMEOUT,
            async || {
                let response = self.site(site).await?;
                let actual =
                    response.body["onboarding"]["steps"].as_array().map_or(&[][..], Vec::as_slice);
                let same = actual.len() == steps.len()
                    && actual.iter().zip(steps).all(|(step, (name, status))| {
                        step["name"] == *name && step["status"] == *status
                    });
                Ok(if response.body["status"] == status && same {
                    Poll::Ready(response.body)
                } else {
                    Poll::Pending(response)
                })
            },
        )
        .await
    }

    /// Waits until the site is active and all steps of its onboarding are completed.
    pub async fn wait_until_active(&self, site: SiteId) -> Result<Value> {
        self.wait_for_site(site, "ACTIVE", &FORWARD.map(|step| (step, "COMPLETED"))).await
    }

    /// Checks that the site is active and everything was done once: one onboarding, the events of each entity without
    /// a gap, one customer with one subscription. Returns the events.
    pub async fn assert_onboarded_once(&self, ids: Ids) -> Result<Vec<LoggedEvent>> {
        self.wait_until_active(ids.site_id).await?;
        let onboardings = self.onboardings_of(ids.onboarding_id).await?;
        ensure!(onboardings == 1, "{onboardings} onboardings of {ids:?}, expected 1");
        let saga_events = log::published_saga_events(self, ids.onboarding_id).await?;
        let events = events_done(STEP_COUNT, &["SiteCreated", "SiteActivated"]);
        ensure!(
            log::by_entity(&saga_events) == events,
            "{ids:?}: {:?}",
            log::by_entity(&saga_events)
        );
        ensure!(log::gaps(&saga_events).is_empty(), "{ids:?}: {:?}", log::gaps(&saga_events));
        let objects = stripe::billing_objects(self, &ids.onboarding_id.to_string()).await?;
        let once = (objects.customers.len(), objects.subscriptions.len()) == (1, 1);
        ensure!(once, "expected one customer with one subscription for {ids:?}: {objects:?}");
        Ok(saga_events)
    }

    /// Waits until the onboarding's execution has ended, with any result.
    pub async fn wait_for_onboarding_end(&self, onboarding: OnboardingId) -> Result<Execution> {
        until(&format!("onboarding {onboarding} to end"), TIMEOUT, async || {
            let execution = self.onboarding(onboarding).await?;
            Ok(match execution {
                Some(execution) if execution.status != ExecutionStatus::Running => {
                    Poll::Ready(execution)
                }
                other => Poll::Pending(format!("{other:?}")),
            })
        })
        .await
    }
}

/// Returns what an undone onboarding left: `(table or "payment provider", row or objects)`.
pub async fn residue(stack: &Stack, ids: Ids) -> Result<Vec<(String, String)>> {
    let onboarding = ids.onboarding_id.to_string();
    let mut residue = Vec::new();
    for step in STEPS.iter().filter(|step| !step.is_of_site()) {
        let table = table_of(step);
        // Checks every row that contains the onboarding's id, including idempotency records.
        let rows = stack.rows(&table).await?.into_iter().filter(|row| !is_tombstone(step, row));
        let rows = rows.map(|row| row.to_string()).filter(|row| row.contains(&onboarding));
        residue.extend(rows.map(|row| (table.clone(), row)));
    }
    let objects = stripe::billing_objects(stack, &onboarding).await?;
    if objects != stripe::BillingObjects::default() {
        residue.push(("payment provider".to_owned(), format!("{objects:?}")));
    }
    Ok(residue)
}

/// Returns the name of the table of the step's service, without the environment.
#[must_use]
pub fn table_of(step: &SagaStep) -> String {
    step.entity.service().to_owned()
}

fn is_tombstone(step: &SagaStep, row: &Value) -> bool {
    row["status"].as_str().is_some_and(|status| step.tombstones.contains(&status))
}
