//! Counting what persistent bitmaps use.

use crate::error::{Error, Result};
use crate::formats::qcow2::check::Check;
use crate::formats::qcow2::layout::bitmap::{self, BitmapsExtension};

impl Check<'_> {
    /// Counts the directory, the tables and the bits. A directory that cannot be read ends the check, because what it
    /// leads to would be taken for free.
    pub(in crate::formats::qcow2) fn count_bitmaps(&mut self) -> Result<()> {
        let extension = match BitmapsExtension::of(&self.header) {
            Ok(None) => return Ok(()),
            Ok(Some(extension)) => extension,
            Err(error) => return self.broken_bitmaps(&error),
        };
        let (offset, len) = (extension.directory_offset, extension.directory_size);
        self.count(offset, len, 1);
        let bitmaps = match bitmap::read_directory(self.storage, &self.header) {
            Ok(bitmaps) => bitmaps,
            Err(error) => return self.broken_bitmaps(&error),
        };
        for bitmap in bitmaps {
            let (offset, entries) = (bitmap.table_offset, u64::from(bitmap.table_size));
            self.count_table(offset, entries)?;
            let mut broken = None;
            self.each_word(offset, entries, |check, _, entry| {
                match bitmap::table_entry(&check.geometry, entry) {
                    Ok(Some(offset)) => check.count(offset, check.geometry.cluster_size(), 1),
                    Ok(None) => {}
                    Err(error) => broken = Some(error),
                }
                Ok(())
            })?;
            if let Some(error) = broken {
                return self.broken_bitmaps(&error.within(format!("bitmap '{}'", bitmap.name)));
            }
        }
        Ok(())
    }

    fn broken_bitmaps(&mut self, error: &Error) -> Result<()> {
        self.corruption(format!("ERROR {error}"));
        Err(Error::corrupt("Invalid argument"))
    }
}
