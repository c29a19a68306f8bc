//! Runs a history and compares it with the model after every call with an effect.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use contracts::{
    Entity, EntityType, EventId, Metric, Sensor, SensorId, Timestamp, events::Shortage, saga,
    sensor::SensorMetadata,
};
use serde_json::{Value, json};
use sites::{StepRow, StepStatus};
use store::EventRow;
use testkit::{
    cloud::{Cloud, read},
    dynamo::{ALERTING, BILLING, DEVICES, EVENTS, INVENTORY, SITES},
    rng::Rng,
    sample::{self, noon},
};

use crate::{
    harness::{
        Executions, Harness, LEASE, ONBOARDING_ARN, ServiceRequest, TEARDOWN_ARN, WaitingCall,
    },
    history::{
        Action, Card, DELIVERIES, History, InitialState, InjectedFault, Invocation, NAMES,
        ServiceScope,
    },
    model::{Change, METRICS, Outcome, SiteModel, State, entity_of, failure, saga_context},
    provider::ProviderState,
};

/// Operations that do not change anything.
const READ_OPERATIONS: [&str; 1] = ["GetItem"];
/// The maximum number of rounds until all sagas have ended. If a round leaves calls in transit, another round follows.
const MAX_ROUNDS: usize = 4;

/// The number of times that a function's call had an outcome, by function, call and outcome.
pub type OutcomeCounts = BTreeMap<(&'static str, String, String), u32>;

/// The result of a history.
#[derive(Debug)]
pub struct RunResult {
    /// The course of the run, in words.
    pub transcript: Vec<String>,
    /// The first violation of the model.
    pub violation: Option<String>,
    pub outcomes: OutcomeCounts,
}

/// Rows by table and key, in DynamoDB's JSON format.
type Rows = BTreeMap<&'static str, BTreeMap<String, Value>>;
/// Changed rows by table and key, each with its old and new value.
type Changed = BTreeMap<(&'static str, String), (Option<Value>, Option<Value>)>;

/// The delivery to which a call belongs.
#[derive(Clone, Debug)]
struct CallOrigin {
    site: usize,
    invocation: Invocation,
    at: Timestamp,
    /// The event, for `project-site`.
    event: Option<EventRow>,
    /// The shortages that a reservation read.
    read_shortages: Option<Vec<Shortage>>,
    /// The states of its entity since the delivery's start.
    states: Vec<State>,
    /// Whether its outcome may be `Transient`.
    may_be_transient: bool,
}

/// A running function.
struct Delivery {
    origin: CallOrigin,
    future: std::pin::Pin<Box<dyn Future<Output = Outcome>>>,
    faults: BTreeMap<usize, InjectedFault>,
    calls: usize,
    /// The paused call, with its response if it took effect.
    waiting: Option<(WaitingCall, Option<(u16, Value)>)>,
}

/// A call in transit whose caller no longer waits.
struct LateCall {
    origin: CallOrigin,
    request: ServiceRequest,
}

struct HistoryRun<'a> {
    harness: &'a mut Harness,
    /// The services that take part.
    services: BTreeSet<ServiceScope>,
    cloud: Cloud,
    provider: ProviderState,
    executions: Executions,
    sites: Vec<SiteModel>,
    /// The committed events of each site.
    events: Vec<Vec<EventRow>>,
    /// Whether an undo was delivered for the site.
    undo_delivered: Vec<bool>,
    initial: [u32; 2],
    received: BTreeSet<usize>,
    rows: Rows,
    paused: Vec<Delivery>,
    late: Vec<LateCall>,
    seconds: i64,
    transcript: Vec<String>,
    outcomes: OutcomeCounts,
}

/// Runs the history until all its sagas have ended.
pub async fn run_history(harness: &mut Harness, history: &History) -> RunResult {
    harness.drop_calls();
    let mut run = HistoryRun::new(harness, history);
    let violation = run.run_all(history).await.err();
    RunResult { transcript: run.transcript, violation, outcomes: run.outcomes }
}

fn sensors(index: usize, counts: [usize; 2]) -> Vec<Sensor> {
    let saga = saga_context(NAMES[index]);
    let metrics = METRICS.into_iter().zip(counts);
    let each = metrics.flat_map(|(metric, count)| std::iter::repeat_n(metric, count));
    let limits = [(Some(1.5), Some(50.5)), (None, Some(99.5))];
    each.enumerate()
        .map(|(index, metric): (usize, Metric)| {
            let (min, max) = limits.get(index).copied().unwrap_or_default();
            let sensor_id = SensorId::from_onboarding(saga.onboarding_id, index);
            let unit = metric.units()[0].to_owned();
            Sensor {
                sensor_id,
                metric,
                unit,
                min,
                max,
                utc_offset: None,
                metadata: SensorMetadata::default(),
            }
        })
        .collect()
}

impl<'a> HistoryRun<'a> {
    fn new(harness: &'a mut Harness, history: &History) -> Self {
        let cloud = Cloud::new(Rng::from_seed(0));
        for (metric, quantity) in METRICS.into_iter().zip(history.stock) {
            if quantity > 0 {
                cloud.put(
                    INVENTORY,
                    json!({ "id": format!("stock#{metric}"), "quantity": quantity }),
                );
            }
        }
        let sites = history.sites.iter().enumerate().map(|(index, site)| {
            let (name, sensors) = (NAMES[index], sensors(index, site.sensors));
            SiteModel::new(name, site.clone(), saga_context(name), sensors)
        });
        let sites: Vec<_> = sites.collect();
        let mut run = Self {
            harness,
            services: history.services(),
            cloud,
            provider: ProviderState::default(),
            executions: Executions::default(),
            events: vec![Vec::new(); sites.len()],
            undo_delivered: vec![false; sites.len()],
            sites,
            initial: history.stock,
            received: BTreeSet::new(),
            rows: Rows::new(),
            paused: Vec::new(),
            late: Vec::new(),
            seconds: 0,
            transcript: Vec::new(),
            outcomes: OutcomeCounts::new(),
        };
        for table in [SITES, INVENTORY, DEVICES, BILLING, ALERTING, EVENTS] {
            run.refresh_rows(table);
        }
        run
    }

    fn now(&self) -> Timestamp {
        noon(self.seconds)
    }

    async fn run_all(&mut self, history: &History) -> Result<(), String> {
        for site in 0..self.sites.len() {
            let initial_state = self.sites[site].setup.initial_state;
            for (invocation, required) in [
                (Invocation::Create, InitialState::Registered),
                (Invocation::Activate, InitialState::Active),
            ] {
                if self.takes_part(invocation) && initial_state >= required {
                    self.run_without_faults(site, invocation, &[]).await?;
                }
            }
        }
        for action in &history.actions {
            match action {
                Action::Deliver { site, invocation, faults } => {
                    let site = site % self.sites.len();
                    self.undo_delivered[site] |= invocation.is_undo();
                    self.deliver(site, *invocation, faults.iter().copied().collect()).await?;
                }
                Action::Resume(number) if !self.paused.is_empty() => {
                    let delivery = self.paused.remove(number % self.paused.len());
                    self.resume(delivery).await?;
                }
                Action::Arrive(number) if !self.late.is_empty() => {
                    let late = self.late.remove(number % self.late.len());
                    self.arrive(late)?;
                }
                Action::Wait => self.expire_timeouts(),
                Action::Resume(_) | Action::Arrive(_) => {}
            }
        }
        self.transcript.push(
            "The actions have ended. Now each saga runs to its end without faults.".to_owned(),
        );
        for _ in 0..MAX_ROUNDS {
            self.expire_timeouts();
            for site in 0..self.sites.len() {
                self.complete_saga(site).await?;
            }
            if self.late.is_empty() {
                return self.check_everything().await;
            }
            for late in std::mem::take(&mut self.late) {
                self.arrive(late)?;
            }
        }
        Err("calls remain in transit in every round".to_owned())
    }

    fn takes_part(&self, invocation: Invocation) -> bool {
        self.services.contains(&invocation.owner())
    }

    /// Lets time pass. Every running function times out, and every lock expires.
    fn expire_timeouts(&mut self) {
        self.seconds += i64::try_from(LEASE.as_secs()).unwrap_or(i64::MAX) + 1;
        self.transcript.push("31 s pass: every running function times out.".to_owned());
        for delivery in std::mem::take(&mut self.paused) {
            if let Some((call, None)) = delivery.waiting {
                self.late.push(LateCall { origin: delivery.origin, request: call.request });
            }
        }
    }

    fn describe(&self, origin: &CallOrigin) -> String {
        let function = origin.invocation.function();
        match origin.invocation {
            Invocation::Receive(number) => format!("{function} of delivery {number}"),
            Invocation::Reject => {
                format!("{function} (rejected) of site {}", self.sites[origin.site].name)
            }
            Invocation::Retire => {
                format!("{function} (decommissioned) of site {}", self.sites[origin.site].name)
            }
            Invocation::Project(_) => {
                let event = origin.event.as_ref().map_or("no event", |event| event.kind.as_str());
                format!("{function} of {event} of site {}", self.sites[origin.site].name)
            }
            _ => format!("{function} of site {}", self.sites[origin.site].name),
        }
    }

    fn count_outcome(&mut self, origin: &CallOrigin, at: &str, what: &str) {
        let key = (origin.invocation.function(), at.to_owned(), what.to_owned());
        *self.outcomes.entry(key).or_default() += 1;
    }

    /// Returns the payload of a function. Returns `None` if there is no event for it.
    fn payload(&self, site: usize, invocation: Invocation) -> Option<(Value, Option<EventRow>)> {
        let it = &self.sites[site];
        let events = &self.events[site];
        let mut payload = sample::payload(it.saga);
        let method = match it.setup.card {
            Card::Good => "pm_card_visa",
            Card::Declined => "pm_card_chargeDeclined",
            Card::Unknown => "pm_nobody",
        };
        let event = match invocation {
            Invocation::Start => Some(events.iter().find(|event| event.kind == "SiteCreated")?),
            Invocation::Project(number) => Some(events.get(number % events.len().max(1))?),
            _ => None,
        };
        match invocation {
            Invocation::Create => {
                let sensors: Vec<_> = it
                    .sensors
                    .iter()
                    .map(|it| json!({ "metric": it.metric, "unit": it.unit, "min": it.min, "max": it.max }))
                    .collect();
                payload = json!({
                    "name": it.name,
                    "operator": "NOAA",
                    "location": { "latitude": 37.7, "longitude": -105.92, "elevationM": 2317.0 },
                    "sensors": sensors,
                    "plan": "standard",
                    "paymentMethod": method,
                });
            }
            Invocation::Delete => payload = json!(it.saga.site_id),
            Invocation::Reserve | Invocation::Provision | Invocation::Configure => {
                payload["sensors"] = json!(it.sensors);
            }
            Invocation::Initialize => {
                payload["name"] = it.name.into();
                payload["plan"] = "standard".into();
                payload["paymentMethod"] = method.into();
            }
            Invocation::Reject => payload["failure"] = json!(failure()),
            Invocation::Start | Invocation::Project(_) => {
                let event = event?;
                payload = sample::event("project-site");
                payload["detail-type"] = event.kind.clone().into();
                payload["source"] = event.source.clone().into();
                payload["detail"] =
                    serde_json::from_str(&event.detail).expect("the detail is JSON");
            }
            Invocation::Receive(number) => {
                payload = sample::event("receive-kits");
                let kits: Vec<_> = METRICS
                    .into_iter()
                    .zip(DELIVERIES[number])
                    .filter(|(_, quantity)| *quantity > 0)
                    .map(|(metric, quantity)| json!({ "metric": metric, "quantity": quantity }))
                    .collect();
                payload["detail"] = json!({ "deliveryId": number.to_string(), "kits": kits });
            }
            _ => {}
        }
        Some((payload, event.cloned()))
    }

    /// Delivers a command. Returns the outcome if the function ends now.
    async fn deliver(
        &mut self,
        site: usize,
        invocation: Invocation,
        faults: BTreeMap<usize, InjectedFault>,
    ) -> Result<Option<Outcome>, String> {
        let Some((payload, event)) = self.payload(site, invocation) else { return Ok(None) };
        let at = self.now();
        let states = entity_of(invocation).map(|entity| self.sites[site].state(entity));
        let mut may_be_transient = false;
        if invocation.is_of_billing() {
            may_be_transient = self.is_locked(site);
            for other in &mut self.paused {
                if other.origin.site == site && other.origin.invocation.is_of_billing() {
                    other.origin.may_be_transient = true;
                    may_be_transient = true;
                }
            }
        }
        let states = states.into_iter().collect();
        let origin = CallOrigin {
            site,
            invocation,
            at,
            event,
            read_shortages: None,
            states,
            may_be_transient,
        };
        self.transcript.push(format!("{} is invoked.", self.describe(&origin)));
        let future = Box::pin(self.harness.invoke(invocation, payload, at));
        self.drive(Delivery { origin, future, faults, calls: 0, waiting: None }).await
    }

    /// Returns whether the idempotency record shows a running `initialize-subscription`.
    fn is_locked(&self, site: usize) -> bool {
        let row = self.rows.get(BILLING).and_then(|rows| rows.get(&self.record_key(site)));
        row.is_some_and(|row| {
            let until = row["in_progress_expiration"]["N"].as_str().unwrap_or_default();
            let until: i64 = until.parse().unwrap_or_default();
            row["status"]["S"] == "INPROGRESS" && until >= self.now().millis()
        })
    }

    fn record_key(&self, site: usize) -> String {
        let onboarding = self.sites[site].saga.onboarding_id;
        format!("idempotency#initialize-subscription#{onboarding}")
    }

    async fn resume(&mut self, mut delivery: Delivery) -> Result<(), String> {
        self.transcript.push(format!("{} continues.", self.describe(&delivery.origin)));
        self.count_outcome(&delivery.origin, "continuing", "after others");
        if let Some((call, response)) = delivery.waiting.take() {
            let response = match response {
                Some(response) => response,
                None => self.perform(&mut delivery.origin, &call.request)?,
            };
            call.respond(response);
        }
        self.drive(delivery).await.map(drop)
    }

    fn arrive(&mut self, LateCall { mut origin, request }: LateCall) -> Result<(), String> {
        self.transcript.push(format!(
            "{} of {} arrives late.",
            request.name(),
            self.describe(&origin)
        ));
        self.count_outcome(&origin, &request.name(), "arrived late");
        if origin.invocation.is_of_billing() {
            for other in &mut self.paused {
                other.origin.may_be_transient |= other.origin.site == origin.site;
            }
        }
        self.perform(&mut origin, &request).map(drop)
    }

    /// Runs a function until it ends, is paused or crashes.
    async fn drive(&mut self, mut delivery: Delivery) -> Result<Option<Outcome>, String> {
        loop {
            let call = tokio::select! {
                biased;
                outcome = &mut delivery.future => {
                    self.check_outcome(&delivery.origin, &outcome)?;
                    return Ok(Some(outcome));
                }
                call = self.harness.next_call() => call,
            };
            delivery.calls += 1;
            let fault = delivery.faults.remove(&delivery.calls);
            let name = call.request.name();
            let effect = fault.map_or_else(|| "executed".to_owned(), |it| it.to_string());
            self.transcript.push(format!("    {name}: {effect}"));
            self.count_outcome(&delivery.origin, &name, &effect);
            let Some(fault) = fault else {
                let response = self.perform(&mut delivery.origin, &call.request)?;
                call.respond(response);
                continue;
            };
            delivery.origin.may_be_transient = true;
            match fault {
                InjectedFault::Throttled => call.throttle(),
                InjectedFault::ResponseLost => {
                    self.perform(&mut delivery.origin, &call.request)?;
                    call.disconnect();
                }
                InjectedFault::Repeated => {
                    let mut response = self.perform(&mut delivery.origin, &call.request)?;
                    if let ServiceRequest::Aws { .. } = call.request {
                        response = self.perform(&mut delivery.origin, &call.request)?;
                    }
                    call.respond(response);
                }
                InjectedFault::Late => {
                    let request = call.request.clone();
                    self.late.push(LateCall { origin: delivery.origin.clone(), request });
                    call.disconnect();
                }
                InjectedFault::CrashBefore => return Ok(None),
                InjectedFault::CrashAfter => {
                    self.perform(&mut delivery.origin, &call.request)?;
                    return Ok(None);
                }
                InjectedFault::CrashLate => {
                    self.late.push(LateCall { origin: delivery.origin, request: call.request });
                    return Ok(None);
                }
                InjectedFault::PausedBefore => {
                    delivery.waiting = Some((call, None));
                    self.paused.push(delivery);
                    return Ok(None);
                }
                InjectedFault::PausedAfter => {
                    let response = self.perform(&mut delivery.origin, &call.request)?;
                    delivery.waiting = Some((call, Some(response)));
                    self.paused.push(delivery);
                    return Ok(None);
                }
            }
        }
    }

    fn check_outcome(&mut self, origin: &CallOrigin, outcome: &Outcome) -> Result<(), String> {
        let result = outcome.as_ref().err().map_or("success", String::as_str).to_owned();
        self.transcript.push(format!("    Result: {result}."));
        self.count_outcome(origin, "the result", &result);
        let may_be_transient = origin.may_be_transient
            || origin.states.len() > 1
            || (origin.invocation.is_of_billing() && self.is_locked(origin.site));
        let onboarding = self.sites[origin.site].saga.onboarding_id.to_string();
        let is_allowed = match outcome {
            Err(error) if error == "Transient" => may_be_transient,
            Ok(()) if origin.invocation == Invocation::Start => {
                self.executions.contains(ONBOARDING_ARN, &onboarding)
            }
            outcome => {
                self.sites[origin.site].may_return(origin.invocation, outcome, &origin.states)
            }
        };
        if is_allowed {
            return Ok(());
        }
        let states: Vec<_> = origin.states.iter().map(|state| state.unwrap_or("no row")).collect();
        Err(format!(
            "{} must not have the result {result}; the states of its entity: {}",
            self.describe(origin),
            states.join(", then ")
        ))
    }

    /// Performs a call. Fails if it makes a change that its step must not make.
    fn perform(
        &mut self,
        origin: &mut CallOrigin,
        request: &ServiceRequest,
    ) -> Result<(u16, Value), String> {
        let response = match request {
            ServiceRequest::Stripe(call) => self.provider.perform(call),
            ServiceRequest::Aws { operation, body } if operation == "StartExecution" => {
                self.check_start(origin, body)?;
                self.executions.start(body)
            }
            ServiceRequest::Aws { operation, body } => {
                if origin.invocation == Invocation::Reserve && origin.read_shortages.is_none() {
                    let site = &self.sites[origin.site];
                    let shortages = site.shortages(self.stock());
                    let first = site.state(EntityType::Reservation).is_none();
                    origin.read_shortages = (first && !shortages.is_empty()).then_some(shortages);
                }
                let response = self.cloud.perform(operation, body);
                if response.0 == 200 && !READ_OPERATIONS.contains(&operation.as_str()) {
                    self.check_write(origin, body)?;
                }
                response
            }
        };
        self.check_invariants()?;
        Ok(response)
    }

    /// Checks that a started execution has the name that prevents a second one.
    fn check_start(&self, origin: &CallOrigin, body: &Value) -> Result<(), String> {
        let onboarding = self.sites[origin.site].saga.onboarding_id;
        let expected = match origin.invocation {
            Invocation::Start => (ONBOARDING_ARN, onboarding.to_string()),
            Invocation::Delete => (TEARDOWN_ARN, format!("decommission-{onboarding}")),
            _ => return Err(format!("{} must not start an execution", self.describe(origin))),
        };
        let is_expected =
            (&body["stateMachineArn"], &body["name"]) == (&json!(expected.0), &json!(expected.1));
        if is_expected { Ok(()) } else { Err(format!("unexpected execution: {body}")) }
    }

    /// Returns the expected stock.
    fn stock(&self) -> [i64; 2] {
        let mut stock = self.initial.map(i64::from);
        for number in &self.received {
            for (metric, quantity) in DELIVERIES[*number].into_iter().enumerate() {
                stock[metric] += i64::from(quantity);
            }
        }
        for site in &self.sites {
            if site.state(EntityType::Reservation) == Some("RESERVED") {
                for (metric, needed) in site.kits_needed().into_iter().enumerate() {
                    stock[metric] -= needed;
                }
            }
        }
        stock
    }

    /// Reads a table again and returns the changed rows.
    fn refresh_rows(&mut self, table: &'static str) -> Changed {
        let key = |row: &Value| {
            let text = |name: &str| row[name]["S"].as_str().unwrap_or_default().to_owned();
            match table {
                SITES => format!("{}/{}", text("siteId"), text("row")),
                EVENTS => {
                    format!(
                        "{}/{}",
                        text("entity"),
                        row["sequence"]["N"].as_str().unwrap_or_default()
                    )
                }
                _ => text("id"),
            }
        };
        let rows = self.cloud.rows(table).into_iter().map(|row| (key(&row), row)).collect();
        let before = self.rows.insert(table, rows).unwrap_or_default();
        let rows = &self.rows[table];
        let keys: BTreeSet<_> = before.keys().chain(rows.keys()).collect();
        let changed = keys.into_iter().filter(|key| before.get(*key) != rows.get(*key));
        let change = |key: &String| (before.get(key).cloned(), rows.get(key).cloned());
        changed.map(|key| ((table, key.clone()), change(key))).collect()
    }

    /// Checks that a call wrote only rows that its step may write.
    fn check_write(&mut self, origin: &mut CallOrigin, body: &Value) -> Result<(), String> {
        let mut changed = Changed::new();
        for table in tables_of(body) {
            changed.extend(self.refresh_rows(table));
        }
        if origin.invocation.is_of_billing() {
            changed.remove(&(BILLING, self.record_key(origin.site)));
        }
        if changed.is_empty() {
            return Ok(());
        }
        let result = match origin.invocation {
            Invocation::Project(_) => self.check_projection(origin, &changed),
            Invocation::Receive(number) => self.check_delivery(number, origin.at, &changed),
            _ => match self.check_change(origin, &changed) {
                Ok(change) => {
                    self.record_change(origin, &change, &changed);
                    Ok(())
                }
                Err(reason) => Err(reason),
            },
        };
        result.map_err(|reason| {
            let mut text = format!("{} made an unexpected change", self.describe(origin));
            if !reason.is_empty() {
                write!(text, " ({reason})").expect("writing to a String succeeds");
            }
            for ((table, key), (before, after)) in &changed {
                let before = before.as_ref().map_or("no row".to_owned(), describe_row);
                let after = after.as_ref().map_or("no row".to_owned(), describe_row);
                write!(text, "\n    {table} {key}: {before} -> {after}")
                    .expect("writing to a String succeeds");
            }
            text
        })
    }

    fn entity_row(&self, site: usize, entity: EntityType) -> (&'static str, String) {
        let id = self.sites[site].id(entity);
        if entity == EntityType::Site {
            return (SITES, format!("{}/SITE", id.id));
        }
        let table = [INVENTORY, DEVICES, BILLING, ALERTING]
            .into_iter()
            .find(|table| table.to_lowercase().starts_with(entity.service()));
        (table.expect("the service has a table"), id.to_string())
    }

    /// Returns which of the allowed changes was made.
    fn check_change(&self, origin: &CallOrigin, changed: &Changed) -> Result<Change, String> {
        let read_shortages = origin.read_shortages.as_deref();
        let allowed =
            self.sites[origin.site].changes(origin.invocation, self.stock(), read_shortages);
        let mut reasons = Vec::new();
        for change in allowed {
            match self.matches_change(origin, &change, changed) {
                Ok(()) => return Ok(change),
                Err(reason) => reasons.push(format!("not a change to {}: {reason}", change.to)),
            }
        }
        Err(reasons.join("; "))
    }

    fn matches_change(
        &self,
        origin: &CallOrigin,
        change: &Change,
        changed: &Changed,
    ) -> Result<(), String> {
        let site = &self.sites[origin.site];
        let entity = self.entity_row(origin.site, change.entity);
        let mut keys = BTreeSet::from([entity.clone()]);
        for (metric, stock_change) in METRICS.into_iter().zip(change.stock) {
            let key = (INVENTORY, format!("stock#{metric}"));
            if stock_change == 0 {
                continue;
            }
            let (before, after) = changed.get(&key).ok_or("the stock did not change")?;
            if quantity(after.as_ref()) - quantity(before.as_ref()) != stock_change {
                return Err("the stock changed by an unexpected number".to_owned());
            }
            keys.insert(key);
        }
        if let Some((kind, data)) = &change.event {
            let sequence = site.event_types(change.entity).len() + 1;
            let key = (EVENTS, format!("{}/{sequence}", site.id(change.entity)));
            let (_, event) = changed.get(&key).ok_or(format!("the event {kind} is missing"))?;
            let event: EventRow = read(event.as_ref().ok_or("the event was deleted")?);
            check_event(site, change.entity, &event, kind, data, origin.at)?;
            keys.insert(key);
        }
        if !changed.keys().eq(keys.iter()) {
            return Err("the changed rows are not those of one change".to_owned());
        }
        let (before, after) = &changed[&entity];
        let after = after.as_ref().ok_or("the row was deleted")?;
        site.check_row(change, before.as_ref(), after, origin.at, origin.read_shortages.as_deref())
    }

    fn record_change(&mut self, origin: &mut CallOrigin, change: &Change, changed: &Changed) {
        let row = changed[&self.entity_row(origin.site, change.entity)].1.as_ref();
        self.sites[origin.site].record_change(change, row.unwrap_or(&Value::Null));
        let event = changed.iter().find(|((table, _), _)| *table == EVENTS);
        if let Some((_, (_, Some(event)))) = event {
            self.events[origin.site].push(read(event));
        }
        let name = self.sites[origin.site].name;
        let event = change.event.as_ref().map_or("no event", |(kind, _)| *kind);
        self.transcript.push(format!(
            "        the {} of site {name} becomes {}, {event}",
            change.entity.name(),
            change.to
        ));
        origin.states.push(Some(change.to));
        for other in &mut self.paused {
            if other.origin.site == origin.site
                && entity_of(other.origin.invocation) == Some(change.entity)
            {
                other.origin.states.push(Some(change.to));
            }
        }
    }

    /// Checks that the event replaced its step's row, that the row was older, and that nothing else changed.
    fn check_projection(&self, origin: &CallOrigin, changed: &Changed) -> Result<(), String> {
        let event = origin.event.as_ref().ok_or("there is no event")?;
        let (name, status) = step_of(&event.kind).ok_or("the event is not about a step")?;
        let key = (SITES, format!("{}/STEP#{name}", self.sites[origin.site].saga.site_id));
        let (before, after) = changed.get(&key).ok_or("another row changed")?;
        let before = before.as_ref().map_or(0, |row| read::<StepRow>(row).sequence);
        let expected = StepRow {
            name: name.to_owned(),
            status,
            at: event.occurred_at,
            sequence: event.sequence,
        };
        let after: StepRow = read(after.as_ref().ok_or("the row was deleted")?);
        let is_expected = changed.len() == 1 && after == expected && before < event.sequence;
        if is_expected { Ok(()) } else { Err(format!("{after:?} after sequence {before}")) }
    }

    fn check_delivery(
        &mut self,
        number: usize,
        at: Timestamp,
        changed: &Changed,
    ) -> Result<(), String> {
        if !self.received.insert(number) {
            return Err("the delivery was already counted".to_owned());
        }
        let source =
            sample::event("receive-kits")["source"].as_str().unwrap_or_default().to_owned();
        let row =
            (INVENTORY, inventory::DeliveryRow::key(&source, &number.to_string()).to_string());
        let mut keys = BTreeSet::from([row.clone()]);
        for (metric, delivered) in METRICS.into_iter().zip(DELIVERIES[number]) {
            let key = (INVENTORY, format!("stock#{metric}"));
            if delivered > 0 {
                let (before, after) = changed.get(&key).ok_or("the stock did not change")?;
                if quantity(after.as_ref()) - quantity(before.as_ref()) != i64::from(delivered) {
                    return Err("the stock changed by an unexpected number".to_owned());
                }
                keys.insert(key);
            }
        }
        if !changed.keys().eq(keys.iter()) {
            return Err("the changed rows are not those of one delivery".to_owned());
        }
        let row = changed[&row].1.as_ref().ok_or("the row was deleted")?;
        let row: inventory::DeliveryRow = read(row);
        if row.at == at { Ok(()) } else { Err(format!("{row:?}")) }
    }

    /// Checks the invariants that hold at any time.
    fn check_invariants(&self) -> Result<(), String> {
        let stock = self.stock();
        for (metric, expected) in METRICS.into_iter().zip(stock) {
            let row = self.rows[INVENTORY].get(&format!("stock#{metric}"));
            if quantity(row) != expected || expected < 0 {
                let actual = quantity(row);
                return Err(format!("the stock of {metric} is {actual}, expected {expected}"));
            }
        }
        for (index, site) in self.sites.iter().enumerate() {
            let name = site.name;
            let onboarding = site.saga.onboarding_id.to_string();
            let active = self.provider.active_subscriptions(&onboarding);
            if active.len() > 1 {
                return Err(format!("site {name} has {} active subscriptions", active.len()));
            }
            match site.state(EntityType::Subscription) {
                Some("ACTIVE") => {
                    let key = self.entity_row(index, EntityType::Subscription).1;
                    let row = &self.rows[BILLING][&key];
                    let text = |name: &str| row[name]["S"].as_str().unwrap_or_default();
                    if !self
                        .provider
                        .has_subscription(text("customerId"), text("providerSubscriptionId"))
                    {
                        return Err(format!(
                            "the subscription of site {name} is not active at the provider"
                        ));
                    }
                }
                Some(state @ ("CANCELLED" | "FAILED")) if !active.is_empty() => {
                    return Err(format!(
                        "site {name} has an active subscription, but its row is {state}"
                    ));
                }
                _ => {}
            }
            let is_decommissioning = site.state(EntityType::Site) == Some("DECOMMISSIONING");
            if is_decommissioning && !self.has_teardown(index) {
                return Err(format!("site {name} is DECOMMISSIONING without a teardown"));
            }
        }
        Ok(())
    }

    /// Returns whether `DELETE` has started the site's teardown.
    fn has_teardown(&self, site: usize) -> bool {
        let name = format!("decommission-{}", self.sites[site].saga.onboarding_id);
        self.executions.contains(TEARDOWN_ARN, &name)
    }

    /// Completes a site's saga: with all steps, or with all undos.
    async fn complete_saga(&mut self, site: usize) -> Result<(), String> {
        let forward: Vec<_> =
            Invocation::FORWARD.into_iter().filter(|it| self.takes_part(*it)).collect();
        let mut back: Vec<_> =
            Invocation::UNDO.into_iter().filter(|it| self.takes_part(*it)).collect();
        if self.takes_part(Invocation::Create) {
            self.run_without_faults(site, Invocation::Create, &[]).await?;
            back.push(if self.has_teardown(site) {
                Invocation::Retire
            } else {
                Invocation::Reject
            });
        }
        let mut undo = self.undo_delivered[site] || self.has_teardown(site);
        for invocation in forward.iter().copied() {
            if !undo {
                let permanent_errors = ["KitsOutOfStock", "CardDeclined", "InvalidInput"];
                undo = !self.run_without_faults(site, invocation, &permanent_errors).await?;
            }
        }
        undo |= self.sites[site].setup.fails;
        if undo {
            self.undo_delivered[site] = true;
            for invocation in back {
                self.run_without_faults(site, invocation, &[]).await?;
            }
        }
        let name = self.sites[site].name;
        for entity in EntityType::OF_SITE {
            let state = self.sites[site].state(entity);
            if !forward.iter().any(|invocation| entity_of(*invocation) == Some(entity)) {
                continue;
            }
            let done = ["ACTIVE", "RESERVED", "PROVISIONED", "CONFIGURED"];
            let is_complete = if undo {
                self.sites[site].is_undone(entity)
            } else {
                state.is_some_and(|state| done.contains(&state))
            };
            if !is_complete {
                let (entity, state) = (entity.name(), state.unwrap_or("missing"));
                return Err(format!("after the saga, the {entity} of site {name} is {state}"));
            }
        }
        Ok(())
    }

    /// Runs a step without faults. Returns whether it succeeded. Fails if its error is not in `permanent_errors`.
    async fn run_without_faults(
        &mut self,
        site: usize,
        invocation: Invocation,
        permanent_errors: &[&str],
    ) -> Result<bool, String> {
        match self.deliver(site, invocation, BTreeMap::new()).await? {
            None | Some(Ok(())) => Ok(true),
            Some(Err(error)) if permanent_errors.contains(&error.as_str()) => Ok(false),
            Some(Err(error)) => {
                Err(format!("{} fails without faults: {error}", invocation.function()))
            }
        }
    }

    /// Projects all events, and checks the final state again from the tables and the provider's state.
    async fn check_everything(&mut self) -> Result<(), String> {
        for site in 0..self.sites.len() {
            for number in 0..self.events[site].len() {
                self.run_without_faults(site, Invocation::Project(number), &[]).await?;
            }
        }
        let mut unexplained = Changed::new();
        for table in [SITES, INVENTORY, DEVICES, BILLING, ALERTING, EVENTS] {
            unexplained.extend(self.refresh_rows(table));
        }
        if !unexplained.is_empty() {
            return Err(format!("rows changed without an observed call: {unexplained:?}"));
        }
        let mut events: BTreeMap<String, BTreeMap<u64, EventRow>> = BTreeMap::new();
        for row in self.rows[EVENTS].values() {
            let row: EventRow = read(row);
            events.entry(row.entity.clone()).or_default().insert(row.sequence, row);
        }
        for (index, site) in self.sites.iter().enumerate() {
            for entity in EntityType::OF_SITE {
                let id = site.id(entity).to_string();
                let logged = events.remove(&id).unwrap_or_default();
                let gapless = logged.keys().copied().eq(1..=logged.len() as u64);
                let types: Vec<_> = logged.values().map(|event| event.kind.as_str()).collect();
                if !gapless || types != site.event_types(entity) {
                    return Err(format!("the events of {id} are {types:?}"));
                }
                let (table, key) = self.entity_row(index, entity);
                let sequence = self.rows[table].get(&key).map(|row| row["sequence"]["N"].clone());
                let expected = site.state(entity).map(|_| json!(logged.len().to_string()));
                if sequence != expected {
                    return Err(format!(
                        "{id} has {} events, but its row has sequence {sequence:?}",
                        logged.len()
                    ));
                }
            }
            let subscriptions =
                self.provider.active_subscriptions(&site.saga.onboarding_id.to_string()).len();
            let active = site.state(EntityType::Subscription) == Some("ACTIVE");
            if subscriptions != usize::from(active) {
                return Err(format!(
                    "after the saga, site {} has {subscriptions} active subscriptions",
                    site.name
                ));
            }
            self.check_read_model(index)?;
        }
        if events.is_empty() {
            Ok(())
        } else {
            Err(format!("events of unknown entities: {events:?}"))
        }
    }

    /// Checks that the site's read model shows the last event of each step.
    fn check_read_model(&self, site: usize) -> Result<(), String> {
        let mut last = BTreeMap::new();
        for event in &self.events[site] {
            if let Some((name, status)) = step_of(&event.kind) {
                last.insert(name, (status, event.sequence));
            }
        }
        let prefix = format!("{}/STEP#", self.sites[site].saga.site_id);
        let rows = self.rows[SITES].iter().filter(|(key, _)| key.starts_with(&prefix));
        let rows: Vec<StepRow> = rows.map(|(_, row)| read(row)).collect();
        let actual: BTreeMap<_, _> =
            rows.iter().map(|row| (row.name.as_str(), (row.status, row.sequence))).collect();
        if actual == last {
            Ok(())
        } else {
            Err(format!("the read model has {actual:?}, expected {last:?}"))
        }
    }
}

/// Returns the tables that a write names.
fn tables_of(body: &Value) -> BTreeSet<&'static str> {
    let actions = body["TransactItems"].as_array().map_or(&[][..], Vec::as_slice);
    let actions = actions.iter().filter_map(|action| action.as_object()?.values().next());
    let named: Vec<_> = actions.chain([body]).map(|action| &action["TableName"]).collect();
    let all = [SITES, INVENTORY, DEVICES, BILLING, ALERTING, EVENTS];
    all.into_iter().filter(|table| named.iter().any(|name| *name == table)).collect()
}

