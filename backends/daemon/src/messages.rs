//! The messages of the frontend, as the [`Session`] handles them.

use std::fs::File;

use vhost::vhost_user::VhostUserProtocolFeatures;
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserInflight, VhostUserMemory, VhostUserMemoryRegion,
    VhostUserMsgValidator, VhostUserSingleMemoryRegion, VhostUserU64, VhostUserVringAddr,
    VhostUserVringState,
};

use crate::connection::{Message, Reply};
use crate::device::Device;
use crate::inflight::{AreaLayout, InflightArea};
use crate::memory::{MAX_REGIONS, RegionLayout};
use crate::ring::{MAX_RING_SIZE, RingAddresses};
use crate::session::{FEATURES, PROTOCOL_FEATURES, Session, protocol_features};
use crate::vring_eventfd::VringEventFd;

/// The largest configuration space that a frontend may ask for (VHOST_USER_MAX_CONFIG_SIZE of QEMU).
const CONFIG_SPACE: usize = 256;

/// Why a message was refused.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Refusal {
    /// The request cannot be done. If the frontend learns that by an acknowledgement, it may go on.
    Request(String),
    /// The message breaks the protocol.
    Malformed(FrontendReq),
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self::Request(why)
    }
}

/// The reply, if the request has one.
type Done = Result<Option<Reply>, Refusal>;

impl Message {
    /// Whether the frontend wants an acknowledgement. Requests with a reply of their own have none.
    pub(crate) fn is_acknowledged(&self) -> bool {
        const REPLIED: [FrontendReq; 7] = [
            FrontendReq::GET_FEATURES,
            FrontendReq::GET_VRING_BASE,
            FrontendReq::GET_PROTOCOL_FEATURES,
            FrontendReq::GET_QUEUE_NUM,
            FrontendReq::GET_CONFIG,
            FrontendReq::GET_INFLIGHT_FD,
            FrontendReq::GET_MAX_MEM_SLOTS,
        ];
        self.needs_reply && !REPLIED.contains(&self.request)
    }

    fn malformed(&self) -> Refusal {
        Refusal::Malformed(self.request)
    }

    /// Reads the body as a `T` and nothing else.
    fn body<T: VhostUserMsgValidator + Default>(&self) -> Result<T, Refusal> {
        self.parse(&self.body)
    }

    fn parse<T: VhostUserMsgValidator + Default>(&self, bytes: &[u8]) -> Result<T, Refusal> {
        let mut body = T::default();
        if bytes.len() != size_of::<T>() {
            return Err(self.malformed());
        }
        body.as_mut_slice().copy_from_slice(bytes);
        match body.is_valid() {
            true => Ok(body),
            false => Err(self.malformed()),
        }
    }

    /// Reads the first part of the body as a `T`. Also returns the rest.
    fn head<T: VhostUserMsgValidator + Default>(&self) -> Result<(T, &[u8]), Refusal> {
        let (head, rest) = self
            .body
            .split_at_checked(size_of::<T>())
            .ok_or_else(|| self.malformed())?;
        Ok((self.parse(head)?, rest))
    }

    fn empty(&self) -> Result<(), Refusal> {
        match self.body.is_empty() {
            true => Ok(()),
            false => Err(self.malformed()),
        }
    }

    /// Takes the files that came with the message, each of which will be mapped.
    fn take_files(&mut self, number: usize) -> Result<Vec<File>, Refusal> {
        if self.files.len() != number {
            return Err(self.malformed());
        }
        if !self.files.are_regular() {
            let why = format!("{:?}: memory must be a regular file", self.request);
            return Err(why.into());
        }
        Ok(self.files.take().into_iter().map(File::from).collect())
    }

    fn take_file(&mut self) -> Result<File, Refusal> {
        self.take_files(1)?.pop().ok_or_else(|| self.malformed())
    }

