//! The credential of a request: the header `Authorization: Bearer <API key or token>`.

use std::fmt;

use keys::{ApiKey, BOOTSTRAP_PREFIX, InvalidKey};
use serde_json::{Map, Value};

use crate::authorise_caller::Refusal;

/// The maximum length of the header, in bytes. A token with many claims has about 2 KB.
const MAX_HEADER_BYTES: usize = 4096;

/// A credential, by its shape. Nothing is known about its validity, except for the checksum of a key.
pub enum Credential {
    /// An API key.
    Key(ApiKey),
    /// The first administrator's secret, with the prefix `fsb_`.
    Bootstrap(String),
    /// A JSON Web Token.
    Token(String),
}

/// Prints only the kind.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key(_) => "Key",
            Self::Bootstrap(_) => "Bootstrap",
            Self::Token(_) => "Token",
        })
    }
}

impl Credential {
    /// Reads the credential from the request's headers, each with the list of its values.
    ///
    /// Exactly one value is accepted. With two, it would be undefined which one counts.
    pub fn from_headers(headers: &Map<String, Value>) -> Result<Self, Refusal> {
        let named = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("authorization"));
        let mut values = named.flat_map(|(_, values)| match values {
            Value::Array(values) => values.iter().collect(),
            one => vec![one],
        });
        let value = match (values.next(), values.next()) {
            (None, _) => return Err(Refusal::Missing),
            (Some(_), Some(_)) => return Err(Refusal::Several),
            (Some(value), None) => value.as_str().ok_or(Refusal::Malformed)?,
        };
        if value.len() > MAX_HEADER_BYTES {
            return Err(Refusal::TooLong);
        }
        let (scheme, credential) = value.split_once(' ').ok_or(Refusal::Malformed)?;
        let credential = credential.trim_start_matches(' ');
        let is_one_word = credential.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',');
        if !scheme.eq_ignore_ascii_case("bearer") || credential.is_empty() || !is_one_word {
            return Err(Refusal::Malformed);
        }
        Self::from_text(credential)
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        if text.starts_with(BOOTSTRAP_PREFIX) {
            return Ok(Self::Bootstrap(text.to_owned()));
        }
        if ApiKey::is_key_like(text) {
            return ApiKey::parse(text).map(Self::Key).map_err(|error| match error {
                InvalidKey::Format => Refusal::Malformed,
                InvalidKey::Checksum => Refusal::WrongChecksum,
            });
        }
        if text.bytes().filter(|byte| *byte == b'.').count() == 2 {
            return Ok(Self::Token(text.to_owned()));
        }
        Err(Refusal::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use keys::Kind;
    use serde_json::json;

    use super::*;

    fn read(headers: &Value) -> Result<&'static str, Refusal> {
        let headers = headers.as_object().expect("headers");
        Credential::from_headers(headers).map(|credential| match credential {
            Credential::Key(_) => "key",
            Credential::Bootstrap(_) => "bootstrap",
            Credential::Token(_) => "token",
        })
    }

    fn read_one(value: &str) -> Result<&'static str, Refusal> {
        read(&json!({ "Host": ["x"], "Authorization": [value] }))
    }

    #[test]
    fn a_credential_is_recognised_by_its_shape() {
        let key = ApiKey::generate(Kind::Read).expect("a key");
        let key = key.reveal();
        assert_eq!(read_one(&format!("Bearer {key}")), Ok("key"));
        assert_eq!(read_one(&format!("bEARER   {key}")), Ok("key"));
        assert_eq!(read_one("Bearer fsb_abc"), Ok("bootstrap"));
        assert_eq!(read_one("Bearer aaa.bbb.ccc"), Ok("token"));
        assert_eq!(read(&json!({ "authorization": ["Bearer a.b.c"] })), Ok("token"));
    }

    #[test]
    fn other_headers_are_refused() {
        let key = ApiKey::generate(Kind::Read).expect("a key");
        let key = key.reveal();
        assert_eq!(read(&json!({})), Err(Refusal::Missing));
        assert_eq!(read(&json!({ "Authorization": [] })), Err(Refusal::Missing));
        for two in [
            json!({ "Authorization": ["Bearer a.b.c", "Bearer a.b.c"] }),
            json!({ "Authorization": ["Bearer a.b.c"], "authorization": ["Bearer a.b.c"] }),
        ] {
            assert_eq!(read(&two), Err(Refusal::Several), "{two}");
        }
        let wrong = format!("{}{}", &key[..39], if key.ends_with('0') { "1" } else { "0" });
        for (value, refusal) in [
            ("", Refusal::Malformed),
            ("Bearer", Refusal::Malformed),
            ("Bearer ", Refusal::Malformed),
            ("Basic dXNlcjpwYXNz", Refusal::Malformed),
            (key, Refusal::Malformed),
            ("Bearer a.b", Refusal::Malformed),
            ("Bearer a.b.c d", Refusal::Malformed),
            ("Bearer a.b.c,Bearer", Refusal::Malformed),
            ("Bearer ä.b.c", Refusal::Malformed),
            ("Bearer fsr_short", Refusal::Malformed),
            (&format!("Bearer {wrong}"), Refusal::WrongChecksum),
            (&format!("Bearer a.b.{}", "c".repeat(10_000)), Refusal::TooLong),
        ] {
            assert_eq!(read_one(value), Err(refusal), "{value:?}");
        }
        assert_eq!(read(&json!({ "Authorization": [7] })), Err(Refusal::Malformed));
        assert_eq!(read_one(&format!("Bearer a.b.{}", "c".repeat(4085))), Ok("token"));
        assert_eq!(read_one(&format!("Bearer a.b.{}", "c".repeat(4086))), Err(Refusal::TooLong));
    }
}
