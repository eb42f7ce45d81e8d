//! Requests done by other means than this library's.

use std::io;
use std::os::fd::BorrowedFd;

use crate::error::{Error, Result};
use crate::image::{Image, Layer};
use crate::plan::{Place, Plan};
use crate::storage::Storage;
use crate::sync::Flush;

/// Requests done by other means.
impl Image {
    /// The files that plans speak of: this image's, then those of its backing chain. `None` if one of them is no file.
    pub fn files(&self) -> Option<Vec<BorrowedFd<'_>>> {
        let mut files: Vec<BorrowedFd<'_>> = self
            .storages()
            .into_iter()
            .map(Storage::file)
            .collect::<Option<_>>()?;
        if let Some(below) = self.backing() {
            files.extend(below.files()?);
        }
        Some(files)
    }

    fn storages(&self) -> Vec<&dyn Storage> {
        match &self.layer {
            Layer::Raw(raw) => vec![&*raw.storage],
            Layer::Qcow2(qcow2) => qcow2.storages(),
        }
    }

    /// Whether a read of one of [`Image::files`] that met the end of the file at `end` met it too early: somebody else made the file
    /// shorter than it was when it was opened, or has become since by this image's own writes. Then the request failed; else what lies
    /// beyond reads as zeroes, as of a backing file that is shorter than the disk. (A read of `n` bytes at `offset` that
    /// returned `r < n` met the end at `offset + r`.)
    pub fn was_cut_off(&self, file: usize, end: u64) -> bool {
        let storages = self.storages();
        match (storages.get(file), self.backing()) {
            (Some(storage), _) => end < storage.known_len(),
            (None, Some(below)) => below.was_cut_off(file - storages.len(), end),
            (None, None) => false,
        }
    }

    /// Where to read `len` bytes at `offset` of the disk. `None` if that cannot be said at once, or takes more than reading:
    /// [`Image::read_into`] does it then, and may wait.
    ///
    /// # Errors
    /// The range is outside the disk, or the image is damaged.
    pub fn plan_read(&self, offset: u64, len: usize) -> Result<Option<Plan>> {
        self.check_range(offset, len as u64)?;
        let range = match &self.layer {
            Layer::Qcow2(qcow2) if self.is_writable() => match qcow2.hold(offset, len) {
                None => return Ok(None),
                range => range,
            },
            _ => None,
        };
        let mut plan = Plan::new(range);
        Ok(self
            .plan_read_part(&mut plan, 0, offset, (0, len))?
            .then_some(plan))
    }

    /// Adds where the part `(at, len)` of a request is, which begins at `offset` of this disk; its files are counted from `first`.
    pub(super) fn plan_read_part(
        &self,
        plan: &mut Plan,
        first: usize,
        offset: u64,
        (at, len): (usize, usize),
    ) -> Result<bool> {
        let inside = usize::try_from(self.virtual_size().saturating_sub(offset))
            .unwrap_or(usize::MAX)
            .min(len);
        if inside > 0 {
            match &self.layer {
                Layer::Raw(_) => plan.add(
                    at,
                    inside,
                    Place::File {
                        file: first,
                        offset,
                    },
                ),
                Layer::Qcow2(qcow2) => {
                    if !qcow2.plan_read(plan, (self.below(), first), offset, (at, inside))? {
                        return Ok(false);
                    }
                }
            }
        }
        if inside < len {
            plan.add(at + inside, len - inside, Place::Zero);
        }
        Ok(true)
    }

    /// Where to write `len` bytes at `offset` of the disk, if they can be written in place and found there by whoever opens the image
    /// next. `None` if not, or if that cannot be said at once: [`Image::write_from`] does it then, and may wait.
    ///
    /// # Errors
    /// The range is outside the disk, or the image is damaged or not to be written.
    pub fn plan_write(&self, offset: u64, len: usize) -> Result<Option<Plan>> {
        self.check_writable()?;
        self.check_range(offset, len as u64)?;
        match &self.layer {
            Layer::Raw(_) => {
                let mut plan = Plan::new(None);
                plan.add(0, len, Place::File { file: 0, offset });
                Ok(Some(plan))
            }
            Layer::Qcow2(qcow2) => qcow2.plan_write(offset, len),
        }
    }

    /// The files to be put on the medium (fdatasync) for a flush. `None` if there are tables to be written in order, or somebody else
    /// syncs one of the files: [`Image::flush`] does it then, and waits.
    ///
    /// # Errors
    /// A flush has failed before, or the image can no longer be written.
    pub fn plan_flush(&self) -> Result<Option<Flush>> {
        if !self.is_writable() {
            return Ok(Some(Flush::nothing()));
        }
        if let Some(error) = self.flush_error() {
            return Err(error);
        }
        if let Layer::Qcow2(qcow2) = &self.layer
            && !qcow2.may_flush_files()?
        {
            return Ok(None);
        }
        // What the image's own file refers to comes first.
        let files = self.file_syncs.iter().cloned().enumerate().rev();
        Ok(Flush::begin(files))
    }

    /// Why no flush of this image succeeds any more, if so: one of its files (its own or its external data file) could not be synced
    /// since it was opened, in whatever way that was asked for. The kernel reports such a failure once, and what was lost stays lost,
    /// so it is kept until the image is opened anew.
    pub fn flush_error(&self) -> Option<Error> {
        let error = self.sync_state.check().err()?;
        Some(Error::io("flush error", error).within(self.path.display()))
    }

    /// A file could not be synced by the caller, or by a process that served the same guest before: no flush succeeds from now on, and
    /// tables are no longer written, for nobody knows what they would stand on.
    pub fn flush_failed(&self, error: &io::Error) {
        self.sync_state.fail(error);
        if let Layer::Qcow2(qcow2) = &self.layer {
            qcow2.stop(&Error::io("flush error", io::Error::from(error.kind())));
        }
    }
}
