//! All event types, each with its entity. Every event of a site's entity contains `siteId`, so a reader can collect a
//! site's events without knowing how ids are derived.

mod published;
mod schema;
pub mod v1;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    EntityType, Event, Location, Metric, OnboardingFailure, OnboardingId, PaymentMethodId, Plan,
    Sensor, SensorId, SiteId, Timestamp,
    inbound::{MAX_NAME, MAX_QUANTITY, MAX_SENSORS},
    input::WholeNumber,
    number,
    readings::{BundleId, MAX_REASON},
    site::{MAX_ERROR, MAX_MESSAGE, MAX_PROVIDER_ID, MAX_UNIT},
};

pub use published::{PublishedForm, published_forms};
pub use schema::schema_of;

/// The maximum number of changed fields in an event.
const MAX_CHANGED: usize = 50;
/// The maximum length of a field's name, in characters.
const MAX_FIELD: usize = 80;

/// A visitor of all event types; see [`visit`].
pub trait Visitor {
    /// Visits one event type.
    fn event<E: Event + PartialEq + fmt::Debug>(&mut self);
}

macro_rules! events {
    (
        of a site { $($(#[$doc:meta])* $name:ident of $entity:ident v $version:literal {
            $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
        })* }
        of no site { $($(#[$other_doc:meta])* $other:ident of $other_entity:ident v $other_version:literal {
            $($(#[$other_field_doc:meta])* $other_field:ident: $other_type:ty,)*
        })* }
    ) => {
        $($(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase")]
        pub struct $name {
            /// The id of the site.
            pub site_id: SiteId,
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl crate::SiteData for $name {
            fn site_id(&self) -> SiteId {
                self.site_id
            }
        }

        impl Event for $name {
            const TYPE: &'static str = stringify!($name);
            const VERSION: u32 = $version;
            const ENTITY: EntityType = EntityType::$entity;
        })*

        $($(#[$other_doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase")]
        pub struct $other {
            $($(#[$other_field_doc])* pub $other_field: $other_type,)*
        }

        impl Event for $other {
            const TYPE: &'static str = stringify!($other);
            const VERSION: u32 = $other_version;
            const ENTITY: EntityType = EntityType::$other_entity;
        })*

        /// Visits every event type in its newest version, in the order of declaration.
        pub fn visit(visitor: &mut impl Visitor) {
            $(visitor.event::<$name>();)*
            $(visitor.event::<$other>();)*
        }

        /// Returns every event type with its newest version and the JSON Schema of the whole `detail`.
        #[must_use]
        pub fn schemas() -> Vec<(&'static str, u32, schemars::Schema)> {
            vec![
                $(($name::TYPE, $name::VERSION, schema_of::<$name>()),)*
                $(($other::TYPE, $other::VERSION, schema_of::<$other>()),)*
            ]
        }
    };
}

/// Visits the earlier versions that are still published; see [`published_forms`].
pub fn visit_earlier(visitor: &mut impl Visitor) {
    visitor.event::<v1::AlertingConfigured>();
}

/// A quantity of sensor kits for one metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(deny_unknown_fields)]
pub struct Kits {
    /// The metric that the sensors of these kits measure.
    pub metric: Metric,
    /// The number of kits, from 1 to 1,000,000.
    #[schemars(range(min = 1, max = MAX_QUANTITY))]
    pub quantity: u32,
}

impl Kits {
    pub(crate) const QUANTITY: WholeNumber = WholeNumber { min: 1, max: MAX_QUANTITY };
}

/// A metric for which there are too few kits in stock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Shortage {
    /// The metric.
    pub metric: Metric,
    /// The number of requested kits.
    pub requested: u32,
    /// The number of kits in stock at the time of the request.
    pub available: u32,
}

/// The alert limits of a sensor. At least one is present.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SensorLimits {
    /// The id of the sensor.
    pub sensor_id: SensorId,
    /// The lower limit, in the unit of the sensor. A reading below it is a breach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "number::storable")]
    pub min: Option<f64>,
    /// The upper limit, in the unit of the sensor. A reading above it is a breach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "number::storable")]
    pub max: Option<f64>,
}

impl From<&Sensor> for SensorLimits {
    fn from(sensor: &Sensor) -> Self {
        Self { sensor_id: sensor.sensor_id, min: sensor.min, max: sensor.max }
    }
}

/// One of the two alert limits of a sensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Limit {
    /// The lower limit.
    Min,
    /// The upper limit.
    Max,
}

/// What a revision changed. Consumers must accept names that they do not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RevisionKind {
    /// Samples were sent again with other values, flags or times.
    Value,
    /// Samples were withdrawn, and none take their place.
    Retraction,
    /// The flags of samples changed, not the samples: the sensor has other values that mean "no data".
    Flag,
    /// The samples are used in another way: the sensor has another calibration, or its `stamp` changed: the time of a
    /// sample is now the start of its interval instead of the end, or the reverse.
    Calibration,
    /// A person annotated the range. Reserved: this release does not emit it.
    Annotation,
    /// The range was approved, or its approval was withdrawn. Reserved: this release does not emit it.
    Approval,
    /// A kind of a later release.
    #[serde(untagged)]
    Other(String),
}

impl JsonSchema for RevisionKind {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "RevisionKind".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[a-z][A-Za-z]{0,39}$" })
    }
}

events! {
    of a site {
        /// A site was registered, and its onboarding starts.
        SiteCreated of Site v 1 {
            /// The id of the onboarding that starts.
            onboarding_id: OnboardingId,
            /// The site's name.
            #[schemars(length(min = 1, max = MAX_NAME))]
            name: String,
            /// The name of the site's operator, as free text for people. It gives no rights. `operatorId` in the
            /// event's metadata is the operator that owns the site.
            #[schemars(length(min = 1, max = MAX_NAME))]
            operator: String,
            /// The location of the site.
            location: Location,
            /// The sensors of the site.
            #[schemars(length(max = MAX_SENSORS))]
            sensors: Vec<Sensor>,
            /// The plan that the operator subscribes to.
            plan: Plan,
            /// The payment method of the operator.
            payment_method: PaymentMethodId,
        }
        /// The onboarding succeeded, and the site accepts readings.
        SiteActivated of Site v 1 {}
        /// The name, the contact or the location of an active site was changed. The contact is personal data, so it is not in the event.
        SiteChanged of Site v 1 {
            /// The names of the fields that were changed: `name`, `contact`, `location`.
            #[schemars(length(min = 1, max = MAX_CHANGED), inner(length(min = 1, max = MAX_FIELD)))]
            changed: Vec<String>,
            /// The site's name after the change.
            #[schemars(length(min = 1, max = MAX_NAME))]
            name: String,
            /// The site's location after the change.
            location: Location,
        }
        /// The onboarding failed, and all completed steps were undone.
        SiteRejected of Site v 1 {
            /// The failed step and its error.
            failure: OnboardingFailure,
        }
        /// An active site was taken out of service.
        SiteDecommissioned of Site v 1 {}
        /// Kits were reserved for the site.
        KitsReserved of Reservation v 1 {
            /// The kits, by metric.
            #[schemars(length(max = MAX_SENSORS))]
            kits: Vec<Kits>,
        }
        /// The reserved kits were returned to stock.
        KitsReleased of Reservation v 1 {
            /// The kits, by metric.
            #[schemars(length(max = MAX_SENSORS))]
            kits: Vec<Kits>,
        }
        /// A reservation was refused because there are too few kits in stock.
        StockDepleted of Reservation v 1 {
            /// The metrics with too few kits.
            #[schemars(length(max = MAX_SENSORS))]
            shortages: Vec<Shortage>,
        }
        /// The sensors of the site were provisioned, and may send readings.
        SensorsProvisioned of Sensors v 1 {
            /// All sensors of the site.
            #[schemars(length(max = MAX_SENSORS))]
            sensors: Vec<Sensor>,
        }
        /// The metadata of a sensor of the site were changed.
        SensorChanged of Sensors v 1 {
            /// The sensor after the change.
            sensor: Sensor,
        }
        /// The sensors of the site were retired permanently.
        SensorsDeprovisioned of Sensors v 1 {
            /// The ids of all sensors of the site.
            #[schemars(length(max = MAX_SENSORS))]
            sensor_ids: Vec<SensorId>,
        }
        /// The subscription for the site was created at the payment provider.
        SubscriptionInitialized of Subscription v 1 {
            /// The plan of the subscription.
            plan: Plan,
            /// The id of the subscription at the payment provider.
            #[schemars(length(max = MAX_PROVIDER_ID))]
            provider_subscription_id: String,
        }
        /// The payment provider refused the subscription.
        SubscriptionFailed of Subscription v 1 {
            /// The requested plan.
            plan: Plan,
            /// The stable error name, e.g. `CardDeclined`.
            #[schemars(length(max = MAX_ERROR))]
            error: String,
            /// The message of the payment provider.
            #[schemars(length(max = MAX_MESSAGE))]
            message: String,
        }
        /// The subscription for the site was cancelled at the payment provider.
        SubscriptionCancelled of Subscription v 1 {
            /// The id of the subscription at the payment provider.
            #[schemars(length(max = MAX_PROVIDER_ID))]
            provider_subscription_id: String,
        }
        /// Alerting on the limits of the site's sensors was configured.
        AlertingConfigured of Alerting v 2 {
            /// The limits, one entry for each sensor that has one.
            #[schemars(length(max = MAX_SENSORS))]
            limits: Vec<SensorLimits>,
        }
        /// Alerting on the limits of the site's sensors was removed.
        AlertingRemoved of Alerting v 1 {}
        /// A reading of a sensor left the range between its limits, or moved from beyond one limit to beyond the other.
        ReadingBreachedThreshold of Alerting v 1 {
            /// The id of the sensor.
            sensor_id: SensorId,
            /// The metric that the sensor measures.
            metric: Metric,
            /// The unit of the value and the limit, as a UCUM code.
            #[schemars(length(min = 1, max = MAX_UNIT))]
            unit: String,
            /// The first reading beyond the limit.
            #[schemars(schema_with = "number::finite")]
            value: f64,
            /// When the reading was taken.
            at: Timestamp,
            /// The limit that the reading is beyond.
            limit: Limit,
            /// The value of the limit.
            #[schemars(schema_with = "number::storable")]
            threshold: f64,
        }
        /// A reading of a sensor returned into the range between its limits, by at least the deadband.
        ReadingBackToNormal of Alerting v 1 {
            /// The id of the sensor.
            sensor_id: SensorId,
            /// The metric that the sensor measures.
            metric: Metric,
            /// The unit of the value, as a UCUM code.
            #[schemars(length(min = 1, max = MAX_UNIT))]
            unit: String,
            /// The value of the reading that ended the breach: the first one within the limits by at least the deadband.
            #[schemars(schema_with = "number::finite")]
            value: f64,
            /// When the reading was taken.
            at: Timestamp,
            /// When the first reading beyond the limit was taken.
            breached_at: Timestamp,
        }
        /// Stored readings of a sensor changed, or queries now interpret them differently. Discard results that were
        /// computed from this range earlier.
        ReadingsRevised of Readings v 1 {
            /// The id of the sensor. It is also the id of the entity.
            sensor_id: SensorId,
            /// What changed: `value`, `retraction`, `flag`, `calibration`, `annotation` or `approval`. A later release
            /// can add names. `flag` is a change of the sensor's values that mean "no data". `calibration` is a change
            /// of its calibrations or of its `stamp` (whether the time of a sample is the start or the end of its
            /// interval).
            kind: RevisionKind,
            /// The start of the range, inclusive. It is 1970-01-01T00:00:00.000Z if all earlier readings are concerned.
            from: Timestamp,
            /// The end of the range, exclusive. If the change of the sensor also applies to future readings, the end is
            /// 15 minutes and 1 ms after the event. No reading that was stored before the event is later, because a
            /// sample is at most 15 minutes ahead of the clock.
            to: Timestamp,
            /// The bundle that has the revision. Present for `value` and `retraction`.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            bundle_id: Option<BundleId>,
            /// The number of the revision. Present for `value` and `retraction`.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(range(min = 1))]
            revision: Option<u32>,
            /// Why the readings were revised.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(length(max = MAX_REASON))]
            reason: Option<String>,
        }
    }

    of no site {
        /// Few kits of a metric are left. The stock fell to the limit or below it, or kits arrived after it was sold
        /// out, but too few for `StockReplenished`.
        StockLow of Stock v 1 {
            /// The metric that the sensors of these kits measure.
            metric: Metric,
            /// The number of kits that are left.
            quantity: u32,
            /// The limit.
            limit: u32,
        }
        /// No kits of a metric are left. Onboardings that need one are refused.
        StockSoldOut of Stock v 1 {
            /// The metric that the sensors of these kits measure.
            metric: Metric,
        }
        /// There are enough kits of a metric again. The stock rose above the limit by at least the deadband.
        StockReplenished of Stock v 1 {
            /// The metric that the sensors of these kits measure.
            metric: Metric,
            /// The number of kits in stock.
            quantity: u32,
        }
    }
}
