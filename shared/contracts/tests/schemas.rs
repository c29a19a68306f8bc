//! The checked-in JSON Schemas equal those of the Rust types. Integrators use the files.

use std::{collections::BTreeMap, fs, path::PathBuf};

use contracts::{
    Event,
    events::{self, Visitor},
    readings::{BUNDLE_SCHEMA, Bundle},
};
use serde_json::Value;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schemas")
}

/// The schemas of all versions of the event types that are published.
#[derive(Default)]
struct Outbound(Vec<(String, schemars::Schema)>);

impl Visitor for Outbound {
    fn event<E: Event + PartialEq + std::fmt::Debug>(&mut self) {
        self.0.push((format!("{}.v{}.json", E::TYPE, E::VERSION), events::schema_of::<E>()));
    }
}

fn generated() -> BTreeMap<String, String> {
    let mut outbound = Outbound::default();
    events::visit(&mut outbound);
    events::visit_earlier(&mut outbound);
    let inbound = contracts::inbound::schemas()
        .into_iter()
        .map(|(name, schema)| (format!("{name}.json"), schema));
    let managing = contracts::operators::schemas()
        .into_iter()
        .map(|(name, schema)| (format!("{name}.json"), schema));
    let changing = contracts::site_patch::schemas()
        .into_iter()
        .chain(contracts::sensor::schemas())
        .map(|(name, schema)| (format!("{name}.json"), schema));
    let bundle = (format!("{BUNDLE_SCHEMA}.json"), schemars::schema_for!(Bundle));
    let cloud_event =
        (format!("{}.json", contracts::cloud_event::CLOUD_EVENT), contracts::cloud_event::schema());
    outbound
        .0
        .into_iter()
        .chain(inbound)
        .chain(managing)
        .chain(changing)
        .chain([bundle, cloud_event])
        .map(|(file, schema)| {
            let text = serde_json::to_string_pretty(&schema).expect("a schema is JSON");
            (file, escaped(&text) + "\n")
        })
        .collect()
}

/// Escapes every character outside ASCII, because the patterns contain invisible characters.
fn escaped(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            escaped.push(character);
        } else {
            let mut units = [0; 2];
            let units = character.encode_utf16(&mut units).iter();
            escaped.extend(units.map(|unit| format!("\\u{unit:04x}")));
        }
    }
    escaped
}

#[test]
fn checked_in_schemas_match_the_types() {
    let generated = generated();
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        fs::create_dir_all(folder()).expect("the schemas' folder");
        for (file, text) in &generated {
            fs::write(folder().join(file), text).expect("a schema file");
        }
    }
    let checked_in: BTreeMap<String, String> = fs::read_dir(folder())
        .expect("shared/contracts/schemas")
        .map(|entry| {
            let path = entry.expect("a folder entry").path();
            let name = path.file_name().expect("a file name").to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).expect("a schema file"))
        })
        .collect();
    let hint = "run `UPDATE_SCHEMAS=1 make unit-test ARGS='--test schemas'`; a change that breaks \
                readers needs a new VERSION, and the old file must stay";
    for (file, text) in &generated {
        assert_eq!(checked_in.get(file), Some(text), "{file} does not match its type: {hint}");
    }
    // Schemas of old versions of Fieldstation's own events stay. Inbound types have no versions.
    let stale: Vec<_> = checked_in
        .keys()
        .filter(|file| !generated.contains_key(*file) && file.split('.').count() == 2)
        .collect();
    assert!(stale.is_empty(), "files without a type: {stale:?}");
}

/// Adds the places in a schema where a text, a list or a number has no bounds.
fn find_unbounded(schema: &Value, at: &str, unbounded: &mut Vec<String>) {
    if let Some(parts) = schema.as_array() {
        for (index, part) in parts.iter().enumerate() {
            find_unbounded(part, &format!("{at}/{index}"), unbounded);
        }
    }
    let Some(keywords) = schema.as_object() else { return };
    let has = |names: &[&str]| names.iter().any(|name| keywords.contains_key(*name));
    let is = |name: &str| {
        keywords.get("type").is_some_and(|kind| {
            kind == name || kind.as_array().is_some_and(|kinds| kinds.contains(&name.into()))
        })
    };
    let is_bounded = has(&["const", "enum"])
        || !(is("string") && !has(&["maxLength", "pattern", "format"])
            || is("array") && !has(&["maxItems"])
            || (is("integer") || is("number")) && !(has(&["minimum"]) && has(&["maximum"])));
    if !is_bounded {
        unbounded.push(at.to_owned());
    }
    for (name, part) in keywords {
        find_unbounded(part, &format!("{at}/{name}"), unbounded);
    }
}

#[test]
fn texts_lists_and_numbers_are_bounded() {
    let mut unbounded = Vec::new();
    for (file, text) in generated() {
        let schema: Value = serde_json::from_str(&text).expect("a schema is JSON");
        find_unbounded(&schema, &file, &mut unbounded);
    }
    // An entity can have any number of events.
    unbounded.retain(|at| !at.ends_with(".json/$defs/Metadata/properties/sequence"));
    assert!(unbounded.is_empty(), "{}", unbounded.join("\n"));
}

#[test]
fn objects_of_outbound_events_are_open() {
    for (file, text) in generated() {
        let is_outbound = file.split('.').count() == 3;
        let is_closed = text.contains("\"additionalProperties\": false");
        assert!(!(is_outbound && is_closed), "{file} is closed");
    }
}
