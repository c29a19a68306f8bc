//! Tests that outside data can't control the user's terminal or deceive the user: runs every command of the real
//! binary, with hostile text in everything that the stack answers.

mod cloud;
mod schemas;

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::CommandFactory;
use cloud::{Cloud, HOSTILE_OUTPUT, ReceivedRequest};
use contracts::{
    Event, OnboardingId, OperatorId, SagaContext, SensorId, SiteId, Timestamp,
    events::{SiteActivated, SiteCreated},
    operators::KeyId,
};
use fieldctl::cli::Cli;
use ledger::{ErrorInfo, FailureId, FailureRow, Kind, Status, fingerprint::fingerprint};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};
use store::NewEvent;
use testkit::{
    dynamo::{BILLING, EVENT_GUARDS, EVENTS, FAILURES, REFUSALS, SITES},
    sample::other_operator,
};

/// Hostile text: colours and a title for a terminal, a C1 control, bidirectional controls, zero-width and other
/// invisible characters, a line separator, and a line that looks like one of fieldctl's. `fieldctl` itself
/// never sets a background, so the colour here can't be confused with its own.
const HOSTILE: &str = "\u{1b}[45m\u{1b}]0;title\u{7}\u{8}\u{9b}45m\u{7f}\u{85}\u{202e}\u{2066}\u{200b}\
    \u{feff}\u{ad}\u{3164}\u{2028}\u{e0041}\r\nfieldctl: all is well";
/// The colours that `fieldctl` uses.
const COLOURS: [&str; 7] = ["0", "1", "2", "22", "31", "32", "33"];

type FakeResponse = (u16, Value, Vec<(&'static str, &'static str)>);

fn site() -> SiteId {
    SiteId::registered(OperatorId::DEFAULT, "http", "key-1")
}

fn onboarding() -> OnboardingId {
    OnboardingId::from_site(site())
}

/// Returns the characters in an output that control a terminal or are invisible, except those that
/// `fieldctl` writes itself: line ends and its colours.
fn unsafe_in(output: &str) -> BTreeSet<char> {
    let mut rest = output.replace('\n', "");
    for colour in COLOURS {
        rest = rest.replace(&format!("\u{1b}[{colour}m"), "");
    }
    let hostile = HOSTILE.chars().filter(|c| !c.is_ascii_graphic() && !" \n".contains(*c));
    let hostile: BTreeSet<_> = hostile.collect();
    rest.chars().filter(|c| hostile.contains(c) || c.is_control()).collect()
}

fn begun() -> Value {
    json!(1_767_225_600.0)
}

fn key_id() -> KeyId {
    KeyId::from_request(OperatorId::DEFAULT, "key-1")
}

fn shown_operator() -> Value {
    json!({ "operatorId": HOSTILE, "name": HOSTILE, "plan": HOSTILE, "status": HOSTILE,
        "createdAt": HOSTILE })
}

/// Returns a key as the API lists it, and as it answers to the creation or the revocation of a key.
fn shown_key() -> Value {
    json!({ "keyId": key_id(), "prefix": HOSTILE, "name": HOSTILE, "scope": "read", "key": HOSTILE,
        "operatorId": HOSTILE, "createdAt": "2026-01-01T00:00:00.000Z", "lastUsedOn": HOSTILE })
}

/// Returns an event of another system, whose every text is hostile.
fn foreign_event() -> Value {
    json!({
        "metadata": {
            "eventId": site(), "type": HOSTILE, "occurredAt": "2026-01-01T00:00:00.000Z", "sequence": 1,
            "entity": { "type": format!("acme.{HOSTILE}"), "id": HOSTILE }, "correlationId": HOSTILE,
            "operatorId": OperatorId::DEFAULT, "cloudEvent": { "source": HOSTILE, "id": HOSTILE },
        },
        "data": { HOSTILE: HOSTILE },
    })
}

