//! Where the data of requests is, said at once: what would take I/O to know is not known.

use std::sync::atomic::Ordering;

use crate::error::{Error, ErrorKind, Result};
use crate::formats::backing_disk::BackingDisk;
use crate::formats::plan::{Place, Plan};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::engine::{Engine, Stop, Where};
use crate::formats::qcow2::layout::address::GuestOffset;
use crate::storage::Storage;
use crate::storage::range_lock::RangeGuard;

impl Qcow2 {
    /// The image file, then the external data file if there is one.
    pub(crate) fn storages(&self) -> Vec<&dyn Storage> {
        let data = self.data.as_ref().map(|(data, _)| &**data);
        std::iter::once(&*self.storage).chain(data).collect()
    }

    /// Keeps clusters where they are, unless somebody is about to change that.
    pub(crate) fn hold(&self, offset: u64, len: usize) -> Option<RangeGuard> {
        self.ranges.try_shared(offset..offset + len as u64)
    }

    /// Runs an operation of the engine that changes nothing, if it needs nothing that is not in memory.
    fn at_once<T>(&self, operation: impl FnOnce(&Engine) -> Result<T, Stop>) -> Result<Option<T>> {
        match operation(&self.engine_read()) {
            Ok(done) => Ok(Some(done)),
            // Whoever does the request otherwise will meet the damage, too, and mark it.
            Err(Stop::Fail(error)) if error.kind() == ErrorKind::Corrupt => Ok(None),
            Err(Stop::Fail(error)) => Err(error),
            Err(Stop::Need { .. } | Stop::Reserve { .. } | Stop::RefcountTableFull { .. }) => {
                Ok(None)
            }
        }
    }

    fn data_file(&self) -> usize {
        usize::from(self.data.is_some())
    }

    /// See [`BackingDisk::plan_part`]; `below` with the number of the first file here.
    pub(crate) fn plan_read(
        &self,
        plan: &mut Plan,
        (backing, first): (Option<&dyn BackingDisk>, usize),
        offset: u64,
        (at, len): (usize, usize),
    ) -> Result<bool> {
        if self.external && self.data.is_none() {
            return Ok(false);
        }
        let mut done = 0;
        while done < len {
            let start = offset + done as u64;
            let (pieces, backed) = match self.at_once(|engine| {
                let backed = engine.header.backing.is_some();
                Ok((engine.map(GuestOffset(start), (len - done) as u64)?, backed))
            })? {
                Some(found) => found,
                None => return Ok(false),
            };
            for piece in pieces {
                let part = (at + done, piece.len as usize);
                match (piece.place, backing) {
                    (Where::Data(host), _) => {
                        let file = first + self.data_file();
                        let offset = host.0;
                        plan.add(part.0, part.1, Place::File { file, offset });
                    }
                    (Where::Zero(_), _) => plan.add(part.0, part.1, Place::Zero),
                    (Where::Unallocated, Some(backing)) => {
                        let first = first + self.storages().len();
                        if !backing.plan_part(plan, first, piece.guest.0, part)? {
                            return Ok(false);
                        }
                    }
                    (Where::Unallocated, None) if backed => return Ok(false),
                    (Where::Unallocated, None) => plan.add(part.0, part.1, Place::Zero),
                    (Where::Compressed { .. }, _) => return Ok(false),
                }
                done += part.1;
            }
        }
        Ok(true)
    }

    /// See [`crate::Image::plan_write`].
    pub(crate) fn plan_write(&self, offset: u64, len: usize) -> Result<Option<Plan>> {
        // Bitmaps are marked on the way that may wait.
        if len == 0 || self.bitmaps.tracking.load(Ordering::Acquire) {
            return Ok(None);
        }
        let Some(range) = self.hold(offset, len) else {
            return Ok(None);
        };
        let pieces = self.at_once(|engine| {
            // What leads there may not be in the file yet.
            if engine.is_ahead() {
                return Ok(None);
            }
            engine.plan_in_place(GuestOffset(offset), len as u64)
        })?;
        let Some(pieces) = pieces.flatten() else {
            return Ok(None);
        };
        let mut plan = Plan::new(Some(range));
        let file = self.data_file();
        for piece in pieces {
            if let Where::Data(host) = piece.place {
                let at = (piece.guest.0 - offset) as usize;
                let offset = host.0;
                plan.add(at, piece.len as usize, Place::File { file, offset });
            }
        }
        Ok(Some(plan))
    }

    /// Whether a flush need write no table.
    pub(crate) fn may_flush_files(&self) -> Result<bool> {
        self.engine_read().check_usable()?;
        Ok(self.commits.is_idle_and(|| self.engine_read().is_clean()))
    }

    /// Nothing is written from now on.
    pub(crate) fn stop(&self, error: &Error) {
        self.engine_write().stop(error.to_string());
    }
}
