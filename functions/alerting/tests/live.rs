//! Simulates data loggers with right and wrong clocks, in hundreds of runs. Each run is determined by its seed;
//! `SEED=123 make unit-test ARGS='--test live'` repeats one.
//!
//! A run sends the readings of one sensor: in single bundles or in one that grows, once or again, in time or much later.
//! The clock may be right, some seconds or 14 minutes fast, or jump ahead for single bundles. Imports and revisions come in
//! between. The stream delivers the records in order, and again from an earlier one. There are two execution
//! environments, and each may be restarted. The test asserts that
//!
//! - each sample changes the state at most once, and only if it is live and usable;
//! - after the first delivery of a record, the state is that of its last usable sample. Only samples later than the arrival
//!   of all earlier records count. So no crossing is missed;
//! - a sample ahead of its record's arrival was judged at the first delivery. It causes no change when the record is
//!   delivered again, if a record that arrived later has caused a change;
//! - the alerts are exactly those of the live samples, if the times increase or no memory is lost.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::AddAssign,
    time::Duration,
};

use alerting::{
    configure_alerting::ConfigureAlerting, detect_breaches::DetectBreaches,
    watermarks::WatermarkCache,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{
    Metric, SagaContext, Sensor, Timestamp,
    events::Limit,
    readings::{Bundle, Origin, Series},
    sample::{Flag, Quality, Sample},
};
use lambda::Deadline;
use serde_json::{Value, json, value::to_raw_value};
use store::EventRow;
use testkit::{
    cloud::{self, Cloud, Entry},
    dynamo::ALERTING,
    rng::{Rng, all_seeds, seeds},
    saga::run,
    sample::{noon, payload_with_sensors, saga, sensors},
};

use support::{Alert, Change, ExpectedAlerts, alert_in};

const SEEDS: u64 = 300;

const METRICS: [Metric; 1] = [Metric::AirTemperature];

/// Values around the limits -50 and 50. The last one is not plausible.
const VALUES: [f64; 7] = [-60.0, -49.7, 0.0, 49.7, 60.0, 60.0, 150.0];

const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;
const MAX_AGE: Duration = Duration::from_hours(1);

/// The clock of a data logger.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Clock {
    /// Ahead by this time, in milliseconds.
    Ahead(i64),
    /// Right, but 14 minutes ahead for single bundles.
    Jumps,
}

/// A record of the stream.
struct Record {
    /// The arrival, in milliseconds after noon.
    arrival: i64,
    bundle: Bundle,
}

/// The records of a run, in the order of arrival.
struct Workload {
    records: Vec<Record>,
    /// Whether each new live bundle has later samples than the one before. If this is true and the clock is 14 minutes
    /// fast, only the latest bundle is sent again, because after a restart an older one could be judged again.
    in_order: bool,
}

/// The state of a logger while a workload is made.
struct Logger<'a> {
    rng: &'a mut Rng,
    saga: SagaContext,
    clock: Clock,
    now: i64,
    /// All times of samples. They differ, so a time identifies a sample.
    used: BTreeSet<i64>,
    value: f64,
    bundles: usize,
}

impl Logger<'_> {
    fn below(&mut self, bound: i64) -> i64 {
        i64::try_from(self.rng.below(bound.unsigned_abs())).expect("a small number")
    }

    /// Returns the samples of some seconds before this time.
    fn samples(&mut self, until: i64) -> Vec<Sample> {
        let count = 1 + self.below(5);
        let mut samples: Vec<Sample> = Vec::new();
        let mut at = until - count * SECOND;
        for _ in 0..count {
            at += SECOND;
            while !self.used.insert(at) {
                at += 1;
            }
            if self.rng.percent(30) {
                self.value = *self.rng.pick(&VALUES);
            }
            let time = noon(0).plus_millis(at);
            samples.push(match self.rng.below(20) {
                0 => Sample::missing(time),
                1 => Sample::flagged(time, 60.0, Flag::Fail),
                _ => Sample::new(time, self.value),
            });
        }
        samples
    }

    fn bundle(&mut self, samples: Vec<Sample>) -> Bundle {
        self.bundles += 1;
        let id = format!("b-{}", self.bundles).parse().expect("an id");
        let sensor = sensors(self.saga, &METRICS)[0].sensor_id;
        Bundle::new(id, self.saga.site_id, vec![Series::new(sensor, samples)])
    }

    /// Returns a bundle that is not live: an import or a revision, of any time in the last month.
    fn not_live(&mut self) -> Bundle {
        let until = self.now - self.below(30 * 24 * 60) * MINUTE;
        let samples = self.samples(until);
        let mut bundle = self.bundle(samples);
        if self.rng.percent(50) {
            bundle.origin = Origin::Import;
        } else {
            (bundle.revision, bundle.reason) = (2, Some("the clock was wrong".to_owned()));
        }
        bundle
    }
}

