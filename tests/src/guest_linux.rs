//! The Linux guest of the demo and the end-to-end tests: Debian's kernel, busybox, and a script as its first process.

use std::path::Path;

use anyhow::Result;

use crate::initramfs::Initramfs;
use crate::kernel::Kernel;

/// The modules of the kernel package that a guest needs for its devices.
pub const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "virtio_net"];

/// Those that make the power button a key.
pub const POWER_BUTTON_MODULES: [&str; 2] = ["button", "evdev"];

/// The kernel command line: console on the serial port, and nothing printed there but what matters.
pub const CMDLINE: &str = "console=ttyS0 quiet loglevel=4 panic=-1 rdinit=/init";

/// What every guest does first. It gives the script that follows `say`, `fail` and `finish`.
const PREAMBLE: &str = include_str!("guest-init.sh");

/// The guest's part of the demo. Its settings are `CPUS`, `KNOWN_HASH`, `NEW_MIB`, `URL` and `PAGE_HASH`.
pub const DEMO_SCRIPT: &str = include_str!("guest-demo.sh");

/// Makes the initramfs of a guest that runs `script` (after the preamble) as its first process.
///
/// `settings` become variables of the script; their values must not need quoting.
pub fn build(kernel: &Kernel, script: &str, settings: &[(&str, &str)], path: &Path) -> Result<()> {
    build_with_modules(kernel, &MODULES, script, settings, path)
}

/// The same with these modules of the kernel package instead of [`MODULES`].
pub fn build_with_modules(
    kernel: &Kernel,
    modules: &[&str],
    script: &str,
    settings: &[(&str, &str)],
    path: &Path,
) -> Result<()> {
    let mut root = Initramfs::new();
    root.directory("/mnt", 0o755);
    root.copy("/bin/busybox", Path::new("/usr/bin/busybox"))?;
    root.busybox_links("/bin", &["/bin"])?;
    kernel.add_modules(&mut root, modules)?;
    root.file("/dhcp", 0o755, include_str!("guest-dhcp.sh"));
    let settings: String = settings
        .iter()
        .map(|(name, value)| format!("{name}='{value}'\n"))
        .collect();
    root.file(
        "/init",
        0o755,
        format!("{PREAMBLE}\n{settings}\n{script}\nfinish\n"),
    );
    root.save(path)
}
