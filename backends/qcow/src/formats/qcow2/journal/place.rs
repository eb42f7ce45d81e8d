//! Where journals are: in the folder of the image, under the name that the image had when the journal was created.
//!
//! A journal is a regular file with one name. Its owner is this process's user, the image's owner or root, and nobody
//! else may write it: files that other users put there are neither read nor changed. No other folder is searched,
//! whatever the image's header says, since an image must not be able to make this process open files.

use std::fs::{File, Metadata};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::file::{Access, Header, SUFFIX, boot_id, identity};
use super::session::Session;
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::storage::host_file::HostFile;

/// How many journals of a folder are examined, to find one that was renamed.
const MOST: usize = 4096;

const FLAGS: OFlags = OFlags::CLOEXEC
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NOCTTY);

/// A name in a folder.
pub(super) struct Place {
    folder: Arc<OwnedFd>,
    pub(super) name: String,
    pub(super) path: PathBuf,
}

impl Place {
    pub(super) fn create(&self) -> std::io::Result<Arc<dyn Storage>> {
        let flags = FLAGS | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&self.folder, self.name.as_str(), flags, mode)?;
        Ok(Arc::new(HostFile::new(File::from(file))?))
    }

    /// Removes the name, if it is still that of this file.
    pub(super) fn remove(&self, storage: &dyn Storage) {
        let there = rustix::fs::statat(&self.folder, self.name.as_str(), AtFlags::SYMLINK_NOFOLLOW);
        if there.is_ok_and(|stat| [stat.st_dev, stat.st_ino] == storage.identity()) {
            let _ = rustix::fs::unlinkat(&self.folder, self.name.as_str(), AtFlags::empty());
        }
    }

    /// The file of this name, if it can be trusted; `None` if there is none.
    fn open(&self, access: Access, image: &Metadata) -> Result<Option<Arc<dyn Storage>>> {
        let mode = match access {
            Access::Read => OFlags::RDONLY,
            Access::Write | Access::Create => OFlags::RDWR,
        };
        let flags = FLAGS | OFlags::NONBLOCK | mode;
        let failed = |error| Error::io(format!("cannot open {}", self.path.display()), error);
        match rustix::fs::openat(&self.folder, self.name.as_str(), flags, Mode::empty()) {
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP) => Err(self.untrusted("it is a symbolic link")),
            Err(error) => Err(failed(error.into())),
            Ok(file) => {
                let file = File::from(file);
                self.check_trust(&file, image)?;
                Ok(Some(Arc::new(HostFile::new(file).map_err(failed)?)))
            }
        }
    }

    fn check_trust(&self, journal: &File, image: &Metadata) -> Result<()> {
        let metadata = journal
            .metadata()
            .map_err(|error| Error::io(format!("{}: cannot stat", self.path.display()), error))?;
        let owners = [rustix::process::geteuid().as_raw(), image.uid(), 0];
        let why = match () {
            () if !metadata.is_file() => "it is no regular file",
            () if metadata.nlink() != 1 => "it has several names",
            () if !owners.contains(&metadata.uid()) => "it belongs to somebody else",
            () if metadata.mode() & 0o022 != 0 => "others may write to it",
            () => return Ok(()),
        };
        Err(self.untrusted(why))
    }

    fn untrusted(&self, why: &str) -> Error {
        Error::invalid(format!(
            "{} is not what this program would have made there ({why}); put the image's own journal there",
            self.path.display()
        ))
    }
}

/// The folder of an image, found by the name by which the image was opened.
pub(super) struct ImageFolder {
    folder: Arc<OwnedFd>,
    path: PathBuf,
    /// The name of a journal created now.
    own: String,
    image: Metadata,
    /// Everybody who opens the image finds this folder.
    is_for_all: bool,
}

impl ImageFolder {
    /// `None` if the image is no regular file, or has this name no longer.
    pub(super) fn of(file: &File, path: &Path) -> Option<Self> {
        let image = file.metadata().ok()?;
        if !image.is_file() {
            return None;
        }
        // The folder of the file itself, not of a symbolic link to it.
        let real = std::fs::canonicalize(path).ok()?;
        let (parent, name) = (real.parent()?, real.file_name()?.to_str()?);
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let folder = rustix::fs::open(parent, flags, Mode::empty()).ok()?;
        let there = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        if (there.st_dev, there.st_ino) != (image.dev(), image.ino()) {
            return None;
        }
        // A file that is mounted by itself has another folder for everybody else.
        let beside =
            rustix::fs::fstat(&folder).ok()?.st_dev == there.st_dev && !is_mount(&folder, name);
        let own = format!("{name}{SUFFIX}");
        Some(Self {
            folder: Arc::new(folder),
            path: parent.to_owned(),
            is_for_all: beside && image.nlink() == 1 && own.len() <= 255,
            own,
            image,
        })
    }

