//! A fake of the AWS services that `fieldctl` calls, on one endpoint. DynamoDB is embedded.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::{
    process::Stdio,
    sync::{Arc, LazyLock, Mutex},
};

use axum::{
    Router,
    body::{Bytes, to_bytes},
    extract::Request,
    http::{HeaderMap, StatusCode, header::HeaderValue},
    response::{IntoResponse, Response},
};
use contracts::names::SERVICES;
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use keys::{ApiKey, Kind};
use serde_json::{Value, json};
use testkit::dynamo::{
    AUDIT, BILLING, Dynamo, EVENT_GUARDS, EVENTS, FAILURES, NETWORK, READINGS, REFUSALS, SITES,
};
use tokio::{net::TcpListener, process::Command};

/// A request that the fake received.
#[derive(Clone, Debug)]
pub struct ReceivedRequest {
    /// The HTTP method.
    pub method: String,
    /// The header `Authorization`.
    pub authorization: String,
    /// The header `If-Match`.
    pub if_match: String,
    /// The operation, such as `AWSStepFunctions.DescribeExecution`; `CloudFormation` for that service and STS; or else
    /// the path.
    pub operation: String,
    /// The path's query.
    pub query: String,
    /// The body.
    pub body: String,
}

type Handler =
    dyn Fn(&ReceivedRequest) -> (u16, Value, Vec<(&'static str, &'static str)>) + Send + Sync;

/// A running fake, and the requests that it received.
pub struct Cloud {
    /// DynamoDB.
    pub dynamo: Dynamo,
    endpoint: String,
    received: Arc<Mutex<Vec<ReceivedRequest>>>,
}

/// The API key of the commands, unless a test sets another one.
pub static API_KEY: LazyLock<ApiKey> = LazyLock::new(|| new_key(Kind::Admin));

/// Creates an API key.
pub fn new_key(kind: Kind) -> ApiKey {
    ApiKey::generate(kind).expect("random numbers")
}

/// The value of an output: hostile text, as far as XML can contain it.
pub const HOSTILE_OUTPUT: &str = "note \u{9b}45m\u{202e}\u{2066}\u{200b}";

/// The outputs of the root stack, or of the gateway's stack.
const OUTPUTS: [(&str, &str); 3] = [
    ("ApiUrl", "https://api.execute-api.us-east-1.amazonaws.com/local"),
    ("ApiId", "api"),
    ("Note", HOSTILE_OUTPUT),
];

/// The name of the alarm.
pub const ALARM: &str = "test-OpenFailuresAlarm-1X2Y";

/// Resources: service, type, logical id, physical id. Every service also has a role.
const RESOURCES: [(&str, &str, &str, &str); 5] = [
    ("telemetry", "AWS::Lambda::Function", "StoreReadingsFunction", "test-store-readings"),
    ("telemetry", "AWS::Lambda::EventSourceMapping", "StoreReadingsMapping", "u-1"),
    ("telemetry", "AWS::Kinesis::Stream", "ReadingsStream", "test-readings"),
    (
        "telemetry",
        "AWS::SQS::Queue",
        "TelemetryFailures",
        "https://sqs.us-east-1.amazonaws.com/1/test-telemetry-failures",
    ),
    ("failures", "AWS::CloudWatch::Alarm", "OpenFailuresAlarm", ALARM),
];

/// The page size of resources. It is small, so that the stacks with the most resources have several pages.
const RESOURCES_PER_PAGE: usize = 2;

/// The log groups. One of them belongs to another environment.
const LOG_GROUPS: [&str; 3] = [
    "/aws/lambda/test/check-sagas",
    "/aws/lambda/test/store-readings",
    "/aws/lambda/test-2/store-readings",
];

/// The names of tables in the environment, and in the embedded DynamoDB.
const TABLES: [(&str, &str); 9] = [
    ("test-audit", AUDIT),
    ("test-billing", BILLING),
    ("test-event-guards", EVENT_GUARDS),
    ("test-events", EVENTS),
    ("test-failures", FAILURES),
    ("test-network", NETWORK),
    ("test-readings", READINGS),
    ("test-refusals", REFUSALS),
    ("test-sites", SITES),
];

