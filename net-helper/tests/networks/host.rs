//! A host for a test: a network namespace, and the programs and machines in it.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bulkhead_net_protocol::{Client, Error, Lease, TapRequest};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tap::{InterfaceName, Options, Tap};

/// How long to wait for anything in these tests.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

/// Runs `body` on a host of its own: the test program starts itself again in a new network namespace, for this one
/// test.
pub(crate) fn on_own_host(test: &str, body: impl FnOnce()) {
    const INSIDE: &str = "NET_HELPER_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        run("ip link set lo up");
        return body();
    }
    if let Some(why) = missing() {
        eprintln!("skipped: {test}: {why}");
        return;
    }
    let status = Command::new("unshare")
        .args(["--net", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

/// What this machine lacks for these tests.
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root: dnsmasq becomes another user".into());
    }
    for program in [
        "/usr/sbin/dnsmasq",
        "/usr/sbin/nft",
        "/usr/bin/busybox",
        "/usr/bin/unshare",
        "/usr/bin/nsenter",
    ] {
        if !Path::new(program).exists() {
            return Some(format!("{program} is not installed"));
        }
    }
    let probe = Command::new("unshare")
        .args(["--net", "--mount", "test", "-w", "/dev/net/tun"])
        .status();
    (!probe.is_ok_and(|status| status.success()))
        .then(|| "no network namespaces or no /dev/net/tun".into())
}

/// Runs a command that must succeed, and returns its output.
pub(crate) fn run(command: &str) -> String {
    let output = attempt(command);
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that may fail.
pub(crate) fn attempt(command: &str) -> Output {
    Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Waits until a condition holds.
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < TIMEOUT, "not within {TIMEOUT:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The MAC address of an interface.
pub(crate) fn mac(interface: &str) -> String {
    let shown = run(&format!("ip -o link show {interface}"));
    let mut words = shown
        .split_whitespace()
        .skip_while(|word| *word != "link/ether");
    words.nth(1).unwrap().to_owned()
}

/// Everything that the helper could leave behind or destroy, as text.
pub(crate) fn traces(folder: &Path) -> String {
    // Addresses are in the order of the interfaces' numbers; counters, ages and the state of cables are left out.
    let forwarding = run("cat /proc/sys/net/ipv4/ip_forward");
    let links = run("ip -o link | cut -d' ' -f2");
    let addresses = run("ip -o -4 addr | sed 's/valid_lft.*//'");
    let routes = run("ip -4 route | sed 's/ linkdown//'");
    let rules = run("nft list ruleset; ip rule; ip -6 rule");
    let files = run(&format!("find {} | sort", folder.display()));
    format!(
        "forwarding {forwarding}\n{links}\n{addresses}\n{routes}\n{rules}\n{files}\ndnsmasq {:?}",
        dnsmasqs()
    )
}

/// The dnsmasqs of this network namespace.
pub(crate) fn dnsmasqs() -> Vec<i32> {
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let processes = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes
        .filter(|pid: &i32| {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let namespace = std::fs::read_link(format!("/proc/{pid}/ns/net"));
            comm.trim() == "dnsmasq" && namespace.is_ok_and(|ns| ns == own)
        })
        .collect()
}

/// A field of `/proc/PID/status`.
pub(crate) fn status(pid: i32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix(field)?.strip_prefix(":\t"));
    line.unwrap().to_owned()
}

/// A dnsmasq and the processes that start it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DhcpProcesses {
    pub(crate) dnsmasq: i32,
    pub(crate) init: i32,
    pub(crate) supervisor: i32,
    pub(crate) standby: i32,
}

impl DhcpProcesses {
    /// Waits until the only network with a dnsmasq has all four processes, and none of them is one of those that were
    /// killed.
    pub(crate) fn wait_for(killed: &[i32]) -> DhcpProcesses {
        let mut found = None;
        let found = std::cell::RefCell::new(&mut found);
        eventually("dnsmasq and the processes that start it", || {
            **found.borrow_mut() = DhcpProcesses::find()
                .filter(|processes| processes.all().iter().all(|pid| !killed.contains(pid)));
            found.borrow().is_some()
        });
        found.into_inner().unwrap()
    }

