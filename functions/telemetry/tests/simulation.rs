//! Simulates store-readings and store-held-readings under faults in all their dependencies, in hundreds of runs (2,000
//! in `make proofs`). Each run is determined by its seed; `SEED=123 make unit-test ARGS='--test simulation'` repeats
//! one.
//!
//! A run puts bundles and poison records on a stream: bundles that grow, revisions, imports, and samples with flags. A
//! model of Lambda's event source mapping delivers them in batches, also from a resharded stream. It delivers some
//! records again: the rest of a batch from the first failed record on, or a whole batch, also after a crash. A sensor
//! may be registered late, so that its records wait in the hold queue, or in the quarantine until an engineer on call
//! replays them. The test asserts that no sample is ever lost, changed or stored twice, that an error in one site's
//! lane does not affect other sites, and that in the end all pages of a query together are what a small model returns.

#[path = "simulation/model.rs"]
mod model;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write,
    hash::{DefaultHasher, Hash, Hasher},
    io::Write as _,
    panic::AssertUnwindSafe,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use aws_lambda_events::event::sqs::SqsMessage;
use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{
    Entity, Metric, OperatorId, SensorId, SiteId, Timestamp,
    readings::{Bundle, Origin, Series, TimeRange},
    sample::{Flag, QualifiedSample, Qualifiers, Sample},
    stream::Arrival,
};
use fault::ReplayResponse;
use flate2::{Compression, write::GzEncoder};
use futures_util::{FutureExt, future::LocalBoxFuture};
use lambda::{Deadline, http::response};
use model::{Arrived, Content, Samples, Sent, SeriesKey, current, pieces, sent};
use quarantine::Quarantine;
use serde_json::{Value, json, value::to_raw_value};
use series::{RevisionRow, RowKey, SeriesRow, packing::unpack_qualified};
use store::EventRow;
use telemetry::{
    SensorRow,
    get_readings::GetReadings,
    hold::Hold,
    paging::{KeySource, Paging, SigningKey},
    register::Register,
    series_store::SeriesStore,
    store_readings::StoreReadings,
};
use testkit::{
    cloud::{self, CallFault, Cloud, Entry},
    dynamo::{EVENTS, READINGS},
    mapping::{FaultRates, Function, Mapping, MappingEvent, Record, Settings, Stream, event},
    rng::{Rng, all_seeds, seed_count, seeds},
    sample::{self, default_caller, noon, saga, sensors},
};
use tokio::{
    task::spawn_local,
    time::{Instant, sleep},
};

/// The numbers of seeds of `make test` and of `make proofs`.
const SEEDS: (u64, u64) = (600, 2_000);

/// The part of the function's time that is reserved for the response, as in production.
const RESPONSE_MARGIN: Duration = Duration::from_millis(500);

const HOLD_QUEUE: &str = "http://cloud/hold";
const QUARANTINE: &str = "http://cloud/quarantine";

/// The maximum age of live samples on arrival.
const MAX_AGE_DAYS: u32 = 400;
/// In a run with the hold queue, records arrive 30 years later than in the other runs. The function uses the real
/// clock. So these records arrive in the future, their age is 0, and they are always held.
const LATER_DAYS: u32 = 10_957;
/// The start of an import, relative to the stream's beginning: 7 years earlier, in seconds.
const IMPORT_SECONDS: i64 = -7 * 365 * 24 * 60 * 60;

/// The kinds of invalid records in the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Poison {
    NotJson,
    NotGzip,
    TruncatedGzip,
    WrongKey,
    TooFarAhead,
    Unsorted,
    Unknown,
    Retired,
    OtherSite,
    TooOld,
}

const POISON_KINDS: [Poison; 10] = [
    Poison::NotJson,
    Poison::NotGzip,
    Poison::TruncatedGzip,
    Poison::WrongKey,
    Poison::TooFarAhead,
    Poison::Unsorted,
    Poison::Unknown,
    Poison::Retired,
    Poison::OtherSite,
    Poison::TooOld,
];

impl Poison {
    fn error(self) -> &'static str {
        match self {
            Self::Unknown => "UnknownSensor",
            Self::Retired => "RetiredSensor",
            Self::OtherSite => "SensorOfAnotherSite",
            _ => "InvalidInput",
        }
    }
}

#[derive(Clone, Debug)]
struct Site {
    id: SiteId,
    /// The sensors. A sensor that is registered late is the last one.
    sensors: Vec<SensorId>,
    late: Option<SensorId>,
    retired: SensorId,
}

/// A record on the stream.
struct Put {
    record: Rc<Record>,
    /// The series that are stored in the end, unless what is stored already is different.
    sent: Vec<Sent>,
    /// The error under which the record is quarantined.
    error: Option<&'static str>,
    /// Whether it has a series of a sensor that is registered late.
    waits: bool,
    /// The record's index among the records of its partition key.
    index: usize,
}

/// The records on the stream and the data about them.
struct Workload {
    stream: Stream,
    puts: Vec<Put>,
    by_number: HashMap<String, usize>,
    /// The lanes that a failed call for a sensor can stop, by sensor.
    lanes_of: HashMap<String, BTreeSet<String>>,
    poisons: BTreeMap<Poison, u32>,
    kinds: BTreeMap<Kind, u32>,
    sites: Vec<Site>,
    /// Whether the records of sensors that are registered late are held. Otherwise they are quarantined.
    holds: bool,
}

/// The kinds of bundles in the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    New,
    Repeated,
    /// The bundle of an earlier record with other values.
    Changed,
    /// A part of a bundle that grows, or an original that is sent after its revision.
    Pending,
    Revision,
    Retraction,
    Import,
}

const KINDS: [Kind; 7] = [
    Kind::New,
    Kind::Repeated,
    Kind::Changed,
    Kind::Pending,
    Kind::Revision,
    Kind::Retraction,
    Kind::Import,
];

fn plain(bundle: &Bundle) -> Vec<u8> {
    serde_json::to_vec(bundle).expect("JSON")
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(data).expect("gzip");
    encoder.finish().expect("gzip")
}

/// Returns a bundle with this share of each series' samples, from the beginning, and at least one of each.
fn prefix(bundle: &Bundle, share: f64) -> Bundle {
    let mut bundle = bundle.clone();
    for series in &mut bundle.series {
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let count = (series.samples.len() as f64 * share).ceil() as usize;
        series.truncate(count);
    }
    bundle
}

/// Generates bundles.
struct BundleGenerator {
    rng: Rng,
    sites: Vec<Site>,
    bundles: u32,
    /// The revisions that exist, with the id of their bundle.
    revisions: BTreeSet<(String, u32)>,
}

impl BundleGenerator {
    fn value(&mut self) -> f64 {
        let special = [0.0, -0.0, f64::MIN_POSITIVE / 4.0, f64::MAX, f64::MIN, 0.1 + 0.2, 1e23];
        let random = f64::from_bits(self.rng.number());
        match self.rng.below(4) {
            0 => *self.rng.pick(&special),
            1 if random.is_finite() => random,
            _ => f64::from(u32::try_from(self.rng.below(1000)).expect("a small number")) / 8.0,
        }
    }

    fn sample(&mut self, at: Timestamp, flagged: bool) -> Sample {
        let flags = [Flag::Pass, Flag::NotEvaluated, Flag::Suspect, Flag::Fail, Flag::Missing];
        let flag = if flagged { *self.rng.pick(&flags) } else { Flag::NotEvaluated };
        Sample::flagged(at, self.value(), flag)
    }

