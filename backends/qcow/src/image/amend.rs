//! Changes of an image's format options.

use qcow_format::Format;

use crate::error::{Error, Result};
use crate::image::Image;

impl Image {
    /// Drops everything this overlay holds, so that its backing file shows again.
    pub fn make_empty(&self) -> Result<()> {
        self.check_writable()?;
        self.driver
            .make_empty()
            .map_err(|error| error.within(self.path.display()))
    }

    /// Changes the version of a qcow2 image: 2 (`compat=0.10`) or 3 (`compat=1.1`).
    pub fn set_version(&self, version: u32) -> Result<()> {
        self.set_version_reporting(version, &mut |_, _| {})
    }

    /// As [`Image::set_version`], and reports progress: how many L1 entries have been looked through, of how many.
    pub fn set_version_reporting(
        &self,
        version: u32,
        report: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let backing = self.backing_disk();
        self.amend("versions", |qcow2| match version {
            2 => qcow2.downgrade(backing, report),
            3 => qcow2.upgrade(),
            _ => Err(Error::invalid(format!("there is no version {version}"))),
        })
    }

    /// Changes whether refcounts may be stale while the image is in use.
    pub fn set_lazy_refcounts(&self, lazy: bool) -> Result<()> {
        self.amend("refcounts", |qcow2| qcow2.set_lazy_refcounts(lazy))
    }

    /// Changes the width of refcounts.
    pub fn set_refcount_bits(&self, bits: u32) -> Result<()> {
        self.amend("refcounts", |qcow2| qcow2.set_refcount_bits(bits))
    }

    /// Marks the image as one whose content is being replaced (`true`) or is whole again (`false`), durably, together
    /// with all that was written before. Meanwhile it has the corrupt bit, so that after a failure or a crash nobody
    /// writes it, and [`crate::Qcow2Info::corrupt`] is set; a repair clears it. Returns whether the image has such a
    /// mark: raw images and version 2 cannot.
    pub fn set_incomplete(&self, incomplete: bool) -> Result<bool> {
        self.check_writable()?;
        self.driver
            .set_incomplete(incomplete)
            .map_err(|error| error.within(self.path.display()))
    }

    /// The external data file is no longer a raw image of the disk that others may write.
    pub fn clear_data_file_raw(&self) -> Result<()> {
        self.amend("external data file", |qcow2| qcow2.clear_data_file_raw())
    }

    /// Records another name of the external data file, or with an empty one none, without looking at any content.
    pub fn set_data_file_name(&self, name: &str) -> Result<()> {
        self.amend("external data file", |qcow2| qcow2.set_data_file_name(name))
    }

    fn amend(
        &self,
        what: &str,
        change: impl FnOnce(&crate::formats::qcow2::Qcow2) -> Result<()>,
    ) -> Result<()> {
        self.check_writable()?;
        match self.driver.as_qcow2() {
            Some(qcow2) => change(qcow2),
            None => Err(self.driver.has_no(what)),
        }
        .map_err(|error| error.within(self.path.display()))
    }

    /// Records another backing file (`None`: none), without looking at any content.
    pub fn change_backing_file(&self, name: Option<&str>, format: Option<Format>) -> Result<()> {
        self.record_backing_file(name, format.map(Format::name))
    }

    /// As [`Image::change_backing_file`], with a format that this library need not have: what is recorded is opened by
    /// others.
    pub fn record_backing_file(&self, name: Option<&str>, format: Option<&str>) -> Result<()> {
        self.check_writable()?;
        self.driver
            .record_backing(name, format)
            .map_err(|error| error.within(self.path.display()))
    }
}
