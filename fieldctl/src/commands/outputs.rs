//! The command `fieldctl outputs`.

use clap::Args;

use crate::{
    error::{CliError, Exit},
    output::{Screen, Tone},
    render::{Table, plain},
    stack::Stack,
};

/// Prints the API's URL and the names that other systems use.
#[derive(Debug, Args)]
pub struct Outputs {
    /// Print only the value of this output, such as ApiUrl.
    name: Option<String>,
}

impl Outputs {
    /// Runs the command.
    pub fn run(self, stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
        let outputs = stack.outputs()?;
        if let Some(name) = self.name {
            let value = outputs.get(&name).ok_or_else(|| {
                let names: Vec<_> = outputs.keys().map(String::as_str).collect();
                CliError::not_found(format!(
                    "the environment {} has no output {name}",
                    stack.name()
                ))
                .advise(format!("the outputs are {}", names.join(", ")))
            })?;
            if screen.json { screen.document(value)? } else { screen.line(value)? }
        } else if screen.json {
            screen.document(&outputs)?;
        } else {
            let rows: Vec<_> = outputs
                .into_iter()
                .map(|(name, value)| vec![(name, Tone::Strong), plain(value)])
                .collect();
            Table::new(["OUTPUT", "VALUE"]).page(screen, &rows)?;
        }
        Ok(Exit::Done)
    }
}
