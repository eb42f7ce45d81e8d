//! Debian's cloud kernel: downloaded with apt, unpacked without root, with its modules' index and its ELF image.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::project::Project;
use crate::run;

/// The package that depends on the current kernel.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Makes `bench/kernel`, unless it is there.
pub(crate) fn make(project: &Project) -> Result<()> {
    let folder = project.bench().join("kernel");
    if folder.exists() {
        return Ok(());
    }
    let package = package()?;
    println!(
        "setup: unpacking Debian's {package} into {}",
        folder.display()
    );
    let unfinished = project.bench().join("kernel.unfinished");
    match std::fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            bail!("{}: {error}", unfinished.display())
        }
        _ => std::fs::create_dir_all(&unfinished)
            .with_context(|| unfinished.display().to_string())?,
    }
    unpack(&package, &unfinished)?;
    // Only now is it there, whole.
    std::fs::rename(&unfinished, &folder).with_context(|| folder.display().to_string())
}

/// The package that the meta package stands for.
fn package() -> Result<String> {
    let text =
        run::output(Command::new("apt-cache").args(["depends", "--important", META_PACKAGE]))?;
    let package = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(package
        .with_context(|| format!("{META_PACKAGE} depends on no kernel"))?
        .to_owned())
}

fn unpack(package: &str, folder: &Path) -> Result<()> {
    // apt's own user may not write here.
    let mut download = Command::new("apt-get");
    download
        .args(["download", "-q", "-o", "APT::Sandbox::User=", package])
        .current_dir(folder);
    run::through(&mut download).context("are apt's lists out of date? run `apt-get update`")?;
    let archive = only_file(folder, ".deb")?;
    run::through(Command::new("dpkg").arg("-x").arg(&archive).arg(folder))?;
    std::fs::remove_file(&archive).with_context(|| archive.display().to_string())?;

    let boot = folder.join("boot");
    let bzimage = only_file(&boot, "vmlinuz-")?;
    let release = bzimage
        .to_string_lossy()
        .rsplit("vmlinuz-")
        .next()
        .unwrap_or_default()
        .to_owned();
    run::through(
        Command::new("/usr/sbin/depmod")
            .arg("-b")
            .arg(folder)
            .arg(&release),
    )?;
    extract_elf(&bzimage, &boot.join(format!("vmlinux-{release}")))
}

/// The one file of a folder whose name contains `part`.
fn only_file(folder: &Path, part: &str) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().contains(part));
    paths
        .next()
        .with_context(|| format!("{} has no file *{part}*", folder.display()))
}

/// The ELF image within a bzImage: its payload, compressed with LZ4 (`Documentation/x86/boot.rst`).
fn extract_elf(bzimage: &Path, elf: &Path) -> Result<()> {
    let image = std::fs::read(bzimage).with_context(|| bzimage.display().to_string())?;
    let word = |at: usize| {
        let bytes = image
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(|bytes| u32::from_le_bytes(bytes) as usize)
            .context("the kernel is truncated")
    };
    let setup_sectors = usize::from(*image.get(0x1f1).context("the kernel is truncated")?);
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    // The payload's last four bytes are its unpacked size.
    let payload = image
        .get(start..start + word(0x24c)? - 4)
        .context("the kernel is truncated")?;

    let file = File::create(elf).with_context(|| elf.display().to_string())?;
    let mut lz4 = Command::new("lz4")
        .args(["-d", "-c"])
        .stdin(Stdio::piped())
        .stdout(file)
        .spawn()
        .context("lz4")?;
    let mut input = lz4.stdin.take().context("lz4's input")?;
    input.write_all(payload).context("lz4")?;
    drop(input);
    let status = lz4.wait().context("lz4")?;
    if !status.success() {
        bail!("lz4: {status}");
    }
    Ok(())
}
