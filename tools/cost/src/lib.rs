//! The cost model: what the stack costs on AWS, and which quota it reaches first.
//!
//! Its inputs are counts of tests (`counted/`), measurements of the benchmarks (`tools/bench/figures.json` and
//! `docs/performance.md`), AWS's prices and quotas (`prices.json`, `quotas.json`) and assumptions
//! (`assumptions.json`). The command writes the tables of docs/cost.md.

pub mod authorizer;
pub mod counted;
pub mod data;
pub mod docs;
pub mod event_report;
pub mod events;
pub mod figures;
pub mod inputs;
pub mod lambda;
pub mod machine;
pub mod onboarding;
pub mod quotas;
pub mod readings;
pub mod report;
pub mod units;
