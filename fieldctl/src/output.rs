//! Everything that `fieldctl` prints passes through here, and nothing else may print (a rule of
//! `testkit` checks that). Data comes from outside, so each piece of it is escaped: see `terminal`.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    time::Duration,
};

use clap::error::Error as UsageError;
use console::{Style, Term, measure_text_width, truncate_str};
use contracts::Timestamp;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::{
    error::{CliError, Exit},
    text::{short, wrap},
};

/// A terminal of fewer columns shows the first digits of ids in lists.
const MIN_WIDTH_OF_IDS: usize = 120;

/// What a text means to who reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// As it is.
    #[default]
    Plain,
    /// A title, or what the eye should find first.
    Strong,
    /// Context.
    Faint,
    /// Went well.
    Good,
    /// Waits, or was repeated.
    Warn,
    /// Failed.
    Bad,
}

/// A piece of a line that is safe to print: escaped data, with colours that only this module adds. There is no other
/// way to make one than to escape a text.
#[derive(Clone, Debug, Default)]
pub struct Text(String);

impl Text {
    /// Appends a text.
    #[must_use]
    pub fn then(mut self, text: impl Into<Self>) -> Self {
        self.0 += &text.into().0;
        self
    }

    /// Appends so many spaces.
    #[must_use]
    pub fn gap(mut self, columns: usize) -> Self {
        self.0.extend(std::iter::repeat_n(' ', columns));
        self
    }

    /// The columns that it takes on a terminal.
    #[must_use]
    pub fn width(&self) -> usize {
        measure_text_width(&self.0)
    }

    /// Cuts it to so many columns.
    #[must_use]
    pub fn cut(&self, columns: usize) -> Self {
        Self(truncate_str(&self.0, columns, "…").into_owned())
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(terminal::line(text).into_owned())
    }
}

impl From<&String> for Text {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

/// Standard output.
pub struct Screen {
    out: Box<dyn Write>,
    /// Machine-readable output, and nothing else.
    pub json: bool,
    /// With ANSI colours.
    color: bool,
    /// Columns of the terminal; none where it is no terminal, and nothing is cut.
    pub width: Option<usize>,
    /// The time that ages are reckoned from.
    pub now: Timestamp,
}

impl Screen {
    /// Opens standard output. `color` is `None` for colours on a terminal alone.
    #[must_use]
    pub fn open(json: bool, color: Option<bool>) -> Self {
        let out = io::stdout();
        let is_terminal = out.is_terminal();
        let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        let width = columns.or_else(|| is_terminal.then(|| usize::from(Term::stdout().size().1)));
        let color = color.unwrap_or(is_terminal) && !json;
        Self { out: Box::new(out.lock()), json, color, width, now: Timestamp::now() }
    }

    /// The text in that tone.
    #[must_use]
    pub fn paint(&self, tone: Tone, text: impl Into<Text>) -> Text {
        let text = text.into();
        let style = Style::new().force_styling(self.color);
        let style = match tone {
            Tone::Plain => return text,
            Tone::Strong => style.bold(),
            Tone::Faint => style.dim(),
            Tone::Good => style.green(),
            Tone::Warn => style.yellow(),
            Tone::Bad => style.red().bold(),
        };
        Text(style.apply_to(text.0).to_string())
    }

    /// An id as a list shows it: whole, or its first digits on a terminal too narrow for it. Commands accept both.
    #[must_use]
    pub fn id(&self, id: &(impl ToString + ?Sized)) -> String {
        if self.width.is_some_and(|width| width < MIN_WIDTH_OF_IDS) {
            short(id)
        } else {
            id.to_string()
        }
    }

    /// Prints a line of text.
    pub fn line(&mut self, text: impl Into<Text>) -> Result<(), CliError> {
        Ok(writeln!(self.out, "{}", text.into().0.trim_end())?)
    }

    /// Prints a JSON document; indented where it is the only one.
    pub fn document(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(value).map_err(no_json)?;
        Ok(writeln!(self.out, "{}", terminal::lines(&text))?)
    }

    /// Prints an entry of JSON lines.
    pub fn entry(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string(value).map_err(no_json)?;
        Ok(writeln!(self.out, "{}", terminal::lines(&text))?)
    }

    /// Prints a script for a shell, generated from the command line's definition; no data is in it.
    pub fn script(&mut self, script: &[u8]) -> Result<(), CliError> {
        Ok(self.out.write_all(script)?)
    }

    /// Flushes what was printed so far.
    pub fn flush(&mut self) -> Result<(), CliError> {
        Ok(self.out.flush()?)
    }

    /// Prints a name and its value, wrapped below it.
    pub fn field(&mut self, name: &str, tone: Tone, value: &str) -> Result<(), CliError> {
        const NAME: usize = 13;
        for (index, part) in wrap(value, self.width.map(|width| width.saturating_sub(NAME + 1)))
            .into_iter()
            .enumerate()
        {
            let name = self.paint(Tone::Faint, if index == 0 { name } else { "" });
            let gap = NAME.saturating_sub(name.width()) + 1;
            let value = self.paint(tone, &part);
            self.line(name.gap(gap).then(value))?;
        }
        Ok(())
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn no_json(error: serde_json::Error) -> CliError {
    CliError::new(Exit::Failed, format!("the output is no JSON: {error}"))
}

/// Prints why something failed on standard error.
pub fn complain(trouble: &CliError) {
    terminal::print_error(format_args!("fieldctl: {trouble}"));
}

/// Prints clap's help, or its complaint about the arguments, which quotes them. Returns the exit code.
#[must_use]
pub fn usage(error: &UsageError) -> u8 {
    if error.use_stderr() {
        terminal::print_error(error.render().to_string().trim_end());
        return Exit::Usage as u8;
    }
    match error.print() {
        Ok(()) => Exit::Done as u8,
        Err(error) => CliError::from(error).exit as u8,
    }
}

/// Asks a question on standard error. Returns whether the answer is yes.
pub fn ask(question: &str) -> io::Result<bool> {
    let mut answer = String::new();
    eprint!("{} [y/N] ", terminal::line(question));
    io::stderr().flush()?;
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Something that moves on standard error while the command waits; nothing off a terminal.
pub struct Progress(ProgressBar);

impl Progress {
    /// Starts a spinner.
    #[must_use]
    pub fn spinner() -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(bar)
    }

    /// Starts a bar of so many steps.
    #[must_use]
    pub fn bar(steps: usize) -> Self {
        let bar = ProgressBar::new(u64::try_from(steps).unwrap_or(u64::MAX));
        let template =
            "{bar:40} {pos}/{len} {per_sec}, {eta} left; Ctrl-C ends what is under way {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// Shows what is waited for.
    pub fn show(&self, text: impl Into<Text>) {
        self.0.set_message(text.into().0);
    }

    /// Counts a step.
    pub fn step(&self) {
        self.0.inc(1);
    }

    /// Hides it while `f` prints.
    pub fn suspend<R>(&self, f: impl FnOnce() -> R) -> R {
        self.0.suspend(f)
    }

    /// Ends it and clears its line.
    pub fn clear(&self) {
        self.0.finish_and_clear();
    }
}