/// The stacks of the environment `test`.
#[derive(Clone, Copy, Default)]
pub struct Stacks {
    /// Whether there is one stack per service instead of a root stack.
    pub per_service: bool,
    /// Services without a stack.
    pub missing: &'static [&'static str],
    /// A service whose resources the caller may not list.
    pub denied: Option<&'static str>,
    /// Whether the caller may not write the audit trail.
    pub no_audit: bool,
    /// A service whose stack has another status than `UPDATE_COMPLETE`.
    pub status: Option<(&'static str, &'static str)>,
}

/// The root stack, or the stack of a service.
#[derive(Clone, Copy, PartialEq)]
enum StackKind {
    Root,
    Service(&'static str),
}

fn xml_error(code: &str, message: &str) -> (u16, String) {
    let error = format!("<Code>{code}</Code><Message>{message}</Message>");
    (400, format!("<ErrorResponse><Error>{error}</Error></ErrorResponse>"))
}

fn arn(stack: &str) -> String {
    format!("arn:aws:cloudformation:us-east-1:000000000000:stack/{stack}/5b4d")
}

/// The ARN of the caller.
pub const CALLER_ARN: &str = "arn:aws:sts::000000000000:assumed-role/on-call/ada";

/// Returns the response of STS to `GetCallerIdentity`.
fn caller_identity() -> String {
    format!(
        "<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>{CALLER_ARN}</Arn>\
         </GetCallerIdentityResult></GetCallerIdentityResponse>"
    )
}

/// Returns the name of a service's resource in the root stack.
fn capitalized(service: &str) -> String {
    service[..1].to_uppercase() + &service[1..]
}

impl Stacks {
    fn stack_of(self, service: &str) -> String {
        if self.per_service {
            format!("test-{service}")
        } else {
            format!("test-{}-1X2Y", capitalized(service))
        }
    }

    fn services(self) -> impl Iterator<Item = &'static str> {
        SERVICES.into_iter().filter(move |service| !self.missing.contains(service))
    }

    /// Finds the stack with that name or ARN.
    fn find(self, name_or_arn: &str) -> Option<StackKind> {
        if !self.per_service && [arn("test"), "test".to_owned()].contains(&name_or_arn.to_owned()) {
            return Some(StackKind::Root);
        }
        let matches = |service: &&str| {
            let name = self.stack_of(service);
            name_or_arn == arn(&name) || name_or_arn == name
        };
        self.services().find(matches).map(StackKind::Service)
    }

    fn status_of(self, kind: StackKind) -> &'static str {
        match self.status {
            Some((service, status)) if kind == StackKind::Service(service) => status,
            _ => "UPDATE_COMPLETE",
        }
    }

    /// Returns type, logical id, physical id and status of each resource.
    fn resources(self, kind: StackKind) -> Vec<[String; 4]> {
        let resource = |it: [&str; 4]| it.map(str::to_owned);
        match kind {
            StackKind::Root => self
                .services()
                .map(|service| {
                    let (logical, physical) = (capitalized(service), arn(&self.stack_of(service)));
                    let status = self.status_of(StackKind::Service(service));
                    resource(["AWS::CloudFormation::Stack", &logical, &physical, status])
                })
                .collect(),
            StackKind::Service(service) => {
                let role = format!("{}Role", capitalized(service));
                let role = ["AWS::IAM::Role", &role, "a-role", "CREATE_COMPLETE"];
                let own = RESOURCES.iter().filter(|it| it.0 == service);
                let own = own.map(|it| resource([it.1, it.2, it.3, "CREATE_COMPLETE"]));
                let mut all: Vec<_> = [resource(role)].into_iter().chain(own).collect();
                if self.status_of(kind) == "DELETE_COMPLETE" {
                    for resource in &mut all {
                        "DELETE_COMPLETE".clone_into(&mut resource[3]);
                    }
                }
                all
            }
        }
    }

    /// Returns `CloudFormation`'s response as XML.
    fn respond(self, body: &str) -> (u16, String) {
        let fields: Vec<_> = form_urlencoded::parse(body.as_bytes()).collect();
        let field = |name: &str| fields.iter().find(|(key, _)| key == name);
        let field = |name: &str| field(name).map_or("", |(_, value)| value.as_ref());
        let stack = field("StackName");
        let Some(kind) = self.find(stack) else {
            return xml_error("ValidationError", &format!("Stack with id {stack} does not exist"));
        };
        let action = field("Action");
        let result = match action {
            "DescribeStacks" => {
                let has_outputs = kind == StackKind::Service("gateway") || kind == StackKind::Root;
                let outputs = OUTPUTS.iter().filter(|_| has_outputs).map(|(key, value)| {
                    format!(
                        "<member><OutputKey>{key}</OutputKey><OutputValue>{value}</OutputValue></member>"
                    )
                });
                format!(
                    "<Stacks><member><StackId>{}</StackId><StackName>{stack}</StackName>\
                     <StackStatus>{}</StackStatus><Parameters><member><ParameterKey>Environment</ParameterKey>\
                     <ParameterValue>test</ParameterValue></member></Parameters>\
                     <Outputs>{}</Outputs></member></Stacks>",
                    arn(stack),
                    self.status_of(kind),
                    outputs.collect::<String>()
                )
            }
            "ListStackResources" => {
                if self.denied.is_some_and(|service| kind == StackKind::Service(service)) {
                    return xml_error("AccessDenied", "not you");
                }
                let all = self.resources(kind);
                let begin: usize = field("NextToken").parse().unwrap_or_default();
                let end = all.len().min(begin + RESOURCES_PER_PAGE);
                let members = all[begin..end].iter().map(|[kind, logical, physical, status]| {
                    format!(
                        "<member><ResourceType>{kind}</ResourceType><LogicalResourceId>{logical}</LogicalResourceId>\
                         <PhysicalResourceId>{physical}</PhysicalResourceId>\
                         <ResourceStatus>{status}</ResourceStatus></member>"
                    )
                });
                let members: String = members.collect();
                let next = if end < all.len() {
                    format!("<NextToken>{end}</NextToken>")
                } else {
                    String::new()
                };
                format!("<StackResourceSummaries>{members}</StackResourceSummaries>{next}")
            }
            other => panic!("{other} is not expected"),
        };
        (
            200,
            format!(
                "<{action}Response><{action}Result>{result}</{action}Result></{action}Response>"
            ),
        )
    }
}

