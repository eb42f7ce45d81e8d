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
    /// Where the guest's console is.
    pub(crate) console: Console,
}

/// The file of the monitor's events in the guest's folder.
pub(crate) const EVENTS: &str = "events.json";

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
    let process = Process::new(name, Role::Backend, &site.programs.net)
        .option("--socket-path", socket)
        .option("--network", &net.network)
        .option("--helper-socket", site.helper_socket())
        .option("--mac", guest.mac(net, index).to_string());
    match net.queues {
        1 => process,
        pairs => process.option("--num-queues", pairs.to_string()),
    }
}

fn block_backend(guest: &Definition, disk: &Disk, name: String, site: &Site<'_>) -> Process {
    let socket = site.socket(guest, &name);
    let mut process = Process::new(name, Role::Backend, &site.programs.block)
        .option("--socket-path", socket)
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
        let socket = site.socket(guest, &format!("net{index}"));
        let device = net_device(&socket, net, guest.mac(net, index))?;
        process = process.option("--net", device);
    }
    for device in &guest.vhost_user {
        process = process.option("--vhost-user", other_device(device)?);
    }
    let mut api = OsString::from("path=");
    api.push(base_value(&site.socket(guest, "api"))?);
    process = process.option("--serial", serial(guest, site)?);
    if site.console == Console::Socket {
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
            word.push(base_value(&site.socket(guest, "console"))?);
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
mod tests {
    use super::*;
    use crate::guest::CommandLine;
    use crate::program::Program;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        guest: CommandLine,
    }

    fn guest(words: &[&str]) -> Definition {
        let line = ["run", "--name", "g", "--kernel", "/k"].iter().chain(words);
        Line::parse_from(line).guest.into()
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
            console: Console::Terminal,
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

    /// The words after `option` in the command of a process.
    fn word_after(process: &Process, option: &str) -> Vec<String> {
        let words = process.args.windows(2).filter(|pair| pair[0] == option);
        let word = |pair: &[OsString]| pair[1].clone().into_string().unwrap();
        words.map(word).collect()
    }

    fn plan_of(change: impl FnOnce(&mut Definition)) -> anyhow::Result<Plan> {
        let mut guest = guest(&["--disk", "/d.raw", "--net", "default"]);
        change(&mut guest);
        Plan::new(&guest, &site(&programs(), "/run/b"))
    }

    #[test]
    fn both_ends_of_a_device_have_its_queues() {
        let plan = plan_of(|guest| {
            guest.disks[0].queues = 4;
            guest.disks[0].serial = Some("s 1".into());
            guest.nets[0].queues = 2;
        })
        .unwrap();
        let [net, disk, monitor] = &plan.processes[..] else {
            panic!("{plan:?}");
        };
        assert_eq!(word_after(net, "--num-queues"), ["2"]);
        assert_eq!(word_after(disk, "--num-queues"), ["4"]);
        assert_eq!(word_after(disk, "--serial"), ["s 1"]);
        let disk = word_after(monitor, "--disk");
        assert_eq!(
            disk,
            ["vhost_user=on,socket=/run/b/g/vda.sock,num_queues=4"]
        );
        let net = word_after(monitor, "--net");
        assert!(net[0].ends_with(",num_queues=5"), "{net:?}");
    }

    #[test]
    fn the_serial_port_is_where_the_definition_says() {
        for (serial, word) in [
            (Serial::Console, "tty"),
            (Serial::Off, "off"),
            (Serial::File("/log/a,b".into()), "file=/log/a,b"),
        ] {
            let plan = plan_of(|guest| guest.serial = serial).unwrap();
            let monitor = plan.processes.last().unwrap();
            assert_eq!(word_after(monitor, "--serial"), [word]);
        }
    }

    #[test]
    fn devices_of_other_programs_are_the_monitors_alone() {
        let share = VhostUser {
            device_type: "fs".parse().unwrap(),
            socket: "/run/fs,1.sock".into(),
            tag: Some("share".into()),
            queues: Some(3),
        };
        let plain = VhostUser {
            device_type: "4".parse().unwrap(),
            socket: "/run/rng.sock".into(),
            tag: None,
            queues: None,
        };
        let quote = VhostUser {
            socket: "/run/a\"b".into(),
            ..plain.clone()
        };
        let plan = plan_of(|guest| guest.vhost_user = vec![share, plain]).unwrap();
        assert_eq!(plan.processes.len(), 3);
        assert_eq!(
            word_after(&plan.processes[2], "--vhost-user"),
            [
                "type=fs,socket=\"/run/fs,1.sock\",tag=share,num_queues=3",
                "type=4,socket=/run/rng.sock"
            ]
        );
        let error = plan_of(|guest| guest.vhost_user = vec![quote]).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "the 4 device: /run/a\"b has a double quote in it"
        );
    }

    #[test]
    fn disks_come_in_the_order_of_their_names() {
        let plan = plan_of(|guest| {
            let named = |path: &str, target: Option<&str>| Disk {
                path: path.into(),
                target: target.map(Into::into),
                ..guest.disks[0].clone()
            };
            guest.disks = vec![
                named("/second", Some("vdb")),
                named("/third", None),
                named("/first", Some("vda")),
                named("/last", Some("vdaa")),
            ];
        })
        .unwrap();
        let files = plan.processes[1..5]
            .iter()
            .map(|disk| (disk.name.clone(), word_after(disk, "--blk-file").remove(0)));
        let expected = [
            ("vda", "/first"),
            ("vdb", "/second"),
            ("vdc", "/third"),
            ("vdaa", "/last"),
        ];
        assert!(files.eq(expected.map(|(name, file)| (name.into(), file.into()))));
        let sockets = word_after(&plan.processes[5], "--disk");
        assert!(sockets[3].ends_with("/vdaa.sock"), "{sockets:?}");
    }
}
