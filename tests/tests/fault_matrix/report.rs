//! Writes docs/fault-matrix.md: the cases and their results.

use std::{collections::HashMap, fmt::Write, fs, path::Path};

use anyhow::{Context, Result};

use crate::{
    faults::Fault,
    judge::End,
    plan::{Call, Case, Step},
};

const BEGIN: &str = "<!-- matrix -->\n";
const END: &str = "<!-- /matrix -->\n";

/// Writes the tables of the passed cases between the marks.
pub fn write(
    steps: &[Step],
    calls: &HashMap<String, Vec<Call>>,
    ran: &[(&Case, End)],
) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/fault-matrix.md");
    let page = fs::read_to_string(&path)?;
    let (before, rest) = page.split_once(BEGIN).context("the page's first mark")?;
    let (_, after) = rest.split_once(END).context("the page's last mark")?;
    let tables = tables(steps, calls, ran)?;
    fs::write(&path, format!("{before}{BEGIN}\n{tables}\n{END}{after}"))?;
    terminal::print(format_args!("{} is written", path.display()));
    Ok(())
}

fn tables(
    steps: &[Step],
    calls: &HashMap<String, Vec<Call>>,
    ran: &[(&Case, End)],
) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "{} cases, all of them passed.\n", ran.len())?;
    write!(text, "| fault |")?;
    for step in steps {
        write!(text, " {} |", step.name)?;
    }
    writeln!(text, "\n|---|{}", "---:|".repeat(steps.len()))?;
    for fault in Fault::ALL {
        write!(text, "| `{fault}` |")?;
        for step in steps {
            let here = |it: &&(&Case, End)| it.0.step.name == step.name && it.0.fault == *fault;
            let count = ran.iter().filter(here).count();
            if count == 0 { write!(text, " |")? } else { write!(text, " {count} |")? }
        }
        writeln!(text)?;
    }
    for (name, end) in [("in service", End::Active), ("undone", End::Undone)] {
        write!(text, "| *{name} at the end* |")?;
        for step in steps {
            let here = |it: &&(&Case, End)| it.0.step.name == step.name && it.1 == end;
            write!(text, " {} |", ran.iter().filter(here).count())?;
        }
        writeln!(text)?;
    }
    writeln!(text, "\n| step | its calls |\n|---|---|")?;
    for step in steps {
        let calls = calls[&step.name].iter().map(|call| format!("`{}`", call.name));
        writeln!(text, "| {} | {} |", step.name, calls.collect::<Vec<_>>().join(", "))?;
    }
    Ok(text)
}
