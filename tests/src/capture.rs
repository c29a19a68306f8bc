//! A subscriber of the event bus: a rule and a queue, as another system has them.

use std::time::{Duration, Instant};

use anyhow::Result;
use aws_sdk_eventbridge::types::Target;
use contracts::names;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::Stack;

const TARGET: &str = "queue";
/// How long [`Capture::take_all`] waits for events that should not be there.
const QUIET: Duration = Duration::from_millis(1500);

/// Captures the events that the stack publishes after [`Capture::start`].
#[derive(Debug)]
pub struct Capture {
    name: String,
    bus: String,
    queue_url: String,
}

impl Capture {
    /// Starts capturing Fieldstation's own events.
    pub async fn start(stack: &Stack) -> Result<Self> {
        Self::start_with(stack, &json!({ "source": [{ "prefix": "fieldstation." }] })).await
    }

    /// Starts capturing the events that match an event pattern.
    pub async fn start_with(stack: &Stack, pattern: &Value) -> Result<Self> {
        let name = format!("{}-listener-{}", stack.name(), Uuid::new_v4().simple());
        let bus = stack.named(names::EVENTS);
        let (queue_url, arn) = stack.create_queue(&name, "events.amazonaws.com").await?;
        stack
            .bus
            .put_rule()
            .name(&name)
            .event_bus_name(&bus)
            .event_pattern(pattern.to_string())
            .send()
            .await?;
        let target = Target::builder().id(TARGET).arn(&arn).build()?;
        stack.bus.put_targets().rule(&name).event_bus_name(&bus).targets(target).send().await?;
        Ok(Self { name, bus, queue_url })
    }

    /// Returns the number of events that were not received yet.
    pub async fn pending(&self, stack: &Stack) -> Result<u32> {
        stack.queue_depth(&self.queue_url).await.map(|(visible, _)| visible)
    }

    /// Receives and deletes the events since the last call: EventBridge's whole events, in the queue's order.
    pub async fn take(&self, stack: &Stack) -> Result<Vec<Value>> {
        let bodies = stack.take(&self.queue_url).await?;
        bodies.iter().map(|body| Ok(serde_json::from_str(body)?)).collect()
    }

    /// Receives events until `enough` returns true for all events so far, or the timeout expires. Returns all of them.
    pub async fn take_until(
        &self,
        stack: &Stack,
        timeout: Duration,
        enough: impl Fn(&[Value]) -> bool,
    ) -> Result<Vec<Value>> {
        let started = Instant::now();
        let mut events = Vec::new();
        loop {
            events.extend(self.take(stack).await?);
            if enough(&events) || started.elapsed() > timeout {
                return Ok(events);
            }
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
    }

    /// Receives events like [`Capture::take_until`]. Then waits for events that should not be there, such as repeats,
    /// and deletes the rule and the queue. Returns all events.
    pub async fn take_all(
        self,
        stack: &Stack,
        timeout: Duration,
        enough: impl Fn(&[Value]) -> bool,
    ) -> Result<Vec<Value>> {
        let mut events = self.take_until(stack, timeout, enough).await?;
        tokio::time::sleep(QUIET).await;
        events.extend(self.take(stack).await?);
        self.stop(stack).await?;
        Ok(events)
    }

    /// Deletes the rule and the queue.
    pub async fn stop(self, stack: &Stack) -> Result<()> {
        let Self { name, bus, queue_url } = self;
        stack.bus.remove_targets().rule(&name).event_bus_name(&bus).ids(TARGET).send().await?;
        stack.bus.delete_rule().name(&name).event_bus_name(&bus).send().await?;
        stack.sqs.delete_queue().queue_url(queue_url).send().await?;
        Ok(())
    }
}

/// Returns the `eventId` of a captured Fieldstation event.
#[must_use]
pub fn event_id(event: &Value) -> &str {
    event["detail"]["metadata"]["eventId"].as_str().unwrap_or_default()
}

/// Returns the `correlationId` of a captured Fieldstation event, which is the id of the onboarding.
#[must_use]
pub fn correlation(event: &Value) -> &str {
    event["detail"]["metadata"]["correlationId"].as_str().unwrap_or_default()
}
