//! The command `fieldctl status`.

use clap::Args;

use crate::{
    error::{CliError, Exit},
    output::{Progress, Screen, Text, Tone},
    render::{Cell, Table, plain, wrap},
    stack::Stack,
    status::{Check, Function, Health, Status, status},
};

/// Checks the whole stack. Exit code 1 if something is wrong or could not be checked.
#[derive(Args, Clone, Copy, Debug)]
pub struct Options {
    /// Also list every function, consumer and queue.
    #[arg(long)]
    all: bool,
}

impl Options {
    /// Runs the command.
    pub async fn run(self, stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
        let progress = Progress::spinner();
        progress.show("checking the stack");
        let status = status(stack, screen.now).await;
        progress.clear();
        if screen.json {
            screen.document(&status)?;
        } else {
            show(screen, &status)?;
            if self.all {
                lists(screen, &status)?;
            }
        }
        Ok(if status.health == Health::Good { Exit::Done } else { Exit::Failed })
    }
}

fn show(screen: &mut Screen, status: &Status) -> Result<(), CliError> {
    let count = |health| status.checks.iter().filter(|check| check.health == health).count();
    let (problems, unknown) = (count(Health::Problem), count(Health::Unknown));
    let attention = if problems == 1 { "needs attention" } else { "need attention" };
    let verdict = match (problems, unknown) {
        (0, 0) => "no problems found".to_owned(),
        (0, unknown) => format!("{unknown} could not be checked"),
        (problems, 0) => format!("{problems} {attention}"),
        (problems, unknown) => {
            format!("{problems} {attention}, {unknown} could not be checked")
        }
    };
    let text = format!("{} in {}, {}: {verdict}", status.stack, status.region, status.at);
    screen.line(screen.paint(tone(status.health), &text))?;
    screen.line("")?;
    let width = status.checks.iter().map(|check| Text::from(check.name).width()).max();
    let width = width.unwrap_or_default();
    status.checks.iter().try_for_each(|check| line(screen, check, width))
}

fn line(screen: &mut Screen, check: &Check, width: usize) -> Result<(), CliError> {
    let symbol = match check.health {
        Health::Good => "✔",
        Health::Unknown => "?",
        Health::Problem => "✘",
    };
    let tone = tone(check.health);
    let indent = width + 4;
    let columns = screen.width.map(|width| width.saturating_sub(indent));
    let mut lines: Vec<(Tone, String)> = Vec::new();
    let summary = if check.health == Health::Good { Tone::Plain } else { tone };
    lines.extend(wrap(&check.summary, columns).into_iter().map(|part| (summary, part)));
    for detail in &check.details {
        lines.extend(wrap(detail, columns).into_iter().map(|part| (Tone::Plain, part)));
    }
    if let Some(next) = &check.next {
        lines.extend(
            wrap(&format!("→ {next}"), columns).into_iter().map(|part| (Tone::Strong, part)),
        );
    }
    for (index, (tone_of_part, part)) in lines.iter().enumerate() {
        let head = match index {
            0 => {
                let name = Text::from(check.name);
                let gap = width.saturating_sub(name.width()) + 2;
                screen.paint(tone, symbol).then(" ").then(name).gap(gap)
            }
            _ => Text::default().gap(indent),
        };
        screen.line(head.then(screen.paint(*tone_of_part, part)))?;
    }
    Ok(())
}

fn tone(health: Health) -> Tone {
    match health {
        Health::Good => Tone::Good,
        Health::Unknown => Tone::Warn,
        Health::Problem => Tone::Bad,
    }
}

fn lists(screen: &mut Screen, status: &Status) -> Result<(), CliError> {
    screen.line("")?;
    let rows: Vec<_> = status.functions.iter().map(function).collect();
    Table::new(["FUNCTION", "LIVE", "CALLS", "ERRORS", "FAILED ITEMS", "PUBLISHED", "CANARY"])
        .page(screen, &rows)?;
    screen.line("")?;
    let consumer = |it: &crate::status::Consumer| {
        let tone = if it.runs() { Tone::Good } else { Tone::Bad };
        vec![
            (it.state.clone(), tone),
            plain(it.source.clone()),
            plain(it.function.clone()),
            plain(it.uuid.clone()),
            plain(it.last_result.clone().unwrap_or_default()),
        ]
    };
    let rows: Vec<_> = status.consumers.iter().map(consumer).collect();
    Table::new(["STATE", "READS", "FUNCTION", "UUID", "LAST RESULT"]).page(screen, &rows)?;
    screen.line("")?;
    let rows = status.queues.iter().map(|it| {
        let age = it.oldest_seconds.map_or("-".to_owned(), |age| format!("{age:.0} s"));
        vec![
            plain(it.name.clone()),
            plain(it.waiting.to_string()),
            plain(it.delayed.to_string()),
            plain(it.in_flight.to_string()),
            plain(age),
        ]
    });
    let rows: Vec<_> = rows.collect();
    Table::new(["QUEUE", "WAITING", "DELAYED", "IN FLIGHT", "OLDEST"]).page(screen, &rows)
}

fn function(it: &Function) -> Vec<Cell> {
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.0}"));
    let errors = if it.errors.unwrap_or_default() > 0.0 { Tone::Bad } else { Tone::Plain };
    let canary = it.canary.as_ref();
    let canary = canary.map_or(String::new(), |(version, share)| {
        format!("version {version} gets {:.0} %", share * 100.0)
    });
    vec![
        plain(it.name.clone()),
        plain(it.version.clone()),
        plain(number(it.invocations)),
        (number(it.errors), errors),
        plain(number(it.failed_items)),
        (it.published.clone().unwrap_or_else(|| "?".to_owned()), Tone::Faint),
        (canary, Tone::Warn),
    ]
}
