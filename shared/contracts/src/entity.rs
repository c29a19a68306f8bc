//! The entities that emit events: each site; the reservation, the sensors, the subscription and the alerting
//! configuration of each onboarding; the readings of each sensor; and the stock of each metric's kits.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    Metric, OnboardingId, SensorId, SiteId,
    id::{FIELDSTATION, derive, id},
};

/// Declares the entity types of an onboarding. Each has a doc comment, a variant, its name in JSON, the owning service and an id type.
/// The id is derived from the onboarding and the name.
macro_rules! entities {
    ($($(#[$doc:meta])* $kind:ident = $name:literal of $service:literal,
        $(#[$id_doc:meta])* $id:ident;)*
    ) => {
        /// The type of an entity that emits events. One service owns each type and emits its events.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase")]
        #[non_exhaustive]
        pub enum EntityType {
            /// A monitoring site, owned by the service `sites`.
            Site,
            $($(#[$doc])* $kind,)*
            /// The readings of one sensor, owned by the service `telemetry`. Its id is the sensor's.
            Readings,
            /// The stock of one metric's kits, owned by the service `inventory`. It belongs to no site.
            Stock,
        }

        impl EntityType {
            /// The types of which a site has exactly one entity.
            pub const OF_SITE: [Self; 1 + [$($name),*].len()] = [Self::Site, $(Self::$kind),*];
            /// The names of all types.
            pub const NAMES: [&'static str; Self::OF_SITE.len() + 2] =
                [Self::Site.name(), $($name,)* Self::Readings.name(), Self::Stock.name()];

            /// Returns the name in JSON and in keys.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    Self::Site => "site",
                    $(Self::$kind => $name,)*
                    Self::Readings => "readings",
                    Self::Stock => "stock",
                }
            }

            /// Returns whether each entity of this type belongs to a site. Its events have the site's id and onboarding.
            #[must_use]
            pub const fn belongs_to_site(self) -> bool {
                !matches!(self, Self::Stock)
            }

            /// Returns the service that owns the entity.
            #[must_use]
            pub const fn service(self) -> &'static str {
                match self {
                    Self::Site => "sites",
                    $(Self::$kind => $service,)*
                    Self::Readings => "telemetry",
                    Self::Stock => "inventory",
                }
            }

            /// Returns the `source` of this entity's events on EventBridge.
            #[must_use]
            pub const fn source(self) -> &'static str {
                match self {
                    Self::Site => "fieldstation.sites",
                    $(Self::$kind => concat!("fieldstation.", $service),)*
                    Self::Readings => "fieldstation.telemetry",
                    Self::Stock => "fieldstation.inventory",
                }
            }
        }

        impl Entity {
            /// Returns the site's entity of this type. A site has exactly one entity of each type in
            /// [`EntityType::OF_SITE`]. Returns `None` for the other types.
            #[must_use]
            pub fn for_site(kind: EntityType, site: SiteId) -> Option<Self> {
                match kind {
                    EntityType::Site => Some(site.into()),
                    $(EntityType::$kind => {
                        Some($id::from_onboarding(OnboardingId::from_site(site)).into())
                    })*
                    EntityType::Readings | EntityType::Stock => None,
                }
            }

            /// Returns the readings of this sensor.
            #[must_use]
            pub fn readings(sensor: SensorId) -> Self {
                Self { kind: EntityType::Readings, id: sensor.uuid() }
            }

            /// Returns the stock of this metric's kits.
            #[must_use]
            pub fn stock(metric: Metric) -> Self {
                let id = derive(FIELDSTATION, &format!("stock/{metric}"));
                Self { kind: EntityType::Stock, id }
            }
        }

        $(
            id!($(#[$id_doc])* $id);

            impl $id {
                /// Returns the id that belongs to this onboarding.
                #[must_use]
                pub fn from_onboarding(onboarding: OnboardingId) -> Self {
                    Self(derive(onboarding.uuid(), $name))
                }
            }

            impl From<$id> for Entity {
                fn from(id: $id) -> Self {
                    Self { kind: EntityType::$kind, id: id.uuid() }
                }
            }
        )*
    };
}

entities! {
    /// The reservation of kits for a site, owned by the service `inventory`.
    Reservation = "reservation" of "inventory",
    /// The id of an onboarding's reservation of kits in inventory.
    ReservationId;
    /// All sensors of a site, owned by the service `devices`.
    Sensors = "sensors" of "devices",
    /// The id of all sensors that devices provisions for one onboarding. They are one entity.
    SensorsId;
    /// The subscription for a site, owned by the service `billing`.
    Subscription = "subscription" of "billing",
    /// The id of an onboarding's subscription in billing.
    SubscriptionId;
    /// The alerting configuration of a site, owned by the service `alerting`.
    Alerting = "alerting" of "alerting",
    /// The id of an onboarding's alerting configuration.
    AlertingId;
}

/// The entity that an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Entity {
    /// The entity type.
    #[serde(rename = "type")]
    pub kind: EntityType,
    /// The entity id.
    pub id: Uuid,
}

impl From<SiteId> for Entity {
    fn from(id: SiteId) -> Self {
        Self { kind: EntityType::Site, id: id.uuid() }
    }
}

/// Formats the entity as `type#id`, the partition key of its rows in the event log.
impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.kind.name(), self.id)
    }
}
