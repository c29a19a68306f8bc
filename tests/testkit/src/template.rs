//! The templates and the state machines as JSON, for tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

pub use contracts::names::kebab;
use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value};

/// The HTTP methods, and API Gateway's own name for any method.
const METHODS: [&str; 8] =
    ["delete", "get", "head", "options", "patch", "post", "put", "x-amazon-apigateway-any-method"];

/// Returns whether API Gateway itself answers a route, and no function serves it.
#[must_use]
pub fn is_mock(route: &Value) -> bool {
    route["x-amazon-apigateway-integration"]["type"] == "mock"
}

/// Returns the repository's root folder.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A template as JSON, without the tags of intrinsic functions: `!Ref Table` becomes `"Table"`, `!GetAtt Table.Arn`
/// becomes `"Table.Arn"`, `!If [Condition, 1, 2]` becomes `["Condition", 1, 2]`.
#[derive(Clone, Debug)]
pub struct Template(pub Value);

impl Template {
    /// Reads the templates of all services and merges them into one, with the root's metadata and outputs.
    ///
    /// A reference by fixed name to another service's resource becomes a reference by logical id:
    /// `!Sub arn:...:table/${Environment}-events` becomes `"EventsTable.Arn"`.
    ///
    /// # Panics
    /// If a template is not YAML, or if two of them have different resources of the same logical id.
    #[must_use]
    pub fn read() -> Self {
        Self::merge(&Self::root(), &Self::services())
    }

    /// Reads the root template, which nests those of the services.
    ///
    /// # Panics
    /// If it is not YAML.
    #[must_use]
    pub fn root() -> Self {
        Self::file(&root().join("template.yaml"))
    }

    /// Reads the templates of the services, by the services' names.
    ///
    /// # Panics
    /// If one is not YAML.
    #[must_use]
    pub fn services() -> BTreeMap<String, Self> {
        let folders = fs::read_dir(root().join("functions")).expect("the services");
        let templates = folders.filter_map(|entry| {
            let folder = entry.expect("an entry").path();
            let name = folder.file_name()?.to_str()?.to_owned();
            let template = folder.join("template.yaml");
            template.exists().then(|| (name, Self::file(&template)))
        });
        templates.collect()
    }

    fn file(path: &Path) -> Self {
        Self(yaml(
            &fs::read_to_string(path).unwrap_or_else(|it| panic!("{}: {it}", path.display())),
        ))
    }

    /// Merges the templates of the services; see [`Template::read`].
    ///
    /// # Panics
    /// If two of them have different resources of the same logical id.
    #[must_use]
    pub fn merge(root: &Self, services: &BTreeMap<String, Self>) -> Self {
        let mut merged = root.0.clone();
        merged["Resources"] = Value::Object(Map::new());
        for (service, template) in services {
            for section in ["Globals", "Parameters", "Conditions", "Resources", "Outputs"] {
                for (id, value) in template.0[section].as_object().into_iter().flatten() {
                    let before = merged[section][id].take();
                    assert!(
                        section != "Resources" || before.is_null() || before == *value,
                        "{service}: another template has {id} as well"
                    );
                    merged[section][id] = value.clone();
                }
            }
            let accepted = template.0["Mappings"]["AcceptedDuration"].as_object();
            for (function, durations) in accepted.into_iter().flatten() {
                merged["Mappings"]["AcceptedDuration"][function] = durations.clone();
            }
        }
        let names = Names::read(&merged["Resources"]);
        names.resolve(&mut merged["Resources"], "");
        Self(merged)
    }

    /// Returns the other services' resources that each service refers to, by service. They are logical ids of
    /// `merged`.
    #[must_use]
    pub fn foreign_names(
        merged: &Self,
        services: &BTreeMap<String, Self>,
    ) -> BTreeMap<String, BTreeSet<String>> {
        let names = Names::read(&merged.0["Resources"]);
        let foreign = services.iter().map(|(service, template)| {
            let mut resources = template.0["Resources"].clone();
            // A dashboard only contains names. The resources need not exist when it is created.
            if let Some(resources) = resources.as_object_mut() {
                resources.retain(|_, it| it["Type"] != "AWS::CloudWatch::Dashboard");
            }
            names.resolve(&mut resources, "");
            let mut found = BTreeSet::new();
            references(&resources, &mut found);
            found.retain(|id| {
                template.0["Resources"][id].is_null() && !merged.0["Resources"][id].is_null()
            });
            (service.clone(), found)
        });
        foreign.collect()
    }

