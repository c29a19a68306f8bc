//! The audit trail: an entry for each administrative action, with its actor.
//!
//! The entries are rows of the table `<environment>-audit`, which the service operators owns. An entry is never changed
//! or deleted: [`Trail`] only creates rows, and no function has the permission to update or delete them. The entries
//! are not events on the bus, because an actor can be personal data and the bus would copy it to every consumer.

use contracts::{OperatorId, Timestamp};
use serde::{Deserialize, Serialize};
use store::{Commit, Key, StoreError, Table, Transaction};
use uuid::Uuid;

/// An administrative action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// An operator was registered. The target is its id.
    CreateOperator,
    /// The name, the plan or the status of an operator was changed. The target is its id.
    UpdateOperator,
    /// An API key was created. The target is its id.
    CreateKey,
    /// An API key was created, and replaces another one. The target is the id of the new key.
    ReplaceKey,
    /// An API key was revoked. The target is its id.
    RevokeKey,
    /// An administrator of another operator listed the operator's API keys. The target is the operator's id.
    ListKeys,
    /// An administrator of another operator read the operator's entries of the trail. The target is the operator's id.
    ReadAudit,
    /// The name, the contact or the location of a site was changed. The target is its id.
    UpdateSite,
    /// The metadata of a sensor were changed. The target is its id.
    UpdateSensor,
    /// The decommissioning of a site was requested. The target is its id.
    DecommissionSite,
    /// A replay of a failure was started. The target is the id of the failure.
    ReplayFailure,
    /// A failure was discarded. The target is its id.
    DiscardFailure,
    /// The undo of an onboarding was started. The target is the onboarding's id.
    RecoverSaga,
    /// The rebuild of a consumer's rows from the event log was started or continued. The target is the function.
    RebuildConsumer,
    /// The migration of the sites that have no operator was started. The target is the table `sites`.
    MigrateSites,
    /// A source of appended events was released. The target is the source. The next operator that uses it owns it.
    ReleaseSource,
    /// A source of appended events was given to another operator. The target is the source.
    TransferSource,
}

/// An entry of the trail. Its key is the operator and the attribute `at`: `<time>/<random UUID>`.
///
/// A reader takes the action as a text, because a newer version may have written an action that it does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry<A = Action> {
    /// The operator that the action concerns. It may differ from the actor's operator.
    pub operator_id: OperatorId,
    /// Who acted: the actor of the API's caller, or `iam:<ARN>` for a user of fieldctl.
    pub actor: String,
    /// What was done.
    pub action: A,
    /// The id of the resource that the action changes or reads.
    pub target: String,
    /// More about the action, without secrets and payloads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<String>,
}

/// The audit table.
#[derive(Clone, Debug)]
pub struct Trail(Table);

impl Trail {
    /// Creates a handle for the audit table.
    #[must_use]
    pub fn new(table: Table) -> Self {
        Self(table)
    }

    /// Adds the entry to the transaction of the action. If the transaction is refused, there is no entry.
    #[must_use]
    pub fn add(&self, transaction: Transaction, entry: &Entry, now: Timestamp) -> Transaction {
        transaction.create(&self.0, &key(entry.operator_id, now), entry)
    }

    /// Writes the entry of an action that is not a transaction. Call this before the action, and do not act if this
    /// fails.
    ///
    /// # Errors
    /// Fails if the table can't be written.
    pub async fn write(&self, entry: &Entry, now: Timestamp) -> Result<(), StoreError> {
        match self.add(Transaction::on(&self.0), entry, now).commit().await? {
            // The key is random, so only an earlier attempt of the same call can have written it.
            Commit::Done | Commit::Refused(_) => Ok(()),
        }
    }
}

/// Returns the key of a new entry.
fn key(operator: OperatorId, now: Timestamp) -> Key {
    let at = format!("{now}/{}", Uuid::new_v4());
    Key::pair(("operatorId", operator.to_string()), ("at", at))
}
