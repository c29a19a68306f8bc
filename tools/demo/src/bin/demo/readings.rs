//! Alamosa's day of readings. The demo sends it over a simulated bad connection, with broken records in between. Then
//! it queries the readings and compares them with the station's file.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use contracts::{
    Event, Metric, OnboardingId, OperatorId, SensorId, SiteId, Timestamp,
    events::{ReadingBackToNormal, ReadingBreachedThreshold},
    readings::{Bundle, Series},
    sample::{Quality, Sample},
    stream::partition_key,
};
use serde::Serialize;
use serde_json::{Value, json};
use surfrad::{Day, FlagCounts};
use tests::{
    Stack,
    capture::{self, Capture},
    data_logger,
    expected_alerts::{Alert, SensorLimits},
    failures::{Failure, FailureError},
    log,
    meter::Meter,
    readings::{
        Bucket, Item, Position, QuarantinedRecord, SiteSensor, gzip, item_bytes, second_day,
    },
    sites::Ids,
    wait::{Poll, TIMEOUT, until},
};

use crate::{
    corrections::{Corrected, Corrections},
    report::{DUPLICATE_WAIT, SETTLE_TIMEOUT},
    stations::Station,
};

const FILE: &str = "tests/data/surfrad-alamosa-2016-01-01.dat";
const BUNDLE_MINUTES: u32 = 15;
/// Every n-th bundle is sent twice.
const TWICE_EVERY: usize = 8;
/// Every n-th bundle is sent after its successor.
const LATE_EVERY: usize = 10;
/// The bundles that are put on the stream directly, compressed with gzip.
const DIRECT: Range<usize> = 20..26;
/// The broken records are sent before this bundle.
const BROKEN_BEFORE: usize = 48;
/// The bundle whose id is reused by a broken record with other samples.
const CONFLICTING: usize = 12;
/// The interval between polls.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// The number of bundles at the end that are sent one by one, to measure the time until they can be queried.
const TIMED: usize = 20;
/// The function that quarantines broken records.
const STORE_READINGS: &str = "store-readings";
/// The maximum cost of a reading, in DynamoDB's write units.
const MAX_UNITS_A_READING: f64 = 0.1;

/// The report of the readings. It is the member `readings` of `target/demo/report.json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadingsReport {
    pub site_id: SiteId,
    pub station: String,
    pub file: &'static str,
    pub rows: usize,
    pub flags: FlagCounts,
    pub sent: Sent,
    pub stored: Stored,
    /// The time from sending a bundle until its readings can be queried. It is measured for the last bundles, one by
    /// one on an idle stack.
    pub queryable_after: LatencyMillis,
    pub sensors: Vec<SensorDay>,
    pub alerts: Vec<Alert>,
    pub failures: Vec<QuarantinedFailure>,
    pub corrections: Corrections,
}

#[derive(Debug, Serialize)]
pub struct LatencyMillis {
    pub p50: u128,
    pub p95: u128,
    pub max: u128,
}

