//! From the first instruction to the exit status.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use rustix::process::Signal;

use crate::elf::{echo, forever, out};
use crate::{Monitor, kvm_is_usable};

const SLEEP_CONTROL: u16 = 0x600;
const RESET: u16 = 0x602;
const COM1: u16 = 0x3f8;

#[test]
fn the_exit_status_tells_how_the_guest_ended() {
    if !kvm_is_usable() {
        return;
    }
    let power_off = [out(SLEEP_CONTROL, 0x34), forever()].concat();
    let reset = [out(RESET, 1), forever()].concat();
    let triple_fault = vec![0x0f, 0x0b]; // ud2, and there is no IDT
    for (code, status, error) in [
        (power_off, 0, ""),
        (reset, 3, ""),
        (
            triple_fault,
            4,
            "error: the guest crashed: vCPU 0: triple fault\n",
        ),
    ] {
        let (ended, errors, left) = Monitor::start(&code, &[]).end();
        assert_eq!((ended.code(), errors.as_str()), (Some(status), error));
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn signals_end_it_with_0_and_nothing_is_left() {
    if !kvm_is_usable() {
        return;
    }
    for signal in [Signal::TERM, Signal::INT] {
        let sockets = [
            "--api-socket",
            "path={}/api",
            "--serial",
            "socket={}/serial",
        ];
        let monitor = Monitor::start(&forever(), &sockets);
        monitor.wait_ready();
        assert!(monitor.path("api").exists() && monitor.path("serial").exists());

        monitor.signal(signal);

        let (status, errors, left) = monitor.end();
        assert_eq!((status.code(), errors.as_str()), (Some(0), ""));
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_guest_whose_output_nobody_reads_can_be_ended() {
    if !kvm_is_usable() {
        return;
    }
    // Far more than a pipe holds: a write blocks in the vCPU's thread.
    let mut code = out(COM1, b'x');
    code.extend([0xee, 0xeb, 0xfd]); // again: out dx, al; jmp again
    let monitor = Monitor::start(&code, &[]);
    monitor.wait_ready();
    let stuck = || {
        let syscall = std::fs::read_to_string(format!("/proc/{}/io", monitor.child.id())).unwrap();
        let written = syscall
            .lines()
            .find_map(|l| l.strip_prefix("wchar: "))
            .unwrap();
        written.parse::<u64>().unwrap() >= 65536
    };
    while !stuck() {
        std::thread::yield_now();
    }

    monitor.signal(Signal::TERM);

    assert_eq!(monitor.end().0.code(), Some(0));
}

#[test]
fn the_serial_port_is_on_standard_input_and_output() {
    if !kvm_is_usable() {
        return;
    }
    let mut monitor = Monitor::start(&echo(), &["--serial", "tty"]);
    let mut input = monitor.child.stdin.take().unwrap();

    // More than the port's FIFO holds.
    let text = format!("{}\n", "0123456789".repeat(20));
    input.write_all(text.as_bytes()).unwrap();
    drop(input);

    assert_eq!(monitor.line(), text.trim_end());
    monitor.signal(Signal::TERM);
    assert_eq!(monitor.end().0.code(), Some(0));
}

#[test]
fn the_serial_port_is_on_a_socket() {
    if !kvm_is_usable() {
        return;
    }
    let monitor = Monitor::start(&echo(), &["--serial", "socket={}/serial"]);
    monitor.wait_ready();
    let mut client = UnixStream::connect(monitor.path("serial")).unwrap();

    client.write_all(b"hello").unwrap();

    let mut seen = [0; 5];
    client.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"hello");
}

#[test]
fn the_serial_port_is_in_a_file() {
    if !kvm_is_usable() {
        return;
    }
    let code = [out(COM1, b'!'), out(SLEEP_CONTROL, 0x34), forever()].concat();
    let (status, _, left) = Monitor::start(&code, &["--serial", "file={}/log"]).end();
    assert_eq!((status.code(), left), (Some(0), vec!["log".to_owned()]));
}

#[test]
fn a_running_guest_is_in_a_process_that_can_do_little() {
    if !kvm_is_usable() {
        return;
    }
    let monitor = Monitor::start(&forever(), &["--cpus", "boot=2"]);
    monitor.wait_ready();

    let threads = format!("/proc/{}/task", monitor.child.id());
    let mut count = 0;
    for thread in std::fs::read_dir(threads).unwrap() {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        assert_eq!(value("NoNewPrivs:"), "1");
        assert_eq!(value("Seccomp:"), "2");
        for set in ["CapEff:", "CapPrm:", "CapInh:", "CapBnd:", "CapAmb:"] {
            assert_eq!(value(set), "0000000000000000", "{set}");
        }
        count += 1;
    }
    // The main thread and the vCPUs'; the kernel may have added one of its own.
    assert!(count >= 3, "{count}");
}
