//! What one client does keeps no other waiting.

#![allow(
    clippy::disallowed_macros,
    reason = "a test reports to whoever runs it"
)]

use std::time::{Duration, Instant};

use bulkhead_net_protocol::{Lease, TapRequest};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::host::{Helper, on_own_host, run};

/// How many devices one user drops at once.
const MANY: usize = 511;

/// How long requests took, one after the other.
struct Waits(Vec<Duration>);

impl Waits {
    /// Asks while `more` says so.
    fn measure(helper: &Helper, mut more: impl FnMut() -> bool) -> Waits {
        let mut all = Vec::new();
        while more() {
            let start = Instant::now();
            let lease = helper.lease(&TapRequest::on("default")).unwrap();
            all.push(start.elapsed());
            drop(lease);
        }
        all.sort();
        Waits(all)
    }

    fn median(&self) -> Duration {
        self.0[self.0.len() / 2]
    }

    fn longest(&self) -> Duration {
        self.0[self.0.len() - 1]
    }
}

/// What a request may take longer than usual, at the most.
const LONGER: Duration = Duration::from_millis(50);
/// How often it is measured until it shows: what this machine does besides is in both, but not evenly.
const ROUNDS: usize = 5;

/// Has a client drop many devices in some way, and compares how long others wait with how long they do usually.
fn others_wait(drop_all: fn(Vec<Lease>)) {
    let files = Some(4096);
    let limit = Rlimit {
        current: files,
        maximum: files,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let helper = Helper::start(folder.path(), "--network dhcp=off");
    for round in 1.. {
        let [usual, meanwhile] = measure(&helper, drop_all);
        if meanwhile.longest() < LONGER + usual.longest() {
            break;
        }
        // A machine on which no single request takes so little shows that most do, and that none takes as long as all
        // devices.
        let (few, many) = (usual.longest(), meanwhile.longest());
        assert!(
            many < Duration::from_millis(500) + 5 * few,
            "longest {many:?}, usually {few:?}"
        );
        if round == ROUNDS {
            println!("this machine is too busy for {LONGER:?}");
            break;
        }
    }
    helper.stop();
}

fn measure(helper: &Helper, drop_all: fn(Vec<Lease>)) -> [Waits; 2] {
    let lease = || helper.lease(&TapRequest::on("default")).unwrap();
    let many: Vec<_> = (0..MANY).map(|_| lease()).collect();
    let mut rounds = 50;
    let usual = Waits::measure(helper, || {
        rounds -= 1;
        rounds > 0
    });

    let start = Instant::now();
    let dropping = std::thread::spawn(move || drop_all(many));
    let left = || {
        run("ip -o link | grep -c bhtap || true")
            .trim()
            .parse::<usize>()
            .unwrap()
    };
    let meanwhile = Waits::measure(helper, || !dropping.is_finished() || left() > FEW);

    let gone = start.elapsed();
    dropping.join().unwrap();
    let [few, many] = [&usual, &meanwhile].map(|waits| (waits.median(), waits.longest()));
    println!(
        "{MANY} devices gone in {gone:?}; median and longest request {few:?} usually, {many:?} meanwhile"
    );
    assert!(
        many.0 < LONGER + few.0,
        "median {:?}, usually {:?}",
        many.0,
        few.0
    );
    [usual, meanwhile]
}

/// What the requests of the test itself may have left.
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
