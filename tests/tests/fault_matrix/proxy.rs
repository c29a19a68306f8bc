//! A proxy between the functions and the services that they call: AWS, the payment provider and their own
//! Runtime API. It knows each call's process, invocation and onboarding, and causes the faults.

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
    faults::{Fault, Service, Word, error},
    provider::{Key, Memory},
};

/// How long a call hangs while its event is delivered a second time. Shorter than the functions' timeout for
/// AWS, 3 s.
const HELD: Duration = Duration::from_millis(2400);
/// Longer than any timeout of the functions.
const LONGEST_PATIENCE: Duration = Duration::from_secs(12);
/// The time within which a client that timed out repeats its call: after a backoff, a return to the queue or
/// the state machine's wait.
const REPEAT: Duration = Duration::from_secs(8);

/// A request of a function.
#[derive(Clone, Debug)]
pub struct Asked {
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

impl Asked {
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
                parts.map(|(place, part)| if place == 3 { "{id}" } else { part }).collect();
            return format!("{}{}", self.method, parts.join("/"));
        }
        let Some((service, operation)) = self.target().split_once('.') else {
            return format!("{}{}", self.method, self.path);
        };
        let kind = (service == "DynamoDB_20120810").then(|| self.kind_of_row()).flatten();
        kind.map_or_else(|| operation.to_owned(), |kind| format!("{operation}({kind})"))
    }

    fn kind_of_row(&self) -> Option<String> {
        let body: Value = serde_json::from_slice(&self.body).ok()?;
        let key = body.get("Key").or_else(|| body.get("Item"))?;
        let id = key.get("id").or_else(|| key.get("row"))?;
        Some(id["S"].as_str()?.split('#').next()?.to_lowercase())
    }
}

/// The response to a request.
#[derive(Clone, Debug)]
pub struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
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

    fn error(asked: &Asked, word: Word) -> Self {
        let (status, body) = error(asked.service, asked.target(), word);
        let kind = match asked.service {
            Service::Aws => "application/x-amz-json-1.0",
            Service::Stripe => "application/json",
        };
        Self { status, headers: HeaderMap::new(), body }.with("content-type", kind)
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
struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cut")
    }
}

impl std::error::Error for Cut {}

/// A call at which a fault happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
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
pub struct Armed {
    spot: Spot,
    plot: Plot,
    state: Mutex<Happened>,
    /// Notified when the state changes, for instance when the client times out or repeats its call.
    changed: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plot {
    /// The fault, in the first invocation that makes the call.
    Fault(Fault),
    /// A permanent error, at every call.
    Refuse,
}

/// The state of a fault.
#[derive(Clone, Debug, Default)]
pub struct Happened {
    /// The invocation that met the fault first.
    pub first: Option<String>,
    /// How often it happened.
    pub times: u32,
    /// The response to the late effect.
    pub landed: Option<String>,
    /// The response to the second delivery.
    pub delivered_twice: Option<String>,
    /// Why the fault did not happen as its name says.
    pub failed: Option<String>,
    gave_up: bool,
    repeated: bool,
    released: bool,
}

impl Armed {
    fn lock(&self) -> MutexGuard<'_, Happened> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the current state.
    pub fn happened(&self) -> Happened {
        self.lock().clone()
    }

    /// Releases the late effect of [`Fault::LateAfterUndo`].
    pub fn release(&self) {
        self.lock().released = true;
        self.changed.notify_waiters();
    }

    fn note(&self, note: impl FnOnce(&mut Happened)) {
        note(&mut self.lock());
        self.changed.notify_waiters();
    }

