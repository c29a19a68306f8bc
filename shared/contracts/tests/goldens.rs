//! What an event is on the wire, to the letter: other systems read it. Each golden is also held
//! against its checked-in schema.

use std::fs;

use contracts::{
    Entity, EntityType, Envelope, Event, EventId, Failure, Location, Metadata, Metric,
    OnboardingId, PaymentMethodId, Plan, Sensor, SensorId, SiteId,
    events::{
        AlertingConfigured, AlertingRemoved, Kits, KitsReleased, KitsReserved, Limit,
        ReadingBackToNormal, ReadingBreachedThreshold, SensorsDeprovisioned, SensorsProvisioned,
        Shortage, SiteActivated, SiteCreated, SiteDecommissioned, SiteRejected, StockDepleted,
        SubscriptionCancelled, SubscriptionFailed, SubscriptionInitialized,
    },
    inbound::{
        KITS_DELIVERED, KitsDelivered, SITE_REGISTRATION_REQUESTED, SensorRequest,
        SiteRegistration, SiteRegistrationRequested,
    },
    readings::{BUNDLE, Bundle, Sample, Series},
};
use serde_json::{Value, json};
use testkit::{golden, sample::noon};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn site() -> SiteId {
    SiteId::registered("http", "key-1")
}

fn onboarding() -> OnboardingId {
    OnboardingId::of(site())
}

fn sensors() -> Vec<Sensor> {
    let limited = Sensor {
        sensor_id: SensorId::of(onboarding(), 0),
        metric: Metric::AirTemperature,
        unit: "Cel".to_owned(),
        min: Some(-40.0),
        max: Some(45.5),
    };
    let unlimited = Sensor {
        sensor_id: SensorId::of(onboarding(), 1),
        metric: Metric::DownwellingShortwave,
        unit: "W/m2".to_owned(),
        min: None,
        max: None,
    };
    vec![limited, unlimited]
}

fn location() -> Location {
    Location { latitude: 37.7, longitude: -105.92, elevation_m: 2317.0 }
}

/// Whether the checked-in schema takes the document.
fn takes(schema: &str, document: &Value) -> bool {
    let file = format!("{HERE}/schemas/{schema}.json");
    let text = fs::read_to_string(&file).expect(&file);
    let schema = serde_json::from_str(&text).expect("a schema is JSON");
    let validator =
        jsonschema::options().should_validate_formats(true).build(&schema).expect("a schema");
    validator.is_valid(document)
}

fn without(document: &Value, member: &str) -> Value {
    let mut document = document.clone();
    let parent = if document.get("data").is_some() { &mut document["data"] } else { &mut document };
    parent.as_object_mut().expect("an object").remove(member);
    document
}

fn check<D: Event + PartialEq + std::fmt::Debug>(data: D) -> (&'static str, u32) {
    let entity = Entity { kind: D::ENTITY, id: onboarding().uuid() };
    let first = D::ENTITY == EntityType::Site && D::TYPE == "SiteCreated";
    let envelope = Envelope {
        metadata: Metadata {
            event_id: EventId::of(&entity, 1),
            kind: D::TYPE.to_owned(),
            version: D::VERSION,
            occurred_at: noon(0),
            entity,
            sequence: 1,
            correlation_id: onboarding(),
            // A registration over HTTP is caused by no event; its saga is, by the registration's.
            causation_id: (!first).then(|| EventId::of(&site().into(), 1).uuid()),
        },
        data,
    };
    let wire = serde_json::to_value(&envelope).expect("an envelope as JSON");
    let name = format!("{}.v{}", D::TYPE, D::VERSION);
    golden::check(HERE, &name, &wire);
    let back: Envelope<D> = serde_json::from_value(wire.clone()).expect("an envelope");
    assert_eq!(back, envelope);
    assert!(takes(&name, &wire), "{name} is refused by its schema");
    assert!(!takes(&name, &without(&wire, "siteId")), "the schema of {name} takes anything");
    (D::TYPE, D::VERSION)
}

