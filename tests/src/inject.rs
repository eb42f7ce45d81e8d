//! System calls made by another process, as an intruder in it would make them: through ptrace, on its own thread.

use std::ffi::c_void;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::libc::user_regs_struct;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// A process that is stopped so that calls can be made in it. It runs on when this is dropped.
pub struct Intruder {
    pid: Pid,
    before: user_regs_struct,
}

/// Room for a string below the stack pointer and the red zone.
const BELOW_STACK: u64 = 8192;

/// What there is on the host that is not the process's own.
pub struct Host {
    /// A file, the image's neighbour or `/etc/passwd`.
    pub file: String,
    /// A socket that listens: another guest's, or the helper's.
    pub socket: String,
    /// A process of the same user.
    pub process: u32,
}

impl Intruder {
    /// Stops the process.
    pub fn enter(pid: u32) -> Result<Self> {
        let pid = Pid::from_raw(pid.try_into().context("process id")?);
        ptrace::attach(pid).context("ptrace attach")?;
        let stopped = waitpid(pid, None).context("wait for the stop")?;
        ensure!(
            matches!(stopped, WaitStatus::Stopped(..)),
            "the process did not stop: {stopped:?}"
        );
        let before = ptrace::getregs(pid).context("registers")?;
        let intruder = Self { pid, before };
        // One that runs a guest may show the guest's registers.
        let code = before
            .rip
            .checked_sub(2)
            .context("the process is in no code")?;
        let word = ptrace::read(pid, code as *mut c_void).context("code")?;
        ensure!(
            word & 0xffff == 0x050f,
            "the process is not in a system call"
        );
        Ok(intruder)
    }

    /// Tries everything by which an intruder would reach something on the host that is not the process's own:
    /// sockets, files, processes, the network, other programs. Returns what was not refused; a file that is not to be
    /// seen is not reached, and neither is one of a root folder that nobody can change.
    pub fn reach(&self, host: &Host) -> Result<Vec<String>> {
        let mut reached = Vec::new();
        for (name, number, arguments) in self.attempts(host)? {
            let result = self.call(number, arguments)?;
            let refused = [Errno::EPERM, Errno::EACCES, Errno::ENOENT, Errno::EROFS];
            if !result.is_err_and(|error| refused.contains(&error)) {
                reached.push(format!("{name}: {result:?}"));
            }
        }
        Ok(reached)
    }

