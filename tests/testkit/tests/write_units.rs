//! Counts the DynamoDB calls and write units of an onboarding, and of one that is undone. The results are in
//! docs/cost.md and in the inputs of the cost model.
//!
//! `UPDATE_DOCS=1 cargo test -p testkit` rewrites them.

use std::time::Duration;

use aws_lambda_events::eventbridge::EventBridgeEvent;
use aws_sdk_dynamodb::types::AttributeValue;
use billing::{
    cancel_subscription::CancelSubscription,
    initialize_subscription::{self, InitializeSubscription},
    provider::{KeySource, Prices, Provider},
    stripe::ApiKey,
};
use contracts::{
    ContextWithSensors, Envelope, Metric, OnboardingFailure, OperatorId, Plan, SagaContext, Sensor,
    SensorId, SourceOperators, Timestamp,
    events::Kits,
    inbound::{KitsDelivered, SensorRequest, SiteRegistration},
    saga::TeardownInput,
    sensor::RegisteredMetadata,
};
use cost::{
    counted::{Effect, Onboardings},
    docs,
};
use events::{
    append_event::AppendEvent,
    guards::Sources,
    publisher::{Bus, EventKey, EventStream, Memory, PublishRequest, Publisher},
};
use inventory::watch_stock::{Limits, WatchStock};
use lambda::{Deadline, Step};
use quarantine::Quarantine;
use serde_json::{json, value::to_raw_value};
use store::{EventRow, Idempotency, Key};
use telemetry::project_sensors::ProjectSensors;
use testkit::{
    Dynamo,
    dynamo::{ALERTING, BILLING, DEVICES, EVENT_GUARDS, EVENTS, INVENTORY, READINGS, SITES, Usage},
    http::{self, Call, Stub},
    sample::{default_caller, stock_change},
    template::root,
};

/// Returns a registration with three sensors of three metrics, as most sites of the demo have.
fn registration() -> SiteRegistration {
    let sensor = |metric: Metric, min, max| SensorRequest {
        metric,
        unit: metric.units()[0].to_owned(),
        min,
        max,
        metadata: RegisteredMetadata::default(),
    };
    SiteRegistration {
        name: "Alamosa, Colorado".to_owned(),
        operator: "NOAA SURFRAD".to_owned(),
        location: contracts::Location { latitude: 37.7, longitude: -105.92, elevation_m: 2317.0 },
        utc_offset: None,
        sensors: vec![
            sensor(Metric::AirTemperature, Some(-50.0), Some(50.0)),
            sensor(Metric::RelativeHumidity, None, Some(100.0)),
            sensor(Metric::DownwellingShortwave, None, Some(1500.0)),
        ],
        plan: Plan::Standard,
        payment_method: contracts::PaymentMethodId("pm_1PqQ8o2eZvKYlo2C".to_owned()),
    }
}

fn event<D: serde::Serialize + serde::de::DeserializeOwned>(detail: &D) -> EventBridgeEvent<D> {
    let json = json!({ "detail-type": "-", "source": "com.example", "detail": detail });
    serde_json::from_value(json).expect("an event")
}

async fn stripe() -> Stub {
    Stub::start(|call: &Call| {
        (200, testkit::stripe::success_body(&format!("{} {}", call.method, call.path)))
    })
    .await
}

/// The metrics of the site's sensors.
const METRICS: [Metric; 3] =
    [Metric::AirTemperature, Metric::RelativeHumidity, Metric::DownwellingShortwave];
/// The number of kits of each metric in stock: so many that no onboarding changes the level of a stock.
const KITS: u32 = 100;

/// An onboarding, and its usage so far.
struct Onboarding {
    dynamo: Dynamo,
    outlets: Stub,
    stripe: Stub,
    saga: SagaContext,
    sensors: Vec<Sensor>,
    effects: Vec<Effect>,
    rows: Vec<&'static str>,
}

fn now() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().expect("a time")
}

