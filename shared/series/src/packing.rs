//! The encoding of a series' samples in a row. `docs/decisions.md` has the reasons, with figures.
//!
//! The first byte is the encoding's version, so rows of all versions can be read. The second byte is the number of
//! decimal digits of the values (0 to 6), or 255 if the values are stored unscaled. The following parts consist of
//! varints (zigzag where signed), unless stated otherwise:
//! - the number of samples;
//! - the first time, in milliseconds since the epoch;
//! - for the other times, the differences of differences. A 0 is followed by the number of further zeros, so the times
//!   of a logger with a fixed interval take a dozen bytes, however many there are;
//! - in version 2 only: the flags and the qualifiers;
//! - the values as integers, scaled by that number of decimal digits. Each is stored as the difference from the
//!   previous one. If no number of digits restores all values bit for bit, each value is stored as eight bytes, little
//!   endian. Missing values are left out.
//!
//! Version 1 has no flags and no qualifiers. It is used whenever all samples have a value and the default flag, and
//! none has a qualifier. The flags of version 2 are runs: a flag as one byte, and a length. The qualifiers are a
//! dictionary of texts, followed by runs of samples with the same qualifiers. A run is the number of samples without
//! qualifiers before it, its length, and the indexes of its qualifiers in the dictionary.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::digest::{SHA256, digest};
use contracts::{
    Timestamp,
    sample::{Flag, MAX_QUALIFIERS, MAX_SERIES_QUALIFIERS, Qualifier, Qualifiers, Sample},
};
use integer_encoding::VarInt;

/// The version for samples that all have a value, the default flag and no qualifiers.
const PLAIN: u8 = 1;
/// The version for all other samples.
const FLAGGED: u8 = 2;
const POWERS: [f64; 7] = [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6];
/// Takes the place of the number of digits if the values are stored unscaled.
const UNSCALED: u8 = u8::MAX;
/// The maximum number of samples that can be decoded. It is greater than that of any row. The limit keeps damaged data
/// from allocating too much memory.
const MAX_SAMPLES: usize = 1 << 17;

