//! PCI: one root bus without bridges, its configuration space, and functions whose BARs the guest may size and move.
//!
//! There is no firmware, so [`PciRoot`] gives each BAR its first address. After that the guest writes the registers.

mod access;
mod config;
mod function;
mod host_bridge;
mod msix;
mod root;

pub use access::{CONFIG_PORTS_BASE, CONFIG_PORTS_LEN, ECAM_LEN};
pub use config::{BarSpec, CapabilityError, ConfigSpace, Identity};
pub use function::{Bar, Bdf, PciFunction};
pub use msix::{MSIX_TABLE_ENTRY_LEN, Msix, NO_VECTOR};
pub use root::{PciError, PciRoot, Window};
