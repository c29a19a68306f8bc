//! A progress bar on a terminal. Without a terminal, a plain line after each quarter.

use std::io::{IsTerminal, stdout};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The number of plain lines.
const LINES: usize = 4;

/// Shows the progress of a task.
#[derive(Debug)]
pub struct Meter {
    what: &'static str,
    total: usize,
    done: usize,
    bar: Option<ProgressBar>,
}

impl Meter {
    /// Creates a meter for `total` units. `what` is their plural.
    #[must_use]
    pub fn new(what: &'static str, total: usize) -> Self {
        let bar = stdout().is_terminal().then(|| {
            let target = ProgressDrawTarget::stdout();
            let template = "  {prefix} [{bar:40}] {pos}/{len} {elapsed:>4}";
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> ");
            let bar = ProgressBar::with_draw_target(Some(total as u64), target);
            bar.with_style(style).with_prefix(what)
        });
        Self { what, total, done: 0, bar }
    }

    /// Counts one more unit as done.
    pub fn step(&mut self) {
        self.done += 1;
        let Self { what, total, done, bar } = self;
        match bar {
            Some(bar) if done == total => bar.abandon(),
            Some(bar) => bar.set_position(*done as u64),
            None if *done * LINES / *total != (*done - 1) * LINES / *total => {
                terminal::print(format_args!("  {what} {done}/{total}"));
            }
            None => {}
        }
    }
}
