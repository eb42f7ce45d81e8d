//! What `info`, `map` and `check` report about an image.

use crate::error::{Error, Result};
use crate::image::Image;
use crate::report::{CheckResult, Info, Repair};
use crate::storage::extent::Extent;

/// Reports.
impl Image {
    /// How the beginning of `offset..offset + len` is stored in this image alone: the first extent, at most `len` long.
    pub fn map_layer(&self, offset: u64, len: u64) -> Result<Extent> {
        self.check_range(offset, len)?;
        if len == 0 {
            return Err(Error::invalid("cannot map a range of 0 bytes"));
        }
        self.driver
            .map(offset, len, &self.path)
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
        self.driver
            .info(&self.path)
            .map_err(|error| error.within(self.path.display()))
    }

    /// What was put right when the image was opened for writing, because whoever wrote it last had not closed it.
    pub fn repaired(&self) -> Option<&CheckResult> {
        self.driver.repaired()
    }

    /// Checks refcounts and tables (qcow2 only), and repairs as far as `repair` allows.
    pub fn check(&self, repair: Repair) -> Result<CheckResult> {
        if repair != Repair::None {
            self.check_writable()?;
        }
        self.driver
            .check(repair)
            .map_err(|error| error.within(self.path.display()))
    }
}
