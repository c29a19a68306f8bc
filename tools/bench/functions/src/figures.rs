//! All that a run finds, as `figures.json` tells it.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{batch::Batch, function::Function, measure::Figures};

/// A run's findings.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Instructions and sizes are of this one.
    pub architecture: String,
    /// By their names.
    pub functions: BTreeMap<String, Measured>,
    /// By their names.
    pub peers: BTreeMap<String, Figures>,
    /// Of store-readings.
    pub largest_batch: Option<Batch>,
    /// Why nothing was measured under the quota.
    #[serde(skip)]
    pub no_quota: Option<String>,
}

/// A function with its figures.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    /// `MemorySize`, in MB.
    pub memory_mb: u64,
    /// How many services it may call.
    pub clients: usize,
    /// Of the first invocation.
    pub write_units: f64,
    /// Of the first invocation.
    pub read_units: f64,
    #[serde(flatten)]
    pub figures: Figures,
}

impl Measured {
    /// A function with its figures, and with what its tape says.
    pub fn new(function: &Function, tape: &crate::aws::Tape, figures: Figures) -> Self {
        Self {
            memory_mb: function.memory,
            clients: function.clients,
            write_units: tape.iter().map(|call| call.write_units).sum(),
            read_units: tape.iter().map(|call| call.read_units).sum(),
            figures,
        }
    }
}

impl Run {
    /// What was found before.
    pub fn read(file: &Path) -> Result<Self> {
        Ok(serde_json::from_str(&fs::read_to_string(file)?)?)
    }

    /// Writes it there, its keys sorted.
    pub fn write(&self, file: &Path) -> Result<()> {
        let mut json = serde_json::to_value(self)?;
        json.sort_all_objects();
        Ok(fs::write(file, format!("{json:#}\n"))?)
    }
}
