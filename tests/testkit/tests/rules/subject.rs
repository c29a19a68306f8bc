//! The subject that the rules check, and edits of it.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;
use testkit::template::{Template, machines, root};

/// The templates, the state machines, and the files that must agree with them.
#[derive(Clone)]
pub struct Subject {
    /// The templates of all services, merged.
    pub template: Template,
    /// The template that nests the services.
    pub root_template: Template,
    /// The template of each service, by its name.
    pub services: BTreeMap<String, Template>,
    /// The state machines, by name, such as `site-onboarding`.
    pub machines: BTreeMap<String, Value>,
    /// The files, by their path in the repository.
    pub files: BTreeMap<String, String>,
}

/// The folders that are read, with the endings of the files.
const FOLDERS: [(&str, &[&str]); 10] = [
    (".ci", &["run", "txt"]),
    (".github/workflows", &["yml"]),
    ("fieldctl/src", &["rs"]),
    ("functions", &["rs"]),
    ("shared", &["rs"]),
    ("tests/events", &["json"]),
    ("tools/demo/src", &["rs"]),
    ("tools/local", &["py", "txt", "package-lock.json"]),
    ("tests/src", &["rs"]),
    ("tests/tests", &["rs"]),
];
const FILES: [&str; 6] = [
    "Makefile",
    "README.md",
    "docs/integrating.md",
    "docs/operations.md",
    "samconfig.toml",
    "tests/smoke.sh",
];

impl Subject {
    pub fn read() -> Self {
        let mut files = BTreeMap::new();
        for (folder, endings) in FOLDERS {
            read_files(folder, endings, &mut files);
        }
        for file in FILES {
            let text = fs::read_to_string(root().join(file)).expect("a file of the repository");
            files.insert(file.to_owned(), text);
        }
        let (root_template, services) = (Template::root(), Template::services());
        let template = Template::merge(&root_template, &services);
        Self { template, root_template, services, machines: machines(), files }
    }

    /// Returns the functions by their logical ids.
    pub fn functions(&self) -> BTreeMap<&str, &Value> {
        let functions = self.template.resources("AWS::Serverless::Function").into_iter();
        functions.map(|(id, function)| (id, &function["Properties"])).collect()
    }

    /// Returns a setting of a function: its own, or else the one in `Globals`.
    pub fn setting(&self, function: &str, name: &str) -> &Value {
        let own = &self.template.properties(function)[name];
        if own.is_null() { &self.template.0["Globals"]["Function"][name] } else { own }
    }

    /// Returns a function's timeout in seconds.
    pub fn timeout(&self, function: &str) -> i64 {
        self.setting(function, "Timeout").as_i64().unwrap_or_default()
    }

    /// Returns the event source mappings of queues and streams.
    pub fn mappings(&self) -> BTreeMap<&str, &Value> {
        let mappings = self.template.resources("AWS::Lambda::EventSourceMapping").into_iter();
        mappings.map(|(id, mapping)| (id, &mapping["Properties"])).collect()
    }

    /// Returns the event source mappings of streams.
    pub fn stream_mappings(&self) -> BTreeMap<&str, &Value> {
        let mut mappings = self.mappings();
        mappings.retain(|_, mapping| !self.is(queue_of(mapping), "AWS::SQS::Queue"));
        mappings
    }

    /// Returns whether a resource with this id and type exists.
    pub fn is(&self, id: &str, kind: &str) -> bool {
        self.template.0["Resources"][id]["Type"] == kind
    }

    /// Returns the files under a folder.
    pub fn under(&self, folder: &str) -> impl Iterator<Item = (&str, &str)> {
        let files = self.files.iter().filter(move |(path, _)| path.starts_with(folder));
        files.map(|(path, text)| (path.as_str(), text.as_str()))
    }

    pub fn file(&self, path: &str) -> &str {
        self.files.get(path).map(String::as_str).unwrap_or_default()
    }

    /// Returns every policy statement, with the resource that has it.
    pub fn statements(&self) -> Vec<(&str, &Value)> {
        let mut found = Vec::new();
        for (id, resource) in self.template.0["Resources"].as_object().into_iter().flatten() {
            collect_statements(id, &resource["Properties"], &mut found);
        }
        found
    }

    /// Returns every string in the resources, with the resource that has it.
    pub fn texts(&self) -> Vec<(&str, &str)> {
        let mut found = Vec::new();
        for (id, resource) in self.template.0["Resources"].as_object().into_iter().flatten() {
            collect_texts(id, resource, &mut found);
        }
        found
    }
}

