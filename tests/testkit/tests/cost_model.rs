//! Checks that the inputs of the cost model agree with the templates and the code.

use std::fs;

use contracts::RateLimit;
use cost::data::{Assumptions, Limit, Mapping, Quotas, read};
use serde_json::Value;
use testkit::template::{Template, kebab, root};

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn assumptions() -> Assumptions {
    read(&root().join("tools/cost/assumptions.json")).expect("assumptions")
}

fn quotas() -> Quotas {
    read(&root().join("tools/cost/quotas.json")).expect("quotas")
}

fn assert_equal(one: f64, other: f64, what: &str) {
    assert!((one - other).abs() < f64::EPSILON, "{what} is {other}, not {one}");
}

#[test]
fn the_cost_model_has_the_functions_memory() {
    let (template, assumptions) = (Template::read(), assumptions());
    assert_equal(
        128.0,
        number(&template.0["Globals"]["Function"]["MemorySize"]),
        "the usual memory",
    );
    for name in template.functions() {
        let memory = &template.properties(&format!("{name}Function"))["MemorySize"];
        let memory = memory.as_f64();
        assert_eq!(assumptions.memory.get(&kebab(name)).copied(), memory, "memory of {name}");
    }
}

#[test]
fn the_cost_model_has_the_mappings_batch_sizes_and_lanes() {
    let (template, assumptions) = (Template::read(), assumptions());
    for (name, Mapping { batch_size, parallelization_factor }) in [
        ("StoreReadingsMapping", assumptions.mappings.store_readings),
        ("DetectBreachesMapping", assumptions.mappings.detect_breaches),
    ] {
        let mapping = template.properties(name);
        assert_equal(batch_size, number(&mapping["BatchSize"]), name);
        assert_equal(parallelization_factor, number(&mapping["ParallelizationFactor"]), name);
        assert_eq!(mapping["MaximumBatchingWindowInSeconds"], Value::Null, "{name} waits");
    }
}

#[test]
fn the_quotas_have_the_routes_throttling_limits() {
    let (template, quotas) = (Template::read(), quotas());
    let apis = template.resources("AWS::Serverless::Api");
    let api = apis.values().next().expect("an API");
    let settings = api["Properties"]["MethodSettings"].as_array().expect("settings");
    for (limit, method, path) in
        [(Limit::PostReadings, "POST", "/~1readings"), (Limit::PostEvents, "*", "/*")]
    {
        let route = settings
            .iter()
            .find(|route| route["ResourcePath"] == path && route["HttpMethod"] == method)
            .expect(path);
        assert_equal(quotas[&limit].value, number(&route["ThrottlingRateLimit"]), path);
    }
}

#[test]
fn the_quotas_have_the_limit_of_sagas() {
    let limit = f64::from(RateLimit::ALL_SAGAS.per_second());
    assert_equal(quotas()[&Limit::PostSites].value, limit, "the limit of sagas");
}

#[test]
fn the_cost_model_has_the_codes_concurrency_and_record_size() {
    let assumptions = assumptions();
    for (file, constant) in [
        (
            "shared/stream/src/lib.rs",
            format!("MAX_CONCURRENT_SITES: usize = {};", assumptions.side_by_side),
        ),
        (
            "functions/telemetry/src/series_store.rs",
            format!("CONCURRENT_PUTS: usize = {};", assumptions.puts_at_once),
        ),
        (
            "functions/telemetry/src/accept_readings.rs",
            "MAX_RECORD_BYTES: usize = 1024 * 1024;".to_owned(),
        ),
    ] {
        let text = fs::read_to_string(root().join(file)).expect(file);
        assert!(text.contains(&constant), "{file} has no {constant}");
    }
    assert_equal(quotas()[&Limit::RecordBytes].value, 1024.0 * 1024.0, "a record");
}
