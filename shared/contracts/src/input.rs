//! Parsing of JSON from outside that reports all problems at once.
//!
//! Serde stops at the first problem, and a derived `Deserialize` accepts an array for an object. So input of other
//! systems is read in two steps: the JSON is parsed into a [`JsonValue`], then [`FieldRule`]s read the value and
//! collect [`Problems`]. [`read`] does both.

use std::{borrow::Cow, collections::BTreeSet, fmt, marker::PhantomData, str::FromStr};

use memchr::memmem;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{number, text};

/// The maximum number of problems that are listed for one input. Further problems are only counted.
pub const MAX_PROBLEMS: usize = 100;
/// The maximum length of a line of errors, in characters.
pub const MAX_LINE: usize = 2_000;
/// A number that is not 0 and has no exponent is read as 0 only if it is extremely small. Such a number has at least
/// this many zeros after its decimal point.
const MIN_ZEROS: usize = 300;
/// The maximum number of levels that arrays and objects are nested. It is the limit of `serde_json`.
const MAX_LEVELS: usize = 127;
/// The maximum length of a quotation of the input in a message, in characters.
const MAX_QUOTED: usize = 80;

/// The kind of a problem. The list is short, so refusals can be counted by it. The names are stable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Reason {
    /// The text is empty, is not JSON, or ends too early.
    InvalidJson,
    /// A required field is missing.
    MissingField,
    /// No field or parameter has that name.
    UnknownField,
    /// The value has the wrong type, or is not one of those that are accepted.
    #[default]
    InvalidValue,
    /// A field, sensor or bundle occurs twice.
    Duplicate,
    /// A list is empty or has too many entries.
    WrongCount,
    /// The body, or a part of it, has too many bytes.
    TooLarge,
    /// A sample's time is ahead of the server's clock by more than the limit.
    ClockAhead,
    /// A sample's time is before 1970, or a live sample is older than the maximum age: the sender's clock was never
    /// set.
    ClockNotSet,
    /// A sample is not later than the sample before it.
    OutOfOrder,
    /// All samples are at or after the retirement of their sensor.
    RetiredSensor,
    /// The scope of the credential does not allow this.
    Forbidden,
    /// The bundle is valid, but is not on the stream because the stream is busy.
    StreamBusy,
}

impl Reason {
    /// Returns the name that responses, logs, metrics and counters use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidJson => "InvalidJson",
            Self::MissingField => "MissingField",
            Self::UnknownField => "UnknownField",
            Self::InvalidValue => "InvalidValue",
            Self::Duplicate => "Duplicate",
            Self::WrongCount => "WrongCount",
            Self::TooLarge => "TooLarge",
            Self::ClockAhead => "ClockAhead",
            Self::ClockNotSet => "ClockNotSet",
            Self::OutOfOrder => "OutOfOrder",
            Self::RetiredSensor => "RetiredSensor",
            Self::Forbidden => "Forbidden",
            Self::StreamBusy => "StreamBusy",
        }
    }
}

/// A problem of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// Path of the field, e.g. `sensors[2].unit` or `header Idempotency-Key`. Empty for the input as a whole.
    pub field: String,
    /// What is wrong, and which value is expected.
    pub message: String,
    /// The kind of the problem.
    pub reason: Reason,
}

impl FieldError {
    /// Creates an error of the field at this path, with the reason [`Reason::InvalidValue`].
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into(), reason: Reason::default() }
    }

    /// Returns the error with another reason.
    #[must_use]
    pub fn with_reason(self, reason: Reason) -> Self {
        Self { reason, ..self }
    }

    /// Returns the error with `parent` before its path, for an input that is the field `parent` of a larger input.
    #[must_use]
    pub fn within(self, parent: &str) -> Self {
        let separator = if self.field.is_empty() || self.field.starts_with('[') { "" } else { "." };
        Self { field: format!("{parent}{separator}{}", self.field), ..self }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => f.write_str(&self.message),
            field => write!(f, "{field}: {}", self.message),
        }
    }
}

/// Joins all errors into one line, for a log or a failure's message. The line is truncated to [`MAX_LINE`] characters.
#[must_use]
pub fn join_errors(errors: &[FieldError]) -> String {
    let line = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    truncate(line, MAX_LINE)
}

/// Truncates the text to this number of characters, and marks the cut with ` ...`.
#[must_use]
pub fn truncate(mut text: String, characters: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(characters) {
        text.truncate(end);
        text.push_str(" ...");
    }
    text
}

