//! Writes docs/fault-matrix.md: the cases and their results.

use std::{collections::HashMap, fmt::Write, fs, path::Path};

use anyhow::{Context, Result};

use crate::{
    faults::Fault,
    invariants::Outcome,
    plan::{Case, Step, StepCall},
};

const START_MARKER: &str = "<!-- matrix -->\n";
const END_MARKER: &str = "<!-- /matrix -->\n";

/// Writes the tables of the passed cases between the markers.
pub fn write(
    steps: &[Step],
    calls: &HashMap<String, Vec<StepCall>>,
    results: &[(&Case, Outcome)],
) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/fault-matrix.md");
    let page = fs::read_to_string(&path)?;
    let (before, rest) = page.split_once(START_MARKER).context("the page has no start marker")?;
    let (_, after) = rest.split_once(END_MARKER).context("the page has no end marker")?;
    let tables = tables(steps, calls, results)?;
    fs::write(&path, format!("{before}{START_MARKER}\n{tables}\n{END_MARKER}{after}"))?;
    terminal::print(format_args!("Wrote {}", path.display()));
    Ok(())
}

fn tables(
    steps: &[Step],
    calls: &HashMap<String, Vec<StepCall>>,
    results: &[(&Case, Outcome)],
) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "All {} cases passed.\n", results.len())?;
    write!(text, "| fault |")?;
    for step in steps {
        write!(text, " {} |", step.name)?;
    }
    writeln!(text, "\n|---|{}", "---:|".repeat(steps.len()))?;
    for fault in Fault::ALL {
        write!(text, "| `{fault}` |")?;
        for step in steps {
            let is_counted =
                |it: &&(&Case, Outcome)| it.0.step.name == step.name && it.0.fault == *fault;
            let count = results.iter().filter(is_counted).count();
            if count == 0 { write!(text, " |")? } else { write!(text, " {count} |")? }
        }
        writeln!(text)?;
    }
    for (name, outcome) in [("active", Outcome::Active), ("undone", Outcome::Undone)] {
        write!(text, "| *{name} at the end* |")?;
        for step in steps {
            let is_counted =
                |it: &&(&Case, Outcome)| it.0.step.name == step.name && it.1 == outcome;
            write!(text, " {} |", results.iter().filter(is_counted).count())?;
        }
        writeln!(text)?;
    }
    writeln!(text, "\n| step | calls |\n|---|---|")?;
    for step in steps {
        let calls = calls[&step.name].iter().map(|call| format!("`{}`", call.name));
        writeln!(text, "| {} | {} |", step.name, calls.collect::<Vec<_>>().join(", "))?;
    }
    Ok(text)
}
