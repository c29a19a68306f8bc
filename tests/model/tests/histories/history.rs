//! Random histories of a few sites. Proptest generates and shrinks them.

use std::{collections::BTreeSet, fmt};

use proptest::{
    collection::vec,
    prelude::{Just, Strategy},
    prop_oneof,
    strategy::{BoxedStrategy, Union},
};

/// A few sites, and the actions on them.
#[derive(Clone, Debug)]
pub struct History {
    pub sites: Vec<Site>,
    /// The initial stock of kits, by metric.
    pub stock: [u32; 2],
    pub actions: Vec<Action>,
}

impl History {
    /// Returns the size of the history.
    pub fn weight(&self) -> usize {
        let action_weights = self.actions.iter().map(|action| match action {
            Action::Deliver { faults, .. } => 1 + faults.len(),
            _ => 1,
        });
        let site_weights = self.sites.iter().map(|site| {
            1 + usize::from(site.initial_state != InitialState::Unknown) + usize::from(site.fails)
        });
        action_weights.sum::<usize>() + site_weights.sum::<usize>()
    }

    /// Returns copies of this history. In each copy, one part is removed or simplified.
    pub fn shorter(&self) -> impl Iterator<Item = Self> + use<> {
        let mut all = Vec::new();
        let mut with = |change: &dyn Fn(&mut Self)| {
            let mut shorter = self.clone();
            change(&mut shorter);
            all.push(shorter);
        };
        for (index, action) in self.actions.iter().enumerate() {
            with(&|it| drop(it.actions.remove(index)));
            let Action::Deliver { faults, .. } = action else { continue };
            for fault in 0..faults.len() {
                with(&|it| {
                    if let Action::Deliver { faults, .. } = &mut it.actions[index] {
                        faults.remove(fault);
                    }
                });
            }
        }
        if self.sites.len() > 1 {
            with(&|it| it.sites.truncate(self.sites.len() - 1));
        }
        for (index, site) in self.sites.iter().enumerate() {
            if site.initial_state != InitialState::Unknown {
                with(&|it| it.sites[index].initial_state = InitialState::Unknown);
            }
            if site.fails {
                with(&|it| it.sites[index].fails = false);
            }
        }
        all.into_iter()
    }

    /// Returns the services whose steps run in this history. The steps of other services do not run.
    pub fn services(&self) -> BTreeSet<ServiceScope> {
        let invocations = self.actions.iter().filter_map(|action| match action {
            Action::Deliver { invocation, .. } if !matches!(invocation, Invocation::Project(_)) => {
                Some(invocation.owner())
            }
            _ => None,
        });
        invocations.collect()
    }
}

#[derive(Clone, Debug)]
pub struct Site {
    /// The number of sensors, by metric.
    pub sensors: [usize; 2],
    pub card: Card,
    /// The state before the first action.
    pub initial_state: InitialState,
    /// Whether the saga fails after its last step, if it gets that far.
    pub fails: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Card {
    Good,
    Declined,
    Unknown,
}

/// The initial state of a site, if the sites service takes part.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub enum InitialState {
    Unknown,
    Registered,
    Active,
}

/// An action of a history.
#[derive(Clone, Debug)]
pub enum Action {
    /// A command is delivered to a step, for the first time or again.
    Deliver {
        site: usize,
        invocation: Invocation,
        /// The faults of its calls, by the number of the call from 1. The other calls get their response immediately.
        faults: Vec<(usize, InjectedFault)>,
    },
    /// A paused delivery continues.
    Resume(usize),
    /// A call that was in transit arrives.
    Arrive(usize),
    /// Time passes until every function has timed out and every lock has expired.
    Wait,
}

/// The invocation of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invocation {
    Create,
    Start,
    Reserve,
    Provision,
    Initialize,
    Configure,
    Activate,
    /// `DELETE` of the site.
    Delete,
    Remove,
    Cancel,
    Deprovision,
    Release,
    /// `close-site` after a failed onboarding.
    Reject,
    /// `close-site` of an active site.
    Retire,
    /// `project-site` gets one of the site's events.
    Project(usize),
    /// One of three deliveries of kits.
    Receive(usize),
}

/// A fault of a call to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InjectedFault {
    /// The call is refused without effect.
    Throttled,
    /// The connection breaks after the effect.
    ResponseLost,
    /// The response is lost after the effect, and the client sends the call again.
    Repeated,
    /// The caller times out, and the call takes effect later.
    Late,
    /// The function crashes before it sends the call.
    CrashBefore,
    /// The function crashes after the effect, before the response.
    CrashAfter,
    /// The function crashes, and the call takes effect later.
    CrashLate,
    /// Other deliveries run before the call takes effect.
    PausedBefore,
    /// Other deliveries run after the effect and before the response.
    PausedAfter,
}

impl InjectedFault {
    pub const ALL: [Self; 9] = [
        Self::Throttled,
        Self::ResponseLost,
        Self::Repeated,
        Self::Late,
        Self::CrashBefore,
        Self::CrashAfter,
        Self::CrashLate,
        Self::PausedBefore,
        Self::PausedAfter,
    ];
}

