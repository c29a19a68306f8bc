//! Simulates watch-network and its rebuild under faults in all their dependencies. Each run is determined by its seed;
//! `SEED=123 make unit-test ARGS='--test simulation'` repeats one.
//!
//! A run appends events to the log and puts them on a stream, some twice and out of order. A model of Lambda's event
//! source mapping delivers them in batches. It delivers some records again: the rest of a batch from the first failed
//! record on, or a whole batch, also after a crash. Sometimes two execution environments have the same records at once.
//! Meanwhile an engineer on call rebuilds the counts, also with crashes, and aborts some of the rebuilds. In the end,
//! the rows equal those of a consumer that got each event once and in order, and no row of an earlier generation is
//! left.

mod support;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use contracts::{
    OperatorId, SiteId, Timestamp,
    open::OpenEnvelope,
    replay::{Applied, Begun, Cleaned, Rebuild},
};
use fault::{ErrorKind, InvocationError, ReplayResponse};
use futures_util::future::LocalBoxFuture;
use lambda::Deadline;
use serde_json::{Value, json, value::to_raw_value};
use support::{WatchNetwork, rows_of_current, watch_network};
use testkit::{
    cloud::{self, CallFault, Cloud},
    consuming::{EventConsumer, append, batch, event, until_poll},
    dynamo::{EVENTS, NETWORK},
    mapping::{self, FaultRates, Function, Mapping, MappingEvent, Record, Settings, Stream},
    rng::{Rng, all_seeds, seeds},
    sample::{noon, other_operator},
};
use tokio::{
    task::spawn_local,
    time::{Instant, sleep},
};

const SEEDS: u64 = 120;

/// Returns the histories of some entities, each in order.
fn histories(rng: &mut Rng) -> Vec<Vec<OpenEnvelope>> {
    let ends = ["SiteRejected", "SiteDecommissioned", "SiteRenamed", "SiteActivated"];
    (0..rng.in_range(2, 6))
        .map(|n| {
            let operator = *rng.pick(&[OperatorId::DEFAULT, other_operator()]);
            if rng.percent(60) {
                let id = SiteId::registered(operator, "", &n.to_string()).to_string();
                let mut kinds = vec!["SiteCreated"];
                if rng.percent(80) {
                    kinds.push("SiteActivated");
                }
                kinds.push(*rng.pick(&ends));
                (1..).zip(kinds).map(|(n, kind)| event(operator, ("site", &id), n, kind)).collect()
            } else {
                let count = u64::try_from(rng.in_range(1, 12)).expect("a number");
                let id = format!("S-{n}");
                let kinds: [&str; 2] = ["sample.taken", "sample.lost"];
                (1..=count)
                    .map(|n| {
                        let kind: &str = kinds[rng.index(kinds.len())];
                        event(operator, ("acme.sample", &id), n, kind)
                    })
                    .collect()
            }
        })
        .collect()
}

/// The function, as the mapping invokes it.
struct Watch {
    cloud: Cloud,
    /// The records that Lambda gave up on.
    given_up: Rc<RefCell<Vec<Value>>>,
}

impl Function for Watch {
    type Environment = WatchNetwork;

    fn start(&self) -> WatchNetwork {
        watch_network(&self.cloud)
    }

    fn invoke(
        &self,
        environment: Rc<WatchNetwork>,
        records: Vec<Rc<Record>>,
        time: Duration,
    ) -> LocalBoxFuture<'static, Result<Value, String>> {
        Box::pin(mapping::invoke(mapping::event(&records), time, async move |payload, deadline| {
            environment.0.handle(payload, deadline).await
        }))
    }

    fn gave_up(&self, records: &[Rc<Record>], _: Value) {
        self.given_up.borrow_mut().extend(records.iter().map(|record| record.event()));
    }
}

/// The engineer on call who rebuilds the counts.
struct Operator {
    cloud: Cloud,
    rng: Rng,
    start: Instant,
    /// The percentage of calls that die at some point.
    crashes: u64,
}

impl Operator {
    fn now(&self) -> Timestamp {
        let elapsed = self.start.elapsed().as_millis();
        noon(0).plus_millis(i64::try_from(elapsed).expect("a time"))
    }

