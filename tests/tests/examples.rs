//! The example consumers of examples/consumers, deployed next to the stack from their own templates. Each must get each
//! event once and in order, although events are repeated, delivered out of order, or older than the consumer.

use std::{
    cell::RefCell,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_kinesis::primitives::Blob;
use contracts::{OperatorId, names, open::OpenEntity};
use futures_util::{future::try_join_all, try_join};
use reqwest::Method;
use serde_json::{Value, json};
use testkit::template::root;
use tests::{
    Stack,
    api::Call,
    events::{Appended, append, cloud_event, sequence},
    wait::{Poll, TIMEOUT, until},
};
use tokio::{task::spawn_blocking, time::sleep};
use uuid::Uuid;

/// How long the Python example's queue keeps an early event: the least that its template allows.
const RETRY: Duration = Duration::from_secs(30);
const SOURCE: &str = "example.maker";

fn examples() -> PathBuf {
    root().join("examples/consumers")
}

/// Copies the binary of the Rust example into a folder, with the name that Lambda expects. Cargo puts tests one folder
/// deeper than binaries.
fn build(folder: &Path) -> Result<()> {
    let test = env::current_exe()?;
    let mut candidates = test.ancestors().skip(1).take(2).map(|folder| folder.join("last-state"));
    let binary = candidates.find(|path| path.is_file());
    let binary = binary
        .context("the binary last-state is missing; build it with `cargo build -p last-state`")?;
    fs::copy(binary, folder.join("bootstrap"))?;
    Ok(())
}

/// A deployed example.
struct Example {
    stack: String,
    outputs: Vec<(String, String)>,
}

impl Example {
    /// Deploys an example's template with this code.
    async fn deploy(
        stack: &Stack,
        name: &str,
        code: &Path,
        parameters: Vec<String>,
    ) -> Result<Self> {
        let id = format!("{name}-{}", Uuid::new_v4().simple());
        let folder = env::temp_dir().join(&id);
        fs::create_dir(&folder)?;
        let template = fs::read_to_string(examples().join(name).join("template.yaml"))?;
        let code_uri = format!("CodeUri: {}", code.display());
        ensure!(template.contains("CodeUri: ."), "{name} names its code in another way");
        fs::write(folder.join("template.yaml"), template.replace("CodeUri: .", &code_uri))?;
        let mut command = Command::new(root().join(".venv/bin/sam"));
        command
            .current_dir(&folder)
            .args(["deploy", "--template-file", "template.yaml", "--stack-name", &id])
            .args(["--resolve-s3", "--capabilities", "CAPABILITY_IAM", "--region", "us-east-1"])
            .args(["--no-confirm-changeset", "--no-progressbar", "--parameter-overrides"])
            .arg(format!("Environment={}", stack.name()))
            .args(parameters)
            .envs([("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")])
            .env("AWS_ENDPOINT_URL", stack.endpoint().as_str())
            .env("SAM_CLI_TELEMETRY", "0");
        run(command).await?;
        fs::remove_dir_all(folder)?;
        let client = aws_sdk_cloudformation::Client::new(stack.config());
        let described = client.describe_stacks().stack_name(&id).send().await?;
        let outputs = described.stacks().first().context("no stack")?.outputs().iter();
        let outputs = outputs
            .filter_map(|it| Some((it.output_key()?.to_owned(), it.output_value()?.to_owned())));
        Ok(Self { outputs: outputs.collect(), stack: id })
    }

    fn output(&self, name: &str) -> Result<&str> {
        let output = self.outputs.iter().find(|(key, _)| key == name);
        Ok(&output.with_context(|| format!("{} has no output {name}", self.stack))?.1)
    }

    async fn delete(self, stack: &Stack) -> Result<()> {
        let client = aws_sdk_cloudformation::Client::new(stack.config());
        client.delete_stack().stack_name(self.stack).send().await?;
        Ok(())
    }
}

/// Runs a command. A failure contains its output.
async fn run(mut command: Command) -> Result<Output> {
    let output = spawn_blocking(move || command.output()).await??;
    ensure!(output.status.success(), "{output:?}");
    Ok(output)
}

/// Creates a key of the default operator that may only read.
async fn read_key(stack: &Stack) -> Result<String> {
    let body = json!({ "name": "Example consumers", "scope": "read", "expiresInDays": 1 });
    let call = Call::new(Method::POST, "/keys").key(&Uuid::new_v4().to_string());
    let response = stack.call(call.text(body.to_string())).await?;
    Ok(response.body["key"].as_str().with_context(|| format!("no key: {response}"))?.to_owned())
}

/// Puts a text into a new secret. Returns its ARN.
async fn create_secret(stack: &Stack, text: &str) -> Result<String> {
    let name = format!("example/{}", Uuid::new_v4());
    let input = json!({ "Name": name, "SecretString": text, "ClientRequestToken": Uuid::new_v4() });
    let created = stack.json_call("secretsmanager", "secretsmanager.CreateSecret", &input).await?;
    Ok(created["ARN"].as_str().context("no ARN")?.to_owned())
}

/// An entity of another system, and the type of its events.
struct Entity {
    name: String,
    event_type: String,
}

impl Entity {
    fn new(unique: &str, id: &str) -> Self {
        Self {
            name: format!("example{unique}.pump/{id}"),
            event_type: format!("Measured{unique}{id}"),
        }
    }

    fn kind(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }

    fn log_key(&self) -> Result<String> {
        let entity = OpenEntity::parse(&self.name).context("not an entity")?;
        Ok(entity.log_key(OperatorId::DEFAULT))
    }

    /// Appends an event twice, which must append it once.
    async fn append(&self, stack: &Stack, number: u64) -> Result<()> {
        let id = format!("{} {number}", self.name);
        let event = cloud_event(SOURCE, &id, &self.event_type, &self.name, &json!({ "n": number }));
        for attempt in 1..=2 {
            let appended = Appended::from_response(&stack.call(append(&event)).await?)?;
            ensure!(appended.sequence == number, "attempt {attempt}: {appended:?}, not {number}");
        }
        Ok(())
    }

    /// Returns the details of the entity's events in order.
    async fn details(&self, stack: &Stack) -> Result<Vec<Value>> {
        let response =
            stack.call(Call::get(format!("/events?entity={}&after=0", self.name))).await?;
        Ok(response.body["events"].as_array().with_context(|| format!("{response}"))?.clone())
    }

    /// Returns the detail of an event that is in no log.
    fn detail(&self, sequence: u64) -> Result<Value> {
        let entity = OpenEntity::parse(&self.name).context("not an entity")?;
        Ok(json!({
            "metadata": {
                "eventId": format!("{} {sequence}", self.name), "type": self.event_type, "entity": entity,
                "sequence": sequence, "operatorId": OperatorId::DEFAULT,
                "occurredAt": "2026-11-29T10:00:00.000Z",
            },
            "data": { "n": sequence },
        }))
    }

    /// Delivers an event once more, or an event that is in no log, on the bus.
    async fn put_on_bus(&self, stack: &Stack, detail: &Value) -> Result<()> {
        stack.put_event(SOURCE, &self.event_type, detail).await.map(drop)
    }

    /// Delivers an event once more on the stream.
    async fn put_on_stream(&self, stack: &Stack, detail: &Value) -> Result<()> {
        aws_sdk_kinesis::Client::new(stack.config())
            .put_record()
            .stream_name(stack.named(names::EVENTS))
            .partition_key(self.log_key()?)
            .data(Blob::new(detail.to_string()))
            .send()
            .await?;
        Ok(())
    }

    /// Waits until the Rust example applied all events up to this one, and checks that it applied each once.
    async fn assert_in_states(&self, stack: &Stack, example: &Example, last: u64) -> Result<()> {
        let (table, key) = (example.output("StatesTable")?, self.log_key()?);
        let row = self.wait_for_sequence(stack, table, "entity", &key, last).await?;
        ensure!(row["applied"] == last, "events were skipped or applied twice: {row}");
        let expected_data = json!({ "n": last }).to_string();
        ensure!(row["lastData"].as_str() == Some(&expected_data), "{row}");
        Ok(())
    }

    /// Waits until the Python example applied all events up to this one, and checks that it applied each once.
    async fn assert_in_history(&self, stack: &Stack, example: &Example, last: u64) -> Result<()> {
        let table = example.output("HistoryTable")?;
        let entity = format!("{}/{}", OperatorId::DEFAULT, self.name);
        self.wait_for_sequence(stack, table, "id", &format!("entity#{entity}"), last).await?;
        let rows = stack
            .dynamodb()
            .scan()
            .table_name(table)
            .consistent_read(true)
            .filter_expression("entity = :entity")
            .expression_attribute_values(":entity", AttributeValue::S(entity))
            .send()
            .await?;
        let events = rows.items().iter().map(|row| {
            let text = row.get("event").and_then(|it| it.as_s().ok()).context("no event")?;
            Ok(sequence(&serde_json::from_str(text)?))
        });
        let mut sequences = events.collect::<Result<Vec<_>>>()?;
        sequences.sort_unstable();
        ensure!(sequences == (1..=last).collect::<Vec<_>>(), "{}: {sequences:?}", self.name);
        Ok(())
    }

    async fn wait_for_sequence(
        &self,
        stack: &Stack,
        table: &str,
        key: &str,
        value: &str,
        last: u64,
    ) -> Result<Value> {
        until(&format!("event {last} of {}", self.name), RETRY + TIMEOUT, async || {
            let get = stack.dynamodb().get_item().table_name(table).consistent_read(true);
            let row = get.key(key, AttributeValue::S(value.to_owned())).send().await?.item;
            let row: Value = row.map(serde_dynamo::from_item).transpose()?.unwrap_or_default();
            Ok(if row["lastSequence"] == last { Poll::Ready(row) } else { Poll::Pending(row) })
        })
        .await
    }

    /// Runs follow.sh until it printed all events. Checks that it prints each once, and nothing when it runs again.
    async fn assert_printed(&self, api: &Api, arguments: [&str; 2], events: u64) -> Result<()> {
        let folder = env::temp_dir().join(format!("follow {}", Uuid::new_v4()));
        fs::create_dir(&folder)?;
        let position = folder.join("position");
        let expected: Vec<_> = (1..=events).collect();
        let printed = RefCell::new(Vec::new());
        // The newest events of a type are printed some seconds late.
        until(&format!("follow.sh {arguments:?}"), TIMEOUT, async || {
            let new = api.follow(arguments, &position).await?;
            let mut printed = printed.borrow_mut();
            printed.extend(new);
            Ok(if printed.len() < expected.len() {
                Poll::Pending(format!("{printed:?}"))
            } else {
                Poll::Ready(())
            })
        })
        .await?;
        let mut printed = printed.into_inner();
        printed.extend(api.follow(arguments, &position).await?);
        fs::remove_dir_all(folder)?;
        ensure!(printed == expected, "follow.sh {arguments:?} printed {printed:?}");
        Ok(())
    }
}

/// The API as the examples call it.
struct Api {
    url: String,
    key: String,
}

impl Api {
    /// Runs follow.sh once. Returns the sequences of the events that it prints.
    async fn follow(&self, arguments: [&str; 2], position: &Path) -> Result<Vec<u64>> {
        let mut command = Command::new(examples().join("shell/follow.sh"));
        command.args(arguments).arg(position).arg("0");
        command.env("API_URL", &self.url).env("FIELDSTATION_API_KEY", &self.key);
        let printed = String::from_utf8(run(command).await?.stdout)?;
        printed.lines().map(|line| Ok(sequence(&serde_json::from_str(line)?))).collect()
    }
}

#[tokio::test]
async fn each_example_gets_each_event_once_and_in_order() -> Result<()> {
    let stack = Stack::connect().await?;
    let key = read_key(&stack).await?;
    // Python does not resolve the host name `<id>.execute-api.localhost`. The emulator also accepts this URL.
    let (id, stage) = (stack.output("ApiId")?, stack.api_stage()?);
    let url = format!("{}restapis/{id}/{stage}/_user_request_", stack.endpoint());
    let api = Api { url, key };

    let unique = Uuid::new_v4().simple().to_string();
    // The events 1 to 3 are older than the consumers.
    let [one, two] = ["one", "two"].map(|id| Entity::new(&unique, id));
    let both = [&one, &two];
    for number in 1..=3 {
        try_join_all(both.map(|entity| entity.append(&stack, number))).await?;
    }
    let secret = create_secret(&stack, &api.key).await?;
    let code = env::temp_dir().join(format!("last-state-{unique}"));
    fs::create_dir(&code)?;
    build(&code)?;
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" };
    let python = examples().join("python-lambda");
    let (states, history) = try_join!(
        Example::deploy(&stack, "rust-lambda", &code, vec![format!("Architecture={architecture}")],),
        Example::deploy(
            &stack,
            "python-lambda",
            &python,
            vec![
                format!("EntityType={}", one.kind()),
                format!("ApiUrl={}", api.url),
                format!("ApiKeySecret={secret}"),
                format!("RetrySeconds={}", RETRY.as_secs()),
            ],
        ),
    )?;

    // An entity of which the bus delivers the second event first. The log does not have its events.
    let early = Entity::new(&unique, "early");
    early.put_on_bus(&stack, &early.detail(2)?).await?;
    for number in 4..=5 {
        try_join_all(both.map(|entity| entity.append(&stack, number))).await?;
    }
    // Longer than the queue collects a batch, so that the early event is alone in one.
    sleep(Duration::from_secs(3)).await;
    early.put_on_bus(&stack, &early.detail(1)?).await?;
    // Old events come again, and then a new one.
    for entity in both {
        for detail in entity.details(&stack).await?.iter().rev() {
            entity.put_on_stream(&stack, detail).await?;
            entity.put_on_bus(&stack, detail).await?;
        }
        entity.append(&stack, 6).await?;
    }

    for entity in both {
        entity.assert_in_states(&stack, &states, 6).await?;
        entity.assert_in_history(&stack, &history, 6).await?;
        entity.assert_printed(&api, ["entity", &entity.name], 6).await?;
        entity.assert_printed(&api, ["type", &entity.event_type], 6).await?;
    }
    early.assert_in_history(&stack, &history, 2).await?;
    let dead = stack.queue_depth(history.output("DeadLetters")?).await?;
    ensure!(dead == (0, 0), "events are in the dead-letter queue: {dead:?}");

    fs::remove_dir_all(code)?;
    try_join!(states.delete(&stack), history.delete(&stack))?;
    Ok(())
}
