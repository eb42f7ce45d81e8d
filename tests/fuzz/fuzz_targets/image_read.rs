//! Reading from a hostile image: L1, L2, subclusters, compressed clusters, snapshots, bitmaps. The file must stay as it is.

#![no_main]

use bulkhead_fuzz::memory::Memory;
use bulkhead_fuzz::{data_file, hostile, open_whole, program};
use qcow::{Format, OpenOptions};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (steps, bytes) = program::split(input);
    let bytes = hostile::image(bytes);
    let memory = Memory::new(&bytes);
    data_file::reset();
    let read_only = OpenOptions::new(Format::Qcow2);
    if let Ok(image) = open_whole(&memory, read_only.clone()) {
        for step in &steps {
            step.read(&image);
        }
        let bitmaps = image.info().ok().and_then(|info| info.qcow2);
        for bitmap in bitmaps.map(|facts| facts.bitmaps).iter().flatten().take(4) {
            let _ = image.bitmap_ranges(&bitmap.name);
        }
        for snapshot in image.snapshots().unwrap_or_default().iter().take(4) {
            let options = read_only.clone().snapshot(Some(snapshot.id.clone()));
            if let Ok(image) = open_whole(&memory, options) {
                for step in &steps {
                    step.read(&image);
                }
            }
        }
        drop(image);
        assert!(
            memory.bytes() == *bytes,
            "a read-only open changed the file"
        );
    }
});
