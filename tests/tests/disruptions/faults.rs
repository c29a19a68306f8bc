//! Faults that are injected from outside. The functions have no code for them.

use std::{
    env,
    fmt::Debug,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    panic::{AssertUnwindSafe, resume_unwind},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_sqs::types::QueueAttributeName;
use futures_util::FutureExt;
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tests::{
    Stack,
    api::sign,
    wait::{TIMEOUT, until_true},
};

const NOT_POISONED: &str = "no thread panics while it holds the lock";

fn root() -> Result<PathBuf> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(tests.parent().context("tests has no parent folder")?.to_owned())
}

fn local_stack(command: &str) -> Result<()> {
    let root = root()?;
    let output = Command::new(root.join(".venv/bin/python"))
        .arg(root.join("tools/local/stack.py"))
        .arg(command)
        .output()?;
    ensure!(output.status.success(), "stack.py {command} failed: {output:?}");
    Ok(())
}

/// An outage of the payment provider: it does not respond until the outage ends.
pub struct Outage {
    ended: bool,
}

impl Outage {
    /// Stops the provider.
    pub fn start() -> Result<Self> {
        local_stack("stripe-stop")?;
        Ok(Self { ended: false })
    }

    /// Starts the provider again with all its data.
    pub fn end(mut self) -> Result<()> {
        self.ended = true;
        local_stack("stripe-start")
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        if !self.ended
            && let Err(error) = local_stack("stripe-start")
        {
            eprintln!("the provider could not be started again: {error}");
        }
    }
}

/// A server on the provider's port that refuses every call, and records the times of the calls.
pub struct RefusingProvider {
    address: SocketAddr,
    calls: Arc<Mutex<Vec<Instant>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl RefusingProvider {
    /// Binds the port of the stopped provider, and responds with this status.
    pub fn start(status: u16) -> Result<Self> {
        let port = env::var("FIELDSTATION_STRIPE_PORT").unwrap_or_else(|_| "8420".into());
        let address = format!("127.0.0.1:{port}").parse()?;
        let listener = TcpListener::bind(address).context("can't listen on the provider's port")?;
        let (calls, ended) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicBool>::default());
        let (thread_calls, thread_ended) = (Arc::clone(&calls), Arc::clone(&ended));
        let thread = thread::spawn(move || {
            for connection in listener.incoming() {
                if thread_ended.load(Ordering::SeqCst) {
                    break;
                }
                match connection
                    .context("no connection")
                    .and_then(|connection| refuse(&connection, status))
                {
                    Ok(()) => thread_calls.lock().expect(NOT_POISONED).push(Instant::now()),
                    Err(error) => eprintln!("a call got no response: {error:#}"),
                }
            }
        });
        Ok(Self { address, calls, ended, thread: Some(thread) })
    }

    /// Returns the time of each call.
    pub fn calls(&self) -> Vec<Instant> {
        self.calls.lock().expect(NOT_POISONED).clone()
    }
}

impl Drop for RefusingProvider {
    /// Frees the port immediately, because the provider starts again on it.
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // The thread waits in `accept`; this connection wakes it.
        let is_woken = TcpStream::connect(self.address).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| is_woken)
            && thread.join().is_err()
        {
            eprintln!("the provider's stub panicked");
        }
    }
}

