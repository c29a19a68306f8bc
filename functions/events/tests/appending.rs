//! Tests of `POST /events` with requests and responses in API Gateway's format.

mod support;

use std::{collections::BTreeSet, time::Duration};

use contracts::{OperatorId, Scope, SiteId, open::OpenEnvelope};
use events::append_event::AppendEvent;
use futures_util::future::join_all;
use serde_json::{Value, json};
use store::{EventRow, Table};
use support::{
    api_response, append, append_event, append_with, check, event, event_of, post, post_as, writer,
};
use testkit::{
    Dynamo,
    cloud::{self, Cloud},
    dynamo::{EVENT_GUARDS, EVENTS},
    golden,
    http::{Call, Stub},
    rng::Rng,
    sample::{caller, default_caller, noon, other_operator},
};

async fn log(dynamo: &Dynamo) -> Vec<EventRow> {
    let rows = dynamo.rows(EVENTS).await.into_iter();
    let mut rows: Vec<EventRow> =
        rows.map(|row| serde_json::from_value(row).expect("a row of the log")).collect();
    rows.sort_by_key(|row| (row.entity.clone(), row.sequence));
    rows
}

fn envelope(row: &EventRow) -> OpenEnvelope {
    let envelope = row.envelope().expect("an envelope");
    let metadata = &envelope.metadata;
    assert_eq!(metadata.log_key(), row.entity);
    assert_eq!(metadata.correlation_key(), row.correlation_id);
    assert_eq!((metadata.sequence, metadata.occurred_at), (row.sequence, row.occurred_at));
    envelope
}

#[tokio::test]
async fn a_repeated_request_appends_once_and_gets_the_same_response() {
    let (dynamo, by) = (Dynamo::start().await, default_caller());
    let step = append_event(&dynamo);
    let mut full = event("1");
    full["time"] = "2026-01-01T11:59:00+01:00".into();
    full["datacontenttype"] = "application/json".into();
    full["dataschema"] = "https://example.com/calibration.json".into();
    full["correlationid"] = "work-order-17".into();
    full["causationid"] = "55115657-a433-553f-959b-29ae8465145d".into();
    full["attempt"] = 3.into();
    full["urgent"] = false.into();
    let request = post(&full.to_string());
    check("append-event.appended", step.handle(&by, &request, noon(0)).await);
    let rows = dynamo.all_rows().await;
    let shown = json!({ EVENTS: rows[EVENTS], EVENT_GUARDS: rows[EVENT_GUARDS] });
    golden::check(env!("CARGO_MANIFEST_DIR"), "append-event.rows", &shown);
    envelope(&log(&dynamo).await[0]);

    // As after a lost response, in this execution environment and in another one.
    for step in [step, append_event(&dynamo)] {
        check("append-event.appended", step.handle(&by, &request, noon(9)).await);
        assert_eq!(dynamo.all_rows().await, rows);
    }
    // The next event continues the sequence.
    let next = append(&append_event(&dynamo), &by, &event("2"), noon(9)).await;
    assert_eq!(next["sequence"], 2);
}

#[tokio::test]
async fn the_same_content_in_another_form_is_a_repeat_and_other_content_a_conflict() {
    let (dynamo, by) = (Dynamo::start().await, default_caller());
    let step = append_event(&dynamo);
    let first = append(&step, &by, &event("1"), noon(0)).await;
    let same = r#"{ "data" : {"gas": "\u007aero"}, "id": "1", "time": null, "type": "com.example.CalibrationDone",
        "subject": "example.instrument/SN-4711", "source": "com.example.lims", "specversion": "1.0" }"#;
    let sent = api_response(step.handle(&by, &post(same), noon(1)).await);
    assert_eq!((&sent["statusCode"], &sent["body"]), (&json!(201), &first));
    let rows = dynamo.all_rows().await;
    for (field, value) in [
        ("data", json!({ "gas": "span" })),
        ("type", json!("com.example.CalibrationFailed")),
        ("subject", json!("example.instrument/SN-4712")),
        ("attempt", json!(2)),
    ] {
        let mut other = event("1");
        other[field] = value;
        let result = step.handle(&by, &post(&other.to_string()), noon(2)).await;
        check("append-event.content-differs", result);
        assert_eq!(dynamo.all_rows().await, rows, "{field}");
    }
}

