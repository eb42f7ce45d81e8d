//! Repairing a hostile image. What is said to be mended is, unless one table lies in another: then mending one may damage the other,
//! and the next repair finds that.

#![no_main]

use bulkhead_fuzz::memory::Memory;
use bulkhead_fuzz::{for_check, hostile, open};
use qcow::Repair;

/// Repairs after which the rest is given up.
const ROUNDS: usize = 4;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let memory = Memory::new(&hostile::image(input));
    for _ in 0..ROUNDS {
        let Ok(image) = open(&memory, for_check().writable(true)) else {
            return;
        };
        let Ok(repaired) = image.check(Repair::All) else {
            return;
        };
        if image.close().is_err() || repaired.corruptions > 0 || repaired.check_errors > 0 {
            return;
        }
        let left = match open(&memory, for_check()).and_then(|image| image.check(Repair::None)) {
            Ok(checked) => checked.corruptions,
            Err(_) => 1,
        };
        if left == 0 {
            return;
        }
        let did_something = repaired.corruptions_fixed + repaired.leaks_fixed > 0;
        assert!(
            did_something,
            "a repair finds nothing, a check finds damage"
        );
    }
});
