//! The context that every step of a saga gets, and the check that its ids belong together.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{OnboardingId, Sensor, SensorId, SiteId};

/// The saga that a step belongs to. An undo needs nothing else: every other id is derived from it.
///
/// `onboarding_id` is always [`OnboardingId::of`] the site. A value is either made by
/// [`Saga::of_site`] or read from JSON or a row, and reading refuses ids that do not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "UncheckedSaga")]
#[non_exhaustive]
pub struct Saga {
    /// The onboarding: name of its execution, correlation id of its events.
    pub onboarding_id: OnboardingId,
    /// The site.
    pub site_id: SiteId,
    /// The event that started the saga; absent where a person started it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub causation_id: Option<Uuid>,
}

impl Saga {
    /// The saga of a site.
    #[must_use]
    pub fn of_site(site_id: SiteId, causation_id: Option<Uuid>) -> Self {
        Self { onboarding_id: OnboardingId::of(site_id), site_id, causation_id }
    }

    /// Refuses an onboarding id that is not this site's.
    pub fn check_onboarding(self, found: OnboardingId) -> Result<(), IdMismatch> {
        let expected = self.onboarding_id.uuid();
        IdMismatch::check("onboardingId", self.site_id, found.uuid(), expected)
    }

    /// Refuses sensor ids that are not this site's, in the registration's order.
    pub fn check_sensors(self, ids: impl IntoIterator<Item = SensorId>) -> Result<(), IdMismatch> {
        for (index, found) in ids.into_iter().enumerate() {
            let expected = SensorId::of(self.onboarding_id, index).uuid();
            IdMismatch::check("sensorId", self.site_id, found.uuid(), expected)?;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "the names on the wire")]
struct UncheckedSaga {
    onboarding_id: OnboardingId,
    site_id: SiteId,
    #[serde(default)]
    causation_id: Option<Uuid>,
}

impl TryFrom<UncheckedSaga> for Saga {
    type Error = IdMismatch;

    fn try_from(unchecked: UncheckedSaga) -> Result<Self, IdMismatch> {
        let UncheckedSaga { onboarding_id, site_id, causation_id } = unchecked;
        let saga = Self::of_site(site_id, causation_id);
        saga.check_onboarding(onboarding_id)?;
        Ok(saga)
    }
}

/// The input of a forward step that works on the site's sensors.
///
/// Each sensor's id is [`SensorId::of`] the onboarding and the sensor's index; reading refuses
/// any other, so that a step can never act on another site's sensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedSensors")]
#[non_exhaustive]
pub struct SagaWithSensors {
    /// The saga.
    #[serde(flatten)]
    pub saga: Saga,
    /// All sensors of the site, in the registration's order.
    pub sensors: Vec<Sensor>,
}

impl SagaWithSensors {
    /// Checks that the sensors are those of the saga's site.
    pub fn new(saga: Saga, sensors: Vec<Sensor>) -> Result<Self, IdMismatch> {
        saga.check_sensors(sensors.iter().map(|sensor| sensor.sensor_id))?;
        Ok(Self { saga, sensors })
    }
}

#[derive(Deserialize)]
struct UncheckedSensors {
    #[serde(flatten)]
    saga: Saga,
    sensors: Vec<Sensor>,
}

impl TryFrom<UncheckedSensors> for SagaWithSensors {
    type Error = IdMismatch;

    fn try_from(unchecked: UncheckedSensors) -> Result<Self, IdMismatch> {
        Self::new(unchecked.saga, unchecked.sensors)
    }
}

/// An id that does not belong to the site that it came with.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {found} does not belong to site {site_id}; this site's is {expected}")]
pub struct IdMismatch {
    /// The JSON field that holds the wrong id.
    pub field: &'static str,
    site_id: SiteId,
    found: Uuid,
    expected: Uuid,
}

impl IdMismatch {
    pub(crate) fn check(
        field: &'static str,
        site_id: SiteId,
        found: Uuid,
        expected: Uuid,
    ) -> Result<(), Self> {
        if found == expected {
            return Ok(());
        }
        Err(Self { field, site_id, found, expected })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::Metric;

    fn saga() -> Saga {
        Saga::of_site(SiteId::registered("test", "a"), None)
    }

    fn other() -> Saga {
        Saga::of_site(SiteId::registered("test", "b"), None)
    }

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn a_saga_is_read_as_it_was_written() {
        let saga = Saga { causation_id: Some(other().site_id.uuid()), ..saga() };
        assert_eq!(read(json!(saga)), Ok(saga));
        let by_hand = json!({ "onboardingId": saga.onboarding_id, "siteId": saga.site_id });
        assert_eq!(read(by_hand), Ok(Saga { causation_id: None, ..saga }));
    }

    #[test]
    fn an_onboarding_of_another_site_is_refused() {
        let mixed = json!({ "onboardingId": other().onboarding_id, "siteId": saga().site_id });
        assert_eq!(
            read::<Saga>(mixed),
            Err(format!(
                "onboardingId {} does not belong to site {}; this site's is {}",
                other().onboarding_id,
                saga().site_id,
                saga().onboarding_id
            ))
        );
    }

    #[test]
    fn a_sensor_of_another_site_or_place_is_refused() {
        let sensor = |saga: Saga, index| Sensor {
            sensor_id: SensorId::of(saga.onboarding_id, index),
            metric: Metric::WaterLevel,
            unit: "m".to_owned(),
            min: None,
            max: None,
        };
        let read = |sensors: [Sensor; 2]| {
            let mut input = json!(saga());
            input["sensors"] = json!(sensors);
            read::<SagaWithSensors>(input).map(|read| read.sensors)
        };
        let own = [sensor(saga(), 0), sensor(saga(), 1)];
        assert_eq!(read(own.clone()), Ok(own.to_vec()));
        for wrong in
            [[sensor(saga(), 0), sensor(other(), 1)], [sensor(saga(), 1), sensor(saga(), 0)]]
        {
            let refused = read(wrong).expect_err("a wrong sensor");
            assert!(refused.contains("does not belong to site"), "{refused}");
        }
    }
}
