//! Tests `fieldctl sites`, `sensors`, `readings get`, `sagas`, `events` and `subscriptions`: runs the real binary
//! against a fake of AWS.

mod cloud;

use cloud::{CALLER_ARN, Cloud, ReceivedRequest};
use contracts::{
    Entity, EntityType, Location, Metric, OnboardingId, OperatorId, PaymentMethodId, Plan,
    SagaContext, SensorId, SiteId, Timestamp,
    events::{Limit, ReadingBreachedThreshold, SiteActivated, SiteCreated, SiteDecommissioned},
};
use serde_json::{Value, json};
use store::NewEvent;
use testkit::dynamo::{AUDIT, BILLING, EVENTS, SITES};

type FakeResponse = (u16, Value, Vec<(&'static str, &'static str)>);

fn site() -> SiteId {
    SiteId::registered(OperatorId::DEFAULT, "http", "key-1")
}

fn operator() -> OperatorId {
    OperatorId::registered("alps")
}

fn ok(body: Value) -> FakeResponse {
    (200, body, vec![])
}

fn body(request: &ReceivedRequest) -> Value {
    serde_json::from_str(&request.body).unwrap_or_default()
}

#[tokio::test]
async fn lists_read_all_pages() {
    let cloud = Cloud::start(|request| {
        let site = |name: &str| json!({ "siteId": site(), "name": name, "operator": "o", "status": "ACTIVE" });
        ok(match request.operation.as_str() {
            "/local/sites" if !request.query.contains("next=") => {
                json!({ "sites": [site("first")], "next": "more" })
            }
            "/local/sites" => json!({ "sites": [site("second")] }),
            _ if !request.query.contains("next=") => {
                json!({ "unit": "Cel", "samples": [["2026-01-01T00:00:00.000Z", 1.5]], "next": "n" })
            }
            _ => json!({ "unit": "Cel", "samples": [["2026-01-01T00:01:00.000Z", 2.5]] }),
        })
    })
    .await;
    let (code, out, err) = cloud.run(&["sites", "list", "--status", "active"]).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(out.lines().count(), 3, "{out}");
    assert!(cloud.requests("/local/sites")[0].query.contains("status=ACTIVE"));
    let (_, out, _) = cloud.run(&["--json", "sites", "list", "--limit", "1"]).await;
    assert_eq!(out.lines().count(), 1, "{out}");

    let sensor = SensorId::from_onboarding(OnboardingId::from_site(site()), 0).to_string();
    let (_, out, _) = cloud.run(&["--json", "readings", "get", &sensor]).await;
    assert_eq!(out, "[\"2026-01-01T00:00:00.000Z\",1.5]\n[\"2026-01-01T00:01:00.000Z\",2.5]\n");
    let span = ["--from", "2026-01-01T00:00:00Z", "--to", "2026-01-01T00:10:00Z"];
    let (_, out, _) = cloud.run(&[&["readings", "plot", &sensor][..], &span].concat()).await;
    assert!(out.contains("2.5 ┤") && out.ends_with("00:10 UTC\n"), "{out}");
}

#[tokio::test]
async fn readings_are_limited_and_the_newest_come_first() {
    // A page has at most two samples, even if the limit is greater.
    let cloud = Cloud::start(|request| {
        let next = request.query.split('&').find_map(|pair| pair.strip_prefix("next="));
        let begin: i64 = next.map_or(0, |next| next.parse().expect("a page token"));
        let limit = request.query.split('&').find_map(|pair| pair.strip_prefix("limit="));
        let count = limit.expect("a limit").parse::<i64>().expect("a number").min(2);
        let sample = |n: i64| {
            let minute = if request.query.contains("order=desc") { 59 - n } else { n };
            json!([format!("2026-01-01T00:{minute:02}:00.000Z"), minute])
        };
        let samples: Vec<_> = (begin..begin + count).map(sample).collect();
        ok(json!({ "unit": "Cel", "samples": samples, "next": (begin + count).to_string() }))
    })
    .await;
    let sensor = SensorId::from_onboarding(OnboardingId::from_site(site()), 0).to_string();
    let minutes = |out: &str| {
        let samples = out.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        samples.map(|sample| sample[1].as_i64().expect("a number")).collect::<Vec<_>>()
    };
    let get = ["--json", "readings", "get", &sensor];
    for (more, expected) in [
        (&["--limit", "1"][..], &[0][..]),
        (&["--limit", "5"], &[0, 1, 2, 3, 4]),
        (&["--newest", "--limit", "1"], &[59]),
        (&["--newest", "--limit", "3"], &[59, 58, 57]),
    ] {
        let (code, out, err) = cloud.run(&[&get[..], more].concat()).await;
        assert_eq!((code, minutes(&out)), (0, expected.to_vec()), "{more:?}: {err}");
    }
    let (code, _, err) = cloud.run(&[&get[..], &["--limit", "0"]].concat()).await;
    assert!(code == 2 && err.contains("--limit"), "{err}");
}

