//! Metadata of sensors: their JSON, their limits, and changes.

use contracts::{
    ContextWithSensors, Metric, OperatorId, SagaContext, Sensor, SensorId, SiteId, Timestamp,
    events::{SensorsProvisioned, SiteCreated},
    inbound::{MAX_NAME, MAX_SENSORS, SensorRequest, SiteRegistration},
    input::{self, FieldError, join_errors},
    sensor::{
        Dated, MAX_DATED, MAX_METADATA_BYTES, SensorChange, SensorChangeRule, SensorMetadata,
        valid_at,
    },
};
use serde_json::{Value, json};
use testkit::golden;

const HERE: &str = env!("CARGO_MANIFEST_DIR");
/// The maximum size of an event on EventBridge and of the input of a state machine, in bytes.
const MAX_EVENT: usize = 256 * 1024;

fn saga() -> SagaContext {
    let site = SiteId::registered(OperatorId::DEFAULT, "test", "sensors");
    SagaContext::for_site(OperatorId::DEFAULT, site, Some(site.uuid()))
}

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn now() -> Timestamp {
    at("2026-06-01T00:00:00Z")
}

/// Returns a registration with these sensors.
fn registration(sensors: &Value) -> Value {
    json!({
        "name": "Alamosa",
        "operator": "NOAA",
        "location": { "latitude": 37.7, "longitude": -105.92, "elevationM": 2317.0 },
        "sensors": sensors,
        "plan": "community",
        "paymentMethod": "pm_card_visa",
    })
}

/// Reads a registration with one thermometer that has these fields.
fn register(metadata: &Value) -> Result<SensorRequest, Vec<FieldError>> {
    let mut sensor = json!({ "metric": "air_temperature", "unit": "Cel" });
    for (name, value) in metadata.as_object().expect("an object") {
        sensor[name] = value.clone();
    }
    let site: SiteRegistration = input::read(&registration(&json!([sensor])).to_string())?;
    Ok(site.sensors[0].clone())
}

fn errors_of(metadata: &Value) -> String {
    join_errors(&register(metadata).expect_err("wrong metadata"))
}

fn sensor(request: &SensorRequest, index: usize) -> Sensor {
    Sensor {
        sensor_id: SensorId::from_onboarding(saga().onboarding_id, index),
        metric: request.metric,
        unit: request.unit.clone(),
        min: request.min,
        max: request.max,
        utc_offset: None,
        metadata: (&request.metadata).into(),
    }
}

fn full_metadata() -> Value {
    json!({
        "label": "Mast, upper",
        "kind": "counter",
        "stamp": "end",
        "reportEverySeconds": 900,
        "heightM": -0.5,
        "datum": "NN+12.5",
        "resolution": 0.1,
        "detectionLimit": 0.05,
        "counter": { "rollover": 65536 },
        "externalIds": { "WMO": "0-20000-0-74462", "old system": "17" },
        "intervalSeconds": 60,
        "noDataValues": [-9999.9, 9999],
        "calibration": { "gain": 0.998, "offset": 0.3 },
    })
}

#[test]
fn the_metadata_of_a_registration_are_flat_and_become_undated_entries() {
    let registered = register(&full_metadata()).expect("a sensor");
    golden::check(HERE, "sensor-request", &json!(registered));
    let sensor = sensor(&registered, 0);
    golden::check(HERE, "sensor", &json!(sensor));
    assert_eq!(serde_json::from_value::<Sensor>(json!(sensor)).expect("a sensor"), sensor);
}

#[test]
fn a_sensor_without_metadata_is_written_as_in_version_1() {
    let request = register(&json!({ "max": 40 })).expect("a sensor");
    let text = r#"{"metric":"air_temperature","unit":"Cel","max":40.0}"#;
    assert_eq!(serde_json::to_string(&request).expect("JSON"), text);
    let sensor = sensor(&request, 0);
    let text = format!(
        r#"{{"sensorId":"{}","metric":"air_temperature","unit":"Cel","max":40.0}}"#,
        sensor.sensor_id
    );
    assert_eq!(serde_json::to_string(&sensor).expect("JSON"), text);
    assert_eq!(serde_json::from_str::<Sensor>(&text).expect("a sensor"), sensor);
}

#[test]
fn null_is_the_same_as_a_missing_field() {
    let mut nulls = full_metadata();
    nulls.as_object_mut().expect("fields").values_mut().for_each(|value| *value = Value::Null);
    assert_eq!(register(&nulls), register(&json!({})));
}

