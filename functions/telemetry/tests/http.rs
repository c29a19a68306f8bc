//! Tests of the HTTP API with requests and responses in API Gateway's format.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use aws_sdk_dynamodb::types::{AttributeValue, PutRequest, WriteRequest};
use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{
    Metric, OperatorId, Scope, SensorId, SiteId, Timestamp,
    readings::{Bundle, FIRST_REVISION},
    sample::{Qualifiers, Sample},
};
use lambda::{
    Deadline,
    http::{Problem, Request, Response, response},
};
use serde_bytes::ByteBuf;
use serde_json::{Value, json};
use series::{
    RowKey, SeriesRow,
    packing::{pack, unpack},
};
use store::{Commit, Table, Transaction};
use telemetry::{
    SensorRow,
    accept_readings::AcceptReadings,
    get_readings::GetReadings,
    paging::{KeySource, Paging, SigningKey},
    refusals::Refusals,
    register::Register,
};
use testkit::{
    Dynamo,
    dynamo::READINGS,
    golden,
    http::{self, Call, NO_RESPONSE, Stub},
    rng::Rng,
    sample::{self, caller, default_caller, noon, other_operator, saga, saga_of, sensors},
    schema::{InvalidDocument, Schema},
};

/// Returns the response that API Gateway gets, with the body parsed as JSON.
fn api_response(result: Result<Response, Problem>) -> Value {
    let mut api_response = serde_json::to_value(response(result)).expect("a response as JSON");
    let body = api_response["body"].as_str().expect("a body");
    api_response["body"] = serde_json::from_str(body).expect("a body of JSON");
    api_response
}

fn check(name: &str, response: Result<Response, Problem>) {
    golden::check(env!("CARGO_MANIFEST_DIR"), name, &api_response(response));
}

fn site(name: &str) -> SiteId {
    saga(name).site_id
}

/// Returns the first sensor of the site `a`.
fn sensor() -> SensorId {
    SensorId::from_onboarding(saga("a").onboarding_id, 0)
}

// ---- accept-readings ----

/// Returns `POST /readings` in API Gateway's format.
fn post(body: &str) -> Request {
    let mut event = sample::event("accept-readings");
    event["body"] = body.into();
    serde_json::from_value(event).expect("an event of API Gateway")
}

fn bundle(id: &str, site: SiteId, samples: &Value) -> Value {
    json!({
        "bundleId": id,
        "siteId": site,
        "series": [{ "sensorId": sensor(), "samples": samples }],
    })
}

/// Returns a list of `count` bundles with the ids `b-0`, `b-1` and so on.
fn bundles(count: usize) -> Value {
    (0..count)
        .map(|n| bundle(&format!("b-{n}"), site("a"), &json!([["2026-01-01T11:00:00Z", 1.5]])))
        .collect()
}

fn accept_readings(stream: &Stub) -> AcceptReadings {
    let client = aws_sdk_kinesis::Client::new(&stream.config());
    // Unreachable. The tests in `refusals.rs` check the register and the counters of refusals.
    let dynamo = aws_sdk_dynamodb::Client::new(&http::config("http://127.0.0.1:1"));
    AcceptReadings {
        client,
        stream_name: "readings".to_owned(),
        register: Register::new(Table::new(dynamo.clone(), READINGS), Duration::from_hours(1)),
        max_age_days: 400,
        refusals: Refusals::new(Table::new(dynamo, "RefusalsTable")),
    }
}

async fn accept(stream: &Stub, body: &str) -> Result<Response, Problem> {
    accept_within(Duration::from_secs(30), stream, body).await
}

async fn accept_within(time: Duration, stream: &Stub, body: &str) -> Result<Response, Problem> {
    accept_readings(stream)
        .handle(&default_caller(), &post(body), noon(0), Deadline::after(time))
        .await
}

/// Returns the bundle of a record in a `PutRecords` call, as the consumers of the stream read it.
fn put_bundle(record: &Value) -> Bundle {
    let record = json!({ "kinesis": {
        "partitionKey": record["PartitionKey"], "data": record["Data"],
        "sequenceNumber": "1", "approximateArrivalTimestamp": 0,
    } });
    let record = record.to_string();
    let record = serde_json::from_str(&record).expect("a record");
    ::stream::bundle(&record, noon(0)).expect("a bundle").bundle
}

/// Returns the ids of the bundles in a `PutRecords` call.
fn put_ids(call: &Call) -> Vec<String> {
    let records = call.json()["Records"].take();
    let records = records.as_array().expect("records").iter().map(|record| {
        let bundle = put_bundle(record);
        let key = record["PartitionKey"].as_str().expect("a key");
        assert!(key.starts_with(&format!("{}/", bundle.site_id)), "{key}");
        bundle.bundle_id.to_string()
    });
    records.collect()
}

/// Returns the ids of the bundles in each call to the stream.
fn put_calls(stream: &Stub) -> Vec<Vec<String>> {
    stream.take_calls().iter().map(put_ids).collect()
}

fn accepted_entry() -> Value {
    json!({ "SequenceNumber": "49543463076548007577105092703039560359975228518395012686", "ShardId": "shardId-000000000000" })
}

fn rejected_entry(code: &str) -> Value {
    json!({ "ErrorCode": code, "ErrorMessage": "no" })
}

fn entries(entries: &[Value]) -> (u16, Value) {
    let failed = entries.iter().filter(|entry| entry.get("ErrorCode").is_some()).count();
    (200, json!({ "FailedRecordCount": failed, "Records": entries }))
}

/// Starts a stream whose response depends on the bundle's id and the number of the attempt, from 1.
async fn stream(response: fn(&str, usize) -> Value) -> Stub {
    let attempts = Mutex::new(BTreeMap::<String, usize>::new());
    Stub::start(move |call| {
        let mut attempts = attempts.lock().expect("the attempts");
        let responses: Vec<_> = put_ids(call)
            .into_iter()
            .map(|id| {
                let attempt = attempts.entry(id.clone()).or_default();
                *attempt += 1;
                response(&id, *attempt)
            })
            .collect();
        entries(&responses)
    })
    .await
}

/// Starts a stream whose response depends on the number of the call, from 1.
async fn stream_by_call(response: fn(usize) -> (u16, Value)) -> Stub {
    let count = AtomicUsize::new(0);
    Stub::start(move |_| response(count.fetch_add(1, SeqCst) + 1)).await
}

