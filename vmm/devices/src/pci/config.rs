//! A function's 256 bytes of configuration space (PCI Local Bus 3.0 §6): bytes, and which of their bits the guest may
//! write.
//!
//! A BAR needs no code of its own: since its address bits are writable and its size bits are not, a guest that writes
//! ones and reads the register back gets the size.

use thiserror::Error;

use super::function::Bar;

const LEN: usize = 256;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const BARS_END: usize = 0x28;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const HEADER_END: usize = 0x40;

const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_BUS_MASTER: u8 = 1 << 2;
/// In the command register's high byte.
const COMMAND_INTX_DISABLE: u8 = 1 << 2;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const BAR_64_BIT: u32 = 0b100;

/// The identification registers of a function.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and programming interface: 0xCCSSPP.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// A BAR to add: memory, not prefetchable, 64-bit.
#[derive(Clone, Copy, Debug)]
pub struct BarSpec {
    /// Which register; the next one becomes its upper half.
    pub index: usize,
    /// How many bytes it decodes: a power of two, at least 4096 so that no two functions share a page.
    pub size: u64,
}

/// Why a BAR or a capability cannot be added.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CapabilityError {
    /// The capabilities together are too long.
    #[error("no room for {0} bytes of capability")]
    NoRoom(usize),
    /// The BAR's size is not a power of two from 4096, or the register does not exist or is taken.
    #[error("BAR {0} cannot be {1:#x} bytes")]
    Bar(usize, u64),
}

/// A function's configuration space.
pub struct ConfigSpace {
    bytes: [u8; LEN],
    writable: [u8; LEN],
    bars: Vec<BarSpec>,
    /// The offsets of the last capability's "next" pointer and of the next capability.
    last_link: usize,
    free: usize,
}

