//! Runs the binary `fieldctl`.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Stack;

/// The output and the exit code of a command.
#[derive(Debug)]
pub struct Printed {
    /// The command's arguments.
    pub arguments: String,
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Printed {
    /// Parses standard output as one JSON document.
    pub fn document(&self) -> Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("no JSON document: {self:?}"))
    }

    /// Parses standard output as a sequence of JSON documents.
    pub fn documents(&self) -> Result<Vec<Value>> {
        let documents = serde_json::Deserializer::from_str(&self.out).into_iter();
        documents.map(|it| it.with_context(|| format!("no JSON: {self:?}"))).collect()
    }
}

/// Returns the path of the binary. Cargo puts tests one folder deeper than binaries.
fn binary() -> Result<PathBuf> {
    let here = env::current_exe()?;
    let near = here.ancestors().skip(1).take(2).map(|folder| folder.join("fieldctl"));
    let found = near.into_iter().find(|path| Path::is_file(path));
    found.context("there is no fieldctl: `cargo build -p fieldctl` builds it")
}

impl Stack {
    /// Runs `fieldctl` on this stack, with the output for a terminal of 80 columns without colours.
    pub fn fieldctl(&self, arguments: &[&str]) -> Result<Printed> {
        let output = Command::new(binary()?)
            .args(["--endpoint-url", self.endpoint().as_str(), "--stack", self.name()])
            .args(arguments)
            .env("COLUMNS", "80")
            .output()?;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).context("no text");
        let printed = Printed {
            arguments: arguments.join(" "),
            code: output.status.code().unwrap_or(-1),
            out: text(output.stdout)?,
            err: text(output.stderr)?,
        };
        ensure!(printed.code >= 0 && !printed.err.contains("panicked"), "{printed:?}");
        Ok(printed)
    }
}
