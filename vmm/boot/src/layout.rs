//! The layout of the guest's physical address space.
//!
//! ```text
//! 0                 boot tables (below 640 KiB)
//! 0xe_0000          ACPI tables
//! 0xf_fff0          the reset vector
//! 1 MiB             RAM: kernel, …, initramfs at its end
//! 3 GiB             the hole: 32-bit PCI window, ECAM, I/O APIC, local APICs
//! 4 GiB             the rest of RAM
//! behind RAM        64-bit PCI window
//! ```

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The granularity of RAM that every kernel expects.
pub const PAGE_SIZE: u64 = 4 * KIB;
/// With less there is no room for a kernel, which begins at 16 MiB.
pub const MIN_RAM: u64 = 2 * MIB;
/// With more, addresses would have more than 46 bits, which many processors do not have.
pub const MAX_RAM: u64 = 32 << 40;

/// Global descriptor table of the 64-bit boot protocol.
pub const GDT: u64 = 0x500;
/// `hvm_start_info`.
pub const PVH_START_INFO: u64 = 0x6000;
/// The list of modules that it points to.
pub const PVH_MODULES: u64 = 0x6100;
/// The memory map that it points to.
pub const PVH_MEMORY_MAP: u64 = 0x6200;
/// `struct boot_params`.
pub const BOOT_PARAMS: u64 = 0x7000;
/// Page tables of the 64-bit boot protocol: six pages.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const CMDLINE: u64 = 0x2_0000;
/// The end of conventional memory.
pub const LOW_END: u64 = 0x9_fc00;
/// ACPI tables, the first of which is the RSDP.
pub const ACPI: u64 = 0xe_0000;
/// The end of the space for ACPI tables.
pub const ACPI_END: u64 = 0xf_0000;
/// The BIOS's reset vector, as a processor in real mode addresses it.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// The start of the RAM that kernels are loaded to.
pub const HIGH_START: u64 = MIB;

/// The end of RAM below 4 GiB.
pub const HOLE: u64 = 3 * GIB;
/// The 32-bit PCI window.
pub const PCI_32: (u64, u64) = (HOLE, 512 * MIB);
/// PCI configuration space of bus 0.
pub const ECAM: (u64, u64) = (0xe800_0000, MIB);
/// I/O APIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Local APICs.
pub const LAPIC: u64 = 0xfee0_0000;
/// The rest of RAM.
pub const ABOVE_4G: u64 = 4 * GIB;
const PCI_64_SIZE: u64 = 16 * GIB;

/// I/O ports of PCI configuration mechanism 1.
pub const PCI_CONFIG_PORTS: (u16, u16) = (0xcf8, 8);
/// I/O ports of the first serial port.
pub const COM1_PORTS: (u16, u16) = (0x3f8, 8);
/// The serial port's interrupt: a pin of the I/O APIC.
pub const COM1_GSI: u32 = 4;
/// The power button's interrupt: a pin of the I/O APIC, on which each press is an edge.
pub const POWER_BUTTON_GSI: u32 = 5;
/// I/O ports of the power management registers, one byte each: sleep control, sleep status, reset.
pub const POWER_PORTS: (u16, u16) = (0x600, 3);
/// The value that the guest writes to the reset register.
pub const RESET_VALUE: u8 = 1;
/// The sleep type of the power-off state, S5.
pub const SLEEP_TYPE_S5: u8 = 5;

/// The type of an address range, numbered as in the e820 and PVH memory maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Use {
    /// RAM, free to use.
    Ram = 1,
    /// Reserved: neither to be used nor given to a device.
    Reserved = 2,
}

/// The layout for one size of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    below_hole: u64,
    above_4g: u64,
}

impl Layout {
    /// The layout of a guest with `ram` bytes, a multiple of [`PAGE_SIZE`] from [`MIN_RAM`] to [`MAX_RAM`].
    #[must_use]
    pub fn new(ram: u64) -> Self {
        let below_hole = ram.min(HOLE);
        Self {
            below_hole,
            above_4g: ram - below_hole,
        }
    }

    /// The end of RAM below the hole.
    #[must_use]
    pub fn low_ram_end(&self) -> u64 {
        self.below_hole
    }

    /// The (address, length) pairs of RAM.
    #[must_use]
    pub fn ram(&self) -> Vec<(u64, u64)> {
        let mut ranges = vec![(0, self.below_hole)];
        if self.above_4g > 0 {
            ranges.push((ABOVE_4G, self.above_4g));
        }
        ranges
    }

    /// The (address, length) of the 64-bit PCI window: behind RAM, aligned to 4 GiB.
    #[must_use]
    pub fn pci_64(&self) -> (u64, u64) {
        let start = (ABOVE_4G + self.above_4g).next_multiple_of(4 * GIB);
        (start, PCI_64_SIZE)
    }

    /// The memory map that the guest gets, sorted: (address, length, use).
    #[must_use]
    pub fn memory_map(&self) -> Vec<(u64, u64, Use)> {
        let mut map = vec![
            (0, LOW_END, Use::Ram),
            (ACPI, HIGH_START - ACPI, Use::Reserved),
            (HIGH_START, self.below_hole - HIGH_START, Use::Ram),
            (ECAM.0, ECAM.1, Use::Reserved),
        ];
        if self.above_4g > 0 {
            map.push((ABOVE_4G, self.above_4g, Use::Ram));
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_at_the_hole_and_none_is_lost() {
        for (ram, expected) in [
            (512 * MIB, vec![(0, 512 * MIB)]),
            (3 * GIB, vec![(0, 3 * GIB)]),
            (
                3 * GIB + PAGE_SIZE,
                vec![(0, 3 * GIB), (4 * GIB, PAGE_SIZE)],
            ),
            (8 * GIB, vec![(0, 3 * GIB), (4 * GIB, 5 * GIB)]),
        ] {
            assert_eq!(Layout::new(ram).ram(), expected);
        }
    }

    #[test]
    fn no_two_things_overlap() {
        for ram in [MIN_RAM, 3 * GIB, 3 * GIB + PAGE_SIZE, 64 * GIB] {
            let layout = Layout::new(ram);
            let mut used: Vec<_> = layout
                .memory_map()
                .iter()
                .map(|&(start, len, _)| (start, len))
                .chain([PCI_32, layout.pci_64(), (IOAPIC, PAGE_SIZE), (LAPIC, MIB)])
                .collect();
            used.sort_unstable();
            for pair in used.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{ram:#x}: {pair:x?}");
            }
        }
    }

    #[test]
    fn the_boot_tables_fit_below_each_other() {
        let tables = [
            GDT + 32,
            PVH_START_INFO,
            PVH_MODULES,
            PVH_MEMORY_MAP,
            BOOT_PARAMS,
            PAGE_TABLES,
            CMDLINE,
            LOW_END,
        ];
        assert!(tables.is_sorted());
        const { assert!(BOOT_PARAMS + 4096 <= PAGE_TABLES) };
        const { assert!(PAGE_TABLES + 6 * PAGE_SIZE <= CMDLINE) };
    }
}
