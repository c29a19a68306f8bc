//! `POST /events`: appends an event of another system to the log.

use std::time::Duration;

use contracts::{
    EventId, OperatorId, Timestamp,
    cloud_event::{self, CloudEvent},
    open::{OpenMetadata, foreign_correlation_key},
};
use lambda::http::{self, Caller, Problem, Request, Response};
use serde::{Deserialize, Serialize};
use store::{
    Commit, EventRow, Outbox, StoreError, Table, Transaction, from_item, jittered, shard,
    type_bucket,
};
use tokio::time::Instant;

use crate::guards::{GuardRow, Sources};

/// The maximum size of the request body, in bytes. The row, with the metadata, then fits into an event of EventBridge
/// (256 KiB).
const MAX_BODY_BYTES: usize = 192 * 1024;
/// The maximum number of attempts to find a free sequence.
const MAX_ATTEMPTS: u32 = 8;
/// No attempt begins later than this after the first.
const MAX_TIME: Duration = Duration::from_secs(2);
/// The maximum pause before the second attempt. It doubles with each attempt, up to the longest one.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);
/// The seconds after which a caller may retry.
const RETRY_AFTER: u16 = 1;

/// The dependencies of the function `append-event`.
#[derive(Debug)]
pub struct AppendEvent {
    /// The events table.
    pub events: Table,
    /// The guards table.
    pub guards: Table,
    /// The owners of the sources.
    pub sources: Sources,
}

/// The response. It is the same for each repeat of a request.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Reply {
    event_id: EventId,
    sequence: u64,
}

#[derive(Debug)]
enum Outcome {
    /// The event is in the log, since this request or since an earlier one.
    Appended(Reply),
    /// Another event has the same source and id.
    ContentDiffers(Reply),
    /// The source belongs to another operator.
    SourceTaken,
    /// Other requests took each sequence that was tried.
    Contended,
}

/// The newest event of an entity.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Last {
    sequence: u64,
    occurred_at: Timestamp,
}

impl AppendEvent {
    /// Appends the event and returns 201 with its id and sequence. A repeated request gets the same response.
    ///
    /// Returns 400 for an invalid event, 403 if the caller may not write, 409 for a source of another operator and for
    /// other content with the same source and id, 413 and 415 for a body that is too large or in another format, and 503
    /// if too many requests append to the same entity.
    pub async fn handle(
        &self,
        caller: &Caller,
        request: &Request,
        now: Timestamp,
    ) -> Result<Response, Problem> {
        caller.require(caller.scope.may_write())?;
        http::reject_query(request)?;
        require_structured(request)?;
        let event =
            cloud_event::read(http::body(request, MAX_BODY_BYTES)?).map_err(Problem::invalid)?;
        match self.append(caller.operator, &event, now).await {
            Ok(Outcome::Appended(reply)) => Response::new(201, &reply),
            Ok(Outcome::ContentDiffers(first)) => Err(content_differs(&event, &first)),
            Ok(Outcome::SourceTaken) => Err(source_taken(&event.source)),
            Ok(Outcome::Contended) => Err(contended(&event)),
            Err(error) => Err(unavailable(error.into())),
        }
    }

    async fn append(
        &self,
        operator: OperatorId,
        event: &CloudEvent,
        now: Timestamp,
    ) -> Result<Outcome, StoreError> {
        if self.sources.owner(&event.source, operator, now).await? != operator {
            return Ok(Outcome::SourceTaken);
        }
        let (outbox, start) = (Outbox::new(self.events.clone()), Instant::now());
        let (entity, guard_key) = (event.entity.log_key(operator), GuardRow::key(operator, event));
        let content = GuardRow::content(event);
        for attempt in 0..MAX_ATTEMPTS {
            if attempt > 0 {
                let pause = FIRST_PAUSE * 2_u32.pow(attempt - 1);
                tokio::time::sleep(jittered(pause.min(LONGEST_PAUSE))).await;
                if start.elapsed() > MAX_TIME {
                    break;
                }
            }
            let last = self.last(&entity).await?;
            let sequence = last.as_ref().map_or(0, |last| last.sequence) + 1;
            // The times of an entity's events never go back, so the order of time is that of the sequence.
            let at = last.map_or(now, |last| now.max(last.occurred_at));
            let event_id = EventId::from_log_key(&entity, sequence);
            let guard = GuardRow { content: content.clone(), event_id, sequence };
            let row = row(operator, event, &entity, sequence, at)?;
            let transaction = Transaction::on(&self.guards)
                .create(&self.guards, &guard_key, &guard)
                .foreign_event(&outbox, &row);
            let Commit::Refused(refused) = transaction.commit().await? else {
                return Ok(Outcome::Appended(Reply { event_id, sequence }));
            };
            // If the guard exists, it decides the outcome, even if the sequence was taken, too: an earlier attempt of this
            // request may have taken it.
            if let Some(first) = refused.row::<GuardRow>(&guard_key)? {
                let reply = Reply { event_id: first.event_id, sequence: first.sequence };
                let is_same = first.content == content;
                let outcome = if is_same { Outcome::Appended } else { Outcome::ContentDiffers };
                return Ok(outcome(reply));
            }
        }
        Ok(Outcome::Contended)
    }