    fn series(&mut self, sensor: SensorId, start: Timestamp) -> Series {
        let mut at = start;
        let mut samples = Vec::new();
        let mut qualifiers = Qualifiers::default();
        let fast = self.rng.percent(15);
        let flagged = self.rng.percent(50);
        // The samples of different bundles are often of the same instants.
        let step = *self.rng.pick(&[1, 1_000, 20_000]);
        let (min, max) = if fast { (40, 120) } else { (1, 8) };
        for index in 0..self.rng.in_range(min, max) {
            samples.push(self.sample(at, flagged));
            if flagged && self.rng.percent(10) {
                let qualifier = *self.rng.pick(&["<", "calibration", "maintenance"]);
                qualifiers.push(index, vec![qualifier.parse().expect("a qualifier")]);
            }
            let gap = !fast && self.rng.percent(5);
            let max = if gap { 30 * 60 * 60 * 1000 } else { 120_000 };
            let steps = self.rng.below((max / step).max(1));
            at = at.plus_millis(i64::try_from(step + steps * step).expect("a time"));
        }
        Series { qualifiers, ..Series::new(sensor, samples) }
    }

    fn start(&mut self) -> Timestamp {
        // Many bundles share instants with bundles that arrived earlier.
        let minute = if self.rng.percent(60) { self.rng.below(3) } else { u64::from(self.bundles) };
        noon(60 * i64::try_from(minute).expect("a time"))
    }

    /// Returns a bundle of the first sensors of a site.
    fn bundle_of(&mut self, site: SiteId, sensors: &[SensorId]) -> Bundle {
        self.bundles += 1;
        let start = self.start();
        let count = self.rng.in_range(1, sensors.len());
        let series = sensors[..count].iter().map(|&sensor| self.series(sensor, start)).collect();
        Bundle::new(format!("b-{}", self.bundles).parse().expect("a bundle id"), site, series)
    }

    fn bundle(&mut self, site: usize) -> Bundle {
        let Site { id, sensors, .. } = self.sites[site].clone();
        self.bundle_of(id, &sensors)
    }

    fn import(&mut self, site: usize) -> Bundle {
        let mut bundle = self.bundle(site);
        bundle.origin = Origin::Import;
        if self.rng.percent(70) {
            for sample in bundle.series.iter_mut().flat_map(|series| &mut series.samples) {
                sample.at = sample.at.plus_millis(1000 * IMPORT_SECONDS);
            }
        }
        bundle
    }

    /// Returns a revision of a bundle or, with a new bundle id, of its range. `None` if it exists.
    fn revision(&mut self, original: &Bundle) -> Option<Bundle> {
        let mut bundle = original.clone();
        bundle.revision = if self.rng.percent(70) { 2 } else { 3 };
        bundle.reason = Some("a correction".to_owned());
        if self.rng.percent(25) {
            self.bundles += 1;
            bundle.bundle_id = format!("b-{}", self.bundles).parse().expect("a bundle id");
        }
        if !self.revisions.insert((bundle.bundle_id.to_string(), bundle.revision)) {
            return None;
        }
        let retracts = self.rng.percent(20);
        let mut revised = Vec::new();
        for series in &original.series {
            let old = series.replaces.map(|range| (range.from, range.to));
            let span = series.samples.first().zip(series.samples.last());
            let Some((from, to)) = span.map(|(a, b)| (a.at, b.at.plus_millis(1))).or(old) else {
                continue;
            };
            let shift = *self.rng.pick(&[0, 0, -3_600_000, 60_000]);
            let start = from.plus_millis(shift);
            let mut new = self.series(series.sensor_id, start);
            if self.rng.percent(50) && !series.samples.is_empty() {
                // The same instants with other values.
                let flagged = self.rng.percent(50);
                let times: Vec<_> = series.samples.iter().map(|sample| sample.at).collect();
                new.qualifiers = Qualifiers::default();
                new.samples = times
                    .into_iter()
                    .map(|at| self.sample(at.plus_millis(shift), flagged))
                    .collect();
            }
            if retracts {
                new.truncate(0);
            }
            if retracts || self.rng.percent(50) {
                let middle = from.plus_millis((to.millis() - from.millis()) / 2 + 1);
                let to = if self.rng.percent(30) { middle } else { to };
                new.replaces = Some(TimeRange { from, to });
            }
            revised.push(new);
        }
        bundle.series = revised;
        Some(bundle)
    }

    /// Returns the partition key and the data of a record that can never be stored completely, and the series that
    /// are stored.
    fn poison(&mut self, poison: Poison, site: usize) -> (String, Vec<u8>, Vec<Sent>) {
        let Site { id, sensors, late, .. } = self.sites[site].clone();
        let known = &sensors[..sensors.len() - usize::from(late.is_some())];
        let mut bundle = self.bundle_of(id, known);
        let mut key = bundle.site_id.to_string();
        let other_site = self.sites[(site + 1) % self.sites.len()].sensors[0];
        let at = bundle.series[0].samples[0].at;
        let mut good = Vec::new();
        // All series but the first.
        let others = |bundle: &Bundle| {
            let mut bundle = bundle.clone();
            bundle.series.remove(0);
            sent(&bundle)
        };
        let data = match poison {
            Poison::NotJson => b"{\"bundleId\": 1".to_vec(),
            Poison::NotGzip => vec![0x1f, 0x8b, 1, 2, 3],
            Poison::TruncatedGzip => {
                let complete = gzip(&plain(&bundle));
                complete[..complete.len() / 2].to_vec()
            }
            Poison::WrongKey => {
                key = format!("logger-{site}");
                plain(&bundle)
            }
            Poison::TooFarAhead => {
                good = others(&bundle);
                let ahead = "2199-01-01T00:00:00Z".parse().expect("a time");
                bundle.series[0].samples.push(Sample::new(ahead, 1.0));
                plain(&bundle)
            }
            Poison::TooOld => {
                good = others(&bundle);
                bundle.series[0].samples[0].at = at.plus_millis(1000 * IMPORT_SECONDS);
                plain(&bundle)
            }
            Poison::Unsorted => {
                good = others(&bundle);
                bundle.series[0].samples.push(Sample::new(at, 1.0));
                plain(&bundle)
            }
            Poison::Unknown | Poison::Retired | Poison::OtherSite => {
                let sensor = match poison {
                    Poison::Unknown => {
                        SensorId::from_onboarding(saga("nobody").onboarding_id, site)
                    }
                    Poison::Retired => self.sites[site].retired,
                    _ => other_site,
                };
                good = sent(&bundle);
                let series = self.series(sensor, at);
                bundle.series.push(series);
                plain(&bundle)
            }
        };
        (key, data, good)
    }
}

/// Makes the sites. One of them may have a sensor that is registered late.
fn make_sites(rng: &mut Rng) -> Vec<Site> {
    let mut sites: Vec<_> = (0..rng.in_range(2, 3))
        .map(|n| {
            let saga = saga(&format!("site-{n}"));
            let ids = sensors(saga, &[Metric::AirTemperature; 4]);
            let ids: Vec<_> = ids.iter().map(|sensor| sensor.sensor_id).collect();
            let count = rng.in_range(1, 3);
            let sensors = ids[..count].to_vec();
            Site { id: saga.site_id, sensors, late: None, retired: ids[3] }
        })
        .collect();
    let late = rng.index(sites.len());
    if let Site { sensors, late, .. } = &mut sites[late]
        && sensors.len() > 1
        && rng.percent(60)
    {
        *late = sensors.last().copied();
    }
    sites
}

