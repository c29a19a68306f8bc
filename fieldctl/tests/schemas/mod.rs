//! Checks documents against the published schemas of `--json` outputs.

use serde_json::Value;

fn schema(name: &str) -> Value {
    let file = format!("{}/schemas/{name}.schema.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(&file).expect(&file)).expect("JSON")
}

/// Makes the schema refuse members that it does not describe.
fn strict(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            members.values_mut().for_each(strict);
            if members.contains_key("properties") {
                members.insert("additionalProperties".to_owned(), false.into());
            }
        }
        Value::Array(values) => values.iter_mut().for_each(strict),
        _ => {}
    }
}

/// Returns what is wrong with the document according to its schema, including members that the schema does not
/// describe.
pub fn violations(name: &str, document: &Value) -> Vec<String> {
    let mut schema = schema(name);
    strict(&mut schema);
    let options = jsonschema::options().should_validate_formats(true);
    let validator = options.build(&schema).expect("a schema");
    validator
        .iter_errors(document)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}
