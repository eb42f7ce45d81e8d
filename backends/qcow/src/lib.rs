//! `qcow`: raw and qcow2 disk images with backing chains.
//!
//! What it may touch: the files it is told to open, and the files those name if the caller opens that gate
//! ([`OpenOptions::backing`], [`OpenOptions::data_file`]). What it must not depend on: any other library of Bulkhead, virtio, KVM,
//! guest memory: callers bring their own memory through [`Destination`] and [`Source`].
//!
//! ```
//! use qcow::{Backing, CreateOptions, Format, Image, OpenOptions};
//!
//! # fn main() -> qcow::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("disk.img");
//! qcow::create(&path, &CreateOptions::new(Format::Raw, 1 << 30))?;
//! let image = Image::open(&path, &OpenOptions::new(Format::Raw).writable(true).backing(Backing::Open))?;
//! image.write_at(4096, b"hello")?;
//! image.flush()?;
//! let mut buf = [0; 5];
//! image.read_at(4096, &mut buf)?;
//! assert_eq!(&buf, b"hello");
//! image.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Threads and durability
//!
//! All methods take `&self`; an [`Image`] is `Send` and `Sync`, and any number of threads may use it at once. A write is durable
//! after a later [`Image::flush`] returned. At any instant the file on the medium is a correct image or one that only leaks clusters.
//!
//! # System calls
//!
//! Once [`Image::open`] has returned, no file is opened any more. I/O needs pread64, pwrite64, preadv, pwritev, fdatasync,
//! fallocate, ftruncate, lseek, fstat and, for the locks, fcntl while opening only; besides what allocation and `std::sync` need (mmap, munmap,
//! brk, futex).

#![forbid(unsafe_code)]

mod address;
mod backing;
mod bitmap;
mod buffer;
mod check;
mod compressed;
mod create;
mod engine;
mod error;
mod extension;
mod feature;
mod geometry;
mod header;
mod image;
mod l2;
mod lock;
mod options;
mod qcow2;
mod range_lock;
mod raw;
mod report;
mod snapshot_table;
mod storage;

pub use address::{ClusterIndex, GuestOffset, HostOffset};
pub use buffer::{Destination, Source};
pub use create::{create, create_in};
pub use error::{Error, ErrorKind, Result};
pub use image::Image;
pub use options::{
    Backing, CompressionType, CreateOptions, DataFile, Discard, Format, Locking, OpenOptions,
    Preallocation,
};
pub use report::{BitmapInfo, CheckResult, Extent, Info, Qcow2Info, Repair, SnapshotInfo};
pub use storage::{HostFile, Storage};
