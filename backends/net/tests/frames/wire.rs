//! The network side: a namespace, the device under test on one end of a wire, and the test on the other.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bulkhead_test_frontend::program::{said, wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tap::{InterfaceName, Offloads, Options, Tap, VNET_HDR_LEN};
use tempfile::TempDir;

pub(crate) use bulkhead_test_frontend::PATIENCE;

/// Runs `body` in a network namespace of its own: the test program starts itself again, for this one test.
pub(crate) fn in_own_namespace(test: &str, body: impl FnOnce()) {
    const INSIDE: &str = "NET_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        // The host's own IPv6 would be on the wire too.
        for interfaces in ["all", "default"] {
            std::fs::write(
                format!("/proc/sys/net/ipv6/conf/{interfaces}/disable_ipv6"),
                "1",
            )
            .unwrap();
        }
        return body();
    }
    let probe = Command::new("unshare")
        .args(["-rn", "test", "-w", "/dev/net/tun"])
        .status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("skipped: {test}: no network namespaces or no /dev/net/tun here");
        return;
    }
    let status = Command::new("unshare")
        .arg("-rn")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

pub(crate) fn ip(args: &str) {
    assert!(
        Command::new("ip")
            .args(args.split(' '))
            .status()
            .unwrap()
            .success(),
        "ip {args}"
    );
}

/// A running `bulkhead-net` and its folder.
pub(crate) struct Net {
    pub(crate) child: Child,
    pub(crate) socket: PathBuf,
    _folder: TempDir,
}

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-net"));
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

impl Net {
    /// Starts it on the TAP device `net0` and waits until it is ready.
    pub(crate) fn start(options: &str) -> Net {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("net.sock");
        let mut command = program();
        command
            .arg("--socket-path")
            .arg(&socket)
            .args(["--tap", "net0"])
            .args(options.split_whitespace());
        let child = bulkhead_test_frontend::program::start(&mut command, folder.path());
        Net {
            child,
            socket,
            _folder: folder,
        }
    }

    /// One that was started otherwise.
    pub(crate) fn adopt(child: Child, socket: PathBuf, folder: TempDir) -> Net {
        Net {
            child,
            socket,
            _folder: folder,
        }
    }

    /// Waits for the end, and returns the status and what was written to standard error.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let status = wait(&mut self.child);
        (status, self.said())
    }

    /// What a program that has ended wrote to standard error.
    pub(crate) fn said(&mut self) -> String {
        said(&mut self.child)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The far end of the wire that `net0` is on.
pub(crate) struct Peer(Tap);

impl Peer {
    /// Lays the wire; `net0` must be there. The peer takes packets as large as they come if `offloads` say so.
    pub(crate) fn new(offloads: Offloads) -> Peer {
        let tap = Tap::open(&InterfaceName::new("peer0").unwrap(), Options::VNET_HDR).unwrap();
        tap.set_vnet_hdr_len(VNET_HDR_LEN).unwrap();
        tap.set_offloads(offloads).unwrap();
        ip("link add br0 type bridge mcast_snooping 0 forward_delay 0");
        ip("link set br0 up");
        for end in ["net0", "peer0"] {
            ip(&format!("link set {end} master br0 up"));
        }
        Peer(tap)
    }

    /// Sends a frame, its header included.
    pub(crate) fn send(&self, frame: &[u8]) {
        assert_eq!(rustix::io::write(&self.0, frame), Ok(frame.len()));
    }

    /// The next frame, its header included.
    pub(crate) fn receive(&self) -> Vec<u8> {
        self.receive_within(PATIENCE).expect("a frame")
    }

    pub(crate) fn receive_within(&self, patience: Duration) -> Option<Vec<u8>> {
        let mut ready = [PollFd::new(&self.0, PollFlags::IN)];
        poll(&mut ready, Some(&Timespec::try_from(patience).unwrap())).unwrap();
        let mut frame = vec![0; 70_000];
        let length = rustix::io::read(&self.0, &mut frame).ok()?;
        frame.truncate(length);
        Some(frame)
    }
}

/// A frame of `length` bytes (without the header) that no network stack answers, recognised by `number`.
pub(crate) fn frame(number: u8, length: usize) -> Vec<u8> {
    let mut frame = vec![0; VNET_HDR_LEN];
    frame.extend([0xff; 6]);
    frame.extend([2, 0, 0, 0, 0, number, 0x88, 0xb5]);
    frame.extend((0..length - 14).map(|at| (at as u8).wrapping_mul(7).wrapping_add(number)));
    frame
}

/// Checks that a frame came as it was sent, headers apart. They are too long to print.
#[track_caller]
pub(crate) fn same(got: &[u8], sent: &[u8]) {
    let differ = body(got).iter().zip(body(sent)).position(|(a, b)| a != b);
    assert_eq!(
        (got.len(), differ),
        (sent.len(), None),
        "{:x?}…",
        &got[..got.len().min(40)]
    );
}

/// Checks that a packet carries `data(length)`.
#[track_caller]
pub(crate) fn carries(got: &[u8], length: usize) {
    let carried = tcp_data(got);
    let differ = carried.iter().zip(data(length)).position(|(a, b)| *a != b);
    assert_eq!((carried.len(), differ), (length, None));
}

/// The frame without its header.
pub(crate) fn body(frame: &[u8]) -> &[u8] {
    &frame[VNET_HDR_LEN..]
}

pub(crate) const SEGMENT: usize = 1448;

/// TCP over IPv4 with `payload` bytes of data, still to be cut into segments, its checksum still to be filled in.
pub(crate) fn large_tcp(payload: usize) -> Vec<u8> {
    let total = (40 + payload) as u16;
    // NEEDS_CSUM, TCPV4, header 54, segments, checksum from 34 at 16, no merged buffers.
    let mut frame = vec![1, 1];
    for field in [54, SEGMENT as u16, 34, 16, 0] {
        frame.extend(field.to_le_bytes());
    }
    frame.extend([0xff; 6]);
    frame.extend([2, 0, 0, 0, 0, 9, 8, 0]);
    let mut ip = vec![0x45, 0];
    ip.extend(total.to_be_bytes());
    ip.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = !ones(&ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    let mut tcp = vec![
        0x12, 0x34, 0x56, 0x78, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0x10, 0, 0, 0, 0, 0,
    ];
    let pseudo = ones(&[10, 0, 0, 1, 10, 0, 0, 2, 0, 6], u32::from(total - 20));
    tcp[16..18].copy_from_slice(&pseudo.to_be_bytes());
    frame.extend(tcp);
    frame.extend(data(payload));
    frame
}

/// What a large packet carries.
pub(crate) fn data(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at / 5) as u8 ^ (at >> 9) as u8)
        .collect()
}

/// The data of a TCP packet, its checksum checked if it claims to be finished.
pub(crate) fn tcp_data(frame: &[u8]) -> &[u8] {
    let packet = &body(frame)[14..];
    if frame[0] & 1 == 0 {
        let length = (packet.len() - 20) as u32;
        let mut pseudo = packet[12..20].to_vec();
        pseudo.extend([0, 6]);
        assert_eq!(
            ones(&packet[20..], u32::from(ones(&pseudo, length))),
            0xffff,
            "TCP checksum"
        );
    }
    &packet[40..]
}

/// The ones' complement sum of 16-bit words.
pub(crate) fn ones(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
