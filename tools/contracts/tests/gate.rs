//! Tests of the gate: each breaking change is refused in the direction that it breaks, and others are accepted.

use std::{fs, path::PathBuf};

use contracts_gate::{Contracts, Direction, compare};
use serde_json::{Value, json};

/// A schema in the form of the generated ones.
fn base() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": { "data": { "description": "The payload.", "$ref": "#/$defs/Data" } },
        "required": ["data"],
        "$defs": {
            "Data": {
                "type": "object",
                "properties": {
                    "id": { "$ref": "#/$defs/Id" },
                    "cause": { "type": ["string", "null"], "maxLength": 50 },
                    "quantity": { "type": "integer", "format": "uint32", "minimum": 1, "maximum": 100 },
                    "plan": { "oneOf": [
                        { "type": "string", "const": "community" },
                        { "type": "string", "const": "standard" },
                    ] },
                    "name": { "type": "string", "maxLength": 20 },
                    "list": { "type": "array", "items": { "type": "number" }, "maxItems": 10 },
                    "version": { "type": "integer", "const": 1 },
                    "sample": {
                        "type": "array", "minItems": 2, "maxItems": 2,
                        "prefixItems": [{ "type": "string" }, { "type": "number", "maximum": 1.5 }],
                    },
                },
                "required": ["id", "plan"],
            },
            "Id": { "type": "string", "format": "uuid" },
        },
    })
}

/// A change of the schema and the number of problems: with outbound events, and with inbound ones.
type Case = (&'static str, fn(&mut Value), usize, usize);

fn field<'a>(data: &'a mut Value, name: &str) -> &'a mut Value {
    &mut data["properties"][name]
}

/// The changes of the definition `Data`.
const CASES: &[Case] = &[
    ("nothing", |_| {}, 0, 0),
    ("a new description", |data| field(data, "name")["description"] = json!("new"), 0, 0),
    ("an added optional field", |data| *field(data, "note") = json!({ "type": "string" }), 0, 0),
    ("a removed required field", |data| remove(data, "id"), 1, 0),
    ("a removed optional field", |data| remove(data, "quantity"), 1, 0),
    ("a new required field", |data| data["required"] = json!(["id", "plan", "name"]), 1, 1),
    ("an added required field", add_required, 1, 1),
    ("a required field that becomes optional", |data| data["required"] = json!(["id"]), 1, 0),
    ("a narrowed type", |data| field(data, "cause")["type"] = json!("string"), 1, 1),
    ("a widened type", |data| field(data, "name")["type"] = json!(["string", "null"]), 1, 0),
    ("another type", |data| *field(data, "name") = json!({ "type": "integer" }), 2, 1),
    ("a renamed enum value", |data| field(data, "plan")["oneOf"][1]["const"] = json!("pro"), 2, 1),
    ("an added enum value", add_plan, 1, 0),
    ("a lowered maximum", |data| field(data, "quantity")["maximum"] = json!(99), 1, 1),
    ("a raised maximum", |data| field(data, "quantity")["maximum"] = json!(101), 1, 0),
    ("a raised minimum", |data| field(data, "quantity")["minimum"] = json!(2), 1, 1),
    ("a lowered minimum", |data| field(data, "quantity")["minimum"] = json!(0), 1, 0),
    ("a new pattern", |data| field(data, "name")["pattern"] = json!("^[a-z]*$"), 1, 1),
    ("a new format", |data| field(data, "name")["format"] = json!("uuid"), 1, 1),
    ("a lowered maxLength", |data| field(data, "name")["maxLength"] = json!(19), 1, 1),
    ("a lowered maxItems", |data| field(data, "list")["maxItems"] = json!(9), 1, 1),
    ("a new minItems", |data| field(data, "list")["minItems"] = json!(1), 1, 1),
    (
        "another type of items",
        |data| field(data, "list")["items"] = json!({ "type": "string" }),
        2,
        1,
    ),
    (
        "another type in a tuple",
        |data| field(data, "sample")["prefixItems"][0] = json!({ "type": "null" }),
        2,
        1,
    ),
    ("another version", |data| field(data, "version")["const"] = json!(2), 2, 1),
    ("a closed object", |data| data["additionalProperties"] = json!(false), 1, 1),
];

