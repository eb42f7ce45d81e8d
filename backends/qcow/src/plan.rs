//! Where the data of a request is, for one who moves it by other means than this library's.

use std::io;
use std::os::fd::BorrowedFd;

use crate::error::{Error, Result};
use crate::image::{Image, Layer};
use crate::range_lock::RangeGuard;
use crate::storage::Storage;

/// Where a part of a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: it reads as zeroes.
    Zero,
    /// In a file. What lies beyond its end reads as zeroes.
    File {
        /// Which of [`Image::files`].
        file: usize,
        /// Where in it.
        offset: u64,
    },
}

/// A part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it begins in the request.
    pub at: usize,
    /// Its length in bytes.
    pub len: usize,
    /// Where it is.
    pub place: Place,
}

/// All parts of a request, in order. They stay where they are until this is dropped.
#[derive(Debug)]
pub struct Plan {
    /// The parts, without a gap.
    pub parts: Vec<Part>,
    _range: Option<RangeGuard>,
}

impl Plan {
    pub(crate) fn new(range: Option<RangeGuard>) -> Self {
        Self {
            parts: Vec::new(),
            _range: range,
        }
    }

    /// Adds a part that begins `at` bytes into the request; one with what it goes on from.
    pub(crate) fn add(&mut self, at: usize, len: usize, place: Place) {
        if let Some(last) = self.parts.last_mut() {
            let follows = match (last.place, place) {
                (Place::Zero, Place::Zero) => true,
                (Place::File { file, offset }, Place::File { file: f, offset: o }) => {
                    file == f && offset + last.len as u64 == o
                }
                _ => false,
            };
            if follows {
                last.len += len;
                return;
            }
        }
        self.parts.push(Part { at, len, place });
    }
}

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
            .plan_part(&mut plan, 0, offset, (0, len))?
            .then_some(plan))
    }

    /// Adds where the part `(at, len)` of a request is, which begins at `offset` of this disk; its files are counted from `first`.
    pub(crate) fn plan_part(
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
                    let below = self.backing().map(AsRef::as_ref);
                    if !qcow2.plan_read(plan, (below, first), offset, (at, inside))? {
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

    /// The files to be put on the medium (fdatasync) for a flush; if that fails, [`Image::flush_failed`] must be told. `None` if there
    /// are tables to be written in order: [`Image::flush`] does it then, and waits.
    ///
    /// # Errors
    /// The image can no longer be written.
    pub fn plan_flush(&self) -> Result<Option<Vec<usize>>> {
        if !self.is_writable() {
            return Ok(Some(Vec::new()));
        }
        match &self.layer {
            Layer::Raw(_) => Ok(Some(vec![0])),
            Layer::Qcow2(qcow2) => qcow2.plan_flush(),
        }
    }

    /// A file could not be put on the medium. Nobody knows what is there now, so nothing is written upon it.
    pub fn flush_failed(&self, error: &io::Error) {
        if let Layer::Qcow2(qcow2) = &self.layer {
            qcow2.stop(&Error::io("flush error", io::Error::from(error.kind())));
        }
    }
}
