//! Runs the sample events once with the real functions and an embedded `DynamoDB`, to record the calls of each
//! function, their units, and the responses for the measurements.
//!
//! The events depend on each other, so they run in this order: delivery of kits, registration of the site, the steps of
//! the onboarding, the functions for a live site, and the teardown.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::OperatorId;
use hyper::body::Bytes;
use keys::ApiKey;
use serde_json::{Value, json};
use testkit::{
    Dynamo,
    dynamo::KEYS,
    template::{kebab, root},
};

use crate::{
    aws::{Recording, Source},
    function::Function,
    process::{Bench, Program},
};

/// The authorizer. Its sample event needs only the row of the API key in the request, so it can be recorded without the
/// other functions.
const AUTHORIZER: &str = "authorise-caller";

/// The functions for a live site whose sample events need the effects of other such functions, in their order. They run
/// after the others, which run in the order of their names.
const LATE: [&str; 2] = ["get-readings", "get-revisions"];

/// Returns the functions in the order of their sample events.
pub fn order(functions: &[Function]) -> Result<Vec<&Function>> {
    let mut forward = vec!["receive-kits".to_owned(), "import-site".to_owned()];
    forward.extend(steps("site-onboarding")?);
    // The functions that start a teardown run before its steps.
    let mut back = vec!["decommission-site".to_owned(), "recover-onboarding".to_owned()];
    back.extend(steps("site-teardown")?);
    let position = |function: &Function| {
        let index_in = |steps: &[String]| steps.iter().position(|step| *step == function.name);
        match (index_in(&forward), index_in(&back)) {
            (Some(index), _) => (0, index),
            (None, None) => (
                1,
                LATE.iter().position(|name| *name == function.name).map_or(0, |index| index + 1),
            ),
            (None, Some(index)) => (2, index),
        }
    };
    let mut ordered: Vec<_> = functions.iter().collect();
    ordered.sort_by_key(|function| (position(function), &function.name));
    Ok(ordered)
}

/// Returns the functions of a state machine's tasks, in order.
fn steps(machine: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(root().join(format!("statemachines/{machine}.asl.json")))?;
    let names = text.split("${").skip(1).filter_map(|rest| {
        let name = rest.split_once('}')?.0;
        name.strip_suffix("FunctionArn").or(name.strip_suffix("QueueUrl"))
    });
    Ok(names.map(kebab).collect())
}

/// Runs the sample events of all functions, because they depend on each other. If only the authorizer is chosen, runs
/// only its sample event. Returns the recording of each function's invocation.
pub async fn record(
    bench: &Bench,
    functions: &[Function],
    binaries: &Path,
    chosen: &[&str],
) -> Result<BTreeMap<String, Arc<Recording>>> {
    let dynamo = Dynamo::start().await;
    let mut recordings = BTreeMap::new();
    let mut ordered = order(functions)?;
    if chosen == [AUTHORIZER] {
        ordered.retain(|function| function.name == AUTHORIZER);
    }
    for function in &ordered {
        if function.name == AUTHORIZER {
            dynamo.put(KEYS, key_row(&function.event)?).await;
        }
        if function.name == "get-readings" {
            // The sample of get-readings queries the readings in the sample of accept-readings, so store-readings
            // stores them first.
            let store = ordered.iter().find(|function| function.name == "store-readings");
            let store = store.context("no function store-readings")?;
            let accept = ordered.iter().find(|function| function.name == "accept-readings");
            let event =
                stored(&store.event, &accept.context("no function accept-readings")?.event)?;
            invoke(bench, store, binaries, &dynamo, &event).await?;
        }
        let recording = invoke(bench, function, binaries, &dynamo, &function.event).await?;
        recordings.insert(function.name.clone(), Arc::new(recording));
    }
    Ok(recordings)
}

async fn invoke(
    bench: &Bench,
    function: &Function,
    binaries: &Path,
    dynamo: &Dynamo,
    event: &Bytes,
) -> Result<Recording> {
    let program = Program::of(function, binaries);
    let source = Source::Real(dynamo.endpoint().to_owned());
    let mut process = bench.start(&program, source, &[]).await?;
    process.invoke(event).await?;
    let recording = process.aws.recording();
    process.end().await?;
    Ok(recording)
}

/// Returns the row of the API key in the authorizer's request.
fn key_row(event: &Bytes) -> Result<Value> {
    let event: Value = serde_json::from_slice(event)?;
    let header = event["multiValueHeaders"]["Authorization"][0].as_str();
    let key = header.and_then(|header| header.strip_prefix("Bearer "));
    let key = ApiKey::parse(key.context("the sample has no key")?)?;
    let id = "0c5e6f2e-6a0b-5c0d-9d3a-0f6b8f4f7d11";
    Ok(json!({
        "id": key.hash(),
        "keyId": id,
        "operatorId": OperatorId::DEFAULT,
        "operator": { "status": "ACTIVE", "plan": "standard" },
        "name": "bench",
        "scope": "read",
        "prefix": key.visible_prefix(),
        "createdAt": "2026-01-01T00:00:00.000Z",
        "listed": format!("2026-01-01T00:00:00.000Z/{id}"),
        // The last use is in the future, so the authorizer does not record a use. The invocation is then one read, like
        // every use of a key on a day except the first.
        "lastUsedOn": "9999-12-31",
    }))
}

/// Returns the stream event with the body of the request as its first record.
fn stored(stream: &Bytes, request: &Bytes) -> Result<Bytes> {
    let request: Value = serde_json::from_slice(request)?;
    let body = request["body"].as_str().context("the sample has no body")?;
    let mut event: Value = serde_json::from_slice(stream)?;
    event["Records"][0]["kinesis"]["data"] = STANDARD.encode(body).into();
    Ok(serde_json::to_vec(&event)?.into())
}

impl Program {
    /// Returns the program of a function.
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
