//! The rows: how they are recorded, found, claimed for a replay, ended and discarded.
//!
//! A change is decided on the row as it is and committed on the condition that it still is so;
//! otherwise it is decided anew.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{OnboardingId, SiteId, Timestamp};
use serde::{Deserialize, Serialize};
use store::{Commit, Page, Query, StoreError, Table, Transaction};
use uuid::Uuid;

use crate::{
    Concerns, ErrorInfo, FailedWork, FailureId, FailureRow, Kind, LedgerError, MAX_REPLAYS,
    Payload, Replay, ReplayState, Status,
    fingerprint::{fingerprint, group},
};

const BY_STATUS: &str = "byStatus";

/// How often a change is decided before somebody else's are too many.
const DECISIONS: u32 = 5;

/// Messages that a row keeps: a message comes again soon or not at all, and a row has its limit.
const MOST_MESSAGES: u32 = 100;

/// The row still is as it was when a change was decided.
const UNCHANGED: &str =
    "#attempts = :was_attempts AND #replays = :was_replays AND #status = :was_status";

/// The failures table.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// The table.
    pub failures: Table,
}

/// A failure as the index `byStatus` holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The row's key.
    pub id: FailureId,
    /// The function, or state machine, that failed.
    pub source: String,
    /// How.
    pub kind: Kind,
    /// What is to be done about it.
    pub status: Status,
    /// Why it failed last.
    pub error: ErrorInfo,
    /// The same for failures of the same cause.
    pub fingerprint: String,
    /// How often it was recorded.
    pub attempts: u32,
    /// Time of the first message about it.
    pub first_at: Timestamp,
    /// Time of the last message about it.
    pub last_at: Timestamp,
    /// The onboarding that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<OnboardingId>,
    /// How often it was replayed.
    pub replays: u32,
    /// Whom it concerns. In the table a part of the error.
    #[serde(flatten, skip_deserializing)]
    pub concerns: Concerns,
}

impl Summary {
    /// The id of the group that it belongs to.
    #[must_use]
    pub fn group(&self) -> String {
        group(&self.fingerprint, &self.source, self.kind, &self.concerns)
    }
}

impl From<FailureRow> for Summary {
    fn from(row: FailureRow) -> Self {
        let concerns = row.concerns();
        Self {
            id: row.id,
            source: row.source,
            kind: row.kind,
            status: row.status,
            error: ErrorInfo { concerns: None, ..row.error },
            fingerprint: row.fingerprint,
            attempts: row.attempts,
            first_at: row.first_at,
            last_at: row.last_at,
            correlation_id: row.correlation_id,
            replays: row.replays,
            concerns,
        }
    }
}

/// What is read of an old row, whose error does not say whom it concerns.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OldRow {
    id: FailureId,
    site_id: Option<SiteId>,
}

/// Where the next page begins: behind this failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cursor {
    /// Its time.
    pub last_at: Timestamp,
    /// Its key.
    pub id: FailureId,
}

/// What came of recording a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It is in the table now, with one attempt more than before.
    Now,
    /// The same message was recorded before.
    Before,
}

/// What a claim is allowed that is refused otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Insist {
    /// More replays than [`MAX_REPLAYS`].
    pub too_often: bool,
    /// Though a replay was interrupted, and may have been sent.
    pub in_doubt: bool,
}

/// What came of a claim.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "only who claimed may send"]
pub enum Claim {
    /// The row as it is now: it is the caller's to send, and to finish.
    Claimed(Box<FailureRow>),
    /// It was replayed or discarded.
    NotOpen(Status),
    /// As often as it may be.
    TooOften,
    /// This replay claimed it and has not ended: it runs, or was interrupted.
    InDoubt(Replay),
    /// There is no such failure.
    Unknown,
}

/// How a replay ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The work is done.
    Done,
    /// There was nothing left to do; why.
    Moot(String),
    /// It failed again.
    Failed(ErrorInfo),
    /// It was not sent: the claim is taken back, and does not count.
    NotSent,
    /// It was sent, and its outcome is not known yet. The failure stays open.
    Unknown,
}

/// What came of a replay's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a replay that went well may still leave the failure open"]
pub enum Finish {
    /// It is REPLAYED.
    Replayed,
    /// It has this status: the replay failed, or the failure came back or was discarded meanwhile.
    Stays(Status),
    /// Another replay claimed it since.
    NotOurs,
}

/// What came of a discard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a refused discard changed nothing"]
pub enum Discard {
    /// It is DISCARDED.
    Discarded,
    /// It was replayed or discarded before.
    NotOpen(Status),
    /// There is no such failure.
    Unknown,
}

