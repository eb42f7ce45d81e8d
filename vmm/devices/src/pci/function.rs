//! A function, as the PCI bus sees it.

use std::fmt;

/// The address of a function: bus, device, function. There is one bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf {
    /// The bus, always 0 so far.
    pub bus: u8,
    /// The device on the bus, 0..=31.
    pub device: u8,
    /// The function of the device, always 0 so far.
    pub function: u8,
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02x}:{:02x}.{:x}",
            self.bus, self.device, self.function
        )
    }
}

/// The current content of a base address register (BAR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Which register: 0..=5. A 64-bit one also takes the next.
    pub index: usize,
    /// How many bytes it decodes: a power of two.
    pub size: u64,
    /// The first address it decodes, whether or not decoding is enabled.
    pub address: u64,
    /// Whether decoding is enabled (the command register's memory bit).
    pub enabled: bool,
}

/// A function on the PCI bus. Accesses come from any vCPU thread, of any width and at any alignment.
pub trait PciFunction: Send + Sync {
    /// Reads its configuration space; `offset` is below 4096.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Writes its configuration space. Returns whether [`Self::bars`] may have changed.
    fn write_config(&self, offset: u16, data: &[u8]) -> bool;

    /// Its BARs, as the registers are.
    fn bars(&self) -> Vec<Bar>;

    /// The bus now routes accesses at this address to BAR `index`, or (`None`) no longer does. Called only when that
    /// changes, and by one thread at a time.
    fn bar_mapped(&self, index: usize, address: Option<u64>);

    /// Reads at `offset` in BAR `index`.
    fn read_bar(&self, index: usize, offset: u64, data: &mut [u8]);

    /// Writes at `offset` in BAR `index`.
    fn write_bar(&self, index: usize, offset: u64, data: &[u8]);
}
