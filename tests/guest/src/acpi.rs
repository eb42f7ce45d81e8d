//! The ACPI tables: where the processors, the PCI configuration space and the power registers are.

use alloc::vec::Vec;
use core::ops::Range;
use core::slice;

use crate::{memory, port};

const FADT_DSDT: usize = 40;
const FADT_PM1A_CONTROL: usize = 64;
const FADT_FLAGS: usize = 112;
const FADT_RESET_REGISTER: usize = 116;
const FADT_RESET_VALUE: usize = 128;
const FADT_X_DSDT: usize = 140;
const FADT_SLEEP_CONTROL: usize = 244;
const FLAG_RESET_REGISTER: u32 = 1 << 10;
const FLAG_HARDWARE_REDUCED: u32 = 1 << 20;
const HEADER_SIZE: usize = 36;

/// The tables, each checked by its checksum.
pub(crate) struct Acpi {
    tables: Vec<&'static [u8]>,
}

/// A register as ACPI describes it (Generic Address Structure).
#[derive(Clone, Copy)]
pub(crate) struct Register {
    space: u8,
    address: u64,
}

impl Register {
    /// Writes a byte.
    pub(crate) fn write_u8(self, value: u8) {
        match self.space {
            0 => {
                let register = memory::map_device(self.address, 1);
                // SAFETY: a device register by the word of the FADT, and mapped.
                unsafe { register.write_volatile(value) }
            }
            1 => port::write_u8(self.address as u16, value),
            space => panic!("ACPI register in address space {space}"),
        }
    }
}

fn number<const SIZE: usize>(bytes: &[u8], offset: usize) -> u64 {
    let mut number = [0; 8];
    match bytes.get(offset..offset + SIZE) {
        Some(part) => number[..SIZE].copy_from_slice(part),
        None => panic!(
            "ACPI table of {} bytes has no field at {offset}",
            bytes.len()
        ),
    }
    u64::from_le_bytes(number)
}

/// # Safety
/// There are `size` bytes of memory at `address` that do not change.
unsafe fn bytes_at(address: u64, size: usize) -> &'static [u8] {
    memory::map_device(address, size as u64);
    // SAFETY: the caller's promise, and all memory is mapped one to one.
    unsafe { slice::from_raw_parts(address as *const u8, size) }
}

fn check(name: &str, bytes: &[u8]) {
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    assert!(sum == 0, "ACPI table {name} has a wrong checksum");
}

fn table_at(address: u64) -> &'static [u8] {
    // SAFETY: another table points here, so there is a table header, which has the size of all of it.
    let header = unsafe { bytes_at(address, HEADER_SIZE) };
    // SAFETY: as above.
    let table = unsafe { bytes_at(address, number::<4>(header, 4) as usize) };
    check(core::str::from_utf8(&header[..4]).unwrap_or("?"), table);
    table
}

impl Acpi {
    /// Follows the root pointer.
    ///
    /// # Panics
    /// When there is none or a checksum is wrong.
    pub(crate) fn find(rsdp: u64) -> Self {
        assert!(rsdp != 0, "the start information has no ACPI root pointer");
        // SAFETY: the PVH boot protocol says that this is the root pointer, 36 bytes since revision 2.
        let root = unsafe { bytes_at(rsdp, 36) };
        assert!(
            &root[..8] == b"RSD PTR ",
            "no ACPI root pointer at {rsdp:#x}"
        );
        check("RSDP", &root[..20]);
        let extended = root[15] >= 2;
        if extended {
            check("RSDP (extended)", root);
        }
        let (list, entry_size) = match extended {
            true => (number::<8>(root, 24), 8),
            false => (number::<4>(root, 16), 4),
        };
        let tables = table_at(list)[HEADER_SIZE..]
            .chunks_exact(entry_size)
            .map(|entry| match extended {
                true => number::<8>(entry, 0),
                false => number::<4>(entry, 0),
            })
            .map(table_at)
            .collect();
        Self { tables }
    }

