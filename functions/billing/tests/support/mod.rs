//! Support of billing's tests: consumers and messages of the command queues, responses of Step Functions and SQS, and a
//! fake payment provider. The provider stores customers and subscriptions, honours idempotency keys as Stripe does, and
//! fails where the test requires it.

// Each test file uses only a part of this module.
#![allow(dead_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_lambda_events::sqs::SqsMessage;
use billing::{
    cancel_subscription::CancelSubscription,
    circuit::{Circuit, Rules},
    commands::TaskTokenConsumer,
    initialize_subscription::InitializeSubscription,
    provider::{KeySource, Prices, Provider},
    stripe::ApiKey,
};
use machines::StateMachine;
use serde_json::{Value, json};
use store::{Idempotency, Table};
use testkit::{
    Dynamo,
    dynamo::BILLING,
    http::{Call, NO_RESPONSE, Stub},
    sample::{self, noon, payload, saga},
};

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum InjectedFault {
    /// The call is not executed. The response is an error.
    NotExecuted,
    /// The call is not executed. The error is stored as the response of its idempotency key.
    StoredError,
    /// The call is executed, but the response is an error.
    ResponseLost,
    /// The call is executed, but no response is sent.
    NoResponse,
}

#[derive(Debug, Default)]
struct ProviderState {
    /// Subscriptions that are paid for, by customer.
    customers: BTreeMap<String, BTreeSet<String>>,
    /// The account's subscriptions that were not created by calls, as the list returns them.
    others: Vec<Value>,
    /// The site of each subscription.
    sites: BTreeMap<String, String>,
    /// The number of calls that were executed. The ids of new objects contain it.
    executed: u32,
    /// Responses by idempotency key.
    responses: BTreeMap<String, (u16, Value)>,
    /// The status of every response during an outage.
    down: Option<u16>,
    /// How the next call of this name fails.
    fault: Option<(&'static str, InjectedFault)>,
    /// The names of the calls since they were last taken.
    calls: Vec<&'static str>,
    /// The prices that subscriptions are accepted for.
    prices: BTreeSet<String>,
}

pub struct FakeStripe {
    pub stub: Stub,
    state: Arc<Mutex<ProviderState>>,
}

/// The names of the calls of a first initialization, in order. [`CANCELLING`] has those of its undo.
pub const INITIALIZING: [&str; 4] = ["customer", "attach", "default", "subscription"];
pub const CANCELLING: [&str; 3] = ["list", "cancel", "delete"];

impl FakeStripe {
    pub async fn start() -> Self {
        let state = Arc::<Mutex<ProviderState>>::default();
        state.lock().expect("the state").prices.insert("price_2".to_owned());
        let shared = Arc::clone(&state);
        let stub = Stub::with_headers(move |call| {
            let (response, replayed) = shared.lock().expect("the state").respond(call);
            let headers = replayed.then_some(("idempotent-replayed", "true"));
            (response.0, headers.into_iter().collect(), response.1)
        })
        .await;
        Self { stub, state }
    }

    pub fn provider(&self) -> Provider {
        let key = KeySource::Fixed(ApiKey::new("sk_test_1").expect("a key"));
        let prices = "community=price_1,standard=price_2,professional=price_3";
        let prices = Prices::parse("STRIPE_PRICES", prices).expect("prices");
        Provider::new(self.stub.url(), key, prices)
    }

    /// Makes the next call of this name fail.
    pub fn fail(&self, call: &'static str, fault: InjectedFault) {
        self.state.lock().expect("the state").fault = Some((call, fault));
    }

    /// Responds to every call with this status from now on. `None` ends the outage.
    pub fn set_outage(&self, status: Option<u16>) {
        self.state.lock().expect("the state").down = status;
    }

    /// Removes the price of the plan in use.
    pub fn forget_prices(&self) {
        self.state.lock().expect("the state").prices.clear();
    }

    /// Removes the stored idempotency keys. Stripe keeps them for a day; another provider might not keep them at all.
    pub fn forget_keys(&self) {
        self.state.lock().expect("the state").responses.clear();
    }