impl Workload {
    fn make(rng: &mut Rng) -> Self {
        let sites = make_sites(rng);
        let mut workload = Self {
            stream: Stream::new(rng.fork()),
            puts: Vec::new(),
            by_number: HashMap::new(),
            lanes_of: HashMap::new(),
            poisons: BTreeMap::new(),
            kinds: BTreeMap::new(),
            sites: sites.clone(),
            holds: rng.percent(50),
        };
        let (rng_of_bundles, revisions) = (rng.fork(), BTreeSet::new());
        let mut generator = BundleGenerator { rng: rng_of_bundles, sites, bundles: 0, revisions };
        // Bundles that were sent, and bundles that are sent later.
        let (mut sent_bundles, mut pending): (Vec<Bundle>, Vec<Bundle>) = Default::default();
        // The new bundles that do not grow. A later record may have the same bundle id with other values.
        let mut plain_bundles: Vec<Bundle> = Vec::new();
        let mut at = Duration::ZERO;
        let spread = *rng.pick(&[0, 500, 20_000]);
        let mut left = rng.in_range(4, 10);
        while left > 0 || !pending.is_empty() {
            left = left.saturating_sub(1);
            at += Duration::from_millis(rng.below(spread));
            if rng.percent(7) {
                workload.stream.reshard();
            }
            let site = rng.index(workload.sites.len());
            let repeated = (!sent_bundles.is_empty()).then(|| rng.pick(&sent_bundles).clone());
            let changed = (!plain_bundles.is_empty()).then(|| rng.pick(&plain_bundles).clone());
            let action = if left == 0 { 99 } else { rng.below(100) };
            let (kind, bundle) = match (action, repeated, changed) {
                (0..15, ..) => {
                    let poison = *rng.pick(&POISON_KINDS);
                    *workload.poisons.entry(poison).or_default() += 1;
                    let (key, data, good) = generator.poison(poison, site);
                    workload.put(&key, data, good, Some(poison.error()), at);
                    continue;
                }
                (15..25, Some(bundle), _) => (Kind::Repeated, bundle),
                // The same bundle id with another value. The keys of the other series may be new.
                (25..30, _, Some(mut bundle)) => {
                    let new = rng.percent(50);
                    let (series, others) = bundle.series.split_last_mut().expect("a series");
                    series.samples[0] = Sample::new(series.samples[0].at, generator.value());
                    let others = others.iter_mut().filter(|_| new);
                    for sample in others.flat_map(|series| &mut series.samples) {
                        sample.at = sample.at.plus_millis(-10 * 24 * 60 * 60 * 1000);
                    }
                    (Kind::Changed, bundle)
                }
                (30..50, Some(original), _) => match generator.revision(&original) {
                    Some(bundle) if bundle.series.iter().all(|it| it.samples.is_empty()) => {
                        (Kind::Retraction, bundle)
                    }
                    Some(bundle) => (Kind::Revision, bundle),
                    None => (Kind::Repeated, original),
                },
                (50..58, ..) => (Kind::Import, generator.import(site)),
                (58..66, ..) => {
                    let original = generator.bundle(site);
                    let revision = generator.revision(&original).expect("a new revision");
                    pending.push(original);
                    (Kind::Revision, revision)
                }
                _ if !pending.is_empty() && (left == 0 || rng.percent(60)) => {
                    let index = rng.index(pending.len());
                    (Kind::Pending, pending.swap_remove(index))
                }
                _ => (Kind::New, generator.bundle(site)),
            };
            *workload.kinds.entry(kind).or_default() += 1;
            let grows =
                matches!(kind, Kind::New | Kind::Import | Kind::Revision) && rng.percent(30);
            let bundle = if grows {
                for _ in 0..rng.in_range(1, 3) {
                    let share = *rng.pick(&[0.25, 0.5, 0.75, 1.0]);
                    pending.push(prefix(&bundle, share));
                }
                prefix(&bundle, *rng.pick(&[0.25, 0.5, 1.0]))
            } else {
                if kind == Kind::New {
                    plain_bundles.push(bundle.clone());
                }
                bundle
            };
            if kind != Kind::Changed {
                sent_bundles.push(bundle.clone());
            }
            let key = bundle.site_id.to_string();
            let data = if kind == Kind::Repeated {
                serde_json::to_vec_pretty(&bundle).expect("JSON")
            } else {
                plain(&bundle)
            };
            let data = if rng.percent(30) { gzip(&data) } else { data };
            workload.put(&key, data, sent(&bundle), None, at);
        }
        workload
    }

    fn put(
        &mut self,
        key: &str,
        data: Vec<u8>,
        sent: Vec<Sent>,
        error: Option<&'static str>,
        at: Duration,
    ) {
        if let Ok(bundle) = serde_json::from_slice::<Bundle>(&data) {
            for series in &bundle.series {
                let lanes = self.lanes_of.entry(series.sensor_id.to_string()).or_default();
                lanes.insert(key.to_owned());
            }
        }
        for site in &self.sites {
            for sensor in &site.sensors {
                let lanes = self.lanes_of.entry(sensor.to_string()).or_default();
                lanes.insert(site.id.to_string());
            }
        }
        let record = self.stream.put(key, data, at);
        let index = self.puts.iter().filter(|put| put.record.partition_key == key).count();
        let is_late = |sent: &Sent| self.sites.iter().any(|it| it.late == Some(sent.key.sensor));
        let waits = sent.iter().any(is_late);
        self.by_number.insert(record.sequence_number.clone(), self.puts.len());
        self.puts.push(Put { record, sent, error, waits, index });
    }

    fn late_sensor(&self) -> Option<(SiteId, SensorId)> {
        self.sites.iter().find_map(|site| Some((site.id, site.late?)))
    }

    /// Returns by how many days the records arrive later.
    fn later_days(&self) -> u32 {
        if self.holds { LATER_DAYS } else { 0 }
    }

    /// Returns records in the format of Lambda's event.
    fn event(&self, records: &[Rc<Record>]) -> Value {
        let mut event = event(records);
        for record in event["Records"].as_array_mut().expect("records") {
            let arrival = &mut record["kinesis"]["approximateArrivalTimestamp"];
            let seconds = arrival.as_f64().expect("a time");
            *arrival = (seconds + f64::from(self.later_days()) * 86_400.0).into();
        }
        event
    }

    /// Returns when a record arrived.
    fn arrived(&self, record: &Record) -> Arrived {
        let after = i64::try_from(record.put_at.as_millis()).expect("a time");
        let at = noon(i64::from(self.later_days()) * 86_400).plus_millis(after);
        (at.millis(), record.sequence_number.clone())
    }

    /// Returns the record that a message is about.
    fn put_of(&self, message: &Value) -> usize {
        let number = &message["record"]["kinesis"]["sequenceNumber"];
        self.by_number[number.as_str().expect("a number")]
    }
}

/// The state of the checks during a run: how much of the log was read, and the violations that were found.
#[derive(Default)]
struct CheckState {
    log_position: usize,
    stored: BTreeMap<SeriesKey, Samples>,
    /// The revisions that are stored, also those without samples.
    revisions: BTreeSet<SeriesKey>,
    /// The errors of the quarantined records, by record.
    quarantined: HashMap<usize, BTreeSet<String>>,
    held: BTreeSet<usize>,
    /// Whether all held records were stored and all records of late sensors were replayed.
    is_over: bool,
    given_up: BTreeSet<usize>,
    /// The records that were found to be done. A record that is done stays so until the run is over.
    done: RefCell<BTreeSet<usize>>,
    violations: Vec<String>,
}

struct Checker {
    cloud: Cloud,
    workload: Workload,
    state: RefCell<CheckState>,
}

/// What a call writes.
enum Written {
    Row(SeriesKey, Samples),
    Revision(SeriesKey),
}