/// Returns a record of the stream with these data.
fn record(data: &Value) -> Value {
    json!({ "SequenceNumber": HOSTILE, "PartitionKey": HOSTILE, "Data": STANDARD.encode(data.to_string()) })
}

/// Answers as a stack in which each text that people or other systems can choose is hostile.
fn hostile(request: &ReceivedRequest) -> FakeResponse {
    let name = format!("name {HOSTILE}");
    let arn = |machine: &str| format!("arn:aws:states:us-east-1:0:execution:{machine}:{HOSTILE}");
    let failure = json!({ "step": name, "error": name, "message": name });
    let shown = json!({
        "siteId": site(), "name": name, "operator": name, "status": "REJECTED", "createdAt": name,
        "location": { "latitude": 1, "longitude": name, "elevationM": 2 },
        "onboarding": { "onboardingId": onboarding(), "failure": failure,
            "steps": [{ "name": name, "status": name, "at": name }] },
        "contact": { "name": name, "email": name, "phone": name },
        "sensors": [
            { "sensorId": name, "unit": name, "metric": name },
            { "sensorId": SensorId::from_onboarding(onboarding(), 0), "unit": name, "metric": name,
                "label": name, "kind": name, "stamp": name, "reportEverySeconds": name, "heightM": name,
                "datum": name, "resolution": name, "detectionLimit": name,
                "counter": { "rollover": name }, "externalIds": { HOSTILE: name },
                "intervals": [{ "validFrom": name, "seconds": name }],
                "noDataValues": [{ "values": [name] }],
                "calibrations": [{ "gain": name, "offset": name }] },
        ],
    });
    let cause = json!({ "errorMessage": name }).to_string();
    let input = json!({ "onboardingId": onboarding(), "siteId": site(), "note": name }).to_string();
    let body = match request.operation.rsplit('.').next().unwrap_or_default() {
        "ListExecutions" => json!({ "executions": [{
            "executionArn": arn("site-teardown"), "stateMachineArn": "m",
            "name": format!("operator-{}-{HOSTILE}", onboarding()), "status": "RUNNING", "startDate": begun() }] }),
        "DescribeExecution" => json!({
            "executionArn": arn("site-teardown"), "name": name, "startDate": begun(), "input": input,
            "stateMachineArn": format!("arn:aws:states:us-east-1:0:stateMachine:{name}"),
            "status": "FAILED", "stopDate": begun(), "error": "CompensationIncomplete", "cause": cause }),
        "GetExecutionHistory" => json!({ "events": [
            { "id": 1, "timestamp": begun(), "type": "TaskStateEntered",
                "stateEnteredEventDetails": { "name": name } },
            { "id": 2, "timestamp": begun(), "type": "TaskFailed", "taskFailedEventDetails": {
                "resource": "r", "resourceType": "lambda", "error": name, "cause": cause } }] }),
        "StartExecution" => json!({ "executionArn": arn("site-teardown"), "startDate": begun() }),
        "/local/sites" if !request.body.is_empty() => {
            json!({ "siteId": site(), "onboardingId": onboarding(), "note": name })
        }
        "/local/sites" => json!({ "sites": [shown] }),
        "/local/readings" => json!({ "accepted": 1, "bundles": [name], "errors": [{
            "field": name, "message": name, "reason": name }] }),
        "/local/operators" if request.method == "GET" => json!({ "operators": [shown_operator()] }),
        path if path.starts_with("/local/operators") => shown_operator(),
        "/local/audit" => json!({ "entries": [{
            "at": HOSTILE, "actor": HOSTILE, "action": HOSTILE, "target": HOSTILE, "details": HOSTILE }] }),
        "/local/keys" if request.method == "GET" => json!({ "keys": [shown_key()] }),
        path if path.starts_with("/local/keys") => shown_key(),
        path if path.starts_with("/local/sensors") && request.query.contains("aggregate") => {
            json!({ "unit": name, "buckets": [{ "start": name, "count": name, "min": name, "max": name }] })
        }
        path if path.ends_with("/revisions") => json!({ "revisions": [{ "bundleId": name,
            "revision": 2, "reason": name, "samples": 1, "arrivedAt": "2026-01-01T00:00:00.000Z",
        }] }),
        path if path.starts_with("/local/sensors") => {
            json!({ "unit": name, "samples": [["2026-01-01T00:00:00.000Z", 1.5]], "note": name })
        }
        path if path.contains("/event-source-mappings")
            && request.query.contains("FunctionName") =>
        {
            json!({ "EventSourceMappings": [{
                "UUID": name, "State": name, "LastProcessingResult": name,
                "EventSourceArn": "arn:aws:kinesis:us-east-1:0:stream/test-events" }] })
        }
        "ListRuleNamesByTarget" => json!({ "RuleNames": [name] }),
        "DescribeRule" => json!({ "Name": name, "State": name }),
        "ListShards" => json!({ "Shards": [{
            "ShardId": "shard-0", "HashKeyRange": { "StartingHashKey": "0", "EndingHashKey": "1" },
            "SequenceNumberRange": { "StartingSequenceNumber": "0" } }] }),
        "GetShardIterator" => json!({ "ShardIterator": "iterator" }),
        "GetRecords" => {
            json!({ "NextShardIterator": "iterator", "MillisBehindLatest": 0, "Records": [
            record(&foreign_event()), record(&HOSTILE.into())] })
        }
        path if path.contains("/event-source-mappings/") => json!({
            "UUID": name, "State": name, "FunctionArn": name, "EventSourceArn": name,
            "LastProcessingResult": name }),
        path if path.ends_with("/aliases/live") => json!({ "FunctionVersion": name }),
        path if path.ends_with("/configuration") => json!({ "LastModified": name }),
        path if path.ends_with("/DescribeAlarms") => json!({ "MetricAlarms": [{
            "AlarmName": format!("test-{name}"), "AlarmDescription": name, "StateValue": "ALARM" }] }),
        "GetQueueAttributes" => json!({ "Attributes": {
            "ApproximateNumberOfMessages": "1", "ApproximateNumberOfMessagesDelayed": "0",
            "ApproximateNumberOfMessagesNotVisible": "0" } }),
        "FilterLogEvents" => {
            let line = json!({ "level": name, "message": name, "field": name, "site": site() });
            json!({ "events": [{ "timestamp": 1, "eventId": "1", "message": line.to_string() }] })
        }
        path if path.contains("/invocations") => {
            let failed = json!({ "errorType": name, "errorMessage": name });
            return (200, failed, vec![("x-amz-function-error", "Unhandled")]);
        }
        _ if request.operation.starts_with("/local/") => shown,
        _ => json!({}),
    };
    (200, body, vec![])
}

