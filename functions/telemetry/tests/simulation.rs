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
    Metric, SensorId, SiteId, Timestamp,
    readings::{Bundle, Sample, Series},
};
use flate2::{Compression, write::GzEncoder};
use futures_util::{FutureExt, future::LocalBoxFuture};
use lambda::Deadline;
use quarantine::Quarantine;
use serde_json::{Value, json, value::to_raw_value};
use series::{SeriesRow, packing::unpack};
use telemetry::{SensorRow, register::Register, store_readings::StoreReadings};
use testkit::{
    chance::{Chance, all_seeds, seeds},
    cloud::{self, Cloud, Entry, Fault},
    dynamo::READINGS,
    mapping::{Disorder, Function, Happening, Mapping, Record, Settings, Stream, event},
    sample::{noon, saga, sensors},
};
use tokio::time::{Instant, sleep};

const SEEDS: u64 = 2_000;

/// The part of the function's time that is reserved for the response, as in production.
const RESPONSE_MARGIN: Duration = Duration::from_millis(500);

/// The times in milliseconds and the bits of the values.
type Bits = Vec<(i64, u64)>;
/// `sensorId` and `row`.
type RowKey = (String, String);
type Rows = BTreeMap<RowKey, Bits>;

/// The expected outcome of a record.
#[derive(Clone, Debug)]
enum Fate {
    /// These rows are stored. If a row with one of the keys has different samples, the record is also quarantined.
    Stored(Rows),
    /// The record is quarantined under this error.
    SetAside(&'static str),
}

/// The kinds of invalid records in the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Poison {
    NotJson,
    NotGzip,
    CutGzip,
    WrongKey,
    TooFarAhead,
    Unsorted,
    Unknown,
    Retired,
    Foreign,
}

const POISONS: [Poison; 9] = [
    Poison::NotJson,
    Poison::NotGzip,
    Poison::CutGzip,
    Poison::WrongKey,
    Poison::TooFarAhead,
    Poison::Unsorted,
    Poison::Unknown,
    Poison::Retired,
    Poison::Foreign,
];

impl Poison {
    fn error(self) -> &'static str {
        match self {
            Self::Unknown => "UnknownSensor",
            Self::Retired => "RetiredSensor",
            Self::Foreign => "SensorOfAnotherSite",
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
    fate: Fate,
    /// The record's index among the records of its partition key.
    place: usize,
}

/// The records on the stream and the data about them.
struct Workload {
    stream: Stream,
    puts: Vec<Put>,
    by_number: HashMap<String, usize>,
    /// The lanes that a fault of a sensor can stop, by sensor.
    lanes_of: HashMap<String, BTreeSet<String>>,
    poisons: BTreeMap<Poison, u32>,
    sites: Vec<Site>,
}

fn plain(bundle: &Bundle) -> Vec<u8> {
    serde_json::to_vec(bundle).expect("JSON")
}

fn packed(data: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(data).expect("gzip");
    gzip.finish().expect("gzip")
}

fn bits(samples: &[Sample]) -> Bits {
    samples.iter().map(|Sample(at, value)| (at.millis(), value.to_bits())).collect()
}

/// Returns the rows of a bundle. No row spans a day.
fn rows(bundle: &Bundle) -> Rows {
    let mut rows = Rows::new();
    for series in &bundle.series {
        let mut start = series.samples[0].0;
        for sample in &series.samples {
            if sample.0.millis() - start.millis() >= 24 * 60 * 60 * 1000 {
                start = sample.0;
            }
            let row = format!("{start}/{}", bundle.bundle_id);
            let row = rows.entry((series.sensor_id.to_string(), row)).or_default();
            row.extend(bits(&[*sample]));
        }
    }
    rows
}

/// Generates bundles.
struct Loggers {
    chance: Chance,
    sites: Vec<Site>,
    bundles: u32,
}

impl Loggers {
    fn value(&mut self) -> f64 {
        let odd = [0.0, -0.0, f64::MIN_POSITIVE / 4.0, f64::MAX, f64::MIN, 0.1 + 0.2, 1e23];
        let any = f64::from_bits(self.chance.number());
        match self.chance.below(4) {
            0 => *self.chance.pick(&odd),
            1 if any.is_finite() => any,
            _ => f64::from(u32::try_from(self.chance.below(1000)).expect("a small number")) / 8.0,
        }
    }

