//! What is kept of the text of a key: nothing but its visible prefix is in a log.

use anyhow::{Context, Result, ensure};
use contracts::Timestamp;
use keys::ApiKey;
use reqwest::Method;
use serde_json::{Value, json};
use tests::{
    Stack,
    api::Call,
    operators::{create_key, text, unique},
    wait::{Poll, TIMEOUT, until},
};

/// The number of consecutive characters of a key that no log may have. The visible prefix has fewer.
const MAX_SHOWN: usize = 20;

/// Returns requests that send the key where a caller may put it by mistake. None of them is accepted, so nothing is
/// stored.
fn misplaced(key: &str) -> Vec<Call> {
    let paths = [
        format!("/sites/{key}"),
        format!("/sensors/{key}/readings"),
        format!("/sensors/{key}/revisions"),
        format!("/operators/{key}"),
        format!("/sites?next={key}"),
        format!("/sites?status={key}"),
        format!("/sites?{key}=1"),
        format!("/keys?next={key}"),
        format!("/audit?operatorId={key}"),
        format!("/network/summary?from={key}"),
        format!("/events?entity={key}"),
        format!("/events?type=TestDone&pageToken={key}"),
    ];
    let bodies = [
        (Method::POST, "/keys".to_owned(), json!({ "name": key, "scope": key })),
        (
            Method::POST,
            "/keys".to_owned(),
            json!({ "name": "A", "scope": "read", "replaces": key }),
        ),
        (
            Method::POST,
            "/keys".to_owned(),
            json!({ "name": "A", "scope": "read", "operatorId": key }),
        ),
        (Method::POST, "/keys".to_owned(), json!({ key: 1 })),
        (
            Method::POST,
            "/sites".to_owned(),
            json!({ "name": key, "plan": key, "paymentMethod": key }),
        ),
        (Method::POST, "/sites".to_owned(), json!({ "sensors": [{ "metric": key, "unit": key }] })),
        (
            Method::POST,
            "/readings".to_owned(),
            json!({ "bundleId": key, "siteId": key, "series": [] }),
        ),
        (
            Method::POST,
            "/readings".to_owned(),
            json!({ "bundleId": key, "siteId": key, "series": [{ "sensorId": key, "samples": [[key, key]] }] }),
        ),
        (
            Method::POST,
            "/events".to_owned(),
            json!({ "specversion": key, "id": key, "subject": key }),
        ),
        (Method::PATCH, format!("/sites/{key}"), json!({ "name": 1 })),
        (Method::PATCH, format!("/sensors/{key}"), json!({})),
    ];
    let bodies = bodies
        .into_iter()
        .map(|(method, path, body)| Call::new(method, path).key(&unique()).text(body.to_string()));
    let deletions = [format!("/sites/{key}"), format!("/keys/{key}")].map(Call::delete);
    let not_json = Call::new(Method::POST, "/keys").key(&unique()).text(key);
    let as_idempotency_key = Call::new(Method::POST, "/sites").key(key).text("{}");
    let gets = paths.map(Call::get).into_iter();
    gets.chain(bodies).chain(deletions).chain([not_json, as_idempotency_key]).collect()
}

#[tokio::test]
async fn nothing_of_a_key_but_its_prefix_is_in_a_log() -> Result<()> {
    let stack = Stack::connect().await?;
    let since = Timestamp::now();
    let body = json!({ "name": unique(), "plan": "standard" });
    let call = Call::new(Method::POST, "/operators").key(&unique()).text(body.to_string());
    let operator = text(&stack.call(call).await?.body, "operatorId")?;
    let new = |scope: &str| json!({ "name": "Logs", "scope": scope, "operatorId": operator });
    let sender = text(&create_key(&stack, None, new("operator")).await?, "key")?;
    // Another key than that of the header, as somebody would send by mistake who has two.
    let key = text(&create_key(&stack, None, new("read")).await?, "key")?;

    let mut refused = 0;
    for call in misplaced(&key) {
        let response = stack.call(call.clone().bearing(&sender)).await?;
        ensure!((400..429).contains(&response.status), "{call:?}: {response}");
        refused += 1;
    }
    // The key as a credential: valid, wrong, and in another scheme.
    for authorization in [
        format!("Bearer {key}"),
        format!("Bearer {key}x"),
        format!("Bearer x{key}"),
        format!("Basic {key}"),
        format!("Bearer {key} {key}"),
    ] {
        let call = Call::get("/sites").authorizations(&[&authorization]);
        let response = stack.call(call).await?;
        let expected = if authorization == format!("Bearer {key}") { 200 } else { 401 };
        ensure!(response.status == expected, "{authorization}: {response}");
    }

    let is_refusal =
        |line: &Value| line["message"] == "request refused" && line["operatorId"] == operator;
    let logs = until("all refusals to be logged", TIMEOUT, async || {
        let logs = stack.function_logs(since).await?;
        let logged = logs
            .iter()
            .flat_map(tests::function_logs::FunctionLog::entries)
            .filter(is_refusal)
            .count();
        Ok(if logged >= refused {
            Poll::Ready(logs)
        } else {
            Poll::Pending(format!("{logged} of {refused} refusals are logged"))
        })
    })
    .await?;
    for secret in [&key, &sender] {
        let prefix = ApiKey::parse(secret)?.visible_prefix().to_owned();
        ensure!(prefix.len() < MAX_SHOWN, "the visible prefix is longer than the limit: {prefix}");
        let last = secret.len().checked_sub(MAX_SHOWN).context("a short key")?;
        let parts: Vec<_> = (0..=last).map(|start| &secret[start..start + MAX_SHOWN]).collect();
        for log in &logs {
            for line in &log.lines {
                let shown = parts.iter().find(|part| line.contains(**part));
                ensure!(
                    shown.is_none(),
                    "{} logged a key that begins with {prefix}: {line}",
                    log.function
                );
            }
        }
    }
    Ok(())
}
