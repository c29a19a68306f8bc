//! The tables that the tests run on are those that the template makes.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use testkit::template::Template;

/// What decides how a table behaves; the rest (billing, backups, encryption) does not concern rows.
const KEYS_AND_INDEXES: [&str; 3] = ["AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes"];

#[test]
fn the_tables_are_the_templates() {
    let template = Template::read();
    let tables: BTreeMap<&str, Value> = template
        .resources("AWS::DynamoDB::Table")
        .into_iter()
        .map(|(name, resource)| {
            let properties = resource["Properties"].as_object().expect("properties").iter();
            let kept = properties.filter(|(name, _)| KEYS_AND_INDEXES.contains(&name.as_str()));
            let kept = kept.map(|(name, value)| (name.clone(), value.clone()));
            (name, kept.collect::<Map<_, _>>().into())
        })
        .collect();
    assert_eq!(testkit::dynamo::tables(), tables);
}
