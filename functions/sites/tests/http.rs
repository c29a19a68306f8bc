//! Tests of the HTTP API with requests and responses in API Gateway's format.

mod support;

use audit::Trail;
use aws_sdk_sfn::Client;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use contracts::{
    Metric, OperatorId, SagaContext, Scope, SiteId,
    inbound::{MAX_NAME, MAX_PAYMENT_METHOD, MAX_SENSORS},
    saga::STEPS,
};
use futures_util::future::join_all;
use machines::StateMachine;
use serde_json::{Value, json};
use sites::{
    activate_site::ActivateSite, close_site::CloseSite, create_site::CreateSite,
    decommission_site::DecommissionSite, get_site::GetSite,
};
use support::{
    api_response, check, create, create_for, list, on_site, post, project, registrar, registration,
    saga_for_key, step_event, trail,
};
use testkit::{
    Dynamo,
    dynamo::{AUDIT, SITES},
    http::Stub,
    saga::run,
    sample::{caller, default_caller, noon, other_operator, payload},
};

const TEARDOWN: &str = "arn:aws:states:eu-central-1:111122223333:stateMachine:site-teardown";

fn get_site(dynamo: &Dynamo) -> GetSite {
    GetSite { sites: dynamo.table(SITES) }
}

async fn get(dynamo: &Dynamo, key: &str) -> Value {
    let site = saga_for_key(key).site_id.to_string();
    api_response(get_site(dynamo).handle(&default_caller(), &on_site("get-site", &site)).await)
}

async fn activate(dynamo: &Dynamo, key: &str) {
    let step = ActivateSite { sites: dynamo.table(SITES), outbox: dynamo.outbox() };
    run(&step, &payload(saga_for_key(key))).await.expect("an active site");
}

async fn close(dynamo: &Dynamo, key: &str, failure: Value) {
    let step = CloseSite { sites: dynamo.table(SITES), outbox: dynamo.outbox() };
    let mut payload = payload(saga_for_key(key));
    payload["failure"] = failure;
    run(&step, &payload).await.expect("a closed site");
}

fn failure() -> Value {
    json!({
        "step": "InitializeSubscription",
        "error": "CardDeclined",
        "message": "Your card was declined.",
    })
}

#[tokio::test]
async fn an_idempotency_key_of_128_characters_is_accepted() {
    let dynamo = Dynamo::start().await;
    let step = CreateSite(registrar(&dynamo));
    let request = post(Some(&"k".repeat(128)), &registration().to_string());
    assert_eq!(
        api_response(step.handle(&default_caller(), &request, noon(0)).await)["statusCode"],
        202
    );
}

#[tokio::test]
async fn repeated_requests_create_one_site_and_get_the_same_response() {
    let dynamo = Dynamo::start().await;
    let step = CreateSite(registrar(&dynamo));
    let request = post(Some("key-1"), &registration().to_string());
    check("create-site.accepted", step.handle(&default_caller(), &request, noon(0)).await);
    let after = dynamo.all_rows().await;
    check("create-site.accepted", step.handle(&default_caller(), &request, noon(5)).await);
    // The same JSON with other white space is the same request.
    let request = post(Some("key-1"), &format!("{:#}", registration()));
    check("create-site.accepted", step.handle(&default_caller(), &request, noon(5)).await);
    assert_eq!(dynamo.all_rows().await, after);
    assert_eq!(dynamo.event_types(saga_for_key("key-1").site_id).await, ["SiteCreated"]);

    let mut other = registration();
    other["name"] = "Another one".into();
    let request = post(Some("key-1"), &other.to_string());
    check("create-site.key-reused", step.handle(&default_caller(), &request, noon(5)).await);
    assert_eq!(dynamo.all_rows().await, after);
}

#[tokio::test]
async fn concurrent_requests_with_one_key_create_one_site() {
    let dynamo = Dynamo::start().await;
    let step = CreateSite(registrar(&dynamo));
    let request = post(Some("key-1"), &registration().to_string());
    let caller = default_caller();
    let responses = join_all((0..6).map(|_| step.handle(&caller, &request, noon(0)))).await;
    for response in responses {
        check("create-site.accepted", response);
    }
    assert_eq!(dynamo.rows(SITES).await.len(), 1);
    assert_eq!(dynamo.event_types(saga_for_key("key-1").site_id).await, ["SiteCreated"]);
}

