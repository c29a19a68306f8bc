//! The event log: appending and reading events over HTTP, and publishing them.
//!
//! This crate owns the events table. Its key is `entity` and `sequence`, and it has a row per event
//! ([`store::EventRow`]). The services' transactions and append-event insert the rows. publish-events and sweep-events put
//! them on the stream of all events and on the bus, and mark them as published or refused. Rows are kept for good. No
//! other function calls `PutEvents`, or puts records on the stream.
//!
//! The table has these indexes. `unpublished` has only rows that are neither published nor refused, in
//! [`store::SHARDS`] partitions; sweep-events reads it. `byTypeAndTime` and `byCorrelation` serve `GET /events`.
//! `byType` is read by the previous release, and by fieldctl for events of earlier releases. The next release removes
//! it.
//!
//! It also owns the guards table, with the key `id`: a row per appended event ([`guards::GuardRow`]) and per source
//! ([`store::SourceRow`]).

pub mod append_event;
pub mod guards;
pub mod list_events;
mod page;
pub mod publish_events;
pub mod publisher;
pub mod sweep_events;