    /// Waits until the condition holds or the time is up.
    async fn until(&self, patience: Duration, holds: impl Fn(&Happened) -> bool) {
        let waited = async {
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
        // The caller continues whether the condition holds or not.
        timeout(patience, waited).await.unwrap_or(());
    }
}

/// An invocation that has ended or is in progress.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The function's name in AWS.
    pub function: String,
    /// The onboarding of its event.
    pub onboarding: String,
    /// Its calls in order. A retry is not repeated.
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
    request: String,
    event: Bytes,
    /// The index in `World::seen`, if the event belongs to a watched onboarding.
    seen: Option<usize>,
    onboarding: Option<String>,
    counts: HashMap<String, u32>,
    /// The names of the calls by the client's invocation id, which is the same for retries.
    calls: HashMap<String, String>,
}

/// A watched onboarding, and the texts by which its events are recognised.
#[derive(Debug)]
struct Watched {
    onboarding: String,
    /// The idempotency key of its registration. That request has no ids yet.
    key: String,
}

#[derive(Debug, Default)]
struct World {
    processes: HashMap<i32, Process>,
    watched: Vec<Watched>,
    armed: Vec<Arc<Armed>>,
    seen: Vec<Seen>,
    /// Functions whose processes end after each invocation.
    short_lived: Vec<String>,
}

/// What the proxy does with a call.
enum Turn {
    Pass,
    /// The retry of a call whose effect is late.
    Repeat(Arc<Armed>),
    Fault(Arc<Armed>, Fault, Bytes),
    Refuse,
}

/// The proxy.
#[derive(Debug)]
pub struct Proxy {
    aws: String,
    stripe: String,
    http: reqwest::Client,
    sqs: aws_sdk_sqs::Client,
    memory: Memory,
    world: Mutex<World>,
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
            memory: Memory::default(),
            world: Mutex::default(),
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

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to record what is done for the onboarding.
    pub fn watch(&self, onboarding: String, key: String) {
        self.world().watched.push(Watched { onboarding, key });
    }

    /// Stops recording, and returns what was recorded.
    pub fn unwatch(&self, onboarding: &str) -> Vec<Seen> {
        let mut world = self.world();
        world.watched.retain(|watched| watched.onboarding != onboarding);
        world.armed.retain(|armed| armed.spot.onboarding != onboarding);
        world.seen.iter().filter(|seen| seen.onboarding == onboarding).cloned().collect()
    }

    /// Returns the number of the onboarding's invocations in progress.
    pub fn busy(&self, onboarding: &str) -> usize {
        let world = self.world();
        let invocations = world.processes.values().filter_map(|it| it.invocation.as_ref());
        invocations.filter(|it| it.onboarding.as_deref() == Some(onboarding)).count()
    }

    /// Arms a fault at a call.
    pub fn arm(&self, spot: Spot, fault: Fault) -> Arc<Armed> {
        self.put(spot, Plot::Fault(fault))
    }

    /// Refuses a call whenever it is made.
    pub fn refuse(&self, spot: Spot) -> Arc<Armed> {
        self.put(spot, Plot::Refuse)
    }

    fn put(&self, spot: Spot, plot: Plot) -> Arc<Armed> {
        let state = Mutex::default();
        let armed = Arc::new(Armed { spot, plot, state, changed: Notify::new() });
        self.world().armed.push(Arc::clone(&armed));
        armed
    }

    /// Ends the idle processes of these functions, and from now on each process after its invocation, so that
    /// every invocation is its process's first. An empty list ends this mode.
    pub async fn only_cold(&self, functions: &[String]) -> Result<()> {
        let idle: Vec<_> = {
            let mut world = self.world();
            functions.clone_into(&mut world.short_lived);
            let idle = world.processes.iter().filter(|(_, process)| {
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
        if self.world().processes.remove(&pid.as_raw_pid()).is_none() {
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
                    eprintln!("the proxy accepts no connection: {error}");
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
                    let told = match found {
                        Ok(caller) => proxy.answer(service, caller, request).await,
                        Err(error) => Err(error),
                    };
                    told.map_err(|error| {
                        if !error.is::<Cut>() {
                            eprintln!("the proxy breaks a connection: {error:#}");
                        }
                        Cut
                    })
                });
                // A connection ends because of a fault or because the process has ended. Neither is an error.
                http1::Builder::new().serve_connection(TokioIo::new(stream), serve).await.ok();
            });
        }
    }