    fn table(&self, name: &str) -> Option<&'static [u8]> {
        self.tables
            .iter()
            .find(|table| &table[..4] == name.as_bytes())
            .copied()
    }

    fn fadt(&self) -> &'static [u8] {
        match self.table("FACP") {
            Some(table) => table,
            None => panic!("no ACPI table FACP"),
        }
    }

    /// The APIC ids of the enabled processors, in the order of the table.
    pub(crate) fn processors(&self) -> Vec<u8> {
        let Some(madt) = self.table("APIC") else {
            panic!("no ACPI table APIC")
        };
        let mut processors = Vec::new();
        let mut rest = &madt[44..];
        while let [kind, size, ..] = *rest {
            let (entry, next) = rest.split_at(usize::from(size).max(2));
            rest = next;
            match kind {
                0 if number::<4>(entry, 4) & 1 == 1 => processors.push(entry[3]),
                9 if number::<4>(entry, 8) & 1 == 1 => processors.push(number::<4>(entry, 4) as u8),
                _ => {}
            }
        }
        processors
    }

    /// The address of the I/O APIC that has the first interrupt lines.
    pub(crate) fn io_apic(&self) -> Option<u64> {
        let mut rest = &self.table("APIC")?[44..];
        while let [kind, size, ..] = *rest {
            let (entry, next) = rest.split_at(usize::from(size).max(2));
            rest = next;
            if kind == 1 && number::<4>(entry, 8) == 0 {
                return Some(number::<4>(entry, 4));
            }
        }
        None
    }

    /// The address of the memory-mapped PCI configuration space of segment 0, bus 0.
    pub(crate) fn pci_configuration(&self) -> Option<u64> {
        Some(number::<8>(self.table("MCFG")?, 44))
    }

    /// Whether this is a hardware-reduced ACPI platform.
    pub(crate) fn is_hardware_reduced(&self) -> bool {
        number::<4>(self.fadt(), FADT_FLAGS) as u32 & FLAG_HARDWARE_REDUCED != 0
    }

    /// The sleep control register of a hardware-reduced platform.
    pub(crate) fn sleep_control(&self) -> Register {
        self.register(FADT_SLEEP_CONTROL)
    }

    /// The I/O port of the power management control register of a platform that is not hardware-reduced.
    pub(crate) fn pm1a_control(&self) -> u16 {
        number::<4>(self.fadt(), FADT_PM1A_CONTROL) as u16
    }

    /// The I/O ports that end or put to sleep the machine.
    pub(crate) fn power_ports(&self) -> Vec<Range<u16>> {
        const IO_SPACE: u8 = 1;
        let pm1a = self.pm1a_control();
        let mut ports = Vec::new();
        ports.push(pm1a..pm1a.saturating_add(2));
        let registers = [
            self.register(FADT_RESET_REGISTER),
            self.register(FADT_SLEEP_CONTROL),
        ];
        for register in registers
            .iter()
            .filter(|register| register.space == IO_SPACE)
        {
            ports.push(register.address as u16..register.address as u16 + 1);
        }
        ports
    }

    /// The reset register and the value that resets.
    pub(crate) fn reset(&self) -> Option<(Register, u8)> {
        let supported = number::<4>(self.fadt(), FADT_FLAGS) as u32 & FLAG_RESET_REGISTER != 0;
        supported.then(|| {
            (
                self.register(FADT_RESET_REGISTER),
                self.fadt()[FADT_RESET_VALUE],
            )
        })
    }

    fn register(&self, offset: usize) -> Register {
        Register {
            space: self.fadt()[offset],
            address: number::<8>(self.fadt(), offset + 4),
        }
    }

    fn dsdt(&self) -> &'static [u8] {
        let fadt = self.fadt();
        table_at(match fadt.get(FADT_X_DSDT..FADT_X_DSDT + 8) {
            Some([0, 0, 0, 0, 0, 0, 0, 0]) | None => number::<4>(fadt, FADT_DSDT),
            Some(_) => number::<8>(fadt, FADT_X_DSDT),
        })
    }

    /// The interrupt line of the generic event device: of its extended interrupt descriptor, which is the first after its
    /// name. There must be a power button that it can notify.
    pub(crate) fn event_line(&self) -> u32 {
        /// An extended interrupt descriptor of one interrupt: a consumer's, edge-triggered, active high, not shared.
        const DESCRIPTOR: &[u8] = &[0x89, 6, 0, 3, 1];
        let dsdt = self.dsdt();
        let find = |bytes: &[u8], what: &[u8]| {
            let found = bytes.windows(what.len()).position(|part| part == what);
            match found {
                Some(at) => at + what.len(),
                None => panic!("the DSDT has no {what:x?}"),
            }
        };
        // PNP0C0C as a compressed identifier.
        find(dsdt, &[0x41, 0xd0, 0x0c, 0x0c]);
        let device = &dsdt[find(dsdt, b"ACPI0013")..];
        number::<4>(device, find(device, DESCRIPTOR)) as u32
    }

    /// The sleep type of the soft-off state: the first element of the package `\_S5_`, found by its name.
    pub(crate) fn soft_off_type(&self) -> u8 {
        let dsdt = self.dsdt();
        let Some(name) = dsdt.windows(4).position(|bytes| bytes == b"_S5_") else {
            panic!("the DSDT has no _S5_");
        };
        // A package: 0x12, its length in 1 to 4 bytes (the top bits of the first say how many more), the number of elements.
        let package = &dsdt[name + 4..];
        assert!(package[0] == 0x12, "_S5_ is not a package");
        let element = 3 + usize::from(package[1] >> 6);
        match package[element] {
            0x0a => package[element + 1],
            0x0b => package[element + 1],
            constant @ 0..=1 => constant,
            other => panic!("_S5_ begins with opcode {other:#x}"),
        }
    }
}
