//! Tables and files that are written by a command and kept by a test.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

/// Set, whatever is counted is written instead of compared.
const UPDATE: &str = "UPDATE_DOCS";

/// A page with this table between the comments of that name, `<!-- name -->` and `<!-- /name -->`.
pub fn with_table(page: &str, name: &str, table: &str) -> Result<String> {
    let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (before, rest) = page.split_once(&start).with_context(|| format!("there is no {start}"))?;
    let (_, after) = rest.split_once(&end).with_context(|| format!("there is no {end}"))?;
    Ok(format!("{before}{start}{table}{end}{after}"))
}

/// Fails where the page has another table under that name; with `UPDATE_DOCS` in the environment,
/// writes it there.
pub fn keep_table(path: &Path, name: &str, table: &str) -> Result<()> {
    let page = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let counted = with_table(&page, name, table)?;
    keep(path, &page, &counted).with_context(|| format!("the table {name}"))
}

/// The same for a file of JSON.
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

/// A table in markdown: its head, which columns are numbers, its rows.
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
    fn a_table_takes_the_place_of_the_one_before_and_of_nothing_else() -> Result<()> {
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
