//! Changes between versions 2 and 3, and of features that only version 3 has.

use std::sync::PoisonError;

use crate::check::Check;
use crate::error::{Error, Result};
use crate::extension::kind;
use crate::feature;
use crate::header::{Header, LENGTH_V3};
use crate::image::Image;
use crate::qcow2::Qcow2;
use crate::report::Repair;

impl Qcow2 {
    /// Makes the image one of version 3.
    pub(crate) fn upgrade(&self) -> Result<()> {
        let _guard = self.ranges.exclusive(0..u64::MAX);
        let mut engine = self.engine();
        engine.check_usable()?;
        if engine.header.version >= 3 {
            return Ok(());
        }
        self.commit(&mut engine, true)?;
        let header = Header {
            version: 3,
            header_length: LENGTH_V3,
            unknown_fields: vec![0; 7],
            ..engine.header.clone()
        };
        let header = self.write_whole_header(&engine.header, header)?;
        self.sync(&mut engine)?;
        engine.restart(header);
        drop(engine);
        self.register_all_metadata()
    }

    /// Makes the image one of version 2, if it uses nothing that version 2 has not. Zero clusters are expanded.
    pub(crate) fn downgrade(&self, below: Option<&Image>) -> Result<()> {
        {
            let engine = self.engine();
            engine.check_usable()?;
            if engine.header.version < 3 {
                return Ok(());
            }
            check_downgrade(&engine.header)?;
        }
        self.expand_zeroes(below)?;
        let _guard = self.ranges.exclusive(0..u64::MAX);
        let mut engine = self.engine();
        while !engine.is_clean() {
            self.commit(&mut engine, true)?;
        }
        let mut header = engine.header.clone();
        header.version = 2;
        header.header_length = 72;
        header.incompatible = 0;
        header.compatible = 0;
        header.autoclear = 0;
        header.unknown_fields.clear();
        header
            .extensions
            .retain(|extension| extension.kind == kind::BACKING_FORMAT);
        let header = self.write_whole_header(&engine.header, header)?;
        self.sync(&mut engine)?;
        engine.restart(header);
        drop(engine);
        self.register_all_metadata()
    }

    /// What reads as zeroes by a flag becomes unallocated, or where something below would show, clusters of zeroes.
    fn expand_zeroes(&self, below: Option<&Image>) -> Result<()> {
        let backed = self.references().backing.is_some();
        let size = self.size();
        let mut at = 0;
        while at < size {
            let extent = self.map(at, size - at, std::path::Path::new(""))?;
            if extent.zero && extent.present && !extent.data {
                if backed {
                    self.write_zero_clusters(below, at, at + extent.length)?;
                } else {
                    self.unallocate(at, extent.length)?;
                }
            }
            at += extent.length;
        }
        Ok(())
    }

    /// Writes zeroes as data, also where the disk reads as zeroes already.
    fn write_zero_clusters(&self, below: Option<&Image>, start: u64, end: u64) -> Result<()> {
        let zeroes = vec![0u8; (end - start).min(1 << 20) as usize];
        let mut at = start;
        while at < end {
            let len = (end - at).min(zeroes.len() as u64) as usize;
            self.write(below, at, &zeroes.get(..len).unwrap_or_default(), len)?;
            at += len as u64;
        }
        Ok(())
    }

    fn unallocate(&self, start: u64, len: u64) -> Result<()> {
        use crate::address::GuestOffset;
        use crate::engine::Drop;
        let end = (start + len).next_multiple_of(self.cluster_size);
        let mut at = start;
        while at < end {
            at = self.run(|engine| {
                engine.drop_range(GuestOffset(at), end - at, Drop::Unallocate, true)
            })?;
        }
        Ok(())
    }

    /// Whether refcounts may be stale while the image is in use.
    pub(crate) fn set_lazy_refcounts(&self, lazy: bool) -> Result<()> {
        let mut engine = self.engine();
        engine.check_usable()?;
        if engine.header.version < 3 {
            let message = "Lazy refcounts only supported with compatibility level 1.1 and above";
            return Err(Error::invalid(message));
        }
        while !engine.is_clean() {
            self.commit(&mut engine, true)?;
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

    /// Counts all clusters anew, in counts of another width, and switches to them with one write of the header.
    pub(crate) fn set_refcount_bits(&self, bits: u32) -> Result<()> {
        if !bits.is_power_of_two() || bits > 64 {
            return Err(Error::invalid(
                "Refcount width must be a power of two and may not exceed 64 bits",
            ));
        }
        let _guard = self.ranges.exclusive(0..u64::MAX);
        let mut engine = self.engine();
        engine.check_usable()?;
        while !engine.is_clean() {
            self.commit(&mut engine, true)?;
        }
        let mut header = engine.header.clone();
        header.refcount_order = bits.ilog2();
        if header.refcount_order == engine.header.refcount_order {
            return Ok(());
        }
        if header.version < 3 {
            return Err(Error::unsupported(
                "refcount widths other than 16 bits require version 3 (compat=1.1)",
            ));
        }
        let snapshots = self
            .snapshots
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let storage = &*self.storage;
        let (found, _) = Check::new(storage, &engine.header, &snapshots, Repair::None)?.run()?;
        if found.corruptions > 0 || found.check_errors > 0 {
            return Err(Error::corrupt(
                "the image is damaged; check and repair it first",
            ));
        }
        let header = Check::new(storage, &header, &snapshots, Repair::All)?.rewrite_refcounts()?;
        drop(snapshots);
        engine.restart(header);
        drop(engine);
        self.register_all_metadata()
    }

    /// Records another name of the external data file.
    pub(crate) fn set_data_file_name(&self, name: &str) -> Result<()> {
        if !self.external {
            let message = "data-file can only be set for images that use an external data file";
            return Err(Error::invalid(message));
        }
        let mut engine = self.engine();
        engine.check_usable()?;
        self.commit(&mut engine, true)?;
        let mut header = engine.header.clone();
        header.set_extension(kind::DATA_FILE, Some(name.as_bytes().to_vec()));
        let header = self.write_whole_header(&engine.header, header)?;
        self.sync(&mut engine)?;
        engine.header = header;
        Ok(())
    }

    /// Writes a header of another length, with the backing file's name moved out of its way.
    fn write_whole_header(&self, old: &Header, mut new: Header) -> Result<Header> {
        match old.backing.clone() {
            Some(name) => {
                let place = (old.backing_offset, name.len() as u64);
                self.write_backing_name(&mut new, &name, place)?;
            }
            None => self.write_header(&new)?,
        }
        Ok(new)
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
    if header.incompatible & !feature::DIRTY != 0 {
        return refuse("Cannot downgrade an image with incompatible features set");
    }
    if header.snapshots > 0 {
        return refuse("Internal snapshots prevent downgrade of image");
    }
    if header.extension(kind::BITMAPS).is_some() {
        return refuse("Cannot downgrade an image with bitmaps");
    }
    Ok(())
}
