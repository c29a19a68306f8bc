//! A client of the deployed stack, from outside: its HTTP API, event bus, tables, queues and executions, and the
//! payment provider. It uses none of the functions' crates, only shared ones (`contracts`, `machines`) and fieldctl's
//! `terminal`.

pub mod alarms;
pub mod api;
pub mod capture;
pub mod consumers;
pub mod data_logger;
pub mod events;
pub mod executions;
pub mod expected_alerts;
pub mod failures;
pub mod fieldctl;
pub mod function_logs;
pub mod inventory;
pub mod log;
pub mod meter;
pub mod operators;
pub mod readings;
pub mod sending;
mod signing;
pub mod sites;
pub mod stack;
pub mod stripe;
pub mod wait;

pub use stack::Stack;
