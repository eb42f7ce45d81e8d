//! Where a vCPU's accesses outside RAM go: the port and memory buses, and why the VM stopped.

use std::sync::Arc;

use bulkhead_devices::Bus;
use bulkhead_kvm::{Crash, Platform};

use crate::stop::{Stop, StopReason};

/// The two buses, and why the VM stopped.
pub(crate) struct Buses {
    pub(crate) ports: Bus,
    pub(crate) memory: Bus,
    pub(crate) stop: Arc<Stop>,
}

impl Buses {
    pub(crate) fn new(stop: Arc<Stop>) -> Self {
        Self {
            ports: Bus::new(),
            memory: Bus::new(),
            stop,
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
        self.stop.report(StopReason::Crash(vcpu, crash));
    }
}
