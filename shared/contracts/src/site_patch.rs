//! The body of `PATCH /sites/{siteId}`: a JSON merge patch (RFC 7396).
//!
//! As in [`crate::inbound`], no type implements `Deserialize`: [`crate::input`] reads them, because it reports all
//! problems at once.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::json;

use crate::{
    Contact, Location,
    inbound::MAX_NAME,
    input::{Change, FieldRule, Fields, Input, JsonValue, Object, Problems, Purpose, Text},
    site, text, utc_offset,
};

/// The name of the schema of [`SitePatch`].
pub const SITE_PATCH: &str = "SitePatch";

/// The maximum length of an e-mail address, in characters (RFC 5321).
pub const MAX_EMAIL: usize = 254;
/// The maximum length of a telephone number, in characters.
pub const MAX_PHONE: usize = 40;
/// The characters of a telephone number other than digits.
const PHONE_SIGNS: &str = "+()./#* -";

const NAME: Text = Text { purpose: Purpose::Name, max: MAX_NAME };

/// Changes of a site. A field that is missing stays as it is.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SitePatch {
    /// The name of the site: 1 to 200 characters, not blank, without control or invisible characters. Leading and
    /// trailing white space is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = MAX_NAME), extend("pattern" = text::name_pattern()))]
    pub name: Option<String>,
    /// Whom to contact about the site. `null` removes the contact. It is personal data, which is in no event.
    #[serde(default, skip_serializing_if = "Change::is_keep")]
    #[schemars(schema_with = "contact")]
    pub contact: Change<ContactPatch>,
    /// The location of the site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LocationPatch")]
    pub location: Option<LocationPatch>,
}

/// Changes of a contact. `null` removes a field. `Debug` hides the values, because a contact must not be logged.
#[derive(Clone, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContactPatch {
    /// The name of the person or the office: 1 to 200 characters, not blank, without control or invisible characters.
    /// Leading and trailing white space is removed.
    #[serde(default, skip_serializing_if = "Change::is_keep")]
    #[schemars(with = "Option<String>", length(min = 1, max = MAX_NAME), extend("pattern" = text::name_pattern()))]
    pub name: Change<String>,
    /// The e-mail address: up to 254 characters, one `@`, no white space.
    #[serde(default, skip_serializing_if = "Change::is_keep")]
    #[schemars(with = "Option<String>", length(max = MAX_EMAIL), extend("pattern" = text::email_pattern()))]
    pub email: Change<String>,
    /// The telephone number: up to 40 digits, spaces and `+ ( ) - . / # *`, with at least one digit.
    #[serde(default, skip_serializing_if = "Change::is_keep")]
    #[schemars(with = "Option<String>", length(max = MAX_PHONE), extend("pattern" = phone_pattern()))]
    pub phone: Change<String>,
}

/// Changes of a location. None of the three coordinates can be removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocationPatch {
    /// The latitude in degrees north, from -90 to 90.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "site::latitude")]
    pub latitude: Option<f64>,
    /// The longitude in degrees east, from -180 to 180.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "site::longitude")]
    pub longitude: Option<f64>,
    /// The elevation in metres above mean sea level, from -500 to 9000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "site::elevation_m")]
    pub elevation_m: Option<f64>,
}

impl SitePatch {
    /// Returns the contact after the change. A contact without any field is removed.
    #[must_use]
    pub fn contact_after(&self, current: Option<&Contact>) -> Option<Contact> {
        let patch = match &self.contact {
            Change::Keep => return current.cloned(),
            Change::Remove => return None,
            Change::Set(patch) => patch,
        };
        let Contact { name, email, phone } = current.cloned().unwrap_or_default();
        let contact = Contact {
            name: patch.name.applied_to(name),
            email: patch.email.applied_to(email),
            phone: patch.phone.applied_to(phone),
        };
        Some(contact).filter(|contact| !contact.is_empty())
    }