/// Collects the problems of an input while it is read.
#[derive(Debug, Default)]
pub struct Problems {
    listed: Vec<FieldError>,
    unlisted: usize,
}

impl Problems {
    /// Adds a problem of the field at this path.
    pub fn add(&mut self, at: impl Into<String>, message: impl Into<String>) {
        self.add_as(Reason::default(), at, message);
    }

    /// Adds a problem with this reason.
    pub fn add_as(&mut self, reason: Reason, at: impl Into<String>, message: impl Into<String>) {
        self.push(FieldError::new(at, message).with_reason(reason));
    }

    fn push(&mut self, error: FieldError) {
        if self.listed.len() < MAX_PROBLEMS {
            self.listed.push(error);
        } else {
            self.unlisted += 1;
        }
    }

    /// Adds the problems of a part of the input.
    pub fn extend(&mut self, errors: Vec<FieldError>) {
        for error in errors {
            self.push(error);
        }
    }

    /// Adds the problems of a part that was read apart.
    pub(crate) fn merge(&mut self, part: Self) {
        self.extend(part.listed);
        self.unlisted += part.unlisted;
    }

    /// Returns whether no problem was found so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    /// Returns the value, or the problems. A value with problems is not returned.
    pub fn or<T>(mut self, value: Option<T>) -> Result<T, Vec<FieldError>> {
        if let (Some(value), true) = (value, self.is_empty()) {
            return Ok(value);
        }
        if self.unlisted > 0 {
            let message = format!("has {} more problems; correct these first", self.unlisted);
            self.listed.push(FieldError::new("", message));
        }
        Err(self.listed)
    }
}

/// A JSON value. Unlike `serde_json::Value` it keeps duplicate names of an object.
#[derive(Clone, Debug, PartialEq)]
pub enum JsonValue {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number. An integer beyond 2^53 is rounded.
    Number(f64),
    /// A number that is too large for an `f64`.
    TooLarge,
    /// A number other than 0 that is too close to 0 for an `f64`.
    TooSmall,
    /// A string.
    Text(String),
    /// An array.
    List(Vec<JsonValue>),
    /// An object, in the order of the input.
    Object(Vec<(String, JsonValue)>),
}

impl JsonValue {
    /// Returns a message with the actual and the expected type: `is a string; give ...`
    pub(crate) fn is_not(&self, expected: &str) -> String {
        let kind = match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::TooLarge => "a number that is too large to be read",
            Self::TooSmall => "a number that is too close to 0 to be read",
            Self::Text(_) => "a string",
            Self::List(_) => "an array",
            Self::Object(_) => "an object",
        };
        format!("is {kind}; give {expected}")
    }

    /// Parses a value whose numbers may be out of range. It is slower than `Deserialize`, which refuses numbers that are
    /// too large and reads those that are too close to 0 as 0.
    ///
    /// `levels` is the number of levels that arrays and objects may be nested. A `RawValue` has no limit of its own.
    fn parse_out_of_range(raw: &RawValue, levels: usize) -> serde_json::Result<Self> {
        struct Members(Vec<(String, Box<RawValue>)>);

        impl<'de> Deserialize<'de> for Members {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Reader;

                impl<'de> Visitor<'de> for Reader {
                    type Value = Members;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("an object")
                    }

                    fn visit_map<A: MapAccess<'de>>(
                        self,
                        mut object: A,
                    ) -> Result<Members, A::Error> {
                        let mut members = Vec::new();
                        while let Some(member) = object.next_entry()? {
                            members.push(member);
                        }
                        Ok(Members(members))
                    }
                }

                deserializer.deserialize_map(Reader)
            }
        }

        let json = raw.get();
        match json.as_bytes().first() {
            Some(b'{' | b'[') if levels == 0 => {
                Err(serde_json::Error::custom("recursion limit exceeded"))
            }
            Some(b'{') => {
                let Members(members) = serde_json::from_str(json)?;
                let parsed = |(name, raw): (String, Box<RawValue>)| {
                    Ok((name, Self::parse_out_of_range(&raw, levels - 1)?))
                };
                members.into_iter().map(parsed).collect::<Result<_, _>>().map(Self::Object)
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(json)?;
                let items = items.into_iter().map(|raw| Self::parse_out_of_range(raw, levels - 1));
                items.collect::<Result<_, _>>().map(Self::List)
            }
            Some(b'-' | b'0'..=b'9') => Ok(match json.parse::<f64>() {
                Ok(number) if number.is_infinite() => Self::TooLarge,
                Ok(_) if is_too_small(json) => Self::TooSmall,
                Ok(number) => Self::Number(number),
                Err(_) => serde_json::from_str(json)?,
            }),
            _ => serde_json::from_str(json),
        }
    }

    /// Returns the string, or adds a problem if the value is not a string.
    pub(crate) fn string(&self, at: &str, expected: &str, problems: &mut Problems) -> Option<&str> {
        let Self::Text(text) = self else {
            problems.add(at, self.is_not(expected));
            return None;
        };
        Some(text)
    }
}

