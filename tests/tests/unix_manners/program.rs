//! The programs, started under a condition.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bulkhead_tests::guest::{Program, ip, kernel, processes};
use bulkhead_tests::workplace::Workplace;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, Signal, kill_process};

/// How long a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where the files are.
pub(crate) const FOLDER: &str = "/run/files";

/// A program and how it is called.
pub(crate) struct Called {
    pub(crate) name: &'static str,
    /// `GUEST` is the guest's path.
    line: &'static str,
    /// It serves once this can be connected to.
    socket: &'static str,
    pub(crate) needs_kvm: bool,
    /// Modes of its files.
    pub(crate) modes: &'static [(&'static str, u32)],
}

impl Called {
    /// A program that needs no KVM, and whose files' modes are not checked.
    pub(crate) const fn quiet(
        name: &'static str,
        line: &'static str,
        socket: &'static str,
    ) -> Self {
        Self {
            name,
            line,
            socket,
            needs_kvm: false,
            modes: &[],
        }
    }

    /// The same for a program that needs KVM.
    pub(crate) const fn guest(
        name: &'static str,
        line: &'static str,
        socket: &'static str,
    ) -> Self {
        Self {
            needs_kvm: true,
            ..Self::quiet(name, line, socket)
        }
    }
}

pub(crate) const PROGRAMS: &[Called] = &[
    Called {
        name: "bulkhead run",
        line: "bulkhead run --name g --memory 64M --kernel GUEST --cmdline test=echo --disk /run/files/disk.raw --net default",
        socket: "/run/bulkhead/g/api.sock",
        needs_kvm: true,
        modes: &[
            ("/run/bulkhead", 0o755),
            ("/run/bulkhead/g", 0o700),
            ("/run/bulkhead/net-helper.sock", 0o660),
        ],
    },
    Called {
        name: "bulkhead-vmm",
        line: "bulkhead-vmm --memory size=64M --kernel GUEST --cmdline test=echo --serial null --api-socket path=/run/api.sock",
        socket: "/run/api.sock",
        needs_kvm: true,
        modes: &[],
    },
    Called {
        name: "bulkhead-block",
        line: "bulkhead-block --socket-path /run/vda.sock --blk-file /run/files/disk.raw --format raw --persist",
        socket: "/run/vda.sock",
        needs_kvm: false,
        modes: &[("/run/vda.sock", 0o600)],
    },
    Called {
        name: "bulkhead-net",
        line: "bulkhead-net --socket-path /run/net0.sock --tap tap0 --persist",
        socket: "/run/net0.sock",
        needs_kvm: false,
        modes: &[("/run/net0.sock", 0o600)],
    },
    Called {
        name: "bulkhead-net-helper",
        line: "bulkhead-net-helper --socket-path /run/helper.sock --network name=n,subnet=10.77.0.0/24,bridge=manners0",
        socket: "/run/helper.sock",
        needs_kvm: false,
        modes: &[("/run/helper.sock", 0o660), ("/run/net-helper", 0o700)],
    },
];

/// A monitor that waits for a guest by its API.
pub(crate) const MONITOR_WITHOUT_GUEST: Called = Called::guest(
    "bulkhead-vmm without a guest",
    "bulkhead-vmm --api-socket path=/run/api.sock",
    "/run/api.sock",
);

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

pub(crate) fn kill(process: u32, signal: Signal) {
    kill_process(Pid::from_raw(process.cast_signed()).unwrap(), signal).unwrap();
}

/// Where the programs run, prepared.
pub(crate) struct Place;

impl Place {
    pub(crate) fn new() -> Self {
        fs::create_dir(FOLDER).unwrap();
        for name in ["disk.raw", "peer.raw"] {
            let disk = fs::File::create(Path::new(FOLDER).join(name)).unwrap();
            disk.set_len(1 << 20).unwrap();
        }
        ip("tuntap add tap0 mode tap vnet_hdr");
        Self
    }

    /// Makes `over.qcow2`, an image over `disk.raw`.
    pub(crate) fn image(&self) {
        let tool = Workplace::find().unwrap().program("image-tool").unwrap();
        let words = "create -q -f qcow2 -b disk.raw -F raw over.qcow2";
        let made = Command::new(tool)
            .args(words.split(' '))
            .current_dir(FOLDER)
            .status();
        assert!(made.unwrap().success());
    }

    /// Starts a program as a shell does that has done `condition`.
    pub(crate) fn start(&self, program: &Called, condition: &str) -> Running {
        self.start_in(program, condition, "")
    }

