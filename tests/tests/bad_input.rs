//! Tests bad input: a request is refused with a response that names the field, and nothing is stored. Bad input
//! from an event or a stream is recorded with its complete payload and the reason.

use std::collections::HashMap;

use anyhow::Result;
use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{Metric, OperatorId, SiteId, names};
use serde_json::{Value, json};
use tests::{
    Stack,
    api::{Call, Response},
    failures::Failure,
    inventory::{SUPPLIER, delivery_id},
    sites::{GOOD_CARD, registration},
};
use uuid::Uuid;

fn good() -> Value {
    registration("never stored", &[Metric::AirTemperature], GOOD_CARD)
}

/// Returns the registration with one field changed, or removed if there is no value. `pointer` is a JSON pointer.
fn with(pointer: &str, value: Option<Value>) -> Value {
    let mut registration = good();
    let (parent, field) = pointer.rsplit_once('/').expect("the pointer has a field");
    let parent = registration.pointer_mut(parent).expect("the parent exists");
    match (parent, value) {
        (Value::Object(parent), Some(value)) => drop(parent.insert(field.to_owned(), value)),
        (Value::Object(parent), None) => drop(parent.remove(field)),
        (Value::Array(parent), Some(value)) => {
            parent[field.parse::<usize>().expect("the field is an index")] = value;
        }
        (parent, value) => panic!("{pointer} in {parent} can't be set to {value:?}"),
    }
    registration
}

/// Checks that the response is a problem document with this status, and that its errors have this field.
fn assert_problem(what: &str, response: &Response, status: u16, field: &str) {
    assert_eq!(response.status, status, "{what}: {response}");
    assert_eq!(response.header("content-type"), "application/problem+json", "{what}: {response}");
    assert_eq!(response.body["status"], status, "{what}: {response}");
    for member in ["type", "title", "detail"] {
        let text = response.body[member].as_str().unwrap_or_default();
        assert!(!text.is_empty(), "{what}: {member} is missing in {response}");
    }
    if field.is_empty() {
        return;
    }
    let errors = response.body["errors"].as_array().map_or(&[][..], Vec::as_slice);
    let error = errors.iter().find(|error| error["field"] == field);
    let message = error.and_then(|error| error["message"].as_str()).unwrap_or_default();
    assert!(!message.is_empty(), "{what}: no error for {field} in {response}");
}

#[tokio::test]
async fn a_bad_registration_is_refused_and_not_stored() -> Result<()> {
    let stack = Stack::connect().await?;
    let sensor = json!({ "metric": "air_temperature", "unit": "Cel" });
    let bodies = [
        ("JSON that ends too early", "{\"name\": ".to_owned(), "body"),
        ("no JSON", "name=Alamosa".to_owned(), "body"),
        ("nothing", String::new(), "body"),
        ("a list", "[]".to_owned(), "body"),
        ("two values", format!("{} {{}}", good()), "body"),
        ("no name", with("/name", None).to_string(), "name"),
        ("an empty name", with("/name", Some(json!(" "))).to_string(), "name"),
        ("a name too long", with("/name", Some(json!("n".repeat(201)))).to_string(), "name"),
        ("a number for a name", with("/name", Some(json!(7))).to_string(), "name"),
        ("no operator", with("/operator", None).to_string(), "operator"),
        ("an unknown field", with("/owner", Some(json!("me"))).to_string(), "owner"),
        (
            "latitude 91",
            with("/location/latitude", Some(json!(91))).to_string(),
            "location.latitude",
        ),
        (
            "longitude -181",
            with("/location/longitude", Some(json!(-181))).to_string(),
            "location.longitude",
        ),
        (
            "an unknown field deep inside",
            with("/location/height", Some(json!(1))).to_string(),
            "location.height",
        ),
        (
            "a number that no table holds",
            with("/location/latitude", Some(json!(1e-200))).to_string(),
            "location.latitude",
        ),
        (
            "a name with a bidirectional override",
            with("/name", Some(json!("a\u{202e}b"))).to_string(),
            "name",
        ),
        ("no sensors", with("/sensors", Some(json!([]))).to_string(), "sensors"),
        (
            "1,000 sensors",
            with("/sensors", Some(json!(vec![sensor.clone(); 1000]))).to_string(),
            "sensors",
        ),
        (
            "a wrong unit",
            with("/sensors/0/unit", Some(json!("degF"))).to_string(),
            "sensors[0].unit",
        ),
        (
            "an unknown metric",
            with("/sensors/0/metric", Some(json!("humour"))).to_string(),
            "sensors[0].metric",
        ),
        (
            "limits upside down",
            with(
                "/sensors/0",
                Some(json!({ "metric": "air_temperature", "unit": "Cel", "min": 5, "max": 1 })),
            )
            .to_string(),
            "sensors[0].min",
        ),
        ("an unknown plan", with("/plan", Some(json!("gold"))).to_string(), "plan"),
        (
            "an empty payment method",
            with("/paymentMethod", Some(json!(""))).to_string(),
            "paymentMethod",
        ),
    ];
    for (what, body, field) in bodies {
        let key = Uuid::new_v4().to_string();
        let response = stack.call(Call::post_site(&key, &json!({})).text(body)).await?;
        assert_problem(what, &response, 400, field);
        assert_not_stored(&stack, what, &key).await?;
    }

    let large = with("/name", Some(json!("n".repeat(1024 * 1024))));
    let key = Uuid::new_v4().to_string();
    let response = stack.call(Call::post_site(&key, &large)).await?;
    assert_problem("a body of 1 MB", &response, 413, "");
    assert_not_stored(&stack, "a body of 1 MB", &key).await?;

    let rows = stack.rows_with(names::SITES, "name", "never stored").await?;
    assert_eq!(rows, [] as [Value; 0]);
    Ok(())
}