impl Workload {
    fn make(rng: &mut Rng) -> Self {
        let ahead = [0, 4 * SECOND, 14 * MINUTE].map(Clock::Ahead);
        let clock = *rng.pick(&[ahead[0], ahead[1], ahead[2], Clock::Jumps]);
        let grows = clock != Clock::Jumps && rng.percent(30);
        let in_order = clock != Clock::Jumps && rng.percent(50);
        let bundles = rng.in_range(10, 40);
        let mut logger = Logger {
            rng,
            saga: saga("a"),
            clock,
            now: 0,
            used: BTreeSet::new(),
            value: 0.0,
            bundles: 0,
        };
        let mut records: Vec<Record> = Vec::new();
        let mut withheld: Vec<(i64, Bundle)> = Vec::new();
        let mut growing: Option<Bundle> = None;
        for _ in 0..bundles {
            // Some bundles arrive in the same millisecond as the one before.
            if !logger.rng.percent(10) {
                logger.now += SECOND + logger.below(5 * MINUTE);
            }
            let now = logger.now;
            let ahead = match logger.clock {
                Clock::Ahead(ahead) => ahead,
                Clock::Jumps if logger.rng.percent(20) => 14 * MINUTE,
                Clock::Jumps => 0,
            };
            // Unless the clock jumps, new samples are later than all samples before, also if little time has passed.
            let last = logger.used.last().copied().filter(|_| logger.clock != Clock::Jumps);
            let until = last.map_or(now + ahead, |last| (now + ahead).max(last + 5 * SECOND + 1));
            let samples = logger.samples(until);
            let bundle = match growing.take().filter(|_| !logger.rng.percent(10)) {
                Some(mut bundle) => {
                    bundle.series[0].samples.extend(samples);
                    bundle
                }
                None => logger.bundle(samples),
            };
            if grows {
                growing = Some(bundle.clone());
            }
            if !in_order && !grows && logger.rng.percent(10) {
                let until = now + logger.below(80) * MINUTE;
                withheld.push((until, bundle));
            } else {
                records.push(Record { arrival: now, bundle });
            }
            let due = withheld.extract_if(.., |(until, _)| *until <= now);
            records.extend(due.map(|(_, bundle)| Record { arrival: now, bundle }));
            if logger.rng.percent(20) {
                let fast = logger.clock == Clock::Ahead(14 * MINUTE);
                let back = if in_order && fast { 0 } else { logger.rng.index(4) };
                let repeated = records.iter().rev().nth(back).map(|record| record.bundle.clone());
                records.extend(repeated.map(|bundle| Record { arrival: now, bundle }));
            }
        }
        let not_live = logger.rng.in_range(0, 5);
        for _ in 0..not_live {
            let at = logger.rng.index(records.len());
            let bundle = logger.not_live();
            let arrival = records[at].arrival;
            records.insert(at, Record { arrival, bundle });
        }
        Self { records, in_order }
    }
}

/// The record with which a sample was first sent, for the model.
#[derive(Clone, Copy, Debug)]
struct FirstSent {
    record: usize,
    /// Whether it must have been judged, because it is after the arrival of all earlier records.
    is_new: bool,
}

/// The model of a run.
#[derive(Default)]
struct Model {
    sent: BTreeMap<Timestamp, FirstSent>,
    /// The latest of these times: for each judged record, the earlier of its last judged sample and its arrival.
    watermark: Option<Timestamp>,
    last_arrival: Option<Timestamp>,
    expected: ExpectedAlerts,
    emitted: ExpectedAlerts,
}

