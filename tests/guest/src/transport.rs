//! The virtio-pci transport with what `virtio-drivers` leaves out: MSI-X vectors, and a doorbell that is one write and no
//! more.

use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction, PciRoot};
use virtio_drivers::transport::pci::{PciTransport, VirtioPciError};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{PhysAddr, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::memory::{self, GuestHal};
use crate::msix::MsixTable;
use crate::pci::{Configuration, structure};

const CAPABILITY_VENDOR: u8 = 0x09;
const VIRTIO_COMMON: u8 = 1;
const VIRTIO_NOTIFY: u8 = 2;
const NO_VECTOR: u16 = 0xffff;
const MAX_QUEUES: usize = MsixTable::MAX_ENTRIES as usize;

const COMMON_CONFIG_VECTOR: usize = 16;
const COMMON_QUEUE_SELECT: usize = 22;
const COMMON_QUEUE_VECTOR: usize = 26;
const COMMON_QUEUE_NOTIFY_OFFSET: usize = 30;

/// A virtio device on the PCI bus. Queue `q` interrupts with vector `first_vector + q`.
pub(crate) struct VirtioTransport {
    transport: PciTransport,
    common: *mut u8,
    notify: *mut u8,
    notify_multiplier: u32,
    doorbells: [Option<*mut u16>; MAX_QUEUES],
    table: MsixTable,
}

impl VirtioTransport {
    /// Takes over the device and routes its MSI-X table entries to the vectors from `first_vector` on, on this processor.
    pub(crate) fn new(
        configuration: Configuration,
        function: DeviceFunction,
        first_vector: u8,
    ) -> core::result::Result<Self, VirtioPciError> {
        let mut root = PciRoot::new(configuration);
        let transport = PciTransport::new::<GuestHal, _>(&mut root, function)?;
        let mut common = core::ptr::null_mut();
        let mut notify = core::ptr::null_mut();
        let mut notify_multiplier = 0;
        for capability in root.capabilities(function) {
            let word = |offset| configuration.read_word(function, capability.offset + offset);
            match (capability.id, (capability.private_header >> 8) as u8) {
                (CAPABILITY_VENDOR, VIRTIO_COMMON) => {
                    common = structure(configuration, function, word(4), word(8))
                }
                (CAPABILITY_VENDOR, VIRTIO_NOTIFY) => {
                    notify = structure(configuration, function, word(4), word(8));
                    notify_multiplier = word(16);
                }
                _ => {}
            }
        }
        let table = MsixTable::enable(configuration, function, first_vector);
        let doorbells = [None; MAX_QUEUES];
        Ok(Self {
            transport,
            common,
            notify,
            notify_multiplier,
            doorbells,
            table,
        })
    }

    /// Where the common configuration structure is, and where the doorbells are.
    pub(crate) fn structures(&self) -> (u64, u64) {
        (self.common as u64, self.notify as u64)
    }

    /// The device's MSI-X table.
    pub(crate) fn table(&self) -> MsixTable {
        self.table
    }

    fn read_common_u16(&self, offset: usize) -> u16 {
        // SAFETY: `common` is the common configuration structure, which `PciTransport` has found to be large enough.
        unsafe { self.common.add(offset).cast::<u16>().read_volatile() }
    }

    fn write_common_u16(&mut self, offset: usize, value: u16) {
        // SAFETY: as above.
        unsafe { self.common.add(offset).cast::<u16>().write_volatile(value) }
    }
}

impl Transport for VirtioTransport {
    fn device_type(&self) -> DeviceType {
        self.transport.device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        self.transport.read_device_features()
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.transport.write_driver_features(driver_features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.transport.max_queue_size(queue)
    }

    /// One write to the doorbell. `PciTransport` would first ask the device where it is.
    fn notify(&mut self, queue: u16) {
        match self.doorbells[usize::from(queue)] {
            // SAFETY: the doorbell of this queue, mapped.
            Some(doorbell) => unsafe { doorbell.write_volatile(queue) },
            None => panic!("queue {queue} is not set up"),
        }
    }

    fn get_status(&self) -> DeviceStatus {
        self.transport.get_status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.transport.set_status(status);
    }

    fn set_guest_page_size(&mut self, guest_page_size: u32) {
        self.transport.set_guest_page_size(guest_page_size);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.transport.requires_legacy_layout()
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        assert!(
            queue < self.table.size(),
            "queue {queue}, but {} MSI-X vectors",
            self.table.size()
        );
        self.write_common_u16(COMMON_CONFIG_VECTOR, NO_VECTOR);
        self.write_common_u16(COMMON_QUEUE_SELECT, queue);
        self.write_common_u16(COMMON_QUEUE_VECTOR, queue);
        let vector = self.read_common_u16(COMMON_QUEUE_VECTOR);
        assert!(
            vector == queue,
            "queue {queue}: the device took MSI-X vector {vector:#x} instead"
        );
        let offset =
            u32::from(self.read_common_u16(COMMON_QUEUE_NOTIFY_OFFSET)) * self.notify_multiplier;
        let doorbell = memory::map_device(self.notify as u64 + u64::from(offset), 2);
        self.doorbells[usize::from(queue)] = Some(doorbell.cast());
        self.transport
            .queue_set(queue, size, descriptors, driver_area, device_area);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.transport.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.transport.queue_used(queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.transport.ack_interrupt()
    }

    fn finish_init(&mut self) {
        self.transport.finish_init();
        let status = self.get_status();
        assert!(
            status.contains(DeviceStatus::FEATURES_OK | DeviceStatus::DRIVER_OK),
            "device status {status:?}"
        );
    }

    fn read_config_generation(&self) -> u32 {
        self.transport.read_config_generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        self.transport.read_config_space(offset)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<()> {
        self.transport.write_config_space(offset, value)
    }
}
