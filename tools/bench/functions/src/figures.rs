//! The results of a run, as in `figures.json`.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{batch::Batch, function::Function, measure::Figures};

/// The results of a run.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// The architecture of the machine.
    pub architecture: String,
    /// The measured functions, by name.
    pub functions: BTreeMap<String, Measured>,
    /// The measured peers, by name.
    pub peers: BTreeMap<String, Figures>,
    /// The measurement of store-readings with the largest batch.
    pub largest_batch: Option<Batch>,
    /// The reason why the CPU quota was not available.
    #[serde(skip)]
    pub no_quota: Option<String>,
}

/// The figures of a function.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    /// `MemorySize`, in MB.
    pub memory_mb: u64,
    /// The number of services that the function may call.
    pub clients: usize,
    /// Consumed `DynamoDB` write units of the recorded invocation.
    pub write_units: f64,
    /// Consumed `DynamoDB` read units of the recorded invocation.
    pub read_units: f64,
    #[serde(flatten)]
    pub figures: Figures,
}

impl Measured {
    /// Combines the figures of a function with its settings and the units on its recording.
    pub fn new(function: &Function, recording: &crate::aws::Recording, figures: Figures) -> Self {
        Self {
            memory_mb: function.memory,
            clients: function.clients,
            write_units: recording.iter().map(|call| call.write_units).sum(),
            read_units: recording.iter().map(|call| call.read_units).sum(),
            figures,
        }
    }
}

impl Run {
    /// Reads the results of an earlier run.
    pub fn read(file: &Path) -> Result<Self> {
        Ok(serde_json::from_str(&fs::read_to_string(file)?)?)
    }

    /// Replaces the figures of the functions that the other run measured.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let (old, new) = (&self.architecture, &other.architecture);
        ensure!(old == new, "the stored figures are those of {old}, not {new}");
        self.functions.extend(other.functions.clone());
        Ok(())
    }

    /// Writes the results to a file, with sorted keys.
    pub fn write(&self, file: &Path) -> Result<()> {
        let mut json = serde_json::to_value(self)?;
        json.sort_all_objects();
        Ok(fs::write(file, format!("{json:#}\n"))?)
    }
}
