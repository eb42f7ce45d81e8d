//! How an image is opened and created.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use qcow_format::Format;

use crate::storage::Storage;
use crate::storage::gate::AllowedFiles;
use crate::storage::visited::MAX_DEPTH;

/// What to do about the backing file an image names.
#[derive(Clone, Default)]
pub enum Backing {
    /// Open no other file. Reading what only the backing file holds is then an error, never zeroes.
    #[default]
    Ignore,
    /// Open the whole chain, read-only, every file in its recorded format. A backing file without a recorded format is
    /// refused.
    Open,
}

/// What to do about an external data file.
#[derive(Clone, Default)]
pub enum DataFile {
    /// Do not open it: metadata can be read, data cannot.
    #[default]
    Ignore,
    /// Open the file the image names.
    Open,
    /// Open this file instead.
    Path(PathBuf),
    /// Use this storage instead; no locks are taken.
    Use(Arc<dyn Storage>),
}

/// How the image is locked against other processes (QEMU's, too).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Locking {
    /// As QEMU: one writer, or any number of readers.
    #[default]
    Exclusive,
    /// As QEMU's copies: nobody writes what is read, not even if it is a raw image.
    NoWriters,
    /// As QEMU's `force-share` (`-U`): reads beside a writer. Only for read-only use.
    Shared,
    /// No locks at all.
    Off,
}

/// What a discard does to the host's file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Discard {
    /// Clusters are freed in the image; the host keeps the space for them.
    Ignore,
    /// Freed space is given back to the host.
    #[default]
    Unmap,
}

/// What is done about a journal: the file `NAME.bulkhead-journal` beside a qcow2 image, by which writes that were never
/// flushed are found again after the process that served the image was killed, though it need not wait for a sync when
/// one allocates.
#[derive(Clone, Default)]
pub enum Journal {
    /// What a process left that was killed is made part of the image or, if it is opened read-only, of what is read.
    /// None is kept.
    #[default]
    Replay,
    /// The same, and one is kept while the image is open for writing, where that is possible: for an image of version
    /// 3, in a regular file that has one name, in a folder where this process may make files; without lazy refcounts
    /// and external data file. Otherwise [`Image::secure`](crate::Image::secure) flushes.
    Keep,
    /// The same, in this storage instead of a file beside the image.
    Use(Arc<dyn Storage>),
}

/// How to open an image; see the crate's example.
#[derive(Clone)]
pub struct OpenOptions {
    pub(crate) format: Format,
    pub(crate) writable: bool,
    pub(crate) backing: Backing,
    pub(crate) data_file: DataFile,
    pub(crate) allowed_files: AllowedFiles,
    pub(crate) locking: Locking,
    pub(crate) discard: Discard,
    pub(crate) max_depth: u32,
    pub(crate) cache_bytes: usize,
    pub(crate) for_check: bool,
    pub(crate) for_info: bool,
    pub(crate) refuse_missing: bool,
    pub(crate) snapshot: Option<String>,
    pub(crate) unformatted_backing: Option<Format>,
    pub(crate) windows: Vec<(u64, Option<u64>)>,
    pub(crate) journal: Journal,
}

impl OpenOptions {
    /// Read-only, no other file opened, locked as QEMU would.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            writable: false,
            backing: Backing::Ignore,
            data_file: DataFile::Ignore,
            allowed_files: AllowedFiles::anywhere(),
            locking: Locking::Exclusive,
            discard: Discard::Unmap,
            max_depth: MAX_DEPTH,
            cache_bytes: 8 << 20,
            for_check: false,
            for_info: false,
            refuse_missing: false,
            snapshot: None,
            unformatted_backing: None,
            windows: Vec::new(),
            journal: Journal::Replay,
        }
    }

    /// Open for reading and writing.
    pub fn writable(mut self, writable: bool) -> Self {
        self.writable = writable;
        self
    }

    /// The gate to backing files.
    pub fn backing(mut self, backing: Backing) -> Self {
        self.backing = backing;
        self
    }

    /// The gate to an external data file.
    pub fn data_file(mut self, data_file: DataFile) -> Self {
        self.data_file = data_file;
        self
    }

    /// Shorthand: open the backing chain and the external data file that the image names.
    pub fn follow_references(self) -> Self {
        self.backing(Backing::Open).data_file(DataFile::Open)
    }

    /// Which of the files that images name are let through those gates; by default those anywhere, by their type.
    pub fn allowed_files(mut self, allowed_files: AllowedFiles) -> Self {
        self.allowed_files = allowed_files;
        self
    }

    /// Locks against other processes.
    pub fn locking(mut self, locking: Locking) -> Self {
        self.locking = locking;
        self
    }

    /// What discards do to the host's file.
    pub fn discard(mut self, discard: Discard) -> Self {
        self.discard = discard;
        self
    }

    /// The most images a chain may have, this one included (64).
    pub fn max_depth(mut self, max_depth: u32) -> Self {
        self.max_depth = max_depth;
        self
    }

    /// Bound on the memory that holds metadata tables, per image (8 MiB).
    pub fn cache_bytes(mut self, cache_bytes: usize) -> Self {
        self.cache_bytes = cache_bytes;
        self
    }

    /// Open even what is damaged as far as [`crate::Image::check`] needs it; no automatic repair of a dirty image. Only
    /// so a repair gives up what cannot be found any more: an L2 entry that leads into the middle of a cluster then
    /// reads as zeroes.
    pub fn for_check(mut self, for_check: bool) -> Self {
        self.for_check = for_check;
        self
    }

    /// Only [`Image::info`](crate::Image::info) will be asked: an encrypted image can be opened, too. Only for
    /// read-only use.
    pub fn for_info(mut self, for_info: bool) -> Self {
        self.for_info = for_info;
        self
    }

    /// Reading data clusters that lie wholly past the end of the file is an error. Otherwise they read as zeroes, as in
    /// QEMU: they are those of a copy that was cut off, or, after a power cut, those of data that was never flushed,
    /// which a guest must be able to read.
    pub fn refuse_missing(mut self, refuse_missing: bool) -> Self {
        self.refuse_missing = refuse_missing;
        self
    }

    /// Read the disk as it was in this internal snapshot (an id or a name). Only for read-only use.
    pub fn snapshot(mut self, id_or_name: Option<String>) -> Self {
        self.snapshot = id_or_name;
        self
    }

    /// The image lies in a part of its file: from `offset` on, `size` bytes of it or all that follows. Of several
    /// windows each is a part of the one before. With a size the image cannot grow beyond it.
    pub fn window(mut self, offset: u64, size: Option<u64>) -> Self {
        self.windows.push((offset, size));
        self
    }

    /// What is done about a journal (qcow2 only).
    pub fn journal(mut self, journal: Journal) -> Self {
        self.journal = journal;
        self
    }

    /// The format of backing files that record none; without it such a chain is refused.
    pub fn unformatted_backing(mut self, format: Option<Format>) -> Self {
        self.unformatted_backing = format;
        self
    }
}

