//! Reads events of other systems, and compares what is accepted with the published schema.

use contracts::{cloud_event, input::join_errors};
use serde_json::{Value, json};

fn event() -> Value {
    json!({
        "specversion": "1.0",
        "id": "1",
        "source": "com.example.lims",
        "type": "com.example.CalibrationDone",
        "subject": "example.instrument/SN-4711",
    })
}

fn with(field: &str, value: Value) -> Value {
    let mut event = event();
    event[field] = value;
    event
}

/// Returns a media type with a parameter, of this length.
fn json_type(length: usize) -> String {
    let kind = "application/json; x=";
    format!("{kind}{}", "x".repeat(length - kind.len()))
}

fn problems(event: &Value) -> String {
    cloud_event::read(&event.to_string())
        .map_or_else(|errors| join_errors(&errors), |_| String::new())
}

/// Checks that the event is accepted or refused, by the reader and by the schema.
fn check(event: &Value, accepted: bool) {
    assert_eq!(problems(event).is_empty(), accepted, "{event}: {}", problems(event));
    let schema = serde_json::to_value(cloud_event::schema()).expect("a schema as JSON");
    let validator = jsonschema::draft202012::options()
        .should_validate_formats(true)
        .build(&schema)
        .expect("a valid schema");
    assert_eq!(validator.is_valid(event), accepted, "the schema differs for {event}");
}

#[test]
fn valid_events_are_accepted() {
    let longest = |name: &str, length: usize| with(name, "x".repeat(length).into());
    for event in [
        event(),
        longest("id", 128),
        longest("source", 128),
        longest("type", 128),
        with("source", "https://example.com/lims?x=ü".replace('ü', "u").into()),
        with("source", "aws2.example".into()),
        with("source", "fieldstations".into()),
        with("subject", format!("a.b/{}", "x".repeat(128)).into()),
        with("subject", "a-1.b2.c-/SN 4711/ä".into()),
        with("time", "2026-01-01T12:00:00.123456+05:30".into()),
        with("time", Value::Null),
        with("data", Value::Null),
        with("data", json!([1, { "a": null }])),
        with("datacontenttype", "application/json".into()),
        with("datacontenttype", json_type(1024).into()),
        with("dataschema", "urn:example:1".into()),
        with("correlationid", "x".repeat(128).into()),
        with("causationid", "1".into()),
        with("attempt", 3.into()),
        with("attempt", (-2_147_483_648_i64).into()),
        with("urgent", true.into()),
        with("a", "".into()),
        with("abcdefghij0123456789", "x".repeat(1024).into()),
        with("traceparent", Value::Null),
    ] {
        check(&event, true);
    }
    // The schema does not parse media types.
    for kind in ["application/json; charset=utf-8", "APPLICATION/JSON", "application/geo+json"] {
        assert_eq!(problems(&with("datacontenttype", kind.into())), "");
    }
}

#[test]
fn invalid_events_are_refused() {
    let too_long = |name: &str, length: usize| with(name, "x".repeat(length + 1).into());
    let mut missing = Vec::new();
    for name in ["specversion", "id", "source", "type", "subject"] {
        let mut event = event();
        event.as_object_mut().expect("an object").remove(name);
        missing.extend([
            event,
            with(name, Value::Null),
            with(name, 1.into()),
            with(name, "".into()),
        ]);
    }
    for event in missing.into_iter().chain([
        json!([event()]),
        json!("x"),
        with("specversion", "1.0.2".into()),
        too_long("id", 128),
        with("id", " 1".into()),
        with("id", "a\u{200b}b".into()),
        too_long("source", 128),
        with("source", "a b".into()),
        with("source", "ä".into()),
        with("source", "aws".into()),
        with("source", "AWS.s3".into()),
        with("source", "Fieldstation.sites".into()),
        with("source", "fieldstation".into()),
        too_long("type", 128),
        with("type", "a b".into()),
        with("type", "ä".into()),
        with("subject", "site/1".into()),
        with("subject", "example.instrument".into()),
        with("subject", "Example.instrument/1".into()),
        with("subject", ".instrument/1".into()),
        with("subject", "example./1".into()),
        with("subject", "example.1a/1".into()),
        with("subject", format!("a.{}/1", "x".repeat(200)).into()),
        with("time", "2026-01-01".into()),
        with("time", 5.into()),
        with("datacontenttype", 1.into()),
        with("datacontenttype", json_type(1025).into()),
        with("dataschema", "".into()),
        too_long("dataschema", 1024),
        too_long("correlationid", 128),
        with("causationid", "".into()),
        with("data_base64", "eA==".into()),
        with("Extension", "x".into()),
        with("with-dash", "x".into()),
        with("abcdefghij0123456789a", "x".into()),
        with("ratio", 0.5.into()),
        with("big", 2_147_483_648_i64.into()),
        with("nested", json!({})),
        with("list", json!([])),
        too_long("text", 1024),
    ]) {
        check(&event, false);
    }
}