/// Answers as an API with one site, which has one sensor with metadata.
fn with_metadata(request: &ReceivedRequest) -> FakeResponse {
    let sensor = json!({
        "sensorId": SensorId::from_onboarding(OnboardingId::from_site(site()), 0),
        "metric": "air_temperature", "unit": "Cel", "label": "Mast, 2 m", "kind": "interval", "stamp": "end",
        "reportEverySeconds": 900, "heightM": 2.0, "datum": "ground", "resolution": 0.1,
        "detectionLimit": -80.0, "externalIds": { "wigos": "0-20000-0-06610" },
        "intervals": [{ "seconds": 600 }, { "validFrom": "2026-01-01T00:00:00.000Z", "seconds": 60 }],
        "noDataValues": [{ "values": [-9999.9, -999.0] }],
        "calibrations": [
            { "validFrom": "2026-01-01T00:00:00.000Z", "gain": 0.998, "offset": 0.3 },
            { "validFrom": "2999-01-01T00:00:00.000Z", "gain": 1.0, "offset": 0.0 }],
    });
    let shown = json!({ "siteId": site(), "name": "Desert Rock", "operator": "o", "status": "ACTIVE",
        "location": {}, "onboarding": {}, "contact": { "email": "desk@example.org" },
        "sensors": [sensor.clone()] });
    let body = match (request.method.as_str(), request.operation.as_str()) {
        ("GET", "/local/sites") => json!({ "sites": [shown] }),
        ("PATCH", path) if path.starts_with("/local/sensors/") => {
            let mut reply = sensor;
            reply["siteId"] = json!(site());
            reply["label"] = body(request)["label"].clone();
            reply
        }
        _ => return (200, shown, vec![("etag", "\"7-abc\"")]),
    };
    ok(body)
}

#[tokio::test]
async fn a_sensor_is_shown_with_its_metadata_and_what_is_valid_now() {
    let cloud = Cloud::start(with_metadata).await;
    let sensor = SensorId::from_onboarding(OnboardingId::from_site(site()), 0).to_string();
    for name in [sensor.as_str(), &sensor[..8], "Desert Rock/air_temperature"] {
        let (code, out, err) = cloud.run(&["sensors", "show", name]).await;
        assert_eq!((code, err.as_str()), (0, ""), "{name}");
        let lines: Vec<Vec<_>> = out.lines().map(|it| it.split_whitespace().collect()).collect();
        for line in [
            "sensor Mast, 2 m",
            &format!("sensorId {sensor}"),
            &format!("siteId {}", site()),
            "unit Cel",
            "kind interval",
            "stamp end",
            "sent every 900 s",
            "height 2.0 m",
            "datum ground",
            "resolution 0.1 Cel",
            "detects from -80.0 Cel",
            "external ids wigos: 0-20000-0-06610",
            "interval always no 600 s",
            "interval 2026-01-01T00:00:00.000Z yes 60 s",
            "no data always yes -9999.9, -999.0",
            "calibration 2026-01-01T00:00:00.000Z yes raw * 0.998 + 0.3",
            "calibration 2999-01-01T00:00:00.000Z no raw * 1.0 + 0.0",
        ] {
            let words: Vec<_> = line.split(' ').collect();
            assert!(lines.contains(&words), "{name}: {line:?} is not a line of\n{out}");
        }
    }
    let (_, out, _) = cloud.run(&["--json", "sensors", "show", &sensor]).await;
    let document: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(document["siteId"], json!(site()));
    assert_eq!(document["calibrations"][0]["gain"], 0.998);

    let list = ["sensors", "list", "desert"];
    let output = cloud.command(&list).env("COLUMNS", "200").output().await.expect("it runs");
    let out = String::from_utf8(output.stdout).expect("text");
    let row = out.lines().nth(1).expect("a row").split_whitespace().collect::<Vec<_>>().join(" ");
    let metadata = "Cel interval 60 s raw * 0.998 + 0.3 air_temperature Mast, 2 m";
    assert_eq!(row, format!("{sensor} {metadata}"));
    let (_, out, _) = cloud.run(&["--json", "sensors", "list", "desert"]).await;
    assert_eq!(out.lines().count(), 1, "{out}");

    let other = SensorId::from_onboarding(OnboardingId::from_site(site()), 1).to_string();
    let (code, _, err) = cloud.run(&["sensors", "show", &other]).await;
    assert!(code == 3 && err.contains("has no sensor"), "{code} {err}");
    let (code, _, err) = cloud.run(&["sensors", "show", &site().to_string()]).await;
    assert!(code == 3 && err.contains("no sensor has the id"), "{code} {err}");
}

