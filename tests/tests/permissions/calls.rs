//! The requests of the permission test: for each resource of the stack, every action that reads, changes or deletes
//! it. An allowed request would take effect.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use aws_credential_types::Credentials;
use reqwest::{
    Method, Url,
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
};
use serde_json::{Map, Value, json};
use testkit::template::Template;
use tests::{Stack, api};

use crate::grants::Deployed;

/// The name of everything that a request would create if it were allowed.
pub const MARKER: &str = "requested-without-permission";

/// A request that needs one permission.
#[derive(Clone, Debug)]
pub struct RoleRequest {
    /// The action of the permission.
    pub action: &'static str,
    /// The ARN of the permission's resource.
    pub arn: String,
    request: HttpRequest,
}

#[derive(Clone, Debug)]
enum HttpRequest {
    /// A service that takes JSON, and the operation in a header.
    Target { service: &'static str, target: String, body: Value },
    /// A service that takes method, path and body.
    Rest { service: &'static str, method: Method, path: String, body: &'static str },
    /// A service that takes a form.
    Form { service: &'static str, body: String },
}

/// An HTTP client of the emulator.
#[derive(Clone, Debug)]
pub struct Http {
    endpoint: Url,
    client: reqwest::Client,
}

impl Http {
    /// Creates a client of the emulator that runs the stack.
    pub fn new(stack: &Stack) -> Result<Self> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { endpoint: stack.endpoint().clone(), client })
    }
}

/// The response to a request.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub text: String,
}

impl Response {
    /// Returns whether the response denies this action because of the role's or the resource's policy. For a resource's
    /// policy, the response has the action in lower case.
    pub fn denies(&self, action: &str) -> bool {
        let has_message =
            |action: &str| self.text.contains(&format!("is not authorized to perform: {action} "));
        let by_resource = self.text.contains("explicit deny in a resource-based policy")
            && has_message(&action.to_lowercase());
        self.status == 403
            && self.text.contains("AccessDenied")
            && (has_message(action) || by_resource)
    }
}

impl RoleRequest {
    /// Sends the request with these credentials.
    pub async fn send(&self, http: &Http, credentials: Credentials) -> Result<Response> {
        let (service, method, path, content_type, body) = match &self.request {
            HttpRequest::Target { service, body, .. } => {
                let kind = "application/x-amz-json-1.0";
                (*service, Method::POST, "/", kind, body.to_string())
            }
            HttpRequest::Rest { service, method, path, body } => {
                (*service, method.clone(), path.as_str(), "application/json", (*body).to_owned())
            }
            HttpRequest::Form { service, body } => {
                let kind = "application/x-www-form-urlencoded";
                (*service, Method::POST, "/", kind, body.clone())
            }
        };
        let url = http.endpoint.join(path)?;
        let mut request = http.client.request(method, url).body(body.clone()).build()?;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let HttpRequest::Target { target, .. } = &self.request {
            let name = HeaderName::from_static("x-amz-target");
            headers.insert(name, HeaderValue::from_str(target)?);
        }
        api::sign_as(credentials, &mut request, service, body.as_bytes())?;
        let response = http.client.execute(request).await.context(self.action)?;
        Ok(Response { status: response.status().as_u16(), text: response.text().await? })
    }
}

/// Returns a role's credentials from STS.
pub async fn assume(http: &Http, role: &str, session: &str) -> Result<Credentials> {
    let account = crate::grants::ACCOUNT;
    let call = form(
        "sts",
        "sts:AssumeRole",
        format!(
            "Action=AssumeRole&Version=2011-06-15&RoleSessionName={session}\
             &RoleArn=arn%3Aaws%3Aiam%3A%3A{account}%3Arole%2F{}",
            role.replace('/', "%2F")
        ),
    );
    let developer = Credentials::new("test", "test", None, None, "local stack");
    let response = call.send(http, developer).await?;
    ensure!(response.status == 200, "can't assume {role}: {response:?}");
    let member = |name: &str| {
        let (_, rest) = response.text.split_once(&format!("<{name}>"))?;
        rest.split_once("</").map(|(value, _)| value.to_owned())
    };
    Ok(Credentials::new(
        member("AccessKeyId").context("the response has no AccessKeyId")?,
        member("SecretAccessKey").context("the response has no SecretAccessKey")?,
        member("SessionToken"),
        None,
        "the role",
    ))
}

