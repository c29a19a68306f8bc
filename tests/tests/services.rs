//! Tests the deployment with one stack per service: a service is deployed and rolled back while the others work. Run by
//! `make services-test`.

use std::{
    collections::BTreeMap,
    env, fs,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use contracts::{
    Metric, SensorId, SiteId, Timestamp,
    readings::{Bundle, Series},
    sample::Sample,
};
use futures_util::future::try_join_all;
use testkit::template::root;
use tests::{
    Stack,
    readings::gzip,
    sites::{GOOD_CARD, registration},
    wait::{Poll, until},
};
use tokio::time::sleep;
use uuid::Uuid;

const METRIC: Metric = Metric::AirTemperature;
/// The number of onboardings that start during each of the four deployments.
const ONBOARDINGS: usize = 20;
/// The time between two bundles of the site that sends readings.
const PAUSE: Duration = Duration::from_millis(200);

/// Returns the live version of each function.
fn versions(stack: &Stack) -> Result<BTreeMap<String, String>> {
    let status = stack.fieldctl(&["status", "--json"])?.document()?;
    let functions = status["functions"].as_array().context("the status has no functions")?;
    let version = |it: &serde_json::Value| {
        Some((it["name"].as_str()?.to_owned(), it["version"].as_str()?.to_owned()))
    };
    let versions: BTreeMap<_, _> = functions.iter().filter_map(version).collect();
    ensure!(versions.len() == functions.len(), "a function has no version: {functions:?}");
    Ok(versions)
}

/// Returns the paths of the built binaries of a service.
fn binaries(service: &str) -> Result<Vec<PathBuf>> {
    let folders = fs::read_dir(root().join(".aws-sam").join(service))?;
    let binaries = folders.map(|folder| Ok(folder?.path().join("bootstrap")));
    let mut binaries = binaries.collect::<Result<Vec<_>>>()?;
    binaries.retain(|binary| binary.is_file());
    ensure!(!binaries.is_empty(), "{service} is not built; run `make services-test`");
    Ok(binaries)
}

/// Deploys the build of a service with these parameters and the common ones. Returns the duration.
async fn deploy(service: &str, parameters: &str) -> Result<Duration> {
    let started = Instant::now();
    let mut command = Command::new(root().join(".venv/bin/python"));
    let script = root().join("tools/deploy/services.py");
    command.arg(script).args(["deploy", "--built", "local", service]);
    let common = env::var("FIELDSTATION_PARAMETERS")
        .context("FIELDSTATION_PARAMETERS is not set; run `make services-test`")?;
    command.env("FIELDSTATION_PARAMETERS", format!("{common} {parameters}"));
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    ensure!(
        output.status.success(),
        "deployment of {service} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(started.elapsed())
}

/// An active site that sends bundles continuously.
struct Sender {
    site: SiteId,
    sensor: SensorId,
    first_at: Timestamp,
    stop: AtomicBool,
    sent: AtomicU32,
}

impl Sender {
    async fn onboard(stack: &Stack) -> Result<Self> {
        let name = format!("sends during deployments {}", Uuid::new_v4().simple());
        let ids = stack
            .register(&Uuid::new_v4().to_string(), &registration(&name, &[METRIC], GOOD_CARD))
            .await?;
        stack.wait_until_active(ids.site_id).await?;
        let sensor = stack.sensors(ids.site_id).await?[0].sensor_id;
        stack.wait_for_sensors([sensor]).await?;
        // Far enough in the past that no sample is in the future.
        let first_at = Timestamp::from_millis(Timestamp::now().millis() - 10 * 3_600_000);
        Ok(Self {
            site: ids.site_id,
            sensor,
            first_at,
            stop: AtomicBool::new(false),
            sent: AtomicU32::new(0),
        })
    }

    fn sample(&self, number: u32) -> Sample {
        Sample::new(self.first_at.plus_millis(i64::from(number) * 1_000), f64::from(number % 40))
    }

    async fn run(&self, stack: &Stack) -> Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.sent.load(Ordering::Relaxed);
            let series = vec![Series::new(self.sensor, vec![self.sample(number)])];
            let bundle = Bundle::new(format!("d{number:05}").parse()?, self.site, series);
            let record = gzip(&serde_json::to_vec(&bundle)?)?;
            stack.put_records(&self.site.to_string(), vec![record]).await?;
            self.sent.store(number + 1, Ordering::Relaxed);
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Waits until every bundle is stored, and checks that each is stored once with the samples that were sent.
    async fn assert_stored(&self, stack: &Stack) -> Result<u32> {
        let sent = self.sent.load(Ordering::Relaxed);
        let expected_rows = usize::try_from(sent)?;
        until("all bundles to be stored", Duration::from_mins(2), async || {
            let rows = stack.series_rows(self.sensor).await?.len();
            Ok(if rows >= expected_rows { Poll::Ready(rows) } else { Poll::Pending(rows) })
        })
        .await?;
        let stored = stack.samples(self.sensor, "limit=10000&order=asc").await?;
        let expected: Vec<_> = (0..sent).map(|number| self.sample(number)).collect();
        ensure!(stored == expected, "{} of {sent} samples are stored", stored.len());
        Ok(sent)
    }
}

/// Starts the onboardings evenly over `duration`, and waits until all sites are active.
async fn onboard_sites(stack: &Stack, duration: Duration) -> Result<()> {
    stack.deliver(&[METRIC], u32::try_from(ONBOARDINGS)?).await?;
    let pause = duration / u32::try_from(ONBOARDINGS)?;
    let sites = (0..ONBOARDINGS).map(|number| async move {
        sleep(pause * u32::try_from(number)?).await;
        let name = format!("onboarded during a deployment {}", Uuid::new_v4().simple());
        let registration = registration(&name, &[METRIC], GOOD_CARD);
        let ids = stack.register(&Uuid::new_v4().to_string(), &registration).await?;
        stack.wait_until_active(ids.site_id).await
    });
    try_join_all(sites).await.map(drop)
}

/// Deploys a service while sites are onboarded. Checks that only the functions of this service get a new version.
async fn deploy_under_load(stack: &Stack, service: &str, what: &str) -> Result<()> {
    let before = versions(stack)?;
    let (duration, onboarded) =
        tokio::join!(deploy(service, ""), onboard_sites(stack, Duration::from_secs(15)));
    let duration = duration?;
    onboarded?;
    let own: Vec<String> = binaries(service)?
        .iter()
        .filter_map(|binary| binary.parent()?.file_name()?.to_str()?.strip_suffix("Function"))
        .map(str::to_owned)
        .collect();
    for (function, version) in versions(stack)? {
        let changed = before.get(&function) != Some(&version);
        ensure!(
            changed == own.contains(&function),
            "after the deployment of {service}, {function} has version {version}; before: {:?}",
            before.get(&function)
        );
    }
    terminal::print(format_args!(
        "{service}, {what}: deployed in {:.0} s; {ONBOARDINGS} sites were onboarded meanwhile; the other services have the same versions",
        duration.as_secs_f64()
    ));
    Ok(())
}

/// Checks that a changed parameter creates a new version of the functions that it configures, and of no others.
async fn change_a_parameter(stack: &Stack) -> Result<()> {
    let before = versions(stack)?;
    let duration = deploy("onboarding", "SagaBudgetSeconds=1000").await?;
    let mut after = versions(stack)?;
    after.retain(|function, version| before.get(function) != Some(version));
    ensure!(after.keys().eq(["CheckSagas"]), "new versions: {after:?}");
    terminal::print(format_args!(
        "onboarding, with another SagaBudgetSeconds: deployed in {:.0} s; only check-sagas has a new version",
        duration.as_secs_f64()
    ));
    Ok(())
}

#[tokio::test]
#[ignore = "needs a local stack with one stack per service; run by `make services-test`"]
async fn a_service_is_deployed_and_rolled_back_while_the_others_work() -> Result<()> {
    let stack = Stack::connect().await?;
    stack.deliver(&[METRIC], 1).await?;
    let sender = Sender::onboard(&stack).await?;
    let deployments = async {
        for service in ["billing", "telemetry"] {
            let binaries = binaries(service)?;
            let before = binaries.iter().map(fs::read).collect::<Result<Vec<_>, _>>()?;
            for (binary, content) in binaries.iter().zip(&before) {
                // A byte after the end of the program makes it a new build with the same behaviour.
                fs::write(binary, [content.as_slice(), b"\0"].concat())?;
            }
            let new = deploy_under_load(&stack, service, "new version").await;
            for (binary, content) in binaries.iter().zip(&before) {
                fs::write(binary, content)?;
            }
            new?;
            deploy_under_load(&stack, service, "rollback").await?;
        }
        change_a_parameter(&stack).await?;
        sender.stop.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let (sent, deployed) = tokio::join!(sender.run(&stack), async {
        let deployed = deployments.await;
        sender.stop.store(true, Ordering::Relaxed);
        deployed
    });
    deployed?;
    sent?;
    let sent = sender.assert_stored(&stack).await?;
    terminal::print(format_args!("{sent} bundles were sent meanwhile; each is stored once"));
    let failures = stack.fieldctl(&["failures", "list", "--json"])?.documents()?;
    ensure!(failures.is_empty(), "{failures:?}");
    Ok(())
}