/// Returns the log groups with that prefix, one a page.
fn log_groups(body: &str) -> Value {
    let request: Value = serde_json::from_str(body).expect("JSON");
    let prefix = request["logGroupNamePrefix"].as_str().expect("a prefix");
    let found: Vec<_> = LOG_GROUPS.iter().filter(|name| name.starts_with(prefix)).collect();
    let page: usize = request["nextToken"].as_str().map_or(0, |it| it.parse().expect("a number"));
    let groups: Vec<_> =
        found.iter().skip(page).take(1).map(|name| json!({ "logGroupName": name })).collect();
    let mut response = json!({ "logGroups": groups });
    if page + 1 < found.len() {
        response["nextToken"] = (page + 1).to_string().into();
    }
    response
}

/// Forwards calls to the embedded DynamoDB, whose tables have other names than those of the environment.
#[derive(Clone)]
struct Forward {
    endpoint: Arc<str>,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Forward {
    async fn call(&self, headers: &HeaderMap, body: &str) -> (StatusCode, String) {
        let quoted = |name: &str| format!("\"{name}\"");
        let body = TABLES.iter().fold(body.to_owned(), |body, (name, table)| {
            body.replace(&quoted(name), &quoted(table))
        });
        let request = Request::post(&*self.endpoint).body(Full::new(Bytes::from(body)));
        let mut request = request.expect("a request");
        for name in ["x-amz-target", "x-amz-date", "content-type", "authorization"] {
            request.headers_mut().insert(name, headers[name].clone());
        }
        let response = self.client.request(request).await.expect("a response from DynamoDB");
        let status = response.status();
        let bytes = response.into_body().collect().await.expect("a whole response").to_bytes();
        let mut text = String::from_utf8_lossy(&bytes).into_owned();
        // Only the response to `BatchGetItem` contains names of tables.
        if headers["x-amz-target"].as_bytes().ends_with(b"BatchGetItem") {
            for (name, table) in TABLES {
                text = text.replace(&quoted(table), &quoted(name));
            }
        }
        (status, text)
    }
}

impl Cloud {
    /// Starts a fake with a root stack. `handler` answers all requests except those to `CloudFormation`, STS and
    /// DynamoDB, and `DescribeLogGroups`.
    pub async fn start(
        handler: impl Fn(&ReceivedRequest) -> (u16, Value, Vec<(&'static str, &'static str)>)
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self::with(Stacks::default(), handler).await
    }

