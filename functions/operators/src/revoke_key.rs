//! `DELETE /keys/{keyId}`: revokes an API key.

use audit::{Action, Entry, Trail};
use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{OperatorId, Timestamp, operators::KeyId};
use lambda::http::{self, Caller, FieldError, Problem, Request, Response};
use serde::Serialize;
use store::{Commit, Table, Transaction};

use crate::{KeyIdRow, KeyRow, OperatorsError, may_manage, named_operator};

/// The dependencies of the function `revoke-key`.
#[derive(Debug)]
pub struct RevokeKey {
    /// The keys table.
    pub keys: Table,
    /// The audit trail.
    pub trail: Trail,
}

#[expect(clippy::struct_field_names, reason = "names of the wire format")]
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Revoked {
    key_id: KeyId,
    prefix: String,
    revoked_at: Timestamp,
}

impl RevokeKey {
    /// Revokes the key and returns 200. A repeated request gets the same response.
    ///
    /// An administrator may name another operator, whose key is revoked then. Returns 404 for a key that does not exist
    /// or belongs to another operator, and 403 for an administrator's key if the caller is not an administrator. API
    /// Gateway caches the authorizer's decisions, so a key that was just used is accepted for up to another minute.
    pub async fn handle(
        &self,
        caller: &Caller,
        request: &Request,
        now: Timestamp,
    ) -> Result<Response, Problem> {
        caller.require(caller.scope.may_write())?;
        let operator = operator(caller, request)?;
        let key = key_id(request)?;
        let public = KeyIdRow::read(&self.keys, operator, key).await?.ok_or_else(|| {
            Problem::not_found(format!("There is no key {key}. GET /keys lists your keys."))
        })?;
        caller.require(may_manage(caller.scope, public.scope))?;
        let revoked_at = self.revoke(caller, operator, key, &public.hash, now).await?;
        Response::new(200, &Revoked { key_id: key, prefix: public.prefix, revoked_at })
    }

    /// Marks the key as revoked, with the entry of the audit trail. Returns when it was revoked.
    async fn revoke(
        &self,
        caller: &Caller,
        operator: OperatorId,
        key: KeyId,
        hash: &str,
        now: Timestamp,
    ) -> Result<Timestamp, OperatorsError> {
        let row_key = KeyRow::key(hash);
        let transaction = Transaction::on(&self.keys).update(
            &self.keys,
            &row_key,
            "SET #revokedAt = :revokedAt",
            Some("attribute_exists(id) AND attribute_not_exists(#revokedAt)"),
            [("revokedAt", AttributeValue::S(now.to_string()))],
        );
        let entry = Entry {
            operator_id: operator,
            actor: caller.actor.clone(),
            action: Action::RevokeKey,
            target: key.to_string(),
            details: None,
        };
        match self.trail.add(transaction, &entry, now).commit().await? {
            Commit::Done => Ok(now),
            Commit::Refused(refused) => {
                let row: Option<KeyRow> = refused.row(&row_key)?;
                row.and_then(|row| row.revoked_at).ok_or(OperatorsError::Busy(key))
            }
        }
    }
}

/// Returns the operator in the query, which only an administrator may give, or the caller's.
fn operator(caller: &Caller, request: &Request) -> Result<OperatorId, Problem> {
    let mut operator = caller.operator;
    let mut errors = Vec::new();
    let mut parameters: Vec<_> = request.query_string_parameters.iter().collect();
    parameters.sort_unstable();
    for (name, value) in parameters {
        if name != "operatorId" {
            errors.push(http::unknown_parameter(name, "operatorId, or leave it out"));
            continue;
        }
        let result = named_operator(value).map(|named| operator = named);
        if let Err(message) = result {
            errors.push(FieldError::new(format!("query {name}"), message));
        }
    }
    if !errors.is_empty() {
        return Err(Problem::invalid(errors));
    }
    caller.require_operator(operator)?;
    Ok(operator)
}

fn key_id(request: &Request) -> Result<KeyId, Problem> {
    let text = request.path_parameters.get("keyId").map_or("", String::as_str);
    text.parse().map_err(|_| {
        // The value is not quoted, because callers may send the key itself.
        let message = "is not the id of a key; give the UUID that POST /keys returned as keyId";
        Problem::invalid(vec![FieldError::new("path keyId", message)])
    })
}
