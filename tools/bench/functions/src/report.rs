//! Tables for the terminal and for docs/performance.md.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::ASCII_MARKDOWN};

use crate::{
    aws::Calls,
    budget::ExceededFigure,
    figures::{Measured, Run},
    measure::{Figures, Milliseconds},
    peers::STEP,
    targets::Target,
};

/// Shown for a missing value.
const NONE: &str = "-";
const MB: f64 = 1e6;

/// Returns the tables of the functions: counted figures, then durations.
pub fn functions(run: &Run) -> String {
    let mut counted = table([
        "function",
        "clients",
        "start to /next, M instructions",
        "to first response",
        "warm invocation",
        "peak memory, MB",
        "binary, MB",
        "zip, MB",
        "first invocation calls",
        "warm calls",
        "write units",
    ]);
    let mut timed = table([
        "function",
        "memory, MB",
        "start to /next, ms",
        "first invocation",
        "warm",
        "first, at 128 MB",
        "warm, at 128 MB",
        "CPU, µs",
        "growth over 10,000",
    ]);
    for (name, one) in &run.functions {
        counted.add_row(counted_row(name, one));
        timed.add_row(timed_row(name, one));
    }
    align(&mut counted, &[0, 8]);
    align(&mut timed, &[0]);
    let batch = run.largest_batch.map_or(String::new(), |batch| {
        format!(
            "\nstore-readings with a batch of {} records, each of another site, with one sample of one \
             sensor: peak memory {} MB, {} s.\n",
            batch.records,
            megabytes(batch.peak_bytes),
            batch.seconds,
        )
    });
    let no_quota = run.no_quota.as_ref().map_or(String::new(), |reason| {
        format!("\nNot measured with the CPU share of 128 MB: {reason}.\n")
    });
    format!("{counted}\n\n{timed}\n{batch}{no_quota}")
}

fn counted_row(name: &str, one: &Measured) -> Vec<String> {
    let Measured { clients, write_units, figures, .. } = one;
    let counted = |of: fn(&crate::instructions::Instructions) -> u64| {
        figures.instructions.as_ref().map_or(NONE.to_owned(), |all| millions(of(all)))
    };
    vec![
        name.to_owned(),
        clients.to_string(),
        counted(|all| all.to_next),
        counted(|all| all.to_first_answer),
        counted(|all| all.warm),
        megabytes(figures.peak_bytes),
        figures.code_bytes.map_or(NONE.to_owned(), megabytes),
        figures.zip_bytes.map_or(NONE.to_owned(), megabytes),
        operations(&figures.calls),
        if figures.warm_calls == figures.calls {
            "the same".to_owned()
        } else {
            operations(&figures.warm_calls)
        },
        write_units.to_string(),
    ]
}

fn timed_row(name: &str, one: &Measured) -> Vec<String> {
    let Figures { milliseconds, milliseconds_under_quota: quota, .. } = &one.figures;
    let under = |of: fn(&Milliseconds) -> f64| {
        quota.as_ref().map_or(NONE.to_owned(), |it| two_decimals(of(it)))
    };
    vec![
        name.to_owned(),
        one.memory_mb.to_string(),
        two_decimals(milliseconds.start),
        two_decimals(milliseconds.first),
        two_decimals(milliseconds.warm),
        under(|it| it.first),
        under(|it| it.warm),
        format!("{:.0}", one.figures.cpu_micros),
        growth(&one.figures).map_or(NONE.to_owned(), |growth| format!("{growth:.1} %")),
    ]
}

/// Returns the growth of the memory from 1,000 to 10,000 invocations, in percent.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub fn growth(figures: &Figures) -> Option<f64> {
    let [few, many] = figures.resident_bytes?;
    Some(100.0 * (many as f64 / few as f64 - 1.0))
}

/// Lists the number of calls of each operation, such as `GetItem, 2 PutItem`.
fn operations(calls: &Calls) -> String {
    let mut by_operation = BTreeMap::<&str, u64>::new();
    for (call, count) in calls {
        let (service, operation) = call.split_once(' ').unwrap_or(("", call));
        let operation = match service {
            "stripe" => "Stripe",
            "s3" => "S3",
            _ => operation.split(' ').next().unwrap_or(operation),
        };
        *by_operation.entry(operation).or_default() += count;
    }
    let listed = by_operation.into_iter().map(|(operation, count)| match count {
        1 => operation.to_owned(),
        count => format!("{count} {operation}"),
    });
    let listed: Vec<_> = listed.collect();
    if listed.is_empty() { "none".to_owned() } else { listed.join(", ") }
}

