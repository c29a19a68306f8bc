//! Tests `fieldctl failures` and `sagas recover`: runs the real binary against a fake of AWS with an embedded DynamoDB.

mod cloud;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use aws_sdk_dynamodb::types::{PutRequest, WriteRequest};
use base64::{Engine, engine::general_purpose::STANDARD};
use cloud::{CALLER_ARN, Cloud, ReceivedRequest, Stacks};
use contracts::{OnboardingId, OperatorId, SensorId, SiteId, Timestamp};
use fieldctl::failure_pager::{FailureFilter, OpenFailures};
use ledger::{
    AffectedIds, ErrorInfo, FailureId, FailureRow, Kind, Ledger, Status, fingerprint::fingerprint,
};
use serde_json::{Value, json};
use testkit::dynamo::{AUDIT, FAILURES, SITES};

fn row(number: usize) -> FailureRow {
    let source = if number.is_multiple_of(10) { "project-site" } else { "import-site" };
    let message = format!("sensor {number} has no unit{}", " x".repeat(500));
    let error = ErrorInfo {
        affected_ids: Some(AffectedIds::default()),
        ..ErrorInfo::new("InvalidInput", &message)
    };
    let mut work = [0; 32];
    work[..8].copy_from_slice(&number.to_le_bytes());
    let at = Timestamp::from_millis(1_767_225_600_000 + i64::try_from(number).expect("small"));
    FailureRow {
        id: FailureId::new(source, work),
        source: source.to_owned(),
        kind: Kind::FunctionFailed,
        payload: Some(json!({ "work": number, "detail": "x".repeat(400) }).to_string()),
        payload_file: None,
        fingerprint: fingerprint(source, &error),
        error,
        attempts: 1,
        first_at: at,
        last_at: at,
        status: Status::Open,
        correlation_id: None,
        site_id: None,
        execution: None,
        messages: BTreeSet::from([number.to_string()]),
        replays: 0,
        replay: None,
        note: None,
    }
}

async fn put(cloud: &Cloud, rows: impl IntoIterator<Item = FailureRow>) {
    let rows: Vec<_> = rows.into_iter().collect();
    for rows in rows.chunks(25) {
        let writes = rows.iter().map(|row| {
            let item = serde_dynamo::to_item(row).expect("an item");
            let put = PutRequest::builder().set_item(Some(item)).build().expect("a put");
            WriteRequest::builder().put_request(put).build()
        });
        let write = cloud.dynamo.client().batch_write_item();
        write.request_items(FAILURES, writes.collect()).send().await.expect("rows put");
    }
}

/// An id that does not exist.
const UNKNOWN: &str = "55115657-a433-553f-959b-29ae8465145d";

/// Returns the number of rows with each status, and the number of rows with an unfinished replay.
async fn statuses(cloud: &Cloud) -> (BTreeMap<String, usize>, usize) {
    let mut counts = BTreeMap::new();
    let rows = cloud.dynamo.rows(FAILURES).await;
    let sending = rows.iter().filter(|row| row["replay"]["state"] == "SENDING").count();
    for row in rows {
        *counts.entry(row["status"].as_str().expect("a status").to_owned()).or_default() += 1;
    }
    (counts, sending)
}

type FakeResponse = (u16, Value, Vec<(&'static str, &'static str)>);

fn done(_: &ReceivedRequest) -> FakeResponse {
    (200, json!({ "outcome": "DONE" }), vec![])
}

fn site(name: &str) -> SiteId {
    SiteId::registered(OperatorId::DEFAULT, "http", name)
}

/// Returns a failure of readings of a site that were quarantined because of a sensor.
fn quarantined(number: usize, site: SiteId, sensor: u32) -> FailureRow {
    let sensor_id = SensorId::from_onboarding(OnboardingId::from_site(site), sensor as usize);
    let affected_ids =
        AffectedIds { site_id: Some(site), sensor_id: Some(sensor_id), ..AffectedIds::default() };
    let message = format!("sensor {sensor_id} is not in the register");
    let error =
        ErrorInfo { affected_ids: Some(affected_ids), ..ErrorInfo::new("UnknownSensor", &message) };
    let bundle = json!({ "bundleId": "b-1", "siteId": site, "paymentMethod": "pm_1" }).to_string();
    let record = json!({ "kinesis": { "partitionKey": site, "data": STANDARD.encode(bundle) } });
    FailureRow {
        source: "store-readings".to_owned(),
        kind: Kind::Quarantined,
        payload: Some(record.to_string()),
        fingerprint: fingerprint("store-readings", &error),
        error,
        site_id: Some(site),
        ..row(number)
    }
}

/// Parses the JSON lines that a command printed.
fn lines(out: &str) -> Vec<Value> {
    out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Returns the numbers of the work that was sent to functions, in the order in which it arrived.
fn sent(cloud: &Cloud) -> Vec<u64> {
    let requests = cloud.requests("/invocations").into_iter();
    let work =
        requests.map(|request| serde_json::from_str::<Value>(&request.body).expect("an event"));
    work.map(|event| event["work"].as_u64().expect("its number")).collect()
}

#[tokio::test]
async fn failures_are_listed_grouped_and_shown() {
    let cloud = Cloud::start(done).await;
    let mut secret = row(1);
    secret.payload =
        Some(json!({ "taskToken": "AQC", "command": { "paymentMethod": "pm_1" } }).to_string());
    secret.error = ErrorInfo::new("Unreadable", "an \u{1b}[31mescape\nand a line");
    secret.fingerprint = fingerprint(&secret.source, &secret.error);
    let id = secret.id.to_string();
    put(&cloud, (2..=30).map(row).chain([secret])).await;

    let (code, out, err) = cloud.run(&["failures", "list"]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.ends_with("30 failures\n") && out.contains("InvalidInput: sensor 30"), "{out}");
    assert!(!out.contains('\u{1b}'), "an error message must not control the terminal: {out}");

    let (code, out, _) =
        cloud.run(&["--json", "failures", "list", "--source", "project-site"]).await;
    let rows: Vec<Value> =
        out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((code, rows.len()), (0, 3));

    let (code, out, _) = cloud.run(&["--json", "failures", "groups"]).await;
    let counts: Vec<_> = out
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["count"].clone())
        .collect();
    assert_eq!((code, counts), (0, vec![json!(26), json!(3), json!(1)]));

    let (code, out, _) = cloud.run(&["failures", "show", &id[..8]]).await;
    assert_eq!(code, 0);
    assert!(out.contains("\"paymentMethod\": \"***\"") && !out.contains("AQC"), "{out}");
    let (_, out, _) = cloud.run(&["failures", "show", &id, "--raw"]).await;
    assert!(out.contains("AQC"), "{out}");
}

