//! Operators, API keys, and the authorizer of the API.
//!
//! An operator is an organisation that runs sites. This crate owns four tables.
//!
//! - The operators table has a row for each operator ([`OperatorRow`]). The default operator always exists and needs no
//!   row. The plan and the status of an operator are in no other row, so one write changes them for all its keys. A change
//!   counts after two minutes at most, because the authorizer and API Gateway cache them.
//! - The keys table has two rows for each API key. Their key attribute is `id`. The row with the hash of the API key
//!   ([`KeyRow`]) is found by one read. The row `key#<key id>`
//!   ([`KeyIdRow`]) finds that row by the key's id, which is public. Only the first row is in the index `byOperator`.
//! - The audit table has a row for each administrative action. Only the crate `audit` writes it.
//! - The limits table has a row for each bucket of the rate limits. Only the crate `limits` uses it.
//!
//! The text of an API key is in no table, log or message. It is in one response, that of `POST /keys`.

pub mod authorise_caller;
pub mod create_key;
pub mod create_operator;
pub mod credential;
pub mod get_audit;
pub mod get_key;
pub mod get_operator;
pub mod issuer;
mod listing;
pub mod revoke_key;
pub mod update_operator;

use audit::{Action, Entry, Trail};
use contracts::{
    OperatorId, Plan, Scope, Timestamp,
    operators::{KeyId, OperatorStatus},
};
use fault::{ErrorKind, Fault};
use keys::NoRandomness;
use lambda::http::{Caller, FieldError, Problem, Request};
use serde::{Deserialize, Serialize};
use store::{Key, StoreError, Table};

use crate::issuer::KeySetError;

/// The row of an operator. Its key is the operator's id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperatorRow {
    /// The name, without leading and trailing white space.
    pub name: String,
    /// The plan.
    pub plan: Plan,
    /// The status.
    pub status: OperatorStatus,
    /// When the operator was registered.
    pub created_at: Timestamp,
    /// The SHA-256 of the registration, in hex.
    pub request_hash: String,
    /// The partition of the index `byCreation`: [`OperatorRow::LIST`] in each row.
    pub list: String,
    /// The position in the index: `<createdAt>/<operator id>`.
    pub listed: String,
}

impl OperatorRow {
    /// The value of the attribute `list`.
    pub const LIST: &'static str = "OPERATORS";

    /// Returns the key of the operator's row.
    #[must_use]
    pub fn key(operator: OperatorId) -> Key {
        Key::id(operator.to_string())
    }
}

/// The part of an operator that decides about its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct OperatorState {
    /// The status.
    pub status: OperatorStatus,
    /// The plan.
    pub plan: Plan,
}

impl OperatorState {
    /// The state of the default operator. It has the largest plan, because all callers of version 1 belong to it.
    const DEFAULT: Self = Self { status: OperatorStatus::Active, plan: Plan::Professional };

    /// Reads the operator's state. Returns `None` if there is no such operator.
    pub(crate) async fn read(
        operators: &Table,
        operator: OperatorId,
    ) -> Result<Option<Self>, StoreError> {
        if operator == OperatorId::DEFAULT {
            return Ok(Some(Self::DEFAULT));
        }
        operators.get(&OperatorRow::key(operator)).await
    }
}

/// The row of an API key. Its key is the hash of the API key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyRow {
    /// The public id.
    pub key_id: KeyId,
    /// The operator that the key belongs to.
    pub operator_id: OperatorId,
    /// The name.
    pub name: String,
    /// What the key may do.
    pub scope: Scope,
    /// The first characters of the API key.
    pub prefix: String,
    /// When the key was created.
    pub created_at: Timestamp,
    /// The position in the index `byOperator`: `<createdAt>/<key id>`.
    pub listed: String,
    /// From this time on, the key is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When the key was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    /// The last day on which the key was used, in UTC, such as `2026-01-31`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_on: Option<String>,
}

impl KeyRow {
    /// Returns the key of the row of the API key with this hash.
    #[must_use]
    pub fn key(hash: &str) -> Key {
        Key::id(hash)
    }

    /// Returns the actor of what callers do with the key.
    pub(crate) fn actor(&self) -> String {
        format!("key:{}", self.prefix)
    }
}

/// The row `key#<key id>`: what never changes of an API key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyIdRow {
    /// The hash of the API key.
    pub hash: String,
    /// The operator that the key belongs to.
    pub operator_id: OperatorId,
    /// What the key may do.
    pub scope: Scope,
    /// The first characters of the API key.
    pub prefix: String,
}

