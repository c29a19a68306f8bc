//! Makes text from outside safe to print on a terminal.
//!
//! A terminal obeys control characters, and a person can't see bidirectional controls, zero-width characters
//! and other format characters. Data may contain all of these. This crate replaces each of them by its JSON
//! escape (`\u202e`), so the value in a JSON document stays the same.

use std::{
    borrow::Cow,
    fmt::{Display, Write as _},
};

use icu_properties::{
    CodePointMapData, CodePointSetData,
    props::{DefaultIgnorableCodePoint, GeneralCategory},
};

/// Returns whether a character controls a terminal or is invisible: controls (C0, C1, DEL), format characters,
/// line and paragraph separators, and Unicode's default ignorables.
#[must_use]
pub fn is_unsafe(c: char) -> bool {
    let category = CodePointMapData::<GeneralCategory>::new().get(c);
    matches!(
        category,
        GeneralCategory::Control
            | GeneralCategory::Format
            | GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator
    ) || CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
}

/// Escapes the unsafe characters of a text. If `plain` returns a character, that one is written instead of the
/// original.
fn replace(text: &str, plain: impl Fn(char) -> Option<char>) -> Cow<'_, str> {
    let is_plain = |c| plain(c).map_or(!is_unsafe(c), |other| other == c);
    if text.chars().all(is_plain) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match plain(c) {
            Some(c) => safe.push(c),
            None if is_unsafe(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a `String` can't fail.
                    write!(safe, "\\u{unit:04x}").unwrap_or_default();
                }
            }
            None => safe.push(c),
        }
    }
    safe.into()
}

/// Escapes the unsafe characters of a text of several lines; `\n` stays. This also suits JSON, where an unsafe
/// character can only be part of a string.
#[must_use]
pub fn lines(text: &str) -> Cow<'_, str> {
    replace(text, |c| (c == '\n').then_some(c))
}

/// Escapes the unsafe characters of a text on one line: `\t`, `\n` and `\r` become spaces.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    replace(text, |c| matches!(c, '\t' | '\n' | '\r').then_some(' '))
}

/// Prints an escaped text and a newline on standard output.
#[expect(clippy::print_stdout, reason = "the tools of this repository print with this function")]
pub fn print(text: impl Display) {
    println!("{}", lines(&text.to_string()));
}

/// Prints an escaped text and a newline on standard error.
pub fn print_error(text: impl Display) {
    eprintln!("{}", lines(&text.to_string()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_characters_are_escaped() {
        let texts = [
            ("\u{1b}[31m", "\\u001b[31m"),
            ("\u{7f}\u{9b}\u{85}", "\\u007f\\u009b\\u0085"),
            ("\u{202e}\u{2066}\u{61c}", "\\u202e\\u2066\\u061c"),
            ("\u{200b}\u{200d}\u{feff}\u{ad}", "\\u200b\\u200d\\ufeff\\u00ad"),
            ("\u{2028}\u{2029}", "\\u2028\\u2029"),
            ("\u{3164}\u{115f}\u{fe0f}\u{34f}", "\\u3164\\u115f\\ufe0f\\u034f"),
            ("\u{e0041}", "\\udb40\\udc41"),
        ];
        for (text, escaped) in texts {
            assert_eq!(lines(text), escaped);
            assert_eq!(line(text), escaped);
        }
    }

    #[test]
    fn visible_text_stays() {
        for text in
            ["Zürich, e\u{301}te", "日本\u{3000}語", "नमस्ते", "⠀⠉ ┤ ▶ ✔ ●", "\u{1f600}", "a  b\\u"]
        {
            assert!(matches!(lines(text), Cow::Borrowed(same) if same == text));
            assert!(matches!(line(text), Cow::Borrowed(same) if same == text));
        }
        assert_eq!(lines("a\nb\tc"), "a\nb\\u0009c");
        assert_eq!(line("a\nb\tc\r"), "a b c ");
    }
}