#[tokio::test]
async fn a_replay_without_yes_does_nothing_and_with_it_closes_each_failure() {
    let cloud = Cloud::start(|request| {
        let event: Value = serde_json::from_str(&request.body).unwrap_or_default();
        if request.operation.contains("/test-gone/") {
            let response = json!({ "message": "Function not found" });
            return (404, response, vec![("x-amzn-errortype", "ResourceNotFoundException")]);
        }
        if event["work"] == 3 {
            let response = json!({ "errorType": "InvalidInput", "errorMessage": "still wrong" });
            (200, response, vec![("x-amz-function-error", "Unhandled")])
        } else {
            (200, Value::Null, vec![])
        }
    })
    .await;
    let mut unreadable = row(5);
    unreadable.kind = Kind::Unreadable;
    let mut gone = row(6);
    gone.source = "gone".to_owned();
    put(&cloud, (1..=4).map(row).chain([unreadable, gone])).await;

    let (code, out, err) = cloud.run(&["failures", "replay", "--all"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("import-site:live"), "{out}");
    assert!(out.ends_with("5 failures would be replayed. Add --yes to do it.\n"), "{out}");
    assert_eq!(sent(&cloud), [] as [u64; 0]);

    let (code, out, err) =
        cloud.run(&["failures", "replay", "--all", "--yes", "--rate", "100"]).await;
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("InvalidInput: still wrong"), "{out}");
    let skipped = "2 skipped (1 there is no function gone with the alias live; 1 unreadable, can't be replayed)";
    assert!(out.ends_with(&format!("3 replayed, 1 failed again, {skipped}\n")), "{out}");
    let counts = BTreeMap::from([("OPEN".to_owned(), 3), ("REPLAYED".to_owned(), 3)]);
    assert_eq!(statuses(&cloud).await, (counts, 0));

    let (code, out, _) = cloud.run(&["failures", "discard", "--all", "--note", "x", "--yes"]).await;
    assert_eq!((code, out.as_str()), (0, "3 discarded\n"));
}

/// Returns the number of requests by which a replay can send work: function calls, executions, messages.
fn anything_sent(cloud: &Cloud) -> usize {
    ["/invocations", "StartExecution", "SendMessage"]
        .map(|what| cloud.requests(what).len())
        .iter()
        .sum()
}

#[tokio::test]
async fn a_replay_refuses_to_undo_a_site_in_service_and_names_the_site_that_it_undoes() {
    let site: SiteId = "55115657-a433-553f-959b-29ae8465145d".parse().expect("a site's id");
    let cloud = Cloud::start(move |_| {
        let response = json!({
            "executionArn": "arn", "startDate": 1.0, "status": "SUCCEEDED", "outcome": "DONE",
        });
        (200, response, vec![])
    })
    .await;
    let owner = OperatorId::registered("owner");
    put_site(&cloud, site, owner, "ACTIVE").await;
    let undoing = [
        ("site-teardown", Kind::ExecutionFailed),
        ("recover-onboarding", Kind::FunctionFailed),
        ("cancel-subscription", Kind::DeadLetter),
    ];
    put(
        &cloud,
        undoing.iter().enumerate().map(|(number, (source, kind))| {
            let source = (*source).to_owned();
            about(site, FailureRow { source, kind: *kind, ..row(number) })
        }),
    )
    .await;

    let replay = ["failures", "replay", "--all"];
    let (code, out, err) = cloud.run(&replay).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(out.matches("not sent: site").count(), 3, "{out}");
    assert!(out.ends_with("No failure would be replayed.\n"), "{out}");
    let (code, out, err) = cloud.run(&[&replay[..], &["--yes"]].concat()).await;
    assert_eq!(code, 4, "{out}{err}");
    assert!(out.contains(&format!("not sent: site {site} (Alamosa) is in service")), "{out}");
    assert!(out.ends_with("0 replayed, 0 failed again, 3 refused\n"), "{out}");
    assert_eq!(anything_sent(&cloud), 0);
    assert_eq!(statuses(&cloud).await, (BTreeMap::from([("OPEN".to_owned(), 3)]), 0));

    put_site(&cloud, site, owner, "DECOMMISSIONING").await;
    let (_, out, _) = cloud.run(&replay).await;
    assert_eq!(out.matches("Alamosa (DECOMMISSIONING)").count(), 3, "{out}");
    let (_, out, _) = cloud.run(&[&["--json"], &replay[..]].concat()).await;
    for line in out.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let undoes = json!({ "siteId": site, "name": "Alamosa", "status": "DECOMMISSIONING" });
        assert_eq!(line["undoes"], undoes);
    }
    let (code, out, err) = cloud.run(&[&replay[..], &["--yes"]].concat()).await;
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(anything_sent(&cloud), 3, "{out}");
    let entries = cloud.dynamo.rows(AUDIT).await;
    assert_eq!(entries.len(), 3);
    assert!(entries.iter().all(|entry| entry["operatorId"] == json!(owner)), "{entries:?}");
}

