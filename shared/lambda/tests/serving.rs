//! Functions under a fake of Lambda's Runtime API.

use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use aws_sdk_dynamodb::Client;
use contracts::{OnboardingId, OperatorId, Timestamp};
use fault::{ErrorKind, Fault};
use lambda::{
    Step,
    http::{Caller, Problem, Response, serve_http_with_deadline},
    serve_http, serve_queue, serve_step,
};
use limits::Limits;
use serde::Deserialize;
use serde_json::{Value, json};
use store::Table;
use testkit::{
    dynamo::{Dynamo, LIMITS},
    http::config,
    measured::measured,
    runtime::run_function,
    sample::{self, saga},
};

/// The function's timeouts. Half a second is reserved for the response.
const LONG_TIMEOUT: Duration = Duration::from_mins(1);
const SHORT_TIMEOUT: Duration = Duration::from_millis(800);

struct CountStep;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Command {
    onboarding_id: Option<OnboardingId>,
    to: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("the card was declined")]
struct Declined;

impl Fault for Declined {
    fn kind(&self) -> ErrorKind {
        ErrorKind::CardDeclined
    }
}

impl Step for CountStep {
    type Command = Command;
    type Reply = u64;
    type Error = Declined;

    fn correlation(command: &Command) -> Option<OnboardingId> {
        command.onboarding_id
    }

    async fn run(&self, command: Command, _: Timestamp) -> Result<u64, Declined> {
        match command.to {
            0 => Err(Declined),
            13 => panic!("thirteen"),
            to if to > 1000 => std::future::pending().await,
            to => Ok(to),
        }
    }
}

fn failed(name: &str, message: &str) -> (String, Value) {
    ("error".to_owned(), json!({ "errorType": name, "errorMessage": message }))
}

#[tokio::test]
async fn a_failed_step_reports_the_error_name_that_state_machines_match() {
    let payloads = [
        json!({ "to": 3 }),
        json!({ "to": 0 }),
        json!({ "to": "many" }),
        json!({ "to": 13 }),
        json!({ "to": 4, "onboardingId": saga("a").onboarding_id }),
    ];
    assert_eq!(
        run_function(serve_step(CountStep), LONG_TIMEOUT, payloads).await,
        [
            ("response".to_owned(), json!(3)),
            failed("CardDeclined", "the card was declined"),
            failed(
                "InvalidInput",
                "to: invalid type: string \"many\", expected u64 at line 1 column 12"
            ),
            // The function still works after a panic.
            failed("Internal", "panicked: thirteen"),
            ("response".to_owned(), json!(4)),
        ]
    );
}

#[tokio::test]
async fn a_step_that_exceeds_its_time_fails_as_transient() {
    let received =
        run_function(serve_step(CountStep), SHORT_TIMEOUT, [json!({ "to": 1001 })]).await;
    assert_eq!(received, [failed("Transient", "the function's deadline passed")]);
}

/// Returns a request that passed the authorizer, with these headers.
fn http_request(path: &str, headers: &Value) -> Value {
    let mut request = sample::event("get-site");
    request["path"] = path.into();
    request["headers"] = headers.clone();
    request["multiValueHeaders"] = json!({});
    request["requestContext"]["authorizer"] = json!({
        "operatorId": OperatorId::DEFAULT, "scope": "read", "actor": "key:fsr_12345678",
        "plan": "standard",
    });
    request
}

/// Returns limits that allow every request, because their table can't be reached.
fn no_limits() -> Limits {
    let client = Client::new(&config("http://127.0.0.1:9"));
    Limits::new(Table::new(client, "limits"))
}

/// Returns the kind of the response and its HTTP status.
fn status(received: &(String, Value)) -> (&str, &Value) {
    (&received.0, &received.1["statusCode"])
}

#[tokio::test]
async fn a_handler_behind_api_gateway_always_responds() {
    let handler =
        async |request: lambda::http::Request, caller: Caller| match request.path.as_deref() {
            Some("/good") => Response::new(200, &caller.operator),
            Some("/slow") => std::future::pending().await,
            _ => Err(Problem::not_found("nothing has that path")),
        };
    let request = |path: &str| http_request(path, &json!({}));
    let payloads = [request("/good"), request("/other")];
    let received = run_function(serve_http(no_limits(), handler), LONG_TIMEOUT, payloads).await;
    let statuses: Vec<_> = received.iter().map(status).collect();
    assert_eq!(statuses, [("response", &json!(200)), ("response", &json!(404))]);
    let received =
        run_function(serve_http(no_limits(), handler), SHORT_TIMEOUT, [request("/slow")]).await;
    assert_eq!(status(&received[0]), ("response", &json!(503)));
    // The handler has a moment left to return a partial result.
    let slow = async |_, _, deadline: lambda::Deadline| {
        tokio::time::sleep(deadline.remaining()).await;
        Response::new(207, &"half of it")
    };
    let served = serve_http_with_deadline(no_limits(), slow);
    let received = run_function(served, SHORT_TIMEOUT, [request("/slow")]).await;
    assert_eq!(status(&received[0]), ("response", &json!(207)));
}