async fn assert_not_stored(stack: &Stack, what: &str, key: &str) -> Result<()> {
    let response = stack.site(SiteId::registered(OperatorId::DEFAULT, "", key)).await?;
    assert_eq!(response.status, 404, "{what}: the site was stored: {response}");
    Ok(())
}

#[tokio::test]
async fn a_registration_without_a_valid_idempotency_key_is_refused() -> Result<()> {
    let stack = Stack::connect().await?;
    let without_key = Call::new(reqwest::Method::POST, "/sites").text(good().to_string());
    let response = stack.call(without_key).await?;
    assert_problem("no key", &response, 400, "header Idempotency-Key");
    let response = stack.call(Call::post_site(&"k".repeat(129), &good())).await?;
    assert_problem("a key too long", &response, 400, "header Idempotency-Key");
    let rows = stack.rows_with(names::SITES, "name", "never stored").await?;
    assert_eq!(rows, [] as [Value; 0]);
    Ok(())
}

#[tokio::test]
async fn the_response_to_a_bad_query_or_path_names_the_field() -> Result<()> {
    let stack = Stack::connect().await?;
    let unknown = format!("/sites/{}", Uuid::new_v4());
    let with_query = format!("{unknown}?colour=red");
    for (path, status, field) in [
        (unknown.as_str(), 404, ""),
        ("/sites/alamosa", 400, "path siteId"),
        ("/sites?status=FINE", 400, "query status"),
        ("/sites?limit=0", 400, "query limit"),
        ("/sites?limit=many", 400, "query limit"),
        ("/sites?next=abc", 400, "query next"),
        ("/sites?page=2", 400, "query page"),
        (&with_query, 400, "query colour"),
    ] {
        assert_problem(path, &stack.call(Call::get(path)).await?, status, field);
    }
    let body = json!({ "name": null, "contact": { "email": "switchboard" } }).to_string();
    let response = stack.call(Call::patch(&unknown, body.as_str())).await?;
    assert_problem("PATCH with a wrong body", &response, 400, "name");
    assert!(!response.body.to_string().contains("switchboard"), "{response}");
    let response = stack.call(Call::patch(&unknown, "{}")).await?;
    assert_problem("PATCH of an unknown site", &response, 404, "");
    let sensor = format!("/sensors/{}", Uuid::new_v4());
    let response = stack.call(Call::patch(&sensor, r#"{"metric": "wind_speed"}"#)).await?;
    assert_problem("PATCH with a field that can't be changed", &response, 400, "metric");
    let response = stack.call(Call::patch(&sensor, "{}")).await?;
    assert_problem("PATCH of an unknown sensor", &response, 404, "");
    let response = stack.call(Call::delete(&unknown)).await?;
    assert_problem("DELETE of an unknown site", &response, 404, "");
    let response = stack.call(Call::delete("/sites/alamosa")).await?;
    assert_problem("DELETE of no id", &response, 400, "path siteId");
    Ok(())
}

/// Checks the recorded failure of an asynchronous function: its payload is the event, and its error names the field.
fn assert_recorded(failure: &Failure, detail: &Value, field: &str) -> Result<()> {
    assert_eq!(failure.kind, "FUNCTION_FAILED", "{failure}");
    failure.assert_state("OPEN", 1, 0)?;
    assert_eq!(failure.payload()?["detail"], *detail, "incomplete payload: {failure}");
    assert_eq!(failure.error.name, "InvalidInput", "{failure}");
    assert!(failure.error.message.contains(field), "the error does not name {field}: {failure}");
    Ok(())
}

#[tokio::test]
async fn a_malformed_registration_event_is_recorded_with_its_payload() -> Result<()> {
    let stack = Stack::connect().await?;
    // The first fails validation, the others fail deserialization.
    for (site, field) in [
        (with("/location/latitude", Some(json!(91))), "location.latitude"),
        (with("/owner", Some(json!("me"))), "detail.site.owner"),
        (with("/location/latitude", Some(json!(1e-200))), "detail.site.location.latitude"),
    ] {
        let number = Uuid::new_v4().to_string();
        let detail = json!({ "registrationId": number, "site": site });
        stack.put_event("noaa.surfrad", "SiteRegistrationRequested", &detail).await?;
        let failure = stack.failure_about("import-site", &number).await?;
        assert_recorded(&failure, &detail, field)?;
        let site =
            stack.site(SiteId::registered(OperatorId::DEFAULT, "noaa.surfrad", &number)).await?;
        assert_eq!(site.status, 404, "{site}");
    }
    Ok(())
}

#[tokio::test]
async fn a_malformed_delivery_is_recorded_with_its_payload() -> Result<()> {
    let stack = Stack::connect().await?;
    let number = Uuid::new_v4().to_string();
    let kits = json!([{ "metric": "air_temperature", "quantity": -5 }]);
    let detail = json!({ "deliveryId": number, "kits": kits });
    stack.put_event(SUPPLIER, "KitsDelivered", &detail).await?;
    let failure = stack.failure_about("receive-kits", &number).await?;
    assert_recorded(&failure, &detail, "quantity")?;
    let rows = stack.rows_with(names::INVENTORY, "id", &delivery_id(&number)).await?;
    assert_eq!(rows, [] as [Value; 0]);
    Ok(())
}

#[tokio::test]
async fn a_malformed_stream_record_is_quarantined_and_does_not_block_the_stream() -> Result<()> {
    let stack = Stack::connect().await?;
    stack.deliver(&[Metric::AirTemperature], 1).await?;
    let broken = format!("site#{}", Uuid::new_v4());
    let no_event = AttributeValue::S("written by a defect".to_owned());
    let key = HashMap::from([
        ("entity".to_owned(), AttributeValue::S(broken.clone())),
        ("sequence".to_owned(), AttributeValue::N("1".to_owned())),
    ]);
    let mut row = key.clone();
    row.insert("nonsense".to_owned(), no_event.clone());
    let table = stack.named(names::EVENTS);
    stack.dynamodb().put_item().table_name(&table).set_item(Some(row)).send().await?;
    let site = registration("behind a broken record", &[Metric::AirTemperature], GOOD_CARD);
    let ids = stack.register(&Uuid::new_v4().to_string(), &site).await?;

    let failure = stack.failure_about("publish-events", &broken).await?;
    assert_eq!(failure.kind, "QUARANTINED", "{failure}");
    failure.assert_state("OPEN", 1, 0)?;
    let record = failure.payload()?;
    let image = &record["dynamodb"]["NewImage"];
    assert_eq!(image["entity"]["S"], broken, "incomplete payload: {record}");
    assert_eq!(
        image["nonsense"]["S"],
        no_event.as_s().expect("it is a string").as_str(),
        "{record}"
    );
    let reason = &failure.error.message;
    assert!(reason.contains("type"), "the error does not name the missing field: {reason:?}");
    stack.wait_until_active(ids.site_id).await?;
    // The row is deleted, because a rebuild of a consumer would fail for its entity.
    stack.dynamodb().delete_item().table_name(&table).set_key(Some(key)).send().await?;
    Ok(())
}
