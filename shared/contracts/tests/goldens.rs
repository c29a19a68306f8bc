//! Golden files of the JSON of every event type, which other systems read. Each golden file is also validated against
//! its checked-in schema.

use std::{collections::BTreeSet, fs};

use contracts::{
    Envelope, Event, EventId, Location, Metadata, Metric, OnboardingId, OperatorId,
    PaymentMethodId, Plan, SensorId, SiteId,
    events::{self, Kits, SiteActivated, Visitor},
    inbound::{
        KITS_DELIVERED, KitsDelivered, SITE_REGISTRATION_REQUESTED, SensorRequest,
        SiteRegistration, SiteRegistrationRequested,
    },
    readings::{BUNDLE_SCHEMA, Bundle, Series},
    sample::Sample,
    sensor::RegisteredMetadata,
};
use serde_json::{Value, json};
use testkit::golden;

const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn site() -> SiteId {
    SiteId::registered(OperatorId::DEFAULT, "http", "key-1")
}

fn onboarding() -> OnboardingId {
    OnboardingId::from_site(site())
}

fn location() -> Location {
    Location { latitude: 37.7, longitude: -105.92, elevation_m: 2317.0 }
}

/// Returns whether the document is valid by the checked-in schema.
fn is_valid(schema: &str, document: &Value) -> bool {
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

/// Checks what the schema of an event type requires in addition to the fields of the Rust type.
fn check_schema<E: Event>(name: &str, wire: &Value) {
    let refuses = |pointer: &str, field: &str, value: Option<Value>| {
        let mut changed = wire.clone();
        let parent = changed.pointer_mut(pointer).and_then(Value::as_object_mut);
        let parent = parent.expect("an object");
        match &value {
            Some(value) => parent.insert(field.to_owned(), value.clone()),
            None => parent.remove(field),
        };
        assert!(!is_valid(name, &changed), "{name} accepts {pointer}/{field} as {value:?}");
    };
    refuses("/metadata", "type", Some("Other".into()));
    refuses("/metadata", "version", Some(json!(E::VERSION + 1)));
    refuses("/metadata/entity", "type", Some("other".into()));
    refuses("/metadata", "sequence", Some(json!(0)));
    refuses("/metadata", "occurredAt", Some("2026-01-01T12:00:00+01:00".into()));
    for field in wire["data"].as_object().expect("an object").keys() {
        if serde_json::from_value::<Envelope<E>>(without(wire, field)).is_err() {
            refuses("/data", field, None);
        }
    }
    if E::ENTITY.belongs_to_site() {
        refuses("/data", "siteId", None);
        refuses("/metadata", "correlationId", None);
    } else {
        assert!(wire["data"].get("siteId").is_none(), "{name} is an event of no site");
        let schemas = fs::read_to_string(format!("{HERE}/schemas/{name}.json")).expect(name);
        assert!(!schemas.contains("correlationId"), "{name} has a correlation id");
    }
}

/// Reads each event's golden file and serializes it again. A golden file is written by hand together with its event
/// type.
#[derive(Default)]
struct Goldens {
    checked: BTreeSet<String>,
}

impl Visitor for Goldens {
    fn event<E: Event + PartialEq + std::fmt::Debug>(&mut self) {
        let name = format!("{}.v{}", E::TYPE, E::VERSION);
        let file = format!("{HERE}/tests/goldens/{name}.json");
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        let wire: Value = serde_json::from_str(&text).expect(&file);
        let envelope: Envelope<E> = serde_json::from_value(wire.clone()).expect(&file);
        assert_eq!(serde_json::to_value(&envelope).expect("JSON"), wire, "{file}");
        let Metadata { event_id, kind, version, entity, sequence, .. } = envelope.metadata;
        assert_eq!((kind.as_str(), version), (E::TYPE, E::VERSION), "{file}");
        assert_eq!(
            (entity.kind, event_id),
            (E::ENTITY, EventId::from_entity(&entity, sequence)),
            "{file}"
        );
        assert!(is_valid(&name, &wire), "{name} is refused by its schema");
        check_schema::<E>(&name, &wire);
        assert!(self.checked.insert(name), "two types are named {}", E::TYPE);
    }
}

#[test]
fn every_event_matches_its_golden_file() {
    let mut goldens = Goldens::default();
    events::visit(&mut goldens);
    events::visit_earlier(&mut goldens);
    let files = fs::read_dir(format!("{HERE}/schemas")).expect("the schemas");
    let names = files.map(|file| file.expect("a file").file_name().into_string().expect("a name"));
    let versioned = names.filter_map(|name| {
        let name = name.strip_suffix(".json")?.to_owned();
        name.contains('.').then_some(name)
    });
    assert_eq!(goldens.checked, versioned.collect());
}

#[test]
fn an_event_without_an_operator_belongs_to_the_default_operator() {
    let text = fs::read_to_string(format!("{HERE}/tests/goldens/SiteActivated.v1.json"));
    let mut wire: Value = serde_json::from_str(&text.expect("a file")).expect("JSON");
    wire["metadata"].as_object_mut().expect("an object").remove("operatorId").expect("an id");
    assert!(is_valid("SiteActivated.v1", &wire), "it is refused by its schema");
    let envelope: Envelope<SiteActivated> = serde_json::from_value(wire).expect("an event");
    assert_eq!(envelope.metadata.operator_id, OperatorId::DEFAULT);
}

#[test]
fn every_inbound_event_matches_its_golden_file() {
    let kits = vec![Kits { metric: Metric::WindSpeed, quantity: 20 }];
    let delivered = json!(KitsDelivered { delivery_id: "acme-2026-0001".to_owned(), kits });
    golden::check(HERE, KITS_DELIVERED, &delivered);
    assert!(is_valid(KITS_DELIVERED, &delivered));
    assert!(!is_valid(KITS_DELIVERED, &without(&delivered, "deliveryId")));

    let requested = json!(SiteRegistrationRequested {
        registration_id: "surfrad-SLV".to_owned(),
        site: SiteRegistration {
            name: "Alamosa, Colorado".to_owned(),
            operator: "NOAA".to_owned(),
            location: location(),
            utc_offset: Some("-07:00".parse().expect("an offset")),
            sensors: vec![SensorRequest {
                metric: Metric::DownwellingLongwave,
                unit: "W/m2".to_owned(),
                min: None,
                max: Some(700.0),
                metadata: RegisteredMetadata::default(),
            }],
            plan: Plan::Community,
            payment_method: PaymentMethodId("pm_card_visa".to_owned()),
        },
    });
    golden::check(HERE, SITE_REGISTRATION_REQUESTED, &requested);
    assert!(is_valid(SITE_REGISTRATION_REQUESTED, &requested));
    assert!(!is_valid(SITE_REGISTRATION_REQUESTED, &without(&requested, "site")));
}

#[test]
fn a_bundle_matches_its_golden_file() {
    let times = ["2026-01-01T11:58:00Z", "2026-01-01T11:59:00Z"];
    let sample = |(time, value): (&str, f64)| Sample::new(time.parse().expect("a time"), value);
    let samples = times.into_iter().zip([-7.6, -7.5]).map(sample).collect();
    let series = vec![Series::new(SensorId::from_onboarding(onboarding(), 0), samples)];
    let bundle_id = "SLV-2026-01-01T12:00".parse().expect("a bundle id");
    let bundle = json!(Bundle::new(bundle_id, site(), series));
    golden::check(HERE, BUNDLE_SCHEMA, &bundle);
    assert!(is_valid(BUNDLE_SCHEMA, &bundle));
    assert!(!is_valid(BUNDLE_SCHEMA, &without(&bundle, "bundleId")));
    let mut spaced = bundle;
    spaced["bundleId"] = "SLV 1".into();
    assert!(!is_valid(BUNDLE_SCHEMA, &spaced));
}

#[test]
fn a_reader_ignores_fields_that_a_later_release_adds() {
    let mut detail = json!({
        "metadata": {
            "eventId": EventId::from_entity(&site().into(), 2),
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
    assert!(is_valid("SiteActivated.v1", &detail));
}
