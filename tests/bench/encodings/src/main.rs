//! Packs every series of a day, read from the standard input, with the one candidate that is
//! compiled in, and prints what that takes. Run by measure.sh.
//!
//! `encodings BUNDLE_MINUTES PACKS UNPACKS [jitter]`: the instructions of one pack are the
//! difference between two runs with different PACKS. With `jitter`, the times are off by up to half
//! a second, as those of a device that stamps when it got round to it.

mod candidates;
#[cfg(feature = "packing")]
#[path = "../../../../functions/telemetry/src/packing.rs"]
mod packing;

use std::{error::Error, hint::black_box, io::read_to_string};

use candidates::{CANDIDATE, Packing};
use contracts::{Timestamp, readings::Sample};

/// 2016-01-01, the day of the file.
const MIDNIGHT: i64 = 1_451_606_400_000;
const MINUTE: i64 = 60_000;
/// Columns of `dw_solar`, `uw_solar`, `direct_n`, `diffuse`, `dw_ir`, `uw_ir`, temp, rh, windspd,
/// winddir and pressure; the quality flag follows each.
const COLUMNS: [usize; 11] = [8, 10, 12, 14, 16, 22, 38, 40, 42, 44, 46];
const MISSING: f64 = -9999.9;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [minutes, packs, unpacks, jitter @ ..] = arguments.as_slice() else {
        return Err("usage: encodings BUNDLE_MINUTES PACKS UNPACKS [jitter]".into());
    };
    let (packs, unpacks): (usize, usize) = (packs.parse()?, unpacks.parse()?);
    let mut series = read(&read_to_string(std::io::stdin())?)?;
    if !jitter.is_empty() {
        series.iter_mut().flatten().for_each(|sample| sample.0 = jittered(sample.0));
    }
    let bundle = minutes.parse::<i64>()? * MINUTE;
    let bundles: Vec<&[Sample]> = series
        .iter()
        .flat_map(|series| {
            series.chunk_by(move |a, b| a.0.millis() / bundle == b.0.millis() / bundle)
        })
        .collect();

    // Neither the candidate nor what comes out of it may be known to the compiler.
    let candidate = black_box(CANDIDATE);
    let mut packed = Vec::new();
    for _ in 0..packs {
        packed = bundles.iter().map(|bundle| black_box(candidate.pack(bundle))).collect();
    }
    let packed: Vec<Vec<u8>> =
        packed.into_iter().collect::<Option<_>>().ok_or("a bundle cannot be packed")?;
    let mut unpacked = Vec::new();
    for _ in 0..unpacks {
        unpacked = packed.iter().map(|bytes| black_box(candidate.unpack(bytes))).collect();
    }

    let same =
        bundles.iter().zip(&unpacked).all(|(bundle, unpacked)| equal(bundle, unpacked.as_ref()));
    let samples: usize = bundles.iter().map(|bundle| bundle.len()).sum();
    let bytes: usize = packed.iter().map(Vec::len).sum();
    let largest = packed.iter().map(Vec::len).max().unwrap_or(0);
    let lossless = match (same, returns(candidate, &[FINITE]), returns(candidate, &[FINITE, REST]))
    {
        (true, true, true) => "yes",
        (true, true, false) => "if finite",
        (true, false, _) => "this day only",
        (false, _, _) => "no",
    };
    println!("{samples} {bytes} {largest} {}", lossless.replace(' ', "-"));
    Ok(())
}

/// The series of the file, without what its quality control rejected.
fn read(file: &str) -> Result<Vec<Vec<Sample>>, Box<dyn Error>> {
    let mut series = vec![Vec::new(); COLUMNS.len()];
    for line in file.lines().skip(2) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let field = |column: usize| fields.get(column).copied().ok_or("a short line");
        let minute = field(4)?.parse::<i64>()? * 60 + field(5)?.parse::<i64>()?;
        for (series, column) in series.iter_mut().zip(COLUMNS) {
            let value: f64 = field(column)?.parse()?;
            if value.to_bits() != MISSING.to_bits() && field(column + 1)? == "0" {
                series.push(Sample(Timestamp::from_millis(MIDNIGHT + minute * MINUTE), value));
            }
        }
    }
    Ok(series)
}

/// Up to half a second either way, the same in every run.
fn jittered(time: Timestamp) -> Timestamp {
    // A step of SplitMix64. What evenly spaced times are merely multiplied to is evenly spaced too.
    let mut noise = time.millis().cast_unsigned();
    noise = (noise ^ (noise >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    noise = (noise ^ (noise >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    time.plus_millis((noise ^ (noise >> 31)).cast_signed().rem_euclid(1001) - 500)
}

fn equal(samples: &[Sample], unpacked: Option<&Vec<Sample>>) -> bool {
    let bits = |sample: &Sample| (sample.0, sample.1.to_bits());
    unpacked.is_some_and(|unpacked| samples.iter().map(bits).eq(unpacked.iter().map(bits)))
}

const FINITE: &[f64] = &[
    0.0,
    -0.0,
    0.1 + 0.2,
    -1.5,
    123_456.789_012,
    9_007_199_254_740_993.0,
    1e300,
    f64::MIN_POSITIVE / 8.0,
    f64::MAX,
];
const REST: &[f64] = &[f64::INFINITY, f64::NAN, f64::from_bits(0xfff0_dead_beef_0001)];

/// Whether values that a sensor rarely sends come back bit for bit as well: each alone, all
/// together, none, and some that are scaled but for one.
fn returns(candidate: &dyn Packing, hard: &[&[f64]]) -> bool {
    let hard = hard.concat();
    let mut bundles: Vec<Vec<f64>> = hard.iter().map(|value| vec![*value]).collect();
    bundles.extend([Vec::new(), hard, vec![-0.1, -0.0, 0.1], vec![1e18, -1e18, 1e18]]);
    bundles.iter().all(|values| {
        // Far apart, and before the epoch.
        let times = (0..).map(|step: i64| (step - 3).pow(3) * 3_000_000_000);
        let pair = |(value, time): (&f64, i64)| Sample(Timestamp::from_millis(time), *value);
        let samples: Vec<Sample> = values.iter().zip(times).map(pair).collect();
        let packed = candidate.pack(&samples);
        packed.is_some_and(|bytes| equal(&samples, candidate.unpack(&bytes).as_ref()))
    })
}