#[tokio::test]
async fn an_invalid_request_is_refused_with_instructions() {
    let dynamo = Dynamo::start().await;
    let step = CreateSite(registrar(&dynamo));
    let valid = registration().to_string();
    let mut invalid = registration();
    invalid["name"] = " ".into();
    invalid["location"]["latitude"] = 91.into();
    invalid["sensors"][0]["unit"] = "degF".into();
    let mut unknown = registration();
    unknown["sensors"][1]["colour"] = "red".into();
    let mut metric = registration();
    metric["sensors"][1]["metric"] = "sunniness".into();
    let long = "k".repeat(129);
    let large = format!("{valid}{}", " ".repeat(300_000));
    for (name, key, body) in [
        ("create-site.no-key", None, valid.as_str()),
        ("create-site.long-key", Some(long.as_str()), &valid),
        ("create-site.wrong-fields", Some("k"), &invalid.to_string()),
        ("create-site.unknown-field", Some("k"), &unknown.to_string()),
        ("create-site.unknown-metric", Some("k"), &metric.to_string()),
        (
            "create-site.missing-fields",
            Some("k"),
            r#"{"location": {}, "sensors": [{}], "plan": "gold"}"#,
        ),
        (
            "create-site.no-object",
            Some("k"),
            r#"["Alamosa", "NOAA", [37.7, -105.92, 2317], [], "standard", "pm_1"]"#,
        ),
        ("create-site.no-json", Some("k"), "{\"name\":"),
        ("create-site.no-body", Some("k"), ""),
        ("create-site.too-large", Some("k"), &large),
    ] {
        check(name, step.handle(&default_caller(), &post(key, body), noon(0)).await);
    }
    assert_eq!(dynamo.rows(SITES).await, [Value::Null; 0]);
}

fn with(pointer: &str, value: Value) -> String {
    let mut registration = registration();
    *registration.pointer_mut(pointer).expect("a field") = value;
    registration.to_string()
}

/// Returns the fields that the errors of a 400 response name.
fn error_fields(response: &Value) -> Vec<&str> {
    assert_eq!(response["statusCode"], 400, "{response}");
    let errors = response["body"]["errors"].as_array().expect("errors");
    errors.iter().filter_map(|error| error["field"].as_str()).collect()
}

#[tokio::test]
async fn a_number_outside_the_range_of_dynamodb_is_refused_with_its_field() {
    let dynamo = Dynamo::start().await;
    let step = CreateSite(registrar(&dynamo));
    let zero = with("/location/latitude", json!(0.0));
    for (pointer, value, field) in [
        ("/sensors/0/min", json!(1e126), "sensors[0].min"),
        ("/sensors/0/min", json!(9e-131), "sensors[0].min"),
        ("/sensors/0/min", json!(-1e200), "sensors[0].min"),
        ("/sensors/0/max", json!(1e126), "sensors[0].max"),
        ("/sensors/0/max", json!(-9e-131), "sensors[0].max"),
        ("/location/latitude", json!(1e-200), "location.latitude"),
        ("/location/longitude", json!(-1e-131), "location.longitude"),
        ("/location/elevationM", json!(5e-324), "location.elevationM"),
    ] {
        let response = api_response(
            step.handle(&default_caller(), &post(Some("k"), &with(pointer, value)), noon(0)).await,
        );
        assert!(error_fields(&response).contains(&field), "{response}");
    }
    // More than an `f64` can hold.
    let huge = with("/sensors/0/max", json!(60)).replace("\"max\":60", "\"max\":1e999");
    assert_eq!(
        error_fields(&api_response(
            step.handle(&default_caller(), &post(Some("k"), &huge), noon(0)).await
        )),
        ["sensors[0].max"]
    );
    assert_eq!(dynamo.rows(SITES).await, [Value::Null; 0]);

    for (key, body) in [
        ("zero", zero),
        ("small", with("/sensors/0/min", json!(1e-130))),
        ("large", with("/sensors/0/max", json!(contracts::number::MAX_MAGNITUDE))),
        ("low", with("/sensors/0/min", json!(-contracts::number::MAX_MAGNITUDE))),
    ] {
        let response =
            api_response(step.handle(&default_caller(), &post(Some(key), &body), noon(0)).await);
        assert_eq!(response["statusCode"], 202, "{key}: {response}");
        let row = dynamo.rows(SITES).await;
        assert!(row.iter().any(|row| row["siteId"] == json!(saga_for_key(key).site_id)), "{key}");
    }
}

#[tokio::test]
async fn text_with_control_characters_or_excessive_length_is_refused() {
    let dynamo = Dynamo::start().await;
    let step = CreateSite(registrar(&dynamo));
    let padded = format!("a{}", " ".repeat(60_000));
    for (pointer, field) in
        [("/name", "name"), ("/operator", "operator"), ("/paymentMethod", "paymentMethod")]
    {
        for text in [
            padded.as_str(),
            "",
            " ",
            "\u{200d}",
            "a\0",
            "a\u{1b}[2J",
            "a\nb",
            "a\rb",
            "a\u{85}",
            "a\u{200b}b",
            "\u{202e}a",
            "a\u{2066}b",
            "a\u{2069}",
            "\u{feff}a",
        ] {
            let body = with(pointer, json!(text));
            let response = api_response(
                step.handle(&default_caller(), &post(Some("k"), &body), noon(0)).await,
            );
            assert_eq!(error_fields(&response), [field], "{text:?}");
        }
    }
    assert_eq!(dynamo.rows(SITES).await, [Value::Null; 0]);

    let name = "\u{3000} \u{645}\u{6cc}\u{200c}\u{62e}\u{648}\u{627}\u{647}\u{645} ";
    let response = step
        .handle(&default_caller(), &post(Some("k"), &with("/name", json!(name))), noon(0))
        .await;
    assert_eq!(api_response(response)["statusCode"], 202);
    assert_eq!(dynamo.rows(SITES).await[0]["name"], name.trim());
}

