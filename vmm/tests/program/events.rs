//! The event monitor of a running monitor.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::api::ask;
use crate::elf::{self, forever, out};
use crate::{Monitor, kvm_is_usable};

const EVENTS: [&str; 2] = ["--event-monitor", "path={}/events"];

/// All events in the file, each as `source.event`, with its properties.
fn events(path: &Path) -> Vec<(String, Value)> {
    parse(&std::fs::read_to_string(path).unwrap())
}

fn parse(text: &str) -> Vec<(String, Value)> {
    let mut last = 0;
    let each = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    each.map(|event| {
        let event = event.unwrap();
        let time = &event["timestamp"];
        let nanos =
            time["secs"].as_u64().unwrap() * 1_000_000_000 + time["nanos"].as_u64().unwrap();
        assert!(nanos >= last, "{text}");
        last = nanos;
        let name = |key: &str| event[key].as_str().unwrap().to_owned();
        let name = format!("{}.{}", name("source"), name("event"));
        (name, event["properties"].clone())
    })
    .collect()
}

fn names(events: &[(String, Value)]) -> Vec<&str> {
    events.iter().map(|(name, _)| name.as_str()).collect()
}

/// The events of a guest that runs `code`, once its monitor has ended by itself or by what `end` does.
fn events_of(code: &[u8], end: impl FnOnce(&Monitor)) -> (Option<i32>, Vec<(String, Value)>) {
    let monitor = Monitor::start(
        code,
        &[&EVENTS[..], &["--api-socket", "path={}/api"]].concat(),
    );
    end(&monitor);
    let path = monitor.path("events");
    let folder = monitor.keep_folder();
    let (status, _, left) = monitor.end();
    assert_eq!(left, ["events"]);
    let events = events(&path);
    drop(folder);
    (status.code(), events)
}

#[test]
fn the_last_event_says_how_the_guest_ended() {
    if !kvm_is_usable() {
        return;
    }
    let power_off = [out(0x600, 0x34), forever()].concat();
    let reset = [out(0x602, 1), forever()].concat();
    let triple_fault = vec![0x0f, 0x0b]; // ud2, and there is no IDT
    let none = |_: &Monitor| ();
    let signal = |signal: Signal| {
        move |monitor: &Monitor| {
            monitor.wait_ready();
            monitor.signal(signal);
        }
    };
    let request = |name: &'static str| {
        move |monitor: &Monitor| {
            monitor.wait_ready();
            assert_eq!(ask(&monitor.path("api"), "PUT", name, &Value::Null).0, 204);
        }
    };
    let start = ["vmm.starting", "vmm.started", "vm.booting", "vm.booted"];
    for ((status, events), reason, more) in [
        (events_of(&power_off, none), "power-off", None),
        (events_of(&reset, none), "reset", Some("vm.rebooting")),
        (events_of(&triple_fault, none), "crash", Some("guest.panic")),
        (events_of(&forever(), signal(Signal::TERM)), "signal", None),
        (events_of(&forever(), signal(Signal::INT)), "signal", None),
        (events_of(&forever(), request("vm.shutdown")), "api", None),
        (events_of(&forever(), request("vm.delete")), "api", None),
        (
            events_of(&forever(), request("vm.reboot")),
            "reset",
            Some("vm.rebooting"),
        ),
        (events_of(&forever(), request("vmm.shutdown")), "api", None),
    ] {
        let mut expected = start.to_vec();
        expected.extend(more);
        expected.extend(["vm.shutdown", "vmm.shutdown"]);
        assert_eq!(names(&events), expected);
        let last = &events.last().unwrap().1;
        assert_eq!(last["reason"], reason);
        assert_eq!(last["status"], status.unwrap().to_string());
        let signal = (reason == "signal").then_some(());
        assert_eq!(last.get("signal").map(|_| ()), signal, "{last}");
        assert_eq!(events[events.len() - 2].1["reason"], reason);
        if reason == "crash" {
            let crash = json!({"event": "triple fault", "vcpu": "0"});
            assert_eq!(events[4].1, crash);
        }
    }
}

