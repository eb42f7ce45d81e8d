//! `bulkhead vcpuinfo`: prints what each virtual CPU of a guest does.

use std::process::ExitCode;

use serde::Serialize;

use crate::domain::{Domain, DomainArg};
use crate::output::{Output, fields};
use crate::stats::vcpu::{self, CpuList, Vcpu};

/// A guest about whose virtual CPUs facts are printed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    /// Print affinities as ranges
    #[arg(long)]
    pretty: bool,
}

/// A virtual CPU; what is missing is not known of a guest that does not run.
#[derive(Debug, Serialize)]
struct Info {
    vcpu: u32,
    cpu: Option<u32>,
    state: Option<&'static str>,
    /// Nanoseconds.
    cpu_time: Option<u64>,
    affinity: Vec<usize>,
    #[serde(skip)]
    list: CpuList,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let domain = args.domain.find()?;
    let count = vcpu::host_cpus();
    let infos = match domain.running {
        Some(_) => running(&domain)?,
        None => inactive(&domain, count),
    };
    output.show(&infos, |infos| {
        let texts: Vec<_> = infos
            .iter()
            .map(|info| text(info, args.pretty, count))
            .collect();
        texts.join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

fn running(domain: &Domain) -> anyhow::Result<Vec<Info>> {
    let all = vcpu::of(domain);
    all.iter().map(info).collect()
}

fn info(vcpu: &Vcpu) -> anyhow::Result<Info> {
    let list = vcpu.affinity()?;
    Ok(Info {
        vcpu: vcpu.index,
        cpu: Some(vcpu.cpu),
        state: Some("running"),
        cpu_time: Some(vcpu.time),
        affinity: list.numbers().to_vec(),
        list,
    })
}

fn inactive(domain: &Domain, count: usize) -> Vec<Info> {
    let list = CpuList::all(count);
    let vcpus = 0..u32::from(domain.definition().cpus);
    let info = |vcpu| Info {
        vcpu,
        cpu: None,
        state: None,
        cpu_time: None,
        affinity: list.numbers().to_vec(),
        list: list.clone(),
    };
    vcpus.map(info).collect()
}

fn text(info: &Info, pretty: bool, count: usize) -> String {
    let unknown = || "N/A".to_owned();
    let seconds = |nanoseconds: u64| {
        #[allow(clippy::cast_precision_loss, reason = "it is shown with one decimal")]
        let seconds = nanoseconds as f64 / 1e9;
        format!("{seconds:.1}s")
    };
    let affinity = match pretty {
        true => format!("{} (out of {count})", info.list),
        false => info.list.letters(count),
    };
    fields([
        ("VCPU", info.vcpu.to_string()),
        ("CPU", info.cpu.map_or_else(unknown, |cpu| cpu.to_string())),
        ("State", info.state.map_or_else(unknown, str::to_owned)),
        ("CPU time", info.cpu_time.map_or_else(unknown, seconds)),
        ("CPU Affinity", affinity),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_virshs() {
        let list = CpuList::all(8);
        let info = Info {
            vcpu: 0,
            cpu: Some(15),
            state: Some("running"),
            cpu_time: Some(179_606_600_000_000),
            affinity: list.numbers().to_vec(),
            list,
        };
        // As virsh 9.0 prints it of its test guest.
        let head = "VCPU:           0\nCPU:            15\nState:          running\nCPU time:       179606.6s\n";
        assert_eq!(
            text(&info, false, 8),
            format!("{head}CPU Affinity:   yyyyyyyy\n")
        );
        assert_eq!(
            text(&info, true, 8),
            format!("{head}CPU Affinity:   0-7 (out of 8)\n")
        );
    }
}