    /// Repeats an action until it succeeds.
    async fn act(&mut self, action: Rebuild) -> Value {
        self.attempt(action).await.expect("the action is not refused")
    }

    /// Repeats an action until it succeeds or is refused.
    async fn attempt(&mut self, action: Rebuild) -> Result<Value, InvocationError> {
        loop {
            let polls =
                if self.rng.percent(self.crashes) { 1 + self.rng.below(40) } else { u64::MAX };
            let (cloud, action, now) = (self.cloud.clone(), action.clone(), self.now());
            let time = Duration::from_millis(*self.rng.pick(&[500, 5_000, 29_000]));
            let attempt = spawn_local(async move {
                let consumer = watch_network(&cloud).0;
                let work = Box::pin(consumer.rebuild(action, now, Deadline::after(time)));
                until_poll(work, polls).await
            });
            match attempt.await {
                Ok(Some(Ok(reply))) => return Ok(reply),
                Ok(Some(Err(refused))) if refused.kind == ErrorKind::InvalidInput => {
                    return Err(refused);
                }
                _ => self.pause(500).await,
            }
        }
    }

    /// Returns the entities of the log.
    fn entities(&self) -> Vec<String> {
        let rows = self.cloud.rows(EVENTS);
        let entity = |row: &Value| row["entity"]["S"].as_str().expect("a key").to_owned();
        rows.iter().map(entity).collect::<BTreeSet<_>>().into_iter().collect()
    }

    async fn pause(&mut self, millis: u64) {
        sleep(Duration::from_millis(self.rng.below(millis))).await;
    }

    /// Applies all events of these entities. An earlier fieldctl does not accept a partial reply.
    async fn apply(&mut self, generation: u64, entities: Vec<String>) {
        let partial = self.rng.percent(50);
        let action = Rebuild::Apply { generation, entities, partial };
        loop {
            let reply = self.act(action.clone()).await;
            let Applied { more, .. } = serde_json::from_value(reply).expect("applied");
            assert!(partial || !more, "a partial reply");
            if !more {
                return;
            }
        }
    }

    async fn rebuild(&mut self) {
        let begun: Begun = serde_json::from_value(self.act(Rebuild::Begin).await).expect("begun");
        let mut entities = self.entities();
        while !entities.is_empty() {
            let at = self.rng.index(entities.len());
            let entities = entities.split_off(at);
            self.apply(begun.generation, entities).await;
            self.pause(3_000).await;
            if self.rng.percent(10) {
                self.act(Rebuild::Abort).await;
                return;
            }
        }
        let generation = begun.generation;
        // A live event can't be applied while the log lacks an earlier event of its entity. Then `finish` is refused,
        // and the entities are applied again.
        while self.attempt(Rebuild::Finish { generation }).await.is_err() {
            self.apply(generation, self.entities()).await;
            self.pause(500).await;
        }
        for _ in 0..self.rng.below(4) {
            self.act(Rebuild::Clean).await;
            self.pause(40_000).await;
        }
    }
}

/// The counts of one run or of all runs.
#[derive(Debug, Default)]
struct Occurrences {
    faults: BTreeMap<CallFault, u32>,
    mapping_events: BTreeMap<MappingEvent, u32>,
    replayed: usize,
    rebuilds: u64,
}

async fn expected(histories: &[Vec<OpenEnvelope>]) -> Vec<Value> {
    let reference = Cloud::new(Rng::from_seed(1));
    for event in histories.iter().flatten() {
        let (consumer, batch) = (watch_network(&reference), batch([event]));
        let response = consumer.handle(&batch, Duration::from_secs(29)).await;
        assert_eq!(response.expect("a response")["batchItemFailures"], json!([]));
    }
    rows_of_current(&reference)
}

