//! One frontend's use of the device: its memory, rings and features, as its messages set them.

use std::fs::File;
use std::sync::Arc;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error as MessageError, GpuBackend, Result as Reply, VhostUserBackendReqHandlerMut,
    VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use virtio_bindings::virtio_config::{VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::device::{Device, Queues, out_of_service};
use crate::error::RingError;
use crate::inflight::{AreaLayout, InflightArea};
use crate::memory::{MAX_REGIONS, Memory, RegionLayout};
use crate::poll::{Again, Poll, Token};
use crate::ring::{MAX_RING_SIZE, Ring, RingAddresses};

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// What every device gets from the daemon.
const FEATURES: u64 = VERSION_1
    | EVENT_IDX
    | PROTOCOL_FEATURES
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_F_RING_RESET;

/// The largest configuration space that a frontend may ask for (VHOST_USER_MAX_CONFIG_SIZE of QEMU).
const CONFIG_SPACE: usize = 256;

fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::RESET_DEVICE
}

pub(crate) struct Session<'d, D: Device> {
    device: &'d mut D,
    poll: Arc<Poll>,
    rings: Vec<Ring>,
    memory: Memory,
    inflight: Option<InflightArea>,
    /// As accepted by the driver, once it has.
    features: Option<u64>,
    protocol_features: u64,
    again: Again,
    /// Why the last message was refused.
    refusal: Option<String>,
}

impl<'d, D: Device> Session<'d, D> {
    pub(crate) fn new(device: &'d mut D, poll: Arc<Poll>) -> Self {
        let rings = (0..device.queues()).map(Ring::new).collect();
        Self {
            device,
            poll,
            rings,
            memory: Memory::default(),
            inflight: None,
            features: None,
            protocol_features: 0,
            again: Again::default(),
            refusal: None,
        }
    }

