//! API keys.
//!
//! A key is `fs`, the letter of its kind and `_` (such as `fso_`), then 30 random characters and 6 characters of
//! checksum. These 36 characters are letters and digits. The length and the checksum show truncated and mistyped keys
//! without a read of the table, and the checksum lets scanners for leaked secrets recognise a key. The random part has
//! 178 bits, so a plain hash of the key is enough: nobody can find a key by trying.
//!
//! Only the hash of a key and its [visible prefix](ApiKey::visible_prefix) are stored. The prefix identifies the key in
//! lists and logs.

use std::{borrow::Cow, fmt, ops::Range};

use contracts::Scope;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The digits of base 62, in ascending order.
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// The number of random characters.
const RANDOM: usize = 30;
/// The number of characters of the checksum.
const CHECKSUM: usize = 6;
/// The number of characters before the random ones.
const PREFIX: usize = 4;
/// The number of characters of the visible prefix.
const VISIBLE: usize = 12;
/// The number of characters of a key.
const LENGTH: usize = PREFIX + RANDOM + CHECKSUM;

/// The prefix of the first administrator's credential. The rest of the credential is the value of a secret.
pub const BOOTSTRAP_PREFIX: &str = "fsb_";

/// The kind of a key, which its third character shows. It helps people to recognise a key. The rights of a key are in
/// its row, never in its text. (The first administrator's secret has no row.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `fsa_`: [`Scope::Admin`].
    Admin,
    /// `fso_`: [`Scope::Operator`].
    Operator,
    /// `fsl_`: [`Scope::Logger`].
    Logger,
    /// `fsr_`: [`Scope::Read`].
    Read,
    /// `fsb_`: [`Scope::Bootstrap`].
    Bootstrap,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Admin, Self::Operator, Self::Logger, Self::Read, Self::Bootstrap];

    /// Returns the first four characters of the keys of this kind.
    #[must_use]
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Admin => "fsa_",
            Self::Operator => "fso_",
            Self::Logger => "fsl_",
            Self::Read => "fsr_",
            Self::Bootstrap => BOOTSTRAP_PREFIX,
        }
    }
}

impl From<Scope> for Kind {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Admin => Self::Admin,
            Scope::Operator => Self::Operator,
            Scope::Logger(_) => Self::Logger,
            Scope::Read => Self::Read,
            Scope::Bootstrap => Self::Bootstrap,
        }
    }
}

/// Why a text is not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// The text does not have the format of a key.
    #[error("the text does not have the format of a key")]
    Format,
    /// The checksum does not match: the key was mistyped or made up.
    #[error("the checksum of the key does not match")]
    Checksum,
}

/// The system has no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("no random numbers: {0}")]
pub struct NoRandomness(getrandom::Error);

/// A complete key. It is a secret: it is shown once and never stored.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

/// Prints only the visible prefix.
impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({}...)", self.visible_prefix())
    }
}

impl ApiKey {
    /// Creates a key from random numbers of the operating system.
    pub fn generate(kind: Kind) -> Result<Self, NoRandomness> {
        let mut key = String::with_capacity(LENGTH);
        key.push_str(kind.prefix());
        let mut bytes = [0; 64];
        while key.len() < PREFIX + RANDOM {
            getrandom::fill(&mut bytes).map_err(NoRandomness)?;
            // 248 is a multiple of 62. With the bytes from 248 on, some digits would be more frequent than others.
            let digits = bytes.iter().filter(|byte| **byte < 248);
            let digits = digits.map(|byte| char::from(DIGITS[usize::from(byte % 62)]));
            key.extend(digits.take(PREFIX + RANDOM - key.len()));
        }
        key.push_str(&checksum(&key));
        Ok(Self(key))
    }

    /// Parses a key and compares its checksum.
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        let is_digit = |byte: u8| byte.is_ascii_alphanumeric();
        let kind = Kind::ALL.into_iter().find(|kind| text.starts_with(kind.prefix()));
        if kind.is_none() || text.len() != LENGTH || !text.bytes().skip(PREFIX).all(is_digit) {
            return Err(InvalidKey::Format);
        }
        let (content, sum) = text.split_at(PREFIX + RANDOM);
        if checksum(content) != sum {
            return Err(InvalidKey::Checksum);
        }
        Ok(Self(text.to_owned()))
    }

    /// Returns whether the text starts with the prefix of a kind of key. A credential without such a prefix may be a
    /// token.
    #[must_use]
    pub fn is_key_like(text: &str) -> bool {
        Kind::ALL.into_iter().any(|kind| text.starts_with(kind.prefix()))
    }

    /// Returns the complete key, for the one response that shows it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Returns the first 12 characters, which identify the key for people.
    #[must_use]
    pub fn visible_prefix(&self) -> &str {
        &self.0[..VISIBLE]
    }

    /// Returns the SHA-256 of the key, in hex. The row of the API key has this hash as its key.
    #[must_use]
    pub fn hash(&self) -> String {
        let digest = Sha256::digest(&self.0);
        digest.iter().fold(String::with_capacity(64), |hex, byte| hex + &format!("{byte:02x}"))
    }
}