#[tokio::test]
async fn the_revisions_of_a_sensor_are_listed_from_all_pages_in_the_order_of_their_arrival() {
    let at = |time: &str| format!("2026-01-{time}:00.000Z");
    let range = |from: &str, to: &str| json!({ "from": at(from), "to": at(to) });
    let mut correction = json!({
        "bundleId": "b-1", "revision": 3, "reason": "The clock was fast.", "samples": 2,
        "replaces": range("01T10:00", "01T11:00"), "arrivedAt": at("03T12:00"),
    });
    correction["from"] = json!(at("01T09:00"));
    correction["to"] = json!(at("01T09:02"));
    let retraction = json!({
        "bundleId": "b-2", "revision": 2, "reason": "The sensor was wet.", "samples": 0,
        "replaces": range("01T12:00", "01T13:00"), "arrivedAt": at("02T12:00"),
    });
    let pages = [correction.clone(), retraction.clone()];
    let cloud = Cloud::start(move |request| {
        assert!(request.operation.ends_with("/revisions"), "{request:?}");
        let [first, second] = pages.clone();
        ok(if request.query.contains("next=") {
            json!({ "revisions": [second] })
        } else {
            json!({ "revisions": [first], "next": "n" })
        })
    })
    .await;
    let sensor = SensorId::from_onboarding(OnboardingId::from_site(site()), 0).to_string();
    let list = ["sensors", "revisions", &sensor];
    let output = cloud.command(&list).env("COLUMNS", "200").output().await.expect("it runs");
    let out = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<_> = out.lines().map(|it| it.split_whitespace().collect::<Vec<_>>()).collect();
    let titles = "ARRIVED KIND SAMPLES FROM TO REVISION BUNDLE REASON".to_owned();
    let row = |arrived, what: &str, from, to, rest: &str| {
        format!("{} {what} {} {} {rest}", at(arrived), at(from), at(to))
    };
    let expected = [
        titles,
        row("02T12:00", "retraction 0", "01T12:00", "01T13:00", "2 b-2 The sensor was wet."),
        row("03T12:00", "value 2", "01T09:00", "01T11:00", "3 b-1 The clock was fast."),
    ];
    assert_eq!(lines.iter().map(|line| line.join(" ")).collect::<Vec<_>>(), expected);

    let (code, out, err) = cloud.run(&[&["--json"], &list[..]].concat()).await;
    assert_eq!((code, err.as_str()), (0, ""));
    let entries = out.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    assert_eq!(entries.collect::<Vec<_>>(), [correction, retraction]);
}

