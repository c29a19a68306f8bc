//! Tests the events about the stock of kits, from the delivery of kits to the queue of a subscriber outside
//! (`examples/stock-subscriber`).

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use aws_sdk_cloudformation::{
    Client,
    types::{Parameter, StackStatus},
};
use contracts::{Entity, Metric, names};
use serde_json::{Value, json};
use testkit::template::root;
use tests::{
    Stack,
    alarms::sns,
    log::LoggedEvent,
    sites::{GOOD_CARD, registration},
    wait::{Poll, TIMEOUT, until, until_true},
};
use uuid::Uuid;

/// The metric of the subscriber. No other test uses it or the next one.
const METRIC: Metric = Metric::DissolvedOxygen;
const OTHER_METRIC: Metric = Metric::WaterConductivity;
/// The defaults of the templates.
const LOW_LIMIT: usize = 10;
const DEADBAND: usize = 5;
/// The `maxReceiveCount` of the example's queue.
const MAX_RECEIVES: u32 = 5;
/// More than an event needs from the table to the queue.
const DELIVERY_TIME: Duration = Duration::from_secs(3);

/// The deployed example.
struct Subscriber {
    client: Client,
    name: String,
    queue_url: String,
    dead_letters_url: String,
}

impl Subscriber {
    /// Deploys the example for a metric.
    async fn deploy(stack: &Stack, metric: Metric) -> Result<Self> {
        let client = Client::new(stack.config());
        let name = format!("{}-subscriber-{}", stack.name(), Uuid::new_v4().simple());
        let template = root().join("examples/stock-subscriber/template.yaml");
        let parameter = |key: &str, value: &str| {
            Parameter::builder().parameter_key(key).parameter_value(value).build()
        };
        client
            .create_stack()
            .stack_name(&name)
            .template_body(fs::read_to_string(template)?)
            .parameters(parameter("Environment", stack.name()))
            .parameters(parameter("Metric", metric.name()))
            .send()
            .await?;
        let created = until("the subscriber to be deployed", TIMEOUT, async || {
            let described = client.describe_stacks().stack_name(&name).send().await?;
            let found = described.stacks().first().context("CloudFormation described no stack")?;
            Ok(match found.stack_status() {
                Some(StackStatus::CreateComplete) => Poll::Ready(found.clone()),
                status => Poll::Pending(format!("{status:?}")),
            })
        })
        .await?;
        let output = |key: &str| -> Result<String> {
            let output = created.outputs().iter().find(|it| it.output_key() == Some(key));
            let value = output.and_then(|output| output.output_value());
            Ok(value.with_context(|| format!("no output {key}"))?.to_owned())
        };
        let (queue_url, dead_letters_url) = (output("QueueUrl")?, output("DeadLettersUrl")?);
        Ok(Self { client, name, queue_url, dead_letters_url })
    }

    /// Receives messages, deletes those that are events, and returns the events. All others become visible again at
    /// once.
    async fn receive(&self, stack: &Stack) -> Result<Vec<Value>> {
        let receive = stack.sqs().receive_message().queue_url(&self.queue_url);
        let received = receive.max_number_of_messages(10).visibility_timeout(0).send().await?;
        let mut events = Vec::new();
        for message in received.messages() {
            let body: Value = serde_json::from_str(message.body().unwrap_or_default())?;
            if body["detail"]["metadata"]["eventId"].is_string() {
                let handle = message.receipt_handle().context("a message without a handle")?;
                let delete = stack.sqs().delete_message().queue_url(&self.queue_url);
                delete.receipt_handle(handle).send().await?;
                events.push(body);
            }
        }
        Ok(events)
    }

    async fn delete(self) -> Result<()> {
        self.client.delete_stack().stack_name(&self.name).send().await?;
        Ok(())
    }
}

/// Returns the events of a metric's stock in the log, in order.
async fn logged(stack: &Stack, metric: Metric) -> Result<Vec<LoggedEvent>> {
    let rows = stack.rows_with(names::EVENTS, "entity", &Entity::stock(metric).to_string()).await?;
    let mut events =
        rows.into_iter().map(serde_json::from_value).collect::<Result<Vec<LoggedEvent>, _>>()?;
    events.sort_by_key(|event| event.sequence);
    Ok(events)
}

/// Returns the stock of a metric.
async fn stock(stack: &Stack, metric: Metric) -> Result<usize> {
    let rows = stack.rows_with(names::INVENTORY, "id", &format!("stock#{metric}")).await?;
    let quantity = rows.first().map_or(Some(0), |row| row["quantity"].as_u64());
    Ok(quantity.context("a stock without a quantity")?.try_into()?)
}

/// Takes kits from the stock: onboards a site with this number of sensors.
async fn take(stack: &Stack, metric: Metric, kits: usize) -> Result<()> {
    let name = format!("stock {}", Uuid::new_v4().simple());
    let site = registration(&name, &vec![metric; kits], GOOD_CARD);
    let ids = stack.register(&Uuid::new_v4().to_string(), &site).await?;
    stack.wait_until_active(ids.site_id).await?;
    Ok(())
}

