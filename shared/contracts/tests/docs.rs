//! The documentation for integrators names every metric and event type.

use contracts::Metric;

#[test]
fn every_metric_and_its_units_are_in_the_docs() {
    let docs = include_str!("../../../docs/integrating.md");
    for metric in Metric::ALL {
        let units: Vec<_> = metric.units().iter().map(|unit| format!("`{unit}`")).collect();
        let line = format!("| `{metric}` | {} |", units.join(", "));
        assert!(docs.contains(&line), "docs/integrating.md has no line {line}");
    }
}

#[test]
fn every_event_type_is_in_the_docs() {
    let docs = include_str!("../../../docs/integrating.md");
    for (name, _, _) in contracts::events::schemas() {
        assert!(docs.contains(&format!("`{name}`")), "docs/integrating.md does not mention {name}");
    }
}
