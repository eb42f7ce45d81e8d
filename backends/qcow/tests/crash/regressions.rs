//! Mistakes that random power cuts have found, one by one.

use std::sync::Arc;

use qcow::{CreateOptions, ErrorKind, Format, OpenOptions, Preallocation, Repair};

use crate::peer::medium::{Event, Medium, apply};

fn writable() -> OpenOptions {
    OpenOptions::new(Format::Qcow2).writable(true)
}

/// The medium after each event of `change`, as if it were cut short there.
fn cut_short(medium: &Medium, change: impl FnOnce()) -> Vec<Medium> {
    let (mut bytes, from) = {
        let state = medium.state();
        (state.bytes.clone(), state.log.len())
    };
    change();
    let log: Vec<Event> = medium.state().log[from..].to_vec();
    let mut media = Vec::new();
    for event in &log {
        apply(&mut bytes, event, None);
        media.push(Medium::with(bytes.clone()));
    }
    media
}

#[test]
fn a_shrink_that_is_cut_short_does_not_bring_the_backing_file_back() {
    let base = Arc::new(Medium::with(vec![0xbb; 64 << 10]).open(&OpenOptions::new(Format::Raw)));
    let medium = Medium::default().created(&CreateOptions {
        cluster_size: 4096,
        backing_file: Some("base".into()),
        backing_format: Some(Format::Raw),
        ..CreateOptions::new(Format::Qcow2, 64 << 10)
    });
    let options = OpenOptions::new(Format::Qcow2);
    let overlay = medium
        .open(&options.clone().writable(true))
        .over(base.clone());
    overlay.write_at(0, &[0x11; 64 << 10]).unwrap();
    overlay.flush().unwrap();

    let media = cut_short(&medium, || {
        overlay.resize(8 << 10, Preallocation::Off).unwrap()
    });

    for medium in media {
        let found = medium.open(&options).over(base.clone());
        let mut disk = vec![0; found.virtual_size() as usize];
        found.read_at(0, &mut disk).unwrap();
        assert!(disk[..8 << 10].iter().all(|byte| *byte == 0x11));
        assert!(!disk.contains(&0xbb), "data of the backing file shows");
    }
}

#[test]
fn a_snapshot_that_narrow_refcounts_cannot_count_is_refused_before_anything_changes() {
    let medium = Medium::default().created(&CreateOptions {
        cluster_size: 4096,
        refcount_bits: 4,
        ..CreateOptions::new(Format::Qcow2, 64 << 10)
    });
    let image = medium.open(&writable());
    // Ten compressed clusters in one: twice that is more than four bits can count.
    image.write_compressed(0, &[0x22; 10 * 4096]).unwrap();
    image.flush().unwrap();
    let before = medium.state().bytes.clone();

    let refused = image.snapshot_create("s").unwrap_err();

    assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
    assert!(medium.state().bytes == before, "something was written");
    image.write_at(0, &[0x33; 512]).unwrap();
    image.close().unwrap();
    let found = medium.open(&OpenOptions::new(Format::Qcow2).for_check(true));
    let found = found.check(Repair::None).unwrap();
    assert_eq!(
        (found.corruptions, found.leaks),
        (0, 0),
        "{:?}",
        found.messages
    );
}

#[test]
fn a_snapshot_that_is_cut_short_leaves_refcounts_and_flags_that_agree() {
    for version in [2, 3] {
        let medium = Medium::default().created(&CreateOptions {
            version,
            cluster_size: 4096,
            ..CreateOptions::new(Format::Qcow2, 256 << 10)
        });
        let image = medium.open(&writable());
        image.write_at(0, &[0x11; 128 << 10]).unwrap();
        image.write_compressed(128 << 10, &[0x22; 8 << 10]).unwrap();
        image.flush().unwrap();

        let media = cut_short(&medium, || {
            image.snapshot_create("s").unwrap();
            image.write_at(0, &[0x33; 64 << 10]).unwrap();
            image.snapshot_apply("s").unwrap();
            image.snapshot_delete("s").unwrap();
        });

        for (event, medium) in media.iter().enumerate() {
            let found = medium.open(&OpenOptions::new(Format::Qcow2).for_check(true));
            let dirty = found.info().unwrap().qcow2.unwrap().dirty;
            let found = found.check(Repair::None).unwrap();
            assert!(
                found.is_sound() && !dirty,
                "version {version}, event {event}: {:?}",
                found.messages
            );
        }
    }
}
