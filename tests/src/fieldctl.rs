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
pub struct CommandOutput {
    /// The command's arguments.
    pub arguments: String,
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl CommandOutput {
    /// Parses standard output as one JSON document.
    pub fn document(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout)
            .with_context(|| format!("stdout is not one JSON document: {self:?}"))
    }

    /// Parses standard output as a sequence of JSON documents.
    pub fn documents(&self) -> Result<Vec<Value>> {
        let documents = serde_json::Deserializer::from_str(&self.stdout).into_iter();
        documents.map(|it| it.with_context(|| format!("stdout is not JSON: {self:?}"))).collect()
    }
}

/// Returns the path of the binary. Cargo puts tests one folder deeper than binaries.
fn binary() -> Result<PathBuf> {
    let test = env::current_exe()?;
    let candidates = test.ancestors().skip(1).take(2).map(|folder| folder.join("fieldctl"));
    let found = candidates.into_iter().find(|path| Path::is_file(path));
    found.context("the binary fieldctl is missing; build it with `cargo build -p fieldctl`")
}

impl Stack {
    /// Runs `fieldctl` on this stack. The output is for a terminal of 80 columns without colours.
    pub fn fieldctl(&self, arguments: &[&str]) -> Result<CommandOutput> {
        let output = Command::new(binary()?)
            .args(["--endpoint-url", self.endpoint().as_str(), "--stack", self.name()])
            .args(arguments)
            .env("COLUMNS", "80")
            .output()?;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).context("the output is not UTF-8");
        let result = CommandOutput {
            arguments: arguments.join(" "),
            code: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout)?,
            stderr: text(output.stderr)?,
        };
        ensure!(result.code >= 0 && !result.stderr.contains("panicked"), "{result:?}");
        Ok(result)
    }
}