    fn series(&mut self, sensor: SensorId, start: Timestamp) -> Series {
        let mut at = start;
        let mut samples = Vec::new();
        let fast = self.chance.percent(25);
        let (least, most) = if fast { (100, 400) } else { (1, 4) };
        for _ in 0..self.chance.within(least, most) {
            samples.push(Sample(at, self.value()));
            let gap = !fast && self.chance.percent(5);
            let most = if gap { 30 * 60 * 60 * 1000 } else { 120_000 };
            at = at.plus_millis(1 + i64::try_from(self.chance.below(most)).expect("a time"));
        }
        Series { sensor_id: sensor, samples }
    }

    fn bundle(&mut self, site: usize) -> Bundle {
        self.bundles += 1;
        // Some bundles are older than bundles that were sent before.
        let minute = if self.chance.percent(20) {
            self.chance.below(u64::from(self.bundles))
        } else {
            u64::from(self.bundles)
        };
        let start = noon(60 * i64::try_from(minute).expect("a time"));
        let Site { id, sensors, .. } = self.sites[site].clone();
        let some = self.chance.within(1, sensors.len());
        let series = sensors[..some].iter().map(|&sensor| self.series(sensor, start)).collect();
        let bundle_id = format!("b-{}", self.bundles).parse().expect("a bundle id");
        Bundle { bundle_id, site_id: id, series }
    }

    /// Returns a record's partition key and data that can never be stored.
    fn poison(&mut self, poison: Poison, site: usize) -> (String, Vec<u8>) {
        let mut bundle = self.bundle(site);
        let mut key = bundle.site_id.to_string();
        let foreign = self.sites[(site + 1) % self.sites.len()].sensors[0];
        let at = bundle.series[0].samples[0].0;
        let data = match poison {
            Poison::NotJson => b"{\"bundleId\": 1".to_vec(),
            Poison::NotGzip => vec![0x1f, 0x8b, 1, 2, 3],
            Poison::CutGzip => {
                let whole = packed(&plain(&bundle));
                whole[..whole.len() / 2].to_vec()
            }
            Poison::WrongKey => {
                key = format!("logger-{site}");
                plain(&bundle)
            }
            Poison::TooFarAhead => {
                let ahead = "2199-01-01T00:00:00Z".parse().expect("a time");
                bundle.series[0].samples.push(Sample(ahead, 1.0));
                plain(&bundle)
            }
            Poison::Unsorted => {
                bundle.series[0].samples.push(Sample(at, 1.0));
                plain(&bundle)
            }
            Poison::Unknown | Poison::Retired | Poison::Foreign => {
                let sensor = match poison {
                    Poison::Unknown => {
                        SensorId::from_onboarding(saga("nobody").onboarding_id, site)
                    }
                    Poison::Retired => self.sites[site].retired,
                    _ => foreign,
                };
                let series = self.series(sensor, at);
                bundle.series.push(series);
                plain(&bundle)
            }
        };
        (key, data)
    }
}

impl Workload {
    fn make(chance: &mut Chance) -> Self {
        let sites: Vec<_> = (0..chance.within(2, 4))
            .map(|n| {
                let saga = saga(&format!("site-{n}"));
                let ids = sensors(saga, &[Metric::AirTemperature; 4]);
                let ids: Vec<_> = ids.iter().map(|sensor| sensor.sensor_id).collect();
                let some = chance.within(1, 3);
                Site { id: saga.site_id, sensors: ids[..some].to_vec(), retired: ids[3] }
            })
            .collect();
        let mut it = Self {
            stream: Stream::new(chance.fork()),
            puts: Vec::new(),
            by_number: HashMap::new(),
            lanes_of: HashMap::new(),
            poisons: BTreeMap::new(),
            sites: sites.clone(),
        };
        let mut loggers = Loggers { chance: chance.fork(), sites, bundles: 0 };
        let mut sent: Vec<Bundle> = Vec::new();
        let mut at = Duration::ZERO;
        let spread = *chance.pick(&[0, 500, 20_000]);
        for _ in 0..chance.within(5, 13) {
            at += Duration::from_millis(chance.below(spread));
            if chance.percent(7) {
                it.stream.reshard();
            }
            let site = chance.place(it.sites.len());
            let again = (!sent.is_empty()).then(|| chance.pick(&sent).clone());
            let (key, data, fate) = match (chance.below(100), again) {
                (0..20, _) => {
                    let poison = *chance.pick(&POISONS);
                    *it.poisons.entry(poison).or_default() += 1;
                    let (key, data) = loggers.poison(poison, site);
                    (key, data, Fate::SetAside(poison.error()))
                }
                // A repeated bundle.
                (20..35, Some(bundle)) => {
                    let data = serde_json::to_vec_pretty(&bundle).expect("JSON");
                    (bundle.site_id.to_string(), data, Fate::Stored(rows(&bundle)))
                }
                // The same bundle id with another value. The keys of the other series may be new.
                (35..43, Some(mut bundle)) => {
                    let new = chance.percent(50);
                    let (series, others) = bundle.series.split_last_mut().expect("a series");
                    series.samples[0].1 = loggers.value();
                    for series in others.iter_mut().filter(|_| new) {
                        series.samples[0].0 = series.samples[0].0.plus_millis(-1);
                    }
                    (bundle.site_id.to_string(), plain(&bundle), Fate::Stored(rows(&bundle)))
                }
                _ => {
                    let bundle = loggers.bundle(site);
                    sent.push(bundle.clone());
                    (bundle.site_id.to_string(), plain(&bundle), Fate::Stored(rows(&bundle)))
                }
            };
            let squeezed = matches!(fate, Fate::Stored(_)) && chance.percent(30);
            let data = if squeezed { packed(&data) } else { data };
            it.put(&key, data, fate, at);
        }
        it
    }

