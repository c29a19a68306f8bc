//! Tests the guarantees of the onboarding saga on the deployed stack.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use aws_sdk_sfn::types::ExecutionStatus;
use contracts::{Event, Metric, events::SiteCreated, names, saga::STEPS};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use tests::{
    Stack,
    api::Call,
    executions::Task,
    inventory::Inventory,
    log,
    sites::{
        DECLINED_CARD, FORWARD, GOOD_CARD, Ids, UNDO, events_done, events_undone, registration,
        residue,
    },
    stripe,
    wait::{Poll, TIMEOUT, until, until_true},
};
use uuid::Uuid;

const WEATHER: [Metric; 3] =
    [Metric::AirTemperature, Metric::RelativeHumidity, Metric::AirTemperature];

fn key() -> String {
    Uuid::new_v4().to_string()
}

/// Returns a name that no other test uses.
fn name(what: &str) -> String {
    format!("{what} {}", Uuid::new_v4().simple())
}

/// Registers a site with weather sensors, and delivers the kits for them.
async fn weather_site(stack: &Stack, what: &str, card: &str) -> Result<Ids> {
    stack.deliver(&[Metric::AirTemperature, Metric::RelativeHumidity], 2).await?;
    stack.register(&key(), &registration(&name(what), &WEATHER, card)).await
}

/// Waits until the stock is the delivered kits minus the reserved ones.
async fn assert_stock_adds_up(stack: &Stack) -> Result<()> {
    until_true("the stock to equal delivered minus reserved kits", TIMEOUT, async || {
        let inventory = Inventory::read(stack).await?;
        let difference = Inventory::difference(&inventory.stock, &inventory.unreserved);
        Ok((difference.is_empty(), format!("it differs by {difference:?}")))
    })
    .await
}

#[tokio::test]
async fn a_site_is_onboarded() -> Result<()> {
    let stack = Stack::connect().await?;
    let ids = weather_site(&stack, "success", GOOD_CARD).await?;
    let site = stack.wait_until_active(ids.site_id).await?;

    assert_eq!(site["onboarding"]["failure"], Value::Null);
    assert_eq!(site["sensors"].as_array().map(Vec::len), Some(WEATHER.len()));
    let execution = stack.wait_for_onboarding_end(ids.onboarding_id).await?;
    assert_eq!(execution.status, ExecutionStatus::Succeeded, "{execution:?}");
    assert_eq!(execution.succeeded(), FORWARD);
    assert!(stack.teardown(ids.onboarding_id).await?.is_none(), "a teardown has started");

    let saga_events = stack.assert_onboarded_once(ids).await?;
    let kinds: Vec<_> = saga_events.iter().map(|event| event.kind.as_str()).collect();
    let expected: Vec<_> =
        [SiteCreated::TYPE].into_iter().chain(STEPS.map(|step| step.done)).collect();
    assert_eq!(kinds, expected, "the events, in the order of their times");
    assert_stock_adds_up(&stack).await
}

