//! Generates documents that a published JSON Schema accepts, and documents that break one of its keywords.
//!
//! The schema file determines what is generated, and which keyword each invalid document breaks. Constraints that a
//! schema can't express (`min` below `max`, the order of times) are up to each test.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use contracts::input::quoted_name;
use jsonschema::Validator;
use serde_json::{Map, Value, json};

use crate::rng::Rng;

/// The alphabets of random strings. A string is kept if the schema accepts it.
const ALPHABETS: [&str; 5] = [
    "abcdefgzABCDEFGZ0123456789",
    "aZ0_-",
    "aZ0._:+-",
    "a \"\\/\u{e4}\u{df}\u{200d}\u{6c3}\u{928}\u{6771}\u{a0}\u{1f52c}",
    "a\n\0\u{1b}\u{202e}\u{200b}\u{feff}\u{e0041}",
];
/// The number of attempts before the generator gives up.
const MAX_ATTEMPTS: usize = 10_000;

/// Field, JSON pointer, keyword and new value of a change.
type Change = (String, String, String, Value);

/// A JSON Schema of `shared/contracts/schemas`.
#[derive(Debug)]
pub struct Schema {
    root: Value,
    validator: Validator,
    /// Validators of the schema's strings and numbers, by their schemas. They are cached because compiling a pattern
    /// is slow.
    rules: Mutex<HashMap<String, Arc<Validator>>>,
}

/// A document that breaks one keyword of the schema.
#[derive(Debug)]
pub struct InvalidDocument {
    /// The path of the invalid field, e.g. `sensors[2].unit`. Empty for the whole document.
    pub field: String,
    /// The keyword, and how the document breaks it.
    pub what: String,
    /// The document.
    pub document: Value,
}

impl Schema {
    /// Reads the published schema with this name.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn published(name: &str) -> Self {
        let file =
            format!("{}/../../shared/contracts/schemas/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&file).expect(&file);
        Self::new(serde_json::from_str(&text).expect(&file))
    }

    /// Returns the schema of one of its definitions.
    #[must_use]
    pub fn definition(&self, name: &str) -> Self {
        Self::new(json!({ "$ref": format!("#/$defs/{name}"), "$defs": self.root["$defs"] }))
    }

    fn new(root: Value) -> Self {
        let options = jsonschema::options().should_validate_formats(true);
        let validator = options.build(&root).expect("a schema");
        Self { root, validator, rules: Mutex::default() }
    }

    fn rule(&self, schema: &Value) -> Arc<Validator> {
        let mut rules = self.rules.lock().expect("the cache");
        let rule = rules
            .entry(schema.to_string())
            .or_insert_with(|| Arc::new(jsonschema::validator_for(schema).expect("a schema")));
        Arc::clone(rule)
    }

    /// Returns whether the schema accepts the document.
    #[must_use]
    pub fn accepts(&self, document: &Value) -> bool {
        self.validator.is_valid(document)
    }

    /// Generates a document that the schema accepts.
    ///
    /// # Panics
    /// If the schema has a keyword that the generator does not know.
    #[must_use]
    pub fn document(&self, rng: &mut Rng) -> Value {
        let document = self.value(&self.root, rng);
        let refused = self.validator.iter_errors(&document).next().map(|error| error.to_string());
        assert_eq!(refused, None, "the generator does not support a keyword of the schema");
        document
    }

    fn resolved(&self, schema: &Value) -> Value {
        match schema["$ref"].as_str() {
            Some(reference) => {
                let pointer = reference.strip_prefix('#').expect("a reference within the file");
                let target = self.root.pointer(pointer).expect(reference);
                let mut merged = self.resolved(target);
                let siblings = schema.as_object().expect("a schema").iter();
                for (keyword, value) in siblings.filter(|(keyword, _)| *keyword != "$ref") {
                    merged[keyword] = value.clone();
                }
                merged
            }
            None => schema.clone(),
        }
    }

    /// Returns the schema with one random case merged into it: of `anyOf` for an object or an array, otherwise of
    /// `oneOf`.
    fn chosen(&self, schema: &Value, rng: &mut Rng) -> Value {
        let mut schema = self.resolved(schema);
        let has_parts = schema["properties"].is_object() || schema["type"] == "array";
        let keyword = if has_parts { "anyOf" } else { "oneOf" };
        let Some(cases) = schema[keyword].as_array().cloned() else { return schema };
        schema.as_object_mut().expect("a schema").remove(keyword);
        merge(&mut schema, rng.pick(&cases));
        schema
    }