    fn put(&mut self, key: &str, data: Vec<u8>, fate: Fate, at: Duration) {
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
        let place = self.puts.iter().filter(|put| put.record.partition_key == key).count();
        self.by_number.insert(record.sequence_number.clone(), self.puts.len());
        self.puts.push(Put { record, fate, place });
    }
}

/// The state of the checks during a run: the part of the log that was read, and the violations that were found.
#[derive(Default)]
struct Ledger {
    line: usize,
    stored: Rows,
    /// By record: the errors under which it is in the quarantine.
    set_aside: HashMap<usize, BTreeSet<String>>,
    given_up: BTreeSet<usize>,
    violations: Vec<String>,
}

struct Watch {
    cloud: Cloud,
    load: Workload,
    ledger: RefCell<Ledger>,
}

impl Watch {
    /// Returns whether the record has its whole expected outcome.
    fn done(&self, ledger: &Ledger, put: usize) -> bool {
        let set_aside = ledger.set_aside.get(&put);
        match &self.load.puts[put].fate {
            Fate::SetAside(error) => set_aside.is_some_and(|errors| errors.contains(*error)),
            Fate::Stored(rows) => {
                let conflict = || set_aside.is_some_and(|errors| errors.contains("BundleConflict"));
                let there = |key| ledger.stored.get(key);
                rows.keys().all(|key| there(key).is_some())
                    && (rows.iter().all(|(key, bits)| there(key) == Some(bits)) || conflict())
            }
        }
    }

