//! The commands, one file for each group.

pub mod audit;
pub mod consumers;
pub mod events;
pub mod failures;
pub mod keys;
pub mod logs;
pub mod operators;
pub mod outputs;
pub mod readings;
pub mod sagas;
pub mod sensors;
pub mod sites;
pub mod sources;
pub mod status;
pub mod subscriptions;
pub mod trace;

use std::{
    fs,
    io::{self, IsTerminal, Read},
    time::Duration,
};

use serde::de::DeserializeOwned;

use crate::{
    error::{CliError, Exit},
    output,
};

/// The interval between two polls of a command that waits, for example for the end of an onboarding.
pub const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Reads JSON from a file, or from standard input if `path` is `-`.
pub fn json_file<T: DeserializeOwned>(path: &str) -> Result<T, CliError> {
    let mut text = String::new();
    let read = match path {
        "-" => io::stdin().read_to_string(&mut text).map(|_| ()),
        path => fs::read_to_string(path).map(|content| text = content),
    };
    read.map_err(|error| CliError::usage(format!("{path} can't be read: {error}")))?;
    if text.trim().is_empty() {
        return Err(
            CliError::usage(format!("{path} is empty")).advise("the file must contain JSON")
        );
    }
    serde_json::from_str(&text)
        .map_err(|error| CliError::usage(format!("{path} is not valid JSON: {error}")))
}

/// Asks whether to continue, unless `yes` was given on the command line.
pub fn confirm(question: &str, yes: bool) -> Result<(), CliError> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(CliError::usage(
            "this command needs confirmation, but standard input is not a terminal",
        )
        .advise("run it again with --yes"));
    }
    if output::ask(question)? {
        Ok(())
    } else {
        Err(CliError::new(Exit::Failed, "cancelled: nothing was changed"))
    }
}
