//! Simulates detect-breaches under faults in all its dependencies, in thousands of runs. Each run is determined by
//! its seed; `SEED=123 cargo test -p alerting --test simulation` repeats one.
//!
//! A run puts readings on a stream, some of them twice. A model of Lambda's event source mapping delivers them:
//! partially, repeatedly, after crashes, and to two environments at once. The test asserts that each change of a
//! sensor's state is emitted once, in a sequence without a gap, and that nothing is emitted after the removal.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write,
    hash::{DefaultHasher, Hash, Hasher},
    panic::AssertUnwindSafe,
    rc::Rc,
    time::Duration,
};

use alerting::{
    Alerting, AlertingRow, State, configure_alerting::ConfigureAlerting,
    detect_breaches::DetectBreaches, memory::Memory, remove_alerting::RemoveAlerting,
};
use contracts::{
    AlertingId, Entity, Metric, SagaContext, Sensor, SensorId, Timestamp,
    events::Limit,
    readings::{Bundle, Sample, Series},
};
use futures_util::{FutureExt, future::LocalBoxFuture};
use lambda::Deadline;
use serde_json::{Value, json, value::to_raw_value};
use store::EventRow;
use testkit::{
    cloud::{self, CallFault, Cloud, Entry},
    dynamo::{ALERTING, EVENTS},
    mapping::{FaultRates, Function, Mapping, MappingEvent, Record, Settings, Stream, event},
    rng::{Rng, all_seeds, seeds},
    saga::run,
    sample::{noon, payload, payload_with_sensors, saga, sensors},
};
use tokio::{
    task::spawn_local,
    time::{Instant, sleep},
};

const SEEDS: u64 = 1_000;

/// The part of the function's time that is reserved for the response, as in production.
const RESPONSE_MARGIN: Duration = Duration::from_millis(500);

/// Two sensors with limits and one without.
const METRICS: [Metric; 3] = [Metric::AirTemperature; 3];

/// The deadband in the metric's unit. Limits narrower than those in this test would reduce it.
const DEADBAND: f64 = 0.5;

/// Values around the limits. The limits are -50 and 50 for the first sensor, and 99.5 for the second.
const VALUES: [f64; 18] = [
    -60.0, -50.1, -50.0, -49.6, -49.5, -49.4, 0.0, 49.4, 49.5, 49.6, 50.0, 50.1, 60.0, 98.9, 99.0,
    99.1, 99.5, 99.6,
];

/// A change of a sensor's state, as an event reports it.
#[derive(Clone, Debug, PartialEq)]
struct Told {
    at: Timestamp,
    value: f64,
    change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Breached(Limit, f64),
    BackSince(Timestamp),
}

/// The model: the expected changes of readings in the order of time.
#[derive(Clone, Debug, Default)]
struct Judge {
    breached: Option<(Limit, Timestamp)>,
    told: Vec<Told>,
}

impl Judge {
    fn take(&mut self, sensor: &Sensor, Sample(at, value): Sample) {
        let low = sensor.min.filter(|min| value < *min).map(|min| (Limit::Min, min));
        let high = sensor.max.filter(|max| value > *max).map(|max| (Limit::Max, max));
        let change = match (self.breached, low.or(high)) {
            (Some((limit, _)), Some((beyond, _))) if limit == beyond => return,
            (_, Some((limit, threshold))) => {
                self.breached = Some((limit, at));
                Change::Breached(limit, threshold)
            }
            (Some((_, since)), None) => {
                let low = sensor.min.is_some_and(|min| value < min + DEADBAND);
                let high = sensor.max.is_some_and(|max| value > max - DEADBAND);
                if low || high {
                    return;
                }
                self.breached = None;
                Change::BackSince(since)
            }
            (None, None) => return,
        };
        self.told.push(Told { at, value, change });
    }
}

/// A site's configuration, and the order of its readings.
#[derive(Clone, Debug)]
struct Site {
    saga: SagaContext,
    sensors: Vec<Sensor>,
    configured: Configured,
    removed_after: Option<Duration>,
    /// Whether no new reading is older than a reading before it.
    in_order: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Configured {
    First,
    Meanwhile(Duration),
    Never,
}

impl Site {
    fn alerting(&self) -> AlertingId {
        AlertingId::from_onboarding(self.saga.onboarding_id)
    }