/// Puts failures of a site's teardown, and the site.
async fn put_teardown_failures(cloud: &Cloud) {
    put(cloud, teardown_failures()).await;
    put_site(cloud, site("a"), OperatorId::DEFAULT, "DECOMMISSIONING").await;
}

/// Returns the row with this site as the one that the failure concerns.
fn about(site: SiteId, mut row: FailureRow) -> FailureRow {
    row.site_id = Some(site);
    row.error.affected_ids = Some(AffectedIds { site_id: Some(site), ..AffectedIds::default() });
    row
}

/// Puts the row of a site.
async fn put_site(cloud: &Cloud, site: SiteId, operator: OperatorId, status: &str) {
    let row = json!({
        "siteId": site, "row": "SITE", "name": "Alamosa", "operatorId": operator, "status": status,
    });
    cloud.dynamo.put(SITES, row).await;
}

#[tokio::test]
async fn an_entry_of_the_audit_trail_belongs_to_the_operator_of_the_failures_site() {
    let cloud = Cloud::start(done).await;
    let (owner, known, unknown) = (OperatorId::registered("owner"), site("known"), site("unknown"));
    put_site(&cloud, known, owner, "ACTIVE").await;
    // Only the sender says that these readings are of the site.
    let claimed = quarantined(5, known, 0);
    let mut confirmed = quarantined(6, unknown, 1);
    let affected_ids = AffectedIds { sensor_site_id: Some(known), ..confirmed.affected_ids() };
    confirmed.error.affected_ids = Some(affected_ids);
    let [one, two, three] =
        [(1, known), (2, known), (3, unknown)].map(|(number, site)| about(site, row(number)));
    let rows = [one, two, three, row(4), claimed, confirmed];
    let expected: BTreeMap<_, _> = rows
        .iter()
        .zip([owner, owner, OperatorId::DEFAULT, OperatorId::DEFAULT, OperatorId::DEFAULT, owner])
        .map(|(row, operator)| (row.id.to_string(), json!(operator)))
        .collect();
    let first = rows[0].id.to_string();
    put(&cloud, rows).await;
    cloud.run(&["failures", "replay", &first, "--yes"]).await;
    let discard = ["failures", "discard", "--all", "--note", "x", "--yes"];
    let (code, out, err) = cloud.run(&discard).await;
    assert_eq!(code, 0, "{out}{err}");
    let entries = cloud.dynamo.rows(AUDIT).await;
    let found: BTreeMap<_, _> = entries
        .iter()
        .map(|entry| {
            (entry["target"].as_str().expect("a target").to_owned(), entry["operatorId"].clone())
        })
        .collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn quarantined_readings_are_grouped_by_sender() {
    let (desert, alamosa) = (site("desert"), site("alamosa"));
    let cloud = Cloud::start(move |request| {
        let sites = [(desert, "Desert Rock"), (alamosa, "Alamosa")];
        let shown = |(id, name)| json!({ "siteId": id, "name": name });
        let path = request.operation.as_str();
        if path == "/local/sites" {
            return (200, json!({ "sites": sites.map(shown) }), vec![]);
        }
        match sites.into_iter().find(|(id, _)| path.ends_with(&id.to_string())) {
            Some(site) => (200, shown(site), vec![]),
            None => (404, json!({ "title": "Not found" }), vec![]),
        }
    })
    .await;
    let mut rows: Vec<_> = (1..=3).map(|number| quarantined(number, desert, 0)).collect();
    rows.extend([quarantined(4, desert, 1), quarantined(5, alamosa, 0)]);
    // A row of an earlier version: its error does not contain the site.
    let mut old = quarantined(6, alamosa, 0);
    old.error.affected_ids = None;
    rows.push(old);
    let fingerprints: BTreeSet<_> = rows.iter().map(|row| row.fingerprint.clone()).collect();
    assert_eq!(fingerprints.len(), 1, "one cause");
    put(&cloud, rows).await;

    let (code, out, err) = cloud.run(&["failures", "groups"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("Desert Rock (claimed)") && out.contains("Alamosa (claimed)"), "{out}");
    assert!(out.contains("command       fieldctl failures replay --group "), "{out}");
    // The name of each of the two sites is looked up once.
    assert_eq!(cloud.requests("/local/sites/").len(), 2);
    let (_, out, _) = cloud.run(&["--json", "failures", "groups"]).await;
    let groups = lines(&out);
    let counts: Vec<_> = groups.iter().map(|group| group["count"].clone()).collect();
    assert_eq!(counts, [3, 1, 1, 1].map(|count| json!(count)), "{out}");
    let (first, fingerprint) = (&groups[0]["group"], &groups[0]["fingerprint"]);
    assert_eq!(groups[0]["siteId"], json!(desert));

    for (site, count) in [("Desert Rock", 4), ("alamosa", 2), (&alamosa.to_string()[..8], 2)] {
        let (code, out, err) = cloud.run(&["--json", "failures", "list", "--site", site]).await;
        assert_eq!((code, lines(&out).len()), (0, count), "{site}: {err}");
    }
    let fingerprint = fingerprint.as_str().expect("text");
    let (_, out, _) = cloud.run(&["--json", "failures", "list", "--group", fingerprint]).await;
    assert_eq!(lines(&out).len(), 6, "a fingerprint is all its groups");

    let first = first.as_str().expect("text");
    let discard = ["failures", "discard", "--group", first, "--note", "repaired", "--yes"];
    let (code, out, _) = cloud.run(&discard).await;
    assert_eq!((code, out.as_str()), (0, "3 discarded\n"));
    let (_, out, _) = cloud.run(&["failures", "list", "--group", first]).await;
    assert_eq!(out, format!("No open failures of group {first}.\n"));
    let (_, out, _) = cloud.run(&["failures", "list", "--source", "project-site"]).await;
    assert_eq!(out, "No open failures of source project-site.\n");
}

#[tokio::test]
async fn a_failure_is_shown_decoded_with_its_sender_and_advice() {
    let desert = site("desert");
    let cloud =
        Cloud::start(move |_| (200, json!({ "siteId": desert, "name": "Desert Rock" }), vec![]));
    let cloud = cloud.await;
    let row = quarantined(1, desert, 0);
    let id = row.id.to_string();
    put(&cloud, [row]).await;
    let (code, out, err) = cloud.run(&["failures", "show", &id]).await;
    assert_eq!(code, 0, "{err}");
    for part in [
        "Desert Rock, as the sender claims",
        "not in the register",
        &format!("command       fieldctl failures replay {id} --yes"),
        "decoded       kinesis.data: base64, JSON",
        "\"bundleId\": \"b-1\"",
        "\"paymentMethod\": \"***\"",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let (_, out, _) = cloud.run(&["failures", "show", &id, "--raw"]).await;
    assert!(!out.contains("bundleId") && !out.contains("decoded"), "{out}");
    let (_, out, _) = cloud.run(&["--json", "failures", "show", &id]).await;
    let shown: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(shown["payload"]["kinesis"]["data"]["bundleId"], "b-1");
    assert_eq!(shown["decoded"], json!(["kinesis.data: base64, JSON"]));
    assert_eq!(shown["siteId"], json!(desert));
    assert_eq!(shown["advice"]["command"], format!("fieldctl failures replay {id} --yes"));
}

/// Answers as a stack whose teardowns have that final status from the `polls`-th `DescribeExecution` on.
fn teardowns(status: &'static str, polls: usize) -> impl Fn(&ReceivedRequest) -> FakeResponse {
    let polled = AtomicUsize::new(0);
    move |request| {
        let response = match request.operation.rsplit('.').next().unwrap_or_default() {
            "DescribeExecution" => {
                let ended = polled.fetch_add(1, Ordering::Relaxed) + 1 >= polls;
                let input = json!({
                    "onboardingId": OnboardingId::from_site(site("a")), "siteId": site("a"),
                    "causationId": null, "failure": null,
                });
                json!({
                    "executionArn": "arn", "stateMachineArn": "m", "name": "n", "startDate": 1.0,
                    "input": input.to_string(),
                    "status": if ended { status } else { "RUNNING" },
                    "error": ended.then_some("CompensationIncomplete"), "cause": "an undo failed",
                })
            }
            "StartExecution" => json!({ "executionArn": "arn:new", "startDate": 1.0 }),
            "ListExecutions" => json!({ "executions": [{
                "executionArn": "arn:recovery", "stateMachineArn": "m", "status": "RUNNING",
                "name": format!("recovery-{}", OnboardingId::from_site(site("a"))),
                "startDate": 1_767_225_601.0 }] }),
            "GetExecutionHistory" => json!({ "events": [] }),
            _ if request.operation.contains("/invocations") => json!({ "outcome": "DONE" }),
            _ => json!({ "siteId": site("a"), "name": "Alamosa", "status": "REJECTED" }),
        };
        (200, response, vec![])
    }
}

/// Returns a failed teardown, and other work of its onboarding and of another one.
fn teardown_failures() -> Vec<FailureRow> {
    let failure = |number, source: &str, kind, name: &str| FailureRow {
        source: source.to_owned(),
        kind,
        site_id: Some(site(name)),
        correlation_id: Some(OnboardingId::from_site(site(name))),
        ..row(number)
    };
    vec![
        failure(1, "site-teardown", Kind::ExecutionFailed, "a"),
        failure(2, "cancel-subscription", Kind::DeadLetter, "a"),
        failure(3, "recover-onboarding", Kind::FunctionFailed, "a"),
        failure(4, "project-site", Kind::FunctionFailed, "a"),
        failure(5, "cancel-subscription", Kind::DeadLetter, "b"),
    ]
}

/// Returns the numbers of the open rows.
async fn open(cloud: &Cloud) -> BTreeSet<u64> {
    let rows = cloud.dynamo.rows(FAILURES).await;
    let open = rows.iter().filter(|row| row["status"] == "OPEN");
    let work = |row: &Value| serde_json::from_str::<Value>(row["payload"].as_str()?).ok();
    open.filter_map(|row| work(row)?["work"].as_u64()).collect()
}

#[tokio::test]
async fn a_replay_waits_for_the_teardown_and_closes_what_it_repaired() {
    let replay = ["failures", "replay", "--source", "site-teardown", "--yes"];
    let cloud = Cloud::start(teardowns("SUCCEEDED", 2)).await;
    put_teardown_failures(&cloud).await;
    let (code, out, err) = cloud.run(&replay).await;
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.starts_with("1 replayed, 0 failed again\n2 more closed"), "{out}");
    assert_eq!(open(&cloud).await, BTreeSet::from([4, 5]));

    let cloud = Cloud::start(teardowns("FAILED", 2)).await;
    put_teardown_failures(&cloud).await;
    let (code, out, err) = cloud.run(&replay).await;
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("CompensationIncomplete: an undo failed"), "{out}");
    assert_eq!(open(&cloud).await, BTreeSet::from([1, 2, 3, 4, 5]));

    let cloud = Cloud::start(teardowns("SUCCEEDED", usize::MAX)).await;
    put_teardown_failures(&cloud).await;
    let (code, out, err) = cloud.run(&[&replay[..], &["--wait", "1s"]].concat()).await;
    assert_eq!(code, 6, "{out}{err}");
    assert!(
        out.contains("not known yet: its site-teardown is still running; see fieldctl trace "),
        "{out}"
    );
    assert!(out.ends_with("0 replayed, 0 failed again, 1 not known yet\n"), "{out}");
    let (counts, sending) = statuses(&cloud).await;
    assert_eq!((counts["OPEN"], sending), (5, 0), "open, and not in doubt");
}

#[tokio::test]
async fn a_replay_of_recover_onboarding_waits_for_the_teardown() {
    let replay = ["failures", "replay", "--source", "recover-onboarding", "--yes"];
    for (status, code, expected) in [
        ("SUCCEEDED", 0, "1 replayed, 0 failed again"),
        ("FAILED", 1, "CompensationIncomplete: an undo failed"),
    ] {
        let cloud = Cloud::start(teardowns(status, 2)).await;
        put_teardown_failures(&cloud).await;
        let (exit, out, err) = cloud.run(&replay).await;
        assert_eq!(exit, code, "{status}: {out}{err}");
        assert!(out.contains(expected), "{status}: {out}");
        let left = if code == 0 { BTreeSet::from([4, 5]) } else { BTreeSet::from([1, 2, 3, 4, 5]) };
        assert_eq!(open(&cloud).await, left, "{status}");
    }
}

#[tokio::test]
async fn a_recovery_waits_for_its_end_and_closes_what_it_repaired() {
    let onboarding = OnboardingId::from_site(site("a")).to_string();
    let recover = ["sagas", "recover", &onboarding, "--yes"];
    for (status, wait, code, left) in [
        ("SUCCEEDED", "10s", 0, &[4, 5][..]),
        ("FAILED", "10s", 1, &[1, 2, 3, 4, 5]),
        ("RUNNING", "1s", 6, &[1, 2, 3, 4, 5]),
    ] {
        // The command first describes the onboarding's own execution, so every description has the final status.
        let cloud = Cloud::start(teardowns(status, 0)).await;
        put_teardown_failures(&cloud).await;
        let (exit, out, err) = cloud.run(&[&recover[..], &["--wait", wait]].concat()).await;
        assert_eq!(exit, code, "{status}: {out}{err}");
        assert_eq!(open(&cloud).await, left.iter().copied().collect::<BTreeSet<_>>(), "{status}");
    }
}

#[tokio::test]
async fn a_replay_of_readings_that_fails_again_is_reported() {
    let cloud = Cloud::start(|request| {
        let again = json!({ "outcome": "FAILED", "error": "RetiredSensor", "message": "retired" });
        let unclear = json!({ "batchItemFailures": [] });
        match request.operation.contains("/invocations") {
            true if request.body.contains(&site("a").to_string()) => (200, again, vec![]),
            true => (200, unclear, vec![]),
            false => (404, json!({}), vec![]),
        }
    })
    .await;
    put(&cloud, [quarantined(1, site("a"), 0), quarantined(2, site("b"), 0)]).await;
    let (code, out, err) = cloud.run(&["failures", "replay", "--all", "--yes"]).await;
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("RetiredSensor: retired"), "{out}");
    // A response without an outcome does not count as a success.
    assert!(out.ends_with("0 replayed, 1 failed again, 1 in doubt\n"), "{out}");
    let rows = cloud.dynamo.rows(FAILURES).await;
    let failed =
        rows.iter().find(|row| row["error"]["name"] == "RetiredSensor").expect("its error");
    assert_eq!(failed["status"], "OPEN");
    assert_eq!(failed["error"]["concerns"]["siteId"], json!(site("a")), "{failed}");
}

