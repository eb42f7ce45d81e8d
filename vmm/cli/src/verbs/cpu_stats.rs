//! `bulkhead cpu-stats`: prints the processor time that a guest has used.

use std::process::ExitCode;

use anyhow::bail;
use serde::Serialize;

use crate::domain::{Domain, DomainArg};
use crate::output::Output;
use crate::supervise::state::Times;

/// A guest whose processor time is printed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    /// Print the total, which is all that there is: the kernel counts no process's time on each CPU
    #[arg(long)]
    total: bool,
    /// For virsh's sake: is refused, since there are no figures of single CPUs
    #[arg(long, value_name = "NUMBER")]
    start: Option<u32>,
    /// For virsh's sake, too
    #[arg(long, value_name = "NUMBER")]
    count: Option<u32>,
}

/// Times in nanoseconds.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Total {
    cpu_time: u64,
    user_time: u64,
    system_time: u64,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let domain = args.domain.find()?;
    domain.must_run()?;
    if !args.total && (args.start.is_some() || args.count.is_some()) {
        bail!(
            "Failed to retrieve CPU statistics for domain '{0}': the kernel counts no process's time on each CPU: \
             use 'bulkhead cpu-stats --total {0}', or 'bulkhead vcpuinfo {0}' for each vCPU",
            domain.name()
        );
    }
    output.show(&Total::of(&domain), text)?;
    Ok(ExitCode::SUCCESS)
}

impl Total {
    /// The time of all processes of the guest: its CPUs, its devices.
    fn of(domain: &Domain) -> Self {
        let processes = domain.running.iter().flat_map(|state| &state.processes);
        let times = processes.filter_map(|process| process.id?.times());
        let sum = times.fold(Times::default(), |sum, one| sum + one);
        Self {
            cpu_time: sum.total(),
            user_time: sum.user,
            system_time: sum.system,
        }
    }
}

fn text(total: &Total) -> String {
    const SECOND: u64 = 1_000_000_000;
    let line = |name: &str, time: u64| {
        let (seconds, rest) = (time / SECOND, time % SECOND);
        format!("\t{name:<12} {seconds:>9}.{rest:09} seconds\n")
    };
    ["Total:\n".to_owned()]
        .into_iter()
        .chain([
            line("cpu_time", total.cpu_time),
            line("user_time", total.user_time),
            line("system_time", total.system_time),
        ])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_virshs() {
        let total = Total {
            cpu_time: 48_772_617_035,
            user_time: 5_540_000_000,
            system_time: 6_460_000_000,
        };
        // As virsh 9.0 prints it of its test guest.
        assert_eq!(
            text(&total),
            "Total:\n\tcpu_time            48.772617035 seconds\n\tuser_time            5.540000000 seconds\n\
             \tsystem_time          6.460000000 seconds\n"
        );
    }
}
