//! The model: the states of a site's five entities, the changes that each step may make, and the outcomes that it may
//! have.

use alerting::{Alerting, AlertingRow, Rule};
use billing::{Subscription, SubscriptionRow};
use contracts::{
    Entity, EntityType, Metric, OnboardingFailure, OperatorId, Plan, SagaContext, Sensor, SiteId,
    Timestamp,
    events::{
        AlertingConfigured, AlertingRemoved, Kits, KitsReleased, KitsReserved,
        SensorsDeprovisioned, SensorsProvisioned, Shortage, SiteActivated, SiteDecommissioned,
        SiteRejected, StockDepleted,
    },
    saga::STEPS,
};
use devices::{Sensors, SensorsRow};
use inventory::{Reservation, ReservationRow};
use serde_json::{Value, json};
use sites::{SiteRow, Status};
use testkit::cloud::read;

use crate::history::{Card, Invocation, Site};

pub const METRICS: [Metric; 2] = [Metric::AirTemperature, Metric::AirPressure];

/// The state of an entity: its row's `status`, or `None` without a row.
pub type State = Option<&'static str>;

/// The outcome of a step. `Err` is the error's name, or the status of an HTTP response.
pub type Outcome = Result<(), String>;

/// The expected state of a site.
#[derive(Debug)]
pub struct SiteModel {
    pub name: &'static str,
    pub saga: SagaContext,
    pub setup: Site,
    pub sensors: Vec<Sensor>,
    entities: [EntityModel; EntityType::OF_SITE.len()],
    /// The provider's id of the subscription.
    subscription: Option<String>,
}

#[derive(Debug, Default)]
struct EntityModel {
    state: State,
    /// The types of its events, in order.
    event_types: Vec<&'static str>,
}

/// A change that a step may make, atomically.
#[derive(Clone, Debug)]
pub struct Change {
    pub entity: EntityType,
    pub to: &'static str,
    /// The event's type and data. If the data is null, only the event's site is compared.
    pub event: Option<(&'static str, Value)>,
    /// The change of the stock, by metric.
    pub stock: [i64; 2],
}

/// Returns the entity that a step works on. Returns `None` for steps without a site's entity.
pub fn entity_of(invocation: Invocation) -> Option<EntityType> {
    Some(match invocation {
        Invocation::Reserve | Invocation::Release => EntityType::Reservation,
        Invocation::Provision | Invocation::Deprovision => EntityType::Sensors,
        Invocation::Initialize | Invocation::Cancel => EntityType::Subscription,
        Invocation::Configure | Invocation::Remove => EntityType::Alerting,
        Invocation::Create
        | Invocation::Activate
        | Invocation::Delete
        | Invocation::Reject
        | Invocation::Retire => EntityType::Site,
        Invocation::Start | Invocation::Project(_) | Invocation::Receive(_) => return None,
    })
}

/// Returns the failure in the input of a teardown after a failed onboarding.
pub fn failure() -> OnboardingFailure {
    OnboardingFailure {
        step: "ConfigureAlerting".to_owned(),
        error: "Transient".to_owned(),
        message: "busy".to_owned(),
    }
}

fn index_of(entity: EntityType) -> usize {
    EntityType::OF_SITE
        .iter()
        .position(|known| *known == entity)
        .expect("OF_SITE has every entity type")
}

impl SiteModel {
    pub fn new(name: &'static str, setup: Site, saga: SagaContext, sensors: Vec<Sensor>) -> Self {
        Self { name, saga, setup, sensors, entities: Default::default(), subscription: None }
    }

    pub fn state(&self, entity: EntityType) -> State {
        self.entities[index_of(entity)].state
    }

    pub fn event_types(&self, entity: EntityType) -> &[&'static str] {
        &self.entities[index_of(entity)].event_types
    }

    pub fn id(&self, entity: EntityType) -> Entity {
        Entity::for_site(entity, self.saga.site_id).expect("an entity of a site")
    }

    /// Returns the number of kits of each metric that the site needs.
    pub fn kits_needed(&self) -> [i64; 2] {
        self.setup.sensors.map(|count| i64::try_from(count).expect("a small number fits into i64"))
    }

    fn kits(&self) -> Vec<Kits> {
        let needed = METRICS.into_iter().zip(self.setup.sensors).filter(|(_, count)| *count > 0);
        let mut kits: Vec<_> = needed
            .map(|(metric, count)| Kits {
                metric,
                quantity: u32::try_from(count).expect("a small number fits into u32"),
            })
            .collect();
        kits.sort_by_key(|kits| kits.metric);
        kits
    }

