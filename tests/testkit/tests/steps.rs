//! Checks that a new step of the saga changes only the places that docs/adding-a-step.md lists.
//!
//! `UPDATE_DOCS=1 cargo test -p testkit --test steps` writes the tables and diagrams that are generated from
//! the steps, the functions and the event types.

use std::{collections::BTreeSet, env, fmt, fmt::Write, fs, path::Path};

use contracts::{
    Event,
    events::{self, Visitor},
    names::{SERVICES, kebab},
    saga::{STEPS, SagaStep, undo_order},
};
use cost::docs::with_table;
use testkit::template::root;

/// Files that may name every step, and the reason. A path that ends in `/` is a folder.
const MAY_LIST_STEPS: &[(&str, &str)] = &[
    ("shared/contracts/src/saga.rs", "declares the steps"),
    ("shared/contracts/src/events.rs", "declares their events"),
    ("statemachines/", "the rules hold them to STEPS"),
    ("README.md", "made from STEPS and the functions by this test"),
    ("docs/integrating.md", "made from the event types by this test"),
    ("docs/cost.md", "made by write_units"),
    ("docs/fault-matrix.md", "made by the fault matrix"),
    ("docs/performance.md", "made by the benchmark"),
    ("docs/permissions.md", "made by the test of the permissions"),
    ("docs/pictures/", "pictures of one onboarding"),
    (
        "fieldctl/src/summary.rs",
        "event types that are not named there are summarized by their fields",
    ),
    ("fieldctl/src/snapshots/", "made by the test of the summaries"),
    ("fieldctl/tests/", "plays and shows one onboarding"),
    ("functions/sites/tests/goldens/", "golden files"),
    ("tools/bench/", "measured figures and their budget"),
    ("tools/cost/counted/", "counted on the stack"),
    ("tests/model/", "simulates what each step does"),
    ("tests/testkit/tests/rules/table.rs", "breaks single steps to see the rules fail"),
    ("tests/testkit/tests/write_units.rs", "calls each step with its own input"),
    ("tests/tests/disruptions/", "disturbs single steps"),
    ("tests/tests/goldens/", "golden files"),
];

/// Returns the forms of a name in files: `ReserveKits`, `reserve-kits`, `reserve_kits`, `RESERVE_KITS`.
fn forms(name: &str) -> [String; 4] {
    let kebab = kebab(name);
    let snake = kebab.replace('-', "_");
    [name.to_owned(), kebab, snake.clone(), snake.to_uppercase()]
}

/// Returns how many steps a text does not name, neither by the step nor by its undo nor by one of its events.
/// The site's own step does not count, because many texts are about activated sites.
fn unnamed_steps(text: &str) -> usize {
    let steps = STEPS.iter().filter(|step| !step.is_of_site());
    let unnamed = steps.filter(|step| {
        let events = step.events().map(|(event, _)| event);
        let mut names = [step.name, step.undo].into_iter().chain(events);
        !names.any(|name| forms(name).iter().any(|form| text.contains(form.as_str())))
    });
    unnamed.count()
}

fn names_every_step(text: &str) -> bool {
    unnamed_steps(text) == 0
}

/// Returns the text files of the repository with their paths.
fn files() -> Vec<(String, String)> {
    let mut files = Vec::new();
    gather(&root(), "", &mut files);
    assert!(files.len() > 300, "only {} files were found", files.len());
    files
}

fn gather(folder: &Path, prefix: &str, files: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let inside = format!("{prefix}{name}");
        let is_hidden = name.starts_with('.') && ![".ci", ".github"].contains(&name);
        if is_hidden || ["target", "node_modules", "__pycache__"].contains(&name) {
            continue;
        }
        if path.is_dir() {
            gather(&path, &format!("{inside}/"), files);
        } else if let Ok(text) = fs::read_to_string(&path) {
            files.push((inside, text));
        }
    }
}

