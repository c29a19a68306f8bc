//! Support for tests:
//! - the tables in an embedded DynamoDB ([`Dynamo`]);
//! - fakes of other services ([`http`], [`buckets`], [`stripe`]);
//! - the contract of a saga's step and its undo ([`saga`]);
//! - the contract of a consumer that applies every event once ([`consuming`]);
//! - golden files of JSON formats ([`golden`]);
//! - the metrics that code under test writes ([`measured`]);
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
pub mod mapping;
pub mod measured;
pub mod rng;
pub mod saga;
pub mod sample;
pub mod schema;
pub mod stripe;
pub mod template;

pub use dynamo::Dynamo;
