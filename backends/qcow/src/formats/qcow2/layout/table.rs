//! The kinds of metadata table.

/// Which table a page belongs to, in the order in which they may reach the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Table {
    /// Refcount blocks.
    Refcounts,
    /// The refcount table, which says where the blocks are.
    Blocks,
    L2,
    L1,
}

impl Table {
    /// All of them, in that order.
    pub(crate) const ALL: [Self; 4] = [Self::Refcounts, Self::Blocks, Self::L2, Self::L1];
}
