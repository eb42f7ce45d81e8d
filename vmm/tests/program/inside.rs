//! System calls made from inside a running, confined monitor: what an intruder would try first.

use std::io;
use std::mem::MaybeUninit;
use std::ptr::null_mut;

use libc::{c_long, pid_t, user_regs_struct};

use serde_json::{Value, json};

use crate::api::ask;
use crate::elf::forever;
use crate::{Monitor, kvm_is_usable};

/// A thread of another process, stopped in a system call, that can be made to do others.
struct Puppet {
    thread: pid_t,
    /// Its registers, just after the `syscall` instruction.
    registers: user_regs_struct,
}

impl Puppet {
    fn stop(thread: pid_t) -> Self {
        ptrace(libc::PTRACE_SEIZE, thread, 0).unwrap();
        ptrace(libc::PTRACE_INTERRUPT, thread, 0).unwrap();
        wait(thread);
        let registers = registers(thread);
        Self { thread, registers }
    }

    /// Makes the thread do a system call, whose result (or negative error number) is returned.
    fn call(&self, number: c_long, arguments: [u64; 3]) -> i64 {
        let call = user_regs_struct {
            rip: self.registers.rip - 2, // the length of `syscall`
            rax: number as u64,
            orig_rax: u64::MAX, // nothing is to be restarted
            rdi: arguments[0],
            rsi: arguments[1],
            rdx: arguments[2],
            ..self.registers
        };
        set_registers(self.thread, &call);
        ptrace(libc::PTRACE_SINGLESTEP, self.thread, 0).unwrap();
        wait(self.thread);
        registers(self.thread).rax as i64
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        // The thread goes on with its own system call.
        set_registers(self.thread, &self.registers);
        ptrace(libc::PTRACE_DETACH, self.thread, 0).unwrap();
    }
}

