//! A proxy between the functions and the services that they call: AWS, the payment provider and their own
//! Runtime API. It knows each call's process, invocation and onboarding, and injects the faults.

use std::{
    collections::HashMap,
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustix::{io::Errno, process::Pid};
use serde_json::Value;
use tests::{Stack, api::sign};
use tokio::{
    net::TcpListener,
    sync::{Notify, OnceCell},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    callers::{self, Caller},
    faults::{ErrorKind, Fault, Service, error_response},
    provider::{IdempotencyCache, Lookup},
};

/// The maximum time for which a call hangs while its event is delivered a second time. It is shorter than the
/// functions' timeout for AWS, 3 s.
const DUPLICATE_HOLD: Duration = Duration::from_millis(2400);
/// The maximum wait until a client has disconnected. It is longer than the timeout of any call of the functions.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(12);
/// The maximum wait until a client repeats a call that timed out: after a backoff, a return to the queue, or the state
/// machine's wait.
const REPEAT_TIMEOUT: Duration = Duration::from_secs(8);

/// A request of a function.
#[derive(Clone, Debug)]
pub struct ProxyRequest {
    /// The service that is called.
    pub service: Service,
    /// The HTTP method.
    pub method: Method,
    /// The path with the query.
    pub path: String,
    headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl ProxyRequest {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    fn target(&self) -> &str {
        self.header("x-amz-target")
    }

    /// Returns the name of the call: AWS's operation with the kind of the row, or Stripe's method and path
    /// without ids.
    fn name(&self) -> String {
        if self.service == Service::Stripe {
            let path = self.path.split('?').next().unwrap_or_default();
            let parts = path.split('/').enumerate();
            let parts: Vec<_> =
                parts.map(|(index, part)| if index == 3 { "{id}" } else { part }).collect();
            return format!("{}{}", self.method, parts.join("/"));
        }
        let Some((service, operation)) = self.target().split_once('.') else {
            return format!("{}{}", self.method, self.path);
        };
        let kind = (service == "DynamoDB_20120810").then(|| self.row_kind()).flatten();
        kind.map_or_else(|| operation.to_owned(), |kind| format!("{operation}({kind})"))
    }

    fn row_kind(&self) -> Option<String> {
        let body: Value = serde_json::from_slice(&self.body).ok()?;
        let key = body.get("Key").or_else(|| body.get("Item"))?;
        let id = key.get("id").or_else(|| key.get("row"))?;
        Some(id["S"].as_str()?.split('#').next()?.to_lowercase())
    }
}

/// The response to a request.
#[derive(Clone, Debug)]
pub struct ProxyResponse {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl ProxyResponse {
    /// Creates a response with a JSON body.
    pub fn new(status: u16, body: String) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, headers: HeaderMap::new(), body: body.into() }
    }

    /// Returns the status.
    pub fn status(&self) -> u16 {
        self.status.as_u16()
    }

    /// Adds a header.
    pub fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        self
    }

    fn error(request: &ProxyRequest, kind: ErrorKind) -> Self {
        let (status, body) = error_response(request.service, request.target(), kind);
        let content_type = match request.service {
            Service::Aws => "application/x-amz-json-1.0",
            Service::Stripe => "application/json",
        };
        Self { status, headers: HeaderMap::new(), body }.with("content-type", content_type)
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// The error that makes the proxy break the connection.
#[derive(Debug)]
struct ConnectionCut;

impl fmt::Display for ConnectionCut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection is cut")
    }
}

impl std::error::Error for ConnectionCut {}

/// A call at which a fault happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultTarget {
    /// The onboarding's id.
    pub onboarding: String,
    /// The function's name in AWS.
    pub function: String,
    /// The name and the ordinal in the invocation, such as `GetItem(site)#1`. Retries of the client are the
    /// same call.
    pub call: String,
}

/// A fault that waits for its call.
#[derive(Debug)]
pub struct ArmedFault {
    target: FaultTarget,
    action: FaultAction,
    state: Mutex<FaultState>,
    /// Notified when the state changes, for example when the client disconnects or repeats its call.
    changed: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FaultAction {
    /// The fault, in the first invocation that makes the call.
    Fault(Fault),
    /// A permanent error, at every call.
    Refuse,
}

/// The state of a fault.
#[derive(Clone, Debug, Default)]
pub struct FaultState {
    /// The invocation that met the fault first.
    pub first: Option<String>,
    /// The number of times that it happened.
    pub times: u32,
    /// The response to the late effect.
    pub late_response: Option<String>,
    /// The response to the second delivery.
    pub duplicate_response: Option<String>,
    /// The reason why the fault could not be injected as its name says.
    pub failed: Option<String>,
    disconnected: bool,
    repeated: bool,
    released: bool,
}

impl ArmedFault {
    fn lock(&self) -> MutexGuard<'_, FaultState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the current state.
    pub fn state(&self) -> FaultState {
        self.lock().clone()
    }

