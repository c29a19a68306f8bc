//! Generated tables and files. A test compares them, or updates them.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

/// If this environment variable is set, counts are written instead of compared.
const UPDATE: &str = "UPDATE_DOCS";

/// Returns the page with this table between the comments `<!-- name -->` and `<!-- /name -->`.
pub fn with_table(page: &str, name: &str, table: &str) -> Result<String> {
    let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (before, rest) =
        page.split_once(&start).with_context(|| format!("the page has no marker {start}"))?;
    let (_, after) =
        rest.split_once(&end).with_context(|| format!("the page has no marker {end}"))?;
    Ok(format!("{before}{start}{table}{end}{after}"))
}

/// Compares the table with that in the page. With `UPDATE_DOCS` in the environment, writes it instead.
pub fn check_or_update_table(path: &Path, name: &str, table: &str) -> Result<()> {
    let page = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let counted = with_table(&page, name, table)?;
    check_or_update(path, &page, &counted).with_context(|| format!("the table {name}"))
}

/// Compares a value with a JSON file. With `UPDATE_DOCS` in the environment, writes it instead.
pub fn check_or_update_json(path: &Path, counted: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(counted)?;
    text.push('\n');
    check_or_update(path, &fs::read_to_string(path).unwrap_or_default(), &text)
}

fn check_or_update(path: &Path, existing: &str, counted: &str) -> Result<()> {
    if existing == counted {
        return Ok(());
    }
    if std::env::var_os(UPDATE).is_some() {
        return fs::write(path, counted).with_context(|| path.display().to_string());
    }
    let differs =
        existing.lines().zip(counted.lines()).find(|(existing, counted)| existing != counted);
    let (existing, counted) = differs.unwrap_or(("the number of lines differs", ""));
    bail!("{} is outdated; UPDATE_DOCS=1 updates it:\n-{existing}\n+{counted}", path.display())
}

/// Returns a Markdown table with these column titles and rows. `right` says which columns are right-aligned.
pub fn table(head: &[&str], right: &[bool], rows: &[Vec<String>]) -> Result<String> {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&head.iter().map(|&cell| cell.to_owned()).collect::<Vec<_>>());
    text.push('|');
    text.extend(right.iter().map(|&right| if right { "---:|" } else { "---|" }));
    text.push('\n');
    for row in rows {
        ensure!(
            row.len() == head.len() && right.len() == head.len(),
            "the number of cells in {row:?} differs from the head {head:?}"
        );
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
        let actual = with_table(page, "x", "new\n")?;
        assert_eq!(actual, "a\n<!-- x -->\nnew\n<!-- /x -->\nb\n<!-- y -->\nold\n<!-- /y -->\n");
        assert!(with_table(page, "z", "new\n").is_err(), "the page has no table z");
        Ok(())
    }

    #[test]
    fn a_row_has_a_cell_for_each_column() -> Result<()> {
        let row = |cells: &[&str]| cells.iter().map(|&cell| cell.to_owned()).collect::<Vec<_>>();
        let actual = table(&["what", "USD"], &[false, true], &[row(&["a", "1"])])?;
        assert_eq!(actual, "| what | USD |\n|---|---:|\n| a | 1 |\n");
        assert!(table(&["what", "USD"], &[false, true], &[row(&["a"])]).is_err());
        Ok(())
    }
}
