//! Checking a hostile image without changing it. A check says the same each time, and what it finds sound can be read.

#![no_main]

use bulkhead_fuzz::for_check;
use bulkhead_fuzz::host::Host;
use bulkhead_fuzz::input::Input;
use qcow::{Format, Image, OpenOptions, Repair};

/// The most extents that are asked for.
const MOST_EXTENTS: usize = 512;

/// Whether all of a disk can be read; what is compressed may be damaged where no check looks. Nor does it, as QEMU's, mind
/// zero clusters in an image whose version has none.
fn can_be_read(image: &Image) {
    let facts = image.info().ok().and_then(|facts| facts.qcow2);
    if facts.is_none_or(|facts| facts.version < 3) {
        return;
    }
    let (mut at, size) = (0, image.virtual_size());
    for _ in 0..MOST_EXTENTS {
        if at == size {
            return;
        }
        let extent = image.map_layer(at, size - at);
        let extent = extent.unwrap_or_else(|error| panic!("sound, and at {at}: {error}"));
        let mut byte = [0];
        if extent.present && !extent.compressed {
            let read = image.read_at(extent.start + extent.length - 1, &mut byte);
            assert!(
                read.is_ok(),
                "sound, and {extent:?} cannot be read: {read:?}"
            );
        }
        at += extent.length;
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let input = Input::of(bytes);
    let host = Host::new(&input);
    let Ok(image) = host.open_alone(for_check()) else {
        return;
    };
    let found = image.check(Repair::None);
    if let Ok(found) = &found {
        assert_eq!(image.check(Repair::None).ok().as_ref(), Some(found));
        let findings = found.corruptions + found.check_errors + found.leaks;
        assert!(
            findings == 0 || !found.messages.is_empty() || found.unfinished.is_some(),
            "findings that are not told of: {found:?}"
        );
    }
    assert!(image.check(Repair::All).is_err() && image.check(Repair::Leaks).is_err());
    drop(image);
    if found.is_ok_and(|found| found.is_sound())
        && let Ok(image) = host.open(OpenOptions::new(Format::Qcow2))
    {
        can_be_read(&image);
        for snapshot in image.snapshots().unwrap_or_default().iter().take(4) {
            let options = OpenOptions::new(Format::Qcow2).snapshot(Some(snapshot.id.clone()));
            if let Ok(image) = host.open(options) {
                can_be_read(&image);
            }
        }
    }
    assert!(
        host.file.bytes() == *input.image,
        "a check changed the file"
    );
});
