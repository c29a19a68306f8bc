//! Types of a site that several services use.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use crate::{Metric, SensorId, input::Number, number};

/// Where a site stands (WGS 84).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Location {
    /// Degrees north, -90 to 90.
    #[schemars(schema_with = "latitude")]
    pub latitude: f64,
    /// Degrees east, -180 to 180.
    #[schemars(schema_with = "longitude")]
    pub longitude: f64,
    /// Metres above mean sea level, -500 to 9000.
    #[schemars(schema_with = "elevation_m")]
    pub elevation_m: f64,
}

impl Location {
    pub(crate) const LATITUDE: Number = Number { min: -90.0, max: 90.0, what: "degrees north" };
    pub(crate) const LONGITUDE: Number = Number { min: -180.0, max: 180.0, what: "degrees east" };
    pub(crate) const ELEVATION_M: Number =
        Number { min: -500.0, max: 9000.0, what: "metres above sea level" };
}

fn latitude(_: &mut SchemaGenerator) -> Schema {
    number::schema(Location::LATITUDE.min, Location::LATITUDE.max)
}

fn longitude(_: &mut SchemaGenerator) -> Schema {
    number::schema(Location::LONGITUDE.min, Location::LONGITUDE.max)
}

fn elevation_m(_: &mut SchemaGenerator) -> Schema {
    number::schema(Location::ELEVATION_M.min, Location::ELEVATION_M.max)
}

/// One sensor of a site: its id is fixed when the site is registered, its unit for its whole life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sensor {
    /// Derived from the onboarding and the sensor's place in the registration.
    pub sensor_id: SensorId,
    /// What it measures.
    pub metric: Metric,
    /// UCUM code, one of the metric's units.
    pub unit: String,
    /// A reading below it is a breach; in `unit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// A reading above it is a breach; in `unit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

/// What the operator subscribes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Plan {
    /// Free of charge, for public networks.
    Community,
    /// Per site and month.
    Standard,
    /// Standard with priority support.
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

/// The payment provider's handle of a card or account (`pm_...`). Worthless without the provider's
/// secret key, yet nobody's business in a log: `Debug` prints a placeholder.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct PaymentMethodId(pub String);

impl fmt::Debug for PaymentMethodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PaymentMethodId(***)")
    }
}

/// Why an onboarding was undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OnboardingFailure {
    /// The saga's step that failed, as the state machine names it.
    pub step: String,
    /// The error's stable name, e.g. `CardDeclined`.
    pub error: String,
    /// For a human.
    pub message: String,
}