/// Answers as a stack that refuses everything, with a hostile reason.
fn refusing(_: &ReceivedRequest) -> FakeResponse {
    let text = format!("refused {HOSTILE}");
    let body = json!({
        "__type": "HostileException", "message": text, "title": text, "detail": text,
        "errors": [{ "field": text, "message": text }],
    });
    (400, body, vec![("x-amzn-errortype", "HostileException")])
}

fn failure() -> FailureRow {
    let source = "import-site";
    let error = ErrorInfo::new(&format!("Name{HOSTILE}"), &format!("message {HOSTILE}"));
    let at = Timestamp::from_millis(1_767_225_600_000);
    FailureRow {
        id: FailureId::new(source, [7; 32]),
        source: source.to_owned(),
        kind: Kind::FunctionFailed,
        payload: Some(json!({ format!("key {HOSTILE}"): HOSTILE }).to_string()),
        payload_file: None,
        fingerprint: fingerprint(source, &error),
        error,
        attempts: 1,
        first_at: at,
        last_at: at,
        status: Status::Open,
        correlation_id: Some(onboarding()),
        site_id: None,
        execution: Some(HOSTILE.to_owned()),
        messages: BTreeSet::new(),
        replays: 0,
        replay: None,
        note: Some(HOSTILE.to_owned()),
    }
}

