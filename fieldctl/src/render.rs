//! Formats output: tables, times, JSON.

use std::time::Duration;

use console::measure_text_width;
use contracts::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::{
    error::CliError,
    output::{Screen, Text, Tone},
    text::one_line,
};

pub use crate::text::{counted, short, wrap};

/// A text and its tone.
pub type Cell = (String, Tone);

/// Returns a cell without a tone.
pub fn plain(text: impl Into<String>) -> Cell {
    (text.into(), Tone::Plain)
}

/// A table that is printed page by page. Its first page decides the widths of its columns.
///
/// Nothing is truncated. On a narrow terminal, columns that do not fit are printed below their row.
pub struct Table {
    titles: Vec<&'static str>,
    widths: Vec<usize>,
    /// The number of columns in the row. The others are printed below it.
    in_row: usize,
}

/// The indentation of what is printed below a row, in columns.
const DETAIL_INDENT: usize = 4;

impl Table {
    /// Creates a table whose columns have these titles.
    #[must_use]
    pub fn new<const N: usize>(titles: [&'static str; N]) -> Self {
        Self { titles: titles.to_vec(), widths: Vec::new(), in_row: N }
    }

    /// Prints further rows. Prints the titles before the first rows.
    pub fn page(&mut self, screen: &mut Screen, rows: &[Vec<Cell>]) -> Result<(), CliError> {
        if self.widths.is_empty() && !rows.is_empty() {
            self.widths = self.titles.iter().map(|title| measure_text_width(title)).collect();
            for row in rows {
                for (width, (text, _)) in self.widths.iter_mut().zip(row) {
                    *width = (*width).max(Text::from(&one_line(text)).width());
                }
            }
            self.in_row = columns_in_row(&self.widths, screen.width);
            let titles: Vec<Cell> = self.titles[..self.in_row]
                .iter()
                .map(|title| ((*title).to_owned(), Tone::Faint))
                .collect();
            self.row(screen, &titles)?;
        }
        rows.iter().try_for_each(|row| self.row(screen, row))
    }

    fn row(&self, screen: &mut Screen, row: &[Cell]) -> Result<(), CliError> {
        let (in_row, below) = row.split_at(self.in_row.min(row.len()));
        let mut line = Text::default();
        for ((text, tone), width) in in_row.iter().zip(&self.widths) {
            let text = Text::from(&one_line(text));
            let gap = width.saturating_sub(text.width()) + 2;
            line = line.then(screen.paint(*tone, text)).gap(gap);
        }
        screen.line(line)?;
        for (index, (text, tone)) in below.iter().enumerate() {
            if text.trim().is_empty() {
                continue;
            }
            // The last column is a sentence about the row, and needs no title.
            let is_last = self.in_row + index + 1 == self.titles.len();
            let title = if is_last { "" } else { self.titles[self.in_row + index] };
            let text = if title.is_empty() { text.clone() } else { format!("{title}: {text}") };
            for part in wrap(&text, screen.width.map(|width| width.saturating_sub(DETAIL_INDENT))) {
                screen.line(Text::default().gap(DETAIL_INDENT).then(screen.paint(*tone, &part)))?;
            }
        }
        Ok(())
    }
}

/// Returns how many columns fit on a screen of this width. The first column is always included.
fn columns_in_row(widths: &[usize], screen: Option<usize>) -> usize {
    let Some(screen) = screen else { return widths.len() };
    let mut used = 0;
    for (index, width) in widths.iter().enumerate() {
        used += width;
        if used > screen && index > 0 {
            return index;
        }
        used += 2;
    }
    widths.len()
}

/// Formats a duration in at most two units.
#[must_use]
pub fn span(millis: i64) -> String {
    let millis = millis.max(0);
    let seconds = millis / 1000;
    match seconds {
        0 => format!("{millis} ms"),
        1..60 => format!("{seconds}.{} s", millis % 1000 / 100),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Formats the time since `at` in one unit: the largest one of which it has at least two. Examples: `119s`, `2m`.
#[must_use]
pub fn age(now: Timestamp, at: Timestamp) -> String {
    let seconds = (now.millis() - at.millis()).max(0) / 1000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Formats the time since `at`, with `ago`.
#[must_use]
pub fn ago(now: Timestamp, at: Timestamp) -> String {
    age(now, at) + " ago"
}

/// Parses a time: RFC 3339, or an age (`90s`, `15m`, `2h 30m`, `7d`).
pub fn parse_time(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    let past = parse_duration(text).map_err(|_| {
        format!(
            "{text:?} is not a time; use RFC 3339 (2026-01-01T00:00:00Z) or an age (15m, 2h, 7d)"
        )
    })?;
    let millis = i64::try_from(past.as_millis()).unwrap_or(i64::MAX);
    Ok(Timestamp::now().plus_millis(-millis))
}

/// Parses a duration (`90s`, `15m`, `2h 30m`, `7d`).
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("{text:?} is not a duration; use one such as 90s, 15m, 2h or 7d");
    let span: jiff::Span = text.parse().map_err(|_| invalid())?;
    let length =
        span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| invalid())?;
    Duration::try_from(length).map_err(|_| invalid())
}

/// Returns the serialized name of a value.
pub fn serialized_name(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        _ => "?".to_owned(),
    }
}

/// Returns the message for people in a cause. A cause that a function or Step Functions wrote is JSON with a message.
/// Any other cause is returned unchanged.
#[must_use]
pub fn cause_message(cause: &str) -> String {
    let parsed: Value = serde_json::from_str(cause).unwrap_or_default();
    let message = ["errorMessage", "message"].iter().find_map(|name| parsed[name].as_str());
    message.unwrap_or(cause).to_owned()
}

const SECRETS: [&str; 2] = ["taskToken", "paymentMethod"];

/// Replaces task tokens and payment methods with placeholders, also in JSON that is text inside the JSON.
pub fn mask_secrets(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if SECRETS.contains(&name.as_str()) {
                    *value = "***".into();
                } else {
                    mask_secrets(value);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(mask_secrets),
        Value::String(text) if SECRETS.iter().any(|secret| text.contains(secret)) => {
            match serde_json::from_str::<Value>(text) {
                Ok(mut inner) => {
                    mask_secrets(&mut inner);
                    *text = inner.to_string();
                }
                Err(_) => "*** (text with a secret)".clone_into(text),
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn spans_have_two_units_at_most() {
        for (millis, shown) in [
            (-5, "0 ms"),
            (999, "999 ms"),
            (1_250, "1.2 s"),
            (59_999, "59.9 s"),
            (200_000, "3m 20s"),
            (7_500_000, "2h 05m"),
            (273_600_000, "3d 04h"),
        ] {
            assert_eq!(span(millis), shown);
        }
    }

    #[test]
    fn ages_are_shown_in_their_largest_unit() {
        let now = Timestamp::from_millis(1_000_000_000);
        for (seconds, shown) in [
            (0, "0s ago"),
            (119, "119s ago"),
            (120, "2m ago"),
            (7200, "2h ago"),
            (172_800, "2d ago"),
        ] {
            assert_eq!(ago(now, now.plus_millis(-1000 * seconds)), shown);
        }
    }

    #[test]
    fn times_are_parsed_from_instants_and_ages() {
        assert_eq!(
            parse_time("2026-01-01T00:00:00Z").expect("a time").to_string(),
            "2026-01-01T00:00:00.000Z"
        );
        for (text, seconds) in [("90s", 90), ("15m", 900), ("2h 30m", 9000), ("7d", 604_800)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert!(parse_time("yesterday").expect_err("not a time").contains("RFC 3339"));
        assert!(parse_duration("-2h").is_err());
    }

    #[test]
    fn columns_that_do_not_fit_are_printed_below_the_row() {
        assert_eq!(columns_in_row(&[10, 20, 30], None), 3, "no terminal");
        assert_eq!(columns_in_row(&[10, 20, 30], Some(64)), 3, "10 + 2 + 20 + 2 + 30");
        assert_eq!(columns_in_row(&[10, 20, 30], Some(63)), 2);
        assert_eq!(columns_in_row(&[10, 20, 30], Some(5)), 1);
    }

    #[test]
    fn secrets_are_masked_at_any_depth() {
        let mut value = json!({"command": {"taskToken": "t", "list": [{"paymentMethod": "pm"}]},
            "text": "{\"taskToken\":\"t\",\"a\":1}", "broken": "{\"taskToken\":\"t"});
        mask_secrets(&mut value);
        assert_eq!(
            value,
            json!({"command": {"taskToken": "***", "list": [{"paymentMethod": "***"}]},
                "text": "{\"a\":1,\"taskToken\":\"***\"}", "broken": "*** (text with a secret)"})
        );
    }
}
