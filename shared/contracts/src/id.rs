//! Ids are minted before effects and derived (`UUIDv5`), so that a retry computes the same ones.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Entity;

/// Root of every derived id. Changing it would give every retried request a second identity.
const FIELDSTATION: Uuid = Uuid::from_u128(0x6f1e_1d57_a710_4e00_9a5e_0f1e_1d57_a710);

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
        )]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// The bare UUID.
            #[must_use]
            pub fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

id!(
    /// A monitoring site.
    SiteId
);
id!(
    /// One run of the onboarding saga; the `correlationId` of everything that belongs to it.
    OnboardingId
);
id!(
    /// The kits that inventory sets aside for one onboarding.
    ReservationId
);
id!(
    /// All sensors that devices provisions for one onboarding, as one entity.
    SensorsId
);
id!(
    /// One sensor: one metric, in one unit, at one site.
    SensorId
);
id!(
    /// The subscription that billing keeps for one onboarding.
    SubscriptionId
);
id!(
    /// The alerting configuration of one onboarding.
    AlertingId
);
id!(
    /// One domain event.
    EventId
);

fn derive(parent: Uuid, name: &str) -> Uuid {
    Uuid::new_v5(&parent, name.as_bytes())
}

impl SiteId {
    /// The site that a registration makes: `channel` is the way in (empty for HTTP, else the event's source, which never is),
    /// `key` the sender's idempotency key on it.
    #[must_use]
    pub fn registered(channel: &str, key: &str) -> Self {
        // Length first, so that no channel and key can be shifted into another pair's name.
        Self(derive(FIELDSTATION, &format!("site/{}/{channel}/{key}", channel.len())))
    }
}

impl OnboardingId {
    /// A site is onboarded once.
    #[must_use]
    pub fn of(site: SiteId) -> Self {
        Self(derive(site.0, "onboarding"))
    }
}

macro_rules! derived_from_onboarding {
    ($($name:ident = $label:literal),*) => {
        $(impl $name {
            /// The id that belongs to this onboarding.
            #[must_use]
            pub fn of(onboarding: OnboardingId) -> Self {
                Self(derive(onboarding.0, $label))
            }
        })*
    };
}

derived_from_onboarding!(
    ReservationId = "reservation",
    SensorsId = "sensors",
    SubscriptionId = "subscription",
    AlertingId = "alerting"
);

impl SensorId {
    /// The `index`-th sensor (from 0) of the registration.
    #[must_use]
    pub fn of(onboarding: OnboardingId, index: usize) -> Self {
        Self(derive(onboarding.0, &format!("sensor/{index}")))
    }
}

impl EventId {
    /// The `sequence`-th event (from 1) of the entity.
    #[must_use]
    pub fn of(entity: &Entity, sequence: u64) -> Self {
        Self(derive(FIELDSTATION, &format!("event/{entity}/{sequence}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_same_on_every_retry_and_on_every_release() {
        let site = SiteId::registered("http", "key-1");
        assert_eq!(site, SiteId::registered("http", "key-1"));
        // Pinned: a changed derivation would onboard a retried request a second time.
        assert_eq!(site.to_string(), "55115657-a433-553f-959b-29ae8465145d");
        assert_eq!(OnboardingId::of(site).to_string(), "22e2ae1b-16bd-5ab3-a538-7df102033bfe");
    }

    #[test]
    fn different_names_give_different_ids() {
        let site = SiteId::registered("http", "key-1");
        assert_ne!(site, SiteId::registered("http", "key-2"));
        assert_ne!(SiteId::registered("a", "b/c"), SiteId::registered("a/b", "c"));
        let onboarding = OnboardingId::of(site);
        assert_ne!(SensorId::of(onboarding, 0), SensorId::of(onboarding, 1));
        assert_ne!(ReservationId::of(onboarding).uuid(), SubscriptionId::of(onboarding).uuid());
    }
}
