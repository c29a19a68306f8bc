//! Support for tests:
//! - the tables in an embedded DynamoDB ([`Dynamo`]);
//! - fakes of other services ([`http`], [`buckets`], [`stripe`], [`issuer`]);
//! - the contract of a saga's step and its undo ([`saga`]);
//! - the contracts of consumers that apply every event once, and of projections of the newest event ([`consuming`]);
//! - golden files of JSON formats ([`golden`]);
//! - the metrics and the log lines that code under test writes ([`measured`], [`logged`]);
//! - a fake of Lambda's Runtime API ([`runtime`]);
//! - the templates as JSON ([`template`]);
//! - documents generated from a published schema ([`schema`]);
//! - simulations that depend only on a seed ([`rng`]): a DynamoDB with faults ([`cloud`]) under a model of
//!   Lambda's stream delivery ([`mapping`]).

pub mod buckets;
pub mod cloud;
pub mod consuming;
pub mod dynamo;
pub mod golden;
pub mod http;
pub mod issuer;
pub mod logged;
pub mod mapping;
pub mod measured;
pub mod rng;
pub mod runtime;
pub mod saga;
pub mod sample;
pub mod schema;
pub mod stripe;
pub mod template;

pub use dynamo::Dynamo;
