//! All event types, each with its entity. Every event contains `siteId`, so a reader can collect a site's events
//! without knowing how ids are derived.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    EntityType, Event, Location, Metric, OnboardingFailure, OnboardingId, PaymentMethodId, Plan,
    Sensor, SensorId, SiteId, Timestamp, inbound::MAX_QUANTITY, input::WholeNumber,
};

/// A visitor of all event types; see [`visit`].
pub trait Visitor {
    /// Visits one event type.
    fn event<E: Event + PartialEq + fmt::Debug>(&mut self);
}

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident of $entity:ident v $version:literal {
        $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
    })*) => {
        $($(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase")]
        pub struct $name {
            /// The site that it belongs to.
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

        /// Visits every event type in the order of declaration.
        pub fn visit(visitor: &mut impl Visitor) {
            $(visitor.event::<$name>();)*
        }

        /// Returns every event type with its version and the JSON Schema of the whole `detail`.
        #[must_use]
        pub fn schemas() -> Vec<(&'static str, u32, schemars::Schema)> {
            vec![$((
                $name::TYPE,
                $name::VERSION,
                schemars::schema_for!(crate::Envelope<$name>),
            )),*]
        }
    };
}

/// So many kits of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kits {
    /// What a sensor of this kit measures.
    pub metric: Metric,
    /// Pieces: 1 to 1,000,000.
    #[schemars(range(min = 1, max = MAX_QUANTITY))]
    pub quantity: u32,
}

impl Kits {
    pub(crate) const QUANTITY: WholeNumber = WholeNumber { min: 1, max: MAX_QUANTITY };
}

/// A metric that ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Shortage {
    /// What was asked for.
    pub metric: Metric,
    /// Pieces asked for.
    pub requested: u32,
    /// Pieces in stock at that moment.
    pub available: u32,
}

/// One of a sensor's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Limit {
    /// The least that is normal.
    Min,
    /// The most that is normal.
    Max,
}

events! {
    /// A site was registered; its onboarding begins.
    SiteCreated of Site v 1 {
        /// The saga that starts with it.
        onboarding_id: OnboardingId,
        /// The site's name.
        name: String,
        /// Who runs the site.
        operator: String,
        /// Where it stands.
        location: Location,
        /// What it will measure.
        sensors: Vec<Sensor>,
        /// What the operator subscribes to.
        plan: Plan,
        /// How the operator pays.
        payment_method: PaymentMethodId,
    }
    /// The onboarding came to its end; readings are welcome.
    SiteActivated of Site v 1 {}
    /// The onboarding failed, and everything was undone.
    SiteRejected of Site v 1 {
        /// Where and why.
        failure: OnboardingFailure,
    }
    /// A live site was taken out of service.
    SiteDecommissioned of Site v 1 {}
    /// Kits were set aside for the site.
    KitsReserved of Reservation v 1 {
        /// How many of which.
        kits: Vec<Kits>,
    }
    /// The kits are back in stock.
    KitsReleased of Reservation v 1 {
        /// How many of which.
        kits: Vec<Kits>,
    }
    /// A reservation was refused: too few kits.
    StockDepleted of Reservation v 1 {
        /// What was short.
        shortages: Vec<Shortage>,
    }
    /// The site's sensors exist and may report.
    SensorsProvisioned of Sensors v 1 {
        /// All of them.
        sensors: Vec<Sensor>,
    }
    /// The site's sensors are retired for good.
    SensorsDeprovisioned of Sensors v 1 {
        /// All of them.
        sensor_ids: Vec<SensorId>,
    }
    /// The operator pays for the site.
    SubscriptionInitialized of Subscription v 1 {
        /// The plan paid for.
        plan: Plan,
        /// The payment provider's id.
        provider_subscription_id: String,
    }
    /// The payment provider refused.
    SubscriptionFailed of Subscription v 1 {
        /// The plan asked for.
        plan: Plan,
        /// The error's stable name, e.g. `CardDeclined`.
        error: String,
        /// The provider's words.
        message: String,
    }
    /// The operator no longer pays for the site.
    SubscriptionCancelled of Subscription v 1 {
        /// The payment provider's id.
        provider_subscription_id: String,
    }
    /// The sensors' limits are watched.
    AlertingConfigured of Alerting v 1 {
        /// How many sensors have limits.
        rules: usize,
    }
    /// The sensors' limits are no longer watched.
    AlertingRemoved of Alerting v 1 {}
    /// A sensor's reading left its limits, or went from beyond one to beyond the other.
    ReadingBreachedThreshold of Alerting v 1 {
        /// The sensor.
        sensor_id: SensorId,
        /// What it measures.
        metric: Metric,
        /// UCUM code, of the value and the limit.
        unit: String,
        /// The first reading beyond the limit.
        value: f64,
        /// When it was taken.
        at: Timestamp,
        /// Which limit it is beyond.
        limit: Limit,
        /// The limit's value.
        threshold: f64,
    }
    /// A sensor's reading came back within its limits, by more than the metric's deadband.
    ReadingBackToNormal of Alerting v 1 {
        /// The sensor.
        sensor_id: SensorId,
        /// What it measures.
        metric: Metric,
        /// UCUM code of the value.
        unit: String,
        /// The first reading within the limits.
        value: f64,
        /// When it was taken.
        at: Timestamp,
        /// When the reading that breached was taken.
        breached_at: Timestamp,
    }
}
