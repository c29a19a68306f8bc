//! How a series' samples are packed into one row; what for is told, with figures, in
//! `docs/decisions.md`.
//!
//! The first byte is the encoding's version, so that rows of all times can be read. Then, as varints
//! (zigzag where signed):
//! - how many decimal digits the values have (0 to 6), or that they are kept as they are;
//! - how many samples there are;
//! - the first time, in milliseconds since the epoch, and of the others the differences of
//!   differences, where a 0 is followed by how many more there are: a logger's even pace takes a
//!   dozen bytes, however long it lasts;
//! - the values as integers of that many digits, each as the difference to the one before; or, eight
//!   bytes each, little endian, where a value would not come back to the bit.

use contracts::{Timestamp, readings::Sample};
use integer_encoding::VarInt;

const VERSION: u8 = 1;
const POWERS: [f64; 7] = [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6];
/// Stands where the number of digits would.
const AS_THEY_ARE: u8 = u8::MAX;
/// More than any row has: damaged bytes must not take all memory.
const MOST_SAMPLES: usize = 1 << 17;

/// Bytes that are no packed samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("packed samples can't be read: {0}")]
pub struct Unreadable(&'static str);

/// Packs the samples.
#[must_use]
pub fn pack(samples: &[Sample]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(24 + 4 * samples.len());
    let scaled = scaled(samples);
    packed.push(VERSION);
    packed.push(scaled.as_ref().map_or(AS_THEY_ARE, |(digits, _)| *digits));
    put(&mut packed, samples.len());
    put_times(&mut packed, samples);
    match scaled {
        Some((_, numbers)) => {
            let mut before = 0_i64;
            for number in numbers {
                put(&mut packed, number.wrapping_sub(before));
                before = number;
            }
        }
        None => packed.extend(samples.iter().flat_map(|sample| sample.1.to_le_bytes())),
    }
    packed
}

/// Reads them back, to the bit.
pub fn unpack(packed: &[u8]) -> Result<Vec<Sample>, Unreadable> {
    let [VERSION, digits, rest @ ..] = packed else {
        return Err(Unreadable("unknown encoding"));
    };
    let mut rest = rest;
    let times = take_times(&mut rest)?;
    if *digits == AS_THEY_ARE {
        let (values, []) = rest.as_chunks::<8>() else { return Err(Unreadable("cut off")) };
        if values.len() != times.len() {
            return Err(Unreadable("not as many values as times"));
        }
        let sample = |(at, value): (_, &[u8; 8])| Sample(at, f64::from_le_bytes(*value));
        return Ok(times.into_iter().zip(values).map(sample).collect());
    }
    let power = POWERS.get(usize::from(*digits)).ok_or(Unreadable("too many digits"))?;
    let mut number = 0_i64;
    let mut samples = Vec::with_capacity(times.len());
    for at in times {
        number = number.wrapping_add(take(&mut rest)?);
        samples.push(Sample(at, value(number, *power)));
    }
    if rest.is_empty() { Ok(samples) } else { Err(Unreadable("more bytes than samples")) }
}

fn put(packed: &mut Vec<u8>, number: impl VarInt) {
    let mut bytes = [0; 10];
    let length = number.encode_var(&mut bytes);
    packed.extend(&bytes[..length]);
}

fn take<T: VarInt>(bytes: &mut &[u8]) -> Result<T, Unreadable> {
    let (number, length) = T::decode_var(bytes).ok_or(Unreadable("cut off"))?;
    *bytes = bytes.get(length..).unwrap_or_default();
    Ok(number)
}

fn put_times(packed: &mut Vec<u8>, samples: &[Sample]) {
    let [Sample(first, _), rest @ ..] = samples else { return };
    let mut before = first.millis();
    put(packed, before);
    let (mut step, mut evenly) = (0_i64, 0_u64);
    for Sample(at, _) in rest {
        let next = at.millis() - before;
        if next == step {
            evenly += 1;
        } else {
            put_evenly(packed, &mut evenly);
            put(packed, next - step);
        }
        (before, step) = (at.millis(), next);
    }
    put_evenly(packed, &mut evenly);
}

fn put_evenly(packed: &mut Vec<u8>, evenly: &mut u64) {
    if *evenly > 0 {
        put(packed, 0_i64);
        put(packed, *evenly - 1);
        *evenly = 0;
    }
}

fn take_times(bytes: &mut &[u8]) -> Result<Vec<Timestamp>, Unreadable> {
    let count: usize = take(bytes)?;
    if count > MOST_SAMPLES {
        return Err(Unreadable("more samples than a row can have"));
    }
    let mut times = Vec::with_capacity(count);
    if count == 0 {
        return Ok(times);
    }
    let mut at: i64 = take(bytes)?;
    let (mut step, mut evenly) = (0_i64, 0_u64);
    times.push(Timestamp::from_millis(at));
    for _ in 1..count {
        if evenly > 0 {
            evenly -= 1;
        } else {
            let change: i64 = take(bytes)?;
            if change == 0 {
                evenly = take(bytes)?;
            }
            step = step.wrapping_add(change);
        }
        at = at.wrapping_add(step);
        times.push(Timestamp::from_millis(at));
    }
    Ok(times)
}

/// The fewest decimal digits that all values come back from, to the bit, and the integers.
fn scaled(samples: &[Sample]) -> Option<(u8, Vec<i64>)> {
    (0_u8..).zip(POWERS).find_map(|(digits, power)| {
        let numbers: Option<_> = samples.iter().map(|sample| number(sample.1, power)).collect();
        Some((digits, numbers?))
    })
}

#[expect(clippy::cast_possible_truncation, reason = "what is cut off shows in the comparison")]
fn number(float: f64, power: f64) -> Option<i64> {
    // Not round(), which is a call on the processors that Lambda promises.
    let scaled = float * power;
    let number = (scaled + 0.5_f64.copysign(scaled)) as i64;
    (value(number, power).to_bits() == float.to_bits()).then_some(number)
}

#[expect(clippy::cast_precision_loss, reason = "`number` takes no integer that loses any")]
fn value(number: i64, power: f64) -> f64 {
    number as f64 / power
}
