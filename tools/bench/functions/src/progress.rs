//! Progress of the run: a bar on a terminal, otherwise a line per function or peer.

use std::{
    io::{IsTerminal, stderr},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

/// The progress bar.
pub struct Progress(ProgressBar);

impl Progress {
    /// Creates the bar for this number of measurements.
    pub fn new(total: usize) -> Self {
        let bar = ProgressBar::new(total as u64);
        let style = ProgressStyle::with_template("  [{bar:30}] {pos}/{len} {elapsed:>4} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// Shows the measurement that starts.
    pub fn start(&self, name: &str) {
        self.0.set_message(name.to_owned());
        if !stderr().is_terminal() {
            eprintln!("  {name} ({} s)", self.0.elapsed().as_secs());
        }
    }

    /// Counts a completed measurement.
    pub fn done(&self) {
        self.0.inc(1);
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}
