//! Registrations generated from the published schema are accepted over HTTP and by event. Registrations just
//! outside the schema are refused, and the error names the field.

mod support;

use contracts::{inbound::SITE_REGISTRATION_REQUESTED, sensor::MAX_METADATA_BYTES};
use lambda::Step;
use serde_json::{Value, json};
use sites::create_site::CreateSite;
use support::{api_response, import_site, post, registrar};
use testkit::{
    Dynamo,
    dynamo::SITES,
    rng::Rng,
    sample::{self, default_caller, noon},
    schema::{InvalidDocument, Schema},
};

const CASES: u64 = 300;

/// Enforces the rules that the schema can't express: a sensor's `min` is less than its `max`, only a sensor of the kind
/// `counter` has the field `counter`, and the metadata are not too large.
fn in_order(mut registration: Value) -> Value {
    for sensor in registration["sensors"].as_array_mut().expect("sensors") {
        if let (Some(min), Some(max)) = (sensor["min"].as_f64(), sensor["max"].as_f64())
            && min >= max
        {
            sensor["max"] = Value::Null;
        }
        if !sensor["counter"].is_null() {
            sensor["kind"] = json!("counter");
        }
        if sensor.to_string().len() > MAX_METADATA_BYTES {
            sensor["externalIds"] = Value::Null;
        }
    }
    registration
}

#[tokio::test]
async fn a_registration_that_matches_the_schema_is_accepted_over_http() {
    let schema = Schema::published(SITE_REGISTRATION_REQUESTED).definition("SiteRegistration");
    let dynamo = Dynamo::start().await;
    let step = CreateSite(registrar(&dynamo));
    for seed in 0..CASES {
        let mut rng = Rng::from_seed(seed);
        let body = in_order(schema.document(&mut rng));
        let request = post(Some(&format!("key-{seed}")), &body.to_string());
        let response = api_response(step.handle(&default_caller(), &request, noon(0)).await);
        assert_eq!(response["statusCode"], 202, "seed {seed}: {body} {response}");

        let InvalidDocument { field, what, document } =
            schema.random_invalid_document(&body, &mut rng);
        let request = post(Some(&format!("outside-{seed}")), &document.to_string());
        let response = api_response(step.handle(&default_caller(), &request, noon(0)).await);
        assert_eq!(response["statusCode"], 400, "seed {seed}, {what} of {field}: {response}");
        let field = if field.is_empty() { "body" } else { &field };
        let errors = response["body"]["errors"].as_array().expect("errors");
        assert!(
            errors.iter().any(|error| error["field"] == field),
            "seed {seed}, {what} of {field}: {response}"
        );
    }
    assert_eq!(dynamo.rows(SITES).await.len() as u64, CASES);
}

#[tokio::test]
async fn a_registration_that_matches_the_schema_is_accepted_by_event() {
    let schema = Schema::published(SITE_REGISTRATION_REQUESTED);
    let dynamo = Dynamo::start().await;
    let step = import_site(&dynamo, "");
    let run = async |detail: &Value| {
        let mut event = sample::event("import-site");
        event["detail"] = detail.clone();
        step.run(fault::decode(&event.to_string()).expect("an event"), noon(0)).await
    };
    for seed in 0..CASES {
        let mut rng = Rng::from_seed(seed);
        let mut detail = schema.document(&mut rng);
        detail["site"] = in_order(detail["site"].take());
        if let Err(error) = run(&detail).await {
            // The generator may produce the same short id twice.
            assert!(
                error.to_string().starts_with("this idempotency key was used"),
                "{seed}: {detail} {error}"
            );
        }

        let InvalidDocument { field, what, document } =
            schema.random_invalid_document(&detail, &mut rng);
        let error = run(&document).await.expect_err("outside the schema").to_string();
        let prefix =
            if field.is_empty() { "detail: ".to_owned() } else { format!("detail.{field}: ") };
        assert!(error.contains(&prefix), "seed {seed}, {what} of {field}: {error}");
    }
}

/// Checks each document that differs from a complete registration by one violation of the schema.
#[tokio::test]
async fn every_keyword_of_the_schema_is_checked() {
    let schema = Schema::published(SITE_REGISTRATION_REQUESTED).definition("SiteRegistration");
    let dynamo = Dynamo::start().await;
    let step = CreateSite(registrar(&dynamo));
    let documents = schema.invalid_documents(&support::registration());
    assert!(documents.len() > 60, "{} documents", documents.len());
    for InvalidDocument { field, what, document } in documents {
        let response = api_response(
            step.handle(&default_caller(), &post(Some("key"), &document.to_string()), noon(0))
                .await,
        );
        let field = if field.is_empty() { "body" } else { &field };
        let errors = response["body"]["errors"].as_array();
        let names_field =
            errors.is_some_and(|errors| errors.iter().any(|error| error["field"] == field));
        assert!(response["statusCode"] == 400 && names_field, "{what} of {field}: {response}");
    }
    assert_eq!(dynamo.rows(SITES).await, [json!(null); 0]);
}
