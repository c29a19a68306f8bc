//! Events that other systems append over HTTP: `CloudEvents` 1.0 in structured JSON mode.
//!
//! As in [`crate::inbound`], nothing here implements `Deserialize`: [`read`] reports all problems at once. The published
//! schema and the rules describe the same constraints; tests compare the two.

use std::collections::{BTreeMap, BTreeSet};

use schemars::{Schema, json_schema};
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use crate::{
    Event, Timestamp,
    events::{self, Visitor},
    inbound::{KITS_DELIVERED, MAX_ID, SITE_REGISTRATION_REQUESTED},
    input::{
        self, FieldError, FieldRule, Fields, JsonValue, Parsed, Problems, Purpose, Reason, Text,
        quoted_name,
    },
    number::format_number,
    open::OpenEntity,
    text,
};

/// The name of the schema.
pub const CLOUD_EVENT: &str = "CloudEvent";

/// The maximum length of an entity type, in characters.
pub const MAX_ENTITY_TYPE: usize = 64;
/// The maximum length of an extension attribute's name, in characters. It is the length that `CloudEvents` recommends.
pub const MAX_EXTENSION_NAME: usize = 20;
/// The maximum number of extension attributes.
pub const MAX_EXTENSIONS: usize = 50;
/// The maximum length of the value of `dataschema` and of an extension attribute, in characters.
pub const MAX_ATTRIBUTE: usize = 1024;

const REQUIRED: [&str; 5] = ["specversion", "id", "source", "type", "subject"];
const OPTIONAL: [&str; 6] =
    ["time", "datacontenttype", "dataschema", "correlationid", "causationid", "data"];

const SPEC_VERSION: Parsed<()> =
    Parsed { expected: "\"1.0\"", parse: |text| (text == "1.0").then_some(()) };
const ID: Text = Text { purpose: Purpose::Id, max: MAX_ID };
const SOURCE: Parsed<String> = Parsed {
    expected: "1 to 128 printable ASCII characters without spaces, such as com.example.lims",
    parse: key_text,
};
/// It is the `detail-type` on the bus, which has at most 128 characters. The type is ASCII, so it has as many bytes as
/// characters.
const TYPE: Parsed<String> = Parsed {
    expected: "1 to 128 printable ASCII characters without spaces, such as com.example.CalibrationDone",
    parse: key_text,
};
const SUBJECT: Parsed<OpenEntity> = Parsed {
    expected: "<entityType>/<entityId>: the type in lower case with a dot, such as acme.instrument, and an id of 1 to \
               128 characters",
    parse: |text| {
        let entity = OpenEntity::parse(text)?;
        let id = &entity.id;
        let is_id = id.chars().count() <= MAX_ID
            && text::first_refused(id).is_none()
            && !text::has_blank_ends(id);
        (is_id && is_entity_type(&entity.kind)).then_some(entity)
    },
};
const TIME: Parsed<Timestamp> =
    Parsed::new("an RFC 3339 time with an offset, such as 2026-01-01T12:00:00Z");
const CONTENT_TYPE: Parsed<()> = Parsed {
    expected: "application/json or another type that ends with +json, of at most 1024 characters without control and \
               invisible characters",
    parse: |text| (is_attribute(text) && is_json(text)).then_some(()),
};
const DATA_SCHEMA: Parsed<()> = Parsed {
    expected: "an absolute URI of at most 1024 characters",
    parse: |text| {
        let (scheme, rest) = text.split_once(':')?;
        let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+.-".contains(&byte));
        let is_uri = is_scheme
            && !rest.is_empty()
            && text.len() <= MAX_ATTRIBUTE
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_uri.then_some(())
    },
};

/// A valid event of another system.
#[derive(Clone, Debug, PartialEq)]
pub struct CloudEvent {
    /// The sender's id of the event, unique within its source.
    pub id: String,
    /// The system that sends the event.
    pub source: String,
    /// The type of the event.
    pub kind: String,
    /// The entity that the event is about: the attribute `subject`. Its type has a dot.
    pub entity: OpenEntity,
    /// The extension attribute `correlationid`.
    pub correlation_id: Option<String>,
    /// The extension attribute `causationid`.
    pub causation_id: Option<String>,
    /// All attributes as sent, without `data` and without those that are null.
    pub attributes: Map<String, Value>,
    /// `data` as JSON text without white space between its tokens, or `null`. Numbers and names are as sent, so no digit
    /// is lost.
    pub data: String,
    /// The canonical JSON of the whole event: sorted names, no white space, no attribute that is null. Two requests with
    /// the same canonical JSON have the same content. Numbers are compared as text: 1.0 and 1 differ.
    pub canonical: String,
}

