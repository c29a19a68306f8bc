//! `POST /keys`: creates an API key, and optionally replaces another one.

use audit::{Action, Entry, Trail};
use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{
    OperatorId, Scope, Timestamp,
    operators::{KeyId, KeyRequest, OperatorStatus},
};
use keys::ApiKey;
use lambda::http::{self, Caller, FieldError, Problem, Request, Response};
use serde::Serialize;
use store::{Commit, Table, Transaction};

use crate::{
    KeyIdRow, KeyRow, OperatorState, OperatorsError, listing::position, may_manage,
    refuse_credential,
};

/// The maximum size of the request body, in bytes.
const MAX_BODY_BYTES: usize = 4 * 1024;
/// The maximum time until a key of a first administrator expires, in days.
const MAX_BOOTSTRAP_DAYS: u32 = 90;
/// The time that a replaced key stays valid if the request does not say it, in seconds.
const DEFAULT_OVERLAP_SECONDS: u32 = 3600;
const DAY_MILLIS: i64 = 86_400_000;

/// The dependencies of the function `create-key`.
#[derive(Debug)]
pub struct CreateKey {
    /// The keys table.
    pub keys: Table,
    /// The operators table.
    pub operators: Table,
    /// The audit trail.
    pub trail: Trail,
}

/// The response. It is the only one that contains the API key.
#[expect(clippy::struct_field_names, reason = "names of the wire format")]
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Created<'a> {
    key_id: KeyId,
    operator_id: OperatorId,
    name: &'a str,
    scope: Scope,
    prefix: &'a str,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced: Option<Replaced>,
}

/// The replaced key.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
struct Replaced {
    key_id: KeyId,
    expires_at: Timestamp,
}

/// A key that is replaced, and its new expiry.
struct Replacement {
    hash: String,
    replaced: Replaced,
    /// Whether the expiry is earlier than before.
    is_earlier: bool,
}

/// The result of a creation.
enum Outcome {
    Created,
    /// An earlier request with the same idempotency key created this key.
    Exists(KeyIdRow),
}

impl CreateKey {
    /// Creates a key and returns 201 with it. The key is shown only in this response.
    ///
    /// An administrator creates any key, also for other operators. An operator creates keys for itself, but none for
    /// administrators. The first administrator's secret creates only keys for administrators, for at most 90 days.
    ///
    /// Returns 400 for an invalid request, and 403 for a key that the caller may not create. Returns 409 if the operator
    /// is suspended, if the key to replace is revoked or has expired, or if an earlier request with the same idempotency
    /// key created a key, because that key can't be shown again.
    pub async fn handle(
        &self,
        caller: &Caller,
        request: &Request,
        now: Timestamp,
    ) -> Result<Response, Problem> {
        caller.require(caller.scope.may_write() || caller.scope == Scope::Bootstrap)?;
        let idempotency_key = http::idempotency_key(request, "key")?;
        http::reject_query(request)?;
        let body: KeyRequest = http::read(request, MAX_BODY_BYTES)?;
        caller.require(may_manage(caller.scope, body.scope))?;
        let operator = body.operator_id.unwrap_or(caller.operator);
        caller.require_operator(operator)?;
        refuse_credential(&body.name)?;
        let days = lifetime(caller, &body)?;
        let state = OperatorState::read(&self.operators, operator).await?;
        let state = state.ok_or_else(|| unknown("operatorId", "operator", "GET /operators"))?;
        if state.status == OperatorStatus::Suspended {
            let detail = format!("Operator {operator} is suspended: its keys would be refused.");
            return Err(Problem::conflict("operator-suspended", detail));
        }
        let replacement = match body.replaces {
            Some(old) => Some(self.replacement(caller, operator, old, &body, now).await?),
            None => None,
        };

        let key = ApiKey::generate(body.scope.into()).map_err(OperatorsError::from)?;
        let key_id = KeyId::from_request(operator, idempotency_key);
        let row = KeyRow {
            key_id,
            operator_id: operator,
            name: body.name.trim().to_owned(),
            scope: body.scope,
            prefix: key.visible_prefix().to_owned(),
            created_at: now,
            listed: position(now, key_id.uuid()),
            expires_at: days.map(|days| now.plus_millis(i64::from(days) * DAY_MILLIS)),
            revoked_at: None,
            last_used_on: None,
        };
        match self.store(caller, &key, &row, replacement.as_ref()).await? {
            Outcome::Exists(existing) => Err(exists(key_id, &existing)),
            Outcome::Created => Response::new(
                201,
                &Created {
                    key_id,
                    operator_id: operator,
                    name: &row.name,
                    scope: row.scope,
                    prefix: &row.prefix,
                    created_at: now,
                    expires_at: row.expires_at,
                    key: key.reveal(),
                    replaced: replacement.map(|replacement| replacement.replaced),
                },
            ),
        }
    }

