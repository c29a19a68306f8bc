//! A stand-in for the AWS services that `fieldctl` speaks to, on one endpoint; DynamoDB is embedded
//! and has its own.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::to_bytes,
    extract::Request,
    http::{StatusCode, header::HeaderValue},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use testkit::dynamo::Dynamo;
use tokio::{net::TcpListener, process::Command};

/// A request: what is asked for, and the body.
#[derive(Clone, Debug)]
pub struct Asked {
    /// `AWSStepFunctions.DescribeExecution`, `CloudFormation`, or the path.
    pub what: String,
    /// The path's query.
    pub query: String,
    /// The body.
    pub body: String,
}

type Answer = dyn Fn(&Asked) -> (u16, Value, Vec<(&'static str, &'static str)>) + Send + Sync;

/// A running stand-in, and what it was asked.
pub struct Cloud {
    /// DynamoDB.
    pub dynamo: Dynamo,
    endpoint: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// An output with what XML can carry of hostile text.
pub const NOTE: &str = "note \u{9b}45m\u{202e}\u{2066}\u{200b}";

const OUTPUTS: [(&str, &str); 12] = [
    ("BillingTable", "BillingTable"),
    ("EventsTable", "EventsTable"),
    ("FailuresTable", "FailuresTable"),
    ("ReadingsTable", "ReadingsTable"),
    ("RefusalsTable", "RefusalsTable"),
    ("SitesTable", "SitesTable"),
    ("StripeSecretArn", "arn:aws:secretsmanager:us-east-1:000000000000:secret:stripe"),
    ("SiteOnboardingArn", "arn:aws:states:us-east-1:000000000000:stateMachine:site-onboarding"),
    ("SiteTeardownArn", "arn:aws:states:us-east-1:000000000000:stateMachine:site-teardown"),
    ("ApiUrl", "https://api.execute-api.us-east-1.amazonaws.com/local"),
    ("ApiId", "api"),
    ("Note", NOTE),
];

/// The resources of the stack, by type and logical id.
const RESOURCES: [(&str, &str); 6] = [
    ("AWS::Lambda::Function", "StoreReadingsFunction"),
    ("AWS::Lambda::EventSourceMapping", "StoreReadingsMapping"),
    ("AWS::Kinesis::Stream", "ReadingsStream"),
    ("AWS::SQS::Queue", "StoreReadingsQuarantine"),
    ("AWS::Logs::LogGroup", "StoreReadingsLogs"),
    ("AWS::Logs::LogGroup", "CheckSagasLogs"),
];

fn physical_id(kind: &str, logical: &str) -> String {
    match (kind, logical) {
        ("AWS::Logs::LogGroup", "StoreReadingsLogs") => {
            "/aws/lambda/test/store-readings".to_owned()
        }
        ("AWS::Logs::LogGroup", _) => "/aws/lambda/test/check-sagas".to_owned(),
        ("AWS::SQS::Queue", _) => format!("https://sqs.us-east-1.amazonaws.com/1/test-{logical}"),
        _ => format!("test-{logical}"),
    }
}

/// What `CloudFormation` answers, in its XML.
fn cloudformation(body: &str) -> (u16, String) {
    let fields = || body.split('&').filter_map(|pair| pair.split_once('='));
    let field = |name: &str| fields().find(|(key, _)| *key == name).map_or("", |(_, value)| value);
    if field("StackName") != "test" || field("LogicalResourceId").starts_with("Gone") {
        let error = "<ErrorResponse><Error><Code>ValidationError</Code><Message>It does not \
                     exist</Message></Error></ErrorResponse>";
        return (400, error.to_owned());
    }
    let result = match field("Action") {
        "DescribeStacks" => {
            let output = |(key, value): &(&str, &str)| {
                format!(
                    "<member><OutputKey>{key}</OutputKey><OutputValue>{value}</OutputValue></member>"
                )
            };
            let outputs = OUTPUTS.iter().map(output).collect::<Vec<_>>().concat();
            format!(
                "<Stacks><member><StackName>test</StackName><StackStatus>UPDATE_COMPLETE</StackStatus>\
                 <Outputs>{outputs}</Outputs></member></Stacks>"
            )
        }
        "ListStackResources" => {
            let resource = |(kind, logical): &(&str, &str)| {
                format!(
                    "<member><ResourceType>{kind}</ResourceType><LogicalResourceId>{logical}</LogicalResourceId>\
                     <PhysicalResourceId>{}</PhysicalResourceId></member>",
                    physical_id(kind, logical)
                )
            };
            let resources = RESOURCES.iter().map(resource).collect::<Vec<_>>().concat();
            format!("<StackResourceSummaries>{resources}</StackResourceSummaries>")
        }
        _ => format!(
            "<StackResourceDetail><PhysicalResourceId>test-{}</PhysicalResourceId></StackResourceDetail>",
            field("LogicalResourceId")
        ),
    };
    let action = field("Action");
    (200, format!("<{action}Response><{action}Result>{result}</{action}Result></{action}Response>"))
}

impl Cloud {
    /// Starts one that answers what is not `CloudFormation`'s as given.
    pub async fn start(
        answer: impl Fn(&Asked) -> (u16, Value, Vec<(&'static str, &'static str)>)
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let asked = Arc::<Mutex<Vec<Asked>>>::default();
        let (seen, answer) =
            (Arc::clone(&asked), Arc::<Answer>::from(Box::new(answer) as Box<Answer>));
        let router = Router::new().fallback(move |request: Request| {
            let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
            async move { respond(request, &seen, &answer).await }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("its address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { dynamo: Dynamo::start().await, endpoint, asked }
    }

    /// What it was asked of that kind.
    pub fn asked(&self, what: &str) -> Vec<Asked> {
        let asked = self.asked.lock().expect("no panic in the stand-in");
        asked.iter().filter(|asked| asked.what.contains(what)).cloned().collect()
    }

    /// The binary with those arguments.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fieldctl"));
        command
            .args(args)
            .env_clear()
            .env("AWS_ENDPOINT_URL", &self.endpoint)
            .env("AWS_ENDPOINT_URL_DYNAMODB", self.dynamo.endpoint())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("FIELDSTATION_STACK", "test")
            .env("COLUMNS", "100")
            .env("HOME", "/nonexistent")
            .env("USER", "tester")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs it: exit code, standard output and standard error.
    pub async fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = self.command(args).output().await.expect("fieldctl runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }
}

async fn respond(request: Request, seen: &Mutex<Vec<Asked>>, answer: &Arc<Answer>) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, 16 << 20).await.expect("a whole body");
    let body = String::from_utf8_lossy(&body).into_owned();
    let target = head.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
    let form = body.starts_with("Action=");
    // CloudWatch's protocol.
    let cbor = head.headers.contains_key("smithy-protocol");
    let what = if form {
        "CloudFormation".to_owned()
    } else {
        target.unwrap_or(head.uri.path()).to_owned()
    };
    let query = head.uri.query().unwrap_or_default().to_owned();
    let asked = Asked { what, query, body };
    seen.lock().expect("no panic").push(asked.clone());
    if form {
        let (status, xml) = cloudformation(&asked.body);
        return (StatusCode::from_u16(status).expect("a status"), xml).into_response();
    }
    let answer = Arc::clone(answer);
    // It may take its time.
    let (status, body, headers) =
        tokio::task::spawn_blocking(move || answer(&asked)).await.expect("an answer");
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
