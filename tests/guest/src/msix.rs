//! MSI-X: which vector a device interrupts with, and whether it may.

use alloc::vec::Vec;

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction, PciRoot};

use crate::pci::{Configuration, structure};
use crate::{apic, memory};

const CAPABILITY: u8 = 0x11;
const ENABLE: u32 = 1 << 31;
const MASK_ALL: u32 = 1 << 30;
const ENTRY_SIZE: usize = 16;
const MESSAGE_DATA: usize = 8;
const VECTOR_CONTROL: usize = 12;
const MASKED: u32 = 1;

/// The MSI-X table of a device, its pending bits, and its capability.
#[derive(Clone, Copy)]
pub(crate) struct MsixTable {
    configuration: Configuration,
    function: DeviceFunction,
    capability: u8,
    size: u16,
    entries: *mut u8,
    pending: *mut u8,
}

impl MsixTable {
    /// More entries than this are not used.
    pub(crate) const MAX_ENTRIES: u16 = 8;

    /// Lets entry `i` interrupt this processor with vector `first_vector + i`, and enables MSI-X.
    ///
    /// # Panics
    /// When the device has none.
    pub(crate) fn enable(
        configuration: Configuration,
        function: DeviceFunction,
        first_vector: u8,
    ) -> Self {
        let root = PciRoot::new(configuration);
        let Some(found) = root
            .capabilities(function)
            .find(|capability| capability.id == CAPABILITY)
        else {
            panic!("{function} has no MSI-X capability");
        };
        let place = |offset| {
            let word = configuration.read_word(function, found.offset + offset);
            structure(configuration, function, word, word & !7)
        };
        let mut table = Self {
            configuration,
            function,
            capability: found.offset,
            size: (found.private_header & 0x7ff) + 1,
            entries: place(4),
            pending: place(8),
        };
        table.control(ENABLE | MASK_ALL);
        let address = apic::message_address(apic::id());
        for index in 0..table.size.min(Self::MAX_ENTRIES) {
            table.write(index, 0, address as u32);
            table.write(index, 4, (address >> 32) as u32);
            table.write(
                index,
                MESSAGE_DATA,
                u32::from(first_vector) + u32::from(index),
            );
            table.write(index, VECTOR_CONTROL, 0);
        }
        table.control(ENABLE);
        table
    }

    /// The pages the table and the pending bits of a function are in.
    pub(crate) fn pages(configuration: Configuration, function: DeviceFunction) -> Vec<u64> {
        let root = PciRoot::new(configuration);
        let found = root
            .capabilities(function)
            .find(|capability| capability.id == CAPABILITY);
        let words = found.iter().flat_map(|found| {
            [4, 8].map(|offset| configuration.read_word(function, found.offset + offset))
        });
        words
            .map(|word| structure(configuration, function, word, word & !7) as u64 & !0xfff)
            .collect()
    }

    /// The number of entries.
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    fn control(&mut self, flags: u32) {
        let header = self.configuration.read_word(self.function, self.capability);
        let header = header & !(ENABLE | MASK_ALL) | flags;
        self.configuration
            .write_word(self.function, self.capability, header);
    }

    fn write(&mut self, index: u16, field: usize, value: u32) {
        assert!(index < self.size);
        // SAFETY: a field of an entry of the table, which is mapped; all vectors used have gates that count.
        unsafe {
            memory::write_u32(
                self.entries.add(usize::from(index) * ENTRY_SIZE + field),
                value,
            )
        }
    }

    /// Keeps all entries from interrupting, or no longer does.
    pub(crate) fn mask_all(&mut self, masked: bool) {
        self.control(ENABLE | if masked { MASK_ALL } else { 0 });
    }

    /// Keeps an entry from interrupting, or no longer does.
    pub(crate) fn mask(&mut self, index: u16, masked: bool) {
        self.write(index, VECTOR_CONTROL, if masked { MASKED } else { 0 });
    }

    /// Lets an entry interrupt with another vector.
    pub(crate) fn set_vector(&mut self, index: u16, vector: u8) {
        self.write(index, MESSAGE_DATA, vector.into());
    }

    /// Whether an interrupt of an entry waits for it not to be masked any more.
    pub(crate) fn is_pending(&self, index: u16) -> bool {
        let word = usize::from(index) / 32 * 4;
        // SAFETY: a word of the pending bits, which are mapped.
        unsafe { memory::read_u32(self.pending.add(word)) >> (index % 32) & 1 == 1 }
    }
}
