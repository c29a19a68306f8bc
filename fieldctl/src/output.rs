//! All output of `fieldctl`. No other module may print; a rule test in `testkit` checks that. The printed data comes
//! from outside, so this module escapes it with the crate `terminal`.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    time::Duration,
};

use clap::error::Error as UsageError;
use console::{Style, Term, measure_text_width};
use contracts::Timestamp;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::{
    error::{CliError, Exit},
    text::{short, wrap},
};

/// The minimum width of a terminal for whole ids in lists. A narrower terminal shows only their first digits.
const MIN_WIDTH_FOR_IDS: usize = 120;

/// The meaning of a text, which decides its colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// No colour.
    #[default]
    Plain,
    /// A title, or what the reader should see first.
    Strong,
    /// Context.
    Faint,
    /// Success.
    Good,
    /// Waiting, or retried.
    Warn,
    /// Failure.
    Bad,
}

/// A part of a line that is safe to print: escaped data, with colours that only this module adds. It can only be
/// created by escaping a text.
#[derive(Clone, Debug, Default)]
pub struct Text(String);

impl Text {
    /// Appends a text.
    #[must_use]
    pub fn then(mut self, text: impl Into<Self>) -> Self {
        self.0 += &text.into().0;
        self
    }

    /// Appends `columns` spaces.
    #[must_use]
    pub fn gap(mut self, columns: usize) -> Self {
        self.0.extend(std::iter::repeat_n(' ', columns));
        self
    }

    /// Returns the number of columns on a terminal.
    #[must_use]
    pub fn width(&self) -> usize {
        measure_text_width(&self.0)
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
    /// Whether to print only machine-readable output.
    pub json: bool,
    /// Whether to print ANSI colours.
    color: bool,
    /// The number of columns, from the variable `COLUMNS` or from the terminal. `None` if there is neither. Then no
    /// text is wrapped, and ids are printed whole.
    pub width: Option<usize>,
    /// The current time, with which ages are computed.
    pub now: Timestamp,
}

impl Screen {
    /// Opens standard output. With `None` as `color`, colours are printed only on a terminal.
    #[must_use]
    pub fn open(json: bool, color: Option<bool>) -> Self {
        let out = io::stdout();
        let is_terminal = out.is_terminal();
        let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        let width = columns.or_else(|| is_terminal.then(|| usize::from(Term::stdout().size().1)));
        let color = color.unwrap_or(is_terminal) && !json;
        Self { out: Box::new(out.lock()), json, color, width, now: Timestamp::now() }
    }

    /// Returns the text with the colour of the tone.
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

    /// Returns an id as a list shows it: whole, or its first digits on a narrow terminal. Commands accept both.
    #[must_use]
    pub fn id(&self, id: &(impl ToString + ?Sized)) -> String {
        if self.width.is_some_and(|width| width < MIN_WIDTH_FOR_IDS) {
            short(id)
        } else {
            id.to_string()
        }
    }

    /// Prints a line of text.
    pub fn line(&mut self, text: impl Into<Text>) -> Result<(), CliError> {
        Ok(writeln!(self.out, "{}", text.into().0.trim_end())?)
    }

    /// Prints an indented JSON document.
    pub fn document(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(value).map_err(not_serializable)?;
        Ok(writeln!(self.out, "{}", terminal::lines(&text))?)
    }

    /// Prints an entry of a JSON Lines output.
    pub fn entry(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string(value).map_err(not_serializable)?;
        Ok(writeln!(self.out, "{}", terminal::lines(&text))?)
    }

    /// Prints a shell script that is generated from the command line's definition. The script contains no outside data,
    /// so it is not escaped.
    pub fn script(&mut self, script: &[u8]) -> Result<(), CliError> {
        Ok(self.out.write_all(script)?)
    }

    /// Flushes the output.
    pub fn flush(&mut self) -> Result<(), CliError> {
        Ok(self.out.flush()?)
    }

    /// Prints a name and its value. A long value is wrapped.
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
fn not_serializable(error: serde_json::Error) -> CliError {
    CliError::new(Exit::Failed, format!("the output can't be written as JSON: {error}"))
}

/// Prints an error on standard error.
pub fn print_error(error: &CliError) {
    terminal::print_error(format_args!("fieldctl: {error}"));
}

/// Prints on standard error what the user must know in addition to the output.
pub fn print_notice(text: &str) {
    terminal::print_error(format_args!("fieldctl: {}", terminal::line(text)));
}

/// Prints clap's help or usage error, and returns the exit code. An error is escaped, because it quotes the arguments.
#[must_use]
pub fn print_clap(error: &UsageError) -> u8 {
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

/// A progress indicator on standard error. It shows nothing if standard error is not a terminal.
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

    /// Starts a bar with the given number of steps. `note` says what Ctrl-C does.
    #[must_use]
    pub fn bar(steps: usize, note: &str) -> Self {
        let bar = ProgressBar::new(u64::try_from(steps).unwrap_or(u64::MAX));
        let template =
            format!("{{bar:40}} {{pos}}/{{len}} {{per_sec}}, {{eta}} left; {note} {{msg}}");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// Shows what the command waits for.
    pub fn show(&self, text: impl Into<Text>) {
        self.0.set_message(text.into().0);
    }

    /// Returns whether standard error is a terminal, so that the indicator is visible.
    #[must_use]
    pub fn is_shown(&self) -> bool {
        !self.0.is_hidden()
    }

    /// Counts a step.
    pub fn step(&self) {
        self.steps(1);
    }

    /// Counts that many steps.
    pub fn steps(&self, count: usize) {
        self.0.inc(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// Hides the indicator while `f` prints.
    pub fn suspend<R>(&self, f: impl FnOnce() -> R) -> R {
        self.0.suspend(f)
    }

    /// Ends the indicator and clears its line.
    pub fn clear(&self) {
        self.0.finish_and_clear();
    }
}
