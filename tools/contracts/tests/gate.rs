//! Tests of the gate: each breaking change is refused in the direction that it breaks, and others are accepted. Each
//! schema must be released, and what a commit released must stay.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use contracts_gate::{Contracts, Direction, HOOK_VARIABLES, compare};
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

/// The name of a change, the change, and the number of problems that it causes: in an outbound schema, and in an
/// inbound one.
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

/// A git repository with one outbound and one inbound schema. Both are released, and the release is committed.
struct Sandbox(PathBuf);

impl Sandbox {
    fn new(test: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(test);
        if folder.exists() {
            fs::remove_dir_all(&folder).expect("an old folder");
        }
        fs::create_dir_all(folder.join("schemas")).expect("a folder");
        let sandbox = Self(folder);
        sandbox.git(&["init", "--quiet", "--initial-branch=main"]);
        for name in ["SiteCreated.v1", "Bundle"] {
            sandbox.write(&format!("schemas/{name}.json"), &base());
        }
        assert_eq!(sandbox.release(), ["Bundle/1.json", "SiteCreated.v1/1.json"]);
        sandbox.commit();
        assert_eq!(sandbox.problems(), Vec::<String>::new());
        sandbox
    }

    fn release(&self) -> Vec<String> {
        Contracts::new(&self.0, &[]).release().expect("a release")
    }

    fn problems(&self) -> Vec<String> {
        Contracts::new(&self.0, &[]).check().expect("readable files")
    }

    fn write(&self, file: &str, schema: &Value) {
        fs::write(self.0.join(file), format!("{schema:#}\n")).expect("a file");
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.0.join(file)).expect("a file");
    }

    fn commit(&self) {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message=change"]);
    }

    fn git(&self, arguments: &[&str]) -> String {
        git(&self.0, arguments)
    }

    /// Asserts that the only problem is that these released files were changed or removed.
    fn assert_lost(&self, lost: &[&str], case: &str) {
        let problems = self.problems();
        let found = problems.iter().map(|problem| {
            let (path, rest) = problem.split_once(" of commit ").expect(problem);
            assert!(rest.contains("was changed or removed"), "{case}: {problem}");
            path
        });
        assert_eq!(found.collect::<Vec<_>>(), lost, "{case}: {problems:?}");
    }
}

