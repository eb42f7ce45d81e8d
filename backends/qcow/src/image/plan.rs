//! Plans of requests, for callers that do their own I/O.

use crate::error::{Error, Result};
use crate::formats::plan::{Place, Plan};
use crate::image::Image;
use crate::storage::Storage;
use crate::storage::sync::Flush;

/// Plans of requests, for callers that do their own I/O.
impl Image {
    /// Where to read `len` bytes at `offset` of the disk. `None` if that cannot be said at once, or takes more than
    /// reading: [`Image::read_into`] does it then, and may wait.
    ///
    /// # Errors
    /// The range is outside the disk, or the image is damaged.
    pub fn plan_read(&self, offset: u64, len: usize) -> Result<Option<Plan>> {
        self.check_range(offset, len as u64)?;
        if self.is_cut() {
            return Ok(None);
        }
        let Ok(range) = self.driver.try_hold(offset, len) else {
            return Ok(None);
        };
        let mut plan = Plan::new(range);
        Ok(self
            .plan_read_part(&mut plan, 0, offset, (0, len))?
            .then_some(plan))
    }

    /// Adds where the part `(at, len)` of a request is, which begins at `offset` of this disk; its files are counted
    /// from `first`.
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
        if inside > 0
            && !self
                .driver
                .plan_read(plan, (self.backing_disk(), first), offset, (at, inside))?
        {
            return Ok(false);
        }
        if inside < len {
            plan.add(at + inside, len - inside, Place::Zero);
        }
        Ok(true)
    }

    /// Where to write `len` bytes at `offset` of the disk, if they can be written in place and found there by whoever
    /// opens the image next. `None` if not, or if that cannot be said at once: [`Image::write_from`] does it then, and
    /// may wait.
    ///
    /// # Errors
    /// The range is outside the disk, or the image is damaged or not to be written. Somebody else made the file
    /// shorter: the write would hide that.
    pub fn plan_write(&self, offset: u64, len: usize) -> Result<Option<Plan>> {
        let (plan, storage) = self.find_in_place(offset, len)?;
        if plan.is_some() {
            storage
                .check_len()
                .map_err(|error| Error::io("write error", error).within(self.path.display()))?;
        }
        Ok(plan)
    }

    /// Whether [`Image::write_from`] would write to places that are known now, and wait for nothing but the file.
    pub fn writes_in_place(&self, offset: u64, len: usize) -> bool {
        matches!(self.find_in_place(offset, len), Ok((Some(_), _)))
    }

    /// Where to write, and the file that this is in.
    fn find_in_place(&self, offset: u64, len: usize) -> Result<(Option<Plan>, &dyn Storage)> {
        self.check_writable()?;
        self.check_range(offset, len as u64)?;
        Ok((
            self.driver.plan_write(offset, len)?,
            self.driver.data_storage()?,
        ))
    }

    /// The files to be put on the medium (fdatasync) for a flush. `None` if there are tables to be written in order, or
    /// somebody else syncs one of the files: [`Image::flush`] does it then, and waits.
    ///
    /// # Errors
    /// A flush has failed before, or the image can no longer be written.
    pub fn plan_flush(&self) -> Result<Option<Flush>> {
        if !self.is_writable() {
            return Ok(Some(Flush::nothing()));
        }
        self.check_before_flush()?;
        if let Some(error) = self.flush_error() {
            return Err(error);
        }
        if !self.driver.may_flush_files()? {
            return Ok(None);
        }
        // What the image's own file refers to comes first.
        let files = self.file_syncs.iter().cloned().enumerate().rev();
        Ok(Flush::begin(files))
    }
}
