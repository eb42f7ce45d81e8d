//! Reading from a hostile image, and from hostile images below it: L1, L2, subclusters, compressed clusters, snapshots, bitmaps, extents
//! and plans. What is told in two ways must agree, and the file must stay as it is.

#![no_main]

use bulkhead_fuzz::host::Host;
use bulkhead_fuzz::input::Input;
use qcow::{Format, OpenOptions};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let input = Input::of(bytes);
    let host = Host::new(&input);
    let read_only = OpenOptions::new(Format::Qcow2);
    let Ok(image) = host.open(read_only.clone()) else {
        return;
    };
    for step in &input.steps {
        step.look(&host, &image);
    }
    for snapshot in image.snapshots().unwrap_or_default().iter().take(4) {
        for name in [&snapshot.id, &snapshot.name] {
            let options = read_only.clone().snapshot(Some(name.clone()));
            if let Ok(image) = host.open(options) {
                for step in &input.steps {
                    step.look(&host, &image);
                }
            }
        }
    }
    drop(image);
    assert!(
        host.file.bytes() == *input.image,
        "a read-only open changed the file"
    );
});
