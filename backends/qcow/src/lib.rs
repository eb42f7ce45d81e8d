//! `qcow`: raw and qcow2 disk images with backing chains.
//!
//! What it may touch: the files the caller names, and the files those name if the caller allows it
//! ([`OpenOptions::backing`], [`OpenOptions::data_file`]), as far as [`OpenOptions::allowed_files`] lets them through.
//! What it must not depend on: any other library of Bulkhead but the list of formats, virtio, KVM, guest memory: callers
//! bring their own memory through [`Destination`] and [`Source`].
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
//! An overlay, and the chain it stands on:
//!
//! ```
//! use qcow::{CreateOptions, Format, Image, OpenOptions};
//!
//! # fn main() -> qcow::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let (base, overlay) = (dir.path().join("base.img"), dir.path().join("overlay.qcow2"));
//! qcow::create(&base, &CreateOptions::new(Format::Raw, 1 << 30))?;
//! qcow::create(
//!     &overlay,
//!     &CreateOptions {
//!         backing_file: Some("base.img".into()), // relative to the overlay
//!         backing_format: Some(Format::Raw),
//!         ..CreateOptions::new(Format::Qcow2, 1 << 30)
//!     },
//! )?;
//! let image = Image::open(&overlay, &OpenOptions::new(Format::Qcow2).writable(true).follow_references())?;
//! image.write_at(0, &[1; 4096])?;
//! assert_eq!(image.map(0, 1 << 30)?.depth, 0);
//! assert_eq!(image.map(1 << 20, 1 << 20)?.depth, 1);
//! image.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! What a tool does: keep a state of the disk, go back to it, and look whether the image is sound:
//!
//! ```
//! use qcow::{CreateOptions, ErrorKind, Format, Image, OpenOptions, Repair};
//!
//! # fn main() -> qcow::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("disk.qcow2");
//! qcow::create(&path, &CreateOptions::new(Format::Qcow2, 1 << 30))?;
//! let options = OpenOptions::new(Format::Qcow2).writable(true);
//! let image = Image::open(&path, &options)?;
//! image.write_at(0, b"before")?;
//! image.snapshot_create("clean")?;
//! image.write_at(0, b"after!")?;
//! image.snapshot_apply("clean")?;
//! let mut buf = [0; 6];
//! image.read_at(0, &mut buf)?;
//! assert_eq!(&buf, b"before");
//!
//! // While it is open nobody else may write it, neither with this library nor with QEMU.
//! let second = Image::open(&path, &options).unwrap_err();
//! assert_eq!(second.kind(), ErrorKind::Locked);
//!
//! let found = image.check(Repair::None)?;
//! assert!(found.is_sound() && found.leaks == 0, "{:?}", found.messages);
//! image.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Errors
//!
//! Every method fails with an [`Error`]: an [`ErrorKind`] to act upon, and one line that names the file and what was
//! wrong with it. A request that failed for want of space or permission has changed nothing of the disk outside its
//! range, and the image can be used further. After a failed sync, and after damage was found, nobody knows what is on
//! the medium: all further writing is refused ([`ErrorKind::ReadOnly`]), reading goes on. Dropping an image closes it;
//! only [`Image::close`] says whether that succeeded.
//!
//! # Formats
//!
//! qcow2, versions 2 and 3, all cluster sizes and refcount widths; backing chains, extended L2 entries, compressed
//! clusters (zlib and zstd), zero clusters, preallocation, external data files, internal snapshots, persistent bitmaps,
//! lazy refcounts, check and repair. Encrypted images are refused by name. Raw files are handled as sparse.
//!
//! An image lies in a [`Storage`]: a file ([`HostFile`]), one of the caller's own ([`Image::open_storage`]), or the
//! disk of another image (an `Arc<Image>`).
//!
//! # Threads and durability
//!
//! All methods take `&self`; an [`Image`] is `Send` and `Sync`, and any number of threads may use it at once. A write
//! is durable after a later [`Image::flush`] returned. At any instant the file on the medium is a correct image or one
//! that only leaks clusters, whatever changes: guest data, tables, snapshots, bitmaps, the header. Between flushes with
//! lazy refcounts, and while a downgrade expands the zero clusters of snapshots, it is marked dirty instead, and the
//! next open for writing counts anew. One change is not safe against a power cut: that of a header which leaves no room
//! for another beside it in the first cluster (long names in clusters of at most 2 KiB, or very long unknown
//! extensions).
//!
//! # Hostile images
//!
//! Whatever an image says is checked before it is used; memory is bounded by [`OpenOptions::cache_bytes`] and by the
//! limits of the format; damage found while writing stops all writing and is marked in the image.
//!
//! A check reads each table at most a few times, whoever leads to it, and no holes; what the tables make it read and
//! count is bounded by 16 times what the file really has, and 64 MiB. An image beyond that, which no writer makes, is
//! an error of the check. Files of more than 2^31 - 1 clusters are not checked, which is QEMU's limit, too; a check
//! takes about a byte of memory for each cluster in use.
//!
//! # System calls
//!
//! Once [`Image::open`] has returned, no file is opened any more. I/O needs pread64, pwrite64, preadv, pwritev,
//! fdatasync, fallocate, ftruncate, lseek and fstat; opening also openat, readlink, readlinkat, statx and fcntl (the
//! locks, which closing gives back with it where it may); besides what allocation and `std::sync` need (mmap, munmap,
//! mremap, brk, madvise, futex) and clock_gettime for the date of a snapshot.
//!
//! # Inside
//!
//! No module uses one above it:
//!
//! | module | what it is |
//! |---|---|
//! | `image` | an open disk of any format: its backing chain, creating, planning, resizing, snapshots, bitmaps |
//! | `formats` | the formats, one folder each, behind one trait; plans, references, the backing disk |
//! | `formats/raw` | the file is the disk |
//! | `formats/qcow2` | an open qcow2 image: runs the engine's operations, with plain system calls |
//! | `formats/qcow2/check` | walks and repairs all metadata |
//! | `formats/qcow2/rewrite` | rewrites all metadata: snapshots, another refcount width |
//! | `formats/qcow2/engine` | what the tables mean and in which order they may be written; no I/O |
//! | `formats/qcow2/journal` | what the process after a kill needs to know |
//! | `formats/qcow2/layout` | what is on the medium |
//! | `storage` | files of the host: opening, locking, reading, writing, syncing |
//!
//! Callers that do their own I/O (an io_uring) ask [`Image::plan_read`], [`Image::plan_write`] and
//! [`Image::plan_flush`] where the data of a request lies. The answer comes at once and without I/O. Where that is not
//! possible (a table is not in memory, space must be allocated, a cluster is compressed), the methods that do the whole
//! request can do it, on another thread.

