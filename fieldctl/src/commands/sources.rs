//! The command `fieldctl sources`.

use ::audit::Action;
use aws_sdk_dynamodb::types::AttributeValue;
use clap::Subcommand;
use contracts::{OperatorId, Timestamp, names};
use serde::{Deserialize, Serialize};
use store::{Commit, SourceRow, Table as StoreTable, Transaction, from_item};

use crate::{
    audit::Auditor,
    commands::confirm,
    error::{CliError, Exit},
    output::{Screen, Tone},
    render::{Table, ago, plain},
    resolve,
    stack::Stack,
};

/// Says how long an execution environment of append-event may still use the earlier operator.
const EFFECTIVE: &str = "Within a minute, no request uses the earlier operator any more.";

/// Commands for the sources of appended events.
#[derive(Debug, Subcommand)]
pub enum Sources {
    /// Lists the sources that operators have claimed by appending an event. A source that the parameter SourceOperators
    /// names is not claimed, so it is not listed.
    List {
        /// The operator: its id, the first digits of it, or its name. The default is all operators.
        #[arg(long)]
        operator: Option<String>,
    },
    /// Releases a source. It then belongs to the operator that uses it next. Its events stay with the earlier operator.
    Release {
        /// The source, such as com.example.lims.
        source: String,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
    /// Gives a source to another operator. The source may also be one that nobody has claimed. Its events stay with the
    /// earlier operator.
    Transfer {
        /// The source, such as com.example.lims.
        source: String,
        /// The new operator: its id, the first digits of it, or its name.
        #[arg(long)]
        to: String,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
}

/// A claimed source, as it is listed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Claimed {
    source: String,
    #[serde(flatten)]
    row: SourceRow,
}

impl Sources {
    /// Runs the command.
    pub async fn run(self, stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
        match self {
            Self::List { operator } => {
                let operator = match operator {
                    Some(operator) => Some(resolve::operator(stack, &operator).await?),
                    None => None,
                };
                list(stack, screen, operator).await
            }
            Self::Release { source, yes } => change(stack, screen, &source, None, yes).await,
            Self::Transfer { source, to, yes } => {
                let to = resolve::operator(stack, &to).await?;
                change(stack, screen, &source, Some(to), yes).await
            }
        }
    }
}

async fn list(
    stack: &Stack,
    screen: &mut Screen,
    operator: Option<OperatorId>,
) -> Result<Exit, CliError> {
    let guards = stack.table(names::EVENT_GUARDS);
    let query = match operator {
        Some(operator) => guards.query("operatorId = :operator").text("operator", operator),
        None => guards.scan(),
    };
    let claimed = |item| {
        #[derive(Deserialize)]
        struct Row {
            id: String,
            #[serde(flatten)]
            row: SourceRow,
        }
        let Row { id, row } = from_item(item, || "a claim of a source".to_owned())?;
        Ok(Claimed { source: SourceRow::source(&id).unwrap_or(&id).to_owned(), row })
    };
    let items = query.index(SourceRow::INDEX).all().await?;
    let mut claims = items.into_iter().map(claimed).collect::<Result<Vec<_>, CliError>>()?;
    claims.sort_by(|one, other| one.source.cmp(&other.source));
    if screen.json {
        claims.iter().try_for_each(|claim| screen.entry(claim))?;
    } else if claims.is_empty() {
        screen.line("No sources found.")?;
    } else {
        let row = |claim: &Claimed| {
            vec![
                (claim.source.clone(), Tone::Strong),
                plain(screen.id(&claim.row.operator_id)),
                (ago(screen.now, claim.row.claimed_at), Tone::Faint),
            ]
        };
        let rows: Vec<_> = claims.iter().map(row).collect();
        Table::new(["SOURCE", "OPERATOR", "SINCE"]).page(screen, &rows)?;
    }
    Ok(Exit::Done)
}

/// Gives the source to an operator, or releases it. The change and its entries of the audit trail commit together.
async fn change(
    stack: &Stack,
    screen: &mut Screen,
    source: &str,
    to: Option<OperatorId>,
    yes: bool,
) -> Result<Exit, CliError> {
    let guards = stack.table(names::EVENT_GUARDS);
    let before = guards.get::<SourceRow>(&SourceRow::key(source)).await?.map(|row| row.operator_id);
    if before.is_none() && to.is_none() {
        return Err(CliError::not_found(format!("no operator has claimed the source {source:?}"))
            .advise("fieldctl sources list"));
    }
    if before == to {
        if screen.json {
            screen.document(&serde_json::json!({ "source": source, "from": before, "to": to }))?;
        } else {
            screen.line(&*format!("{source} belongs to this operator already."))?;
        }
        return Ok(Exit::Done);
    }
    let question = match (before, to) {
        (Some(before), None) => format!("Release {source}, which belongs to operator {before}?"),
        (Some(before), Some(to)) => format!("Give {source} of operator {before} to operator {to}?"),
        (None, to) => format!("Give {source} to operator {}?", to.unwrap_or_default()),
    };
    confirm(&question, yes)?;
    let auditor = Auditor::new(stack).await?;
    let now = Timestamp::now();
    let mut transaction = claim(&guards, source, before, to, now);
    let name = |operator: Option<OperatorId>| {
        operator.map_or("nobody".to_owned(), |operator| operator.to_string())
    };
    let action = if to.is_some() { Action::TransferSource } else { Action::ReleaseSource };
    for operator in [before, to].into_iter().flatten() {
        let details = format!("from {} to {}", name(before), name(to));
        transaction = auditor.add(transaction, operator, action, source, details, now);
    }
    match transaction.commit().await? {
        Commit::Done => {}
        Commit::Refused(_) => {
            let message = format!("{source} was changed at the same time; nothing was done");
            return Err(CliError::new(Exit::Refused, message)
                .advise("look at it again: fieldctl sources list"));
        }
    }
    if screen.json {
        screen.document(&serde_json::json!({ "source": source, "from": before, "to": to }))?;
    } else {
        let done = match to {
            Some(to) => format!("{source} belongs to operator {to}."),
            None => format!("{source} is released."),
        };
        screen.line(screen.paint(Tone::Good, &done))?;
        screen.line(EFFECTIVE)?;
    }
    Ok(Exit::Done)
}

/// Starts the transaction that changes the claim. It is refused if the source no longer belongs to `before`.
fn claim(
    guards: &StoreTable,
    source: &str,
    before: Option<OperatorId>,
    to: Option<OperatorId>,
    now: Timestamp,
) -> Transaction {
    let key = SourceRow::key(source);
    let text = |value: String| AttributeValue::S(value);
    let transaction = Transaction::on(guards);
    match (before, to) {
        (None, to) => {
            let row = SourceRow { operator_id: to.unwrap_or_default(), claimed_at: now };
            transaction.create(guards, &key, &row)
        }
        (Some(before), Some(to)) => transaction.update(
            guards,
            &key,
            "SET #operatorId = :to, #claimedAt = :now",
            Some("#operatorId = :before"),
            [
                ("to", text(to.to_string())),
                ("now", text(now.to_string())),
                ("before", text(before.to_string())),
            ],
        ),
        (Some(before), None) => transaction.delete(
            guards,
            &key,
            "#operatorId = :before",
            [("before", text(before.to_string()))],
        ),
    }
}
