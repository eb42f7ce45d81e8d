//! Reading from a hostile image: L1, L2, subclusters, compressed clusters. The file must stay as it is.

#![no_main]

use bulkhead_fuzz::memory::Memory;
use bulkhead_fuzz::{open, program};
use qcow::{Format, OpenOptions};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (steps, bytes) = program::split(input);
    let memory = Memory::new(bytes);
    if let Ok(image) = open(&memory, OpenOptions::new(Format::Qcow2)) {
        for step in steps {
            step.read(&image);
        }
        drop(image);
        assert!(memory.bytes() == bytes, "a read-only open changed the file");
    }
});
