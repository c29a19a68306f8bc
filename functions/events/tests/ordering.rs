//! Events are published in order per entity, whatever the order of the stream. The events of one transaction are
//! separate items, and DynamoDB Streams preserve the order per item only.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use contracts::{Entity, events::SiteActivated};
use events::{publish_events::PublishEvents, publisher::Publisher, sweep_events::SweepEvents};
use futures_util::future::LocalBoxFuture;
use lambda::{Deadline, Step};
use quarantine::Quarantine;
use serde_json::{Value, json, value::to_raw_value};
use store::{EventRow, NewEvent};
use testkit::{
    cloud::{self, CallFault, Cloud},
    dynamo::EVENTS,
    mapping::{FaultRates, Function, Mapping, MappingEvent, Record, Settings, Stream},
    rng::{Rng, all_seeds, seeds},
    sample::{self, noon, saga},
};
use tokio::{
    task::spawn_local,
    time::{Instant, sleep, sleep_until},
};

/// The settings in template.yaml.
const SETTINGS: Settings = Settings {
    batch_size: 100,
    full_batches: false,
    parallelization_factor: 1,
    bisects: true,
    max_retries: 100,
    max_age: Duration::from_hours(1),
    timeout: Duration::from_secs(30),
};
const SEEDS: u64 = 8;
const SITES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// A type that the bus refuses, for runs with refused events.
const BAD_TYPE: &str = "Refused";

fn publisher(cloud: &Cloud) -> Publisher {
    let bus = aws_sdk_eventbridge::config::Builder::from(&cloud.config()).allow_no_auth();
    Publisher {
        events: cloud.table(EVENTS),
        bus: aws_sdk_eventbridge::Client::from_conf(bus.build()),
        bus_name: "fieldstation".to_owned(),
        quarantine: Quarantine {
            queues: cloud.queues(),
            url: "http://cloud/quarantine".to_owned(),
            source: "publish-events",
        },
    }
}

/// The function publish-events, as Lambda invokes it.
struct PublishFunction {
    cloud: Cloud,
    given_up: Cell<usize>,
    /// The keys of the records that were delivered.
    delivered: RefCell<BTreeMap<String, BTreeSet<u64>>>,
    /// The number of records whose first delivery was after a later record of their entity.
    reversed: Cell<usize>,
}

impl PublishFunction {
    fn new(cloud: &Cloud) -> Self {
        Self {
            cloud: cloud.clone(),
            given_up: Cell::default(),
            delivered: RefCell::default(),
            reversed: Cell::default(),
        }
    }

    fn record_delivery(&self, record: &Value) {
        let keys = &record["dynamodb"]["Keys"];
        let mut delivered = self.delivered.borrow_mut();
        let sequences = delivered.entry(text(&keys["entity"]["S"]).to_owned()).or_default();
        let sequence = text(&keys["sequence"]["N"]).parse().expect("a number");
        if sequences.insert(sequence) && sequences.last() != Some(&sequence) {
            self.reversed.set(self.reversed.get() + 1);
        }
    }
}

impl Function for PublishFunction {
    type Environment = PublishEvents;

    fn start(&self) -> PublishEvents {
        PublishEvents { publisher: publisher(&self.cloud) }
    }

    fn invoke(
        &self,
        step: Rc<PublishEvents>,
        records: Vec<Rc<Record>>,
        time: Duration,
    ) -> LocalBoxFuture<'static, Result<Value, String>> {
        let records: Vec<_> = records.iter().map(|record| record.table_event()).collect();
        for record in &records {
            self.record_delivery(record);
        }
        Box::pin(async move {
            let payload = to_raw_value(&json!({ "Records": records })).expect("JSON");
            let deadline = Deadline::after(time.saturating_sub(Duration::from_millis(500)));
            match step.handle(&payload, deadline).await {
                Ok(response) => Ok(json!(response)),
                Err(failure) => Err(failure.message),
            }
        })
    }

    fn gave_up(&self, records: &[Rc<Record>], _: Value) {
        self.given_up.set(self.given_up.get() + records.len());
    }
}

