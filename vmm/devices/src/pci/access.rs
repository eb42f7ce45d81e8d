//! The two ways to configuration space: ECAM (PCI Express 5.0 §7.2.2) and the ports 0xcf8 and 0xcfc (PCI Local Bus 3.0
//! §3.2.2.3.2).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::function::Bdf;
use super::root::PciRoot;
use crate::bus::BusDevice;

/// Bytes of guest physical address space that [`PciRoot::ecam`] takes: one bus.
pub const ECAM_LEN: u64 = 1 << 20;
/// The first I/O port of [`PciRoot::config_ports`].
pub const CONFIG_PORTS_BASE: u64 = 0xcf8;
/// The number of its ports.
pub const CONFIG_PORTS_LEN: u64 = 8;

const CONFIG_DATA: u64 = 4;
const ENABLE: u32 = 1 << 31;

impl PciRoot {
    /// The configuration space as memory, [`super::ECAM_LEN`] bytes long.
    #[must_use]
    pub fn ecam(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(Ecam(self.clone()))
    }

    /// The configuration ports, [`super::CONFIG_PORTS_LEN`] of them at [`super::CONFIG_PORTS_BASE`].
    #[must_use]
    pub fn config_ports(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(ConfigPorts(self.clone()))
    }
}

struct Ecam(Arc<PciRoot>);

impl Ecam {
    fn place(offset: u64) -> (Bdf, u16) {
        let field = |shift: u32, mask: u64| (offset >> shift & mask) as u8;
        let bdf = Bdf {
            bus: field(20, 0xff),
            device: field(15, 0x1f),
            function: field(12, 0x7),
        };
        (bdf, (offset & 0xfff) as u16)
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let (bdf, register) = Self::place(offset);
        self.0.read_config(bdf, register, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (bdf, register) = Self::place(offset);
        self.0.write_config(bdf, register, data);
    }
}

struct ConfigPorts(Arc<PciRoot>);

impl ConfigPorts {
    /// The function and register that an access of `len` bytes at CONFIG_DATA + `within` is for.
    fn place(&self, within: u64, len: usize) -> Option<(Bdf, u16)> {
        let address = self.0.config_address.load(Ordering::Acquire);
        let end = within.checked_add(len as u64)?;
        if address & ENABLE == 0 || end > 4 {
            return None;
        }
        let field = |shift: u32, mask: u32| (address >> shift & mask) as u8;
        let bdf = Bdf {
            bus: field(16, 0xff),
            device: field(11, 0x1f),
            function: field(8, 0x7),
        };
        Some((bdf, (address & 0xfc) as u16 + within as u16))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match offset.checked_sub(CONFIG_DATA) {
            // CONFIG_ADDRESS is a register only for aligned accesses of four bytes.
            None if offset == 0 && data.len() == 4 => {
                data.copy_from_slice(&self.0.config_address.load(Ordering::Acquire).to_le_bytes());
            }
            None => data.fill(0xff),
            Some(within) => match self.place(within, data.len()) {
                Some((bdf, register)) => self.0.read_config(bdf, register, data),
                None => data.fill(0xff),
            },
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match offset.checked_sub(CONFIG_DATA) {
            None => {
                if let (0, Ok(value)) = (offset, data.try_into()) {
                    let value = u32::from_le_bytes(value) & (ENABLE | 0x00ff_fffc);
                    self.0.config_address.store(value, Ordering::Release);
                }
            }
            Some(within) => {
                if let Some((bdf, register)) = self.place(within, data.len()) {
                    self.0.write_config(bdf, register, data);
                }
            }
        }
    }
}
