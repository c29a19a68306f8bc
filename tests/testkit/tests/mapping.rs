//! Tests that the model of Lambda's event source mapping behaves as AWS documents.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::future::LocalBoxFuture;
use serde::Deserialize;
use serde_json::{Value, json};
use testkit::{
    cloud::run,
    golden,
    mapping::{FaultRates, Function, Mapping, MappingEvent, Record, Settings, Stream, event},
    rng::Rng,
};
use tokio::time::sleep;

const SETTINGS: Settings = Settings {
    batch_size: 100,
    full_batches: true,
    parallelization_factor: 1,
    bisects: true,
    max_retries: 3,
    max_age: Duration::from_hours(1),
    timeout: Duration::from_secs(30),
};

type Texts = Vec<String>;

fn texts(records: &[Rc<Record>]) -> Texts {
    records.iter().map(|it| String::from_utf8_lossy(&it.data).into_owned()).collect()
}

/// A function that runs a script and takes a second for each batch.
struct Scripted<S> {
    script: Rc<S>,
    /// The batches that it got.
    batches: Rc<RefCell<Vec<Texts>>>,
    /// The failure files of the records that were given up.
    given_up: RefCell<Vec<Value>>,
    /// The partition keys that are being processed.
    working: Rc<RefCell<BTreeSet<String>>>,
    max_concurrent: Rc<Cell<usize>>,
}

impl<S> Scripted<S> {
    fn new(script: S) -> Self {
        Self {
            script: Rc::new(script),
            batches: Rc::default(),
            given_up: RefCell::default(),
            working: Rc::default(),
            max_concurrent: Rc::default(),
        }
    }
}

impl<S: Fn(&[Rc<Record>]) -> Result<Value, String> + 'static> Function for Scripted<S> {
    type Environment = ();

    fn start(&self) {}

    fn invoke(
        &self,
        _: Rc<()>,
        records: Vec<Rc<Record>>,
        _: Duration,
    ) -> LocalBoxFuture<'static, Result<Value, String>> {
        self.batches.borrow_mut().push(texts(&records));
        let script = Rc::clone(&self.script);
        let (working, max) = (Rc::clone(&self.working), Rc::clone(&self.max_concurrent));
        Box::pin(async move {
            let keys: BTreeSet<_> = records.iter().map(|it| it.partition_key.clone()).collect();
            for key in &keys {
                assert!(
                    working.borrow_mut().insert(key.clone()),
                    "{key} is in two concurrent batches"
                );
            }
            max.set(max.get().max(working.borrow().len()));
            sleep(Duration::from_secs(1)).await;
            working.borrow_mut().retain(|key| !keys.contains(key));
            script(&records)
        })
    }

    fn gave_up(&self, _: &[Rc<Record>], file: Value) {
        self.given_up.borrow_mut().push(file);
    }
}

/// Returns a stream with these texts, put at the same time under one key.
fn stream(texts: &[&str]) -> Stream {
    let mut stream = Stream::new(Rng::from_seed(1));
    for text in texts {
        stream.put("key", text.as_bytes().to_vec(), Duration::ZERO);
    }
    stream
}

struct RunResult {
    /// The batches in their order.
    batches: Vec<Texts>,
    given_up: Vec<Value>,
    mapping_events: BTreeMap<MappingEvent, u32>,
    max_concurrent: usize,
}

fn deliver(
    settings: Settings,
    fault_rates: FaultRates,
    seed: u64,
    stream: &Stream,
    script: impl Fn(&[Rc<Record>]) -> Result<Value, String> + 'static,
) -> RunResult {
    run(async {
        let function = Scripted::new(script);
        let mapping = Mapping::new(settings, fault_rates, Rng::from_seed(seed), function);
        mapping.run(stream).await;
        let function = mapping.function();
        RunResult {
            batches: function.batches.borrow().clone(),
            given_up: function.given_up.borrow().clone(),
            mapping_events: mapping.event_counts(),
            max_concurrent: function.max_concurrent.get(),
        }
    })
}

/// Returns the data of the records in a failure file.
fn payload(file: &Value) -> Texts {
    let payload: Value =
        serde_json::from_str(file["payload"].as_str().expect("a payload")).expect("JSON");
    let data = |record: &Value| {
        let data = STANDARD.decode(record["kinesis"]["data"].as_str()?).ok()?;
        String::from_utf8(data).ok()
    };
    payload["Records"].as_array().expect("records").iter().filter_map(data).collect()
}

#[test]
fn records_are_delivered_and_given_up_as_aws_writes_them() {
    let mut stream = stream(&["hello"]);
    let record = stream.put("key", b"world".to_vec(), Duration::from_millis(1_250));
    golden::check(env!("CARGO_MANIFEST_DIR"), "kinesis-event", &event(&[record]));

    let result = deliver(SETTINGS, FaultRates::default(), 1, &stream, |_| Err("broken".to_owned()));
    golden::check(env!("CARGO_MANIFEST_DIR"), "failure-destination", &result.given_up[0]);
}