/// Reads a request and refuses it.
fn refuse(mut connection: &TcpStream, status: u16) -> Result<()> {
    connection.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut reader = BufReader::new(connection);
    let mut length = 0;
    loop {
        let mut line = String::new();
        ensure!(reader.read_line(&mut line)? > 0, "the request is incomplete");
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(text) = line.strip_prefix("content-length:") {
            length = text.trim().parse()?;
        }
    }
    reader.read_exact(&mut vec![0; length])?;
    let body = r#"{"error":{"type":"api_error","message":"The service is unavailable."}}"#;
    let head =
        format!("HTTP/1.1 {status} Refused\r\nconnection: close\r\ncontent-type: application/json");
    write!(connection, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    Ok(())
}

/// The factor by which the emulator's Step Functions scale the waits between retries.
pub struct WaitScale;

impl WaitScale {
    /// Sets the factor.
    pub async fn set(stack: &Stack, scale: f64) -> Result<Self> {
        let config = json!({ "stepfunctions._SFN_WAIT_SCALE": scale });
        let url = stack.endpoint().join("/_ministack/config")?;
        let response = reqwest::Client::new().post(url).body(config.to_string()).send().await?;
        let text = response.text().await?;
        ensure!(text.contains("_SFN_WAIT_SCALE"), "the emulator rejected the factor: {text}");
        Ok(Self)
    }

    /// Restores the waits that the state machines define.
    pub async fn restore(self, stack: &Stack) -> Result<()> {
        Self::set(stack, 1.0).await.map(drop)
    }
}

/// A temporarily changed visibility timeout of a queue.
pub struct VisibilityTimeout {
    queue_url: String,
    before: String,
}

impl VisibilityTimeout {
    /// Sets the timeout in seconds.
    pub async fn set(stack: &Stack, queue: &str, seconds: u32) -> Result<Self> {
        let queue_url = stack.queue_url(queue).await?;
        let response = stack
            .sqs()
            .get_queue_attributes()
            .queue_url(&queue_url)
            .attribute_names(QueueAttributeName::VisibilityTimeout)
            .send()
            .await?;
        let before = response
            .attributes()
            .and_then(|attributes| attributes.get(&QueueAttributeName::VisibilityTimeout))
            .context("the queue has no visibility timeout")?
            .clone();
        let timeout = Self { queue_url, before };
        timeout.put(stack, &seconds.to_string()).await?;
        Ok(timeout)
    }

    /// Restores the previous timeout.
    pub async fn restore(self, stack: &Stack) -> Result<()> {
        self.put(stack, &self.before).await
    }

    async fn put(&self, stack: &Stack, seconds: &str) -> Result<()> {
        stack
            .sqs()
            .set_queue_attributes()
            .queue_url(&self.queue_url)
            .attributes(QueueAttributeName::VisibilityTimeout, seconds)
            .send()
            .await?;
        Ok(())
    }
}

/// A function whose alias `live` points to a version with another configuration: a wrong one, as after a bad
/// deployment, or one that only a test needs.
pub struct BrokenFunction<'a> {
    stack: &'a Stack,
    function: String,
    good_version: Value,
    good_variables: Value,
}

impl<'a> BrokenFunction<'a> {
    /// Publishes a version with one environment variable changed, and points the alias to it.
    pub async fn deploy(
        stack: &'a Stack,
        function: &str,
        variable: &str,
        value: &str,
    ) -> Result<Self> {
        Self::deploy_with(stack, function, &[(variable, value)]).await
    }

    /// Publishes a version with these environment variables changed, and points the alias to it.
    pub async fn deploy_with(
        stack: &'a Stack,
        function: &str,
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let function = stack.named(function);
        let mut broken =
            Self { stack, function, good_version: Value::Null, good_variables: Value::Null };
        let alias = broken.lambda(Method::GET, "aliases/live", &Value::Null).await?;
        broken.good_version = alias["FunctionVersion"].clone();
        let config = broken.lambda(Method::GET, "configuration", &Value::Null).await?;
        broken.good_variables = config["Environment"]["Variables"].clone();
        let mut bad_variables = broken.good_variables.clone();
        for (variable, value) in variables {
            ensure!(
                bad_variables[variable].is_string(),
                "the function has no variable {variable}: {config}"
            );
            bad_variables[variable] = json!(value);
        }
        broken.configure(&bad_variables).await?;
        let published = broken.lambda(Method::POST, "versions", &json!({})).await?;
        let bad_version = &published["Version"];
        ensure!(*bad_version != broken.good_version, "Lambda published no new version");
        broken.point_to(bad_version).await?;
        Ok(broken)
    }

