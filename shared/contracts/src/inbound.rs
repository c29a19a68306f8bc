//! Events that other systems put on the bus. Their `detail` is plain, without our envelope;
//! their `source` is their own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Location, Metric, PaymentMethodId, Plan, events::Kits};

/// `detail-type` of [`KitsDelivered`].
pub const KITS_DELIVERED: &str = "KitsDelivered";

/// `detail-type` of [`SiteRegistrationRequested`].
pub const SITE_REGISTRATION_REQUESTED: &str = "SiteRegistrationRequested";

/// Kits arrived in the store-room. A `deliveryId` of a source counts once, however often the event
/// comes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KitsDelivered {
    /// The supplier's number of the delivery, unique within its `source`: 1 to 128 characters.
    pub delivery_id: String,
    /// What was in it: each metric once, 1 to 50 of them.
    pub kits: Vec<Kits>,
}

/// Another system asks for a site. A `registrationId` makes one site, however often the event
/// comes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SiteRegistrationRequested {
    /// The other system's number of the request, unique within its `source`: 1 to 128 characters.
    pub registration_id: String,
    /// The same as the body of `POST /sites`.
    pub site: SiteRegistration,
}

/// What a new site is made of; the body of `POST /sites`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SiteRegistration {
    /// 1 to 200 characters.
    pub name: String,
    /// Who runs it: 1 to 200 characters.
    pub operator: String,
    /// Where it stands.
    pub location: Location,
    /// 1 to 100 sensors.
    pub sensors: Vec<SensorRequest>,
    /// What the operator subscribes to.
    pub plan: Plan,
    /// The payment provider's handle, 1 to 255 characters.
    pub payment_method: PaymentMethodId,
}

/// A sensor that a new site shall have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SensorRequest {
    /// What it measures.
    pub metric: Metric,
    /// UCUM code, one of the metric's units.
    pub unit: String,
    /// A reading below it is a breach; in `unit`, below `max`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// A reading above it is a breach; in `unit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

/// Every inbound event type with its JSON Schema (of the whole `detail`).
#[must_use]
pub fn schemas() -> Vec<(&'static str, schemars::Schema)> {
    vec![
        (KITS_DELIVERED, schemars::schema_for!(KitsDelivered)),
        (SITE_REGISTRATION_REQUESTED, schemars::schema_for!(SiteRegistrationRequested)),
    ]
}