    fn entity(&self) -> String {
        Entity::from(self.alerting()).to_string()
    }

    /// Returns whether the readings alone determine the expected events.
    fn is_certain(&self) -> bool {
        self.in_order && self.configured == Configured::First
    }
}

/// A record on the stream.
struct Put {
    record: Rc<Record>,
    site: usize,
    /// `None` for a record that is not a bundle.
    bundle: Option<Bundle>,
    /// The minimum number of events per sensor when this record is done.
    told: BTreeMap<SensorId, usize>,
}

struct Workload {
    stream: Stream,
    sites: Vec<Site>,
    puts: Vec<Put>,
    by_number: HashMap<String, usize>,
    /// The expected events per sensor. Complete for sites where `is_certain` is true.
    judges: BTreeMap<SensorId, Judge>,
}

impl Workload {
    fn make(rng: &mut Rng) -> Self {
        let sites: Vec<_> = (0..rng.in_range(1, 3))
            .map(|n| {
                let saga = saga(&format!("site-{n}"));
                let configured = match rng.below(10) {
                    0 => Configured::Never,
                    1 => Configured::Meanwhile(Duration::from_millis(rng.below(20_000))),
                    _ => Configured::First,
                };
                let removed = configured == Configured::First && rng.percent(25);
                let after = Duration::from_millis(rng.below(30_000));
                Site {
                    saga,
                    sensors: sensors(saga, &METRICS),
                    configured,
                    removed_after: removed.then_some(after),
                    in_order: rng.percent(75),
                }
            })
            .collect();
        let stream = Stream::new(rng.fork());
        let (puts, by_number, judges) = (Vec::new(), HashMap::new(), BTreeMap::new());
        let mut it = Self { stream, sites, puts, by_number, judges };
        let mut at = Duration::ZERO;
        let spread = *rng.pick(&[0, 500, 5_000]);
        for n in 0..rng.in_range(6, 16) {
            at += Duration::from_millis(rng.below(spread));
            if rng.percent(5) {
                it.stream.reshard();
            }
            let site = rng.index(it.sites.len());
            let sent: Vec<_> = it.puts.iter().filter(|put| put.site == site).collect();
            let bundle = match rng.below(100) {
                0..5 => None,
                5..25 if !sent.is_empty() => rng.pick(&sent).bundle.clone(),
                _ => Some(it.bundle(rng, site, n)),
            };
            it.put(site, bundle, at);
        }
        it
    }

    /// Returns the `n`-th bundle: some samples of some of the site's sensors.
    fn bundle(&self, rng: &mut Rng, site: usize, n: usize) -> Bundle {
        let Site { saga, sensors, in_order, .. } = &self.sites[site];
        let minute = if *in_order { n } else { rng.index(n + 1) };
        let mut series = Vec::new();
        for sensor in sensors {
            if rng.percent(30) && !series.is_empty() {
                continue;
            }
            let mut at = noon(60 * i64::try_from(minute).expect("a time"));
            let mut samples = Vec::new();
            // A few series have more changes than fit into a transaction.
            let count = if rng.below(200) == 0 { 130 } else { rng.in_range(1, 6) };
            for n in 0..count {
                let restless = if n % 2 == 0 { 200.0 } else { 0.0 };
                let value = if count > 6 { restless } else { *rng.pick(&VALUES) };
                samples.push(Sample(at, value));
                at = at.plus_millis(1 + i64::try_from(rng.below(400)).expect("a time"));
            }
            series.push(Series { sensor_id: sensor.sensor_id, samples });
        }
        // The id makes the bundle unique even if another bundle has the same minute.
        let bundle_id = format!("b-{n}").parse().expect("a bundle id");
        Bundle { bundle_id, site_id: saga.site_id, series }
    }

