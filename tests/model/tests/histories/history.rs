//! Random histories of a few sites. Proptest generates and shrinks them.

use std::{collections::BTreeSet, fmt};

use proptest::{
    collection::vec,
    prelude::{Just, Strategy},
    prop_oneof,
    strategy::{BoxedStrategy, Union},
};

/// A few sites and the events of their history.
#[derive(Clone, Debug)]
pub struct History {
    pub sites: Vec<Site>,
    /// The initial stock of kits, by metric.
    pub stock: [u32; 2],
    pub moves: Vec<Move>,
}

impl History {
    /// Returns the size of the history.
    pub fn weight(&self) -> usize {
        let of_moves = self.moves.iter().map(|next| match next {
            Move::Deliver { troubles, .. } => 1 + troubles.len(),
            _ => 1,
        });
        let of_sites = self.sites.iter().map(|site| {
            1 + usize::from(site.begins != Beginning::Unknown) + usize::from(site.fails)
        });
        of_moves.sum::<usize>() + of_sites.sum::<usize>()
    }

    /// Returns all histories that lack one part of this one.
    pub fn shorter(&self) -> impl Iterator<Item = Self> + use<> {
        let mut all = Vec::new();
        let mut with = |change: &dyn Fn(&mut Self)| {
            let mut shorter = self.clone();
            change(&mut shorter);
            all.push(shorter);
        };
        for (place, next) in self.moves.iter().enumerate() {
            with(&|it| drop(it.moves.remove(place)));
            let Move::Deliver { troubles, .. } = next else { continue };
            for trouble in 0..troubles.len() {
                with(&|it| {
                    if let Move::Deliver { troubles, .. } = &mut it.moves[place] {
                        troubles.remove(trouble);
                    }
                });
            }
        }
        if self.sites.len() > 1 {
            with(&|it| it.sites.truncate(self.sites.len() - 1));
        }
        for (place, site) in self.sites.iter().enumerate() {
            if site.begins != Beginning::Unknown {
                with(&|it| it.sites[place].begins = Beginning::Unknown);
            }
            if site.fails {
                with(&|it| it.sites[place].fails = false);
            }
        }
        all.into_iter()
    }

    /// Returns the services whose steps run in this history. The steps of other services do not run.
    pub fn services(&self) -> BTreeSet<Scope> {
        let works = self.moves.iter().filter_map(|next| match next {
            Move::Deliver { work, .. } if !matches!(work, Work::Project(_)) => Some(work.owner()),
            _ => None,
        });
        works.collect()
    }
}

#[derive(Clone, Debug)]
pub struct Site {
    /// The number of sensors, by metric.
    pub sensors: [usize; 2],
    pub card: Card,
    /// The state before the first move.
    pub begins: Beginning,
    /// Whether the saga fails after its last step, if it gets that far.
    pub fails: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Card {
    Good,
    Declined,
    Unknown,
}

/// The initial state of a site, if its service takes part.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub enum Beginning {
    Unknown,
    Registered,
    Active,
}

/// A move of a history.
#[derive(Clone, Debug)]
pub enum Move {
    /// A command is delivered to a step, for the first time or again.
    Deliver {
        site: usize,
        work: Work,
        /// The faults of its calls, by the number of the call from 1. All other calls are answered at once.
        troubles: Vec<(usize, Trouble)>,
    },
    /// A delivery that was held up continues.
    GoOn(usize),
    /// A call that was in transit arrives.
    Land(usize),
    /// Time passes until every function has timed out and every lock has expired.
    Wait,
}

/// A step, together with the site or event that it works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
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
pub enum Trouble {
    /// The call is refused without effect.
    Throttled,
    /// The connection breaks after the effect.
    AnswerLost,
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
    HeldBefore,
    /// Other deliveries run after the effect and before the response.
    HeldAfter,
}

impl Trouble {
    pub const ALL: [Self; 9] = [
        Self::Throttled,
        Self::AnswerLost,
        Self::Repeated,
        Self::Late,
        Self::CrashBefore,
        Self::CrashAfter,
        Self::CrashLate,
        Self::HeldBefore,
        Self::HeldAfter,
    ];
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Throttled => "throttled",
            Self::AnswerLost => "done, but its answer is lost",
            Self::Repeated => "done, its answer lost, and sent again by the client",
            Self::Late => "not heard of in time, and under way",
            Self::CrashBefore => "never sent: the function crashes",
            Self::CrashAfter => "done; the function crashes before it hears of it",
            Self::CrashLate => "under way while the function crashes",
            Self::HeldBefore => "held up on its way",
            Self::HeldAfter => "done, and its answer held up on its way",
        })
    }
}

/// The services whose steps run together in a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    Inventory,
    Devices,
    Billing,
    Alerting,
    Sites,
    /// All services.
    Saga,
}

impl Work {
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

    /// The teardown's steps. `close-site` follows them, because its input depends on the site's history.
    pub const BACK: [Self; 4] = [Self::Remove, Self::Cancel, Self::Deprovision, Self::Release];

    pub fn is_undo(self) -> bool {
        Self::BACK.contains(&self) || matches!(self, Self::Reject | Self::Retire)
    }

    pub fn is_billings(self) -> bool {
        matches!(self, Self::Initialize | Self::Cancel)
    }

    /// Returns the service that it belongs to.
    pub fn owner(self) -> Scope {
        match self {
            Self::Reserve | Self::Release | Self::Receive(_) => Scope::Inventory,
            Self::Provision | Self::Deprovision => Scope::Devices,
            Self::Initialize | Self::Cancel => Scope::Billing,
            Self::Configure | Self::Remove => Scope::Alerting,
            _ => Scope::Sites,
        }
    }

