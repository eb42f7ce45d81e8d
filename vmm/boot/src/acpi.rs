//! ACPI tables: a hardware-reduced machine (ACPI 6.5, section 4.1) whose devices are on PCI, but for one serial
//! port and the power button.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, Device, EISAName, Equal, IO, If, Interrupt,
    Memory32Fixed, Method, Name, Notify, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Error;
use crate::layout::{
    ACPI, ACPI_END, COM1_GSI, COM1_PORTS, ECAM, IOAPIC, LAPIC, Layout, PCI_32, PCI_CONFIG_PORTS,
    POWER_BUTTON_GSI, POWER_PORTS, RESET_VALUE, SLEEP_TYPE_S5,
};

const OEM: [u8; 6] = *b"BLKHED";
const OEM_TABLE: [u8; 8] = *b"BULKHEAD";
const OEM_REVISION: u32 = 1;

/// The FADT's boot architecture flags: no VGA (bit 2), no ASPM (4), no real-time clock (5), and neither ISA devices (0)
/// nor a keyboard controller (1).
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 4 | 1 << 5;

struct Bytestream(Vec<u8>);

impl AmlSink for Bytestream {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    fn vec(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut sink = Bytestream(Vec::new());
    table.to_aml_bytes(&mut sink);
    sink.0
}

/// Writes all tables for a guest with `cpus` vCPUs. Returns the address of the RSDP.
///
/// # Errors
/// When guest memory has no room for them.
pub fn write(memory: &GuestMemoryMmap, layout: &Layout, cpus: u8) -> Result<u64, Error> {
    let rsdp = ACPI;
    let mut next = rsdp + Rsdp::len().next_multiple_of(16) as u64;
    let mut put = |bytes: Vec<u8>| -> Result<u64, Error> {
        let at = next;
        next = (at + bytes.len() as u64).next_multiple_of(16);
        if next > ACPI_END {
            return Err(Error::NoRoom);
        }
        memory.write_slice(&bytes, GuestAddress(at))?;
        Ok(at)
    };

    let dsdt = put(dsdt(layout))?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(put(fadt(dsdt))?);
    xsdt.add_entry(put(madt(cpus))?);
    xsdt.add_entry(put(mcfg())?);
    let xsdt = put(bytes_of(&xsdt))?;
    memory.write_slice(&bytes_of(&Rsdp::new(OEM, xsdt)), GuestAddress(rsdp))?;
    Ok(rsdp)
}

/// One of the power management registers.
fn power_register(index: u16) -> GAS {
    let port = POWER_PORTS.0 + index;
    GAS::new(Space::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        .flag(Flags::ResetRegSup)
        // These two flags mean that there are no fixed hardware buttons.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.sleep_control_reg = power_register(0);
    fadt.sleep_status_reg = power_register(1);
    fadt.reset_reg = power_register(2);
    fadt.reset_value = RESET_VALUE;
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE).into();
    bytes_of(&fadt.finalize())
}

fn madt(cpus: u8) -> Vec<u8> {
    let lapic = LocalInterruptController::Address(LAPIC as u32);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, lapic);
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IOAPIC as u32, 0));
    bytes_of(&madt)
}

fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(ECAM.0, 0, 0, 0);
    bytes_of(&mcfg)
}

fn dsdt(layout: &Layout) -> Vec<u8> {
    const HEADER: u32 = 36;
    let mut aml = bytes_of(&Scope::new(
        "\\_SB_".into(),
        vec![
            &PciRoot(layout),
            &SerialPort,
            &ConfigurationSpace,
            &PowerButton,
            &EventDevice,
        ],
    ));
    aml.extend(bytes_of(&Name::new(
        "_S5_".into(),
        &Package::new(vec![&SLEEP_TYPE_S5]),
    )));
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, 2, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&aml);
    bytes_of(&dsdt)
}

/// The PCI Express root, with the windows for BARs.
struct PciRoot<'a>(&'a Layout);

