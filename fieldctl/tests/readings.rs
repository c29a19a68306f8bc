//! Tests `fieldctl readings`: runs the real binary against a fake of the API. For `readings send`, the id of a bundle
//! decides what the fake refuses.

mod cloud;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use cloud::{Cloud, ReceivedRequest};
use contracts::{OnboardingId, OperatorId, SensorId, SiteId};
use serde_json::{Value, json};
use tempfile::TempDir;

type FakeResponse = (u16, Value, Vec<(&'static str, &'static str)>);

/// The maximum number of errors in a response of the fake, besides the one that counts the others. The API's is 100.
const MAX_LISTED: usize = 2;

/// Returns a bundle with two series of two samples each.
fn bundle(id: &str) -> Value {
    let samples = json!([["2026-01-01T00:00:00Z", 1.5], ["2026-01-01T00:01:00Z", 2.5]]);
    json!({ "bundleId": id, "series": [{ "samples": samples }, { "samples": samples }] })
}

/// Returns what the API refuses of a bundle: its path in the bundle, the reason, and whether it is the whole bundle.
fn refused_part(id: &str) -> Option<(&'static str, &'static str, bool)> {
    match id.split('-').next() {
        Some("bad") => Some((".siteId", "InvalidValue", true)),
        Some("retired") => Some((".series[0].samples", "RetiredSensor", true)),
        Some("part") => Some((".series[1].samples[0]", "ClockAhead", false)),
        _ => None,
    }
}

/// Answers to `POST /readings` as the API does: 202 if something was accepted, else 400, or 410 for retired sensors.
fn judge(request: &ReceivedRequest) -> FakeResponse {
    let bundles: Vec<Value> = serde_json::from_str(&request.body).expect("a list of bundles");
    let (mut accepted, mut errors) = (Vec::new(), Vec::new());
    let mut all_retired = true;
    for (index, bundle) in bundles.iter().enumerate() {
        let id = bundle["bundleId"].as_str().expect("an id");
        let refused = refused_part(id);
        if refused.is_none_or(|(_, _, is_whole)| !is_whole) {
            accepted.push(id);
        }
        if let Some((path, reason, _)) = refused {
            all_retired &= reason == "RetiredSensor";
            let field = format!("[{index}]{path}");
            errors.push(
                json!({ "field": field, "message": format!("{id} is wrong"), "reason": reason }),
            );
        }
    }
    if errors.len() > MAX_LISTED + 1 {
        let more = errors.len() - MAX_LISTED;
        errors.truncate(MAX_LISTED);
        errors.push(json!({ "field": "body", "message": format!("has {more} more problems") }));
    }
    if !accepted.is_empty() {
        let mut reply = json!({ "accepted": accepted.len(), "bundles": accepted });
        if !errors.is_empty() {
            reply["errors"] = errors.into();
        }
        return (202, reply, vec![]);
    }
    let (status, kind) =
        if all_retired { (410, "sensors-retired") } else { (400, "invalid-request") };
    let kind = format!("urn:fieldstation:problem:{kind}");
    (status, json!({ "type": kind, "title": "t", "status": status, "errors": errors }), vec![])
}

/// A folder with files of bundles.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file with bundles of these ids, and returns its path.
    fn write(&self, name: &str, ids: &[&str]) -> String {
        let bundles: Vec<_> = ids.iter().map(|id| bundle(id)).collect();
        self.write_text(name, &json!(bundles).to_string())
    }

    fn write_text(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).expect("a file");
        path.to_string_lossy().into_owned()
    }
}

/// Returns the ids in the calls that the fake received.
fn calls(cloud: &Cloud) -> Vec<Vec<String>> {
    let ids = |request: ReceivedRequest| {
        let bundles: Vec<Value> = serde_json::from_str(&request.body).expect("a list");
        bundles.iter().map(|it| it["bundleId"].as_str().expect("an id").to_owned()).collect()
    };
    cloud.requests("/local/readings").into_iter().map(ids).collect()
}

