//! Types of a site that several services use.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{
    Metric, SensorId, UtcOffset, inbound::MAX_PAYMENT_METHOD, input::Number, number,
    sensor::SensorMetadata, utc_offset,
};

/// The maximum length of an error name, in characters: that of Step Functions.
pub(crate) const MAX_ERROR: usize = 256;
/// The maximum length of an error message, in characters. EventBridge refuses longer events.
pub(crate) const MAX_MESSAGE: usize = 262_144;
/// The maximum length of an id of the payment provider, in characters.
pub(crate) const MAX_PROVIDER_ID: usize = 255;
/// The maximum length of a UCUM code, in characters.
pub(crate) const MAX_UNIT: usize = 20;
/// The maximum length of a state's name, in characters: that of Step Functions.
const MAX_STEP: usize = 80;

/// The location of a site (WGS 84).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Location {
    /// The latitude in degrees north, from -90 to 90.
    #[schemars(schema_with = "latitude")]
    pub latitude: f64,
    /// The longitude in degrees east, from -180 to 180.
    #[schemars(schema_with = "longitude")]
    pub longitude: f64,
    /// The elevation in metres above mean sea level, from -500 to 9000.
    #[schemars(schema_with = "elevation_m")]
    pub elevation_m: f64,
}

impl Location {
    pub(crate) const LATITUDE: Number = Number { min: -90.0, max: 90.0, what: "degrees north" };
    pub(crate) const LONGITUDE: Number = Number { min: -180.0, max: 180.0, what: "degrees east" };
    pub(crate) const ELEVATION_M: Number =
        Number { min: -500.0, max: 9000.0, what: "metres above sea level" };
}

pub(crate) fn latitude(_: &mut SchemaGenerator) -> Schema {
    number::schema(Location::LATITUDE.min, Location::LATITUDE.max)
}

pub(crate) fn longitude(_: &mut SchemaGenerator) -> Schema {
    number::schema(Location::LONGITUDE.min, Location::LONGITUDE.max)
}

pub(crate) fn elevation_m(_: &mut SchemaGenerator) -> Schema {
    number::schema(Location::ELEVATION_M.min, Location::ELEVATION_M.max)
}

/// Whom to contact about a site. It is personal data: it is in no event and no log, and `Debug` hides it.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Contact {
    /// The name of the person or the office.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The e-mail address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// The telephone number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phone: Option<String>,
}

impl Contact {
    /// Returns whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Prints a placeholder, because a contact must not be logged.
impl fmt::Debug for Contact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Contact(***)")
    }
}

/// A sensor of a site. Its id, metric, unit and UTC offset never change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sensor {
    /// The sensor id, derived from the onboarding and the sensor's index in the registration.
    pub sensor_id: SensorId,
    /// The metric that the sensor measures.
    pub metric: Metric,
    /// The unit of the readings, as a UCUM code: one of the units of the metric.
    #[schemars(length(min = 1, max = MAX_UNIT))]
    pub unit: String,
    /// The lower alert limit, in `unit`. A reading below it is a breach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "number::any_or_null")]
    pub min: Option<f64>,
    /// The upper alert limit, in `unit`. A reading above it is a breach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "number::any_or_null")]
    pub max: Option<f64>,
    /// The fixed UTC offset of the site, for times that are sent without one. All sensors of a site have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "utc_offset::schema")]
    pub utc_offset: Option<UtcOffset>,
    /// How its samples are taken and corrected. Sensors of earlier releases have none.
    #[serde(flatten)]
    pub metadata: SensorMetadata,
}

/// A plan. The plan of a site selects the Stripe price of its subscription. The plan of an operator selects its rate
/// limit. The two are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Plan {
    /// Free of charge, for public networks.
    Community,
    /// Paid per site and month.
    Standard,
    /// Like `standard`, with priority support.
    Professional,
}

impl Plan {
    /// All plans.
    pub const ALL: &'static [Self] = &[Self::Community, Self::Standard, Self::Professional];

    /// Returns the name in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Community => "community",
            Self::Standard => "standard",
            Self::Professional => "professional",
        }
    }
}

/// The payment provider's id of a payment method, e.g. `pm_...`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct PaymentMethodId(#[schemars(schema_with = "payment_method")] pub String);

/// Returns the JSON Schema of a payment method id: letters, digits, `_` and `-`.
pub(crate) fn payment_method(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": format!("^[A-Za-z0-9_-]{{1,{MAX_PAYMENT_METHOD}}}$") })
}

/// Prints a placeholder, because the id must not be logged.
impl fmt::Debug for PaymentMethodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PaymentMethodId(***)")
    }
}

/// The failure that caused an onboarding to be undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OnboardingFailure {
    /// The name of the failed step: its state in the state machine.
    #[schemars(length(max = MAX_STEP))]
    pub step: String,
    /// The stable error name, e.g. `CardDeclined`.
    #[schemars(length(max = MAX_ERROR))]
    pub error: String,
    /// The error message, for people.
    #[schemars(length(max = MAX_MESSAGE))]
    pub message: String,
}