#[tokio::test]
async fn a_registration_at_every_limit_is_accepted_and_fits_into_an_event() {
    let dynamo = Dynamo::start().await;
    let step = CreateSite(registrar(&dynamo));
    let mut body = registration();
    body["name"] = "\u{1f52c}".repeat(MAX_NAME).into();
    body["operator"] = "\u{1f52c}".repeat(MAX_NAME).into();
    body["paymentMethod"] = "p".repeat(MAX_PAYMENT_METHOD).into();
    let metric = Metric::ALL.iter().max_by_key(|metric| metric.name().len()).expect("metrics");
    body["sensors"] = json!(vec![
        json!({
            "metric": metric,
            "unit": metric.units()[0],
            "min": -1.234_567_890_123_456_7e-100,
            "max": 1.234_567_890_123_456_7e100,
        });
        MAX_SENSORS
    ]);
    let response = api_response(
        step.handle(&default_caller(), &post(Some("key-1"), &body.to_string()), noon(0)).await,
    );
    assert_eq!(response["statusCode"], 202, "{response}");
    let events = dynamo.events(saga_for_key("key-1").site_id).await;
    // The maximum size of a `PutEvents` entry.
    assert!(events[0].detail.len() < 256 * 1024, "{} bytes", events[0].detail.len());

    for (pointer, value, field) in [
        ("/name", json!("n".repeat(MAX_NAME + 1)), "name"),
        ("/operator", json!("n".repeat(MAX_NAME + 1)), "operator"),
        ("/paymentMethod", json!("p".repeat(MAX_PAYMENT_METHOD + 1)), "paymentMethod"),
        ("/sensors", json!(vec![&body["sensors"][0]; MAX_SENSORS + 1]), "sensors"),
    ] {
        let response = api_response(
            step.handle(&default_caller(), &post(Some("k"), &with(pointer, value)), noon(0)).await,
        );
        assert_eq!(error_fields(&response), [field]);
    }
}

#[tokio::test]
async fn a_retry_of_a_request_to_an_older_release_is_recognised() {
    let dynamo = Dynamo::start().await;
    let step = CreateSite(registrar(&dynamo));
    let body = with("/name", json!(" Alamosa, Colorado "));
    let request = post(Some("key-1"), &body);
    assert_eq!(
        api_response(step.handle(&default_caller(), &request, noon(0)).await)["statusCode"],
        202
    );
    // The hash that version 1 stored for this body. It includes the white space around the name.
    let hash = "ff17188646e2d7803c8ca8b80bda0a9ca026c2f1c0e5baa26f07ebfb2b26c49c";
    assert_eq!(dynamo.rows(SITES).await[0]["requestHash"], hash);
    assert_eq!(
        api_response(step.handle(&default_caller(), &request, noon(5)).await)["statusCode"],
        202
    );
}

#[tokio::test]
async fn an_idempotency_key_that_is_not_printable_ascii_is_refused() {
    let dynamo = Dynamo::start().await;
    let step = CreateSite(registrar(&dynamo));
    for (key, problem) in [
        ("schl\u{fc}ssel", "holds characters outside ASCII; send 1 to 128"),
        ("a\tb", "holds a control character; send 1 to 128"),
        ("", "has 0 characters; send 1 to 128"),
    ] {
        let response = api_response(
            step.handle(&default_caller(), &post(Some(key), &registration().to_string()), noon(0))
                .await,
        );
        assert_eq!(error_fields(&response), ["header Idempotency-Key"]);
        let message = response["body"]["errors"][0]["message"].as_str().expect("a message");
        assert!(message.starts_with(problem), "{message}");
    }
    assert_eq!(dynamo.rows(SITES).await, [Value::Null; 0]);
}

#[tokio::test]
async fn an_unknown_query_parameter_is_refused() {
    let dynamo = Dynamo::start().await;
    let saga = create(&dynamo, "key-1").await;
    let site = saga.site_id.to_string();
    let with_query = |mut request: lambda::http::Request| {
        request.query_string_parameters =
            std::collections::HashMap::from([("colour".to_owned(), "red".to_owned())]).into();
        request
    };
    let machines = Stub::start(|_| (200, json!({}))).await;
    let decommission = DecommissionSite {
        sites: dynamo.table(SITES),
        teardown: StateMachine {
            client: Client::new(&machines.config()),
            arn: TEARDOWN.to_owned(),
        },
        trail: trail(&dynamo),
    };
    let create = CreateSite(registrar(&dynamo));
    let post = with_query(post(Some("key-2"), &registration().to_string()));
    let get = with_query(on_site("get-site", &site));
    let delete = with_query(on_site("decommission-site", &site));
    for response in [
        create.handle(&default_caller(), &post, noon(0)).await,
        get_site(&dynamo).handle(&default_caller(), &get).await,
        get_site(&dynamo).handle(&default_caller(), &list(&[("colour", "red")])).await,
        decommission.handle(&default_caller(), &delete, noon(0)).await,
    ] {
        assert_eq!(error_fields(&api_response(response)), ["query colour"]);
    }
    assert_eq!(dynamo.rows(SITES).await.len(), 1);
}

