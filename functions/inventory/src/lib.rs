//! Inventory: kits in stock. A kit is what one sensor of one metric needs.
//!
//! Owns the inventory table, key `id`: `stock#<metric>` ([`StockRow`]), `reservation#<uuid>`
//! ([`ReservationRow`]), `delivery#<source and number>` ([`DeliveryRow`]). Emits the events of the entity
//! `reservation`. A released reservation stays as a tombstone: it fences off a reservation that
//! comes late.

pub mod receive_kits;
pub mod release_kits;
pub mod reserve_kits;

use contracts::{
    Metric, ReservationId, Saga, Timestamp,
    events::{Kits, Shortage},
    input::{FieldError, in_one_line},
};
use fault::{ErrorKind, Fault};
use serde::{Deserialize, Serialize};
use store::{Key, StoreError};

/// Pieces of one metric's kit in the store-room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StockRow {
    /// Pieces that are not reserved.
    pub quantity: u32,
}

impl StockRow {
    /// Its key.
    #[must_use]
    pub fn key(metric: Metric) -> Key {
        Key::id(format!("stock#{metric}"))
    }
}

/// What one onboarding has of the stock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReservationRow {
    /// Whose it is.
    #[serde(flatten)]
    pub saga: Saga,
    /// Where it stands.
    #[serde(flatten)]
    pub state: Reservation,
    /// Its events so far.
    pub sequence: u64,
    /// When it came to this.
    pub at: Timestamp,
}

impl ReservationRow {
    /// Its key.
    #[must_use]
    pub fn key(reservation: ReservationId) -> Key {
        Key::id(format!("reservation#{reservation}"))
    }
}

/// A reservation's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Reservation {
    /// The kits are set aside.
    Reserved {
        /// How many of which.
        kits: Vec<Kits>,
    },
    /// There were too few.
    Refused {
        /// Of which.
        shortages: Vec<Shortage>,
    },
    /// Tombstone: nothing is set aside, nor ever will be.
    Released,
}

impl Reservation {
    /// The name in the row.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Reserved { .. } => "RESERVED",
            Self::Refused { .. } => "REFUSED",
            Self::Released => "RELEASED",
        }
    }
}

/// A delivery that was counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryRow {
    /// What was in it.
    pub kits: Vec<Kits>,
    /// When it was counted.
    pub at: Timestamp,
}

impl DeliveryRow {
    /// Its key.
    #[must_use]
    pub fn key(source: &str, delivery: &str) -> Key {
        // Length first, so that no source and number can be shifted into another pair's key.
        Key::id(format!("delivery#{}/{source}/{delivery}", source.len()))
    }
}

/// Everything that can go wrong here.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// Too few kits.
    #[error("too few kits in stock: {}", list(.0))]
    KitsOutOfStock(Vec<Shortage>),
    /// The reservation was released before it was made.
    #[error("reservation {0} was released before it was made")]
    Superseded(ReservationId),
    /// The delivery is wrong.
    #[error("{}", in_one_line(.0))]
    InvalidDelivery(Vec<FieldError>),
    /// The row changed while the decision was made.
    #[error("reservation {0} is being changed by others")]
    Busy(ReservationId),
    /// The table.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn list(shortages: &[Shortage]) -> String {
    let each: Vec<_> = shortages
        .iter()
        .map(|short| format!("{} of {} for {}", short.available, short.requested, short.metric))
        .collect();
    each.join(", ")
}

impl Fault for InventoryError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::KitsOutOfStock(_) => ErrorKind::KitsOutOfStock,
            Self::Superseded(_) => ErrorKind::Superseded,
            Self::InvalidDelivery(_) => ErrorKind::InvalidInput,
            Self::Busy(_) => ErrorKind::Transient,
            Self::Store(error) => error.into(),
        }
    }
}
