//! The gate of the contracts.
//!
//! `shared/contracts/released/<schema>/<number>.json` are the released schemas. Each current schema in
//! `shared/contracts/schemas/` is among them, apart from its descriptions. The change that adds or changes a schema
//! adds the file. What a commit has there never changes, and each file is compared with the current schema:
//! - An outbound event (`<Type>.v<version>`) must stay compatible in both directions: consumers with an old schema read
//!   new events, and consumers with a new schema read the log.
//! - What Fieldstation receives (all others) must stay compatible in one direction: it accepts what senders with an old
//!   schema send.

mod history;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use jsoncompat::{Role, SchemaDocument, check_compat, explain_compat_failure};
use serde_json::Value;
use sha2::{Digest, Sha256};

pub use crate::history::{HOOK_VARIABLES, WITHDRAWN};
use crate::history::{History, schema};

/// The file with the hashes of the released schemas, in the format of `sha256sum`.
const HASHES: &str = "SHA256SUMS";

/// Who writes the documents of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Fieldstation writes them; others, and later releases, read them.
    Outbound,
    /// Others write them, and Fieldstation reads them.
    Inbound,
}

impl Direction {
    /// Returns the direction of the schema with this name. Only the names of outbound events end with a version.
    #[must_use]
    pub fn of(name: &str) -> Self {
        if name.contains('.') { Self::Outbound } else { Self::Inbound }
    }

    fn roles(self) -> &'static [(Role, &'static str)] {
        const OLD_DATA: (Role, &str) = (Role::Deserializer, "the new schema refuses old documents");
        const NEW_DATA: (Role, &str) = (Role::Serializer, "the old schema refuses new documents");
        match self {
            Self::Outbound => &[OLD_DATA, NEW_DATA],
            Self::Inbound => &[OLD_DATA],
        }
    }
}

/// Returns what breaks if `new` replaces `old`. A change that can't be proven compatible is a problem, too.
#[must_use]
pub fn compare(direction: Direction, old: &Value, new: &Value) -> Vec<String> {
    let (old, new) = match (document(old), document(new)) {
        (Ok(old), Ok(new)) => (old, new),
        (Err(error), _) | (_, Err(error)) => return vec![error],
    };
    let mut problems = Vec::new();
    for (role, consequence) in direction.roles() {
        match check_compat(&old, &new, *role) {
            Ok(true) => {}
            Ok(false) => {
                let reason = explain_compat_failure(&old, &new, *role).ok().flatten();
                let reason = reason.unwrap_or_else(|| "no proof of compatibility".to_owned());
                problems.push(format!("{consequence}: {reason}"));
            }
            Err(error) => problems.push(format!("the schemas can't be compared: {error}")),
        }
    }
    problems
}

fn document(schema: &Value) -> Result<SchemaDocument, String> {
    let mut schema = schema.clone();
    replace_formats(&mut schema);
    SchemaDocument::from_json(&schema).map_err(|error| format!("the schema can't be read: {error}"))
}