/// Reads an event from the body of a request.
pub fn read(json: &str) -> Result<CloudEvent, Vec<FieldError>> {
    let attributes = input::from_json(json, &Attributes)?;
    let invalid = |error: serde_json::Error| vec![FieldError::new("", error.to_string())];
    let Body { data } = serde_json::from_str(json).map_err(invalid)?;
    Ok(CloudEvent {
        data: compact(data.map_or("null", RawValue::get)),
        canonical: canonical_event(json).map_err(invalid)?,
        ..attributes
    })
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

/// The rule of an event. It leaves `data` and `canonical` empty, which need the text.
struct Attributes;

impl FieldRule for Attributes {
    type Value = CloudEvent;

    fn expected(&self) -> String {
        format!("one CloudEvent: an object with {}", REQUIRED.join(", "))
    }

    fn read(&self, tree: &JsonValue, at: &str, problems: &mut Problems) -> Option<CloudEvent> {
        let fields = Fields::open(tree, at, &self.expected(), problems)?;
        fields.required("specversion", &SPEC_VERSION, problems);
        let id = fields.required("id", &ID, problems);
        let source = fields.required("source", &SOURCE, problems);
        if source.as_deref().is_some_and(is_reserved) {
            let message = "is reserved: sources that begin with fieldstation or aws are not for other systems; begin \
                           with a name of your own, such as com.example.lims";
            problems.add("source", message);
        }
        let kind = fields.required("type", &TYPE, problems);
        if let Some(message) = kind.as_deref().and_then(refused_type) {
            problems.add("type", message);
        }
        let entity = fields.required("subject", &SUBJECT, problems);
        fields.optional("time", &TIME, problems);
        fields.optional("datacontenttype", &CONTENT_TYPE, problems);
        fields.optional("dataschema", &DATA_SCHEMA, problems);
        let correlation_id = fields.optional("correlationid", &ID, problems);
        let causation_id = fields.optional("causationid", &ID, problems);
        let attributes = attributes(&fields, problems);
        for (_, data) in fields.members().filter(|(name, _)| *name == "data") {
            refuse_duplicates(data, "data", problems);
        }
        Some(CloudEvent {
            id: id?,
            source: source?,
            kind: kind?,
            entity: entity?,
            correlation_id,
            causation_id,
            attributes,
            data: String::new(),
            canonical: String::new(),
        })
    }
}

/// Adds a problem for each duplicate name at any depth. Readers of JSON differ in which of the values they take, so the
/// content of such an event is not defined.
fn refuse_duplicates(tree: &JsonValue, at: &str, problems: &mut Problems) {
    match tree {
        JsonValue::List(items) => {
            for (index, item) in items.iter().enumerate().filter(|(_, item)| is_nested(item)) {
                refuse_duplicates(item, &format!("{at}[{index}]"), problems);
            }
        }
        JsonValue::Object(_) => {
            let Some(fields) = Fields::open(tree, at, "an object", problems) else { return };
            for (name, value) in fields.members().filter(|(_, value)| is_nested(value)) {
                refuse_duplicates(value, &fields.path(&quoted_name(name)), problems);
            }
        }
        _ => {}
    }
}

fn is_nested(value: &JsonValue) -> bool {
    matches!(value, JsonValue::List(_) | JsonValue::Object(_))
}

/// Returns all attributes, and checks those that are extensions.
fn attributes(fields: &Fields<'_>, problems: &mut Problems) -> Map<String, Value> {
    let (mut attributes, mut extensions) = (Map::new(), BTreeSet::new());
    for (name, value) in fields.members() {
        if name == "data" || *value == JsonValue::Null {
            continue;
        }
        let is_known = REQUIRED.contains(&name) || OPTIONAL.contains(&name);
        if !is_known {
            extensions.insert(name);
            check_name(name, problems);
        }
        let value = match value {
            JsonValue::Text(text) => Some(Value::from(text.as_str())),
            JsonValue::Bool(value) => Some(Value::from(*value)),
            JsonValue::Number(number) => whole(*number).map(Value::from),
            _ => None,
        };
        match value {
            Some(Value::String(text)) if !is_known && !is_attribute(&text) => {
                let message = format!(
                    "has {} characters or an invisible one; give a string of at most {MAX_ATTRIBUTE} characters without \
                     control and invisible characters",
                    text.chars().count()
                );
                problems.add(quoted_name(name), message);
            }
            Some(value) => drop(attributes.insert(name.to_owned(), value)),
            None if !is_known => problems.add(quoted_name(name), not_an_extension(fields, name)),
            // The rule of the attribute has reported it.
            None => {}
        }
    }
    if extensions.len() > MAX_EXTENSIONS {
        let count = extensions.len();
        let message = format!(
            "has {count} extension attributes; give at most {MAX_EXTENSIONS}, and put the rest into data"
        );
        problems.add_as(Reason::WrongCount, "", message);
    }
    attributes
}

fn check_name(name: &str, problems: &mut Problems) {
    if name == "data_base64" {
        let message = "is not supported; send JSON in data, or a link to the binary content";
        problems.add_as(Reason::UnknownField, quoted_name(name), message);
        return;
    }
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if !(1..=MAX_EXTENSION_NAME).contains(&name.len()) || !name.bytes().all(good) {
        let message = format!(
            "is not the name of an attribute; give 1 to {MAX_EXTENSION_NAME} lower-case letters and digits, or put the \
             value into data"
        );
        problems.add_as(Reason::UnknownField, quoted_name(name), message);
    }
}

fn not_an_extension(fields: &Fields<'_>, name: &str) -> String {
    let expected = "a string, a boolean or a whole number from -2147483648 to 2147483647, or put the value into data";
    let value = fields.members().find(|(member, _)| *member == name);
    match value {
        Some((_, JsonValue::Number(number))) => {
            format!("is {}; give {expected}", format_number(*number))
        }
        Some((_, value)) => value.is_not(expected),
        None => format!("is missing; give {expected}"),
    }
}

/// Returns the number if it is an Integer of `CloudEvents`: a whole number of 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "in the range")]
fn whole(number: f64) -> Option<i32> {
    let in_range = (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&number);
    (in_range && number.fract() == 0.0).then_some(number as i32)
}

fn is_attribute(text: &str) -> bool {
    text.chars().count() <= MAX_ATTRIBUTE && text::first_refused(text).is_none()
}

/// Returns a text of printable ASCII characters without spaces. Such a text is a part of keys.
fn key_text(text: &str) -> Option<String> {
    let is_valid =
        (1..=MAX_ID).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    is_valid.then(|| text.to_owned())
}

/// Returns whether only Fieldstation and AWS may use a source.
fn is_reserved(source: &str) -> bool {
    let source = source.to_ascii_lowercase();
    ["fieldstation", "aws"].iter().any(|prefix| {
        source
            .strip_prefix(prefix)
            .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_alphanumeric()))
    })
}