    fn is_in(self, scope: Scope) -> bool {
        self.owner() == scope || scope == Scope::Saga || matches!(self, Self::Project(_))
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
        (5, of(Scope::Inventory, 3, 9)),
        (2, of(Scope::Devices, 1, 6)),
        (6, of(Scope::Billing, 1, 6)),
        (2, of(Scope::Alerting, 1, 6)),
        (5, of(Scope::Sites, 2, 8)),
        (3, of(Scope::Saga, 2, 10)),
    ])
}

fn of(scope: Scope, most_sites: usize, longest: usize) -> BoxedStrategy<History> {
    let sites = vec(site(), 1..=most_sites);
    let stock = [0..5_u32, 0..5_u32];
    let alone = next(scope).prop_map(|next| vec![next]);
    let moves = vec(prop_oneof![6 => alone, 2 => race(scope), 1 => duel(scope)], 1..=longest);
    (sites, stock, moves)
        .prop_map(move |(sites, stock, moves)| History { sites, stock, moves: moves.concat() })
        .boxed()
}

/// Generates a delivery that is held up while others change the same site, and then continues.
fn race(scope: Scope) -> impl Strategy<Value = Vec<Move>> {
    let slow = [Trouble::HeldBefore, Trouble::HeldAfter, Trouble::Late, Trouble::CrashLate];
    let trouble = (1..=9_usize, proptest::sample::select(slow.to_vec()));
    let others = vec(any(scope), 1..=2);
    (any(scope), trouble, others, 0..3_usize).prop_map(|(slow, trouble, others, which)| {
        let mut race = vec![slow];
        race.extend(others);
        for (place, next) in race.iter_mut().enumerate() {
            if let Move::Deliver { site, work, troubles } = next {
                *site = which;
                *troubles = match place {
                    0 => vec![(1 + trouble.0 % work.calls(), trouble.1)],
                    _ => Vec::new(),
                };
            }
        }
        race.extend([Move::GoOn(0), Move::Land(0)]);
        race
    })
}

/// Generates two deliveries to the same site. The first is held up, then the second. The first continues until its
/// next fault, then the second continues.
fn duel(scope: Scope) -> impl Strategy<Value = Vec<Move>> {
    let held = [Trouble::HeldBefore, Trouble::HeldAfter];
    let end = [Trouble::CrashBefore, Trouble::CrashAfter, Trouble::CrashLate, Trouble::Late];
    let held = (0..9_usize, proptest::sample::select(held.to_vec()));
    let end = (0..9_usize, proptest::sample::select(end.to_vec()));
    (any(scope), any(scope), held.clone(), held, end, 0..3_usize).prop_map(
        |(mut one, mut other, first, second, end, which)| {
            if let Move::Deliver { site, work, troubles } = &mut one {
                *site = which;
                let at = 1 + first.0 % work.calls();
                let left = work.calls().saturating_sub(at).max(1);
                *troubles = vec![(at, first.1), (at + 1 + end.0 % left, end.1)];
            }
            if let Move::Deliver { site, work, troubles } = &mut other {
                *site = which;
                *troubles = vec![(1 + second.0 % work.calls(), second.1)];
            }
            vec![one, other, Move::GoOn(0), Move::GoOn(0)]
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
    let begins = prop_oneof![
        1 => Just(Beginning::Unknown),
        5 => Just(Beginning::Registered),
        4 => Just(Beginning::Active),
    ];
    let seldom = proptest::bool::weighted(0.2);
    (sensors, card, begins, seldom).prop_map(|(sensors, card, begins, fails)| Site {
        sensors,
        card,
        begins,
        fails,
    })
}

fn next(scope: Scope) -> BoxedStrategy<Move> {
    let go_on = (0..4_usize).prop_map(Move::GoOn);
    let land = (0..4_usize).prop_map(Move::Land);
    prop_oneof![12 => any(scope), 3 => go_on, 2 => land, 1 => Just(Move::Wait)].boxed()
}

/// Generates a delivery to any of the steps.
fn any(scope: Scope) -> BoxedStrategy<Move> {
    let works = |works: &[Work], weight: u32| {
        let works = works.iter().filter(|work| work.is_in(scope));
        works.map(|work| (weight, deliver(*work))).collect::<Vec<_>>()
    };
    // An undo is final. With as many undos as steps, most histories would end early.
    let mut all = works(&Work::FORWARD, 6);
    all.extend(works(&Work::BACK, 3));
    all.extend(works(&[Work::Reject, Work::Retire], 2));
    all.extend(works(&[Work::Receive(0), Work::Delete], 5));
    all.extend(works(&[Work::Project(0)], 2));
    Union::new_weighted(all).boxed()
}

fn deliver(work: Work) -> BoxedStrategy<Move> {
    let number = 0..6_usize;
    let trouble = (1..=work.calls(), proptest::sample::select(&Trouble::ALL[..]));
    let troubles = prop_oneof![
        4 => Just(Vec::new()),
        5 => vec(trouble.clone(), 1),
        1 => vec(trouble, 2),
    ];
    (0..3_usize, number, troubles)
        .prop_map(move |(site, number, troubles)| {
            let work = match work {
                Work::Project(_) => Work::Project(number),
                Work::Receive(_) => Work::Receive(number % DELIVERIES.len()),
                work => work,
            };
            Move::Deliver { site, work, troubles }
        })
        .boxed()
}