impl KeyIdRow {
    /// Returns the key of the row for this key id.
    #[must_use]
    pub fn key(key: KeyId) -> Key {
        Key::id(format!("key#{key}"))
    }

    /// Reads the row. Returns `None` if the key does not exist, or belongs to another operator.
    pub(crate) async fn read(
        keys: &Table,
        operator: OperatorId,
        key: KeyId,
    ) -> Result<Option<Self>, StoreError> {
        let row: Option<Self> = keys.get(&Self::key(key)).await?;
        Ok(row.filter(|row| row.operator_id == operator))
    }
}

/// Parses the path parameter `operatorId`.
fn operator_in_path(request: &Request) -> Result<OperatorId, Problem> {
    let text = request.path_parameters.get("operatorId").map_or("", String::as_str);
    text.parse().map_err(|_| {
        // The value is not quoted, because callers may send a key by mistake.
        let message = "is not the id of an operator; give the UUID that POST /operators returned";
        Problem::invalid(vec![FieldError::new("path operatorId", message)])
    })
}

/// Returns the response for an operator that does not exist.
fn unknown_operator(operator: OperatorId) -> Problem {
    Problem::not_found(format!(
        "There is no operator {operator}. GET /operators lists all operators."
    ))
}

/// Refuses a name that contains a credential. Names are stored, and everybody who lists operators or keys sees them.
fn refuse_credential(name: &str) -> Result<(), Problem> {
    if keys::mask(name) == name {
        return Ok(());
    }
    let message = "contains a credential, which others would see; give another name";
    Err(Problem::invalid(vec![FieldError::new("name", message)]))
}

/// Parses the query parameter `operatorId`.
fn named_operator(text: &str) -> Result<OperatorId, String> {
    text.parse().map_err(|_| "is not the UUID of an operator".to_owned())
}

/// Records that the caller reads what belongs to this operator. A read of the caller's own operator is no entry of the audit
/// trail.
///
/// Call this before the answer, and do not answer if this fails.
async fn record_read(
    trail: &Trail,
    caller: &Caller,
    action: Action,
    operator: OperatorId,
    now: Timestamp,
) -> Result<(), StoreError> {
    if operator == caller.operator {
        return Ok(());
    }
    let actor = caller.actor.clone();
    let target = operator.to_string();
    trail.write(&Entry { operator_id: operator, actor, action, target, details: None }, now).await
}

/// Returns whether a caller with the scope `by` may create, replace and revoke keys with the scope `of`. With the first
/// administrator's secret, a caller may only create keys. The functions that replace and revoke keys check that.
fn may_manage(by: Scope, of: Scope) -> bool {
    match by {
        Scope::Admin => true,
        Scope::Operator => of != Scope::Admin,
        Scope::Bootstrap => of == Scope::Admin,
        Scope::Logger(_) | Scope::Read => false,
    }
}

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum OperatorsError {
    /// Another writer changed the key between the read and the conditional write.
    #[error("another writer changed key {0}")]
    Busy(KeyId),
    /// Another writer changed the operator between the read and the conditional write.
    #[error("another writer changed operator {0}")]
    OperatorBusy(OperatorId),
    /// The request of API Gateway has no ARN of a method, so no policy can be returned.
    #[error("methodArn: is not the ARN of a method")]
    NoMethod,
    /// A call to a table failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The issuer's keys can't be read.
    #[error(transparent)]
    KeySet(#[from] KeySetError),
    /// The first administrator's secret can't be read.
    #[error("the first administrator's secret: {0}")]
    Secret(String),
    /// A key can't be generated.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

impl Fault for OperatorsError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Busy(_) | Self::OperatorBusy(_) | Self::KeySet(_) | Self::Secret(_) => {
                ErrorKind::Transient
            }
            Self::NoMethod => ErrorKind::InvalidInput,
            Self::NoRandomness(_) => ErrorKind::Internal,
            Self::Store(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use contracts::SiteId;

    use super::*;

    #[test]
    fn a_caller_manages_no_keys_with_more_rights() {
        let logger = Scope::Logger(SiteId::registered(OperatorId::DEFAULT, "", "a"));
        let all = [Scope::Admin, Scope::Operator, logger, Scope::Read];
        let managed = |by| all.map(|of| may_manage(by, of));
        assert_eq!(managed(Scope::Admin), [true; 4]);
        assert_eq!(managed(Scope::Operator), [false, true, true, true]);
        assert_eq!(managed(Scope::Bootstrap), [true, false, false, false]);
        assert_eq!(managed(Scope::Read), [false; 4]);
        assert_eq!(managed(logger), [false; 4]);
    }
}
