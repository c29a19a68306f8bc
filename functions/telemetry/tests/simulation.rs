//! Simulates store-readings under faults in all its dependencies, in thousands of runs. Each run is determined by
//! its seed; `SEED=123 cargo test -p telemetry --test simulation` repeats one.
//!
//! A run puts valid bundles and poison records on a stream. A model of Lambda's event source mapping delivers them:
//! partially, repeatedly, after crashes, and from a resharded stream. The test asserts that no sample is ever lost,
//! changed or stored twice, and that an error in one site's lane does not affect other sites.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write,
    hash::{DefaultHasher, Hash, Hasher},
    io::Write as _,
    panic::AssertUnwindSafe,
    rc::Rc,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{
    Metric, OperatorId, SensorId, SiteId, Timestamp,
    readings::{Bundle, Series},
    sample::Sample,
};
use flate2::{Compression, write::GzEncoder};
use futures_util::{FutureExt, future::LocalBoxFuture};
use lambda::Deadline;
use quarantine::Quarantine;
use serde_json::{Value, json, value::to_raw_value};
use series::{SeriesRow, packing::unpack};
use telemetry::{
    SensorRow, hold::Hold, register::Register, series_store::SeriesStore,
    store_readings::StoreReadings,
};
use testkit::{
    cloud::{self, CallFault, Cloud, Entry},
    dynamo::READINGS,
    mapping::{FaultRates, Function, Mapping, MappingEvent, Record, Settings, Stream, event},
    rng::{Rng, all_seeds, seeds},
    sample::{noon, saga, sensors},
};
use tokio::time::{Instant, sleep};

const SEEDS: u64 = 2_000;

/// The part of the function's time that is reserved for the response, as in production.
const RESPONSE_MARGIN: Duration = Duration::from_millis(500);

/// The times in milliseconds and the bits of the values.
type SampleBits = Vec<(i64, u64)>;
/// `sensorId` and `row`.
type RowKey = (String, String);
type Rows = BTreeMap<RowKey, SampleBits>;

/// The expected outcome of a record.
#[derive(Clone, Debug)]
enum ExpectedOutcome {
    /// These rows are stored. If a row with one of the keys has different samples, the record is also quarantined.
    Stored(Rows),
    /// The record is quarantined under this error, and these rows of its other series are stored.
    Quarantined(&'static str, Rows),
}

impl ExpectedOutcome {
    /// Returns the rows that are stored.
    fn rows(&self) -> &Rows {
        let (Self::Stored(rows) | Self::Quarantined(_, rows)) = self;
        rows
    }
}

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
}

const POISON_KINDS: [Poison; 9] = [
    Poison::NotJson,
    Poison::NotGzip,
    Poison::TruncatedGzip,
    Poison::WrongKey,
    Poison::TooFarAhead,
    Poison::Unsorted,
    Poison::Unknown,
    Poison::Retired,
    Poison::OtherSite,
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
    sensors: Vec<SensorId>,
    retired: SensorId,
}

/// A record on the stream.
struct Put {
    record: Rc<Record>,
    expected: ExpectedOutcome,
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
    sites: Vec<Site>,
}

fn plain(bundle: &Bundle) -> Vec<u8> {
    serde_json::to_vec(bundle).expect("JSON")
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(data).expect("gzip");
    encoder.finish().expect("gzip")
}

fn bits(samples: &[Sample]) -> SampleBits {
    samples
        .iter()
        .map(|Sample { at, value, .. }| (at.millis(), value.expect("a value").to_bits()))
        .collect()
}

/// Returns the rows of a bundle. No row spans a day.
fn rows(bundle: &Bundle) -> Rows {
    let mut rows = Rows::new();
    for series in &bundle.series {
        let mut start = series.samples[0].at;
        for sample in &series.samples {
            if sample.at.millis() - start.millis() >= 24 * 60 * 60 * 1000 {
                start = sample.at;
            }
            let row = format!("{start}/{}", bundle.bundle_id);
            let row = rows.entry((series.sensor_id.to_string(), row)).or_default();
            row.extend(bits(&[*sample]));
        }
    }
    rows
}

