//! Compares each kind of response of the HTTP API with a golden file, because clients rely on its shape.
//! `UPDATE_GOLDENS=1` rewrites the files.

use anyhow::Result;
use contracts::{Metric, Timestamp};
use serde_json::{Value, json};
use tests::{
    Stack,
    api::{Call, Response},
    sites::{DECLINED_CARD, FORWARD, GOOD_CARD, registration},
};
use uuid::Uuid;

/// Replaces ids and timestamps, which differ between runs.
fn redacted_text(text: &str) -> String {
    if text.parse::<Timestamp>().is_ok() {
        return "<time>".to_owned();
    }
    let is_id_char = |c: char| c.is_ascii_hexdigit() || c == '-';
    let mut redacted = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c| !is_id_char(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let is_id = word.len() == 36 && Uuid::parse_str(word).is_ok();
        redacted.push_str(if is_id { "<id>" } else { word });
        let next = after.chars().next();
        redacted.extend(next);
        rest = &after[next.map_or(0, char::len_utf8)..];
    }
    redacted
}

fn redacted(value: &Value) -> Value {
    match value {
        Value::String(text) => redacted_text(text).into(),
        Value::Array(values) => values.iter().map(redacted).collect(),
        Value::Object(members) => {
            members.iter().map(|(name, value)| (name.clone(), redacted(value))).collect()
        }
        other => other.clone(),
    }
}

fn golden(name: &str, response: &Response) {
    let mut value = json!({
        "status": response.status,
        "contentType": response.header("content-type"),
        "body": redacted(&response.body),
    });
    if response.headers.contains_key("location") {
        value["location"] = redacted_text(response.header("location")).into();
    }
    testkit::golden::check(env!("CARGO_MANIFEST_DIR"), name, &value);
}

#[test]
fn ids_and_times_are_redacted() {
    let id = "0b4b7b1e-3d1d-5f0e-9b1a-6f1d2c3b4a59";
    assert_eq!(redacted_text(&format!("There is no site {id}.")), "There is no site <id>.");
    assert_eq!(redacted_text(&format!("/sites/{id}")), "/sites/<id>");
    assert_eq!(redacted_text("2026-01-01T00:00:00.000Z"), "<time>");
    assert_eq!(redacted_text("face-to-face"), "face-to-face");
}

#[tokio::test]
async fn responses_about_a_site_that_is_activated_and_decommissioned() -> Result<()> {
    let stack = Stack::connect().await?;
    let metrics = [Metric::WindSpeed, Metric::WindFromDirection];
    stack.deliver(&metrics, 1).await?;
    let key = Uuid::new_v4().to_string();
    let body = registration("Golden", &metrics, GOOD_CARD);
    let created = stack.call(Call::post_site(&key, &body)).await?;
    golden("post-site-202", &created);
    // Resolved against the request's URL, the location leads to the site.
    let stage = format!("/{}", stack.api_stage()?);
    let request_url = reqwest::Url::parse(&format!("http://localhost{stage}/sites"))?;
    let location = request_url.join(created.header("location"))?;
    let path =
        location.path().strip_prefix(&stage).expect("the path is below the stage").to_owned();
    let found = stack.call(Call::get(&path)).await?;
    assert_eq!(found.body["siteId"], created.body["siteId"], "{found}");
    golden("delete-site-409-still-onboarding", &stack.call(Call::delete(&path)).await?);
    let mut other = body.clone();
    other["name"] = json!("Silver");
    golden("post-site-409-key-reused", &stack.call(Call::post_site(&key, &other)).await?);

    let ids = tests::sites::Ids::from_response(&created)?;
    stack.wait_until_active(ids.site_id).await?;
    golden("get-site-200-active", &stack.site(ids.site_id).await?);
    golden("delete-site-202", &stack.call(Call::delete(&path)).await?);
    let undone = FORWARD.map(|step| (step, "UNDONE"));
    stack.wait_for_site(ids.site_id, "DECOMMISSIONED", &undone).await?;
    golden("get-site-200-decommissioned", &stack.site(ids.site_id).await?);
    Ok(())
}

#[tokio::test]
async fn responses_about_a_rejected_site() -> Result<()> {
    let stack = Stack::connect().await?;
    let metrics = [Metric::WindSpeed];
    stack.deliver(&metrics, 1).await?;
    let body = registration("Tin", &metrics, DECLINED_CARD);
    let ids = stack.register(&Uuid::new_v4().to_string(), &body).await?;
    let steps = [
        ("ReserveKits", "UNDONE"),
        ("ProvisionSensors", "UNDONE"),
        ("InitializeSubscription", "FAILED"),
    ];
    stack.wait_for_site(ids.site_id, "REJECTED", &steps).await?;
    golden("get-site-200-rejected", &stack.site(ids.site_id).await?);
    let response = stack.call(Call::delete(format!("/sites/{}", ids.site_id))).await?;
    golden("delete-site-409-rejected", &response);

    // Any entry of the list shows the shape. Which entry is first depends on the other tests.
    let mut list = stack.call(Call::get("/sites?status=REJECTED&limit=1")).await?;
    for site in list.body["sites"].as_array_mut().into_iter().flatten() {
        site["name"] = json!("<name>");
        for coordinate in site["location"].as_object_mut().into_iter().flatten() {
            *coordinate.1 = json!("<number>");
        }
    }
    list.body["next"] = json!("<token or absent>");
    golden("get-sites-200", &list);
    Ok(())
}

#[tokio::test]
async fn responses_to_invalid_requests() -> Result<()> {
    let stack = Stack::connect().await?;
    let key = Uuid::new_v4().to_string();
    let post = |body: String| stack.call(Call::post_site(&key, &json!({})).text(body));
    let mut invalid = registration("", &[Metric::AirTemperature], GOOD_CARD);
    invalid["location"]["latitude"] = json!(91);
    invalid["sensors"][0]["unit"] = json!("degF");
    golden("post-site-400-fields", &post(invalid.to_string()).await?);
    golden("post-site-400-malformed", &post("{\"name\": ".to_owned()).await?);
    golden("post-site-400-key", &{
        let body = registration("Golden", &[Metric::AirTemperature], GOOD_CARD);
        let without_key = Call::new(reqwest::Method::POST, "/sites").text(body.to_string());
        stack.call(without_key).await?
    });
    golden("post-site-413", &post(format!("\"{}\"", "n".repeat(1024 * 1024))).await?);
    let unknown = format!("/sites/{}", Uuid::new_v4());
    golden("get-site-404", &stack.call(Call::get(&unknown)).await?);
    golden("get-site-400", &stack.call(Call::get("/sites/alamosa")).await?);
    golden("get-sites-400", &stack.call(Call::get("/sites?status=FINE")).await?);
    golden("delete-site-404", &stack.call(Call::delete(&unknown)).await?);
    Ok(())
}