fn may_list_steps(path: &str) -> Option<&'static str> {
    let excepted = MAY_LIST_STEPS.iter().map(|(excepted, _)| *excepted);
    excepted.into_iter().find(|it| path == *it || it.ends_with('/') && path.starts_with(it))
}

#[test]
fn no_other_file_lists_the_steps() {
    let mut needed = BTreeSet::new();
    for (path, text) in files() {
        // Every service has a template.
        let is_template = path.starts_with("functions/") && path.ends_with("/template.yaml");
        if path == "tests/testkit/tests/steps.rs"
            || path == "CHANGELOG.md"
            || path == "docs/decisions.md"
            || is_template
        {
            continue;
        }
        let excepted = may_list_steps(&path);
        if unnamed_steps(&text) <= 1 {
            // A file that is generated from the deployed stack lacks a new step until it is generated again.
            needed.extend(excepted);
        }
        assert!(
            excepted.is_some() || !names_every_step(&text),
            "{path} names every step of the saga. A new step would have to be added there: read \
             contracts::saga::STEPS instead, or give a reason in {}",
            file!()
        );
    }
    for (path, _) in MAY_LIST_STEPS {
        assert!(needed.contains(path), "the exception {path} is not needed");
    }
}

#[test]
fn a_list_of_steps_is_detected_in_every_form() {
    let list =
        |form: fn(&SagaStep) -> String| STEPS.iter().map(form).collect::<Vec<_>>().join("\n");
    assert!(names_every_step(&list(|step| step.name.to_owned())));
    assert!(names_every_step(&list(SagaStep::undo_function)));
    assert!(names_every_step(&list(|step| step.function().replace('-', "_"))));
    assert!(names_every_step(&list(|step| forms(step.undo)[3].clone())));
    assert!(names_every_step(&list(|step| step.done.to_owned())));
    assert!(!names_every_step(&list(|step| step.name.to_owned()).replace(STEPS[0].name, "")));
}

/// Returns the paths in the table of the checklist.
fn checklist() -> Vec<String> {
    let page = fs::read_to_string(root().join("docs/adding-a-step.md")).expect("the checklist");
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| | "));
    let numbered = rows.filter(|line| line[2..].starts_with(|c: char| c.is_ascii_digit()));
    numbered.filter_map(|line| line.split('`').nth(1)).map(str::to_owned).collect()
}

#[test]
fn each_step_is_in_the_six_places_of_the_checklist() {
    let checklist = checklist();
    assert_eq!(checklist.len(), 6, "{checklist:?}");
    let files = files();
    let functions: Vec<_> = STEPS.iter().flat_map(|step| [step.name, step.undo]).collect();
    for name in functions {
        let function = kebab(name);
        let module = function.replace('-', "_");
        let bin = format!("/src/bin/{function}.rs");
        let service = files.iter().find_map(|(path, _)| {
            path.strip_prefix("functions/")?.strip_suffix(&bin).map(str::to_owned)
        });
        let service = service.unwrap_or_else(|| panic!("no service has {bin}"));
        for place in &checklist {
            let place = place.replace("<service>", &service);
            let place = place.replace("<function>", &function).replace("<module>", &module);
            let file = files.iter().find(|(path, _)| *path == place);
            let (_, text) = file.unwrap_or_else(|| panic!("{name} lacks {place}"));
            let is_machine = place.starts_with("statemachines/");
            let is_sample = place.starts_with("tests/events/");
            assert!(
                is_machine || is_sample || forms(name).iter().any(|form| text.contains(form)),
                "{place} does not name {name}"
            );
        }
        let library = format!("functions/{service}/src/lib.rs");
        let (_, text) = files.iter().find(|(path, _)| *path == library).expect("a library");
        assert!(text.contains(&format!("mod {module};")), "{library} has no module {module}");
    }
}

