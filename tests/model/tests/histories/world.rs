//! The real steps on an embedded DynamoDB and a stand-in of the payment provider, where each call
//! waits until the history says what becomes of it.

use std::{collections::BTreeSet, rc::Rc, sync::Arc, time::Duration};

use alerting::{configure_alerting::ConfigureAlerting, remove_alerting::RemoveAlerting};
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
    http::{Answer, Problem, Request},
};
use machines::Machine;
use onboarding::start_onboarding::StartOnboarding;
use serde_json::{Value, json};
use sites::{
    activate_site::ActivateSite, close_site::CloseSite, create_site::CreateSite,
    decommission_site::DecommissionSite, project_site::ProjectSite, registration::Registrar,
};
use store::{Idempotency, Outbox, Table};
use testkit::{
    dynamo::{ALERTING, BILLING, DEVICES, EVENTS, INVENTORY, SITES},
    http::{Asked, Stub},
    sample,
};
use tokio::sync::{
    mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    oneshot,
};

use crate::{history::Work, model::Outcome, provider};

pub const ONBOARDING_ARN: &str = "arn:aws:states:eu-central-1:111122223333:stateMachine:onboarding";
pub const TEARDOWN_ARN: &str = "arn:aws:states:eu-central-1:111122223333:stateMachine:teardown";

/// As production has it: longer than a function may take.
pub const LEASE: Duration = Duration::from_secs(30);

/// What a step asks another service for.
#[derive(Clone, Debug)]
pub enum Asking {
    /// DynamoDB, or Step Functions.
    Aws { operation: String, body: Arc<Value> },
    /// The payment provider.
    Stripe(testkit::http::Call),
}

impl Asking {
    /// In words.
    pub fn name(&self) -> String {
        match self {
            Self::Aws { operation, .. } => operation.clone(),
            Self::Stripe(call) => provider::name(call).to_owned(),
        }
    }
}

/// A call that waits. Dropped, it is never answered.
#[derive(Debug)]
pub struct Call {
    pub asking: Asking,
    answer: AnswerTo,
}

#[derive(Debug)]
enum AnswerTo {
    Aws(oneshot::Sender<Option<(u16, Value)>>),
    Stripe(oneshot::Sender<(u16, Value)>),
}

impl Call {
    /// Answers with status and body.
    pub fn answer(self, (status, body): (u16, Value)) {
        match self.answer {
            // Whoever asked may be gone.
            AnswerTo::Aws(to) => drop(to.send(Some((status, body)))),
            AnswerTo::Stripe(to) => drop(to.send((status, body))),
        }
    }

    /// Refuses it for now.
    pub fn throttle(self) {
        let answer = match self.asking {
            Asking::Aws { .. } => (400, json!({ "__type": "ThrottlingException" })),
            Asking::Stripe(_) => (429, json!({ "error": { "message": "slow down" } })),
        };
        self.answer(answer);
    }

    /// Lets the caller know nothing of what became of it.
    pub fn break_off(self) {
        match self.answer {
            AnswerTo::Aws(to) => drop(to.send(None)),
            AnswerTo::Stripe(to) => {
                drop(to.send((504, json!({ "error": { "message": "no answer in time" } }))));
            }
        }
    }
}