#[tokio::test]
async fn a_declined_card_is_undone() -> Result<()> {
    let stack = Stack::connect().await?;
    let ids = weather_site(&stack, "declined", DECLINED_CARD).await?;
    let steps = [
        ("ReserveKits", "UNDONE"),
        ("ProvisionSensors", "UNDONE"),
        ("InitializeSubscription", "FAILED"),
    ];
    let site = stack.wait_for_site(ids.site_id, "REJECTED", &steps).await?;

    let failure = &site["onboarding"]["failure"];
    assert_eq!(failure["step"], "InitializeSubscription");
    assert_eq!(failure["error"], "CardDeclined");
    let execution = stack.wait_for_onboarding_end(ids.onboarding_id).await?;
    assert_eq!(execution.status, ExecutionStatus::Failed);
    assert_eq!(execution.error.as_deref(), Some("CardDeclined"), "{execution:?}");
    let cause = execution.cause.as_deref().unwrap_or_default();
    assert!(cause.starts_with("InitializeSubscription failed: CardDeclined: "), "{cause}");
    assert!(cause.ends_with("Everything was undone."), "{cause}");
    let declined =
        execution.task("InitializeSubscription").context("the execution has no such task")?;
    assert_eq!(declined.attempts, 1, "a declined card was retried: {declined:?}");
    let teardown = stack.teardown(ids.onboarding_id).await?.context("no teardown was started")?;
    assert_eq!(teardown.status, ExecutionStatus::Succeeded, "{teardown:?}");
    assert_eq!(teardown.succeeded(), UNDO);

    let saga_events = log::published_saga_events(&stack, ids.onboarding_id).await?;
    assert_eq!(
        log::by_entity(&saga_events),
        BTreeMap::from([
            ("site", vec!["SiteCreated", "SiteRejected"]),
            ("reservation", vec!["KitsReserved", "KitsReleased"]),
            ("sensors", vec!["SensorsProvisioned", "SensorsDeprovisioned"]),
            ("subscription", vec!["SubscriptionFailed"]),
        ])
    );
    assert_eq!(log::gaps(&saga_events), [""; 0]);
    assert_eq!(residue(&stack, ids).await?, []);
    assert_stock_adds_up(&stack).await
}

#[tokio::test]
async fn a_site_without_enough_kits_is_undone() -> Result<()> {
    let stack = Stack::connect().await?;
    // No other test uses this metric.
    stack.deliver(&[Metric::Turbidity], 1).await?;
    let before = Inventory::read(&stack).await?.stock[Metric::Turbidity.name()];
    let sensors = vec![Metric::Turbidity; usize::try_from(before)? + 1];
    let ids = stack.register(&key(), &registration(&name("no kits"), &sensors, GOOD_CARD)).await?;
    let site = stack.wait_for_site(ids.site_id, "REJECTED", &[("ReserveKits", "FAILED")]).await?;

    let failure = &site["onboarding"]["failure"];
    assert_eq!(failure["step"], "ReserveKits");
    assert_eq!(failure["error"], "KitsOutOfStock");
    let message = failure["message"].as_str().unwrap_or_default();
    assert!(
        message.contains(Metric::Turbidity.name()),
        "the message does not name the metric: {message}"
    );
    let execution = stack.wait_for_onboarding_end(ids.onboarding_id).await?;
    assert_eq!(execution.task("ReserveKits").and_then(Task::failure), Some("KitsOutOfStock"));
    let saga_events = log::published_saga_events(&stack, ids.onboarding_id).await?;
    assert_eq!(
        log::by_entity(&saga_events),
        BTreeMap::from([
            ("site", vec!["SiteCreated", "SiteRejected"]),
            ("reservation", vec!["StockDepleted"]),
        ])
    );
    assert_eq!(residue(&stack, ids).await?, []);
    let after = Inventory::read(&stack).await?.stock[Metric::Turbidity.name()];
    assert_eq!(after, before, "stock of {}", Metric::Turbidity);
    Ok(())
}

/// Returns the sites whose `SiteCreated` was caused by this event of another system. They are read from the event log.
async fn caused_by(stack: &Stack, event_id: &str) -> Result<Vec<Ids>> {
    let created = stack.rows_with(names::EVENTS, "type", "SiteCreated").await?;
    let details = created.iter().map(|row| -> Result<Value> {
        Ok(serde_json::from_str(row["detail"].as_str().context("an event without detail")?)?)
    });
    let details = details.collect::<Result<Vec<_>>>()?;
    let caused = details.into_iter().filter(|it| it["metadata"]["causationId"] == event_id);
    caused.map(|mut it| Ok(serde_json::from_value(it["data"].take())?)).collect()
}