/// How clusters of a new qcow2 image are compressed when compressed at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CompressionType {
    /// Raw deflate.
    #[default]
    Zlib,
    /// Zstandard.
    Zstd,
}

impl CompressionType {
    /// The name qemu-img uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

/// What is allocated while an image is created or grown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// The metadata (qcow2 only); the file stays sparse.
    Metadata,
    /// Metadata, and the space by `fallocate`.
    Falloc,
    /// Metadata, and the space by writing zeroes.
    Full,
}

impl Preallocation {
    /// The name qemu-img uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Metadata => "metadata",
            Self::Falloc => "falloc",
            Self::Full => "full",
        }
    }
}

/// What is done with each file of a new image while it is empty and locked: some attributes a file can have only then.
#[derive(Clone, Default)]
pub struct EmptyFile(Option<Arc<Prepare>>);

type Prepare = dyn Fn(&File) + Send + Sync;

impl EmptyFile {
    /// Does `prepare` with each file.
    pub fn new(prepare: impl Fn(&File) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(prepare)))
    }

    pub(crate) fn prepare(&self, file: &File) {
        if let Some(prepare) = &self.0 {
            prepare(file);
        }
    }
}

impl fmt::Debug for EmptyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EmptyFile").field(&self.0.is_some()).finish()
    }
}

/// What to create. The fields are qemu-img's `-o` options.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// The format.
    pub format: Format,
    /// Virtual size in bytes; a multiple of 512 for qcow2.
    pub size: u64,
    /// qcow2 version: 2 (`compat=0.10`) or 3 (`compat=1.1`).
    pub version: u32,
    /// Cluster size in bytes, 512 to 2 MiB; default 64 KiB (and the same with extended L2 entries).
    pub cluster_size: u64,
    /// Width of a refcount in bits: 1, 2, 4, 8, 16, 32 or 64.
    pub refcount_bits: u32,
    /// Name of the backing file, as it is to be recorded.
    pub backing_file: Option<String>,
    /// Format of the backing file; required when there is one.
    pub backing_format: Option<Format>,
    /// Name of the external data file, as it is to be recorded; created if it does not exist.
    pub data_file: Option<String>,
    /// The external data file is also a raw image of the disk.
    pub data_file_raw: bool,
    /// Refcounts may be stale while the image is in use.
    pub lazy_refcounts: bool,
    /// L2 entries with subclusters.
    pub extended_l2: bool,
    /// Compression of compressed clusters.
    pub compression_type: CompressionType,
    /// What to allocate at once.
    pub preallocation: Preallocation,
    /// The disk is to be encrypted with the format's own AES. This library makes such an image, empty, for others to
    /// use, and does not write to it: it cannot be preallocated.
    pub aes: bool,
    /// What is done with each file before anything is in it.
    pub empty_file: EmptyFile,
}

impl CreateOptions {
    /// qemu-img's defaults.
    pub fn new(format: Format, size: u64) -> Self {
        Self {
            format,
            size,
            version: 3,
            cluster_size: 65536,
            refcount_bits: 16,
            backing_file: None,
            backing_format: None,
            data_file: None,
            data_file_raw: false,
            lazy_refcounts: false,
            extended_l2: false,
            compression_type: CompressionType::Zlib,
            preallocation: Preallocation::Off,
            aes: false,
            empty_file: EmptyFile::default(),
        }
    }

    /// What to allocate at once: a raw external data file always has its metadata, so that what others write into it is
    /// part of the disk.
    pub(crate) fn initial_preallocation(&self) -> Preallocation {
        match self.preallocation {
            Preallocation::Off if self.data_file_raw => Preallocation::Metadata,
            asked => asked,
        }
    }
}
