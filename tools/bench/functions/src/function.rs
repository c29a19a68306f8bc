//! The functions as deployed by the templates: memory, environment variables, and the services that they may call.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context, Result, ensure};
use contracts::names::named;
use hyper::body::Bytes;
use serde_json::Value;
use testkit::template::{Template, root};

/// The region and the account of the sample events.
const REGION_AND_ACCOUNT: &str = "eu-central-1:123456789012";
/// The environment of the sample events.
pub const ENVIRONMENT: &str = "fieldstation-prod";
/// Actions that Lambda uses to poll for the function. The function's own clients do not use them.
const POLLING_ACTIONS: [&str; 12] = [
    "dynamodb:DescribeStream",
    "dynamodb:GetRecords",
    "dynamodb:GetShardIterator",
    "dynamodb:ListStreams",
    "kinesis:DescribeStream",
    "kinesis:DescribeStreamSummary",
    "kinesis:GetRecords",
    "kinesis:GetShardIterator",
    "kinesis:ListShards",
    "sqs:DeleteMessage",
    "sqs:GetQueueAttributes",
    "sqs:ReceiveMessage",
];

/// A function of the templates.
#[derive(Clone, Debug)]
pub struct Function {
    /// The name of its binary.
    pub name: String,
    /// `MemorySize`, in MB.
    pub memory: u64,
    /// The number of services that its own code may call, including Stripe.
    pub clients: usize,
    /// The environment variables of the template. Stripe's address is set when the function is started.
    pub variables: BTreeMap<String, String>,
    /// Its sample event.
    pub event: Bytes,
}

/// Returns every function of the templates. Each has a sample event in `tests/events`.
pub fn all() -> Result<Vec<Function>> {
    let template = Template::read();
    let functions = template
        .resources("AWS::Serverless::Function")
        .into_values()
        .map(|resource| function(&template, resource))
        .collect::<Result<Vec<_>>>()?;
    let names: BTreeSet<_> = functions.iter().map(|function| function.name.clone()).collect();
    let samples: BTreeSet<_> = fs::read_dir(root().join("tests/events"))?
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    let unpaired: Vec<_> = names.symmetric_difference(&samples).collect();
    ensure!(unpaired.is_empty(), "a function without a sample event, or the reverse: {unpaired:?}");
    Ok(functions)
}

fn function(template: &Template, resource: &Value) -> Result<Function> {
    let name = resource["Metadata"]["BuildProperties"]["Binary"]
        .as_str()
        .context("the function has no Binary")?;
    let properties = &resource["Properties"];
    let globals = &template.0["Globals"]["Function"];
    let memory = properties["MemorySize"].as_u64().or(globals["MemorySize"].as_u64());
    let variables = properties["Environment"]["Variables"].as_object().into_iter().flatten();
    let variables: BTreeMap<_, _> =
        variables.map(|(name, value)| (name.clone(), resolve(template, value))).collect();
    let event = fs::read(root().join(format!("tests/events/{name}.json")))
        .with_context(|| format!("the sample event of {name}"))?;
    Ok(Function {
        name: name.to_owned(),
        memory: memory.context("the function has no MemorySize")?,
        clients: services(&properties["Policies"]).len()
            + usize::from(variables.contains_key("STRIPE_API_BASE")),
        variables,
        event: event.into(),
    })
}

/// Returns the AWS services that the policies allow the function's own code to call.
fn services(policies: &Value) -> BTreeSet<&str> {
    let statements = policies
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|policy| policy["Statement"].as_array())
        .flatten();
    let actions: Vec<_> = statements
        .flat_map(|statement| match &statement["Action"] {
            Value::Array(actions) => actions.iter().filter_map(Value::as_str).collect(),
            action => Vec::from_iter(action.as_str()),
        })
        .collect();
    // A policy with `PutObject` alone is for Lambda itself, which stores batches that it gave up on. A function that
    // calls S3 also has `GetObject`.
    let reads_files = actions.contains(&"s3:GetObject");
    actions
        .into_iter()
        .filter(|action| !POLLING_ACTIONS.contains(action))
        .filter_map(|action| action.split(':').next())
        .filter(|service| *service != "s3" || reads_files)
        .collect()
}

/// Resolves the value of a variable to the value that a deployment in the account of the sample events has.
fn resolve(template: &Template, value: &Value) -> String {
    match value {
        Value::String(text) if text.contains("${") => substitute(template, text),
        Value::String(text) => resolve_reference(template, text),
        // !Join [separator, values]
        Value::Array(join) => {
            let separator = join[0].as_str().unwrap_or_default();
            let values = join[1].as_array().into_iter().flatten();
            values.map(|value| resolve(template, value)).collect::<Vec<_>>().join(separator)
        }
        other => other.to_string(),
    }
}

fn substitute(template: &Template, text: &str) -> String {
    let mut done = String::new();
    let mut rest = text;
    while let Some((before, name, after)) = rest
        .split_once("${")
        .and_then(|(before, name)| name.split_once('}').map(|(name, after)| (before, name, after)))
    {
        done.push_str(before);
        done.push_str(&resolve_reference(template, name));
        rest = after;
    }
    done + rest
}

fn resolve_reference(template: &Template, name: &str) -> String {
    if let Some(default) = template.0["Parameters"][name].get("Default") {
        return default.as_str().map_or_else(|| default.to_string(), str::to_owned);
    }
    let resource = name.strip_suffix(".Arn").unwrap_or(name);
    let kind = template.0["Resources"][resource]["Type"].as_str().unwrap_or_default();
    let fixed = || named(ENVIRONMENT, template.fixed_name(resource).unwrap_or(resource));
    match kind {
        "AWS::SQS::Queue" if resource != name => {
            format!("arn:aws:sqs:{REGION_AND_ACCOUNT}:{}", fixed())
        }
        "AWS::SQS::Queue" => format!("https://sqs.example/{}", fixed()),
        "AWS::Serverless::StateMachine" => {
            format!("arn:aws:states:{REGION_AND_ACCOUNT}:stateMachine:{}", fixed())
        }
        _ if name == "Environment" => ENVIRONMENT.to_owned(),
        _ => name.to_owned(),
    }
}
