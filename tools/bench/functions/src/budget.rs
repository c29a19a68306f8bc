//! Budget for the figures that are counted and therefore reproducible: `tools/bench/budget.json`.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::figures::{Measured, Run};

/// The factor by which a figure may exceed its budget.
const TOLERANCE: f64 = 1.1;

/// The figures of each function, by name.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Budget {
    /// The architecture of the instruction counts, sizes and memory figures.
    architecture: String,
    functions: BTreeMap<String, BTreeMap<String, f64>>,
}

/// A figure that exceeds its budget by more than 10 %, or has none.
#[derive(Debug, PartialEq)]
pub struct ExceededFigure {
    /// The function's name.
    pub function: String,
    /// The name of the figure.
    pub figure: String,
    /// `None` if the function or the figure is new.
    pub budget: Option<f64>,
    /// The measured value.
    pub now: f64,
}

impl Budget {
    /// Reads the budget from a file.
    pub fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| {
            format!("can't read {}; UPDATE_BUDGET=1 creates it", file.display())
        })?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Creates the budget that equals the figures of a run.
    pub fn from_run(run: &Run) -> Self {
        let functions = run.functions.iter();
        Self {
            architecture: run.architecture.clone(),
            functions: functions.map(|(name, one)| (name.clone(), counted(one))).collect(),
        }
    }

    /// Writes the budget to a file.
    pub fn write(&self, file: &Path) -> Result<()> {
        Ok(fs::write(file, format!("{:#}\n", serde_json::to_value(self)?))?)
    }

    /// Returns the figures of the run that exceed this budget. If the architectures differ, only calls and units are
    /// compared.
    pub fn exceeded_by(&self, run: &Self) -> Vec<ExceededFigure> {
        let mut exceeded = Vec::new();
        for (function, counted) in &run.functions {
            let budget = self.functions.get(function);
            for (figure, &now) in counted {
                let portable_figures = ["calls", "warmCalls", "writeUnits"];
                let same = self.architecture == run.architecture;
                if !same && !portable_figures.contains(&figure.as_str()) {
                    continue;
                }
                let budget = budget.and_then(|budget| budget.get(figure)).copied();
                if budget.is_none_or(|budget| now > budget * TOLERANCE) {
                    exceeded.push(ExceededFigure {
                        function: function.clone(),
                        figure: figure.clone(),
                        budget,
                        now,
                    });
                }
            }
        }
        exceeded
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn counted(measured: &Measured) -> BTreeMap<String, f64> {
    let figures = &measured.figures;
    let mut counted = BTreeMap::from([
        ("calls", figures.calls.values().sum::<u64>() as f64),
        ("warmCalls", figures.warm_calls.values().sum::<u64>() as f64),
        ("writeUnits", measured.write_units),
        ("peakKB", (figures.peak_bytes / 1024) as f64),
    ]);
    if let Some(instructions) = figures.instructions {
        counted.insert("instructionsToNext", instructions.to_next as f64);
        counted.insert("instructionsToFirstAnswer", instructions.to_first_answer as f64);
        counted.insert("instructionsWarm", instructions.warm as f64);
    }
    if let (Some(code), Some(zip)) = (figures.code_bytes, figures.zip_bytes) {
        counted.insert("binaryBytes", code as f64);
        counted.insert("zipBytes", zip as f64);
    }
    counted.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(architecture: &str, figures: &[(&str, f64)]) -> Budget {
        let figures = figures.iter().map(|(name, value)| ((*name).to_owned(), *value));
        Budget {
            architecture: architecture.to_owned(),
            functions: BTreeMap::from([("one".to_owned(), figures.collect())]),
        }
    }

    fn exceeded(figure: &str, budget: Option<f64>, now: f64) -> ExceededFigure {
        ExceededFigure { function: "one".to_owned(), figure: figure.to_owned(), budget, now }
    }

    #[test]
    fn a_figure_may_exceed_its_budget_by_ten_percent() {
        let budget_of_x = budget("x", &[("calls", 10.0), ("zipBytes", 1000.0)]);
        assert_eq!(
            budget_of_x.exceeded_by(&budget("x", &[("calls", 11.0), ("zipBytes", 1.0)])),
            []
        );
        let found = budget_of_x.exceeded_by(&budget("x", &[("calls", 12.0), ("zipBytes", 1101.0)]));
        let both =
            [exceeded("calls", Some(10.0), 12.0), exceeded("zipBytes", Some(1000.0), 1101.0)];
        assert_eq!(found, both);
    }

    #[test]
    fn a_figure_without_a_budget_is_reported() {
        let found = budget("x", &[]).exceeded_by(&budget("x", &[("calls", 1.0)]));
        assert_eq!(found, [exceeded("calls", None, 1.0)]);
    }

    #[test]
    fn only_calls_and_units_are_compared_across_architectures() {
        let budget_of_x = budget("x", &[("calls", 1.0), ("zipBytes", 1.0)]);
        let found = budget_of_x.exceeded_by(&budget("y", &[("calls", 2.0), ("zipBytes", 9.0)]));
        assert_eq!(found, [exceeded("calls", Some(1.0), 2.0)]);
    }
}