impl Onboarding {
    /// Stocks kits and registers a site.
    async fn start() -> Self {
        let dynamo = Dynamo::start().await;
        let (outlets, stripe) = (Stub::of_outlets().await, stripe().await);
        let kits = METRICS.map(|metric| Kits { metric, quantity: KITS }).to_vec();
        let delivered = KitsDelivered { delivery_id: "D-1".to_owned(), kits };
        inventory::receive_kits::ReceiveKits { inventory: dynamo.table(INVENTORY) }
            .run(event(&to_raw_value(&delivered).expect("JSON")), now())
            .await
            .expect("kits in stock");
        drop(dynamo.take_usage());

        let registrar =
            sites::registration::Registrar { sites: dynamo.table(SITES), outbox: dynamo.outbox() };
        let registered = registrar
            .register(OperatorId::DEFAULT, "http", "key", registration(), None, now())
            .await;
        let registered = registered.expect("a site");
        let saga = SagaContext::for_site(OperatorId::DEFAULT, registered.site_id, Some(uuid()));
        let sensors = registration().sensors.into_iter().enumerate();
        let sensors = sensors.map(|(index, request)| Sensor {
            sensor_id: SensorId::from_onboarding(saga.onboarding_id, index),
            metric: request.metric,
            unit: request.unit,
            min: request.min,
            max: request.max,
            utc_offset: None,
            metadata: (&request.metadata).into(),
        });
        let sensors = sensors.collect();
        let (effects, rows) = (Vec::new(), Vec::new());
        let mut onboarding = Self { dynamo, outlets, stripe, saga, sensors, effects, rows };
        onboarding.record_usage("create-site", 1, "site, `SiteCreated`");
        onboarding.record_usage("start-onboarding", 1, "none");
        onboarding
    }

    /// Records the usage since the last call.
    fn record_usage(&mut self, function: &str, invocations: u32, rows: &'static str) {
        let Usage { calls, write_units } = self.dynamo.take_usage();
        let function = function.to_owned();
        self.effects.push(Effect { function, invocations, write_units, calls });
        self.rows.push(rows);
    }

    fn idempotency(&self) -> Idempotency {
        Idempotency::new(self.dynamo.table(BILLING), Duration::from_secs(30))
    }

    fn provider(&self) -> Provider {
        let prices = "community=a,standard=b,professional=c";
        Provider::new(
            self.stripe.url(),
            KeySource::Fixed(ApiKey::new("sk_test").expect("a key")),
            Prices::parse("STRIPE_PRICES", prices).expect("prices"),
        )
    }

    /// Runs all steps of the saga except the last one.
    async fn onboard(&mut self) {
        let (saga, outbox) = (self.saga, self.dynamo.outbox());
        let with_sensors =
            ContextWithSensors::new(saga, self.sensors.clone()).expect("the site's own sensors");
        inventory::reserve_kits::ReserveKits {
            inventory: self.dynamo.table(INVENTORY),
            outbox: outbox.clone(),
        }
        .run(with_sensors.clone(), now())
        .await
        .expect("kits reserved");
        self.record_usage("reserve-kits", 1, "reservation, 3 of stock, `KitsReserved`");
        self.watch_stock(KITS - 1).await;

        devices::provision_sensors::ProvisionSensors {
            devices: self.dynamo.table(DEVICES),
            outbox: outbox.clone(),
        }
        .run(with_sensors.clone(), now())
        .await
        .expect("sensors provisioned");
        self.record_usage("provision-sensors", 1, "sensors, `SensorsProvisioned`");

        InitializeSubscription {
            billing: self.dynamo.table(BILLING),
            idempotency: self.idempotency(),
            outbox: outbox.clone(),
            provider: self.provider(),
        }
        .run(
            initialize_subscription::Command {
                saga,
                name: registration().name,
                plan: Plan::Standard,
                payment_method: registration().payment_method,
            },
            now(),
        )
        .await
        .expect("a subscription");
        self.record_usage(
            "initialize-subscription",
            1,
            "idempotency record begun, checkpoint, then subscription, record completed, \
             `SubscriptionInitialized`",
        );

        alerting::configure_alerting::ConfigureAlerting {
            alerting: self.dynamo.table(ALERTING),
            outbox,
        }
        .run(with_sensors, now())
        .await
        .expect("alerting configured");
        self.record_usage("configure-alerting", 1, "alerting, `AlertingConfigured`");
    }

