//! Ids are minted before effects and derived (`UUIDv5`), so that a retry computes the same ones.

use uuid::Uuid;

use crate::Entity;

/// Root of every derived id. Changing it would give every retried request a second identity.
const FIELDSTATION: Uuid = Uuid::from_u128(0x6f1e_1d57_a710_4e00_9a5e_0f1e_1d57_a710);

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone,
            Copy,
            PartialEq,
            Eq,
            Hash,
            PartialOrd,
            Ord,
            serde::Serialize,
            serde::Deserialize,
            schemars::JsonSchema,
        )]
        #[serde(transparent)]
        pub struct $name(uuid::Uuid);

        impl $name {
            /// The bare UUID.
            #[must_use]
            pub fn uuid(self) -> uuid::Uuid {
                self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

pub(crate) use id;

id!(
    /// A monitoring site.
    SiteId
);
id!(
    /// One run of the onboarding saga; the `correlationId` of everything that belongs to it.
    OnboardingId
);
id!(
    /// One sensor: one metric, in one unit, at one site.
    SensorId
);
id!(
    /// One domain event.
    EventId
);

pub(crate) fn derive(parent: Uuid, name: &str) -> Uuid {
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
    use crate::{ReservationId, SubscriptionId};

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