    async fn answer(
        self: &Arc<Self>,
        service: Service,
        caller: &Caller,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>> {
        let (parts, body) = request.into_parts();
        let asked = Asked {
            service,
            method: parts.method,
            path: parts.uri.path_and_query().context("a path")?.to_string(),
            headers: parts.headers,
            body: body.collect().await?.to_bytes(),
        };
        let answer = if asked.path.starts_with("/2018-06-01/runtime/") {
            self.runtime(caller, &asked).await
        } else {
            self.call(caller, asked).await
        };
        answer.map(Answer::into_response)
    }

    async fn forward(&self, base: &str, asked: &Asked) -> Result<Answer> {
        let mut headers = asked.headers.clone();
        for own in [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
            headers.remove(own);
        }
        let url = format!("{base}{}", asked.path);
        let sent = self.http.request(asked.method.clone(), url).headers(headers);
        let answer = sent.body(asked.body.clone()).send().await?;
        let (status, mut headers) = (answer.status(), answer.headers().clone());
        for own in [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
            headers.remove(own);
        }
        Ok(Answer { status, headers, body: answer.bytes().await? })
    }

    /// Executes the request, even if the client disconnects.
    async fn effect(self: &Arc<Self>, asked: &Asked) -> Result<Answer> {
        self.effect_kept_as(asked, None).await
    }

    /// Like `effect`, but the provider stores `kept` under the call's idempotency key instead of its own
    /// response.
    async fn effect_kept_as(
        self: &Arc<Self>,
        asked: &Asked,
        kept: Option<Answer>,
    ) -> Result<Answer> {
        let (proxy, asked) = (Arc::clone(self), asked.clone());
        let done: JoinHandle<Result<Answer>> = tokio::spawn(async move {
            if asked.service == Service::Aws {
                return proxy.forward(&proxy.aws, &asked).await;
            }
            let key = asked.header("idempotency-key");
            if key.is_empty() {
                return proxy.forward(&proxy.stripe, &asked).await;
            }
            if let Key::Known(answer) = proxy.memory.enter(key, &asked) {
                return Ok(answer);
            }
            let answer = proxy.forward(&proxy.stripe, &asked).await;
            proxy.memory.leave(key, kept.as_ref().or(answer.as_ref().ok()));
            answer
        });
        done.await?
    }

    async fn runtime(self: &Arc<Self>, caller: &Caller, asked: &Asked) -> Result<Answer> {
        let base = format!("http://{}", caller.runtime_api);
        let pid = caller.pid.as_raw_pid();
        if asked.method == Method::GET {
            let known = || Process { function: caller.function.clone(), invocation: None };
            self.world().processes.entry(pid).or_insert_with(known);
            let answer = self.forward(&base, asked).await?;
            if answer.status.is_success() {
                self.begun(pid, &answer);
            }
            return Ok(answer);
        }
        let outcome = asked.path.rsplit('/').next().unwrap_or_default();
        let told = String::from_utf8_lossy(&asked.body);
        let event = self.ended(pid, &format!("{outcome} {told}"));
        let failed = outcome == "error" || told.contains("itemIdentifier");
        let answer = self.forward(&base, asked).await;
        if let Some(event) = event.filter(|_| failed) {
            self.deliver_again(&event).await;
        }
        if self.world().short_lived.contains(&caller.function) {
            self.end(caller.pid).await?;
        }
        answer
    }

    /// Records that the process got an event.
    fn begun(&self, pid: i32, answer: &Answer) {
        let mut world = self.world();
        let World { processes, watched, armed, seen, .. } = &mut *world;
        let Some(process) = processes.get_mut(&pid) else { return };
        let text = String::from_utf8_lossy(&answer.body);
        let is_about = |it: &&Watched| text.contains(&it.onboarding) || text.contains(&it.key);
        let about = watched.iter().filter(is_about).map(|it| &it.onboarding);
        let mut about: Vec<_> = about.collect();
        // If the event is about several onboardings, take the one for which a fault is armed at this function.
        about.sort_by_key(|onboarding| {
            let here = |it: &&Arc<Armed>| {
                it.spot.onboarding == **onboarding && it.spot.function == process.function
            };
            let waits = armed.iter().find(here).is_some_and(|it| it.lock().first.is_none());
            !waits
        });
        let onboarding = about.first().map(|onboarding| (*onboarding).clone());
        let request = answer.headers.get("lambda-runtime-aws-request-id");
        if let Some(onboarding) = onboarding.clone() {
            let function = process.function.clone();
            seen.push(Seen { function, onboarding, calls: Vec::new(), outcome: None });
        }
        process.invocation = Some(Invocation {
            request: request.and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned(),
            event: answer.body.clone(),
            seen: onboarding.is_some().then(|| seen.len() - 1),
            onboarding,
            counts: HashMap::new(),
            calls: HashMap::new(),
        });
    }

    /// Records that the process's invocation has ended, and returns its event.
    fn ended(&self, pid: i32, outcome: &str) -> Option<Bytes> {
        let mut world = self.world();
        let invocation = world.processes.get_mut(&pid)?.invocation.take()?;
        if let Some(seen) = invocation.seen.and_then(|place| world.seen.get_mut(place)) {
            seen.outcome = Some(outcome.chars().take(300).collect());
        }
        Some(invocation.event)
    }

    /// Makes failed messages of a queue visible at once instead of after minutes.
    async fn deliver_again(&self, event: &Bytes) {
        let event: Value = serde_json::from_slice(event).unwrap_or_default();
        for record in event["Records"].as_array().into_iter().flatten() {
            let (Some(handle), Some(source)) =
                (record["receiptHandle"].as_str(), record["eventSourceARN"].as_str())
            else {
                continue;
            };
            let queue = source.rsplit(':').next().unwrap_or_default();
            let again = async {
                let url = self.sqs.get_queue_url().queue_name(queue).send().await?;
                let visible = self.sqs.change_message_visibility();
                let visible = visible.queue_url(url.queue_url().unwrap_or_default());
                visible.receipt_handle(handle).visibility_timeout(0).send().await?;
                anyhow::Ok(())
            };
            if let Err(error) = again.await {
                eprintln!("a message of {queue} comes back late: {error:#}");
            }
        }
    }

    /// Identifies the call, and decides what to do with it.
    fn turn(&self, caller: &Caller, asked: &Asked) -> Turn {
        let mut world = self.world();
        let World { processes, armed, seen, .. } = &mut *world;
        let invocation =
            processes.get_mut(&caller.pid.as_raw_pid()).and_then(|it| it.invocation.as_mut());
        let Some(invocation) = invocation else { return Turn::Pass };
        let name = asked.name();
        let repeat = asked.header("amz-sdk-invocation-id").to_owned();
        let call = if let Some(call) = invocation.calls.get(&repeat) {
            call.clone()
        } else {
            let count = invocation.counts.entry(name.clone()).or_default();
            *count += 1;
            let call = format!("{name}#{count}");
            if !repeat.is_empty() {
                invocation.calls.insert(repeat, call.clone());
            }
            if let Some(seen) = invocation.seen.and_then(|place| seen.get_mut(place)) {
                seen.calls.push((asked.service, call.clone()));
            }
            call
        };
        let Some(onboarding) = &invocation.onboarding else { return Turn::Pass };
        let spot = Spot { onboarding: onboarding.clone(), function: caller.function.clone(), call };
        for armed in armed.iter().filter(|armed| armed.spot == spot) {
            let mut happened = armed.lock();
            let fault = match armed.plot {
                Plot::Fault(fault) => fault,
                Plot::Refuse => {
                    happened.times += 1;
                    return Turn::Refuse;
                }
            };
            let turn = match &happened.first {
                None => Turn::Fault(Arc::clone(armed), fault, invocation.event.clone()),
                Some(first) if fault.lasts() && *first == invocation.request => {
                    Turn::Fault(Arc::clone(armed), fault, Bytes::new())
                }
                Some(_) if fault == Fault::Late => Turn::Repeat(Arc::clone(armed)),
                Some(_) if fault == Fault::LateAfterUndo && !happened.released => Turn::Refuse,
                Some(_) => continue,
            };
            if matches!(turn, Turn::Fault(..)) {
                happened.times += 1;
                happened.first.get_or_insert_with(|| invocation.request.clone());
            }
            return turn;
        }
        Turn::Pass
    }

    async fn call(self: &Arc<Self>, caller: &Caller, asked: Asked) -> Result<Answer> {
        let (armed, fault, event) = match self.turn(caller, &asked) {
            Turn::Pass => return self.effect(&asked).await,
            Turn::Repeat(armed) => {
                let answer = self.effect(&asked).await;
                armed.note(|happened| happened.repeated = true);
                return answer;
            }
            Turn::Refuse => return Ok(Answer::error(&asked, Word::Denied)),
            Turn::Fault(armed, fault, event) => (armed, fault, event),
        };
        let answer = self.bring_about(fault, &armed, caller, asked, event).await;
        if let Err(error) = &answer
            && !error.is::<Cut>()
        {
            armed.note(|happened| happened.failed = Some(format!("{error:#}")));
        }
        answer
    }

    async fn bring_about(
        self: &Arc<Self>,
        fault: Fault,
        armed: &Arc<Armed>,
        caller: &Caller,
        asked: Asked,
        event: Bytes,
    ) -> Result<Answer> {
        let broken = Answer::error(&asked, Word::Broken);
        match fault {
            Fault::ErrorBefore | Fault::ErrorBeforeLasting => Ok(broken),
            Fault::ErrorAfter | Fault::ErrorAfterLasting => {
                self.effect(&asked).await?;
                Ok(broken)
            }
            Fault::Throttle | Fault::ThrottleLasting => Ok(Answer::error(&asked, Word::Throttled)),
            Fault::StoredErrorBefore => {
                let key = asked.header("idempotency-key");
                if let Key::New = self.memory.enter(key, &asked) {
                    self.memory.leave(key, Some(&broken));
                }
                Ok(broken)
            }
            Fault::StoredErrorAfter => {
                self.effect_kept_as(&asked, Some(broken.clone())).await?;
                Ok(broken)
            }
            Fault::CutBefore => Err(Cut.into()),
            Fault::CutAfter => {
                self.effect(&asked).await?;
                Err(Cut.into())
            }
            Fault::KillBefore | Fault::KillAfter => {
                if fault == Fault::KillAfter {
                    self.effect(&asked).await?;
                }
                self.kill(caller).await?;
                Err(Cut.into())
            }
            Fault::Duplicate => {
                let again = tokio::spawn(Arc::clone(self).deliver_twice(
                    Arc::clone(armed),
                    caller.function.clone(),
                    event,
                ));
                // Continue after this time in any case: the first call must not exceed its client's timeout.
                timeout(HELD, again).await.ok();
                self.effect(&asked).await
            }
            Fault::Late | Fault::LateAfterUndo => {
                tokio::spawn(Arc::clone(self).land(Arc::clone(armed), fault, asked));
                let _gone = Gone(Arc::clone(armed));
                std::future::pending().await
            }
        }
    }

    /// Kills the process. Its event is delivered again as on AWS, only sooner. This runs in a task of its own,
    /// because the process's own call ends with the process.
    async fn kill(self: &Arc<Self>, caller: &Caller) -> Result<()> {
        let (proxy, pid) = (Arc::clone(self), caller.pid);
        let killed: JoinHandle<Result<()>> = tokio::spawn(async move {
            let event = proxy.ended(pid.as_raw_pid(), "killed");
            // A process that had already ended was not killed at this call.
            proxy.world().processes.remove(&pid.as_raw_pid());
            callers::kill(pid).await?;
            if let Some(event) = event {
                proxy.deliver_again(&event).await;
            }
            Ok(())
        });
        killed.await?
    }

    /// Delivers the function's current event a second time.
    async fn deliver_twice(self: Arc<Self>, armed: Arc<Armed>, function: String, event: Bytes) {
        let again = async {
            let path = format!("/2015-03-31/functions/{function}:live/invocations");
            let request = self.http.post(format!("{}{path}", self.aws)).body(event.clone());
            let mut request = request.build()?;
            sign(&mut request, "lambda", &event)?;
            let answer = self.http.execute(request).await?;
            let status = answer.status();
            let text = answer.text().await?;
            ensure!(status.is_success(), "{status}: {text}");
            Ok(text)
        };
        let told = again.await;
        armed.note(|happened| match told {
            Ok(answer) => happened.delivered_twice = Some(answer),
            Err(error) => happened.failed = Some(format!("not delivered twice: {error:#}")),
        });
    }

    /// Executes the late effect, after the client has stopped waiting.
    async fn land(self: Arc<Self>, armed: Arc<Armed>, fault: Fault, asked: Asked) {
        armed.until(LONGEST_PATIENCE, |happened| happened.gave_up).await;
        if fault == Fault::Late {
            armed.until(REPEAT, |happened| happened.repeated).await;
        } else {
            armed.until(Duration::from_mins(5), |happened| happened.released).await;
        }
        let told = self.effect(&asked).await;
        armed.note(|happened| match told {
            Ok(answer) => {
                let text = String::from_utf8_lossy(&answer.body);
                happened.landed = Some(format!("{} {text}", answer.status));
            }
            Err(error) => happened.failed = Some(format!("no late effect: {error:#}")),
        });
    }
}

/// Records that the client has disconnected.
struct Gone(Arc<Armed>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.note(|happened| happened.gave_up = true);
    }
}
