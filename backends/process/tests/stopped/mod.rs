//! System calls made in another process by ptrace(2), for tests of what a confined program can still do.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]

use std::io;

/// A process stopped under ptrace, between two instructions of its own.
pub(crate) struct Stopped {
    pid: libc::pid_t,
    registers: libc::user_regs_struct,
}

impl Stopped {
    /// Stops the process, which waits in a system call. `None`, and a line that says so, where that is not allowed.
    pub(crate) fn attach(pid: u32, test: &str) -> Option<Self> {
        let pid = libc::pid_t::try_from(pid).unwrap();
        // SAFETY: ptrace(2) and waitpid(2) on a process of this user; `registers` is plain data that PTRACE_GETREGS
        // fills.
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
    pub(crate) fn call(&self, number: libc::c_long, arguments: [u64; 4]) -> i64 {
        let mut registers = self.registers;
        // It was stopped right after a `syscall` instruction, which is two bytes long. A call to be restarted must not
        // be.
        registers.rip -= 2;
        registers.orig_rax = u64::MAX;
        registers.rax = number.unsigned_abs();
        [registers.rdi, registers.rsi, registers.rdx, registers.r10] = arguments;
        // SAFETY: as in `attach`; the registers belong to a process that makes one system call with them and gets its
        // own back after it.
        unsafe {
            check(libc::ptrace(
                libc::PTRACE_SETREGS,
                self.pid,
                0,
                &raw const registers,
            ));
            // The trap of the step before may come first.
            while registers.rip != self.registers.rip {
                check(libc::ptrace(libc::PTRACE_SINGLESTEP, self.pid, 0, 0));
                let mut status = 0;
                let waited = libc::waitpid(self.pid, &raw mut status, libc::__WALL);
                assert_eq!(waited, self.pid);
                assert!(libc::WIFSTOPPED(status), "{status:#x}");
                check(libc::ptrace(
                    libc::PTRACE_GETREGS,
                    self.pid,
                    0,
                    &raw mut registers,
                ));
            }
        }
        registers.rax as i64
    }

    /// Puts bytes where the process keeps nothing: below its stack pointer and the red zone, `slot` by `slot`.
    #[allow(dead_code)] // not every program needs a path for a call
    pub(crate) fn put(&self, slot: u64, bytes: &[u8]) -> u64 {
        let at = (self.registers.rsp - 8192 + 256 * slot) & !0xf;
        let mut padded = bytes.to_vec();
        padded.resize((bytes.len() + 1).next_multiple_of(8), 0);
        for (word, chunk) in (0u64..).zip(padded.chunks_exact(8)) {
            let value = u64::from_ne_bytes(chunk.try_into().unwrap());
            // SAFETY: ptrace(2) writes to memory of a process that is stopped and uses none of it.
            unsafe {
                check(libc::ptrace(
                    libc::PTRACE_POKEDATA,
                    self.pid,
                    at + 8 * word,
                    value,
                ));
            }
        }
        at
    }

    /// Allowed calls succeed, which shows that calls can be made at all. Each of these calls is refused; without a
    /// filter it would return a descriptor or a process, or fail otherwise, since its arguments are invalid.
    pub(crate) fn is_refused(&self, calls: &[(&str, libc::c_long, [u64; 4])]) {
        let own_id = self.call(libc::SYS_getpid, [0; 4]);
        assert_eq!(own_id, i64::from(self.pid));
        for (name, number, arguments) in calls {
            let result = self.call(*number, *arguments);
            assert_eq!(result, -i64::from(libc::EPERM), "{name}");
        }
    }
}

/// System calls that no confined program needs. Where arguments are valid, the call would succeed without a filter.
pub(crate) const NEEDLESS: [(&str, libc::c_long, [u64; 4]); 11] = [
    ("open", libc::SYS_open, [0; 4]),
    ("openat", libc::SYS_openat, [0; 4]),
    ("socket(AF_INET)", libc::SYS_socket, stream(libc::AF_INET)),
    ("socket(AF_UNIX)", libc::SYS_socket, stream(libc::AF_UNIX)),
    ("connect", libc::SYS_connect, [0; 4]),
    ("execve", libc::SYS_execve, [0; 4]),
    ("execveat", libc::SYS_execveat, [0; 4]),
    ("fork", libc::SYS_fork, [0; 4]),
    ("ptrace", libc::SYS_ptrace, [0; 4]),
    ("kill", libc::SYS_kill, [1, 0, 0, 0]),
    ("mmap(PROT_EXEC)", libc::SYS_mmap, CODE),
];

/// A socket of this family.
const fn stream(family: libc::c_int) -> [u64; 4] {
    [family as u64, libc::SOCK_STREAM as u64, 0, 0]
}

/// Memory of a process's own, to be executed.
const CODE: [u64; 4] = [
    0,
    4096,
    libc::PROT_EXEC as u64,
    libc::MAP_PRIVATE as u64 | libc::MAP_ANONYMOUS as u64,
];

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

/// A field of the status of a process.
pub(crate) fn status(pid: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().to_owned()
}

/// Panics unless the process has a filter of system calls, and neither has nor can gain privilege.
pub(crate) fn has_no_privilege(pid: u32) {
    assert_eq!(status(pid, "NoNewPrivs:"), "1");
    assert_eq!(status(pid, "Seccomp:"), "2", "a seccomp filter");
    assert_eq!(status(pid, "CapEff:"), "0000000000000000");
    assert_eq!(status(pid, "CapBnd:"), "0000000000000000");
}