/// Resolves a relative path as in RFC 3986, section 5.2. Other kinds of references are not supported.
fn resolve(base: &str, reference: &str) -> String {
    let mut segments: Vec<_> = base.split('/').collect();
    segments.pop();
    for segment in reference.split('/') {
        match segment {
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    segments.join("/")
}

#[tokio::test]
async fn the_location_header_is_correct_for_every_stage_and_base_path() {
    let dynamo = Dynamo::start().await;
    let step = CreateSite(registrar(&dynamo));
    let site = saga_for_key("key-1").site_id.to_string();
    let machines = Stub::start(|_| (200, json!({ "executionArn": "arn", "startDate": 1.0 }))).await;
    let decommission = DecommissionSite {
        sites: dynamo.table(SITES),
        teardown: StateMachine {
            client: Client::new(&machines.config()),
            arn: TEARDOWN.to_owned(),
        },
        trail: trail(&dynamo),
    };
    // Each entry has the prefix of the path that the client called, and the prefix of `path` in API Gateway's event.
    // `path` includes the base path but not the stage. The entries are a stage's default address, a custom domain, and
    // a custom domain with a base path.
    for (prefix, path_prefix) in [("/v1", ""), ("", ""), ("/field/station", "/field/station")] {
        for slash in ["", "/"] {
            let mut request = post(Some("key-1"), &registration().to_string());
            request.path = Some(format!("{path_prefix}/sites{slash}"));
            let response = api_response(step.handle(&default_caller(), &request, noon(0)).await);
            let location = response["headers"]["location"].as_str().expect("a location");
            let base = format!("{prefix}/sites{slash}");
            assert_eq!(resolve(&base, location), format!("{prefix}/sites/{site}"), "{base}");
        }
    }
    activate(&dynamo, "key-1").await;
    for slash in ["", "/"] {
        let mut request = on_site("decommission-site", &site);
        request.path = Some(format!("/sites/{site}{slash}"));
        let response =
            api_response(decommission.handle(&default_caller(), &request, noon(0)).await);
        let location = response["headers"]["location"].as_str().expect("a location");
        let base = format!("/v1/sites/{site}{slash}");
        assert_eq!(resolve(&base, location), format!("/v1/sites/{site}"));
    }
}

#[tokio::test]
async fn a_site_shows_the_steps_of_its_onboarding_in_order() {
    let dynamo = Dynamo::start().await;
    let site = saga_for_key("key-1").site_id.to_string();
    let request = on_site("get-site", &site);
    check("get-site.unknown", get_site(&dynamo).handle(&default_caller(), &request).await);
    let saga = create(&dynamo, "key-1").await;
    check("get-site.onboarding", get_site(&dynamo).handle(&default_caller(), &request).await);

    // The events arrive in reverse order of the steps.
    for step in STEPS.iter().rev().filter(|step| !step.is_of_site()) {
        project(&dynamo, &step_event(saga, step.done, 1)).await;
    }
    activate(&dynamo, "key-1").await;
    check("get-site.active", get_site(&dynamo).handle(&default_caller(), &request).await);
    check(
        "get-site.no-id",
        get_site(&dynamo).handle(&default_caller(), &on_site("get-site", "42")).await,
    );
}

#[tokio::test]
async fn a_site_may_declare_a_utc_offset_and_its_sensors_carry_it() {
    let dynamo = Dynamo::start().await;
    let step = CreateSite(registrar(&dynamo));
    let with_offset = |offset: Value| {
        let mut registration = registration();
        registration["utcOffset"] = offset;
        registration.to_string()
    };
    let shown = async |key: &str, offset: Value| {
        let request = post(Some(key), &with_offset(offset));
        let response = api_response(step.handle(&default_caller(), &request, noon(0)).await);
        assert_eq!(response["statusCode"], 202, "{response}");
        let events = dynamo.events(saga_for_key(key).site_id).await;
        let created: Value = serde_json::from_str(&events[0].detail).expect("JSON");
        let sensors = created["data"]["sensors"].as_array().expect("sensors").iter();
        let carried: Vec<_> = sensors.map(|sensor| sensor["utcOffset"].clone()).collect();
        assert_eq!(carried.len(), 2);
        let site = get(&dynamo, key).await["body"].take();
        assert!(carried.iter().all(|offset| *offset == site["utcOffset"]), "{carried:?} {site}");
        site["utcOffset"].clone()
    };
    assert_eq!(shown("key-1", json!("-07:00")).await, "-07:00");
    assert_eq!(shown("key-2", json!("+00:00")).await, "Z");
    assert_eq!(shown("key-3", Value::Null).await, Value::Null);

    // The offset is a part of the request.
    let other = post(Some("key-1"), &with_offset(json!("-06:00")));
    let response = api_response(step.handle(&default_caller(), &other, noon(5)).await);
    assert_eq!(response["statusCode"], 409, "{response}");
    for wrong in [json!("America/Denver"), json!("-7"), json!("+14:01"), json!(-7)] {
        let request = post(Some("key-4"), &with_offset(wrong));
        let response = api_response(step.handle(&default_caller(), &request, noon(0)).await);
        assert_eq!(error_fields(&response), ["utcOffset"], "{response}");
    }
}

#[tokio::test]
async fn a_rejected_site_shows_its_failure() {
    let dynamo = Dynamo::start().await;
    let saga = create(&dynamo, "key-1").await;
    for (event, sequence) in [
        ("KitsReserved", 1),
        ("SensorsProvisioned", 1),
        ("SubscriptionFailed", 1),
        ("SensorsDeprovisioned", 2),
        ("KitsReleased", 2),
    ] {
        project(&dynamo, &step_event(saga, event, sequence)).await;
    }
    close(&dynamo, "key-1", failure()).await;
    let request = on_site("get-site", &saga.site_id.to_string());
    check("get-site.rejected", get_site(&dynamo).handle(&default_caller(), &request).await);
}

#[tokio::test]
async fn a_crashed_step_is_shown_from_the_failure_of_the_saga() {
    let dynamo = Dynamo::start().await;
    create(&dynamo, "key-1").await;
    let crash = json!({ "step": "ProvisionSensors", "error": "Runtime.ExitError", "message": "" });
    close(&dynamo, "key-1", crash).await;
    let steps = get(&dynamo, "key-1").await["body"]["onboarding"]["steps"].take();
    let failed = json!([{ "name": "ProvisionSensors", "status": "FAILED", "at": "2026-01-01T12:00:00.000Z" }]);
    assert_eq!(steps, failed);
}

#[tokio::test]
async fn the_list_has_pages() {
    let dynamo = Dynamo::start().await;
    let keys: Vec<_> = (0..5).map(|n| format!("key-{n}")).collect();
    for key in &keys {
        create(&dynamo, key).await;
    }
    activate(&dynamo, "key-3").await;
    // Rows of steps are not listed as sites.
    project(&dynamo, &step_event(saga_for_key("key-0"), "KitsReserved", 1)).await;
    let mut site_ids: Vec<_> =
        keys.iter().map(|key| saga_for_key(key).site_id.to_string()).collect();
    site_ids.sort();
    let mut onboarding = site_ids.clone();
    onboarding.retain(|site| *site != saga_for_key("key-3").site_id.to_string());

    assert_eq!(read_pages(&dynamo, &[("limit", "2")]).await, site_ids);
    assert_eq!(read_pages(&dynamo, &[]).await, site_ids);
    let query = [("status", "ONBOARDING"), ("limit", "3")];
    assert_eq!(read_pages(&dynamo, &query).await, onboarding);
    assert_eq!(read_pages(&dynamo, &[("status", "REJECTED")]).await, [""; 0]);
    check(
        "list-sites.one",
        get_site(&dynamo).handle(&default_caller(), &list(&[("status", "ACTIVE")])).await,
    );
}

/// Reads all pages and returns the sorted ids of the sites. Checks that no page exceeds the limit.
async fn read_pages(dynamo: &Dynamo, query: &[(&str, &str)]) -> Vec<String> {
    let limit = query.iter().find(|(name, _)| *name == "limit");
    let limit = limit.map_or(25, |(_, limit)| limit.parse().expect("a number"));
    let mut site_ids = Vec::new();
    let mut next: Option<String> = None;
    loop {
        let mut query = query.to_vec();
        query.extend(next.as_deref().map(|next| ("next", next)));
        let response =
            api_response(get_site(dynamo).handle(&default_caller(), &list(&query)).await);
        assert_eq!(response["statusCode"], 200, "{response}");
        let sites = response["body"]["sites"].as_array().expect("sites");
        assert!(sites.len() <= limit);
        site_ids
            .extend(sites.iter().map(|site| site["siteId"].as_str().expect("an id").to_owned()));
        match response["body"]["next"].as_str() {
            Some(token) => next = Some(token.to_owned()),
            None => break,
        }
    }
    site_ids.sort();
    site_ids
}

#[tokio::test]
async fn an_invalid_query_is_refused_with_instructions() {
    let dynamo = Dynamo::start().await;
    for key in ["a", "b"] {
        create(&dynamo, key).await;
    }
    let query = [("colour", "red"), ("limit", "101"), ("next", "x"), ("status", "active")];
    let mut response =
        api_response(get_site(&dynamo).handle(&default_caller(), &list(&query)).await);
    // The golden file has the errors in the order of their text, and no detail.
    let errors = response["body"]["errors"].as_array_mut().expect("errors");
    errors.sort_by_key(Value::to_string);
    response["body"]["detail"].take();
    testkit::golden::check(env!("CARGO_MANIFEST_DIR"), "list-sites.wrong-query", &response);

    let first =
        api_response(get_site(&dynamo).handle(&default_caller(), &list(&[("limit", "1")])).await);
    let next = first["body"]["next"].as_str().expect("another page");
    let query = [("status", "ACTIVE"), ("next", next)];
    check(
        "list-sites.foreign-next",
        get_site(&dynamo).handle(&default_caller(), &list(&query)).await,
    );
}

#[tokio::test]
async fn a_page_token_with_an_invalid_field_is_refused() {
    let dynamo = Dynamo::start().await;
    for key in ["a", "b"] {
        create(&dynamo, key).await;
    }
    let first =
        api_response(get_site(&dynamo).handle(&default_caller(), &list(&[("limit", "1")])).await);
    let next = first["body"]["next"].as_str().expect("another page");
    let decoded: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(next).expect("base64")).expect("JSON");
    for (name, value) in [
        ("operatorId", "42"),
        ("siteId", "42"),
        ("createdAt", "yesterday"),
        ("status", "GONE"),
        ("colour", "red"),
    ] {
        let mut altered = decoded.clone();
        altered[name] = value.into();
        let next = URL_SAFE_NO_PAD.encode(altered.to_string());
        let response = api_response(
            get_site(&dynamo).handle(&default_caller(), &list(&[("next", &next)])).await,
        );
        assert_eq!(response["statusCode"], 400, "{name}: {response}");
        assert_eq!(response["body"]["errors"][0]["field"], "query next");
    }
}

#[tokio::test]
async fn deleting_a_site_starts_one_teardown() {
    let dynamo = Dynamo::start().await;
    let machines = Stub::start(|_| (200, json!({ "executionArn": "arn", "startDate": 1.0 }))).await;
    let step = DecommissionSite {
        sites: dynamo.table(SITES),
        teardown: StateMachine {
            client: Client::new(&machines.config()),
            arn: TEARDOWN.to_owned(),
        },
        trail: trail(&dynamo),
    };
    let site = saga_for_key("key-1").site_id.to_string();
    let request = on_site("decommission-site", &site);
    check("decommission-site.unknown", step.handle(&default_caller(), &request, noon(0)).await);
    let saga = create(&dynamo, "key-1").await;
    check("decommission-site.onboarding", step.handle(&default_caller(), &request, noon(0)).await);
    assert!(machines.take_calls().is_empty());
    assert!(dynamo.rows(AUDIT).await.is_empty(), "a refused request is no entry");

    activate(&dynamo, "key-1").await;
    check("decommission-site.accepted", step.handle(&default_caller(), &request, noon(0)).await);
    let calls = machines.take_calls();
    let started = calls[0].json();
    assert_eq!(calls[0].operation(), "StartExecution");
    assert_eq!(started["stateMachineArn"], TEARDOWN);
    assert_eq!(started["name"], format!("decommission-{}", saga.onboarding_id));
    let input: Value =
        serde_json::from_str(started["input"].as_str().expect("text")).expect("JSON");
    assert_eq!(
        input,
        json!({
            "onboardingId": saga.onboarding_id,
            "siteId": saga.site_id,
            "operatorId": saga.operator_id,
        })
    );

    assert_eq!(dynamo.rows(AUDIT).await.len(), 1);

    // A second request uses the same execution name and gets the same response.
    check("decommission-site.accepted", step.handle(&default_caller(), &request, noon(0)).await);
    assert_eq!(machines.take_calls()[0].json()["name"], started["name"]);
    assert_eq!(get(&dynamo, "key-1").await["body"]["status"], "DECOMMISSIONING");

    close(&dynamo, "key-1", Value::Null).await;
    check("decommission-site.over", step.handle(&default_caller(), &request, noon(0)).await);
    assert!(machines.take_calls().is_empty());

    create(&dynamo, "key-2").await;
    close(&dynamo, "key-2", failure()).await;
    let rejected = on_site("decommission-site", &saga_for_key("key-2").site_id.to_string());
    check("decommission-site.rejected", step.handle(&default_caller(), &rejected, noon(0)).await);

    // Each accepted request is an entry, also a repeated one.
    let entries = dynamo.rows(AUDIT).await;
    assert_eq!(entries.len(), 3);
    for entry in entries {
        assert_eq!(entry["operatorId"], json!(saga.operator_id));
        assert_eq!(entry["actor"], json!(default_caller().actor));
        assert_eq!(entry["action"], "DecommissionSite");
        assert_eq!(entry["target"], json!(site));
        let at = entry["at"].as_str().expect("a text");
        assert!(at.starts_with(&format!("{}/", noon(0))), "{at}");
    }
}

#[tokio::test]
async fn without_an_entry_no_teardown_starts() {
    let dynamo = Dynamo::start().await;
    create(&dynamo, "key-1").await;
    activate(&dynamo, "key-1").await;
    let before = dynamo.all_rows().await;
    let machines = Stub::start(|_| (200, json!({ "executionArn": "arn", "startDate": 1.0 }))).await;
    let unavailable = Stub::start(|_| (500, json!({ "message": "inside" }))).await;
    let client = aws_sdk_dynamodb::Client::new(&unavailable.config());
    let step = DecommissionSite {
        sites: dynamo.table(SITES),
        teardown: StateMachine {
            client: Client::new(&machines.config()),
            arn: TEARDOWN.to_owned(),
        },
        trail: Trail::new(store::Table::new(client, AUDIT)),
    };
    let request = on_site("decommission-site", &saga_for_key("key-1").site_id.to_string());
    let sent = api_response(step.handle(&default_caller(), &request, noon(0)).await);
    assert_eq!(sent["statusCode"], 503, "{sent}");
    assert!(machines.take_calls().is_empty());
    assert_eq!(dynamo.all_rows().await, before);
}

#[tokio::test]
async fn a_running_teardown_is_accepted_and_a_failed_start_is_reported() {
    let dynamo = Dynamo::start().await;
    create(&dynamo, "key-1").await;
    activate(&dynamo, "key-1").await;
    let request = on_site("decommission-site", &saga_for_key("key-1").site_id.to_string());
    for (error, status, expected) in
        [("ThrottlingException", 503, "ACTIVE"), ("ExecutionAlreadyExists", 202, "DECOMMISSIONING")]
    {
        let machines = Stub::start(move |_| (400, json!({ "__type": error }))).await;
        let step = DecommissionSite {
            sites: dynamo.table(SITES),
            teardown: StateMachine {
                client: Client::new(&machines.config()),
                arn: TEARDOWN.to_owned(),
            },
            trail: trail(&dynamo),
        };
        let response = api_response(step.handle(&default_caller(), &request, noon(0)).await);
        assert_eq!(response["statusCode"], status, "{response}");
        assert_eq!(get(&dynamo, "key-1").await["body"]["status"], expected);
    }
}

#[tokio::test]
async fn an_unreachable_table_is_a_5xx_response_without_internal_details() {
    for (status, name) in [(500, "unavailable"), (400, "internal")] {
        let table = Stub::start(move |_| (status, json!({ "message": "inside" }))).await;
        let client = aws_sdk_dynamodb::Client::new(&table.config());
        let step = GetSite { sites: store::Table::new(client, SITES) };
        let site = SiteId::registered(OperatorId::DEFAULT, "", "key-1").to_string();
        check(
            &format!("get-site.{name}"),
            step.handle(&default_caller(), &on_site("get-site", &site)).await,
        );
    }
}

// ---- Operators ----

const MARKER: &str = "MARKER";

/// Returns a registration with the marker in each field whose text the sender chooses.
fn marked_registration() -> Value {
    let mut marked = registration();
    marked["name"] = format!("{MARKER} name").into();
    marked["operator"] = format!("{MARKER} operator").into();
    marked["paymentMethod"] = format!("pm_{MARKER}").into();
    marked
}

/// Registers a site of another operator under the same idempotency key as a site of the default operator.
async fn site_of_other_operator(dynamo: &Dynamo) -> SagaContext {
    let saga = create_for(dynamo, other_operator(), "key-1", &marked_registration()).await;
    project(dynamo, &step_event(saga, "KitsReserved", 1)).await;
    let step = ActivateSite { sites: dynamo.table(SITES), outbox: dynamo.outbox() };
    run(&step, &payload(saga)).await.expect("an active site");
    saga
}

#[tokio::test]
async fn operators_with_the_same_idempotency_key_have_their_own_sites() {
    let dynamo = Dynamo::start().await;
    let other = site_of_other_operator(&dynamo).await;
    let own = create(&dynamo, "key-1").await;
    assert_ne!(own.site_id, other.site_id);
    let created = &dynamo.events(other.site_id).await[0];
    assert_eq!(created.operator_id, other_operator());
    let metadata = created.envelope().expect("an envelope").metadata;
    assert_eq!(metadata.operator_id, other_operator());

    // The response to a reused key names only the caller's own site.
    let mut changed = registration();
    changed["name"] = "Another one".into();
    let request = post(Some("key-1"), &changed.to_string());
    let step = CreateSite(registrar(&dynamo));
    check("create-site.key-reused", step.handle(&default_caller(), &request, noon(5)).await);
}

#[tokio::test]
async fn a_site_of_another_operator_is_answered_like_an_unknown_site() {
    let dynamo = Dynamo::start().await;
    let other = site_of_other_operator(&dynamo).await;
    let machines = Stub::start(|_| (200, json!({ "executionArn": "arn", "startDate": 1.0 }))).await;
    let decommission = DecommissionSite {
        sites: dynamo.table(SITES),
        teardown: StateMachine {
            client: Client::new(&machines.config()),
            arn: TEARDOWN.to_owned(),
        },
        trail: trail(&dynamo),
    };
    let unknown = saga_for_key("unknown").site_id;
    for function in ["get-site", "decommission-site"] {
        let mut answers = Vec::new();
        for site in [unknown, other.site_id] {
            let request = on_site(function, &site.to_string());
            drop(dynamo.take_usage());
            let response = match function {
                "get-site" => get_site(&dynamo).handle(&default_caller(), &request).await,
                _ => decommission.handle(&default_caller(), &request, noon(0)).await,
            };
            let calls = dynamo.take_usage().calls;
            let response = api_response(response).to_string();
            answers.push((response.replace(&site.to_string(), "<id>"), calls));
        }
        assert_eq!(answers[0], answers[1], "{function}");
        assert!(answers[0].0.contains("404"), "{answers:?}");
    }
    assert!(machines.take_calls().is_empty());

    // Its own operator sees the site.
    let request = on_site("get-site", &other.site_id.to_string());
    let owner = caller(other_operator(), Scope::Read);
    let response = api_response(get_site(&dynamo).handle(&owner, &request).await);
    assert_eq!(response["body"]["operatorId"], json!(other_operator()));
    assert!(response["body"]["name"].as_str().is_some_and(|name| name.contains(MARKER)));
}

#[tokio::test]
async fn a_list_contains_only_sites_of_the_callers_operator() {
    let dynamo = Dynamo::start().await;
    let other = site_of_other_operator(&dynamo).await;
    create_for(&dynamo, other_operator(), "key-2", &marked_registration()).await;
    let mut site_ids = Vec::new();
    for key in ["key-1", "key-2", "key-3"] {
        site_ids.push(create(&dynamo, key).await.site_id.to_string());
    }
    site_ids.sort();
    assert_eq!(read_pages(&dynamo, &[("limit", "1")]).await, site_ids);
    assert_eq!(read_pages(&dynamo, &[("status", "ONBOARDING"), ("limit", "1")]).await, site_ids);
    assert_eq!(read_pages(&dynamo, &[("status", "ACTIVE")]).await, [""; 0]);

    let owner = caller(other_operator(), Scope::Operator);
    let response = get_site(&dynamo).handle(&owner, &list(&[("status", "ACTIVE")])).await;
    assert_eq!(api_response(response)["body"]["sites"][0]["siteId"], json!(other.site_id));

    // A page token of one operator is not valid for another one.
    let limit = ("limit", "1");
    let first = api_response(get_site(&dynamo).handle(&owner, &list(&[limit])).await);
    let next = first["body"]["next"].as_str().expect("another page");
    let request = list(&[limit, ("next", next)]);
    assert_eq!(api_response(get_site(&dynamo).handle(&owner, &request).await)["statusCode"], 200);
    let refused = api_response(get_site(&dynamo).handle(&default_caller(), &request).await);
    assert_eq!(refused["statusCode"], 400, "{refused}");
    assert_eq!(error_fields(&refused), ["query next"]);
    // With its own operator in the token, the caller only moves in its own list.
    let mut token: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(next).expect("base64")).expect("JSON");
    token["operatorId"] = json!(OperatorId::DEFAULT);
    let forged = URL_SAFE_NO_PAD.encode(token.to_string());
    let request = list(&[("next", &forged)]);
    let response = api_response(get_site(&dynamo).handle(&default_caller(), &request).await);
    assert!(!response.to_string().contains(MARKER), "{response}");
}

