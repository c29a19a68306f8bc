//! For tests only: the tables in an embedded DynamoDB ([`Dynamo`]), stand-ins for other services
//! ([`http`], [`buckets`], [`stripe`]), the contract that every step of a saga keeps with its undo
//! ([`saga`]), files that pin what is on a wire ([`golden`]), the metrics that alarms listen to
//! ([`measured`]), the template as tests judge it ([`template`]), documents that a published schema describes
//! ([`schema`]), and simulations that a seed decides
//! ([`chance`]): a DynamoDB with faults ([`cloud`]) under Lambda's way to deliver a stream ([`mapping`]).

pub mod buckets;
pub mod chance;
pub mod cloud;
pub mod dynamo;
pub mod golden;
pub mod http;
pub mod mapping;
pub mod measured;
pub mod saga;
pub mod sample;
pub mod schema;
pub mod stripe;
pub mod template;

pub use dynamo::Dynamo;