/// Returns an event of a site that is committed `at` after the beginning.
fn row(site: &str, sequence: u64, at: Duration) -> EventRow {
    let saga = saga(site);
    let at = noon(0).plus_millis(i64::try_from(at.as_millis()).expect("a small number"));
    let data = SiteActivated { site_id: saga.site_id };
    NewEvent::in_saga(saga, saga.site_id, sequence, at, data).row().expect("a row")
}

/// Returns the item's key as text, and its change in the stream's format.
fn inserted(row: &EventRow) -> (String, Value) {
    let item: serde_dynamo::Item = serde_dynamo::to_item(row).expect("an item");
    let image = json!(item);
    let keys = json!({ "entity": image["entity"], "sequence": image["sequence"] });
    let change = json!({ "Keys": keys, "NewImage": image });
    (format!("{}/{}", row.entity, row.sequence), change)
}

/// Returns the entity and sequence number of each entry that the bus accepted, in order.
fn published(cloud: &Cloud) -> Vec<(String, u64)> {
    let entries = cloud.published();
    let key = entries.iter().map(|entry| {
        let detail = entry["Detail"].as_str().expect("a detail");
        let detail: Value = serde_json::from_str(detail).expect("JSON");
        let entity = &detail["metadata"]["entity"];
        let key = format!("{}#{}", text(&entity["type"]), text(&entity["id"]));
        (key, detail["metadata"]["sequence"].as_u64().expect("a number"))
    });
    key.collect()
}

