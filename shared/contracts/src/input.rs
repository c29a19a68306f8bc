//! Reads JSON from outside and names everything that is wrong with it at once.
//!
//! Serde stops at the first problem and takes an array for an object. What other systems send is
//! therefore read in two steps: the JSON into a [`Tree`], and the tree by [`Rule`]s that collect
//! [`Problems`]. [`read`] does both.

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, SeqAccess, Visitor},
};

use crate::{number, text};

/// More problems of one input than this are counted, not listed.
pub const MAX_PROBLEMS: usize = 100;
/// The longest line of errors, in characters.
pub const MAX_LINE: usize = 2_000;
/// The longest part of an input that a message quotes, in characters.
const MAX_QUOTED: usize = 80;

/// The kind of a problem: a short list, so that refusals can be counted by it. The names are stable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The text is empty, is not JSON, or ends too early.
    InvalidJson,
    /// A mandatory field is missing.
    MissingField,
    /// No field or parameter has that name.
    UnknownField,
    /// The value has the wrong type, or is not one of those that are accepted.
    #[default]
    InvalidValue,
    /// The same field, sensor or bundle is there twice.
    Duplicate,
    /// A list is empty or has too many entries.
    WrongCount,
    /// The body, or a part of it, has too many bytes.
    TooLarge,
    /// A sample's time is ahead of our clock.
    ClockAhead,
    /// A sample's time is before 1970: the sender's clock was never set.
    ClockNotSet,
    /// A sample is not later than the sample before it.
    OutOfOrder,
}

impl Reason {
    /// The name, as logs, metrics and counters have it.
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
        }
    }
}

/// One thing that is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// Path of the field, e.g. `sensors[2].unit`, or `header Idempotency-Key`; empty for the whole.
    pub field: String,
    /// What is wrong with it and what would be right.
    pub message: String,
    /// The kind of the problem; not part of an answer.
    #[serde(skip)]
    pub reason: Reason,
}

impl FieldError {
    /// An error of the field at that path, with the reason [`Reason::InvalidValue`].
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into(), reason: Reason::default() }
    }

    /// The same error for another reason.
    #[must_use]
    pub fn because(self, reason: Reason) -> Self {
        Self { reason, ..self }
    }

    /// The same error in a larger input, where this one was read from the field `parent`.
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

/// All errors in one line, for a log or a failure's message, cut off where it gets too long.
#[must_use]
pub fn in_one_line(errors: &[FieldError]) -> String {
    let line = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    cut(line, MAX_LINE)
}

/// The text, cut off behind that many characters.
#[must_use]
pub fn cut(mut text: String, characters: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(characters) {
        text.truncate(end);
        text.push_str(" ...");
    }
    text
}

/// What is wrong with an input, as it is being read.
#[derive(Debug, Default)]
pub struct Problems {
    listed: Vec<FieldError>,
    unlisted: usize,
}

impl Problems {
    /// Adds a problem of the field at that path.
    pub fn add(&mut self, at: impl Into<String>, message: impl Into<String>) {
        self.add_as(Reason::default(), at, message);
    }

    /// Adds a problem of that kind.
    pub fn add_as(&mut self, reason: Reason, at: impl Into<String>, message: impl Into<String>) {
        self.push(FieldError::new(at, message).because(reason));
    }

    fn push(&mut self, error: FieldError) {
        if self.listed.len() < MAX_PROBLEMS {
            self.listed.push(error);
        } else {
            self.unlisted += 1;
        }
    }

    /// Adds those of a part of the input.
    pub fn extend(&mut self, errors: Vec<FieldError>) {
        for error in errors {
            self.push(error);
        }
    }

    /// Whether nothing is wrong so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    /// The value, or what is wrong. A value with problems is not given out.
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

/// A JSON value. Unlike `serde_json::Value` it keeps a name that an object has twice.
#[derive(Clone, Debug, PartialEq)]
pub enum Tree {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number; an integer beyond 2^53 is rounded.
    Number(f64),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Tree>),
    /// An object, in the order of the input.
    Object(Vec<(String, Tree)>),
}