#[tokio::test]
async fn a_request_that_did_not_pass_the_authorizer_does_not_reach_the_handler() {
    let handler = async |_, _: Caller| -> Result<Response, Problem> { panic!("it was called") };
    let mut request = http_request("/", &json!({}));
    request["requestContext"]["authorizer"] = json!({ "scope": "admin" });
    let received = run_function(serve_http(no_limits(), handler), LONG_TIMEOUT, [request]).await;
    assert_eq!(status(&received[0]), ("response", &json!(500)));
}

#[tokio::test]
async fn a_request_beyond_the_rate_limit_does_not_reach_the_handler() {
    let dynamo = Dynamo::start().await;
    let operator = OperatorId::registered("other");
    let id = format!("operator#{operator}");
    // The bucket is empty, and has tokens again in 30 seconds: it is full 10 seconds later.
    let tat = Timestamp::now().millis() + 40_000;
    dynamo.put(LIMITS, json!({ "id": id, "tat": tat, "expiresAt": 0 })).await;
    let calls = AtomicUsize::new(0);
    let handler = async |_, _: Caller| {
        calls.fetch_add(1, SeqCst);
        Response::new(200, &"it")
    };
    let served = serve_http(Limits::new(dynamo.table(LIMITS)), handler);
    let mut request = http_request("/", &json!({}));
    request["requestContext"]["authorizer"]["operatorId"] = json!(operator);
    let payloads = [request.clone(), request.clone(), request];
    let (received, metrics) = measured(run_function(served, LONG_TIMEOUT, payloads)).await;
    // The first request takes a token on credit.
    let statuses: Vec<_> = received.iter().map(status).collect();
    let limited = ("response", &json!(429));
    assert_eq!(statuses, [("response", &json!(200)), limited, limited]);
    assert_eq!(calls.load(SeqCst), 1);
    assert_eq!(metrics.get("RequestsRefused reason=RateLimited"), Some(&2.0));
    for (_, response) in &received[1..] {
        let headers = &response["headers"];
        assert_eq!(headers["content-type"], "application/problem+json");
        assert_eq!(headers["cache-control"], "no-store");
        let seconds = headers["retry-after"].as_str().expect("a header");
        assert!((25..=31).contains(&seconds.parse::<u32>().expect("seconds")), "{seconds}");
        let body: Value = serde_json::from_str(response["body"].as_str().expect("text"))
            .expect("a problem as JSON");
        assert_eq!(body["type"], "urn:fieldstation:problem:rate-limited");
        let detail = format!(
            "Your operator's plan allows 20 requests per second, and up to 200 at once after a pause. Wait \
             {seconds} s, then send the request again, and send more slowly."
        );
        assert_eq!(body["detail"], detail);
    }
}

#[tokio::test]
async fn a_request_beyond_a_limit_of_sagas_names_the_limit() {
    let operator = OperatorId::registered("other");
    for (id, detail) in [
        (
            format!("sagas#{operator}"),
            "Your operator may create or delete 2 sites per second, and up to 20 ",
        ),
        (
            "sagas#all".to_owned(),
            "All operators together may create or delete 10 sites per second, and up to 400 ",
        ),
    ] {
        let dynamo = Dynamo::start().await;
        // The bucket will be full in a minute. An empty bucket fills in at most 40 seconds, so this one is empty now.
        let tat = Timestamp::now().millis() + 60_000;
        dynamo.put(LIMITS, json!({ "id": id, "tat": tat, "expiresAt": 0 })).await;
        let handler = async |_, _: Caller| Response::new(202, &"it");
        let mut request = http_request("/", &json!({}));
        request["requestContext"]["authorizer"]["operatorId"] = json!(operator);
        request["requestContext"]["authorizer"]["scope"] = json!("operator");
        let limits = || Limits::new(dynamo.table(LIMITS));
        let served = serve_http(limits().of_sagas(), handler);
        let received = run_function(served, LONG_TIMEOUT, [request.clone()]).await;
        assert_eq!(status(&received[0]), ("response", &json!(429)), "{id}");
        let body = received[0].1["body"].as_str().expect("text");
        let body: Value = serde_json::from_str(body).expect("a problem as JSON");
        assert_eq!(body["type"], "urn:fieldstation:problem:rate-limited");
        assert!(body["detail"].as_str().expect("text").starts_with(detail), "{body}");
        // Functions that start no sagas do not use these buckets.
        let served = serve_http(limits(), handler);
        let received = run_function(served, LONG_TIMEOUT, [request.clone()]).await;
        assert_eq!(status(&received[0]), ("response", &json!(202)), "{id}");
        // A caller that may only read takes no token of sagas, so its request reaches the handler. A real handler would
        // refuse it.
        request["requestContext"]["authorizer"]["scope"] = json!("read");
        let served = serve_http(limits().of_sagas(), handler);
        let received = run_function(served, LONG_TIMEOUT, [request]).await;
        assert_eq!(status(&received[0]), ("response", &json!(202)), "{id}");
    }
}

