//! The saga: its steps, the context passed to each step, and the input of the teardown.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    EntityType, Event, OnboardingFailure, OnboardingId, OperatorId, Sensor, SensorId, SiteId,
    events::{
        AlertingConfigured, AlertingRemoved, KitsReleased, KitsReserved, SensorsDeprovisioned,
        SensorsProvisioned, SiteActivated, SiteDecommissioned, SiteRejected, StockDepleted,
        SubscriptionCancelled, SubscriptionFailed, SubscriptionInitialized,
    },
    inbound::MAX_SENSORS,
    names::kebab,
};

/// Name of the step that puts the site into service. It is the last step.
pub const ACTIVATE_SITE: &str = "ActivateSite";

/// The state of `site-onboarding` that starts `site-teardown` and waits until it ends.
pub const COMPENSATE: &str = "Compensate";
/// The final state of an onboarding that failed and was undone completely.
pub const ONBOARDING_FAILED: &str = "OnboardingFailed";

/// The steps, in the order in which `site-onboarding` runs them.
///
/// The read model, the recovery, fieldctl, the tests and the template rules use this table. A rule compares it with
/// both state machines and with the templates. See docs/adding-a-step.md for what a new step needs.
pub const STEPS: [SagaStep; 5] = [
    SagaStep {
        name: "ReserveKits",
        undo: "ReleaseKits",
        entity: KitsReserved::ENTITY,
        done: KitsReserved::TYPE,
        refused: Some(StockDepleted::TYPE),
        undone: &[KitsReleased::TYPE],
        tombstones: &["RELEASED"],
    },
    SagaStep {
        name: "ProvisionSensors",
        undo: "DeprovisionSensors",
        entity: SensorsProvisioned::ENTITY,
        done: SensorsProvisioned::TYPE,
        refused: None,
        undone: &[SensorsDeprovisioned::TYPE],
        tombstones: &["DEPROVISIONED"],
    },
    SagaStep {
        name: "InitializeSubscription",
        undo: "CancelSubscription",
        entity: SubscriptionInitialized::ENTITY,
        done: SubscriptionInitialized::TYPE,
        refused: Some(SubscriptionFailed::TYPE),
        undone: &[SubscriptionCancelled::TYPE],
        tombstones: &["CANCELLED"],
    },
    SagaStep {
        name: "ConfigureAlerting",
        undo: "RemoveAlerting",
        entity: AlertingConfigured::ENTITY,
        done: AlertingConfigured::TYPE,
        refused: None,
        undone: &[AlertingRemoved::TYPE],
        tombstones: &["REMOVED"],
    },
    SagaStep {
        name: ACTIVATE_SITE,
        undo: "CloseSite",
        entity: SiteActivated::ENTITY,
        done: SiteActivated::TYPE,
        refused: None,
        undone: &[SiteRejected::TYPE, SiteDecommissioned::TYPE],
        tombstones: &["REJECTED", "DECOMMISSIONED"],
    },
];

/// A step of the saga and its undo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SagaStep {
    /// The state in `site-onboarding`. The function's name is the same in kebab case.
    pub name: &'static str,
    /// The state in `site-teardown` that undoes it. The function's name is the same in kebab case.
    pub undo: &'static str,
    /// The entity whose events the step and the undo emit.
    pub entity: EntityType,
    /// The event type of a successful step.
    pub done: &'static str,
    /// The event type of a refused step. `None` if the step cannot be refused.
    pub refused: Option<&'static str>,
    /// The event types of the undo.
    pub undone: &'static [&'static str],
    /// The statuses of the tombstone that the undo leaves. A step that finds its tombstone changes nothing.
    pub tombstones: &'static [&'static str],
}

/// What an event reports about its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// The step is done.
    Done,
    /// The step was refused.
    Refused,
    /// The step is undone.
    Undone,
}

impl SagaStep {
    /// Returns the name of the step's function, without the environment.
    #[must_use]
    pub fn function(&self) -> String {
        kebab(self.name)
    }

    /// Returns the name of the undo's function, without the environment.
    #[must_use]
    pub fn undo_function(&self) -> String {
        kebab(self.undo)
    }

