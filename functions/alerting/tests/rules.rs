//! Tests of configuring and removing a site's rules, and of projecting changed sensors into them.

use std::time::Duration;

use alerting::{
    Alerting, AlertingRow, Rule, State, configure_alerting::ConfigureAlerting,
    project_rules::ProjectRules, remove_alerting::RemoveAlerting,
};
use contracts::{
    AlertingId, EntityType, Metric, Sensor,
    effective::Values,
    events::Limit,
    inbound::MAX_SENSORS,
    sample::Sample,
    sensor::{
        Calibration, Dated, Interval, MAX_DATUM, MAX_EXTERNAL_ID, MAX_EXTERNAL_IDS, MAX_LABEL,
        MAX_METADATA_BYTES, MAX_SYSTEM, NoDataValues, SensorDescription, SensorMetadata, Stamp,
    },
};
use fault::ErrorKind;
use futures_util::future::{join, join_all};
use serde_json::{Value, json};
use store::{Commit, Transaction};
use testkit::{
    Dynamo,
    cloud::Cloud,
    consuming::{self, LatestConsumer},
    dynamo::ALERTING,
    saga::{StepEvents, StepPair, check_step_contract, run, run_retrying},
    sample::{self, WEATHER, noon, payload, payload_with_sensors, saga, sensors},
};

/// Returns a `SensorChanged` event: the sensor with this index now has this "no data" value.
fn changed(name: &str, index: usize, no_data: f64, sequence: u64) -> Value {
    let mut sensor = json!(sensors(saga(name), &WEATHER)[index]);
    sensor["label"] = "Mast".into();
    sensor["noDataValues"] = json!([{ "values": [no_data] }]);
    // The limits of the rule do not follow the event.
    sensor["max"] = json!(1);
    let data = json!({ "siteId": saga(name).site_id, "sensor": sensor });
    let mut event = sample::event_of("project-rules", saga(name), EntityType::Sensors, data);
    event["detail"]["metadata"]["sequence"] = sequence.into();
    event
}

fn configure(dynamo: &Dynamo) -> ConfigureAlerting {
    ConfigureAlerting { alerting: dynamo.table(ALERTING), outbox: dynamo.outbox() }
}

fn remove(dynamo: &Dynamo) -> RemoveAlerting {
    RemoveAlerting { alerting: dynamo.table(ALERTING), outbox: dynamo.outbox() }
}

fn project(dynamo: &Dynamo) -> ProjectRules {
    ProjectRules { alerting: dynamo.table(ALERTING) }
}

async fn configured() -> (Dynamo, ProjectRules) {
    let dynamo = Dynamo::start().await;
    run(&configure(&dynamo), &payload_with_sensors(saga("a"), &WEATHER)).await.expect("alerting");
    let step = project(&dynamo);
    (dynamo, step)
}

async fn row(dynamo: &Dynamo) -> AlertingRow {
    let key = AlertingRow::key(AlertingId::from_onboarding(saga("a").onboarding_id));
    dynamo.table(ALERTING).get(&key).await.expect("a read").expect("a row")
}

