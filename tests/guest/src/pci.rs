//! PCI configuration space, by memory (ECAM) or by the ports 0xcf8 and 0xcfc, and the devices on bus 0.

use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{
    Cam, Command, ConfigurationAccess, DeviceFunction, PciRoot,
};
use virtio_drivers::transport::pci::virtio_device_type;

use crate::acpi::Acpi;
use crate::cmdline::CommandLine;
use crate::{memory, port};

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;

/// A way to configuration space.
#[derive(Clone, Copy)]
pub(crate) enum Configuration {
    /// Memory-mapped at this address.
    Memory(u64),
    /// By I/O ports.
    Ports,
}

impl Configuration {
    /// The way the command line asks for: `pci=ports` or, without that, the memory that ACPI names.
    pub(crate) fn new(words: &CommandLine, acpi: &Acpi) -> Self {
        match (words.value("pci"), acpi.pci_configuration()) {
            (Some("ports"), _) | (None, None) => Self::Ports,
            (None, Some(address)) => {
                memory::map_device(address, u64::from(Cam::Ecam.size()));
                Self::Memory(address)
            }
            (Some(other), _) => panic!("command line: pci={other} is unknown"),
        }
    }

    fn select(function: DeviceFunction, offset: u8) {
        let address = u32::from(function.bus) << 16
            | u32::from(function.device) << 11
            | u32::from(function.function) << 8
            | u32::from(offset);
        port::write_u32(ADDRESS_PORT, ENABLE | address);
    }
}

impl ConfigurationAccess for Configuration {
    fn read_word(&self, function: DeviceFunction, offset: u8) -> u32 {
        match *self {
            Self::Memory(base) => {
                let address = base + u64::from(Cam::Ecam.cam_offset(function, offset));
                // SAFETY: inside the mapped configuration space, and aligned, as `cam_offset` checks.
                unsafe { memory::read_u32(address as *const u8) }
            }
            Self::Ports => {
                Self::select(function, offset);
                port::read_u32(DATA_PORT)
            }
        }
    }

    fn write_word(&mut self, function: DeviceFunction, offset: u8, value: u32) {
        match *self {
            Self::Memory(base) => {
                let address = base + u64::from(Cam::Ecam.cam_offset(function, offset));
                // SAFETY: inside the mapped configuration space, and aligned, as `cam_offset` checks.
                unsafe { memory::write_u32(address as *mut u8, value) }
            }
            Self::Ports => {
                Self::select(function, offset);
                port::write_u32(DATA_PORT, value);
            }
        }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        *self
    }
}

/// Finds the `index`-th virtio device of this type on bus 0 and lets it decode memory and write to memory.
pub(crate) fn find_virtio(
    configuration: Configuration,
    kind: DeviceType,
    index: usize,
) -> Option<DeviceFunction> {
    let mut root = PciRoot::new(configuration);
    let (function, _) = root
        .enumerate_bus(0)
        .filter(|(_, info)| virtio_device_type(info) == Some(kind))
        .nth(index)?;
    let (_, command) = root.get_status_command(function);
    root.set_command(
        function,
        command | Command::MEMORY_SPACE | Command::BUS_MASTER | Command::INTERRUPT_DISABLE,
    );
    Some(function)
}

/// How many functions there are on bus 0.
pub(crate) fn count_functions(configuration: Configuration) -> usize {
    PciRoot::new(configuration).enumerate_bus(0).count()
}

/// The address of something in a BAR.
pub(crate) fn structure(
    configuration: Configuration,
    function: DeviceFunction,
    bar: u32,
    offset: u32,
) -> *mut u8 {
    let register = 0x10 + 4 * (bar as u8 & 7);
    let low = configuration.read_word(function, register);
    let high = match low & 6 {
        4 => configuration.read_word(function, register + 4),
        _ => 0,
    };
    let base = u64::from(high) << 32 | u64::from(low & !0xf);
    memory::map_device(base + u64::from(offset), 4096)
}
