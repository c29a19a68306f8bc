//! Formats plain text: on one line, wrapped to a width, shortened.

use console::measure_text_width;

/// Returns the text on one line, with a single space between its words.
pub(crate) fn one_line(text: &str) -> String {
    text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the text, escaped, in lines of at most `width` columns. Lines are broken between words if possible.
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
            let rest = word.split_off(word.char_indices().nth(width).map_or(word.len(), |at| at.0));
            lines.pop();
            lines.push(word);
            lines.push(String::new());
            word = rest;
        }
    }
    lines
}

/// Returns the first eight characters of an id, which are enough to distinguish it.
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
}
