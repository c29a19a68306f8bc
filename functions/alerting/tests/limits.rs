//! Tests of configuring and removing alerting.

use alerting::{configure_alerting::ConfigureAlerting, remove_alerting::RemoveAlerting};
use contracts::AlertingId;
use serde_json::json;
use testkit::{
    Dynamo,
    dynamo::ALERTING,
    saga::{StepEvents, StepPair, check_step_contract, run},
    sample::{WEATHER, payload, payload_with_sensors, saga, sensors},
};

fn configure(dynamo: &Dynamo) -> ConfigureAlerting {
    ConfigureAlerting { alerting: dynamo.table(ALERTING), outbox: dynamo.outbox() }
}

fn remove(dynamo: &Dynamo) -> RemoveAlerting {
    RemoveAlerting { alerting: dynamo.table(ALERTING), outbox: dynamo.outbox() }
}

#[tokio::test]
async fn configuring_and_removing_follow_the_contract_of_the_saga() {
    let pair = async || {
        let dynamo = Dynamo::start().await;
        StepPair {
            step: configure(&dynamo),
            undo: remove(&dynamo),
            dynamo,
            payload: payload_with_sensors(saga("a"), &WEATHER),
            undo_payload: payload(saga("a")),
            entity: AlertingId::from_onboarding(saga("a").onboarding_id).into(),
        }
    };
    let events = StepEvents { done: "AlertingConfigured", undone: "AlertingRemoved", fenced: &[] };
    check_step_contract(pair, events).await;
}

#[tokio::test]
async fn only_sensors_with_a_limit_are_watched() {
    let dynamo = Dynamo::start().await;
    let saga = saga("a");
    run(&configure(&dynamo), &payload_with_sensors(saga, &WEATHER)).await.expect("alerting");

    let sensors = sensors(saga, &WEATHER);
    let row = &dynamo.rows(ALERTING).await[0];
    let both = json!({
        "sensorId": sensors[0].sensor_id, "metric": "air_temperature", "unit": "Cel",
        "min": -50, "max": 50, "state": "NORMAL",
    });
    let one = json!({
        "sensorId": sensors[1].sensor_id, "metric": "air_temperature", "unit": "Cel", "max": 99.5,
        "state": "NORMAL",
    });
    assert_eq!(row["rules"], json!([both, one]));
    let event = &dynamo.events(AlertingId::from_onboarding(saga.onboarding_id)).await[0];
    let data = event.envelope().expect("an envelope").data;
    let limits = json!([
        { "sensorId": sensors[0].sensor_id, "min": -50.0, "max": 50.0 },
        { "sensorId": sensors[1].sensor_id, "max": 99.5 },
    ]);
    assert_eq!(data, json!({ "siteId": saga.site_id, "limits": limits }));
}

#[tokio::test]
async fn a_site_without_limits_is_configured_without_rules() {
    let dynamo = Dynamo::start().await;
    let mut payload = payload_with_sensors(saga("a"), &[]);
    run(&configure(&dynamo), &payload).await.expect("alerting");
    // A state machine may omit an absent field or set it to null.
    payload.as_object_mut().expect("an object").remove("causationId");
    run(&configure(&dynamo), &payload).await.expect("alerting");
    assert_eq!(dynamo.rows(ALERTING).await[0]["rules"], json!([]));
}
