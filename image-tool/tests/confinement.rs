//! What a working image-tool can no longer do (asked of the process itself: system calls are put into it with ptrace(2), as a hole
//! in it would), and what it never opens.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::fs;
use std::io;
use std::process::{Child, Command};

/// A process stopped under ptrace, between two instructions of its own.
struct Stopped {
    pid: libc::pid_t,
    registers: libc::user_regs_struct,
}

impl Stopped {
    /// Stops the process, which waits in a system call. `None`, and a line that says so, where that is not allowed.
    fn attach(pid: u32, test: &str) -> Option<Self> {
        let pid = libc::pid_t::try_from(pid).unwrap();
        // SAFETY: ptrace(2) and waitpid(2) on a child of this process; `registers` is plain data that PTRACE_GETREGS fills.
        let registers = unsafe {
            if libc::ptrace(libc::PTRACE_ATTACH, pid, 0, 0) != 0 {
                eprintln!("skipped: {test}: ptrace: {}", io::Error::last_os_error());
                return None;
            }
            assert_eq!(libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL), pid);
            let mut registers = std::mem::zeroed::<libc::user_regs_struct>();
            check(libc::ptrace(
                libc::PTRACE_GETREGS,
                pid,
                0,
                &raw mut registers,
            ));
            registers
        };
        Some(Self { pid, registers })
    }

    /// Has the process make a system call, and gives its result: negative is an error number.
    fn call(&self, number: libc::c_long, arguments: [u64; 4]) -> i64 {
        let mut registers = self.registers;
        // It was stopped right after a `syscall` instruction, which is two bytes long. A call to be restarted must not be.
        registers.rip -= 2;
        registers.orig_rax = u64::MAX;
        registers.rax = number.unsigned_abs();
        [registers.rdi, registers.rsi, registers.rdx, registers.r10] = arguments;
        // SAFETY: as in `attach`; the registers belong to a process that makes one system call with them and gets its own back after it.
        unsafe {
            check(libc::ptrace(
                libc::PTRACE_SETREGS,
                self.pid,
                0,
                &raw const registers,
            ));
            check(libc::ptrace(libc::PTRACE_SINGLESTEP, self.pid, 0, 0));
            let waited = libc::waitpid(self.pid, std::ptr::null_mut(), libc::__WALL);
            assert_eq!(waited, self.pid);
            check(libc::ptrace(
                libc::PTRACE_GETREGS,
                self.pid,
                0,
                &raw mut registers,
            ));
        }
        registers.rax as i64
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // SAFETY: as in `attach`.
        unsafe {
            libc::ptrace(libc::PTRACE_SETREGS, self.pid, 0, &raw const self.registers);
            libc::ptrace(libc::PTRACE_DETACH, self.pid, 0, 0);
        }
    }
}

fn check(result: libc::c_long) {
    assert_eq!(result, 0, "ptrace: {}", io::Error::last_os_error());
}