#[tokio::test]
async fn a_bundle_and_a_list_are_put_on_the_stream() {
    let stream = stream(|_, _| accepted_entry()).await;
    let started = Instant::now();
    let one = bundle("b-1", site("a"), &json!([["2026-01-01T12:00:00.099+01:00", -7]]));
    check("accept-readings.one", accept(&stream, &format!("\n {one:#}")).await);
    let call = stream.take_calls().remove(0);
    assert_eq!(call.operation(), "PutRecords");
    assert_eq!(call.json()["StreamName"], "readings");
    let record = call.json()["Records"][0].take();
    assert_eq!(
        record["PartitionKey"],
        contracts::stream::partition_key(site("a"), OperatorId::DEFAULT)
    );
    let data = STANDARD.decode(record["Data"].as_str().expect("text")).expect("base64");
    // The bundle as it was sent, without the white space around it.
    assert_eq!(String::from_utf8(data).expect("text"), format!("{one:#}"));

    // The same bundle id at another site is another bundle.
    let mut list = bundles(2);
    list[1] = bundle("b-0", site("b"), &json!([["2026-01-01T11:00:00Z", 1.5]]));
    check("accept-readings.list", accept(&stream, &list.to_string()).await);
    assert_eq!(put_calls(&stream), [["b-0", "b-0"]]);
    let max = accept(&stream, &bundles(500).to_string()).await;
    assert_eq!(api_response(max)["body"]["accepted"], 500);
    assert_eq!(put_calls(&stream)[0].len(), 500);
    assert!(started.elapsed() < Duration::from_secs(2), "no retry pause after success");
}

#[tokio::test]
async fn the_sample_event_is_accepted() {
    let stream = stream(|_, _| accepted_entry()).await;
    let body = sample::event("accept-readings")["body"].take();
    let response = api_response(accept(&stream, body.as_str().expect("text")).await);
    assert_eq!(response["statusCode"], 202, "{response}");
}

#[tokio::test]
async fn an_invalid_request_is_refused_with_instructions_and_nothing_is_put() {
    let stream = stream(|_, _| accepted_entry()).await;
    let mut wrong = bundles(4);
    wrong[1]["series"][0]["samples"] =
        json!([["2026-01-01T11:00:00Z", 1], ["2026-01-01T11:00:00Z", 2]]);
    wrong[3]["series"] = json!([]);
    let mut missing = bundles(3);
    missing[2].as_object_mut().expect("a bundle").remove("siteId");
    let mut single = bundles(1)[0].take();
    single["series"][0]["samples"][0][1] = "1.5".into();
    let large = format!("{}{}", bundles(1), " ".repeat(4 * 1024 * 1024));
    for (name, body) in [
        ("accept-readings.wrong-fields", json!([wrong[1], wrong[3]]).to_string()),
        ("accept-readings.missing-field", json!([missing[2]]).to_string()),
        ("accept-readings.wrong-value", single.to_string()),
        ("accept-readings.empty-list", "[]".to_owned()),
        ("accept-readings.no-json", "[{\"bundleId\"".to_owned()),
        ("accept-readings.no-body", String::new()),
        ("accept-readings.too-large", large),
        ("accept-readings.too-many", bundles(501).to_string()),
        ("accept-readings.large-bundle", json!([long_bundle("b-1", 28_000)]).to_string()),
    ] {
        check(name, accept(&stream, &body).await);
    }
    assert!(stream.take_calls().is_empty());
}

#[tokio::test]
async fn of_ten_bundles_with_a_bad_one_nine_are_accepted_and_one_is_named() {
    let stream = stream(|_, _| accepted_entry()).await;
    let mut list = bundles(10);
    list[3]["series"][0]["samples"] = json!([["2026-01-01T14:00:00Z", 1.5]]);
    check("accept-readings.partly", accept(&stream, &list.to_string()).await);
    let good: Vec<_> = (0..10).filter(|n| *n != 3).map(|n| format!("b-{n}")).collect();
    assert_eq!(put_calls(&stream), [good]);
}

