//! What a function on the PCI bus is to the bus.

use std::fmt;

/// A function's place: bus, device, function. There is one bus.
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

/// A base address register as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Which register: 0..=5. A 64-bit one also takes the next.
    pub index: usize,
    /// How much it decodes, in bytes: a power of two.
    pub size: u64,
    /// Where, whether or not decoding is enabled.
    pub address: u64,
    /// Whether it is enabled (the command register's memory bit).
    pub enabled: bool,
}

/// A function on the PCI bus. Accesses come from any vCPU thread, of any width and at any alignment.
pub trait PciFunction: Send + Sync {
    /// Reads its configuration space; `offset` is below 4096.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Writes its configuration space. Returns whether [`Self::bars`] may now say something else.
    fn write_config(&self, offset: u16, data: &[u8]) -> bool;

    /// Its BARs as the registers stand.
    fn bars(&self) -> Vec<Bar>;

    /// The bus now routes BAR `index` from this address, or (`None`) no longer routes it. It is called when that changes only,
    /// and never by two threads at once.
    fn bar_mapped(&self, index: usize, address: Option<u64>);

    /// Reads `offset` bytes into BAR `index`.
    fn read_bar(&self, index: usize, offset: u64, data: &mut [u8]);

    /// Writes `offset` bytes into BAR `index`.
    fn write_bar(&self, index: usize, offset: u64, data: &[u8]);
}
