//! The clusters that hold metadata, which nothing else may overwrite.

use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::formats::qcow2::engine::Engine;
use crate::formats::qcow2::journal::Freed;
use crate::formats::qcow2::layout::address::{ClusterIndex, HostOffset};
use crate::formats::qcow2::layout::l2::Cluster;

/// The clusters of the header, the tables and their blocks.
#[derive(Debug, Default)]
pub(crate) struct Overlap {
    clusters: HashSet<ClusterIndex>,
}

impl Overlap {
    /// Returns whether the cluster is new here.
    pub(crate) fn insert(&mut self, cluster: ClusterIndex) -> bool {
        self.clusters.insert(cluster)
    }

    pub(crate) fn remove(&mut self, cluster: ClusterIndex) {
        self.clusters.remove(&cluster);
    }

    pub(crate) fn contains(&self, cluster: ClusterIndex) -> bool {
        // The header.
        cluster.0 == 0 || self.clusters.contains(&cluster)
    }
}

impl Engine {
    /// Guest data must not go where metadata is, nor may metadata be given up as if it were data.
    pub(crate) fn check_overlap(&self, host: HostOffset, len: u64) -> Result<()> {
        if self.external() {
            return Ok(());
        }
        let last = HostOffset(host.0 + len.max(1) - 1);
        self.check_apart("an L2 entry", host, last)
    }

    /// The host clusters that a cluster of the disk takes, if it may give them up.
    pub(super) fn space_of(&self, cluster: &Cluster) -> Result<Option<Freed>> {
        let (host, last) = match *cluster {
            Cluster::Unallocated => return Ok(None),
            Cluster::Allocated { .. } if self.external() => return Ok(None),
            Cluster::Allocated { host, .. } => (host, host),
            Cluster::Compressed { host, len } => (host, HostOffset(host.0 + len - 1)),
        };
        self.check_apart("an L2 entry", host, last)?;
        let (first, last) = (
            self.geometry.cluster_of(host),
            self.geometry.cluster_of(last),
        );
        Ok(Some(Freed::new(
            self.geometry.offset_of(first),
            last.0 - first.0 + 1,
        )))
    }

    /// What `who` leads to, from `host` to `last`, must not be metadata.
    pub(crate) fn check_apart(&self, who: &str, host: HostOffset, last: HostOffset) -> Result<()> {
        let (first, last) = (
            self.geometry.cluster_of(host),
            self.geometry.cluster_of(last),
        );
        match (first.0..=last.0).find(|cluster| self.overlap.contains(ClusterIndex(*cluster))) {
            None => Ok(()),
            Some(cluster) => Err(Error::corrupt(format!(
                "{who} points to cluster {cluster}, which holds metadata"
            ))),
        }
    }

    /// Before the file is cut off at cluster `end`: whether metadata without a refcount lies behind.
    pub(crate) fn check_end(&self, end: ClusterIndex) -> Result<()> {
        match self.overlap.clusters.iter().max() {
            Some(last) if *last >= end => Err(Error::corrupt(format!(
                "cluster {last} holds metadata and has refcount 0"
            ))),
            _ => Ok(()),
        }
    }
}