    /// Takes the ring's index and the eventfd, if there is one, of a SET_VRING_KICK, _CALL or _ERR message.
    fn take_eventfd(&mut self) -> Result<(u32, Option<VringEventFd>), Refusal> {
        /// Set if no descriptor comes with the message.
        const NONE: u64 = 0x100;
        let body: VhostUserU64 = self.body()?;
        let index = (body.value & 0xff) as u32;
        let expected = usize::from(body.value & NONE == 0);
        if self.files.len() != expected {
            return Err(self.malformed());
        }
        let Some(fd) = self.files.pop() else {
            return Ok((index, None));
        };
        match VringEventFd::new(fd) {
            Some(event) => Ok((index, Some(event))),
            None => {
                let what = self.request;
                Err(format!("{what:?}: the descriptor for ring {index} is no eventfd").into())
            }
        }
    }

    /// Whether descriptors may come with the message.
    fn may_have_files(&self) -> bool {
        matches!(
            self.request,
            FrontendReq::SET_MEM_TABLE
                | FrontendReq::SET_VRING_CALL
                | FrontendReq::SET_VRING_KICK
                | FrontendReq::SET_VRING_ERR
                | FrontendReq::SET_INFLIGHT_FD
                | FrontendReq::ADD_MEM_REG
                // The request needs none, but old frontends send one.
                | FrontendReq::REM_MEM_REG
        )
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

/// The protocol feature that a request requires.
fn needed_feature(request: FrontendReq) -> VhostUserProtocolFeatures {
    match request {
        FrontendReq::RESET_DEVICE => VhostUserProtocolFeatures::RESET_DEVICE,
        FrontendReq::GET_QUEUE_NUM => VhostUserProtocolFeatures::MQ,
        FrontendReq::GET_CONFIG | FrontendReq::SET_CONFIG => VhostUserProtocolFeatures::CONFIG,
        FrontendReq::GET_INFLIGHT_FD | FrontendReq::SET_INFLIGHT_FD => {
            VhostUserProtocolFeatures::INFLIGHT_SHMFD
        }
        FrontendReq::GET_MAX_MEM_SLOTS | FrontendReq::ADD_MEM_REG | FrontendReq::REM_MEM_REG => {
            VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        }
        _ => VhostUserProtocolFeatures::empty(),
    }
}

impl<D: Device> Session<'_, '_, D> {
    /// Handles `message`, and returns the reply, if the request has one.
    pub(crate) fn handle(&mut self, mut message: Message) -> Done {
        let needed = needed_feature(message.request).bits();
        let unexpected = !message.files.is_empty() && !message.may_have_files();
        if unexpected || needed & !self.protocol_features != 0 {
            return Err(message.malformed());
        }
        match message.request {
            FrontendReq::SET_OWNER => message.empty()?,
            FrontendReq::RESET_OWNER | FrontendReq::RESET_DEVICE => {
                message.empty()?;
                self.reset();
            }
            FrontendReq::GET_FEATURES => return number(&message, self.offered()),
            FrontendReq::SET_FEATURES => {
                self.set_features(message.body::<VhostUserU64>()?.value)?
            }
            FrontendReq::GET_PROTOCOL_FEATURES => {
                return number(&message, protocol_features().bits());
            }
            FrontendReq::SET_PROTOCOL_FEATURES => {
                self.set_protocol_features(message.body::<VhostUserU64>()?.value)?;
            }
            FrontendReq::GET_QUEUE_NUM => return number(&message, u64::from(self.rings)),
            FrontendReq::GET_CONFIG => return self.get_config(&message),
            FrontendReq::SET_CONFIG => self.set_config(&message)?,
            FrontendReq::GET_INFLIGHT_FD => return self.get_inflight_fd(message.body()?),
            FrontendReq::SET_INFLIGHT_FD => self.set_inflight_fd(&mut message)?,
            FrontendReq::GET_MAX_MEM_SLOTS => return number(&message, MAX_REGIONS as u64),
            FrontendReq::SET_MEM_TABLE => self.set_mem_table(&mut message)?,
            FrontendReq::ADD_MEM_REG => {
                let region = layout(&*message.body::<VhostUserSingleMemoryRegion>()?);
                let file = message.take_file()?;
                self.memory.add(region, file)?;
                self.memory_grew();
            }
            FrontendReq::REM_MEM_REG => {
                let region = layout(&*message.body::<VhostUserSingleMemoryRegion>()?);
                self.memory.remove(region)?;
                self.memory_changed();
            }
            _ => return self.handle_ring(message),
        }
        Ok(None)
    }

    /// The same for messages about one ring.
    fn handle_ring(&mut self, mut message: Message) -> Done {
        match message.request {
            FrontendReq::SET_VRING_NUM => self.set_vring_num(message.body()?)?,
            FrontendReq::SET_VRING_ADDR => self.set_vring_addr(message.body()?)?,
            FrontendReq::SET_VRING_BASE => self.set_vring_base(message.body()?)?,
            FrontendReq::GET_VRING_BASE => {
                let state: VhostUserVringState = message.body()?;
                let (mut group, number) = self.group(state.index)?;
                let base = u32::from(group.stop(number));
                let state = VhostUserVringState::new(state.index, base);
                return Ok(Some(Reply::new(&state)));
            }
            FrontendReq::SET_VRING_KICK => {
                let (index, fd) = message.take_eventfd()?;
                self.set_vring_kick(index, fd)?;
            }
            FrontendReq::SET_VRING_CALL => {
                let (index, fd) = message.take_eventfd()?;
                let (mut group, number) = self.group(index)?;
                if let Some(ring) = group.ring(number) {
                    ring.set_call(fd);
                }
            }
            FrontendReq::SET_VRING_ERR => {
                let (index, fd) = message.take_eventfd()?;
                let (mut group, number) = self.group(index)?;
                if let Some(ring) = group.ring(number) {
                    ring.set_err(fd);
                }
            }
            FrontendReq::SET_VRING_ENABLE => {
                let state: VhostUserVringState = message.body()?;
                // QEMU enables a network device's rings before it sets features.
                let enabled_by_features = |features| features & PROTOCOL_FEATURES == 0;
                if state.num > 1 || self.features.is_some_and(enabled_by_features) {
                    return Err(message.malformed());
                }
                let (mut group, number) = self.group(state.index)?;
                group.set_enabled(number, state.num == 1);
                self.start_rings_of(&mut group);
            }
            // These need protocol features that are not offered.
            _ => return Err(message.malformed()),
        }
        Ok(None)
    }

    fn reset(&mut self) {
        for mut group in self.groups() {
            group.stop_all();
        }
        self.features = None;
    }

    fn offered(&self) -> u64 {
        FEATURES | self.first().part.features()
    }

    fn set_features(&mut self, features: u64) -> Result<(), String> {
        let unknown = features & !self.offered();
        if unknown != 0 {
            return Err(format!("features {unknown:#x} were not offered"));
        }
        self.features = Some(features);
        self.first().part.negotiated(features);
        for mut group in self.groups() {
            if features & PROTOCOL_FEATURES == 0 {
                group.enable_all();
            }
            self.start_rings_of(&mut group);
        }
        Ok(())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<(), String> {
        let unknown = features & !protocol_features().bits();
        if unknown != 0 {
            return Err(format!("protocol features {unknown:#x} were not offered"));
        }
        self.protocol_features = features;
        Ok(())
    }

    fn set_mem_table(&mut self, message: &mut Message) -> Result<(), Refusal> {
        let (table, regions): (VhostUserMemory, _) = message.head()?;
        let size = size_of::<VhostUserMemoryRegion>();
        let number = table.num_regions as usize;
        if regions.len() != number * size {
            return Err(message.malformed());
        }
        let layouts = regions
            .chunks_exact(size)
            .map(|bytes| Ok(layout(&message.parse(bytes)?)))
            .collect::<Result<Vec<_>, Refusal>>()?;
        let files = message.take_files(number)?;
        self.memory
            .replace(layouts.into_iter().zip(files).collect())?;
        self.memory_changed();
        Ok(())
    }

    fn set_vring_num(&mut self, state: VhostUserVringState) -> Result<(), String> {
        let VhostUserVringState { index, num } = state;
        let size = u16::try_from(num)
            .ok()
            .filter(|&size| size.is_power_of_two() && size <= MAX_RING_SIZE);
        match size {
            Some(size) => self.set_stopped(index, |ring| ring.size = size).map(drop),
            None => Err(format!("ring {index} cannot have {num} descriptors")),
        }
    }

    fn set_vring_addr(&mut self, message: VhostUserVringAddr) -> Result<(), String> {
        let addresses = RingAddresses {
            descriptors: message.descriptor,
            available: message.available,
            used: message.used,
        };
        let mut group = self.set_stopped(message.index, |ring| ring.addresses = Some(addresses))?;
        self.start_rings_of(&mut group);
        Ok(())
    }

    fn set_vring_base(&mut self, state: VhostUserVringState) -> Result<(), String> {
        let VhostUserVringState { index, num } = state;
        match u16::try_from(num) {
            Ok(base) => self.set_stopped(index, |ring| ring.base = base).map(drop),
            Err(_) => Err(format!("ring {index} cannot start at {num}")),
        }
    }

    fn set_vring_kick(&mut self, index: u32, fd: Option<VringEventFd>) -> Result<(), String> {
        let (mut group, number) = self.group(index)?;
        group
            .set_kick(number, fd)
            .map_err(|error| format!("kick of ring {index}: {error}"))?;
        self.start_rings_of(&mut group);
        Ok(())
    }

    /// Returns an empty configuration to refuse, as the specification wants it.
    fn get_config(&self, message: &Message) -> Done {
        let (wanted, place): (VhostUserConfig, _) = message.head()?;
        let (start, size) = (wanted.offset as usize, wanted.size as usize);
        if place.len() != size {
            return Err(message.malformed());
        }
        let mut config = self.first().part.config();
        config.resize(CONFIG_SPACE.max(config.len()), 0);
        let end = start.checked_add(size);
        let part = end
            .and_then(|end| config.get(start..end))
            .unwrap_or_default();
        let head = VhostUserConfig {
            size: part.len() as u32,
            ..wanted
        };
        let mut reply = Reply::new(&head);
        reply.body.extend_from_slice(part);
        Ok(Some(reply))
    }

    fn set_config(&mut self, message: &Message) -> Result<(), Refusal> {
        let (place, data): (VhostUserConfig, _) = message.head()?;
        if data.len() != place.size as usize {
            return Err(message.malformed());
        }
        let written = self.first().part.write_config(place.offset, data);
        written.map_err(Refusal::from)
    }

    fn get_inflight_fd(&self, wanted: VhostUserInflight) -> Done {
        if wanted.num_queues > self.rings || wanted.queue_size > MAX_RING_SIZE {
            let why = format!(
                "no in-flight area for {} rings of {} descriptors",
                wanted.num_queues, wanted.queue_size
            );
            return Err(why.into());
        }
        let (file, layout) = InflightArea::create(wanted.num_queues, wanted.queue_size)?;
        let area =
            VhostUserInflight::new(layout.size, layout.offset, layout.rings, layout.ring_size);
        Ok(Some(Reply {
            file: Some(file.into()),
            ..Reply::new(&area)
        }))
    }

    fn set_inflight_fd(&mut self, message: &mut Message) -> Result<(), Refusal> {
        let file = message.take_file()?;
        let layout: VhostUserInflight = message.body()?;
        let area = InflightArea::map(file, area_layout(&layout))?;
        if let Some(recovery) = area.recovery_area() {
            self.first().part.set_recovery_area(recovery);
        }
        self.inflight = Some(area);
        Ok(())
    }
}

/// Replies with `value` to a request that has no body.
fn number(message: &Message, value: u64) -> Done {
    message.empty()?;
    Ok(Some(Reply::new(&value)))
}