/// Replaces each format of a text by a pattern with its name, and removes the formats of numbers.
///
/// jsoncompat proves nothing about formats: it either ignores them or gives up. It compares patterns, and two texts with
/// the same format get the same pattern. The formats of numbers are names of Rust types; `minimum` and `maximum` have
/// their ranges.
fn replace_formats(schema: &mut Value) {
    match schema {
        Value::Object(keywords) => {
            keywords.values_mut().for_each(replace_formats);
            let has_format = keywords.get("format").is_some_and(Value::is_string);
            if has_format && let Some(Value::String(format)) = keywords.remove("format") {
                let types = keywords.get("type");
                let is_text = types.is_some_and(|types| match types {
                    Value::Array(types) => types.contains(&"string".into()),
                    one => one == "string",
                });
                if is_text {
                    let pattern = keywords.get("pattern").and_then(Value::as_str);
                    let pattern = match pattern {
                        Some(pattern) => format!("^{format}$|{pattern}"),
                        None => format!("^{format}$"),
                    };
                    keywords.insert("pattern".to_owned(), pattern.into());
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(replace_formats),
        _ => {}
    }
}

/// The environment variable for a clone without history, such as that of a CI that can't fetch it.
const WITHOUT_HISTORY: &str = "CONTRACTS_WITHOUT_HISTORY";

/// The folders of the schemas.
#[derive(Clone, Debug)]
pub struct Contracts {
    /// The folder `shared/contracts`.
    folder: PathBuf,
    /// The exceptions, like [`WITHDRAWN`].
    withdrawn: &'static [(&'static str, &'static str)],
    /// Whether a history that can't be checked is a problem.
    needs_history: bool,
}

impl Contracts {
    /// Returns the schemas of this repository. With the environment variable [`WITHOUT_HISTORY`], a history that can't be
    /// checked is only reported.
    #[must_use]
    pub fn of_this_repository() -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/contracts");
        let needs_history = std::env::var_os(WITHOUT_HISTORY).is_none();
        Self { needs_history, ..Self::new(folder, WITHDRAWN) }
    }

    /// Returns the schemas in a folder like `shared/contracts`, with exceptions like [`WITHDRAWN`].
    #[must_use]
    pub fn new(
        folder: impl Into<PathBuf>,
        withdrawn: &'static [(&'static str, &'static str)],
    ) -> Self {
        Self { folder: folder.into(), withdrawn, needs_history: true }
    }

    fn released(&self) -> PathBuf {
        self.folder.join("released")
    }

    /// Returns the current schemas by name.
    fn current(&self) -> io::Result<BTreeMap<String, String>> {
        let mut schemas = BTreeMap::new();
        for file in entries(&self.folder.join("schemas"))? {
            let name = file_name(&file).trim_end_matches(".json").to_owned();
            schemas.insert(name, fs::read_to_string(&file)?);
        }
        Ok(schemas)
    }

    /// Returns the released files by their path in the folder `released`, such as `SiteCreated.v1/1.json`.
    fn files(&self) -> io::Result<BTreeMap<String, String>> {
        let mut files = BTreeMap::new();
        for folder in entries(&self.released())?.into_iter().filter(|entry| entry.is_dir()) {
            for file in entries(&folder)? {
                let path = format!("{}/{}", file_name(&folder), file_name(&file));
                files.insert(path, fs::read_to_string(&file)?);
            }
        }
        Ok(files)
    }

    /// Returns all problems: released files that changed, are missing or not listed, and current schemas that are
    /// incompatible or not released.
    ///
    /// # Errors
    /// Fails if a file can't be read.
    pub fn check(&self) -> io::Result<Vec<String>> {
        let (current, files) = (self.current()?, self.files()?);
        let list = fs::read_to_string(self.released().join(HASHES))?;
        let mut problems = unlisted(&list, &files);
        let history = History::read(&self.folder, files.keys());
        match &history {
            Ok(history) => problems.extend(history.lost(self.withdrawn)),
            Err(error) => {
                let problem =
                    format!("the history of the released files can't be checked: {error}");
                if self.needs_history {
                    problems.push(problem);
                } else {
                    eprintln!("warning: {problem}");
                }
            }
        }
        for path in files.keys() {
            let name = schema(path);
            if !current.contains_key(name) {
                problems.push(format!("{path}: schemas/{name}.json is missing"));
            }
        }
        for (name, text) in &current {
            let new = parse(text)?;
            let breaks = incompatible(name, &new, &files)?;
            if breaks.is_empty() && !is_released(name, &new, &files)? {
                problems.push(format!(
                    "schemas/{name}.json is new or changed, and not released; run `make release-schemas`, and commit \
                     what it adds"
                ));
            }
            for (path, problem) in breaks {
                let draft = history.as_ref().is_ok_and(|history| !history.has(path));
                let advice = if draft {
                    "; no commit has this file, so you may delete it and run `make release-schemas`"
                } else {
                    ""
                };
                problems.push(format!("{path}: {problem}{advice}"));
            }
        }
        Ok(problems)
    }

    /// Adds each current schema that is not released and compatible with all released ones, and writes the list of
    /// hashes. Returns the paths of the added files.
    ///
    /// # Errors
    /// Fails if a file can't be read or written.
    pub fn release(&self) -> io::Result<Vec<String>> {
        let mut files = self.files()?;
        let mut added = Vec::new();
        for (name, text) in self.current()? {
            let new = parse(&text)?;
            if is_released(&name, &new, &files)? || !incompatible(&name, &new, &files)?.is_empty() {
                continue;
            }
            let mut number = 1;
            while files.contains_key(&format!("{name}/{number}.json")) {
                number += 1;
            }
            let path = format!("{name}/{number}.json");
            fs::create_dir_all(self.released().join(&name))?;
            fs::write(self.released().join(&path), &text)?;
            files.insert(path.clone(), text);
            added.push(path);
        }
        let hashes = files.iter().map(|(path, text)| format!("{}  {path}\n", hash(text)));
        fs::write(self.released().join(HASHES), hashes.collect::<String>())?;
        Ok(added)
    }
}

/// Returns the released files of a schema, by their paths.
fn released_files<'a>(
    name: &str,
    files: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = (&'a String, &'a String)> {
    files.iter().filter(move |(path, _)| schema(path) == name)
}

/// Returns what breaks if `new` replaces the released files of a schema: the path of each, and the problem.
fn incompatible<'a>(
    name: &str,
    new: &Value,
    files: &'a BTreeMap<String, String>,
) -> io::Result<Vec<(&'a String, String)>> {
    let mut problems = Vec::new();
    for (path, text) in released_files(name, files) {
        let found = compare(Direction::of(name), &parse(text)?, new);
        problems.extend(found.into_iter().map(|problem| (path, problem)));
    }
    Ok(problems)
}

/// Returns whether a released file of a schema is equal to `new`, apart from descriptions.
fn is_released(name: &str, new: &Value, files: &BTreeMap<String, String>) -> io::Result<bool> {
    let new = undescribed(new.clone());
    for (_, text) in released_files(name, files) {
        if undescribed(parse(text)?) == new {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes the descriptions of a schema. A field with the name `description` stays: its schema is an object.
fn undescribed(mut schema: Value) -> Value {
    match &mut schema {
        Value::Object(keywords) => {
            keywords.retain(|keyword, value| keyword != "description" || !value.is_string());
            keywords.values_mut().for_each(|value| *value = undescribed(value.take()));
        }
        Value::Array(values) => {
            values.iter_mut().for_each(|value| *value = undescribed(value.take()));
        }
        _ => {}
    }
    schema
}

/// Returns the released files that differ from the list of hashes.
fn unlisted(list: &str, files: &BTreeMap<String, String>) -> Vec<String> {
    let mut problems = Vec::new();
    let mut listed = BTreeSet::new();
    for line in list.lines() {
        let Some((expected, path)) = line.split_once("  ") else {
            problems.push(format!("{HASHES} has an invalid line: {line}"));
            continue;
        };
        listed.insert(path);
        match files.get(path) {
            None => problems.push(format!("{path} is missing; a released schema must stay")),
            Some(text) if hash(text) != expected => {
                problems.push(format!(
                    "{path} differs from {HASHES}; a released schema must not change"
                ));
            }
            Some(_) => {}
        }
    }
    let new = files.keys().filter(|path| !listed.contains(path.as_str()));
    problems
        .extend(new.map(|path| format!("{path} is not in {HASHES}; run `make release-schemas`")));
    problems
}

fn hash(text: &str) -> String {
    format!("{:x}", Sha256::digest(text))
}

fn parse(text: &str) -> io::Result<Value> {
    serde_json::from_str(text).map_err(io::Error::from)
}

/// Returns the entries of a folder, in the order of their names. A folder that does not exist has none.
fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut entries: Vec<_> = entries.collect::<io::Result<_>>()?;
    entries.sort_unstable();
    Ok(entries)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
