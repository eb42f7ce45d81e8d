//! Opening a hostile image in every way there is: its header, extensions, names, tables' places, snapshots and bitmaps; alone, in a part
//! of its file, over others, and by its name.

#![no_main]

use bulkhead_fuzz::folder;
use bulkhead_fuzz::host::Host;
use bulkhead_fuzz::input::Input;
use bulkhead_fuzz::kinds::overlap;
use bulkhead_fuzz::program::Step;
use qcow::{Discard, Format, Image, OpenOptions};

/// The ways: bits of the first step's kind.
const WRITABLE: u8 = 1;
const FOR_CHECK: u8 = 2;
const FOR_INFO: u8 = 4;
const SNAPSHOT: u8 = 8;
const WINDOW: u8 = 16;
const RAW: u8 = 32;
const BY_NAME: u8 = 64;
const ALONE: u8 = 128;

/// Snapshots that images have, and some that none has.
const SNAPSHOTS: [&str; 6] = ["1", "2", "first", "second", "3", ""];

fn options(way: Step) -> OpenOptions {
    let has = |bit| way.kind & bit != 0;
    let format = if has(RAW) { Format::Raw } else { Format::Qcow2 };
    let discard = match way.fill & 1 {
        0 => Discard::Unmap,
        _ => Discard::Ignore,
    };
    let snapshot = has(SNAPSHOT).then(|| {
        let index = usize::from(way.fill >> 1) % SNAPSHOTS.len();
        SNAPSHOTS[index].to_owned()
    });
    OpenOptions::new(format)
        .writable(has(WRITABLE))
        .for_check(has(FOR_CHECK))
        .for_info(has(FOR_INFO))
        .discard(discard)
        .snapshot(snapshot)
}

fn look(host: &Host, image: &Image, steps: &[Step]) {
    let _ = image.info();
    let _ = image.snapshots();
    for step in steps {
        step.look(host, image);
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let input = Input::of(bytes);
    let (way, steps) = input.way();
    let has = |bit| way.kind & bit != 0;
    let mut host = Host::new(&input);
    if has(WINDOW) {
        let (before, after) = (way.place % 8192, way.len % 8192);
        host = host.within(before as usize, after.into(), way.fill & 1 != 0);
    }
    let before = host.file.bytes();
    let sound = has(WRITABLE)
        && !has(FOR_CHECK)
        && !has(RAW)
        && host.damaged() == Some(false)
        && !overlap(&input.image);
    let opened = match has(ALONE) {
        true => host.open_alone(options(way)),
        false => host.open(options(way)),
    };
    if let Ok(image) = opened {
        look(&host, &image, steps);
        let closed = image.close().is_ok();
        assert!(
            !sound || !closed || host.damaged() == Some(false),
            "opening for writing damaged a sound image"
        );
    }
    assert!(
        has(WRITABLE) || host.file.bytes() == before,
        "a read-only open changed the file"
    );
    if has(BY_NAME) {
        let following = folder::following(1 + u32::from(way.fill % 4), way.len % 2 != 0);
        folder::open_by_name(&input, following, |image| {
            let _ = (image.info(), image.backing(), image.files());
            for step in steps {
                step.read(image);
            }
        });
    }
});