impl<'de> Deserialize<'de> for JsonValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = JsonValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<JsonValue, E> {
                Ok(JsonValue::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<JsonValue, E> {
                Ok(JsonValue::Bool(value))
            }

            #[expect(clippy::cast_precision_loss, reason = "documented at the variant")]
            fn visit_i64<E>(self, value: i64) -> Result<JsonValue, E> {
                Ok(JsonValue::Number(value as f64))
            }

            #[expect(clippy::cast_precision_loss, reason = "documented at the variant")]
            fn visit_u64<E>(self, value: u64) -> Result<JsonValue, E> {
                Ok(JsonValue::Number(value as f64))
            }

            fn visit_f64<E>(self, value: f64) -> Result<JsonValue, E> {
                Ok(JsonValue::Number(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<JsonValue, E> {
                Ok(JsonValue::Text(value.to_owned()))
            }

            fn visit_string<E>(self, value: String) -> Result<JsonValue, E> {
                Ok(JsonValue::Text(value))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<JsonValue, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(JsonValue::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<JsonValue, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = object.next_entry()? {
                    members.push(member);
                }
                Ok(JsonValue::Object(members))
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

/// A rule for one value.
pub trait FieldRule {
    /// The type of the parsed value.
    type Value;

    /// Describes a valid value. Messages put the text after "give".
    fn expected(&self) -> String;

    /// Reads the value at this path. Adds a problem if the value breaks the rule. Then it returns what could be read
    /// in spite of the problem, or `None`.
    fn read(&self, tree: &JsonValue, at: &str, problems: &mut Problems) -> Option<Self::Value>;
}

/// What a JSON merge patch (RFC 7396) does to an optional field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// The patch does not have the field. The value stays.
    #[default]
    Keep,
    /// The field is `null`. The value is removed.
    Remove,
    /// The field has a new value.
    Set(T),
}

impl<T> Change<T> {
    /// Returns whether the value stays.
    #[must_use]
    pub fn is_keep(&self) -> bool {
        matches!(self, Self::Keep)
    }

    /// Returns the change with another value.
    #[must_use]
    pub fn map<U>(self, value: impl FnOnce(T) -> U) -> Change<U> {
        match self {
            Self::Keep => Change::Keep,
            Self::Remove => Change::Remove,
            Self::Set(new) => Change::Set(value(new)),
        }
    }
}

impl<T: Clone> Change<T> {
    /// Returns the value after the change.
    #[must_use]
    pub fn applied_to(&self, value: Option<T>) -> Option<T> {
        match self {
            Self::Keep => value,
            Self::Remove => None,
            Self::Set(new) => Some(new.clone()),
        }
    }
}

/// A type that is read from an object.
pub trait Input: Sized {
    /// The names of the fields.
    const FIELDS: &'static [&'static str];
    /// The names of other fields that a sender may expect, each with the reason why it is refused.
    const FIXED: &'static [(&'static str, &'static str)] = &[];

    /// Reads the fields.
    fn read(fields: &Fields<'_>, problems: &mut Problems) -> Option<Self>;
}

/// The rule of an object that is read as a `T`.
#[derive(Debug)]
pub struct Object<T>(PhantomData<T>);

impl<T> Default for Object<T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Input> FieldRule for Object<T> {
    type Value = T;

    fn expected(&self) -> String {
        object_of(T::FIELDS)
    }

    fn read(&self, tree: &JsonValue, at: &str, problems: &mut Problems) -> Option<T> {
        T::read(&Fields::parse_with_fixed(tree, at, T::FIELDS, T::FIXED, problems)?, problems)
    }
}

fn object_of(fields: &[&str]) -> String {
    format!("an object with the fields {}", fields.join(", "))
}

/// The fields of an object.
#[derive(Debug)]
pub struct Fields<'a> {
    at: &'a str,
    members: &'a [(String, JsonValue)],
}

impl<'a> Fields<'a> {
    /// Returns the fields of the object at this path. Adds a problem for each unknown or duplicate name. Adds one
    /// problem and returns `None` if the value is not an object.
    pub fn parse(
        tree: &'a JsonValue,
        at: &'a str,
        known: &[&str],
        problems: &mut Problems,
    ) -> Option<Self> {
        Self::parse_with_fixed(tree, at, known, &[], problems)
    }

    /// Does the same as [`Fields::parse`]. The problem of a field in `fixed` has the reason from there.
    fn parse_with_fixed(
        tree: &'a JsonValue,
        at: &'a str,
        known: &[&str],
        fixed: &[(&str, &str)],
        problems: &mut Problems,
    ) -> Option<Self> {
        let JsonValue::Object(members) = tree else {
            problems.add(at, tree.is_not(&object_of(known)));
            return None;
        };
        let fields = Self { at, members };
        for (index, (name, _)) in members.iter().enumerate() {
            let at = || fields.path(&quoted_name(name));
            if let Some((_, reason)) = fixed.iter().find(|(fixed, _)| fixed == name) {
                problems.add(at(), *reason);
            } else if !known.contains(&name.as_str()) {
                let message = format!("is not known; the fields are {}", known.join(", "));
                problems.add_as(Reason::UnknownField, at(), message);
            } else if members[..index].iter().any(|(before, _)| before == name) {
                problems.add_as(Reason::Duplicate, at(), "is a duplicate; give it once");
            }
        }
        Some(fields)
    }

    /// Returns the fields of the object at this path, which may have any names. Adds a problem for each duplicate name.
    /// Adds one problem and returns `None` if the value is not an object.
    pub fn open(
        tree: &'a JsonValue,
        at: &'a str,
        expected: &str,
        problems: &mut Problems,
    ) -> Option<Self> {
        let JsonValue::Object(members) = tree else {
            problems.add(at, tree.is_not(expected));
            return None;
        };
        let (fields, mut seen) = (Self { at, members }, BTreeSet::new());
        for (name, _) in members {
            if !seen.insert(name) {
                let at = fields.path(&quoted_name(name));
                problems.add_as(Reason::Duplicate, at, "is a duplicate; give it once");
            }
        }
        Some(fields)
    }

    /// Returns all fields in the order of the input.
    pub fn members(&self) -> impl Iterator<Item = (&'a str, &'a JsonValue)> + use<'a> {
        self.members.iter().map(|(name, tree)| (name.as_str(), tree))
    }

    /// Returns the path of the object.
    #[must_use]
    pub fn at(&self) -> &'a str {
        self.at
    }

    /// Returns the path of a field.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        if self.at.is_empty() { name.to_owned() } else { format!("{}.{name}", self.at) }
    }

    fn get(&self, name: &str) -> Option<&'a JsonValue> {
        self.members.iter().find(|(member, _)| member == name).map(|(_, tree)| tree)
    }

    /// Reads a required field. Adds a problem if it is missing.
    pub fn required<R: FieldRule>(
        &self,
        name: &str,
        rule: &R,
        problems: &mut Problems,
    ) -> Option<R::Value> {
        let at = self.path(name);
        if let Some(tree) = self.get(name) {
            return rule.read(tree, &at, problems);
        }
        let message = format!("is missing; give {}", rule.expected());
        problems.add_as(Reason::MissingField, at, message);
        None
    }

    /// Reads a field that may be missing or `null`.
    pub fn optional<R: FieldRule>(
        &self,
        name: &str,
        rule: &R,
        problems: &mut Problems,
    ) -> Option<R::Value> {
        match self.get(name) {
            None | Some(JsonValue::Null) => None,
            Some(tree) => rule.read(tree, &self.path(name), problems),
        }
    }

    /// Reads a field of a JSON merge patch that replaces a required value. It may be missing, but not `null`.
    pub fn replacement<R: FieldRule>(
        &self,
        name: &str,
        rule: &R,
        problems: &mut Problems,
    ) -> Option<R::Value> {
        self.get(name).and_then(|tree| rule.read(tree, &self.path(name), problems))
    }

    /// Reads a field of a JSON merge patch that changes an optional value.
    pub fn change<R: FieldRule>(
        &self,
        name: &str,
        rule: &R,
        problems: &mut Problems,
    ) -> Change<R::Value> {
        match self.get(name) {
            None => Change::Keep,
            Some(JsonValue::Null) => Change::Remove,
            Some(tree) => {
                rule.read(tree, &self.path(name), problems).map_or(Change::Keep, Change::Set)
            }
        }
    }
}

/// Quotes a sender's text for a message: truncated, with control characters escaped.
pub(crate) fn quoted(text: &str) -> String {
    format!("{:?}", truncate(text.to_owned(), MAX_QUOTED))
}

/// Returns an unknown field's name for a message. The name is quoted unless it is a plain word.
#[must_use]
pub fn quoted_name(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !name.is_empty() && name.len() <= MAX_QUOTED && name.bytes().all(plain) {
        name.to_owned()
    } else {
        quoted(name)
    }
}

/// The purpose of a string, which determines whether white space at the ends is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// For people. White space at the ends is allowed, but the string must not be blank.
    Name,
    /// For programs. White space at the ends is not allowed.
    Id,
}

