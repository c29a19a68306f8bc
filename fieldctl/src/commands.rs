//! The commands, one file for each group.

pub mod events;
pub mod failures;
pub mod logs;
pub mod outputs;
pub mod readings;
pub mod sagas;
pub mod sites;
pub mod status;
pub mod subscriptions;
pub mod trace;

use std::{
    fs,
    io::{self, IsTerminal, Read},
    time::Duration,
};

use serde_json::Value;

use crate::{
    error::{CliError, Exit},
    output,
};

/// The interval at which a command checks something that it waits for.
pub const LOOK: Duration = Duration::from_secs(2);

/// Reads JSON from a file, or from standard input if `path` is `-`.
pub fn json_file(path: &str) -> Result<Value, CliError> {
    let mut text = String::new();
    let read = match path {
        "-" => io::stdin().read_to_string(&mut text).map(|_| ()),
        path => fs::read_to_string(path).map(|content| text = content),
    };
    read.map_err(|error| CliError::usage(format!("{path} can't be read: {error}")))?;
    if text.trim().is_empty() {
        return Err(CliError::usage(format!("{path} is empty")).advise("it has to hold JSON"));
    }
    serde_json::from_str(&text)
        .map_err(|error| CliError::usage(format!("{path} is no JSON: {error}")))
}

/// Asks whether to continue, unless `yes` was given on the command line.
pub fn confirm(question: &str, yes: bool) -> Result<(), CliError> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(CliError::usage("nobody can be asked, for this is no terminal")
            .advise("say --yes to go on without being asked"));
    }
    if output::ask(question)? {
        Ok(())
    } else {
        Err(CliError::new(Exit::Failed, "nothing was done"))
    }
}
