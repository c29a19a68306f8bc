//! The command `fieldctl consumers`.

mod replay;

use clap::Subcommand;

use crate::{
    consumers::{self, Consumer, Lag, runs},
    error::{CliError, Exit},
    output::{Progress, Screen, Tone},
    render::{Cell, Table, plain},
    stack::Stack,
    status::Health,
};

/// Commands for the functions that consume Fieldstation's events.
#[derive(Debug, Subcommand)]
pub enum Consumers {
    /// Lists the consumers, and whether they get events.
    List,
    /// Shows how far each consumer is behind. Exit code 1 if one is more than a minute behind, gets no events, or could
    /// not be measured.
    Lag,
    /// Rebuilds a consumer's rows from the event log. Readers see the old rows until the new ones are complete.
    Replay(replay::Options),
}

impl Consumers {
    /// Runs the command.
    pub async fn run(self, stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
        match self {
            Self::List => list(screen, &consumers::list(stack).await?),
            Self::Lag => {
                let progress = Progress::spinner();
                progress.show("reading metrics and the stream");
                let lags = consumers::lag(stack, screen.now).await;
                progress.clear();
                lag(screen, &lags?)
            }
            Self::Replay(options) => replay::run(stack, screen, &options).await,
        }
    }
}

fn list(screen: &mut Screen, consumers: &[Consumer]) -> Result<Exit, CliError> {
    if screen.json {
        consumers.iter().try_for_each(|consumer| screen.entry(consumer))?;
        return Ok(Exit::Done);
    }
    let row = |it: &Consumer| {
        let inputs: Vec<_> = it.inputs.iter().map(|input| input.name.clone()).collect();
        let results = it.inputs.iter().filter_map(|input| input.last_result.clone());
        let results: Vec<_> = results.collect();
        vec![
            state(&it.state),
            (it.function.to_owned(), Tone::Strong),
            plain(it.source),
            plain(it.mode),
            plain(if it.replayable { "yes" } else { "no" }),
            plain(inputs.join(", ")),
            plain(results.join(", ")),
        ]
    };
    let rows: Vec<_> = consumers.iter().map(row).collect();
    let titles =
        ["STATE", "CONSUMER", "SOURCE", "MODE", "REPLAYABLE", "RULE OR MAPPING", "LAST RESULT"];
    Table::new(titles).page(screen, &rows)?;
    Ok(Exit::Done)
}

fn state(state: &str) -> Cell {
    (state.to_owned(), if runs(state) { Tone::Good } else { Tone::Bad })
}

fn lag(screen: &mut Screen, lags: &[Lag]) -> Result<Exit, CliError> {
    if screen.json {
        lags.iter().try_for_each(|lag| screen.entry(lag))?;
    } else {
        let row = |it: &Lag| {
            let (symbol, tone) = match it.health {
                Health::Good => ("✔", Tone::Good),
                Health::Unknown => ("?", Tone::Warn),
                Health::Problem => ("✘", Tone::Bad),
            };
            let next = it.next.as_ref().map(|next| format!("→ {next}"));
            let more: Vec<_> = it.details.iter().cloned().chain(next).collect();
            vec![
                (symbol.to_owned(), tone),
                (it.function.to_owned(), Tone::Strong),
                plain(it.source),
                state(&it.state),
                (it.summary.clone(), tone),
                plain(more.join("; ")),
            ]
        };
        let rows: Vec<_> = lags.iter().map(row).collect();
        Table::new(["", "CONSUMER", "SOURCE", "STATE", "LAG", ""]).page(screen, &rows)?;
    }
    let all_good = lags.iter().all(|lag| lag.health == Health::Good);
    Ok(if all_good { Exit::Done } else { Exit::Failed })
}
