//! Simulations: events get on the stream of all events in order per entity, whatever the order of the table's stream. The
//! events of one transaction are separate items, and DynamoDB Streams preserve the order per item only.
//!
//! publish-events and sweep-events run with crashes, lost responses, throttles, repeated deliveries, splits of both
//! streams, and an outlet that does not work for a minute or refuses events for good.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{Entity, events::SiteActivated};
use events::{
    publish_events::PublishEvents,
    publisher::{Bus, EventStream, Memory, Publisher},
    sweep_events::SweepEvents,
};
use futures_util::future::LocalBoxFuture;
use lambda::Step;
use quarantine::Quarantine;
use serde_json::{Value, json};
use store::{EventRow, NewEvent, Table};
use testkit::{
    cloud::{self, CallFault, Cloud, Entry},
    dynamo::EVENTS,
    mapping::{self, FaultRates, Function, Mapping, MappingEvent, Record, Settings, Stream},
    rng::{Rng, all_seeds, seed_count, seeds},
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
/// The numbers of seeds of `make test` and of `make proofs`.
const SEEDS: (u64, u64) = (150, 500);
const SITES: [&str; 3] = ["a", "b", "c"];
/// A type that the bus refuses.
const BUS_REFUSES: &str = "RefusedByTheBus";
/// A text in the detail of events that the stream refuses.
const STREAM_REFUSES: &str = "refused by the stream";
/// The detail of a row that is not an event.
const INVALID: &str = "{}";
/// The operations of the outlets.
const OUTLETS: [&str; 2] = ["PutRecords", "PutEvents"];
/// A seed for which a consumer behind EventBridge gets an entity's events out of order.
const OUT_OF_ORDER_BEHIND_THE_BUS: u64 = 1;
/// A seed for which version 1's rule puts an entity's events on the stream out of order.
const OUT_OF_ORDER_IN_VERSION_1: u64 = 1;

/// The entity and sequence number of an event.
type EventKey = (String, u64);

/// The clients of a cloud. Creating them takes longer than a run of the publisher.
#[derive(Clone)]
struct Clients {
    events: Table,
    stream: aws_sdk_kinesis::Client,
    bus: aws_sdk_eventbridge::Client,
    queues: aws_sdk_sqs::Client,
}

impl Clients {
    fn new(cloud: &Cloud) -> Self {
        let bus = aws_sdk_eventbridge::config::Builder::from(&cloud.config()).allow_no_auth();
        let stream = aws_sdk_kinesis::config::Builder::from(&cloud.config()).allow_no_auth();
        Self {
            events: cloud.table(EVENTS),
            stream: aws_sdk_kinesis::Client::from_conf(stream.build()),
            bus: aws_sdk_eventbridge::Client::from_conf(bus.build()),
            queues: cloud.queues(),
        }
    }

    /// Returns the publisher of a new execution environment.
    fn publisher(&self) -> Publisher {
        Publisher {
            events: self.events.clone(),
            stream: EventStream { client: self.stream.clone(), name: "events".to_owned() },
            bus: Bus { client: self.bus.clone(), name: "fieldstation".to_owned() },
            quarantine: Quarantine {
                queues: self.queues.clone(),
                url: "http://cloud/quarantine".to_owned(),
                source: "publish-events",
            },
            memory: Memory::default(),
        }
    }
}

/// The function publish-events, as Lambda invokes it.
struct PublishFunction {
    clients: Clients,
    /// The keys of the records that were delivered.
    delivered: RefCell<BTreeMap<String, BTreeSet<u64>>>,
    /// The number of records whose first delivery was after a later record of their entity.
    reversed: Cell<usize>,
}

impl PublishFunction {
    fn new(cloud: &Cloud) -> Self {
        Self {
            clients: Clients::new(cloud),
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
        PublishEvents { publisher: self.clients.publisher() }
    }

    fn invoke(
        &self,
        step: Rc<PublishEvents>,
        records: Vec<Rc<Record>>,
        time: Duration,
    ) -> LocalBoxFuture<'static, Result<Value, String>> {
        let batch = mapping::table_event(&records);
        for record in batch["Records"].as_array().expect("records") {
            self.record_delivery(record);
        }
        Box::pin(mapping::invoke(batch, time, async move |payload, deadline| {
            step.handle(payload, deadline).await
        }))
    }

    /// The sweep publishes the events of records that the mapping gives up.
    fn gave_up(&self, _: &[Rc<Record>], _: Value) {}
}

/// Returns an event of a site. It is committed when the time `at` has passed since the beginning.
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

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn entity(site: &str) -> String {
    Entity::from(saga(site).site_id).to_string()
}

fn rows(cloud: &Cloud) -> Vec<EventRow> {
    cloud.rows(EVENTS).iter().map(cloud::read).collect()
}

/// Returns the key of the event with this detail.
fn key(detail: &[u8]) -> EventKey {
    let detail: Value = serde_json::from_slice(detail).expect("JSON");
    let entity = &detail["metadata"]["entity"];
    let entity = format!("{}#{}", text(&entity["type"]), text(&entity["id"]));
    (entity, detail["metadata"]["sequence"].as_u64().expect("a number"))
}

fn row_key(row: &EventRow) -> EventKey {
    (row.entity.clone(), row.sequence)
}

fn is_invalid(row: &EventRow) -> bool {
    row.detail == INVALID
}

/// Returns for each outlet whether it refuses the event. A row that is not an event is sent to none.
fn refusals(row: &EventRow) -> [bool; 2] {
    let refuses = [row.detail.contains(STREAM_REFUSES), row.kind == BUS_REFUSES];
    refuses.map(|refuses| refuses && !is_invalid(row))
}

/// Returns the keys in a call of an outlet.
fn keys_in_call(operation: &str, body: &Value) -> Vec<EventKey> {
    let decode = |record: &Value| STANDARD.decode(text(&record["Data"])).expect("base64");
    let keys: Vec<_> = match operation {
        "PutRecords" => {
            let records = body["Records"].as_array().expect("records").iter();
            records.map(|record| key(&decode(record))).collect()
        }
        "PutEvents" => {
            let entries = body["Entries"].as_array().expect("entries").iter();
            entries.map(|entry| key(text(&entry["Detail"]).as_bytes())).collect()
        }
        _ => Vec::new(),
    };
    keys
}

/// Returns the first occurrences, by entity.
fn first_occurrences(keys: impl IntoIterator<Item = EventKey>) -> BTreeMap<String, Vec<u64>> {
    let mut seen = BTreeSet::new();
    let mut by_entity: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (entity, sequence) in keys {
        if seen.insert((entity.clone(), sequence)) {
            by_entity.entry(entity).or_default().push(sequence);
        }
    }
    by_entity
}

fn on_stream(cloud: &Cloud) -> Vec<EventKey> {
    cloud.records().iter().map(|record| key(&record.data)).collect()
}

fn on_bus(cloud: &Cloud) -> Vec<EventKey> {
    cloud.published().iter().map(|entry| key(text(&entry["Detail"]).as_bytes())).collect()
}

/// A consumer of the stream of all events. It records each event that it gets.
#[derive(Default)]
struct Consumer {
    got: Rc<RefCell<Vec<EventKey>>>,
}

impl Function for Consumer {
    type Environment = ();

    fn start(&self) {}

    fn invoke(
        &self,
        _: Rc<()>,
        records: Vec<Rc<Record>>,
        _: Duration,
    ) -> LocalBoxFuture<'static, Result<Value, String>> {
        let got = Rc::clone(&self.got);
        Box::pin(async move {
            for record in records {
                // A crash may occur between two records.
                sleep(Duration::from_millis(1)).await;
                got.borrow_mut().push(key(&record.data));
            }
            Ok(Value::Null)
        })
    }

    fn gave_up(&self, _: &[Rc<Record>], _: Value) {}
}

