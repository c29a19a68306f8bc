//! The tables that the tests run on are those that the template makes.

use std::{collections::BTreeMap, fs};

use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value};

/// What decides how a table behaves; the rest (billing, backups, encryption) does not concern rows.
const KEYS_AND_INDEXES: [&str; 3] = ["AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes"];

/// YAML as JSON; the tags of intrinsic functions (`!Ref`) are left off, there are none in what we compare.
fn json(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::Value(Scalar::String(text)) => Value::from(text.as_ref()),
        Yaml::Value(Scalar::Boolean(flag)) => Value::from(*flag),
        Yaml::Value(Scalar::Integer(number)) => Value::from(*number),
        Yaml::Value(Scalar::FloatingPoint(number)) => Value::from(number.into_inner()),
        Yaml::Sequence(items) => items.iter().map(json).collect(),
        Yaml::Mapping(entries) => entries
            .iter()
            .map(|(key, value)| (key.as_str().unwrap_or_default().to_owned(), json(value)))
            .collect::<Map<_, _>>()
            .into(),
        Yaml::Tagged(_, value) => json(value),
        _ => Value::Null,
    }
}

#[test]
fn the_tables_are_the_templates() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../template.yaml");
    let text = fs::read_to_string(file).expect("template.yaml");
    let template = Yaml::load_from_str(&text).expect("YAML");
    let template = json(&template[0]);
    let resources = template["Resources"].as_object().expect("resources");

    let tables: BTreeMap<&str, Value> = resources
        .iter()
        .filter(|(_, resource)| resource["Type"] == "AWS::DynamoDB::Table")
        .map(|(name, resource)| {
            let properties = resource["Properties"].as_object().expect("properties").iter();
            let kept = properties.filter(|(name, _)| KEYS_AND_INDEXES.contains(&name.as_str()));
            let kept = kept.map(|(name, value)| (name.clone(), value.clone()));
            (name.as_str(), kept.collect::<Map<_, _>>().into())
        })
        .collect();
    assert_eq!(testkit::dynamo::tables(), tables);
}