    fn put(&mut self, site: usize, bundle: Option<Bundle>, at: Duration) {
        let Site { saga, sensors, .. } = &self.sites[site];
        let again = self.puts.iter().any(|put| put.bundle.is_some() && put.bundle == bundle);
        let mut told = BTreeMap::new();
        for series in bundle.iter().flat_map(|bundle| &bundle.series) {
            let sensor = sensors.iter().find(|it| it.sensor_id == series.sensor_id);
            let sensor = sensor.expect("a sensor of the site");
            let judge = self.judges.entry(sensor.sensor_id).or_default();
            if !again {
                series.samples.iter().for_each(|sample| judge.take(sensor, *sample));
            }
            told.insert(sensor.sensor_id, judge.told.len());
        }
        if again {
            // A repeated bundle adds no events.
            let first = self.puts.iter().find(|put| put.bundle == bundle);
            told = first.map(|put| put.told.clone()).unwrap_or_default();
        }
        let data = match &bundle {
            Some(bundle) => serde_json::to_vec(bundle).expect("JSON"),
            None => b"no bundle".to_vec(),
        };
        let record = self.stream.put(&saga.site_id.to_string(), data, at);
        self.by_number.insert(record.sequence_number.clone(), self.puts.len());
        self.puts.push(Put { record, site, bundle, told });
    }
}

#[derive(Default)]
struct Ledger {
    line: usize,
    /// The events by entity.
    events: BTreeMap<String, Vec<EventRow>>,
    told: BTreeMap<SensorId, Vec<Told>>,
    given_up: BTreeSet<usize>,
    violations: Vec<String>,
}

impl Ledger {
    fn is_removed(&self, site: &Site) -> bool {
        let events = self.events.get(&site.entity()).map_or(&[][..], Vec::as_slice);
        events.iter().any(|event| event.kind == "AlertingRemoved")
    }
}

struct Watch {
    cloud: Cloud,
    load: Workload,
    ledger: RefCell<Ledger>,
}

impl Watch {
    /// Reads the new entries of the log. Checks that events have no gap and that none follows the removal.
    fn read_on(&self) {
        let ledger = &mut *self.ledger.borrow_mut();
        let news = self.cloud.log_from(ledger.line);
        ledger.line += news.len();
        for entry in news {
            let Entry::Effect { body, .. } = entry else { continue };
            let actions = body["TransactItems"].as_array().map_or(&[][..], Vec::as_slice);
            let items = actions.iter().map(|action| &action["Put"]["Item"]);
            for item in items.filter(|item| item["entity"].is_object()) {
                let row: EventRow = cloud::read(item);
                let events = ledger.events.entry(row.entity.clone()).or_default();
                let over = events.iter().any(|event| event.kind == "AlertingRemoved");
                if row.sequence != events.len() as u64 + 1 || over {
                    let text = format!("{} {} after {}", row.entity, row.sequence, events.len());
                    ledger.violations.push(text);
                }
                events.push(row.clone());
                if let Some((sensor, told)) = told(&row) {
                    ledger.told.entry(sensor).or_default().push(told);
                }
            }
        }
    }

    /// Returns whether all events of a record were emitted, as far as they are certain.
    fn done(&self, ledger: &Ledger, put: usize) -> bool {
        let Put { site, told, .. } = &self.load.puts[put];
        let lost = ledger.given_up.iter().any(|&lost| self.load.puts[lost].site == *site);
        let site = &self.load.sites[*site];
        if lost || !site.is_certain() || ledger.is_removed(site) {
            return true;
        }
        let so_far = |sensor| ledger.told.get(sensor).map_or(0, Vec::len);
        told.iter().all(|(sensor, told)| so_far(sensor) >= *told)
    }

    /// Returns the sites that met a fault since the given line of the log.
    fn troubled(&self, line: usize) -> BTreeSet<usize> {
        let mut sites = BTreeSet::new();
        for entry in self.cloud.log_from(line) {
            let Entry::Called { body, fault: Some(_), .. } = entry else { continue };
            let text = body.to_string();
            let named = |site: &Site| text.contains(&site.alerting().to_string());
            let all = self.load.sites.iter().enumerate();
            sites.extend(all.filter(|(_, site)| named(site)).map(|(place, _)| place));
        }
        sites
    }

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
        let number = &answer["batchItemFailures"][0]["itemIdentifier"];
        let first = records.iter().position(|it| json!(it.sequence_number) == *number);
        if !number.is_null() && first.is_none() {
            violations.push(format!("no answer for the batch: {answer}"));
        }
        for (place, record) in records.iter().enumerate() {
            let put = self.load.by_number[&record.sequence_number];
            let done = self.done(ledger, put);
            let in_trouble = troubled.contains(&self.load.puts[put].site);
            if !done && first.is_none_or(|first| place < first) {
                violations.push(format!("record {put} is skipped, and not told of: {answer}"));
            }
            if !done && in_time && !in_trouble {
                violations.push(format!("record {put} is not told of, without trouble"));
            }
            if first == Some(place) && in_time && !in_trouble {
                violations.push(format!("record {put} comes again, without trouble"));
            }
        }
        ledger.violations.extend(violations);
    }
}

