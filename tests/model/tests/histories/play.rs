//! Runs a history and compares it with the model after every call with an effect.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use contracts::{
    Entity, EntityType, EventId, Metric, Sensor, SensorId, Timestamp, events::Shortage, saga,
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
    history::{Beginning, Card, DELIVERIES, History, Move, NAMES, Scope, Trouble, Work},
    model::{Change, METRICS, Outcome, SiteModel, State, entity_of, failure, saga_of},
    provider::Books,
    world::{Asking, Call, Executions, LEASE, ONBOARDING_ARN, TEARDOWN_ARN, World},
};

/// Operations that do not change anything.
const READS: [&str; 1] = ["GetItem"];
/// The maximum number of rounds until all sagas have ended. A round that leaves calls in transit is followed by
/// another.
const ROUNDS: usize = 4;

/// The number of times that a function's call had an outcome, by function, call and outcome.
pub type Met = BTreeMap<(&'static str, String, String), u32>;

/// The result of a history.
#[derive(Debug)]
pub struct Played {
    /// The events, in words.
    pub story: Vec<String>,
    /// The first violation of the model.
    pub wrong: Option<String>,
    pub met: Met,
}

/// Rows by table and key, in DynamoDB's JSON format.
type Rows = BTreeMap<&'static str, BTreeMap<String, Value>>;
/// Changed rows by table and key, each with its old and new value.
type Changed = BTreeMap<(&'static str, String), (Option<Value>, Option<Value>)>;

/// The delivery to which a call belongs.
#[derive(Clone, Debug)]
struct Who {
    site: usize,
    work: Work,
    at: Timestamp,
    /// The event, for `project-site`.
    event: Option<EventRow>,
    /// The shortages that a reservation read.
    refusable: Option<Vec<Shortage>>,
    /// The states of its entity since it began.
    seen: Vec<State>,
    /// Whether it may fail as transient.
    excused: bool,
}

/// A running function.
struct Delivery {
    who: Who,
    future: std::pin::Pin<Box<dyn Future<Output = Outcome>>>,
    troubles: BTreeMap<usize, Trouble>,
    calls: usize,
    /// The call that is held up, with its response if it took effect.
    waiting: Option<(Call, Option<(u16, Value)>)>,
}

/// A call in transit whose caller is gone.
struct Late {
    who: Who,
    asking: Asking,
}

struct Play<'a> {
    world: &'a mut World,
    /// The services that take part.
    services: BTreeSet<Scope>,
    cloud: Cloud,
    books: Books,
    executions: Executions,
    sites: Vec<SiteModel>,
    /// The events of each site, as they were committed.
    told: Vec<Vec<EventRow>>,
    /// Whether an undo was delivered for the site.
    undone: Vec<bool>,
    initial: [u32; 2],
    received: BTreeSet<usize>,
    rows: Rows,
    held: Vec<Delivery>,
    late: Vec<Late>,
    seconds: i64,
    story: Vec<String>,
    met: Met,
}

/// Runs the history until all its sagas have ended.
pub async fn play(world: &mut World, history: &History) -> Played {
    world.clear();
    let mut play = Play::new(world, history);
    let wrong = play.all(history).await.err();
    Played { story: play.story, wrong, met: play.met }
}

fn sensors(place: usize, counts: [usize; 2]) -> Vec<Sensor> {
    let saga = saga_of(NAMES[place]);
    let metrics = METRICS.into_iter().zip(counts);
    let each = metrics.flat_map(|(metric, count)| std::iter::repeat_n(metric, count));
    let limits = [(Some(1.5), Some(50.5)), (None, Some(99.5))];
    each.enumerate()
        .map(|(index, metric): (usize, Metric)| {
            let (min, max) = limits.get(index).copied().unwrap_or_default();
            let sensor_id = SensorId::from_onboarding(saga.onboarding_id, index);
            Sensor { sensor_id, metric, unit: metric.units()[0].to_owned(), min, max }
        })
        .collect()
}

impl<'a> Play<'a> {
    fn new(world: &'a mut World, history: &History) -> Self {
        let cloud = Cloud::new(Rng::from_seed(0));
        for (metric, quantity) in METRICS.into_iter().zip(history.stock) {
            if quantity > 0 {
                cloud.put(
                    INVENTORY,
                    json!({ "id": format!("stock#{metric}"), "quantity": quantity }),
                );
            }
        }
        let sites = history.sites.iter().enumerate().map(|(place, site)| {
            let (name, sensors) = (NAMES[place], sensors(place, site.sensors));
            SiteModel::new(name, site.clone(), saga_of(name), sensors)
        });
        let sites: Vec<_> = sites.collect();
        let mut play = Self {
            world,
            services: history.services(),
            cloud,
            books: Books::default(),
            executions: Executions::default(),
            told: vec![Vec::new(); sites.len()],
            undone: vec![false; sites.len()],
            sites,
            initial: history.stock,
            received: BTreeSet::new(),
            rows: Rows::new(),
            held: Vec::new(),
            late: Vec::new(),
            seconds: 0,
            story: Vec::new(),
            met: Met::new(),
        };
        for table in [SITES, INVENTORY, DEVICES, BILLING, ALERTING, EVENTS] {
            play.read_anew(table);
        }
        play
    }

    fn now(&self) -> Timestamp {
        noon(self.seconds)
    }

    async fn all(&mut self, history: &History) -> Result<(), String> {
        for site in 0..self.sites.len() {
            let begins = self.sites[site].setup.begins;
            for (work, by) in
                [(Work::Create, Beginning::Registered), (Work::Activate, Beginning::Active)]
            {
                if self.takes_part(work) && begins >= by {
                    self.must(site, work, &[]).await?;
                }
            }
        }
        for next in &history.moves {
            match next {
                Move::Deliver { site, work, troubles } => {
                    let site = site % self.sites.len();
                    self.undone[site] |= work.is_undo();
                    self.deliver(site, *work, troubles.iter().copied().collect()).await?;
                }
                Move::GoOn(which) if !self.held.is_empty() => {
                    let delivery = self.held.remove(which % self.held.len());
                    self.go_on(delivery).await?;
                }
                Move::Land(which) if !self.late.is_empty() => {
                    let late = self.late.remove(which % self.late.len());
                    self.land(late)?;
                }
                Move::Wait => self.time_passes(),
                Move::GoOn(_) | Move::Land(_) => {}
            }
        }
        self.story.push("In the end every saga comes to its end, undisturbed.".to_owned());
        for _ in 0..ROUNDS {
            self.time_passes();
            for site in 0..self.sites.len() {
                self.settle(site).await?;
            }
            if self.late.is_empty() {
                return self.check_everything().await;
            }
            for late in std::mem::take(&mut self.late) {
                self.land(late)?;
            }
        }
        Err("calls are under way for ever".to_owned())
    }

    fn takes_part(&self, work: Work) -> bool {
        self.services.contains(&work.owner())
    }

    /// Lets time pass. Every running function times out, and every lock expires.
    fn time_passes(&mut self) {
        self.seconds += i64::try_from(LEASE.as_secs()).unwrap_or(i64::MAX) + 1;
        self.story.push("31 s pass; every function that is still at work is timed out.".to_owned());
        for delivery in std::mem::take(&mut self.held) {
            if let Some((call, None)) = delivery.waiting {
                self.late.push(Late { who: delivery.who, asking: call.asking });
            }
        }
    }

    fn words(&self, who: &Who) -> String {
        let function = who.work.function();
        match who.work {
            Work::Receive(number) => format!("{function} of delivery {number}"),
            Work::Reject => format!("{function} (rejected) of site {}", self.sites[who.site].name),
            Work::Retire => {
                format!("{function} (decommissioned) of site {}", self.sites[who.site].name)
            }
            Work::Project(_) => {
                let event = who.event.as_ref().map_or("nothing", |event| event.kind.as_str());
                format!("{function} of {event} of site {}", self.sites[who.site].name)
            }
            _ => format!("{function} of site {}", self.sites[who.site].name),
        }
    }

    fn met(&mut self, who: &Who, at: &str, what: &str) {
        let key = (who.work.function(), at.to_owned(), what.to_owned());
        *self.met.entry(key).or_default() += 1;
    }

    /// Returns the payload of a function. Returns `None` if there is no event for it.
    fn payload(&self, site: usize, work: Work) -> Option<(Value, Option<EventRow>)> {
        let it = &self.sites[site];
        let told = &self.told[site];
        let mut payload = sample::payload(it.saga);
        let method = match it.setup.card {
            Card::Good => "pm_card_visa",
            Card::Declined => "pm_card_chargeDeclined",
            Card::Unknown => "pm_nobody",
        };
        let event = match work {
            Work::Start => Some(told.iter().find(|event| event.kind == "SiteCreated")?),
            Work::Project(number) => Some(told.get(number % told.len().max(1))?),
            _ => None,
        };
        match work {
            Work::Create => {
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
            Work::Delete => payload = json!(it.saga.site_id),
            Work::Reserve | Work::Provision | Work::Configure => {
                payload["sensors"] = json!(it.sensors);
            }
            Work::Initialize => {
                payload["name"] = it.name.into();
                payload["plan"] = "standard".into();
                payload["paymentMethod"] = method.into();
            }
            Work::Reject => payload["failure"] = json!(failure()),
            Work::Start | Work::Project(_) => {
                let event = event?;
                payload = sample::event("project-site");
                payload["detail-type"] = event.kind.clone().into();
                payload["source"] = event.source.clone().into();
                payload["detail"] = serde_json::from_str(&event.detail).expect("a detail");
            }
            Work::Receive(number) => {
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
        work: Work,
        troubles: BTreeMap<usize, Trouble>,
    ) -> Result<Option<Outcome>, String> {
        let Some((payload, event)) = self.payload(site, work) else { return Ok(None) };
        let at = self.now();
        let seen = entity_of(work).map(|entity| self.sites[site].state(entity));
        let mut excused = false;
        if work.is_billings() {
            excused = self.locked(site);
            for other in &mut self.held {
                if other.who.site == site && other.who.work.is_billings() {
                    other.who.excused = true;
                    excused = true;
                }
            }
        }
        let seen = seen.into_iter().collect();
        let who = Who { site, work, at, event, refusable: None, seen, excused };
        self.story.push(format!("{} is called.", self.words(&who)));
        let future = Box::pin(self.world.invoke(work, payload, at));
        self.drive(Delivery { who, future, troubles, calls: 0, waiting: None }).await
    }

    /// Returns whether the idempotency record shows a running `initialize-subscription`.
    fn locked(&self, site: usize) -> bool {
        let row = self.rows.get(BILLING).and_then(|rows| rows.get(&self.record(site)));
        row.is_some_and(|row| {
            let until = row["in_progress_expiration"]["N"].as_str().unwrap_or_default();
            let until: i64 = until.parse().unwrap_or_default();
            row["status"]["S"] == "INPROGRESS" && until >= self.now().millis()
        })
    }

    fn record(&self, site: usize) -> String {
        let onboarding = self.sites[site].saga.onboarding_id;
        format!("idempotency#initialize-subscription#{onboarding}")
    }

    async fn go_on(&mut self, mut delivery: Delivery) -> Result<(), String> {
        self.story.push(format!("{} goes on.", self.words(&delivery.who)));
        self.met(&delivery.who, "going on", "after others");
        if let Some((call, answer)) = delivery.waiting.take() {
            let answer = match answer {
                Some(answer) => answer,
                None => self.perform(&mut delivery.who, &call.asking)?,
            };
            call.answer(answer);
        }
        self.drive(delivery).await.map(drop)
    }

    fn land(&mut self, Late { mut who, asking }: Late) -> Result<(), String> {
        self.story.push(format!("{} of {} comes in late.", asking.name(), self.words(&who)));
        self.met(&who, &asking.name(), "came in late");
        if who.work.is_billings() {
            for other in &mut self.held {
                other.who.excused |= other.who.site == who.site;
            }
        }
        self.perform(&mut who, &asking).map(drop)
    }

    /// Runs a function until it ends, is held up or crashes.
    async fn drive(&mut self, mut delivery: Delivery) -> Result<Option<Outcome>, String> {
        loop {
            let call = tokio::select! {
                biased;
                outcome = &mut delivery.future => {
                    self.ended(&delivery.who, &outcome)?;
                    return Ok(Some(outcome));
                }
                call = self.world.call() => call,
            };
            delivery.calls += 1;
            let trouble = delivery.troubles.remove(&delivery.calls);
            let (name, told) = (call.asking.name(), trouble.map(|it| it.to_string()));
            let told = told.unwrap_or_else(|| "done".to_owned());
            self.story.push(format!("    {name}: {told}"));
            self.met(&delivery.who, &name, &told);
            let Some(trouble) = trouble else {
                let answer = self.perform(&mut delivery.who, &call.asking)?;
                call.answer(answer);
                continue;
            };
            delivery.who.excused = true;
            match trouble {
                Trouble::Throttled => call.throttle(),
                Trouble::AnswerLost => {
                    self.perform(&mut delivery.who, &call.asking)?;
                    call.break_off();
                }
                Trouble::Repeated => {
                    let mut answer = self.perform(&mut delivery.who, &call.asking)?;
                    if let Asking::Aws { .. } = call.asking {
                        answer = self.perform(&mut delivery.who, &call.asking)?;
                    }
                    call.answer(answer);
                }
                Trouble::Late => {
                    let asking = call.asking.clone();
                    self.late.push(Late { who: delivery.who.clone(), asking });
                    call.break_off();
                }
                Trouble::CrashBefore => return Ok(None),
                Trouble::CrashAfter => {
                    self.perform(&mut delivery.who, &call.asking)?;
                    return Ok(None);
                }
                Trouble::CrashLate => {
                    self.late.push(Late { who: delivery.who, asking: call.asking });
                    return Ok(None);
                }
                Trouble::HeldBefore => {
                    delivery.waiting = Some((call, None));
                    self.held.push(delivery);
                    return Ok(None);
                }
                Trouble::HeldAfter => {
                    let answer = self.perform(&mut delivery.who, &call.asking)?;
                    delivery.waiting = Some((call, Some(answer)));
                    self.held.push(delivery);
                    return Ok(None);
                }
            }
        }
    }

    fn ended(&mut self, who: &Who, outcome: &Outcome) -> Result<(), String> {
        let told = outcome.as_ref().err().map_or("well", String::as_str).to_owned();
        self.story.push(format!("    It ends: {told}."));
        self.met(who, "its end", &told);
        let busy =
            who.excused || who.seen.len() > 1 || (who.work.is_billings() && self.locked(who.site));
        let onboarding = self.sites[who.site].saga.onboarding_id.to_string();
        let may = match outcome {
            Err(error) if error == "Transient" => busy,
            Ok(()) if who.work == Work::Start => self.executions.has(ONBOARDING_ARN, &onboarding),
            outcome => self.sites[who.site].may_answer(who.work, outcome, &who.seen),
        };
        if may {
            return Ok(());
        }
        let seen: Vec<_> = who.seen.iter().map(|state| state.unwrap_or("nothing")).collect();
        Err(format!(
            "{} must not end so ({told}): what it works on was {}",
            self.words(who),
            seen.join(", then ")
        ))
    }

    /// Performs a call. Fails if it changes what its step must not change.
    fn perform(&mut self, who: &mut Who, asking: &Asking) -> Result<(u16, Value), String> {
        let answer = match asking {
            Asking::Stripe(call) => self.books.perform(call),
            Asking::Aws { operation, body } if operation == "StartExecution" => {
                self.check_start(who, body)?;
                self.executions.start(body)
            }
            Asking::Aws { operation, body } => {
                if who.work == Work::Reserve && who.refusable.is_none() {
                    let site = &self.sites[who.site];
                    let shortages = site.shortages(self.stock());
                    let first = site.state(EntityType::Reservation).is_none();
                    who.refusable = (first && !shortages.is_empty()).then_some(shortages);
                }
                let answer = self.cloud.perform(operation, body);
                if answer.0 == 200 && !READS.contains(&operation.as_str()) {
                    self.judge(who, body)?;
                }
                answer
            }
        };
        self.check_promises()?;
        Ok(answer)
    }

    /// Checks that an execution has the name that prevents a second one.
    fn check_start(&self, who: &Who, body: &Value) -> Result<(), String> {
        let onboarding = self.sites[who.site].saga.onboarding_id;
        let right = match who.work {
            Work::Start => (ONBOARDING_ARN, onboarding.to_string()),
            Work::Delete => (TEARDOWN_ARN, format!("decommission-{onboarding}")),
            _ => return Err(format!("{} starts an execution", self.words(who))),
        };
        let is_right =
            (&body["stateMachineArn"], &body["name"]) == (&json!(right.0), &json!(right.1));
        if is_right { Ok(()) } else { Err(format!("a wrong execution is started: {body}")) }
    }

    /// Returns the stock by the model.
    fn stock(&self) -> [i64; 2] {
        let mut stock = self.initial.map(i64::from);
        for number in &self.received {
            for (metric, quantity) in DELIVERIES[*number].into_iter().enumerate() {
                stock[metric] += i64::from(quantity);
            }
        }
        for site in &self.sites {
            if site.state(EntityType::Reservation) == Some("RESERVED") {
                for (metric, needed) in site.needs().into_iter().enumerate() {
                    stock[metric] -= needed;
                }
            }
        }
        stock
    }

    /// Reads a table again and returns the changed rows.
    fn read_anew(&mut self, table: &'static str) -> Changed {
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

    /// Compares the rows that a call wrote with what its step may write.
    fn judge(&mut self, who: &mut Who, body: &Value) -> Result<(), String> {
        let mut changed = Changed::new();
        for table in tables_of(body) {
            changed.extend(self.read_anew(table));
        }
        if who.work.is_billings() {
            changed.remove(&(BILLING, self.record(who.site)));
        }
        if changed.is_empty() {
            return Ok(());
        }
        let wrong = match who.work {
            Work::Project(_) => self.judge_projection(who, &changed),
            Work::Receive(number) => self.judge_delivery(number, who.at, &changed),
            _ => match self.judge_change(who, &changed) {
                Ok(change) => {
                    self.make(who, &change, &changed);
                    Ok(())
                }
                Err(wrong) => Err(wrong),
            },
        };
        wrong.map_err(|wrong| {
            let mut text = format!("{} changed what it must not", self.words(who));
            if !wrong.is_empty() {
                write!(text, " ({wrong})").expect("text");
            }
            for ((table, key), (before, after)) in &changed {
                let before = before.as_ref().map_or("nothing".to_owned(), gist);
                let after = after.as_ref().map_or("nothing".to_owned(), gist);
                write!(text, "\n    {table} {key}: {before} -> {after}").expect("text");
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
        (table.expect("the service's table"), id.to_string())
    }

    /// Returns which of the allowed changes was made.
    fn judge_change(&self, who: &Who, changed: &Changed) -> Result<Change, String> {
        let refusable = who.refusable.as_deref();
        let may = self.sites[who.site].changes(who.work, self.stock(), refusable);
        let mut wrong = Vec::new();
        for change in may {
            match self.fits(who, &change, changed) {
                Ok(()) => return Ok(change),
                Err(reason) => wrong.push(format!("to be {}: {reason}", change.to)),
            }
        }
        Err(wrong.join("; "))
    }

    fn fits(&self, who: &Who, change: &Change, changed: &Changed) -> Result<(), String> {
        let site = &self.sites[who.site];
        let entity = self.entity_row(who.site, change.entity);
        let mut keys = BTreeSet::from([entity.clone()]);
        for (metric, more) in METRICS.into_iter().zip(change.stock) {
            let key = (INVENTORY, format!("stock#{metric}"));
            if more == 0 {
                continue;
            }
            let (before, after) = changed.get(&key).ok_or("the stock did not change")?;
            if quantity(after.as_ref()) - quantity(before.as_ref()) != more {
                return Err("the stock changed by another number".to_owned());
            }
            keys.insert(key);
        }
        if let Some((kind, data)) = &change.event {
            let sequence = site.story(change.entity).len() + 1;
            let key = (EVENTS, format!("{}/{sequence}", site.id(change.entity)));
            let (_, event) = changed.get(&key).ok_or(format!("without the event {kind}"))?;
            let event: EventRow = read(event.as_ref().ok_or("the event is gone")?);
            check_event(site, change.entity, &event, kind, data, who.at)?;
            keys.insert(key);
        }
        if !changed.keys().eq(keys.iter()) {
            return Err("more or less than one step's change".to_owned());
        }
        let (before, after) = &changed[&entity];
        let after = after.as_ref().ok_or("the row is gone")?;
        site.check_row(change, before.as_ref(), after, who.at, who.refusable.as_deref())
    }

    fn make(&mut self, who: &mut Who, change: &Change, changed: &Changed) {
        let row = changed[&self.entity_row(who.site, change.entity)].1.as_ref();
        self.sites[who.site].make(change, row.unwrap_or(&Value::Null));
        let event = changed.iter().find(|((table, _), _)| *table == EVENTS);
        if let Some((_, (_, Some(event)))) = event {
            self.told[who.site].push(read(event));
        }
        let name = self.sites[who.site].name;
        let event = change.event.as_ref().map_or("without an event", |(kind, _)| *kind);
        self.story.push(format!(
            "        {} of site {name} is {} now, {event}",
            change.entity.name(),
            change.to
        ));
        who.seen.push(Some(change.to));
        for other in &mut self.held {
            if other.who.site == who.site && entity_of(other.who.work) == Some(change.entity) {
                other.who.seen.push(Some(change.to));
            }
        }
    }

    /// Checks that a step's row was replaced by a later event, and that nothing else changed.
    fn judge_projection(&self, who: &Who, changed: &Changed) -> Result<(), String> {
        let event = who.event.as_ref().ok_or("no event")?;
        let (name, status) = step_of(&event.kind).ok_or("it tells of no step")?;
        let key = (SITES, format!("{}/STEP#{name}", self.sites[who.site].saga.site_id));
        let (before, after) = changed.get(&key).ok_or("another row")?;
        let before = before.as_ref().map_or(0, |row| read::<StepRow>(row).sequence);
        let right = StepRow {
            name: name.to_owned(),
            status,
            at: event.occurred_at,
            sequence: event.sequence,
        };
        let after: StepRow = read(after.as_ref().ok_or("the row is gone")?);
        let is_right = changed.len() == 1 && after == right && before < event.sequence;
        if is_right { Ok(()) } else { Err(format!("{after:?} after {before}")) }
    }

    fn judge_delivery(
        &mut self,
        number: usize,
        at: Timestamp,
        changed: &Changed,
    ) -> Result<(), String> {
        if !self.received.insert(number) {
            return Err("it was counted before".to_owned());
        }
        let source =
            sample::event("receive-kits")["source"].as_str().unwrap_or_default().to_owned();
        let row =
            (INVENTORY, inventory::DeliveryRow::key(&source, &number.to_string()).to_string());
        let mut keys = BTreeSet::from([row.clone()]);
        for (metric, more) in METRICS.into_iter().zip(DELIVERIES[number]) {
            let key = (INVENTORY, format!("stock#{metric}"));
            if more > 0 {
                let (before, after) = changed.get(&key).ok_or("the stock did not change")?;
                if quantity(after.as_ref()) - quantity(before.as_ref()) != i64::from(more) {
                    return Err("the stock changed by another number".to_owned());
                }
                keys.insert(key);
            }
        }
        if !changed.keys().eq(keys.iter()) {
            return Err("more or less than one delivery".to_owned());
        }
        let row = changed[&row].1.as_ref().ok_or("the row is gone")?;
        let row: inventory::DeliveryRow = read(row);
        if row.at == at { Ok(()) } else { Err(format!("{row:?}")) }
    }

    /// Checks the invariants that hold at any time.
    fn check_promises(&self) -> Result<(), String> {
        let stock = self.stock();
        for (metric, right) in METRICS.into_iter().zip(stock) {
            let row = self.rows[INVENTORY].get(&format!("stock#{metric}"));
            if quantity(row) != right || right < 0 {
                let there = quantity(row);
                return Err(format!("{there} of {metric} are in stock, it should be {right}"));
            }
        }
        for (place, site) in self.sites.iter().enumerate() {
            let name = site.name;
            let onboarding = site.saga.onboarding_id.to_string();
            let paid = self.books.paid_for(&onboarding);
            if paid.len() > 1 {
                return Err(format!("site {name} pays for {} subscriptions", paid.len()));
            }
            match site.state(EntityType::Subscription) {
                Some("ACTIVE") => {
                    let key = self.entity_row(place, EntityType::Subscription).1;
                    let row = &self.rows[BILLING][&key];
                    let text = |name: &str| row[name]["S"].as_str().unwrap_or_default();
                    if !self.books.has(text("customerId"), text("providerSubscriptionId")) {
                        return Err(format!("site {name} has a subscription that nobody pays for"));
                    }
                }
                Some(state @ ("CANCELLED" | "FAILED")) if !paid.is_empty() => {
                    return Err(format!("site {name} pays, and its subscription is {state}"));
                }
                _ => {}
            }
            let leaves = site.state(EntityType::Site) == Some("DECOMMISSIONING");
            if leaves && !self.tears_down(place) {
                return Err(format!("site {name} is DECOMMISSIONING, and no teardown runs"));
            }
        }
        Ok(())
    }

    /// Returns whether `DELETE` has started the site's teardown.
    fn tears_down(&self, site: usize) -> bool {
        let name = format!("decommission-{}", self.sites[site].saga.onboarding_id);
        self.executions.has(TEARDOWN_ARN, &name)
    }

    /// Brings a site's saga to its end: with all steps, or with all undos.
    async fn settle(&mut self, site: usize) -> Result<(), String> {
        let forward: Vec<_> = Work::FORWARD.into_iter().filter(|it| self.takes_part(*it)).collect();
        let mut back: Vec<_> = Work::BACK.into_iter().filter(|it| self.takes_part(*it)).collect();
        if self.takes_part(Work::Create) {
            self.must(site, Work::Create, &[]).await?;
            back.push(if self.tears_down(site) { Work::Retire } else { Work::Reject });
        }
        let mut undo = self.undone[site] || self.tears_down(site);
        for work in forward.iter().copied() {
            if !undo {
                let finals = ["KitsOutOfStock", "CardDeclined", "InvalidInput"];
                undo = !self.must(site, work, &finals).await?;
            }
        }
        undo |= self.sites[site].setup.fails;
        if undo {
            self.undone[site] = true;
            for work in back {
                self.must(site, work, &[]).await?;
            }
        }
        let name = self.sites[site].name;
        for entity in EntityType::ALL {
            let state = self.sites[site].state(entity);
            if !forward.iter().any(|work| entity_of(*work) == Some(entity)) {
                continue;
            }
            let done = ["ACTIVE", "RESERVED", "PROVISIONED", "CONFIGURED"];
            let right = if undo {
                self.sites[site].is_undone(entity)
            } else {
                state.is_some_and(|state| done.contains(&state))
            };
            if !right {
                let (entity, state) = (entity.name(), state.unwrap_or("nothing"));
                return Err(format!("in the end the {entity} of site {name} is {state}"));
            }
        }
        Ok(())
    }

    /// Runs a step without faults. Returns whether it succeeded. Fails if its error is not in `finals`.
    async fn must(&mut self, site: usize, work: Work, finals: &[&str]) -> Result<bool, String> {
        match self.deliver(site, work, BTreeMap::new()).await? {
            None | Some(Ok(())) => Ok(true),
            Some(Err(error)) if finals.contains(&error.as_str()) => Ok(false),
            Some(Err(error)) => {
                Err(format!("undisturbed, {} still ends so: {error}", work.function()))
            }
        }
    }

    /// Checks the final state again, from the tables alone.
    async fn check_everything(&mut self) -> Result<(), String> {
        for site in 0..self.sites.len() {
            for number in 0..self.told[site].len() {
                self.must(site, Work::Project(number), &[]).await?;
            }
        }
        let mut unseen = Changed::new();
        for table in [SITES, INVENTORY, DEVICES, BILLING, ALERTING, EVENTS] {
            unseen.extend(self.read_anew(table));
        }
        if !unseen.is_empty() {
            return Err(format!("rows changed that nobody was seen to change: {unseen:?}"));
        }
        let mut events: BTreeMap<String, BTreeMap<u64, EventRow>> = BTreeMap::new();
        for row in self.rows[EVENTS].values() {
            let row: EventRow = read(row);
            events.entry(row.entity.clone()).or_default().insert(row.sequence, row);
        }
        for (place, site) in self.sites.iter().enumerate() {
            for entity in EntityType::ALL {
                let id = site.id(entity).to_string();
                let there = events.remove(&id).unwrap_or_default();
                let gapless = there.keys().copied().eq(1..=there.len() as u64);
                let story: Vec<_> = there.values().map(|event| event.kind.as_str()).collect();
                if !gapless || story != site.story(entity) {
                    return Err(format!("the events of {id} are {story:?}"));
                }
                let (table, key) = self.entity_row(place, entity);
                let sequence = self.rows[table].get(&key).map(|row| row["sequence"]["N"].clone());
                let right = site.state(entity).map(|_| json!(there.len().to_string()));
                if sequence != right {
                    return Err(format!(
                        "{id} has {} events, its row says {sequence:?}",
                        there.len()
                    ));
                }
            }
            let paid = self.books.paid_for(&site.saga.onboarding_id.to_string()).len();
            let active = site.state(EntityType::Subscription) == Some("ACTIVE");
            if paid != usize::from(active) {
                return Err(format!("site {} pays for {paid} subscriptions in the end", site.name));
            }
            self.check_read_model(place)?;
        }
        if events.is_empty() { Ok(()) } else { Err(format!("events of nobody: {events:?}")) }
    }

    /// Checks that the site's read model shows the last event of each step.
    fn check_read_model(&self, site: usize) -> Result<(), String> {
        let mut last = BTreeMap::new();
        for event in &self.told[site] {
            if let Some((name, status)) = step_of(&event.kind) {
                last.insert(name, (status, event.sequence));
            }
        }
        let prefix = format!("{}/STEP#", self.sites[site].saga.site_id);
        let rows = self.rows[SITES].iter().filter(|(key, _)| key.starts_with(&prefix));
        let shown: Vec<StepRow> = rows.map(|(_, row)| read(row)).collect();
        let shown: BTreeMap<_, _> =
            shown.iter().map(|row| (row.name.as_str(), (row.status, row.sequence))).collect();
        if shown == last { Ok(()) } else { Err(format!("the site shows {shown:?}, not {last:?}")) }
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
    text.map_or(0, |text| text.parse().expect("a number of pieces"))
}

/// Describes a row in a few words.
fn gist(row: &Value) -> String {
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
    let told = (metadata.entity, metadata.sequence, metadata.occurred_at, metadata.correlation_id);
    let is_right = event.kind == kind
        && metadata.kind == kind
        && metadata.event_id == EventId::from_entity(&id, event.sequence)
        && told == (id, event.sequence, at, onboarding)
        && (event.occurred_at, event.correlation_id) == (at, onboarding)
        && envelope.data["siteId"] == json!(site.saga.site_id)
        && (data.is_null() || envelope.data == *data);
    if is_right { Ok(()) } else { Err(format!("its event is wrong: {}", event.detail)) }
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
