//! nftables through netlink: a confined process cannot start the `nft` program.

mod rule;
mod table;

pub(crate) use rule::Rule;
pub(crate) use table::{Chain, Hook, Table};

/// The name of this program's table, of family `inet`. The program changes no other table.
pub(crate) const TABLE: &str = "bulkhead";