#[tokio::test]
async fn a_registration_event_of_another_system_creates_one_site() -> Result<()> {
    let stack = Stack::connect().await?;
    stack.deliver(&[Metric::AirTemperature, Metric::RelativeHumidity], 2).await?;
    let name = name("by event");
    let site = registration(&name, &WEATHER, GOOD_CARD);
    let detail = json!({ "registrationId": key(), "site": site });
    let event = stack.put_event("noaa.surfrad", "SiteRegistrationRequested", &detail).await?;
    let ids = until("the site", TIMEOUT, async || {
        Ok(match caused_by(&stack, &event).await?.first() {
            Some(ids) => Poll::Ready(*ids),
            None => Poll::Pending("no SiteCreated that the event caused"),
        })
    })
    .await?;
    stack.wait_until_active(ids.site_id).await?;

    // A repeated request leads to the same site, so a system that got no response can send it again.
    let again = stack.put_event("noaa.surfrad", "SiteRegistrationRequested", &detail).await?;
    let marker = weather_site(&stack, "after the repetition", GOOD_CARD).await?;
    stack.wait_until_active(marker.site_id).await?;
    assert_eq!(caused_by(&stack, &again).await?, []);
    let rows = stack.rows_with(names::SITES, "name", &name).await?;
    assert_eq!(rows.len(), 1, "{rows:?}");
    // The same registration id from another system is another request.
    let other = stack.put_event("met.no", "SiteRegistrationRequested", &detail).await?;
    until_true("a second site", TIMEOUT, async || {
        let caused = caused_by(&stack, &other).await?;
        Ok((caused.iter().any(|other| other.site_id != ids.site_id), format!("{caused:?}")))
    })
    .await
}

#[tokio::test]
async fn a_second_site_created_starts_no_second_execution() -> Result<()> {
    let stack = Stack::connect().await?;
    let ids = weather_site(&stack, "created twice", GOOD_CARD).await?;
    let created = log::saga_events(&stack, ids.onboarding_id).await?.remove(0);
    assert_eq!(created.kind, "SiteCreated");
    let detail: Value = serde_json::from_str(&created.detail)?;

    // Once during the execution and once after it.
    stack.put_event("fieldstation.sites", "SiteCreated", &detail).await?;
    stack.wait_until_active(ids.site_id).await?;
    stack.put_event("fieldstation.sites", "SiteCreated", &detail).await?;
    let marker = weather_site(&stack, "after the second", GOOD_CARD).await?;
    stack.wait_until_active(marker.site_id).await?;

    assert_eq!(stack.onboardings_of(ids.onboarding_id).await?, 1);
    let saga_events = log::published_saga_events(&stack, ids.onboarding_id).await?;
    assert_eq!(saga_events.len(), 6, "{:?}", log::by_entity(&saga_events));
    // The repeated event is not recorded as a failure.
    let failures = stack.failures_about("start-onboarding", &ids.site_id.to_string()).await?;
    assert_eq!(failures, []);
    Ok(())
}

#[tokio::test]
async fn ten_concurrent_requests_with_one_key_create_one_site() -> Result<()> {
    let stack = Stack::connect().await?;
    stack.deliver(&[Metric::AirTemperature, Metric::RelativeHumidity], 2).await?;
    let (key, name) = (key(), name("ten at once"));
    let body = registration(&name, &WEATHER, GOOD_CARD);
    let calls = (0..10).map(|_| stack.call(Call::post_site(&key, &body)));
    let responses = try_join_all(calls).await?;

    for response in &responses {
        assert_eq!(response.status, 202, "{response}");
        assert_eq!(response.body, responses[0].body);
        assert_eq!(response.header("location"), responses[0].header("location"));
    }
    let ids = Ids::from_response(&responses[0])?;
    stack.wait_until_active(ids.site_id).await?;
    assert_eq!(stack.onboardings_of(ids.onboarding_id).await?, 1);
    assert_eq!(stack.rows_with(names::SITES, "name", &name).await?.len(), 1);
    let saga_events = log::published_saga_events(&stack, ids.onboarding_id).await?;
    assert_eq!(saga_events.len(), 6, "{:?}", log::by_entity(&saga_events));
    let objects = stripe::billing_objects(&stack, &ids.onboarding_id.to_string()).await?;
    assert_eq!((objects.customers.len(), objects.subscriptions.len()), (1, 1), "{objects:?}");

    // The same request gets the same response after the onboarding has ended.
    let late = stack.call(Call::post_site(&key, &body)).await?;
    assert_eq!((late.status, &late.body), (202, &responses[0].body));
    Ok(())
}

