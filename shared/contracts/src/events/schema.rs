//! The JSON Schema of an event's `detail`.

use schemars::Schema;
use serde_json::{Map, Value, json};

use crate::{Envelope, Event};

/// The pattern of a UUID, as this system writes it.
const UUID: &str = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$";
/// The pattern of a time, as this system writes it: UTC with exactly three decimals.
const TIME: &str = "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}Z$";

/// Returns the JSON Schema of the whole `detail` of an event type.
///
/// The schema of the Rust types is completed with what they do not express: the type, the version and the entity type
/// are constants, events of a site have a correlation id, and others have none. Consumers must ignore fields that they
/// do not know, so no object is closed.
#[must_use]
pub fn schema_of<E: Event>() -> Schema {
    let mut schema = schemars::schema_for!(Envelope<E>);
    let version = E::VERSION;
    schema.insert("title".to_owned(), json!(format!("{}, version {version}", E::TYPE)));
    if let Some(defs) = schema.get_mut("$defs").and_then(Value::as_object_mut) {
        defs.remove("EntityType");
        for definition in defs.values_mut() {
            complete(definition);
        }
        if let Some(kind) = defs.get_mut("Entity").and_then(|entity| property(entity, "type")) {
            kind.remove("$ref");
            kind.insert("type".to_owned(), json!("string"));
            kind.insert("const".to_owned(), json!(E::ENTITY.name()));
        }
        if let Some(metadata) = defs.get_mut("Metadata") {
            for (name, value) in [("type", json!(E::TYPE)), ("version", json!(version))] {
                if let Some(field) = property(metadata, name) {
                    field.insert("const".to_owned(), value);
                    field.remove("minimum");
                    field.remove("maximum");
                }
            }
            if E::ENTITY.belongs_to_site() {
                if let Some(field) = property(metadata, "correlationId") {
                    field.remove("anyOf");
                    field.insert("$ref".to_owned(), json!("#/$defs/OnboardingId"));
                    field.insert("description".to_owned(), json!("The onboarding of the site."));
                }
                if let Some(required) = metadata.get_mut("required").and_then(Value::as_array_mut) {
                    required.push(json!("correlationId"));
                }
            } else {
                if let Some(fields) = metadata.get_mut("properties").and_then(Value::as_object_mut)
                {
                    fields.remove("correlationId");
                }
                defs.remove("OnboardingId");
            }
        }
        // A new metric is no breaking change, so consumers must accept names that they do not know.
        if let Some(metric) = defs.get_mut("Metric") {
            *metric = json!({
                "description": "The observed property that a sensor measures: one of the metrics in docs/integrating.md. \
                                A later release can add metrics.",
                "type": "string",
                "pattern": "^[a-z][a-z0-9_]{0,99}$",
            });
        }
    }
    schema
}

fn property<'a>(schema: &'a mut Value, name: &str) -> Option<&'a mut Map<String, Value>> {
    schema.get_mut("properties")?.get_mut(name)?.as_object_mut()
}

/// Opens objects, and adds the bounds of Rust's numbers, of ids and of times.
fn complete(schema: &mut Value) {
    match schema {
        Value::Object(keywords) => {
            keywords.values_mut().for_each(complete);
            if keywords.get("additionalProperties") == Some(&Value::Bool(false)) {
                keywords.remove("additionalProperties");
            }
            match keywords.get("format").and_then(Value::as_str) {
                Some("uint32") => {
                    keywords.remove("format");
                    keywords.entry("maximum").or_insert(json!(u32::MAX));
                }
                Some("uint" | "uint64" | "double") => {
                    keywords.remove("format");
                }
                Some("uuid") => {
                    keywords.insert("pattern".to_owned(), json!(UUID));
                }
                Some("date-time") => {
                    keywords.insert("pattern".to_owned(), json!(TIME));
                }
                _ => {}
            }
        }
        Value::Array(schemas) => schemas.iter_mut().for_each(complete),
        _ => {}
    }
}
