//! `bulkhead vcpupin`: prints or sets which CPUs of the host a guest's virtual CPUs run on.

use std::process::ExitCode;

use anyhow::{Context, bail};
use serde::Serialize;

use crate::domain::{Domain, DomainArg};
use crate::output::{Output, Table};
use crate::stats::vcpu::{self, CpuList};

/// Virtual CPUs that are pinned, or whose affinity is printed.
///
/// A virtual CPU stays pinned until the guest's monitor ends, which it also does when the guest resets.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
    /// Number of the virtual CPU
    #[arg(value_name = "VCPU")]
    vcpu: Option<u32>,
    /// The same, as an option
    #[arg(
        long = "vcpu",
        value_name = "VCPU",
        hide = true,
        conflicts_with = "vcpu"
    )]
    named_vcpu: Option<u32>,
    /// CPUs of the host that it is to run on, as 0-3,^1; r means all. Without them, the affinity is printed
    #[arg(value_name = "CPULIST")]
    cpulist: Option<String>,
    /// The same, as an option
    #[arg(
        long = "cpulist",
        value_name = "CPULIST",
        hide = true,
        conflicts_with = "cpulist"
    )]
    named_cpulist: Option<String>,
    /// The virtual CPUs of the guest that runs
    #[arg(long, conflicts_with = "current")]
    live: bool,
    /// Those of the definition in its file, which run on all CPUs: a definition keeps no affinity
    #[arg(long, conflicts_with = "current")]
    config: bool,
    /// Those of the guest that runs, or else of the definition
    #[arg(long)]
    current: bool,
}

/// The affinity of a virtual CPU.
#[derive(Debug, Serialize)]
struct Row {
    vcpu: u32,
    affinity: String,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let domain = args.domain.find()?;
    let cpulist = args.cpulist.as_ref().or(args.named_cpulist.as_ref());
    let vcpu = args.vcpu.or(args.named_vcpu);
    match (vcpu, cpulist) {
        (Some(vcpu), Some(cpulist)) => args.pin(&domain, vcpu, cpulist)?,
        (None, Some(_)) => bail!("vcpupin: Missing vCPU number in pin mode."),
        (_, None) => {
            let rows = args.rows(&domain, vcpu)?;
            output.show_table(&rows, |rows| table(rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn pin(&self, domain: &Domain, index: u32, cpulist: &str) -> anyhow::Result<()> {
        let name = domain.name();
        if self.config {
            bail!(
                "Requested operation is not valid: a definition keeps no affinity: pin the vCPUs of domain \
                 '{name}' when it runs, without --config"
            );
        }
        domain.must_run()?;
        let cpus = CpuList::parse(cpulist, vcpu::host_cpus()).context("vcpupin")?;
        let vcpus = vcpu::of(domain);
        let Some(vcpu) = vcpus.iter().find(|vcpu| vcpu.index == index) else {
            let count = vcpus.len();
            bail!("invalid argument: vcpu {index} is out of range of live cpu count {count}");
        };
        vcpu.pin(&cpus)
    }

    fn rows(&self, domain: &Domain, vcpu: Option<u32>) -> anyhow::Result<Vec<Row>> {
        if self.live {
            domain.must_run()?;
        }
        let mut rows = match domain.running.is_some() && !self.config {
            true => running(domain)?,
            false => defined(domain),
        };
        if let Some(vcpu) = vcpu {
            rows.retain(|row| row.vcpu == vcpu);
            if rows.is_empty() {
                bail!("requested vcpu '{vcpu}' is not present in the domain");
            }
        }
        Ok(rows)
    }
}

fn running(domain: &Domain) -> anyhow::Result<Vec<Row>> {
    let vcpus = vcpu::of(domain).into_iter();
    let row = |vcpu: vcpu::Vcpu| {
        Ok(Row {
            vcpu: vcpu.index,
            affinity: vcpu.affinity()?.to_string(),
        })
    };
    vcpus.map(row).collect()
}

fn defined(domain: &Domain) -> Vec<Row> {
    let all = CpuList::all(vcpu::host_cpus()).to_string();
    let vcpus = 0..u32::from(domain.definition_that_is(true).cpus);
    let row = |vcpu| Row {
        vcpu,
        affinity: all.clone(),
    };
    vcpus.map(row).collect()
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(["VCPU", "CPU Affinity"]);
    for row in rows {
        table.row(vec![row.vcpu.to_string(), row.affinity.clone()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_virshs() {
        let row = |vcpu| Row {
            vcpu,
            affinity: "0-7".to_owned(),
        };
        // As virsh 9.0 prints it of its test guest.
        assert_eq!(
            table(&[row(0), row(1)]).render(true),
            " VCPU   CPU Affinity\n----------------------\n 0      0-7\n 1      0-7\n"
        );
    }
}