/// Generates bundles.
struct BundleGenerator {
    rng: Rng,
    sites: Vec<Site>,
    bundles: u32,
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

    fn series(&mut self, sensor: SensorId, start: Timestamp) -> Series {
        let mut at = start;
        let mut samples = Vec::new();
        let fast = self.rng.percent(25);
        let (min, max) = if fast { (100, 400) } else { (1, 4) };
        for _ in 0..self.rng.in_range(min, max) {
            samples.push(Sample::new(at, self.value()));
            let gap = !fast && self.rng.percent(5);
            let max = if gap { 30 * 60 * 60 * 1000 } else { 120_000 };
            at = at.plus_millis(1 + i64::try_from(self.rng.below(max)).expect("a time"));
        }
        Series::new(sensor, samples)
    }

    fn bundle(&mut self, site: usize) -> Bundle {
        self.bundles += 1;
        // Some bundles are older than bundles that were sent before.
        let minute = if self.rng.percent(20) {
            self.rng.below(u64::from(self.bundles))
        } else {
            u64::from(self.bundles)
        };
        let start = noon(60 * i64::try_from(minute).expect("a time"));
        let Site { id, sensors, .. } = self.sites[site].clone();
        let count = self.rng.in_range(1, sensors.len());
        let series = sensors[..count].iter().map(|&sensor| self.series(sensor, start)).collect();
        let bundle_id = format!("b-{}", self.bundles).parse().expect("a bundle id");
        Bundle::new(bundle_id, id, series)
    }

    /// Returns the partition key and the data of a record that can never be stored completely, and the rows that are
    /// stored.
    fn poison(&mut self, poison: Poison, site: usize) -> (String, Vec<u8>, Rows) {
        let mut bundle = self.bundle(site);
        let mut key = bundle.site_id.to_string();
        let other_site = self.sites[(site + 1) % self.sites.len()].sensors[0];
        let at = bundle.series[0].samples[0].at;
        let mut good = Rows::new();
        // The rows of all series but the first.
        let others = |bundle: &Bundle| {
            let mut bundle = bundle.clone();
            bundle.series.remove(0);
            rows(&bundle)
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
                good = rows(&bundle);
                let series = self.series(sensor, at);
                bundle.series.push(series);
                plain(&bundle)
            }
        };
        (key, data, good)
    }
}

impl Workload {
    fn make(rng: &mut Rng) -> Self {
        let sites: Vec<_> = (0..rng.in_range(2, 4))
            .map(|n| {
                let saga = saga(&format!("site-{n}"));
                let ids = sensors(saga, &[Metric::AirTemperature; 4]);
                let ids: Vec<_> = ids.iter().map(|sensor| sensor.sensor_id).collect();
                let count = rng.in_range(1, 3);
                Site { id: saga.site_id, sensors: ids[..count].to_vec(), retired: ids[3] }
            })
            .collect();
        let mut workload = Self {
            stream: Stream::new(rng.fork()),
            puts: Vec::new(),
            by_number: HashMap::new(),
            lanes_of: HashMap::new(),
            poisons: BTreeMap::new(),
            sites: sites.clone(),
        };
        let mut generator = BundleGenerator { rng: rng.fork(), sites, bundles: 0 };
        let mut sent: Vec<Bundle> = Vec::new();
        let mut at = Duration::ZERO;
        let spread = *rng.pick(&[0, 500, 20_000]);
        for _ in 0..rng.in_range(5, 13) {
            at += Duration::from_millis(rng.below(spread));
            if rng.percent(7) {
                workload.stream.reshard();
            }
            let site = rng.index(workload.sites.len());
            let repeated = (!sent.is_empty()).then(|| rng.pick(&sent).clone());
            let (key, data, expected) = match (rng.below(100), repeated) {
                (0..20, _) => {
                    let poison = *rng.pick(&POISON_KINDS);
                    *workload.poisons.entry(poison).or_default() += 1;
                    let (key, data, good) = generator.poison(poison, site);
                    (key, data, ExpectedOutcome::Quarantined(poison.error(), good))
                }
                // A repeated bundle.
                (20..35, Some(bundle)) => {
                    let data = serde_json::to_vec_pretty(&bundle).expect("JSON");
                    (bundle.site_id.to_string(), data, ExpectedOutcome::Stored(rows(&bundle)))
                }
                // The same bundle id with another value. The keys of the other series may be new.
                (35..43, Some(mut bundle)) => {
                    let new = rng.percent(50);
                    let (series, others) = bundle.series.split_last_mut().expect("a series");
                    series.samples[0] = Sample::new(series.samples[0].at, generator.value());
                    for series in others.iter_mut().filter(|_| new) {
                        series.samples[0].at = series.samples[0].at.plus_millis(-1);
                    }
                    (
                        bundle.site_id.to_string(),
                        plain(&bundle),
                        ExpectedOutcome::Stored(rows(&bundle)),
                    )
                }
                _ => {
                    let bundle = generator.bundle(site);
                    sent.push(bundle.clone());
                    (
                        bundle.site_id.to_string(),
                        plain(&bundle),
                        ExpectedOutcome::Stored(rows(&bundle)),
                    )
                }
            };
            let compressed = matches!(expected, ExpectedOutcome::Stored(_)) && rng.percent(30);
            let data = if compressed { gzip(&data) } else { data };
            workload.put(&key, data, expected, at);
        }
        workload
    }

