//! Writing to a hostile image. Where the image was consistent before, it is afterwards, and holds what was written.

#![no_main]

use bulkhead_fuzz::memory::Memory;
use bulkhead_fuzz::program::{self, Session};
use bulkhead_fuzz::{data_file, for_check, hostile, is_marked_corrupt, open};
use qcow::Repair;

/// Whether a check finds damage; `None` when it cannot be made.
fn damaged(memory: &Memory) -> Option<bool> {
    let result = open(memory, for_check()).ok()?.check(Repair::None).ok()?;
    Some(result.corruptions > 0 || result.check_errors > 0)
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (steps, image) = program::split(input);
    let memory = Memory::new(&hostile::image(image));
    data_file::reset();
    let sound = damaged(&memory) == Some(false);
    let Some(mut session) = Session::open(&memory, program::writable(input), sound) else {
        return;
    };
    let untouched = hostile::is_untouched(image);
    for step in steps {
        assert!(
            !untouched || !is_marked_corrupt(&memory),
            "a sound image is said to be corrupt"
        );
        // What a full disk or a damaged table refuses is refused; the rest goes on.
        let Some(next) = session.change(step) else {
            return;
        };
        session = next;
        step.read(session.image());
    }
    if session.close() && sound {
        assert_eq!(
            damaged(&memory),
            Some(false),
            "writing damaged a sound image"
        );
    }
});