    fn find() -> Option<DhcpProcesses> {
        let [dnsmasq] = dnsmasqs()[..] else {
            return None;
        };
        let parent = |pid: i32| -> Option<i32> {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            status
                .lines()
                .find_map(|l| l.strip_prefix("PPid:\t"))?
                .parse()
                .ok()
        };
        let init = parent(dnsmasq)?;
        let supervisor = parent(init)?;
        let children =
            std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children"))
                .ok()?;
        let standby = children
            .split(' ')
            .filter_map(|pid| pid.parse().ok())
            .find(|pid: &i32| {
                std::fs::read(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|line| line.windows(8).any(|w| w == b"-standby"))
            })?;
        Some(DhcpProcesses {
            dnsmasq,
            init,
            supervisor,
            standby,
        })
    }

    pub(crate) fn all(self) -> [i32; 4] {
        [self.dnsmasq, self.init, self.supervisor, self.standby]
    }
}

/// A running helper.
pub(crate) struct Helper {
    pub(crate) child: Child,
    /// The process that gets signals: the child, or the process that the child traces.
    pid: i32,
    pub(crate) socket: PathBuf,
}

impl Helper {
    /// Starts a helper, and waits until it is ready.
    pub(crate) fn start(folder: &Path, options: &str) -> Helper {
        let mut helper = Helper::spawn(folder, command(folder, options));
        helper.pid = helper.child.id() as i32;
        helper
    }

    /// The same, with standard error written to a file.
    pub(crate) fn start_writing(said: &Path, folder: &Path, options: &str) -> Helper {
        let mut command = command(folder, options);
        command.stderr(File::create(said).unwrap());
        let mut helper = Helper::spawn(folder, command);
        helper.pid = helper.child.id() as i32;
        helper
    }

    /// The same. Also returns what it has written to standard error by then.
    pub(crate) fn start_heard(folder: &Path, options: &str) -> (Helper, String) {
        let said = folder.join("said");
        let helper = Helper::start_writing(&said, folder, options);
        let text = std::fs::read_to_string(&said).unwrap();
        std::fs::remove_file(said).unwrap();
        (helper, text)
    }

    /// Starts a helper that another program traces, and waits until it is ready.
    pub(crate) fn start_under(tracer: &str, folder: &Path, options: &str) -> Helper {
        let helper = command(folder, options);
        let mut words = tracer.split_whitespace();
        let mut traced = Command::new(words.next().unwrap());
        traced
            .args(words)
            .arg(helper.get_program())
            .args(helper.get_args());
        let mut helper = Helper::spawn(folder, traced);
        let tracer = helper.child.id();
        helper.pid = run(&format!("cat /proc/{tracer}/task/{tracer}/children"))
            .trim()
            .parse()
            .unwrap();
        helper
    }

    fn spawn(folder: &Path, mut command: Command) -> Helper {
        let notify = folder.join("notify");
        let ready = UnixDatagram::bind(&notify).unwrap();
        ready.set_read_timeout(Some(TIMEOUT)).unwrap();
        let socket = folder.join("helper.sock");
        let child = command.env("NOTIFY_SOCKET", &notify).spawn().unwrap();
        let mut message = [0; 16];
        let length = ready.recv(&mut message).expect("the helper becomes ready");
        assert_eq!(&message[..length], b"READY=1\n");
        std::fs::remove_file(notify).unwrap();
        Helper {
            child,
            pid: 0,
            socket,
        }
    }

    /// Starts a helper with the same state folder and another socket path, which must fail.
    pub(crate) fn fail(folder: &Path, options: &str) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-net-helper"));
        command.args(options.split_whitespace());
        command.arg("--state-dir").arg(folder.join("net-helper"));
        assert!(!command.status().unwrap().success());
    }

    pub(crate) fn lease(&self, request: &TapRequest) -> Result<Lease, Error> {
        Client::connect(&self.socket)?.request_tap(request)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid).unwrap(), signal).unwrap();
    }

    /// Stops the helper by SIGTERM.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::TERM);
        assert!(self.child.wait().unwrap().success());
    }

    /// Waits for the end of a helper that was sent a signal.
    pub(crate) fn wait_for_the_end(mut self) {
        self.child.wait().unwrap();
    }

    /// Kills the helper, as the kernel does when memory runs out.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }
}

/// A test that fails leaves no helper behind.
impl Drop for Helper {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs a helper that must refuse to start, and returns its one line on standard error.
pub(crate) fn refused(folder: &Path, options: &str, status: i32) -> String {
    let output = command(folder, options)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("error: "), "{text}");
    text
}

pub(crate) fn command(folder: &Path, options: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-net-helper"));
    command.arg("--socket-path").arg(folder.join("helper.sock"));
    command.args(options.split_whitespace());
    command
}