/// Returns the CRC-32 of the text as base 62.
fn checksum(text: &str) -> String {
    let mut rest = crc32fast::hash(text.as_bytes());
    let mut digits = [DIGITS[0]; CHECKSUM];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(rest % 62) as usize];
        rest /= 62;
    }
    digits.map(char::from).iter().collect()
}

/// The start of a JSON Web Token. A token starts with a JSON object in base64. If the object begins with `{"` and a
/// letter, its base64 begins with `eyJ`, whatever the letter is.
const TOKEN_PREFIX: &str = "eyJ";
/// A shorter text is not a token.
const MIN_TOKEN: usize = 32;

/// Hides the secret part of each credential in a text that quotes a caller's input, such as an error.
///
/// The visible prefix of an API key stays. Of a token and of the first administrator's secret, only the start that shows
/// the kind stays. Callers put credentials into wrong fields by mistake, and errors are logged.
#[must_use]
pub fn mask(text: &str) -> Cow<'_, str> {
    let mut masked = String::new();
    let mut rest = text;
    let find = |text: &str| (0..text.len()).find_map(|at| Some((at, secret(text.get(at..)?)?)));
    while let Some((at, secret)) = find(rest) {
        masked.push_str(&rest[..at + secret.start]);
        masked.push('…');
        rest = &rest[at + secret.end..];
    }
    if masked.is_empty() { Cow::Borrowed(text) } else { Cow::Owned(masked + rest) }
}

/// Returns the position of the secret part of the credential that the text starts with.
fn secret(text: &str) -> Option<Range<usize>> {
    let end = |is_part: fn(char) -> bool| text.find(|c| !is_part(c)).unwrap_or(text.len());
    let secret = if ApiKey::is_key_like(text) {
        let visible = if text.starts_with(BOOTSTRAP_PREFIX) { PREFIX } else { VISIBLE };
        visible..end(|c| c.is_ascii_alphanumeric() || c == '_')
    } else if text.starts_with(TOKEN_PREFIX) {
        let end = end(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        TOKEN_PREFIX.len()..Some(end).filter(|end| *end >= MIN_TOKEN)?
    } else {
        return None;
    };
    Some(secret).filter(|secret| !secret.is_empty())
}

/// A long secret that callers send as a credential. Only its hash is in memory.
#[derive(Clone)]
pub struct SharedSecret([u8; 32]);

/// Prints a placeholder.
impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(hidden)")
    }
}

impl SharedSecret {
    /// Creates the secret from the credential.
    #[must_use]
    pub fn new(credential: &str) -> Self {
        Self(Sha256::digest(credential).into())
    }

