//! What the vCPUs meet outside their RAM: two buses, and an end.

use std::sync::Arc;

use bulkhead_devices::Bus;
use bulkhead_kvm::{Crash, Platform};

use crate::ending::{Ending, Endings};

/// The two address spaces that devices are in.
pub(crate) struct Buses {
    pub(crate) ports: Bus,
    pub(crate) memory: Bus,
    pub(crate) endings: Arc<Endings>,
}

impl Buses {
    pub(crate) fn new(endings: Arc<Endings>) -> Self {
        Self {
            ports: Bus::new(),
            memory: Bus::new(),
            endings,
        }
    }
}

impl Platform for Buses {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.ports.read(port.into(), data);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        self.ports.write(port.into(), data);
    }

    fn memory_read(&self, address: u64, data: &mut [u8]) {
        self.memory.read(address, data);
    }

    fn memory_write(&self, address: u64, data: &[u8]) {
        self.memory.write(address, data);
    }

    fn crashed(&self, vcpu: u8, crash: Crash) {
        self.endings.tell(Ending::Crash(vcpu, crash));
    }
}
