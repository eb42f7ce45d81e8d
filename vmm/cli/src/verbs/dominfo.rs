//! `bulkhead dominfo`: prints the main facts about a guest.

use std::process::ExitCode;

use serde::Serialize;

use crate::domain::{Domain, DomainArg};
use crate::output::{Output, fields};

/// A guest about which facts are printed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    domain: DomainArg,
}

#[derive(Serialize)]
struct Info {
    id: Option<u32>,
    name: String,
    uuid: String,
    os_type: &'static str,
    state: String,
    cpus: u8,
    /// Seconds of all virtual CPUs.
    cpu_time: Option<f64>,
    /// KiB.
    max_memory: u64,
    /// KiB.
    used_memory: u64,
    persistent: bool,
    autostart: bool,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<ExitCode> {
    let domain = args.domain.find()?;
    output.show(&Info::of(&domain), |info| {
        let mut lines = vec![
            ("Id", domain.shown_id()),
            ("Name", info.name.clone()),
            ("UUID", info.uuid.clone()),
            ("OS Type", info.os_type.to_owned()),
            ("State", info.state.clone()),
            ("CPU(s)", info.cpus.to_string()),
        ];
        if let Some(time) = info.cpu_time {
            lines.push(("CPU time", format!("{time:.1}s")));
        }
        let switch = |on| if on { "enable" } else { "disable" };
        let answer = |yes| if yes { "yes" } else { "no" };
        lines.extend([
            ("Max memory", format!("{} KiB", info.max_memory)),
            ("Used memory", format!("{} KiB", info.used_memory)),
            ("Persistent", answer(info.persistent).to_owned()),
            ("Autostart", switch(info.autostart).to_owned()),
            ("Managed save", answer(false).to_owned()),
            ("Security model", "none".to_owned()),
            ("Security DOI", "0".to_owned()),
        ]);
        fields(lines)
    })?;
    Ok(ExitCode::SUCCESS)
}

impl Info {
    fn of(domain: &Domain) -> Self {
        let definition = domain.definition();
        let memory = definition.memory.bytes() / 1024;
        Self {
            id: domain.id(),
            name: definition.name.clone(),
            uuid: definition.uuid().to_string(),
            os_type: "linux",
            state: domain.state().0.to_string(),
            cpus: definition.cpus,
            cpu_time: domain.cpu_time(),
            max_memory: memory,
            used_memory: memory,
            persistent: domain.is_persistent(),
            autostart: definition.autostart,
        }
    }
}