/// Waits for the event of a metric's stock with this type, after this number of events. Returns its `data`.
async fn next_event(stack: &Stack, metric: Metric, before: usize, kind: &str) -> Result<Value> {
    let events = until(&format!("{kind} of {metric}"), TIMEOUT, async || {
        let events = logged(stack, metric).await?;
        Ok(if events.len() > before {
            Poll::Ready(events)
        } else {
            Poll::Pending(format!("{events:?}"))
        })
    })
    .await?;
    let types: Vec<_> = events[before..].iter().map(|event| event.kind.as_str()).collect();
    ensure!(types == [kind], "expected {kind}: {types:?}");
    let detail: Value = serde_json::from_str(&events[before].detail)?;
    Ok(detail["data"].clone())
}

#[tokio::test]
async fn a_subscriber_learns_that_a_stock_falls_sells_out_and_is_replenished() -> Result<()> {
    let stack = Stack::connect().await?;
    let subscriber = Subscriber::deploy(&stack, METRIC).await?;

    // Enough kits that the level is OK, on a new stack and after an earlier run.
    let enough = LOW_LIMIT + DEADBAND;
    for metric in [METRIC, OTHER_METRIC] {
        stack.deliver(&[metric], u32::try_from(enough)?).await?;
    }
    for metric in [METRIC, OTHER_METRIC] {
        until_true("the level to be OK", TIMEOUT, async || {
            let rows = stack.rows_with(names::INVENTORY, "id", &format!("level#{metric}")).await?;
            Ok((rows.iter().all(|row| row["level"] == "OK"), format!("{rows:?}")))
        })
        .await?;
    }
    tokio::time::sleep(DELIVERY_TIME).await;
    subscriber.receive(&stack).await?;
    let before = logged(&stack, METRIC).await?.len();
    let other_before = logged(&stack, OTHER_METRIC).await?.len();

    // The stock of the other metric falls too, and the subscriber does not learn of it.
    let other = stock(&stack, OTHER_METRIC).await?;
    take(&stack, OTHER_METRIC, other - LOW_LIMIT).await?;
    next_event(&stack, OTHER_METRIC, other_before, "StockLow").await?;

    let all = stock(&stack, METRIC).await?;
    take(&stack, METRIC, all - LOW_LIMIT).await?;
    let low = next_event(&stack, METRIC, before, "StockLow").await?;
    assert_eq!(low, json!({ "metric": METRIC, "quantity": LOW_LIMIT, "limit": LOW_LIMIT }));
    take(&stack, METRIC, LOW_LIMIT).await?;
    let sold_out = next_event(&stack, METRIC, before + 1, "StockSoldOut").await?;
    assert_eq!(sold_out, json!({ "metric": METRIC }));
    stack.deliver(&[METRIC], u32::try_from(enough)?).await?;
    let replenished = next_event(&stack, METRIC, before + 2, "StockReplenished").await?;
    assert_eq!(replenished, json!({ "metric": METRIC, "quantity": enough }));

    // The subscriber orders by the sequence, because neither EventBridge nor its queue keeps the order.
    let mut received: Vec<Value> = Vec::new();
    for _ in 0..60 {
        received.extend(subscriber.receive(&stack).await?);
        if received.len() >= 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    tokio::time::sleep(DELIVERY_TIME).await;
    received.extend(subscriber.receive(&stack).await?);
    received.sort_by_key(|event| event["detail"]["metadata"]["sequence"].as_u64());
    received.dedup_by_key(|event| event["detail"]["metadata"]["eventId"].clone());
    let types: Vec<_> = received.iter().map(|event| &event["detail-type"]).collect();
    assert_eq!(types, ["StockLow", "StockSoldOut", "StockReplenished"], "{received:#?}");
    for (event, data) in received.iter().zip([low, sold_out, replenished]) {
        assert_eq!(event["detail"]["data"], data);
        assert_eq!(event["source"], "fieldstation.inventory");
    }
    let ids: Vec<_> =
        received.iter().map(|event| event["detail"]["metadata"]["eventId"].clone()).collect();
    let events = logged(&stack, METRIC).await?;
    let logged_ids = events[before..].iter().map(LoggedEvent::id).collect::<Result<Vec<_>>>()?;
    assert_eq!(json!(ids), json!(logged_ids), "three events in the log, and these");
    subscriber.delete().await
}

#[tokio::test]
async fn a_message_that_the_subscriber_can_not_process_becomes_a_dead_letter() -> Result<()> {
    let stack = Stack::connect().await?;
    let subscriber = Subscriber::deploy(&stack, METRIC).await?;
    // The message passes the filter, but it is no event. The test may publish with the account's own permissions. The
    // topic's policy is about services.
    let poison = json!({ "detail": { "data": { "metric": METRIC } }, "id": Uuid::new_v4() });
    let topic = stack.topic_arn(names::STOCK);
    let message = poison.to_string();
    let form = [("Action", "Publish"), ("TopicArn", &topic), ("Message", &message)];
    sns(&stack, &form).await?;

    let dead_letter = until("the dead letter", TIMEOUT, async || {
        subscriber.receive(&stack).await?;
        let found = stack.take(&subscriber.dead_letters_url).await?;
        Ok(match found.into_iter().find(|body| *body == message) {
            Some(body) => Poll::Ready(body),
            None => Poll::Pending(format!("not after {MAX_RECEIVES} receives")),
        })
    })
    .await?;
    assert_eq!(serde_json::from_str::<Value>(&dead_letter)?, poison, "it is unchanged");
    subscriber.delete().await
}
