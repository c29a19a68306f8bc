//! Limits processes to the CPU share of a 128 MB Lambda function, with a control group.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// The CPU period that Lambda uses, in microseconds.
const PERIOD: u64 = 20_000;
/// The CPU quota of 128 MB, in microseconds per period. A function with 1,769 MB has a full core.
const OF_128_MB: u64 = PERIOD * 128 / 1769;

/// A control group with the CPU share of 128 MB. Dropping it removes the group.
#[derive(Debug)]
pub struct Quota(PathBuf);

impl Quota {
    /// Creates the group with cgroups version 1 or 2. Fails with the reason if this machine does not allow it.
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
        // This may fail if the controller is already enabled.
        fs::write(unified.join("cgroup.subtree_control"), "+cpu").ok();
        let group = Self::create(unified.join(&name))?;
        group.write("cpu.max", &format!("{OF_128_MB} {PERIOD}"))?;
        Ok(group)
    }

    /// Moves these processes into the group. They share its quota.
    pub fn add(&self, processes: &[i32]) -> Result<()> {
        processes.iter().try_for_each(|process| self.write("cgroup.procs", &process.to_string()))
    }

    fn create(folder: PathBuf) -> Result<Self> {
        fs::create_dir(&folder).with_context(|| format!("can't create {}", folder.display()))?;
        Ok(Self(folder))
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let file = self.0.join(file);
        fs::write(&file, value).with_context(|| format!("can't write {}", file.display()))
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("can't remove {}: {error}", self.0.display());
        }
    }
}