    /// Returns the metrics for which this stock is too small.
    pub fn shortages(&self, stock: [i64; 2]) -> Vec<Shortage> {
        let short = self.kits().into_iter().filter_map(|Kits { metric, quantity }| {
            let in_stock = stock[METRICS.iter().position(|it| *it == metric)?];
            let available = u32::try_from(in_stock).ok()?;
            (available < quantity).then_some(Shortage { metric, requested: quantity, available })
        });
        short.collect()
    }

    /// Returns the changes that a step may make now. `read_shortages` are the shortages that a reservation read.
    pub fn changes(
        &self,
        invocation: Invocation,
        stock: [i64; 2],
        read_shortages: Option<&[Shortage]>,
    ) -> Vec<Change> {
        let site_id = self.saga.site_id;
        let Some(entity) = entity_of(invocation) else { return Vec::new() };
        let change = |to, event: Option<(&'static str, Value)>| {
            vec![Change { entity, to, event, stock: [0, 0] }]
        };
        let needed = self.kits_needed();
        match (invocation, self.state(entity)) {
            (Invocation::Create, None) => change("ONBOARDING", Some(("SiteCreated", Value::Null))),
            (Invocation::Activate, Some("ONBOARDING")) => {
                change("ACTIVE", Some(("SiteActivated", json!(SiteActivated { site_id }))))
            }
            (Invocation::Delete, Some("ACTIVE")) => change("DECOMMISSIONING", None),
            (Invocation::Reject, Some("ONBOARDING" | "ACTIVE" | "DECOMMISSIONING")) => {
                let event = SiteRejected { site_id, failure: failure() };
                change("REJECTED", Some(("SiteRejected", json!(event))))
            }
            (Invocation::Retire, Some("ONBOARDING" | "ACTIVE" | "DECOMMISSIONING")) => {
                let event = SiteDecommissioned { site_id };
                change("DECOMMISSIONED", Some(("SiteDecommissioned", json!(event))))
            }
            (Invocation::Reserve, None) => {
                let mut allowed = Vec::new();
                if self.shortages(stock).is_empty() {
                    let event = json!(KitsReserved { site_id, kits: self.kits() });
                    let mut reserved = change("RESERVED", Some(("KitsReserved", event)));
                    reserved[0].stock = needed.map(|count| -count);
                    allowed.extend(reserved);
                }
                if let Some(shortages) = read_shortages {
                    let event = StockDepleted { site_id, shortages: shortages.to_vec() };
                    allowed.extend(change("REFUSED", Some(("StockDepleted", json!(event)))));
                }
                allowed
            }
            (Invocation::Release, Some("RESERVED")) => {
                let event = json!(KitsReleased { site_id, kits: self.kits() });
                let mut released = change("RELEASED", Some(("KitsReleased", event)));
                released[0].stock = needed;
                released
            }
            (Invocation::Release, None | Some("REFUSED")) => change("RELEASED", None),
            (Invocation::Provision, None) => {
                let event = SensorsProvisioned { site_id, sensors: self.sensors.clone() };
                change("PROVISIONED", Some(("SensorsProvisioned", json!(event))))
            }
            (Invocation::Deprovision, Some("PROVISIONED")) => {
                let sensor_ids = self.sensors.iter().map(|sensor| sensor.sensor_id).collect();
                let event = SensorsDeprovisioned { site_id, sensor_ids };
                change("DEPROVISIONED", Some(("SensorsDeprovisioned", json!(event))))
            }
            (Invocation::Deprovision, None) => change("DEPROVISIONED", None),
            (Invocation::Initialize, None) if self.setup.card == Card::Good => {
                change("ACTIVE", Some(("SubscriptionInitialized", Value::Null)))
            }
            (Invocation::Initialize, None) => {
                change("FAILED", Some(("SubscriptionFailed", Value::Null)))
            }
            (Invocation::Cancel, None) => {
                [change("CANCELLING", None), change("CANCELLED", None)].concat()
            }
            (Invocation::Cancel, Some("ACTIVE")) => change("CANCELLING", None),
            (Invocation::Cancel, Some("FAILED")) => change("CANCELLED", None),
            (Invocation::Cancel, Some("CANCELLING")) if self.event_types(entity).is_empty() => {
                change("CANCELLED", None)
            }
            (Invocation::Cancel, Some("CANCELLING")) => {
                let ended = self.subscription.clone().unwrap_or_default();
                let event = json!({ "siteId": site_id, "providerSubscriptionId": ended });
                change("CANCELLED", Some(("SubscriptionCancelled", event)))
            }
            (Invocation::Configure, None) => {
                let limits = self.rules().iter().map(|rule| (&rule.sensor).into()).collect();
                let event = AlertingConfigured { site_id, limits };
                change("CONFIGURED", Some(("AlertingConfigured", json!(event))))
            }
            (Invocation::Remove, Some("CONFIGURED")) => {
                change("REMOVED", Some(("AlertingRemoved", json!(AlertingRemoved { site_id }))))
            }
            (Invocation::Remove, None) => change("REMOVED", None),
            _ => Vec::new(),
        }
    }

