//! The file beside an image in which changes of its tables are noted for the process after a kill ([`crate::engine`]'s journal).
//!
//! `NAME.bulkhead-journal` belongs to one session: one time that the image is open for writing by a process that keeps a journal. Its
//! header and the image's name each other:
//!
//! ```text
//! the file's header:  magic, version, device and inode of the image, session, boot id (2), checksum
//! the image's header: the upper 16 autoclear bits are those of the session
//! ```
//!
//! By the format, whoever opens the image for writing and does not know these bits clears them first. So notes are believed if and
//! only if nobody has written to the image since, the file is about this very image, and the host has not started anew (then the
//! notes survived, but perhaps not what was in the host's memory). And it must be a regular file with one name, that nobody but its
//! owner may write, who is this process's user, the image's owner or root: what somebody else put there is neither read nor changed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::engine::{Left, PART, PARTS, PARTS_AT, checksum, read_notes, words_of};
use crate::error::{Error, Result};
use crate::feature;
use crate::storage::{HostFile, Storage};

/// "blkhdjnl"
const MAGIC: u64 = 0x626c_6b68_646a_6e6c;
const VERSION: u64 = 2;
const HEADER_WORDS: usize = 8;
const LENGTH: u64 = PARTS_AT + (PARTS * PART) as u64;
const SUFFIX: &str = ".bulkhead-journal";

/// Where the journal of the image of this name is, if it has one.
///
/// # Errors
/// The image is not there.
pub fn journal_path(image: impl AsRef<Path>) -> io::Result<PathBuf> {
    let mut path = std::fs::canonicalize(image)?.into_os_string();
    path.push(SUFFIX);
    Ok(path.into())
}

/// A journal, or a place for one.
pub(crate) struct JournalFile {
    /// The file, once there is one.
    storage: OnceLock<Arc<dyn Storage>>,
    pub(crate) path: PathBuf,
    image: [u64; 2],
    boot: [u64; 2],
    /// Where it is to be removed from when it is not needed any more.
    place: Option<(OwnedFd, String)>,
}

const FLAGS: OFlags = OFlags::CLOEXEC
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NOCTTY);

/// How a journal is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// To see what is in it.
    Read,
    /// To take over what is in it.
    Write,
    /// To keep one.
    Create,
}

impl JournalFile {
    /// In storage of the caller's own.
    pub(crate) fn in_storage(storage: Arc<dyn Storage>, image: [u64; 2]) -> Option<Self> {
        Some(Self {
            storage: storage.into(),
            path: PathBuf::from("journal"),
            image,
            boot: boot_id()?,
            place: None,
        })
    }

    /// The one beside the image that is open as `file` by the name `path`. `None`: there is none and, where one is to be created, none
    /// is possible: the folder cannot be written, the image has several names or is no regular file.
    ///
    /// # Errors
    /// The image waits for what is in it (`pending`), and there is something of that name that cannot be trusted or opened.
    pub(crate) fn beside(
        file: &File,
        path: &Path,
        access: Access,
        pending: bool,
    ) -> Result<Option<Self>> {
        match Self::open_beside(file, path, access) {
            Err(_) if !pending => Ok(None),
            opened => opened,
        }
    }

