//! A client of the deployed stack, as its users and operators see it: its HTTP API, its event bus,
//! its tables, queues and executions, and the payment provider beside it. Nothing of the functions'
//! own code is in here but what they agree on with the world (`contracts`).

pub mod alarms;
pub mod api;
pub mod capture;
pub mod consumers;
pub mod executions;
pub mod failures;
pub mod fieldctl;
pub mod inventory;
pub mod judge;
pub mod log;
pub mod logger;
pub mod meter;
pub mod readings;
pub mod sites;
pub mod stack;
pub mod stripe;
pub mod wait;

pub use stack::Stack;
