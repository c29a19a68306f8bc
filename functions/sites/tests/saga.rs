//! Tests of the sites functions in the saga and of imports from other systems.

mod support;

use contracts::{
    OnboardingId, OperatorId, SiteId,
    saga::{STEPS, StepOutcome},
};
use fault::ErrorKind;
use lambda::Step;
use serde_json::{Value, json};
use sites::{activate_site::ActivateSite, close_site::CloseSite, project_site::ProjectSite};
use support::{create, import_site, project, registration, saga_for_key, step_event};
use testkit::{
    Dynamo,
    cloud::Cloud,
    consuming::{self, LatestConsumer},
    dynamo::SITES,
    measured::measured,
    saga::{StepEvents, StepPair, check_step_contract, correlation, run},
    sample::{self, noon, other_operator, payload},
};

fn activate(dynamo: &Dynamo) -> ActivateSite {
    ActivateSite { sites: dynamo.table(SITES), outbox: dynamo.outbox() }
}

fn close(dynamo: &Dynamo) -> CloseSite {
    CloseSite { sites: dynamo.table(SITES), outbox: dynamo.outbox() }
}

/// Returns the activation and the closing of one site. The closing has `failure` in its payload.
async fn pair(failure: Value) -> StepPair<ActivateSite, CloseSite> {
    let dynamo = Dynamo::start().await;
    let saga = create(&dynamo, "key-1").await;
    let mut undo_payload = payload(saga);
    undo_payload["failure"] = failure;
    StepPair {
        step: activate(&dynamo),
        undo: close(&dynamo),
        dynamo,
        payload: payload(saga),
        undo_payload,
        entity: saga.site_id.into(),
    }
}

#[tokio::test]
async fn activating_and_rejecting_follow_the_contract_of_the_saga() {
    let failure = json!({ "step": "ActivateSite", "error": "Transient", "message": "busy" });
    let events =
        StepEvents { done: "SiteActivated", undone: "SiteRejected", fenced: &["SiteRejected"] };
    check_step_contract(async || pair(failure.clone()).await, events).await;
}

#[tokio::test]
async fn activating_and_decommissioning_follow_the_contract_of_the_saga() {
    let events = StepEvents {
        done: "SiteActivated",
        undone: "SiteDecommissioned",
        fenced: &["SiteDecommissioned"],
    };
    check_step_contract(async || pair(Value::Null).await, events).await;
}

#[tokio::test]
async fn the_status_of_a_closed_site_does_not_change() {
    let pair = pair(Value::Null).await;
    assert_eq!(
        run(&pair.undo, &pair.undo_payload).await,
        Ok(json!({ "status": "DECOMMISSIONED" }))
    );
    let mut failed = pair.undo_payload.clone();
    failed["failure"] = json!({ "step": "ReserveKits", "error": "x", "message": "y" });
    assert_eq!(run(&pair.undo, &failed).await, Ok(json!({ "status": "DECOMMISSIONED" })));
    assert_eq!(pair.dynamo.event_types(pair.entity).await, ["SiteCreated", "SiteDecommissioned"]);
}

#[tokio::test]
async fn a_failed_onboarding_is_counted_once_by_step_and_refusals_are_separate() {
    for (error, metric) in [
        ("CardDeclined", "OnboardingsRefused"),
        ("KitsOutOfStock", "OnboardingsRefused"),
        ("Transient", "OnboardingsFailed"),
        ("States.Timeout", "OnboardingsFailed"),
    ] {
        let pair = pair(json!({ "step": "ReserveKits", "error": error, "message": "" })).await;
        let (closed, metrics) = measured(run(&pair.undo, &pair.undo_payload)).await;
        assert_eq!(closed, Ok(json!({ "status": "REJECTED" })));
        assert_eq!(metrics, [(format!("{metric} step=ReserveKits"), 1.0)].into());
        assert_eq!(measured(run(&pair.undo, &pair.undo_payload)).await.1, [].into(), "once");
    }
    let pair = pair(Value::Null).await;
    assert_eq!(measured(run(&pair.undo, &pair.undo_payload)).await.1, [].into(), "no failure");
}