/// Name, value and format of a figure. Smaller values are better.
type Figure = (&'static str, fn(&Figures) -> Option<f64>, fn(f64) -> String);

/// The figures that are compared with the peers.
const COMPARED: [Figure; 13] = [
    ("start to /next, ms", |it| Some(it.milliseconds.start), two_decimals),
    ("first invocation, ms", |it| Some(it.milliseconds.first), two_decimals),
    ("warm invocation, ms", |it| Some(it.milliseconds.warm), two_decimals),
    (
        "first, with the CPU of 128 MB, ms",
        |it| Some(it.milliseconds_under_quota?.first),
        two_decimals,
    ),
    (
        "warm, with the CPU of 128 MB, ms",
        |it| Some(it.milliseconds_under_quota?.warm),
        two_decimals,
    ),
    ("start to /next, M instructions", |it| Some(count(it.instructions?.to_next)), in_millions),
    ("start to first response, M instructions", first_response, in_millions),
    ("warm invocation, M instructions", |it| Some(count(it.instructions?.warm)), in_millions),
    ("CPU of an invocation, µs", |it| Some(it.cpu_micros), |micros| format!("{micros:.0}")),
    ("peak memory, MB", |it| Some(count(it.peak_bytes)), in_millions),
    ("package, MB", |it| it.code_bytes.map(count), in_millions),
    ("package zipped, MB", |it| it.zip_bytes.map(count), in_millions),
    ("calls of a warm invocation", warm_calls, |calls| format!("{calls:.0}")),
];

/// Returns the table of the step and its peers, with the ratio of each figure.
pub fn peers(run: &Run) -> String {
    let Some(ours) = run.functions.get(STEP) else { return String::new() };
    let mut header = vec!["figure".to_owned(), STEP.to_owned()];
    for name in run.peers.keys() {
        header.extend([name.clone(), "ratio".to_owned()]);
    }
    let mut table = table(header);
    for (figure, of, format) in COMPARED {
        let our = of(&ours.figures);
        let mut row = vec![figure.to_owned(), our.map_or(NONE.to_owned(), format)];
        for peer in run.peers.values() {
            let their = of(peer);
            row.push(their.map_or(NONE.to_owned(), format));
            let times = our.zip(their).map(|(our, their)| their / our);
            row.push(times.map_or(NONE.to_owned(), |times| format!("{times:.1}")));
        }
        table.add_row(row);
    }
    align(&mut table, &[0]);
    let calls = run.peers.iter().map(|(name, peer)| {
        let (first, warm) = (operations(&peer.calls), operations(&peer.warm_calls));
        if first == warm {
            format!("Calls of {name} in each invocation: {first}.\n")
        } else {
            format!("Calls of {name}: {first} in the first invocation, {warm} in a warm one.\n")
        }
    });
    format!("{table}\n\n{}", calls.collect::<String>())
}

/// Returns the ratio of a peer's figure to that of the step.
pub fn peer_ratio(run: &Run, peer: &str, of: fn(&Figures) -> Option<f64>) -> Option<f64> {
    Some(of(run.peers.get(peer)?)? / of(&run.functions.get(STEP)?.figures)?)
}

/// Returns the instructions from the start to the first response.
pub fn first_response(figures: &Figures) -> Option<f64> {
    Some(count(figures.instructions?.to_first_answer))
}

#[expect(clippy::unnecessary_wraps, reason = "one of many figures")]
fn warm_calls(figures: &Figures) -> Option<f64> {
    Some(count(figures.warm_calls.values().sum()))
}

/// Returns the table of the targets and their results.
pub fn targets(targets: &[Target]) -> String {
    let mut table = table(["target", "limit", "measured", "met"]);
    for target in targets {
        table.add_row(target.row());
    }
    format!("{table}\n")
}

/// Returns the table of the figures that exceed their budget.
pub fn exceeded(exceeded: &[ExceededFigure]) -> String {
    let mut table = table(["function", "figure", "budget", "measured", "excess"]);
    for ExceededFigure { function, figure, budget, now } in exceeded {
        table.add_row([
            function.clone(),
            figure.clone(),
            budget.map_or(NONE.to_owned(), |budget| budget.to_string()),
            now.to_string(),
            budget.map_or("new".to_owned(), |budget| {
                format!("{:.1} %", 100.0 * (now / budget - 1.0))
            }),
        ]);
    }
    format!("{table}\n")
}

fn table<T: Into<comfy_table::Cell>>(header: impl IntoIterator<Item = T>) -> Table {
    let mut table = Table::new();
    // Markdown table rows must not be wrapped.
    table.load_style(ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.into_iter().map(Into::into).collect::<Vec<comfy_table::Cell>>());
    table
}

/// Aligns all columns to the right, except these.
fn align(table: &mut Table, left_aligned: &[usize]) {
    for (index, column) in table.column_iter_mut().enumerate() {
        if !left_aligned.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn count(number: u64) -> f64 {
    number as f64
}

fn in_millions(number: f64) -> String {
    two_decimals(number / MB)
}

fn millions(number: u64) -> String {
    in_millions(count(number))
}

/// Formats bytes in megabytes of a million bytes.
fn megabytes(bytes: u64) -> String {
    millions(bytes)
}

fn two_decimals(number: f64) -> String {
    format!("{number:.2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_operation() {
        let calls = Calls::from([
            ("dynamodb GetItem BillingTable".to_owned(), 2),
            ("stripe POST /v1/customers".to_owned(), 1),
            ("stripe POST /v1/subscriptions".to_owned(), 1),
            ("states SendTaskSuccess".to_owned(), 1),
        ]);
        assert_eq!(operations(&calls), "2 GetItem, SendTaskSuccess, 2 Stripe");
    }
}