fn remove(data: &mut Value, name: &str) {
    data["properties"].as_object_mut().expect("fields").remove(name);
    data["required"].as_array_mut().expect("names").retain(|required| required != name);
}

fn add_required(data: &mut Value) {
    *field(data, "note") = json!({ "type": "string" });
    data["required"].as_array_mut().expect("names").push(json!("note"));
}

fn add_plan(data: &mut Value) {
    let plans = field(data, "plan")["oneOf"].as_array_mut().expect("plans");
    plans.push(json!({ "type": "string", "const": "professional" }));
}

#[test]
fn each_breaking_change_is_refused_in_the_direction_that_it_breaks() {
    let mut wrong = Vec::new();
    for (name, change, outbound, inbound) in CASES {
        let mut new = base();
        change(&mut new["$defs"]["Data"]);
        for (direction, expected) in
            [(Direction::Outbound, usize::from(*outbound > 0)), (Direction::Inbound, *inbound)]
        {
            let problems = compare(direction, &base(), &new);
            if usize::from(!problems.is_empty()) != expected {
                wrong.push(format!("{name}, {direction:?}: {problems:?}"));
            }
        }
        let both = compare(Direction::Outbound, &base(), &new).len();
        if both != *outbound {
            wrong.push(format!("{name}: {both} directions break, not {outbound}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_schema_that_is_not_understood_is_a_problem() {
    let mut unknown = base();
    unknown["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    let mut unresolved = base();
    unresolved["$defs"].as_object_mut().expect("definitions").remove("Id");
    for schema in [unknown, unresolved] {
        assert!(!compare(Direction::Inbound, &schema, &schema).is_empty(), "{schema}");
    }
}

/// A folder of contracts with one outbound and one inbound schema, both released.
struct Sandbox(PathBuf);

impl Sandbox {
    fn new(test: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(test);
        if folder.exists() {
            fs::remove_dir_all(&folder).expect("an old folder");
        }
        fs::create_dir_all(folder.join("schemas")).expect("a folder");
        let sandbox = Self(folder);
        for name in ["SiteCreated.v1", "Bundle"] {
            sandbox.write(&format!("schemas/{name}.json"), &base());
        }
        let added = sandbox.contracts().release().expect("a release");
        assert_eq!(added, ["Bundle/1.json", "SiteCreated.v1/1.json"]);
        assert_eq!(sandbox.problems(), Vec::<String>::new());
        sandbox
    }

    fn contracts(&self) -> Contracts {
        Contracts::new(&self.0)
    }

    fn problems(&self) -> Vec<String> {
        self.contracts().check().expect("readable files")
    }

    fn write(&self, file: &str, schema: &Value) {
        fs::write(self.0.join(file), format!("{schema:#}\n")).expect("a file");
    }
}

#[test]
fn a_released_file_may_not_change_vanish_or_be_unlisted() {
    let sandbox = Sandbox::new("immutable");
    let mut described = base();
    described["description"] = json!("new");
    sandbox.write("released/Bundle/1.json", &described);
    assert_eq!(sandbox.problems(), ["Bundle/1.json changed; a released schema must not change"]);
    fs::remove_file(sandbox.0.join("released/Bundle/1.json")).expect("a file");
    assert_eq!(sandbox.problems(), ["Bundle/1.json is missing; a released schema must stay"]);
    sandbox.write("released/Bundle/1.json", &base());
    sandbox.write("released/Bundle/2.json", &base());
    assert_eq!(
        sandbox.problems(),
        ["Bundle/2.json is not in SHA256SUMS; run `make release-schemas`"]
    );
}

#[test]
fn a_released_schema_needs_a_current_one() {
    let sandbox = Sandbox::new("removed");
    fs::remove_file(sandbox.0.join("schemas/SiteCreated.v1.json")).expect("a file");
    assert_eq!(
        sandbox.problems(),
        ["SiteCreated.v1/1.json: schemas/SiteCreated.v1.json is missing"]
    );
}

#[test]
fn a_release_adds_only_changed_schemas_and_all_releases_are_compared() {
    let sandbox = Sandbox::new("releases");
    assert_eq!(sandbox.contracts().release().expect("a release"), Vec::<String>::new());
    let mut added = base();
    *field(&mut added["$defs"]["Data"], "note") = json!({ "type": "string", "maxLength": 5 });
    sandbox.write("schemas/SiteCreated.v1.json", &added);
    assert_eq!(sandbox.problems(), Vec::<String>::new());
    let released = sandbox.contracts().release().expect("a release");
    assert_eq!(released, ["SiteCreated.v1/2.json"]);
    assert_eq!(sandbox.problems(), Vec::<String>::new());
    // Compatible with the first release, but not with the second.
    sandbox.write("schemas/SiteCreated.v1.json", &base());
    let problems = sandbox.problems();
    assert!(
        problems.len() == 1 && problems[0].starts_with("SiteCreated.v1/2.json: "),
        "{problems:?}"
    );
}

/// Edits of the real schemas, as text. Each must be refused.
const EDITS: &[(&str, &str, &str)] = &[
    ("SiteRegistrationRequested", "\"wind_speed\"", "\"wind_velocity\""),
    ("SiteRegistrationRequested", "\"maximum\": 90.0", "\"maximum\": 89.0"),
    ("KitsDelivered", "\"maxItems\": 50", "\"maxItems\": 49"),
    ("Bundle", "{1,64}", "{1,63}"),
    ("SiteCreated.v1", "\"community\"", "\"free\""),
    ("SiteCreated.v1", "\"paymentMethod\"", "\"payment\""),
    ("StockLow.v1", "\"sequence\"", "\"position\""),
    ("StockLow.v1", "\"stock\"", "\"inventory\""),
    ("AlertingConfigured.v2", "\"const\": 2", "\"const\": 3"),
    ("AlertingConfigured.v2", "\"maxItems\": 100", "\"maxItems\": 1000"),
    ("ReadingBreachedThreshold.v1", "\"format\": \"date-time\"", "\"format\": \"date\""),
];

#[test]
fn edits_of_the_real_schemas_are_refused() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/contracts/schemas");
    for (name, from, to) in EDITS {
        let text = fs::read_to_string(format!("{folder}/{name}.json")).expect(name);
        assert!(text.contains(from), "{name} has no {from}");
        let [old, new] = [&text, &text.replace(from, to)]
            .map(|text| serde_json::from_str::<Value>(text).expect("JSON"));
        let problems = compare(Direction::of(name), &old, &new);
        assert!(!problems.is_empty(), "{name}: {to} instead of {from} is accepted");
    }
}

#[test]
fn a_new_metric_is_accepted_in_registrations() {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../shared/contracts/schemas/SiteRegistrationRequested.json"
    );
    let text = fs::read_to_string(file).expect("a schema");
    let old: Value = serde_json::from_str(&text).expect("JSON");
    let mut new = old.clone();
    let metrics = new["$defs"]["Metric"]["oneOf"].as_array_mut().expect("metrics");
    metrics.push(json!({ "type": "string", "const": "soil_temperature" }));
    let units = new["$defs"]["SensorRequest"]["anyOf"].as_array_mut().expect("units");
    let case =
        units.iter_mut().find(|case| case["properties"]["unit"]["enum"] == json!(["Cel", "K"]));
    let names = case.expect("temperatures")["properties"]["metric"]["enum"].as_array_mut();
    names.expect("names").push(json!("soil_temperature"));
    assert_eq!(compare(Direction::Inbound, &old, &new), Vec::<String>::new());
    assert_eq!(compare(Direction::Inbound, &new, &old).len(), 1);
}

#[test]
fn the_current_schemas_are_compatible_with_all_released_ones() {
    let contracts = Contracts::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/contracts"));
    let problems = contracts.check().expect("readable files");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
