//! Performance targets of the functions.

use crate::{
    figures::{Measured, Run},
    measure::Figures,
    report::{first_response, growth, peer_ratio},
};

const MILLION: f64 = 1e6;

/// A target with its result.
#[derive(Debug, PartialEq)]
pub struct Target {
    what: String,
    bound: f64,
    unit: &'static str,
    /// The function or peer with the worst value, and that value. `None` if it was not measured.
    worst: Option<(String, f64)>,
    /// The number of functions that meet the target, and the number of measured functions.
    met_by: Option<(usize, usize)>,
    /// Whether the bound is a minimum.
    at_least: bool,
}

impl Target {
    /// Returns the row for the report.
    pub fn row(&self) -> [String; 4] {
        let Self { what, bound, unit, .. } = self;
        let least = if self.at_least { "at least " } else { "" };
        [
            what.clone(),
            format!("{least}{bound} {unit}"),
            self.worst.as_ref().map_or("not measured".to_owned(), |(name, value)| {
                format!("{value:.2} {unit} ({name})")
            }),
            match (self.met(), self.met_by) {
                (None, _) => "-".to_owned(),
                (Some(true), _) => "yes".to_owned(),
                (Some(false), Some((some, all))) if some > 0 => format!("{some} of {all}"),
                (Some(false), _) => "no".to_owned(),
            },
        ]
    }

    fn met(&self) -> Option<bool> {
        let (_, value) = self.worst.as_ref()?;
        Some(if self.at_least { *value >= self.bound } else { *value <= self.bound })
    }
}

/// Returns all targets with their results.
pub fn all(run: &Run) -> Vec<Target> {
    let mut targets = Vec::new();
    for (clients, instructions, binary, zip) in
        [(ClientCount::One, 4.0, 4.5, 2.2), (ClientCount::More, 8.0, 6.0, 3.0)]
    {
        let at_most = |what: &str, bound, unit, of: fn(&Measured) -> Option<f64>| {
            at_most(run, format!("{what}{}", clients.suffix()), bound, unit, |one| {
                clients.includes(one).then(|| of(one))?
            })
        };
        targets.extend([
            at_most("start to /next", instructions, "M instructions", |one| {
                Some(millions(one.figures.instructions?.to_next))
            }),
            at_most("binary", binary, "MB", |one| one.figures.code_bytes.map(millions)),
            at_most("zip", zip, "MB", |one| one.figures.zip_bytes.map(millions)),
        ]);
    }
    targets.extend([
        at_most(
            run,
            "start to first response, functions with a single write",
            12.0,
            "M instructions",
            |one| {
                (ClientCount::One.includes(one) && writes_once(&one.figures.calls))
                    .then(|| first_response(&one.figures))?
                    .map(|it| it / MILLION)
            },
        ),
        at_least_times(
            run,
            "the same, compared with the SDK's defaults",
            35.0,
            "rust-defaults",
            first_response,
        ),
        at_most(
            run,
            "first invocation with the CPU of 128 MB, connection opened in init",
            5.0,
            "ms",
            |one| {
                (ClientCount::One.includes(one) && one.figures.connects_in_init)
                    .then_some(one.figures.milliseconds_under_quota?.first)
            },
        ),
        at_most(run, "the same, with more clients", 15.0, "ms", |one| {
            ClientCount::More.includes(one).then_some(one.figures.milliseconds_under_quota?.first)
        }),
        at_most(run, "peak memory after 1,000 invocations", 10.0, "MB", |one| {
            Some(millions(one.figures.peak_bytes))
        }),
        at_most(run, "memory growth from 1,000 to 10,000 invocations", 5.0, "%", |one| {
            growth(&one.figures)
        }),
        Target {
            what: "peak memory with a batch of 10,000 records".to_owned(),
            bound: 40.0,
            unit: "MB",
            worst: run
                .largest_batch
                .map(|it| ("store-readings".to_owned(), millions(it.peak_bytes))),
            met_by: None,
            at_least: false,
        },
        at_most(run, "warm invocation with a single write", 0.55, "M instructions", |one| {
            let warm = millions(one.figures.instructions?.warm);
            (ClientCount::One.includes(one) && writes_once(&one.figures.warm_calls)).then_some(warm)
        }),
        at_least_times(run, "Powertools for Python: start to /next", 10.0, "python", |it| {
            Some(it.milliseconds.start)
        }),
        at_least_times(run, "Powertools for Python: peak memory", 5.0, "python", |it| {
            Some(millions(it.peak_bytes))
        }),
        at_least_times(run, "Powertools for Python: CPU of an invocation", 10.0, "python", |it| {
            Some(it.cpu_micros)
        }),
    ]);
    targets
}

