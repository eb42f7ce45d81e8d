//! A backend that keeps no in-flight record dies. The next one does the requests that were not answered, all of them and
//! no other.

#![allow(clippy::unwrap_used, clippy::panic)] // a test says so when something is wrong

#[allow(dead_code)] // other tests use the rest
mod fake;
#[allow(dead_code)] // as above
mod guest;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bulkhead_devices::vhost_user::TYPE_BLOCK;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use fake::{Fake, SET_VRING_BASE, SET_VRING_ENABLE, Then};
use guest::{AVAILABLE, BlockGuest, Events, SIZE, USED, guest_memory};

/// A driver and a backend of which the one makes requests available and the other returns them.
struct Rings {
    _folder: tempfile::TempDir,
    fake: Fake,
    guest: BlockGuest,
    memory: GuestMemoryMmap,
    events: Arc<Events>,
    asked: u16,
    answered: u16,
}

impl Rings {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fake = Fake::start(folder.path(), 0, Box::new(|_, _| Then::Answer));
        let events = Arc::<Events>::default();
        let memory = guest_memory(0);
        let ram = memory.clone();
        let frontend = guest::connect(&fake.socket, TYPE_BLOCK, SIZE, &events, ram).unwrap();
        let mut rings = Self {
            guest: BlockGuest::new(frontend, memory.clone()),
            _folder: folder,
            fake,
            memory,
            events,
            asked: 0,
            answered: 0,
        };
        rings.guest.activate();
        wait("the queue", || rings.fake.count(SET_VRING_ENABLE) == 1);
        rings
    }

    fn ask(&mut self, head: u16) {
        let entry = AVAILABLE + 4 + 2 * u64::from(self.asked % SIZE);
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        self.asked = self.asked.wrapping_add(1);
        let index = GuestAddress(AVAILABLE + 2);
        self.memory
            .store(self.asked, index, Ordering::Release)
            .unwrap();
    }

    /// Without an interrupt.
    fn answer_quietly(&mut self, head: u16) {
        let entry = USED + 4 + 8 * u64::from(self.answered % SIZE);
        self.memory
            .write_obj(u32::from(head), GuestAddress(entry))
            .unwrap();
        self.answered = self.answered.wrapping_add(1);
        let index = GuestAddress(USED + 2);
        self.memory
            .store(self.answered, index, Ordering::Release)
            .unwrap();
    }

    fn answer(&mut self, head: u16) {
        self.answer_quietly(head);
        self.fake.call(0);
        wait("an interrupt", || self.guest.interrupted());
    }

    /// Another backend comes; the requests it finds.
    fn die(&mut self) -> Vec<u16> {
        let enabled = self.fake.count(SET_VRING_ENABLE);
        self.fake.cut();
        wait("the queue", || self.fake.count(SET_VRING_ENABLE) > enabled);
        let base = self.fake.last(SET_VRING_BASE).unwrap();
        let base = u32::from_ne_bytes(base[4..8].try_into().unwrap()) as u16;
        assert_eq!(base, self.answered);
        let found = (0..self.asked.wrapping_sub(base)).map(|number| {
            let place = base.wrapping_add(number) % SIZE;
            let entry = GuestAddress(AVAILABLE + 4 + 2 * u64::from(place));
            self.memory.read_obj::<u16>(entry).unwrap()
        });
        found.collect()
    }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} in vain");
        std::thread::sleep(Duration::from_micros(100));
    }
}

#[test]
fn what_was_answered_out_of_order_is_not_done_again() {
    let mut rings = Rings::start();
    for head in [9, 3, 6, 12] {
        rings.ask(head);
    }
    rings.answer_quietly(6);
    rings.answer_quietly(9);
    assert_eq!(rings.die(), [3, 12]);
    // And when that one dies, too.
    rings.ask(9);
    rings.answer(12);
    assert_eq!(rings.die(), [3, 9]);
    rings.answer(3);
    rings.answer(9);
    assert!(rings.die().is_empty());
}

#[test]
fn one_request_that_takes_very_long_is_not_left_out() {
    let mut rings = Rings::start();
    rings.ask(40);
    for number in 0..1000_u16 {
        let head = number % 5;
        rings.ask(head);
        if number % 2 == 0 {
            rings.ask(head + 10);
            rings.answer(head + 10);
        }
        rings.answer(head);
        if number % 100 == 7 {
            assert_eq!(rings.die(), [40], "after {number}");
        }
    }
    rings.ask(1);
    assert_eq!(rings.die(), [40, 1]);
}

#[test]
fn where_it_is_not_known_the_driver_is_to_reset_the_device() {
    let mut rings = Rings::start();
    rings.ask(40);
    // The backend answers these without an interrupt until the used ring has wrapped around, so the tracker misses some.
    for _ in 0..SIZE {
        rings.ask(1);
        rings.ask(2);
        rings.answer_quietly(2);
        rings.answer_quietly(1);
    }
    let enabled = rings.fake.count(SET_VRING_ENABLE);
    rings.fake.cut();
    // The driver is interrupted first.
    wait("the fault", || !rings.events.unusable().is_empty());
    assert_eq!(rings.events.resets_needed(), 1);
    let unusable = rings.events.unusable();
    assert!(
        matches!(&*unusable, [one] if one.contains("must reset")),
        "{unusable:?}"
    );
    assert_eq!(rings.fake.count(SET_VRING_ENABLE), enabled);
    // After that it goes on.
    rings.guest.reset();
    rings.guest.activate();
    (rings.asked, rings.answered) = (0, 0);
    wait("the queue", || rings.fake.count(SET_VRING_ENABLE) > enabled);
    rings.ask(4);
    rings.ask(5);
    rings.answer(5);
    assert_eq!(rings.die(), [4]);
}