    /// Runs the last step.
    async fn activate(&mut self) {
        let outbox = self.dynamo.outbox();
        sites::activate_site::ActivateSite { sites: self.dynamo.table(SITES), outbox }
            .run(self.saga, now())
            .await
            .expect("the site activated");
        self.record_usage("activate-site", 1, "site, `SiteActivated`");
    }

    /// Runs the teardown after the last step failed without an effect.
    async fn undo(&mut self) {
        let (saga, outbox) = (self.saga, self.dynamo.outbox());
        self.record_usage("activate-site", 1, "none: it failed");

        let alerting = self.dynamo.table(ALERTING);
        alerting::remove_alerting::RemoveAlerting { alerting, outbox: outbox.clone() }
            .run(saga, now())
            .await
            .expect("no alerting");
        self.record_usage("remove-alerting", 1, "tombstone, `AlertingRemoved`");

        CancelSubscription {
            billing: self.dynamo.table(BILLING),
            idempotency: self.idempotency(),
            outbox: outbox.clone(),
            provider: self.provider(),
        }
        .run(saga, now())
        .await
        .expect("no subscription");
        self.record_usage(
            "cancel-subscription",
            1,
            "fence, then tombstone, `SubscriptionCancelled`",
        );

        let devices = self.dynamo.table(DEVICES);
        devices::deprovision_sensors::DeprovisionSensors { devices, outbox: outbox.clone() }
            .run(saga, now())
            .await
            .expect("no sensors");
        self.record_usage("deprovision-sensors", 1, "tombstone, `SensorsDeprovisioned`");

        let inventory = self.dynamo.table(INVENTORY);
        inventory::release_kits::ReleaseKits { inventory, outbox: outbox.clone() }
            .run(saga, now())
            .await
            .expect("kits in stock again");
        self.record_usage("release-kits", 1, "tombstone, 3 of stock, `KitsReleased`");
        self.watch_stock(KITS).await;

        let failure = Some(OnboardingFailure {
            step: "ActivateSite".to_owned(),
            error: "Internal".to_owned(),
            message: "panicked: index out of bounds".to_owned(),
        });
        sites::close_site::CloseSite { sites: self.dynamo.table(SITES), outbox }
            .run(TeardownInput::new(saga, failure), now())
            .await
            .expect("the site closed");
        self.record_usage("close-site", 1, "site, `SiteRejected`");
        self.record_usage("recover-onboarding", 1, "none: all was undone");
    }

    /// Runs watch-stock on the records about a change of the three stocks, which have this quantity now.
    async fn watch_stock(&mut self, quantity: u32) {
        let step = WatchStock {
            inventory: self.dynamo.table(INVENTORY),
            outbox: self.dynamo.outbox(),
            limits: Limits { low: 10, deadband: 5 },
            quarantine: no_quarantine("watch-stock"),
        };
        let records: Vec<_> = (0..)
            .zip(METRICS)
            .map(|(index, metric)| stock_change(metric, u64::from(quantity) * 10 + index, quantity))
            .collect();
        let payload = to_raw_value(&json!({ "Records": records })).expect("JSON");
        let response = step.handle(&payload, Deadline::after(Duration::from_secs(5))).await;
        assert_eq!(response.expect("a response").batch_item_failures, []);
        self.record_usage("watch-stock", 1, "none: no level of a stock changed");
    }

