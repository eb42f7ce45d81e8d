//! The nested bench: an outer host under QEMU's software emulation, whose AMD SVM gives Debian's own kernel a real
//! and complete `/dev/kvm`. Commands run in it as they would on a machine with hardware virtualization.

mod outer_root;
mod qemu;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub use qemu::Clock;

use crate::probe::{Verdict, probe};
use crate::workplace::{Workplace, in_outer_host};

/// Why a guest with its network cannot run on this very machine, and the nested bench is needed.
pub fn needed() -> Result<Option<String>> {
    let why = match probe() {
        Verdict::RunsLinux if !rustix::process::geteuid().is_root() => {
            "KVM here can run Linux, but only root can give it a network".to_owned()
        }
        Verdict::RunsLinux => return Ok(None),
        Verdict::RunsNoLinux(why) | Verdict::RunsNothing(why) => {
            format!("KVM here cannot run Linux ({why})")
        }
    };
    if in_outer_host() {
        bail!("{why}, and this is an outer host of the nested bench already");
    }
    Ok(Some(why))
}

/// How an outer host ended.
#[derive(Debug)]
pub enum End {
    /// With the exit status of the command.
    Status(u8),
    /// Its own kernel has overflowed its stack, which happens now and then under emulation with two processors,
    /// whatever runs in it. Holds the end of its console.
    StackOverflow(String),
}

/// What to run in an outer host, and with what.
#[derive(Debug, Clone)]
pub struct OuterHost {
    /// Memory in MiB.
    pub memory: u32,
    /// How its time passes.
    pub clock: Clock,
    /// After this it is stopped and counts as failed.
    pub time_limit: Duration,
    /// Further programs of this machine, with the libraries they need, at the same paths.
    pub extra_programs: Vec<PathBuf>,
}

impl Default for OuterHost {
    fn default() -> Self {
        Self {
            memory: 4096,
            clock: Clock::Host,
            time_limit: Duration::from_secs(300),
            extra_programs: Vec::new(),
        }
    }
}

impl OuterHost {
    /// Boots an outer host, runs `command` in it with its output going to this program's standard output, and
    /// returns the command's exit status.
    ///
    /// A command is found in [`Workplace::programs`] or in Debian's own folders.
    pub fn run(&self, workplace: &Workplace, command: &[String]) -> Result<u8> {
        match self.run_watched(workplace, command, &mut |_| ())? {
            End::Status(code) => Ok(code),
            End::StackOverflow(console) => bail!(
                "the outer host's own kernel has overflowed its stack, which is the emulation's fault: try again; the end of its console:\n{console}"
            ),
        }
    }

    /// The same, with the output going to `watch`, too.
    pub fn run_watched(
        &self,
        workplace: &Workplace,
        command: &[String],
        watch: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<End> {
        let bench = workplace.bench();
        std::fs::create_dir_all(&bench).with_context(|| bench.display().to_string())?;
        let scratch = tempfile::Builder::new()
            .prefix("outer-")
            .tempdir_in(&bench)
            .context("scratch folder")?;
        let kernel = workplace.kernel()?;
        let initramfs = scratch.path().join("root.cpio");
        outer_root::build(workplace, &kernel, &self.extra_programs, command)?.save(&initramfs)?;
        qemu::run(self, &kernel.bzimage(), &initramfs, scratch.path(), watch)
    }
}