    /// Releases the late effect of [`Fault::LateAfterUndo`].
    pub fn release(&self) {
        self.lock().released = true;
        self.changed.notify_waiters();
    }

    fn update(&self, change: impl FnOnce(&mut FaultState)) {
        change(&mut self.lock());
        self.changed.notify_waiters();
    }

    /// Waits until the condition holds or the time limit expires.
    async fn wait_until(&self, time_limit: Duration, holds: impl Fn(&FaultState) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if holds(&self.lock()) {
                    return;
                }
                changed.await;
            }
        };
        // The caller continues in both cases.
        timeout(time_limit, wait).await.unwrap_or(());
    }
}

/// An invocation that has ended or is in progress.
#[derive(Clone, Debug)]
pub struct ObservedInvocation {
    /// The function's name in AWS.
    pub function: String,
    /// The onboarding of its event.
    pub onboarding: String,
    /// Its calls in order, without the client's retries.
    pub calls: Vec<(Service, String)>,
    /// The response or error of the invocation.
    pub outcome: Option<String>,
}

#[derive(Debug)]
struct Process {
    function: String,
    invocation: Option<Invocation>,
}

#[derive(Debug)]
struct Invocation {
    request_id: String,
    event: Bytes,
    /// The index in `ProxyState::observed`, if the event belongs to a watched onboarding.
    observed: Option<usize>,
    onboarding: Option<String>,
    counts: HashMap<String, u32>,
    /// The names of the calls by the client's invocation id, which is the same for retries.
    calls: HashMap<String, String>,
}

/// A watched onboarding with the texts that identify its events.
#[derive(Debug)]
struct WatchedOnboarding {
    onboarding: String,
    /// The idempotency key of its registration. That request has no ids yet.
    key: String,
}

#[derive(Debug, Default)]
struct ProxyState {
    processes: HashMap<i32, Process>,
    watched: Vec<WatchedOnboarding>,
    armed: Vec<Arc<ArmedFault>>,
    observed: Vec<ObservedInvocation>,
    /// Functions whose processes end after each invocation.
    short_lived: Vec<String>,
}

/// The action of the proxy for a call.
enum CallAction {
    Pass,
    /// The retry of a call whose effect is late.
    Repeat(Arc<ArmedFault>),
    Fault(Arc<ArmedFault>, Fault, Bytes),
    Refuse,
}

/// The proxy.
#[derive(Debug)]
pub struct Proxy {
    aws: String,
    stripe: String,
    http: reqwest::Client,
    sqs: aws_sdk_sqs::Client,
    cache: IdempotencyCache,
    state: Mutex<ProxyState>,
}

