//! Repairing a hostile image: to the end, or killed on the way and begun again. What is left is sound, and can be changed in every
//! way; and giving up leaked clusters loses nothing that could be read, unless what counts them holds data, too.

#![no_main]

use bulkhead_fuzz::content::Content;
use bulkhead_fuzz::host::Host;
use bulkhead_fuzz::input::Input;
use bulkhead_fuzz::mended::{Outcome, is_harmless, repair, repair_all};
use bulkhead_fuzz::program::{Session, Step};
use qcow::Repair;

/// The ways: bits of the first step's fill.
const LEAKS: u8 = 1;
const KILLED: u8 = 2;

/// Leaked clusters are given up, by one who may be killed on the way.
fn give_up_leaks(host: &Host, way: Step) {
    let before = Content::of(host);
    let other = host.copy();
    if way.fill & KILLED != 0 {
        other.file.only(u64::from(way.place % 256));
    }
    let repaired = repair(&other, Repair::Leaks);
    let other = other.copy();
    if host.overlaps() {
        return;
    }
    Content::of(&other).is_kept(&before, "after leaks were repaired");
    if repaired.is_some_and(|repaired| repaired.is_sound()) {
        assert_eq!(other.damaged(), Some(false), "repairing leaks damaged it");
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let input = Input::of(bytes);
    let (way, steps) = input.way();
    let mut host = Host::new(&input);
    if way.fill & LEAKS != 0 {
        give_up_leaks(&host, way);
    }
    if way.fill & KILLED != 0 {
        host.file.only(u64::from(way.len % 1024));
        let _ = repair(&host, Repair::All);
        host = host.copy();
    }
    if repair_all(&host) == Outcome::GivenUp {
        return;
    }
    let Some(mut session) = Session::open_shared(&host, input.writable(), true) else {
        return;
    };
    for step in steps {
        let Some(next) = session.change(*step) else {
            return;
        };
        session = next;
    }
    let sound = session.is_sound();
    if session.close() && sound {
        let found = host.check();
        assert!(
            found.as_ref().is_some_and(is_harmless),
            "what was repaired is damaged by writing: {found:?}"
        );
        assert_eq!(repair_all(&host), Outcome::Sound);
    }
});
