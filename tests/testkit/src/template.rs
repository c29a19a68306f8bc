//! `template.yaml` and the state machines, as the tests judge them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value};

/// The repository's folder.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The template as JSON, without the tags of intrinsic functions: `!Ref Table` is `"Table"`,
/// `!GetAtt Table.Arn` is `"Table.Arn"`, `!If [Condition, 1, 2]` is `["Condition", 1, 2]`.
#[derive(Clone, Debug)]
pub struct Template(pub Value);

impl Template {
    /// The one of this repository.
    ///
    /// # Panics
    /// Where it is no YAML.
    #[must_use]
    pub fn read() -> Self {
        let text = fs::read_to_string(root().join("template.yaml")).expect("template.yaml");
        Self(yaml(&text))
    }

    /// The resources of that type, by their logical ids.
    #[must_use]
    pub fn resources(&self, kind: &str) -> BTreeMap<&str, &Value> {
        let all = self.0["Resources"].as_object().into_iter().flatten();
        all.filter(|(_, resource)| resource["Type"] == kind)
            .map(|(id, resource)| (id.as_str(), resource))
            .collect()
    }

    /// The properties of the resource with that logical id; null where there is none.
    #[must_use]
    pub fn properties(&self, id: &str) -> &Value {
        &self.0["Resources"][id]["Properties"]
    }

    /// The functions, without `Function` behind.
    ///
    /// # Panics
    /// Where the logical id of a function does not end so.
    #[must_use]
    pub fn functions(&self) -> Vec<&str> {
        let functions = self.resources("AWS::Serverless::Function").into_keys();
        functions.map(|id| id.strip_suffix("Function").expect("the suffix Function")).collect()
    }
}

/// The definitions of the state machines, by their files' names without `.asl.json`.
///
/// # Panics
/// Where one can't be read.
#[must_use]
pub fn machines() -> BTreeMap<String, Value> {
    let folder = fs::read_dir(root().join("statemachines")).expect("the state machines");
    folder
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let text = fs::read_to_string(&path).expect("a state machine");
            let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
            let name = name.strip_suffix(".asl.json").expect("only state machines");
            (name.to_owned(), serde_json::from_str(&text).expect("JSON"))
        })
        .collect()
}

/// A YAML document as JSON, without tags.
///
/// # Panics
/// Where it is none.
#[must_use]
pub fn yaml(text: &str) -> Value {
    let documents = Yaml::load_from_str(text).expect("YAML");
    documents.first().map(json).unwrap_or_default()
}

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

/// `StoreReadings` as `store-readings`.
#[must_use]
pub fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for (index, letter) in name.char_indices() {
        if letter.is_uppercase() && index > 0 {
            kebab.push('-');
        }
        kebab.push(letter.to_ascii_lowercase());
    }
    kebab
}
