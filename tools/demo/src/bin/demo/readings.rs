//! Alamosa's day of readings. It is sent over a simulated bad connection, with broken records in between, then queried
//! and compared with the station's file.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use contracts::{
    Event, Metric, OnboardingId, SensorId, SiteId, Timestamp,
    events::{ReadingBackToNormal, ReadingBreachedThreshold},
    readings::{Bundle, Sample, Series},
};
use serde::Serialize;
use serde_json::{Value, json};
use surfrad::{Day, LeftOut};
use tests::{
    Stack,
    capture::{self, Capture},
    failures::{Failure, FailureError},
    judge::{Alert, Watched},
    log, logger,
    meter::Meter,
    readings::{Bucket, Item, Position, Quarantined, SiteSensor, gzip, item_bytes},
    sites::Ids,
    wait::{Look, TIMEOUT, until},
};

use crate::{
    report::{LISTENING, SETTLING},
    stations::Station,
};

const FILE: &str = "tests/data/surfrad-alamosa-2016-01-01.dat";
const BUNDLE_MINUTES: u32 = 15;
/// One in this number of bundles is sent twice.
const TWICE_EVERY: usize = 8;
/// One in this number of bundles is sent after its successor.
const LATE_EVERY: usize = 10;
/// The bundles that are put on the stream directly, as gzip.
const DIRECT: Range<usize> = 20..26;
/// The broken records are sent before this bundle.
const BROKEN_BEFORE: usize = 48;
/// The bundle whose id a broken record repeats with other samples.
const CONFLICTING: usize = 12;
/// The interval between polls.
const GLANCE: Duration = Duration::from_millis(10);
/// The number of last bundles that are sent one by one, to measure the time until they can be queried.
const TIMED: usize = 20;
/// The function that quarantines broken records.
const STORE_READINGS: &str = "store-readings";
/// The maximum cost of a reading, in DynamoDB's write units.
const MAX_UNITS_A_READING: f64 = 0.1;

/// The report of the readings. It is the member `readings` of `target/demo/report.json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub site_id: SiteId,
    pub station: String,
    pub file: &'static str,
    pub rows: usize,
    pub left_out: LeftOut,
    pub sent: Sent,
    pub stored: Stored,
    /// The time from sending a bundle until its readings can be queried, for the last bundles, one by one on an idle
    /// stack.
    pub queryable_after: Millis,
    pub sensors: Vec<SensorDay>,
    pub alerts: Vec<Alert>,
    pub failures: Vec<SetAside>,
}

#[derive(Debug, Serialize)]
pub struct Millis {
    pub p50: u128,
    pub p95: u128,
    pub max: u128,
}