    /// Returns whether the credential is the secret. The comparison takes the same time for all credentials of one
    /// length, so a caller can't guess the secret from the response time.
    #[must_use]
    pub fn matches(&self, credential: &str) -> bool {
        let other: [u8; 32] = Sha256::digest(credential).into();
        self.0.ct_eq(&other).into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use contracts::{OperatorId, SiteId};

    use super::*;

    fn new(kind: Kind) -> ApiKey {
        ApiKey::generate(kind).expect("random numbers")
    }

    #[test]
    fn a_generated_key_has_the_documented_format() {
        for kind in Kind::ALL {
            let key = new(kind);
            let text = key.reveal();
            assert_eq!(text.len(), 40);
            assert!(text.starts_with(kind.prefix()), "{text}");
            assert!(text[4..].bytes().all(|byte| byte.is_ascii_alphanumeric()), "{text}");
            assert_eq!(ApiKey::parse(text), Ok(key.clone()));
            assert_eq!(key.visible_prefix(), &text[..12]);
        }
    }

    #[test]
    fn keys_are_random_and_use_all_digits_alike() {
        let keys: BTreeSet<_> = (0..2_000).map(|_| new(Kind::Read).0).collect();
        assert_eq!(keys.len(), 2_000);
        let mut counts = [0_u32; 128];
        for key in &keys {
            key[4..34].bytes().for_each(|byte| counts[usize::from(byte)] += 1);
        }
        // The expected count is 968, with a standard deviation of 31. Without the limit of 248, eight digits would have
        // 1,172.
        for digit in DIGITS {
            let count = counts[usize::from(*digit)];
            assert!((780..1_120).contains(&count), "{}: {count}", char::from(*digit));
        }
    }

    #[test]
    fn a_changed_character_is_found_by_the_checksum() {
        let key = new(Kind::Operator).0;
        for index in 4..40 {
            let mut changed = key.clone().into_bytes();
            changed[index] = if changed[index] == b'a' { b'b' } else { b'a' };
            let changed = String::from_utf8(changed).expect("text");
            assert_eq!(ApiKey::parse(&changed), Err(InvalidKey::Checksum), "{index}");
        }
        let other_kind = key.replacen("fso_", "fsa_", 1);
        assert_eq!(ApiKey::parse(&other_kind), Err(InvalidKey::Checksum));
    }

    #[test]
    fn a_checksum_is_the_same_in_each_release() {
        // Fixed values: if the checksum changed, all keys in use would be refused.
        assert_eq!(checksum("fsa_000000000000000000000000000000"), "0CloOw");
        let text = format!("fsa_{}0CloOw", "0".repeat(30));
        let key = ApiKey::parse(&text).expect("a key");
        assert_eq!(key.hash(), "7a3f1cf493ec8b1a11528f25313e8a6247404838aafc68a7807360f9c7f8dfde");
    }

    #[test]
    fn other_texts_are_not_keys() {
        let key = new(Kind::Logger).0;
        let with_dash = format!("{}-{}", &key[..20], &key[21..]);
        for text in [
            "",
            "fsl_",
            &key[..39],
            &format!("{key}0"),
            &with_dash,
            &key.replacen('l', "x", 1),
            "ä",
        ] {
            assert_eq!(ApiKey::parse(text), Err(InvalidKey::Format), "{text}");
        }
        assert!(ApiKey::is_key_like("fsl_x") && ApiKey::is_key_like("fsb_x"));
        assert!(!ApiKey::is_key_like("fsx_x") && !ApiKey::is_key_like("eyJ"));
    }

    #[test]
    fn a_text_shows_only_the_visible_part_of_a_credential() {
        let key = new(Kind::Logger);
        let (whole, prefix) = (key.reveal(), key.visible_prefix());
        let token = format!("eyJhbGciOiJub25lIn0.{}.x-_y", "a".repeat(30));
        for (text, masked) in [
            (String::new(), String::new()),
            ("no key, fso_short, eyJ, ä".to_owned(), "no key, fso_short, eyJ, ä".to_owned()),
            (whole.to_owned(), format!("{prefix}…")),
            (prefix.to_owned(), prefix.to_owned()),
            (format!("\"{whole}\"; ä {whole}0!"), format!("\"{prefix}…\"; ä {prefix}…!")),
            // A key with a missing character is as secret as the key.
            (format!("x{}", &whole[..39]), format!("x{prefix}…")),
            ("fsb_secret, x".to_owned(), "fsb_…, x".to_owned()),
            (format!("[{token}]"), "[eyJ…]".to_owned()),
        ] {
            assert_eq!(mask(&text), masked, "{text}");
        }
    }

    #[test]
    fn the_debug_output_hides_the_secret() {
        let key = new(Kind::Admin);
        assert_eq!(format!("{key:?}"), format!("ApiKey({}...)", key.visible_prefix()));
        assert_eq!(format!("{:?}", SharedSecret::new("hush")), "SharedSecret(hidden)");
    }

    #[test]
    fn each_scope_has_a_kind() {
        let site = SiteId::registered(OperatorId::DEFAULT, "", "a");
        for (scope, start) in [
            (Scope::Admin, "fsa_"),
            (Scope::Operator, "fso_"),
            (Scope::Logger(site), "fsl_"),
            (Scope::Read, "fsr_"),
            (Scope::Bootstrap, "fsb_"),
        ] {
            assert!(new(scope.into()).reveal().starts_with(start), "{scope}");
        }
    }

    #[test]
    fn only_the_same_text_matches_a_shared_secret() {
        let secret = SharedSecret::new("fsb_secret");
        assert!(secret.matches("fsb_secret"));
        for other in ["", "fsb_", "fsb_secreT", "fsb_secret ", "fsb_secretfsb_secret"] {
            assert!(!secret.matches(other), "{other}");
        }
    }
}