    /// Starts a fake with those stacks.
    pub async fn with(
        stacks: Stacks,
        handler: impl Fn(&ReceivedRequest) -> (u16, Value, Vec<(&'static str, &'static str)>)
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let dynamo = Dynamo::start().await;
        let forward = Forward {
            endpoint: dynamo.endpoint().into(),
            client: Client::builder(TokioExecutor::new()).build_http(),
        };
        let received = Arc::<Mutex<Vec<ReceivedRequest>>>::default();
        let (seen, handler) =
            (Arc::clone(&received), Arc::<Handler>::from(Box::new(handler) as Box<Handler>));
        let router = Router::new().fallback(move |request: Request| {
            let (seen, handler) = (Arc::clone(&seen), Arc::clone(&handler));
            let forward = forward.clone();
            async move { respond(request, stacks, &forward, &seen, &handler).await }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("its address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { dynamo, endpoint, received }
    }

    /// Returns the received requests whose operation or path contains this text.
    pub fn requests(&self, operation: &str) -> Vec<ReceivedRequest> {
        let received = self.received.lock().expect("no panic in the fake");
        received.iter().filter(|request| request.operation.contains(operation)).cloned().collect()
    }

    /// Returns the command to run the binary with those arguments.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fieldctl"));
        command
            .args(args)
            .env_clear()
            .env("AWS_ENDPOINT_URL", &self.endpoint)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("FIELDSTATION_STACK", "test")
            .env("COLUMNS", "100")
            .env("HOME", "/nonexistent")
            .env("FIELDSTATION_API_KEY", API_KEY.reveal())
            .env("USER", "tester")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs the binary. Returns exit code, standard output and standard error.
    pub async fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = self.command(args).output().await.expect("fieldctl runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }
}

async fn respond(
    request: Request,
    stacks: Stacks,
    dynamo: &Forward,
    seen: &Mutex<Vec<ReceivedRequest>>,
    handler: &Arc<Handler>,
) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, 16 << 20).await.expect("a whole body");
    let body = String::from_utf8_lossy(&body).into_owned();
    let target = head.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
    if stacks.no_audit && body.contains("\"test-audit\"") {
        let error = json!({ "__type": "AccessDeniedException", "message": "not you" });
        return (StatusCode::BAD_REQUEST, error.to_string()).into_response();
    }
    if target.is_some_and(|target| target.starts_with("DynamoDB")) {
        return dynamo.call(&head.headers, &body).await.into_response();
    }
    let form = body.starts_with("Action=");
    // CloudWatch's requests use the protocol rpc-v2-cbor.
    let cbor = head.headers.contains_key("smithy-protocol");
    let operation = if form {
        "CloudFormation".to_owned()
    } else {
        target.unwrap_or(head.uri.path()).to_owned()
    };
    let query = head.uri.query().unwrap_or_default().to_owned();
    let header = |name: &str| head.headers.get(name).and_then(|it| it.to_str().ok());
    let [authorization, if_match] =
        ["authorization", "if-match"].map(|name| header(name).unwrap_or_default().to_owned());
    let method = head.method.to_string();
    let received = ReceivedRequest { method, authorization, if_match, operation, query, body };
    seen.lock().expect("no panic").push(received.clone());
    if form && received.body.starts_with("Action=GetCallerIdentity") {
        return caller_identity().into_response();
    }
    if form {
        let (status, xml) = stacks.respond(&received.body);
        return (StatusCode::from_u16(status).expect("a status"), xml).into_response();
    }
    if received.operation.ends_with("DescribeLogGroups") {
        return log_groups(&received.body).to_string().into_response();
    }
    let handler = Arc::clone(handler);
    // The response is computed on a thread that may block.
    let (status, body, headers) =
        tokio::task::spawn_blocking(move || handler(&received)).await.expect("a response");
    let status = StatusCode::from_u16(status).expect("a status");
    let mut response = if cbor {
        let mut bytes = Vec::new();
        ciborium::into_writer(&body, &mut bytes).expect("CBOR");
        let mut response = (status, bytes).into_response();
        let headers = response.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/cbor"));
        headers.insert("smithy-protocol", HeaderValue::from_static("rpc-v2-cbor"));
        response
    } else {
        (status, body.to_string()).into_response()
    };
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
