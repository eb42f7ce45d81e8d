//! A medium that fails: what was asked for has not happened, and nothing is lost or leaked for it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod peer;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use peer::medium::Medium;
use qcow::{
    CreateOptions, Destination, ErrorKind, Format, Image, OpenOptions, Repair, Source, Storage,
};

const CLUSTER: usize = 4096;

/// A medium whose writes fail while the flag is up.
#[derive(Clone)]
struct Frail(Medium, Arc<AtomicBool>);

impl Storage for Frail {
    fn read(
        &self,
        offset: u64,
        dst: &mut dyn Destination,
        at: usize,
        len: usize,
    ) -> io::Result<()> {
        self.0.read(offset, dst, at, len)
    }

    fn write(&self, offset: u64, src: &dyn Source, at: usize, len: usize) -> io::Result<()> {
        if self.1.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.write(offset, src, at, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.0.write_zeroes(offset, len, unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.discard(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.allocate(offset, len)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        self.0.next_data(offset)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.0.allocated()
    }
}

#[test]
fn writes_that_fail_leak_nothing() {
    let frail = Frail(Medium::silent(), Arc::default());
    let options = CreateOptions {
        cluster_size: CLUSTER as u64,
        ..CreateOptions::new(Format::Qcow2, 1 << 20)
    };
    qcow::create_in(&frail, &options).unwrap();
    let open = OpenOptions::new(Format::Qcow2).writable(true);
    let image = Image::open_storage(Box::new(frail.clone()), "frail", &open).unwrap();
    let text: Vec<u8> = (0..CLUSTER).map(|at| (at / 16 % 200) as u8).collect();
    for cluster in 0..40u64 {
        let offset = cluster * CLUSTER as u64;
        frail.1.store(!cluster.is_multiple_of(2), Ordering::Relaxed);
        let written = match cluster % 3 {
            0 => image.write_at(offset, &text),
            _ => image.write_compressed(offset, &text),
        };
        assert_eq!(
            written.is_err(),
            !cluster.is_multiple_of(2),
            "cluster {cluster}"
        );
    }
    frail.1.store(false, Ordering::Relaxed);
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
    let frail = Frail(Medium::silent(), Arc::default());
    let options = CreateOptions {
        cluster_size: CLUSTER as u64,
        ..CreateOptions::new(Format::Qcow2, 1 << 20)
    };
    qcow::create_in(&frail, &options).unwrap();
    let open = OpenOptions::new(Format::Qcow2).writable(true);
    let image = Image::open_storage(Box::new(frail.clone()), "frail", &open).unwrap();
    image.write_at(0, &[1; 3 * CLUSTER]).unwrap();
    image.flush().unwrap();
    frail.1.store(true, Ordering::Relaxed);

    let refused = image.snapshot_create("s").unwrap_err();

    assert_eq!(refused.kind(), ErrorKind::Io, "{refused}");
    frail.1.store(false, Ordering::Relaxed);
    assert!(image.snapshots().unwrap().is_empty());
    image.write_at(0, &[2; CLUSTER]).unwrap();
    image.snapshot_create("s").unwrap();
    let found = image.check(Repair::None).unwrap();
    assert_eq!((found.leaks, found.corruptions), (0, 0));
    image.close().unwrap();
}
