//! Repairing a hostile image. What is said to be mended is.

#![no_main]

use bulkhead_fuzz::memory::Memory;
use bulkhead_fuzz::{for_check, hostile, open};
use qcow::Repair;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let memory = Memory::new(&hostile::image(input));
    let Ok(image) = open(&memory, for_check().writable(true)) else {
        return;
    };
    let Ok(first) = image.check(Repair::All) else {
        return;
    };
    if image.close().is_err() || first.corruptions > 0 || first.check_errors > 0 {
        return;
    }
    let again = open(&memory, for_check()).and_then(|image| image.check(Repair::None));
    match again {
        Ok(second) => assert_eq!(second.corruptions, 0, "a repaired image is damaged"),
        Err(error) => panic!("a repaired image cannot be checked: {error}"),
    }
});
