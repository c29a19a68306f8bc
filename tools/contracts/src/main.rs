//! Checks the contracts against the released schemas. With the argument `release`, adds the schemas that are new or
//! changed first.

use std::{io, process::ExitCode};

use contracts_gate::Contracts;

fn main() -> io::Result<ExitCode> {
    let contracts = Contracts::of_this_repository();
    if std::env::args().nth(1).as_deref() == Some("release") {
        for path in contracts.release()? {
            println!("released {path}");
        }
    }
    let problems = contracts.check()?;
    for problem in &problems {
        eprintln!("{problem}");
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
