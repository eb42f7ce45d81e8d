//! Derives a guest's processes from its definition: which programs, with which arguments, started after which others.
//!
//! This is a pure function of the definition and the [`Site`]: it reads no file, no environment and no identity. So
//! `run`, `--dry-run` and whatever starts guests later get the same processes.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use bulkhead_mac::MacAddr;

use super::definition::{Definition, Disk, Net, Serial, VhostUser};
use super::process::{Process, Role};
use crate::program::{Program, Programs};

/// The network that a helper has without further configuration.
pub(crate) const DEFAULT_NETWORK: &str = "default";

/// What a plan depends on besides the definition.
#[derive(Clone, Debug)]
pub(crate) struct Site<'a> {
    pub(crate) programs: &'a Programs,
    /// The runtime folder, in which the guest has one of its own name.
    pub(crate) base: &'a Path,
    /// The socket of a network helper that others start. `None`: the one in the runtime folder.
    pub(crate) helper_socket: Option<&'a Path>,
    /// Whether this user may start a network helper.
    pub(crate) may_start_helper: bool,
    /// Where the guest's console is.
    pub(crate) console: Console,
    /// Who makes the sockets on which the backends listen.
    pub(crate) sockets: Sockets,
}

/// The file of the monitor's events in the guest's folder.
pub(crate) const EVENTS: &str = "events.json";

/// Who makes the sockets on which a guest's backends listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sockets {
    /// Each backend its own, in the guest's folder.
    Backends,
    /// The service manager, which passes each backend its socket. The monitor may not write into the guest's folder,
    /// so its sockets are in one of its own there.
    ServiceManager,
}

/// The folder of a monitor's sockets in its guest's folder, where a service manager makes those of the backends.
pub(crate) const MONITOR_FOLDER: &str = "vmm";
/// The descriptor by which a service manager passes the only socket (sd_listen_fds(3)).
const PASSED_SOCKET: &str = "3";

/// Where a guest's console is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Console {
    /// On the terminal of the monitor.
    Terminal,
    /// On the socket `console.sock` in the guest's folder; the monitor's events are in a file there.
    Socket,
}

/// The network helper that a guest needs.
#[derive(Clone, Debug)]
pub(crate) struct Helper {
    pub(crate) socket: PathBuf,
    /// The networks that the guest is on, each once.
    pub(crate) networks: Vec<String>,
    /// The process to start if none runs. `None`: others have to start it.
    pub(crate) start: Option<Process>,
}

/// All processes of one guest, in an order in which they may be started.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) processes: Vec<Process>,
    pub(crate) helper: Option<Helper>,
}

impl Plan {
    /// The plan for `guest`, whose paths are absolute.
    ///
    /// # Errors
    /// When a path or tag that the monitor is given has a double quote in it, which its options cannot express.
    pub(crate) fn new(guest: &Definition, site: &Site<'_>) -> anyhow::Result<Self> {
        let mut processes = Vec::new();
        let helper = (!guest.nets.is_empty()).then(|| helper(guest, site));
        for (index, net) in guest.nets.iter().enumerate() {
            let mut process = net_backend(guest, net, index, site);
            process.needs_helper = true;
            processes.push(process);
        }
        for (name, disk) in guest.named_disks() {
            processes.push(block_backend(guest, disk, name, site));
        }
        let backends = (0..processes.len()).collect();
        let mut monitor = monitor(guest, site)?;
        monitor.after = backends;
        processes.push(monitor);
        Ok(Self { processes, helper })
    }
}

impl Site<'_> {
    /// The folder of `guest`'s sockets.
    pub(crate) fn folder(&self, guest: &Definition) -> PathBuf {
        self.base.join(&guest.name)
    }

    fn socket(&self, guest: &Definition, name: &str) -> PathBuf {
        self.folder(guest).join(format!("{name}.sock"))
    }

    /// A socket of the monitor's.
    pub(crate) fn monitor_socket(&self, guest: &Definition, name: &str) -> PathBuf {
        match self.sockets {
            Sockets::Backends => self.socket(guest, name),
            Sockets::ServiceManager => {
                let folder = self.folder(guest).join(MONITOR_FOLDER);
                folder.join(format!("{name}.sock"))
            }
        }
    }

    /// A backend, with the socket on which it listens.
    fn backend(&self, guest: &Definition, name: String, program: &Program) -> Process {
        let socket = self.socket(guest, &name);
        let process = Process::new(name, Role::Backend, program);
        match self.sockets {
            Sockets::Backends => process.option("--socket-path", socket),
            Sockets::ServiceManager => process.option("--fd", PASSED_SOCKET),
        }
    }

    fn helper_socket(&self) -> PathBuf {
        match self.helper_socket {
            Some(socket) => socket.to_owned(),
            None => self.base.join("net-helper.sock"),
        }
    }
}

fn helper(guest: &Definition, site: &Site<'_>) -> Helper {
    let socket = site.helper_socket();
    let mut networks: Vec<String> = guest.nets.iter().map(|net| net.network.clone()).collect();
    networks.sort_unstable();
    networks.dedup();
    // Subnet and bridge of any other network are the administrator's decision.
    let ours = site.helper_socket.is_none() && networks == [DEFAULT_NETWORK];
    let start = (ours && site.may_start_helper).then(|| {
        Process::new("net-helper", Role::Helper, &site.programs.net_helper)
            .option("--socket-path", &socket)
            .option("--network", DEFAULT_NETWORK)
            .flag("--exit-idle")
    });
    Helper {
        socket,
        networks,
        start,
    }
}