/// The rule of a string of 1 to `max` characters. The value is returned unchanged.
#[derive(Clone, Copy, Debug)]
pub struct Text {
    /// The purpose.
    pub purpose: Purpose,
    /// The maximum length in Unicode characters. White space at the ends counts.
    pub max: usize,
}

impl FieldRule for Text {
    type Value = String;

    fn expected(&self) -> String {
        format!("a string of 1 to {} characters", self.max)
    }

    /// Reads the string. Messages do not quote it, because it may be confidential.
    fn read(&self, tree: &JsonValue, at: &str, problems: &mut Problems) -> Option<String> {
        let value = tree.string(at, &self.expected(), problems)?;
        let length = value.chars().count();
        if length == 0 || length > self.max {
            problems.add(at, format!("has {length} characters; give {}", self.expected()));
        } else if let Some(refused) = text::first_refused(value) {
            problems.add(
                at,
                format!(
                    "contains U+{:04X}; remove control characters and invisible characters",
                    u32::from(refused)
                ),
            );
        } else if text::is_blank(value) {
            problems.add(at, format!("is blank; give {}", self.expected()));
        } else if self.purpose == Purpose::Id && text::has_blank_ends(value) {
            problems.add(at, "begins or ends with white space; leave it out");
        }
        Some(value.to_owned())
    }
}

