//! Checks the dependencies between crates: no service depends on another service, and fieldctl depends on no
//! service and not on the Lambda runtime.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

/// Returns the crates in a folder of the repository, each with its manifest.
fn crates_in(folder: &str) -> Vec<(String, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
    let entries =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let crates = entries.filter_map(|path| {
        let manifest = fs::read_to_string(path.join("Cargo.toml")).ok()?;
        Some((path.file_name()?.to_str()?.to_owned(), manifest))
    });
    crates.collect()
}

#[test]
fn no_service_and_no_shared_crate_depends_on_a_service() {
    let services = crates_in("functions");
    let names: BTreeSet<_> = services.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains("sites"), "{names:?}");
    for (name, manifest) in services.iter().chain(&crates_in("shared")) {
        // A dependency is a line `name.workspace = true` or `name = { workspace = true, .. }`.
        let dependencies = manifest.lines().filter_map(|line| line.split(['.', ' ']).next());
        let unwanted: Vec<_> = dependencies.filter(|it| names.contains(it)).collect();
        assert!(
            unwanted.is_empty(),
            "{name} depends on {unwanted:?}; move what it needs to shared/"
        );
    }
}

#[test]
fn fieldctl_links_no_function_and_no_lambda_runtime() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "-p", "fieldctl", "--edges", "normal"])
        .args(["--prefix", "none", "--format", "{p}"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let packages: Vec<_> = text.lines().collect();
    assert!(packages.iter().any(|it| it.starts_with("store v")), "{text}");
    let unwanted: Vec<_> = packages
        .iter()
        .filter(|it| it.starts_with("lambda_runtime ") || it.contains("/functions/"))
        .collect();
    assert!(unwanted.is_empty(), "fieldctl links {unwanted:?}; move what it needs to shared/");
}