    /// Returns the resources of this type, by their logical ids.
    #[must_use]
    pub fn resources(&self, kind: &str) -> BTreeMap<&str, &Value> {
        let all = self.0["Resources"].as_object().into_iter().flatten();
        all.filter(|(_, resource)| resource["Type"] == kind)
            .map(|(id, resource)| (id.as_str(), resource))
            .collect()
    }

    /// Returns the properties of the resource with this logical id. Returns null if there is none.
    #[must_use]
    pub fn properties(&self, id: &str) -> &Value {
        &self.0["Resources"][id]["Properties"]
    }

    /// Returns the logical ids of the functions without the suffix `Function`.
    ///
    /// # Panics
    /// If the logical id of a function has no such suffix.
    #[must_use]
    pub fn functions(&self) -> Vec<&str> {
        let functions = self.resources("AWS::Serverless::Function").into_keys();
        functions.map(|id| id.strip_suffix("Function").expect("the suffix Function")).collect()
    }

    /// Returns the routes of the API: a name such as `POST /sites`, the path item, and the operation.
    #[must_use]
    pub fn routes(&self) -> Vec<(String, &Value, &Value)> {
        let paths = &self.properties("Api")["DefinitionBody"]["paths"];
        let paths = paths.as_object().into_iter().flatten();
        let routes = paths.flat_map(|(path, item)| {
            let methods = item.as_object().into_iter().flatten();
            methods.filter(|(method, _)| METHODS.contains(&method.as_str())).map(
                move |(method, route)| (format!("{} {path}", method.to_uppercase()), item, route),
            )
        });
        routes.collect()
    }

    /// Returns the fixed name of a resource without `${Environment}-`. Returns `None` if its name is generated.
    #[must_use]
    pub fn fixed_name(&self, id: &str) -> Option<&str> {
        let resource = &self.0["Resources"][id];
        let name = resource["Properties"][name_property(resource["Type"].as_str()?)?].as_str()?;
        name.strip_prefix(ENVIRONMENT)
    }
}

/// Collects everything that may be a reference to a logical id or a parameter: `X`, `X.Arn`, and `${X.Arn}` within a
/// text.
pub fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => members.values().for_each(|value| references(value, found)),
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        Value::String(text) => {
            let inside = text.split("${").skip(1).map(|rest| rest.split('}').next().unwrap_or(""));
            for reference in inside.chain([text.as_str()]) {
                found.insert(reference.split('.').next().unwrap_or_default().to_owned());
            }
        }
        _ => {}
    }
}

/// The beginning of each fixed name.
const ENVIRONMENT: &str = "${Environment}-";

/// Returns the property with the name of a resource of this type.
fn name_property(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "AWS::DynamoDB::Table" => "TableName",
        "AWS::Events::EventBus"
        | "AWS::Kinesis::Stream"
        | "AWS::SecretsManager::Secret"
        | "AWS::Serverless::StateMachine" => "Name",
        "AWS::S3::Bucket" => "BucketName",
        "AWS::SNS::Topic" => "TopicName",
        "AWS::SQS::Queue" => "QueueName",
        "AWS::Serverless::Function" => "FunctionName",
        _ => return None,
    })
}

/// The uses of fixed names: the text before the name, the resource's type, and the suffix of the equivalent `!Ref` or
/// `!GetAtt`.
const USES: [(&str, &str, &str); 10] = [
    (
        "arn:${AWS::Partition}:lambda:${AWS::Region}:${AWS::AccountId}:function:",
        "AWS::Serverless::Function",
        ".Arn",
    ),
    (
        "arn:${AWS::Partition}:dynamodb:${AWS::Region}:${AWS::AccountId}:table/",
        "AWS::DynamoDB::Table",
        ".Arn",
    ),
    (
        "arn:${AWS::Partition}:events:${AWS::Region}:${AWS::AccountId}:event-bus/",
        "AWS::Events::EventBus",
        ".Arn",
    ),
    (
        "arn:${AWS::Partition}:kinesis:${AWS::Region}:${AWS::AccountId}:stream/",
        "AWS::Kinesis::Stream",
        ".Arn",
    ),
    (
        "arn:${AWS::Partition}:states:${AWS::Region}:${AWS::AccountId}:stateMachine:",
        "AWS::Serverless::StateMachine",
        "",
    ),
    ("arn:${AWS::Partition}:sns:${AWS::Region}:${AWS::AccountId}:", "AWS::SNS::Topic", ""),
    ("arn:${AWS::Partition}:sqs:${AWS::Region}:${AWS::AccountId}:", "AWS::SQS::Queue", ".Arn"),
    ("https://sqs.${AWS::Region}.${AWS::URLSuffix}/${AWS::AccountId}/", "AWS::SQS::Queue", ""),
    ("arn:${AWS::Partition}:s3:::", "AWS::S3::Bucket", ".Arn"),
    // An execution's ARN contains the name of its state machine. The text before it is kept.
    (":execution:", "AWS::Serverless::StateMachine", ".Name"),
];