    /// Publishes and projects the events.
    async fn publish(&mut self, rows: [&'static str; 3]) {
        let stored = self.dynamo.rows(EVENTS).await.into_iter();
        let stored = stored.map(|row| serde_json::from_value(row).expect("an event's row"));
        let mut stored: Vec<EventRow> = stored.collect();
        stored.sort_by_key(|row| (row.entity.clone(), row.sequence));
        let publisher = Publisher {
            events: self.dynamo.table(EVENTS),
            stream: EventStream {
                client: aws_sdk_kinesis::Client::new(&self.outlets.config()),
                name: "events".to_owned(),
            },
            bus: Bus {
                client: aws_sdk_eventbridge::Client::new(&self.outlets.config()),
                name: "bus".to_owned(),
            },
            quarantine: no_quarantine("publish-events"),
            memory: Memory::default(),
        };
        // Published one at a time, because they occur one after the other.
        for row in &stored {
            let deadline = Deadline::after(Duration::from_secs(5));
            let named = vec![PublishRequest { key: EventKey::from(row), record: None }];
            let unpublished = publisher.publish(named, deadline).await.expect("the rows");
            assert_eq!(unpublished, []);
        }
        let [marks, steps, sensors] = rows;
        self.record_usage("publish-events", count(stored.len()), marks);

        let project = sites::project_site::ProjectSite { sites: self.dynamo.table(SITES) };
        let (mut projected, mut changed) = (0, Vec::new());
        for row in stored.iter().filter(|row| !row.entity.starts_with("site#")) {
            project.run(event(&detail(row)), now()).await.expect("projected");
            projected += 1;
            if row.entity.starts_with("sensors#") {
                changed.push(row);
            }
        }
        self.record_usage("project-site", projected, steps);

        let project =
            ProjectSensors { readings: self.dynamo.table(READINGS), outbox: self.dynamo.outbox() };
        for row in &changed {
            project.run(event(&detail(row)), now()).await.expect("projected");
        }
        self.record_usage("project-sensors", count(changed.len()), sensors);
    }

    /// Returns the table of docs/cost.md.
    fn table(&self, whole: &str) -> String {
        let mut lines: Vec<_> = self
            .effects
            .iter()
            .zip(&self.rows)
            .map(|(Effect { function, invocations, write_units, .. }, rows)| {
                [function, &invocations.to_string(), *rows, &write_units.to_string()]
                    .map(str::to_owned)
                    .to_vec()
            })
            .collect();
        let invocations: u32 = self.effects.iter().map(|effect| effect.invocations).sum();
        let units: f64 = self.effects.iter().map(|effect| effect.write_units).sum();
        let sum = [whole, &format!("**{invocations}**"), "", &format!("**{units}**")];
        lines.push(sum.map(str::to_owned).to_vec());
        let head = ["function", "invoked", "rows written", "write units"];
        docs::table(&head, &[false, true, false, true], &lines).expect("a table")
    }
}

/// Returns a quarantine that is not used, because nothing is refused.
fn no_quarantine(source: &'static str) -> Quarantine {
    let queues = aws_sdk_sqs::Client::new(&http::config("http://nowhere"));
    Quarantine { queues, url: String::new(), source }
}

/// Returns the event as a projection receives it.
fn detail<D: serde::de::DeserializeOwned>(row: &EventRow) -> Envelope<D> {
    serde_json::from_str(&row.detail).expect("a step's event")
}

fn count(of: usize) -> u32 {
    u32::try_from(of).expect("few of them")
}

fn uuid() -> uuid::Uuid {
    "2835a360-0211-5136-bc2a-17eca187a972".parse().expect("a UUID")
}

#[tokio::test]
async fn the_docs_show_the_cost_of_an_onboarding() {
    let mut done = Onboarding::start().await;
    done.onboard().await;
    done.activate().await;
    done.publish([
        "6 marks, each in the table and out of the index `unpublished`",
        "4 of the site's read model, one a step",
        "3 of the register of sensors",
    ])
    .await;

    let mut undone = Onboarding::start().await;
    undone.onboard().await;
    undone.undo().await;
    undone
        .publish([
            "10 marks, each in the table and out of the index `unpublished`",
            "8 of the site's read model, one a step",
            "3 of the register of sensors, twice",
        ])
        .await;

    let root = root();
    let page = root.join("docs/cost.md");
    let tables = [
        ("write-units", done.table("**one onboarding**")),
        ("undone-units", undone.table("**one that fails at its last step**")),
    ];
    for (name, table) in tables {
        eprintln!("{table}");
        docs::check_or_update_table(&page, name, &table)
            .expect("as docs/cost.md has it; run `make write-units`");
    }
    let counted = Onboardings { done: done.effects, undone: undone.effects };
    let file = root.join("tools/cost/counted/onboarding.json");
    docs::check_or_update_json(&file, &counted)
        .expect("as the cost model reads it; run `make write-units`");
}

/// The maximum number of write units of an appended event with a kilobyte of data.
const MAX_APPEND_UNITS: f64 = 12.0;

#[tokio::test]
async fn the_docs_show_the_cost_of_an_appended_event() {
    let dynamo = Dynamo::start().await;
    let guards = dynamo.table(EVENT_GUARDS);
    let step = AppendEvent {
        events: dynamo.table(EVENTS),
        sources: Sources::new(guards.clone(), SourceOperators::default()),
        guards,
    };
    let mut lines = Vec::new();
    let mut add = |what: &str| {
        let units = dynamo.take_write_units_by_index();
        for (index, units) in units.iter().filter(|(_, units)| **units > 0.0) {
            lines.push(
                [what, &format!("`{index}`"), &units.to_string()].map(str::to_owned).to_vec(),
            );
        }
        units.values().sum::<f64>()
    };
    append(&step, &appended("1")).await;
    // The claim of the source and its entry in an index are written once, and are not in the table of the docs.
    let first: f64 = dynamo.take_write_units_by_index().values().sum();
    append(&step, &appended("2")).await;
    let appended_units = add("append: event and guard, one transaction");
    assert!((first - appended_units - 2.0).abs() < f64::EPSILON, "{first} {appended_units}");
    mark(&dynamo).await;
    let sum = appended_units + add("mark as published");
    assert!(sum <= MAX_APPEND_UNITS, "{sum} write units");
    let total = ["**one appended event**", "", &format!("**{sum}**")];
    lines.push(total.map(str::to_owned).to_vec());
    let head = ["write", "table or index", "write units"];
    let table = docs::table(&head, &[false, false, true], &lines).expect("a table");
    eprintln!("{table}");
    docs::check_or_update_table(&root().join("docs/cost.md"), "append-units", &table)
        .expect("as docs/cost.md has it; run `make write-units`");
    drop(dynamo.take_usage());
    append(&step, &appended("2")).await;
    assert!(dynamo.take_usage().write_units < f64::EPSILON, "a repeat writes nothing");
}

/// Returns an event with a kilobyte of data. Its id, which ends with `last`, and its correlation id are UUIDs.
fn appended(last: &str) -> String {
    let id = format!("0b9e9a4c-53a5-4f0e-8f34-0d5a7c3c9a0{last}");
    let data = json!({ "readings": "x".repeat(1024 - r#"{"readings":""}"#.len()) });
    assert_eq!(data.to_string().len(), 1024);
    json!({
        "specversion": "1.0",
        "id": id,
        "source": "com.example.lims",
        "type": "com.example.CalibrationDone",
        "subject": "example.instrument/SN-4711",
        "time": "2026-11-21T11:59:58Z",
        "correlationid": "2835a360-0211-5136-bc2a-17eca187a972",
        "data": data,
    })
    .to_string()
}

async fn append(step: &AppendEvent, body: &str) {
    let mut request = lambda::http::Request::default();
    request.body = Some(body.to_owned());
    let sent = step.handle(&default_caller(), &request, now()).await;
    assert!(sent.is_ok(), "{sent:?}");
}

/// Marks the newest row as the publisher does.
async fn mark(dynamo: &Dynamo) {
    let rows = dynamo.rows(EVENTS).await.into_iter();
    let rows = rows.map(|row| serde_json::from_value(row).expect("an event's row"));
    let row = rows.max_by_key(|row: &EventRow| row.sequence).expect("a row");
    let key = Key::numbered(("entity", row.entity), ("sequence", row.sequence.to_string()));
    let client = dynamo.client();
    let update = client.update_item().table_name(EVENTS).set_key(Some(key.item()));
    let marked = update
        .update_expression("SET publishedAt = :now REMOVE unpublished, refused")
        .condition_expression("attribute_exists(entity)")
        .expression_attribute_values(":now", AttributeValue::S(now().to_string()));
    marked.send().await.expect("the row is marked");
}
