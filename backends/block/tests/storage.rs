//! Storage does not answer: the program ends on SIGTERM all the same.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use peer::{Backend, Guest, PATIENCE, raw_image};
use rustix::process::{Pid, Signal, kill_process};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};

/// The process that strace runs.
fn traced(backend: &Backend) -> Pid {
    let strace = backend.child.id();
    let children = format!("/proc/{strace}/task/{strace}/children");
    let children = std::fs::read_to_string(children).unwrap();
    Pid::from_raw(children.split_whitespace().next().unwrap().parse().unwrap()).unwrap()
}

/// How many threads of `process` strace has stopped.
fn stopped(process: Pid) -> usize {
    let tasks = format!("/proc/{}/task", process.as_raw_nonzero());
    let tasks = std::fs::read_dir(tasks).unwrap();
    let states =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
    states.filter(|stat| stat.contains(") t ")).count()
}

#[test]
fn it_does_not_keep_a_program_from_ending() {
    let read = (VIRTIO_BLK_T_IN, "preadv", 512);
    let write = (VIRTIO_BLK_T_OUT, "pwritev", 512);
    let flush = (VIRTIO_BLK_T_FLUSH, "fdatasync", 0);
    std::thread::scope(|scope| {
        for queues in ["1", "2"] {
            for request in [read, write, flush] {
                scope.spawn(move || hangs(queues, request));
            }
        }
    });
}

/// A request of which the system call does not return.
fn hangs(queues: &str, (kind, syscall, length): (u32, &str, u32)) {
    let (_folder, image) = raw_image(1 << 20);
    let injected = format!("inject={syscall}:delay_enter=3600000000");
    let more = ["--persist", "--aio", "threads", "--num-queues", queues];
    let mut backend = Backend::start_traced(&injected, (&image, "raw", &more));
    let process = traced(&backend);
    let mut guest = Guest::connect(&backend, queues.parse().unwrap());
    guest.post_block(0, 0, (kind, 0), (length, kind == VIRTIO_BLK_T_IN));
    guest.kick(0);
    let start = Instant::now();
    // Strace stops a thread for a moment at each call, and for an hour at this one.
    let mut seen = 0;
    while seen < 20 {
        assert!(start.elapsed() < PATIENCE, "{syscall} is not called");
        seen = if stopped(process) > 0 { seen + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(10));
    }
    let signalled = Instant::now();
    kill_process(process, Signal::TERM).unwrap();
    let mut said = String::new();
    let stderr = backend.child.stderr.take().unwrap();
    assert!(
        peer::readable(&stderr, PATIENCE),
        "{syscall}: nothing is said"
    );
    BufReader::new(stderr).read_line(&mut said).unwrap();
    assert!(
        said.contains("storage has not answered"),
        "{syscall}: {said}"
    );
    assert!(signalled.elapsed() < Duration::from_secs(15), "{syscall}");
    // Strace holds the thread that it has stopped; no other is left.
    let first = format!("/proc/{}/stat", process.as_raw_nonzero());
    let is_alive = || std::fs::read_to_string(&first).is_ok_and(|stat| !stat.contains(") Z "));
    while queues == "2" && is_alive() {
        assert!(signalled.elapsed() < PATIENCE, "{syscall}: it does not end");
        std::thread::yield_now();
    }
    backend.child.kill().unwrap();
    backend.child.wait().unwrap();
    while is_alive() {
        assert!(signalled.elapsed() < PATIENCE, "{syscall}: it does not end");
        std::thread::yield_now();
    }
}
