//! The command line.

use std::path::{Path, PathBuf};

use clap::Parser;

use crate::config::{
    CpusConfig, DiskConfig, FsConfig, MemoryConfig, NetConfig, PathConfig, PayloadConfig,
    SerialConfig, VhostUserConfig, VmConfig,
};

/// Runs one guest. Its disks, network cards and other devices are vhost-user backends in processes of their own.
///
/// Exit status: 0 when the guest powers off, or a signal or an API request ends the monitor; 1 for an error; 2 when the
/// command line is wrong; 3 when the guest resets; 4 when it crashes.
#[derive(Debug, Parser)]
#[command(name = "bulkhead-vmm", version)]
pub(crate) struct Args {
    /// Kernel: an x86-64 bzImage, or an ELF image with or without a PVH note
    #[arg(long, value_name = "PATH", required_unless_present_any = ["api_socket", "probe"])]
    pub(crate) kernel: Option<PathBuf>,
    /// Initial RAM file system
    #[arg(long, value_name = "PATH")]
    pub(crate) initramfs: Option<PathBuf>,
    /// The kernel's command line
    #[arg(
        long,
        value_name = "STRING",
        default_value = "",
        allow_hyphen_values = true
    )]
    pub(crate) cmdline: String,
    /// Number of virtual CPUs
    #[arg(long, value_name = "boot=N[,max=N]", default_value = "boot=1")]
    pub(crate) cpus: CpusConfig,
    /// Guest memory
    #[arg(
        long,
        value_name = "size=SIZE[,hugepages=on|off]",
        default_value = "size=512M"
    )]
    pub(crate) memory: MemoryConfig,
    /// Disk, served by a vhost-user-blk backend
    #[arg(
        long,
        value_name = "vhost_user=on,socket=PATH[,readonly=on,num_queues=N,queue_size=N,id=ID]"
    )]
    pub(crate) disk: Vec<DiskConfig>,
    /// Network card, served by a vhost-user-net backend
    #[arg(
        long,
        value_name = "vhost_user=on,socket=PATH[,mac=MAC,mtu=N,num_queues=N,queue_size=N,id=ID]"
    )]
    pub(crate) net: Vec<NetConfig>,
    /// Shared folder, served by a vhost-user-fs backend
    #[arg(
        long,
        value_name = "tag=TAG,socket=PATH[,num_queues=N,queue_size=N,id=ID]"
    )]
    pub(crate) fs: Vec<FsConfig>,
    /// Device of any virtio type, served by a vhost-user backend
    #[arg(
        long,
        value_name = "type=blk|net|fs|NUMBER,socket=PATH[,tag=TAG,num_queues=N,queue_size=N,id=ID]"
    )]
    pub(crate) vhost_user: Vec<VhostUserConfig>,
    /// Where the serial port's input and output go
    #[arg(
        long,
        value_name = "tty|socket=PATH|file=PATH|off|null",
        default_value = "tty"
    )]
    pub(crate) serial: SerialConfig,
    /// Serve the API on this Unix socket. Without --kernel, wait there for a guest to be created
    #[arg(long, value_name = "path=PATH")]
    pub(crate) api_socket: Option<PathConfig>,
    /// Append what happens to the guest to this file, as JSON. The last event says how the guest ended
    #[arg(long, value_name = "path=PATH")]
    pub(crate) event_monitor: Option<PathConfig>,
    /// Run no guest. Try, confined as a monitor is, whether KVM here runs guests and can run Linux, and print what is
    /// found: `linux`, `no-linux: WHY` or `nothing: WHY`
    #[arg(long, exclusive = true)]
    pub(crate) probe: bool,
}

impl Args {
    /// The path of the API's socket.
    pub(crate) fn api_socket(&self) -> Option<&Path> {
        self.api_socket.as_ref().map(|api| api.path.as_path())
    }

    /// The path of the file for events.
    pub(crate) fn event_monitor(&self) -> Option<&Path> {
        self.event_monitor.as_ref().map(|file| file.path.as_path())
    }

    /// The guest's configuration. `None`: the API creates the guest.
    pub(crate) fn into_config(self) -> Option<VmConfig> {
        Some(VmConfig {
            payload: PayloadConfig {
                kernel: self.kernel?,
                initramfs: self.initramfs,
                cmdline: self.cmdline,
            },
            cpus: self.cpus,
            memory: self.memory,
            disks: self.disk,
            net: self.net,
            fs: self.fs,
            generic_vhost_user: self.vhost_user,
            serial: self.serial,
        })
    }
}