impl Tree {
    /// Says what it is and what would be right: `is a string; give ...`
    pub(crate) fn is_not(&self, expected: &str) -> String {
        let kind = match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "an array",
            Self::Object(_) => "an object",
        };
        format!("is {kind}; give {expected}")
    }

    /// The string that it is, or a problem.
    pub(crate) fn string(&self, at: &str, expected: &str, problems: &mut Problems) -> Option<&str> {
        let Self::Text(text) = self else {
            problems.add(at, self.is_not(expected));
            return None;
        };
        Some(text)
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Tree;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
                Ok(Tree::Bool(value))
            }

            #[expect(clippy::cast_precision_loss, reason = "documented at the variant")]
            fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
                Ok(Tree::Number(value as f64))
            }

            #[expect(clippy::cast_precision_loss, reason = "documented at the variant")]
            fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
                Ok(Tree::Number(value as f64))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
                Ok(Tree::Number(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
                Ok(Tree::Text(value.to_owned()))
            }

            fn visit_string<E>(self, value: String) -> Result<Tree, E> {
                Ok(Tree::Text(value))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tree, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Tree::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Tree, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = object.next_entry()? {
                    members.push(member);
                }
                Ok(Tree::Object(members))
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

/// What one value has to be.
pub trait Rule {
    /// What the value becomes.
    type Value;

    /// What would be right, as it follows "give" in a message.
    fn expected(&self) -> String;

    /// Reads the value at that path. Where it is not as the rule says, adds a problem and returns
    /// what could be read in spite of it, or `None`.
    fn read(&self, tree: &Tree, at: &str, problems: &mut Problems) -> Option<Self::Value>;
}

/// A type that is read from an object.
pub trait Input: Sized {
    /// The names of its fields.
    const FIELDS: &'static [&'static str];

    /// Reads its fields.
    fn read(fields: &Fields<'_>, problems: &mut Problems) -> Option<Self>;
}

/// The rule of an object that becomes a `T`.
#[derive(Debug)]
pub struct Object<T>(PhantomData<T>);

impl<T> Default for Object<T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Input> Rule for Object<T> {
    type Value = T;

    fn expected(&self) -> String {
        object_of(T::FIELDS)
    }

    fn read(&self, tree: &Tree, at: &str, problems: &mut Problems) -> Option<T> {
        T::read(&Fields::of(tree, at, T::FIELDS, problems)?, problems)
    }
}

fn object_of(fields: &[&str]) -> String {
    format!("an object with the fields {}", fields.join(", "))
}

/// An object's fields while they are read.
#[derive(Debug)]
pub struct Fields<'a> {
    at: &'a str,
    members: &'a [(String, Tree)],
}

impl<'a> Fields<'a> {
    /// The fields of the object at that path. Adds a problem for each name that is unknown or there
    /// twice, or one where it is no object.
    pub fn of(
        tree: &'a Tree,
        at: &'a str,
        known: &[&str],
        problems: &mut Problems,
    ) -> Option<Self> {
        let Tree::Object(members) = tree else {
            problems.add(at, tree.is_not(&object_of(known)));
            return None;
        };
        let fields = Self { at, members };
        for (index, (name, _)) in members.iter().enumerate() {
            let at = || fields.path(&quoted_name(name));
            if !known.contains(&name.as_str()) {
                let message = format!("is not known; the fields are {}", known.join(", "));
                problems.add_as(Reason::UnknownField, at(), message);
            } else if members[..index].iter().any(|(before, _)| before == name) {
                problems.add_as(Reason::Duplicate, at(), "is there twice; give it once");
            }
        }
        Some(fields)
    }

    /// The path of one of its fields.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        if self.at.is_empty() { name.to_owned() } else { format!("{}.{name}", self.at) }
    }

    fn get(&self, name: &str) -> Option<&'a Tree> {
        self.members.iter().find(|(member, _)| member == name).map(|(_, tree)| tree)
    }

    /// A field that has to be there.
    pub fn required<R: Rule>(
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

    /// A field that may be missing or `null`.
    pub fn optional<R: Rule>(
        &self,
        name: &str,
        rule: &R,
        problems: &mut Problems,
    ) -> Option<R::Value> {
        match self.get(name) {
            None | Some(Tree::Null) => None,
            Some(tree) => rule.read(tree, &self.path(name), problems),
        }
    }
}