#[tokio::test]
async fn a_record_in_parts_is_replayed_as_one() {
    let cloud = Cloud::start(done).await;
    let part = |number: usize, data: &str| {
        let record = json!({
            "eventID": "shard:1", "eventSourceARN": "arn:aws:kinesis:::stream/readings",
            "part": format!("{number}/2"),
            "kinesis": {
                "partitionKey": "site", "sequenceNumber": "1", "data": data,
                "approximateArrivalTimestamp": 1.5,
            },
        });
        let payload = Some(record.to_string());
        let source = "store-readings".to_owned();
        FailureRow { kind: Kind::Quarantined, source, payload, ..row(number) }
    };
    put(&cloud, [part(2, "cd")]).await;
    let replay = ["failures", "replay", "--all", "--yes", "--rate", "100"];
    let (_, out, _) = cloud.run(&replay).await;
    assert!(out.starts_with("0 replayed"), "{out}");
    put(&cloud, [part(1, "ab")]).await;
    let (code, out, err) = cloud.run(&replay).await;
    assert_eq!(code, 0, "{out}{err}");
    let sent = cloud.requests("/test-store-readings/invocations");
    let records: Vec<Value> =
        sent.iter().map(|request| serde_json::from_str(&request.body).expect("an event")).collect();
    let whole = json!({
        "eventID": "shard:1", "eventSourceARN": "arn:aws:kinesis:::stream/readings",
        "kinesis": {
            "partitionKey": "site", "sequenceNumber": "1", "data": "abcd",
            "approximateArrivalTimestamp": 1.5,
        },
    });
    assert_eq!(records, [json!({ "replay": whole })]);
    let (counts, _) = statuses(&cloud).await;
    assert_eq!(counts, BTreeMap::from([("REPLAYED".to_owned(), 2)]));
}

