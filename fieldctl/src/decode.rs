//! Decodes payloads for display: base64 and gzip of Kinesis data, and JSON text inside JSON.

use std::io::Read;

use base64::{Engine, engine::general_purpose::STANDARD};
use flate2::read::MultiGzDecoder;
use serde_json::Value;

/// The maximum size of decompressed data, in bytes. Larger data is not decoded. The maximum size of a bundle is half of
/// this.
const MAX_BYTES: u64 = 4 << 20;
/// The maximum depth of JSON text inside JSON. Deeper texts are not decoded.
const MAX_DEPTH: usize = 16;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Decodes a payload in place. Returns a line for each decoded part, such as `kinesis.data: base64, gzip, JSON`. Parts
/// that can't be decoded stay unchanged.
pub fn decode(payload: &mut Value) -> Vec<String> {
    let mut decoded = Vec::new();
    visit(payload, "", 0, &mut decoded);
    decoded
}

fn visit(value: &mut Value, path: &str, depth: usize, decoded: &mut Vec<String>) {
    if depth > MAX_DEPTH {
        return;
    }
    let child_path = |name: &str| match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = child_path(name);
                if (name == "data" && path.ends_with("kinesis.data"))
                    && let Some((data, encoding)) = value.as_str().and_then(kinesis_data)
                {
                    *value = data;
                    decoded.push(format!("{path}: {encoding}"));
                    visit(value, &path, depth + 1, decoded);
                } else {
                    visit(value, &path, depth, decoded);
                }
            }
        }
        Value::Array(values) => {
            for (index, value) in values.iter_mut().enumerate() {
                visit(value, &format!("{path}[{index}]"), depth, decoded);
            }
        }
        Value::String(text) => {
            if let Some(inner) = parse_json(text) {
                *value = inner;
                decoded.push(format!("{}: JSON", if path.is_empty() { "." } else { path }));
                visit(value, path, depth + 1, decoded);
            }
        }
        _ => {}
    }
}

/// Parses a JSON object or list from a text. Returns `None` for a number or a word, which stays a text.
fn parse_json(text: &str) -> Option<Value> {
    let text = text.trim_start();
    let structured = text.starts_with(['{', '[']);
    structured.then(|| serde_json::from_str(text).ok()).flatten()
}

/// Returns the decoded data of a Kinesis record, and its encoding.
fn kinesis_data(base64: &str) -> Option<(Value, &'static str)> {
    let bytes = STANDARD.decode(base64).ok()?;
    let (bytes, is_gzip) = if bytes.starts_with(&GZIP) {
        let mut unpacked = Vec::new();
        let mut reader = MultiGzDecoder::new(&bytes[..]).take(MAX_BYTES + 1);
        reader.read_to_end(&mut unpacked).ok()?;
        if unpacked.len() as u64 > MAX_BYTES {
            return None;
        }
        (unpacked, true)
    } else {
        (bytes, false)
    };
    let text = String::from_utf8(bytes).ok()?;
    Some(match (parse_json(&text), is_gzip) {
        (Some(value), true) => (value, "base64, gzip, JSON"),
        (Some(value), false) => (value, "base64, JSON"),
        (None, true) => (Value::String(text), "base64, gzip"),
        (None, false) => (Value::String(text), "base64"),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use serde_json::json;

    use super::*;

    fn gzip(bytes: &[u8]) -> String {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        STANDARD.encode(encoder.finish().unwrap())
    }

    fn record(data: &str) -> Value {
        json!({"kinesis": {"data": data, "partitionKey": "p"}})
    }

    #[test]
    fn the_data_of_a_record_is_decoded_and_its_encodings_are_named() {
        let bundle = br#"{"bundleId": "b"}"#;
        for (data, decoded, encoding) in [
            (gzip(bundle), json!({"bundleId": "b"}), "base64, gzip, JSON"),
            (STANDARD.encode(bundle), json!({"bundleId": "b"}), "base64, JSON"),
            (STANDARD.encode("not JSON"), json!("not JSON"), "base64"),
            (gzip(b"{broken"), json!("{broken"), "base64, gzip"),
        ] {
            let mut payload = record(&data);
            assert_eq!(decode(&mut payload), [format!("kinesis.data: {encoding}")]);
            assert_eq!(payload["kinesis"]["data"], decoded);
        }
    }

    #[test]
    fn json_in_texts_is_decoded_at_any_depth() {
        let inner = json!({"data": {"siteId": "s"}}).to_string();
        let body = json!({"detail": inner, "note": "12", "word": "true"}).to_string();
        let mut payload = json!({"Records": [{"body": body}]});
        let decoded = decode(&mut payload);
        assert_eq!(decoded, ["Records[0].body: JSON", "Records[0].body.detail: JSON"]);
        let body = &payload["Records"][0]["body"];
        assert_eq!((&body["detail"]["data"]["siteId"], &body["note"]), (&json!("s"), &json!("12")));
    }

    #[test]
    fn invalid_and_oversize_data_are_not_decoded() {
        let bomb = gzip(&vec![b' '; usize::try_from(MAX_BYTES).unwrap() + 1]);
        let whole = STANDARD.decode(gzip(&[7; 5000])).unwrap();
        let cut = STANDARD.encode(&whole[..whole.len() - 9]);
        for data in [bomb.as_str(), &cut, "no base64!", "/w=="] {
            let mut payload = record(data);
            let before = payload.clone();
            let decoded = decode(&mut payload);
            assert_eq!((payload, decoded), (before, Vec::new()));
        }
    }
}