    fn open_beside(file: &File, path: &Path, access: Access) -> Result<Option<Self>> {
        let Some(Place {
            folder,
            name,
            path: journal_path,
            image,
        }) = place_of(file, path)
        else {
            let why = "it may wait for a journal, and where that is cannot be found out \
                by this name (it has several, or is mounted by itself): open it by the name it was served by";
            return Err(Error::invalid(format!("{}: {why}", path.display())));
        };
        let failed = |error: Errno| {
            Error::io(
                format!("cannot open {}", journal_path.display()),
                io::Error::from(error),
            )
        };
        let boot = boot_id().ok_or_else(|| {
            let why =
                "without /proc/sys/kernel/random/boot_id nobody knows whether it still counts";
            Error::unsupported(format!("{}: {why}", journal_path.display()))
        })?;
        let flags = FLAGS | OFlags::NONBLOCK;
        let mode = match access {
            Access::Read => OFlags::RDONLY,
            Access::Write | Access::Create => OFlags::RDWR,
        };
        let found = rustix::fs::openat(&folder, name.as_str(), flags | mode, Mode::empty());
        let storage = match found {
            Err(Errno::NOENT) if access == Access::Create => OnceLock::new(),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(untrusted(&journal_path, "it is a symbolic link")),
            found => {
                let file = File::from(found.map_err(failed)?);
                check_trust(&file, &image, &journal_path)?;
                into_storage(file, &journal_path)?.into()
            }
        };
        Ok(Some(Self {
            storage,
            path: journal_path,
            image: [image.dev(), image.ino()],
            boot,
            place: Some((folder, name)),
        }))
    }

    /// What is noted of a session of which the image has these bits. `None`: nothing that counts.
    ///
    /// # Errors
    /// It is damaged: not all of it is there, or it makes no sense.
    pub(crate) fn read(&self, bits: u64, cluster_size: u64) -> Result<Option<(u64, Left)>> {
        let failed = |error| Error::io(format!("cannot read {}", self.path.display()), error);
        let mut header = [0; HEADER_WORDS * 8];
        let Some(storage) = self.storage.get() else {
            return Ok(None);
        };
        let length = storage.len().map_err(failed)?;
        let read = |offset, bytes: &mut [u8]| {
            let len = bytes.len();
            storage.read(offset, &mut &mut *bytes, 0, len)
        };
        read(0, &mut header).map_err(failed)?;
        let words = words_of(&header);
        let Some(&session) = words.get(4) else {
            return Ok(None);
        };
        let damaged = || {
            Error::corrupt(format!(
                "{} is damaged, and with it what was written to the image since the last flush; remove it to go on without",
                self.path.display()
            ))
        };
        let sum = checksum(0, words.get(..HEADER_WORDS - 1).unwrap_or_default());
        // Its header is on the medium before the image's speaks of it, and stays as it is for as long as that does.
        if words.last() != Some(&sum) || words.first() != Some(&MAGIC) {
            return Err(damaged());
        }
        if words != self.header(session) || session & feature::JOURNAL != bits {
            return Ok(None);
        }
        if length != LENGTH {
            return Err(damaged());
        }
        let mut parts = vec![0; PARTS * PART];
        read(PARTS_AT, &mut parts).map_err(failed)?;
        let left = read_notes(session, &words_of(&parts), cluster_size).ok_or_else(damaged)?;
        Ok(Some((session, left)))
    }

    fn header(&self, session: u64) -> Vec<u64> {
        let mut words = vec![MAGIC, VERSION];
        words.extend(self.image);
        words.push(session);
        words.extend(self.boot);
        let sum = checksum(0, &words);
        words.push(sum);
        words
    }

    fn create(&self) -> io::Result<Arc<dyn Storage>> {
        let (folder, name) = self.place.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let flags = FLAGS | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(folder, name.as_str(), flags, mode)?;
        Ok(Arc::new(HostFile::new(file.into())?))
    }

    /// Makes it an empty one of a new session. What it had is gone, which the image's header must say before. Returns the file and the
    /// session.
    pub(crate) fn begin(&self) -> io::Result<(Arc<dyn Storage>, u64)> {
        let session = new_session();
        let storage = match self.storage.get() {
            Some(storage) => storage,
            None => {
                let created = self.create()?;
                self.storage.get_or_init(|| created)
            }
        };
        storage.set_len(0)?;
        // Reserved, so that a full file system does not end the notes.
        storage.allocate(0, LENGTH)?;
        let bytes: Vec<u8> = self
            .header(session)
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        storage.write(0, &bytes.as_slice(), 0, bytes.len())?;
        storage.sync()?;
        Ok((storage.clone(), session))
    }