/// Returns the entries of the audit trail: actor, action and target.
async fn entries(cloud: &Cloud) -> BTreeSet<[String; 3]> {
    let rows = cloud.dynamo.rows(AUDIT).await;
    let text = |row: &Value, name: &str| row[name].as_str().expect("a text").to_owned();
    let found: BTreeSet<_> =
        rows.iter().map(|row| ["actor", "action", "target"].map(|name| text(row, name))).collect();
    assert_eq!(found.len(), rows.len(), "an action has two entries: {rows:?}");
    found
}

fn entry(action: &str, row: &FailureRow) -> [String; 3] {
    [format!("iam:{CALLER_ARN}"), action.to_owned(), row.id.to_string()]
}

#[tokio::test]
async fn each_replay_and_each_discard_is_an_entry_of_the_audit_trail() {
    let cloud = Cloud::start(done).await;
    let mut unreadable = row(4);
    unreadable.kind = Kind::Unreadable;
    put(&cloud, (1..=3).map(row).chain([unreadable])).await;
    let (one, two, three) = (row(1), row(2), row(3));
    let ids = [&one, &two].map(|row| row.id.to_string());
    let ids = ids.each_ref().map(String::as_str);

    // A preview is no action.
    for command in [&["replay", "--all"][..], &["discard", "--all", "--note", "x"]] {
        let (code, _, err) = cloud.run(&[&["failures"], command].concat()).await;
        assert_eq!(code, 0, "{err}");
    }
    assert!(entries(&cloud).await.is_empty());

    // Failures that are no longer open, or can't be sent, get no entries.
    let replay = [&["failures", "replay", "--yes"], &ids[..]].concat();
    let mut expected = BTreeSet::from([&one, &two].map(|row| entry("ReplayFailure", row)));
    for _ in 0..2 {
        let (_, out, err) = cloud.run(&replay).await;
        assert_eq!(entries(&cloud).await, expected, "{out}{err}");
    }
    let all = ["failures", "replay", "--all", "--yes"];
    cloud.run(&all).await;
    expected.insert(entry("ReplayFailure", &three));
    assert_eq!(entries(&cloud).await, expected);

    let four = row(4).id.to_string();
    let discard = ["failures", "discard", ids[0], &four, "--note", "secret", "--yes"];
    for _ in 0..2 {
        let (code, out, err) = cloud.run(&discard).await;
        assert_eq!(code, 0, "{out}{err}");
        expected.insert(entry("DiscardFailure", &row(4)));
        assert_eq!(entries(&cloud).await, expected);
    }
    let rows = cloud.dynamo.rows(AUDIT).await;
    assert!(rows.iter().all(|row| row["operatorId"] == json!(OperatorId::DEFAULT)), "{rows:?}");
    assert!(!json!(rows).to_string().contains("secret"), "{rows:?}");
}

