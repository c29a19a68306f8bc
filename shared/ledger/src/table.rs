//! Reads and changes the rows of failures: record, list, claim for a replay, finish and discard.
//!
//! A claim, finish or discard reads the row, decides on the change, and commits the change on the condition that the
//! row is unchanged (`IF_UNCHANGED`). If the condition fails, it reads the row and decides again. Recording a failure
//! and marking a failure as replayed do not read the row first.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{OnboardingId, SiteId, Timestamp};
use serde::{Deserialize, Serialize};
use store::{Commit, Page, Query, StoreError, Table, Transaction};
use uuid::Uuid;

use crate::{
    AffectedIds, ErrorInfo, FailedWork, FailureId, FailureRow, Kind, LedgerError, MAX_REPLAYS,
    Payload, Replay, ReplayState, Status,
    fingerprint::{fingerprint, group_id},
};

const BY_STATUS: &str = "byStatus";

/// The maximum number of attempts to change a row that other writers change at the same time.
const MAX_CHANGE_ATTEMPTS: u32 = 5;

/// The maximum number of message ids that a row keeps. The size of a row is limited, so a full row loses all its ids
/// before the next one is added. That is acceptable, because a message is redelivered soon or not at all.
const MAX_MESSAGES: u32 = 100;

/// The condition that the attempts, the replays and the status have not changed since the row was read.
const IF_UNCHANGED: &str = "#attempts = :previous_attempts \
    AND #replays = :previous_replays AND #status = :previous_status";

/// The failures table.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// The table.
    pub failures: Table,
}

/// A failure, as the index `byStatus` projects it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureSummary {
    /// The row's key.
    pub id: FailureId,
    /// The function or state machine that failed. If it is not known: the queue.
    pub source: String,
    /// How the work failed last.
    pub kind: Kind,
    /// The status.
    pub status: Status,
    /// Why the work failed last.
    pub error: ErrorInfo,
    /// The fingerprint. Failures of the same cause have the same one.
    pub fingerprint: String,
    /// How often the failure was recorded.
    pub attempts: u32,
    /// The time of the first message about the failure.
    pub first_at: Timestamp,
    /// The time of the last message about the failure.
    pub last_at: Timestamp,
    /// The onboarding that the work belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<OnboardingId>,
    /// The number of replays that were claimed and not withdrawn. A replay that was not sent is withdrawn.
    pub replays: u32,
    /// The site, sensor and sender that the failure concerns. In the table, they are part of the error.
    #[serde(flatten, skip_deserializing)]
    pub affected_ids: AffectedIds,
}

impl FailureSummary {
    /// Returns the id of the group that the failure belongs to.
    #[must_use]
    pub fn group(&self) -> String {
        group_id(&self.fingerprint, &self.source, self.kind, &self.affected_ids)
    }
}

impl From<FailureRow> for FailureSummary {
    fn from(row: FailureRow) -> Self {
        let affected_ids = row.affected_ids();
        Self {
            id: row.id,
            source: row.source,
            kind: row.kind,
            status: row.status,
            error: ErrorInfo { affected_ids: None, ..row.error },
            fingerprint: row.fingerprint,
            attempts: row.attempts,
            first_at: row.first_at,
            last_at: row.last_at,
            correlation_id: row.correlation_id,
            replays: row.replays,
            affected_ids,
        }
    }
}

/// The site of a row of an earlier version. The error of such a row does not contain the site.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RowSite {
    id: FailureId,
    site_id: Option<SiteId>,
}

/// The failure after which a page starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cursor {
    /// The time of the last message about the failure.
    pub last_at: Timestamp,
    /// The failure's key.
    pub id: FailureId,
}

/// The result of recording a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordResult {
    /// The failure is in the table, with one more attempt than before.
    Recorded,
    /// The same message was recorded before.
    AlreadyRecorded,
}

/// Allows claims that are refused by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClaimOptions {
    /// Allow more replays than [`MAX_REPLAYS`].
    pub over_limit: bool,
    /// Allow a claim although another replay has claimed the failure and has not ended. That replay may have been sent.
    pub in_doubt: bool,
}

/// The result of a claim.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "only the claimant may send the replay"]
pub enum ClaimResult {
    /// The replay is claimed. Contains the row after the claim. The caller must send the replay and then call
    /// [`Ledger::finish`].
    Claimed(Box<FailureRow>),
    /// The failure was already replayed or discarded.
    NotOpen(Status),
    /// The failure was replayed [`MAX_REPLAYS`] times.
    LimitReached,
    /// This other replay has claimed the failure and has not ended. It is running, or it was interrupted.
    InDoubt(Replay),
    /// There is no such failure.
    NotFound,
}

