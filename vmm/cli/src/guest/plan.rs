//! From the guest to its processes: which programs, with which arguments, started after which others.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::args::{Args, Disk, Net};
use crate::{program, shell};

/// What a process is to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Serves all guests' networks. It is not this guest's: it stays as long as any guest needs it.
    Helper,
    /// A device; ends when the monitor does, and is started again when it ends before.
    Backend,
    /// The guest itself.
    Monitor,
}

/// One process to be.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    /// What people know it by: `vmm`, `vda`, `net0`, `net-helper`.
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) program: PathBuf,
    /// The program as a person would type it.
    shown: OsString,
    pub(crate) args: Vec<OsString>,
    /// The processes, by index, that must be ready first.
    pub(crate) after: Vec<usize>,
    /// Whether the helper must be there first.
    pub(crate) needs_helper: bool,
}

impl Process {
    fn new(name: impl Into<String>, role: Role, program: &str) -> Self {
        let (path, shown) = program::find(program);
        Self {
            name: name.into(),
            role,
            program: path,
            shown,
            args: Vec::new(),
            after: Vec::new(),
            needs_helper: false,
        }
    }

    fn flag(mut self, flag: &str) -> Self {
        self.args.push(flag.into());
        self
    }

    fn option(mut self, option: &str, value: impl Into<OsString>) -> Self {
        self.args.push(option.into());
        self.args.push(value.into());
        self
    }

    /// The command as a shell takes it.
    pub(crate) fn command(&self) -> OsString {
        let mut words = vec![self.shown.clone()];
        words.extend(self.args.iter().map(|word| shell::quote(word)));
        words.join(OsStr::new(" "))
    }
}

/// The helper that a guest on a network needs.
#[derive(Clone, Debug)]
pub(crate) struct Helper {
    pub(crate) socket: PathBuf,
    /// How to start one where none runs, unless it is somebody else's to start.
    pub(crate) start: Option<Process>,
    /// Whether to say how it ended.
    pub(crate) verbose: bool,
}

/// All processes of one guest, in an order in which they may be started.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) processes: Vec<Process>,
    pub(crate) helper: Option<Helper>,
}

impl Plan {
    /// `base` is the runtime folder, `folder` the guest's own in it.
    pub(crate) fn new(args: &Args, base: &Path, folder: &Path) -> anyhow::Result<Self> {
        let mut processes = Vec::new();
        let helper = (!args.net.is_empty()).then(|| helper(args, base));
        for (index, net) in args.net.iter().enumerate() {
            let socket = helper_socket(args, base);
            let mut process = net_backend(args, net, index, folder, &socket);
            process.needs_helper = true;
            processes.push(process);
        }
        for (index, disk) in args.disk.iter().enumerate() {
            processes.push(block_backend(disk, index, folder)?);
        }
        let backends = (0..processes.len()).collect();
        let mut monitor = monitor(args, folder)?;
        monitor.after = backends;
        processes.push(monitor);
        Ok(Self { processes, helper })
    }
}

fn helper_socket(args: &Args, base: &Path) -> PathBuf {
    args.helper_socket
        .clone()
        .unwrap_or_else(|| base.join("net-helper.sock"))
}

fn helper(args: &Args, base: &Path) -> Helper {
    let socket = helper_socket(args, base);
    let ours = args.helper_socket.is_none() && rustix::process::geteuid().is_root();
    let start = ours.then(|| {
        let mut process = Process::new("net-helper", Role::Helper, "bulkhead-net-helper")
            .option("--socket-path", &socket);
        let mut networks: Vec<&str> = args.net.iter().map(|net| net.network.as_str()).collect();
        networks.sort_unstable();
        networks.dedup();
        for network in networks {
            process = process.option("--network", network);
        }
        process.flag("--exit-idle")
    });
    Helper {
        socket,
        start,
        verbose: args.verbose,
    }
}

impl Helper {
    /// Whether one serves already.
    pub(crate) fn runs(&self) -> bool {
        match UnixStream::connect(&self.socket) {
            Ok(_) => true,
            // A socket of packets rather than bytes: somebody is there.
            Err(error) => error.raw_os_error() == Some(libc::EPROTOTYPE),
        }
    }

    /// Why there is none and none can be started.
    pub(crate) fn missing(&self) -> anyhow::Error {
        let shown = self.socket.display();
        let advice = if rustix::process::geteuid().is_root() {
            ""
        } else {
            "; start it as root, or run without --net"
        };
        anyhow::anyhow!("bulkhead-net-helper is not running: nothing listens on {shown}{advice}")
    }
}

fn net_backend(args: &Args, net: &Net, index: usize, folder: &Path, helper: &Path) -> Process {
    let name = format!("net{index}");
    let socket = folder.join(format!("{name}.sock"));
    Process::new(name, Role::Backend, "bulkhead-net")
        .option("--socket-path", socket)
        .option("--network", &net.network)
        .option("--helper-socket", helper)
        .option("--mac", mac(args, net, index))
}

fn block_backend(disk: &Disk, index: usize, folder: &Path) -> anyhow::Result<Process> {
    let name = disk_name(index);
    let socket = folder.join(format!("{name}.sock"));
    let mut process = Process::new(name, Role::Backend, "bulkhead-block")
        .option("--socket-path", socket)
        .option("--blk-file", absolute(&disk.path)?)
        .option("--format", &disk.format);
    if disk.readonly {
        process = process.flag("--read-only");
    }
    for folder in &disk.allow {
        process = process.option("--allow-path", absolute(folder)?);
    }
    Ok(process)
}

