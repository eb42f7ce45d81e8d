//! Checking a hostile image without changing it.

#![no_main]

use bulkhead_fuzz::memory::Memory;
use bulkhead_fuzz::{for_check, hostile, open};
use qcow::Repair;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let bytes = hostile::image(input);
    let memory = Memory::new(&bytes);
    if let Ok(image) = open(&memory, for_check()) {
        let _ = image.check(Repair::None);
        drop(image);
        assert!(memory.bytes() == *bytes, "a check changed the file");
    }
});
