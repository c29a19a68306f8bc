//! Measures a function or a peer.

use std::{fs, path::Path, time::Duration};

use anyhow::Result;
use flate2::{Compression, write::DeflateEncoder};
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    aws::{Calls, Source},
    instructions::{self, Instructions},
    process::{Bench, Process, Program},
    quota::Quota,
};

/// The number of processes that are started. The durations of the start and the first invocation are the medians.
const STARTS: usize = 5;
const STARTS_UNDER_QUOTA: usize = 3;
/// The number of warm invocations with the CPU quota.
const WARM_UNDER_QUOTA: usize = 50;
/// The number of invocations after which the peak memory is measured.
const FEW: usize = 1_000;
/// The number of invocations after which the memory is measured again, to find growth.
const MANY: usize = 10_000;
/// Pause between invocations with the CPU quota, so that each starts with an unused quota.
const PAUSE: Duration = Duration::from_millis(25);
/// The size of the headers and names in a zip file with one file.
const ZIP_OVERHEAD: usize = 30 + 46 + 22 + 2 * "bootstrap".len();

/// The figures of a function or a peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Whether it opens a connection before the first event.
    pub connects_in_init: bool,
    /// The calls of the first invocation.
    pub calls: Calls,
    /// The calls of a warm invocation.
    pub warm_calls: Calls,
    /// `None` if the program can't run under valgrind.
    pub instructions: Option<Instructions>,
    /// Durations without a CPU quota.
    pub milliseconds: Milliseconds,
    /// Durations with the CPU share of 128 MB. The start has no quota.
    pub milliseconds_under_quota: Option<Milliseconds>,
    /// CPU time of a warm invocation, the mean of 999.
    pub cpu_micros: f64,
    /// Log size of a warm invocation, the mean of 999.
    pub log_bytes: u64,
    /// Peak memory in 1,000 invocations.
    pub peak_bytes: u64,
    /// Resident memory after 1,000 and after 10,000 invocations.
    pub resident_bytes: Option<[u64; 2]>,
    /// Size of the unpacked code.
    pub code_bytes: Option<u64>,
    /// Size of the zip file.
    pub zip_bytes: Option<u64>,
}

/// Medians of durations, measured outside the process.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Milliseconds {
    /// From the start until the request for the first event.
    pub start: f64,
    /// The first invocation.
    pub first: f64,
    /// A warm invocation.
    pub warm: f64,
}

/// The optional measurements.
#[derive(Clone, Copy, Debug)]
pub struct OptionalMeasurements {
    /// Whether instructions are counted.
    pub instructions: bool,
    /// Whether the memory after 10,000 invocations is measured.
    pub memory_growth: bool,
}

/// Measures a program. The sizes of its code are not included.
pub async fn measure(
    bench: &Bench,
    program: &Program,
    source: &Source,
    event: &Bytes,
    quota: Option<&Quota>,
    optional: OptionalMeasurements,
) -> Result<Figures> {
    let (mut starts, mut firsts) = (Vec::new(), Vec::new());
    for _ in 1..STARTS {
        let mut process = bench.start(program, source.clone(), &[]).await?;
        starts.push(process.start);
        firsts.push(process.invoke(event).await?.0);
        process.end().await?;
    }

    let mut process = bench.start(program, source.clone(), &[]).await?;
    let connects_in_init = process.aws.pings() > 0;
    starts.push(process.start);
    let (first, calls) = process.invoke(event).await?;
    firsts.push(first);
    let (cpu, logged) = (process.cpu()?, process.log_size()?);
    let (warm, warm_calls) = repeat(&mut process, event, FEW - 1, Duration::ZERO).await?;
    let warm_count = u32::try_from(FEW - 1)?;
    let cpu = process.cpu()?.saturating_sub(cpu) / warm_count;
    let log_bytes = (process.log_size()? - logged) / u64::from(warm_count);
    let memory = process.memory()?;
    let resident_bytes = if optional.memory_growth {
        repeat(&mut process, event, MANY - FEW, Duration::ZERO).await?;
        Some([memory.resident, process.memory()?.resident])
    } else {
        None
    };
    process.end().await?;

    let instructions = if optional.instructions {
        Some(instructions::count(bench, program, source, event).await?)
    } else {
        None
    };
    Ok(Figures {
        connects_in_init,
        calls,
        warm_calls,
        instructions,
        milliseconds: Milliseconds {
            start: median(starts),
            first: median(firsts),
            warm: median(warm),
        },
        milliseconds_under_quota: match quota {
            Some(quota) => Some(under_quota(bench, program, source, event, quota).await?),
            None => None,
        },
        cpu_micros: rounded(cpu.as_secs_f64() * 1e6),
        log_bytes,
        peak_bytes: memory.peak,
        resident_bytes,
        code_bytes: None,
        zip_bytes: None,
    })
}

/// Measures durations with the CPU quota. As on Lambda, the start has no quota.
async fn under_quota(
    bench: &Bench,
    program: &Program,
    source: &Source,
    event: &Bytes,
    quota: &Quota,
) -> Result<Milliseconds> {
    let (mut starts, mut firsts, mut warm) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..STARTS_UNDER_QUOTA {
        let mut process = bench.start(program, source.clone(), &[]).await?;
        starts.push(process.start);
        quota.add(&process.family()?)?;
        firsts.push(process.invoke(event).await?.0);
        if warm.is_empty() {
            warm = repeat(&mut process, event, WARM_UNDER_QUOTA, PAUSE).await?.0;
        }
        process.end().await?;
    }
    Ok(Milliseconds { start: median(starts), first: median(firsts), warm: median(warm) })
}

async fn repeat(
    process: &mut Process,
    event: &Bytes,
    times: usize,
    pause: Duration,
) -> Result<(Vec<Duration>, Calls)> {
    let (mut durations, mut calls) = (Vec::with_capacity(times), Calls::new());
    for _ in 0..times {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let (duration, last_calls) = process.invoke(event).await?;
        durations.push(duration);
        calls = last_calls;
    }
    Ok((durations, calls))
}

/// Returns the median in milliseconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    rounded(middle.as_secs_f64() * 1e3)
}

/// Rounds to hundredths.
fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

/// Returns the size of a file, or of all files of a folder: unpacked, and zipped as by `sam package`.
pub fn size(path: &Path) -> Result<(u64, u64)> {
    if path.is_dir() {
        let (mut code, mut zip) = (0, 0);
        for entry in fs::read_dir(path)? {
            let (file_code, file_zip) = size(&entry?.path())?;
            code += file_code;
            zip += file_zip;
        }
        return Ok((code, zip));
    }
    let content = fs::read(path)?;
    let mut deflated = DeflateEncoder::new(Vec::new(), Compression::default());
    std::io::Write::write_all(&mut deflated, &content)?;
    let zipped = deflated.finish()?.len() + ZIP_OVERHEAD;
    Ok((content.len() as u64, zipped as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_milliseconds() {
        let times = [9_000, 1_250, 2].map(Duration::from_micros);
        assert!((median(times.to_vec()) - 1.25).abs() < f64::EPSILON);
    }
}
