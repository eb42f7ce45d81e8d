//! `bulkhead nodeinfo`: this host's processors and memory, as virsh prints them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

use crate::host;
use crate::output::Output;

/// Print what processors and memory this host has
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Args {}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Node {
    cpu_model: String,
    cpus: usize,
    cpu_frequency_mhz: Option<u64>,
    #[serde(flatten)]
    topology: Topology,
    memory_kib: u64,
}

/// Sockets of a NUMA cell, cores of a socket, threads of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Topology {
    cpu_sockets: usize,
    cores_per_socket: usize,
    threads_per_core: usize,
    numa_cells: usize,
}

/// Where a processor is.
#[derive(Clone, Copy, Debug)]
struct Cpu {
    cell: usize,
    socket: u64,
    core: u64,
}

pub(crate) fn run(_: Args, output: Output) -> anyhow::Result<ExitCode> {
    let node = look()?;
    output.show(&node, text)?;
    Ok(ExitCode::SUCCESS)
}

fn look() -> anyhow::Result<Node> {
    let cpuinfo = host::read("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let meminfo = host::read("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let memory = meminfo.lines().find_map(|line| {
        let value = line.strip_prefix("MemTotal:")?;
        value.trim().strip_suffix(" kB")?.parse().ok()
    });
    let cpus = cpus();
    let count = match cpus.len() {
        0 => std::thread::available_parallelism()?.get(),
        count => count,
    };
    let frequency = host::cpu_field(&cpuinfo, "cpu MHz");
    let name = rustix::system::uname();
    Ok(Node {
        cpu_model: name.machine().to_string_lossy().into_owned(),
        cpus: count,
        cpu_frequency_mhz: frequency.and_then(|mhz| mhz.split('.').next()?.parse().ok()),
        topology: topology(&cpus, count),
        memory_kib: memory.context("/proc/meminfo has no MemTotal")?,
    })
}

/// The processors that are online.
fn cpus() -> Vec<Cpu> {
    let folders = numbered("/sys/devices/system/cpu", "cpu");
    let found = folders.into_iter().filter_map(|(_, folder)| {
        let number = |name| host::number(folder.join("topology").join(name));
        let cells = numbered(&folder, "node");
        Some(Cpu {
            cell: cells.first().map_or(0, |(cell, _)| *cell),
            socket: number("physical_package_id")?,
            core: number("core_id")?,
        })
    });
    found.collect()
}

/// The entries of a folder whose name is `prefix` and a number.
fn numbered(folder: impl AsRef<Path>, prefix: &str) -> Vec<(usize, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        let number = entry.file_name().to_str()?.strip_prefix(prefix)?.parse();
        Some((number.ok()?, entry.path()))
    });
    found.collect()
}

fn topology(cpus: &[Cpu], count: usize) -> Topology {
    let distinct = |keys: BTreeSet<(usize, u64, u64)>| keys.len();
    let cells: BTreeSet<_> = cpus.iter().map(|cpu| cpu.cell).collect();
    let of_cell = |cell: usize| cpus.iter().filter(move |cpu| cpu.cell == cell);
    let sockets = |cell| distinct(of_cell(cell).map(|cpu| (cell, cpu.socket, 0)).collect());
    let cpu_sockets = cells.iter().map(|cell| sockets(*cell)).max().unwrap_or(0);
    let cores = cpus.iter().map(|cpu| (cpu.cell, cpu.socket, cpu.core));
    let cores = distinct(cores.collect());
    let sockets_in_all = distinct(cpus.iter().map(|cpu| (cpu.cell, cpu.socket, 0)).collect());
    let found = Topology {
        cpu_sockets,
        cores_per_socket: cores.checked_div(sockets_in_all).unwrap_or(0),
        threads_per_core: cpus.len().checked_div(cores).unwrap_or(0),
        numa_cells: cells.len(),
    };
    match found.product() == count {
        true => found,
        // As libvirt has it for hosts that are not the same everywhere: readers multiply these.
        false => Topology {
            cpu_sockets: 1,
            cores_per_socket: count,
            threads_per_core: 1,
            numa_cells: 1,
        },
    }
}

impl Topology {
    fn product(self) -> usize {
        self.cpu_sockets * self.cores_per_socket * self.threads_per_core * self.numa_cells
    }
}

fn text(node: &Node) -> String {
    let topology = node.topology;
    let frequency = node.cpu_frequency_mhz.map(|mhz| format!("{mhz} MHz"));
    let lines = [
        ("CPU model:", Some(node.cpu_model.clone())),
        ("CPU(s):", Some(node.cpus.to_string())),
        ("CPU frequency:", frequency),
        ("CPU socket(s):", Some(topology.cpu_sockets.to_string())),
        (
            "Core(s) per socket:",
            Some(topology.cores_per_socket.to_string()),
        ),
        (
            "Thread(s) per core:",
            Some(topology.threads_per_core.to_string()),
        ),
        ("NUMA cell(s):", Some(topology.numa_cells.to_string())),
        ("Memory size:", Some(format!("{} KiB", node.memory_kib))),
    ];
    let known = lines
        .into_iter()
        .filter_map(|(label, value)| Some((label, value?)));
    known
        .map(|(label, value)| format!("{label:<20} {value}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Processors of `cells` cells, each with sockets, cores and threads.
    fn cpus_of(cells: usize, sockets: u64, cores: u64, threads: usize) -> Vec<Cpu> {
        let mut all = Vec::new();
        for cell in 0..cells {
            for socket in 0..sockets {
                for core in 0..cores {
                    all.extend([Cpu { cell, socket, core }].repeat(threads));
                }
            }
        }
        all
    }

    #[test]
    fn the_text_is_virshs() {
        // As virsh 9.0 prints its test host.
        let node = Node {
            cpu_model: "i686".into(),
            cpus: 16,
            cpu_frequency_mhz: Some(1400),
            topology: topology(&cpus_of(2, 2, 2, 2), 16),
            memory_kib: 3_145_728,
        };
        assert_eq!(
            text(&node),
            "CPU model:           i686\nCPU(s):              16\nCPU frequency:       1400 MHz\n\
             CPU socket(s):       2\nCore(s) per socket:  2\nThread(s) per core:  2\n\
             NUMA cell(s):        2\nMemory size:         3145728 KiB\n"
        );
    }

    #[test]
    fn a_host_that_is_not_the_same_everywhere_is_one_socket() {
        let mut cpus = cpus_of(1, 1, 4, 2);
        cpus.truncate(7);
        let found = topology(&cpus, 7);
        assert_eq!((found.cpu_sockets, found.cores_per_socket), (1, 7));
        assert_eq!(topology(&[], 4).product(), 4);
    }
}
