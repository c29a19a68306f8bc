//! The checked-in JSON Schemas equal those of the Rust types. Integrators use the files.

use std::{collections::BTreeMap, fs, path::PathBuf};

use contracts::readings::{BUNDLE_SCHEMA, Bundle};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schemas")
}

fn generated() -> BTreeMap<String, String> {
    let outbound = contracts::events::schemas()
        .into_iter()
        .map(|(name, version, schema)| (format!("{name}.v{version}.json"), schema));
    let inbound = contracts::inbound::schemas()
        .into_iter()
        .map(|(name, schema)| (format!("{name}.json"), schema));
    let managing = contracts::operators::schemas()
        .into_iter()
        .map(|(name, schema)| (format!("{name}.json"), schema));
    let bundle = (format!("{BUNDLE_SCHEMA}.json"), schemars::schema_for!(Bundle));
    let cloud_event = (
        format!("{}.json", contracts::cloud_event::CLOUD_EVENT),
        contracts::cloud_event::schema(),
    );
    outbound
        .chain(inbound)
        .chain(managing)
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