#[tokio::test]
async fn each_scope_may_do_what_it_allows() {
    let dynamo = Dynamo::start().await;
    let site = create(&dynamo, "key-1").await.site_id;
    let machines = Stub::start(|_| (200, json!({ "executionArn": "arn", "startDate": 1.0 }))).await;
    let decommission = DecommissionSite {
        sites: dynamo.table(SITES),
        teardown: StateMachine {
            client: Client::new(&machines.config()),
            arn: TEARDOWN.to_owned(),
        },
        trail: trail(&dynamo),
    };
    let step = CreateSite(registrar(&dynamo));
    for (scope, read, write) in [
        (Scope::Admin, true, true),
        (Scope::Operator, true, true),
        (Scope::Read, true, false),
        (Scope::Logger(site), false, false),
        (Scope::Bootstrap, false, false),
    ] {
        let caller = caller(OperatorId::DEFAULT, scope);
        let post = post(Some("key-1"), &registration().to_string());
        let [get, delete] =
            ["get-site", "decommission-site"].map(|it| on_site(it, &site.to_string()));
        let is_allowed = |response| api_response(response)["statusCode"] != 403;
        assert_eq!(is_allowed(get_site(&dynamo).handle(&caller, &get).await), read, "{scope}");
        assert_eq!(
            is_allowed(get_site(&dynamo).handle(&caller, &list(&[])).await),
            read,
            "{scope}"
        );
        assert_eq!(is_allowed(step.handle(&caller, &post, noon(0)).await), write, "{scope}");
        assert_eq!(
            is_allowed(decommission.handle(&caller, &delete, noon(0)).await),
            write,
            "{scope}"
        );
    }
}