    fn value(&self, schema: &Value, rng: &mut Rng) -> Value {
        if let Some(values) = self.resolved(schema)["enum"].as_array() {
            return rng.pick(values).clone();
        }
        let schema = self.chosen(schema, rng);
        if let Some(constant) = schema.get("const") {
            return constant.clone();
        }
        let kind = match &schema["type"] {
            Value::Array(kinds) => rng.pick(kinds).clone(),
            kind => kind.clone(),
        };
        match kind.as_str().unwrap_or_default() {
            "null" => Value::Null,
            "object" => self.object(&schema, rng),
            "array" => self.array(&schema, rng),
            "string" => self.string(&schema, rng).into(),
            "number" => self.number(&schema, rng).into(),
            "integer" => {
                let (min, max) = (schema["minimum"].as_u64(), schema["maximum"].as_u64());
                let (min, max) = (min.expect("a minimum"), max.expect("a maximum"));
                (min + rng.below(max - min + 1)).into()
            }
            _ => panic!("unknown type in {schema}"),
        }
    }

    fn object(&self, schema: &Value, rng: &mut Rng) -> Value {
        let mut object = Map::new();
        if let Some(member) = additional(schema) {
            let max = schema["maxProperties"].as_u64().expect("a maximum");
            for _ in 0..rng.below(max + 1) {
                object.insert(self.string(&schema["propertyNames"], rng), self.value(member, rng));
            }
            return object.into();
        }
        let properties = schema["properties"].as_object().expect("properties");
        for (name, property) in properties {
            if is_required(schema, name) || rng.percent(60) {
                object.insert(name.clone(), self.value(property, rng));
            }
        }
        object.into()
    }

    fn array(&self, schema: &Value, rng: &mut Rng) -> Value {
        let (min, max) = counts(schema);
        if let Some(items) = schema["prefixItems"].as_array() {
            let count = rng.in_range(min, max);
            return items.iter().take(count).map(|item| self.value(item, rng)).collect();
        }
        let count = match rng.below(20) {
            0 => min,
            1 if max <= 100 => max,
            _ => rng.in_range(min, max.min(5)),
        };
        (0..count).map(|_| self.value(&schema["items"], rng)).collect()
    }

    fn string(&self, schema: &Value, rng: &mut Rng) -> String {
        match schema["format"].as_str() {
            Some("uuid") => {
                let (high, low) = (rng.number(), rng.number());
                let hex = format!("{high:016x}{low:016x}");
                let groups = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
                return groups.join("-");
            }
            Some("date-time") => {
                let at = contracts::Timestamp::from_millis(
                    i64::try_from(rng.below(1_760_000_000_000)).expect("a time"),
                );
                let at = at.to_string();
                let offset = rng.pick(&["Z", "+00:00", "-11:30", "+14:00"]);
                // The time of a sample may not be more precise than milliseconds. Its schema does not say so.
                let fraction = rng.pick(&["", ".5", ".123", ".123000"]);
                // Shortly after the epoch, an offset could result in a time before it.
                return match &at[..4] {
                    "1970" => at,
                    _ => format!("{}{fraction}{offset}", &at[..19]),
                };
            }
            _ => {}
        }
        let pattern = schema["pattern"].as_str().unwrap_or_default();
        if pattern == contracts::UtcOffset::PATTERN {
            return (*rng.pick(&["Z", "+00:00", "-12:00", "-03:30", "+05:45", "+14:00"]))
                .to_owned();
        }
        if pattern == contracts::readings::LOCAL_TIME_PATTERN {
            let time = json!({ "format": "date-time" });
            return format!(
                "{}{}",
                &self.string(&time, rng)[..19],
                rng.pick(&["", ".5", ".123000"])
            );
        }
        let rule = json!({
            "pattern": schema.get("pattern").unwrap_or(&".*".into()),
            "minLength": schema.get("minLength").unwrap_or(&0.into()),
            "maxLength": schema.get("maxLength").unwrap_or(&255.into()),
        });
        let max = usize::try_from(rule["maxLength"].as_u64().expect("a length")).expect("a length");
        let rule = self.rule(&rule);
        for _ in 0..MAX_ATTEMPTS {
            let alphabet: Vec<_> = rng.pick(&ALPHABETS).chars().collect();
            let length = match rng.below(4) {
                0 => max,
                1 => 64.min(max),
                _ => rng.in_range(1, max),
            };
            let text: String = (0..length).map(|_| *rng.pick(&alphabet)).collect();
            if rule.is_valid(&text.as_str().into()) {
                return text;
            }
        }
        panic!("no random string matches {schema}");
    }

