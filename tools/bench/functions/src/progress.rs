//! How far it has come: a bar on a terminal, a line each elsewhere.

use std::{
    io::{IsTerminal, stderr},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

/// The bar.
pub struct Progress(ProgressBar);

impl Progress {
    /// So many things are to be measured.
    pub fn new(all: usize) -> Self {
        let bar = ProgressBar::new(all as u64);
        let style = ProgressStyle::with_template("  [{bar:30}] {pos}/{len} {elapsed:>4} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// This is measured next.
    pub fn begin(&self, name: &str) {
        self.0.set_message(name.to_owned());
        if !stderr().is_terminal() {
            eprintln!("  {name} ({} s)", self.0.elapsed().as_secs());
        }
    }

    /// It is measured.
    pub fn done(&self) {
        self.0.inc(1);
    }

    /// All are.
    pub fn end(&self) {
        self.0.finish_and_clear();
    }
}