fn simulate(seed: u64) -> Occurrences {
    let mut rng = Rng::from_seed(seed);
    let cloud = Cloud::new(rng.fork());
    let histories = histories(&mut rng);
    let mut stream = Stream::new(rng.fork());
    let mut log = Vec::new();
    let mut puts = Vec::new();
    let spread = *rng.pick(&[100, 2_000, 8_000]);
    for history in &histories {
        let mut at = Duration::from_millis(rng.below(spread));
        for event in history {
            log.push((at, event.clone()));
            for _ in 0..=(rng.below(5) / 3) {
                puts.push((at + Duration::from_millis(rng.below(spread)), event.clone()));
            }
            at += Duration::from_millis(rng.below(spread));
        }
    }
    log.sort_by_key(|(at, _)| *at);
    puts.sort_by_key(|(at, _)| *at);
    for (at, event) in puts {
        if rng.percent(3) {
            stream.reshard();
        }
        let data = serde_json::to_vec(&event).expect("JSON");
        stream.put(&event.metadata.log_key(), data, at);
    }
    let settings = Settings {
        batch_size: rng.in_range(1, 20),
        full_batches: rng.percent(40),
        parallelization_factor: 1 + rng.below(2),
        bisects: true,
        max_retries: *rng.pick(&[1, 20]),
        max_age: Duration::from_hours(1),
        timeout: Duration::from_secs(*rng.pick(&[4, 30])),
    };
    let percent = *rng.pick(&[0, 5, 15, 25]);
    let fault_rates = match percent {
        0 => FaultRates::default(),
        _ => FaultRates { crash: 8, lost_response: 5, replaced_poller: 8, repeat: 15 },
    };
    let rebuilds = rng.below(3);
    let given_up = Rc::default();
    let function = Watch { cloud: cloud.clone(), given_up: Rc::clone(&given_up) };

    cloud::run(async {
        let start = Instant::now();
        cloud.inject_faults(percent);
        let mapping = Mapping::new(settings, fault_rates, rng.fork(), function);
        let crashes = if percent == 0 { 0 } else { 30 };
        let mut operator = Operator { cloud: cloud.clone(), rng: rng.fork(), start, crashes };
        let in_log = cloud.clone();
        let writer = spawn_local(async move {
            for (at, event) in log {
                tokio::time::sleep_until(start + at).await;
                append(&in_log, &event);
            }
        });
        let operating = spawn_local(async move {
            for _ in 0..rebuilds {
                operator.pause(3 * spread).await;
                operator.rebuild().await;
            }
            operator
        });
        mapping.run(&stream).await;
        writer.await.expect("the log");
        let mut operator = operating.await.expect("the rebuilds");
        cloud.stop_faults();
        // Requests that are late take effect within 15 seconds.
        sleep(Duration::from_secs(15)).await;

        let given_up: Vec<Value> = given_up.take();
        for record in &given_up {
            let record = to_raw_value(record).expect("JSON");
            let deadline = Deadline::after(Duration::from_secs(29));
            let replayed = watch_network(&cloud).0.replay(&record, deadline).await;
            assert_eq!(replayed, ReplayResponse::Done, "seed {seed}");
        }
        loop {
            let reply = operator.act(Rebuild::Clean).await;
            let cleaned: Cleaned = serde_json::from_value(reply).expect("cleaned");
            if !cleaned.more {
                break;
            }
            sleep(Duration::from_secs(20)).await;
        }
        assert_eq!(rows_of_current(&cloud), expected(&histories).await, "seed {seed}");
        let negative = cloud.rows(NETWORK).iter().any(|row| row.to_string().contains("{\"N\":\"-"));
        assert!(!negative, "seed {seed}: a count is negative");
        Occurrences {
            faults: cloud.faults(),
            mapping_events: mapping.event_counts(),
            replayed: given_up.len(),
            rebuilds,
        }
    })
}

#[test]
fn counts_are_exact_after_faults_and_rebuilds() {
    let mut total = Occurrences::default();
    for run in seeds(SEEDS, simulate) {
        for (fault, count) in run.faults {
            *total.faults.entry(fault).or_default() += count;
        }
        for (event, count) in run.mapping_events {
            *total.mapping_events.entry(event).or_default() += count;
        }
        total.replayed += run.replayed;
        total.rebuilds += run.rebuilds;
    }
    if all_seeds() {
        assert!(CallFault::ALL.iter().all(|fault| total.faults.contains_key(fault)), "{total:?}");
        for event in [MappingEvent::Crashed, MappingEvent::PollerReplaced, MappingEvent::Repeated] {
            assert!(total.mapping_events.contains_key(&event), "{event:?} did not occur");
        }
        assert!(total.replayed > 0 && total.rebuilds > 50, "{total:?}");
    }
}
