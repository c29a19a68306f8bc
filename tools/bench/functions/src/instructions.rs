//! Counts the instructions of a process with valgrind, without those of the kernel.

use std::{ffi::OsString, fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    aws::Source,
    process::{Bench, Program},
};

/// The number of warm invocations for the mean.
const WARM: u64 = 20;
const SETTLE_TIME: Duration = Duration::from_millis(100);

/// Instruction counts of a function.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instructions {
    /// From the start until the request for the first event.
    pub to_next: u64,
    /// From the start until the first response.
    pub to_first_answer: u64,
    /// Of a warm invocation, the mean of 20.
    pub warm: u64,
}

/// Counts the instructions in three processes: without invocations, with one, and with 21.
pub async fn count(
    bench: &Bench,
    program: &Program,
    source: &Source,
    event: &Bytes,
) -> Result<Instructions> {
    let to_next = count_until(bench, program, source, event, 0).await?;
    let to_first_answer = count_until(bench, program, source, event, 1).await?;
    let to_last = count_until(bench, program, source, event, 1 + WARM).await?;
    ensure!(to_next < to_first_answer && to_first_answer < to_last, "{}: {to_last}", program.name);
    Ok(Instructions { to_next, to_first_answer, warm: (to_last - to_first_answer) / WARM })
}

/// Checks that valgrind is installed.
pub fn check() -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|folder| folder.join("valgrind").is_file()) {
        bail!(
            "valgrind is needed to count instructions; install it, e.g. with `apt-get install valgrind`"
        );
    }
    Ok(())
}

async fn count_until(
    bench: &Bench,
    program: &Program,
    source: &Source,
    event: &Bytes,
    invocations: u64,
) -> Result<u64> {
    let log = bench.folder.join("valgrind.log");
    let mut to_log = OsString::from("--log-file=");
    to_log.push(&log);
    let valgrind = [
        "valgrind".into(),
        "--tool=cachegrind".into(),
        "--cache-sim=no".into(),
        "--cachegrind-out-file=/dev/null".into(),
        to_log,
    ];
    let mut process = bench.start(program, source.clone(), &valgrind).await?;
    for _ in 0..invocations {
        process.invoke(event).await?;
    }
    // The process has requested the next event, but may still be running.
    tokio::time::sleep(SETTLE_TIME).await;
    process.end().await?;
    read_count(&log)
}

/// Reads the instruction count from valgrind's log.
fn read_count(log: &Path) -> Result<u64> {
    let text = fs::read_to_string(log)?;
    // `I   refs:` or `I refs:`, depending on the version.
    let count = text.lines().find_map(|line| {
        let (before, count) = line.split_once("refs:")?;
        before.trim_end().ends_with(" I").then_some(count)
    });
    let count =
        count.with_context(|| format!("valgrind's log has no instruction count:\n{text}"))?;
    Ok(count.trim().replace(',', "").parse()?)
}