/// The rule of a string that is parsed. Messages quote it.
pub struct Parsed<T> {
    /// The description of a valid value.
    pub expected: &'static str,
    /// The parser.
    pub parse: fn(&str) -> Option<T>,
}

impl<T: FromStr> Parsed<T> {
    /// Creates the rule of a string that `T` parses.
    #[must_use]
    pub const fn new(expected: &'static str) -> Self {
        Self { expected, parse: |text| text.parse().ok() }
    }
}

impl<T> FieldRule for Parsed<T> {
    type Value = T;

    fn expected(&self) -> String {
        self.expected.to_owned()
    }

    fn read(&self, tree: &JsonValue, at: &str, problems: &mut Problems) -> Option<T> {
        let value = tree.string(at, self.expected, problems)?;
        let parsed = (self.parse)(value);
        if parsed.is_none() {
            problems.add(at, format!("is {}; give {}", quoted(value), self.expected));
        }
        parsed
    }
}

/// The rule of a string from a fixed list.
pub struct OneOf<T: 'static> {
    /// All values.
    pub all: &'static [T],
    /// Returns the string of a value.
    pub name: fn(T) -> &'static str,
}

impl<T: Copy> FieldRule for OneOf<T> {
    type Value = T;

    fn expected(&self) -> String {
        let names: Vec<_> = self.all.iter().map(|one| (self.name)(*one)).collect();
        format!("one of {}", names.join(", "))
    }

    fn read(&self, tree: &JsonValue, at: &str, problems: &mut Problems) -> Option<T> {
        let value = tree.string(at, &self.expected(), problems)?;
        let found = self.all.iter().copied().find(|one| (self.name)(*one) == value);
        if found.is_none() {
            problems.add(at, format!("is {}; give {}", quoted(value), self.expected()));
        }
        found
    }
}