/// Returns the "no data" values of each rule, with the sequence of the event that they are from.
fn no_data(row: &AlertingRow) -> Vec<(Vec<f64>, Option<u64>)> {
    let Alerting::Configured { rules } = &row.state else { panic!("no rules") };
    let of = |rule: &Rule| {
        (rule.sensor.metadata.no_data_values_at(noon(0)).to_vec(), rule.sensor_sequence)
    };
    rules.iter().map(of).collect()
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

    assert_eq!(run(&step, &changed("a", 0, -9999.9, 2)).await, Ok(json!("Projected")));
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

/// project-rules with changes of two sensors that have limits.
struct Projecting {
    /// Whether alerting is configured before the changes.
    configured: bool,
}

impl LatestConsumer for Projecting {
    type Function = ProjectRules;

    fn start(&self, cloud: &Cloud) -> ProjectRules {
        ProjectRules { alerting: cloud.table(ALERTING) }
    }

    async fn prepare(&self, cloud: &Cloud) {
        if self.configured {
            let step =
                ConfigureAlerting { alerting: cloud.table(ALERTING), outbox: cloud.outbox() };
            run(&step, &payload_with_sensors(saga("a"), &WEATHER)).await.expect("alerting");
        }
    }

    fn histories(&self) -> Vec<Vec<Value>> {
        let of_sensor = |index: usize, changes: [(f64, u64); 3]| {
            changes.map(|(no_data, sequence)| changed("a", index, no_data, sequence)).into()
        };
        vec![
            of_sensor(0, [(-2.0, 2), (-3.0, 3), (-6.0, 6)]),
            of_sensor(1, [(-4.0, 4), (-5.0, 5), (-7.0, 7)]),
        ]
    }

    /// Returns the rows without the time, which each change increases. The rules are sorted, because they are in the order
    /// of the first changes as long as alerting is not configured.
    fn rows(&self, cloud: &Cloud) -> Vec<Value> {
        let mut rows = cloud.rows(ALERTING);
        for row in &mut rows {
            row.as_object_mut().expect("a row").remove("at").expect("a time");
            let rules = row["rules"]["L"].as_array_mut().expect("rules");
            rules.sort_by_cached_key(Value::to_string);
        }
        rows
    }
}

#[test]
fn project_rules_follows_the_contract_of_the_mode_latest() {
    for configured in [false, true] {
        consuming::check_latest(&Projecting { configured });
    }
}

#[tokio::test]
async fn an_older_or_repeated_event_changes_nothing() {
    let (dynamo, step) = configured().await;
    assert_eq!(run(&step, &changed("a", 0, -3.0, 3)).await, Ok(json!("Projected")));
    let after = row(&dynamo).await;
    for (no_data, sequence) in [(-2.0, 2), (-3.0, 3)] {
        let event = changed("a", 0, no_data, sequence);
        assert_eq!(run(&step, &event).await, Ok(json!("Unchanged")));
    }
    assert_eq!(row(&dynamo).await, after);
    assert_eq!(run(&step, &changed("a", 0, -4.0, 4)).await, Ok(json!("Projected")));
    assert_eq!(no_data(&row(&dynamo).await)[0], (vec![-4.0], Some(4)));
}

#[tokio::test]
async fn a_sensor_without_limits_and_a_closed_site_have_no_rule() {
    let (dynamo, step) = configured().await;
    assert_eq!(run(&step, &changed("a", 3, -1.0, 2)).await, Ok(json!("Unchanged")));
    run(&remove(&dynamo), &payload(saga("a"))).await.expect("an undo");
    assert_eq!(run(&step, &changed("a", 0, -1.0, 3)).await, Ok(json!("Unchanged")));
}

#[tokio::test]
async fn a_change_before_alerting_is_configured_is_kept_for_the_configuration() {
    let dynamo = Dynamo::start().await;
    let (step, payload) = (project(&dynamo), payload_with_sensors(saga("a"), &WEATHER));
    for (event, reply) in [
        (changed("a", 0, -3.0, 3), "Projected"),
        (changed("a", 0, -2.0, 2), "Unchanged"),
        // It has no limits, so it will have no rule.
        (changed("a", 3, -4.0, 4), "Projected"),
        (changed("a", 0, -5.0, 5), "Projected"),
    ] {
        assert_eq!(run(&step, &event).await, Ok(json!(reply)), "{event}");
    }
    let stored = dynamo.rows(ALERTING).await.remove(0);
    assert_eq!((&stored["status"], &stored["sequence"]), (&json!("NOT_CONFIGURED"), &json!(0)));

    let reply = run(&configure(&dynamo), &payload).await;
    let after = row(&dynamo).await;
    assert_eq!(after.sequence, 1);
    assert_eq!(no_data(&after), [(vec![-5.0], Some(5)), (vec![], None)]);
    let alerting = AlertingId::from_onboarding(saga("a").onboarding_id);
    let events = dynamo.events(alerting).await;
    assert_eq!(events.iter().map(|event| &*event.kind).collect::<Vec<_>>(), ["AlertingConfigured"]);
    // The limits are those of the registration.
    assert_eq!(events[0].envelope().expect("an envelope").data["limits"][0]["max"], 50.0);

    // A repeat has no effect, and the sequence of the kept change decides about later events.
    assert_eq!(run(&configure(&dynamo), &payload).await, reply);
    assert_eq!(run(&step, &changed("a", 0, -2.0, 2)).await, Ok(json!("Unchanged")));
    assert_eq!(row(&dynamo).await, after);
    assert_eq!(run(&step, &changed("a", 0, -6.0, 6)).await, Ok(json!("Projected")));
    assert_eq!(no_data(&row(&dynamo).await)[0], (vec![-6.0], Some(6)));
}

#[tokio::test]
async fn changes_and_the_configuration_at_the_same_time_lose_nothing() {
    let payload = payload_with_sensors(saga("a"), &WEATHER);
    for round in 0..20 {
        let dynamo = Dynamo::start().await;
        let (step, configure) = (project(&dynamo), configure(&dynamo));
        let events = [(0, -2.0, 2), (1, -3.0, 3), (0, -4.0, 4)]
            .map(|(index, no_data, sequence)| changed("a", index, no_data, sequence));
        let changes = join_all(events.iter().map(|event| run_retrying(&step, event)));
        // The configuration comes before, between and after the changes.
        let configured = async {
            tokio::time::sleep(Duration::from_micros(500 * round)).await;
            run_retrying(&configure, &payload).await
        };
        let (changes, reply) = join(changes, configured).await;
        assert!(changes.iter().all(Result::is_ok) && reply.is_ok(), "{changes:?}, {reply:?}");
        let rules = no_data(&row(&dynamo).await);
        assert_eq!(rules, [(vec![-4.0], Some(4)), (vec![-3.0], Some(3))]);
    }
}

/// Returns the step and its undo of site `a`.
fn pair(dynamo: Dynamo) -> StepPair<ConfigureAlerting, RemoveAlerting> {
    StepPair {
        step: configure(&dynamo),
        undo: remove(&dynamo),
        dynamo,
        payload: payload_with_sensors(saga("a"), &WEATHER),
        undo_payload: payload(saga("a")),
        entity: AlertingId::from_onboarding(saga("a").onboarding_id).into(),
    }
}

const EVENTS: StepEvents =
    StepEvents { done: "AlertingConfigured", undone: "AlertingRemoved", fenced: &[] };

#[tokio::test]
async fn configuring_and_removing_follow_the_contract_of_the_saga() {
    check_step_contract(async || pair(Dynamo::start().await), EVENTS).await;
}

#[tokio::test]
async fn a_configuration_that_finds_a_change_follows_the_contract_of_the_saga() {
    let pair = async || {
        let dynamo = Dynamo::start().await;
        run(&project(&dynamo), &changed("a", 0, -1.0, 2)).await.expect("a change");
        pair(dynamo)
    };
    check_step_contract(pair, EVENTS).await;
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

/// Returns the values of the first days, each valid from its day on.
fn daily<T: Clone>(days: i64, value: T) -> Vec<Dated<T>> {
    let of_day = |day| Dated { valid_from: Some(noon(day * 86_400)), value: value.clone() };
    (0..days).map(of_day).collect()
}

const CALIBRATION: Calibration = Calibration { gain: 0.998, offset: 0.3 };

/// Returns the maximum number of sensors, each with limits and these metadata, which are about as large as they may be.
fn all_sensors(metadata: &SensorMetadata) -> Vec<Sensor> {
    let bytes = metadata.bytes();
    assert!((MAX_METADATA_BYTES - 200..=MAX_METADATA_BYTES).contains(&bytes), "{bytes} bytes");
    let mut sensors = sensors(saga("a"), &[Metric::AirTemperature; MAX_SENSORS]);
    for sensor in &mut sensors {
        (sensor.min, sensor.max) = (Some(-50.0), Some(50.0));
        sensor.metadata = metadata.clone();
    }
    sensors
}

/// Returns sensors with all kinds of metadata.
fn described_sensors() -> Vec<Sensor> {
    let text = |length| "x".repeat(length);
    let external_id = |n| (format!("{n}{}", text(MAX_SYSTEM - 1)), text(MAX_EXTERNAL_ID));
    all_sensors(&SensorMetadata {
        description: SensorDescription {
            label: Some(text(MAX_LABEL)),
            stamp: Some(Stamp::End),
            report_every_seconds: Some(900),
            height_m: Some(2.0),
            datum: Some(text(MAX_DATUM)),
            external_ids: Some((0..MAX_EXTERNAL_IDS).map(external_id).collect()),
            ..SensorDescription::default()
        },
        intervals: vec![Dated::always(Interval { seconds: 60 })],
        no_data_values: vec![Dated::always(NoDataValues { values: vec![-9999.9, -7999.0] })],
        calibrations: daily(5, CALIBRATION),
    })
}

/// Returns the kilobytes of the row that were written since this function was last called.
fn written_kilobytes(dynamo: &Dynamo) -> f64 {
    // A transaction costs two units for a kilobyte.
    dynamo.take_write_units_by_index()[ALERTING] / 2.0
}

#[tokio::test]
async fn a_rule_has_only_the_metadata_that_judging_uses() {
    let dynamo = Dynamo::start().await;
    let sensors = described_sensors();
    let mut payload = payload(saga("a"));
    payload["sensors"] = json!(sensors);
    run(&configure(&dynamo), &payload).await.expect("alerting");
    let kilobytes = written_kilobytes(&dynamo);
    assert!(kilobytes < 65.0, "the row has {kilobytes} KB");

    let configured = row(&dynamo).await;
    let Alerting::Configured { rules } = &configured.state else { panic!("no rules") };
    for (rule, sensor) in rules.iter().zip(&sensors) {
        for seconds in [-1, 0, 86_400, 5 * 86_400] {
            for value in [20.0, -9999.9, -7999.0] {
                let sample = Sample::new(noon(seconds), value);
                let effective = sensor.effective(sample, Values::Calibrated);
                assert_eq!(rule.sensor.effective(sample, Values::Calibrated), effective);
            }
        }
    }

    // A row that was written with all metadata is reduced when it is written again.
    let mut large = dynamo.rows(ALERTING).await.remove(0);
    large["rules"] = json!(sensors);
    dynamo.put(ALERTING, large).await;
    let mut event = changed("a", 0, -1.0, 2);
    event["detail"]["data"]["sensor"] = json!(sensors[0]);
    assert_eq!(run(&project(&dynamo), &event).await, Ok(json!("Projected")));
    let mut expected = rules.clone();
    expected[0].sensor_sequence = Some(2);
    let Alerting::Configured { rules } = row(&dynamo).await.state else { panic!("no rules") };
    assert_eq!(rules, expected);
    assert_eq!(dynamo.rows(ALERTING).await[0]["rules"][1].get("label"), None);
}

#[tokio::test]
async fn the_row_of_a_site_with_the_most_sensors_and_a_fast_clock_fits_into_an_item() {
    let (dynamo, _) = configured().await;
    let sensors = all_sensors(&SensorMetadata {
        no_data_values: daily(14, NoDataValues { values: vec![-9999.9] }),
        calibrations: daily(20, CALIBRATION),
        ..SensorMetadata::default()
    });
    let mut after = row(&dynamo).await;
    let rule = |sensor: Sensor| {
        let mut rule = Rule::new(sensor);
        rule.state = State::Breached { limit: Limit::Max, breached_at: noon(0) };
        (rule.changed_at, rule.change_arrived_at) = (Some(noon(0)), Some(noon(0)));
        rule.sensor_sequence = Some(100);
        for minute in 0..20 {
            // The longest id of a bundle.
            let bundle = format!("{minute:064}");
            rule.ahead.add(&bundle.parse().expect("an id"), noon(minute * 60));
        }
        rule
    };
    after.state = Alerting::Configured { rules: sensors.into_iter().map(rule).collect() };
    after.sequence += 1;
    let table = dynamo.table(ALERTING);
    let key = AlertingRow::key(AlertingId::from_onboarding(saga("a").onboarding_id));
    drop(dynamo.take_write_units_by_index());
    let put = Transaction::on(&table).put_if_sequence(&table, &key, &after, 1);
    assert!(matches!(put.commit().await, Ok(Commit::Done)));
    // A single write costs a unit for a kilobyte. An item has at most 400 KB.
    let kilobytes = dynamo.take_write_units_by_index()[ALERTING];
    assert!((300.0..400.0).contains(&kilobytes), "the row has {kilobytes} KB");
}

#[tokio::test]
async fn a_sensor_of_another_site_is_refused() {
    let (_dynamo, step) = configured().await;
    let mut event = changed("a", 0, -1.0, 2);
    event["detail"]["data"]["sensor"]["sensorId"] =
        json!(sensors(saga("b"), &WEATHER)[0].sensor_id);
    assert_eq!(run(&step, &event).await, Err(ErrorKind::InvalidInput));
}
