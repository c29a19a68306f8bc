//! Tests tokens of an `OpenID` Connect issuer on the deployed stack. A valid token gives its caller the operator and
//! the scope of its claims, and a token with any flaw is refused. The issuer is a server of this test. The function
//! authorise-caller gets the server's address as its issuer, and its own settings again at the end.

#[path = "disruptions/faults.rs"]
#[expect(dead_code, reason = "this binary does not use every fault")]
mod faults;

#[path = "disruptions/issuer.rs"]
mod issuer;

use anyhow::{Context, Result, ensure};
use contracts::{Metric, OperatorId, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};
use tests::{
    Stack,
    api::{Call, Response},
    sites::{DECLINED_CARD, registration},
    wait::{Poll, TIMEOUT, until},
};
use uuid::Uuid;

use crate::{
    faults::BrokenFunction,
    issuer::{AUDIENCE, Signer, claims, flawed, serve, with, without},
};

fn unique() -> String {
    Uuid::new_v4().simple().to_string()
}

async fn create_operator(stack: &Stack) -> Result<String> {
    let name = unique();
    let body = json!({ "name": name, "plan": "standard" });
    let call = Call::new(Method::POST, "/operators").key(&name).text(body.to_string());
    let created = stack.call(call).await?;
    let id = created.body["operatorId"].as_str();
    Ok(id.with_context(|| format!("no operator was created: {created}"))?.to_owned())
}

async fn get(stack: &Stack, path: &str, token: &str) -> Result<Response> {
    stack.call(Call::get(path).bearing(token)).await
}

/// Sends a registration without fields. A caller that may register sites gets a 400.
async fn post_nothing(stack: &Stack, token: &str) -> Result<Response> {
    let call = Call::new(Method::POST, "/sites").key(&unique()).text("{}");
    stack.call(call.bearing(token)).await
}

#[tokio::test]
async fn tokens_of_the_issuer_are_accepted_and_tokens_with_a_flaw_are_refused() -> Result<()> {
    let stack = Stack::connect().await?;
    let (signer, rsa) = (Signer::es256("one")?, Signer::rs256("two")?);
    let issuer = serve(vec![signer.jwk()?, rsa.jwk()?]).await;
    let url = issuer.url();
    let own = create_operator(&stack).await?;
    let other = create_operator(&stack).await?;

    let settings = [("OIDC_ISSUER", url.as_str()), ("OIDC_AUDIENCE", AUDIENCE)];
    let changed = BrokenFunction::deploy_with(&stack, "authorise-caller", &settings).await?;
    changed
        .during(async || {
            scopes_are_those_of_the_claims(&stack, &signer, &rsa, &url, &own).await?;
            operators_see_only_their_sites(&stack, &signer, &url, [&own, &other]).await?;
            flawed_tokens_are_refused(&stack, &signer, &claims(&url, &own, "operator")).await
        })
        .await?;
    let key_set_reads = issuer.take_calls().iter().filter(|call| call.path == "/keys").count();
    // Each process of the function reads the key set once, and once more for an unknown key id after a minute.
    assert!((1..10).contains(&key_set_reads), "{key_set_reads} reads of the key set");

    // Without an issuer, the same claims are refused. The token is new, because API Gateway caches decisions.
    let token = signer.sign(&claims(&url, &own, "operator"))?;
    assert_eq!(get(&stack, "/sites", &token).await?.status, 401);
    Ok(())
}

