//! From the first instruction to the exit status.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use rustix::process::Signal;
use serde_json::Value;

use crate::api::ask;
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
fn a_reboot_by_the_api_ends_as_the_guests_own_reset_also_while_it_is_paused() {
    if !kvm_is_usable() {
        return;
    }
    for before in [&[][..], &["vm.pause"], &["vm.pause", "vm.resume"]] {
        let monitor = Monitor::start(&forever(), &["--api-socket", "path={}/api"]);
        monitor.wait_ready();
        for name in before.iter().chain(&["vm.reboot"]) {
            let answer = ask(&monitor.path("api"), "PUT", name, &Value::Null);
            assert_eq!(answer.0, 204, "{name}");
        }
        let (ended, errors, left) = monitor.end();
        assert_eq!((ended.code(), errors.as_str()), (Some(3), ""), "{before:?}");
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
fn a_guest_whose_output_nobody_reads_runs_on_and_can_be_ended() {
    if !kvm_is_usable() {
        return;
    }
    let mut code = out(COM1, b'x');
    code.extend([0xee, 0xeb, 0xfd]); // again: out dx, al; jmp again
    let monitor = Monitor::start(&code, &["--api-socket", "path={}/api"]);
    monitor.wait_ready();

    let exits = || {
        ask(&monitor.path("api"), "GET", "vm.counters", &Value::Null).1["vcpu0"]["io"]
            .as_u64()
            .unwrap()
    };
    // Each exit writes a byte; this many are more than a pipe holds.
    while exits() < 200_000 {
        std::thread::yield_now();
    }
    assert_eq!(
        ask(&monitor.path("api"), "PUT", "vm.pause", &Value::Null).0,
        204
    );
    monitor.signal(Signal::TERM);

    assert_eq!(monitor.end().0.code(), Some(0));
}

#[test]
fn a_monitor_that_was_killed_is_succeeded_at_its_sockets_and_one_that_lives_is_not() {
    if !kvm_is_usable() {
        return;
    }
    let sockets = [
        "--api-socket",
        "path={}/api",
        "--serial",
        "socket={}/serial",
    ];
    let mut first = Monitor::start(&forever(), &sockets);
    first.wait_ready();
    for name in ["api", "serial"] {
        let mode = std::fs::metadata(first.path(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let folder = first.folder.path().to_owned();
    let start = |arguments: &[&str]| {
        let here = folder.to_str().unwrap();
        std::process::Command::new(env!("CARGO_BIN_EXE_bulkhead-vmm"))
            .args([
                "--kernel",
                &format!("{here}/kernel"),
                "--memory",
                "size=16M",
            ])
            .args(arguments.iter().map(|word| word.replace("{}", here)))
            .stdin(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let refused = start(&sockets).wait_with_output().unwrap();
    let error = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(error.contains("is in use by another process"), "{error}");
    assert_eq!(
        ask(&first.path("api"), "GET", "vm.info", &Value::Null).0,
        200
    );

    first.child.kill().unwrap();
    first.child.wait().unwrap();
    assert!(first.path("api").exists() && first.path("serial").exists());
    let second = start(&sockets);
    while UnixStream::connect(first.path("api")).is_err() {
        std::thread::yield_now();
    }
    assert_eq!(
        ask(&first.path("api"), "PUT", "vm.shutdown", &Value::Null).0,
        204
    );

    assert_eq!(second.wait_with_output().unwrap().status.code(), Some(0));
    assert!(!first.path("api").exists() && !first.path("serial").exists());
}

#[test]
fn a_serial_file_that_nobody_reads_or_that_has_no_room_keeps_nobody() {
    if !kvm_is_usable() {
        return;
    }
    let mut code = out(COM1, b'x');
    // 200,000 bytes: mov ecx, 200000; again: out dx, al; loop again
    code.extend([0xb9, 0x40, 0x0d, 0x03, 0, 0xee, 0xe2, 0xfd]);
    code.extend(out(SLEEP_CONTROL, 0x34));
    code.extend(forever());
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
    for file in ["/dev/full", fifo.to_str().unwrap()] {
        let monitor = Monitor::start(&code, &["--serial", &format!("file={file}")]);
        let (status, _, left) = monitor.end();
        assert_eq!((status.code(), left), (Some(0), Vec::new()));
    }
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
fn each_vcpu_is_a_thread_with_its_name_that_others_can_bind_to_a_processor() {
    if !kvm_is_usable() {
        return;
    }
    const VCPUS: usize = 4;
    let monitor = Monitor::start(&forever(), &["--cpus", &format!("boot={VCPUS}")]);
    monitor.wait_ready();

    let threads = format!("/proc/{}/task", monitor.child.id());
    let read = |thread: &str, file: &str| {
        std::fs::read_to_string(format!("{threads}/{thread}/{file}")).unwrap()
    };
    let ids = std::fs::read_dir(&threads).unwrap();
    let ids = ids.map(|thread| thread.unwrap().file_name().into_string().unwrap());
    let mut vcpus: Vec<_> = ids
        .map(|id| (read(&id, "comm").trim().to_owned(), id))
        .filter(|(name, _)| name.starts_with("vcpu"))
        .collect();
    vcpus.sort();
    let names: Vec<_> = vcpus.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["vcpu0", "vcpu1", "vcpu2", "vcpu3"]);

    let own = rustix::thread::sched_getaffinity(None).unwrap();
    let last = (0..rustix::thread::CpuSet::MAX_CPU).rfind(|cpu| own.is_set(*cpu));
    let last = last.unwrap();
    let mut only = rustix::thread::CpuSet::new();
    only.set(last);
    let thread = vcpus[1]
        .1
        .parse()
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    rustix::thread::sched_setaffinity(thread, &only).unwrap();
    let allowed = |thread: &str| {
        let status = read(thread, "status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.unwrap().trim().to_owned()
    };
    assert_eq!(allowed(&vcpus[1].1), last.to_string());
    // It is bound, and no other is.
    assert_eq!(
        allowed(&vcpus[0].1),
        allowed(&monitor.child.id().to_string())
    );
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
