//! Benchmark of each function, from the start of its process. It is run by `tools/bench/run.sh`, which builds the
//! functions and the peers.
//!
//! Each function is started as on Lambda, with stubs of the Runtime API and of AWS with TLS. The responses of the
//! stubs were recorded while the sample events ran once with an embedded `DynamoDB`.
//!
//! Environment variables:
//! - `BIN_DIR`: the folder of the functions' binaries.
//! - `FUNCTIONS='create-site get-site'`: measures only these functions, without the peers, and does not update the
//!   docs.
//! - `MERGE=1` with `FUNCTIONS`: stores the figures of these functions in `tools/bench/figures.json`, and keeps the
//!   figures of the others. A later run with `REPORT_ONLY=1` writes them to the docs. With `UPDATE_BUDGET=1` that run
//!   also stores them as the budget.
//! - `UPDATE_BUDGET=1`: stores the current figures as the budget.
//! - `REPORT_ONLY=1`: measures nothing, and prints the tables of the stored figures.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

mod aws;
mod batch;
mod budget;
mod figures;
mod function;
mod instructions;
mod measure;
mod other_services;
mod peers;
mod process;
mod progress;
mod quota;
mod recording;
mod report;
mod runtime_api;
mod server;
mod targets;

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use testkit::template::root;

use crate::{
    aws::Source,
    budget::Budget,
    figures::{Measured, Run},
    measure::{OptionalMeasurements, measure, size},
    process::{Bench, Program},
    progress::Progress,
    quota::Quota,
};

#[tokio::main(flavor = "multi_thread")]
async fn main() -> Result<ExitCode> {
    instructions::check()?;
    let root = root().canonicalize()?;
    let output = root.join("target/bench");
    let figures = root.join("tools/bench/figures.json");
    let chosen = env::var("FUNCTIONS").unwrap_or_default();
    let chosen: Vec<_> = chosen.split_whitespace().collect();

    let run = if env::var_os("REPORT_ONLY").is_some() {
        Run::read(&figures)?
    } else {
        let binaries =
            env::var("BIN_DIR").context("BIN_DIR is not set; it is the folder of the binaries")?;
        run(&output.join("run"), &PathBuf::from(binaries).canonicalize()?, &chosen).await?
    };
    let targets = targets::all(&run);
    let tables = [
        ("functions", report::functions(&run)),
        ("peers", report::peers(&run)),
        ("targets", report::targets(&targets)),
    ];
    for (_, table) in &tables {
        println!("{table}");
    }
    run.write(&output.join("functions.json"))?;
    if chosen.is_empty() {
        for (name, table) in &tables {
            fs::write(output.join(format!("{name}.md")), table)?;
        }
        run.write(&figures)?;
    } else if env::var_os("MERGE").is_some() {
        let mut stored = Run::read(&figures)?;
        stored.merge(&run)?;
        stored.write(&figures)?;
    }
    check_budget(&run, &root.join("tools/bench/budget.json"), chosen.is_empty())
}

async fn run(folder: &Path, binaries: &Path, chosen: &[&str]) -> Result<Run> {
    let functions = function::all()?;
    if let Some(unknown) = chosen.iter().find(|name| !functions.iter().any(|it| it.name == **name))
    {
        bail!("there is no function {unknown}");
    }
    let bench = Bench::new(folder.to_owned())?;
    let (quota, no_quota) = match Quota::new() {
        Ok(quota) => (Some(quota), None),
        Err(reason) => (None, Some(format!("{reason:#}"))),
    };
    let recordings = recording::record(&bench, &functions, binaries, chosen).await?;
    let recording =
        |name: &str| recordings.get(name).with_context(|| format!("no recording of {name}"));

    let is_chosen = |name: &str| chosen.is_empty() || chosen.contains(&name);
    let peers = if chosen.is_empty() { peers::names()? } else { Vec::new() };
    let measured_functions = functions.iter().filter(|it| is_chosen(&it.name));
    let progress = Progress::new(measured_functions.clone().count() + peers.len());
    let mut run = Run {
        architecture: env::consts::ARCH.to_owned(),
        functions: BTreeMap::new(),
        peers: BTreeMap::new(),
        largest_batch: None,
        no_quota,
    };
    for function in measured_functions {
        progress.start(&function.name);
        let program = Program::of(function, binaries);
        let recording = recording(&function.name)?;
        let source = Source::Recording(Arc::clone(recording));
        let optional = OptionalMeasurements { instructions: true, memory_growth: true };
        let mut figures =
            measure(&bench, &program, &source, &function.event, quota.as_ref(), optional).await?;
        let (code, zip) = size(&program.file)?;
        (figures.code_bytes, figures.zip_bytes) = (Some(code), Some(zip));
        if function.name == "store-readings" {
            run.largest_batch = Some(batch::measure(&bench, function, binaries).await?);
        }
        let measured = Measured::new(function, recording, figures);
        run.functions.insert(function.name.clone(), measured);
        progress.done();
    }
    for name in peers {
        progress.start(&name);
        let step = functions.iter().find(|function| function.name == peers::STEP);
        let step = step.context(peers::STEP)?;
        let figures =
            peers::peer(&bench, &name, step, recording(peers::STEP)?, quota.as_ref()).await?;
        run.peers.insert(name, figures);
        progress.done();
    }
    progress.finish();
    Ok(run)
}

/// Compares the run with the budget, or updates the budget.
fn check_budget(run: &Run, file: &Path, has_all_functions: bool) -> Result<ExitCode> {
    let now = Budget::from_run(run);
    if env::var_os("UPDATE_BUDGET").is_some() {
        if !has_all_functions {
            bail!("a budget needs all functions: do not set FUNCTIONS");
        }
        now.write(file)?;
        return Ok(ExitCode::SUCCESS);
    }
    let exceeded = Budget::read(file)?.exceeded_by(&now);
    if exceeded.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "More than 10 % over the budget ({}):\n\n{}",
        file.display(),
        report::exceeded(&exceeded)
    );
    Ok(ExitCode::FAILURE)
}
