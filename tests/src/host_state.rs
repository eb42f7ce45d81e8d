//! What a run must not leave behind: links, nftables tables, processes, sockets and runtime files of this host.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Everything of those kinds there is at one moment, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostState(BTreeSet<String>);

/// The processes a run starts.
const PROCESSES: [&str; 6] = [
    "bulkhead",
    "bulkhead-vmm",
    "bulkhead-block",
    "bulkhead-net",
    "bulkhead-net-helper",
    "dnsmasq",
];

impl HostState {
    /// Looks.
    pub fn take() -> Result<Self> {
        let mut state = BTreeSet::new();
        for link in lines_of(Command::new("ip").args(["-oneline", "link"]))? {
            // `2: eth0@if3: <…`: the name, without index and peer.
            let name = link.split_whitespace().nth(1).unwrap_or_default();
            state.insert(format!(
                "network link {}",
                name.trim_end_matches(':')
                    .split('@')
                    .next()
                    .unwrap_or_default()
            ));
        }
        state.extend(
            lines_of(Command::new("nft").args(["list", "tables"]))?
                .map(|line| format!("nftables {line}")),
        );
        for (pid, name) in processes()? {
            if PROCESSES.iter().any(|known| comm(known) == name) {
                state.insert(format!("process {name} ({pid})"));
            }
        }
        let sockets = std::fs::read_to_string("/proc/net/unix").context("/proc/net/unix")?;
        let paths = sockets
            .lines()
            .filter_map(|line| line.split_whitespace().nth(7));
        state.extend(
            paths
                .filter(|path| path.contains("bulkhead"))
                .map(|path| format!("socket {path}")),
        );
        files_below(Path::new("/run/bulkhead"), &mut state);
        Ok(Self(state))
    }

    /// What is there now and was not before.
    pub fn added_since(&self, before: &Self) -> Vec<&str> {
        self.0
            .iter()
            .filter(|line| !before.0.contains(*line))
            .map(String::as_str)
            .collect()
    }

    /// An error that names what is there now and was not before.
    pub fn same_as(&self, before: &Self) -> Result<()> {
        match self.added_since(before)[..] {
            [] => Ok(()),
            ref left => bail!("left behind: {}", left.join(", ")),
        }
    }
}

/// Process id and name of every process.
pub fn processes() -> Result<Vec<(u32, String)>> {
    let entries = std::fs::read_dir("/proc").context("/proc")?;
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // One that has gone since has no name any more.
    Ok(pids.filter_map(|pid| Some((pid, name_of(pid)?))).collect())
}

/// What each thread of the processes whose name begins so is doing, and the eventfds that are not at zero.
pub fn threads_of(beginning: &str) -> Vec<String> {
    let found = processes().unwrap_or_default().into_iter();
    let found = found.filter(|(_, name)| name.starts_with(beginning));
    found
        .flat_map(|(pid, _)| {
            let folder = PathBuf::from(format!("/proc/{pid}"));
            let threads = entries(&folder.join("task")).map(|task| {
                let text = |name| std::fs::read_to_string(task.join(name)).unwrap_or_default();
                let stat = text("stat");
                let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
                let fields: Vec<&str> = after_name.split_whitespace().collect();
                let field = |index: usize| fields.get(index).copied().unwrap_or("?");
                format!(
                    "process {pid}, thread {:<15} state {}, ticks {} + {}, wchan {}, system call {}",
                    text("comm").trim_end(),
                    field(0),
                    field(11),
                    field(12),
                    text("wchan"),
                    text("syscall").trim_end()
                )
            });
            let eventfds = entries(&folder.join("fdinfo")).filter_map(|path| {
                let info = std::fs::read_to_string(&path).ok()?;
                let line = info.lines().find(|line| line.starts_with("eventfd-count"))?;
                let is_zero = line.split_whitespace().nth(1) == Some("0");
                let number = path.file_name()?.to_str()?.to_owned();
                (!is_zero).then(|| format!("process {pid}, descriptor {number}: {line}"))
            });
            threads.chain(eventfds).collect::<Vec<_>>()
        })
        .collect()
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

/// The processes of that program that somebody else started: not those that it has for parts of its work.
pub fn running(program: &str) -> Result<Vec<u32>> {
    let is_named = |pid: u32| name_of(pid).is_some_and(|name| name == comm(program));
    let is_part =
        |pid: u32| std::iter::successors(parent_of(pid), |&pid| parent_of(pid)).any(is_named);
    let found = processes()?.into_iter().map(|(pid, _)| pid);
    Ok(found
        .filter(|&pid| is_named(pid) && !is_part(pid))
        .collect())
}

fn parent_of(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

fn name_of(pid: u32) -> Option<String> {
    Some(
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .ok()?
            .trim_end()
            .to_owned(),
    )
}

/// A program's name as the kernel keeps it, in 15 bytes.
pub fn comm(program: &str) -> &str {
    program.get(..15).unwrap_or(program)
}

fn lines_of(command: &mut Command) -> Result<impl Iterator<Item = String>> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect::<Vec<_>>()
        .into_iter())
}

fn files_below(folder: &Path, state: &mut BTreeSet<String>) {
    for path in entries(folder) {
        state.insert(format!("runtime file {}", path.display()));
        files_below(&path, state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_added_is_named() {
        let state =
            |lines: &[&str]| HostState(lines.iter().map(|line| (*line).to_owned()).collect());
        let (before, after) = (
            state(&["link lo", "link eth0"]),
            state(&["link lo", "link tap0"]),
        );
        assert_eq!(after.added_since(&before), ["link tap0"]);
        assert!(before.same_as(&before).is_ok());
        assert_eq!(
            after.same_as(&before).unwrap_err().to_string(),
            "left behind: link tap0"
        );
    }
}
