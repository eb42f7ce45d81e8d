//! A monitor that waits for a backend before there is a guest, and a guest that cannot be built.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::api::ask;
use crate::backend::fake::{Fake, Then};
use crate::elf::{self, forever};
use crate::{Monitor, kvm_is_usable};

/// A backend may take 10 seconds for an answer.
const AT_ONCE: Duration = Duration::from_secs(3);

const DISK: &[&str] = &["--disk", "vhost_user=on,socket={}/socket"];
const SOCKETS: &[&str] = &[
    "--api-socket",
    "path={}/api",
    "--serial",
    "socket={}/serial",
];

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what} in vain");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A backend that is silent from this request on, the first time it comes.
fn silent(folder: &Path, from: u32) -> Fake {
    let rule = move |request: u32, _: &[u8]| match request == from {
        true => Then::Hang,
        false => Then::Answer,
    };
    Fake::start(folder, 0, Box::new(rule))
}

/// Ends the monitor by a signal; it must end soon and leave nothing.
fn end_by_signal(monitor: Monitor, what: &str) {
    let start = Instant::now();
    monitor.signal(Signal::TERM);
    let (status, errors, left) = monitor.end();
    assert_eq!((status.code(), errors.as_str()), (Some(0), ""), "{what}");
    assert!(start.elapsed() < AT_ONCE, "{what}: {:?}", start.elapsed());
    assert_eq!(left, ["socket"], "{what}");
}

#[test]
fn a_backend_that_is_silent_at_the_start_keeps_no_signal_and_no_client_waiting() {
    if !kvm_is_usable() {
        return;
    }
    // The backend stops at its first request, at one in between, at the last one, and while queue lengths are tried.
    for request in [1, 15, 24, 8] {
        let folder = tempfile::tempdir().unwrap();
        let fake = silent(folder.path(), request);
        std::fs::write(folder.path().join("kernel"), elf::kernel(&forever())).unwrap();
        let kernel = ["--kernel", "{}/kernel", "--memory", "size=16M"];
        let monitor = Monitor::start_in(folder, &[&kernel, DISK, SOCKETS].concat());
        wait("the request", || fake.saw(request));
        let start = Instant::now();
        let api = monitor.folder.path().join("api");
        assert_eq!(ask(&api, "GET", "vmm.ping", &Value::Null).0, 200);
        let (status, info) = ask(&api, "GET", "vm.info", &Value::Null);
        assert_eq!((status, &info["state"]), (200, &json!("Created")));
        assert_eq!(ask(&api, "PUT", "vm.boot", &Value::Null).0, 500);
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
        if request != 8 {
            end_by_signal(monitor, &format!("request {request}"));
            continue;
        }
        assert_eq!(ask(&api, "PUT", "vmm.shutdown", &Value::Null).0, 204);
        let (status, errors, left) = monitor.end();
        assert_eq!((status.code(), errors.as_str()), (Some(0), ""));
        assert_eq!(left, ["socket"]);
    }
}

#[test]
fn a_backend_that_never_accepts_keeps_no_signal_waiting() {
    if !kvm_is_usable() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::fs::write(folder.path().join("kernel"), elf::kernel(&forever())).unwrap();
    let kernel = ["--kernel", "{}/kernel", "--memory", "size=16M"];
    let monitor = Monitor::start_in(folder, &[&kernel, DISK, SOCKETS].concat());
    let mut accepted = None;
    wait("the connection", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    end_by_signal(monitor, "nobody reads");
}

/// A monitor that waits for its guest.
fn start() -> Monitor {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("kernel"), elf::kernel(&forever())).unwrap();
    let monitor = Monitor::start_in(folder, &["--api-socket", "path={}/api"]);
    monitor.wait_ready();
    monitor
}

fn config(monitor: &Monitor) -> Value {
    json!({
        "payload": {"kernel": monitor.path("kernel")},
        "memory": {"size": 16 << 20},
        "serial": {"mode": "Socket", "socket": monitor.path("serial")},
        "disks": [{"vhost_user": true, "vhost_socket": monitor.path("socket")}],
    })
}

