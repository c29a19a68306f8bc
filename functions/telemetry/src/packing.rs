//! How a series' samples are packed into one row.
//!
//! The first byte is the encoding's version, so that rows of all times can be read.

use contracts::{Timestamp, readings::Sample};

/// Times in milliseconds and values, each as eight bytes, little endian.
const PLAIN: u8 = 1;

/// Bytes that are no packed samples.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("packed samples can't be read: {0}")]
pub struct Unreadable(String);

/// Packs the samples.
#[must_use]
pub fn pack(samples: &[Sample]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(1 + 16 * samples.len());
    packed.push(PLAIN);
    for Sample(at, value) in samples {
        packed.extend(at.millis().to_le_bytes());
        packed.extend(value.to_le_bytes());
    }
    packed
}

/// Reads them back, to the bit.
pub fn unpack(packed: &[u8]) -> Result<Vec<Sample>, Unreadable> {
    let Some((&PLAIN, pairs)) = packed.split_first() else {
        return Err(Unreadable("unknown encoding".to_owned()));
    };
    let (pairs, rest) = pairs.as_chunks::<16>();
    if !rest.is_empty() {
        return Err(Unreadable("cut off".to_owned()));
    }
    Ok(pairs
        .iter()
        .map(|pair| {
            let (at, value) = pair.split_at(8);
            let bytes = |half: &[u8]| half.try_into().unwrap_or_default();
            Sample(
                Timestamp::from_millis(i64::from_le_bytes(bytes(at))),
                f64::from_le_bytes(bytes(value)),
            )
        })
        .collect())
}
