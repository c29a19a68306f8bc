//! Implementations of the step configure-alerting in other languages or with defaults: `tools/bench/peers`.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use anyhow::Result;
use testkit::template::root;

use crate::{
    aws::{Recording, Source},
    function::Function,
    measure::{Figures, OptionalMeasurements, measure, size},
    process::{Bench, Program},
    quota::Quota,
};

/// The step that all peers implement.
pub const STEP: &str = "configure-alerting";
/// The peer that is not run under valgrind, because Node's JIT compiler is too slow there.
const NOT_UNDER_VALGRIND: &str = "typescript";

/// Returns the names of the available peers.
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

/// Measures a peer with the step's event and the recorded responses of the step. The peer's additional calls, which
/// manage its idempotency records, get empty responses: the event counts as new.
pub async fn peer(
    bench: &Bench,
    name: &str,
    step: &Function,
    recording: &Arc<Recording>,
    quota: Option<&Quota>,
) -> Result<Figures> {
    let folder = root().canonicalize()?.join("tools/bench/peers").join(name);
    let mut variables: BTreeMap<_, _> =
        step.variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
    for name in ["PATH", "HOME", "LANG"] {
        variables.extend(std::env::var_os(name).map(|value| (name.into(), value)));
    }
    let script = Program {
        name: name.to_owned(),
        file: folder.join("run"),
        arguments: Vec::new(),
        folder,
        variables,
        memory: step.memory,
    };
    let source = Source::RecordingOrEmpty(Arc::clone(recording));
    let process = bench.start(&script, source.clone(), &[]).await?;
    let program = process.program(&script)?;
    process.end().await?;

    let optional =
        OptionalMeasurements { instructions: name != NOT_UNDER_VALGRIND, memory_growth: false };
    let mut figures = measure(bench, &program, &source, &step.event, quota, optional).await?;
    let package = root().join("target/bench/peers").join(name).join("package");
    if package.exists() {
        let (code, zip) = size(Path::new(&package))?;
        (figures.code_bytes, figures.zip_bytes) = (Some(code), Some(zip));
    }
    Ok(figures)
}
