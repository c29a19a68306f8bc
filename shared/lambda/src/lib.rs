//! The runtime of every function. A `bin/<function>.rs` calls [`Aws::start`], creates the function's struct with its
//! tables and clients, and calls one of [`serve_step`], [`serve_http`], [`http::serve_http_with_deadline`],
//! [`serve_queue`], [`serve_commands`], [`serve_stream`]. watch-network calls `serve` of the crate consumer, which
//! calls [`serve_raw`].

mod aws;
mod batch;
mod caller;
mod calls;
pub mod http;
mod https;
mod idempotency;
mod replay;
mod serve;
mod table_batch;
mod telemetry;

pub use aws::{Aws, ConfigError, env, env_number, source_operators};
pub use batch::{Deadline, FailedItem, count_failed, process_each, process_lanes, serve_queue};
pub use calls::Call;
pub use http::serve_http;
pub use lambda_runtime::Error;
pub use replay::{serve_commands, serve_stream};
pub use serve::{Step, serve_raw, serve_step};
pub use table_batch::TableBatch;
pub use telemetry::report;