impl Model {
    /// Adds a record that is delivered for the first time. Returns the last value that must have been judged.
    fn add(&mut self, sensor: &Sensor, index: usize, record: &Record) -> Option<f64> {
        let arrival = noon(0).plus_millis(record.arrival);
        let Bundle { origin, revision, series, .. } = &record.bundle;
        let (mut last_new, mut last) = (None, None);
        for sample in &series[0].samples {
            if self.sent.contains_key(&sample.at) {
                continue;
            }
            let value = usable(*sample).filter(|_| *origin == Origin::Live && *revision == 1);
            let value = value.filter(|_| sample.at >= oldest(arrival));
            let is_new = value.is_some() && Some(sample.at) > self.last_arrival;
            self.sent.insert(sample.at, FirstSent { record: index, is_new });
            let Some(value) = value else { continue };
            last = Some(sample.at.min(arrival));
            last_new = if is_new { Some(value) } else { last_new };
            if Some(sample.at) > self.watermark {
                self.expected.add_reading(sensor, sample.at, value);
            }
        }
        self.watermark = self.watermark.max(last);
        self.last_arrival = Some(arrival);
        last_new
    }

    /// Checks an alert that this record caused.
    fn check(&mut self, sensor: &Sensor, alert: &Alert, record: &Record) {
        let Alert { at, value, .. } = *alert;
        let is_repeated = self.emitted.alerts.iter().any(|earlier| earlier.at == at);
        assert!(!is_repeated, "{alert:?} is a repeat");
        self.emitted.add_reading(sensor, at, value);
        assert_eq!(self.emitted.alerts.last(), Some(alert), "the alert does not follow");
        let Bundle { origin, revision, series, .. } = &record.bundle;
        assert_eq!((*origin, *revision), (Origin::Live, 1), "{alert:?}");
        let sample = series[0].samples.iter().find(|sample| sample.at == at).expect("the sample");
        assert_eq!(usable(*sample), Some(value), "{alert:?}");
        assert!(at >= oldest(noon(0).plus_millis(record.arrival)), "{alert:?} is too old");
    }

    /// Checks that the state is that of the last live value, unless the value is within the deadband.
    fn check_state(&self, value: f64) {
        let state = match self.emitted.alerts.last() {
            Some(Alert { change: Change::Breached(limit, _), .. }) => Some(*limit),
            _ => None,
        };
        let expected = match value {
            _ if value > 50.0 => Some(Limit::Max),
            _ if value < -50.0 => Some(Limit::Min),
            _ if value.abs() <= 49.5 => None,
            _ => return,
        };
        assert_eq!(state, expected, "the crossing to {value} is missed");
    }
}

fn usable(sample: Sample) -> Option<f64> {
    sample.counted(Quality::Usable).filter(|value| value.abs() <= 100.0)
}

fn oldest(arrival: Timestamp) -> Timestamp {
    arrival.plus_millis(-i64::try_from(MAX_AGE.as_millis()).expect("an hour"))
}

fn environment(cloud: &Cloud) -> DetectBreaches {
    DetectBreaches {
        alerting: cloud.table(ALERTING),
        outbox: cloud.outbox(),
        watermarks: WatermarkCache::default(),
        max_age: MAX_AGE,
    }
}

/// Delivers a record. Returns the alerts that were emitted.
async fn deliver(cloud: &Cloud, to: &DetectBreaches, index: usize, record: &Record) -> Vec<Alert> {
    let log_position = cloud.log_length();
    #[expect(clippy::cast_precision_loss, reason = "exact")]
    let arrival = noon(0).plus_millis(record.arrival).millis() as f64 / 1000.0;
    let event = json!({ "Records": [{
        "eventID": index.to_string(),
        "kinesis": {
            "partitionKey": record.bundle.site_id,
            "sequenceNumber": index.to_string(),
            "data": STANDARD.encode(serde_json::to_vec(&record.bundle).expect("JSON")),
            "approximateArrivalTimestamp": arrival,
        },
    }] });
    let payload = to_raw_value(&event).expect("JSON");
    let response = to.handle(&payload, Deadline::after(Duration::from_secs(30))).await;
    assert_eq!(response.expect("a response").batch_item_failures, []);
    cloud.log_from(log_position).iter().flat_map(alerts_in).collect()
}