async fn stack(respond: fn(&ReceivedRequest) -> FakeResponse) -> Cloud {
    let cloud = Cloud::start(respond).await;
    cloud.dynamo.put(FAILURES, json!(failure())).await;
    let site_id = site();
    let saga = SagaContext::for_site(OperatorId::DEFAULT, site_id, None);
    let at = Timestamp::now();
    let event = NewEvent::in_saga(saga, site_id, 2, at, SiteActivated { site_id }).row();
    let mut event = json!(event.expect("a row"));
    let mut detail: Value =
        serde_json::from_str(event["detail"].as_str().expect("text")).expect("JSON");
    detail["data"]["note"] = HOSTILE.into();
    event["detail"] = detail.to_string().into();
    event["entity"] = format!("site#{HOSTILE}").into();
    event["source"] = HOSTILE.into();
    cloud.dynamo.put(EVENTS, event.clone()).await;
    // The site's first event contains its name.
    event["type"] = SiteCreated::TYPE.into();
    detail["metadata"]["type"] = SiteCreated::TYPE.into();
    detail["data"]["name"] = HOSTILE.into();
    event["detail"] = detail.to_string().into();
    event["entity"] = format!("site#{site_id}").into();
    event["sequence"] = 1.into();
    cloud.dynamo.put(EVENTS, event).await;
    let hour = Timestamp::from_millis(at.millis() / 3_600_000 * 3_600_000);
    let refusal = json!({
        "siteId": site_id, "row": format!("{hour}/{HOSTILE}/{HOSTILE}/-"), "refused": 1, "firstAt": at,
        "lastAt": at, "example": HOSTILE, "expiresAt": 0,
    });
    cloud.dynamo.put(REFUSALS, refusal).await;
    let report = json!({
        "id": "reconciliation#provider", "at": at, "sequence": at.millis(), "running": 1,
        "active": 0, "foreign": 0, "found": 1,
        "findings": [{
            "kind": "NO_ACTIVE_ROW", "siteId": site_id, "onboardingId": onboarding(),
            "providerSubscriptionId": format!("sub {HOSTILE}"), "firstSeen": at, "lastSeen": at,
        }],
    });
    cloud.dynamo.put(BILLING, report).await;
    let row = json!({ "siteId": site_id, "row": "SITE", "name": HOSTILE, "status": HOSTILE });
    cloud.dynamo.put(SITES, row).await;
    let claim = json!({
        "id": format!("source#{HOSTILE}"), "operatorId": OperatorId::DEFAULT, "claimedAt": at,
    });
    cloud.dynamo.put(EVENT_GUARDS, claim).await;
    cloud
}

/// Returns the names of all commands, from the definition of the command line.
fn commands() -> Vec<String> {
    fn add(command: &clap::Command, path: &str, all: &mut Vec<String>) {
        let mut subcommands = command.get_subcommands().peekable();
        if subcommands.peek().is_none() {
            all.push(path.trim().to_owned());
        }
        subcommands.for_each(|it| add(it, &format!("{path} {}", it.get_name()), all));
    }
    let mut all = Vec::new();
    add(&Cli::command(), "", &mut all);
    all
}

