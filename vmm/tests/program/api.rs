//! The API of a running monitor.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use bulkhead_test_frontend::program::{allow_files, main_thread_time};
use serde_json::{Value, json};

use crate::elf::{self, forever, out};
use crate::{Monitor, kvm_is_usable};

/// Sends one request; the status and the body, if there is one.
pub(crate) fn ask(socket: &Path, method: &str, name: &str, body: &Value) -> (u16, Value) {
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let request = format!(
        "{method} /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

#[test]
fn a_guest_is_described_paused_resumed_and_ended() {
    if !kvm_is_usable() {
        return;
    }
    let arguments = ["--cpus", "boot=2", "--api-socket", "path={}/api"];
    let monitor = Monitor::start(&forever(), &arguments);
    monitor.wait_ready();
    let socket = monitor.path("api");
    let get = |name: &str| ask(&socket, "GET", name, &Value::Null);
    let put = |name: &str| ask(&socket, "PUT", name, &Value::Null).0;

    let (status, ping) = get("vmm.ping");
    assert_eq!((status, &ping["pid"]), (200, &json!(monitor.child.id())));
    let (_, info) = get("vm.info");
    assert_eq!(info["state"], "Running");
    assert_eq!(info["config"]["cpus"]["boot_vcpus"], 2);
    assert_eq!(info["memory_actual_size"], 16 << 20);

    assert_eq!((put("vm.resume"), put("vm.pause")), (405, 204));
    assert_eq!(get("vm.info").1["state"], "Paused");
    assert_eq!((put("vm.pause"), put("vm.resume")), (500, 204));
    assert_eq!(get("vm.nonsense").0, 404);
    assert_eq!(put("vm.shutdown"), 204);

    let (status, errors, left) = monitor.end();
    assert_eq!((status.code(), errors.as_str()), (Some(0), ""));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_client_is_accepted_once_there_is_a_descriptor_for_it() {
    if !kvm_is_usable() {
        return;
    }
    let monitor = Monitor::start(&forever(), &["--api-socket", "path={}/api"]);
    monitor.wait_ready();
    let socket = monitor.path("api");
    // poll(2) takes no more descriptors than a process may have open.
    allow_files(&monitor.child, 24);
    let silent: Vec<_> = (0..14)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    let client = std::thread::spawn(move || ask(&socket, "GET", "vm.info", &Value::Null));

    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(20));
    }
    // The vCPU's thread runs all the time and does not count.
    assert!(main_thread_time(&monitor.child) < Duration::from_millis(300));
    // The clients that have been silent for longest are disconnected to make room for it.
    assert_eq!(client.join().unwrap().0, 200);
    drop(silent);
    allow_files(&monitor.child, 1024);
    let put = ask(&monitor.path("api"), "PUT", "vm.shutdown", &Value::Null);
    assert_eq!(put.0, 204);
    let (status, errors, _) = monitor.end();
    assert_eq!(status.code(), Some(0), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(
        errors.contains("cannot accept a client of the API: "),
        "{errors}"
    );
}

#[test]
fn counters_tell_how_often_each_vcpu_came_back_and_why() {
    if !kvm_is_usable() {
        return;
    }
    let code = [out(0x80, 1), out(0x80, 2), out(0x3f8, b'\n'), forever()].concat();
    let mut monitor = Monitor::start(&code, &["--cpus", "boot=2", "--api-socket", "path={}/api"]);
    monitor.line();

    let (_, counters) = ask(&monitor.path("api"), "GET", "vm.counters", &Value::Null);

    assert_eq!(counters["vcpu0"]["io"], 3);
    assert_eq!(counters["vcpu0"]["mmio"], 0);
    assert_eq!(counters["vcpu1"]["io"], 0);
}

#[test]
fn a_guest_is_created_and_booted_through_the_api() {
    if !kvm_is_usable() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    let code = [
        out(0x3f8, b'A'),
        out(0x3f8, b'\n'),
        out(0x600, 0x34),
        forever(),
    ]
    .concat();
    std::fs::write(&kernel, elf::kernel(&code)).unwrap();
    let mut monitor = Monitor::start_in(folder, &["--api-socket", "path={}/api"]);
    monitor.wait_ready();
    let socket = monitor.path("api");
    let put = |name: &str, body: &Value| ask(&socket, "PUT", name, body);

    assert_eq!(put("vm.boot", &Value::Null).0, 404);
    assert_eq!(ask(&socket, "GET", "vm.info", &Value::Null).0, 404);
    let (status, errors) = put("vm.create", &json!({"payload": {"kernel": kernel}, "x": 1}));
    assert_eq!(status, 400, "{errors}");
    let missing = json!({"payload": {"kernel": "/nonexistent"}});
    assert_eq!(put("vm.create", &missing).0, 204);
    let (status, errors) = put("vm.boot", &Value::Null);
    assert_eq!(status, 500);
    assert!(
        errors[0].as_str().unwrap().contains("/nonexistent"),
        "{errors}"
    );
    assert_eq!(put("vm.delete", &Value::Null).0, 204);
    let config = json!({
        "payload": {"kernel": kernel},
        "memory": {"size": 16 << 20},
        "serial": {"mode": "Tty"},
    });
    assert_eq!(put("vm.create", &config).0, 204);
    assert_eq!(put("vm.boot", &Value::Null).0, 204);

    assert_eq!(monitor.line(), "A");
    assert_eq!(monitor.end().0.code(), Some(0));
}

/// All answers' status codes to requests sent in one write.
fn ask_at_once(socket: &Path, requests: &[(&str, &str)]) -> Vec<u16> {
    let text: String = requests
        .iter()
        .map(|(method, name)| {
            format!("{method} /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\n\r\n")
        })
        .collect();
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    let lines = answers.split("HTTP/1.1 ").skip(1);
    lines.map(|line| line[..3].parse().unwrap()).collect()
}

#[test]
fn requests_in_one_write_are_answered_by_what_the_one_before_did() {
    if !kvm_is_usable() {
        return;
    }
    let start = || {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        std::fs::write(&kernel, elf::kernel(&forever())).unwrap();
        let monitor = Monitor::start_in(folder, &["--api-socket", "path={}/api"]);
        monitor.wait_ready();
        let config = json!({"payload": {"kernel": kernel}, "memory": {"size": 16 << 20}});
        assert_eq!(
            ask(&monitor.path("api"), "PUT", "vm.create", &config).0,
            204
        );
        monitor
    };
    for (requests, codes) in [
        (
            &[
                ("PUT", "vm.boot"),
                ("PUT", "vm.delete"),
                ("PUT", "vmm.shutdown"),
            ][..],
            &[204, 204, 204][..],
        ),
        (
            &[
                ("GET", "vm.info"),
                ("PUT", "vm.pause"),
                ("PUT", "vm.boot"),
                ("PUT", "vm.boot"),
                ("PUT", "vm.pause"),
                ("PUT", "vm.resume"),
                ("PUT", "vm.delete"),
                ("GET", "vm.info"),
                ("PUT", "vm.pause"),
            ],
            &[200, 405, 204, 500, 204, 204, 204, 404, 404],
        ),
        (
            &[
                ("PUT", "vm.boot"),
                ("PUT", "vm.shutdown"),
                ("GET", "vm.info"),
                ("PUT", "vm.delete"),
                ("GET", "vm.info"),
            ],
            &[204, 204, 200, 204, 404],
        ),
        (&[("PUT", "vmm.shutdown"), ("PUT", "vm.boot")], &[204, 404]),
    ] {
        let monitor = start();
        assert_eq!(
            ask_at_once(&monitor.path("api"), requests),
            codes,
            "{requests:?}"
        );
        let (status, errors, left) = monitor.end();
        assert_eq!((status.code(), errors.as_str()), (Some(0), ""));
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn silent_clients_shut_nobody_out() {
    if !kvm_is_usable() {
        return;
    }
    let monitor = Monitor::start(&forever(), &["--api-socket", "path={}/api"]);
    monitor.wait_ready();
    let socket = monitor.path("api");
    let silent: Vec<_> = (0..200)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();

    assert_eq!(ask(&socket, "GET", "vm.info", &Value::Null).0, 200);
    assert_eq!(ask(&socket, "PUT", "vm.shutdown", &Value::Null).0, 204);

    assert_eq!(monitor.end().0.code(), Some(0));
    drop(silent);
}
