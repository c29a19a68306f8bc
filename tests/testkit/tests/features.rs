//! Checks that `make unit-test` and `make e2e-test` resolve the same features, so that each dependency is
//! compiled once for both.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

/// The packages of a `cargo test`, as the Makefile selects them.
const END_TO_END: &[&str] = &["-p", "tests", "-p", "fieldctl"];
const FAULT_MATRIX: &[&str] = &["-p", "tests"];

/// The features of each package.
type Features = BTreeMap<String, BTreeSet<String>>;

#[test]
fn unit_and_end_to_end_tests_resolve_the_same_features() {
    let unit = unit_packages();
    let unit: Vec<_> = unit.iter().map(String::as_str).collect();
    assert_same(&features(&unit), &features(END_TO_END));
}

#[test]
fn the_fault_matrix_and_end_to_end_tests_resolve_the_same_features() {
    assert_same(&features(FAULT_MATRIX), &features(END_TO_END));
}

/// Returns the packages that `make unit-test` and `make quick` test.
fn unit_packages() -> Vec<String> {
    let makefile = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Makefile");
    let text = fs::read_to_string(makefile).unwrap();
    let packages = text.lines().find_map(|line| line.strip_prefix("UNIT_PACKAGES := "));
    packages.unwrap().split_whitespace().map(str::to_owned).collect()
}

fn assert_same(unit: &Features, end_to_end: &Features) {
    let different: Vec<_> = unit
        .iter()
        .filter_map(|(package, of_unit)| {
            let of_end_to_end = end_to_end.get(package)?;
            (of_unit != of_end_to_end)
                .then(|| format!("{package}: {of_unit:?} and {of_end_to_end:?}"))
        })
        .collect();
    assert!(unit.len() > 100, "cargo tree listed {} packages", unit.len());
    assert!(
        different.is_empty(),
        "compiled twice; align them in tests/testkit/Cargo.toml:\n{}",
        different.join("\n")
    );
}

/// Returns each package with its features, in a build of the selected packages and their tests. The build is for this
/// machine, because crates of other platforms may not be downloaded.
fn features(selection: &[&str]) -> Features {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--prefix", "none", "--format", "{p}|{f}"])
        .args(selection)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut features = Features::new();
    // An empty line separates the packages.
    for line in String::from_utf8(output.stdout).unwrap().lines().filter(|line| !line.is_empty()) {
        let (package, enabled) = line.trim_end_matches(" (*)").split_once('|').unwrap();
        features
            .entry(package.to_owned())
            .or_default()
            .extend(enabled.split(',').filter(|name| !name.is_empty()).map(str::to_owned));
    }
    features
}