/// Returns the arguments for a command, and whether it prints outside data: as text, as JSON.
fn arguments(command: &str) -> (Vec<String>, (bool, bool)) {
    let registration = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/events/import-site.json");
    let site = site().to_string();
    let sensor = SensorId::from_onboarding(onboarding(), 0).to_string();
    let onboarding = onboarding().to_string();
    let failure = failure().id.to_string();
    let (operator, key) = (OperatorId::DEFAULT.to_string(), key_id().to_string());
    let other = other_operator().to_string();
    let (more, prints): (&[&str], _) = match command {
        "completions" => (&["bash"], (false, false)),
        "sites migrate" => (&[], (false, false)),
        "status" => (&["--all"], (true, true)),
        "outputs" | "sites list" | "sagas list" | "failures list" | "failures groups"
        | "subscriptions" | "operators list" | "keys list" | "audit list" | "consumers list"
        | "consumers lag" | "sources list" => (&[], (true, true)),
        "operators show" | "operators resume" => (&[&operator], (true, true)),
        "operators update" => (&[&operator, "--plan", "standard"], (true, true)),
        "operators suspend" => (&[&operator, "--yes"], (true, true)),
        "operators create" => (&["name", "--plan", "standard"], (true, true)),
        "keys create" => (&["name", "--scope", "read"], (true, true)),
        "keys rotate" => (&[&key], (true, true)),
        "keys revoke" => (&[&key, "--yes"], (true, true)),
        "sources release" => (&[HOSTILE, "--yes"], (true, true)),
        "sources transfer" => (&[HOSTILE, "--to", &other, "--yes"], (true, true)),
        "sites show" | "sites health" | "sensors list" | "trace" | "logs" => {
            (&[&site], (true, true))
        }
        "sites onboard" => (&[registration, "--wait"], (true, true)),
        "sites teardown" => (&[&site, "--yes"], (false, true)),
        "sagas show" => (&["arn:any"], (true, true)),
        "sagas recover" => (&[&onboarding, "--yes"], (true, true)),
        "events list" => (&["--correlation", &onboarding], (true, true)),
        "events tail" => (&["--seconds", "1"], (true, true)),
        // The function fails. Its message is printed on standard error.
        "consumers replay" => (&["watch-network", "--yes"], (false, false)),
        "readings send" => (&[registration], (true, true)),
        "sensors show" | "sensors revisions" => (&[&sensor], (true, true)),
        "sensors update" => (&[&sensor, "--file", registration], (true, true)),
        "sites update" => (&[&site, "--file", registration], (true, true)),
        "readings get" => (&[&sensor, "--aggregate", "hour"], (true, true)),
        "readings plot" => (&[&sensor, "--from", "2026-01-01T00:00:00Z"], (true, false)),
        "failures show" => (&[&failure], (true, true)),
        "failures replay" => (&["--all", "--yes"], (true, true)),
        "failures discard" => (&["--all", "--note", "x"], (true, true)),
        other => {
            panic!("{other} is a new command: add its arguments and whether it prints outside data")
        }
    };
    let words = command.split(' ').chain(more.iter().copied());
    (words.map(str::to_owned).collect(), prints)
}

/// Runs a command with a width at which nothing is truncated. Returns exit code, standard output and standard error.
async fn run(cloud: &Cloud, options: &[&str], words: &[String]) -> (i32, String, String) {
    let words: Vec<_> = options.iter().copied().chain(words.iter().map(String::as_str)).collect();
    let output = cloud.command(&words).env("COLUMNS", "5000").output().await.expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// Collects every text in a JSON value, including the names of members.
fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|value| texts(value, found)),
        Value::Object(members) => members.iter().for_each(|(name, value)| {
            found.push(name.clone());
            texts(value, found);
        }),
        _ => {}
    }
}

/// Collects every member named `error` in a JSON value.
fn errors_in(value: &Value, found: &mut Vec<Value>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| errors_in(value, found)),
        Value::Object(members) => members.iter().for_each(|(name, value)| {
            // The member `site` of `trace` is a document of the HTTP API.
            match name.as_str() {
                "site" => {}
                "error" => found.push(value.clone()),
                _ => errors_in(value, found),
            }
        }),
        _ => {}
    }
}