    /// Reads the new entries of the log and checks the order of the calls.
    fn read_on(&self) {
        let ledger = &mut *self.ledger.borrow_mut();
        let news = self.cloud.log_from(ledger.line);
        ledger.line += news.len();
        for entry in news {
            let (operation, body, effect) = match &entry {
                Entry::Called { operation, body, .. } => (operation, body, false),
                Entry::Effect { operation, body } => (operation, body, true),
            };
            match operation.as_str() {
                "PutItem" => {
                    let (key, bits) = row_of(&body["Item"]);
                    if effect {
                        if ledger.stored.insert(key.clone(), bits).is_some() {
                            ledger.violations.push(format!("{key:?} was written twice"));
                        }
                        continue;
                    }
                    // The first put of a bundle that was sent twice.
                    let of = |put: &Put| match &put.fate {
                        Fate::Stored(rows) => rows.get(&key) == Some(&bits),
                        Fate::SetAside(_) => false,
                    };
                    match self.load.puts.iter().position(of) {
                        Some(put) => self.in_order(ledger, put),
                        None => ledger.violations.push(format!("nobody sent {key:?}")),
                    }
                }
                "SendMessage" => {
                    let text = body["MessageBody"].as_str().expect("a message");
                    let message: Value = serde_json::from_str(text).expect("JSON");
                    let number = &message["record"]["kinesis"]["sequenceNumber"];
                    let put = self.load.by_number[number.as_str().expect("a number")];
                    if effect {
                        let error = message["error"].as_str().expect("an error").to_owned();
                        ledger.set_aside.entry(put).or_default().insert(error);
                    } else {
                        self.in_order(ledger, put);
                    }
                }
                _ => {}
            }
        }
    }

    /// Checks that no record is begun before the earlier records of its partition key are done.
    fn in_order(&self, ledger: &mut Ledger, put: usize) {
        let begun = &self.load.puts[put];
        let key = &begun.record.partition_key;
        for (earlier, before) in self.load.puts.iter().enumerate() {
            let same = before.record.partition_key == *key && before.place < begun.place;
            if same && !ledger.given_up.contains(&earlier) && !self.done(ledger, earlier) {
                let text = format!("record {put} was begun before record {earlier} was done");
                ledger.violations.push(text);
            }
        }
    }

    /// Returns the lanes that met a fault since the given line of the log.
    fn troubled(&self, line: usize) -> BTreeSet<String> {
        let mut lanes = BTreeSet::new();
        for entry in self.cloud.log_from(line) {
            let Entry::Called { operation, body, fault: Some(_) } = entry else { continue };
            if operation == "SendMessage" {
                let text = body["MessageBody"].as_str().expect("a message");
                let message: Value = serde_json::from_str(text).expect("JSON");
                let key = message["record"]["kinesis"]["partitionKey"].as_str().expect("a key");
                lanes.insert(key.to_owned());
                continue;
            }
            let text = body.to_string();
            for (sensor, of_sensor) in &self.load.lanes_of {
                if text.contains(sensor) {
                    lanes.extend(of_sensor.iter().cloned());
                }
            }
        }
        lanes
    }

    /// Checks a response: no failed record is skipped, and no record fails without a fault in its own lane.
    fn answered(&self, records: &[Rc<Record>], answer: &Result<Value, String>, call: Call) {
        self.read_on();
        let ledger = &mut *self.ledger.borrow_mut();
        let mut violations = Vec::new();
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                ledger.violations.push(format!("the whole batch failed: {error}"));
                return;
            }
        };
        let troubled = self.troubled(call.line);
        let in_time = call.begun.elapsed() < call.time;
        let failures = answer["batchItemFailures"].as_array().expect("a list of failures");
        let number = failures.first().map(|failure| &failure["itemIdentifier"]);
        let first = records.iter().position(|it| Some(&json!(it.sequence_number)) == number);
        if failures.len() > 1 || first.is_some() != number.is_some() {
            violations.push(format!("no answer for the batch: {answer}"));
        }
        for (place, record) in records.iter().enumerate() {
            let put = self.load.by_number[&record.sequence_number];
            let lane = &record.partition_key;
            let done = self.done(ledger, put);
            if !done && first.is_none_or(|first| place < first) {
                violations.push(format!("record {put} is skipped, and not done: {answer}"));
            }
            if !done && in_time && !troubled.contains(lane) {
                violations.push(format!("record {put} is not done, without trouble of its own"));
            }
            if first == Some(place) && in_time && !troubled.contains(lane) {
                violations.push(format!("record {put} comes again, without trouble of its own"));
            }
        }
        ledger.violations.extend(violations);
    }
}

/// An invocation.
#[derive(Clone, Copy)]
struct Call {
    /// The line of the log at which the invocation began.
    line: usize,
    begun: Instant,
    time: Duration,
}