#[test]
fn each_wrong_field_is_named() {
    for (metadata, error) in [
        (
            json!({ "label": " " }),
            "sensors[0].label: is blank; give a string of 1 to 100 characters",
        ),
        (
            json!({ "kind": "sum" }),
            "sensors[0].kind: is \"sum\"; give one of instant, interval, counter, state",
        ),
        (json!({ "stamp": 1 }), "sensors[0].stamp: is a number; give one of start, end, instant"),
        (
            json!({ "reportEverySeconds": 0 }),
            "sensors[0].reportEverySeconds: is 0; give a whole number from 1 to 31622400",
        ),
        (
            json!({ "heightM": 11001 }),
            "sensors[0].heightM: is 11001; give metres above the ground from -11000 to 11000",
        ),
        (
            json!({ "datum": "x ".repeat(21) }),
            "sensors[0].datum: has 42 characters; give a string of 1 to 40 characters",
        ),
        (
            json!({ "resolution": 0 }),
            "sensors[0].resolution: is 0; give a number greater than 0, from 1e-130 to 9.999999999999998e125",
        ),
        (
            json!({ "kind": "counter", "counter": {} }),
            "sensors[0].counter.rollover: is missing; give a number greater than 0, from 1e-130 to 9.999999999999998e125",
        ),
        (
            json!({ "kind": "state", "counter": { "rollover": 1 } }),
            "sensors[0].counter: is only for a sensor of the kind counter; give \"kind\": \"counter\", or leave it out",
        ),
        (
            json!({ "externalIds": { "WMO": 7 } }),
            "sensors[0].externalIds.WMO: is a number; give a string of 1 to 100 characters",
        ),
        (
            json!({ "externalIds": { " a": "1" } }),
            "sensors[0].externalIds.\" a\": begins or ends with white space; leave it out",
        ),
        (
            json!({ "noDataValues": [] }),
            "sensors[0].noDataValues: has 0 entries; give an array of 1 to 10 numbers",
        ),
        (
            json!({ "noDataValues": [1, "NAN"] }),
            "sensors[0].noDataValues[1]: is a string; give a number from -9.999999999999998e125 to 9.999999999999998e125",
        ),
        (
            json!({ "calibration": { "gain": 0, "offset": 1 } }),
            "sensors[0].calibration.gain: is 0; give another factor, or 1 to leave values unscaled",
        ),
        (
            json!({ "calibration": [1, 0] }),
            "sensors[0].calibration: is an array; give an object with the fields gain, offset",
        ),
        (
            json!({ "intervals": [] }),
            "sensors[0].intervals: is not known; the fields are metric, unit, min, max, label,",
        ),
    ] {
        let errors = errors_of(&metadata);
        assert!(errors.starts_with(error), "{errors}\n{error}");
    }
    let many: Vec<_> = (0..11).map(|index| (format!("s{index}"), json!("1"))).collect();
    let many = Value::Object(many.into_iter().collect());
    let errors = errors_of(&json!({ "externalIds": many }));
    assert!(
        errors.starts_with("sensors[0].externalIds: has 11 entries; give an object"),
        "{errors}"
    );
}

/// Returns metadata that are as large as they may be.
fn largest_metadata() -> Value {
    let mut metadata = full_metadata();
    let ids = (0..9).map(|index| (format!("{index:-<40}"), json!("x".repeat(100))));
    metadata["externalIds"] = Value::Object(ids.collect());
    metadata["label"] = json!("l");
    let bytes = |metadata: &Value| {
        SensorMetadata::from(&register(metadata).expect("a sensor").metadata).bytes()
    };
    let rest = MAX_METADATA_BYTES - bytes(&metadata);
    // Fills the label with characters of four bytes, up to its maximum length.
    metadata["label"] = json!("\u{1f321}".repeat((rest / 4).min(99)));
    let rest = MAX_METADATA_BYTES - bytes(&metadata);
    let rest = rest - r#","s":"""#.len();
    metadata["externalIds"]["s"] = json!("\u{1f321}".repeat(rest / 4) + &"x".repeat(rest % 4));
    assert_eq!(bytes(&metadata), MAX_METADATA_BYTES);
    metadata
}

#[test]
fn metadata_have_a_maximum_size() {
    let mut metadata = largest_metadata();
    metadata["datum"] = json!("NN+12.55");
    assert_eq!(
        errors_of(&metadata),
        "sensors[0]: has 2251 bytes of metadata; give at most 2250, with shorter texts or fewer entries"
    );
}