#[tokio::test]
async fn a_handler_does_not_see_the_credential() {
    let handler = async |request: lambda::http::Request, _: Caller| {
        let headers = [request.headers, request.multi_value_headers];
        let all = headers.iter().flat_map(|headers| headers.keys()).map(ToString::to_string);
        Response::new(200, &all.collect::<Vec<_>>())
    };
    let headers = json!({ "authorization": "Bearer secret", "accept": "text/html" });
    let mut request = http_request("/", &headers);
    request["multiValueHeaders"] = json!({ "Authorization": ["Bearer secret"], "accept": ["x"] });
    let received = run_function(serve_http(no_limits(), handler), LONG_TIMEOUT, [request]).await;
    assert_eq!(received[0].1["body"], r#"["accept","accept"]"#);
}

#[tokio::test]
async fn only_the_callers_own_cache_may_keep_a_read_and_must_ask_again() {
    let handler = async |request: lambda::http::Request, _: Caller| match request.path.as_deref() {
        Some("/site") => Response::new(200, &"it"),
        Some("/readings") => Ok(Response::new(200, &"it")?.version(3)),
        _ => Err(Problem::not_found("nothing has that path")),
    };
    let sent = async |method: &str, path: &str, headers: Value| {
        let mut request = http_request(path, &headers);
        request["httpMethod"] = method.into();
        let received =
            run_function(serve_http(no_limits(), handler), LONG_TIMEOUT, [request]).await;
        received.into_iter().next().expect("a response").1
    };
    let first = sent("GET", "/site", json!({})).await;
    let headers = &first["headers"];
    assert_eq!(headers["cache-control"], "private, no-cache");
    assert_eq!(headers["vary"], "Authorization");
    assert_eq!(first["body"], "\"it\"");
    let tag = headers["etag"].as_str().expect("a tag");

    for known in [tag.to_owned(), format!("\"x\", W/{tag}"), "*".to_owned()] {
        let second = sent("GET", "/site", json!({ "if-none-match": known })).await;
        assert_eq!(second["statusCode"], 304, "{second}");
        assert_eq!(second["headers"]["etag"], tag);
        assert_eq!(second["body"], Value::Null);
    }
    let changed = sent("GET", "/site", json!({ "if-none-match": "\"x\"" })).await;
    assert_eq!(changed["statusCode"], 200);

    // The version of the resource is a part of the tag.
    let tagged = format!("\"3-{}", &tag[1..]);
    let versioned = sent("GET", "/readings", json!({ "if-none-match": tag })).await;
    assert_eq!(
        (&versioned["statusCode"], &versioned["headers"]["etag"]),
        (&json!(200), &json!(tagged))
    );
    let again = sent("GET", "/readings", json!({ "if-none-match": tagged })).await;
    assert_eq!((&again["statusCode"], &again["headers"]["etag"]), (&json!(304), &json!(tagged)));

    let head = sent("HEAD", "/site", json!({})).await;
    assert_eq!((&head["statusCode"], &head["body"]), (&json!(200), &Value::Null));
    assert_eq!(head["headers"]["etag"], tag);

    // Neither an error nor the response to a change may be kept.
    for (method, path) in [("GET", "/other"), ("POST", "/site")] {
        let other = sent(method, path, json!({ "if-none-match": tag })).await;
        assert_eq!(other["headers"]["cache-control"], "no-store", "{method} {path}");
        assert_eq!(other["headers"]["etag"], Value::Null);
    }
}

#[tokio::test]
async fn only_failed_messages_return_and_are_counted_by_version() {
    let message = |id: &str| json!({ "messageId": id, "body": id });
    let batch = json!({ "Records": [message("a"), message("b"), message("c")] });
    let work = async |message: aws_lambda_events::event::sqs::SqsMessage, _| match message.body {
        Some(body) if body == "b" => Err("not today".to_owned()),
        _ => Ok(()),
    };
    let payloads = [batch, json!({ "Records": [] })];
    let (received, metrics) =
        measured(run_function(serve_queue(work), LONG_TIMEOUT, payloads)).await;
    assert_eq!(
        received,
        [json!([{ "itemIdentifier": "b" }]), json!([])]
            .map(|failed| ("response".to_owned(), json!({ "batchItemFailures": failed })))
    );
    assert_eq!(metrics, [("BatchItemFailures version=7".to_owned(), 1.0)].into());
}