#[tokio::test]
async fn a_patch_is_sent_as_it_is_in_the_file() {
    let cloud = Cloud::start(with_metadata).await;
    let sensor = SensorId::from_onboarding(OnboardingId::from_site(site()), 0).to_string();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(&file, r#"{"label": "Roof", "datum": null}"#).expect("a file");
    let path = file.path().to_string_lossy();
    let update = ["sensors", "update", &sensor, "--file", &path];
    let (code, out, err) = cloud.run(&update).await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.lines().next().is_some_and(|line| line.ends_with(" Roof")), "{out}");
    let request = &cloud.requests(&format!("/local/sensors/{sensor}"))[0];
    assert_eq!(request.method, "PATCH");
    assert_eq!(body(request), json!({ "label": "Roof", "datum": null }));

    let (_, out, _) = cloud.run(&["sites", "show", "desert"]).await;
    assert!(out.contains("7-abc") && out.contains("desk@example.org"), "{out}");
    let update = ["sites", "update", "desert", "--file", &path, "--if-match", "7-abc"];
    let (code, out, err) = cloud.run(&update).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.contains("Desert Rock"), "{out}");
    let requests = cloud.requests(&format!("/local/sites/{}", site()));
    let request = requests.last().expect("a request");
    assert_eq!(request.method, "PATCH");
    assert_eq!(request.if_match, "\"7-abc\"");
    assert_eq!(body(request)["label"], "Roof");
}

#[tokio::test]
async fn a_rejected_site_is_a_failure_of_onboarding() {
    let cloud = Cloud::start(|request| match request.operation.as_str() {
        "/local/sites" => (
            202,
            json!({ "siteId": site(), "onboardingId": OnboardingId::from_site(site()) }),
            vec![],
        ),
        _ => ok(json!({ "siteId": site(), "status": "REJECTED", "onboarding": { "failure": {
            "step": "ReserveKits", "error": "KitsOutOfStock", "message": "too few" } } })),
    })
    .await;
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../samconfig.toml");
    let (code, _, err) = cloud.run(&["sites", "onboard", file]).await;
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("is not valid JSON"), "{err}");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/events/import-site.json");
    let (code, out, err) =
        cloud.run(&["sites", "onboard", file, "--wait", "--idempotency-key", "k"]).await;
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("ReserveKits: KitsOutOfStock: too few"), "{out}");
    let (code, _, err) = cloud.run(&["sites", "teardown", &site().to_string()]).await;
    assert_eq!(code, 2, "nobody can confirm: {err}");
}