#[tokio::test]
async fn of_a_hundred_series_with_a_bad_value_the_other_99_are_accepted() {
    let stream = stream(|_, _| accepted_entry()).await;
    let sensor = |n| SensorId::from_onboarding(saga("a").onboarding_id, n);
    let series = |n| json!({ "sensorId": sensor(n), "samples": [["2026-01-01T11:00:00Z", n]] });
    let mut large = json!({
        "bundleId": "b-1", "siteId": site("a"), "series": (0..100).map(series).collect::<Vec<_>>(),
    });
    large["series"][41]["samples"][0][1] = "warm".into();
    let response = api_response(accept(&stream, &large.to_string()).await);
    assert_eq!((&response["statusCode"], &response["body"]["accepted"]), (&json!(202), &json!(1)));
    let errors = response["body"]["errors"].as_array().expect("errors");
    let [error] = &errors[..] else { panic!("one error: {errors:?}") };
    assert_eq!(error["field"], "series[41].samples[0][1]");
    assert_eq!(error["reason"], "InvalidValue");
    let put = put_bundle(&stream.take_calls().remove(0).json()["Records"][0]);
    let expected: Vec<_> = (0..100).filter(|n| *n != 41).map(sensor).collect();
    assert_eq!(put.series.iter().map(|it| it.sensor_id).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn a_repeated_id_and_a_large_bundle_refuse_no_other_bundle() {
    let stream = stream(|_, _| accepted_entry()).await;
    let mut list = bundles(3);
    list[2]["bundleId"] = "b-0".into();
    let list = json!([list[0], list[1], list[2], long_bundle("b-3", 28_000)]);
    check("accept-readings.twice", accept(&stream, &list.to_string()).await);
    assert_eq!(put_calls(&stream), [["b-0", "b-1"]]);

    // Of the same bundle, the first one is stored.
    let mut list = bundles(2);
    list[1]["bundleId"] = "b-0".into();
    list[0]["series"][0]["samples"][0][1] = 7.into();
    let response = api_response(accept(&stream, &list.to_string()).await);
    assert_eq!(response["body"]["errors"][0]["reason"], "Duplicate");
    let record = stream.take_calls().remove(0).json()["Records"][0]["Data"].take();
    let data = STANDARD.decode(record.as_str().expect("text")).expect("base64");
    assert_eq!(String::from_utf8(data).expect("text"), list[0].to_string());
}

#[tokio::test]
async fn a_throttled_stream_and_a_bad_bundle_are_both_named() {
    let stream = stream(|id, _| match id {
        "b-1" => rejected_entry("ProvisionedThroughputExceededException"),
        _ => accepted_entry(),
    })
    .await;
    let mut list = bundles(3);
    list[2]["series"] = json!([]);
    let time = Duration::from_millis(200);
    check(
        "accept-readings.stream-busy-partly",
        accept_within(time, &stream, &list.to_string()).await,
    );
}

#[tokio::test]
async fn only_an_operator_imports_readings() {
    let stream = stream(|_, _| accepted_entry()).await;
    let step = accept_readings(&stream);
    let mut list = bundles(2);
    list[1]["origin"] = "import".into();
    let send = async |scope| {
        let caller = caller(other_operator(), scope);
        let deadline = Deadline::after(Duration::from_secs(30));
        step.handle(&caller, &post(&list.to_string()), noon(0), deadline).await
    };
    check("accept-readings.forbidden-import", send(Scope::Logger(site("a"))).await);
    assert!(stream.take_calls().is_empty());
    for scope in [Scope::Operator, Scope::Admin] {
        assert_eq!(api_response(send(scope).await)["statusCode"], 202, "{scope}");
    }
}

#[tokio::test]
async fn readings_that_are_too_old_for_live_ones_are_accepted_as_an_import() {
    let stream = stream(|_, _| accepted_entry()).await;
    let at = |time: &str| bundle("b-1", site("a"), &json!([[time, 1.5]]));
    let import = |time: &str| {
        let mut import = at(time);
        import["origin"] = "import".into();
        import
    };
    // 400 days before noon of 2026-01-01.
    let (oldest, older) = ("2024-11-27T12:00:00Z", "2024-11-27T11:59:59.999Z");
    for accepted in [at(oldest), import(older), import("2019-07-01T12:00:00Z")] {
        let response = api_response(accept(&stream, &accepted.to_string()).await);
        assert_eq!(response["statusCode"], 202, "{accepted}: {response}");
    }
    assert_eq!(stream.take_calls().len(), 3);
    let not_set = "1970-01-01T00:00:03Z";
    check("accept-readings.clock-not-set", accept(&stream, &at(not_set).to_string()).await);
    for refused in [at(older), at("2019-07-01T12:00:00Z"), import("1969-12-31T23:59:59Z")] {
        let response = api_response(accept(&stream, &refused.to_string()).await);
        assert_eq!(error_fields(&response), ["series[0].samples[0]"], "{refused}");
    }
    assert!(stream.take_calls().is_empty());
}

/// Returns a bundle with `samples` samples. Each takes 47 bytes on the stream.
fn long_bundle(id: &str, samples: i64) -> Value {
    let samples = (-samples..0).map(|n| {
        let time = noon(60 * n).to_string();
        json!([time.replace(":00.000Z", "Z"), 1_000_000_000_000_000_i64])
    });
    bundle(id, site("a"), &samples.collect())
}

/// Returns the fields that the errors of a 400 response name.
fn error_fields(response: &Value) -> Vec<&str> {
    assert_eq!(response["statusCode"], 400, "{response}");
    let errors = response["body"]["errors"].as_array().expect("errors");
    errors.iter().filter_map(|error| error["field"].as_str()).collect()
}

#[tokio::test]
async fn all_problems_of_a_bundle_are_reported_at_once() {
    let stream = stream(|_, _| accepted_entry()).await;
    let mut wrong = bundles(2);
    wrong[0].as_object_mut().expect("a bundle").remove("siteId");
    wrong[0]["bundleId"] = "b 1".into();
    wrong[0]["colour"] = "red".into();
    wrong[0]["series"][0]["sensorId"] = 7.into();
    wrong[0]["series"][0]["samples"] = json!([
        ["2026-01-01T11:00:00Z", true],
        ["1969-12-31T23:59:59Z", 1.5],
        ["2026-01-01T11:02:00Z"],
        ["2026-01-01T11:03:00Z", "1.5"],
        ["2026-01-01T11:03:00Z", 1.5],
        ["yesterday", 1.5],
        ["2026-01-01T11:03:00Z", 1.5],
        ["2026-01-01T13:00:00Z", 1.5],
        7,
    ]);
    wrong[1]["series"][0] = json!([sensor(), [["2026-01-01T11:00:00Z", 1]]]);
    let response = api_response(accept(&stream, &wrong.to_string()).await);
    let fields = error_fields(&response);
    for field in [
        "[0].siteId",
        "[0].bundleId",
        "[0].colour",
        "[0].series[0].sensorId",
        "[0].series[0].samples[0][1]",
        "[0].series[0].samples[1]",
        "[0].series[0].samples[2]",
        "[0].series[0].samples[3][1]",
        "[0].series[0].samples[5][0]",
        "[0].series[0].samples[6]",
        "[0].series[0].samples[7]",
        "[0].series[0].samples[8]",
        "[1].series[0]",
    ] {
        assert!(fields.contains(&field), "{field} is missing in {response:#}");
    }
    assert_eq!(fields.len(), 13, "{response:#}");

    let positional = json!(["b-1", site("a"), []]).to_string();
    let listed = json!([["b-1", site("a"), []]]).to_string();
    assert_eq!(
        error_fields(&api_response(accept(&stream, &positional).await)),
        ["[0]", "[1]", "[2]"]
    );
    assert_eq!(error_fields(&api_response(accept(&stream, &listed).await)), ["[0]"]);
    let many = bundle("b-1", site("a"), &(0..1_000).map(|_| json!(["no time", true])).collect());
    let response = api_response(accept(&stream, &many.to_string()).await);
    assert_eq!(error_fields(&response).len(), 101);
    assert_eq!(
        response["body"]["errors"][100]["message"],
        "has 1900 more problems; correct these first"
    );
    assert!(stream.take_calls().is_empty());
}

#[tokio::test]
async fn a_caller_sends_only_for_the_sites_of_its_scope() {
    let stream = stream(|_, _| accepted_entry()).await;
    let step = accept_readings(&stream);
    let mut list = bundles(3);
    list[1] = bundle("b-1", site("b"), &json!([["2026-01-01T11:00:00Z", 1.5]]));
    let deadline = || Deadline::after(Duration::from_secs(30));
    let send = async |scope, body: &Value| {
        let caller = caller(other_operator(), scope);
        step.handle(&caller, &post(&body.to_string()), noon(0), deadline()).await
    };
    check("accept-readings.forbidden", send(Scope::Logger(site("a")), &list).await);
    check("accept-readings.forbidden-alone", send(Scope::Logger(site("a")), &list[1]).await);
    for scope in [Scope::Read, Scope::Bootstrap] {
        for body in [&list[0], &json!({}), &json!([]), &json!("no bundle")] {
            let response = api_response(send(scope, body).await);
            assert_eq!(response["statusCode"], 403, "{scope} {body}: {response}");
        }
    }
    assert!(stream.take_calls().is_empty());

    // The response does not depend on which sites exist. The partition key names the sender.
    for scope in [Scope::Logger(site("a")), Scope::Operator, Scope::Admin] {
        assert_eq!(api_response(send(scope, &list[0]).await)["statusCode"], 202, "{scope}");
        let record = stream.take_calls().remove(0).json()["Records"][0].take();
        let key = contracts::stream::partition_key(site("a"), other_operator());
        assert_eq!(record["PartitionKey"], key, "{scope}");
    }
}

#[tokio::test]
async fn posting_readings_with_a_query_parameter_is_refused() {
    let stream = stream(|_, _| accepted_entry()).await;
    let mut request = post(&bundles(1).to_string());
    let query = std::collections::HashMap::from([("colour".to_owned(), "red".to_owned())]);
    request.query_string_parameters = query.into();
    let deadline = Deadline::after(Duration::from_secs(30));
    let response = api_response(
        accept_readings(&stream).handle(&default_caller(), &request, noon(0), deadline).await,
    );
    assert_eq!(error_fields(&response), ["query colour"]);
    assert!(stream.take_calls().is_empty());
}

/// Enforces the rules that the schema can't express: the times of a series ascend, and all or none have an offset, only a
/// revision has a reason and replaces ranges, only a series that replaces a range may be empty, and only an import may be
/// old.
fn in_order(mut bundle: Value) -> Value {
    let is_revision = bundle["revision"].as_u64().is_some_and(|revision| revision > 1);
    let members = bundle.as_object_mut().expect("an object");
    if !is_revision {
        members.remove("reason");
    } else if !members.get("reason").is_some_and(Value::is_string) {
        members.insert("reason".to_owned(), json!("the clock was fast"));
    }
    for series in bundle["series"].as_array_mut().expect("series") {
        equalize_offsets(series);
        let range = series["replaces"].clone();
        let time = |name: &str| range[name].as_str().map(in_utc);
        if !is_revision || time("from") >= time("to") {
            series.as_object_mut().expect("an object").remove("replaces");
        }
        let is_empty = series["samples"].as_array().is_none_or(Vec::is_empty);
        if is_empty && series.get("replaces").is_none() {
            series["samples"] = json!([[noon(0), 1]]);
        }
        let samples = series["samples"].as_array_mut().expect("samples");
        let at = |sample: &Value| in_utc(sample[0].as_str().expect("a time"));
        samples.sort_by_key(at);
        samples.dedup_by_key(|sample| at(sample).millis());
    }
    bundle["origin"] = json!("import");
    bundle
}

/// Parses a time. A time without an offset is read as UTC.
fn in_utc(text: &str) -> Timestamp {
    text.parse().or_else(|_| format!("{text}Z").parse()).expect("a time")
}

/// Removes the offsets of a series if its first time has none. Otherwise adds one where it is missing.
fn equalize_offsets(series: &mut Value) {
    let mut times: Vec<&mut Value> = Vec::new();
    let Some(members) = series.as_object_mut() else { return };
    for (name, member) in members {
        match (name.as_str(), member) {
            ("replaces", Value::Object(range)) => times.extend(range.values_mut()),
            ("samples", Value::Array(samples)) => {
                times.extend(samples.iter_mut().map(|sample| &mut sample[0]));
            }
            _ => {}
        }
    }
    let is_local = |time: &Value| {
        let text = time.as_str().expect("a time");
        text.parse::<Timestamp>().is_err()
    };
    let first_is_local = times.first().is_some_and(|first| is_local(first));
    for time in times {
        let text = time.as_str().expect("a time");
        *time = match (first_is_local, is_local(time)) {
            (true, false) => text[..19].into(),
            (false, true) => format!("{text}Z").into(),
            _ => continue,
        };
    }
}

#[tokio::test]
async fn times_without_an_offset_are_left_to_store_readings_if_the_register_is_unavailable() {
    let stream = stream(|_, _| accepted_entry()).await;
    let put = || {
        let data = stream.take_calls().remove(0).json()["Records"][0]["Data"].take();
        let data = STANDARD.decode(data.as_str().expect("text")).expect("base64");
        String::from_utf8(data).expect("text")
    };
    let mut body =
        bundle("b-1", site("a"), &json!([["2026-01-01T10:00:00", 1.5], ["2026-01-01T24:00", 2]]));
    let response = api_response(accept(&stream, &body.to_string()).await);
    assert_eq!((&response["statusCode"], &response["body"]["errors"]), (&json!(202), &Value::Null));
    assert_eq!(put(), body.to_string());

    // A bundle of which a series is refused is written again. The other times are still without an offset.
    let mut bad = body["series"][0].clone();
    bad["sensorId"] = json!(SensorId::from_onboarding(saga("a").onboarding_id, 1));
    bad["samples"][1] = json!(["2026-01-01T11:00:00Z", 2]);
    body["series"].as_array_mut().expect("series").push(bad);
    let response = api_response(accept(&stream, &body.to_string()).await);
    assert_eq!(response["statusCode"], 202, "{response}");
    assert_eq!(response["body"]["errors"][0]["field"], "series[1].samples[1][0]", "{response}");
    let message = response["body"]["errors"][0]["message"].as_str().expect("a message");
    assert!(message.starts_with("has a UTC offset, but samples[0][0] has none"), "{message}");
    let samples = r#""samples":[["2026-01-01T10:00:00",1.5],["2026-01-02T00:00:00",2.0]]"#;
    let written = put();
    assert!(written.contains(samples) && !written.contains('Z'), "{written}");
}

#[tokio::test]
async fn bundles_that_match_the_schema_are_accepted_and_those_just_outside_are_refused() {
    let schema = Schema::published(contracts::readings::BUNDLE_SCHEMA);
    let stream = stream(|_, _| accepted_entry()).await;
    for seed in 0..300 {
        let mut rng = Rng::from_seed(seed);
        let bundle = in_order(schema.document(&mut rng));
        let response = api_response(accept(&stream, &bundle.to_string()).await);
        assert_eq!(response["statusCode"], 202, "seed {seed}: {bundle} {response}");
        assert_eq!(stream.take_calls().len(), 1);

        let InvalidDocument { field, what, document } =
            schema.random_invalid_document(&bundle, &mut rng);
        // In a list, so that an array instead of a bundle is not read as the list.
        let response = api_response(accept(&stream, &json!([document]).to_string()).await);
        let field = match field.as_str() {
            "" => "[0]".to_owned(),
            field => format!("[0].{field}"),
        };
        // An error about the range of a value may name the whole sample.
        let sample = field.strip_suffix("[1]").unwrap_or(&field);
        let errors = response["body"]["errors"].as_array();
        let errors = errors.unwrap_or_else(|| panic!("{what} of {field} is accepted: {document}"));
        let fields: Vec<_> = errors.iter().filter_map(|error| error["field"].as_str()).collect();
        assert!(
            fields.contains(&field.as_str()) || fields.contains(&sample),
            "seed {seed}, {what} of {field}: {response}"
        );
        // The other series are accepted.
        let accepted = response["statusCode"] == 202;
        assert!(accepted || response["statusCode"] == 400, "seed {seed}: {response}");
        assert_eq!(stream.take_calls().len(), usize::from(accepted), "seed {seed}");
    }
}

/// Returns a bundle of exactly `bytes` bytes, with times and values in their shortest form.
fn bundle_of_bytes(bytes: usize) -> String {
    let sample = |n: i64| {
        let time = noon(60 * (n - 50_000)).to_string();
        format!(r#"["{}Z",1]"#, &time[..16])
    };
    let body = |samples: &[String]| {
        let (site, sensor) = (site("a"), sensor());
        let samples = samples.join(",");
        format!(
            r#"{{"bundleId":"b-1","siteId":"{site}","series":[{{"sensorId":"{sensor}","samples":[{samples}]}}]}}"#
        )
    };
    let fit = (bytes - body(&[]).len()) / (sample(0).len() + 1);
    let samples: Vec<_> = (0..).map(sample).take(fit).collect();
    let mut body = body(&samples);
    // The few bytes that are left are filled with white space.
    body.insert_str(1, &" ".repeat(bytes - body.len()));
    body
}

#[tokio::test]
async fn a_bundle_up_to_the_size_of_a_record_is_put_unchanged() {
    let stream = stream(|_, _| accepted_entry()).await;
    let key = contracts::stream::partition_key(site("a"), OperatorId::DEFAULT).len();
    for bytes in [975_148, 1024 * 1024 - key] {
        let body = bundle_of_bytes(bytes);
        assert_eq!(body.len(), bytes);
        let response = api_response(accept(&stream, &body).await);
        assert_eq!(response["statusCode"], 202, "{response}");
        let record = stream.take_calls().remove(0).json()["Records"][0]["Data"].take();
        let data = STANDARD.decode(record.as_str().expect("text")).expect("base64");
        assert!(data == body.as_bytes(), "the data differs from the body");
    }
    let response = api_response(accept(&stream, &bundle_of_bytes(1024 * 1024 - key + 1)).await);
    assert_eq!(response["statusCode"], 413);
    let message = response["body"]["errors"][0]["message"].as_str().expect("a message");
    assert_eq!(message, "bundle b-1 has 1048504 bytes; give at most 1048503");

    // White space alone does not make a bundle too large.
    let indented: Value = serde_json::from_str(&bundle_of_bytes(500_000)).expect("JSON");
    let indented = format!("{indented:#}");
    assert!(indented.len() > 1024 * 1024, "{} bytes", indented.len());
    assert_eq!(api_response(accept(&stream, &indented).await)["statusCode"], 202);
}

#[tokio::test]
async fn a_bundle_with_a_refused_series_is_not_longer_on_the_stream_than_as_sent() {
    let stream = stream_by_call(|_| entries(&[accepted_entry()])).await;
    let key = "fsl_0123456789abcdefghijklmnopqrstuvwxyz";
    let bad = format!(r#"{{"sensorId":"{key}","samples":[]}},{{"sensorId":"{}""#, sensor());
    // With 950,000 bytes, the serialized bundle does not fit into a record. With 100,000 bytes, it does.
    for bytes in [100_000, 950_000] {
        // The shortest form of the times and values is shorter than the form in which they are serialized again.
        let good = bundle_of_bytes(bytes);
        let body = good.replace(&format!(r#"{{"sensorId":"{}""#, sensor()), &bad);
        let response = api_response(accept(&stream, &body).await);
        assert_eq!(response["statusCode"], 202, "{response}");
        assert_eq!(response["body"]["errors"][0]["field"], "series[0].sensorId", "{response}");
        assert!(!response.to_string().contains("fsl_012345678"), "{response}");
        let record = stream.take_calls().remove(0).json()["Records"][0].take();
        let data = STANDARD.decode(record["Data"].as_str().expect("text")).expect("base64");
        assert!(data.len() <= body.len(), "{} bytes, sent were {}", data.len(), body.len());
        assert_eq!(Bundle::read(&good, noon(0)), Ok(put_bundle(&record)));
    }
}

#[tokio::test]
async fn a_value_that_json_can_not_express_refuses_no_bundle() {
    let stream = stream(|_, _| accepted_entry()).await;
    // Python's json.dumps writes these values.
    let samples = |value| json!([["2026-01-01T11:00:00Z", value], ["2026-01-01T11:01:00Z", 1.5]]);
    let list: Vec<_> = ["NaN", "Infinity", "-Infinity"]
        .iter()
        .enumerate()
        .map(|(index, value)| {
            let bundle = bundle(&format!("b-{index}"), site("a"), &samples("NAN"));
            bundle.to_string().replace("\"NAN\"", value)
        })
        .collect();
    for body in [format!("[{}]", list.join(", ")), list[0].clone()] {
        let response = api_response(accept(&stream, &body).await);
        assert_eq!(response["statusCode"], 202, "{response}");
        assert_eq!(response["body"].get("errors"), None, "{response}");
        for record in stream.take_calls().remove(0).json()["Records"].as_array().expect("records") {
            let data = STANDARD.decode(record["Data"].as_str().expect("text")).expect("base64");
            let bundle = Bundle::read(str::from_utf8(&data).expect("text"), noon(0));
            let bundle = bundle.expect("a bundle");
            let values = bundle.series[0].samples.iter().map(|it| it.value);
            assert!(values.eq([None, Some(1.5)]));
        }
    }
}

#[tokio::test]
async fn only_records_that_failed_are_put_again() {
    let stream = stream(|id, attempt| match (id, attempt) {
        ("b-1", 1 | 2) => rejected_entry("ProvisionedThroughputExceededException"),
        ("b-3", 1) => rejected_entry("InternalFailure"),
        _ => accepted_entry(),
    })
    .await;
    let response = api_response(accept(&stream, &bundles(4).to_string()).await);
    assert_eq!(response["statusCode"], 202);
    assert_eq!(response["body"], json!({ "accepted": 4, "bundles": ["b-0", "b-1", "b-2", "b-3"] }));
    let all = vec!["b-0", "b-1", "b-2", "b-3"];
    assert_eq!(put_calls(&stream), [all, vec!["b-1", "b-3"], vec!["b-1"]]);
}

#[tokio::test]
async fn records_without_a_result_and_of_failed_calls_are_put_again() {
    let stream = stream_by_call(|call| match call {
        1 => (500, json!({ "__type": "InternalFailure" })),
        2 => (400, json!({ "__type": "ProvisionedThroughputExceededException" })),
        // The second record has neither a sequence number nor an error.
        4 => entries(&[accepted_entry(), json!({})]),
        // The response has a result for the first record only.
        _ => entries(&[accepted_entry()]),
    })
    .await;
    let response = api_response(accept(&stream, &bundles(3).to_string()).await);
    assert_eq!(response["statusCode"], 202, "{response}");
    let all = vec!["b-0", "b-1", "b-2"];
    assert_eq!(
        put_calls(&stream),
        [all.clone(), all.clone(), all, vec!["b-1", "b-2"], vec!["b-2"]]
    );
}

#[tokio::test]
async fn a_throttled_stream_is_a_503_with_the_bundles_that_were_put_and_those_that_were_not() {
    let stream = stream(|id, _| match id {
        "b-1" | "b-3" => rejected_entry("ProvisionedThroughputExceededException"),
        _ => accepted_entry(),
    })
    .await;
    let started = Instant::now();
    check("accept-readings.stream-busy", accept(&stream, &bundles(4).to_string()).await);
    // Five pauses with jitter: at most 3.1 s, on average 1.5 s.
    assert!(started.elapsed() > Duration::from_millis(100), "there is a pause before a retry");
    let put_calls = put_calls(&stream);
    assert_eq!(put_calls.len(), 6, "the number of attempts is limited");
    assert!(put_calls[1..].iter().all(|call| call == &["b-1", "b-3"]));

    let single = bundles(1)[0].take().to_string().replace("b-0", "b-1");
    let time = Duration::from_millis(200);
    check("accept-readings.stream-busy-alone", accept_within(time, &stream, &single).await);
}

#[tokio::test]
async fn a_hanging_stream_leaves_time_for_the_response() {
    let stream = Stub::start(|_| (NO_RESPONSE, json!({}))).await;
    let started = Instant::now();
    let time = Duration::from_millis(200);
    let response = api_response(accept_within(time, &stream, &bundles(2).to_string()).await);
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(response["statusCode"], 503);
    assert_eq!(response["body"]["accepted"], 0);
    assert_eq!(response["body"]["bundles"], json!([]));
    assert_eq!(response["headers"]["retry-after"], "5");
    assert_eq!(stream.take_calls().len(), 1);
}

#[tokio::test]
async fn a_permanent_error_of_the_stream_is_an_internal_error() {
    for error in ["AccessDeniedException", "ResourceNotFoundException", "KMSDisabledException"] {
        let stream =
            Stub::start(move |_| (400, json!({ "__type": error, "message": "inside" }))).await;
        check("accept-readings.internal", accept(&stream, &bundles(1).to_string()).await);
        assert_eq!(stream.take_calls().len(), 1, "{error} is permanent and must not be retried");
    }
}

#[tokio::test]
async fn a_permanent_error_after_some_bundles_were_put_is_a_503() {
    let stream = stream_by_call(|call| match call {
        1 => entries(&[accepted_entry(), rejected_entry("InternalFailure")]),
        _ => (400, json!({ "__type": "AccessDeniedException" })),
    })
    .await;
    let response = api_response(accept(&stream, &bundles(2).to_string()).await);
    assert_eq!(
        (&response["statusCode"], &response["body"]["bundles"]),
        (&json!(503), &json!(["b-0"]))
    );
    assert_eq!(stream.take_calls().len(), 2);
}

// ---- get-readings ----

fn paging() -> Paging {
    let key = SigningKey::new("a key that is long enough for the tests").expect("a key");
    Paging::new(KeySource::Fixed(key))
}

fn get_readings(dynamo: &Dynamo) -> GetReadings {
    GetReadings { readings: dynamo.table(READINGS), paging: paging() }
}

/// Returns `GET /sensors/{sensorId}/readings` with a query, in API Gateway's format.
fn get_request(sensor: &str, query: &[(&str, &str)]) -> Request {
    let mut event = sample::event("get-readings");
    event["path"] = format!("/sensors/{sensor}/readings").into();
    event["pathParameters"] = json!({ "sensorId": sensor });
    event["queryStringParameters"] = json!({});
    event["multiValueQueryStringParameters"] = json!({});
    for (name, value) in query {
        event["queryStringParameters"][name] = (*value).into();
        event["multiValueQueryStringParameters"][name] = json!([value]);
    }
    serde_json::from_value(event).expect("an event of API Gateway")
}

async fn get(dynamo: &Dynamo, query: &[(&str, &str)]) -> Result<Response, Problem> {
    get_readings(dynamo).handle(&default_caller(), &get_request(&sensor().to_string(), query)).await
}

/// Adds the sensor to the register.
async fn register(dynamo: &Dynamo, retired_at: Option<Timestamp>) {
    let saga = saga("a");
    let known = sensors(saga, &[Metric::AirTemperature]).remove(0);
    let row = SensorRow {
        site_id: saga.site_id,
        operator_id: saga.operator_id,
        sensor: Some(known),
        retired_at,
        sensor_sequence: None,
        changes: 0,
    };
    create(dynamo, &SensorRow::key(sensor()), &row).await;
}

async fn create(dynamo: &Dynamo, key: &store::Key, row: &impl serde::Serialize) {
    let table = dynamo.table(READINGS);
    let commit = Transaction::on(&table).create(&table, key, row).commit().await;
    assert!(matches!(commit, Ok(Commit::Done)), "{commit:?}");
}

/// Returns the row of a series.
fn row(bundle: &str, stored_at: i64, samples: &[(Timestamp, f64)]) -> SeriesRow {
    let samples: Vec<_> = samples.iter().map(|(at, value)| Sample::new(*at, *value)).collect();
    let (start, end) = (samples[0].at, samples[samples.len() - 1].at);
    SeriesRow {
        row: RowKey::text(start, &bundle.parse().expect("an id"), FIRST_REVISION),
        end: end.millis(),
        stored_at,
        arrival: None,
        earlier: Vec::new(),
        samples: ByteBuf::from(pack(&samples, &Qualifiers::default())),
        hash: ByteBuf::from([0; 16]),
    }
}

async fn fill(dynamo: &Dynamo, rows: &[SeriesRow]) {
    fill_sensor(dynamo, sensor(), rows).await;
}

async fn fill_sensor(dynamo: &Dynamo, sensor: SensorId, rows: &[SeriesRow]) {
    for rows in rows.chunks(25) {
        let puts = rows.iter().map(|row| {
            let mut item: std::collections::HashMap<_, _> =
                serde_dynamo::to_item(row).expect("a row");
            item.insert("sensorId".to_owned(), AttributeValue::S(sensor.to_string()));
            let put = PutRequest::builder().set_item(Some(item)).build().expect("a put");
            WriteRequest::builder().put_request(put).build()
        });
        let puts = dynamo.client().batch_write_item().request_items(READINGS, puts.collect());
        let left = puts.send().await.expect("rows put").unprocessed_items.unwrap_or_default();
        assert!(left.is_empty());
    }
}

fn minute(n: i64) -> Timestamp {
    noon(60 * n)
}

/// Returns two bundles of a morning, a late correction, and a bundle of the next day.
fn sample_rows() -> Vec<SeriesRow> {
    vec![
        row("b-1", 1, &[(minute(0), -7.6), (minute(15), -7.5), (minute(30), -7.7)]),
        row("b-2", 2, &[(minute(45), -7.0), (minute(60), -6.4), (minute(75), -6.5)]),
        row("b-1c", 3, &[(minute(15), -9.5), (minute(50), -7.1)]),
        row("b-3", 4, &[(minute(24 * 60), 3.25)]),
    ]
}

#[tokio::test]
async fn samples_and_their_aggregates_are_returned() {
    let dynamo = Dynamo::start().await;
    register(&dynamo, None).await;
    check("get-readings.empty", get(&dynamo, &[]).await);
    fill(&dynamo, &sample_rows()).await;
    let (from, to) = (minute(15).to_string(), minute(60).to_string());
    let range = [("from", from.as_str()), ("to", to.as_str())];
    check("get-readings.all", get(&dynamo, &[]).await);
    check("get-readings.range", get(&dynamo, &range).await);
    check("get-readings.newest", get(&dynamo, &[("order", "desc"), ("limit", "1")]).await);
    check("get-readings.days", get(&dynamo, &[("aggregate", "day")]).await);
    let flags = [("flags", "true"), ("limit", "1"), ("values", "raw"), ("quality", "all")];
    check("get-readings.flags", get(&dynamo, &flags).await);
    // The range begins within the first hour.
    let hours = [("aggregate", "hour"), ("from", from.as_str()), ("order", "desc")];
    check("get-readings.hours", get(&dynamo, &hours).await);
    let sample = sample::event("get-readings");
    let request = serde_json::from_value(sample).expect("an event of API Gateway");
    let response = api_response(get_readings(&dynamo).handle(&default_caller(), &request).await);
    assert_eq!(
        response["statusCode"], 404,
        "a valid request for a sensor that is not here: {response}"
    );
}

#[tokio::test]
async fn a_page_has_a_token_for_the_next_page() {
    let dynamo = Dynamo::start().await;
    register(&dynamo, None).await;
    fill(&dynamo, &sample_rows()).await;
    let first = get(&dynamo, &[("limit", "2")]).await;
    check("get-readings.page", first);
    let first = api_response(get(&dynamo, &[("limit", "2")]).await);
    let next = first["body"]["next"].as_str().expect("another page");
    // The limit may differ from page to page.
    check("get-readings.next-page", get(&dynamo, &[("next", next), ("limit", "100")]).await);

    for other in [
        [("next", next), ("order", "desc")],
        [("next", next), ("aggregate", "hour")],
        [("next", next), ("from", "2026-01-01T00:00:00Z")],
        [("next", next), ("to", "2027-01-01T00:00:00Z")],
        [("next", next), ("quality", "good")],
        [("next", next), ("values", "raw")],
        [("next", next), ("flags", "true")],
    ] {
        check("get-readings.foreign-next", get(&dynamo, &other).await);
    }
    let changed = format!("{}A", &next[..next.len() - 1]);
    check("get-readings.foreign-next", get(&dynamo, &[("next", &changed)]).await);
    let other = SensorId::from_onboarding(saga("a").onboarding_id, 1).to_string();
    let response = get_readings(&dynamo)
        .handle(&default_caller(), &get_request(&other, &[("next", next)]))
        .await;
    check("get-readings.foreign-next", response);
}

#[tokio::test]
async fn a_sensor_of_another_operator_is_answered_like_an_unknown_sensor() {
    let dynamo = Dynamo::start().await;
    let other = saga_of(other_operator(), "a");
    let described = sensors(other, &[Metric::AirTemperature]).remove(0);
    let row = SensorRow {
        site_id: other.site_id,
        operator_id: other.operator_id,
        sensor: Some(described.clone()),
        retired_at: None,
        sensor_sequence: None,
        changes: 0,
    };
    create(&dynamo, &SensorRow::key(described.sensor_id), &row).await;
    fill_sensor(&dynamo, described.sensor_id, &sample_rows()).await;
    let unknown = SensorId::from_onboarding(saga("nobody").onboarding_id, 0);
    let mut answers = Vec::new();
    for sensor in [unknown, described.sensor_id] {
        let request = get_request(&sensor.to_string(), &[]);
        drop(dynamo.take_usage());
        let response = get_readings(&dynamo).handle(&default_caller(), &request).await;
        let response = api_response(response).to_string().replace(&sensor.to_string(), "<id>");
        answers.push((response, dynamo.take_usage().calls));
    }
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0].0.contains("404"), "{answers:?}");

    // Its own operator reads it, also page by page. The token is not valid for another operator.
    let owner = caller(other_operator(), Scope::Read);
    let request = get_request(&described.sensor_id.to_string(), &[("limit", "2")]);
    let first = api_response(get_readings(&dynamo).handle(&owner, &request).await);
    let next = first["body"]["next"].as_str().expect("another page");
    let request = get_request(&described.sensor_id.to_string(), &[("next", next)]);
    let second = api_response(get_readings(&dynamo).handle(&owner, &request).await);
    assert_eq!(second["statusCode"], 200, "{second}");
    let response = get_readings(&dynamo).handle(&default_caller(), &request).await;
    check("get-readings.foreign-next", response);

    for scope in [Scope::Logger(other.site_id), Scope::Bootstrap] {
        let caller = caller(other_operator(), scope);
        let response = api_response(get_readings(&dynamo).handle(&caller, &request).await);
        assert_eq!(response["statusCode"], 403, "{scope}");
    }
}

#[tokio::test]
async fn the_rows_and_page_tokens_of_earlier_releases_belong_to_the_default_operator() {
    let dynamo = Dynamo::start().await;
    let described = sensors(saga("a"), &[Metric::AirTemperature]).remove(0);
    // The row has no operator.
    let row = json!({ "siteId": site("a"), "sensor": described });
    create(&dynamo, &SensorRow::key(sensor()), &row).await;
    fill(&dynamo, &sample_rows()).await;
    assert_eq!(api_response(get(&dynamo, &[]).await)["statusCode"], 200);
    let request = get_request(&sensor().to_string(), &[]);
    let stranger = caller(other_operator(), Scope::Operator);
    let response = api_response(get_readings(&dynamo).handle(&stranger, &request).await);
    assert_eq!(response["statusCode"], 404);

    // The token that version 1 made for the first page.
    let first = api_response(get(&dynamo, &[("limit", "2")]).await);
    let golden = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/goldens/get-readings.page.json"
    ));
    let golden: Value = serde_json::from_str(&golden.expect("a file")).expect("JSON");
    assert_eq!(first["body"]["next"], golden["body"]["next"]);
}

#[tokio::test]
async fn an_unknown_sensor_is_not_found_and_a_retired_one_still_has_its_readings() {
    let dynamo = Dynamo::start().await;
    check("get-readings.unknown", get(&dynamo, &[]).await);
    // Only the sensor's retirement has arrived: its unit is unknown.
    let row = SensorRow {
        site_id: site("a"),
        operator_id: OperatorId::DEFAULT,
        sensor: None,
        retired_at: Some(noon(0)),
        sensor_sequence: None,
        changes: 0,
    };
    let early = SensorId::from_onboarding(saga("a").onboarding_id, 1);
    create(&dynamo, &SensorRow::key(early), &row).await;
    let response = api_response(
        get_readings(&dynamo)
            .handle(&default_caller(), &get_request(&early.to_string(), &[]))
            .await,
    );
    assert_eq!(response["statusCode"], 404);

    register(&dynamo, Some(minute(100))).await;
    fill(&dynamo, &sample_rows()).await;
    check("get-readings.all", get(&dynamo, &[]).await);
}

#[tokio::test]
async fn an_invalid_query_is_refused_with_instructions() {
    let dynamo = Dynamo::start().await;
    register(&dynamo, None).await;
    check(
        "get-readings.no-id",
        get_readings(&dynamo).handle(&default_caller(), &get_request("42", &[])).await,
    );
    let query = [
        ("aggregate", "week"),
        ("colour", "red"),
        ("from", "yesterday"),
        ("limit", "10001"),
        ("order", "up"),
        ("to", "2026-01-01"),
    ];
    check("get-readings.wrong-query", get(&dynamo, &query).await);
    let at = noon(0).to_string();
    check("get-readings.no-time-between", get(&dynamo, &[("from", &at), ("to", &at)]).await);
    for (query, good) in [
        ([("limit", "10000"), ("order", "asc")], true),
        ([("limit", "0"), ("order", "asc")], false),
        ([("limit", "1000"), ("aggregate", "day")], true),
        ([("limit", "1001"), ("aggregate", "day")], false),
        ([("from", "1960-01-01T00:00:00Z"), ("to", "1961-01-01T00:00:00Z")], true),
        ([("from", "1960-01-01T00:00:00Z"), ("to", "9999-12-30T00:00:00Z")], true),
    ] {
        let response = api_response(get(&dynamo, &query).await);
        assert_eq!(response["statusCode"], if good { 200 } else { 400 }, "{query:?}: {response}");
    }
}

#[tokio::test]
async fn an_internal_problem_is_a_5xx_response_without_internal_details() {
    for (status, name) in [(500, "unavailable"), (400, "internal")] {
        let table = Stub::start(move |_| (status, json!({ "message": "inside" }))).await;
        let client = aws_sdk_dynamodb::Client::new(&table.config());
        let step = GetReadings { readings: Table::new(client, READINGS), paging: paging() };
        let response =
            step.handle(&default_caller(), &get_request(&sensor().to_string(), &[])).await;
        check(&format!("get-readings.{name}"), response);
    }
    let dynamo = Dynamo::start().await;
    register(&dynamo, None).await;
    let mut broken = sample_rows();
    broken[1].samples = ByteBuf::from(b"?");
    fill(&dynamo, &broken).await;
    check("get-readings.internal", get(&dynamo, &[]).await);
}

/// Reads all pages. Returns the samples or buckets of all pages, and their number per page.
async fn read_pages(dynamo: &Dynamo, query: &[(&str, &str)]) -> (Vec<Value>, Vec<usize>) {
    let field =
        if query.iter().any(|(name, _)| *name == "aggregate") { "buckets" } else { "samples" };
    let (mut all, mut pages) = (Vec::new(), Vec::new());
    let mut next: Option<String> = None;
    loop {
        let mut query = query.to_vec();
        query.extend(next.as_deref().map(|next| ("next", next)));
        let mut response = api_response(get(dynamo, &query).await);
        assert_eq!(response["statusCode"], 200, "{response}");
        let page = response["body"][field].as_array_mut().expect("a page");
        pages.push(page.len());
        assert!(pages.len() < 100, "the pages do not end: {pages:?}");
        all.append(page);
        match response["body"]["next"].as_str() {
            Some(token) => next = Some(token.to_owned()),
            None => return (all, pages),
        }
    }
}

#[tokio::test]
async fn all_pages_of_many_rows_contain_every_sample_once() {
    let dynamo = Dynamo::start().await;
    register(&dynamo, None).await;
    // 20 days of hourly bundles with a sample every ten minutes. For every third hour there is a second bundle of
    // three hours, stored before or after the others.
    let samples = |hour: i32, count: i64, value: f64| -> Vec<_> {
        let begin = 60 * i64::from(hour);
        (0..count).map(|n| (minute(begin + 10 * n), value)).collect()
    };
    let rows: Vec<_> = (0..480_i32)
        .flat_map(|hour| {
            let again = samples(hour, 18, -f64::from(hour) - 0.5);
            let stored_at = if hour % 2 == 0 { 20 } else { 1 };
            let again = (hour % 3 == 0).then(|| row("again", stored_at, &again));
            let first = row("b", 10, &samples(hour, 6, f64::from(hour)));
            [Some(first), again].into_iter().flatten()
        })
        .collect();
    fill(&dynamo, &rows).await;
    let mut expected: BTreeMap<Timestamp, (i64, f64)> = BTreeMap::new();
    for row in &rows {
        for Sample { at, value, .. } in unpack(&row.samples).expect("samples") {
            let value = value.expect("a value");
            let last = expected.entry(at).or_insert((row.stored_at, value));
            if row.stored_at > last.0 {
                *last = (row.stored_at, value);
            }
        }
    }
    let (from, to) = (minute(60 * 50 + 5), minute(60 * 400));
    let (from_text, to_text) = (from.to_string(), to.to_string());
    let within: Vec<_> =
        expected.range(from..to).map(|(at, (_, value))| json!([at, value])).collect();
    for (order, limit) in [("asc", "1000"), ("desc", "999"), ("asc", "10000")] {
        let query =
            [("from", from_text.as_str()), ("to", &to_text), ("order", order), ("limit", limit)];
        let (mut all, pages) = read_pages(&dynamo, &query).await;
        if order == "desc" {
            all.reverse();
        }
        assert_eq!(all, within, "{order}");
        let max: usize = limit.parse().expect("a number");
        assert!(pages[..pages.len() - 1].iter().all(|page| *page == max), "{pages:?}");
    }

    let query =
        [("from", from_text.as_str()), ("to", &to_text), ("aggregate", "day"), ("limit", "4")];
    let (days, pages) = read_pages(&dynamo, &query).await;
    assert_eq!(pages, [4, 4, 4, 4], "16 days; the first and the last are partial");
    let counts: Vec<_> = days.iter().map(|day| day["count"].as_u64().expect("a count")).collect();
    assert_eq!(counts.iter().sum::<u64>(), within.len() as u64);
    assert_eq!((counts[0], counts[1]), (59, 144));
}

#[tokio::test]
async fn a_request_that_spent_its_budget_returns_a_partial_page() {
    let dynamo = Dynamo::start().await;
    register(&dynamo, None).await;
    // A row every ten seconds for more than 16 hours. A query may have to look back a day.
    let rows: Vec<_> =
        (0..6_000_i32).map(|n| row("b", 0, &[(noon(10 * i64::from(n)), f64::from(n))])).collect();
    fill(&dynamo, &rows).await;
    let from = noon(10 * 5_990).to_string();
    let (all, pages) = read_pages(&dynamo, &[("from", &from)]).await;
    assert_eq!(pages, [0, 10], "the first page has no samples of the range");
    assert_eq!(all[0], json!([noon(59_900), 5_990.0]));

    // In descending order no sample is final before the query has looked back a day, so it reads on beyond its budget.
    let (_, pages) = read_pages(&dynamo, &[("order", "desc"), ("limit", "3000")]).await;
    assert_eq!(pages, [3_000, 3_000]);
    let (_, pages) = read_pages(&dynamo, &[("limit", "10000")]).await;
    assert_eq!(pages, [4_999, 1_001]);
}