    pub(super) fn image(&self) -> [u64; 2] {
        identity(&self.image)
    }

    fn place(&self, name: &str) -> Place {
        Place {
            folder: self.folder.clone(),
            name: name.to_owned(),
            path: self.path.join(name),
        }
    }

    /// The journal of this session: under the name it was created by, the image's present name, or any other.
    ///
    /// # Errors
    /// Something that cannot be trusted or opened has one of the first two names.
    pub(super) fn find(
        &self,
        session: &Session,
        access: Access,
    ) -> Result<Option<(Arc<dyn Storage>, Place)>> {
        // If this is a copy, the journal belongs to the original.
        if session.image != self.image() {
            return Ok(None);
        }
        let mut fault = None;
        let made = session
            .journal_name()
            .filter(|name| name.ends_with(SUFFIX))
            .filter(|name| *name != self.own);
        for name in made.into_iter().chain([self.own.as_str()]) {
            match self.is_at(name, session, access) {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error) => fault = fault.or(Some(error)),
            }
        }
        for name in self.journals() {
            if let Ok(Some(found)) = self.is_at(&name, session, access) {
                return Ok(Some(found));
            }
        }
        fault.map_or(Ok(None), Err)
    }

    fn is_at(
        &self,
        name: &str,
        session: &Session,
        access: Access,
    ) -> Result<Option<(Arc<dyn Storage>, Place)>> {
        let place = self.place(name);
        let Some(storage) = place.open(access, &self.image)? else {
            return Ok(None);
        };
        let header = Header::read(&*storage, &place.path)?;
        Ok(header.is_of(session).then_some((storage, place)))
    }

    /// The names of regular files that may be journals.
    fn journals(&self) -> Vec<String> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let entries =
            rustix::fs::openat(&self.folder, ".", flags, Mode::empty()).and_then(Dir::new);
        let entries = entries.into_iter().flatten().flatten();
        let name = |entry: rustix::fs::DirEntry| {
            let may_be = matches!(entry.file_type(), FileType::RegularFile | FileType::Unknown);
            let name = entry.file_name().to_str().ok()?;
            (may_be && name.ends_with(SUFFIX)).then(|| name.to_owned())
        };
        entries.filter_map(name).take(MOST).collect()
    }

    /// The place for a new journal, with the file there that is no longer needed, if there is one. `None` if not
    /// everybody would find the journal there, or if the file there must be kept.
    pub(super) fn new_journal(&self) -> Option<(Option<Arc<dyn Storage>>, Place)> {
        if !self.is_for_all {
            return None;
        }
        let own = self.place(&self.own);
        let there = own.open(Access::Create, &self.image).ok()?;
        if !self.is_of_another(there.as_deref(), &own) {
            return Some((there, own));
        }
        // The image that it belongs to may have been renamed, and need it.
        let name = self.own.strip_suffix(SUFFIX)?;
        let name = second_name(name, self.image.ino());
        let second = self.place(&name);
        let there = second.open(Access::Create, &self.image).ok()?;
        let is_free = name.len() <= 255 && !self.is_of_another(there.as_deref(), &second);
        is_free.then_some((there, second))
    }

    /// The journals of this image under other names than this one. If the image needs no journal, these were renamed,
    /// and left by a process that was killed after it had last needed them.
    pub(super) fn former(&self, but: &str) -> Vec<(Arc<dyn Storage>, Place)> {
        let journals = self.journals().into_iter().filter(|name| name != but);
        let former = journals.filter_map(|name| {
            let place = self.place(&name);
            let journal = place.open(Access::Write, &self.image).ok()??;
            let header = Header::read(&*journal, &place.path).ok()?;
            (header.image() == self.image()).then_some((journal, place))
        });
        former.collect()
    }

    fn is_of_another(&self, journal: Option<&dyn Storage>, place: &Place) -> bool {
        let header = journal.and_then(|journal| Header::read(journal, &place.path).ok());
        header.is_some_and(|header| {
            header.image() != self.image() && boot_id().is_none_or(|boot| boot == header.boot())
        })
    }
}

/// The second name for the journal of an image, for when the first is in use by another image's.
pub(super) fn second_name(image: &str, inode: u64) -> String {
    format!("{image}.{inode}{SUFFIX}")
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