/// Delivers the records of the stream of all events, which is split meanwhile, to a consumer. Returns what it got.
async fn consume(
    cloud: &Cloud,
    started: Instant,
    fault_rates: FaultRates,
    mut rng: Rng,
) -> Vec<EventKey> {
    let mut stream = Stream::new(rng.fork());
    for record in cloud.records() {
        if rng.percent(5) {
            stream.reshard();
        }
        stream.put(&record.partition_key, record.data, record.at - started);
    }
    let mapping = Mapping::new(SETTINGS, fault_rates, rng, Consumer::default());
    mapping.run(&stream).await;
    mapping.function().got.take()
}

/// Returns what a consumer behind EventBridge would get if the records had been put on the bus at the same times as on
/// the stream. It is a model of EventBridge's delivery, not of a publisher: EventBridge starts the delivery of each event
/// on its own, and AWS documents no order. Here each takes up to half a second.
fn deliver_by_bus(cloud: &Cloud, mut rng: Rng) -> Vec<EventKey> {
    let mut deliveries: Vec<_> = cloud
        .records()
        .iter()
        .map(|record| (record.at + Duration::from_millis(rng.below(500)), key(&record.data)))
        .collect();
    deliveries.sort();
    deliveries.into_iter().map(|(_, key)| key).collect()
}