fn read_files(folder: &str, endings: &[&str], files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(root().join(folder)).expect("a folder of the repository") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        let path_in_repository = format!("{folder}/{name}");
        if path.is_dir() {
            if name != "node_modules" && name != "target" {
                read_files(&path_in_repository, endings, files);
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            files.insert(path_in_repository, read(&path));
        }
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn collect_statements<'a>(id: &'a str, value: &'a Value, found: &mut Vec<(&'a str, &'a Value)>) {
    match value {
        Value::Object(members) => {
            match members.get("Statement") {
                Some(Value::Array(statements)) => {
                    found.extend(statements.iter().map(|it| (id, it)));
                }
                // A single statement may be written without a list.
                Some(statement) => found.push((id, statement)),
                None => {}
            }
            members.values().for_each(|value| collect_statements(id, value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| collect_statements(id, value, found)),
        _ => {}
    }
}

fn collect_texts<'a>(id: &'a str, value: &'a Value, found: &mut Vec<(&'a str, &'a str)>) {
    match value {
        Value::Object(members) => {
            members.values().for_each(|value| collect_texts(id, value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| collect_texts(id, value, found)),
        Value::String(text) => found.push((id, text)),
        _ => {}
    }
}

/// Returns the logical id in `!GetAtt X.Arn`.
pub fn resource_of_arn(value: &Value) -> &str {
    value.as_str().and_then(|text| text.strip_suffix(".Arn")).unwrap_or_default()
}

/// Returns the logical id of the queue that a mapping reads.
pub fn queue_of(mapping: &Value) -> &str {
    resource_of_arn(&mapping["EventSourceArn"])
}

/// Returns the logical id of the function whose alias a mapping calls.
pub fn function_of(mapping: &Value) -> &str {
    text(&mapping["FunctionName"]).trim_end_matches(".Alias")
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Returns the strings of a value: a string, or a list of strings. Of an `!If` in the list, it returns both
/// branches.
pub fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        Value::String(text) => vec![text],
        _ => Vec::new(),
    }
}

/// Returns the members of an object, or nothing for another value.
pub fn members(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}

/// Returns the items of a list, or nothing for another value.
pub fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The violations of a rule: the resource or file, and what is wrong with it.
#[derive(Default)]
pub struct Violations(pub Vec<(String, String)>);

impl Violations {
    /// Adds a violation unless the condition holds.
    pub fn check(&mut self, holds: bool, about: impl Into<String>, what: impl Into<String>) {
        if !holds {
            self.0.push((about.into(), what.into()));
        }
    }
}

/// An edit that breaks a rule. A place is `template`, `root`, the name of a service or of a state machine,
/// followed by a JSON pointer. `template` is the merged templates of all services.
#[derive(Debug)]
pub enum Edit {
    /// Removes the value at that place.
    Remove(&'static str),
    /// Sets a value (JSON) at that place.
    Set(&'static str, &'static str),
    /// Replaces the first occurrence of a text in a file.
    Replace(&'static str, &'static str, &'static str),
    /// Removes a file.
    DeleteFile(&'static str),
}

impl Edit {
    pub fn apply(&self, subject: &mut Subject) {
        match self {
            Self::Remove(place) => {
                let (parent, name) = parent(subject, place);
                let removed = match parent {
                    Value::Object(members) => members.remove(&name),
                    Value::Array(items) => Some(items.remove(name.parse().expect("an index"))),
                    _ => None,
                };
                assert!(removed.is_some(), "there is no {place}");
            }
            Self::Set(place, value) => {
                let value: Value = serde_json::from_str(value).expect("JSON");
                let (parent, name) = parent(subject, place);
                match parent {
                    Value::Object(members) => {
                        assert_ne!(members.insert(name, value.clone()), Some(value), "{place}");
                    }
                    Value::Array(items) => items[name.parse::<usize>().expect("an index")] = value,
                    _ => panic!("{place} can't be set"),
                }
            }
            Self::Replace(file, from, to) => {
                let text = subject.files.entry((*file).to_owned()).or_default();
                assert!(text.contains(from), "{file} has no {from:?}");
                *text = text.replacen(from, to, 1);
            }
            Self::DeleteFile(file) => {
                assert!(subject.files.remove(*file).is_some(), "there is no {file}");
            }
        }
    }
}

/// Returns the parent of the value at a place, and the value's name in it.
fn parent<'a>(subject: &'a mut Subject, place: &str) -> (&'a mut Value, String) {
    let (document, pointer) = place.split_once('/').expect("a place in a document");
    let value = match document {
        "template" => &mut subject.template.0,
        "root" => &mut subject.root_template.0,
        name => match subject.services.get_mut(name) {
            Some(service) => &mut service.0,
            None => subject.machines.get_mut(name).expect("a state machine"),
        },
    };
    let (parent, name) = pointer.rsplit_once('/').unwrap_or(("", pointer));
    let parent = if parent.is_empty() { String::new() } else { format!("/{parent}") };
    let holder = value.pointer_mut(&parent).unwrap_or_else(|| panic!("there is no {place}"));
    (holder, name.replace("~1", "/"))
}
