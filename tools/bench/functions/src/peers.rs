//! The same step, configure-alerting, as others would write it: `tools/bench/peers`.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use anyhow::Result;
use testkit::template::root;

use crate::{
    aws::{Source, Tape},
    function::Function,
    measure::{Figures, Scope, measure, size},
    process::{Bench, Program},
    quota::Quota,
};

/// What they all do.
pub const STEP: &str = "configure-alerting";
/// Node's compiler to machine code does not run under valgrind in any time worth waiting for.
const NOT_UNDER_VALGRIND: &str = "typescript";

/// The peers that are there, by their names.
pub fn names() -> Result<Vec<String>> {
    let folder = root().join("tools/bench/peers");
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut names: Vec<_> = fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("run").exists())
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// Measures one on the step's event, with the answers that the step of ours got. What it calls
/// beside that, for idempotency, is answered as if all were new.
pub async fn peer(
    bench: &Bench,
    name: &str,
    step: &Function,
    tape: &Arc<Tape>,
    quota: Option<&Quota>,
) -> Result<Figures> {
    let folder = root().canonicalize()?.join("tools/bench/peers").join(name);
    let mut variables: BTreeMap<_, _> =
        step.variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
    for of_machine in ["PATH", "HOME", "LANG"] {
        variables.extend(std::env::var_os(of_machine).map(|value| (of_machine.into(), value)));
    }
    let script = Program {
        name: name.to_owned(),
        file: folder.join("run"),
        arguments: Vec::new(),
        folder,
        variables,
        memory: step.memory,
    };
    let source = Source::TapeOrPlain(Arc::clone(tape));
    let process = bench.start(&script, source.clone(), &[]).await?;
    let program = process.program(&script)?;
    process.end().await?;

    let scope = Scope { instructions: name != NOT_UNDER_VALGRIND, many: false };
    let mut figures = measure(bench, &program, &source, &step.event, quota, scope).await?;
    let package = root().join("target/bench/peers").join(name).join("package");
    if package.exists() {
        let (code, zip) = size(Path::new(&package))?;
        (figures.code_bytes, figures.zip_bytes) = (Some(code), Some(zip));
    }
    Ok(figures)
}