/// Returns why an event of this type is not accepted.
fn refused_type(kind: &str) -> Option<String> {
    struct Own<'a>(&'a str, bool);
    impl Visitor for Own<'_> {
        fn event<E: Event + PartialEq + std::fmt::Debug>(&mut self) {
            self.1 |= E::TYPE == self.0;
        }
    }

    // On the bus, later versions of Fieldstation's events have the suffix `.v<n>`.
    let unversioned = match kind.rsplit_once(".v") {
        Some((name, version)) if version.parse::<u32>().is_ok() => name,
        _ => kind,
    };
    match unversioned {
        KITS_DELIVERED | SITE_REGISTRATION_REQUESTED => Some(format!(
            "is {unversioned}, which Fieldstation takes from the event bus only; put it on the bus, or use POST /sites for a site"
        )),
        name => {
            let mut own = Own(name, false);
            events::visit(&mut own);
            own.1.then(|| {
                format!("is {name}, an event of Fieldstation itself; give a type of your own, such as com.example.{name}")
            })
        }
    }
}

/// Returns whether the text is the type of an entity of another system.
fn is_entity_type(text: &str) -> bool {
    let is_word = |word: &str| {
        word.starts_with(|first: char| first.is_ascii_lowercase())
            && word
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    text.len() <= MAX_ENTITY_TYPE && text.contains('.') && text.split('.').all(is_word)
}

/// Returns whether a media type is JSON. Its parameters are not parsed.
fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let Some((group, format)) = kind.split_once('/') else { return false };
    let token = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
    };
    kind.len() <= MAX_ID
        && token(group)
        && token(format)
        && (format == "json" || format.ends_with("+json"))
}

/// Removes the white space between the tokens of valid JSON.
fn compact(json: &str) -> String {
    let (mut compact, mut in_string, mut escaped) =
        (String::with_capacity(json.len()), false, false);
    for character in json.chars() {
        if !in_string && character.is_ascii_whitespace() {
            continue;
        }
        compact.push(character);
        if escaped {
            escaped = false;
        } else if in_string && character == '\\' {
            escaped = true;
        } else if character == '"' {
            in_string = !in_string;
        }
    }
    compact
}