#[test]
fn the_events_and_the_saga_of_100_sensors_with_full_metadata_fit() {
    let metric = Metric::ALL.iter().max_by_key(|metric| metric.name().len()).expect("a metric");
    let mut one = largest_metadata();
    one["metric"] = json!(metric);
    one["unit"] = json!(metric.units()[0]);
    (one["min"], one["max"]) =
        (json!(-1.797_693_134_862_315_7e-10), json!(1.797_693_134_862_315_7e-10));
    let mut body = registration(&json!(vec![one; MAX_SENSORS]));
    (body["name"], body["operator"]) =
        (json!("\u{1f321}".repeat(MAX_NAME)), json!("\u{1f321}".repeat(MAX_NAME)));
    body["paymentMethod"] = json!("p".repeat(255));
    body["utcOffset"] = json!("-07:00");
    let site: SiteRegistration = input::read(&body.to_string()).expect("a registration");
    let requests = site.sensors.iter().enumerate();
    let sensor =
        |(index, request)| Sensor { utc_offset: site.utc_offset, ..sensor(request, index) };
    let sensors: Vec<_> = requests.map(sensor).collect();

    let created = SiteCreated {
        site_id: saga().site_id,
        onboarding_id: saga().onboarding_id,
        name: site.name,
        operator: site.operator,
        location: site.location,
        sensors: sensors.clone(),
        plan: site.plan,
        payment_method: site.payment_method,
    };
    let provisioned = SensorsProvisioned { site_id: saga().site_id, sensors: sensors.clone() };
    let input = ContextWithSensors::new(saga(), sensors).expect("sensors of the saga");
    // The envelope and the other attributes of an entry have less than 4 KB.
    for json in [json!(created), json!(provisioned), json!(input)] {
        let bytes = json.to_string().len() + 4_096;
        assert!((200 * 1024..MAX_EVENT).contains(&bytes), "{bytes} bytes");
    }
}

fn change(json: &Value) -> SensorChange {
    input::from_json(&json.to_string(), &SensorChangeRule).expect("a change")
}

fn changed(metadata: &SensorMetadata, json: &Value) -> SensorMetadata {
    change(json).applied_to(metadata.clone(), now()).expect("metadata")
}

fn registered(json: &Value) -> SensorMetadata {
    (&register(json).expect("a sensor").metadata).into()
}

#[test]
fn a_change_sets_what_it_has_and_removes_what_is_null() {
    let before = registered(&full_metadata());
    assert_eq!(changed(&before, &json!({})), before);
    let after = changed(
        &before,
        &json!({
            "label": " Mast, lower ", "stamp": "start", "reportEverySeconds": null, "heightM": null,
            "externalIds": { "WMO": null, "new": "18" },
        }),
    );
    let mut expected = before.clone();
    expected.description.label = Some("Mast, lower".to_owned());
    expected.description.stamp = Some(contracts::sensor::Stamp::Start);
    expected.description.report_every_seconds = None;
    expected.description.height_m = None;
    let ids = [("new", "18"), ("old system", "17")];
    expected.description.external_ids =
        Some(ids.map(|(system, id)| (system.to_owned(), id.to_owned())).into());
    assert_eq!(after, expected);
    let none = changed(&before, &json!({ "externalIds": null }));
    assert_eq!(none.description.external_ids, None);
    let last = changed(&after, &json!({ "externalIds": { "new": null, "old system": null } }));
    assert_eq!(last.description.external_ids, None);
}

/// Returns the gains of the calibrations with their dates.
fn gains(metadata: &SensorMetadata) -> Vec<(Option<String>, f64)> {
    let date = |from: Timestamp| from.to_string()[..10].to_owned();
    let entries = metadata.calibrations.iter();
    entries.map(|entry| (entry.valid_from.map(date), entry.value.gain)).collect()
}

#[test]
fn a_dated_value_is_valid_from_the_request_on_or_from_the_given_time() {
    let calibration = |gain: f64| json!({ "gain": gain, "offset": 0 });
    let none = SensorMetadata::default();
    let today = changed(&none, &json!({ "calibration": calibration(2.0) }));
    assert_eq!(gains(&today), [(Some("2026-06-01".to_owned()), 2.0)]);
    assert_eq!(today.calibration_at(at("2026-05-31T23:59:59Z")), None);
    assert_eq!(today.calibration_at(now()).map(|it| it.gain), Some(2.0));

    // Entries are in the order of time, and an entry of the same time is replaced.
    let earlier =
        json!({ "calibration": calibration(3.0), "validFrom": "2026-01-01T01:00:00.0004+01:00" });
    let both = changed(&today, &earlier);
    let always = changed(&both, &json!({ "calibration": calibration(4.0), "validFrom": null }));
    assert_eq!(
        gains(&always),
        [(None, 4.0), (Some("2026-01-01".to_owned()), 3.0), (Some("2026-06-01".to_owned()), 2.0)]
    );
    assert_eq!(always.calibration_at(at("2025-12-31T23:59:59.999Z")).map(|it| it.gain), Some(4.0));
    assert_eq!(always.calibration_at(at("2026-01-01T00:00:00Z")).map(|it| it.gain), Some(3.0));
    let replaced = json!({ "calibration": calibration(5.0), "validFrom": "2026-01-01T00:00:00Z" });
    assert_eq!(gains(&changed(&always, &replaced))[1], (Some("2026-01-01".to_owned()), 5.0));

    let removed = json!({ "calibration": null, "validFrom": "2026-01-01T00:00:00Z" });
    assert_eq!(
        gains(&changed(&always, &removed)),
        [(None, 4.0), (Some("2026-06-01".to_owned()), 2.0)]
    );
    let first = changed(&always, &json!({ "calibration": null, "validFrom": null }));
    assert_eq!(gains(&first).len(), 2);
    assert_eq!(gains(&changed(&always, &json!({ "calibration": null }))), []);
}

