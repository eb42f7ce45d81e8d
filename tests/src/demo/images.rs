//! The demo's images: a base with a known file, an overlay on it, and what the host finds in them afterwards.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::hash;
use crate::workplace::Workplace;

/// Size of the disk as the guest sees it.
const DISK_SIZE: &str = "256M";
const KNOWN_SIZE: usize = 3 << 20;

/// The base image and the overlay, in a folder of their own.
pub(super) struct Images {
    folder: PathBuf,
    image_tool: PathBuf,
    /// SHA-256 of the file `/known` in the base image.
    pub(super) known_hash: String,
}

impl Images {
    /// Makes both: an ext4 file system in a raw image, the same as qcow2, and an overlay on that.
    pub(super) fn create(workplace: &Workplace, folder: &Path) -> Result<Self> {
        let content = folder.join("content");
        std::fs::create_dir(&content).with_context(|| content.display().to_string())?;
        let known = hash::pseudo_random(KNOWN_SIZE, 1);
        std::fs::write(content.join("known"), &known).context("the known file")?;
        let images = Self {
            folder: folder.to_owned(),
            image_tool: workplace.program("image-tool")?,
            known_hash: hash::of(&known),
        };
        let raw = folder.join("base.raw");
        run(Command::new("/usr/sbin/mke2fs")
            .args(["-q", "-t", "ext4", "-d"])
            .arg(&content)
            .arg(&raw)
            .arg(DISK_SIZE))?;
        run(&mut images.image_tool(&[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "base.raw",
            "base.qcow2",
        ]))?;
        run(&mut images.image_tool(&[
            "create",
            "-f",
            "qcow2",
            "-b",
            "base.qcow2",
            "-F",
            "qcow2",
            "overlay.qcow2",
        ]))?;
        Ok(images)
    }

    /// The base image.
    pub(super) fn base(&self) -> PathBuf {
        self.folder.join("base.qcow2")
    }

    /// The image the guest writes to.
    pub(super) fn overlay(&self) -> PathBuf {
        self.folder.join("overlay.qcow2")
    }

    /// Whether both `image-tool check` and `qemu-img check` find the overlay in order.
    pub(super) fn check(&self) -> Result<()> {
        run(&mut self.image_tool(&["check", "-f", "qcow2", "overlay.qcow2"]))?;
        run(Command::new("qemu-img")
            .args(["check", "-q", "-f", "qcow2"])
            .arg(self.overlay()))
    }

    /// A file of the guest's, read out of the overlay.
    pub(super) fn read(&self, path: &str) -> Result<Vec<u8>> {
        let raw = self.folder.join("overlay.raw");
        if !raw.exists() {
            run(&mut self.image_tool(&[
                "convert",
                "-f",
                "qcow2",
                "-O",
                "raw",
                "overlay.qcow2",
                "overlay.raw",
            ]))?;
            run(Command::new("/usr/sbin/e2fsck")
                .args(["-f", "-n"])
                .arg(&raw))?;
        }
        let copy = self.folder.join("copy");
        run(Command::new("/usr/sbin/debugfs")
            .arg("-R")
            .arg(format!("dump {path} {}", copy.display()))
            .arg(&raw))?;
        std::fs::read(&copy).with_context(|| format!("{path} is not in the image"))
    }

    fn image_tool(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.image_tool);
        command.args(arguments).current_dir(&self.folder);
        command
    }
}

/// Runs a command to its end; its output is of interest only if it fails.
fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!(
            "{command:?}: {}: {}",
            output.status,
            String::from_utf8_lossy(&said).trim()
        );
    }
    Ok(())
}
