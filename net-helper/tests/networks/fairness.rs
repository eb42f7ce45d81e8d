//! What one client does keeps no other waiting.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]

use std::time::{Duration, Instant};

use bulkhead_net_protocol::{Lease, TapRequest};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::host::{Helper, on_own_host};

/// How many devices one user drops at once.
const MANY: usize = 511;
/// How many of them may be removed from the end of one request to the end of the next, usually and at the most. The
/// helper removes four at a time and none while it serves a request, so these are one removal that has begun, and those
/// that fit into the time until the helper has a processor. A busy machine makes all of that take longer, so the test
/// counts devices and does not measure time.
const USUALLY: usize = 8;
const AT_MOST: usize = 40;

/// Requests, one after the other: how long each took, and how many devices were removed from the end of the one before
/// to its own.
struct Requests {
    times: Vec<Duration>,
    removed: Vec<usize>,
}

impl Requests {
    /// Sends requests while `more` says so.
    fn measure(helper: &Helper, mut more: impl FnMut() -> bool) -> Requests {
        let (mut times, mut removed) = (Vec::new(), Vec::new());
        let mut before = devices();
        while more() {
            let start = Instant::now();
            let lease = helper.lease(&TapRequest::on("default")).unwrap();
            times.push(start.elapsed());
            // The new device is one more.
            let now = devices();
            removed.push((before + 1).saturating_sub(now));
            before = now;
            drop(lease);
        }
        times.sort();
        removed.sort();
        Requests { times, removed }
    }
}

fn median<T: Copy>(sorted: &[T]) -> T {
    sorted[sorted.len() / 2]
}

fn longest<T: Copy>(sorted: &[T]) -> T {
    sorted[sorted.len() - 1]
}

/// How many TAP devices of helpers this host has. Reading this file waits for no change of an interface.
fn devices() -> usize {
    let all = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let names = all.lines().filter(|line| line.contains("bhtap"));
    names.count()
}

/// Has a client drop many devices in some way, and counts how many of them others wait for.
fn others_wait(drop_all: fn(Vec<Lease>)) {
    let files = Some(4096);
    let limit = Rlimit {
        current: files,
        maximum: files,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let helper = Helper::start(folder.path(), "--network dhcp=off");
    let lease = || helper.lease(&TapRequest::on("default")).unwrap();
    let many: Vec<_> = (0..MANY).map(|_| lease()).collect();
    let mut rounds = 50;
    let usual = Requests::measure(&helper, || {
        rounds -= 1;
        rounds > 0
    });

    let start = Instant::now();
    let dropping = std::thread::spawn(move || drop_all(many));
    let meanwhile = Requests::measure(&helper, || !dropping.is_finished() || devices() > FEW);

    let gone = start.elapsed();
    dropping.join().unwrap();
    let [few, many] =
        [&usual, &meanwhile].map(|requests| (median(&requests.times), longest(&requests.times)));
    let removed = (median(&meanwhile.removed), longest(&meanwhile.removed));
    println!(
        "{MANY} devices gone in {gone:?}; median and longest request {few:?} usually, {many:?} meanwhile, \
         in which {removed:?} devices were removed"
    );
    assert!(
        removed.0 <= USUALLY && removed.1 <= AT_MOST,
        "a request waited for so many devices: {:?}",
        meanwhile.removed
    );
    helper.stop();
}

/// How many devices of the test's own requests may still be there.
const FEW: usize = 8;

#[test]
fn many_devices_returned_at_once_keep_no_other_waiting() {
    on_own_host(
        "fairness::many_devices_returned_at_once_keep_no_other_waiting",
        || {
            others_wait(|many| {
                let files: Vec<_> = many.into_iter().map(|lease| lease.queues).collect();
                drop(files);
            });
        },
    );
}

#[test]
fn many_devices_of_a_process_that_ends_keep_no_other_waiting() {
    on_own_host(
        "fairness::many_devices_of_a_process_that_ends_keep_no_other_waiting",
        || {
            // The files of each device close before its connection.
            others_wait(drop);
        },
    );
}