#[test]
fn a_repeated_change_without_a_date_adds_no_entry() {
    let json = json!({ "intervalSeconds": 60, "noDataValues": [-99] });
    let once = changed(&SensorMetadata::default(), &json);
    let later = now().plus_millis(60_000);
    let twice = change(&json).applied_to(once.clone(), later).expect("metadata");
    assert_eq!(twice, once);
    let dated = json!({ "intervalSeconds": 60, "validFrom": later });
    assert_eq!(changed(&once, &dated).intervals.len(), 2);
    // From a time on, there are no values that mean "no data".
    let none = change(&json!({ "noDataValues": [] })).applied_to(once, later).expect("metadata");
    assert_eq!(none.no_data_values_at(now()), [-99.0]);
    assert_eq!(none.no_data_values_at(later), [0.0; 0]);
    assert_eq!(none.interval_at(now().plus_millis(-1)), None);
}

#[test]
fn a_change_can_not_exceed_the_limits() {
    let mut metadata = SensorMetadata::default();
    for day in 1..=MAX_DATED {
        let json =
            json!({ "intervalSeconds": day, "validFrom": format!("2026-01-{day:02}T00:00:00Z") });
        metadata = changed(&metadata, &json);
    }
    let refused = |metadata: &SensorMetadata, json: Value| {
        let refused = change(&json).applied_to(metadata.clone(), now());
        join_errors(&refused.expect_err("beyond a limit"))
    };
    assert_eq!(
        refused(&metadata, json!({ "intervalSeconds": 60 })),
        "intervalSeconds: would have 21 dated entries; the maximum is 20, so remove one with null and its validFrom"
    );
    let large = registered(&largest_metadata());
    assert!(
        refused(&large, json!({ "noDataValues": [1] }))
            .contains("bytes of metadata; give at most 2250")
    );
    assert_eq!(
        refused(&large, json!({ "label": null, "externalIds": { "t": "1" } })),
        "externalIds: would have 11 entries; the maximum is 10, so remove some with null"
    );
}

#[test]
fn a_wrong_change_names_each_field() {
    let wrong = json!({
        "metric": "wind_speed", "unit": "K", "kind": "state", "counter": null, "min": 1, "max": null,
        "utcOffset": "Z", "colour": 1, "heightM": "2", "externalIds": { "a": 1 },
        "validFrom": "yesterday", "calibration": { "gain": 1 },
    });
    let errors = input::from_json(&wrong.to_string(), &SensorChangeRule).expect_err("wrong");
    let fields: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "colour",
            "counter",
            "kind",
            "max",
            "metric",
            "min",
            "unit",
            "utcOffset",
            "heightM",
            "externalIds.a",
            "validFrom",
            "calibration.offset",
        ]
    );
    assert_eq!(errors[1].message, "can't be changed; register another sensor, or leave it out");
    let offset = "can't be changed, because bundles that are sent again would get other times";
    assert!(errors[7].message.starts_with(offset), "{}", errors[7]);
    let undated = json!({ "label": "a", "validFrom": "2026-01-01T00:00:00Z" });
    let errors = input::from_json(&undated.to_string(), &SensorChangeRule).expect_err("wrong");
    assert_eq!(
        join_errors(&errors),
        "validFrom: has no effect without a value to date; give intervalSeconds, noDataValues or calibration, or leave it out"
    );
    let list = input::from_json("[]", &SensorChangeRule).expect_err("wrong");
    assert!(join_errors(&list).starts_with("is an array; give an object with the fields label,"));
}

#[test]
fn the_value_at_a_time_is_that_of_the_last_entry_before_it() {
    let dated = |text: &str, value| Dated { valid_from: Some(at(text)), value };
    let entries = [dated("2026-01-01T00:00:00Z", 1), dated("2026-02-01T00:00:00Z", 2)];
    for (time, value) in [
        ("2025-12-31T23:59:59.999Z", None),
        ("2026-01-01T00:00:00Z", Some(&1)),
        ("2026-01-31T23:59:59.999Z", Some(&1)),
        ("2030-01-01T00:00:00Z", Some(&2)),
    ] {
        assert_eq!(valid_at(&entries, at(time)), value, "{time}");
    }
    assert_eq!(valid_at(&[Dated::always(7)], at("1970-01-01T00:00:00Z")), Some(&7));
}
