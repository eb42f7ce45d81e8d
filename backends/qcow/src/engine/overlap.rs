//! What holds metadata and must not be overwritten by anything else.

use std::collections::HashSet;

use crate::address::ClusterIndex;

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
