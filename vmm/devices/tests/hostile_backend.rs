//! The frontend against backends that refuse, die or never answer: the calls that a vCPU makes return at once.

#![allow(clippy::unwrap_used, clippy::panic)] // a test says so when something is wrong

#[allow(dead_code)] // other tests use the rest
#[path = "guest/mod.rs"]
mod guest;

mod fake;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bulkhead_devices::Lifecycle;
use bulkhead_devices::vhost_user::{Frontend, FrontendError, device_type};
use bulkhead_devices::virtio::VirtioDevice;

use fake::{
    Fake, GET_VRING_BASE, SET_CONFIG, SET_FEATURES, SET_VRING_BASE, SET_VRING_ENABLE,
    SET_VRING_NUM, Then,
};
use guest::{BlockGuest, Events, USED, guest_memory};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Far less than a backend may take for an answer, and enough for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(2);

fn connect(
    fake: &Fake,
    kind: &str,
    size: u16,
    events: &Arc<Events>,
) -> Result<Arc<Frontend>, FrontendError> {
    connect_with(fake, kind, size, events, guest_memory(0))
}

fn connect_with(
    fake: &Fake,
    kind: &str,
    size: u16,
    events: &Arc<Events>,
    memory: GuestMemoryMmap,
) -> Result<Arc<Frontend>, FrontendError> {
    guest::connect(
        &fake.socket,
        device_type(kind).unwrap(),
        size,
        events,
        memory,
    )
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} in vain");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn at_once(what: &str, action: impl FnOnce()) {
    let start = Instant::now();
    action();
    assert!(
        start.elapsed() < AT_ONCE,
        "{what} took {:?}",
        start.elapsed()
    );
}

#[test]
fn whatever_a_backend_does_at_the_start_no_caller_waits() {
    for (request, then) in [
        (SET_FEATURES, Then::Hang),
        (SET_FEATURES, Then::Die),
        (SET_FEATURES, Then::Refuse),
        (SET_VRING_NUM, Then::Hang),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let asked = AtomicU32::new(0);
        let rule = move |seen: u32, _: &[u8]| match seen == request {
            // The length of the queue is asked for beforehand, too.
            true if asked.fetch_add(1, Ordering::Relaxed) > 0 || seen != SET_VRING_NUM => then,
            _ => Then::Answer,
        };
        let fake = Fake::start(folder.path(), 0, Box::new(rule));
        let frontend = connect(&fake, "blk", 64, &Arc::default()).unwrap();
        let mut guest = BlockGuest::new(frontend, guest_memory(0));

        at_once("activation", || guest.activate());
        wait("the request", || fake.saw(request));
        at_once("a notification", || guest.frontend.notify(0));
        at_once("a configuration write", || {
            guest.frontend.write_config(32, &[1])
        });
        at_once("reading", || guest.frontend.read_config(0, &mut [0; 8]));
        at_once("a reset", || VirtioDevice::reset(&*guest.frontend));
        at_once("the end", || guest.frontend.remove());
        // Once the device is removed, the reconnect thread does not wait for the backend either.
        wait("the reset", || {
            guest.frontend.is_stopped() || then == Then::Hang
        });
    }
}

#[test]
fn a_kick_that_the_backend_throws_away_at_the_start_is_made_again() {
    for acknowledges in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        // The backend enables a ring slowly; without an acknowledgement the frontend does not know when it has.
        let rule = |request: u32, _: &[u8]| {
            if request == SET_VRING_ENABLE {
                std::thread::sleep(Duration::from_millis(50));
            }
            Then::Answer
        };
        let fake = match acknowledges {
            true => Fake::start(folder.path(), 0, Box::new(rule)),
            false => Fake::without_acknowledgements(folder.path(), Box::new(rule)),
        };
        let memory = guest_memory(0);
        let frontend = connect_with(&fake, "blk", 64, &Arc::default(), memory.clone()).unwrap();
        let mut guest = BlockGuest::new(frontend, memory);
        for _ in 0..3 {
            guest.activate();
            // The driver does not wait for the backend to be there.
            guest.submit_read(0);
            wait("the kick", || fake.is_kicked(0));
            guest.reset();
        }
        // Nobody kicks a queue that is empty.
        guest.activate();
        wait("the start", || fake.count(SET_VRING_ENABLE) >= 7);
        assert!(!fake.is_kicked(0));
    }
}

#[test]
fn a_backend_that_does_not_let_go_of_the_queues_does_not_keep_the_caller() {
    let folder = tempfile::tempdir().unwrap();
    let rule = |seen: u32, _: &[u8]| match seen {
        GET_VRING_BASE => Then::Hang,
        _ => Then::Answer,
    };
    let fake = Fake::start(folder.path(), 0, Box::new(rule));
    let frontend = connect(&fake, "blk", 64, &Arc::default()).unwrap();
    let mut guest = BlockGuest::new(frontend, guest_memory(0));
    guest.activate();
    wait("the start", || fake.saw(SET_VRING_ENABLE));

    at_once("a reset", || VirtioDevice::reset(&*guest.frontend));
    wait("the request", || fake.saw(GET_VRING_BASE));

    assert!(!guest.frontend.is_stopped());
}

