//! Contracts between the services: ids, the event envelope, event types, metrics and units.
//!
//! The crate does not depend on AWS. JSON field names are camelCase. Times are RFC 3339 in UTC with milliseconds.
//! Units are UCUM codes. Each event type and version has a JSON Schema in `shared/contracts/schemas/`. The schemas
//! are generated from the Rust types by `UPDATE_SCHEMAS=1 make unit-test ARGS='--test schemas'`.

mod access;
pub mod cloud_event;
pub mod consumers;
pub mod effective;
mod entity;
mod envelope;
pub mod events;
mod id;
pub mod inbound;
pub mod input;
mod metric;
pub mod names;
pub mod number;
pub mod open;
pub mod operators;
pub mod quarantine;
mod rate;
pub mod readings;
pub mod replay;
pub mod saga;
pub mod sample;
mod sample_time;
pub mod sensor;
mod site;
pub mod site_patch;
mod source;
pub mod stream;
pub mod text;
mod time;
mod utc_offset;

pub use access::Scope;
pub use entity::*;
pub use envelope::{Envelope, Event, Metadata, SiteData};
pub use id::{EventId, OnboardingId, OperatorId, SensorId, SiteId};
pub use metric::Metric;
pub use rate::RateLimit;
pub use saga::{ContextWithSensors, IdMismatch, SagaContext};
pub use site::{Contact, Location, OnboardingFailure, PaymentMethodId, Plan, Sensor};
pub use source::SourceOperators;
pub use time::Timestamp;
pub use utc_offset::UtcOffset;