/// Returns the generated parts of pages: path, name of the part, and its text.
fn parts() -> Vec<(&'static str, &'static str, String)> {
    vec![
        ("README.md", "saga", diagram()),
        ("README.md", "functions", function_table()),
        ("docs/integrating.md", "events", event_types()),
    ]
}

#[test]
fn the_docs_show_the_steps_functions_and_events() {
    for (path, name, part) in parts() {
        let file = root().join(path);
        let page = fs::read_to_string(&file).expect(path);
        let mut expected = with_table(&page, name, &part).expect(path);
        if name == "functions" {
            let count = SERVICES.into_iter().map(|service| functions_of(service).len()).sum();
            expected = with_count(&expected, count);
        }
        if env::var_os("UPDATE_DOCS").is_some() {
            fs::write(&file, &expected).expect(path);
        }
        let found = fs::read_to_string(&file).expect(path);
        assert!(
            found == expected,
            "{path}, part {name}, differs; UPDATE_DOCS=1 writes it. It must be:\n{part}"
        );
    }
}

/// Returns the state machines as a diagram.
fn diagram() -> String {
    let forward = STEPS.map(|step| step.name);
    let back = undo_order().map(|step| step.undo);
    let mut text = "```mermaid\nstateDiagram-v2\n  direction LR\n".to_owned();
    for (machine, id, states, end) in [
        ("site-onboarding", "forward", forward, "ACTIVE"),
        ("site-teardown", "back", back, "REJECTED or DECOMMISSIONED"),
    ] {
        write!(text, "  state \"{machine}\" as {id} {{\n    direction LR\n").expect("text");
        let mut from = "[*]";
        for state in states {
            writeln!(text, "    {from} --> {state}").expect("text");
            from = state;
        }
        write!(text, "    {from} --> [*]: {end}\n  }}\n").expect("text");
    }
    text + "  forward --> back: any step fails, or the site is deleted\n```\n"
}

/// Returns the functions of a service, from its binaries.
fn functions_of(service: &str) -> Vec<String> {
    let folder = root().join("functions").join(service).join("src/bin");
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<_> =
        names.filter_map(|name| name.strip_suffix(".rs").map(str::to_owned)).collect();
    names.sort_unstable();
    names
}

fn function_table() -> String {
    let mut text = "| service | functions |\n|---|---|\n".to_owned();
    for service in SERVICES {
        let functions = functions_of(service);
        if !functions.is_empty() {
            writeln!(text, "| {service} | {} |", functions.join(", ")).expect("text");
        }
    }
    text
}

/// Returns the page with the right number before each ` functions`.
fn with_count(page: &str, count: usize) -> String {
    let mut parts: Vec<String> = page.split(" functions").map(str::to_owned).collect();
    let last = parts.len() - 1;
    for part in &mut parts[..last] {
        let start = part.trim_end_matches(|letter: char| letter.is_ascii_digit()).len();
        if start < part.len() {
            part.replace_range(start.., &count.to_string());
        }
    }
    parts.join(" functions")
}

/// The rows of the table of event types.
struct EventTypes(String);

impl Visitor for EventTypes {
    fn event<E: Event + PartialEq + fmt::Debug>(&mut self) {
        let schemas = events::schemas();
        let schema = schemas.iter().find(|(name, _, _)| *name == E::TYPE).expect("a schema");
        let description = &schema.2.as_value()["$defs"][E::TYPE]["description"];
        let description = description.as_str().expect("a doc comment of the event type");
        let when = description.trim_end_matches('.').replace('\n', " ");
        let (name, source, entity) = (E::TYPE, E::ENTITY.source(), E::ENTITY.name());
        writeln!(self.0, "| `{name}` | `{source}` | {entity} | {when} |").expect("text");
    }
}

fn event_types() -> String {
    let mut types =
        EventTypes("| type | `source` | entity | when |\n|---|---|---|---|\n".to_owned());
    events::visit(&mut types);
    types.0
}
