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
    let (status, body) = ask(api_socket, "GET", "vm.counters");
    assert_eq!(status, 200, "{body}");
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

/// The status of the answer to a `PUT` without a body.
///
/// # Panics
/// When the monitor does not answer.
#[must_use]
pub fn put(api_socket: &Path, endpoint: &str) -> u16 {
    ask(api_socket, "PUT", endpoint).0
}

/// Status and body of the answer.
fn ask(api_socket: &Path, method: &str, endpoint: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(api_socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "{method} /api/v1/{endpoint} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut response = String::new();
    // The monitor closes the connection after its answer.
    stream.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    (status.unwrap(), body.to_owned())
}