/// The outcome of a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayOutcome {
    /// The work is done.
    Done,
    /// There was nothing left to do. Contains the reason.
    NothingToDo(String),
    /// The replay failed.
    Failed(ErrorInfo),
    /// The replay was not sent. The claim is withdrawn and does not count.
    NotSent,
    /// The replay was sent, and its outcome is not known yet. The failure stays open.
    Unknown,
}

/// The result of finishing a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a successful replay may leave the failure open"]
pub enum FinishResult {
    /// The failure is `REPLAYED`.
    Replayed,
    /// The failure has this status. The replay failed or was not sent, its outcome is unknown, or the failure was
    /// recorded again or discarded in the meantime.
    Unchanged(Status),
    /// Another replay has claimed the failure since, or there is no such failure.
    ClaimLost,
}

/// The result of discarding a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a refused discard changed nothing"]
pub enum DiscardResult {
    /// The failure is `DISCARDED`.
    Discarded,
    /// The failure was already replayed or discarded.
    NotOpen(Status),
    /// There is no such failure.
    NotFound,
}

/// A decision on a row: the attributes to set, if any, and the result.
struct Decision<A> {
    set: Vec<(&'static str, AttributeValue)>,
    result: A,
}

impl<A> Decision<A> {
    fn nothing(result: A) -> Self {
        Self { set: Vec::new(), result }
    }
}

impl Ledger {
    /// Returns one failure.
    pub async fn get(&self, id: FailureId) -> Result<Option<FailureRow>, StoreError> {
        self.failures.get(&FailureRow::key(id)).await
    }

    /// Records a failure from a message. Creates the row. If the same work failed before, adds an attempt to the
    /// existing row and opens it again. The row keeps the time of the first message, the replays and the note.
    pub async fn record(
        &self,
        failure: &FailedWork,
        message: &str,
        at: Timestamp,
    ) -> Result<RecordResult, LedgerError> {
        let mut set = vec![
            ("source", text(&failure.source)),
            ("kind", attribute(&failure.kind)?),
            ("error", attribute(&failure.error)?),
            ("fingerprint", text(&fingerprint(&failure.source, &failure.error))),
            ("status", text(Status::Open.name())),
            ("lastAt", text(&at.to_string())),
        ];
        let other = match &failure.payload {
            Payload::Text(payload) => {
                set.push(("payload", text(payload)));
                "payloadFile"
            }
            Payload::File(file) => {
                set.push(("payloadFile", attribute(file)?));
                "payload"
            }
        };
        let id = |name, id: Option<String>| id.map(|id| (name, text(&id)));
        set.extend(id("correlationId", failure.correlation_id.map(|id| id.to_string())));
        set.extend(id("siteId", failure.site_id.map(|id| id.to_string())));
        set.extend(id("execution", failure.execution.clone()));
        let update = format!(
            "SET {}, #firstAt = if_not_exists(#firstAt, :lastAt), \
             #replays = if_not_exists(#replays, :none) \
             REMOVE #{other} ADD #attempts :one, #messages :messages",
            assignments(&set)
        );
        let condition = "attribute_not_exists(#messages) OR \
                         (NOT contains(#messages, :message) AND size(#messages) < :max)";
        let mut values = set;
        values.extend([
            ("none", number(0)),
            ("one", number(1)),
            ("max", number(MAX_MESSAGES)),
            ("message", text(message)),
            ("messages", AttributeValue::Ss(vec![message.to_owned()])),
        ]);
        for _ in 0..MAX_CHANGE_ATTEMPTS {
            let refused = match self.update(failure.id, &update, condition, values.clone()).await? {
                Commit::Done => return Ok(RecordResult::Recorded),
                Commit::Refused(refused) => refused,
            };
            match refused.row::<FailureRow>(&FailureRow::key(failure.id))? {
                Some(row) if row.messages.contains(message) => {
                    return Ok(RecordResult::AlreadyRecorded);
                }
                Some(row) => self.remove_message_ids(row).await?,
                None => {}
            }
        }
        Err(LedgerError::Contended(failure.id))
    }

    /// Removes these message ids from the row, to make room for new ones.
    async fn remove_message_ids(&self, row: FailureRow) -> Result<(), StoreError> {
        let messages = AttributeValue::Ss(row.messages.into_iter().collect());
        let values = [("messages", messages)];
        let update = "DELETE #messages :messages";
        match self.update(row.id, update, "attribute_exists(#id)", values).await? {
            Commit::Done | Commit::Refused(_) => Ok(()),
        }
    }