#[tokio::test]
async fn a_saga_without_progress_is_stuck_and_can_be_recovered() {
    let cloud = Cloud::start(|request| {
        let onboarding = OnboardingId::from_site(site());
        let arn = format!("arn:aws:states:us-east-1:0:execution:site-onboarding:{onboarding}");
        let start = json!(1_767_225_600.0);
        let input = json!({ "onboardingId": onboarding, "siteId": site(), "causationId": null, "operatorId": operator() });
        let own = body(request)["executionArn"].as_str().is_some_and(|it| it.contains("site-onboarding"));
        ok(match request.operation.rsplit('.').next() {
            Some("ListExecutions") if request.body.contains("site-teardown") => json!({ "executions": [] }),
            Some("ListExecutions") => json!({ "executions": [{
                "executionArn": arn, "stateMachineArn": "m", "name": onboarding, "status": "RUNNING",
                "startDate": start }] }),
            Some("DescribeExecution") if own => json!({
                "executionArn": arn, "stateMachineArn": "m", "name": onboarding, "status": "RUNNING",
                "startDate": start, "input": input.to_string() }),
            Some("GetExecutionHistory") => json!({ "events": [
                { "id": 1, "timestamp": start, "type": "TaskStateEntered",
                    "stateEnteredEventDetails": { "name": "InitializeSubscription" } },
                { "id": 2, "timestamp": start, "type": "TaskScheduled" },
                { "id": 3, "timestamp": start, "type": "TaskSubmitted" }] }),
            Some("DescribeExecution") => json!({
                "executionArn": "arn:started", "stateMachineArn": "m", "name": "n",
                "status": "SUCCEEDED", "startDate": start, "stopDate": start }),
            Some("StartExecution") => json!({ "executionArn": "arn:started", "startDate": start }),
            _ => Value::Null,
        })
    })
    .await;
    let (code, out, err) = cloud.run(&["sagas", "list", "--stuck"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("RUNNING") && out.lines().count() == 2, "{out}");
    let (_, out, _) = cloud.run(&["sagas", "list", "--stuck", "--budget", "100000d"]).await;
    assert_eq!(out, "No executions found.\n");

    let onboarding = OnboardingId::from_site(site()).to_string();
    let row = json!({ "siteId": site(), "row": "SITE", "name": "n", "status": "ONBOARDING" });
    cloud.dynamo.put(SITES, row).await;
    let (code, out, err) = cloud.run(&["sagas", "recover", &onboarding, "--yes"]).await;
    assert_eq!(code, 0, "{out}{err}");
    assert!(cloud.requests("/local/").is_empty(), "a recovery needs no key");
    let started = body(&cloud.requests("StartExecution")[0]);
    let name = started["name"].as_str().expect("a name");
    assert!(name.starts_with(&format!("operator-{onboarding}-")) && name.len() <= 80, "{name}");
    let input: Value =
        serde_json::from_str(started["input"].as_str().expect("text")).expect("JSON");
    assert_eq!(input["siteId"], json!(site()));
    assert_eq!(input["failure"]["error"], "Recovered");

    // The recovery is the only entry of the audit trail, and belongs to the saga's operator.
    let mut entries = cloud.dynamo.rows(AUDIT).await;
    let entry = entries.remove(0);
    assert!(entries.is_empty(), "{entries:?}");
    assert_eq!(entry["operatorId"], json!(operator()));
    assert_eq!(entry["actor"], format!("iam:{CALLER_ARN}"));
    assert_eq!((&entry["action"], &entry["target"]), (&json!("RecoverSaga"), &json!(onboarding)));
}

#[tokio::test]
async fn events_are_listed_in_order_with_their_state() {
    let cloud = Cloud::start(|_| ok(Value::Null)).await;
    let site_id = site();
    let saga = SagaContext::for_site(OperatorId::DEFAULT, site_id, None);
    let at = |second: i64| Timestamp::from_millis(1_767_225_600_000 + 1000 * second);
    let activated = NewEvent::in_saga(saga, site_id, 2, at(1), SiteActivated { site_id }).row();
    let closed = NewEvent::in_saga(saga, site_id, 3, at(2), SiteDecommissioned { site_id }).row();
    let mut activated = activated.expect("a row");
    activated.unpublished = None;
    cloud.dynamo.put(EVENTS, json!(closed.expect("a row"))).await;
    cloud.dynamo.put(EVENTS, json!(activated)).await;
    let (entity, onboarding) = (format!("site/{site_id}"), saga.onboarding_id.to_string());
    for of in [["--entity", &entity], ["--correlation", &onboarding]] {
        let (code, out, err) = cloud.run(&[&["events", "list"][..], &of].concat()).await;
        assert_eq!(code, 0, "{err}");
        let lines: Vec<_> = out.lines().collect();
        assert!(lines[1].starts_with('●') && lines[1].contains("SiteActivated"), "{out}");
        assert!(lines[2].starts_with('○') && lines[2].ends_with("out of service"), "{out}");
        assert!(lines[2].contains(&site_id.to_string()[..8]), "no name is known: {out}");
    }
    let last = ["events", "list", "--type", "siteactivated", "--limit", "1", "--json"];
    let period = ["--from", "2026-01-01T00:00:00Z", "--to", "2026-01-02T00:00:00Z"];
    let (_, out, _) = cloud.run(&[&last[..], &period].concat()).await;
    let event: Value = serde_json::from_str(&out).expect("one line");
    assert_eq!(event["detail"]["metadata"]["sequence"], 2);
}

#[tokio::test]
async fn events_show_their_site_and_a_summary() {
    let cloud = Cloud::start(|_| ok(Value::Null)).await;
    let site_id = site();
    let saga = SagaContext::for_site(OperatorId::DEFAULT, site_id, None);
    let at = |second: i64| Timestamp::from_millis(1_767_225_600_000 + 1000 * second);
    let onboarding_id = saga.onboarding_id;
    let created = SiteCreated {
        site_id,
        onboarding_id,
        name: "Desert Rock".to_owned(),
        operator: "NOAA".to_owned(),
        location: Location { latitude: 36.6, longitude: -116.0, elevation_m: 1007.0 },
        sensors: vec![],
        plan: Plan::Standard,
        payment_method: PaymentMethodId("pm_secret".to_owned()),
    };
    let breach = ReadingBreachedThreshold {
        site_id,
        sensor_id: SensorId::from_onboarding(onboarding_id, 0),
        metric: Metric::AirTemperature,
        unit: "Cel".to_owned(),
        value: 51.5,
        at: at(1),
        limit: Limit::Max,
        threshold: 50.0,
    };
    let created = NewEvent::in_saga(saga, site_id, 1, at(0), created).row().expect("a row");
    let entity = Entity { kind: EntityType::Alerting, id: onboarding_id.uuid() };
    let breach = NewEvent::in_saga(saga, entity, 2, at(2), breach).row().expect("a row");
    let mut unknown = breach.clone();
    (unknown.kind, unknown.sequence) = ("SensorFellSilent".to_owned(), 3);
    for event in [&created, &breach, &unknown] {
        cloud.dynamo.put(EVENTS, json!(event)).await;
    }
    let of = ["events", "list", "--correlation", &onboarding_id.to_string()];
    let output = cloud.command(&of).env("COLUMNS", "200").output().await.expect("it runs");
    let out = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<_> = out.lines().collect();
    assert!(
        lines[1].ends_with("Desert Rock  Desert Rock of NOAA, 0 sensors, plan standard"),
        "{out}"
    );
    let breached = "Desert Rock  air_temperature 51.5 Cel, above 50.0, at 2026-01-01T00:00:01.000Z";
    assert!(lines[2].ends_with(breached), "{out}");
    let fields = ["SensorFellSilent", "Desert Rock", "metric air_temperature", "threshold 50.0"];
    assert!(fields.iter().all(|field| lines[3].contains(field)), "{out}");
    assert!(!lines[3].contains("sensorId"), "{out}");
    assert!(!out.contains("pm_secret"), "{out}");
}

#[tokio::test]
async fn subscriptions_that_disagree_are_shown_and_an_old_report_is_not_good() {
    let cloud = Cloud::start(|_| ok(Value::Null)).await;
    let (code, _, err) = cloud.run(&["subscriptions"]).await;
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("have not been compared yet"), "{err}");

    let report = |at: Timestamp, findings: Value| {
        json!({
            "id": "reconciliation#provider", "at": at, "sequence": at.millis(), "running": 7,
            "active": 8, "foreign": 0, "found": findings.as_array().map_or(0, Vec::len),
            "findings": findings,
        })
    };
    let now = Timestamp::now();
    cloud.dynamo.put(BILLING, report(now, json!([]))).await;
    let (code, out, err) = cloud.run(&["subscriptions"]).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(
        out,
        "Compared 0s ago: 7 subscriptions run at the provider, 8 rows are ACTIVE.\n\
         The provider and the billing table agree.\n"
    );

    let old = now.plus_millis(-4 * 3_600_000);
    cloud.dynamo.put(BILLING, report(old, json!([]))).await;
    let (code, out, _) = cloud.run(&["subscriptions"]).await;
    assert_eq!(code, 1);
    assert!(out.contains("This report is out of date"), "{out}");
    let agreed = "The provider and the billing table agreed at that time.\n";
    assert!(out.ends_with(agreed), "{out}");

    let finding = json!([{
        "kind": "NOT_RUNNING", "siteId": site(), "providerSubscriptionId": "sub_1",
        "firstSeen": now.plus_millis(-3_600_000), "lastSeen": now,
    }]);
    cloud.dynamo.put(BILLING, report(now, finding)).await;
    let (code, out, _) = cloud.run(&["subscriptions"]).await;
    assert_eq!(code, 1);
    for part in ["NOT_RUNNING", "60m ago", "sub_1", &site().to_string()] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let (_, out, _) = cloud.run(&["--json", "subscriptions"]).await;
    let shown: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(shown["findings"][0]["kind"], "NOT_RUNNING");
}