fn canonical_event(json: &str) -> serde_json::Result<String> {
    let mut attributes: BTreeMap<String, &RawValue> = serde_json::from_str(json)?;
    attributes.retain(|_, value| value.get() != "null");
    let mut canonical = String::with_capacity(json.len());
    object(&attributes, &mut canonical)?;
    Ok(canonical)
}

/// Appends valid JSON with sorted names and without white space. The text of numbers is kept.
fn value(json: &str, canonical: &mut String) -> serde_json::Result<()> {
    match json.trim_start().as_bytes().first() {
        Some(b'{') => object(&serde_json::from_str(json)?, canonical)?,
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(json)?;
            canonical.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    canonical.push(',');
                }
                value(item.get(), canonical)?;
            }
            canonical.push(']');
        }
        // The same text can be escaped in several ways.
        Some(b'"') => {
            let text: String = serde_json::from_str(json)?;
            canonical.push_str(&serde_json::to_string(&text)?);
        }
        _ => canonical.push_str(json.trim()),
    }
    Ok(())
}

fn object(members: &BTreeMap<String, &RawValue>, canonical: &mut String) -> serde_json::Result<()> {
    canonical.push('{');
    for (index, (name, member)) in members.iter().enumerate() {
        if index > 0 {
            canonical.push(',');
        }
        canonical.push_str(&serde_json::to_string(name)?);
        canonical.push(':');
        value(member.get(), canonical)?;
    }
    canonical.push('}');
    Ok(())
}

/// Returns the JSON Schema of an event.
#[must_use]
pub fn schema() -> Schema {
    let id = |description: &str| serde_json::json!({ "description": description, "type": "string", "minLength": 1, "maxLength": MAX_ID, "pattern": text::id_pattern() });
    let optional_id = |description: &str| serde_json::json!({ "description": description, "type": ["string", "null"], "minLength": 1, "maxLength": MAX_ID, "pattern": text::id_pattern() });
    let key_text = format!("^[!-~]{{1,{MAX_ID}}}$");
    // The pattern of `subject` is the released one. It accepts an empty id, which [`SUBJECT`] refuses. `make contracts`
    // accepts no narrower pattern for the input of released senders.
    json_schema!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": CLOUD_EVENT,
        "description": "An event of another system: CloudEvents 1.0 in structured JSON mode. It is the body of `POST /events`. \
                        An `id` of a `source` is appended once, even if the request is sent several times.",
        "type": "object",
        "required": REQUIRED,
        "properties": {
            "specversion": { "description": "The version of CloudEvents.", "const": "1.0" },
            "id": id("The sender's id of the event, unique within its `source`."),
            "source": {
                "description": "The system that sends the event. It belongs to the operator that used it first, or to the one that the \
                                environment configures. Sources that begin with `fieldstation` or `aws` are reserved.",
                "type": "string",
                "pattern": &key_text,
                "not": { "pattern": "^([Ff][Ii][Ee][Ll][Dd][Ss][Tt][Aa][Tt][Ii][Oo][Nn]|[Aa][Ww][Ss])([^A-Za-z0-9]|$)" }
            },
            "type": {
                "description": "The type of the event. Fieldstation's own event types are refused.",
                "type": "string",
                "pattern": &key_text
            },
            "subject": {
                "description": "The entity that the event is about, as `<entityType>/<entityId>`. The type has at least one dot, and at \
                                most 64 characters. The id has 1 to 128 characters.",
                "type": "string",
                "pattern": r"^[a-z][a-z0-9-]*(\.[a-z][a-z0-9-]*)+/",
                "maxLength": MAX_ENTITY_TYPE + 1 + MAX_ID
            },
            "time": { "description": "When the event happened, according to the sender. Events are in the order in which they were appended.", "type": ["string", "null"], "format": "date-time" },
            "datacontenttype": { "description": "The media type of `data`: JSON.", "type": ["string", "null"], "maxLength": MAX_ATTRIBUTE },
            "dataschema": { "description": "The URI of the schema of `data`. It is not checked.", "type": ["string", "null"], "minLength": 1, "maxLength": MAX_ATTRIBUTE },
            "correlationid": optional_id("What connects this event with others. `GET /events?correlationId=` lists them."),
            "causationid": optional_id("The id of the event that caused this one."),
            "data": { "description": "The payload: any JSON." }
        },
        "propertyNames": { "pattern": format!("^[a-z0-9]{{1,{MAX_EXTENSION_NAME}}}$") },
        "additionalProperties": {
            "description": "An extension attribute.",
            "type": ["string", "boolean", "integer", "null"],
            "maxLength": MAX_ATTRIBUTE,
            "minimum": i32::MIN,
            "maximum": i32::MAX
        }
    })
}