/// Returns the alerts that an entry of the log commits.
fn alerts_in(entry: &Entry) -> Vec<Alert> {
    let Entry::Effect { body, .. } = entry else { return Vec::new() };
    let actions = body["TransactItems"].as_array().map_or(&[][..], Vec::as_slice);
    let items = actions.iter().map(|action| &action["Put"]["Item"]);
    let events = items.filter(|item| item["entity"].is_object());
    let alert = |item: &Value| Some(alert_in(&cloud::read::<EventRow>(item))?.1);
    events.filter_map(alert).collect()
}

/// The counts of one run or of all runs.
#[derive(Debug, Default)]
struct Counts {
    alerts: usize,
    states: usize,
    restarts: usize,
    redeliveries: usize,
    exact: usize,
    /// The runs whose alerts were not exact, because late samples were judged after a restart.
    late: usize,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.alerts += other.alerts;
        self.states += other.states;
        self.restarts += other.restarts;
        self.redeliveries += other.redeliveries;
        self.exact += other.exact;
        self.late += other.late;
    }
}

fn simulate(seed: u64) -> Counts {
    let mut rng = Rng::from_seed(seed);
    let cloud = Cloud::new(rng.fork());
    let Workload { records, in_order } = Workload::make(&mut rng);
    let (restarts, redelivers) = (rng.percent(60), rng.percent(60));
    let sensor = &sensors(saga("a"), &METRICS)[0];
    cloud::run(async {
        let (alerting, outbox) = (cloud.table(ALERTING), cloud.outbox());
        let payload = payload_with_sensors(saga("a"), &METRICS);
        run(&ConfigureAlerting { alerting, outbox }, &payload).await.expect("alerting");

        let mut counts = Counts::default();
        let mut model = Model::default();
        let mut environments = [environment(&cloud), environment(&cloud)];
        let (mut position, mut delivered) = (0, 0);
        // The latest arrival of a record that caused an alert.
        let mut last_change = None;
        while let Some(record) = records.get(position) {
            if restarts && rng.percent(15) {
                counts.restarts += 1;
                environments[rng.index(2)] = environment(&cloud);
            }
            let chosen = if restarts { rng.index(2) } else { 0 };
            let alerts = deliver(&cloud, &environments[chosen], position, record).await;
            let is_first = position >= delivered;
            let last = if is_first { model.add(sensor, position, record) } else { None };
            for alert in &alerts {
                let FirstSent { record: first, is_new } = model.sent[&alert.at];
                let is_ahead = alert.at > noon(0).plus_millis(record.arrival);
                let is_earlier = Some(record.arrival) < last_change;
                let was_judged = !is_first && first == position && is_new && is_ahead && is_earlier;
                assert!(!was_judged, "{alert:?} was judged");
                model.check(sensor, alert, record);
            }
            if !alerts.is_empty() {
                last_change = last_change.max(Some(record.arrival));
            }
            if let Some(value) = last {
                counts.states += 1;
                model.check_state(value);
            }
            position += 1;
            delivered = delivered.max(position);
            if redelivers && rng.percent(10) {
                counts.redeliveries += 1;
                position = position.saturating_sub(rng.index(6));
            }
        }
        let Model { emitted, expected, .. } = model;
        let is_exact = emitted.alerts == expected.alerts;
        assert!(is_exact || (restarts && !in_order), "{:?}\n{:?}", emitted.alerts, expected.alerts);
        counts.alerts += emitted.alerts.len();
        counts.exact += usize::from(is_exact);
        counts.late += usize::from(!is_exact);
        counts
    })
}

#[test]
fn every_live_crossing_is_one_alert() {
    let mut total = Counts::default();
    for counts in seeds(SEEDS, simulate) {
        total += counts;
    }
    eprintln!("{total:?}");
    if all_seeds() {
        let Counts { alerts, states, restarts, redeliveries, exact, .. } = total;
        assert!(alerts > 1_000 && states > 2_000, "{total:?}");
        assert!(restarts > 300 && redeliveries > 300 && exact > 200, "{total:?}");
    }
}