/// Asserts that the scope of a token allows the same as the scope of a key, and that there is a leeway for the issuer's
/// clock.
async fn scopes_are_those_of_the_claims(
    stack: &Stack,
    signer: &Signer,
    rsa: &Signer,
    issuer: &str,
    own: &str,
) -> Result<()> {
    let now = Timestamp::now().seconds();
    let operator = claims(issuer, own, "operator");
    // The statuses of GET /sites, POST /sites with a wrong body, and GET /operators.
    for (what, token, expected) in [
        ("an operator", signer.sign(&operator)?, [200, 400, 403]),
        ("an operator, RS256", rsa.sign(&operator)?, [200, 400, 403]),
        ("a reader", signer.sign(&with(&operator, "fieldstation_scope", "read"))?, [200, 403, 403]),
        ("no scope", signer.sign(&without(&operator, "fieldstation_scope"))?, [200, 403, 403]),
        (
            "an administrator",
            signer.sign(&claims(issuer, &OperatorId::DEFAULT.to_string(), "admin"))?,
            [200, 400, 200],
        ),
        (
            "several audiences",
            signer.sign(&with(&operator, "aud", json!(["another", AUDIENCE])))?,
            [200, 400, 403],
        ),
        (
            "expired half a minute ago",
            signer.sign(&with(&operator, "exp", now - 30))?,
            [200, 400, 403],
        ),
        (
            "valid in half a minute",
            signer.sign(&with(&operator, "nbf", now + 30))?,
            [200, 400, 403],
        ),
        ("no start", signer.sign(&without(&operator, "nbf"))?, [200, 400, 403]),
    ] {
        let responses = [
            get(stack, "/sites", &token).await?,
            post_nothing(stack, &token).await?,
            get(stack, "/operators", &token).await?,
        ];
        let statuses = responses.each_ref().map(|response| response.status);
        assert_eq!(statuses, expected, "{what}: {responses:?}");
    }
    // Keys are accepted beside tokens.
    assert_eq!(stack.call(Call::get("/sites")).await?.status, 200);
    Ok(())
}

/// Registers a site with a token, and asserts that the other operator's token does not see it.
async fn operators_see_only_their_sites(
    stack: &Stack,
    signer: &Signer,
    issuer: &str,
    [own, other]: [&str; 2],
) -> Result<()> {
    let own = signer.sign(&claims(issuer, own, "operator"))?;
    let other = signer.sign(&claims(issuer, other, "operator"))?;
    stack.deliver(&[Metric::AirTemperature], 1).await?;
    // The card is declined, so the saga is undone and leaves nothing in service.
    let body = registration(&unique(), &[Metric::AirTemperature], DECLINED_CARD);
    let created = stack.call(Call::post_site(&unique(), &body).bearing(&own)).await?;
    ensure!(created.status == 202, "{created}");
    let site = created.body["siteId"].as_str().context("no siteId")?;
    let path = format!("/sites/{site}");
    until("the site to be undone and listed", TIMEOUT, async || {
        let read = get(stack, &path, &own).await?;
        let list = get(stack, "/sites?limit=100", &own).await?;
        let is_done = read.body["status"] == "REJECTED" && list.to_string().contains(site);
        Ok(if is_done { Poll::Ready(()) } else { Poll::Pending(format!("{read} {list}")) })
    })
    .await?;
    assert_eq!(get(stack, &path, &other).await?.status, 404);
    let list = get(stack, "/sites?limit=100", &other).await?;
    assert_eq!(list.status, 200, "{list}");
    assert!(!list.to_string().contains(site), "{list}");
    Ok(())
}

/// Asserts that each token with one flaw gets the same 401. `valid` are claims that are accepted.
async fn flawed_tokens_are_refused(stack: &Stack, signer: &Signer, valid: &Value) -> Result<()> {
    let good = signer.sign(valid)?;
    assert_eq!(get(stack, "/sites", &good).await?.status, 200);
    let mut details = Vec::new();
    for (what, token) in flawed(signer, valid)? {
        let response = get(stack, "/sites", &token).await?;
        assert_eq!(response.status, 401, "{what}: {response}");
        assert_eq!(response.header("www-authenticate"), "Bearer", "{what}");
        assert_eq!(response.header("content-type"), "application/problem+json", "{what}");
        details.push(response.body["detail"].clone());
    }
    details.dedup();
    assert_eq!(details.len(), 1, "the response shows what is wrong: {details:?}");
    Ok(())
}
