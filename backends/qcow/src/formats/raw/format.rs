//! Raw as a format: what [`crate::Image`] needs of an open image.

use std::path::Path;

use qcow_format::Format;

use crate::error::{Error, Result};
use crate::formats::backing_disk::BackingDisk;
use crate::formats::plan::{Place, Plan};
use crate::formats::raw::{Raw, allocate_first_block, preallocate};
use crate::formats::{Driver, FormatEntry, Opening};
use crate::options::{CreateOptions, Discard, Preallocation};
use crate::report::Info;
use crate::storage::Storage;
use crate::storage::buffer::{Destination, Source};
use crate::storage::extent::Extent;

pub(in crate::formats) const ENTRY: FormatEntry = FormatEntry {
    open: |opening: Opening<'_>| {
        let discard = opening.options.discard == Discard::Unmap;
        Ok(Box::new(Raw::new(opening.storage, opening.start, discard)?))
    },
    check_create,
    create,
    allocate,
};

fn check_create(options: &CreateOptions) -> Result<()> {
    if options.backing_file.is_some() {
        return Err(Error::invalid("raw images have no backing file"));
    }
    if options.preallocation == Preallocation::Metadata {
        return Err(Error::invalid("raw images have no metadata to preallocate"));
    }
    Ok(())
}

fn create(storage: &dyn Storage, options: &CreateOptions) -> Result<()> {
    storage
        .set_len(options.size)
        .map_err(|error| Error::io("cannot truncate", error))
}

fn allocate(storage: &dyn Storage, options: &CreateOptions) -> Result<bool> {
    if options.preallocation == Preallocation::Off {
        allocate_first_block(storage, options.size)
            .map_err(|error| Error::io("cannot truncate", error))?;
    }
    preallocate(storage, 0, options.size, options.preallocation)?;
    Ok(true)
}

impl Driver for Raw {
    fn format(&self) -> Format {
        Format::Raw
    }

    fn size(&self) -> u64 {
        Self::size(self)
    }

    fn storages(&self) -> Vec<&dyn Storage> {
        vec![&*self.storage]
    }

    fn read(
        &self,
        _backing: Option<&dyn BackingDisk>,
        offset: u64,
        dst: &mut dyn Destination,
        (at, len): (usize, usize),
    ) -> Result<()> {
        Self::read(self, offset, dst, at, len)
    }

    fn write(
        &self,
        _backing: Option<&dyn BackingDisk>,
        offset: u64,
        src: &dyn Source,
    ) -> Result<()> {
        Self::write(self, offset, src, 0, src.len())
    }

    fn write_zeroes(
        &self,
        _backing: Option<&dyn BackingDisk>,
        offset: u64,
        len: u64,
        may_unmap: bool,
    ) -> Result<()> {
        Self::write_zeroes(self, offset, len, may_unmap)
    }

    fn discard(&self, _has_backing: bool, offset: u64, len: u64) -> Result<()> {
        Self::discard(self, offset, len)
    }

    fn flush(&self) -> Result<()> {
        Self::flush(self)
    }

    fn plan_read(
        &self,
        plan: &mut Plan,
        (_, first): (Option<&dyn BackingDisk>, usize),
        offset: u64,
        (at, len): (usize, usize),
    ) -> Result<bool> {
        let file = first;
        plan.add(at, len, Place::File { file, offset });
        Ok(true)
    }

    fn plan_write(&self, offset: u64, len: usize) -> Result<Option<Plan>> {
        let mut plan = Plan::new(None);
        plan.add(0, len, Place::File { file: 0, offset });
        Ok(Some(plan))
    }

    fn data_storage(&self) -> Result<&dyn Storage> {
        Ok(&*self.storage)
    }

    fn map(&self, offset: u64, len: u64, path: &Path) -> Result<Extent> {
        Self::map(self, offset, len, path)
    }

    fn info(&self, path: &Path) -> Result<Info> {
        Ok(Info {
            filename: path.to_path_buf(),
            format: Format::Raw,
            virtual_size: self.size(),
            actual_size: self.storage.allocated().unwrap_or(0),
            file_size: self.storage.len().unwrap_or(0),
            cluster_size: None,
            backing_filename: None,
            full_backing_filename: None,
            backing_format: None,
            snapshots: Vec::new(),
            qcow2: None,
        })
    }

    fn resize(
        &self,
        _backing: Option<&dyn BackingDisk>,
        size: u64,
        preallocation: Preallocation,
    ) -> Result<()> {
        let old = self.size();
        Self::resize(self, size)?;
        if old == 0 && preallocation == Preallocation::Off {
            allocate_first_block(&*self.storage, size)
                .map_err(|error| Error::io("write error", error))?;
        }
        preallocate(&*self.storage, old, size, preallocation).inspect_err(|_| {
            // The first error is the one to report.
            let _ = Self::resize(self, old);
        })
    }

    fn preallocate(&self, start: u64, end: u64, preallocation: Preallocation) -> Result<()> {
        preallocate(&*self.storage, start, end, preallocation)
    }
}
