//! Network namespaces of a test's own, and a server in them that the guest talks to.

use std::net::UdpSocket;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use super::program::PATIENCE;

/// Runs `body` in a fresh network namespace: the test program starts itself again under `unshare`, for this one test.
///
/// # Panics
/// When the test fails in there.
pub fn in_own_namespace(test: &str, body: impl FnOnce()) {
    const INSIDE: &str = "BULKHEAD_TEST_INSIDE_NAMESPACE";
    if std::env::var_os(INSIDE).is_some() {
        ip("link set lo up");
        return body();
    }
    let probe = Command::new("unshare")
        .args(["-n", "test", "-w", "/dev/net/tun"])
        .output();
    if !probe.is_ok_and(|out| out.status.success()) {
        eprintln!("skipped: {test}: no network namespace (are you root?) or no /dev/net/tun here");
        return;
    }
    let status = Command::new("unshare")
        .arg("-n")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(
        status.success(),
        "{test} failed inside its network namespace"
    );
}

/// Where programs keep their runtime files. Empty at first in namespaces of a test's own.
pub const RUN: &str = "/run";

/// Runs `body` as the first process of its own mount, network and process namespaces, with an empty [`RUN`]: the test
/// program starts itself again, for this one test. Nothing it starts outlives it.
///
/// # Panics
/// When the test fails in there.
pub fn in_own_host(test: &str, body: impl FnOnce()) {
    if std::env::var_os(super::GUEST).is_some() {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "mode=755", "none", RUN])
            .status();
        assert!(mounted.unwrap().success(), "mount {RUN}");
        ip("link set lo up");
        return body();
    }
    let namespaces = [
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ];
    let probe = Command::new("unshare")
        .args(namespaces)
        .args(["mount", "-t", "tmpfs", "none", RUN])
        .output();
    if !probe.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: {test}: no namespaces of its own (are you root?)");
        return;
    }
    let status = Command::new("unshare")
        .args(namespaces)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(super::GUEST, super::kernel())
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed inside its namespaces");
}

/// The processes that run in this process namespace besides this one, by number and name.
///
/// # Panics
/// When there is no /proc.
#[must_use]
pub fn processes() -> Vec<(u32, String)> {
    let own = std::process::id();
    let entries = std::fs::read_dir("/proc").unwrap();
    let numbers = entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let others = numbers.filter(|&number: &u32| number != own);
    // `number (name) state …`; one that is a zombie has ended.
    let stat = |number| std::fs::read_to_string(format!("/proc/{number}/stat")).ok();
    let running = |number| {
        let stat = stat(number)?;
        let (name, state) = stat.split_once('(')?.1.rsplit_once(") ")?;
        (!state.starts_with('Z')).then(|| (number, name.to_owned()))
    };
    others.filter_map(running).collect()
}

/// Runs `ip` with these words.
///
/// # Panics
/// When it fails.
pub fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().unwrap();
    assert!(status.success(), "ip {words}");
}

/// What a server has received.
pub struct Answers {
    received: Arc<Received>,
}

#[derive(Default)]
struct Received {
    datagrams: Mutex<Vec<Vec<u8>>>,
    more: Condvar,
}

impl Answers {
    /// The different datagrams so far, in the order of their numbers (their first 8 bytes).
    ///
    /// # Panics
    /// When the server has failed.
    #[must_use]
    pub fn received(&self) -> Vec<Vec<u8>> {
        let mut received = self.received.datagrams.lock().unwrap().clone();
        received.sort_by_key(|payload| {
            payload
                .first_chunk()
                .map(|bytes| u64::from_le_bytes(*bytes))
        });
        received
    }

    /// Waits until there have been so many different datagrams.
    ///
    /// # Panics
    /// When they do not come in time.
    pub fn wait_for(&self, count: usize) {
        let datagrams = self.received.datagrams.lock().unwrap();
        let (datagrams, waited) = self
            .received
            .more
            .wait_timeout_while(datagrams, PATIENCE, |datagrams| datagrams.len() < count)
            .unwrap();
        let seen = datagrams.len();
        assert!(!waited.timed_out(), "{seen} datagrams instead of {count}");
    }
}

/// Answers datagrams to `address` with the same bytes, every bit inverted, for as long as the test runs.
///
/// # Panics
/// When the address cannot be had.
#[must_use]
pub fn serve_inverted(address: &str) -> Answers {
    let socket = UdpSocket::bind(address).unwrap();
    let received = Arc::<Received>::default();
    let all = received.clone();
    thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        loop {
            let (length, peer) = socket.recv_from(&mut buffer).unwrap();
            let payload = buffer[..length].to_vec();
            let inverted: Vec<u8> = payload.iter().map(|byte| !byte).collect();
            {
                let mut datagrams = all.datagrams.lock().unwrap();
                if !datagrams.contains(&payload) {
                    datagrams.push(payload);
                    all.more.notify_all();
                }
            }
            socket.send_to(&inverted, peer).unwrap();
        }
    });
    Answers { received }
}
