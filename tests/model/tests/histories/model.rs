//! The model: the states of a site's five entities, the changes that each step may make, and the outcomes that it may
//! have.

use alerting::{Alerting, AlertingRow, Rule};
use billing::{Subscription, SubscriptionRow};
use contracts::{
    Entity, EntityType, Metric, OnboardingFailure, Plan, SagaContext, Sensor, SiteId, Timestamp,
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

use crate::history::{Card, Site, Work};

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
    entities: [EntityModel; EntityType::ALL.len()],
    /// The provider's id of the subscription.
    subscription: Option<String>,
}

#[derive(Debug, Default)]
struct EntityModel {
    state: State,
    /// The types of its events, in order.
    story: Vec<&'static str>,
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
pub fn entity_of(work: Work) -> Option<EntityType> {
    Some(match work {
        Work::Reserve | Work::Release => EntityType::Reservation,
        Work::Provision | Work::Deprovision => EntityType::Sensors,
        Work::Initialize | Work::Cancel => EntityType::Subscription,
        Work::Configure | Work::Remove => EntityType::Alerting,
        Work::Create | Work::Activate | Work::Delete | Work::Reject | Work::Retire => {
            EntityType::Site
        }
        Work::Start | Work::Project(_) | Work::Receive(_) => return None,
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

fn place(entity: EntityType) -> usize {
    EntityType::ALL.iter().position(|known| *known == entity).expect("one of all")
}

impl SiteModel {
    pub fn new(name: &'static str, setup: Site, saga: SagaContext, sensors: Vec<Sensor>) -> Self {
        Self { name, saga, setup, sensors, entities: Default::default(), subscription: None }
    }

    pub fn state(&self, entity: EntityType) -> State {
        self.entities[place(entity)].state
    }

    pub fn story(&self, entity: EntityType) -> &[&'static str] {
        &self.entities[place(entity)].story
    }

    pub fn id(&self, entity: EntityType) -> Entity {
        Entity::for_site(entity, self.saga.site_id)
    }

    /// Returns the number of kits of each metric that the site needs.
    pub fn needs(&self) -> [i64; 2] {
        self.setup.sensors.map(|count| i64::try_from(count).expect("a small number"))
    }

    fn kits(&self) -> Vec<Kits> {
        let needed = METRICS.into_iter().zip(self.setup.sensors).filter(|(_, count)| *count > 0);
        let mut kits: Vec<_> = needed
            .map(|(metric, count)| Kits { metric, quantity: u32::try_from(count).expect("few") })
            .collect();
        kits.sort_by_key(|kits| kits.metric);
        kits
    }

    /// Returns the metrics for which this stock is too small.
    pub fn shortages(&self, stock: [i64; 2]) -> Vec<Shortage> {
        let short = self.kits().into_iter().filter_map(|Kits { metric, quantity }| {
            let there = stock[METRICS.iter().position(|it| *it == metric)?];
            let available = u32::try_from(there).ok()?;
            (available < quantity).then_some(Shortage { metric, requested: quantity, available })
        });
        short.collect()
    }

    /// Returns the changes that a step may make now. `refusable` are the shortages that the step read.
    pub fn changes(
        &self,
        work: Work,
        stock: [i64; 2],
        refusable: Option<&[Shortage]>,
    ) -> Vec<Change> {
        let site_id = self.saga.site_id;
        let Some(entity) = entity_of(work) else { return Vec::new() };
        let change = |to, event: Option<(&'static str, Value)>| {
            vec![Change { entity, to, event, stock: [0, 0] }]
        };
        let needs = self.needs();
        match (work, self.state(entity)) {
            (Work::Create, None) => change("ONBOARDING", Some(("SiteCreated", Value::Null))),
            (Work::Activate, Some("ONBOARDING")) => {
                change("ACTIVE", Some(("SiteActivated", json!(SiteActivated { site_id }))))
            }
            (Work::Delete, Some("ACTIVE")) => change("DECOMMISSIONING", None),
            (Work::Reject, Some("ONBOARDING" | "ACTIVE" | "DECOMMISSIONING")) => {
                let event = SiteRejected { site_id, failure: failure() };
                change("REJECTED", Some(("SiteRejected", json!(event))))
            }
            (Work::Retire, Some("ONBOARDING" | "ACTIVE" | "DECOMMISSIONING")) => {
                let event = SiteDecommissioned { site_id };
                change("DECOMMISSIONED", Some(("SiteDecommissioned", json!(event))))
            }
            (Work::Reserve, None) => {
                let mut may = Vec::new();
                if self.shortages(stock).is_empty() {
                    let event = json!(KitsReserved { site_id, kits: self.kits() });
                    let mut reserved = change("RESERVED", Some(("KitsReserved", event)));
                    reserved[0].stock = needs.map(|count| -count);
                    may.extend(reserved);
                }
                if let Some(shortages) = refusable {
                    let event = StockDepleted { site_id, shortages: shortages.to_vec() };
                    may.extend(change("REFUSED", Some(("StockDepleted", json!(event)))));
                }
                may
            }
            (Work::Release, Some("RESERVED")) => {
                let event = json!(KitsReleased { site_id, kits: self.kits() });
                let mut released = change("RELEASED", Some(("KitsReleased", event)));
                released[0].stock = needs;
                released
            }
            (Work::Release, None | Some("REFUSED")) => change("RELEASED", None),
            (Work::Provision, None) => {
                let event = SensorsProvisioned { site_id, sensors: self.sensors.clone() };
                change("PROVISIONED", Some(("SensorsProvisioned", json!(event))))
            }
            (Work::Deprovision, Some("PROVISIONED")) => {
                let sensor_ids = self.sensors.iter().map(|sensor| sensor.sensor_id).collect();
                let event = SensorsDeprovisioned { site_id, sensor_ids };
                change("DEPROVISIONED", Some(("SensorsDeprovisioned", json!(event))))
            }
            (Work::Deprovision, None) => change("DEPROVISIONED", None),
            (Work::Initialize, None) if self.setup.card == Card::Good => {
                change("ACTIVE", Some(("SubscriptionInitialized", Value::Null)))
            }
            (Work::Initialize, None) => change("FAILED", Some(("SubscriptionFailed", Value::Null))),
            (Work::Cancel, None) => {
                [change("CANCELLING", None), change("CANCELLED", None)].concat()
            }
            (Work::Cancel, Some("ACTIVE")) => change("CANCELLING", None),
            (Work::Cancel, Some("FAILED")) => change("CANCELLED", None),
            (Work::Cancel, Some("CANCELLING")) if self.story(entity).is_empty() => {
                change("CANCELLED", None)
            }
            (Work::Cancel, Some("CANCELLING")) => {
                let ended = self.subscription.clone().unwrap_or_default();
                let event = json!({ "siteId": site_id, "providerSubscriptionId": ended });
                change("CANCELLED", Some(("SubscriptionCancelled", event)))
            }
            (Work::Configure, None) => {
                let event = AlertingConfigured { site_id, rules: self.rules().len() };
                change("CONFIGURED", Some(("AlertingConfigured", json!(event))))
            }
            (Work::Remove, Some("CONFIGURED")) => {
                change("REMOVED", Some(("AlertingRemoved", json!(AlertingRemoved { site_id }))))
            }
            (Work::Remove, None) => change("REMOVED", None),
            _ => Vec::new(),
        }
    }

    fn rules(&self) -> Vec<Rule> {
        let mut sensors = self.sensors.clone();
        sensors.retain(|sensor| sensor.min.is_some() || sensor.max.is_some());
        sensors.into_iter().map(Rule::new).collect()
    }

    /// Records that the change was made.
    pub fn make(&mut self, change: &Change, row: &Value) {
        let entity = &mut self.entities[place(change.entity)];
        entity.state = Some(change.to);
        entity.story.extend(change.event.as_ref().map(|(kind, _)| kind));
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
        refusable: Option<&[Shortage]>,
    ) -> Result<(), String> {
        let saga = self.saga;
        let sequence =
            (self.story(change.entity).len() + usize::from(change.event.is_some())) as u64;
        let is_right = match change.entity {
            EntityType::Reservation => {
                let state = match change.to {
                    "RESERVED" => Reservation::Reserved { kits: self.kits() },
                    "REFUSED" => {
                        let shortages = refusable.unwrap_or_default().to_vec();
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
                let mut right: SiteRow = before.map_or_else(|| row.clone(), read);
                right.status = status(change.to);
                right.sequence = sequence;
                match right.status {
                    Status::Active => right.activated_at = Some(at),
                    Status::Rejected | Status::Decommissioned => right.closed_at = Some(at),
                    Status::Onboarding | Status::Decommissioning => {}
                }
                if right.status == Status::Rejected {
                    right.failure = Some(failure());
                }
                row == right
                    && (row.onboarding_id, &row.sensors) == (saga.onboarding_id, &self.sensors)
            }
            entity => return Err(format!("the model has no {}", entity.name())),
        };
        if is_right { Ok(()) } else { Err(format!("its row is wrong: {row}")) }
    }

    /// Returns whether a step may have this outcome if it saw its entity in these states.
    pub fn may_answer(&self, work: Work, outcome: &Outcome, seen: &[State]) -> bool {
        let saw = |states: &[&str]| seen.iter().flatten().any(|state| states.contains(state));
        let tombstone = Self::tombstones(work);
        match (work, outcome) {
            (Work::Start | Work::Project(_) | Work::Receive(_), outcome) => outcome.is_ok(),
            // A redelivered command gets the result in its idempotency record until the undo is complete.
            (Work::Initialize, Ok(())) => {
                let initialized =
                    self.story(EntityType::Subscription).contains(&"SubscriptionInitialized");
                saw(&["ACTIVE"]) || (saw(&["CANCELLING"]) && initialized)
            }
            // A concurrent undo deletes the customer or the subscription at the provider.
            (Work::Initialize, Err(error)) if error == "Internal" => saw(&["CANCELLING"]),
            (Work::Initialize, Err(error)) if error == "CardDeclined" => {
                self.setup.card == Card::Declined && saw(&["FAILED"])
            }
            (Work::Initialize, Err(error)) if error == "InvalidInput" => {
                self.setup.card == Card::Unknown && saw(&["FAILED"])
            }
            (Work::Reserve, Err(error)) if error == "KitsOutOfStock" => saw(&["REFUSED"]),
            (Work::Activate | Work::Reject | Work::Retire, Err(error))
                if error == "InvalidInput" =>
            {
                seen.contains(&None)
            }
            (Work::Delete, Err(error)) if error == "404" => seen.contains(&None),
            (Work::Delete, Err(error)) if error == "409" => saw(&["ONBOARDING", "REJECTED"]),
            (Work::Create, Ok(())) => seen.iter().any(Option::is_some),
            (Work::Reserve, Ok(())) => saw(&["RESERVED"]),
            (Work::Provision, Ok(())) => saw(&["PROVISIONED"]),
            (Work::Configure, Ok(())) => saw(&["CONFIGURED"]),
            (Work::Activate, Ok(())) => saw(&["ACTIVE"]),
            (Work::Delete, Ok(())) => saw(&["ACTIVE", "DECOMMISSIONING", "DECOMMISSIONED"]),
            (work, Ok(())) if work.is_undo() => saw(tombstone),
            (work, Err(error)) if !work.is_undo() && error == "Superseded" => saw(tombstone),
            _ => false,
        }
    }

    /// Returns the final states that an undo leaves, or in which a late step finds its entity.
    fn tombstones(work: Work) -> &'static [&'static str] {
        match work {
            Work::Initialize => &["CANCELLING", "CANCELLED"],
            Work::Activate => &["REJECTED", "DECOMMISSIONING", "DECOMMISSIONED"],
            _ => entity_of(work).map_or(&[], tombstones_of),
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
    step.expect("a step of each entity").tombstones
}

fn status(name: &str) -> Status {
    Status::ALL.into_iter().find(|status| status.name() == name).expect("a status")
}

/// Returns the saga of the site that `POST /sites` creates with this key.
pub fn saga_of(key: &str) -> SagaContext {
    let site_id = SiteId::registered("", key);
    SagaContext::for_site(site_id, None)
}
