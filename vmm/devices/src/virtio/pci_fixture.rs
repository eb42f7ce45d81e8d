//! A virtio function with a device that records its calls, for the unit tests of the transport.

use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::GuestAddress;

use super::super::*;
use crate::hypervisor::MsiVector;
use crate::pci::{PciRoot, Window};
use crate::testing::RecordingHypervisor;
use crate::virtio::F_VERSION_1;

pub(super) const RAM: usize = 0x10_0000;
pub(super) const FEATURES: u64 = F_VERSION_1 | 0b1011;

pub(super) const STATUS: u64 = 0x14;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Called {
    Active(u64, Vec<(u16, u16, u64)>),
    Call(u16),
    Kick(u16),
    Reset,
}

#[derive(Default)]
pub(super) struct Fake {
    pub(super) calls: Mutex<Vec<Called>>,
    pub(super) queues: Mutex<Vec<ActiveQueue>>,
    pub(super) events: Mutex<Option<Arc<dyn DeviceEvents>>>,
    pub(super) written: Mutex<Vec<(u64, Vec<u8>)>>,
    /// A reset is not complete.
    pub(super) busy: AtomicBool,
}

impl VirtioDevice for Fake {
    fn device_type(&self) -> u16 {
        2
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[256, 64]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xc0 ^ offset as u8);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        self.written.lock().unwrap().push((offset, data.to_vec()));
    }

    fn attach(&self, events: Arc<dyn DeviceEvents>) {
        *self.events.lock().unwrap() = Some(events);
    }

    fn activate(&self, features: u64, queues: Vec<ActiveQueue>) {
        let brief = |queue: &ActiveQueue| (queue.index, queue.size, queue.descriptors);
        let call = Called::Active(features, queues.iter().map(brief).collect());
        self.calls.lock().unwrap().push(call);
        *self.queues.lock().unwrap() = queues;
    }

    fn set_call(&self, index: u16, call: Arc<dyn MsiVector>) {
        self.calls.lock().unwrap().push(Called::Call(index));
        let mut queues = self.queues.lock().unwrap();
        queues
            .iter_mut()
            .find(|queue| queue.index == index)
            .unwrap()
            .call = call;
    }

    fn notify(&self, index: u16) {
        self.calls.lock().unwrap().push(Called::Kick(index));
    }

    fn reset(&self) {
        self.calls.lock().unwrap().push(Called::Reset);
    }

    fn is_stopped(&self) -> bool {
        !self.busy.load(Ordering::Acquire)
    }
}

/// A guest with one virtio function, whose BAR decodes.
pub(super) struct Guest {
    pub(super) device: Arc<Fake>,
    pub(super) hypervisor: Arc<RecordingHypervisor>,
    pub(super) function: Arc<VirtioPci>,
    pub(super) root: Arc<PciRoot>,
    pub(super) bar: u64,
}

impl Guest {
    pub(super) fn new() -> Self {
        let (device, hypervisor) = (
            Arc::new(Fake::default()),
            Arc::new(RecordingHypervisor::default()),
        );
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let function = VirtioPci::new(device.clone(), hypervisor.clone(), memory).unwrap();
        let window = Window {
            base: 0xc000_0000,
            len: 0x100_0000,
        };
        let root = PciRoot::new(&[window]).unwrap();
        root.add_function(function.clone()).unwrap();
        let bar = function.bars()[0].address;
        let guest = Self {
            device,
            hypervisor,
            function,
            root,
            bar,
        };
        guest.config_write(4, &[6]);
        guest
    }

    pub(super) fn config_write(&self, register: u64, data: &[u8]) {
        self.root.ecam().write(1 << 15 | register, data);
    }

    pub(super) fn config_read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.root.ecam().read(1 << 15 | register, &mut data);
        u32::from_le_bytes(data)
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        self.root.mmio()[0]
            .1
            .write(self.bar - 0xc000_0000 + offset, data);
    }

    pub(super) fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xee; N];
        self.root.mmio()[0]
            .1
            .read(self.bar - 0xc000_0000 + offset, &mut data);
        data
    }

    pub(super) fn status(&self) -> u8 {
        self.read::<1>(STATUS)[0]
    }

    pub(super) fn set_status(&self, status: u8) {
        self.write(STATUS, &[status]);
    }

    pub(super) fn negotiate(&self, features: u64) {
        self.set_status(1);
        self.set_status(3);
        for word in 0..2_u32 {
            self.write(0x08, &word.to_le_bytes());
            self.write(0x0c, &((features >> (32 * word)) as u32).to_le_bytes());
        }
        self.set_status(0xb);
    }

    pub(super) fn set_up_queue(&self, queue: u16, vector: u16, descriptors: u64) {
        self.write(0x16, &queue.to_le_bytes());
        self.write(0x18, &16_u16.to_le_bytes());
        self.write(0x1a, &vector.to_le_bytes());
        self.write(0x20, &descriptors.to_le_bytes());
        self.write(0x28, &descriptors.wrapping_add(0x1000).to_le_bytes());
        self.write(0x30, &descriptors.wrapping_add(0x2000).to_le_bytes());
        self.write(0x1c, &1_u16.to_le_bytes());
    }

    /// MSI-X on, vector `n` sends message `n`.
    pub(super) fn enable_msix(&self) {
        for vector in 0..3_u64 {
            let entry = TABLE.start + vector * 16;
            self.write(entry, &0xfee0_0000_u64.to_le_bytes());
            self.write(entry + 8, &vector.to_le_bytes());
        }
        self.config_write(self.function.offsets.msix_control.into(), &[0, 0x80]);
    }

    pub(super) fn take_calls(&self) -> Vec<Called> {
        std::mem::take(&mut self.device.calls.lock().unwrap())
    }

    pub(super) fn boot(&self) {
        self.negotiate(FEATURES);
        self.set_up_queue(0, 1, 0x1_0000);
        self.set_up_queue(1, 2, 0x2_0000);
        self.set_status(0xf);
    }
}