#[test]
fn every_event_is_what_it_was() {
    let site_id = site();
    let kits = vec![
        Kits { metric: Metric::AirTemperature, quantity: 2 },
        Kits { metric: Metric::AirPressure, quantity: 1 },
    ];
    let failure = Failure {
        step: "InitializeSubscription".to_owned(),
        error: "CardDeclined".to_owned(),
        message: "Your card was declined.".to_owned(),
    };
    let provider_subscription_id = "sub_1".to_owned();
    let pinned = [
        check(SiteCreated {
            site_id,
            onboarding_id: onboarding(),
            name: "Alamosa, Colorado".to_owned(),
            operator: "NOAA".to_owned(),
            location: location(),
            sensors: sensors(),
            plan: Plan::Standard,
            payment_method: PaymentMethodId("pm_card_visa".to_owned()),
        }),
        check(SiteActivated { site_id }),
        check(SiteRejected { site_id, failure }),
        check(SiteDecommissioned { site_id }),
        check(KitsReserved { site_id, kits: kits.clone() }),
        check(KitsReleased { site_id, kits }),
        check(StockDepleted {
            site_id,
            shortages: vec![Shortage {
                metric: Metric::AirTemperature,
                requested: 2,
                available: 1,
            }],
        }),
        check(SensorsProvisioned { site_id, sensors: sensors() }),
        check(SensorsDeprovisioned {
            site_id,
            sensor_ids: sensors().iter().map(|sensor| sensor.sensor_id).collect(),
        }),
        check(SubscriptionInitialized {
            site_id,
            plan: Plan::Standard,
            provider_subscription_id: provider_subscription_id.clone(),
        }),
        check(SubscriptionFailed {
            site_id,
            plan: Plan::Professional,
            error: "CardDeclined".to_owned(),
            message: "Your card was declined.".to_owned(),
        }),
        check(SubscriptionCancelled { site_id, provider_subscription_id }),
        check(AlertingConfigured { site_id, rules: 1 }),
        check(AlertingRemoved { site_id }),
        check(ReadingBreachedThreshold {
            site_id,
            sensor_id: SensorId::of(onboarding(), 0),
            metric: Metric::AirTemperature,
            unit: "Cel".to_owned(),
            value: 45.6,
            at: noon(-60),
            limit: Limit::Max,
            threshold: 45.5,
        }),
        check(ReadingBackToNormal {
            site_id,
            sensor_id: SensorId::of(onboarding(), 0),
            metric: Metric::AirTemperature,
            unit: "Cel".to_owned(),
            value: 44.9,
            at: noon(-30),
            breached_at: noon(-60),
        }),
    ];
    let all: Vec<_> = contracts::events::schemas()
        .into_iter()
        .map(|(name, version, _)| (name, version))
        .collect();
    assert_eq!(pinned[..], all, "an event has no golden");
}

#[test]
fn what_we_hear_from_others_is_what_it_was() {
    let kits = vec![Kits { metric: Metric::WindSpeed, quantity: 20 }];
    let delivered = json!(KitsDelivered { delivery_id: "acme-2026-0001".to_owned(), kits });
    golden::check(HERE, KITS_DELIVERED, &delivered);
    assert!(takes(KITS_DELIVERED, &delivered));
    assert!(!takes(KITS_DELIVERED, &without(&delivered, "deliveryId")));

    let requested = json!(SiteRegistrationRequested {
        registration_id: "surfrad-SLV".to_owned(),
        site: SiteRegistration {
            name: "Alamosa, Colorado".to_owned(),
            operator: "NOAA".to_owned(),
            location: location(),
            sensors: vec![SensorRequest {
                metric: Metric::DownwellingLongwave,
                unit: "W/m2".to_owned(),
                min: None,
                max: Some(700.0),
            }],
            plan: Plan::Community,
            payment_method: PaymentMethodId("pm_card_visa".to_owned()),
        },
    });
    golden::check(HERE, SITE_REGISTRATION_REQUESTED, &requested);
    assert!(takes(SITE_REGISTRATION_REQUESTED, &requested));
    assert!(!takes(SITE_REGISTRATION_REQUESTED, &without(&requested, "site")));
}

#[test]
fn a_bundle_is_what_it_was() {
    let times = ["2026-01-01T11:58:00Z", "2026-01-01T11:59:00Z"];
    let sample = |(time, value): (&str, f64)| Sample(time.parse().expect("a time"), value);
    let bundle = json!(Bundle {
        bundle_id: "SLV-2026-01-01T12:00".parse().expect("a bundle id"),
        site_id: site(),
        series: vec![Series {
            sensor_id: SensorId::of(onboarding(), 0),
            samples: times.into_iter().zip([-7.6, -7.5]).map(sample).collect(),
        }],
    });
    golden::check(HERE, BUNDLE, &bundle);
    assert!(takes(BUNDLE, &bundle));
    assert!(!takes(BUNDLE, &without(&bundle, "bundleId")));
    let mut spaced = bundle;
    spaced["bundleId"] = "SLV 1".into();
    assert!(!takes(BUNDLE, &spaced));
}

#[test]
fn a_reader_takes_what_a_later_release_adds_to_an_event() {
    let mut detail = json!({
        "metadata": {
            "eventId": EventId::of(&site().into(), 2),
            "type": "SiteActivated",
            "version": 1,
            "occurredAt": "2026-01-01T12:00:00.000Z",
            "entity": { "type": "site", "id": site() },
            "sequence": 2,
            "correlationId": onboarding(),
        },
        "data": { "siteId": site() },
    });
    detail["data"]["since"] = "a later release".into();
    detail["metadata"]["traceId"] = "a later release".into();
    let read: Result<Envelope<SiteActivated>, _> = serde_json::from_value(detail.clone());
    assert!(read.is_ok(), "{read:?}");
    assert!(takes("SiteActivated.v1", &detail));
}