    /// Returns up to `limit` failures that have this status, ordered by the time of their last attempt, and the start
    /// of the next page. The index is eventually consistent with the table.
    pub async fn page(
        &self,
        status: Status,
        newest_first: bool,
        start: Option<Cursor>,
        limit: u16,
    ) -> Result<(Vec<FailureSummary>, Option<Cursor>), StoreError> {
        let start = start.map(|Cursor { last_at, id }| {
            HashMap::from([
                ("status".to_owned(), AttributeValue::S(status.name().to_owned())),
                ("lastAt".to_owned(), AttributeValue::S(last_at.to_string())),
                ("id".to_owned(), AttributeValue::S(id.to_string())),
            ])
        });
        let query = self.query_status(status).descending(newest_first).limit(i32::from(limit));
        let Page { items, next } = query.page(start).await?;
        let mut rows: Vec<FailureSummary> =
            serde_dynamo::from_items(items).map_err(|error| corrupt(&error))?;
        let mut rows_without_site = Vec::new();
        for row in &mut rows {
            match row.error.affected_ids.take() {
                Some(affected_ids) => row.affected_ids = affected_ids,
                None => rows_without_site.push(row.id),
            }
        }
        let sites = self.sites_of(&rows_without_site).await?;
        for row in &mut rows {
            row.affected_ids.site_id = row.affected_ids.site_id.or(sites.get(&row.id).copied());
        }
        let next = next.map(serde_dynamo::from_item).transpose();
        Ok((rows, next.map_err(|error| corrupt(&error))?))
    }

    /// Reads the sites of rows of earlier versions from the table, because the index does not have them.
    async fn sites_of(&self, ids: &[FailureId]) -> Result<HashMap<FailureId, SiteId>, StoreError> {
        let keys = ids.iter().map(|id| FailureRow::key(*id));
        let items = self.failures.batch_get(keys).project("id, siteId").send().await?;
        let rows: Vec<RowSite> =
            serde_dynamo::from_items(items).map_err(|error| corrupt(&error))?;
        Ok(rows.into_iter().filter_map(|row| Some((row.id, row.site_id?))).collect())
    }

    /// Counts the failures that have this status, up to `max`.
    pub async fn count(&self, status: Status, max: u32) -> Result<u32, StoreError> {
        self.query_status(status).count(max).await
    }

    fn query_status(&self, status: Status) -> Query<'_> {
        self.failures.query("#status = :status").index(BY_STATUS).text("status", status.name())
    }

    /// Claims a failure for a replay. Only one of several concurrent claims succeeds, unless [`ClaimOptions::in_doubt`]
    /// allows a claim of a failure that another replay has claimed.
    pub async fn claim(
        &self,
        id: FailureId,
        replay: Uuid,
        by: Option<&str>,
        options: ClaimOptions,
        now: Timestamp,
    ) -> Result<ClaimResult, LedgerError> {
        let decide = |mut row: FailureRow| {
            if row.status != Status::Open {
                return Ok(Decision::nothing(ClaimResult::NotOpen(row.status)));
            }
            match &row.replay {
                // This replay has already claimed the failure, and the response to that call was lost.
                Some(last) if last.state == ReplayState::Sending && last.id == replay => {
                    return Ok(Decision::nothing(ClaimResult::Claimed(Box::new(row))));
                }
                Some(last) if last.state == ReplayState::Sending && !options.in_doubt => {
                    return Ok(Decision::nothing(ClaimResult::InDoubt(last.clone())));
                }
                _ => {}
            }
            if row.replays >= MAX_REPLAYS && !options.over_limit {
                return Ok(Decision::nothing(ClaimResult::LimitReached));
            }
            row.replays += 1;
            let claim = Replay {
                id: replay,
                at: now,
                by: by.map(str::to_owned),
                state: ReplayState::Sending,
                attempts: row.attempts,
            };
            let set = vec![("replays", number(row.replays)), ("replay", attribute(&claim)?)];
            row.replay = Some(claim);
            Ok(Decision { set, result: ClaimResult::Claimed(Box::new(row)) })
        };
        Ok(self.change(id, decide).await?.unwrap_or(ClaimResult::NotFound))
    }

