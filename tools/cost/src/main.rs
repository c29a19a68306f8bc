//! Writes the tables of docs/cost.md: `make cost`.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use cost::{docs::with_table, inputs::Inputs, report::tables};

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let inputs = Inputs::read(&root)?;
    let page = root.join("docs/cost.md");
    let mut text = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    for (name, table) in tables(&inputs)? {
        text = with_table(&text, name, &table)?;
    }
    fs::write(&page, text).with_context(|| page.display().to_string())
}