/// As much of a sender's text as a message may quote, with control characters escaped.
pub(crate) fn quoted(text: &str) -> String {
    format!("{:?}", cut(text.to_owned(), MAX_QUOTED))
}

/// An unknown field's name: quoted unless it is a plain word.
fn quoted_name(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !name.is_empty() && name.len() <= MAX_QUOTED && name.bytes().all(plain) {
        name.to_owned()
    } else {
        quoted(name)
    }
}

/// What a string is for, which decides about white space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// For people: it may have white space around it, and has to show something.
    Name,
    /// For programs: no white space around it.
    Id,
}

/// A string of 1 to `max` characters, as the sender wrote it.
#[derive(Clone, Copy, Debug)]
pub struct Text {
    /// What it is for.
    pub purpose: Purpose,
    /// Unicode characters, white space around it included.
    pub max: usize,
}

impl Rule for Text {
    type Value = String;

    fn expected(&self) -> String {
        format!("a string of 1 to {} characters", self.max)
    }

    /// The value itself is not quoted: it may be confidential.
    fn read(&self, tree: &Tree, at: &str, problems: &mut Problems) -> Option<String> {
        let value = tree.string(at, &self.expected(), problems)?;
        let length = value.chars().count();
        if length == 0 || length > self.max {
            problems.add(at, format!("has {length} characters; give {}", self.expected()));
        } else if let Some(refused) = text::first_refused(value) {
            problems.add(
                at,
                format!(
                    "holds U+{:04X}; leave out control characters and characters that don't show",
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

/// A string that is parsed. A message quotes it.
pub struct Parsed<T> {
    /// What would be right.
    pub expected: &'static str,
    /// The parser.
    pub parse: fn(&str) -> Option<T>,
}

impl<T: FromStr> Parsed<T> {
    /// A string that `T` reads.
    #[must_use]
    pub const fn new(expected: &'static str) -> Self {
        Self { expected, parse: |text| text.parse().ok() }
    }
}

impl<T> Rule for Parsed<T> {
    type Value = T;

    fn expected(&self) -> String {
        self.expected.to_owned()
    }

    fn read(&self, tree: &Tree, at: &str, problems: &mut Problems) -> Option<T> {
        let value = tree.string(at, self.expected, problems)?;
        let parsed = (self.parse)(value);
        if parsed.is_none() {
            problems.add(at, format!("is {}; give {}", quoted(value), self.expected));
        }
        parsed
    }
}

/// One of a few strings.
pub struct Choice<T: 'static> {
    /// All of them.
    pub all: &'static [T],
    /// The string of each.
    pub name: fn(T) -> &'static str,
}

impl<T: Copy> Rule for Choice<T> {
    type Value = T;

    fn expected(&self) -> String {
        let names: Vec<_> = self.all.iter().map(|one| (self.name)(*one)).collect();
        format!("one of {}", names.join(", "))
    }

    fn read(&self, tree: &Tree, at: &str, problems: &mut Problems) -> Option<T> {
        let value = tree.string(at, &self.expected(), problems)?;
        let found = self.all.iter().copied().find(|one| (self.name)(*one) == value);
        if found.is_none() {
            problems.add(at, format!("is {}; give {}", quoted(value), self.expected()));
        }
        found
    }
}

/// A number that a table can hold.
#[derive(Clone, Copy, Debug)]
pub struct Number {
    /// The least that is right.
    pub min: f64,
    /// The most that is right.
    pub max: f64,
    /// What it counts, e.g. `degrees north`.
    pub what: &'static str,
}

impl Number {
    /// Any number that a table can hold.
    pub const ANY: Self =
        Self { min: -number::MAX_MAGNITUDE, max: number::MAX_MAGNITUDE, what: "a number" };
}

impl Rule for Number {
    type Value = f64;

    fn expected(&self) -> String {
        format!("{} from {} to {}", self.what, number::shown(self.min), number::shown(self.max))
    }

    fn read(&self, tree: &Tree, at: &str, problems: &mut Problems) -> Option<f64> {
        let Tree::Number(value) = *tree else {
            problems.add(at, tree.is_not(&self.expected()));
            return None;
        };
        if !(self.min..=self.max).contains(&value) {
            let shown = number::shown(value);
            problems.add(at, format!("is {shown}; give {}", self.expected()));
        } else if !number::fits(value) {
            let (value, least) = (number::shown(value), number::shown(number::MIN_MAGNITUDE));
            let message = "which is too close to zero to be stored; give 0, or at least";
            problems.add(at, format!("is {value}, {message} {least}"));
        }
        Some(value)
    }
}

/// A whole number.
#[derive(Clone, Copy, Debug)]
pub struct Whole {
    /// The least that is right.
    pub min: u32,
    /// The most that is right.
    pub max: u32,
}

impl Rule for Whole {
    type Value = u32;

    fn expected(&self) -> String {
        format!("a whole number from {} to {}", self.min, self.max)
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in the range")]
    fn read(&self, tree: &Tree, at: &str, problems: &mut Problems) -> Option<u32> {
        let Tree::Number(value) = *tree else {
            problems.add(at, tree.is_not(&self.expected()));
            return None;
        };
        // As in JSON Schema, 2.0 is a whole number.
        if (f64::from(self.min)..=f64::from(self.max)).contains(&value) && value.fract() == 0.0 {
            return Some(value as u32);
        }
        problems.add(at, format!("is {}; give {}", number::shown(value), self.expected()));
        None
    }
}

/// An array of 1 to `max` values of one rule.
#[derive(Debug)]
pub struct List<R> {
    /// The most values.
    pub max: usize,
    /// What the values are, e.g. `sensors`; more may follow.
    pub what: &'static str,
    /// The rule of each value.
    pub item: R,
}

impl<R: Rule> Rule for List<R> {
    /// `None` stands for what could not be read.
    type Value = Vec<Option<R::Value>>;

    fn expected(&self) -> String {
        format!("an array of 1 to {} {}", self.max, self.what)
    }

    fn read(&self, tree: &Tree, at: &str, problems: &mut Problems) -> Option<Self::Value> {
        let Tree::List(items) = tree else {
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

/// Reads JSON text by a rule.
pub fn from_json<R: Rule>(json: &str, rule: &R) -> Result<R::Value, Vec<FieldError>> {
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

/// The text as a tree; an error says why it is no JSON.
fn tree(json: &str, expected: &str) -> Result<Tree, FieldError> {
    let whole = |message: String| FieldError::new("", message).because(Reason::InvalidJson);
    if json.trim().is_empty() {
        return Err(whole(format!("is empty; give {expected}")));
    }
    if json.starts_with('\u{feff}') {
        return Err(whole("begins with a byte order mark; send the JSON without it".to_owned()));
    }
    let error = match serde_json::from_str(json) {
        Ok(tree) => return Ok(tree),
        Err(error) => error,
    };
    // Once more with the path, which costs as much as reading.
    let mut deserializer = serde_json::Deserializer::from_str(json);
    match serde_path_to_error::deserialize::<_, Tree>(&mut deserializer) {
        Err(at) if at.inner().to_string().starts_with("number out of range") => {
            let path = at.path().to_string();
            let field = if path == "." { String::new() } else { path };
            let message = "is a number that is too large to be read; give a smaller one".to_owned();
            Err(FieldError::new(field, message))
        }
        _ => Err(whole(format!("is not JSON: {error}"))),
    }
}

/// Reads a `T` from JSON text.
pub fn read<T: Input>(json: &str) -> Result<T, Vec<FieldError>> {
    from_json(json, &Object::default())
}