impl LatencyMillis {
    fn from_samples(mut samples: Vec<u128>) -> Self {
        samples.sort_unstable();
        let percentile = |percent: usize| samples[(samples.len() * percent).div_ceil(100) - 1];
        Self { p50: percentile(50), p95: percentile(95), max: percentile(100) }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sent {
    pub bundles: usize,
    pub samples: usize,
    /// The number of bundles that were put on the stream directly.
    pub directly: usize,
    /// The number of bundles that were sent after their successor.
    pub late: usize,
    /// The number of bundles that were sent twice.
    pub bundles_repeated: usize,
    pub samples_repeated: usize,
    /// The number of retried calls.
    pub retries: u32,
    pub broken_records: usize,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    pub samples: usize,
    pub rows: usize,
    /// The size by DynamoDB's rules, including names and keys.
    pub bytes: usize,
    pub write_units: usize,
    /// The write units of puts that failed because the row existed. DynamoDB charges them like successful puts.
    pub write_units_refused: usize,
    pub write_units_a_reading: f64,
}

/// The day of a sensor.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SensorDay {
    pub sensor_id: SensorId,
    pub metric: Metric,
    pub unit: String,
    /// The aggregate that the API returns. `None` without samples.
    pub day: Option<Bucket>,
    #[serde(skip)]
    pub samples: Vec<Sample>,
    #[serde(skip)]
    pub limits: Vec<(&'static str, f64)>,
}

/// A broken record in the failures table.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QuarantinedFailure {
    pub what: &'static str,
    pub error: String,
    pub reason: String,
    pub shard_id: String,
    pub sequence_number: String,
    pub bytes: usize,
}

/// The report, and the results that are not as expected.
pub struct ReadingsFindings {
    pub report: ReadingsReport,
    pub violations: Vec<String>,
}

/// The bundles to send, their order, and the expected alerts.
struct SendingPlan {
    site: SiteId,
    day: Day,
    sensors: Vec<SiteSensor>,
    limits: Vec<SensorLimits>,
    /// The expected alerts, by sensor and time.
    alerts: Vec<Alert>,
    bundles: Vec<Bundle>,
    late: BTreeSet<usize>,
    twice: BTreeSet<usize>,
}

/// A record that can't be stored, and the expected error.
struct BrokenRecord {
    what: &'static str,
    error: &'static str,
    data: Vec<u8>,
}

/// A record with its position in the stream.
type SentRecord = (BrokenRecord, Position);

impl SendingPlan {
    async fn new(stack: &Stack, station: &Station, site: SiteId) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let day = Day::read(&root.join(FILE))?.moved_to_yesterday();
        let sensors = stack.sensors(site).await?;
        let by_metric: BTreeMap<_, _> =
            sensors.iter().map(|sensor| (sensor.metric, sensor.sensor_id)).collect();
        let bundles = day.bundles(site, &by_metric, BUNDLE_MINUTES)?;

        let registered = station.registration["sensors"]
            .as_array()
            .context("the registration has no sensors")?;
        let limits =
            registered.iter().filter(|sensor| sensor.get("min").or(sensor.get("max")).is_some());
        let limits = limits.map(|sensor| {
            let mut limits = sensor.clone();
            let metric: Metric = serde_json::from_value(sensor["metric"].clone())?;
            limits["sensorId"] = json!(by_metric.get(&metric).context("no sensor for a metric")?);
            Ok(serde_json::from_value(limits)?)
        });
        let limits: Vec<SensorLimits> = limits.collect::<Result<_>>()?;
        let mut alerts: Vec<_> = limits
            .iter()
            .flat_map(|limits| {
                let columns = day.columns.iter().filter(|column| column.metric == limits.metric);
                columns.flat_map(|column| limits.alerts(&column.samples))
            })
            .collect();
        alerts.sort_by_key(|alert| (alert.sensor_id, alert.at));

        // A sample that arrives after a later one is not evaluated. So a bundle is sent late only if neither it nor its
        // successor changes a sensor's state. Then the alerts do not depend on the order.
        let changes: BTreeSet<_> = alerts
            .iter()
            .filter_map(|alert| bundles.iter().position(|bundle| contains_sample(bundle, alert)))
            .collect();
        let can_be_late =
            |index: &usize| !changes.contains(index) && !changes.contains(&(index + 1));
        let first_timed = bundles.len() - TIMED;
        // The bundle before the timed ones must be sent last: when it is stored, all others are stored too.
        let late =
            (0..first_timed - 2).skip(LATE_EVERY / 2).step_by(LATE_EVERY).filter(can_be_late);
        let twice = (0..first_timed).step_by(TWICE_EVERY);
        Ok(Self {
            late: late.collect(),
            twice: twice.collect(),
            site,
            day,
            sensors,
            limits,
            alerts,
            bundles,
        })
    }

