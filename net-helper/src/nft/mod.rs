//! nftables, spoken to directly: no `nft` program is needed, so none has to be started after confinement.

mod expression;
mod policy;
mod table;

pub(crate) use policy::chains;
pub(crate) use table::{Chain, Table};

/// The one table of this program, of family `inet`. No other is ever touched.
pub(crate) const TABLE: &str = "bulkhead";
