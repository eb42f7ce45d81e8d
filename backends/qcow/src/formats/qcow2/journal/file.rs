//! The file beside an image in which changes of its tables are recorded for the process after a kill
//! ([`crate::formats::qcow2::engine`]'s journal).
//!
//! `NAME.bulkhead-journal` belongs to one session: one time that the image is open for writing by a process that keeps
//! a journal. Its header and the image's name each other:
//!
//! ```text
//! the file's header:  magic, version, birth and inode of the image, session, boot id (2), checksum
//! the image's header: the same of the session, and where the file is (`session.rs`)
//! ```
//!
//! The journal is used if and only if nobody has written to the image since, the file belongs to this very image, and
//! the host has not rebooted (the journal survives that, but what was in the host's memory may not). Opening an image
//! that needs its journal is an error if the journal is not found (`place.rs`): part of the image would be missing.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use super::place::{ImageFolder, Place, second_name};
use super::session::{GO_ON, Session};
use crate::error::{Error, Result};
use crate::formats::qcow2::journal::log::{PART, PARTS, PARTS_AT, checksum, words_of};
use crate::formats::qcow2::journal::progress::Progress;
use crate::formats::qcow2::journal::reader::read as read_notes;
use crate::formats::qcow2::journal::{Journal, JournalContents, JournalWriter};
use crate::storage::Storage;

/// "blkhdjnl"
const MAGIC: u64 = 0x626c_6b68_646a_6e6c;
const VERSION: u64 = 5;
/// The version of a journal whose image does not record the progress.
const WITHOUT_PROGRESS: u64 = 4;
const HEADER_WORDS: usize = 8;
const LENGTH: u64 = PARTS_AT + (PARTS * PART) as u64;
pub(super) const SUFFIX: &str = ".bulkhead-journal";

/// The paths at which the journal of this image can be created: the first, or the second if the first is in use by
/// another image, which had this name before.
///
/// # Errors
/// The image does not exist.
pub fn journal_paths(image: impl AsRef<Path>) -> io::Result<[PathBuf; 2]> {
    let real = std::fs::canonicalize(image)?;
    let inode = std::fs::metadata(&real)?.ino();
    let name = real.file_name().unwrap_or_default().to_string_lossy();
    let names = [format!("{name}{SUFFIX}"), second_name(&name, inode)];
    Ok(names.map(|name| real.with_file_name(name)))
}

/// The header of the file.
pub(super) struct Header {
    words: [u64; HEADER_WORDS],
}

impl Header {
    fn new(session: &Session) -> Self {
        let ([birth, inode], [high, low]) = (session.image, session.boot);
        let mut words = [MAGIC, VERSION, birth, inode, session.number, high, low, 0];
        words[HEADER_WORDS - 1] = Self::sum(&words);
        Self { words }
    }

    /// # Errors
    /// It cannot be read, or is damaged. The header is on the medium before the image's header refers to the journal,
    /// and does not change for as long as it does, so an incomplete one is damage.
    pub(super) fn read(storage: &dyn Storage, path: &Path) -> Result<Self> {
        let mut bytes = [0; HEADER_WORDS * 8];
        let len = bytes.len();
        storage
            .read(0, &mut &mut bytes[..], 0, len)
            .map_err(|error| Error::io(format!("cannot read {}", path.display()), error))?;
        let words = words_of(&bytes).try_into().unwrap_or_default();
        let header = Self { words };
        match header.words[0] == MAGIC && header.words[HEADER_WORDS - 1] == Self::sum(&words) {
            true => Ok(header),
            false => Err(damaged(path)),
        }
    }

    fn sum(words: &[u64; HEADER_WORDS]) -> u64 {
        checksum(0, &words[..HEADER_WORDS - 1])
    }

    pub(super) fn image(&self) -> [u64; 2] {
        [self.words[2], self.words[3]]
    }

    pub(super) fn boot(&self) -> [u64; 2] {
        [self.words[5], self.words[6]]
    }