    /// Runs `work` while the function is broken. Then rolls back, even if `work` panics.
    pub async fn during<T>(self, work: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
        let outcome = AssertUnwindSafe(work()).catch_unwind().await;
        self.point_to(&self.good_version).await?;
        self.configure(&self.good_variables).await?;
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    async fn configure(&self, variables: &Value) -> Result<()> {
        let body = json!({ "Environment": { "Variables": variables } });
        self.lambda(Method::PUT, "configuration", &body).await.map(drop)
    }

    async fn point_to(&self, version: &Value) -> Result<()> {
        self.lambda(Method::PUT, "aliases/live", &json!({ "FunctionVersion": version }))
            .await
            .map(drop)
    }

    /// Calls Lambda's API. Its SDK would take too long to compile for these few calls.
    async fn lambda(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let path = format!("/2015-03-31/functions/{}/{path}", self.function);
        let client = reqwest::Client::new();
        let url = self.stack.endpoint().join(&path)?;
        let mut request = client.request(method, url).body(body.clone()).build()?;
        sign(&mut request, "lambda", body.as_bytes())?;
        let response = client.execute(request).await?;
        let (status, text) = (response.status(), response.text().await?);
        ensure!(status.is_success(), "{path} returned {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }
}

/// Returns the processes that currently run a function of this stack.
pub fn pids(stack: &Stack, function: &str) -> Result<Vec<Pid>> {
    let function = stack.named(function);
    let endpoint = stack.endpoint().as_str().trim_end_matches('/');
    let expected =
        [format!("AWS_LAMBDA_FUNCTION_NAME={function}"), format!("AWS_ENDPOINT_URL={endpoint}")];
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // The process may end during this loop, or belong to another user.
        let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
        let environment = String::from_utf8_lossy(&environment);
        let variables = environment.split('\0');
        if expected.iter().all(|entry| variables.clone().any(|variable| variable == entry)) {
            found.extend(Pid::from_raw(number));
        }
    }
    Ok(found)
}

/// All processes of a function, stopped with `SIGSTOP`. They continue when this is dropped.
pub struct FrozenProcesses(Vec<Pid>);

/// The length of an interval in which the processes continue. It is much shorter than a call to the emulator, so the
/// effect of a call is seen before the next call.
const STEP: Duration = Duration::from_micros(500);
/// The maximum time of stepping. It is less than every function's timeout.
const MAX_STEPPING_TIME: Duration = Duration::from_secs(8);

impl FrozenProcesses {
    /// Stops the processes. There must be at least one idle process, because a process that starts later is not
    /// stopped.
    pub fn stop(stack: &Stack, function: &str) -> Result<Self> {
        let pids = pids(stack, function)?;
        ensure!(!pids.is_empty(), "{function} has no process");
        let frozen = Self(pids);
        frozen.signal(Signal::STOP)?;
        Ok(frozen)
    }

    /// Returns the stopped processes.
    pub fn pids(&self) -> Vec<Pid> {
        self.0.clone()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        for pid in &self.0 {
            kill_process(*pid, signal)
                .with_context(|| format!("can't send {signal:?} to {pid:?}"))?;
        }
        Ok(())
    }

    /// Lets the processes continue in short intervals until `poll` returns `Ok`. After that, they are stopped.
    pub async fn step_until<T, S: Debug>(
        &self,
        what: &str,
        poll: impl AsyncFn() -> Result<std::result::Result<T, S>>,
    ) -> Result<T> {
        let started = Instant::now();
        loop {
            let last = match poll().await? {
                Ok(found) => return Ok(found),
                Err(state) => state,
            };
            if started.elapsed() > MAX_STEPPING_TIME {
                bail!("{what}: not reached in time; last state: {last:?}");
            }
            self.signal(Signal::CONT)?;
            thread::sleep(STEP);
            self.signal(Signal::STOP)?;
        }
    }

    /// Kills the processes with `kill -9`, and waits until they have ended.
    pub async fn kill(mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        let pids = std::mem::take(&mut self.0);
        until_true("the processes to end", TIMEOUT, async || {
            let alive: Vec<_> = pids
                .iter()
                .filter(|pid| {
                    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid()));
                    stat.is_ok_and(|stat| !stat.contains(") Z"))
                })
                .collect();
            Ok((alive.is_empty(), format!("{alive:?}")))
        })
        .await?;
        // The emulator may still process requests that they had sent.
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(())
    }
}

impl Drop for FrozenProcesses {
    fn drop(&mut self) {
        for pid in &self.0 {
            if let Err(error) = kill_process(*pid, Signal::CONT) {
                eprintln!("can't continue {pid:?}: {error}");
            }
        }
    }
}
