//! The serial port of a bare-metal guest: standard input and output, a socket, a file.
#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bulkhead_tests::guest::{Machine, kvm_is_usable};

/// Longer than any FIFO, with a byte that is not ASCII.
fn long_line() -> Vec<u8> {
    let mut line: Vec<u8> = (0..2000_u32)
        .map(|index| b'a' + (index % 26) as u8)
        .collect();
    line.push(0xfe);
    line
}

#[test]
fn the_guest_reads_standard_input() {
    if !kvm_is_usable("the_guest_reads_standard_input") {
        return;
    }
    let (mut machine, mut input) = Machine::start_with_input("test=echo n=3", &[]);
    machine.expect("echo ready");
    let long = long_line();
    for line in [&b"hello"[..], b"", &long] {
        input.write_all(&[line, b"\n"].concat()).unwrap();
        let answer = machine.expect("echo");
        assert_eq!(answer.0, format!("echo {}", line.escape_ascii()).trim_end());
    }
    machine.expect_success();
}

#[test]
fn a_socket_can_be_the_serial_port() {
    if !kvm_is_usable("a_socket_can_be_the_serial_port") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial.sock");
    let serial = format!("socket={}", path.display());
    // It waits for a second line until somebody is there to send one.
    let machine = Machine::start_with_serial("test=echo n=2", &serial, &[]);
    let mut stream = connect(&path);
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap())
        .lines()
        .map(Result::unwrap);
    for word in ["one", "two"] {
        writeln!(stream, "{word}").unwrap();
        let expected = format!("guest: echo {word}");
        assert!(lines.any(|line| line.trim_end() == expected), "{expected}");
    }
    let (status, errors) = machine.wait();
    assert_eq!((status.code(), errors.as_str()), (Some(0), ""));
    assert!(!path.exists(), "the socket has been left behind");
}

/// The monitor makes its socket before the guest runs, but does not report that.
fn connect(path: &std::path::Path) -> UnixStream {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) if std::time::Instant::now() > end => panic!("{}: {error}", path.display()),
            Err(_) => std::thread::yield_now(),
        }
    }
}

#[test]
fn a_file_can_be_the_serial_port() {
    if !kvm_is_usable("a_file_can_be_the_serial_port") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial.log");
    let serial = format!("file={}", path.display());
    let (status, errors) = Machine::start_with_serial("test=start", &serial, &[]).wait();
    assert_eq!((status.code(), errors.as_str()), (Some(0), ""));
    let said = std::fs::read_to_string(&path).unwrap();
    assert!(
        said.starts_with("guest: start ") && said.ends_with("guest: ok\n"),
        "{said:?}"
    );
}
