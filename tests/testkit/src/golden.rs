//! Golden files: what other systems and programs read, as JSON. A golden file is a contract, so it changes
//! by decision only. Text for people, such as fieldctl's output, is compared with `insta` instead.

use std::{fs, path::Path};

use serde_json::Value;

/// Compares the value with `tests/goldens/<name>.json` of the crate with this `CARGO_MANIFEST_DIR`. With
/// `UPDATE_GOLDENS=1` it writes the file.
///
/// # Panics
/// If they differ.
pub fn check(manifest_dir: &str, name: &str, value: &Value) {
    let file = Path::new(manifest_dir).join("tests/goldens").join(format!("{name}.json"));
    let text = format!("{:#}\n", sorted(value));
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        fs::create_dir_all(file.parent().expect("a folder")).expect("the goldens' folder");
        fs::write(&file, &text).expect("a golden file");
    }
    let golden = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(text, golden, "{} differs; UPDATE_GOLDENS=1 rewrites it", file.display());
}

/// Returns the value with sorted object keys. A feature of `serde_json`, which any crate in the build may enable,
/// determines whether it sorts the keys or keeps their order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            fields.into_iter().map(|(name, value)| (name.clone(), sorted(value))).collect()
        }
        Value::Array(values) => values.iter().map(sorted).collect(),
        other => other.clone(),
    }
}
