//! The characters that texts from outside may contain.
//!
//! The checks and the `pattern` of the published schemas use the same tables.

use std::{fmt::Write, ops::RangeInclusive};

/// Refused characters: control characters, line separators, and format characters that are invisible or change the
/// direction of the text.
///
/// Two invisible format characters are allowed, because Persian, the Indic scripts and emoji need them between
/// letters: U+200C and U+200D. The visible number signs of Arabic and Syriac (U+0600 to U+0605, U+06DD, U+070F and
/// others) are allowed too, although Unicode classifies them as format characters.
const REFUSED: &[RangeInclusive<char>] = &[
    '\u{0}'..='\u{1f}',
    '\u{7f}'..='\u{9f}',
    '\u{ad}'..='\u{ad}',
    '\u{61c}'..='\u{61c}',
    '\u{180e}'..='\u{180e}',
    '\u{200b}'..='\u{200b}',
    '\u{200e}'..='\u{200f}',
    '\u{2028}'..='\u{202e}',
    '\u{2060}'..='\u{206f}',
    '\u{feff}'..='\u{feff}',
    '\u{fff9}'..='\u{fffb}',
    '\u{1bca0}'..='\u{1bca3}',
    '\u{1d173}'..='\u{1d17a}',
    '\u{e0000}'..='\u{e007f}',
];

/// Invisible characters that are allowed: white space that is not refused, and the two joiners.
const BLANK: &[RangeInclusive<char>] = &[
    ' '..=' ',
    '\u{a0}'..='\u{a0}',
    '\u{1680}'..='\u{1680}',
    '\u{2000}'..='\u{200a}',
    '\u{200c}'..='\u{200d}',
    '\u{202f}'..='\u{202f}',
    '\u{205f}'..='\u{205f}',
    '\u{3000}'..='\u{3000}',
];

fn is_in(table: &[RangeInclusive<char>], character: char) -> bool {
    table.iter().any(|range| range.contains(&character))
}

/// Returns the first refused character of the text.
#[must_use]
pub fn first_refused(text: &str) -> Option<char> {
    text.chars().find(|character| is_in(REFUSED, *character))
}

/// Returns whether the text is blank: it has only invisible characters.
#[must_use]
pub fn is_blank(text: &str) -> bool {
    text.chars().all(|character| is_in(BLANK, character))
}

/// Returns whether the text begins or ends with an invisible character.
#[must_use]
pub fn has_blank_ends(text: &str) -> bool {
    let ends = [text.chars().next(), text.chars().next_back()];
    ends.into_iter().flatten().any(|character| is_in(BLANK, character))
}

/// Returns whether the text has the form of an e-mail address: one `@` between other characters, and no invisible ones.
#[must_use]
pub fn is_email(text: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.chars().any(|it| it == '@' || is_in(REFUSED, it) || is_in(BLANK, it))
    };
    text.split_once('@').is_some_and(|(name, domain)| is_part(name) && is_part(domain))
}

/// Returns the regular expression of an e-mail address.
#[must_use]
pub(crate) fn email_pattern() -> String {
    let part = none_of(&[REFUSED, BLANK, &['@'..='@']]);
    format!("^{part}+@{part}+$")
}

/// Returns the regular expression of a name: no refused character, and at least one visible character.
#[must_use]
pub(crate) fn name_pattern() -> String {
    let (any, shown) = (none_of(&[REFUSED]), none_of(&[REFUSED, BLANK]));
    format!("^{any}*{shown}{any}*$")
}

/// Returns the regular expression of an identifier: no refused character, and no white space at the ends.
#[must_use]
pub(crate) fn id_pattern() -> String {
    let (any, shown) = (none_of(&[REFUSED]), none_of(&[REFUSED, BLANK]));
    format!("^{shown}({any}*{shown})?$")
}

/// Returns a negated character class in the syntax that ECMA-262 (with the flag `u`), Python and Rust share.
fn none_of(tables: &[&[RangeInclusive<char>]]) -> String {
    let mut class = "[^".to_owned();
    for range in tables.iter().copied().flatten() {
        class.push_str(&escaped(*range.start()));
        if range.start() != range.end() {
            class.push('-');
            class.push_str(&escaped(*range.end()));
        }
    }
    class.push(']');
    class
}

/// Escapes a character. Above U+FFFF the three syntaxes share no escape, so such a character is not escaped.
fn escaped(character: char) -> String {
    let mut text = String::new();
    match u16::try_from(u32::from(character)) {
        // Writing to a String does not fail.
        Ok(unit) => write!(text, "\\u{unit:04x}").unwrap_or_default(),
        Err(_) => text.push(character),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invisible_and_direction_changing_characters_are_refused() {
        for refused in [
            "a\0",
            "a\u{1b}[31m",
            "a\nb",
            "a\tb",
            "\u{7f}",
            "\u{85}",
            "\u{9b}",
            "a\u{ad}b",
            "\u{61c}a",
            "a\u{200b}",
            "\u{200e}a",
            "\u{200f}a",
            "\u{2028}",
            "\u{2029}",
            "\u{202a}",
            "\u{202e}abc",
            "\u{2060}",
            "\u{2066}a",
            "\u{2069}",
            "\u{feff}a",
            "a\u{e0041}",
        ] {
            assert!(first_refused(refused).is_some(), "{refused:?}");
        }
    }

    #[test]
    fn names_in_all_scripts_are_accepted() {
        for name in [
            "Alamosa, Colorado",
            "Åre/Östersund – \"Süd\" \\ 2",
            "می\u{200c}خواهم",
            "क\u{94d}\u{200d}ष",
            "👩\u{200d}🔬",
            "तिरुवनन्तपुरम्",
            "東京　測候所",
            "תחנה",
            "\u{600}١٢",
        ] {
            assert_eq!(first_refused(name), None, "{name:?}");
            assert!(!is_blank(name) && !has_blank_ends(name), "{name:?}");
        }
    }

    #[test]
    fn a_blank_text_shows_nothing() {
        for blank in ["", " ", "\u{a0}\u{3000}", "\u{200d}", " \u{200c} "] {
            assert!(is_blank(blank), "{blank:?}");
        }
        for ends in [" a", "a ", "\u{200d}a", "a\u{3000}"] {
            assert!(has_blank_ends(ends) && !is_blank(ends), "{ends:?}");
        }
        // The tables cover all white space that Rust trims.
        for character in ('\0'..=char::MAX).filter(|character| character.is_whitespace()) {
            assert!(is_in(REFUSED, character) || is_in(BLANK, character), "{character:?}");
        }
        for character in ('\0'..=char::MAX).filter(|character| character.is_control()) {
            assert!(is_in(REFUSED, character), "{character:?}");
        }
    }
}
