//! Starts, invokes, measures and stops the process of a function.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use hyper::body::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::{
    aws::{Aws, Calls, Source},
    runtime_api::{RuntimeApi, RuntimeRequest},
    server::Certificates,
};

/// The timeout of a start or an invocation. It is long enough for valgrind and for the CPU share of 128 MB.
const TIMEOUT: Duration = Duration::from_mins(5);
const KB: u64 = 1024;

/// The common environment of all processes.
pub struct Bench {
    /// The certificates of the stubs.
    pub certificates: Certificates,
    /// The folder for the PEM file of the root certificate, and for the processes' logs.
    pub folder: PathBuf,
}

/// A program to start as a function.
#[derive(Clone, Debug)]
pub struct Program {
    /// The function's name.
    pub name: String,
    /// The executable.
    pub file: PathBuf,
    /// The arguments of the executable.
    pub arguments: Vec<OsString>,
    /// The working directory.
    pub folder: PathBuf,
    /// Environment variables in addition to those of Lambda.
    pub variables: BTreeMap<OsString, OsString>,
    /// `MemorySize`, in MB.
    pub memory: u64,
}

/// A running process that has requested an event.
pub struct Process {
    /// The time from the start until the request for the first event.
    pub start: Duration,
    /// The stub of the services that the process calls.
    pub aws: Aws,
    name: String,
    child: Child,
    pid: Pid,
    api: RuntimeApi,
    log: PathBuf,
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// The peak resident memory.
    pub peak: u64,
    /// The current resident memory.
    pub resident: u64,
}

impl Bench {
    /// Creates the folder and new certificates.
    pub fn new(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        let bench = Self { certificates: Certificates::new()?, folder };
        fs::write(bench.bundle(), &bench.certificates.root)?;
        Ok(bench)
    }

    /// Returns the path of the PEM file of the root certificate.
    pub fn bundle(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// Starts the program and waits until it requests an event. If `wrapper` is not empty, it is the command line of a
    /// tool that runs the program.
    pub async fn start(
        &self,
        program: &Program,
        source: Source,
        wrapper: &[OsString],
    ) -> Result<Process> {
        let name = program.name.clone();
        let api = RuntimeApi::start(&name).await?;
        let aws = Aws::start(self.certificates.acceptor.clone(), source).await?;
        let log = self.folder.join(format!("{name}.log"));
        let mut command = match wrapper.split_first() {
            None => Command::new(&program.file),
            Some((tool, arguments)) => {
                let mut command = Command::new(tool);
                command.args(arguments).arg(&program.file);
                command
            }
        };
        command.args(&program.arguments).current_dir(&program.folder).env_clear();
        command.envs(self.environment(program, &api, &aws));
        command.stdin(Stdio::null()).stdout(fs::File::create(&log)?);
        command.stderr(fs::File::options().append(true).open(&log)?).kill_on_drop(true);

        let started = Instant::now();
        let child = command.spawn().with_context(|| format!("{}", program.file.display()))?;
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let pid = pid.context("invalid process id")?;
        let mut process = Process { start: Duration::ZERO, aws, name, child, pid, api, log };
        process.start = process.wait_for_next().await? - started;
        Ok(process)
    }

    fn environment(
        &self,
        program: &Program,
        api: &RuntimeApi,
        aws: &Aws,
    ) -> BTreeMap<OsString, OsString> {
        let mut variables = program.variables.clone();
        let endpoint = format!("https://localhost:{}", aws.tls.address.port());
        let lambda_variables: [(&str, OsString); 14] = [
            ("AWS_LAMBDA_RUNTIME_API", api.server.address.to_string().into()),
            ("AWS_LAMBDA_FUNCTION_NAME", program.name.clone().into()),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", program.memory.to_string().into()),
            ("AWS_LAMBDA_FUNCTION_VERSION", "1".into()),
            ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand".into()),
            ("AWS_LAMBDA_LOG_FORMAT", "JSON".into()),
            ("AWS_LAMBDA_LOG_LEVEL", "INFO".into()),
            ("LAMBDA_TASK_ROOT", program.folder.clone().into()),
            ("AWS_REGION", "eu-central-1".into()),
            ("AWS_DEFAULT_REGION", "eu-central-1".into()),
            ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE".into()),
            ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into()),
            ("AWS_ENDPOINT_URL", endpoint.into()),
            ("AWS_CA_BUNDLE", self.bundle().into()),
        ];
        let handler = [("_HANDLER", OsString::from("bootstrap"))];
        for (name, value) in lambda_variables.into_iter().chain(handler) {
            // A peer's script may have set its own value.
            let fixed = ["AWS_LAMBDA_RUNTIME_API", "AWS_ENDPOINT_URL"].contains(&name);
            if fixed || !variables.contains_key(OsStr::new(name)) {
                variables.insert(name.into(), value);
            }
        }
        if let Some(stripe) = variables.get_mut(OsStr::new("STRIPE_API_BASE")) {
            *stripe = format!("http://localhost:{}", aws.plain.address.port()).into();
        }
        variables
    }
}

