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
    api::{Answer, Call},
    executions::Execution,
    log::{self, LoggedEvent},
    stripe,
    wait::{Look, TIMEOUT, until},
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

/// Returns the expected events if the first `steps` steps were done. `of_site` are the events of the site.
#[must_use]
pub fn events_done(steps: usize, of_site: &[&'static str]) -> EventsByEntity {
    let mut events = EventsByEntity::from([(EntityType::Site.name(), of_site.to_vec())]);
    for step in STEPS.iter().take(steps).filter(|step| !step.is_of_site()) {
        events.entry(step.entity.name()).or_default().push(step.done);
    }
    events
}

/// Returns the expected events if the first `steps` steps were done and undone. `of_site` are the events of the site.
#[must_use]
pub fn events_undone(steps: usize, of_site: &[&'static str]) -> EventsByEntity {
    let mut events = events_done(steps, of_site);
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
    pub fn accepted(answer: &Answer) -> Result<Self> {
        if answer.status != 202 {
            bail!("POST /sites was answered with {answer}");
        }
        serde_json::from_value(answer.body.clone()).context("the answer to POST /sites")
    }
}

impl Stack {
    /// Registers a site over HTTP.
    pub async fn register(&self, key: &str, registration: &Value) -> Result<Ids> {
        Ids::accepted(&self.call(Call::post_site(key, registration)).await?)
    }

    /// Calls `GET /sites/{siteId}`.
    pub async fn site(&self, site: SiteId) -> Result<Answer> {
        self.call(Call::get(format!("/sites/{site}"))).await
    }

    /// Waits until the site has this status and its onboarding these steps: `(step, status)`. Returns the response of
    /// `GET /sites/{siteId}`.
    pub async fn site_as(
        &self,
        site: SiteId,
        status: &str,
        steps: &[(&str, &str)],
    ) -> Result<Value> {
        until(&format!("site {site} to be {status} with {steps:?}"), TIMEOUT, async || {
            let answer = self.site(site).await?;
            let told = answer.body["onboarding"]["steps"].as_array().map_or(&[][..], Vec::as_slice);
            let same = told.len() == steps.len()
                && told.iter().zip(steps).all(|(told, (name, status))| {
                    told["name"] == *name && told["status"] == *status
                });
            Ok(if answer.body["status"] == status && same {
                Look::Found(answer.body)
            } else {
                Look::Saw(answer)
            })
        })
        .await
    }

    /// Waits until the site is active and all steps of its onboarding are completed.
    pub async fn site_active(&self, site: SiteId) -> Result<Value> {
        self.site_as(site, "ACTIVE", &FORWARD.map(|step| (step, "COMPLETED"))).await
    }

    /// Checks that the site is active and everything was done once: one onboarding, the events of each entity without
    /// a gap, one customer with one subscription. Returns the events.
    pub async fn onboarded_once(&self, ids: Ids) -> Result<Vec<LoggedEvent>> {
        self.site_active(ids.site_id).await?;
        let onboardings = self.onboardings_of(ids.onboarding_id).await?;
        ensure!(onboardings == 1, "{onboardings} onboardings of {ids:?}");
        let story = log::published_story(self, ids.onboarding_id).await?;
        let events = events_done(STEP_COUNT, &["SiteCreated", "SiteActivated"]);
        ensure!(log::by_entity(&story) == events, "{ids:?}: {:?}", log::by_entity(&story));
        ensure!(log::gaps(&story).is_empty(), "{ids:?}: {:?}", log::gaps(&story));
        let billed = stripe::billed(self, &ids.onboarding_id.to_string()).await?;
        let once = (billed.customers.len(), billed.subscriptions.len()) == (1, 1);
        ensure!(once, "{ids:?}: {billed:?}");
        Ok(story)
    }

    /// Waits until the onboarding's execution has ended, with any result.
    pub async fn onboarding_over(&self, onboarding: OnboardingId) -> Result<Execution> {
        until(&format!("onboarding {onboarding} to be over"), TIMEOUT, async || {
            let execution = self.onboarding(onboarding).await?;
            Ok(match execution {
                Some(execution) if execution.status != ExecutionStatus::Running => {
                    Look::Found(execution)
                }
                other => Look::Saw(format!("{other:?}")),
            })
        })
        .await
    }
}

/// Returns what is left of an undone onboarding, table by table: `(where, what)`.
pub async fn residue(stack: &Stack, ids: Ids) -> Result<Vec<(String, String)>> {
    let onboarding = ids.onboarding_id.to_string();
    let mut left = Vec::new();
    for step in STEPS.iter().filter(|step| !step.is_of_site()) {
        let table = table_of(step);
        // Checks every row that contains the onboarding's id, including idempotency records.
        let rows = stack.rows(&table).await?.into_iter().filter(|row| !is_tombstone(step, row));
        let rows = rows.map(|row| row.to_string()).filter(|row| row.contains(&onboarding));
        left.extend(rows.map(|row| (table.clone(), row)));
    }
    let billed = stripe::billed(stack, &onboarding).await?;
    if billed != stripe::Billed::default() {
        left.push(("payment provider".to_owned(), format!("{billed:?}")));
    }
    Ok(left)
}

/// Returns the name of the table of the step's service, without the environment.
#[must_use]
pub fn table_of(step: &SagaStep) -> String {
    step.entity.service().to_owned()
}

fn is_tombstone(step: &SagaStep, row: &Value) -> bool {
    row["status"].as_str().is_some_and(|status| step.tombstones.contains(&status))
}
