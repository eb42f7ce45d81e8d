//! The outer host's root file system: Debian's programs of this machine, the programs under test, the kernel package.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::initramfs::Initramfs;
use crate::kernel::Kernel;
use crate::workplace::{OUTER_HOST_FOLDER, Workplace};

/// What an outer host has, each with the libraries it needs; busybox is what is missing.
const DEBIAN_PROGRAMS: [&str; 11] = [
    "/usr/bin/busybox",
    "/usr/bin/qemu-img",
    "/usr/bin/sh",
    "/usr/sbin/bridge",
    "/usr/sbin/debugfs",
    "/usr/sbin/dnsmasq",
    "/usr/sbin/e2fsck",
    "/usr/sbin/ip",
    "/usr/sbin/mke2fs",
    "/usr/sbin/modprobe",
    "/usr/sbin/nft",
];

/// Loaded when the outer host starts.
const BOOT_MODULES: [&str; 7] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "kvm_amd",
    "loop",
    "tun",
];

/// There for the kernel to load by itself when a program asks for what they do.
const ON_DEMAND_MODULES: [&str; 2] = ["veth", "dummy"];
const ON_DEMAND_FOLDERS: [&str; 5] = [
    "kernel/net/bridge",
    "kernel/net/core",
    "kernel/net/ipv4",
    "kernel/net/ipv6",
    "kernel/net/netfilter",
];

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    dnsmasq:x:999:65534:dnsmasq:/var/lib/misc:/usr/sbin/nologin\n\
    nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nkvm:x:105:\nnogroup:x:65534:\n";

/// Puts the outer host's root together.
pub(super) fn build(
    workplace: &Workplace,
    kernel: &Kernel,
    extra_programs: &[PathBuf],
    command: &[String],
) -> Result<Initramfs> {
    let mut root = Initramfs::new();
    for (link, target) in [
        ("/bin", "usr/bin"),
        ("/sbin", "usr/sbin"),
        ("/lib", "usr/lib"),
        ("/lib64", "usr/lib64"),
    ] {
        root.symlink(link, target);
    }
    root.file("/init", 0o755, include_str!("outer-init.sh"));
    root.file("/etc/passwd", 0o644, PASSWD);
    root.file("/etc/group", 0o644, GROUP);
    root.file("/etc/hosts", 0o644, "127.0.0.1 localhost\n");
    root.file(
        "/etc/mke2fs.conf",
        0o644,
        std::fs::read("/etc/mke2fs.conf").context("/etc/mke2fs.conf")?,
    );
    root.directory("/var/lib/misc", 0o755);
    root.directory("/work", 0o755);
    root.symlink("/var/run", "/run");

    let mut programs: Vec<PathBuf> = DEBIAN_PROGRAMS.map(PathBuf::from).into();
    programs.extend_from_slice(extra_programs);
    for program in own_programs(workplace)? {
        let name = program
            .file_name()
            .and_then(|name| name.to_str())
            .context("program name is not UTF-8")?;
        root.copy(&format!("{OUTER_HOST_FOLDER}/bin/{name}"), &program)?;
        programs.push(program);
    }
    add_with_libraries(&mut root, workplace, &programs)?;
    root.busybox_links("/usr/bin", &["/usr/bin", "/usr/sbin"])?;
    add_kernel(&mut root, kernel)?;

    let words: Vec<String> = command.iter().map(|word| shell_quoted(word)).collect();
    root.file(
        &format!("{OUTER_HOST_FOLDER}/command"),
        0o755,
        format!("exec {}\n", words.join(" ")),
    );
    Ok(root)
}

/// Every program cargo has built: executable files without an extension.
fn own_programs(workplace: &Workplace) -> Result<Vec<PathBuf>> {
    use std::os::unix::fs::PermissionsExt;
    let folder = &workplace.programs;
    let mut programs = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let data = std::fs::metadata(&path)?;
        if data.is_file() && data.permissions().mode() & 0o100 != 0 && path.extension().is_none() {
            programs.push(path);
        }
    }
    Ok(programs)
}

/// Adds Debian's programs at their own paths, and what all the programs are linked with.
fn add_with_libraries(
    root: &mut Initramfs,
    workplace: &Workplace,
    programs: &[PathBuf],
) -> Result<()> {
    let mut paths = BTreeSet::new();
    for program in programs {
        if !program.starts_with(&workplace.programs) {
            paths.insert(merged(program));
        }
        // It fails for a static program, which needs nothing.
        let output = Command::new("ldd").arg(program).output().context("ldd")?;
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        if let Some(line) = output.lines().find(|line| line.contains("not found")) {
            bail!("{}: {}", program.display(), line.trim());
        }
        paths.extend(
            output
                .split_whitespace()
                .filter(|word| word.starts_with('/'))
                .map(|word| merged(Path::new(word))),
        );
    }
    for path in paths {
        root.copy(&path, Path::new(&path))?;
    }
    Ok(())
}

/// The path under `/usr` of a file reached through `/bin`, `/sbin`, `/lib` or `/lib64`.
fn merged(path: &Path) -> String {
    let text = path.to_string_lossy();
    match ["/bin/", "/sbin/", "/lib/", "/lib64/"]
        .iter()
        .any(|folder| text.starts_with(folder))
    {
        true => format!("/usr{text}"),
        false => text.into_owned(),
    }
}

/// The kernel's images for guests inside, and its modules, where both `modprobe` and [`Workplace::kernel`] look.
fn add_kernel(root: &mut Initramfs, kernel: &Kernel) -> Result<()> {
    let package = format!("{OUTER_HOST_FOLDER}/bench/kernel");
    let release = kernel.release();
    root.symlink("/usr/lib/modules", &format!("{package}/lib/modules"));
    root.copy(
        &format!("{package}/boot/vmlinuz-{release}"),
        &kernel.bzimage(),
    )?;
    if kernel.vmlinux().exists() {
        root.copy(
            &format!("{package}/boot/vmlinux-{release}"),
            &kernel.vmlinux(),
        )?;
    }

    let mut names = [
        &BOOT_MODULES[..],
        &ON_DEMAND_MODULES,
        &crate::guest_linux::MODULES,
        &crate::guest_linux::POWER_BUTTON_MODULES,
    ]
    .concat();
    names.extend(kernel.modules_in(&ON_DEMAND_FOLDERS));
    let mut modules = kernel.load_order(&names)?;
    modules.extend(kernel.indexes()?);
    for source in modules {
        let path = source
            .strip_prefix(kernel.root())
            .context("module outside of its package")?;
        root.copy(&format!("{package}/{}", path.display()), &source)?;
    }
    let boot: Vec<String> = kernel
        .load_order(&BOOT_MODULES)?
        .iter()
        .filter_map(|path| path.strip_prefix(kernel.root()).ok())
        .map(|path| format!("{package}/{}\n", path.display()))
        .collect();
    root.file("/modules", 0o644, boot.concat());
    Ok(())
}

/// A word as `sh` reads it back.
fn shell_quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}