fn entity(site: &str) -> String {
    Entity::from(saga(site).site_id).to_string()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn rows(cloud: &Cloud) -> Vec<EventRow> {
    cloud.rows(EVENTS).iter().map(cloud::read).collect()
}

/// Returns the first occurrences on the bus, by entity.
fn first_occurrences(cloud: &Cloud) -> BTreeMap<String, Vec<u64>> {
    let mut seen = BTreeSet::new();
    let mut by_entity: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (entity, sequence) in published(cloud) {
        if seen.insert((entity.clone(), sequence)) {
            by_entity.entry(entity).or_default().push(sequence);
        }
    }
    by_entity
}

#[test]
fn a_transaction_split_and_reversed_between_two_batches_is_published_in_order() {
    cloud::run(async {
        let cloud = Cloud::new(Rng::from_seed(1));
        let pair = [1, 2].map(|sequence| row("a", sequence, Duration::ZERO));
        let mut stream = Stream::new(Rng::from_seed(1));
        for row in pair.iter().rev() {
            cloud.put(EVENTS, row);
            let (key, change) = inserted(row);
            stream.put(&key, change.to_string().into_bytes(), Duration::ZERO);
        }
        // The batch ends between the two records.
        let settings = Settings { batch_size: 1, ..SETTINGS };
        let function = PublishFunction::new(&cloud);
        let mapping = Mapping::new(settings, FaultRates::default(), Rng::from_seed(1), function);
        mapping.run(&stream).await;
        assert_eq!(mapping.event_counts()[&MappingEvent::Done], 2);
        let entity = pair[0].entity.clone();
        assert_eq!(
            published(&cloud),
            [(entity.clone(), 1), (entity, 2)],
            "each event once, in order"
        );
    });
}

/// The counts of one run.
#[derive(Debug)]
struct RunCounts {
    /// The number of records whose first delivery was after a later record of their entity.
    reversed: usize,
    /// The number of entries on the bus that were repeated.
    repeated: usize,
    refused: usize,
    /// The number of records that the mapping gave up. The sweep published them.
    given_up: usize,
    faults: BTreeMap<CallFault, u32>,
}

/// Runs publish-events and sweep-events with a disordered stream and with faults.
async fn simulate(seed: u64) -> RunCounts {
    let mut rng = Rng::from_seed(seed);
    let cloud = Cloud::new(rng.fork());
    let mut stream = Stream::new(rng.fork());
    let mut sequences = BTreeMap::new();
    let (mut commits, mut at) = (Vec::new(), Duration::from_secs(1));
    for transaction in 0..60_u32 {
        at += Duration::from_millis(rng.below(3_000));
        if transaction % 20 == 19 {
            stream.reshard();
        }
        let site = *rng.pick(&SITES);
        let events: Vec<_> = (0..=rng.below(3))
            .map(|_| {
                let sequence = sequences.entry(site).or_insert(0);
                *sequence += 1;
                let mut row = row(site, *sequence, at);
                if rng.percent(4) {
                    BAD_TYPE.clone_into(&mut row.kind);
                }
                row
            })
            .collect();
        stream.insert(events.iter().map(inserted).collect(), at);
        commits.push((at, events));
    }
    cloud.refuse_events(BAD_TYPE);
    cloud.inject_faults(8);
    let started = Instant::now();
    let committing_cloud = cloud.clone();
    let commits = spawn_local(async move {
        for (at, events) in commits {
            sleep_until(started + at - Duration::from_millis(1)).await;
            for row in &events {
                committing_cloud.put(EVENTS, row);
            }
        }
    });
    let function = PublishFunction::new(&cloud);
    let fault_rates = FaultRates { crash: 5, lost_response: 5, replaced_poller: 5, repeat: 10 };
    let mapping = Mapping::new(SETTINGS, fault_rates, rng.fork(), function);
    let sweeps = async {
        for minute in 1.. {
            sleep(Duration::from_mins(1)).await;
            if minute > 10 {
                cloud.stop_faults();
            }
            let event =
                fault::decode(&sample::event("sweep-events").to_string()).expect("an event");
            let now = noon(i64::try_from(started.elapsed().as_secs()).expect("a small number"));
            let step =
                SweepEvents { publisher: publisher(&cloud), timeout: Duration::from_secs(25) };
            // A panic is one of the faults. After a failed sweep, the next one runs a minute later.
            let result = spawn_local(async move { step.run(event, now).await.map(drop) }).await;
            let unpublished = rows(&cloud).iter().filter(|row| row.unpublished.is_some()).count();
            if minute > 10 && unpublished == 0 && matches!(result, Ok(Ok(()))) {
                return;
            }
            assert!(minute < 60, "seed {seed}: {unpublished} events are unpublished: {result:?}");
        }
    };
    tokio::join!(mapping.run(&stream), sweeps);
    commits.await.expect("the commits");

    let first = first_occurrences(&cloud);
    let mut refused = 0;
    for site in SITES {
        let mut site_rows = rows(&cloud);
        site_rows.retain(|row| row.entity == entity(site));
        site_rows.sort_by_key(|row| row.sequence);
        let (refused_rows, published_rows): (Vec<_>, Vec<_>) =
            site_rows.iter().partition(|row| row.kind == BAD_TYPE);
        refused += refused_rows.len();
        assert!(
            refused_rows.iter().all(|row| row.refused.is_some()),
            "seed {seed}: {refused_rows:#?}"
        );
        assert!(
            published_rows.iter().all(|row| row.published_at.is_some()),
            "seed {seed}: {published_rows:#?}"
        );
        let order: Vec<_> = published_rows.iter().map(|row| row.sequence).collect();
        let published = first.get(&entity(site)).cloned().unwrap_or_default();
        assert_eq!(published, order, "seed {seed}, site {site}");
    }
    let all = published(&cloud).len();
    let messages = cloud.messages().len();
    assert!(messages >= refused, "seed {seed}: {messages} messages of {refused} refused events");
    RunCounts {
        reversed: mapping.function().reversed.get(),
        repeated: all - first.values().map(Vec::len).sum::<usize>(),
        refused,
        given_up: mapping.function().given_up.get(),
        faults: cloud.faults(),
    }
}

#[test]
fn first_occurrences_are_in_order_under_faults() {
    let runs = seeds(SEEDS, |seed| cloud::run(simulate(seed)));
    if !all_seeds() {
        return;
    }
    // The runs prove nothing unless these cases occurred.
    let sum = |of: fn(&RunCounts) -> usize| runs.iter().map(of).sum::<usize>();
    let count = |fault| runs.iter().filter_map(|counts| counts.faults.get(&fault)).sum::<u32>();
    let [reversed, repeated] = [sum(|counts| counts.reversed), sum(|counts| counts.repeated)];
    let [refused, given_up] = [sum(|counts| counts.refused), sum(|counts| counts.given_up)];
    let faults: Vec<_> = CallFault::ALL.into_iter().map(|fault| (fault, count(fault))).collect();
    let summary = format!("{reversed}, {repeated}, {refused}, {given_up}, {faults:?}");
    assert!(reversed > 30 && repeated > 5 && refused > 5, "{summary}");
    assert!(faults.iter().all(|(_, count)| *count > 1), "{summary}");
}