#[test]
fn a_guest_that_cannot_be_started_is_an_event_too() {
    if !kvm_is_usable() {
        return;
    }
    for (arguments, status, message) in [
        (["--kernel", "{}/missing"], 1, "missing"),
        (["--kernel", "{}"], 1, "not a file"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let monitor = Monitor::start_in(folder, &[&EVENTS[..], &arguments].concat());
        let folder = monitor.keep_folder();
        let path = monitor.path("events");
        assert_eq!(monitor.end().0.code(), Some(status));
        let events = events(&path);
        let (name, last) = events.last().unwrap();
        assert_eq!(
            (name.as_str(), &last["reason"]),
            ("vmm.shutdown", &json!("error"))
        );
        assert_eq!(last["status"], status.to_string());
        assert!(
            last["message"].as_str().unwrap().contains(message),
            "{last}"
        );
        drop(folder);
    }
}

#[test]
fn what_the_api_does_to_a_guest_is_an_event() {
    if !kvm_is_usable() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    std::fs::write(&kernel, elf::kernel(&forever())).unwrap();
    let monitor = Monitor::start_in(
        folder,
        &[&EVENTS[..], &["--api-socket", "path={}/api"]].concat(),
    );
    monitor.wait_ready();
    let (path, socket) = (monitor.path("events"), monitor.path("api"));
    let put = |name: &str, body: &Value| ask(&socket, "PUT", name, body).0;
    assert_eq!(names(&events(&path)), ["vmm.starting", "vmm.started"]);

    let config = json!({"payload": {"kernel": kernel}, "memory": {"size": 16 << 20}});
    assert_eq!(put("vm.create", &config), 204);
    for name in ["vm.boot", "vm.pause", "vm.resume", "vm.pause"] {
        assert_eq!(put(name, &Value::Null), 204);
    }
    // Refused, so nothing happens.
    assert_eq!(put("vm.pause", &Value::Null), 500);
    monitor.signal(Signal::TERM);

    let folder = monitor.keep_folder();
    assert_eq!(monitor.end().0.code(), Some(0));
    let expected = [
        "vmm.starting",
        "vmm.started",
        "vm.booting",
        "vm.booted",
        "vm.pausing",
        "vm.paused",
        "vm.resuming",
        "vm.resumed",
        "vm.pausing",
        "vm.paused",
        "vm.shutdown",
        "vmm.shutdown",
    ];
    assert_eq!(names(&events(&path)), expected);
    drop(folder);
}

#[test]
fn a_monitor_that_ends_without_a_guest_says_so() {
    if !kvm_is_usable() {
        return;
    }
    for (by_signal, reason) in [(true, "signal"), (false, "api")] {
        let monitor = Monitor::start_in(
            tempfile::tempdir().unwrap(),
            &[&EVENTS[..], &["--api-socket", "path={}/api"]].concat(),
        );
        monitor.wait_ready();
        match by_signal {
            true => monitor.signal(Signal::TERM),
            false => {
                let api = monitor.path("api");
                assert_eq!(ask(&api, "PUT", "vmm.shutdown", &Value::Null).0, 204);
            }
        }
        let (folder, path) = (monitor.keep_folder(), monitor.path("events"));
        assert_eq!(monitor.end().0.code(), Some(0));
        let events = events(&path);
        assert_eq!(
            names(&events),
            ["vmm.starting", "vmm.started", "vmm.shutdown"]
        );
        assert_eq!(events[2].1["reason"], reason);
        drop(folder);
    }
}

#[test]
fn the_file_is_its_owners_alone_whatever_the_umask_and_is_appended_to() {
    if !kvm_is_usable() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    let code = [out(0x600, 0x34), forever()].concat();
    std::fs::write(&kernel, elf::kernel(&code)).unwrap();
    let path = folder.path().join("events");
    let run = |umask: &str| {
        let status = Command::new("sh")
            .args(["-c", &format!("umask {umask}; exec \"$@\""), "sh"])
            .arg(env!("CARGO_BIN_EXE_bulkhead-vmm"))
            .args(["--memory", "size=16M", "--serial", "null", "--kernel"])
            .arg(&kernel)
            .arg("--event-monitor")
            .arg(format!("path={}", path.display()))
            .status()
            .unwrap();
        assert!(status.success());
    };
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;

    for umask in ["0777", "0"] {
        run(umask);
        assert_eq!(mode(), 0o600, "{umask}");
        std::fs::remove_file(&path).unwrap();
    }
    // One that is there keeps its mode, and what is in it.
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    run("022");
    run("022");
    assert_eq!(mode(), 0o640);
    let both: Vec<_> = std::fs::read_to_string(&path)
        .unwrap()
        .split_inclusive("\"vmm\",\n  \"event\": \"shutdown\"")
        .map(str::to_owned)
        .collect();
    assert_eq!(both.len(), 3, "{both:?}");
}

#[test]
fn a_fifo_that_nobody_reads_keeps_nobody_and_has_the_end_for_who_reads_it_later() {
    if !kvm_is_usable() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    std::fs::write(&kernel, elf::kernel(&forever())).unwrap();
    let fifo = folder.path().join("events");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
    let arguments = [
        "--kernel",
        "{}/kernel",
        "--memory",
        "size=16M",
        "--api-socket",
        "path={}/api",
    ];
    let monitor = Monitor::start_in(folder, &[&EVENTS[..], &arguments].concat());
    monitor.wait_ready();
    let socket = monitor.path("api");
    // Twice two events each: far more than a pipe holds.
    for _ in 0..500 {
        for name in ["vm.pause", "vm.resume"] {
            assert_eq!(ask(&socket, "PUT", name, &Value::Null).0, 204);
        }
    }
    // A reader that comes late gets what the pipe holds, what was kept for it, and the end.
    let mut reader = std::fs::File::open(&fifo).unwrap();
    monitor.signal(Signal::TERM);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(monitor.end().0.code(), Some(0));
    let events = parse(&text);
    assert_eq!(events[0].0, "vmm.starting");
    assert_eq!(events.last().unwrap().0, "vmm.shutdown");
    assert!(events.len() > 1000, "{}", events.len());
}

#[test]
fn a_monitor_ends_although_nobody_reads_its_events() {
    if !kvm_is_usable() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("events");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
    // Nothing more fits into it.
    let full = std::fs::File::options().read(true).write(true).open(&fifo);
    let full = full.unwrap();
    let flags = rustix::fs::fcntl_getfl(&full).unwrap();
    rustix::fs::fcntl_setfl(&full, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    while rustix::io::write(&full, &[b' '; 4096]).is_ok() {}

    let api = ["--api-socket", "path={}/api"];
    let monitor = Monitor::start_in(folder, &[&EVENTS[..], &api].concat());
    monitor.wait_ready();
    monitor.signal(Signal::TERM);
    assert_eq!(monitor.end().0.code(), Some(0));
}