    /// Returns the location after the change.
    #[must_use]
    pub fn location_after(&self, current: Location) -> Location {
        let patch = self.location.unwrap_or_default();
        Location {
            latitude: patch.latitude.unwrap_or(current.latitude),
            longitude: patch.longitude.unwrap_or(current.longitude),
            elevation_m: patch.elevation_m.unwrap_or(current.elevation_m),
        }
    }
}

/// Prints a placeholder, because a contact must not be logged.
impl fmt::Debug for ContactPatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContactPatch(***)")
    }
}

impl Input for SitePatch {
    const FIELDS: &'static [&'static str] = &["name", "contact", "location"];
    const FIXED: &'static [(&'static str, &'static str)] = &[("utcOffset", utc_offset::FIXED)];

    fn read(fields: &Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let name = fields.replacement("name", &NAME, problems);
        let contact = fields.change("contact", &Object::default(), problems);
        let location = fields.replacement("location", &Object::default(), problems);
        Some(Self { name: name.map(|name| trimmed(&name)), contact, location })
    }
}

impl Input for ContactPatch {
    const FIELDS: &'static [&'static str] = &["name", "email", "phone"];

    fn read(fields: &Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let name = fields.change("name", &NAME, problems).map(|name| trimmed(&name));
        let email = fields.change("email", &Email, problems);
        let phone = fields.change("phone", &Phone, problems);
        Some(Self { name, email, phone })
    }
}

impl Input for LocationPatch {
    const FIELDS: &'static [&'static str] = Location::FIELDS;

    fn read(fields: &Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let latitude = fields.replacement("latitude", &Location::LATITUDE, problems);
        let longitude = fields.replacement("longitude", &Location::LONGITUDE, problems);
        let elevation_m = fields.replacement("elevationM", &Location::ELEVATION_M, problems);
        Some(Self { latitude, longitude, elevation_m })
    }
}

fn trimmed(text: &str) -> String {
    text.trim().to_owned()
}

/// The rule of an e-mail address. Messages do not quote the value.
struct Email;

impl FieldRule for Email {
    type Value = String;

    fn expected(&self) -> String {
        format!("an e-mail address of at most {MAX_EMAIL} characters, such as desk@example.org")
    }

    fn read(&self, tree: &JsonValue, at: &str, problems: &mut Problems) -> Option<String> {
        let value = tree.string(at, &self.expected(), problems)?;
        if value.chars().count() > MAX_EMAIL || !text::is_email(value) {
            problems.add(at, format!("is not valid; give {}", self.expected()));
        }
        Some(value.to_owned())
    }
}

/// The rule of a telephone number. Messages do not quote the value.
struct Phone;

impl FieldRule for Phone {
    type Value = String;

    fn expected(&self) -> String {
        format!("a telephone number of at most {MAX_PHONE} characters, such as +1 303 555 0100")
    }

    fn read(&self, tree: &JsonValue, at: &str, problems: &mut Problems) -> Option<String> {
        let value = tree.string(at, &self.expected(), problems)?;
        let is_known = |sign: char| sign.is_ascii_digit() || PHONE_SIGNS.contains(sign);
        let has_digit = value.contains(|sign: char| sign.is_ascii_digit());
        if value.chars().count() > MAX_PHONE || !value.chars().all(is_known) || !has_digit {
            let message = "is not valid; use only digits, spaces and + ( ) - . / # *, and give";
            problems.add(at, format!("{message} {}", self.expected()));
        }
        Some(value.to_owned())
    }
}

/// Returns the regular expression of a telephone number.
fn phone_pattern() -> String {
    let any = format!("[0-9{PHONE_SIGNS}]");
    format!("^{any}*[0-9]{any}*$")
}

/// Returns the JSON Schema of a contact, or `null`.
fn contact(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = ContactPatch::json_schema(generator);
    schema.insert("type".to_owned(), json!(["object", "null"]));
    schema
}

/// Returns the body with its JSON Schema.
#[must_use]
pub fn schemas() -> Vec<(&'static str, Schema)> {
    vec![(SITE_PATCH, schemars::schema_for!(SitePatch))]
}