    pub(super) fn is_of(&self, session: &Session) -> bool {
        [VERSION, WITHOUT_PROGRESS].contains(&self.words[1])
            && self.words[2..HEADER_WORDS - 1] == Self::new(session).words[2..HEADER_WORDS - 1]
    }
}

fn damaged(path: &Path) -> Error {
    Error::corrupt(format!(
        "{} is damaged, and with it what was written to the image since the last flush; {GO_ON}",
        path.display()
    ))
}

/// A journal, or a place where one can be created.
pub(crate) struct JournalFile {
    /// The file, once it is created.
    storage: Option<Arc<dyn Storage>>,
    pub(crate) path: PathBuf,
    image: [u64; 2],
    /// The name to remove when the journal is no longer needed.
    place: Option<Place>,
    next: Next,
    /// Journals to remove once the next session has begun.
    former: Vec<(Arc<dyn Storage>, Place)>,
}

/// Where the journal of the next session will be.
enum Next {
    Nowhere,
    Here,
    /// At this place, in the file that is there, if there is one.
    There(Option<Arc<dyn Storage>>, Place),
}

/// The result of looking for the journal of an image.
pub(crate) struct Beside {
    /// See [`identity`].
    pub(crate) image: [u64; 2],
    /// The journal of the session in the image's header or, if one is to be kept, a place for it; or why it cannot be
    /// used.
    pub(crate) found: Result<Option<JournalFile>>,
}

impl Beside {
    pub(crate) fn of(image: [u64; 2], found: Option<JournalFile>) -> Self {
        let found = Ok(found);
        Self { image, found }
    }
}

/// How a journal is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// To read it.
    Read,
    /// To write its changes to the image.
    Write,
    /// To keep a journal from now on.
    Create,
}

impl JournalFile {
    /// A journal in storage of the caller's own.
    pub(crate) fn in_storage(storage: Arc<dyn Storage>, image: [u64; 2]) -> Self {
        Self {
            storage: Some(storage),
            path: PathBuf::from("journal"),
            image,
            place: None,
            next: Next::Here,
            former: Vec::new(),
        }
    }

    /// The journal of `session` or, if one is to be kept, a place for it, in the folder of the image that was opened as
    /// `file` by the name `path`. `None` if there is none and none can be created.
    ///
    /// # Errors
    /// The session's journal, or what has its name, cannot be trusted or opened.
    pub(crate) fn beside(
        file: &File,
        path: &Path,
        access: Access,
        session: Option<&Session>,
    ) -> Result<Option<Self>> {
        let Some(folder) = ImageFolder::of(file, path) else {
            return Ok(None);
        };
        let found = match session {
            Some(session) => folder.find(session, access)?,
            None => None,
        };
        let next = match access {
            Access::Create => folder.new_journal(),
            Access::Read | Access::Write => None,
        };
        let former = match (&next, session) {
            (Some((_, next)), None) => folder.former(&next.name),
            _ => Vec::new(),
        };
        let image = folder.image();
        let new = |storage, place: Place, next| Self {
            storage,
            path: place.path.clone(),
            image,
            place: Some(place),
            next,
            former,
        };
        Ok(match (found, next) {
            (Some((storage, place)), None) => Some(new(Some(storage), place, Next::Nowhere)),
            (Some((storage, place)), Some((_, next))) if place.name == next.name => {
                Some(new(Some(storage), place, Next::Here))
            }
            (Some((storage, place)), Some((there, next))) => {
                Some(new(Some(storage), place, Next::There(there, next)))
            }
            (None, Some((storage, place))) => Some(new(storage, place, Next::Here)),
            (None, None) => None,
        })
    }