    /// Returns the event types of the step and its undo, each with its meaning.
    pub fn events(&self) -> impl Iterator<Item = (&'static str, StepOutcome)> + use<> {
        let refused = self.refused.map(|event| (event, StepOutcome::Refused));
        let undone = self.undone.iter().map(|event| (*event, StepOutcome::Undone));
        [(self.done, StepOutcome::Done)].into_iter().chain(refused).chain(undone)
    }

    /// Returns whether the step works on the site's own row. Its undo closes the site, so it runs last.
    #[must_use]
    pub fn is_of_site(&self) -> bool {
        self.entity == EntityType::Site
    }
}

/// Returns the steps in the order in which `site-teardown` undoes them. It is the reverse order, except that the last
/// step's undo also comes last, because it closes the site.
#[must_use]
pub const fn undo_order() -> [SagaStep; STEPS.len()] {
    let last = STEPS.len() - 1;
    let mut order = STEPS;
    let mut index = 0;
    while index < last {
        order[index] = STEPS[last - 1 - index];
        index += 1;
    }
    order
}

/// Returns the step that an event type belongs to, and what the event reports.
#[must_use]
pub fn step_of_event(event_type: &str) -> Option<(&'static SagaStep, StepOutcome)> {
    STEPS.iter().find_map(|step| {
        let (_, outcome) = step.events().find(|(event, _)| *event == event_type)?;
        Some((step, outcome))
    })
}

/// The input of an execution of `site-teardown` and of its undos.
///
/// It is written by the state `Compensate` of `site-onboarding`, by decommission-site, recover-onboarding and
/// fieldctl. An undo that does not need the failure reads only the [`SagaContext`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TeardownInput {
    /// The saga to undo.
    #[serde(flatten)]
    pub saga: SagaContext,
    /// Why the onboarding failed. Absent if an active site is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<OnboardingFailure>,
    /// ARN of the onboarding execution whose state `Compensate` started the teardown. Only that state writes it.
    #[serde(
        rename = "AWS_STEP_FUNCTIONS_STARTED_BY_EXECUTION_ID",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub started_by: Option<String>,
}

impl TeardownInput {
    /// Creates the input of a teardown that is not started by another execution.
    #[must_use]
    pub fn new(saga: SagaContext, failure: Option<OnboardingFailure>) -> Self {
        Self { saga, failure, started_by: None }
    }
}

/// The ids that a step gets. An undo needs nothing else, because all other ids are derived from these.
///
/// `onboarding_id` is always [`OnboardingId::from_site`] of the site. [`SagaContext::for_site`] guarantees it.
/// Deserialization refuses ids that do not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "UncheckedContext")]
#[non_exhaustive]
pub struct SagaContext {
    /// The onboarding: the name of its execution and the correlation id of its events.
    pub onboarding_id: OnboardingId,
    /// The site.
    pub site_id: SiteId,
    /// The operator that owns the site. Inputs of releases before there were operators have none, or null; they belong
    /// to the default operator.
    pub operator_id: OperatorId,
    /// The event that started the saga. Absent if a person started it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub causation_id: Option<Uuid>,
}

impl SagaContext {
    /// Returns the saga of an operator's site.
    #[must_use]
    pub fn for_site(operator_id: OperatorId, site_id: SiteId, causation_id: Option<Uuid>) -> Self {
        Self { onboarding_id: OnboardingId::from_site(site_id), site_id, operator_id, causation_id }
    }

    /// Checks that the onboarding id belongs to this site.
    pub fn check_onboarding(self, found: OnboardingId) -> Result<(), IdMismatch> {
        let expected = self.onboarding_id.uuid();
        IdMismatch::check("onboardingId", self.site_id, found.uuid(), expected)
    }

    /// Checks that the sensor ids belong to this site and are in the registration's order.
    pub fn check_sensors(self, ids: impl IntoIterator<Item = SensorId>) -> Result<(), IdMismatch> {
        for (index, found) in ids.into_iter().enumerate() {
            let expected = SensorId::from_onboarding(self.onboarding_id, index).uuid();
            IdMismatch::check("sensorId", self.site_id, found.uuid(), expected)?;
        }
        Ok(())
    }