/// Returns all requests for the resources of the template.
pub fn all(template: &Template, deployed: &Deployed) -> Vec<RoleRequest> {
    let mut calls = Vec::new();
    for (id, table) in template.resources("AWS::DynamoDB::Table") {
        on_table(&mut calls, deployed, id, &table["Properties"]);
    }
    for id in template.resources("AWS::SQS::Queue").into_keys() {
        on_queue(&mut calls, deployed, id);
    }
    for id in template.resources("AWS::Kinesis::Stream").into_keys() {
        let (arn, name) = (deployed.arn(id), deployed.id(id));
        let record = json!({"Data": "e30=", "PartitionKey": MARKER});
        let from = json!({"ShardId": "shardId-000000000000", "ShardIteratorType": "TRIM_HORIZON"});
        let mut call = |action, more: Value| {
            let body = with(json!({"StreamName": name, "StreamARN": arn}), more);
            calls.push(target("kinesis", "Kinesis_20131202", action, &arn, body));
        };
        call("kinesis:PutRecord", record.clone());
        call("kinesis:PutRecords", json!({"Records": [record]}));
        call("kinesis:GetShardIterator", from);
        call("kinesis:GetRecords", json!({"ShardIterator": MARKER}));
        call("kinesis:ListShards", json!({}));
        call("kinesis:DescribeStream", json!({}));
        call("kinesis:DescribeStreamSummary", json!({}));
        call("kinesis:DeleteStream", json!({}));
    }
    for id in template.resources("AWS::S3::Bucket").into_keys() {
        let (arn, bucket) = (deployed.arn(id), deployed.id(id));
        let mut call = |action, method, key: &str, body| {
            let path = format!("/{bucket}{key}");
            let request = HttpRequest::Rest { service: "s3", method, path, body };
            calls.push(RoleRequest { action, arn: format!("{arn}{key}"), request });
        };
        for key in
            [format!("/{MARKER}"), format!("/aws/lambda/{MARKER}"), format!("/payloads/{MARKER}")]
        {
            call("s3:GetObject", Method::GET, &key, "");
            call("s3:PutObject", Method::PUT, &key, MARKER);
            call("s3:DeleteObject", Method::DELETE, &key, "");
        }
        call("s3:ListBucket", Method::GET, "", "");
        call("s3:DeleteBucket", Method::DELETE, "", "");
    }
    for id in template.resources("AWS::SecretsManager::Secret").into_keys() {
        let (arn, name) = (deployed.arn(id), deployed.id(id));
        let mut call = |action, more: Value| {
            let body = with(json!({"SecretId": name}), more);
            calls.push(target("secretsmanager", "secretsmanager", action, &arn, body));
        };
        call("secretsmanager:GetSecretValue", json!({}));
        call("secretsmanager:PutSecretValue", json!({"SecretString": MARKER}));
        call("secretsmanager:DeleteSecret", json!({}));
    }
    for id in template.resources("AWS::Serverless::StateMachine").into_keys() {
        on_machine(&mut calls, deployed, id);
    }
    for id in template.resources("AWS::Events::EventBus").into_keys() {
        let bus = deployed.id(id);
        for name in [bus, "default"] {
            let arn = deployed.arn(id).replace(&format!("/{bus}"), &format!("/{name}"));
            let entry = json!({"EventBusName": name, "Source": MARKER, "DetailType": MARKER, "Detail": "{}"});
            let body = json!({"Entries": [entry]});
            calls.push(target("events", "AWSEvents", "events:PutEvents", &arn, body));
        }
    }
    for id in template.resources("AWS::Serverless::Function").into_keys() {
        on_function(&mut calls, deployed, id);
    }
    for id in template.resources("AWS::Lambda::EventSourceMapping").into_keys() {
        on_mapping(&mut calls, deployed, id);
    }
    let request = HttpRequest::Rest {
        service: "lambda",
        method: Method::GET,
        path: "/2015-03-31/event-source-mappings".to_owned(),
        body: "",
    };
    calls.push(RoleRequest {
        action: "lambda:ListEventSourceMappings",
        arn: "*".to_owned(),
        request,
    });
    calls.push(form("iam", "iam:ListRoles", "Action=ListRoles&Version=2010-05-08".to_owned()));
    calls
}

fn on_queue(calls: &mut Vec<RoleRequest>, deployed: &Deployed, id: &str) {
    let (arn, url) = (deployed.arn(id), deployed.id(id));
    let mut call = |action, more: Value| {
        calls.push(target("sqs", "AmazonSQS", action, &arn, with(json!({"QueueUrl": url}), more)));
    };
    call("sqs:SendMessage", json!({"MessageBody": MARKER}));
    call("sqs:ReceiveMessage", json!({}));
    call("sqs:DeleteMessage", json!({"ReceiptHandle": MARKER}));
    call("sqs:ChangeMessageVisibility", json!({"ReceiptHandle": MARKER, "VisibilityTimeout": 0}));
    call("sqs:GetQueueAttributes", json!({}));
    call("sqs:SetQueueAttributes", json!({"Attributes": {"VisibilityTimeout": "0"}}));
    call("sqs:PurgeQueue", json!({}));
    call("sqs:DeleteQueue", json!({}));
}

