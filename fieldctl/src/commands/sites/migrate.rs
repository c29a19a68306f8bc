//! The command `fieldctl sites migrate`.

use ::audit::Action;
use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{OperatorId, SiteId, names};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use store::{Commit, StoreError, Table, Transaction, from_item};

use crate::{
    audit::Auditor,
    error::{CliError, Exit},
    output::{Progress, Screen},
    render::counted,
    site_row,
    stack::Stack,
};

/// The maximum number of sites that are changed concurrently.
const MAX_CONCURRENT_WRITES: usize = 8;
/// The maximum number of attempts to change a site whose status changes at the same time.
const MAX_ATTEMPTS: usize = 5;

/// The attributes of a site's row that are needed here.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    site_id: SiteId,
    status: String,
    #[serde(default)]
    operator_id: OperatorId,
    operator_status: Option<String>,
}

/// Runs the command.
pub async fn run(stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
    let table = stack.table(names::SITES);
    let rows = rows(&table).await?;
    let count = rows.len();
    let old: Vec<_> = rows.into_iter().filter(|row| row.operator_status.is_none()).collect();
    if !old.is_empty() {
        let auditor = Auditor::new(stack).await?;
        auditor.record(OperatorId::DEFAULT, Action::MigrateSites, names::SITES).await?;
    }
    let progress = Progress::bar(old.len(), "Ctrl-C stops, and the command can be run again");
    let (table, bar) = (&table, &progress);
    let changed = stream::iter(old)
        .map(|row| async move {
            let changed = migrate(table, row).await?;
            bar.step();
            Ok::<_, CliError>(usize::from(changed))
        })
        .buffer_unordered(MAX_CONCURRENT_WRITES)
        .try_fold(0, |sum, changed| async move { Ok(sum + changed) })
        .await;
    progress.clear();
    let changed = changed?;
    if screen.json {
        screen.document(&json!({ "sites": count, "changed": changed }))?;
    } else {
        let sites = counted(count, "site", "sites");
        screen.line(&format!("Changed {changed} of {sites}."))?;
    }
    Ok(Exit::Done)
}

/// Reads all sites.
async fn rows(table: &Table) -> Result<Vec<Row>, CliError> {
    let scan = table.scan().project("#siteId, #row, #status, #operatorId, #operatorStatus");
    let items = scan.consistent().all().await?.into_iter();
    let is_site = |item: &store::Item| {
        item.get("row").and_then(|row| row.as_s().ok()).is_some_and(|row| row == site_row::SITE)
    };
    let rows =
        items.filter(is_site).map(|item| from_item(item, || "of the sites table".to_owned()));
    Ok(rows.collect::<Result<_, StoreError>>()?)
}

/// Adds the operator and the key of the index `byOperator` to a site's row. Returns whether it changed the row.
///
/// The row is changed only if it still has the status that was read, because the key of the index contains the status.
async fn migrate(table: &Table, mut row: Row) -> Result<bool, CliError> {
    for _ in 0..MAX_ATTEMPTS {
        if row.operator_status.is_some() {
            return Ok(false);
        }
        let key = site_row::key(row.site_id);
        let operator_status = names::operator_status(row.operator_id, &row.status);
        let update = Transaction::on(table).update(
            table,
            &key,
            "SET #operatorId = :operatorId, #operatorStatus = :operatorStatus",
            Some("#status = :status AND attribute_not_exists(#operatorStatus)"),
            [
                ("operatorId", AttributeValue::S(row.operator_id.to_string())),
                ("operatorStatus", AttributeValue::S(operator_status)),
                ("status", AttributeValue::S(row.status)),
            ],
        );
        match update.commit().await? {
            Commit::Done => return Ok(true),
            Commit::Refused(refused) => match refused.row(&key)? {
                Some(newer) => row = newer,
                None => return Ok(false),
            },
        }
    }
    let message = format!("the status of site {} changes all the time", row.site_id);
    Err(CliError::new(Exit::Failed, message).advise("run the command again"))
}
