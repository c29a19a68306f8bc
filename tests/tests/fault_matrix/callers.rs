//! Finds the process at the other end of a connection by the connection's ports.

use std::{fs, io, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A process that runs a function.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The process id.
    pub pid: Pid,
    /// The function's name in AWS.
    pub function: String,
    /// `host:port` of the process's Runtime API.
    pub runtime_api: String,
}

/// Finds the process that has the connection from port `from` to our port `to`. Both are on loopback.
pub fn find(from: u16, to: u16) -> Result<Caller> {
    let inode = inode(from, to)?;
    let link = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end during the search, or belong to another user.
        if has_open(&entry.path(), &link).unwrap_or(false) {
            let environment = fs::read(entry.path().join("environ"))?;
            let environment = String::from_utf8_lossy(&environment);
            let variable = |name: &str| {
                let mut set = environment.split('\0').filter_map(|set| set.split_once('='));
                let value = set.find(|(known, _)| *known == name).map(|(_, value)| value);
                value.with_context(|| format!("process {number} has no {name}")).map(str::to_owned)
            };
            return Ok(Caller {
                pid: Pid::from_raw(number).context("invalid process id")?,
                function: variable("AWS_LAMBDA_FUNCTION_NAME")?,
                runtime_api: variable("FIELDSTATION_RUNTIME_API")?,
            });
        }
    }
    bail!("no process has the connection from port {from}")
}

fn has_open(process: &Path, link: &str) -> io::Result<bool> {
    for descriptor in fs::read_dir(process.join("fd"))? {
        if fs::read_link(descriptor?.path()).is_ok_and(|target| target.as_os_str() == link) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the inode of the caller's socket.
fn inode(from: u16, to: u16) -> Result<String> {
    let port = |address: &str| {
        let (_, port) = address.split_once(':')?;
        u16::from_str_radix(port, 16).ok()
    };
    for line in fs::read_to_string("/proc/net/tcp")?.lines().skip(1) {
        let columns: Vec<_> = line.split_whitespace().collect();
        if let [_, local, remote, _, _, _, _, _, _, inode, ..] = columns[..]
            && port(local) == Some(from)
            && port(remote) == Some(to)
            && inode != "0"
        {
            return Ok(inode.to_owned());
        }
    }
    bail!("the connection from port {from} is closed")
}

/// Kills the process with `kill -9`, and waits until it has ended.
pub async fn kill(pid: Pid) -> Result<()> {
    kill_process(pid, Signal::KILL).with_context(|| format!("kill -9 {pid:?}"))?;
    for _ in 0..500 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid()));
        if stat.map_or(true, |stat| stat.contains(") Z")) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    bail!("{pid:?} did not end")
}