/// Runs the binary with a width at which nothing is printed below a row.
async fn run(cloud: &Cloud, args: &[&str]) -> (i32, String, String) {
    let output = cloud.command(args).env("COLUMNS", "1000").output().await.expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// Asserts that a line of the output has these words.
fn assert_line(out: &str, words: &[&str]) {
    let has_words = |line: &str| line.split_whitespace().collect::<Vec<_>>() == words;
    assert!(out.lines().any(has_words), "{words:?} is not a line of\n{out}");
}

#[tokio::test]
async fn what_is_refused_does_not_stop_the_rest() {
    let cloud = Cloud::start(judge).await;
    let files = Files::new();
    let broken = files.write_text("broken.json", "{");
    let bad = files.write_text("bad.json", &bundle("bad-1").to_string());
    let retired = files.write("retired.json", &["retired-1", "retired-2"]);
    let mixed = files.write("mixed.json", &["good-1", "part-1", "bad-2", "good-2"]);
    let good = files.write("good.json", &["good-3"]);
    let (code, out, err) =
        run(&cloud, &["readings", "send", &broken, &bad, &retired, &mixed, &good]).await;
    assert_eq!(code, 4, "{out}{err}");
    assert_eq!(calls(&cloud).len(), 4, "each file is sent");
    for words in [
        [&bad, "[0].siteId", "InvalidValue", "bad-1"],
        [&retired, "[1].series[0].samples", "RetiredSensor", "retired-2"],
        [&mixed, "[1].series[1].samples[0]", "ClockAhead", "part-1"],
        [&mixed, "[2].siteId", "InvalidValue", "bad-2"],
    ] {
        assert_line(&out, &[&words[..], &["is", "wrong"]].concat());
    }
    // FILE, BUNDLES, ACCEPTED, IN PART, REFUSED, LEFT, SAMPLES
    assert_line(&out, &[&bad, "1", "0", "0", "1", "0", "0"]);
    assert_line(&out, &[&retired, "2", "0", "0", "2", "0", "0"]);
    assert_line(&out, &[&mixed, "4", "3", "1", "1", "0", "10"]);
    assert_line(&out, &[&good, "1", "1", "0", "0", "0", "4"]);
    assert_line(&out, &["total", "8", "4", "1", "4", "0", "14"]);
    assert!(err.contains("broken.json is not valid JSON"), "{err}");
    assert!(err.contains("refused 4 of 8 bundles, and parts of 1 other"), "{err}");

    let (code, out, err) = run(&cloud, &["readings", "send", &broken, &good]).await;
    assert_eq!(code, 2, "{out}{err}");
    let (code, out, err) = run(&cloud, &["readings", "send", &good]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(out.lines().count(), 2, "{out}");
}

#[tokio::test]
async fn refused_bundles_are_written_to_a_new_file() {
    let cloud = Cloud::start(judge).await;
    let files = Files::new();
    // The texts of the bundles stay as they are, such as the order of the fields and the digits of a number.
    let part = r#"{"series": [{"samples": [["t", 1.50]]}, {"samples": []}], "bundleId": "part-1"}"#;
    let mixed = format!("[{}, {part}, {}]", bundle("good-1"), bundle("bad-1"));
    let mixed = files.write_text("mixed.json", &mixed);
    let refused = files.path("refused.json");
    let option = ["--refused", &refused.to_string_lossy()];
    let (code, out, err) =
        run(&cloud, &[&["readings", "send", &mixed][..], &option].concat()).await;
    assert_eq!(code, 4, "{out}{err}");
    assert!(err.contains("correct the bundles in ") && err.contains("refused.json"), "{err}");
    let text = std::fs::read_to_string(&refused).expect("the refused bundles");
    assert_eq!(text, format!("[{part},\n{}]\n", bundle("bad-1")));

    // The file is an input. It is not overwritten, and nothing is sent before the error.
    let before = calls(&cloud).len();
    let path = refused.to_string_lossy().into_owned();
    let (code, _, err) = run(&cloud, &[&["readings", "send", &mixed][..], &option].concat()).await;
    assert!(code == 2 && err.contains("refused.json exists already"), "{code} {err}");
    assert_eq!(calls(&cloud).len(), before);
    let (code, _, err) = run(&cloud, &["readings", "send", &path]).await;
    assert_eq!(code, 4, "{err}");
    assert_eq!(calls(&cloud).last().expect("a call"), &["part-1", "bad-1"]);
    assert_eq!(std::fs::read_to_string(&refused).expect("the file"), text);

    // There is no file if nothing is refused.
    let good = files.write("good.json", &["good-1"]);
    let other = files.path("other.json");
    let option = ["--refused", &other.to_string_lossy()];
    let (code, _, err) = run(&cloud, &[&["readings", "send", &good][..], &option].concat()).await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(!other.exists());
}

#[tokio::test]
async fn every_refusal_is_named_with_its_place_in_the_file() {
    let cloud = Cloud::start(judge).await;
    let files = Files::new();
    // The second call begins at bundle 500. It has more refusals than a response lists.
    let mut ids = vec!["good"; 500];
    ids.extend(["good", "bad-1", "part-2", "bad-3", "bad-4", "part-5"]);
    let file = files.write("file.json", &ids);
    let (code, out, err) = run(&cloud, &["--json", "readings", "send", &file]).await;
    assert_eq!(code, 4, "{err}");
    let document: Value = serde_json::from_str(&out).expect("JSON");
    let errors = document["errors"].as_array().expect("a list");
    let fields: Vec<_> =
        errors.iter().map(|error| error["field"].as_str().expect("text")).collect();
    assert_eq!(
        fields,
        [
            "[501].siteId",
            "[502].series[1].samples[0]",
            "[503].siteId",
            "[504].siteId",
            "[505].series[1].samples[0]"
        ]
    );
    assert_eq!(errors[0]["file"], json!(file));
    assert_eq!(errors[1]["reason"], "ClockAhead");
    let counts = json!({
        "bundles": 506, "accepted": 503, "acceptedInPart": 2, "refused": 3, "left": 0, "samples": 2008,
    });
    for (name, count) in counts.as_object().expect("an object") {
        assert_eq!(&document[name], count, "{name}");
        assert_eq!(&document["files"][0][name], count, "{name} of the file");
    }
}

#[tokio::test]
async fn a_busy_api_is_called_again_after_the_time_that_it_names() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let cloud = Cloud::start(|request| match CALLS.fetch_add(1, Ordering::Relaxed) {
        0 => (429, json!({ "title": "slow down" }), vec![("retry-after", "2")]),
        _ => judge(request),
    })
    .await;
    let files = Files::new();
    let file = files.write("file.json", &["good-1"]);
    let begin = Instant::now();
    let (code, out, err) = run(&cloud, &["readings", "send", &file]).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert_eq!(calls(&cloud).len(), 2);
    assert!(begin.elapsed() >= Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_call_that_is_not_allowed_is_the_last_one() {
    for status in [401, 403] {
        let cloud = Cloud::start(move |request| {
            let is_forbidden = request.body.contains("foreign");
            let errors = json!([{ "field": "[1].siteId", "message": "is not your site" }]);
            if is_forbidden {
                (status, json!({ "title": "Forbidden", "errors": errors }), vec![])
            } else {
                judge(request)
            }
        })
        .await;
        let files = Files::new();
        let [first, second, third] = [
            files.write("first.json", &["good-1", "bad-1"]),
            files.write("second.json", &["good-2", "foreign"]),
            files.write("third.json", &["good-3"]),
        ];
        let refused = files.path("refused.json");
        let option = ["--refused", &refused.to_string_lossy()];
        let send = ["readings", "send", &first, &second, &third];
        let (code, out, err) = run(&cloud, &[&send[..], &option].concat()).await;
        assert_eq!(code, 5, "{status}: {out}{err}");
        assert_eq!(calls(&cloud).len(), 2, "{status}");
        assert_line(&out, &[&first, "2", "1", "0", "1", "0", "4"]);
        assert_line(&out, &[&second, "2", "0", "0", "0", "2", "0"]);
        assert_line(&out, &[&third, "1", "0", "0", "0", "1", "0"]);
        assert!(err.contains("It is safe to send the same files again"), "{status}: {err}");
        if status == 403 {
            assert!(err.contains("second.json [1].siteId: is not your site"), "{err}");
        }
        let text = std::fs::read_to_string(&refused).expect("what was refused before");
        assert_eq!(text, format!("[{}]\n", bundle("bad-1")));
    }
}

#[tokio::test]
async fn both_errors_are_printed_if_the_run_stops_and_the_file_of_refused_bundles_fails() {
    let files = Files::new();
    let refused = files.path("refused.json");
    let path = refused.clone();
    let cloud = Cloud::start(move |_| {
        // Nothing is refused, so the command removes its file at the end, which fails now.
        std::fs::remove_file(&path).expect("the command's file");
        (403, json!({ "title": "Forbidden" }), vec![])
    })
    .await;
    let file = files.write("file.json", &["good-1"]);
    let option = ["--refused", &refused.to_string_lossy()];
    let (code, out, err) = run(&cloud, &[&["readings", "send", &file], &option[..]].concat()).await;
    assert_eq!(code, 5, "{out}{err}");
    assert!(err.contains("Forbidden"), "{err}");
    assert!(err.contains("refused.json can't be written"), "{err}");
}

#[tokio::test]
async fn what_was_accepted_before_the_api_gave_up_is_counted() {
    let cloud = Cloud::start(|request| {
        if !request.body.contains("waiting") {
            return judge(request);
        }
        let errors = json!([{ "field": "[1]", "message": "bundle waiting is not on the stream" }]);
        let refused = json!([{ "field": "[2].series[0]", "message": "is wet", "reason": "Wet" }]);
        let body = json!({ "title": "busy", "accepted": 1, "bundles": ["good-1"], "errors": errors,
            "refused": refused });
        (503, body, vec![])
    })
    .await;
    let files = Files::new();
    let file = files.write("file.json", &["good-1", "waiting", "wet", "also waiting"]);
    let (code, out, err) = run(&cloud, &["readings", "send", &file]).await;
    assert_eq!(code, 4, "{out}{err}");
    assert_line(&out, &[&file, "[2].series[0]", "Wet", "is", "wet"]);
    assert_line(&out, &[&file, "4", "1", "0", "1", "2", "4"]);
    assert!(err.contains("file.json [1]: bundle waiting is not on the stream"), "{err}");
    assert!(err.contains("fieldctl tried 6 times"), "{err}");
}

/// Returns the id of a sensor, and the path of its readings.
fn sensor() -> (String, String) {
    let site = SiteId::registered(OperatorId::DEFAULT, "http", "key-1");
    let sensor = SensorId::from_onboarding(OnboardingId::from_site(site), 0);
    (sensor.to_string(), format!("/local/sensors/{sensor}/readings"))
}

/// Answers to a query in two pages. The first sample has a hostile qualifier. The sample of the second page has no
/// value.
fn answer_query(request: &ReceivedRequest) -> FakeResponse {
    let has_flags = request.query.contains("flags=true");
    let sample = |time: &str, value: Value, flag: u8, qualifiers: Value| {
        let time = format!("2026-01-01T{time}:00.000Z");
        if has_flags { json!([time, value, flag, qualifiers]) } else { json!([time, value]) }
    };
    let first = json!({ "unit": "Cel", "next": "2", "samples": [
        sample("00:00", json!(1.5), 4, json!(["calibration", "a\u{1b}[31m\u{202e}b"])),
        sample("00:01", json!(2.5), 2, json!([])),
        sample("00:02", json!(3.5), 7, json!(["<"])),
    ]});
    let second = json!({ "unit": "Cel", "samples": [sample("00:03", Value::Null, 9, json!([]))] });
    (200, if request.query.contains("next=2") { second } else { first }, vec![])
}

/// Asserts the number of requests so far. Asserts that the last two, the pages of one query, have these of the
/// parameters `quality`, `values` and `flags`, in this order, and no others of them.
fn assert_queries(cloud: &Cloud, count: usize, parameters: &[&str]) {
    let (_, path) = sensor();
    let requests = cloud.requests(&path);
    assert_eq!(requests.len(), count);
    for ReceivedRequest { query, .. } in &requests[count - 2..] {
        let view =
            |pair: &&str| ["quality=", "values=", "flags="].iter().any(|it| pair.starts_with(it));
        assert_eq!(query.split('&').filter(view).collect::<Vec<_>>(), parameters, "{query}");
    }
}

#[tokio::test]
async fn readings_are_shown_with_their_flags_and_qualifiers() {
    let cloud = Cloud::start(answer_query).await;
    let (sensor, _) = sensor();
    let get = ["readings", "get", &sensor, "--quality", "all"];
    let options = ["--values", "raw", "--flags"];
    let (code, out, err) = run(&cloud, &[&get[..], &options].concat()).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    // Each page has the same parameters: its token is only valid with them.
    assert_queries(&cloud, 2, &["quality=all", "values=raw", "flags=true"]);
    let [first, second, third, fourth] =
        [0, 1, 2, 3].map(|minute| format!("2026-01-01T00:0{minute}:00.000Z"));
    assert_line(&out, &["TIME", "VALUE", "FLAG", "QUALIFIERS"]);
    let qualifiers = ["calibration,", "a\\u001b[31m\\u202eb"];
    assert_line(&out, &[&[first.as_str(), "1.5", "Cel", "4", "fail"][..], &qualifiers].concat());
    assert_line(&out, &[&second, "2.5", "Cel", "2", "not", "evaluated"]);
    assert_line(&out, &[&third, "3.5", "Cel", "7", "<"]);
    assert_line(&out, &[&fourth, "-", "9", "missing"]);

    let (code, out, err) = run(&cloud, &[&["--json"], &get[..], &options].concat()).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(!out.contains(['\u{1b}', '\u{202e}']), "{out:?}");
    let samples: Vec<Value> =
        out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(samples[0], json!([first, 1.5, 4, ["calibration", "a\u{1b}[31m\u{202e}b"]]));
    assert_eq!(samples[3], json!([fourth, null, 9, []]));

    let (code, out, err) = run(&cloud, &get).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert_queries(&cloud, 6, &["quality=all"]);
    assert_line(&out, &["TIME", "VALUE"]);
    assert_line(&out, &[&fourth, "-"]);
}

#[tokio::test]
async fn a_plot_has_only_readings_with_a_value() {
    let cloud = Cloud::start(answer_query).await;
    let (sensor, _) = sensor();
    let span = ["--from", "2026-01-01T00:00:00Z", "--to", "2026-01-01T00:10:00Z"];
    let plot = [&["readings", "plot", &sensor][..], &span].concat();
    let options = ["--quality", "all", "--values", "calibrated"];
    let (code, out, err) = run(&cloud, &[&plot[..], &options].concat()).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert_queries(&cloud, 2, &["quality=all", "values=calibrated"]);
    assert!(out.contains("Cel, 3 readings") && out.contains("3.5 ┤"), "{out}");
    let (_, _, err) = run(&cloud, &plot).await;
    assert_eq!(err, "");
    assert_queries(&cloud, 4, &[]);

    let cloud = Cloud::start(|_| {
        let samples = json!([["2026-01-01T00:00:00.000Z", null]]);
        (200, json!({ "unit": "Cel", "samples": samples }), vec![])
    })
    .await;
    let (code, out, err) = run(&cloud, &[&plot[..], &options].concat()).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert_eq!(out, "There are no readings with a value in this period.\n");
    let (_, out, _) = run(&cloud, &[&["--json"], &plot[..], &options].concat()).await;
    assert_eq!(out, "[\"2026-01-01T00:00:00.000Z\",null]\n");
}

#[tokio::test]
async fn wrong_options_of_a_query_are_refused_before_the_call() {
    let cloud = Cloud::start(answer_query).await;
    let (sensor, path) = sensor();
    for (command, options, named) in [
        ("get", &["--quality", "bad"][..], "[possible values: good, usable, all]"),
        ("get", &["--values", "bad"], "[possible values: raw, calibrated]"),
        ("get", &["--flags", "--aggregate", "day"], "--aggregate"),
        ("plot", &["--quality", "bad"], "[possible values: good, usable, all]"),
        ("plot", &["--values", "bad"], "[possible values: raw, calibrated]"),
        ("plot", &["--flags"], "--flags"),
    ] {
        let (code, _, err) =
            run(&cloud, &[&["readings", command, &sensor], options].concat()).await;
        assert!(code == 2 && err.contains(named), "{command} {options:?}: {code} {err}");
    }
    assert!(cloud.requests(&path).is_empty());
}
