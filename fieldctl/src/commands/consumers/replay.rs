//! The command `fieldctl consumers replay`.

use std::{
    collections::HashMap,
    pin::pin,
    time::{Duration, Instant},
};

use ::audit::Action;
use aws_config::{retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_lambda::primitives::Blob;
use clap::Args;
use contracts::{
    OperatorId,
    consumers::{EVENT_CONSUMERS, event_consumer},
    names::{self, LIVE},
    replay::{Aborted, Applied, Begun, Cleaned, FailedEntity, Rebuild},
};
use fault::AwsErrorKind;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::time::sleep;

use crate::{
    audit::Auditor,
    commands::confirm,
    error::{CliError, Exit, aws, unreadable},
    failure_pager::did_you_mean,
    output::{Progress, Screen, Tone},
    stack::Stack,
};

/// The number of segments of the scan. They are read concurrently.
const SEGMENTS: i32 = 4;
/// The maximum number of concurrent calls of the function.
const MAX_CONCURRENT_CALLS: usize = 4;
/// The maximum duration of a call: that of a Lambda function.
const MAX_CALL: Duration = Duration::from_mins(15);
/// The delays before the retries of a call. A call is retried if Lambda throttled it, if there was no response, or if
/// the function failed with a transient error or a timeout. A retry is safe, because it continues where the earlier
/// call stopped.
const RETRY_DELAYS: [Duration; 7] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(20),
];
/// The pause after a call that could not delete the old rows yet. For a minute after a rebuild, an execution may still
/// write such rows, so the function deletes none.
const CLEAN_PAUSE: Duration = Duration::from_secs(5);
/// The maximum number of failed entities that are shown.
const MAX_FAILED: usize = 100;
/// The interval at which the progress is printed if standard error is not a terminal.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// The options of a replay.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The function, such as watch-network.
    function: String,
    /// Give up the rebuild that is in progress, and delete its rows. Readers still see the old rows.
    #[arg(long)]
    abort: bool,
    /// Do not ask for confirmation.
    #[arg(long)]
    yes: bool,
}

/// How a replay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Ended {
    /// Readers see the new rows.
    Complete,
    /// Some entities can't be applied. Readers still see the old rows.
    Failed,
    /// The rebuild was given up. Readers still see the old rows.
    Aborted,
}

/// The result of a replay.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Replayed {
    /// The function.
    function: &'static str,
    /// How the replay ended.
    result: Ended,
    /// The generation of rows that was built or aborted. `None` if `--abort` found no rebuild in progress.
    generation: Option<u64>,
    /// The number of entities in the log.
    entities: u64,
    /// The number of events that were read from the log and applied. Events that happened meanwhile are not included.
    applied: u64,
    /// The number of deleted rows of earlier and aborted generations.
    deleted: u64,
    /// The entities whose events can't all be applied, at most [`MAX_FAILED`].
    failed: Vec<FailedEntity>,
}

/// Rebuilds the rows of a consumer.
pub async fn run(stack: &Stack, screen: &mut Screen, options: &Options) -> Result<Exit, CliError> {
    let function = replayable(&options.function)?;
    let question = if options.abort {
        format!("Give up the rebuild of {function} and delete its rows?")
    } else {
        format!(
            "Rebuild the rows of {function} from all events of the log? Readers see the old rows until the new ones are complete."
        )
    };
    confirm(&question, options.yes)?;
    Auditor::new(stack)
        .await?
        .record(OperatorId::DEFAULT, Action::RebuildConsumer, function)
        .await?;
    let replay = Replay::new(stack, function);
    let mut interrupted = pin!(tokio::signal::ctrl_c());
    let replayed = tokio::select! {
        _ = &mut interrupted => {
            return Err(CliError::new(Exit::Failed, "interrupted: readers still see the old rows, unless finish was already called")
                .advise(format!("to continue: fieldctl consumers replay {function}")));
        }
        replayed = replay.start(screen, options.abort) => replayed?,
    };
    if screen.json {
        screen.document(&replayed)?;
    }
    if replayed.result == Ended::Failed {
        let message = format!("{function} is not rebuilt: readers still see the old rows");
        return Err(CliError::new(Exit::Failed, message).advise(format!(
            "if the cause can be removed, repeat the replay, which continues; to give up: fieldctl consumers replay {function} --abort"
        )));
    }
    Ok(Exit::Done)
}

/// Returns the name of the function if it can be rebuilt.
fn replayable(function: &str) -> Result<&'static str, CliError> {
    let names: Vec<_> =
        EVENT_CONSUMERS.iter().filter(|it| it.replayable).map(|it| it.function).collect();
    match event_consumer(function) {
        Some(consumer) if consumer.replayable => Ok(consumer.function),
        Some(_) => Err(CliError::new(Exit::Refused, format!("{function} can't be rebuilt"))
            .advise(format!("consumers that can be rebuilt: {}", names.join(", ")))),
        None => {
            let suggestion = did_you_mean(function, &names);
            Err(CliError::usage(format!("there is no consumer {function:?}"))
                .advise(format!("{suggestion}consumers that can be rebuilt: {}", names.join(", "))))
        }
    }
}