/// The error for bytes that can't be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("packed samples can't be read: {0}")]
pub struct UnpackError(&'static str);

const TRUNCATED: UnpackError = UnpackError("truncated");
const TOO_MANY: UnpackError = UnpackError("too many samples");

fn is_plain(samples: &[Sample], qualifiers: &Qualifiers) -> bool {
    qualifiers.is_empty() && samples.iter().all(|sample| sample.flag == Flag::default())
}

/// Encodes the samples with their qualifiers.
#[must_use]
pub fn pack(samples: &[Sample], qualifiers: &Qualifiers) -> Vec<u8> {
    let mut packed = Vec::with_capacity(24 + 4 * samples.len());
    let is_plain = is_plain(samples, qualifiers);
    let scaled = scaled(samples);
    packed.push(if is_plain { PLAIN } else { FLAGGED });
    packed.push(scaled.as_ref().map_or(UNSCALED, |(digits, _)| *digits));
    put(&mut packed, samples.len());
    put_times(&mut packed, samples);
    if !is_plain {
        put_flags(&mut packed, samples);
        put_qualifiers(&mut packed, qualifiers);
    }
    match scaled {
        Some((_, numbers)) => {
            let mut before = 0_i64;
            for number in numbers {
                put(&mut packed, number.wrapping_sub(before));
                before = number;
            }
        }
        None => packed.extend(values(samples).flat_map(f64::to_le_bytes)),
    }
    packed
}

/// Returns the first half of a SHA-256 that identifies packed samples.
///
/// For version 1, the hash covers the times and values of the samples, so it is the same in all releases. For version
/// 2, the hash covers the packed bytes. If a later release packs the same samples in another way, these hashes differ.
#[must_use]
pub fn hash(samples: &[Sample], packed: &[u8]) -> Vec<u8> {
    let hash = if packed.first() == Some(&PLAIN) {
        let mut bytes = Vec::with_capacity(16 * samples.len());
        for Sample { at, value, .. } in samples {
            bytes.extend(at.millis().to_le_bytes());
            // A plain sample has a value.
            bytes.extend(value.unwrap_or_default().to_le_bytes());
        }
        digest(&SHA256, &bytes)
    } else {
        digest(&SHA256, packed)
    };
    hash.as_ref()[..16].to_vec()
}

/// Decodes samples without their qualifiers. The values are restored bit for bit.
pub fn unpack(packed: &[u8]) -> Result<Vec<Sample>, UnpackError> {
    unpack_qualified(packed).map(|(samples, _)| samples)
}

/// Decodes samples with their qualifiers. The values are restored bit for bit.
pub fn unpack_qualified(packed: &[u8]) -> Result<(Vec<Sample>, Qualifiers), UnpackError> {
    let [version @ (PLAIN | FLAGGED), digits, rest @ ..] = packed else {
        return Err(UnpackError("unknown encoding"));
    };
    let mut rest = rest;
    let times = take_times(&mut rest)?;
    let (flags, qualifiers) = match *version {
        PLAIN => (vec![Flag::default(); times.len()], Qualifiers::default()),
        _ => (take_flags(&mut rest, times.len())?, take_qualifiers(&mut rest, times.len())?),
    };
    let mut values = Values::new(*digits, rest)?;
    let mut samples = Vec::with_capacity(times.len());
    for (at, flag) in times.into_iter().zip(flags) {
        samples.push(match flag {
            Flag::Missing => Sample::missing(at),
            flag => Sample { at, value: Some(values.next()?), flag },
        });
    }
    values.end()?;
    Ok((samples, qualifiers))
}

/// Decodes values one by one.
enum Values<'a> {
    Scaled { power: f64, number: i64, rest: &'a [u8] },
    Unscaled(&'a [u8]),
}

impl<'a> Values<'a> {
    fn new(digits: u8, rest: &'a [u8]) -> Result<Self, UnpackError> {
        if digits == UNSCALED {
            return Ok(Self::Unscaled(rest));
        }
        let power = POWERS.get(usize::from(digits)).ok_or(UnpackError("too many digits"))?;
        Ok(Self::Scaled { power: *power, number: 0, rest })
    }

    fn next(&mut self) -> Result<f64, UnpackError> {
        match self {
            Self::Scaled { power, number, rest } => {
                *number = number.wrapping_add(take(rest)?);
                Ok(value(*number, *power))
            }
            Self::Unscaled(rest) => {
                let (value, others) = rest.split_first_chunk().ok_or(TRUNCATED)?;
                *rest = others;
                Ok(f64::from_le_bytes(*value))
            }
        }
    }

    fn end(self) -> Result<(), UnpackError> {
        let (Self::Scaled { rest, .. } | Self::Unscaled(rest)) = self;
        if rest.is_empty() { Ok(()) } else { Err(UnpackError("bytes after the last sample")) }
    }
}

fn put(packed: &mut Vec<u8>, number: impl VarInt) {
    let mut bytes = [0; 10];
    let length = number.encode_var(&mut bytes);
    packed.extend(&bytes[..length]);
}

fn take<T: VarInt>(bytes: &mut &[u8]) -> Result<T, UnpackError> {
    let (number, length) = T::decode_var(bytes).ok_or(TRUNCATED)?;
    *bytes = bytes.get(length..).unwrap_or_default();
    Ok(number)
}

fn put_times(packed: &mut Vec<u8>, samples: &[Sample]) {
    let [first, rest @ ..] = samples else { return };
    let mut before = first.at.millis();
    put(packed, before);
    let (mut step, mut repeats) = (0_i64, 0_u64);
    for Sample { at, .. } in rest {
        let next = at.millis() - before;
        if next == step {
            repeats += 1;
        } else {
            put_repeats(packed, &mut repeats);
            put(packed, next - step);
        }
        (before, step) = (at.millis(), next);
    }
    put_repeats(packed, &mut repeats);
}

fn put_repeats(packed: &mut Vec<u8>, repeats: &mut u64) {
    if *repeats > 0 {
        put(packed, 0_i64);
        put(packed, *repeats - 1);
        *repeats = 0;
    }
}

fn take_times(bytes: &mut &[u8]) -> Result<Vec<Timestamp>, UnpackError> {
    let count: usize = take(bytes)?;
    if count > MAX_SAMPLES {
        return Err(TOO_MANY);
    }
    let mut times = Vec::with_capacity(count);
    if count == 0 {
        return Ok(times);
    }
    let mut at: i64 = take(bytes)?;
    let (mut step, mut repeats) = (0_i64, 0_u64);
    times.push(Timestamp::from_millis(at));
    for _ in 1..count {
        if repeats > 0 {
            repeats -= 1;
        } else {
            let change: i64 = take(bytes)?;
            if change == 0 {
                repeats = take(bytes)?;
            }
            step = step.wrapping_add(change);
        }
        at = at.wrapping_add(step);
        times.push(Timestamp::from_millis(at));
    }
    Ok(times)
}

fn put_flags(packed: &mut Vec<u8>, samples: &[Sample]) {
    for run in samples.chunk_by(|a, b| a.flag == b.flag) {
        packed.push(u8::from(run[0].flag));
        put(packed, run.len());
    }
}

fn take_flags(bytes: &mut &[u8], count: usize) -> Result<Vec<Flag>, UnpackError> {
    let mut flags = Vec::with_capacity(count);
    while flags.len() < count {
        let (flag, rest) = bytes.split_first().ok_or(TRUNCATED)?;
        *bytes = rest;
        let flag = Flag::try_from(*flag).map_err(|_| UnpackError("unknown flag"))?;
        let length: usize = take(bytes)?;
        if length > count - flags.len() {
            return Err(TOO_MANY);
        }
        flags.resize(flags.len() + length, flag);
    }
    Ok(flags)
}

fn put_qualifiers(packed: &mut Vec<u8>, qualifiers: &Qualifiers) {
    let texts: BTreeSet<_> = qualifiers.iter().flat_map(|(_, qualifiers)| qualifiers).collect();
    let dictionary: BTreeMap<_, _> = texts.into_iter().zip(0_usize..).collect();
    put(packed, dictionary.len());
    for text in dictionary.keys() {
        put(packed, text.as_str().len());
        packed.extend(text.as_str().as_bytes());
    }
    let entries: Vec<_> = qualifiers.iter().collect();
    let is_run =
        |a: &(usize, &[Qualifier]), b: &(usize, &[Qualifier])| a.0 + 1 == b.0 && a.1 == b.1;
    let runs: Vec<_> = entries.chunk_by(is_run).collect();
    put(packed, runs.len());
    let mut end = 0;
    for run in runs {
        let (start, qualifiers) = run[0];
        put(packed, start - end);
        put(packed, run.len());
        put(packed, qualifiers.len());
        for qualifier in qualifiers {
            put(packed, dictionary[qualifier]);
        }
        end = start + run.len();
    }
}

fn take_qualifiers(bytes: &mut &[u8], count: usize) -> Result<Qualifiers, UnpackError> {
    const TOO_MANY_QUALIFIERS: UnpackError = UnpackError("too many qualifiers");
    let size: usize = take(bytes)?;
    if size > MAX_SERIES_QUALIFIERS {
        return Err(TOO_MANY_QUALIFIERS);
    }
    let mut dictionary = Vec::with_capacity(size);
    for _ in 0..size {
        let length: usize = take(bytes)?;
        let (text, rest) = bytes.split_at_checked(length).ok_or(TRUNCATED)?;
        *bytes = rest;
        let text = str::from_utf8(text).ok().and_then(|text| text.parse::<Qualifier>().ok());
        dictionary.push(text.ok_or(UnpackError("invalid qualifier"))?);
    }
    let (runs, mut end): (usize, usize) = (take(bytes)?, 0);
    let mut all = Qualifiers::default();
    for _ in 0..runs {
        let (gap, length): (usize, usize) = (take(bytes)?, take(bytes)?);
        let start = end.saturating_add(gap);
        end = start.saturating_add(length);
        if end > count {
            return Err(TOO_MANY);
        }
        let entries: usize = take(bytes)?;
        if entries > MAX_QUALIFIERS {
            return Err(TOO_MANY_QUALIFIERS);
        }
        let mut qualifiers = Vec::with_capacity(entries);
        for _ in 0..entries {
            let entry = dictionary.get(take::<usize>(bytes)?);
            qualifiers.push(entry.ok_or(UnpackError("unknown qualifier"))?.clone());
        }
        for index in start..end {
            all.push(index, qualifiers.clone());
        }
    }
    Ok(all)
}

fn values(samples: &[Sample]) -> impl Iterator<Item = f64> {
    samples.iter().filter_map(|sample| sample.value)
}

/// Returns the smallest number of decimal digits that restores all values bit for bit, and the values as integers.
/// Returns `None` if there is no such number.
fn scaled(samples: &[Sample]) -> Option<(u8, Vec<i64>)> {
    (0_u8..).zip(POWERS).find_map(|(digits, power)| {
        let numbers: Option<_> = values(samples).map(|value| number(value, power)).collect();
        Some((digits, numbers?))
    })
}

#[expect(clippy::cast_possible_truncation, reason = "the comparison detects a truncated value")]
fn number(float: f64, power: f64) -> Option<i64> {
    // On x86_64 without extensions, `round()` would be a function call, which is slower.
    let scaled = float * power;
    let number = (scaled + 0.5_f64.copysign(scaled)) as i64;
    (value(number, power).to_bits() == float.to_bits()).then_some(number)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "`number` returns only integers that convert without loss"
)]
fn value(number: i64, power: f64) -> f64 {
    number as f64 / power
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, test_runner::RngSeed};
    use sha2::{Digest, Sha256};

    use super::*;

    fn hash_of(samples: &[Sample], qualifiers: &Qualifiers) -> Vec<u8> {
        hash(samples, &pack(samples, qualifiers))
    }

    /// Generates samples at ascending times, at a fixed interval or at irregular ones. The values are those of
    /// instruments, or unusual ones.
    fn samples() -> impl Strategy<Value = Vec<Sample>> {
        let reading = (-1_000_000..1_000_000_i32, 0..7_i32)
            .prop_map(|(number, digits)| f64::from(number) / 10_f64.powi(digits));
        let finite = any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |v| v.is_finite());
        let odd = prop::sample::select(vec![
            0.0,
            -0.0,
            f64::MAX,
            f64::MIN,
            f64::MIN_POSITIVE,
            f64::MIN_POSITIVE / 2.0,
            f64::from_bits(1),
            9_007_199_254_740_993.0,
            9_223_372_036_854_775_807.0,
            0.1 + 0.2,
        ]);
        let values = prop_oneof![
            4 => vec(reading, 0..200).boxed(),
            2 => vec(finite, 0..50).boxed(),
            2 => vec(odd, 0..50).boxed(),
        ];
        let steps = prop_oneof![Just(vec![60_000]), vec(1..1_000_000_000_i64, 1..5)];
        (0..4_102_444_800_000_i64, steps, values).prop_map(|(start, steps, values)| {
            let mut at = start;
            let sample = |(value, step)| {
                at += step;
                Sample::new(Timestamp::from_millis(at), value)
            };
            values.into_iter().zip(steps.into_iter().cycle()).map(sample).collect()
        })
    }

    /// Adds flags and qualifiers to runs of samples, and makes some samples missing.
    fn flagged() -> impl Strategy<Value = (Vec<Sample>, Qualifiers)> {
        let texts = vec("[a-z<>]{1,40}", 1..5);
        let run = (1..40_usize, prop::sample::select(&Flag::ALL), vec(0..5_usize, 0..4));
        (samples(), texts, vec(run, 1..6)).prop_map(|(mut samples, texts, runs)| {
            let mut qualifiers = Qualifiers::default();
            let mut rest = samples.iter_mut().enumerate();
            for (length, flag, entries) in runs.iter().cycle() {
                let before = rest.len();
                for (index, sample) in rest.by_ref().take(*length) {
                    *sample = Sample::flagged(sample.at, sample.value.expect("a value"), *flag);
                    let text = |entry: &usize| texts[entry % texts.len()].parse();
                    let own: Result<_, _> = entries.iter().map(text).collect();
                    qualifiers.push(index, own.expect("qualifiers"));
                }
                if before <= *length {
                    break;
                }
            }
            (samples, qualifiers)
        })
    }

    fn bits(samples: &[Sample]) -> Vec<(i64, Option<u64>)> {
        samples
            .iter()
            .map(|Sample { at, value, .. }| (at.millis(), value.map(f64::to_bits)))
            .collect()
    }

    fn fixed(cases: u32) -> ProptestConfig {
        ProptestConfig {
            cases,
            rng_seed: RngSeed::Fixed(1),
            failure_persistence: None,
            ..ProptestConfig::default()
        }
    }

    proptest! {
        #![proptest_config(fixed(1_000))]

        #[test]
        fn samples_are_restored_bit_for_bit(samples in samples()) {
            let back = unpack(&pack(&samples, &Qualifiers::default())).expect("packed samples");
            prop_assert_eq!(bits(&back), bits(&samples));
        }

        #[test]
        fn flags_and_qualifiers_are_restored((samples, qualifiers) in flagged()) {
            let packed = pack(&samples, &qualifiers);
            let (back, own) = unpack_qualified(&packed).expect("packed samples");
            prop_assert_eq!(bits(&back), bits(&samples));
            prop_assert_eq!(back, samples);
            prop_assert_eq!(own, qualifiers);
        }

        #[test]
        fn samples_without_flags_have_the_encoding_and_the_hash_of_version_1(samples in samples()) {
            prop_assert_eq!(pack(&samples, &Qualifiers::default())[0], PLAIN);
            let mut expected = Sha256::new();
            for sample in &samples {
                expected.update(sample.at.millis().to_le_bytes());
                expected.update(sample.value.expect("a value").to_le_bytes());
            }
            let expected = &expected.finalize()[..16];
            prop_assert_eq!(&hash_of(&samples, &Qualifiers::default())[..], expected);
        }

        #[test]
        fn a_hash_depends_on_flags_and_qualifiers(
            (samples, qualifiers) in flagged(),
            (others, other_qualifiers) in flagged(),
        ) {
            let plain: Vec<_> =
                samples.iter().map(|it| Sample::new(it.at, it.value.unwrap_or(0.0))).collect();
            let hashes = [
                (hash_of(&samples, &qualifiers), (&samples, &qualifiers)),
                (hash_of(&plain, &Qualifiers::default()), (&plain, &Qualifiers::default())),
                (hash_of(&samples, &Qualifiers::default()), (&samples, &Qualifiers::default())),
                (hash_of(&others, &other_qualifiers), (&others, &other_qualifiers)),
            ];
            for (a, b) in hashes.iter().flat_map(|a| hashes.iter().map(move |b| (a, b))) {
                prop_assert_eq!(a.0 == b.0, a.1 == b.1);
            }
        }

        #[test]
        fn damaged_bytes_cause_no_panic_and_no_large_result(
            (samples, qualifiers) in flagged(),
            damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut packed = pack(&samples, &qualifiers);
            for (at, byte) in damage {
                let at = at.index(packed.len());
                packed[at] = byte;
            }
            for packed in [&packed[..], &packed[..cut.index(packed.len())]] {
                if let Ok(samples) = unpack(packed) {
                    prop_assert!(samples.len() <= 1 << 20, "{} samples", samples.len());
                }
            }
        }
    }

    proptest! {
        #![proptest_config(fixed(5_000))]

        #[test]
        fn random_bytes_cause_no_panic_and_no_large_result(bytes in vec(any::<u8>(), 0..60)) {
            // The first byte is the version: once a random one, then each valid one.
            let versioned = [PLAIN, FLAGGED].map(|version| [&[version], &bytes[..]].concat());
            for bytes in [&bytes, &versioned[0], &versioned[1]] {
                if let Ok(samples) = unpack(bytes) {
                    prop_assert!(samples.len() <= 1 << 20, "{} samples", samples.len());
                }
            }
        }
    }

    #[test]
    fn an_empty_series_is_restored() {
        assert_eq!(unpack(&pack(&[], &Qualifiers::default())), Ok(Vec::new()));
        assert!(unpack(&[]).is_err());
    }

    #[test]
    fn a_day_of_a_logger_takes_one_byte_per_sample() {
        let sample = |n: u32| {
            let at = 1_767_268_800_000 + i64::from(n) * 60_000;
            Sample::new(Timestamp::from_millis(at), f64::from(n * n % 7) / 10.0)
        };
        let packed = pack(&(0..1440).map(sample).collect::<Vec<_>>(), &Qualifiers::default());
        assert!(packed.len() < 1440 + 20, "{} bytes", packed.len());
    }

    #[test]
    fn a_day_with_few_flags_takes_a_few_bytes_more() {
        let at = |n: u32| Timestamp::from_millis(1_767_268_800_000 + i64::from(n) * 60_000);
        let value = |n: u32| f64::from(n * n % 7) / 10.0;
        let sample = |n: u32| match n {
            100..103 => Sample::flagged(at(n), value(n), Flag::Suspect),
            700 => Sample::missing(at(n)),
            n => Sample::new(at(n), value(n)),
        };
        let samples: Vec<_> = (0..1440).map(sample).collect();
        let plain: Vec<_> = (0..1440).map(|n| Sample::new(at(n), value(n))).collect();
        let none = Qualifiers::default();
        let (plain, flagged) = (pack(&plain, &none).len(), pack(&samples, &none).len());
        assert!(flagged <= plain + 16, "{flagged} instead of {plain} bytes");

        // The samples of an hour of maintenance have a qualifier.
        let mut qualifiers = Qualifiers::default();
        for minute in 600..660 {
            qualifiers.push(minute, vec!["maintenance".parse().expect("a qualifier")]);
        }
        let qualified = pack(&samples, &qualifiers).len();
        assert!(qualified <= flagged + 20, "{qualified} instead of {flagged} bytes");
    }

    #[test]
    fn bytes_of_version_1_are_read() {
        // Three samples a minute apart, as the first release packed them.
        let packed = [1, 1, 3, 128, 216, 238, 150, 239, 102, 192, 169, 7, 0, 0, 151, 1, 2, 1];
        let at = |n: i64| Timestamp::from_millis(1_767_268_800_000 + n * 60_000);
        let expected = [-7.6, -7.5, -7.6].into_iter().zip(0..);
        let expected: Vec<_> = expected.map(|(value, n)| Sample::new(at(n), value)).collect();
        assert_eq!(unpack(&packed), Ok(expected.clone()));
        assert_eq!(pack(&expected, &Qualifiers::default()), packed);
    }

    #[test]
    fn a_full_row_fits_into_an_item() {
        // Values with 17 digits at irregular times are the worst case.
        let sample = |n: u32| {
            let at = 1_767_268_800_000 + i64::from(n) * 8_640 + i64::from(n * n % 997);
            Sample::new(Timestamp::from_millis(at), f64::from(n).sin() * 1e10)
        };
        let samples: Vec<_> = (0..10_000).map(sample).collect();
        let packed = pack(&samples, &Qualifiers::default());
        assert_eq!(bits(&unpack(&packed).expect("packed samples")), bits(&samples));
        assert!(packed.len() < 350_000, "{} bytes", packed.len());
    }
}
