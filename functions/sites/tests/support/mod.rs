//! Functions that the tests of sites share.

// Each test file uses only some of them.
#![allow(dead_code)]

use audit::Trail;
use contracts::{EntityType, OperatorId, SagaContext, Scope, SiteId};
use lambda::http::{Problem, Request, Response, response};
use serde_json::{Value, json};
use sites::{
    create_site::CreateSite, import_site::ImportSite, project_site::ProjectSite,
    registration::Registrar, update_site::UpdateSite,
};
use testkit::{
    Dynamo,
    dynamo::{AUDIT, SITES},
    golden,
    saga::run,
    sample::{self, caller, noon},
};

pub fn registrar(dynamo: &Dynamo) -> Registrar {
    Registrar { sites: dynamo.table(SITES), outbox: dynamo.outbox() }
}

pub fn trail(dynamo: &Dynamo) -> Trail {
    Trail::new(dynamo.table(AUDIT))
}

/// Returns the function `import-site` with this value of `SOURCE_OPERATORS`.
pub fn import_site(dynamo: &Dynamo, operators: &str) -> ImportSite {
    let operators = operators.parse().expect("operators of sources");
    ImportSite { registrar: registrar(dynamo), operators }
}

/// Returns the saga of the default operator's site that `POST /sites` registers under this idempotency key.
pub fn saga_for_key(key: &str) -> SagaContext {
    saga_of(OperatorId::DEFAULT, key)
}

/// Returns the saga of the operator's site that `POST /sites` registers under this idempotency key.
pub fn saga_of(operator: OperatorId, key: &str) -> SagaContext {
    SagaContext::for_site(operator, SiteId::registered(operator, "", key), None)
}

pub fn update_site(dynamo: &Dynamo) -> UpdateSite {
    UpdateSite { sites: dynamo.table(SITES), outbox: dynamo.outbox(), trail: trail(dynamo) }
}

/// Returns a valid body of `POST /sites`.
pub fn registration() -> Value {
    json!({
        "name": "Alamosa, Colorado",
        "operator": "NOAA SURFRAD",
        "location": { "latitude": 37.7, "longitude": -105.92, "elevationM": 2317.0 },
        "sensors": [
            { "metric": "air_temperature", "unit": "Cel", "min": -60.0, "max": 60.0 },
            { "metric": "surface_downwelling_shortwave_flux_in_air", "unit": "W/m2" },
        ],
        "plan": "standard",
        "paymentMethod": "pm_card_visa",
    })
}

/// Returns `POST /sites` in API Gateway's format.
pub fn post(key: Option<&str>, body: &str) -> Request {
    let mut event = sample::event("create-site");
    for headers in ["headers", "multiValueHeaders"] {
        let headers = event[headers].as_object_mut().expect("headers");
        headers.remove("Idempotency-Key");
    }
    if let Some(key) = key {
        // HTTP/2 clients send header names in lower case.
        event["headers"]["idempotency-key"] = key.into();
        event["multiValueHeaders"]["idempotency-key"] = json!([key]);
    }
    event["body"] = body.into();
    read(&event)
}

/// Returns `GET` or `DELETE` of one site.
pub fn on_site(function: &str, site: &str) -> Request {
    let mut event = sample::event(function);
    event["path"] = format!("/sites/{site}").into();
    event["pathParameters"] = json!({ "siteId": site });
    read(&event)
}

/// Returns `PATCH` of one site.
pub fn patch_site(site: &str, body: &str) -> Request {
    let mut request = on_site("update-site", site);
    request.body = Some(body.to_owned());
    request
}

/// Returns `GET /sites` with a query.
pub fn list(query: &[(&str, &str)]) -> Request {
    let mut event = sample::event("get-site");
    event["path"] = "/sites".into();
    event["pathParameters"] = Value::Null;
    for (name, value) in query {
        event["queryStringParameters"][name] = (*value).into();
        event["multiValueQueryStringParameters"][name] = json!([value]);
    }
    read(&event)
}

fn read(event: &Value) -> Request {
    serde_json::from_value(event.clone()).expect("an event of API Gateway")
}

/// Returns the response that API Gateway gets, with the body parsed as JSON.
pub fn api_response(result: Result<Response, Problem>) -> Value {
    let response = response(result);
    let mut api_response = serde_json::to_value(response).expect("a response as JSON");
    let body = api_response["body"].as_str().expect("a body");
    api_response["body"] = serde_json::from_str(body).expect("a body of JSON");
    api_response
}

pub fn check(name: &str, response: Result<Response, Problem>) {
    golden::check(env!("CARGO_MANIFEST_DIR"), name, &api_response(response));
}

/// Registers a site of the default operator under this idempotency key.
pub async fn create(dynamo: &Dynamo, key: &str) -> SagaContext {
    create_for(dynamo, OperatorId::DEFAULT, key, &registration()).await
}

/// Registers an operator's site under this idempotency key.
pub async fn create_for(
    dynamo: &Dynamo,
    operator: OperatorId,
    key: &str,
    registration: &Value,
) -> SagaContext {
    let request = post(Some(key), &registration.to_string());
    let caller = caller(operator, Scope::Operator);
    let response = CreateSite(registrar(dynamo)).handle(&caller, &request, noon(0)).await;
    assert_eq!(api_response(response)["statusCode"], 202);
    saga_of(operator, key)
}

/// Returns an event of a step in EventBridge's format.
pub fn step_event(saga: SagaContext, event_type: &str, sequence: u64) -> Value {
    let data = json!({ "siteId": saga.site_id });
    let mut event = sample::event_of("project-site", saga, EntityType::Reservation, data);
    event["detail-type"] = event_type.into();
    let occurred_at = noon(60 * i64::try_from(sequence).expect("a small number"));
    event["detail"]["metadata"]["type"] = event_type.into();
    event["detail"]["metadata"]["sequence"] = sequence.into();
    event["detail"]["metadata"]["occurredAt"] = json!(occurred_at);
    event
}

pub async fn project(dynamo: &Dynamo, event: &Value) -> Value {
    let step = ProjectSite { sites: dynamo.table(SITES) };
    run(&step, event).await.expect("a projection")
}
