//! Data clusters that lie wholly past the end of the file, for instance because it is a copy that was cut off.
//!
//! A writer of the format leaves at most a part of the last cluster past the end. After a power cut, however, tables may
//! lead there, too: QEMU writes a table without waiting for the data it leads to, if that is of whole clusters. Such
//! data was never flushed, and what reads it goes on with whatever is there. Nothing in the image shows which of the
//! two it is. So these clusters read as zeroes, as in QEMU, unless [`crate::OpenOptions::refuse_missing`] is set.

use crate::error::{Error, Result};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::layout::address::HostOffset;
use crate::storage::extent::Extent;

impl Qcow2 {
    /// How many of `len` bytes at `host` come before the first cluster that lies wholly past the end of the file.
    fn before_end(&self, host: u64, len: u64) -> Result<u64> {
        let size = self.data_storage()?.len();
        let size = size.map_err(|error| Error::io("cannot find the size", error))?;
        let end = size
            .checked_next_multiple_of(self.cluster_size)
            .unwrap_or(u64::MAX);
        Ok(end.saturating_sub(host).min(len))
    }

    /// Refuses to read what is missing, if the image was opened so.
    pub(super) fn check_missing(&self, host: HostOffset, len: u64) -> Result<()> {
        if !self.refuse_missing {
            return Ok(());
        }
        let there = self.before_end(host.0, len)?;
        if there == len {
            return Ok(());
        }
        let offset = host.0.saturating_add(there);
        Err(Error::corrupt(format!(
            "the data at {offset:#x} lies past the end of the file"
        )))
    }

    /// Marks data that is missing, and cuts the extent where that begins.
    pub(super) fn look_for_missing(&self, mut extent: Extent) -> Result<Extent> {
        let is_open = !self.external || self.data.is_some();
        let Some(host) = extent.offset.filter(|_| extent.data && is_open) else {
            return Ok(extent);
        };
        match self.before_end(host, extent.length)? {
            0 => extent.missing = true,
            there => extent.length = there,
        }
        Ok(extent)
    }
}
