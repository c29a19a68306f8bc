//! Tests of provisioning and deprovisioning a site's sensors.

use contracts::SensorsId;
use devices::{deprovision_sensors::DeprovisionSensors, provision_sensors::ProvisionSensors};
use serde_json::json;
use testkit::{
    Dynamo,
    dynamo::DEVICES,
    saga::{StepEvents, StepPair, check_step_contract, run},
    sample::{WEATHER, payload, payload_with_sensors, saga, sensors},
};

fn provision(dynamo: &Dynamo) -> ProvisionSensors {
    ProvisionSensors { devices: dynamo.table(DEVICES), outbox: dynamo.outbox() }
}

fn deprovision(dynamo: &Dynamo) -> DeprovisionSensors {
    DeprovisionSensors { devices: dynamo.table(DEVICES), outbox: dynamo.outbox() }
}

#[tokio::test]
async fn provisioning_and_deprovisioning_follow_the_contract_of_the_saga() {
    let pair = async || {
        let dynamo = Dynamo::start().await;
        StepPair {
            step: provision(&dynamo),
            undo: deprovision(&dynamo),
            dynamo,
            payload: payload_with_sensors(saga("a"), &WEATHER),
            undo_payload: payload(saga("a")),
            entity: SensorsId::from_onboarding(saga("a").onboarding_id).into(),
        }
    };
    let events =
        StepEvents { done: "SensorsProvisioned", undone: "SensorsDeprovisioned", fenced: &[] };
    check_step_contract(pair, events).await;
}

#[tokio::test]
async fn the_events_have_the_sensors() {
    let dynamo = Dynamo::start().await;
    let saga = saga("a");
    run(&provision(&dynamo), &payload_with_sensors(saga, &WEATHER)).await.expect("sensors");
    run(&deprovision(&dynamo), &payload(saga)).await.expect("an undo");

    let sensors = sensors(saga, &WEATHER);
    let ids: Vec<_> = sensors.iter().map(|sensor| sensor.sensor_id).collect();
    let events = dynamo.events(SensorsId::from_onboarding(saga.onboarding_id)).await;
    let [provisioned, deprovisioned] = &events[..] else { panic!("two events: {events:?}") };
    let data = provisioned.envelope().expect("an envelope").data;
    assert_eq!(data, json!({ "siteId": saga.site_id, "sensors": sensors }));
    let data = deprovisioned.envelope().expect("an envelope").data;
    assert_eq!(data, json!({ "siteId": saga.site_id, "sensorIds": ids }));
}

#[tokio::test]
async fn a_tombstone_does_not_affect_other_sagas() {
    let dynamo = Dynamo::start().await;
    run(&deprovision(&dynamo), &payload(saga("a"))).await.expect("an undo");
    run(&provision(&dynamo), &payload_with_sensors(saga("b"), &WEATHER)).await.expect("sensors");
}
