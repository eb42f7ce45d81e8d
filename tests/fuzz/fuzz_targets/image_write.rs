//! Writing to a hostile image. Where the image was consistent before, it is afterwards.

#![no_main]

use bulkhead_fuzz::memory::Memory;
use bulkhead_fuzz::{for_check, open, program};
use qcow::{Format, OpenOptions, Repair};

/// Whether a check finds damage; `None` when it cannot be made.
fn damaged(memory: &Memory) -> Option<bool> {
    let result = open(memory, for_check()).ok()?.check(Repair::None).ok()?;
    Some(result.corruptions > 0 || result.check_errors > 0)
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (steps, bytes) = program::split(input);
    let memory = Memory::new(bytes);
    let before = damaged(&memory);
    let Ok(image) = open(&memory, OpenOptions::new(Format::Qcow2).writable(true)) else {
        return;
    };
    for step in steps {
        // What a full disk or a damaged table refuses is refused; the rest goes on.
        let _ = step.change(&image);
        step.read(&image);
    }
    let closed = image.close();
    if before == Some(false) && closed.is_ok() {
        assert_eq!(
            damaged(&memory),
            Some(false),
            "writing damaged a sound image"
        );
    }
});