/// The rule of a number that DynamoDB can store.
#[derive(Clone, Copy, Debug)]
pub struct Number {
    /// The minimum.
    pub min: f64,
    /// The maximum.
    pub max: f64,
    /// The quantity and its unit, e.g. `degrees north`.
    pub what: &'static str,
}

impl Number {
    /// Any number that DynamoDB can store.
    pub const ANY: Self =
        Self { min: -number::MAX_MAGNITUDE, max: number::MAX_MAGNITUDE, what: "a number" };
}

impl FieldRule for Number {
    type Value = f64;

    fn expected(&self) -> String {
        format!(
            "{} from {} to {}",
            self.what,
            number::format_number(self.min),
            number::format_number(self.max)
        )
    }

    fn read(&self, tree: &JsonValue, at: &str, problems: &mut Problems) -> Option<f64> {
        let JsonValue::Number(value) = *tree else {
            problems.add(at, tree.is_not(&self.expected()));
            return None;
        };
        if !(self.min..=self.max).contains(&value) {
            let shown = number::format_number(value);
            problems.add(at, format!("is {shown}; give {}", self.expected()));
        } else if !number::is_storable(value) {
            let (value, least) =
                (number::format_number(value), number::format_number(number::MIN_MAGNITUDE));
            let message = "which is too close to zero to be stored; give 0, or at least";
            problems.add(at, format!("is {value}, {message} {least}"));
        }
        Some(value)
    }
}

/// The rule of a whole number.
#[derive(Clone, Copy, Debug)]
pub struct WholeNumber {
    /// The minimum.
    pub min: u32,
    /// The maximum.
    pub max: u32,
}

impl FieldRule for WholeNumber {
    type Value = u32;

    fn expected(&self) -> String {
        format!("a whole number from {} to {}", self.min, self.max)
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in the range")]
    fn read(&self, tree: &JsonValue, at: &str, problems: &mut Problems) -> Option<u32> {
        let JsonValue::Number(value) = *tree else {
            problems.add(at, tree.is_not(&self.expected()));
            return None;
        };
        // JSON Schema counts 2.0 as an integer.
        if (f64::from(self.min)..=f64::from(self.max)).contains(&value) && value.fract() == 0.0 {
            return Some(value as u32);
        }
        problems.add(at, format!("is {}; give {}", number::format_number(value), self.expected()));
        None
    }
}

/// The rule of an array of 1 to `max` values that share one rule.
#[derive(Debug)]
pub struct List<R> {
    /// The maximum number of values.
    pub max: usize,
    /// What the values are, e.g. `sensors`, optionally with a hint.
    pub what: &'static str,
    /// The rule of each value.
    pub item: R,
}

impl<R: FieldRule> FieldRule for List<R> {
    /// An entry is `None` if it could not be read.
    type Value = Vec<Option<R::Value>>;

    fn expected(&self) -> String {
        format!("an array of 1 to {} {}", self.max, self.what)
    }

    fn read(&self, tree: &JsonValue, at: &str, problems: &mut Problems) -> Option<Self::Value> {
        let JsonValue::List(items) = tree else {
            problems.add(at, tree.is_not(&self.expected()));
            return None;
        };
        let count = items.len();
        if count == 0 || count > self.max {
            let message = format!("has {count} entries; give {}", self.expected());
            problems.add_as(Reason::WrongCount, at, message);
        }
        let items = items.iter().take(self.max).enumerate();
        let read = |(index, item)| self.item.read(item, &format!("{at}[{index}]"), problems);
        Some(items.map(read).collect())
    }
}

/// The literals `NaN`, `-Infinity` and `Infinity`, which JSON does not have, each with the text that a sample may have
/// in its place. Python's `json.dumps` writes these literals.
const NON_NUMBERS: [(&str, &str); 3] =
    [("NaN", "\"NAN\""), ("-Infinity", "\"-INF\""), ("Infinity", "\"INF\"")];

/// Replaces the literals `NaN`, `Infinity` and `-Infinity` by texts. One of them would make the whole JSON invalid.
#[must_use]
pub fn quote_non_numbers(json: &str) -> Cow<'_, str> {
    let has = |word: &str| memmem::find(json.as_bytes(), word.as_bytes()).is_some();
    if !has("NaN") && !has("Infinity") {
        return Cow::Borrowed(json);
    }
    let mut quoted = String::with_capacity(json.len() + json.len() / 8);
    let (mut copied, mut in_text, mut is_escaped) = (0, false, false);
    for (at, byte) in json.bytes().enumerate() {
        if in_text {
            in_text = is_escaped || byte != b'"';
            is_escaped = !is_escaped && byte == b'\\';
            continue;
        }
        in_text = byte == b'"';
        let rest = json.get(at..).filter(|_| at >= copied);
        let found =
            NON_NUMBERS.iter().find(|(word, _)| rest.is_some_and(|it| it.starts_with(word)));
        if let Some((word, text)) = found {
            quoted.push_str(&json[copied..at]);
            quoted.push_str(text);
            copied = at + word.len();
        }
    }
    quoted.push_str(&json[copied..]);
    Cow::Owned(quoted)
}