    /// Sets the account's subscriptions that were not created by calls. Replaces those of an earlier call.
    pub fn set_other_subscriptions(&self, subscriptions: Vec<Value>) {
        self.state.lock().expect("the state").others = subscriptions;
    }

    pub fn customers(&self) -> usize {
        self.state.lock().expect("the state").customers.len()
    }

    /// Returns the number of subscriptions that are being paid for.
    pub fn paid_for(&self) -> usize {
        self.state.lock().expect("the state").customers.values().map(BTreeSet::len).sum()
    }

    /// Returns the names of the calls since the last time, and clears the list.
    pub fn take_calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.state.lock().expect("the state").calls)
    }
}

fn name(call: &Call) -> &'static str {
    let path = call.path.split('?').next().unwrap_or_default();
    let parts: Vec<_> = path.trim_start_matches("/v1/").split('/').collect();
    match (call.method.as_str(), &parts[..]) {
        ("POST", ["customers"]) => "customer",
        ("POST", ["customers", _]) => "default",
        ("POST", ["payment_methods", _, "attach"]) => "attach",
        ("POST", ["subscriptions"]) => "subscription",
        ("GET", ["subscriptions"]) => "list",
        ("DELETE", ["subscriptions", _]) => "cancel",
        ("DELETE", ["customers", _]) => "delete",
        _ => "unknown",
    }
}

fn missing(what: &str) -> (u16, Value) {
    let message = format!("No such {what}");
    (400, json!({ "error": { "code": "resource_missing", "message": message } }))
}

impl ProviderState {
    /// Returns the response, and whether it is the stored response of the call's idempotency key.
    fn respond(&mut self, call: &Call) -> ((u16, Value), bool) {
        let name = name(call);
        self.calls.push(name);
        let down = (500, json!({ "error": { "message": "down" } }));
        if let Some(status) = self.down {
            return ((status, down.1), false);
        }
        let fault = self.fault.take_if(|(call, _)| *call == name);
        if let Some((_, InjectedFault::NotExecuted)) = fault {
            return (down, false);
        }
        let key = call.headers.get("idempotency-key").and_then(|key| key.to_str().ok());
        let stored = key.and_then(|key| self.responses.get(key).cloned());
        let replayed = stored.is_some();
        let response = stored.unwrap_or_else(|| match fault {
            Some((_, InjectedFault::StoredError)) => down.clone(),
            _ => self.execute(name, call),
        });
        if let Some(key) = key {
            self.responses.insert(key.to_owned(), response.clone());
        }
        match fault {
            None => (response, replayed),
            Some((_, InjectedFault::NoResponse)) => ((NO_RESPONSE, Value::Null), false),
            Some(_) => (down, false),
        }
    }

    /// Returns a page of the account's subscriptions. A page holds two.
    fn page(&self, after: Option<&str>) -> (u16, Value) {
        let ids = self.customers.values().flatten();
        let of_customers = ids.map(|id| {
            let metadata = json!({ "siteId": self.sites[id] });
            json!({
                "id": id, "status": "active", "created": noon(0).seconds(), "metadata": metadata,
            })
        });
        let all: Vec<_> = of_customers.chain(self.others.iter().cloned()).collect();
        let from = after.map_or(0, |after| {
            1 + all.iter().position(|it| it["id"] == after).expect("a known subscription")
        });
        let page: Vec<_> = all.iter().skip(from).take(2).cloned().collect();
        (200, json!({ "data": page, "has_more": from + 2 < all.len() }))
    }