fn row_of(item: &Value) -> (RowKey, Bits) {
    let text = |name: &str| item[name]["S"].as_str().expect("a text").to_owned();
    let packed = STANDARD.decode(item["samples"]["B"].as_str().expect("bytes")).expect("base64");
    let samples = unpack(&packed).expect("samples");
    ((text("sensorId"), text("row")), bits(&samples))
}

/// The function store-readings, as the mapping invokes it.
struct Consumer {
    watch: Rc<Watch>,
    register_age: Duration,
}

impl Function for Consumer {
    type Environment = StoreReadings;

    fn start(&self) -> StoreReadings {
        let cloud = &self.watch.cloud;
        let readings = cloud.table(READINGS);
        StoreReadings {
            register: Register::new(readings.clone(), self.register_age),
            readings,
            quarantine: Quarantine {
                queues: cloud.queues(),
                url: "http://cloud/quarantine".to_owned(),
                source: "store-readings",
            },
        }
    }

    fn invoke(
        &self,
        environment: Rc<StoreReadings>,
        records: Vec<Rc<Record>>,
        time: Duration,
    ) -> LocalBoxFuture<'static, Result<Value, String>> {
        let watch = Rc::clone(&self.watch);
        Box::pin(async move {
            let time = time.saturating_sub(RESPONSE_MARGIN);
            let call = Call { line: watch.cloud.log_length(), begun: Instant::now(), time };
            let payload = to_raw_value(&event(&records)).expect("JSON");
            let work = environment.handle(&payload, Deadline::after(time));
            let answer = match AssertUnwindSafe(work).catch_unwind().await {
                Ok(Ok(answer)) => Ok(serde_json::to_value(answer).expect("JSON")),
                Ok(Err(failure)) => Err(failure.to_string()),
                Err(_) => Err("a panic went through".to_owned()),
            };
            watch.answered(&records, &answer, call);
            answer
        })
    }

    fn gave_up(&self, records: &[Rc<Record>], file: Value) {
        self.watch.read_on();
        let ledger = &mut *self.watch.ledger.borrow_mut();
        let payload = file["payload"].as_str().expect("the event");
        assert_eq!(payload, event(records).to_string());
        let numbers =
            records.iter().map(|record| self.watch.load.by_number[&record.sequence_number]);
        ledger.given_up.extend(numbers);
    }
}

/// The counts of one run or of all runs.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    faults: BTreeMap<Fault, u32>,
    happenings: BTreeMap<Happening, u32>,
    poisons: BTreeMap<Poison, u32>,
    errors: BTreeMap<String, u32>,
    /// The number of samples that are stored at the end.
    samples: usize,
    shards: usize,
    /// A hash of the order of all calls and effects.
    log: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Weather {
    Calm,
    /// The partition of one site is throttled.
    OneSite,
    Storm,
}