#[tokio::test]
async fn without_an_entry_of_the_audit_trail_nothing_is_done() {
    let onboarding = OnboardingId::from_site(site("a")).to_string();
    for command in [
        &["failures", "replay", "--all", "--yes"][..],
        &["failures", "discard", "--all", "--note", "x", "--yes"],
        &["sagas", "recover", &onboarding, "--yes"],
    ] {
        let stacks = Stacks { no_audit: true, ..Stacks::default() };
        let cloud = Cloud::with(stacks, teardowns("SUCCEEDED", 0)).await;
        put(&cloud, (1..=3).map(row)).await;
        put_site(&cloud, site("a"), OperatorId::DEFAULT, "DECOMMISSIONING").await;
        let (code, out, err) = cloud.run(command).await;
        assert_eq!(code, 5, "{out}{err}");
        assert!(err.contains("dynamodb:PutItem on the table test-audit"), "{err}");
        assert_eq!(anything_sent(&cloud), 0, "{command:?}");
        assert_eq!(statuses(&cloud).await, (BTreeMap::from([("OPEN".to_owned(), 3)]), 0));
        assert!(entries(&cloud).await.is_empty());
    }
}

#[tokio::test]
async fn a_payload_that_is_not_json_stays_open_and_the_others_are_sent() {
    let cloud = Cloud::start(teardowns("SUCCEEDED", 0)).await;
    let broken = |number, source: &str, kind| {
        let payload = Some("{ not JSON".to_owned());
        about(site("a"), FailureRow { source: source.to_owned(), kind, payload, ..row(number) })
    };
    let bad = [
        broken(1, "store-readings", Kind::Quarantined),
        broken(2, "project-site", Kind::FunctionFailed),
        broken(3, "site-teardown", Kind::ExecutionFailed),
    ];
    put(&cloud, bad.into_iter().chain((4..=6).map(row))).await;
    put_site(&cloud, site("a"), OperatorId::DEFAULT, "DECOMMISSIONING").await;
    let replay = ["failures", "replay", "--all", "--yes", "--concurrency", "1", "--rate", "100"];
    let (code, out, err) = cloud.run(&replay).await;
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("3 replayed, 0 failed again, 3 skipped"), "{out}");
    assert!(out.contains("(3 the payload is not JSON)"), "{out}");
    assert_eq!(anything_sent(&cloud), 3, "nothing of the broken ones is sent");
    let counts = BTreeMap::from([("OPEN".to_owned(), 3), ("REPLAYED".to_owned(), 3)]);
    assert_eq!(statuses(&cloud).await, (counts, 0));
    let rows = cloud.dynamo.rows(FAILURES).await;
    let open = rows.iter().filter(|row| row["status"] == "OPEN");
    assert!(open.into_iter().all(|row| row["replays"] == 0), "{rows:?}");
}

#[tokio::test]
async fn a_refused_call_stops_a_replay_and_leaves_the_failures_as_they_were() {
    let cloud = Cloud::start(|_| {
        (
            403,
            json!({ "message": "not authorized" }),
            vec![("x-amzn-errortype", "AccessDeniedException")],
        )
    })
    .await;
    put(&cloud, (1..=50).map(row)).await;
    let (code, _, err) = cloud
        .run(&["failures", "replay", "--all", "--yes", "--concurrency", "1", "--rate", "5"])
        .await;
    assert_eq!(code, 5, "{err}");
    assert!(err.contains("refused the call") && err.contains("not authorized"), "{err}");
    assert_eq!(sent(&cloud).len(), 1);
    let (counts, sending) = statuses(&cloud).await;
    assert_eq!((counts["OPEN"], sending), (50, 0));
    let rows = cloud.dynamo.rows(FAILURES).await;
    assert!(rows.iter().all(|row| row["error"]["name"] == "InvalidInput"));
    assert!(rows.iter().all(|row| row["replays"] == 0), "{rows:?}");
}

