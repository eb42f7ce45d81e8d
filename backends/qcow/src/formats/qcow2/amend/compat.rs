//! Changes between versions 2 and 3, and of features that only version 3 has.

use std::sync::atomic::Ordering;

use crate::error::{Error, Result};
use crate::formats::backing_disk::BackingDisk;
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::amend::expand::Report;
use crate::formats::qcow2::check::Check;
use crate::formats::qcow2::engine::Engine;
use crate::formats::qcow2::layout::extension::kind;
use crate::formats::qcow2::layout::feature;
use crate::formats::qcow2::layout::header::{Header, LENGTH_V3};
use crate::formats::qcow2::layout::snapshot_table::Snapshot;
use crate::options::CompressionType;
use crate::report::Repair;

impl Qcow2 {
    /// Makes the image one of version 3.
    pub(crate) fn upgrade(&self) -> Result<()> {
        let _guard = self.ranges.exclusive(0..u64::MAX);
        let mut engine = self.engine_exclusive();
        engine.check_usable()?;
        if engine.header.version >= 3 {
            return Ok(());
        }
        self.commit(&mut engine, true)?;
        let snapshots = self.snapshot_list().clone();
        let lacks_size = |snapshot: &Snapshot| snapshot.info.disk_size.is_none();
        if snapshots.iter().any(lacks_size) {
            // In version 3 every snapshot records the size of its disk.
            let header = engine.header.clone();
            self.write_snapshot_table(&mut engine, snapshots, header)?;
            while !engine.is_clean() {
                self.commit(&mut engine, true)?;
            }
        }
        let header = Header {
            version: 3,
            header_length: LENGTH_V3,
            unknown_fields: vec![0; 7],
            ..engine.header.clone()
        };
        self.update_header(&mut engine, header.clone())?;
        engine.restart(header);
        drop(engine);
        self.register_all_metadata()
    }

    /// Makes the image one of version 2, if it uses nothing that version 2 has not. Zero clusters are expanded.
    pub(crate) fn downgrade(
        &self,
        backing: Option<&dyn BackingDisk>,
        report: Report<'_>,
    ) -> Result<()> {
        {
            let engine = self.engine_exclusive();
            engine.check_usable()?;
            if engine.header.version < 3 {
                return Ok(());
            }
            check_downgrade(&engine.header)?;
        }
        self.check_snapshots_of_version_2()?;
        {
            let _guard = self.ranges.exclusive(0..u64::MAX);
            self.check_compression_of_version_2(&mut self.engine_exclusive())?;
        }
        self.expand_zeroes(backing, report)?;
        let _guard = self.ranges.exclusive(0..u64::MAX);
        let mut engine = self.engine_exclusive();
        while !engine.is_clean() {
            self.commit(&mut engine, true)?;
        }
        // What was written meanwhile, too.
        self.check_compression_of_version_2(&mut engine)?;
        self.end_journal(&mut *engine)?;
        let mut header = engine.header.clone();
        header.version = 2;
        header.header_length = 72;
        header.incompatible = 0;
        header.compatible = 0;
        header.autoclear = 0;
        header.unknown_fields.clear();
        header.compression = CompressionType::Zlib;
        header
            .extensions
            .retain(|extension| !matches!(extension.kind, kind::FEATURE_NAMES | kind::DATA_FILE));
        self.update_header(&mut engine, header.clone())?;
        engine.restart(header);
        drop(engine);
        self.zstd.store(false, Ordering::Relaxed);
        self.register_all_metadata()
    }

    /// Version 2 knows zlib only: what is compressed otherwise, on the disk or in a snapshot, would be lost.
    fn check_compression_of_version_2(&self, engine: &mut Engine) -> Result<()> {
        if engine.header.compression == CompressionType::Zlib {
            return Ok(());
        }
        let snapshots = self.snapshot_list().clone();
        let active = (engine.header.l1_offset, engine.header.l1_size);
        let kept = snapshots
            .iter()
            .map(|snapshot| (snapshot.l1_offset, snapshot.l1_size));
        for (offset, entries) in std::iter::once(active).chain(kept) {
            let l1 =
                self.run_locked(engine, |engine| engine.snapshot_l1(offset, entries.into()))?;
            for (_, table) in engine.l2_tables(&l1)? {
                if self.run_locked(engine, |engine| engine.has_compressed(table))? {
                    return Err(Error::unsupported(
                        "Cannot downgrade an image with zstd compression type and existing compressed clusters",
                    ));
                }
            }
        }
        Ok(())
    }

    /// Version 2 records neither the size of a snapshot's disk nor a machine state of 4 GiB and more.
    fn check_snapshots_of_version_2(&self) -> Result<()> {
        let size = self.size();
        let fits = |snapshot: &Snapshot| {
            snapshot.info.disk_size.is_none_or(|then| then == size)
                && u32::try_from(snapshot.info.vm_state_size).is_ok()
        };
        if self.snapshot_list().iter().all(fits) {
            return Ok(());
        }
        Err(Error::unsupported(
            "Internal snapshots prevent downgrade of image",
        ))
    }