    fn rules(&self) -> Vec<Rule> {
        let mut sensors = self.sensors.clone();
        sensors.retain(|sensor| sensor.min.is_some() || sensor.max.is_some());
        sensors.into_iter().map(Rule::new).collect()
    }

    /// Records that a step made the change.
    pub fn record_change(&mut self, change: &Change, row: &Value) {
        let entity = &mut self.entities[index_of(change.entity)];
        entity.state = Some(change.to);
        entity.event_types.extend(change.event.as_ref().map(|(kind, _)| kind));
        if (change.entity, change.to) == (EntityType::Subscription, "ACTIVE") {
            let row: SubscriptionRow = read(row);
            if let Subscription::Active { provider_subscription_id, .. } = row.state {
                self.subscription = Some(provider_subscription_id);
            }
        }
    }

    /// Compares the row that a change wrote with the expected one.
    pub fn check_row(
        &self,
        change: &Change,
        before: Option<&Value>,
        row: &Value,
        at: Timestamp,
        read_shortages: Option<&[Shortage]>,
    ) -> Result<(), String> {
        let saga = self.saga;
        let sequence =
            (self.event_types(change.entity).len() + usize::from(change.event.is_some())) as u64;
        let is_expected = match change.entity {
            EntityType::Reservation => {
                let state = match change.to {
                    "RESERVED" => Reservation::Reserved { kits: self.kits() },
                    "REFUSED" => {
                        let shortages = read_shortages.unwrap_or_default().to_vec();
                        Reservation::Refused { shortages }
                    }
                    _ => Reservation::Released,
                };
                read::<ReservationRow>(row) == ReservationRow { saga, state, sequence, at }
            }
            EntityType::Sensors => {
                let state = match change.to {
                    "PROVISIONED" => Sensors::Provisioned { sensors: self.sensors.clone() },
                    _ => Sensors::Deprovisioned,
                };
                read::<SensorsRow>(row) == SensorsRow { saga, state, sequence, at }
            }
            EntityType::Alerting => {
                let state = match change.to {
                    "CONFIGURED" => Alerting::Configured { rules: self.rules() },
                    _ => Alerting::Removed,
                };
                read::<AlertingRow>(row) == AlertingRow { saga, state, sequence, at }
            }
            EntityType::Subscription => {
                let row: SubscriptionRow = read(row);
                let state = match (&row.state, change.to) {
                    (Subscription::Active { plan, .. }, "ACTIVE")
                    | (Subscription::Failed { plan, .. }, "FAILED") => *plan == Plan::Standard,
                    (Subscription::Cancelling { provider_subscription_id, .. }, "CANCELLING") => {
                        *provider_subscription_id == self.subscription
                    }
                    (Subscription::Cancelled, "CANCELLED") => true,
                    _ => false,
                };
                let state = state.then_some(row.state.clone());
                state.is_some_and(|state| row == SubscriptionRow { saga, state, sequence, at })
            }
            EntityType::Site => {
                let row: SiteRow = read(row);
                let mut expected: SiteRow = before.map_or_else(|| row.clone(), read);
                expected = expected.with_status(status(change.to));
                expected.sequence = sequence;
                match expected.status() {
                    Status::Active => expected.activated_at = Some(at),
                    Status::Rejected | Status::Decommissioned => expected.closed_at = Some(at),
                    Status::Onboarding | Status::Decommissioning => {}
                }
                if expected.status() == Status::Rejected {
                    expected.failure = Some(failure());
                }
                row == expected
                    && (row.onboarding_id, &row.sensors) == (saga.onboarding_id, &self.sensors)
            }
            entity => return Err(format!("the model has no {}", entity.name())),
        };
        if is_expected { Ok(()) } else { Err(format!("unexpected row: {row}")) }
    }

