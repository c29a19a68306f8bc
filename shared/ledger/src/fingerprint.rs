//! Groups failures by their cause, which is derived from their errors.

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{AffectedIds, ErrorInfo, Kind, sources::STORE_READINGS};

/// The number of bytes of the hash in a fingerprint: twelve hex digits.
const FINGERPRINT_BYTES: usize = 6;
/// The length of a UUID as text.
const UUID_LENGTH: usize = 36;
/// The minimum length of a word with a digit that counts as an id.
const MIN_ID_LENGTH: usize = 12;
/// The minimum length of a word of hex digits that counts as an id.
const MIN_HEX_LENGTH: usize = 8;

/// Returns the fingerprint of a failure. Failures with the same source, error name and message have the same
/// fingerprint. Ids, numbers, times and quoted values in the message are ignored.
#[must_use]
pub fn fingerprint(source: &str, error: &ErrorInfo) -> String {
    let cause = format!("{source}\n{}\n{}", error.name, normalized(&error.message));
    let hash: [u8; 32] = Sha256::digest(cause).into();
    hash[..FINGERPRINT_BYTES].iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// The number of bytes of the hash of the sender in a group id: six hex digits.
const SENDER_BYTES: usize = 3;

/// Returns the id of the group that a failure belongs to. Failures with the same fingerprint form a group, and the
/// fingerprint is the id of the group. Quarantined readings are divided further, because their cause is their sender:
/// each combination of site, sensor and sender has its own group. The id of such a group is the fingerprint, `-`, and
/// six hex digits.
#[must_use]
pub fn group_id(fingerprint: &str, source: &str, kind: Kind, affected_ids: &AffectedIds) -> String {
    if source != STORE_READINGS || kind != Kind::Quarantined {
        return fingerprint.to_owned();
    }
    let AffectedIds { site_id, sensor_id, sensor_site_id: _, sender } = affected_ids;
    let text = |id: Option<String>| id.unwrap_or_default();
    let sender = format!(
        "{}\n{}\n{}",
        text(site_id.map(|id| id.to_string())),
        text(sensor_id.map(|id| id.to_string())),
        text(sender.clone())
    );
    let hash: [u8; 32] = Sha256::digest(sender).into();
    hash[..SENDER_BYTES]
        .iter()
        .fold(format!("{fingerprint}-"), |id, byte| format!("{id}{byte:02x}"))
}

/// Returns the message with its variable parts replaced: values by `#`, quoted text by `""`.
fn normalized(message: &str) -> String {
    let mut text = String::new();
    let mut rest = message;
    while let Some(first) = rest.chars().next() {
        let after_word = text.ends_with(|last: char| last.is_alphanumeric() || last == '#');
        let (taken, replacement) = if let Some(length) = quoted(rest).filter(|_| !after_word) {
            (length, "\"\"")
        } else if rest.get(..UUID_LENGTH).is_some_and(|text| Uuid::try_parse(text).is_ok()) {
            (UUID_LENGTH, "#")
        } else {
            let end = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
            let length = end.max(first.len_utf8());
            (length, if is_value(&rest[..length]) { "#" } else { &rest[..length] })
        };
        // Joined values, such as the parts of a time, count as one value.
        let joined = text.len().checked_sub(2).and_then(|at| text.get(at..));
        if replacement == "#" && joined.is_some_and(|end| end.starts_with('#') && joins(end)) {
            text.pop();
        } else {
            text.push_str(replacement);
        }
        rest = &rest[taken..];
    }
    text
}

/// Returns the length of the quoted text at the start of `text`.
fn quoted(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|first| matches!(first, '"' | '\'' | '`'))?;
    let end = text[1..].find(quote)? + 2;
    // An apostrophe inside a word is not a closing quote.
    (!text[end..].starts_with(char::is_alphanumeric)).then_some(end)
}

/// Returns whether a text ends with a character that joins the parts of a value, such as the colon in a time.
fn joins(end: &str) -> bool {
    end.ends_with(['-', '.', ':', '+', ','])
}

/// Returns whether a word of letters and digits is a number, with or without a unit, or an id.
fn is_value(word: &str) -> bool {
    let hex = word.len() >= MIN_HEX_LENGTH && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = word.len() >= MIN_ID_LENGTH && word.contains(|c: char| c.is_ascii_digit());
    word.starts_with(|first: char| first.is_ascii_digit()) || hex || id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint_of(message: &str) -> String {
        fingerprint("project-site", &ErrorInfo::new("Internal", message))
    }

    #[test]
    fn messages_that_differ_only_in_values_have_the_same_fingerprint() {
        for (one, other) in [
            (
                "sensor 737de119-a774-5662-91c7-51fffae3b74b was retired at 2026-01-01T12:00:00.000Z",
                "sensor beefbeef-cafe-5662-face-51fffae3b74b was retired at 2026-11-21T09:15:07Z",
            ),
            ("5 of 12 events", "113 of 2000 events"),
            ("after 3.00 seconds", "after 12.5 seconds"),
            ("took 300ms", "took 7ms"),
            ("(request 7H3GVQ2S0B1D5Q8K)", "(request QK81MZ0000ABCDEF)"),
            ("hash deadbeef", "hash 0123456789abcdef"),
            ("missing field `name`", "missing field `plan`"),
            ("key \"a b\" is wrong", "key \"c\" is wrong"),
            ("shard shardId-000000000001 at 17", "shard shardId-000000000042 at 4"),
            ("DynamoDB can't answer 'x'", "DynamoDB can't answer 'y z'"),
        ] {
            assert_eq!(
                fingerprint_of(one),
                fingerprint_of(other),
                "{} / {}",
                normalized(one),
                normalized(other)
            );
        }
    }

    #[test]
    fn messages_of_different_causes_have_different_fingerprints() {
        let messages = [
            "",
            "sensor 737de119-a774-5662-91c7-51fffae3b74b is not in the register",
            "sensor 737de119-a774-5662-91c7-51fffae3b74b was retired",
            "S3 is out of reach",
            "SQS is out of reach",
            "it can't be read and won't be",
            "it can't be written and won't be",
            "missing field `name`",
            "unknown field `name`",
            "5 events",
            "5 rows",
            "shards 5",
            "shards 5 7",
            "decade",
            "5' and up, 7' at most",
            "5' or less, 7' at most",
            "\u{1f321} \" ' ` ä",
        ];
        for (at, one) in messages.iter().enumerate() {
            for other in &messages[at + 1..] {
                assert_ne!(fingerprint_of(one), fingerprint_of(other), "{one} / {other}");
            }
        }
        let error = ErrorInfo::new("Internal", "no");
        let same = fingerprint("project-site", &error);
        assert_ne!(same, fingerprint("import-site", &error));
        assert_ne!(same, fingerprint("project-site", &ErrorInfo::new("Transient", "no")));
        // This value must not change: engineers on call note fingerprints and compare them.
        assert_eq!(same, "918940a1cd53");
    }
}
