//! Refcounts of another width.

use crate::check::Check;
use crate::error::{Error, Result};
use crate::header::Header;

impl Check<'_> {
    /// Writes the refcounts anew, in the width that the header given to [`Check::new`] says, and switches to them.
    ///
    /// # Errors
    /// When a cluster is used more often than such a count can tell; nothing has changed then.
    pub(crate) fn rewrite_refcounts(mut self) -> Result<Header> {
        self.count_all()?;
        let max = self.geometry.refcount_max();
        if let Some((cluster, count)) = self.counts.used_from(0).find(|(_, count)| *count > max) {
            return Err(Error::invalid(format!(
                "Cannot decrease refcount entry width to {} bits: Cluster at offset {:#x} has a refcount of {count}",
                self.geometry.refcount_bits(),
                cluster << self.geometry.cluster_bits
            )));
        }
        self.rebuild_refcounts()?;
        Ok(self.header)
    }
}
