//! Data clusters that lie in a hole of the file: what preallocated metadata leads to before anything is written.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::engine::Engine;
use crate::storage::extent::Extent;

impl Qcow2 {
    /// Marks data that lies in a hole of the file as zeroes, and cuts the extent where that changes.
    ///
    /// Only for images that look preallocated: otherwise clusters in use have been written, and asking the host
    /// about each of them would cost more than it is worth.
    pub(super) fn look_for_holes(&self, mut extent: Extent) -> Result<Extent> {
        let Some(host) = extent.offset.filter(|_| extent.data) else {
            return Ok(extent);
        };
        if !self.looks_preallocated()? {
            return Ok(extent);
        }
        let storage = self
            .data
            .as_ref()
            .map_or(&*self.storage, |(data, _)| &**data);
        let next = storage
            .next_data(host)
            .map_err(|error| Error::io("cannot find holes", error))?;
        match next {
            Some((start, end)) if start <= host => {
                extent.length = extent.length.min(end.saturating_sub(host).max(1));
            }
            Some((start, _)) => {
                extent.zero = true;
                extent.length = extent.length.min(start - host);
            }
            None => extent.zero = true,
        }
        Ok(extent)
    }

    /// Whether clearly more clusters are in use than the host has space for.
    fn looks_preallocated(&self) -> Result<bool> {
        if let Some(&known) = self.preallocated.get() {
            return Ok(known);
        }
        let failed = |error| Error::io("cannot find the size", error);
        let clusters = self
            .storage
            .len()
            .map_err(failed)?
            .div_ceil(self.cluster_size);
        let real = self.storage.allocated().map_err(failed)? / self.cluster_size;
        let threshold = (real.saturating_mul(10) / 9).max(real + 2);
        let found = clusters >= threshold && self.used_clusters(clusters, threshold)? >= threshold;
        Ok(*self.preallocated.get_or_init(|| found))
    }

    /// How many clusters are in use according to the refcount blocks of the first `clusters`; counting stops at
    /// `enough`. A block that several entries of the table lead to is looked at once.
    fn used_clusters(&self, clusters: u64, enough: u64) -> Result<u64> {
        let blocks = self.run(Engine::refcount_blocks)?;
        let per_block = self.engine_write().geometry().refcount_block_entries();
        let (mut used, mut known) = (0u64, HashMap::new());
        for (index, block) in blocks {
            if index * per_block >= clusters || used >= enough {
                break;
            }
            let here = match known.get(&block.0) {
                Some(&here) => here,
                None => self.run(|engine| engine.used_in_block(block))?,
            };
            known.insert(block.0, here);
            used = used.saturating_add(here);
        }
        Ok(used)
    }
}