#[tokio::test]
async fn an_unregistered_site_can_not_be_activated_or_closed() {
    let dynamo = Dynamo::start().await;
    let nobody = payload(saga_for_key("nobody"));
    assert_eq!(run(&activate(&dynamo), &nobody).await, Err(ErrorKind::InvalidInput));
    assert_eq!(run(&close(&dynamo), &nobody).await, Err(ErrorKind::InvalidInput));
    assert_eq!(dynamo.rows(SITES).await, [Value::Null; 0]);
}

fn requested(registration_id: &str, site: &Value) -> Value {
    let mut event = sample::event("import-site");
    event["source"] = "acme.registry".into();
    event["detail"] = json!({ "registrationId": registration_id, "site": site });
    event
}

#[tokio::test]
async fn repeated_imports_create_one_site_with_its_causation_id() {
    let dynamo = Dynamo::start().await;
    let import = import_site(&dynamo, "");
    let event = requested("SLV", &registration());
    let site = SiteId::registered(OperatorId::DEFAULT, "acme.registry", "SLV");
    for _ in 0..2 {
        assert_eq!(run(&import, &event).await, Ok(json!({ "siteId": site })));
    }
    let created = &dynamo.events(site).await[..];
    let [created] = created else { panic!("one event: {created:?}") };
    let metadata = created.envelope().expect("an envelope").metadata;
    assert_eq!(json!(metadata.causation_id), event["id"]);
    assert_eq!(metadata.correlation_id, Some(OnboardingId::from_site(site).to_string()));

    // The same registration id from another system is another site. A different registration under the same id is
    // refused.
    let mut other_system = event.clone();
    other_system["source"] = "other.registry".into();
    run(&import, &other_system).await.expect("another site");
    assert_eq!(dynamo.rows(SITES).await.len(), 2);
    let mut other = registration();
    other["plan"] = "community".into();
    assert_eq!(run(&import, &requested("SLV", &other)).await, Err(ErrorKind::InvalidInput));
    assert_eq!(dynamo.rows(SITES).await.len(), 2);
}

#[tokio::test]
async fn a_listed_source_registers_sites_of_its_operator() {
    let dynamo = Dynamo::start().await;
    let operator = other_operator();
    let import = import_site(&dynamo, &format!("acme.registry={operator}"));
    let event = requested("SLV", &registration());
    let site = SiteId::registered(operator, "acme.registry", "SLV");
    assert_eq!(run(&import, &event).await, Ok(json!({ "siteId": site })));
    assert_eq!(dynamo.rows(SITES).await[0]["operatorId"], json!(operator));
    assert_eq!(dynamo.events(site).await[0].operator_id, operator);

    let mut not_listed = event.clone();
    not_listed["source"] = "other.registry".into();
    let site = SiteId::registered(OperatorId::DEFAULT, "other.registry", "SLV");
    assert_eq!(run(&import, &not_listed).await, Ok(json!({ "siteId": site })));
}

#[tokio::test]
async fn an_invalid_import_is_refused_with_its_fields() {
    let dynamo = Dynamo::start().await;
    let import = import_site(&dynamo, "");
    let mut invalid = registration();
    invalid["operator"] = "".into();
    invalid["sensors"] = json!([]);
    let mut tiny = registration();
    tiny["sensors"][0]["min"] = json!(9e-131);
    for (event, problem) in [
        (requested("", &registration()), "detail.registrationId: has 0 characters; give"),
        (
            requested(&"S".repeat(129), &registration()),
            "detail.registrationId: has 129 characters; give a string of 1 to 128 characters",
        ),
        (
            requested(" S", &registration()),
            "detail.registrationId: begins or ends with white space",
        ),
        (requested("S\u{202e}", &registration()), "detail.registrationId: contains U+202E"),
        (
            requested("SLV", &invalid),
            "detail.site.operator: has 0 characters; give a string of 1 to 200 characters; \
             detail.site.sensors: has 0 entries",
        ),
        (requested("SLV", &tiny), "detail.site.sensors[0].min: is 9e-131, which is too close"),
        (requested("SLV", &json!(["Alamosa"])), "detail.site: is an array; give an object"),
    ] {
        let command = fault::decode(&event.to_string()).expect("an event");
        let error = import.run(command, noon(0)).await.expect_err(problem);
        assert!(error.to_string().starts_with(problem), "{error}");
    }
    assert_eq!(dynamo.rows(SITES).await, [Value::Null; 0]);
    let longest = requested(&"S".repeat(128), &registration());
    run(&import, &longest).await.expect("a site");
}