    /// The same, below another program.
    pub(crate) fn start_in(&self, program: &Called, condition: &str, below: &str) -> Running {
        let programs = Workplace::find().unwrap().programs;
        let line = program.line.replace("GUEST", kernel().to_str().unwrap());
        // A mount namespace of its own, for the conditions that mount.
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c"]);
        command
            .arg(format!("{condition} || exit 99; exec {below} \"$@\""))
            .arg("sh");
        command.args(line.split(' '));
        command.env(
            "PATH",
            format!("{}:{}", programs.display(), std::env::var("PATH").unwrap()),
        );
        command.env_remove("NOTIFY_SOCKET");
        Running {
            program: RefCell::new(Program::start(command)),
            socket: program.socket,
        }
    }

    /// Runs a guest to its end with the files of a folder, named relative to it.
    pub(crate) fn run_in(&self, folder: &Path) -> (Option<i32>, String) {
        let bulkhead = Workplace::find().unwrap().program("bulkhead").unwrap();
        let mut disk = OsString::from(folder);
        disk.push("/disk.raw");
        // A comma is written twice.
        let doubled: Vec<u8> = std::os::unix::ffi::OsStrExt::as_bytes(disk.as_os_str())
            .iter()
            .flat_map(|&byte| std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 }))
            .collect();
        let disk: OsString = std::os::unix::ffi::OsStringExt::from_vec(doubled);
        let mut command = Command::new(bulkhead);
        command.args([
            "run",
            "--name",
            "odd",
            "--memory",
            "64M",
            "--cmdline",
            "test=start",
        ]);
        command.arg("--kernel").arg("guest").arg("--disk").arg(disk);
        let mut program = Program::start({
            command.current_dir(folder).stdin(Stdio::null());
            command
        });
        let (status, said) = program.wait();
        (status.code(), said)
    }

    /// What is wrong with how a program takes a condition, if anything is.
    pub(crate) fn check(
        &self,
        program: &Called,
        condition: &str,
        must_work: bool,
    ) -> Result<(), String> {
        let running = self.start(program, condition);
        let serves = running.serves();
        if serves {
            running.signal(Signal::TERM);
        }
        let (status, said) = running.end();
        let works = serves && (status, said.as_str()) == (Some(0), "");
        let mut lines = said.lines();
        let error = lines.next().is_some_and(|line| line.starts_with("error: "));
        let says = status == Some(1) && error && lines.next().is_none();
        if !works && (must_work || !says) {
            return Err(format!("{status:?}: {said}"));
        }
        let start = Instant::now();
        // What somebody else started may still be ending where this one could not wait for it.
        while !processes().is_empty() && start.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !processes().is_empty() {
            return Err(format!("left running: {:?}", processes()));
        }
        let left = fs::read_dir("/run")
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = left
            // mount(8) makes a folder of its own.
            .filter(|name| name != "files" && name != "mount")
            .collect();
        for name in &left {
            let path = Path::new("/run").join(name);
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
        if !left.is_empty() {
            return Err(format!("left behind: {left:?}"));
        }
        Ok(())
    }
}

/// A program that was started.
pub(crate) struct Running {
    program: RefCell<Program>,
    socket: &'static str,
}

impl Running {
    pub(crate) fn id(&self) -> u32 {
        self.program.borrow().id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.id(), signal);
    }

    /// Waits until it serves; false when it ends before.
    pub(crate) fn serves(&self) -> bool {
        let mut serves = false;
        eventually("it serves or ends", || {
            serves = listens(self.socket);
            serves || self.program.borrow_mut().has_ended()
        });
        // `bulkhead run` serves when all of its processes do.
        serves
    }

    /// Whether it serves, some moments later.
    pub(crate) fn still_serves(&self) -> bool {
        let until = Instant::now() + Duration::from_millis(200);
        while Instant::now() < until {
            if !listens(self.socket) || self.program.borrow_mut().has_ended() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    /// The next line of its standard output; `None` when there will be no more.
    pub(crate) fn next_line(&self) -> Option<String> {
        self.program.borrow_mut().next_line()
    }

    /// Whether a thread of it has this name.
    pub(crate) fn has_thread(&self, name: &str) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.id()));
        let names = threads.into_iter().flatten().flatten();
        let mut names =
            names.filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok());
        names.any(|found| found.trim_end() == name)
    }

    pub(crate) fn end(self) -> (Option<i32>, String) {
        let (status, said) = self.program.into_inner().wait();
        (status.code(), said)
    }

    /// Ends it by a signal: in order and in silence.
    pub(crate) fn end_with(self, signal: Signal, name: &str) {
        self.signal(signal);
        let (status, said) = self.end();
        assert_eq!((status, said.as_str()), (Some(0), ""), "{name}, {signal:?}");
    }
}

/// Whether somebody listens, with a socket of whatever kind.
fn listens(path: &str) -> bool {
    let address = SocketAddrUnix::new(path).unwrap();
    let kinds = [SocketType::SEQPACKET, SocketType::STREAM];
    kinds.into_iter().any(|kind| {
        let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        connect(&socket, &address).is_ok()
    })
}