    /// Returns one broken record of each kind. They contain air pressure, which has no limits and so causes no alerts.
    fn broken_records(&self) -> Result<Vec<BrokenRecord>> {
        let pressure = |sensor: &&SiteSensor| sensor.metric == Metric::AirPressure;
        let sensor_id = self.sensors.iter().find(pressure).context("no barometer")?.sensor_id;
        let bundle = |id: &str, sensor_id, at| {
            let series = vec![Series::new(sensor_id, vec![Sample::new(at, 775.0)])];
            anyhow::Ok(Bundle::new(id.parse()?, self.site, series))
        };
        let noon = second_day("12:00:00").parse()?;
        let mut no_schema = serde_json::to_value(bundle("broken-schema", sensor_id, noon)?)?;
        no_schema["series"][0]["samples"][0][1] = json!("775 hPa");
        let unknown_sensor = SensorId::from_onboarding(
            OnboardingId::from_site(SiteId::registered(OperatorId::DEFAULT, "", "unknown")),
            0,
        );
        let ahead = Timestamp::now().plus_millis(60 * 60 * 1000);
        let mut truncated = gzip(&serde_json::to_vec(&bundle("broken-gzip", sensor_id, noon)?)?)?;
        truncated.truncate(truncated.len() / 2);
        let mut changed = self.bundles[CONFLICTING].clone();
        changed.series.retain(|series| series.sensor_id == sensor_id);
        let first = &mut changed.series[0].samples[0];
        first.value = first.value.map(|value| value + 0.1);

        let json = |bundle: Bundle| serde_json::to_vec(&bundle);
        let ahead = json(bundle("broken-clock", sensor_id, ahead)?)?;
        let unknown = json(bundle("broken-sensor", unknown_sensor, noon)?)?;
        Ok([
            ("not JSON", "InvalidInput", b"$SLV,2016-01-01T12:00:00Z,775.0*4F".to_vec()),
            ("a string as value", "InvalidInput", no_schema.to_string().into_bytes()),
            ("a sample one hour in the future", "InvalidInput", ahead),
            ("truncated gzip", "InvalidInput", truncated),
            ("an unknown sensor", "UnknownSensor", unknown),
            ("a reused bundle id with other samples", "BundleConflict", json(changed)?),
        ]
        .map(|(what, error, data)| BrokenRecord { what, error, data })
        .into())
    }

    /// Sends all bundles except the timed ones, in the planned order.
    async fn send(&self, stack: &Stack) -> Result<(Vec<SentRecord>, u32)> {
        let order = data_logger::order(self.bundles.len() - TIMED, &self.late, &self.twice);
        let mut meter = Meter::new("bundles", order.len());
        let mut broken = Vec::new();
        let mut retries = 0;
        // The partition key that the API uses. With another key, a record could overtake bundles that were sent through
        // the API before it.
        let key = partition_key(self.site, OperatorId::DEFAULT);
        for index in order {
            if index >= BROKEN_BEFORE && broken.is_empty() {
                for record in self.broken_records()? {
                    let position = stack.put_record(&key, record.data.clone()).await?;
                    broken.push((record, position));
                }
            }
            let bundle = &self.bundles[index];
            if DIRECT.contains(&index) {
                let compressed = gzip(&serde_json::to_vec(bundle)?)?;
                stack.put_record(&key, compressed).await?;
            } else {
                retries += data_logger::send(stack, &[bundle]).await?;
            }
            meter.step();
        }
        Ok((broken, retries))
    }

    /// Returns whether this bundle can be queried. Then all earlier bundles can be queried too, because the bundles of
    /// a site are stored in order.
    async fn queryable(&self, stack: &Stack, bundle: &Bundle) -> Result<bool> {
        let series = bundle.series.last().context("a bundle without a series")?;
        let start = series.samples.first().context("a series without a sample")?.at;
        let response = stack.readings(series.sensor_id, &format!("from={start}&limit=1")).await?;
        Ok(response.body["samples"][0][0] == json!(start))
    }

