//! The rows of the guards table: one for each event that another system appended, and one for each source.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use contracts::{EventId, OperatorId, SourceOperators, Timestamp, cloud_event::CloudEvent};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use store::{Commit, Key, SourceRow, StoreError, Table, Transaction};
use tokio::time::Instant;

/// The maximum number of sources that an execution environment remembers. With more, it forgets all and reads them again.
const MAX_KNOWN: usize = 1_000;
/// The time after which a claim is read again. An engineer on call may release it or give it to another operator.
const MAX_AGE: Duration = Duration::from_mins(1);

/// The guard of an appended event. It is written in the event's transaction and kept for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardRow {
    /// The SHA-256 of the event's canonical JSON, in hexadecimal digits.
    pub content: String,
    /// The id of the event in the log.
    pub event_id: EventId,
    /// The event's position among the entity's events.
    pub sequence: u64,
}

impl GuardRow {
    /// Returns the key of the guard of an operator's event, by the event's `source` and `id`. A source has no spaces,
    /// so two pairs never have the same key.
    #[must_use]
    pub fn key(operator: OperatorId, event: &CloudEvent) -> Key {
        Key::id(format!("event#{operator}/{} {}", event.source, event.id))
    }

    /// Returns the hash of the content.
    #[must_use]
    pub fn content(event: &CloudEvent) -> String {
        let hash = Sha256::digest(&event.canonical);
        hash.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    }
}

/// Which operator each source belongs to.
#[derive(Debug)]
pub struct Sources {
    guards: Table,
    configured: SourceOperators,
    /// The claims that this execution environment has read, and when.
    known: Mutex<HashMap<String, (OperatorId, Instant)>>,
}

impl Sources {
    /// Creates the reader and writer of claims. Sources that are configured are not claimed.
    #[must_use]
    pub fn new(guards: Table, configured: SourceOperators) -> Self {
        Self { guards, configured, known: Mutex::default() }
    }

    /// Returns the operator that owns the source. If nobody does, `operator` claims it.
    pub async fn owner(
        &self,
        source: &str,
        operator: OperatorId,
        now: Timestamp,
    ) -> Result<OperatorId, StoreError> {
        if let Some(owner) = self.configured.configured(source).or_else(|| self.known(source)) {
            return Ok(owner);
        }
        let key = SourceRow::key(source);
        let owner = match self.guards.get::<SourceRow>(&key).await? {
            Some(row) => row.operator_id,
            None => self.claim(&key, SourceRow { operator_id: operator, claimed_at: now }).await?,
        };
        self.remember(source, owner);
        Ok(owner)
    }

    /// Claims the source, and returns the operator whose claim was first.
    async fn claim(&self, key: &Key, row: SourceRow) -> Result<OperatorId, StoreError> {
        match Transaction::on(&self.guards).create(&self.guards, key, &row).commit().await? {
            Commit::Done => Ok(row.operator_id),
            Commit::Refused(refused) => {
                let first: Option<SourceRow> = refused.row(key)?;
                let missing = || StoreError::Transient(format!("the claim {key} was not returned"));
                first.map(|first| first.operator_id).ok_or_else(missing)
            }
        }
    }

    fn known(&self, source: &str) -> Option<OperatorId> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (owner, read_at) = *known.get(source)?;
        (read_at.elapsed() < MAX_AGE).then_some(owner)
    }

    fn remember(&self, source: &str, owner: OperatorId) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(source.to_owned(), (owner, Instant::now()));
    }
}
