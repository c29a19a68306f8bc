//! Tests bad input: a request is refused with a response that names the field, and nothing is stored. Bad input
//! from an event or a stream is kept with its whole payload and the reason.

use std::collections::HashMap;

use anyhow::Result;
use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{Metric, SiteId, names};
use serde_json::{Value, json};
use tests::{
    Stack,
    api::{Answer, Call},
    failures::Failure,
    inventory::{SUPPLIER, delivery_id},
    sites::{GOOD_CARD, registration},
};
use uuid::Uuid;

fn good() -> Value {
    registration("never stored", &[Metric::AirTemperature], GOOD_CARD)
}

/// Returns the registration with one field (a JSON pointer) changed, or removed.
fn with(pointer: &str, value: Option<Value>) -> Value {
    let mut registration = good();
    let (parent, field) = pointer.rsplit_once('/').expect("a pointer to a field");
    let parent = registration.pointer_mut(parent).expect("the field's parent");
    match (parent, value) {
        (Value::Object(parent), Some(value)) => drop(parent.insert(field.to_owned(), value)),
        (Value::Object(parent), None) => drop(parent.remove(field)),
        (Value::Array(parent), Some(value)) => {
            parent[field.parse::<usize>().expect("an index")] = value;
        }
        (parent, value) => panic!("{pointer} in {parent} can't be {value:?}"),
    }
    registration
}

/// Checks that the response is a refusal and names the field.
fn assert_names(what: &str, answer: &Answer, status: u16, field: &str) {
    assert_eq!(answer.status, status, "{what}: {answer}");
    assert_eq!(answer.header("content-type"), "application/problem+json", "{what}: {answer}");
    assert_eq!(answer.body["status"], status, "{what}: {answer}");
    for member in ["type", "title", "detail"] {
        let text = answer.body[member].as_str().unwrap_or_default();
        assert!(!text.is_empty(), "{what}: {member} is missing in {answer}");
    }
    if field.is_empty() {
        return;
    }
    let errors = answer.body["errors"].as_array().map_or(&[][..], Vec::as_slice);
    let error = errors.iter().find(|error| error["field"] == field);
    let message = error.and_then(|error| error["message"].as_str()).unwrap_or_default();
    assert!(!message.is_empty(), "{what}: {field} is not named in {answer}");
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
        let answer = stack.call(Call::post_site(&key, &json!({})).text(body)).await?;
        assert_names(what, &answer, 400, field);
        assert_not_stored(&stack, what, &key).await?;
    }

    let large = with("/name", Some(json!("n".repeat(1024 * 1024))));
    let key = Uuid::new_v4().to_string();
    let answer = stack.call(Call::post_site(&key, &large)).await?;
    assert_names("a body of 1 MB", &answer, 413, "");
    assert_not_stored(&stack, "a body of 1 MB", &key).await?;

    let rows = stack.rows_with(names::SITES, "name", "never stored").await?;
    assert_eq!(rows, [] as [Value; 0]);
    Ok(())
}

async fn assert_not_stored(stack: &Stack, what: &str, key: &str) -> Result<()> {
    let answer = stack.site(SiteId::registered("", key)).await?;
    assert_eq!(answer.status, 404, "{what} was stored: {answer}");
    Ok(())
}

#[tokio::test]
async fn a_registration_without_a_valid_idempotency_key_is_refused() -> Result<()> {
    let stack = Stack::connect().await?;
    let without = Call::new(reqwest::Method::POST, "/sites").text(good().to_string());
    let answer = stack.call(without).await?;
    assert_names("no key", &answer, 400, "header Idempotency-Key");
    let answer = stack.call(Call::post_site(&"k".repeat(129), &good())).await?;
    assert_names("a key too long", &answer, 400, "header Idempotency-Key");
    let rows = stack.rows_with(names::SITES, "name", "never stored").await?;
    assert_eq!(rows, [] as [Value; 0]);
    Ok(())
}

#[tokio::test]
async fn a_bad_query_or_path_is_answered_with_the_field() -> Result<()> {
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
        assert_names(path, &stack.call(Call::get(path)).await?, status, field);
    }
    let answer = stack.call(Call::delete(&unknown)).await?;
    assert_names("DELETE of an unknown site", &answer, 404, "");
    let answer = stack.call(Call::delete("/sites/alamosa")).await?;
    assert_names("DELETE of no id", &answer, 400, "path siteId");
    Ok(())
}

#[tokio::test]
async fn an_unsigned_call_is_refused_on_every_route() -> Result<()> {
    let stack = Stack::connect().await?;
    let key = Uuid::new_v4().to_string();
    let site = format!("/sites/{}", Uuid::new_v4());
    let readings = format!("/sensors/{}/readings", Uuid::new_v4());
    for call in [
        Call::post_site(&key, &good()),
        Call::get("/sites"),
        Call::get(&site),
        Call::delete(&site),
        Call::post_readings("{}"),
        Call::get(&readings),
    ] {
        let answer = stack.call(call.clone().unsigned()).await?;
        assert_eq!(answer.status, 403, "{call:?}: {answer}");
    }
    assert_not_stored(&stack, "an unsigned registration", &key).await
}

/// Checks the recorded failure of an asynchronous function: its payload is the event, and it has the error.
fn assert_captured(failure: &Failure, detail: &Value, field: &str) -> Result<()> {
    assert_eq!(failure.kind, "FUNCTION_FAILED", "{failure}");
    failure.stands("OPEN", 1, 0)?;
    assert_eq!(failure.payload()?["detail"], *detail, "whole: {failure}");
    assert_eq!(failure.error.name, "InvalidInput", "{failure}");
    assert!(failure.error.message.contains(field), "{field} is not named in {failure}");
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
        assert_captured(&failure, &detail, field)?;
        let site = stack.site(SiteId::registered("noaa.surfrad", &number)).await?;
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
    assert_captured(&failure, &detail, "quantity")?;
    let counted = stack.rows_with(names::INVENTORY, "id", &delivery_id(&number)).await?;
    assert_eq!(counted, [] as [Value; 0]);
    Ok(())
}

#[tokio::test]
async fn a_malformed_stream_record_is_quarantined_and_does_not_block_the_stream() -> Result<()> {
    let stack = Stack::connect().await?;
    stack.deliver(&[Metric::AirTemperature], 1).await?;
    let broken = format!("site#{}", Uuid::new_v4());
    let no_event = AttributeValue::S("what a defect of ours could write".to_owned());
    stack
        .dynamodb()
        .put_item()
        .table_name(stack.named(names::EVENTS))
        .set_item(Some(HashMap::from([
            ("entity".to_owned(), AttributeValue::S(broken.clone())),
            ("sequence".to_owned(), AttributeValue::N("1".to_owned())),
            ("nonsense".to_owned(), no_event.clone()),
        ])))
        .send()
        .await?;
    let site = registration("behind a broken record", &[Metric::AirTemperature], GOOD_CARD);
    let ids = stack.register(&Uuid::new_v4().to_string(), &site).await?;

    let failure = stack.failure_about("publish-events", &broken).await?;
    assert_eq!(failure.kind, "QUARANTINED", "{failure}");
    failure.stands("OPEN", 1, 0)?;
    let record = failure.payload()?;
    let image = &record["dynamodb"]["NewImage"];
    assert_eq!(image["entity"]["S"], broken, "whole: {record}");
    assert_eq!(image["nonsense"]["S"], no_event.as_s().expect("a text").as_str(), "{record}");
    let reason = &failure.error.message;
    assert!(reason.contains("type"), "the first field that is missing is not named in {reason:?}");
    stack.site_active(ids.site_id).await?;
    Ok(())
}