/// Returns the rows of samples and the revisions that a call writes.
fn written(operation: &str, body: &Value) -> Vec<Written> {
    let items: Vec<_> = match operation {
        "PutItem" => vec![&body["Item"]],
        "TransactWriteItems" => {
            let actions = body["TransactItems"].as_array().expect("actions");
            actions.iter().map(|action| &action["Put"]["Item"]).collect()
        }
        _ => Vec::new(),
    };
    let mut written = Vec::new();
    for item in items {
        let Some(row) = item["row"]["S"].as_str() else { continue };
        if let Some(revision) = row.strip_prefix("REVISION/") {
            let (bundle, revision) = revision.split_once('/').expect("a revision");
            let sensor = item["sensorId"]["S"].as_str().expect("a sensor");
            written.push(Written::Revision(SeriesKey {
                sensor: sensor.parse().expect("a sensor"),
                bundle: bundle.to_owned(),
                revision: revision.parse().expect("a number"),
            }));
        } else {
            let (key, samples) = row_of(item);
            written.push(Written::Row(key, samples));
        }
    }
    written
}

impl Checker {
    /// Returns whether the record has its whole expected outcome.
    ///
    /// A series that differs from what is stored is not stored, and the record is quarantined.
    fn is_done(&self, state: &CheckState, put: usize) -> bool {
        if state.done.borrow().contains(&put) {
            return true;
        }
        let is_done = self.has_outcome(state, put);
        if is_done {
            state.done.borrow_mut().insert(put);
        }
        is_done
    }

    fn has_outcome(&self, state: &CheckState, put: usize) -> bool {
        let Put { sent, error, waits, .. } = &self.workload.puts[put];
        let quarantined =
            |error: &str| state.quarantined.get(&put).is_some_and(|errors| errors.contains(error));
        if error.is_some_and(|error| !quarantined(error)) {
            return false;
        }
        let set_aside = state.held.contains(&put) || quarantined("UnknownSensor");
        let is_waiting = *waits && set_aside && !state.is_over;
        let late = self.workload.late_sensor().map(|(_, sensor)| sensor);
        sent.iter().all(|Sent { key, samples, .. }| {
            if is_waiting && Some(key.sensor) == late {
                return true;
            }
            let stored = state.stored.get(key);
            let is_stored = |(at, content)| {
                let stored = stored.and_then(|stored| stored.get(at));
                stored.is_some_and(|stored| {
                    stored == content || is_waiting || quarantined("BundleConflict")
                })
            };
            (key.revision == 1 || state.revisions.contains(key)) && samples.iter().all(is_stored)
        })
    }

    /// Reads the new entries of the log and checks the order of the calls.
    fn read_log(&self) {
        let state = &mut *self.state.borrow_mut();
        let entries = self.cloud.log_from(state.log_position);
        state.log_position += entries.len();
        for entry in entries {
            let (operation, body, effect) = match &entry {
                Entry::Called { operation, body, .. } => (operation, body, false),
                Entry::Effect { operation, body } => (operation, body, true),
            };
            for written in written(operation, body) {
                if effect {
                    state.add(written);
                    continue;
                }
                // Finds the first record with these samples.
                let is_sender = |sent: &Sent| match &written {
                    Written::Row(key, samples) => {
                        sent.key == *key
                            && samples.iter().all(|(at, it)| sent.samples.get(at) == Some(it))
                    }
                    Written::Revision(key) => sent.key == *key,
                };
                let is_from = |put: &Put| put.sent.iter().any(is_sender);
                if let Some(put) = self.workload.puts.iter().position(is_from) {
                    self.check_order(state, put);
                } else {
                    let (Written::Row(key, _) | Written::Revision(key)) = written;
                    state.violations.push(format!("no record has the row of {key:?}"));
                }
            }
            if operation == "SendMessage" {
                let text = body["MessageBody"].as_str().expect("a message");
                let message: Value = serde_json::from_str(text).expect("JSON");
                let put = self.workload.put_of(&message);
                if !effect {
                    self.check_order(state, put);
                } else if body["QueueUrl"] == HOLD_QUEUE {
                    state.held.insert(put);
                } else {
                    let error = message["error"].as_str().expect("an error").to_owned();
                    state.quarantined.entry(put).or_default().insert(error);
                }
            }
        }
    }

    /// Checks that no record is started before the earlier records of its partition key are done.
    fn check_order(&self, state: &mut CheckState, put: usize) {
        let started = &self.workload.puts[put];
        let key = &started.record.partition_key;
        for (earlier, before) in self.workload.puts.iter().enumerate() {
            let same = before.record.partition_key == *key && before.index < started.index;
            if same && !state.given_up.contains(&earlier) && !self.is_done(state, earlier) {
                let text = format!("record {put} was started before record {earlier} was done");
                state.violations.push(text);
            }
        }
    }

    /// Returns the lanes that had a fault since a position in the log.
    fn faulty_lanes(&self, log_position: usize) -> BTreeSet<String> {
        let mut lanes = BTreeSet::new();
        for entry in self.cloud.log_from(log_position) {
            let Entry::Called { operation, body, fault: Some(_), .. } = entry else { continue };
            if operation == "SendMessage" {
                let text = body["MessageBody"].as_str().expect("a message");
                let message: Value = serde_json::from_str(text).expect("JSON");
                let key = message["record"]["kinesis"]["partitionKey"].as_str().expect("a key");
                lanes.insert(key.to_owned());
                continue;
            }
            let text = body.to_string();
            for (sensor, sensor_lanes) in &self.workload.lanes_of {
                if text.contains(sensor) {
                    lanes.extend(sensor_lanes.iter().cloned());
                }
            }
        }
        lanes
    }

    /// Checks a response: no failed record is skipped, and no record fails without a fault in its own lane.
    fn check_response(
        &self,
        records: &[Rc<Record>],
        response: &Result<Value, String>,
        call: Invocation,
    ) {
        self.read_log();
        let state = &mut *self.state.borrow_mut();
        let mut violations = Vec::new();
        let response = match response {
            Ok(response) => response,
            Err(error) => {
                state.violations.push(format!("the whole batch failed: {error}"));
                return;
            }
        };
        let faulty_lanes = self.faulty_lanes(call.log_position);
        let in_time = call.started.elapsed() < call.time;
        let failures = response["batchItemFailures"].as_array().expect("a list of failures");
        let number = failures.first().map(|failure| &failure["itemIdentifier"]);
        let first =
            records.iter().position(|record| Some(&json!(record.sequence_number)) == number);
        if failures.len() > 1 || first.is_some() != number.is_some() {
            violations.push(format!("not a response for the batch: {response}"));
        }
        for (index, record) in records.iter().enumerate() {
            let put = self.workload.by_number[&record.sequence_number];
            let lane = &record.partition_key;
            let is_done = self.is_done(state, put);
            if !is_done && first.is_none_or(|first| index < first) {
                violations.push(format!("record {put} is skipped but not done: {response}"));
            }
            if !is_done && in_time && !faulty_lanes.contains(lane) {
                violations.push(format!("record {put} is not done, but its lane had no fault"));
            }
            if first == Some(index) && in_time && !faulty_lanes.contains(lane) {
                violations.push(format!("record {put} is retried, but its lane had no fault"));
            }
        }
        state.violations.extend(violations);
    }
}

/// An invocation.
#[derive(Clone, Copy)]
struct Invocation {
    /// The position in the log at which the invocation began.
    log_position: usize,
    started: Instant,
    time: Duration,
}

impl CheckState {
    /// Adds what a call has written.
    fn add(&mut self, written: Written) {
        match written {
            Written::Row(key, samples) => {
                let stored = self.stored.entry(key.clone()).or_default();
                for (at, content) in samples {
                    if stored.insert(at, content).is_some() {
                        self.violations.push(format!("{at} of {key:?} was written twice"));
                    }
                }
            }
            Written::Revision(key) => {
                if !self.revisions.insert(key.clone()) {
                    self.violations.push(format!("{key:?} was written twice"));
                }
            }
        }
    }
}