/// Runs git without the settings of this machine and of a hook. Returns its output.
fn git(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    for variable in HOOK_VARIABLES {
        command.env_remove(variable);
    }
    for (variable, value) in [
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_AUTHOR_NAME", "test"),
        ("GIT_AUTHOR_EMAIL", "test@example.com"),
        ("GIT_COMMITTER_NAME", "test"),
        ("GIT_COMMITTER_EMAIL", "test@example.com"),
    ] {
        command.env(variable, value);
    }
    let output = command.arg("-C").arg(folder).args(arguments).output().expect("git");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Returns the schema with an optional field.
fn with_field(name: &str) -> Value {
    let mut schema = base();
    *field(&mut schema["$defs"]["Data"], name) = json!({ "type": "string", "maxLength": 5 });
    schema
}

fn described() -> Value {
    let mut schema = base();
    schema["description"] = json!("new");
    schema
}

#[test]
fn a_released_file_must_be_as_in_the_list_of_hashes() {
    let sandbox = Sandbox::new("listed");
    let has = |expected: &str| {
        let problems = sandbox.problems();
        assert!(problems.iter().any(|problem| problem == expected), "{problems:?}");
    };
    sandbox.write("released/Bundle/1.json", &described());
    has("Bundle/1.json differs from SHA256SUMS; a released schema must not change");
    sandbox.remove("released/Bundle/1.json");
    has("Bundle/1.json is missing; a released schema must stay");
    sandbox.write("released/Bundle/1.json", &base());
    sandbox.write("released/Bundle/2.json", &base());
    has("Bundle/2.json is not in SHA256SUMS; run `make release-schemas`");
    assert_eq!(sandbox.release(), Vec::<String>::new());
    assert_eq!(sandbox.problems(), Vec::<String>::new());
}

#[test]
fn a_released_schema_needs_a_current_one() {
    let sandbox = Sandbox::new("removed");
    sandbox.remove("schemas/SiteCreated.v1.json");
    assert_eq!(
        sandbox.problems(),
        ["SiteCreated.v1/1.json: schemas/SiteCreated.v1.json is missing"]
    );
}

#[test]
fn a_new_or_changed_schema_must_be_released() {
    let sandbox = Sandbox::new("unreleased");
    sandbox.write("schemas/SiteChanged.v1.json", &base());
    sandbox.write("schemas/Bundle.json", &with_field("note"));
    // A field with the name `description` is no description.
    sandbox.write("schemas/SiteCreated.v1.json", &with_field("description"));
    let expected = ["Bundle", "SiteChanged.v1", "SiteCreated.v1"].map(|name| {
        format!(
            "schemas/{name}.json is new or changed, and not released; run `make release-schemas`, and commit what it \
             adds"
        )
    });
    assert_eq!(sandbox.problems(), expected);
    let added = sandbox.release();
    assert_eq!(added, ["Bundle/2.json", "SiteChanged.v1/1.json", "SiteCreated.v1/2.json"]);
    assert_eq!(sandbox.problems(), Vec::<String>::new());
}

#[test]
fn a_changed_description_needs_no_release() {
    let sandbox = Sandbox::new("described");
    sandbox.write("schemas/Bundle.json", &described());
    assert_eq!(sandbox.problems(), Vec::<String>::new());
    assert_eq!(sandbox.release(), Vec::<String>::new());
}

#[test]
fn all_releases_are_compared() {
    let sandbox = Sandbox::new("releases");
    sandbox.write("schemas/SiteCreated.v1.json", &with_field("note"));
    assert_eq!(sandbox.release(), ["SiteCreated.v1/2.json"]);
    sandbox.commit();
    // Compatible with the first release, but not with the second.
    sandbox.write("schemas/SiteCreated.v1.json", &base());
    let problems = sandbox.problems();
    assert!(
        problems.len() == 1
            && problems[0].starts_with("SiteCreated.v1/2.json: ")
            && !problems[0].contains("you may delete it"),
        "{problems:?}"
    );
}

#[test]
fn an_incompatible_schema_is_not_released() {
    let sandbox = Sandbox::new("incompatible");
    let mut narrowed = base();
    field(&mut narrowed["$defs"]["Data"], "quantity")["maximum"] = json!(99);
    sandbox.write("schemas/Bundle.json", &narrowed);
    assert_eq!(sandbox.release(), Vec::<String>::new());
    let problems = sandbox.problems();
    assert!(problems.len() == 1 && problems[0].starts_with("Bundle/1.json: "), "{problems:?}");
}

#[test]
fn a_file_that_no_commit_has_may_be_released_again() {
    let sandbox = Sandbox::new("draft");
    sandbox.write("schemas/SiteCreated.v1.json", &with_field("draft"));
    assert_eq!(sandbox.release(), ["SiteCreated.v1/2.json"]);
    sandbox.write("schemas/SiteCreated.v1.json", &with_field("note"));
    let problems = sandbox.problems();
    assert!(
        problems.len() == 1
            && problems[0].starts_with("SiteCreated.v1/2.json: ")
            && problems[0].ends_with("you may delete it and run `make release-schemas`"),
        "{problems:?}"
    );
    sandbox.remove("released/SiteCreated.v1/2.json");
    assert_eq!(sandbox.release(), ["SiteCreated.v1/2.json"]);
    assert_eq!(sandbox.problems(), Vec::<String>::new());
}

#[test]
fn what_a_commit_released_must_stay() {
    /// A change of the released files. `make release-schemas` follows, so the list of hashes has no difference.
    type Change = fn(&Sandbox);
    let changes: [(&str, Change, &[&str]); 3] = [
        (
            "an edited file",
            |sandbox| sandbox.write("released/Bundle/1.json", &described()),
            &["Bundle/1.json"],
        ),
        ("a removed file", |sandbox| sandbox.remove("released/Bundle/1.json"), &["Bundle/1.json"]),
        (
            "a removed schema",
            |sandbox| {
                fs::remove_dir_all(sandbox.0.join("released/SiteCreated.v1")).expect("a folder");
                sandbox.remove("schemas/SiteCreated.v1.json");
            },
            &["SiteCreated.v1/1.json"],
        ),
    ];
    for (case, change, lost) in changes {
        let sandbox = Sandbox::new("history");
        let first = sandbox.git(&["rev-parse", "HEAD"]);
        sandbox.write("schemas/Bundle.json", &with_field("note"));
        sandbox.release();
        sandbox.commit();
        change(&sandbox);
        sandbox.release();
        sandbox.assert_lost(lost, case);
        // What the message advises.
        for path in lost {
            sandbox.git(&["checkout", &first, "--", &format!("released/{path}")]);
        }
        sandbox.git(&["checkout", &first, "--", "schemas/SiteCreated.v1.json"]);
        sandbox.release();
        assert_eq!(sandbox.problems(), Vec::<String>::new(), "{case}, restored");
        change(&sandbox);
        sandbox.release();
        sandbox.commit();
        sandbox.commit();
        sandbox.assert_lost(lost, &format!("{case}, committed"));
    }
}

#[test]
fn a_merge_drops_no_released_file() {
    let sandbox = Sandbox::new("merge");
    sandbox.git(&["checkout", "--quiet", "-b", "branch"]);
    sandbox.write("schemas/Bundle.json", &with_field("note"));
    sandbox.release();
    sandbox.commit();
    sandbox.git(&["checkout", "--quiet", "main"]);
    // The merge keeps the tree of main.
    sandbox.git(&["merge", "--quiet", "--no-ff", "--strategy=ours", "--message=merge", "branch"]);
    sandbox.assert_lost(&["Bundle/2.json"], "dropped by a merge");
}

#[test]
fn what_only_a_merge_released_must_stay() {
    let sandbox = Sandbox::new("only-merge");
    sandbox.git(&["checkout", "--quiet", "-b", "branch"]);
    sandbox.commit();
    sandbox.git(&["checkout", "--quiet", "main"]);
    sandbox.git(&["merge", "--quiet", "--no-ff", "--no-commit", "branch"]);
    sandbox.write("schemas/Bundle.json", &with_field("note"));
    sandbox.release();
    sandbox.commit();
    assert_eq!(sandbox.problems(), Vec::<String>::new());
    sandbox.remove("released/Bundle/2.json");
    sandbox.write("schemas/Bundle.json", &base());
    sandbox.release();
    sandbox.commit();
    sandbox.assert_lost(&["Bundle/2.json"], "added by a merge");
}

#[test]
fn a_released_file_may_get_another_number() {
    let sandbox = Sandbox::new("renumbered");
    let [from, to] =
        ["Bundle/1.json", "Bundle/2.json"].map(|path| sandbox.0.join("released").join(path));
    fs::rename(from, to).expect("a file");
    sandbox.release();
    sandbox.commit();
    assert_eq!(sandbox.problems(), Vec::<String>::new());
}

#[test]
fn a_withdrawn_content_may_be_missing() {
    let sandbox = Sandbox::new("withdrawn");
    sandbox.write("released/Bundle/1.json", &described());
    sandbox.release();
    sandbox.commit();
    sandbox.assert_lost(&["Bundle/1.json"], "no exception");
    let id: &'static str = sandbox.git(&["rev-parse", "HEAD~1:released/Bundle/1.json"]).leak();
    for (name, accepted) in [("Bundle", true), ("SiteCreated.v1", false)] {
        let contracts = Contracts::new(&sandbox.0, vec![(name, id)].leak());
        let problems = contracts.check().expect("readable files");
        assert_eq!(problems.is_empty(), accepted, "{name}: {problems:?}");
    }
}

#[test]
fn an_incomplete_history_is_a_problem() {
    let sandbox = Sandbox::new("origin");
    let clones = sandbox.0.with_extension("clones");
    if clones.exists() {
        fs::remove_dir_all(&clones).expect("old clones");
    }
    fs::create_dir_all(&clones).expect("a folder");
    sandbox.commit();
    let origin = format!("file://{}", sandbox.0.display());
    git(&clones, &["clone", "--quiet", &origin, "full"]);
    git(&clones, &["clone", "--quiet", "--depth=1", &origin, "shallow"]);
    git(&clones, &["init", "--quiet", "empty"]);
    git(&clones, &["init", "--quiet", "other"]);
    git(&clones.join("other"), &["commit", "--quiet", "--allow-empty", "--message=other"]);
    for (clone, expected) in [
        ("full", None),
        ("shallow", Some("the clone is shallow; run `git fetch --unshallow`")),
        ("empty", Some("git log failed: ")),
        ("other", Some("no commit has a file in ")),
    ] {
        let folder = clones.join(clone);
        if !folder.join("released").exists() {
            fs::create_dir_all(folder.join("schemas")).expect("a folder");
            fs::write(folder.join("schemas/Bundle.json"), base().to_string()).expect("a file");
            Contracts::new(&folder, &[]).release().expect("a release");
        }
        let problems = Contracts::new(&folder, &[]).check().expect("readable files");
        let prefix = "the history of the released files can't be checked: ";
        let found: Vec<_> = problems.iter().map(|problem| problem.strip_prefix(prefix)).collect();
        match (found.as_slice(), expected) {
            ([], None) => {}
            ([Some(problem)], Some(expected)) if problem.starts_with(expected) => {}
            _ => panic!("{clone}: {problems:?}"),
        }
    }
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
fn the_current_schemas_are_released_and_compatible_with_all_released_ones() {
    let problems = Contracts::of_this_repository().check().expect("readable files");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