impl fmt::Display for InjectedFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Throttled => "throttled",
            Self::ResponseLost => "executed, but the response is lost",
            Self::Repeated => "executed, the response is lost, and the client sends it again",
            Self::Late => "timed out, and still in transit",
            Self::CrashBefore => "not sent: the function crashes",
            Self::CrashAfter => "executed; the function crashes before the response",
            Self::CrashLate => "in transit when the function crashes",
            Self::PausedBefore => "paused before its execution",
            Self::PausedAfter => "executed, and paused before the response",
        })
    }
}

/// The service or services whose steps run in a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceScope {
    Inventory,
    Devices,
    Billing,
    Alerting,
    Sites,
    /// All services.
    Saga,
}

impl Invocation {
    /// The saga's steps, in their order.
    pub const FORWARD: [Self; 7] = [
        Self::Create,
        Self::Start,
        Self::Reserve,
        Self::Provision,
        Self::Initialize,
        Self::Configure,
        Self::Activate,
    ];

    /// The teardown's steps except the last one, close-site: its input (Reject or Retire) depends on the site's
    /// history.
    pub const UNDO: [Self; 4] = [Self::Remove, Self::Cancel, Self::Deprovision, Self::Release];

    pub fn is_undo(self) -> bool {
        Self::UNDO.contains(&self) || matches!(self, Self::Reject | Self::Retire)
    }

    pub fn is_of_billing(self) -> bool {
        matches!(self, Self::Initialize | Self::Cancel)
    }

    /// Returns the service of the step.
    pub fn owner(self) -> ServiceScope {
        match self {
            Self::Reserve | Self::Release | Self::Receive(_) => ServiceScope::Inventory,
            Self::Provision | Self::Deprovision => ServiceScope::Devices,
            Self::Initialize | Self::Cancel => ServiceScope::Billing,
            Self::Configure | Self::Remove => ServiceScope::Alerting,
            _ => ServiceScope::Sites,
        }
    }

    fn is_in(self, scope: ServiceScope) -> bool {
        self.owner() == scope || scope == ServiceScope::Saga || matches!(self, Self::Project(_))
    }

    pub fn function(self) -> &'static str {
        match self {
            Self::Create => "create-site",
            Self::Start => "start-onboarding",
            Self::Reserve => "reserve-kits",
            Self::Provision => "provision-sensors",
            Self::Initialize => "initialize-subscription",
            Self::Configure => "configure-alerting",
            Self::Activate => "activate-site",
            Self::Delete => "decommission-site",
            Self::Remove => "remove-alerting",
            Self::Cancel => "cancel-subscription",
            Self::Deprovision => "deprovision-sensors",
            Self::Release => "release-kits",
            Self::Reject | Self::Retire => "close-site",
            Self::Project(_) => "project-site",
            Self::Receive(_) => "receive-kits",
        }
    }

    /// Returns the approximate number of its calls.
    fn calls(self) -> usize {
        match self {
            Self::Initialize => 9,
            Self::Cancel => 8,
            Self::Delete => 3,
            Self::Create | Self::Start | Self::Project(_) | Self::Receive(_) => 1,
            _ => 2,
        }
    }
}

/// The names of the sites in descriptions.
pub const NAMES: [&str; 3] = ["A", "B", "C"];

/// The kits in each delivery, by number and metric.
pub const DELIVERIES: [[u32; 2]; 3] = [[1, 0], [2, 1], [0, 3]];

pub fn histories() -> impl Strategy<Value = History> {
    Union::new_weighted(vec![
        (5, histories_of(ServiceScope::Inventory, 3, 9)),
        (2, histories_of(ServiceScope::Devices, 1, 6)),
        (6, histories_of(ServiceScope::Billing, 1, 6)),
        (2, histories_of(ServiceScope::Alerting, 1, 6)),
        (5, histories_of(ServiceScope::Sites, 2, 8)),
        (3, histories_of(ServiceScope::Saga, 2, 10)),
    ])
}

fn histories_of(
    scope: ServiceScope,
    max_sites: usize,
    max_actions: usize,
) -> BoxedStrategy<History> {
    let sites = vec(site(), 1..=max_sites);
    let stock = [0..5_u32, 0..5_u32];
    let single = any_action(scope).prop_map(|action| vec![action]);
    let actions =
        vec(prop_oneof![6 => single, 2 => race(scope), 1 => paused_pair(scope)], 1..=max_actions);
    (sites, stock, actions)
        .prop_map(move |(sites, stock, actions)| History {
            sites,
            stock,
            actions: actions.concat(),
        })
        .boxed()
}

