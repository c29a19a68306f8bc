//! Stock of kits. A kit is the hardware that one sensor of one metric needs.
//!
//! This crate owns the inventory table. Its key is `id`, with values `stock#<metric>` ([`StockRow`]),
//! `level#<metric>` ([`LevelRow`]), `reservation#<id>` ([`ReservationRow`]) and `delivery#<source and delivery id>`
//! ([`DeliveryRow`]). The crate emits the events of the entities `reservation` and `stock`. A released reservation stays
//! as a tombstone, which prevents a late reservation.

pub mod receive_kits;
pub mod release_kits;
pub mod reserve_kits;
pub mod watch_stock;

use contracts::{
    Metric, ReservationId, SagaContext, Timestamp,
    events::{Kits, Shortage},
    input::{FieldError, join_errors},
};
use fault::{ErrorKind, Fault};
use serde::{Deserialize, Serialize};
use store::{Key, StoreError};

/// The stock of one metric's kits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StockRow {
    /// The number of kits that are not reserved.
    pub quantity: u32,
}

impl StockRow {
    /// The part of the key before the metric. The filter of the event source mapping of `watch-stock` has it, too.
    const PREFIX: &str = "stock#";

    /// Returns the key of the row.
    #[must_use]
    pub fn key(metric: Metric) -> Key {
        Key::id(format!("{}{metric}", Self::PREFIX))
    }
}

/// The level of a metric's stock, as the last event reported it. There is no row until the level changes for the first
/// time; the level is OK until then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelRow {
    /// The level.
    pub level: Level,
    /// The sequence number of the last event of the stock. Each change of the level emits one event.
    pub sequence: u64,
    /// The position in the table's stream of the record that caused the last change. A position is a text. The texts
    /// sort in the order of the records in the stream.
    pub record: String,
}

impl LevelRow {
    /// Returns the key of the row.
    #[must_use]
    pub fn key(metric: Metric) -> Key {
        Key::id(format!("level#{metric}"))
    }
}

/// How many kits of a metric are in stock, compared with a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Level {
    /// There are enough kits.
    Ok,
    /// Few kits are left.
    Low,
    /// No kits are left.
    SoldOut,
}

/// The reservation of one onboarding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReservationRow {
    /// The saga of the onboarding.
    #[serde(flatten)]
    pub saga: SagaContext,
    /// The state of the reservation.
    #[serde(flatten)]
    pub state: Reservation,
    /// The sequence number of the reservation's last event. 0 if there is none.
    pub sequence: u64,
    /// The time of the last change.
    pub at: Timestamp,
}

impl ReservationRow {
    /// Returns the key of the row.
    #[must_use]
    pub fn key(reservation: ReservationId) -> Key {
        Key::id(format!("reservation#{reservation}"))
    }
}

/// The state of a reservation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Reservation {
    /// The kits are reserved.
    Reserved {
        /// The reserved kits by metric.
        kits: Vec<Kits>,
    },
    /// The stock was too low.
    Refused {
        /// The metrics with too few kits.
        shortages: Vec<Shortage>,
    },
    /// A tombstone: nothing is reserved and nothing will ever be reserved again.
    Released,
}

impl Reservation {
    /// Returns the name of the state in the row.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Reserved { .. } => "RESERVED",
            Self::Refused { .. } => "REFUSED",
            Self::Released => "RELEASED",
        }
    }
}

/// A delivery that was added to the stock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryRow {
    /// The delivered kits by metric.
    pub kits: Vec<Kits>,
    /// The time when it was added.
    pub at: Timestamp,
}

impl DeliveryRow {
    /// Returns the key of the row.
    #[must_use]
    pub fn key(source: &str, delivery: &str) -> Key {
        // The length of the source comes first, so that no two pairs of source and delivery id have the same key.
        Key::id(format!("delivery#{}/{source}/{delivery}", source.len()))
    }
}

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The stock is too low.
    #[error("too few kits in stock: {}", list(.0))]
    KitsOutOfStock(Vec<Shortage>),
    /// The reservation is already released, so a late step must not reserve kits.
    #[error("reservation {0} is already released")]
    Superseded(ReservationId),
    /// The delivery is invalid.
    #[error("{}", join_errors(.0))]
    InvalidDelivery(Vec<FieldError>),
    /// Another writer changed the reservation at the same time.
    #[error("another writer changed reservation {0}")]
    Busy(ReservationId),
    /// Other writers changed the level of this metric's stock at the same time, in each attempt.
    #[error("other writers changed the level of {0} in each attempt")]
    LevelBusy(Metric),
    /// A call to the table failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn list(shortages: &[Shortage]) -> String {
    let items: Vec<_> = shortages
        .iter()
        .map(|short| format!("{} of {} for {}", short.available, short.requested, short.metric))
        .collect();
    items.join(", ")
}

impl Fault for InventoryError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::KitsOutOfStock(_) => ErrorKind::KitsOutOfStock,
            Self::Superseded(_) => ErrorKind::Superseded,
            Self::InvalidDelivery(_) => ErrorKind::InvalidInput,
            Self::Busy(_) | Self::LevelBusy(_) => ErrorKind::Transient,
            Self::Store(error) => error.into(),
        }
    }
}