    /// The records of a session, and whether the image records the journal's progress. `None` if this is the journal of
    /// another session.
    ///
    /// # Errors
    /// The journal is damaged: it is incomplete or contradicts itself.
    pub(crate) fn read(
        &self,
        session: &Session,
        cluster_size: u64,
    ) -> Result<Option<(JournalContents, bool)>> {
        let failed = |error| Error::io(format!("cannot read {}", self.path.display()), error);
        let Some(storage) = &self.storage else {
            return Ok(None);
        };
        let header = Header::read(&**storage, &self.path)?;
        if self.image != session.image || !header.is_of(session) {
            return Ok(None);
        }
        if storage.len().map_err(failed)? != LENGTH {
            return Err(damaged(&self.path));
        }
        let mut parts = vec![0; PARTS * PART];
        storage
            .read(PARTS_AT, &mut &mut parts[..], 0, PARTS * PART)
            .map_err(failed)?;
        let left = read_notes(session.number, &words_of(&parts), cluster_size);
        let left = left.ok_or_else(|| damaged(&self.path))?;
        Ok(Some((left, header.words[1] != WITHOUT_PROGRESS)))
    }

    /// Empties the journal for a new session, and syncs it. The image's header must no longer refer to the former
    /// content when this is called. The image records the progress from now on.
    pub(crate) fn begin(
        &mut self,
        progress: Progress,
    ) -> io::Result<(Session, Arc<JournalWriter>, Journal)> {
        match std::mem::replace(&mut self.next, Next::Nowhere) {
            Next::Nowhere => return Err(io::ErrorKind::Unsupported.into()),
            Next::Here => {}
            Next::There(storage, place) => {
                self.remove();
                self.path.clone_from(&place.path);
                self.storage = storage;
                self.place = Some(place);
            }
        }
        let session = Session {
            number: new_session(),
            boot: boot_id().ok_or(io::ErrorKind::Unsupported)?,
            image: self.image,
            journal: self.path.clone(),
        };
        let storage = match (&self.storage, &self.place) {
            (Some(storage), _) => storage.clone(),
            (None, Some(place)) => self.storage.insert(place.create()?).clone(),
            (None, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        storage.set_len(0)?;
        // The space is reserved, so that the journal goes on when the file system is full.
        storage.allocate(0, LENGTH)?;
        let words = Header::new(&session).words;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        storage.write(0, &bytes.as_slice(), 0, bytes.len())?;
        let writer = Arc::new(JournalWriter::new(
            storage.clone(),
            session.number,
            (Some(progress), 0),
        ));
        let journal = Journal::new(writer.clone());
        if !writer.write() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        storage.sync()?;
        for (journal, place) in self.former.drain(..) {
            place.remove(&*journal);
        }
        Ok((session, writer, journal))
    }

    /// Removes the file, or truncates it where this process may not remove it.
    pub(crate) fn remove(&self) {
        let Some(storage) = &self.storage else {
            return;
        };
        // The name is removed before the content: if the process is killed in between, the next session still
        // recognizes the file as that of a former one.
        if let Some(place) = &self.place {
            place.remove(&**storage);
        }
        let _ = storage.set_len(0);
    }

    /// The file, if it exists.
    pub(crate) fn storage(&self) -> Option<&Arc<dyn Storage>> {
        self.storage.as_ref()
    }

    /// Its path, and the device and inode that identify it.
    pub(crate) fn identity(&self) -> (&Path, (u64, u64)) {
        let storage = self.storage.as_ref();
        let [device, inode] = storage.map_or([0; 2], |storage| storage.identity());
        (&self.path, (device, inode))
    }
}

/// What identifies an image: its time of birth and its inode. The device number would not, since it may change with the
/// next mount; nor would the inode alone, since a file that replaces the image may get the same.
pub(crate) fn identity(image: &Metadata) -> [u64; 2] {
    let birth = image.created().ok();
    let birth = birth.and_then(|birth| birth.duration_since(UNIX_EPOCH).ok());
    let birth = birth.map_or(0, |birth| birth.as_nanos() as u64);
    // Not every file system records it.
    let birth = if birth == 0 { image.dev() } else { birth };
    [birth, image.ino()]
}

/// The id of this boot of the host.
pub(crate) fn boot_id() -> Option<[u64; 2]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id = u128::from_str_radix(&digits, 16).ok()?;
    Some([(id >> 64) as u64, id as u64])
}

/// A random number for a session. Its upper bits, which are also in the image's header, are not all zero.
fn new_session() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() | 1 << 63
}
