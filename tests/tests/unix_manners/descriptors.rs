//! Every program with too few descriptors for what it is to do.

use bulkhead_tests::guest::{in_own_host, kvm_is_usable};
use rustix::process::Signal;

use super::program::{Called, PROGRAMS, Place, Running};

/// A program that has not worked with so many never will.
const MOST: u32 = 64;

/// What [`MORE`] of them need.
const PEERS: &[Called] = &[
    Called::quiet(
        "a disk",
        "bulkhead-block --socket-path /run/files/peer.sock --blk-file /run/files/peer.raw --format raw --persist",
        "/run/files/peer.sock",
    ),
    Called::quiet(
        "a helper",
        "bulkhead-net-helper --socket-path /run/files/helper.sock --state-dir /run/files/helper --network name=n,subnet=10.77.0.0/24,bridge=manners0",
        "/run/files/helper.sock",
    ),
];

/// What the programs are called with beside what [`PROGRAMS`] has.
const MORE: &[Called] = &[
    Called::quiet(
        "qcow2 with a backing file",
        "bulkhead-block --socket-path /run/vda.sock --blk-file /run/files/over.qcow2 --format qcow2 --num-queues 2 --persist",
        "/run/vda.sock",
    ),
    Called::quiet(
        "io_uring",
        "bulkhead-block --socket-path /run/vda.sock --blk-file /run/files/disk.raw --format raw --num-queues 3 --aio io_uring --persist",
        "/run/vda.sock",
    ),
    Called::quiet(
        "threads",
        "bulkhead-block --socket-path /run/vda.sock --blk-file /run/files/disk.raw --format raw --num-queues 3 --aio threads --persist",
        "/run/vda.sock",
    ),
    Called::quiet(
        "a lease",
        "bulkhead-net --socket-path /run/net0.sock --network n --helper-socket /run/files/helper.sock --num-queues 2 --persist",
        "/run/net0.sock",
    ),
    Called::guest(
        "a monitor with a disk",
        "bulkhead-vmm --memory size=64M --kernel GUEST --cmdline test=echo --serial null --api-socket path=/run/api.sock --disk vhost_user=on,socket=/run/files/peer.sock",
        "/run/api.sock",
    ),
    Called::guest(
        "a serial socket",
        "bulkhead-vmm --memory size=64M --kernel GUEST --cmdline test=echo --serial socket=/run/serial.sock --cpus boot=2",
        "/run/serial.sock",
    ),
    Called::guest(
        "a serial file",
        "bulkhead-vmm --memory size=64M --kernel GUEST --cmdline test=echo --serial file=/run/serial.log --api-socket path=/run/api.sock",
        "/run/api.sock",
    ),
    Called::guest(
        "the API alone",
        "bulkhead-vmm --api-socket path=/run/api.sock",
        "/run/api.sock",
    ),
];

#[test]
fn too_few_descriptors_are_one_line_that_says_what_they_were_needed_for() {
    const NAME: &str =
        "descriptors::too_few_descriptors_are_one_line_that_says_what_they_were_needed_for";
    in_own_host(NAME, || {
        let place = Place::new();
        place.image();
        let mut complaints = Vec::new();
        let mut try_all = |programs: &[Called]| {
            for program in programs {
                if program.needs_kvm && !kvm_is_usable(NAME) {
                    continue;
                }
                // With 3 it is the dynamic linker that reports it.
                let works = (4..MOST).any(|limit| {
                    let works = with(&place, program, limit);
                    let has_worked = works == Ok(true);
                    complaints.extend(works.err());
                    has_worked
                });
                if !works {
                    complaints.push(format!("{} never works", program.name));
                }
            }
        };
        try_all(PROGRAMS);
        let peers: Vec<_> = PEERS.iter().map(|peer| place.start(peer, ":")).collect();
        assert!(peers.iter().all(Running::serves));
        try_all(MORE);
        for (peer, called) in peers.into_iter().zip(PEERS) {
            peer.end_with(Signal::TERM, called.name);
        }
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    });
}

/// Whether a program works with this many descriptors; what is wrong with it otherwise.
fn with(place: &Place, program: &Called, limit: u32) -> Result<bool, String> {
    let running = place.start(program, &format!("ulimit -n {limit}"));
    if running.serves() {
        running.signal(Signal::TERM);
    }
    let (status, said) = running.end();
    if (status, said.as_str()) == (Some(0), "") {
        return Ok(true);
    }
    let line = said.strip_suffix(": Too many open files (os error 24)\n");
    let line = line.and_then(|line| line.strip_prefix("error: "));
    let names = |line: &str| {
        ["cannot ", "refused "]
            .iter()
            .any(|verb| line.contains(verb))
            && !line.contains('\n')
    };
    match status == Some(1) && line.is_some_and(names) {
        true => Ok(false),
        false => Err(format!("{}, {limit}: {status:?} {said}", program.name)),
    }
}