#[tokio::test]
async fn the_read_model_does_not_depend_on_the_order_of_events() {
    let dynamo = Dynamo::start().await;
    let events = [
        ("KitsReserved", 1),
        ("KitsReleased", 2),
        ("SubscriptionInitialized", 1),
        ("SubscriptionCancelled", 2),
    ];
    let mut orders = Vec::new();
    permutations(&mut vec![0, 1, 2, 3], 0, &mut orders);
    assert_eq!(orders.len(), 24);
    for (site, order) in orders.iter().enumerate() {
        let saga = saga_for_key(&format!("key-{site}"));
        // Every event is delivered twice, the second time in reverse order after all have arrived.
        for &index in order.iter().chain(order.iter().rev()) {
            let (event, sequence) = events[index];
            project(&dynamo, &step_event(saga, event, sequence)).await;
        }
    }
    let mut by_site = std::collections::BTreeMap::<String, Vec<Value>>::new();
    for mut row in dynamo.rows(SITES).await {
        let site = row["siteId"].take().to_string();
        by_site.entry(site).or_default().push(row);
    }
    assert_eq!(by_site.len(), 24);
    let first = by_site.values().next().expect("a site");
    let statuses: Vec<_> = first.iter().map(|row| (&row["row"], &row["status"])).collect();
    let expected = [
        (&json!("STEP#InitializeSubscription"), &json!("UNDONE")),
        (&json!("STEP#ReserveKits"), &json!("UNDONE")),
    ];
    assert_eq!(statuses, expected);
    assert!(by_site.values().all(|rows| rows == first));
}

fn permutations(items: &mut Vec<usize>, from: usize, orders: &mut Vec<Vec<usize>>) {
    if from == items.len() {
        orders.push(items.clone());
    }
    for next in from..items.len() {
        items.swap(from, next);
        permutations(items, from + 1, orders);
        items.swap(from, next);
    }
}

#[tokio::test]
async fn every_event_of_a_step_updates_the_row_of_its_step() {
    let dynamo = Dynamo::start().await;
    let steps = STEPS.iter().filter(|step| !step.is_of_site());
    for (step, (event, outcome)) in
        steps.flat_map(|step| step.events().map(|event| (step.name, event)))
    {
        let status = match outcome {
            StepOutcome::Done => "COMPLETED",
            StepOutcome::Refused => "FAILED",
            StepOutcome::Undone => "UNDONE",
        };
        let saga = saga_for_key(event);
        assert_eq!(project(&dynamo, &step_event(saga, event, 1)).await, "Projected");
        let row =
            dynamo.rows(SITES).await.into_iter().find(|row| row["siteId"] == json!(saga.site_id));
        let row = row.expect(event);
        assert_eq!((&row["row"], &row["status"]), (&json!(format!("STEP#{step}")), &json!(status)));
    }
}

/// Returns the event `SensorChanged` that gives this label to the site's first sensor.
fn sensor_changed(saga: contracts::SagaContext, label: &str, sequence: u64) -> Value {
    let sensor = json!({
        "sensorId": contracts::SensorId::from_onboarding(saga.onboarding_id, 0),
        "metric": "air_temperature", "unit": "Cel", "min": -60.0, "max": 60.0, "label": label,
        "calibrations": [{ "validFrom": "2026-01-01T00:00:00.000Z", "gain": 2.0, "offset": 0.5 }],
    });
    let data = json!({ "siteId": saga.site_id, "sensor": sensor });
    let kind = contracts::EntityType::Sensors;
    let mut event = testkit::sample::event_of("project-site", saga, kind, data);
    event["detail-type"] = "SensorChanged".into();
    event["detail"]["metadata"]["type"] = "SensorChanged".into();
    event["detail"]["metadata"]["sequence"] = sequence.into();
    event
}

/// project-site with the events of a step and of a changed sensor.
struct Projecting;

