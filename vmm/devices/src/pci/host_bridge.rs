//! Function 00:00.0: the bridge between the processors and the bus, which guests look for to detect PCI.

use std::sync::{Mutex, PoisonError};

use super::config::{ConfigSpace, Identity};
use super::function::{Bar, PciFunction};

/// QEMU's generic PCI Express host bridge, which needs no driver.
const IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: 0x06_00_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

pub(super) struct HostBridge(Mutex<ConfigSpace>);

impl HostBridge {
    pub(super) fn new() -> Self {
        Self(Mutex::new(ConfigSpace::new(&IDENTITY)))
    }

    pub(super) fn reset(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .reset();
    }
}

impl PciFunction for HostBridge {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let space = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        space.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> bool {
        let mut space = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        space.write(offset, data);
        false
    }

    fn bars(&self) -> Vec<Bar> {
        Vec::new()
    }

    fn bar_mapped(&self, _index: usize, _address: Option<u64>) {}

    fn read_bar(&self, _index: usize, _offset: u64, _data: &mut [u8]) {}

    fn write_bar(&self, _index: usize, _offset: u64, _data: &[u8]) {}
}
