//! What the serving process can still do, asked of the process itself: a system call is put into it with ptrace(2), as a hole in it would.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::io;

use peer::{Backend, Guest, raw_image};

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

fn status_line(pid: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().to_owned()
}

#[test]
fn a_server_that_holds_guest_memory_can_reach_nothing_else() {
    let (_folder, image) = raw_image(1 << 20);
    let backend = Backend::start(&image, "raw", &[]);
    let pid = backend.child.id();
    let mut guest = Guest::connect(&backend, 1);
    assert_eq!(guest.read(1, 512), [1; 512]);

    {
        let test = "a_server_that_holds_guest_memory_can_reach_nothing_else";
        let Some(stopped) = Stopped::attach(pid, test) else {
            return;
        };
        // The way in works: what is allowed is done.
        assert_eq!(stopped.call(libc::SYS_getpid, [0; 4]), i64::from(pid));
        let inet = [libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0, 0];
        let unix = [libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0, 0];
        let prot_exec = [
            0,
            4096,
            libc::PROT_EXEC as u64,
            libc::MAP_PRIVATE as u64 | 0x20,
        ];
        // Without a filter, each of these would give a descriptor, a process, or another error: the arguments are no good.
        for (name, number, arguments) in [
            ("open", libc::SYS_open, [0; 4]),
            ("openat", libc::SYS_openat, [0; 4]),
            ("socket(AF_INET)", libc::SYS_socket, inet),
            ("socket(AF_UNIX)", libc::SYS_socket, unix),
            ("execve", libc::SYS_execve, [0; 4]),
            ("execveat", libc::SYS_execveat, [0; 4]),
            ("fork", libc::SYS_fork, [0; 4]),
            ("clone", libc::SYS_clone, [0; 4]),
            ("ptrace", libc::SYS_ptrace, [0; 4]),
            ("unlink", libc::SYS_unlink, [0; 4]),
            ("connect", libc::SYS_connect, [0; 4]),
            ("bind", libc::SYS_bind, [0; 4]),
            ("kill", libc::SYS_kill, [1, 0, 0, 0]),
            ("mmap(PROT_EXEC)", libc::SYS_mmap, prot_exec),
            ("ioctl(KVM_CREATE_VM)", libc::SYS_ioctl, [0, 0xae01, 0, 0]),
            ("io_uring_setup", libc::SYS_io_uring_setup, [0; 4]),
            ("io_uring_register", libc::SYS_io_uring_register, [0; 4]),
        ] {
            let result = stopped.call(number, arguments);
            assert_eq!(result, -i64::from(libc::EPERM), "{name}");
        }
    }

    assert_eq!(status_line(pid, "NoNewPrivs:"), "1");
    assert_eq!(status_line(pid, "Seccomp:"), "2");
    assert_eq!(status_line(pid, "CapEff:"), "0000000000000000");
    assert_eq!(status_line(pid, "CapBnd:"), "0000000000000000");
    // And it serves as before.
    assert_eq!(guest.read(2, 512), [2; 512]);
}

#[test]
fn a_server_that_persists_can_remove_its_socket_and_open_nothing() {
    let (_folder, image) = raw_image(1 << 20);
    let backend = Backend::start(&image, "raw", &["--persist"]);
    let mut guest = Guest::connect(&backend, 1);
    assert_eq!(guest.read(1, 512), [1; 512]);

    let test = "a_server_that_persists_can_remove_its_socket_and_open_nothing";
    let Some(stopped) = Stopped::attach(backend.child.id(), test) else {
        return;
    };
    for number in [libc::SYS_open, libc::SYS_openat, libc::SYS_execve] {
        assert_eq!(stopped.call(number, [0; 4]), -i64::from(libc::EPERM));
    }
}