impl Process {
    /// Sends an event, and waits until the process requests the next one. Returns the time until the response, and the
    /// calls in that time.
    pub async fn invoke(&mut self, event: &Bytes) -> Result<(Duration, Calls)> {
        self.aws.start_invocation();
        let sent = Instant::now();
        self.api
            .events
            .send(event.clone())
            .map_err(|_| anyhow!("the Runtime API stub has stopped"))?;
        let (received, response) = match self.next_request().await? {
            RuntimeRequest::Response(at, response) => (at, response),
            other => bail!(self.error(&format!("expected a response, got {other:?}"))),
        };
        let calls = self.aws.calls().map_err(|problem| anyhow!(self.error(&problem)))?;
        if let Some(problem) = response_problem(&response) {
            bail!(self.error(&problem));
        }
        self.wait_for_next().await?;
        Ok((received - sent, calls))
    }

    async fn wait_for_next(&mut self) -> Result<Instant> {
        match self.next_request().await? {
            RuntimeRequest::Next(at) => Ok(at),
            other => bail!(self.error(&format!("expected a request for an event, got {other:?}"))),
        }
    }

    async fn next_request(&mut self) -> Result<RuntimeRequest> {
        let request = tokio::select! {
            request = timeout(TIMEOUT, self.api.requests.recv()) => request,
            ended = self.child.wait() => bail!(self.error(&format!("the process ended: {ended:?}"))),
        };
        match request {
            Ok(Some(RuntimeRequest::Error(error))) => {
                let problem = self.aws.calls().err().unwrap_or_default();
                bail!(self.error(&format!("the function failed: {error} {problem}")))
            }
            Ok(Some(request)) => Ok(request),
            _ => bail!(self.error("no request within five minutes")),
        }
    }

