//! A sync that fails: no later one of the same open image succeeds, whichever file, operation or caller it was.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod peer;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::mpsc;

use peer::around::{Access, Around};
use peer::medium::Medium;
use qcow::{CreateOptions, DataFile, Format, Image, OpenOptions, Preallocation, Storage};

const CLUSTER: u64 = 4096;

/// A medium of which one sync fails, and every other succeeds.
struct Once {
    storage: Around,
    left: Arc<AtomicI64>,
    failed: Arc<AtomicUsize>,
}

impl Once {
    fn new(medium: Medium) -> Self {
        let (left, failed) = (Arc::new(AtomicI64::new(-1)), Arc::new(AtomicUsize::new(0)));
        let (count, seen) = (left.clone(), failed.clone());
        let storage = Around::new(medium, move |kind, access| {
            if kind == Access::Sync && count.fetch_sub(1, Ordering::SeqCst) == 0 {
                seen.fetch_add(1, Ordering::SeqCst);
                return Err(io::Error::from_raw_os_error(5));
            }
            access()
        });
        Self {
            storage,
            left,
            failed,
        }
    }

    fn fail_after(&self, syncs: i64) {
        self.left.store(syncs, Ordering::SeqCst);
    }

    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst) > 0
    }
}

fn qcow2(change: impl Fn(&mut CreateOptions)) -> Medium {
    let mut options = CreateOptions {
        cluster_size: CLUSTER,
        ..CreateOptions::new(Format::Qcow2, 1 << 20)
    };
    change(&mut options);
    Medium::silent().created(&options)
}

fn open(once: &Once, format: Format) -> Image {
    let options = OpenOptions::new(format).writable(true);
    Image::open_storage(Box::new(once.storage.clone()), "disk", &options).unwrap()
}

/// Whoever asks is answered with an error: by flush, by a plan for one, and by close.
fn stays_failed(image: Image) {
    for _ in 0..3 {
        image.flush().unwrap_err();
        image.plan_flush().unwrap_err();
    }
    let error = image.flush_error().expect("kept").to_string();
    assert!(error.contains("earlier flush failed"), "{error}");
    image.close().unwrap_err();
}

#[test]
fn a_failed_flush_is_never_followed_by_a_good_one() {
    for format in [Format::Raw, Format::Qcow2] {
        let medium = match format {
            Format::Raw => {
                let medium = Medium::silent();
                medium.set_len(1 << 20).unwrap();
                medium
            }
            Format::Qcow2 => qcow2(|_| {}),
        };
        let once = Once::new(medium);
        let image = open(&once, format);
        image.write_at(0, &[1; 4096]).unwrap();
        image.flush().unwrap();
        // In place: no table is to be written.
        image.write_at(0, &[2; 4096]).unwrap();
        once.fail_after(0);
        let error = image.flush().unwrap_err().to_string();
        assert!(error.contains("Input/output error"), "{error}");
        stays_failed(image);
    }
}

#[test]
fn a_failed_sync_of_a_data_file_is_one_of_the_image() {
    let data = Once::new(Medium::silent());
    let medium = Medium::silent();
    let options = CreateOptions {
        data_file: Some("data".into()),
        ..CreateOptions::new(Format::Qcow2, 1 << 20)
    };
    qcow::create_in(&medium, &options).unwrap();
    let options = OpenOptions::new(Format::Qcow2)
        .writable(true)
        .data_file(DataFile::Use(Arc::new(data.storage.clone())));
    let image = Image::open_storage(Box::new(medium), "disk", &options).unwrap();
    image.write_at(0, &[1; 4096]).unwrap();
    image.flush().unwrap();
    image.write_at(0, &[2; 4096]).unwrap();
    data.fail_after(0);
    image.flush().unwrap_err();
    stays_failed(image);
}

type Operation = fn(&Image) -> qcow::Result<()>;

/// Of all that writes tables or the header.
const OPERATIONS: [(&str, Operation); 13] = [
    ("write", |image| image.write_at(1 << 19, &[3; 9000])),
    ("zeroes", |image| image.write_zeroes(0, 1 << 16, true)),
    ("discard", |image| image.discard(0, 1 << 16)),
    ("compressed", |image| {
        image.write_compressed(1 << 18, &[7; 4096])
    }),
    ("grow", |image| image.resize(64 << 20, Preallocation::Off)),
    ("shrink", |image| image.resize(1 << 16, Preallocation::Off)),
    ("preallocate", |image| {
        image.resize(2 << 20, Preallocation::Full)
    }),
    ("snapshot", |image| image.snapshot_create("other")),
    ("apply", |image| image.snapshot_apply("first")),
    ("delete", |image| image.snapshot_delete("first")),
    ("bitmap", |image| image.bitmap_add("b", None, true)),
    ("lazy", |image| image.set_lazy_refcounts(true)),
    ("rename", |image| image.change_backing_file(None, None)),
];

#[test]
fn whichever_sync_of_an_operation_fails_close_reports_it() {
    for (name, operation) in OPERATIONS {
        let mut failures = 0;
        for syncs in 0..40 {
            let once = Once::new(qcow2(|_| {}));
            let image = open(&once, Format::Qcow2);
            image.write_at(0, &[1; 60_000]).unwrap();
            image.snapshot_create("first").unwrap();
            image.write_at(0, &[2; 20_000]).unwrap();
            once.fail_after(syncs);
            let done = operation(&image).and_then(|()| image.flush());
            let closed = image.close();
            if once.has_failed() {
                failures += 1;
                assert!(closed.is_err(), "{name}: sync {syncs} failed, {done:?}");
            } else {
                done.and(closed).unwrap();
            }
        }
        assert!(failures > 0, "{name} syncs nothing");
    }
}

#[test]
fn a_flush_by_other_means_that_failed_or_was_given_up_counts_as_failed() {
    for given_up in [false, true] {
        let medium = Medium::silent();
        medium.set_len(1 << 20).unwrap();
        let image = open(&Once::new(medium), Format::Raw);
        let flush = image.plan_flush().unwrap().expect("at once");
        assert_eq!(flush.files(), [0]);
        if given_up {
            drop(flush);
        } else {
            image.flush_failed(&io::Error::from_raw_os_error(5));
            flush.ended().unwrap_err();
        }
        stays_failed(image);
    }
}

#[test]
fn a_file_is_synced_by_one_caller_at_a_time() {
    let medium = Medium::silent();
    medium.set_len(1 << 20).unwrap();
    let (at_sync, arrived) = mpsc::channel();
    let (go, going) = mpsc::channel::<io::Result<()>>();
    let (at_sync, going) = (std::sync::Mutex::new(at_sync), std::sync::Mutex::new(going));
    let storage = Around::new(medium, move |kind, access| {
        if kind == Access::Sync {
            at_sync.lock().unwrap().send(()).unwrap();
            return going.lock().unwrap().recv().unwrap();
        }
        access()
    });
    let options = OpenOptions::new(Format::Raw).writable(true);
    let image = Image::open_storage(Box::new(storage), "disk", &options).unwrap();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| image.flush());
        arrived.recv().unwrap();
        // Of two syncs at once the kernel reports the error to one.
        assert!(image.plan_flush().unwrap().is_none());
        let second = scope.spawn(|| image.flush());
        go.send(Err(io::Error::from_raw_os_error(5))).unwrap();
        first.join().unwrap().unwrap_err();
        second.join().unwrap().unwrap_err();
    });
    assert!(
        arrived.try_recv().is_err(),
        "the second never reached the file"
    );
    image.close().unwrap_err();
}
