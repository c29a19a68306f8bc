//! Bodies of the requests that manage operators and API keys.
//!
//! As in [`crate::inbound`], no type implements `Deserialize`: [`crate::input`] reads them, because it reports all
//! problems at once.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{
    OperatorId, Plan, Scope,
    id::{derive, id},
    inbound::MAX_NAME,
    input::{Fields, Input, OneOf, Parsed, Problems, Purpose, Text, WholeNumber},
    text,
};

/// The name of the schema of [`OperatorRegistration`].
pub const OPERATOR_REGISTRATION: &str = "OperatorRegistration";
/// The name of the schema of [`OperatorPatch`].
pub const OPERATOR_PATCH: &str = "OperatorPatch";
/// The name of the schema of [`KeyRequest`].
pub const KEY_REQUEST: &str = "KeyRequest";

/// The maximum time until a key expires, in days.
pub const MAX_KEY_DAYS: u32 = 3650;
/// The maximum time that a replaced key stays valid, in seconds: 30 days.
pub const MAX_OVERLAP_SECONDS: u32 = 30 * 86_400;

const NAME: Text = Text { purpose: Purpose::Name, max: MAX_NAME };
const PLAN: OneOf<Plan> = OneOf { all: Plan::ALL, name: Plan::name };
const STATUS: OneOf<OperatorStatus> =
    OneOf { all: OperatorStatus::ALL, name: OperatorStatus::name };
const DAYS: WholeNumber = WholeNumber { min: 1, max: MAX_KEY_DAYS };
const OVERLAP: WholeNumber = WholeNumber { min: 0, max: MAX_OVERLAP_SECONDS };
const OPERATOR_ID: Parsed<OperatorId> = Parsed::new("the UUID of an operator");
const KEY_ID: Parsed<KeyId> = Parsed::new("the UUID of a key");
const SCOPE: Parsed<Scope> = Parsed {
    expected: "admin, operator, read or logger:<site id>",
    parse: |text| text.parse().ok().filter(|scope| *scope != Scope::Bootstrap),
};

id!(
    /// The id of an API key. It is not secret.
    KeyId
);

impl KeyId {
    /// Returns the id of the key that a request with this idempotency key creates for the operator.
    #[must_use]
    pub fn from_request(operator: OperatorId, key: &str) -> Self {
        Self(derive(operator.uuid(), &format!("key/{key}")))
    }
}

/// The status of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OperatorStatus {
    /// Its callers are accepted.
    Active,
    /// All its callers are refused.
    Suspended,
}

impl OperatorStatus {
    /// All statuses.
    pub const ALL: &'static [Self] = &[Self::Active, Self::Suspended];

    /// Returns the name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Suspended => "SUSPENDED",
        }
    }
}

/// A new operator. It is the body of `POST /operators`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OperatorRegistration {
    /// The name of the operator: 1 to 200 characters, not blank, without control or invisible characters. Leading and
    /// trailing white space is removed.
    #[schemars(length(min = 1, max = MAX_NAME), extend("pattern" = text::name_pattern()))]
    pub name: String,
    /// The plan of the operator. It selects the rate limit.
    pub plan: Plan,
}

/// Changes of an operator. It is the body of `PATCH /operators/{operatorId}`: a JSON merge patch (RFC 7396). What is left
/// out stays as it is. Nothing can be removed, so no value may be `null`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OperatorPatch {
    /// The new name: 1 to 200 characters, not blank, without control or invisible characters. Leading and trailing white
    /// space is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = MAX_NAME), extend("pattern" = text::name_pattern()))]
    pub name: Option<String>,
    /// The new plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Plan")]
    pub plan: Option<Plan>,
    /// The new status. All callers of a suspended operator are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "OperatorStatus")]
    pub status: Option<OperatorStatus>,
}

/// A new API key. It is the body of `POST /keys`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyRequest {
    /// The name of the key, such as its holder: 1 to 200 characters, not blank, without control or invisible
    /// characters. Leading and trailing white space is removed.
    #[schemars(length(min = 1, max = MAX_NAME), extend("pattern" = text::name_pattern()))]
    pub name: String,
    /// What the key may do: `admin`, `operator`, `read`, or `logger:` and the id of a site.
    #[schemars(schema_with = "scope")]
    pub scope: Scope,
    /// The days until the key expires: 1 to 3650. Without it, the key does not expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_KEY_DAYS))]
    pub expires_in_days: Option<u32>,
    /// The id of the key that the new key replaces. That key expires after `overlapSeconds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<KeyId>,
    /// The seconds that the replaced key stays valid: 0 to 2592000, an hour by default. Only with `replaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = MAX_OVERLAP_SECONDS))]
    pub overlap_seconds: Option<u32>,
    /// The operator that the key is for. Only an administrator may give another one than its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator_id: Option<OperatorId>,
}

fn scope(_: &mut SchemaGenerator) -> Schema {
    let uuid = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}";
    json_schema!({ "type": "string", "pattern": format!("^(admin|operator|read|logger:{uuid})$") })
}

impl Input for OperatorRegistration {
    const FIELDS: &'static [&'static str] = &["name", "plan"];

    fn read(fields: &Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let name = fields.required("name", &NAME, problems);
        let plan = fields.required("plan", &PLAN, problems);
        Some(Self { name: name?, plan: plan? })
    }
}

impl Input for OperatorPatch {
    const FIELDS: &'static [&'static str] = &["name", "plan", "status"];

    fn read(fields: &Fields<'_>, problems: &mut Problems) -> Option<Self> {
        Some(Self {
            name: fields.replacement("name", &NAME, problems),
            plan: fields.replacement("plan", &PLAN, problems),
            status: fields.replacement("status", &STATUS, problems),
        })
    }
}

impl Input for KeyRequest {
    const FIELDS: &'static [&'static str] =
        &["name", "scope", "expiresInDays", "replaces", "overlapSeconds", "operatorId"];

    fn read(fields: &Fields<'_>, problems: &mut Problems) -> Option<Self> {
        let name = fields.required("name", &NAME, problems);
        let scope = fields.required("scope", &SCOPE, problems);
        let expires_in_days = fields.optional("expiresInDays", &DAYS, problems);
        let replaces = fields.optional("replaces", &KEY_ID, problems);
        let overlap_seconds = fields.optional("overlapSeconds", &OVERLAP, problems);
        let operator_id = fields.optional("operatorId", &OPERATOR_ID, problems);
        if overlap_seconds.is_some() && replaces.is_none() {
            let message = "is only for a key that replaces another one; give replaces, too";
            problems.add(fields.path("overlapSeconds"), message);
        }
        Some(Self {
            name: name?,
            scope: scope?,
            expires_in_days,
            replaces,
            overlap_seconds,
            operator_id,
        })
    }
}

/// Returns every body with its JSON Schema.
#[must_use]
pub fn schemas() -> Vec<(&'static str, Schema)> {
    vec![
        (OPERATOR_REGISTRATION, schemars::schema_for!(OperatorRegistration)),
        (OPERATOR_PATCH, schemars::schema_for!(OperatorPatch)),
        (KEY_REQUEST, schemars::schema_for!(KeyRequest)),
    ]
}