    /// It is not needed any more: removed or, where this process may not, made empty.
    pub(crate) fn remove(&self) {
        let Some(storage) = self.storage.get() else {
            return;
        };
        let _ = storage.set_len(0);
        if let Some((folder, name)) = &self.place {
            let there = rustix::fs::statat(folder, name.as_str(), AtFlags::SYMLINK_NOFOLLOW);
            if there.is_ok_and(|stat| [stat.st_dev, stat.st_ino] == storage.identity()) {
                let _ = rustix::fs::unlinkat(folder, name.as_str(), AtFlags::empty());
            }
        }
    }

    /// The file, if there is one.
    pub(crate) fn storage(&self) -> Option<&Arc<dyn Storage>> {
        self.storage.get()
    }

    /// What it is called, and the device and inode that tell it from others of that name.
    pub(crate) fn identity(&self) -> (&Path, (u64, u64)) {
        let storage = self.storage.get();
        let [device, inode] = storage.map_or([0; 2], |storage| storage.identity());
        (&self.path, (device, inode))
    }
}

/// Where the journal of an image is.
struct Place {
    folder: OwnedFd,
    name: String,
    path: PathBuf,
    image: std::fs::Metadata,
}

/// `None` if what would be found by its name is not the same for all who open the image.
fn place_of(file: &File, path: &Path) -> Option<Place> {
    let image = file.metadata().ok()?;
    if !image.is_file() || image.nlink() != 1 {
        return None;
    }
    // The file's own place, whatever links lead there.
    let real = std::fs::canonicalize(path).ok()?;
    let (parent, name) = (real.parent()?, real.file_name()?.to_str()?);
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let folder = rustix::fs::open(parent, flags, Mode::empty()).ok()?;
    let there = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let same = (there.st_dev, there.st_ino) == (image.dev(), image.ino());
    // A file that is mounted somewhere has another folder for everybody else.
    let beside =
        rustix::fs::fstat(&folder).ok()?.st_dev == there.st_dev && !is_mount(&folder, name);
    let name = format!("{name}{SUFFIX}");
    (same && beside && name.len() <= 255).then(|| Place {
        path: parent.join(&name),
        folder,
        name,
        image,
    })
}

fn is_mount(folder: &impl AsFd, name: &str) -> bool {
    use rustix::fs::{StatxFlags, statx};
    /// `STATX_ATTR_MOUNT_ROOT`
    const MOUNT_ROOT: u64 = 0x2000;
    let found = statx(
        folder,
        name,
        AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::BASIC_STATS,
    );
    found.is_ok_and(|found| found.stx_attributes.bits() & MOUNT_ROOT != 0)
}

fn into_storage(file: File, path: &Path) -> Result<Arc<dyn Storage>> {
    let storage = HostFile::new(file)
        .map_err(|error| Error::io(format!("cannot open {}", path.display()), error))?;
    Ok(Arc::new(storage))
}

fn check_trust(journal: &File, image: &std::fs::Metadata, path: &Path) -> Result<()> {
    let facts = journal
        .metadata()
        .map_err(|error| Error::io(format!("{}: cannot stat", path.display()), error))?;
    let owners = [rustix::process::geteuid().as_raw(), image.uid(), 0];
    let why = match () {
        () if !facts.is_file() => "it is no regular file",
        () if facts.nlink() != 1 => "it has several names",
        () if !owners.contains(&facts.uid()) => "it belongs to somebody else",
        () if facts.mode() & 0o022 != 0 => "others may write to it",
        () => return Ok(()),
    };
    Err(untrusted(path, why))
}

fn untrusted(path: &Path, why: &str) -> Error {
    Error::invalid(format!(
        "{} is not what this program would have made there ({why}); remove it",
        path.display()
    ))
}

/// What tells this start of the host from others.
fn boot_id() -> Option<[u64; 2]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id = u128::from_str_radix(&digits, 16).ok()?;
    Some([(id >> 64) as u64, id as u64])
}

/// A number that no other session has; its upper bits, which the image's header shows, are not all zero.
fn new_session() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() | 1 << 63
}