fn row_of(item: &Value) -> (SeriesKey, Samples) {
    let text = |name: &str| item[name]["S"].as_str().expect("a text");
    let packed = STANDARD.decode(item["samples"]["B"].as_str().expect("bytes")).expect("base64");
    let (samples, qualifiers) = unpack_qualified(&packed).expect("samples");
    let RowKey { bundle, revision, .. } = RowKey::parse(text("row")).expect("a key");
    let sensor = text("sensorId").parse().expect("a sensor");
    let content = |(index, sample): (usize, &Sample)| {
        (sample.at.millis(), Content::of(*sample, qualifiers.of(index)))
    };
    let samples = samples.iter().enumerate().map(content).collect();
    (SeriesKey { sensor, bundle: bundle.to_owned(), revision }, samples)
}

/// The function store-readings, as the mapping invokes it.
struct Consumer {
    checker: Rc<Checker>,
    register_age: Duration,
}

impl Function for Consumer {
    type Environment = StoreReadings;

    fn start(&self) -> StoreReadings {
        let cloud = &self.checker.cloud;
        let readings = cloud.table(READINGS);
        StoreReadings {
            register: Register::new(readings.clone(), self.register_age),
            series: SeriesStore { readings, outbox: cloud.outbox() },
            hold: Hold { queues: cloud.queues(), url: HOLD_QUEUE.to_owned(), max_seconds: 120 },
            quarantine: Quarantine {
                queues: cloud.queues(),
                url: QUARANTINE.to_owned(),
                source: "store-readings",
            },
            // The readings have fixed dates.
            max_age_days: MAX_AGE_DAYS + self.checker.workload.later_days(),
        }
    }

    fn invoke(
        &self,
        environment: Rc<StoreReadings>,
        records: Vec<Rc<Record>>,
        time: Duration,
    ) -> LocalBoxFuture<'static, Result<Value, String>> {
        let checker = Rc::clone(&self.checker);
        Box::pin(async move {
            let time = time.saturating_sub(RESPONSE_MARGIN);
            let call = Invocation {
                log_position: checker.cloud.log_length(),
                started: Instant::now(),
                time,
            };
            let payload = to_raw_value(&checker.workload.event(&records)).expect("JSON");
            let work = environment.handle(&payload, Deadline::after(time));
            let response = match AssertUnwindSafe(work).catch_unwind().await {
                Ok(Ok(response)) => Ok(serde_json::to_value(response).expect("JSON")),
                Ok(Err(failure)) => Err(failure.to_string()),
                Err(_) => Err("the function panicked".to_owned()),
            };
            checker.check_response(&records, &response, call);
            response
        })
    }

    fn gave_up(&self, records: &[Rc<Record>], file: Value) {
        self.checker.read_log();
        let state = &mut *self.checker.state.borrow_mut();
        let payload = file["payload"].as_str().expect("the event");
        assert_eq!(payload, event(records).to_string());
        let numbers =
            records.iter().map(|record| self.checker.workload.by_number[&record.sequence_number]);
        state.given_up.extend(numbers);
    }
}

/// The counts of one run or of all runs.
#[derive(Debug, Default, PartialEq)]
struct Counts {
    faults: BTreeMap<CallFault, u32>,
    mapping_events: BTreeMap<MappingEvent, u32>,
    poisons: BTreeMap<Poison, u32>,
    kinds: BTreeMap<Kind, u32>,
    errors: BTreeMap<String, u32>,
    /// The numbers of records of late sensors that were stored from the hold queue, and by a replay.
    stored_later: (u32, u32),
    /// The number of samples that a query returned at the end.
    returned: usize,
    /// The number of samples that are stored at the end.
    samples: usize,
    shards: usize,
    /// A hash of the order of the calls and effects before the first pause of random length.
    log: u64,
    /// Whether there was such a pause. What follows it differs between runs with the same seed.
    paused: bool,
}

