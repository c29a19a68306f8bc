//! `PATCH /operators/{operatorId}`: changes the name, the plan or the status of an operator.

use audit::{Action, Entry, Trail};
use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{
    OperatorId, Scope, Timestamp,
    operators::{OperatorPatch, OperatorStatus},
};
use lambda::http::{self, Caller, Problem, Request, Response};
use store::{Commit, StoreError, Table, Transaction};

use crate::{
    OperatorRow, OperatorsError, create_operator::Operator, operator_in_path, refuse_credential,
    unknown_operator,
};

/// The maximum size of the request body, in bytes.
const MAX_BODY_BYTES: usize = 4 * 1024;

/// The dependencies of the function `update-operator`.
#[derive(Debug)]
pub struct UpdateOperator {
    /// The operators table.
    pub operators: Table,
    /// The audit trail.
    pub trail: Trail,
}

impl UpdateOperator {
    /// Changes the operator and returns 200 with it. Only for administrators. A request that changes nothing writes
    /// nothing.
    ///
    /// The authorizer caches the plan and the status, so a change counts after two minutes at most.
    ///
    /// Returns 400 for an invalid request, 404 for an unknown operator, and 412 if `If-Match` does not have the tag of the
    /// operator as it is now. Returns 409 for the default operator, which has
    /// no row, and if the caller would suspend its own operator, because its own key would be refused then.
    pub async fn handle(
        &self,
        caller: &Caller,
        request: &Request,
        now: Timestamp,
    ) -> Result<Response, Problem> {
        caller.require(caller.scope == Scope::Admin)?;
        http::reject_query(request)?;
        let operator = operator_in_path(request)?;
        let patch: OperatorPatch = http::read(request, MAX_BODY_BYTES)?;
        if let Some(name) = &patch.name {
            refuse_credential(name)?;
        }
        if operator == OperatorId::DEFAULT {
            let detail = "The default operator can't be changed: it has the largest plan and is always active.";
            return Err(Problem::conflict("default-operator", detail));
        }
        if operator == caller.operator && patch.status == Some(OperatorStatus::Suspended) {
            let detail = "This is your own operator: your key would be refused from then on. Use a key of another operator.";
            return Err(Problem::conflict("own-operator", detail));
        }
        let before = self.read(operator).await?;
        let before = before.ok_or_else(|| unknown_operator(operator))?;
        http::require_match(
            request,
            &Response::new(200, &Operator::new(operator, before.clone()))?,
        )?;
        let after = changed(&before, &patch);
        if after != before {
            self.store(caller, operator, &before, &after, now).await?;
        }
        Response::new(200, &Operator::new(operator, after))
    }

    async fn read(&self, operator: OperatorId) -> Result<Option<OperatorRow>, StoreError> {
        self.operators.get(&OperatorRow::key(operator)).await
    }

    /// Stores the change with the entry of the audit trail, if nobody has changed the operator since it was read.
    async fn store(
        &self,
        caller: &Caller,
        operator: OperatorId,
        before: &OperatorRow,
        after: &OperatorRow,
        now: Timestamp,
    ) -> Result<(), OperatorsError> {
        let text = |value: &str| AttributeValue::S(value.to_owned());
        let transaction = Transaction::on(&self.operators).update(
            &self.operators,
            &OperatorRow::key(operator),
            "SET #name = :name, #plan = :plan, #status = :status",
            Some("#name = :nameBefore AND #plan = :planBefore AND #status = :statusBefore"),
            [
                ("name", text(&after.name)),
                ("plan", text(after.plan.name())),
                ("status", text(after.status.name())),
                ("nameBefore", text(&before.name)),
                ("planBefore", text(before.plan.name())),
                ("statusBefore", text(before.status.name())),
            ],
        );
        let entry = Entry {
            operator_id: operator,
            actor: caller.actor.clone(),
            action: Action::UpdateOperator,
            target: operator.to_string(),
            details: Some(details(before, after)),
        };
        match self.trail.add(transaction, &entry, now).commit().await? {
            Commit::Done => Ok(()),
            Commit::Refused(_) => Err(OperatorsError::OperatorBusy(operator)),
        }
    }
}

fn changed(before: &OperatorRow, patch: &OperatorPatch) -> OperatorRow {
    OperatorRow {
        name: patch.name.as_ref().map_or(&*before.name, |name| name.trim()).to_owned(),
        plan: patch.plan.unwrap_or(before.plan),
        status: patch.status.unwrap_or(before.status),
        ..before.clone()
    }
}

/// Describes the difference for the audit trail, without the names, which may be long.
fn details(before: &OperatorRow, after: &OperatorRow) -> String {
    let mut parts = Vec::new();
    if before.name != after.name {
        parts.push("name".to_owned());
    }
    if before.plan != after.plan {
        parts.push(format!("plan {} to {}", before.plan.name(), after.plan.name()));
    }
    if before.status != after.status {
        parts.push(format!("status {} to {}", before.status.name(), after.status.name()));
    }
    parts.join(", ")
}
