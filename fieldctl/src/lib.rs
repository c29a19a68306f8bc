//! `fieldctl`, the command for engineers on call, as a library: so its parts can be tested and reused.

#![allow(clippy::doc_markdown, reason = "the docs of arguments are the help that people read")]
#![allow(rustdoc::bare_urls, reason = "the docs of arguments are help texts")]

pub mod advice;
pub mod api;
pub mod api_key;
pub mod audit;
pub mod cli;
pub mod commands;
pub mod consumers;
pub mod decode;
pub mod error;
pub mod event_log;
pub mod event_stream;
pub mod failure_pager;
pub mod health;
mod http;
pub mod names;
pub mod output;
pub mod render;
pub mod resend;
pub mod resolve;
pub mod saga;
pub mod sagas;
pub mod site_row;
pub mod stack;
pub mod status;
pub mod summary;
pub mod teardown;
pub mod text;
pub mod trace;
