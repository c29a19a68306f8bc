//! The measurements of `make bench`: CPU time, calls and log lines of each function and of the peers.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::data;

/// The measurements in `tools/bench/figures.json`, and the table of readings in docs/performance.md.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    functions: BTreeMap<String, Measured>,
    peers: BTreeMap<String, Measured>,
    largest_batch: Batch,
    /// The number of instructions of a sample in store-readings, until its row is sent.
    #[serde(skip)]
    instructions_a_sample: f64,
}

/// The measurements of a warm function.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    /// The CPU time of an invocation, in microseconds of a whole core.
    cpu_micros: f64,
    /// The size of an invocation's own log lines, in bytes.
    log_bytes: f64,
    /// The number of calls by operation.
    warm_calls: BTreeMap<String, u64>,
    #[serde(default)]
    instructions: Option<Instructions>,
}

/// Instruction counts of a function.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instructions {
    /// From the start of the process until the first response.
    pub to_first_answer: f64,
    /// Of a warm invocation.
    pub warm: f64,
}

/// The largest batch of the smallest bundles in store-readings.
#[derive(Clone, Debug, Deserialize)]
struct Batch {
    records: f64,
    seconds: f64,
}

impl Figures {
    /// Reads the measurements of the last `make bench`.
    pub fn read(root: &Path) -> Result<Self> {
        let mut figures: Self = data::read(&root.join("tools/bench/figures.json"))
            .context("no measurements; run `make bench`")?;
        let page = root.join("docs/performance.md");
        let text = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
        figures.instructions_a_sample =
            instructions_a_sample(&text).with_context(|| page.display().to_string())?;
        Ok(figures)
    }

    /// Returns the measurements of a function.
    pub fn function(&self, name: &str) -> Result<&Measured> {
        self.functions.get(name).with_context(|| format!("no figures of {name}: run `make bench`"))
    }

    /// Returns the measurements of a peer.
    pub fn peer(&self, name: &str) -> Result<&Measured> {
        self.peers.get(name).with_context(|| format!("no figures of {name}: run `make bench`"))
    }

    /// Returns the CPU time of a row in store-readings, in milliseconds of a whole core. It includes the work for the
    /// row's bundle, because each bundle of the measured batch has one row.
    #[must_use]
    pub fn row_millis(&self) -> f64 {
        self.largest_batch.seconds * 1000.0 / self.largest_batch.records
    }

    /// Returns the CPU time of each further sample in store-readings, in milliseconds of a whole core.
    pub fn sample_millis(&self) -> Result<f64> {
        let name = "store-readings";
        let measured = self.function(name)?;
        let instructions = measured.instructions().context(name)?;
        Ok(self.instructions_a_sample * measured.cpu_micros / instructions.warm / 1000.0)
    }
}

impl Measured {
    /// Returns the CPU time of an invocation, in milliseconds of a whole core.
    #[must_use]
    pub fn millis(&self) -> f64 {
        self.cpu_micros / 1000.0
    }

    /// Returns the instruction counts.
    pub fn instructions(&self) -> Result<Instructions> {
        self.instructions.context("instructions were not counted")
    }

    /// Returns the size of an invocation's own log lines, in bytes.
    #[must_use]
    pub fn log_bytes(&self) -> f64 {
        self.log_bytes
    }

    /// Returns the numbers of calls to AWS and to the payment provider.
    #[must_use]
    pub fn calls(&self) -> (f64, f64) {
        let (mut aws, mut provider) = (0.0, 0.0);
        for (operation, &count) in &self.warm_calls {
            #[expect(clippy::cast_precision_loss, reason = "few calls")]
            let count = count as f64;
            if operation.starts_with("stripe") {
                provider += count;
            } else {
                aws += count;
            }
        }
        (aws, provider)
    }
}

/// Returns the first row's value in the table `readings`: `| records | samples | instructions a sample |`.
fn instructions_a_sample(page: &str) -> Result<f64> {
    let (_, table) =
        page.split_once("<!-- readings -->").context("the page has no table readings")?;
    let row = table.lines().nth(3).context("the table readings has no row")?;
    let cell = row.split('|').nth(3).context("the table readings has no third cell")?;
    cell.trim().parse().with_context(|| format!("{cell:?} is not a number of instructions"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn the_instructions_are_read_from_the_first_row() -> Result<()> {
        let page = "a\n<!-- readings -->\n| records | samples | instructions a sample |\n\
                    |---:|---:|---:|\n| 500 | 60000 | 3804 |\n| 2000 | 240000 | 3809 |\n";
        assert!((instructions_a_sample(page)? - 3804.0).abs() < f64::EPSILON);
        assert!(instructions_a_sample("nothing").is_err());
        Ok(())
    }

    #[test]
    fn the_time_of_a_sample_follows_from_the_measured_speed() -> Result<()> {
        let mut figures: Figures = serde_json::from_str(
            r#"{ "functions": { "store-readings": { "cpuMicros": 100, "logBytes": 1,
                 "warmCalls": {}, "instructions": { "toFirstAnswer": 1, "warm": 400000 } } },
                 "peers": {}, "largestBatch": { "records": 10000, "seconds": 0.5 } }"#,
        )?;
        figures.instructions_a_sample = 4000.0;
        // 4,000 instructions per microsecond.
        assert!((figures.sample_millis()? - 0.001).abs() < 1e-12);
        assert!((figures.row_millis() - 0.05).abs() < 1e-12);
        assert!(figures.function("close-site").is_err());
        Ok(())
    }
}