/// Returns the sensor and the change in an event, and `None` for other events.
fn told(row: &EventRow) -> Option<(SensorId, Told)> {
    let data = row.envelope().expect("an envelope").data;
    let time = |name: &str| data[name].as_str().expect("a time").parse().expect("a time");
    let change = match row.kind.as_str() {
        "ReadingBreachedThreshold" => {
            let limit = serde_json::from_value(data["limit"].clone()).expect("a limit");
            Change::Breached(limit, data["threshold"].as_f64().expect("a number"))
        }
        "ReadingBackToNormal" => Change::BackSince(time("breachedAt")),
        _ => return None,
    };
    let sensor = data["sensorId"].as_str().expect("an id").parse().expect("an id");
    let value = data["value"].as_f64().expect("a number");
    assert_eq!((&data["metric"], &data["unit"]), (&json!("air_temperature"), &json!("Cel")));
    Some((sensor, Told { at: time("at"), value, change }))
}

/// An invocation.
#[derive(Clone, Copy)]
struct Call {
    /// The line of the log at which the invocation began.
    line: usize,
    begun: Instant,
    time: Duration,
}

/// The function detect-breaches, as the mapping invokes it.
struct Consumer(Rc<Watch>);

impl Function for Consumer {
    type Environment = DetectBreaches;

    fn start(&self) -> DetectBreaches {
        let cloud = &self.0.cloud;
        DetectBreaches {
            alerting: cloud.table(ALERTING),
            outbox: cloud.outbox(),
            memory: Memory::default(),
        }
    }

    fn invoke(
        &self,
        environment: Rc<DetectBreaches>,
        records: Vec<Rc<Record>>,
        time: Duration,
    ) -> LocalBoxFuture<'static, Result<Value, String>> {
        let watch = Rc::clone(&self.0);
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

    fn gave_up(&self, records: &[Rc<Record>], _: Value) {
        self.0.read_on();
        let given_up = &mut self.0.ledger.borrow_mut().given_up;
        given_up.extend(records.iter().map(|it| self.0.load.by_number[&it.sequence_number]));
    }
}

