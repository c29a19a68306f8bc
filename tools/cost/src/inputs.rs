//! All that the model computes from.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use crate::{
    counted::{Onboardings, Readings, Stack},
    data::{Assumptions, Prices, Quotas, prices, read},
    figures::Figures,
};

/// Read from the repository.
#[derive(Debug)]
pub struct Inputs {
    /// AWS's.
    pub prices: Prices,
    /// AWS's, and the stack's own.
    pub quotas: Quotas,
    /// What no run counts.
    pub assumed: Assumptions,
    /// By `make bench`.
    pub figures: Figures,
    /// By testkit.
    pub onboardings: Onboardings,
    /// By testkit.
    pub readings: Readings,
    /// On the deployed local stack.
    pub stack: Stack,
    /// The state machine site-onboarding.
    pub saga: Value,
    /// The state machine site-teardown.
    pub teardown: Value,
}

impl Inputs {
    /// Those of the repository in that folder.
    pub fn read(root: &Path) -> Result<Self> {
        let here = root.join("tools/cost");
        let machine = |name: &str| read(&root.join(format!("statemachines/{name}.asl.json")));
        Ok(Self {
            prices: prices(&here.join("prices.json"))?,
            quotas: read(&here.join("quotas.json"))?,
            assumed: read(&here.join("assumptions.json"))?,
            figures: Figures::read(root)?,
            onboardings: read(&here.join("counted/onboarding.json"))?,
            readings: read(&here.join("counted/readings.json"))?,
            stack: read(&here.join("counted/stack.json"))?,
            saga: machine("site-onboarding")?,
            teardown: machine("site-teardown")?,
        })
    }

    /// A function's memory, in MB.
    #[must_use]
    pub fn memory(&self, function: &str) -> f64 {
        // As the template's Globals have it.
        self.assumed.memory.get(function).copied().unwrap_or(128.0)
    }
}