/// Generates a delivery whose call is paused or in transit while other deliveries change the same site. Then the paused
/// delivery continues, and the call in transit arrives.
fn race(scope: ServiceScope) -> impl Strategy<Value = Vec<Action>> {
    let slow = [
        InjectedFault::PausedBefore,
        InjectedFault::PausedAfter,
        InjectedFault::Late,
        InjectedFault::CrashLate,
    ];
    let fault = (1..=9_usize, proptest::sample::select(slow.to_vec()));
    let others = vec(any_delivery(scope), 1..=2);
    (any_delivery(scope), fault, others, 0..3_usize).prop_map(
        |(slow, fault, others, site_number)| {
            let mut race = vec![slow];
            race.extend(others);
            for (index, action) in race.iter_mut().enumerate() {
                if let Action::Deliver { site, invocation, faults } = action {
                    *site = site_number;
                    *faults = match index {
                        0 => vec![(1 + fault.0 % invocation.calls(), fault.1)],
                        _ => Vec::new(),
                    };
                }
            }
            race.extend([Action::Resume(0), Action::Arrive(0)]);
            race
        },
    )
}

/// Generates two deliveries to the same site. Both are paused. The first continues until its next fault, then the
/// second continues.
fn paused_pair(scope: ServiceScope) -> impl Strategy<Value = Vec<Action>> {
    let paused = [InjectedFault::PausedBefore, InjectedFault::PausedAfter];
    let end = [
        InjectedFault::CrashBefore,
        InjectedFault::CrashAfter,
        InjectedFault::CrashLate,
        InjectedFault::Late,
    ];
    let paused = (0..9_usize, proptest::sample::select(paused.to_vec()));
    let end = (0..9_usize, proptest::sample::select(end.to_vec()));
    (any_delivery(scope), any_delivery(scope), paused.clone(), paused, end, 0..3_usize).prop_map(
        |(mut one, mut other, first, second, end, site_number)| {
            if let Action::Deliver { site, invocation, faults } = &mut one {
                *site = site_number;
                let at = 1 + first.0 % invocation.calls();
                let remaining = invocation.calls().saturating_sub(at).max(1);
                *faults = vec![(at, first.1), (at + 1 + end.0 % remaining, end.1)];
            }
            if let Action::Deliver { site, invocation, faults } = &mut other {
                *site = site_number;
                *faults = vec![(1 + second.0 % invocation.calls(), second.1)];
            }
            vec![one, other, Action::Resume(0), Action::Resume(0)]
        },
    )
}

fn site() -> impl Strategy<Value = Site> {
    let sensors = prop_oneof![
        3 => Just([1, 0]),
        2 => Just([2, 1]),
        1 => Just([0, 3]),
    ];
    let card = prop_oneof![
        6 => Just(Card::Good),
        1 => Just(Card::Declined),
        1 => Just(Card::Unknown),
    ];
    let initial_state = prop_oneof![
        1 => Just(InitialState::Unknown),
        5 => Just(InitialState::Registered),
        4 => Just(InitialState::Active),
    ];
    let fails = proptest::bool::weighted(0.2);
    (sensors, card, initial_state, fails).prop_map(|(sensors, card, initial_state, fails)| Site {
        sensors,
        card,
        initial_state,
        fails,
    })
}

fn any_action(scope: ServiceScope) -> BoxedStrategy<Action> {
    let resume = (0..4_usize).prop_map(Action::Resume);
    let arrive = (0..4_usize).prop_map(Action::Arrive);
    prop_oneof![12 => any_delivery(scope), 3 => resume, 2 => arrive, 1 => Just(Action::Wait)]
        .boxed()
}

/// Generates a delivery to any step.
fn any_delivery(scope: ServiceScope) -> BoxedStrategy<Action> {
    let weighted = |invocations: &[Invocation], weight: u32| {
        let in_scope = invocations.iter().filter(|invocation| invocation.is_in(scope));
        in_scope.map(|invocation| (weight, deliver(*invocation))).collect::<Vec<_>>()
    };
    // An undo is final. If undos were as likely as steps, most histories would end early.
    let mut all = weighted(&Invocation::FORWARD, 6);
    all.extend(weighted(&Invocation::UNDO, 3));
    all.extend(weighted(&[Invocation::Reject, Invocation::Retire], 2));
    all.extend(weighted(&[Invocation::Receive(0), Invocation::Delete], 5));
    all.extend(weighted(&[Invocation::Project(0)], 2));
    Union::new_weighted(all).boxed()
}

fn deliver(invocation: Invocation) -> BoxedStrategy<Action> {
    let number = 0..6_usize;
    let fault = (1..=invocation.calls(), proptest::sample::select(&InjectedFault::ALL[..]));
    let faults = prop_oneof![
        4 => Just(Vec::new()),
        5 => vec(fault.clone(), 1),
        1 => vec(fault, 2),
    ];
    (0..3_usize, number, faults)
        .prop_map(move |(site, number, faults)| {
            let invocation = match invocation {
                Invocation::Project(_) => Invocation::Project(number),
                Invocation::Receive(_) => Invocation::Receive(number % DELIVERIES.len()),
                invocation => invocation,
            };
            Action::Deliver { site, invocation, faults }
        })
        .boxed()
}