#[tokio::test]
async fn data_are_published_as_sent() {
    let (dynamo, by) = (Dynamo::start().await, default_caller());
    let step = append_event(&dynamo);
    let body = |id: &str, data: &str| {
        format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"a.b","type":"T","subject":"a.b/{id}","data":{data}}}"#
        )
    };
    let exact = "{ \"z\" : 1.0, \"a\": 12345678901234567890.1234567890, \"e\": 1E5,\n \"text \\\" ,\": [ \" \\u00e9 \" ] }";
    let compact =
        r#"{"z":1.0,"a":12345678901234567890.1234567890,"e":1E5,"text \" ,":[" \u00e9 "]}"#;
    for (id, data, stored) in [
        ("1", exact, compact),
        ("2", "null", "null"),
        ("3", "[]", "[]"),
        ("4", " \"x\" ", "\"x\""),
        ("5", "-0.10", "-0.10"),
    ] {
        let sent = step.handle(&by, &post_as("application/json", &body(id, data)), noon(0)).await;
        assert_eq!(api_response(sent)["statusCode"], 201, "{data}");
        let rows = log(&dynamo).await;
        let row = rows.iter().find(|row| row.entity.ends_with(&format!("#{id}"))).expect("a row");
        assert!(row.detail.ends_with(&format!(",\"data\":{stored}}}")), "{}", row.detail);
        envelope(row);
    }
    // Numbers are compared as text.
    let sent = step.handle(&by, &post(&body("1", &exact.replace("1.0,", "1,"))), noon(1)).await;
    assert_eq!(api_response(sent)["statusCode"], 409);
}

#[tokio::test]
async fn a_source_is_claimed_once_and_read_once_per_execution_environment() {
    let (dynamo, by) = (Dynamo::start().await, default_caller());
    let calls = || dynamo.take_usage().calls.into_iter().collect::<Vec<_>>();
    let named = |calls: &[(&str, u32)]| -> Vec<_> {
        calls.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    };
    let step = append_event(&dynamo);
    append(&step, &by, &event("1"), noon(0)).await;
    let append_only = named(&[("Query", 1), ("TransactWriteItems", 1)]);
    let claim = named(&[("GetItem", 1), ("PutItem", 1), ("Query", 1), ("TransactWriteItems", 1)]);
    assert_eq!(calls(), claim);
    append(&step, &by, &event("2"), noon(0)).await;
    assert_eq!(calls(), append_only);
    append(&append_event(&dynamo), &by, &event("3"), noon(0)).await;
    assert_eq!(calls(), named(&[("GetItem", 1), ("Query", 1), ("TransactWriteItems", 1)]));

    let other = other_operator();
    let configured = append_with(
        dynamo.table(EVENTS),
        dynamo.table(EVENT_GUARDS),
        &format!("com.example.registry={other}"),
    );
    let mut event = event("1");
    event["source"] = "com.example.registry".into();
    let request = post(&event.to_string());
    check("append-event.source-taken", configured.handle(&by, &request, noon(0)).await);
    append(&configured, &writer(other), &event, noon(0)).await;
    assert_eq!(calls(), append_only, "a configured source needs no claim");
}

#[tokio::test]
async fn one_of_two_operators_gets_a_source() {
    for _ in 0..5 {
        let dynamo = Dynamo::start().await;
        let operators = [OperatorId::DEFAULT, other_operator()];
        let request = post(&event("1").to_string());
        let results = join_all(operators.map(|operator| {
            let (step, request) = (append_event(&dynamo), &request);
            async move { api_response(step.handle(&writer(operator), request, noon(0)).await) }
        }))
        .await;
        let mut statuses: Vec<_> = results.iter().map(|sent| sent["statusCode"].clone()).collect();
        statuses.sort_by_key(Value::to_string);
        assert_eq!(statuses, [201, 409]);
        let winner = results.iter().position(|sent| sent["statusCode"] == 201).expect("a winner");
        assert_eq!(log(&dynamo).await.len(), 1);
        assert_eq!(log(&dynamo).await[0].operator_id, operators[winner]);
        // The loser is refused by each execution environment, also later.
        let step = append_event(&dynamo);
        for id in ["1", "2"] {
            let request = post(&event(id).to_string());
            let sent = step.handle(&writer(operators[1 - winner]), &request, noon(9)).await;
            let sent = api_response(sent);
            assert_eq!(sent["body"]["type"], "urn:fieldstation:problem:source-taken");
        }
    }
}