    fn attempts(&self, host: &Host) -> Result<Vec<Attempt>> {
        let base = self.base();
        let file = self.put(base, host.file.as_bytes())?;
        let socket = self.put(base + 1024, host.socket.as_bytes())?;
        let by_path = self.put(base + 2048, &address(&host.socket)?)?;
        let by_name = self.put(base + 2304, &address("\0bulkhead-other")?)?;
        let here = libc::AT_FDCWD as u64;
        let victim = u64::from(host.process);
        let own = self.own_descriptor()?;
        let length = 110;
        Ok(vec![
            // Files, among them what is beside the process's own.
            (
                "openat",
                libc::SYS_openat,
                [here, file, libc::O_RDONLY as u64, 0, 0],
            ),
            (
                "openat to write",
                libc::SYS_openat,
                [here, file, libc::O_WRONLY as u64, 0, 0],
            ),
            (
                "openat to make",
                libc::SYS_openat,
                [
                    here,
                    file,
                    (libc::O_CREAT | libc::O_WRONLY) as u64,
                    0o600,
                    0,
                ],
            ),
            ("open", libc::SYS_open, [file, 0, 0, 0, 0]),
            (
                "openat2",
                libc::SYS_openat2,
                [here, file, base + 3000, 24, 0],
            ),
            ("unlink", libc::SYS_unlink, [socket, 0, 0, 0, 0]),
            ("unlinkat", libc::SYS_unlinkat, [here, socket, 0, 0, 0]),
            ("rename", libc::SYS_rename, [file, socket, 0, 0, 0]),
            (
                "renameat2",
                libc::SYS_renameat2,
                [here, file, here, socket, 0],
            ),
            ("link", libc::SYS_linkat, [here, file, here, socket, 0]),
            ("mkdir", libc::SYS_mkdir, [socket, 0o700, 0, 0, 0]),
            ("chmod", libc::SYS_chmod, [file, 0o777, 0, 0, 0]),
            ("truncate", libc::SYS_truncate, [file, 0, 0, 0, 0]),
            // Sockets of others.
            (
                "socket(AF_UNIX)",
                libc::SYS_socket,
                [libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0, 0, 0],
            ),
            (
                "socket(AF_INET)",
                libc::SYS_socket,
                [libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0, 0, 0],
            ),
            (
                "socket(AF_NETLINK)",
                libc::SYS_socket,
                [libc::AF_NETLINK as u64, libc::SOCK_RAW as u64, 0, 0, 0],
            ),
            (
                "socket(AF_VSOCK)",
                libc::SYS_socket,
                [libc::AF_VSOCK as u64, libc::SOCK_STREAM as u64, 0, 0, 0],
            ),
            (
                "socketpair(SOCK_DGRAM)",
                libc::SYS_socketpair,
                [libc::AF_UNIX as u64, libc::SOCK_DGRAM as u64, 0, base, 0],
            ),
            (
                "connect by path",
                libc::SYS_connect,
                [own, by_path, length, 0, 0],
            ),
            (
                "connect by name",
                libc::SYS_connect,
                [own, by_name, length, 0, 0],
            ),
            ("bind", libc::SYS_bind, [own, by_name, length, 0, 0]),
            (
                "sendto by path",
                libc::SYS_sendto,
                [own, base, 1, 0, by_path],
            ),
            // Processes of the same user.
            ("kill", libc::SYS_kill, [victim, 0, 0, 0, 0]),
            ("tgkill", libc::SYS_tgkill, [victim, victim, 0, 0, 0]),
            ("tkill", libc::SYS_tkill, [victim, 0, 0, 0, 0]),
            (
                "rt_sigqueueinfo",
                libc::SYS_rt_sigqueueinfo,
                [victim, 0, base, 0, 0],
            ),
            ("pidfd_open", libc::SYS_pidfd_open, [victim, 0, 0, 0, 0]),
            (
                "pidfd_send_signal",
                libc::SYS_pidfd_send_signal,
                [own, 0, 0, 0, 0],
            ),
            ("pidfd_getfd", libc::SYS_pidfd_getfd, [own, 0, 0, 0, 0]),
            ("ptrace", libc::SYS_ptrace, [16, victim, 0, 0, 0]),
            (
                "process_vm_readv",
                libc::SYS_process_vm_readv,
                [victim, base, 1, base, 1],
            ),
            (
                "process_vm_writev",
                libc::SYS_process_vm_writev,
                [victim, base, 1, base, 1],
            ),
            ("prlimit64", libc::SYS_prlimit64, [victim, 7, 0, 0, 0]),
            (
                "fcntl(F_SETOWN)",
                libc::SYS_fcntl,
                [own, libc::F_SETOWN as u64, victim, 0, 0],
            ),
            ("fcntl(F_SETOWN_EX)", libc::SYS_fcntl, [own, 15, base, 0, 0]),
            ("fcntl(F_SETSIG)", libc::SYS_fcntl, [own, 10, 9, 0, 0]),
            ("fcntl(F_SETLEASE)", libc::SYS_fcntl, [own, 1024, 0, 0, 0]),
            (
                "fcntl(O_ASYNC)",
                libc::SYS_fcntl,
                [own, libc::F_SETFL as u64, libc::O_ASYNC as u64, 0, 0],
            ),
            (
                "ioctl(FIOSETOWN)",
                libc::SYS_ioctl,
                [own, 0x8901, base, 0, 0],
            ),
            (
                "ioctl(TIOCSTI)",
                libc::SYS_ioctl,
                [own, libc::TIOCSTI, base, 0, 0],
            ),
            // More of the kernel, and other programs.
            ("execve", libc::SYS_execve, [file, 0, 0, 0, 0]),
            ("fork", libc::SYS_fork, [0; 5]),
            (
                "clone of a process",
                libc::SYS_clone,
                [libc::SIGCHLD as u64, 0, 0, 0, 0],
            ),
            (
                "mmap(PROT_EXEC)",
                libc::SYS_mmap,
                [
                    0,
                    4096,
                    libc::PROT_EXEC as u64,
                    (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64,
                    u64::MAX,
                ],
            ),
            (
                "mprotect(PROT_EXEC)",
                libc::SYS_mprotect,
                [base & !0xfff, 4096, libc::PROT_EXEC as u64, 0, 0],
            ),
            (
                "madvise(MADV_HWPOISON)",
                libc::SYS_madvise,
                [0, 4096, libc::MADV_HWPOISON as u64, 0, 0],
            ),
            (
                "unshare",
                libc::SYS_unshare,
                [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0],
            ),
            ("setns", libc::SYS_setns, [own, 0, 0, 0, 0]),
            ("mount", libc::SYS_mount, [file, file, 0, 0, 0]),
            ("chroot", libc::SYS_chroot, [file, 0, 0, 0, 0]),
            ("bpf", libc::SYS_bpf, [0; 5]),
            ("userfaultfd", libc::SYS_userfaultfd, [0; 5]),
            (
                "perf_event_open",
                libc::SYS_perf_event_open,
                [base, 0, 0, 0, 0],
            ),
            (
                "io_uring_setup",
                libc::SYS_io_uring_setup,
                [1, base, 0, 0, 0],
            ),
            ("keyctl", libc::SYS_keyctl, [0; 5]),
            (
                "prctl(PR_SET_DUMPABLE)",
                libc::SYS_prctl,
                [libc::PR_SET_DUMPABLE as u64, 1, 0, 0, 0],
            ),
        ])
    }

    /// A socket that the process has open, or its standard error.
    fn own_descriptor(&self) -> Result<u64> {
        for entry in std::fs::read_dir(format!("/proc/{}/fd", self.pid))? {
            let entry = entry?;
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            if target.to_string_lossy().starts_with("socket:") {
                return Ok(entry.file_name().to_string_lossy().parse()?);
            }
        }
        Ok(2)
    }

    /// Takes the process back through the very instruction it is stopped behind.
    fn call(&self, number: i64, arguments: [u64; 5]) -> Result<Result<u64, Errno>> {
        let mut registers = self.before;
        registers.rip = self.before.rip - 2;
        registers.rax = number.cast_unsigned();
        registers.orig_rax = u64::MAX; // Nothing to be restarted.
        [
            registers.rdi,
            registers.rsi,
            registers.rdx,
            registers.r10,
            registers.r8,
        ] = arguments;
        ptrace::setregs(self.pid, registers).context("set registers")?;
        ptrace::step(self.pid, None).context("step")?;
        let stopped = waitpid(self.pid, None).context("wait for the step")?;
        ensure!(
            matches!(stopped, WaitStatus::Stopped(_, Signal::SIGTRAP)),
            "the call ended in {stopped:?}"
        );
        let result = ptrace::getregs(self.pid)
            .context("registers")?
            .rax
            .cast_signed();
        Ok(match result {
            -4095..0 => Err(Errno::from_raw(-i32::try_from(result)?)),
            _ => Ok(result.cast_unsigned()),
        })
    }

    /// Where the process keeps nothing: below its stack pointer and the red zone.
    fn base(&self) -> u64 {
        (self.before.rsp - BELOW_STACK) & !0xf
    }

    /// Writes bytes and a zero there.
    fn put(&self, at: u64, bytes: &[u8]) -> Result<u64> {
        let mut padded = bytes.to_vec();
        padded.resize((bytes.len() + 1).next_multiple_of(8), 0);
        for (index, chunk) in (0u64..).zip(padded.chunks_exact(8)) {
            let word = i64::from_ne_bytes(chunk.try_into()?);
            ptrace::write(self.pid, (at + 8 * index) as *mut c_void, word)
                .context("write to the stack")?;
        }
        Ok(at)
    }
}

/// What is tried, and how.
type Attempt = (&'static str, i64, [u64; 5]);

/// `struct sockaddr_un`.
fn address(path: &str) -> Result<Vec<u8>> {
    ensure!(path.len() < 108, "{path}: too long for a socket");
    let mut address = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    address.extend(path.as_bytes());
    address.resize(110, 0);
    Ok(address)
}

impl Drop for Intruder {
    fn drop(&mut self) {
        // If the process has ended there is nothing to put back.
        let _ = ptrace::setregs(self.pid, self.before);
        let _ = ptrace::detach(self.pid, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn an_unconfined_process_can_do_it_all() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        while !std::fs::read_to_string(format!("/proc/{}/syscall", child.id()))
            .unwrap()
            .starts_with("230 ")
        {
            std::thread::yield_now(); // until it is in clock_nanosleep
        }
        let intruder = Intruder::enter(child.id()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("file"), "x").unwrap();
        let host = Host {
            file: path("file"),
            socket: path("socket"),
            process: std::process::id(),
        };
        // That an attempt is refused shows something only if it succeeds, or fails otherwise, elsewhere.
        let attempts = intruder.attempts(&host).unwrap();
        let harmless = [
            "openat",
            "openat2",
            "socket(AF_UNIX)",
            "fcntl(F_SETOWN)",
            "kill",
            "pidfd_open",
            "prlimit64",
            "mkdir",
        ];
        for (name, number, arguments) in attempts {
            if harmless.contains(&name) {
                assert!(intruder.call(number, arguments).unwrap().is_ok(), "{name}");
            }
        }
        drop(intruder);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