    /// Reads the key that is to be replaced, and decides when it expires.
    async fn replacement(
        &self,
        caller: &Caller,
        operator: OperatorId,
        old: KeyId,
        body: &KeyRequest,
        now: Timestamp,
    ) -> Result<Replacement, Problem> {
        let public = KeyIdRow::read(&self.keys, operator, old).await?;
        let public =
            public.ok_or_else(|| unknown("replaces", "key of the operator", "GET /keys"))?;
        caller.require(may_manage(caller.scope, public.scope))?;
        let row: Option<KeyRow> = self.keys.get(&KeyRow::key(&public.hash)).await?;
        let is_expired = |row: &KeyRow| row.expires_at.is_some_and(|end| end <= now);
        let Some(row) = row.filter(|row| row.revoked_at.is_none() && !is_expired(row)) else {
            let detail =
                format!("Key {old} is revoked or has expired. Create a key without replaces.");
            return Err(Problem::conflict("key-not-active", detail));
        };
        let overlap = body.overlap_seconds.unwrap_or(DEFAULT_OVERLAP_SECONDS);
        let end = now.plus_millis(i64::from(overlap) * 1000);
        let is_earlier = row.expires_at.is_none_or(|before| end < before);
        let expires_at = row.expires_at.map_or(end, |before| before.min(end));
        Ok(Replacement {
            hash: public.hash,
            replaced: Replaced { key_id: old, expires_at },
            is_earlier,
        })
    }

    /// Stores the key, the expiry of the replaced key, and the entry of the audit trail in one transaction.
    async fn store(
        &self,
        caller: &Caller,
        key: &ApiKey,
        row: &KeyRow,
        replacement: Option<&Replacement>,
    ) -> Result<Outcome, OperatorsError> {
        let public_key = KeyIdRow::key(row.key_id);
        let public = KeyIdRow {
            hash: key.hash(),
            operator_id: row.operator_id,
            scope: row.scope,
            prefix: row.prefix.clone(),
        };
        let mut transaction = Transaction::on(&self.keys)
            .create(&self.keys, &public_key, &public)
            .create(&self.keys, &KeyRow::key(&public.hash), row);
        if let Some(replacement) = replacement.filter(|replacement| replacement.is_earlier) {
            let end = replacement.replaced.expires_at.to_string();
            transaction = transaction.update(
                &self.keys,
                &KeyRow::key(&replacement.hash),
                "SET #expiresAt = :expiresAt",
                Some(
                    "attribute_exists(id) AND attribute_not_exists(#revokedAt) \
                     AND (attribute_not_exists(#expiresAt) OR #expiresAt > :expiresAt)",
                ),
                [("expiresAt", AttributeValue::S(end))],
            );
        }
        let entry = entry(caller, row, replacement.map(|replacement| replacement.replaced));
        match self.trail.add(transaction, &entry, row.created_at).commit().await? {
            Commit::Done => Ok(Outcome::Created),
            Commit::Refused(refused) => match refused.row(&public_key)? {
                Some(existing) => Ok(Outcome::Exists(existing)),
                None => Err(OperatorsError::Busy(row.key_id)),
            },
        }
    }
}

/// Returns the entry of the audit trail. It belongs to the operator of the key. Its details begin with the actor that later
/// entries have if somebody uses the key.
fn entry(caller: &Caller, row: &KeyRow, replaced: Option<Replaced>) -> Entry {
    let (action, suffix) = match replaced {
        None => (Action::CreateKey, String::new()),
        Some(Replaced { key_id, expires_at }) => {
            (Action::ReplaceKey, format!(", replaces {key_id}, which expires at {expires_at}"))
        }
    };
    Entry {
        operator_id: row.operator_id,
        actor: caller.actor.clone(),
        action,
        target: row.key_id.to_string(),
        details: Some(format!("{}, scope {}{suffix}", row.actor(), row.scope)),
    }
}

/// Returns the days until the key expires. `None` means that it does not expire.
fn lifetime(caller: &Caller, body: &KeyRequest) -> Result<Option<u32>, Problem> {
    if caller.scope != Scope::Bootstrap {
        return Ok(body.expires_in_days);
    }
    let mut errors = Vec::new();
    let days = body.expires_in_days.unwrap_or(MAX_BOOTSTRAP_DAYS);
    if days > MAX_BOOTSTRAP_DAYS {
        let message = format!(
            "is {days}; with the first administrator's secret, give at most {MAX_BOOTSTRAP_DAYS}"
        );
        errors.push(FieldError::new("expiresInDays", message));
    }
    if body.replaces.is_some() {
        let message = "is not allowed with the first administrator's secret; leave it out";
        errors.push(FieldError::new("replaces", message));
    }
    if errors.is_empty() { Ok(Some(days)) } else { Err(Problem::invalid(errors)) }
}

fn unknown(field: &str, what: &str, list: &str) -> Problem {
    Problem::invalid(vec![FieldError::new(
        field,
        format!("is not the id of an existing {what}; {list} lists them"),
    )])
}

fn exists(key: KeyId, row: &KeyIdRow) -> Problem {
    let detail = "An earlier request with this Idempotency-Key created a key. A key is shown only once. If you did not \
                  get that response, revoke the key, and send a new Idempotency-Key for another key.";
    Problem {
        errors: vec![FieldError::new(
            "header Idempotency-Key",
            format!("was used before, for key {key}, which begins with {}", row.prefix),
        )],
        ..Problem::conflict("key-exists", detail)
    }
    .with("keyId", key.to_string())
    .with("prefix", row.prefix.clone())
}