#[test]
fn a_transferred_source_has_its_new_operator_after_a_minute() {
    cloud::run(async {
        let cloud = Cloud::new(Rng::from_seed(1));
        let step = append_with(cloud.table(EVENTS), cloud.table(EVENT_GUARDS), "");
        let (first, new) = (writer(OperatorId::DEFAULT), writer(other_operator()));
        let status = async |by, id| {
            let request = post(&event(id).to_string());
            api_response(step.handle(by, &request, noon(0)).await)["statusCode"].clone()
        };
        assert_eq!(status(&first, "1").await, 201);
        assert_eq!(status(&new, "2").await, 409);
        // As `fieldctl sources transfer` does.
        let id = "source#com.example.lims";
        let claim = json!({ "id": id, "operatorId": other_operator(), "claimedAt": noon(0) });
        cloud.put(EVENT_GUARDS, claim);
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!(status(&first, "3").await, 409);
        assert_eq!(status(&new, "2").await, 201);
    });
}

#[tokio::test]
async fn two_operators_have_separate_entities_of_the_same_type_and_id() {
    let dynamo = Dynamo::start().await;
    let step = append_event(&dynamo);
    let mut ids = BTreeSet::new();
    for (operator, source) in [(OperatorId::DEFAULT, "a.lims"), (other_operator(), "b.lims")] {
        for (id, sequence) in [("1", 1), ("2", 2)] {
            let mut event = event(id);
            event["source"] = source.into();
            let reply = append(&step, &writer(operator), &event, noon(0)).await;
            assert_eq!(reply["sequence"], sequence);
            ids.insert(reply["eventId"].to_string());
        }
    }
    assert_eq!(ids.len(), 4);
    let rows = log(&dynamo).await;
    assert!(rows.iter().all(|row| row.entity.starts_with(&row.operator_id.to_string())));
}

#[tokio::test]
async fn concurrent_requests_for_one_entity_have_no_gap_and_each_is_appended_once() {
    let (dynamo, by) = (Dynamo::start().await, default_caller());
    let sequences = join_all((0..32).map(|number| {
        let (step, by) = (append_event(&dynamo), &by);
        let request = post(&event(&number.to_string()).to_string());
        async move {
            // A caller does as the response says.
            for _ in 0..50 {
                let sent = api_response(step.handle(by, &request, noon(number)).await);
                if sent["statusCode"] == 201 {
                    return sent["body"]["sequence"].as_u64().expect("a sequence");
                }
                assert_eq!(sent["statusCode"], 503, "{sent}");
                assert_eq!(sent["headers"]["retry-after"], "1", "{sent}");
            }
            panic!("request {number} was refused again and again");
        }
    }))
    .await;
    let all: BTreeSet<_> = sequences.iter().copied().collect();
    assert_eq!(all, (1..=32).collect());
    let rows = log(&dynamo).await;
    assert_eq!(rows.len(), 32);
    for (row, sequence) in rows.iter().zip(1..) {
        assert_eq!(row.sequence, sequence);
        envelope(row);
    }
    assert!(rows.is_sorted_by_key(|row| row.occurred_at), "time follows the sequence");
}

#[tokio::test]
async fn concurrent_repeats_append_once() {
    let (dynamo, by) = (Dynamo::start().await, default_caller());
    let request = post(&event("1").to_string());
    let sent = join_all((0..16).map(|second| {
        let (step, by, request) = (append_event(&dynamo), &by, &request);
        async move { api_response(step.handle(by, request, noon(second)).await) }
    }))
    .await;
    assert_eq!(log(&dynamo).await.len(), 1);
    for sent in &sent {
        assert_eq!((&sent["statusCode"], &sent["body"]["sequence"]), (&json!(201), &json!(1)));
    }
}

/// Returns a step whose transactions are always refused with these reasons, and the stand-in for DynamoDB.
async fn refused_always(reasons: Value) -> (Stub, AppendEvent) {
    let stub = Stub::start(move |call: &Call| match call.operation() {
        "GetItem" => {
            let item = json!({
                "id": { "S": "source#com.example.lims" },
                "operatorId": { "S": OperatorId::DEFAULT },
                "claimedAt": { "S": noon(0) },
            });
            (200, json!({ "Item": item }))
        }
        "Query" => (200, json!({ "Items": [], "Count": 0 })),
        _ => (
            400,
            json!({ "__type": "TransactionCanceledException", "CancellationReasons": reasons }),
        ),
    })
    .await;
    let client = aws_sdk_dynamodb::Client::new(&stub.config());
    let table = |name: &str| Table::new(client.clone(), name);
    let step = append_with(table(EVENTS), table(EVENT_GUARDS), "");
    (stub, step)
}

#[tokio::test]
async fn a_request_that_finds_each_sequence_taken_is_refused_after_a_bounded_time() {
    let reasons = json!([{ "Code": "None" }, { "Code": "ConditionalCheckFailed" }]);
    let (stub, step) = refused_always(reasons).await;
    let start = std::time::Instant::now();
    let request = post(&event("1").to_string());
    let sent =
        check("append-event.contended", step.handle(&default_caller(), &request, noon(0)).await);
    assert_eq!(sent["headers"]["retry-after"], "1");
    assert!(start.elapsed().as_secs() < 3, "{:?}", start.elapsed());
    let calls = stub.take_calls();
    let attempts = calls.iter().filter(|call| call.operation() == "TransactWriteItems").count();
    assert!((3..=8).contains(&attempts), "{attempts}");
}