/// A case that both the model and the local stack's mappings (`tools/local/stream_mappings.py`) must pass. The
/// default key is `key`, and the default time is 0.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(default)]
    properties: Properties,
    records: Vec<CaseRecord>,
    /// The responses by the number of the invocation. The last one is used for all further invocations.
    answers: Vec<ScriptedResponse>,
    /// The batches in their order.
    batches: Option<Vec<Texts>>,
    last_batch: Option<Texts>,
    /// The processed records of each partition key, in their order.
    #[serde(default)]
    done: BTreeMap<String, Texts>,
    #[serde(default)]
    given_up: Vec<GivenUp>,
}

/// The properties of the mapping in a template. A missing one has the value in [`SETTINGS`].
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Properties {
    batch_size: Option<usize>,
    parallelization_factor: Option<u64>,
    bisect_batch_on_function_error: Option<bool>,
    maximum_retry_attempts: Option<i64>,
    maximum_record_age_in_seconds: Option<i64>,
}

impl Properties {
    fn settings(&self) -> Settings {
        // A negative limit means no limit.
        let retries = |limit| u32::try_from(limit).unwrap_or(u32::MAX);
        let age = |limit| u64::try_from(limit).map_or(Duration::MAX, Duration::from_secs);
        Settings {
            batch_size: self.batch_size.unwrap_or(SETTINGS.batch_size),
            parallelization_factor: self.parallelization_factor.unwrap_or(1),
            bisects: self.bisect_batch_on_function_error.unwrap_or(SETTINGS.bisects),
            max_retries: self.maximum_retry_attempts.map_or(SETTINGS.max_retries, retries),
            max_age: self.maximum_record_age_in_seconds.map_or(SETTINGS.max_age, age),
            ..SETTINGS
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum CaseRecord {
    Text(String),
    #[serde(rename_all = "camelCase")]
    Record {
        data: String,
        key: Option<String>,
        at: Option<u64>,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum ScriptedResponse {
    /// A function error.
    Error(bool),
    /// A function error if this record is in the batch, otherwise a success.
    ErrorWith(String),
    /// `batchItemFailures` with those of these records that are in the batch.
    Failed(Texts),
    /// This response.
    Value(Value),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenUp {
    condition: String,
    invocations: Option<u32>,
    records: Texts,
}

impl ScriptedResponse {
    fn to(&self, records: &[Rc<Record>]) -> Result<Value, String> {
        let batch = texts(records);
        match self {
            Self::Error(true) => Err("broken".to_owned()),
            Self::ErrorWith(text) if batch.contains(text) => Err("broken".to_owned()),
            Self::Error(false) | Self::ErrorWith(_) => Ok(Value::Null),
            Self::Failed(texts) => {
                let index = |text| batch.iter().position(|it| it == text);
                let number =
                    |index: usize| json!({ "itemIdentifier": records[index].sequence_number });
                let failures: Vec<_> = texts.iter().filter_map(index).map(number).collect();
                Ok(json!({ "batchItemFailures": failures }))
            }
            Self::Value(response) => Ok(response.clone()),
        }
    }
}

#[test]
fn cases_shared_with_the_local_stack() {
    let cases: Vec<Case> =
        serde_json::from_str(include_str!("mapping_cases.json")).expect("the cases");
    for Case { name, properties, records, answers, batches, last_batch, done, given_up } in cases {
        let mut stream = Stream::new(Rng::from_seed(1));
        for sent in records {
            let (data, key, at) = match sent {
                CaseRecord::Text(data) => (data, None, None),
                CaseRecord::Record { data, key, at } => (data, key, at),
            };
            let key = key.as_deref().unwrap_or("key");
            stream.put(key, data.into_bytes(), Duration::from_secs(at.unwrap_or_default()));
        }
        let processed: Rc<RefCell<BTreeMap<String, Texts>>> = Rc::default();
        let (shared, invocation_count) = (Rc::clone(&processed), Cell::new(0));
        let script = move |records: &[Rc<Record>]| {
            let response =
                answers.get(invocation_count.get()).or(answers.last()).expect("a response");
            invocation_count.set(invocation_count.get() + 1);
            let response = response.to(records)?;
            let failed = &response["batchItemFailures"][0]["itemIdentifier"];
            for record in records.iter().take_while(|it| *failed != json!(it.sequence_number)) {
                let mut processed = shared.borrow_mut();
                let of_key = processed.entry(record.partition_key.clone()).or_default();
                of_key.extend(texts(&[Rc::clone(record)]));
            }
            Ok(response)
        };
        let result = deliver(properties.settings(), FaultRates::default(), 1, &stream, script);
        if let Some(batches) = batches {
            assert_eq!(result.batches, batches, "{name}");
        }
        if last_batch.is_some() {
            assert_eq!(result.batches.last(), last_batch.as_ref(), "{name}");
        }
        for (key, done) in done {
            assert_eq!(processed.borrow().get(&key), Some(&done), "{name}");
        }
        assert_eq!(result.given_up.len(), given_up.len(), "{name}: {:?}", result.given_up);
        for (file, expected) in result.given_up.iter().zip(given_up) {
            assert_eq!(payload(file), expected.records, "{name}");
            let request = &file["requestContext"];
            assert_eq!(request["condition"], expected.condition, "{name}");
            if let Some(invocations) = expected.invocations {
                assert_eq!(request["approximateInvokeCount"], invocations, "{name}");
            }
        }
    }
}

#[test]
fn progress_and_stuck_batches_are_counted() {
    let stream = stream(&["a", "b", "c", "d", "e"]);
    let invocation_count = Cell::new(0);
    let result = deliver(SETTINGS, FaultRates::default(), 1, &stream, move |records| {
        invocation_count.set(invocation_count.get() + 1);
        let failed = if invocation_count.get() < 4 { vec!["c".to_owned()] } else { Vec::new() };
        ScriptedResponse::Failed(failed).to(records)
    });
    assert_eq!(result.mapping_events[&MappingEvent::Progressed], 1);
    assert_eq!(result.mapping_events[&MappingEvent::Stuck], 2);
}

#[test]
fn an_invocation_that_exceeds_its_timeout_has_failed() {
    let settings = Settings { timeout: Duration::from_millis(900), max_retries: 0, ..SETTINGS };
    let result = deliver(settings, FaultRates::default(), 1, &stream(&["a"]), |_| Ok(json!({})));
    assert_eq!(result.mapping_events[&MappingEvent::TimedOut], 1);
    assert_eq!(result.given_up.len(), 1);
}

/// Returns a stream that is split and merged while a hundred records of ten keys are put on it.
fn resharded(seed: u64) -> Stream {
    let mut stream = Stream::new(Rng::from_seed(seed));
    for n in 0..100_u32 {
        if n % 9 == 8 {
            stream.reshard();
        }
        let data = format!("{}-{:02}", n % 10, n / 10);
        stream.put(&format!("key-{}", n % 10), data.into_bytes(), Duration::ZERO);
    }
    stream
}

#[test]
fn a_partition_key_is_in_order_across_shards_and_never_in_two_concurrent_batches() {
    let settings = Settings { parallelization_factor: 4, full_batches: false, ..SETTINGS };
    let mut max_concurrent = 0;
    for seed in 1..=20 {
        let stream = resharded(seed);
        assert!(stream.shards() > 5, "{} shards", stream.shards());
        let result = deliver(settings, FaultRates::default(), seed, &stream, |_| Ok(Value::Null));
        let mut all = result.batches.concat();
        assert_eq!(all.len(), 100);
        // Sorting by key keeps the order in which the records of a key were delivered.
        all.sort_by_key(|text| text[..1].to_owned());
        assert!(all.is_sorted(), "{all:?}");
        max_concurrent = max_concurrent.max(result.max_concurrent);
    }
    assert!(max_concurrent > 4, "{max_concurrent} concurrent keys");
}

#[test]
fn every_record_is_eventually_processed_despite_faults_of_lambda() {
    let fault_rates = FaultRates { crash: 20, lost_response: 20, replaced_poller: 0, repeat: 20 };
    let settings =
        Settings { batch_size: 10, max_retries: 1_000, max_age: Duration::MAX, ..SETTINGS };
    for seed in 1..=20 {
        let stream = resharded(seed);
        let done = Rc::new(RefCell::new(BTreeSet::new()));
        let shared = Rc::clone(&done);
        let result = run(async {
            let function = Scripted::new(move |records: &[Rc<Record>]| {
                shared.borrow_mut().extend(texts(records));
                Ok(Value::Null)
            });
            // A crash leaves keys in this set that no invocation processes any more.
            let working = Rc::clone(&function.working);
            let mapping = Mapping::new(settings, fault_rates, Rng::from_seed(seed), function);
            let clear_keys = async {
                loop {
                    sleep(Duration::from_millis(1)).await;
                    working.borrow_mut().clear();
                }
            };
            tokio::select! {
                biased;
                () = mapping.run(&stream) => {}
                () = clear_keys => {}
            }
            mapping.event_counts()
        });
        assert_eq!(done.borrow().len(), 100, "{result:?}");
        assert!(result.contains_key(&MappingEvent::ResponseLost), "{result:?}");
        assert!(!result.contains_key(&MappingEvent::Exhausted), "{result:?}");
    }
}