fn on_table(calls: &mut Vec<RoleRequest>, deployed: &Deployed, id: &str, properties: &Value) {
    let (arn, name) = (deployed.arn(&format!("{id}.Arn")), deployed.id(id));
    let key = key(properties);
    let table = json!({"TableName": name});
    let mut call = |action, arn: &str, operation: &str, body| {
        calls.push(dynamodb(action, arn, "DynamoDB_20120810", operation, body));
    };
    let mut simple = |action: &'static str, more: Value| {
        let operation = action.trim_start_matches("dynamodb:");
        call(action, &arn, operation, with(table.clone(), more));
    };
    let hash =
        properties["KeySchema"][0]["AttributeName"].as_str().expect("an index has a hash key");
    let query = |hash: &str, kind: &str| {
        json!({
            "KeyConditionExpression": "#key = :key",
            "ExpressionAttributeNames": {"#key": hash},
            "ExpressionAttributeValues": {":key": {kind: if kind == "N" { "0" } else { MARKER }}},
        })
    };
    simple("dynamodb:GetItem", json!({"Key": key}));
    simple("dynamodb:Query", query(hash, kind(properties, hash)));
    simple("dynamodb:Scan", json!({}));
    simple("dynamodb:PutItem", json!({"Item": key}));
    simple("dynamodb:UpdateItem", json!({"Key": key}));
    simple("dynamodb:DeleteItem", json!({"Key": key}));
    simple(
        "dynamodb:UpdateTimeToLive",
        json!({"TimeToLiveSpecification": {"Enabled": true, "AttributeName": "ttl"}}),
    );
    simple("dynamodb:UpdateTable", json!({"BillingMode": "PROVISIONED"}));
    simple("dynamodb:DeleteTable", json!({}));
    let batch = |of: Value| json!({"RequestItems": {name: of}});
    call("dynamodb:BatchGetItem", &arn, "BatchGetItem", batch(json!({"Keys": [key]})));
    let put = json!([{"PutRequest": {"Item": key}}]);
    call("dynamodb:BatchWriteItem", &arn, "BatchWriteItem", batch(put));
    // A transaction needs the permissions of its items.
    for (action, item, of) in [
        ("dynamodb:PutItem", "Put", json!({"Item": key})),
        (
            "dynamodb:UpdateItem",
            "Update",
            json!({"Key": key, "UpdateExpression": "REMOVE nothing"}),
        ),
        ("dynamodb:DeleteItem", "Delete", json!({"Key": key})),
        (
            "dynamodb:ConditionCheckItem",
            "ConditionCheck",
            json!({"Key": key, "ConditionExpression": "attribute_not_exists(nothing)"}),
        ),
    ] {
        let body = json!({"TransactItems": [{item: with(table.clone(), of)}]});
        call(action, &arn, "TransactWriteItems", body);
    }
    let get = json!({"TransactItems": [{"Get": with(table.clone(), json!({"Key": key}))}]});
    call("dynamodb:GetItem", &arn, "TransactGetItems", get);
    for index in properties["GlobalSecondaryIndexes"].as_array().into_iter().flatten() {
        let index_name = index["IndexName"].as_str().expect("an index has a name");
        let arn = format!("{arn}/index/{index_name}");
        let of = with(table.clone(), json!({"IndexName": index_name}));
        let hash = index["KeySchema"][0]["AttributeName"].as_str().expect("a table has a hash key");
        call(
            "dynamodb:Query",
            &arn,
            "Query",
            with(of.clone(), query(hash, kind(properties, hash))),
        );
        call("dynamodb:Scan", &arn, "Scan", of);
    }
    if properties["StreamSpecification"].is_object() {
        let arn = deployed.arn(&format!("{id}.StreamArn"));
        let stream = json!({"StreamArn": arn.replace('*', MARKER)});
        let from = json!({"ShardId": "shardId-0", "ShardIteratorType": "TRIM_HORIZON"});
        let mut call = |action, operation, body| {
            calls.push(dynamodb(action, &arn, "DynamoDBStreams_20120810", operation, body));
        };
        call("dynamodb:DescribeStream", "DescribeStream", stream.clone());
        call("dynamodb:GetShardIterator", "GetShardIterator", with(stream, from));
        call("dynamodb:GetRecords", "GetRecords", json!({"ShardIterator": MARKER}));
    }
}