#[tokio::test]
async fn a_guard_decides_also_if_the_sequence_was_taken() {
    let guard = json!({
        "id": { "S": "event" },
        "content": { "S": "other" },
        "eventId": { "S": "55115657-a433-553f-959b-29ae8465145d" },
        "sequence": { "N": "7" },
    });
    let reasons = json!([
        { "Code": "ConditionalCheckFailed", "Item": guard },
        { "Code": "ConditionalCheckFailed" },
    ]);
    let (stub, step) = refused_always(reasons).await;
    let request = post(&event("1").to_string());
    let sent = api_response(step.handle(&default_caller(), &request, noon(0)).await);
    assert_eq!((&sent["statusCode"], &sent["body"]["sequence"]), (&json!(409), &json!(7)));
    let calls = stub.take_calls();
    assert_eq!(calls.iter().filter(|call| call.operation() == "TransactWriteItems").count(), 1);
}

#[tokio::test]
async fn an_unavailable_table_is_a_503_that_says_when_to_retry() {
    let stub =
        Stub::start(|_| (500, json!({ "__type": "InternalServerError", "message": "no" }))).await;
    let client = aws_sdk_dynamodb::Client::new(&stub.config());
    let table = |name: &str| Table::new(client.clone(), name);
    let step = append_with(table(EVENTS), table(EVENT_GUARDS), "");
    let request = post(&event("1").to_string());
    check("append-event.unavailable", step.handle(&default_caller(), &request, noon(0)).await);
}

#[tokio::test]
async fn invalid_requests_are_refused_and_nothing_is_written() {
    let (dynamo, by) = (Dynamo::start().await, default_caller());
    let step = append_event(&dynamo);
    let wrong = json!({
        "specversion": "0.3",
        "id": "",
        "source": "AWS.lims",
        "type": "SiteCreated",
        "subject": "site/1",
        "time": "yesterday",
        "datacontenttype": "text/xml",
        "dataschema": "calibration.json",
        "correlationid": 17,
        "data_base64": "eA==",
        "Extension": "x",
        "nested": {},
        "ratio": 0.5,
    });
    let request = post(&wrong.to_string());
    check("append-event.wrong-fields", step.handle(&by, &request, noon(0)).await);
    check("append-event.missing-fields", step.handle(&by, &post("{}"), noon(0)).await);
    check("append-event.no-json", step.handle(&by, &post("{"), noon(0)).await);
    let batch = post_as("application/cloudevents-batch+json", "[]");
    check("append-event.batch", step.handle(&by, &batch, noon(0)).await);
    let mut binary = post_as("application/json", "{}");
    binary.headers.insert("ce-specversion", "1.0".parse().expect("a value"));
    check("append-event.batch", step.handle(&by, &binary, noon(0)).await);
    let mut large = event("1");
    large["data"] = "x".repeat(192 * 1024).into();
    check("append-event.too-large", step.handle(&by, &post(&large.to_string()), noon(0)).await);
    let valid = post(&event("1").to_string());
    let logger = caller(
        OperatorId::DEFAULT,
        Scope::Logger(SiteId::registered(OperatorId::DEFAULT, "", "a")),
    );
    check("append-event.logger", step.handle(&logger, &valid, noon(0)).await);
    for scope in [Scope::Read, Scope::Bootstrap] {
        let sent = step.handle(&caller(OperatorId::DEFAULT, scope), &valid, noon(0)).await;
        assert_eq!(api_response(sent)["statusCode"], 403);
    }
    assert!(dynamo.all_rows().await.values().all(Vec::is_empty));
}

#[tokio::test]
async fn the_largest_event_is_accepted() {
    let (dynamo, by) = (Dynamo::start().await, default_caller());
    let mut large = event_of("example.instrument/ü 1", "1");
    let room = 192 * 1024 - large.to_string().len() - 2;
    large["data"] = "x".repeat(room + r#"{"gas":"zero"}"#.len()).into();
    assert_eq!(large.to_string().len(), 192 * 1024);
    append(&append_event(&dynamo), &by, &large, noon(0)).await;
    let row = &log(&dynamo).await[0];
    envelope(row);
    // What an entry of PutEvents may have.
    assert!(row.detail.len() < 255 * 1024);
}