/// A replay of one function.
struct Replay<'a> {
    stack: &'a Stack,
    lambda: aws_sdk_lambda::Client,
    function: &'static str,
}

impl<'a> Replay<'a> {
    /// Creates a replay. Its client does not retry, because [`Self::call`] does.
    fn new(stack: &'a Stack, function: &'static str) -> Self {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(5))
            .operation_attempt_timeout(MAX_CALL)
            .build();
        let config = stack.config().to_builder();
        let config = config.retry_config(RetryConfig::disabled()).timeout_config(timeouts).build();
        Self { stack, lambda: aws_sdk_lambda::Client::new(&config), function }
    }

    async fn start(&self, screen: &mut Screen, abort: bool) -> Result<Replayed, CliError> {
        if abort { self.abort(screen).await } else { self.rebuild(screen).await }
    }

    fn replayed(&self, result: Ended, generation: Option<u64>) -> Replayed {
        let failed = Vec::new();
        Replayed {
            function: self.function,
            result,
            generation,
            entities: 0,
            applied: 0,
            deleted: 0,
            failed,
        }
    }

    /// Gives up the rebuild that is in progress.
    async fn abort(&self, screen: &mut Screen) -> Result<Replayed, CliError> {
        let Aborted { generation } = self.call(&Rebuild::Abort).await?;
        let text = match generation {
            Some(generation) => format!("Generation {generation} of {} is aborted.", self.function),
            None => format!("{} is not being rebuilt.", self.function),
        };
        say(screen, &text)?;
        let mut replayed = self.replayed(Ended::Aborted, generation);
        replayed.deleted = self.clean().await.map_err(|error| {
            error.advise(format!(
                "rows are left; `fieldctl consumers replay {} --abort` deletes them",
                self.function
            ))
        })?;
        say(screen, &format!("{} rows were deleted.", replayed.deleted))?;
        Ok(replayed)
    }

    async fn rebuild(&self, screen: &mut Screen) -> Result<Replayed, CliError> {
        let nothing_switched = |error: CliError| {
            let advice =
                error.advice.clone().map(|advice| format!("{advice}; ")).unwrap_or_default();
            error.advise(format!(
                "{advice}readers still see the old rows; to continue: fieldctl consumers replay {}",
                self.function
            ))
        };
        let Begun { generation } = self.call(&Rebuild::Begin).await.map_err(nothing_switched)?;
        let mut replayed = self.replayed(Ended::Complete, Some(generation));
        say(screen, &format!("Generation {generation} of {} is being built.", self.function))?;
        self.apply(screen, generation, &mut replayed).await.map_err(nothing_switched)?;
        if !replayed.failed.is_empty() {
            replayed.result = Ended::Failed;
            for FailedEntity { entity, reason } in &replayed.failed {
                say(screen, &format!("{entity}: {reason}"))?;
            }
            return Ok(replayed);
        }
        let _: Value =
            self.call(&Rebuild::Finish { generation }).await.map_err(nothing_switched)?;
        let Replayed { entities, applied, .. } = replayed;
        let text = format!(
            "Generation {generation} is complete: {applied} events of {entities} entities were applied. Readers see it now."
        );
        if !screen.json {
            screen.line(screen.paint(Tone::Good, &text))?;
        }
        replayed.deleted = self.clean().await.map_err(|error| {
            error.advise(format!(
                "the rebuild is complete, but rows of earlier generations are left; `fieldctl consumers replay {}` deletes them too",
                self.function
            ))
        })?;
        say(screen, &format!("{} rows of earlier generations were deleted.", replayed.deleted))?;
        Ok(replayed)
    }

    /// Applies the events of all entities in the log.
    async fn apply(
        &self,
        screen: &mut Screen,
        generation: u64,
        replayed: &mut Replayed,
    ) -> Result<(), CliError> {
        let progress = Progress::spinner();
        let batches = self.entities().try_chunks(Rebuild::MAX_ENTITIES).map_err(|error| error.1);
        let apply = |entities: Vec<String>| async move {
            let count = entities.len() as u64;
            Ok((count, self.apply_to_the_end(generation, entities).await?))
        };
        let mut results = pin!(batches.map_ok(apply).try_buffer_unordered(MAX_CONCURRENT_CALLS));
        let mut reported = Instant::now();
        while let Some((entities, reply)) = results.try_next().await? {
            let Applied { applied, failed, .. } = reply;
            replayed.entities += entities;
            replayed.applied += applied;
            replayed.failed.extend(failed);
            replayed.failed.truncate(MAX_FAILED);
            let text = format!(
                "{} entities, {} events applied; Ctrl-C stops, the next replay continues",
                replayed.entities, replayed.applied
            );
            progress.show(&text);
            if !progress.is_shown() && reported.elapsed() >= REPORT_INTERVAL {
                reported = Instant::now();
                say(screen, &text)?;
                screen.flush()?;
            }
        }
        progress.clear();
        Ok(())
    }

    /// Applies all events of these entities. Each reply with `more` is progress, so the next call has all its attempts
    /// again. Returns the number of events that all calls applied, and the entities that the last call reports as failed.
    async fn apply_to_the_end(
        &self,
        generation: u64,
        entities: Vec<String>,
    ) -> Result<Applied, CliError> {
        let apply = Rebuild::Apply { generation, entities, partial: true };
        let mut applied = 0;
        loop {
            let reply: Applied = self.call(&apply).await?;
            applied += reply.applied;
            if !reply.more {
                return Ok(Applied { applied, ..reply });
            }
        }
    }

    /// Deletes the rows of earlier generations. Returns their number.
    async fn clean(&self) -> Result<u64, CliError> {
        let progress = Progress::spinner();
        let mut all = 0;
        loop {
            progress.show(&format!("deleting rows of earlier generations: {all}"));
            let Cleaned { deleted, more } = self.call(&Rebuild::Clean).await?;
            all += deleted;
            if !more {
                progress.clear();
                return Ok(all);
            }
            if deleted == 0 {
                sleep(CLEAN_PAUSE).await;
            }
        }
    }

    /// Returns the key of each entity in the log once: the scan returns only events with the sequence 1.
    fn entities(&self) -> impl Stream<Item = Result<String, CliError>> + '_ {
        let segment = |segment| {
            let scan = self
                .stack
                .dynamodb
                .scan()
                .table_name(self.stack.named(names::EVENTS))
                .filter_expression("#sequence = :first")
                .projection_expression("#entity")
                .expression_attribute_names("#sequence", "sequence")
                .expression_attribute_names("#entity", "entity")
                .expression_attribute_values(":first", AttributeValue::N("1".to_owned()))
                // An event that was committed just before `begin` must not be missed.
                .consistent_read(true)
                .segment(segment)
                .total_segments(SEGMENTS);
            let items = scan.into_paginator().items().send();
            stream::unfold(items, |mut items| async move {
                let item = items.next().await?;
                Some((item.map_err(aws("the event log can't be read")).and_then(entity), items))
            })
            .boxed()
        };
        stream::select_all((0..SEGMENTS).map(segment))
    }

    /// Calls the function and returns its reply. Retries a call that can be repeated.
    async fn call<R: DeserializeOwned>(&self, rebuild: &Rebuild) -> Result<R, CliError> {
        for delay in RETRY_DELAYS {
            match self.call_once(rebuild).await? {
                Ok(reply) => return Ok(reply),
                Err(_transient) => sleep(delay).await,
            }
        }
        self.call_once(rebuild).await?.map_err(|reason| {
            CliError::new(Exit::Aws, format!("{} does not answer: {reason}", self.function))
        })
    }

    /// Calls the function once. Returns the inner `Err` if the call can be repeated.
    async fn call_once<R: DeserializeOwned>(
        &self,
        rebuild: &Rebuild,
    ) -> Result<Result<R, String>, CliError> {
        let function = self.function;
        let event = rebuild.event();
        let event = event.map_err(|error| CliError::new(Exit::Failed, error.to_string()))?;
        let call = self.lambda.invoke().function_name(self.stack.named(function)).qualifier(LIVE);
        let response = match call.payload(Blob::new(event)).send().await {
            Ok(response) => response,
            Err(error) => {
                return match AwsErrorKind::classify(&error) {
                    AwsErrorKind::Busy | AwsErrorKind::NoResponse => {
                        Ok(Err(fault::describe(&error)))
                    }
                    _ => Err(aws(&format!("{function} can't be called"))(error)),
                };
            }
        };
        let body = response.payload().map_or(&[][..], |payload| payload.as_ref());
        if let Some(failed) = response.function_error() {
            let reply: Value = serde_json::from_slice(body).unwrap_or_default();
            let name = reply["errorType"].as_str().unwrap_or(failed);
            let message = reply["errorMessage"].as_str().unwrap_or("the function gave no reason");
            let reason = format!("{name}: {message}");
            if is_transient(name) {
                return Ok(Err(reason));
            }
            let error = CliError::new(Exit::Failed, format!("{function} failed: {reason}"));
            return Err(error.advise(format!("see fieldctl logs --function {function} --errors")));
        }
        serde_json::from_slice(body)
            .map(Ok)
            .map_err(|error| unreadable(&format!("the reply of {function}"), &error))
    }
}

/// Returns whether a function's error means that the same call can be sent again.
fn is_transient(error: &str) -> bool {
    error == "Transient" || error.contains("Timedout") || error.contains("Timeout")
}

fn entity(mut item: HashMap<String, AttributeValue>) -> Result<String, CliError> {
    match item.remove("entity") {
        Some(AttributeValue::S(entity)) => Ok(entity),
        _ => Err(unreadable("a row of the events table", &"it has no entity")),
    }
}

/// Prints a line, unless only JSON is printed.
fn say(screen: &mut Screen, text: &str) -> Result<(), CliError> {
    if screen.json { Ok(()) } else { screen.line(text) }
}