    fn put(&mut self, key: &str, data: Vec<u8>, expected: ExpectedOutcome, at: Duration) {
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
        self.by_number.insert(record.sequence_number.clone(), self.puts.len());
        self.puts.push(Put { record, expected, index });
    }
}

/// The state of the checks during a run: how much of the log was read, and the violations that were found.
#[derive(Default)]
struct CheckState {
    log_position: usize,
    stored: Rows,
    /// The errors of the quarantined records, by record.
    quarantined: HashMap<usize, BTreeSet<String>>,
    given_up: BTreeSet<usize>,
    violations: Vec<String>,
}

struct Checker {
    cloud: Cloud,
    workload: Workload,
    state: RefCell<CheckState>,
}

impl Checker {
    /// Returns whether the record has its whole expected outcome.
    fn is_done(&self, state: &CheckState, put: usize) -> bool {
        let quarantined = state.quarantined.get(&put);
        match &self.workload.puts[put].expected {
            ExpectedOutcome::Quarantined(error, rows) => {
                quarantined.is_some_and(|errors| errors.contains(*error))
                    && rows.iter().all(|(key, bits)| state.stored.get(key) == Some(bits))
            }
            ExpectedOutcome::Stored(rows) => {
                let conflict =
                    || quarantined.is_some_and(|errors| errors.contains("BundleConflict"));
                let stored_bits = |key| state.stored.get(key);
                rows.keys().all(|key| stored_bits(key).is_some())
                    && (rows.iter().all(|(key, bits)| stored_bits(key) == Some(bits)) || conflict())
            }
        }
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
            match operation.as_str() {
                "PutItem" => {
                    let (key, bits) = row_of(&body["Item"]);
                    if effect {
                        if state.stored.insert(key.clone(), bits).is_some() {
                            state.violations.push(format!("{key:?} was written twice"));
                        }
                        continue;
                    }
                    // Finds the record with this row. If a bundle was sent twice, this is the first record.
                    let has_row = |put: &Put| put.expected.rows().get(&key) == Some(&bits);
                    match self.workload.puts.iter().position(has_row) {
                        Some(put) => self.check_order(state, put),
                        None => state.violations.push(format!("no record has the row {key:?}")),
                    }
                }
                "SendMessage" => {
                    let text = body["MessageBody"].as_str().expect("a message");
                    let message: Value = serde_json::from_str(text).expect("JSON");
                    let number = &message["record"]["kinesis"]["sequenceNumber"];
                    let put = self.workload.by_number[number.as_str().expect("a number")];
                    if effect {
                        let error = message["error"].as_str().expect("an error").to_owned();
                        state.quarantined.entry(put).or_default().insert(error);
                    } else {
                        self.check_order(state, put);
                    }
                }
                _ => {}
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

fn row_of(item: &Value) -> (RowKey, SampleBits) {
    let text = |name: &str| item[name]["S"].as_str().expect("a text").to_owned();
    let packed = STANDARD.decode(item["samples"]["B"].as_str().expect("bytes")).expect("base64");
    let samples = unpack(&packed).expect("samples");
    ((text("sensorId"), text("row")), bits(&samples))
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
            hold: Hold { queues: cloud.queues(), url: "http://cloud/hold".to_owned() },
            quarantine: Quarantine {
                queues: cloud.queues(),
                url: "http://cloud/quarantine".to_owned(),
                source: "store-readings",
            },
            // The readings have fixed dates.
            max_age_days: 36_500,
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
            let payload = to_raw_value(&event(&records)).expect("JSON");
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
    errors: BTreeMap<String, u32>,
    /// The number of samples that are stored at the end.
    samples: usize,
    shards: usize,
    /// A hash of the order of all calls and effects.
    log: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum FaultLevel {
    NoFaults,
    /// The partition of one site is throttled.
    OneSite,
    AllCalls,
}

fn simulate(seed: u64) -> Counts {
    let mut rng = Rng::from_seed(seed);
    let cloud = Cloud::new(rng.fork());
    let workload = Workload::make(&mut rng);
    for site in &workload.sites {
        for &sensor in site.sensors.iter().chain([&site.retired]) {
            let described = sensors(saga("any"), &[Metric::AirTemperature]).remove(0);
            let retired_at = (sensor == site.retired).then(|| noon(0));
            let row = SensorRow {
                site_id: site.id,
                operator_id: OperatorId::DEFAULT,
                sensor: Some(described),
                retired_at,
                sensor_sequence: None,
                changes: 0,
            };
            let mut row = serde_json::to_value(row).expect("JSON");
            row["sensorId"] = json!(sensor);
            row["row"] = "SENSOR".into();
            cloud.put(READINGS, row);
        }
    }
    let fault_level = match rng.below(100) {
        0..10 => FaultLevel::NoFaults,
        10..30 => FaultLevel::OneSite,
        _ => FaultLevel::AllCalls,
    };
    let settings = Settings {
        batch_size: rng.in_range(1, 12),
        full_batches: rng.percent(40),
        parallelization_factor: 1 + rng.below(3),
        bisects: rng.percent(70),
        max_retries: *rng.pick(&[1, 3, 8]),
        max_age: Duration::from_secs(*rng.pick(&[60, 3_600])),
        timeout: Duration::from_secs(*rng.pick(&[4, 30])),
    };
    let fault_rates = match fault_level {
        FaultLevel::NoFaults => FaultRates::default(),
        _ => FaultRates { crash: 5, lost_response: 5, replaced_poller: 3, repeat: 10 },
    };
    let register_age = Duration::from_secs(*rng.pick(&[0, 60]));
    let (percent, blocked, blocked_for) =
        (1 + rng.below(20), rng.index(workload.sites.len()), 1 + rng.below(240));
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
        mapping.run(&checker.workload.stream).await;
        // Waits for invocations that still run in the background and for late effects.
        sleep(Duration::from_mins(2)).await;
        cloud.stop_faults();
        checker.read_log();
        assert_no_violation(&checker);
        assert_all_done_or_given_up(&checker, fault_level);

        // The operator replays the records that Lambda gave up on.
        let given_up: Vec<_> = checker.state.borrow().given_up.iter().copied().collect();
        replay(&mapping, &checker, &given_up).await;
        for put in 0..checker.workload.puts.len() {
            let is_done = checker.is_done(&checker.state.borrow(), put);
            assert!(is_done, "record {put} is lost: {:?}", checker.workload.puts[put].expected);
        }

        assert_rows_match_records(&checker);
        if rng.percent(25) {
            let (before, units) = (cloud.rows(READINGS), cloud.write_units());
            let all: Vec<_> = (0..checker.workload.puts.len()).collect();
            replay(&mapping, &checker, &all).await;
            assert_eq!(cloud.rows(READINGS), before, "a repeated record changed a row");
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
        Counts {
            faults: cloud.faults(),
            mapping_events,
            poisons: checker.workload.poisons.clone(),
            errors,
            samples: checker.state.borrow().stored.values().map(Vec::len).sum(),
            shards: checker.workload.stream.shards(),
            log: digest(&cloud.log_from(0)),
        }
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

/// Checks that each row has the samples that were sent under its key, bit for bit, and that there are no other rows.
fn assert_rows_match_records(checker: &Checker) {
    let state = checker.state.borrow();
    let rows = checker.cloud.rows(READINGS);
    let series: Vec<_> = rows.iter().filter(|row| row["row"]["S"] != "SENSOR").collect();
    assert_eq!(series.len(), state.stored.len());
    for row in series {
        let (key, bits) = row_of(row);
        let puts = &checker.workload.puts;
        let sent = puts.iter().any(|put| put.expected.rows().get(&key) == Some(&bits));
        assert!(sent, "no record has the row {key:?} {bits:?}");
        let row: SeriesRow = cloud::read(row);
        assert_eq!(Some(row.end), bits.last().map(|(at, _)| *at), "{key:?}");
    }
}

/// Checks that each message in the quarantine has the whole record and the expected error.
fn assert_quarantine_matches_poison(checker: &Checker) -> BTreeMap<String, u32> {
    let state = checker.state.borrow();
    let mut errors = BTreeMap::new();
    for message in checker.cloud.messages() {
        let record = &message["record"];
        let number = record["kinesis"]["sequenceNumber"].as_str().expect("a number");
        let put = &checker.workload.puts[checker.workload.by_number[number]];
        let sent = put.record.event();
        for field in ["partitionKey", "sequenceNumber", "data", "approximateArrivalTimestamp"] {
            assert_eq!(record["kinesis"][field], sent["kinesis"][field]);
        }
        assert_eq!(record["eventID"], sent["eventID"]);
        assert_eq!(record["eventSourceARN"], sent["eventSourceARN"]);
        assert_eq!(message["source"], "store-readings");
        assert!(message["reason"].as_str().is_some_and(|reason| reason.len() > 10), "{message}");
        let error = message["error"].as_str().expect("an error");
        match &put.expected {
            ExpectedOutcome::Quarantined(expected, _) => assert_eq!(error, *expected, "{message}"),
            ExpectedOutcome::Stored(rows) => {
                let other = rows.iter().any(|(key, bits)| state.stored.get(key) != Some(bits));
                assert!(
                    error == "BundleConflict" && other,
                    "a valid record was quarantined: {message}"
                );
            }
        }
        *errors.entry(error.to_owned()).or_default() += 1;
    }
    errors
}

fn assert_no_violation(checker: &Checker) {
    let violations = &checker.state.borrow().violations;
    let mut text = violations.join("\n");
    for (index, Put { record, expected, .. }) in checker.workload.puts.iter().enumerate() {
        let Record { partition_key, sequence_number, .. } = &**record;
        write!(text, "\nrecord {index}: {partition_key} {sequence_number} {expected:?}")
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
    for counts in seeds(SEEDS, simulate) {
        add(&mut all.faults, counts.faults);
        add(&mut all.mapping_events, counts.mapping_events);
        add(&mut all.poisons, counts.poisons);
        add(&mut all.errors, counts.errors);
        all.samples += counts.samples;
        all.shards = all.shards.max(counts.shards);
    }
    let Counts { faults, mapping_events, poisons, errors, samples, shards, .. } = all;
    eprintln!("{faults:?}\n{mapping_events:?}\n{poisons:?}\n{errors:?}");
    eprintln!("{samples} samples, at most {shards} shards");
    if all_seeds() {
        assert!(samples >= 1_000_000, "only {samples} samples");
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
        assert!(errors.contains_key("BundleConflict"), "no conflict occurred");
        assert!(shards > 3, "the stream was resharded too rarely");
    }
}

#[test]
fn runs_with_the_same_seed_are_equal() {
    for seed in 1..=20 {
        assert_eq!(simulate(seed), simulate(seed), "seed {seed}");
    }
}