impl ConfigSpace {
    /// A type-0 configuration space without BARs and capabilities.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            bytes: [0; LEN],
            writable: [0; LEN],
            bars: Vec::new(),
            last_link: CAPABILITIES,
            free: HEADER_END,
        };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        let [interface, subclass, class, _] = identity.class.to_le_bytes();
        space.put(0x08, &[identity.revision, interface, subclass, class]);
        space.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.put(0x2e, &identity.subsystem.to_le_bytes());
        space.allow(
            COMMAND,
            &[COMMAND_MEMORY | COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE],
        );
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Adds a BAR; its address is 0 until written.
    ///
    /// # Errors
    /// When the register is not free or the size is not possible.
    pub fn add_bar(&mut self, spec: BarSpec) -> Result<(), CapabilityError> {
        let error = CapabilityError::Bar(spec.index, spec.size);
        let taken = |bar: &BarSpec| bar.index.abs_diff(spec.index) < 2;
        if spec.index > 4
            || !spec.size.is_power_of_two()
            || spec.size < 4096
            || self.bars.iter().any(taken)
        {
            return Err(error);
        }
        let register = BAR0 + spec.index * 4;
        self.put(register, &BAR_64_BIT.to_le_bytes());
        self.allow(register, &(!(spec.size - 1)).to_le_bytes());
        self.bars.push(spec);
        Ok(())
    }

    /// Appends a capability: its id, then `body`, of which the guest may write the bits in `writable` (missing bytes:
    /// none). Returns the offset of `body`'s first byte.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<u16, CapabilityError> {
        let start = self.free;
        let end = start + 2 + body.len();
        if end > LEN || writable.len() > body.len() {
            return Err(CapabilityError::NoRoom(body.len()));
        }
        // Both are below 256 here.
        let (link, offset) = (start as u8, (start + 2) as u16);
        self.put(self.last_link, &[link]);
        self.put(start, &[id, 0]);
        self.put(start + 2, body);
        self.allow(start + 2, writable);
        self.put(STATUS, &[STATUS_CAPABILITIES]);
        self.last_link = start + 1;
        self.free = end.next_multiple_of(4);
        Ok(offset)
    }

    /// Reads. Offsets from 256 on read as zeros, which means that there are no extended capabilities.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0);
        let from = self.bytes.get(usize::from(offset)..).unwrap_or_default();
        for (to, byte) in data.iter_mut().zip(from) {
            *to = *byte;
        }
    }

    /// Writes the bits that the guest may write. Returns whether [`Self::bars`] may have changed.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> bool {
        let start = usize::from(offset);
        let bytes = self.bytes.get_mut(start..).unwrap_or_default();
        let masks = self.writable.get(start..).unwrap_or_default();
        for ((byte, mask), new) in bytes.iter_mut().zip(masks).zip(data) {
            *byte = (*byte & !mask) | (new & mask);
        }
        let end = start.saturating_add(data.len());
        let touches = |from: usize, to: usize| start < to && from < end;
        touches(COMMAND, COMMAND + 1) || touches(BAR0, BARS_END)
    }

    /// Sets all bits that the guest may write to 0, their value after power-on.
    pub fn reset(&mut self) {
        for (byte, mask) in self.bytes.iter_mut().zip(&self.writable) {
            *byte &= !mask;
        }
    }

    /// The BARs as the registers are.
    #[must_use]
    pub fn bars(&self) -> Vec<Bar> {
        let enabled = self.bytes[COMMAND] & COMMAND_MEMORY != 0;
        let bar = |spec: &BarSpec| {
            let mut address = [0; 8];
            let register = BAR0 + spec.index * 4;
            address.copy_from_slice(&self.bytes[register..register + 8]);
            Bar {
                index: spec.index,
                size: spec.size,
                address: u64::from_le_bytes(address) & !(spec.size - 1),
                enabled,
            }
        };
        self.bars.iter().map(bar).collect()
    }

    /// Sets bytes, whether or not the guest may write them. Bytes that do not exist are ignored.
    pub fn put(&mut self, offset: usize, bytes: &[u8]) {
        for (to, byte) in self.bytes.iter_mut().skip(offset).zip(bytes) {
            *to = *byte;
        }
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        for (to, byte) in self.writable.iter_mut().skip(offset).zip(mask) {
            *to = *byte;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDENTITY: Identity = Identity {
        vendor: 0x1af4,
        device: 0x1042,
        revision: 1,
        class: 0x01_80_00,
        subsystem_vendor: 0x1af4,
        subsystem: 0x40,
    };

    fn read32(space: &ConfigSpace, offset: u16) -> u32 {
        let mut data = [0; 4];
        space.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn with_bar(size: u64) -> ConfigSpace {
        let mut space = ConfigSpace::new(&IDENTITY);
        space.add_bar(BarSpec { index: 0, size }).unwrap();
        space
    }

    #[test]
    fn the_identity_is_there_and_stays() {
        let mut space = ConfigSpace::new(&IDENTITY);
        for offset in (0..0x40).filter(|at| !matches!(at, 4 | 5 | 0x3c)) {
            space.write(offset, &[0xff]);
        }
        assert_eq!(read32(&space, 0), 0x1042_1af4);
        assert_eq!(read32(&space, 8), 0x0180_0001);
        assert_eq!(read32(&space, 0x2c), 0x0040_1af4);
        assert_eq!(read32(&space, 0x3c), 0, "no interrupt pin");
    }

    #[test]
    fn a_bar_is_sized_by_writing_ones() {
        let mut space = with_bar(0x1_0000);
        space.write(0x10, &[0xff; 4]);
        space.write(0x14, &[0xff; 4]);
        assert_eq!(read32(&space, 0x10), 0xffff_0004);
        assert_eq!(read32(&space, 0x14), 0xffff_ffff);
    }

    #[test]
    fn a_bar_decodes_where_it_was_put_once_memory_is_enabled() {
        let mut space = with_bar(0x1000);
        assert!(space.write(0x10, &0xc000_1234_u32.to_le_bytes()));
        assert!(space.write(0x14, &0x12_u32.to_le_bytes()));
        let address = 0x12_c000_1000;
        assert_eq!(space.bars()[0].address, address);
        assert!(!space.bars()[0].enabled);

        assert!(space.write(4, &[2, 0]));

        let bar = Bar {
            index: 0,
            size: 0x1000,
            address,
            enabled: true,
        };
        assert_eq!(space.bars(), [bar]);
    }

    #[test]
    fn impossible_bars_are_refused() {
        let mut space = with_bar(0x1000);
        for (index, size) in [
            (0, 4096),
            (1, 4096),
            (5, 4096),
            (2, 4097),
            (2, 2048),
            (2, 0),
        ] {
            let error = space.add_bar(BarSpec { index, size }).unwrap_err();
            assert_eq!(error, CapabilityError::Bar(index, size));
        }
        space
            .add_bar(BarSpec {
                index: 2,
                size: 1 << 40,
            })
            .unwrap();
    }

    #[test]
    fn capabilities_are_found_by_walking_the_list() {
        let mut space = ConfigSpace::new(&IDENTITY);
        assert_eq!(read32(&space, 4) >> 16 & 0x10, 0);
        space.add_capability(9, &[16, 1, 2, 3], &[]).unwrap();
        space.add_capability(0x11, &[7, 7], &[0, 0xc0]).unwrap();
        assert_eq!(
            space.add_capability(1, &[0; 200], &[]),
            Err(CapabilityError::NoRoom(200))
        );

        assert_eq!(read32(&space, 4) >> 16 & 0x10, 0x10);
        let mut found = Vec::new();
        let mut at = read32(&space, 0x34) as u8;
        while at != 0 {
            let header = read32(&space, at.into());
            found.push(header as u8);
            at = (header >> 8) as u8;
        }
        assert_eq!(found, [9, 0x11]);
    }

    proptest! {
        #[test]
        fn no_access_panics_or_changes_what_is_read_only(
            accesses in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..16)), 0..64)
        ) {
            let mut space = with_bar(0x4000);
            space.add_capability(0x11, &[7, 0, 1, 2, 3, 4], &[0, 0xc0]).unwrap();
            let before = space.bytes;
            for (offset, data) in accesses {
                space.write(offset, &data);
                space.write(offset % 300, &data);
                space.read(offset, &mut data.clone());
            }
            let read_only = |bytes: &[u8; LEN]| -> Vec<u8> {
                bytes.iter().zip(&space.writable).map(|(byte, mask)| byte & !mask).collect()
            };
            prop_assert_eq!(read_only(&space.bytes), read_only(&before));
            prop_assert_eq!(space.bars()[0].address % 0x4000, 0);
        }
    }
}