    pub(crate) fn replies_to_all(&self) -> bool {
        self.protocol_features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    /// Whether the frontend has set features.
    pub(crate) fn has_negotiated(&self) -> bool {
        self.features.is_some()
    }

    pub(crate) fn take_refusal(&mut self) -> Option<String> {
        self.refusal.take()
    }

    pub(crate) fn has_more(&self) -> bool {
        !self.again.is_empty()
    }

    /// Gives every ring that asked for it another turn.
    pub(crate) fn next_turns(&mut self) {
        for index in self.again.take() {
            self.kicked(index);
        }
    }

    /// The driver says that there are requests in ring `index`.
    pub(crate) fn kicked(&mut self, index: u16) {
        let mut queues = Queues {
            rings: &mut self.rings,
            memory: self.memory.guest(),
            again: &mut self.again,
        };
        let before = queues.is_running(index);
        if before && !queues.run(index, |queue| self.device.process(queue)) {
            self.device.queue_running(index, false);
        }
    }

    /// The device's own event happened.
    pub(crate) fn device_event(&mut self, event: D::Event) -> std::io::Result<()> {
        let running = self.running();
        let mut queues = Queues {
            rings: &mut self.rings,
            memory: self.memory.guest(),
            again: &mut self.again,
        };
        let result = self.device.handle(event, &mut queues);
        self.tell_changes(&running);
        result
    }

    /// Has the device complete what it has taken from ring `index`, which is about to stop.
    fn drain(&mut self, index: u16) {
        let mut queues = Queues {
            rings: &mut self.rings,
            memory: self.memory.guest(),
            again: &mut self.again,
        };
        if queues.is_running(index) && !queues.run(index, |queue| self.device.drain(queue)) {
            self.device.queue_running(index, false);
        }
    }

    fn drain_all(&mut self) {
        for index in 0..self.rings.len() {
            self.drain(index as u16);
        }
    }

    /// Ends the session: no descriptor of the frontend stays open, and the device has put everything away.
    pub(crate) fn close(&mut self) -> std::io::Result<()> {
        self.stop_all();
        self.memory = Memory::default();
        self.inflight = None;
        self.device.disconnected()
    }

    fn running(&self) -> Vec<bool> {
        self.rings.iter().map(Ring::is_running).collect()
    }

    fn tell_changes(&mut self, before: &[bool]) {
        for (ring, &before) in self.rings.iter().zip(before) {
            if ring.is_running() != before {
                self.device.queue_running(ring.index, !before);
            }
        }
    }

    /// Starts the rings that have all they need, and looks at them once: the kick may have been given to a process that died.
    fn start_rings(&mut self) {
        let Some(features) = self.features.filter(|_| !self.memory.is_empty()) else {
            return;
        };
        let before = self.running();
        for ring in &mut self.rings {
            if !ring.can_start() {
                continue;
            }
            let started = if features & VERSION_1 == 0 {
                Err(RingError::Legacy)
            } else {
                let record = self
                    .inflight
                    .as_ref()
                    .map(|area| area.ring(ring.index, ring.size))
                    .transpose();
                record
                    .and_then(|record| ring.start(&self.memory, features & EVENT_IDX != 0, record))
            };
            if let Err(error) = started {
                out_of_service(ring, &error);
            }
        }
        for (ring, &before) in self.rings.iter().zip(&before) {
            if ring.is_running() && !before {
                self.again.add(ring.index);
            }
        }
        self.tell_changes(&before);
    }

    fn stop_all(&mut self) {
        self.drain_all();
        let before = self.running();
        for ring in &mut self.rings {
            if let Some(kick) = ring.kick() {
                self.poll.remove(kick);
            }
            ring.stop();
            ring.enabled = false;
        }
        self.tell_changes(&before);
        for ring in &mut self.rings {
            *ring = Ring::new(ring.index);
        }
    }

    fn ring(&mut self, index: u32) -> Reply<&mut Ring> {
        let rings = self.rings.len();
        let ring = usize::try_from(index)
            .ok()
            .and_then(|index| self.rings.get_mut(index));
        match ring {
            Some(ring) => Ok(ring),
            None => {
                self.refusal = Some(format!("there is no ring {index}, only {rings}"));
                Err(MessageError::InvalidParam)
            }
        }
    }

    fn stopped_ring(&mut self, index: u32) -> Reply<&mut Ring> {
        if !self.ring(index)?.is_stopped() {
            return Err(self.refuse(format!("ring {index} is in use")));
        }
        self.ring(index)
    }

    fn refuse(&mut self, why: String) -> MessageError {
        self.refusal = Some(why);
        MessageError::InvalidParam
    }
}

fn layout(region: &VhostUserMemoryRegion) -> RegionLayout {
    RegionLayout {
        guest_address: region.guest_phys_addr,
        user_address: region.user_addr,
        size: region.memory_size,
        file_offset: region.mmap_offset,
    }
}

fn area_layout(message: &VhostUserInflight) -> AreaLayout {
    AreaLayout {
        size: message.mmap_size,
        offset: message.mmap_offset,
        rings: message.num_queues,
        ring_size: message.queue_size,
    }
}

impl<D: Device> VhostUserBackendReqHandlerMut for Session<'_, D> {
    fn set_owner(&mut self) -> Reply<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Reply<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Reply<()> {
        self.stop_all();
        self.features = None;
        Ok(())
    }

    fn get_features(&mut self) -> Reply<u64> {
        Ok(FEATURES | self.device.features())
    }