    /// Checks that this is the id of a sensor of the site.
    pub fn check_sensor(self, found: SensorId) -> Result<(), IdMismatch> {
        let id = |index| SensorId::from_onboarding(self.onboarding_id, index);
        let expected = (0..MAX_SENSORS).map(id).find(|id| *id == found).unwrap_or_else(|| id(0));
        IdMismatch::check("sensorId", self.site_id, found.uuid(), expected.uuid())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "the names on the wire")]
struct UncheckedContext {
    onboarding_id: OnboardingId,
    site_id: SiteId,
    #[serde(default)]
    operator_id: Option<OperatorId>,
    #[serde(default)]
    causation_id: Option<Uuid>,
}

impl TryFrom<UncheckedContext> for SagaContext {
    type Error = IdMismatch;

    fn try_from(unchecked: UncheckedContext) -> Result<Self, IdMismatch> {
        let UncheckedContext { onboarding_id, site_id, operator_id, causation_id } = unchecked;
        let saga = Self::for_site(operator_id.unwrap_or_default(), site_id, causation_id);
        saga.check_onboarding(onboarding_id)?;
        Ok(saga)
    }
}

/// The input of a forward step that works on the site's sensors.
///
/// Each sensor's id is [`SensorId::from_onboarding`] of the onboarding and the sensor's index. Deserialization refuses
/// any other id, so a step can never change another site's sensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedSensors")]
#[non_exhaustive]
pub struct ContextWithSensors {
    /// The saga.
    #[serde(flatten)]
    pub saga: SagaContext,
    /// All sensors of the site, in the registration's order.
    pub sensors: Vec<Sensor>,
}

impl ContextWithSensors {
    /// Creates the input. Fails if a sensor does not belong to the saga's site.
    pub fn new(saga: SagaContext, sensors: Vec<Sensor>) -> Result<Self, IdMismatch> {
        saga.check_sensors(sensors.iter().map(|sensor| sensor.sensor_id))?;
        Ok(Self { saga, sensors })
    }
}

#[derive(Deserialize)]
struct UncheckedSensors {
    #[serde(flatten)]
    saga: SagaContext,
    sensors: Vec<Sensor>,
}

impl TryFrom<UncheckedSensors> for ContextWithSensors {
    type Error = IdMismatch;

    fn try_from(unchecked: UncheckedSensors) -> Result<Self, IdMismatch> {
        Self::new(unchecked.saga, unchecked.sensors)
    }
}

/// The error for an id that is not the one expected for the site in the same input.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {found} is not the id that was expected for site {site_id}: {expected}")]
pub struct IdMismatch {
    /// The JSON field with the wrong id.
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
    use crate::{Metric, sensor::SensorMetadata};

    fn saga() -> SagaContext {
        SagaContext::for_site(
            OperatorId::DEFAULT,
            SiteId::registered(OperatorId::DEFAULT, "test", "a"),
            None,
        )
    }

    fn other() -> SagaContext {
        SagaContext::for_site(
            OperatorId::DEFAULT,
            SiteId::registered(OperatorId::DEFAULT, "test", "b"),
            None,
        )
    }

    #[test]
    fn each_name_and_event_belongs_to_one_step() {
        let names = STEPS.iter().flat_map(|step| [step.name, step.undo]);
        let events = STEPS.iter().flat_map(|step| step.events().map(|(event, _)| event));
        let mut all: Vec<_> = names.chain(events).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        for step in &STEPS {
            for (event, outcome) in step.events() {
                assert_eq!(step_of_event(event), Some((step, outcome)));
            }
        }
        assert_eq!(step_of_event("SiteCreated"), None);
    }