impl Millis {
    fn of(mut all: Vec<u128>) -> Self {
        all.sort_unstable();
        let percentile = |percent: usize| all[(all.len() * percent).div_ceil(100) - 1];
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
    /// The write units of refused puts, whose row was there already. DynamoDB charges them like successful ones.
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
pub struct SetAside {
    pub what: &'static str,
    pub error: String,
    pub reason: String,
    pub shard_id: String,
    pub sequence_number: String,
    pub bytes: usize,
}

/// The report, and the violations that it shows.
pub struct Findings {
    pub report: Report,
    pub untrue: Vec<String>,
}

/// The bundles to send, their order, and the expected alerts.
struct Plan {
    site: SiteId,
    day: Day,
    sensors: Vec<SiteSensor>,
    watched: Vec<Watched>,
    /// The expected alerts, by sensor and time.
    alerts: Vec<Alert>,
    bundles: Vec<Bundle>,
    late: BTreeSet<usize>,
    twice: BTreeSet<usize>,
}

/// A record that can't be stored.
struct Broken {
    what: &'static str,
    error: &'static str,
    data: Vec<u8>,
}

/// A record and its position in the stream.
type Placed = (Broken, Position);

impl Plan {
    async fn new(stack: &Stack, station: &Station, site: SiteId) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let day = Day::read(&root.join(FILE))?;
        let sensors = stack.sensors(site).await?;
        let by_metric: BTreeMap<_, _> =
            sensors.iter().map(|sensor| (sensor.metric, sensor.sensor_id)).collect();
        let bundles = day.bundles(site, &by_metric, BUNDLE_MINUTES)?;

        let asked = station.registration["sensors"].as_array().context("the station's sensors")?;
        let watched =
            asked.iter().filter(|sensor| sensor.get("min").or(sensor.get("max")).is_some());
        let watched = watched.map(|sensor| {
            let mut watched = sensor.clone();
            let metric: Metric = serde_json::from_value(sensor["metric"].clone())?;
            watched["sensorId"] = json!(by_metric.get(&metric).context("a sensor")?);
            Ok(serde_json::from_value(watched)?)
        });
        let watched: Vec<Watched> = watched.collect::<Result<_>>()?;
        let mut alerts: Vec<_> = watched
            .iter()
            .flat_map(|watched| {
                let columns = day.columns.iter().filter(|column| column.metric == watched.metric);
                columns.flat_map(|column| watched.alerts(&column.samples))
            })
            .collect();
        alerts.sort_by_key(|alert| (alert.sensor_id, alert.at));

        // A sample that arrives after a later one is not evaluated. So late bundles are chosen such that neither they
        // nor their successors change a sensor's state. Then the alerts do not depend on the order.
        let changes: BTreeSet<_> = alerts
            .iter()
            .filter_map(|alert| bundles.iter().position(|bundle| holds(bundle, alert)))
            .collect();
        let quiet = |place: &usize| !changes.contains(place) && !changes.contains(&(place + 1));
        let timed_from = bundles.len() - TIMED;
        // The bundle before the timed ones is sent last, so that it shows when all others are stored.
        let late = (0..timed_from - 2).skip(LATE_EVERY / 2).step_by(LATE_EVERY).filter(quiet);
        let twice = (0..timed_from).step_by(TWICE_EVERY);
        Ok(Self {
            late: late.collect(),
            twice: twice.collect(),
            site,
            day,
            sensors,
            watched,
            alerts,
            bundles,
        })
    }

    /// Returns one broken record of each kind. They contain air pressure, which has no limits and so causes no alerts.
    fn broken(&self) -> Result<Vec<Broken>> {
        let pressure = |sensor: &&SiteSensor| sensor.metric == Metric::AirPressure;
        let sensor_id = self.sensors.iter().find(pressure).context("a barometer")?.sensor_id;
        let bundle = |id: &str, sensor_id, at| {
            let series = vec![Series { sensor_id, samples: vec![Sample(at, 775.0)] }];
            anyhow::Ok(Bundle { bundle_id: id.parse()?, site_id: self.site, series })
        };
        let noon = "2016-01-01T12:00:00Z".parse()?;
        let mut no_schema = serde_json::to_value(bundle("broken-schema", sensor_id, noon)?)?;
        no_schema["series"][0]["samples"][0][1] = json!("775 hPa");
        let nobody = SensorId::from_onboarding(
            OnboardingId::from_site(SiteId::registered("", "nobody's")),
            0,
        );
        let ahead = Timestamp::now().plus_millis(60 * 60 * 1000);
        let mut torn = gzip(&serde_json::to_vec(&bundle("broken-gzip", sensor_id, noon)?)?)?;
        torn.truncate(torn.len() / 2);
        let mut changed = self.bundles[CONFLICTING].clone();
        changed.series.retain(|series| series.sensor_id == sensor_id);
        changed.series[0].samples[0].1 += 0.1;

        let json = |bundle: Bundle| serde_json::to_vec(&bundle);
        let ahead = json(bundle("broken-clock", sensor_id, ahead)?)?;
        let unknown = json(bundle("broken-sensor", nobody, noon)?)?;
        Ok([
            ("no JSON", "InvalidInput", b"$SLV,2016-01-01T12:00:00Z,775.0*4F".to_vec()),
            ("a text for a value", "InvalidInput", no_schema.to_string().into_bytes()),
            ("a clock that is an hour ahead", "InvalidInput", ahead),
            ("half of a gzip", "InvalidInput", torn),
            ("nobody's sensor", "UnknownSensor", unknown),
            ("a bundle's number with other samples", "BundleConflict", json(changed)?),
        ]
        .map(|(what, error, data)| Broken { what, error, data })
        .into())
    }

    /// Sends all bundles except the timed ones, in the planned order.
    async fn send(&self, stack: &Stack) -> Result<(Vec<Placed>, u32)> {
        let order = logger::order(self.bundles.len() - TIMED, &self.late, &self.twice);
        let mut meter = Meter::new("bundles", order.len());
        let mut broken = Vec::new();
        let mut retries = 0;
        let key = self.site.to_string();
        for place in order {
            if place >= BROKEN_BEFORE && broken.is_empty() {
                for record in self.broken()? {
                    let position = stack.put_record(&key, record.data.clone()).await?;
                    broken.push((record, position));
                }
            }
            let bundle = &self.bundles[place];
            if DIRECT.contains(&place) {
                let packed = gzip(&serde_json::to_vec(bundle)?)?;
                stack.put_record(&key, packed).await?;
            } else {
                retries += logger::send(stack, &[bundle]).await?;
            }
            meter.step();
        }
        Ok((broken, retries))
    }

    /// Returns whether this bundle can be queried. The bundles of a site are stored in order.
    async fn queryable(&self, stack: &Stack, bundle: &Bundle) -> Result<bool> {
        let series = bundle.series.last().context("a series")?;
        let Sample(start, _) = series.samples.first().context("a sample")?;
        let asked = stack.readings(series.sensor_id, &format!("from={start}&limit=1")).await?;
        Ok(asked.body["samples"][0][0] == json!(start))
    }

    /// Waits until all sent bundles are stored. Then sends the last bundles one by one and measures the time of each.
    async fn time_the_last(&self, stack: &Stack) -> Result<Millis> {
        let (sent, last) = self.bundles.split_at(self.bundles.len() - TIMED);
        let before = sent.last().context("a day of more bundles")?;
        until("the day to be stored", TIMEOUT, async || {
            let there = self.queryable(stack, before).await?;
            Ok(if there { Look::Found(()) } else { Look::Saw("less") })
        })
        .await?;
        let mut all = Vec::new();
        for bundle in last {
            let begun = Instant::now();
            logger::send(stack, &[bundle]).await?;
            while !self.queryable(stack, bundle).await? && begun.elapsed() < TIMEOUT {
                tokio::time::sleep(GLANCE).await;
            }
            all.push(begun.elapsed().as_millis());
        }
        Ok(Millis::of(all))
    }
}

/// Returns whether the bundle contains the sample that caused the alert.
fn holds(bundle: &Bundle, alert: &Alert) -> bool {
    let mut series = bundle.series.iter().filter(|series| series.sensor_id == alert.sensor_id);
    series.any(|series| series.samples.iter().any(|sample| sample.0 == alert.at))
}

/// Returns the site's alerts among the captured events, by sensor and time.
fn alerts(captured: &[Value], onboarding: OnboardingId) -> Result<Vec<Alert>> {
    let of_site = onboarding.to_string();
    let mut alerts = Vec::new();
    for event in captured.iter().filter(|event| capture::correlation(event) == of_site) {
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
    plan: &Plan,
    ids: Ids,
    untrue: &mut Vec<String>,
) -> Result<Vec<Alert>> {
    let enough = |events: &[Value]| events.len() >= plan.alerts.len();
    let mut captured = capture.take_until(stack, SETTLING, enough).await?;
    tokio::time::sleep(LISTENING).await;
    captured.extend(capture.take(stack).await?);
    let told = alerts(&captured, ids.onboarding_id)?;
    for alert in plan.alerts.iter().filter(|alert| !told.contains(alert)) {
        untrue.push(format!("{} of {} was not told: {alert:?}", alert.metric, alert.at));
    }
    for alert in told.iter().filter(|alert| !plan.alerts.contains(alert)) {
        untrue.push(format!("{} of {} was told: {alert:?}", alert.metric, alert.at));
    }
    let mut delivered = BTreeSet::new();
    for event in &captured {
        if !delivered.insert(capture::event_id(event)) {
            untrue.push(format!("an event was delivered twice: {event}"));
        }
    }
    let story = log::story(stack, ids.onboarding_id).await?;
    untrue.extend(log::gaps(&story));
    let kinds = [ReadingBreachedThreshold::TYPE, ReadingBackToNormal::TYPE];
    let logged = story.iter().filter(|event| kinds.contains(&event.kind.as_str()));
    let logged = logged.map(log::LoggedEvent::id).collect::<Result<BTreeSet<_>>>()?;
    let unheard = logged.iter().filter(|id| !delivered.contains(id.as_str()));
    untrue.extend(unheard.map(|id| format!("event {id} was not delivered")));
    if logged.len() != told.len() {
        untrue.push(format!("{} alerts are logged and {} were told", logged.len(), told.len()));
    }
    Ok(told)
}

/// Checks that the failures of store-readings are exactly the broken records, complete.
async fn check_failures(
    stack: &Stack,
    broken: &[Placed],
    untrue: &mut Vec<String>,
) -> Result<Vec<SetAside>> {
    let mut failures = stack.failures_of(STORE_READINGS).await?;
    let begun = Instant::now();
    while failures.len() < broken.len() && begun.elapsed() < SETTLING {
        tokio::time::sleep(GLANCE).await;
        failures = stack.failures_of(STORE_READINGS).await?;
    }
    let mut recorded = failures.into_iter().map(Quarantined::of).collect::<Result<Vec<_>>>()?;
    let mut set_aside = Vec::new();
    for (Broken { what, error, data }, position) in broken {
        let at = recorded.iter().position(|record| record.position() == *position);
        let Some(record) = at.map(|at| recorded.swap_remove(at)) else {
            untrue.push(format!("{what}, at {position:?}, is no failure of {STORE_READINGS}"));
            continue;
        };
        let whole = record.payload()? == *data;
        let Failure { kind, status, error: told, .. } = record.failure;
        if !whole || kind != "QUARANTINED" || status != "OPEN" || told.name != *error {
            let told = format!("{} {kind} {status}", told.name);
            untrue.push(format!("{what} is not whole, or not {error} QUARANTINED OPEN: {told}"));
        }
        let Position { shard_id, sequence_number } = position.clone();
        let FailureError { name: error, message: reason } = told;
        let bytes = data.len();
        set_aside.push(SetAside { what, error, reason, shard_id, sequence_number, bytes });
    }
    untrue.extend(recorded.iter().map(|more| format!("there is a {}", more.failure)));
    Ok(set_aside)
}

/// Checks that the API returns exactly the values in the file, bit for bit, for each sensor.
async fn check_samples(
    stack: &Stack,
    plan: &Plan,
    untrue: &mut Vec<String>,
) -> Result<Vec<SensorDay>> {
    let mut days = Vec::new();
    for SiteSensor { sensor_id, metric, unit } in &plan.sensors {
        let column = plan.day.columns.iter().find(|column| column.metric == *metric);
        let good = column.map(|column| &column.samples[..]).unwrap_or_default();
        let samples = stack.samples(*sensor_id, "").await?;
        let same = |(a, b): (&Sample, &Sample)| a.0 == b.0 && a.1.to_bits() == b.1.to_bits();
        if samples.len() != good.len() || !samples.iter().zip(good).all(same) {
            untrue.push(format!("{metric}: its {} samples are not the file's", samples.len()));
        }

        let days_told = stack.buckets(*sensor_id, "aggregate=day").await?;
        let least = good.iter().map(|sample| sample.1).reduce(f64::min);
        let greatest = good.iter().map(|sample| sample.1).reduce(f64::max);
        let told = days_told.first().map(|day| (day.count, day.min, day.max));
        let must_be = least.zip(greatest).map(|(min, max)| (good.len(), min, max));
        if told != must_be || days_told.len() > 1 {
            untrue.push(format!("{metric}: its day adds up to {days_told:?}, not {must_be:?}"));
        }
        let watched = plan.watched.iter().find(|watched| watched.sensor_id == *sensor_id);
        let limits = watched.map(|watched| [("min", watched.min), ("max", watched.max)]);
        let limits = limits.into_iter().flatten();
        days.push(SensorDay {
            sensor_id: *sensor_id,
            metric: *metric,
            unit: unit.clone(),
            day: days_told.into_iter().next(),
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

/// Checks that there is one row per series of a bundle, even if the bundle was sent twice. Adds up their costs.
async fn check_rows(stack: &Stack, plan: &Plan, untrue: &mut Vec<String>) -> Result<Stored> {
    let twice: BTreeSet<_> =
        plan.twice.iter().map(|place| plan.bundles[*place].bundle_id.as_str()).collect();
    let conflicting = plan.bundles[CONFLICTING].bundle_id.as_str();
    let mut stored = Stored::default();
    for SiteSensor { sensor_id, metric, .. } in &plan.sensors {
        let rows = stack.series_rows(*sensor_id).await?;
        let of_sensor =
            |bundle: &&Bundle| bundle.series.iter().any(|series| series.sensor_id == *sensor_id);
        let must_be = plan.bundles.iter().filter(of_sensor).map(|bundle| bundle.bundle_id.as_str());
        if !rows.iter().filter_map(bundle_of).eq(must_be) {
            untrue.push(format!("{metric}: its {} rows are not one a bundle", rows.len()));
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

/// Sends the day and checks the results.
pub async fn run(
    stack: &Stack,
    capture: &Capture,
    station: &Station,
    ids: Ids,
) -> Result<Findings> {
    let plan = Plan::new(stack, station, ids.site_id).await?;
    stack.sensors_known(plan.sensors.iter().map(|sensor| sensor.sensor_id)).await?;
    let (broken, retries) = plan.send(stack).await?;
    let queryable_after = plan.time_the_last(stack).await?;

    let mut untrue = Vec::new();
    let sensors = check_samples(stack, &plan, &mut untrue).await?;
    let failures = check_failures(stack, &broken, &mut untrue).await?;
    let mut stored = check_rows(stack, &plan, &mut untrue).await?;
    let alerts = check_alerts(stack, capture, &plan, ids, &mut untrue).await?;

    stored.samples = sensors.iter().map(|sensor| sensor.samples.len()).sum();
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    let units_a_reading =
        (stored.write_units + stored.write_units_refused) as f64 / stored.samples.max(1) as f64;
    stored.write_units_a_reading = units_a_reading;
    if units_a_reading > MAX_UNITS_A_READING {
        untrue.push(format!("a reading cost {units_a_reading} write units"));
    }
    let repeated = plan.twice.iter().map(|place| plan.bundles[*place].samples());
    let report = Report {
        site_id: plan.site,
        station: plan.day.station.clone(),
        file: FILE,
        rows: plan.day.rows,
        left_out: plan.day.left_out(),
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
    };
    Ok(Findings { report, untrue })
}