/// Reads JSON text by a rule.
pub fn from_json<R: FieldRule>(json: &str, rule: &R) -> Result<R::Value, Vec<FieldError>> {
    let mut problems = Problems::default();
    let value = match tree(json, &rule.expected()) {
        Ok(tree) => rule.read(&tree, "", &mut problems),
        Err(error) => {
            problems.push(error);
            None
        }
    };
    problems.or(value)
}

/// Parses the text into a tree. The error says why the text is not JSON.
fn tree(json: &str, expected: &str) -> Result<JsonValue, FieldError> {
    let whole = |message: String| FieldError::new("", message).with_reason(Reason::InvalidJson);
    if json.trim().is_empty() {
        return Err(whole(format!("is empty; give {expected}")));
    }
    if json.starts_with('\u{feff}') {
        return Err(whole("begins with a byte order mark; send the JSON without it".to_owned()));
    }
    let tree = match serde_json::from_str(json) {
        Ok(tree) if !has_too_small_number(json) => Ok(tree),
        Err(error) if !is_out_of_range(&error) => Err(error),
        _ => serde_json::from_str::<&RawValue>(json)
            .and_then(|raw| JsonValue::parse_out_of_range(raw, MAX_LEVELS)),
    };
    tree.map_err(|error| whole(format!("is not JSON: {error}")))
}

fn is_out_of_range(error: &serde_json::Error) -> bool {
    error.to_string().starts_with("number out of range")
}

/// Returns whether the text has a number other than 0 that is too close to 0 for an `f64`. A reader of numbers takes
/// it for 0.
pub(crate) fn has_too_small_number(json: &str) -> bool {
    // Only a number with a negative exponent, or with hundreds of zeros, is that small.
    let bytes = json.as_bytes();
    // Every `MIN_ZEROS`-th byte is checked, so each run of `MIN_ZEROS` zeros contains a checked byte.
    let zeros = (0..bytes.len()).step_by(MIN_ZEROS).filter(|at| bytes[*at] == b'0');
    has_too_small_number_at(json, memmem::find_iter(bytes, "e-"))
        || has_too_small_number_at(json, memmem::find_iter(bytes, "E-"))
        || has_too_small_number_at(json, zeros)
}

/// Returns whether a number at one of these byte positions is not 0 but is read as 0. The positions are in ascending
/// order. A number that contains several positions is read once.
fn has_too_small_number_at(json: &str, mut places: impl Iterator<Item = usize>) -> bool {
    let bytes = json.as_bytes();
    let is_part = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
    let mut read = 0;
    places.any(|at| {
        if at < read {
            return false;
        }
        let before = bytes[read..at].iter().rposition(|byte| !is_part(byte));
        let start = before.map_or(read, |before| read + before + 1);
        let end =
            bytes[at..].iter().position(|byte| !is_part(byte)).map_or(bytes.len(), |to| at + to);
        read = end;
        // A number in JSON follows one of these characters or is at the beginning. Text in a string can also follow a
        // space or a comma. Then the result is wrong, but the caller only uses its slower parser.
        let before = bytes[..start].last();
        before.is_none_or(|byte| b"[,: \t\r\n".contains(byte)) && is_too_small(&json[start..end])
    })
}

/// Returns whether the number is not 0 but read as 0.
fn is_too_small(number: &str) -> bool {
    let mantissa = number.split(['e', 'E']).next().unwrap_or_default();
    number.parse() == Ok(0.0) && mantissa.bytes().any(|byte| matches!(byte, b'1'..=b'9'))
}

/// Reads a `T` from JSON text.
pub fn read<T: Input>(json: &str) -> Result<T, Vec<FieldError>> {
    from_json(json, &Object::default())
}
