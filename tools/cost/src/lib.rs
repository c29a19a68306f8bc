//! What the stack costs on AWS, and which quota it meets first: from what tests counted
//! (`counted/`), what the benchmarks measured (`tools/bench/figures.json`), AWS's prices and quotas
//! (`prices.json`, `quotas.json`) and what is assumed (`assumptions.json`). The command writes
//! docs/cost.md.

pub mod counted;
pub mod data;
pub mod docs;
pub mod figures;
pub mod inputs;
pub mod lambda;
pub mod machine;
pub mod onboarding;
pub mod quotas;
pub mod readings;
pub mod report;
pub mod units;