    /// Returns the newest event of an entity.
    async fn last(&self, entity: &str) -> Result<Option<Last>, StoreError> {
        let query = self
            .events
            .query("entity = :entity")
            .text("entity", entity)
            .project("#sequence, occurredAt")
            .consistent()
            .descending(true)
            .limit(1);
        let item = query.page(None).await?.items.pop();
        item.map(|item| from_item(item, || entity.to_owned())).transpose()
    }
}

/// Returns the row of the log.
fn row(
    operator: OperatorId,
    event: &CloudEvent,
    entity: &str,
    sequence: u64,
    at: Timestamp,
) -> Result<EventRow, StoreError> {
    let metadata = OpenMetadata {
        event_id: EventId::from_log_key(entity, sequence),
        kind: event.kind.clone(),
        version: None,
        occurred_at: at,
        entity: event.entity.clone(),
        sequence,
        correlation_id: event.correlation_id.clone(),
        operator_id: operator,
        causation_id: event.causation_id.clone(),
        cloud_event: Some(event.attributes.clone()),
    };
    let metadata = serde_json::to_string(&metadata).map_err(|error| StoreError::Corrupt {
        row: entity.to_owned(),
        reason: error.to_string(),
    })?;
    let shard = shard(entity);
    Ok(EventRow {
        entity: entity.to_owned(),
        sequence,
        kind: event.kind.clone(),
        source: event.source.clone(),
        occurred_at: at,
        correlation_id: event
            .correlation_id
            .as_deref()
            .map(|id| foreign_correlation_key(operator, id)),
        operator_id: operator,
        type_bucket: Some(type_bucket(operator, &event.kind, at, shard)),
        // The text of `data` is never parsed and written again, so its numbers keep every digit.
        detail: format!(r#"{{"metadata":{metadata},"data":{}}}"#, event.data),
        unpublished: Some(shard.to_string()),
        published_at: None,
        refused: None,
    })
}

/// Refuses a batch, and an event in binary mode, whose attributes are headers.
fn require_structured(request: &Request) -> Result<(), Problem> {
    let kind = http::header(request, "content-type").unwrap_or("application/json");
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_structured = kind == "application/cloudevents+json"
        || (kind == "application/json" && http::header(request, "ce-specversion").is_none());
    if is_structured {
        return Ok(());
    }
    let detail = "Send one event in the structured mode of CloudEvents: Content-Type: application/cloudevents+json, and all \
                  attributes in the body. Batches and the binary mode are not supported.";
    Err(Problem::new(415, "unsupported-media-type", "Unsupported media type", detail))
}

fn content_differs(event: &CloudEvent, first: &Reply) -> Problem {
    let detail = format!(
        "An earlier event of the source {} has the id {:?} and another content. Give each event an id of its own, and \
         send a repeat unchanged.",
        event.source, event.id
    );
    Problem::conflict("event-exists", detail)
        .with("eventId", first.event_id.to_string())
        .with("sequence", first.sequence)
}

fn source_taken(source: &str) -> Problem {
    let detail = format!(
        "The source {source} belongs to another operator. Give a source of your own, such as one that begins with a \
         domain of yours."
    );
    Problem::conflict("source-taken", detail)
}

fn contended(event: &CloudEvent) -> Problem {
    let detail = format!(
        "Too many requests append to {} at the same time. Nothing was appended. Send the same request again in a moment, \
         and send the events of one entity one after the other.",
        event.entity
    );
    let problem = Problem::new(503, "contended", "Temporarily unavailable", detail);
    Problem { retry_after: Some(RETRY_AFTER), ..problem }
}

/// Says when and how to retry, if a retry may succeed.
fn unavailable(problem: Problem) -> Problem {
    if problem.status != 503 {
        return problem;
    }
    let detail = "Send the same request again in a moment; with the same source and id, the event is appended once.";
    Problem { detail: detail.to_owned(), retry_after: Some(RETRY_AFTER), ..problem }
}
