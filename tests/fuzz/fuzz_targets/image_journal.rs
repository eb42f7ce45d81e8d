//! A hostile journal beside a sound image: the image is no worse than leaking, or the journal is refused and nothing has changed.

#![no_main]

use bulkhead_fuzz::notes::Pending;
use bulkhead_fuzz::sound;
use qcow::{Format, Image, OpenOptions, Repair};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&[number, way], rest)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let images = sound::images();
    let Some(pending) = Pending::new(&images[usize::from(number) % images.len()].bytes) else {
        return;
    };
    match way & 2 {
        0 => pending.forge(rest),
        _ => pending.put(u64::from(way >> 2) * 8, rest),
    }
    let before = pending.image.bytes();
    let opened = pending.open(way & 1 == 0);
    if way & 1 != 0 || opened.is_err() {
        assert!(
            pending.image.bytes() == before,
            "it was changed all the same"
        );
    }
    let Ok(image) = opened else {
        return;
    };
    let found = image.check(Repair::None);
    let found = found.unwrap_or_else(|error| panic!("it cannot be checked: {error}"));
    assert_eq!(
        found.corruptions + found.check_errors,
        0,
        "{:?}",
        found.messages
    );
    if image.close().is_ok() && way & 1 == 0 {
        let options = OpenOptions::new(Format::Qcow2);
        let again = Image::open_storage(Box::new(pending.image.clone()), "again", &options);
        let found = again.and_then(|image| image.check(Repair::None));
        assert!(found.is_ok_and(|found| found.corruptions + found.check_errors == 0));
    }
});