    /// Waits until all sent bundles are stored. Then sends the last bundles one by one and measures the time of each.
    async fn measure_last_bundles(&self, stack: &Stack) -> Result<LatencyMillis> {
        let (sent, last) = self.bundles.split_at(self.bundles.len() - TIMED);
        let before = sent.last().context("too few bundles")?;
        until("all bundles to be stored", TIMEOUT, async || {
            let is_stored = self.queryable(stack, before).await?;
            Ok(if is_stored {
                Poll::Ready(())
            } else {
                Poll::Pending("the last bundle is missing")
            })
        })
        .await?;
        let mut latencies = Vec::new();
        for bundle in last {
            let started = Instant::now();
            data_logger::send(stack, &[bundle]).await?;
            while !self.queryable(stack, bundle).await? && started.elapsed() < TIMEOUT {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            latencies.push(started.elapsed().as_millis());
        }
        Ok(LatencyMillis::from_samples(latencies))
    }
}

/// Returns whether the bundle contains the sample of the alert.
fn contains_sample(bundle: &Bundle, alert: &Alert) -> bool {
    let mut series = bundle.series.iter().filter(|series| series.sensor_id == alert.sensor_id);
    series.any(|series| series.samples.iter().any(|sample| sample.at == alert.at))
}

/// Returns the site's alerts among the captured events, by sensor and time.
fn alerts(captured: &[Value], onboarding: OnboardingId) -> Result<Vec<Alert>> {
    let onboarding = onboarding.to_string();
    let mut alerts = Vec::new();
    for event in captured.iter().filter(|event| capture::correlation(event) == onboarding) {
        let data = event["detail"]["data"].clone();
        match event["detail-type"].as_str() {
            Some(ReadingBreachedThreshold::TYPE) => {
                alerts.push(serde_json::from_value::<ReadingBreachedThreshold>(data)?.into());
            }
            Some(ReadingBackToNormal::TYPE) => {
                alerts.push(serde_json::from_value::<ReadingBackToNormal>(data)?.into());
            }
            _ => {}
        }
    }
    alerts.sort_by_key(|alert: &Alert| (alert.sensor_id, alert.at));
    Ok(alerts)
}

/// Compares the alerts on the bus and in the event log with the expected ones.
async fn check_alerts(
    stack: &Stack,
    capture: &Capture,
    plan: &SendingPlan,
    ids: Ids,
    violations: &mut Vec<String>,
) -> Result<Vec<Alert>> {
    let enough = |events: &[Value]| events.len() >= plan.alerts.len();
    let mut captured = capture.take_until(stack, SETTLE_TIMEOUT, enough).await?;
    tokio::time::sleep(DUPLICATE_WAIT).await;
    captured.extend(capture.take(stack).await?);
    let published = alerts(&captured, ids.onboarding_id)?;
    for alert in plan.alerts.iter().filter(|alert| !published.contains(alert)) {
        violations.push(format!("missing alert of {} at {}: {alert:?}", alert.metric, alert.at));
    }
    for alert in published.iter().filter(|alert| !plan.alerts.contains(alert)) {
        violations.push(format!("unexpected alert of {} at {}: {alert:?}", alert.metric, alert.at));
    }
    let mut delivered = BTreeSet::new();
    for event in &captured {
        if !delivered.insert(capture::event_id(event)) {
            violations.push(format!("an event was delivered twice: {event}"));
        }
    }
    let saga_events = log::saga_events(stack, ids.onboarding_id).await?;
    violations.extend(log::gaps(&saga_events));
    let kinds = [ReadingBreachedThreshold::TYPE, ReadingBackToNormal::TYPE];
    let logged = saga_events.iter().filter(|event| kinds.contains(&event.kind.as_str()));
    let logged = logged.map(log::LoggedEvent::id).collect::<Result<BTreeSet<_>>>()?;
    let undelivered = logged.iter().filter(|id| !delivered.contains(id.as_str()));
    violations.extend(undelivered.map(|id| format!("event {id} was not delivered")));
    if logged.len() != published.len() {
        let (logged, published) = (logged.len(), published.len());
        violations.push(format!("{logged} alerts are logged, {published} were published"));
    }
    Ok(published)
}

/// Checks that the failures of store-readings are exactly the broken records, with their complete data.
async fn check_failures(
    stack: &Stack,
    broken: &[SentRecord],
    violations: &mut Vec<String>,
) -> Result<Vec<QuarantinedFailure>> {
    let mut failures = stack.failures_of(STORE_READINGS).await?;
    let started = Instant::now();
    while failures.len() < broken.len() && started.elapsed() < SETTLE_TIMEOUT {
        tokio::time::sleep(POLL_INTERVAL).await;
        failures = stack.failures_of(STORE_READINGS).await?;
    }
    let mut recorded =
        failures.into_iter().map(QuarantinedRecord::from_failure).collect::<Result<Vec<_>>>()?;
    let mut quarantined = Vec::new();
    for (BrokenRecord { what, error, data }, position) in broken {
        let at = recorded.iter().position(|record| record.position() == *position);
        let Some(record) = at.map(|at| recorded.swap_remove(at)) else {
            violations.push(format!("{what} at {position:?}: no failure of {STORE_READINGS}"));
            continue;
        };
        let is_complete = record.payload()? == *data;
        let Failure { kind, status, error: actual, .. } = record.failure;
        if !is_complete || kind != "QUARANTINED" || status != "OPEN" || actual.name != *error {
            let actual = format!("{} {kind} {status}, complete data: {is_complete}", actual.name);
            violations.push(format!("{what}: {actual}; expected {error} QUARANTINED OPEN"));
        }
        let Position { shard_id, sequence_number } = position.clone();
        let FailureError { name: error, message: reason } = actual;
        let bytes = data.len();
        quarantined.push(QuarantinedFailure {
            what,
            error,
            reason,
            shard_id,
            sequence_number,
            bytes,
        });
    }
    violations.extend(recorded.iter().map(|more| format!("unexpected failure: {}", more.failure)));
    Ok(quarantined)
}

/// Checks that the API returns exactly the values in the file, bit for bit, for each sensor.
async fn check_samples(
    stack: &Stack,
    plan: &SendingPlan,
    violations: &mut Vec<String>,
) -> Result<Vec<SensorDay>> {
    let mut days = Vec::new();
    for SiteSensor { sensor_id, metric, unit } in &plan.sensors {
        let column = plan.day.columns.iter().find(|column| column.metric == *metric);
        let sent = column.map(|column| &column.samples[..]).unwrap_or_default();
        let samples = stack.samples(*sensor_id, "quality=all&flags=true").await?;
        if samples != *sent {
            violations
                .push(format!("{metric}: the {} samples differ from the file", samples.len()));
        }

        let buckets = stack.buckets(*sensor_id, "aggregate=day").await?;
        let usable: Vec<_> =
            sent.iter().filter_map(|sample| sample.counted(Quality::Usable)).collect();
        let min = usable.iter().copied().reduce(f64::min);
        let max = usable.iter().copied().reduce(f64::max);
        let actual = buckets.first().map(|day| (day.count, day.min, day.max));
        let expected = (!sent.is_empty()).then_some((usable.len(), min, max));
        if actual != expected || buckets.len() > 1 {
            violations.push(format!(
                "{metric}: the aggregates of the day are {buckets:?}, expected {expected:?}"
            ));
        }
        let limits = plan.limits.iter().find(|limits| limits.sensor_id == *sensor_id);
        let limits = limits.map(|limits| [("min", limits.min), ("max", limits.max)]);
        let limits = limits.into_iter().flatten();
        days.push(SensorDay {
            sensor_id: *sensor_id,
            metric: *metric,
            unit: unit.clone(),
            day: buckets.into_iter().next(),
            samples,
            limits: limits.filter_map(|(name, limit)| Some((name, limit?))).collect(),
        });
    }
    Ok(days)
}

/// Returns the bundle id in a row's key.
fn bundle_of(row: &Item) -> Option<&str> {
    row.get("row")?.as_s().ok()?.split_once('/').map(|(_, bundle)| bundle)
}

/// Checks that there is one row per series of a bundle, even if the bundle was sent twice. Adds up the costs of the
/// rows.
async fn check_rows(
    stack: &Stack,
    plan: &SendingPlan,
    violations: &mut Vec<String>,
) -> Result<Stored> {
    let twice: BTreeSet<_> =
        plan.twice.iter().map(|index| plan.bundles[*index].bundle_id.as_str()).collect();
    let conflicting = plan.bundles[CONFLICTING].bundle_id.as_str();
    let mut stored = Stored::default();
    for SiteSensor { sensor_id, metric, .. } in &plan.sensors {
        let rows = stack.series_rows(*sensor_id).await?;
        let has_sensor =
            |bundle: &&Bundle| bundle.series.iter().any(|series| series.sensor_id == *sensor_id);
        let expected =
            plan.bundles.iter().filter(has_sensor).map(|bundle| bundle.bundle_id.as_str());
        if !rows.iter().filter_map(bundle_of).eq(expected) {
            violations.push(format!("{metric}: {} rows, expected one per bundle", rows.len()));
        }
        for row in &rows {
            let bytes = item_bytes(row)?;
            // DynamoDB charges for each started kilobyte.
            let units = bytes.div_ceil(1024);
            let bundle = bundle_of(row).unwrap_or_default();
            let mut refused = usize::from(twice.contains(bundle));
            refused += usize::from(*metric == Metric::AirPressure && bundle == conflicting);
            stored.rows += 1;
            stored.bytes += bytes;
            stored.write_units += units;
            stored.write_units_refused += refused * units;
        }
    }
    Ok(stored)
}

/// Sends a file that grows, and corrections. Checks their revisions.
async fn correct(
    stack: &Stack,
    plan: &SendingPlan,
    sensors: &[SensorDay],
    violations: &mut Vec<String>,
) -> Result<Corrections> {
    let barometer = sensors.iter().find(|sensor| sensor.metric == Metric::AirPressure);
    let SensorDay { sensor_id, samples, .. } = barometer.context("no barometer")?;
    let corrected = Corrected { site: plan.site, sensor: *sensor_id, day: samples };
    let corrections = corrected.run(stack).await?;
    let revisions: Vec<_> = corrections.revisions.iter().map(|it| it.revision).collect();
    if revisions != [2, 3] {
        violations.push(format!("the revisions are {:?}", corrections.revisions));
    }
    Ok(corrections)
}

/// Sends the day and the corrections, and checks the results.
pub async fn run(
    stack: &Stack,
    capture: &Capture,
    station: &Station,
    ids: Ids,
) -> Result<ReadingsFindings> {
    let plan = SendingPlan::new(stack, station, ids.site_id).await?;
    stack.wait_for_sensors(plan.sensors.iter().map(|sensor| sensor.sensor_id)).await?;
    let (broken, retries) = plan.send(stack).await?;
    let queryable_after = plan.measure_last_bundles(stack).await?;

    let mut violations = Vec::new();
    let sensors = check_samples(stack, &plan, &mut violations).await?;
    let failures = check_failures(stack, &broken, &mut violations).await?;
    let mut stored = check_rows(stack, &plan, &mut violations).await?;
    let alerts = check_alerts(stack, capture, &plan, ids, &mut violations).await?;
    // The corrections come after the checks of the day, because these checks count all rows and events.
    let corrections = correct(stack, &plan, &sensors, &mut violations).await?;

    stored.samples = sensors.iter().map(|sensor| sensor.samples.len()).sum();
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    let units_a_reading =
        (stored.write_units + stored.write_units_refused) as f64 / stored.samples.max(1) as f64;
    stored.write_units_a_reading = units_a_reading;
    if units_a_reading > MAX_UNITS_A_READING {
        violations.push(format!(
            "a reading costs {units_a_reading} write units, expected at most {MAX_UNITS_A_READING}"
        ));
    }
    let repeated = plan.twice.iter().map(|index| plan.bundles[*index].samples());
    let report = ReadingsReport {
        site_id: plan.site,
        station: plan.day.station.clone(),
        file: FILE,
        rows: plan.day.rows,
        flags: plan.day.flags(),
        sent: Sent {
            bundles: plan.bundles.len(),
            samples: plan.day.samples(),
            directly: DIRECT.len(),
            late: plan.late.len(),
            bundles_repeated: plan.twice.len(),
            samples_repeated: repeated.sum(),
            retries,
            broken_records: broken.len(),
        },
        stored,
        queryable_after,
        sensors,
        alerts,
        failures,
        corrections,
    };
    Ok(ReadingsFindings { report, violations })
}
