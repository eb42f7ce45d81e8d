//! Linux guests end to end, each scenario on real programs, a real kernel and a real KVM: directly where KVM can run
//! Linux, all of them in one outer host of the nested bench otherwise.

mod backend_death;
mod confinement;
mod dry_run;
mod endings;
mod power_button;

pub use backend_death::{FILE_KIB, KILLS};

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::demo;
use crate::guest_command::{GuestCommand, KernelImage};
use crate::guest_linux;
use crate::guest_run::GuestRun;
use crate::host_state::{self, HostState};
use crate::workplace::{Workplace, scratch_folder};

/// Each scenario must be over within this.
const TIME_LIMIT: Duration = Duration::from_secs(300);

/// A scenario and its name.
pub struct Scenario {
    /// What it shows.
    pub name: &'static str,
    /// Runs it; an error is a failure.
    pub run: fn(&Setting) -> Result<()>,
}

/// Where a scenario runs, and with what guest where that is not part of it.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The programs and the kernel.
    pub workplace: Workplace,
    /// How many vCPUs the guest has.
    pub cpus: u32,
    /// How often its backend is killed.
    pub kills: u32,
    /// How many KiB each file has at most that it writes meanwhile.
    pub file_kib: u32,
}

/// All of them.
pub const SCENARIOS: [Scenario; 11] = [
    Scenario {
        name: "a_guest_on_its_processes",
        run: |setting| demo(&setting.workplace, 1, KernelImage::BzImage),
    },
    Scenario {
        name: "an_elf_kernel_on_two_cpus",
        run: |setting| demo(&setting.workplace, 2, KernelImage::Vmlinux),
    },
    Scenario {
        name: "a_disk_survives_the_death_of_its_backend",
        run: backend_death::block,
    },
    Scenario {
        name: "a_network_card_survives_the_death_of_its_backend",
        run: |setting| backend_death::net(&setting.workplace),
    },
    Scenario {
        name: "ctrl_c_leaves_nothing_behind",
        run: |setting| endings::interrupt(&setting.workplace),
    },
    Scenario {
        name: "the_death_of_the_monitor_leaves_nothing_behind",
        run: |setting| endings::monitor_killed(&setting.workplace),
    },
    Scenario {
        name: "a_reset_ends_with_3",
        run: |setting| endings::reset(&setting.workplace),
    },
    Scenario {
        name: "a_triple_fault_ends_with_4",
        run: |setting| endings::crash(&setting.workplace),
    },
    Scenario {
        name: "linux_sees_each_press_of_the_power_button",
        run: |setting| power_button::presses(&setting.workplace),
    },
    Scenario {
        name: "the_commands_of_a_dry_run_work_as_printed",
        run: |setting| dry_run::commands(&setting.workplace),
    },
    Scenario {
        name: "no_process_can_open_connect_or_execute",
        run: |setting| confinement::refused(&setting.workplace),
    },
];

fn demo(workplace: &Workplace, cpus: u32, kernel: KernelImage) -> Result<()> {
    demo::run(workplace, demo::Options { cpus, kernel }, &mut |_| ())
}

/// A folder with a guest's files, and what the host looked like before the guest.
struct Stage<'a> {
    workplace: &'a Workplace,
    folder: tempfile::TempDir,
    before: HostState,
}

impl<'a> Stage<'a> {
    fn new(workplace: &'a Workplace) -> Result<Self> {
        Ok(Self {
            workplace,
            folder: scratch_folder(workplace)?,
            before: HostState::take()?,
        })
    }

    /// A guest that runs `script`.
    fn guest(&self, script: &str, settings: &[(&str, &str)]) -> Result<GuestCommand> {
        self.guest_with_modules(&guest_linux::MODULES, script, settings)
    }

    /// A guest that loads these modules of the kernel package and runs `script`.
    fn guest_with_modules(
        &self,
        modules: &[&str],
        script: &str,
        settings: &[(&str, &str)],
    ) -> Result<GuestCommand> {
        let initramfs = self.path("guest.cpio");
        let kernel = self.workplace.kernel()?;
        guest_linux::build_with_modules(&kernel, modules, script, settings, &initramfs)?;
        Ok(GuestCommand::new("scenario", &initramfs))
    }

    fn run(&self, guest: &GuestCommand) -> Result<GuestRun> {
        GuestRun::start(guest.command(self.workplace)?, TIME_LIMIT)
    }

    /// A new qcow2 image of that size.
    fn disk(&self, size: &str) -> Result<PathBuf> {
        let path = self.path("disk.qcow2");
        let mut create = Command::new(self.workplace.program("image-tool")?);
        create
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&path)
            .arg(size);
        let output = create.output().context("image-tool")?;
        if !output.status.success() {
            bail!(
                "image-tool create: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An error if anything of the run is left.
    fn nothing_left(&self) -> Result<()> {
        HostState::take()?.same_as(&self.before)
    }
}

/// The one process of that program.
fn process_of(program: &str) -> Result<u32> {
    match host_state::running(program)?[..] {
        [pid] => Ok(pid),
        [] => bail!("{program} does not run"),
        _ => bail!("{program} runs more than once"),
    }
}

fn signal(pid: u32, signal: rustix::process::Signal) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(pid.try_into()?).context("process id 0")?;
    rustix::process::kill_process(pid, signal).context("signal")
}

/// An error unless `qemu-img` finds the image in order.
fn check_image(path: &Path) -> Result<()> {
    let output = Command::new("qemu-img")
        .args(["check", "-f", "qcow2"])
        .arg(path)
        .output()
        .context("qemu-img")?;
    if !output.status.success() {
        bail!(
            "qemu-img check: {}",
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim()
        );
    }
    Ok(())
}
