//! The real steps. Each of their calls waits until the run of a history determines its response.

use std::{collections::BTreeSet, rc::Rc, sync::Arc, time::Duration};

use alerting::{configure_alerting::ConfigureAlerting, remove_alerting::RemoveAlerting};
use audit::Trail;
use aws_sdk_dynamodb::config::{
    BehaviorVersion, Region,
    http::{HttpRequest, HttpResponse},
    retry::RetryConfig,
};
use aws_smithy_runtime_api::client::{
    http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn},
    result::ConnectorError,
};
use aws_types::SdkConfig;
use billing::{
    cancel_subscription::CancelSubscription,
    initialize_subscription::InitializeSubscription,
    provider::{KeySource, Prices, Provider},
    stripe::ApiKey,
};
use contracts::Timestamp;
use devices::{deprovision_sensors::DeprovisionSensors, provision_sensors::ProvisionSensors};
use fault::Fault;
use inventory::{receive_kits::ReceiveKits, release_kits::ReleaseKits, reserve_kits::ReserveKits};
use lambda::{
    Step,
    http::{Problem, Request, Response},
};
use machines::StateMachine;
use onboarding::start_onboarding::StartOnboarding;
use serde_json::{Value, json};
use sites::{
    activate_site::ActivateSite, close_site::CloseSite, create_site::CreateSite,
    decommission_site::DecommissionSite, project_site::ProjectSite, registration::Registrar,
};
use store::{Idempotency, Outbox, Table};
use testkit::{
    dynamo::{ALERTING, AUDIT, BILLING, DEVICES, EVENTS, INVENTORY, SITES},
    http::{PendingCall, Stub},
    sample::{self, default_caller},
};
use tokio::sync::{
    mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    oneshot,
};

use crate::{history::Invocation, model::Outcome, provider};

pub const ONBOARDING_ARN: &str = "arn:aws:states:eu-central-1:111122223333:stateMachine:onboarding";
pub const TEARDOWN_ARN: &str = "arn:aws:states:eu-central-1:111122223333:stateMachine:teardown";

/// The time after which the lock of an idempotency record expires, as in production. It is longer than the functions'
/// timeout.
pub const LEASE: Duration = Duration::from_secs(30);

/// A call of a step to another service.
#[derive(Clone, Debug)]
pub enum ServiceRequest {
    /// DynamoDB, or Step Functions.
    Aws { operation: String, body: Arc<Value> },
    /// The payment provider.
    Stripe(testkit::http::Call),
}

impl ServiceRequest {
    /// Returns a short name.
    pub fn name(&self) -> String {
        match self {
            Self::Aws { operation, .. } => operation.clone(),
            Self::Stripe(call) => provider::name(call).to_owned(),
        }
    }
}

/// A call that waits for its response. If it is dropped, it never gets one.
#[derive(Debug)]
pub struct WaitingCall {
    pub request: ServiceRequest,
    responder: Responder,
}

#[derive(Debug)]
enum Responder {
    Aws(oneshot::Sender<Option<(u16, Value)>>),
    Stripe(oneshot::Sender<(u16, Value)>),
}

impl WaitingCall {
    /// Responds with this status and body.
    pub fn respond(self, (status, body): (u16, Value)) {
        match self.responder {
            // The caller may have been dropped.
            Responder::Aws(sender) => drop(sender.send(Some((status, body)))),
            Responder::Stripe(sender) => drop(sender.send((status, body))),
        }
    }

    /// Responds that the call is throttled.
    pub fn throttle(self) {
        let response = match self.request {
            ServiceRequest::Aws { .. } => (400, json!({ "__type": "ThrottlingException" })),
            ServiceRequest::Stripe(_) => (429, json!({ "error": { "message": "slow down" } })),
        };
        self.respond(response);
    }

    /// Ends the call without a response, so the caller does not know its effect.
    pub fn disconnect(self) {
        match self.responder {
            Responder::Aws(sender) => drop(sender.send(None)),
            Responder::Stripe(sender) => {
                drop(
                    sender.send((504, json!({ "error": { "message": "the request timed out" } }))),
                );
            }
        }
    }
}

/// The HTTP connector of the AWS clients. It sends each call to a channel.
#[derive(Clone, Debug)]
struct Connector(UnboundedSender<WaitingCall>);

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        let body = request.body().bytes().unwrap_or_default();
        let body = Arc::new(serde_json::from_slice(body).unwrap_or_default());
        let (sender, receiver) = oneshot::channel();
        let call = WaitingCall {
            request: ServiceRequest::Aws { operation, body },
            responder: Responder::Aws(sender),
        };
        drop(self.0.send(call));
        HttpConnectorFuture::new(async move {
            match receiver.await {
                Ok(Some((status, body))) => {
                    let status = status.try_into();
                    let status =
                        status.map_err(|error| ConnectorError::other(Box::from(error), None))?;
                    Ok(HttpResponse::new(status, body.to_string().into()))
                }
                Ok(None) => Err(ConnectorError::io("the connection was reset".into())),
                Err(_) => std::future::pending().await,
            }
        })
    }
}