#[tokio::test]
async fn a_key_belongs_to_one_body() -> Result<()> {
    let stack = Stack::connect().await?;
    stack.deliver(&[Metric::AirTemperature, Metric::RelativeHumidity], 2).await?;
    let (key, name) = (key(), name("one body"));
    let body = registration(&name, &WEATHER, GOOD_CARD);
    let ids = stack.register(&key, &body).await?;
    let mut other = body.clone();
    other["plan"] = json!("community");
    let response = stack.call(Call::post_site(&key, &other)).await?;
    assert_eq!(response.status, 409, "{response}");
    assert_eq!(response.body["type"], "urn:fieldstation:problem:idempotency-key-reused");

    stack.wait_until_active(ids.site_id).await?;
    let rows = stack.rows_with(names::SITES, "name", &name).await?;
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(rows[0]["plan"], "standard");
    // The same body with other whitespace is equal.
    let same = format!(" {body:#}\n");
    let response = stack.call(Call::post_site(&key, &body).text(same)).await?;
    assert_eq!(response.status, 202, "{response}");
    Ok(())
}

#[tokio::test]
async fn a_live_site_is_changed() -> Result<()> {
    let stack = Stack::connect().await?;
    let ids = weather_site(&stack, "changed", GOOD_CARD).await?;
    let path = format!("/sites/{}", ids.site_id);
    let body = json!({
        "name": "Renamed", "contact": { "email": "desk@example.org" }, "location": { "elevationM": 1 },
    });
    stack.wait_until_active(ids.site_id).await?;

    let before = stack.call(Call::get(&path)).await?;
    let changed =
        stack.call(Call::patch(&path, body.to_string()).if_match(before.header("etag"))).await?;
    assert_eq!(changed.status, 200, "{changed}");
    let after = stack.call(Call::get(&path)).await?;
    assert_eq!(after.body, changed.body);
    for (field, value) in [
        ("/name", json!("Renamed")),
        ("/contact", json!({ "email": "desk@example.org" })),
        ("/location/elevationM", json!(1.0)),
        ("/location/latitude", before.body["location"]["latitude"].clone()),
    ] {
        assert_eq!(after.body.pointer(field), Some(&value), "{after}");
    }
    let late = stack
        .call(Call::patch(&path, r#"{"name": "Again"}"#).if_match(before.header("etag")))
        .await?;
    assert_eq!(late.status, 412, "{late}");
    // A repeated change has no effect.
    let repeated = stack.call(Call::patch(&path, body.to_string())).await?;
    assert_eq!((repeated.status, &repeated.body), (200, &after.body), "{repeated}");
    let events = log::published_saga_events(&stack, ids.onboarding_id).await?;
    assert_eq!(
        log::by_entity(&events),
        events_done(STEPS.len(), &["SiteCreated", "SiteActivated", "SiteChanged"])
    );
    assert_eq!(log::gaps(&events), [""; 0]);
    let text = format!("{events:?}");
    assert!(!text.contains("desk@example.org"), "the contact is in an event: {text}");
    Ok(())
}

#[tokio::test]
async fn a_sensor_of_a_live_site_is_changed() -> Result<()> {
    let stack = Stack::connect().await?;
    let ids = weather_site(&stack, "sensor changed", GOOD_CARD).await?;
    let site = stack.wait_until_active(ids.site_id).await?;
    let sensor = site["sensors"][0]["sensorId"].as_str().unwrap_or_default().to_owned();
    let path = format!("/sensors/{sensor}");
    let body = json!({ "label": "Mast, 2 m", "noDataValues": [-9999.9] }).to_string();
    let changed = until("the register to know the sensor", TIMEOUT, async || {
        let response = stack.call(Call::patch(&path, body.as_str())).await?;
        let is_changed = response.status == 200;
        Ok(if is_changed { Poll::Ready(response.body) } else { Poll::Pending(response) })
    })
    .await?;
    assert_eq!(changed["label"], "Mast, 2 m");
    // A repeated change has no effect.
    let repeated = stack.call(Call::patch(&path, body.as_str())).await?;
    assert_eq!((repeated.status, &repeated.body), (200, &changed), "{repeated}");

    until_true("the site to show the change", TIMEOUT, async || {
        let site = stack.call(Call::get(format!("/sites/{}", ids.site_id))).await?;
        let shown = &site.body["sensors"][0];
        let is_changed =
            shown["label"] == changed["label"] && shown["noDataValues"] == changed["noDataValues"];
        Ok((is_changed, format!("it shows {shown}")))
    })
    .await?;
    let events = log::published_saga_events(&stack, ids.onboarding_id).await?;
    assert_eq!(events.iter().filter(|event| event.kind == "SensorChanged").count(), 1);
    assert_eq!(log::gaps(&events), [""; 0]);
    Ok(())
}

#[tokio::test]
async fn a_live_site_is_decommissioned() -> Result<()> {
    let stack = Stack::connect().await?;
    let ids = weather_site(&stack, "decommissioned", GOOD_CARD).await?;
    let path = format!("/sites/{}", ids.site_id);
    stack.wait_until_active(ids.site_id).await?;

    let response = stack.call(Call::delete(&path)).await?;
    assert_eq!(response.status, 202, "{response}");
    assert_eq!(response.body["status"], "DECOMMISSIONING");
    let site = stack
        .wait_for_site(ids.site_id, "DECOMMISSIONED", &FORWARD.map(|it| (it, "UNDONE")))
        .await?;
    assert_eq!(site["onboarding"]["failure"], Value::Null);
    let teardown = stack.teardown(ids.onboarding_id).await?.context("no teardown was started")?;
    assert_eq!(teardown.succeeded(), UNDO, "{teardown:?}");
    let saga_events = log::published_saga_events(&stack, ids.onboarding_id).await?;
    assert_eq!(
        log::by_entity(&saga_events),
        events_undone(STEPS.len(), &["SiteCreated", "SiteActivated", "SiteDecommissioned"])
    );
    assert_eq!(log::gaps(&saga_events), [""; 0]);
    assert_eq!(residue(&stack, ids).await?, []);

    let again = stack.call(Call::delete(&path)).await?;
    assert_eq!((again.status, &again.body["status"]), (202, &json!("DECOMMISSIONED")), "{again}");
    let unknown = stack.call(Call::delete(format!("/sites/{}", Uuid::new_v4()))).await?;
    assert_eq!(unknown.status, 404, "{unknown}");
    Ok(())
}

#[tokio::test]
async fn sites_are_listed_page_by_page() -> Result<()> {
    let stack = Stack::connect().await?;
    let mut expected = Vec::new();
    for what in ["first", "second", "third"] {
        let ids = weather_site(&stack, &format!("{what} of a list"), GOOD_CARD).await?;
        stack.wait_until_active(ids.site_id).await?;
        expected.push(json!(ids.site_id));
    }
    let mut listed = Vec::new();
    let mut path = "/sites?status=ACTIVE&limit=2".to_owned();
    loop {
        let page = stack.call(Call::get(&path)).await?;
        assert_eq!(page.status, 200, "{page}");
        let sites = page.body["sites"].as_array().context("sites")?;
        assert!(sites.len() <= 2, "{page}");
        for site in sites {
            assert_eq!(site["status"], "ACTIVE");
            listed.push(site["siteId"].clone());
        }
        match page.body["next"].as_str() {
            Some(next) => path = format!("/sites?status=ACTIVE&limit=2&next={next}"),
            None => break,
        }
    }
    for site in expected {
        assert_eq!(listed.iter().filter(|it| **it == site).count(), 1, "{site} in {listed:?}");
    }
    Ok(())
}