    fn set_features(&mut self, features: u64) -> Reply<()> {
        let unknown = features & !(FEATURES | self.device.features());
        if unknown != 0 {
            return Err(self.refuse(format!("features {unknown:#x} were not offered")));
        }
        self.features = Some(features);
        if features & PROTOCOL_FEATURES == 0 {
            for ring in &mut self.rings {
                ring.enabled = true;
            }
        }
        self.device.negotiated(features);
        self.start_rings();
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Reply<Option<Vec<VhostUserMemoryRegionBase>>> {
        let regions = regions.iter().map(layout).zip(files).collect();
        self.drain_all();
        self.memory
            .replace(regions)
            .map_err(|why| self.refuse(why))?;
        self.start_rings();
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Reply<()> {
        let size = u16::try_from(num)
            .ok()
            .filter(|&size| size.is_power_of_two() && size <= MAX_RING_SIZE);
        match size {
            Some(size) => self.stopped_ring(index)?.size = size,
            None => {
                return Err(self.refuse(format!("ring {index} cannot have {num} descriptors")));
            }
        }
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Reply<()> {
        let addresses = RingAddresses {
            descriptors,
            available,
            used,
        };
        self.stopped_ring(index)?.addresses = Some(addresses);
        self.start_rings();
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Reply<()> {
        match u16::try_from(base) {
            Ok(base) => self.stopped_ring(index)?.base = base,
            Err(_) => return Err(self.refuse(format!("ring {index} cannot start at {base}"))),
        }
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Reply<VhostUserVringState> {
        let number = self.ring(index)?.index;
        self.drain(number);
        let before = self.running();
        let ring = self.ring(index)?;
        let kick = ring.set_kick(None);
        let base = ring.stop();
        if let Some(kick) = kick {
            self.poll.remove(&kick);
        }
        self.tell_changes(&before);
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Reply<()> {
        let token = Token::Kick(u16::from(index));
        if let Some(old) = self.ring(index.into())?.set_kick(None) {
            self.poll.remove(&old);
        }
        if let Some(file) = &fd {
            // Without a descriptor the frontend wants the ring polled; nobody kicks it then, and nobody serves it.
            self.poll
                .add(file, token)
                .map_err(|error| self.refuse(format!("kick of ring {index}: {error}")))?;
        }
        self.ring(index.into())?.set_kick(fd);
        self.start_rings();
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Reply<()> {
        self.ring(index.into())?.set_call(fd);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Reply<()> {
        self.ring(index.into())?.set_err(fd);
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Reply<VhostUserProtocolFeatures> {
        Ok(protocol_features())
    }

    fn set_protocol_features(&mut self, features: u64) -> Reply<()> {
        let unknown = features & !protocol_features().bits();
        if unknown != 0 {
            return Err(self.refuse(format!("protocol features {unknown:#x} were not offered")));
        }
        self.protocol_features = features;
        Ok(())
    }

    fn get_queue_num(&mut self) -> Reply<u64> {
        Ok(self.rings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Reply<()> {
        if !enable {
            let number = self.ring(index)?.index;
            self.drain(number);
        }
        let before = self.running();
        self.ring(index)?.enabled = enable;
        self.start_rings();
        // One that had started before only goes on.
        if enable && let Ok(index) = u16::try_from(index) {
            self.again.add(index);
        }
        self.tell_changes(&before);
        Ok(())
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Reply<Vec<u8>> {
        let mut config = self.device.config();
        config.resize(CONFIG_SPACE.max(config.len()), 0);
        let start = offset as usize;
        let part = start
            .checked_add(size as usize)
            .and_then(|end| config.get(start..end));
        part.map(<[u8]>::to_vec)
            .ok_or_else(|| self.refuse(format!("config space has no {size} bytes at {offset}")))
    }

    fn set_config(&mut self, offset: u32, data: &[u8], _flags: VhostUserConfigFlags) -> Reply<()> {
        self.device
            .write_config(offset, data)
            .map_err(|why| self.refuse(why))
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Reply<(VhostUserInflight, File)> {
        if usize::from(wanted.num_queues) > self.rings.len() || wanted.queue_size > MAX_RING_SIZE {
            return Err(self.refuse(format!(
                "no in-flight area for {} rings of {} descriptors",
                wanted.num_queues, wanted.queue_size
            )));
        }
        let (file, layout) = InflightArea::create(wanted.num_queues, wanted.queue_size)
            .map_err(|why| self.refuse(why))?;
        let answer =
            VhostUserInflight::new(layout.size, layout.offset, layout.rings, layout.ring_size);
        Ok((answer, file))
    }

    fn set_inflight_fd(&mut self, kept: &VhostUserInflight, file: File) -> Reply<()> {
        let area = InflightArea::map(file, area_layout(kept)).map_err(|why| self.refuse(why))?;
        if let Some(memory) = area.kept() {
            self.device.kept(memory);
        }
        self.inflight = Some(area);
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Reply<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy_listening: Option<bool>,
    ) -> Reply<Option<VhostUserMemoryRegionBase>> {
        self.memory
            .add(layout(region), file)
            .map_err(|why| self.refuse(why))?;
        self.start_rings();
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Reply<()> {
        self.drain_all();
        self.memory
            .remove(layout(region))
            .map_err(|why| self.refuse(why))
    }

    // What follows belongs to protocol features that are not offered.

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Reply<()> {
        Err(self.refuse("this is no GPU".to_owned()))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Reply<File> {
        Err(self.refuse("there are no shared objects".to_owned()))
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Reply<Option<File>> {
        Err(self.refuse("there is no device state to transfer".to_owned()))
    }

    fn check_device_state(&mut self) -> Reply<()> {
        Err(self.refuse("there is no device state to transfer".to_owned()))
    }

    fn get_shmem_config(&mut self) -> Reply<VhostUserShMemConfig> {
        Err(self.refuse("there is no shared memory region".to_owned()))
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Reply<()> {
        Err(self.refuse("dirty pages are not logged".to_owned()))
    }
}
