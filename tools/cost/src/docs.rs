//! Tables and files that a command writes and a test compares.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

/// If this variable is set, counts are written instead of compared.
const UPDATE: &str = "UPDATE_DOCS";

/// Returns the page with this table between the comments `<!-- name -->` and `<!-- /name -->`.
pub fn with_table(page: &str, name: &str, table: &str) -> Result<String> {
    let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (before, rest) = page.split_once(&start).with_context(|| format!("there is no {start}"))?;
    let (_, after) = rest.split_once(&end).with_context(|| format!("there is no {end}"))?;
    Ok(format!("{before}{start}{table}{end}{after}"))
}

/// Compares the table with that in the page. With `UPDATE_DOCS` in the environment, writes it instead.
pub fn keep_table(path: &Path, name: &str, table: &str) -> Result<()> {
    let page = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let counted = with_table(&page, name, table)?;
    keep(path, &page, &counted).with_context(|| format!("the table {name}"))
}

/// Compares a value with a JSON file. With `UPDATE_DOCS` in the environment, writes it instead.
pub fn keep_json(path: &Path, counted: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(counted)?;
    text.push('\n');
    keep(path, &fs::read_to_string(path).unwrap_or_default(), &text)
}

fn keep(path: &Path, there: &str, counted: &str) -> Result<()> {
    if there == counted {
        return Ok(());
    }
    if std::env::var_os(UPDATE).is_some() {
        return fs::write(path, counted).with_context(|| path.display().to_string());
    }
    let differs = there.lines().zip(counted.lines()).find(|(there, counted)| there != counted);
    let (there, counted) = differs.unwrap_or(("another number of lines", ""));
    bail!("{} tells what is no longer so:\n-{there}\n+{counted}", path.display())
}

/// Returns a Markdown table with these column titles and rows. `right` says which columns are right-aligned.
pub fn table(head: &[&str], right: &[bool], rows: &[Vec<String>]) -> Result<String> {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&head.iter().map(|&cell| cell.to_owned()).collect::<Vec<_>>());
    text.push('|');
    text.extend(right.iter().map(|&right| if right { "---:|" } else { "---|" }));
    text.push('\n');
    for row in rows {
        ensure!(row.len() == head.len() && right.len() == head.len(), "{row:?} is not of {head:?}");
        text.push_str(&line(row));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_table_is_replaced() -> Result<()> {
        let page = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n<!-- y -->\nold\n<!-- /y -->\n";
        let told = with_table(page, "x", "new\n")?;
        assert_eq!(told, "a\n<!-- x -->\nnew\n<!-- /x -->\nb\n<!-- y -->\nold\n<!-- /y -->\n");
        assert!(with_table(page, "z", "new\n").is_err(), "there is no such table");
        Ok(())
    }

    #[test]
    fn a_row_has_a_cell_for_each_column() -> Result<()> {
        let row = |cells: &[&str]| cells.iter().map(|&cell| cell.to_owned()).collect::<Vec<_>>();
        let told = table(&["what", "USD"], &[false, true], &[row(&["a", "1"])])?;
        assert_eq!(told, "| what | USD |\n|---|---:|\n| a | 1 |\n");
        assert!(table(&["what", "USD"], &[false, true], &[row(&["a"])]).is_err());
        Ok(())
    }
}
