//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::{
    commands::{
        audit::Audit, consumers::Consumers, events::Events, failures::Failures, keys::Keys,
        logs::Logs, operators::Operators, outputs::Outputs, readings::Readings, sagas::Sagas,
        sensors::Sensors, sites::Sites, sources::Sources, status, subscriptions, trace::Trace,
    },
    output::Screen,
    stack::Target,
};

/// Shows what a Fieldstation environment does and what failed in it, and repairs it.
#[derive(Debug, Parser)]
#[command(
    name = "fieldctl",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done; 1 failed at least in part; 2 wrong usage; 3 not found; \
                  4 refused by the service; 5 AWS or the API can't be reached or denies access; \
                  6 the outcome is not known yet.\n\n\
                  Commands that call the API use the key in FIELDSTATION_API_KEY, or else the one in \
                  ~/.config/fieldstation/keys.json. If there is none, fieldctl creates an \
                  administrator's key with the first administrator's secret and writes it to that \
                  file.\n\n\
                  On the local stack: fieldctl --endpoint-url http://127.0.0.1:4566 --stack \
                  fieldstation-local ..."
)]
pub struct Cli {
    /// The environment.
    #[command(flatten)]
    pub target: Target,
    /// The options for the output.
    #[command(flatten)]
    pub output: OutputOptions,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The options for the output.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Global options")]
pub struct OutputOptions {
    /// Print only JSON on standard output. A list is printed as one line for each entry.
    #[arg(long, global = true)]
    pub json: bool,
    /// When to use colours: auto (on a terminal, unless NO_COLOR is set), always or never.
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_possible_values = true
    )]
    pub color: Color,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl OutputOptions {
    /// Opens standard output with these settings.
    #[must_use]
    pub fn screen(self) -> Screen {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let color = match self.color {
            Color::Always => Some(true),
            Color::Never => Some(false),
            Color::Auto => no_color.then_some(false),
        };
        Screen::open(self.json, color)
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Checks the whole environment: what needs attention, and what to do about it.
    Status(status::Options),
    /// Monitoring sites: list, show, health, onboard, update, migrate, teardown.
    #[command(subcommand)]
    Sites(Sites),
    /// The sensors of a site and their metadata: list, show, revisions, update.
    #[command(subcommand)]
    Sensors(Sensors),
    /// Shows the history of a site in chronological order: events, sagas, failures.
    Trace(Trace),
    /// Executions of the state machines: what is stuck, what failed, recovery.
    #[command(subcommand)]
    Sagas(Sagas),
    /// The event log.
    #[command(subcommand)]
    Events(Events),
    /// The functions that consume events: list, lag, replay.
    #[command(subcommand)]
    Consumers(Consumers),
    /// The sources of appended events, and their operators: list, release, transfer.
    #[command(subcommand)]
    Sources(Sources),
    /// Sensors' readings: send, get, plot.
    #[command(subcommand)]
    Readings(Readings),
    /// Differences between the payment provider's subscriptions and the billing table.
    Subscriptions(subscriptions::Options),
    /// Failed work: list, groups, show, replay, discard.
    #[command(subcommand)]
    Failures(Failures),
    /// Logs of the functions and state machines: of a site, of a function, only errors, live.
    Logs(Logs),
    /// Operators, the organisations that run sites: list, show, create, update, suspend, resume.
    #[command(subcommand)]
    Operators(Operators),
    /// API keys: list, create, rotate, revoke.
    #[command(subcommand)]
    Keys(Keys),
    /// The audit trail: who did which administrative action.
    #[command(subcommand)]
    Audit(Audit),
    /// Prints the API's URL, and the names of the bus, the readings stream, most tables and more.
    Outputs(Outputs),
    /// Prints a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_definition_is_valid() {
        Cli::command().debug_assert();
    }
}
