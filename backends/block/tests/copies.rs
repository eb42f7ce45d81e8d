//! Another process writes an earlier copy of an image into the image's file while it is served, or makes the file
//! shorter. After a kill, the disk is as it was when the copy was made, or opening it is an error.

// clippy knows a test by its attribute, and not what a test is made of.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod peer;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use peer::killed::{
    go_on_without, has_all, image, is_refused, is_sound_and_closed, open, refused, served,
};
use peer::{Backend, Guest};
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_DISCARD;

/// Discards the cluster at this sector.
fn discard(guest: &mut Guest, sector: u64) {
    const SECTORS: u32 = 128;
    let mut range = sector.to_le_bytes().to_vec();
    range.extend(SECTORS.to_le_bytes());
    range.extend(0u32.to_le_bytes());
    guest.put(Guest::data(0), &range);
    assert_eq!(guest.request(VIRTIO_BLK_T_DISCARD, 0, 16, false), 0);
}

const COPY: &str = "a copy of an image in use";

/// Copies as cp does, into the existing file.
fn put_back(copy: &[u8], image: &Path) {
    let before = std::fs::metadata(image).unwrap().ino();
    std::fs::write(image, copy).unwrap();
    assert_eq!(std::fs::metadata(image).unwrap().ino(), before);
}

fn served_again(image: &Path, mut backend: Backend, mut guest: Guest, first: u8) {
    backend.restart_elsewhere(image, "qcow2");
    guest.reconnect(&backend);
    assert_eq!(guest.read(0, 4096), [first; 4096]);
    guest.write(0, &[1; 4096]);
    drop(guest);
    let (status, said) = backend.end();
    assert!(status.success(), "{said}");
    is_sound_and_closed(image);
}

#[test]
fn a_copy_made_before_what_was_written_last_is_an_error_until_a_repair_goes_on_without() {
    for is_flushed in [false, true] {
        let (_folder, image, mut backend, mut guest) = served();
        guest.flush();
        let copy = std::fs::read(&image).unwrap();
        guest.write(40 * 256, &[9; 4096]);
        if is_flushed {
            guest.flush();
        }
        backend.kill();
        put_back(&copy, &image);
        is_refused(&image, &[COPY, "disk.qcow2.bulkhead-journal"]);
        go_on_without(&image);
        assert!(has_all(&open(&image, false).unwrap()));
        served_again(&image, backend, guest, 1);
    }
}

#[test]
fn clusters_that_were_given_up_since_the_copy_was_made_are_not_read_as_others() {
    // As when the copy has a snapshot, or discarded clusters, whose places are something else by then.
    let (_folder, image, mut backend, mut guest) = served();
    guest.flush();
    let copy = std::fs::read(&image).unwrap();
    for block in 0..20 {
        discard(&mut guest, block * 256);
    }
    guest.flush();
    guest.flush();
    for block in 40..60 {
        guest.write(block * 256, &[99; 4096]);
    }
    backend.kill();
    put_back(&copy, &image);
    is_refused(&image, &[COPY]);
}

#[test]
fn a_copy_since_which_no_table_changed_is_the_disk_as_it_was() {
    let (_folder, image, mut backend, mut guest) = served();
    let copy = std::fs::read(&image).unwrap();
    guest.write(0, &[200; 4096]);
    backend.kill();
    put_back(&copy, &image);
    assert!(has_all(&open(&image, false).unwrap()));
    served_again(&image, backend, guest, 1);
}

#[test]
fn a_copy_made_before_the_image_was_served_is_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let image = image(folder.path());
    let copy = std::fs::read(&image).unwrap();
    let mut backend = Backend::start(&image, "qcow2", &[]);
    let mut guest = Guest::connect(&backend, 1);
    guest.write(0, &[7; 4096]);
    backend.kill();
    put_back(&copy, &image);
    served_again(&image, backend, guest, 0);
}

#[test]
fn a_copy_made_before_an_earlier_kill_is_an_error() {
    let (_folder, image, mut backend, mut guest) = served();
    let copy = std::fs::read(&image).unwrap();
    backend.kill();
    backend.restart_elsewhere(&image, "qcow2");
    guest.reconnect(&backend);
    guest.write(40 * 256, &[9; 4096]);
    backend.kill();
    put_back(&copy, &image);
    is_refused(&image, &["disk.qcow2.bulkhead-journal"]);
}

#[test]
fn what_is_cut_off_while_it_is_served_is_an_error_also_for_the_next_process() {
    for cut in [512, 65536 + 4096] {
        let (_folder, image, mut backend, mut guest) = served();
        // So that the end of the file is data.
        guest.write(60 * 256, &[9; 65536]);
        guest.flush();
        let len = std::fs::metadata(&image).unwrap().len();
        let file = std::fs::File::options().write(true).open(&image).unwrap();
        file.set_len(len - cut).unwrap();
        backend.kill();
        for said in [
            refused(&image),
            open(&image, true).unwrap_err().to_string(),
            open(&image, false).unwrap_err().to_string(),
        ] {
            let words = format!("of {len} bytes, {} are left", len - cut);
            assert!(said.contains(&words), "{said}");
            assert!(said.contains(&format!("truncate -s {len}")), "{said}");
        }
        file.set_len(len).unwrap();
        assert!(has_all(&open(&image, false).unwrap()));
        served_again(&image, backend, guest, 1);
    }
}
