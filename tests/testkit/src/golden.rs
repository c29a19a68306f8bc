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
    let text = format!("{value:#}\n");
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        fs::create_dir_all(file.parent().expect("a folder")).expect("the goldens' folder");
        fs::write(&file, &text).expect("a golden file");
    }
    let golden = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(text, golden, "{} differs; UPDATE_GOLDENS=1 rewrites it", file.display());
}
