//! What one onboarding costs in DynamoDB, counted, and told in docs/costs.md.
//!
//! `UPDATE_DOCS=1 cargo test -p testkit` writes the table anew.

use std::{fmt::Write, fs, path::PathBuf, time::Duration};

use aws_lambda_events::eventbridge::EventBridgeEvent;
use billing::{
    initialize_subscription::{self, InitializeSubscription},
    provider::{KeySource, Prices, Provider},
    stripe::ApiKey,
};
use contracts::{
    Envelope, Metric, Plan, Saga, Sensor, SensorId, Timestamp,
    events::Kits,
    inbound::{KitsDelivered, SensorRequest, SiteRegistration},
};
use events::publisher::Publisher;
use lambda::{Deadline, Step};
use serde_json::{Value, json};
use store::{EventRow, Idempotency};
use testkit::{
    Dynamo,
    dynamo::{ALERTING, BILLING, DEVICES, EVENTS, INVENTORY, SITES},
    http::{Call, Stub},
};

const START: &str = "<!-- write-units: by `make write-units` -->\n";
const END: &str = "<!-- /write-units -->";

/// Three sensors of three metrics, as most sites of the demo have.
fn registration() -> SiteRegistration {
    let sensor = |metric: Metric, min, max| SensorRequest {
        metric,
        unit: metric.units()[0].to_owned(),
        min,
        max,
    };
    SiteRegistration {
        name: "Alamosa, Colorado".to_owned(),
        operator: "NOAA SURFRAD".to_owned(),
        location: contracts::Location { latitude: 37.7, longitude: -105.92, elevation_m: 2317.0 },
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

/// Takes every event.
async fn bus() -> Stub {
    Stub::start(|call: &Call| {
        let entries = call.json()["Entries"].as_array().map_or(0, Vec::len);
        let taken = vec![json!({ "EventId": "1" }); entries];
        (200, json!({ "FailedEntryCount": 0, "Entries": taken }))
    })
    .await
}

/// Accepts every card.
async fn stripe() -> Stub {
    Stub::start(|call: &Call| {
        let id = match call.path.split('/').nth(2) {
            Some("customers") => "cus_NffrFeUfNV2Hib",
            Some("payment_methods") => "pm_1MqLiJLkdIwHu7ixUEgbFdYF",
            _ => "sub_1MowQVLkdIwHu7ixeRlqHVzs",
        };
        (200, json!({ "id": id, "status": "active" }))
    })
    .await
}

struct Account {
    dynamo: Dynamo,
    lines: Vec<(String, String, f64)>,
}

impl Account {
    fn book(&mut self, what: &str, rows: &str) {
        let units = self.dynamo.take_usage().write_units;
        self.lines.push((what.to_owned(), rows.to_owned(), units));
    }

    fn table(&self) -> String {
        let mut text = String::from("| effect | rows written | write units |\n|---|---|---:|\n");
        let mut sum = 0.0;
        for (what, rows, units) in &self.lines {
            writeln!(text, "| {what} | {rows} | {units} |").expect("text");
            sum += units;
        }
        writeln!(text, "| **one onboarding** | | **{sum}** |").expect("text");
        text
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one onboarding, from its first to its last step")]
async fn the_docs_tell_what_an_onboarding_costs() {
    let dynamo = Dynamo::start().await;
    let (bus, stripe) = (bus().await, stripe().await);
    let now: Timestamp = "2026-11-21T12:00:00Z".parse().expect("a time");
    let mut account = Account { dynamo, lines: Vec::new() };
    let table = |account: &Account, name| account.dynamo.table(name);
    let outbox = account.dynamo.outbox();

    let metrics = [Metric::AirTemperature, Metric::RelativeHumidity, Metric::DownwellingShortwave];
    let kits = metrics.map(|metric| Kits { metric, quantity: 10 }).to_vec();
    let delivered = KitsDelivered { delivery_id: "D-1".to_owned(), kits };
    inventory::receive_kits::ReceiveKits { inventory: table(&account, INVENTORY) }
        .run(event(&delivered), now)
        .await
        .expect("kits in stock");
    drop(account.dynamo.take_usage());

    let registrar =
        sites::registration::Registrar { sites: table(&account, SITES), outbox: outbox.clone() };
    let registered =
        registrar.register("http", "key", registration(), None, now).await.expect("a site");
    account.book("create-site", "site, `SiteCreated`");

    let saga = Saga {
        onboarding_id: registered.onboarding_id,
        site_id: registered.site_id,
        causation_id: Some(uuid()),
    };
    let sensors: Vec<Sensor> = registration()
        .sensors
        .into_iter()
        .enumerate()
        .map(|(index, request)| Sensor {
            sensor_id: SensorId::of(saga.onboarding_id, index),
            metric: request.metric,
            unit: request.unit,
            min: request.min,
            max: request.max,
        })
        .collect();

    inventory::reserve_kits::ReserveKits {
        inventory: table(&account, INVENTORY),
        outbox: outbox.clone(),
    }
    .run(inventory::reserve_kits::Command { saga, sensors: sensors.clone() }, now)
    .await
    .expect("kits reserved");
    account.book("reserve-kits", "reservation, 3 of stock, `KitsReserved`");

    devices::provision_sensors::ProvisionSensors {
        devices: table(&account, DEVICES),
        outbox: outbox.clone(),
    }
    .run(devices::provision_sensors::Command { saga, sensors: sensors.clone() }, now)
    .await
    .expect("sensors provisioned");
    account.book("provision-sensors", "sensors, `SensorsProvisioned`");

    let prices = "community=a,standard=b,professional=c";
    InitializeSubscription {
        billing: table(&account, BILLING),
        idempotency: Idempotency::new(table(&account, BILLING), Duration::from_secs(30)),
        outbox: outbox.clone(),
        provider: Provider::new(
            stripe.url(),
            KeySource::Given(ApiKey::new("sk_test").expect("a key")),
            Prices::parse("STRIPE_PRICES", prices).expect("prices"),
        ),
    }
    .run(
        initialize_subscription::Command {
            saga,
            name: registration().name,
            plan: Plan::Standard,
            payment_method: registration().payment_method,
        },
        now,
    )
    .await
    .expect("a subscription");
    account.book(
        "initialize-subscription",
        "idempotency record begun, checkpoint, then subscription, record completed, \
         `SubscriptionInitialized`",
    );

    alerting::configure_alerting::ConfigureAlerting {
        alerting: table(&account, ALERTING),
        outbox: outbox.clone(),
    }
    .run(alerting::configure_alerting::Command { saga, sensors }, now)
    .await
    .expect("alerting configured");
    account.book("configure-alerting", "alerting, `AlertingConfigured`");

    sites::activate_site::ActivateSite { sites: table(&account, SITES), outbox }
        .run(saga, now)
        .await
        .expect("the site activated");
    account.book("activate-site", "site, `SiteActivated`");

    let rows: Vec<EventRow> = account
        .dynamo
        .rows(EVENTS)
        .await
        .into_iter()
        .map(|row| serde_json::from_value(row).expect("an event's row"))
        .collect();
    assert_eq!(rows.len(), 6);
    let publisher = Publisher {
        events: table(&account, EVENTS),
        bus: aws_sdk_eventbridge::Client::new(&bus.config()),
        bus_name: "bus".to_owned(),
    };
    let deadline = Deadline::after(Duration::from_secs(5));
    let unpublished = publisher.publish(rows.clone(), deadline).await;
    assert_eq!(unpublished, []);
    account.book("publish-events", "6 marks, each in the table and out of the index `unpublished`");

    let project = sites::project_site::ProjectSite { sites: table(&account, SITES) };
    for row in rows.iter().filter(|row| !row.entity.starts_with("site#")) {
        let envelope: Envelope<Value> = row.envelope().expect("an envelope");
        let detail = serde_json::to_value(envelope).expect("JSON");
        let detail: Envelope<sites::project_site::Data> =
            serde_json::from_value(detail).expect("a step's event");
        project.run(event(&detail), now).await.expect("projected");
    }
    account.book("project-site", "4 of the site's read model, one a step");

    let counted = account.table();
    eprintln!("{counted}");
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/costs.md");
    let docs = fs::read_to_string(&path).expect("docs/costs.md");
    let (before, rest) = docs.split_once(START).expect("the table's start in docs/costs.md");
    let (told, after) = rest.split_once(END).expect("the table's end in docs/costs.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{before}{START}{counted}{END}{after}")).expect("docs/costs.md");
    } else {
        assert_eq!(told, counted, "docs/costs.md tells another cost; run `make write-units`");
    }
}

fn uuid() -> uuid::Uuid {
    "2835a360-0211-5136-bc2a-17eca187a972".parse().expect("a UUID")
}