#[tokio::test]
async fn no_command_prints_terminal_control_characters() {
    for command in commands() {
        let (words, (as_text, as_json)) = arguments(&command);
        for options in [&["--color", "never"][..], &["--color", "always"], &["--json"]] {
            let cloud = stack(hostile).await;
            let (_, out, err) = run(&cloud, options, &words).await;
            let shown = format!("{options:?} {command}:\n{out:?}\n{err:?}");
            if command == "completions" {
                continue;
            }
            for output in [&out, &err] {
                assert_eq!(unsafe_in(output), BTreeSet::new(), "{shown}");
            }
            assert!(!err.contains("panicked"), "{shown}");
            if options == ["--json"] {
                let documents = serde_json::Deserializer::from_str(&out).into_iter::<Value>();
                let mut found = Vec::new();
                documents
                    .for_each(|it| texts(&it.unwrap_or_else(|_| panic!("{shown}")), &mut found));
                // Most `sites` commands print documents of the HTTP API, whose errors have another schema.
                if !command.starts_with("sites ") {
                    let mut errors = Vec::new();
                    serde_json::Deserializer::from_str(&out)
                        .into_iter::<Value>()
                        .for_each(|it| errors_in(&it.expect("JSON"), &mut errors));
                    for error in errors {
                        assert_eq!(
                            schemas::violations("error", &error),
                            [""; 0],
                            "{command}: {error}"
                        );
                    }
                }
                let same =
                    found.iter().any(|text| text.contains(HOSTILE) || text == HOSTILE_OUTPUT);
                assert_eq!(same, as_json, "the value must stay the same: {shown}");
            } else {
                assert_eq!(out.contains("\\u202e"), as_text, "{shown}");
                let faked = out.lines().any(|line| line.starts_with("fieldctl: all is well"));
                assert!(!faked, "{shown}");
            }
        }
    }
}

#[tokio::test]
async fn no_error_message_controls_a_terminal() {
    let cloud = stack(refusing).await;
    let mut refused = 0;
    for command in commands() {
        let (words, _) = arguments(&command);
        let (_, out, err) = run(&cloud, &["--color", "always"], &words).await;
        if command == "completions" {
            continue;
        }
        for output in [&out, &err] {
            assert_eq!(unsafe_in(output), BTreeSet::new(), "{command}:\n{out:?}\n{err:?}");
        }
        let faked = err.lines().any(|line| line.starts_with("fieldctl: all is well"));
        assert!(!faked, "{command}:\n{err}");
        refused += usize::from(err.contains("refused \\u001b"));
    }
    assert!(refused >= 10, "only {refused} commands were refused");

    // Errors quote the arguments of the command line.
    let sensor = SensorId::from_onboarding(onboarding(), 0).to_string();
    for words in [
        &["sites", "show", HOSTILE][..],
        &[HOSTILE],
        &["--stack", HOSTILE, "sites", "list"],
        &["--endpoint-url", HOSTILE, "sites", "list"],
        &["sites", "onboard", HOSTILE],
        &["sites", "update", "name", "--file", HOSTILE],
        &["sensors", "show", HOSTILE],
        &["readings", "send", HOSTILE],
        &["outputs", HOSTILE],
        &["sagas", "show", HOSTILE],
        &["events", "list", "--entity", HOSTILE],
        &["events", "list", "--entity", &format!("acme.{HOSTILE}/{HOSTILE}")],
        &["events", "list", "--correlation", HOSTILE],
        &["events", "list", "--type", "SiteCreated", "--operator", HOSTILE],
        &["consumers", "replay", HOSTILE, "--yes"],
        &["readings", "get", &sensor, "--from", HOSTILE],
        &["operators", "show", HOSTILE],
        &["keys", "create", "name", "--scope", HOSTILE],
        &["keys", "revoke", HOSTILE],
        &["failures", "show", HOSTILE],
        &["audit", "list", "--operator", HOSTILE],
    ] {
        let (code, out, err) = cloud.run(words).await;
        let quoted = err.contains("u{202e}") || err.contains("u202e");
        assert!(code > 0 && quoted, "{words:?}: {err}");
        for output in [&out, &err] {
            assert_eq!(unsafe_in(output), BTreeSet::new(), "{words:?}:\n{out:?}\n{err:?}");
        }
    }
}