/// The number of services that a function may call.
#[derive(Clone, Copy)]
enum ClientCount {
    One,
    More,
}

impl ClientCount {
    fn includes(self, one: &Measured) -> bool {
        matches!(self, Self::More) == (one.clients > 1)
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::One => ", with one client",
            Self::More => ", with two to five clients",
        }
    }
}

fn at_most(
    run: &Run,
    what: impl Into<String>,
    bound: f64,
    unit: &'static str,
    of: impl Fn(&Measured) -> Option<f64>,
) -> Target {
    let values: Vec<_> =
        run.functions.iter().filter_map(|(name, one)| Some((name.clone(), of(one)?))).collect();
    let met_by = (values.iter().filter(|(_, value)| *value <= bound).count(), values.len());
    let worst = values.into_iter().max_by(|one, other| one.1.total_cmp(&other.1));
    Target { what: what.into(), bound, unit, worst, met_by: Some(met_by), at_least: false }
}

/// Returns the target that a peer's figure is at least `bound` times that of the step.
fn at_least_times(
    run: &Run,
    what: &str,
    bound: f64,
    peer: &str,
    of: fn(&Figures) -> Option<f64>,
) -> Target {
    let worst = peer_ratio(run, peer, of).map(|times| (peer.to_owned(), times));
    Target { what: what.to_owned(), bound, unit: "times", worst, met_by: None, at_least: true }
}

/// Returns whether the only call is one write to `DynamoDB`.
fn writes_once(calls: &crate::aws::Calls) -> bool {
    let writes = ["PutItem", "UpdateItem", "TransactWriteItems"];
    let is_write = |call: &String| {
        let mut words = call.split(' ');
        words.next() == Some("dynamodb") && words.next().is_some_and(|it| writes.contains(&it))
    };
    calls.values().sum::<u64>() == 1 && calls.keys().all(is_write)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn millions(number: u64) -> f64 {
    number as f64 / MILLION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_maximum_or_a_minimum() {
        let target = |value: f64, at_least| Target {
            what: String::new(),
            bound: 10.0,
            unit: "",
            worst: Some(("one".to_owned(), value)),
            met_by: None,
            at_least,
        };
        assert_eq!(target(9.9, false).met(), Some(true));
        assert_eq!(target(10.1, false).met(), Some(false));
        assert_eq!(target(9.9, true).met(), Some(false));
        assert_eq!(target(10.1, true).met(), Some(true));
    }

    #[test]
    fn only_a_single_write_counts_as_one_write() {
        let calls = |calls: &[(&str, u64)]| {
            writes_once(&calls.iter().map(|(call, count)| ((*call).to_owned(), *count)).collect())
        };
        assert!(calls(&[("dynamodb TransactWriteItems AlertingTable EventsTable", 1)]));
        assert!(!calls(&[("dynamodb PutItem SitesTable", 2)]));
        assert!(!calls(&[("dynamodb GetItem SitesTable", 1)]));
        assert!(!calls(&[("dynamodb PutItem SitesTable", 1), ("sqs SendMessage", 1)]));
    }
}
