//! Files that hold what is on a wire: a change that others would notice shows in a diff.

use std::{fs, path::Path};

use serde_json::Value;

/// Compares with `tests/goldens/<name>.json` of the crate whose `CARGO_MANIFEST_DIR` is given;
/// writes it with `UPDATE_GOLDENS=1`.
///
/// # Panics
/// Where they differ.
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

/// The value with its objects' keys sorted. `serde_json` keeps the keys' order or sorts them,
/// depending on a feature that any crate in the build may switch on.
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