fn monitor(args: &Args, folder: &Path) -> anyhow::Result<Process> {
    let mut process = Process::new("vmm", Role::Monitor, "bulkhead-vmm")
        .option("--kernel", absolute(&args.kernel)?);
    if let Some(initramfs) = &args.initramfs {
        process = process.option("--initramfs", absolute(initramfs)?);
    }
    process = process
        .option("--cmdline", &args.cmdline)
        .option("--cpus", format!("boot={}", args.cpus))
        .option("--memory", format!("size={}", args.memory));
    for index in 0..args.disk.len() {
        let mut device = OsString::from("vhost_user=on,socket=");
        device.push(value(&folder.join(format!("{}.sock", disk_name(index))))?);
        process = process.option("--disk", device);
    }
    for (index, net) in args.net.iter().enumerate() {
        let mut device = OsString::from("vhost_user=on,socket=");
        device.push(value(&folder.join(format!("net{index}.sock")))?);
        device.push(format!(",mac={}", mac(args, net, index)));
        process = process.option("--net", device);
    }
    let mut api = OsString::from("path=");
    api.push(value(&folder.join("api.sock"))?);
    Ok(process
        .option("--serial", "tty")
        .option("--api-socket", api))
}

/// A path as a value in one of the monitor's lists.
fn value(path: &Path) -> anyhow::Result<OsString> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.contains(&b'"') {
        bail!("$XDG_RUNTIME_DIR has a double quote in it: set it to another folder");
    }
    if !bytes.contains(&b',') {
        return Ok(path.into());
    }
    let mut quoted = OsString::from("\"");
    quoted.push(path);
    quoted.push("\"");
    Ok(quoted)
}

/// `vda`, …, `vdz`, `vdaa`, as the guest's kernel counts them.
fn disk_name(index: usize) -> String {
    let mut letters = Vec::new();
    let mut rest = index;
    loop {
        letters.push(b'a' + u8::try_from(rest % 26).unwrap_or(0));
        match rest / 26 {
            0 => break,
            more => rest = more - 1,
        }
    }
    letters.reverse();
    format!("vd{}", String::from_utf8_lossy(&letters))
}

/// The address asked for, or one of QEMU's and libvirt's range that stays the same for the same guest and card.
fn mac(args: &Args, net: &Net, index: usize) -> String {
    if let Some(mac) = &net.mac {
        return mac.clone();
    }
    let [a, b, c, ..] = fnv1a(format!("{}/{}/{index}", args.name, net.network).as_bytes());
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
}

/// FNV-1a: the same on every host and in every version.
fn fnv1a(bytes: &[u8]) -> [u8; 8] {
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step).to_le_bytes()
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot tell where {} is", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn plan(words: &[&str]) -> Plan {
        let line = ["run", "--name", "g", "--kernel", "/k"].iter().chain(words);
        let args = Line::parse_from(line).args;
        Plan::new(&args, Path::new("/run/b"), Path::new("/run/b/g")).unwrap()
    }

    #[test]
    fn disks_are_named_as_the_guest_names_them() {
        let names: Vec<_> = [0, 1, 25, 26, 27, 701, 702].map(disk_name).into();
        assert_eq!(
            names,
            ["vda", "vdb", "vdz", "vdaa", "vdab", "vdzz", "vdaaa"]
        );
    }

    #[test]
    fn the_monitor_comes_after_every_backend() {
        let plan = plan(&["--disk", "/a.qcow2", "--disk", "/b.raw"]);
        let monitor = plan.processes.last().unwrap();
        assert_eq!(monitor.role, Role::Monitor);
        assert_eq!(monitor.after, [0, 1]);
    }

    #[test]
    fn a_command_names_the_file_and_its_format() {
        let plan = plan(&["--disk", "/a b.qcow2,readonly=on,allow-path=/base"]);
        let command = plan.processes[0].command().into_string().unwrap();
        assert!(
            command.ends_with(
                "bulkhead-block --socket-path /run/b/g/vda.sock --blk-file '/a b.qcow2' --format qcow2 --read-only --allow-path /base"
            ),
            "{command}"
        );
    }

    #[test]
    fn a_runtime_folder_with_a_comma_is_one_value() {
        let line = ["run", "--name", "g", "--kernel", "/k"];
        let args = Line::parse_from(line).args;
        let plan = |base: &str| Plan::new(&args, Path::new(base), &Path::new(base).join("g"));
        let commas = plan("/run/a,b").unwrap();
        let last = commas.processes[0].args.last().unwrap();
        assert_eq!(last, "path=\"/run/a,b/g/api.sock\"");
        assert!(plan("/run/a\"b").is_err());
    }

    #[test]
    fn a_card_keeps_its_address_and_no_two_share_one() {
        let line = [
            "run", "--name", "g", "--kernel", "/k", "--net", "default", "--net", "default",
        ];
        let args = Line::parse_from(line).args;
        let first = mac(&args, &args.net[0], 0);
        assert_eq!(first, mac(&args, &args.net[0], 0));
        assert_ne!(first, mac(&args, &args.net[1], 1));
        assert!(first.starts_with("52:54:00:"));
    }
}