    #[test]
    fn the_undos_run_in_reverse_order_and_the_site_is_closed_last() {
        let undos: Vec<_> = undo_order().iter().map(|step| step.undo).collect();
        assert_eq!(
            undos,
            [
                "RemoveAlerting",
                "CancelSubscription",
                "DeprovisionSensors",
                "ReleaseKits",
                "CloseSite"
            ]
        );
        assert!(STEPS[STEPS.len() - 1].is_of_site());
        assert_eq!(STEPS.iter().filter(|step| step.is_of_site()).count(), 1);
        assert_eq!(STEPS[3].function(), "configure-alerting");
        assert_eq!(STEPS[3].undo_function(), "remove-alerting");
    }

    #[test]
    fn a_teardown_input_from_step_functions_and_one_from_rust_are_both_read() {
        let failure = OnboardingFailure {
            step: "ReserveKits".to_owned(),
            error: "KitsOutOfStock".to_owned(),
            message: "None left.".to_owned(),
        };
        let started_by = Some("arn:aws:states:eu-central-1:1:execution:x:y".to_owned());
        let by_machine = json!({
            "onboardingId": saga().onboarding_id, "siteId": saga().site_id, "causationId": null,
            "failure": failure, "AWS_STEP_FUNCTIONS_STARTED_BY_EXECUTION_ID": started_by,
        });
        let input = TeardownInput::new(saga(), Some(failure));
        assert_eq!(read(by_machine), Ok(TeardownInput { started_by, ..input.clone() }));
        assert_eq!(read(json!(input)), Ok(input));
        let closing = TeardownInput::new(saga(), None);
        assert_eq!(json!(closing), json!(saga()));
        assert_eq!(read(json!(saga())), Ok(closing));
    }

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn a_saga_is_read_as_it_was_written() {
        let saga = SagaContext { causation_id: Some(other().site_id.uuid()), ..saga() };
        assert_eq!(read(json!(saga)), Ok(saga));
        let by_hand = json!({ "onboardingId": saga.onboarding_id, "siteId": saga.site_id });
        assert_eq!(read(by_hand), Ok(SagaContext { causation_id: None, ..saga }));
    }

    #[test]
    fn an_input_without_an_operator_belongs_to_the_default_operator() {
        let other = OperatorId::registered("other");
        let owned = SagaContext { operator_id: other, ..saga() };
        let mut input = json!(owned);
        assert_eq!(input["operatorId"], json!(other));
        assert_eq!(read(input.clone()), Ok(owned));
        input["operatorId"] = Value::Null;
        assert_eq!(read(input), Ok(saga()));
    }

    #[test]
    fn an_onboarding_of_another_site_is_refused() {
        let mixed = json!({ "onboardingId": other().onboarding_id, "siteId": saga().site_id });
        assert_eq!(
            read::<SagaContext>(mixed),
            Err(format!(
                "onboardingId {} is not the id that was expected for site {}: {}",
                other().onboarding_id,
                saga().site_id,
                saga().onboarding_id
            ))
        );
    }

    #[test]
    fn a_sensor_of_another_site_or_in_the_wrong_order_is_refused() {
        let sensor = |saga: SagaContext, index| Sensor {
            sensor_id: SensorId::from_onboarding(saga.onboarding_id, index),
            metric: Metric::WaterLevel,
            unit: "m".to_owned(),
            min: None,
            max: None,
            utc_offset: None,
            metadata: SensorMetadata::default(),
        };
        let read = |sensors: [Sensor; 2]| {
            let mut input = json!(saga());
            input["sensors"] = json!(sensors);
            read::<ContextWithSensors>(input).map(|read| read.sensors)
        };
        let own = [sensor(saga(), 0), sensor(saga(), 1)];
        let last = sensor(saga(), MAX_SENSORS - 1).sensor_id;
        assert_eq!(saga().check_sensor(last), Ok(()));
        assert!(saga().check_sensor(sensor(other(), 1).sensor_id).is_err());
        assert_eq!(read(own.clone()), Ok(own.to_vec()));
        for wrong in
            [[sensor(saga(), 0), sensor(other(), 1)], [sensor(saga(), 1), sensor(saga(), 0)]]
        {
            let refused = read(wrong).expect_err("a wrong sensor");
            assert!(refused.contains("is not the id that was expected for site"), "{refused}");
        }
    }
}
