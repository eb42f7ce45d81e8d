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
const BELOW_STACK: u64 = 4096;

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
        let word = ptrace::read(pid, (before.rip - 2) as *mut c_void).context("code")?;
        ensure!(
            word & 0xffff == 0x050f,
            "the process is not in a system call"
        );
        Ok(intruder)
    }

    /// `openat(AT_FDCWD, path, O_RDONLY)`.
    pub fn open(&self, path: &str) -> Result<Result<u64, Errno>> {
        let path = self.put(path)?;
        self.call(
            libc::SYS_openat,
            [libc::AT_FDCWD as u64, path, libc::O_RDONLY as u64],
        )
    }

    /// `socket(AF_INET, SOCK_STREAM, 0)`.
    pub fn internet_socket(&self) -> Result<Result<u64, Errno>> {
        self.call(
            libc::SYS_socket,
            [libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0],
        )
    }

    /// `execve(path, NULL, NULL)`.
    pub fn execute(&self, path: &str) -> Result<Result<u64, Errno>> {
        let path = self.put(path)?;
        self.call(libc::SYS_execve, [path, 0, 0])
    }

    /// Takes the process back through the very instruction it is stopped behind.
    fn call(&self, number: i64, arguments: [u64; 3]) -> Result<Result<u64, Errno>> {
        let mut registers = self.before;
        registers.rip = self.before.rip - 2;
        registers.rax = number.cast_unsigned();
        registers.orig_rax = u64::MAX; // Nothing to be restarted.
        [registers.rdi, registers.rsi, registers.rdx] = arguments;
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

    /// Writes a string where the process keeps nothing.
    fn put(&self, text: &str) -> Result<u64> {
        let at = (self.before.rsp - BELOW_STACK) & !0xf;
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize((text.len() + 1).next_multiple_of(8), 0);
        for (index, chunk) in (0u64..).zip(bytes.chunks_exact(8)) {
            let word = i64::from_ne_bytes(chunk.try_into()?);
            ptrace::write(self.pid, (at + 8 * index) as *mut c_void, word)
                .context("write to the stack")?;
        }
        Ok(at)
    }
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
        assert!(intruder.open("/etc/passwd").unwrap().is_ok());
        assert_eq!(intruder.open("/no/such/file").unwrap(), Err(Errno::ENOENT));
        assert!(intruder.internet_socket().unwrap().is_ok());
        assert_eq!(
            intruder.execute("/no/such/file").unwrap(),
            Err(Errno::ENOENT)
        );
        drop(intruder);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
