//! The progress of each site: a bar per site on a terminal, otherwise a line per change.

use std::{
    io::{IsTerminal, stdout},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The progress lines.
pub enum ProgressBoard {
    Terminal(Vec<ProgressBar>),
    Plain { names: Vec<String>, shown: Vec<String> },
}

impl ProgressBoard {
    /// Creates a line for each name. `steps` is the length of the bars.
    pub fn new(names: &[&str], steps: usize) -> Self {
        if !stdout().is_terminal() {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            return Self::Plain { shown: vec![String::new(); names.len()], names };
        }
        let lines = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        let template = "  {spinner} {prefix:28} [{bar:15}] {elapsed:>4} {msg}";
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        let bars = names.iter().map(|name| {
            let bar = lines.add(ProgressBar::new(steps as u64));
            bar.set_style(style.clone());
            bar.set_prefix(terminal::line(name).into_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self::Terminal(bars.collect())
    }

    /// Shows the progress of the line at `index`.
    pub fn show(&mut self, index: usize, done: usize, state: &str) {
        match self {
            Self::Terminal(bars) => {
                bars[index].set_position(done as u64);
                bars[index].set_message(terminal::line(state).into_owned());
            }
            Self::Plain { names, shown } => {
                if shown[index] != state {
                    terminal::print(format_args!("  {:28} {state}", names[index]));
                    state.clone_into(&mut shown[index]);
                }
            }
        }
    }

    /// Shows the final state of the line at `index`.
    pub fn finish(&mut self, index: usize, done: usize, state: &str) {
        self.show(index, done, state);
        if let Self::Terminal(bars) = self {
            bars[index].abandon();
        }
    }
}