    /// Records the outcome of a replay. A failure that was recorded again in the meantime stays open, whatever the
    /// outcome.
    pub async fn finish(
        &self,
        id: FailureId,
        replay: Uuid,
        outcome: &ReplayOutcome,
    ) -> Result<FinishResult, LedgerError> {
        let decide = |row: FailureRow| {
            let Some(claim) = row.replay.filter(|claim| claim.id == replay) else {
                return Ok(Decision::nothing(FinishResult::ClaimLost));
            };
            let failed_again = row.attempts != claim.attempts;
            let previous = claim.state;
            let ended = Replay { state: ReplayState::Ended, ..claim };
            let mut set = vec![("replay", attribute(&ended)?)];
            let result = match outcome {
                ReplayOutcome::Done | ReplayOutcome::NothingToDo(_)
                    if row.status == Status::Open && !failed_again =>
                {
                    set.push(("status", text(Status::Replayed.name())));
                    if let ReplayOutcome::NothingToDo(note) = outcome {
                        set.push(("note", text(note)));
                    }
                    FinishResult::Replayed
                }
                ReplayOutcome::Done | ReplayOutcome::NothingToDo(_)
                    if row.status == Status::Replayed =>
                {
                    FinishResult::Replayed
                }
                ReplayOutcome::Done | ReplayOutcome::NothingToDo(_) | ReplayOutcome::Unknown => {
                    FinishResult::Unchanged(row.status)
                }
                ReplayOutcome::Failed(error) => {
                    // The replay processed the same record, so its error concerns the same site, sensor and sender.
                    let error = ErrorInfo { affected_ids: row.error.affected_ids, ..error.clone() };
                    set.push(("error", attribute(&error)?));
                    set.push(("fingerprint", text(&fingerprint(&row.source, &error))));
                    FinishResult::Unchanged(row.status)
                }
                ReplayOutcome::NotSent => {
                    // A repeated call withdraws the claim only once.
                    let withdrawn = u32::from(previous == ReplayState::Sending);
                    set.push(("replays", number(row.replays.saturating_sub(withdrawn))));
                    FinishResult::Unchanged(row.status)
                }
            };
            Ok(Decision { set, result })
        };
        Ok(self.change(id, decide).await?.unwrap_or(FinishResult::ClaimLost))
    }

    /// Marks a failure as discarded. If the work fails again, the failure is open again.
    pub async fn discard(&self, id: FailureId, note: &str) -> Result<DiscardResult, LedgerError> {
        let decide = |row: FailureRow| {
            if row.status != Status::Open {
                return Ok(Decision::nothing(DiscardResult::NotOpen(row.status)));
            }
            let set = vec![("status", text(Status::Discarded.name())), ("note", text(note))];
            Ok(Decision { set, result: DiscardResult::Discarded })
        };
        Ok(self.change(id, decide).await?.unwrap_or(DiscardResult::NotFound))
    }

    /// Marks an open failure as replayed, because something other than its replay did the work. `note` says what.
    /// Returns `false` and changes nothing if there is no such failure, or if it is not open.
    pub async fn mark_replayed(&self, id: FailureId, note: &str) -> Result<bool, StoreError> {
        let values = [
            ("replayed", text(Status::Replayed.name())),
            ("open", text(Status::Open.name())),
            ("note", text(note)),
        ];
        let update = "SET #status = :replayed, #note = :note";
        match self.update(id, update, "#status = :open", values).await? {
            Commit::Done => Ok(true),
            Commit::Refused(_) => Ok(false),
        }
    }

    /// Reads the row, calls `decide`, and commits the decision if the row is unchanged. Otherwise tries again, up to
    /// [`MAX_CHANGE_ATTEMPTS`] attempts. Returns `None` if there is no such row.
    async fn change<A>(
        &self,
        id: FailureId,
        decide: impl Fn(FailureRow) -> Result<Decision<A>, StoreError>,
    ) -> Result<Option<A>, LedgerError> {
        for _ in 0..MAX_CHANGE_ATTEMPTS {
            let Some(row) = self.get(id).await? else { return Ok(None) };
            let previous = [
                ("previous_attempts", number(row.attempts)),
                ("previous_replays", number(row.replays)),
                ("previous_status", text(row.status.name())),
            ];
            let Decision { set, result } = decide(row)?;
            if set.is_empty() {
                return Ok(Some(result));
            }
            let update = format!("SET {}", assignments(&set));
            match self.update(id, &update, IF_UNCHANGED, set.into_iter().chain(previous)).await? {
                Commit::Done => return Ok(Some(result)),
                Commit::Refused(_) => {}
            }
        }
        Err(LedgerError::Contended(id))
    }

    async fn update(
        &self,
        id: FailureId,
        update: &str,
        condition: &str,
        values: impl IntoIterator<Item = (&str, AttributeValue)>,
    ) -> Result<Commit, StoreError> {
        let (table, key) = (&self.failures, FailureRow::key(id));
        let update = Transaction::on(table).update(table, &key, update, Some(condition), values);
        update.commit().await
    }
}

/// Returns `#name = :name` for each attribute, separated by commas.
fn assignments(attributes: &[(&str, AttributeValue)]) -> String {
    let assignments = attributes.iter().map(|(name, _)| format!("#{name} = :{name}"));
    assignments.collect::<Vec<_>>().join(", ")
}

fn number(number: u32) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

fn text(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

fn attribute(value: &impl Serialize) -> Result<AttributeValue, StoreError> {
    serde_dynamo::to_attribute_value(value).map_err(|error| StoreError::Internal(error.to_string()))
}

fn corrupt(error: &serde_dynamo::Error) -> StoreError {
    StoreError::Corrupt { row: format!("of the index {BY_STATUS}"), reason: error.to_string() }
}
