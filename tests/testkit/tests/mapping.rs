//! The model of Lambda's mapping keeps to what AWS documents.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use futures_util::future::LocalBoxFuture;
use serde_json::{Value, json};
use testkit::{
    chance::Chance,
    cloud::run,
    golden,
    mapping::{Disorder, Function, Happening, Mapping, Record, Settings, Stream, event},
};
use tokio::time::sleep;

const SETTINGS: Settings = Settings {
    batch_size: 100,
    full_batches: true,
    parallelization_factor: 1,
    bisects: true,
    most_retries: 3,
    most_age: Duration::from_hours(1),
    timeout: Duration::from_secs(30),
};

type Texts = Vec<String>;

fn texts(records: &[Rc<Record>]) -> Texts {
    records.iter().map(|it| String::from_utf8_lossy(&it.data).into_owned()).collect()
}

/// A function by script, which takes a second for each batch.
struct Scripted<S> {
    script: Rc<S>,
    /// The batches that it got.
    batches: Rc<RefCell<Vec<Texts>>>,
    /// What was given up.
    given_up: RefCell<Vec<Value>>,
    /// The partition keys that are being worked on.
    working: Rc<RefCell<BTreeSet<String>>>,
    most_at_once: Rc<Cell<usize>>,
}

impl<S> Scripted<S> {
    fn new(script: S) -> Self {
        Self {
            script: Rc::new(script),
            batches: Rc::default(),
            given_up: RefCell::default(),
            working: Rc::default(),
            most_at_once: Rc::default(),
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
        let (working, most) = (Rc::clone(&self.working), Rc::clone(&self.most_at_once));
        Box::pin(async move {
            let keys: BTreeSet<_> = records.iter().map(|it| it.partition_key.clone()).collect();
            for key in &keys {
                assert!(
                    working.borrow_mut().insert(key.clone()),
                    "{key} is in two batches at once"
                );
            }
            most.set(most.get().max(working.borrow().len()));
            sleep(Duration::from_secs(1)).await;
            working.borrow_mut().retain(|key| !keys.contains(key));
            script(&records)
        })
    }

    fn gave_up(&self, _: &[Rc<Record>], file: Value) {
        self.given_up.borrow_mut().push(file);
    }
}

/// A stream of these texts, put at once under one key.
fn stream(texts: &[&str]) -> Stream {
    let mut stream = Stream::new(Chance::of(1));
    for text in texts {
        stream.put("key", text.as_bytes().to_vec(), Duration::ZERO);
    }
    stream
}

struct Ran {
    /// The batches in their order.
    batches: Vec<Texts>,
    given_up: Vec<Value>,
    happenings: BTreeMap<Happening, u32>,
    most_at_once: usize,
}

fn deliver(
    settings: Settings,
    disorder: Disorder,
    seed: u64,
    stream: &Stream,
    script: impl Fn(&[Rc<Record>]) -> Result<Value, String> + 'static,
) -> Ran {
    run(async {
        let function = Scripted::new(script);
        let mapping = Mapping::new(settings, disorder, Chance::of(seed), function);
        mapping.run(stream).await;
        let function = mapping.function();
        Ran {
            batches: function.batches.borrow().clone(),
            given_up: function.given_up.borrow().clone(),
            happenings: mapping.happenings(),
            most_at_once: function.most_at_once.get(),
        }
    })
}

fn failed_at(records: &[Rc<Record>], text: &str) -> Value {
    let at = records.iter().find(|record| record.data == text.as_bytes());
    let failures: Vec<_> =
        at.iter().map(|it| json!({ "itemIdentifier": it.sequence_number })).collect();
    json!({ "batchItemFailures": failures })
}

fn payload(file: &Value) -> Texts {
    let payload: Value =
        serde_json::from_str(file["payload"].as_str().expect("a payload")).expect("JSON");
    let records = payload["Records"].as_array().expect("records");
    let number = |record: &Value| record["kinesis"]["data"].as_str().map(str::to_owned);
    records.iter().filter_map(number).collect()
}

#[test]
fn records_are_delivered_and_given_up_as_aws_writes_them() {
    let mut stream = stream(&["hello"]);
    let record = stream.put("key", b"world".to_vec(), Duration::from_millis(1_250));
    golden::check(env!("CARGO_MANIFEST_DIR"), "kinesis-event", &event(&[record]));

    let ran = deliver(SETTINGS, Disorder::default(), 1, &stream, |_| Err("broken".to_owned()));
    golden::check(env!("CARGO_MANIFEST_DIR"), "failure-destination", &ran.given_up[0]);
}

#[test]
fn what_is_before_the_record_named_is_done_and_the_rest_comes_again() {
    let stream = stream(&["a", "b", "c", "d", "e"]);
    let tries = Cell::new(0);
    let ran = deliver(SETTINGS, Disorder::default(), 1, &stream, move |records| {
        tries.set(tries.get() + 1);
        Ok(failed_at(records, if tries.get() < 4 { "c" } else { "none" }))
    });
    let [first, rest] = [vec!["a", "b", "c", "d", "e"], vec!["c", "d", "e"]];
    assert_eq!(ran.batches, [first, rest.clone(), rest.clone(), rest]);
    assert!(ran.given_up.is_empty());
    assert_eq!(ran.happenings[&Happening::Progressed], 1);
    assert_eq!(ran.happenings[&Happening::Stuck], 2);
}

#[test]
fn of_several_records_named_the_lowest_counts() {
    let stream = stream(&["a", "b", "c", "d", "e"]);
    let tries = Cell::new(0);
    let ran = deliver(SETTINGS, Disorder::default(), 1, &stream, move |records| {
        tries.set(tries.get() + 1);
        if tries.get() > 1 {
            return Ok(json!({ "batchItemFailures": [] }));
        }
        let of = |text| failed_at(records, text)["batchItemFailures"][0].clone();
        Ok(json!({ "batchItemFailures": [of("d"), of("b"), of("e")] }))
    });
    assert_eq!(ran.batches[1], ["b", "c", "d", "e"]);
}

#[test]
fn answers_that_name_nothing_are_a_success_and_those_that_make_no_sense_a_failure() {
    let once = Settings { most_retries: 0, bisects: false, ..SETTINGS };
    for (answer, done) in [
        (json!(null), true),
        (json!({}), true),
        (json!({ "batchItemFailures": null }), true),
        (json!({ "batchItemFailures": [] }), true),
        (json!({ "batchItemFailures": [{ "itemIdentifier": "" }] }), false),
        (json!({ "batchItemFailures": [{ "itemIdentifier": null }] }), false),
        (json!({ "batchItemFailures": [{ "identifier": "1" }] }), false),
        (json!({ "batchItemFailures": [{ "itemIdentifier": "1" }] }), false),
    ] {
        let told = answer.clone();
        let script = move |_: &[Rc<Record>]| Ok(answer.clone());
        let ran = deliver(once, Disorder::default(), 1, &stream(&["a"]), script);
        assert_eq!(ran.given_up.is_empty(), done, "{told}");
    }
}

#[test]
fn a_batch_that_fails_is_halved_until_the_bad_record_is_alone() {
    let stream = stream(&["a", "b", "c", "d", "e"]);
    let ran = deliver(SETTINGS, Disorder::default(), 1, &stream, |records| {
        let bad = records.iter().any(|record| record.data == b"d");
        if bad { Err("broken".to_owned()) } else { Ok(json!({})) }
    });
    let all = vec!["a", "b", "c", "d", "e"];
    let tries = [vec!["d"], vec!["d"], vec!["d"], vec!["d"]];
    let halves = [all, vec!["a", "b"], vec!["c", "d", "e"], vec!["c"], vec!["d", "e"]];
    let expected: Vec<_> = halves.into_iter().chain(tries).chain([vec!["e"]]).collect();
    assert_eq!(ran.batches, expected);
    assert_eq!(ran.given_up.iter().map(payload).collect::<Vec<_>>(), [["ZA=="]]);
}

#[test]
fn without_bisecting_the_whole_batch_is_given_up_after_its_retries() {
    let settings = Settings { bisects: false, ..SETTINGS };
    let stream = stream(&["a", "b", "c", "d", "e"]);
    let ran = deliver(settings, Disorder::default(), 1, &stream, |_| Err(String::new()));
    assert_eq!(ran.batches.len(), 4);
    assert_eq!(payload(&ran.given_up[0]).len(), 5);
    let request = &ran.given_up[0]["requestContext"];
    assert_eq!(request["condition"], "RetryAttemptsExhausted");
}

#[test]
fn records_that_are_too_old_are_given_up_and_the_younger_ones_are_not() {
    let mut stream = stream(&["a"]);
    stream.put("key", b"b".to_vec(), Duration::from_mins(10));
    let settings =
        Settings { most_age: Duration::from_mins(1), most_retries: u32::MAX, ..SETTINGS };
    let ran = deliver(settings, Disorder::default(), 1, &stream, |records| {
        if records[0].data == b"a" { Err(String::new()) } else { Ok(json!({})) }
    });
    assert_eq!(ran.given_up.iter().map(payload).collect::<Vec<_>>(), [["YQ=="]]);
    assert_eq!(ran.given_up[0]["requestContext"]["condition"], "RecordAgeExceeded");
    assert!(ran.batches.len() > 10, "{:?}", ran.batches);
    assert_eq!(ran.batches.last(), Some(&vec!["b".to_owned()]));
}

#[test]
fn a_function_that_takes_too_long_has_failed() {
    let settings = Settings { timeout: Duration::from_millis(900), most_retries: 0, ..SETTINGS };
    let ran = deliver(settings, Disorder::default(), 1, &stream(&["a"]), |_| Ok(json!({})));
    assert_eq!(ran.happenings[&Happening::TimedOut], 1);
    assert_eq!(ran.given_up.len(), 1);
}

/// A stream that is split and merged while a hundred records of ten keys are put on it.
fn resharded(seed: u64) -> Stream {
    let mut stream = Stream::new(Chance::of(seed));
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
fn a_partition_key_is_in_order_across_shards_and_never_in_two_batches_at_once() {
    let settings = Settings { parallelization_factor: 4, full_batches: false, ..SETTINGS };
    let mut most_at_once = 0;
    for seed in 1..=20 {
        let stream = resharded(seed);
        assert!(stream.shards() > 5, "{} shards", stream.shards());
        let ran = deliver(settings, Disorder::default(), seed, &stream, |_| Ok(Value::Null));
        let mut all = ran.batches.concat();
        assert_eq!(all.len(), 100);
        // By key, in the order that they came in.
        all.sort_by_key(|text| text[..1].to_owned());
        assert!(all.is_sorted(), "{all:?}");
        most_at_once = most_at_once.max(ran.most_at_once);
    }
    assert!(most_at_once > 4, "{most_at_once} keys at once");
}

#[test]
fn whatever_lambda_loses_every_record_is_done_at_last() {
    let disorder = Disorder { crash: 20, lost_answer: 20, replaced_poller: 0, repeat: 20 };
    let settings =
        Settings { batch_size: 10, most_retries: 1_000, most_age: Duration::MAX, ..SETTINGS };
    for seed in 1..=20 {
        let stream = resharded(seed);
        let done = Rc::new(RefCell::new(BTreeSet::new()));
        let of_script = Rc::clone(&done);
        let ran = run(async {
            let function = Scripted::new(move |records: &[Rc<Record>]| {
                of_script.borrow_mut().extend(texts(records));
                Ok(Value::Null)
            });
            // A crash leaves keys behind that nobody works on.
            let working = Rc::clone(&function.working);
            let mapping = Mapping::new(settings, disorder, Chance::of(seed), function);
            let watched = async {
                loop {
                    sleep(Duration::from_millis(1)).await;
                    working.borrow_mut().clear();
                }
            };
            tokio::select! {
                biased;
                () = mapping.run(&stream) => {}
                () = watched => {}
            }
            mapping.happenings()
        });
        assert_eq!(done.borrow().len(), 100, "{ran:?}");
        assert!(ran.contains_key(&Happening::AnswerLost), "{ran:?}");
        assert!(!ran.contains_key(&Happening::Exhausted), "{ran:?}");
    }
}
