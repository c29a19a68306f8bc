//! The sample events, played once with the real functions against an embedded `DynamoDB`: what each
//! calls, what that costs, and the answers, from which it is measured afterwards.
//!
//! They tell one story, so they come in its order: kits are delivered, the site is registered, the
//! steps of its onboarding; then whatever works on a site; and the undoing at last.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::body::Bytes;
use serde_json::Value;
use testkit::{
    Dynamo,
    template::{kebab, root},
};

use crate::{
    aws::{Source, Tape},
    function::Function,
    process::{Bench, Program},
};

/// The functions in the story's order.
pub fn order(functions: &[Function]) -> Result<Vec<&Function>> {
    let mut forward = vec!["receive-kits".to_owned(), "import-site".to_owned()];
    forward.extend(steps("site-onboarding")?);
    // What starts a teardown belongs to the undoing.
    let mut back = vec!["decommission-site".to_owned(), "recover-onboarding".to_owned()];
    back.extend(steps("site-teardown")?);
    let place = |function: &Function| {
        let place = |steps: &[String]| steps.iter().position(|step| *step == function.name);
        match (place(&forward), place(&back)) {
            (Some(place), _) => (0, place),
            // Readings are read when there are some.
            (None, None) => (1, usize::from(function.name == "get-readings")),
            (None, Some(place)) => (2, place),
        }
    };
    let mut ordered: Vec<_> = functions.iter().collect();
    ordered.sort_by_key(|function| (place(function), &function.name));
    Ok(ordered)
}

/// The functions behind a state machine's tasks, in their order.
fn steps(machine: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(root().join(format!("statemachines/{machine}.asl.json")))?;
    let names = text.split("${").skip(1).filter_map(|rest| {
        let name = rest.split_once('}')?.0;
        name.strip_suffix("FunctionArn").or(name.strip_suffix("QueueUrl"))
    });
    Ok(names.map(kebab).collect())
}

/// Plays it; the tape of each function's only invocation.
pub async fn play(
    bench: &Bench,
    functions: &[Function],
    binaries: &Path,
) -> Result<BTreeMap<String, Arc<Tape>>> {
    let dynamo = Dynamo::start().await;
    let mut tapes = BTreeMap::new();
    let ordered = order(functions)?;
    for function in &ordered {
        if function.name == "get-readings" {
            // The readings that it is asked for are those of accept-readings' sample, which has
            // put them on the stream.
            let store = ordered.iter().find(|function| function.name == "store-readings");
            let store = store.context("store-readings")?;
            let accept = ordered.iter().find(|function| function.name == "accept-readings");
            let event = stored(&store.event, &accept.context("accept-readings")?.event)?;
            invoke(bench, store, binaries, &dynamo, &event).await?;
        }
        let tape = invoke(bench, function, binaries, &dynamo, &function.event).await?;
        tapes.insert(function.name.clone(), Arc::new(tape));
    }
    Ok(tapes)
}

async fn invoke(
    bench: &Bench,
    function: &Function,
    binaries: &Path,
    dynamo: &Dynamo,
    event: &Bytes,
) -> Result<Tape> {
    let program = Program::of(function, binaries);
    let source = Source::Real(dynamo.endpoint().to_owned());
    let mut process = bench.start(&program, source, &[]).await?;
    process.invoke(event).await?;
    let tape = process.aws.tape();
    process.end().await?;
    Ok(tape)
}

/// The event of a stream on which is what the request brings.
fn stored(stream: &Bytes, request: &Bytes) -> Result<Bytes> {
    let request: Value = serde_json::from_slice(request)?;
    let body = request["body"].as_str().context("a body")?;
    let mut event: Value = serde_json::from_slice(stream)?;
    event["Records"][0]["kinesis"]["data"] = STANDARD.encode(body).into();
    Ok(serde_json::to_vec(&event)?.into())
}

impl Program {
    /// A function's bootstrap.
    pub fn of(function: &Function, binaries: &Path) -> Self {
        let variables = function.variables.iter();
        Self {
            name: function.name.clone(),
            file: binaries.join(&function.name),
            arguments: Vec::new(),
            folder: binaries.to_owned(),
            variables: variables.map(|(name, value)| (name.into(), value.into())).collect(),
            memory: function.memory,
        }
    }
}