/// The name of a network card.
pub(crate) fn net_name(index: usize) -> String {
    format!("net{index}")
}

fn net_backend(guest: &Definition, net: &Net, index: usize, site: &Site<'_>) -> Process {
    let process = site
        .backend(guest, net_name(index), &site.programs.net)
        .option("--network", &net.network)
        .option("--helper-socket", site.helper_socket())
        .option("--mac", guest.mac(net, index).to_string());
    match net.queues {
        1 => process,
        pairs => process.option("--num-queues", pairs.to_string()),
    }
}

fn block_backend(guest: &Definition, disk: &Disk, name: String, site: &Site<'_>) -> Process {
    let mut process = site
        .backend(guest, name, &site.programs.block)
        .option("--blk-file", &disk.path)
        .option("--format", disk.format.to_string());
    if disk.readonly {
        process = process.flag("--read-only");
    }
    if let Some(serial) = &disk.serial {
        process = process.option("--serial", serial);
    }
    if disk.queues > 1 {
        process = process.option("--num-queues", disk.queues.to_string());
    }
    for folder in &disk.allow_path {
        process = process.option("--allow-path", folder);
    }
    process
}

fn monitor(guest: &Definition, site: &Site<'_>) -> anyhow::Result<Process> {
    let mut process =
        Process::new("vmm", Role::Monitor, &site.programs.vmm).option("--kernel", &guest.kernel);
    if let Some(initramfs) = &guest.initramfs {
        process = process.option("--initramfs", initramfs);
    }
    process = process
        .option("--cmdline", &guest.cmdline)
        .option("--cpus", format!("boot={}", guest.cpus))
        .option("--memory", format!("size={}", guest.memory));
    for (name, disk) in guest.named_disks() {
        process = process.option("--disk", disk_device(&site.socket(guest, &name), disk)?);
    }
    for (index, net) in guest.nets.iter().enumerate() {
        let socket = site.socket(guest, &net_name(index));
        let device = net_device(&socket, net, guest.mac(net, index))?;
        process = process.option("--net", device);
    }
    for device in &guest.vhost_user {
        process = process.option("--vhost-user", other_device(device)?);
    }
    let mut api = OsString::from("path=");
    api.push(base_value(&site.monitor_socket(guest, "api"))?);
    process = process.option("--serial", serial(guest, site)?);
    // A service manager learns by the exit status how the guest ended.
    if site.console == Console::Socket && site.sockets == Sockets::Backends {
        let mut events = OsString::from("path=");
        events.push(base_value(&site.folder(guest).join(EVENTS))?);
        process = process.option("--event-monitor", events);
    }
    Ok(process.option("--api-socket", api))
}

fn disk_device(socket: &Path, disk: &Disk) -> anyhow::Result<OsString> {
    let mut device = OsString::from("vhost_user=on,socket=");
    device.push(base_value(socket)?);
    if disk.queues > 1 {
        device.push(format!(",num_queues={}", disk.queues));
    }
    Ok(device)
}

fn net_device(socket: &Path, net: &Net, mac: MacAddr) -> anyhow::Result<OsString> {
    let mut device = OsString::from("vhost_user=on,socket=");
    device.push(base_value(socket)?);
    device.push(format!(",mac={mac}"));
    if net.queues > 1 {
        // Two of each pair, and the control queue, by which the driver says how many pairs it uses.
        let queues = u32::from(net.queues) * 2 + 1;
        device.push(format!(",num_queues={queues}"));
    }
    Ok(device)
}

fn other_device(device: &VhostUser) -> anyhow::Result<OsString> {
    let wrong = || format!("the {} device", device.device_type);
    let mut words = OsString::from(format!("type={},socket=", device.device_type));
    words.push(value(device.socket.as_os_str()).with_context(wrong)?);
    if let Some(tag) = &device.tag {
        words.push(",tag=");
        words.push(value(OsStr::new(tag)).with_context(wrong)?);
    }
    if let Some(queues) = device.queues {
        words.push(format!(",num_queues={queues}"));
    }
    Ok(words)
}

fn serial(guest: &Definition, site: &Site<'_>) -> anyhow::Result<OsString> {
    Ok(match (&guest.serial, site.console) {
        (Serial::Console, Console::Terminal) => "tty".into(),
        (Serial::Console, Console::Socket) => {
            let mut word = OsString::from("socket=");
            word.push(base_value(&site.monitor_socket(guest, "console"))?);
            word
        }
        (Serial::Off, _) => "off".into(),
        (Serial::File(path), _) => {
            let mut word = OsString::from("file=");
            word.push(path);
            word
        }
    })
}

/// A path in the runtime folder as a value in one of the monitor's `key=value` lists.
fn base_value(path: &Path) -> anyhow::Result<OsString> {
    const ADVICE: &str = "$XDG_RUNTIME_DIR has a double quote in it: set it to another folder";
    value(path.as_os_str()).map_err(|_| anyhow!(ADVICE))
}

/// A text as a value in one of the monitor's `key=value` lists.
fn value(text: &OsStr) -> anyhow::Result<OsString> {
    let bytes = text.as_bytes();
    if bytes.contains(&b'"') {
        bail!("{} has a double quote in it", text.display());
    }
    if !bytes.contains(&b',') {
        return Ok(text.into());
    }
    let mut quoted = OsString::from("\"");
    quoted.push(text);
    quoted.push("\"");
    Ok(quoted)
}

#[cfg(test)]
mod tests;
