//! What `info`, `map` and `check` report about an image.

use crate::error::{Error, Result};
use crate::image::{Image, Layer};
use crate::options::Format;
use crate::report::{CheckResult, Info, Repair, SnapshotInfo};
use crate::storage::extent::Extent;

/// Reports.
impl Image {
    /// How the beginning of `offset..offset + len` is stored in this image alone: the first extent, at most `len` long.
    pub fn map_layer(&self, offset: u64, len: u64) -> Result<Extent> {
        self.check_range(offset, len)?;
        if len == 0 {
            return Err(Error::invalid("cannot map a range of 0 bytes"));
        }
        match &self.layer {
            Layer::Raw(raw) => raw.map(offset, len, &self.path),
            Layer::Qcow2(qcow2) => qcow2.map(offset, len, &self.path),
        }
        .map_err(|error| error.within(self.path.display()))
    }

    /// How the beginning of `offset..offset + len` is stored in the chain: the first extent, at most `len` long.
    pub fn map(&self, offset: u64, len: u64) -> Result<Extent> {
        let mut extent = self.map_layer(offset, len)?;
        let (mut image, mut depth) = (self, 0);
        while !extent.present {
            let Some(backing) = image.backing.as_deref() else {
                break;
            };
            depth += 1;
            let inside = backing.virtual_size().saturating_sub(offset);
            if inside == 0 {
                // QEMU: beyond a short backing file there are zeroes, decided by the image that lies on it.
                extent = Extent {
                    present: true,
                    zero: true,
                    depth: depth - 1,
                    ..extent
                };
                break;
            }
            extent = backing.map_layer(offset, extent.length.min(inside))?;
            extent.depth = depth;
            image = backing;
        }
        if !extent.present {
            extent.zero = true;
        }
        Ok(extent)
    }

    /// Everything the header says. Opens no file.
    pub fn info(&self) -> Result<Info> {
        match &self.layer {
            Layer::Raw(raw) => Ok(Info {
                filename: self.path.clone(),
                format: Format::Raw,
                virtual_size: raw.size(),
                actual_size: raw.storage.allocated().unwrap_or(0),
                file_size: raw.storage.len().unwrap_or(0),
                cluster_size: None,
                backing_filename: None,
                full_backing_filename: None,
                backing_format: None,
                snapshots: Vec::new(),
                qcow2: None,
            }),
            Layer::Qcow2(qcow2) => qcow2.info(&self.path),
        }
        .map_err(|error| error.within(self.path.display()))
    }

    /// What was put right when the image was opened for writing, because whoever wrote it last had not closed it.
    pub fn repaired(&self) -> Option<&CheckResult> {
        match &self.layer {
            Layer::Raw(_) => None,
            Layer::Qcow2(qcow2) => qcow2.repaired(),
        }
    }

    /// Checks refcounts and tables (qcow2 only), and repairs as far as `repair` allows.
    pub fn check(&self, repair: Repair) -> Result<CheckResult> {
        if repair != Repair::None {
            self.check_writable()?;
        }
        match &self.layer {
            Layer::Raw(_) => Err(Error::unsupported(
                "this image format does not support checks",
            )),
            Layer::Qcow2(qcow2) => qcow2.check(repair),
        }
        .map_err(|error| error.within(self.path.display()))
    }

    /// The internal snapshots.
    pub fn snapshots(&self) -> Result<Vec<SnapshotInfo>> {
        match &self.layer {
            Layer::Raw(_) => Ok(Vec::new()),
            Layer::Qcow2(qcow2) => Ok(qcow2.snapshots()),
        }
    }
}
