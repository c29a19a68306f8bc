//! Simulates detect-breaches under faults in all its dependencies, in a thousand runs. Each run is determined by its
//! seed; `SEED=123 make unit-test ARGS='--test simulation'` repeats one.
//!
//! A run puts readings on a stream, some of them twice. A model of Lambda's event source mapping delivers them in
//! batches. It delivers some records again: the rest of a batch from the first failed record on, or a whole batch, also
//! after a crash. Sometimes two execution environments have the same records at once. The test asserts that each change
//! of a sensor's state is emitted once, in a sequence without a gap, and that nothing is emitted after the removal.

mod support;

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
    detect_breaches::DetectBreaches, remove_alerting::RemoveAlerting, watermarks::WatermarkCache,
};
use contracts::{
    AlertingId, Entity, Metric, SagaContext, Sensor, SensorId,
    readings::{Bundle, Series},
    sample::Sample,
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

use support::{Alert, Change, ExpectedAlerts, alert_in};

const SEEDS: u64 = 1_000;

/// The time between the first reading and the beginning of the stream. No reading is ahead of its arrival.
const BACKLOG: Duration = Duration::from_mins(20);

/// The part of the function's time that is reserved for the response, as in production.
const RESPONSE_MARGIN: Duration = Duration::from_millis(500);

/// Two sensors with limits and one without.
const METRICS: [Metric; 3] = [Metric::AirTemperature; 3];

/// Values around the limits. The limits are -50 and 50 for the first sensor, and 99.5 for the second.
const VALUES: [f64; 18] = [
    -60.0, -50.1, -50.0, -49.6, -49.5, -49.4, 0.0, 49.4, 49.5, 49.6, 50.0, 50.1, 60.0, 98.9, 99.0,
    99.1, 99.5, 99.6,
];

/// A site's configuration, and the order of its readings.
#[derive(Clone, Debug)]
struct Site {
    saga: SagaContext,
    sensors: Vec<Sensor>,
    configured: ConfiguredAt,
    removed_after: Option<Duration>,
    /// Whether the readings are put in the order of their time, except those of repeated bundles.
    in_order: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum ConfiguredAt {
    Start,
    Later(Duration),
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
        self.in_order && self.configured == ConfiguredAt::Start
    }
}

/// A record on the stream.
struct Put {
    record: Rc<Record>,
    site: usize,
    /// `None` for a record that is not a bundle.
    bundle: Option<Bundle>,
    /// The number of alerts per sensor that must have been emitted when this record is processed.
    alerts: BTreeMap<SensorId, usize>,
}

struct Workload {
    stream: Stream,
    sites: Vec<Site>,
    puts: Vec<Put>,
    by_number: HashMap<String, usize>,
    /// The expected events per sensor. Complete for sites where `is_certain` is true.
    expected: BTreeMap<SensorId, ExpectedAlerts>,
}

impl Workload {
    fn make(rng: &mut Rng) -> Self {
        let sites: Vec<_> = (0..rng.in_range(1, 3))
            .map(|n| {
                let saga = saga(&format!("site-{n}"));
                let configured = match rng.below(10) {
                    0 => ConfiguredAt::Never,
                    1 => ConfiguredAt::Later(Duration::from_millis(rng.below(20_000))),
                    _ => ConfiguredAt::Start,
                };
                let removed = configured == ConfiguredAt::Start && rng.percent(25);
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
        let (puts, by_number, expected) = (Vec::new(), HashMap::new(), BTreeMap::new());
        let mut workload = Self { stream, sites, puts, by_number, expected };
        let mut at = Duration::ZERO;
        let spread = *rng.pick(&[0, 500, 5_000]);
        for n in 0..rng.in_range(6, 16) {
            at += Duration::from_millis(rng.below(spread));
            if rng.percent(5) {
                workload.stream.reshard();
            }
            let site = rng.index(workload.sites.len());
            let sent: Vec<_> = workload.puts.iter().filter(|put| put.site == site).collect();
            let bundle = match rng.below(100) {
                0..5 => None,
                5..25 if !sent.is_empty() => rng.pick(&sent).bundle.clone(),
                _ => Some(workload.bundle(rng, site, n)),
            };
            workload.put(site, bundle, at);
        }
        workload
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
            let backlog = i64::try_from(BACKLOG.as_secs()).expect("a time");
            let mut at = noon(60 * i64::try_from(minute).expect("a time") - backlog);
            let mut samples = Vec::new();
            // A few series have more changes than fit into a transaction.
            let count = if rng.below(200) == 0 { 130 } else { rng.in_range(1, 6) };
            for n in 0..count {
                let alternating = if n % 2 == 0 { 99.9 } else { 0.0 };
                let value = if count > 6 { alternating } else { *rng.pick(&VALUES) };
                samples.push(Sample::new(at, value));
                at = at.plus_millis(1 + i64::try_from(rng.below(400)).expect("a time"));
            }
            series.push(Series::new(sensor.sensor_id, samples));
        }
        // The id makes the bundle unique even if another bundle has the same minute.
        let bundle_id = format!("b-{n}").parse().expect("a bundle id");
        Bundle::new(bundle_id, saga.site_id, series)
    }

    fn put(&mut self, site: usize, bundle: Option<Bundle>, at: Duration) {
        let Site { saga, sensors, .. } = &self.sites[site];
        let is_repeated = self.puts.iter().any(|put| put.bundle.is_some() && put.bundle == bundle);
        let mut alerts = BTreeMap::new();
        for series in bundle.iter().flat_map(|bundle| &bundle.series) {
            let sensor = sensors.iter().find(|sensor| sensor.sensor_id == series.sensor_id);
            let sensor = sensor.expect("a sensor of the site");
            let expected = self.expected.entry(sensor.sensor_id).or_default();
            if !is_repeated {
                for sample in &series.samples {
                    expected.add_reading(sensor, sample.at, sample.value.expect("a value"));
                }
            }
            alerts.insert(sensor.sensor_id, expected.alerts.len());
        }
        if is_repeated {
            // A repeated bundle adds no events.
            let first = self.puts.iter().find(|put| put.bundle == bundle);
            alerts = first.map(|put| put.alerts.clone()).unwrap_or_default();
        }
        let data = match &bundle {
            Some(bundle) => serde_json::to_vec(bundle).expect("JSON"),
            None => b"not a bundle".to_vec(),
        };
        let record = self.stream.put(&saga.site_id.to_string(), data, at);
        self.by_number.insert(record.sequence_number.clone(), self.puts.len());
        self.puts.push(Put { record, site, bundle, alerts });
    }
}

#[derive(Default)]
struct CheckState {
    log_position: usize,
    /// The events by entity.
    events: BTreeMap<String, Vec<EventRow>>,
    alerts: BTreeMap<SensorId, Vec<Alert>>,
    given_up: BTreeSet<usize>,
    violations: Vec<String>,
}

impl CheckState {
    fn is_removed(&self, site: &Site) -> bool {
        let events = self.events.get(&site.entity()).map_or(&[][..], Vec::as_slice);
        events.iter().any(|event| event.kind == "AlertingRemoved")
    }
}

struct Checker {
    cloud: Cloud,
    workload: Workload,
    state: RefCell<CheckState>,
}

impl Checker {
    /// Reads the new entries of the log. Checks that events have no gap and that none follows the removal.
    fn read_log(&self) {
        let state = &mut *self.state.borrow_mut();
        let entries = self.cloud.log_from(state.log_position);
        state.log_position += entries.len();
        for entry in entries {
            let Entry::Effect { body, .. } = entry else { continue };
            let actions = body["TransactItems"].as_array().map_or(&[][..], Vec::as_slice);
            let items = actions.iter().map(|action| &action["Put"]["Item"]);
            for item in items.filter(|item| item["entity"].is_object()) {
                let row: EventRow = cloud::read(item);
                let events = state.events.entry(row.entity.clone()).or_default();
                let is_removed = events.iter().any(|event| event.kind == "AlertingRemoved");
                if row.sequence != events.len() as u64 + 1 || is_removed {
                    let text = format!("{} {} after {}", row.entity, row.sequence, events.len());
                    state.violations.push(text);
                }
                events.push(row.clone());
                if let Some((sensor, alert)) = alert_in(&row) {
                    state.alerts.entry(sensor).or_default().push(alert);
                }
            }
        }
    }

    /// Returns whether all alerts of a record were emitted. Returns `true` if they are not certain.
    fn is_done(&self, state: &CheckState, put: usize) -> bool {
        let Put { site, alerts, .. } = &self.workload.puts[put];
        let lost = state.given_up.iter().any(|&lost| self.workload.puts[lost].site == *site);
        let site = &self.workload.sites[*site];
        if lost || !site.is_certain() || state.is_removed(site) {
            return true;
        }
        let emitted = |sensor| state.alerts.get(sensor).map_or(0, Vec::len);
        alerts.iter().all(|(sensor, count)| emitted(sensor) >= *count)
    }

    /// Returns the sites that had a fault since a position in the log.
    fn faulty_sites(&self, log_position: usize) -> BTreeSet<usize> {
        let mut sites = BTreeSet::new();
        for entry in self.cloud.log_from(log_position) {
            let Entry::Called { body, fault: Some(_), .. } = entry else { continue };
            let text = body.to_string();
            let is_named = |site: &Site| text.contains(&site.alerting().to_string());
            let all_sites = self.workload.sites.iter().enumerate();
            sites.extend(all_sites.filter(|(_, site)| is_named(site)).map(|(index, _)| index));
        }
        sites
    }

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
        let faulty_sites = self.faulty_sites(call.log_position);
        let in_time = call.started.elapsed() < call.time;
        let number = &response["batchItemFailures"][0]["itemIdentifier"];
        let first = records.iter().position(|record| json!(record.sequence_number) == *number);
        if !number.is_null() && first.is_none() {
            violations.push(format!("not a response for the batch: {response}"));
        }
        for (index, record) in records.iter().enumerate() {
            let put = self.workload.by_number[&record.sequence_number];
            let is_done = self.is_done(state, put);
            let is_faulty = faulty_sites.contains(&self.workload.puts[put].site);
            if !is_done && first.is_none_or(|first| index < first) {
                violations.push(format!(
                    "record {put} is skipped, but its alerts are missing: {response}"
                ));
            }
            if !is_done && in_time && !is_faulty {
                violations.push(format!(
                    "the alerts of record {put} are missing, but its site had no fault"
                ));
            }
            if first == Some(index) && in_time && !is_faulty {
                violations.push(format!("record {put} is retried, but its site had no fault"));
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
    /// The time that the function has for its work.
    time: Duration,
}

/// The function detect-breaches, as the mapping invokes it.
struct Consumer(Rc<Checker>);

impl Function for Consumer {
    type Environment = DetectBreaches;

    fn start(&self) -> DetectBreaches {
        let cloud = &self.0.cloud;
        DetectBreaches {
            alerting: cloud.table(ALERTING),
            outbox: cloud.outbox(),
            watermarks: WatermarkCache::default(),
            max_age: Duration::from_hours(1),
        }
    }

    fn invoke(
        &self,
        environment: Rc<DetectBreaches>,
        records: Vec<Rc<Record>>,
        time: Duration,
    ) -> LocalBoxFuture<'static, Result<Value, String>> {
        let checker = Rc::clone(&self.0);
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

    fn gave_up(&self, records: &[Rc<Record>], _: Value) {
        self.0.read_log();
        let given_up = &mut self.0.state.borrow_mut().given_up;
        given_up.extend(
            records.iter().map(|record| self.0.workload.by_number[&record.sequence_number]),
        );
    }
}

/// Configures or removes alerting, and retries until it succeeds.
async fn configure_or_remove(cloud: Cloud, site: Site, after: Duration, removes: bool) {
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
struct Counts {
    faults: BTreeMap<CallFault, u32>,
    mapping_events: BTreeMap<MappingEvent, u32>,
    events: BTreeMap<String, u32>,
    /// The number of sites whose events were certain to the end.
    certain: u32,
    /// A hash of the order of all calls and effects.
    log: u64,
}

fn simulate(seed: u64) -> Counts {
    let mut rng = Rng::from_seed(seed);
    let cloud = Cloud::new(rng.fork());
    let workload = Workload::make(&mut rng);
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
    let checker = Rc::new(Checker { cloud: cloud.clone(), workload, state: RefCell::default() });

    cloud::run(async {
        let mut tasks = Vec::new();
        for site in checker.workload.sites.iter().cloned() {
            let (site_to_remove, removed_after) = (site.clone(), site.removed_after);
            match site.configured {
                ConfiguredAt::Never => {}
                ConfiguredAt::Start => {
                    configure_or_remove(cloud.clone(), site, Duration::ZERO, false).await;
                }
                ConfiguredAt::Later(after) => {
                    tasks.push(spawn_local(configure_or_remove(cloud.clone(), site, after, false)));
                }
            }
            if let Some(after) = removed_after {
                tasks.push(spawn_local(configure_or_remove(
                    cloud.clone(),
                    site_to_remove,
                    after,
                    true,
                )));
            }
        }
        cloud.inject_faults(percent);
        let mapping =
            Mapping::new(settings, fault_rates, rng.fork(), Consumer(Rc::clone(&checker)));
        mapping.run(&checker.workload.stream).await;
        for task in tasks {
            task.await.expect("the saga's step");
        }
        // Waits for invocations that still run in the background and for late effects.
        sleep(Duration::from_mins(2)).await;
        cloud.stop_faults();
        checker.read_log();
        assert_no_violation(&checker);
        let certain = assert_alerts_are_correct(&checker);

        // All records are delivered twice more to a new execution environment.
        let records: Vec<_> =
            checker.workload.puts.iter().map(|put| Rc::clone(&put.record)).collect();
        let environment = Rc::new(mapping.function().start());
        for _ in 0..2 {
            let (environment, records) = (Rc::clone(&environment), records.clone());
            let response = mapping.function().invoke(environment, records, settings.timeout).await;
            assert_eq!(response, Ok(json!({ "batchItemFailures": [] })));
        }
        assert_no_violation(&checker);
        assert_eq!(assert_alerts_are_correct(&checker), certain);

        let mapping_events = mapping.event_counts();
        assert!(!mapping_events.contains_key(&MappingEvent::TimedOut), "an invocation timed out");
        let mut events = BTreeMap::new();
        for row in checker.state.borrow().events.values().flatten() {
            *events.entry(row.kind.clone()).or_default() += 1;
        }
        let log = digest(&cloud.log_from(0));
        Counts { faults: cloud.faults(), mapping_events, events, certain, log }
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
fn assert_alerts_are_correct(checker: &Checker) -> u32 {
    let state = checker.state.borrow();
    let mut certain = 0;
    let events = checker.cloud.rows(EVENTS);
    assert_eq!(events.len(), state.events.values().map(Vec::len).sum::<usize>());
    let rows = checker.cloud.rows(ALERTING);
    for (index, site) in checker.workload.sites.iter().enumerate() {
        let key = format!("alerting#{}", site.alerting());
        let row = rows.iter().find(|row| row["id"]["S"] == key.as_str());
        let row: Option<AlertingRow> = row.map(cloud::read);
        let Some(row) = row else {
            assert_eq!(site.configured, ConfiguredAt::Never);
            assert!(
                !state.events.contains_key(&site.entity()),
                "events of a site without alerting"
            );
            continue;
        };
        assert_eq!(row.sequence, state.events[&site.entity()].len() as u64, "{row:?}");
        let given_up = state.given_up.iter().any(|&put| checker.workload.puts[put].site == index);
        let removed = row.state == Alerting::Removed;
        certain += u32::from(site.is_certain() && !given_up && !removed);
        for sensor in &site.sensors {
            let id = sensor.sensor_id;
            let alerts = state.alerts.get(&id).map_or(&[][..], Vec::as_slice);
            assert_possible(checker, sensor, alerts);
            if site.is_certain() && !given_up {
                let expected = checker.workload.expected.get(&id).cloned().unwrap_or_default();
                // The removal may come before the last change.
                let expected_alerts =
                    if removed { &expected.alerts[..alerts.len()] } else { &expected.alerts };
                assert_eq!(alerts, expected_alerts, "{id}");
            }
            let Alerting::Configured { rules } = &row.state else { continue };
            let Some(rule) = rules.iter().find(|rule| rule.sensor.sensor_id == id) else {
                assert!(alerts.is_empty(), "{id} has no limits");
                continue;
            };
            assert_eq!(rule.changed_at, alerts.last().map(|alert| alert.at), "{id}");
            let expected_state = match alerts.last() {
                Some(Alert { at, change: Change::Breached(limit, _), .. }) => {
                    State::Breached { limit: *limit, breached_at: *at }
                }
                _ => State::Normal,
            };
            assert_eq!(rule.state, expected_state, "{id}");
        }
    }
    certain
}

/// Checks that each change follows from the previous one and from a reading that was sent.
fn assert_possible(checker: &Checker, sensor: &Sensor, alerts: &[Alert]) {
    let mut expected = ExpectedAlerts::default();
    let mut previous = None;
    for alert in alerts {
        assert!(previous < Some(alert.at), "{alert:?} is not after {previous:?}");
        previous = Some(alert.at);
        expected.add_reading(sensor, alert.at, alert.value);
        assert_eq!(expected.alerts.last(), Some(alert));
        let series = checker.workload.puts.iter().filter_map(|put| put.bundle.as_ref());
        let mut series = series.flat_map(|bundle| &bundle.series);
        let sent = series.any(|series| {
            let samples = &series.samples;
            series.sensor_id == sensor.sensor_id
                && samples.contains(&Sample::new(alert.at, alert.value))
        });
        assert!(sent, "no record has the reading of {alert:?}");
    }
}

fn assert_no_violation(checker: &Checker) {
    let violations = &checker.state.borrow().violations;
    let mut text = violations.join("\n");
    for (index, Put { record, bundle, .. }) in checker.workload.puts.iter().enumerate() {
        let Record { partition_key, .. } = &**record;
        write!(text, "\nrecord {index}: {partition_key} {bundle:?}").expect("text");
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
    let mut total = Counts::default();
    for counts in seeds(SEEDS, simulate) {
        add(&mut total.faults, counts.faults);
        add(&mut total.mapping_events, counts.mapping_events);
        add(&mut total.events, counts.events);
        total.certain += counts.certain;
    }
    let Counts { faults, mapping_events, events, certain, .. } = total;
    eprintln!("{faults:?}\n{mapping_events:?}\n{events:?}\n{certain} certain sites");
    if all_seeds() {
        let occurred =
            |kind: &CallFault| *kind == CallFault::Unprocessed || faults.contains_key(kind);
        assert!(CallFault::ALL.iter().all(occurred), "a kind of fault never occurred");
        assert!(
            MAPPING_EVENTS.iter().all(|kind| mapping_events.contains_key(kind)),
            "a mapping event never occurred"
        );
        assert_eq!(events.len(), 4, "a type of event never occurred");
        assert!(certain > 500, "too few sites were certain");
    }
}

#[test]
fn runs_with_the_same_seed_are_equal() {
    for seed in 1..=20 {
        assert_eq!(simulate(seed), simulate(seed), "seed {seed}");
    }
}