/// Passes the AWS clients' calls on.
#[derive(Clone, Debug)]
struct Connector(UnboundedSender<Call>);

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        let body = request.body().bytes().unwrap_or_default();
        let body = Arc::new(serde_json::from_slice(body).unwrap_or_default());
        let (answer, answered) = oneshot::channel();
        let call = Call { asking: Asking::Aws { operation, body }, answer: AnswerTo::Aws(answer) };
        drop(self.0.send(call));
        HttpConnectorFuture::new(async move {
            match answered.await {
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

/// Without retries, which the history decides, and without time-outs, for calls wait as long as
/// the history wants. Without credentials: signing takes time.
fn config(calls: UnboundedSender<Call>) -> SdkConfig {
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

/// The functions, as they are wired in production, and the calls that they make.
pub struct World {
    functions: Rc<Functions>,
    aws: UnboundedReceiver<Call>,
    stripe: UnboundedReceiver<Asked>,
    /// It serves as long as it is there.
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

impl World {
    pub async fn start() -> Self {
        let (calls, aws) = unbounded_channel();
        let (asked, stripe) = unbounded_channel();
        let stub = Stub::passing_on(asked).await;
        let config = config(calls);
        let dynamo = aws_sdk_dynamodb::config::Builder::from(&config).allow_no_auth().build();
        let dynamo = aws_sdk_dynamodb::Client::from_conf(dynamo);
        let machines = aws_sdk_sfn::config::Builder::from(&config).allow_no_auth().build();
        let machines = aws_sdk_sfn::Client::from_conf(machines);
        let machine = |arn: &str| Machine { client: machines.clone(), arn: arn.to_owned() };
        let table = |name| Table::new(dynamo.clone(), name);
        let outbox = Outbox::new(table(EVENTS));
        let provider = || {
            let key = KeySource::Given(ApiKey::new("sk_test_1").expect("a key"));
            let prices = "community=price_1,standard=price_2,professional=price_3";
            let prices = Prices::parse("STRIPE_PRICES", prices).expect("prices");
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
            delete: DecommissionSite { sites: sites.clone(), teardown: machine(TEARDOWN_ARN) },
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

    /// The next call that a function makes.
    pub async fn call(&mut self) -> Call {
        let gone = "the functions and the stub are there as long as this";
        tokio::select! {
            call = self.aws.recv() => call.expect(gone),
            asked = self.stripe.recv() => {
                let Asked { call, answer } = asked.expect(gone);
                Call { asking: Asking::Stripe(call), answer: AnswerTo::Stripe(answer) }
            }
        }
    }

    /// Forgets calls that an earlier history left.
    pub fn clear(&mut self) {
        while self.aws.try_recv().is_ok() || self.stripe.try_recv().is_ok() {}
    }

    /// Invokes a function with that payload, which is what the state machine, the queue or the rule sends;
    /// of an HTTP function the body or the site's id.
    pub fn invoke(
        &self,
        work: Work,
        payload: Value,
        now: Timestamp,
    ) -> impl Future<Output = Outcome> + use<> {
        let functions = Rc::clone(&self.functions);
        async move {
            let it = &*functions;
            match work {
                Work::Create => answered(it.create.handle(&post(&payload), now).await),
                Work::Delete => answered(it.delete.handle(&on_site(&payload)).await),
                Work::Start => run(&it.start, &payload, now).await,
                Work::Reserve => run(&it.reserve, &payload, now).await,
                Work::Provision => run(&it.provision, &payload, now).await,
                Work::Initialize => run(&it.initialize, &payload, now).await,
                Work::Configure => run(&it.configure, &payload, now).await,
                Work::Activate => run(&it.activate, &payload, now).await,
                Work::Remove => run(&it.remove, &payload, now).await,
                Work::Cancel => run(&it.cancel, &payload, now).await,
                Work::Deprovision => run(&it.deprovision, &payload, now).await,
                Work::Release => run(&it.release, &payload, now).await,
                Work::Reject | Work::Retire => run(&it.close, &payload, now).await,
                Work::Project(_) => run(&it.project, &payload, now).await,
                Work::Receive(_) => run(&it.receive, &payload, now).await,
            }
        }
    }
}

async fn run<S: Step>(step: &S, payload: &Value, now: Timestamp) -> Outcome {
    let command = fault::decode(&payload.to_string()).expect("the step's payload");
    match step.run(command, now).await {
        Ok(_) => Ok(()),
        Err(fault) => Err(fault.kind().name().to_owned()),
    }
}

fn answered(answer: Result<Answer, Problem>) -> Outcome {
    match answer {
        Ok(_) => Ok(()),
        Err(Problem { status: 503, .. }) => Err("Transient".to_owned()),
        Err(problem) => Err(problem.status.to_string()),
    }
}

/// `POST /sites` under the name as the key.
fn post(body: &Value) -> Request {
    let mut event = sample::event("create-site");
    for headers in ["headers", "multiValueHeaders"] {
        let headers = event[headers].as_object_mut().expect("headers");
        headers.remove("Idempotency-Key");
    }
    let key = &body["name"];
    event["headers"]["idempotency-key"] = key.clone();
    event["multiValueHeaders"]["idempotency-key"] = json!([key]);
    event["body"] = body.to_string().into();
    serde_json::from_value(event).expect("an event of API Gateway")
}

/// `DELETE` of the site.
fn on_site(site: &Value) -> Request {
    let mut event = sample::event("decommission-site");
    event["path"] = format!("/sites/{}", site.as_str().unwrap_or_default()).into();
    event["pathParameters"] = json!({ "siteId": site });
    serde_json::from_value(event).expect("an event of API Gateway")
}

/// Executions that were started: state machine and name.
#[derive(Debug, Default)]
pub struct Executions(BTreeSet<(String, String)>);

impl Executions {
    /// `StartExecution`.
    pub fn start(&mut self, body: &Value) -> (u16, Value) {
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let key = (text("stateMachineArn"), text("name"));
        let arn = format!("{}:{}", key.0.replace("stateMachine", "execution"), key.1);
        if !self.0.insert(key) {
            return (400, json!({ "__type": "ExecutionAlreadyExists", "message": "it is there" }));
        }
        (200, json!({ "executionArn": arn, "startDate": 1_767_268_800.0 }))
    }

    /// Whether an execution of that name was started.
    pub fn has(&self, machine: &str, name: &str) -> bool {
        self.0.contains(&(machine.to_owned(), name.to_owned()))
    }
}
