//! For tests only: the tables in an embedded DynamoDB ([`Dynamo`]), stand-ins for other services
//! ([`http`]), the contract that every step of a saga keeps with its undo ([`saga`]), and files
//! that pin what is on a wire ([`golden`]).

pub mod dynamo;
pub mod golden;
pub mod http;
pub mod saga;
pub mod sample;

pub use dynamo::Dynamo;