    /// Executes a call and returns its response.
    fn execute(&mut self, name: &str, call: &Call) -> (u16, Value) {
        let last = call.path.rsplit('/').next().unwrap_or_default();
        let form = if name == "list" { last } else { call.body.as_str() };
        let fields: BTreeMap<_, _> =
            form.split(['&', '?']).filter_map(|pair| pair.split_once('=')).collect();
        let customer = fields.get("customer").copied().unwrap_or_default();
        self.executed += 1;
        match name {
            "customer" => {
                let id = format!("cus_{}", self.executed);
                self.customers.insert(id.clone(), BTreeSet::new());
                (200, json!({ "id": id }))
            }
            "attach" if call.path.contains("Declined") => {
                let message = "Your card was declined.";
                (402, json!({ "error": { "code": "card_declined", "message": message } }))
            }
            "attach" if call.path.contains("pm_nobody") => missing("PaymentMethod: 'pm_nobody'"),
            // This is what Stripe returns for a missing object in the path. The client must not depend on the message.
            "attach" if call.path.contains("pm_unknown") => (404, missing("object").1),
            "attach" => (200, json!({ "id": "pm_attached" })),
            "default" if self.customers.contains_key(last) => (200, json!({ "id": last })),
            "subscription" => {
                if !fields.values().any(|value| self.prices.contains(*value)) {
                    return missing("price: 'price_2'");
                }
                let id = format!("sub_{}", self.executed);
                match self.customers.get_mut(customer) {
                    Some(ids) => {
                        ids.insert(id.clone());
                        let site = fields.get("metadata%5BsiteId%5D").expect("the site's id");
                        self.sites.insert(id.clone(), (*site).to_owned());
                        (200, json!({ "id": id, "status": "active" }))
                    }
                    None => missing("customer"),
                }
            }
            "list" if customer.is_empty() => self.page(fields.get("starting_after").copied()),
            "list" => {
                let ids = self.customers.get(customer).into_iter().flatten();
                let ids: Vec<_> = ids.map(|id| json!({ "id": id, "status": "active" })).collect();
                (200, json!({ "data": ids, "has_more": false }))
            }
            "cancel" if self.customers.values_mut().any(|ids| ids.remove(last)) => {
                (200, json!({ "id": last, "status": "canceled" }))
            }
            "delete" if self.customers.remove(last).is_some() => {
                (200, json!({ "id": last, "deleted": true }))
            }
            _ => (404, missing("object").1),
        }
    }
}

fn idempotency(dynamo: &Dynamo) -> Idempotency {
    Idempotency::new(dynamo.table(BILLING), Duration::from_secs(30))
}

pub fn initialize(dynamo: &Dynamo, stripe: &FakeStripe) -> InitializeSubscription {
    InitializeSubscription {
        billing: dynamo.table(BILLING),
        idempotency: idempotency(dynamo),
        outbox: dynamo.outbox(),
        provider: stripe.provider(),
    }
}

pub fn cancel(dynamo: &Dynamo, stripe: &FakeStripe) -> CancelSubscription {
    CancelSubscription {
        billing: dynamo.table(BILLING),
        idempotency: idempotency(dynamo),
        outbox: dynamo.outbox(),
        provider: stripe.provider(),
    }
}

/// Returns a consumer of cancel commands.
pub fn canceller(
    dynamo: &Dynamo,
    stripe: &FakeStripe,
    aws: &Stub,
) -> TaskTokenConsumer<CancelSubscription> {
    let step = cancel(dynamo, stripe);
    let rules = Rules { timeout: Duration::from_mins(1), ..Rules::default() };
    TaskTokenConsumer {
        circuit: Circuit { table: dynamo.table(BILLING), rules },
        step,
        machine: machine(aws),
        queues: aws_sdk_sqs::Client::new(&aws.config()),
        queue_url: format!("{}/111122223333/commands", aws.url()),
        state_timeout: Duration::from_hours(24),
    }
}

/// Returns a consumer of initialize commands. It corresponds to one execution environment of the function.
pub fn consumer(
    dynamo: &Dynamo,
    circuit: Table,
    stripe: &FakeStripe,
    aws: &Stub,
) -> TaskTokenConsumer<InitializeSubscription> {
    let step = initialize(dynamo, stripe);
    // On a busy machine the breaker's timeout must not let commands run without the breaker.
    let rules = Rules { timeout: Duration::from_mins(1), ..Rules::default() };
    TaskTokenConsumer {
        circuit: Circuit { table: circuit, rules },
        step,
        machine: machine(aws),
        queues: aws_sdk_sqs::Client::new(&aws.config()),
        queue_url: format!("{}/111122223333/commands", aws.url()),
        state_timeout: Duration::from_hours(1),
    }
}