#[tokio::test]
async fn a_dead_letter_command_is_replayed_as_the_original_message() {
    let cloud = Cloud::start(|request| {
        let response = if request.body.contains("forged") {
            json!({ "outcome": "FAILED", "error": "Refused", "message": "not its sender" })
        } else if request.body.contains("late") {
            json!({ "outcome": "MOOT", "message": "its task has ended" })
        } else {
            json!({ "outcome": "DONE" })
        };
        (200, response, vec![])
    })
    .await;
    let dead = |number, token: &str| FailureRow {
        kind: Kind::DeadLetter,
        source: "initialize-subscription".to_owned(),
        payload: Some(json!({ "taskToken": token, "command": {} }).to_string()),
        ..row(number)
    };
    let (good, forged, late) = (dead(1, "good"), dead(2, "forged"), dead(3, "late"));
    let message = good.payload.clone().expect("a payload");
    let late_id = late.id;
    put(&cloud, [good, forged, late]).await;
    let (_, out, _) = cloud.run(&["failures", "replay", "--all"]).await;
    assert!(out.contains("initialize-subscription:live"), "{out}");
    let (code, out, err) = cloud.run(&["failures", "replay", "--all", "--yes"]).await;
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("2 replayed, 1 failed again"), "{out}");
    assert!(out.contains("Refused: not its sender"), "{out}");
    assert!(out.contains("nothing to do: its task has ended"), "{out}");
    let (_, out, _) = cloud.run(&["--json", "failures", "show", &late_id.to_string()]).await;
    let shown: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(
        (&shown["status"], &shown["note"]),
        (&json!("REPLAYED"), &json!("its task has ended"))
    );
    let requests = cloud.requests("test-initialize-subscription/invocations");
    let events: Vec<Value> = requests
        .iter()
        .map(|request| serde_json::from_str(&request.body).expect("an event"))
        .collect();
    let bodies: Vec<_> = events.iter().map(|event| &event["replay"]["body"]).collect();
    assert_eq!(bodies.len(), 3);
    assert!(bodies.contains(&&json!(message)), "{bodies:?}");
    assert!(requests.iter().all(|request| request.query == "Qualifier=live"), "{requests:?}");
    assert!(cloud.requests("AmazonSQS").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_killed_replay_only_failures_in_doubt_could_be_sent_twice() {
    const ALL: usize = 60;
    let cloud = Cloud::start(|_| {
        std::thread::sleep(Duration::from_millis(50));
        (200, Value::Null, vec![])
    })
    .await;
    put(&cloud, (1..=ALL).map(row)).await;
    let replay = ["failures", "replay", "--all", "--yes", "--rate", "1000"];
    let mut killed = cloud
        .command(&replay)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it runs");
    while sent(&cloud).len() < 15 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    killed.kill().await.expect("SIGKILL");
    // The call that was sent last ends without the killed process.
    tokio::time::sleep(Duration::from_millis(200)).await;

    let (_, in_doubt) = statuses(&cloud).await;
    assert!((1..=4).contains(&in_doubt), "{in_doubt} of 4 at the same time are in doubt");
    let (code, out, err) = cloud.run(&replay).await;
    assert_eq!(code, 1, "they stay open: {out}{err}");
    assert!(out.contains(&format!("{in_doubt} skipped ({in_doubt} in doubt")), "{out}");
    let unique: BTreeSet<_> = sent(&cloud).into_iter().collect();
    assert_eq!(unique.len(), sent(&cloud).len(), "nothing was sent twice");

    let before = sent(&cloud).len();
    let (code, out, err) = cloud.run(&[&replay[..], &["--in-doubt"]].concat()).await;
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(sent(&cloud).len() - before, in_doubt);
    let (counts, sending) = statuses(&cloud).await;
    assert_eq!((counts, sending), (BTreeMap::from([("REPLAYED".to_owned(), ALL)]), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_replay_completes_running_calls_and_prints_the_counts() {
    let cloud = Cloud::start(|_| {
        std::thread::sleep(Duration::from_millis(50));
        (200, Value::Null, vec![])
    })
    .await;
    put(&cloud, (1..=60).map(row)).await;
    let replay = ["failures", "replay", "--all", "--yes", "--rate", "1000"];
    let child = cloud.command(&replay).stdout(Stdio::piped()).spawn().expect("it runs");
    let id = i32::try_from(child.id().expect("it runs")).expect("a process's id");
    while sent(&cloud).len() < 15 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let id = rustix::process::Pid::from_raw(id).expect("a process's id");
    rustix::process::kill_process(id, rustix::process::Signal::INT).expect("Ctrl-C");
    let output = child.wait_with_output().await.expect("its end");
    let out = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(1), "{out}");
    let (counts, sending) = statuses(&cloud).await;
    let replayed = counts["REPLAYED"];
    assert_eq!((sent(&cloud).len(), sending), (replayed, 0));
    assert!((15..60).contains(&replayed), "{replayed}");
    let expected = format!(
        "{replayed} replayed, 0 failed again; interrupted, the other failures were not sent\n"
    );
    assert_eq!(out, expected);
}

/// Returns the peak memory of the command, in KiB.
async fn peak(cloud: &Cloud, args: &[&str]) -> u64 {
    let mut child = cloud.command(args).stdout(Stdio::null()).spawn().expect("it runs");
    let path = format!("/proc/{}/status", child.id().expect("it runs"));
    let mut peak = 0;
    loop {
        let status = fs::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let size = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        peak = peak.max(size.unwrap_or(0));
        if let Some(status) = child.try_wait().expect("its status") {
            assert!(status.success(), "{args:?}");
            return peak;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_failures_need_no_more_memory_than_a_thousand() {
    /// The allowed difference: a page of rows, and what the allocator keeps. 9,000 rows would take at least 9 MiB.
    const SLACK_KIB: u64 = 4 << 10;
    let cloud = Cloud::start(done).await;
    put(&cloud, (1..=1000).map(row)).await;
    let commands = [
        &["failures", "list"][..],
        &["failures", "groups"],
        &["failures", "replay", "--all"],
        // A tenth of the rows, to save time.
        &["failures", "replay", "--source", "project-site", "--yes", "--rate", "10000"],
    ];
    let mut few = Vec::new();
    for args in commands {
        few.push(peak(&cloud, args).await);
    }
    put(&cloud, (1001..=10_000).map(row)).await;
    for (args, few) in commands.into_iter().zip(few) {
        let many = peak(&cloud, args).await;
        assert!(many < few + SLACK_KIB, "{args:?}: {few} KiB, then {many} KiB");
    }
    let sent = sent(&cloud);
    assert_eq!(sent.len(), 1_000);
    assert_eq!(sent.into_iter().collect::<BTreeSet<_>>().len(), 1_000, "sent twice");
    assert_eq!(statuses(&cloud).await.0["REPLAYED"], 1_000);
}

#[tokio::test]
async fn mistakes_are_reported_with_a_message() {
    let cloud = Cloud::start(|request| match request.operation.as_str() {
        what if what.ends_with("Execution") => {
            (400, json!({ "__type": "ExecutionDoesNotExist", "message": "none" }), vec![])
        }
        _ => (404, json!({ "title": "Not found" }), vec![]),
    })
    .await;
    for (args, code, expected) in [
        (
            &["--stack", "none", "sites", "list"][..],
            3,
            "there is neither a stack none nor none-gateway in us-east-1",
        ),
        (&["sites", "show", "x"], 3, "Not found"),
        (&["sites", "show", "55115657-a433-553f-959b-29ae8465145d"], 3, "Not found"),
        (&["sites", "onboard", "/nonexistent/site.json"], 2, "can't be read"),
        (&["sites", "onboard", "/dev/null"], 2, "/dev/null is empty"),
        (&["failures", "show", "zz"], 2, "is not a failure id"),
        (&["failures", "show", "abcd1234"], 3, "there is no failure abcd1234"),
        (&["failures", "replay"], 2, "no failures are selected"),
        (&["failures", "list", "--source", "project-sight"], 2, "did you mean project-site?"),
        (
            &["failures", "groups", "--source", "nonsense"],
            2,
            "the sources are alerting-failures, billing-failures, cancel-subscription",
        ),
        (
            &["failures", "discard", "--source", "x", "--note", "n", "--yes"],
            2,
            "there is no source",
        ),
        (
            &["failures", "replay", "--source", "import-sites", "--yes"],
            2,
            "did you mean import-site?",
        ),
        (&["failures", "list", "--group", "nonsense"], 2, "not a group id"),
        (&["failures", "list", "--group", "0123456789ab"], 3, "there is no failure in group"),
        (&["failures", "list", "--site", UNKNOWN], 3, "there is no site"),
        (&["failures", "list", "--correlation", UNKNOWN], 3, "there is no onboarding"),
        (&["events", "list", "--entity", &format!("sites/{UNKNOWN}")], 2, "did you mean site?"),
        (
            &["events", "list", "--entity", &format!("site/{UNKNOWN}")],
            3,
            "there are no events of site/",
        ),
        (
            &["events", "list", "--correlation", UNKNOWN],
            3,
            "there are no events with the correlation id",
        ),
        (&["--endpoint-url", "http://127.0.0.1:9", "sites", "list"], 5, "can't be described"),
        (
            &["events", "list", "--type", "SiteCreated", "--from", "1h", "--to", "2h"],
            2,
            "--from must be before --to",
        ),
        (&["--endpoint-url", "nonsense", "sites", "list"], 2, "is not a URL"),
    ] {
        let (exit, out, err) = cloud.run(args).await;
        assert_eq!(exit, code, "{args:?}: {out}{err}");
        assert!(err.contains(expected) && !err.contains("panicked"), "{args:?}: {err}");
    }
}

/// The page size of the commands.
const PAGE: usize = 250;

#[tokio::test]
async fn a_failure_that_is_recorded_again_while_the_open_ones_are_read_is_returned_once() {
    let cloud = Cloud::start(done).await;
    put(&cloud, (1..=PAGE + 10).map(row)).await;
    let ledger = Ledger { failures: cloud.dynamo.table(FAILURES) };
    let mut open = OpenFailures::new(ledger, FailureFilter::default());
    let page = open.next().await.expect("a page").expect("not the end");
    let mut found: Vec<_> = page.into_iter().map(|row| row.id).collect();
    assert_eq!(found.len(), PAGE);
    // Both pages have one of them, whatever the order is. One failure is new.
    let again = [5, PAGE + 5].map(|number| FailureRow {
        attempts: 2,
        last_at: row(1_000).last_at,
        ..row(number)
    });
    put(&cloud, again.into_iter().chain([row(1_001)])).await;
    while let Some(page) = open.next().await.expect("a page") {
        found.extend(page.into_iter().map(|row| row.id));
    }
    assert_eq!(found.len(), PAGE + 10, "one is returned twice, is missing, or is new");
    let expected: BTreeSet<_> = (1..=PAGE + 10).map(|number| row(number).id).collect();
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[tokio::test]
async fn missing_credentials_or_region_are_reported() {
    let cloud = Cloud::start(done).await;
    let run = async |region: Option<&str>| {
        let mut command = cloud.command(&["sites", "list"]);
        command.env_remove("AWS_ENDPOINT_URL");
        if let Some(region) = region {
            command.env("AWS_REGION", region);
        }
        let output = command.output().await.expect("it runs");
        (output.status.code(), String::from_utf8(output.stderr).expect("text"))
    };
    let (code, err) = run(None).await;
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("there is no AWS region"), "{err}");
    let (code, err) = run(Some("eu-central-1")).await;
    assert_eq!(code, Some(5), "{err}");
    assert!(err.contains("there are no AWS credentials"), "{err}");
}