impl Counts {
    /// Returns the counts that do not depend on what follows the first pause of random length.
    fn before_pause(self) -> Self {
        let Self { poisons, kinds, shards, log, paused, .. } = self;
        Self { poisons, kinds, shards, log, paused, ..Self::default() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum FaultLevel {
    NoFaults,
    /// The partition of one site is throttled.
    OneSite,
    AllCalls,
}

fn make_settings(rng: &mut Rng) -> Settings {
    Settings {
        batch_size: rng.in_range(1, 12),
        full_batches: rng.percent(40),
        parallelization_factor: 1 + rng.below(3),
        bisects: rng.percent(70),
        max_retries: *rng.pick(&[1, 3, 8]),
        max_age: Duration::from_secs(*rng.pick(&[60, 3_600])),
        timeout: Duration::from_secs(*rng.pick(&[4, 30])),
    }
}

fn simulate(seed: u64) -> Counts {
    let mut rng = Rng::from_seed(seed);
    let cloud = Cloud::with_tables(&[READINGS, EVENTS], rng.fork());
    let workload = Workload::make(&mut rng);
    for site in &workload.sites {
        for &sensor in site.sensors.iter().chain([&site.retired]) {
            if site.late != Some(sensor) {
                register(&cloud, site.id, sensor, sensor == site.retired);
            }
        }
    }
    let fault_level = match rng.below(100) {
        0..10 => FaultLevel::NoFaults,
        10..30 => FaultLevel::OneSite,
        _ => FaultLevel::AllCalls,
    };
    let settings = make_settings(&mut rng);
    let fault_rates = match fault_level {
        FaultLevel::NoFaults => FaultRates::default(),
        _ => FaultRates { crash: 5, lost_response: 5, replaced_poller: 3, repeat: 10 },
    };
    let register_age = Duration::from_secs(*rng.pick(&[0, 60]));
    let (percent, blocked, blocked_for) =
        (1 + rng.below(20), rng.index(workload.sites.len()), 1 + rng.below(240));
    let registered_after = Duration::from_secs(rng.below(60));
    let checker = Rc::new(Checker { cloud: cloud.clone(), workload, state: RefCell::default() });
    let consumer = Consumer { checker: Rc::clone(&checker), register_age };

    cloud::run(async {
        match fault_level {
            FaultLevel::NoFaults => {}
            FaultLevel::OneSite => {
                let texts = checker.workload.sites[blocked].sensors.iter().map(ToString::to_string);
                cloud.throttle(texts.collect(), Duration::from_secs(blocked_for));
            }
            FaultLevel::AllCalls => cloud.inject_faults(percent),
        }
        let mapping = Mapping::new(settings, fault_rates, rng.fork(), consumer);
        let later = Rc::new(Later::new(&checker, mapping.function(), rng.fork()));
        let working = spawn_local({
            let later = Rc::clone(&later);
            async move { later.work(registered_after).await }
        });
        mapping.run(&checker.workload.stream).await;
        // Waits for invocations that still run in the background and for late effects.
        sleep(Duration::from_mins(2)).await;
        cloud.stop_faults();
        later.is_stopped.set(true);
        working.await.expect("the hold queue and the replays of an engineer on call");
        checker.read_log();
        assert_no_violation(&checker);
        assert_all_done_or_given_up(&checker, fault_level);

        // The engineer on call replays the records that Lambda gave up on.
        let given_up: Vec<_> = checker.state.borrow().given_up.iter().copied().collect();
        replay(&mapping, &checker, &given_up).await;
        later.finish().await;
        checker.read_log();
        {
            let state = &mut *checker.state.borrow_mut();
            state.is_over = true;
            state.done.borrow_mut().clear();
        }
        for put in 0..checker.workload.puts.len() {
            let is_done = checker.is_done(&checker.state.borrow(), put);
            assert!(is_done, "record {put} is lost: {:?}", checker.workload.puts[put].sent);
        }

        assert_rows_match_log(&checker);
        assert_each_revision_has_one_event(&checker);
        let returned = assert_queries_match_model(&checker, &mut rng).await;
        if rng.percent(15) {
            let (before, units) = (cloud.rows(READINGS), cloud.write_units());
            let events = cloud.rows(EVENTS).len();
            let all: Vec<_> = (0..checker.workload.puts.len()).collect();
            replay(&mapping, &checker, &all).await;
            assert_eq!(cloud.rows(READINGS), before, "a repeated record changed a row");
            assert_eq!(cloud.rows(EVENTS).len(), events, "a repeated record emitted an event");
            assert_eq!(
                cloud.write_units().to_bits(),
                units.to_bits(),
                "a repeated record used write units"
            );
        }
        let errors = assert_quarantine_matches_poison(&checker);
        assert_no_violation(&checker);
        let mapping_events = mapping.event_counts();
        assert!(!mapping_events.contains_key(&MappingEvent::TimedOut), "an invocation timed out");
        let log = cloud.log_from(0);
        let pause = first_pause(&log);
        Counts {
            faults: cloud.faults(),
            mapping_events,
            poisons: checker.workload.poisons.clone(),
            kinds: checker.workload.kinds.clone(),
            errors,
            stored_later: later.counts.get(),
            returned,
            samples: checker.state.borrow().stored.values().map(Samples::len).sum(),
            shards: checker.workload.stream.shards(),
            log: digest(&log[..pause.unwrap_or(log.len())]),
            paused: pause.is_some(),
        }
    })
}

/// Writes the row of a sensor.
fn register(cloud: &Cloud, site_id: SiteId, sensor: SensorId, is_retired: bool) {
    let described = sensors(saga("any"), &[Metric::AirTemperature]).remove(0);
    let row = SensorRow {
        site_id,
        operator_id: OperatorId::DEFAULT,
        sensor: Some(contracts::Sensor { sensor_id: sensor, ..described }),
        retired_at: is_retired.then(|| noon(0)),
        sensor_sequence: None,
        changes: 0,
    };
    let mut row = serde_json::to_value(row).expect("JSON");
    row["sensorId"] = json!(sensor);
    row["row"] = "SENSOR".into();
    cloud.put(READINGS, row);
}

/// Stores the records of a sensor that is registered late: store-held-readings, and the replays of an engineer on call.
struct Later {
    checker: Rc<Checker>,
    step: StoreReadings,
    rng: RefCell<Rng>,
    is_registered: Cell<bool>,
    is_stopped: Cell<bool>,
    /// The length of the cloud's log when messages were last taken.
    log_length: Cell<usize>,
    /// The numbers of messages that were taken from the hold queue and from the quarantine.
    taken: Cell<(usize, usize)>,
    /// The messages that are to be processed, and whether they are from the hold queue.
    messages: RefCell<Vec<(bool, Value)>>,
    counts: Cell<(u32, u32)>,
}

impl Later {
    fn new(checker: &Rc<Checker>, consumer: &Consumer, rng: Rng) -> Self {
        Self {
            checker: Rc::clone(checker),
            step: consumer.start(),
            rng: RefCell::new(rng),
            is_registered: Cell::new(false),
            is_stopped: Cell::new(false),
            log_length: Cell::default(),
            taken: Cell::default(),
            messages: RefCell::default(),
            counts: Cell::default(),
        }
    }

    /// Registers the sensor after this time, and processes messages in any order until the run is stopped.
    async fn work(&self, registered_after: Duration) {
        let Some((site, sensor)) = self.checker.workload.late_sensor() else { return };
        let start = Instant::now();
        while !self.is_stopped.get() {
            let pause = 1_000 + self.rng.borrow_mut().below(8_000);
            sleep(Duration::from_millis(pause)).await;
            if !self.is_registered.get() && start.elapsed() >= registered_after {
                register(&self.checker.cloud, site, sensor, false);
                self.is_registered.set(true);
            }
            self.take();
            self.process_one().await;
        }
        if !self.is_registered.replace(true) {
            register(&self.checker.cloud, site, sensor, false);
        }
    }

    /// Processes all messages that are left, without faults.
    async fn finish(&self) {
        if self.checker.workload.late_sensor().is_none() {
            return;
        }
        self.take();
        while !self.messages.borrow().is_empty() {
            self.process_one().await;
            self.take();
        }
    }

    /// Takes the new messages of both queues.
    fn take(&self) {
        let cloud = &self.checker.cloud;
        // Cloning all messages takes time.
        let log = cloud.log_length();
        if self.log_length.replace(log) == log {
            return;
        }
        let (held, quarantined) = (cloud.messages_of(HOLD_QUEUE), cloud.messages_of(QUARANTINE));
        let taken = self.taken.replace((held.len(), quarantined.len()));
        let held = held.into_iter().skip(taken.0).map(|message| (true, message));
        let quarantined = quarantined.into_iter().skip(taken.1).filter(|message| {
            let put = &self.checker.workload.puts[self.checker.workload.put_of(message)];
            put.waits && message["error"] == "UnknownSensor"
        });
        let quarantined = quarantined.map(|message| (false, message));
        self.messages.borrow_mut().extend(held.chain(quarantined));
    }

    /// Processes any one of the messages. It stays if that fails, and sometimes is delivered again.
    async fn process_one(&self) {
        let (index, is_repeated) = {
            let (messages, rng) = (self.messages.borrow(), &mut *self.rng.borrow_mut());
            // An engineer on call replays after the registration.
            let can_be = |(is_held, _): &&(bool, Value)| *is_held || self.is_registered.get();
            if !messages.iter().any(|message| can_be(&message)) {
                return;
            }
            let index = rng.index(messages.len());
            if !can_be(&&messages[index]) {
                return;
            }
            (index, rng.percent(10) && !self.is_stopped.get())
        };
        let (is_held, message) = self.messages.borrow_mut().swap_remove(index);
        let work = async {
            if is_held {
                let mut delivered = SqsMessage::default();
                delivered.body = Some(message.to_string());
                return self.step.handle_held(&delivered).await.is_ok();
            }
            let record = to_raw_value(&message["record"]).expect("JSON");
            match self.step.replay(&record).await {
                ReplayResponse::Done => true,
                ReplayResponse::Failed { error, .. } if error == "BundleConflict" => {
                    let put = self.checker.workload.put_of(&message);
                    let state = &mut *self.checker.state.borrow_mut();
                    state.quarantined.entry(put).or_default().insert(error);
                    true
                }
                response => {
                    let is_expected = matches!(&response, ReplayResponse::Failed { error, .. }
                        if !self.is_stopped.get() && error != "UnknownSensor");
                    assert!(is_expected, "{response:?}");
                    false
                }
            }
        };
        let is_done = AssertUnwindSafe(work).catch_unwind().await.unwrap_or(false);
        if !is_done || is_repeated {
            self.messages.borrow_mut().push((is_held, message));
        } else if self.is_registered.get() {
            let (held, replayed) = self.counts.get();
            let is_replayed = u32::from(!is_held);
            self.counts.set((held + 1 - is_replayed, replayed + is_replayed));
        }
    }
}

/// Returns the position of the first transaction that was refused. Its repetition follows after a pause of random length.
fn first_pause(log: &[Entry]) -> Option<usize> {
    let has_effect = |sent: &Arc<Value>| {
        log.iter()
            .any(|entry| matches!(entry, Entry::Effect { body, .. } if Arc::ptr_eq(body, sent)))
    };
    log.iter().position(|entry| match entry {
        Entry::Called { operation, body, fault: None | Some(CallFault::Slow), .. } => {
            operation == "TransactWriteItems" && !has_effect(body)
        }
        _ => false,
    })
}

fn digest(log: &[Entry]) -> u64 {
    let mut digest = DefaultHasher::new();
    for entry in log {
        let (Entry::Called { operation, body, .. } | Entry::Effect { operation, body }) = entry;
        operation.hash(&mut digest);
        body["Item"]["row"].to_string().hash(&mut digest);
        if let Entry::Called { fault, .. } = entry {
            fault.hash(&mut digest);
        }
    }
    digest.finish()
}

/// Delivers the records once more in one batch, without faults.
async fn replay(mapping: &Mapping<Consumer>, checker: &Checker, puts: &[usize]) {
    let records: Vec<_> =
        puts.iter().map(|&put| Rc::clone(&checker.workload.puts[put].record)).collect();
    let environment = Rc::new(mapping.function().start());
    let response = mapping.function().invoke(environment, records, Duration::from_mins(1)).await;
    assert_eq!(response, Ok(json!({ "batchItemFailures": [] })));
}

/// Checks that every record is done or was given up, and that none was given up without faults.
fn assert_all_done_or_given_up(checker: &Checker, fault_level: FaultLevel) {
    let state = checker.state.borrow();
    for put in 0..checker.workload.puts.len() {
        let given_up = state.given_up.contains(&put);
        assert!(given_up || checker.is_done(&state, put), "record {put} is lost");
        assert!(
            !given_up || fault_level != FaultLevel::NoFaults,
            "record {put} was given up without faults"
        );
    }
}

/// Checks that the table has each sample that was written once, in rows with the right times, and no other sample.
fn assert_rows_match_log(checker: &Checker) {
    let state = checker.state.borrow();
    let mut stored: BTreeMap<SeriesKey, Samples> = BTreeMap::new();
    for row in checker.cloud.rows(READINGS) {
        if row["row"]["S"].as_str().is_none_or(|row| RowKey::parse(row).is_none()) {
            continue;
        }
        let (key, samples) = row_of(&row);
        let series: SeriesRow = cloud::read(&row);
        let start = series.start().map(Timestamp::millis);
        let bounds = (samples.keys().next(), samples.keys().next_back());
        assert_eq!((start.as_ref(), Some(&series.end)), bounds, "{key:?}");
        let all = stored.entry(key.clone()).or_default();
        for (at, content) in samples {
            assert!(all.insert(at, content).is_none(), "{at} of {key:?} is stored twice");
        }
    }
    assert_eq!(stored, state.stored);
}

/// Checks the row of each revision. Checks that a sensor has one event for each change, and a change for each revision.
fn assert_each_revision_has_one_event(checker: &Checker) {
    let mut revisions: BTreeMap<&SeriesKey, Vec<(Arrived, &Sent)>> = BTreeMap::new();
    for Put { record, sent, .. } in &checker.workload.puts {
        for sent in sent.iter().filter(|sent| sent.key.revision > 1) {
            let records = revisions.entry(&sent.key).or_default();
            records.push((checker.workload.arrived(record), sent));
        }
    }
    let mut rows: BTreeMap<SeriesKey, RevisionRow> = BTreeMap::new();
    let mut changes: BTreeMap<SensorId, u64> = BTreeMap::new();
    for row in checker.cloud.rows(READINGS) {
        let sensor = row["sensorId"]["S"].as_str().expect("a sensor").parse().expect("a sensor");
        let name = row["row"]["S"].as_str().expect("a key");
        if name == "SENSOR" {
            changes.insert(sensor, cloud::read::<SensorRow>(&row).changes);
        } else if name.starts_with("REVISION/") {
            let row: RevisionRow = cloud::read(&row);
            let bundle = row.bundle_id.to_string();
            rows.insert(SeriesKey { sensor, bundle, revision: row.revision }, row);
        }
    }
    assert!(rows.keys().eq(revisions.keys().copied()), "{rows:?} {revisions:?}");
    let mut events: BTreeMap<&SeriesKey, usize> = BTreeMap::new();
    let mut sequences: BTreeMap<SensorId, Vec<u64>> = BTreeMap::new();
    for row in checker.cloud.rows(EVENTS) {
        let row: EventRow = cloud::read(&row);
        assert_eq!(row.kind, "ReadingsRevised");
        let detail: Value = serde_json::from_str(&row.detail).expect("JSON");
        let data = &detail["data"];
        let sensor: SensorId = serde_json::from_value(data["sensorId"].clone()).expect("an id");
        assert_eq!(row.entity, Entity::readings(sensor).to_string());
        sequences.entry(sensor).or_default().push(row.sequence);
        let is_it = |key: &SeriesKey| {
            key.sensor == sensor
                && data["bundleId"] == key.bundle.as_str()
                && data["revision"] == key.revision
        };
        let key = rows.keys().find(|key| is_it(key)).expect("the event's revision");
        *events.entry(key).or_default() += 1;
    }
    for (sensor, changes) in changes {
        let mut sequences = sequences.remove(&sensor).unwrap_or_default();
        sequences.sort_unstable();
        assert!(sequences.into_iter().eq(1..=changes), "{changes} changes of {sensor}");
    }
    for (key, records) in revisions {
        let row = &rows[key];
        let longest = records.iter().max_by_key(|(_, sent)| sent.samples.len());
        let (_, Sent { samples, replaces, .. }) = longest.expect("a record");
        assert_eq!((row.samples, row.replaces), (samples.len(), *replaces), "{key:?}");
        let span = row.span.map(|(first, last)| (first.millis(), last.millis()));
        let bounds = samples.keys().next().copied().zip(samples.keys().next_back().copied());
        assert_eq!(span, bounds, "{key:?}");
        let first = records.iter().map(|(arrived, _)| arrived).min().expect("a record");
        let arrival = format!("{:013}/{}", first.0, first.1);
        assert_eq!(row.arrival.as_ref().map(Arrival::as_str), Some(&*arrival), "{key:?}");
        // A revision that grows is a change each time.
        let lengths = records.iter().map(|(_, sent)| sent.samples.len()).collect::<BTreeSet<_>>();
        let events = events.get(key).copied().unwrap_or_default();
        assert!((1..=lengths.len()).contains(&events), "{events} events of {key:?}");
    }
}

/// Checks that the pages of the raw samples of each sensor are what the model returns, in one of the orders.
async fn assert_queries_match_model(checker: &Checker, rng: &mut Rng) -> usize {
    let mut returned = 0;
    let workload = &checker.workload;
    let key = SigningKey::new("a key that is long enough for the tests").expect("a key");
    let paging = Paging::new(KeySource::Fixed(key));
    let step = GetReadings { readings: checker.cloud.table(READINGS), paging };
    let event = sample::event("get-readings");
    for &sensor in workload.sites.iter().flat_map(|site| &site.sensors) {
        let mut accepted = Vec::new();
        for Put { record, sent, .. } in &workload.puts {
            for sent in sent.iter().filter(|sent| sent.key.sensor == sensor) {
                accepted.push((workload.arrived(record), checker.accepted(sent)));
            }
        }
        let accepted: Vec<_> = accepted.iter().map(|(at, sent)| (at.clone(), sent)).collect();
        let expected: Vec<_> = current(&accepted).into_iter().collect();
        returned += expected.len();
        // Only one of the orders, because the queries take half of the time.
        let order = *rng.pick(&["asc", "desc"]);
        let limit = 1 + expected.len() / rng.in_range(1, 3);
        let mut all = all_pages(&step, event.clone(), sensor, order, limit).await;
        if order == "desc" {
            all.reverse();
        }
        let difference = all.iter().zip(&expected).find(|(a, b)| a != b);
        assert!(all == expected, "{sensor} {order} {limit}: the first is {difference:?}");
    }
    returned
}

impl Checker {
    /// Returns a series with the pieces that do not differ from what is stored. The others were refused.
    fn accepted(&self, sent: &Sent) -> Sent {
        let state = self.state.borrow();
        let stored = state.stored.get(&sent.key);
        let is_stored = |piece: &Samples| {
            piece.iter().all(|(at, it)| stored.is_some_and(|stored| stored.get(at) == Some(it)))
        };
        let samples = pieces(&sent.samples).into_iter().filter(is_stored).flatten().collect();
        Sent { samples, ..sent.clone() }
    }
}

/// Returns the samples of a sensor as the API returns them, with at most `limit` on a page.
async fn all_pages(
    step: &GetReadings,
    mut event: Value,
    sensor: SensorId,
    order: &str,
    limit: usize,
) -> Vec<(i64, Content)> {
    event["pathParameters"] = json!({ "sensorId": sensor });
    event["queryStringParameters"] = json!({
        "limit": limit.to_string(),
        "order": order,
        "quality": "all",
        "values": "raw",
        "flags": "true",
    });
    let mut all = Vec::new();
    loop {
        let request = serde_json::from_value(event.clone()).expect("an event of API Gateway");
        let page = step.handle(&default_caller(), &request).await.expect("a page");
        let response = serde_json::to_value(response(Ok(page))).expect("JSON");
        let body = response["body"].as_str().expect("a body");
        let mut body: Value = serde_json::from_str(body).expect("JSON");
        let samples: Vec<QualifiedSample> =
            serde_json::from_value(body["samples"].take()).expect("samples");
        assert!(samples.len() <= limit);
        all.extend(samples.into_iter().map(|QualifiedSample { sample, qualifiers }| {
            (sample.at.millis(), Content::of(sample, &qualifiers))
        }));
        match body["next"].take() {
            Value::Null => return all,
            next => event["queryStringParameters"]["next"] = next,
        }
    }
}

/// Checks that each message in the quarantine has the whole record and the expected error.
fn assert_quarantine_matches_poison(checker: &Checker) -> BTreeMap<String, u32> {
    let state = checker.state.borrow();
    let mut errors = BTreeMap::new();
    for message in checker.cloud.messages() {
        let record = &message["record"];
        let put = &checker.workload.puts[checker.workload.put_of(&message)];
        let sent = checker.workload.event(&[Rc::clone(&put.record)])["Records"][0].take();
        for field in ["partitionKey", "sequenceNumber", "data", "approximateArrivalTimestamp"] {
            assert_eq!(record["kinesis"][field], sent["kinesis"][field]);
        }
        assert_eq!(record["eventID"], sent["eventID"]);
        assert_eq!(record["eventSourceARN"], sent["eventSourceARN"]);
        assert_eq!(message["source"], "store-readings");
        assert!(message["reason"].as_str().is_some_and(|reason| reason.len() > 10), "{message}");
        let error = message["error"].as_str().expect("an error");
        if let Some(expected) = put.error {
            assert_eq!(error, expected, "{message}");
        } else {
            let differs = |sent: &Sent| {
                let stored = &state.stored[&sent.key];
                sent.samples.iter().any(|(at, content)| stored.get(at) != Some(content))
            };
            let is_conflict = error == "BundleConflict" && put.sent.iter().any(differs);
            let is_early = error == "UnknownSensor" && put.waits;
            assert!(is_conflict || is_early, "a valid record was set aside: {message}");
        }
        *errors.entry(error.to_owned()).or_default() += 1;
    }
    errors
}

fn assert_no_violation(checker: &Checker) {
    let violations = &checker.state.borrow().violations;
    let mut text = violations.join("\n");
    for (index, Put { record, sent, error, .. }) in checker.workload.puts.iter().enumerate() {
        let Record { partition_key, sequence_number, .. } = &**record;
        write!(text, "\nrecord {index}: {partition_key} {sequence_number} {error:?} {sent:?}")
            .expect("text");
    }
    assert!(violations.is_empty(), "{text}");
}

/// The events of the mapping, except those that would be a defect of this function.
const MAPPING_EVENTS: [MappingEvent; 12] = [
    MappingEvent::Delivered,
    MappingEvent::Done,
    MappingEvent::Progressed,
    MappingEvent::Stuck,
    MappingEvent::Crashed,
    MappingEvent::ResponseLost,
    MappingEvent::PollerReplaced,
    MappingEvent::Repeated,
    MappingEvent::Halved,
    MappingEvent::Exhausted,
    MappingEvent::Expired,
    MappingEvent::ColdStart,
];

fn add<K: Ord>(sums: &mut BTreeMap<K, u32>, counts: BTreeMap<K, u32>) {
    for (kind, count) in counts {
        *sums.entry(kind).or_default() += count;
    }
}

#[test]
fn no_sample_is_lost_or_stored_twice_under_faults() {
    let mut all = Counts::default();
    let count = seed_count(SEEDS.0, SEEDS.1);
    for counts in seeds(count, simulate) {
        add(&mut all.faults, counts.faults);
        add(&mut all.mapping_events, counts.mapping_events);
        add(&mut all.poisons, counts.poisons);
        add(&mut all.kinds, counts.kinds);
        add(&mut all.errors, counts.errors);
        all.stored_later.0 += counts.stored_later.0;
        all.stored_later.1 += counts.stored_later.1;
        all.returned += counts.returned;
        all.samples += counts.samples;
        all.shards = all.shards.max(counts.shards);
    }
    let Counts { faults, mapping_events, poisons, kinds, errors, stored_later, .. } = all;
    let Counts { samples, returned, shards, .. } = all;
    eprintln!("{faults:?}\n{mapping_events:?}\n{poisons:?}\n{kinds:?}\n{errors:?}");
    eprintln!("{stored_later:?} records of late sensors from the hold queue and by replays");
    eprintln!("{samples} samples, {returned} of them returned, at most {shards} shards");
    if all_seeds() {
        assert!(samples >= 75 * usize::try_from(count).expect("small"), "only {samples} samples");
        assert!(
            CallFault::ALL.iter().all(|kind| faults.contains_key(kind)),
            "a kind of fault never occurred"
        );
        assert!(
            MAPPING_EVENTS.iter().all(|kind| mapping_events.contains_key(kind)),
            "a mapping event never occurred"
        );
        assert!(
            POISON_KINDS.iter().all(|kind| poisons.contains_key(kind)),
            "a kind of poison never occurred"
        );
        assert!(
            KINDS.iter().all(|kind| kinds.contains_key(kind)),
            "a kind of bundle was never sent"
        );
        assert!(errors.contains_key("BundleConflict"), "no conflict occurred");
        assert!(stored_later.0 > 30 && stored_later.1 > 30, "late sensors are too rare");
        assert!(returned < samples * 9 / 10, "the bundles overlap too rarely");
        assert!(shards > 3, "the stream was resharded too rarely");
    }
}

#[test]
fn runs_with_the_same_seed_are_equal() {
    let mut compared = 0;
    for seed in 1..=20 {
        let runs = [simulate(seed), simulate(seed)];
        let [first, second] = runs.map(|run| if run.paused { run.before_pause() } else { run });
        assert_eq!(first, second, "seed {seed}");
        compared += u32::from(!first.paused);
    }
    assert!(compared >= 5, "only {compared} runs were compared completely");
}