#[test]
fn while_a_guest_is_built_the_api_is_served_and_everything_can_be_ended() {
    if !kvm_is_usable() {
        return;
    }
    for end in ["vmm.shutdown", "vm.shutdown", "vm.delete", "SIGTERM"] {
        let monitor = start();
        let fake = silent(monitor.folder.path(), 1);
        let api = monitor.path("api");
        let put = |name: &str, body: &Value| ask(&api, "PUT", name, body).0;
        let get = |name: &str| ask(&api, "GET", name, &Value::Null);
        assert_eq!(put("vm.create", &config(&monitor)), 204);
        let booting = api.clone();
        let boot = thread::spawn(move || ask(&booting, "PUT", "vm.boot", &Value::Null));
        wait("the request", || fake.saw(1));

        let start = Instant::now();
        assert_eq!(get("vmm.ping").0, 200);
        assert_eq!(get("vm.info").1["state"], "Created");
        assert_eq!(put("vm.boot", &Value::Null), 500);
        assert_eq!(put("vm.pause", &Value::Null), 405);
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
        if end == "SIGTERM" {
            end_by_signal(monitor, end);
        } else {
            assert_eq!(put(end, &Value::Null), 204);
            let (status, errors, left) = monitor.end();
            assert_eq!((status.code(), errors.as_str()), (Some(0), ""), "{end}");
            assert_eq!(left, ["socket"], "{end}");
        }
        assert!(
            start.elapsed() < AT_ONCE * 2,
            "{end}: {:?}",
            start.elapsed()
        );
        let (status, errors) = boot.join().unwrap();
        assert_eq!(status, 500, "{errors}");
    }
}

#[test]
fn a_guest_that_cannot_be_built_leaves_nothing_and_may_be_tried_again() {
    if !kvm_is_usable() {
        return;
    }
    let monitor = start();
    let api = monitor.path("api");
    let put = |name: &str, body: &Value| ask(&api, "PUT", name, body);
    let descriptors = || {
        let path = format!("/proc/{}/fd", monitor.child.id());
        std::fs::read_dir(path).unwrap().count()
    };
    assert_eq!(put("vm.create", &config(&monitor)).0, 204);
    // The connection of that request may still be counted here; a leak would leave six descriptors more.
    let before = descriptors();
    let (kernel, elsewhere) = (monitor.path("kernel"), monitor.path("notify.kernel"));
    let mut ended = Vec::new();
    for wrong in ["no backend", "backend", "kernel"].repeat(2) {
        let then = match wrong {
            "backend" => Then::Die,
            _ => Then::Answer,
        };
        if wrong != "no backend" {
            let rule = move |request: u32, _: &[u8]| match request {
                15 => then,
                _ => Then::Answer,
            };
            ended.push(Fake::start(monitor.folder.path(), 0, Box::new(rule)));
        }
        if wrong == "kernel" {
            std::fs::rename(&kernel, &elsewhere).unwrap();
        }
        let (status, errors) = put("vm.boot", &Value::Null);
        assert_eq!(status, 500, "{errors}");
        let named = if wrong == "kernel" {
            "kernel"
        } else {
            "socket"
        };
        assert!(errors[0].as_str().unwrap().contains(named), "{errors}");
        assert!(!monitor.path("serial").exists(), "{wrong}");
        wait("the end of what was begun", || descriptors() <= before);
        let _ = std::fs::remove_file(monitor.path("socket"));
        let _ = std::fs::rename(&elsewhere, &kernel);
    }
    let fake = Fake::start(monitor.folder.path(), 0, Box::new(|_, _| Then::Answer));
    assert_eq!(put("vm.boot", &Value::Null), (204, Value::Null));
    assert_eq!(
        ask(&api, "GET", "vm.info", &Value::Null).1["state"],
        "Running"
    );
    assert!(monitor.path("serial").exists());
    // After a loss the monitor connects to this guest's backend, not to one of a guest that could not be built.
    let connections = fake.connections();
    fake.cut();
    wait("the return", || fake.connections() > connections);
    assert_eq!(put("vm.shutdown", &Value::Null).0, 204);
    let (status, _, left) = monitor.end();
    assert_eq!((status.code(), left), (Some(0), vec!["socket".to_owned()]));
}
