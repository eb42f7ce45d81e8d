//! Opening a hostile image: its header, extensions, tables' places, snapshots and bitmaps.

#![no_main]

use bulkhead_fuzz::memory::Memory;
use bulkhead_fuzz::{hostile, open};
use qcow::{Format, OpenOptions};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Ok(image) = open(
        &Memory::new(&hostile::image(input)),
        OpenOptions::new(Format::Qcow2),
    ) {
        let _ = image.info();
        let _ = image.snapshots();
    }
});
