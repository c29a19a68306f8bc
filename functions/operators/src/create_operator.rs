//! `POST /operators`: registers an operator.

use audit::{Action, Entry, Trail};
use contracts::{
    OperatorId, Plan, Scope, Timestamp,
    operators::{OperatorRegistration, OperatorStatus},
};
use lambda::http::{self, Caller, Problem, Request, Response};
use serde::Serialize;
use sha2::{Digest, Sha256};
use store::{Commit, Table, Transaction};

use crate::{OperatorRow, OperatorsError, listing::position, refuse_credential};

/// The maximum size of the request body, in bytes.
const MAX_BODY_BYTES: usize = 4 * 1024;

/// The dependencies of the function `create-operator`.
#[derive(Debug)]
pub struct CreateOperator {
    /// The operators table.
    pub operators: Table,
    /// The audit trail.
    pub trail: Trail,
}

/// An operator in a response.
#[expect(clippy::struct_field_names, reason = "names of the wire format")]
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Operator {
    operator_id: OperatorId,
    name: String,
    plan: Plan,
    status: OperatorStatus,
    /// `None` for the default operator, which nobody registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<Timestamp>,
}

impl Operator {
    pub(crate) fn new(operator_id: OperatorId, row: OperatorRow) -> Self {
        Self {
            operator_id,
            name: row.name,
            plan: row.plan,
            status: row.status,
            created_at: Some(row.created_at),
        }
    }

    pub(crate) fn default_operator() -> Self {
        let state = crate::OperatorState::DEFAULT;
        Self {
            operator_id: OperatorId::DEFAULT,
            name: "Default operator".to_owned(),
            plan: state.plan,
            status: state.status,
            created_at: None,
        }
    }
}

impl CreateOperator {
    /// Registers the operator and returns 201 with its id. A repeated request gets the operator as it is now, with the
    /// same id. Only for administrators.
    ///
    /// Returns 400 for an invalid request, 409 for a reused idempotency key and 413 for a body that is too large.
    pub async fn handle(
        &self,
        caller: &Caller,
        request: &Request,
        now: Timestamp,
    ) -> Result<Response, Problem> {
        caller.require(caller.scope == Scope::Admin)?;
        let key = http::idempotency_key(request, "operator")?;
        http::reject_query(request)?;
        let registration: OperatorRegistration = http::read(request, MAX_BODY_BYTES)?;
        refuse_credential(&registration.name)?;
        let operator = OperatorId::registered(key);
        let row = row(operator, &registration, now);
        let stored = self.store(caller, operator, &row).await?;
        if stored.request_hash != row.request_hash {
            return Err(http::idempotency_key_reused("operator", operator));
        }
        let target = format!("/operators/{operator}");
        Ok(Response::new(201, &Operator::new(operator, stored))?.at(http::relative_location(
            request,
            "/operators",
            &target,
        )))
    }

    /// Stores the row and the entry of the audit trail. Returns the existing row if there is one.
    async fn store(
        &self,
        caller: &Caller,
        operator: OperatorId,
        row: &OperatorRow,
    ) -> Result<OperatorRow, OperatorsError> {
        let key = OperatorRow::key(operator);
        let transaction = Transaction::on(&self.operators).create(&self.operators, &key, row);
        let entry = Entry {
            operator_id: operator,
            actor: caller.actor.clone(),
            action: Action::CreateOperator,
            target: operator.to_string(),
            details: None,
        };
        match self.trail.add(transaction, &entry, row.created_at).commit().await? {
            Commit::Done => Ok(row.clone()),
            Commit::Refused(refused) => Ok(refused.row(&key)?.unwrap_or_else(|| row.clone())),
        }
    }
}

fn row(operator: OperatorId, registration: &OperatorRegistration, now: Timestamp) -> OperatorRow {
    let canonical = serde_json::to_vec(registration).unwrap_or_default();
    let digest = Sha256::digest(canonical);
    OperatorRow {
        name: registration.name.trim().to_owned(),
        plan: registration.plan,
        status: OperatorStatus::Active,
        created_at: now,
        request_hash: digest.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}")),
        list: OperatorRow::LIST.to_owned(),
        listed: position(now, operator.uuid()),
    }
}
