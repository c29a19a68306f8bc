//! The command `fieldctl audit`.

use clap::Subcommand;
use contracts::OperatorId;
use serde_json::Value;

use crate::{
    api::{Call, MAX_PAGE_SIZE, query},
    error::{CliError, Exit},
    output::{Screen, Tone},
    render::{Table, plain},
    resolve,
    stack::Stack,
};

/// Commands for the audit trail.
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// Lists the administrative actions that concern an operator, newest first.
    List {
        /// The operator: its id, the first digits of it, or its name. The default is your operator.
        #[arg(long)]
        operator: Option<String>,
        /// The maximum number of entries.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
}

impl Audit {
    /// Runs the command.
    pub async fn run(self, stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
        let Self::List { operator, limit } = self;
        let operator = match operator {
            Some(operator) => Some(resolve::operator(stack, &operator).await?),
            None => None,
        };
        list(stack, screen, operator, limit).await
    }
}

async fn list(
    stack: &Stack,
    screen: &mut Screen,
    operator: Option<OperatorId>,
    limit: usize,
) -> Result<Exit, CliError> {
    let mut table = Table::new(["TIME", "ACTOR", "ACTION", "TARGET", "DETAILS"]);
    let (mut remaining, mut next, mut count) = (limit, None, 0);
    while remaining > 0 {
        let query = query(&[
            ("operatorId", operator.map(|operator| operator.to_string())),
            ("limit", Some(remaining.min(MAX_PAGE_SIZE).to_string())),
            ("next", next),
        ]);
        let page = stack.call(Call::get(format!("/audit?{query}"))).await?;
        let entries = page["entries"].as_array().map_or(&[][..], Vec::as_slice);
        remaining = remaining.saturating_sub(entries.len());
        count += entries.len();
        if screen.json {
            entries.iter().try_for_each(|entry| screen.entry(entry))?;
        } else {
            let rows: Vec<_> = entries.iter().map(row).collect();
            table.page(screen, &rows)?;
        }
        next = page["next"].as_str().map(str::to_owned);
        if next.is_none() {
            break;
        }
    }
    if count == 0 && !screen.json {
        screen.line("No entries found.")?;
    }
    Ok(Exit::Done)
}

fn row(entry: &Value) -> Vec<(String, Tone)> {
    let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    vec![
        (text("at"), Tone::Faint),
        (text("actor"), Tone::Strong),
        plain(text("action")),
        plain(text("target")),
        plain(text("details")),
    ]
}
