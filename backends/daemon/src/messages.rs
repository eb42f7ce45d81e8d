//! What each message of the frontend means to the [`Session`].

use std::fs::File;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    GpuBackend, Result as Reply, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
};

use crate::device::Device;
use crate::inflight::{AreaLayout, InflightArea};
use crate::memory::{MAX_REGIONS, RegionLayout};
use crate::ring::{MAX_RING_SIZE, RingAddresses};
use crate::session::{FEATURES, PROTOCOL_FEATURES, Session, protocol_features};

/// The largest configuration space that a frontend may ask for (VHOST_USER_MAX_CONFIG_SIZE of QEMU).
const CONFIG_SPACE: usize = 256;

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

impl<D: Device> VhostUserBackendReqHandlerMut for Session<'_, '_, D> {
    fn set_owner(&mut self) -> Reply<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Reply<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Reply<()> {
        for mut worker in self.workers() {
            worker.stop_all();
        }
        self.features = None;
        Ok(())
    }

    fn get_features(&mut self) -> Reply<u64> {
        Ok(FEATURES | self.first().part.features())
    }

    fn set_features(&mut self, features: u64) -> Reply<()> {
        let unknown = features & !(FEATURES | self.first().part.features());
        if unknown != 0 {
            return Err(self.refuse(format!("features {unknown:#x} were not offered")));
        }
        self.features = Some(features);
        self.first().part.negotiated(features);
        for mut worker in self.workers() {
            if features & PROTOCOL_FEATURES == 0 {
                worker.enable_all();
            }
            self.start_rings_of(&mut worker);
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Reply<Option<Vec<VhostUserMemoryRegionBase>>> {
        let regions = regions.iter().map(layout).zip(files).collect();
        self.memory
            .replace(regions)
            .map_err(|why| self.refuse(why))?;
        self.memory_changed();
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Reply<()> {
        let size = u16::try_from(num)
            .ok()
            .filter(|&size| size.is_power_of_two() && size <= MAX_RING_SIZE);
        match size {
            Some(size) => self.set_stopped(index, |ring| ring.size = size).map(drop),
            None => Err(self.refuse(format!("ring {index} cannot have {num} descriptors"))),
        }
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
        let mut worker = self.set_stopped(index, |ring| ring.addresses = Some(addresses))?;
        self.start_rings_of(&mut worker);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Reply<()> {
        match u16::try_from(base) {
            Ok(base) => self.set_stopped(index, |ring| ring.base = base).map(drop),
            Err(_) => Err(self.refuse(format!("ring {index} cannot start at {base}"))),
        }
    }

    fn get_vring_base(&mut self, index: u32) -> Reply<VhostUserVringState> {
        let (mut worker, number) = self.worker(index)?;
        let base = worker.stop(number);
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Reply<()> {
        let (mut worker, number) = self.worker(index.into())?;
        worker
            .set_kick(number, fd)
            .map_err(|error| self.refuse(format!("kick of ring {index}: {error}")))?;
        self.start_rings_of(&mut worker);
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Reply<()> {
        let (mut worker, number) = self.worker(index.into())?;
        if let Some(ring) = worker.ring(number) {
            ring.set_call(fd);
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Reply<()> {
        let (mut worker, number) = self.worker(index.into())?;
        if let Some(ring) = worker.ring(number) {
            ring.set_err(fd);
        }
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
        Ok(u64::from(self.rings))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Reply<()> {
        let (mut worker, number) = self.worker(index)?;
        worker.set_enabled(number, enable);
        self.start_rings_of(&mut worker);
        Ok(())
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Reply<Vec<u8>> {
        let mut config = self.first().part.config();
        config.resize(CONFIG_SPACE.max(config.len()), 0);
        let start = offset as usize;
        let part = start
            .checked_add(size as usize)
            .and_then(|end| config.get(start..end));
        part.map(<[u8]>::to_vec)
            .ok_or_else(|| self.refuse(format!("config space has no {size} bytes at {offset}")))
    }

    fn set_config(&mut self, offset: u32, data: &[u8], _flags: VhostUserConfigFlags) -> Reply<()> {
        let written = self.first().part.write_config(offset, data);
        written.map_err(|why| self.refuse(why))
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Reply<(VhostUserInflight, File)> {
        if wanted.num_queues > self.rings || wanted.queue_size > MAX_RING_SIZE {
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
            self.first().part.kept(memory);
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
        self.memory_grew();
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Reply<()> {
        self.memory
            .remove(layout(region))
            .map_err(|why| self.refuse(why))?;
        self.memory_changed();
        Ok(())
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
