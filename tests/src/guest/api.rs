//! The monitor's API, as far as these tests use it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::program::PATIENCE;

/// How often `KVM_RUN` has returned to the monitor so far, on all vCPUs together, by `vm.counters`.
///
/// # Panics
/// When the monitor does not answer or not with such counters.
#[must_use]
pub fn exit_count(api_socket: &Path) -> u64 {
    let body = get(api_socket, "vm.counters");
    let counters: serde_json::Value = serde_json::from_str(&body).unwrap();
    let vcpus = counters.as_object().unwrap();
    let mut counts = vcpus
        .iter()
        .filter(|(name, _)| name.starts_with("vcpu") || name.starts_with("_vcpu"))
        .flat_map(|(_, counts)| counts.as_object().unwrap().values())
        .map(|count| count.as_u64().unwrap())
        .peekable();
    assert!(counts.peek().is_some(), "no vCPU in {body}");
    counts.sum()
}

fn get(api_socket: &Path, endpoint: &str) -> String {
    let mut stream = UnixStream::connect(api_socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "GET /api/v1/{endpoint} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut response = String::new();
    let mut bytes = [0; 4096];
    loop {
        let (head, length) = match response.split_once("\r\n\r\n") {
            Some((head, body)) => (head, body.len()),
            None => ("", 0),
        };
        let announced = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map(|(_, value)| value.trim().parse::<usize>().unwrap());
        if announced == Some(length) {
            break;
        }
        let read = stream.read(&mut bytes).unwrap();
        assert!(read > 0, "the API's answer ends early: {response}");
        response.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
    }
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{response}");
    body.to_owned()
}