    /// Returns whether a step may have this outcome if its entity had these states during the step.
    pub fn may_return(
        &self,
        invocation: Invocation,
        outcome: &Outcome,
        entity_states: &[State],
    ) -> bool {
        let had_state =
            |states: &[&str]| entity_states.iter().flatten().any(|state| states.contains(state));
        let tombstone = Self::tombstones(invocation);
        match (invocation, outcome) {
            (Invocation::Start | Invocation::Project(_) | Invocation::Receive(_), outcome) => {
                outcome.is_ok()
            }
            // A redelivered command gets the result in its idempotency record until the undo is complete.
            (Invocation::Initialize, Ok(())) => {
                let initialized =
                    self.event_types(EntityType::Subscription).contains(&"SubscriptionInitialized");
                had_state(&["ACTIVE"]) || (had_state(&["CANCELLING"]) && initialized)
            }
            // A concurrent undo deletes the customer or the subscription at the provider.
            (Invocation::Initialize, Err(error)) if error == "Internal" => {
                had_state(&["CANCELLING"])
            }
            (Invocation::Initialize, Err(error)) if error == "CardDeclined" => {
                self.setup.card == Card::Declined && had_state(&["FAILED"])
            }
            (Invocation::Initialize, Err(error)) if error == "InvalidInput" => {
                self.setup.card == Card::Unknown && had_state(&["FAILED"])
            }
            (Invocation::Reserve, Err(error)) if error == "KitsOutOfStock" => {
                had_state(&["REFUSED"])
            }
            (Invocation::Activate | Invocation::Reject | Invocation::Retire, Err(error))
                if error == "InvalidInput" =>
            {
                entity_states.contains(&None)
            }
            (Invocation::Delete, Err(error)) if error == "404" => entity_states.contains(&None),
            (Invocation::Delete, Err(error)) if error == "409" => {
                had_state(&["ONBOARDING", "REJECTED"])
            }
            (Invocation::Create, Ok(())) => entity_states.iter().any(Option::is_some),
            (Invocation::Reserve, Ok(())) => had_state(&["RESERVED"]),
            (Invocation::Provision, Ok(())) => had_state(&["PROVISIONED"]),
            (Invocation::Configure, Ok(())) => had_state(&["CONFIGURED"]),
            (Invocation::Activate, Ok(())) => had_state(&["ACTIVE"]),
            (Invocation::Delete, Ok(())) => {
                had_state(&["ACTIVE", "DECOMMISSIONING", "DECOMMISSIONED"])
            }
            (invocation, Ok(())) if invocation.is_undo() => had_state(tombstone),
            (invocation, Err(error)) if !invocation.is_undo() && error == "Superseded" => {
                had_state(tombstone)
            }
            _ => false,
        }
    }

    /// Returns the final states that an undo leaves, or in which a late step finds its entity.
    fn tombstones(invocation: Invocation) -> &'static [&'static str] {
        match invocation {
            Invocation::Initialize => &["CANCELLING", "CANCELLED"],
            Invocation::Activate => &["REJECTED", "DECOMMISSIONING", "DECOMMISSIONED"],
            _ => entity_of(invocation).map_or(&[], tombstones_of),
        }
    }

    /// Returns whether only the tombstone is left of this entity.
    pub fn is_undone(&self, entity: EntityType) -> bool {
        self.state(entity).is_some_and(|state| tombstones_of(entity).contains(&state))
    }
}

/// Returns the statuses of the row after the undo of the entity's step.
fn tombstones_of(entity: EntityType) -> &'static [&'static str] {
    let step = STEPS.iter().find(|step| step.entity == entity);
    step.expect("each entity has a step").tombstones
}

fn status(name: &str) -> Status {
    Status::ALL.into_iter().find(|status| status.name() == name).expect("the status is known")
}

/// Returns the saga of the site that `POST /sites` creates with this key.
pub fn saga_context(key: &str) -> SagaContext {
    let site_id = SiteId::registered(OperatorId::DEFAULT, "", key);
    SagaContext::for_site(OperatorId::DEFAULT, site_id, None)
}