fn simulate(seed: u64) -> Seen {
    let mut chance = Chance::from_seed(seed);
    let cloud = Cloud::new(chance.fork());
    let load = Workload::make(&mut chance);
    for site in &load.sites {
        for &sensor in site.sensors.iter().chain([&site.retired]) {
            let described = sensors(saga("any"), &[Metric::AirTemperature]).remove(0);
            let retired_at = (sensor == site.retired).then(|| noon(0));
            let row = SensorRow { site_id: site.id, sensor: Some(described), retired_at };
            let mut row = serde_json::to_value(row).expect("JSON");
            row["sensorId"] = json!(sensor);
            row["row"] = "SENSOR".into();
            cloud.put(READINGS, row);
        }
    }
    let weather = match chance.below(100) {
        0..10 => Weather::Calm,
        10..30 => Weather::OneSite,
        _ => Weather::Storm,
    };
    let settings = Settings {
        batch_size: chance.within(1, 12),
        full_batches: chance.percent(40),
        parallelization_factor: 1 + chance.below(3),
        bisects: chance.percent(70),
        most_retries: *chance.pick(&[1, 3, 8]),
        most_age: Duration::from_secs(*chance.pick(&[60, 3_600])),
        timeout: Duration::from_secs(*chance.pick(&[4, 30])),
    };
    let disorder = match weather {
        Weather::Calm => Disorder::default(),
        _ => Disorder { crash: 5, lost_answer: 5, replaced_poller: 3, repeat: 10 },
    };
    let register_age = Duration::from_secs(*chance.pick(&[0, 60]));
    let (percent, blocked, blocked_for) =
        (1 + chance.below(20), chance.place(load.sites.len()), 1 + chance.below(240));
    let watch = Rc::new(Watch { cloud: cloud.clone(), load, ledger: RefCell::default() });
    let consumer = Consumer { watch: Rc::clone(&watch), register_age };

    cloud::run(async {
        match weather {
            Weather::Calm => {}
            Weather::OneSite => {
                let texts = watch.load.sites[blocked].sensors.iter().map(ToString::to_string);
                cloud.throttle(texts.collect(), Duration::from_secs(blocked_for));
            }
            Weather::Storm => cloud.disturb(percent),
        }
        let mapping = Mapping::new(settings, disorder, chance.fork(), consumer);
        mapping.run(&watch.load.stream).await;
        // Waits for invocations that still run in the background and for late effects.
        sleep(Duration::from_mins(2)).await;
        cloud.calm();
        watch.read_on();
        assert_no_violation(&watch);
        assert_ended_well(&watch, weather);

        // The operator replays the records that Lambda gave up.
        let given_up: Vec<_> = watch.ledger.borrow().given_up.iter().copied().collect();
        replay(&mapping, &watch, &given_up).await;
        for put in 0..watch.load.puts.len() {
            let done = watch.done(&watch.ledger.borrow(), put);
            assert!(done, "record {put} is lost: {:?}", watch.load.puts[put].fate);
        }

        assert_rows_hold_what_was_sent(&watch);
        if chance.percent(25) {
            let (before, units) = (cloud.rows(READINGS), cloud.write_units());
            let all: Vec<_> = (0..watch.load.puts.len()).collect();
            replay(&mapping, &watch, &all).await;
            assert_eq!(cloud.rows(READINGS), before, "what came again changed something");
            assert_eq!(cloud.write_units().to_bits(), units.to_bits(), "what came again cost");
        }
        let errors = assert_quarantine_holds_poison(&watch);
        assert_no_violation(&watch);
        let happenings = mapping.happenings();
        assert!(!happenings.contains_key(&Happening::TimedOut), "no answer in time");
        Seen {
            faults: cloud.faults(),
            happenings,
            poisons: watch.load.poisons.clone(),
            errors,
            samples: watch.ledger.borrow().stored.values().map(Vec::len).sum(),
            shards: watch.load.stream.shards(),
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
async fn replay(mapping: &Mapping<Consumer>, watch: &Watch, puts: &[usize]) {
    let records: Vec<_> = puts.iter().map(|&put| Rc::clone(&watch.load.puts[put].record)).collect();
    let environment = Rc::new(mapping.function().start());
    let answer = mapping.function().invoke(environment, records, Duration::from_mins(1)).await;
    assert_eq!(answer, Ok(json!({ "batchItemFailures": [] })));
}

/// Checks that every record is done or was given up, and that none was given up without faults.
fn assert_ended_well(watch: &Watch, weather: Weather) {
    let ledger = watch.ledger.borrow();
    for put in 0..watch.load.puts.len() {
        let given_up = ledger.given_up.contains(&put);
        assert!(given_up || watch.done(&ledger, put), "record {put} is nowhere");
        assert!(!given_up || weather != Weather::Calm, "record {put} was given up in calm weather");
    }
}

/// Checks that each row has the samples that were sent under its key, bit for bit, and that there are no other rows.
fn assert_rows_hold_what_was_sent(watch: &Watch) {
    let ledger = watch.ledger.borrow();
    let rows = watch.cloud.rows(READINGS);
    let series: Vec<_> = rows.iter().filter(|row| row["row"]["S"] != "SENSOR").collect();
    assert_eq!(series.len(), ledger.stored.len());
    for row in series {
        let (key, bits) = row_of(row);
        let sent = watch.load.puts.iter().any(|put| match &put.fate {
            Fate::Stored(rows) => rows.get(&key) == Some(&bits),
            Fate::SetAside(_) => false,
        });
        assert!(sent, "nobody sent {key:?} {bits:?}");
        let row: SeriesRow = cloud::read(row);
        assert_eq!(Some(row.end), bits.last().map(|(at, _)| *at), "{key:?}");
    }
}

/// Checks that each message in the quarantine has the whole record and the expected error.
fn assert_quarantine_holds_poison(watch: &Watch) -> BTreeMap<String, u32> {
    let ledger = watch.ledger.borrow();
    let mut errors = BTreeMap::new();
    for message in watch.cloud.messages() {
        let record = &message["record"];
        let number = record["kinesis"]["sequenceNumber"].as_str().expect("a number");
        let put = &watch.load.puts[watch.load.by_number[number]];
        let sent = put.record.event();
        for field in ["partitionKey", "sequenceNumber", "data", "approximateArrivalTimestamp"] {
            assert_eq!(record["kinesis"][field], sent["kinesis"][field]);
        }
        assert_eq!(record["eventID"], sent["eventID"]);
        assert_eq!(record["eventSourceARN"], sent["eventSourceARN"]);
        assert_eq!(message["source"], "store-readings");
        assert!(message["reason"].as_str().is_some_and(|reason| reason.len() > 10), "{message}");
        let error = message["error"].as_str().expect("an error");
        match &put.fate {
            Fate::SetAside(deserved) => assert_eq!(error, *deserved, "{message}"),
            Fate::Stored(rows) => {
                let other = rows.iter().any(|(key, bits)| ledger.stored.get(key) != Some(bits));
                assert!(error == "BundleConflict" && other, "good, but set aside: {message}");
            }
        }
        *errors.entry(error.to_owned()).or_default() += 1;
    }
    errors
}

fn assert_no_violation(watch: &Watch) {
    let violations = &watch.ledger.borrow().violations;
    let mut text = violations.join("\n");
    for (place, Put { record, fate, .. }) in watch.load.puts.iter().enumerate() {
        let Record { partition_key, sequence_number, .. } = &**record;
        write!(text, "\nrecord {place}: {partition_key} {sequence_number} {fate:?}").expect("text");
    }
    assert!(violations.is_empty(), "{text}");
}

/// The happenings of the mapping, except those that would be a defect of this function.
const HAPPENINGS: [Happening; 12] = [
    Happening::Delivered,
    Happening::Done,
    Happening::Progressed,
    Happening::Stuck,
    Happening::Crashed,
    Happening::AnswerLost,
    Happening::PollerReplaced,
    Happening::Repeated,
    Happening::Halved,
    Happening::Exhausted,
    Happening::Expired,
    Happening::ColdStart,
];

fn add<K: Ord>(sums: &mut BTreeMap<K, u32>, counts: BTreeMap<K, u32>) {
    for (kind, count) in counts {
        *sums.entry(kind).or_default() += count;
    }
}

#[test]
fn no_sample_is_lost_or_stored_twice_under_faults() {
    let mut all = Seen::default();
    for seen in seeds(SEEDS, simulate) {
        add(&mut all.faults, seen.faults);
        add(&mut all.happenings, seen.happenings);
        add(&mut all.poisons, seen.poisons);
        add(&mut all.errors, seen.errors);
        all.samples += seen.samples;
        all.shards = all.shards.max(seen.shards);
    }
    let Seen { faults, happenings, poisons, errors, samples, shards, .. } = all;
    eprintln!("{faults:?}\n{happenings:?}\n{poisons:?}\n{errors:?}");
    eprintln!("{samples} samples, {shards} shards at most");
    if all_seeds() {
        assert!(samples >= 1_000_000, "only {samples} samples");
        assert!(Fault::ALL.iter().all(|kind| faults.contains_key(kind)), "a fault never came");
        assert!(HAPPENINGS.iter().all(|kind| happenings.contains_key(kind)), "never happened");
        assert!(POISONS.iter().all(|kind| poisons.contains_key(kind)), "a poison never came");
        assert!(errors.contains_key("BundleConflict"), "no conflict came");
        assert!(shards > 3, "the stream was hardly resharded");
    }
}

#[test]
fn runs_with_the_same_seed_are_equal() {
    for seed in 1..=20 {
        assert_eq!(simulate(seed), simulate(seed), "seed {seed}");
    }
}