#[test]
fn a_paused_device_has_its_vrings_stopped_and_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::start(folder.path(), 0, Box::new(|_, _| Then::Answer));
    let memory = guest_memory(0);
    let frontend = connect_with(&fake, "blk", 64, &Arc::default(), memory.clone()).unwrap();
    let mut guest = BlockGuest::new(frontend, memory.clone());
    guest.activate();
    wait("the start", || fake.saw(SET_VRING_ENABLE));
    guest.submit_read(0);
    memory.write_obj(1_u16, GuestAddress(USED + 2)).unwrap();

    guest.frontend.pause();
    wait("the stop", || fake.saw(GET_VRING_BASE));
    assert_eq!(fake.last(SET_VRING_ENABLE).unwrap()[4], 0);
    assert!(!fake.is_kicked(0));

    guest.frontend.resume();
    wait("the start", || fake.is_kicked(0));
    assert_eq!(fake.last(SET_VRING_ENABLE).unwrap()[4], 1);
    assert_eq!(fake.last(SET_VRING_BASE).unwrap()[4..], [1, 0, 0, 0]);
    assert_eq!(fake.connections(), 1);
}

#[test]
fn pausing_and_resuming_never_waits_for_a_backend() {
    let folder = tempfile::tempdir().unwrap();
    let rule = |seen: u32, _: &[u8]| match seen {
        GET_VRING_BASE => Then::Hang,
        _ => Then::Answer,
    };
    let fake = Fake::start(folder.path(), 0, Box::new(rule));
    let frontend = connect(&fake, "blk", 64, &Arc::default()).unwrap();
    let mut guest = BlockGuest::new(frontend, guest_memory(0));
    guest.activate();
    wait("the start", || fake.saw(SET_VRING_ENABLE));

    at_once("pausing", || guest.frontend.pause());
    wait("the request", || fake.saw(GET_VRING_BASE));
    at_once("resuming", || guest.frontend.resume());
    at_once("the end", || guest.frontend.remove());
}

#[test]
fn queues_are_as_long_as_the_backend_takes_them() {
    // Backends made with the crate `vhost-user-backend` do this: they refuse a request and end the connection.
    let rule = |seen: u32, body: &[u8]| match seen {
        SET_VRING_NUM if body[4..] > [128, 0, 0, 0][..] || body[5] > 0 => Then::Die,
        _ => Then::Answer,
    };
    for acknowledges in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let fake = match acknowledges {
            true => Fake::start(folder.path(), 0, Box::new(rule)),
            false => Fake::without_acknowledgements(folder.path(), Box::new(rule)),
        };
        let frontend = connect(&fake, "console", 1024, &Arc::default()).unwrap();
        assert_eq!(frontend.queue_max_sizes(), [128, 128]);
    }
}

#[test]
fn a_backend_that_takes_no_queue_at_all_is_no_reason_not_to_start() {
    let folder = tempfile::tempdir().unwrap();
    let rule = |seen: u32, _: &[u8]| match seen {
        SET_VRING_NUM => Then::Refuse,
        _ => Then::Answer,
    };
    let fake = Fake::start(folder.path(), 0, Box::new(rule));
    let events = Arc::<Events>::default();
    let frontend = connect(&fake, "blk", 64, &events).unwrap();
    assert_eq!(frontend.queue_max_sizes(), [64]);
    let mut guest = BlockGuest::new(frontend, guest_memory(0));

    at_once("activation", || guest.activate());

    wait("the news", || events.resets_needed() > 0);
    assert_eq!(events.unusable()[0], "the backend refused SET_VRING_NUM");
}

#[test]
fn what_the_driver_writes_and_the_backend_need_not_know_stays_here() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::start(folder.path(), 0, Box::new(|_, _| Then::Answer));
    let frontend = connect(&fake, "scsi", 64, &Arc::default()).unwrap();
    frontend.write_config(20, &[96, 0, 0, 0]);
    let mut size = [0; 4];
    frontend.read_config(20, &mut size);
    assert_eq!(size, [96, 0, 0, 0]);

    let mut guest = BlockGuest::new(frontend, guest_memory(0));
    guest.activate();
    guest.reset();

    assert!(!fake.saw(SET_CONFIG));
}

#[test]
fn a_backend_that_keeps_dying_is_tried_a_few_times_a_second() {
    let folder = tempfile::tempdir().unwrap();
    let rule = |seen: u32, _: &[u8]| match seen {
        SET_FEATURES => Then::Die,
        _ => Then::Answer,
    };
    let fake = Fake::start(folder.path(), 0, Box::new(rule));
    let events = Arc::<Events>::default();
    let frontend = connect(&fake, "blk", 64, &events).unwrap();
    let mut guest = BlockGuest::new(frontend, guest_memory(0));
    guest.activate();

    let start = Instant::now();
    wait("a few attempts", || fake.connections() > 12);

    // 5, 10, 20, … 250, 250 milliseconds lie between them.
    assert!(
        start.elapsed() > Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn nothing_is_reported_of_a_device_that_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::start(folder.path(), 0, Box::new(|_, _| Then::Answer));
    let events = Arc::<Events>::default();
    let frontend = connect(&fake, "blk", 64, &events).unwrap();
    frontend.remove();
    drop(frontend);
    assert_eq!((events.lost(), events.unusable()), (0, Vec::new()));
}
