//! The command that runs a guest, as a user types it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::guest_linux;
use crate::workplace::Workplace;

/// Which kernel image a guest is started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelImage {
    /// As the package has it.
    BzImage,
    /// ELF with a PVH note.
    Vmlinux,
}

/// A guest to be run by `bulkhead run`.
#[derive(Debug, Clone)]
pub struct GuestCommand {
    /// Its name.
    pub name: &'static str,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Its kernel.
    pub kernel: KernelImage,
    /// What is added to [`guest_linux::CMDLINE`].
    pub cmdline: &'static str,
    /// Its initramfs.
    pub initramfs: PathBuf,
    /// What is given as `--disk`.
    pub disk: Option<String>,
    /// Whether it is on the default network.
    pub net: bool,
    /// Further arguments of `bulkhead run`.
    pub options: &'static [&'static str],
}

impl GuestCommand {
    /// A guest with one vCPU and no devices.
    pub fn new(name: &'static str, initramfs: &Path) -> Self {
        Self {
            name,
            cpus: 1,
            kernel: KernelImage::BzImage,
            cmdline: "",
            initramfs: initramfs.to_owned(),
            disk: None,
            net: false,
            options: &[],
        }
    }

    /// The command.
    pub fn command(&self, workplace: &Workplace) -> Result<Command> {
        let package = workplace.kernel()?;
        let kernel = match self.kernel {
            KernelImage::BzImage => package.bzimage(),
            KernelImage::Vmlinux => package.vmlinux(),
        };
        let mut command = Command::new(workplace.program("bulkhead")?);
        command.args(["run", "--verbose", "--name", self.name, "--memory", "512M"]);
        command.args(["--cpus", &self.cpus.to_string()]);
        command.args([
            "--cmdline",
            format!("{} {}", guest_linux::CMDLINE, self.cmdline).trim(),
        ]);
        command
            .arg("--kernel")
            .arg(kernel)
            .arg("--initramfs")
            .arg(&self.initramfs);
        if let Some(disk) = &self.disk {
            command.args(["--disk", disk]);
        }
        if self.net {
            command.args(["--net", "default"]);
        }
        command.args(self.options);
        Ok(command)
    }
}
