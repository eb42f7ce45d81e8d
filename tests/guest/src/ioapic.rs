//! The I/O APIC: which vector an interrupt line interrupts with, and whether it may.

use crate::{apic, memory};

const SELECT: usize = 0;
const WINDOW: usize = 0x10;
const FIRST_ENTRY: u32 = 0x10;
const MASKED: u32 = 1 << 16;

/// The I/O APIC that has the first lines.
pub(crate) struct IoApic {
    registers: *mut u8,
}

impl IoApic {
    /// The one at this address.
    pub(crate) fn new(address: u64) -> Self {
        Self {
            registers: memory::map_device(address, 0x20),
        }
    }

    /// Lets edges on a line interrupt this processor with this vector, or no longer does.
    pub(crate) fn set(&self, line: u32, vector: u8, masked: bool) {
        let entry = FIRST_ENTRY + 2 * line;
        let mask = if masked { MASKED } else { 0 };
        self.write(entry + 1, u32::from(apic::id()) << 24);
        // An edge, active high, to one processor by its number: all other bits are zero.
        self.write(entry, mask | u32::from(vector));
    }

    fn write(&self, register: u32, value: u32) {
        // SAFETY: the two registers of the I/O APIC, which are mapped; vectors that are used have gates that count.
        unsafe {
            memory::write_u32(self.registers.add(SELECT), register);
            memory::write_u32(self.registers.add(WINDOW), value);
        }
    }
}
