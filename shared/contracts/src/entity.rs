//! The entities that have events: the site, and one of each other type for each onboarding.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    OnboardingId, SiteId,
    id::{derive, id},
};

/// Declares the types of entities: doc comment and variant, name on every wire, owning service, and the id, which
/// is derived from the onboarding and the name.
macro_rules! entities {
    ($($(#[$doc:meta])* $kind:ident = $name:literal of $service:literal,
        $(#[$id_doc:meta])* $id:ident;)*
    ) => {
        /// The kinds of entities that have events, each belonging to the one service that emits them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase")]
        #[non_exhaustive]
        pub enum EntityType {
            /// sites'.
            Site,
            $($(#[$doc])* $kind,)*
        }

        impl EntityType {
            /// All types.
            pub const ALL: [Self; 1 + [$($name),*].len()] = [Self::Site, $(Self::$kind),*];
            /// The names of all types.
            pub const NAMES: [&'static str; Self::ALL.len()] = [Self::Site.name(), $($name),*];

            /// The name on every wire.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    Self::Site => "site",
                    $(Self::$kind => $name,)*
                }
            }

            /// The service that owns the entity.
            #[must_use]
            pub const fn service(self) -> &'static str {
                match self {
                    Self::Site => "sites",
                    $(Self::$kind => $service,)*
                }
            }

            /// EventBridge's `source` of this entity's events.
            #[must_use]
            pub const fn source(self) -> &'static str {
                match self {
                    Self::Site => "fieldstation.sites",
                    $(Self::$kind => concat!("fieldstation.", $service),)*
                }
            }
        }

        impl Entity {
            /// The site's entity of this kind: a site has one of each.
            #[must_use]
            pub fn of_site(kind: EntityType, site: SiteId) -> Self {
                match kind {
                    EntityType::Site => site.into(),
                    $(EntityType::$kind => $id::of(OnboardingId::of(site)).into(),)*
                }
            }
        }

        $(
            id!($(#[$id_doc])* $id);

            impl $id {
                /// The id that belongs to this onboarding.
                #[must_use]
                pub fn of(onboarding: OnboardingId) -> Self {
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
    /// inventory's.
    Reservation = "reservation" of "inventory",
    /// The kits that inventory sets aside for one onboarding.
    ReservationId;
    /// devices'.
    Sensors = "sensors" of "devices",
    /// All sensors that devices provisions for one onboarding, as one entity.
    SensorsId;
    /// billing's.
    Subscription = "subscription" of "billing",
    /// The subscription that billing keeps for one onboarding.
    SubscriptionId;
    /// alerting's.
    Alerting = "alerting" of "alerting",
    /// The alerting configuration of one onboarding.
    AlertingId;
}

/// What an event is about. Prints as `type#id`, the key of its row in the event log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Entity {
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: EntityType,
    /// Its id.
    pub id: Uuid,
}

impl From<SiteId> for Entity {
    fn from(id: SiteId) -> Self {
        Self { kind: EntityType::Site, id: id.uuid() }
    }
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.kind.name(), self.id)
    }
}