fn on_function(calls: &mut Vec<RoleRequest>, deployed: &Deployed, id: &str) {
    let (arn, name) = (deployed.arn(id), deployed.id(id));
    let unqualified = arn.trim_end_matches(":live").to_owned();
    let mut call = |action, method, rest: &str, body| {
        let path = format!("/2015-03-31/functions/{name}{rest}");
        let arn = if rest.starts_with(":live") { arn.clone() } else { unqualified.clone() };
        calls.push(RoleRequest {
            action,
            arn,
            request: HttpRequest::Rest { service: "lambda", method, path, body },
        });
    };
    call("lambda:InvokeFunction", Method::POST, ":live/invocations", "{}");
    call("lambda:InvokeFunction", Method::POST, "/invocations", "{}");
    call("lambda:UpdateFunctionConfiguration", Method::PUT, "/configuration", "{}");
    call("lambda:DeleteFunction", Method::DELETE, "", "");
}

fn on_mapping(calls: &mut Vec<RoleRequest>, deployed: &Deployed, id: &str) {
    let path = format!("/2015-03-31/event-source-mappings/{}", deployed.id(id));
    for (action, method, body) in [
        ("lambda:GetEventSourceMapping", Method::GET, ""),
        ("lambda:UpdateEventSourceMapping", Method::PUT, r#"{"Enabled": false}"#),
        ("lambda:DeleteEventSourceMapping", Method::DELETE, ""),
    ] {
        let request = HttpRequest::Rest { service: "lambda", method, path: path.clone(), body };
        calls.push(RoleRequest { action, arn: deployed.arn(id), request });
    }
}

fn on_machine(calls: &mut Vec<RoleRequest>, deployed: &Deployed, id: &str) {
    let (arn, machine) = (deployed.arn(id), deployed.id(id));
    let executions = deployed.arn(&format!(
        "arn:${{AWS::Partition}}:states:${{AWS::Region}}:${{AWS::AccountId}}:execution:${{{id}.Name}}:*"
    ));
    let mut call = |action: &'static str, arn: &str, body| {
        calls.push(target("states", "AWSStepFunctions", action, arn, body));
    };
    let of = json!({"stateMachineArn": machine});
    call("states:StartExecution", &arn, with(of.clone(), json!({"name": MARKER, "input": "{}"})));
    call("states:ListExecutions", &arn, of.clone());
    call("states:DescribeStateMachine", &arn, of.clone());
    call("states:UpdateStateMachine", &arn, with(of.clone(), json!({"definition": "{}"})));
    call("states:DeleteStateMachine", &arn, of);
    let execution = json!({"executionArn": executions.replace('*', MARKER)});
    call("states:DescribeExecution", &executions, execution.clone());
    call("states:GetExecutionHistory", &executions, execution.clone());
    call("states:StopExecution", &executions, execution);
}

/// Returns a key that no row has.
fn key(properties: &Value) -> Value {
    let schema = properties["KeySchema"].as_array().expect("a table has a key");
    let attributes = schema.iter().map(|part| {
        let name = part["AttributeName"].as_str().expect("a key attribute has a name");
        let kind = kind(properties, name);
        (name.to_owned(), json!({kind: if kind == "N" { "0" } else { MARKER }}))
    });
    attributes.collect::<Map<_, _>>().into()
}

fn kind<'a>(properties: &'a Value, attribute: &str) -> &'a str {
    let attributes = properties["AttributeDefinitions"].as_array().expect("a table has attributes");
    let found = attributes.iter().find(|defined| defined["AttributeName"] == attribute);
    found.and_then(|defined| defined["AttributeType"].as_str()).expect("an attribute has a type")
}

/// Returns, for each table, the key of the row that an allowed request would have written, in the format of `GetItem`.
pub fn rows(template: &Template) -> BTreeMap<&str, Value> {
    let tables = template.resources("AWS::DynamoDB::Table").into_iter();
    tables.map(|(id, table)| (id, key(&table["Properties"]))).collect()
}

fn dynamodb(
    action: &'static str,
    arn: &str,
    api: &str,
    operation: &str,
    body: Value,
) -> RoleRequest {
    let target = format!("{api}.{operation}");
    let request = HttpRequest::Target { service: "dynamodb", target, body };
    RoleRequest { action, arn: arn.to_owned(), request }
}

fn target(
    service: &'static str,
    api: &str,
    action: &'static str,
    arn: &str,
    body: Value,
) -> RoleRequest {
    let (_, operation) = action.split_once(':').expect("an action is service:operation");
    let request = HttpRequest::Target { service, target: format!("{api}.{operation}"), body };
    RoleRequest { action, arn: arn.to_owned(), request }
}

fn form(service: &'static str, action: &'static str, body: String) -> RoleRequest {
    RoleRequest { action, arn: "*".to_owned(), request: HttpRequest::Form { service, body } }
}

/// Merges two objects.
fn with(one: Value, other: Value) -> Value {
    let (Value::Object(mut one), Value::Object(other)) = (one, other) else {
        panic!("both must be objects");
    };
    one.extend(other);
    one.into()
}