impl Proxy {
    /// Listens on these ports, and forwards to the stack and to the payment provider.
    pub async fn start(
        stack: &Stack,
        aws_port: u16,
        stripe_port: u16,
        stripe: String,
    ) -> Result<Arc<Self>> {
        let proxy = Arc::new(Self {
            aws: stack.endpoint().as_str().trim_end_matches('/').to_owned(),
            stripe,
            http: reqwest::Client::builder().no_proxy().build()?,
            sqs: stack.sqs().clone(),
            cache: IdempotencyCache::default(),
            state: Mutex::default(),
        });
        for (port, service) in [(aws_port, Service::Aws), (stripe_port, Service::Stripe)] {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("the proxy can't listen at {address}"))?;
            tokio::spawn(Arc::clone(&proxy).serve(listener, service));
        }
        Ok(proxy)
    }

    fn state(&self) -> MutexGuard<'_, ProxyState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to record the invocations of the onboarding.
    pub fn watch(&self, onboarding: String, key: String) {
        self.state().watched.push(WatchedOnboarding { onboarding, key });
    }

    /// Stops recording, and returns the recorded invocations.
    pub fn unwatch(&self, onboarding: &str) -> Vec<ObservedInvocation> {
        let mut state = self.state();
        state.watched.retain(|watched| watched.onboarding != onboarding);
        state.armed.retain(|armed| armed.target.onboarding != onboarding);
        state
            .observed
            .iter()
            .filter(|observed| observed.onboarding == onboarding)
            .cloned()
            .collect()
    }

    /// Returns the number of the onboarding's invocations in progress.
    pub fn active_invocations(&self, onboarding: &str) -> usize {
        let state = self.state();
        let invocations = state.processes.values().filter_map(|it| it.invocation.as_ref());
        invocations.filter(|it| it.onboarding.as_deref() == Some(onboarding)).count()
    }

    /// Arms a fault at a call.
    pub fn arm(&self, target: FaultTarget, fault: Fault) -> Arc<ArmedFault> {
        self.add_fault(target, FaultAction::Fault(fault))
    }

    /// Refuses a call whenever it is made.
    pub fn refuse(&self, target: FaultTarget) -> Arc<ArmedFault> {
        self.add_fault(target, FaultAction::Refuse)
    }

    fn add_fault(&self, target: FaultTarget, action: FaultAction) -> Arc<ArmedFault> {
        let state = Mutex::default();
        let armed = Arc::new(ArmedFault { target, action, state, changed: Notify::new() });
        self.state().armed.push(Arc::clone(&armed));
        armed
    }

    /// Ends the idle processes of these functions, and from now on each process after its invocation. Then every
    /// invocation is the first of its process. An empty list ends this mode.
    pub async fn force_cold_starts(&self, functions: &[String]) -> Result<()> {
        let idle: Vec<_> = {
            let mut state = self.state();
            functions.clone_into(&mut state.short_lived);
            let idle = state.processes.iter().filter(|(_, process)| {
                process.invocation.is_none() && functions.contains(&process.function)
            });
            idle.filter_map(|(pid, _)| Pid::from_raw(*pid)).collect()
        };
        for pid in idle {
            self.end(pid).await?;
        }
        Ok(())
    }

    /// Ends a process, unless the emulator has already ended it.
    async fn end(&self, pid: Pid) -> Result<()> {
        if self.state().processes.remove(&pid.as_raw_pid()).is_none() {
            return Ok(());
        }
        match callers::kill(pid).await {
            Err(error) if error.downcast_ref() == Some(&Errno::SRCH) => Ok(()),
            ended => ended,
        }
    }

    async fn serve(self: Arc<Self>, listener: TcpListener, service: Service) {
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    eprintln!("the proxy can't accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (Ok(local), proxy) = (listener.local_addr(), Arc::clone(&self)) else { continue };
            tokio::spawn(async move {
                let caller = OnceCell::new();
                let (proxy, caller) = (&proxy, &caller);
                let serve = service_fn(move |request| async move {
                    let find = async || callers::find(from.port(), local.port());
                    let found = caller.get_or_try_init(find).await;
                    let result = match found {
                        Ok(caller) => proxy.respond(service, caller, request).await,
                        Err(error) => Err(error),
                    };
                    result.map_err(|error| {
                        if !error.is::<ConnectionCut>() {
                            eprintln!(
                                "the proxy closes a connection because of an error: {error:#}"
                            );
                        }
                        ConnectionCut
                    })
                });
                // A connection ends because of a fault or because the process has ended. Neither is an error.
                http1::Builder::new().serve_connection(TokioIo::new(stream), serve).await.ok();
            });
        }
    }

    async fn respond(
        self: &Arc<Self>,
        service: Service,
        caller: &Caller,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>> {
        let (parts, body) = request.into_parts();
        let request = ProxyRequest {
            service,
            method: parts.method,
            path: parts.uri.path_and_query().context("a request without a path")?.to_string(),
            headers: parts.headers,
            body: body.collect().await?.to_bytes(),
        };
        let response = if request.path.starts_with("/2018-06-01/runtime/") {
            self.runtime(caller, &request).await
        } else {
            self.call(caller, request).await
        };
        response.map(ProxyResponse::into_response)
    }

    async fn forward(&self, base: &str, request: &ProxyRequest) -> Result<ProxyResponse> {
        let mut headers = request.headers.clone();
        for name in [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
            headers.remove(name);
        }
        let url = format!("{base}{}", request.path);
        let sent = self.http.request(request.method.clone(), url).headers(headers);
        let response = sent.body(request.body.clone()).send().await?;
        let (status, mut headers) = (response.status(), response.headers().clone());
        for name in [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
            headers.remove(name);
        }
        Ok(ProxyResponse { status, headers, body: response.bytes().await? })
    }

    /// Executes the request, even if the client disconnects.
    async fn execute(self: &Arc<Self>, request: &ProxyRequest) -> Result<ProxyResponse> {
        self.execute_storing(request, None).await
    }

    /// Like [`Self::execute`], but the provider stores `stored` under the idempotency key instead of its own response.
    async fn execute_storing(
        self: &Arc<Self>,
        request: &ProxyRequest,
        stored: Option<ProxyResponse>,
    ) -> Result<ProxyResponse> {
        let (proxy, request) = (Arc::clone(self), request.clone());
        let task: JoinHandle<Result<ProxyResponse>> = tokio::spawn(async move {
            if request.service == Service::Aws {
                return proxy.forward(&proxy.aws, &request).await;
            }
            let key = request.header("idempotency-key");
            if key.is_empty() {
                return proxy.forward(&proxy.stripe, &request).await;
            }
            if let Lookup::Known(response) = proxy.cache.claim(key, &request) {
                return Ok(response);
            }
            let response = proxy.forward(&proxy.stripe, &request).await;
            proxy.cache.store(key, stored.as_ref().or(response.as_ref().ok()));
            response
        });
        task.await?
    }

    async fn runtime(
        self: &Arc<Self>,
        caller: &Caller,
        request: &ProxyRequest,
    ) -> Result<ProxyResponse> {
        let base = format!("http://{}", caller.runtime_api);
        let pid = caller.pid.as_raw_pid();
        if request.method == Method::GET {
            let new_process = || Process { function: caller.function.clone(), invocation: None };
            self.state().processes.entry(pid).or_insert_with(new_process);
            let response = self.forward(&base, request).await?;
            if response.status.is_success() {
                self.record_start(pid, &response);
            }
            return Ok(response);
        }
        let outcome = request.path.rsplit('/').next().unwrap_or_default();
        let body = String::from_utf8_lossy(&request.body);
        let event = self.record_end(pid, &format!("{outcome} {body}"));
        let failed = outcome == "error" || body.contains("itemIdentifier");
        let response = self.forward(&base, request).await;
        if let Some(event) = event.filter(|_| failed) {
            self.make_visible(&event).await;
        }
        if self.state().short_lived.contains(&caller.function) {
            self.end(caller.pid).await?;
        }
        response
    }

    /// Records that the process got an event.
    fn record_start(&self, pid: i32, response: &ProxyResponse) {
        let mut state = self.state();
        let ProxyState { processes, watched, armed, observed, .. } = &mut *state;
        let Some(process) = processes.get_mut(&pid) else { return };
        let text = String::from_utf8_lossy(&response.body);
        let is_about =
            |it: &&WatchedOnboarding| text.contains(&it.onboarding) || text.contains(&it.key);
        let about = watched.iter().filter(is_about).map(|it| &it.onboarding);
        let mut about: Vec<_> = about.collect();
        // If the event is about several onboardings, take the one for which a fault is armed at this function.
        about.sort_by_key(|onboarding| {
            let is_here = |it: &&Arc<ArmedFault>| {
                it.target.onboarding == **onboarding && it.target.function == process.function
            };
            let is_waiting = armed.iter().find(is_here).is_some_and(|it| it.lock().first.is_none());
            !is_waiting
        });
        let onboarding = about.first().map(|onboarding| (*onboarding).clone());
        let request_id = response.headers.get("lambda-runtime-aws-request-id");
        if let Some(onboarding) = onboarding.clone() {
            let function = process.function.clone();
            observed.push(ObservedInvocation {
                function,
                onboarding,
                calls: Vec::new(),
                outcome: None,
            });
        }
        process.invocation = Some(Invocation {
            request_id: request_id.and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned(),
            event: response.body.clone(),
            observed: onboarding.is_some().then(|| observed.len() - 1),
            onboarding,
            counts: HashMap::new(),
            calls: HashMap::new(),
        });
    }

    /// Records that the process's invocation has ended, and returns its event.
    fn record_end(&self, pid: i32, outcome: &str) -> Option<Bytes> {
        let mut state = self.state();
        let invocation = state.processes.get_mut(&pid)?.invocation.take()?;
        if let Some(observed) = invocation.observed.and_then(|index| state.observed.get_mut(index))
        {
            observed.outcome = Some(outcome.chars().take(300).collect());
        }
        Some(invocation.event)
    }

    /// Makes failed messages of a queue visible immediately, so that they are redelivered without a delay of minutes.
    async fn make_visible(&self, event: &Bytes) {
        let event: Value = serde_json::from_slice(event).unwrap_or_default();
        for record in event["Records"].as_array().into_iter().flatten() {
            let (Some(handle), Some(source)) =
                (record["receiptHandle"].as_str(), record["eventSourceARN"].as_str())
            else {
                continue;
            };
            let queue = source.rsplit(':').next().unwrap_or_default();
            let change = async {
                let url = self.sqs.get_queue_url().queue_name(queue).send().await?;
                let request = self.sqs.change_message_visibility();
                let request = request.queue_url(url.queue_url().unwrap_or_default());
                request.receipt_handle(handle).visibility_timeout(0).send().await?;
                anyhow::Ok(())
            };
            if let Err(error) = change.await {
                eprintln!("can't make a message of {queue} visible: {error:#}");
            }
        }
    }

    /// Identifies the call, and chooses the action for it.
    fn choose_action(&self, caller: &Caller, request: &ProxyRequest) -> CallAction {
        let mut state = self.state();
        let ProxyState { processes, armed, observed, .. } = &mut *state;
        let invocation =
            processes.get_mut(&caller.pid.as_raw_pid()).and_then(|it| it.invocation.as_mut());
        let Some(invocation) = invocation else { return CallAction::Pass };
        let name = request.name();
        let client_id = request.header("amz-sdk-invocation-id").to_owned();
        let call = if let Some(call) = invocation.calls.get(&client_id) {
            call.clone()
        } else {
            let count = invocation.counts.entry(name.clone()).or_default();
            *count += 1;
            let call = format!("{name}#{count}");
            if !client_id.is_empty() {
                invocation.calls.insert(client_id, call.clone());
            }
            if let Some(observed) = invocation.observed.and_then(|index| observed.get_mut(index)) {
                observed.calls.push((request.service, call.clone()));
            }
            call
        };
        let Some(onboarding) = &invocation.onboarding else { return CallAction::Pass };
        let target =
            FaultTarget { onboarding: onboarding.clone(), function: caller.function.clone(), call };
        for armed in armed.iter().filter(|armed| armed.target == target) {
            let mut state = armed.lock();
            let fault = match armed.action {
                FaultAction::Fault(fault) => fault,
                FaultAction::Refuse => {
                    state.times += 1;
                    return CallAction::Refuse;
                }
            };
            let action = match &state.first {
                None => CallAction::Fault(Arc::clone(armed), fault, invocation.event.clone()),
                Some(first) if fault.is_lasting() && *first == invocation.request_id => {
                    CallAction::Fault(Arc::clone(armed), fault, Bytes::new())
                }
                Some(_) if fault == Fault::Late => CallAction::Repeat(Arc::clone(armed)),
                Some(_) if fault == Fault::LateAfterUndo && !state.released => CallAction::Refuse,
                Some(_) => continue,
            };
            if matches!(action, CallAction::Fault(..)) {
                state.times += 1;
                state.first.get_or_insert_with(|| invocation.request_id.clone());
            }
            return action;
        }
        CallAction::Pass
    }

    async fn call(
        self: &Arc<Self>,
        caller: &Caller,
        request: ProxyRequest,
    ) -> Result<ProxyResponse> {
        let (armed, fault, event) = match self.choose_action(caller, &request) {
            CallAction::Pass => return self.execute(&request).await,
            CallAction::Repeat(armed) => {
                let response = self.execute(&request).await;
                armed.update(|state| state.repeated = true);
                return response;
            }
            CallAction::Refuse => return Ok(ProxyResponse::error(&request, ErrorKind::Denied)),
            CallAction::Fault(armed, fault, event) => (armed, fault, event),
        };
        let response = self.inject(fault, &armed, caller, request, event).await;
        if let Err(error) = &response
            && !error.is::<ConnectionCut>()
        {
            armed.update(|state| state.failed = Some(format!("{error:#}")));
        }
        response
    }

    async fn inject(
        self: &Arc<Self>,
        fault: Fault,
        armed: &Arc<ArmedFault>,
        caller: &Caller,
        request: ProxyRequest,
        event: Bytes,
    ) -> Result<ProxyResponse> {
        let error = ProxyResponse::error(&request, ErrorKind::Internal);
        match fault {
            Fault::ErrorBefore | Fault::ErrorBeforeLasting => Ok(error),
            Fault::ErrorAfter | Fault::ErrorAfterLasting => {
                self.execute(&request).await?;
                Ok(error)
            }
            Fault::Throttle | Fault::ThrottleLasting => {
                Ok(ProxyResponse::error(&request, ErrorKind::Throttled))
            }
            Fault::StoredErrorBefore => {
                let key = request.header("idempotency-key");
                if let Lookup::New = self.cache.claim(key, &request) {
                    self.cache.store(key, Some(&error));
                }
                Ok(error)
            }
            Fault::StoredErrorAfter => {
                self.execute_storing(&request, Some(error.clone())).await?;
                Ok(error)
            }
            Fault::CutBefore => Err(ConnectionCut.into()),
            Fault::CutAfter => {
                self.execute(&request).await?;
                Err(ConnectionCut.into())
            }
            Fault::KillBefore | Fault::KillAfter => {
                if fault == Fault::KillAfter {
                    self.execute(&request).await?;
                }
                self.kill(caller).await?;
                Err(ConnectionCut.into())
            }
            Fault::Duplicate => {
                let delivery = tokio::spawn(Arc::clone(self).deliver_twice(
                    Arc::clone(armed),
                    caller.function.clone(),
                    event,
                ));
                // Continue even if the delivery has not ended: the call must not exceed its client's timeout.
                timeout(DUPLICATE_HOLD, delivery).await.ok();
                self.execute(&request).await
            }
            Fault::Late | Fault::LateAfterUndo => {
                tokio::spawn(Arc::clone(self).apply_late_effect(Arc::clone(armed), fault, request));
                let _guard = DisconnectGuard(Arc::clone(armed));
                std::future::pending().await
            }
        }
    }

    /// Kills the process. Its event is redelivered as on AWS, but sooner. A separate task does this, because the
    /// process's own call ends with the process.
    async fn kill(self: &Arc<Self>, caller: &Caller) -> Result<()> {
        let (proxy, pid) = (Arc::clone(self), caller.pid);
        let task: JoinHandle<Result<()>> = tokio::spawn(async move {
            let event = proxy.record_end(pid.as_raw_pid(), "killed");
            proxy.state().processes.remove(&pid.as_raw_pid());
            // This fails if the process had already ended, because then it was not killed at this call.
            callers::kill(pid).await?;
            if let Some(event) = event {
                proxy.make_visible(&event).await;
            }
            Ok(())
        });
        task.await?
    }

    /// Delivers the function's current event a second time.
    async fn deliver_twice(
        self: Arc<Self>,
        armed: Arc<ArmedFault>,
        function: String,
        event: Bytes,
    ) {
        let invocation = async {
            let path = format!("/2015-03-31/functions/{function}:live/invocations");
            let request = self.http.post(format!("{}{path}", self.aws)).body(event.clone());
            let mut request = request.build()?;
            sign(&mut request, "lambda", &event)?;
            let response = self.http.execute(request).await?;
            let status = response.status();
            let text = response.text().await?;
            ensure!(status.is_success(), "{status}: {text}");
            Ok(text)
        };
        let result = invocation.await;
        armed.update(|state| match result {
            Ok(response) => state.duplicate_response = Some(response),
            Err(error) => state.failed = Some(format!("the second delivery failed: {error:#}")),
        });
    }

    /// Executes the late effect, after the client has stopped waiting.
    async fn apply_late_effect(
        self: Arc<Self>,
        armed: Arc<ArmedFault>,
        fault: Fault,
        request: ProxyRequest,
    ) {
        armed.wait_until(DISCONNECT_TIMEOUT, |state| state.disconnected).await;
        if fault == Fault::Late {
            armed.wait_until(REPEAT_TIMEOUT, |state| state.repeated).await;
        } else {
            armed.wait_until(Duration::from_mins(5), |state| state.released).await;
        }
        let result = self.execute(&request).await;
        armed.update(|state| match result {
            Ok(response) => {
                let text = String::from_utf8_lossy(&response.body);
                state.late_response = Some(format!("{} {text}", response.status));
            }
            Err(error) => state.failed = Some(format!("the late effect failed: {error:#}")),
        });
    }
}

/// Records on drop that the client has disconnected.
struct DisconnectGuard(Arc<ArmedFault>);

impl Drop for DisconnectGuard {
    fn drop(&mut self) {
        self.0.update(|state| state.disconnected = true);
    }
}
