//! The host of a test: guests, the helper, and what is left when they have ended.

use std::cell::RefCell;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bulkhead_tests::guest::{Program, RUN, kernel, processes};
use bulkhead_tests::workplace::Workplace;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::peer::Peer;

/// How long a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many datagrams show that a guest has traffic.
const ENOUGH: usize = 200;

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// This host.
pub(crate) struct Host {
    peer: Peer,
    before: String,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self {
            peer: Peer::serve(),
            before: traces(),
        }
    }

    /// Waits until the guest has sent some more.
    pub(crate) fn wait_for_traffic(&self, guest: &Guest) {
        let before = self.peer.of(guest.address).datagrams;
        eventually(&format!("traffic of guest {}", guest.name), || {
            self.peer.of(guest.address).datagrams >= before + ENOUGH
        });
    }

    /// Waits until the guest has sent some more; nothing was lost until then.
    pub(crate) fn no_loss(&self, guest: &Guest) {
        self.wait_for_traffic(guest);
        let traffic = self.peer.of(guest.address);
        assert_eq!(traffic.repeated, 0, "guest {}: {traffic:?}", guest.name);
    }

    pub(crate) fn forgive(&self, guest: &Guest) {
        self.peer.forget(guest.address);
    }

    /// The helper that serves.
    pub(crate) fn helper(&self) -> u32 {
        helper().unwrap()
    }

    pub(crate) fn helper_serves(&self) -> bool {
        helper().is_some()
    }

    pub(crate) fn kill_helper(&self) {
        let helper = self.helper();
        signal(helper, Signal::KILL);
        eventually("the helper is gone", || self.running(&[helper]).is_empty());
    }

    /// Kills the process that removes the helper's files at its end.
    pub(crate) fn kill_broker_of_helper(&self) {
        let helper = self.helper();
        let all = processes();
        let mut brokers = all.iter().filter(|(_, name)| name == "bulkhead-broker");
        let broker = brokers.find(|(number, _)| parent(*number) == helper);
        let (broker, _) = broker.unwrap();
        signal(*broker, Signal::KILL);
        eventually("the broker is gone", || self.running(&[*broker]).is_empty());
    }

    /// Whether a helper has left its socket, at which nobody listens.
    pub(crate) fn is_stale_socket(&self) -> bool {
        helper_socket().exists() && helper().is_none()
    }

    pub(crate) fn runs(&self, name: &str) -> bool {
        processes().iter().any(|(_, other)| other == name)
    }

    /// Which of these processes are there still.
    pub(crate) fn running(&self, numbers: &[u32]) -> Vec<u32> {
        let all = processes();
        let runs = |number: &u32| all.iter().any(|(other, _)| other == number);
        numbers.iter().copied().filter(runs).collect()
    }

    pub(crate) fn run_folder(&self, guest: &str) -> PathBuf {
        Path::new(RUN).join("bulkhead").join(guest)
    }

    /// Nothing of any guest is left, as soon as `bulkhead` has ended.
    pub(crate) fn nothing_left(&self) {
        assert_eq!(traces(), self.before);
        assert_eq!(processes(), []);
    }

    /// The same, but for these (and what is below those that end in `/`), and only in a while.
    pub(crate) fn nothing_left_but(&self, files: &[&str]) {
        eventually("all processes end", || processes().is_empty());
        let left: Vec<String> = traces().lines().map(str::to_owned).collect();
        let expected = |line: &&String| {
            !self.before.lines().any(|before| before == line.as_str())
                && !files
                    .iter()
                    .any(|file| line == file || (file.ends_with('/') && line.starts_with(file)))
        };
        let unexpected: Vec<&String> = left.iter().filter(expected).collect();
        assert!(unexpected.is_empty(), "{unexpected:?}");
    }
}

fn helper_socket() -> PathBuf {
    Path::new(RUN).join("bulkhead/net-helper.sock")
}

/// Who listens on the helper's socket.
fn helper() -> Option<u32> {
    let kind = SocketType::SEQPACKET;
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(helper_socket()).unwrap()).ok()?;
    let peer = socket_peercred(&socket).unwrap();
    Some(peer.pid.as_raw_pid().cast_unsigned())
}

fn parent(process: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.map_or(0, |parent| parent.trim().parse().unwrap())
}

fn signal(process: u32, signal: Signal) {
    let process = Pid::from_raw(process.cast_signed()).unwrap();
    kill_process(process, signal).unwrap();
}

/// Everything that a guest could leave behind, a line each.
fn traces() -> String {
    let commands = "ip -oneline link | cut -d' ' -f2; ip -oneline -4 address | sed 's/valid_lft.*//'; ip route; ip rule; \
                    nft list ruleset; cat /proc/sys/net/ipv4/ip_forward; find /run/bulkhead 2>/dev/null | sort";
    let output = Command::new("sh").args(["-c", commands]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A guest under `bulkhead run`.
pub(crate) struct Guest {
    pub(crate) name: &'static str,
    pub(crate) address: IpAddr,
    program: RefCell<Program>,
}

impl Guest {
    /// `number` becomes its address's last byte; `words` are for the guest.
    pub(crate) fn run(name: &'static str, number: u8, words: &str) -> Self {
        let words =
            format!("ip=192.168.124.{number} peer=192.168.124.1 patience=20 progress=0 {words}");
        let mut command = Command::new(Workplace::find().unwrap().program("bulkhead").unwrap());
        command.args(["run", "--name", name, "--memory", "64M", "--net", "default"]);
        command.arg("--kernel").arg(kernel());
        command.args(["--cmdline", &words]);
        // As a shell does it, so that Ctrl-C is for this group.
        command.process_group(0);
        Self {
            name,
            address: Ipv4Addr::new(192, 168, 124, number).into(),
            program: RefCell::new(Program::start(command)),
        }
    }

    fn id(&self) -> u32 {
        self.program.borrow().id()
    }

    /// Ctrl-C: for all of the terminal's group.
    pub(crate) fn interrupt(&self) {
        let group = Pid::from_raw(self.id().cast_signed()).unwrap();
        kill_process_group(group, Signal::INT).unwrap();
    }

    pub(crate) fn signal(&self, which: Signal) {
        signal(self.id(), which);
    }

    /// Its processes besides `bulkhead`.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let (own, helper) = (self.id(), helper());
        let all = processes().into_iter().map(|(number, _)| number);
        all.filter(|&number| parent(number) == own && Some(number) != helper)
            .collect()
    }

    /// Kills its process of that name.
    pub(crate) fn kill_process(&self, name: &str) {
        let own = self.processes();
        let all = processes();
        let (number, _) = all
            .iter()
            .find(|(number, other)| own.contains(number) && other == name)
            .unwrap();
        signal(*number, Signal::KILL);
    }

    /// Waits for a line of its console.
    pub(crate) fn wait_for_line(&self, start: &str) {
        let mut program = self.program.borrow_mut();
        while !program.next_line().unwrap().starts_with(start) {}
    }

    /// Waits until `bulkhead` ends. Its status, and what it said.
    pub(crate) fn end(self) -> (Option<i32>, String) {
        let (status, said) = self.program.into_inner().wait();
        (status.code(), said)
    }
}