/// What is decided on a row: attributes to set, or nothing, and the answer.
struct Decision<A> {
    set: Vec<(&'static str, AttributeValue)>,
    answer: A,
}

impl<A> Decision<A> {
    fn nothing(answer: A) -> Self {
        Self { set: Vec::new(), answer }
    }
}

impl Ledger {
    /// One failure.
    pub async fn get(&self, id: FailureId) -> Result<Option<FailureRow>, StoreError> {
        self.failures.get(&FailureRow::key(id)).await
    }

    /// Records a failure that a message tells of: a new row, or, where the same work failed before,
    /// an attempt more, which opens it again and leaves its history as it is.
    pub async fn record(
        &self,
        failure: &FailedWork,
        message: &str,
        at: Timestamp,
    ) -> Result<Recorded, LedgerError> {
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
                         (NOT contains(#messages, :message) AND size(#messages) < :most)";
        let mut values = set;
        values.extend([
            ("none", number(0)),
            ("one", number(1)),
            ("most", number(MOST_MESSAGES)),
            ("message", text(message)),
            ("messages", AttributeValue::Ss(vec![message.to_owned()])),
        ]);
        for _ in 0..DECISIONS {
            let refused = match self.update(failure.id, &update, condition, values.clone()).await? {
                Commit::Done => return Ok(Recorded::Now),
                Commit::Refused(refused) => refused,
            };
            match refused.row::<FailureRow>(&FailureRow::key(failure.id))? {
                Some(row) if row.messages.contains(message) => return Ok(Recorded::Before),
                Some(row) => self.forget(row).await?,
                None => {}
            }
        }
        Err(LedgerError::Overtaken(failure.id))
    }

    /// Makes room for messages to come.
    async fn forget(&self, row: FailureRow) -> Result<(), StoreError> {
        let messages = AttributeValue::Ss(row.messages.into_iter().collect());
        let values = [("messages", messages)];
        let update = "DELETE #messages :messages";
        match self.update(row.id, update, "attribute_exists(#id)", values).await? {
            Commit::Done | Commit::Refused(_) => Ok(()),
        }
    }

    /// Up to `limit` failures of a status by their last attempt, and where the next page begins.
    /// The index follows the table by a moment.
    pub async fn page(
        &self,
        status: Status,
        newest_first: bool,
        start: Option<Cursor>,
        limit: u16,
    ) -> Result<(Vec<Summary>, Option<Cursor>), StoreError> {
        let start = start.map(|Cursor { last_at, id }| {
            HashMap::from([
                ("status".to_owned(), AttributeValue::S(status.name().to_owned())),
                ("lastAt".to_owned(), AttributeValue::S(last_at.to_string())),
                ("id".to_owned(), AttributeValue::S(id.to_string())),
            ])
        });
        let query = self.of_status(status).descending(newest_first).limit(i32::from(limit));
        let Page { items, next } = query.page(start).await?;
        let mut rows: Vec<Summary> =
            serde_dynamo::from_items(items).map_err(|error| corrupt(&error))?;
        let mut old = Vec::new();
        for row in &mut rows {
            match row.error.concerns.take() {
                Some(concerns) => row.concerns = concerns,
                None => old.push(row.id),
            }
        }
        let sites = self.sites_of(&old).await?;
        for row in &mut rows {
            row.concerns.site_id = row.concerns.site_id.or(sites.get(&row.id).copied());
        }
        let next = next.map(serde_dynamo::from_item).transpose();
        Ok((rows, next.map_err(|error| corrupt(&error))?))
    }

    /// Reads the sites of old rows, which the index does not have.
    async fn sites_of(&self, ids: &[FailureId]) -> Result<HashMap<FailureId, SiteId>, StoreError> {
        let keys = ids.iter().map(|id| FailureRow::key(*id));
        let items = self.failures.batch_get(keys).project("id, siteId").send().await?;
        let rows: Vec<OldRow> = serde_dynamo::from_items(items).map_err(|error| corrupt(&error))?;
        Ok(rows.into_iter().filter_map(|row| Some((row.id, row.site_id?))).collect())
    }

    /// Counts the failures with a status, up to `most`.
    pub async fn count(&self, status: Status, most: u32) -> Result<u32, StoreError> {
        self.of_status(status).count(most).await
    }

    fn of_status(&self, status: Status) -> Query<'_> {
        self.failures.query("#status = :status").index(BY_STATUS).text("status", status.name())
    }

    /// Claims a failure for a replay: of all who ask at once, one gets it.
    pub async fn claim(
        &self,
        id: FailureId,
        replay: Uuid,
        by: Option<&str>,
        insist: Insist,
        now: Timestamp,
    ) -> Result<Claim, LedgerError> {
        let decide = |mut row: FailureRow| {
            if row.status != Status::Open {
                return Ok(Decision::nothing(Claim::NotOpen(row.status)));
            }
            match &row.replay {
                // Our own, whose answer got lost.
                Some(last) if last.state == ReplayState::Sending && last.id == replay => {
                    return Ok(Decision::nothing(Claim::Claimed(Box::new(row))));
                }
                Some(last) if last.state == ReplayState::Sending && !insist.in_doubt => {
                    return Ok(Decision::nothing(Claim::InDoubt(last.clone())));
                }
                _ => {}
            }
            if row.replays >= MAX_REPLAYS && !insist.too_often {
                return Ok(Decision::nothing(Claim::TooOften));
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
            Ok(Decision { set, answer: Claim::Claimed(Box::new(row)) })
        };
        Ok(self.change(id, decide).await?.unwrap_or(Claim::Unknown))
    }

    /// Tells a replay's end. A failure that came back meanwhile stays open, whatever the outcome.
    pub async fn finish(
        &self,
        id: FailureId,
        replay: Uuid,
        outcome: &Outcome,
    ) -> Result<Finish, LedgerError> {
        let decide = |row: FailureRow| {
            let Some(claim) = row.replay.filter(|claim| claim.id == replay) else {
                return Ok(Decision::nothing(Finish::NotOurs));
            };
            let came_back = row.attempts != claim.attempts;
            let was = claim.state;
            let ended = Replay { state: ReplayState::Ended, ..claim };
            let mut set = vec![("replay", attribute(&ended)?)];
            let answer = match outcome {
                Outcome::Done | Outcome::Moot(_) if row.status == Status::Open && !came_back => {
                    set.push(("status", text(Status::Replayed.name())));
                    if let Outcome::Moot(note) = outcome {
                        set.push(("note", text(note)));
                    }
                    Finish::Replayed
                }
                Outcome::Done | Outcome::Moot(_) if row.status == Status::Replayed => {
                    Finish::Replayed
                }
                Outcome::Done | Outcome::Moot(_) | Outcome::Unknown => Finish::Stays(row.status),
                Outcome::Failed(error) => {
                    // A replay fails at the same record: it concerns the same site.
                    let error = ErrorInfo { concerns: row.error.concerns, ..error.clone() };
                    set.push(("error", attribute(&error)?));
                    set.push(("fingerprint", text(&fingerprint(&row.source, &error))));
                    Finish::Stays(row.status)
                }
                Outcome::NotSent => {
                    // Told twice, it is taken back once.
                    let back = u32::from(was == ReplayState::Sending);
                    set.push(("replays", number(row.replays.saturating_sub(back))));
                    Finish::Stays(row.status)
                }
            };
            Ok(Decision { set, answer })
        };
        Ok(self.change(id, decide).await?.unwrap_or(Finish::NotOurs))
    }

    /// Takes a failure off the list. If it comes back, it is open again.
    pub async fn discard(&self, id: FailureId, note: &str) -> Result<Discard, LedgerError> {
        let decide = |row: FailureRow| {
            if row.status != Status::Open {
                return Ok(Decision::nothing(Discard::NotOpen(row.status)));
            }
            let set = vec![("status", text(Status::Discarded.name())), ("note", text(note))];
            Ok(Decision { set, answer: Discard::Discarded })
        };
        Ok(self.change(id, decide).await?.unwrap_or(Discard::Unknown))
    }

    /// Ends an open failure whose work was done by something else than its replay. `note` says by what.
    /// Changes nothing if there is no such failure, or if it is not open.
    pub async fn repaired(&self, id: FailureId, note: &str) -> Result<bool, StoreError> {
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

    /// Decides on the row as it is and commits while it still is so.
    async fn change<A>(
        &self,
        id: FailureId,
        decide: impl Fn(FailureRow) -> Result<Decision<A>, StoreError>,
    ) -> Result<Option<A>, LedgerError> {
        for _ in 0..DECISIONS {
            let Some(row) = self.get(id).await? else { return Ok(None) };
            let was = [
                ("was_attempts", number(row.attempts)),
                ("was_replays", number(row.replays)),
                ("was_status", text(row.status.name())),
            ];
            let Decision { set, answer } = decide(row)?;
            if set.is_empty() {
                return Ok(Some(answer));
            }
            let update = format!("SET {}", assignments(&set));
            match self.update(id, &update, UNCHANGED, set.into_iter().chain(was)).await? {
                Commit::Done => return Ok(Some(answer)),
                Commit::Refused(_) => {}
            }
        }
        Err(LedgerError::Overtaken(id))
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

/// `#name = :name` for each, with commas between.
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