#![forbid(unsafe_code)]

mod error;
mod formats;
mod image;
mod options;
mod report;
mod storage;

pub use error::{Denied, Error, ErrorKind, FileKind, Result, TableFault};
pub use formats::plan::{Part, Place, Plan};
pub use formats::qcow2::DirtyRanges;
pub use formats::qcow2::journal::file::journal_paths;
pub use formats::qcow2::layout::address::{ClusterIndex, GuestOffset, HostOffset};
pub use image::Image;
pub use image::chain::{Chain, Content, LinkFile, RecordedBacking, open_chain};
pub use image::create::{create, create_file, create_in};
pub use options::{
    Backing, CompressionType, CreateOptions, DataFile, Discard, EmptyFile, Journal, Locking,
    OpenOptions, Preallocation,
};
pub use qcow_format::Format;
pub use report::{
    BitmapInfo, CheckResult, Encryption, Info, LuksInfo, LuksSlot, Qcow2Info, Repair, SnapshotInfo,
};
pub use storage::buffer::{Destination, Source};
pub use storage::extent::Extent;
pub use storage::folder::Folder;
pub use storage::gate::{AllowedFiles, open_file};
pub use storage::host_file::HostFile;
pub use storage::sync::Flush;
pub use storage::visited::ChainError;
pub use storage::{Filter, Storage};