fn quantity(row: Option<&Value>) -> i64 {
    let text = row.and_then(|row| row["quantity"]["N"].as_str());
    text.map_or(0, |text| text.parse().expect("a quantity is a number"))
}

/// Describes a row in a few words.
fn describe_row(row: &Value) -> String {
    for name in ["status", "type", "quantity"] {
        if let Some(Value::String(text)) = row[name].as_object().and_then(|it| it.values().next()) {
            let sequence = row["sequence"]["N"].as_str().map(|it| format!(" (sequence {it})"));
            return format!("{text}{}", sequence.unwrap_or_default());
        }
    }
    "a row".to_owned()
}

fn check_event(
    site: &SiteModel,
    entity: EntityType,
    event: &EventRow,
    kind: &str,
    data: &Value,
    at: Timestamp,
) -> Result<(), String> {
    let envelope = event.envelope().map_err(|error| error.to_string())?;
    let (metadata, id): (_, Entity) = (envelope.metadata, site.id(entity));
    let onboarding = site.saga.onboarding_id;
    let onboarding = Some(onboarding.to_string());
    let actual = (metadata.log_key(), metadata.sequence, metadata.occurred_at);
    let is_expected = event.kind == kind
        && metadata.kind == kind
        && metadata.event_id == EventId::from_entity(&id, event.sequence)
        && actual == (id.to_string(), event.sequence, at)
        && metadata.correlation_id == onboarding
        && event.occurred_at == at
        && event.correlation_id == onboarding
        && envelope.data["siteId"] == json!(site.saga.site_id)
        && (data.is_null() || envelope.data == *data);
    if is_expected { Ok(()) } else { Err(format!("unexpected event: {}", event.detail)) }
}

/// Returns the step and the status that project-site writes for an event.
fn step_of(kind: &str) -> Option<(&'static str, StepStatus)> {
    let (step, outcome) = saga::step_of_event(kind).filter(|(step, _)| !step.is_of_site())?;
    let status = match outcome {
        saga::StepOutcome::Done => StepStatus::Completed,
        saga::StepOutcome::Refused => StepStatus::Failed,
        saga::StepOutcome::Undone => StepStatus::Undone,
    };
    Some((step.name, status))
}