fn ptrace(request: libc::c_uint, thread: pid_t, data: usize) -> io::Result<()> {
    // SAFETY: `data` is zero or the address of registers that outlive the call; the other thread's memory is not ours.
    match unsafe { libc::ptrace(request, thread, null_mut::<libc::c_void>(), data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn registers(thread: pid_t) -> user_regs_struct {
    let mut registers = MaybeUninit::<user_regs_struct>::uninit();
    ptrace(
        libc::PTRACE_GETREGS,
        thread,
        registers.as_mut_ptr() as usize,
    )
    .unwrap();
    // SAFETY: PTRACE_GETREGS has written all of it.
    unsafe { registers.assume_init() }
}

fn set_registers(thread: pid_t, registers: &user_regs_struct) {
    let address = std::ptr::from_ref(registers) as usize;
    ptrace(libc::PTRACE_SETREGS, thread, address).unwrap();
}

fn wait(thread: pid_t) {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let waited = unsafe { libc::waitpid(thread, &mut status, libc::__WALL) };
    assert_eq!(waited, thread, "{}", io::Error::last_os_error());
    assert!(libc::WIFSTOPPED(status));
}

#[test]
fn files_programs_and_the_network_are_refused() {
    if !kvm_is_usable() {
        return;
    }
    const REFUSED: i64 = -(libc::EPERM as i64);
    let monitor = Monitor::start(&forever(), &[]);
    monitor.wait_ready();
    let pid = monitor.child.id();

    // The main thread waits in poll.
    let puppet = Puppet::stop(pid as pid_t);
    let socket = |family: i32| puppet.call(libc::SYS_socket, [family as u64, 1, 0]);

    // These calls are allowed: they show that the test makes calls at all.
    assert_eq!(puppet.call(libc::SYS_getpid, [0; 3]), i64::from(pid));
    let pair = [libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0];
    assert_ne!(puppet.call(libc::SYS_socketpair, pair), REFUSED);
    // Without the confinement most of these would fail with EFAULT, because of the null pointers.
    assert_eq!(puppet.call(libc::SYS_open, [0; 3]), REFUSED);
    let here = libc::AT_FDCWD as u64;
    assert_eq!(puppet.call(libc::SYS_openat, [here, 0, 0]), REFUSED);
    assert_eq!(puppet.call(libc::SYS_execve, [0; 3]), REFUSED);
    assert_eq!(puppet.call(libc::SYS_fork, [0; 3]), REFUSED);
    assert_eq!(puppet.call(libc::SYS_ptrace, [0; 3]), REFUSED);
    // Its own peers are connected to by its broker, and its sockets are removed by it.
    assert_eq!(puppet.call(libc::SYS_connect, [0; 3]), REFUSED);
    assert_eq!(puppet.call(libc::SYS_unlink, [0; 3]), REFUSED);
    assert_eq!(puppet.call(libc::SYS_unlinkat, [here, 0, 0]), REFUSED);
    for family in [
        libc::AF_UNIX,
        libc::AF_INET,
        libc::AF_INET6,
        libc::AF_NETLINK,
        libc::AF_PACKET,
    ] {
        assert_eq!(socket(family), REFUSED, "{family}");
    }
    // Signals to others, by kill(2) or by way of a descriptor.
    assert_eq!(puppet.call(libc::SYS_kill, [1, 0, 0]), REFUSED);
    let owner = [0, libc::F_SETOWN as u64, 1];
    assert_eq!(puppet.call(libc::SYS_fcntl, owner), REFUSED);
    assert_eq!(puppet.call(libc::SYS_statx, [here, 0, 0]), REFUSED);
    // KVM's own requests are on the list; this one, which makes a machine, is not.
    assert_eq!(puppet.call(libc::SYS_ioctl, [0, 0xae01, 0]), REFUSED);
    drop(puppet);

    monitor.signal(rustix::process::Signal::TERM);
    assert_eq!(monitor.end().0.code(), Some(0));
}

/// Waits until the thread has a filter of its own on top of the process's.
fn wait_confined(process: u32, thread: pid_t) {
    let filters = |thread: String| {
        let status = std::fs::read_to_string(format!("/proc/{process}/task/{thread}/status"));
        let status = status.unwrap();
        let count = status
            .lines()
            .find_map(|line| line.strip_prefix("Seccomp_filters:"));
        count.unwrap().trim().parse::<u32>().unwrap()
    };
    while filters(thread.to_string()) <= filters(process.to_string()) {
        std::thread::yield_now();
    }
}

#[test]
fn a_thread_can_do_what_it_is_for_and_no_more() {
    if !kvm_is_usable() {
        return;
    }
    const REFUSED: i64 = -(libc::EPERM as i64);
    let monitor = Monitor::start(
        &forever(),
        &[
            "--serial",
            "socket={}/serial",
            "--event-monitor",
            "path={}/events",
        ],
    );
    monitor.wait_ready();
    // A thread sets its own name first of all.
    let thread = |name: &str| loop {
        let threads = format!("/proc/{}/task", monitor.child.id());
        let mut threads = std::fs::read_dir(threads).unwrap().map(Result::unwrap);
        let found = threads.find(|one| {
            let own = std::fs::read_to_string(one.path().join("comm")).unwrap();
            own.trim() == name
        });
        if let Some(found) = found {
            break found
                .file_name()
                .to_str()
                .unwrap()
                .parse::<pid_t>()
                .unwrap();
        }
    };
    for (name, refused) in [
        (
            "vcpu0",
            &[
                libc::SYS_socketpair,
                libc::SYS_accept4,
                libc::SYS_recvmsg,
                libc::SYS_eventfd2,
                libc::SYS_clone,
            ][..],
        ),
        (
            "event-monitor",
            &[
                libc::SYS_accept4,
                libc::SYS_socketpair,
                libc::SYS_recvmsg,
                libc::SYS_eventfd2,
                libc::SYS_clone,
            ],
        ),
        (
            "serial-output",
            &[libc::SYS_socketpair, libc::SYS_recvmsg, libc::SYS_eventfd2],
        ),
        (
            "serial-input",
            &[libc::SYS_socketpair, libc::SYS_recvmsg, libc::SYS_eventfd2],
        ),
    ] {
        let thread = thread(name);
        wait_confined(monitor.child.id(), thread);
        let puppet = Puppet::stop(thread);
        assert_eq!(
            puppet.call(libc::SYS_getpid, [0; 3]),
            i64::from(monitor.child.id())
        );
        for &number in refused {
            assert_eq!(puppet.call(number, [0; 3]), REFUSED, "{name}: {number}");
        }
    }
    monitor.signal(rustix::process::Signal::TERM);
    assert_eq!(monitor.end().0.code(), Some(0));
}

#[test]
fn a_monitor_without_a_guest_sees_nothing_but_its_folder() {
    if !kvm_is_usable() {
        return;
    }
    let monitor = Monitor::start_in(
        tempfile::tempdir().unwrap(),
        &["--api-socket", "path={}/api"],
    );
    monitor.wait_ready();
    let path =
        |path: &str| json!({"payload": {"kernel": "/k"}, "serial": {"mode": "File", "file": path}});
    let api = monitor.path("api");
    let outside = tempfile::tempdir().unwrap();
    let elsewhere = outside.path().join("log");

    let config = path(elsewhere.to_str().unwrap());
    let (status, error) = ask(&api, "PUT", "vm.create", &config);
    assert_eq!(status, 400, "{error}");
    let reason = error[0].as_str().unwrap();
    let folder = monitor.folder.path().to_str().unwrap();
    for word in ["serial.file", elsewhere.to_str().unwrap(), folder] {
        assert!(reason.contains(word), "{error}");
    }
    assert_eq!(ask(&api, "PUT", "vm.boot", &Value::Null).0, 404);

    // A way out that only the confinement sees.
    let link = monitor.path("link");
    std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
    let config = path(link.to_str().unwrap());
    assert_eq!(ask(&api, "PUT", "vm.create", &config).0, 204);
    let (status, error) = ask(&api, "PUT", "vm.boot", &Value::Null);
    assert_eq!(status, 500, "{error}");
    assert!(error[0].as_str().unwrap().contains("--serial"), "{error}");
    assert!(!elsewhere.exists());

    assert_eq!(ask(&api, "PUT", "vm.delete", &Value::Null).0, 204);
    let inside = monitor.path("log");
    let mut config = path(inside.to_str().unwrap());
    let kernel = monitor.path("kernel");
    std::fs::write(&kernel, crate::elf::kernel(&forever())).unwrap();
    config["payload"]["kernel"] = json!(kernel);
    config["memory"] = json!({"size": 16 << 20});
    assert_eq!(ask(&api, "PUT", "vm.create", &config).0, 204);
    assert_eq!(ask(&api, "PUT", "vm.boot", &Value::Null).0, 204);
    assert!(inside.exists());
    assert_eq!(ask(&api, "PUT", "vmm.shutdown", &Value::Null).0, 204);
    assert_eq!(monitor.end().0.code(), Some(0));
}
