//! Formats plain text: on one line, wrapped to a width, shortened.

use std::fmt::Display;

use console::{measure_text_width, truncate_str};

/// Returns the text on one line, with a single space between its words.
pub(crate) fn one_line(text: &str) -> String {
    text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the text, escaped, in lines of at most `width` columns. Lines are broken between words if possible. A width
/// below 20 counts as 20. Without a width, the text is one line.
#[must_use]
pub fn wrap(text: &str, width: Option<usize>) -> Vec<String> {
    let text = terminal::line(&one_line(text)).into_owned();
    let Some(width) = width.map(|width| width.max(20)) else { return vec![text] };
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word = word.to_owned();
        loop {
            let line = lines.last_mut().map_or(0, |line| measure_text_width(line));
            let gap = usize::from(line > 0);
            if line + gap + measure_text_width(&word) <= width {
                if let Some(line) = lines.last_mut() {
                    *line += &" "[..gap];
                    *line += &word;
                }
                break;
            }
            if line > 0 {
                lines.push(String::new());
                continue;
            }
            // A word that is wider than a line is split.
            let rest = word.split_off(truncate_str(&word, width, "").len());
            lines.pop();
            lines.push(word);
            lines.push(String::new());
            word = rest;
        }
    }
    lines
}

/// Returns the number and the noun, in the singular or in the plural.
#[must_use]
pub fn counted(count: impl TryInto<u64> + Display + Copy, one: &str, several: &str) -> String {
    format!("{count} {}", if matches!(count.try_into(), Ok(1)) { one } else { several })
}

/// Returns the first eight characters of an id, which usually distinguish it from others.
pub fn short(id: &(impl ToString + ?Sized)) -> String {
    id.to_string().chars().take(8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_wrap_between_words() {
        assert_eq!(wrap("a b", None), ["a b"]);
        assert_eq!(
            wrap("the card of the operator was declined", Some(20)),
            ["the card of the", "operator was", "declined"]
        );
        assert_eq!(wrap(&"x".repeat(25), Some(20)), ["x".repeat(20), "x".repeat(5)]);
    }

    #[test]
    fn a_long_word_is_split_by_columns() {
        // Each of these characters has two columns.
        assert_eq!(
            wrap(&"語".repeat(25), Some(20)),
            ["語".repeat(10), "語".repeat(10), "語".repeat(5)]
        );
        assert_eq!(wrap(&"語".repeat(11), Some(21)), ["語".repeat(10), "語".to_owned()]);
    }

    #[test]
    fn only_one_is_singular() {
        let counts = [0, 1, 2].map(|count| counted(count, "site", "sites"));
        assert_eq!(counts, ["0 sites", "1 site", "2 sites"]);
    }
}