    /// Whether refcounts may be stale while the image is in use.
    pub(crate) fn set_lazy_refcounts(&self, lazy: bool) -> Result<()> {
        let mut engine = self.engine_exclusive();
        engine.check_usable()?;
        if engine.header.version < 3 {
            let message = "Lazy refcounts only supported with compatibility level 1.1 and above";
            return Err(Error::invalid(message));
        }
        while !engine.is_clean() {
            self.commit(&mut engine, true)?;
        }
        if lazy {
            // After a crash, refcounts are rebuilt from the tables in the file before a journal could be replayed.
            self.end_journal(&mut *engine)?;
        }
        let mut header = engine.header.clone();
        if lazy {
            header.compatible |= feature::LAZY_REFCOUNTS;
        } else {
            header.compatible &= !feature::LAZY_REFCOUNTS;
            header.incompatible &= !feature::DIRTY;
        }
        self.update_header(&mut engine, header)
    }

    /// Sets the corrupt bit while the disk's content is replaced, or clears it: an incomplete copy is recognized, even
    /// after a crash, and cannot be written. Version 2 has no such bit.
    pub(crate) fn set_incomplete(&self, incomplete: bool) -> Result<bool> {
        let _guard = self.ranges.exclusive(0..u64::MAX);
        let mut engine = self.engine_exclusive();
        engine.check_usable()?;
        if engine.header.version < 3 {
            return Ok(false);
        }
        while !engine.is_clean() {
            self.commit(&mut engine, true)?;
        }
        let mut header = engine.header.clone();
        if incomplete {
            header.incompatible |= feature::CORRUPT;
        } else {
            header.incompatible &= !feature::CORRUPT;
        }
        self.update_header(&mut engine, header)?;
        Ok(true)
    }

    /// Counts all clusters anew, in counts of another width, and switches to them with one write of the header.
    pub(crate) fn set_refcount_bits(&self, bits: u32) -> Result<()> {
        if !bits.is_power_of_two() || bits > 64 {
            return Err(Error::invalid(
                "Refcount width must be a power of two and may not exceed 64 bits",
            ));
        }
        let _guard = self.ranges.exclusive(0..u64::MAX);
        let mut engine = self.engine_exclusive();
        engine.check_usable()?;
        while !engine.is_clean() {
            self.commit(&mut engine, true)?;
        }
        let order = bits.ilog2();
        if order == engine.header.refcount_order {
            return Ok(());
        }
        if engine.header.version < 3 {
            return Err(Error::unsupported(
                "refcount widths other than 16 bits require version 3 (compat=1.1)",
            ));
        }
        let check = Check::new(&*self.storage, &engine.header, Repair::None)?;
        let header = check.rewrite_refcounts(order)?;
        engine.replace_tables(header);
        drop(engine);
        self.register_all_metadata()
    }

    /// The external data file is no longer a raw image of the disk that others may write.
    pub(crate) fn clear_data_file_raw(&self) -> Result<()> {
        let mut engine = self.engine_exclusive();
        engine.check_usable()?;
        self.commit(&mut engine, true)?;
        let mut header = engine.header.clone();
        header.autoclear &= !feature::RAW_EXTERNAL;
        self.update_header(&mut engine, header)
    }

    /// Records another name of the external data file; an empty one: none.
    pub(crate) fn set_data_file_name(&self, name: &str) -> Result<()> {
        if !self.external {
            let message = "data-file can only be set for images that use an external data file";
            return Err(Error::invalid(message));
        }
        let mut engine = self.engine_exclusive();
        engine.check_usable()?;
        self.commit(&mut engine, true)?;
        let mut header = engine.header.clone();
        let recorded = (!name.is_empty()).then(|| name.as_bytes().to_vec());
        header.set_extension(kind::DATA_FILE, recorded);
        self.update_header(&mut engine, header)
    }
}

fn check_downgrade(header: &Header) -> Result<()> {
    let refuse = |message: &str| Err(Error::unsupported(message));
    if header.refcount_order != 4 {
        return refuse("compat=0.10 requires refcount_bits=16");
    }
    if header.external_data() {
        return refuse("Cannot downgrade an image with a data file");
    }
    let others = header.incompatible & !(feature::DIRTY | feature::COMPRESSION);
    if others != 0 {
        return refuse(&format!(
            "Cannot downgrade an image with incompatible features {others:#x} set"
        ));
    }
    if header.extension(kind::BITMAPS).is_some() {
        return refuse("Cannot downgrade an image with bitmaps");
    }
    Ok(())
}