/// Replaces the site's row by one as releases before there were operators wrote it.
async fn make_old(dynamo: &Dynamo, site: SiteId) {
    let rows = dynamo.rows(SITES).await;
    let row = rows.iter().find(|row| row["siteId"] == json!(site) && row["row"] == "SITE");
    let mut row = row.expect("the site's row").clone();
    let attributes = row.as_object_mut().expect("an object");
    attributes.remove("operatorId").expect("an operator");
    attributes.remove("operatorStatus").expect("a key of the index");
    dynamo.put(SITES, row).await;
}

#[tokio::test]
async fn a_row_without_an_operator_belongs_to_the_default_operator() {
    let dynamo = Dynamo::start().await;
    let saga = create(&dynamo, "key-1").await;
    make_old(&dynamo, saga.site_id).await;
    let request = on_site("get-site", &saga.site_id.to_string());
    check("get-site.onboarding", get_site(&dynamo).handle(&default_caller(), &request).await);
    let stranger = caller(other_operator(), Scope::Operator);
    let response = api_response(get_site(&dynamo).handle(&stranger, &request).await);
    assert_eq!(response["statusCode"], 404);
    // A repeated request finds the row, and a change of the status adds the key of the index.
    create(&dynamo, "key-1").await;
    assert_eq!(read_pages(&dynamo, &[]).await, [""; 0]);
    activate(&dynamo, "key-1").await;
    assert_eq!(read_pages(&dynamo, &[]).await, [saga.site_id.to_string()]);
}