/// Version 1's rule, on the stream: the events of a batch are put in order per entity, one after the other. Earlier events
/// that are not in the batch are not read.
struct VersionOne(aws_sdk_kinesis::Client);

impl Function for VersionOne {
    type Environment = ();

    fn start(&self) {}

    fn invoke(
        &self,
        _: Rc<()>,
        records: Vec<Rc<Record>>,
        _: Duration,
    ) -> LocalBoxFuture<'static, Result<Value, String>> {
        let image = |record: &Rc<Record>| record.table_event()["dynamodb"]["NewImage"].take();
        let mut rows: Vec<EventRow> = records
            .iter()
            .map(|record| serde_json::from_value(image(record)).expect("an item"))
            .map(|item: serde_dynamo::Item| serde_dynamo::from_item(item).expect("a row"))
            .collect();
        rows.sort_by_key(|row| row.sequence);
        let stream = self.0.clone();
        Box::pin(async move {
            for row in rows {
                let record = PutRecordsRequestEntry::builder()
                    .data(row.detail.into_bytes().into())
                    .partition_key(row.entity)
                    .build();
                let record = record.map_err(|error| error.to_string())?;
                let put = stream.put_records().stream_name("events").records(record).send().await;
                put.map_err(|error| error.to_string())?;
            }
            Ok(Value::Null)
        })
    }

    fn gave_up(&self, _: &[Rc<Record>], _: Value) {}
}

fn is_in_order(got: Vec<EventKey>) -> bool {
    first_occurrences(got).values().all(|sequences| sequences.is_sorted())
}

#[test]
fn a_transaction_split_and_reversed_between_two_batches_is_put_on_the_stream_in_order() {
    cloud::run(async {
        let cloud = Cloud::with_tables(&[EVENTS], Rng::from_seed(1));
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
        let keys = pair.each_ref().map(row_key);
        assert_eq!(on_stream(&cloud), keys, "each once, in order");
        assert_eq!(on_bus(&cloud).len(), 2, "each once");
        assert!(rows(&cloud).iter().all(|row| row.published_at.is_some()));
    });
}

/// The work of a run: transactions, and the stream of the table.
struct Load {
    stream: Stream,
    commits: Vec<(Duration, Vec<EventRow>)>,
}

