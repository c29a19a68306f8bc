//! The binary `fieldctl`: parses the command line, finds the stack and runs the command.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use fieldctl::{
    cli::{Cli, Command},
    error::{CliError, Exit},
    output,
    stack::Stack,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(output::print_clap(&error)),
    };
    let exit = match run(cli).await {
        Ok(exit) => exit,
        Err(error) => {
            if !error.message.is_empty() {
                output::print_error(&error);
            }
            error.exit
        }
    };
    ExitCode::from(exit as u8)
}

async fn run(cli: Cli) -> Result<Exit, CliError> {
    let mut screen = cli.output.screen();
    let screen = &mut screen;
    if let Command::Completions { shell } = cli.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "fieldctl", &mut script);
        screen.script(&script)?;
        return Ok(Exit::Done);
    }
    let stack = Stack::connect(&cli.target).await?;
    let exit = match cli.command {
        Command::Status(options) => options.run(&stack, screen).await,
        Command::Logs(command) => command.run(&stack, screen).await,
        Command::Sites(command) => command.run(&stack, screen).await,
        Command::Sensors(command) => command.run(&stack, screen).await,
        Command::Trace(command) => command.run(&stack, screen).await,
        Command::Sagas(command) => command.run(&stack, screen).await,
        Command::Events(command) => command.run(&stack, screen).await,
        Command::Consumers(command) => command.run(&stack, screen).await,
        Command::Sources(command) => command.run(&stack, screen).await,
        Command::Readings(command) => command.run(&stack, screen).await,
        Command::Subscriptions(options) => options.run(&stack, screen).await,
        Command::Failures(command) => command.run(&stack, screen).await,
        Command::Operators(command) => command.run(&stack, screen).await,
        Command::Keys(command) => command.run(&stack, screen).await,
        Command::Audit(command) => command.run(&stack, screen).await,
        Command::Outputs(command) => command.run(&stack, screen),
        Command::Completions { .. } => Ok(Exit::Done),
    }?;
    screen.flush()?;
    Ok(exit)
}
