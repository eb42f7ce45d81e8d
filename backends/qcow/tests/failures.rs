//! A medium that fails: what was asked for has not happened, and nothing is lost or leaked for it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod peer;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use peer::around::{Access, Around};
use peer::medium::Medium;
use qcow::{CreateOptions, ErrorKind, Format, Image, OpenOptions, Preallocation, Repair};

const CLUSTER: usize = 4096;

/// A medium that fails once so many writes are done; syncs count where they are asked to.
#[derive(Clone)]
struct Frail {
    storage: Around,
    left: Arc<AtomicI64>,
}

impl Frail {
    fn new(medium: Medium, counted: &'static [Access]) -> Self {
        let left = Arc::new(AtomicI64::new(i64::MAX));
        let count = left.clone();
        let storage = Around::new(medium, move |kind, access| {
            if counted.contains(&kind) && count.fetch_sub(1, Ordering::Relaxed) <= 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            access()
        });
        Self { storage, left }
    }

    fn fail_after(&self, accesses: i64) {
        self.left.store(accesses, Ordering::Relaxed);
    }

    fn recover(&self) {
        self.fail_after(i64::MAX);
    }

    fn open(&self) -> Image {
        let options = OpenOptions::new(Format::Qcow2).writable(true);
        Image::open_storage(Box::new(self.storage.clone()), "frail", &options).unwrap()
    }
}

/// One whose writes will fail, with a new image in it.
fn image() -> (Frail, Image) {
    let medium = Medium::silent().created(&CreateOptions {
        cluster_size: CLUSTER as u64,
        ..CreateOptions::new(Format::Qcow2, 1 << 20)
    });
    let frail = Frail::new(medium, &[Access::Write]);
    let image = frail.open();
    (frail, image)
}

#[test]
fn closing_tells_of_what_was_lost() {
    let medium = Medium::silent().created(&CreateOptions::new(Format::Qcow2, 1 << 20));
    let frail = Frail::new(medium, &[Access::Sync]);
    let image = frail.open();
    image.write_at(0, &[1; 512]).unwrap();
    frail.fail_after(0);
    image.flush().unwrap_err();
    // Nobody knows what is on the medium now, though syncs succeed again.
    frail.recover();

    let error = image.close().unwrap_err();

    assert!(error.to_string().contains("no longer writable"), "{error}");
}

#[test]
fn writes_that_fail_leak_nothing() {
    let (frail, image) = image();
    let text: Vec<u8> = (0..CLUSTER).map(|at| (at / 16 % 200) as u8).collect();
    for cluster in 0..40u64 {
        let offset = cluster * CLUSTER as u64;
        let fails = !cluster.is_multiple_of(2);
        if fails {
            frail.fail_after(0);
        }
        let written = match cluster % 3 {
            0 => image.write_at(offset, &text),
            _ => image.write_compressed(offset, &text),
        };
        frail.recover();
        assert_eq!(written.is_err(), fails, "cluster {cluster}");
    }
    image.flush().unwrap();

    let found = image.check(Repair::None).unwrap();

    assert_eq!(
        (found.leaks, found.corruptions),
        (0, 0),
        "{:?}",
        found.messages
    );
    for cluster in 0..40u64 {
        let mut data = vec![1; CLUSTER];
        image.read_at(cluster * CLUSTER as u64, &mut data).unwrap();
        let wanted = if !cluster.is_multiple_of(2) {
            vec![0; CLUSTER]
        } else {
            text.clone()
        };
        assert!(data == wanted, "cluster {cluster}");
    }
    image.close().unwrap();
}

#[test]
fn a_snapshot_without_space_changes_nothing() {
    let (frail, image) = image();
    image.write_at(0, &[1; 3 * CLUSTER]).unwrap();
    image.flush().unwrap();
    frail.fail_after(0);

    let refused = image.snapshot_create("s").unwrap_err();

    assert_eq!(refused.kind(), ErrorKind::Io, "{refused}");
    frail.recover();
    assert!(image.snapshots().unwrap().is_empty());
    image.write_at(0, &[2; CLUSTER]).unwrap();
    image.snapshot_create("s").unwrap();
    let found = image.check(Repair::None).unwrap();
    assert_eq!((found.leaks, found.corruptions), (0, 0));
    image.close().unwrap();
}

/// A host that has space again as soon as some is given back.
#[test]
fn what_could_not_be_reserved_is_given_back_before_the_tables_are() {
    let mut given_back = 0;
    for writes in 1..20 {
        let medium = Medium::silent().created(&CreateOptions {
            cluster_size: CLUSTER as u64,
            ..CreateOptions::new(Format::Qcow2, 5 << 20)
        });
        let left = Arc::new(AtomicI64::new(i64::MAX));
        let count = left.clone();
        let storage = Around::new(medium, move |kind, access| {
            match kind {
                Access::Discard => count.store(i64::MAX, Ordering::Relaxed),
                Access::Write if count.fetch_sub(1, Ordering::Relaxed) <= 0 => {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                _ => {}
            }
            access()
        });
        let options = OpenOptions::new(Format::Qcow2).writable(true);
        let image = Image::open_storage(Box::new(storage), "full", &options).unwrap();
        // The L1 table stays as long as it is, and none is given back.
        image.resize(1 << 20, Preallocation::Off).unwrap();
        left.store(writes, Ordering::Relaxed);

        let resized = image.resize(5 << 20, Preallocation::Full);

        let found_space = left.swap(i64::MAX, Ordering::Relaxed) > i64::MAX / 2;
        if resized.is_ok() || !found_space {
            continue;
        }
        given_back += 1;
        assert_eq!(image.virtual_size(), 1 << 20, "after {writes} writes");
        let found = image.check(Repair::None).unwrap();
        assert_eq!((found.leaks, found.corruptions), (0, 0), "{writes}");
        image.close().unwrap();
    }
    // One for each piece of the data, and some for the tables.
    assert!(given_back > 4, "{given_back}");
}

#[test]
fn a_full_host_gives_errors_and_leaves_a_consistent_image() {
    for writes in 1..60 {
        let medium = Medium::silent().created(&CreateOptions {
            cluster_size: 512,
            ..CreateOptions::new(Format::Qcow2, 1 << 20)
        });
        let frail = Frail::new(medium.clone(), &[Access::Write]);
        frail.fail_after(writes);
        let image = frail.open();
        let mut failed = false;
        for index in 0..40u64 {
            failed |= image.write_at(index * 7000, &[1; 3000]).is_err();
            failed |= image.flush().is_err();
        }
        // What could not be written is reported at the latest when the image is closed.
        assert!(failed | image.close().is_err());
        let again = medium.open(&OpenOptions::new(Format::Qcow2));
        let found = again.check(Repair::None).unwrap();
        assert_eq!(
            found.corruptions, 0,
            "after {writes} writes: {:?}",
            found.messages
        );
    }
}

#[test]
fn errors_at_close_reach_the_caller_and_a_failed_sync_is_not_forgotten() {
    let medium = Medium::silent().created(&CreateOptions::new(Format::Qcow2, 1 << 20));
    let frail = Frail::new(medium, &[Access::Write, Access::Sync]);
    frail.fail_after(1);
    let image = frail.open();
    image.write_at(0, &[1; 65536]).unwrap();
    assert!(image.close().is_err());
    frail.fail_after(2);
    let image = frail.open();
    image.write_at(0, &[1; 65536]).unwrap();
    assert!(image.flush().is_err());
    let error = image.flush().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
}