    /// Returns an error message with the function's name, the problem, and its last log lines.
    fn error(&self, problem: &str) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(8)..].join("\n    ");
        format!("{}: {problem}\n    {last}", self.name)
    }

    /// Returns the program that the process runs now. A script may have replaced itself with another program by `exec`.
    pub fn program(&self, started_as: &Program) -> Result<Program> {
        let proc = Path::new("/proc").join(self.id().to_string());
        let mut arguments = texts(&proc.join("cmdline"))?.into_iter();
        let folder = fs::read_link(proc.join("cwd"))?;
        let mut file = PathBuf::from(arguments.next().context("the process has no command line")?);
        if file.components().count() > 1 {
            // Symbolic links are not resolved, because Python finds its packages by the path of its command.
            file = folder.join(file);
        }
        let variables = texts(&proc.join("environ"))?.into_iter().filter_map(|variable| {
            let bytes = variable.into_vec();
            let separator = bytes.iter().position(|byte| *byte == b'=')?;
            let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
            Some((text(&bytes[..separator]), text(&bytes[separator + 1..])))
        });
        Ok(Program {
            file,
            arguments: arguments.collect(),
            folder,
            variables: variables.collect(),
            ..started_as.clone()
        })
    }

    /// Returns the process id.
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Returns the size of its log, in bytes.
    pub fn log_size(&self) -> Result<u64> {
        Ok(fs::metadata(&self.log)?.len())
    }

    /// Returns the memory of the process and its descendants.
    pub fn memory(&self) -> Result<Memory> {
        let mut sum = Memory { peak: 0, resident: 0 };
        for pid in self.family()? {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let kilobytes = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|line| line.trim_start_matches(':').split_whitespace().next())
                    .and_then(|number| number.parse::<u64>().ok())
            };
            sum.peak += kilobytes("VmHWM").context("VmHWM")? * KB;
            sum.resident += kilobytes("VmRSS").context("VmRSS")? * KB;
        }
        Ok(sum)
    }

    /// Returns the CPU time of all threads of the process and its descendants.
    pub fn cpu(&self) -> Result<Duration> {
        let mut sum = 0;
        for pid in self.family()? {
            for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
                // In nanoseconds. /proc/PID/stat has only hundredths of a second.
                let text = fs::read_to_string(thread?.path().join("schedstat"))?;
                let first = text.split(' ').next().unwrap_or_default();
                sum += first.parse::<u64>().context("schedstat")?;
            }
        }
        Ok(Duration::from_nanos(sum))
    }

    /// Returns the ids of the process and its descendants.
    pub fn family(&self) -> Result<Vec<i32>> {
        let mut parents = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            // Skips a process that has ended meanwhile.
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let after_name = stat.rsplit_once(')').map_or("", |(_, after)| after);
            if let Some(parent) = after_name.split_whitespace().nth(1) {
                parents.push((pid, parent.parse::<i32>()?));
            }
        }
        let mut family = vec![self.id()];
        let mut visited = 0;
        while let Some(&member) = family.get(visited) {
            visited += 1;
            family
                .extend(parents.iter().filter(|(_, parent)| *parent == member).map(|(pid, _)| pid));
        }
        Ok(family)
    }

    /// Terminates the process with SIGTERM, so that a tool that runs it writes its results.
    pub async fn end(mut self) -> Result<()> {
        for pid in self.family()? {
            let pid = Pid::from_raw(pid).context("invalid process id")?;
            // It may have ended with its parent.
            kill_process(pid, Signal::TERM).ok();
        }
        if timeout(Duration::from_secs(20), self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        ensure!(self.child.try_wait()?.is_some(), "{} did not end", self.name);
        Ok(())
    }
}

/// Returns the problem with a response, if there is one.
fn response_problem(response: &Bytes) -> Option<String> {
    let text = || String::from_utf8_lossy(response).into_owned();
    let Ok(response) = serde_json::from_slice::<Value>(response) else {
        return Some(format!("the response is not JSON: {}", text()));
    };
    let failed = response["batchItemFailures"].as_array().is_some_and(|failed| !failed.is_empty());
    let refused = response["statusCode"].as_u64().is_some_and(|status| status >= 400)
        || response["policyDocument"]["Statement"][0]["Effect"] == "Deny";
    (failed || refused || response.get("errorType").is_some())
        .then(|| format!("the response is {}", text()))
}

/// Reads a file of strings that each end with a zero byte.
fn texts(file: &Path) -> Result<Vec<OsString>> {
    let bytes = fs::read(file)?;
    let texts = bytes.split(|byte| *byte == 0).filter(|text| !text.is_empty());
    Ok(texts.map(|text| OsString::from_vec(text.to_vec())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_with_a_failure_is_a_problem() {
        let is_problem =
            |response: &'static str| response_problem(&Bytes::from(response)).is_some();
        for good in ["null", "{}", r#"{"batchItemFailures":[]}"#, r#"{"statusCode":202}"#] {
            assert!(!is_problem(good), "{good}");
        }
        for bad in [
            "",
            r#"{"batchItemFailures":[{"itemIdentifier":"1"}]}"#,
            r#"{"statusCode":404,"body":""}"#,
            r#"{"policyDocument":{"Statement":[{"Effect":"Deny"}]}}"#,
            r#"{"errorType":"Transient","errorMessage":""}"#,
        ] {
            assert!(is_problem(bad), "{bad}");
        }
    }
}