impl Load {
    /// Creates transactions of one to three events of a site. `refused_percent` of the events are refused by each outlet,
    /// and as many rows are not events.
    fn new(rng: &mut Rng, transactions: u64, refused_percent: u64) -> Self {
        let mut stream = Stream::new(rng.fork());
        let mut sequences = BTreeMap::new();
        let (mut commits, mut at) = (Vec::new(), Duration::from_secs(1));
        for _ in 0..transactions {
            at += Duration::from_millis(rng.below(6_000));
            if rng.percent(15) {
                stream.reshard();
            }
            let site = *rng.pick(&SITES);
            let events: Vec<_> = (0..=rng.below(3))
                .map(|_| {
                    let sequence = sequences.entry(site).or_insert(0);
                    *sequence += 1;
                    let mut row = row(site, *sequence, at);
                    if rng.percent(refused_percent) {
                        BUS_REFUSES.clone_into(&mut row.kind);
                    }
                    if rng.percent(refused_percent) {
                        let refused = format!(r#"{{"note":"{STREAM_REFUSES}","#);
                        row.detail.replace_range(..1, &refused);
                    }
                    if rng.percent(refused_percent) {
                        INVALID.clone_into(&mut row.detail);
                    }
                    row
                })
                .collect();
            stream.insert(events.iter().map(inserted).collect(), at);
            commits.push((at, events));
        }
        Self { stream, commits }
    }

    /// Commits the transactions, and runs publish-events and sweep-events until all events are settled. `minutes` is the
    /// time after which there are no more faults.
    async fn publish(
        self,
        cloud: &Cloud,
        fault_rates: FaultRates,
        rng: Rng,
        minutes: u64,
        seed: u64,
    ) -> Mapping<PublishFunction> {
        let started = Instant::now();
        let committing_cloud = cloud.clone();
        let commits = spawn_local(async move {
            for (at, events) in self.commits {
                sleep_until(started + at - Duration::from_millis(1)).await;
                for row in &events {
                    committing_cloud.put(EVENTS, row);
                }
            }
        });
        let mapping = Mapping::new(SETTINGS, fault_rates, rng, PublishFunction::new(cloud));
        let sweeps = async {
            let clients = &mapping.function().clients;
            let environment =
                || SweepEvents { publisher: clients.publisher(), timeout: Duration::from_secs(25) };
            let mut sweeper = Rc::new(environment());
            for minute in 1.. {
                sleep_until(started + Duration::from_mins(minute)).await;
                if minute > minutes {
                    cloud.stop_faults();
                }
                let event =
                    fault::decode(&sample::event("sweep-events").to_string()).expect("an event");
                let now = noon(i64::try_from(started.elapsed().as_secs()).expect("a small number"));
                let step = Rc::clone(&sweeper);
                // A panic is one of the faults. After a failed sweep, the next one runs a minute later.
                let result = spawn_local(async move { step.run(event, now).await.map(drop) }).await;
                if result.is_err() {
                    sweeper = Rc::new(environment());
                }
                let unpublished =
                    rows(cloud).iter().filter(|row| row.unpublished.is_some()).count();
                if minute > minutes && unpublished == 0 && matches!(result, Ok(Ok(()))) {
                    return;
                }
                assert!(
                    minute < 30,
                    "seed {seed}: {unpublished} events are unpublished: {result:?}"
                );
            }
        };
        tokio::join!(mapping.run(&self.stream), sweeps);
        commits.await.expect("the commits");
        mapping
    }
}

/// Checks that each mark was set when each outlet had the event or refuses it, or when the row is not an event.
fn check_marks(cloud: &Cloud, seed: u64) {
    let by_key: BTreeMap<_, _> = rows(cloud).into_iter().map(|row| (row_key(&row), row)).collect();
    let mut accepted = [BTreeSet::new(), BTreeSet::new()];
    for entry in cloud.log_from(0) {
        let Entry::Effect { operation, body } = entry else { continue };
        if let Some(outlet) = OUTLETS.iter().position(|outlet| *outlet == operation) {
            accepted[outlet].extend(keys_in_call(&operation, &body));
        }
        if operation != "TransactWriteItems" && operation != "UpdateItem" {
            continue;
        }
        let update = if operation == "UpdateItem" {
            (*body).clone()
        } else {
            body["TransactItems"][0]["Update"].clone()
        };
        let (entity, sequence) = (&update["Key"]["entity"]["S"], &update["Key"]["sequence"]["N"]);
        let key = (text(entity).to_owned(), text(sequence).parse().expect("a number"));
        let is_refused = update["ExpressionAttributeValues"].get(":refused").is_some();
        let row = &by_key[&key];
        let refuses = refusals(row).map(|refuses| refuses || is_invalid(row));
        assert_eq!(is_refused, refuses.contains(&true), "seed {seed}: the mark of {row:?}");
        for (outlet, refuses) in refuses.into_iter().enumerate() {
            let has_it = refuses || accepted[outlet].contains(&key);
            assert!(has_it, "seed {seed}: {key:?} is marked before {} has it", OUTLETS[outlet]);
        }
    }
}

/// The counts of one run.
#[derive(Debug)]
struct RunCounts {
    /// The number of records whose first delivery was after a later record of their entity.
    reversed: usize,
    /// The number of events that were put on the stream again.
    repeated: usize,
    /// The number of events that each outlet refused.
    refused: [usize; 2],
    /// The number of rows that are not events.
    invalid: usize,
    /// Whether a consumer behind EventBridge would get events out of order.
    out_of_order_behind_bus: bool,
    faults: BTreeMap<CallFault, u32>,
}

/// Runs publish-events, sweep-events and a consumer of the stream with faults.
async fn simulate(seed: u64) -> RunCounts {
    let mut rng = Rng::from_seed(seed);
    let cloud = Cloud::with_tables(&[EVENTS], rng.fork());
    let load = Load::new(&mut rng, 10, 5);
    cloud.refuse_events(BUS_REFUSES);
    cloud.refuse_records(STREAM_REFUSES);
    cloud.inject_faults(6);
    // In half of the runs, one outlet does not work for a minute.
    let faults = [CallFault::LostRequest, CallFault::Throttled, CallFault::ServerError];
    if rng.percent(50) {
        cloud.interrupt(OUTLETS[rng.index(2)], *rng.pick(&faults), Duration::from_mins(1));
    }
    let started = Instant::now();
    let fault_rates = FaultRates { crash: 5, lost_response: 5, replaced_poller: 5, repeat: 10 };
    let mapping = load.publish(&cloud, fault_rates, rng.fork(), 2, seed).await;
    check_marks(&cloud, seed);

    let rows = rows(&cloud);
    let put = on_stream(&cloud);
    let first = first_occurrences(put.clone());
    let sent: BTreeSet<_> = on_bus(&cloud).into_iter().collect();
    let consumed = first_occurrences(consume(&cloud, started, fault_rates, rng.fork()).await);
    let (mut refused, mut invalid) = ([0, 0], 0);
    for site in SITES {
        let mut rows: Vec<_> = rows.iter().filter(|row| row.entity == entity(site)).collect();
        rows.sort_by_key(|row| row.sequence);
        for row in &rows {
            let (is_invalid, refusals) = (is_invalid(row), refusals(row));
            invalid += usize::from(is_invalid);
            for (count, is_refused) in refused.iter_mut().zip(refusals) {
                *count += usize::from(is_refused);
            }
            let reason = row.refused.clone().unwrap_or_default();
            let named = ["the stream", "the bus"].map(|outlet| reason.contains(outlet));
            assert_eq!(named, refusals, "seed {seed}: {row:?}");
            assert_eq!(reason.starts_with("InvalidInput: "), is_invalid, "seed {seed}: {row:?}");
            let is_refused = is_invalid || refusals.contains(&true);
            assert_ne!(row.published_at.is_some(), is_refused, "seed {seed}: {row:?}");
            let is_on_bus = sent.contains(&row_key(row));
            assert_ne!(is_on_bus, is_invalid || refusals[1], "seed {seed}: {row:?}");
        }
        let expected = rows.iter().filter(|row| !is_invalid(row) && !refusals(row)[0]);
        let expected: Vec<_> = expected.map(|row| row.sequence).collect();
        let of = |first: &BTreeMap<_, Vec<u64>>| first.get(&entity(site)).cloned();
        assert_eq!(of(&first).unwrap_or_default(), expected, "seed {seed}, site {site}");
        assert_eq!(of(&consumed).unwrap_or_default(), expected, "seed {seed}, consumer, {site}");
    }
    let quarantined: BTreeSet<_> =
        cloud.messages().iter().map(|it| it["record"]["dynamodb"]["Keys"].to_string()).collect();
    let refused_rows = rows.iter().filter(|row| row.refused.is_some()).count();
    assert_eq!(quarantined.len(), refused_rows, "seed {seed}: exactly the refused events");
    RunCounts {
        reversed: mapping.function().reversed.get(),
        repeated: put.len() - first.values().map(Vec::len).sum::<usize>(),
        refused,
        invalid,
        out_of_order_behind_bus: !is_in_order(deliver_by_bus(&cloud, rng)),
        faults: cloud.faults(),
    }
}

#[test]
fn first_occurrences_are_in_order_and_nothing_is_lost_under_faults() {
    let count = seed_count(SEEDS.0, SEEDS.1);
    let runs = seeds(count, |seed| cloud::run(simulate(seed)));
    if !all_seeds() {
        return;
    }
    // The runs prove nothing unless these cases occurred.
    let sum = |of: fn(&RunCounts) -> usize| runs.iter().map(of).sum::<usize>();
    let count = |fault| runs.iter().filter_map(|counts| counts.faults.get(&fault)).sum::<u32>();
    let [reversed, repeated] = [sum(|counts| counts.reversed), sum(|counts| counts.repeated)];
    let [by_stream, by_bus] = [sum(|counts| counts.refused[0]), sum(|counts| counts.refused[1])];
    let invalid = sum(|counts| counts.invalid);
    let behind_bus = runs.iter().filter(|counts| counts.out_of_order_behind_bus).count();
    let faults: Vec<_> = CallFault::ALL.into_iter().map(|fault| (fault, count(fault))).collect();
    let summary = format!(
        "{reversed}, {repeated}, {by_stream}, {by_bus}, {invalid}, {behind_bus}, {faults:?}"
    );
    assert!(reversed > 150 && repeated > 60 && by_stream > 30 && by_bus > 30, "{summary}");
    assert!(invalid > 30 && behind_bus > 30, "{summary}");
    assert!(faults.iter().all(|(_, count)| *count > 30), "{summary}");
}

/// The events are put in order. The consumer of the bus gets them in the order in which EventBridge delivers them.
#[test]
fn a_consumer_of_the_stream_gets_the_order_that_a_consumer_behind_the_bus_does_not_get() {
    cloud::run(async {
        let mut rng = Rng::from_seed(OUT_OF_ORDER_BEHIND_THE_BUS);
        let cloud = Cloud::with_tables(&[EVENTS], rng.fork());
        let load = Load::new(&mut rng, 16, 0);
        let started = Instant::now();
        load.publish(&cloud, FaultRates::default(), rng.fork(), 0, 0).await;
        assert!(!is_in_order(deliver_by_bus(&cloud, rng.fork())), "no fault is needed");
        let got = consume(&cloud, started, FaultRates::default(), rng).await;
        assert!(is_in_order(got));
    });
}

/// DynamoDB Streams may deliver the events of a transaction in the wrong order, in two batches. Version 1 put them on the
/// bus in that order. Here its rule and the publisher get the same records.
#[test]
fn the_stream_has_the_order_that_version_1s_rule_does_not_keep() {
    cloud::run(async {
        let load = |rng: &mut Rng| Load::new(rng, 16, 0);
        let mut rng = Rng::from_seed(OUT_OF_ORDER_IN_VERSION_1);
        let cloud = Cloud::with_tables(&[EVENTS], rng.fork());
        let function = VersionOne(Clients::new(&cloud).stream);
        let Load { stream, commits } = load(&mut rng);
        let events: usize = commits.iter().map(|(_, events)| events.len()).sum();
        Mapping::new(SETTINGS, FaultRates::default(), rng, function).run(&stream).await;
        assert_eq!(on_stream(&cloud).len(), events, "each once");
        assert!(!is_in_order(on_stream(&cloud)), "no fault is needed");

        let mut rng = Rng::from_seed(OUT_OF_ORDER_IN_VERSION_1);
        let cloud = Cloud::with_tables(&[EVENTS], rng.fork());
        load(&mut rng).publish(&cloud, FaultRates::default(), rng, 0, 0).await;
        let put = first_occurrences(on_stream(&cloud));
        assert_eq!(put.values().map(Vec::len).sum::<usize>(), events, "nothing is lost");
        assert!(is_in_order(on_stream(&cloud)));
    });
}

/// Runs while one outlet does not work for two minutes. Returns the longest time from the commit of an event to the first
/// attempt at the other outlet.
async fn delay_at_healthy_outlet(broken: usize, fault: CallFault, seed: u64) -> Duration {
    let mut rng = Rng::from_seed(seed);
    let cloud = Cloud::with_tables(&[EVENTS], rng.fork());
    let load = Load::new(&mut rng, 20, 0);
    let committed: BTreeMap<_, _> = load
        .commits
        .iter()
        .flat_map(|(at, rows)| rows.iter().map(|row| (row_key(row), *at)))
        .collect();
    cloud.interrupt(OUTLETS[broken], fault, Duration::from_mins(2));
    let started = Instant::now();
    load.publish(&cloud, FaultRates::default(), rng, 2, seed).await;
    check_marks(&cloud, seed);
    let mut attempted = BTreeMap::new();
    for entry in cloud.log_from(0) {
        let Entry::Called { at, operation, body, .. } = entry else { continue };
        if operation == OUTLETS[1 - broken] {
            for key in keys_in_call(&operation, &body) {
                attempted.entry(key).or_insert(at - started);
            }
        }
    }
    assert_eq!(attempted.len(), committed.len(), "seed {seed}");
    let delays = attempted.iter().map(|(key, at)| at.saturating_sub(committed[key]));
    delays.max().unwrap_or_default()
}

#[test]
fn an_outlet_that_does_not_work_delays_first_attempts_at_the_other_one_by_seconds_at_most() {
    let faults = [CallFault::LostRequest, CallFault::Throttled, CallFault::ServerError];
    for broken in [0, 1] {
        for fault in faults {
            let delays = seeds(5, |seed| cloud::run(delay_at_healthy_outlet(broken, fault, seed)));
            // The first run of an execution environment waits two seconds for the outlet, each further run half a second.
            // An event may wait for a few such runs, because the model's batches have random sizes.
            let longest = delays.into_iter().max().unwrap_or_default();
            let broken = OUTLETS[broken];
            assert!(longest < Duration::from_secs(4), "{broken}, {fault:?}: {longest:?}");
        }
    }
}