/// The suffix of a bucket's name, which must be globally unique.
const UNIQUE: &str = "-${AWS::AccountId}-${AWS::Region}";

/// Splits a text that begins with a fixed name (without the environment) into the name and the rest.
fn split_name(text: &str) -> (&str, &str) {
    let is_name = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '-';
    let end = text.find(|it| !is_name(it)).unwrap_or(text.len());
    let bucket = text[..end].trim_end_matches('-').len();
    let end = if text[bucket..].starts_with(UNIQUE) { bucket + UNIQUE.len() } else { end };
    text.split_at(end)
}

/// The logical ids by (type, fixed name without `${Environment}-`).
struct Names(BTreeMap<(String, String), String>);

impl Names {
    fn read(resources: &Value) -> Self {
        let mut names = BTreeMap::new();
        for (id, resource) in resources.as_object().into_iter().flatten() {
            let kind = resource["Type"].as_str().unwrap_or_default();
            let property = name_property(kind).map(|property| &resource["Properties"][property]);
            let name = property.and_then(Value::as_str).and_then(|it| it.strip_prefix(ENVIRONMENT));
            if let Some(name) = name {
                names.insert((kind.to_owned(), name.to_owned()), id.clone());
            }
        }
        Self(names)
    }

    fn id(&self, kind: &str, name: &str) -> Option<&str> {
        self.0.get(&(kind.to_owned(), name.to_owned())).map(String::as_str)
    }

    /// Replaces fixed names by logical ids. `key` is the member that contains the value.
    fn resolve(&self, value: &mut Value, key: &str) {
        match value {
            Value::Object(members) => {
                for (key, value) in members {
                    self.resolve(value, key);
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.resolve(item, key)),
            Value::String(text) if text.contains(ENVIRONMENT) => *text = self.resolved(text, key),
            _ => {}
        }
    }

    fn resolved(&self, text: &str, key: &str) -> String {
        // The text is only a name. Its type follows from the key.
        let kind = match key {
            "EventBusName" | "EVENT_BUS_NAME" => Some("AWS::Events::EventBus"),
            key if key.ends_with("_TABLE") => Some("AWS::DynamoDB::Table"),
            key if key.ends_with("_STREAM") => Some("AWS::Kinesis::Stream"),
            _ => None,
        };
        let name_only = text.strip_prefix(ENVIRONMENT);
        if let Some(id) = kind.zip(name_only).and_then(|(kind, name)| self.id(kind, name)) {
            return id.to_owned();
        }
        let mut resolved = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once(ENVIRONMENT) {
            let (name, mut after_name) = split_name(after);
            let found = USES.iter().find_map(|(prefix, kind, attribute)| {
                let start = before.strip_suffix(prefix)?;
                Some((start, *prefix, self.id(kind, name)?, *attribute))
            });
            if let Some((start, prefix, id, attribute)) = found {
                let kept_prefix = if attribute == ".Name" { prefix } else { "" };
                let alias = after_name.strip_prefix(":live").filter(|_| attribute == ".Arn");
                let attribute = if alias.is_some() { ".Alias" } else { attribute };
                after_name = alias.unwrap_or(after_name);
                resolved += &[start, kept_prefix, "${", id, attribute, "}"].concat();
            } else {
                resolved += &[before, ENVIRONMENT, name].concat();
            }
            rest = after_name;
        }
        resolved.push_str(rest);
        // `!Sub '${Table.Arn}'` is equivalent to `!GetAtt Table.Arn`.
        let single_reference = resolved.strip_prefix("${").and_then(|it| it.strip_suffix('}'));
        match single_reference {
            Some(reference) if !reference.contains(['{', '}']) && reference != "Environment" => {
                reference.to_owned()
            }
            _ => resolved,
        }
    }
}

/// Reads the definitions of the state machines, by their file names without `.asl.json`.
///
/// # Panics
/// If one can't be read.
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

/// Converts a YAML document to JSON, without tags.
///
/// # Panics
/// If it is not YAML.
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