/// Another machine: a network namespace that lives as long as this value.
pub(crate) struct Machine {
    sleeper: Child,
}

impl Machine {
    pub(crate) fn new() -> Machine {
        let mut sleeper = Command::new("unshare")
            .args([
                "--net",
                "sh",
                "-c",
                "ip link set lo up && echo up && exec sleep 600",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(sleeper.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "up\n");
        Machine { sleeper }
    }

    /// Runs a command there that must succeed.
    pub(crate) fn run(&self, command: &str) -> String {
        run(&self.inside(command))
    }

    /// Runs a command there that may fail.
    pub(crate) fn attempt(&self, command: &str) -> Output {
        attempt(&self.inside(command))
    }

    /// Opens a UDP socket there.
    pub(crate) fn udp(&self, address: &str) -> UdpSocket {
        let address = address.to_owned();
        self.within(move || UdpSocket::bind(&address).unwrap_or_else(|e| panic!("{address}: {e}")))
    }

    /// Calls `act` in the machine's network namespace, on a thread of its own.
    pub(crate) fn within<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.sleeper.id())).unwrap();
        let acting = std::thread::spawn(move || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).unwrap();
            act()
        });
        acting.join().unwrap()
    }

    fn inside(&self, command: &str) -> String {
        format!("nsenter --target {} --net {command}", self.sleeper.id())
    }

    /// Moves an interface of this host to the machine.
    pub(crate) fn take(&self, interface: &str) {
        run(&format!(
            "ip link set {interface} netns {}",
            self.sleeper.id()
        ));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.sleeper.kill();
        let _ = self.sleeper.wait();
    }
}

/// The world outside: a machine with a link to this host and no route to the guests.
pub(crate) fn world() -> Machine {
    let world = Machine::new();
    run("ip link add uplink type veth peer name outside");
    run("ip addr add 203.0.113.1/24 dev uplink && ip link set uplink up");
    world.take("outside");
    world.run("ip addr add 203.0.113.2/24 dev outside");
    world.run("ip link set outside up");
    world
}

/// A guest with a leased TAP device: a machine whose eth0 is connected to the device.
pub(crate) struct Guest {
    pub(crate) machine: Machine,
    pub(crate) lease: Lease,
    _wire: JoinHandle<()>,
}

impl Guest {
    pub(crate) fn new(helper: &Helper, request: &TapRequest) -> Guest {
        let mut lease = helper.lease(request).unwrap();
        let host_end = Tap::from_fd(lease.queues.remove(0)).unwrap();
        let guest_end = Tap::open(&InterfaceName::new("eth0").unwrap(), Options::VNET_HDR).unwrap();
        guest_end.set_vnet_hdr_len(tap::VNET_HDR_LEN).unwrap();
        guest_end.set_mac(lease.info.mac.octets()).unwrap();
        let machine = Machine::new();
        machine.take("eth0");
        machine.run("ip link set eth0 up");
        let _wire = std::thread::spawn(move || carry(&host_end, &guest_end));
        Guest {
            machine,
            lease,
            _wire,
        }
    }

    /// Gets an address by DHCP, and returns what the DHCP client prints.
    pub(crate) fn dhcp(&self, folder: &Path) -> String {
        use std::os::unix::fs::PermissionsExt;
        let script = folder.join("udhcpc.sh");
        let text = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip addr add $ip/$mask dev $interface\n\
                    [ -z \"$router\" ] || ip route add default via $router\necho \"ip=$ip router=$router dns=$dns\"\n";
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        self.machine.run(&format!(
            "busybox udhcpc -i eth0 -q -n -f -t 10 -T 1 -s {}",
            script.display()
        ))
    }

    pub(crate) fn can_ping(&self, address: &str) -> bool {
        self.machine
            .attempt(&format!("ping -c 1 -W 2 {address}"))
            .status
            .success()
    }
}

/// Forwards frames between two TAP devices, with their virtio headers, until one device is gone.
fn carry(a: &Tap, b: &Tap) {
    use rustix::event::{PollFd, PollFlags, poll};
    loop {
        let mut ready = [PollFd::new(a, PollFlags::IN), PollFd::new(b, PollFlags::IN)];
        poll(&mut ready, None).unwrap();
        for (from, to) in [(a, b), (b, a)] {
            let mut frame = [0; 65_600];
            match rustix::io::read(from, &mut frame) {
                Ok(length) => drop(rustix::io::write(to, &frame[..length])),
                Err(rustix::io::Errno::AGAIN) => {}
                Err(_) => return,
            }
        }
    }
}
