//! The files that an image and its backing chain lie in, and whether they are intact.

use std::io;
use std::os::fd::BorrowedFd;

use crate::error::{Error, Result};
use crate::image::Image;
use crate::storage::Storage;

/// Its files.
impl Image {
    /// The files that plans speak of: this image's, then those of its backing chain. `None` if one of them is no file.
    pub fn files(&self) -> Option<Vec<BorrowedFd<'_>>> {
        let mut files: Vec<BorrowedFd<'_>> = self
            .storages()
            .into_iter()
            .map(Storage::file)
            .collect::<Option<_>>()?;
        if let Some(backing) = self.backing() {
            files.extend(backing.files()?);
        }
        Some(files)
    }

    fn storages(&self) -> Vec<&dyn Storage> {
        self.driver.storages()
    }

    /// Whether a read of one of [`Image::files`] that met the end of the file at `end` met it too early: somebody else
    /// made the file shorter than it was when it was opened, or has become since by this image's own writes. Then the
    /// request failed; else what lies beyond reads as zeroes, as of a backing file that is shorter than the disk. (A
    /// read of `n` bytes at `offset` that returned `r < n` met the end at `offset + r`.)
    pub fn was_cut_off(&self, file: usize, end: u64) -> bool {
        let storages = self.storages();
        match (storages.get(file), self.backing()) {
            (Some(storage), _) => end < storage.known_len(),
            (None, Some(backing)) => backing.was_cut_off(file - storages.len(), end),
            (None, None) => false,
        }
    }

    /// Looks whether each file of the chain is as long as it is known to be.
    ///
    /// # Errors
    /// Somebody else made one shorter, now or at any time since it was opened.
    pub(crate) fn check_files(&self) -> Result<()> {
        for storage in self.storages() {
            storage
                .check_len()
                .map_err(|error| Error::io("data is lost", error).within(self.path.display()))?;
        }
        self.backing.as_deref().map_or(Ok(()), Self::check_files)
    }

    /// For callers whose own writes have ended: looks whether somebody else made a file of this image shorter
    /// meanwhile, which such a write may have hidden. What was read since is then to be read once more, by
    /// [`Image::read_into`]: see [`Image::is_cut`].
    pub fn writes_ended(&self) {
        for storage in self.storages() {
            // It is kept.
            let _ = storage.check_len();
        }
    }

    /// Whether somebody else is known to have made a file of the chain shorter. Does not look.
    pub fn is_cut(&self) -> bool {
        let here = self.storages().into_iter().any(Storage::is_cut);
        here || self.backing.as_deref().is_some_and(Self::is_cut)
    }

    /// Why no flush of this image succeeds any more, if so: one of its files (its own or its external data file) could
    /// not be synced since it was opened, in whatever way that was asked for. The kernel reports such a failure once,
    /// and what was lost stays lost, so it is kept until the image is opened anew. Or somebody else made a file of its
    /// chain shorter.
    pub fn flush_error(&self) -> Option<Error> {
        if let Err(error) = self.sync_state.check() {
            return Some(Error::io("flush error", error).within(self.path.display()));
        }
        match self.is_cut() {
            true => self.check_files().err(),
            false => None,
        }
    }

    /// As [`Self::check_files`], before a flush: none succeeds after a loss.
    pub(super) fn check_before_flush(&self) -> Result<()> {
        self.check_files().inspect_err(|error| {
            self.flush_failed(&io::Error::new(
                io::ErrorKind::UnexpectedEof,
                error.to_string(),
            ));
        })
    }

    /// A file could not be synced by the caller, or by a process that served the same guest before: no flush succeeds
    /// from now on, and tables are no longer written, for nobody knows what they would stand on.
    pub fn flush_failed(&self, error: &io::Error) {
        self.sync_state.fail(error);
        let error = match error.raw_os_error() {
            Some(number) => io::Error::from_raw_os_error(number),
            None => io::Error::new(error.kind(), error.to_string()),
        };
        self.driver.stop(&Error::io("flush error", error));
    }
}