/// Configures or removes alerting, and retries until it succeeds.
async fn options(cloud: Cloud, site: Site, after: Duration, removes: bool) {
    sleep(after).await;
    loop {
        let (alerting, outbox) = (cloud.table(ALERTING), cloud.outbox());
        let saga = site.saga;
        let attempt = spawn_local(async move {
            if removes {
                run(&RemoveAlerting { alerting, outbox }, &payload(saga)).await
            } else {
                let payload = payload_with_sensors(saga, &METRICS);
                run(&ConfigureAlerting { alerting, outbox }, &payload).await
            }
        });
        if let Ok(Ok(_)) = attempt.await {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// The counts of one run or of all runs.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    faults: BTreeMap<CallFault, u32>,
    mapping_events: BTreeMap<MappingEvent, u32>,
    events: BTreeMap<String, u32>,
    /// The number of sites whose events were certain to the end.
    certain: u32,
    /// A hash of the order of all calls and effects.
    log: u64,
}

fn simulate(seed: u64) -> Seen {
    let mut rng = Rng::from_seed(seed);
    let cloud = Cloud::new(rng.fork());
    let load = Workload::make(&mut rng);
    let settings = Settings {
        batch_size: rng.in_range(1, 12),
        full_batches: rng.percent(40),
        parallelization_factor: 1 + rng.below(2),
        bisects: true,
        max_retries: *rng.pick(&[4, 20]),
        max_age: Duration::from_secs(*rng.pick(&[120, 3_600])),
        timeout: Duration::from_secs(*rng.pick(&[4, 30])),
    };
    let percent = *rng.pick(&[0, 5, 10, 20, 30]);
    let fault_rates = match percent {
        0 => FaultRates::default(),
        _ => FaultRates { crash: 8, lost_response: 5, replaced_poller: 8, repeat: 15 },
    };
    let watch = Rc::new(Watch { cloud: cloud.clone(), load, ledger: RefCell::default() });

    cloud::run(async {
        let mut others = Vec::new();
        for site in watch.load.sites.iter().cloned() {
            let (of_site, removed_after) = (site.clone(), site.removed_after);
            match site.configured {
                Configured::Never => {}
                Configured::First => options(cloud.clone(), site, Duration::ZERO, false).await,
                Configured::Meanwhile(after) => {
                    others.push(spawn_local(options(cloud.clone(), site, after, false)));
                }
            }
            if let Some(after) = removed_after {
                others.push(spawn_local(options(cloud.clone(), of_site, after, true)));
            }
        }
        cloud.inject_faults(percent);
        let mapping = Mapping::new(settings, fault_rates, rng.fork(), Consumer(Rc::clone(&watch)));
        mapping.run(&watch.load.stream).await;
        for other in others {
            other.await.expect("the saga's step");
        }
        // Waits for invocations that still run in the background and for late effects.
        sleep(Duration::from_mins(2)).await;
        cloud.stop_faults();
        watch.read_on();
        assert_no_violation(&watch);
        let certain = assert_told_right(&watch);

        // All records are delivered twice more to a new environment.
        let records: Vec<_> = watch.load.puts.iter().map(|put| Rc::clone(&put.record)).collect();
        let environment = Rc::new(mapping.function().start());
        for _ in 0..2 {
            let (environment, records) = (Rc::clone(&environment), records.clone());
            let answer = mapping.function().invoke(environment, records, settings.timeout).await;
            assert_eq!(answer, Ok(json!({ "batchItemFailures": [] })));
        }
        assert_no_violation(&watch);
        assert_eq!(assert_told_right(&watch), certain);

        let mapping_events = mapping.event_counts();
        assert!(!mapping_events.contains_key(&MappingEvent::TimedOut), "no answer in time");
        let mut events = BTreeMap::new();
        for row in watch.ledger.borrow().events.values().flatten() {
            *events.entry(row.kind.clone()).or_default() += 1;
        }
        let log = digest(&cloud.log_from(0));
        Seen { faults: cloud.faults(), mapping_events, events, certain, log }
    })
}

fn digest(log: &[Entry]) -> u64 {
    let mut digest = DefaultHasher::new();
    for entry in log {
        let (Entry::Called { operation, .. } | Entry::Effect { operation, .. }) = entry;
        operation.hash(&mut digest);
        if let Entry::Called { fault, body, .. } = entry {
            fault.hash(&mut digest);
            body["TransactItems"].as_array().map(Vec::len).hash(&mut digest);
        }
    }
    digest.finish()
}

/// Checks that the table, the events and the readings agree. Returns the number of sites that were certain to the
/// end.
fn assert_told_right(watch: &Watch) -> u32 {
    let ledger = watch.ledger.borrow();
    let mut certain = 0;
    let events = watch.cloud.rows(EVENTS);
    assert_eq!(events.len(), ledger.events.values().map(Vec::len).sum::<usize>());
    let rows = watch.cloud.rows(ALERTING);
    for (place, site) in watch.load.sites.iter().enumerate() {
        let key = format!("alerting#{}", site.alerting());
        let row = rows.iter().find(|row| row["id"]["S"] == key.as_str());
        let row: Option<AlertingRow> = row.map(cloud::read);
        let Some(row) = row else {
            assert_eq!(site.configured, Configured::Never);
            assert!(!ledger.events.contains_key(&site.entity()), "events of an unwatched site");
            continue;
        };
        assert_eq!(row.sequence, ledger.events[&site.entity()].len() as u64, "{row:?}");
        let given_up = ledger.given_up.iter().any(|&put| watch.load.puts[put].site == place);
        let removed = row.state == Alerting::Removed;
        certain += u32::from(site.is_certain() && !given_up && !removed);
        for sensor in &site.sensors {
            let id = sensor.sensor_id;
            let told = ledger.told.get(&id).map_or(&[][..], Vec::as_slice);
            assert_possible(watch, sensor, told);
            if site.is_certain() && !given_up {
                let judge = watch.load.judges.get(&id).cloned().unwrap_or_default();
                // The removal may come before the last change.
                let due = if removed { &judge.told[..told.len()] } else { &judge.told };
                assert_eq!(told, due, "{id}");
            }
            let Alerting::Configured { rules } = &row.state else { continue };
            let Some(rule) = rules.iter().find(|rule| rule.sensor.sensor_id == id) else {
                assert!(told.is_empty(), "{id} has no limits");
                continue;
            };
            assert_eq!(rule.changed_at, told.last().map(|told| told.at), "{id}");
            let state = match told.last() {
                Some(Told { at, change: Change::Breached(limit, _), .. }) => {
                    State::Breached { limit: *limit, breached_at: *at }
                }
                _ => State::Normal,
            };
            assert_eq!(rule.state, state, "{id}");
        }
    }
    certain
}

/// Checks that each change follows from the previous one and from a reading that was sent.
fn assert_possible(watch: &Watch, sensor: &Sensor, told: &[Told]) {
    let mut judge = Judge::default();
    let mut before = None;
    for change in told {
        assert!(before < Some(change.at), "{change:?} is not after {before:?}");
        before = Some(change.at);
        judge.take(sensor, Sample(change.at, change.value));
        assert_eq!(judge.told.last(), Some(change));
        let series = watch.load.puts.iter().filter_map(|put| put.bundle.as_ref());
        let mut series = series.flat_map(|bundle| &bundle.series);
        let sent = series.any(|series| {
            let samples = &series.samples;
            series.sensor_id == sensor.sensor_id
                && samples.contains(&Sample(change.at, change.value))
        });
        assert!(sent, "nobody sent {change:?}");
    }
}

fn assert_no_violation(watch: &Watch) {
    let violations = &watch.ledger.borrow().violations;
    let mut text = violations.join("\n");
    for (place, Put { record, bundle, .. }) in watch.load.puts.iter().enumerate() {
        let Record { partition_key, .. } = &**record;
        write!(text, "\nrecord {place}: {partition_key} {bundle:?}").expect("text");
    }
    assert!(violations.is_empty(), "{text}");
}

/// The events of the mapping, except those that would be a defect of this function.
const MAPPING_EVENTS: [MappingEvent; 10] = [
    MappingEvent::Delivered,
    MappingEvent::Done,
    MappingEvent::Progressed,
    MappingEvent::Stuck,
    MappingEvent::Crashed,
    MappingEvent::ResponseLost,
    MappingEvent::PollerReplaced,
    MappingEvent::Repeated,
    MappingEvent::Halved,
    MappingEvent::ColdStart,
];

fn add<K: Ord>(sums: &mut BTreeMap<K, u32>, counts: BTreeMap<K, u32>) {
    for (kind, count) in counts {
        *sums.entry(kind).or_default() += count;
    }
}

#[test]
fn every_change_is_emitted_once_under_faults() {
    let mut all = Seen::default();
    for seen in seeds(SEEDS, simulate) {
        add(&mut all.faults, seen.faults);
        add(&mut all.mapping_events, seen.mapping_events);
        add(&mut all.events, seen.events);
        all.certain += seen.certain;
    }
    let Seen { faults, mapping_events, events, certain, .. } = all;
    eprintln!("{faults:?}\n{mapping_events:?}\n{events:?}\n{certain} sites certain");
    if all_seeds() {
        let met = |kind: &CallFault| *kind == CallFault::Unprocessed || faults.contains_key(kind);
        assert!(CallFault::ALL.iter().all(met), "a fault never came");
        assert!(
            MAPPING_EVENTS.iter().all(|kind| mapping_events.contains_key(kind)),
            "never happened"
        );
        assert_eq!(events.len(), 4, "an event never came");
        assert!(certain > 500, "little was certain");
    }
}

#[test]
fn runs_with_the_same_seed_are_equal() {
    for seed in 1..=20 {
        assert_eq!(simulate(seed), simulate(seed), "seed {seed}");
    }
}