/// The state machine that sends the commands.
pub const MACHINE: &str = "arn:aws:states:eu-central-1:111122223333:stateMachine:saga";

pub fn machine(aws: &Stub) -> StateMachine {
    StateMachine { client: aws_sdk_sfn::Client::new(&aws.config()), arn: MACHINE.to_owned() }
}

/// Returns the ARN of the execution that sends this command. The execution's name encodes the command, so that the
/// fake Step Functions needs no state.
pub fn execution(command: &Value) -> String {
    let digit = |value: u8| char::from_digit(value.into(), 16).expect("a hexadecimal digit");
    let digits = |byte: u8| [digit(byte >> 4), digit(byte & 15)];
    let name: String = command.to_string().bytes().flat_map(digits).collect();
    format!("{}:{name}", MACHINE.replace("stateMachine", "execution"))
}

/// Responds to `DescribeExecution` with the execution of the requested ARN, in this status.
pub fn described(call: &Call, status: &str) -> (u16, Value) {
    let arn = call.json()["executionArn"].as_str().expect("an ARN").to_owned();
    let name = arn.rsplit(':').next().unwrap_or_default();
    let digits = name.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).expect("ASCII"));
    let bytes = digits.map(|two| u8::from_str_radix(two, 16).expect("hexadecimal")).collect();
    let input = String::from_utf8(bytes).expect("UTF-8");
    let started = 1_767_268_800.0;
    (
        200,
        json!({
            "executionArn": arn, "stateMachineArn": MACHINE, "name": name, "status": status,
            "startDate": started, "input": input,
        }),
    )
}

/// Responds as SQS, and as Step Functions with an execution that waits for the result.
pub fn waiting(call: &Call) -> (u16, Value) {
    match call.operation() {
        "DescribeExecution" => described(call, "RUNNING"),
        _ => (200, json!({ "MessageId": "1" })),
    }
}

/// The calls that prove who sent a command.
pub const PROOF: [&str; 2] = ["SendTaskHeartbeat", "DescribeExecution"];

/// Returns the calls since the last time, except those that prove who sent a command.
pub fn take_effects(aws: &Stub) -> Vec<Call> {
    let mut calls = aws.take_calls();
    calls.retain(|call| !PROOF.contains(&call.operation()));
    calls
}

/// Returns a message with this command, sent at noon.
pub fn message(command: &Value) -> SqsMessage {
    message_of(&json!({
        "taskToken": "token-1", "execution": execution(command), "command": command,
    }))
}

/// Returns a message with this body, sent at noon.
pub fn message_of(body: &Value) -> SqsMessage {
    let mut event = sample::event("initialize-subscription");
    let record = &mut event["Records"][0];
    record["body"] = body.to_string().into();
    record["attributes"]["SentTimestamp"] = noon(0).millis().to_string().into();
    serde_json::from_value(record.take()).expect("a message")
}

/// Returns the requeued message as SQS delivers it.
pub fn redelivered(sent: &Value) -> SqsMessage {
    let mut event = sample::event("initialize-subscription");
    let record = &mut event["Records"][0];
    record["body"] = sent["MessageBody"].clone();
    // The time at which the message was requeued. The command was first sent earlier.
    record["attributes"]["SentTimestamp"] = noon(100_000).millis().to_string().into();
    let attributes = sent["MessageAttributes"].as_object().expect("attributes");
    for (name, attribute) in attributes {
        record["messageAttributes"][name] = json!({
            "dataType": attribute["DataType"],
            "stringValue": attribute["StringValue"],
        });
    }
    serde_json::from_value(record.take()).expect("a message")
}

/// Returns the initialize command of site `a`, as the state machine writes it.
pub fn command(payment_method: &str) -> Value {
    command_of("a", payment_method)
}

/// Returns the initialize command of the named site.
pub fn command_of(site: &str, payment_method: &str) -> Value {
    let mut command = payload(saga(site));
    command["name"] = "Alamosa, Colorado".into();
    command["plan"] = "standard".into();
    command["paymentMethod"] = payment_method.into();
    command
}
