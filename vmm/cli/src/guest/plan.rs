//! Derives a guest's processes from its definition: which programs, with which arguments, started after which others.
//!
//! This is a pure function of the definition and the [`Site`]: it reads no file, no environment and no identity. So
//! `run`, `--dry-run` and whatever starts guests later get the same processes.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::bail;
use bulkhead_mac::MacAddr;

use super::definition::{Definition, Disk, Net};
use super::process::{Process, Role};
use crate::program::Programs;

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
    /// When the path of the runtime folder has a double quote in it, which the monitor's options cannot express.
    pub(crate) fn new(guest: &Definition, site: &Site<'_>) -> anyhow::Result<Self> {
        let mut processes = Vec::new();
        let helper = (!guest.nets.is_empty()).then(|| helper(guest, site));
        for (index, net) in guest.nets.iter().enumerate() {
            let mut process = net_backend(guest, net, index, site);
            process.needs_helper = true;
            processes.push(process);
        }
        for (index, disk) in guest.disks.iter().enumerate() {
            processes.push(block_backend(guest, disk, index, site));
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

fn net_backend(guest: &Definition, net: &Net, index: usize, site: &Site<'_>) -> Process {
    let name = format!("net{index}");
    let socket = site.socket(guest, &name);
    Process::new(name, Role::Backend, &site.programs.net)
        .option("--socket-path", socket)
        .option("--network", &net.network)
        .option("--helper-socket", site.helper_socket())
        .option("--mac", mac(guest, net, index).to_string())
}

fn block_backend(guest: &Definition, disk: &Disk, index: usize, site: &Site<'_>) -> Process {
    let name = disk_name(index);
    let socket = site.socket(guest, &name);
    let mut process = Process::new(name, Role::Backend, &site.programs.block)
        .option("--socket-path", socket)
        .option("--blk-file", &disk.path)
        .option("--format", &disk.format);
    if disk.readonly {
        process = process.flag("--read-only");
    }
    for folder in &disk.allow {
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
    for index in 0..guest.disks.len() {
        let mut device = OsString::from("vhost_user=on,socket=");
        device.push(value(&site.socket(guest, &disk_name(index)))?);
        process = process.option("--disk", device);
    }
    for (index, net) in guest.nets.iter().enumerate() {
        let mut device = OsString::from("vhost_user=on,socket=");
        device.push(value(&site.socket(guest, &format!("net{index}")))?);
        device.push(format!(",mac={}", mac(guest, net, index)));
        process = process.option("--net", device);
    }
    let mut api = OsString::from("path=");
    api.push(value(&site.socket(guest, "api"))?);
    Ok(process
        .option("--serial", "tty")
        .option("--api-socket", api))
}

/// A path as a value in one of the monitor's `key=value` lists.
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

/// `vda`, …, `vdz`, `vdaa`, as Linux names the disks in the guest.
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

/// The card's configured address, or one in QEMU's and libvirt's range (52:54:00) that depends only on the guest's
/// name, the network and the card's number.
fn mac(guest: &Definition, net: &Net, index: usize) -> MacAddr {
    net.mac.unwrap_or_else(|| {
        let [a, b, c, ..] = fnv1a(format!("{}/{}/{index}", guest.name, net.network).as_bytes());
        MacAddr::new([0x52, 0x54, 0, a, b, c])
    })
}

/// The hash FNV-1a, which is the same on every host and in every version.
fn fnv1a(bytes: &[u8]) -> [u8; 8] {
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Program;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        guest: Definition,
    }

    fn guest(words: &[&str]) -> Definition {
        let line = ["run", "--name", "g", "--kernel", "/k"].iter().chain(words);
        Line::parse_from(line).guest
    }

    fn programs() -> Programs {
        Programs {
            vmm: Program::named("bulkhead-vmm"),
            block: Program::named("bulkhead-block"),
            net: Program::named("bulkhead-net"),
            net_helper: Program::named("bulkhead-net-helper"),
        }
    }

    fn site<'a>(programs: &'a Programs, base: &'a str) -> Site<'a> {
        Site {
            programs,
            base: Path::new(base),
            helper_socket: None,
            may_start_helper: true,
        }
    }

    fn plan(words: &[&str]) -> Plan {
        Plan::new(&guest(words), &site(&programs(), "/run/b")).unwrap()
    }

    fn commands(plan: &Plan) -> Vec<String> {
        let helper = plan.helper.iter().flat_map(|helper| &helper.start);
        let processes = helper.chain(&plan.processes);
        processes
            .map(|process| process.command().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_guest_is_its_helper_its_backends_and_its_monitor() {
        let plan = plan(&[
            "--disk",
            "/d.raw",
            "--net",
            "default,mac=52:54:00:00:00:01",
            "--cpus",
            "2",
            "--initramfs",
            "/i",
        ]);
        assert_eq!(
            commands(&plan),
            [
                "bulkhead-net-helper --socket-path /run/b/net-helper.sock --network default --exit-idle",
                "bulkhead-net --socket-path /run/b/g/net0.sock --network default --helper-socket /run/b/net-helper.sock --mac 52:54:00:00:00:01",
                "bulkhead-block --socket-path /run/b/g/vda.sock --blk-file /d.raw --format raw",
                "bulkhead-vmm --kernel /k --initramfs /i --cmdline console=ttyS0 --cpus boot=2 --memory size=512M \
                 --disk vhost_user=on,socket=/run/b/g/vda.sock \
                 --net vhost_user=on,socket=/run/b/g/net0.sock,mac=52:54:00:00:00:01 --serial tty \
                 --api-socket path=/run/b/g/api.sock",
            ]
        );
        let needs: Vec<_> = plan
            .processes
            .iter()
            .map(|process| process.needs_helper)
            .collect();
        assert_eq!(needs, [true, false, false]);
    }

    #[test]
    fn a_helper_is_started_only_by_those_who_may_and_where_none_is_named() {
        let (guest, programs) = (guest(&["--net", "default"]), programs());
        let site = site(&programs, "/run/b");
        let plan = |site: &Site<'_>| Plan::new(&guest, site).unwrap().helper.unwrap();
        assert!(plan(&site).start.is_some());
        let user = Site {
            may_start_helper: false,
            ..site.clone()
        };
        assert!(plan(&user).start.is_none());
        let named = Site {
            helper_socket: Some(Path::new("/h")),
            ..site
        };
        let helper = plan(&named);
        assert!(helper.start.is_none());
        assert_eq!(helper.socket, Path::new("/h"));
    }

    #[test]
    fn a_helper_is_started_for_the_default_network_only() {
        for nets in [&["defualt"][..], &["default", "lan"]] {
            let words: Vec<_> = nets.iter().flat_map(|net| ["--net", net]).collect();
            let helper = plan(&words).helper.unwrap();
            assert!(helper.start.is_none(), "{nets:?}");
            assert_eq!(helper.networks, nets);
        }
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
        let (guest, programs) = (guest(&[]), programs());
        let plan = |base: &str| Plan::new(&guest, &site(&programs, base));
        let commas = plan("/run/a,b").unwrap();
        let last = commas.processes[0].args.last().unwrap();
        assert_eq!(last, "path=\"/run/a,b/g/api.sock\"");
        assert!(plan("/run/a\"b").is_err());
    }

    #[test]
    fn a_card_keeps_its_address_and_no_two_share_one() {
        let guest = guest(&["--net", "default", "--net", "default"]);
        let first = mac(&guest, &guest.nets[0], 0);
        assert_eq!(first, mac(&guest, &guest.nets[0], 0));
        assert_ne!(first, mac(&guest, &guest.nets[1], 1));
        assert!(first.to_string().starts_with("52:54:00:"));
    }
}
