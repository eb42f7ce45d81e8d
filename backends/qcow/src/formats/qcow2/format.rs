//! qcow2 as a format: what [`crate::Image`] needs of an open image.

use std::path::{Path, PathBuf};

use qcow_format::Format;

use crate::error::{Error, Result};
use crate::formats::backing_disk::BackingDisk;
use crate::formats::plan::Plan;
use crate::formats::qcow2::{DirtyRanges, Qcow2};
use crate::formats::references::References;
use crate::formats::{Bitmaps, Busy, Driver, FormatEntry, Opening, Snapshots};
use crate::options::Preallocation;
use crate::report::{CheckResult, Info, Repair, SnapshotInfo};
use crate::storage::Storage;
use crate::storage::buffer::{Destination, Source};
use crate::storage::extent::Extent;
use crate::storage::range_lock::RangeGuard;

pub(in crate::formats) const ENTRY: FormatEntry = FormatEntry {
    open: |opening: Opening<'_>| {
        let image = Qcow2::open(opening.storage, opening.options, opening.journal)?;
        Ok(Box::new(image))
    },
    check_create: super::create::check,
    create: super::create::create,
    allocate: |_, options| Ok(options.initial_preallocation() == Preallocation::Off),
};

impl Driver for Qcow2 {
    fn format(&self) -> Format {
        Format::Qcow2
    }

    fn size(&self) -> u64 {
        Self::size(self)
    }

    fn cluster_size(&self) -> Option<u64> {
        Some(self.cluster_size)
    }

    fn references(&self) -> References {
        Self::references(self)
    }

    fn set_data_file(&mut self, data: Box<dyn Storage>, path: PathBuf) {
        self.data = Some((data, path));
    }

    fn storages(&self) -> Vec<&dyn Storage> {
        Self::storages(self)
    }

    fn check_readable(&self) -> Result<()> {
        match self.encrypted {
            true => Err(Error::unsupported(
                "the image is encrypted, which is not supported",
            )),
            false => Ok(()),
        }
    }

    fn read(
        &self,
        backing: Option<&dyn BackingDisk>,
        offset: u64,
        dst: &mut dyn Destination,
        (at, len): (usize, usize),
    ) -> Result<()> {
        Self::read(self, backing, offset, dst, at, len)
    }

    fn write(
        &self,
        backing: Option<&dyn BackingDisk>,
        offset: u64,
        src: &dyn Source,
    ) -> Result<()> {
        Self::write(self, backing, offset, src, src.len())
    }

    fn write_zeroes(
        &self,
        backing: Option<&dyn BackingDisk>,
        offset: u64,
        len: u64,
        may_unmap: bool,
    ) -> Result<()> {
        Self::write_zeroes(self, backing, offset, len, may_unmap)
    }

    fn discard(&self, has_backing: bool, offset: u64, len: u64) -> Result<()> {
        Self::discard(self, has_backing, offset, len)
    }

    fn write_compressed(&self, offset: u64, buf: &[u8]) -> Result<()> {
        Self::write_compressed(self, offset, buf)
    }

    fn flush(&self) -> Result<()> {
        Self::flush(self)
    }

    fn close(&self) -> Result<()> {
        Self::close(self)
    }

    fn is_ahead(&self) -> bool {
        Self::is_ahead(self)
    }

    fn secure(&self) -> Result<()> {
        Self::secure(self)
    }

    fn has_journal(&self) -> bool {
        Self::has_journal(self)
    }

    fn journal_file(&self) -> Option<(&Path, (u64, u64))> {
        Self::journal_file(self)
    }

    fn stop(&self, why: &Error) {
        Self::stop(self, why);
    }

    fn try_hold(&self, offset: u64, len: usize) -> Result<Option<RangeGuard>, Busy> {
        match self.writable {
            true => self.hold(offset, len).map(Some).ok_or(Busy),
            false => Ok(None),
        }
    }

    fn plan_read(
        &self,
        plan: &mut Plan,
        backing: (Option<&dyn BackingDisk>, usize),
        offset: u64,
        part: (usize, usize),
    ) -> Result<bool> {
        Self::plan_read(self, plan, backing, offset, part)
    }

    fn plan_write(&self, offset: u64, len: usize) -> Result<Option<Plan>> {
        Self::plan_write(self, offset, len)
    }

    fn data_storage(&self) -> Result<&dyn Storage> {
        Self::data_storage(self)
    }

    fn may_flush_files(&self) -> Result<bool> {
        Self::may_flush_files(self)
    }

    fn map(&self, offset: u64, len: u64, path: &Path) -> Result<Extent> {
        Self::map(self, offset, len, path)
    }

    fn info(&self, path: &Path) -> Result<Info> {
        Self::info(self, path)
    }

    fn resize(
        &self,
        backing: Option<&dyn BackingDisk>,
        size: u64,
        preallocation: Preallocation,
    ) -> Result<()> {
        Self::resize(self, backing, size, preallocation)
    }

    fn preallocate(&self, start: u64, end: u64, preallocation: Preallocation) -> Result<()> {
        Self::preallocate(self, start, end, preallocation)
    }

    fn repaired(&self) -> Option<&CheckResult> {
        self.repaired.get()
    }

    fn check(&self, repair: Repair) -> Result<CheckResult> {
        Self::check(self, repair)
    }

    fn record_backing(&self, name: Option<&str>, format: Option<&str>) -> Result<()> {
        self.change_backing_file(name, format)
    }

    fn make_empty(&self) -> Result<()> {
        Self::make_empty(self)
    }

    fn set_incomplete(&self, incomplete: bool) -> Result<bool> {
        Self::set_incomplete(self, incomplete)
    }

    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }

    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        Some(self)
    }

    fn as_qcow2(&self) -> Option<&Qcow2> {
        Some(self)
    }
}

impl Snapshots for Qcow2 {
    fn list(&self) -> Vec<SnapshotInfo> {
        self.snapshots()
    }

    fn create(&self, name: &str) -> Result<()> {
        self.snapshot_create(name)
    }

    fn apply(&self, backing: Option<&dyn BackingDisk>, id_or_name: &str) -> Result<()> {
        self.snapshot_apply(backing, id_or_name)
    }

    fn delete(&self, id_or_name: &str) -> Result<()> {
        self.snapshot_delete(id_or_name)
    }
}

impl Bitmaps for Qcow2 {
    fn add(&self, name: &str, granularity: u64, enabled: bool) -> Result<()> {
        self.bitmap_add(name, granularity, enabled)
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.bitmap_remove(name)
    }

    fn clear(&self, name: &str) -> Result<()> {
        self.bitmap_clear(name)
    }

    fn enable(&self, name: &str, enabled: bool) -> Result<()> {
        self.bitmap_enable(name, enabled)
    }

    fn ranges(&self, name: &str) -> Result<DirtyRanges> {
        self.bitmap_ranges(name)
    }

    fn merge(
        &self,
        name: &str,
        ranges: &mut dyn Iterator<Item = Result<(u64, u64)>>,
    ) -> Result<()> {
        self.bitmap_merge(name, ranges)
    }
}