/// Returns the configuration of the AWS clients. It has no retries and no timeouts, because the history determines
/// them. It has no credentials, because signing is slow.
fn config(calls: UnboundedSender<WaitingCall>) -> SdkConfig {
    let connector = SharedHttpConnector::new(Connector(calls));
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("eu-central-1"))
        .endpoint_url("http://cloud")
        .http_client(http_client_fn(move |_, _| connector.clone()))
        .retry_config(RetryConfig::disabled())
        .stalled_stream_protection(
            aws_sdk_dynamodb::config::StalledStreamProtectionConfig::disabled(),
        )
        .build()
}

/// The functions with their production wiring, and the channels of their calls.
pub struct Harness {
    functions: Rc<Functions>,
    aws: UnboundedReceiver<WaitingCall>,
    stripe: UnboundedReceiver<PendingCall>,
    /// The fake runs until it is dropped.
    _stub: Stub,
}

struct Functions {
    create: CreateSite,
    start: StartOnboarding,
    reserve: ReserveKits,
    provision: ProvisionSensors,
    initialize: InitializeSubscription,
    configure: ConfigureAlerting,
    activate: ActivateSite,
    delete: DecommissionSite,
    remove: RemoveAlerting,
    cancel: CancelSubscription,
    deprovision: DeprovisionSensors,
    release: ReleaseKits,
    close: CloseSite,
    project: ProjectSite,
    receive: ReceiveKits,
}

impl Harness {
    pub async fn start() -> Self {
        let (calls, aws) = unbounded_channel();
        let (stripe_calls, stripe) = unbounded_channel();
        let stub = Stub::forwarding_to(stripe_calls).await;
        let config = config(calls);
        let dynamo = aws_sdk_dynamodb::config::Builder::from(&config).allow_no_auth().build();
        let dynamo = aws_sdk_dynamodb::Client::from_conf(dynamo);
        let machines = aws_sdk_sfn::config::Builder::from(&config).allow_no_auth().build();
        let machines = aws_sdk_sfn::Client::from_conf(machines);
        let machine = |arn: &str| StateMachine { client: machines.clone(), arn: arn.to_owned() };
        let table = |name| Table::new(dynamo.clone(), name);
        let outbox = Outbox::new(table(EVENTS));
        let provider = || {
            let key = KeySource::Fixed(ApiKey::new("sk_test_1").expect("the API key is valid"));
            let prices = "community=price_1,standard=price_2,professional=price_3";
            let prices = Prices::parse("STRIPE_PRICES", prices).expect("the prices are valid");
            Provider::new(stub.url(), key, prices)
        };
        let idempotency = || Idempotency::new(table(BILLING), LEASE);
        let (sites, inventory, devices) = (table(SITES), table(INVENTORY), table(DEVICES));
        let (billing, alerting) = (table(BILLING), table(ALERTING));
        let functions = Functions {
            create: CreateSite(Registrar { sites: sites.clone(), outbox: outbox.clone() }),
            start: StartOnboarding { onboarding: machine(ONBOARDING_ARN) },
            reserve: ReserveKits { inventory: inventory.clone(), outbox: outbox.clone() },
            provision: ProvisionSensors { devices: devices.clone(), outbox: outbox.clone() },
            initialize: InitializeSubscription {
                billing: billing.clone(),
                idempotency: idempotency(),
                outbox: outbox.clone(),
                provider: provider(),
            },
            configure: ConfigureAlerting { alerting: alerting.clone(), outbox: outbox.clone() },
            activate: ActivateSite { sites: sites.clone(), outbox: outbox.clone() },
            delete: DecommissionSite {
                sites: sites.clone(),
                teardown: machine(TEARDOWN_ARN),
                trail: Trail::new(table(AUDIT)),
            },
            remove: RemoveAlerting { alerting, outbox: outbox.clone() },
            cancel: CancelSubscription {
                billing,
                idempotency: idempotency(),
                outbox: outbox.clone(),
                provider: provider(),
            },
            deprovision: DeprovisionSensors { devices, outbox: outbox.clone() },
            release: ReleaseKits { inventory: inventory.clone(), outbox: outbox.clone() },
            close: CloseSite { sites: sites.clone(), outbox },
            project: ProjectSite { sites },
            receive: ReceiveKits { inventory },
        };
        Self { functions: Rc::new(functions), aws, stripe, _stub: stub }
    }