#[test]
fn events_that_a_schema_can_not_refuse_are_refused() {
    for (event, problem) in [
        // The released pattern accepts it, and a released schema of input is not narrowed.
        (with("subject", "a.b/".into()), "subject: is \"a.b/\"; give <entityType>/<entityId>"),
        (with("subject", "a.b/ x".into()), "subject: is \"a.b/ x\"; give <entityType>/<entityId>"),
        (with("subject", format!("a.b/{}", "x".repeat(129)).into()), "subject: is "),
        (with("subject", format!("a.{}/1", "x".repeat(63)).into()), "subject: is "),
        (with("time", "2026-01-01T12:00:00".into()), "time: is "),
        (
            with("datacontenttype", "text/xml".into()),
            "datacontenttype: is \"text/xml\"; give application/json",
        ),
        (
            with("datacontenttype", "application/json; x=\u{1}".into()),
            "datacontenttype: is \"application/json; x=\\u{1}\"; give application/json",
        ),
        (
            with("datacontenttype", "application/json; x=\u{200b}".into()),
            "datacontenttype: is \"application/json; x=\\u{200b}\"; give application/json",
        ),
        (with("dataschema", "calibration.json".into()), "dataschema: is "),
        (
            with("type", "SiteCreated".into()),
            "type: is SiteCreated, an event of Fieldstation itself",
        ),
        (with("type", "AlertingConfigured.v2".into()), "type: is AlertingConfigured, an event of"),
        (
            with("type", "KitsDelivered".into()),
            "type: is KitsDelivered, which Fieldstation takes from",
        ),
        (with("note", "a\u{0}".into()), "note: has 2 characters or an invisible one"),
    ] {
        let found = problems(&event);
        assert!(found.starts_with(problem), "{event}: {found}");
    }
}

#[test]
fn texts_that_are_not_one_event_are_refused() {
    let many: Vec<_> = (0..51).map(|number| format!("\"e{number}\":1")).collect();
    let text = event().to_string().replace('}', &format!(",{}}}", many.join(",")));
    let errors = cloud_event::read(&text).expect_err("too many");
    assert_eq!(
        join_errors(&errors),
        "has 51 extension attributes; give at most 50, and put the rest into data"
    );
    let twice = event().to_string().replace('{', r#"{"id":"2","#);
    let errors = cloud_event::read(&twice).expect_err("a duplicate");
    assert_eq!(join_errors(&errors), "id: is a duplicate; give it once");
    let data =
        r#"{"a":1,"a":2,"b":[0,{"c":{"d":[],"\u0064":{}}}],"e f":{"g":{},"h":{"g":1}},"g":null}"#;
    let twice = event().to_string().replace('{', &format!("{{\"data\":{data},"));
    let errors = cloud_event::read(&twice).expect_err("duplicates in data");
    assert_eq!(
        join_errors(&errors),
        "data.a: is a duplicate; give it once; data.b[1].c.d: is a duplicate; give it once"
    );
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let text = event().to_string().replace('{', &format!("{{\"data\":{deep},"));
    let errors = cloud_event::read(&text).expect_err("too deep");
    assert!(join_errors(&errors).starts_with("is not JSON: recursion limit"), "{errors:?}");
}

#[test]
fn the_canonical_form_does_not_depend_on_order_white_space_and_escapes() {
    let read = |json: &str| cloud_event::read(json).expect("an event");
    let sent = read(
        r#"{"specversion":"1.0","id":"1","source":"a","type":"T","subject":"a.b/1","n":1,"data":{"b":[1.0, 2e3,"\u00e9\/"],"a":null}}"#,
    );
    let other = read(
        "{ \"data\" : { \"a\":null,\n\"b\" : [1.0,2e3,\"é/\"] }, \"time\": null, \"n\":1, \"subject\":\"a.b/1\", \"type\":\"T\",
        \"source\":\"a\",\"id\":\"1\",\"specversion\":\"1.0\"}",
    );
    assert_eq!(sent.canonical, other.canonical);
    assert_eq!(
        sent.canonical,
        r#"{"data":{"a":null,"b":[1.0,2e3,"é/"]},"id":"1","n":1,"source":"a","specversion":"1.0","subject":"a.b/1","type":"T"}"#
    );
    assert_eq!(sent.data, r#"{"b":[1.0,2e3,"\u00e9\/"],"a":null}"#);
    assert_eq!(other.data, "{\"a\":null,\"b\":[1.0,2e3,\"é/\"]}");
    assert_eq!(sent.attributes, other.attributes);
    let expected = json!({ "specversion": "1.0", "id": "1", "source": "a", "type": "T", "subject": "a.b/1", "n": 1 });
    assert_eq!(Value::Object(sent.attributes), expected);
}