impl LatestConsumer for Projecting {
    type Function = ProjectSite;

    fn start(&self, cloud: &Cloud) -> ProjectSite {
        ProjectSite { sites: cloud.table(SITES) }
    }

    async fn prepare(&self, _: &Cloud) {}

    fn histories(&self) -> Vec<Vec<Value>> {
        let saga = saga_for_key("key-1");
        let step = [(1, "KitsReserved"), (2, "KitsReleased")];
        let sensor = [(2, "second"), (3, "third"), (4, "fourth")];
        vec![
            step.map(|(sequence, kind)| step_event(saga, kind, sequence)).into(),
            sensor.map(|(sequence, label)| sensor_changed(saga, label, sequence)).into(),
        ]
    }

    fn rows(&self, cloud: &Cloud) -> Vec<Value> {
        cloud.rows(SITES)
    }
}

#[test]
fn project_site_follows_the_contract_of_the_mode_latest() {
    consuming::check_latest(&Projecting);
}

#[tokio::test]
async fn a_site_has_its_sensors_as_they_were_last_changed() {
    let dynamo = Dynamo::start().await;
    let saga = create(&dynamo, "key-1").await;
    assert_eq!(project(&dynamo, &sensor_changed(saga, "third", 3)).await, "Projected");
    assert_eq!(project(&dynamo, &sensor_changed(saga, "second", 2)).await, "Stale");
    assert_eq!(project(&dynamo, &sensor_changed(saga, "third", 3)).await, "Stale");
    let step = sites::get_site::GetSite { sites: dynamo.table(SITES) };
    let request = support::on_site("get-site", &saga.site_id.to_string());
    let caller = testkit::sample::default_caller();
    let site = support::api_response(step.handle(&caller, &request).await);
    let sensors = site["body"]["sensors"].as_array().expect("sensors");
    assert_eq!(sensors.len(), 2);
    assert_eq!(
        sensors[0],
        json!({
            "sensorId": contracts::SensorId::from_onboarding(saga.onboarding_id, 0),
            "metric": "air_temperature", "unit": "Cel", "label": "third",
            "calibrations": [{ "validFrom": "2026-01-01T00:00:00.000Z", "gain": 2.0, "offset": 0.5 }],
        })
    );
    assert_eq!(sensors[1].get("label"), None);
    assert_eq!(site["body"]["onboarding"]["steps"], json!([]));
}

#[tokio::test]
async fn stale_events_and_other_events_are_not_projected() {
    let dynamo = Dynamo::start().await;
    let saga = saga_for_key("key-1");
    let event = step_event(saga, "KitsReleased", 2);
    assert_eq!(correlation::<ProjectSite>(&event), Some(saga.onboarding_id.to_string()));
    assert_eq!(project(&dynamo, &event).await, "Projected");
    assert_eq!(project(&dynamo, &step_event(saga, "KitsReleased", 2)).await, "Stale");
    assert_eq!(project(&dynamo, &step_event(saga, "KitsReserved", 1)).await, "Stale");
    // The state of the site's own step is in the site's row.
    for event in ["SiteActivated", "SiteRejected", "SiteDecommissioned", "SiteCreated"] {
        assert_eq!(project(&dynamo, &step_event(saga, event, 3)).await, "Ignored", "{event}");
    }
}

#[tokio::test]
async fn an_event_with_ids_of_another_site_is_refused() {
    let dynamo = Dynamo::start().await;
    let (saga, other) = (saga_for_key("key-1"), saga_for_key("key-2"));
    let step = ProjectSite { sites: dynamo.table(SITES) };
    for (path, id) in [
        ("/detail/data/siteId", json!(other.site_id)),
        ("/detail/metadata/correlationId", json!(other.onboarding_id)),
        ("/detail/metadata/entity/id", json!(other.site_id)),
    ] {
        let mut event = step_event(saga, "KitsReserved", 1);
        *event.pointer_mut(path).expect(path) = id;
        assert_eq!(run(&step, &event).await, Err(ErrorKind::InvalidInput), "{path}");
    }
    assert_eq!(dynamo.rows(SITES).await, [Value::Null; 0]);
}
