//! Entries of the audit trail for the actions that do not go through the API.

use std::collections::HashMap;

use ::audit::{Action, Entry, Trail};
use contracts::{OperatorId, SiteId, Timestamp, names};
use ledger::AffectedIds;
use store::Transaction;
use tokio::sync::Mutex;

use crate::{
    error::{CliError, Exit, aws},
    names::is_claimed,
    stack::Stack,
};

/// Writes an entry of the audit trail for each action of a command, before the action or in its transaction.
#[derive(Debug)]
pub struct Auditor {
    trail: Trail,
    /// The table's full name.
    table: String,
    actor: String,
}

impl Auditor {
    /// Creates an auditor. Asks AWS who the caller is, because each entry names its actor.
    ///
    /// # Errors
    /// If AWS does not answer. Then nothing may be done, because the entry would have no actor.
    pub async fn new(stack: &Stack) -> Result<Self, CliError> {
        let sts = aws_sdk_sts::Client::new(stack.config());
        let identity = sts.get_caller_identity().send().await;
        let identity = identity.map_err(aws("AWS does not say who you are; nothing was done"))?;
        let Some(arn) = identity.arn() else {
            let message = "AWS does not say who you are: GetCallerIdentity returned no ARN";
            return Err(CliError::new(Exit::Aws, message));
        };
        Ok(Self {
            trail: Trail::new(stack.table(names::AUDIT)),
            table: stack.named(names::AUDIT),
            actor: format!("iam:{arn}"),
        })
    }

    fn entry(
        &self,
        operator: OperatorId,
        action: Action,
        target: String,
        details: Option<String>,
    ) -> Entry {
        let actor = self.actor.clone();
        Entry { operator_id: operator, actor, action, target, details }
    }

    /// Adds the entry of an action to its transaction.
    #[must_use]
    pub fn add(
        &self,
        transaction: Transaction,
        operator: OperatorId,
        action: Action,
        target: &str,
        details: String,
        now: Timestamp,
    ) -> Transaction {
        let entry = self.entry(operator, action, target.to_owned(), Some(details));
        self.trail.add(transaction, &entry, now)
    }

    /// Writes the entry of an action.
    ///
    /// # Errors
    /// If it can't be written. Then the action must not be done.
    pub async fn record(
        &self,
        operator: OperatorId,
        action: Action,
        target: impl ToString,
    ) -> Result<(), CliError> {
        let entry = self.entry(operator, action, target.to_string(), None);
        self.trail.write(&entry, Timestamp::now()).await.map_err(|error| {
            let message =
                format!("the entry of the audit trail can't be written, so nothing was done: {error}");
            let advice = format!(
                "this action needs the permission dynamodb:PutItem on the table {}, which the service operators deploys",
                self.table
            );
            CliError::new(Exit::Aws, message).advise(advice)
        })
    }
}

/// Finds the operators of failures. Each site is read once.
#[derive(Debug)]
pub struct Owners<'a> {
    stack: &'a Stack,
    known: Mutex<HashMap<SiteId, OperatorId>>,
}

impl<'a> Owners<'a> {
    /// Creates an empty cache of operators.
    #[must_use]
    pub fn new(stack: &'a Stack) -> Self {
        Self { stack, known: Mutex::default() }
    }

    /// Returns the operator of the site that a failure is about: the site where the register has the sensor, or else
    /// the site that the failure names. Returns the default operator if there is no such site, or if only the sender of
    /// readings claims the site.
    ///
    /// # Errors
    /// If the site's row can't be read.
    pub async fn of_failure(
        &self,
        source: &str,
        affected_ids: &AffectedIds,
    ) -> Result<OperatorId, CliError> {
        let claimed = is_claimed(source, affected_ids);
        let named = affected_ids.site_id.filter(|_| !claimed);
        let Some(site) = affected_ids.sensor_site_id.or(named) else {
            return Ok(OperatorId::DEFAULT);
        };
        let mut known = self.known.lock().await;
        if let Some(operator) = known.get(&site) {
            return Ok(*operator);
        }
        let row = self.stack.site_row(site).await?;
        let operator = row.map(|row| row.operator_id).unwrap_or_default();
        known.insert(site, operator);
        Ok(operator)
    }
}