impl Aml for PciRoot<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (start_32, len_32) = (PCI_32.0 as u32, PCI_32.1 as u32);
        let (start_64, len_64) = self.0.pci_64();
        let (config, ports) = PCI_CONFIG_PORTS;
        let uncached = AddressSpaceCacheable::NotCacheable;
        Device::new(
            "PCI0".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
                &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
                &Name::new("_SEG".into(), &0_u8),
                &Name::new("_BBN".into(), &0_u8),
                &Name::new("_UID".into(), &0_u8),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &AddressSpace::new_bus_number(0_u16, 0),
                        &IO::new(config, config, 1, ports as u8),
                        &AddressSpace::new_memory(
                            uncached,
                            true,
                            start_32,
                            start_32 + (len_32 - 1),
                            None,
                        ),
                        &AddressSpace::new_memory(
                            uncached,
                            true,
                            start_64,
                            start_64 + (len_64 - 1),
                            None,
                        ),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The first serial port.
struct SerialPort;

impl Aml for SerialPort {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (start, len) = COM1_PORTS;
        Device::new(
            "COM1".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0501")),
                &Name::new("_UID".into(), &0_u8),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &Interrupt::new(true, true, false, false, COM1_GSI),
                        &IO::new(start, start, 1, len as u8),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// Reserves the addresses of PCI configuration space, as firmware has to do beside the MCFG.
struct ConfigurationSpace;

impl Aml for ConfigurationSpace {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Device::new(
            "ECAM".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
                &Name::new("_UID".into(), &0_u8),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![&Memory32Fixed::new(
                        true,
                        ECAM.0 as u32,
                        ECAM.1 as u32,
                    )]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The power button, as a device, since a hardware-reduced machine has no fixed one.
struct PowerButton;

const POWER_BUTTON: &str = "PWRB";

impl Aml for PowerButton {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Device::new(
            POWER_BUTTON.into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0C0C")),
                &Name::new("_UID".into(), &0_u8),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The generic event device (ACPI 6.5, section 5.6.9): it notifies the device that an interrupt is for.
struct EventDevice;

impl Aml for EventDevice {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        /// The button was pressed (ACPI 6.5, table 5.7).
        const PRESSED: u8 = 0x80;
        let button = Path::new(&format!("\\_SB_.{POWER_BUTTON}"));
        Device::new(
            "GED_".into(),
            vec![
                &Name::new("_HID".into(), &"ACPI0013"),
                &Name::new("_UID".into(), &0_u8),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![&Interrupt::new(
                        true,
                        true,
                        false,
                        false,
                        POWER_BUTTON_GSI,
                    )]),
                ),
                &Method::new(
                    "_EVT".into(),
                    1,
                    true,
                    vec![&If::new(
                        &Equal::new(&Arg(0), &POWER_BUTTON_GSI),
                        vec![&Notify::new(&button, &PRESSED)],
                    )],
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap()
    }

    fn read<const N: usize>(memory: &GuestMemoryMmap, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// The table at `at`, whose checksum is verified.
    fn table(memory: &GuestMemoryMmap, at: u64) -> Vec<u8> {
        let len = u32::from_le_bytes(read(memory, at + 4));
        let mut bytes = vec![0; len as usize];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "checksum of {:?}", &bytes[..4]);
        bytes
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn every_table_is_found_from_the_rsdp_and_has_a_right_checksum() {
        let memory = memory();

        let rsdp = write(&memory, &Layout::new(2 << 20), 255).unwrap();

        assert_eq!(&read::<8>(&memory, rsdp), b"RSD PTR ");
        let xsdt = table(&memory, u64::from_le_bytes(read(&memory, rsdp + 24)));
        assert_eq!(&xsdt[..4], b"XSDT");
        let tables: Vec<_> = xsdt[36..]
            .chunks(8)
            .map(|address| table(&memory, u64_at(address, 0)))
            .collect();
        let names: Vec<_> = tables.iter().map(|table| &table[..4]).collect();
        assert_eq!(names, [b"FACP", b"APIC", b"MCFG"]);
        let dsdt = table(&memory, u64_at(&tables[0], 140));
        assert_eq!(&dsdt[..4], b"DSDT");
    }

    #[test]
    fn the_power_registers_are_the_layouts() {
        let fadt = fadt(0x1000);

        let port = |at: usize| (fadt[at], fadt[at + 1], u64_at(&fadt, at + 4));
        assert_eq!(port(244), (1, 8, 0x600)); // SLEEP_CONTROL_REG
        assert_eq!(port(256), (1, 8, 0x601)); // SLEEP_STATUS_REG
        assert_eq!(port(116), (1, 8, 0x602)); // RESET_REG
        assert_eq!(fadt[128], RESET_VALUE);
    }

    #[test]
    fn every_vcpu_has_a_local_apic() {
        let madt = madt(3);

        let entries = &madt[44..];
        for cpu in 0..3_u8 {
            let entry = &entries[usize::from(cpu) * 8..][..8];
            assert_eq!(entry, [0, 8, cpu, cpu, 1, 0, 0, 0]);
        }
        assert_eq!(entries[24..26], [1, 12]);
        assert_eq!(entries.len(), 3 * 8 + 12);
    }
}
