//! Ids. They are derived (`UUIDv5`) before any side effect, so a retry computes the same ids.

use uuid::Uuid;

use crate::Entity;

/// Namespace of all derived ids. If it changed, retried requests would get different ids.
pub(crate) const FIELDSTATION: Uuid = Uuid::from_u128(0x6f1e_1d57_a710_4e00_9a5e_0f1e_1d57_a710);

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
            /// Returns the UUID.
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
    /// The id of an operator: an organisation that runs sites.
    OperatorId
);
id!(
    /// The id of a monitoring site.
    SiteId
);
id!(
    /// The id of a site's onboarding. It is the `correlationId` of all events of the site.
    OnboardingId
);
id!(
    /// The id of a sensor. A sensor measures one metric in one unit at one site.
    SensorId
);
id!(
    /// The id of an event.
    EventId
);

pub(crate) fn derive(parent: Uuid, name: &str) -> Uuid {
    Uuid::new_v5(&parent, name.as_bytes())
}

impl OperatorId {
    /// The operator that owns everything that was created before there were operators.
    ///
    /// Rows, events and inputs without an operator belong to it. It is derived from the name `operator/default`.
    pub const DEFAULT: Self = Self(Uuid::from_u128(0xc1c7_4101_9d25_5a81_83c5_196e_fff0_c060));

    /// Returns the id of the operator that a request with this idempotency key creates.
    #[must_use]
    pub fn registered(key: &str) -> Self {
        Self(derive(FIELDSTATION, &format!("operator/registered/{key}")))
    }
}

impl Default for OperatorId {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl SiteId {
    /// Returns the id of the site that a registration creates.
    ///
    /// `channel` is the empty string for HTTP. For an event it is the event's source, which is never empty.
    /// `key` is the sender's idempotency key in that channel. Two operators can use the same key.
    #[must_use]
    pub fn registered(operator: OperatorId, channel: &str, key: &str) -> Self {
        // The default operator's ids are those of the releases before there were operators. With other ids, a request
        // that is repeated after the deployment would create a second site.
        let namespace = if operator == OperatorId::DEFAULT { FIELDSTATION } else { operator.0 };
        // The length prefix keeps two different pairs of channel and key from producing the same name.
        Self(derive(namespace, &format!("site/{}/{channel}/{key}", channel.len())))
    }
}

impl OnboardingId {
    /// Returns the id of the site's onboarding. A site is onboarded only once.
    #[must_use]
    pub fn from_site(site: SiteId) -> Self {
        Self(derive(site.0, "onboarding"))
    }
}

impl SensorId {
    /// Returns the id of the sensor at `index` (from 0) in the registration.
    #[must_use]
    pub fn from_onboarding(onboarding: OnboardingId, index: usize) -> Self {
        Self(derive(onboarding.0, &format!("sensor/{index}")))
    }
}

impl EventId {
    /// Returns the id of the entity's event with this `sequence` (from 1).
    #[must_use]
    pub fn from_entity(entity: &Entity, sequence: u64) -> Self {
        Self::from_log_key(&entity.to_string(), sequence)
    }

    /// Returns the id of the event with this key in the log: the entity's key
    /// ([`OpenEntity::log_key`](crate::open::OpenEntity::log_key)) and the `sequence` (from 1).
    #[must_use]
    pub fn from_log_key(entity: &str, sequence: u64) -> Self {
        Self(derive(FIELDSTATION, &format!("event/{entity}/{sequence}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ReservationId, SubscriptionId};

    #[test]
    fn ids_do_not_change_between_retries_and_releases() {
        let site = SiteId::registered(OperatorId::DEFAULT, "http", "key-1");
        assert_eq!(site, SiteId::registered(OperatorId::DEFAULT, "http", "key-1"));
        // Fixed values: if the derivation changed, a retried request would create a second site.
        assert_eq!(site.to_string(), "55115657-a433-553f-959b-29ae8465145d");
        assert_eq!(
            OnboardingId::from_site(site).to_string(),
            "22e2ae1b-16bd-5ab3-a538-7df102033bfe"
        );
    }

    #[test]
    fn the_default_operator_has_a_derived_id() {
        assert_eq!(OperatorId::DEFAULT.0, derive(FIELDSTATION, "operator/default"));
        assert_eq!(OperatorId::default(), OperatorId::DEFAULT);
    }

    #[test]
    fn operators_with_the_same_key_have_different_sites() {
        let other = OperatorId::registered("other");
        assert_ne!(other, OperatorId::registered("another"));
        let sites = [OperatorId::DEFAULT, other, OperatorId::registered("another")]
            .map(|operator| SiteId::registered(operator, "", "key-1"));
        assert_ne!(sites[0], sites[1]);
        assert_ne!(sites[1], sites[2]);
        assert_ne!(sites[0], sites[2]);
    }

    #[test]
    fn different_names_give_different_ids() {
        let site = SiteId::registered(OperatorId::DEFAULT, "http", "key-1");
        assert_ne!(site, SiteId::registered(OperatorId::DEFAULT, "http", "key-2"));
        assert_ne!(
            SiteId::registered(OperatorId::DEFAULT, "a", "b/c"),
            SiteId::registered(OperatorId::DEFAULT, "a/b", "c")
        );
        let onboarding = OnboardingId::from_site(site);
        assert_ne!(
            SensorId::from_onboarding(onboarding, 0),
            SensorId::from_onboarding(onboarding, 1)
        );
        assert_ne!(
            ReservationId::from_onboarding(onboarding).uuid(),
            SubscriptionId::from_onboarding(onboarding).uuid()
        );
    }
}