    fn number(&self, schema: &Value, rng: &mut Rng) -> f64 {
        let (min, max) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
        let (min, max) = (min.expect("a minimum"), max.expect("a maximum"));
        let rule = self.rule(schema);
        for _ in 0..MAX_ATTEMPTS {
            let unit = f64::from(u32::try_from(rng.below(1 << 32)).expect("32 bits"))
                / f64::from(u32::MAX);
            let exponent = i32::try_from(rng.below(260)).expect("an exponent") - 134;
            let number = match rng.below(8) {
                0 => min,
                1 => max,
                2 => 0.0,
                3 => *rng.pick(&[1e-130, -1e-130, 1e-131, 7.0, -3.0]),
                4 => (unit - 0.5) * 10_f64.powi(exponent),
                5 => ((unit - 0.5) * 200.0).round(),
                _ => min * (1.0 - unit) + max * unit,
            };
            if rule.is_valid(&number.into()) {
                return number;
            }
        }
        panic!("no random number matches {schema}");
    }

    /// Returns all documents that differ from this one in one place and break one keyword there.
    ///
    /// # Panics
    /// If the schema accepts one of them.
    #[must_use]
    pub fn invalid_documents(&self, document: &Value) -> Vec<InvalidDocument> {
        self.changes(document).into_iter().map(|change| self.apply(document, change)).collect()
    }

    /// Returns one random document of [`Schema::invalid_documents`].
    ///
    /// # Panics
    /// If the schema accepts it.
    #[must_use]
    pub fn random_invalid_document(&self, document: &Value, rng: &mut Rng) -> InvalidDocument {
        let mut changes = self.changes(document);
        self.apply(document, changes.swap_remove(rng.index(changes.len())))
    }

    fn changes(&self, document: &Value) -> Vec<Change> {
        let mut changes = Vec::new();
        self.collect_changes(&self.root, document, "", "", &mut changes);
        changes
    }

    fn apply(&self, document: &Value, (field, pointer, what, value): Change) -> InvalidDocument {
        let mut invalid = document.clone();
        *invalid.pointer_mut(&pointer).expect("a value in the document") = value;
        assert!(
            !self.accepts(&invalid),
            "the schema accepts a document that breaks {what} of {field}"
        );
        InvalidDocument { field, what, document: invalid }
    }

    /// Returns the schema of a value. If the value is an array, the case of `anyOf` that accepts it is merged into the
    /// schema.
    fn case_of(&self, schema: &Value, value: &Value) -> Value {
        let mut schema = schema.clone();
        let cases = schema["anyOf"].as_array().filter(|_| value.is_array()).cloned();
        if let Some(case) = cases.iter().flatten().find(|case| self.rule(case).is_valid(value)) {
            merge(&mut schema, case);
        }
        schema
    }

