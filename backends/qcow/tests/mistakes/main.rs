//! One test for each mistake that hurt users of other implementations (and of QEMU), by its name. What a medium that
//! fails asks of them is in `failures.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod header;
mod references;
mod tables;
mod writes;

#[path = "../peer/mod.rs"]
mod peer;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use qcow::{CreateOptions, ErrorKind, Format, Image, OpenOptions};

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn created(dir: &Path, options: &CreateOptions) -> PathBuf {
    let path = dir.join("disk.qcow2");
    qcow::create(&path, options).unwrap();
    path
}

pub(crate) fn plain(dir: &Path) -> PathBuf {
    created(dir, &CreateOptions::new(Format::Qcow2, 64 * MIB))
}

pub(crate) fn read_only() -> OpenOptions {
    OpenOptions::new(Format::Qcow2)
}

pub(crate) fn writable() -> OpenOptions {
    read_only().writable(true)
}

pub(crate) fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .write_all_at(bytes, offset)
        .unwrap();
}

pub(crate) fn be64(path: &Path, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    std::fs::File::open(path)
        .unwrap()
        .read_exact_at(&mut bytes, offset)
        .unwrap();
    u64::from_be_bytes(bytes)
}

pub(crate) fn refused(path: &Path, options: &OpenOptions, kind: ErrorKind, says: &str) {
    let error = Image::open(path, options).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(
        error.to_string().contains(says),
        "{error} does not say {says}"
    );
    assert!(
        !error.to_string().contains('\n'),
        "{error} is more than one line"
    );
}
