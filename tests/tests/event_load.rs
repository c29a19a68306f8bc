//! Many events at once, without and with disturbances. `make event-load-test` runs these tests on a fresh local stack,
//! because they need the machine for themselves and take many minutes.

#[path = "disruptions/faults.rs"]
#[expect(dead_code, reason = "this binary does not use every fault")]
mod faults;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    env,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{OperatorId, names, open::OpenEntity};
use futures_util::future::{try_join_all, try_join4};
use reqwest::Method;
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use tests::{
    Stack,
    api::Call,
    events::{Appended, EventStream, append, cloud_event, entity, sequence},
    wait::until_true,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use uuid::Uuid;

use crate::faults::{BrokenFunction, pids};

/// The number of callers. Each waits for the response before it sends the next request.
const CALLERS: usize = 32;
/// The number of entities that the events are about.
const ENTITIES: usize = 1_000;
/// Each event whose number is divisible by this is sent twice.
const REPEAT_EVERY: usize = 10;
/// The latency of each event whose number is divisible by this is measured.
const MEASURE_EVERY: usize = 100;
/// The interval between two reads of the consumer's row for a latency.
const LATENCY_POLL: Duration = Duration::from_millis(20);
/// The functions that publish events. sweep-events publishes what publish-events leaves.
const PUBLISHERS: [&str; 2] = ["publish-events", "sweep-events"];
/// The maximum time without progress.
const STALL_TIMEOUT: Duration = Duration::from_mins(5);

/// The events of one run. No other run uses their type, their source or their entities.
struct Run {
    stack: Stack,
    operator: OperatorId,
    key: String,
    id: String,
    events: usize,
    /// The generation of watch-network's rows.
    generation: u64,
    appended: AtomicUsize,
    /// The number of requests that were not accepted at first, by status.
    refused: std::sync::Mutex<BTreeMap<u16, usize>>,
}

impl Run {
    async fn start(default_events: usize) -> Result<Self> {
        let stack = Stack::connect().await?;
        let events = env::var("EVENTS").ok().map_or(Ok(default_events), |text| text.parse())?;
        let id = Uuid::new_v4().simple().to_string();
        let post = |path: &str, body: &Value| {
            Call::new(Method::POST, path).key(&Uuid::new_v4().to_string()).text(body.to_string())
        };
        // The default operator has the highest rate limit. A key of its own is verified like any other.
        let operator = OperatorId::DEFAULT;
        let body = json!({ "name": "Event load", "scope": "operator", "operatorId": operator });
        let created = stack.call(post("/keys", &body)).await?;
        let key = created.body["key"].as_str().context("no key")?.to_owned();
        let state = stack.rows_with(names::NETWORK, "id", "state").await?;
        // There is no state before the first rebuild.
        let generation = state.first().and_then(|row| row["current"].as_u64()).unwrap_or(1);
        let (appended, refused) = (AtomicUsize::new(0), std::sync::Mutex::default());
        Ok(Self { stack, operator, key, id, events, generation, appended, refused })
    }

    fn kind(&self) -> String {
        format!("Load{}", self.id)
    }

    fn source(&self) -> String {
        format!("load.{}", self.id)
    }

    fn entity(&self, number: usize) -> String {
        format!("acme.load/{}-{}", self.id, number % ENTITIES)
    }

    fn is_mine(&self, detail: &Value) -> bool {
        entity(detail).starts_with(&format!("acme.load/{}-", self.id))
    }

    /// Appends an event. Tries again after a 429, a 503 or a lost response, as the API demands.
    async fn append(&self, number: usize) -> Result<Appended> {
        let event = cloud_event(
            &self.source(),
            &number.to_string(),
            &self.kind(),
            &self.entity(number),
            &json!({ "number": number }),
        );
        let started = Instant::now();
        loop {
            let pause = match self.stack.call(append(&event).bearing(&self.key)).await {
                Ok(response) if response.status == 201 => {
                    return Appended::from_response(&response);
                }
                Ok(response) if matches!(response.status, 429 | 502 | 503 | 504) => {
                    *self
                        .refused
                        .lock()
                        .expect("not poisoned")
                        .entry(response.status)
                        .or_default() += 1;
                    response.header("retry-after").parse().unwrap_or(1)
                }
                Ok(response) => bail!("event {number}: {response}"),
                Err(error) if started.elapsed() > STALL_TIMEOUT => return Err(error),
                Err(_) => 1,
            };
            ensure!(started.elapsed() < STALL_TIMEOUT, "event {number} was not accepted");
            sleep(Duration::from_secs(pause)).await;
        }
    }

    /// Appends all events. Sends some of them twice. Returns the response to each event.
    ///
    /// `measured` gets each measured event and the time of its response.
    async fn append_all(
        &self,
        measured: &mpsc::UnboundedSender<(usize, u64, Instant)>,
    ) -> Result<HashMap<usize, Appended>> {
        let caller = async |caller: usize| {
            let mut responses = Vec::new();
            for number in (caller..self.events).step_by(CALLERS) {
                let appended = self.append(number).await?;
                if number % MEASURE_EVERY == 0 {
                    measured.send((number, appended.sequence, Instant::now()))?;
                }
                if number % REPEAT_EVERY == 0 {
                    let repeat = self.append(number).await?;
                    ensure!(repeat == appended, "event {number}: {repeat:?} and {appended:?}");
                }
                responses.push((number, appended));
                self.appended.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(responses)
        };
        let responses = try_join_all((0..CALLERS).map(caller)).await?;
        Ok(responses.into_iter().flatten().collect())
    }

    /// Waits until the number of appended events reaches `count`.
    async fn wait_for_appended(&self, count: usize) {
        while self.appended.load(Ordering::Relaxed) < count {
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Returns the sequence number up to which watch-network has applied the events of an entity.
    async fn applied(&self, number: usize) -> Result<u64> {
        let entity = OpenEntity::parse(&self.entity(number)).context("an entity")?;
        let key = format!("{}/cursor#{}", self.generation, entity.log_key(self.operator));
        let rows = self
            .stack
            .dynamodb()
            .get_item()
            .table_name(self.stack.named(names::NETWORK))
            .key("id", AttributeValue::S(key))
            .key("row", AttributeValue::S("cursor".to_owned()))
            .consistent_read(true)
            .send()
            .await?;
        let sequence = rows.item.and_then(|row| row.get("sequence")?.as_n().ok()?.parse().ok());
        Ok(sequence.unwrap_or_default())
    }

    /// Measures the time from each response to the consumer's row. Ends when the sender is dropped.
    async fn measure(
        &self,
        mut measured: mpsc::UnboundedReceiver<(usize, u64, Instant)>,
    ) -> Result<Vec<Duration>> {
        let mut latencies = Vec::new();
        let mut waiting: Vec<(usize, u64, Instant)> = Vec::new();
        let mut is_open = true;
        while is_open || !waiting.is_empty() {
            loop {
                match measured.try_recv() {
                    Ok(event) => waiting.push(event),
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => {
                        is_open = false;
                        break;
                    }
                }
            }
            let mut still_waiting = Vec::new();
            for (number, sequence, at) in waiting {
                if self.applied(number).await? >= sequence {
                    latencies.push(at.elapsed());
                } else {
                    ensure!(at.elapsed() < STALL_TIMEOUT, "event {number} was not applied");
                    still_waiting.push((number, sequence, at));
                }
            }
            waiting = still_waiting;
            sleep(LATENCY_POLL).await;
        }
        latencies.sort_unstable();
        Ok(latencies)
    }

    /// Returns how often watch-network has counted this run's events.
    async fn counted(&self) -> Result<usize> {
        let call = Call::get("/network/summary").bearing(&self.key);
        let response = self.stack.call(call).await?;
        ensure!(response.status == 200, "{response}");
        let kind = self.kind();
        let days = response.body["events"].as_array().into_iter().flatten();
        let count: u64 = days.filter_map(|day| day["types"][&kind].as_u64()).sum();
        Ok(usize::try_from(count)?)
    }

    /// Waits until watch-network has counted every event. Fails without progress.
    async fn wait_until_counted(&self) -> Result<()> {
        let mut counted = 0;
        while counted < self.events {
            let before = counted;
            let what = format!("more than {before} of {} counted events", self.events);
            until_true(&what, STALL_TIMEOUT, async || {
                let now = self.counted().await?;
                Ok((now > before, now))
            })
            .await?;
            counted = self.counted().await?;
        }
        // If an event is counted twice, the second time may come late.
        sleep(Duration::from_secs(10)).await;
        let counted = self.counted().await?;
        ensure!(counted == self.events, "{counted} events were counted, {} sent", self.events);
        Ok(())
    }

    /// Checks the responses, the stream and the log: each event once, no gap, and in order on the stream.
    async fn check(&self, appended: &HashMap<usize, Appended>, stream: &[Value]) -> Result<()> {
        let mut by_entity: BTreeMap<usize, BTreeSet<u64>> = BTreeMap::new();
        for (number, event) in appended {
            let is_new = by_entity.entry(number % ENTITIES).or_default().insert(event.sequence);
            ensure!(is_new, "two events of {} are number {}", self.entity(*number), event.sequence);
        }
        for (number, sequences) in &by_entity {
            let last = sequences.last().copied().unwrap_or_default();
            let has_gap = last != u64::try_from(sequences.len())?;
            ensure!(!has_gap, "{} has a gap: {sequences:?}", self.entity(*number));
        }
        let mut next: HashMap<String, u64> = HashMap::new();
        let mut seen = BTreeSet::new();
        for detail in stream.iter().filter(|detail| self.is_mine(detail)) {
            let id = detail["metadata"]["eventId"].as_str().context("no eventId")?;
            if seen.insert(id) {
                let expected = next.entry(entity(detail)).or_insert(1);
                let found = sequence(detail);
                ensure!(
                    found == *expected,
                    "{}: {found} comes before {expected} on the stream",
                    entity(detail)
                );
                *expected += 1;
            }
        }
        ensure!(
            seen == appended.values().map(|event| event.event_id.as_str()).collect(),
            "{} different events are on the stream, {} were appended",
            seen.len(),
            appended.len()
        );
        let rows = self.stack.rows_with(names::EVENTS, "eventType", &self.kind()).await?;
        ensure!(rows.len() == self.events, "{} rows, {} events", rows.len(), self.events);
        let unmarked = rows.iter().filter(|row| !row["publishedAt"].is_string()).count();
        ensure!(unmarked == 0, "{unmarked} rows are not marked as published");
        Ok(())
    }

    /// Waits until every event is marked as published, so that the stream has all of them.
    async fn wait_until_published(&self) -> Result<()> {
        let mut waiting = usize::MAX;
        loop {
            let rows = self.stack.rows_with(names::EVENTS, "eventType", &self.kind()).await?;
            let now = rows.iter().filter(|row| row["unpublished"].is_string()).count();
            if now == 0 {
                return Ok(());
            }
            ensure!(now < waiting, "{now} events stay unpublished");
            waiting = now;
            sleep(Duration::from_secs(15)).await;
        }
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted.get(sorted.len() * percent / 100).or(sorted.last()).copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes many minutes: make event-load-test"]
#[expect(clippy::print_stdout, reason = "the figures are the result")]
async fn each_of_many_events_is_appended_once_and_in_order_on_the_stream() -> Result<()> {
    let run = Run::start(100_000).await?;
    let mut stream = EventStream::from_now(&run.stack).await?;
    let (sender, measured) = mpsc::unbounded_channel();
    let started = Instant::now();
    let appending = async {
        let appended = run.append_all(&sender).await?;
        drop(sender);
        Ok(appended)
    };
    let (appended, latencies) = tokio::try_join!(appending, run.measure(measured))?;
    let seconds = started.elapsed().as_secs_f64();
    let percentiles = [50, 95, 99].map(|percent| percentile(&latencies, percent));
    println!(
        "{} events by {CALLERS} callers for {ENTITIES} entities in {seconds:.0} s",
        appended.len()
    );
    println!("refused at first, by status: {:?}", run.refused.lock().expect("not poisoned"));
    println!(
        "from the response to the row of watch-network: p50 {:?}, p95 {:?}, p99 {:?} of {}",
        percentiles[0],
        percentiles[1],
        percentiles[2],
        latencies.len()
    );
    run.wait_until_counted().await?;
    run.wait_until_published().await?;
    let records = stream.take(&run.stack).await?;
    println!("{} records on the stream", records.len());
    run.check(&appended, &records).await
}

/// Kills a random process of each publisher every few seconds while `running` is set. Returns the number of kills of each.
async fn kill_publishers(stack: &Stack, running: &AtomicBool) -> Result<[usize; 2]> {
    let mut kills = [0; 2];
    while running.load(Ordering::Relaxed) {
        for (function, kills) in PUBLISHERS.iter().zip(&mut kills) {
            let found = pids(stack, function)?;
            if let Some(pid) = found.get(Uuid::new_v4().as_u128() as usize % found.len().max(1)) {
                // The process may have ended.
                if kill_process(*pid, Signal::KILL).is_ok() {
                    *kills += 1;
                }
            }
        }
        sleep(Duration::from_millis(1_500 + u64::from(Uuid::new_v4().as_bytes()[0]) * 20)).await;
    }
    Ok(kills)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes many minutes: make event-load-test"]
#[expect(clippy::print_stdout, reason = "the figures are the result")]
async fn killed_publishers_refusing_outlets_and_a_late_consumer_lose_nothing() -> Result<()> {
    const MINUTE: Duration = Duration::from_mins(1);
    let run = Run::start(60_000).await?;
    let behind = run.events * 5 / 6;
    let stack = &run.stack;
    let mut stream = EventStream::from_now(stack).await?;
    let (sender, _measured) = mpsc::unbounded_channel();
    let running = AtomicBool::new(true);
    let disturb = async {
        let refuse = async |variable: &str| {
            // If one publisher had the right outlet, it would publish the events of the other one.
            let broken = |function| BrokenFunction::deploy(stack, function, variable, "missing");
            let [publish, sweep] = PUBLISHERS;
            let both_broken = async || {
                let minute = async || {
                    sleep(MINUTE).await;
                    Ok(())
                };
                broken(sweep).await?.during(minute).await
            };
            broken(publish).await?.during(both_broken).await?;
            println!("{variable} refused for a minute, {:?} appended", run.appended);
            anyhow::Ok(())
        };
        sleep(MINUTE).await;
        refuse("EVENTS_STREAM").await?;
        refuse("EVENT_BUS_NAME").await?;
        let minute = async || {
            sleep(MINUTE).await;
            Ok(())
        };
        stack.with_mapping_disabled("PublishEventsMapping", minute).await?;
        running.store(false, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let late_consumer = async {
        let until_behind = async || {
            run.wait_for_appended(behind).await;
            Ok(())
        };
        stack.with_mapping_disabled("WatchNetworkMapping", until_behind).await?;
        println!("watch-network continues, {} events behind", behind - run.counted().await?);
        anyhow::Ok(())
    };
    let (appended, (), (), [publish_kills, sweep_kills]) = try_join4(
        run.append_all(&sender),
        disturb,
        late_consumer,
        kill_publishers(stack, &running),
    )
    .await?;
    println!("killed: {publish_kills} times publish-events, {sweep_kills} times sweep-events");
    ensure!(publish_kills > 10, "publish-events was killed only {publish_kills} times");
    // It runs once a minute.
    ensure!(sweep_kills > 1, "sweep-events was killed only {sweep_kills} times");
    run.wait_until_published().await?;
    let started = Instant::now();
    run.wait_until_counted().await?;
    println!(
        "watch-network has caught up, {:.0} s after the last mark",
        started.elapsed().as_secs_f64()
    );
    let records = stream.take(stack).await?;
    let own = records.iter().filter(|detail| run.is_mine(detail)).count();
    println!("{own} records on the stream for {} events", run.events);
    run.check(&appended, &records).await
}
