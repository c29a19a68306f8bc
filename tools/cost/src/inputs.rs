//! The inputs of the model.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use crate::{
    counted::{Consumers, Onboardings, Readings, Stack},
    data::{Assumptions, Prices, Quotas, prices, read},
    figures::Figures,
};

/// The inputs, read from the repository.
#[derive(Debug)]
pub struct Inputs {
    /// AWS's prices.
    pub prices: Prices,
    /// AWS's quotas and the stack's own limits.
    pub quotas: Quotas,
    /// The assumptions.
    pub assumed: Assumptions,
    /// The measurements of `make bench`.
    pub figures: Figures,
    /// The onboardings that testkit counted.
    pub onboardings: Onboardings,
    /// The readings that testkit counted.
    pub readings: Readings,
    /// The consumers that testkit counted.
    pub consumers: Consumers,
    /// The onboardings that were counted on the deployed local stack.
    pub stack: Stack,
    /// The state machine site-onboarding.
    pub saga: Value,
    /// The state machine site-teardown.
    pub teardown: Value,
}

impl Inputs {
    /// Reads the inputs from the repository in this folder.
    pub fn read(root: &Path) -> Result<Self> {
        let folder = root.join("tools/cost");
        let machine = |name: &str| read(&root.join(format!("statemachines/{name}.asl.json")));
        Ok(Self {
            prices: prices(&folder.join("prices.json"))?,
            quotas: read(&folder.join("quotas.json"))?,
            assumed: read(&folder.join("assumptions.json"))?,
            figures: Figures::read(root)?,
            onboardings: read(&folder.join("counted/onboarding.json"))?,
            readings: read(&folder.join("counted/readings.json"))?,
            consumers: read(&folder.join("counted/consumers.json"))?,
            stack: read(&folder.join("counted/stack.json"))?,
            saga: machine("site-onboarding")?,
            teardown: machine("site-teardown")?,
        })
    }

    /// Returns a function's memory in MB.
    #[must_use]
    pub fn memory(&self, function: &str) -> f64 {
        // The default is that in the template's Globals.
        self.assumed.memory.get(function).copied().unwrap_or(128.0)
    }
}