/// Kills the process when the test ends, however it does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A `convert` that takes its time, and its folder.
fn slow_convert() -> (tempfile::TempDir, Running) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("disk.raw"), vec![1; 1 << 20]).unwrap();
    let line = "convert -r 1k -f raw -O qcow2 disk.raw disk.qcow2";
    let child = Command::new(env!("CARGO_BIN_EXE_image-tool"))
        .args(line.split(' '))
        .current_dir(folder.path())
        .spawn()
        .unwrap();
    (folder, Running(child))
}

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_whitespace().nth(1))
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn a_working_process_can_reach_nothing_but_its_files() {
    let (folder, mut running) = slow_convert();
    let proc = format!("/proc/{}", running.0.id());
    // At work, which means confined, and waiting in a system call.
    loop {
        let status = fs::read_to_string(format!("{proc}/status")).unwrap();
        let at_work = field(&status, "Threads:").parse::<u32>().unwrap() > 1;
        let call = fs::read_to_string(format!("{proc}/syscall")).unwrap();
        if at_work && call.starts_with(|c: char| c.is_ascii_digit()) {
            break;
        }
        assert!(running.0.try_wait().unwrap().is_none(), "it ended too soon");
        std::thread::yield_now();
    }
    let test = "a_working_process_can_reach_nothing_but_its_files";
    let Some(stopped) = Stopped::attach(running.0.id(), test) else {
        return;
    };
    // The way in works: what is allowed is done.
    assert_eq!(
        stopped.call(libc::SYS_getpid, [0; 4]),
        i64::from(running.0.id())
    );
    let inet = [libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0, 0];
    let unix = [libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0, 0];
    let prot_exec = [
        0,
        4096,
        libc::PROT_EXEC as u64,
        libc::MAP_PRIVATE as u64 | libc::MAP_ANONYMOUS as u64,
    ];
    // Without a filter, each of these would give a descriptor, a process, or another error: the arguments are no good.
    for (name, number, arguments) in [
        ("open", libc::SYS_open, [0; 4]),
        ("openat", libc::SYS_openat, [0; 4]),
        ("openat2", libc::SYS_openat2, [0; 4]),
        ("creat", libc::SYS_creat, [0; 4]),
        ("socket(AF_INET)", libc::SYS_socket, inet),
        ("socket(AF_UNIX)", libc::SYS_socket, unix),
        ("connect", libc::SYS_connect, [0; 4]),
        ("execve", libc::SYS_execve, [0; 4]),
        ("execveat", libc::SYS_execveat, [0; 4]),
        ("fork", libc::SYS_fork, [0; 4]),
        ("ptrace", libc::SYS_ptrace, [0; 4]),
        ("mkdir", libc::SYS_mkdir, [0; 4]),
        ("link", libc::SYS_link, [0; 4]),
        ("symlink", libc::SYS_symlink, [0; 4]),
        ("chmod", libc::SYS_chmod, [0; 4]),
        ("mount", libc::SYS_mount, [0; 4]),
        ("kill", libc::SYS_kill, [1, 0, 0, 0]),
        ("mmap(PROT_EXEC)", libc::SYS_mmap, prot_exec),
        ("io_uring_setup", libc::SYS_io_uring_setup, [0; 4]),
    ] {
        let result = stopped.call(number, arguments);
        assert_eq!(result, -i64::from(libc::EPERM), "{name}");
    }
    drop(stopped);
    assert!(running.0.try_wait().unwrap().is_none(), "it goes on");
    assert!(!folder.path().join("disk.qcow2").exists());
}

#[test]
fn a_working_process_is_confined() {
    let (_folder, mut running) = slow_convert();
    let status_file = format!("/proc/{}/status", running.0.id());
    // It confines itself before its first thread: several threads mean that it is at work.
    let status = loop {
        let status = fs::read_to_string(&status_file).unwrap();
        if field(&status, "Threads:").parse::<u32>().unwrap() > 1 {
            break status;
        }
        assert!(
            running.0.try_wait().unwrap().is_none(),
            "it ended before it was looked at"
        );
        std::thread::yield_now();
    };
    assert_eq!(field(&status, "Seccomp:"), "2", "a seccomp filter");
    assert_eq!(field(&status, "NoNewPrivs:"), "1");
    assert_eq!(
        u64::from_str_radix(&field(&status, "CapEff:"), 16).unwrap(),
        0
    );
    assert_eq!(
        u64::from_str_radix(&field(&status, "CapBnd:"), 16).unwrap(),
        0
    );
}

#[test]
fn info_opens_neither_backing_nor_data_file() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_image-tool"))
            .args(args)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    run(&["create", "-q", "-f", "raw", "base", "1M"]);
    run(&[
        "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "overlay",
    ]);
    run(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "data_file=data",
        "external",
        "1M",
    ]);
    // Pipes without a writer: whoever opened them for reading would wait for ever.
    for name in ["base", "data"] {
        fs::remove_file(folder.path().join(name)).unwrap();
        let made = Command::new("mkfifo")
            .arg(folder.path().join(name))
            .status()
            .unwrap();
        assert!(made.success());
    }
    assert!(run(&["info", "overlay"]).contains("backing file: base\n"));
    assert!(run(&["info", "external"]).contains("data file: data\n"));
    for image in ["overlay", "external"] {
        assert!(run(&["check", image]).contains("No errors were found"));
        assert!(run(&["check", "--output=json", image]).contains("\"check-errors\": 0"));
    }
}