    /// Collects changes that each break one keyword.
    fn collect_changes(
        &self,
        schema: &Value,
        value: &Value,
        field: &str,
        pointer: &str,
        changes: &mut Vec<Change>,
    ) {
        let schema = self.case_of(&self.resolved(schema), value);
        let mut add = |what: &str, wrong: Value| {
            changes.push((field.to_owned(), pointer.to_owned(), what.to_owned(), wrong));
        };
        add("type: boolean", true.into());
        match value {
            Value::Null => {}
            Value::Bool(_) => unreachable!("no schema has booleans"),
            Value::String(text) => {
                // If the enum contains null, its values mean that a number is missing, so a number is valid too.
                if !schema["enum"].as_array().is_some_and(|values| values.contains(&Value::Null)) {
                    add("type: number", 7.into());
                }
                if schema["pattern"].is_string() {
                    add("pattern: bidirectional override", format!("{text}\u{202e}").into());
                    add("pattern: NUL", format!("\0{text}").into());
                    add("pattern: line feed", format!("{text}\n").into());
                }
                if schema["pattern"].is_string() || schema["minLength"].is_number() {
                    add("minLength", "".into());
                }
                if let Some(max) = schema["maxLength"].as_u64() {
                    let max = usize::try_from(max).expect("a length");
                    add("maxLength", "\u{e4}".repeat(max + 1).into());
                }
                if schema["format"].is_string() || schema["oneOf"].is_array() {
                    add("format, or one of", "nonsense".into());
                }
                if schema.get("pattern").is_none() && schema.get("format").is_none() {
                    add("enum", "nonsense".into());
                }
            }
            Value::Number(_) => {
                add("type: string", "1.5".into());
                if let Some(max) = schema["maximum"].as_f64().filter(|max| *max < f64::MAX) {
                    add("maximum", max.next_up().max(max + 1.0).into());
                }
                if let Some(min) = schema["minimum"].as_f64().filter(|min| *min > f64::MIN) {
                    add("minimum", min.next_down().min(min - 1.0).into());
                }
                if schema["anyOf"].is_array() {
                    add("anyOf: close to zero", 1e-200.into());
                    add("anyOf: close to zero", (-9e-131).into());
                }
            }
            Value::Array(items) => {
                add("type: object", json!({}));
                let prefix = schema["prefixItems"].as_array();
                let (min, max) = counts(&schema);
                if min > 0 {
                    add("minItems", json!(items[..min - 1]));
                }
                if max <= 1_000 && !items.is_empty() {
                    let more = items.iter().cycle().take(max + 1);
                    add("maxItems", more.cloned().collect());
                }
                for (index, item) in items.iter().enumerate() {
                    let schema = prefix.map_or(&schema["items"], |items| &items[index]);
                    let field = format!("{field}[{index}]");
                    let pointer = format!("{pointer}/{index}");
                    self.collect_changes(schema, item, &field, &pointer, changes);
                }
            }
            Value::Object(members) => {
                add("type: array, in order", members.values().cloned().collect());
                let mut add_edited = |name: &str, what: &str, edit: &dyn Fn(&mut Map<_, _>)| {
                    let mut members = members.clone();
                    edit(&mut members);
                    let field = join_path(field, name);
                    changes.push((field, pointer.to_owned(), what.to_owned(), members.into()));
                };
                if let Some(max) = schema["maxProperties"].as_u64() {
                    add_edited("", "maxProperties", &|members| {
                        let more = (0..=max).map(|index| (format!("n{index}"), "red".into()));
                        members.extend(more);
                    });
                } else {
                    add_edited("colour", "additionalProperties", &|members| {
                        members.insert("colour".to_owned(), "red".into());
                    });
                }
                for name in members.keys().filter(|name| is_required(&schema, name)) {
                    add_edited(name, "required", &|members| drop(members.remove(name)));
                }
                for (name, member) in members {
                    let schema = additional(&schema).unwrap_or(&schema["properties"][name]);
                    let field = join_path(field, &quoted_name(name));
                    self.collect_changes(
                        schema,
                        member,
                        &field,
                        &format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1")),
                        changes,
                    );
                }
            }
        }
    }
}

fn join_path(field: &str, name: &str) -> String {
    if field.is_empty() || name.is_empty() {
        format!("{field}{name}")
    } else {
        format!("{field}.{name}")
    }
}

/// Returns the schema of the members of an object that may have any names.
fn additional(schema: &Value) -> Option<&Value> {
    schema.get("additionalProperties").filter(|members| members.is_object())
}

fn is_required(schema: &Value, name: &str) -> bool {
    schema["required"].as_array().is_some_and(|required| required.contains(&name.into()))
}

fn counts(schema: &Value) -> (usize, usize) {
    let count = |keyword: &str| {
        let count = schema[keyword].as_u64().unwrap_or_else(|| panic!("{schema} has no {keyword}"));
        usize::try_from(count).expect("a count")
    };
    (count("minItems"), count("maxItems"))
}

/// Merges the keywords of a case into the schema. If both have a keyword, the case's value wins, because it is
/// narrower.
fn merge(schema: &mut Value, case: &Value) {
    match (schema, case) {
        (Value::Object(schema), Value::Object(case)) => {
            for (keyword, value) in case {
                merge(schema.entry(keyword.clone()).or_insert(json!({})), value);
            }
        }
        (schema, case) => *schema = case.clone(),
    }
}
