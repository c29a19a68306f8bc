//! Tests of projecting changed sensors into the rules.

use alerting::{
    Alerting, AlertingRow, State, configure_alerting::ConfigureAlerting,
    project_rules::ProjectRules, remove_alerting::RemoveAlerting,
};
use contracts::{AlertingId, EntityType, Sensor, events::Limit};
use fault::ErrorKind;
use serde_json::{Value, json};
use store::{Commit, Transaction};
use testkit::{
    Dynamo,
    dynamo::ALERTING,
    saga::run,
    sample::{self, WEATHER, noon, payload, payload_with_sensors, saga, sensors},
};

/// Returns the event that the first sensor of the site has this label and "no data" value.
fn changed(name: &str, label: &str, sequence: u64) -> Value {
    let mut sensor = json!(sensors(saga(name), &WEATHER)[0]);
    sensor["label"] = label.into();
    sensor["noDataValues"] = json!([{ "values": [-9999.9] }]);
    // The limits of the rule do not follow the event.
    sensor["max"] = json!(1);
    let data = json!({ "siteId": saga(name).site_id, "sensor": sensor });
    let mut event = sample::event_of("project-rules", saga(name), EntityType::Sensors, data);
    event["detail"]["metadata"]["sequence"] = sequence.into();
    event
}

async fn configured() -> (Dynamo, ProjectRules) {
    let dynamo = Dynamo::start().await;
    let step = ConfigureAlerting { alerting: dynamo.table(ALERTING), outbox: dynamo.outbox() };
    run(&step, &payload_with_sensors(saga("a"), &WEATHER)).await.expect("alerting");
    let step = ProjectRules { alerting: dynamo.table(ALERTING) };
    (dynamo, step)
}

async fn row(dynamo: &Dynamo) -> AlertingRow {
    let key = AlertingRow::key(AlertingId::from_onboarding(saga("a").onboarding_id));
    dynamo.table(ALERTING).get(&key).await.expect("a read").expect("a row")
}

/// Returns the label of the first rule's sensor.
async fn label(dynamo: &Dynamo) -> Option<String> {
    let Alerting::Configured { rules } = row(dynamo).await.state else { panic!("no rules") };
    rules[0].sensor.metadata.description.label.clone()
}

#[tokio::test]
async fn a_changed_sensor_changes_its_rule_and_not_the_state() {
    let (dynamo, step) = configured().await;
    let mut before = row(&dynamo).await;
    // The sensor is beyond its upper limit.
    let breached = State::Breached { limit: Limit::Max, breached_at: noon(7) };
    let Alerting::Configured { rules } = &mut before.state else { panic!("no rules") };
    rules[0].state = breached;
    let table = dynamo.table(ALERTING);
    let key = AlertingRow::key(AlertingId::from_onboarding(saga("a").onboarding_id));
    let commit = Transaction::on(&table).put_if_sequence(&table, &key, &before, 1).commit().await;
    assert!(matches!(commit, Ok(Commit::Done)));

    assert_eq!(run(&step, &changed("a", "Mast", 2)).await, Ok(json!("Projected")));
    let after = row(&dynamo).await;
    assert_eq!(after.sequence, before.sequence);
    assert!(after.at > before.at);
    let (Alerting::Configured { rules: before }, Alerting::Configured { rules: after }) =
        (before.state, after.state)
    else {
        panic!("no rules")
    };
    assert_eq!(after[1..], before[1..]);
    assert_eq!((after[0].state, after[0].sensor_sequence), (breached, Some(2)));
    let Sensor { max, metadata, .. } = &after[0].sensor;
    assert_eq!((*max, metadata.no_data_values_at(noon(0))), (Some(50.0), &[-9999.9][..]));
}

#[tokio::test]
async fn an_older_or_repeated_event_changes_nothing() {
    let (dynamo, step) = configured().await;
    assert_eq!(run(&step, &changed("a", "third", 3)).await, Ok(json!("Projected")));
    let after = row(&dynamo).await;
    for (label, sequence) in [("second", 2), ("third", 3)] {
        assert_eq!(run(&step, &changed("a", label, sequence)).await, Ok(json!("Unchanged")));
    }
    assert_eq!(row(&dynamo).await, after);
    assert_eq!(run(&step, &changed("a", "fourth", 4)).await, Ok(json!("Projected")));
    assert_eq!(label(&dynamo).await.as_deref(), Some("fourth"));
}

#[tokio::test]
async fn a_sensor_without_limits_and_a_closed_site_have_no_rule() {
    let (dynamo, step) = configured().await;
    let mut event = changed("a", "Barometer", 2);
    event["detail"]["data"]["sensor"]["sensorId"] =
        json!(sensors(saga("a"), &WEATHER)[3].sensor_id);
    assert_eq!(run(&step, &event).await, Ok(json!("Unchanged")));
    let undo = RemoveAlerting { alerting: dynamo.table(ALERTING), outbox: dynamo.outbox() };
    run(&undo, &payload(saga("a"))).await.expect("an undo");
    assert_eq!(run(&step, &changed("a", "Mast", 3)).await, Ok(json!("Unchanged")));
}

#[tokio::test]
async fn a_change_before_alerting_is_configured_is_retried() {
    let (_dynamo, step) = configured().await;
    assert_eq!(run(&step, &changed("b", "Mast", 2)).await, Err(ErrorKind::Transient));
}

#[tokio::test]
async fn a_sensor_of_another_site_is_refused() {
    let (_dynamo, step) = configured().await;
    let mut event = changed("a", "Mast", 2);
    event["detail"]["data"]["sensor"]["sensorId"] =
        json!(sensors(saga("b"), &WEATHER)[0].sensor_id);
    assert_eq!(run(&step, &event).await, Err(ErrorKind::InvalidInput));
}
