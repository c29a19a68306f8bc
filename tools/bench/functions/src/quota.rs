//! The share of a core that Lambda gives a function of 128 MB, by a control group.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// Lambda's own period, in microseconds.
const PERIOD: u64 = 20_000;
/// A whole core has 1,769 MB.
const OF_128_MB: u64 = PERIOD * 128 / 1769;

/// A control group with that share; gone when it is dropped.
#[derive(Debug)]
pub struct Quota(PathBuf);

impl Quota {
    /// Makes one, by version 1 or 2 of control groups; says why where that can't be.
    pub fn new() -> Result<Self> {
        let name = format!("fieldstation-bench-{}", std::process::id());
        for controller in ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"] {
            if Path::new(controller).join("cpu.cfs_quota_us").exists() {
                let group = Self::create(Path::new(controller).join(&name))?;
                group.write("cpu.cfs_period_us", &PERIOD.to_string())?;
                group.write("cpu.cfs_quota_us", &OF_128_MB.to_string())?;
                return Ok(group);
            }
        }
        let unified = Path::new("/sys/fs/cgroup");
        if !unified.join("cgroup.controllers").exists() {
            bail!("no control groups are mounted");
        }
        // It may be on already, and then need not be allowed.
        fs::write(unified.join("cgroup.subtree_control"), "+cpu").ok();
        let group = Self::create(unified.join(&name))?;
        group.write("cpu.max", &format!("{OF_128_MB} {PERIOD}"))?;
        Ok(group)
    }

    /// From now on these processes share it.
    pub fn holds(&self, processes: &[i32]) -> Result<()> {
        processes.iter().try_for_each(|process| self.write("cgroup.procs", &process.to_string()))
    }

    fn create(folder: PathBuf) -> Result<Self> {
        fs::create_dir(&folder).with_context(|| format!("{} can't be made", folder.display()))?;
        Ok(Self(folder))
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let file = self.0.join(file);
        fs::write(&file, value).with_context(|| format!("{} can't be written", file.display()))
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("{} stays: {error}", self.0.display());
        }
    }
}