    /// Waits for the next call of a function.
    pub async fn next_call(&mut self) -> WaitingCall {
        let open = "the functions and the stub live as long as this";
        tokio::select! {
            call = self.aws.recv() => call.expect(open),
            call = self.stripe.recv() => {
                let PendingCall { call, response: answer } = call.expect(open);
                let (request, responder) =
                    (ServiceRequest::Stripe(call), Responder::Stripe(answer));
                WaitingCall { request, responder }
            }
        }
    }

    /// Drops the calls that remain from the previous history.
    pub fn drop_calls(&mut self) {
        while self.aws.try_recv().is_ok() || self.stripe.try_recv().is_ok() {}
    }

    /// Invokes a function. `payload` is the payload from the state machine, the queue or the rule. For an HTTP
    /// function, it is the body or the site's id.
    pub fn invoke(
        &self,
        invocation: Invocation,
        payload: Value,
        now: Timestamp,
    ) -> impl Future<Output = Outcome> + use<> {
        let functions = Rc::clone(&self.functions);
        async move {
            let it = &*functions;
            match invocation {
                Invocation::Create => http_outcome(
                    it.create.handle(&default_caller(), &post_request(&payload), now).await,
                ),
                Invocation::Delete => http_outcome(
                    it.delete.handle(&default_caller(), &delete_request(&payload), now).await,
                ),
                Invocation::Start => run_step(&it.start, &payload, now).await,
                Invocation::Reserve => run_step(&it.reserve, &payload, now).await,
                Invocation::Provision => run_step(&it.provision, &payload, now).await,
                Invocation::Initialize => run_step(&it.initialize, &payload, now).await,
                Invocation::Configure => run_step(&it.configure, &payload, now).await,
                Invocation::Activate => run_step(&it.activate, &payload, now).await,
                Invocation::Remove => run_step(&it.remove, &payload, now).await,
                Invocation::Cancel => run_step(&it.cancel, &payload, now).await,
                Invocation::Deprovision => run_step(&it.deprovision, &payload, now).await,
                Invocation::Release => run_step(&it.release, &payload, now).await,
                Invocation::Reject | Invocation::Retire => run_step(&it.close, &payload, now).await,
                Invocation::Project(_) => run_step(&it.project, &payload, now).await,
                Invocation::Receive(_) => run_step(&it.receive, &payload, now).await,
            }
        }
    }
}

async fn run_step<S: Step>(step: &S, payload: &Value, now: Timestamp) -> Outcome {
    let command = fault::decode(&payload.to_string()).expect("the payload is valid");
    match step.run(command, now).await {
        Ok(_) => Ok(()),
        Err(fault) => Err(fault.kind().name().to_owned()),
    }
}

fn http_outcome(result: Result<Response, Problem>) -> Outcome {
    match result {
        Ok(_) => Ok(()),
        Err(Problem { status: 503, .. }) => Err("Transient".to_owned()),
        Err(problem) => Err(problem.status.to_string()),
    }
}

/// Returns a `POST /sites` request. The site's name is the idempotency key.
fn post_request(body: &Value) -> Request {
    let mut event = sample::event("create-site");
    for headers in ["headers", "multiValueHeaders"] {
        let headers = event[headers].as_object_mut().expect("the sample has headers");
        headers.remove("Idempotency-Key");
    }
    let key = &body["name"];
    event["headers"]["idempotency-key"] = key.clone();
    event["multiValueHeaders"]["idempotency-key"] = json!([key]);
    event["body"] = body.to_string().into();
    serde_json::from_value(event).expect("the sample is an event of API Gateway")
}

/// Returns a `DELETE` request for the site.
fn delete_request(site: &Value) -> Request {
    let mut event = sample::event("decommission-site");
    event["path"] = format!("/sites/{}", site.as_str().unwrap_or_default()).into();
    event["pathParameters"] = json!({ "siteId": site });
    serde_json::from_value(event).expect("the sample is an event of API Gateway")
}

/// The executions that were started, by state machine and name.
#[derive(Debug, Default)]
pub struct Executions(BTreeSet<(String, String)>);

impl Executions {
    /// Performs `StartExecution`.
    pub fn start(&mut self, body: &Value) -> (u16, Value) {
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let key = (text("stateMachineArn"), text("name"));
        let arn = format!("{}:{}", key.0.replace("stateMachine", "execution"), key.1);
        if !self.0.insert(key) {
            return (
                400,
                json!({ "__type": "ExecutionAlreadyExists", "message": "the name exists" }),
            );
        }
        (200, json!({ "executionArn": arn, "startDate": 1_767_268_800.0 }))
    }

    /// Returns whether an execution with this name was started.
    pub fn contains(&self, machine: &str, name: &str) -> bool {
        self.0.contains(&(machine.to_owned(), name.to_owned()))
    }
}
