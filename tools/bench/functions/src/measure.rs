//! What a function, or a peer, takes.

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

/// Processes of which the median start, and first invocation, are told.
const STARTS: usize = 5;
const STARTS_UNDER_QUOTA: usize = 3;
/// Warm invocations under the quota.
const WARM_UNDER_QUOTA: usize = 50;
/// The peak memory is that after so many invocations.
const FEW: usize = 1_000;
/// The memory must not have grown after so many.
const MANY: usize = 10_000;
/// Between invocations under the quota: no invocation is to pay for the one before it.
const PAUSE: Duration = Duration::from_millis(25);
/// What a zip file has beside its one file's content: headers and names.
const ZIP: usize = 30 + 46 + 22 + 2 * "bootstrap".len();

/// What is measured of any of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Whether it opens its connection before the first event.
    pub connects_in_init: bool,
    /// What the first invocation calls.
    pub calls: Calls,
    /// What a later one calls.
    pub warm_calls: Calls,
    /// None where it can't be run under valgrind.
    pub instructions: Option<Instructions>,
    /// At full speed.
    pub milliseconds: Milliseconds,
    /// With the share of a core that 128 MB have; the start is at full speed.
    pub milliseconds_under_quota: Option<Milliseconds>,
    /// CPU time of an invocation, the mean of the 999 after the first.
    pub cpu_micros: f64,
    /// What an invocation logs, the mean of the same.
    pub log_bytes: u64,
    /// The largest memory in 1,000 invocations.
    pub peak_bytes: u64,
    /// The memory after 1,000 and after 10,000 invocations.
    pub resident_bytes: Option<[u64; 2]>,
    /// What is unpacked on Lambda.
    pub code_bytes: Option<u64>,
    /// What is uploaded.
    pub zip_bytes: Option<u64>,
}

/// Medians, measured from outside.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Milliseconds {
    /// From the start until it asks for the first event.
    pub start: f64,
    /// The first invocation.
    pub first: f64,
    /// A later one.
    pub warm: f64,
}

/// How thoroughly.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// Whether instructions are counted.
    pub instructions: bool,
    /// Whether it goes on for 10,000 invocations.
    pub many: bool,
}

/// Measures all of it but the size.
pub async fn measure(
    bench: &Bench,
    program: &Program,
    source: &Source,
    event: &Bytes,
    quota: Option<&Quota>,
    scope: Scope,
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
    let (cpu, logged) = (process.cpu()?, process.logged()?);
    let (warm, warm_calls) = repeat(&mut process, event, FEW - 1, Duration::ZERO).await?;
    let warm_count = u32::try_from(FEW - 1)?;
    let cpu = process.cpu()?.saturating_sub(cpu) / warm_count;
    let log_bytes = (process.logged()? - logged) / u64::from(warm_count);
    let memory = process.memory()?;
    let resident_bytes = if scope.many {
        repeat(&mut process, event, MANY - FEW, Duration::ZERO).await?;
        Some([memory.resident, process.memory()?.resident])
    } else {
        None
    };
    process.end().await?;

    let instructions = if scope.instructions {
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

/// As on Lambda, the start is at full speed.
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
        quota.holds(&process.family()?)?;
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
    let (mut took, mut calls) = (Vec::with_capacity(times), Calls::new());
    for _ in 0..times {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let (time, called) = process.invoke(event).await?;
        took.push(time);
        calls = called;
    }
    Ok((took, calls))
}

/// In milliseconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    rounded(middle.as_secs_f64() * 1e3)
}

/// To hundredths.
fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

/// The size of a file, or of all files of a folder, unpacked and zipped as `sam package` does.
pub fn size(place: &Path) -> Result<(u64, u64)> {
    if place.is_dir() {
        let (mut code, mut zip) = (0, 0);
        for entry in fs::read_dir(place)? {
            let (of_code, of_zip) = size(&entry?.path())?;
            code += of_code;
            zip += of_zip;
        }
        return Ok((code, zip));
    }
    let content = fs::read(place)?;
    let mut deflated = DeflateEncoder::new(Vec::new(), Compression::default());
    std::io::Write::write_all(&mut deflated, &content)?;
    let zipped = deflated.finish()?.len() + ZIP;
    Ok((content.len() as u64, zipped as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_milliseconds() {
        let times = [9_000, 1_250, 2].map(Duration::from_micros);
        assert!((median(times.to_vec()) - 1.25).abs() < f64::EPSILON);
    }
}