#[tokio::test]
async fn an_unknown_type_of_events_is_escaped() {
    let cloud = stack(refusing).await;
    let (code, out, err) = cloud.run(&["events", "list", "--type", HOSTILE]).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.starts_with("No events of type \\u001b[45m"), "{out}");
    assert_eq!(unsafe_in(&out), BTreeSet::new(), "{out:?}");
}

/// Runs the binary with a terminal as standard input, output and error, and answers `y` to its question. Returns the
/// terminal's output.
fn on_a_terminal(cloud: &Cloud, words: &[&str]) -> String {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
    grantpt(&master).expect("its other end");
    unlockpt(&master).expect("its other end");
    let name = ptsname(&master, Vec::new()).expect("its name").into_string().expect("text");
    let end =
        || -> OwnedFd { File::options().read(true).write(true).open(&name).expect(&name).into() };
    let mut command: Command = cloud.command(words).into_std();
    command.env("TERM", "xterm-256color").stdin(Stdio::from(end()));
    command.stdout(Stdio::from(end())).stderr(Stdio::from(end()));
    let mut child = command.spawn().expect("it runs");
    // The child has its own descriptors. The output ends when the last descriptor is closed.
    drop(command);
    let mut terminal = File::from(master);
    terminal.write_all(b"y\n").expect("input written");
    let (mut output, mut buffer) = (Vec::new(), [0; 4096]);
    // A read error means that the other end is closed.
    while let Ok(length @ 1..) = terminal.read(&mut buffer) {
        output.extend_from_slice(&buffer[..length]);
    }
    child.wait().expect("its end");
    String::from_utf8_lossy(&output).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_and_progress_do_not_control_a_terminal() {
    static SITE_REQUESTS: AtomicUsize = AtomicUsize::new(0);
    // From the second request on, the site is in the status that the command waits for.
    fn slow(request: &ReceivedRequest) -> FakeResponse {
        let (status, mut body, headers) = hostile(request);
        if request.operation.contains("/local/sites/") {
            let ready = SITE_REQUESTS.fetch_add(1, Ordering::Relaxed) > 0;
            body["status"] = if ready { "DECOMMISSIONED" } else { "ONBOARDING" }.into();
        }
        (status, body, headers)
    }
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/events/import-site.json");
    let (site, onboarding) = (site().to_string(), onboarding().to_string());
    let key = key_id().to_string();
    let expected = HashMap::from([
        ("teardown", "out of service permanently? [y/N]"),
        ("recover", "Undo steps that are already done change nothing. [y/N]"),
        ("onboard", "ONBOARDING: name \\u001b[45m"),
        ("revoke", "last used on \\u001b[45m"),
        ("replay", "Ctrl-C stops after the running replays"),
        ("send", "Ctrl-C stops, what was accepted stays"),
    ]);
    for words in [
        &["sites", "teardown", &site][..],
        &["sagas", "recover", &onboarding],
        &["sites", "onboard", file, "--wait"],
        &["keys", "revoke", &key],
        &["failures", "replay", "--all", "--yes"],
        &["readings", "send", file],
    ] {
        SITE_REQUESTS.store(0, Ordering::Relaxed);
        let cloud = stack(slow).await;
        let output = tokio::task::block_in_place(|| on_a_terminal(&cloud, words));
        assert!(output.contains(expected[words[1]]), "{words:?}:\n{output:?}");
        assert!(output.contains("\\u202e"), "{words:?}:\n{output:?}");
        // The terminal itself adds \r, and the progress indicator moves the cursor.
        for hostile in ["\u{1b}[45m", "\u{1b}]", "\u{7}", "\u{8}"] {
            assert!(!output.contains(hostile), "{words:?}:\n{output:?}");
        }
        let unsafe_chars = unsafe_in(&output);
        assert!(
            unsafe_chars.iter().all(|c| matches!(c, '\u{1b}' | '\r')),
            "{words:?}: {unsafe_chars:?}\n{output:?}"
        );
    }
}
